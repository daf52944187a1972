// The header scan over any content with canonical line ends: the edits keep their invariants, the
// split into spans does not matter, and a second scan of what is left finds nothing to remove.
#include <cstdint>
#include <string>

#include "base/assert.h"
#include "mail/headers.h"
#include "smtp/data_decoder.h"

using namespace millrace;

namespace {

std::string gathered(const mail::Content& content, mail::WireForm form) {
  std::vector<iovec> parts;
  content.gather(form, parts);
  std::string bytes;
  for (const iovec& part : parts) {
    bytes.append(static_cast<const char*>(part.iov_base), part.iov_len);
  }
  ASSERT(bytes.size() == content.wire_size(form));
  return bytes;
}

mail::Content content_of(std::string_view raw, bool stuffed, size_t step) {
  mail::Content content;
  for (size_t at = 0; at < raw.size(); at += std::min(step, raw.size() - at)) {
    std::string_view piece = raw.substr(at, step);
    content.raw.push_back(piece);
    content.raw_size += static_cast<uint32_t>(piece.size());
  }
  smtp::BdatDecoder decoder(1 << 20);
  decoder.consume(raw.data(), raw.size());
  decoder.finish();
  decoder.facts().apply_to(content);
  content.stuffed = stuffed;
  return content;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const mail::HeaderRules rules({"X-Job", "X-Virtual-MTA"}, {"X-Secret"});
  if (size == 0) return 0;
  std::string_view raw(reinterpret_cast<const char*>(data) + 1, size - 1);
  smtp::BdatDecoder decoder(1 << 20);
  decoder.consume(raw.data(), raw.size());
  decoder.finish();
  if (decoder.facts().fault != smtp::LineFault::none) return 0;
  const bool stuffed = data[0] & 1;
  if (stuffed && !decoder.facts().ends_in_crlf) return 0;

  mail::Content content = content_of(raw, stuffed, SIZE_MAX);
  mail::HeaderScan scan;
  mail::scan_headers(content, rules, scan);
  mail::Content split = content_of(raw, stuffed, 1 + data[0] / 2);
  mail::HeaderScan split_scan;
  mail::scan_headers(split, rules, split_scan);
  ASSERT(scan.received_count == split_scan.received_count &&
         scan.values[0].text == split_scan.values[0].text);
  ASSERT(content.dots == split.dots && content.cuts.size() == split.cuts.size());

  std::string record;
  mail::Envelope envelope;
  envelope.recipients.push_back({"a@b", "b", "", 0});
  mail::add_standard_headers(content, scan, mail::ReceivedMode::hide_client, {});
  mail::encode_metadata(envelope, content, record);
  ASSERT(mail::decode_metadata(record).ok());  // the edits keep what the spool demands

  if (!content.supports(mail::WireForm::bdat) || scan.too_many_cuts) return 0;
  content.prefix.clear();
  std::string left = gathered(content, mail::WireForm::bdat);
  gathered(content, mail::WireForm::data);
  mail::Content again = content_of(left, false, SIZE_MAX);
  mail::HeaderScan scan_again;
  mail::scan_headers(again, rules, scan_again);
  ASSERT(!scan.has_section || again.cuts.empty());
  return 0;
}
