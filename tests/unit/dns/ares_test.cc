// The c-ares transport on io_uring against a small name server in this process: UDP, TCP after a
// truncated reply, silence, and lies.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <thread>

#include "dns/resolver.h"
#include "packet.h"
#include "reactor/uring.h"

namespace millrace::dns {
namespace {

using namespace testing;

// Answers by the first label of the question's name: what it says is what is done.
class NameServer {
 public:
  NameServer() {
    udp_ = ::socket(AF_INET, SOCK_DGRAM, 0);
    tcp_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    // The same port for both: take TCP's and try it for UDP.
    for (int attempt = 0;; ++attempt) {
      address.sin_port = 0;
      EXPECT_EQ(::bind(tcp_, reinterpret_cast<sockaddr*>(&address), size), 0);
      EXPECT_EQ(::getsockname(tcp_, reinterpret_cast<sockaddr*>(&address), &size), 0);
      if (::bind(udp_, reinterpret_cast<sockaddr*>(&address), size) == 0 || attempt == 20) break;
      ::close(tcp_);
      tcp_ = ::socket(AF_INET, SOCK_STREAM, 0);
    }
    EXPECT_EQ(::listen(tcp_, 16), 0);
    port_ = ntohs(address.sin_port);
    EXPECT_EQ(::pipe(stop_), 0);
    thread_ = std::thread([this] { run(); });
  }
  ~NameServer() {
    EXPECT_EQ(::write(stop_[1], "x", 1), 1);
    thread_.join();
    for (int descriptor : {udp_, tcp_, stop_[0], stop_[1]}) ::close(descriptor);
  }
  uint16_t port() const { return port_; }
  std::atomic<int> udp_queries{0}, tcp_queries{0};

 private:
  void run() {
    while (true) {
      pollfd ready[3] = {{udp_, POLLIN, 0}, {tcp_, POLLIN, 0}, {stop_[0], POLLIN, 0}};
      if (::poll(ready, 3, -1) < 0) continue;
      if (ready[2].revents != 0) return;
      if (ready[0].revents != 0) serve_udp();
      if (ready[1].revents != 0) serve_tcp();
    }
  }

  // The reply to `query`, or nothing for silence.
  static std::string reply(std::string_view query, bool tcp) {
    const unsigned id =
        static_cast<unsigned char>(query[0]) << 8 | static_cast<unsigned char>(query[1]);
    std::string name;
    size_t at = 12;
    while (query[at] != 0) {
      name += query.substr(at + 1, static_cast<size_t>(query[at]));
      name += '.';
      at += static_cast<size_t>(query[at]) + 1;
    }
    name.pop_back();
    const unsigned type =
        static_cast<unsigned char>(query[at + 1]) << 8 | static_cast<unsigned char>(query[at + 2]);
    Packet packet(name, type);
    const std::string what = name.substr(0, name.find('.'));
    if (what == "silent") return {};
    if (what == "nxdomain") return packet.rcode(3).soa(60, 60).str(id);
    if (what == "servfail") return packet.rcode(2).str(id);
    if (what == "cut" && !tcp) return packet.flags(0x8380).str(id);
    if (what == "noise") return be16(id) + "\x81\x80" + std::string(40, '\xff');
    if (what == "broken") return packet.answer(kQuestion, type, 60, "xyz").str(id);
    if (what == "otherid") return packet.a(kQuestion, 60, 0xc6336401).str(id ^ 1);
    if (what == "otherquestion")
      return Packet("evil.example", type).a(kQuestion, 60, 0xc6336401).str(id);
    // What a resolver does that checks signatures: it says so only to who asks for it.
    if (what == "signed") return packet.flags((query[3] & 0x20) != 0 ? 0x81a0 : 0x8180).a(kQuestion, 60, 1).str(id);
    if (what == "mx") return packet.mx(kQuestion, 300, 10, "mx1.example").str(id);
    return packet.a(kQuestion, 300, tcp ? 0xc6336402 : 0xc6336401).str(id);
  }

  void serve_udp() {
    char query[512];
    sockaddr_in from{};
    socklen_t size = sizeof(from);
    const ssize_t got =
        ::recvfrom(udp_, query, sizeof(query), 0, reinterpret_cast<sockaddr*>(&from), &size);
    if (got < 17) return;
    ++udp_queries;
    const std::string answer = reply({query, static_cast<size_t>(got)}, false);
    if (!answer.empty()) {
      ::sendto(udp_, answer.data(), answer.size(), 0, reinterpret_cast<sockaddr*>(&from), size);
    }
  }

  void serve_tcp() {
    const int connection = ::accept(tcp_, nullptr, nullptr);
    if (connection < 0) return;
    unsigned char size[2];
    char query[512];
    if (::recv(connection, size, 2, MSG_WAITALL) == 2) {
      const size_t length =
          std::min<size_t>(static_cast<size_t>(size[0]) << 8 | size[1], sizeof(query));
      if (::recv(connection, query, length, MSG_WAITALL) == static_cast<ssize_t>(length)) {
        ++tcp_queries;
        const std::string answer = reply({query, length}, true);
        const std::string framed = be16(static_cast<unsigned>(answer.size())) + answer;
        EXPECT_EQ(::send(connection, framed.data(), framed.size(), MSG_NOSIGNAL),
                  static_cast<ssize_t>(framed.size()));
      }
    }
    ::close(connection);
  }

  int udp_ = -1, tcp_ = -1, stop_[2] = {-1, -1};
  uint16_t port_ = 0;
  std::thread thread_;
};

class AresTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto io = reactor::make_uring({});
    if (!io) GTEST_SKIP() << "no io_uring here: " << io.error().text;
    io_ = std::move(*io);
    open(server_.port(), 600);
  }
  void TearDown() override {
    if (!io_) return;
    bool stopped = false;
    transport_->stop([&] { stopped = true; });
    EXPECT_TRUE(run([&] { return stopped; }));
    transport_.reset();
  }
  void open(uint16_t port, int64_t timeout_ms) {
    AresOptions options;
    options.servers = {*reactor::Address::parse_host("127.0.0.1", port)};
    options.timeout_ms = timeout_ms;
    auto made = make_ares_transport(*io_, options);
    ASSERT_TRUE(made.ok()) << made.error().text;
    transport_ = std::move(*made);
  }
  bool run(const std::function<bool()>& done) {
    const int64_t deadline = io_->now() + 20'000'000'000;
    while (!done()) {
      if (io_->now() > deadline) return false;
      io_->turn(50'000'000);
    }
    return true;
  }
  Answer ask(const std::string& name, Type type = Type::a) {
    std::optional<Answer> found;
    transport_->query(name, type, [&](Answer&& answer) { found = std::move(answer); });
    EXPECT_FALSE(found.has_value()) << "answered inside the call";
    EXPECT_TRUE(run([&] { return found.has_value(); }));
    return found.value_or(Answer{});
  }

  NameServer server_;
  std::unique_ptr<reactor::Io> io_;
  std::unique_ptr<Transport> transport_;
};

TEST_F(AresTest, AddressAndMxRecordsComeBack) {
  Answer answer = ask("a.example");
  ASSERT_EQ(answer.outcome, Outcome::records);
  EXPECT_EQ(answer.addresses.at(0).host_string(), "198.51.100.1");
  EXPECT_EQ(answer.ttl_s, 300u);
  answer = ask("mx.example", Type::mx);
  ASSERT_EQ(answer.outcome, Outcome::records);
  EXPECT_EQ(answer.mx.at(0).host, "mx1.example");
}

TEST_F(AresTest, ResolverOnThisMachineIsTrustedToHaveCheckedSignatures) {
  EXPECT_TRUE(ask("signed.example").secure);
  EXPECT_FALSE(ask("a.example").secure);
}

TEST_F(AresTest, NxdomainIsToldFromFailure) {
  EXPECT_EQ(ask("nxdomain.example").outcome, Outcome::nxdomain);
  EXPECT_EQ(ask("servfail.example").outcome, Outcome::failure);
}

TEST_F(AresTest, TruncatedReplyIsAskedAgainOverTcp) {
  const Answer answer = ask("cut.example");
  ASSERT_EQ(answer.outcome, Outcome::records) << answer.reason;
  EXPECT_EQ(answer.addresses.at(0).host_string(), "198.51.100.2");
  EXPECT_EQ(server_.tcp_queries, 1);
}

TEST_F(AresTest, SilenceIsAFailure) {
  const Answer answer = ask("silent.example");
  EXPECT_EQ(answer.outcome, Outcome::failure);
  EXPECT_NE(answer.reason, "");
  EXPECT_GE(server_.udp_queries, 2);
}

TEST_F(AresTest, WrongIdAndWrongQuestionAreNotBelieved) {
  EXPECT_EQ(ask("otherid.example").outcome, Outcome::failure);
  EXPECT_NE(ask("otherquestion.example").outcome, Outcome::records);
}

TEST_F(AresTest, BrokenRepliesNeverYieldRecords) {
  EXPECT_EQ(ask("broken.example").outcome, Outcome::malformed);
  const Outcome noise = ask("noise.example").outcome;
  EXPECT_TRUE(noise == Outcome::malformed || noise == Outcome::failure) << to_string(noise);
}

TEST_F(AresTest, NobodyListeningIsAFailure) {
  bool stopped = false;
  transport_->stop([&] { stopped = true; });
  ASSERT_TRUE(run([&] { return stopped; }));
  open(1, 500);
  EXPECT_EQ(ask("a.example").outcome, Outcome::failure);
}

TEST_F(AresTest, ManyQueriesAtOnceAreAllAnswered) {
  int records = 0;
  for (int i = 0; i < 200; ++i) {
    transport_->query("n" + std::to_string(i) + ".example", Type::a,
                      [&](Answer&& answer) { records += answer.outcome == Outcome::records; });
  }
  EXPECT_TRUE(run([&] { return records == 200; })) << records;
}

TEST_F(AresTest, QueriesMayBeAskedFromAnAnswer) {
  bool done = false;
  transport_->query("a.example", Type::a, [&](Answer&&) {
    transport_->query("b.example", Type::a, [&](Answer&&) { done = true; });
  });
  EXPECT_TRUE(run([&] { return done; }));
}

TEST_F(AresTest, StoppingGivesUpOpenQueries) {
  transport_->query("silent.example", Type::a,
                    [](Answer&&) { ADD_FAILURE() << "answered after stop"; });
  for (int i = 0; i < 3; ++i) io_->turn(1'000'000);
}

TEST(AresOptions, ServerListIsChecked) {
  auto io = reactor::make_uring({});
  if (!io) GTEST_SKIP() << "no io_uring here: " << io.error().text;
  AresOptions options;
  options.servers = {*reactor::Address::parse("[::1]:5353"),
                     *reactor::Address::parse("127.0.0.1:53")};
  auto made = make_ares_transport(**io, options);
  ASSERT_TRUE(made.ok()) << made.error().text;
  bool stopped = false;
  (*made)->stop([&] { stopped = true; });
  for (int i = 0; i < 10 && !stopped; ++i) (*io)->turn(1'000'000);
  EXPECT_TRUE(stopped);
}

}  // namespace
}  // namespace millrace::dns
