// TLS towards receivers: how it begins, when mail may go in the clear after all, and when never.
#include "../tls/certificates.h"
#include "connection_rig.h"

namespace millrace::delivery {
namespace {

using namespace testing;
using queue::LaneEnd;

tls::test::Certificates& made() {
  static tls::test::Certificates certificates;
  return certificates;
}

std::shared_ptr<tls::ServerContext> server(const tls::test::Certificates::Wish& wish = {.names = "DNS:mx.example"}) {
  static int number = 0;
  tls::ServerSettings settings;
  settings.certificates.push_back(*tls::read_certificate(made().make("mx" + std::to_string(++number), wish)));
  return *tls::ServerContext::make(settings);
}

// A receiver that says `starttls` when asked for TLS; what comes is answered well otherwise.
Peer::Script with_starttls(std::string starttls = "220 go\r\n", std::vector<std::string> extensions = {"PIPELINING"}) {
  std::vector<std::string> plain = extensions;
  plain.push_back("STARTTLS");
  Peer::Script before = Peer::well_behaved(plain), after = Peer::well_behaved(extensions);
  return [=](Peer::Session& session, const std::string& line) {
    if (line == "STARTTLS") return starttls;
    return session.secured ? after(session, line) : before(session, line);
  };
}

class TlsTest : public ConnectionTest {
 protected:
  TlsTest() {
    auto settings = std::make_shared<tls::ClientSettings>();
    settings->ca_pem = *tls::read_authorities(made().authority());
    config_.tls_client = settings;
    restart();
  }
  Peer& tls_peer() {
    Peer& peer = simple_peer();
    peer.tls = server();
    peer.script = with_starttls();
    return peer;
  }
  // Another MX of dest.example, tried after the first.
  Peer& second_peer() {
    Peer& peer = add_peer("198.51.100.2");
    zones_.add_mx("dest.example", 20, "mx2.example");
    zones_.add_address("mx2.example", "198.51.100.2");
    return peer;
  }
  void send_one(int64_t seconds = 1000) {
    const size_t before = queue_.ends.size();
    add("Subject: x\r\n\r\nhello\r\n");
    resolve("dest.example");
    open();
    ASSERT_TRUE(run_until_closed(before + 1, seconds));
  }
  const queue::Attempt& attempt() { return *queue_.finished_.back(); }
};

TEST_F(TlsTest, MailGoesEncryptedWhereItIsOffered) {
  Peer& peer = tls_peer();
  send_one();
  ASSERT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(peer.messages[0], "Subject: x\r\n\r\nhello\r\n");
  EXPECT_EQ(attempt().tls_version, "TLSv1.3");
  EXPECT_EQ(attempt().tls_verified, "ok");
  EXPECT_EQ(attempt().tls_reason, "");
  const std::vector<std::string> expected = {"EHLO relay.example", "STARTTLS", "EHLO relay.example"};
  EXPECT_EQ(std::vector(peer.sessions[0]->lines.begin(), peer.sessions[0]->lines.begin() + 3), expected);
}

TEST_F(TlsTest, CertificateIsReportedAndNotRequired) {
  tls_peer().tls = server({.names = "DNS:other.example"});
  send_one();
  ASSERT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_verified, "wrong name");
}

TEST_F(TlsTest, LargeMessagesArriveWhole) {
  Peer& peer = tls_peer();
  const std::string text = "Subject: x\r\n\r\n" + std::string(1'000'000, 'x') + "\r\n";
  add(text);
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed());
  ASSERT_EQ(peer.messages.size(), 1u);
  EXPECT_TRUE(peer.messages[0] == text);
}

TEST_F(TlsTest, SecondConnectionResumes) {
  tls_peer();
  send_one();
  send_one();
  EXPECT_EQ(agent_->stats().tls_handshakes, 2u);
  EXPECT_EQ(agent_->stats().tls_resumed, 1u);
}

TEST_F(TlsTest, CapabilitiesOfBeforeAreForgotten) {
  Peer& peer = tls_peer();
  peer.script = with_starttls("220 go\r\n", {});  // behind TLS no PIPELINING
  add("one\r\n");
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
}

TEST_F(TlsTest, WithoutTheOfferMailGoesInTheClearAndSaysWhy) {
  simple_peer();
  send_one();
  ASSERT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_version, "");
  EXPECT_EQ(attempt().tls_reason, "STARTTLS not offered");
  EXPECT_EQ(agent_->stats().tls_not_offered, 1u);
}

TEST_F(TlsTest, WhenEveryHostRefusesMailGoesInTheClear) {
  Peer& first = tls_peer();
  Peer& second = second_peer();
  first.script = with_starttls("454 4.7.0 TLS not available\r\n");
  second.script = with_starttls("502 5.5.1 what\r\n");
  send_one();
  ASSERT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_reason, "502 5.5.1 what");
  EXPECT_EQ(second.sessions.size(), 1u);
  EXPECT_EQ(first.sessions.size(), 2u) << "the first again, in the clear";
  EXPECT_EQ(first.messages.size(), 1u);
}

TEST_F(TlsTest, AHostWithTlsGoesAheadOfAnotherInTheClear) {
  tls_peer().script = with_starttls("454 4.7.0 TLS not available\r\n");
  Peer& second = second_peer();
  second.tls = server();
  second.script = with_starttls();
  send_one();
  ASSERT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_version, "TLSv1.3");
  EXPECT_EQ(second.messages.size(), 1u);
}

TEST_F(TlsTest, AResetIsNoReasonToGoInTheClear) {
  Peer& peer = tls_peer();
  peer.script = with_starttls("220 go\r\nRESET");
  peer.tls.reset();
  send_one();
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::failed);
  EXPECT_EQ(queue_.ends[0].stage, events::Stage::starttls);
  EXPECT_TRUE(peer.messages.empty());
  EXPECT_EQ(peer.sessions.size(), 1u);
}

TEST_F(TlsTest, SilentHandshakeEndsWithinItsTime) {
  Peer& peer = tls_peer();
  peer.tls.reset();  // says 220 and then nothing
  send_one(100);
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::failed);
  EXPECT_EQ(queue_.ends[0].stage, events::Stage::starttls);
  EXPECT_TRUE(peer.messages.empty());
  EXPECT_EQ(agent_->stats().tls_failed_ended, 1u);
}

TEST_F(TlsTest, RetiredLaneDoesNotWaitForAHandshake) {
  Peer& peer = tls_peer();
  peer.tls.reset();
  add("one\r\n");
  resolve("dest.example");
  queue::Lane* lane = open();
  ASSERT_TRUE(run([&] { return !peer.sessions.empty() && peer.sessions[0]->lines.size() == 2; }));
  world_.run_for(kSecond);
  lane->retire();
  EXPECT_TRUE(run_until_closed(1, 5));
}

TEST_F(TlsTest, PlaintextBehindThe220EndsTheConversation) {
  Peer& peer = tls_peer();
  peer.script = with_starttls("220 go\r\n250 injected\r\n");
  peer.tls.reset();
  send_one();
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::failed);
  EXPECT_NE(queue_.ends[0].reply.find("in the clear"), std::string::npos) << queue_.ends[0].reply;
  EXPECT_TRUE(peer.messages.empty());
}

TEST_F(TlsTest, PlaintextInPlaceOfTheHandshakeIsNoReasonToGoInTheClear) {
  Peer& peer = tls_peer();
  peer.tls.reset();
  peer.script = [script = with_starttls()](Peer::Session& session, const std::string& line) {
    // Answers our ClientHello, which holds no line end that matters, with text.
    if (line == "STARTTLS") session.answer_anything = true;
    return script(session, line);
  };
  send_one();
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::failed);
  EXPECT_EQ(agent_->stats().tls_failed_protocol, 1u);
  EXPECT_TRUE(peer.messages.empty());
}

TEST_F(TlsTest, SiteThatHadTlsIsNeverServedInTheClear) {
  Peer& peer = tls_peer();
  send_one();
  EXPECT_TRUE(agent_->tls_memory().remembers(site_.key, io_->wall_ms()));
  peer.script = with_starttls("454 4.7.0 not today\r\n");
  send_one();
  EXPECT_EQ(queue_.ends[1].cause, LaneEnd::Cause::failed);
  EXPECT_EQ(peer.messages.size(), 1u);
  peer.script = Peer::well_behaved({"PIPELINING"});  // does not even offer it
  world_.run_for(120 * kSecond);
  send_one();
  EXPECT_EQ(queue_.ends[2].cause, LaneEnd::Cause::failed);
  EXPECT_EQ(queue_.ends[2].stage, events::Stage::starttls);
  EXPECT_EQ(peer.messages.size(), 1u);
}

TEST_F(TlsTest, RequiredItHoldsMailWhereItIsNotOffered) {
  config_.tls = config::TlsLevel::required;
  restart();
  Peer& peer = simple_peer();
  send_one();
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::failed);
  EXPECT_NE(queue_.ends[0].reply.find("not offered"), std::string::npos);
  EXPECT_TRUE(peer.messages.empty());
  EXPECT_TRUE(queue_.finished_.empty()) << "a 5xx at STARTTLS, or none at all, never bounces";
}

TEST_F(TlsTest, VerifiedItTakesTheRightCertificateOnly) {
  config_.tls = config::TlsLevel::verified;
  restart();
  Peer& peer = tls_peer();
  send_one();
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
  peer.tls = server({.names = "DNS:other.example"});
  restart();
  send_one();
  EXPECT_EQ(queue_.ends[1].cause, LaneEnd::Cause::failed);
  EXPECT_NE(queue_.ends[1].reply.find("wrong name"), std::string::npos) << queue_.ends[1].reply;
  EXPECT_EQ(agent_->stats().tls_failed_certificate, 1u);
}

TEST_F(TlsTest, SwitchedOffItIsNotAskedFor) {
  config_.tls = config::TlsLevel::none;
  restart();
  Peer& peer = tls_peer();
  send_one();
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_reason, "TLS is off");
  EXPECT_EQ(peer.sessions[0]->lines[1].substr(0, 4), "MAIL");
}

TEST_F(TlsTest, NextHopWithSmtpsBeginsWithTheHandshake) {
  Peer& peer = tls_peer();
  peer.tls_from_connect = true;
  peer.script = Peer::well_behaved({"PIPELINING"});
  config_.smarthost = {"mx.example", 25, true};
  restart();
  send_one();
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_version, "TLSv1.3");
}

// ---- policy

dns::Route route_of(std::string host, bool explicit_hop = false) {
  dns::Route route;
  route.hosts.push_back({std::move(host), 10, {*reactor::Address::parse("192.0.2.1:25")}});
  route.explicit_hop = explicit_hop;
  return route;
}

TEST(TlsPolicyTest, BigProvidersAreNeverServedInTheClear) {
  config::Config config;
  for (const char* host : {"aspmx.l.google.com", "x.mail.protection.outlook.com", "mta5.am0.yahoodns.net", "mx01.mail.icloud.com"}) {
    EXPECT_EQ(tls_policy(config, route_of(host), host).level, config::TlsLevel::required) << host;
  }
  EXPECT_EQ(tls_policy(config, route_of("notgoogle.com"), "notgoogle.com").level, config::TlsLevel::opportunistic);
  config.tls_for["google.com"] = config::TlsLevel::none;
  EXPECT_EQ(tls_policy(config, route_of("aspmx.l.google.com"), "aspmx.l.google.com").level, config::TlsLevel::none);
}

TEST(TlsPolicyTest, LongestNameDecides) {
  config::Config config;
  config.tls_for = {{"example.org", config::TlsLevel::required}, {"old.example.org", config::TlsLevel::none}};
  EXPECT_EQ(tls_policy(config, route_of("mx.example.org"), "mx.example.org").level, config::TlsLevel::required);
  EXPECT_EQ(tls_policy(config, route_of("mx.old.example.org"), "mx.old.example.org").level, config::TlsLevel::none);
  EXPECT_EQ(tls_policy(config, route_of("mx.example.net"), "mx.example.net").level, config::TlsLevel::opportunistic);
}

TEST(TlsMemoryTest, ForgetsAfterThirtyDaysAndTellsNewsOnceADay) {
  TlsMemory memory;
  constexpr int64_t kDay = 86'400'000;
  EXPECT_TRUE(memory.completed("mx.example", 1 * kDay));
  EXPECT_FALSE(memory.completed("mx.example", 1 * kDay + 1000));
  EXPECT_TRUE(memory.completed("mx.example", 2 * kDay));
  EXPECT_TRUE(memory.remembers("mx.example", 31 * kDay));
  EXPECT_FALSE(memory.remembers("mx.example", 32 * kDay));
  EXPECT_FALSE(memory.remembers("other.example", 2 * kDay));
  TlsMemory other;
  other.note(TlsMemory::key("mx.example"), 2 * kDay);
  EXPECT_TRUE(other.remembers("mx.example", 3 * kDay));
}

}  // namespace
}  // namespace millrace::delivery
