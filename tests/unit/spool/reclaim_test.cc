// Compaction while everything else goes on: notes and values that overtake what is being moved, a
// disk that fails or is damaged under it, the end in the middle of it. Whatever happens, what lives
// stays readable and what was said last counts.
#include "harness.h"
#include "spool/format.h"

namespace millrace::spool {
namespace {

using namespace testing;
using reactor::Call;
using reactor::Crash;

constexpr size_t kBody = 9000;

config::Config compacting() {
  config::Config config = small_config();
  config.events.clear();
  config.compact_below_percent = 60;
  return config;
}

// Segments that are mostly dead, about to be compacted, and what should be found in them ever
// after.
struct CompactionWorld : SpoolWorld {
  explicit CompactionWorld(uint64_t seed, unsigned on = 2, config::Config config = compacting())
      : SpoolWorld(seed, std::move(config), {}, on), shards(on), chance(seed) {}
  const unsigned shards;
  Prng chance;
  std::map<mail::SpoolId, Location> live;
  std::map<mail::SpoolId, std::string> states;
  std::map<std::string, std::string> values;
  std::set<mail::SpoolId> finished;
  size_t moved = 0, unanswered = 0;

  reactor::SimDisk& disk() { return world.disk(host); }
  unsigned home(mail::SpoolId at) const { return static_cast<unsigned>(at.low % shards); }
  void listen() {
    for (auto& spool : spools) {
      spool->on_moved = [this](const mail::SpoolId& which, Location from, Location to) {
        auto it = live.find(which);
        if (it == live.end() || it->second != from)
          return;  // every shard is asked when the home is unknown
        it->second = to;
        ++moved;
      };
    }
  }
  void give(mail::SpoolId at, bool final, std::string state) {
    give_note(at, live.at(at), final, final ? "" : state, "", home(at));
    if (final) {
      live.erase(at);
      states.erase(at);
      finished.insert(at);
    } else {
      states[at] = std::move(state);
    }
  }
  void give_value(std::string key, std::string value) {
    values[key] = value;
    ++unanswered;
    spools[0]->put_state(std::move(key), std::move(value), [this](Status status) {
      EXPECT_TRUE(status.ok());
      --unanswered;
    });
  }
  bool all_answered() {
    for (Outcome& o : outcomes) {
      if (!o.answered) return false;
    }
    return unanswered == 0;
  }
  // Three segments and a bit, of which every seventh message lives.
  void fill(uint64_t first = 1, uint64_t last = 80, size_t state_size = 20) {
    give_value("early", "1");
    give_value("gone", "1");
    for (uint64_t n = first; n <= last; ++n) {
      if (n == first + 30) give_value("early", "2");
      if (n == first + 40) give_value("gone", "");
      live[id(n)] = append(id(n), kBody, 4000, home(id(n)));
      states[id(n)] = "";
      // Said where it lies, and in a later segment.
      if (n % 7 == 0 && n % 2 == 0)
        give(id(n), false, std::to_string(n) + std::string(state_size, 's'));
      if (n > first + 30 && (n - 30) % 7 == 0) give(id(n - 30), false, "late " + std::to_string(n));
      if (n % 7 != 0) give(id(n), true, "");
    }
    EXPECT_TRUE(run([&] { return all_answered(); }));
    for (Message& m : in_flight) m.buffers.clear();
  }
  // Until a segment is opened to be compacted.
  bool until_compaction() {
    size_t before = world.open_handles(host);
    for (int i = 0; i < 100'000; ++i) {
      world.run_for(20'000);
      if (world.open_handles(host) > before) return true;
      before = std::min(before, world.open_handles(host));
    }
    return false;
  }
  void check_all(const std::string& what) {
    for (auto& [at, location] : live)
      EXPECT_EQ(check(at, location, kBody, home(at)), "intact") << what << " message " << at.low;
  }
  // After a start: what is there is what was said.
  void check_recovered(const std::string& what) {
    EXPECT_EQ(memory.messages.size(), live.size()) << what;
    for (auto& [at, m] : memory.messages) {
      ASSERT_TRUE(live.contains(at)) << what << " resurrected " << at.low;
      EXPECT_EQ(m.state, states[at]) << what << " message " << at.low;
      live[at] = m.location;
    }
    std::map<std::string, std::string> said;
    for (auto& [key, value] : values) {
      if (!value.empty()) said.emplace(key, value);
    }
    EXPECT_EQ(memory.state, said) << what;
  }
  void restart_and_check(Crash kind, const std::string& what) {
    crash(kind);
    ASSERT_EQ(start(), "") << what;
    listen();
    check_recovered(what);
    check_all(what);
  }
  std::vector<std::string> names() { return *disk().list("/spool"); }
};

TEST(SpoolReclaim, WhatIsSaidWhileItIsMovedCounts) {
  size_t moved = 0;
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    CompactionWorld w(seed, seed % 2 + 1);
    ASSERT_EQ(w.start(), "");
    w.listen();
    w.fill();
    ASSERT_TRUE(w.until_compaction());
    if (seed > 8) w.world.faults().write_error = 0.3;  // of mail and of what is moved alike
    for (int step = 0; step < 400; ++step) {
      w.world.run_for(static_cast<int64_t>(w.chance.below(40'000)));
      if (w.chance.chance(0.1)) {
        auto it = w.live.begin();
        std::advance(it, static_cast<ptrdiff_t>(w.chance.below(w.live.size())));
        if (it != w.live.end())
          w.give(it->first, w.live.size() > 3 && w.chance.chance(0.2),
                 "step " + std::to_string(step));
      }
      if (w.chance.chance(0.1))
        w.give_value(w.chance.chance(0.5) ? "early" : "gone",
                     w.chance.chance(0.3) ? "" : std::to_string(step));
    }
    w.world.faults().write_error = 0;
    ASSERT_TRUE(w.run([&] { return w.all_answered(); }));
    w.world.run_for(static_cast<int64_t>(w.chance.below(20 * kSecond)));
    std::string what = "seed " + std::to_string(seed);
    w.check_all(what);
    w.restart_and_check(Crash::power, what);
    w.world.run_for(20 * kSecond);
    w.restart_and_check(Crash::power, what + " again");
    moved += w.moved;
  }
  EXPECT_GT(moved, 50u);
}

// One call after the other fails, once, and then the disk is well again.
TEST(SpoolReclaim, EachCallOfACompactionMayFail) {
  struct Range {
    Call call;
    uint64_t calls;
    bool from_then_on;
  };
  for (const Range& range :
       {Range{Call::write, 16, false}, Range{Call::write, 4, true}, Range{Call::read, 16, false},
        Range{Call::open_file, 8, false}, Range{Call::rename_file, 3, false},
        Range{Call::rename_file, 2, true}, Range{Call::remove_file, 3, false},
        Range{Call::sync_directory, 4, false}, Range{Call::allocate, 2, true},
        Range{Call::sync, 2, false}}) {
    for (uint64_t nth = 1; nth <= range.calls; ++nth) {
      CompactionWorld w(nth);
      ASSERT_EQ(w.start(), "");
      w.listen();
      w.fill();
      ASSERT_TRUE(w.run([&] { return w.all_answered(); }));
      w.world.run_for(kSecond / 2);
      w.world.set_single_fault(
          reactor::SingleFault{w.host, range.call, nth, EIO, range.from_then_on});
      bool compacting = w.until_compaction();
      for (int step = 0; compacting && step < 100; ++step) {
        w.world.run_for(static_cast<int64_t>(w.chance.below(60'000)));
        if (step % 10 == 3) w.give(w.live.begin()->first, false, "step " + std::to_string(step));
        if (step % 10 == 6) w.give(w.live.rbegin()->first, false, "step " + std::to_string(step));
        if (step % 25 == 9) w.give_value("early", std::to_string(step));
        if (step == 40) w.give(std::next(w.live.begin(), 2)->first, true, "");
      }
      w.world.run_for(3 * kSecond);
      w.world.set_single_fault({});
      std::string what = std::string(to_string(range.call)) + " " + std::to_string(nth) +
                         (range.from_then_on ? " and later" : "");
      ASSERT_TRUE(w.run([&] { return w.all_answered(); })) << what;
      w.world.run_for(5 * kSecond);
      w.check_all(what);
      w.restart_and_check(nth % 2 ? Crash::power : Crash::process, what);
      w.world.run_for(5 * kSecond);
      w.check_all(what);
    }
  }
}

TEST(SpoolReclaim, TheEndMayComeInTheMiddle) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    CompactionWorld w(seed);
    ASSERT_EQ(w.start(), "");
    w.listen();
    w.fill();
    ASSERT_TRUE(w.until_compaction());
    w.world.run_for(static_cast<int64_t>(seed) * 500'000);
    std::string what = "seed " + std::to_string(seed);
    w.stop();
    ASSERT_EQ(w.start(), "") << what;
    w.listen();
    w.check_recovered(what);
    EXPECT_TRUE(w.summary.remarks.empty()) << what;
    w.world.run_for(20 * kSecond);
    w.check_all(what);
  }
}

TEST(SpoolReclaim, AnIndexThatIsDamagedMeanwhileIsMadeUpForByTheBatches) {
  CompactionWorld w(1);
  ASSERT_EQ(w.start(), "");
  w.listen();
  w.fill();
  for (const std::string& name : w.names()) {
    std::string path = "/spool/" + name;
    if (!name.ends_with(".seg")) continue;
    std::string bytes = w.disk().content(path);
    if (bytes.compare(bytes.size() - kBlock, 6, "MLRIDX") != 0) continue;
    auto trailer = load<Trailer>(bytes.data() + bytes.size() - kBlock);
    w.disk().flip_bit(path, trailer.index_offset + 20, 1);
  }
  w.world.run_for(20 * kSecond);
  EXPECT_GT(w.moved, 5u);
  w.check_all("");
  w.restart_and_check(Crash::power, "");
}

// What cannot be read stays where it is, whole or not, and is not tried over and over; the rest is
// moved away from it.
TEST(SpoolReclaim, AMessageThatIsDamagedKeepsItsSegment) {
  CompactionWorld w(1);
  ASSERT_EQ(w.start(), "");
  w.listen();
  w.fill();
  Location bad = w.live.at(id(7));
  w.disk().flip_bit("/spool/" + segment_name(bad.segment),
                    (bad.offset / kBlock + 1) * kBlock + 100 + kBlock, 1);
  ASSERT_NE(w.check(id(7), bad, kBody, 1), "intact");
  w.world.run_for(20 * kSecond);
  EXPECT_EQ(w.live.at(id(7)), bad);
  EXPECT_GT(w.moved, 5u);
  EXPECT_TRUE(w.disk().exists("/spool/" + segment_name(bad.segment)));
  w.live.erase(id(7));
  w.check_all("");
  uint64_t written = w.spools[0]->stats().bytes_written;
  w.world.run_for(20 * kSecond);
  EXPECT_EQ(w.spools[0]->stats().bytes_written, written) << "nothing is tried over and over";
}

TEST(SpoolReclaim, AStateThatIsDamagedIsNotMovedAsAnother) {
  struct Case {
    const char* what;
    uint64_t at;  // of the note's record
  };
  for (const Case& one : {Case{"its size is too large", 3}, Case{"its size is too small", 0},
                          Case{"its state", 70}}) {
    for (size_t state_size : {size_t{20}, size_t{9000}}) {
      CompactionWorld w(1);
      ASSERT_EQ(w.start(), "");
      w.listen();
      w.fill(1, 80, state_size);
      // The latest note of message 14: the last record of its state on the disk.
      std::string text = "late 44";
      std::string where;
      size_t at = std::string::npos;
      for (const std::string& name : w.names()) {
        size_t found = w.disk().content("/spool/" + name).find(text);
        if (found == std::string::npos) continue;
        where = "/spool/" + name;
        at = found;
        break;
      }
      ASSERT_NE(at, std::string::npos);
      ASSERT_EQ(w.states.at(id(14)), text);
      w.disk().flip_bit(where, at - kNoteOverhead + (one.at < 70 ? one.at : kNoteOverhead),
                        one.at == 0 ? 6 : 4);
      w.world.run_for(20 * kSecond);
      EXPECT_GT(w.moved, 2u) << one.what;
      w.check_all(one.what);
      // The message stays where it is, or its state was taken from the index, which has another
      // copy.
      w.stop();
      ASSERT_EQ(w.start(), "") << one.what;
      w.check_recovered(one.what);
      w.world.run_for(kSecond);  // letters that are under way come home
    }
  }
}

// States of several blocks, and such as lie across the end of one.
TEST(SpoolReclaim, StatesOfAnySizeAreCarried) {
  for (size_t size : {1u, 900u, 3950u, 4040u, 4100u, 9000u, 30'000u}) {
    CompactionWorld w(size, 1);
    ASSERT_EQ(w.start(), "");
    w.listen();
    w.fill(1, 80, size);
    for (uint64_t n = 81; n <= 100; ++n) {
      w.live[id(n)] = w.append(id(n), kBody);
      w.give(id(n), true, "");
    }
    auto it = w.live.begin();
    for (int n = 0; n < 4; ++n, ++it)
      w.give(it->first, false, std::to_string(n) + std::string(size, 't'));
    ASSERT_TRUE(w.run([&] { return w.all_answered(); }));
    w.world.run_for(20 * kSecond);
    EXPECT_GT(w.moved, 5u) << size;
    std::string what = "size " + std::to_string(size);
    w.check_all(what);
    w.restart_and_check(Crash::power, what);
  }
}

// A removal is carried for as long as an older value may be found, and no longer.
TEST(SpoolReclaim, ARemovedKeyStaysRemoved) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    CompactionWorld w(seed, 1);
    ASSERT_EQ(w.start(), "");
    w.listen();
    uint64_t next = 1;
    for (int round = 0; round < 6; ++round) {
      if (round == 1) w.give_value("gone for good", "1");
      if (round == 2) w.give_value("gone for good", "");
      w.fill(next, next + 40);
      next += 41;
      w.world.run_for(static_cast<int64_t>(w.chance.below(5 * kSecond)));
      if (round % 2 == 1) w.restart_and_check(Crash::power, "round " + std::to_string(round));
    }
    std::vector<mail::SpoolId> left;
    for (auto& [at, location] : w.live) left.push_back(at);
    for (mail::SpoolId at : left) w.give(at, true, "");
    ASSERT_TRUE(w.run([&] { return w.all_answered(); }));
    w.world.run_for(60 * kSecond);
    w.give_value("last", "1");
    ASSERT_TRUE(w.run([&] { return w.all_answered(); }));
    EXPECT_LE(w.spools[0]->stats().segments, 4u) << "all of it is gone but two values";
    w.restart_and_check(Crash::power, "the end");
  }
}

TEST(SpoolReclaim, WithoutRoomItRestsAndGoesOnWhenThereIsSome) {
  CompactionWorld w(1);
  ASSERT_EQ(w.start(), "");
  w.listen();
  w.fill();
  w.world.set_single_fault(reactor::SingleFault{w.host, Call::rename_file, 1, ENOSPC, true});
  w.world.run_for(20 * kSecond);
  EXPECT_EQ(w.moved, 0u);
  EXPECT_LT(w.world.single_faults(), 200u) << "it does not try all the time";
  w.check_all("without room");
  w.world.set_single_fault({});
  w.world.run_for(20 * kSecond);
  EXPECT_GT(w.moved, 5u);
  w.check_all("");
  w.restart_and_check(Crash::power, "");
}

TEST(SpoolReclaim, WhatTheFirstStartFoundIsMovedToo) {
  for (unsigned shards : {1u, 3u}) {
    CompactionWorld w(shards, 2);
    ASSERT_EQ(w.start(), "");
    w.listen();
    w.fill();
    w.restart_and_check(Crash::power, "homes are not known");
    w.world.run_for(20 * kSecond);
    EXPECT_GT(w.moved, 5u);
    w.check_all("");
    w.restart_and_check(Crash::power, "");
  }
}

// The power goes between the copy of a message and the end of its segment, a note names the copy, and the copy is
// damaged: the original counts, with that note, and compaction comes to an end.
TEST(SpoolReclaim, ANoteThatNamesADamagedCopyGoesWithTheOriginal) {
  config::Config config = compacting();
  config.compact_below_percent = 30;  // what compaction writes stays where it is
  CompactionWorld w(1, 2, config);
  ASSERT_EQ(w.start(), "");
  struct Move {
    mail::SpoolId id;
    Location from, to;
  };
  std::optional<Move> first;
  for (auto& spool : w.spools) {
    spool->on_moved = [&](const mail::SpoolId& which, Location from, Location to) {
      auto it = w.live.find(which);
      if (it == w.live.end() || it->second != from) return;
      it->second = to;
      if (!first) first = {which, from, to};
    };
  }
  w.fill();
  ASSERT_TRUE(w.run([&] { return first.has_value(); }));
  w.give(first->id, false, "said of the copy");
  ASSERT_TRUE(w.run([&] { return w.all_answered(); }));
  ASSERT_TRUE(w.disk().exists("/spool/" + segment_name(first->from.segment)));
  w.crash(Crash::power);
  w.disk().flip_bit("/spool/" + segment_name(first->to.segment), first->to.offset + 20, 1);
  ASSERT_EQ(w.start(), "");
  w.listen();
  w.check_recovered("");
  ASSERT_EQ(w.live.at(first->id), first->from);
  w.world.run_for(10 * kSecond);
  uint64_t written = w.spools[0]->stats().bytes_written;
  w.world.run_for(20 * kSecond);
  EXPECT_EQ(w.spools[0]->stats().bytes_written, written) << "nothing is moved over and over";
  w.check_all("");
  w.restart_and_check(Crash::power, "");
}

}  // namespace
}  // namespace millrace::spool
