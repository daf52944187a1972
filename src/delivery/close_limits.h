// What is learned from connections that receivers end. Per site and source.
//
// Receivers that close after a number of messages without a word (20 at Yahoo): learned after three
// equal closes, obeyed for a day, then tested anew. Receivers that never get as far as a reply to
// MAIL: connecting again at once, which a single such end deserves, would go on for ever.
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
  // A connection ended before the reply to its first MAIL. How many have, in a row.
  uint32_t note_barren(std::string_view site, unsigned source) {
    if (barren_.size() >= kMostEntries) barren_.clear();
    return ++barren_[key_of(site, source)];
  }
  // One did not.
  void note_fruitful(std::string_view site, unsigned source) {
    if (!barren_.empty()) barren_.erase(key_of(site, source));
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
  std::unordered_map<std::string, uint32_t> barren_;
};

}  // namespace millrace::delivery
