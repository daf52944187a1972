// What the spool costs: messages through the log on a real disk, in groups as they arrive together, and
// recovery of many queued messages.
//
//   bench_spool --benchmark_filter=Append      MILLRACE_BENCH_DIR chooses the disk (default .)
//
// Append/<octets>/<group>: so many messages are handed in at once, the next group when all are answered.
// cpu is that of this thread; user_ns its user time a message, where the writer's own work is found.
#include <benchmark/benchmark.h>
#include <sys/resource.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "base/crc32c.h"
#include "base/log.h"
#include "reactor/uring.h"
#include "spool/directory.h"
#include "spool/spool.h"

namespace millrace::spool {
namespace {

struct Count final : RecoveryHandler {
  uint64_t messages = 0;
  void on_message(const Recovered&) override { ++messages; }
  void on_event(uint64_t, std::string_view) override {}
  void on_state(std::string_view, std::string_view) override {}
};

int64_t user_ns() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  return int64_t{usage.ru_utime.tv_sec} * 1'000'000'000 + int64_t{usage.ru_utime.tv_usec} * 1000;
}

class Bench {
 public:
  explicit Bench(bool fresh) {
    log::set_level(log::Level::error);
    const char* where = std::getenv("MILLRACE_BENCH_DIR");
    config.spool = std::string(where ? where : ".") + "/bench-spool";
    if (fresh) std::filesystem::remove_all(config.spool);
    io = std::move(reactor::make_uring({.ingress_bytes = 512u << 20})).value();
    box = std::make_unique<reactor::Mailbox>(*io);
    io->on_wake = [this] { box->drain(); };
  }
  ~Bench() {
    spool.reset();
    directory.reset();
  }
  template <typename Done>
  void run(Done done) {
    while (!done()) io->turn(100'000'000);
  }
  RecoverySummary start(RecoveryHandler& handler) {
    bool done = false;
    RecoverySummary summary;
    reactor::spawn(Directory::open(*io, *box, config), [&](Result<std::unique_ptr<Directory>> opened) {
      directory = std::move(opened).value();
      done = true;
    });
    run([&] { return done; });
    spool = directory->shard(*io, *box);
    done = false;
    reactor::spawn(directory->recover(handler), [&](Result<RecoverySummary> recovered) {
      summary = std::move(recovered).value();
      done = true;
    });
    run([&] { return done; });
    return summary;
  }
  void close() {
    bool done = false;
    reactor::spawn(directory->close(), [&](Status) { done = true; });
    run([&] { return done; });
  }
  config::Config config;
  std::unique_ptr<reactor::Io> io;
  std::unique_ptr<reactor::Mailbox> box;
  std::unique_ptr<Directory> directory;
  std::unique_ptr<Spool> spool;
};

// `group` messages of `size` octets with their buffers, handed in together and finished again.
struct Group {
  Group(Bench& bench, size_t size, size_t group) : appends(group), notes(group) {
    constexpr size_t kBuffer = 1 << 20;
    std::string body(size, 'x');
    uint32_t crc = crc32c(0, body);
    size_t used = kBuffer;
    for (size_t i = 0; i < group; ++i) {
      if (used + size + 200 > kBuffer) {
        buffers.push_back(bench.io->buffers(reactor::BufferGroup::ingress).allocate(kBuffer));
        used = 0;
      }
      reactor::BufferRef& buffer = buffers.back();
      std::memcpy(buffer->data + used, body.data(), size);
      Append& append = appends[i];
      append.metadata = metadata;
      append.event = event;
      append.pieces.push_back({buffer->data + used, static_cast<uint32_t>(size), buffer.get()});
      append.body_crc = crc;
      append.owner = this;
      append.done = [](void* owner, Append& at) {
        auto* group_at = static_cast<Group*>(owner);
        ASSERT(at.status.ok());
        ++group_at->answered;
      };
      used += size + 150;  // what a client says between two messages
      Note& note = notes[i];
      note.final = true;
      note.event = event;
      note.owner = this;
      note.done = [](void* owner, Note&) { ++static_cast<Group*>(owner)->noted; };
    }
  }
  std::string metadata = std::string(350, 'm');
  std::string event = std::string(300, 'e');
  std::vector<Append> appends;
  std::vector<Note> notes;
  std::vector<reactor::BufferRef> buffers;
  size_t answered = 0, noted = 0;
};

void append(benchmark::State& state) {
  Bench bench(true);
  Count count;
  bench.start(count);
  size_t size = static_cast<size_t>(state.range(0)), group_size = static_cast<size_t>(state.range(1));
  {
    Group group(bench, size, group_size);
    uint64_t id = 0;
    uint64_t written = bench.spool->stats().bytes_written, batches = bench.spool->stats().batches;
    int64_t user = user_ns();
    for (auto _ : state) {
      group.answered = group.noted = 0;
      for (Append& at : group.appends) {
        at.id = {1, ++id};
        bench.spool->append(at);
      }
      bench.run([&] { return group.answered == group_size; });
      for (size_t i = 0; i < group_size; ++i) {
        Note& note = group.notes[i];
        note.id = group.appends[i].id;
        note.message = group.appends[i].location;
        bench.spool->note(note);
      }
      bench.run([&] { return group.noted == group_size; });
    }
    double messages = static_cast<double>(id);
    state.counters["user_ns"] = static_cast<double>(user_ns() - user) / messages;
    state.counters["messages/s"] = benchmark::Counter(messages, benchmark::Counter::kIsRate);
    state.counters["amplification"] =
        static_cast<double>(bench.spool->stats().bytes_written - written) / (messages * static_cast<double>(size));
    state.counters["per_batch"] =
        2 * messages / static_cast<double>(bench.spool->stats().batches - batches);
  }
  bench.close();
  std::filesystem::remove_all(bench.config.spool);
}
BENCHMARK(append)->ArgNames({"octets", "group"})->ArgsProduct({{4096, 20480, 102400}, {1, 16, 64, 256}})->UseRealTime();

// So many queued messages of so many octets; each iteration is one start.
void recover(benchmark::State& state) {
  size_t messages = static_cast<size_t>(state.range(0)), size = static_cast<size_t>(state.range(1));
  {
    Bench bench(true);
    Count count;
    bench.start(count);
    {
      constexpr size_t kGroup = 256;
      Group group(bench, size, kGroup);
      uint64_t id = 0;
      while (id < messages) {
        group.answered = 0;
        for (Append& at : group.appends) {
          at.id = {1, ++id};
          bench.spool->append(at);
        }
        bench.run([&] { return group.answered == kGroup; });
      }
    }
    bench.close();
  }
  RecoverySummary summary;
  for (auto _ : state) {
    Bench bench(false);
    Count count;
    summary = bench.start(count);
    state.PauseTiming();
    ASSERT(count.messages >= messages);
    bench.close();
    state.ResumeTiming();
  }
  state.counters["ms"] = static_cast<double>(summary.milliseconds);
  state.counters["MiB_read"] = static_cast<double>(summary.bytes_read >> 20);
  std::filesystem::remove_all(Bench(true).config.spool);
}
BENCHMARK(recover)->ArgNames({"messages", "octets"})->Args({50'000, 20480})->Iterations(2)->UseRealTime()->Unit(
    benchmark::kMillisecond);

}  // namespace
}  // namespace millrace::spool

BENCHMARK_MAIN();
