#include "queue/scheduler.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "fakes.h"

namespace millrace::queue {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

class SchedulerTest : public testing::Test {
 protected:
  SchedulerTest() : host_(world_.add_host({"192.0.2.1"})), io_(world_.make_io(host_)) {
    config_.hostname = "relay.example";
    config_.connect_rate = {};
    config_.memory = 1u << 30;
  }
  ~SchedulerTest() override { reset(); }

  void reset() {
    scheduler_.reset();
    reporter_.reset();
    agent_.reset();
    spool_.reset();
  }
  void build() {
    spool_ = std::make_unique<FakeSpool>(*io_);
    agent_ = std::make_unique<FakeAgent>(*io_);
    reporter_ = std::make_unique<FakeReporter>(*io_);
    scheduler_ = std::make_unique<Scheduler>(Scheduler::Context{
        *io_, std::make_shared<config::Config>(config_), *agent_, sink_, 0, 1});
    agent_->start(*scheduler_);
  }
  void start() {
    build();
    scheduler_->start(*spool_, *reporter_);
  }

  MessageRef message(std::vector<std::string> recipients, std::string job = "", std::string sender = "from@example.org") {
    MessageRef made = MessageRef::make();
    made->id = ids_.make(io_->wall_ms());
    made->envelope.reverse_path = std::move(sender);
    made->envelope.job = std::move(job);
    made->envelope.received_ms = io_->wall_ms();
    made->envelope.expires_ms = io_->wall_ms() + config_.expire_after_ms;
    for (const std::string& address : recipients) {
      made->envelope.recipients.push_back({address, address.substr(address.find('@') + 1), "", 0});
    }
    made->location = {1, static_cast<uint32_t>(spool_->messages.size() * 512 + 512), 300};
    FakeSpool::Stored& stored = spool_->messages[made->id];
    stored.body = "Subject: x\r\n\r\nhello\r\n";
    made->content.raw = {stored.body};
    made->content.raw_size = static_cast<uint32_t>(stored.body.size());
    mail::encode_metadata(made->envelope, made->content, stored.metadata);
    return made;
  }
  mail::SpoolId enqueue(std::vector<std::string> recipients, std::string job = "", std::string sender = "from@example.org") {
    MessageRef made = message(std::move(recipients), std::move(job), std::move(sender));
    mail::SpoolId id = made->id;
    scheduler_->enqueue(std::move(made));
    scheduler_->check();
    return id;
  }
  void run(int64_t seconds = 1) {
    world_.run_for(seconds * kSecond);
    scheduler_->check();
  }
  void all_results(Action action, uint16_t code, std::string enhanced, events::Scope scope = events::Scope::recipient) {
    agent_->serve = [=](Attempt& attempt) {
      for (auto& result : attempt.results) {
        result.action = action;
        result.code = code;
        result.enhanced = enhanced;
        result.scope = scope;
        result.reply = std::to_string(code) + " " + enhanced + " said the test";
      }
    };
  }

  reactor::SimWorld world_{1};
  reactor::HostId host_;
  std::unique_ptr<reactor::Io> io_;
  config::Config config_;
  mail::SpoolIdMaker ids_{42, 0};
  FakeSink sink_;
  std::unique_ptr<FakeSpool> spool_;
  std::unique_ptr<FakeAgent> agent_;
  std::unique_ptr<FakeReporter> reporter_;
  std::unique_ptr<Scheduler> scheduler_;
};

TEST_F(SchedulerTest, ADeliveredMessageEndsOnceItsNoteIsDurable) {
  start();
  spool_->stalled = true;
  enqueue({"a@example.com"});
  run();
  ASSERT_EQ(spool_->notes.size(), 1u);
  EXPECT_TRUE(spool_->notes[0].final);
  EXPECT_TRUE(sink_.seen.empty()) << "an event before its record is durable";
  EXPECT_EQ(scheduler_->stats().items, 1u);
  spool_->go_on();
  run();
  ASSERT_EQ(sink_.count(events::Type::delivered), 1u);
  EXPECT_EQ(sink_.seen[0].recipient, "a@example.com");
  EXPECT_EQ(sink_.seen[0].queue, "example.com");
  EXPECT_EQ(scheduler_->stats().items, 0u);
}

TEST_F(SchedulerTest, NoNewAttemptWhileOutcomesAreUnsyncedForLong) {
  start();
  run();
  spool_->stalled = true;
  enqueue({"a@example.com"});
  run();
  size_t before = agent_->attempted.size();
  enqueue({"b@example.com"});
  enqueue({"c@example.com"});
  run();
  EXPECT_EQ(agent_->attempted.size(), before);
  spool_->go_on();
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 3u);
}

TEST_F(SchedulerTest, NoNewAttemptWhileTheEventsFileIsBehind) {
  start();
  sink_.late = true;
  enqueue({"a@example.com"});
  run();
  EXPECT_EQ(scheduler_->stats().attempts, 0u);
  sink_.late = false;
  run();
  EXPECT_EQ(scheduler_->stats().attempts, 1u);
  EXPECT_EQ(sink_.count(events::Type::delivered), 1u);
}

TEST_F(SchedulerTest, ADeferredMessageWaitsForItsSchedule) {
  start();
  all_results(Action::defer, 451, "4.3.0", events::Scope::message);
  enqueue({"a@example.com"});
  run();
  ASSERT_EQ(sink_.count(events::Type::deferred), 1u);
  int64_t wait_ms = sink_.seen[0].next_attempt_ms - sink_.seen[0].time_ms;
  EXPECT_GE(wait_ms, 270'000);
  EXPECT_LE(wait_ms, 330'000);
  EXPECT_FALSE(spool_->notes[0].final);
  run(200);
  EXPECT_EQ(agent_->attempted.size(), 1u);
  run(200);
  EXPECT_EQ(agent_->attempted.size(), 2u);
  EXPECT_EQ(spool_->reads, 1u) << "its body left memory while it waited";
}

TEST_F(SchedulerTest, ABouncedMessageIsReportedBeforeItsOutcomeIsRecorded) {
  start();
  all_results(Action::bounce, 550, "5.1.1");
  enqueue({"a@example.com"});
  run();
  ASSERT_EQ(reporter_->reported.size(), 1u);
  ASSERT_EQ(sink_.count(events::Type::bounced), 1u);
  EXPECT_TRUE(sink_.seen[0].report_sent);
}

TEST_F(SchedulerTest, ABounceOfANullReversePathIsNotReported) {
  start();
  all_results(Action::bounce, 550, "5.1.1");
  enqueue({"a@example.com"}, "", "");
  run();
  EXPECT_TRUE(reporter_->reported.empty());
  EXPECT_EQ(sink_.count(events::Type::bounced), 1u);
}

TEST_F(SchedulerTest, RecipientsOfOneDomainShareATransactionAndEndEachForItself) {
  start();
  agent_->serve = [](Attempt& attempt) {
    for (size_t i = 0; i < attempt.results.size(); ++i) {
      const std::string& to = attempt.message->envelope.recipients[attempt.recipients[i]].address;
      attempt.results[i].action = to[0] == 'g' ? Action::delivered : to[0] == 'b' ? Action::bounce : Action::defer;
    }
  };
  enqueue({"good@one.example", "bad@one.example", "later@one.example", "good2@two.example"});
  run();
  EXPECT_EQ(agent_->attempted.size(), 2u);
  EXPECT_EQ(sink_.count(events::Type::delivered), 2u);
  EXPECT_EQ(sink_.count(events::Type::bounced), 1u);
  EXPECT_EQ(sink_.count(events::Type::deferred), 1u);
  EXPECT_EQ(scheduler_->stats().items, 1u);
  std::set<uint32_t> numbers;
  for (const auto& event : sink_.seen) numbers.insert(event.number);
  EXPECT_EQ(numbers.size(), 4u) << "event numbers are unique within the message";
  all_results(Action::delivered, 250, "2.0.0");
  run(400);
  EXPECT_EQ(scheduler_->stats().items, 0u);
  EXPECT_TRUE(spool_->notes.back().final);
}

TEST_F(SchedulerTest, UntriedRecipientsGoOnAtOnceAndUncounted) {
  start();
  config_.recipients_per_transaction = 2;
  scheduler_->adopt(std::make_shared<config::Config>(config_));
  enqueue({"a@one.example", "b@one.example", "c@one.example", "d@one.example", "e@one.example"});
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 5u);
  for (const auto& event : sink_.seen) EXPECT_EQ(event.attempt, 1u);
  EXPECT_EQ(scheduler_->stats().items, 0u);
}

TEST_F(SchedulerTest, DeferredAndUntriedRecipientsPart) {
  start();
  unsigned calls = 0;
  agent_->serve = [&calls](Attempt& attempt) {
    bool first = calls++ == 0;
    for (size_t i = 0; i < attempt.results.size(); ++i) {
      attempt.results[i].action = !first ? Action::delivered : i == 0 ? Action::defer : Action::give_back;
    }
  };
  enqueue({"a@one.example", "b@one.example", "c@one.example"});
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 2u);
  EXPECT_EQ(sink_.count(events::Type::deferred), 1u);
  run(400);
  EXPECT_EQ(sink_.count(events::Type::delivered), 3u);
  EXPECT_EQ(scheduler_->stats().items, 0u);
}

TEST_F(SchedulerTest, ConnectionsNeverExceedTheLimit) {
  config_.destination_connections = 3;
  start();
  agent_->hold_attempts = true;
  for (int i = 0; i < 50; ++i) enqueue({"a@example.com"});
  run();
  EXPECT_LE(agent_->most_lanes, 3u);
  agent_->finish_all();
  run(10);
  EXPECT_EQ(sink_.count(events::Type::delivered), 50u);
  EXPECT_LE(agent_->most_lanes, 3u);
}

// Domains of one host that differ in what they ask of TLS.
class TlsDemandTest : public SchedulerTest {
 protected:
  void adopt() {
    scheduler_->adopt(std::make_shared<config::Config>(config_));
    scheduler_->check();
  }
  void start_shared() {
    start();
    agent_->route = [](const std::string& domain) {
      dns::Route found;
      found.verdict = dns::Verdict::usable;
      found.site = "mx.example";
      found.valid_until_ns = INT64_MAX;
      if (!domain.starts_with("plain")) found.tls.key = domain.substr(0, domain.find('.'));
      return found;
    };
  }
};

TEST_F(TlsDemandTest, ConnectionServesOnlyDomainsThatAskTheSame) {
  start_shared();
  agent_->serve = [](Attempt& attempt) {
    const std::string& domain = attempt.message->envelope.recipients[attempt.recipients[0]].domain;
    const Site& site = *attempt.item->queue->destination->site;
    EXPECT_EQ(site.key, "mx.example");
    EXPECT_EQ(site.route->tls.key, domain.starts_with("plain") ? "" : domain.substr(0, domain.find('.')));
    attempt.results[0].action = Action::delivered;
  };
  agent_->depth = 3;
  for (int i = 0; i < 20; ++i) {
    for (const char* domain : {"plain.one", "plain.two", "dane.one", "dane.two", "sts.one"}) {
      enqueue({std::string("a@") + domain});
    }
  }
  run(60);
  EXPECT_EQ(sink_.count(events::Type::delivered), 100u);
}

TEST_F(TlsDemandTest, LimitOfConnectionsIsTheHostsOwn) {
  config_.destination_connections = 3;
  start_shared();
  agent_->hold_attempts = true;
  for (int i = 0; i < 20; ++i) {
    for (const char* domain : {"plain.one", "dane.one", "sts.one"}) enqueue({std::string("a@") + domain});
  }
  run(20);
  EXPECT_LE(agent_->most_lanes, 3u);
  agent_->finish_all();
  run(60);
  EXPECT_EQ(sink_.count(events::Type::delivered), 60u) << "a lane without work makes room for those that ask otherwise";
  EXPECT_LE(agent_->most_lanes, 3u);
}

TEST_F(TlsDemandTest, DomainsThatAskOtherwiseTakeTurnsAtTheOnlyConnection) {
  config_.destination_connections = 1;
  start_shared();
  agent_->serve = [this](Attempt& attempt) {
    attempt.results[0].action = Action::delivered;
    for (auto& lane : agent_->lanes) lane->retire();  // as at a limit of messages per connection
  };
  for (int i = 0; i < 20; ++i) enqueue({"a@plain.one"});
  for (int i = 0; i < 20; ++i) enqueue({"a@dane.one"});
  std::string last = enqueue({"b@sts.one"}).to_string();
  run(60);
  ASSERT_EQ(agent_->attempted.size(), 41u);
  EXPECT_EQ(agent_->most_lanes, 1u);
  auto at = std::find_if(agent_->attempted.begin(), agent_->attempted.end(),
                         [&](const std::string& text) { return text.starts_with(last); });
  EXPECT_LT(at - agent_->attempted.begin(), 8);
}

TEST_F(TlsDemandTest, RateOfConnectionsIsTheHostsOwn) {
  config_.connect_rate = {1, 3'600'000};
  start_shared();
  for (const char* domain : {"plain.one", "dane.one", "sts.one"}) enqueue({std::string("a@") + domain});
  run(60);
  EXPECT_EQ(agent_->opened, 1u);
}

TEST_F(TlsDemandTest, FailureOfThoseWhoAskMoreHoldsNobodyElse) {
  start_shared();
  LaneEnd failed;
  failed.cause = LaneEnd::Cause::failed;
  failed.stage = events::Stage::starttls;
  failed.reply = "certificate no TLSA record fits";
  agent_->fails = [failed](const Site& site) -> std::optional<LaneEnd> {
    if (site.route->tls.key == "dane") return failed;
    return std::nullopt;
  };
  enqueue({"a@dane.one"});
  run(10);
  enqueue({"a@plain.one"});
  run(10);
  EXPECT_EQ(sink_.count(events::Type::delivered), 1u);
}

TEST_F(SchedulerTest, ProbeOfAHeldSiteGoesByARouteOfNow) {
  start();
  agent_->route = [this](const std::string& domain) {
    dns::Route found;
    found.verdict = dns::Verdict::usable;
    found.site = "mx." + domain;
    found.valid_until_ns = io_->now() + 300 * kSecond;
    found.tls.next_hop = std::to_string(agent_->resolves);  // which answer it is
    return found;
  };
  LaneEnd failed;
  failed.cause = LaneEnd::Cause::failed;
  failed.stage = events::Stage::starttls;
  agent_->fails = [failed](const Site& site) -> std::optional<LaneEnd> {
    if (site.route->tls.next_hop == "1") return failed;
    return std::nullopt;
  };
  enqueue({"a@example.com"});
  run(200);
  EXPECT_EQ(agent_->resolves, 1u);
  EXPECT_EQ(sink_.count(events::Type::delivered), 0u);
  run(1200);
  EXPECT_EQ(agent_->resolves, 2u);
  EXPECT_EQ(sink_.count(events::Type::delivered), 1u);
}

TEST_F(TlsDemandTest, ReloadThatChangesWhatIsAskedFindsRoutesAnew) {
  start_shared();
  agent_->hold_attempts = true;
  enqueue({"a@plain.one"});
  run();
  EXPECT_EQ(agent_->resolves, 1u);
  adopt();
  run();
  EXPECT_EQ(agent_->resolves, 1u) << "nothing has changed";
  config_.tls = config::TlsLevel::required;
  adopt();
  agent_->finish_all();
  enqueue({"a@plain.one"});
  run();
  EXPECT_EQ(agent_->resolves, 2u);
}

TEST_F(SchedulerTest, ASlotFreedAtOneSiteServesAnother) {
  config_.total_connections = 1;
  start();
  enqueue({"a@one.example"});
  enqueue({"b@two.example"});
  enqueue({"c@three.example"});
  run();
  // A lane that is idle keeps its slot until it ends by itself.
  for (int i = 0; i < 3; ++i) {
    for (auto& lane : agent_->lanes) lane->retire();
    run();
  }
  EXPECT_EQ(agent_->most_lanes, 1u);
  EXPECT_EQ(sink_.count(events::Type::delivered), 3u);
}

TEST_F(SchedulerTest, ASlotGoesPastASiteThatHasNoUseForIt) {
  config_.total_connections = 1;
  config_.connect_rate = {1, 3'600'000};
  start();
  auto close_all = [&] {
    for (auto& lane : agent_->lanes) lane->retire();
    run();
  };
  enqueue({"b@two.example"});
  run();
  close_all();
  agent_->hold_attempts = true;
  enqueue({"a@one.example"});
  run();
  enqueue({"b@two.example"});  // waits for the slot, and after that for its connect rate
  enqueue({"c@three.example"});
  run();
  agent_->finish_all();
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 2u);
  close_all();
  EXPECT_EQ(sink_.count(events::Type::delivered), 3u);
}

TEST_F(SchedulerTest, ASiteWithMuchMailDoesNotKeepTheOnlySlot) {
  config_.total_connections = 1;
  start();
  agent_->serve = [this](Attempt& attempt) {
    attempt.results[0].action = Action::delivered;
    for (auto& lane : agent_->lanes) lane->retire();  // as at a limit of messages per connection
  };
  for (int i = 0; i < 20; ++i) enqueue({"a@one.example"});
  std::string last = enqueue({"b@two.example"}).to_string();
  run(30);
  ASSERT_EQ(agent_->attempted.size(), 21u);
  auto at = std::find_if(agent_->attempted.begin(), agent_->attempted.end(),
                         [&](const std::string& text) { return text.starts_with(last); });
  EXPECT_LT(at - agent_->attempted.begin(), 5);
}

TEST_F(SchedulerTest, ConnectionsGrowFromTheInitialNumberBySuccess) {
  start();
  agent_->hold_attempts = true;
  for (int i = 0; i < 50; ++i) enqueue({"a@example.com"});
  run();
  EXPECT_EQ(agent_->lanes.size(), 2u);
  agent_->hold_attempts = false;
  agent_->schedule();
  run();
  EXPECT_GT(agent_->most_lanes, 2u);
}

TEST_F(SchedulerTest, AFailedConnectionHoldsTheSiteAndCountsNoAttempt) {
  start();
  LaneEnd end;
  end.cause = LaneEnd::Cause::failed;
  end.stage = events::Stage::connect;
  end.reply = "connection refused";
  agent_->fail_connect = end;
  enqueue({"a@example.com"});
  enqueue({"b@example.com"});
  run();
  EXPECT_TRUE(agent_->attempted.empty());
  EXPECT_EQ(sink_.count(events::Type::queue), 1u) << "one event, not one per waiting message";
  unsigned opened = agent_->opened;
  run(50);
  EXPECT_EQ(agent_->opened, opened);
  agent_->fail_connect.reset();
  run(20);
  EXPECT_EQ(sink_.count(events::Type::delivered), 2u);
  for (const auto& event : sink_.seen) {
    if (event.type == events::Type::delivered) {
      EXPECT_EQ(event.attempt, 1u);
    }
  }
}

TEST_F(SchedulerTest, AHeldSiteDoesNotSlowAnother) {
  start();
  agent_->serve = [](Attempt& attempt) { attempt.results[0].action = Action::delivered; };
  enqueue({"a@dead.example"});
  agent_->route = [](const std::string& domain) {
    dns::Route route;
    route.verdict = domain == "dead.example" ? dns::Verdict::temporary : dns::Verdict::usable;
    route.site = "mx." + domain;
    route.reason = "time-out";
    route.valid_until_ns = INT64_MAX;
    return route;
  };
  for (int i = 0; i < 20; ++i) enqueue({"a@live.example"});
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 20u);
  EXPECT_EQ(scheduler_->stats().items, 1u);
}

TEST_F(SchedulerTest, MailThatWaitedForNamesIsDueWhenTheyCanBeLookedUpAgain) {
  start();
  agent_->serve = [](Attempt& attempt) { attempt.results[0].action = Action::delivered; };
  dns::Verdict verdict = dns::Verdict::temporary;
  agent_->route = [&](const std::string& domain) {
    dns::Route route;
    route.verdict = verdict;
    route.site = "mx." + domain;
    route.reason = "time-out";
    route.valid_until_ns = INT64_MAX;
    return route;
  };
  for (const char* recipient : {"a@one.example", "a@two.example"}) enqueue({recipient});
  run(500);  // the hold is eight minutes long by now
  verdict = dns::Verdict::usable;
  run(30);
  EXPECT_EQ(sink_.count(events::Type::delivered), 0u);
  scheduler_->name_service_back();
  run(1);
  EXPECT_EQ(sink_.count(events::Type::delivered), 2u);
}

TEST_F(SchedulerTest, AMissingDomainBouncesOnlyWhenASecondLookAgrees) {
  start();
  agent_->route = [](const std::string&) {
    dns::Route route;
    route.verdict = dns::Verdict::no_such_domain;
    route.reason = "no such domain";
    return route;
  };
  enqueue({"a@nowhere.example"});
  run(300);
  EXPECT_EQ(sink_.count(events::Type::bounced), 0u);
  run(400);
  ASSERT_EQ(sink_.count(events::Type::bounced), 1u);
  EXPECT_EQ(sink_.seen.back().enhanced, "5.1.2");
  EXPECT_EQ(scheduler_->stats().items, 0u);
}

TEST_F(SchedulerTest, AStepOfTheClockChangesNothingOfWhenAMissingDomainIsLookedUpAgain) {
  for (int64_t step_ms : {3'600'000LL, -3'600'000LL}) {
    start();
    agent_->route = [](const std::string&) {
      dns::Route route;
      route.verdict = dns::Verdict::no_such_domain;
      route.reason = "no such domain";
      return route;
    };
    enqueue({"a@nowhere.example"});
    run(10);
    world_.step_wall(step_ms);
    enqueue({"b@nowhere.example"});
    run(290);
    EXPECT_EQ(sink_.count(events::Type::bounced), 0u) << step_ms;
    run(400);
    EXPECT_EQ(sink_.count(events::Type::bounced), 2u) << step_ms;
    reset();
    sink_.seen.clear();
  }
}

TEST_F(SchedulerTest, ANullMxBouncesAtOnce) {
  start();
  agent_->route = [](const std::string&) {
    dns::Route route;
    route.verdict = dns::Verdict::null_mx;
    route.reason = "takes no mail";
    return route;
  };
  for (int i = 0; i < 200; ++i) enqueue({"a@nomail.example"});
  run(3);
  EXPECT_EQ(sink_.count(events::Type::bounced), 200u);
}

TEST_F(SchedulerTest, ARateIsNeverExceeded) {
  config_.destination_rate = {10, 1000};
  start();
  std::vector<int64_t> times;
  agent_->serve = [&](Attempt& attempt) {
    times.push_back(io_->now());
    attempt.results[0].action = Action::delivered;
  };
  for (int i = 0; i < 100; ++i) enqueue({"a@example.com"});
  run(30);
  EXPECT_EQ(sink_.count(events::Type::delivered), 100u);
  for (size_t i = 10; i < times.size(); ++i) EXPECT_GE(times[i] - times[i - 10], kSecond - 2'000'000);
}

TEST_F(SchedulerTest, AnUncertainDeliveryIsTriedAgainAfterTheTimeForIt) {
  start();
  all_results(Action::uncertain, 0, "", events::Scope::message);
  enqueue({"a@example.com"});
  run(500);
  EXPECT_EQ(agent_->attempted.size(), 1u);
  run(200);
  EXPECT_EQ(agent_->attempted.size(), 2u);
}

TEST_F(SchedulerTest, NewMailIsNotStarvedByRetries) {
  config_.destination_connections = 1;
  config_.retry_ms = {1000};
  start();
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  for (int i = 0; i < 200; ++i) enqueue({"old@example.com"});
  run(5);
  mail::SpoolId fresh = enqueue({"new@example.com"});
  size_t before = agent_->attempted.size();
  run(5);
  auto at = std::find(agent_->attempted.begin() + static_cast<std::ptrdiff_t>(before), agent_->attempted.end(),
                      fresh.to_string() + "/0");
  ASSERT_NE(at, agent_->attempted.end());
  EXPECT_LT(static_cast<size_t>(at - agent_->attempted.begin()) - before, 8u);
}

TEST_F(SchedulerTest, MailExpiresWithAReport) {
  config_.expire_after_ms = 3'600'000;
  start();
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  enqueue({"a@example.com"});
  run(3500);
  EXPECT_EQ(sink_.count(events::Type::expired), 0u);
  run(200);
  EXPECT_EQ(sink_.count(events::Type::expired), 1u);
  EXPECT_EQ(reporter_->reported.size(), 1u);
  EXPECT_EQ(scheduler_->stats().items, 0u);
}

TEST_F(SchedulerTest, MailBehindAHoldExpiresToo) {
  config_.expire_after_ms = 3'600'000;
  start();
  LaneEnd end;
  end.cause = LaneEnd::Cause::failed;
  end.stage = events::Stage::connect;
  agent_->fail_connect = end;
  enqueue({"a@example.com"});
  run(3800);
  EXPECT_EQ(sink_.count(events::Type::expired), 1u);
}

TEST_F(SchedulerTest, AJumpOfTheClockExpiresNothingAtOnce) {
  start();
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  enqueue({"a@example.com"});
  run();
  world_.step_wall(30 * 86'400'000LL);
  run(600);
  EXPECT_EQ(sink_.count(events::Type::expired), 0u);
}

TEST_F(SchedulerTest, AClockSetBackExpiresNoNewMail) {
  start();
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  enqueue({"a@example.com"});
  run();
  world_.run_for(kSecond / 2);  // it looks at the clock each second
  world_.step_wall(-30 * 86'400'000LL);
  enqueue({"a@example.com"});
  run(10);
  EXPECT_EQ(sink_.count(events::Type::expired), 0u);
}

TEST_F(SchedulerTest, ARestartChangesNoSchedule) {
  start();
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  mail::SpoolId id = enqueue({"a@example.com", "b@example.com"});
  run();
  int64_t due_ms = sink_.seen[0].next_attempt_ms;
  auto messages = spool_->messages;
  std::string state = spool_->notes.back().state;
  reset();
  build();
  spool_->messages = messages;
  spool::Recovered found;
  found.id = id;
  found.location = {1, 512, 300};
  found.metadata = spool_->messages[id].metadata;
  found.state = state;
  scheduler_->recover(found);
  scheduler_->start(*spool_, *reporter_);
  scheduler_->check();
  int64_t tried_ms = 0;
  agent_->serve = [&](Attempt& attempt) {
    tried_ms = io_->wall_ms();
    EXPECT_EQ(attempt.recipients.size(), 2u);
    for (auto& result : attempt.results) result.action = Action::delivered;
  };
  run(600);
  EXPECT_NEAR(static_cast<double>(tried_ms), static_cast<double>(due_ms), 20.0);
  EXPECT_EQ(scheduler_->stats().items, 0u);
}

// RFC 8689: other connections, found by other look-ups; also after a restart.
TEST_F(SchedulerTest, MailThatAsksForItsOwnTlsWaitsApart) {
  for (bool recovered : {false, true}) {
    SCOPED_TRACE(recovered);
    build();
    if (!recovered) scheduler_->start(*spool_, *reporter_);
    std::map<mail::SpoolId, mail::TlsWish> wishes;
    std::map<const Destination*, mail::TlsWish> resolved;
    agent_->on_resolve = [&](const Destination& destination) { resolved[&destination] = destination.tls; };
    agent_->serve = [&](Attempt& attempt) {
      EXPECT_EQ(attempt.item->queue->destination->tls, wishes.at(attempt.message->id));
      EXPECT_EQ(attempt.message->envelope.tls, wishes.at(attempt.message->id));
      for (auto& result : attempt.results) result.action = Action::delivered;
    };
    for (mail::TlsWish wish : {mail::TlsWish::none, mail::TlsWish::required, mail::TlsWish::not_required}) {
      MessageRef made = message({"a@example.com"});
      made->envelope.tls = wish;
      wishes[made->id] = wish;
      FakeSpool::Stored& stored = spool_->messages[made->id];
      stored.metadata.clear();
      mail::encode_metadata(made->envelope, made->content, stored.metadata);
      if (!recovered) {
        scheduler_->enqueue(std::move(made));
        continue;
      }
      spool::Recovered found;
      found.id = made->id;
      found.location = made->location;
      found.metadata = stored.metadata;
      scheduler_->recover(found);
    }
    if (recovered) scheduler_->start(*spool_, *reporter_);
    run(10);
    EXPECT_EQ(resolved.size(), 3u);
    EXPECT_EQ(scheduler_->stats().delivered, 3u);
    reset();
  }
}

TEST_F(SchedulerTest, AHostThatNobodyVouchesForEndsOnlyTheMailThatAsksForThat) {
  start();
  agent_->on_resolve = [&](const Destination& destination) {
    const bool asks = destination.tls == mail::TlsWish::required;
    agent_->route = [asks](const std::string& domain) {
      dns::Route found;
      found.verdict = asks ? dns::Verdict::unprotected : dns::Verdict::usable;
      found.reason = "nobody vouches";
      found.site = "mx." + domain;
      found.valid_until_ns = INT64_MAX;
      return found;
    };
  };
  MessageRef made = message({"a@example.com"});
  made->envelope.tls = mail::TlsWish::required;
  scheduler_->enqueue(std::move(made));
  run();
  enqueue({"a@example.com"});
  run();
  EXPECT_EQ(scheduler_->stats().delivered, 1u);
  ASSERT_EQ(sink_.count(events::Type::bounced), 1u);
  const auto bounced = std::find_if(sink_.seen.begin(), sink_.seen.end(),
                                    [](const events::Event& event) { return event.type == events::Type::bounced; });
  EXPECT_EQ(bounced->enhanced, "5.7.10");
  EXPECT_EQ(bounced->bounce_class, "policy-related");
}

TEST_F(SchedulerTest, ARestartAfterTheClockWasSetBackDelaysNoMailByThatStep) {
  start();
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  mail::SpoolId id = enqueue({"a@example.com"});
  run();
  auto messages = spool_->messages;
  std::string state = spool_->notes.back().state;
  reset();
  world_.step_wall(-86'400'000LL);
  build();
  spool_->messages = messages;
  spool::Recovered found;
  found.id = id;
  found.location = {1, 512, 300};
  found.metadata = spool_->messages[id].metadata;
  found.state = state;
  scheduler_->recover(found);
  scheduler_->start(*spool_, *reporter_);
  all_results(Action::delivered, 250, "2.0.0");
  run(240);
  EXPECT_EQ(sink_.count(events::Type::delivered), 0u);
  run(100);  // the first step, five minutes, and a tenth of it
  EXPECT_EQ(sink_.count(events::Type::delivered), 1u);
}

TEST_F(SchedulerTest, ADeleteBySenderMeetsMailOfBeforeARestart) {
  build();
  for (int i = 0; i < 10; ++i) {
    MessageRef made = message({"a@example.com"}, "", i % 2 ? "x@example.org" : "y@example.org");
    spool::Recovered found;
    found.id = made->id;
    found.location = made->location;
    found.metadata = spool_->messages[made->id].metadata;
    scheduler_->recover(found);
  }
  Filter filter;
  filter.sender = "x@example.org";
  EXPECT_EQ(scheduler_->count_matching(filter), 5u);
  scheduler_->end_matching(Command::remove, filter, [] {});
  all_results(Action::delivered, 250, "2.0.0");
  scheduler_->start(*spool_, *reporter_);
  run(30);
  EXPECT_EQ(sink_.count(events::Type::removed), 5u);
  EXPECT_EQ(sink_.count(events::Type::delivered), 5u);
}

// More destinations than messages may be read at a time.
TEST_F(SchedulerTest, MailOfManyDestinationsIsReadBackAndNoneIsForgotten) {
  build();
  for (int i = 0; i < 3000; ++i) {
    MessageRef made = message({"a@d" + std::to_string(i % 1000) + ".example"});
    spool::Recovered found;
    found.id = made->id;
    found.location = made->location;
    found.metadata = spool_->messages[made->id].metadata;
    scheduler_->recover(found);
  }
  agent_->route = [](const std::string& domain) {
    dns::Route route;
    route.verdict = dns::Verdict::usable;
    route.site = domain < "d5" ? "one.example" : "mx." + domain;
    route.valid_until_ns = INT64_MAX;
    return route;
  };
  all_results(Action::delivered, 250, "2.0.0");
  scheduler_->start(*spool_, *reporter_);
  for (int i = 0; i < 600 && scheduler_->stats().items > 0; ++i) run();
  EXPECT_EQ(scheduler_->stats().items, 0u);
  EXPECT_EQ(sink_.count(events::Type::delivered), 3000u);
}

TEST_F(SchedulerTest, PauseHoldsMatchingMailUntilItIsResumed) {
  start();
  Filter filter;
  filter.job = "news";
  scheduler_->add_pause(1, filter);
  enqueue({"a@example.com"}, "news");
  enqueue({"b@example.com"}, "other");
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 1u);
  auto rows = scheduler_->queue_rows();
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].why, "paused by the operator");
  scheduler_->remove_pause(1);
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 2u);
}

// Until then a restart has to go on with it.
TEST_F(SchedulerTest, ADeleteIsDoneOnceWhatWasInFlightHasEnded) {
  start();
  agent_->hold_attempts = true;
  enqueue({"a@example.com"}, "", "x@example.org");
  run();
  ASSERT_EQ(scheduler_->stats().in_flight, 1u);
  Filter filter;
  filter.sender = "x@example.org";
  bool done = false;
  scheduler_->end_matching(Command::remove, filter, [&] { done = true; });
  for (int second = 0; second < 5; ++second) run();
  EXPECT_FALSE(done);
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  agent_->finish_all();
  for (int second = 0; second < 5; ++second) run();
  EXPECT_TRUE(done);
  EXPECT_EQ(sink_.count(events::Type::removed), 1u);
}

TEST_F(SchedulerTest, DeleteEndsEachRecipientWithAnEventAndNoReport) {
  start();
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  for (int i = 0; i < 300; ++i) enqueue({"a@example.com"}, "", i % 2 ? "x@example.org" : "y@example.org");
  run(2);
  Filter filter;
  filter.sender = "x@example.org";
  EXPECT_EQ(scheduler_->count_matching(filter), 150u);
  bool done = false;
  scheduler_->end_matching(Command::remove, filter, [&] { done = true; });
  run(30);
  EXPECT_EQ(sink_.count(events::Type::removed), 150u);
  EXPECT_EQ(scheduler_->stats().items, 150u);
  EXPECT_TRUE(reporter_->reported.empty());
  EXPECT_TRUE(done);
}

TEST_F(SchedulerTest, DeleteReachesMailWhoseOutcomeIsOnItsWayToTheDisk) {
  start();
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  spool_->stalled = true;
  enqueue({"a@example.com"});
  run();
  bool done = false;
  scheduler_->end_matching(Command::remove, {}, [&] { done = true; });
  run();
  EXPECT_EQ(scheduler_->stats().items, 1u);
  spool_->go_on();
  run(2);
  EXPECT_EQ(sink_.count(events::Type::removed), 1u);
  EXPECT_EQ(scheduler_->stats().items, 0u);
  EXPECT_TRUE(done);
}

TEST_F(SchedulerTest, RetryEndsAWait) {
  start();
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  enqueue({"a@example.com"});
  run();
  all_results(Action::delivered, 250, "2.0.0");
  scheduler_->retry_matching(Filter{});
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 1u);
}

TEST_F(SchedulerTest, TheQueueViewSaysWhyMailWaits) {
  start();
  LaneEnd end;
  end.cause = LaneEnd::Cause::told_to_slow;
  end.code = 421;
  end.reply = "421 4.7.0 too fast";
  agent_->fail_connect = end;
  enqueue({"a@example.com"});
  run();
  auto rows = scheduler_->queue_rows();
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].messages, 1u);
  EXPECT_EQ(rows[0].why, "held: 421 4.7.0 too fast");
  EXPECT_GT(rows[0].next_attempt_ms, io_->wall_ms());
}

TEST_F(SchedulerTest, StopWaitsForWhatIsOut) {
  start();
  agent_->hold_attempts = true;
  enqueue({"a@example.com"});
  enqueue({"b@example.com"});
  run();
  bool stopped = false;
  scheduler_->stop([&] { stopped = true; });
  for (auto& lane : agent_->lanes) lane->retired = true;
  run();
  EXPECT_FALSE(stopped);
  agent_->finish_all();
  run();
  EXPECT_TRUE(stopped);
  EXPECT_EQ(sink_.count(events::Type::delivered), 2u);
}

TEST_F(SchedulerTest, WhatIsBeingReadBackWhenItsTenantIsPausedKeepsNoRoom) {
  start();
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  MessageRef made = message({"a@example.com"});
  made->envelope.tenant = "t";
  mail::encode_metadata(made->envelope, made->content, spool_->messages[made->id].metadata = "");
  scheduler_->enqueue(std::move(made));
  run();
  spool_->stalled_reads = true;
  run(600);
  ASSERT_EQ(spool_->reads, 1u);
  Filter tenant;
  tenant.tenant = "t";
  scheduler_->add_pause(1, tenant);
  spool_->stalled_reads = false;
  spool_->go_on();
  run();
  EXPECT_EQ(agent_->attempted.size(), 1u);
  scheduler_->remove_pause(1);
  run();
  EXPECT_EQ(spool_->reads, 2u) << "it had left memory";
  EXPECT_EQ(agent_->attempted.size(), 2u);
}

TEST_F(SchedulerTest, ADomainThatTookNoMailIsAskedAnewThoughMailForItIsPaused) {
  start();
  bool closed = true;
  agent_->route = [&](const std::string& domain) {
    dns::Route found;
    found.verdict = closed ? dns::Verdict::null_mx : dns::Verdict::usable;
    found.site = "mx." + domain;
    found.valid_until_ns = INT64_MAX;
    return found;
  };
  Filter job;
  job.job = "paused";
  scheduler_->add_pause(1, job);
  enqueue({"a@example.com"}, "paused");
  enqueue({"b@example.com"}, "other");
  run();
  EXPECT_EQ(sink_.count(events::Type::bounced), 1u);
  closed = false;
  enqueue({"c@example.com"}, "other");
  run();
  EXPECT_EQ(sink_.count(events::Type::bounced), 1u) << "an old verdict";
  EXPECT_EQ(sink_.count(events::Type::delivered), 1u);
  scheduler_->remove_pause(1);
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 2u);
  EXPECT_EQ(scheduler_->stats().items, 0u);
}

// Whatever becomes of the message that drew the reply.
TEST_F(SchedulerTest, AQueueThatAReplyDefersGoesOnWhenItsHoldEnds) {
  config_.destination_connections = 1;
  config_.retry_ms = {4 * 3600 * 1000};
  start();
  agent_->serve = [&](Attempt& attempt) {
    for (auto& result : attempt.results) {
      result.action = agent_->attempted.size() == 1 ? Action::defer : Action::delivered;
      result.asks.defer_queue = agent_->attempted.size() == 1;
      result.code = 451;
    }
  };
  enqueue({"a@example.com"});
  enqueue({"b@example.com"});
  run(30 * 60);
  EXPECT_EQ(sink_.count(events::Type::delivered), 1u);
}

TEST_F(SchedulerTest, StopWaitsForNoConnectionThatIsBeingMade) {
  start();
  agent_->connect_ns = 30 * kSecond;
  enqueue({"a@example.com"});
  run();
  ASSERT_EQ(agent_->lanes.size(), 1u);
  bool stopped = false;
  scheduler_->stop([&] { stopped = true; });
  run();
  EXPECT_TRUE(stopped);
  EXPECT_TRUE(agent_->lanes.empty());
}

TEST_F(SchedulerTest, StopWaitsForWhatIsBeingReadBack) {
  start();
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  enqueue({"a@example.com"});
  run();
  spool_->stalled_reads = true;
  run(600);
  ASSERT_EQ(spool_->reads, 1u);
  bool stopped = false;
  scheduler_->stop([&] { stopped = true; });
  run();
  EXPECT_FALSE(stopped) << "the spool would be taken from under the read";
  spool_->stalled_reads = false;
  spool_->go_on();
  run();
  EXPECT_TRUE(stopped);
  EXPECT_EQ(agent_->attempted.size(), 1u);
}

// The domain whose look-up a probe waited for has moved to other hosts: the probe is another's.
TEST_F(SchedulerTest, AProbeIsMadeForWhoeverIsLeftWhenTheFirstHasMoved) {
  start();
  bool moved = false;
  agent_->route = [&](const std::string& domain) {
    dns::Route found;
    found.verdict = dns::Verdict::usable;
    found.site = moved && domain == "a.example" ? "mx.other.example" : "mx.example";
    found.valid_until_ns = io_->now() + (domain == "a.example" ? kSecond : 1000 * kSecond);
    return found;
  };
  agent_->fail_connect = LaneEnd{.cause = LaneEnd::Cause::failed, .reply = "refused"};
  enqueue({"a@a.example"});
  enqueue({"b@b.example"});
  run();
  EXPECT_TRUE(agent_->attempted.empty());
  moved = true;
  agent_->fail_connect.reset();
  run(60);
  EXPECT_EQ(agent_->attempted.size(), 2u);
  EXPECT_EQ(scheduler_->stats().items, 0u);
}

TEST(QueueState, RoundTrip) {
  QueueState state;
  state.events = 300;
  state.recipients = {{0, 1, 1767225600123, 1767225000}, {70000, 65535, 1, 0}};
  std::string bytes;
  encode_state(state, bytes);
  Result<QueueState> back = decode_state(bytes);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->events, 300u);
  ASSERT_EQ(back->recipients.size(), 2u);
  EXPECT_EQ(back->recipients[1].recipient, 70000u);
  EXPECT_EQ(back->recipients[0].due_ms, 1767225600123);
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(decode_state(std::string_view(bytes).substr(0, size)).ok());
  }
}

// ---- the operator's view and hand

TEST_F(SchedulerTest, ShowTellsWhatIsKnownOfAMessageOfTwoDomains) {
  start();
  all_results(Action::defer, 451, "4.2.0", events::Scope::message);
  mail::SpoolId id = enqueue({"a@one.example", "b@two.example"}, "news");
  run();
  int shown = 0;
  scheduler_->show(id, [&](Result<MessageRow> row) {
    ++shown;
    ASSERT_TRUE(row.ok());
    EXPECT_EQ(row->id, id);
    EXPECT_EQ(row->job, "news");
    EXPECT_EQ(row->reverse_path, "from@example.org");
    EXPECT_GT(row->size, 0u);
    ASSERT_EQ(row->recipients.size(), 2u);
    for (const RecipientRow& recipient : row->recipients) {
      EXPECT_EQ(recipient.state, "waiting for its next attempt");
      EXPECT_EQ(recipient.attempts, 1u);
      EXPECT_EQ(recipient.why, "451 4.2.0 said the test");
      EXPECT_GT(recipient.next_attempt_ms, io_->wall_ms());
    }
  });
  run();
  EXPECT_EQ(shown, 1);
}

TEST_F(SchedulerTest, ShowTellsAHoldOfADomainOrASite) {
  start();
  LaneEnd end;
  end.cause = LaneEnd::Cause::failed;
  end.reply = "connection refused";
  agent_->fail_connect = end;
  agent_->route = [](const std::string& domain) {
    dns::Route found;
    found.verdict = domain == "lost.example" ? dns::Verdict::temporary : dns::Verdict::usable;
    found.reason = "SERVFAIL";
    found.site = "mx." + domain;
    found.valid_until_ns = domain == "lost.example" ? 0 : INT64_MAX;
    return found;
  };
  mail::SpoolId id = enqueue({"a@lost.example", "b@two.example"});
  run();
  std::map<std::string, std::string> why;
  scheduler_->show(id, [&](Result<MessageRow> row) {
    ASSERT_TRUE(row.ok());
    for (const RecipientRow& recipient : row->recipients) why[recipient.address] = recipient.why;
  });
  run();
  EXPECT_NE(why["a@lost.example"].find("SERVFAIL"), std::string::npos) << why["a@lost.example"];
  EXPECT_EQ(why["b@two.example"], "connection refused");
}

TEST_F(SchedulerTest, ShowReadsWhatIsNotInMemory) {
  start();
  scheduler_->add_pause(1, Filter{});
  mail::SpoolId id = enqueue({"a@one.example"});
  run();
  std::vector<std::string> answers;
  auto note = [&](Result<MessageRow> row) {
    if (!row.ok()) return answers.push_back(row.error().text);
    answers.push_back(std::string(row->resident ? "resident " : "read ") + row->recipients.at(0).state);
  };
  scheduler_->show(id, note);
  run();
  spool_->unreadable = true;
  scheduler_->show(id, note);
  run();
  spool_->unreadable = false;
  std::string metadata = std::exchange(spool_->messages[id].metadata, "no metadata");
  scheduler_->show(id, note);
  run();
  spool_->messages[id].metadata = metadata;
  scheduler_->show(ids_.make(io_->wall_ms()), note);
  ASSERT_EQ(answers.size(), 4u);
  EXPECT_EQ(answers[0], "read paused");
  EXPECT_EQ(answers[1], "the test reads nothing");
  EXPECT_NE(answers[2], "");
  EXPECT_NE(answers[3].find("no such message in the queue"), std::string::npos);
}

TEST_F(SchedulerTest, AMessageThatLeavesWhileItIsLookedAtIsSaidSo) {
  start();
  scheduler_->add_pause(1, Filter{});
  mail::SpoolId id = enqueue({"a@one.example"});
  run();
  std::string answer;
  scheduler_->end_matching(Command::remove, Filter{}, [] {});
  for (int i = 0; i < 40 && answer.find("left the queue") == answer.npos; ++i) {
    scheduler_->show(id, [&](Result<MessageRow> row) { answer = row.ok() ? "" : row.error().text; });
    world_.run_for(kSecond / 2000);
  }
  run();
  EXPECT_FALSE(answer.empty());
}

TEST_F(SchedulerTest, MailThatCannotBeReadWaitsAndIsNotLost) {
  start();
  scheduler_->add_pause(1, Filter{});
  enqueue({"a@one.example"});
  run();
  spool_->unreadable = true;
  scheduler_->remove_pause(1);
  run();
  auto rows = scheduler_->queue_rows();
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].waiting, 1u);
  EXPECT_EQ(rows[0].why, "waiting for its next attempt");
  EXPECT_NEAR(static_cast<double>(rows[0].next_attempt_ms - io_->wall_ms()), 900'000, 2'000);
  spool_->unreadable = false;
  run(905);
  EXPECT_EQ(sink_.count(events::Type::delivered), 1u);
}

TEST_F(SchedulerTest, TheQueueViewTellsEachStage) {
  config_.destination_connections = 1;
  start();
  mail::SpoolId first = enqueue({"a@one.example"});
  auto why = [this] {
    auto rows = scheduler_->queue_rows();
    return rows.size() == 1 ? rows[0].why : fmt::format("{} rows", rows.size());
  };
  EXPECT_EQ(why(), "looking for its MX hosts");
  agent_->hold_attempts = true;
  run();
  enqueue({"b@one.example"});
  EXPECT_EQ(why(), "all connections of the site are in use");
  auto rows = scheduler_->queue_rows();
  EXPECT_EQ(rows[0].oldest_ms, first.time_ms());
  EXPECT_EQ(rows[0].in_flight, 1u);
  EXPECT_EQ(rows[0].connections, 1u);
  spool_->stalled = true;
  agent_->finish_all();
  run();
  agent_->hold_attempts = true;
  enqueue({"c@one.example"});
  run();
  EXPECT_EQ(why(), "outcomes wait for the disk");
  spool_->go_on();
  run();
  EXPECT_EQ(why(), "being delivered");
}

TEST_F(SchedulerTest, ExplainTellsWhereMailStands) {
  start();
  mail::SpoolId of_two = enqueue({"a@one.example", "b@two.example"});
  auto why = [this](std::string_view domain) {
    auto rows = scheduler_->explain(domain, {});
    return rows.size() == 1 ? rows[0].why : fmt::format("{} rows", rows.size());
  };
  EXPECT_EQ(why("one.example"), "looking for its MX hosts");
  EXPECT_EQ(why("three.example"), "0 rows");
  LaneEnd end;
  end.cause = LaneEnd::Cause::failed;
  end.reply = "connection refused";
  agent_->fails = [end](const Site& site) {
    return site.key == "mx.one.example" ? std::optional(end) : std::nullopt;
  };
  all_results(Action::defer, 451, "4.2.0", events::Scope::message);
  run();
  EXPECT_EQ(why("one.example"), "held: connection refused");
  auto rows = scheduler_->explain({}, of_two);
  ASSERT_EQ(rows.size(), 2u);
  for (const ExplainRow& row : rows) {
    EXPECT_GT(row.next_attempt_ms, io_->wall_ms()) << row.domain;
    EXPECT_EQ(row.messages, 1u);
    EXPECT_EQ(row.held_until_ms > 0, row.domain == "one.example");
    EXPECT_EQ(row.waiting, row.domain == "two.example" ? 1u : 0u);
  }
  mail::SpoolId single = enqueue({"c@one.example"});
  EXPECT_EQ(scheduler_->explain({}, single).size(), 1u);
  EXPECT_TRUE(scheduler_->explain({}, ids_.make(io_->wall_ms())).empty());
}

TEST_F(SchedulerTest, RetryEndsHoldsToo) {
  start();
  LaneEnd end;
  end.cause = LaneEnd::Cause::failed;
  agent_->fail_connect = end;
  enqueue({"a@example.com"});
  run();
  agent_->fail_connect.reset();
  Filter other;
  other.domain = "other.example";
  scheduler_->retry_matching(other);
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 0u);
  scheduler_->retry_matching(Filter{});
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 1u);
}

TEST_F(SchedulerTest, ABounceOfOneMessageByItsIdIsReportedOnceADomain) {
  start();
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  Filter filter;
  filter.id = enqueue({"a@one.example", "b@two.example", "c@two.example"});
  enqueue({"d@one.example"});
  run();
  EXPECT_EQ(scheduler_->count_matching(filter), 3u);
  bool done = false;
  scheduler_->end_matching(Command::bounce, filter, [&] { done = true; });
  run(5);
  EXPECT_TRUE(done);
  EXPECT_EQ(sink_.count(events::Type::bounced), 3u);
  EXPECT_EQ(reporter_->reported.size(), 2u);
  EXPECT_EQ(scheduler_->stats().items, 1u);
  EXPECT_EQ(scheduler_->count_matching(filter), 0u);
  done = false;
  scheduler_->end_matching(Command::remove, filter, [&] { done = true; });
  run(2);
  EXPECT_TRUE(done) << "there is nothing left of it";
}

TEST_F(SchedulerTest, ADeleteReadsBackWhatItHasToCompare) {
  start();
  scheduler_->add_pause(1, Filter{});
  for (int i = 0; i < 20; ++i) enqueue({"a@example.com"}, "", i % 2 ? "x@example.org" : "y@example.org");
  run();
  Filter filter;
  filter.sender = "x@example.org";
  filter.domain = "example.com";
  bool done = false;
  scheduler_->end_matching(Command::remove, filter, [&] { done = true; });
  run(5);
  EXPECT_TRUE(done);
  EXPECT_EQ(sink_.count(events::Type::removed), 10u);
  EXPECT_EQ(scheduler_->stats().items, 10u);
}

TEST_F(SchedulerTest, PausedMailExpires) {
  config_.expire_after_ms = 3'600'000;
  start();
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  enqueue({"a@one.example", "b@two.example"});
  run();
  scheduler_->add_pause(1, Filter{});
  run(3'800);
  EXPECT_EQ(sink_.count(events::Type::expired), 2u);
  EXPECT_EQ(scheduler_->stats().items, 0u);
}

TEST(Filter, IsReadBackAsItWasWritten) {
  Filter filter;
  filter.domain = "d.example";
  filter.job = "news";
  filter.sender = "s@example.org";
  filter.account = "shop";
  filter.id = {1, 2};
  filter.before_ms = 1767225600123;
  std::string bytes = encode_filter(filter);
  Result<Filter> back = decode_filter(bytes);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(encode_filter(*back), bytes);
  EXPECT_EQ(back->before_ms, filter.before_ms);
  EXPECT_EQ(back->id, filter.id);
  EXPECT_FALSE(back->all());
  EXPECT_TRUE(decode_filter("")->all());
  for (std::string_view bad : {std::string_view("dexample"), std::string_view("\0", 1), std::string_view("ino id\0", 7),
                               std::string_view("zwhat\0", 6)}) {
    EXPECT_FALSE(decode_filter(bad).ok()) << bad;
  }
}

TEST(IdIndex, FindsWhatWasInsertedAndNotErased) {
  Prng prng(5);
  IdIndex index;
  std::vector<std::unique_ptr<Item>> items;
  for (int i = 0; i < 5000; ++i) {
    auto item = std::make_unique<Item>();
    item->id = {prng.next(), prng.next()};
    index.insert(*item);
    items.push_back(std::move(item));
    if (items.size() > 100 && prng.chance(0.5)) {
      size_t at = prng.below(items.size());
      index.erase(items[at]->id);
      EXPECT_EQ(index.find(items[at]->id), nullptr);
      items.erase(items.begin() + static_cast<std::ptrdiff_t>(at));
    }
  }
  for (auto& item : items) EXPECT_EQ(index.find(item->id), item.get());
  EXPECT_EQ(index.size(), items.size());
}

}  // namespace
}  // namespace millrace::queue
