#include "shaping/adaptive.h"

#include <fmt/format.h>

#include "base/assert.h"

namespace millrace::shaping {
namespace {

constexpr int64_t kStepNs = 15 * Adaptive::kSecondNs;        // of the return to what was accepted
constexpr int64_t kConnectionStepNs = 5 * Adaptive::kSecondNs;
constexpr int64_t kLeastDwellNs = 5 * Adaptive::kMinuteNs, kLongestDwellNs = 10 * Adaptive::kMinuteNs;
// What had been permitted before a cut may begin so much after it, and shards hear of it by letter.
constexpr int64_t kUnderWayNs = 50'000'000;
constexpr int64_t kForgetNs = 24 * Adaptive::kHourNs;        // what has not bound meanwhile
constexpr double kCutConnections = 0.8;
constexpr double kCutRate = 0.5, kReturnStep = 0.15, kReturnTo = 0.95;
constexpr double kGrowth = 0.05, kMostGrowth = 0.2;          // a minute, beyond what was accepted
constexpr unsigned kStepsAlike = 3;                          // then the growth doubles
constexpr uint64_t kAcceptedForOneRefused = 100;
constexpr double kLeastRate = 1, kTrialRate = 6, kUnknownRate = 60, kMostRate = 1e6;
// Of what is put at risk: so many times what it cost.
constexpr int64_t kRiskAgainAfter = 40;
constexpr size_t kReplyKept = 200;

std::string kept(std::string_view reply) { return std::string(reply.substr(0, kReplyKept)); }

}  // namespace

std::string_view to_string(Adaptive::State state) {
  switch (state) {
    case Adaptive::State::open: return "open";
    case Adaptive::State::stopped: return "stopped";
    case Adaptive::State::trial: return "one message is tried";
  }
  UNREACHABLE();
}

void Adaptive::enter(State state, int64_t now) {
  state_ = state;
  if (state == State::open) open_since_ = now;
}

// ---- down

bool Adaptive::refuse(int64_t now, const Refusal& refusal) {
  ASSERT(refusal.what != dsn::Throttle::none);
  ++refused_;
  const bool of_episode = refusal.begun < cut_at_ + kUnderWayNs || (state_ != State::open && refusal.begun < stopped_until_);
  if (of_episode) {
    // It had been counted among those that were let in.
    if (state_ == State::open && cut_were_connections_ && refusal.what == dsn::Throttle::concurrency && let_in_ > 1) {
      --let_in_;
      connections_ = std::min(connections_, soon());
    }
    return false;
  }
  cut_were_connections_ = false;
  switch (refusal.what) {
    case dsn::Throttle::none: UNREACHABLE();
    case dsn::Throttle::concurrency:
      if (state_ == State::open) cut_connections(now, refusal);
      if (state_ != State::open || refusal.open <= 1 || refusal.rest_ms > 0) pause(now, refusal);
      break;
    case dsn::Throttle::volume: {
      const bool nothing_goes = state_ != State::open || (rate_ > 0 && !accepted_since_cut_);
      if (!nothing_goes) cut_rate(now, refusal);
      if (nothing_goes || refusal.rest_ms > 0 || ceiling_ < kLeastRate) pause(now, refusal);
      break;
    }
    case dsn::Throttle::reputation: {
      int64_t rest = refusal.rest_ms * 1'000'000;
      if (state_ == State::open && open_since_ != INT64_MIN && now - open_since_ >= std::max(last_rest_ns_, kFirstRestNs)) {
        rests_ = 0;
      }
      if (rest == 0) rest = std::min(kFirstRestNs << std::min(rests_, 8u), kLongestRestNs);
      ++rests_;
      last_rest_ns_ = rest;
      if (state_ == State::open) {
        // What was accepted before any rate was kept to was perhaps a burst: it says little.
        risky_ = rate_ > 0;
        const double before = rate_;
        cut_rate(now, refusal);
        if (before <= proven_) proven_ = 0;
        if (proven_ > 0) {
          ceiling_ = std::min(ceiling_, proven_ / kReturnTo);
          rate_ = std::clamp(kReturnTo * ceiling_, kLeastRate, rate_);
        }
      }
      carefully_ = true;
      if (risky_) not_beyond_until_ = std::max(not_beyond_until_, now + (1 + kRiskAgainAfter) * rest);
      stop(now, rest, refusal.reply);
      break;
    }
  }
  cut_at_ = now;
  accepted_since_cut_ = false;
  return true;
}

void Adaptive::cut_connections(int64_t now, const Refusal& refusal) {
  let_in_ = std::max(1u, refusal.open - 1);
  connections_ = std::max(1u, static_cast<uint32_t>(kCutConnections * let_in_));
  cut_were_connections_ = true;
  why_connections_ = {kept(refusal.reply), now, now + kConnectionStepNs};
  last_cut_ = fmt::format("{} connections, of {} that were open", connections_, refusal.open);
}

double Adaptive::accepted_per_minute(int64_t now) {
  double count = minute_.sum(now);
  if (open_since_ == INT64_MIN || now - open_since_ >= kMinuteNs) return count;
  return count * static_cast<double>(kMinuteNs) / static_cast<double>(std::max(now - open_since_, 5 * kSecondNs));
}

void Adaptive::cut_rate(int64_t now, const Refusal& refusal) {
  if (rate_ == 0) minute_.add(now, refusal.accepted);
  double took = accepted_per_minute(now);
  const double before = rate_;
  if (rate_ > 0) took = std::min(took, rate_);
  ceiling_ = took;
  // Refused at once, so it is not the rate that was too high: gently, and how it goes will tell.
  if (took < kLeastRate) took = before > 0 ? before : kUnknownRate;
  rate_ = std::max(kLeastRate, kCutRate * took);
  rate_cut_at_ = now;
  refused_ = 1;
  accepted_ = 0;
  steps_beyond_ = 0;
  why_rate_ = {kept(refusal.reply), now, now + kStepNs};
  last_cut_ = fmt::format("{:.0f} messages a minute, half of what was accepted", rate_);
}

void Adaptive::accepted_elsewhere(int64_t now, uint32_t messages) {
  if (rate_ == 0 || messages == 0) return;
  minute_.add(now, messages);
  ceiling_ += messages;
  rate_ = std::max(kLeastRate, kCutRate * ceiling_);
  last_cut_ = fmt::format("{:.0f} messages a minute, half of what was accepted", rate_);
}

// Next to nothing goes: each try costs more than it brings.
void Adaptive::pause(int64_t now, const Refusal& refusal) {
  if (state_ == State::open && open_since_ != INT64_MIN && now - open_since_ >= kMinuteNs) pauses_ = 0;
  int64_t rest = std::min(kFirstPauseNs << std::min(pauses_, 8u), kLongestPauseNs);
  ++pauses_;
  stop(now, std::max(rest, refusal.rest_ms * 1'000'000), refusal.reply);
}

void Adaptive::stop(int64_t now, int64_t rest_ns, std::string_view reply) {
  stopped_until_ = now + rest_ns;
  why_stopped_ = {kept(reply), now, stopped_until_};
  last_cut_ = fmt::format("nothing for {} s, then one message", rest_ns / kSecondNs);
  enter(State::stopped, now);
}

// ---- up

bool Adaptive::accept(int64_t now, int64_t begun) {
  minute_.add(now);
  ++accepted_;
  if (begun >= cut_at_) accepted_since_cut_ = true;
  if (state_ == State::open || begun < stopped_until_) return false;
  enter(State::open, now);
  if (rate_ > 0) why_rate_.grows_at = now + kStepNs;
  if (connections_ > 0) why_connections_.grows_at = now + kConnectionStepNs;
  return true;
}

int64_t Adaptive::next_at() const {
  if (state_ == State::stopped) return stopped_until_;
  if (state_ == State::trial) return INT64_MAX;
  int64_t at = INT64_MAX;
  if (connections_ > 0) at = std::min(at, why_connections_.grows_at);
  if (rate_ > 0) at = std::min(at, why_rate_.grows_at);
  return at;
}

bool Adaptive::tick(int64_t now, bool connections_bind, bool rate_binds, uint32_t most) {
  if (state_ == State::stopped && now >= stopped_until_) {
    enter(State::trial, now);
    return true;
  }
  if (state_ != State::open) return false;
  bool changed = false;
  if (connections_ > 0 && now >= why_connections_.grows_at) changed |= grow_connections(now, connections_bind, most);
  if (rate_ > 0 && now >= why_rate_.grows_at) changed |= grow_rate(now, rate_binds);
  return changed;
}

bool Adaptive::grow_connections(int64_t now, bool binds, uint32_t most) {
  if (!binds) {
    why_connections_.grows_at = now + kMinuteNs;
    if (now - why_connections_.since < kForgetNs) return false;
    connections_ = 0;
    return true;
  }
  if (connections_ < soon()) {
    connections_ = std::min(soon(), connections_ + std::max(1u, let_in_ / 10));
    why_connections_.grows_at = now + kConnectionStepNs;
  } else if (now < why_connections_.since + kProbeNs) {
    why_connections_.grows_at = why_connections_.since + kProbeNs;
    return false;
  } else {
    connections_ += std::max(1u, static_cast<uint32_t>(kGrowth * connections_));
    why_connections_.grows_at = now + kMinuteNs;
  }
  if (connections_ >= soon()) {
    why_connections_.grows_at = std::max(why_connections_.grows_at, why_connections_.since + kProbeNs);
  }
  if (most > 0 && connections_ >= most) connections_ = 0;
  return true;
}

bool Adaptive::grow_rate(int64_t now, bool binds) {
  if (!binds) {
    why_rate_.grows_at = now + (rate_ < kReturnTo * ceiling_ ? kStepNs : kMinuteNs);
    if (now - why_rate_.since < kForgetNs) return false;
    rate_ = 0;
    return true;
  }
  const double to = kReturnTo * ceiling_;
  if (rate_ < to) {
    if (carefully_) {
      rate_ = std::min(to, rate_ * (1 + kGrowth));
      why_rate_.grows_at = now + kMinuteNs;
    } else {
      rate_ = std::min(to, rate_ + kReturnStep * ceiling_);
      why_rate_.grows_at = now + kStepNs;
    }
    return true;
  }
  if (now < not_beyond_until_) {
    why_rate_.grows_at = not_beyond_until_;
    return false;
  }
  // A probe may cost one refusal in so many messages.
  const uint64_t enough = refused_ * kAcceptedForOneRefused;
  int64_t due = rate_cut_at_ + kLeastDwellNs;
  if (accepted_ < enough) {
    const double more = static_cast<double>(enough - accepted_) / rate_ * static_cast<double>(kMinuteNs);
    due = std::clamp(now + kSecondNs + static_cast<int64_t>(std::min(more, 1e15)), due, rate_cut_at_ + kLongestDwellNs);
  }
  if (now < due) {
    why_rate_.grows_at = due;
    return false;
  }
  if (steps_beyond_ == 0 && risky_) proven_ = rate_;
  const double faster = carefully_ ? 1 : static_cast<double>(1u << std::min(steps_beyond_ / kStepsAlike, 8u));
  rate_ *= 1 + std::min(kMostGrowth, kGrowth * faster);
  ++steps_beyond_;
  why_rate_.grows_at = now + kMinuteNs;
  if (rate_ > kMostRate) rate_ = 0;
  return true;
}

bool Adaptive::try_now(int64_t now) {
  if (not_beyond_until_ > now) {
    not_beyond_until_ = now;
    why_rate_.grows_at = std::min(why_rate_.grows_at, now + kSecondNs);
  }
  if (state_ != State::stopped) return false;
  stopped_until_ = now;
  why_stopped_.grows_at = now;
  enter(State::trial, now);
  return true;
}

Adaptive::Limits Adaptive::limits() const {
  if (state_ == State::open) return {connections_, 0, rate_, INT64_MIN};
  return {1, 1, rate_ > 0 ? std::min(rate_, kTrialRate) : kTrialRate, stopped_until_};
}

}  // namespace millrace::shaping
