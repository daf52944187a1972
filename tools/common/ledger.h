// The ledger: what the load generator was promised (a 250), for the simulator to check what
// arrived. A text file, one message a line, in the order of the 250s:
//
//   <load id> <sha256> <recipients>[-<k>,<k>...] <times its end of data was sent> <relay's id>
//
// Recipient k of message ID has the local part "<k>-<ID>"; those after the minus were refused. A
// message whose end of data was sent without ever being answered has "unanswered" in place of the
// relay's id: it may arrive or not.
#pragma once

#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/digest.h"
#include "common/message_text.h"

namespace millrace::tools {

inline constexpr std::string_view kUnanswered = "unanswered";

struct LedgerEntry {
  LoadId id;
  Sha256 digest{};
  uint32_t recipients = 1;
  std::vector<uint32_t> refused;  // in rising order
  uint32_t times_sent = 1;
  std::string relay_id;
};

inline void append_line(const LedgerEntry& entry, std::string& out) {
  size_t at = out.size();
  out.resize(at + kIdSize);
  write_id(entry.id, out.data() + at);
  out += ' ';
  out += to_hex(entry.digest);
  out += ' ';
  out += std::to_string(entry.recipients);
  for (size_t i = 0; i < entry.refused.size(); ++i) {
    out += i == 0 ? '-' : ',';
    out += std::to_string(entry.refused[i]);
  }
  out += ' ';
  out += std::to_string(entry.times_sent);
  out += ' ';
  out += entry.relay_id.empty() ? "-" : entry.relay_id;
  out += '\n';
}

// False when the line is not one of a ledger.
inline bool parse_line(std::string_view line, LedgerEntry& entry) {
  auto word = [&line] {
    size_t end = line.find(' ');
    std::string_view found = line.substr(0, end);
    line.remove_prefix(end == std::string_view::npos ? line.size() : end + 1);
    return found;
  };
  auto number = [](std::string_view text, uint32_t& value) {
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
  };
  std::string_view id = word();
  if (id.size() != kIdSize || !parse_id(id, entry.id) || !from_hex(word(), entry.digest))
    return false;
  std::string_view recipients = word();
  size_t minus = recipients.find('-');
  if (!number(recipients.substr(0, minus), entry.recipients)) return false;
  entry.refused.clear();
  while (minus != std::string_view::npos) {
    recipients.remove_prefix(minus + 1);
    minus = recipients.find(',');
    uint32_t k = 0;
    if (!number(recipients.substr(0, minus), k)) return false;
    entry.refused.push_back(k);
  }
  if (!number(word(), entry.times_sent)) return false;
  entry.relay_id = word();
  return !entry.relay_id.empty() && line.empty();
}

}  // namespace millrace::tools
