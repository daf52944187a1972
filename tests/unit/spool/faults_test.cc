// What the spool does when the disk fails, lies, fills up or was written by somebody else.
#include "harness.h"
#include "spool/format.h"

namespace millrace::spool {
namespace {

using namespace testing;
using reactor::Crash;

std::string segment_path(const Location& at) { return "/spool/" + segment_name(at.segment); }

TEST(SpoolFaults, FailedWriteGoesOnInANewSegment) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SpoolWorld w(seed);
    ASSERT_EQ(w.start(), "");
    Location before = w.append(id(1), 3000);
    w.world.run_for(kSecond);  // the reserve is prepared
    // Exactly one write fails.
    w.world.faults().write_error = 1;
    Message& m = w.send(id(2), 3000);
    Outcome& note = w.give_note(id(1), before, false, "tried", "deferred");
    w.world.run_for(20'000);
    w.world.faults().write_error = 0;
    ASSERT_TRUE(w.run([&] { return m.answered && note.answered; }));
    ASSERT_TRUE(note.note.status.ok());
    if (m.append.status.ok()) {
      EXPECT_EQ(w.check(id(2), m.append.location, 3000), "intact");
    } else {
      EXPECT_FALSE(m.append.close_silently);
    }
    bool accepted = m.append.status.ok();
    EXPECT_EQ(w.check(id(1), before, 3000), "intact");
    w.crash(Crash::power);
    ASSERT_EQ(w.start(), "");
    EXPECT_EQ(w.memory.messages.contains(id(2)), accepted) << "seed " << seed;
    EXPECT_EQ(w.memory.messages.at(id(1)).state, "tried");
  }
}

TEST(SpoolFaults, DeadDiskClosesSilentlyStopsIntakeAndComesBack) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SpoolWorld w(seed);
    ASSERT_EQ(w.start(), "");
    Location first = w.append(id(1), 3000);
    w.world.run_for(kSecond);
    std::vector<bool> told;
    w.spools[0]->on_writable = [&](bool writable, const std::string& why) {
      told.push_back(writable);
      EXPECT_EQ(why.empty(), writable);
    };
    w.world.faults().write_error = 1;
    Message& lost = w.send(id(2), 3000);
    Outcome& note = w.give_note(id(1), first, false, "tried", "deferred");
    ASSERT_TRUE(w.run([&] { return lost.answered; }));
    EXPECT_FALSE(lost.append.status.ok());
    EXPECT_TRUE(lost.append.close_silently);
    EXPECT_EQ(told, std::vector<bool>{false});
    EXPECT_FALSE(w.spools[0]->reserve(1));
    Message& refused = w.send(id(3), 3000);
    ASSERT_TRUE(w.run([&] { return refused.answered; }));
    EXPECT_FALSE(refused.append.status.ok());
    EXPECT_FALSE(refused.append.close_silently) << "nothing of it was written";
    w.world.run_for(5 * kSecond);
    EXPECT_FALSE(note.answered) << "a note waits for the disk";
    EXPECT_GT(w.spools[0]->stats().oldest_unsynced_ns, 0);
    w.world.faults().write_error = 0;
    ASSERT_TRUE(w.run([&] { return note.answered; }));
    EXPECT_TRUE(note.note.status.ok());
    w.world.run_for(kSecond);
    EXPECT_EQ(told, (std::vector<bool>{false, true}));
    EXPECT_TRUE(w.spools[0]->reserve(1));
    Location third = w.append(id(4), 3000);
    EXPECT_EQ(w.check(id(4), third, 3000), "intact");
    w.crash(Crash::power);
    ASSERT_EQ(w.start(), "");
    EXPECT_EQ(w.memory.messages.at(id(1)).state, "tried");
    EXPECT_TRUE(w.memory.messages.contains(id(4)));
    EXPECT_FALSE(w.memory.messages.contains(id(3)));
  }
}

// Errors now and then, with power cuts: what was accepted stays, what was refused does not come back,
// what was final does not, either.
TEST(SpoolFaults, RandomErrorsLoseNothingAndResurrectNothing) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    auto config = small_config();
    config.events.clear();
    config.compact_below_percent = 60;
    SpoolWorld w(seed, config);
    Prng chance(seed);
    std::map<mail::SpoolId, Location> live;
    std::set<mail::SpoolId> refused, finished, unknown;
    std::map<mail::SpoolId, std::string> states;
    uint64_t next = 0;
    for (int round = 0; round < 3; ++round) {
      ASSERT_EQ(w.start(), "");
      ASSERT_EQ(w.summary.records_damaged, 0u) << "seed " << seed << ": " << w.summary.remarks.front();
      for (auto& [at, location] : live) {
        ASSERT_TRUE(w.memory.messages.contains(at)) << "seed " << seed << " round " << round << " lost " << at.low;
        ASSERT_EQ(w.memory.messages.at(at).state, states[at]) << "seed " << seed << " message " << at.low;
      }
      for (auto& [at, m] : w.memory.messages) {
        ASSERT_FALSE(refused.contains(at)) << "seed " << seed << " refused " << at.low;
        ASSERT_FALSE(finished.contains(at)) << "seed " << seed << " round " << round << " finished " << at.low;
        live[at] = m.location;
        states[at] = m.state;
      }
      w.spools[0]->on_moved = [&](const mail::SpoolId& which, Location, Location to) {
        if (live.contains(which)) live[which] = to;
      };
      for (int i = 0; i < 120; ++i) {
        w.world.faults().write_error = chance.chance(0.1) ? 0.5 : 0;
        if (chance.chance(0.5) || live.empty()) {
          mail::SpoolId at = id(++next);
          Message& m = w.send(at, chance.below(12000), 4000);
          ASSERT_TRUE(w.run([&] { return m.answered; }));
          if (m.append.status.ok()) {
            live[at] = m.append.location;
            states[at] = "";
          } else if (!m.append.close_silently) {
            refused.insert(at);
          }
          m.buffers.clear();
        } else {
          auto it = live.begin();
          std::advance(it, static_cast<ptrdiff_t>(chance.below(live.size())));
          mail::SpoolId at = it->first;
          bool final = chance.chance(0.6);
          std::string state = final ? "" : "state " + std::to_string(i);
          Outcome& o = w.give_note(at, it->second, final, state, "");
          w.world.run_for(static_cast<int64_t>(chance.below(2 * kSecond)));
          w.world.faults().write_error = 0;
          ASSERT_TRUE(w.run([&] { return o.answered; }));
          if (final) {
            finished.insert(at);
            live.erase(at);
          } else {
            states[at] = state;
          }
        }
      }
      w.world.faults().write_error = 0;
      w.world.run_for(static_cast<int64_t>(chance.below(4 * kSecond)));
      auto copy = live;
      for (auto& [at, location] : copy) {
        std::string body = w.read(at, live[at]);
        ASSERT_EQ(w.last_error, 0) << "seed " << seed << " round " << round << ": " << body;
      }
      w.crash(Crash::power);
    }
  }
}

TEST(SpoolFaults, FullDiskRefusesMailAndStillRecordsOutcomes) {
  reactor::SimOptions options;
  options.disk_bytes = 4 << 20;
  auto config = small_config();
  config.events.clear();
  SpoolWorld w(5, config, options);
  ASSERT_EQ(w.start(), "");
  std::vector<std::pair<mail::SpoolId, Location>> kept;
  uint64_t n = 0;
  bool refused = false;
  while (!refused && n < 2000) {
    if (!w.spools[0]->reserve(1)) break;
    Message& m = w.send(id(++n), 20000);
    ASSERT_TRUE(w.run([&] { return m.answered; }));
    if (m.append.status.ok()) {
      kept.emplace_back(m.append.id, m.append.location);
    } else {
      EXPECT_EQ(m.append.status.error().number, ENOSPC);
      EXPECT_FALSE(m.append.close_silently);
      refused = true;
    }
    m.buffers.clear();
  }
  EXPECT_GT(kept.size(), 50u);
  EXPECT_LT(n, 2000u);
  EXPECT_FALSE(w.spools[0]->reserve(1));
  for (auto& [at, location] : kept) w.note(at, location, true, "", "delivered " + std::to_string(at.low));
  w.world.run_for(10 * kSecond);
  EXPECT_TRUE(w.spools[0]->reserve(1)) << "space comes back when mail is done";
  w.append(id(9999), 20000);
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.size(), 1u);
}

TEST(SpoolFaults, FreedSpaceIsNoticedWhenNothingIsWritten) {
  reactor::SimOptions options;
  options.disk_bytes = 4 << 20;
  SpoolWorld w(5, small_config(), options);
  ASSERT_EQ(w.start(), "");
  for (uint64_t n = 1; n < 2000 && w.spools[0]->reserve(1); ++n) {
    Message& m = w.send(id(n), 20000);
    ASSERT_TRUE(w.run([&] { return m.answered; }));
  }
  ASSERT_FALSE(w.spools[0]->reserve(1));
  w.world.run_for(5 * kSecond);
  EXPECT_FALSE(w.spools[0]->reserve(1));
  w.world.disk(w.host).set_capacity(uint64_t{1} << 40);
  w.world.run_for(5 * kSecond);
  EXPECT_TRUE(w.spools[0]->reserve(1));
}

// A process that is killed may leave a batch in the kernel's memory that the next process reads and the disk
// does not have yet.
TEST(SpoolFaults, WhatRecoveryFindsAfterAKillSurvivesAPowerCut) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SpoolWorld w(seed);
    ASSERT_EQ(w.start(), "");
    for (uint64_t n = 1; n <= 30; ++n) w.send(id(n), 500 + n * 300, 4000);
    w.world.run_for(static_cast<int64_t>(w.world.chance().below(3'000'000)));
    w.crash(Crash::process);
    ASSERT_EQ(w.start(), "");
    std::set<mail::SpoolId> found;
    for (auto& [at, m] : w.memory.messages) found.insert(at);
    w.append(id(100), 2000);
    w.crash(Crash::power);
    ASSERT_EQ(w.start(), "");
    EXPECT_EQ(w.summary.records_damaged, 0u) << "seed " << seed;
    for (mail::SpoolId at : found) {
      EXPECT_TRUE(w.memory.messages.contains(at)) << at.to_string() << ", seed " << seed;
    }
  }
}

TEST(SpoolFaults, FlippedBitInABodyIsNamedWhenRead) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 20000);
  w.world.disk(w.host).flip_bit(segment_path(at), at.offset / 4096 * 4096 + 8192, 3);
  std::string text = w.read(id(1), at);
  EXPECT_EQ(w.last_error, EBADMSG);
  EXPECT_NE(text.find(segment_name(at.segment)), std::string::npos) << text;
  EXPECT_NE(text.find("checksum"), std::string::npos) << text;
}

TEST(SpoolFaults, WrongIdIsNoticed) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 2000);
  w.read(id(2), at);
  EXPECT_EQ(w.last_error, EBADMSG);
}

TEST(SpoolFaults, DamageInTheMiddleIsSetAsideAndTheRestRecovers) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  std::vector<Location> at(6);
  for (uint64_t n = 1; n <= 5; ++n) at[n] = w.append(id(n), 5000);
  w.crash(Crash::power);
  // The head of the second batch, a body byte of the fourth.
  w.world.disk(w.host).flip_bit(segment_path(at[2]), at[2].offset + 30, 1);
  w.world.disk(w.host).flip_bit(segment_path(at[4]), at[4].offset / 4096 * 4096 + 4096 + 2000, 1);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.summary.records_damaged, 2u);
  EXPECT_EQ(w.summary.remarks.size(), 2u);
  EXPECT_EQ(w.memory.messages.size(), 3u);
  for (uint64_t n : {1, 3, 5}) {
    ASSERT_TRUE(w.memory.messages.contains(id(n)));
    EXPECT_EQ(w.check(id(n), at[n], 5000), "intact");
  }
  // When its mail is done the damaged segment is kept for whoever wants to look at it.
  for (uint64_t n : {1, 3, 5}) w.note(id(n), at[n], true);
  w.spools[0]->events_emitted(UINT64_MAX / 2);
  w.world.run_for(5 * kSecond);
  EXPECT_TRUE(w.world.disk(w.host).exists(segment_path(at[2]) + ".damaged"));
}

TEST(SpoolFaults, TornLastBatchIsCut) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  w.append(id(1), 5000);
  Location last = w.append(id(2), 5000);
  w.crash(Crash::power);
  w.world.disk(w.host).flip_bit(segment_path(last), last.offset / 4096 * 4096 + 4096 + 2000, 1);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.summary.batches_cut, 1u);
  EXPECT_EQ(w.summary.records_damaged, 0u);
  EXPECT_EQ(w.memory.messages.size(), 1u);
  // What is written after it does not bring it back.
  w.append(id(3), 100);
  w.restart();
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.size(), 2u);
  EXPECT_FALSE(w.memory.messages.contains(id(2)));
}

TEST(SpoolFaults, LostHeaderIsMadeUpForByTheFirstBatch) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 5000);
  w.world.run_for(kSecond);  // there are other files, which say whose spool it is
  w.crash(Crash::power);
  // The power cut may have undone the renaming, too: then the file has the name it was made with.
  auto names = w.world.disk(w.host).list("/spool");
  for (const std::string& name : *names) {
    std::string path = "/spool/" + name;
    if (name == "lock" || w.world.disk(w.host).content(path).compare(kBlock, 4, "MLRB") != 0) continue;
    w.world.disk(w.host).flip_bit(path, 20, 1);
  }
  ASSERT_EQ(w.start(), "");
  ASSERT_EQ(w.memory.messages.size(), 1u);
  EXPECT_EQ(w.check(id(1), at, 5000), "intact");
  EXPECT_EQ(w.summary.remarks.size(), 1u);
}

TEST(SpoolFaults, LostHeaderOfTheOnlySegmentIsSetAside) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  w.append(id(1), 5000);
  w.crash(Crash::power);
  auto names = w.world.disk(w.host).list("/spool");
  std::string path;
  for (const std::string& name : *names) {
    if (name == "lock") continue;
    if (w.world.disk(w.host).content("/spool/" + name).compare(kBlock, 4, "MLRB") != 0) {
      ASSERT_TRUE(w.world.disk(w.host).remove("/spool/" + name).ok());  // a free one would tell the UUID
      continue;
    }
    path = "/spool/" + name;
    w.world.disk(w.host).flip_bit(path, 20, 1);
  }
  ASSERT_NE(path, "");
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.summary.records_damaged, 1u);
  EXPECT_TRUE(w.world.disk(w.host).exists(path + ".damaged"));
}

TEST(SpoolFaults, DamagedIndexIsMadeUpForByTheBatches) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 5000);
  w.spools[0]->events_emitted(UINT64_MAX / 2);
  w.stop();
  uint64_t size = w.world.disk(w.host).content(segment_path(at)).size();
  w.world.disk(w.host).flip_bit(segment_path(at), size - 8192 + 20, 1);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.size(), 1u);
  ASSERT_EQ(w.summary.remarks.size(), 1u);
  EXPECT_NE(w.summary.remarks[0].find("index"), std::string::npos);
}

TEST(SpoolFaults, NewerFormatIsRefusedByName) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 5000);
  w.stop();
  std::string block = w.world.disk(w.host).content(segment_path(at)).substr(0, kBlock);
  SegmentHeader header = load<SegmentHeader>(block.data());
  header.format_version = kFormatVersion + 1;
  seal_crc(header);
  std::memcpy(block.data(), &header, sizeof header);
  reactor::SimDisk& disk = w.world.disk(w.host);
  auto file = disk.open(segment_path(at), false);
  ASSERT_TRUE(file.ok());
  disk.write(*file, 0, block, true);
  disk.release(*file);
  std::string error = w.start();
  EXPECT_NE(error.find("newer version"), std::string::npos) << error;
  EXPECT_NE(error.find(segment_name(at.segment)), std::string::npos) << error;
}

TEST(SpoolFaults, StaleBatchesOfAnOlderGenerationAreNotTaken) {
  auto config = small_config();
  config.events.clear();
  config.spool_reserve = 0;
  SpoolWorld w(9, config);
  ASSERT_EQ(w.start(), "");
  // Fills segments to the end, so that each file that is used again is full of old batches.
  for (uint64_t n = 1; n <= 200; ++n) w.note(id(n), w.append(id(n), 10000), true);
  w.world.run_for(5 * kSecond);
  uint64_t reused = w.append(id(1000), 10000).segment;
  EXPECT_GT(reused, 5u);
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.summary.records_damaged, 0u);
  ASSERT_EQ(w.memory.messages.size(), 1u);
  EXPECT_TRUE(w.memory.messages.contains(id(1000)));
}

TEST(SpoolFaults, MessageLargerThanASegmentIsRefused) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Message& m = w.send(id(1), 300 << 10);
  ASSERT_TRUE(w.run([&] { return m.answered; }));
  ASSERT_FALSE(m.append.status.ok());
  EXPECT_EQ(m.append.status.error().number, EFBIG);
  w.append(id(2), 100 << 10);
}

TEST(SpoolFaults, BufferedFallbackAndShortTransfersWork) {
  reactor::SimOptions options;
  options.direct_io = false;
  options.faults.short_write = 0.3;
  options.faults.short_read = 0.3;
  auto config = small_config();
  config.durability = config::Durability::memory;
  SpoolWorld w(8, config, options);
  ASSERT_EQ(w.start(), "");
  std::map<mail::SpoolId, Location> at;
  for (uint64_t n = 1; n <= 40; ++n) at[id(n)] = w.append(id(n), n * 700, 3000);
  for (auto& [which, location] : at) EXPECT_EQ(w.check(which, location, which.low * 700), "intact");
  w.restart();
  EXPECT_EQ(w.memory.messages.size(), 40u);
}

}  // namespace
}  // namespace millrace::spool
