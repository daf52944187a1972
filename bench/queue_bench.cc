// What the queue itself costs a message: in, to a lane, out again with its outcome; beside so many others that
// wait, for so many destinations. The spool and delivery answer at once, so neither is in the figure.
#include <benchmark/benchmark.h>

#include <memory>
#include <string>
#include <vector>

#include "dns/mx.h"
#include "queue/id_index.h"
#include "queue/scheduler.h"
#include "reactor/uring.h"

namespace {

using namespace millrace;

class Spool final : public spool::Spool {
 public:
  explicit Spool(reactor::Io& io) : io_(io) { answer_.bind<&Spool::on_answer>(this); }
  ~Spool() override { answer_.cancel(); }
  void append(spool::Append&) override { UNREACHABLE(); }
  void read(spool::Read&) override { UNREACHABLE(); }
  void note(spool::Note& note) override {
    notes_.push_back(&note);
    io_.defer(answer_);
  }
  bool reserve(uint32_t) override { return true; }
  void put_state(std::string, std::string, std::function<void(Status)>) override { UNREACHABLE(); }
  void events_emitted(uint64_t) override {}
  const spool::Stats& stats() const override { return stats_; }

 private:
  void on_answer() {
    std::swap(notes_, answering_);
    for (spool::Note* note : answering_) {
      note->sequence = ++sequence_;
      note->done(note->owner, *note);
    }
    answering_.clear();
  }
  reactor::Io& io_;
  reactor::Deferred answer_;
  std::vector<spool::Note*> notes_, answering_;
  spool::Stats stats_;
  uint64_t sequence_ = 0;
};

// Delivers whatever it is given, a lane after the other; domains that begin with '-' are never looked up.
class Agent final : public queue::Agent {
 public:
  explicit Agent(reactor::Io& io) : io_(io) { turn_.bind<&Agent::on_turn>(this); }
  ~Agent() override { turn_.cancel(); }
  void start(queue::Dispatcher& dispatcher) override { dispatcher_ = &dispatcher; }
  void resolve(queue::Destination& destination) override {
    if (destination.domain.starts_with('-')) return;
    unresolved_.push_back(&destination);
    io_.defer(turn_);
  }
  queue::Lane* open(queue::Site&, unsigned) override {
    auto lane = std::make_unique<Lane>();
    lane->agent = this;
    lanes_.push_back(std::move(lane));
    io_.defer(turn_);
    return lanes_.back().get();
  }

 private:
  struct Lane final : queue::Lane {
    Agent* agent = nullptr;
    bool awake = true, ready = false;
    void wake() override {
      awake = true;
      agent->io_.defer(agent->turn_);
    }
    void retire() override {}
  };
  void on_turn() {
    for (queue::Destination* destination : std::exchange(unresolved_, {})) {
      auto route = std::make_shared<dns::Route>();
      route->verdict = dns::Verdict::usable;
      route->site = "mx." + destination->domain;
      route->valid_until_ns = INT64_MAX;
      dispatcher_->on_route(*destination, std::move(route));
    }
    for (size_t i = 0; i < lanes_.size(); ++i) {
      Lane& lane = *lanes_[i];
      if (!lane.ready) dispatcher_->lane_ready(lane);
      lane.ready = true;
      if (!std::exchange(lane.awake, false)) continue;
      while (queue::Attempt* attempt = dispatcher_->take(lane)) {
        attempt->results[0].action = queue::Action::delivered;
        attempt->results[0].code = 250;
        dispatcher_->finished(*attempt);
      }
    }
  }
  reactor::Io& io_;
  reactor::Deferred turn_;
  queue::Dispatcher* dispatcher_ = nullptr;
  std::vector<queue::Destination*> unresolved_;
  std::vector<std::unique_ptr<Lane>> lanes_;
};

class Nobody final : public events::Sink, public queue::Reporter {
 public:
  bool wanted() const override { return false; }
  void emit(uint64_t, const events::Event&) override {}
  bool wants(const queue::Message&, uint32_t, queue::ReportKind, bool) override { return false; }
  void report(queue::ReportRequest&) override { UNREACHABLE(); }
};

constexpr std::string_view kBody = "Subject: x\r\n\r\nhello\r\n";

queue::MessageRef message(mail::SpoolIdMaker& ids, int64_t wall_ms, const std::string& domain,
                          const std::string& tenant = {}) {
  queue::MessageRef made = queue::MessageRef::make();
  made->id = ids.make(wall_ms);
  made->envelope.reverse_path = "bounces@sender.example";
  made->envelope.tenant = tenant;
  made->envelope.received_ms = wall_ms;
  made->envelope.expires_ms = wall_ms + 86'400'000;
  made->envelope.recipients.push_back({"someone@" + domain, domain, "", 0});
  made->content.raw = {kBody};
  made->content.raw_size = static_cast<uint32_t>(kBody.size());
  return made;
}

// Arguments: messages that wait beside, for how many destinations, and how many tenants what goes is of.
void message_through_the_queue(benchmark::State& state) {
  auto made = reactor::make_uring({});
  if (!made.ok()) return state.SkipWithError(made.error().text.c_str());
  std::unique_ptr<reactor::Io> io = std::move(*made);
  auto config = std::make_shared<config::Config>();
  config->hostname = "relay.example";
  config->connect_rate = {};
  config->memory = uint64_t{4} << 30;
  Spool spool(*io);
  Agent agent(*io);
  Nobody nobody;
  mail::SpoolIdMaker ids(1, 0);
  {
    queue::Scheduler scheduler({*io, config, agent, nobody, 0, 1});
    agent.start(scheduler);
    scheduler.start(spool, nobody);
    for (int64_t i = 0; i < state.range(0); ++i) {
      scheduler.enqueue(message(ids, io->wall_ms(), "-d" + std::to_string(i % state.range(1)) + ".example"));
    }
    constexpr int kBatch = 256;
    std::vector<std::string> tenants;
    for (int64_t i = 0; i < state.range(2); ++i) tenants.push_back(i == 0 ? "" : "tenant" + std::to_string(i));
    for (auto _ : state) {
      uint64_t wanted = scheduler.stats().delivered + kBatch;
      for (int i = 0; i < kBatch; ++i) {
        scheduler.enqueue(message(ids, io->wall_ms(), "receiver.example", tenants[static_cast<size_t>(i) % tenants.size()]));
      }
      while (scheduler.stats().delivered < wanted) io->turn(0);
    }
    state.SetItemsProcessed(static_cast<int64_t>(state.iterations()) * kBatch);
  }
}
BENCHMARK(message_through_the_queue)
    ->ArgNames({"waiting", "destinations", "tenants"})
    ->Args({0, 1, 1})
    ->Args({100'000, 10, 1})
    ->Args({100'000, 100'000, 1})
    ->Args({0, 1, 2})
    ->Args({0, 1, 100});

// Insert and erase of one id beside so many others.
void id_index(benchmark::State& state) {
  mail::SpoolIdMaker ids(1, 0);
  std::vector<queue::Item> items(static_cast<size_t>(state.range(0)) + 1);
  queue::IdIndex index;
  for (queue::Item& item : items) item.id = ids.make(0);
  for (size_t i = 1; i < items.size(); ++i) index.insert(items[i]);
  for (auto _ : state) {
    index.insert(items[0]);
    benchmark::DoNotOptimize(index.find(items[0].id));
    index.erase(items[0].id);
  }
}
BENCHMARK(id_index)->ArgName("others")->Arg(1000)->Arg(1'000'000);

}  // namespace

BENCHMARK_MAIN();
