// What a message costs ingress alone: the session, the protocol, the scan of its bytes and headers, its
// metadata and event, up to the hand-over to the spool and the queue. The kernel, the disk and the queue
// are stood in for by an Io, a Spool and an Intake that do nothing but answer.
//
// Counters: allocations and body bytes copied per message. The corpus has leading dots and metadata
// headers. What it does not show: system calls, cache misses of a loaded machine.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "ingress/listener.h"

namespace {
std::atomic<uint64_t> allocations{0};
}

// Counts what the code under test allocates.
void* operator new(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* at = std::malloc(size)) return at;
  std::abort();
}
void operator delete(void* at) noexcept { std::free(at); }
void operator delete(void* at, size_t) noexcept { std::free(at); }

namespace millrace::ingress {
namespace {

using reactor::Address;
using reactor::BufferRef;
using reactor::Completion;
using reactor::Handle;
using reactor::Op;

class Pool final : public reactor::BufferPool {
 public:
  BufferRef allocate(uint32_t size) override {
    auto* buffer = new reactor::Buffer;
    buffer->data = static_cast<char*>(std::aligned_alloc(4096, size));
    buffer->size = size;
    buffer->references = 1;
    buffer->pool = this;
    used_ += size;
    return BufferRef(buffer);
  }
  uint64_t bytes_in_use() const override { return used_; }
  uint64_t bytes_limit() const override { return 1 << 30; }
  void set_limit(uint64_t) override {}

 private:
  void recycle(reactor::Buffer& buffer) override {
    used_ -= buffer.size;
    std::free(buffer.data);
    delete &buffer;
  }
  uint64_t used_ = 0;
};

// Completes sends at once and has received whatever the bench says.
class BenchIo final : public reactor::Io {
 public:
  BenchIo() { timers_.start(now_); }
  int64_t now() const override { return now_; }
  int64_t wall_ms() const override { return 1'790'000'000'000 + now_ / 1'000'000; }
  uint64_t random() override { return 4; }
  void turn(int64_t) override {
    now_ += 20'000;
    timers_.advance(now_);
    run_deferred();
    if (Op* op = std::exchange(send_, nullptr)) {
      Completion completion;
      completion.result = static_cast<int32_t>(sent_);
      op->complete(completion);
    }
    for (Op* op : std::exchange(cancelled_, {})) {
      Completion completion;
      completion.result = -ECANCELED;
      op->complete(completion);
    }
    run_deferred();
  }
  void wake() override {}
  Result<Handle> listen(const reactor::ListenOptions&) override { return 3; }
  Result<Address> local_address(Handle) override { return Address::ipv4(0x7f000001, 25); }
  Result<Address> peer_address(Handle) override { return Address::ipv4(0x7f000001, 4000); }
  Result<Handle> open_socket(const Address&, const Address&) override { return fail("none"); }
  void accept(Op& op, Handle) override {
    op.begin();
    accept_ = &op;
  }
  void connect(Op&, Handle, const Address&) override { std::abort(); }
  void receive(Op& op, Handle, reactor::BufferGroup) override {
    op.begin();
    receive_ = &op;
  }
  void send(Op& op, Handle, std::span<const iovec> parts) override {
    op.begin();
    send_ = &op;
    sent_ = 0;
    for (const iovec& part : parts) sent_ += part.iov_len;
    ++sends;
  }
  void shutdown_send(Handle) override {}
  void close(Handle, bool) override {}
  void cancel(Op& op) override {
    if (op.pending()) cancelled_.push_back(&op);
  }
  void poll(Op&, int, short) override { std::abort(); }
  reactor::BufferPool& buffers(reactor::BufferGroup) override { return pool_; }
  Result<Handle> open_file(const std::string&, const reactor::FileOptions&) override { return fail("none"); }
  reactor::Alignment alignment(Handle) override { return {}; }
  Result<uint64_t> file_size(Handle) override { return fail("none"); }
  Status allocate(Handle, uint64_t) override { return fail("none"); }
  void write(Op&, Handle, std::span<const iovec>, uint64_t, bool) override { std::abort(); }
  void read(Op&, Handle, std::span<const iovec>, uint64_t) override { std::abort(); }
  void sync(Op&, Handle) override { std::abort(); }
  Result<std::vector<std::string>> list_directory(const std::string&) override { return fail("none"); }
  Status make_directory(const std::string&) override { return fail("none"); }
  Status rename_file(const std::string&, const std::string&) override { return fail("none"); }
  Status remove_file(const std::string&) override { return fail("none"); }
  Status sync_directory(const std::string&) override { return fail("none"); }
  Status lock_file(const std::string&) override { return fail("none"); }
  Result<uint64_t> free_space(const std::string&) override { return fail("none"); }

  void accepted() {
    Completion completion;
    completion.result = 7;
    completion.more = true;
    accept_->complete(completion);
  }
  void received(std::string_view bytes, const BufferRef& buffer) {
    Completion completion;
    completion.result = static_cast<int32_t>(bytes.size());
    completion.more = true;
    completion.data = const_cast<char*>(bytes.data());
    completion.buffer = buffer;
    receive_->complete(completion);
  }
  uint64_t sends = 0;

 private:
  Pool pool_;
  int64_t now_ = 1'000'000'000;
  Op* accept_ = nullptr;
  Op* receive_ = nullptr;
  Op* send_ = nullptr;
  size_t sent_ = 0;
  std::vector<Op*> cancelled_;
};

class BenchSpool final : public spool::Spool {
 public:
  void append(spool::Append& append) override { waiting_.push_back(&append); }
  void note(spool::Note&) override {}
  void read(spool::Read&) override {}
  bool reserve(uint32_t) override { return true; }
  void put_state(std::string, std::string, std::function<void(Status)>) override {}
  void events_emitted(uint64_t) override {}
  const spool::Stats& stats() const override { return stats_; }
  void answer() {
    for (spool::Append* append : waiting_) append->done(append->owner, *append);
    waiting_.clear();
  }

 private:
  std::vector<spool::Append*> waiting_;
  spool::Stats stats_;
};

class BenchIntake final : public queue::Intake {
 public:
  queue::Admission admit(queue::AdmissionWaiter&, std::string&) override { return queue::Admission::now; }
  void enqueue(queue::MessageRef message) override { last = std::move(message); }
  queue::MessageRef last;
};

class BenchSink final : public events::Sink {
 public:
  void emit(uint64_t, const events::Event& event) override { benchmark::DoNotOptimize(&event); }
};

std::string make_content(size_t size) {
  std::string content =
      "From: Sender <news@sender.example.org>\r\nTo: <user@destination.example.net>\r\n"
      "Subject: This week's news\r\nDate: Sat, 21 Nov 2026 10:00:00 +0000\r\n"
      "Message-ID: <20261121100000.1@sender.example.org>\r\nMIME-Version: 1.0\r\nX-Job: week47\r\n"
      "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n";
  for (int line = 0; content.size() < size; ++line) {
    content += line % 50 == 7 ? "..dot " : "";
    content += "The quick brown fox jumps over the lazy dog, and does it again and again.\r\n";
  }
  return content;
}

// One message a cycle; arg 0: its size, arg 1: octets of a receive.
void a_message(benchmark::State& state) {
  auto config = std::make_shared<config::Config>();
  config->hostname = "relay.example.org";
  config->relay_from = {*reactor::Network::parse("127.0.0.0/8")};
  config::Snapshot snapshot = config;
  BenchIo io;
  BenchSpool spool;
  BenchIntake intake;
  BenchSink sink;
  ConnectionLimits limits;
  Context context{io, &snapshot, spool, intake, sink, limits, mail::SpoolIdMaker(1, 0)};
  Acceptance acceptance(context);
  SmtpListener listener(context, acceptance);
  config::Listen at;
  at.address = Address::ipv4(0x7f000001, 25);
  if (!listener.open({at}, false)) std::abort();
  io.accepted();
  for (int i = 0; i < 200; ++i) io.turn(0);  // past the greeting's delay

  BufferRef buffer = io.buffers(reactor::BufferGroup::ingress).allocate(1 << 20);
  std::string content = make_content(static_cast<size_t>(state.range(0)));
  const std::string hello = "EHLO app.example.org\r\n";
  const std::string envelope =
      "MAIL FROM:<bounce+12345@sender.example.org> BODY=8BITMIME\r\n"
      "RCPT TO:<user@destination.example.net>\r\nDATA\r\n";
  const std::string wire = content + ".\r\n";
  char* place = buffer->data;
  auto put = [&](const std::string& bytes) {
    std::memcpy(place, bytes.data(), bytes.size());
    std::string_view placed(place, bytes.size());
    place += bytes.size();
    return placed;
  };
  std::string_view hello_at = put(hello);
  std::string_view envelope_at = put(envelope);
  std::string_view wire_at = put(wire);
  io.received(hello_at, buffer);
  io.turn(0);

  uint64_t before = 0;
  uint64_t sends = 0;
  const size_t step = static_cast<size_t>(state.range(1));
  for (auto _ : state) {
    if (context.stats.messages == 10) {  // warm
      before = allocations.load();
      sends = io.sends;
    }
    io.received(envelope_at, buffer);
    io.turn(0);
    for (size_t at_octet = 0; at_octet < wire_at.size(); at_octet += step) {
      io.received(wire_at.substr(at_octet, step), buffer);
    }
    io.turn(0);
    spool.answer();
    io.turn(0);
  }
  if (context.stats.messages != static_cast<uint64_t>(state.iterations())) std::abort();
  double messages = std::max(1.0, static_cast<double>(context.stats.messages) - 10);
  state.SetItemsProcessed(state.iterations());
  state.counters["allocations"] = static_cast<double>(allocations.load() - before) / messages;
  state.counters["sends"] = static_cast<double>(io.sends - sends) / messages;
  state.counters["copied"] = static_cast<double>(context.stats.body_bytes_copied) / messages;
  state.counters["session_bytes"] = sizeof(Session);
  intake.last = {};
  listener.stop();
  while (!listener.drained()) io.turn(0);
}
BENCHMARK(a_message)->Args({4 << 10, 1 << 20})->Args({20 << 10, 1 << 20})->Args({20 << 10, 16 << 10});

}  // namespace
}  // namespace millrace::ingress

BENCHMARK_MAIN();
