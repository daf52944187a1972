// Remembers for some minutes that a password was right, so that a client with many connections pays for crypt(3)
// once. Kept is a keyed hash of account, what is stored of its password, and the password; the key is of the process.
// A changed password changes what is stored, and so is not found. Not synchronized: the owner locks.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>

namespace millrace::auth {

class SuccessCache {
 public:
  explicit SuccessCache(std::string key, int64_t keep_ms = 300'000, size_t most = 65'536);

  // Of all that must be the same. May be made without a lock.
  std::string digest(std::string_view account, std::string_view stored, std::string_view password) const;
  bool contains(const std::string& digest, int64_t now_ms);
  void add(const std::string& digest, int64_t now_ms);
  size_t size() const { return until_.size(); }

 private:
  const std::string key_;
  const int64_t keep_ms_;
  const size_t most_;
  std::unordered_map<std::string, int64_t> until_;
  std::list<std::string> ages_;  // oldest first: all are kept for the same time
};

}  // namespace millrace::auth
