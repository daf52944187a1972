// What only the io_uring back end promises, on real sockets and files of this machine: features and
// their fallbacks, buffers at their limit, descriptors running out, waking across threads. The rules that
// both back ends keep are in conformance.h.
#include "reactor/uring.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "reactor/mailbox.h"

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

INSTANTIATE_TEST_SUITE_P(Features, UringTest, ::testing::Values("all", "none"),
                         [](const auto& used) { return std::string(used.param); });

}  // namespace
}  // namespace millrace::reactor
