// What a start makes of a directory: of files that are not the spool's, that cannot be read or
// changed, that were cut short, copied or written wrong; and what the records in them add up to.
#include "spool/recovery.h"

#include "crafted.h"
#include "harness.h"

namespace millrace::spool {
namespace {

using namespace testing;
using reactor::Call;

constexpr const char* kSeven = "/spool/0000000007.seg";

// A spool whose directory a test fills before it starts.
struct CraftedWorld : SpoolWorld {
  explicit CraftedWorld(config::Config config = small_config()) : SpoolWorld(1, std::move(config)) {
    EXPECT_TRUE(disk().make_directory("/spool").ok());
    world.faults().short_read = world.faults().short_write = 0;  // calls are counted here
  }
  reactor::SimDisk& disk() { return world.disk(host); }
  void put_segment(const Crafted& segment, const std::string& name = "") {
    put_file(disk(), "/spool/" + (name.empty() ? segment_name(segment.header.generation) : name),
             segment.bytes());
  }
  // Free, of this spool: says whose the directory is when no other header can be read.
  void put_free(const std::string& name, uint64_t size = 256 << 10) {
    Crafted segment(3);
    segment.header.state = SegmentState::free;
    segment.image.resize(size, '\0');
    put_file(disk(), "/spool/" + name, segment.bytes());
  }
  std::string start_with(Call call, uint64_t nth, int error = EIO, bool from_then_on = false) {
    world.set_single_fault(reactor::SingleFault{host, call, nth, error, from_then_on});
    std::string text = start();
    EXPECT_GT(world.single_faults(), 0u)
        << to_string(call) << " was not called " << nth << " times";
    world.set_single_fault({});
    return text;
  }
  bool remarked(std::string_view text) const {
    for (const std::string& one : summary.remarks) {
      if (one.find(text) != std::string::npos) return true;
    }
    return false;
  }
};

Crafted two_messages(uint32_t generation = 7) {
  Crafted segment(generation);
  segment.add({bodyless(1, 1), bodyless(2, 2)});
  return segment;
}

TEST(SpoolDirectory, FilesOfOtherNamesAreLeftAlone) {
  CraftedWorld w;
  w.put_segment(two_messages());
  const char* names[] = {
      "notes.txt",      "0000000012.txt", "abcdefghij.seg",        "12345abcde.seg",
      "9999999999.seg", "000000012.seg",  "0000000012.seg.damaged"};
  for (const char* name : names) put_file(w.disk(), std::string("/spool/") + name, "mine");
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.size(), 2u);
  EXPECT_TRUE(w.summary.remarks.empty());
  for (const char* name : names)
    EXPECT_EQ(w.disk().content(std::string("/spool/") + name), "mine") << name;
}

TEST(SpoolDirectory, APathMayBeRelativeOrDeep) {
  for (const char* path : {"spool", "/var/spool"}) {
    config::Config config = small_config();
    config.spool = path;
    SpoolWorld w(1, config);
    ASSERT_TRUE(w.world.disk(w.host).make_directory("/var").ok());
    ASSERT_TRUE(w.world.disk(w.host).sync_directory("/").ok());
    ASSERT_EQ(w.start(), "") << path;
    w.append(id(1), 2000);
    w.crash(reactor::Crash::power);
    ASSERT_EQ(w.start(), "") << path;
    EXPECT_EQ(w.memory.messages.size(), 1u) << path << ": the directory's own name was durable";
  }
}

TEST(SpoolDirectory, MessagesOfFourGibibytesAreRefusedAtTheStart) {
  config::Config config = small_config();
  config.max_message_size = uint64_t{4} << 30;
  SpoolWorld w(1, config);
  EXPECT_NE(w.start().find("4 GiB"), std::string::npos);
}

// Each failure ends the start with its text, and the next start finds everything.
TEST(SpoolDirectory, WhatFailsAtTheStartIsNamedAndLosesNothing) {
  struct Case {
    Call call;
    uint64_t nth;
    const char* names;
  };
  for (const Case& one :
       {Case{Call::make_directory, 1, "/spool"}, Case{Call::sync_directory, 1, ""},
        Case{Call::lock_file, 1, "lock"}, Case{Call::sync_directory, 2, "/spool"},
        Case{Call::list_directory, 1, "/spool"}, Case{Call::open_file, 1, ".seg"},
        Case{Call::sync, 1, ".seg"}, Case{Call::file_size, 1, ""},
        // Of the first file to be prepared.
        Case{Call::allocate, 1, ""}, Case{Call::write, 1, ".new"}}) {
    CraftedWorld w;
    w.put_segment(two_messages());
    std::string text = w.start_with(one.call, one.nth);
    EXPECT_NE(text, "") << to_string(one.call);
    EXPECT_NE(text.find(one.names), std::string::npos) << to_string(one.call) << ": " << text;
    w.crash(reactor::Crash::process);
    ASSERT_EQ(w.start(), "");
    EXPECT_EQ(w.memory.messages.size(), 2u) << to_string(one.call);
    EXPECT_TRUE(w.summary.remarks.empty()) << to_string(one.call);
  }
}

TEST(SpoolDirectory, AHeaderThatCannotBeReadIsMadeUpForByTheBatches) {
  bool met = false;  // files are read in any order
  for (uint64_t nth : {1, 2}) {
    CraftedWorld w;
    w.put_segment(two_messages());
    w.put_segment(Crafted(8, StreamNumber::mail, 7, 3 * kBlock));
    ASSERT_EQ(w.start_with(Call::read, nth), "");
    EXPECT_EQ(w.memory.messages.size(), 2u);
    met = met || w.remarked("0000000007.seg: damaged header; its batches are readable");
  }
  EXPECT_TRUE(met);
}

TEST(SpoolDirectory, FilesTooShortToHoldAnythingAreRemoved) {
  CraftedWorld w;
  w.put_segment(two_messages());
  put_file(w.disk(), "/spool/0000000003.new", "");
  put_file(w.disk(), "/spool/0000000004.new", std::string(kBlock - 1, '\1'));
  put_file(w.disk(), "/spool/0000000005.new", std::string(256 << 10, '\0'));
  w.put_free("0000000006.new", 128 << 10);  // of a time when segments were smaller
  ASSERT_EQ(w.start(), "");
  EXPECT_TRUE(w.summary.remarks.empty());
  for (const char* name :
       {"0000000003.new", "0000000004.new", "0000000005.new", "0000000006.new"}) {
    EXPECT_FALSE(w.disk().exists(std::string("/spool/") + name)) << name;
  }
}

TEST(SpoolDirectory, AFileThatCannotBeRemovedOrRenamedEndsTheStart) {
  for (int which = 0; which < 5; ++which) {
    CraftedWorld w;
    Call call = Call::remove_file;
    std::string says = "remove";
    if (which == 0) put_file(w.disk(), "/spool/0000000003.new", "");
    if (which == 1) w.put_free("0000000003.new", 128 << 10);
    if (which == 2) {  // given up: the later one names another as the one before it
      w.put_segment(two_messages(6));
      Crafted later(8, StreamNumber::mail, 5, kBlock);
      later.add({bodyless(3, 3)});
      w.put_segment(later);
    }
    if (which == 3)
      put_file(w.disk(), "/spool/0000000003.seg", std::string(256 << 10, 'x'));  // damaged
    if (which == 4) w.put_segment(two_messages(), "0000000001.new");
    if (which >= 3) call = Call::rename_file, says = "renam";
    std::string text = w.start_with(call, 1);
    EXPECT_NE(text.find(says), std::string::npos) << which << ": " << text;
    w.crash(reactor::Crash::process);
    EXPECT_EQ(w.start(), "") << which;
  }
}

TEST(SpoolDirectory, ATrailerIsLookedForOnlyWhereThereIsRoomForOne) {
  for (uint64_t size : {uint64_t{kBlock}, uint64_t{kBlock} + 512, uint64_t{3} * kBlock - 512}) {
    CraftedWorld w;
    Crafted segment = two_messages();
    segment.image.resize(size, '\0');
    w.put_segment(segment);
    ASSERT_EQ(w.start(), "") << size;
    // A batch is read when all of it is there.
    EXPECT_EQ(w.memory.messages.size(), 0u) << size;
    w.stop();
  }
}

TEST(SpoolDirectory, SegmentsOfAnotherSpoolAreLeftAlone) {
  CraftedWorld w;
  w.put_segment(two_messages(7));
  w.put_segment(two_messages(8));
  Crafted other(9);
  other.header.uuid[0] = 99;
  other.add({bodyless(9, 9)});
  w.put_segment(other);
  // Messages 1 and 2 are in both segments: say so in one of them only.
  Crafted eight(8, StreamNumber::mail, 7, 3 * kBlock);
  eight.add({bodyless(3, 3)});
  w.put_segment(eight);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.size(), 3u);
  EXPECT_TRUE(w.remarked("0000000009.seg: belongs to the spool 63020304"));
  EXPECT_EQ(w.disk().content("/spool/0000000009.seg"), other.bytes());
}

TEST(SpoolDirectory, AsManySegmentsOfOneSpoolAsOfAnotherEndTheStart) {
  CraftedWorld w;
  for (uint32_t generation : {7, 8, 9, 10, 11}) {
    Crafted segment(generation);
    segment.header.uuid[0] = static_cast<uint8_t>(generation < 9 ? 1 : generation < 11 ? 200 : 99);
    w.put_segment(segment);
  }
  std::string text = w.start();
  EXPECT_NE(
      text.find("as many segments of one spool (0000000007.seg) as of another (0000000009.seg)"),
      std::string::npos)
      << text;
}

TEST(SpoolRecovery, ASegmentOfAStreamThatIsUnknownEndsTheStart) {
  CraftedWorld w;
  Crafted segment = two_messages();
  segment.header.stream = static_cast<StreamNumber>(2);
  w.put_segment(segment);
  EXPECT_NE(w.start().find("0000000007.seg: stream 2 is unknown"), std::string::npos);
}

TEST(SpoolRecovery, ACopyOfASegmentEndsTheStart) {
  for (auto stream : {StreamNumber::mail, StreamNumber::kept}) {
    CraftedWorld w;
    w.put_segment(two_messages(), "0000000001.new");
    Crafted copy = two_messages();
    copy.header.stream = stream;
    w.put_segment(copy, "0000000002.new");
    std::string text = w.start();
    EXPECT_NE(text.find("holds the segment of 0000000007.seg, which is there, too"),
              std::string::npos)
        << text;
  }
}

TEST(SpoolRecovery, WhatWasGivenUpHoldsNothing) {
  CraftedWorld w;
  Crafted first = two_messages(5);
  uint32_t end = static_cast<uint32_t>(first.image.size());
  first.add({bodyless(3, 3)});  // after the end that the next one tells
  w.put_segment(first);
  Crafted given_up(6, StreamNumber::mail, 5, end);
  given_up.add({bodyless(3, 4)});
  w.put_segment(given_up);
  Crafted last(7, StreamNumber::mail, 5, end);
  last.add({bodyless(3, 5)});
  w.put_segment(last);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.size(), 3u);
  EXPECT_FALSE(w.memory.messages.contains(id(3)));
  EXPECT_FALSE(w.memory.messages.contains(id(4)));
  EXPECT_FALSE(w.disk().exists("/spool/0000000006.seg"));
}

// Its header is lost, so what it says of the one before it is not known: nothing is taken for given
// up.
TEST(SpoolRecovery, ASegmentThatLostItsHeaderTakesNothingWithIt) {
  CraftedWorld w;
  w.put_segment(two_messages(5));
  Crafted last(7, StreamNumber::mail, 5, 3 * kBlock);
  last.add({bodyless(3, 3)});
  w.put_segment(last);
  put_file(w.disk(), kSeven, std::string(100, 'x'));
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.size(), 3u);
  EXPECT_TRUE(w.remarked("0000000007.seg: damaged header; its batches are readable"));
}

TEST(SpoolRecovery, WhatIsSalvagedGoesBackToItsStream) {
  struct Case {
    std::string record;
    const char* what;
  };
  for (const Case& one :
       {Case{bodyless(9, 1, "moved", RecordFlags::moved), "a moved message"},
        Case{note_record(9, 1, RecordKind::tombstone, "", "", {5, kBlock + 64, 72}),
             "a tombstone"}}) {
    CraftedWorld w;
    w.put_segment(two_messages(5));
    Crafted kept(7, StreamNumber::kept);
    kept.add({one.record});
    w.put_segment(kept);
    put_file(w.disk(), kSeven, std::string(100, 'x'));
    ASSERT_EQ(w.start(), "") << one.what;
    EXPECT_TRUE(w.memory.messages.contains(id(2))) << one.what;
    if (w.memory.messages.contains(id(1))) {
      EXPECT_EQ(w.memory.messages.at(id(1)).location.segment, 7u);
      EXPECT_EQ(w.memory.messages.at(id(1)).state, "moved");
    } else {
      EXPECT_STREQ(one.what, "a tombstone");
    }
    // The segment of mail is still the newest of its stream, and the next start says the same.
    size_t found = w.memory.messages.size();
    w.restart();
    EXPECT_EQ(w.memory.messages.size(), found) << one.what;
  }
}

TEST(SpoolRecovery, WithoutHeaderAndBatchAFileIsSetAside) {
  struct Case {
    const char* what;
    void (*change)(Crafted& segment);
  };
  for (const Case& one : {
           Case{"only a header's block", [](Crafted& s) { s.image.resize(kBlock); }},
           Case{"no batch",
                [](Crafted& s) { s.change(kBlock, [](BatchHeader& h) { h.magic = 0; }); }},
           Case{"another spool's",
                [](Crafted& s) { s.change(kBlock, [](BatchHeader& h) { ++h.uuid_part; }); }},
           Case{"copied from elsewhere",
                [](Crafted& s) { s.change(kBlock, [](BatchHeader& h) { h.offset = 8192; }); }},
           Case{"a damaged batch", [](Crafted& s) { s.image[kBlock + sizeof(BatchHeader)] ^= 1; }},
           Case{"a batch of nothing", [](Crafted& s) { s.image.resize(kBlock), s.add({}); }},
       }) {
    CraftedWorld w;
    w.put_free("0000000009.new");
    Crafted segment = two_messages();
    one.change(segment);
    segment.header.magic[0] = 'x';
    w.put_segment(segment);
    ASSERT_EQ(w.start(), "") << one.what;
    EXPECT_TRUE(w.remarked("0000000007.seg: damaged header and no readable batch; set aside"))
        << one.what;
    EXPECT_EQ(w.disk().content(std::string(kSeven) + ".damaged"), segment.bytes()) << one.what;
    EXPECT_EQ(w.summary.records_damaged, 1u) << one.what;
    EXPECT_FALSE(w.disk().exists(kSeven)) << one.what;
  }
}

TEST(SpoolRecovery, ADamagedFileThatCannotBeReadIsSetAside) {
  for (auto [call, nth] : {std::pair(Call::open_file, 3), std::pair(Call::read, 3)}) {
    CraftedWorld w;
    w.put_free("0000000009.new");
    Crafted segment = two_messages();
    segment.header.magic[0] = 'x';
    w.put_segment(segment);
    ASSERT_EQ(w.start_with(call, static_cast<uint64_t>(nth)), "") << to_string(call);
    EXPECT_TRUE(w.remarked("set aside as 0000000007.seg.damaged")) << to_string(call);
  }
}

TEST(SpoolRecovery, ASegmentThatCannotBeOpenedEndsTheStart) {
  CraftedWorld w;
  w.put_segment(two_messages());
  std::string text = w.start_with(Call::open_file, 2, EMFILE);
  EXPECT_NE(text.find("0000000007.seg"), std::string::npos) << text;
}

TEST(SpoolRecovery, ASegmentThatCannotBeReadIsSetAsideAndTheRestGoesOn) {
  for (auto stream : {StreamNumber::mail, StreamNumber::kept}) {
    CraftedWorld w;
    Crafted bad(7, stream);
    bad.add({bodyless(1, 1, "",
                      stream == StreamNumber::kept ? uint16_t{RecordFlags::moved} : uint16_t{0})});
    w.put_segment(bad);
    Crafted good(8, stream, 7, static_cast<uint32_t>(bad.image.size()));
    good.add({bodyless(2, 2, "",
                       stream == StreamNumber::kept ? uint16_t{RecordFlags::moved} : uint16_t{0})});
    w.put_segment(good);
    // Both ends of both files, then the newest, then this one: of the kept ones each is read twice.
    ASSERT_EQ(w.start_with(Call::read, 6), "");
    EXPECT_TRUE(w.memory.messages.contains(id(2)));
    EXPECT_TRUE(w.remarked("0000000007.seg: cannot be read: ")) << w.summary.remarks.size();
    EXPECT_EQ(w.summary.records_damaged, 1u);
    w.world.run_for(10 * kSecond);
    EXPECT_TRUE(w.disk().exists(kSeven)) << "it stays: another start may read it";
  }
}

TEST(SpoolRecovery, AFileThatEndsBeforeItsBatchesDoIsSetAside) {
  CraftedWorld w;
  Crafted cut = two_messages();
  auto end = static_cast<uint32_t>(cut.image.size());
  cut.image.resize(2 * kBlock);
  w.put_segment(cut);
  Crafted next(8, StreamNumber::mail, 7, end);
  next.add({bodyless(3, 3)});
  w.put_segment(next);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.size(), 1u);
  EXPECT_EQ(w.summary.records_damaged, 1u);
  EXPECT_TRUE(w.remarked("0000000007.seg: damaged batch head at offset 4096"));
}

TEST(SpoolRecovery, ARecordThatMustNotBeSkippedEndsTheStart) {
  auto unknown = static_cast<RecordKind>(99);
  for (bool sealed : {false, true}) {
    CraftedWorld w;
    Crafted segment(7);
    segment.add({record_of(unknown, StateFixed{}, "", 0, 1, RecordFlags::refuse)});
    if (sealed) segment.seal(1);
    w.put_segment(segment);
    std::string text = w.start();
    EXPECT_NE(text.find("record of unknown kind 99"), std::string::npos) << text;
    EXPECT_NE(text.find("0000000007.seg"), std::string::npos) << text;
  }
}

// Lengths that do not add up under checksums that are good: written wrong. Such a record says
// nothing, the rest does.
TEST(SpoolRecovery, RecordsWrittenWrongAreSkipped) {
  CraftedWorld w;
  Crafted segment(7);
  MessageFixed message{};
  message.id_low = 9;
  message.extents = 1000;
  segment.add({record_of(RecordKind::message, message, "", 0, 1),
               record_of(RecordKind::note, NoteFixed{1, 1, 7, 0, 0, 999}, "", 0, 2),
               record_of(RecordKind::state, StateFixed{999, 0}, "", 0, 3), bodyless(4, 4)});
  uint32_t end = segment.add({state_record(5, "key", "value")});
  segment.add({state_record(6, "key", "later")});
  w.put_segment(segment);
  Crafted next(8, StreamNumber::mail, 7, end + 2 * kBlock);
  next.add({state_record(6, "other", "value")});
  w.put_segment(next);
  ASSERT_EQ(w.start(), "");
  EXPECT_EQ(w.memory.messages.size(), 1u);
  EXPECT_TRUE(w.memory.messages.contains(id(4)));
  EXPECT_EQ(w.memory.state,
            (std::map<std::string, std::string>{{"key", "value"}, {"other", "value"}}));
}

TEST(SpoolRecovery, AFinalNoteIsFinalWhateverElseIsSaid) {
  for (bool final_first : {false, true}) {
    CraftedWorld w;
    Crafted segment(7);
    segment.add({bodyless(1, 1), bodyless(2, 2)});
    std::string final = note_record(final_first ? 3 : 5, 1, RecordKind::note, "");
    std::string open = note_record(4, 1, RecordKind::note, "again");
    segment.add({final_first ? final : open, final_first ? open : final});
    w.put_segment(segment);
    ASSERT_EQ(w.start(), "");
    EXPECT_EQ(w.memory.messages.size(), 1u) << final_first;
  }
}

TEST(SpoolRecovery, TheLatestOfNotesCopiesAndValuesCountsInWhateverOrderTheyAreRead) {
  CraftedWorld w;
  Crafted mail(7);
  // Sequences as they are when compaction wrote beside the stream of mail.
  mail.add({bodyless(1, 1, "as it came"), note_record(6, 1, RecordKind::note, "second"),
            note_record(4, 1, RecordKind::note, "first"), state_record(8, "key", "new"),
            state_record(7, "key", "old"), state_record(9, "gone", ""), bodyless(2, 2)});
  w.put_segment(mail);
  Crafted kept(8, StreamNumber::kept);
  kept.add({bodyless(13, 2, "latest", RecordFlags::moved),
            bodyless(12, 2, "older", RecordFlags::moved)});
  w.put_segment(kept);
  ASSERT_EQ(w.start(), "");
  ASSERT_EQ(w.memory.messages.size(), 2u);
  EXPECT_EQ(w.memory.messages.at(id(1)).state, "second");
  EXPECT_EQ(w.memory.messages.at(id(2)).state, "latest");
  EXPECT_EQ(w.memory.messages.at(id(2)).location.segment, 8u);
  EXPECT_EQ(w.memory.state, (std::map<std::string, std::string>{{"key", "new"}}));
}

TEST(SpoolRecovery, ACopyWhoseBodyIsDamagedReplacesNothing) {
  CraftedWorld w;
  Crafted mail(7);
  mail.add({bodyless(1, 1, "the original")});
  w.put_segment(mail);
  Crafted kept(8, StreamNumber::kept);
  MessageFixed fixed{};
  fixed.id_high = 1;
  fixed.id_low = 1;
  fixed.body_size = 77;  // and no extent that holds it
  kept.add({record_of(RecordKind::message, fixed, "", 0, 5, RecordFlags::moved)});
  kept.add({state_record(6, "key", "value")});
  w.put_segment(kept);
  ASSERT_EQ(w.start(), "");
  ASSERT_EQ(w.memory.messages.size(), 1u);
  EXPECT_EQ(w.memory.messages.at(id(1)).state, "the original");
  EXPECT_EQ(w.summary.records_damaged, 1u);
}

TEST(SpoolRecovery, AnIndexThatCannotBeReadIsMadeUpForByTheBatches) {
  CraftedWorld w;
  Crafted segment = two_messages();
  segment.seal(2);
  w.put_segment(segment);
  ASSERT_EQ(w.start_with(Call::read, 3), "");
  EXPECT_EQ(w.memory.messages.size(), 2u);
  EXPECT_TRUE(w.remarked("0000000007.seg: incomplete or damaged index"));
}

TEST(SpoolRecovery, EventsOfASealedSegmentAreReplayedUnlessTheyWereEmitted) {
  for (uint64_t emitted : {uint64_t{0}, uint64_t{1}, uint64_t{2}}) {
    CraftedWorld w;
    Crafted segment(7);
    segment.add({note_record(1, 1, RecordKind::note, "", "first"),
                 note_record(2, 1, RecordKind::tombstone, "", "second")});
    segment.change(kBlock, [&](BatchHeader& head) { head.emitted = emitted; });
    segment.seal(2, 2);
    w.put_segment(segment);
    ASSERT_EQ(w.start(), "");
    EXPECT_EQ(w.memory.events.size(), 2 - emitted) << emitted;
  }
}

}  // namespace
}  // namespace millrace::spool
