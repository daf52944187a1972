// An event as one line of JSON, by the schema of docs/events.md. Whatever a peer, a client or an
// operator put into a field, the line is valid JSON in valid UTF-8 without a control character: RFC
// 8259 escapes for control characters, and for every octet that is not part of well-formed UTF-8
// the escape of the character that has its number in ISO 8859-1 (peers that send such text mostly
// mean that).
//
// On the message path: no allocation beyond the growth of `out`.
#pragma once

#include <string>
#include <string_view>

#include "events/event.h"

namespace millrace::events {

// Appends the line and its '\n'. `node` is the hostname.
void append_json(const Event& event, std::string_view node, std::string& out);

// The parts, for other writers of JSON lines.
// Appends `text` escaped, without quotes; at most 6 octets for each of its own.
void append_escaped(std::string& out, std::string_view text);
// "2026-11-21T08:30:00.123Z" (RFC 3339); years 1970 to 9999, times outside are clamped.
inline constexpr size_t kTimeSize = 24;
void format_time(int64_t utc_ms, char (&out)[kTimeSize]);

}  // namespace millrace::events
