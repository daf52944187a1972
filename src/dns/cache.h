// The answers of one shard: each (name, type) is asked of the network once at a time, and kept for
// as long as its TTL says, within bounds. Aliases that a server leaves to us are followed here.
//
// Contract: lookup's callback comes from turn(), never from inside lookup(), also when the answer
// was at hand. The Answer is shared and never changes.
//
// Outage: when kFailuresOfOutage look-ups in a row have failed, most likely nobody can be asked. Then
// one name is asked again every kProbeNs, whoever waits or not, so that the end of the outage is
// noticed at once (on_recovered) and not at the next time somebody tries.
//
// Limits: an answer is kept between kShortestTtl and kLongestTtl (negative ones at most
// negative_ttl_ms, failures kFailureTtl: long enough to spare a struggling server a burst, short
// enough that holding back is left to the queue). At most max_entries are kept; past it the one
// unused for the longest goes. At most max_in_flight queries are in the network, the others wait in
// line.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/intrusive_list.h"
#include "dns/resolver.h"

namespace millrace::dns {

using AnswerRef = std::shared_ptr<const Answer>;

class Cache {
 public:
  struct Options {
    int64_t negative_ttl_ms = 300'000;
    size_t max_entries = 200'000;
    size_t max_in_flight = 256;
  };
  struct Stats {
    uint64_t lookups = 0, hits = 0, queries = 0, failures = 0, malformed = 0, evicted = 0;
  };
  using Callback = std::function<void(const AnswerRef&)>;
  // After an outage the first answer has come. From turn(); may look up.
  std::function<void()> on_recovered;

  static constexpr int64_t kShortestTtlNs = 30'000'000'000;
  static constexpr int64_t kLongestTtlNs = 86'400'000'000'000;
  static constexpr int64_t kFailureTtlNs = 5'000'000'000;
  static constexpr unsigned kFailuresOfOutage = 3;
  static constexpr int64_t kProbeNs = 15'000'000'000;

  // `io` and `transport` outlive the cache. Destroyed with lookups open, it calls none of them; the
  // transport must be stopped before that.
  Cache(reactor::Io& io, Transport& transport, const Options& options);
  ~Cache();
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  // `name` in any case, with or without a trailing dot.
  void lookup(std::string_view name, Type type, Callback done);
  // Forgets everything that is not being asked now: the operator knows better.
  void flush();
  size_t size() const { return entries_.size(); }
  const Stats& stats() const { return stats_; }
  bool in_outage() const { return failures_in_row_ >= kFailuresOfOutage; }

 private:
  struct Entry {
    const std::string* key = nullptr;  // the map's own
    std::string asking;                // the name in the network: the key's, or an alias of it
    Type type = Type::a;
    int aliases = 0;
    uint32_t alias_ttl_s = UINT32_MAX;
    bool aliases_secure = true;
    bool in_flight = false;  // in the network or in line
    AnswerRef answer;
    std::vector<Callback> waiting;
    Link link;  // on recent_ while not in flight
  };
  struct Ready {
    Callback done;
    AnswerRef answer;
  };

  void ask(Entry& entry);
  void on_answer(Entry& entry, Answer&& answer);
  void finish(Entry& entry, Answer&& answer);
  int64_t lifetime_ns(const Answer& answer) const;
  void watch(const std::string& name, Type type, Outcome outcome);
  void probe();
  void start_next();
  void evict();
  void on_deliver();

  reactor::Io& io_;
  Transport& transport_;
  Options options_;
  std::unordered_map<std::string, Entry> entries_;  // by name + '/' + type
  IntrusiveList<Entry, &Entry::link> recent_;       // the longest unused first
  std::deque<Entry*> line_;
  size_t in_network_ = 0;
  std::vector<Ready> ready_;
  reactor::Deferred deliver_;
  Stats stats_;
  unsigned failures_in_row_ = 0;
  bool probing_ = false;  // its query is in the network
  std::string probe_name_;
  Type probe_type_ = Type::a;
  reactor::Timer probe_timer_;
};

}  // namespace millrace::dns
