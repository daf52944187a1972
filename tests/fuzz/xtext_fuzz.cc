// xtext: what decodes holds no control character and encodes back to an equal meaning.
#include <cstdint>
#include <string>

#include "base/assert.h"
#include "smtp/xtext.h"

using namespace millrace::smtp;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  std::string decoded, encoded, again;
  if (append_decoded_xtext(decoded, text)) {
    for (char c : decoded) ASSERT(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
    append_xtext(encoded, decoded);
    ASSERT(append_decoded_xtext(again, encoded) && again == decoded);
  }
  encoded.clear();
  append_xtext(encoded, text);
  ASSERT(is_xtext(encoded, true));
  return 0;
}
