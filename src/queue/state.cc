#include "queue/state.h"

namespace millrace::queue {
namespace {

constexpr uint64_t kVersion = 1;

void put(std::string& out, uint64_t number) {
  while (number >= 0x80) {
    out += static_cast<char>(number | 0x80);
    number >>= 7;
  }
  out += static_cast<char>(number);
}

bool get(std::string_view& bytes, uint64_t& number) {
  number = 0;
  for (unsigned shift = 0; shift < 64 && !bytes.empty(); shift += 7) {
    auto octet = static_cast<unsigned char>(bytes.front());
    bytes.remove_prefix(1);
    number |= uint64_t{octet & 0x7fu} << shift;
    if ((octet & 0x80) == 0) return true;
  }
  return false;
}

}  // namespace

void encode_state(const QueueState& state, std::string& out) {
  put(out, kVersion);
  put(out, state.events);
  put(out, state.recipients.size());
  for (const RecipientState& recipient : state.recipients) {
    put(out, recipient.recipient);
    put(out, recipient.attempts);
    put(out, static_cast<uint64_t>(recipient.due_ms));
    put(out, recipient.first_attempt_s);
  }
}

Result<QueueState> decode_state(std::string_view bytes) {
  uint64_t version, events, count;
  if (!get(bytes, version)) return fail("queue state: empty");
  if (version != kVersion) return fail("queue state: version " + std::to_string(version) + " is newer than this program");
  if (!get(bytes, events) || !get(bytes, count)) return fail("queue state: cut short");
  if (count > bytes.size()) return fail("queue state: more recipients than bytes");
  QueueState state;
  state.events = static_cast<uint32_t>(events);
  state.recipients.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    uint64_t recipient, attempts, due_ms, first;
    if (!get(bytes, recipient) || !get(bytes, attempts) || !get(bytes, due_ms) || !get(bytes, first)) {
      return fail("queue state: cut short");
    }
    state.recipients.push_back({static_cast<uint32_t>(recipient), static_cast<uint16_t>(attempts),
                                static_cast<int64_t>(due_ms), static_cast<uint32_t>(first)});
  }
  return state;
}

void append_event_bytes(std::string_view event, std::string& out) {
  put(out, event.size());
  out += event;
}

bool take_event_bytes(std::string_view& bytes, std::string_view& event) {
  uint64_t size;
  if (!get(bytes, size) || size > bytes.size()) return false;
  event = bytes.substr(0, size);
  bytes.remove_prefix(size);
  return true;
}

}  // namespace millrace::queue
