#include "smtp/reply.h"

#include <algorithm>

namespace millrace::smtp {
namespace {

constexpr size_t kLongestReplyLine = 512;  // with CRLF

bool is_control(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

}  // namespace

void append_reply(std::string& out, const Reply& reply) {
  std::string_view rest = reply.text;
  bool last = false;
  while (!last) {
    size_t end = rest.find('\n');
    last = end == rest.npos;
    std::string_view line = rest.substr(0, end);
    if (!last) rest.remove_prefix(end + 1);
    size_t start = out.size();
    const char head[] = {static_cast<char>('0' + reply.code / 100 % 10),
                         static_cast<char>('0' + reply.code / 10 % 10),
                         static_cast<char>('0' + reply.code % 10), last ? ' ' : '-'};
    out.append(head, sizeof head);
    if (!reply.status.empty()) {
      reply.status.append_to(out);
      out.push_back(' ');
    }
    line = line.substr(0, kLongestReplyLine - 2 - (out.size() - start));
    start = out.size();
    out.append(line);
    if (std::any_of(line.begin(), line.end(), is_control)) {
      std::replace_if(out.begin() + static_cast<ptrdiff_t>(start), out.end(), is_control, '?');
    }
    out.append("\r\n");
  }
}

}  // namespace millrace::smtp
