#include "shaping/arbiter.h"

#include <algorithm>
#include <cmath>

#include "base/log.h"

namespace millrace::shaping {
namespace {

using Key = config::ShapingKey;

constexpr int64_t kHourMs = 3'600'000;
// Of a budget that is written down ahead of its use: at most so much is lost by a crash.
constexpr uint64_t kAheadParts = 64;
// Of such a budget a tenth is for transactional mail alone, if there is any.
constexpr uint64_t kReservedParts = 10;

}  // namespace

struct Counter {
  enum class Kind : uint8_t { slots, pace, window };

  Scope* scope = nullptr;
  Arbiter* arbiter = nullptr;
  Key key = Key::connections;
  Kind kind = Kind::slots;
  config::Rate rate;                            // pace, window
  const config::ShapingValue* value = nullptr;  // of the rules in force; nullptr: no limit any more
  uint64_t limit = 0;                           // slots
  uint64_t used = 0;                            // slots
  RateLimiter pace;
  std::unique_ptr<Window> window;
  // Of a budget that is kept: how much has been charged since the start, and how much of that, and of
  // what may still be, the disk knows.
  bool kept = false, writing = false;
  uint64_t charged = 0, written = 0;
  uint64_t reserved = 0;                        // of a budget: what bulk mail leaves
  uint32_t leaving = 0;                         // connections: that end for those that wait
  int64_t recalled_at = INT64_MIN / 2;
  Turns<Request, &Request::wait_link> waiting;
  reactor::Timer timer;

  bool counts(Purpose purpose) const {
    bool of_connections = key == Key::connections || key == Key::connect_rate;
    return of_connections == (purpose == Purpose::connect);
  }
  uint64_t weight(const Request& request) const {
    if (!counts(request.purpose)) return 1;  // it only waits for room
    switch (key) {
      case Key::recipient_rate: return window->weight(request.recipients);
      case Key::byte_rate: return window->weight(request.octets);
      default: return 1;
    }
  }
  // When a request of this weight may go: now or earlier is at once, INT64_MAX when something comes back.
  int64_t allowed_at(int64_t now, const Request& request) {
    uint64_t n = weight(request);
    return allowed_at(now, n, reserved > 0 && !request.flow->transactional ? std::min(n + reserved, window->limit()) : n);
  }
  // `free`: how much room there is to be, at least what it weighs.
  int64_t allowed_at(int64_t now, uint64_t n, uint64_t free) {
    if (!value) return now;
    switch (kind) {
      case Kind::slots: return used < limit ? now : INT64_MAX;
      case Kind::pace: return std::max(now, pace.allowed_at());
      case Kind::window:
        if (!window->allowed(now, free)) return window->allowed_at(now, free);
        return kept && charged + n > written ? INT64_MAX : now;
    }
    return now;
  }
  void charge(int64_t now, uint64_t n) {
    switch (kind) {
      case Kind::slots: ++used; break;
      case Kind::pace: pace.charge(now); break;
      case Kind::window:
        window->charge(now, n);
        charged += n;
        break;
    }
  }
  // Enough for the one that waits first, whatever its weight.
  uint64_t ahead() {
    uint64_t part = std::max<uint64_t>(1, window->limit() / kAheadParts);
    Request* first = waiting.front();
    return first ? std::max(part, weight(*first)) : part;
  }
};

struct Scope {
  std::string name;
  std::vector<std::unique_ptr<Counter>> counters;
};

Arbiter::Arbiter(reactor::Io& io, std::shared_ptr<const config::Shaping> rules) : io_(io), rules_(std::move(rules)) {
  ASSERT(rules_);
}

Arbiter::~Arbiter() {
  *alive_ = false;
  for (auto& [name, mode] : modes_) mode->timer.cancel();
  for (auto& [name, scope] : scopes_) {
    for (auto& counter : scope->counters) {
      counter->timer.cancel();
      counter->waiting.each([](Request& request) { return request.waits_for = nullptr, true; });
      counter->waiting.clear();
    }
  }
}

// ---- from names to scopes

void Arbiter::bind(Request& request) {
  if (!request.set || request.set->stale) request.set = &set_of(request.subject, request.purpose);
  if (!request.flow) request.flow = &flows_.find(*rules_, request.subject.tenant, request.subject.pool, request.subject.job);
  request.condition = nullptr;
  if (request.for_attempt) request.condition = &set_of(request.subject, Purpose::attempt);
}

ScopeSet& Arbiter::set_of(const Subject& subject, Purpose purpose) {
  find_scopes(*rules_, subject, purpose, backed_off(subject), found_);
  // Subjects with the same limits share a set: its key names the scopes, not the subject.
  key_.assign(purpose == Purpose::connect ? "c" : "a");
  for (const ScopeRef& found : found_) {
    key_ += '\n';
    key_ += found.name;
  }
  auto& set = sets_[key_];
  if (!set) {
    set = std::make_unique<ScopeSet>();
    set->purpose = purpose;
    set->provider = subject.provider;
    set->site = subject.site;
    set->domain = subject.domain;
    set->pool = subject.pool;
    set->tenant = subject.tenant;
    set->job = subject.job;
    set->source = subject.source;
    set->stale = true;
  }
  if (set->stale) {
    count_out(*set, -1);
    bind(*set);
    count_out(*set, +1);
  }
  return *set;
}

// REQUIRES: found_ holds the set's scopes.
void Arbiter::bind(ScopeSet& set) {
  set.scopes.clear();
  set.needs_release = set.purpose == Purpose::connect;
  for (const ScopeRef& found : found_) {
    Scope& scope = scope_of(found);
    set.scopes.push_back(&scope);
    for (const auto& counter : scope.counters) {
      if (counter->key == Key::in_flight || counter->key == Key::message_rate) set.needs_release = true;
    }
  }
  set.stale = false;
}

Scope& Arbiter::scope_of(const ScopeRef& found) {
  auto& scope = scopes_[found.name];
  if (!scope) {
    scope = std::make_unique<Scope>();
    scope->name = found.name;
    configure(*scope, found.choice);
  }
  return *scope;
}

// Brings the scope's counters in line with what the rules say; counts that go on are kept.
void Arbiter::configure(Scope& scope, const config::ShapingChoice& choice) {
  for (auto& counter : scope.counters) counter->value = nullptr;
  auto counter_of = [&](Key key, Counter::Kind kind, const config::Rate& rate) -> Counter& {
    for (auto& counter : scope.counters) {
      if (counter->key == key && counter->kind == kind && counter->rate.period_ms == rate.period_ms &&
          (kind != Counter::Kind::pace || counter->rate.count == rate.count)) {
        return *counter;
      }
    }
    Counter& made = *scope.counters.emplace_back(std::make_unique<Counter>());
    made.scope = &scope;
    made.arbiter = this;
    made.key = key;
    made.kind = kind;
    made.timer.owner = &made;
    made.timer.call = [](void* self) {
      auto* it = static_cast<Counter*>(self);
      it->arbiter->serve(*it);
    };
    return made;
  };
  for (Key key : {Key::connections, Key::in_flight}) {
    const config::ShapingValue* value = config::at(choice, key);
    if (!value || value->number == 0) continue;
    Counter& counter = counter_of(key, Counter::Kind::slots, {0, 0});
    counter.rate = {0, 0};
    counter.value = value;
    counter.limit = value->number;
  }
  for (Key key : {Key::connect_rate, Key::attempt_rate, Key::message_rate, Key::recipient_rate, Key::byte_rate}) {
    const config::ShapingValue* value = config::at(choice, key);
    if (!value) continue;
    for (config::Rate rate : value->rates) {
      // Less than one in a period is one in a longer period.
      if (rate.count < 1) rate = {1, static_cast<int64_t>(std::ceil(static_cast<double>(rate.period_ms) / rate.count))};
      // What has weight, or may be given back, or is a budget, is counted; else it is spaced.
      bool counted = rate.period_ms >= kHourMs || (key != Key::connect_rate && key != Key::attempt_rate);
      Counter& counter = counter_of(key, counted ? Counter::Kind::window : Counter::Kind::pace, rate);
      counter.rate = rate;
      counter.value = value;
      counter.reserved = rules_->reserves() && key != Key::connect_rate && rate.period_ms >= kHourMs
                             ? static_cast<uint64_t>(rate.count) / kReservedParts : 0;
      if (!counted) {
        if (!counter.pace.limited()) counter.pace = RateLimiter({rate.count, rate.period_ms + kGrantNs / 1'000'000});
        continue;
      }
      auto limit = static_cast<uint64_t>(rate.count);
      if (counter.window) {
        counter.window->set_limit(limit);
        continue;
      }
      counter.window = std::make_unique<Window>(limit, rate.period_ms * 1'000'000, kGrantNs);
      counter.kept = write_ != nullptr && rate.period_ms >= kHourMs;
      std::string name = std::string(config::to_string(key)) + ' ' + std::to_string(rate.period_ms) + ' ' + scope.name;
      if (auto found = recovered_.find(name); found != recovered_.end()) {
        if (!counter.window->decode(now(), io_.wall_ms(), found->second)) {
          log::error("budget {}: the record cannot be read; it counts as used up for its whole period", name);
          counter.window->charge(now(), limit);
        }
        recovered_.erase(found);
      }
    }
  }
}

// ---- requests

// The counter that will have room last, or nullptr: all have room now. `served`: the request is at the head of that
// counter's list, so it waits behind nobody there.
Counter* Arbiter::blocking(const Request& request, const Counter* served) {
  Counter* last = nullptr;
  int64_t last_at = INT64_MIN;
  auto look_at = [&](const ScopeSet& set) {
    for (Scope* scope : set.scopes) {
      for (auto& each : scope->counters) {
        Counter& counter = *each;
        if (!counter.value || !counter.counts(set.purpose)) continue;
        int64_t at = counter.allowed_at(now(), request);
        if (at <= now() && (counter.waiting.empty() || &counter == served)) continue;
        if (at > last_at) {
          last = &counter;
          last_at = at;
        }
      }
    }
  };
  look_at(*request.set);
  if (request.condition) look_at(*request.condition);
  return last;
}

void Arbiter::grant(Request& request) {
  for (Scope* scope : request.set->scopes) {
    for (auto& counter : scope->counters) {
      if (!counter->counts(request.purpose)) continue;
      // Slots are counted also while no limit is on them, so that a new one finds them.
      if (!counter->value && counter->kind != Counter::Kind::slots) continue;
      counter->charge(now(), counter->kind == Counter::Kind::window ? counter->weight(request) : 1);
      if (counter->kept) persist(*counter);
    }
  }
  request.to_release = request.set->needs_release;
  if (request.to_release) ++request.set->out;
  request.granted_at = now();
  request.valid_until = now() + kGrantNs;
}

bool Arbiter::submit(Request& request) {
  ASSERT(!request.waits_for);
  bind(request);
  if (Counter* counter = blocking(request, nullptr)) {
    park(request, *counter);
    return false;
  }
  grant(request);
  return true;
}

void Arbiter::park(Request& request, Counter& at) {
  request.waits_for = &at;
  at.waiting.push_back(request);
  if (at.kept) persist(at);
  arm(at);
}

void Arbiter::cancel(Request& request) {
  Counter* counter = request.waits_for;
  if (!counter) return;
  counter->waiting.remove(request);
  request.waits_for = nullptr;
  // It may have been in the way of others.
  if (!counter->waiting.empty()) io_.timers().arm(counter->timer, now());
}

// The next look at the counter's list; one that waits for slots or for the disk is served when they come.
void Arbiter::arm(Counter& counter) {
  Request* first = counter.waiting.front();
  if (!first) return;
  int64_t at = counter.allowed_at(now(), *first);
  if (Request* other = counter.reserved > 0 ? counter.waiting.transactional_front() : nullptr) {
    at = std::min(at, counter.allowed_at(now(), *other));
  }
  if (at == INT64_MAX && counter.key == Key::connections) {
    // They come back sooner when those that idle are ended.
    if (on_contended && counter.recalled_at + kRecallNs <= now()) {
      counter.recalled_at = now();
      const Subject& subject = first->subject;
      bool whole_source = counter.scope->name.starts_with("source ");
      on_contended(whole_source ? std::string_view() : subject.provider,
                   whole_source ? std::string_view() : subject.site, subject.source);
    }
    at = now() + kRecallNs;
  }
  if (at == INT64_MAX) return;
  if (!counter.timer.armed() || counter.timer.deadline > at) io_.timers().arm(counter.timer, at);
}

// Grants what may go, in order; what now waits for another counter moves there.
void Arbiter::serve(Counter& counter) {
  while (Request* request = counter.waiting.front()) {
    Counter* other = blocking(*request, &counter);
    if (other == &counter && counter.reserved > 0 && !request->flow->transactional) {
      // What bulk mail may not have is still there for the others.
      request = counter.waiting.transactional_front();
      if (!request) break;
      other = blocking(*request, &counter);
    }
    if (other == &counter) break;
    // The attempt that a connection waited for could have gone. Others will take it before there is a slot, so
    // from now on the slot is all that is waited for.
    if (!counter.counts(request->purpose)) request->condition = nullptr;
    if (!other) counter.waiting.served(*request, turn_cost(request->octets));
    counter.waiting.remove(*request);
    request->waits_for = nullptr;
    if (other) {
      park(*request, *other);
      continue;
    }
    grant(*request);
    request->granted(request->owner, *request);
  }
  arm(counter);
}

bool Arbiter::wanted(const ScopeSet& set) {
  for (const Scope* scope : set.scopes) {
    for (const auto& counter : scope->counters) {
      if (counter->key != Key::connections || counter->waiting.size() <= counter->leaving) continue;
      ++counter->leaving;
      return true;
    }
  }
  return false;
}

void Arbiter::release(const Release& release) {
  ScopeSet& set = *release.set;
  ASSERT(release.to_release || !release.used);
  if (release.to_release) {
    ASSERT(set.out > 0);
    --set.out;
  }
  // Whom it serves may bind sets anew: not while this one is looked at.
  std::vector<Counter*> freed;
  for (Scope* scope : set.scopes) {
    for (auto& each : scope->counters) {
      Counter& counter = *each;
      if (!counter.counts(set.purpose)) continue;
      if (counter.kind == Counter::Kind::slots) {
        if (!release.to_release) continue;
        ASSERT(counter.used > 0);
        --counter.used;
        if (counter.leaving > 0) --counter.leaving;
      } else if (counter.kind == Counter::Kind::pace && !release.used) {
        counter.pace.refund(now(), release.granted_at);
      } else if (counter.kind == Counter::Kind::window &&
                 (!release.used || (counter.key == Key::message_rate && !release.accepted))) {
        uint64_t n = counter.key == Key::recipient_rate ? counter.window->weight(release.recipients)
                     : counter.key == Key::byte_rate    ? counter.window->weight(release.octets)
                                                        : 1;
        counter.window->refund(now(), release.granted_at, n);
      } else {
        continue;
      }
      if (!counter.waiting.empty()) freed.push_back(&counter);
    }
  }
  for (Counter* counter : freed) serve(*counter);
}

// ---- reload

void Arbiter::adopt(std::shared_ptr<const config::Shaping> rules) {
  ask_anew([&] {
    rules_ = std::move(rules);
    flows_.adopt(*rules_);
  });
}

// Around a change of what holds for whom. Slots that are out belong to the scopes they were counted in; sets that have
// any are bound anew here, so that the counts go where they belong now. Requests wait for counters that may mean
// something else then: each is asked anew.
void Arbiter::ask_anew(const std::function<void()>& change) {
  for (auto& [key, set] : sets_) count_out(*set, -1);
  change();
  std::vector<Request*> waiting;
  for (auto& [name, scope] : scopes_) {
    for (auto& counter : scope->counters) {
      counter->value = nullptr;
      counter->timer.cancel();
      counter->waiting.each([&](Request& request) {
        request.waits_for = nullptr;
        waiting.push_back(&request);
        return true;
      });
      counter->waiting.clear();
    }
  }
  std::unordered_map<std::string, config::ShapingChoice> choices;
  for (auto& [key, set] : sets_) {
    Subject subject{set->provider, set->site, set->source, set->domain, set->pool, set->tenant, set->job};
    find_scopes(*rules_, subject, set->purpose, backed_off(subject), found_);
    for (const ScopeRef& found : found_) {
      // A scope that is known gets its new values; counters that both have go on counting.
      if (auto at = scopes_.find(found.name); at != scopes_.end() && choices.try_emplace(found.name, found.choice).second) {
        configure(*at->second, found.choice);
      }
    }
    bind(*set);
    // Another subject that shared the set may have other scopes now.
    set->stale = true;
  }
  for (auto& [key, set] : sets_) count_out(*set, +1);
  for (Request* request : waiting) {
    if (submit(*request)) request->granted(request->owner, *request);
  }
}

// ---- back-off

const Arbiter::Mode* Arbiter::mode(const Subject& subject) const {
  if (modes_.empty()) return nullptr;
  auto at = modes_.find(pair_name(*rules_, subject));
  return at == modes_.end() ? nullptr : at->second.get();
}

void Arbiter::back_off(const Subject& subject, std::string_view reason) {
  std::string name = pair_name(*rules_, subject);
  auto& mode = modes_[name];
  bool fresh = !mode;
  const config::Provider* provider = subject.provider.empty() ? nullptr : rules_->provider(subject.provider);
  if (fresh) {
    mode = std::make_unique<Mode>();
    mode->provider = subject.provider;
    mode->site = subject.site;
    mode->source = subject.source;
    mode->since = now();
    mode->arbiter = this;
    mode->timer.owner = mode.get();
    mode->timer.call = [](void* self) {
      auto* it = static_cast<Mode*>(self);
      it->arbiter->end_mode(*it);
    };
  }
  mode->reason = reason;
  mode->until = now() + rules_->normal_after_ms(provider) * 1'000'000;
  io_.timers().arm(mode->timer, mode->until);
  if (!fresh) return;
  log::warning("{}: backed off: {}", name, reason);
  ask_anew([] {});
  if (on_mode) on_mode(*mode, true);
}

void Arbiter::end_mode(Mode& mode) {
  Subject subject{.provider = mode.provider, .site = mode.site, .source = mode.source};
  std::string name = pair_name(*rules_, subject);
  log::info("{}: normal again", name);
  auto ended = modes_.extract(name);
  ask_anew([] {});
  if (on_mode && !ended.empty()) on_mode(*ended.mapped(), false);
}

// Moves the set's slots into its scopes' counts, or out of them.
void Arbiter::count_out(ScopeSet& set, int by) {
  for (Scope* scope : set.scopes) {
    for (auto& counter : scope->counters) {
      if (counter->kind != Counter::Kind::slots || !counter->counts(set.purpose)) continue;
      counter->used = by < 0 ? counter->used - set.out : counter->used + set.out;
    }
  }
}

// ---- budgets on the disk

void Arbiter::recover(std::string_view key, std::string_view value) {
  if (!key.starts_with(kBudgetKey)) return;
  recovered_[std::string(key.substr(kBudgetKey.size()))] = value;
}

void Arbiter::keep_budgets(Write write) {
  write_ = std::move(write);
  // What had been written down ahead may have been used up to now: from here on its time is known. Budgets that have
  // run out of their window go, whatever limit they belonged to.
  for (auto entry = recovered_.begin(); entry != recovered_.end();) {
    auto& [name, record] = *entry;
    auto width = static_cast<int64_t>(std::strtoll(record.c_str(), nullptr, 10));
    Window window(UINT64_MAX, std::max<int64_t>(width, 1) * (Window::kBuckets - 1), 0);
    if (!window.decode(now(), io_.wall_ms(), record)) {
      ++entry;
      continue;
    }
    bool gone = window.used(now()) == 0;
    record.clear();
    if (!gone) window.encode(now(), io_.wall_ms(), 0, record);
    write_(std::string(kBudgetKey) + name, record, [](Status) {});
    entry = gone ? recovered_.erase(entry) : std::next(entry);
  }
}

// Writes the budget down, with a part that may be used before the next writing.
void Arbiter::persist(Counter& counter) {
  uint64_t ahead = counter.ahead();
  bool short_of = !counter.waiting.empty() && counter.charged + counter.weight(*counter.waiting.front()) > counter.written;
  if (counter.writing || (!short_of && counter.written >= counter.charged + (ahead + 1) / 2)) return;
  uint64_t target = counter.charged + ahead;
  std::string value;
  counter.window->encode(now(), io_.wall_ms(), ahead, value);
  counter.writing = true;
  std::string key = std::string(kBudgetKey) + std::string(config::to_string(counter.key)) + ' ' +
                    std::to_string(counter.rate.period_ms) + ' ' + counter.scope->name;
  write_(std::move(key), std::move(value), [this, alive = alive_, &counter, target](Status status) {
    if (!*alive) return;
    counter.writing = false;
    if (!status.ok()) {
      // Nothing goes beyond what is on the disk; the next request writes again.
      log::error("budget of {}: {}", counter.scope->name, status.error().text);
      return;
    }
    counter.written = target;
    serve(counter);
  });
}

// ---- the operator's view

std::vector<LimitRow> Arbiter::describe(const Subject& subject, Purpose purpose) {
  std::vector<LimitRow> rows;
  std::vector<ScopeRef> found;
  find_scopes(*rules_, subject, purpose, backed_off(subject), found);
  for (const ScopeRef& ref : found) {
    Scope& scope = scope_of(ref);
    for (auto& counter : scope.counters) {
      if (!counter->value || !counter->counts(purpose)) continue;
      LimitRow& row = rows.emplace_back();
      row.scope = scope.name;
      row.key = config::to_string(counter->key);
      row.where = counter->value->where;
      config::ShapingValue one = *counter->value;
      if (counter->kind != Counter::Kind::slots) one.rates = {counter->rate};
      row.limit = config::to_string(counter->key, one);
      row.used = counter->kind == Counter::Kind::slots    ? counter->used
                 : counter->kind == Counter::Kind::window ? counter->window->used(now())
                                                          : 0;
      int64_t at = counter->allowed_at(now(), 1, 1);
      row.free_at = at <= now() ? 0 : at;
      row.waiting = counter->waiting.size();
    }
  }
  return rows;
}

void Arbiter::check() const {
  std::unordered_map<const Counter*, uint64_t> out;
  for (const auto& [key, set] : sets_) {
    for (const Scope* scope : set->scopes) {
      for (const auto& counter : scope->counters) {
        if (counter->kind == Counter::Kind::slots && counter->counts(set->purpose)) out[counter.get()] += set->out;
      }
    }
  }
  for (const auto& [name, scope] : scopes_) {
    for (const auto& counter : scope->counters) {
      if (counter->kind == Counter::Kind::slots) ASSERT(counter->used == out[counter.get()]);
    }
  }
}

}  // namespace millrace::shaping
