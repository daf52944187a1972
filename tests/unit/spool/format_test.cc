// What a scan makes of a segment's bytes: records of kinds that are not known, damage, and what a power cut left.
#include "spool/format.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "base/crc32c.h"

namespace millrace::spool {
namespace {

constexpr Uuid kUuid{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
constexpr uint32_t kGeneration = 7;
constexpr auto kUnknown = static_cast<RecordKind>(99);

std::string record(RecordKind kind, uint64_t sequence, uint16_t flags = 0) {
  std::string bytes(sizeof(RecordHeader) + sizeof(StateFixed) + 8, '\0');
  RecordHeader header{};
  header.size = static_cast<uint32_t>(bytes.size());
  header.kind = kind;
  header.flags = flags;
  header.sequence = sequence;
  std::memcpy(bytes.data(), &header, sizeof header);
  StateFixed fixed{3, 5};
  std::memcpy(bytes.data() + sizeof header, &fixed, sizeof fixed);
  std::memcpy(bytes.data() + sizeof header + sizeof fixed, "keyvalue", 8);
  header.crc = record_crc(bytes.data(), header.size);
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

// A segment of batches, each with these records and one block of payload.
struct Segment {
  std::string image = std::string(kBlock, '\0');
  uint32_t add(const std::vector<std::string>& records) {
    auto at = static_cast<uint32_t>(image.size());
    std::string bytes;
    for (const std::string& one : records) bytes += one;
    BatchHeader header{};
    header.magic = kBatchMagic;
    header.generation = kGeneration;
    header.uuid_part = uuid_part(kUuid);
    header.offset = at;
    header.head_size = static_cast<uint32_t>(round_up(sizeof header + bytes.size(), kBlock));
    header.payload_size = kBlock;
    header.records_size = static_cast<uint32_t>(bytes.size());
    header.records = static_cast<uint32_t>(records.size());
    header.crc = batch_crc(header, bytes.data());
    image.append(header.head_size + header.payload_size, 'x');
    std::memcpy(image.data() + at, &header, sizeof header);
    std::memcpy(image.data() + at + sizeof header, bytes.data(), bytes.size());
    return at;
  }
  // Seals the batch's head again after its records were changed.
  void mend(uint32_t at) {
    auto header = load<BatchHeader>(image.data() + at);
    header.crc = batch_crc(header, image.data() + at + sizeof header);
    std::memcpy(image.data() + at, &header, sizeof header);
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
