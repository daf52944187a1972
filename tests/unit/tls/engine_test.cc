// Two engines face to face, and one engine facing what no engine would send.
#include "tls/engine.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "certificates.h"

namespace millrace::tls {
namespace {

test::Certificates& made() {
  static test::Certificates certificates;
  return certificates;
}

std::shared_ptr<ServerContext> server_of(const test::Certificates::Wish& wish, const std::string& client_ca = {}) {
  static int number = 0;
  ServerSettings settings;
  Result<Certificate> certificate = read_certificate(made().make("server" + std::to_string(++number), wish));
  EXPECT_TRUE(certificate.ok());
  settings.certificates.push_back(*certificate);
  if (!client_ca.empty()) settings.client_ca_pem = *read_authorities(client_ca);
  auto context = ServerContext::make(settings);
  EXPECT_TRUE(context.ok());
  return *context;
}

std::shared_ptr<ServerContext> server() {
  static std::shared_ptr<ServerContext> context = server_of({});
  return context;
}

std::shared_ptr<ClientContext> client(const CertificateFiles& certificate = {}) {
  ClientSettings settings{.ca_pem = *read_authorities(made().authority())};
  if (!certificate.chain.empty()) settings.certificate = *read_certificate(certificate);
  auto context = ClientContext::make(settings);
  EXPECT_TRUE(context.ok());
  return *context;
}

// Moves `bytes` into the engine in pieces of `step` octets, decrypting in place as a stream does; gives back
// the plaintext.
std::string feed(Engine& engine, std::string bytes, size_t step) {
  std::string plain;
  for (size_t at = 0; at < bytes.size(); at += step) {
    const size_t size = std::min(step, bytes.size() - at);
    char* data = bytes.data() + at;
    engine.give({data, size});
    size_t written = 0;
    while (const size_t ready = engine.next()) {
      if (ready <= engine.taken() - written) {
        engine.read(data + written, ready);
        plain.append(data + written, ready);
        written += ready;
      } else {
        std::string apart(ready, '\0');
        engine.read(apart.data(), ready);
        plain += apart;
      }
    }
  }
  return plain;
}

struct Pair {
  std::unique_ptr<Engine> client, server;
  std::string client_got, server_got;

  // Until both are silent.
  void exchange(size_t step = SIZE_MAX / 2) {
    while (!client->output().empty() || !server->output().empty()) {
      std::string to_server = std::move(client->output());
      client->output().clear();
      server_got += feed(*server, to_server, step);
      std::string to_client = std::move(server->output());
      server->output().clear();
      client_got += feed(*client, to_client, step);
    }
  }
};

Pair connect(std::shared_ptr<ClientContext> from, std::shared_ptr<ServerContext> to, ClientOptions options = {},
             size_t step = SIZE_MAX / 2) {
  Pair pair{Engine::connect(std::move(from), std::move(options)), Engine::accept(std::move(to)), {}, {}};
  pair.exchange(step);
  return pair;
}

void say(Engine& engine, std::string_view text) {
  std::string copy(text);
  iovec part{copy.data(), copy.size()};
  std::span<iovec> parts(&part, 1);
  EXPECT_EQ(engine.encrypt(parts, SIZE_MAX), text.size());
  EXPECT_TRUE(parts.empty());
}

TEST(EngineTest, BothEndsOpenAndTalk) {
  Pair pair = connect(client(), server());
  ASSERT_EQ(pair.client->state(), Engine::State::open) << pair.client->error();
  ASSERT_EQ(pair.server->state(), Engine::State::open) << pair.server->error();
  EXPECT_EQ(pair.client->info().version, "TLSv1.3");
  EXPECT_EQ(pair.client->info().suite, "TLS_AES_128_GCM_SHA256");
  say(*pair.client, "EHLO me\r\n");
  say(*pair.server, "250 you\r\n");
  pair.exchange();
  EXPECT_EQ(pair.server_got, "EHLO me\r\n");
  EXPECT_EQ(pair.client_got, "250 you\r\n");
}

TEST(EngineTest, EverySplitOfTheStreamGivesTheSame) {
  const std::string text(3000, 'x');
  for (size_t step : {1, 2, 3, 5, 7, 64, 1000}) {
    Pair pair = connect(client(), server(), {}, step);
    ASSERT_EQ(pair.server->state(), Engine::State::open) << step;
    say(*pair.client, "first");
    say(*pair.client, text);
    say(*pair.server, text);
    pair.exchange(step);
    EXPECT_EQ(pair.server_got, "first" + text) << step;
    EXPECT_EQ(pair.client_got, text) << step;
  }
}

TEST(EngineTest, LongSendIsCutIntoFullRecordsAndArrivesWhole) {
  Pair pair = connect(client(), server());
  std::string text;
  for (size_t i = 0; text.size() < 1'000'000; ++i) text += std::to_string(i);
  std::string head = "BDAT\r\n", tail = "MAIL\r\n";
  std::vector<iovec> parts{{head.data(), head.size()}, {text.data(), text.size()}, {tail.data(), tail.size()}};
  std::span<iovec> left(parts);
  size_t taken = 0;
  while (!left.empty()) taken += pair.client->encrypt(left, 64 * 1024);
  EXPECT_EQ(taken, head.size() + text.size() + tail.size());
  // Of each record 22 octets are not content; the rest of a cut may take one more.
  EXPECT_LT(pair.client->output().size(), taken + (taken / Engine::kLongestRecord + taken / 65536 + 2) * 30);
  pair.exchange(50'000);
  EXPECT_EQ(pair.server_got, head + text + tail);
}

TEST(EngineTest, CloseIsToldFromTruncation) {
  Pair pair = connect(client(), server());
  say(*pair.client, "QUIT\r\n");
  pair.client->close();
  pair.exchange();
  EXPECT_EQ(pair.server_got, "QUIT\r\n");
  EXPECT_EQ(pair.server->state(), Engine::State::closed);
  Pair cut = connect(client(), server());
  EXPECT_EQ(cut.server->state(), Engine::State::open);  // an end of the bytes says nothing to it
}

TEST(EngineTest, WeMayStillSendAfterTheirClose) {
  Pair pair = connect(client(), server());
  pair.client->close();
  pair.exchange();
  ASSERT_EQ(pair.server->state(), Engine::State::closed);
  say(*pair.server, "221 bye\r\n");
  EXPECT_FALSE(pair.server->output().empty());
}

TEST(EngineTest, PlaintextToTheServerFails) {
  auto engine = Engine::accept(server());
  EXPECT_EQ(feed(*engine, "EHLO me\r\n", 100), "");
  EXPECT_EQ(engine->state(), Engine::State::failed);
  EXPECT_EQ(engine->failure(), Failure::not_tls);
}

TEST(EngineTest, PlaintextToTheClientFails) {
  auto engine = Engine::connect(client(), {});
  EXPECT_EQ(feed(*engine, "250 injected\r\n", 100), "");
  EXPECT_EQ(engine->state(), Engine::State::failed);
  EXPECT_EQ(engine->failure(), Failure::not_tls);
}

TEST(EngineTest, EveryFlippedOctetOfARecordIsFound) {
  for (size_t at = 0;; ++at) {
    Pair pair = connect(client(), server());
    say(*pair.client, "MAIL FROM:<a@b.example>\r\n");
    std::string record = std::move(pair.client->output());
    if (at >= record.size()) break;
    record[at] = static_cast<char>(record[at] ^ 1);
    EXPECT_EQ(feed(*pair.server, record, 1000), "") << at;
    // A longer length makes it wait for more; everything else is a failure.
    if (at != 3 && at != 4) {
      EXPECT_EQ(pair.server->state(), Engine::State::failed) << at;
    }
    if (at == 40) break;
  }
}

TEST(EngineTest, OversizedRecordIsRefused) {
  Pair pair = connect(client(), server());
  std::string record("\x17\x03\x03\x48\x00", 5);  // 18,432 octets; 16,384 + 256 are allowed
  record += std::string(0x4800, 'x');
  EXPECT_EQ(feed(*pair.server, record, 4096), "");
  EXPECT_EQ(pair.server->state(), Engine::State::failed);
}

TEST(EngineTest, FailureSendsAnAlertThatThePeerUnderstands) {
  Pair pair = connect(client(), server());
  say(*pair.client, "hello");
  std::string record = std::move(pair.client->output());
  pair.client->output().clear();
  record.back() = static_cast<char>(record.back() ^ 1);
  feed(*pair.server, record, 1000);
  ASSERT_EQ(pair.server->state(), Engine::State::failed);
  feed(*pair.client, pair.server->output(), 1000);
  EXPECT_EQ(pair.client->state(), Engine::State::failed);
  EXPECT_EQ(pair.client->failure(), Failure::peer_alert) << pair.client->error();
}

TEST(EngineTest, SessionResumesUnderItsKeyOnly) {
  auto from = client();
  Pair first = connect(from, server(), {.session_key = "mx|a"});
  EXPECT_FALSE(first.client->info().resumed);
  EXPECT_EQ(from->sessions().size(), 1u);
  Pair second = connect(from, server(), {.session_key = "mx|a"});
  EXPECT_TRUE(second.client->info().resumed);
  EXPECT_TRUE(second.server->info().resumed);
  Pair other = connect(from, server(), {.session_key = "mx|b"});
  EXPECT_FALSE(other.client->info().resumed);
  Pair none = connect(from, server());
  EXPECT_FALSE(none.client->info().resumed);
}

TEST(EngineTest, ConnectionsThatBeganTogetherAllResume) {
  auto from = client();
  connect(from, server(), {.session_key = "mx"});
  Pair one{Engine::connect(from, {.session_key = "mx"}), Engine::accept(server()), {}, {}};
  Pair two{Engine::connect(from, {.session_key = "mx"}), Engine::accept(server()), {}, {}};
  one.exchange();
  two.exchange();
  EXPECT_TRUE(one.client->info().resumed);
  EXPECT_TRUE(two.client->info().resumed);
}

TEST(EngineTest, TicketOfAnotherServiceOpensNothing) {
  auto from = client();
  connect(from, server(), {.session_key = "mx"});
  ServerSettings settings;
  Result<Certificate> certificate = read_certificate(made().make("http"));
  ASSERT_TRUE(certificate.ok());
  settings.certificates.push_back(*certificate);
  settings.service = "http";
  Pair pair = connect(from, *ServerContext::make(settings), {.session_key = "mx"});
  EXPECT_EQ(pair.client->state(), Engine::State::open);
  EXPECT_FALSE(pair.client->info().resumed);
}

TEST(EngineTest, CertificateIsJudgedAndOnlyReported) {
  auto judge = [](const test::Certificates::Wish& wish, const std::string& name, Verified expected) {
    Pair pair = connect(client(), server_of(wish), {.server_name = name});
    EXPECT_EQ(pair.client->state(), Engine::State::open) << pair.client->error();
    EXPECT_EQ(pair.client->info().verified, expected) << to_string(pair.client->info().verified);
    Pair strict = connect(client(), server_of(wish), {.server_name = name, .verify = true});
    EXPECT_EQ(strict.client->state(), expected == Verified::ok ? Engine::State::open : Engine::State::failed);
    if (expected != Verified::ok) {
      EXPECT_EQ(strict.client->failure(), Failure::certificate) << strict.client->error();
    }
  };
  judge({}, "mx.example.org", Verified::ok);
  judge({.rsa = true}, "mx.example.org", Verified::ok);
  judge({.names = "DNS:*.example.org"}, "mx.example.org", Verified::ok);
  judge({}, "mx.example.net", Verified::wrong_name);
  judge({.self_signed = true}, "mx.example.org", Verified::untrusted);
  judge({.expired = true}, "mx.example.org", Verified::expired);
}

TEST(EngineTest, WithoutANameToCompareNothingVerifies) {
  for (const char* name : {"", "192.0.2.1", "2001:db8::1"}) {
    EXPECT_EQ(connect(client(), server(), {.server_name = name}).client->info().verified, Verified::wrong_name);
    Pair strict = connect(client(), server(), {.server_name = name, .verify = true});
    EXPECT_EQ(strict.client->state(), Engine::State::failed);
  }
}

TEST(EngineTest, ResumedSessionKeepsWhatWasFound) {
  auto from = client();
  connect(from, server(), {.server_name = "mx.example.net", .session_key = "k"});
  Pair again = connect(from, server(), {.server_name = "mx.example.net", .session_key = "k"});
  EXPECT_TRUE(again.client->info().resumed);
  EXPECT_EQ(again.client->info().verified, Verified::wrong_name);
}

// An authority that nobody has heard of, and a certificate by it; the chain shows the authority, or does not.
Certificate by_stranger(bool shows_authority) {
  static const bool once = [] {
    test::Certificates::read("cd " + made().path("") + " && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 "
                             "-subj /CN=Stranger -addext keyUsage=critical,keyCertSign -keyout strange.key -out strange.pem 2>&1");
    made().make_below("by-stranger", "strange", false);
    return true;
  }();
  (void)once;
  Certificate certificate = *read_certificate({made().path("by-stranger.pem"), made().path("by-stranger.key")});
  if (shows_authority) certificate.chain_pem += *read_authorities(made().path("strange.pem"));
  return certificate;
}

TEST(EngineTest, AuthorityThatOneServerShowsIsTrustedByNoOtherConnection) {
  const auto context = client();
  const auto server_with = [](bool shows_authority) {
    ServerSettings settings;
    settings.certificates.push_back(by_stranger(shows_authority));
    return *ServerContext::make(settings);
  };
  for (int i = 0; i < 2; ++i) {
    Pair pair = connect(context, server_with(true), {.server_name = "mx.example.org"});
    EXPECT_EQ(pair.client->state(), Engine::State::open) << pair.client->error();
    EXPECT_EQ(pair.client->info().verified, Verified::untrusted);
  }
  Pair strict = connect(context, server_with(false), {.server_name = "mx.example.org", .verify = true});
  EXPECT_EQ(strict.client->state(), Engine::State::failed);
  EXPECT_EQ(strict.client->failure(), Failure::certificate);
}

TEST(EngineTest, AuthorityThatOneClientShowsIsTrustedByNoOtherConnection) {
  const auto asking = server_of({}, made().authority());
  for (bool shows_authority : {true, true, false}) {
    ClientSettings settings{.ca_pem = *read_authorities(made().authority())};
    settings.certificate = by_stranger(shows_authority);
    Pair pair = connect(*ClientContext::make(settings), asking);
    EXPECT_EQ(pair.server->state(), Engine::State::open) << pair.server->error();
    EXPECT_EQ(pair.server->info().verified, Verified::untrusted) << to_string(pair.server->info().verified);
  }
}

TEST(EngineTest, ClientCertificateIsAskedForAndChecked) {
  auto asking = server_of({}, made().authority());
  Pair with = connect(client(made().make("friend")), asking);
  EXPECT_EQ(with.server->state(), Engine::State::open) << with.server->error();
  EXPECT_EQ(with.server->info().verified, Verified::ok) << to_string(with.server->info().verified);
  Pair without = connect(client(), asking);
  EXPECT_EQ(without.server->state(), Engine::State::open) << without.server->error();
  EXPECT_EQ(without.server->info().verified, Verified::not_checked);
  Pair stranger = connect(client(made().make("stranger", {.self_signed = true})), asking);
  EXPECT_EQ(stranger.server->state(), Engine::State::open) << stranger.server->error();
  EXPECT_EQ(stranger.server->info().verified, Verified::untrusted) << to_string(stranger.server->info().verified);
}

TEST(EngineTest, NothingResumesWhereCertificatesAreAskedFor) {
  auto asking = server_of({}, made().authority());
  auto from = client(made().make("friend2"));
  connect(from, asking, {.session_key = "k"});
  Pair again = connect(from, asking, {.session_key = "k"});
  EXPECT_FALSE(again.server->info().resumed);
  EXPECT_EQ(again.server->info().verified, Verified::ok);
}

TEST(EngineTest, ChannelBindingIsEachConnectionsOwn) {
  ServerSettings settings;
  Result<Certificate> certificate = read_certificate(made().make("binding"));
  ASSERT_TRUE(certificate.ok());
  settings.certificates.push_back(*certificate);
  settings.channel_bindings = true;
  auto context = *ServerContext::make(settings);
  Pair one = connect(client(), context), two = connect(client(), context);
  EXPECT_EQ(one.server->channel_binding().size(), 32u);
  EXPECT_NE(one.server->channel_binding(), two.server->channel_binding());
  say(*one.client, "still fine");
  one.exchange();
  EXPECT_EQ(one.server_got, "still fine");
}

TEST(SessionCacheTest, LeastRecentlyUsedGoesFirst) {
  auto context = ClientContext::make({.sessions_most = 2});
  ASSERT_TRUE(context.ok());
  connect(*context, server(), {.session_key = "a"});
  connect(*context, server(), {.session_key = "b"});
  EXPECT_TRUE(connect(*context, server(), {.session_key = "a"}).client->info().resumed);
  connect(*context, server(), {.session_key = "c"});
  EXPECT_EQ((*context)->sessions().size(), 2u);
  EXPECT_FALSE(connect(*context, server(), {.session_key = "b"}).client->info().resumed);
}

}  // namespace
}  // namespace millrace::tls
