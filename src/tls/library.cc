#include "tls/library.h"

#include <fmt/format.h>

#include <mutex>

#include "base/out_of_memory.h"
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
  std::call_once(once, [] {
    // It makes tables and locks, and lacks nothing but memory when it fails, whatever error it names.
    if (wolfSSL_Init() != WOLFSSL_SUCCESS) end_out_of_memory();
  });
}

}  // namespace millrace::tls
