// A sub-queue's, lane group's or borrowed attempt's word with the arbiter, where the shaping file limits it: asked,
// granted, used or given back. The letter is the permit itself; while it is asked for it belongs to the arbiter.
#pragma once

#include "base/intrusive_list.h"
#include "shaping/arbiter.h"

namespace millrace::queue {

class Scheduler;
struct Attempt;
struct SubQueue;
struct Site;

struct Permit : shaping::Request {
  enum class State : uint8_t { none, asked, granted };

  Scheduler* scheduler = nullptr;  // the shard that asks
  SubQueue* queue = nullptr;       // whose next attempt; nullptr: a connection of `site`, or a borrowed attempt
  Attempt* attempt = nullptr;      // the borrowed one that it is for; nullptr: none (any more)
  Site* site = nullptr;            // that the subject names
  State state = State::none;
  bool withdrawn = false;          // asked, and then not wanted: the arbiter has been told
  Link link;                       // granted: on Scheduler::grants_; about to be told: on Scheduler::answers_

  shaping::Release release() const { return {set, to_release, granted_at, recipients, octets, false, false}; }
};

}  // namespace millrace::queue
