#include "dns/cache.h"

#include <algorithm>

#include "base/log.h"

namespace millrace::dns {

Cache::Cache(reactor::Io& io, Transport& transport, const Options& options)
    : io_(io), transport_(transport), options_(options) {
  deliver_.bind<&Cache::on_deliver>(this);
  probe_timer_.bind<&Cache::probe>(this);
}

Cache::~Cache() {
  deliver_.cancel();
  probe_timer_.cancel();
  while (recent_.pop_front() != nullptr) {
  }
}

void Cache::lookup(std::string_view name, Type type, Callback done) {
  ++stats_.lookups;
  std::string key = canonical_name(name);
  const size_t name_size = key.size();
  key += '/';
  key += to_string(type);
  auto [at, added] = entries_.try_emplace(std::move(key));
  Entry& entry = at->second;
  if (added) {
    entry.key = &at->first;
    entry.type = type;
  }
  if (entry.in_flight) {
    entry.waiting.push_back(std::move(done));
    return;
  }
  entry.link.unlink();
  if (entry.answer && io_.now() < entry.answer->expires_ns) {
    ++stats_.hits;
    recent_.push_back(entry);
    ready_.push_back({std::move(done), entry.answer});
    io_.defer(deliver_);
    return;
  }
  entry.answer.reset();
  entry.in_flight = true;
  entry.aliases = 0;
  entry.alias_ttl_s = UINT32_MAX;
  entry.aliases_secure = true;
  entry.asking.assign(*entry.key, 0, name_size);
  entry.waiting.push_back(std::move(done));
  if (added) evict();
  line_.push_back(&entry);
  start_next();
}

void Cache::start_next() {
  while (!line_.empty() && in_network_ < options_.max_in_flight) {
    Entry* entry = line_.front();
    line_.pop_front();
    ++in_network_;
    ask(*entry);
  }
}

void Cache::ask(Entry& entry) {
  ++stats_.queries;
  transport_.query(entry.asking, entry.type,
                   [this, &entry](Answer&& answer) { on_answer(entry, std::move(answer)); });
}

void Cache::on_answer(Entry& entry, Answer&& answer) {
  if (answer.outcome == Outcome::alias) {
    entry.alias_ttl_s = std::min(entry.alias_ttl_s, answer.ttl_s);
    entry.aliases_secure = entry.aliases_secure && answer.secure;
    if (++entry.aliases <= kMostAliases) {
      entry.asking = canonical_name(answer.alias);
      ask(entry);
      return;
    }
    answer = {};
    answer.outcome = Outcome::malformed;
    answer.reason = "too long a chain of aliases";
  }
  --in_network_;
  const Outcome outcome = answer.outcome;
  finish(entry, std::move(answer));
  watch(entry.asking, entry.type, outcome);
  start_next();
}

void Cache::watch(const std::string& name, Type type, Outcome outcome) {
  if (outcome != Outcome::failure) {
    const bool recovered = in_outage();
    failures_in_row_ = 0;
    probe_timer_.cancel();
    if (recovered) {
      log::info("names can be looked up again");
      if (on_recovered) on_recovered();
    }
    return;
  }
  if (!in_outage() && ++failures_in_row_ == kFailuresOfOutage) {
    log::warning("{} look-ups in a row have failed, the last of {} {}: asked again every {} s", kFailuresOfOutage,
                 name, to_string(type), kProbeNs / 1'000'000'000);
  }
  if (!in_outage() || probing_ || probe_timer_.armed()) return;
  probe_name_ = name;
  probe_type_ = type;
  io_.timers().arm(probe_timer_, io_.now() + kProbeNs);
}

void Cache::probe() {
  ++stats_.queries;
  probing_ = true;
  transport_.query(probe_name_, probe_type_, [this](Answer&& answer) {
    probing_ = false;
    const std::string name = probe_name_;
    watch(name, probe_type_, answer.outcome);
  });
}

void Cache::finish(Entry& entry, Answer&& answer) {
  if (answer.outcome == Outcome::failure) ++stats_.failures;
  if (answer.outcome == Outcome::malformed) ++stats_.malformed;
  answer.ttl_s = std::min(answer.ttl_s, entry.alias_ttl_s);
  if (entry.aliases > 0) {
    answer.secure = answer.secure && entry.aliases_secure;
    if (answer.expanded.empty()) answer.expanded = entry.asking;
  }
  answer.answered_ns = io_.now();
  answer.expires_ns = answer.answered_ns + lifetime_ns(answer);
  entry.answer = std::make_shared<const Answer>(std::move(answer));
  entry.in_flight = false;
  recent_.push_back(entry);
  // Delivered at the end of the turn: a callback may look up this very name again.
  for (Callback& done : entry.waiting) ready_.push_back({std::move(done), entry.answer});
  entry.waiting.clear();
  entry.waiting.shrink_to_fit();
  io_.defer(deliver_);
}

int64_t Cache::lifetime_ns(const Answer& answer) const {
  const int64_t ttl_ns = int64_t{answer.ttl_s} * 1'000'000'000;
  switch (answer.outcome) {
    case Outcome::records:
      return std::clamp(ttl_ns, kShortestTtlNs, kLongestTtlNs);
    case Outcome::no_data:
    case Outcome::nxdomain: {
      const int64_t longest = std::max<int64_t>(options_.negative_ttl_ms, 0) * 1'000'000;
      return std::clamp(ttl_ns, std::min(kShortestTtlNs, longest), longest);
    }
    case Outcome::alias:
    case Outcome::failure:
    case Outcome::malformed:
      return kFailureTtlNs;
  }
  UNREACHABLE();
}

void Cache::evict() {
  while (entries_.size() > options_.max_entries) {
    Entry* oldest = recent_.pop_front();
    if (oldest == nullptr) return;  // everything is being asked
    ++stats_.evicted;
    entries_.erase(entries_.find(*oldest->key));
  }
}

void Cache::flush() {
  while (Entry* entry = recent_.pop_front()) entries_.erase(entries_.find(*entry->key));
}

void Cache::on_deliver() {
  std::vector<Ready> ready = std::move(ready_);
  ready_.clear();
  for (Ready& one : ready) one.done(one.answer);
}

}  // namespace millrace::dns
