// Which TLS a receiver gets, and what is remembered of those that had it. docs/tls.md tells the rules.
//
// tls_policy() is the one place that answers "which policy for this host". In this order: --tls-for; credentials; what the
// shaping file or --tls asks of the domain; and if that is `auto`, TLSA records, else an MTA-STS policy, else opportunistic.
//
// Domains share hosts and connections. What a domain asks beyond the common is therefore part of its route
// (dns::TlsDemand), whose key keeps connections apart that were checked differently. So is what mail asks by itself
// (RFC 8689), which waits apart for that (queue::Destination::tls).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "config/config.h"
#include "config/hop_credentials.h"
#include "delivery/mta_sts.h"
#include "dns/mx.h"
#include "mail/envelope.h"

namespace millrace::delivery {

struct TlsPolicy {
  config::TlsLevel level = config::TlsLevel::opportunistic;  // up to verified
  bool from_connect = false;  // TLS before the greeting (an explicit next hop written smtps://)
  std::shared_ptr<const tls::DaneWish> dane;  // in place of authorities and the host's name; level is verified then
  std::string server_name;    // for SNI, and for the check of the certificate
  std::string_view name;      // for events: "dane", "mta-sts", "opportunistic", ...
  std::string blocked;        // no mail to this host now, and why; empty: it may be tried
  bool requiretls = false;    // the receiver must know REQUIRETLS, too
  bool not_required = false;  // in the clear where TLS does not come about, whatever is remembered
};
// Of the host of a route that is about to be connected to.
TlsPolicy tls_policy(const config::Config& config, const dns::Route& route, const dns::Host& host);

// What a domain asks, by the configuration, and once its hosts are known: see dns::TlsDemand.
config::TlsLevel asked_level(const config::Config& config, std::string_view domain);
// Of a usable route: sets what the domain asks, and takes the hosts out that its MTA-STS policy does not name; where none is
// left the route is no longer usable (temporary).
void ask_tls(dns::Route& route, std::string_view domain, config::TlsLevel level, const StsPolicy* policy);
// Mail with a wish of its own (RFC 8689). `policy_unknown`: there may be a policy, and it cannot be had now.
void ask_tls(dns::Route& route, std::string_view domain, config::TlsLevel level, const StsPolicy* policy, mail::TlsWish wish,
             bool policy_unknown);
// TLS-Required: no sets aside what receivers publish. What the operator asks of them by name stays.
inline bool sets_aside(mail::TlsWish wish, config::TlsLevel level) {
  return wish == mail::TlsWish::not_required &&
         (level == config::TlsLevel::automatic || level == config::TlsLevel::opportunistic);
}
dns::TlsDemand tls_demand(const dns::Route& route, std::string_view domain, config::TlsLevel level,
                          dns::TlsDemand::Sts sts = dns::TlsDemand::Sts::none);

// How we authenticate to that host; nullptr: not at all. Only hosts of smarthosts and routes, and only with `verified`.
const config::HopCredentials* hop_credentials(const config::Config& config, const dns::Route& route, std::string_view host);

// Providers that offer TLS everywhere and always: what looks otherwise is an attack or a fault. Their hosts
// never get mail in the clear unless --tls-for says so.
bool always_has_tls(std::string_view host);

// Sites that completed TLS lately, by a hash of their key. One a shard; the relay keeps the shards' alike
// and stores the entries in the spool's state.
//
// Limits: at most kMostSites; when so many are remembered and none has expired, a new one is not.
class TlsMemory {
 public:
  static constexpr int64_t kRememberMs = 30 * 86'400'000LL;
  static constexpr int64_t kRenewMs = 86'400'000LL;
  static constexpr size_t kMostSites = 50'000;

  static uint64_t key(std::string_view site);  // FNV-1a; the same in every run
  bool remembers(std::string_view site, int64_t wall_ms) const {
    const auto at = sites_.find(key(site));
    return at != sites_.end() && wall_ms - at->second < kRememberMs;
  }
  // True: it is news, to be stored and told to the other shards.
  bool completed(std::string_view site, int64_t wall_ms);
  // From the state, or from another shard.
  void note(uint64_t site, int64_t wall_ms);
  void forget(uint64_t site) { sites_.erase(site); }
  size_t size() const { return sites_.size(); }

 private:
  std::unordered_map<uint64_t, int64_t> sites_;  // UTC ms of the last noted completion
};

}  // namespace millrace::delivery
