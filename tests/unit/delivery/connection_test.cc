// Whole connections in the simulator.
#include "connection_rig.h"

namespace millrace::delivery {
namespace {

using namespace testing;
using queue::LaneEnd;

TEST_F(ConnectionTest, MessagesArriveAndTheLaneEndsIdle) {
  Peer& peer = simple_peer();
  for (int i = 0; i < 20; ++i) add(fmt::format("Subject: {}\r\n\r\n.dot\r\n", i));
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed());
  ASSERT_EQ(peer.messages.size(), 20u);
  EXPECT_EQ(peer.messages[7], "Subject: 7\r\n\r\n.dot\r\n");
  EXPECT_EQ(peer.sessions.size(), 1u);
  EXPECT_EQ(queue_.finished_.size(), 20u);
  EXPECT_EQ(queue_.outcomes().substr(0, 22), "[delivered][delivered]");
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::idle);
  EXPECT_EQ(queue_.ends[0].messages, 20u);
  const queue::Attempt& last = *queue_.finished_[19];
  EXPECT_EQ(last.mx, "mx.example");
  EXPECT_EQ(last.peer.to_string(), "198.51.100.1:25");
  EXPECT_EQ(last.source_text, "192.0.2.250");
  EXPECT_EQ(last.session_message, 20u);
  EXPECT_EQ(last.ehlo_name, "relay.example");
  world_.run_for(kSecond);
  EXPECT_EQ(peer.sessions[0]->lines.back(), "QUIT");
}

TEST_F(ConnectionTest, ChunksArriveToo) {
  Peer& peer = simple_peer();
  peer.script = Peer::well_behaved({"PIPELINING", "CHUNKING"});
  const std::string large(3'000'000, 'x');
  for (int i = 0; i < 5; ++i) add(fmt::format(".{}\r\n{}\r\n", i, large));
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed());
  ASSERT_EQ(peer.messages.size(), 5u);
  EXPECT_EQ(peer.messages[3], fmt::format(".3\r\n{}\r\n", large));
}

TEST_F(ConnectionTest, IdleLaneIsWoken) {
  Peer& peer = simple_peer();
  resolve("dest.example");
  queue::Lane* lane = open();
  ASSERT_TRUE(run([&] { return queue_.waiting != nullptr; }));
  add("one\r\n");
  lane->wake();
  ASSERT_TRUE(run([&] { return peer.messages.size() == 1; }));
  ASSERT_TRUE(run([&] { return queue_.outcomes() == "[delivered]"; }));
  EXPECT_TRUE(queue_.ends.empty());
  ASSERT_TRUE(run_until_closed(1, 10));
  EXPECT_EQ(peer.sessions.size(), 1u);
}

TEST_F(ConnectionTest, SecondHostIsTriedAndTheFirstRemembered) {
  add_peer("198.51.100.2");
  zones_.add_mx("dest.example", 10, "dead.example");
  zones_.add_mx("dest.example", 20, "live.example");
  zones_.add_address("dead.example", "198.51.100.99");  // no such host
  zones_.add_address("live.example", "198.51.100.2");
  resolve("dest.example");
  add("one\r\n");
  const int64_t begun = world_.now();
  open();
  ASSERT_TRUE(run([&] { return queue_.finished_.size() == 1; }));
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(queue_.finished_[0]->mx, "live.example");
  EXPECT_LE(world_.now() - begun, 31 * kSecond);
  ASSERT_TRUE(run_until_closed());
  // The next lane does not wait for the dead one.
  add("two\r\n");
  const int64_t again = world_.now();
  open();
  ASSERT_TRUE(run([&] { return queue_.finished_.size() == 2; }));
  EXPECT_LE(world_.now() - again, kSecond);
  EXPECT_EQ(agent_->stats().connects, 3u);
  ASSERT_TRUE(run_until_closed(2));
  // A minute after its failure it gets its probe.
  world_.run_for(60 * kSecond);
  add("three\r\n");
  open();
  ASSERT_TRUE(run_until_closed(3));
  EXPECT_EQ(agent_->stats().connects, 5u);
}

TEST_F(ConnectionTest, AllAddressesDeadFailsTheLaneOnceWithItsReason) {
  zones_.add_mx("dest.example", 10, "dead.example");
  for (int i = 1; i <= 7; ++i)
    zones_.add_address("dead.example", fmt::format("198.51.100.{}", 90 + i));
  resolve("dest.example");
  add("one\r\n");
  open();
  ASSERT_TRUE(run_until_closed(1, 200));
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::failed);
  EXPECT_EQ(queue_.ends[0].stage, events::Stage::connect);
  EXPECT_NE(queue_.ends[0].reply, "");
  EXPECT_EQ(agent_->stats().connects, 5u);
  EXPECT_EQ(queue_.queue.size(), 1u) << "mail was taken";
}

TEST_F(ConnectionTest, WhileEveryAddressIsHeldALaneFailsAtOnceAndSaysForHowLong) {
  zones_.add_mx("dest.example", 10, "dead.example");
  zones_.add_address("dead.example", "198.51.100.99");
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed(1, 200));
  open();
  ASSERT_TRUE(run_until_closed(2, 1));
  EXPECT_EQ(queue_.ends[1].cause, LaneEnd::Cause::failed);
  EXPECT_GT(queue_.ends[1].rest_ms, 50'000);
  EXPECT_LE(queue_.ends[1].rest_ms, 60'000);
  EXPECT_EQ(agent_->stats().connects, 1u);
}

TEST_F(ConnectionTest, HostThatGreetsWith5xxIsPassedOverAndNoMailBounces) {
  Peer& first = add_peer("198.51.100.1");
  add_peer("198.51.100.2");
  first.script = [](Peer::Session&, const std::string&) { return "554 5.7.1 go away\r\n"; };
  zones_.add_mx("dest.example", 10, "first.example");
  zones_.add_mx("dest.example", 20, "second.example");
  zones_.add_address("first.example", "198.51.100.1");
  zones_.add_address("second.example", "198.51.100.2");
  resolve("dest.example");
  add("one\r\n");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
  EXPECT_EQ(queue_.finished_[0]->mx, "second.example");
}

TEST_F(ConnectionTest, Only5xxGreetingsHoldTheLaneUnlessToldToBounce) {
  Peer& peer = simple_peer();
  peer.script = [](Peer::Session&, const std::string&) { return "554 5.7.1 go away\r\n"; };
  resolve("dest.example");
  add("one\r\n");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::failed);
  EXPECT_EQ(queue_.ends[0].stage, events::Stage::greeting);
  EXPECT_EQ(queue_.ends[0].code, 554);
  EXPECT_EQ(queue_.outcomes(), "");
  config_.bounce_on_5xx_greeting = true;
  restart();
  open();
  ASSERT_TRUE(run_until_closed(2));
  EXPECT_EQ(queue_.outcomes(), "[bounce]");
  EXPECT_EQ(queue_.finished_[0]->results[0].reply, "554 5.7.1 go away");
}

TEST_F(ConnectionTest, GreetingThatNeverComesMovesOn) {
  Peer& first = add_peer("198.51.100.1");
  add_peer("198.51.100.2");
  first.script = [](Peer::Session&, const std::string&) { return ""; };
  zones_.add_mx("dest.example", 10, "first.example");
  zones_.add_mx("dest.example", 20, "second.example");
  zones_.add_address("first.example", "198.51.100.1");
  zones_.add_address("second.example", "198.51.100.2");
  config_.greeting_timeout_ms = 20'000;
  restart();
  resolve("dest.example");
  add("one\r\n");
  open();
  ASSERT_TRUE(run([&] { return queue_.finished_.size() == 1; }));
  EXPECT_EQ(queue_.finished_[0]->mx, "second.example");
}

TEST_F(ConnectionTest, A421GreetingIsToldToSlowAndNoOtherHostIsTried) {
  Peer& first = add_peer("198.51.100.1");
  Peer& second = add_peer("198.51.100.2");
  first.script = [](Peer::Session&, const std::string&) { return "421 4.7.0 too many\r\nCLOSE"; };
  zones_.add_mx("dest.example", 10, "first.example");
  zones_.add_mx("dest.example", 20, "second.example");
  zones_.add_address("first.example", "198.51.100.1");
  zones_.add_address("second.example", "198.51.100.2");
  resolve("dest.example");
  add("one\r\n");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::told_to_slow);
  EXPECT_EQ(queue_.ends[0].reply, "421 4.7.0 too many");
  EXPECT_TRUE(second.sessions.empty());
  EXPECT_EQ(queue_.queue.size(), 1u);
}

TEST_F(ConnectionTest, SilentCloseAfterTheSameNumberOfMessagesIsLearnedAndTestedDaily) {
  Peer& peer = simple_peer();
  const Peer::Script usual = Peer::well_behaved({"PIPELINING"});
  peer.script = [usual](Peer::Session& session, const std::string& line) -> std::string {
    if (line == "." && session.messages == 3) return "250 ok\r\nCLOSE";
    return usual(session, line);
  };
  resolve("dest.example");
  for (int i = 0; i < 40; ++i) add("x\r\n");
  for (size_t lane = 1; lane <= 3; ++lane) {
    open();
    ASSERT_TRUE(run_until_closed(lane));
    EXPECT_EQ(queue_.ends.back().cause, LaneEnd::Cause::peer_limit) << lane;
    EXPECT_EQ(queue_.ends.back().messages, 3u);
  }
  open();
  ASSERT_TRUE(run_until_closed(4));
  EXPECT_EQ(queue_.ends[3].cause, LaneEnd::Cause::idle);
  EXPECT_EQ(queue_.ends[3].messages, 3u);
  EXPECT_EQ(peer.messages.size(), 12u);
  for (const queue::Attempt* attempt : queue_.finished_) EXPECT_NE(outcome(*attempt), "uncertain");
  world_.run_for(86'400 * kSecond);
  open();
  ASSERT_TRUE(run_until_closed(5));
  EXPECT_EQ(queue_.ends[4].cause, LaneEnd::Cause::peer_limit);
}

TEST_F(ConnectionTest, SilenceToTheFirstMailRestsTheSiteAtOnce) {
  Peer& peer = simple_peer();
  const Peer::Script usual = Peer::well_behaved({"PIPELINING"});
  peer.script = [usual](Peer::Session& session, const std::string& line) -> std::string {
    return line == "<connect>" || line.starts_with("EHLO") ? usual(session, line) : "";
  };
  config_.mail_timeout_ms = 20'000;
  restart();
  resolve("dest.example");
  add("x\r\n");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::failed);
  EXPECT_EQ(queue_.ends[0].stage, events::Stage::mail);
  EXPECT_EQ(queue_.ends[0].reply, "time-out while waiting for the reply to MAIL");
  EXPECT_EQ(queue_.outcomes(), "[give back]");
}

TEST_F(ConnectionTest, OnlyTheThirdCloseInARowBeforeTheReplyToMailRestsTheSite) {
  Peer& peer = simple_peer();
  const Peer::Script usual = Peer::well_behaved({"PIPELINING"});
  bool broken = true;
  peer.script = [&broken, usual](Peer::Session& session, const std::string& line) -> std::string {
    return broken && line.starts_with("MAIL") ? "CLOSE" : usual(session, line);
  };
  resolve("dest.example");
  for (int i = 0; i < 6; ++i) add("x\r\n");
  auto cause_of_next = [&] {
    const size_t lanes = queue_.ends.size() + 1;
    open();
    EXPECT_TRUE(run_until_closed(lanes));
    return queue_.ends.back().cause;
  };
  EXPECT_EQ(cause_of_next(), LaneEnd::Cause::lost);
  EXPECT_EQ(cause_of_next(), LaneEnd::Cause::lost);
  EXPECT_EQ(cause_of_next(), LaneEnd::Cause::failed);
  broken = false;
  EXPECT_EQ(cause_of_next(), LaneEnd::Cause::idle);  // a delivery: counted anew
  broken = true;
  add("x\r\n");
  EXPECT_EQ(cause_of_next(), LaneEnd::Cause::lost);
}

class LostReplyTest : public ConnectionTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(LostReplyTest, IsUncertainForOneMessageOnly) {
  Peer& peer = simple_peer();
  const Peer::Script usual = Peer::well_behaved({"PIPELINING", GetParam()});
  peer.script = [usual](Peer::Session& session, const std::string& line) -> std::string {
    if (line == "." && session.messages == 2) return "CLOSE";
    return usual(session, line);
  };
  resolve("dest.example");
  for (int i = 0; i < 4; ++i) add("x\r\n");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(queue_.outcomes(), "[delivered][uncertain][give back]");
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::lost);
}
INSTANTIATE_TEST_SUITE_P(Forms, LostReplyTest, ::testing::Values("8BITMIME", "CHUNKING"));

TEST_F(ConnectionTest, RetireFinishesWhatIsOut) {
  Peer& peer = simple_peer();
  resolve("dest.example");
  for (int i = 0; i < 1000; ++i) add("x\r\n");
  queue::Lane* lane = open();
  ASSERT_TRUE(run([&] { return peer.messages.size() == 10; }));
  lane->retire();
  ASSERT_TRUE(run_until_closed(1, 5));
  EXPECT_EQ(queue_.ends[0].cause, LaneEnd::Cause::idle);
  EXPECT_EQ(queue_.finished_.size(), peer.messages.size());
  EXPECT_LT(peer.messages.size(), 20u);
}

TEST_F(ConnectionTest, RetireWhileConnectingEndsSoon) {
  zones_.add_mx("dest.example", 10, "dead.example");
  zones_.add_address("dead.example", "198.51.100.99");
  resolve("dest.example");
  open()->retire();
  ASSERT_TRUE(run_until_closed(1, 5));
  queue::Lane* lane = open();
  world_.run_for(kSecond);
  lane->retire();
  ASSERT_TRUE(run_until_closed(2, 5));
  EXPECT_EQ(queue_.ends[1].cause, LaneEnd::Cause::idle);
}

TEST_F(ConnectionTest, SourceIsBoundAndNamesItself) {
  config::Source source;
  source.ipv4 = *reactor::Address::parse_host("192.0.2.250", 0);
  source.ehlo_name = "out1.example";
  config_.sources = {source};
  restart();
  Peer& peer = simple_peer();
  resolve("dest.example");
  add("x\r\n");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(peer.sessions[0]->lines[0], "EHLO out1.example");
  EXPECT_EQ(queue_.finished_[0]->source_text, "192.0.2.250");
}

TEST_F(ConnectionTest, FamiliesFollowTheSourceAndTheSetting) {
  Peer& four = add_peer("198.51.100.1");
  Peer& six = add_peer("2001:db8::1");
  zones_.add_mx("dest.example", 10, "mx.example");
  zones_.add_address("mx.example", "198.51.100.1");
  zones_.add_address("mx.example", "2001:db8::1");
  const auto deliver = [&] {
    restart();
    cache_->flush();
    resolve("dest.example");
    add("x\r\n");
    open();
    EXPECT_TRUE(run_until_closed(queue_.ends.size() + 1));
    return fmt::format("{}/{}", four.messages.size(), six.messages.size());
  };
  config_.ipv6 = config::Ipv6::off;
  EXPECT_EQ(deliver(), "1/0");
  config_.ipv6 = config::Ipv6::prefer;
  EXPECT_EQ(deliver(), "1/1");
  config_.ipv6 = config::Ipv6::after_ipv4;
  EXPECT_EQ(deliver(), "2/1");
  config::Source source;
  source.ipv6 = *reactor::Address::parse_host("2001:db8::250", 0);
  config_.sources = {source};
  EXPECT_EQ(deliver(), "2/2");
  source.ipv4 = *reactor::Address::parse_host("192.0.2.250", 0);
  source.ipv6 = {};
  config_.sources = {source};
  config_.ipv6 = config::Ipv6::prefer;
  EXPECT_EQ(deliver(), "3/2");
}

TEST_F(ConnectionTest, ExplicitHopsAreUsedInsteadOfMx) {
  Peer& hub = add_peer("198.51.100.7");
  zones_.add_address("hub.example", "198.51.100.7");
  config_.smarthost = {"hub.example", 25};
  config_.routes["other.example"] = {"198.51.100.7", 25};
  restart();
  resolve("dest.example");
  EXPECT_EQ(site_.key, "hub.example:25");
  EXPECT_TRUE(site_.route->explicit_hop);
  add("x\r\n");
  open();
  ASSERT_TRUE(run_until_closed());
  resolve("other.example");
  EXPECT_EQ(site_.key, "198.51.100.7:25");
  add("x\r\n");
  open();
  ASSERT_TRUE(run_until_closed(2));
  EXPECT_EQ(hub.messages.size(), 2u);
}

TEST_F(ConnectionTest, MessageLimitDoesNotBindAnExplicitHopUnlessGiven) {
  Peer& hub = add_peer("198.51.100.7");
  config_.smarthost = {"198.51.100.7", 25};
  config_.messages_per_connection = 2;
  restart();
  resolve("dest.example");
  for (int i = 0; i < 6; ++i) add("x\r\n");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(hub.sessions.size(), 1u);
  EXPECT_EQ(hub.messages.size(), 6u);
  config_.messages_per_connection_given = true;
  restart();
  for (int i = 0; i < 6; ++i) add("x\r\n");
  open();
  ASSERT_TRUE(run_until_closed(2));
  EXPECT_EQ(hub.messages.size(), 8u);
}

TEST_F(ConnectionTest, EveryAttemptComesBackOnceWhateverTheNetworkDoes) {
  Peer& peer = simple_peer();
  resolve("dest.example");
  world_.faults().reset = 0.01;
  world_.faults().silence = 0.002;
  world_.faults().connect_refused = 0.2;
  config_.data_done_timeout_ms = config_.mail_timeout_ms = config_.greeting_timeout_ms = 10'000;
  config_.hold_ms = {1000};
  for (const char* extension : {"8BITMIME", "CHUNKING"}) {
    restart();
    peer.script = Peer::well_behaved({"PIPELINING", extension});
    std::map<queue::Attempt*, int> returned;
    int uncertain = 0;
    const size_t lanes_before = queue_.ends.size();
    size_t lanes = lanes_before;
    size_t delivered = 0;
    const size_t arrived_before = peer.messages.size();
    mails_.clear();
    queue_.finished_.clear();
    for (int i = 0; i < 400; ++i) add(fmt::format("{}\r\n", i));
    while (!queue_.queue.empty()) {
      open();
      ++lanes;
      ASSERT_TRUE(run_until_closed(lanes, 10'000));
      world_.run_for(kSecond);  // past the hold of an address
      int uncertain_here = 0;
      for (queue::Attempt* attempt : queue_.finished_) {
        const queue::Action action = attempt->results[0].action;
        uncertain_here += action == queue::Action::uncertain;
        delivered += action == queue::Action::delivered;
        ++returned[attempt];
      }
      queue_.finished_.clear();
      EXPECT_LE(uncertain_here, 1);
      uncertain += uncertain_here;
    }
    EXPECT_EQ(returned.size(), 400u);
    for (const auto& [attempt, times] : returned) EXPECT_EQ(times, 1);
    // Nothing is called delivered that did not arrive, and what arrived was delivered or uncertain.
    const size_t arrived = peer.messages.size() - arrived_before;
    EXPECT_GE(arrived, delivered);
    if (extension != std::string_view("CHUNKING")) {
      EXPECT_LE(arrived, delivered + static_cast<size_t>(uncertain));
    }
  }
}

TEST(AddressHolds, DoubleWithEachFailureAndAllowOneProbe) {
  AddressHolds holds;
  const std::vector<int64_t> schedule = {60'000, 120'000};
  const auto address = *reactor::Address::parse("198.51.100.1:25");
  int64_t now = kSecond;
  EXPECT_TRUE(holds.usable(0, address, now));
  holds.failed(0, address, now, now, schedule);
  EXPECT_FALSE(holds.usable(0, address, now + 59 * kSecond));
  EXPECT_TRUE(holds.usable(1, address, now)) << "another source";
  holds.failed(0, address, now - 1, now + 10 * kSecond,
               schedule);  // began before: the same episode
  now += 60 * kSecond;
  EXPECT_TRUE(holds.usable(0, address, now));
  holds.begin(0, address);
  EXPECT_FALSE(holds.usable(0, address, now)) << "a second probe";
  holds.failed(0, address, now, now, schedule);
  EXPECT_FALSE(holds.usable(0, address, now + 119 * kSecond));
  now += 120 * kSecond;
  holds.begin(0, address);
  holds.given_up(0, address);
  EXPECT_TRUE(holds.usable(0, address, now));
  holds.failed(0, address, now, now, schedule);
  EXPECT_FALSE(holds.usable(0, address, now + 119 * kSecond));
  holds.succeeded(0, address);
  EXPECT_TRUE(holds.usable(0, address, now));
  EXPECT_EQ(holds.size(), 0u);
}

TEST(CloseLimits, ThreeEqualClosesTeachAndADayForgets) {
  CloseLimits limits;
  limits.note_close("site", 0, 20, 0);
  limits.note_close("site", 0, 20, 0);
  limits.note_close("site", 0, 19, 0);
  limits.note_close("site", 0, 20, 0);
  limits.note_close("site", 0, 20, 0);
  EXPECT_EQ(limits.limit("site", 0, 0), 0u);
  limits.note_close("site", 0, 20, 5);
  EXPECT_EQ(limits.limit("site", 0, 6), 20u);
  EXPECT_EQ(limits.limit("site", 1, 6), 0u);
  EXPECT_EQ(limits.limit("other", 0, 6), 0u);
  EXPECT_EQ(limits.limit("site", 0, 5 + CloseLimits::kTestAgainNs), 0u);
}

TEST(MxOptions, KnowWhoWeAre) {
  config::Config config;
  config.hostname = "relay.example";
  config::Source source;
  source.ipv4 = *reactor::Address::parse_host("198.51.100.5", 0);
  source.ehlo_name = "out.example";
  config.sources = {source};
  source.ipv4 = *reactor::Address::parse_host("127.0.0.1", 0);
  config.sources.push_back(source);
  config.own_addresses = {*reactor::Address::parse_host("10.0.0.1", 0)};
  const dns::MxOptions options = mx_options(config);
  ASSERT_EQ(options.own_addresses.size(), 2u);
  EXPECT_EQ(options.own_addresses[1].host_string(), "198.51.100.5");
  EXPECT_EQ(options.own_names.front(), "relay.example");
  EXPECT_EQ(options.own_names.back(), "out.example");
}

}  // namespace
}  // namespace millrace::delivery
