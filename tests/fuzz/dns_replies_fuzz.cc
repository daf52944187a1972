// A name server's reply to each kind of question: any bytes end in an answer that is bounded and makes sense.
#include <cstdint>
#include <string_view>

#include "base/assert.h"
#include "dns/answer.h"

using namespace millrace::dns;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view packet(reinterpret_cast<const char*>(data), size);
  for (Type type : {Type::a, Type::aaaa, Type::mx, Type::txt, Type::tlsa, Type::cname}) {
    Answer answer = parse_reply(packet, "dest.example", type);
    bool target = type == Type::cname && !answer.alias.empty();
    bool found = !answer.addresses.empty() || !answer.mx.empty() || !answer.texts.empty() || !answer.tlsa.empty() || target;
    ASSERT(!answer.secure);  // nobody is trusted
    ASSERT(answer.texts.size() <= kMostRecords && answer.tlsa.size() <= kMostRecords && answer.expanded.size() <= 1024);
    ASSERT((type == Type::txt || answer.texts.empty()) && (type == Type::tlsa || answer.tlsa.empty()));
    ASSERT((answer.outcome == Outcome::records) == found);
    ASSERT(answer.addresses.size() <= kMostRecords && answer.mx.size() <= kMostRecords);
    ASSERT((type == Type::mx || answer.mx.empty()) && (type == Type::a || type == Type::aaaa || answer.addresses.empty()));
    ASSERT((answer.outcome == Outcome::alias || target) == !answer.alias.empty());
    ASSERT(answer.alias.size() <= 1024);
    for (const MxRecord& record : answer.mx) {
      ASSERT(!record.host.empty() && record.host.size() <= 1024);
      // Escaped: nothing in it ends a line or a field of a log.
      for (char c : record.host) ASSERT(c > ' ' && c < 0x7f);
    }
    if (answer.outcome == Outcome::failure || answer.outcome == Outcome::malformed) ASSERT(!answer.reason.empty());
  }
  return 0;
}
