// What a receiver takes from a source today, learned from its refusals: how many connections, and how many messages a
// minute. One for each (provider, source) that has ever told us to slow down. Nothing uses it yet: the arbiter is to own it.
//
// Two actuators; the class of the refusal chooses (dsn/classify.h):
//   concurrency  connections times 0.8; the number that was let in is remembered, 0.9 of it is soon tried again, and
//                more than that at most every kProbeNs
//   volume       the rate falls to half of what was accepted in the last minute, soon returns to 0.95 of that, and goes
//                beyond it once a probe's refusals are 1 % of what was accepted since
//   reputation   nothing goes for the time that the receiver names, else for 15 minutes, doubling to 4 hours
// What is refused although next to nothing goes there stops it for 10 s, doubling to 15 minutes. After a stop one
// message is tried; only its 250 opens again.
//
// Contract: pure. The caller gives monotonic times (nanoseconds), calls tick() when next_at() says so, and keeps to what
// limits() says, beside every limit that is configured: nothing here ever raises one. A cut is one for its episode:
// refusals of what had been begun before it change nothing but the number of connections that were let in.
//
// Limits: a budget of an hour or longer is not found, only that nothing is taken now. Refusals at random, whatever the
// rate, look like a limit.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "dsn/classify.h"

namespace millrace::shaping {

// Events of the last minute, in cells of five seconds.
class Minute {
 public:
  void add(int64_t now, uint32_t n = 1) {
    advance(now);
    cells_[static_cast<size_t>(newest_ % kCells)] += n;
  }
  uint32_t sum(int64_t now) {
    advance(now);
    uint32_t sum = 0;
    for (uint32_t cell : cells_) sum += cell;
    return sum;
  }

 private:
  static constexpr int64_t kCells = 12, kWidth = 5'000'000'000;
  void advance(int64_t now) {
    const int64_t cell = now / kWidth;
    if (cell <= newest_) return;
    if (cell - newest_ >= kCells) cells_ = {};
    for (int64_t gone = std::max(newest_ + 1, cell - kCells + 1); gone <= cell; ++gone) {
      cells_[static_cast<size_t>(gone % kCells)] = 0;
    }
    newest_ = cell;
  }
  std::array<uint32_t, kCells> cells_{};
  int64_t newest_ = 0;
};

class Adaptive {
 public:
  static constexpr int64_t kSecondNs = 1'000'000'000, kMinuteNs = 60 * kSecondNs, kHourNs = 60 * kMinuteNs;
  static constexpr int64_t kProbeNs = 10 * kMinuteNs;
  static constexpr int64_t kFirstRestNs = 15 * kMinuteNs, kLongestRestNs = 4 * kHourNs;
  static constexpr int64_t kFirstPauseNs = 10 * kSecondNs, kLongestPauseNs = 15 * kMinuteNs;

  enum class State : uint8_t {
    open,
    stopped,  // nothing goes
    trial,    // one message at a time, until one is accepted
  };

  struct Limits {
    uint32_t connections = 0;         // 0: none is learned
    uint32_t in_flight = 0;           // the same
    double per_minute = 0;            // messages; 0: none is learned
    int64_t not_before = INT64_MIN;   // stopped until then
  };

  struct Refusal {
    dsn::Throttle what = dsn::Throttle::volume;
    int64_t begun = 0;           // when what was refused was begun: the connection, or the message
    int64_t rest_ms = 0;         // the receiver named a time; 0: none
    std::string_view reply;
    uint32_t open = 1;           // connections, the refused one among them
    uint32_t accepted = 0;       // messages in the last minute, where no rate had been learned
  };
  // True: it was the first of its episode, and limits() has changed.
  bool refuse(int64_t now, const Refusal& refusal);
  // A message that had been begun at `begun` was accepted. True: limits() has changed.
  bool accept(int64_t now, int64_t begun);
  // Of the last minute before the rate was learned, told by somebody else.
  void accepted_elsewhere(int64_t now, uint32_t messages);

  // When tick() is due.
  int64_t next_at() const;
  // Whether anything has waited for the learned connections, and for the learned rate, since the last tick: a limit that
  // does not bind says nothing about what the receiver takes. `most`: connections are configured, 0: any number. True:
  // limits() has changed.
  bool tick(int64_t now, bool connections_bind, bool rate_binds, uint32_t most);

  // An operator wants it tried now. True: limits() has changed.
  bool try_now(int64_t now);

  Limits limits() const;
  State state() const { return state_; }
  // Nothing is learned any more.
  bool forgotten() const { return state_ == State::open && connections_ == 0 && rate_ == 0; }

  // Why: the reply behind a limit, and when it came (monotonic).
  struct Why {
    std::string reply;
    int64_t since = 0;
    int64_t grows_at = 0;
  };
  const Why& why_connections() const { return state_ == State::open ? why_connections_ : why_stopped_; }
  const Why& why_rate() const { return state_ == State::open ? why_rate_ : why_stopped_; }
  // "connections 8 -> 6", of the last cut.
  const std::string& last_cut() const { return last_cut_; }

 private:
  void enter(State state, int64_t now);
  void stop(int64_t now, int64_t rest_ns, std::string_view reply);
  void cut_connections(int64_t now, const Refusal& refusal);
  void cut_rate(int64_t now, const Refusal& refusal);
  void pause(int64_t now, const Refusal& refusal);
  double accepted_per_minute(int64_t now);
  uint32_t soon() const { return std::max(1u, (9 * let_in_ + 9) / 10); }
  bool grow_connections(int64_t now, bool binds, uint32_t most);
  bool grow_rate(int64_t now, bool binds);

  State state_ = State::open;
  int64_t cut_at_ = INT64_MIN;     // of whatever was cut last
  int64_t open_since_ = INT64_MIN; // after a stop
  std::string last_cut_;

  uint32_t connections_ = 0;       // 0: none is learned
  uint32_t let_in_ = 0;            // the remembered ceiling
  bool cut_were_connections_ = false;  // the last cut

  double rate_ = 0;                // messages a minute; 0: none is learned
  double ceiling_ = 0;             // that was accepted before the last cut
  int64_t rate_cut_at_ = INT64_MIN;
  uint32_t refused_ = 0;           // in this episode
  uint64_t accepted_ = 0;          // since the last cut of the rate
  unsigned steps_beyond_ = 0;      // how often the rate has grown beyond the ceiling
  // A reputation has been lost: from then on the rate grows by the least step only, and, once it is known which rate
  // that was, not beyond what is left of it before the time; then back to the rate that had been kept meanwhile.
  bool carefully_ = false, risky_ = false;
  int64_t not_beyond_until_ = INT64_MIN;
  double proven_ = 0;
  Minute minute_;

  int64_t stopped_until_ = INT64_MIN;
  bool accepted_since_cut_ = true;
  unsigned rests_ = 0, pauses_ = 0;  // in a row
  int64_t last_rest_ns_ = 0;

  Why why_connections_, why_rate_, why_stopped_;
};
std::string_view to_string(Adaptive::State state);

}  // namespace millrace::shaping
