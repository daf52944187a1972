#include "delivery/tls_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "config/hop_credentials.h"

namespace millrace::delivery {
namespace {

// Whether `host` is `name` or lies below it. Both lower case.
bool is_below(std::string_view host, std::string_view name) {
  if (host.ends_with('.')) host.remove_suffix(1);
  if (!host.ends_with(name)) return false;
  return host.size() == name.size() || host[host.size() - name.size() - 1] == '.';
}

bool is_smtps(const config::NextHop& hop, const dns::Route& route) {
  return hop.tls && !hop.empty() && !route.hosts.empty() && !route.hosts.front().addresses.empty() &&
         route.hosts.front().name == hop.host && route.hosts.front().addresses.front().port() == hop.port;
}

}  // namespace

bool always_has_tls(std::string_view host) {
  constexpr std::string_view kProviders[] = {"google.com",  "googlemail.com", "outlook.com",
                                             "mx.microsoft", "yahoodns.net",  "icloud.com", "apple.com"};
  return std::any_of(std::begin(kProviders), std::end(kProviders),
                     [&](std::string_view name) { return is_below(host, name); });
}

TlsPolicy tls_policy(const config::Config& config, const dns::Route& route, std::string_view host) {
  TlsPolicy policy;
  policy.level = config.tls;
  if (route.explicit_hop) {
    policy.from_connect = is_smtps(config.smarthost, route);
    for (const auto& [domain, hop] : config.routes) policy.from_connect |= is_smtps(hop, route);
  }
  // The longest name that fits; what is said of a host goes ahead of everything else.
  size_t longest = 0;
  bool named = false;
  for (const auto& [name, level] : config.tls_for) {
    if (!is_below(host, name) || name.size() < longest) continue;
    longest = name.size();
    policy.level = level;
    named = true;
  }
  if (!named && policy.level == config::TlsLevel::opportunistic && always_has_tls(host)) {
    policy.level = config::TlsLevel::required;
  }
  // Credentials go to nobody else.
  if (hop_credentials(config, route, host)) policy.level = config::TlsLevel::verified;
  if (policy.from_connect && policy.level < config::TlsLevel::required) policy.level = config::TlsLevel::required;
  return policy;
}

const config::HopCredentials* hop_credentials(const config::Config& config, const dns::Route& route, std::string_view host) {
  if (!config.hop_credentials || !route.explicit_hop) return nullptr;
  for (const dns::Host& one : route.hosts) {
    if (one.name == host && !one.addresses.empty()) return config.hop_credentials->find(host, one.addresses.front().port());
  }
  return nullptr;
}

uint64_t TlsMemory::key(std::string_view site) {
  uint64_t hash = 0xcbf29ce484222325;
  for (char c : site) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

bool TlsMemory::completed(std::string_view site, int64_t wall_ms) {
  const uint64_t name = key(site);
  const auto at = sites_.find(name);
  if (at != sites_.end() && wall_ms - at->second < kRenewMs) return false;
  note(name, wall_ms);
  return true;
}

void TlsMemory::note(uint64_t site, int64_t wall_ms) {
  if (sites_.size() >= kMostSites && !sites_.contains(site)) {
    std::erase_if(sites_, [&](const auto& item) { return wall_ms - item.second >= kRememberMs; });
    if (sites_.size() >= kMostSites) return;
  }
  int64_t& last = sites_[site];
  last = std::max(last, wall_ms);
}

}  // namespace millrace::delivery
