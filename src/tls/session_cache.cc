#include "tls/session_cache.h"

#include "base/assert.h"
#include "tls/wolfssl.h"

namespace millrace::tls {

std::string_view to_string(Verified verified) {
  switch (verified) {
    case Verified::not_checked: return "not checked";
    case Verified::ok: return "ok";
    case Verified::untrusted: return "untrusted";
    case Verified::expired: return "expired";
    case Verified::wrong_name: return "wrong name";
    case Verified::invalid: return "invalid";
    case Verified::no_match: return "no TLSA record fits";
  }
  UNREACHABLE();
}

SessionCache::~SessionCache() {
  for (Entry& entry : entries_) wolfSSL_SESSION_free(entry.session);
}

SessionCache::Found SessionCache::find(const std::string& key) {
  const auto at = by_key_.find(key);
  if (at == by_key_.end()) return {};
  entries_.splice(entries_.begin(), entries_, at->second);
  // A copy: wolfSSL writes into the session of a connection, and others may begin with it meanwhile.
  return {wolfSSL_SESSION_dup(at->second->session), at->second->verified};
}

void SessionCache::put(const std::string& key, WOLFSSL_SESSION* session, Verified verified) {
  remove(key);
  if (most_ == 0) return wolfSSL_SESSION_free(session);
  if (entries_.size() >= most_) {
    wolfSSL_SESSION_free(entries_.back().session);
    by_key_.erase(entries_.back().key);
    entries_.pop_back();
  }
  entries_.push_front({key, session, verified});
  by_key_.emplace(entries_.front().key, entries_.begin());
}

void SessionCache::remove(const std::string& key) {
  const auto at = by_key_.find(key);
  if (at == by_key_.end()) return;
  const auto entry = at->second;
  by_key_.erase(at);
  wolfSSL_SESSION_free(entry->session);
  entries_.erase(entry);
}

}  // namespace millrace::tls
