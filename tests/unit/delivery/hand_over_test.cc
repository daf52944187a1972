// `deliver` of the shaping file: mail that goes elsewhere than to its receiver's hosts.
#include "connection_rig.h"

#include <unistd.h>

#include <filesystem>

#include "config/shaping.h"
#include "config/values.h"

namespace millrace::delivery {
namespace {

using namespace testing;
using dns::Carriage;
using events::Stage;

class HandOverTest : public ConnectionTest {
 protected:
  // It is there as the shaping file is read, and on the relay's disk.
  const std::string folder_ = fmt::format("/tmp/millrace-hand-over-{}", getpid());

  HandOverTest() { std::filesystem::create_directories(folder_); }
  ~HandOverTest() override { std::filesystem::remove_all(folder_); }

  void shape(std::string_view text) {
    auto rules = config::Shaping::parse(text, "shaping.toml", config_.sources);
    ASSERT_TRUE(rules.ok()) << rules.error().text;
    config_.shaping_rules = *rules;
    restart();
  }
  reactor::SimDisk& disk() { return world_.disk(host_); }
  void make_folder() {
    ASSERT_TRUE(disk().make_directory("/tmp").ok());
    ASSERT_TRUE(disk().make_directory(folder_).ok());
    ASSERT_TRUE(disk().sync_directory("/").ok());
    ASSERT_TRUE(disk().sync_directory("/tmp").ok());
  }
  const queue::Attempt& attempt(size_t number = 0) const { return *queue_.finished_.at(number); }
  Mail& add_with_id(std::string body, uint64_t id, std::vector<std::string> recipients = {"a@dest.example"}) {
    Mail& mail = add(std::move(body), std::move(recipients));
    mail.message->id.high = 1;
    mail.message->id.low = id;
    return mail;
  }
  std::string path_of(const Mail& mail) const { return fmt::format("{}/{}-0.eml", folder_, mail.message->id.to_string()); }
};

TEST_F(HandOverTest, DiscardedMailIsDeliveredWithoutALookUpOrAConnection) {
  shape("[domain.\"dest.example\"]\ndeliver = \"discard\"\n");
  for (int i = 0; i < 200; ++i) add("one\r\n", {"a@dest.example", "b@dest.example"});
  resolve("dest.example");
  EXPECT_EQ(destination_.route->carriage, Carriage::discard);
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(queue_.finished_.size(), 200u);
  EXPECT_EQ(outcome(attempt(199)), "delivered, delivered");
  EXPECT_EQ(attempt().transport, "discard");
  EXPECT_EQ(attempt().results[0].reply, "250 2.0.0 discarded");
  EXPECT_EQ(attempt().ehlo_name, "relay.example");
  EXPECT_EQ(attempt(7).session_message, 8u);
  EXPECT_EQ(agent_->stats().connects, 0u);
  EXPECT_EQ(queue_.ready, 1);
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::idle);
  EXPECT_EQ(queue_.ends[0].messages, 200u);
}

TEST_F(HandOverTest, ConfiguredReplyIsJudgedAsAReceiversWouldBe) {
  shape("[domain.\"dest.example\"]\ndeliver = \"discard 550 5.1.1 no such user\"\n"
        "[domain.\"later.example\"]\ndeliver = \"discard 450 4.2.1 mailbox busy\"\n");
  add("one\r\n");
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(outcome(attempt()), "bounce");
  EXPECT_EQ(attempt().results[0].bounce_class, "bad-mailbox");
  EXPECT_EQ(attempt().results[0].enhanced, "5.1.1");
  add("two\r\n", {"a@later.example"});
  resolve("later.example");
  open();
  ASSERT_TRUE(run_until_closed(2));
  EXPECT_EQ(outcome(attempt(1)), "defer");
  EXPECT_EQ(attempt(1).transport, "discard");
}

TEST_F(HandOverTest, OperatorsLinesHoldForTheConfiguredReply) {
  shape("[domain.\"dest.example\"]\ndeliver = \"discard 451 4.7.1 slower\"\n"
        "[replies]\nlines = '''\nreply /slower/ mode=backoff\n'''\n");
  add("one\r\n");
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_TRUE(attempt().results[0].asks.back_off);
}

TEST_F(HandOverTest, IdleLaneIsWokenAndEndsWhenNothingComes) {
  shape("[domain.\"*\"]\ndeliver = \"discard\"\n");
  resolve("dest.example");
  queue::Lane* lane = open();
  ASSERT_TRUE(run([&] { return queue_.waiting != nullptr; }));
  add("one\r\n");
  lane->wake();
  ASSERT_TRUE(run([&] { return queue_.finished_.size() == 1; }));
  EXPECT_TRUE(queue_.ends.empty());
  ASSERT_TRUE(run_until_closed(1, 10));
}

TEST_F(HandOverTest, LaneObeysItsLimitOfMessages) {
  shape("[domain.\"*\"]\ndeliver = \"discard\"\n");
  for (int i = 0; i < 5; ++i) add("one\r\n");
  resolve("dest.example");
  open()->messages_most = 3;
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(queue_.ends[0].messages, 3u);
  EXPECT_EQ(queue_.queue.size(), 2u);
}

TEST_F(HandOverTest, NothingSlipsThroughToASmarthostOrRoute) {
  config_.smarthost = {.host = "198.51.100.1", .port = 25};
  config_.routes["dest.example"] = {.host = "198.51.100.1", .port = 25};
  shape("[domain.\"*\"]\ndeliver = \"discard\"\n[domain.\"real.example\"]\ndeliver = \"smtp\"\n");
  resolve("other.example");
  EXPECT_EQ(destination_.route->carriage, Carriage::discard);
  resolve("dest.example");
  EXPECT_EQ(destination_.route->carriage, Carriage::discard);
  resolve("real.example");
  EXPECT_EQ(destination_.route->carriage, Carriage::smtp);
  EXPECT_EQ(destination_.route->site, "198.51.100.1:25");
}

TEST_F(HandOverTest, ProvidersMailGoesElsewhereWhoeverItsDomainsAre) {
  zones_.add_mx("dest.example", 10, "mx1.big.example");
  zones_.add_address("mx1.big.example", "198.51.100.1");
  zones_.add_mx("small.example", 10, "mx.small.example");
  zones_.add_address("mx.small.example", "198.51.100.2");
  shape("[provider.big]\nmx = [\"*.big.example\"]\ndeliver = \"discard 250 ok\"\n");
  resolve("dest.example");
  EXPECT_EQ(destination_.route->carriage, Carriage::discard);
  EXPECT_EQ(destination_.route->provider, "big");  // whose limits hold
  EXPECT_EQ(destination_.route->site, "discard:250 ok for big");
  resolve("small.example");
  EXPECT_EQ(destination_.route->carriage, Carriage::smtp);
}

TEST_F(HandOverTest, WhatIsSaidOfAllDomainsYieldsToTheProvider) {
  zones_.add_mx("dest.example", 10, "mx1.big.example");
  zones_.add_address("mx1.big.example", "198.51.100.1");
  zones_.add_mx("small.example", 10, "mx.small.example");
  zones_.add_address("mx.small.example", "198.51.100.2");
  shape("[domain.\"*\"]\ndeliver = \"discard\"\n[provider.big]\nmx = [\"*.big.example\"]\ndeliver = \"discard 451 later\"\n");
  resolve("dest.example");
  EXPECT_EQ(destination_.route->handed_to, "451 later");
  resolve("small.example");
  EXPECT_EQ(destination_.route->handed_to, "250 2.0.0 discarded");
}

// ---- files

TEST_F(HandOverTest, FileIsWholeAndDurableBeforeItsOutcomeIsTold) {
  make_folder();
  shape(fmt::format("[domain.\"dest.example\"]\ndeliver = \"file:{}\"\n", folder_));
  Mail& mail = add_with_id("Subject: x\r\n\r\n.dot\r\n", 77, {"a@dest.example", "b@dest.example"});
  resolve("dest.example");
  EXPECT_EQ(destination_.route->carriage, Carriage::file);
  open();
  ASSERT_TRUE(run([&] { return queue_.finished_.size() == 1; }));
  EXPECT_EQ(outcome(attempt()), "delivered, delivered");
  EXPECT_EQ(attempt().transport, "file");
  EXPECT_EQ(attempt().results[0].reply, "250 2.0.0 written to " + path_of(mail));
  Prng chance(1);
  reactor::SimDisk left = disk();  // what a power cut leaves
  left.power_cut(chance);
  ASSERT_TRUE(left.exists(path_of(mail)));
  EXPECT_EQ(left.content(path_of(mail)),
            "Return-Path: <sender@client.example>\r\nDelivered-To: a@dest.example\r\nDelivered-To: b@dest.example\r\n"
            "Subject: x\r\n\r\n.dot\r\n");
}

TEST_F(HandOverTest, ManyFilesAndALargeOne) {
  make_folder();
  shape(fmt::format("[domain.\"*\"]\ndeliver = \"file:{}\"\n", folder_));
  const std::string large(3'000'000, 'x');
  for (uint64_t i = 0; i < 30; ++i) add_with_id(i == 7 ? large : "small\r\n", 100 + i);
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(queue_.finished_.size(), 30u);
  EXPECT_TRUE(disk().content(path_of(*mails_[7])).ends_with("\r\n" + large));
  EXPECT_EQ(disk().list(folder_)->size(), 30u);
}

TEST_F(HandOverTest, LeftoverOfACrashIsWrittenAnew) {
  make_folder();
  shape(fmt::format("[domain.\"*\"]\ndeliver = \"file:{}\"\n", folder_));
  Mail& mail = add_with_id("one\r\n", 5);
  const std::string temporary = path_of(mail).substr(0, path_of(mail).size() - 4) + ".tmp";
  auto left = disk().open(temporary, true);
  ASSERT_TRUE(left.ok());
  disk().write(*left, 0, std::string(500, 'z'), false);
  disk().release(*left);
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_TRUE(disk().content(path_of(mail)).ends_with("\r\none\r\n"));
  EXPECT_EQ(disk().list(folder_)->size(), 1u);
}

TEST_F(HandOverTest, FullDiskHoldsTheSiteAndCountsNoAttempt) {
  make_folder();
  config_.spool_reserve = 0;
  shape(fmt::format("[domain.\"*\"]\ndeliver = \"file:{}\"\n", folder_));
  disk().set_capacity(8192);
  add_with_id(std::string(100'000, 'x'), 5);
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(queue_.outcomes(), "[give back]");
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::failed);
  EXPECT_NE(queue_.ends[0].reply.find("No space left on device"), std::string::npos) << queue_.ends[0].reply;
  EXPECT_TRUE(disk().list(folder_)->empty());
}

TEST_F(HandOverTest, FailingSyncIsNoDelivery) {
  make_folder();
  shape(fmt::format("[domain.\"*\"]\ndeliver = \"file:{}\"\n", folder_));
  add_with_id("one\r\n", 5);
  resolve("dest.example");
  world_.faults().sync_error = 1;
  open();
  ASSERT_TRUE(run_until_closed());
  world_.faults().sync_error = 0;
  EXPECT_EQ(queue_.outcomes(), "[give back]");
  EXPECT_NE(queue_.ends[0].reply.find("Input/output error"), std::string::npos) << queue_.ends[0].reply;
}

TEST_F(HandOverTest, ReserveIsKept) {
  make_folder();
  config_.spool_reserve = 1 << 20;
  shape(fmt::format("[domain.\"*\"]\ndeliver = \"file:{}\"\n", folder_));
  disk().set_capacity(1 << 19);
  add_with_id("one\r\n", 5);
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_TRUE(queue_.finished_.empty());
  EXPECT_EQ(queue_.ready, 0);  // nothing says that it works
  EXPECT_NE(queue_.ends[0].reply.find("--spool-reserve"), std::string::npos) << queue_.ends[0].reply;
}

TEST_F(HandOverTest, MissingFolderIsNamed) {
  shape(fmt::format("[domain.\"*\"]\ndeliver = \"file:{}\"\n", folder_));
  add_with_id("one\r\n", 5);
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_NE(queue_.ends[0].reply.find(folder_), std::string::npos) << queue_.ends[0].reply;
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::failed);
}

TEST_F(HandOverTest, AbortWhileAFileIsWrittenGivesItBack) {
  make_folder();
  shape(fmt::format("[domain.\"*\"]\ndeliver = \"file:{}\"\n", folder_));
  add_with_id("one\r\n", 5);
  resolve("dest.example");
  open();
  ASSERT_TRUE(run([&] { return queue_.queue.empty(); }));
  agent_->abort();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(queue_.outcomes(), "[give back]");
  EXPECT_TRUE(disk().list(folder_)->empty());
}

// ---- LMTP

TEST_F(HandOverTest, LmtpOverTcpGoesToTheHostThatIsNamed) {
  Peer& peer = add_peer("198.51.100.1");
  peer.script = [](Peer::Session& session, const std::string& line) -> std::string {
    if (line == "<connect>") return "220 mx LMTP\r\n";
    if (line.starts_with("LHLO")) return "250-mx\r\n250 PIPELINING\r\n";
    if (line == "DATA") return "354 go\r\n";
    if (line == ".") return "250 a\r\n550 5.7.1 not b\r\n";
    if (line == "QUIT") return "221 bye\r\nCLOSE";
    return session.lines.empty() ? "" : "250 ok\r\n";
  };
  zones_.add_address("store.example", "198.51.100.1");
  shape("[domain.\"dest.example\"]\ndeliver = \"lmtp://store.example:25\"\n");
  add("one\r\n", {"a@dest.example", "b@dest.example"});
  add("two\r\n", {"a@dest.example", "b@dest.example"});
  resolve("dest.example");
  EXPECT_EQ(destination_.route->site, "lmtp:store.example:25");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(queue_.outcomes(), "[delivered, bounce][delivered, bounce]");
  EXPECT_EQ(attempt().transport, "lmtp");
  EXPECT_EQ(attempt().mx, "store.example");
  EXPECT_EQ(peer.messages.size(), 2u);
}

TEST_F(HandOverTest, LmtpOverAUnixSocketIsUnboundAndInTheClear) {
  config_.sources.push_back(*config::parse_source("192.0.2.250=relay.example"));
  config_.tls = config::TlsLevel::verified;
  shape("[domain.\"dest.example\"]\ndeliver = \"lmtp:/run/lmtp\"\n");
  add("one\r\n");
  resolve("dest.example");
  EXPECT_EQ(destination_.route->site, "lmtp:/run/lmtp");
  EXPECT_EQ(destination_.route->hosts.at(0).addresses.at(0).to_string(), "unix:/run/lmtp");
  open();
  ASSERT_TRUE(run_until_closed());
  // Nobody listens there, but it came to a connect.
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::failed);
  EXPECT_NE(queue_.ends[0].reply.find("connect: No such file"), std::string::npos) << queue_.ends[0].reply;
}

}  // namespace
}  // namespace millrace::delivery
