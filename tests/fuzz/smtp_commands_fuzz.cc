// A client's whole dialogue: any bytes, cut at places the input chooses, through the server's state
// machine. Checks that replies are well-formed lines and that no split changes them.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/assert.h"
#include "smtp/server_protocol.h"

namespace {

using millrace::smtp::ServerProtocol;

struct Policy final : millrace::smtp::ServerPolicy {};

// Octets of the message reported, discarded ones and replies, in one string.
std::string run(std::string_view input, size_t step) {
  static const millrace::smtp::ServerOptions options = [] {
    millrace::smtp::ServerOptions made;
    made.hostname = "relay.example";
    made.max_message_size = 4096;
    made.max_recipients = 3;
    made.max_errors = 1000;
    made.max_pending_messages = 2;
    return made;
  }();
  Policy policy;
  ServerProtocol protocol(options, policy);
  protocol.greet();
  std::string seen, body;
  bool open = false;
  while (!input.empty()) {
    std::string owned(input.substr(0, step));
    input.remove_prefix(owned.size());
    std::string_view piece = owned;
    while (!piece.empty()) {
      auto taken = protocol.advance(piece);
      ASSERT(taken.consumed <= piece.size());
      piece.remove_prefix(taken.consumed);
      if (taken.begins) {
        ASSERT(!open);
        open = true;
        body.clear();
      }
      ASSERT(open || taken.body.empty());
      body.append(taken.body);
      switch (taken.event) {
        case ServerProtocol::Event::message_end:
          ASSERT(open && protocol.facts().raw_size <= body.size());
          open = false;
          body.resize(protocol.facts().raw_size);
          seen.append(body).append("|");
          protocol.message_done(protocol.message_number(), millrace::smtp::replies::kOk);
          break;
        case ServerProtocol::Event::message_discarded:
          ASSERT(open);
          open = false;
          break;
        case ServerProtocol::Event::blocked:
          ASSERT(false);
          break;  // all are answered at once
        case ServerProtocol::Event::start_tls:
          ASSERT(false);
          break;  // it is not offered
        case ServerProtocol::Event::none:
          break;
      }
    }
  }
  std::string out;
  protocol.take_output(out);
  for (size_t i = 0; i < out.size(); ++i) {
    ASSERT(out[i] != '\0' && (out[i] != '\n' || (i > 0 && out[i - 1] == '\r')) &&
           (out[i] != '\r' || (i + 1 < out.size() && out[i + 1] == '\n')));
  }
  return seen + out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  run(input, SIZE_MAX);
  // One octet at a time no group is seen, so illegal pipelining is not either; any two splits that
  // see none must agree.
  const size_t step = 1 + data[0] % 3;
  std::string by_octet = run(input, 1);
  if (step > 1) {
    std::string by_step = run(input, step);
    ASSERT(by_step == by_octet || by_step.find("pipelining") != std::string::npos);
  }
  return 0;
}
