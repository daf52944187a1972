// MTA-STS (RFC 8461): what is read, what is kept, and for how long.
#include "delivery/mta_sts.h"

#include <deque>

#include "config/shaping.h"
#include "connection_rig.h"

namespace millrace::delivery {
namespace {

using namespace testing;
using Mode = StsPolicy::Mode;

constexpr std::string_view kPolicy = "version: STSv1\r\nmode: enforce\r\nmx: mx.example\r\nmx: *.mail.example\r\nmax_age: 604800\r\n";

// ---- what is read

TEST(StsRecord, IdOfTheOneRecordCounts) {
  EXPECT_EQ(read_sts_record({"v=STSv1; id=20160831085700Z;"}), "20160831085700Z");
  EXPECT_EQ(read_sts_record({"v=spf1 -all", "v=STSv1;id=1"}), "1");
  EXPECT_EQ(read_sts_record({"v=STSv1; other=x; id=1 ; "}), "1");
}

TEST(StsRecord, AnythingElseIsNone) {
  for (const auto& texts : std::vector<std::vector<std::string>>{
           {}, {"v=STSv1"}, {"v=STSv1; id="}, {"v=STSv1; id=a-b"}, {"v=STSv10; id=1"}, {"id=1; v=STSv1"}, {"v=STSv1; id=1; id=2"},
           {"v=STSv1; id=1", "v=STSv1; id=1"}, {"v=STSv1; id"}, {"v=STSv1; id=" + std::string(33, 'x')}}) {
    EXPECT_FALSE(read_sts_record(texts).has_value()) << (texts.empty() ? "" : texts[0]);
  }
}

TEST(StsPolicyFile, IsRead) {
  const auto policy = read_sts_policy(kPolicy);
  ASSERT_TRUE(policy.ok()) << policy.error().text;
  EXPECT_EQ(policy->mode, Mode::enforce);
  EXPECT_EQ(policy->max_age_s, 604800);
  EXPECT_TRUE(policy->allows("mx.example"));
  EXPECT_TRUE(policy->allows("a.mail.example"));
  EXPECT_FALSE(policy->allows("a.b.mail.example")) << "the asterisk is one label";
  EXPECT_FALSE(policy->allows("mail.example"));
  EXPECT_FALSE(policy->allows(".mail.example"));
  EXPECT_FALSE(policy->allows("amx.example"));
}

TEST(StsPolicyFile, LineEndsOrderCaseAndUnknownKeysDoNotMatter) {
  const auto policy = read_sts_policy("max_age:86400\nmx: MX.Example\nextra: x\nmode:   testing \nversion:STSv1");
  ASSERT_TRUE(policy.ok()) << policy.error().text;
  EXPECT_EQ(policy->mode, Mode::testing);
  EXPECT_TRUE(policy->allows("mx.example"));
}

TEST(StsPolicyFile, ModeNoneNeedsNoHost) { EXPECT_TRUE(read_sts_policy("version: STSv1\nmode: none\nmax_age: 0\n").ok()); }

TEST(StsPolicyFile, WhatIsMissingOrWrongMakesItNone) {
  for (const char* body : {"", "version: STSv1\nmode: enforce\nmax_age: 1\n", "version: STSv1\nmx: a.example\nmax_age: 1\n",
                           "mode: enforce\nmx: a.example\nmax_age: 1\n", "version: STSv1\nmode: enforce\nmx: a.example\n",
                           "version: STSv2\nmode: enforce\nmx: a.example\nmax_age: 1\n",
                           "version: STSv1\nmode: strict\nmx: a.example\nmax_age: 1\n",
                           "version: STSv1\nmode: enforce\nmx: a.example\nmax_age: -1\n",
                           "version: STSv1\nmode: enforce\nmx: a.*.example\nmax_age: 1\n", "<html>\n"}) {
    EXPECT_FALSE(read_sts_policy(body).ok()) << body;
  }
  EXPECT_FALSE(read_sts_policy(std::string(kPolicy) + std::string(kLongestStsPolicy, '\n')).ok());
}

TEST(StsPolicyFile, StoredFormComesBack) {
  StsPolicy policy = *read_sts_policy(kPolicy);
  policy.id = "7";
  policy.fetched_ms = 1'700'000'000'000;
  const auto back = decode_sts_policy(encode(policy));
  ASSERT_TRUE(back);
  EXPECT_EQ(back->mode, policy.mode);
  EXPECT_EQ(back->mx, policy.mx);
  EXPECT_EQ(back->id, "7");
  EXPECT_EQ(back->expires_ms(), policy.expires_ms());
  for (const char* text : {"", "{}", "[]", "x", R"({"mode":"enforce","id":"1","fetched_ms":1,"max_age_s":1,"mx":"a"})"}) {
    EXPECT_FALSE(decode_sts_policy(text)) << text;
  }
}

// ---- what is kept, and what becomes of mail

class FakeFetcher final : public StsFetcher {
 public:
  bool submit(std::unique_ptr<StsFetch> fetch) override {
    asked.push_back(fetch->host + " " + fetch->addresses.at(0).host_string());
    jobs.push_back(std::move(fetch));
    if (!silent) answer();
    return true;
  }
  void stop() override {}
  // All that was asked for.
  void answer() {
    while (!jobs.empty()) {
      auto job = std::move(jobs.front());
      jobs.pop_front();
      job->fetched = !body.empty();
      job->body = body;
      job->aborted = aborted;
      if (!job->fetched) job->error = "no server";
      StsFetch::give_back(std::move(job));
    }
  }
  std::string body;
  bool silent = false, aborted = false;
  std::deque<std::unique_ptr<StsFetch>> jobs;
  std::vector<std::string> asked;
};

class StsTest : public ConnectionTest {
 protected:
  StsTest() : mailbox_(*io_) {
    io_->on_wake = [this] { mailbox_.drain(); };
    zones_.add_mx("dest.example", 10, "mx.example");
    zones_.add_address("mx.example", "198.51.100.1");
    zones_.add_address("mta-sts.dest.example", "198.51.100.80");
    renew();
  }
  ~StsTest() override {
    // A fetch that is still out comes home before the fetcher and the mailbox end.
    while (!fetcher_.jobs.empty()) {
      StsFetch::give_back(std::move(fetcher_.jobs.front()));
      fetcher_.jobs.pop_front();
    }
    mailbox_.drain();
    io_->on_wake = nullptr;
  }
  void renew() {
    restart();
    agent_->sts_policies().set_fetcher(&fetcher_, &mailbox_);
    agent_->sts_policies().on_news = [this](const std::string& domain, const StsPolicy& policy) { news_ += domain + "=" + policy.id + " "; };
  }
  void publish(const std::string& id, std::string_view body = kPolicy) {
    zones_.remove("_mta-sts.dest.example");
    zones_.add_text("_mta-sts.dest.example", "v=STSv1; id=" + id + ";");
    fetcher_.body = body;
  }
  // The route once more, from answers that are new.
  const dns::Route& route() {
    cache_->flush();
    resolve("dest.example");
    return *destination_.route;
  }
  using Sts = dns::TlsDemand::Sts;

  reactor::Mailbox mailbox_;
  FakeFetcher fetcher_;
  std::string news_;
};

TEST_F(StsTest, EnforcedPolicyWantsVerifiedHosts) {
  publish("1");
  const dns::Route& found = route();
  EXPECT_EQ(found.tls.sts, Sts::enforce);
  const TlsPolicy policy = tls_policy(config_, found, found.hosts[0]);
  EXPECT_EQ(policy.level, config::TlsLevel::verified);
  EXPECT_EQ(policy.name, "mta-sts");
  EXPECT_EQ(fetcher_.asked, std::vector<std::string>{"mta-sts.dest.example 198.51.100.80"});
  EXPECT_EQ(news_, "dest.example=1 ");
}

TEST_F(StsTest, WithoutRecordNothingIsFetched) {
  EXPECT_EQ(route().tls.sts, Sts::none);
  EXPECT_TRUE(fetcher_.asked.empty());
}

TEST_F(StsTest, PolicyThatCannotBeHadIsNone) {
  publish("1", "");
  EXPECT_EQ(route().tls.sts, Sts::none);
  publish("2", "garbage");
  EXPECT_EQ(route().tls.sts, Sts::none);
  EXPECT_EQ(fetcher_.asked.size(), 1u) << "not asked again so soon";
  EXPECT_EQ(agent_->sts_policies().stats().no_https, 1u);
  publish("2");
  world_.run_for(301 * kSecond);
  EXPECT_EQ(route().tls.sts, Sts::enforce);
}

TEST_F(StsTest, FetchThatOurStopEndsIsNobodysFault) {
  int faults = 0;
  agent_->sts_policies().on_fault = [&](const std::string&, StsPolicies::Fault, std::string_view) { ++faults; };
  publish("1", "");
  fetcher_.aborted = true;
  EXPECT_EQ(route().tls.sts, Sts::none);
  EXPECT_EQ(fetcher_.asked.size(), 1u);
  EXPECT_EQ(agent_->sts_policies().stats().no_https, 0u);
  EXPECT_EQ(faults, 0);
}

TEST_F(StsTest, KnownPolicyOutlivesRecordAndServer) {
  publish("1");
  EXPECT_EQ(route().tls.sts, Sts::enforce);
  publish("2", "");  // a new one that cannot be had
  EXPECT_EQ(route().tls.sts, Sts::enforce);
  zones_.remove("_mta-sts.dest.example");
  EXPECT_EQ(route().tls.sts, Sts::enforce);
  zones_.fail("_mta-sts.dest.example", dns::Outcome::failure);
  EXPECT_EQ(route().tls.sts, Sts::enforce);
  world_.run_for(604'801 * kSecond);
  EXPECT_EQ(route().tls.sts, Sts::none) << "until its max_age";
}

TEST_F(StsTest, NewIdBringsTheNewPolicy) {
  publish("1");
  route();
  publish("2", "version: STSv1\nmode: testing\nmx: mx.example\nmax_age: 604800\n");
  EXPECT_EQ(route().tls.sts, Sts::testing);
  publish("3", "version: STSv1\nmode: none\nmax_age: 604800\n");
  EXPECT_EQ(route().tls.sts, Sts::none);
  EXPECT_EQ(news_, "dest.example=1 dest.example=2 dest.example=3 ");
  route();
  EXPECT_EQ(fetcher_.asked.size(), 3u) << "the same id is not fetched again";
}

TEST_F(StsTest, RefreshedAheadOfItsEnd) {
  publish("1");
  route();
  world_.run_for(86'401 * kSecond);
  fetcher_.silent = true;  // mail does not wait for it
  EXPECT_EQ(route().tls.sts, Sts::enforce);
  EXPECT_EQ(fetcher_.asked.size(), 2u);
}

TEST_F(StsTest, HostsThatItDoesNotNameAreNotTried) {
  zones_.add_mx("dest.example", 5, "other.example");
  zones_.add_address("other.example", "198.51.100.2");
  publish("1");
  const dns::Route& found = route();
  ASSERT_EQ(found.hosts.size(), 1u);
  EXPECT_EQ(found.hosts[0].name, "mx.example");
  EXPECT_NE(found.tls.key.find("mx.example"), std::string::npos) << "others of the site may use both";
  publish("2", "version: STSv1\nmode: enforce\nmx: elsewhere.example\nmax_age: 1000\n");
  EXPECT_EQ(route().verdict, dns::Verdict::temporary) << "waits, and never bounces";
  publish("3", "version: STSv1\nmode: testing\nmx: elsewhere.example\nmax_age: 1000\n");
  EXPECT_EQ(route().hosts.size(), 2u) << "testing keeps nobody from anything";
}

TEST_F(StsTest, TlsaRecordsGoAhead) {
  publish("1", "version: STSv1\nmode: enforce\nmx: elsewhere.example\nmax_age: 1000\n");
  zones_.sign("dest.example");
  zones_.sign("mx.example");
  zones_.add_tlsa("_25._tcp.mx.example", {3, 1, 1, std::string(32, 'x')});
  const dns::Route& found = route();
  ASSERT_EQ(found.verdict, dns::Verdict::usable);
  EXPECT_EQ(tls_policy(config_, found, found.hosts[0]).name, "dane");
  // Unusable ones do not.
  zones_.remove("_25._tcp.mx.example");
  zones_.add_tlsa("_25._tcp.mx.example", {1, 1, 1, std::string(32, 'x')});
  EXPECT_EQ(route().verdict, dns::Verdict::temporary);
  publish("2");
  world_.run_for(301 * kSecond);
  const dns::Route& again = route();
  const TlsPolicy policy = tls_policy(config_, again, again.hosts[0]);
  EXPECT_EQ(policy.level, config::TlsLevel::verified);
  EXPECT_EQ(policy.name, "mta-sts");
}

TEST_F(StsTest, PolicyVouchesForHostsOfMailThatRequiresTls) {
  destination_.tls = mail::TlsWish::required;
  EXPECT_EQ(route().verdict, dns::Verdict::unprotected) << "neither signed nor named";
  zones_.fail("_mta-sts.dest.example", dns::Outcome::failure);
  EXPECT_EQ(route().verdict, dns::Verdict::temporary) << "it may be named, as far as we know";
  zones_.heal("_mta-sts.dest.example");
  publish("1", "");
  EXPECT_EQ(route().verdict, dns::Verdict::temporary) << "so it may here";
  world_.run_for(301 * kSecond);
  for (const char* mode : {"testing", "enforce"}) {
    publish(mode, std::string("version: STSv1\nmode: ") + mode + "\nmx: mx.example\nmax_age: 604800\n");
    const dns::Route& found = route();
    ASSERT_EQ(found.verdict, dns::Verdict::usable) << mode << ": " << found.reason;
    const TlsPolicy policy = tls_policy(config_, found, found.hosts[0]);
    EXPECT_EQ(policy.level, config::TlsLevel::verified) << mode;
    EXPECT_EQ(policy.name, "requiretls");
    EXPECT_TRUE(policy.requiretls);
  }
  publish("3", "version: STSv1\nmode: testing\nmx: elsewhere.example\nmax_age: 604800\n");
  EXPECT_EQ(route().verdict, dns::Verdict::unprotected);
  publish("4", "version: STSv1\nmode: none\nmax_age: 604800\n");
  EXPECT_EQ(route().verdict, dns::Verdict::unprotected);
}

TEST_F(StsTest, MailThatRequiresTlsWaitsWhileTooManyPoliciesAreFetched) {
  publish("1");
  fetcher_.silent = true;
  for (size_t i = 0; i < StsPolicies::kMostFetches; ++i) {
    const std::string domain = fmt::format("d{}.example", i);
    zones_.add_text("_mta-sts." + domain, "v=STSv1; id=1;");
    zones_.add_address("mta-sts." + domain, "198.51.100.80");
    agent_->sts_policies().find(domain, [](const StsPolicies::PolicyRef&, int64_t, bool) {});
  }
  ASSERT_TRUE(run([&] { return fetcher_.asked.size() == StsPolicies::kMostFetches; }));
  destination_.tls = mail::TlsWish::required;
  EXPECT_EQ(route().verdict, dns::Verdict::temporary) << "a record is there, and nobody has read the policy";
  EXPECT_EQ(agent_->sts_policies().stats().too_many, 1u);
  fetcher_.silent = false;
  fetcher_.answer();
  world_.run_for(2 * kSecond);
  EXPECT_EQ(route().verdict, dns::Verdict::usable);
}

TEST_F(StsTest, MailThatNeedsNoTlsAsksForNoPolicy) {
  publish("1", "version: STSv1\nmode: enforce\nmx: elsewhere.example\nmax_age: 1000\n");
  destination_.tls = mail::TlsWish::not_required;
  EXPECT_EQ(route().verdict, dns::Verdict::usable);
  EXPECT_TRUE(fetcher_.asked.empty());
}

TEST_F(StsTest, AskedForExplicitlyItIsAPolicyOrNothing) {
  config_.tls = config::TlsLevel::mta_sts;
  renew();
  EXPECT_EQ(route().verdict, dns::Verdict::temporary);
  publish("1", "version: STSv1\nmode: testing\nmx: mx.example\nmax_age: 604800\n");
  EXPECT_EQ(route().verdict, dns::Verdict::temporary);
  publish("2");
  EXPECT_EQ(route().tls.sts, Sts::enforce);
}

TEST_F(StsTest, PolicyHostAtAPrivateAddressIsNotAsked) {
  zones_.remove("mta-sts.dest.example");
  zones_.add_address("mta-sts.dest.example", "10.0.0.1");
  publish("1");
  EXPECT_EQ(route().tls.sts, Sts::none);
  EXPECT_TRUE(fetcher_.asked.empty());
  EXPECT_EQ(agent_->sts_policies().stats().no_host, 1u);
}

TEST_F(StsTest, TextThatIsNoPolicyIsCountedAsSuch) {
  publish("1", "garbage");
  EXPECT_EQ(route().tls.sts, Sts::none);
  EXPECT_EQ(agent_->sts_policies().stats().malformed, 1u);
  EXPECT_EQ(agent_->sts_policies().stats().no_https, 0u);
  publish("2");
  world_.run_for(301 * kSecond);
  route();
  EXPECT_EQ(agent_->sts_policies().stats().fetched, 1u);
}

TEST_F(StsTest, WhatIsKeptComesBackAndTheNewerCounts) {
  StsPolicy policy = *read_sts_policy(kPolicy);
  policy.id = "9";
  policy.fetched_ms = io_->wall_ms() - 1000;
  agent_->sts_policies().note("dest.example", policy);
  EXPECT_EQ(route().tls.sts, Sts::enforce);
  policy.mode = Mode::testing;
  policy.fetched_ms -= 1000;
  agent_->sts_policies().note("dest.example", policy);
  EXPECT_EQ(route().tls.sts, Sts::enforce);
}

TEST_F(StsTest, OneFetchServesAllWhoWait) {
  publish("1");
  fetcher_.silent = true;
  int answered = 0;
  for (int i = 0; i < 5; ++i) {
    agent_->sts_policies().find("dest.example", [&](const StsPolicies::PolicyRef& policy, int64_t, bool) { answered += policy != nullptr; });
  }
  world_.run_for(2 * kSecond);
  EXPECT_EQ(answered, 0);
  ASSERT_EQ(fetcher_.asked.size(), 1u);
  fetcher_.silent = false;
  fetcher_.answer();
  EXPECT_TRUE(run([&] { return answered == 5; }));
}

TEST_F(StsTest, FetchThatComesBackTooLateHurtsNobody) {
  publish("1");
  fetcher_.silent = true;
  agent_->sts_policies().find("dest.example", [](const StsPolicies::PolicyRef&, int64_t, bool) { ADD_FAILURE(); });
  world_.run_for(2 * kSecond);
  ASSERT_EQ(fetcher_.jobs.size(), 1u);
  renew();  // the old agent is gone
  fetcher_.answer();
  world_.run_for(2 * kSecond);
}

}  // namespace
}  // namespace millrace::delivery
