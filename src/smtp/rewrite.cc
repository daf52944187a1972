#include "smtp/rewrite.h"

#include "base/assert.h"
#include "base/crc32c.h"
#include "smtp/data_decoder.h"

namespace millrace::smtp {
namespace {

bool is_blank(char c) { return c == ' ' || c == '\t'; }

// Writes canonical lines in stuffed form, whatever comes in.
class Writer {
 public:
  explicit Writer(size_t expected) { bytes.reserve(expected); }

  void put(char c) {
    if (size() == kLongestTextLine) break_line();
    if (size() == 0 && c == '.') stuff();
    bytes.push_back(c);
    eight_bit |= static_cast<unsigned char>(c) >= 0x80;
  }

  void end_line() {
    if (size() == 0) in_header_ = false;
    bytes.append("\r\n");
    start_line();
  }

  size_t size() const { return bytes.size() - line_; }  // of the line, without its transparency dot

  std::string bytes;
  std::vector<uint32_t> dots;
  uint64_t dot_count = 0;
  uint64_t lines_broken = 0;
  bool eight_bit = false;

 private:
  void start_line() { line_ = bytes.size(); }

  void stuff() {
    if (++dot_count <= mail::kMostListedDots) dots.push_back(static_cast<uint32_t>(bytes.size()));
    bytes.push_back('.');
    line_ = bytes.size();
  }

  void break_line() {
    ++lines_broken;
    const size_t at = break_point();
    const bool at_blank = at < bytes.size() && is_blank(bytes[at]);
    std::string rest = bytes.substr(at);
    bytes.resize(at);
    bytes.append("\r\n");
    start_line();
    if (in_header_ && !at_blank) bytes.push_back(' ');  // a continuation line
    if (!rest.empty() && size() == 0 && rest[0] == '.') stuff();
    bytes.append(rest);
  }

  size_t break_point() const {
    if (in_header_) {
      // The last blank that has something before it, so that no line of blanks comes about, which
      // some would take for the end of the header section.
      size_t text = line_;
      while (text < bytes.size() && is_blank(bytes[text])) ++text;
      for (size_t at = bytes.size(); at-- > text + 1;) {
        if (is_blank(bytes[at])) return at;
      }
    }
    size_t at = bytes.size();
    // Before the character whose first octet lies within the last three, if it is not complete; the
    // octet to come may continue it.
    for (size_t back = 1; back <= 3 && back < size(); ++back) {
      const auto c = static_cast<unsigned char>(bytes[at - back]);
      if (c < 0x80) break;
      if (c >= 0xc0) {
        const size_t length = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
        return length > back ? at - back : at;
      }
    }
    return at;
  }

  size_t line_ = 0;  // where the line's canonical octets begin
  bool in_header_ = true;
};

}  // namespace

Rewritten rewrite_content(mail::Content& content) {
  ASSERT(content.cuts.empty() && content.raw_size <= 1u << 30);
  Writer writer(content.raw_size + content.raw_size / 16);
  uint64_t faults = 0;
  bool line_start = true;  // of a received line: only CRLF counts for transparency dots
  size_t crs = 0;          // in a row, the last octets
  // CRs before a CRLF are dropped with it: as line ends of their own they would make empty lines,
  // and the first of those would end the header section.
  auto end_lone_crs = [&] {
    faults += crs;
    for (; crs > 0; --crs) writer.end_line();
  };
  for (std::string_view span : content.raw) {
    for (char c : span) {
      if (crs > 0 && c == '\n') {
        faults += crs - 1;
        crs = 0;
        writer.end_line();
        line_start = true;
        continue;
      }
      if (crs > 0 && c != '\r') end_lone_crs();
      const bool transparency = line_start && c == '.' && content.stuffed;
      line_start = false;
      if (transparency) continue;
      switch (c) {
        case '\r':
          ++crs;
          break;
        case '\n':
          ++faults;
          writer.end_line();
          break;
        case '\0':
          ++faults;
          break;
        default:
          writer.put(c);
          break;
      }
    }
  }
  end_lone_crs();
  content.ends_in_crlf = writer.size() == 0;
  content.raw.clear();
  content.raw_size = static_cast<uint32_t>(writer.bytes.size());
  content.stuffed = true;
  content.eight_bit = writer.eight_bit;
  content.crc = crc32c(0, writer.bytes);
  if (writer.dot_count > writer.dots.size()) writer.dots.clear();
  content.dots = std::move(writer.dots);
  content.unlisted_dots = static_cast<uint32_t>(writer.dot_count - content.dots.size());
  Rewritten rewritten;
  rewritten.bytes_copied = writer.bytes.size();
  rewritten.faults_fixed = faults + writer.lines_broken;
  rewritten.bytes = std::move(writer.bytes);
  return rewritten;
}

}  // namespace millrace::smtp
