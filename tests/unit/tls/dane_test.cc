// What TLSA records say of a chain; openssl(1) makes the certificates and says what their digests are.
#include "tls/dane.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "certificates.h"
#include "tls/engine.h"
#include "tls/x509.h"

namespace millrace::tls {
namespace {

// An authority and one below it, a server's certificate by either, and what else a chain may hold.
class DaneTest : public ::testing::Test {
 protected:
  static test::Certificates& made() {
    static test::Certificates certificates;
    return certificates;
  }
  static std::string der(const std::string& name) {
    const std::string path = made().path(name + ".pem");
    return made().read("openssl x509 -outform der -in " + path);
  }
  static std::string key(const std::string& name) {
    const std::string path = made().path(name + ".pem");
    return made().read("openssl x509 -pubkey -noout -in " + path + " | openssl pkey -pubin -outform der");
  }
  static std::string digest(const std::string& bytes, const std::string& algorithm) {
    const std::string path = made().path("bytes");
    made().write("bytes", bytes);
    return made().read("openssl dgst -binary -" + algorithm + " " + path);
  }
  static TlsaRecord record(unsigned usage, unsigned selector, unsigned matching, const std::string& name) {
    const std::string selected = selector == 0 ? der(name) : key(name);
    const std::string data = matching == 0 ? selected : digest(selected, matching == 1 ? "sha256" : "sha512");
    return {static_cast<uint8_t>(usage), static_cast<uint8_t>(selector), static_cast<uint8_t>(matching), data};
  }
  static Verified check(std::vector<TlsaRecord> records, const std::vector<std::string>& chain,
                        std::vector<std::string> names = {"mx.example.org"}) {
    const std::vector<std::string_view> views(chain.begin(), chain.end());
    return check_dane({std::move(records), std::move(names)}, views);
  }
  static void SetUpTestSuite() {
    made().make("leaf", {});
    made().make("old", {.expired = true});
    made().make("alone", {.self_signed = true});
    made().make_below("middle", "ca", true);
    made().make_below("low", "middle", false);
    made().make_below("impostor", "leaf", false);  // signed with a server's key
    made().make_below("other", "ca", true);
  }
};

TEST_F(DaneTest, EndEntityMatchesBySelectorAndMatchingType) {
  for (unsigned selector : {0u, 1u}) {
    for (unsigned matching : {0u, 1u, 2u}) {
      const TlsaRecord good = record(3, selector, matching, "leaf");
      ASSERT_TRUE(is_usable(good)) << to_string(good);
      EXPECT_EQ(check({good}, {der("leaf")}), Verified::ok) << to_string(good);
      EXPECT_EQ(check({good}, {der("low"), der("leaf")}), Verified::no_match) << "only the server's own counts";
    }
  }
}

TEST_F(DaneTest, EndEntityNeedsNeitherNameNorDatesNorChain) {
  EXPECT_EQ(check({record(3, 1, 1, "old")}, {der("old")}, {"elsewhere.example"}), Verified::ok);
  EXPECT_EQ(check({record(3, 1, 1, "alone")}, {der("alone")}, {"elsewhere.example"}), Verified::ok);
}

TEST_F(DaneTest, TrustAnchorLeadsDownToTheServer) {
  const std::vector<std::string> whole = {der("low"), der("middle"), der("ca")};
  for (unsigned selector : {0u, 1u}) {
    for (unsigned matching : {0u, 1u, 2u}) {
      EXPECT_EQ(check({record(2, selector, matching, "ca")}, whole), Verified::ok);
      EXPECT_EQ(check({record(2, selector, matching, "middle")}, whole), Verified::ok);
    }
  }
  EXPECT_EQ(check({record(2, 0, 1, "middle")}, {der("low"), der("middle")}), Verified::ok) << "an anchor need sign itself not";
  EXPECT_EQ(check({record(2, 0, 1, "ca")}, {der("low"), der("ca"), der("middle")}), Verified::ok) << "in any order";
}

TEST_F(DaneTest, TrustAnchorMustBeSentAndLeadToTheServer) {
  EXPECT_EQ(check({record(2, 0, 1, "ca")}, {der("leaf")}), Verified::no_match) << "left out";
  EXPECT_EQ(check({record(2, 0, 1, "ca")}, {der("low"), der("ca")}), Verified::untrusted) << "the one between is missing";
  EXPECT_EQ(check({record(2, 0, 1, "other")}, {der("low"), der("middle"), der("other")}), Verified::untrusted)
      << "sent, but not an ancestor";
  EXPECT_EQ(check({record(2, 0, 1, "leaf")}, {der("leaf"), der("ca")}), Verified::no_match) << "the server's own is none";
}

TEST_F(DaneTest, TrustAnchorWantsNameAndDates) {
  const std::vector<std::string> chain = {der("leaf"), der("ca")};
  EXPECT_EQ(check({record(2, 0, 1, "ca")}, chain, {"mx.example.net"}), Verified::wrong_name);
  EXPECT_EQ(check({record(2, 0, 1, "ca")}, chain, {"mx.example.net", "mx.example.org"}), Verified::ok) << "either name";
  EXPECT_EQ(check({record(2, 0, 1, "ca")}, {der("old"), der("ca")}), Verified::expired);
}

TEST_F(DaneTest, ServersCertificateSignsNobody) {
  EXPECT_EQ(check({record(2, 0, 1, "ca")}, {der("impostor"), der("leaf"), der("ca")}), Verified::untrusted);
}

TEST_F(DaneTest, StrongerDigestOfTheSameKindDecides) {
  TlsaRecord wrong = record(3, 1, 2, "leaf");
  wrong.data[5] = static_cast<char>(wrong.data[5] ^ 1);
  EXPECT_EQ(check({record(3, 1, 1, "leaf"), wrong}, {der("leaf")}), Verified::no_match);
  EXPECT_EQ(check({record(3, 0, 1, "leaf"), wrong}, {der("leaf")}), Verified::ok) << "another selector";
  EXPECT_EQ(check({record(3, 1, 0, "leaf"), wrong}, {der("leaf")}), Verified::ok) << "no digest at all";
}

TEST_F(DaneTest, WhatSmtpHasNoUseForIsUnusable) {
  const std::string digest(32, 'x');
  EXPECT_FALSE(is_usable({0, 1, 1, digest}));
  EXPECT_FALSE(is_usable({1, 1, 1, digest}));
  EXPECT_FALSE(is_usable({3, 2, 1, digest}));
  EXPECT_FALSE(is_usable({3, 1, 3, digest}));
  EXPECT_FALSE(is_usable({3, 1, 1, digest.substr(1)}));
  EXPECT_FALSE(is_usable({3, 1, 2, digest}));
  EXPECT_FALSE(is_usable({3, 0, 0, digest}));
  EXPECT_FALSE(is_usable({3, 1, 0, ""}));
  EXPECT_TRUE(is_usable({3, 1, 1, digest}));
}

TEST_F(DaneTest, BrokenCertificatesVerifyNothing) {
  const std::string good = der("leaf");
  EXPECT_EQ(check({record(3, 0, 1, "leaf")}, {}), Verified::not_checked);
  for (size_t size = 0; size < good.size(); size += 7) {
    EXPECT_EQ(check({record(3, 0, 1, "leaf")}, {good.substr(0, size)}), Verified::invalid) << size;
    EXPECT_FALSE(view_certificate(good.substr(0, size)).has_value());
  }
}

TEST_F(DaneTest, ViewSaysWhatOpensslSays) {
  const std::string whole = der("leaf");
  const auto view = view_certificate(whole);
  ASSERT_TRUE(view);
  EXPECT_EQ(view->public_key, key("leaf"));
  EXPECT_EQ(view->names, std::vector<std::string>{"mx.example.org"});
  EXPECT_EQ(view->common_name, "leaf");
  EXPECT_FALSE(view->is_authority);
  const std::string authority = der("ca");
  EXPECT_TRUE(view_certificate(authority)->is_authority);
}

// ---- through a handshake

class DaneHandshakeTest : public DaneTest {
 protected:
  static std::shared_ptr<ServerContext> server(const std::string& name, const std::vector<std::string>& others = {}) {
    ServerSettings settings;
    settings.certificates.push_back(*read_certificate({made().path(name + ".pem"), made().path(name + ".key")}));
    for (const std::string& other : others) settings.certificates[0].chain_pem += *read_authorities(made().path(other + ".pem"));
    return *ServerContext::make(settings);
  }
  // Without any authority of ours.
  static Engine::State handshake(std::shared_ptr<ServerContext> to, std::vector<TlsaRecord> records, Verified& verified) {
    static auto context = *ClientContext::make({});
    ClientOptions options;
    options.server_name = "mx.example.org";
    options.dane = std::make_shared<DaneWish>(DaneWish{std::move(records), {"mx.example.org"}});
    auto client = Engine::connect(context, options);
    auto server = Engine::accept(std::move(to));
    for (int i = 0; i < 10; ++i) {
      for (auto [from, into] : {std::pair(client.get(), server.get()), std::pair(server.get(), client.get())}) {
        const std::string bytes = std::exchange(from->output(), {});
        if (bytes.empty()) continue;
        into->give(bytes);
        EXPECT_EQ(into->next(), 0u);
      }
    }
    verified = client->info().verified;
    if (client->state() == Engine::State::failed) {
      EXPECT_EQ(client->failure(), Failure::certificate) << client->error();
    }
    return client->state();
  }
};

TEST_F(DaneHandshakeTest, TheRecordsAloneDecide) {
  Verified verified;
  EXPECT_EQ(handshake(server("leaf"), {record(3, 1, 1, "leaf")}, verified), Engine::State::open);
  EXPECT_EQ(verified, Verified::ok);
  EXPECT_EQ(handshake(server("leaf"), {record(3, 1, 1, "old")}, verified), Engine::State::failed);
  EXPECT_EQ(verified, Verified::no_match);
  EXPECT_EQ(handshake(server("old"), {record(3, 1, 1, "old")}, verified), Engine::State::open) << "expired, and DANE-EE";
  EXPECT_EQ(handshake(server("low", {"middle", "ca"}), {record(2, 0, 1, "ca")}, verified), Engine::State::open);
  EXPECT_EQ(handshake(server("old", {"ca"}), {record(2, 0, 1, "ca")}, verified), Engine::State::failed);
  EXPECT_EQ(verified, Verified::expired);
  EXPECT_EQ(handshake(server("low", {"middle"}), {record(2, 0, 1, "ca")}, verified), Engine::State::failed);
}

}  // namespace
}  // namespace millrace::tls
