#include "auth/success_cache.h"

#include "auth/crypto.h"

namespace millrace::auth {

SuccessCache::SuccessCache(std::string key, int64_t keep_ms, size_t most)
    : key_(std::move(key)), keep_ms_(keep_ms), most_(most) {}

std::string SuccessCache::digest(std::string_view account, std::string_view stored, std::string_view password) const {
  std::string text;
  for (std::string_view part : {account, stored, password}) {
    text += std::to_string(part.size());
    text += ':';
    text += part;
  }
  std::string made = hmac_sha256(key_, text);
  wipe(text);
  return made;
}

bool SuccessCache::contains(const std::string& digest, int64_t now_ms) {
  while (!ages_.empty()) {
    auto oldest = until_.find(ages_.front());
    if (oldest->second > now_ms) break;
    until_.erase(oldest);
    ages_.pop_front();
  }
  return until_.contains(digest);
}

void SuccessCache::add(const std::string& digest, int64_t now_ms) {
  if (contains(digest, now_ms)) return;
  if (until_.size() >= most_) {
    until_.erase(ages_.front());
    ages_.pop_front();
  }
  until_.emplace(digest, now_ms + keep_ms_);
  ages_.push_back(digest);
}

}  // namespace millrace::auth
