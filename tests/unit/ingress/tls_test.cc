// Sessions with TLS: how it begins, what ends it, and what it permits.
#include <gtest/gtest.h>

#include "../tls/certificates.h"
#include "rig.h"

namespace millrace::ingress {
namespace {

tls::test::Certificates& made() {
  static tls::test::Certificates certificates;
  return certificates;
}

std::shared_ptr<const tls::ServerSettings> server(bool with_client_ca = false) {
  static const tls::Certificate certificate = *tls::read_certificate(made().make("relay"));
  auto settings = std::make_shared<tls::ServerSettings>();
  settings->certificates.push_back(certificate);
  if (with_client_ca) settings->client_ca_pem = *tls::read_authorities(made().authority());
  return settings;
}

std::unique_ptr<tls::Engine> engine(const std::string& certificate = {}) {
  tls::ClientSettings settings;
  if (!certificate.empty()) settings.certificate = *tls::read_certificate(made().make(certificate));
  return tls::Engine::connect(*tls::ClientContext::make(settings), {});
}

class IngressTlsTest : public ::testing::TestWithParam<uint64_t> {
 protected:
  IngressTlsTest() : rig(GetParam()) { rig.draft.tls_server = server(); }
  Client& secured_by_starttls(std::string_view source = "198.51.100.7") {
    Client& client = rig.introduce(source);
    EXPECT_EQ(client.talk("STARTTLS").substr(0, 4), "220 ");
    EXPECT_TRUE(client.secure(engine()));
    EXPECT_EQ(client.talk("EHLO app.example.org").substr(0, 4), "250-");
    return client;
  }
  Rig rig;
};

TEST_P(IngressTlsTest, StartTlsLeadsToAMessageReceivedWithEsmtps) {
  rig.start();
  Client& client = secured_by_starttls();
  EXPECT_EQ(rig.submit(client, "Subject: x\r\n\r\nhello\r\n").substr(0, 3), "250");
  ASSERT_TRUE(rig.wait_messages(1));
  EXPECT_NE(rig.content().find("with ESMTPS id"), std::string::npos) << rig.content();
  EXPECT_NE(rig.content().find("hello\r\n"), std::string::npos);
  EXPECT_EQ(rig.stats().tls_handshakes, 1u);
  ASSERT_FALSE(rig.sink.events.empty());
  const events::Event& event = rig.sink.events[0];
  EXPECT_EQ(event.tls_version, "TLSv1.3");
  EXPECT_EQ(event.tls_suite, "TLS_AES_128_GCM_SHA256");
}

TEST_P(IngressTlsTest, ImplicitTlsGreetsBehindTheHandshake) {
  rig.start();
  Client& client = rig.connect("198.51.100.7", 465);
  ASSERT_TRUE(client.secure(engine()));
  EXPECT_EQ(client.hear().substr(0, 4), "220 ");
  const std::string capabilities = client.talk("EHLO app.example.org");
  EXPECT_EQ(capabilities.find("STARTTLS"), std::string::npos);
  EXPECT_EQ(rig.submit(client, "Subject: x\r\n\r\nhello\r\n").substr(0, 3), "250");
}

TEST_P(IngressTlsTest, LargeMessagesArriveAsTheyWere) {
  rig.start();
  Client& client = secured_by_starttls();
  std::string text = "Subject: x\r\n\r\n";
  while (text.size() < 300'000) text += "line " + std::to_string(text.size()) + "\r\n";
  EXPECT_EQ(rig.submit(client, text).substr(0, 3), "250");
  ASSERT_TRUE(rig.wait_messages(1));
  EXPECT_TRUE(rig.content().ends_with(text.substr(text.find("\r\n\r\n"))));
}

TEST_P(IngressTlsTest, PlaintextBehindStartTlsIsNeverObeyed) {
  rig.start();
  for (bool apart : {false, true}) {
    Client& client = rig.introduce();
    if (apart) {
      client.send("STARTTLS\r\n");
      client.send("MAIL FROM:<evil@example.org>\r\nRCPT TO:<b@example.net>\r\n");
    } else {
      client.send("STARTTLS\r\nMAIL FROM:<evil@example.org>\r\nRCPT TO:<b@example.net>\r\n");
    }
    EXPECT_TRUE(client.wait_end());
    EXPECT_EQ(client.heard.find("250 "), std::string::npos) << client.heard;
  }
  EXPECT_EQ(rig.intake.asked, 0);
}

TEST_P(IngressTlsTest, ClientThatSpeaksInTheClearToTheTlsPortIsCountedAndClosed) {
  rig.start();
  Client& client = rig.connect("198.51.100.7", 465);
  client.send("EHLO app.example.org\r\n");
  EXPECT_TRUE(client.wait_end());
  EXPECT_EQ(client.heard, "");
  EXPECT_EQ(rig.stats().tls_failed_plaintext, 1u);
}

TEST_P(IngressTlsTest, HandshakeThatStandsStillEnds) {
  rig.start();
  Client& client = rig.connect("198.51.100.7", 465);
  client.send("\x16");
  EXPECT_TRUE(client.wait_end(2 * Session::kHandshakeNs));
  EXPECT_EQ(rig.stats().timeouts, 1u);
  EXPECT_EQ(rig.stats().tls_failed_ended, 1u);
}

TEST_P(IngressTlsTest, ClientThatGoesDuringTheHandshakeIsCounted) {
  rig.start();
  Client& client = rig.connect("198.51.100.7", 465);
  client.send(std::string("\x16\x03\x01\x02", 4));
  client.finish();
  EXPECT_TRUE(client.wait_end());
  rig.world.run_for(kSecond);
  EXPECT_EQ(rig.stats().tls_failed_ended, 1u);
}

// RFC 8689 4.1
TEST_P(IngressTlsTest, WhatAMessageAsksOfTlsGoesIntoTheQueue) {
  rig.start();
  Client& client = secured_by_starttls();
  struct {
    const char* parameter;
    const char* headers;
    mail::TlsWish wish;
  } const cases[] = {
      {"", "Subject: x\r\n", mail::TlsWish::none},
      {" REQUIRETLS", "Subject: x\r\n", mail::TlsWish::required},
      {"", "TLS-Required: No\r\n", mail::TlsWish::not_required},
      {"", "tls-required:no\r\n", mail::TlsWish::not_required},
      {" REQUIRETLS", "TLS-Required: No\r\n", mail::TlsWish::required},
      {"", "TLS-Required: Yes\r\n", mail::TlsWish::none},
      {"", "TLS-Required: No\r\nTLS-Required: No\r\n", mail::TlsWish::none},
  };
  size_t count = 0;
  for (const auto& one : cases) {
    EXPECT_EQ(client.talk(std::string("MAIL FROM:<a@example.org>") + one.parameter).substr(0, 3), "250");
    EXPECT_EQ(client.talk("RCPT TO:<b@example.net>").substr(0, 3), "250");
    EXPECT_EQ(client.talk("DATA").substr(0, 3), "354");
    EXPECT_EQ(client.talk(std::string(one.headers) + "\r\nhello\r\n.").substr(0, 3), "250");
    ASSERT_TRUE(rig.wait_messages(++count));
    const queue::Message& message = *rig.intake.messages.back();
    EXPECT_EQ(message.envelope.tls, one.wish) << one.parameter << one.headers;
    EXPECT_NE(rig.content(count - 1).find(one.headers), std::string::npos) << "and stays as it was";
  }
}

TEST_P(IngressTlsTest, RequiredItRefusesMailInTheClear) {
  rig.draft.require_tls = true;
  rig.start();
  Client& client = rig.introduce();
  EXPECT_EQ(client.talk("MAIL FROM:<a@example.org>").substr(0, 9), "530 5.7.0");
}

TEST_P(IngressTlsTest, CertificateOfTheClientCaIsPermissionToRelay) {
  rig.draft.tls_server = server(true);
  rig.start();
  for (const auto& [certificate, code] : {std::pair<std::string, std::string>{"friend", "250"}, {"", "550"}}) {
    Client& client = rig.introduce("203.0.113.9");  // not in relay_from
    EXPECT_EQ(client.talk("STARTTLS").substr(0, 4), "220 ");
    ASSERT_TRUE(client.secure(engine(certificate)));
    EXPECT_EQ(client.talk("EHLO app.example.org").substr(0, 4), "250-");
    EXPECT_EQ(client.talk("MAIL FROM:<a@example.org>").substr(0, 3), code) << certificate;
  }
}

TEST_P(IngressTlsTest, ForeignCertificateIsNone) {
  rig.draft.tls_server = server(true);
  rig.start();
  tls::ClientSettings settings;
  settings.certificate = *tls::read_certificate(made().make("stranger", {.self_signed = true}));
  Client& client = rig.introduce("203.0.113.9");
  EXPECT_EQ(client.talk("STARTTLS").substr(0, 4), "220 ");
  ASSERT_TRUE(client.secure(tls::Engine::connect(*tls::ClientContext::make(settings), {})));
  EXPECT_EQ(client.talk("EHLO app.example.org").substr(0, 4), "250-");
  EXPECT_EQ(client.talk("MAIL FROM:<a@example.org>").substr(0, 3), "550");
}

TEST_P(IngressTlsTest, ReloadedCertificateServesNewConnections) {
  rig.start();
  Client& old = secured_by_starttls();
  auto settings = std::make_shared<tls::ServerSettings>();
  settings->certificates.push_back(*tls::read_certificate(made().make("renewed", {.names = "DNS:renewed.example.org"})));
  rig.draft.tls_server = settings;
  rig.adopt();
  tls::ClientSettings trusting{.ca_pem = *tls::read_authorities(made().authority())};
  Client& fresh = rig.introduce();
  EXPECT_EQ(fresh.talk("STARTTLS").substr(0, 4), "220 ");
  EXPECT_TRUE(fresh.secure(tls::Engine::connect(*tls::ClientContext::make(trusting),
                                                {.server_name = "renewed.example.org", .verify = true})));
  EXPECT_EQ(old.talk("NOOP").substr(0, 3), "250");
}

TEST_P(IngressTlsTest, StartTlsMayEndAGroupOfCommands) {
  rig.start();
  Client& client = rig.introduce();
  EXPECT_EQ(client.talk("NOOP\r\nRSET\r\nSTARTTLS", 3).substr(0, 4), "250 ");
  EXPECT_TRUE(client.secure(engine()));
  EXPECT_EQ(client.talk("EHLO app.example.org").substr(0, 4), "250-");
}

TEST_P(IngressTlsTest, StopDoesNotWaitForAHandshake) {
  rig.start();
  Client& client = rig.introduce();
  EXPECT_EQ(client.talk("STARTTLS").substr(0, 4), "220 ");
  Client& implicit = rig.connect("198.51.100.7", 465);
  EXPECT_TRUE(rig.world.run_until([&] { return implicit.connected; }, rig.world.now() + kSecond));
  rig.world.run_for(kSecond);
  rig.listener->stop();
  EXPECT_TRUE(client.wait_end(5 * kSecond));
  EXPECT_TRUE(implicit.wait_end(5 * kSecond));
}

TEST_P(IngressTlsTest, ShutdownReachesTheClientThroughTls) {
  rig.start();
  Client& client = secured_by_starttls();
  rig.listener->drain();
  EXPECT_EQ(client.hear().substr(0, 3), "421");
  EXPECT_TRUE(client.wait_end());
}

INSTANTIATE_TEST_SUITE_P(Seeds, IngressTlsTest, ::testing::Range<uint64_t>(1, 6));

}  // namespace
}  // namespace millrace::ingress
