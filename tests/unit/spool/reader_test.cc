// Reading back: which files are open, what is read of them, and how damage and errors are told.
#include "spool/reader.h"

#include "crafted.h"
#include "harness.h"
#include "spool/format.h"

namespace millrace::spool {
namespace {

using namespace testing;

// A body whose ends lie in one buffer, with so much of another message between them.
std::pair<Message*, Message*> send_around(SpoolWorld& w, size_t between) {
  auto buffer = w.ios[0]->buffers(reactor::BufferGroup::ingress).allocate(static_cast<uint32_t>(between + 2000));
  std::string all = pattern(between + 2000, 3);
  std::memcpy(buffer->data, all.data(), all.size());
  Message& outer = w.make(id(1), 0);
  Message& inner = w.make(id(2), 0);
  outer.append.pieces = {{buffer->data, 1000, buffer.get()},
                         {buffer->data + 1000 + between, 1000, buffer.get()}};
  outer.append.body_crc = crc32c(crc32c(0, buffer->data, 1000), buffer->data + 1000 + between, 1000);
  inner.append.pieces = {{buffer->data + 1000, static_cast<uint32_t>(between), buffer.get()}};
  inner.append.body_crc = crc32c(0, buffer->data + 1000, between);
  outer.buffers.push_back(std::move(buffer));
  w.spools[0]->append(outer.append);
  w.spools[0]->append(inner.append);
  EXPECT_TRUE(w.run([&] { return outer.answered && inner.answered; }));
  return {&outer, &inner};
}

TEST(SpoolReader, PiecesThatLieApartAreReadApart) {
  for (size_t between : {4'000, 20'000, 90'000}) {
    SpoolWorld w(1);
    ASSERT_EQ(w.start(), "");
    auto [outer, inner] = send_around(w, between);
    std::string all = pattern(between + 2000, 3);
    EXPECT_TRUE(w.read(id(1), outer->append.location) == all.substr(0, 1000) + all.substr(1000 + between)) << between;
    EXPECT_TRUE(w.read(id(2), inner->append.location) == all.substr(1000, between)) << between;
  }
}

TEST(SpoolReader, MetadataAloneIsReadWithoutTheBody) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 90'000);
  bool done = false;
  Read read;
  read.id = id(1);
  read.message = at;
  read.body = false;
  read.owner = &done;
  read.done = [](void* owner, Read&) { *static_cast<bool*>(owner) = true; };
  w.spools[0]->read(read);
  ASSERT_TRUE(w.run([&] { return done; }));
  ASSERT_TRUE(read.status.ok());
  EXPECT_EQ(read.metadata, "metadata of 1");
  EXPECT_TRUE(read.pieces.empty());
}

TEST(SpoolReader, ASegmentThatIsGoneIsStale) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 2000);
  at.segment = 77;
  w.read(id(1), at);
  EXPECT_EQ(w.last_error, ESTALE) << "its message may have moved, so it is looked for where it is now";
}

TEST(SpoolReader, AnErrorOfTheDiskIsNamedAndPasses) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 2000);
  for (auto [call, number] : {std::pair(reactor::Call::open_file, EMFILE), std::pair(reactor::Call::read, EIO)}) {
    reactor::SingleFault fault;
    fault.host = w.host;
    fault.call = call;
    fault.error = number;
    w.world.set_single_fault(fault);
    std::string text = w.read(id(1), at);
    EXPECT_EQ(w.last_error, number) << text;
    EXPECT_NE(text.find(segment_name(at.segment)), std::string::npos) << text;
    w.world.set_single_fault({});
    EXPECT_EQ(w.check(id(1), at, 2000), "intact");
  }
}

TEST(SpoolReader, WhatIsNotAMessageIsDamage) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 2000);
  w.note(id(1), at, false, std::string(300, 's'));
  auto damage = [&](Location place) {
    std::string text = w.read(id(1), place);
    EXPECT_EQ(w.last_error, EBADMSG) << text;
    return text;
  };
  EXPECT_NE(damage({at.segment, at.offset + 8, at.size}).find("checksum"), std::string::npos);
  EXPECT_NE(damage({at.segment, at.offset, at.size + 8}).find("checksum"), std::string::npos);
  EXPECT_NE(damage({at.segment, 512 << 20, at.size}).find("ends before"), std::string::npos);
  // The note's record is whole, and is none of a message.
  std::string bytes = w.world.disk(w.host).content("/spool/" + segment_name(at.segment));
  unsigned found = 0;
  for (uint32_t offset = kBlock; offset + 64 < bytes.size(); offset += 8) {
    uint32_t size = 0;
    std::memcpy(&size, bytes.data() + offset, sizeof size);
    if (size < kMessageOverhead || size > 4096 || offset + size > bytes.size()) continue;
    std::string copy = bytes.substr(offset, size);
    RecordRef record{copy.data(), offset, size, false};
    if (!check_record({copy.data(), size}) || record.header().size != size || record.header().kind == RecordKind::message) continue;
    ++found;
    EXPECT_NE(damage({at.segment, offset, size}).find("not a message"), std::string::npos);
  }
  EXPECT_GE(found, 1u);
}

TEST(SpoolReader, MoreSegmentsThanItKeepsOpenAreReadAllTheSame) {
  config::Config config = small_config();
  SpoolWorld w(1, config);
  ASSERT_EQ(w.start(), "");
  std::map<uint32_t, std::pair<mail::SpoolId, Location>> one_of;
  for (uint64_t n = 1; one_of.size() < 140; ++n) {
    Location at = w.append(id(n), 99'000);
    one_of[at.segment] = {id(n), at};
  }
  for (int round = 0; round < 2; ++round) {
    for (auto& [segment, message] : one_of) ASSERT_EQ(w.check(message.first, message.second, 99'000), "intact");
  }
  EXPECT_LE(w.world.open_handles(w.host), 140u) << "those last used are closed";
}

TEST(SpoolReader, AReleasedSegmentIsClosedOnceWhatIsBeingReadOfItHasBeen) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 2000);
  Reader reader(*w.ios[0], "/spool", true);
  struct Answer {
    Read read;
    bool done = false;
  };
  auto ask = [&](Answer& answer) {
    answer.read.id = id(1);
    answer.read.message = at;
    answer.read.owner = &answer;
    answer.read.done = [](void* owner, Read&) { static_cast<Answer*>(owner)->done = true; };
    reader.read(answer.read);
  };
  bool released = false;
  auto told = [](void* context) { *static_cast<bool*>(context) = true; };
  Answer early, late, later;
  ask(early);
  reader.release(at.segment, &released, told);
  EXPECT_FALSE(released);
  ask(late);
  ASSERT_TRUE(w.run([&] { return early.done && late.done; }));
  EXPECT_TRUE(early.read.status.ok());
  ASSERT_FALSE(late.read.status.ok());
  EXPECT_EQ(late.read.status.error().number, ESTALE);
  EXPECT_TRUE(released);
  ask(later);  // opened anew
  ASSERT_TRUE(w.run([&] { return later.done; }));
  EXPECT_TRUE(later.read.status.ok());
  released = false;
  reader.release(at.segment, &released, told);
  EXPECT_TRUE(released) << "at once: nothing is being read of it";
  released = false;
  reader.release(at.segment, &released, told);
  EXPECT_TRUE(released) << "nor is it open";
  reader.close_files();
}

// Records whose checksums are good and whose extents cannot be.
TEST(SpoolReader, ExtentsThatCannotBeAreDamage) {
  struct Case {
    const char* says;
    std::vector<Extent> extents;
    uint32_t crc_size, body_size;  // of 'x'
    uint32_t metadata_size = 0;
  };
  constexpr uint32_t kAt = 2 * kBlock;  // of the payload
  for (const Case& one : {
           Case{"", {{kAt, 100}, {kAt + 512, 0}, {kAt + 1024, 100}}, 200, 200},
           Case{"", {{kAt + 1024, 100}, {kAt, 100}}, 200, 200},  // in an order of their own
           Case{"", {{kAt + 40 * kBlock, 100}, {kAt, 100}, {kAt + 80 * kBlock, 100}}, 300, 300},
           Case{"does not match its checksum", {{kAt, 100}}, 100, 101},
           Case{"does not match its checksum", {{kAt, 100}}, 99, 100},
           Case{"the file ends before it", {{kAt + 200 * kBlock, 100}}, 100, 100},
           Case{"an extent is out of range", {{UINT32_MAX - 10, 10}}, 10, 10},
           Case{"an extent is out of range", {{kAt, UINT32_MAX}}, 10, 10},
           Case{"its extents are too large", {{kAt, 0xc0000000}, {0, 0xc0000000}}, 10, 10},
           Case{"it is not a message", {{kAt, 100}}, 100, 100, 1000},
       }) {
    SpoolWorld w(1);
    ASSERT_EQ(w.start(), "");
    MessageFixed fixed{};
    fixed.id_high = 1;
    fixed.id_low = 1;
    fixed.body_size = one.body_size;
    fixed.body_crc = crc32c(0, std::string(one.crc_size, 'x'));
    fixed.metadata_size = one.metadata_size;
    fixed.extents = static_cast<uint32_t>(one.extents.size());
    std::string extents(reinterpret_cast<const char*>(one.extents.data()), one.extents.size() * sizeof(Extent));
    std::string record = record_of(RecordKind::message, fixed, extents, 0);
    Crafted segment(77);
    uint32_t at = segment.add({record});
    segment.image.resize(150 * kBlock, 'x');
    put_file(w.world.disk(w.host), "/spool/" + segment_name(77), segment.bytes());
    Location location{77, at + static_cast<uint32_t>(sizeof(BatchHeader)), static_cast<uint32_t>(record.size())};
    std::string body = w.read(id(1), location);
    if (*one.says == 0) {
      EXPECT_EQ(body, std::string(one.body_size, 'x'));
    } else {
      EXPECT_EQ(w.last_error, EBADMSG) << body;
      EXPECT_NE(body.find(one.says), std::string::npos) << body;
      EXPECT_NE(body.find("0000000077.seg"), std::string::npos) << body;
    }
    location.size = kMessageOverhead - 8;
    EXPECT_NE(w.read(id(1), location).find("checksum does not match"), std::string::npos) << "of no message at all";
  }
}

TEST(SpoolReader, WhenThePoolIsFullMessagesAreReadAllTheSame) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  Location at = w.append(id(1), 90'000);
  w.world.set_single_fault(reactor::SingleFault{w.host, reactor::Call::allocate_buffer, 1, ENOMEM, true});
  EXPECT_EQ(w.check(id(1), at, 90'000), "intact");
  EXPECT_GT(w.world.single_faults(), 0u);
}

// More segments at once than are kept open: none is closed under a read of it.
TEST(SpoolReader, ReadsOfVeryManySegmentsAtOnceAreAllAnswered) {
  SpoolWorld w(1);
  ASSERT_EQ(w.start(), "");
  std::map<uint32_t, std::pair<mail::SpoolId, Location>> one_of;
  for (uint64_t n = 1; one_of.size() < 140; ++n) {
    Location at = w.append(id(n), 99'000);
    one_of[at.segment] = {id(n), at};
  }
  std::deque<Read> reads;
  size_t answered = 0;
  for (auto& [segment, message] : one_of) {
    Read& read = reads.emplace_back();
    read.id = message.first;
    read.message = message.second;
    read.owner = &answered;
    read.done = [](void* owner, Read&) { ++*static_cast<size_t*>(owner); };
    w.spools[0]->read(read);
  }
  ASSERT_TRUE(w.run([&] { return answered == reads.size(); }));
  for (Read& read : reads) EXPECT_TRUE(read.status.ok()) << read.id.low;
}

}  // namespace
}  // namespace millrace::spool
