// The spool over the simulator: what is acknowledged is there after a restart, what is done is gone,
// what is damaged is named.
#include "harness.h"
#include "spool/format.h"

namespace millrace::spool {
namespace {

using namespace testing;
using reactor::Crash;

TEST(Spool, MessageIsReadBackAsItWasGiven) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(7), 20480, 5000);
  EXPECT_NE(at.segment, 0u);
  std::string metadata;
  EXPECT_TRUE(w.read(id(7), at, 0, &metadata) == pattern(20480, 7));
  EXPECT_EQ(metadata, "metadata of 7");
}

// docs/spool-format.md shows these bytes.
TEST(Spool, WorkedExampleOfTheFormatIsWhatIsWritten) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Message& m = w.make(id(7), 0);
  m.metadata = "M";
  m.event = "E";
  m.append.metadata = m.metadata;
  m.append.event = m.event;
  auto buffer = w.ios[0]->buffers(reactor::BufferGroup::ingress).allocate(4096);
  std::memcpy(buffer->data + 100, "Hi", 2);
  m.append.pieces.push_back({buffer->data + 100, 2, buffer.get()});
  m.append.body_crc = crc32c(0, "Hi", 2);
  w.spools[0]->append(m.append);
  ASSERT_TRUE(w.run([&] { return m.answered; }));
  EXPECT_EQ(m.append.location, (Location{1, 0x1040, 88}));
  std::string bytes = w.world.disk(w.host).content("/spool/0000000001.seg");
  auto at = [&](size_t offset, size_t size) {
    std::string text;
    for (size_t i = 0; i < size; ++i) {
      text += "0123456789abcdef"[static_cast<uint8_t>(bytes[offset + i]) >> 4];
      text += "0123456789abcdef"[static_cast<uint8_t>(bytes[offset + i]) & 15];
      if (i % 4 == 3 && i + 1 < size) text += ' ';
    }
    return text;
  };
  EXPECT_EQ(at(0x0000, 16), "4d4c5253 45470d0a 01000000 02000000");
  EXPECT_EQ(at(0x0020, 16), "01000000 00000000 00000400 00000000");
  EXPECT_EQ(at(0x0030, 16), "00000000 00000000 01000000 00000000");
  EXPECT_EQ(at(0x1000, 8), "4d4c5242 01000000");
  EXPECT_EQ(at(0x1008, 8), at(0x0010, 8));
  EXPECT_EQ(at(0x1010, 16), "01000000 00000000 00000000 00000000");
  EXPECT_EQ(at(0x1020, 16), "00100000 00100000 00100000 58000000");
  EXPECT_EQ(at(0x1030, 4), "01000000");
  EXPECT_EQ(at(0x1040, 16), "58000000 01000100 01000000 00000000");
  EXPECT_EQ(at(0x1050, 4), "01000000");
  EXPECT_EQ(at(0x1058, 16), "01000000 00000000 07000000 00000000");
  EXPECT_EQ(at(0x1068, 8), "02000000 00000000");
  EXPECT_EQ(at(0x1074, 4), "01000000");
  EXPECT_EQ(at(0x1078, 16), "00000000 01000000 01000000 00000000");
  EXPECT_EQ(at(0x1088, 8), "64200000 02000000");
  EXPECT_EQ(at(0x1090, 8), "4d450000 00000000");
  EXPECT_EQ(bytes.substr(0x2064, 2), "Hi");
  uint32_t header_crc, batch_crc_there;
  std::memcpy(&header_crc, &bytes[0x004c], 4);
  EXPECT_EQ(header_crc, crc32c(0, bytes.data(), 0x4c));
  std::memcpy(&batch_crc_there, &bytes[0x103c], 4);
  EXPECT_EQ(batch_crc_there, crc32c(crc32c(0, &bytes[0x1000], 60), &bytes[0x1040], 88));
}

TEST(Spool, BodyWithoutABufferIsCopied) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Message& m = w.make(id(7), 0);
  m.body = pattern(3000, 9);
  m.append.body_crc = crc32c(0, m.body);
  m.append.pieces.push_back({m.body.data(), 1000, nullptr});
  m.append.pieces.push_back({m.body.data() + 1000, 2000, nullptr});
  w.spools[0]->append(m.append);
  ASSERT_TRUE(w.run([&] { return m.answered; }));
  ASSERT_TRUE(m.append.status.ok());
  EXPECT_TRUE(w.read(id(7), m.append.location) == pattern(3000, 9));
}

TEST(Spool, EmptyBodyIsAMessageToo) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(7), 0);
  EXPECT_EQ(w.read(id(7), at), "");
}

TEST(Spool, NeighboursInOneBufferAreWrittenOnce) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  auto buffer = w.ios[0]->buffers(reactor::BufferGroup::ingress).allocate(1 << 16);
  std::string all = pattern(60000, 3);
  std::memcpy(buffer->data, all.data(), all.size());
  uint64_t before = w.spools[0]->stats().bytes_written;
  std::vector<Message*> sent;
  for (uint64_t n = 0; n < 6; ++n) {
    Message& m = w.make(id(n + 1), 0);
    m.append.pieces.push_back({buffer->data + n * 10000, 9800, buffer.get()});
    m.append.body_crc = crc32c(0, buffer->data + n * 10000, 9800);
    sent.push_back(&m);
    w.spools[0]->append(m.append);
  }
  ASSERT_TRUE(w.run([&] { return sent.back()->answered; }));
  EXPECT_EQ(w.spools[0]->stats().batches, 1u);
  EXPECT_LE(w.spools[0]->stats().bytes_written - before, uint64_t{4096 + 8192 + 61440});
  for (uint64_t n = 0; n < 6; ++n) {
    EXPECT_TRUE(w.read(id(n + 1), sent[n]->append.location) == all.substr(n * 10000, 9800));
  }
}

TEST(Spool, WhatArrivesDuringACommitSharesTheNext) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  std::vector<Message*> sent = {&w.send(id(1), 1000)};
  w.world.run_for(1);  // the first is under way alone
  for (uint64_t n = 2; n <= 40; ++n) sent.push_back(&w.send(id(n), 1000));
  ASSERT_TRUE(w.run([&] { return sent.back()->answered; }));
  EXPECT_EQ(w.spools[0]->stats().batches, 2u);
  for (size_t i = 1; i < sent.size(); ++i) {
    EXPECT_GT(sent[i]->append.sequence, sent[i - 1]->append.sequence);
  }
}

TEST(Spool, AcknowledgedMessagesSurviveAPowerCut) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SpoolWorld w(seed);
    ASSERT_EQ(w.start(), "");
    for (uint64_t n = 1; n <= 30; ++n) w.send(id(n), 500 + n * 300, 4000);
    w.world.run_for(static_cast<int64_t>(w.world.chance().below(3'000'000)));
    std::vector<mail::SpoolId> acknowledged;
    for (Message& m : w.in_flight) {
      if (m.answered && m.append.status.ok()) acknowledged.push_back(m.append.id);
    }
    w.crash(Crash::power);
    ASSERT_EQ(w.start(), "");
    for (mail::SpoolId at : acknowledged) {
      ASSERT_TRUE(w.memory.messages.contains(at)) << "seed " << seed;
    }
    for (auto& [at, m] : w.memory.messages) {
      ASSERT_EQ(w.check(at, m.location, 500 + at.low * 300), "intact") << "seed " << seed;
    }
  }
}

TEST(Spool, LatestStateWinsAndFinalNotesEndAMessage) {
  SpoolWorld w(3);
  ASSERT_EQ(w.start(), "");
  Location a = w.append(id(1), 2000), b = w.append(id(2), 2000), c = w.append(id(3), 2000);
  w.note(id(1), a, false, "first try", "deferred 1");
  w.note(id(1), a, false, "second try", "deferred 1 again");
  w.note(id(2), b, true, "", "delivered 2");
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  ASSERT_EQ(w.memory.messages.size(), 2u);
  EXPECT_EQ(w.memory.messages.at(id(1)).state, "second try");
  EXPECT_EQ(w.memory.messages.at(id(3)).state, "");
  EXPECT_EQ(w.memory.messages.at(id(3)).location, c);
  EXPECT_EQ(w.memory.messages.at(id(3)).metadata, "metadata of 3");
  EXPECT_EQ(w.memory.messages.at(id(3)).body_size, 2000u);
  std::vector<std::string> events;
  for (auto& [sequence, event] : w.memory.events) events.push_back(event);
  EXPECT_EQ(events, (std::vector<std::string>{"received 1", "received 2", "received 3", "deferred 1",
                                              "deferred 1 again", "delivered 2"}));
}

TEST(Spool, EmittedEventsAreNotReplayed) {
  SpoolWorld w(3);
  ASSERT_EQ(w.start(), "");
  Location a = w.append(id(1), 2000);
  w.note(id(1), a, false, "x", "deferred 1");
  w.spools[0]->events_emitted(w.outcomes.back().note.sequence);
  w.world.run_for(3 * kSecond);  // the mark is written although nothing else is
  Location b = w.append(id(2), 2000);
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  ASSERT_EQ(w.memory.events.size(), 1u);
  EXPECT_EQ(w.memory.events[0].second, "received 2");
  EXPECT_EQ(w.memory.messages.at(id(2)).location, b);
}

TEST(Spool, StateKeysKeepTheirLatestValue) {
  SpoolWorld w(3);
  ASSERT_EQ(w.start(), "");
  w.put("paused/example.com", "yes");
  w.put("budget", "17");
  w.put("budget", "18");
  w.put("gone", "1");
  w.put("gone", "");
  for (int i = 0; i < 3; ++i) {
    if (i == 1) {
      w.crash(Crash::power);
    } else {
      w.stop();
    }
    ASSERT_EQ(w.start(), "");
    EXPECT_EQ(w.memory.state,
              (std::map<std::string, std::string>{{"paused/example.com", "yes"}, {"budget", "18"}}));
  }
}

TEST(Spool, SegmentsAreSealedAndUsedAgain) {
  SpoolWorld w(4);
  ASSERT_EQ(w.start(), "");
  uint32_t last = 0;
  for (uint64_t n = 1; n <= 400; ++n) {
    Location at = w.append(id(n), 10000);
    w.note(id(n), at, true, "", "");
    last = at.segment;
    w.spools[0]->events_emitted(UINT64_MAX / 2);
  }
  EXPECT_GT(last, 14u);
  w.world.run_for(5 * kSecond);
  EXPECT_LT(w.world.disk(w.host).list("/spool")->size(), 14u) << "segments pile up";
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_TRUE(w.memory.messages.empty());
}

TEST(Spool, SegmentsWithUnemittedEventsAreKept) {
  SpoolWorld w(4);
  ASSERT_EQ(w.start(), "");
  for (uint64_t n = 1; n <= 100; ++n) w.note(id(n), w.append(id(n), 10000), true, "", "delivered");
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.events.size(), 200u);
  EXPECT_TRUE(w.memory.messages.empty());
}

// A few messages that stay, many that pass: the segments in which the few lie are compacted, and their
// states and the final notes of their neighbours are carried forward.
TEST(Spool, CompactionMovesWhatLives) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    auto config = small_config();
    config.events.clear();
    SpoolWorld w(seed, config, {}, 2);
    ASSERT_EQ(w.start(), "");
    std::map<mail::SpoolId, Location> live;
    size_t moved = 0;
    auto listen = [&] {
      for (auto& spool : w.spools) {
        spool->on_moved = [&](const mail::SpoolId& which, Location from, Location to) {
          auto it = live.find(which);
          if (it == live.end() || it->second != from) return;  // told twice when the home is unknown
          it->second = to;
          ++moved;
        };
      }
    };
    listen();
    for (uint64_t n = 1; n <= 300; ++n) {
      unsigned shard = n % 2;
      Location at = w.append(id(n), 9000, 3000, shard);
      if (n % 20 == 0) {
        live[id(n)] = at;
        if (n % 40 == 0) w.note(id(n), live[id(n)], false, "state " + std::to_string(n), "", shard);
      } else {
        w.note(id(n), at, true, "", "", shard);
      }
      if (n % 50 == 0) w.world.run_for(2 * kSecond);
    }
    w.world.run_for(20 * kSecond);
    EXPECT_GT(moved, 5u);
    EXPECT_LT(w.world.disk(w.host).list("/spool")->size(), 14u) << "segments pile up";
    for (auto& [at, location] : live) EXPECT_EQ(w.check(at, location, 9000, at.low % 2), "intact");
    for (int round = 0; round < 3; ++round) {
      if (round == 1) {
        w.stop();
      } else {
        w.crash(Crash::power);
      }
      ASSERT_EQ(w.start(), "");
      listen();
      ASSERT_EQ(w.memory.messages.size(), live.size()) << "seed " << seed << " round " << round;
      for (auto& [at, location] : live) {
        auto& m = w.memory.messages.at(at);
        EXPECT_EQ(m.location, location) << "seed " << seed << " round " << round;
        EXPECT_EQ(m.state, at.low % 40 == 0 ? "state " + std::to_string(at.low) : "");
        EXPECT_EQ(m.metadata, "metadata of " + std::to_string(at.low));
      }
      for (auto& [at, location] : live) EXPECT_EQ(w.check(at, live[at], 9000), "intact");
    }
  }
}

}  // namespace
}  // namespace millrace::spool
