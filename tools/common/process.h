// What both programs do around their loops: stop on a signal, open many sockets, count their own
// CPU.
#pragma once

#include <sys/resource.h>

#include <atomic>
#include <csignal>
#include <cstdint>

namespace millrace::tools {

inline std::atomic<bool> stop_requested = false;
inline std::atomic<bool> status_requested = false;  // SIGUSR1

inline void stop_on_signals() {
  struct sigaction action {};
  action.sa_handler = [](int) { stop_requested.store(true, std::memory_order_relaxed); };
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  action.sa_handler = [](int) { status_requested.store(true, std::memory_order_relaxed); };
  sigaction(SIGUSR1, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

// As many descriptors as we may have, at most a million.
inline void raise_descriptor_limit() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  rlimit more{1 << 20, 1 << 20};
  if (setrlimit(RLIMIT_NOFILE, &more) == 0) return;  // root
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

inline double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace millrace::tools
