// What a timer costs: armed and cancelled again, as most are; armed and fired; and with ten million
// others in the wheel.
#include <benchmark/benchmark.h>

#include <vector>

#include "base/prng.h"
#include "reactor/timer_wheel.h"

namespace millrace::reactor {
namespace {

constexpr int64_t kMillisecond = 1'000'000;
constexpr int64_t kMinute = 60'000 * kMillisecond;

struct Owner {
  Owner() { timer.bind<&Owner::on_due>(this); }
  void on_due() { ++fired; }
  Timer timer;
  static inline uint64_t fired = 0;
};

// Time-outs of ten seconds to ten minutes, re-armed at every step of a session.
void rearm(benchmark::State& state) {
  TimerWheel wheel;
  wheel.start(1);
  Prng prng(1);
  std::vector<Owner> owners(static_cast<size_t>(state.range(0)));
  for (Owner& owner : owners) {
    wheel.arm(owner.timer, static_cast<int64_t>(prng.below(10 * kMinute)));
  }
  size_t at = 0;
  for (auto _ : state) {
    Owner& owner = owners[at];
    wheel.arm(owner.timer, 10'000 * kMillisecond + static_cast<int64_t>(prng.below(10 * kMinute)));
    if (++at == owners.size()) at = 0;
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(rearm)->Arg(1'000)->Arg(100'000)->Arg(10'000'000);

// Ten million messages wait for their retry; each that fires is armed again.
void fire(benchmark::State& state) {
  TimerWheel wheel;
  wheel.start(0);
  Prng prng(1);
  std::vector<Owner> owners(static_cast<size_t>(state.range(0)));
  int64_t span = 10 * kMinute;
  for (Owner& owner : owners)
    wheel.arm(owner.timer, static_cast<int64_t>(prng.below(static_cast<uint64_t>(span))));
  Owner::fired = 0;
  int64_t now = 0;
  for (auto _ : state) {
    now += kMillisecond;
    wheel.advance(now);
    if (now % span == 0) {
      state.PauseTiming();
      for (Owner& owner : owners) {
        wheel.arm(owner.timer, now + static_cast<int64_t>(prng.below(static_cast<uint64_t>(span))));
      }
      state.ResumeTiming();
    }
  }
  state.SetItemsProcessed(static_cast<int64_t>(Owner::fired));
}
BENCHMARK(fire)->Arg(100'000)->Arg(10'000'000)->Iterations(60'000);

void next(benchmark::State& state) {
  TimerWheel wheel;
  wheel.start(0);
  Owner owner;
  wheel.arm(owner.timer, state.range(0) * kMillisecond);
  for (auto _ : state) benchmark::DoNotOptimize(wheel.next());
}
BENCHMARK(next)->Arg(10)->Arg(100'000)->Arg(1'000'000'000);

}  // namespace
}  // namespace millrace::reactor

BENCHMARK_MAIN();
