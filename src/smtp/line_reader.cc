#include "smtp/line_reader.h"

#include <string.h>

#include <algorithm>
#include <cstring>

namespace millrace::smtp {

LineReader::Line LineReader::next(std::string_view piece) {
  if (partial_given_) {
    partial_.clear();
    partial_given_ = false;
  }
  if (skipping_) return skip(piece);
  if (piece.empty()) return {};
  if (partial_.ends_with('\r') && piece[0] != '\n') return bad(Outcome::bare_cr, 0, false);
  const size_t room = limit_ - std::min(limit_, partial_.size());
  const size_t window = std::min(piece.size(), room);
  for (size_t i = 0; i < window; ++i) {
    const char c = piece[i];
    if (c > '\r') [[likely]]
      continue;
    if (c == '\0') return bad(Outcome::nul, i + 1, false);
    if (c == '\r' && i + 1 < piece.size() && piece[i + 1] != '\n') {
      return bad(Outcome::bare_cr, i + 1, false);
    }
    if (c != '\n') continue;
    if (i > 0 ? piece[i - 1] != '\r' : !partial_.ends_with('\r')) {
      return bad(Outcome::bare_lf, i + 1, false);
    }
    Line line;
    line.outcome = Outcome::line;
    line.consumed = i + 1;
    line.text = piece.substr(0, i + 1);
    if (!partial_.empty()) {
      partial_.append(line.text);
      partial_given_ = true;
      line.text = partial_;
    }
    line.text.remove_suffix(2);
    return line;
  }
  if (window == room) {
    bool cr = window > 0 ? piece[window - 1] == '\r' : partial_.ends_with('\r');
    return bad(Outcome::too_long, window, cr);
  }
  partial_.append(piece);
  return {Outcome::incomplete, {}, piece.size()};
}

LineReader::Line LineReader::bad(Outcome outcome, size_t consumed, bool after_cr) {
  skipped_ = partial_.size() + consumed;
  skipping_ = true;
  skipped_cr_ = after_cr;
  partial_.clear();
  return {outcome, {}, consumed};
}

LineReader::Line LineReader::skip(std::string_view piece) {
  size_t from = 0;
  while (from < piece.size()) {
    const void* found = std::memchr(piece.data() + from, '\n', piece.size() - from);
    if (!found) break;
    size_t at = static_cast<size_t>(static_cast<const char*>(found) - piece.data());
    if (at > 0 ? piece[at - 1] == '\r' : skipped_cr_) {
      skipping_ = false;
      skipped_ = 0;
      Line line = next(piece.substr(at + 1));
      line.consumed += at + 1;
      return line;
    }
    from = at + 1;
  }
  skipped_ += piece.size();
  if (!piece.empty()) skipped_cr_ = piece.back() == '\r';
  return {Outcome::incomplete, {}, piece.size()};
}

void LineReader::wipe() {
  partial_.resize(partial_.capacity());
  explicit_bzero(partial_.data(), partial_.size());
  partial_.clear();
  partial_given_ = false;
}

// So far as it has come: "AU" may become AUTH, and holds no secret yet.
bool LineReader::is_auth(std::string_view line) {
  constexpr std::string_view kVerb = "AUTH ";
  if (line.size() < kVerb.size()) return false;
  while (line.starts_with(' ')) line.remove_prefix(1);
  for (size_t i = 0; i < kVerb.size(); ++i) {
    const char c = i < line.size() ? line[i] : '\0';
    if (c != kVerb[i] && c != kVerb[i] + 32 && !(i == 4 && c == '\t')) return false;
  }
  return true;
}

void LineReader::reset() {
  partial_.clear();
  partial_given_ = false;
  skipping_ = false;
  skipped_ = 0;
}

}  // namespace millrace::smtp
