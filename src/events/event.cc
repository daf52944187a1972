// The binary form of an event: a version octet, then fields, each a tag octet and a value. The
// tag's two high bits say how the value is read (so an unknown field can be passed over), its low
// six which field it is. Empty and zero fields are left out. Numbers are never given a second
// meaning.
//
//   version  1 octet: 1
//   field    tag octet: 00nnnnnn  varint (LEB128, at most 10 octets)
//                       01nnnnnn  varint length, then so many octets
//                       11nnnnnn  as 01, but a reader that does not know it must refuse the event
//
// Texts are cut at 1024 octets on the way in; decode accepts what encode can write and fails on
// anything else without reading past the end.
#include "events/event.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "base/short_copy.h"

namespace millrace::events {
namespace {

constexpr uint8_t kVersion = 1;
constexpr size_t kMostText = 1024;
constexpr uint8_t kNumber = 0x00, kText = 0x40, kRefuse = 0xc0;

enum Field : uint8_t {
  kType = 1,
  kSpoolId,
  kEventNumber,
  kTime,
  kReceived,
  kFirstAttempt,
  kNextAttempt,
  kReversePath,
  kRecipient,
  kMessageId,
  kEnvid,
  kOrcpt,
  kJob,
  kTenant,
  kPool,
  kQueue,
  kSite,
  kProvider,
  kClient,
  kAccount,
  kSource,
  kEhloName,
  kMx,
  kPeer,
  kSession,
  kSessionMessage,
  kStage,
  kReply,
  kCode,
  kEnhanced,
  kBounceClass,
  kScope,
  kReason,
  kAttempt,
  kSize,
  kRecipients,
  kReportSent,
  kQueued,
  kConnect,
  kTransaction,
  kTotal,
  kTlsVersion,
  kTlsSuite,
  kTlsVerified,
  kTlsReason,
  kTlsPolicy,
  kTransport,
};

// Writes into room that is known to suffice.
struct Writer {
  char* at;

  void varint(uint64_t value) {
    while (value >= 0x80) {
      *at++ = static_cast<char>(value | 0x80);
      value >>= 7;
    }
    *at++ = static_cast<char>(value);
  }
  void number(Field field, uint64_t value) {
    if (value == 0) return;
    *at++ = static_cast<char>(kNumber | field);
    varint(value);
  }
  void number(Field field, int64_t value) { number(field, static_cast<uint64_t>(value)); }
  void number(Field field, uint32_t value) { number(field, uint64_t{value}); }
  void text(Field field, std::string_view value) {
    if (value.empty()) return;
    value = value.substr(0, kMostText);
    *at++ = static_cast<char>(kText | field);
    varint(value.size());
    short_copy(at, value.data(), value.size());
    at += value.size();
  }
};

struct Reader {
  const char* at;
  const char* end;
  bool good = true;

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (at == end) return good = false, 0;
      auto octet = static_cast<uint8_t>(*at++);
      // The tenth octet has room for one bit.
      if (shift == 63 && octet > 1) return good = false, 0;
      value |= uint64_t{octet & 0x7fu} << shift;
      if (octet < 0x80) return value;
    }
    return good = false, 0;
  }
  std::string_view text() {
    uint64_t size = varint();
    if (!good || size > static_cast<uint64_t>(end - at)) return good = false, std::string_view();
    std::string_view value(at, size);
    at += size;
    return value;
  }
};

template <typename Unsigned>
bool put(Unsigned& field, uint64_t value) {
  field = static_cast<Unsigned>(value);
  return static_cast<uint64_t>(field) == value;
}
template <typename Enum>
bool put_enum(Enum& field, uint64_t value, Enum last) {
  field = static_cast<Enum>(value);
  return value <= static_cast<uint64_t>(last);
}
bool put(std::string_view& field, std::string_view value) {
  field = value;
  return value.size() <= kMostText;
}

bool put_number(Event& event, uint8_t field, uint64_t value) {
  switch (field) {
    case kType:
      return put_enum(event.type, value, Type::queue);
    case kEventNumber:
      return put(event.number, value);
    case kTime:
      return put(event.time_ms, value);
    case kReceived:
      return put(event.received_ms, value);
    case kFirstAttempt:
      return put(event.first_attempt_ms, value);
    case kNextAttempt:
      return put(event.next_attempt_ms, value);
    case kSession:
      return put(event.session, value);
    case kSessionMessage:
      return put(event.session_message, value);
    case kStage:
      return put_enum(event.stage, value, Stage::quit);
    case kCode:
      return put(event.code, value);
    case kScope:
      return put_enum(event.scope, value, Scope::provider);
    case kAttempt:
      return put(event.attempt, value);
    case kSize:
      return put(event.size, value);
    case kRecipients:
      return put(event.recipients, value);
    case kReportSent:
      event.report_sent = value == 1;
      return value <= 1;
    case kQueued:
      return put(event.queued_ms, value);
    case kConnect:
      return put(event.connect_ms, value);
    case kTransaction:
      return put(event.transaction_ms, value);
    case kTotal:
      return put(event.total_ms, value);
    default:
      return true;  // written by a later version
  }
}

bool put_text(Event& event, uint8_t field, std::string_view value) {
  switch (field) {
    case kSpoolId:
      if (value.size() != 16) return false;
      std::memcpy(&event.spool_id.high, value.data(), 8);
      std::memcpy(&event.spool_id.low, value.data() + 8, 8);
      return true;
    case kReversePath:
      return put(event.reverse_path, value);
    case kRecipient:
      return put(event.recipient, value);
    case kMessageId:
      return put(event.message_id, value);
    case kEnvid:
      return put(event.envid, value);
    case kOrcpt:
      return put(event.orcpt, value);
    case kJob:
      return put(event.job, value);
    case kTenant:
      return put(event.tenant, value);
    case kPool:
      return put(event.pool, value);
    case kQueue:
      return put(event.queue, value);
    case kSite:
      return put(event.site, value);
    case kProvider:
      return put(event.provider, value);
    case kClient:
      return put(event.client, value);
    case kAccount:
      return put(event.account, value);
    case kSource:
      return put(event.source, value);
    case kEhloName:
      return put(event.ehlo_name, value);
    case kMx:
      return put(event.mx, value);
    case kPeer:
      return put(event.peer, value);
    case kTlsVersion:
      return put(event.tls_version, value);
    case kTlsSuite:
      return put(event.tls_suite, value);
    case kTlsVerified:
      return put(event.tls_verified, value);
    case kTlsReason:
      return put(event.tls_reason, value);
    case kTlsPolicy:
      return put(event.tls_policy, value);
    case kTransport:
      return put(event.transport, value);
    case kReply:
      return put(event.reply, value);
    case kEnhanced:
      return put(event.enhanced, value);
    case kBounceClass:
      return put(event.bounce_class, value);
    case kReason:
      return put(event.reason, value);
    default:
      return true;
  }
}

}  // namespace

std::string_view to_string(Type type) {
  switch (type) {
    case Type::received:
      return "received";
    case Type::rejected:
      return "rejected";
    case Type::delivered:
      return "delivered";
    case Type::deferred:
      return "deferred";
    case Type::bounced:
      return "bounced";
    case Type::expired:
      return "expired";
    case Type::suppressed:
      return "suppressed";
    case Type::removed:
      return "removed";
    case Type::held:
      return "held";
    case Type::queue:
      return "queue";
  }
  UNREACHABLE();
}

void encode(const Event& event, std::string& out) {
  const std::string_view texts[] = {
      event.reverse_path, event.recipient, event.message_id, event.envid,    event.orcpt,
      event.job,          event.tenant,    event.pool,       event.queue,    event.site,
      event.provider,     event.client,    event.account,    event.source,   event.ehlo_name,
      event.mx,           event.peer,      event.reply,      event.enhanced, event.bounce_class,
      event.reason,       event.tls_version, event.tls_suite, event.tls_verified, event.tls_reason,
      event.tls_policy,   event.transport};
  // Each number takes at most 11 octets, each text its own and 3, the id 18.
  size_t most = 1 + 18 + 20 * 11;
  for (std::string_view text : texts) most += 3 + std::min(text.size(), kMostText);
  size_t start = out.size();
  out.resize(start + most);
  Writer writer{out.data() + start};

  *writer.at++ = static_cast<char>(kVersion);
  writer.number(kType, uint64_t{static_cast<uint8_t>(event.type)});
  if (!event.spool_id.empty()) {
    char id[16];
    std::memcpy(id, &event.spool_id.high, 8);
    std::memcpy(id + 8, &event.spool_id.low, 8);
    writer.text(kSpoolId, std::string_view(id, sizeof id));
  }
  writer.number(kEventNumber, event.number);
  writer.number(kTime, event.time_ms);
  writer.number(kReceived, event.received_ms);
  writer.number(kFirstAttempt, event.first_attempt_ms);
  writer.number(kNextAttempt, event.next_attempt_ms);
  constexpr Field kTextFields[] = {
      kReversePath, kRecipient, kMessageId, kEnvid,    kOrcpt,    kJob,         kTenant,
      kPool,        kQueue,     kSite,      kProvider, kClient,   kAccount,     kSource,
      kEhloName,    kMx,        kPeer,      kReply,    kEnhanced, kBounceClass, kReason,
      kTlsVersion,  kTlsSuite,  kTlsVerified, kTlsReason,
      kTlsPolicy,   kTransport};
  static_assert(std::size(kTextFields) == std::size(texts));
  for (size_t i = 0; i < std::size(texts); ++i) writer.text(kTextFields[i], texts[i]);
  writer.number(kSession, event.session);
  writer.number(kSessionMessage, event.session_message);
  writer.number(kStage, uint64_t{static_cast<uint8_t>(event.stage)});
  writer.number(kCode, uint64_t{event.code});
  writer.number(kScope, uint64_t{static_cast<uint8_t>(event.scope)});
  writer.number(kAttempt, event.attempt);
  writer.number(kSize, event.size);
  writer.number(kRecipients, event.recipients);
  writer.number(kReportSent, uint64_t{event.report_sent});
  writer.number(kQueued, event.queued_ms);
  writer.number(kConnect, event.connect_ms);
  writer.number(kTransaction, event.transaction_ms);
  writer.number(kTotal, event.total_ms);

  size_t written = static_cast<size_t>(writer.at - (out.data() + start));
  ASSERT(written <= most);
  out.resize(start + written);
}

Result<Event> decode(std::string_view bytes) {
  if (bytes.empty()) return fail("an event is empty");
  if (static_cast<uint8_t>(bytes[0]) != kVersion)
    return fail("an event was written by a later version of millrace");
  Event event;
  Reader reader{bytes.data() + 1, bytes.data() + bytes.size()};
  while (reader.at != reader.end) {
    auto tag = static_cast<uint8_t>(*reader.at++);
    uint8_t field = tag & 0x3f;
    bool fits = true;
    switch (tag & 0xc0) {
      case kNumber: {
        uint64_t value = reader.varint();
        fits = put_number(event, field, value);
        break;
      }
      case kText: {
        std::string_view value = reader.text();
        fits = put_text(event, field, value);
        break;
      }
      case kRefuse:
        return fail("an event holds a field that this version of millrace must not ignore");
      default:
        return fail("an event holds a field of an unknown kind");
    }
    if (!reader.good) return fail("an event is cut off");
    if (!fits) return fail("an event holds a value that its field cannot have");
  }
  return event;
}

}  // namespace millrace::events
