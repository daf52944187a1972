// The operator's log: one line to standard error, with a UTC time and a level; systemd or a file takes
// it from there. Not for per-message outcomes (those are events) and not on the message path.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string_view>

namespace millrace::log {

enum class Level { debug, info, warning, error };

void set_level(Level level);
bool enabled(Level level);
// Lines carry the time that this tells, UTC in milliseconds, in place of the system's: in simulation.
void set_clock(int64_t (*utc_ms)());
// Escapes control characters, so that a peer's text cannot forge a line.
void write(Level level, std::string_view text);

template <typename... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::debug)) write(Level::debug, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::info)) write(Level::info, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void warning(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::warning, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::error, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace millrace::log
