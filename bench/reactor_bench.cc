// What the loop costs around the kernel's own work: a request and its answer over loopback, both
// ends on one ring; an empty turn; a letter to oneself. The first argument of an echo is the number
// of connections, all of them busy at once; the second is 1 with all features of the kernel, 0 with
// none.
#include <benchmark/benchmark.h>
#include <netinet/in.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "reactor/mailbox.h"
#include "reactor/uring.h"

namespace millrace::reactor {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

std::unique_ptr<Io> make(bool features) {
  UringOptions options;
  if (!features) options.features = {};
  auto made = make_uring(options);
  if (!made) {
    std::fprintf(stderr, "%s\n", made.error().text.c_str());
    std::exit(1);
  }
  return std::move(made).value();
}

// Answers every piece it receives with as many bytes.
struct Endpoint {
  Endpoint(Io& at, Handle of, BufferGroup from) : io(at), socket(of), group(from) {
    receiving.bind<&Endpoint::on_received>(this);
    sending.bind<&Endpoint::on_sent>(this);
    flush.bind<&Endpoint::on_flush>(this);
    io.receive(receiving, socket, group);
  }
  void on_received(Completion& completion) {
    if (!completion.more) return;
    owed += static_cast<size_t>(completion.result);
    total += static_cast<size_t>(completion.result);
    if (!sending.pending()) io.defer(flush);
  }
  void on_flush() {
    if (quiet || sending.pending() || owed == 0) return;
    part = {text, owed < sizeof text ? owed : sizeof text};
    owed -= part.iov_len;
    io.send(sending, socket, {&part, 1});
  }
  void on_sent(Completion&) { on_flush(); }
  Io& io;
  Handle socket;
  BufferGroup group;
  Op receiving, sending;
  Deferred flush;
  iovec part{};
  size_t owed = 0;
  uint64_t total = 0;
  bool quiet = false;
  char text[64] = {};
};

struct Acceptor {
  Acceptor(Io& at, Handle listener) : io(at) {
    op.bind<&Acceptor::on_accepted>(this);
    io.accept(op, listener);
  }
  void on_accepted(Completion& completion) {
    if (completion.result >= 0) sockets.push_back(completion.result);
  }
  Io& io;
  Op op;
  std::vector<Handle> sockets;
};

struct Connector {
  Connector() { op.bind<&Connector::on_connected>(this); }
  void on_connected(Completion& completion) { result = completion.result; }
  Op op;
  int result = 1;
};

void echo(benchmark::State& state) {
  auto io = make(state.range(1) != 0);
  ListenOptions listen;
  listen.address = Address::ipv4(INADDR_LOOPBACK, 0);
  auto listener = io->listen(listen);
  if (!listener) return state.SkipWithError(listener.error().text.c_str());
  Address address = io->local_address(*listener).value();
  auto acceptor = std::make_unique<Acceptor>(*io, *listener);
  auto count = static_cast<size_t>(state.range(0));
  std::vector<std::unique_ptr<Endpoint>> clients, servers;
  for (size_t i = 0; i < count; ++i) {
    auto socket = io->open_socket(address, {});
    if (!socket) return state.SkipWithError(socket.error().text.c_str());
    Connector connector;
    io->connect(connector.op, *socket, address);
    while (connector.op.pending()) io->turn(kSecond);
    if (connector.result != 0) return state.SkipWithError("connect failed");
    clients.push_back(std::make_unique<Endpoint>(*io, *socket, BufferGroup::delivery));
  }
  while (acceptor->sockets.size() < count) io->turn(kSecond);
  for (Handle socket : acceptor->sockets) {
    servers.push_back(std::make_unique<Endpoint>(*io, socket, BufferGroup::ingress));
  }
  for (auto& client : clients) {
    client->owed = sizeof client->text;
    client->on_flush();
  }
  auto received = [&] {
    uint64_t sum = 0;
    for (auto& client : clients) sum += client->total;
    return sum / sizeof(Endpoint::text);
  };
  uint64_t before = received(), turns = 0;
  for (auto _ : state) {
    io->turn(kSecond);
    ++turns;
  }
  uint64_t exchanged = received() - before;
  state.SetItemsProcessed(static_cast<int64_t>(exchanged));
  state.counters["exchanges/turn"] = static_cast<double>(exchanged) / static_cast<double>(turns);
  state.counters["us/exchange"] =
      benchmark::Counter(static_cast<double>(exchanged) / 1e6,
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);

  // Quiet down, end every operation, close.
  for (auto& each : clients) each->quiet = true;
  auto idle = [](auto& all) {
    for (auto& each : all) {
      if (each->receiving.pending() || each->sending.pending()) return false;
    }
    return true;
  };
  for (auto& each : clients) {
    while (each->sending.pending()) io->turn(kSecond);
    io->shutdown_send(each->socket);
  }
  while (!idle(servers)) io->turn(kSecond);
  for (auto& each : servers) io->close(each->socket);
  while (!idle(clients)) io->turn(kSecond);
  for (auto& each : clients) io->close(each->socket);
  io->cancel(acceptor->op);
  while (acceptor->op.pending()) io->turn(kSecond);
  io->close(*listener);
  for (auto& each : clients) each->flush.cancel();
  for (auto& each : servers) each->flush.cancel();
}
BENCHMARK(echo)->ArgsProduct({{1, 100, 1000, 9000}, {1, 0}});

void empty_turn(benchmark::State& state) {
  auto io = make(true);
  for (auto _ : state) io->turn(0);
}
BENCHMARK(empty_turn);

struct Receiver {
  void on_letter(Letter&) { ++got; }
  uint64_t got = 0;
};

// A letter and the turn that delivers it; many letters share the turn.
void letters(benchmark::State& state) {
  auto io = make(true);
  Mailbox box(*io);
  io->on_wake = [&] { box.drain(); };
  Receiver receiver;
  std::vector<Letter> all(static_cast<size_t>(state.range(0)));
  for (Letter& letter : all) letter.address<&Receiver::on_letter>(&receiver);
  for (auto _ : state) {
    for (Letter& letter : all) box.push(letter);
    io->turn(kSecond);
  }
  state.SetItemsProcessed(static_cast<int64_t>(receiver.got));
}
BENCHMARK(letters)->Arg(1)->Arg(100);

}  // namespace
}  // namespace millrace::reactor

BENCHMARK_MAIN();
