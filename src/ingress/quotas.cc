#include "ingress/quotas.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace millrace::ingress {
namespace {

constexpr int64_t kNsPerMs = 1'000'000;
constexpr int64_t kKeptMs = 3'600'000;  // windows from here on survive a restart
constexpr uint64_t kAheadParts = 64;

uint64_t limit_of(const config::Rate& rate) { return std::max<uint64_t>(1, static_cast<uint64_t>(rate.count)); }

}  // namespace

std::optional<Quotas::Refusal> Quotas::charge(std::string_view tenant, const std::vector<config::Rate>& rates, uint64_t recipients,
                                              int64_t now, int64_t wall_ms) {
  bool changed = false;
  std::string name(tenant);
  {
    Stripe& stripe = stripe_of(tenant);
    std::lock_guard lock(stripe.mutex);
    Book& book = stripe.books[name];
    std::optional<Refusal> refusal;
    for (const config::Rate& rate : rates) {
      Budget& budget = book.try_emplace(rate.period_ms, rate.period_ms).first->second;
      budget.window.set_limit(limit_of(rate));
      if (budget.window.allowed(now, recipients)) continue;
      int64_t until_ms = wall_ms + (budget.window.allowed_at(now, recipients) - now) / kNsPerMs + 1;
      if (!refusal || until_ms > refusal->until_ms) refusal = Refusal{rate, until_ms};
    }
    if (refusal) return refusal;
    for (const config::Rate& rate : rates) {
      Budget& budget = book.at(rate.period_ms);
      uint64_t n = budget.window.weight(recipients);
      budget.window.charge(now, n);
      budget.charged += n;
      if (rate.period_ms < kKeptMs || budget.charged <= budget.written) continue;
      budget.written = budget.charged + limit_of(rate) / kAheadParts;
      changed = true;
    }
  }
  if (changed && on_changed) on_changed(name);
  return std::nullopt;
}

void Quotas::refund(std::string_view tenant, uint64_t recipients, int64_t charged_at, int64_t now) {
  if (recipients == 0) return;
  Stripe& stripe = stripe_of(tenant);
  std::lock_guard lock(stripe.mutex);
  auto at = stripe.books.find(std::string(tenant));
  if (at == stripe.books.end()) return;
  for (auto& [period, budget] : at->second) budget.window.refund(now, charged_at, budget.window.weight(recipients));
}

std::vector<Quotas::Record> Quotas::records(const std::string& tenant, int64_t now, int64_t wall_ms) {
  std::vector<Record> records;
  Stripe& stripe = stripe_of(tenant);
  std::lock_guard lock(stripe.mutex);
  auto at = stripe.books.find(tenant);
  if (at == stripe.books.end()) return records;
  for (auto& [period_ms, budget] : at->second) {
    if (period_ms < kKeptMs) continue;
    Record& record = records.emplace_back();
    record.key = fmt::format("quota/{}/{}", period_ms, tenant);
    budget.window.encode(now, wall_ms, budget.written > budget.charged ? budget.written - budget.charged : 0, record.value);
  }
  return records;
}

void Quotas::recover(std::string_view key, std::string_view value, int64_t now, int64_t wall_ms) {
  size_t slash = key.find('/');
  if (slash == key.npos) return;
  int64_t period_ms = 0;
  auto [end, error] = std::from_chars(key.data(), key.data() + slash, period_ms);
  if (error != std::errc() || end != key.data() + slash || period_ms < kKeptMs) return;
  std::string name(key.substr(slash + 1));
  Stripe& stripe = stripe_of(name);
  std::lock_guard lock(stripe.mutex);
  stripe.books[name].try_emplace(period_ms, period_ms).first->second.window.decode(now, wall_ms, value);
}

}  // namespace millrace::ingress
