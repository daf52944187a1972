// An event: what happened to a message, a recipient or a queue, with everything an operator asks about it
// later. Written into the spool with the outcome it tells of (binary, encode/decode) and, once that is
// durable, to the events file as one JSON line (json.h). The fields and their meaning: docs/events.md.
//
// An Event owns nothing: its texts lie with whoever tells of it, or in the bytes it was decoded from. Who
// keeps one keeps its bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "dsn/scope.h"
#include "mail/spool_id.h"

namespace millrace::events {

enum class Type : uint8_t {
  received, rejected, delivered, deferred, bounced, expired, suppressed, removed, held, queue,
};
std::string_view to_string(Type type);

// Whom it is about, and where in the conversation it happened.
using dsn::Scope;
using dsn::Stage;
using dsn::to_string;

struct Event {
  Type type = Type::received;
  mail::SpoolId spool_id;
  uint32_t number = 0;          // within the message, so (spool id, number) is the event's stable id
  int64_t time_ms = 0;          // UTC; all times are
  int64_t received_ms = 0, first_attempt_ms = 0, next_attempt_ms = 0;
  std::string_view reverse_path, recipient, message_id, envid, orcpt;
  std::string_view job, tenant, pool;
  std::string_view queue, site, provider;
  std::string_view client, account;
  std::string_view source, ehlo_name, mx, peer;  // peer: "192.0.2.1:25"
  uint64_t session = 0;         // number of the connection
  uint32_t session_message = 0; // which message of it
  std::string_view tls_version, tls_suite;  // empty in the clear
  std::string_view tls_verified;            // what the check of the peer's certificate said
  std::string_view tls_reason;              // why a delivery went in the clear
  std::string_view tls_policy;              // by which TLS was asked for: "dane", "mta-sts", ...
  std::string_view transport;   // "discard", "file", "lmtp"; empty: SMTP
  Stage stage = Stage::none;
  std::string_view reply;       // verbatim, bounded to 1 KiB; escaped where it is written out
  uint16_t code = 0;
  std::string_view enhanced;    // "4.7.0"
  std::string_view bounce_class;  // dsn/classify.h's category
  Scope scope = Scope::none;
  std::string_view reason;      // rejected, held, removed, queue: why, in words
  uint32_t attempt = 0;
  uint64_t size = 0;
  uint32_t recipients = 0;      // in the transaction
  bool report_sent = false;
  // Time per stage, milliseconds.
  uint32_t queued_ms = 0, connect_ms = 0, transaction_ms = 0, total_ms = 0;
};

void encode(const Event& event, std::string& out);
// The event's texts lie in `bytes`.
Result<Event> decode(std::string_view bytes);

}  // namespace millrace::events
