// TLS towards receivers: how it begins, when mail may go in the clear after all, and when never.
#include "../tls/certificates.h"
#include "config/shaping.h"
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
  EXPECT_EQ(queue_.outcomes(), "");
  ASSERT_EQ(queue_.ends.size(), 1u);
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::idle) << "nothing is held";
  EXPECT_EQ(first.sessions.size(), 1u) << "in the clear it is another connection, which rates and limits count";
  open();
  ASSERT_TRUE(run_until_closed(2));
  ASSERT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_reason, "502 5.5.1 what");
  EXPECT_EQ(second.sessions.size(), 1u);
  EXPECT_EQ(first.sessions.size(), 2u) << "the first again, in the clear";
  EXPECT_EQ(first.messages.size(), 1u);
  // The one after it asks for TLS again.
  add("two\r\n");
  first.script = with_starttls();
  open();
  ASSERT_TRUE(run_until_closed(3));
  EXPECT_EQ(queue_.outcomes(), "[delivered][delivered]");
  EXPECT_EQ(attempt().tls_version, "TLSv1.3");
}

TEST_F(TlsTest, InTheClearMailGoesOnlyToHostsThatRefused) {
  Peer& first = tls_peer();
  first.script = with_starttls("220 go\r\nRESET");  // held for a minute
  first.tls.reset();
  send_one();
  ASSERT_EQ(queue_.ends[0].cause, LaneEnd::Cause::failed);
  queue_.queue.clear();
  Peer& second = second_peer();
  second.script = with_starttls("454 4.7.0 TLS not available\r\n");
  cache_->flush();
  send_one();  // finds the second alone
  ASSERT_EQ(queue_.ends[1].cause, LaneEnd::Cause::idle);
  world_.run_for(61 * kSecond);
  open();
  ASSERT_TRUE(run_until_closed(3));
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_version, "");
  EXPECT_TRUE(first.messages.empty()) << "it never refused TLS";
  EXPECT_EQ(second.messages.size(), 1u);
}

TEST_F(TlsTest, WhatRefusalsAllowEndsWithTime) {
  Peer& peer = tls_peer();
  peer.script = with_starttls("454 4.7.0 TLS not available\r\n");
  add("one\r\n");
  resolve("dest.example");
  open();
  open();
  ASSERT_TRUE(run_until_closed(2));
  ASSERT_EQ(queue_.outcomes(), "");
  peer.script = with_starttls();
  world_.run_for(601 * kSecond);
  open();
  ASSERT_TRUE(run_until_closed(3));
  ASSERT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_version, "TLSv1.3");
}

TEST_F(TlsTest, WhatRefusalsAllowEndsWhenTlsComesAbout) {
  Peer& peer = tls_peer();
  const auto asked = std::make_shared<int>(0);
  peer.script = [asked, script = with_starttls()](Peer::Session& session, const std::string& line) {
    if (line == "STARTTLS" && ++*asked <= 2) return std::string("454 4.7.0 TLS not available\r\n");
    return script(session, line);
  };
  add("one\r\n");
  resolve("dest.example");
  for (int i = 0; i < 3; ++i) open();
  ASSERT_TRUE(run_until_closed(3));
  ASSERT_EQ(queue_.outcomes(), "[delivered]") << "by the third";
  agent_->tls_memory().forget(TlsMemory::key(site_.key));
  send_one();
  ASSERT_EQ(queue_.outcomes(), "[delivered][delivered]");
  EXPECT_EQ(attempt().tls_version, "TLSv1.3");
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

// ---- DANE (RFC 7672)

tls::TlsaRecord record_of(const std::string& name, uint8_t usage = 3) {
  const std::string path = made().path("bytes");
  tls::test::Certificates::read("openssl x509 -pubkey -noout -in " + made().path(name + ".pem") +
                                " | openssl pkey -pubin -outform der > " + path);
  return {usage, 1, 1, tls::test::Certificates::read("openssl dgst -binary -sha256 " + path)};
}

class DaneTest : public TlsTest {
 protected:
  static constexpr auto kName = "_25._tcp.mx.example";
  // A signed domain and host, whose certificate no authority has signed.
  DaneTest() {
    zones_.sign("dest.example");
    zones_.sign("mx.example");
    static const bool once = (made().make("own", {.names = "DNS:elsewhere.example", .self_signed = true}), made().make("alien"), true);
    (void)once;
  }
  std::shared_ptr<tls::ServerContext> with(const std::string& name) {
    tls::ServerSettings settings;
    settings.certificates.push_back(*tls::read_certificate({made().path(name + ".pem"), made().path(name + ".key")}));
    return *tls::ServerContext::make(settings);
  }
  Peer& dane_peer(const std::string& certificate = "own") {
    Peer& peer = tls_peer();
    peer.tls = with(certificate);
    zones_.add_tlsa(kName, record_of("own"));
    return peer;
  }
  void expect_held(const Peer& peer, std::string_view why) {
    ASSERT_FALSE(queue_.ends.empty());
    EXPECT_EQ(queue_.ends.back().cause, LaneEnd::Cause::failed);
    EXPECT_EQ(queue_.ends.back().stage, events::Stage::starttls);
    EXPECT_NE(queue_.ends.back().reply.find(why), std::string::npos) << queue_.ends.back().reply;
    EXPECT_TRUE(peer.messages.empty());
    EXPECT_TRUE(queue_.finished_.empty()) << "nothing bounces";
  }
};

TEST_F(DaneTest, RecordsVerifyWhatNoAuthorityDoes) {
  dane_peer();
  send_one();
  ASSERT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_policy, "dane");
  EXPECT_EQ(attempt().tls_verified, "ok");
  EXPECT_EQ(agent_->stats().tls_dane, 1u);
}

TEST_F(DaneTest, SecondConnectionResumesUnderTheSameRecordsOnly) {
  dane_peer();
  send_one();
  send_one();
  EXPECT_EQ(agent_->stats().tls_resumed, 1u);
  EXPECT_EQ(attempt().tls_verified, "ok");
  zones_.remove(kName);
  zones_.add_tlsa(kName, record_of("alien"));
  cache_->flush();
  send_one();
  EXPECT_EQ(agent_->stats().tls_resumed, 1u);
  EXPECT_EQ(queue_.ends.back().cause, LaneEnd::Cause::failed) << "what was good under old records is not under new ones";
}

TEST_F(DaneTest, WrongCertificateHoldsTheSite) {
  const Peer& peer = dane_peer("alien");  // which an authority of ours has signed
  send_one();
  expect_held(peer, "no TLSA record fits");
}

TEST_F(DaneTest, WithoutStarttlsMailWaits) {
  Peer& peer = dane_peer();
  peer.script = Peer::well_behaved({"PIPELINING"});
  send_one();
  expect_held(peer, "not offered");
  EXPECT_EQ(peer.sessions.size(), 1u);
}

TEST_F(DaneTest, RefusedStarttlsIsNoReasonToGoInTheClear) {
  Peer& peer = dane_peer();
  peer.script = with_starttls("454 4.7.0 not today\r\n");
  send_one();
  expect_held(peer, "454");
}

TEST_F(DaneTest, UnusableRecordsStillMeanTls) {
  Peer& peer = dane_peer("alien");
  zones_.remove(kName);
  zones_.add_tlsa(kName, {1, 1, 1, std::string(32, 'x')});
  peer.script = Peer::well_behaved({"PIPELINING"});
  send_one();
  expect_held(peer, "not offered");
  peer.script = with_starttls();
  world_.run_for(120 * kSecond);
  send_one();
  EXPECT_EQ(queue_.outcomes(), "[delivered][delivered]");
  EXPECT_EQ(attempt().tls_policy, "dane-unusable");
}

TEST_F(DaneTest, BogusRecordsKeepUsFromTheHost) {
  Peer& peer = dane_peer();
  zones_.fail(kName, dns::Outcome::failure);
  send_one();
  expect_held(peer, "TLSA look-up");
  EXPECT_TRUE(peer.sessions.empty()) << "not even tried";
  EXPECT_EQ(agent_->stats().tls_blocked, 1u);
}

TEST_F(DaneTest, HostWithBogusRecordsGivesWayToTheNext) {
  Peer& first = dane_peer();
  zones_.fail(kName, dns::Outcome::failure);
  Peer& second = second_peer();
  second.tls = server();
  second.script = with_starttls();
  send_one();
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_TRUE(first.sessions.empty());
  EXPECT_EQ(second.messages.size(), 1u);
}

TEST_F(DaneTest, HostThatItsRecordsDenyServesThoseThatAskLess) {
  Peer& peer = dane_peer("alien");
  send_one();
  expect_held(peer, "no TLSA record fits");
  queue_.queue.clear();
  zones_.add_mx("plain.example", 10, "mx.example");
  add("Subject: x\r\n\r\nhello\r\n", {"a@plain.example"});
  resolve("plain.example");
  open();
  ASSERT_TRUE(run_until_closed(2));
  EXPECT_EQ(queue_.outcomes(), "[delivered]") << "at once: the address is as good as ever";
}

TEST_F(DaneTest, HostWithRecordsIsNeverTriedInTheClearForOthersThatRefuse) {
  Peer& first = dane_peer("alien");
  first.script = with_starttls("454 4.7.0 not today\r\n");
  Peer& second = second_peer();
  second.script = with_starttls("454 4.7.0 not today\r\n");
  send_one();
  EXPECT_TRUE(first.messages.empty());
  EXPECT_TRUE(second.messages.empty()) << "one of them may not go in the clear, so all wait";
}

TEST_F(DaneTest, UnsignedDomainIsServedAsEver) {
  dane_peer("alien");
  zones_.add_mx("plain.example", 10, "mx.example");
  add("Subject: x\r\n\r\nhello\r\n", {"a@plain.example"});
  resolve("plain.example");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_policy, "opportunistic");
}

TEST_F(DaneTest, AskedForExplicitlyItIsDaneOrNothing) {
  config_.tls = config::TlsLevel::dane;
  restart();
  Peer& peer = tls_peer();
  send_one();
  expect_held(peer, "no secure TLSA records");
  EXPECT_TRUE(peer.sessions.empty());
}

TEST_F(DaneTest, WhatIsSaidOfTheHostGoesAhead) {
  config_.tls_for["mx.example"] = config::TlsLevel::required;
  restart();
  dane_peer("alien");
  send_one();
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_policy, "required");
}

TEST_F(DaneTest, ShapingFileDecidesByDomain) {
  config_.shaping_rules = *config::Shaping::parse("[domain.\"dest.example\"]\ntls = \"opportunistic\"\n", "shaping.toml", {});
  restart();
  dane_peer("alien");
  send_one();
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_policy, "opportunistic");
}

// ---- what messages ask (RFC 8689)

class RequireTlsTest : public DaneTest {
 protected:
  // A host that is the domain's by a signed MX record, with a certificate of our authority.
  Peer& good_peer() {
    Peer& peer = tls_peer();
    peer.script = with_starttls("220 go\r\n", {"PIPELINING", "REQUIRETLS"});
    return peer;
  }
  void send_wishing(mail::TlsWish wish, std::string_view reverse_path = "sender@client.example") {
    destination_.tls = wish;
    Mail& mail = add("Subject: x\r\n\r\nhello\r\n");
    mail.message->envelope.tls = wish;
    mail.message->envelope.reverse_path = reverse_path;
    resolve("dest.example");
    if (destination_.route->verdict != dns::Verdict::usable) return;
    open();
    ASSERT_TRUE(run_until_closed(queue_.ends.size() + 1));
    // In the clear after a refused STARTTLS it is another connection, as the queue makes it.
    if (queue_.queue.empty() || queue_.ends.back().cause != LaneEnd::Cause::idle) return;
    open();
    ASSERT_TRUE(run_until_closed(queue_.ends.size() + 1));
  }
  void send_required(std::string_view reverse_path = "sender@client.example") {
    send_wishing(mail::TlsWish::required, reverse_path);
  }
  void expect_bounce(std::string_view status) {
    ASSERT_EQ(queue_.outcomes(), "[bounce]");
    EXPECT_EQ(attempt().results[0].enhanced, status) << attempt().results[0].reply;
    EXPECT_EQ(attempt().results[0].bounce_class, "policy-related");
    EXPECT_EQ(queue_.ends.back().cause, LaneEnd::Cause::idle) << "nobody else waits for it";
  }
  static bool says(const Peer& peer, const std::string& line) {
    for (const auto& session : peer.sessions) {
      if (std::find(session->lines.begin(), session->lines.end(), line) != session->lines.end()) return true;
    }
    return false;
  }
};

TEST_F(RequireTlsTest, GoesToAVerifiedHostAsRequiretls) {
  const Peer& peer = good_peer();
  send_required();
  ASSERT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_policy, "requiretls");
  EXPECT_EQ(attempt().tls_verified, "ok");
  EXPECT_TRUE(says(peer, "MAIL FROM:<sender@client.example> REQUIRETLS"));
}

TEST_F(RequireTlsTest, TlsaRecordsAreAsGoodAsAuthorities) {
  Peer& peer = dane_peer();
  peer.script = with_starttls("220 go\r\n", {"PIPELINING", "REQUIRETLS"});
  send_required();
  ASSERT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_policy, "dane");
}

TEST_F(RequireTlsTest, HostsThatNobodyVouchesForAreNotTried) {
  const Peer& peer = good_peer();
  zones_.add_mx("plain.example", 10, "mx.example");
  destination_.tls = mail::TlsWish::required;
  resolve("plain.example");
  EXPECT_EQ(destination_.route->verdict, dns::Verdict::unprotected);
  EXPECT_EQ(dns::enhanced_status(destination_.route->verdict), "5.7.10");
  destination_.tls = mail::TlsWish::none;
  resolve("plain.example");
  EXPECT_EQ(destination_.route->verdict, dns::Verdict::usable);
  EXPECT_TRUE(peer.sessions.empty());
}

TEST_F(RequireTlsTest, ReceiverThatDoesNotPassItOnGetsNothing) {
  Peer& peer = good_peer();
  peer.script = with_starttls();
  send_required();
  expect_bounce("5.7.30");
  EXPECT_TRUE(peer.messages.empty());
  EXPECT_FALSE(says(peer, "MAIL FROM:<sender@client.example>"));
}

TEST_F(RequireTlsTest, ReportsGoToReceiversThatDoNotPassItOn) {
  Peer& peer = good_peer();
  peer.script = with_starttls();
  send_required("");
  ASSERT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_TRUE(says(peer, "MAIL FROM:<>"));
  EXPECT_EQ(attempt().tls_verified, "ok") << "over verified TLS all the same";
}

TEST_F(RequireTlsTest, SecondTryWithoutItIsAConnectionThatTheQueueMakes) {
  Peer& peer = good_peer();
  peer.script = with_starttls();
  destination_.tls = mail::TlsWish::required;
  Mail& mail = add("Subject: x\r\n\r\nhello\r\n");
  mail.message->envelope.tls = mail::TlsWish::required;
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed(1));
  EXPECT_EQ(peer.sessions.size(), 1u) << "whose rate counts one";
  EXPECT_EQ(queue_.ends.back().cause, LaneEnd::Cause::idle);
  EXPECT_EQ(queue_.outcomes(), "");
  open();
  ASSERT_TRUE(run_until_closed(2));
  EXPECT_EQ(peer.sessions.size(), 2u);
  expect_bounce("5.7.30");
}

TEST_F(RequireTlsTest, AnotherHostMayPassItOn) {
  Peer& first = good_peer();
  first.script = with_starttls();
  Peer& second = second_peer();
  second.tls = server({.names = "DNS:mx2.example"});
  second.script = with_starttls("220 go\r\n", {"PIPELINING", "REQUIRETLS"});
  send_required();
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_TRUE(first.messages.empty());
  EXPECT_EQ(second.messages.size(), 1u);
}

TEST_F(RequireTlsTest, WrongCertificateIsTheEndOfIt) {
  Peer& peer = good_peer();
  peer.tls = server({.names = "DNS:other.example"});
  send_required();
  expect_bounce("5.7.10");
  EXPECT_TRUE(peer.messages.empty());
}

TEST_F(RequireTlsTest, SoIsAHostWithoutTls) {
  Peer& peer = good_peer();
  peer.script = Peer::well_behaved({"PIPELINING", "REQUIRETLS"});
  send_required();
  expect_bounce("5.7.10");
  EXPECT_FALSE(says(peer, "MAIL FROM:<sender@client.example> REQUIRETLS")) << "what is announced in the clear counts for nothing";
}

TEST_F(RequireTlsTest, HostThatIsAwayMayDoBetterAnotherTime) {
  for (bool with_tls : {false, true}) {
    SCOPED_TRACE(with_tls);
    if (!with_tls) {
      good_peer().script = Peer::well_behaved({"PIPELINING"});
      zones_.add_mx("dest.example", 20, "mx2.example");
      zones_.add_address("mx2.example", "198.51.100.2");  // nobody there
    } else {
      peers_[0]->script = with_starttls();
    }
    send_required();
    EXPECT_TRUE(queue_.finished_.empty()) << queue_.outcomes();
    EXPECT_EQ(queue_.ends.back().cause, LaneEnd::Cause::failed);
    queue_.queue.clear();
    world_.run_for(3000 * kSecond);
  }
}

TEST_F(RequireTlsTest, HostThatIsAwayIsUndecidedAlsoWhereNothingIsHeld) {
  config_.hold_ms.clear();
  restart();
  good_peer().script = Peer::well_behaved({"PIPELINING"});
  zones_.add_mx("dest.example", 20, "mx2.example");
  zones_.add_address("mx2.example", "198.51.100.2");  // nobody there
  send_required();
  EXPECT_TRUE(queue_.finished_.empty()) << queue_.outcomes();
  EXPECT_EQ(queue_.ends.back().cause, LaneEnd::Cause::failed);
}

TEST_F(RequireTlsTest, AllHostsAreAskedBeforeItBounces) {
  good_peer().script = with_starttls();
  for (int i = 2; i <= 7; ++i) {
    const std::string name = fmt::format("mx{}.example", i), address = fmt::format("198.51.100.{}", i);
    Peer& peer = add_peer(address);
    peer.tls = server({.names = "DNS:" + name});
    peer.script = with_starttls();
    zones_.add_mx("dest.example", static_cast<uint16_t>(10 * i), name);
    zones_.add_address(name, address);
  }
  send_required();
  expect_bounce("5.7.30");
  EXPECT_EQ(peers_[6]->sessions.size(), 1u);
  EXPECT_EQ(peers_[0]->sessions.size(), 2u) << "once more, to tell the mail";
  queue_.finished_.clear();
  peers_[6]->script = with_starttls("220 go\r\n", {"PIPELINING", "REQUIRETLS"});
  send_required();
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(peers_[6]->messages.size(), 1u);
}

TEST_F(RequireTlsTest, TlsThatIsRefusedForNowIsWaitedFor) {
  good_peer().script = with_starttls("454 4.7.0 not today\r\n");
  send_required();
  EXPECT_TRUE(queue_.finished_.empty()) << queue_.outcomes();
  EXPECT_EQ(queue_.ends.back().cause, LaneEnd::Cause::failed);
}

TEST_F(RequireTlsTest, WhatIsSaidOfTheHostDoesNotLoosenIt) {
  config_.tls_for["mx.example"] = config::TlsLevel::none;
  config_.tls = config::TlsLevel::none;
  restart();
  good_peer();
  send_required();
  ASSERT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_verified, "ok");
}

TEST_F(RequireTlsTest, NextHopIsVouchedForByTheConfiguration) {
  config_.smarthost = {"smart.example", 25, false};
  restart();
  zones_.add_address("smart.example", "198.51.100.1");
  good_peer().tls = server({.names = "DNS:smart.example"});
  send_required();
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
}

TEST_F(RequireTlsTest, MailThatNeedsNoTlsGoesWhereTlsaRecordsForbidIt) {
  Peer& peer = dane_peer("alien");
  send_wishing(mail::TlsWish::not_required);
  ASSERT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(attempt().tls_policy, "not-required");
  EXPECT_EQ(attempt().tls_version, "TLSv1.3") << "encrypted where that can be had";
  zones_.fail(kName, dns::Outcome::failure);
  cache_->flush();
  peer.script = with_starttls("454 4.7.0 not today\r\n");
  send_wishing(mail::TlsWish::not_required);
  EXPECT_EQ(queue_.outcomes(), "[delivered][delivered]") << "nor does it matter that they cannot be had";
  EXPECT_EQ(attempt().tls_version, "");
}

TEST_F(RequireTlsTest, MailThatNeedsNoTlsGoesInTheClearToWhoeverHadIt) {
  Peer& peer = good_peer();
  send_one();
  ASSERT_EQ(queue_.outcomes(), "[delivered]");
  for (const char* broken : {"454 4.7.0 no\r\n", "220 go\r\nCLOSE"}) {
    peer.script = with_starttls(broken);
    if (std::string_view(broken).starts_with("220")) peer.tls = nullptr;
    send_wishing(mail::TlsWish::not_required);
    EXPECT_EQ(attempt().tls_version, "") << broken;
    EXPECT_EQ(attempt().tls_policy, "not-required");
  }
  EXPECT_EQ(queue_.outcomes(), "[delivered][delivered][delivered]");
}

TEST_F(RequireTlsTest, WhatTheOperatorAsksForStays) {
  config_.tls = config::TlsLevel::verified;
  restart();
  good_peer().tls = server({.names = "DNS:other.example"});
  send_wishing(mail::TlsWish::not_required);
  EXPECT_TRUE(queue_.finished_.empty());
  EXPECT_EQ(queue_.ends.back().cause, LaneEnd::Cause::failed);
}

TEST(TlsDemandTest, MessagesThatAskForThemselvesHaveConnectionsOfTheirOwn) {
  std::vector<std::string> keys;
  for (mail::TlsWish wish : {mail::TlsWish::none, mail::TlsWish::required, mail::TlsWish::not_required}) {
    dns::Route route;
    route.verdict = dns::Verdict::usable;
    route.secure = true;
    route.hosts.push_back({.name = "mx.example", .preference = 10, .addresses = {}});
    ask_tls(route, "a.example", config::TlsLevel::automatic, nullptr, wish, false);
    keys.push_back(route.tls.key);
  }
  EXPECT_EQ(keys, (std::vector<std::string>{"", "requiretls", "not-required"}));
}

// ---- policy

TEST(TlsDemandTest, DomainsThatAskTheSameShareConnections) {
  using config::TlsLevel;
  dns::Route route;
  route.hosts.push_back({.name = "mx.example", .preference = 10, .addresses = {}});
  EXPECT_EQ(tls_demand(route, "a.example", TlsLevel::automatic).key, tls_demand(route, "b.example", TlsLevel::opportunistic).key);
  EXPECT_NE(tls_demand(route, "a.example", TlsLevel::required).key, tls_demand(route, "a.example", TlsLevel::automatic).key);
  dns::Dane& dane = route.hosts[0].dane;
  dane = {dns::Dane::State::records, {{3, 1, 1, std::string(32, 'x')}}, "mx.example", {}};
  EXPECT_EQ(tls_demand(route, "a.example", TlsLevel::automatic).key, tls_demand(route, "b.example", TlsLevel::automatic).key);
  EXPECT_NE(tls_demand(route, "a.example", TlsLevel::automatic).key, tls_demand(route, "a.example", TlsLevel::opportunistic).key);
  // By an authority of its own, the server may have the domain's name: then nobody else's connection will do.
  dane.records[0].usage = 2;
  dane.base = "mx.a.example";
  EXPECT_EQ(tls_demand(route, "a.example", TlsLevel::automatic).next_hop, "a.example");
  EXPECT_EQ(tls_demand(route, "b.example", TlsLevel::automatic).next_hop, "");
  EXPECT_NE(tls_demand(route, "a.example", TlsLevel::automatic).key, tls_demand(route, "b.example", TlsLevel::automatic).key);
}

dns::Route route_of(std::string host, bool explicit_hop = false) {
  dns::Route route;
  route.hosts.push_back({.name = std::move(host), .preference = 10, .addresses = {*reactor::Address::parse("192.0.2.1:25")}});
  route.explicit_hop = explicit_hop;
  return route;
}

TlsPolicy policy_of(const config::Config& config, std::string host) {
  const dns::Route route = route_of(std::move(host));
  return tls_policy(config, route, route.hosts[0]);
}

TEST(TlsPolicyTest, BigProvidersAreNeverServedInTheClear) {
  config::Config config;
  for (const char* host : {"aspmx.l.google.com", "x.mail.protection.outlook.com", "mta5.am0.yahoodns.net", "mx01.mail.icloud.com"}) {
    EXPECT_EQ(policy_of(config, host).level, config::TlsLevel::required) << host;
  }
  EXPECT_EQ(policy_of(config, "notgoogle.com").level, config::TlsLevel::opportunistic);
  config.tls_for["google.com"] = config::TlsLevel::none;
  EXPECT_EQ(policy_of(config, "aspmx.l.google.com").level, config::TlsLevel::none);
}

TEST(TlsPolicyTest, LongestNameDecides) {
  config::Config config;
  config.tls_for = {{"example.org", config::TlsLevel::required}, {"old.example.org", config::TlsLevel::none}};
  EXPECT_EQ(policy_of(config, "mx.example.org").level, config::TlsLevel::required);
  EXPECT_EQ(policy_of(config, "mx.old.example.org").level, config::TlsLevel::none);
  EXPECT_EQ(policy_of(config, "mx.example.net").level, config::TlsLevel::opportunistic);
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
