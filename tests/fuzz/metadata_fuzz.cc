// Metadata records of any bytes: an error, or a record that encodes and decodes to itself and whose
// edits can be gathered.
#include <cstdint>
#include <string>

#include "base/assert.h"
#include "mail/content.h"

using namespace millrace::mail;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view bytes(reinterpret_cast<const char*>(data), size);
  (void)summarize_metadata(bytes);
  auto decoded = decode_metadata(bytes);
  if (!decoded) return 0;
  ASSERT(summarize_metadata(bytes).ok());
  std::string encoded;
  encode_metadata(decoded->envelope, decoded->content, encoded);
  auto again = decode_metadata(encoded);
  ASSERT(again.ok());
  std::string twice;
  encode_metadata(again->envelope, again->content, twice);
  ASSERT(twice == encoded);
  Content& content = decoded->content;
  if (content.raw_size > 1 << 20) return 0;
  std::string raw(content.raw_size, 'x');
  content.raw = {raw};
  std::vector<iovec> parts;
  for (WireForm form : {WireForm::data, WireForm::bdat}) {
    if (!content.supports(form)) continue;
    parts.clear();
    content.gather(form, parts);
    uint64_t total = 0;
    for (const iovec& part : parts) total += part.iov_len;
    ASSERT(total == content.wire_size(form));
  }
  return 0;
}
