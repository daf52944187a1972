#include "queue/scheduler.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "config/credentials.h"
#include "config/values.h"
#include "fixture.h"

namespace millrace::queue {
namespace {

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

TEST_F(SchedulerTest, AnOutcomeThatTheDiskRefusesIsWrittenAgainAndToldOnce) {
  start();
  spool_->refuse_notes = true;
  enqueue({"a@example.com"});
  enqueue({"b@example.com"});
  run(5);
  EXPECT_TRUE(sink_.seen.empty());
  EXPECT_EQ(scheduler_->stats().items, 2u);
  EXPECT_GT(spool_->notes.size(), 4u);
  spool_->refuse_notes = false;
  run(2);
  EXPECT_EQ(sink_.count(events::Type::delivered), 2u);
  EXPECT_EQ(agent_->attempted.size(), 2u);
  EXPECT_EQ(scheduler_->stats().items, 0u);
}

// The attempt had begun in time.
TEST_F(SchedulerTest, MailWhoseTimeEndsDuringAnAttemptExpiresUnlessThatDelivers) {
  config_.expire_after_ms = 60'000;
  start();
  agent_->hold_attempts = true;
  enqueue({"a@one.example", "b@two.example"});
  enqueue({"c@three.example"});
  enqueue({"d@four.example"});
  run(100);
  agent_->serve = [](Attempt& attempt) {
    const std::string& domain = attempt.message->envelope.recipients[attempt.recipients[0]].domain;
    attempt.results[0].action = domain == "four.example" ? Action::bounce : domain == "three.example" ? Action::delivered : Action::defer;
    attempt.results[0].reply = "as the test wants it";
  };
  agent_->finish_all();
  run();
  EXPECT_EQ(sink_.count(events::Type::expired), 2u);
  EXPECT_EQ(sink_.count(events::Type::bounced), 1u);
  EXPECT_EQ(sink_.count(events::Type::delivered), 1u);
  EXPECT_EQ(sink_.count(events::Type::deferred), 0u);
  EXPECT_EQ(reporter_->reported.size(), 3u);
  EXPECT_EQ(scheduler_->stats().items, 0u);
}

TEST_F(SchedulerTest, AReportThatIsNotSentIsSaidSo) {
  start();
  reporter_->sends = false;
  all_results(Action::bounce, 550, "5.1.1");
  enqueue({"a@example.com"});
  run();
  ASSERT_EQ(sink_.count(events::Type::bounced), 1u);
  EXPECT_FALSE(sink_.seen[0].report_sent);
}

TEST_F(SchedulerTest, ADomainWithoutUsableHostsAndALoopBounceEachWithItsReason) {
  start();
  agent_->route = [](const std::string& domain) {
    dns::Route found;
    found.verdict = domain == "loop.example" ? dns::Verdict::loop : dns::Verdict::no_usable_host;
    found.reason = "said the test";
    return found;
  };
  enqueue({"a@loop.example"});
  run();
  enqueue({"a@hostless.example"});
  run();
  ASSERT_EQ(sink_.count(events::Type::bounced), 2u);
  EXPECT_EQ(sink_.seen[0].enhanced, "5.4.6");
  EXPECT_EQ(sink_.seen[0].bounce_class, "routing-errors");
  EXPECT_EQ(sink_.seen[1].enhanced, "5.4.4");
  EXPECT_EQ(sink_.seen[1].bounce_class, "bad-domain");
}

TEST_F(SchedulerTest, MailOfManyJobsOfADomainStaysApartAndGoes) {
  start();
  agent_->hold_attempts = true;
  std::set<std::string> jobs;
  for (int i = 0; i < 60; ++i) {
    jobs.insert(fmt::format("j{}", i % 20));
    enqueue({"a@example.com"}, fmt::format("j{}", i % 20));
  }
  auto rows = scheduler_->explain("example.com", {});
  EXPECT_EQ(rows.size(), jobs.size());
  for (const auto& row : rows) EXPECT_EQ(row.messages, 3u) << row.job;
  agent_->finish_all();
  run(2);
  EXPECT_EQ(sink_.count(events::Type::delivered), 60u);
}

TEST_F(SchedulerTest, IntakeIsRefusedWhileTheRelayStopsOrItsMemoryIsSpokenFor) {
  struct Waiter final : AdmissionWaiter {
    void on_admitted(bool refused, std::string_view why) override { answers.push_back({refused, std::string(why)}); }
    std::vector<std::pair<bool, std::string>> answers;
  } waiter;
  std::string why;
  config_.memory = 4000;
  start();
  EXPECT_EQ(scheduler_->admit(waiter, why), Admission::now);
  agent_->hold_attempts = true;
  for (int i = 0; i < 11; ++i) enqueue({"a@example.com"});
  EXPECT_EQ(scheduler_->admit(waiter, why), Admission::refused);
  EXPECT_EQ(why, "too many messages queued for --memory");
  EXPECT_EQ(scheduler_->stats().admissions_refused, 1u);
  scheduler_->stop([] {});
  EXPECT_EQ(scheduler_->admit(waiter, why), Admission::refused);
  EXPECT_EQ(why, "shutting down");
  agent_->finish_all();
  run();
}

TEST_F(SchedulerTest, AnAccountsMailLeavesFromItsSources) {
  for (const char* address : {"192.0.2.11", "192.0.2.12", "192.0.2.13"}) {
    config_.sources.push_back(*config::parse_source(address));
  }
  const std::string password =
      "password = \"$6$rounds=1000$saltstring$2BkAo106CG84raQcWpAlhyy6TSSkAsL1nfvBCoezLYyerUzY2l8axTvq6NynEt7SQAx3/cdop9ds0po8uaeHq0\"\n";
  auto accounts = config::Credentials::parse(
      "[account.shop]\n" + password + "sources = [\"192.0.2.13\"]\n[account.any]\n" + password, "accounts.toml", config_.sources);
  ASSERT_TRUE(accounts.ok()) << accounts.error().text;
  config_.accounts = *accounts;
  start();
  std::map<std::string, std::set<unsigned>> used;
  agent_->on_resolve = [&](const Destination& destination) { used[destination.domain].insert(destination.source); };
  for (int i = 0; i < 40; ++i) {
    for (const char* account : {"shop", "any", "gone"}) {
      MessageRef made = message({std::string("a@") + account + ".example"});
      made->envelope.account = account;
      enqueue(std::move(made));
    }
  }
  run(2);
  EXPECT_EQ(used["shop.example"], std::set<unsigned>{2});
  EXPECT_EQ(used["any.example"].size(), 3u);
  EXPECT_EQ(used["gone.example"].size(), 3u);
}

TEST_F(SchedulerTest, AStateThatIsNotOfItsMessageTriesAllItsRecipientsAgain) {
  build();
  MessageRef made = message({"a@one.example", "b@two.example"});
  spool::Recovered found;
  found.id = made->id;
  found.location = made->location;
  found.metadata = spool_->messages[made->id].metadata;
  std::string state;
  encode_state({.events = 7, .recipients = {{1, 2, io_->wall_ms(), 0}, {9, 2, io_->wall_ms(), 0}}}, state);
  for (std::string_view bytes : {std::string_view(state), std::string_view("\x07", 1)}) {
    made->id = found.id = ids_.make(io_->wall_ms());
    spool_->messages[found.id] = spool_->messages.begin()->second;
    found.state = bytes;
    scheduler_->recover(found);
  }
  EXPECT_EQ(scheduler_->stats().items, 4u);
  found.id = ids_.make(io_->wall_ms());
  found.metadata = "no metadata";
  scheduler_->recover(found);
  EXPECT_EQ(scheduler_->stats().items, 4u) << "it stays in the spool";
  scheduler_->start(*spool_, *reporter_);
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 4u);
  EXPECT_EQ(scheduler_->stats().items, 0u);
}

// As at the end of a process that does not wait.
TEST_F(SchedulerTest, ASchedulerMayEndWithMailInEveryStage) {
  config_.destination_connections = 2;
  config_.memory = 1u << 20;
  start();
  enqueue({"a@idle.example"});
  run();  // its connection idles
  spool_->stalled = true;
  enqueue({"a@recording.example"});
  enqueue({"a@one.example", "b@two.example"});
  world_.run_for(kSecond / 100);
  spool_->stalled_reads = true;
  agent_->connect_ns = 10 * kSecond;
  enqueue({"a@connecting.example"});
  world_.run_for(kSecond / 100);
  EXPECT_GT(scheduler_->stats().items, 2u);
  EXPECT_GT(scheduler_->stats().lanes, 0u);
  reset();
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
  EXPECT_FALSE(decode_state("\x02").ok()) << "of a newer version";
  EXPECT_FALSE(decode_state(std::string(12, '\xff')).ok()) << "a number without end";
  std::string_view left = "\x05" "abc", event;
  EXPECT_FALSE(take_event_bytes(left, event)) << "longer than what is there";
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
