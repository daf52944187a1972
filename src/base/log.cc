#include "base/log.h"

#include <unistd.h>

#include <atomic>
#include <ctime>
#include <string>

namespace millrace::log {
namespace {

std::atomic<Level> minimum{Level::info};
std::atomic<int64_t (*)()> clock_ms{nullptr};

constexpr std::string_view name(Level level) {
  switch (level) {
    case Level::debug: return "debug";
    case Level::info: return "info";
    case Level::warning: return "warning";
    case Level::error: return "error";
  }
  return "?";
}

}  // namespace

void set_level(Level level) { minimum.store(level, std::memory_order_relaxed); }
void set_clock(int64_t (*utc_ms)()) { clock_ms.store(utc_ms, std::memory_order_relaxed); }
bool enabled(Level level) { return level >= minimum.load(std::memory_order_relaxed); }

void write(Level level, std::string_view text) {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (int64_t (*utc_ms)() = clock_ms.load(std::memory_order_relaxed)) {
    int64_t ms = utc_ms();
    now = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1'000'000};
  }
  tm utc;
  gmtime_r(&now.tv_sec, &utc);
  char stamp[32];
  size_t length = strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &utc);
  std::string line = fmt::format("{}.{:03}Z {:<7} ", std::string_view(stamp, length),
                                 now.tv_nsec / 1000000, name(level));
  for (char c : text) {
    auto octet = static_cast<unsigned char>(c);
    if (octet < 0x20 || octet == 0x7f) {
      line += fmt::format("\\x{:02x}", octet);
    } else {
      line += c;
    }
  }
  line += '\n';
  // One write, so that lines of several threads do not mix; a full pipe loses the line, not the relay.
  [[maybe_unused]] ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace millrace::log
