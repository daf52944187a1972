// The limits of the shaping file, as schedulers keep them: one, and several that share them.
#include <gtest/gtest.h>

#include <map>

#include "config/shaping.h"
#include "config/values.h"
#include "fakes.h"
#include "reactor/mailbox.h"

namespace millrace::queue {
namespace {

constexpr int64_t kMs = 1'000'000, kSecond = 1000 * kMs;

struct Sent {
  int64_t at;
  std::string domain, tenant, job;
};

size_t most_in_a_window(const std::vector<Sent>& sent, int64_t period) {
  size_t most = 0, first = 0;
  for (size_t last = 0; last < sent.size(); ++last) {
    while (sent[last].at - sent[first].at >= period) ++first;
    most = std::max(most, last - first + 1);
  }
  return most;
}

class LimitsTest : public testing::Test {
 protected:
  struct Shard {
    std::unique_ptr<reactor::Io> io;
    std::unique_ptr<reactor::Mailbox> mailbox;
    std::unique_ptr<FakeSpool> spool;
    std::unique_ptr<FakeAgent> agent;
    std::unique_ptr<FakeReporter> reporter;
    std::unique_ptr<Scheduler> scheduler;
  };

  LimitsTest() : host_(world_.add_host({"192.0.2.1"})) {
    config_.hostname = "relay.example";
    config_.connect_rate = {};
    config_.memory = 1u << 30;
    config_.initial_connections = 10;
  }
  ~LimitsTest() override {
    for (auto& shard : shards_) shard->scheduler.reset();
    for (auto& shard : shards_) shard->io->on_wake = nullptr;
  }

  std::shared_ptr<const config::Shaping> rules_of(std::string_view text) const {
    auto rules = config::Shaping::parse(text, "shaping.toml", {}, config_.destination_rate);
    EXPECT_TRUE(rules.ok()) << rules.error().text;
    return *rules;
  }
  void build(unsigned count, std::string_view rules) {
    config_.shaping_rules = rules_of(rules);
    auto config = std::make_shared<config::Config>(config_);
    std::vector<Scheduler::Peer> peers;
    for (unsigned number = 0; number < count; ++number) {
      auto& shard = *shards_.emplace_back(std::make_unique<Shard>());
      shard.io = world_.make_io(host_);
      shard.mailbox = std::make_unique<reactor::Mailbox>(*shard.io);
      shard.io->on_wake = [&shard] { shard.mailbox->drain(); };
      shard.spool = std::make_unique<FakeSpool>(*shard.io);
      shard.agent = std::make_unique<FakeAgent>(*shard.io);
      shard.reporter = std::make_unique<FakeReporter>(*shard.io);
      shard.scheduler = std::make_unique<Scheduler>(
          Scheduler::Context{*shard.io, config, *shard.agent, sink_, number, count});
      shard.agent->start(*shard.scheduler);
      shard.agent->serve = [this, &shard](Attempt& attempt) {
        const mail::Envelope& envelope = attempt.message->envelope;
        sent_.push_back({shard.io->now(), envelope.recipients[attempt.recipients[0]].domain, envelope.tenant, envelope.job});
        for (auto& result : attempt.results) {
          result.action = action_;
          result.code = action_ == Action::delivered ? 250 : 451;
          if (judge_) judge_(sent_.back(), result);
        }
      };
      peers.push_back({shard.scheduler.get(), shard.mailbox.get()});
    }
    for (auto& shard : shards_) shard->scheduler->set_peers(peers);
    for (auto& shard : shards_) shard->scheduler->start(*shard->spool, *shard->reporter);
  }
  void enqueue(unsigned number, const std::string& domain, const std::string& tenant = "", const std::string& job = "") {
    Shard& shard = *shards_[number];
    shard.scheduler->enqueue(
        store_message(*shard.spool, ids_.make(shard.io->wall_ms()), *shard.io, config_, domain, tenant, job));
  }
  void route_all_to(std::string host, bool host_per_domain = false) {
    for (auto& shard : shards_) {
      shard->agent->route = [host, host_per_domain](const std::string& domain) {
        dns::Route found;
        found.verdict = dns::Verdict::usable;
        std::string name = host_per_domain ? domain + host : host;
        found.site = name;
        found.hosts.push_back({name, 10, {}});
        found.valid_until_ns = INT64_MAX;
        return found;
      };
    }
  }
  void run(int64_t ns) {
    world_.run_for(ns);
    check();
  }
  void check() {
    for (auto& shard : shards_) shard->scheduler->check();
    shards_[0]->scheduler->arbiter()->check();
  }
  size_t lanes() const {
    size_t sum = 0;
    for (auto& shard : shards_) sum += shard->agent->lanes.size();
    return sum;
  }
  uint64_t queued() const {
    uint64_t sum = 0;
    for (auto& shard : shards_) sum += shard->scheduler->stats().items;
    return sum;
  }
  size_t sent_for(std::string_view tenant) const {
    size_t n = 0;
    for (const Sent& one : sent_) n += one.tenant == tenant;
    return n;
  }
  void adopt(std::string_view rules) {
    config_.shaping_rules = rules_of(rules);
    auto config = std::make_shared<config::Config>(config_);
    for (auto& shard : shards_) shard->scheduler->adopt(config);
  }

  reactor::SimWorld world_{7};
  reactor::HostId host_;
  config::Config config_;
  mail::SpoolIdMaker ids_{42, 0};
  FakeSink sink_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::vector<Sent> sent_;
  Action action_ = Action::delivered;
  std::function<void(const Sent&, RecipientResult&)> judge_;
};

TEST_F(LimitsTest, AProvidersConnectionsAreSharedByAllItsDomainsAndShards) {
  build(4, "[provider.big]\nmx = [\"*.big.example\"]\nconnections = 3\n");
  route_all_to(".big.example", true);
  for (int i = 0; i < 240; ++i) enqueue(static_cast<unsigned>(i) % 4, "d" + std::to_string(i % 30) + ".example");
  for (int step = 0; step < 20'000 && queued() > 0; ++step) {
    run(5 * kMs);
    ASSERT_LE(lanes(), 3u);
  }
  EXPECT_EQ(queued(), 0u) << "each had its turn";
  EXPECT_EQ(sent_.size(), 240u);
}

TEST_F(LimitsTest, ATenantsRateHoldsOverAllShardsAndIsUsed) {
  build(3, "[tenant.slow]\nattempt-rate = \"10/s\"\n");
  route_all_to("mx.example");
  for (int i = 0; i < 300; ++i) enqueue(static_cast<unsigned>(i) % 3, "d" + std::to_string(i % 7) + ".example", "slow");
  for (int i = 0; i < 30; ++i) enqueue(static_cast<unsigned>(i) % 3, "d" + std::to_string(i % 7) + ".example", "other");
  run(100 * kMs);
  EXPECT_EQ(sent_for("other"), 30u) << "in the same destinations, behind another tenant's limit";
  std::erase_if(sent_, [](const Sent& one) { return one.tenant == "other"; });
  for (int second = 0; second < 20; ++second) run(kSecond);
  EXPECT_LE(most_in_a_window(sent_, kSecond), 10u);
  EXPECT_GE(sent_.size(), 190u);
}

// The one connection is another shard's: what is lent to it and waits there too long asks for its permit again.
TEST_F(LimitsTest, WhatIsLentToAnotherShardKeepsToARate) {
  config_.total_connections = 1;
  build(4, "[provider.big]\nmx = [\"*.big.example\"]\nattempt-rate = \"4/s\"\n");
  route_all_to("mx.big.example");
  shards_[0]->agent->hold_attempts = true;
  enqueue(0, "d.example");
  run(10 * kMs);
  for (int i = 0; i < 60; ++i) enqueue(static_cast<unsigned>(1 + i % 3), "d.example");
  for (int step = 0; step < 50; ++step) run(100 * kMs);
  shards_[0]->agent->finish_all();
  run(10 * kMs);
  ASSERT_FALSE(sent_.empty());
  sent_.erase(sent_.begin());  // begun five seconds ago
  for (int step = 0; step < 200; ++step) run(100 * kMs);
  EXPECT_LE(most_in_a_window(sent_, kSecond), 4u);
  EXPECT_GE(sent_.size(), 55u);
}

// Two shards have all connections, each takes longer than a permit is good for, and carries one message.
TEST_F(LimitsTest, WhatIsLentIsPermittedOnceItsConnectionIsThere) {
  config_.destination_connections = 2;
  build(8, "[provider.big]\nmx = [\"*.big.example\"]\n[provider.big.total]\nattempt-rate = \"4/s\"\n");
  route_all_to(".mx.big.example", true);
  for (auto& shard : shards_) {
    shard->agent->connect_ns = 300 * kMs;
    shard->agent->messages_most = 1;
    shard->agent->idle_ns = 500 * kMs;
  }
  for (int i = 0; i < 120; ++i) enqueue(static_cast<unsigned>(i % 8), "d" + std::to_string(i % 3) + ".example", "t" + std::to_string(i % 2));
  for (int step = 0; step < 600; ++step) run(100 * kMs);
  EXPECT_EQ(sent_.size(), 120u);
  EXPECT_LE(most_in_a_window(sent_, kSecond), 4u);
}

// One connection for two domains of the same hosts that ask for different TLS, under a rate whose permits are another
// shard's and good for less time than a connection takes: the lane is there for the permit, and for the message read back.
TEST_F(LimitsTest, AConnectionIsNotLeftToKinWhileItsPermitOrMessageIsOnItsWay) {
  config_.destination_connections = 2;
  build(2, "[provider.big]\nmx = [\"*.big.example\"]\n[provider.big.total]\nattempt-rate = \"1000/s\"\n");
  for (auto& shard : shards_) {
    shard->agent->connect_ns = 5 * kSecond;
    shard->agent->messages_most = 5;
    shard->agent->route = [](const std::string& domain) {
      dns::Route found;
      found.verdict = dns::Verdict::usable;
      found.site = "mx.big.example";
      found.hosts.push_back({found.site, 10, {}});
      if (domain == "strict.example") found.tls.key = "required";
      found.valid_until_ns = INT64_MAX;
      return found;
    };
  }
  for (int i = 0; i < 40; ++i) enqueue(1, i % 2 ? "strict.example" : "lax.example");
  for (int step = 0; step < 600; ++step) {
    run(100 * kMs);
    ASSERT_LE(lanes(), 1u);
  }
  EXPECT_EQ(sent_.size(), 40u) << "five a connection, eight connections";
  EXPECT_LE(shards_[1]->agent->opened, 10u);
}

// A permit is good for 20 ms.
TEST_F(LimitsTest, AMessageThatTakesLongerToReadThanItsPermitIsGoodForGoes) {
  build(1, "[provider.big]\nmx = [\"*.big.example\"]\n[provider.big.total]\nattempt-rate = \"4/s\"\n");
  route_all_to("mx.big.example");
  shards_[0]->spool->read_ns = 40 * kMs;
  action_ = Action::defer;
  for (int i = 0; i < 6; ++i) enqueue(0, "d.example");
  for (int step = 0; step < 50; ++step) run(100 * kMs);
  ASSERT_EQ(sent_.size(), 6u);
  action_ = Action::delivered;
  for (int step = 0; step < 600; ++step) run(kSecond);
  EXPECT_EQ(sent_.size(), 12u);
  EXPECT_LE(shards_[0]->spool->reads, 12u);
}

TEST_F(LimitsTest, APauseMeetsWhatIsLent) {
  config_.total_connections = 1;
  build(2, "");
  route_all_to(".mx.example", true);
  shards_[0]->agent->hold_attempts = true;
  shards_[0]->agent->idle_ns = kSecond;
  enqueue(0, "other.example");
  run(kSecond);
  for (int i = 0; i < 5; ++i) enqueue(1, "d.example");
  run(kSecond);
  Filter filter;
  filter.domain = "d.example";
  for (auto& shard : shards_) shard->scheduler->add_pause(1, filter);
  shards_[0]->agent->finish_all();
  run(30 * kSecond);
  EXPECT_EQ(sent_.size(), 1u);
  for (auto& shard : shards_) shard->scheduler->remove_pause(1);
  run(30 * kSecond);
  EXPECT_EQ(sent_.size(), 6u);
}

TEST_F(LimitsTest, AReloadBeginsNoRateOfConnectionsAnew) {
  config_.connect_rate = {2, 10'000};
  build(1, "");
  route_all_to("mx.example");
  shards_[0]->agent->hold_attempts = true;
  for (int i = 0; i < 20; ++i) enqueue(0, "d.example");
  for (int second = 0; second < 9; ++second) {
    run(kSecond);
    adopt("");
  }
  EXPECT_EQ(shards_[0]->agent->opened, 2u);
}

TEST_F(LimitsTest, MailOfAShardThatAReloadLeavesWithoutAShareIsLent) {
  config_.total_connections = 4;
  build(2, "");
  route_all_to(".mx.example", true);
  shards_[1]->agent->hold_attempts = true;
  for (const char* domain : {"a.example", "b.example", "c.example"}) enqueue(1, domain);
  run(kSecond);
  EXPECT_EQ(lanes(), 2u) << "the third waits for a slot";
  config_.total_connections = 1;
  adopt("");
  shards_[1]->agent->finish_all();
  run(5 * kSecond);
  EXPECT_EQ(queued(), 0u);
}

TEST_F(LimitsTest, AShardThatAReloadGivesAShareOpensItsConnections) {
  config_.destination_connections = 1;
  config_.initial_connections = 1;
  build(2, "");
  route_all_to("mx.example");
  for (auto& shard : shards_) shard->agent->hold_attempts = true;
  for (int i = 0; i < 200; ++i) enqueue(1, "d.example");
  run(kSecond / 10);
  ASSERT_EQ(shards_[1]->agent->lanes.size(), 0u) << "the only connection is the other shard's";
  config_.destination_connections = 20;
  adopt("");
  for (int i = 0; i < 30; ++i) {
    run(kSecond / 10);
    for (auto& shard : shards_) shard->agent->finish_all();
  }
  EXPECT_GT(shards_[1]->agent->opened, 1u) << "its ramp rises with what is accepted";
  EXPECT_LE(lanes(), 20u);
}

TEST_F(LimitsTest, AttemptsInFlightAreGivenBackWhateverBecomesOfThem) {
  build(2, "[job.\"*\"]\nin-flight = 2\n");
  route_all_to("mx.example");
  for (auto& shard : shards_) shard->agent->hold_attempts = true;
  for (int i = 0; i < 40; ++i) enqueue(static_cast<unsigned>(i) % 2, "d.example", "", "j1");
  run(kSecond);
  size_t out = 0;
  for (auto& shard : shards_) {
    for (auto& lane : shard->agent->lanes) out += lane->out.size();
  }
  EXPECT_EQ(out, 2u);
  action_ = Action::defer;
  for (auto& shard : shards_) shard->agent->finish_all();
  run(5 * kSecond);
  EXPECT_EQ(sent_.size(), 40u) << "each was tried once, two at a time";
}

// The connection is lost before the reply to MAIL, again and again: no attempt of the message, but one at the receiver.
TEST_F(LimitsTest, WhatIsGivenBackUncountedCountsInItsRates) {
  build(1, "[provider.big]\nmx = [\"*.big.example\"]\n[provider.big.total]\nattempt-rate = \"4/10s\"\nin-flight = 2\n");
  route_all_to("mx.big.example");
  shards_[0]->agent->messages_most = 1;
  judge_ = [this](const Sent&, RecipientResult& result) {
    if (sent_.size() < 100) result.action = Action::give_back;
  };
  for (int i = 0; i < 5; ++i) enqueue(0, "d.example");
  run(60 * kSecond);
  EXPECT_GE(sent_.size(), 15u);
  EXPECT_LE(most_in_a_window(sent_, 10 * kSecond), 4u);
}

TEST_F(LimitsTest, WhatIsAcceptedCountsAndWhatIsDeferredDoesNot) {
  build(2, "[domain.\"d.example\"]\nmessage-rate = \"5/h\"\n");
  route_all_to("mx.example");
  action_ = Action::defer;
  for (int i = 0; i < 12; ++i) enqueue(static_cast<unsigned>(i) % 2, "d.example");
  run(10 * kSecond);
  EXPECT_EQ(sent_.size(), 12u) << "none was accepted";
  action_ = Action::delivered;
  run(1800 * kSecond);
  EXPECT_EQ(sent_.size() - 12, 5u);
  run(7200 * kSecond);
  EXPECT_LE(sent_.size(), 24u);
}

TEST_F(LimitsTest, LanesLearnHowManyMessagesAConnectionMayCarry) {
  build(1, "[provider.big]\nmx = [\"mx.big.example\"]\nmessages-per-connection = 7\n[default]\nmessages-per-connection = \"none\"\n");
  route_all_to("mx.big.example");
  enqueue(0, "a.example");
  run(kMs);
  ASSERT_EQ(lanes(), 1u);
  EXPECT_EQ(shards_[0]->agent->lanes[0]->messages_most, 7u);
  route_all_to("mx.small.example");
  enqueue(0, "b.example");
  run(kMs);
  ASSERT_EQ(lanes(), 2u);
  EXPECT_EQ(shards_[0]->agent->lanes[1]->messages_most, 0u) << "none: any number";
}

TEST_F(LimitsTest, AReloadLiftsAndSetsLimitsForMailThatWaits) {
  build(2, "[tenant.acme]\nattempt-rate = \"1/m\"\n");
  route_all_to("mx.example");
  for (int i = 0; i < 20; ++i) enqueue(static_cast<unsigned>(i) % 2, "d.example", "acme");
  run(10 * kSecond);
  EXPECT_EQ(sent_.size(), 1u);
  adopt("[tenant.acme]\nattempt-rate = \"60/m\"\n");
  run(5 * kSecond);
  EXPECT_GE(sent_.size(), 4u);
  EXPECT_LE(sent_.size(), 8u);
  adopt("");
  run(kSecond);
  EXPECT_EQ(sent_.size(), 20u);
}

TEST_F(LimitsTest, BuiltInProvidersHoldWithoutAFile) {
  build(2, "");
  route_all_to("gmail-smtp-in.l.google.com");
  for (auto& shard : shards_) shard->agent->hold_attempts = true;
  for (int i = 0; i < 60; ++i) enqueue(static_cast<unsigned>(i) % 2, "d" + std::to_string(i) + ".example");
  run(kSecond);
  EXPECT_EQ(lanes(), 5u);
  EXPECT_EQ(shards_[0]->agent->lanes[0]->messages_most, 50u);
}

TEST_F(LimitsTest, ExplainNamesTheLimitThatBindsAndWhenTheNextAttemptIsDue) {
  build(2, "[tenant.acme]\nattempt-rate = \"1/m\"\n");
  route_all_to("gmail-smtp-in.l.google.com");
  for (int i = 0; i < 3; ++i) enqueue(1, "d.example", "acme", "j1");
  run(10 * kSecond);
  auto rows = shards_[1]->scheduler->explain("d.example", {});
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].provider, "gmail");
  EXPECT_EQ(rows[0].ready, 2u);
  EXPECT_EQ(rows[0].why, "waits for a limit");
  shards_[0]->scheduler->explain_limits(rows[0]);
  EXPECT_EQ(rows[0].messages_per_connection_where, "built in");
  ASSERT_EQ(rows[0].attempt_limits.size(), 1u);
  EXPECT_EQ(rows[0].attempt_limits[0].where, "shaping.toml:2");
  EXPECT_EQ(rows[0].attempt_limits[0].waiting, 1u);
  int64_t wall_ms = shards_[1]->io->wall_ms();
  EXPECT_GT(rows[0].next_attempt_ms, wall_ms + 45'000);
  EXPECT_LT(rows[0].next_attempt_ms, wall_ms + 55'000);
  ASSERT_EQ(rows[0].connection_limits.size(), 1u);
  EXPECT_EQ(rows[0].connection_limits[0].key, "connections");
  EXPECT_TRUE(shards_[0]->scheduler->explain("d.example", {}).empty());
}

TEST_F(LimitsTest, AReplyAboutTheSourceHoldsTheProviderOnEveryShardAndNothingElse) {
  build(3, "[provider.big]\nmx = [\"*.big.example\"]\n");
  for (auto& shard : shards_) {
    shard->agent->route = [](const std::string& domain) {
      dns::Route found;
      found.verdict = dns::Verdict::usable;
      found.site = domain.starts_with("other") ? "mx." + domain : domain + ".big.example";
      found.hosts.push_back({found.site, 10, {}});
      found.valid_until_ns = INT64_MAX;
      return found;
    };
  }
  judge_ = [](const Sent& sent, RecipientResult& result) {
    if (sent.domain != "d0.example") return;
    result.action = Action::give_back;
    result.scope = events::Scope::source;
    result.code = 421;
    result.reply = "421 blocked";
    result.rest_ms = 600'000;
  };
  enqueue(0, "d0.example");
  run(kSecond);
  for (unsigned i = 1; i < 9; ++i) enqueue(i % 3, "d" + std::to_string(i) + ".example");
  enqueue(1, "other.example");
  size_t before = sent_.size();
  run(300 * kSecond);
  ASSERT_EQ(sent_.size(), before + 1);
  EXPECT_EQ(sent_.back().domain, "other.example");
  judge_ = nullptr;
  run(310 * kSecond);
  EXPECT_EQ(queued(), 0u);
}

// A host that says nothing is its site's trouble: the provider's others go on, and have the slots meanwhile.
TEST_F(LimitsTest, SilenceHoldsItsSiteAndNotTheProvider) {
  config_.hold_ms = {60'000};
  build(2, "[provider.big]\nmx = [\"*.big.example\"]\n[provider.big.total]\nconnections = 1\n");
  route_all_to(".big.example", true);
  for (auto& shard : shards_) {
    shard->agent->fails = [](const Site& site) -> std::optional<LaneEnd> {
      if (!site.key.starts_with("silent")) return std::nullopt;
      LaneEnd end;
      end.cause = LaneEnd::Cause::failed;
      end.stage = events::Stage::greeting;
      end.reply = "time-out while waiting for the greeting";
      return end;
    };
  }
  enqueue(0, "silent.example");
  run(kSecond / 2);
  for (unsigned i = 0; i < 8; ++i) enqueue(i % 2, "d" + std::to_string(i % 3) + ".example");
  run(10 * kSecond);
  EXPECT_EQ(sent_.size(), 8u);
  EXPECT_EQ(queued(), 1u);
}

TEST_F(LimitsTest, ALineBacksOffTheProviderUntilItIsQuietAgain) {
  build(2, "[provider.big]\nmx = [\"*.big.example\"]\n[provider.big.backoff]\nattempt-rate = \"6/m\"\nnormal-after = \"10m\"\n");
  route_all_to(".big.example", true);
  judge_ = [](const Sent&, RecipientResult& result) {
    result.action = Action::defer;
    result.asks.back_off = true;
    result.asks.where = "shaping.toml:9";
    result.reply = "421 too fast";
  };
  enqueue(1, "d1.example");
  run(kSecond);
  judge_ = nullptr;
  sent_.clear();
  for (int i = 0; i < 200; ++i) enqueue(static_cast<unsigned>(i) % 2, "d" + std::to_string(i % 5) + ".example");
  for (int step = 0; step < 590; ++step) {
    run(kSecond);
    ASSERT_LE(lanes(), 1u);
  }
  EXPECT_LE(most_in_a_window(sent_, 60 * kSecond), 6u);
  EXPECT_GE(sent_.size(), 50u);
  auto rows = shards_[0]->scheduler->explain("d1.example", {});
  ASSERT_FALSE(rows.empty());
  shards_[0]->scheduler->explain_limits(rows[0]);
  EXPECT_EQ(rows[0].mode, "backed off: 421 too fast (shaping.toml:9)");
  run(30 * kSecond);
  EXPECT_EQ(queued(), 0u) << "normal again, and nothing limits it";
}

TEST_F(LimitsTest, ALineBouncesAQueueAndOnlyThat) {
  build(2, "");
  route_all_to("mx.example");
  action_ = Action::defer;
  for (int i = 0; i < 10; ++i) enqueue(static_cast<unsigned>(i) % 2, "gone.example");
  enqueue(1, "here.example");
  run(10 * kSecond);
  judge_ = [](const Sent& sent, RecipientResult& result) {
    if (sent.domain != "gone.example") return;
    result.action = Action::bounce;
    result.code = 550;
    result.asks.bounce_queue = true;
    result.reply = "550 closed for good";
  };
  enqueue(0, "gone.example");
  run(10 * kSecond);
  EXPECT_EQ(queued(), 1u);
  EXPECT_EQ(sink_.count(events::Type::bounced), 11u);
}

// Two tenants share a source: what receivers say of one's domain is not the other's.
TEST_F(LimitsTest, ATenantsBadDomainLeavesTheOthersRateAlone) {
  build(2, "[provider.big]\nmx = [\"mx.big.example\"]\nattempt-rate = \"100/s\"\nconnections = 4\n");
  route_all_to("mx.big.example");
  auto good_in_20_s = [&](bool bad_too) {
    sent_.clear();
    size_t begun = sent_for("good");
    for (int i = 0; i < 3000; ++i) {
      enqueue(static_cast<unsigned>(i) % 2, "big.example", "good");
      if (bad_too && i % 10 == 0) enqueue(static_cast<unsigned>(i / 10) % 2, "big.example", "bad");
    }
    run(20 * kSecond);
    size_t sent = sent_for("good") - begun;
    run(600 * kSecond);
    return sent;
  };
  size_t alone = good_in_20_s(false);
  judge_ = [](const Sent& sent, RecipientResult& result) {
    if (sent.tenant != "bad") return;
    result.action = Action::defer;
    result.scope = events::Scope::sender_domain;
    result.code = 421;
    result.enhanced = "4.7.32";
    result.reply = "421-4.7.32 From: header is not aligned";
  };
  size_t beside = good_in_20_s(true);
  EXPECT_GE(alone, 1900u);
  EXPECT_GE(beside, 1600u) << "but for the attempts that the other has made itself";
  for (auto& shard : shards_) {
    for (auto& row : shard->scheduler->explain("big.example", {})) EXPECT_EQ(row.held_until_ms, 0);
  }
}

// --connect-rate: in whole connections a shard; who has no part lends its mail to who has.
TEST_F(LimitsTest, TheConnectRateIsExactOverAllShards) {
  for (auto [shards, rate] : {std::pair{3u, 5.0}, std::pair{8u, 3.0}}) {
    for (auto& shard : shards_) shard->scheduler.reset();
    shards_.clear();
    sent_.clear();
    config_.connect_rate = {rate, 1000};
    build(shards, "");
    route_all_to("mx.one.example");
    // One message a connection.
    judge_ = [&](const Sent&, RecipientResult&) {
      for (auto& shard : shards_) {
        for (auto& lane : shard->agent->lanes) lane->retire();
      }
    };
    for (unsigned i = 0; i < 60; ++i) enqueue(i % shards, "one.example");
    std::vector<Sent> opened;
    for (int step = 0; step < 40'000 && queued() > 0; ++step) {
      run(kMs);
      uint64_t connects = 0;
      for (auto& shard : shards_) connects += shard->scheduler->stats().connects;
      while (opened.size() < connects) opened.push_back({shards_[0]->io->now(), {}, {}, {}});
    }
    EXPECT_EQ(queued(), 0u) << shards;
    EXPECT_EQ(sent_.size(), 60u);
    EXPECT_LE(most_in_a_window(opened, kSecond - 2 * kMs), static_cast<size_t>(rate)) << shards;
  }
}

// --destination-rate is the rate of every domain of which the file says nothing, whoever sends to it.
TEST_F(LimitsTest, TheDestinationRateIsExactOverAllShards) {
  config_.destination_rate = {2, 1000};
  build(8, "[domain.\"two.example\"]\nattempt-rate = \"20/s\"\n");
  route_all_to(".site.example", true);
  for (unsigned i = 0; i < 40; ++i) {
    enqueue(i % 8, "one.example");
    enqueue(i % 8, "two.example");
  }
  run(5 * kSecond);
  std::vector<Sent> one;
  for (const Sent& sent : sent_) {
    if (sent.domain == "one.example") one.push_back(sent);
  }
  EXPECT_LE(most_in_a_window(one, kSecond), 2u);
  EXPECT_GE(one.size(), 9u);
  EXPECT_EQ(sent_.size() - one.size(), 40u);
}

// Lanes that a rate keeps idle are kept, and no further one is asked for.
TEST_F(LimitsTest, ARateThatBindsBelowTheConnectionsOpensNoneInVain) {
  build(2, "[provider.big]\nmx = [\"mx.big.example\"]\nattempt-rate = \"60/s\"\nconnections = 4\n");
  route_all_to("mx.big.example");
  for (int i = 0; i < 300; ++i) enqueue(static_cast<unsigned>(i) % 2, "big.example");
  run(20 * kSecond);
  EXPECT_EQ(queued(), 0u);
  uint64_t connects = 0;
  for (auto& shard : shards_) connects += shard->scheduler->stats().connects;
  EXPECT_LE(connects, 30u);
}

// Whatever the seed does to times and shards, no window and no count is over.
TEST_F(LimitsTest, RandomLoadsNeverExceedALimit) {
  build(8,
        "[provider.big]\nmx = [\"*.big.example\"]\nconnections = 4\nattempt-rate = \"40/s\"\nconnect-rate = \"6/s\"\n"
        "messages-per-connection = 5\n[tenant.t1]\nattempt-rate = [\"9/s\", \"50/10s\"]\nin-flight = 2\n"
        "[domain.\"d1.example\"]\nattempt-rate = \"3/s\"\n");
  route_all_to(".big.example", true);
  Prng prng(99);
  for (int i = 0; i < 600; ++i) {
    enqueue(static_cast<unsigned>(prng.below(8)), "d" + std::to_string(prng.below(5)) + ".example",
            "t" + std::to_string(prng.below(3)));
    if (prng.below(4) == 0) run(static_cast<int64_t>(prng.below(40)) * kMs);
    ASSERT_LE(lanes(), 4u);
  }
  for (int step = 0; step < 10'000 && queued() > 0; ++step) {
    run(10 * kMs);
    ASSERT_LE(lanes(), 4u);
  }
  EXPECT_EQ(queued(), 0u);
  EXPECT_LE(most_in_a_window(sent_, kSecond), 40u);
  auto only = [&](auto keep) {
    std::vector<Sent> part;
    for (const Sent& one : sent_) {
      if (keep(one)) part.push_back(one);
    }
    return part;
  };
  auto t1 = only([](const Sent& one) { return one.tenant == "t1"; });
  EXPECT_LE(most_in_a_window(t1, kSecond), 9u);
  EXPECT_LE(most_in_a_window(t1, 10 * kSecond), 50u);
  EXPECT_LE(most_in_a_window(only([](const Sent& one) { return one.domain == "d1.example"; }), kSecond), 3u);
}

}  // namespace
}  // namespace millrace::queue
