// A server's replies: any bytes, split by the first octet; the same replies at every split,
// bounded.
#include <cstdint>
#include <string>

#include "base/assert.h"
#include "smtp/capabilities.h"
#include "smtp/reply_parser.h"

namespace {

std::string run(std::string_view input, size_t step) {
  using millrace::smtp::ReplyParser;
  ReplyParser parser(64);
  std::string seen;
  while (!input.empty()) {
    std::string owned(input.substr(0, step));
    input.remove_prefix(owned.size());
    std::string_view piece = owned;
    while (!piece.empty()) {
      size_t before = piece.size();
      ReplyParser::Outcome outcome = parser.next(piece);
      if (outcome == ReplyParser::Outcome::incomplete) {
        ASSERT(piece.empty());
        continue;
      }
      if (outcome != ReplyParser::Outcome::reply) return seen.append(to_string(outcome));
      ASSERT(piece.size() < before);
      const auto& reply = parser.reply();
      ASSERT(reply.code >= 200 && reply.code <= 599 && reply.text.size() <= 64);
      ASSERT(reply.text_size >= reply.text.size());
      ASSERT(reply.status.empty() || reply.status.status_class == reply.reply_class());
      parse_capabilities(reply);
      seen.append(std::to_string(reply.code)).append(reply.text).append("\n");
    }
  }
  return seen;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  std::string whole = run(input, SIZE_MAX);
  ASSERT(run(input, 1u + data[0] % 16) == whole);
  ASSERT(run(input, 1) == whole);
  return 0;
}
