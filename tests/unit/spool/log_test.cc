// The writer: what waits, what is told to whom, and what becomes of what is under way when the disk
// fails or the end comes.
#include "spool/log.h"

#include "harness.h"
#include "spool/format.h"

namespace millrace::spool {
namespace {

using namespace testing;
using reactor::Call;
using reactor::Crash;

constexpr const char* kClosed = "the spool is closed";

config::Config without_events() {
  config::Config config = small_config();
  config.events.clear();
  return config;
}

// A key's put, with its answer.
struct Put {
  std::optional<Status> answer;
  void give(Spool& spool, std::string key, std::string value) {
    spool.put_state(std::move(key), std::move(value),
                    [this](Status status) { answer = std::move(status); });
  }
};

TEST(SpoolLog, WhatIsAskedAfterTheEndIsRefused) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 2000);
  bool closed = false;
  reactor::spawn(w.directory->close(), [&](Status status) { closed = status.ok(); });
  ASSERT_TRUE(w.run([&] { return closed; }));
  EXPECT_FALSE(w.spools[0]->reserve(1));
  Message& m = w.send(id(2), 100);
  Outcome& o = w.give_note(id(1), at, true, "", "");
  Put put;
  put.give(*w.spools[0], "key", "value");
  w.spools[0]->events_emitted(1000);
  ASSERT_TRUE(w.run([&] { return m.answered && o.answered && put.answer.has_value(); }));
  ASSERT_FALSE(m.append.status.ok());
  EXPECT_EQ(m.append.status.error().text, kClosed);
  EXPECT_EQ(m.append.status.error().number, ESHUTDOWN);
  EXPECT_FALSE(m.append.close_silently) << "nothing of it was written";
  ASSERT_FALSE(o.note.status.ok());
  EXPECT_EQ(o.note.status.error().text, kClosed);
  ASSERT_FALSE(put.answer->ok());
  EXPECT_EQ(put.answer->error().text, kClosed);
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.size(), 1u) << "nothing was written after the end";
  EXPECT_TRUE(w.memory.state.empty());
}

TEST(SpoolLog, WhatIsAskedBeforeTheStartWaitsForIt) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 2000);
  w.stop();
  w.memory = {};
  w.open_only();
  Message& m = w.send(id(2), 100);
  Outcome& o = w.give_note(id(1), at, false, "tried", "");
  w.world.run_for(kSecond);
  EXPECT_FALSE(m.answered);
  EXPECT_FALSE(o.answered);
  std::optional<bool> recovered;
  reactor::spawn(w.directory->recover(w.memory), [&](auto result) { recovered = result.ok(); });
  ASSERT_TRUE(w.run([&] { return recovered.has_value() && m.answered && o.answered; }));
  EXPECT_TRUE(*recovered);
  EXPECT_TRUE(m.append.status.ok());
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.size(), 2u);
  EXPECT_EQ(w.memory.messages.at(id(1)).state, "tried");
}

TEST(SpoolLog, OneThatNeverStartedClosesAndAnswers) {
  SpoolWorld w(1);
  w.open_only();
  Message& m = w.send(id(2), 100);
  bool closed = false;
  reactor::spawn(w.directory->close(), [&](Status status) { closed = status.ok(); });
  ASSERT_TRUE(w.run([&] { return closed && m.answered; }));
  ASSERT_FALSE(m.append.status.ok());
  EXPECT_EQ(m.append.status.error().text, kClosed);
}

// The disk is dead when the end comes: what waits for it is answered, what was under way is neither
// accepted nor refused.
TEST(SpoolLog, TheEndDoesNotWaitForADiskThatIsDead) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 2000);
  w.world.run_for(kSecond);
  w.world.faults().write_error = 1;
  Message& lost = w.send(id(2), 3000);
  Outcome& o = w.give_note(id(1), at, true, "", "");
  Put put;
  put.give(*w.spools[0], "key", "value");
  ASSERT_TRUE(w.run([&] { return lost.answered; }));
  EXPECT_TRUE(lost.append.close_silently);
  EXPECT_FALSE(o.answered);
  std::vector<bool> told;
  w.spools[0]->on_writable = [&](bool writable, const std::string&) { told.push_back(writable); };
  bool closed = false;
  reactor::spawn(w.directory->close(), [&](Status status) { closed = status.ok(); });
  ASSERT_TRUE(w.run([&] { return closed; }, 5));
  ASSERT_TRUE(o.answered);
  EXPECT_FALSE(o.note.status.ok());
  ASSERT_TRUE(put.answer.has_value());
  EXPECT_FALSE(put.answer->ok());
  EXPECT_TRUE(told.empty()) << "that the end has come is known to who asked for it";
  w.world.faults().write_error = 0;
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_TRUE(w.memory.messages.contains(id(1))) << "its final note was never written";
}

// The end comes while batches are failing.
TEST(SpoolLog, TheEndMayComeAtAnyTimeOfAFailure) {
  for (int64_t after = 0; after < 3'000'000; after += 60'000) {
    SpoolWorld w(static_cast<uint64_t>(after) + 1);
    ASSERT_EQ(w.start(), "");
    Location at = w.append(id(1), 2000);
    w.world.run_for(kSecond);
    w.world.faults().write_error = 1;
    Message& lost = w.send(id(2), 3000);
    Outcome& o = w.give_note(id(1), at, false, "tried", "");
    w.world.run_for(after);
    bool closed = false;
    reactor::spawn(w.directory->close(), [&](Status status) { closed = status.ok(); });
    ASSERT_TRUE(w.run([&] { return closed; }, 10)) << after;
    ASSERT_TRUE(lost.answered && o.answered) << after;
    EXPECT_FALSE(lost.append.status.ok()) << after;
    EXPECT_FALSE(o.note.status.ok()) << after;
    const bool refused = !lost.append.close_silently;
    w.world.faults().write_error = 0;
    w.crash(Crash::power);
    ASSERT_EQ(w.start(), "") << after;
    EXPECT_TRUE(w.memory.messages.contains(id(1))) << after;
    if (refused) {
      EXPECT_FALSE(w.memory.messages.contains(id(2))) << after << ": it was refused";
    }
  }
}

TEST(SpoolLog, AShardThatIsBusyIsToldTheLatest) {
  SpoolWorld w(1, small_config(), {}, 2);
  ASSERT_EQ(w.start(), "");
  w.append(id(1), 2000);
  w.world.run_for(kSecond);
  std::vector<bool> told;
  w.spools[1]->on_writable = [&](bool writable, const std::string& why) {
    told.push_back(writable);
    EXPECT_EQ(why.empty(), writable);
  };
  bool busy = true;
  w.ios[1]->on_wake = [&] {
    if (!busy) w.boxes[1]->drain();
  };
  w.world.faults().write_error = 1;
  Message& lost = w.send(id(2), 3000);
  ASSERT_TRUE(w.run([&] { return lost.answered; }));
  w.world.faults().write_error = 0;
  ASSERT_TRUE(w.run([&] { return w.spools[0]->reserve(1); }));
  EXPECT_TRUE(told.empty());
  busy = false;
  w.ios[1]->wake();
  w.world.run_for(kSecond);
  EXPECT_EQ(told, (std::vector<bool>{false, true}));
}

TEST(SpoolLog, AShardThatComesLateIsToldThatNothingCanBeWritten) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  w.append(id(1), 2000);
  w.world.run_for(kSecond);
  w.world.faults().write_error = 1;
  Message& lost = w.send(id(2), 3000);
  ASSERT_TRUE(w.run([&] { return lost.answered; }));
  w.ios.push_back(w.world.make_io(w.host));
  w.boxes.push_back(std::make_unique<reactor::Mailbox>(*w.ios[1]));
  w.ios[1]->on_wake = [&] { w.boxes[1]->drain(); };
  w.spools.push_back(w.directory->shard(*w.ios[1], *w.boxes[1]));
  std::vector<bool> told;
  w.spools[1]->on_writable = [&](bool writable, const std::string&) { told.push_back(writable); };
  w.world.run_for(kSecond / 100);
  EXPECT_EQ(told, std::vector<bool>{false});
  w.world.faults().write_error = 0;
  w.world.run_for(5 * kSecond);
  EXPECT_EQ(told, (std::vector<bool>{false, true}));
}

TEST(SpoolLog, NotesAndValuesLargerThanASegmentAreRefusedAndTheRestGoesOn) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 2000);
  Outcome& large = w.give_note(id(1), at, false, std::string(300 << 10, 's'), "");
  Outcome& small = w.give_note(id(1), at, false, "tried", "");
  Put large_put, small_put;
  large_put.give(*w.spools[0], "key", std::string(300 << 10, 'v'));
  small_put.give(*w.spools[0], "key", "value");
  ASSERT_TRUE(w.run(
      [&] { return large.answered && small.answered && large_put.answer && small_put.answer; }));
  ASSERT_FALSE(large.note.status.ok());
  EXPECT_EQ(large.note.status.error().number, EFBIG);
  EXPECT_TRUE(small.note.status.ok());
  ASSERT_FALSE(large_put.answer->ok());
  EXPECT_EQ(large_put.answer->error().number, EFBIG);
  EXPECT_TRUE(small_put.answer->ok());
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.at(id(1)).state, "tried");
  EXPECT_EQ(w.memory.state, (std::map<std::string, std::string>{{"key", "value"}}));
}

// More than a segment holds is given at once: it goes into as many as it takes, in its order.
TEST(SpoolLog, NotesAndValuesThatFillSegmentsKeepTheirOrder) {
  SpoolWorld w(1, without_events());
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 2000);
  std::vector<Outcome*> notes;
  std::deque<Put> puts(20);
  for (int n = 0; n < 20; ++n) {
    notes.push_back(
        &w.give_note(id(1), at, false, std::to_string(n) + std::string(60'000, 's'), ""));
    puts[static_cast<size_t>(n)].give(*w.spools[0], "key",
                                      std::to_string(n) + std::string(60'000, 'v'));
  }
  ASSERT_TRUE(w.run([&] { return notes.back()->answered && puts.back().answer.has_value(); }));
  for (size_t n = 0; n < 20; ++n) {
    EXPECT_TRUE(notes[n]->note.status.ok());
    EXPECT_TRUE(puts[n].answer->ok());
    EXPECT_TRUE(n == 0 || notes[n]->note.sequence > notes[n - 1]->note.sequence);
  }
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.at(id(1)).state.substr(0, 3), "19s");
  EXPECT_EQ(w.memory.state.at("key").substr(0, 3), "19v");
}

TEST(SpoolLog, ABatchTakesNoMoreThanAWriteCanCarry) {
  config::Config config = without_events();
  config.segment_size = 32 << 20;
  config.spool_reserve = 0;
  SpoolWorld w(1, config);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 2000);
  // Three times two mebibytes of notes, then of values, then more mail than the payload of a batch.
  std::vector<Outcome*> notes;
  std::deque<Put> puts(30);
  uint64_t batches = w.spools[0]->stats().batches;
  for (int n = 0; n < 30; ++n)
    notes.push_back(
        &w.give_note(id(1), at, false, std::to_string(n) + std::string(200'000, 's'), ""));
  for (int n = 0; n < 30; ++n)
    puts[static_cast<size_t>(n)].give(*w.spools[0], "key",
                                      std::to_string(n) + std::string(200'000, 'v'));
  std::vector<Message*> sent;
  for (uint64_t n = 2; n < 14; ++n) sent.push_back(&w.send(id(n), 900'000));
  ASSERT_TRUE(
      w.run([&] { return notes.back()->answered && puts.back().answer && sent.back()->answered; }));
  EXPECT_GE(w.spools[0]->stats().batches - batches, 5u);
  // Very many pieces.
  batches = w.spools[0]->stats().batches;
  sent.clear();
  for (uint64_t n = 20; n < 26; ++n) sent.push_back(&w.send(id(n), 90'000, 300));
  ASSERT_TRUE(w.run([&] { return sent.back()->answered; }));
  for (Message* m : sent) {
    ASSERT_TRUE(m->append.status.ok());
    EXPECT_EQ(w.check(m->append.id, m->append.location, 90'000), "intact");
  }
  EXPECT_GE(w.spools[0]->stats().batches, batches + 1);
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.size(), 19u);
  EXPECT_EQ(w.memory.messages.at(id(1)).state.substr(0, 3), "29s");
  EXPECT_EQ(w.memory.state.at("key").substr(0, 3), "29v");
}

// Of a message that recovery set aside, or that is long gone: the note stands for itself.
TEST(SpoolLog, ANoteOfAMessageThatIsNotThereIsWritten) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  w.note(id(5), {77, 4096, 100}, true, "", "delivered 5");
  Location at = w.append(id(1), 2000);
  w.note(id(6), {at.segment, at.offset + 8, 100}, true, "", "delivered 6");
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.size(), 1u);
  EXPECT_EQ(w.memory.events.size(), 3u) << "its event is told";
}

TEST(SpoolLog, AFinalNoteThatIsGivenTwiceCountsOnce) {
  SpoolWorld w(1, without_events());
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 2000);
  w.append(id(2), 2000);
  w.note(id(1), at, true);
  w.note(id(1), at, true);
  w.restart();
  EXPECT_EQ(w.memory.messages.size(), 1u);
}

TEST(SpoolLog, AnOlderMarkTakesNothingBack) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  w.append(id(1), 2000);
  w.append(id(2), 2000);
  w.spools[0]->events_emitted(2);
  w.spools[0]->events_emitted(1);
  w.spools[0]->events_emitted(2);
  w.world.run_for(3 * kSecond);
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_TRUE(w.memory.events.empty());
  w.spools[0]->events_emitted(1);  // the handler tells again what it had
  w.append(id(3), 2000);           // its batch carries the mark, and none is written for it alone
  uint64_t batches = w.spools[0]->stats().batches;
  w.world.run_for(3 * kSecond);
  EXPECT_EQ(w.spools[0]->stats().batches, batches);
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.events.size(), 1u);
}

TEST(SpoolLog, AMarkThatABatchCarriedIsNotWrittenAgain) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  w.append(id(1), 2000);
  w.spools[0]->events_emitted(1);
  w.append(id(2), 2000);
  uint64_t batches = w.spools[0]->stats().batches;
  w.world.run_for(3 * kSecond);
  EXPECT_EQ(w.spools[0]->stats().batches, batches);
}

TEST(SpoolLog, MarksOfAnotherShardThatCameMeanwhileFollow) {
  SpoolWorld w(1, small_config(), {}, 2);
  ASSERT_EQ(w.start(), "");
  for (uint64_t n = 1; n <= 3; ++n) w.append(id(n), 2000);
  for (uint64_t n = 1; n <= 3; ++n) w.spools[1]->events_emitted(n);  // the first is under way
  w.world.run_for(3 * kSecond);
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_TRUE(w.memory.events.empty());
}

TEST(SpoolLog, WithoutASegmentMailIsRefusedAndNotesWait) {
  SpoolWorld w(1, without_events());
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 90'000);
  w.world.run_for(kSecond);
  Message* m = nullptr;
  w.world.set_single_fault(reactor::SingleFault{w.host, Call::rename_file, 1, EIO, true});
  for (uint64_t n = 2; n < 10; ++n) {
    m = &w.send(id(n), 90'000);
    ASSERT_TRUE(w.run([&] { return m->answered; }));
    if (!m->append.status.ok()) break;
    m->buffers.clear();
  }
  ASSERT_FALSE(m->append.status.ok());
  EXPECT_EQ(m->append.status.error().number, EIO);
  EXPECT_FALSE(m->append.close_silently);
  EXPECT_EQ(w.spools[0]->stats().notes_unsynced, 0u);
  Outcome& o = w.give_note(id(1), at, true, "", "");
  w.world.run_for(3 * kSecond);
  EXPECT_FALSE(o.answered);
  EXPECT_FALSE(w.spools[0]->reserve(1));
  w.world.set_single_fault({});
  ASSERT_TRUE(w.run([&] { return o.answered; }));
  EXPECT_TRUE(o.note.status.ok());
  w.world.run_for(2 * kSecond);
  w.append(id(20), 90'000);
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_FALSE(w.memory.messages.contains(id(1)));
}

// Taking a segment into use fails in one of its steps, and the next one is tried.
TEST(SpoolLog, ASegmentThatCannotBeTakenIntoUseIsPassedOver) {
  for (Call call : {Call::rename_file, Call::open_file, Call::allocate, Call::sync_directory}) {
    config::Config config = without_events();
    config.spool_reserve = 0;
    SpoolWorld w(1, config);
    ASSERT_EQ(w.start(), "");
    w.append(id(1), 90'000);
    // Before the next ones are prepared, so that some are made when they are needed.
    w.world.set_single_fault(reactor::SingleFault{w.host, call, 1, EIO, false});
    std::vector<Message*> sent;
    for (uint64_t n = 2; n < 20; ++n) sent.push_back(&w.send(id(n), 90'000));
    ASSERT_TRUE(w.run([&] { return sent.back()->answered; }));
    EXPECT_EQ(w.world.single_faults(), 1u) << to_string(call);
    for (Message* m : sent) EXPECT_TRUE(m->append.status.ok()) << to_string(call);
    w.crash(Crash::power);
    ASSERT_EQ(w.start(), "");
    EXPECT_EQ(w.memory.messages.size(), 19u) << to_string(call);
  }
}

TEST(SpoolLog, ASegmentWhoseIndexCannotBeWrittenIsReadByItsBatches) {
  SpoolWorld w(1, without_events());
  ASSERT_EQ(w.start(), "");
  w.append(id(1), 20'000);
  w.world.run_for(5 * kSecond);  // nothing else is being written
  w.world.set_single_fault(reactor::SingleFault{w.host, Call::write, 1, EIO, false});
  bool closed = false;
  reactor::spawn(w.directory->close(), [&](Status status) { closed = status.ok(); });
  ASSERT_TRUE(w.run([&] { return closed; }));
  EXPECT_EQ(w.world.single_faults(), 1u);
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.size(), 1u);
}

TEST(SpoolLog, AShardThatIsBusyAtTheEndIsToldNothingMore) {
  SpoolWorld w(1, small_config(), {}, 2);
  ASSERT_EQ(w.start(), "");
  w.append(id(1), 2000);
  w.world.run_for(kSecond);
  std::vector<bool> told;
  w.spools[1]->on_writable = [&](bool writable, const std::string&) { told.push_back(writable); };
  bool busy = true;
  w.ios[1]->on_wake = [&] {
    if (!busy) w.boxes[1]->drain();
  };
  w.world.faults().write_error = 1;
  Message& lost = w.send(id(2), 3000);
  ASSERT_TRUE(w.run([&] { return lost.answered; }));
  bool closed = false;
  reactor::spawn(w.directory->close(), [&](Status status) { closed = status.ok(); });
  ASSERT_TRUE(w.run([&] { return closed; }));
  busy = false;
  w.ios[1]->wake();
  w.world.run_for(kSecond);
  EXPECT_EQ(told, std::vector<bool>{false});
}

TEST(SpoolLog, EachShardCountsItsOwn) {
  SpoolWorld w(1, small_config(), {}, 2);
  ASSERT_EQ(w.start(), "");
  w.append(id(1), 2000, 1 << 20, 1);
  w.append(id(2), 3000, 1 << 20, 1);
  EXPECT_EQ(w.spools[1]->stats().messages, 2u);
  EXPECT_EQ(w.spools[1]->stats().bytes_body, 5000u);
  EXPECT_EQ(w.spools[1]->stats().batches, 0u) << "of the log as a whole: counted on its shard";
  EXPECT_EQ(w.spools[0]->stats().messages, 0u);
  EXPECT_EQ(w.spools[0]->stats().batches, 2u);
}

TEST(SpoolLog, AValueMayBePutWithoutAnAnswer) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  w.spools[0]->put_state("key", "value", {});
  w.world.run_for(kSecond);
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.state.at("key"), "value");
}

TEST(SpoolLog, PiecesThatTouchAreOneExtentAndEmptyOnesAreNone) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  std::string body = pattern(1500, 7);
  auto buffer = w.ios[0]->buffers(reactor::BufferGroup::ingress).allocate(4096);
  std::memcpy(buffer->data + 100, body.data(), body.size());
  auto give = [&](uint64_t number, std::vector<Piece> pieces, std::string_view all) {
    Message& m = w.make(id(number), 0);
    m.append.pieces = std::move(pieces);
    m.append.body_crc = crc32c(0, all);
    w.spools[0]->append(m.append);
    EXPECT_TRUE(w.run([&] { return m.answered; }));
    EXPECT_TRUE(m.append.status.ok());
    EXPECT_TRUE(w.read(id(number), m.append.location) == all) << number;
    return m.append.location.size;
  };
  const char* at = buffer->data + 100;
  uint32_t whole = give(1, {{at, 1500, buffer.get()}}, body);
  EXPECT_EQ(
      give(2,
           {{at, 1000, buffer.get()}, {at + 1000, 0, buffer.get()}, {at + 1000, 500, buffer.get()}},
           body),
      whole);
  EXPECT_EQ(give(3, {{at, 1000, nullptr}, {at, 0, nullptr}, {at + 1000, 500, nullptr}}, body),
            whole)
      << "copied together";
  EXPECT_LT(give(4, {{at, 0, nullptr}}, ""), whole);
  EXPECT_LT(give(5, {{at, 0, buffer.get()}}, ""), whole);
}

// What was written in vain to a segment holds nothing, even when the segment's file cannot be
// removed.
TEST(SpoolLog, ASegmentThatCannotBeRemovedHoldsNothingAllTheSame) {
  for (uint64_t seed = 1; seed <= 16; ++seed) {
    SpoolWorld w(seed, without_events());
    ASSERT_EQ(w.start(), "");
    Location before = w.append(id(1), 3000);
    w.world.run_for(kSecond);
    w.world.set_single_fault(reactor::SingleFault{w.host, Call::remove_file, 1, EIO, true});
    w.world.faults().write_error = 1;
    Message& m = w.send(id(2), 3000);
    Outcome& note = w.give_note(id(1), before, false, "tried", "");
    w.world.run_for(static_cast<int64_t>(seed) * 40'000);
    w.world.faults().write_error = 0;
    ASSERT_TRUE(w.run([&] { return m.answered && note.answered; }));
    bool accepted = m.append.status.ok(), silent = m.append.close_silently;
    EXPECT_TRUE(note.note.status.ok());
    w.world.run_for(static_cast<int64_t>(seed % 4) * kSecond);
    w.append(id(3), 3000);
    if (seed % 2 == 0) w.world.set_single_fault({});
    w.crash(seed % 3 ? Crash::power : Crash::process);
    w.world.set_single_fault({});
    ASSERT_EQ(w.start(), "");
    EXPECT_EQ(w.memory.messages.at(id(1)).state, "tried") << seed;
    EXPECT_TRUE(w.memory.messages.contains(id(3))) << seed;
    if (!silent) {
      EXPECT_EQ(w.memory.messages.contains(id(2)), accepted) << seed;
    }
  }
}

// The write fails, and there is no segment to go on in: neither accepted nor refused.
TEST(SpoolLog, AFailedWriteWithoutAnotherSegmentClosesSilently) {
  SpoolWorld w(1, without_events());
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 3000);
  w.world.run_for(kSecond);
  w.world.set_single_fault(reactor::SingleFault{w.host, Call::rename_file, 1, EIO, true});
  w.world.faults().write_error = 1;
  Message& m = w.send(id(2), 3000);
  Outcome& note = w.give_note(id(1), at, false, "tried", "");
  ASSERT_TRUE(w.run([&] { return m.answered; }));
  EXPECT_TRUE(m.append.close_silently);
  // Segments can be had again, but not written: each second one is tried, and given up.
  w.world.set_single_fault({});
  w.world.run_for(5 * kSecond);
  EXPECT_FALSE(note.answered);
  EXPECT_FALSE(w.spools[0]->reserve(1));
  w.world.faults().write_error = 0;
  ASSERT_TRUE(w.run([&] { return note.answered; }));
  EXPECT_TRUE(note.note.status.ok());
  w.append(id(3), 3000);
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.at(id(1)).state, "tried");
  EXPECT_TRUE(w.memory.messages.contains(id(3)));
}

TEST(SpoolLog, MailThatComesAllTheSameIsRefusedByAFullDisk) {
  reactor::SimOptions options;
  options.disk_bytes = 4 << 20;
  SpoolWorld w(5, without_events(), options);
  ASSERT_EQ(w.start(), "");
  std::vector<std::pair<mail::SpoolId, Location>> kept;
  size_t refused = 0;
  for (uint64_t n = 1; n < 400 && refused < 20; ++n) {
    Message& m = w.send(id(n), 20'000);  // reserve() was not asked
    ASSERT_TRUE(w.run([&] { return m.answered; }));
    m.buffers.clear();
    if (m.append.status.ok()) {
      kept.emplace_back(m.append.id, m.append.location);
      continue;
    }
    ++refused;
    EXPECT_EQ(m.append.status.error().number, ENOSPC);
    EXPECT_FALSE(m.append.close_silently);
  }
  EXPECT_EQ(refused, 20u);
  for (auto& [at, location] : kept) w.note(at, location, true);
  w.world.run_for(10 * kSecond);
  w.append(id(1000), 20'000);
  w.crash(Crash::power);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.size(), 1u);
}

TEST(SpoolLog, WhereALocationLiesIsAllOfIt) {
  Location at{7, 4096, 88};
  EXPECT_EQ(at, (Location{7, 4096, 88}));
  EXPECT_NE(at, (Location{8, 4096, 88}));
  EXPECT_NE(at, (Location{7, 8192, 88}));
  EXPECT_NE(at, (Location{7, 4096, 96}));
}

}  // namespace
}  // namespace millrace::spool
