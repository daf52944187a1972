#include "ledger.h"

#include <fmt/format.h>

#include <charconv>

#include "base/assert.h"

namespace millrace::sim {
namespace {

constexpr std::string_view kHeader = "X-Test-Number: ";

}  // namespace

const char* to_string(Told told) {
  switch (told) {
    case Told::unsent: return "unsent";
    case Told::refused: return "refused";
    case Told::accepted: return "accepted";
    case Told::uncertain: return "uncertain";
  }
  return "?";
}

std::string numbered_message(uint64_t number, size_t size) {
  std::string content = fmt::format(
      "From: <sender@example.com>\r\nTo: undisclosed-recipients:;\r\nSubject: number {}\r\n{}{}\r\n\r\n",
      number, kHeader, number);
  for (uint64_t line = 0; content.size() < size; ++line) {
    switch ((number + line) % 5) {
      case 0: content += ".\r\n"; break;
      case 1: content += "..leading dots\r\n"; break;
      case 2: content += "\r\n"; break;
      default:
        content += fmt::format("{} line {} {}\r\n", number, line,
                               std::string((number * 7 + line * 13) % 900, 'a' + line % 26));
    }
  }
  return content;
}

uint64_t number_of(std::string_view content) {
  size_t at = content.find(kHeader);
  if (at == std::string_view::npos) return 0;
  uint64_t number = 0;
  const char* from = content.data() + at + kHeader.size();
  std::from_chars(from, content.data() + content.size(), number);
  return number;
}

void Ledger::submitted(uint64_t number, const std::vector<std::string>& recipients,
                       std::string content) {
  Entry& entry = entries_[number];
  entry.content = std::move(content);
  if (entry.told == Told::refused) {
    // Handed over again: now it is about these recipients. A copy that has arrived stays on record.
    std::erase_if(entry.recipients, [](const auto& one) { return one.second.copies.empty(); });
  }
  for (const std::string& recipient : recipients) entry.recipients[recipient];
}

void Ledger::told(uint64_t number, Told told) {
  Entry& entry = entries_[number];
  // A message that is handed over again keeps what was promised for an earlier copy.
  static constexpr auto rank = [](Told t) {
    return t == Told::accepted ? 3 : t == Told::uncertain ? 2 : t == Told::refused ? 1 : 0;
  };
  if (rank(told) > rank(entry.told)) entry.told = told;
}

unsigned Ledger::Recipient::count(Copy wanted) const {
  unsigned total = 0;
  for (const auto& [copy, at_ns] : copies) total += copy == wanted ? 1 : 0;
  return total;
}

void Ledger::crashed(int64_t at_ns, int64_t unsynced_ns) {
  crashes_.emplace_back(at_ns - unsynced_ns, at_ns);  // for copies that are told of later
  for (auto& [number, entry] : entries_) {
    for (auto& [address, recipient] : entry.recipients) {
      for (auto& [copy, replied_ns] : recipient.copies) {
        if (copy == Copy::acknowledged && replied_ns > at_ns - unsynced_ns) copy = Copy::uncertain;
      }
    }
  }
}

void Ledger::received(std::string_view content, const std::string& recipient, Copy copy,
                      int64_t at_ns) {
  uint64_t number = number_of(content);
  auto found = entries_.find(number);
  if (found == entries_.end()) {
    strange_.push_back(fmt::format("a message without a known number for {}", recipient));
    return;
  }
  Entry& entry = found->second;
  auto to = entry.recipients.find(recipient);
  if (to == entry.recipients.end()) {
    strange_.push_back(fmt::format("message {} for {}, whom it was not sent to", number, recipient));
    return;
  }
  if (!content.ends_with(entry.content)) ++entry.altered;
  for (const auto& [from, until] : crashes_) {
    if (copy == Copy::acknowledged && at_ns > from && at_ns <= until) copy = Copy::uncertain;
  }
  to->second.copies.emplace_back(copy, at_ns);
}

void Ledger::bounced(uint64_t number, const std::string& recipient) {
  ++entries_[number].recipients[recipient].bounced;
}

bool Ledger::complete() const {
  for (const auto& [number, entry] : entries_) {
    if (entry.told != Told::accepted) continue;
    for (const auto& [address, recipient] : entry.recipients) {
      if (recipient.bounced + recipient.count(Copy::acknowledged) +
              recipient.count(Copy::uncertain) ==
          0) {
        return false;
      }
    }
  }
  return true;
}

std::vector<std::string> Ledger::violations(bool done) const {
  std::vector<std::string> found = strange_;
  for (const auto& [number, entry] : entries_) {
    if (entry.altered > 0) {
      found.push_back(fmt::format("message {} arrived {} times with other bytes", number, entry.altered));
    }
    for (const auto& [address, recipient] : entry.recipients) {
      unsigned ends = recipient.count(Copy::acknowledged) + recipient.bounced;
      std::string what = fmt::format("message {} ({}) for {}", number, to_string(entry.told), address);
      if (done && entry.told == Told::accepted && ends == 0 &&
          recipient.count(Copy::uncertain) == 0) {
        found.push_back(what + " is lost");
      }
      if (ends > 1) found.push_back(what + fmt::format(" ended {} times", ends));
      if (!recipient.copies.empty() && (entry.told == Told::refused || entry.told == Told::unsent)) {
        found.push_back(what + " was delivered");
      }
    }
  }
  return found;
}

std::map<uint64_t, std::vector<std::string>> Ledger::promises() const {
  std::map<uint64_t, std::vector<std::string>> promised;
  for (const auto& [number, entry] : entries_) {
    if (entry.told != Told::accepted) continue;
    for (const auto& [address, recipient] : entry.recipients) promised[number].push_back(address);
  }
  return promised;
}

size_t Ledger::accepted() const {
  size_t total = 0;
  for (const auto& [number, entry] : entries_) total += entry.told == Told::accepted ? 1 : 0;
  return total;
}

size_t Ledger::delivered() const {
  size_t total = 0;
  for (const auto& [number, entry] : entries_) {
    for (const auto& [address, recipient] : entry.recipients) {
      total += recipient.count(Copy::acknowledged) + recipient.count(Copy::uncertain) > 0 ? 1 : 0;
    }
  }
  return total;
}

}  // namespace millrace::sim
