// Rewrites a message's content once, for the two cases in which it cannot stay as it was received:
// line faults that are to be fixed (`--on-bad-lines fix`), and a BDAT message with too many leading
// dots to list. The bytes copied are returned, because copies are counted.
//
// Fixed are: a bare CR or LF becomes CRLF (CR CR LF one CRLF), a NUL is dropped, a line over 998
// octets is broken (in the header section at a blank where there is one, with a blank after the
// break; in the body without one; never within a UTF-8 sequence).
#pragma once

#include <cstdint>
#include <string>

#include "mail/content.h"

namespace millrace::smtp {

struct Rewritten {
  std::string bytes;  // stuffed form, without the final ".\r\n"; becomes the new raw
  uint64_t bytes_copied = 0;
  uint64_t faults_fixed = 0;
};
// Reads content.raw, and sets all other facts about it (raw_size, dots, crc, ...) for the rewritten
// bytes. content.raw is left empty: the caller puts `bytes` where they live long enough and pushes
// them onto content.raw. REQUIRES: no cuts yet; the final dot of stuffed content has been removed;
// raw_size <= 2^30.
Rewritten rewrite_content(mail::Content& content);

}  // namespace millrace::smtp
