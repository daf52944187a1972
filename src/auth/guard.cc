#include "auth/guard.h"

#include <algorithm>

namespace millrace::auth {

std::string Guard::pair(std::string_view address, std::string_view account) {
  std::string key(address);
  key += '\0';
  key += account;
  return key;
}

Guard::Entry* Guard::find(Table& table, const std::string& key, int64_t now_ms, int64_t keep_ms) {
  auto at = table.entries.find(key);
  if (at == table.entries.end()) return nullptr;
  if (now_ms - at->second.last_ms < keep_ms || now_ms < at->second.shut_until_ms) return &at->second;
  table.ages.erase(at->second.age);
  table.entries.erase(at);
  return nullptr;
}

Guard::Entry& Guard::touch(Table& table, const std::string& key, int64_t now_ms) {
  auto [at, fresh] = table.entries.try_emplace(key);
  Entry& entry = at->second;
  if (!fresh) table.ages.erase(entry.age);
  table.ages.push_back(key);
  entry.age = std::prev(table.ages.end());
  entry.last_ms = now_ms;
  if (fresh && table.size() > most()) {
    table.entries.erase(table.ages.front());
    table.ages.pop_front();
  }
  return entry;
}

Guard::Verdict Guard::check(std::string_view address, std::string_view account, int64_t now_ms) {
  Entry* of_address = find(addresses_, std::string(address), now_ms, limits_.forget_ms);
  if (of_address && now_ms < of_address->shut_until_ms) return Verdict::address_shut_out;
  Entry* of_account = find(accounts_, std::string(account), now_ms, limits_.forget_ms);
  if (of_account && now_ms < of_account->shut_until_ms &&
      !find(trusted_, pair(address, account), now_ms, limits_.trust_ms)) {
    return Verdict::account_shut_out;
  }
  return Verdict::may_try;
}

int64_t Guard::failed(std::string_view address, std::string_view account, int64_t now_ms) {
  const std::string where(address), who(account);
  find(addresses_, where, now_ms, limits_.forget_ms);  // forgets what is old
  Entry& of_address = touch(addresses_, where, now_ms);
  ++of_address.failures;
  if (of_address.failures >= limits_.failures_of_address) {
    of_address.shut_until_ms = now_ms + limits_.shut_out_ms;
    of_address.failures = limits_.failures_of_address / 2;
  }
  const uint32_t failures = of_address.failures;
  if (!who.empty() && !find(trusted_, pair(address, account), now_ms, limits_.trust_ms)) {
    find(accounts_, who, now_ms, limits_.forget_ms);
    Entry& of_account = touch(accounts_, who, now_ms);
    if (++of_account.failures >= limits_.failures_of_account) {
      of_account.shut_until_ms = now_ms + limits_.shut_out_ms;
      of_account.failures = limits_.failures_of_account / 2;
    }
  }
  return std::min<int64_t>(int64_t{1000} << std::min(failures - 1, 16u), limits_.longest_delay_ms);
}

void Guard::succeeded(std::string_view address, std::string_view account, int64_t now_ms) {
  // Not wholly: who knows one password must not get unlimited guesses at others by using it in between.
  if (Entry* entry = find(addresses_, std::string(address), now_ms, limits_.forget_ms)) entry->failures /= 2;
  touch(trusted_, pair(address, account), now_ms);
}

}  // namespace millrace::auth
