#include "smtp/reply.h"

namespace millrace::smtp {
namespace {

constexpr size_t kLongestReplyLine = 512;  // with CRLF

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
    out.push_back(static_cast<char>('0' + reply.code / 100 % 10));
    out.push_back(static_cast<char>('0' + reply.code / 10 % 10));
    out.push_back(static_cast<char>('0' + reply.code % 10));
    out.push_back(last ? ' ' : '-');
    if (!reply.status.empty()) {
      reply.status.append_to(out);
      out.push_back(' ');
    }
    size_t room = kLongestReplyLine - 2 - (out.size() - start);
    for (char c : line.substr(0, room)) {
      out.push_back(static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c);
    }
    out.append("\r\n");
  }
}

}  // namespace millrace::smtp
