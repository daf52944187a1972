// Hierarchical timer wheel (Varghese and Lauck 1987): arm and cancel in O(1) with no allocation, built
// for ten million timers of which most never fire. Resolution is one millisecond; a timer never fires
// early, and fires at most one tick late plus the time the turn takes.
#pragma once

#include <array>
#include <cstdint>

#include "base/intrusive_list.h"

namespace millrace::reactor {

// 40 bytes. Embedded in its owner; the callback may arm it again or destroy the owner.
struct Timer {
  Link link;
  int64_t deadline = 0;  // monotonic nanoseconds
  void* owner = nullptr;
  void (*call)(void* owner) = nullptr;

  template <auto method, typename Owner>
  void bind(Owner* self) {
    owner = self;
    call = [](void* at) { (static_cast<Owner*>(at)->*method)(); };
  }
  bool armed() const { return link.linked(); }
  void cancel() { link.unlink(); }
  ~Timer() { cancel(); }
};

class TimerWheel {
 public:
  TimerWheel();
  // Before the first use: the monotonic time now.
  void start(int64_t now);
  // (Re)arms: a deadline in the past fires at the next advance. Deadlines are kept exactly for as long
  // as the wheel's horizon (over 100 days) and re-filed from its edge beyond it.
  void arm(Timer& timer, int64_t deadline);
  // Fires every timer due at `now`, in deadline order to the millisecond.
  void advance(int64_t now);
  // A time not after the next timer's deadline, to sleep until; INT64_MAX when none is armed. O(levels).
  int64_t next() const;

 private:
  static constexpr int kLevels = 6;
  static constexpr int kSlotBits = 6;
  static constexpr int kSlots = 1 << kSlotBits;
  static constexpr int64_t kTick = 1'000'000;  // nanoseconds

  using Slot = IntrusiveList<Timer, &Timer::link>;
  std::array<std::array<Slot, kSlots>, kLevels> slots_;
  // One bit a slot that may hold timers (a cancelled timer leaves its bit; advance clears it).
  mutable std::array<uint64_t, kLevels> occupied_{};
  int64_t tick_ = 0;  // everything up to this tick has fired
};

}  // namespace millrace::reactor
