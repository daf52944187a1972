// Sessions with servers, to be resumed: bounded, the least recently used go first. The key is the caller's
// and names all that the session was made and checked under (delivery.md: address, host name, policy,
// source, identity); a session resumes under that very key only.
//
// Not thread-safe: each shard has one.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>

struct WOLFSSL_SESSION;

namespace millrace::tls {

// What the check of a peer's certificate said; the first fault found.
enum class Verified : uint8_t {
  not_checked,  // it sent none, or none was asked for
  ok,           // chain, dates and name
  untrusted,    // no chain to an authority that we know, self-signed included
  expired,      // or not yet valid
  wrong_name,
  invalid,      // a signature, constraint or key that is no good
  no_match,     // DANE: no TLSA record fits it
};
std::string_view to_string(Verified verified);

class SessionCache {
 public:
  explicit SessionCache(size_t most = 4096) : most_(most) {}
  ~SessionCache();
  SessionCache(const SessionCache&) = delete;
  SessionCache& operator=(const SessionCache&) = delete;

  struct Found {
    WOLFSSL_SESSION* session = nullptr;  // a copy: the caller frees it with wolfSSL_SESSION_free
    Verified verified = Verified::not_checked;
  };
  Found find(const std::string& key);
  // Takes over `session`.
  void put(const std::string& key, WOLFSSL_SESSION* session, Verified verified);
  // The server did not resume it.
  void remove(const std::string& key);
  size_t size() const { return by_key_.size(); }

 private:
  struct Entry {
    std::string key;
    WOLFSSL_SESSION* session;
    Verified verified;
  };
  const size_t most_;
  std::list<Entry> entries_;  // most recently used first
  std::unordered_map<std::string_view, std::list<Entry>::iterator> by_key_;
};

}  // namespace millrace::tls
