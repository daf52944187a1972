#include "auth/client_exchange.h"

#include <gtest/gtest.h>

#include "auth/crypto.h"
#include "base/base64.h"

namespace millrace::auth {
namespace {

using namespace std::string_literals;

TEST(ClientPlain, SaysAllAtOnceAndNoMore) {
  ClientExchange exchange(ClientMechanism::plain, {"joe", "secret"});
  EXPECT_EQ(exchange.initial(), "\0joe\0secret"s);
  EXPECT_TRUE(exchange.server_proven());
  EXPECT_FALSE(exchange.respond(""));
}

TEST(ClientLogin, AnswersInOrderWhateverTheWords) {
  ClientExchange exchange(ClientMechanism::login, {"joe", "secret"});
  EXPECT_FALSE(exchange.has_initial());
  EXPECT_EQ(exchange.respond("User Name"), "joe");
  EXPECT_EQ(exchange.respond("VXNlcm5hbWU6"), "secret");
  EXPECT_FALSE(exchange.respond("and your birthday?"));
}

TEST(ClientTokens, AreSentAsTheirStandardsSay) {
  ClientExchange bearer(ClientMechanism::oauthbearer, {"joe@example.com", "to.ken", "smtp.example.com", 587});
  EXPECT_EQ(bearer.initial(), "n,a=joe@example.com,\x01host=smtp.example.com\x01port=587\x01" "auth=Bearer to.ken\x01\x01");
  EXPECT_EQ(bearer.respond("{\"status\":\"invalid_token\"}"), "\x01");
  EXPECT_FALSE(bearer.respond("again"));
  ClientExchange google(ClientMechanism::xoauth2, {"joe@example.com", "to.ken"});
  EXPECT_EQ(google.initial(), "user=joe@example.com\x01" "auth=Bearer to.ken\x01\x01");
  EXPECT_EQ(google.respond("{\"status\":\"400\"}"), "");
}

ClientExchange::Facts facts() { return {"user", "pencil", "", 0, "rOprNGfwEbeRWgbNEkqO", "", false}; }
constexpr std::string_view kFirst = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

// RFC 7677 3, whose client knows no channel binding: "n".
TEST(ClientScram, TheExampleOfTheStandard) {
  ClientExchange exchange(ClientMechanism::scram_sha_256, facts());
  EXPECT_EQ(exchange.initial(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
  EXPECT_EQ(exchange.respond(kFirst),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
  EXPECT_FALSE(exchange.server_proven());
  EXPECT_EQ(exchange.respond("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), "");
  EXPECT_TRUE(exchange.server_proven());
}

TEST(ClientScram, AServerThatDoesNotKnowThePasswordIsNotBelieved) {
  for (const char* last : {"v=AAAATRBi23WpRK/wtup+mMhUZUn/dB5nLTJRsjl95G4=", "v=", "", "e=other-error", "x=1"}) {
    ClientExchange exchange(ClientMechanism::scram_sha_256, facts());
    exchange.initial();
    ASSERT_TRUE(exchange.respond(kFirst));
    EXPECT_FALSE(exchange.respond(last)) << last;
    EXPECT_FALSE(exchange.server_proven());
    EXPECT_NE(exchange.error(), "");
  }
}

TEST(ClientScram, FirstMessagesOfTheServerThatAreNoGood) {
  for (std::string_view first :
       {"", "r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "r=another,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        "r=rOprNGfwEbeRWgbNEkqOx,s=!,i=4096", "r=rOprNGfwEbeRWgbNEkqOx,s=,i=4096", "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=0",
        "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=9999999", "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=-1", "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z",
        "m=x,r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=4096"}) {
    ClientExchange exchange(ClientMechanism::scram_sha_256, facts());
    exchange.initial();
    EXPECT_FALSE(exchange.respond(first)) << first;
  }
}

TEST(ClientScram, SaysThatItCouldHaveBound) {
  ClientExchange::Facts with = facts();
  with.channel_binding = "binding";
  ClientExchange not_offered(ClientMechanism::scram_sha_256, with);
  EXPECT_TRUE(not_offered.initial().starts_with("y,,"));
  ClientExchange plus(ClientMechanism::scram_sha_256_plus, with);
  EXPECT_TRUE(plus.initial().starts_with("p=tls-exporter,,"));
}

}  // namespace
}  // namespace millrace::auth
