// Streams and listeners over the simulator, each test with several seeds: what is sent arrives, what is
// paused waits, and whatever is going on, a close ends in exactly one on_closed. Once in the clear, and
// once with TLS between the owner and the socket: the contract is the same.
#include <gtest/gtest.h>
#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../tls/certificates.h"
#include "net/listener.h"
#include "net/stream.h"
#include "reactor/sim.h"

namespace millrace::net {
namespace {

using reactor::Address;
using reactor::BufferGroup;
using reactor::BufferRef;
using reactor::Handle;
using reactor::HostId;
using reactor::Io;
using reactor::SimWorld;

constexpr int64_t kSecond = 1'000'000'000;

std::string pattern(size_t size, unsigned salt = 0) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>((i * 7 + i / 251 + salt) % 253);
  return text;
}

// An owner that notes what happens, and checks that nothing happens inside a call to the stream.
struct Peer final : StreamOwner {
  explicit Peer(Io& io) : stream(io, *this) {}
  void on_data(char* data, size_t size, BufferRef buffer) override {
    called();
    EXPECT_TRUE(buffer);
    received.append(data, size);
    if (data_hook) data_hook();
  }
  void on_secure() override {
    called();
    ++secured;
  }
  void on_sent() override {
    called();
    EXPECT_FALSE(stream.sending());
    EXPECT_EQ(stream.unsent(), 0u);
    ++sent;
    if (sent_hook) sent_hook();
  }
  void on_end(int error) override {
    called();
    ends.push_back(error);
    if (end_hook) end_hook();
  }
  void on_closed() override {
    called();
    ++closed;
    EXPECT_EQ(stream.handle(), reactor::kNoHandle);
    if (closed_hook) closed_hook();
  }
  void called() {
    EXPECT_FALSE(inside);
    EXPECT_EQ(closed, 0) << "a call after on_closed";
  }
  template <typename Call>
  void call(Call function) {
    bool before = std::exchange(inside, true);
    function();
    inside = before;
  }
  void start(Handle handle) {
    call([&] { stream.start(handle, BufferGroup::ingress); });
  }
  void send(std::string text) {
    call([&] {
      texts.push_back(std::move(text));
      iovec part{texts.back().data(), texts.back().size()};
      stream.send({&part, 1});
    });
  }
  void close(bool reset = false) {
    call([&] { stream.close(reset); });
  }
  bool ended_with(int error) const { return !ends.empty() && ends.back() == error; }

  Stream stream;
  std::deque<std::string> texts;
  std::string received;
  std::vector<int> ends;
  int sent = 0, closed = 0, secured = 0;
  bool inside = false;
  std::function<void()> data_hook, sent_hook, end_hook, closed_hook;
};

struct Accepting final : ListenerOwner {
  explicit Accepting(Io& io) : listener(io, *this) {}
  void on_accepted(Handle handle) override {
    EXPECT_FALSE(inside);
    EXPECT_EQ(closed, 0);
    handles.push_back(handle);
    if (accepted_hook) accepted_hook();
  }
  void on_accept_error(int error) override { errors.push_back(error); }
  void on_listener_closed() override {
    EXPECT_FALSE(inside);
    ++closed;
  }
  Status open(uint16_t port = 25) {
    reactor::ListenOptions options;
    options.address = Address::ipv4(INADDR_ANY, port);
    inside = true;
    Status status = listener.open(options);
    inside = false;
    return status;
  }
  void close() {
    inside = true;
    listener.close();
    inside = false;
  }
  Listener listener;
  std::vector<Handle> handles;
  std::vector<int> errors;
  int closed = 0;
  bool inside = false;
  std::function<void()> accepted_hook;
};

struct Connecting {
  Connecting(Io& on, const Address& to) : io(on), socket(*on.open_socket(to, {})) {
    op.bind<&Connecting::on_connected>(this);
    io.connect(op, socket, to);
  }
  void on_connected(reactor::Completion& completion) {
    result = completion.result;
    over = true;
  }
  Io& io;
  Handle socket;
  reactor::Op op;
  int32_t result = 0;
  bool over = false;
};

bool all_over(const std::deque<Connecting>& connecting) {
  return std::all_of(connecting.begin(), connecting.end(), [](auto& one) { return one.over; });
}

// Of a parameter: the rest is the seed.
constexpr uint64_t kWithTls = uint64_t{1} << 63;

std::unique_ptr<tls::Engine> server_engine() {
  static std::shared_ptr<tls::ServerContext> context = [] {
    tls::test::Certificates made;
    tls::ServerSettings settings;
    settings.certificates.push_back(*tls::read_certificate(made.make("server")));
    return *tls::ServerContext::make(settings);
  }();
  return tls::Engine::accept(context);
}
std::unique_ptr<tls::Engine> client_engine() {
  static std::shared_ptr<tls::ClientContext> context = *tls::ClientContext::make({});
  return tls::Engine::connect(context, {.session_key = "peer"});
}

class NetTest : public ::testing::TestWithParam<uint64_t> {
 protected:
  NetTest()
      : world(GetParam() & ~kWithTls),
        here(world.add_host({"192.0.2.1"})),
        there(world.add_host({"192.0.2.2"})),
        io(world.make_io(here)),
        far(world.make_io(there)) {}
  ~NetTest() override {
    EXPECT_EQ(world.open_handles(here), 0u);
    EXPECT_EQ(world.open_handles(there), 0u);
  }
  template <typename Done>
  ::testing::AssertionResult until(Done done, int64_t limit = 3600 * kSecond) {
    if (world.run_until(done, world.now() + limit)) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "seed " << GetParam() << ": nothing happens any more";
  }
  Address address(uint16_t port = 25) { return *Address::parse_host("192.0.2.2", port); }
  // `near` on this host, `peer` on the other one.
  void connect(Peer& near, Peer& peer) {
    Accepting accepting(*far);
    ASSERT_TRUE(accepting.open().ok());
    Connecting connecting(*io, address());
    ASSERT_TRUE(until([&] { return connecting.over && !accepting.handles.empty(); }));
    ASSERT_EQ(connecting.result, 0);
    accepting.close();
    ASSERT_TRUE(until([&] { return accepting.closed == 1; }));
    near.start(connecting.socket);
    peer.start(accepting.handles[0]);
    if (with_tls()) secure(near, peer);
  }
  bool with_tls() const { return GetParam() & kWithTls; }
  void secure(Peer& near, Peer& peer) {
    near.secured = peer.secured = 0;
    const bool paused = peer.stream.paused();
    peer.call([&] { peer.stream.resume(); });
    peer.call([&] { peer.stream.start_tls(server_engine()); });
    near.call([&] { near.stream.start_tls(client_engine()); });
    ASSERT_TRUE(until([&] { return near.secured == 1 && peer.secured == 1; }));
    if (paused) peer.call([&] { peer.stream.pause(); });
  }
  void close(Peer& near, Peer& peer) {
    near.close();
    peer.close();
    ASSERT_TRUE(until([&] { return near.closed == 1 && peer.closed == 1; }));
  }

  SimWorld world;
  HostId here, there;
  std::unique_ptr<Io> io, far;
};

// ---- streams

TEST_P(NetTest, WhatIsSentArrivesWhole) {
  world.faults().short_send = 0.5;
  Peer near(*io), peer(*far);
  connect(near, peer);
  std::string expected;
  for (int i = 0; i < 20; ++i) {
    expected += pattern(static_cast<size_t>(i) * 5000, static_cast<unsigned>(i));
    near.send(pattern(static_cast<size_t>(i) * 5000, static_cast<unsigned>(i)));
    EXPECT_TRUE(near.stream.sending());
    ASSERT_TRUE(until([&] { return near.sent == i + 1; }));
  }
  ASSERT_TRUE(until([&] { return peer.received.size() == expected.size(); }));
  EXPECT_TRUE(peer.received == expected);
  close(near, peer);
}

TEST_P(NetTest, AnyNumberOfPartsIsSentInOrder) {
  world.faults().short_send = 0.3;
  Peer near(*io), peer(*far);
  connect(near, peer);
  std::string text = pattern(60'000);
  std::string expected;
  for (size_t count : {size_t{1}, size_t{16}, size_t{17}, size_t{3000}, size_t{5}}) {
    {
      std::vector<iovec> parts;  // gone before the send has ended
      for (size_t i = 0; i < count; ++i) {
        size_t length = i % 7 == 3 ? 0 : 1 + i % 19;
        parts.push_back({text.data() + i * 20, length});
        expected.append(text, i * 20, length);
      }
      near.call([&] { near.stream.send(parts); });
    }
    ASSERT_TRUE(until([&] { return !near.stream.sending(); }));
  }
  ASSERT_TRUE(until([&] { return peer.received.size() == expected.size(); }));
  EXPECT_EQ(peer.received, expected);
  close(near, peer);
}

TEST_P(NetTest, AnEmptySendIsSentToo) {
  Peer near(*io), peer(*far);
  connect(near, peer);
  near.call([&] { near.stream.send({}); });
  EXPECT_TRUE(near.stream.sending());
  ASSERT_TRUE(until([&] { return near.sent == 1; }));
  near.send("");
  near.close();
  ASSERT_TRUE(until([&] { return near.closed == 1; }));
  EXPECT_EQ(near.sent, 1);
  peer.close();
  ASSERT_TRUE(until([&] { return peer.closed == 1; }));
}

TEST_P(NetTest, TheNextSendMayStartInOnSent) {
  Peer near(*io), peer(*far);
  connect(near, peer);
  near.sent_hook = [&] {
    if (near.sent < 50) near.send(std::to_string(near.sent) + ";");
  };
  near.send("0;");
  std::string expected;
  for (int i = 0; i < 50; ++i) expected += std::to_string(i) + ";";
  ASSERT_TRUE(until([&] { return peer.received == expected; }));
  close(near, peer);
}

TEST_P(NetTest, APausedStreamReceivesNothingAndLosesNothing) {
  Peer near(*io), peer(*far);
  connect(near, peer);
  near.send(pattern(2 << 20));
  ASSERT_TRUE(until([&] { return peer.received.size() > 10'000; }));
  peer.call([&] { peer.stream.pause(); });
  world.run_for(kSecond);  // what was under way has come
  size_t before = peer.received.size();
  world.run_for(10 * kSecond);
  EXPECT_EQ(peer.received.size(), before);
  EXPECT_LT(before, size_t{2} << 20);
  EXPECT_TRUE(near.stream.sending()) << "the sender is held back";
  peer.call([&] { peer.stream.resume(); });
  ASSERT_TRUE(until([&] { return near.sent == 1 && peer.received.size() == 2 << 20; }));
  EXPECT_TRUE(peer.received == near.texts[0]);
  close(near, peer);
}

TEST_P(NetTest, PausingAndResumingAtOnceKeepsReceiving) {
  Peer near(*io), peer(*far);
  connect(near, peer);
  peer.data_hook = [&] {
    peer.call([&] {
      peer.stream.pause();
      if (world.chance().chance(0.5)) peer.stream.resume();
    });
  };
  near.send(pattern(300'000));
  for (int i = 0; i < 10'000 && peer.received.size() < 300'000; ++i) {
    world.run_for(static_cast<int64_t>(world.chance().below(3'000'000)));
    peer.call([&] { peer.stream.resume(); });
  }
  EXPECT_TRUE(peer.received == near.texts[0]);
  close(near, peer);
}

TEST_P(NetTest, AStreamPausedBeforeItsStartWaits) {
  Peer near(*io), peer(*far);
  peer.stream.pause();
  connect(near, peer);
  near.send("early");
  world.run_for(10 * kSecond);
  EXPECT_EQ(peer.received, "");
  peer.stream.resume();
  ASSERT_TRUE(until([&] { return peer.received == "early"; }));
  close(near, peer);
}

TEST_P(NetTest, ThePeersEndLeavesOurSideOpen) {
  Peer near(*io), peer(*far);
  connect(near, peer);
  near.send(pattern(100'000));
  near.call([&] { near.stream.shutdown_send(); });
  ASSERT_TRUE(until([&] { return peer.ended_with(0); }));
  EXPECT_EQ(peer.received.size(), 100'000u) << "the shutdown waits for the send";
  peer.send(pattern(100'000, 3));
  ASSERT_TRUE(until([&] { return near.received.size() == 100'000; }));
  peer.close();
  ASSERT_TRUE(until([&] { return near.ended_with(0); }));
  EXPECT_EQ(near.ends.size(), 1u);
  EXPECT_EQ(peer.ends.size(), 1u);
  near.close();
  ASSERT_TRUE(until([&] { return near.closed == 1 && peer.closed == 1; }));
}

TEST_P(NetTest, AResetEndsBothDirectionsOnce) {
  Peer near(*io), peer(*far);
  connect(near, peer);
  near.stream.pause();  // so that it is the send that finds out
  peer.stream.pause();
  near.send(pattern(4 << 20));
  world.run_for(kSecond);
  peer.close(true);
  ASSERT_TRUE(until([&] { return !near.ends.empty(); }));
  EXPECT_TRUE(near.ends[0] == ECONNRESET || near.ends[0] == EPIPE) << near.ends[0];
  EXPECT_FALSE(near.stream.sending());
  near.stream.resume();
  near.send("dropped");
  world.run_for(10 * kSecond);
  EXPECT_EQ(near.ends.size(), 1u);
  EXPECT_EQ(near.sent, 0);
  near.close();
  ASSERT_TRUE(until([&] { return near.closed == 1 && peer.closed == 1; }));
}

TEST_P(NetTest, TheLastWordsOfAPeerAreReadThoughOurSendFailed) {
  Peer near(*io), peer(*far);
  connect(near, peer);
  // The peer says why and goes, without reading what we are still sending.
  peer.stream.pause();
  near.send(pattern(4 << 20));
  world.run_for(kSecond);
  std::vector<std::string> happened;
  near.data_hook = [&] { happened.push_back("data"); };
  near.end_hook = [&] { happened.push_back("end"); };
  peer.send("421 too many\r\n");
  ASSERT_TRUE(until([&] { return peer.sent == 1; }));
  peer.close();
  ASSERT_TRUE(until([&] { return !near.ends.empty() && near.ends.back() != 0; }));
  // The bytes may be lost with the connection, but if they came they came before its end.
  EXPECT_EQ(happened.back(), "end");
  near.close();
  ASSERT_TRUE(until([&] { return near.closed == 1 && peer.closed == 1; }));
}

// Whatever comes first: with TLS the last words bring the engine to speak, and nothing of it can leave any more.
TEST_P(NetTest, TheLastWordsOfAPeerMayComeBeforeOrAfterTheErrorOfOurSend) {
  for (int64_t gap_us : {0, 20, 100, 500, 2'000, 10'000}) {
    Peer near(*io), peer(*far);
    connect(near, peer);
    peer.stream.pause();
    near.send(pattern(4 << 20));
    world.run_for(kSecond);
    peer.send(pattern(60'000));
    world.run_for(gap_us * 1'000);
    peer.close();
    ASSERT_TRUE(until([&] { return !near.ends.empty() && near.ends.back() != 0; }));
    EXPECT_EQ(near.sent, 0);
    near.close();
    ASSERT_TRUE(until([&] { return near.closed == 1 && peer.closed == 1; }));
  }
}

TEST_P(NetTest, ASilentPeerIsFoundOutOnlyByTheSender) {
  Peer near(*io), peer(*far);
  connect(near, peer);
  world.run_for(kSecond);  // with TLS: until the session ticket has come
  world.faults().silence = 1;
  near.send("anybody there?");
  world.run_for(600 * kSecond);
  EXPECT_TRUE(near.ends.empty());
  ASSERT_TRUE(until([&] { return !near.ends.empty(); }));
  EXPECT_EQ(near.ends, std::vector<int>{ETIMEDOUT});
  EXPECT_TRUE(peer.ends.empty());
  close(near, peer);
}

TEST_P(NetTest, ACloseEndsWhateverIsGoingOn) {
  for (int round = 0; round < 40; ++round) {
    Peer near(*io), peer(*far);
    connect(near, peer);
    near.send(pattern(300'000));
    peer.send(pattern(300'000, 1));
    if (world.chance().chance(0.3)) peer.stream.pause();
    if (world.chance().chance(0.3)) near.stream.pause();
    world.run_for(static_cast<int64_t>(world.chance().below(5'000'000)));
    bool reset = world.chance().chance(0.5);
    near.close(reset);
    EXPECT_TRUE(near.stream.closing());
    near.close(false);
    EXPECT_EQ(near.closed, 0);
    world.run_for(static_cast<int64_t>(world.chance().below(5'000'000)));
    peer.close();
    ASSERT_TRUE(until([&] { return near.closed == 1 && peer.closed == 1; }));
    world.run_for(kSecond);
    EXPECT_EQ(near.closed, 1);
  }
}

TEST_P(NetTest, AStreamMayBeClosedFromEveryCall) {
  for (int from = 0; from < 3; ++from) {
    Peer near(*io), peer(*far);
    connect(near, peer);
    auto shut = [&] {
      if (!near.stream.closing()) near.close();
    };
    if (from == 0) near.data_hook = shut;
    if (from == 1) near.sent_hook = shut;
    near.end_hook = shut;  // in the other cases only if a reset took the data away
    near.send("to you");
    peer.send("to me");
    ASSERT_TRUE(until([&] { return !peer.stream.sending(); }));
    peer.close();
    ASSERT_TRUE(until([&] { return near.closed == 1 && peer.closed == 1; })) << from;
  }
}

TEST_P(NetTest, TheOwnerMayGoInOnClosed) {
  auto near = std::make_unique<Peer>(*io);
  Peer peer(*far);
  connect(*near, peer);
  near->send(pattern(1 << 20));
  near->closed_hook = [&] { near.reset(); };
  world.run_for(300'000);
  near->close();
  ASSERT_TRUE(until([&] { return near == nullptr; }));
  peer.close();
  ASSERT_TRUE(until([&] { return peer.closed == 1; }));
}

TEST_P(NetTest, AClosedStreamMayBeStartedAgain) {
  Peer near(*io), peer(*far);
  for (int i = 0; i < 3; ++i) {
    near.closed = peer.closed = 0;
    near.received.clear();
    connect(near, peer);
    peer.send("again");
    ASSERT_TRUE(until([&] { return near.received == "again"; }));
    close(near, peer);
  }
}

TEST_P(NetTest, CrashedHostsLeaveTheirPeersAReset) {
  auto near = std::make_unique<Peer>(*io);
  Peer peer(*far);
  connect(*near, peer);
  near->send(pattern(1 << 20));
  world.run_for(200'000);
  world.crash(here, reactor::Crash::process);
  near.reset();
  ASSERT_TRUE(until([&] { return !peer.ends.empty(); }));
  peer.close();
  ASSERT_TRUE(until([&] { return peer.closed == 1; }));
}

// ---- listeners

TEST_P(NetTest, AListenerAcceptsUntilItIsClosed) {
  Accepting accepting(*far);
  ASSERT_TRUE(accepting.open(2525).ok());
  EXPECT_EQ(accepting.listener.address().port(), 2525);
  std::deque<Connecting> connecting;
  for (int i = 0; i < 100; ++i) connecting.emplace_back(*io, address(2525));
  ASSERT_TRUE(until([&] { return accepting.handles.size() == 100; }));
  accepting.close();
  ASSERT_TRUE(until([&] { return accepting.closed == 1; }));
  EXPECT_FALSE(accepting.listener.is_open());
  Connecting late(*io, address(2525));
  ASSERT_TRUE(until([&] { return late.over; }));
  EXPECT_EQ(late.result, -ECONNREFUSED);
  for (Handle handle : accepting.handles) far->close(handle);
  ASSERT_TRUE(until([&] { return all_over(connecting); }));
  for (auto& one : connecting) io->close(one.socket);
  io->close(late.socket);
}

TEST_P(NetTest, APausedListenerLeavesConnectionsInTheBacklog) {
  Accepting accepting(*far);
  ASSERT_TRUE(accepting.open().ok());
  accepting.listener.pause();
  world.run_for(kSecond);
  std::deque<Connecting> connecting;
  for (int i = 0; i < 5; ++i) connecting.emplace_back(*io, address());
  world.run_for(10 * kSecond);
  EXPECT_TRUE(accepting.handles.empty());
  for (auto& one : connecting) EXPECT_TRUE(one.over && one.result == 0);
  accepting.listener.resume();
  accepting.listener.pause();
  accepting.listener.resume();
  ASSERT_TRUE(until([&] { return accepting.handles.size() == 5; }));
  accepting.close();
  ASSERT_TRUE(until([&] { return accepting.closed == 1 && all_over(connecting); }));
  for (Handle handle : accepting.handles) far->close(handle);
  for (auto& one : connecting) io->close(one.socket);
}

TEST_P(NetTest, AListenerRestsWhileThereAreNoDescriptors) {
  Accepting accepting(*far);
  ASSERT_TRUE(accepting.open().ok());
  world.faults().handles_max = 4;  // per Io
  std::deque<Connecting> connecting;
  for (int i = 0; i < 4; ++i) connecting.emplace_back(*io, address());
  ASSERT_TRUE(until([&] { return !accepting.errors.empty(); }));
  EXPECT_EQ(accepting.errors[0], EMFILE);
  EXPECT_EQ(accepting.handles.size(), 3u);
  size_t before = accepting.errors.size();
  world.run_for(10 * Listener::kRestNs);
  EXPECT_LE(accepting.errors.size(), before + 10) << "it spins";
  EXPECT_GT(accepting.errors.size(), before);
  far->close(accepting.handles[0]);
  ASSERT_TRUE(until([&] { return accepting.handles.size() == 4; }));
  accepting.close();
  ASSERT_TRUE(until([&] { return accepting.closed == 1 && all_over(connecting); }));
  for (size_t i = 1; i < 4; ++i) far->close(accepting.handles[i]);
  for (auto& one : connecting) io->close(one.socket);
}

TEST_P(NetTest, AbortedConnectionsDoNotStopAListener) {
  world.faults().accept_aborted = 0.5;
  Accepting accepting(*far);
  ASSERT_TRUE(accepting.open().ok());
  std::deque<Connecting> connecting;
  for (int i = 0; i < 50; ++i) connecting.emplace_back(*io, address());
  ASSERT_TRUE(until([&] { return all_over(connecting); }));
  world.run_for(kSecond);
  world.faults().accept_aborted = 0;
  size_t before = accepting.handles.size();
  connecting.emplace_back(*io, address());
  ASSERT_TRUE(until([&] { return accepting.handles.size() == before + 1; }));
  EXPECT_TRUE(accepting.errors.empty());
  accepting.close();
  ASSERT_TRUE(until([&] { return accepting.closed == 1 && all_over(connecting); }));
  for (Handle handle : accepting.handles) far->close(handle);
  for (auto& one : connecting) io->close(one.socket);
}

TEST_P(NetTest, AListenerThatGetsNothingButAbortedConnectionsRests) {
  world.set_single_fault(reactor::SingleFault{there, reactor::Call::accept, 1, ECONNABORTED, true});
  Accepting accepting(*far);
  ASSERT_TRUE(accepting.open().ok());
  world.run_for(10 * Listener::kRestNs);
  EXPECT_LE(world.single_faults(), 11u * Listener::kEndsInARow) << "it spins";
  world.set_single_fault(std::nullopt);
  std::deque<Connecting> connecting;
  connecting.emplace_back(*io, address());
  ASSERT_TRUE(until([&] { return accepting.handles.size() == 1; }));
  accepting.close();
  ASSERT_TRUE(until([&] { return accepting.closed == 1 && all_over(connecting); }));
  far->close(accepting.handles[0]);
  io->close(connecting[0].socket);
}

TEST_P(NetTest, AListenerMayBeClosedWhileConnectionsArrive) {
  Accepting accepting(*far);
  accepting.accepted_hook = [&] {
    if (accepting.handles.size() == 2) accepting.listener.close();
  };
  ASSERT_TRUE(accepting.open().ok());
  std::deque<Connecting> connecting;
  for (int i = 0; i < 30; ++i) connecting.emplace_back(*io, address());
  ASSERT_TRUE(until([&] { return accepting.closed == 1; }));
  EXPECT_EQ(accepting.handles.size(), 2u);
  world.run_for(kSecond);
  EXPECT_EQ(world.open_handles(there), 2u) << "those that came too late are closed";
  for (Handle handle : accepting.handles) far->close(handle);
  for (auto& one : connecting) {
    ASSERT_TRUE(until([&] { return one.over; }));
    io->close(one.socket);
  }
}

TEST_P(NetTest, AListenerSaysWhyItCannotOpen) {
  Accepting first(*far), second(*far);
  ASSERT_TRUE(first.open().ok());
  Status status = second.open();
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().number, EADDRINUSE);
  EXPECT_NE(status.error().text.find("0.0.0.0:25"), std::string::npos) << status.error().text;
  first.close();
  ASSERT_TRUE(until([&] { return first.closed == 1; }));
}

INSTANTIATE_TEST_SUITE_P(Seeds, NetTest, ::testing::Range<uint64_t>(1, 9));
INSTANTIATE_TEST_SUITE_P(TlsSeeds, NetTest, ::testing::Range<uint64_t>(kWithTls + 1, kWithTls + 9));

}  // namespace
}  // namespace millrace::net
