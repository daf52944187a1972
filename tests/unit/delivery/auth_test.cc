// Authentication to smarthosts: what is said, to whom, and what a refusal means for the mail.
#include <fstream>

#include "../tls/certificates.h"
#include "auth/server_exchange.h"
#include "base/base64.h"
#include "connection_rig.h"

namespace millrace::delivery {
namespace {

using namespace testing;
using namespace std::string_literals;
using queue::LaneEnd;

tls::test::Certificates& made() {
  static tls::test::Certificates certificates;
  return certificates;
}

std::shared_ptr<tls::ServerContext> server(const tls::test::Certificates::Wish& wish = {.names = "DNS:smart.example"}) {
  static int number = 0;
  tls::ServerSettings settings;
  settings.certificates.push_back(*tls::read_certificate(made().make("smart" + std::to_string(++number), wish)));
  settings.channel_bindings = true;
  return *tls::ServerContext::make(settings);
}

class JoesVerifier final : public auth::Verifiers {
 public:
  auth::ScramVerifier scram_verifier(std::string_view user) const override {
    return auth::make_scram_verifier(user == "joe" ? "secret" : "nobody's", "0123456789abcdef", 4096);
  }
};

class AuthTest : public ConnectionTest {
 protected:
  AuthTest() {
    auto settings = std::make_shared<tls::ClientSettings>();
    settings->ca_pem = *tls::read_authorities(made().authority());
    config_.tls_client = settings;
    config_.smarthost.host = "smart.example";
    credentials("user = \"joe\"\npassword = \"secret\"");
    zones_.add_address("smart.example", "198.51.100.1");
    peer_ = &add_peer("198.51.100.1");
    peer_->tls = server();
    peer_->script = smarthost("PLAIN LOGIN");
  }
  void credentials(const std::string& lines) {
    auto parsed = config::HopCredentialsFile::parse("[next-hop.\"smart.example\"]\n" + lines + "\n", "hops.toml", config_);
    ASSERT_TRUE(parsed.ok()) << parsed.error().text;
    config_.hop_credentials = *parsed;
    restart();
  }
  // Offers these mechanisms behind TLS, and obeys them.
  Peer::Script smarthost(const std::string& mechanisms) {
    Peer::Script plain = Peer::well_behaved({"STARTTLS", "AUTH PLAIN LOGIN"});
    Peer::Script behind = Peer::well_behaved({"PIPELINING", "AUTH " + mechanisms});
    return [=, this](Peer::Session& session, const std::string& line) -> std::string {
      if (line == "STARTTLS") return "220 go\r\n";
      if (!session.secured) return plain(session, line);
      if (line.starts_with("MAIL") && !let_in_) return "530 5.7.0 authenticate\r\n";
      if (line.starts_with("AUTH ")) {
        const size_t blank = line.find(' ', 5);
        const auto mechanism = auth::find_mechanism(line.substr(5, blank == line.npos ? blank : blank - 5));
        if (!mechanism) return "504 5.5.4 what\r\n";
        exchange_.emplace(*mechanism, auth::ServerExchange::Facts{&verifier_, "servernonce",
                                                                 mechanisms.find("PLUS") == mechanisms.npos ? std::string() : session.stream.tls()->channel_binding()});
        return step(blank == line.npos ? exchange_->begin(std::nullopt) : exchange_->begin(*from_base64(line.substr(blank + 1))));
      }
      if (exchange_) return step(exchange_->respond(*from_base64(line)));
      return behind(session, line);
    };
  }
  std::string step(auth::ServerExchange::Step step) {
    using Kind = auth::ServerExchange::Step::Kind;
    if (step.kind == Kind::challenge) return "334 " + to_base64(step.challenge) + "\r\n";
    let_in_ = step.kind == Kind::proven ||
              (step.kind == Kind::check_password && exchange_->user() == "joe" && exchange_->password() == "secret");
    exchange_.reset();
    return let_in_ ? "235 2.7.0 in\r\n" : "535 5.7.8 no\r\n";
  }
  void send_one(int64_t seconds = 1000) {
    const size_t before = queue_.ends.size();
    add("Subject: x\r\n\r\nhello\r\n");
    resolve("dest.example");
    open();
    ASSERT_TRUE(run_until_closed(before + 1, seconds));
  }
  // Whether anything of what was said in this run was, or held, a credential.
  bool said_auth() const {
    for (const auto& session : peer_->sessions) {
      for (const std::string& line : session->lines) {
        if (line.starts_with("AUTH")) return true;
      }
    }
    return false;
  }
  std::string auth_line() const {
    for (const auto& session : peer_->sessions) {
      for (const std::string& line : session->lines) {
        if (line.starts_with("AUTH")) return line;
      }
    }
    return {};
  }

  Peer* peer_ = nullptr;
  JoesVerifier verifier_;
  std::optional<auth::ServerExchange> exchange_;
  bool let_in_ = false;
};

TEST_F(AuthTest, TheBestThatIsOfferedIsTaken) {
  for (auto [offered, taken] : {std::pair{"LOGIN", "AUTH LOGIN"}, {"LOGIN PLAIN", "AUTH PLAIN"}, {"PLAIN SCRAM-SHA-256", "AUTH SCRAM-SHA-256 "},
                                {"PLAIN SCRAM-SHA-256 SCRAM-SHA-256-PLUS", "AUTH SCRAM-SHA-256-PLUS "}}) {
    peer_->script = smarthost(offered);
    peer_->sessions.clear();
    let_in_ = false;
    send_one();
    EXPECT_TRUE(auth_line().starts_with(taken)) << auth_line();
    EXPECT_EQ(queue_.finished_.back()->results[0].action, queue::Action::delivered) << offered;
    world_.run_for(kSecond);
  }
}

TEST_F(AuthTest, OnlyWhatTheFileAllowsIsTaken) {
  credentials("user = \"joe\"\npassword = \"secret\"\nmechanisms = [\"SCRAM-SHA-256\"]");
  send_one();
  EXPECT_FALSE(said_auth());
  EXPECT_EQ(queue_.ends.back().stage, events::Stage::auth);
  EXPECT_TRUE(queue_.finished_.empty());
}

TEST_F(AuthTest, ARefusalIsAboutNoMessage) {
  credentials("user = \"joe\"\npassword = \"wrong\"");
  send_one();
  ASSERT_EQ(queue_.ends.size(), 1u);
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::failed);
  EXPECT_EQ(queue_.ends[0].stage, events::Stage::auth);
  EXPECT_EQ(queue_.ends[0].code, 535);
  EXPECT_EQ(queue_.ends[0].reply, "535 5.7.8 no");
  EXPECT_TRUE(queue_.finished_.empty()) << "the mail was not touched";
  EXPECT_EQ(agent_->stats().auth_failures, 1u);
}

TEST_F(AuthTest, NoCredentialGoesToAHostThatIsNotVerified) {
  for (auto wish : {tls::test::Certificates::Wish{.names = "DNS:other.example"},
                    tls::test::Certificates::Wish{.names = "DNS:smart.example", .self_signed = true},
                    tls::test::Certificates::Wish{.names = "DNS:smart.example", .expired = true}}) {
    for (config::TlsLevel level : {config::TlsLevel::none, config::TlsLevel::opportunistic, config::TlsLevel::required}) {
      config_.tls = level;
      restart();
      peer_->tls = server(wish);
      send_one();
      EXPECT_TRUE(queue_.finished_.empty());
      world_.run_for(2000 * kSecond);
    }
  }
  EXPECT_FALSE(said_auth());
}

TEST_F(AuthTest, NoCredentialGoesInTheClear) {
  for (config::TlsLevel level : {config::TlsLevel::none, config::TlsLevel::opportunistic}) {
    config_.tls = level;
    restart();
    for (const char* reply : {"454 4.7.0 not now\r\n", "502 5.5.1 what\r\n", ""}) {
      Peer::Script plain = Peer::well_behaved({"AUTH PLAIN LOGIN"}), refusing = Peer::well_behaved({"AUTH PLAIN", "STARTTLS"});
      peer_->script = [=](Peer::Session& session, const std::string& line) -> std::string {
        if (line == "STARTTLS") return reply;
        return *reply == '\0' ? plain(session, line) : refusing(session, line);
      };
      send_one();
      EXPECT_TRUE(queue_.finished_.empty());
      world_.run_for(2000 * kSecond);
    }
  }
  EXPECT_FALSE(said_auth());
}

TEST_F(AuthTest, AServerThatSaysYesWithoutItsProofIsNotBelieved) {
  Peer::Script well = smarthost("SCRAM-SHA-256");
  peer_->script = [well](Peer::Session& session, const std::string& line) -> std::string {
    if (line.starts_with("AUTH")) return "235 2.7.0 come in\r\n";
    return well(session, line);
  };
  send_one();
  EXPECT_TRUE(queue_.finished_.empty());
  EXPECT_EQ(queue_.ends[0].stage, events::Stage::auth);
}

TEST_F(AuthTest, OddAnswersEndTheConversation) {
  for (const char* answer : {"334 !!!\r\n", "334 \r\n", "250 ok\r\n", "334 AAAA\r\n", "354 go\r\n", "CLOSE", "RESET", "421 4.3.2 later\r\nCLOSE",
                             "454 4.7.0 later\r\n"}) {
    Peer::Script well = smarthost("PLAIN");
    peer_->script = [=](Peer::Session& session, const std::string& line) -> std::string {
      if (line.starts_with("AUTH")) return answer;
      return well(session, line);
    };
    send_one();
    EXPECT_TRUE(queue_.finished_.empty()) << answer;
    world_.run_for(2000 * kSecond);
  }
}

TEST_F(AuthTest, ATokenTooLongForTheCommandComesBehindIt) {
  const std::string path = made().make("token", {}).key + ".token";
  std::ofstream(path) << std::string(2000, 't') << "\n";
  credentials("user = \"joe\"\ntoken-file = \"" + path + "\"");
  Peer::Script well = smarthost("XOAUTH2 PLAIN");
  std::string token;
  peer_->script = [&, well](Peer::Session& session, const std::string& line) -> std::string {
    if (line.starts_with("AUTH")) return line == "AUTH XOAUTH2" ? "334 \r\n" : "504 5.5.4 what\r\n";
    if (line.size() > 2000) {
      token = *from_base64(line);
      let_in_ = true;
      return "235 2.7.0 in\r\n";
    }
    return well(session, line);
  };
  send_one();
  EXPECT_EQ(token, "user=joe\x01" "auth=Bearer " + std::string(2000, 't') + "\x01\x01");
  ASSERT_EQ(queue_.finished_.size(), 1u);
}

TEST_F(AuthTest, OurCertificateIsShownWhereItIsAskedFor) {
  const tls::CertificateFiles ours = made().make("client", {.names = "DNS:relay.example"});
  credentials("certificate = \"" + ours.chain + "\"\nkey = \"" + ours.key + "\"");
  tls::ServerSettings settings;
  settings.certificates.push_back(*tls::read_certificate(made().make("asking", {.names = "DNS:smart.example"})));
  settings.client_ca_pem = *tls::read_authorities(made().authority());
  peer_->tls = *tls::ServerContext::make(settings);
  tls::Verified shown = tls::Verified::not_checked;
  Peer::Script well = smarthost("PLAIN");
  let_in_ = true;
  peer_->script = [&, well](Peer::Session& session, const std::string& line) -> std::string {
    if (line.starts_with("MAIL")) shown = session.stream.tls()->info().verified;
    return well(session, line);
  };
  send_one();
  EXPECT_EQ(shown, tls::Verified::ok);
  EXPECT_FALSE(said_auth());
}

TEST(HopCredentials, ErrorsNameTheLineAndNoSecret) {
  config::Config config;
  config.tls_for["lax.example"] = config::TlsLevel::none;
  auto parsed = config::HopCredentialsFile::parse(
      "[next-hop.\"192.0.2.1\"]\nuser = \"x\"\npassword = \"hunter2\"\n[next-hop.\"a.example\"]\npassword = \"hunter2\"\n"
      "[next-hop.\"b.example\"]\nuser = \"x\"\npasword = \"hunter2\"\n[next-hop.\"c.example\"]\nuser = \"x\"\npassword = \"hunter2\"\n"
      "mechanisms = [\"CRAM-MD5\"]\n[next-hop.\"lax.example\"]\nuser = \"x\"\npassword = \"hunter2\"\n",
      "hops.toml", config);
  ASSERT_FALSE(parsed.ok());
  for (const char* part : {"hops.toml:1: a next hop is named by its host name", "hops.toml:4: a user needs", "hops.toml:8: unknown key; did you mean password?",
                           "hops.toml:12: mechanisms", "hops.toml:13: --tls-for lax.example"}) {
    EXPECT_NE(parsed.error().text.find(part), std::string::npos) << part << "\n" << parsed.error().text;
  }
  EXPECT_EQ(parsed.error().text.find("hunter2"), std::string::npos);
}

}  // namespace
}  // namespace millrace::delivery
