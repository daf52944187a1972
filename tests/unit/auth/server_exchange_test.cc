#include "auth/server_exchange.h"

#include <gtest/gtest.h>

#include "auth/client_exchange.h"
#include "auth/crypto.h"
#include "base/base64.h"

namespace millrace::auth {
namespace {

using Kind = ServerExchange::Step::Kind;
using namespace std::string_literals;

class OneUser final : public Verifiers {
 public:
  OneUser(std::string user, std::string_view password, std::string_view salt = "0123456789abcdef")
      : user_(std::move(user)), verifier_(make_scram_verifier(password, salt, 4096)) {}
  ScramVerifier scram_verifier(std::string_view user) const override {
    if (user == user_) return verifier_;
    return make_scram_verifier("nobody's", "a salt of nobody", 4096);
  }

 private:
  std::string user_;
  ScramVerifier verifier_;
};

TEST(Base64, RoundTripsAndRefusesEverythingElse) {
  for (std::string text : {""s, "f"s, "fo"s, "foo"s, "foob"s, "\0\xff\x80"s}) {
    EXPECT_EQ(from_base64(to_base64(text)), text);
  }
  EXPECT_EQ(to_base64("foob"), "Zm9vYg==");
  for (std::string_view bad : {"Zg", "Zg=", "Zh==", "Zm9=", "====", "Zg==Zg==", "Zm9v\r\n", "Zm 9", "Z===", "=AAA", "AA=A"}) {
    EXPECT_FALSE(from_base64(bad)) << bad;
  }
}

TEST(Plain, GivesUserAndPasswordToBeChecked) {
  ServerExchange exchange(Mechanism::plain, {});
  EXPECT_EQ(exchange.begin("\0joe\0se cret"s).kind, Kind::check_password);
  EXPECT_EQ(exchange.user(), "joe");
  EXPECT_EQ(exchange.password(), "se cret");
}

TEST(Plain, AsksWithAnEmptyChallengeWithoutAnInitialResponse) {
  ServerExchange exchange(Mechanism::plain, {});
  auto step = exchange.begin(std::nullopt);
  EXPECT_EQ(step.kind, Kind::challenge);
  EXPECT_EQ(step.challenge, "");
  EXPECT_EQ(exchange.respond("joe\0joe\0x"s).kind, Kind::check_password);
}

TEST(Plain, ActingForSomebodyElseIsRefused) {
  ServerExchange exchange(Mechanism::plain, {});
  EXPECT_EQ(exchange.begin("admin\0joe\0secret"s).kind, Kind::refused);
}

TEST(Plain, WhatIsNotThreePartsIsMalformed) {
  for (const std::string& message : {""s, "joe"s, "\0joe"s, "\0joe\0"s, "\0\0x"s, "\0joe\0a\0b"s, "\0"s + std::string(300, 'u') + "\0x"s}) {
    ServerExchange exchange(Mechanism::plain, {});
    EXPECT_EQ(exchange.begin(message).kind, Kind::malformed) << to_base64(message);
  }
}

TEST(Login, AsksForBothAndTakesTheNameAtOnceToo) {
  ServerExchange exchange(Mechanism::login, {});
  EXPECT_EQ(exchange.begin(std::nullopt).challenge, "Username:");
  EXPECT_EQ(exchange.respond("joe").challenge, "Password:");
  EXPECT_EQ(exchange.respond("secret").kind, Kind::check_password);
  EXPECT_EQ(exchange.user(), "joe");
  EXPECT_EQ(exchange.password(), "secret");
  ServerExchange at_once(Mechanism::login, {});
  EXPECT_EQ(at_once.begin("joe").challenge, "Password:");
}

// RFC 7677 3
TEST(Scram, TheExampleOfTheStandard) {
  OneUser verifiers("user", "pencil", *from_base64("W22ZaJ0SNY7soEsUEjb6gQ=="));
  ServerExchange exchange(Mechanism::scram_sha_256, {&verifiers, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", ""});
  auto step = exchange.begin("n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
  ASSERT_EQ(step.kind, Kind::challenge);
  EXPECT_EQ(step.challenge, "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
  step = exchange.respond(
      "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
  ASSERT_EQ(step.kind, Kind::challenge);
  EXPECT_EQ(step.challenge, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
  EXPECT_EQ(exchange.respond("").kind, Kind::proven);
  EXPECT_EQ(exchange.user(), "user");
}

// Both sides against each other; what the client and the server make of it.
struct Outcome {
  Kind server;
  bool client_content;
};
Outcome talk(ClientExchange& client, ServerExchange& server) {
  auto step = server.begin(client.has_initial() ? std::optional<std::string>(client.initial()) : std::nullopt);
  while (step.kind == Kind::challenge) {
    auto response = client.respond(step.challenge);
    if (!response) return {Kind::challenge, false};
    step = server.respond(*response);
  }
  return {step.kind, client.server_proven()};
}

TEST(Scram, BothSidesAgreeBoundAndUnbound) {
  OneUser verifiers("j,o=e", "pässword");
  for (bool plus : {false, true}) {
    ServerExchange server(plus ? Mechanism::scram_sha_256_plus : Mechanism::scram_sha_256,
                          {&verifiers, "servernonce", plus ? "0123456789012345678901234567890x" : ""});
    ClientExchange::Facts facts{"j,o=e", "pässword", "", 0, "clientnonce", plus ? "0123456789012345678901234567890x" : "", plus};
    ClientExchange client(plus ? ClientMechanism::scram_sha_256_plus : ClientMechanism::scram_sha_256, facts);
    Outcome outcome = talk(client, server);
    EXPECT_EQ(outcome.server, Kind::proven);
    EXPECT_TRUE(outcome.client_content);
  }
}

TEST(Scram, AWrongPasswordAndAnUnknownUserEndAlike) {
  OneUser verifiers("joe", "right");
  for (auto [user, password] : {std::pair{"joe", "wrong"}, {"jane", "right"}}) {
    ServerExchange server(Mechanism::scram_sha_256, {&verifiers, "servernonce", ""});
    ClientExchange client(ClientMechanism::scram_sha_256, {user, password, "", 0, "clientnonce", "", false});
    Outcome outcome = talk(client, server);
    EXPECT_EQ(outcome.server, Kind::refused);
    EXPECT_FALSE(outcome.client_content);
  }
}

TEST(Scram, AnotherConnectionsBindingIsRefused) {
  OneUser verifiers("joe", "right");
  ServerExchange server(Mechanism::scram_sha_256_plus, {&verifiers, "servernonce", "the binding of this connection.."});
  ClientExchange client(ClientMechanism::scram_sha_256_plus,
                        {"joe", "right", "", 0, "clientnonce", "the binding of another one......", true});
  EXPECT_EQ(talk(client, server).server, Kind::refused);
}

TEST(Scram, AClientThatWasKeptFromBindingIsRefused) {
  OneUser verifiers("joe", "right");
  ServerExchange server(Mechanism::scram_sha_256, {&verifiers, "servernonce", "the binding of this connection.."});
  // It could bind and saw no -PLUS: "y".
  ClientExchange client(ClientMechanism::scram_sha_256,
                        {"joe", "right", "", 0, "clientnonce", "the binding of this connection..", false});
  EXPECT_EQ(talk(client, server).server, Kind::refused);
}

TEST(Scram, MalformedFirstMessages) {
  OneUser verifiers("joe", "right");
  for (std::string_view message :
       {"", "n", "n,", "n,,", "n,,n=joe", "n,,n=joe,r=", "n,,r=abc,n=joe", "x,,n=joe,r=abc", "p=tls-exporter,,n=joe,r=abc",
        "n,,m=ext,n=joe,r=abc", "n,,n=jo=e,r=abc", "n,,n=,r=abc", "n,b=x,n=joe,r=abc", "n,,n=joe,r=a\x01" "bc", "n,,n=joe,r=\xc3\xa4"}) {
    ServerExchange exchange(Mechanism::scram_sha_256, {&verifiers, "servernonce", ""});
    EXPECT_EQ(exchange.begin(message).kind, Kind::malformed) << message;
  }
  ServerExchange other(Mechanism::scram_sha_256, {&verifiers, "servernonce", ""});
  EXPECT_EQ(other.begin("n,a=admin,n=joe,r=abc").kind, Kind::refused);
  ServerExchange unbound(Mechanism::scram_sha_256_plus, {&verifiers, "servernonce", "binding"});
  EXPECT_EQ(unbound.begin("n,,n=joe,r=abc").kind, Kind::malformed);
  ServerExchange unique(Mechanism::scram_sha_256_plus, {&verifiers, "servernonce", "binding"});
  EXPECT_EQ(unique.begin("p=tls-unique,,n=joe,r=abc").kind, Kind::refused);
}

TEST(Scram, MalformedFinalMessages) {
  OneUser verifiers("joe", "right");
  const std::string proof = to_base64(std::string(32, 'x'));
  for (const std::string& message :
       {""s, "c=biws"s, "c=biws,r=abcservernonce"s, "c=biws,r=abcservernonce,p=!"s, "c=biws,r=abcservernonce,p=AAAA"s,
        "r=abcservernonce,c=biws,p=" + proof, "c=%,r=abcservernonce,p=" + proof}) {
    ServerExchange exchange(Mechanism::scram_sha_256, {&verifiers, "servernonce", ""});
    ASSERT_EQ(exchange.begin("n,,n=joe,r=abc").kind, Kind::challenge);
    EXPECT_EQ(exchange.respond(message).kind, Kind::malformed) << message;
  }
  ServerExchange exchange(Mechanism::scram_sha_256, {&verifiers, "servernonce", ""});
  ASSERT_EQ(exchange.begin("n,,n=joe,r=abc").kind, Kind::challenge);
  EXPECT_EQ(exchange.respond("c=biws,r=abcother,p=" + proof).kind, Kind::refused);
}

TEST(Mechanisms, AreFoundInAnyCase) {
  EXPECT_EQ(find_mechanism("scram-sha-256-plus"), Mechanism::scram_sha_256_plus);
  EXPECT_EQ(find_mechanism("Plain"), Mechanism::plain);
  EXPECT_FALSE(find_mechanism("CRAM-MD5"));
  EXPECT_FALSE(find_mechanism(""));
}

}  // namespace
}  // namespace millrace::auth
