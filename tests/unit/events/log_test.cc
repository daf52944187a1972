#include "events/log.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "reactor/mailbox.h"
#include "reactor/sim.h"

namespace millrace::events {
namespace {

using reactor::Crash;
using reactor::HostId;
using reactor::Io;
using reactor::Letter;
using reactor::Mailbox;
using reactor::SimOptions;
using reactor::SimWorld;

constexpr int64_t kSecond = 1'000'000'000;
constexpr const char* kPath = "/log/events.json";

SimOptions calm() {
  SimOptions options;
  options.faults.disk_latency_max_ns = 300'000;
  return options;
}

// A process of several shards with one log on the first, and a stand-in for the spool: it answers
// records in the order of their sequence, each to its shard's mailbox, and the shard emits from
// within.
class Process {
 public:
  Process(SimWorld& world, HostId host, size_t shards, EventLogOptions options = {})
      : world_(world) {
    options.path = kPath;
    options.node = "mta.example.com";
    for (size_t i = 0; i < shards; ++i) {
      ios_.push_back(world.make_io(host));
      mailboxes_.push_back(std::make_unique<Mailbox>(*ios_[i]));
      ios_[i]->on_wake = [box = mailboxes_[i].get()] { box->drain(); };
    }
    log_ = std::make_unique<EventLog>(*ios_[0], options);
    log_->on_emitted = [this](uint64_t sequence) {
      EXPECT_GT(sequence, emitted);
      emitted = sequence;
    };
    for (size_t i = 0; i < shards; ++i)
      shards_.push_back(
          std::make_unique<ShardEvents>(*ios_[i], *mailboxes_[i], *log_, *mailboxes_[0]));
  }

  // The record of that sequence is durable: its shard learns it by letter.
  void answer(size_t shard, uint64_t sequence, size_t reply_size = 20) {
    answers_.push_back(std::make_unique<Answer>());
    Answer& answer = *answers_.back();
    answer.process = this;
    answer.shard = shard;
    answer.sequence = sequence;
    answer.reply_size = reply_size;
    answer.address<&Process::on_answer>(this);
    mailboxes_[shard]->push(answer);
  }

  // The shard is busy with one long turn: letters wait.
  void stall(size_t shard) {
    ios_[shard]->on_wake = [] {};
  }
  void go_on(size_t shard) {
    ios_[shard]->on_wake = [box = mailboxes_[shard].get()] { box->drain(); };
    ios_[shard]->wake();
  }

  EventLog& log() { return *log_; }
  ShardEvents& shard(size_t i) { return *shards_[i]; }
  bool close() {
    world_.run_for(kSecond / 10);  // answers under way arrive
    bool closed = false;
    log_->close([&] { closed = true; });
    bool done = world_.run_until([&] { return closed; }, world_.now() + 60 * kSecond);
    world_.run_for(kSecond / 10);  // the last batches travel back
    return done;
  }

  uint64_t emitted = 0;

 private:
  struct Answer : Letter {
    Process* process;
    size_t shard;
    uint64_t sequence;
    size_t reply_size;
  };
  void on_answer(Letter& letter) {
    auto& answer = static_cast<Answer&>(letter);
    Event event;
    event.type = Type::delivered;
    event.session = answer.sequence;
    std::string reply(answer.reply_size, 'r');
    event.reply = reply;
    shards_[answer.shard]->emit(answer.sequence, event);
  }

  SimWorld& world_;
  std::vector<std::unique_ptr<Io>> ios_;
  std::vector<std::unique_ptr<Mailbox>> mailboxes_;
  std::vector<std::unique_ptr<Answer>> answers_;
  std::unique_ptr<EventLog> log_;
  std::vector<std::unique_ptr<ShardEvents>> shards_;
};

HostId host_with_directory(SimWorld& world) {
  HostId host = world.add_host({"192.0.2.1"});
  auto io = world.make_io(host);
  EXPECT_TRUE(io->make_directory("/log").ok());
  EXPECT_TRUE(io->sync_directory("/").ok());
  return host;
}

// The sequences in the file, in order; lines that are no JSON are counted apart.
struct Lines {
  std::vector<uint64_t> sequences;
  size_t broken = 0;
};
Lines lines_of(const std::string& content) {
  Lines lines;
  std::istringstream in(content);
  for (std::string line; std::getline(in, line);) {
    auto parsed = nlohmann::json::parse(line, nullptr, false);
    if (parsed.is_object() && parsed.contains("session")) {
      lines.sequences.push_back(parsed["session"]);
    } else {
      ++lines.broken;
    }
  }
  return lines;
}

TEST(EventLog, WritesSyncsAndReportsTheMark) {
  SimWorld world(1, calm());
  HostId host = host_with_directory(world);
  Process process(world, host, 1);
  ASSERT_TRUE(process.log().open().ok());
  for (uint64_t i = 1; i <= 10; ++i) process.answer(0, i);
  EXPECT_TRUE(world.run_until([&] { return process.emitted == 10; }, 5 * kSecond));
  EXPECT_EQ(lines_of(world.disk(host).content(kPath)).sequences,
            (std::vector<uint64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
  EXPECT_EQ(process.shard(0).bytes_waiting(), 0u);
  uint64_t syncs = process.log().stats().syncs;
  world.run_for(10 * kSecond);
  EXPECT_EQ(process.log().stats().syncs, syncs) << "an idle log does not sync";
  EXPECT_TRUE(process.close());
}

TEST(EventLog, SyncsAboutOnceASecondUnderLoad) {
  SimWorld world(2, calm());
  HostId host = host_with_directory(world);
  Process process(world, host, 2);
  ASSERT_TRUE(process.log().open().ok());
  uint64_t sequence = 0;
  for (int i = 0; i < 5000; ++i) {
    ++sequence;
    process.answer(sequence % 2, sequence);
    world.run_for(1'000'000);
  }
  EXPECT_GE(process.log().stats().syncs, 4u);
  EXPECT_LE(process.log().stats().syncs, 8u);
  EXPECT_GT(process.emitted, sequence - 2500) << "the mark follows under load";
  EXPECT_TRUE(process.close());
  EXPECT_EQ(process.emitted, sequence);
}

TEST(EventLog, TheMarkWaitsForAShardThatHasNotSeenItsAnswerYet) {
  SimWorld world(10, calm());
  HostId host = host_with_directory(world);
  Process process(world, host, 3);
  ASSERT_TRUE(process.log().open().ok());
  process.stall(1);
  process.answer(1, 1);
  process.answer(2, 2);
  world.run_for(5 * kSecond);
  EXPECT_EQ(process.emitted, 0u) << "record 1 has an event that is not in the file";
  process.go_on(1);
  EXPECT_TRUE(world.run_until([&] { return process.emitted == 2; }, world.now() + 5 * kSecond));
  EXPECT_TRUE(process.close());
}

TEST(EventLog, AppendsToWhatIsThereAndMendsACutLine) {
  SimWorld world(3, calm());
  HostId host = host_with_directory(world);
  for (uint64_t start : {1, 2}) {
    Process process(world, host, 1);
    ASSERT_TRUE(process.log().open().ok());
    process.answer(0, start);
    EXPECT_TRUE(process.close());
  }
  {
    auto io = world.make_io(host);
    reactor::FileOptions options;
    options.write = true;
    auto file = io->open_file(kPath, options);
    ASSERT_TRUE(file.ok());
    reactor::Op op;
    struct Owner {
      bool done = false;
      void on_done(reactor::Completion&) { done = true; }
    } owner;
    op.bind<&Owner::on_done>(&owner);
    char cut[] = "{\"version\":1,\"id\":\"cu";
    iovec part{cut, sizeof cut - 1};
    io->write(op, *file, std::span(&part, 1), *io->file_size(*file), true);
    EXPECT_TRUE(world.run_until([&] { return owner.done; }, world.now() + kSecond));
    io->close(*file);
  }
  Process process(world, host, 1);
  ASSERT_TRUE(process.log().open().ok());
  process.answer(0, 3);
  EXPECT_TRUE(process.close());
  Lines lines = lines_of(world.disk(host).content(kPath));
  EXPECT_EQ(lines.sequences, (std::vector<uint64_t>{1, 2, 3}));
  EXPECT_EQ(lines.broken, 1u);
}

TEST(EventLog, RotatesPastItsSizeBetweenLines) {
  SimWorld world(4, calm());
  HostId host = host_with_directory(world);
  EventLogOptions options;
  options.max_size = 4096;
  Process process(world, host, 1, options);
  ASSERT_TRUE(process.log().open().ok());
  for (uint64_t i = 1; i <= 200; ++i) {
    process.answer(0, i);
    world.run_for(20'000'000);
  }
  EXPECT_TRUE(process.close());
  EXPECT_GT(process.log().stats().rotations, 3u);
  std::set<uint64_t> seen;
  auto names = world.disk(host).list("/log");
  ASSERT_TRUE(names.ok());
  EXPECT_EQ(names->size(), process.log().stats().rotations + 1);
  for (const std::string& name : *names) {
    Lines lines = lines_of(world.disk(host).content("/log/" + name));
    EXPECT_EQ(lines.broken, 0u);
    for (uint64_t sequence : lines.sequences) EXPECT_TRUE(seen.insert(sequence).second);
    EXPECT_TRUE(name == "events.json" || name.starts_with("events.json.20260101T0000")) << name;
  }
  EXPECT_EQ(seen.size(), 200u);
  EXPECT_EQ(process.emitted, 200u);
}

TEST(EventLog, ReopensAfterTheFileWasRenamed) {
  SimWorld world(5, calm());
  HostId host = host_with_directory(world);
  Process process(world, host, 1);
  ASSERT_TRUE(process.log().open().ok());
  process.answer(0, 1);
  world.run_for(kSecond / 10);
  auto other = world.make_io(host);
  ASSERT_TRUE(other->rename_file(kPath, "/log/old.json").ok());
  process.answer(0, 2);
  world.run_for(kSecond / 10);
  process.log().reopen();
  process.answer(0, 3);
  EXPECT_TRUE(process.close());
  EXPECT_EQ(lines_of(world.disk(host).content("/log/old.json")).sequences,
            (std::vector<uint64_t>{1, 2}));
  EXPECT_EQ(lines_of(world.disk(host).content(kPath)).sequences, (std::vector<uint64_t>{3}));
}

TEST(EventLog, FullDiskLosesNothingAndSaysBehind) {
  SimWorld world(6, calm());
  HostId host = host_with_directory(world);
  EventLogOptions options;
  options.most_waiting = 10'000;
  Process process(world, host, 2, options);
  ASSERT_TRUE(process.log().open().ok());
  world.disk(host).set_capacity(2000);
  uint64_t sequence = 0;
  while (!process.shard(1).behind() && sequence < 1000) {
    process.answer(1, ++sequence);
    world.run_for(1'000'000);
  }
  EXPECT_TRUE(process.shard(1).behind());
  EXPECT_FALSE(process.shard(0).behind()) << "it has emitted nothing";
  EXPECT_FALSE(process.log().last_error().empty());
  EXPECT_LT(process.emitted, sequence);
  world.disk(host).set_capacity(uint64_t{1} << 30);
  EXPECT_TRUE(
      world.run_until([&] { return process.emitted == sequence; }, world.now() + 10 * kSecond));
  EXPECT_FALSE(process.shard(1).behind());
  EXPECT_TRUE(process.log().last_error().empty());
  Lines lines = lines_of(world.disk(host).content(kPath));
  EXPECT_EQ(lines.broken, 0u);
  ASSERT_EQ(lines.sequences.size(), sequence);
  for (uint64_t i = 0; i < sequence; ++i) EXPECT_EQ(lines.sequences[i], i + 1) << "in order";
  EXPECT_TRUE(process.close());
}

TEST(EventLog, FailedSyncFreezesTheMarkAndBeginsANewFile) {
  SimWorld world(7, calm());
  HostId host = host_with_directory(world);
  Process process(world, host, 1);
  ASSERT_TRUE(process.log().open().ok());
  process.answer(0, 1);
  EXPECT_TRUE(world.run_until([&] { return process.emitted == 1; }, 5 * kSecond));
  world.faults().sync_error = 1;
  process.answer(0, 2);
  world.run_for(3 * kSecond);
  EXPECT_LE(process.log().stats().errors, 5u) << "a sync for an event, not one after the other";
  world.faults().sync_error = 0;
  process.answer(0, 3);
  world.run_for(3 * kSecond);
  EXPECT_EQ(process.emitted, 1u) << "the spool must keep what may be lost";
  EXPECT_TRUE(process.close());
  EXPECT_EQ(lines_of(world.disk(host).content(kPath)).sequences.back(), 3u);
  EXPECT_GE(world.disk(host).list("/log")->size(), 2u);
}

TEST(EventLog, CloseGivesUpOnADiskThatRefuses) {
  SimWorld world(8, calm());
  HostId host = host_with_directory(world);
  Process process(world, host, 2);
  ASSERT_TRUE(process.log().open().ok());
  world.faults().write_error = 1;
  process.answer(1, 1);
  EXPECT_TRUE(process.close());
  EXPECT_EQ(process.emitted, 0u);
  EXPECT_EQ(process.shard(1).bytes_waiting(), 0u);
}

TEST(EventLog, PathThatCannotBeOpenedIsNamed) {
  SimWorld world(9, calm());
  HostId host = world.add_host({"192.0.2.1"});  // no /log there
  Process process(world, host, 1);
  Status status = process.log().open();
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().text.find(kPath), std::string::npos);
}

// Whatever is reported as emitted survives a power cut at any moment, over many shards and faults;
// and without the cut everything is in the file.
TEST(EventLog, WhatIsMarkedEmittedSurvivesAPowerCut) {
  size_t marked = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SimOptions sim;
    sim.faults.short_write = 0.3;
    sim.faults.disk_stall = 0.01;
    sim.faults.disk_stall_max_ns = kSecond;
    sim.faults.write_error = seed % 3 == 0 ? 0.05 : 0;
    SimWorld world(seed, sim);
    HostId host = host_with_directory(world);
    EventLogOptions options;
    if (seed % 2 == 0) options.max_size = 3000;
    auto process = std::make_unique<Process>(world, host, 1 + seed % 4, options);
    ASSERT_TRUE(process->log().open().ok());
    world.faults().sync_error = seed % 5 == 0 ? 0.2 : 0;
    uint64_t sequence = 0;
    uint64_t last = 200 + world.chance().below(400);
    while (sequence < last) {
      for (uint64_t n = world.chance().below(4) + 1; n > 0; --n) {
        ++sequence;
        process->answer(world.chance().below(1 + seed % 4), sequence, world.chance().below(200));
      }
      world.run_for(static_cast<int64_t>(world.chance().below(40'000'000)));
    }
    uint64_t emitted = process->emitted;
    marked += emitted > 0;
    world.crash(host, Crash::power);
    process.reset();
    std::set<uint64_t> survived;
    auto names = world.disk(host).list("/log");
    ASSERT_TRUE(names.ok());
    for (const std::string& name : *names) {
      for (uint64_t each : lines_of(world.disk(host).content("/log/" + name)).sequences)
        survived.insert(each);
    }
    for (uint64_t i = 1; i <= emitted; ++i)
      ASSERT_TRUE(survived.contains(i)) << i << " of " << emitted;
  }
  EXPECT_GT(marked, 30u) << "the cut must mostly come after a mark";
}

}  // namespace
}  // namespace millrace::events
