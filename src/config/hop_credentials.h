// The file of --next-hop-credentials: how we authenticate to smarthosts and routes. Read whole, checked whole, immutable;
// part of the configuration's snapshot. docs/auth.md is its page.
//
//   [next-hop."smtp.example.net"]        # as --smarthost or --route names it, with or without its port
//   user = "relay@example.com"
//   password = "..."                     # or password-file = "/path", or token-file = "/path"
//   mechanisms = ["SCRAM-SHA-256"]       # of what the server offers, only these
//   certificate = "/path"                # ours, for a server that asks for one; with its key
//   key = "/path"
//
// Credentials go to a host whose certificate is good for its name, and to no other (delivery/tls_policy.h), so a next
// hop is named by its name. What is secret is never repeated in an error.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "auth/client_exchange.h"
#include "base/result.h"
#include "config/config.h"

namespace millrace::config {

struct HopCredentials {
  std::string user;
  std::string secret;    // the password, or the access token
  bool token = false;
  std::vector<auth::ClientMechanism> mechanisms;  // allowed ones; empty: all that fit
  tls::Certificate certificate;                   // empty: none
  bool authenticates() const { return !user.empty(); }
};

class HopCredentialsFile {
 public:
  // Reads the files that it names too.
  static Result<std::shared_ptr<const HopCredentialsFile>> parse(std::string_view text, const std::string& file,
                                                                 const Config& config);
  // nullptr: none for this host and port.
  const HopCredentials* find(std::string_view host, uint16_t port) const;
  const std::vector<std::string>& files() const { return files_; }  // that it names
  bool operator==(const HopCredentialsFile& other) const { return digest_ == other.digest_; }
  // Of all that it says, the files' contents included.
  const std::string& digest() const { return digest_; }

 private:
  friend class HopCredentialsReader;
  std::map<std::string, HopCredentials, std::less<>> hops_;  // "host" or "host:port"
  std::vector<std::string> files_;
  std::string digest_;
};

}  // namespace millrace::config
