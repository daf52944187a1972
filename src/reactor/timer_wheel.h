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
  ~TimerWheel();  // unlinks what remains
  TimerWheel(const TimerWheel&) = delete;
  TimerWheel& operator=(const TimerWheel&) = delete;
  // Before the first use: the monotonic time now.
  void start(int64_t now);
  // (Re)arms: a deadline in the past fires at the next advance. Deadlines past the wheel's horizon (over
  // two years) wait apart and are filed when it comes near.
  void arm(Timer& timer, int64_t deadline);
  // Fires every timer due at `now`, in deadline order to the millisecond.
  void advance(int64_t now);
  // A time to sleep until: not after the tick at which the next timer fires (its deadline, rounded up to
  // a tick), and later than now unless a timer is due; INT64_MAX when none is armed. O(levels), but for
  // slots emptied by cancels, each looked at once.
  int64_t next() const;

 private:
  static constexpr int kLevels = 6;
  static constexpr int kSlotBits = 6;
  static constexpr int kSlots = 1 << kSlotBits;
  static constexpr int64_t kTick = 1'000'000;  // nanoseconds

  static constexpr int kHorizonBits = kLevels * kSlotBits;

  using Slot = IntrusiveList<Timer, &Timer::link>;
  struct Next {
    int level = -1;  // -1: none, kLevels: the far list
    int slot = 0;
    int64_t tick = 0;
  };
  // Files the timer, or puts it on `passed` when its tick is not after the current one.
  void place(Timer& timer, Slot& passed);
  Next find_next() const;

  std::array<std::array<Slot, kSlots>, kLevels> slots_;
  // One bit a slot that may hold timers (a cancelled timer leaves its bit; advance clears it).
  mutable std::array<uint64_t, kLevels> occupied_{};
  Slot far_;  // beyond the horizon
  Slot due_;  // armed for the past, to fire at the next advance
  int64_t tick_ = 0;  // everything up to this tick has fired
  int64_t now_ = 0;   // of the last advance
};

}  // namespace millrace::reactor
