// Any reply gets a verdict that keeps the promises of dsn/classify.h, and the report about it is
// sound.
#include <cstdint>
#include <string_view>

#include "base/assert.h"
#include "dsn/classify.h"
#include "dsn/report.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace;
  if (size < 4) return 0;
  dsn::ReplyContext reply;
  reply.stage = static_cast<dsn::Stage>(data[0] % 13);
  reply.code = static_cast<uint16_t>(200 + (data[1] | data[2] << 8) % 400);
  reply.recipient_accepted = data[3] & 1;
  reply.bounce_on_5xx_greeting = data[3] & 2;
  reply.text = {reinterpret_cast<const char*>(data + 4), size - 4};
  if (auto status = mail::EnhancedStatus::parse_prefix(reply.text)) reply.status = *status;
  dsn::Verdict verdict = dsn::classify(reply);
  if (reply.code < 500) ASSERT(verdict.action != dsn::Action::bounce);
  if (reply.code >= 400) {
    ASSERT(verdict.action != dsn::Action::delivered && verdict.action != dsn::Action::proceed);
    ASSERT(verdict.category != dsn::Category::none);
  }
  ASSERT(verdict.rest_ms >= 0 && verdict.rest_ms <= 24 * 3'600'000);

  mail::Envelope envelope;
  envelope.reverse_path = "a@example.com";
  dsn::ReportedRecipient recipient;
  recipient.address = recipient.reply = recipient.mx = recipient.orcpt = reply.text;
  recipient.code = reply.code;
  dsn::ReportSource source;
  source.hostname = "mta.example.com";
  source.envelope = &envelope;
  source.recipients = {&recipient, 1};
  std::string content = dsn::build_report(source).content;
  size_t line = 0;
  for (size_t i = 0; i < content.size(); ++i) {
    ASSERT(content[i] != '\0' && content[i] != '\n');
    if (content[i] == '\r') {
      ASSERT(i + 1 < content.size() && content[i + 1] == '\n');
      line = 0;
      ++i;
    } else {
      ASSERT(++line <= 998);
    }
  }
  return 0;
}
