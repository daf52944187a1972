// The receiving side of a session: any bytes in any pieces, messages answered at once or late, with refusals. What it
// says is well-formed, complete and bounded; what it reports of a message agrees with itself.
#include <cstdint>
#include <deque>
#include <string>

#include "base/assert.h"
#include "base/crc32c.h"
#include "smtp/server_protocol.h"

using namespace millrace;
using namespace millrace::smtp;

namespace {

struct Policy final : ServerPolicy {
  uint8_t how = 0;
  Reply check_mail(const mail::Envelope&, uint64_t) override {
    if (how & 1) return kLater;
    return how & 2 ? Reply{451, {4, 7, 1}, "not now"} : Reply{};
  }
  Reply check_recipient(const mail::Envelope& envelope, const mail::Recipient& recipient) override {
    ASSERT(!recipient.address.empty() && recipient.address.size() <= 320);
    for (char c : recipient.address) ASSERT(c != '\r' && c != '\n' && c != '\0');
    return envelope.recipients.size() == (how & 4 ? 1u : 100u) ? Reply{550, {5, 1, 1}, "no"} : Reply{};
  }
  Reply check_data(const mail::Envelope&) override { return how & 8 ? Reply{452, {4, 3, 1}, "full"} : Reply{}; }
};

// Lines of three digits, a blank or hyphen, and printable text.
void check_replies(std::string_view said) {
  while (!said.empty()) {
    size_t end = said.find("\r\n");
    ASSERT(end != said.npos && end >= 3 && end < 600);
    std::string_view line = said.substr(0, end);
    said.remove_prefix(end + 2);
    ASSERT(line[0] >= '2' && line[0] <= '5' && (line.size() == 3 || line[3] == ' ' || line[3] == '-'));
    for (char c : line) ASSERT(c >= ' ' && c != 0x7f);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 4) return 0;
  ServerOptions options;
  options.hostname = "relay.example";
  options.max_message_size = 4096;
  options.max_recipients = 5;
  options.max_errors = 10;
  options.max_pending_messages = 2;
  options.starttls = data[0] & 1;
  options.require_tls = (data[0] & 3) == 3;
  options.keep_bad_lines = data[0] & 4;
  Policy policy;
  policy.how = data[1];
  ServerProtocol protocol(options, policy);
  std::string said, body;
  std::deque<uint64_t> waiting;
  auto answer_one = [&] {
    uint64_t number = waiting.front();
    waiting.pop_front();
    protocol.message_done(number, data[2] & 1 ? Reply{250, {2, 0, 0}, "queued"} : Reply{451, {4, 3, 0}, "later"});
  };
  protocol.greet();
  std::string_view left(reinterpret_cast<const char*>(data) + 4, size - 4);
  size_t piece_size = 1 + data[3] % 64;
  while (!left.empty() && !protocol.finished()) {
    // A copy of its own: nothing may be kept of it but what Step::body told.
    std::string owned(left.substr(0, piece_size));
    left.remove_prefix(owned.size());
    std::string_view piece = owned;
    while (!piece.empty() && !protocol.finished()) {
      ServerProtocol::Step step = protocol.advance(piece);
      ASSERT(step.consumed <= piece.size());
      if (step.begins) body.clear();
      if (!step.body.empty()) {
        ASSERT(step.body.data() >= piece.data() && step.body.data() + step.body.size() <= piece.data() + step.consumed);
        body += step.body;
      }
      piece.remove_prefix(step.consumed);
      switch (step.event) {
        case ServerProtocol::Event::none: break;
        case ServerProtocol::Event::message_end: {
          const IntakeFacts& facts = protocol.facts();
          ASSERT(!protocol.envelope().recipients.empty() && protocol.envelope().recipients.size() <= 5);
          if (!facts.too_large) {
            ASSERT(facts.size() <= options.max_message_size && facts.raw_size <= body.size());
            ASSERT(facts.crc == crc32c(0, std::string_view(body).substr(0, facts.raw_size)));
          }
          if (!options.keep_bad_lines && facts.fault != LineFault::none) ASSERT(facts.too_large);
          waiting.push_back(protocol.message_number());
          if (data[2] & 2) answer_one();
          break;
        }
        case ServerProtocol::Event::message_discarded: body.clear(); break;
        case ServerProtocol::Event::start_tls:
          protocol.take_output(said);
          protocol.secured();
          break;
        case ServerProtocol::Event::blocked:
          if (!waiting.empty()) {
            answer_one();
          } else {
            protocol.answer_mail(policy.how & 2 ? Reply{451, {4, 7, 1}, "not now"} : Reply{});
          }
          break;
      }
      protocol.take_output(said);
    }
  }
  ASSERT(waiting.size() == protocol.pending_messages() && waiting.size() <= options.max_pending_messages);
  while (!waiting.empty()) answer_one();
  protocol.take_output(said);
  check_replies(said);
  ASSERT(protocol.errors() <= options.max_errors + 1);
  return 0;
}
