#include "mail/content.h"

#include <limits>

#include "base/assert.h"

namespace millrace::mail {
namespace {

void add_part(std::vector<iovec>& parts, std::string_view bytes) {
  if (bytes.empty()) return;
  parts.push_back({const_cast<char*>(bytes.data()), bytes.size()});
}

// Walks forward over the raw spans, emitting or passing over bytes.
class Cursor {
 public:
  Cursor(const std::vector<std::string_view>& raw, std::vector<iovec>& parts)
      : raw_(raw), parts_(parts) {}

  void emit_to(uint32_t offset) { move(offset, true); }
  void skip_to(uint32_t offset) { move(offset, false); }

 private:
  void move(uint32_t offset, bool emit) {
    while (position_ < offset) {
      ASSERT(span_ < raw_.size());
      std::string_view rest = raw_[span_].substr(in_span_);
      size_t take = std::min<size_t>(rest.size(), offset - position_);
      if (emit) add_part(parts_, rest.substr(0, take));
      position_ += static_cast<uint32_t>(take);
      in_span_ += take;
      if (take == rest.size()) {
        ++span_;
        in_span_ = 0;
      }
    }
  }

  const std::vector<std::string_view>& raw_;
  std::vector<iovec>& parts_;
  size_t span_ = 0;
  size_t in_span_ = 0;
  uint32_t position_ = 0;
};

}  // namespace

void Content::append_raw(std::string_view bytes) {
  if (bytes.empty()) return;
  ASSERT(bytes.size() <= std::numeric_limits<uint32_t>::max() - raw_size);
  raw_size += static_cast<uint32_t>(bytes.size());
  if (!raw.empty() && raw.back().data() + raw.back().size() == bytes.data()) {
    raw.back() = {raw.back().data(), raw.back().size() + bytes.size()};
  } else {
    raw.push_back(bytes);
  }
}

void Content::truncate_raw(uint32_t size) {
  ASSERT(size <= raw_size);
  while (raw_size > size) {
    size_t surplus = raw_size - size;
    std::string_view& last = raw.back();
    if (last.size() <= surplus) {
      raw_size -= static_cast<uint32_t>(last.size());
      raw.pop_back();
    } else {
      last.remove_suffix(surplus);
      raw_size = size;
    }
  }
}

uint64_t Content::size() const {
  uint64_t size = prefix.size() + raw_size;
  for (const Cut& cut : cuts) size -= cut.size;
  if (stuffed) size -= dots.size() + unlisted_dots;
  return size;
}

uint64_t Content::wire_size(WireForm form) const {
  if (form == WireForm::bdat) return size();
  return size() + dots.size() + unlisted_dots + (ends_in_crlf ? 0 : 2);
}

void Content::gather(WireForm form, std::vector<iovec>& parts) const {
  ASSERT(supports(form));
  add_part(parts, prefix);
  const bool drop_dots = stuffed && form == WireForm::bdat;
  const bool add_dots = !stuffed && form == WireForm::data;
  auto dot = drop_dots || add_dots ? dots.begin() : dots.end();
  auto cut = cuts.begin();
  Cursor cursor(raw, parts);
  while (dot != dots.end() || cut != cuts.end()) {
    if (cut == cuts.end() || (dot != dots.end() && *dot < cut->offset)) {
      cursor.emit_to(*dot);
      if (add_dots) {
        add_part(parts, ".");
      } else {
        cursor.skip_to(*dot + 1);
      }
      ++dot;
    } else {
      cursor.emit_to(cut->offset);
      cursor.skip_to(cut->offset + cut->size);
      ++cut;
    }
  }
  cursor.emit_to(raw_size);
  if (form == WireForm::data && !ends_in_crlf) add_part(parts, "\r\n");
}

}  // namespace millrace::mail
