// What the spool keeps of a message's place in the queue: for each recipient that is not final, how often
// it was tried and when it is due. Written with every outcome; the latest one wins at recovery.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace millrace::queue {

struct RecipientState {
  uint32_t recipient = 0;
  uint16_t attempts = 0;
  int64_t due_ms = 0;             // UTC
  uint32_t first_attempt_s = 0;   // UTC
};

struct QueueState {
  uint32_t events = 0;            // emitted so far: the next event's number
  std::vector<RecipientState> recipients;
};

// version 1 | events | count | count x (recipient, attempts, due_ms, first_attempt_s), LEB128 numbers.
void encode_state(const QueueState& state, std::string& out);
Result<QueueState> decode_state(std::string_view bytes);

// The event field of an append or a note: events one after the other, each with its length in front (LEB128).
void append_event_bytes(std::string_view event, std::string& out);
bool take_event_bytes(std::string_view& bytes, std::string_view& event);

}  // namespace millrace::queue
