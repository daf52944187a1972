// A timer lies on the level of the highest group of six bits in which its tick differs from the
// current one. So everything on a level comes before everything on the levels above it, the next
// timer is in the first occupied slot of the lowest occupied level, and a slot of an upper level is
// spread over the lower ones when its time begins.
#include "reactor/timer_wheel.h"

#include <bit>

namespace millrace::reactor {

static_assert(sizeof(Timer) == 40);

TimerWheel::TimerWheel() = default;

TimerWheel::~TimerWheel() {
  // Owners may outlive the wheel; their timers then simply never fire.
  for (auto& level : slots_) {
    for (Slot& slot : level) {
      while (slot.pop_front()) {
      }
    }
  }
  while (far_.pop_front()) {
  }
  while (due_.pop_front()) {
  }
}

void TimerWheel::start(int64_t now) {
  now_ = now;
  tick_ = now / kTick;
}

void TimerWheel::arm(Timer& timer, int64_t deadline) {
  ASSERT(timer.call != nullptr);
  timer.link.unlink();
  timer.deadline = deadline;
  if (deadline <= now_) {
    due_.push_back(timer);  // rounding up could file it for the tick to come
    return;
  }
  place(timer, due_);
}

void TimerWheel::place(Timer& timer, Slot& passed) {
  // Rounded up, so that no timer fires early.
  int64_t tick = timer.deadline / kTick + (timer.deadline % kTick > 0 ? 1 : 0);
  if (tick <= tick_) {
    passed.push_back(timer);
    return;
  }
  int highest = 63 - std::countl_zero(static_cast<uint64_t>(tick ^ tick_));
  int level = highest / kSlotBits;
  if (level >= kLevels) {
    far_.push_back(timer);
    return;
  }
  auto slot = static_cast<unsigned>(tick >> (level * kSlotBits)) & (kSlots - 1);
  slots_[level][slot].push_back(timer);
  occupied_[level] |= uint64_t{1} << slot;
}

TimerWheel::Next TimerWheel::find_next() const {
  for (int level = 0; level < kLevels; ++level) {
    while (occupied_[level] != 0) {
      // All bits lie above the current position: what was below has fired or moved down.
      int slot = std::countr_zero(occupied_[level]);
      if (slots_[level][slot].empty()) {
        occupied_[level] &= occupied_[level] - 1;  // all its timers were cancelled
        continue;
      }
      int above = (level + 1) * kSlotBits;
      int64_t tick = ((tick_ >> above) << above) | (int64_t{slot} << (level * kSlotBits));
      return {level, slot, tick};
    }
  }
  if (!far_.empty()) return {kLevels, 0, ((tick_ >> kHorizonBits) + 1) << kHorizonBits};
  return {};
}

int64_t TimerWheel::next() const {
  if (!due_.empty()) return tick_ * kTick;
  Next found = find_next();
  return found.level < 0 ? INT64_MAX : found.tick * kTick;
}

void TimerWheel::advance(int64_t now) {
  now_ = now;
  int64_t target = now / kTick;
  // What a callback arms for the past waits for the next advance: no callback can keep us here.
  Slot firing;
  while (Timer* timer = due_.pop_front()) firing.push_back(*timer);
  while (Timer* timer = firing.pop_front()) timer->call(timer->owner);
  while (true) {
    Next found = find_next();
    if (found.level < 0 || found.tick > target) break;
    tick_ = found.tick;
    if (found.level == 0) {
      occupied_[0] &= ~(uint64_t{1} << found.slot);
      Slot& slot = slots_[0][found.slot];
      // Nothing armed meanwhile lands in this slot: its tick is the current one.
      while (Timer* timer = slot.pop_front()) timer->call(timer->owner);
      continue;
    }
    if (found.level == kLevels) {
      Slot moved;
      while (Timer* timer = far_.pop_front()) moved.push_back(*timer);
      while (Timer* timer = moved.pop_front()) place(*timer, firing);
    } else {
      occupied_[found.level] &= ~(uint64_t{1} << found.slot);
      Slot& slot = slots_[found.level][found.slot];
      while (Timer* timer = slot.pop_front()) place(*timer, firing);
    }
    while (Timer* timer = firing.pop_front()) timer->call(timer->owner);
  }
  if (target > tick_) tick_ = target;
}

}  // namespace millrace::reactor
