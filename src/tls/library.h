// Which wolfSSL this program has, and its start.
#pragma once

#include <string>

namespace millrace::tls {

// "wolfSSL 5.7.2 (5.7.2-0.1+deb13u2, with the processor's instructions)".
std::string library_description();
// Built by tools/wolfssl; otherwise the system's package, which encrypts about thirty times as slowly.
bool has_fast_library();
// Once before anything else of this folder; contexts do it themselves. Any thread.
void start_library();

}  // namespace millrace::tls
