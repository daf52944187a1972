// The credentials file (--credentials): who may authenticate, and what an account may do. Read whole, checked whole,
// immutable; part of the configuration's snapshot. docs/auth.md is its page.
//
//   [account.NAME]
//   password = "$y$j9T$..."             # crypt(3)
//   scram-sha-256 = "SCRAM-SHA-256$4096:...$...:..."
//   networks = ["192.0.2.0/24"]         # from where; without it, from anywhere
//   senders = ["example.com", "*.example.com", "news@example.org"]
//   tenant = "acme"
//   pools = ["bulk", "transactional"]   # that X-Virtual-MTA may name; the first is that of mail that names none
//   sources = ["mta1.example.com"]      # of --source, by EHLO name or address
//   recipients-per-hour = 10000
//   recipients-per-day = 100000
//   auto-freeze = false
//
// `millracectl passwd NAME` writes the first two. Unknown keys and values that cannot hold are errors with file, line
// and remedy, all reported at once; what is secret is never repeated in one.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "auth/secret.h"
#include "base/result.h"
#include "config/config.h"

namespace millrace::config {

struct Account {
  std::string name;
  auth::Secret secret;
  std::vector<reactor::Network> networks;  // empty: any
  std::vector<std::string> senders;        // empty: any. Domains in lower case, "*.example.com", or addresses
  std::string tenant;
  std::vector<std::string> pools;          // empty: any
  std::vector<unsigned> sources;           // indices of Config::sources; empty: all
  uint64_t recipients_per_hour = 0;        // 0: no limit
  uint64_t recipients_per_day = 0;
  bool auto_freeze = true;

  bool allows_network(const reactor::Address& client) const;
  // `mailbox` without angle brackets; the null reverse-path is everybody's.
  bool allows_sender(std::string_view mailbox) const;
  bool allows_pool(std::string_view pool) const;
};

class Credentials {
 public:
  static Result<std::shared_ptr<const Credentials>> parse(std::string_view text, const std::string& file,
                                                          const std::vector<Source>& sources);

  const Account* find(std::string_view name) const;
  size_t size() const { return accounts_.size(); }
  const std::map<std::string, Account, std::less<>>& accounts() const { return accounts_; }
  // Some account has a verifier: SCRAM may be offered.
  bool has_scram() const { return scram_iterations_ > 0; }
  uint32_t scram_iterations() const { return scram_iterations_; }  // of the first account that has one
  // For a name that nobody has: as slow to check as the first account's, and no password fits.
  const auth::Secret& decoy() const { return decoy_; }
  const std::string& text() const { return text_; }  // what the file held

 private:
  friend class CredentialsReader;
  std::map<std::string, Account, std::less<>> accounts_;
  uint32_t scram_iterations_ = 0;
  auth::Secret decoy_;
  std::string text_;
};

// The text of a credentials file with the password of one account set (or the account added), and everything else as
// it was. The name is written as TOML wants it. An error: the file is not one that can be changed so.
Result<std::string> set_password(std::string_view text, std::string_view account, std::string_view crypt,
                                 std::string_view scram);

}  // namespace millrace::config
