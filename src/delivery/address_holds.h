// Addresses that failed to answer, each with the source it was tried from: left alone for 1, 2, 4
// ... minutes (--hold), then tried again by one probe connection, until one works.
//
// Limits: at most kMostEntries are remembered; past it a new one is tried as if nothing had
// happened.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "reactor/address.h"

namespace millrace::delivery {

class AddressHolds {
 public:
  static constexpr size_t kMostEntries = 100'000;
  // A hold that ended so long ago, without a probe since, is forgotten.
  static constexpr int64_t kForgetNs = 3'600'000'000'000;

  // May a connection try it now? False while it is held or another one probes it.
  bool usable(unsigned source, const reactor::Address& address, int64_t now) const {
    const auto at = entries_.find({source, address});
    return at == entries_.end() || (at->second.until_ns <= now && !at->second.probing);
  }
  // A connection tries it. REQUIRES: usable, and succeeded, failed or given_up follows.
  void begin(unsigned source, const reactor::Address& address) {
    const auto at = entries_.find({source, address});
    if (at != entries_.end()) at->second.probing = true;
  }
  void succeeded(unsigned source, const reactor::Address& address) {
    entries_.erase({source, address});
  }
  // `begun`: when the connection began. What began before the last failure is the same episode.
  void failed(unsigned source, const reactor::Address& address, int64_t begun, int64_t now,
              const std::vector<int64_t>& schedule_ms) {
    if (schedule_ms.empty()) return;
    if (entries_.size() >= kMostEntries) sweep(now);
    const Key key{source, address};
    auto at = entries_.find(key);
    if (at == entries_.end()) {
      if (entries_.size() >= kMostEntries) return;
      at = entries_.emplace(key, Entry{}).first;
    }
    Entry& entry = at->second;
    entry.probing = false;
    if (entry.failures > 0 && begun < entry.since_ns) return;
    const size_t step =
        entry.failures < schedule_ms.size() ? entry.failures : schedule_ms.size() - 1;
    ++entry.failures;
    entry.since_ns = now;
    entry.until_ns = now + schedule_ms[step] * 1'000'000;
  }
  // The connection was given up for reasons of our own.
  void given_up(unsigned source, const reactor::Address& address) {
    const auto at = entries_.find({source, address});
    if (at != entries_.end()) at->second.probing = false;
  }
  // When its hold ends; 0 when it is not held.
  int64_t until(unsigned source, const reactor::Address& address) const {
    const auto at = entries_.find({source, address});
    return at == entries_.end() ? 0 : at->second.until_ns;
  }
  size_t size() const { return entries_.size(); }

 private:
  struct Key {
    unsigned source;
    reactor::Address address;
    friend bool operator==(const Key&, const Key&) = default;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const { return key.address.hash() * 31 + key.source; }
  };
  struct Entry {
    uint32_t failures = 0;
    bool probing = false;
    int64_t since_ns = 0;
    int64_t until_ns = 0;
  };
  void sweep(int64_t now) {
    std::erase_if(entries_, [now](const auto& item) {
      return !item.second.probing && item.second.until_ns + kForgetNs < now;
    });
  }
  std::unordered_map<Key, Entry, KeyHash> entries_;
};

}  // namespace millrace::delivery
