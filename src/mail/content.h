// The content of a message without copying it. What the client sent lies where it was received (or
// where it was read back from the spool); a Content describes it by spans and a short list of
// edits, and gathers either wire form from them.
//
// The message *is* its canonical content: prefix, then the raw bytes with transparency dots dropped
// and cut lines removed. Sizes, checks and signatures are about that.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "mail/envelope.h"

namespace millrace::mail {

// At most so many dots are listed. A message with more can be sent by DATA only, which its stuffed
// form serves without edits (a BDAT message with more is rewritten to that form once, see
// smtp/rewrite.h).
constexpr uint32_t kMostListedDots = 4096;

struct Cut {  // a range of raw bytes that is not part of the message (a removed header line)
  uint32_t offset = 0;
  uint32_t size = 0;
};

enum class WireForm : uint8_t {
  data,  // dot-stuffed, ends in CRLF, *without* the final ".\r\n" (RFC 5321 4.5.2)
  bdat,  // as it is (RFC 3030)
};

struct Content {
  std::string prefix;  // added header lines, each ended by CRLF; none starts with a dot
  std::vector<std::string_view> raw;  // the received bytes; owned elsewhere (receive buffers)
  uint32_t raw_size = 0;              // sum over raw
  // Offsets in raw of the lines that begin with a dot: of the transparency dot if `stuffed` (to be
  // dropped for BDAT), else of the content's own dot (to be doubled for DATA). Ascending.
  std::vector<uint32_t> dots;
  uint32_t unlisted_dots = 0;     // counted on top of those listed: see supports()
  std::vector<Cut> cuts;          // ascending, apart, each a run of whole lines, none holding a dot
  bool stuffed = false;           // received by DATA
  bool eight_bit = false;         // an octet above 127 in header or body
  bool eight_bit_header = false;  // one in the header section (set by scan_headers)
  bool ends_in_crlf = true;       // a BDAT message may not; then DATA adds one
  uint32_t crc = 0;               // CRC32C of the raw bytes

  // As if made anew; the lists keep their room.
  void clear() {
    prefix.clear();
    raw.clear();
    dots.clear();
    cuts.clear();
    raw_size = unlisted_dots = crc = 0;
    stuffed = eight_bit = eight_bit_header = false;
    ends_in_crlf = true;
  }
  // Whether `form` can be gathered: both for a message with at most kMostListedDots dots, else only
  // the one it was received in. Asserted by gather().
  bool supports(WireForm form) const {
    return unlisted_dots == 0 || (form == WireForm::data) == stuffed;
  }
  // Appends a span of raw bytes, joining it to the last one when they are neighbours in memory.
  void append_raw(std::string_view bytes);
  // Drops raw bytes from the end: the final dot may have been received with the line before it.
  // REQUIRES: size <= raw_size
  void truncate_raw(uint32_t size);

  // Octets of the canonical content: what SIZE and BDAT announce.
  uint64_t size() const;
  // Octets of `form` on the wire, without the final ".\r\n".
  uint64_t wire_size(WireForm form) const;
  // Appends the spans of `form` to `parts`, never an empty one. They point into prefix, raw and
  // static bytes, so they stay valid while this Content and its buffers do.
  void gather(WireForm form, std::vector<iovec>& parts) const;
};

// The metadata record of the spool: envelope, prefix and edits in one binary string (format in
// docs/spool-format.md, little endian, versioned by field tags: unknown fields are skipped or
// refused as their tag says). `raw` and `raw_size` are not part of it beyond the sizes: the spool
// knows the extents.
void encode_metadata(const Envelope& envelope, const Content& content, std::string& out);

struct Metadata {
  Envelope envelope;
  Content content;  // raw is empty; raw_size says how many bytes belong there
};
// Whatever the bytes are, the result is an Error or a Metadata that keeps the invariants above
// (edits ascending, apart, within raw_size; no control characters in the envelope).
Result<Metadata> decode_metadata(std::string_view bytes);

// The cheap part of a metadata record, read for every queued message at recovery: no allocation per
// recipient beyond the views, which point into `bytes`.
struct MetadataSummary {
  int64_t received_ms = 0;
  int64_t expires_ms = 0;
  TlsWish tls = TlsWish::none;
  std::string_view reverse_path, tenant, job, pool, account;
  std::vector<std::string_view> recipient_domains;  // by recipient number
};
Result<MetadataSummary> summarize_metadata(std::string_view bytes);

}  // namespace millrace::mail
