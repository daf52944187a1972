// Receivers that close after a number of messages without a word (20 at Yahoo): learned after three
// equal closes, obeyed for a day, then tested anew. Per site and source.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

namespace millrace::delivery {

class CloseLimits {
 public:
  static constexpr int64_t kTestAgainNs = 86'400'000'000'000;
  static constexpr uint32_t kEqualCloses = 3;
  static constexpr size_t kMostEntries = 50'000;

  // The peer closed a connection that was not idle, after `messages`.
  void note_close(std::string_view site, unsigned source, uint32_t messages, int64_t now) {
    if (messages == 0) return;
    std::string key = key_of(site, source);
    auto at = entries_.find(key);
    if (at == entries_.end()) {
      if (entries_.size() >= kMostEntries) entries_.clear();  // learned again soon enough
      at = entries_.emplace(std::move(key), Entry{}).first;
    }
    Entry& entry = at->second;
    if (entry.messages != messages) entry = {.messages = messages};
    if (++entry.closes == kEqualCloses) entry.learned_ns = now;
  }
  // Messages to send on a connection before closing it ourselves; 0: not known.
  uint32_t limit(std::string_view site, unsigned source, int64_t now) {
    if (entries_.empty()) return 0;
    const auto at = entries_.find(key_of(site, source));
    if (at == entries_.end() || at->second.closes < kEqualCloses) return 0;
    if (now - at->second.learned_ns >= kTestAgainNs) {
      entries_.erase(at);
      return 0;
    }
    return at->second.messages;
  }

 private:
  struct Entry {
    uint32_t messages = 0;
    uint32_t closes = 0;
    int64_t learned_ns = 0;
  };
  static std::string key_of(std::string_view site, unsigned source) {
    std::string key(site);
    key += '|';
    key += std::to_string(source);
    return key;
  }
  std::unordered_map<std::string, Entry> entries_;
};

}  // namespace millrace::delivery
