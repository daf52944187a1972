// Whether the DNS says of our sources what receivers look for: each address has a PTR record, the name in it leads back to
// the address, and so does the EHLO name. Asked of the relay's own resolver at start, after each reload and every hour;
// nothing waits for it.
//
// An IPv6 address whose PTR record and name do not match is not sent from to MX hosts (many receivers refuse such mail), unless
// --ipv6-without-ptr says so. Until it is known, a source that has an IPv4 address uses that one. What is wrong
// with an EHLO name, or with IPv4, is told and changes nothing.
//
// Contract: on_finding is called from turn(), once for each source at the end of its first check, and again when what it
// found has changed. A look-up that fails changes nothing of what is known and is made again after kAgainNs.
//
// Limits: kMostNames names of a PTR answer are looked at. Addresses that no receiver can see (private, loopback) are not
// checked, nor is mail without a --source, whose address the kernel chooses.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "config/config.h"
#include "dns/cache.h"
#include "reactor/io.h"

namespace millrace::delivery {

class SourceCheck {
 public:
  static constexpr int64_t kEveryNs = 3'600'000'000'000;
  static constexpr int64_t kAgainNs = 300'000'000'000;
  static constexpr size_t kMostNames = 5;

  struct Finding {
    unsigned source = 0;
    std::string ehlo_name, address;  // the first address
    std::string wrong;               // with what would be right; empty: nothing
  };
  std::function<void(const Finding&)> on_finding;

  // `cache` outlives it.
  SourceCheck(reactor::Io& io, dns::Cache& cache);
  ~SourceCheck();
  SourceCheck(const SourceCheck&) = delete;
  SourceCheck& operator=(const SourceCheck&) = delete;

  // Begins anew with these sources.
  void start(config::Snapshot config);
  bool ipv6_usable(unsigned source) const;
  // Empty: nothing, or not known yet.
  std::string wrong(unsigned source) const;

 private:
  enum class Verdict : uint8_t { unknown, good, bad };
  struct Known {
    Verdict ipv6 = Verdict::unknown;
    bool told = false;
    std::string wrong;
  };
  struct Source;  // one being checked
  struct Address;

  void check();
  void check_address(const std::shared_ptr<Source>& source, const reactor::Address& address);
  void on_ptr(const std::shared_ptr<Address>& one, const dns::Answer& answer);
  void one_less(const std::shared_ptr<Address>& one);
  void finish(Source& source);
  void on_timer();

  reactor::Io& io_;
  dns::Cache& cache_;
  config::Snapshot config_;
  std::vector<Known> known_;  // by source
  std::shared_ptr<bool> alive_;  // of this round: a look-up's answer may come after it
  size_t left_ = 0;           // sources
  bool failed_ = false;       // some look-up did
  reactor::Timer timer_;
};

// "1.2.0.192.in-addr.arpa"; "...ip6.arpa".
std::string reverse_name(const reactor::Address& address);

}  // namespace millrace::delivery
