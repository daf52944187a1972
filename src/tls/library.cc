#include "tls/library.h"

#include <fmt/format.h>

#include <mutex>

#include "base/assert.h"
#include "tls/wolfssl.h"

namespace millrace::tls {

std::string library_description() {
#ifdef MILLRACE_WOLFSSL_SOURCE
  return fmt::format("wolfSSL {} ({}, with the processor's instructions)", wolfSSL_lib_version(),
                     MILLRACE_WOLFSSL_SOURCE);
#else
  return fmt::format("wolfSSL {} (the system's package, without the processor's instructions)",
                     wolfSSL_lib_version());
#endif
}

bool has_fast_library() {
#ifdef MILLRACE_WOLFSSL_SOURCE
  return true;
#else
  return false;
#endif
}

void start_library() {
  static std::once_flag once;
  std::call_once(once, [] { ASSERT(wolfSSL_Init() == WOLFSSL_SUCCESS); });
}

}  // namespace millrace::tls
