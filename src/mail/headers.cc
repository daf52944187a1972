#include "mail/headers.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/assert.h"

namespace millrace::mail {
namespace {

constexpr size_t kLongestHelo = 255;
constexpr size_t kLongestPathText = 256;

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }
bool is_blank(char c) { return c == ' ' || c == '\t'; }
bool is_control(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

bool is_high(char c) { return static_cast<unsigned char>(c) >= 0x80; }

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

void append_clean(std::string& out, std::string_view text, size_t limit) {
  size_t start = out.size();
  out.append(text.substr(0, limit));
  for (size_t i = start; i < out.size(); ++i) {
    if (is_control(out[i])) out[i] = out[i] == '\t' ? ' ' : '?';
  }
}

// The lines of a Content's raw bytes, one after the other. A line within one span is a view into
// it.
class Lines {
 public:
  explicit Lines(const Content& content) : raw_(content.raw) {}

  struct Line {
    std::string_view text;  // without CRLF; valid until the next call
    uint32_t offset = 0;
    uint32_t size = 0;  // with CRLF
  };
  bool next(Line& line) {
    while (span_ < raw_.size() && raw_[span_].empty()) ++span_;
    if (span_ == raw_.size()) return false;
    line.offset = position_;
    std::string_view rest = raw_[span_].substr(in_span_);
    if (const void* lf = std::memchr(rest.data(), '\n', rest.size())) {
      line.text =
          rest.substr(0, static_cast<size_t>(static_cast<const char*>(lf) - rest.data()) + 1);
      advance(line.text.size());
    } else {
      joined_.clear();
      bool complete = false;
      while (!complete && span_ < raw_.size()) {
        rest = raw_[span_].substr(in_span_);
        const void* end = rest.empty() ? nullptr : std::memchr(rest.data(), '\n', rest.size());
        size_t take = end ? static_cast<size_t>(static_cast<const char*>(end) - rest.data()) + 1
                          : rest.size();
        joined_.append(rest.substr(0, take));
        advance(take);
        complete = end != nullptr;
      }
      line.text = joined_;
    }
    line.size = static_cast<uint32_t>(line.text.size());
    if (line.text.ends_with('\n')) line.text.remove_suffix(1);
    if (line.text.ends_with('\r')) line.text.remove_suffix(1);
    return true;
  }
  uint32_t position() const { return position_; }

 private:
  void advance(size_t octets) {
    position_ += static_cast<uint32_t>(octets);
    in_span_ += octets;
    if (in_span_ == raw_[span_].size()) {
      ++span_;
      in_span_ = 0;
    }
  }

  const std::vector<std::string_view>& raw_;
  size_t span_ = 0;
  size_t in_span_ = 0;
  uint32_t position_ = 0;
  std::string joined_;
};

// The field name of a line, or empty when the line is no field. A blank before the colon belongs to
// neither (RFC 5322 4.5); receivers read "Bcc :" as Bcc, so it is removed as such.
std::string_view field_name(std::string_view line, size_t& colon) {
  size_t end = 0;
  while (end < line.size() && line[end] > 32 && line[end] < 127 && line[end] != ':') ++end;
  colon = end;
  while (colon < line.size() && is_blank(line[colon])) ++colon;
  if (end == 0 || colon == line.size() || line[colon] != ':') return {};
  return line.substr(0, end);
}

// Collects the value of one field over its continuation lines.
void append_value(std::string& value, std::string_view text, size_t longest) {
  if (value.size() < longest) append_clean(value, text, longest - value.size());
}

void trim_value(std::string& value) {
  std::string_view kept = trim(value);
  value.erase(0, static_cast<size_t>(kept.data() - value.data()));
  value.resize(kept.size());
}

void append_two_digits(std::string& out, unsigned number) {
  out.push_back(static_cast<char>('0' + number / 10 % 10));
  out.push_back(static_cast<char>('0' + number % 10));
}

}  // namespace

HeaderRules::HeaderRules(const std::vector<std::string>& metadata_names,
                         const std::vector<std::string>& removed_names)
    : metadata_count_(metadata_names.size()) {
  for (size_t i = 0; i < metadata_names.size(); ++i) {
    add(metadata_names[i], {Kind::metadata, static_cast<uint16_t>(i)});
  }
  add("Received", {Kind::received, 0});
  add("Date", {Kind::date, 0});
  add("Message-ID", {Kind::message_id, 0});
  add("From", {Kind::from, 0});
  add("TLS-Required", {Kind::tls_required, 0});
  for (const char* name : {"Bcc", "Resent-Bcc", "Return-Path"}) add(name, {Kind::removed, 0});
  for (const std::string& name : removed_names) add(name, {Kind::removed, 0});
}

void HeaderRules::add(std::string_view name, Match match) {
  ASSERT(!name.empty());
  Entry entry{std::string(name), match};
  for (char& c : entry.lower) c = lower(c);
  by_length_[std::min(name.size(), kBuckets - 1)].push_back(std::move(entry));
}

HeaderRules::Match HeaderRules::find(std::string_view name) const {
  for (const Entry& entry : by_length_[std::min(name.size(), kBuckets - 1)]) {
    if (entry.lower.size() != name.size() || entry.lower[0] != lower(name[0])) continue;
    bool equal = true;
    for (size_t i = 1; i < name.size() && equal; ++i) equal = entry.lower[i] == lower(name[i]);
    if (equal) return entry.match;
  }
  return {};
}

void scan_headers(Content& content, const HeaderRules& rules, HeaderScan& scan) {
  ASSERT(content.cuts.empty());
  using Kind = HeaderRules::Kind;
  scan.clear();
  scan.values.resize(rules.metadata_count());
  bool cutting = false;
  bool dots_in_cuts = false;
  std::string* value = nullptr;  // of the current field, if wanted
  auto cut = [&](const Lines::Line& line, bool dotted) {
    if (!content.cuts.empty() &&
        content.cuts.back().offset + content.cuts.back().size == line.offset) {
      content.cuts.back().size += line.size;
    } else if (content.cuts.size() == kMostCuts) {
      scan.too_many_cuts = true;
      return;
    } else {
      content.cuts.push_back({line.offset, line.size});
    }
    if (dotted && content.unlisted_dots > 0) --content.unlisted_dots;
    dots_in_cuts |= dotted;
  };

  Lines lines(content);
  Lines::Line line;
  bool empty_line = false;
  while (lines.next(line)) {
    bool dotted = line.text.starts_with('.');
    std::string_view text = line.text.substr(dotted && content.stuffed ? 1 : 0);
    if (text.empty()) {
      empty_line = true;
      break;
    }
    if (content.eight_bit && !content.eight_bit_header) {
      content.eight_bit_header = std::any_of(text.begin(), text.end(), is_high);
    }
    if (is_blank(text[0]) && scan.field_count > 0) {
      if (value) append_value(*value, text, value == &scan.from ? kLongestFrom : kLongestValue);
      if (cutting) cut(line, dotted);
      continue;
    }
    size_t colon = 0;
    std::string_view name = field_name(text, colon);
    value = nullptr;
    cutting = false;
    if (name.empty()) {
      if (scan.field_count == 0) {  // no header section at all
        content.eight_bit_header = false;
        return;
      }
      continue;  // receivers read on past such a line, so what follows it is looked at too
    }
    ++scan.field_count;
    HeaderRules::Match match = rules.find(name);
    switch (match.kind) {
      case Kind::other:
        break;
      case Kind::received:
        ++scan.received_count;
        break;
      case Kind::date:
        scan.has_date = true;
        break;
      case Kind::message_id:
        if (!scan.has_message_id) value = &scan.message_id;
        scan.has_message_id = true;
        break;
      case Kind::from:
        if (!scan.wants_from) break;
        if (!scan.from.empty()) scan.from.push_back(',');
        value = &scan.from;
        break;
      case Kind::tls_required:
        if (scan.tls_required_count++ == 0) value = &scan.tls_required;
        break;
      case Kind::removed:
        cutting = true;
        break;
      case Kind::metadata:
        cutting = true;
        if (scan.values[match.index].count++ == 0) value = &scan.values[match.index].text;
        break;
    }
    if (value) append_value(*value, text.substr(colon + 1), value == &scan.from ? kLongestFrom : kLongestValue);
    if (cutting) cut(line, dotted);
  }
  // An empty message, or one that begins with the empty line, has a section without fields.
  scan.has_section = scan.field_count > 0 || empty_line || content.raw_size == 0;
  scan.section_size = lines.position();
  trim_value(scan.message_id);
  trim_value(scan.tls_required);
  scan.from_cut = scan.from.size() >= kLongestFrom;
  for (HeaderScan::Value& found : scan.values) trim_value(found.text);

  if (dots_in_cuts) {
    auto range = content.cuts.begin();
    std::erase_if(content.dots, [&](uint32_t dot) {
      while (range != content.cuts.end() && range->offset + range->size <= dot) ++range;
      return range != content.cuts.end() && range->offset <= dot;
    });
  }
  if (!content.cuts.empty() &&
      content.cuts.back().offset + content.cuts.back().size == content.raw_size) {
    content.ends_in_crlf = true;  // the line without one is gone
  }
}

void append_rfc5322_date(std::string& out, int64_t utc_ms) {
  using namespace std::chrono;
  static constexpr char kDays[][4] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  static constexpr char kMonths[][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                        "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  constexpr int64_t kLatest = 253402300799000;  // the end of the year 9999
  sys_seconds time{seconds{std::clamp<int64_t>(utc_ms, 0, kLatest) / 1000}};
  sys_days day = floor<days>(time);
  year_month_day date{day};
  unsigned second = static_cast<unsigned>((time - day).count());
  unsigned year = static_cast<unsigned>(static_cast<int>(date.year()));
  out.append(kDays[weekday{day}.c_encoding()], 3).append(", ");
  append_two_digits(out, static_cast<unsigned>(date.day()));
  out.push_back(' ');
  out.append(kMonths[static_cast<unsigned>(date.month()) - 1], 3).push_back(' ');
  append_two_digits(out, year / 100);
  append_two_digits(out, year % 100);
  out.push_back(' ');
  append_two_digits(out, second / 3600);
  out.push_back(':');
  append_two_digits(out, second / 60 % 60);
  out.push_back(':');
  append_two_digits(out, second % 60);
  out.append(" +0000");
}

void append_received(std::string& out, ReceivedMode mode, const ReceivedFields& fields) {
  if (mode == ReceivedMode::off) return;
  out.append("Received: ");
  if (mode == ReceivedMode::full) {
    out.append("from ");
    append_clean(out, fields.helo, kLongestHelo);
    bool ipv6 = fields.client_address.find(':') != std::string_view::npos;
    out.append(ipv6 ? " ([IPv6:" : " ([");
    append_clean(out, fields.client_address, kLongestHelo);
    out.append("])\r\n\t");
  }
  out.append("by ");
  append_clean(out, fields.hostname, kLongestHelo);
  // RFC 3848, RFC 6531 4.3
  out.append(fields.smtputf8 ? " with UTF8SMTP" : fields.esmtp ? " with ESMTP" : " with SMTP");
  if (fields.smtputf8 || fields.esmtp) {
    if (fields.tls) out.push_back('S');
    if (fields.authenticated) out.push_back('A');
  }
  out.append(" id ");
  char id[SpoolId::kTextSize];
  fields.id.format(id);
  out.append(id, sizeof id);
  bool high = std::any_of(fields.only_recipient.begin(), fields.only_recipient.end(), is_high);
  if (!fields.only_recipient.empty() && (fields.smtputf8 || !high)) {
    out.append("\r\n\tfor <");
    append_clean(out, fields.only_recipient, kLongestPathText);
    out.push_back('>');
  }
  out.append(";\r\n\t");
  append_rfc5322_date(out, fields.utc_ms);
  out.append("\r\n");
}

void append_date(std::string& out, int64_t utc_ms) {
  out.append("Date: ");
  append_rfc5322_date(out, utc_ms);
  out.append("\r\n");
}

void append_message_id(std::string& out, const SpoolId& id, std::string_view hostname) {
  out.append("Message-ID: <");
  char text[SpoolId::kTextSize];
  id.format(text);
  out.append(text, sizeof text).push_back('@');
  append_clean(out, hostname, kLongestHelo);
  out.append(">\r\n");
}

void append_header(std::string& out, std::string_view name, std::string_view value) {
  size_t before = out.size();
  for (char c : name.substr(0, 128)) {
    if (c > 32 && c < 127 && c != ':') out.push_back(c);
  }
  out.append(": ");
  append_clean(out, value, kLongestValue - (out.size() - before));
  out.append("\r\n");
}

void add_standard_headers(Content& content, HeaderScan& scan, ReceivedMode mode,
                          const ReceivedFields& fields) {
  content.prefix.reserve(512);
  append_received(content.prefix, mode, fields);
  if (!scan.has_date) append_date(content.prefix, fields.utc_ms);
  if (!scan.has_message_id) {
    size_t start = content.prefix.size() + std::string_view("Message-ID: ").size();
    append_message_id(content.prefix, fields.id, fields.hostname);
    scan.message_id = content.prefix.substr(start, content.prefix.size() - start - 2);
  }
  if (!scan.has_section) content.prefix.append("\r\n");
}

}  // namespace millrace::mail
