// What only the io_uring back end promises, on real sockets and files of this machine: features and
// their fallbacks, buffers at their limit, descriptors running out, waking across threads. The
// rules that both back ends keep are in conformance.h.
#include "reactor/uring.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "reactor/uring_setup.h"

namespace millrace::reactor {
namespace {

constexpr int64_t kMillisecond = 1'000'000;

struct Directory {
  Directory() {
    char name[] = "/tmp/millrace-uring-XXXXXX";
    path = mkdtemp(name);
  }
  ~Directory() { std::filesystem::remove_all(path); }
  std::string operator/(const char* name) const { return path + "/" + name; }
  std::string path;
};

// Turns until `done`, or gives up.
template <typename Done>
::testing::AssertionResult turn_until(Io& io, Done done) {
  for (int turn = 0; turn < 3000; ++turn) {
    if (done()) return ::testing::AssertionSuccess();
    io.turn(10 * kMillisecond);
  }
  return ::testing::AssertionFailure() << "nothing happens any more";
}

// An Op with a record of what it delivered.
struct Recorder {
  Recorder() { op.bind<&Recorder::on_complete>(this); }
  void on_complete(Completion& completion) {
    results.push_back(completion.result);
    if (completion.result > 0 && completion.data) {
      bytes.append(completion.data, static_cast<size_t>(completion.result));
      if (keep) kept.push_back(completion.buffer);
    }
    ended = !completion.more;
  }
  bool delivered(int32_t result) const {
    return std::find(results.begin(), results.end(), result) != results.end();
  }
  Op op;
  std::vector<int32_t> results;
  std::string bytes;
  std::vector<BufferRef> kept;
  bool keep = false;
  bool ended = false;
};

class UringTest : public ::testing::TestWithParam<const char*> {
 protected:
  UringTest() {
    options.features = parse_features(GetParam()).value();
    options.submission_entries = 64;
    options.completion_entries = 256;
  }
  void make() {
    auto made = make_uring(options);
    ASSERT_TRUE(made.ok()) << made.error().text;
    io = std::move(made).value();
  }
  Address listen_on_loopback() {
    ListenOptions listen;
    listen.address = Address::ipv4(INADDR_LOOPBACK, 0);
    auto opened = io->listen(listen);
    EXPECT_TRUE(opened.ok());
    listener = *opened;
    return io->local_address(listener).value();
  }
  // A connected pair: ours, accepted.
  std::pair<Handle, Handle> pair() {
    Address address = listen_on_loopback();
    Recorder accepting, connecting;
    Handle client = io->open_socket(address, {}).value();
    io->accept(accepting.op, listener);
    io->connect(connecting.op, client, address);
    EXPECT_TRUE(turn_until(*io, [&] { return connecting.ended && !accepting.results.empty(); }));
    EXPECT_EQ(connecting.results[0], 0);
    io->cancel(accepting.op);
    EXPECT_TRUE(turn_until(*io, [&] { return accepting.ended; }));
    EXPECT_EQ(accepting.results.back(), -ECANCELED);
    io->close(listener);
    return {client, accepting.results[0]};
  }
  void send_all(Handle socket, std::string_view text) {
    while (!text.empty()) {
      Recorder sending;
      iovec part{const_cast<char*>(text.data()), text.size()};
      io->send(sending.op, socket, {&part, 1});
      ASSERT_TRUE(turn_until(*io, [&] { return sending.ended; }));
      ASSERT_GT(sending.results[0], 0);
      text.remove_prefix(static_cast<size_t>(sending.results[0]));
    }
  }

  bool io_has_large_blocks() const {
    return usable_features(options.features).value().incremental_buffers;
  }

  UringOptions options;
  std::unique_ptr<Io> io;
  Handle listener = kNoHandle;
};

TEST_P(UringTest, BytesSentAreReceivedAndEndOfStreamIsZero) {
  make();
  auto [client, server] = pair();
  Recorder receiving;
  io->receive(receiving.op, server, BufferGroup::ingress);
  std::string text(100'000, 'x');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>('a' + i % 26);
  send_all(client, text);
  iovec parts[2] = {{text.data(), 5}, {text.data() + 5, 10}};
  Recorder gathered;
  io->send(gathered.op, client, parts);
  io->shutdown_send(client);
  ASSERT_TRUE(turn_until(*io, [&] { return receiving.ended && gathered.ended; }));
  // The gathered send was submitted after the shutdown, which is not an Op.
  EXPECT_EQ(gathered.results[0], -EPIPE);
  EXPECT_EQ(receiving.results.back(), 0);
  EXPECT_EQ(receiving.bytes, text);
  io->close(client);
  io->close(server);
}

TEST_P(UringTest, AcceptedSocketsHaveNoDelay) {
  make();
  auto [client, server] = pair();
  for (Handle handle : {client, server}) {
    int on = 0;
    socklen_t length = sizeof on;
    ASSERT_EQ(getsockopt(handle, IPPROTO_TCP, TCP_NODELAY, &on, &length), 0);
    EXPECT_NE(on, 0);
    EXPECT_TRUE(fcntl(handle, F_GETFD) & FD_CLOEXEC);
    io->close(handle);
  }
}

TEST_P(UringTest, TimersFireInTurns) {
  make();
  struct Owner {
    Timer timer;
    int fired = 0;
    void on_due() { ++fired; }
  } owner;
  owner.timer.bind<&Owner::on_due>(&owner);
  int64_t deadline = io->now() + 20 * kMillisecond;
  io->timers().arm(owner.timer, deadline);
  ASSERT_TRUE(turn_until(*io, [&] { return owner.fired == 1; }));
  EXPECT_GE(io->now(), deadline);
}

TEST_P(UringTest, FilesAreWrittenDurablyAndReadBack) {
  make();
  Directory directory;
  FileOptions create;
  create.create = create.write = create.direct = true;
  Handle file = io->open_file(directory / "log", create).value();
  Alignment alignment = io->alignment(file);
  ASSERT_LE(alignment.offset, 4096u);
  ASSERT_TRUE(io->allocate(file, 65536).ok());
  EXPECT_EQ(io->file_size(file).value(), 65536u);
  BufferRef block = io->buffers(BufferGroup::ingress).allocate(8192);
  ASSERT_TRUE(block);
  std::memset(block->data, 'm', 8192);
  iovec parts[2] = {{block->data, 4096}, {block->data + 4096, 4096}};
  Recorder writing;
  io->write(writing.op, file, parts, 4096, true);
  ASSERT_TRUE(turn_until(*io, [&] { return writing.ended; }));
  EXPECT_EQ(writing.results[0], 8192);
  std::memset(block->data, 0, 8192);
  Recorder reading;
  io->read(reading.op, file, {parts, 1}, 8192);
  ASSERT_TRUE(turn_until(*io, [&] { return reading.ended; }));
  EXPECT_EQ(reading.results[0], 4096);
  EXPECT_EQ(std::string_view(block->data, 4096), std::string(4096, 'm'));
  Recorder syncing;
  io->sync(syncing.op, file);
  ASSERT_TRUE(turn_until(*io, [&] { return syncing.ended; }));
  EXPECT_EQ(syncing.results[0], 0);
  io->close(file);
  EXPECT_EQ(io->open_file(directory / "log", create).error().number, EEXIST);
}

// Receives at the limit of their group wait their turn, and go on when bytes are let go.
TEST_P(UringTest, ReceiveIsParkedAtTheLimitAndGoesOnWhenBuffersReturn) {
  options.ingress_bytes = 1 << 20;
  make();
  auto [client, server] = pair();
  Recorder receiving;
  receiving.keep = true;
  io->receive(receiving.op, server, BufferGroup::ingress);
  std::string text(3 << 20, 'p');
  Recorder sending;
  iovec part{text.data(), text.size()};
  io->send(sending.op, client, {&part, 1});
  ASSERT_TRUE(turn_until(*io, [&] {
    return io->buffers(BufferGroup::ingress).bytes_in_use() == 1 << 20 &&
           receiving.bytes.size() >= 1 << 19;
  }));
  // Silence, and no spinning: nothing but the time-out ends a turn.
  size_t silent = 0;
  for (int i = 0; i < 20; ++i) {
    size_t before = receiving.bytes.size();
    io->turn(kMillisecond);
    if (receiving.bytes.size() == before) ++silent;
  }
  EXPECT_GE(silent, 10u);
  EXPECT_LE(io->buffers(BufferGroup::ingress).bytes_in_use(), 1u << 20);
  EXPECT_FALSE(receiving.ended);
  EXPECT_FALSE(io->buffers(BufferGroup::ingress).allocate(4096));
  // What was kept is still what was sent, and the rest comes once it is let go.
  receiving.keep = false;
  receiving.kept.clear();
  ASSERT_TRUE(
      turn_until(*io, [&] { return receiving.bytes.size() == text.size() && sending.ended; }));
  EXPECT_EQ(receiving.bytes, text);
  io->close(client);
  ASSERT_TRUE(turn_until(*io, [&] { return receiving.ended; }));
  EXPECT_EQ(receiving.results.back(), 0);
  io->close(server);
  receiving.kept.clear();
}

TEST_P(UringTest, CancelledParkedReceiveEndsInALaterTurn) {
  options.ingress_bytes = 64 << 10;
  if (io_has_large_blocks()) options.ingress_bytes = 1 << 20;
  make();
  BufferRef all =
      io->buffers(BufferGroup::ingress).allocate(static_cast<uint32_t>(options.ingress_bytes / 2));
  auto [client, server] = pair();
  Recorder receiving;
  receiving.keep = true;
  io->receive(receiving.op, server, BufferGroup::ingress);
  std::string text(3 << 20, 'p');
  Recorder sending;
  iovec part{text.data(), text.size()};
  io->send(sending.op, client, {&part, 1});
  size_t before = SIZE_MAX;
  for (int quiet = 0; quiet < 20;) {
    quiet = receiving.bytes.size() == before ? quiet + 1 : 0;
    before = receiving.bytes.size();
    io->turn(kMillisecond);
  }
  io->cancel(receiving.op);
  io->cancel(receiving.op);
  EXPECT_FALSE(receiving.ended);  // never inside the call
  ASSERT_TRUE(turn_until(*io, [&] { return receiving.ended; }));
  EXPECT_EQ(receiving.results.back(), -ECANCELED);
  io->close(server, true);
  ASSERT_TRUE(turn_until(*io, [&] { return sending.ended; }));
  io->close(client);
  receiving.kept.clear();
}

TEST_P(UringTest, BuffersReturnWhenTheLastReferenceGoes) {
  make();
  auto [client, server] = pair();
  Recorder receiving;
  receiving.keep = true;
  io->receive(receiving.op, server, BufferGroup::delivery);
  for (int i = 0; i < 10; ++i) {
    send_all(client, "250 2.0.0 Ok\r\n");
    ASSERT_TRUE(turn_until(
        *io, [&] { return receiving.bytes.size() == 14u * static_cast<size_t>(i + 1); }));
  }
  BufferPool& pool = io->buffers(BufferGroup::delivery);
  EXPECT_GT(pool.bytes_in_use(), 0u);
  bool shared = receiving.kept.front().get() == receiving.kept.back().get();
  EXPECT_EQ(shared, io_has_large_blocks());
  EXPECT_EQ(pool.bytes_in_use(), shared ? receiving.kept.front()->size : 10u * 4096);
  io->cancel(receiving.op);
  ASSERT_TRUE(turn_until(*io, [&] { return receiving.ended; }));
  receiving.kept.clear();
  // A partly filled block stays with the kernel, to be filled further.
  EXPECT_LE(pool.bytes_in_use(), shared ? 64u << 10 : 0u);
  io->close(client);
  io->close(server);
}

// More completions than the ring holds: the kernel ends multishots, which must not show.
TEST_P(UringTest, FullCompletionQueueLosesNothing) {
  options.submission_entries = 16;
  options.completion_entries = 32;
  make();
  Address address = listen_on_loopback();
  constexpr size_t kConnections = 300;
  Recorder accepting;
  io->accept(accepting.op, listener);
  std::vector<std::unique_ptr<Recorder>> connecting, receiving, sending;
  std::vector<Handle> clients;
  for (size_t i = 0; i < kConnections; ++i) {
    connecting.push_back(std::make_unique<Recorder>());
    clients.push_back(io->open_socket(address, {}).value());
    io->connect(connecting[i]->op, clients[i], address);
  }
  ASSERT_TRUE(turn_until(*io, [&] { return accepting.results.size() == kConnections; }));
  EXPECT_FALSE(accepting.ended);
  std::string text = "hello";
  iovec part{text.data(), text.size()};
  for (int round = 1; round <= 5; ++round) {
    sending.clear();
    for (size_t i = 0; i < kConnections; ++i) {
      if (round == 1) {
        receiving.push_back(std::make_unique<Recorder>());
        io->receive(receiving[i]->op, accepting.results[i], BufferGroup::ingress);
      }
      sending.push_back(std::make_unique<Recorder>());
      io->send(sending[i]->op, clients[i], {&part, 1});
    }
    ASSERT_TRUE(turn_until(*io, [&] {
      for (size_t i = 0; i < kConnections; ++i) {
        if (!sending[i]->ended) return false;
        if (receiving[i]->bytes.size() != static_cast<size_t>(round) * text.size()) return false;
      }
      return true;
    })) << round;
  }
  for (Handle client : clients) io->close(client);
  io->cancel(accepting.op);
  ASSERT_TRUE(turn_until(*io, [&] {
    for (auto& each : receiving) {
      if (!each->ended) return false;
    }
    return accepting.ended;
  }));
  for (size_t i = 0; i < kConnections; ++i) {
    EXPECT_EQ(receiving[i]->results.back(), 0);
    io->close(accepting.results[i]);
  }
  io->close(listener);
}

TEST_P(UringTest, AcceptReportsWantOfDescriptorsAndGoesOn) {
  make();
  Address address = listen_on_loopback();
  Recorder accepting;
  io->accept(accepting.op, listener);
  Recorder connecting[3];
  Handle clients[3];
  for (int i = 0; i < 3; ++i) clients[i] = io->open_socket(address, {}).value();
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit tight = before;
  int next = dup(0);
  ::close(next);
  tight.rlim_cur = static_cast<rlim_t>(next) + 1;  // room for one
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &tight), 0);
  for (int i = 0; i < 3; ++i) io->connect(connecting[i].op, clients[i], address);
  EXPECT_TRUE(turn_until(*io, [&] { return accepting.delivered(-EMFILE); }));
  EXPECT_FALSE(accepting.ended);
  size_t reports = accepting.results.size();
  for (int i = 0; i < 10; ++i) io->turn(kMillisecond);
  EXPECT_LE(accepting.results.size(), reports + 1);  // not spinning
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  auto connections = [&] {
    return std::count_if(accepting.results.begin(), accepting.results.end(),
                         [](int r) { return r >= 0; });
  };
  EXPECT_TRUE(turn_until(*io, [&] { return connections() == 3; }));
  io->cancel(accepting.op);
  EXPECT_TRUE(turn_until(*io, [&] { return accepting.ended; }));
  for (int32_t result : accepting.results) {
    if (result >= 0) io->close(result);
  }
  for (Handle client : clients) io->close(client);
  io->close(listener);
}

TEST_P(UringTest, RestingAcceptCanBeCancelled) {
  make();
  Address address = listen_on_loopback();
  Recorder accepting, connecting;
  io->accept(accepting.op, listener);
  Handle client = io->open_socket(address, {}).value();
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit tight = before;
  int next = dup(0);
  ::close(next);
  tight.rlim_cur = static_cast<rlim_t>(next);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &tight), 0);
  io->connect(connecting.op, client, address);
  EXPECT_TRUE(turn_until(*io, [&] { return accepting.delivered(-EMFILE) && connecting.ended; }));
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  io->cancel(accepting.op);
  EXPECT_FALSE(accepting.ended);
  EXPECT_TRUE(turn_until(*io, [&] { return accepting.ended; }));
  EXPECT_EQ(accepting.results.back(), -ECANCELED);
  io->close(client);
  io->close(listener);
}

TEST_P(UringTest, ConnectFailuresAndCancelsComplete) {
  make();
  // A port that was free a moment ago.
  Address address = listen_on_loopback();
  io->close(listener);
  Recorder refused;
  Handle socket = io->open_socket(address, {}).value();
  io->connect(refused.op, socket, address);
  ASSERT_TRUE(turn_until(*io, [&] { return refused.ended; }));
  EXPECT_EQ(refused.results[0], -ECONNREFUSED);
  io->close(socket);

  // A listener whose queue is full answers nobody: connects wait until they are cancelled.
  ListenOptions full;
  full.address = Address::ipv4(INADDR_LOOPBACK, 0);
  full.backlog = 0;
  listener = io->listen(full).value();
  address = io->local_address(listener).value();
  std::vector<std::unique_ptr<Recorder>> connects;
  std::vector<Handle> sockets;
  for (int i = 0; i < 4; ++i) {
    connects.push_back(std::make_unique<Recorder>());
    sockets.push_back(io->open_socket(address, {}).value());
    io->connect(connects.back()->op, sockets.back(), address);
  }
  for (int i = 0; i < 5; ++i) io->turn(kMillisecond);
  EXPECT_FALSE(connects.back()->ended);
  for (auto& each : connects) io->cancel(each->op);
  ASSERT_TRUE(turn_until(*io, [&] {
    return std::all_of(connects.begin(), connects.end(), [](auto& each) { return each->ended; });
  }));
  EXPECT_EQ(connects.back()->results[0], -ECANCELED);
  for (Handle each : sockets) io->close(each);
  io->close(listener);
}

TEST_P(UringTest, SourceAddressIsUsed) {
  make();
  Address address = listen_on_loopback();
  Recorder accepting, connecting;
  io->accept(accepting.op, listener);
  Address source = Address::parse_host("127.0.0.2", 0).value();
  Handle client = io->open_socket(address, source).value();
  io->connect(connecting.op, client, address);
  ASSERT_TRUE(turn_until(*io, [&] { return !accepting.results.empty() && connecting.ended; }));
  EXPECT_EQ(io->peer_address(accepting.results[0])->host_string(), "127.0.0.2");
  EXPECT_EQ(io->local_address(client)->host_string(), "127.0.0.2");
  io->cancel(accepting.op);
  ASSERT_TRUE(turn_until(*io, [&] { return accepting.ended; }));
  io->close(accepting.results[0]);
  io->close(client);
  io->close(listener);
  EXPECT_FALSE(io->open_socket(address, Address::parse_host("192.0.2.1", 0).value()).ok());
}

TEST_P(UringTest, ResetAborts) {
  make();
  auto [client, server] = pair();
  Recorder receiving;
  io->receive(receiving.op, server, BufferGroup::ingress);
  io->close(client, true);
  ASSERT_TRUE(turn_until(*io, [&] { return receiving.ended; }));
  EXPECT_EQ(receiving.results.back(), -ECONNRESET);
  io->close(server);
}

TEST_P(UringTest, UnixListenerReplacesAStaleSocketOnly) {
  make();
  Directory directory;
  ListenOptions unix_socket;
  unix_socket.address = Address::unix_path(directory / "socket");
  unix_socket.unix_mode = 0660;
  mode_t umask_before = umask(0077);
  Handle first = io->listen(unix_socket).value();
  umask(umask_before);
  struct stat status {};
  ASSERT_EQ(stat((directory / "socket").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0660u);
  auto second = io->listen(unix_socket);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().number, EADDRINUSE);
  io->close(first);  // leaves its file, like a process that was killed
  Handle third = io->listen(unix_socket).value();

  Recorder accepting, connecting, receiving;
  io->accept(accepting.op, third);
  Handle client = io->open_socket(unix_socket.address, {}).value();
  io->connect(connecting.op, client, unix_socket.address);
  ASSERT_TRUE(turn_until(*io, [&] { return !accepting.results.empty() && connecting.ended; }));
  EXPECT_EQ(connecting.results[0], 0);
  io->receive(receiving.op, accepting.results[0], BufferGroup::control);
  send_all(client, "status\n");
  io->shutdown_send(client);
  ASSERT_TRUE(turn_until(*io, [&] { return receiving.ended; }));
  EXPECT_EQ(receiving.bytes, "status\n");
  io->cancel(accepting.op);
  ASSERT_TRUE(turn_until(*io, [&] { return accepting.ended; }));
  for (Handle handle : {client, accepting.results[0], third}) io->close(handle);

  std::ofstream(directory / "file") << "not a socket";
  unix_socket.address = Address::unix_path(directory / "file");
  EXPECT_FALSE(io->listen(unix_socket).ok());
  EXPECT_TRUE(std::filesystem::exists(directory / "file"));
}

TEST_P(UringTest, PollTellsReadinessOfALibrarysDescriptor) {
  make();
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  Recorder polling, cancelled;
  io->poll(polling.op, ends[0], POLLIN);
  io->turn(kMillisecond);
  EXPECT_FALSE(polling.ended);
  ASSERT_EQ(write(ends[1], "x", 1), 1);
  ASSERT_TRUE(turn_until(*io, [&] { return polling.ended; }));
  EXPECT_TRUE(polling.results[0] & POLLIN);
  char byte;
  ASSERT_EQ(read(ends[0], &byte, 1), 1);
  io->poll(cancelled.op, ends[0], POLLIN);
  io->cancel(cancelled.op);
  ASSERT_TRUE(turn_until(*io, [&] { return cancelled.ended; }));
  EXPECT_EQ(cancelled.results[0], -ECANCELED);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_P(UringTest, DirectoriesLocksAndNames) {
  make();
  Directory directory;
  std::string inner = directory / "spool";
  EXPECT_TRUE(io->make_directory(inner).ok());
  EXPECT_TRUE(io->make_directory(inner).ok());
  FileOptions create;
  create.create = create.write = true;
  io->close(io->open_file(inner + "/b", create).value());
  io->close(io->open_file(inner + "/a", create).value());
  EXPECT_EQ(io->list_directory(inner).value(), (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(io->rename_file(inner + "/a", inner + "/c").ok());
  EXPECT_TRUE(io->remove_file(inner + "/b").ok());
  EXPECT_EQ(io->remove_file(inner + "/b").error().number, ENOENT);
  EXPECT_TRUE(io->sync_directory(inner).ok());
  EXPECT_EQ(io->list_directory(inner).value(), std::vector<std::string>{"c"});
  EXPECT_FALSE(io->make_directory(inner + "/c").ok());
  EXPECT_TRUE(io->lock_file(inner + "/lock").ok());
  EXPECT_FALSE(io->lock_file(inner + "/lock").ok());
  EXPECT_GT(io->free_space(inner).value(), 0u);
  EXPECT_FALSE(io->list_directory(inner + "/none").ok());
}

// The ring is made on one thread and run by another, which is how shards start.
TEST_P(UringTest, RingMadeOnAnotherThreadRuns) {
  make();
  std::string received;
  std::thread shard([&] {
    auto [client, server] = pair();
    Recorder receiving;
    io->receive(receiving.op, server, BufferGroup::ingress);
    send_all(client, "x");
    EXPECT_TRUE(turn_until(*io, [&] { return !receiving.bytes.empty(); }));
    received = receiving.bytes;
    io->close(client);
    EXPECT_TRUE(turn_until(*io, [&] { return receiving.ended; }));
    io->close(server);
  });
  shard.join();
  EXPECT_EQ(received, "x");
}

TEST(UringFeatures, ListsAreParsedAndUnknownNamesRefused) {
  EXPECT_EQ(parse_features("all").value(), kAllFeatures);
  EXPECT_EQ(parse_features("none").value(), Features{});
  EXPECT_EQ(parse_features("msg-ring").value(), (Features{false, true}));
  EXPECT_EQ(parse_features("msg-ring,incremental-buffers").value(), kAllFeatures);
  for (const char* text : {"", "msg_ring", "msg-ring,", "all,none"}) {
    EXPECT_FALSE(parse_features(text).ok()) << text;
  }
  for (Features features : {kAllFeatures, Features{}, Features{true, false}}) {
    EXPECT_EQ(parse_features(features.to_string()).value(), features);
  }
}

TEST(UringFeatures, MaskedOnesAreNotUsed) {
  EXPECT_EQ(usable_features({}).value(), Features{});
  Features offered = probe_features().value();
  EXPECT_EQ(usable_features(kAllFeatures).value(), offered);
}

TEST(UringFeatures, SetUpErrorsNameTheRemedy) {
  EXPECT_NE(setup_error(EINVAL).text.find("6.1"), std::string::npos);
  EXPECT_NE(setup_error(EPERM).text.find("kernel.io_uring_disabled"), std::string::npos);
  EXPECT_NE(setup_error(ENOMEM).text.find("ulimit -l"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Features, UringTest, ::testing::Values("all", "none"),
                         [](const auto& used) { return std::string(used.param); });

}  // namespace
}  // namespace millrace::reactor
