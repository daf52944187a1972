// PROXY headers of any bytes: what is complete stays complete with more bytes behind it.
#include <cstdint>
#include <string>

#include "base/assert.h"
#include "smtp/proxy_header.h"

using namespace millrace::smtp;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view bytes(reinterpret_cast<const char*>(data), size);
  ProxyHeader header = parse_proxy_header(bytes);
  if (header.outcome == ProxyHeader::Outcome::incomplete) {
    ASSERT(size < kLongestProxyHeader);
    return 0;
  }
  if (header.outcome == ProxyHeader::Outcome::invalid) return 0;
  ASSERT(header.consumed <= size && header.consumed <= kLongestProxyHeader);
  ProxyHeader exact = parse_proxy_header(bytes.substr(0, header.consumed));
  ASSERT(exact.outcome == header.outcome && exact.consumed == header.consumed);
  return 0;
}
