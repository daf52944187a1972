// Who is let in: limits, shedding, the PROXY protocol.
#include "rig.h"

namespace millrace::ingress {
namespace {

bool starts(const std::string& text, std::string_view with) { return text.starts_with(with); }

TEST(Listener, TheTotalLimitIsExactAndFreedByLeaving) {
  Rig rig;
  rig.draft.max_connections = 3;
  rig.start();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(starts(rig.connect().hear(), "220 "));
  Client& fourth = rig.connect();
  EXPECT_TRUE(starts(fourth.hear(), "421 4.3.2 "));
  EXPECT_TRUE(fourth.wait_end());
  EXPECT_EQ(rig.stats().refused_total_limit, 1u);
  rig.clients[0]->close();
  rig.world.run_for(kSecond);
  EXPECT_TRUE(starts(rig.connect().hear(), "220 "));
  EXPECT_EQ(rig.stats().connections_accepted, 4u);
}

TEST(Listener, OneClientCannotTakeAllConnections) {
  Rig rig;
  rig.draft.max_connections_per_client = 2;
  rig.start();
  EXPECT_TRUE(starts(rig.connect("198.51.100.7").hear(), "220 "));
  EXPECT_TRUE(starts(rig.connect("198.51.100.7").hear(), "220 "));
  EXPECT_TRUE(starts(rig.connect("198.51.100.7").hear(), "421 4.7.0 "));
  EXPECT_TRUE(starts(rig.connect("198.51.100.8").hear(), "220 "));
  EXPECT_EQ(rig.stats().refused_client_limit, 1u);
}

TEST(Listener, AFloodOfConnectionsCannotKeepOthersOut) {
  Rig rig;
  rig.draft.max_connections_per_client = 5;
  rig.start();
  for (int i = 0; i < 600; ++i) rig.connect("198.51.100.8");
  rig.world.run_for(kSecond);
  EXPECT_EQ(rig.stats().refused_client_limit, 595u);
  EXPECT_TRUE(starts(rig.connect("198.51.100.7").hear(), "220 "));
}

TEST(Listener, SheddingRefusesNewConnectionsOnly) {
  Rig rig;
  rig.start();
  Client& before = rig.introduce();
  rig.listener->set_shedding(true, "The spool cannot be written");
  EXPECT_EQ(rig.connect().hear(), "421 4.3.2 No mail is accepted now, try again later\r\n");
  EXPECT_TRUE(starts(before.talk("NOOP"), "250 "));
  rig.listener->set_shedding(false, "");
  EXPECT_TRUE(starts(rig.connect().hear(), "220 "));
  EXPECT_EQ(rig.stats().refused_shedding, 1u);
}

TEST(Listener, RefusedClientsDoNotWaitForEver) {
  Rig rig;
  rig.draft.max_connections = 1;
  rig.start();
  rig.connect().hear();
  rig.connect().hear();  // refused, and never closes its side
  rig.world.run_for(11 * kSecond);
  EXPECT_EQ(rig.stats().connections_open, 1u);
}

// ---- PROXY

constexpr std::string_view kSignature("\r\n\r\n\0\r\nQUIT\n", 12);

std::string proxy_v2(std::string_view source_octets, bool local = false) {
  std::string header(kSignature);
  header += local ? '\x20' : '\x21';
  if (local) {
    header += '\x00';
    header += std::string_view("\0\0", 2);
    return header;
  }
  header += '\x11';  // IPv4, stream
  header += std::string_view("\0\x0c", 2);
  header += source_octets;
  header += std::string_view("\xc0\x00\x02\x01", 4);
  header += std::string_view("\x30\x39\x00\x19", 4);
  return header;
}

TEST(Listener, TheProxysWordDecidesWhoTheClientIs) {
  for (bool second : {false, true}) {
    for (uint64_t most : {1000, 1, 5}) {
      SCOPED_TRACE(testing::Message() << "v" << (second ? 2 : 1) << " in pieces of " << most);
      Rig rig(most);
      rig.start();
      Client& friendly = rig.connect("203.0.113.9", 26);
      std::string header = second ? proxy_v2({"\xc6\x33\x64\x63", 4})
                                  : "PROXY TCP4 198.51.100.99 192.0.2.1 12345 25\r\n";
      friendly.send_split(header, most);
      EXPECT_TRUE(starts(friendly.hear(), "220 "));
      friendly.talk("EHLO x");
      EXPECT_TRUE(starts(rig.submit(friendly, "Subject: x\r\n\r\nx\r\n"), "250 "));
      ASSERT_TRUE(rig.wait_messages(1));
      EXPECT_EQ(rig.message().envelope.client, "198.51.100.99");

      Client& stranger = rig.connect("203.0.113.9", 26);
      stranger.send(second ? proxy_v2({"\xc0\x00\x02\x63", 4})
                           : "PROXY TCP4 192.0.2.99 192.0.2.1 12345 25\r\n");
      EXPECT_TRUE(starts(stranger.hear(), "220 "));
      stranger.talk("EHLO x");
      EXPECT_TRUE(starts(stranger.talk("MAIL FROM:<a@example.org>"), "550 5.7.1 "));
    }
  }
}

TEST(Listener, TheProxysOwnChecksAreItsOwnConnections) {
  Rig rig;
  rig.start();
  Client& local = rig.connect("203.0.113.9", 26);
  local.send(proxy_v2("", true));
  EXPECT_TRUE(starts(local.hear(), "220 "));
  Client& unknown = rig.connect("203.0.113.9", 26);
  unknown.send("PROXY UNKNOWN\r\n");
  EXPECT_TRUE(starts(unknown.hear(), "220 "));
  EXPECT_EQ(rig.stats().refused_proxy, 0u);
}

TEST(Listener, OnlyNamedProxiesAreBelieved) {
  Rig rig;
  rig.start();
  Client& forger = rig.connect("198.51.100.7", 26);
  forger.send("PROXY TCP4 198.51.100.99 192.0.2.1 12345 25\r\n");
  EXPECT_TRUE(forger.wait_end());
  EXPECT_EQ(forger.heard, "");
  // On a plain listener the header is just an early talker's nonsense.
  Client& plain = rig.connect("203.0.113.9", 25);
  plain.send("PROXY TCP4 198.51.100.99 192.0.2.1 12345 25\r\n");
  EXPECT_TRUE(plain.wait_end(400 * kSecond));
  EXPECT_EQ(plain.heard.find("250"), std::string::npos) << plain.heard;
  EXPECT_EQ(rig.stats().refused_proxy, 1u);
}

TEST(Listener, WithoutAValidProxyHeaderThereIsNoSession) {
  Rig rig;
  rig.start();
  Client& wrong = rig.connect("203.0.113.9", 26);
  wrong.send("EHLO x\r\n");
  EXPECT_TRUE(wrong.wait_end());
  EXPECT_EQ(wrong.heard, "");
  Client& endless = rig.connect("203.0.113.9", 26);
  endless.send("PROXY TCP4 " + std::string(5000, '1'));
  EXPECT_TRUE(endless.wait_end());
  Client& silent = rig.connect("203.0.113.9", 26);
  EXPECT_TRUE(silent.wait_end(11 * kSecond));
  EXPECT_EQ(rig.stats().refused_proxy, 3u);
}

TEST(Listener, WhoSpeaksRightBehindTheProxyHeaderIsAnEarlyTalker) {
  Rig rig;
  rig.start();
  Client& client = rig.connect("203.0.113.9", 26);
  client.send("PROXY TCP4 198.51.100.99 192.0.2.1 12345 25\r\nEHLO x\r\n");
  EXPECT_TRUE(client.wait_end());
  EXPECT_TRUE(starts(client.heard, "554 ")) << client.heard;
}

// ---- the limits themselves

TEST(ConnectionLimits, AClientIsAnIpv4AddressOrAnIpv6Subnet) {
  auto heap = std::make_unique<ConnectionLimits>();  // see Rig::limits
  ConnectionLimits& limits = *heap;
  using Verdict = ConnectionLimits::Verdict;
  auto at = [](std::string_view text) { return *reactor::Address::parse_host(text, 1); };
  EXPECT_EQ(limits.enter(at("192.0.2.1"), 10, 1), Verdict::granted);
  EXPECT_EQ(limits.enter(at("192.0.2.1"), 10, 1), Verdict::too_many_of_client);
  EXPECT_EQ(limits.enter(at("::ffff:192.0.2.1"), 10, 1), Verdict::too_many_of_client);
  EXPECT_EQ(limits.enter(at("192.0.2.2"), 10, 1), Verdict::granted);
  EXPECT_EQ(limits.enter(at("2001:db8::1"), 10, 1), Verdict::granted);
  EXPECT_EQ(limits.enter(at("2001:db8::2"), 10, 1), Verdict::too_many_of_client);
  EXPECT_EQ(limits.enter(at("2001:db8:0:1::1"), 10, 1), Verdict::granted);
  EXPECT_EQ(limits.open(), 4u);
  EXPECT_EQ(limits.enter(at("192.0.2.3"), 4, 1), Verdict::too_many);
  limits.leave(at("2001:db8::9"));
  EXPECT_EQ(limits.enter(at("2001:db8::2"), 10, 1), Verdict::granted);
  EXPECT_EQ(limits.enter(at("192.0.2.3"), 10, 0), Verdict::too_many_of_client);
  EXPECT_EQ(limits.open(), 4u);
}

}  // namespace
}  // namespace millrace::ingress
