#include "shaping/arbiter.h"

#include <gtest/gtest.h>

#include <deque>
#include <map>

#include "base/prng.h"
#include "config/values.h"
#include "reactor/sim.h"

namespace millrace::shaping {
namespace {

constexpr int64_t kMs = 1'000'000, kSecond = 1000 * kMs;

std::shared_ptr<const config::Shaping> rules_of(std::string_view text) {
  std::vector<config::Source> sources = {*config::parse_source("192.0.2.1=mta1.example.com"),
                                         *config::parse_source("192.0.2.2=mta2.example.com")};
  auto rules = config::Shaping::parse(text, "shaping.toml", sources);
  EXPECT_TRUE(rules.ok()) << rules.error().text;
  return *rules;
}

// One who asks: notes when it was granted.
struct Asker : Request {
  Asker() {
    owner = this;
    Request::granted = [](void* self, Request&) { ++static_cast<Asker*>(self)->grants; };
  }
  int grants = 0;
  Release back(bool accepted = true, bool used = true) const {
    return {set, to_release, granted_at, recipients, octets, used, accepted};
  }
};

class ArbiterTest : public testing::Test {
 protected:
  ArbiterTest() : host_(world_.add_host({"192.0.2.1"})), io_(world_.make_io(host_)) {}
  void build(std::string_view rules) { arbiter_ = std::make_unique<Arbiter>(*io_, rules_of(rules)); }
  void give_back(Asker& asker, bool accepted = true) {
    if (asker.to_release) arbiter_->release(asker.back(accepted));
  }
  Asker& ask(Purpose purpose, Subject subject, uint32_t recipients = 1, uint64_t octets = 1000) {
    Asker& asker = askers_.emplace_back();
    asker.purpose = purpose;
    asker.subject = subject;
    asker.recipients = recipients;
    asker.octets = octets;
    if (arbiter_->submit(asker)) ++asker.grants;
    return asker;
  }
  void run(int64_t ns) { world_.run_for(ns); }

  reactor::SimWorld world_{1};
  reactor::HostId host_;
  std::unique_ptr<reactor::Io> io_;
  std::deque<Asker> askers_;
  std::unique_ptr<Arbiter> arbiter_;
};

const Subject kGmail{.provider = "gmail", .site = "aspmx.l.google.com", .source = 0, .domain = "gmail.com", .pool = "bulk",
                     .tenant = "acme", .job = "j1"};

Subject with(Subject subject, auto change) {
  change(subject);
  return subject;
}

TEST_F(ArbiterTest, ConnectionsAreLimitedPerProviderAndSource) {
  build("[provider.gmail]\nconnections = 2\n");
  Subject other_domain = with(kGmail, [](Subject& s) { s.site = "alt1.aspmx.l.google.com"; });
  Subject other_source = with(kGmail, [](Subject& s) { s.source = 1; });
  EXPECT_EQ(ask(Purpose::connect, kGmail).grants, 1);
  Asker& second = ask(Purpose::connect, other_domain);
  EXPECT_EQ(second.grants, 1);
  Asker& third = ask(Purpose::connect, kGmail);
  EXPECT_EQ(third.grants, 0);
  EXPECT_EQ(ask(Purpose::connect, other_source).grants, 1);
  EXPECT_TRUE(arbiter_->wanted(*second.set));
  arbiter_->release(second.back());
  EXPECT_EQ(third.grants, 1);
  EXPECT_FALSE(arbiter_->wanted(*second.set));
  arbiter_->check();
}

TEST_F(ArbiterTest, AllScopesOrNone) {
  build("[tenant.acme]\nin-flight = 1\n[domain.\"gmail.com\"]\nin-flight = 2\n");
  Asker& first = ask(Purpose::attempt, kGmail);
  EXPECT_EQ(first.grants, 1);
  Asker& second = ask(Purpose::attempt, kGmail);
  EXPECT_EQ(second.grants, 0) << "the tenant has one in flight";
  // It holds no slot of the domain while it waits for the tenant's.
  EXPECT_EQ(ask(Purpose::attempt, with(kGmail, [](Subject& s) { s.tenant = "other"; })).grants, 1);
  EXPECT_EQ(ask(Purpose::attempt, with(kGmail, [](Subject& s) { s.tenant = "third"; })).grants, 0);
  arbiter_->release(first.back());
  EXPECT_EQ(second.grants + askers_.back().grants, 1) << "one slot of the domain, one taker";
  arbiter_->check();
}

TEST_F(ArbiterTest, FirstComeFirstServed) {
  build("[job.\"*\"]\nattempt-rate = \"1/s\"\n");
  ask(Purpose::attempt, kGmail);
  Asker& a = ask(Purpose::attempt, kGmail);
  Asker& b = ask(Purpose::attempt, kGmail);
  Asker& c = ask(Purpose::attempt, kGmail);
  run(1100 * kMs);
  EXPECT_EQ(std::make_tuple(a.grants, b.grants, c.grants), std::make_tuple(1, 0, 0));
  Asker& late = ask(Purpose::attempt, kGmail);
  run(1100 * kMs);
  EXPECT_EQ(std::make_tuple(b.grants, c.grants, late.grants), std::make_tuple(1, 0, 0));
  run(3 * kSecond);
  EXPECT_EQ(std::make_tuple(c.grants, late.grants), std::make_tuple(1, 1));
}

TEST_F(ArbiterTest, AnotherJobDoesNotWaitBehindAFullOne) {
  build("[job.\"*\"]\nin-flight = 1\n");
  ask(Purpose::attempt, kGmail);
  EXPECT_EQ(ask(Purpose::attempt, kGmail).grants, 0);
  EXPECT_EQ(ask(Purpose::attempt, with(kGmail, [](Subject& s) { s.job = "j2"; })).grants, 1);
  EXPECT_EQ(ask(Purpose::attempt, with(kGmail, [](Subject& s) { s.job = ""; })).grants, 1) << "no job, no limit of a job";
}

TEST_F(ArbiterTest, AttemptsAndAcceptancesAreToldApart) {
  build("[tenant.acme]\nmessage-rate = \"2/m\"\n");
  Asker& a = ask(Purpose::attempt, kGmail);
  ask(Purpose::attempt, kGmail);
  Asker& c = ask(Purpose::attempt, kGmail);
  EXPECT_EQ(c.grants, 0) << "two may be accepted yet";
  arbiter_->release(a.back(false));
  EXPECT_EQ(c.grants, 1) << "one was deferred: it did not count";
}

TEST_F(ArbiterTest, AGrantThatIsNotUsedLeavesItsPlaceToTheNext) {
  build("[tenant.acme]\nattempt-rate = \"1/m\"\n");
  Asker& a = ask(Purpose::attempt, kGmail);
  Asker& b = ask(Purpose::attempt, kGmail);
  EXPECT_EQ(b.grants, 0);
  arbiter_->release(a.back(false, false));
  run(kMs);
  EXPECT_EQ(b.grants, 1) << "a minute later at the latest, but why wait";
  run(30 * kSecond);
  arbiter_->release(b.back(false, false));
  EXPECT_EQ(ask(Purpose::attempt, kGmail).grants, 1);
  EXPECT_EQ(ask(Purpose::attempt, kGmail).grants, 0);
}

TEST_F(ArbiterTest, RecipientsAndOctetsWeigh) {
  build("[source.\"mta1.example.com\"]\nrecipient-rate = \"10/m\"\n[pool.bulk]\nbyte-rate = \"1M/m\"\n");
  EXPECT_EQ(ask(Purpose::attempt, kGmail, 6, 1000).grants, 1);
  EXPECT_EQ(ask(Purpose::attempt, kGmail, 5, 1000).grants, 0);
  Subject elsewhere = with(kGmail, [](Subject& s) { s.source = 1; });
  EXPECT_EQ(ask(Purpose::attempt, elsewhere, 5, 1 << 20).grants, 0) << "1 MiB is in use but for 1000 octets";
  run(62 * kSecond);
  EXPECT_EQ(askers_[1].grants + askers_[2].grants, 1) << "both together are more than 1 MiB";
  run(62 * kSecond);
  EXPECT_EQ(askers_[1].grants + askers_[2].grants, 2);
}

TEST_F(ArbiterTest, ALoweredLimitLetsNothingNewStartUntilItIsMet) {
  build("[provider.gmail]\nconnections = 3\n");
  Asker& a = ask(Purpose::connect, kGmail);
  Asker& b = ask(Purpose::connect, kGmail);
  ask(Purpose::connect, kGmail);
  arbiter_->adopt(rules_of("[provider.gmail]\nconnections = 2\n"));
  arbiter_->check();
  Asker& d = ask(Purpose::connect, kGmail);
  arbiter_->release(a.back());
  EXPECT_EQ(d.grants, 0);
  arbiter_->release(b.back());
  EXPECT_EQ(d.grants, 1);
  arbiter_->adopt(rules_of("[provider.gmail]\nconnections = 4\n"));
  EXPECT_EQ(ask(Purpose::connect, kGmail).grants, 1);
  EXPECT_EQ(ask(Purpose::connect, kGmail).grants, 1);
  EXPECT_EQ(ask(Purpose::connect, kGmail).grants, 0);
  arbiter_->check();
}

TEST_F(ArbiterTest, AReloadThatAddsACountToAScopeCountsWhatIsOut) {
  build("[tenant.acme]\nin-flight = 5\n[job.j1]\nrecipient-rate = \"100/s\"\n");
  Asker& a = ask(Purpose::attempt, kGmail);
  Asker& b = ask(Purpose::attempt, kGmail);
  arbiter_->adopt(rules_of("[tenant.acme]\nin-flight = 5\n[job.j1]\nrecipient-rate = \"100/s\"\nin-flight = 2\n"));
  arbiter_->check();
  Asker& c = ask(Purpose::attempt, kGmail);
  EXPECT_EQ(c.grants, 0);
  arbiter_->release(a.back());
  EXPECT_EQ(c.grants, 1);
  arbiter_->release(b.back());
  arbiter_->check();
}

TEST_F(ArbiterTest, AReloadAsksAnewForThoseThatWait) {
  build("[tenant.acme]\nin-flight = 1\n");
  Asker& first = ask(Purpose::attempt, kGmail);
  Asker& waits = ask(Purpose::attempt, kGmail);
  arbiter_->adopt(rules_of(""));
  EXPECT_EQ(waits.grants, 1);
  arbiter_->release(first.back());
  arbiter_->adopt(rules_of("[tenant.acme]\nin-flight = 1\n"));
  arbiter_->check();
}

TEST_F(ArbiterTest, AWaitThatIsCancelledHoldsNobodyUp) {
  build("[tenant.acme]\nbyte-rate = \"1M/m\"\n");
  ask(Purpose::attempt, kGmail, 1, 900'000);
  Asker& big = ask(Purpose::attempt, kGmail, 1, 1'000'000);
  Asker& small = ask(Purpose::attempt, kGmail, 1, 10);
  EXPECT_EQ(small.grants, 0) << "it overtakes nobody";
  arbiter_->cancel(big);
  run(10 * kMs);
  EXPECT_EQ(small.grants, 1);
}

TEST_F(ArbiterTest, DescribesWhatBindsAndWhereItWasWritten) {
  build("[provider.gmail]\nattempt-rate = \"1/s\"\n[tenant.acme]\nin-flight = 4\n");
  ask(Purpose::attempt, kGmail);
  ask(Purpose::attempt, kGmail);
  auto rows = arbiter_->describe(kGmail, Purpose::attempt);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].scope, "provider gmail from source mta1.example.com");
  EXPECT_EQ(rows[0].key, "attempt-rate");
  EXPECT_EQ(rows[0].limit, "1/s");
  EXPECT_EQ(rows[0].where, "shaping.toml:2");
  EXPECT_EQ(rows[0].waiting, 1u);
  EXPECT_GT(rows[0].free_at, io_->now());
  EXPECT_EQ(rows[1].scope, "tenant acme");
  EXPECT_EQ(rows[1].used, 1u);
  EXPECT_EQ(rows[1].free_at, 0);
}

// ---- budgets over a restart

TEST_F(ArbiterTest, ABudgetIsOnTheDiskBeforeItIsUsedAndARestartDoesNotRefillIt) {
  std::map<std::string, std::string> disk;
  std::deque<std::pair<std::function<void()>, std::function<void(Status)>>> writes;
  auto keep = [&] {
    arbiter_->keep_budgets([&](std::string key, std::string value, std::function<void(Status)> done) {
      writes.emplace_back([&disk, key, value] { value.empty() ? void(disk.erase(key)) : void(disk[key] = value); }, done);
    });
  };
  auto write_all = [&] {
    while (!writes.empty()) {
      auto [write, done] = writes.front();
      writes.pop_front();
      write();
      done(success());
    }
  };
  constexpr std::string_view kRules = "[tenant.acme]\nmessage-rate = \"10/h\"\n";
  int granted = 0;
  for (int start = 0; start < 4; ++start) {
    build(kRules);
    for (const auto& [key, value] : disk) arbiter_->recover(key, value);
    keep();
    Asker& asker = ask(Purpose::attempt, kGmail);
    if (start == 0) {
      EXPECT_EQ(asker.grants, 0) << "used before it was written";
    }
    for (int i = 0; i < 3; ++i) ask(Purpose::attempt, kGmail);
    write_all();
    for (Asker& each : askers_) granted += each.grants;
    arbiter_.reset();  // and what was being written is lost
    writes.clear();
    askers_.clear();
    run(60 * kSecond);
  }
  EXPECT_GE(granted, 7);
  EXPECT_LE(granted, 10);
  for (int restart = 0; restart < 2; ++restart) {
    run(3700 * kSecond);
    build(kRules);
    for (const auto& [key, value] : disk) arbiter_->recover(key, value);
    keep();
    write_all();
  }
  EXPECT_TRUE(disk.empty()) << "what has left its window is taken off the disk";
}

// ---- the model: several shards, random times, no limit is ever over

struct Model {
  struct Event {
    int64_t at;
    uint64_t n;
  };
  static uint64_t most(std::vector<Event>& events, int64_t period) {
    std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) { return a.at < b.at; });
    uint64_t most = 0, sum = 0;
    size_t first = 0;
    for (const Event& event : events) {
      sum += event.n;
      while (event.at - events[first].at >= period) sum -= events[first++].n;
      most = std::max(most, sum);
    }
    return most;
  }
};

TEST(ArbiterModel, NoLimitOfAnyScopeIsEverOver) {
  constexpr std::string_view kRules =
      "[default]\nattempt-rate = \"50/s\"\nin-flight = 7\n"
      "[provider.gmail]\nattempt-rate = \"20/s\"\n"
      "[domain.\"a.example\"]\nrecipient-rate = \"40/5s\"\n"
      "[tenant.t0]\nmessage-rate = [\"9/s\", \"60/10s\"]\nin-flight = 3\n"
      "[source.\"*\"]\nbyte-rate = \"200K/s\"\n"
      "[job.\"*\"]\nin-flight = 2\n";
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    reactor::SimWorld world(seed);
    reactor::HostId host = world.add_host({"192.0.2.1"});
    std::unique_ptr<reactor::Io> io = world.make_io(host);
    Arbiter arbiter(*io, rules_of(kRules));
    Prng prng(seed * 7919);
    struct Client : Asker {
      std::string job, tenant, domain;
      bool out = false, asking = false;
      int seen = 0;
      int64_t use_at = 0;
    };
    std::deque<Client> clients;
    for (int i = 0; i < 40; ++i) {
      Client& client = clients.emplace_back();
      client.job = "j" + std::to_string(prng.below(6));
      client.tenant = "t" + std::to_string(prng.below(3));
      client.domain = prng.below(2) == 0 ? "a.example" : "b.example";
      bool gmail = prng.below(2) == 0;
      client.subject = {gmail ? "gmail" : "", gmail ? "google" : "mx.other", static_cast<unsigned>(prng.below(2)),
                        client.domain, "", client.tenant, client.job};
    }
    std::map<std::string, std::vector<Model::Event>> attempts, recipients, octets, accepted;
    std::map<std::string, int> in_flight;
    auto enter = [&](const Client& c, int by) {
      std::string pair = std::string(c.subject.site) + std::to_string(c.subject.source);
      for (auto [name, limit] : {std::pair{"pair " + pair, 7}, {"job " + c.job, 2}, {"tenant " + c.tenant, c.tenant == "t0" ? 3 : 1000}}) {
        in_flight[name] += by;
        ASSERT_LE(in_flight[name], limit) << name << " seed " << seed;
      }
    };
    for (int step = 0; step < 1500; ++step) {
      world.run_for(static_cast<int64_t>(prng.below(20)) * kMs);
      Client& c = clients[prng.below(clients.size())];
      if (c.out) {
        bool took = prng.below(3) != 0;
        enter(c, -1);
        if (took) accepted[c.tenant].push_back({c.use_at, 1});
        c.out = false;
        if (c.to_release) arbiter.release(c.back(took));
      } else if (!c.asking) {
        c.recipients = static_cast<uint32_t>(1 + prng.below(10));
        c.octets = 1 + prng.below(100'000);
        c.asking = true;
        if (arbiter.submit(c)) ++c.grants;
      }
      for (Client& each : clients) {
        if (each.grants == each.seen) continue;
        each.seen = each.grants;
        each.asking = false;
        each.out = true;
        // Used at any time that the grant allows.
        each.use_at = each.granted_at + static_cast<int64_t>(prng.below(kGrantNs));
        enter(each, +1);
        attempts[std::string(each.subject.site) + std::to_string(each.subject.source)].push_back({each.use_at, 1});
        recipients[each.domain].push_back({each.use_at, each.recipients});
        octets[std::to_string(each.subject.source)].push_back({each.use_at, each.octets});
      }
      if (step % 100 == 0) arbiter.check();
    }
    for (auto& [pair, events] : attempts) {
      EXPECT_LE(Model::most(events, kSecond), pair.starts_with("google") ? 20u : 50u) << pair << " seed " << seed;
    }
    EXPECT_LE(Model::most(recipients["a.example"], 5 * kSecond), 40u) << "seed " << seed;
    for (auto& [source, events] : octets) EXPECT_LE(Model::most(events, kSecond), 200u << 10) << "seed " << seed;
    EXPECT_LE(Model::most(accepted["t0"], kSecond), 9u) << "seed " << seed;
    EXPECT_LE(Model::most(accepted["t0"], 10 * kSecond), 60u) << "seed " << seed;
    EXPECT_GT(attempts.size(), 0u);
    for (Client& each : clients) {
      if (each.asking) arbiter.cancel(each);
    }
    if (testing::Test::HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace millrace::shaping
