// ASSERT stays on in release builds: our own mistake stops the process at the spot, before it can
// write a wrong byte to the spool. A peer's or operator's mistake is a Result, never an ASSERT.
#pragma once

namespace millrace {
[[noreturn]] void assertion_failed(const char* what, const char* file, int line);
}

#define ASSERT(condition)                                                   \
  do {                                                                      \
    if (!(condition)) [[unlikely]]                                          \
      ::millrace::assertion_failed(#condition, __FILE__, __LINE__);         \
  } while (false)

// For a branch that cannot be reached.
#define UNREACHABLE() ::millrace::assertion_failed("unreachable", __FILE__, __LINE__)
