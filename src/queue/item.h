// A queue item: one message's recipients of one routing domain. All that stays in memory while mail
// waits (the rest is in the spool): with its entry in the id index at most 200 bytes.
//
// States and the legal moves between them stand in docs/queue.md; enter() in scheduler.cc is the only
// place that changes one.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "mail/spool_id.h"
#include "queue/message.h"
#include "reactor/timer_wheel.h"
#include "spool/spool.h"

namespace millrace::queue {

enum class State : uint8_t {
  ready,      // due; on its sub-queue's fresh or retry list
  paused,     // due, but an operator's pause covers it; on its sub-queue's paused list
  loading,    // due; its message is being read back from the spool
  loaded,     // due and resident again; on its destination's loaded list, first to go
  in_flight,  // lent to delivery as an Attempt
  recording,  // its outcome (or an operator's action) is being made durable
  waiting,    // on the timer wheel until its next attempt
};
std::string_view to_string(State state);

struct SubQueue;
struct Fanout;

// The Timer's link is also the item's place on a list: an item is on the wheel or on one list, never both. Its
// deadline is when the item is due while it waits, and when it will be due while that is being recorded.
struct Item : reactor::Timer {
  mail::SpoolId id;
  MessageRef message;           // empty: in the spool only
  SubQueue* queue = nullptr;
  Fanout* fanout = nullptr;     // messages of several recipients: what is left of them; owned by them
  spool::Location location;
  uint32_t recipient = 0;       // the recipient's number, when there is no fanout
  uint32_t expires_s = 0;       // UTC seconds
  uint32_t first_attempt_s = 0; // UTC seconds; 0: none yet
  uint32_t sender_hash = 0;     // of the reverse-path, to find a sender's mail without reading it
  uint16_t attempts = 0;        // counted ones
  uint16_t events = 0;          // events so far: numbers them
  State state = State::ready;
  bool attempted_since_start = false;
  bool ending = false;          // an operator's delete or bounce waits for it to come back (Scheduler::endings_)
};
// The allocator's class for its size; with the slots of the id index and the spool's entry a queued message of one
// recipient comes to less than 200 bytes.
static_assert(sizeof(Item) <= 128);

}  // namespace millrace::queue
