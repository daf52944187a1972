// What a decision about limits costs: an attempt that asks, is charged in every scope that it belongs to, and gives back
// when it ends. The clock is the simulator's, moved on between batches so that no rate binds.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <deque>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <unistd.h>

#include "config/values.h"
#include "reactor/sim.h"
#include "shaping/arbiter.h"

namespace {

using namespace millrace;

constexpr int kBatch = 1000;
constexpr int64_t kBatchNs = 20'000'000;  // 50,000 a second, where the limits allow a million

constexpr const char* kPlain = "[default]\nattempt-rate = \"1000000/s\"\n";
constexpr const char* kEveryScope = R"(
[default]
in-flight = 1000000
attempt-rate = "1000000/s"
message-rate = "1000000/s"
[provider.gmail.total]
attempt-rate = "1000000/s"
[source."*"]
attempt-rate = "1000000/s"
[domain."*"]
in-flight = 1000000
attempt-rate = "1000000/s"
[domain."gmail.com".source."192.0.2.1"]
attempt-rate = "1000000/s"
[pool."*"]
attempt-rate = "1000000/s"
[tenant."*"]
in-flight = 1000000
message-rate = "1000000/s"
[tenant.acme.provider.gmail]
attempt-rate = "1000000/s"
[job."*"]
attempt-rate = "1000000/s"
)";

struct Rig {
  explicit Rig(const char* rules) {
    std::vector<config::Source> sources = {*config::parse_source("192.0.2.1=mta1.example.com")};
    auto parsed = config::Shaping::parse(rules, "shaping.toml", sources);
    if (!parsed.ok()) {
      std::fprintf(stderr, "%s\n", parsed.error().text.c_str());
      std::abort();
    }
    arbiter = std::make_unique<shaping::Arbiter>(*io, *parsed);
  }
  reactor::SimWorld world{1};
  std::unique_ptr<reactor::Io> io = world.make_io(world.add_host({"192.0.2.1"}));
  std::unique_ptr<shaping::Arbiter> arbiter;
};

bool decide(shaping::Arbiter& arbiter, shaping::Request& request) {
  if (!arbiter.submit(request)) {
    arbiter.cancel(request);
    return false;
  }
  if (request.to_release) arbiter.release({request.set, true, request.granted_at, 1, 20'000, true, true});
  return true;
}

void decision(benchmark::State& state, const char* rules) {
  Rig rig(rules);
  shaping::Request request;
  request.subject = {"gmail", "aspmx.l.google.com", 0, "gmail.com", "bulk", "acme", "spring"};
  request.recipients = 1;
  request.octets = 20'000;
  while (state.KeepRunningBatch(kBatch)) {
    for (int i = 0; i < kBatch; ++i) {
      if (!decide(*rig.arbiter, request)) return state.SkipWithError("a limit binds");
    }
    state.PauseTiming();
    rig.world.run_for(kBatchNs);
    state.ResumeTiming();
  }
  state.counters["scopes"] = static_cast<double>(request.set->scopes.size());
}
void BM_OneScope(benchmark::State& state) { decision(state, kPlain); }
void BM_EveryScope(benchmark::State& state) { decision(state, kEveryScope); }

size_t resident() {
  std::ifstream file("/proc/self/statm");
  size_t all = 0, pages = 0;
  file >> all >> pages;
  return pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

// So many destinations, each a domain and a site of its own, one after the other: nothing of a decision is in the cache.
void BM_Destinations(benchmark::State& state) {
  Rig rig(kEveryScope);
  size_t count = static_cast<size_t>(state.range(0));
  std::deque<shaping::Request> requests(count);
  std::deque<std::string> names;
  size_t before = resident();
  for (size_t i = 0; i < count; ++i) {
    const std::string& domain = names.emplace_back("d" + std::to_string(i) + ".example");
    const std::string& site = names.emplace_back("mx." + domain);
    requests[i].subject = {"", site, 0, domain, "bulk", "acme", "spring"};
    requests[i].recipients = 1;
    requests[i].octets = 20'000;
    if (!decide(*rig.arbiter, requests[i])) return state.SkipWithError("a limit binds");
    if (i % kBatch == kBatch - 1) rig.world.run_for(kBatchNs);
  }
  // What is freed stays resident, so only the first rig of a size shows what one needs.
  static std::map<size_t, double> octets_each;
  octets_each.try_emplace(count, static_cast<double>(resident() - before) / static_cast<double>(count));
  state.counters["octets_each"] = octets_each[count];
  size_t next = 0;
  while (state.KeepRunningBatch(kBatch)) {
    for (int i = 0; i < kBatch; ++i) {
      if (!decide(*rig.arbiter, requests[next])) return state.SkipWithError("a limit binds");
      next = (next + 7919) % count;
    }
    state.PauseTiming();
    rig.world.run_for(kBatchNs);
    state.ResumeTiming();
  }
}

BENCHMARK(BM_OneScope);
BENCHMARK(BM_EveryScope);
BENCHMARK(BM_Destinations)->Arg(1000)->Arg(100'000);

}  // namespace

BENCHMARK_MAIN();
