// What the DNS says of our sources, and what becomes of IPv6 where it says too little.
#include "connection_rig.h"

#include "config/values.h"

namespace millrace::delivery {
namespace {

using namespace testing;

constexpr const char* kReverse4 = "250.2.0.192.in-addr.arpa";
constexpr const char* kReverse6 = "0.5.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";

class SourceCheckTest : public ConnectionTest {
 protected:
  SourceCheckTest() { config_.ipv6 = config::Ipv6::prefer; }
  void add_source(std::string_view text) { config_.sources.push_back(*config::parse_source(text)); }
  // 192.0.2.250 and 2001:db8::250, as it should be.
  void good_zones() {
    zones_.add_pointer(kReverse4, "mta.example");
    zones_.add_pointer(kReverse6, "mta.example");
    zones_.add_address("mta.example", "192.0.2.250");
    zones_.add_address("mta.example", "2001:db8::250");
  }
  void check() {
    if (!check_) {
      check_ = std::make_unique<SourceCheck>(*io_, *cache_);
      check_->on_finding = [this](const SourceCheck::Finding& finding) { findings_.push_back(finding); };
    }
    restart();
    agent_->set_sources(check_.get());
    check_->start(std::make_shared<config::Config>(config_));
  }
  std::string found() {
    EXPECT_TRUE(run([&] { return !findings_.empty(); }));
    return findings_.empty() ? "nothing" : findings_.back().wrong;
  }

  std::unique_ptr<SourceCheck> check_;
  std::vector<SourceCheck::Finding> findings_;
};

TEST_F(SourceCheckTest, NamesThatLeadThereAndBackAreGood) {
  good_zones();
  add_source("192.0.2.250+2001:db8::250=mta.example");
  check();
  EXPECT_TRUE(findings_.empty());  // never inline
  EXPECT_FALSE(check_->ipv6_usable(0));  // not known yet
  EXPECT_EQ(found(), "");
  EXPECT_TRUE(check_->ipv6_usable(0));
  EXPECT_EQ(findings_[0].ehlo_name, "mta.example");
  EXPECT_EQ(findings_[0].address, "192.0.2.250");
}

TEST_F(SourceCheckTest, MissingPointerIsNamedWithTheRecordThatIsWanted) {
  good_zones();
  zones_.remove(kReverse6);
  add_source("192.0.2.250+2001:db8::250=mta.example");
  check();
  EXPECT_EQ(found(), fmt::format("2001:db8::250 has no PTR record: have whoever gave you the address set {} PTR mta.example; "
                                 "IPv6 is not used (--ipv6-without-ptr would)", kReverse6));
  EXPECT_FALSE(check_->ipv6_usable(0));
  EXPECT_EQ(check_->wrong(0), findings_[0].wrong);
}

TEST_F(SourceCheckTest, PointerThatDoesNotLeadBackIsNoGood) {
  good_zones();
  zones_.remove(kReverse6);
  zones_.add_pointer(kReverse6, "host-17.provider.example");
  zones_.add_address("host-17.provider.example", "2001:db8::17");
  add_source("192.0.2.250+2001:db8::250=mta.example");
  check();
  EXPECT_NE(found().find("names host-17.provider.example, which does not lead back: add AAAA 2001:db8::250 to that name, or set "
                         "the PTR to mta.example"), std::string::npos) << found();
  EXPECT_FALSE(check_->ipv6_usable(0));
}

TEST_F(SourceCheckTest, OneOfSeveralPointersSuffices) {
  good_zones();
  zones_.add_pointer(kReverse6, "other.example");
  add_source("192.0.2.250+2001:db8::250=mta.example");
  check();
  EXPECT_EQ(found(), "");
  EXPECT_TRUE(check_->ipv6_usable(0));
}

TEST_F(SourceCheckTest, EhloNameThatLeadsElsewhereIsToldAndChangesNothing) {
  good_zones();
  add_source("192.0.2.250+2001:db8::250=elsewhere.example");
  check();
  EXPECT_EQ(found(), "the EHLO name elsewhere.example does not lead to 192.0.2.250: add elsewhere.example A 192.0.2.250; "
                     "the EHLO name elsewhere.example does not lead to 2001:db8::250: add elsewhere.example AAAA 2001:db8::250");
  EXPECT_TRUE(check_->ipv6_usable(0));
}

TEST_F(SourceCheckTest, SettingAllowsWhatIsNotThere) {
  add_source("192.0.2.250+2001:db8::250=mta.example");
  config_.ipv6_without_ptr = true;
  check();
  EXPECT_EQ(found().find("IPv6 is not used"), std::string::npos);
  EXPECT_TRUE(check_->ipv6_usable(0));
}

TEST_F(SourceCheckTest, FailingLookUpKeepsWhatIsKnownAndIsMadeAgain) {
  good_zones();
  add_source("192.0.2.250+2001:db8::250=mta.example");
  zones_.fail(kReverse6, dns::Outcome::failure);
  check();
  run([] { return false; }, 60);
  EXPECT_TRUE(findings_.empty());
  EXPECT_FALSE(check_->ipv6_usable(0));
  zones_.heal(kReverse6);
  ASSERT_TRUE(run([&] { return !findings_.empty(); }, 400));
  EXPECT_TRUE(check_->ipv6_usable(0));
  // An hour later nobody answers.
  zones_.fail(kReverse6, dns::Outcome::failure);
  run([] { return false; }, 4000);
  EXPECT_TRUE(check_->ipv6_usable(0));
  EXPECT_EQ(findings_.size(), 1u);
}

TEST_F(SourceCheckTest, ChangeIsNoticedWithinAnHourAndToldOnce) {
  good_zones();
  add_source("192.0.2.250+2001:db8::250=mta.example");
  check();
  EXPECT_EQ(found(), "");
  zones_.remove(kReverse6);
  run([] { return false; }, 4 * 3600);
  EXPECT_EQ(findings_.size(), 2u);
  EXPECT_FALSE(check_->ipv6_usable(0));
}

TEST_F(SourceCheckTest, ReloadBeginsAnewAndOldAnswersDoNotCount) {
  add_source("192.0.2.250+2001:db8::250=mta.example");
  check();
  config_.sources.clear();
  check();
  run([] { return false; }, 10);
  EXPECT_TRUE(findings_.empty());
  good_zones();
  add_source("192.0.2.250+2001:db8::250=mta.example");
  cache_->flush();
  check();
  EXPECT_EQ(found(), "");
}

TEST_F(SourceCheckTest, PrivateAddressesAreNobodysToJudge) {
  add_source("10.0.0.1+fd00::1=mta.example");
  check();
  EXPECT_EQ(found(), "");
  EXPECT_TRUE(check_->ipv6_usable(0));
  EXPECT_EQ(transport_->queries(), 0u);
}

TEST_F(SourceCheckTest, MailLeavesByIpv4WhereIpv6IsNoGood) {
  good_zones();
  zones_.remove(kReverse6);
  add_source("192.0.2.250+2001:db8::250=mta.example");
  check();
  found();
  Peer& peer = add_peer("198.51.100.1");
  Peer& peer6 = add_peer("2001:db8::1");
  zones_.add_mx("dest.example", 10, "mx.example");
  zones_.add_address("mx.example", "198.51.100.1");
  zones_.add_address("mx.example", "2001:db8::1");
  add("one\r\n");
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(peer.messages.size(), 1u);
  EXPECT_EQ(peer6.sessions.size(), 0u);

  zones_.add_pointer(kReverse6, "mta.example");
  cache_->flush();
  check();
  ASSERT_TRUE(run([&] { return findings_.size() == 2; }));
  add("two\r\n");
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed(2));
  EXPECT_EQ(peer6.messages.size(), 1u);  // --ipv6 prefer
}

TEST_F(SourceCheckTest, SourceWithoutIpv4SaysWhyItsMailWaits) {
  good_zones();
  zones_.remove(kReverse6);
  add_source("2001:db8::250=mta.example");
  check();
  EXPECT_TRUE(check_->ipv6_usable(0));  // until the answer is there
  found();
  zones_.add_mx("dest.example", 10, "mx.example");
  zones_.add_address("mx.example", "2001:db8::1");
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_NE(queue_.ends[0].reply.find("2001:db8::250 has no PTR record"), std::string::npos) << queue_.ends[0].reply;
}

TEST_F(SourceCheckTest, NextHopThatTheOperatorNamesIsReachedAllTheSame) {
  add_source("2001:db8::250=mta.example");
  check();
  found();
  Peer& peer = add_peer("2001:db8::1");
  config_.smarthost = {.host = "2001:db8::1", .port = 25};
  restart();
  agent_->set_sources(check_.get());
  add("one\r\n");
  resolve("dest.example");
  open();
  ASSERT_TRUE(run_until_closed());
  EXPECT_EQ(peer.messages.size(), 1u);
}

}  // namespace
}  // namespace millrace::delivery
