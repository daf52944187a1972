// What operators do and see: pauses, deletes, bounces, retries; the views of queue, message and domain.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "fixture.h"

namespace millrace::queue {
namespace {

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

TEST_F(SchedulerTest, PausesOfASenderAndOfAMessageHoldThatMailAlone) {
  start();
  Filter sender, one;
  sender.sender = "x@example.org";
  scheduler_->add_pause(1, sender);
  enqueue({"a@example.com"}, "", "x@example.org");
  MessageRef both = message({"b@example.com"}, "", "x@example.org");
  one.id = both->id;
  scheduler_->add_pause(2, one);
  enqueue(std::move(both));
  enqueue({"c@example.com"}, "", "y@example.org");
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 1u);
  auto rows = scheduler_->queue_rows();
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].paused, 2u);
  EXPECT_EQ(rows[0].why, "paused by the operator");
  scheduler_->remove_pause(1);
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 2u) << "one of the two is paused by itself, too";
  scheduler_->remove_pause(2);
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 3u);
  EXPECT_EQ(spool_->reads, 2u) << "what is paused is not in memory";
}

TEST_F(SchedulerTest, APauseOfASenderMeetsRetriesThatAreReadAhead) {
  start();
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  for (int i = 0; i < 30; ++i) enqueue({"a@example.com"}, "", i % 3 ? "x@example.org" : "y@example.org");
  run(2);
  Filter sender;
  sender.sender = "x@example.org";
  scheduler_->add_pause(1, sender);
  size_t before = agent_->attempted.size();
  run(400);
  EXPECT_EQ(agent_->attempted.size(), before + 10);
  EXPECT_EQ(scheduler_->queue_rows()[0].paused, 20u);
}

TEST_F(SchedulerTest, PausesOfAnAccountOrADomainHoldThatMailAlone) {
  start();
  Filter account, domain;
  account.account = "shop";
  domain.domain = "one.example";
  domain.job = "news";
  scheduler_->add_pause(1, account);
  scheduler_->add_pause(2, domain);
  MessageRef of_shop = message({"a@two.example"});
  of_shop->envelope.account = "shop";
  enqueue(std::move(of_shop));
  enqueue({"b@one.example"}, "news");
  enqueue({"c@one.example"}, "other");
  enqueue({"d@two.example"}, "news");
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 2u);
  EXPECT_EQ(scheduler_->count_matching(account), 1u);
  EXPECT_EQ(scheduler_->count_matching(domain), 1u);
  scheduler_->remove_pause(1);
  run();
  EXPECT_EQ(sink_.count(events::Type::delivered), 3u);
}

TEST_F(SchedulerTest, ADeleteOfPausedMailEndsIt) {
  start();
  Filter sender;
  sender.sender = "x@example.org";
  scheduler_->add_pause(1, sender);
  enqueue({"a@example.com"}, "", "x@example.org");
  enqueue({"b@one.example", "b@two.example"}, "", "x@example.org");
  run();
  bool done = false;
  scheduler_->end_matching(Command::remove, sender, [&] { done = true; });
  run(5);
  EXPECT_TRUE(done);
  EXPECT_EQ(sink_.count(events::Type::removed), 3u);
  EXPECT_EQ(scheduler_->stats().items, 0u);
}

// Their CRC-32C, all that is in memory of a sender whose message is not, is the same.
TEST_F(SchedulerTest, ADeleteSparesMailOfASenderWithTheSameHash) {
  start();
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  enqueue({"a@example.com"}, "", "ccaoacux@a.example");
  enqueue({"b@example.com"}, "", "wcjifoae@a.example");
  run(2);
  int64_t due_ms = scheduler_->queue_rows()[0].next_attempt_ms;
  Filter sender;
  sender.sender = "ccaoacux@a.example";
  bool done = false;
  scheduler_->end_matching(Command::remove, sender, [&] { done = true; });
  run(5);
  EXPECT_TRUE(done);
  ASSERT_EQ(sink_.count(events::Type::removed), 1u);
  EXPECT_EQ(sink_.seen.back().recipient, "a@example.com");
  EXPECT_EQ(scheduler_->stats().items, 1u);
  EXPECT_EQ(agent_->attempted.size(), 2u) << "its time has not come";
  EXPECT_GE(scheduler_->queue_rows()[0].next_attempt_ms, due_ms);
  // And while its outcome is on its way.
  run(400);
  ASSERT_EQ(agent_->attempted.size(), 3u);
  spool_->stalled = true;
  run(700);
  ASSERT_EQ(agent_->attempted.size(), 4u);
  scheduler_->end_matching(Command::remove, sender, [&] { done = true; });
  done = false;
  run(2);
  spool_->go_on();
  run(5);
  EXPECT_TRUE(done);
  EXPECT_EQ(sink_.count(events::Type::removed), 1u);
  EXPECT_EQ(agent_->attempted.size(), 4u);
  EXPECT_EQ(scheduler_->queue_rows()[0].waiting, 1u);
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

TEST_F(SchedulerTest, TheQueueViewTellsWhenADomainIsLookedUpAgainAndTheFirstOfMoreRetries) {
  start();
  bool known = false;
  agent_->route = [&](const std::string& domain) {
    dns::Route found;
    found.verdict = known ? dns::Verdict::usable : dns::Verdict::temporary;
    found.reason = "no name server answers";
    found.site = "mx." + domain;
    found.valid_until_ns = INT64_MAX;
    return found;
  };
  enqueue({"a@one.example"});
  run();
  auto rows = scheduler_->queue_rows();
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].why, "held: no name server answers");
  EXPECT_GT(rows[0].next_attempt_ms, io_->wall_ms());
  known = true;
  all_results(Action::defer, 451, "4.0.0", events::Scope::message);
  run(400);
  int64_t first = scheduler_->queue_rows()[0].next_attempt_ms;
  run(100);
  enqueue({"b@one.example"});
  run();
  rows = scheduler_->queue_rows();
  EXPECT_EQ(rows[0].waiting, 2u);
  EXPECT_EQ(rows[0].why, "waiting for its next attempt");
  EXPECT_EQ(rows[0].next_attempt_ms, std::min(first, sink_.seen.back().next_attempt_ms));
  all_results(Action::delivered, 250, "2.0.0");
  run(3600);
  EXPECT_TRUE(scheduler_->queue_rows().empty()) << "a destination without mail is no row";
}

TEST_F(SchedulerTest, ShowTellsOfMailInMemoryAndInDelivery) {
  start();
  agent_->hold_attempts = true;
  mail::SpoolId id = enqueue({"a@one.example"});
  run();
  bool told = false;
  scheduler_->show(id, [&](Result<MessageRow> row) {
    told = true;
    ASSERT_TRUE(row.ok());
    EXPECT_TRUE(row->resident);
    ASSERT_EQ(row->recipients.size(), 1u);
    EXPECT_EQ(row->recipients[0].state, "in delivery");
  });
  EXPECT_TRUE(told);
  spool_->stalled = true;
  agent_->finish_all();
  run();
  scheduler_->show(id, [&](Result<MessageRow> row) {
    ASSERT_TRUE(row.ok());
    EXPECT_EQ(row->recipients[0].state, "outcome being recorded");
  });
}

TEST_F(SchedulerTest, ExplainTellsOfMailInDeliveryPausedBehindTheDiskAndOfNoUse) {
  config_.destination_connections = 1;
  start();
  auto row = [this](std::string_view domain) {
    auto rows = scheduler_->explain(domain, {});
    EXPECT_EQ(rows.size(), 1u) << domain;
    return rows.empty() ? ExplainRow{} : rows[0];
  };
  agent_->hold_attempts = true;
  enqueue({"a@one.example"});
  run();
  EXPECT_EQ(row("one.example").in_flight, 1u);
  spool_->stalled = true;
  agent_->finish_all();
  run();
  enqueue({"b@one.example"});
  run();
  EXPECT_EQ(row("one.example").why, "outcomes wait for the disk");
  spool_->go_on();
  Filter paused;
  paused.domain = "one.example";
  scheduler_->add_pause(1, paused);
  enqueue({"c@one.example"});
  run();
  EXPECT_EQ(row("one.example").why, "paused by the operator");
  // What a domain without mail exchangers has queued behind a pause.
  agent_->route = [](const std::string&) {
    dns::Route found;
    found.verdict = dns::Verdict::null_mx;
    found.reason = "the domain takes no mail";
    return found;
  };
  enqueue({"d@closed.example"});
  std::string why;
  agent_->on_resolve = [&](const Destination&) {
    for (int i = 0; i < 5; ++i) enqueue({"e@closed.example"});
  };
  spool_->stalled = true;
  run();
  for (const ExplainRow& one : scheduler_->explain("closed.example", {})) why = one.why;
  EXPECT_EQ(why, "looking for its MX hosts");
  spool_->go_on();
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
  filter.tenant = "acme";
  filter.id = {1, 2};
  filter.before_ms = 1767225600123;
  std::string bytes = encode_filter(filter);
  Result<Filter> back = decode_filter(bytes);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(encode_filter(*back), bytes);
  EXPECT_EQ(back->before_ms, filter.before_ms);
  EXPECT_EQ(back->id, filter.id);
  EXPECT_EQ(back->tenant, "acme");
  EXPECT_FALSE(back->all());
  EXPECT_TRUE(decode_filter("")->all());
  for (std::string_view bad : {std::string_view("dexample"), std::string_view("\0", 1), std::string_view("ino id\0", 7),
                               std::string_view("zwhat\0", 6)}) {
    EXPECT_FALSE(decode_filter(bad).ok()) << bad;
  }
}

TEST(Filter, NamesAllOnlyWhenItNamesNothing) {
  std::string Filter::* const texts[] = {&Filter::domain, &Filter::job, &Filter::sender, &Filter::account, &Filter::tenant};
  for (auto text : texts) {
    Filter filter;
    filter.*text = "x";
    EXPECT_FALSE(filter.all());
    EXPECT_EQ(filter.of_sub_queues(), text != &Filter::sender);
  }
  Filter one, earlier;
  one.id = {1, 2};
  earlier.before_ms = 1;
  EXPECT_FALSE(one.all());
  EXPECT_FALSE(one.of_sub_queues());
  EXPECT_FALSE(earlier.of_sub_queues());
}

TEST(Command, IsNamedAsOperatorsKnowIt) {
  EXPECT_EQ(to_string(Command::pause), "pause");
  EXPECT_EQ(to_string(Command::resume), "resume");
  EXPECT_EQ(to_string(Command::retry), "retry");
  EXPECT_EQ(to_string(Command::remove), "delete");
  EXPECT_EQ(to_string(Command::bounce), "bounce");
}

}  // namespace
}  // namespace millrace::queue
