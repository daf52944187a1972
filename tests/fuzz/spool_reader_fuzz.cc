// Reading a segment: batches and records with good checksums around anything at all, and indexes likewise. Nothing
// is read outside of the image, and every record that is told lies whole within it. The first octet chooses how
// the scan is asked; what follows are batches: size of the records in units of 8, then the records, each with
// its checksum mended, then 16 octets of the header.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "base/assert.h"
#include "base/crc32c.h"
#include "spool/format.h"

using namespace millrace;
using namespace millrace::spool;

namespace {

constexpr Uuid kUuid{1, 2, 3, 4, 5, 6, 7, 8};
constexpr uint32_t kGeneration = 7;

// Gives each record that fits a checksum that is right, so that the scan goes on into it.
void mend(std::string& records) {
  for (size_t at = 0; at + sizeof(RecordHeader) <= records.size();) {
    RecordHeader header = load<RecordHeader>(records.data() + at);
    header.size = std::clamp<uint32_t>(header.size & 0xff8, sizeof(RecordHeader), static_cast<uint32_t>(records.size() - at));
    std::memcpy(records.data() + at, &header, sizeof header);
    header.crc = record_crc(records.data() + at, header.size);
    std::memcpy(records.data() + at, &header, sizeof header);
    at += header.size;
  }
}

void look_at(const std::vector<RecordRef>& records) {
  size_t sum = 0;
  for (const RecordRef& record : records) {
    MessageView message;
    NoteView note;
    StateView state;
    if (view(record, message)) {
      sum += message.metadata.size() + message.state.size();
      for (uint32_t i = 0; i < message.fixed.extents; ++i) sum += message.extent(i).size;
    }
    if (view(record, note)) sum += note.state.size();
    if (view(record, state)) sum += state.key.size() + state.value.size();
  }
  volatile size_t used = sum;
  (void)used;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  uint8_t how = data[0];
  std::string_view left(reinterpret_cast<const char*>(data) + 1, size - 1);

  std::string image(kBlock, '\0');
  while (left.size() >= 18 && image.size() < 64 * kBlock) {
    size_t wanted = std::min<size_t>(static_cast<uint8_t>(left[0]) * 8, left.size() - 18) / 8 * 8;
    bool odd = left[1] & 1;  // the header as it comes, only its checksum is right
    std::string records(left.substr(2, wanted));
    mend(records);
    BatchHeader header{};
    std::memcpy(reinterpret_cast<char*>(&header) + 32, left.data() + 2 + wanted, 16);
    left.remove_prefix(18 + wanted);
    uint32_t head = static_cast<uint32_t>(round_up(sizeof header + records.size(), kBlock));
    header.magic = kBatchMagic;
    header.generation = kGeneration;
    header.uuid_part = uuid_part(kUuid);
    header.records_size = static_cast<uint32_t>(records.size());
    header.records = static_cast<uint32_t>(1 + records.size() / 64);
    if (!odd) {
      header.offset = static_cast<uint32_t>(image.size());
      header.head_size = head;
      header.payload_size = (header.payload_size & 1) * kBlock;
    }
    header.crc = batch_crc(header, records.data());
    std::string batch(head + kBlock, 'x');
    std::memcpy(batch.data(), &header, sizeof header);
    std::memcpy(batch.data() + sizeof header, records.data(), records.size());
    image += batch;
  }
  // Memory of just this size, so that a step outside is seen.
  std::string exact(image);
  exact.shrink_to_fit();
  ScanOptions options;
  options.newest = how & 1;
  options.verify_bodies = how & 2;
  options.known_end = how & 4 ? static_cast<uint32_t>((how >> 3) * kBlock) : 0;
  Scan scan = scan_segment(exact, kUuid, kGeneration, options, "fuzz");
  ASSERT(scan.end >= kBlock && scan.end <= std::max<size_t>(exact.size(), options.known_end));
  std::string index;
  for (const RecordRef& record : scan.records) {
    ASSERT(record.data >= exact.data() && record.data + record.stored <= exact.data() + exact.size());
    append_index_entry(index, record.data, record.offset);
  }
  look_at(scan.records);

  // What was read is written as an index, and read again.
  Trailer trailer{};
  trailer.index_size = static_cast<uint32_t>(index.size());
  trailer.index_crc = crc32c(0, index);
  trailer.entries = static_cast<uint32_t>(scan.records.size());
  std::vector<RecordRef> again;
  std::string refused;
  ASSERT(scan_index(index, trailer, again, refused) && (again.size() == scan.records.size() || !refused.empty()));
  look_at(again);

  // The input as an index, and as the two blocks that say what a file is.
  std::string raw(reinterpret_cast<const char*>(data), size);
  trailer.index_size = static_cast<uint32_t>(size);
  trailer.index_crc = crc32c(0, raw);
  trailer.entries = how;
  again.clear();
  if (scan_index(raw, trailer, again, refused)) look_at(again);
  SegmentHeader header{};
  Trailer found{};
  raw.resize(kBlock);
  if (read_segment_header(raw, header) == HeaderVerdict::good) (void)read_trailer(raw, header, 64 * kBlock, found);
  return 0;
}
