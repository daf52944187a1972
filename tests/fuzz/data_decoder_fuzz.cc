// The intake pass: for any bytes and any split, DATA gives the same facts, and its canonical
// content, sent again by BDAT, gives the same facts about lines. Rewriting leaves no fault.
#include <cstdint>
#include <string>

#include "base/assert.h"
#include "base/crc32c.h"
#include "smtp/data_decoder.h"
#include "smtp/rewrite.h"

using namespace millrace;
using namespace millrace::smtp;

namespace {

struct Run {
  IntakeFacts facts;
  size_t used = 0;
  bool finished = false;
};

Run run(std::string_view input, const uint8_t* steps, size_t count) {
  DataDecoder decoder(2048);
  Run result;
  for (size_t i = 0; result.used < input.size() && !result.finished; ++i) {
    size_t step = count == 0 ? input.size() : 1u + steps[i % count];
    std::string piece(input.substr(result.used, step));
    auto consumed = decoder.consume(piece.data(), piece.size());
    ASSERT(consumed.used <= piece.size() && consumed.body <= consumed.used);
    result.used += consumed.used;
    result.finished = consumed.finished;
  }
  result.facts = decoder.facts();
  return result;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 4) return 0;
  std::string_view input(reinterpret_cast<const char*>(data) + 4, size - 4);
  Run whole = run(input, nullptr, 0);
  Run split = run(input, data, 4);
  const uint8_t ones[] = {0};
  Run single = run(input, ones, 1);
  for (const Run* other : {&split, &single}) {
    ASSERT(whole.finished == other->finished && whole.used == other->used);
    ASSERT(whole.facts.fault == other->facts.fault);
    ASSERT(whole.facts.fault_line == other->facts.fault_line);
    ASSERT(whole.facts.fault_octet == other->facts.fault_octet);
    ASSERT(whole.facts.eight_bit == other->facts.eight_bit);
    ASSERT(whole.facts.too_large == other->facts.too_large);
    if (!whole.finished || whole.facts.too_large) continue;
    ASSERT(whole.facts.dots == other->facts.dots && whole.facts.crc == other->facts.crc);
    ASSERT(whole.facts.raw_size == other->facts.raw_size);
  }
  if (!whole.finished || whole.facts.too_large) return 0;

  std::string_view raw = input.substr(0, whole.facts.raw_size);
  ASSERT(whole.facts.crc == crc32c(0, raw));
  mail::Content content;
  content.append_raw(input);
  IntakeFacts facts = whole.facts;
  facts.apply_to(content);
  std::vector<iovec> parts;
  content.gather(mail::WireForm::bdat, parts);
  std::string canonical;
  BdatDecoder bdat(2048);
  for (const iovec& part : parts) {
    bdat.consume(static_cast<const char*>(part.iov_base), part.iov_len);
    canonical.append(static_cast<const char*>(part.iov_base), part.iov_len);
  }
  bdat.finish();
  ASSERT(canonical.size() == whole.facts.size());
  ASSERT(bdat.facts().fault == whole.facts.fault &&
         bdat.facts().fault_line == whole.facts.fault_line);
  ASSERT(bdat.facts().fault_octet == whole.facts.fault_octet);
  ASSERT(bdat.facts().eight_bit == whole.facts.eight_bit);

  Rewritten rewritten = rewrite_content(content);
  if (whole.facts.fault == LineFault::none) {  // then it changes nothing but needless dots
    content.raw = {rewritten.bytes};
    parts.clear();
    content.gather(mail::WireForm::bdat, parts);
    std::string same;
    for (const iovec& part : parts) {
      same.append(static_cast<const char*>(part.iov_base), part.iov_len);
    }
    ASSERT(same == canonical && rewritten.faults_fixed == 0);
  }
  std::string wire = rewritten.bytes + (content.ends_in_crlf ? ".\r\n" : "\r\n.\r\n");
  DataDecoder again(1 << 20);
  auto consumed = again.consume(wire.data(), wire.size());
  ASSERT(consumed.finished && consumed.used == wire.size());
  ASSERT(again.facts().fault == LineFault::none && again.facts().dots == content.dots);
  return 0;
}
