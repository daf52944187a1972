// Sessions that authenticate: when AUTH is there, who gets in, how refusals come, and what an account may do.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "../tls/certificates.h"
#include "auth/client_exchange.h"
#include "base/base64.h"
#include "rig.h"

namespace millrace::ingress {
namespace {

using namespace std::string_literals;

// Cheap to check: the password is "secret".
constexpr std::string_view kHash =
    "$6$rounds=1000$saltstring$2BkAo106CG84raQcWpAlhyy6TSSkAsL1nfvBCoezLYyerUzY2l8axTvq6NynEt7SQAx3/cdop9ds0po8uaeHq0";

std::shared_ptr<const tls::ServerSettings> server() {
  static tls::test::Certificates made;
  static const tls::Certificate certificate = *tls::read_certificate(made.make("relay"));
  auto settings = std::make_shared<tls::ServerSettings>();
  settings->certificates.push_back(certificate);
  settings->channel_bindings = true;
  return settings;
}

std::string plain(std::string_view user, std::string_view password) {
  return "AUTH PLAIN " + to_base64("\0"s.append(user).append("\0"s).append(password));
}

class AuthTest : public ::testing::Test {
 protected:
  AuthTest() {
    rig.draft.tls_server = server();
    rig.draft.relay_from = {};
    use("");
  }
  void use(std::string_view more, std::string_view hash = kHash) {
    const std::string verifier =
        auth::print_scram_verifier(auth::make_scram_verifier("secret", "0123456789abcdef", 4096));
    std::string text = fmt::format("[account.joe]\npassword = \"{}\"\nscram-sha-256 = \"{}\"\n{}\n", hash, verifier, more);
    auto parsed = config::Credentials::parse(text, "credentials.toml", {});
    ASSERT_TRUE(parsed.ok()) << parsed.error().text;
    rig.draft.accounts = *parsed;
  }
  Client& secured(std::string_view source = "198.51.100.7") {
    Client& client = rig.introduce(source);
    EXPECT_EQ(client.talk("STARTTLS").substr(0, 4), "220 ");
    auto made = tls::Engine::connect(*tls::ClientContext::make({}), {.channel_binding = true});
    engine = made.get();
    EXPECT_TRUE(client.secure(std::move(made)));
    capabilities = client.talk("EHLO app.example.org");
    return client;
  }
  Client& authenticated(std::string_view source = "198.51.100.7") {
    Client& client = secured(source);
    EXPECT_EQ(client.talk(plain("joe", "secret")), "235 2.7.0 Authentication successful\r\n");
    return client;
  }
  std::string talk_scram(Client& client, auth::ClientMechanism mechanism, std::string password, std::string user = "joe") {
    auth::ClientExchange exchange(mechanism, {user, password, "", 0, "clientnonce", engine->channel_binding(), true});
    std::string heard = client.talk(fmt::format("AUTH {} {}", to_string(mechanism), to_base64(exchange.initial())));
    while (heard.starts_with("334 ")) {
      auto response = exchange.respond(*from_base64(heard.substr(4, heard.size() - 6)));
      if (!response) return "cancelled: " + exchange.error();
      heard = client.talk(to_base64(*response));
    }
    if (heard.starts_with("235")) {
      EXPECT_TRUE(exchange.server_proven());
    }
    return heard;
  }

  Rig rig;
  tls::Engine* engine = nullptr;
  std::string capabilities;
};

TEST_F(AuthTest, IsNeitherOfferedNorTakenWithoutTls) {
  rig.start();
  Client& client = rig.connect();
  client.hear();
  EXPECT_EQ(client.talk("EHLO app.example.org").find("AUTH"), std::string::npos);
  EXPECT_EQ(client.talk(plain("joe", "secret")).substr(0, 10), "538 5.7.11");
  EXPECT_EQ(client.talk("MAIL FROM:<a@example.org>").substr(0, 9), "550 5.7.1");
}

TEST_F(AuthTest, IsPermissionToRelay) {
  use("tenant = \"acme\"");
  rig.start();
  Client& client = secured();
  EXPECT_NE(capabilities.find("AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN\r\n"), std::string::npos);
  EXPECT_EQ(client.talk("MAIL FROM:<a@example.org>").substr(0, 9), "530 5.7.0");
  EXPECT_EQ(client.talk(plain("joe", "secret")).substr(0, 3), "235");
  EXPECT_EQ(rig.submit(client, "From: a@example.org\r\n\r\nhello\r\n").substr(0, 3), "250");
  ASSERT_TRUE(rig.wait_messages(1));
  EXPECT_NE(rig.content().find("with ESMTPSA id"), std::string::npos) << rig.content();
  EXPECT_EQ(rig.message().envelope.account, "joe");
  EXPECT_EQ(rig.message().envelope.tenant, "acme");
  EXPECT_EQ(rig.sink.events.back().account, "joe");
  EXPECT_EQ(rig.stats().auth_succeeded, 1u);
}

TEST_F(AuthTest, EveryMechanismGetsIn) {
  rig.start();
  Client& login = secured();
  EXPECT_EQ(login.talk("AUTH LOGIN"), "334 VXNlcm5hbWU6\r\n");
  EXPECT_EQ(login.talk(to_base64("joe")), "334 UGFzc3dvcmQ6\r\n");
  EXPECT_EQ(login.talk(to_base64("secret")).substr(0, 3), "235");
  Client& asked = secured();
  EXPECT_EQ(asked.talk("AUTH PLAIN"), "334 \r\n");
  EXPECT_EQ(asked.talk(to_base64("\0joe\0secret"s)).substr(0, 3), "235");
  Client& scram = secured();
  EXPECT_EQ(talk_scram(scram, auth::ClientMechanism::scram_sha_256, "secret").substr(0, 3), "235");
  Client& plus = secured();
  EXPECT_EQ(talk_scram(plus, auth::ClientMechanism::scram_sha_256_plus, "secret").substr(0, 3), "235");
}

TEST_F(AuthTest, WrongPasswordsAndUnknownNamesAreRefusedAlikeAndLater) {
  rig.start();
  int64_t last = 0;
  for (auto [user, password] : {std::pair{"joe", "wrong"}, {"jane", "secret"}}) {
    Client& client = secured();
    int64_t before = rig.world.now();
    EXPECT_EQ(client.talk(plain(user, password)), "535 5.7.8 Authentication credentials invalid\r\n");
    EXPECT_GT(rig.world.now() - before, last + kSecond / 2);
    last = rig.world.now() - before;
    EXPECT_EQ(client.talk("MAIL FROM:<a@example.org>").substr(0, 3), "530");
  }
  Client& scram = secured();
  EXPECT_EQ(talk_scram(scram, auth::ClientMechanism::scram_sha_256, "wrong").substr(0, 3), "535");
  EXPECT_EQ(talk_scram(scram, auth::ClientMechanism::scram_sha_256, "secret", "jane").substr(0, 3), "535");
  EXPECT_EQ(rig.stats().auth_failed, 4u);
  EXPECT_EQ(rig.sink.events.back().stage, events::Stage::auth);
  EXPECT_EQ(rig.sink.events.back().account, "jane");
}

TEST_F(AuthTest, ThreeFailuresEndTheSessionAndTwentyShutTheAddressOut) {
  rig.start();
  int refused = 0;
  for (int session = 0; session < 7; ++session) {
    Client& client = secured();
    for (int n = 0; n < 3; ++n) {
      client.send(plain("joe", "wrong") + "\r\n");
      // The delay has grown to half a minute by then.
      const std::string heard = client.hear(n == 2 && refused < 20 ? 2 : 1, 60 * kSecond);
      if (refused == 20) {
        EXPECT_EQ(heard.substr(0, 9), "454 4.7.0");
        break;
      }
      ++refused;
      EXPECT_EQ(heard.substr(0, 9), "535 5.7.8");
      EXPECT_EQ(heard.find("421 4.7.0") != std::string::npos, n == 2) << heard;
    }
  }
  EXPECT_EQ(refused, 20);
  EXPECT_EQ(rig.stats().auth_shut_out, 1u);
  Client& client = secured();
  EXPECT_EQ(client.talk(plain("joe", "secret")).substr(0, 9), "454 4.7.0");
  Client& elsewhere = secured("198.51.100.8");
  EXPECT_EQ(elsewhere.talk(plain("joe", "secret")).substr(0, 3), "235");
}

TEST_F(AuthTest, HasItsPlaceInTheDialogue) {
  rig.start();
  Client& client = secured();
  EXPECT_EQ(client.talk("AUTH GSSAPI").substr(0, 9), "504 5.5.4");
  EXPECT_EQ(client.talk("AUTH").substr(0, 3), "501");
  EXPECT_EQ(client.talk("AUTH PLAIN !!!!").substr(0, 9), "501 5.5.2");
  EXPECT_EQ(client.talk("AUTH PLAIN " + to_base64("no nuls")).substr(0, 9), "501 5.5.2");
  EXPECT_EQ(client.talk("AUTH PLAIN").substr(0, 3), "334");
  EXPECT_EQ(client.talk("*").substr(0, 9), "501 5.7.0");
  EXPECT_EQ(client.talk("AUTH LOGIN").substr(0, 3), "334");
  EXPECT_EQ(client.talk("not base64").substr(0, 9), "501 5.5.2");
  EXPECT_EQ(client.talk("AUTH PLAIN").substr(0, 3), "334");
  EXPECT_EQ(client.talk(std::string(12'287, 'A')).substr(0, 9), "500 5.5.6");
  EXPECT_EQ(client.talk("NOOP " + std::string(5000, 'x')).substr(0, 3), "500");
  EXPECT_EQ(client.talk(plain("joe", "secret")).substr(0, 3), "235");
  EXPECT_EQ(client.talk(plain("joe", "secret")).substr(0, 9), "503 5.5.1");
  EXPECT_EQ(client.talk("MAIL FROM:<a@example.org> AUTH=<>").substr(0, 3), "250");
  EXPECT_EQ(client.talk(plain("joe", "secret")).substr(0, 9), "503 5.5.1");
}

TEST_F(AuthTest, IsRefusedInATransaction) {
  rig.draft.relay_from = {*reactor::Network::parse("198.51.100.0/24")};
  rig.start();
  Client& client = secured();
  EXPECT_EQ(client.talk("MAIL FROM:<a@example.org>").substr(0, 3), "250");
  EXPECT_EQ(client.talk(plain("joe", "secret")).substr(0, 9), "503 5.5.1");
  EXPECT_EQ(client.talk("RSET").substr(0, 3), "250");
  EXPECT_EQ(client.talk(plain("joe", "secret")).substr(0, 3), "235");
}

TEST_F(AuthTest, WhatWasSentAheadOfThe235IsRefused) {
  rig.start();
  Client& client = secured();
  client.send("AUTH PLAIN\r\n");
  client.hear();
  client.send(to_base64("\0joe\0secret"s) + "\r\nMAIL FROM:<a@example.org>\r\n");
  EXPECT_EQ(client.hear().substr(0, 3), "554");
  EXPECT_TRUE(client.wait_end());
}

TEST_F(AuthTest, OnLoopbackOnlyWhereAskedFor) {
  rig.draft.auth_on_loopback = true;
  rig.start();
  Client& client = rig.connect();
  client.hear();
  EXPECT_EQ(client.talk("EHLO app.example.org").find("AUTH"), std::string::npos);
  EXPECT_EQ(client.talk(plain("joe", "secret")).substr(0, 3), "538");
}

TEST_F(AuthTest, AnAccountKeepsToItsNetworksAndSenders) {
  use("networks = [\"198.51.100.7\"]\nsenders = [\"example.org\", \"*.sub.example\", \"news@example.com\"]");
  rig.start();
  Client& elsewhere = secured("198.51.100.8");
  EXPECT_EQ(elsewhere.talk(plain("joe", "secret")).substr(0, 9), "535 5.7.8");
  Client& client = authenticated();
  EXPECT_EQ(client.talk("MAIL FROM:<a@example.com>").substr(0, 9), "553 5.7.1");
  EXPECT_EQ(client.talk("MAIL FROM:<a@sub.example>").substr(0, 9), "553 5.7.1");
  EXPECT_EQ(client.talk("MAIL FROM:<a@x.sub.example>").substr(0, 3), "250");
  client.talk("RSET");
  EXPECT_EQ(client.talk("MAIL FROM:<news@EXAMPLE.com>").substr(0, 3), "250");
  client.talk("RSET");
  EXPECT_EQ(rig.submit(client, "From: Boss <boss@example.com>\r\n\r\nhello\r\n").substr(0, 9), "550 5.7.1");
  EXPECT_EQ(rig.submit(client, "From: a@example.org\r\nFrom: boss@example.com\r\n\r\nhello\r\n").substr(0, 9), "550 5.7.1");
  EXPECT_EQ(rig.submit(client, "Subject: x\r\n\r\nhello\r\n").substr(0, 9), "550 5.7.1");
  EXPECT_EQ(rig.submit(client, "From: \"Boss, the\" <a@example.org>\r\n\r\nhello\r\n").substr(0, 3), "250");
}

TEST_F(AuthTest, AnAccountKeepsToItsPools) {
  use("pools = [\"bulk\", \"fast\"]");
  rig.start();
  Client& client = authenticated();
  EXPECT_EQ(rig.submit(client, "X-Virtual-MTA: other\r\n\r\nhello\r\n").substr(0, 9), "550 5.7.1");
  EXPECT_EQ(rig.submit(client, "X-Virtual-MTA: fast\r\n\r\nhello\r\n").substr(0, 3), "250");
  EXPECT_EQ(rig.submit(client, "Subject: x\r\n\r\nhello\r\n").substr(0, 3), "250");
  ASSERT_TRUE(rig.wait_messages(2));
  EXPECT_EQ(rig.message(0).envelope.pool, "fast");
  EXPECT_EQ(rig.message(1).envelope.pool, "bulk");
}

TEST_F(AuthTest, RecipientsPastTheBudgetAre452WithTheTime) {
  use("recipients-per-hour = 2");
  rig.start();
  Client& client = authenticated();
  // What is not accepted does not count.
  for (int n = 0; n < 5; ++n) {
    EXPECT_EQ(client.talk("MAIL FROM:<a@example.org>").substr(0, 3), "250");
    EXPECT_EQ(client.talk("RCPT TO:<b@example.net>").substr(0, 3), "250");
    EXPECT_EQ(client.talk("RSET").substr(0, 3), "250");
  }
  EXPECT_EQ(rig.submit(client, "X-Expire-After: nonsense\r\n\r\nhello\r\n").substr(0, 3), "554");
  EXPECT_EQ(rig.submit(client, "Subject: x\r\n\r\nhello\r\n").substr(0, 3), "250");
  EXPECT_EQ(client.talk("MAIL FROM:<a@example.org>").substr(0, 3), "250");
  EXPECT_EQ(client.talk("RCPT TO:<b@example.net>").substr(0, 3), "250");
  std::string refused = client.talk("RCPT TO:<c@example.net>");
  EXPECT_EQ(refused.substr(0, 9), "452 4.7.1");
  EXPECT_NE(refused.find("2 recipients per hour are used up for this account; more from "), std::string::npos) << refused;
  // Another session of the account is under the same budget.
  Client& other = authenticated();
  EXPECT_EQ(other.talk("MAIL FROM:<a@example.org>").substr(0, 3), "250");
  EXPECT_EQ(other.talk("RCPT TO:<b@example.net>").substr(0, 3), "452");
  client.close();
  ASSERT_TRUE(rig.world.run_until([&] { return client.gone; }, rig.world.now() + 10 * kSecond));
  EXPECT_EQ(other.talk("RCPT TO:<b@example.net>").substr(0, 3), "250");
}

TEST_F(AuthTest, AFrozenAccountGets450) {
  rig.start();
  Client& client = authenticated();
  rig.accounts->set_frozen("joe", true);
  EXPECT_EQ(client.talk("MAIL FROM:<a@example.org>").substr(0, 9), "450 4.7.0");
  rig.accounts->set_frozen("joe", false);
  EXPECT_EQ(client.talk("MAIL FROM:<a@example.org>").substr(0, 3), "250");
}

TEST_F(AuthTest, AReloadReachesSessionsThatLast) {
  rig.start();
  Client& client = authenticated();
  use("senders = [\"example.com\"]");
  rig.adopt();
  EXPECT_EQ(client.talk("MAIL FROM:<a@example.org>").substr(0, 3), "553");
  rig.draft.accounts = *config::Credentials::parse("", "credentials.toml", {});
  rig.adopt();
  EXPECT_EQ(client.talk("MAIL FROM:<a@example.org>").substr(0, 9), "550 5.7.1");
}

// A checker that never answers, or has no room.
class StuckChecker final : public PasswordChecker {
 public:
  bool submit(std::unique_ptr<PasswordJob> job) override {
    if (full) return false;
    jobs.push_back(std::move(job));
    return true;
  }
  bool full = false;
  std::vector<std::unique_ptr<PasswordJob>> jobs;
};

TEST_F(AuthTest, AFullQueueOfPasswordsIs454AndASlowOneHoldsTheSessionOnly) {
  StuckChecker stuck;
  rig.start();
  rig.context->passwords = &stuck;
  Client& gone = secured();
  gone.send(plain("joe", "secret") + "\r\n");
  ASSERT_TRUE(rig.world.run_until([&] { return stuck.jobs.size() == 1; }, rig.world.now() + 10 * kSecond));
  gone.close(true);
  ASSERT_TRUE(rig.world.run_until([&] { return gone.gone; }, rig.world.now() + 10 * kSecond));
  Client& waiting = secured();
  waiting.send(plain("joe", "secret") + "\r\n");
  ASSERT_TRUE(rig.world.run_until([&] { return stuck.jobs.size() == 2; }, rig.world.now() + 10 * kSecond));
  stuck.full = true;
  Client& refused = secured();
  EXPECT_EQ(refused.talk(plain("joe", "secret")).substr(0, 9), "454 4.7.0");
  EXPECT_EQ(rig.stats().auth_busy, 1u);
  // The answers come late, one to a session that has gone.
  rig.world.run_for(600 * kSecond);
  for (auto& job : stuck.jobs) {
    job->check();
    PasswordJob::give_back(std::move(job));
  }
  EXPECT_EQ(waiting.hear().substr(0, 3), "235");
}

}  // namespace
}  // namespace millrace::ingress
