// A server's certificate, and a TLSA record with all of it: any bytes end in a view of them, or in none.
#include <cstdint>
#include <string_view>

#include "base/assert.h"
#include "tls/dane.h"
#include "tls/x509.h"

using namespace millrace::tls;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view der(reinterpret_cast<const char*>(data), size);
  const auto view = view_certificate(der);
  const auto lies_within = [&](std::string_view part) {
    return part.data() >= der.data() && part.data() + part.size() <= der.data() + der.size();
  };
  if (view) {
    ASSERT(lies_within(view->public_key) && is_der_element(view->public_key, 0x30));
    ASSERT(is_der_element(der, 0x30));
    for (const std::string& name : view->names) ASSERT(!name.empty() && name.find('\0') == name.npos);
    ASSERT(view->common_name.find('\0') == std::string::npos);
  }
  ASSERT(is_usable({3, 0, 0, std::string(der)}) == view.has_value());
  // By its own bytes it is what it is, and by no others.
  DaneWish wish;
  wish.records.push_back({3, 0, 0, std::string(der)});
  ASSERT((check_dane(wish, {&der, 1}) == Verified::ok) == view.has_value());
  wish.records[0].data += '!';
  ASSERT(check_dane(wish, {&der, 1}) != Verified::ok);
  return 0;
}
