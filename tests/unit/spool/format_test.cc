// What is made of a segment's bytes: records of kinds that are not known, damage, what a power cut left, and fields
// that say what cannot be although their checksums are good.
#include "spool/format.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "crafted.h"

namespace millrace::spool {
namespace {

using namespace testing;

constexpr uint32_t kGeneration = 7;
constexpr auto kUnknown = static_cast<RecordKind>(99);

std::string record(RecordKind kind, uint64_t sequence, uint16_t flags = 0) {
  return record_of(kind, StateFixed{3, 5}, "keyvalue", 0, sequence, flags);
}

struct Segment : Crafted {
  Segment() : Crafted(kGeneration) {}
  // Seals the batch's head again after its records were changed.
  void mend(uint32_t at) {
    change(at, [](BatchHeader&) {});
  }
  Scan scan(ScanOptions options = {}) const { return scan_segment(image, kUuid, kGeneration, options, "seg"); }
};

TEST(SpoolFormat, RecordsAreReadInOrder) {
  Segment segment;
  segment.add({record(RecordKind::state, 1), record(RecordKind::state, 2)});
  segment.add({record(RecordKind::state, 3)});
  Scan scan = segment.scan();
  ASSERT_EQ(scan.records.size(), 3u);
  EXPECT_EQ(scan.last_sequence, 3u);
  EXPECT_EQ(scan.end, segment.image.size());
  EXPECT_FALSE(scan.damaged);
  StateView state;
  ASSERT_TRUE(view(scan.records[0], state));
  EXPECT_EQ(state.key, "key");
  EXPECT_EQ(state.value, "value");
  NoteView note;
  EXPECT_FALSE(view(scan.records[0], note));
}

TEST(SpoolFormat, UnknownKindsAreSkippedUnlessTheyForbidIt) {
  Segment segment;
  segment.add({record(kUnknown, 1), record(RecordKind::state, 2)});
  Scan scan = segment.scan();
  EXPECT_EQ(scan.records.size(), 1u);
  EXPECT_TRUE(scan.refused.empty());
  EXPECT_EQ(scan.last_sequence, 2u);
  segment.add({record(kUnknown, 3, RecordFlags::refuse)});
  scan = segment.scan();
  EXPECT_NE(scan.refused.find("seg: record of unknown kind 99"), std::string::npos);
}

TEST(SpoolFormat, ADamagedRecordSetsTheRestOfItsBatchAside) {
  Segment segment;
  uint32_t at = segment.add({record(RecordKind::state, 1), record(RecordKind::state, 2), record(RecordKind::state, 3)});
  segment.add({record(RecordKind::state, 4)});
  segment.image[at + sizeof(BatchHeader) + record(RecordKind::state, 2).size() + 30] ^= 1;
  segment.mend(at);
  Scan scan = segment.scan();
  EXPECT_TRUE(scan.damaged);
  EXPECT_EQ(scan.records_damaged, 1u);
  ASSERT_EQ(scan.records.size(), 2u);
  EXPECT_EQ(scan.records[0].header().sequence, 1u);
  EXPECT_EQ(scan.records[1].header().sequence, 4u);
}

TEST(SpoolFormat, ADamagedHeadIsDamageOnlyWhereMoreFollows) {
  Segment segment;
  uint32_t first = segment.add({record(RecordKind::state, 1)});
  uint32_t second = segment.add({record(RecordKind::state, 2)});
  Segment torn = segment;
  torn.image[second + sizeof(BatchHeader) + 4] ^= 1;
  Scan scan = torn.scan({.newest = true});
  EXPECT_FALSE(scan.damaged) << "the last batch: power went while it was written";
  EXPECT_EQ(scan.batches_cut, 1u);
  EXPECT_EQ(scan.end, second);
  EXPECT_EQ(scan.records.size(), 1u);

  scan = torn.scan({.known_end = static_cast<uint32_t>(torn.image.size())});
  EXPECT_TRUE(scan.damaged) << "it is known that it was complete";
  EXPECT_EQ(scan.end, torn.image.size());

  segment.image[first + sizeof(BatchHeader) + 4] ^= 1;
  scan = segment.scan({.newest = true});
  EXPECT_TRUE(scan.damaged) << "a batch follows";
  ASSERT_EQ(scan.records.size(), 1u);
  EXPECT_EQ(scan.records[0].header().sequence, 2u);
}

TEST(SpoolFormat, AnIndexTellsWhatTheSegmentHolds) {
  Segment segment;
  segment.add({record(RecordKind::state, 1), record(kUnknown, 2), record(RecordKind::state, 3)});
  std::string index;
  std::string first = record(RecordKind::state, 1), unknown = record(kUnknown, 2, RecordFlags::refuse);
  append_index_entry(index, first.data(), 4096);
  append_index_entry(index, unknown.data(), 4200);
  Trailer trailer{};
  trailer.generation = kGeneration;
  trailer.index_size = static_cast<uint32_t>(index.size());
  trailer.index_crc = crc32c(0, index);
  trailer.entries = 2;
  std::vector<RecordRef> records;
  std::string refused;
  ASSERT_TRUE(scan_index(index, trailer, records, refused));
  EXPECT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0].offset, 4096u);
  EXPECT_NE(refused.find("unknown kind 99 at offset 4200"), std::string::npos);
  trailer.entries = 3;
  EXPECT_FALSE(scan_index(index, trailer, records, refused)) << "one more than there are";
  trailer.entries = 2;
  index[20] ^= 1;
  EXPECT_FALSE(scan_index(index, trailer, records, refused));
  EXPECT_FALSE(scan_index(std::string_view(index).substr(0, 8), trailer, records, refused));
}

template <typename T>
std::string block_of(T value, uint32_t crc_offset) {
  uint32_t crc = crc32c(0, &value, crc_offset);
  std::memcpy(reinterpret_cast<char*>(&value) + crc_offset, &crc, sizeof crc);
  std::string block(kBlock, '\0');
  std::memcpy(block.data(), &value, sizeof value);
  return block;
}

SegmentHeader good_header() { return Crafted(kGeneration).header; }

TEST(SpoolFormat, ASegmentsHeaderIsTakenOnlyWhenItIsWhole) {
  auto verdict = [](const std::string& block) {
    SegmentHeader out;
    return read_segment_header(block, out);
  };
  auto sealed = [](const SegmentHeader& header) { return block_of(header, offsetof(SegmentHeader, crc)); };
  EXPECT_EQ(verdict(sealed(good_header())), HeaderVerdict::good);
  SegmentHeader free = good_header();
  free.state = SegmentState::free;
  EXPECT_EQ(verdict(sealed(free)), HeaderVerdict::good);
  EXPECT_EQ(verdict(std::string(kBlock, '\0')), HeaderVerdict::blank);
  std::string dust(kBlock, '\0');
  dust[kBlock - 1] = 1;
  EXPECT_EQ(verdict(dust), HeaderVerdict::damaged);
  EXPECT_EQ(verdict(sealed(good_header()).substr(0, sizeof(SegmentHeader) - 1)), HeaderVerdict::damaged);
  SegmentHeader odd = good_header();
  odd.magic[0] = 'm';
  EXPECT_EQ(verdict(sealed(odd)), HeaderVerdict::damaged);
  odd = good_header();
  odd.state = static_cast<SegmentState>(3);
  EXPECT_EQ(verdict(sealed(odd)), HeaderVerdict::damaged);
  odd = good_header();
  odd.format_version = kFormatVersion + 1;
  EXPECT_EQ(verdict(sealed(odd)), HeaderVerdict::newer_format);
  for (size_t at = sizeof odd.magic; at < sizeof(SegmentHeader); ++at) {
    std::string flipped = sealed(good_header());
    flipped[at] ^= 4;
    EXPECT_EQ(verdict(flipped), HeaderVerdict::damaged) << "octet " << at;
  }
}

TEST(SpoolFormat, ATrailerIsTakenOnlyWhenItFitsItsSegment) {
  constexpr uint32_t kSize = 16 * kBlock;
  Trailer good{};
  good.magic = kTrailerMagic;
  good.format_version = kFormatVersion;
  good.generation = kGeneration;
  good.uuid = kUuid;
  good.index_offset = 13 * kBlock;
  good.index_size = 2 * kBlock;
  good.chain_end = 13 * kBlock;
  SegmentHeader segment = good_header();
  auto taken = [&](const Trailer& trailer) {
    Trailer out;
    return read_trailer(block_of(trailer, offsetof(Trailer, crc)), segment, kSize, out);
  };
  EXPECT_TRUE(taken(good));
  struct Case {
    const char* what;
    void (*change)(Trailer& trailer);
  };
  for (const Case& one : {
           Case{"its magic", [](Trailer& t) { t.magic[7] = 0; }},
           Case{"left by an earlier use of the file", [](Trailer& t) { --t.generation; }},
           Case{"of another spool", [](Trailer& t) { t.uuid[15] ^= 1; }},
           Case{"an index between blocks", [](Trailer& t) { t.index_offset -= 512, t.chain_end -= kBlock; }},
           Case{"an index among the batches", [](Trailer& t) { t.chain_end += 1; }},
           Case{"an index that reaches into the trailer", [](Trailer& t) { t.index_size += 1; }},
           Case{"an index past the end", [](Trailer& t) { t.index_offset = UINT32_MAX / kBlock * kBlock; }},
           Case{"an index of all sizes", [](Trailer& t) { t.index_size = UINT32_MAX; }},
       }) {
    Trailer trailer = good;
    one.change(trailer);
    EXPECT_FALSE(taken(trailer)) << one.what;
  }
  std::string block = block_of(good, offsetof(Trailer, crc));
  Trailer out;
  EXPECT_FALSE(read_trailer(block.substr(0, sizeof(Trailer) - 1), segment, kSize, out));
  for (size_t at = 0; at < sizeof(Trailer); ++at) {
    std::string flipped = block;
    flipped[at] ^= 4;
    EXPECT_FALSE(read_trailer(flipped, segment, kSize, out)) << "octet " << at;
  }
}

// Two extents, metadata, state and event.
std::string message_record(void (*change)(MessageFixed& fixed) = [](MessageFixed&) {}, uint32_t event_size = 5,
                           std::array<Extent, 2> extents = {Extent{8192, 10}, Extent{9000, 20}}) {
  MessageFixed fixed{};
  fixed.id_high = 1;
  fixed.id_low = 2;
  fixed.body_size = 30;
  fixed.metadata_size = 8;
  fixed.state_size = 5;
  fixed.extents = 2;
  change(fixed);
  return record_of(RecordKind::message, fixed,
                   std::string(reinterpret_cast<const char*>(extents.data()), sizeof extents) + "metadatastateevent",
                   event_size);
}

TEST(SpoolFormat, AMessageIsViewedOnlyWhenItsLengthsAddUp) {
  std::string whole = message_record();
  auto size = static_cast<uint32_t>(whole.size());
  MessageView message;
  ASSERT_TRUE(view({whole.data(), 0, size, false}, message));
  EXPECT_EQ(message.id, (mail::SpoolId{1, 2}));
  EXPECT_EQ(message.extent(1).offset, 9000u);
  EXPECT_EQ(message.metadata, "metadata");
  EXPECT_EQ(message.state, "state");
  EXPECT_EQ(message.event, "event");
  uint32_t stored = kMessageOverhead + 2 * sizeof(Extent) + 13;
  ASSERT_TRUE(view({whole.data(), 0, stored, false}, message)) << "as an index keeps it";
  EXPECT_EQ(message.state, "state");
  EXPECT_EQ(message.event, "");
  EXPECT_FALSE(view({whole.data(), 0, stored - 1, false}, message));
  EXPECT_FALSE(view({whole.data(), 0, kMessageOverhead - 1, false}, message));
  for (auto change : {+[](MessageFixed& f) { f.extents = UINT32_MAX; }, +[](MessageFixed& f) { f.metadata_size = UINT32_MAX; },
                      +[](MessageFixed& f) { f.state_size = UINT32_MAX; }, +[](MessageFixed& f) { f.state_size += 8; },
                      +[](MessageFixed& f) { f.extents += 2; }}) {
    std::string bytes = message_record(change);
    EXPECT_FALSE(view({bytes.data(), 0, size, false}, message));
  }
  for (uint32_t event : {13u, UINT32_MAX}) {
    std::string bytes = message_record([](MessageFixed&) {}, event);
    EXPECT_FALSE(view({bytes.data(), 0, size, false}, message)) << event;
  }
}

TEST(SpoolFormat, ANoteIsViewedOnlyWhenItsLengthsAddUp) {
  auto make = [](uint32_t state_size, uint32_t event_size) {
    NoteFixed fixed{1, 2, 7, 4096, 88, state_size};
    return record_of(RecordKind::note, fixed, "stateevent", event_size);
  };
  std::string whole = make(5, 5);
  auto size = static_cast<uint32_t>(whole.size());
  NoteView note;
  ASSERT_TRUE(view({whole.data(), 0, size, false}, note));
  EXPECT_EQ(note.id, (mail::SpoolId{1, 2}));
  EXPECT_EQ(note.fixed.message_offset, 4096u);
  EXPECT_EQ(note.state, "state");
  EXPECT_EQ(note.event, "event");
  ASSERT_TRUE(view({whole.data(), 0, kNoteOverhead + 5, false}, note)) << "as an index keeps it";
  EXPECT_EQ(note.event, "");
  EXPECT_FALSE(view({whole.data(), 0, kNoteOverhead + 4, false}, note));
  EXPECT_FALSE(view({whole.data(), 0, kNoteOverhead - 1, false}, note));
  for (auto [state, event] : {std::pair(UINT32_MAX, 5u), std::pair(5u, UINT32_MAX), std::pair(13u, 5u)}) {
    std::string bytes = make(state, event);
    EXPECT_FALSE(view({bytes.data(), 0, size, false}, note)) << state << ' ' << event;
  }
}

TEST(SpoolFormat, AKeyIsViewedOnlyWhenItsLengthsAddUp) {
  auto taken = [](uint32_t key_size, uint32_t value_size, uint32_t stored = 40) {
    std::string bytes = record_of(RecordKind::state, StateFixed{key_size, value_size}, "keyvalue", 0);
    StateView state;
    return view({bytes.data(), 0, stored, false}, state);
  };
  EXPECT_TRUE(taken(3, 5));
  EXPECT_FALSE(taken(3, 6));
  EXPECT_FALSE(taken(UINT32_MAX, 5));
  EXPECT_FALSE(taken(3, UINT32_MAX));
  EXPECT_FALSE(taken(3, 5, 39));
  EXPECT_FALSE(taken(0, 0, kStateOverhead - 1));
}

TEST(SpoolFormat, ARecordIsGoodOnlyAsAWhole) {
  std::string whole = record(RecordKind::state, 1);
  EXPECT_TRUE(check_record(whole));
  EXPECT_TRUE(check_record(whole + "what follows"));
  EXPECT_FALSE(check_record(std::string_view(whole).substr(0, sizeof(RecordHeader) - 1)));
  EXPECT_FALSE(check_record(std::string_view(whole).substr(0, whole.size() - 8)));
  for (uint32_t size : {0u, 16u, 28u, 48u, UINT32_MAX - 7}) {
    std::string bytes = whole;
    std::memcpy(bytes.data(), &size, sizeof size);
    // Sealed as if it were right, where that can be.
    if (size >= sizeof(RecordHeader) && size <= bytes.size()) {
      uint32_t crc = record_crc(bytes.data(), size);
      std::memcpy(bytes.data() + offsetof(RecordHeader, crc), &crc, sizeof crc);
    }
    EXPECT_FALSE(check_record(bytes)) << size;
  }
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string flipped = whole;
    flipped[at] ^= 16;
    EXPECT_FALSE(check_record(flipped)) << "octet " << at;
  }
}

TEST(SpoolFormat, ABatchHeadThatCannotBeIsNoBatch) {
  struct Case {
    const char* what;
    void (*change)(BatchHeader& head);
    bool meant;  // as a batch of this segment: to be told of
  };
  for (const Case& one : {
           Case{"no magic", [](BatchHeader& h) { h.magic = 0; }, false},
           Case{"left by an earlier use of the file", [](BatchHeader& h) { --h.generation; }, false},
           Case{"of another spool", [](BatchHeader& h) { ++h.uuid_part; }, false},
           Case{"copied from elsewhere", [](BatchHeader& h) { h.offset += kBlock; }, true},
           Case{"a head between sectors", [](BatchHeader& h) { h.head_size -= 8, h.payload_size += 8; }, true},
           Case{"no head", [](BatchHeader& h) { h.head_size = 0; }, true},
           Case{"records past the head", [](BatchHeader& h) { h.records_size = h.head_size - 63; }, true},
           Case{"records of all sizes", [](BatchHeader& h) { h.records_size = UINT32_MAX; }, true},
           Case{"an end between blocks", [](BatchHeader& h) { h.payload_size -= 512; }, true},
           Case{"an end past the segment", [](BatchHeader& h) { h.payload_size += kBlock; }, true},
           Case{"a payload of all sizes", [](BatchHeader& h) { h.payload_size = UINT32_MAX / kBlock * kBlock; }, true},
       }) {
    Segment segment;
    segment.add({record(RecordKind::state, 1)});
    uint32_t at = segment.add({record(RecordKind::state, 2)});
    segment.change(at, one.change);
    Scan scan = segment.scan();
    EXPECT_EQ(scan.records.size(), 1u) << one.what;
    EXPECT_EQ(scan.end, at) << one.what;
    EXPECT_EQ(scan.batches_cut, one.meant ? 1u : 0u) << one.what;
    EXPECT_EQ(scan.remarks.size(), one.meant ? 1u : 0u) << one.what;
  }
}

TEST(SpoolFormat, ASegmentThatEndsWithinAHeadIsReadUpToIt) {
  Segment segment;
  uint32_t first_end = segment.add({record(RecordKind::state, 1)}) + 2 * kBlock;
  segment.add({record(RecordKind::state, 2)});
  segment.image.resize(first_end + sizeof(BatchHeader) - 1);
  Scan scan = segment.scan();
  EXPECT_EQ(scan.records.size(), 1u);
  EXPECT_EQ(scan.end, first_end);
  EXPECT_EQ(scan.batches_cut, 0u);
}

TEST(SpoolFormat, WhatIsSaidAfterTheKnownEndIsVoid) {
  Segment segment;
  segment.add({record(RecordKind::state, 1)});
  uint32_t end = segment.add({record(RecordKind::state, 2)});
  Scan scan = segment.scan({.known_end = end});
  EXPECT_EQ(scan.records.size(), 1u);
  EXPECT_EQ(scan.end, end);
  EXPECT_FALSE(scan.damaged);
}

// Bodies of a message whose extents lie in the payload of the batch that it is in, or where they should not.
TEST(SpoolFormat, ABodyThatDoesNotMatchIsDamageUnlessItsBatchIsTheLast) {
  struct Case {
    const char* what;
    void (*change)(MessageFixed& fixed);
    std::array<Extent, 2> extents;
    bool good;
  };
  for (const Case& one : {
           Case{"as it is", [](MessageFixed&) {}, {Extent{8192, 10}, Extent{9000, 20}}, true},
           Case{"another sum", [](MessageFixed& f) { ++f.body_crc; }, {Extent{8192, 10}, Extent{9000, 20}}, false},
           Case{"another size", [](MessageFixed& f) { ++f.body_size; }, {Extent{8192, 10}, Extent{9000, 20}}, false},
           Case{"outside", [](MessageFixed&) {}, {Extent{8192, 10}, Extent{UINT32_MAX, UINT32_MAX}}, false},
           Case{"lengths that do not add up", [](MessageFixed& f) { f.state_size = 99; }, {Extent{8192, 10}, Extent{9000, 20}}, false},
       }) {
    static void (*change)(MessageFixed&);
    change = one.change;
    auto with_sum = [](MessageFixed& fixed) {
      fixed.body_crc = crc32c(0, std::string(30, 'x'));
      change(fixed);
    };
    Segment segment;
    uint32_t at = segment.add({record(RecordKind::state, 1), message_record(with_sum, 5, one.extents)});
    Scan scan = segment.scan({.newest = true});
    EXPECT_EQ(scan.batches_cut, one.good ? 0u : 1u) << one.what << ": power went while the last batch was written";
    EXPECT_EQ(scan.records.size(), one.good ? 2u : 0u) << one.what;
    EXPECT_EQ(scan.end, one.good ? segment.image.size() : at) << one.what;
    EXPECT_EQ(scan.last_event_sequence, one.good ? 1u : 0u) << one.what << ": what was cut has no events";
    EXPECT_FALSE(scan.damaged) << one.what;

    auto end = static_cast<uint32_t>(segment.image.size());
    for (ScanOptions options : {ScanOptions{.newest = true, .known_end = end}, ScanOptions{.verify_bodies = true}}) {
      scan = segment.scan(options);
      EXPECT_EQ(scan.damaged, !one.good) << one.what << ": it is known that the batch was complete";
      ASSERT_EQ(scan.records.size(), 2u) << one.what;
      EXPECT_EQ(scan.records[1].body_damaged, !one.good) << one.what;
    }
    EXPECT_FALSE(segment.scan().damaged) << one.what << ": nobody asked for bodies";

    uint32_t torn = segment.add({record(RecordKind::state, 3)});
    scan = segment.scan({.newest = true});
    EXPECT_EQ(scan.damaged, !one.good) << one.what << ": another batch follows";
    EXPECT_EQ(scan.remarks.size(), one.good ? 0u : 1u) << one.what;
    EXPECT_EQ(scan.batches_cut, 0u) << one.what;
    // So it is when that one's head is damaged, and one more follows.
    segment.add({record(RecordKind::state, 4)});
    segment.image[torn + sizeof(BatchHeader) + 4] ^= 1;
    scan = segment.scan({.newest = true});
    EXPECT_TRUE(scan.damaged) << one.what;
    EXPECT_EQ(scan.remarks.size(), one.good ? 1u : 2u) << one.what;
  }
}

TEST(SpoolFormat, ABatchThatCountsMoreRecordsThanItHoldsIsDamaged) {
  Segment segment;
  uint32_t at = segment.add({record(RecordKind::state, 1)});
  segment.change(at, [](BatchHeader& head) { head.records = UINT32_MAX; });
  Scan scan = segment.scan();
  EXPECT_EQ(scan.records.size(), 1u);
  EXPECT_EQ(scan.records_damaged, 1u);
  EXPECT_TRUE(scan.damaged);
}

TEST(SpoolFormat, AnIndexThatCannotBeIsRefused) {
  std::string one;
  append_index_entry(one, record(RecordKind::state, 1).data(), 4096);
  auto taken = [](const std::string& index, uint32_t entries) {
    Trailer trailer{};
    trailer.generation = kGeneration;
    trailer.index_size = static_cast<uint32_t>(index.size());
    trailer.index_crc = crc32c(0, index);
    trailer.entries = entries;
    std::vector<RecordRef> records;
    std::string refused;
    return scan_index(index, trailer, records, refused);
  };
  EXPECT_TRUE(taken(one, 1));
  EXPECT_TRUE(taken("", 0));
  EXPECT_FALSE(taken("", 1));
  EXPECT_FALSE(taken(one, 2)) << "one more than there are";
  EXPECT_FALSE(taken(one, UINT32_MAX)) << "more than there is memory for";
  EXPECT_FALSE(taken(one + std::string(7, '\0'), 2)) << "an entry cut short";
  EXPECT_FALSE(taken(std::string(100, '\0'), 2)) << "an entry without a record's header";
  EXPECT_FALSE(taken(one.substr(0, one.size() - 8), 1)) << "a record past the end";
}

TEST(SpoolFormat, AnIndexKeepsAllOfARecordButItsEvent) {
  std::string index;
  std::string message = message_record();
  std::string note = record_of(RecordKind::note, NoteFixed{1, 2, 7, 4096, 88, 5}, "stateevent and more of it", 20);
  std::string tombstone = record_of(RecordKind::tombstone, NoteFixed{1, 2, 7, 4096, 88, 0}, "", 0);
  for (const std::string& one : {message, note, tombstone}) append_index_entry(index, one.data(), 4096);
  Trailer trailer{};
  trailer.index_size = static_cast<uint32_t>(index.size());
  trailer.index_crc = crc32c(0, index);
  trailer.entries = 3;
  std::vector<RecordRef> records;
  std::string refused;
  ASSERT_TRUE(scan_index(index, trailer, records, refused));
  ASSERT_EQ(records.size(), 3u);
  MessageView of_message;
  ASSERT_TRUE(view(records[0], of_message));
  EXPECT_EQ(of_message.metadata, "metadata");
  EXPECT_EQ(of_message.state, "state");
  NoteView of_note;
  ASSERT_TRUE(view(records[1], of_note));
  EXPECT_EQ(of_note.state, "state");
  EXPECT_EQ(of_note.event, "");
  EXPECT_LT(records[1].stored, note.size());
  EXPECT_TRUE(view(records[2], of_note));
}

TEST(SpoolFormat, KindsAndSpoolsHaveNames) {
  std::set<std::string_view> names;
  for (auto kind : {RecordKind::message, RecordKind::note, RecordKind::tombstone, RecordKind::void_, RecordKind::state,
                    kUnknown}) {
    EXPECT_TRUE(names.insert(to_string(kind)).second) << to_string(kind);
  }
  EXPECT_EQ(to_string(kUuid), "01020304-0506-0708-090a-0b0c0d0e0f10");
}

}  // namespace
}  // namespace millrace::spool
