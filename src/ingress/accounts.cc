#include "ingress/accounts.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "auth/crypto.h"

namespace millrace::ingress {
namespace {

constexpr int64_t kNsPerMs = 1'000'000;
constexpr int64_t kHourNs = 3'600'000 * kNsPerMs;
constexpr int64_t kDayMs = 86'400'000;
constexpr int64_t kDayNs = kDayMs * kNsPerMs;
constexpr size_t kDaysKept = 7;

// Numbers apart by blanks.
bool take_number(std::string_view& text, uint64_t& number) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return false;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return true;
}

}  // namespace

Accounts::Accounts() : right_(auth::random_octets(auth::kDigestSize)), secret_(auth::random_octets(auth::kDigestSize)) {}

// ---- authentication

// An IPv4 address or an IPv6 /64: whoever has one address of a /64 has all of them.
std::string Accounts::address_key(const reactor::Address& client) {
  if (client.empty() || client.is_unix()) return "local";
  if (!client.is_ipv6()) return client.host_string();
  Result<reactor::Network> network = reactor::Network::parse(client.host_string() + "/64");
  return network ? network->to_string() : client.host_string();
}

auth::Guard::Verdict Accounts::check(const reactor::Address& client, std::string_view account, int64_t now) {
  const std::string key = address_key(client);
  std::lock_guard lock(guard_mutex_);
  return guard_.check(key, account, now / kNsPerMs);
}

int64_t Accounts::failed(const reactor::Address& client, std::string_view account, int64_t now) {
  const std::string key = address_key(client);
  std::lock_guard lock(guard_mutex_);
  return guard_.failed(key, account, now / kNsPerMs) * kNsPerMs;
}

void Accounts::succeeded(const reactor::Address& client, std::string_view account, int64_t now) {
  const std::string key = address_key(client);
  std::lock_guard lock(guard_mutex_);
  guard_.succeeded(key, account, now / kNsPerMs);
}

std::string Accounts::digest(const config::Account& account, std::string_view password) const {
  const std::string stored = account.secret.scram ? account.secret.crypt + auth::print_scram_verifier(*account.secret.scram)
                                                  : account.secret.crypt;
  return right_.digest(account.name, stored, password);
}

bool Accounts::was_right(const std::string& digest, int64_t now) {
  std::lock_guard lock(guard_mutex_);
  return right_.contains(digest, now / kNsPerMs);
}

void Accounts::remember(const std::string& digest, int64_t now) {
  std::lock_guard lock(guard_mutex_);
  right_.add(digest, now / kNsPerMs);
}

auth::ScramVerifier Accounts::scram_verifier(const config::Credentials& credentials, std::string_view user) const {
  // Both ways are gone every time, so that both take the same time.
  auth::ScramVerifier nobody;
  nobody.iterations = std::max(credentials.scram_iterations(), auth::kIterations);
  nobody.salt = auth::hmac_sha256(secret_, std::string("salt\n").append(user)).substr(0, auth::kSaltSize);
  nobody.stored_key = auth::hmac_sha256(secret_, std::string("stored\n").append(user));
  nobody.server_key = auth::hmac_sha256(secret_, std::string("server\n").append(user));
  const config::Account* account = credentials.find(user);
  return account && account->secret.scram ? *account->secret.scram : nobody;
}

// ---- budgets

Accounts::Budget* Accounts::budget_of(std::optional<Budget>& budget, std::string& recovered, uint64_t limit, int64_t period_ns,
                                      int64_t now, int64_t wall_ms) {
  if (!budget) {
    // Counted also where nothing limits: a reload may bring a limit.
    budget.emplace(UINT64_MAX / 2, period_ns);
    if (!recovered.empty()) {
      budget->window.decode(now, wall_ms, recovered);
      recovered = {};
    }
  }
  budget->window.set_limit(limit == 0 ? UINT64_MAX / 2 : limit);
  return &*budget;
}

std::optional<Accounts::Refusal> Accounts::charge(const config::Account& account, int64_t now, int64_t wall_ms) {
  if (account.recipients_per_hour == 0 && account.recipients_per_day == 0) return std::nullopt;
  bool changed = false;
  {
    Stripe& stripe = stripe_of(account.name);
    std::lock_guard lock(stripe.mutex);
    Book& book = stripe.books[account.name];
    Budget* hour = budget_of(book.hour, book.recovered_hour, account.recipients_per_hour, kHourNs, now, wall_ms);
    Budget* day = budget_of(book.day, book.recovered_day, account.recipients_per_day, kDayNs, now, wall_ms);
    for (auto [budget, name, limit] : {std::tuple{day, "day", account.recipients_per_day}, {hour, "hour", account.recipients_per_hour}}) {
      if (budget->window.allowed(now, 1)) continue;
      return Refusal{name, limit, wall_ms + (budget->window.allowed_at(now, 1) - now) / kNsPerMs};
    }
    for (auto [budget, limit] : {std::pair{hour, account.recipients_per_hour}, {day, account.recipients_per_day}}) {
      budget->window.charge(now, 1);
      ++budget->charged;
      if (limit > 0 && budget->charged > budget->written) changed = true;
    }
    if (changed) {
      // A part of each is written down ahead of its use, so that not every recipient is a write.
      hour->written = hour->charged + account.recipients_per_hour / 64;
      day->written = day->charged + account.recipients_per_day / 64;
    }
  }
  if (changed && on_changed) on_changed(account.name);
  return std::nullopt;
}

void Accounts::refund(std::string_view account, uint64_t recipients, int64_t charged_at, int64_t now) {
  if (recipients == 0) return;
  Stripe& stripe = stripe_of(account);
  std::lock_guard lock(stripe.mutex);
  auto at = stripe.books.find(std::string(account));
  if (at == stripe.books.end()) return;
  for (std::optional<Budget>* budget : {&at->second.hour, &at->second.day}) {
    if (*budget) (*budget)->window.refund(now, charged_at, recipients);
  }
}

// ---- days, and freezing

void Accounts::turn_day(Days& days, int64_t wall_ms) {
  const int64_t today = wall_ms / kDayMs;
  if (days.today == today) return;
  if (days.today > today) return;  // the clock was set back: the day goes on
  if (days.today != 0) days.before.emplace_back(days.today, days.recipients);
  days.today = today;
  days.recipients = days.delivered = days.bounced = 0;
  std::erase_if(days.before, [&](const auto& day) { return day.first + static_cast<int64_t>(kDaysKept) < today; });
}

std::string Accounts::suspicion(const Days& days) {
  if (days.recipients > kRiseFloor && days.before.size() >= kRiseDays) {
    // Of the seven days before, those on which nothing was sent included, from the first one known on.
    std::vector<uint64_t> counts;
    for (const auto& [day, recipients] : days.before) counts.push_back(recipients);
    const auto known = static_cast<size_t>(days.today - days.before.front().first);
    counts.resize(std::min(std::max(known, counts.size()), kDaysKept), 0);
    std::sort(counts.begin(), counts.end());
    const uint64_t median = counts[counts.size() / 2];
    if (days.recipients > median * kRiseFactor) {
      return fmt::format("a sudden rise: {} recipients today, the median of the days before is {}", days.recipients, median);
    }
  }
  const uint64_t outcomes = days.delivered + days.bounced;
  if (outcomes >= kBounceFloor && days.bounced * 100 > outcomes * kBouncePercent) {
    return fmt::format("many bounces: {} of {} recipients today", days.bounced, outcomes);
  }
  return {};
}

void Accounts::accepted(const config::Account& account, uint64_t recipients, int64_t wall_ms) {
  std::string why;
  bool changed = false;
  {
    Stripe& stripe = stripe_of(account.name);
    std::lock_guard lock(stripe.mutex);
    Book& book = stripe.books[account.name];
    const int64_t before = book.days.today;
    turn_day(book.days, wall_ms);
    if (before != book.days.today && !book.frozen) book.reported = false;
    book.auto_freeze = account.auto_freeze;
    book.days.recipients += recipients;
    book.days.unwritten += recipients;
    // The median needs no exact numbers: a crash may lose a little of a day.
    if (before != book.days.today || book.days.unwritten > 100 + book.days.recipients / 64) {
      book.days.unwritten = 0;
      changed = true;
    }
    if (account.auto_freeze && !book.frozen && !book.reported) {
      why = suspicion(book.days);
      book.reported = !why.empty();
    }
  }
  if (changed && on_changed) on_changed(account.name);
  if (!why.empty() && on_suspicious) on_suspicious(account.name, why);
}

void Accounts::ended(std::string_view account, bool bounced, int64_t wall_ms) {
  std::string why;
  const std::string name(account);
  {
    Stripe& stripe = stripe_of(account);
    std::lock_guard lock(stripe.mutex);
    auto at = stripe.books.find(name);
    if (at == stripe.books.end()) return;  // it has sent nothing since the start and has no record
    Book& book = at->second;
    turn_day(book.days, wall_ms);
    ++(bounced ? book.days.bounced : book.days.delivered);
    if (bounced && book.auto_freeze && !book.frozen && !book.reported) {
      why = suspicion(book.days);
      book.reported = !why.empty();
    }
  }
  if (!why.empty() && on_suspicious) on_suspicious(name, why);
}

bool Accounts::frozen(std::string_view account) {
  Stripe& stripe = stripe_of(account);
  std::lock_guard lock(stripe.mutex);
  auto at = stripe.books.find(std::string(account));
  return at != stripe.books.end() && at->second.frozen;
}

void Accounts::set_frozen(std::string_view account, bool frozen) {
  Stripe& stripe = stripe_of(account);
  std::lock_guard lock(stripe.mutex);
  Book& book = stripe.books[std::string(account)];
  book.frozen = frozen;
  // Thawed by hand: today's numbers have been looked at, and are no reason again.
  if (!frozen && book.reported) {
    book.days.delivered = book.days.bounced = 0;
  }
  if (frozen) book.reported = true;
}

// ---- the disk

std::vector<Accounts::Record> Accounts::records(const std::string& account, int64_t now, int64_t wall_ms) {
  std::vector<Record> records;
  Stripe& stripe = stripe_of(account);
  std::lock_guard lock(stripe.mutex);
  auto at = stripe.books.find(account);
  if (at == stripe.books.end()) return records;
  Book& book = at->second;
  for (auto [budget, letter] : {std::pair{&book.hour, 'h'}, {&book.day, 'd'}}) {
    if (!*budget) continue;
    const uint64_t ahead = (*budget)->written > (*budget)->charged ? (*budget)->written - (*budget)->charged : 0;
    std::string value;
    (*budget)->window.encode(now, wall_ms, ahead, value);
    records.push_back({fmt::format("account/{}/{}", letter, account), std::move(value)});
  }
  if (book.days.today != 0) {
    std::string value = fmt::format("{} {} {} {}", book.days.today, book.days.recipients, book.days.delivered, book.days.bounced);
    for (const auto& [day, recipients] : book.days.before) value += fmt::format(" {} {}", day, recipients);
    records.push_back({fmt::format("account/s/{}", account), std::move(value)});
  }
  return records;
}

void Accounts::recover(std::string_view key, std::string_view value, int64_t now, int64_t wall_ms) {
  if (key.size() < 3 || key[1] != '/') return;
  const std::string name(key.substr(2));
  Stripe& stripe = stripe_of(name);
  std::lock_guard lock(stripe.mutex);
  Book& book = stripe.books[name];
  switch (key[0]) {
    case 'h':
      book.recovered_hour = value;
      budget_of(book.hour, book.recovered_hour, 0, kHourNs, now, wall_ms);
      break;
    case 'd':
      book.recovered_day = value;
      budget_of(book.day, book.recovered_day, 0, kDayNs, now, wall_ms);
      break;
    case 's': {
      uint64_t today = 0, day = 0, recipients = 0;
      Days& days = book.days;
      if (!take_number(value, today) || !take_number(value, days.recipients) || !take_number(value, days.delivered) ||
          !take_number(value, days.bounced)) {
        break;
      }
      days.today = static_cast<int64_t>(today);
      while (take_number(value, day) && take_number(value, recipients)) {
        days.before.emplace_back(static_cast<int64_t>(day), recipients);
      }
      break;
    }
  }
}

}  // namespace millrace::ingress
