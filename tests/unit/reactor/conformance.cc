// The rules of reactor/io.h, one test each. A test here asks for nothing that only one back end promises.
#include "conformance.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace millrace::reactor::conformance {

// ---- connections

TEST_P(Conformance, AListenerOnPortZeroLearnsItsPort) {
  make();
  Handle listener = listen(io());
  Address address = io().local_address(listener).value();
  EXPECT_NE(address.port(), 0);
  EXPECT_EQ(address.host_string(), "127.0.0.1");
  io().close(listener);
}

TEST_P(Conformance, BothEndsKnowEachOther) {
  make();
  Pair pair = connect();
  EXPECT_EQ(io().peer_address(pair.server).value(), io().local_address(pair.client).value());
  EXPECT_EQ(io().peer_address(pair.client).value(), io().local_address(pair.server).value());
  io().close(pair.client);
  io().close(pair.server);
}

TEST_P(Conformance, ConnectingToNobodyIsRefused) {
  make();
  Handle listener = listen(io());
  Address address = io().local_address(listener).value();
  io().close(listener);
  Handle socket = io().open_socket(address, {}).value();
  Recorder connecting;
  connecting.start([&](Op& op) { io().connect(op, socket, address); });
  ASSERT_TRUE(until([&] { return connecting.ended; }));
  EXPECT_EQ(connecting.results, std::vector<int32_t>{-ECONNREFUSED});
  io().close(socket);
}

TEST_P(Conformance, ATakenPortIsAnError) {
  make();
  Handle listener = listen(io());
  ListenOptions options;
  options.address = io().local_address(listener).value();
  auto second = io().listen(options);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().number, EADDRINUSE);
  io().close(listener);
}

TEST_P(Conformance, ASourceAddressIsBound) {
  make();
  Handle listener = listen(io());
  Address address = io().local_address(listener).value();
  Address source = Address::ipv4(INADDR_LOOPBACK, 0);
  Handle socket = io().open_socket(address, source).value();
  Recorder accepting, connecting;
  accepting.start([&](Op& op) { io().accept(op, listener); });
  connecting.start([&](Op& op) { io().connect(op, socket, address); });
  ASSERT_TRUE(until([&] { return connecting.ended && !accepting.results.empty(); }));
  EXPECT_EQ(io().peer_address(accepting.results[0]).value().host_string(), "127.0.0.1");
  Address foreign = Address::parse_host("192.0.2.77", 0).value();
  EXPECT_FALSE(io().open_socket(address, foreign).ok());
  io().cancel(accepting.op);
  ASSERT_TRUE(until([&] { return accepting.ended; }));
  io().close(accepting.results[0]);
  io().close(socket);
  io().close(listener);
}

TEST_P(Conformance, AcceptGoesOnUntilItIsCancelled) {
  make();
  Handle listener = listen(io());
  Address address = io().local_address(listener).value();
  std::vector<Handle> handles;
  Recorder accepting;
  bool stopping = false;
  accepting.then = [&] {
    if (accepting.last() >= 0) handles.push_back(accepting.last());
    if (accepting.ended && !stopping) {
      accepting.start([&](Op& op) { io().accept(op, listener); });
    }
  };
  accepting.start([&](Op& op) { io().accept(op, listener); });
  std::deque<Recorder> connecting(5);
  for (Recorder& one : connecting) {
    Handle socket = io().open_socket(address, {}).value();
    handles.push_back(socket);
    one.start([&](Op& op) { io().connect(op, socket, address); });
  }
  ASSERT_TRUE(until([&] { return handles.size() == 10; }));
  ASSERT_TRUE(until([&] {
    return std::all_of(connecting.begin(), connecting.end(), [](auto& r) { return r.ended; });
  }));
  stopping = true;
  io().cancel(accepting.op);
  EXPECT_TRUE(accepting.op.pending());
  ASSERT_TRUE(until([&] { return accepting.ended; }));
  EXPECT_EQ(accepting.last(), -ECANCELED);
  for (Handle handle : handles) io().close(handle);
  io().close(listener);
}

TEST_P(Conformance, ConnectionsWaitWhileNobodyAccepts) {
  make();
  Handle listener = listen(io());
  Address address = io().local_address(listener).value();
  Handle socket = io().open_socket(address, {}).value();
  Recorder connecting, accepting;
  connecting.start([&](Op& op) { io().connect(op, socket, address); });
  ASSERT_TRUE(until([&] { return connecting.ended; }));
  EXPECT_EQ(connecting.last(), 0);
  Writer writer(io(), socket, "hello");
  backend->settle();
  accepting.start([&](Op& op) { io().accept(op, listener); });
  ASSERT_TRUE(until([&] { return !accepting.results.empty(); }));
  Handle accepted = accepting.results[0];
  ASSERT_GE(accepted, 0);
  Reader reader(io(), accepted);
  ASSERT_TRUE(until([&] { return reader.bytes() == "hello" && writer.over; }));
  reader.stop();
  io().cancel(accepting.op);
  ASSERT_TRUE(until([&] { return accepting.ended && reader.recorder.ended; }));
  io().close(accepted);
  io().close(socket);
  io().close(listener);
}

TEST_P(Conformance, ListenersOfOnePortShareItsConnections) {
  make();
  Handle first = listen(io(), Address::ipv4(INADDR_LOOPBACK, 0), true);
  Address address = io().local_address(first).value();
  Handle second = listen(backend->other(), address, true);
  Recorder accepting[2];
  std::vector<Handle> accepted[2];
  bool stopping = false;
  auto start = [&](int i) {
    Io& on = i == 0 ? io() : backend->other();
    accepting[i].start([&](Op& op) { on.accept(op, i == 0 ? first : second); });
  };
  for (int i : {0, 1}) {
    accepting[i].then = [&, i] {
      if (accepting[i].last() >= 0) accepted[i].push_back(accepting[i].last());
      if (accepting[i].ended && !stopping) start(i);
    };
    start(i);
  }
  std::deque<Recorder> connecting(40);
  std::vector<Handle> sockets;
  for (Recorder& one : connecting) {
    sockets.push_back(io().open_socket(address, {}).value());
    one.start([&](Op& op) { io().connect(op, sockets.back(), address); });
  }
  ASSERT_TRUE(until([&] { return accepted[0].size() + accepted[1].size() == 40; }));
  ASSERT_TRUE(until([&] {
    return std::all_of(connecting.begin(), connecting.end(), [](auto& r) { return r.ended; });
  }));
  EXPECT_FALSE(accepted[0].empty());  // 2^-39 by chance
  EXPECT_FALSE(accepted[1].empty());
  stopping = true;
  io().cancel(accepting[0].op);
  backend->other().cancel(accepting[1].op);
  ASSERT_TRUE(until([&] { return accepting[0].ended && accepting[1].ended; }));
  for (Handle handle : sockets) io().close(handle);
  for (Handle handle : accepted[0]) io().close(handle);
  for (Handle handle : accepted[1]) backend->other().close(handle);
  io().close(first);
  backend->other().close(second);
}

TEST_P(Conformance, UnixSocketsCarryBytes) {
  make();
  Pair pair = connect(Address::unix_path(backend->directory() + "/socket"));
  Reader reader(io(), pair.server);
  Writer writer(io(), pair.client, pattern(100'000));
  ASSERT_TRUE(until([&] { return writer.over; }));
  io().close(pair.client);
  ASSERT_TRUE(until([&] { return reader.over; }));
  EXPECT_EQ(reader.bytes(), writer.text);
  EXPECT_EQ(reader.end, 0);
  io().close(pair.server);
}

TEST_P(Conformance, ConnectingToAMissingUnixPathFails) {
  make();
  Address address = Address::unix_path(backend->directory() + "/nothing");
  Handle socket = io().open_socket(address, {}).value();
  Recorder connecting;
  connecting.start([&](Op& op) { io().connect(op, socket, address); });
  ASSERT_TRUE(until([&] { return connecting.ended; }));
  EXPECT_EQ(connecting.last(), -ENOENT);
  io().close(socket);
}

// ---- bytes

TEST_P(Conformance, BytesArriveInOrderInBothDirectionsAtOnce) {
  make();
  Pair pair = connect(Address::ipv4(INADDR_LOOPBACK, 0), &backend->other());
  Reader at_server(io(), pair.server);
  Reader at_client(backend->other(), pair.client);
  Writer from_client(backend->other(), pair.client, pattern(3'000'000, 1));
  Writer from_server(io(), pair.server, pattern(1'000'000, 2));
  ASSERT_TRUE(until([&] { return from_client.over && from_server.over; }));
  EXPECT_EQ(from_client.error, 0);
  EXPECT_EQ(from_server.error, 0);
  backend->other().shutdown_send(pair.client);
  io().shutdown_send(pair.server);
  ASSERT_TRUE(until([&] { return at_server.over && at_client.over; }));
  EXPECT_TRUE(at_server.bytes() == from_client.text);
  EXPECT_TRUE(at_client.bytes() == from_server.text);
  EXPECT_EQ(at_server.end, 0);
  EXPECT_EQ(at_client.end, 0);
  backend->other().close(pair.client);
  io().close(pair.server);
}

TEST_P(Conformance, AHalfClosedConnectionStillCarriesTheOtherDirection) {
  make();
  Pair pair = connect();
  Reader at_server(io(), pair.server);
  io().shutdown_send(pair.client);
  ASSERT_TRUE(until([&] { return at_server.over; }));
  EXPECT_EQ(at_server.end, 0);
  Reader at_client(io(), pair.client);
  Writer writer(io(), pair.server, pattern(50'000));
  ASSERT_TRUE(until([&] { return at_client.bytes().size() == 50'000 && writer.over; }));
  EXPECT_EQ(at_client.bytes(), writer.text);
  io().close(pair.server);
  ASSERT_TRUE(until([&] { return at_client.over; }));
  io().close(pair.client);
}

TEST_P(Conformance, EndOfStreamIsReportedAgainWhenAskedAgain) {
  make();
  Pair pair = connect();
  io().close(pair.client);
  for (int i = 0; i < 2; ++i) {
    Recorder receiving;
    receiving.start([&](Op& op) { io().receive(op, pair.server, BufferGroup::ingress); });
    ASSERT_TRUE(until([&] { return receiving.ended; }));
    EXPECT_EQ(receiving.results, std::vector<int32_t>{0});
  }
  io().close(pair.server);
}

TEST_P(Conformance, SendingAfterShutdownIsAnError) {
  make();
  Pair pair = connect();
  io().shutdown_send(pair.client);
  Writer writer(io(), pair.client, "late");
  ASSERT_TRUE(until([&] { return writer.over; }));
  EXPECT_EQ(writer.error, -EPIPE);
  io().close(pair.client);
  io().close(pair.server);
}

TEST_P(Conformance, ResetReachesTheReceiverAsAnError) {
  make();
  Pair pair = connect();
  Recorder receiving;
  receiving.start([&](Op& op) { io().receive(op, pair.server, BufferGroup::ingress); });
  io().close(pair.client, true);
  ASSERT_TRUE(until([&] { return receiving.ended; }));
  EXPECT_EQ(receiving.last(), -ECONNRESET);
  io().close(pair.server);
}

TEST_P(Conformance, ClosingWithUnreadBytesResetsThePeer) {
  make();
  Pair pair = connect();
  Writer writer(io(), pair.client, "never read");
  ASSERT_TRUE(until([&] { return writer.over; }));
  backend->settle();
  Recorder receiving;
  receiving.start([&](Op& op) { io().receive(op, pair.client, BufferGroup::ingress); });
  io().close(pair.server);
  ASSERT_TRUE(until([&] { return receiving.ended; }));
  EXPECT_EQ(receiving.last(), -ECONNRESET);
  io().close(pair.client);
}

TEST_P(Conformance, SendingToAPeerThatIsGoneFailsWithoutASignal) {
  make();
  Pair pair = connect();
  io().close(pair.server, true);
  backend->settle();
  int32_t error = 0;
  for (int i = 0; i < 10 && error == 0; ++i) {
    Writer writer(io(), pair.client, pattern(10'000));
    ASSERT_TRUE(until([&] { return writer.over; }));
    error = writer.error;
    backend->settle();
  }
  EXPECT_TRUE(error == -EPIPE || error == -ECONNRESET) << error;
  io().close(pair.client);
}

TEST_P(Conformance, ASenderWaitsForAPeerThatDoesNotRead) {
  make();
  Pair pair = connect();
  Writer writer(io(), pair.client, pattern(32 << 20));
  backend->settle();
  EXPECT_FALSE(writer.over);
  EXPECT_TRUE(writer.recorder.op.pending());
  Reader reader(io(), pair.server);
  ASSERT_TRUE(until([&] { return writer.over; }));
  EXPECT_EQ(writer.error, 0);
  io().close(pair.client);
  ASSERT_TRUE(until([&] { return reader.over; }));
  EXPECT_TRUE(reader.bytes() == writer.text);
  io().close(pair.server);
}

TEST_P(Conformance, AnEmptySendCompletes) {
  make();
  Pair pair = connect();
  Recorder sending;
  iovec nothing{nullptr, 0};
  sending.start([&](Op& op) { io().send(op, pair.client, {&nothing, 1}); });
  ASSERT_TRUE(until([&] { return sending.ended; }));
  EXPECT_EQ(sending.last(), 0);
  io().close(pair.client);
  io().close(pair.server);
}

// ---- cancelling

TEST_P(Conformance, ACancelledReceiveEndsOnceAndLosesNoByte) {
  make();
  Pair pair = connect();
  std::string got;
  Writer writer(io(), pair.client, pattern(400'000));
  for (int round = 0; got.size() < writer.text.size(); ++round) {
    ASSERT_LT(round, 100'000);
    Recorder receiving;
    receiving.start([&](Op& op) { io().receive(op, pair.server, BufferGroup::ingress); });
    ASSERT_TRUE(until([&] { return receiving.ended || !receiving.results.empty(); }));
    io().cancel(receiving.op);
    io().cancel(receiving.op);
    ASSERT_TRUE(until([&] { return receiving.ended; }));
    EXPECT_TRUE(receiving.last() > 0 || receiving.last() == -ECANCELED) << receiving.last();
    got += receiving.bytes;
  }
  EXPECT_EQ(got, writer.text);
  ASSERT_TRUE(until([&] { return writer.over; }));
  io().close(pair.client);
  io().close(pair.server);
}

TEST_P(Conformance, ACancelledReceiveOfASilentPeerEnds) {
  make();
  Pair pair = connect();
  Recorder receiving;
  receiving.start([&](Op& op) { io().receive(op, pair.server, BufferGroup::ingress); });
  backend->settle();
  receiving.inside = true;
  io().cancel(receiving.op);
  receiving.inside = false;
  EXPECT_TRUE(receiving.op.pending());
  ASSERT_TRUE(until([&] { return receiving.ended; }));
  EXPECT_EQ(receiving.results, std::vector<int32_t>{-ECANCELED});
  io().cancel(receiving.op);  // harmless when idle
  io().close(pair.client);
  io().close(pair.server);
}

TEST_P(Conformance, ACancelledSendSaysHowMuchWasTaken) {
  make();
  Pair pair = connect();
  std::string text = pattern(32 << 20);
  size_t sent = 0;
  Recorder sending;
  iovec part;
  sending.then = [&] {
    if (sending.last() <= 0) return;
    sent += static_cast<size_t>(sending.last());
    part = {text.data() + sent, text.size() - sent};
    sending.start([&](Op& op) { io().send(op, pair.client, {&part, 1}); });
  };
  part = {text.data(), text.size()};
  sending.start([&](Op& op) { io().send(op, pair.client, {&part, 1}); });
  backend->settle();
  ASSERT_TRUE(sending.op.pending());
  sending.then = [&] {
    if (sending.last() > 0) sent += static_cast<size_t>(sending.last());
  };
  io().cancel(sending.op);
  ASSERT_TRUE(until([&] { return sending.ended; }));
  EXPECT_TRUE(sending.last() > 0 || sending.last() == -ECANCELED) << sending.last();
  io().shutdown_send(pair.client);
  Reader reader(io(), pair.server);
  ASSERT_TRUE(until([&] { return reader.over; }));
  EXPECT_EQ(reader.bytes().size(), sent);
  EXPECT_TRUE(reader.bytes() == text.substr(0, sent));
  io().close(pair.client);
  io().close(pair.server);
}

TEST_P(Conformance, CancelInsideACompletionEndsTheOther) {
  make();
  Pair pair = connect();
  Recorder at_client, at_server;
  at_client.start([&](Op& op) { io().receive(op, pair.client, BufferGroup::ingress); });
  at_server.then = [&] { io().cancel(at_client.op); };
  at_server.start([&](Op& op) { io().receive(op, pair.server, BufferGroup::ingress); });
  Writer writer(io(), pair.client, "go");
  ASSERT_TRUE(until([&] { return at_client.ended && writer.over; }));
  EXPECT_EQ(at_client.last(), -ECANCELED);
  io().cancel(at_server.op);
  ASSERT_TRUE(until([&] { return at_server.ended; }));
  io().close(pair.client);
  io().close(pair.server);
}

TEST_P(Conformance, TheOwnerMayGoInItsFinalCompletion) {
  make();
  Pair pair = connect();
  struct Owner {
    Op op;
    bool* gone;
    void on_received(Completion& completion) {
      if (completion.more) return;
      *gone = true;
      delete this;
    }
  };
  bool gone = false;
  auto* owner = new Owner{{}, &gone};
  owner->op.bind<&Owner::on_received>(owner);
  io().receive(owner->op, pair.server, BufferGroup::ingress);
  io().close(pair.client);
  ASSERT_TRUE(until([&] { return gone; }));
  io().close(pair.server);
}

// ---- buffers

TEST_P(Conformance, KeptBuffersStayAsTheyWere) {
  make();
  Pair pair = connect();
  Reader reader(io(), pair.server);
  reader.recorder.keep = true;
  Writer writer(io(), pair.client, pattern(1'000'000));
  ASSERT_TRUE(until([&] { return reader.bytes().size() == 1'000'000; }));
  Reader back(io(), pair.client);
  Writer more(io(), pair.server, pattern(2'000'000, 9));
  ASSERT_TRUE(until([&] { return back.bytes().size() == 2'000'000 && more.over; }));
  std::string kept;
  for (auto& piece : reader.recorder.kept) kept.append(piece.data, piece.size);
  EXPECT_TRUE(kept == writer.text);
  EXPECT_GE(io().buffers(BufferGroup::ingress).bytes_in_use(), 1'000'000u);
  reader.recorder.kept.clear();
  reader.stop();
  back.stop();
  ASSERT_TRUE(until([&] { return reader.recorder.ended && back.recorder.ended && writer.over; }));
  io().close(pair.client);
  io().close(pair.server);
}

TEST_P(Conformance, AReceiveWaitsInSilenceWhileThereIsNoBuffer) {
  make(uint64_t{1} << 20);
  Pair pair = connect();
  Reader reader(io(), pair.server);
  reader.recorder.keep = true;
  Writer writer(io(), pair.client, pattern(6 << 20));
  backend->settle();
  size_t before = reader.bytes().size();
  EXPECT_LT(before, writer.text.size());
  EXPECT_GT(before, 0u);
  EXPECT_LE(io().buffers(BufferGroup::ingress).bytes_in_use(), uint64_t{1} << 20);
  EXPECT_TRUE(reader.recorder.op.pending());
  backend->settle();
  EXPECT_EQ(reader.bytes().size(), before);
  // Other groups go on.
  Reader back(io(), pair.client, BufferGroup::delivery);
  Writer reply(io(), pair.server, "250 OK");
  ASSERT_TRUE(until([&] { return back.bytes() == "250 OK" && reply.over; }));
  reader.recorder.keep = false;
  reader.recorder.kept.clear();
  ASSERT_TRUE(until([&] { return writer.over && reader.bytes().size() == writer.text.size(); }));
  EXPECT_TRUE(reader.bytes() == writer.text);
  back.stop();
  reader.stop();
  ASSERT_TRUE(until([&] { return reader.recorder.ended && back.recorder.ended; }));
  io().close(pair.client);
  io().close(pair.server);
}

TEST_P(Conformance, AReceiveThatWaitsForBuffersCanBeCancelled) {
  make(uint64_t{1} << 20);
  Pair pair = connect();
  Reader reader(io(), pair.server);
  reader.recorder.keep = true;
  Writer writer(io(), pair.client, pattern(6 << 20));
  backend->settle();
  reader.stop();
  ASSERT_TRUE(until([&] { return reader.recorder.ended; }));
  writer.stop();
  ASSERT_TRUE(until([&] { return writer.recorder.ended; }));
  io().close(pair.server);
  io().close(pair.client);
}

TEST_P(Conformance, WhoeverWaitsForBuffersGetsSome) {
  make(uint64_t{1} << 20);
  constexpr size_t kConnections = 6;
  std::deque<Pair> pairs;
  std::deque<Reader> readers;
  std::deque<Writer> writers;
  for (size_t i = 0; i < kConnections; ++i) pairs.push_back(connect());
  for (Pair& pair : pairs) {
    readers.emplace_back(io(), pair.server);
    readers.back().recorder.keep = true;
  }
  for (size_t i = 0; i < kConnections; ++i) {
    writers.emplace_back(io(), pairs[i].client, pattern(2 << 20, static_cast<unsigned>(i)));
  }
  // Buffers return only when nobody gets any further, and then all at once.
  for (int round = 0; round < 1000; ++round) {
    bool all = std::all_of(readers.begin(), readers.end(),
                           [](Reader& r) { return r.bytes().size() == 2 << 20; });
    if (all) break;
    backend->settle();
    for (Reader& reader : readers) reader.recorder.kept.clear();
  }
  for (size_t i = 0; i < kConnections; ++i) EXPECT_TRUE(readers[i].bytes() == writers[i].text) << i;
  for (Reader& reader : readers) reader.stop();
  ASSERT_TRUE(until([&] {
    return std::all_of(readers.begin(), readers.end(), [](Reader& r) { return r.recorder.ended; }) &&
           std::all_of(writers.begin(), writers.end(), [](Writer& w) { return w.over; });
  }));
  for (Reader& reader : readers) reader.recorder.kept.clear();
  for (Pair& pair : pairs) {
    io().close(pair.client);
    io().close(pair.server);
  }
}

TEST_P(Conformance, PrivateBuffersCountToTheLimit) {
  make();
  BufferPool& pool = io().buffers(BufferGroup::ingress);
  uint64_t before = pool.bytes_in_use();
  BufferRef small = pool.allocate(100);
  ASSERT_TRUE(small);
  EXPECT_EQ(small->size, 4096u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(small->data) % 4096, 0u);
  EXPECT_EQ(pool.bytes_in_use(), before + 4096);
  std::vector<BufferRef> many;
  while (BufferRef more = pool.allocate(65536)) {
    many.push_back(more);
    ASSERT_LE(many.size(), 256u);
  }
  EXPECT_LE(pool.bytes_in_use(), pool.bytes_limit());
  many.clear();
  EXPECT_TRUE(pool.allocate(65536));
  small.reset();
  EXPECT_EQ(pool.bytes_in_use(), before);
}

// ---- time, turns and wakes

struct Counter {
  Counter() { timer.bind<&Counter::on_due>(this); }
  void on_due() {
    order->push_back(number);
    EXPECT_GE(io->now(), timer.deadline);
  }
  Timer timer;
  Io* io = nullptr;
  std::vector<int>* order = nullptr;
  int number = 0;
};

TEST_P(Conformance, TimersFireInOrderAndNeverEarly) {
  make();
  std::vector<int> order;
  std::deque<Counter> counters(20);
  int64_t start = io().now();
  for (int i = 0; i < 20; ++i) {
    counters[static_cast<size_t>(i)].io = &io();
    counters[static_cast<size_t>(i)].order = &order;
    counters[static_cast<size_t>(i)].number = (i * 7) % 20;
    io().timers().arm(counters[static_cast<size_t>(i)].timer,
                      start + ((i * 7) % 20 + 1) * int64_t{2'000'000});
  }
  counters[3].timer.cancel();  // number 1
  ASSERT_TRUE(until([&] { return order.size() == 19; }));
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
  EXPECT_EQ(std::count(order.begin(), order.end(), 1), 0);
}

TEST_P(Conformance, TheClockStandsStillWithinATurn) {
  make();
  struct Looker {
    Timer timer;
    Deferred last;
    Io* io;
    int64_t at_timer = 0, at_end = 0;
    void on_due() {
      at_timer = io->now();
      io->defer(last);
    }
    void on_end() { at_end = io->now(); }
  } looker{{}, {}, &io()};
  looker.timer.bind<&Looker::on_due>(&looker);
  looker.last.bind<&Looker::on_end>(&looker);
  io().timers().arm(looker.timer, io().now() + 1'000'000);
  ASSERT_TRUE(until([&] { return looker.at_end != 0; }));
  EXPECT_EQ(looker.at_timer, looker.at_end);
}

TEST_P(Conformance, DeferredCallsComeLastInTheTurnThatAskedForThem) {
  make();
  struct Caller {
    Timer timer[2];
    Deferred deferred, second;
    Io* io;
    std::vector<std::string> order;
    void on_due() {
      order.push_back("timer");
      io->defer(deferred);
      io->defer(deferred);
    }
    void on_deferred() {
      order.push_back("deferred");
      io->defer(second);
    }
    void on_second() { order.push_back("second"); }
  } caller{{}, {}, {}, &io(), {}};
  for (Timer& timer : caller.timer) timer.bind<&Caller::on_due>(&caller);
  caller.deferred.bind<&Caller::on_deferred>(&caller);
  caller.second.bind<&Caller::on_second>(&caller);
  int64_t deadline = io().now() + 3'000'000;
  for (Timer& timer : caller.timer) io().timers().arm(timer, deadline);
  ASSERT_TRUE(until([&] { return caller.order.size() >= 4; }));
  EXPECT_EQ(caller.order, (std::vector<std::string>{"timer", "timer", "deferred", "second"}));
}

TEST_P(Conformance, ADeferredCallFromOutsideIsNotKeptWaiting) {
  make();
  struct Caller {
    Deferred deferred;
    bool called = false;
    void on_deferred() { called = true; }
  } caller;
  caller.deferred.bind<&Caller::on_deferred>(&caller);
  io().defer(caller.deferred);
  EXPECT_FALSE(caller.called);
  int64_t before = io().now();
  io().turn(int64_t{3600} * 1'000'000'000);
  EXPECT_TRUE(caller.called);
  EXPECT_LT(io().now() - before, int64_t{60} * 1'000'000'000);
}

TEST_P(Conformance, AWakeFromAnotherThreadEndsTheWait) {
  make();
  int woken = 0;
  io().on_wake = [&] { ++woken; };
  Io& target = io();
  std::thread waker([&target] { target.wake(); });
  waker.join();
  target.turn(int64_t{3600} * 1'000'000'000);
  EXPECT_GE(woken, 1);
}

TEST_P(Conformance, AWakeFromAnotherShardIsSeen) {
  make();
  int woken = 0;
  io().on_wake = [&] { ++woken; };
  struct Waker {
    Timer timer;
    Io* target;
    void on_due() { target->wake(); }
  } waker{{}, &io()};
  waker.timer.bind<&Waker::on_due>(&waker);
  backend->other().timers().arm(waker.timer, backend->other().now() + 2'000'000);
  EXPECT_TRUE(until([&] { return woken > 0; }));
}

// ---- files

TEST_P(Conformance, WhatIsWrittenIsReadBack) {
  make();
  std::string path = backend->directory() + "/log";
  FileOptions options;
  options.create = options.write = true;
  for (bool direct : {false, true}) {
    options.direct = direct;
    Handle file = io().open_file(path, options).value();
    Alignment alignment = io().alignment(file);
    EXPECT_LE(alignment.offset, 4096u);
    EXPECT_LE(alignment.memory, 4096u);
    if (!direct) {
      EXPECT_FALSE(alignment.direct);
    }
    Aligned out(65536), in(65536);
    std::string text = pattern(65536);
    std::memcpy(out.data, text.data(), text.size());
    std::memset(in.data, 0, in.size);
    Mover writing(io(), file, {{out.data, 4096}, {out.data + 4096, 61440}}, 8192, true, true);
    ASSERT_TRUE(until([&] { return writing.over; }));
    EXPECT_EQ(writing.error, 0);
    EXPECT_EQ(io().file_size(file).value(), 8192u + 65536u);
    Mover reading(io(), file, {{in.data, 32768}, {in.data + 32768, 32768}}, 8192, false);
    ASSERT_TRUE(until([&] { return reading.over; }));
    EXPECT_EQ(reading.moved, 65536u);
    EXPECT_EQ(std::memcmp(in.data, out.data, 65536), 0);
    Recorder syncing;
    syncing.start([&](Op& op) { io().sync(op, file); });
    ASSERT_TRUE(until([&] { return syncing.ended; }));
    EXPECT_EQ(syncing.last(), 0);
    io().close(file);
    ASSERT_TRUE(io().remove_file(path).ok());
  }
}

TEST_P(Conformance, ReadingPastTheEndGivesWhatThereIs) {
  make();
  FileOptions options;
  options.create = options.write = true;
  Handle file = io().open_file(backend->directory() + "/short", options).value();
  std::string text = "twelve bytes";
  Mover writing(io(), file, {{text.data(), text.size()}}, 0, true);
  ASSERT_TRUE(until([&] { return writing.over; }));
  std::string in(100, '\0');
  Mover reading(io(), file, {{in.data(), in.size()}}, 4, false);
  ASSERT_TRUE(until([&] { return reading.over; }));
  EXPECT_EQ(reading.moved, 8u);
  EXPECT_EQ(reading.error, 0);
  EXPECT_EQ(in.substr(0, 8), "ve bytes");
  io().close(file);
}

TEST_P(Conformance, AllocatedSpaceReadsAsZeros) {
  make();
  FileOptions options;
  options.create = options.write = true;
  Handle file = io().open_file(backend->directory() + "/segment", options).value();
  ASSERT_TRUE(io().allocate(file, 100'000).ok());
  EXPECT_EQ(io().file_size(file).value(), 100'000u);
  std::string in(1000, 'x');
  Mover reading(io(), file, {{in.data(), in.size()}}, 99'000, false);
  ASSERT_TRUE(until([&] { return reading.over; }));
  EXPECT_EQ(reading.moved, 1000u);
  EXPECT_EQ(in, std::string(1000, '\0'));
  ASSERT_TRUE(io().allocate(file, 50'000).ok());  // never shrinks
  EXPECT_EQ(io().file_size(file).value(), 100'000u);
  io().close(file);
}

TEST_P(Conformance, CreatingAFileThatExistsFails) {
  make();
  std::string path = backend->directory() + "/once";
  FileOptions create;
  create.create = create.write = true;
  io().close(io().open_file(path, create).value());
  EXPECT_EQ(io().open_file(path, create).error().number, EEXIST);
  EXPECT_EQ(io().open_file(path + "-not", {}).error().number, ENOENT);
}

TEST_P(Conformance, DirectoriesListWhatTheyHold) {
  make();
  std::string directory = backend->directory() + "/spool";
  ASSERT_TRUE(io().make_directory(directory).ok());
  ASSERT_TRUE(io().make_directory(directory).ok());
  ASSERT_TRUE(io().make_directory(directory + "/inner").ok());
  EXPECT_FALSE(io().make_directory(directory + "/missing/inner").ok());
  FileOptions create;
  create.create = create.write = true;
  for (const char* name : {"/b", "/a", "/inner/c"}) {
    io().close(io().open_file(directory + name, create).value());
  }
  EXPECT_EQ(io().list_directory(directory).value(), (std::vector<std::string>{"a", "b", "inner"}));
  ASSERT_TRUE(io().rename_file(directory + "/a", directory + "/z").ok());
  ASSERT_TRUE(io().remove_file(directory + "/b").ok());
  ASSERT_TRUE(io().sync_directory(directory).ok());
  const Handle opened = io().open_file(directory, {}).value();
  Recorder syncing;
  syncing.start([&](Op& op) { io().sync_names(op, opened); });
  ASSERT_TRUE(until([&] { return syncing.ended; }));
  EXPECT_EQ(syncing.last(), 0);
  io().close(opened);
  EXPECT_EQ(io().list_directory(directory).value(), (std::vector<std::string>{"inner", "z"}));
  EXPECT_EQ(io().remove_file(directory + "/b").error().number, ENOENT);
  EXPECT_EQ(io().rename_file(directory + "/b", directory + "/c").error().number, ENOENT);
  EXPECT_EQ(io().list_directory(directory + "/no").error().number, ENOENT);
  EXPECT_GT(io().free_space(directory).value(), 0u);
}

TEST_P(Conformance, AnOpenFileOutlivesItsName) {
  make();
  std::string path = backend->directory() + "/gone";
  FileOptions options;
  options.create = options.write = true;
  Handle file = io().open_file(path, options).value();
  ASSERT_TRUE(io().remove_file(path).ok());
  std::string out = "still here", in(10, '\0');
  Mover writing(io(), file, {{out.data(), out.size()}}, 0, true);
  ASSERT_TRUE(until([&] { return writing.over; }));
  Mover reading(io(), file, {{in.data(), in.size()}}, 0, false);
  ASSERT_TRUE(until([&] { return reading.over; }));
  EXPECT_EQ(in, out);
  io().close(file);
}

TEST_P(Conformance, ALockIsHeldAgainstTheNext) {
  make();
  std::string path = backend->directory() + "/lock";
  EXPECT_TRUE(io().lock_file(path).ok());
  EXPECT_FALSE(io().lock_file(path).ok());
}

TEST_P(Conformance, FileOperationsDoNotCompleteInsideTheirCall) {
  make();
  FileOptions options;
  options.create = options.write = true;
  Handle file = io().open_file(backend->directory() + "/f", options).value();
  std::deque<Recorder> many(32);
  std::string text = pattern(4096);
  std::deque<iovec> parts;
  for (size_t i = 0; i < many.size(); ++i) {
    parts.push_back({text.data(), text.size()});
    many[i].start([&](Op& op) { io().write(op, file, {&parts.back(), 1}, i * 4096, i % 2 == 0); });
  }
  ASSERT_TRUE(until([&] {
    return std::all_of(many.begin(), many.end(), [](Recorder& r) { return r.ended; });
  }));
  for (Recorder& one : many) EXPECT_GT(one.last(), 0);
  io().close(file);
}

}  // namespace millrace::reactor::conformance
