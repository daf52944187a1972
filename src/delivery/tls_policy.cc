#include "delivery/tls_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string>

#include "config/hop_credentials.h"
#include "config/shaping.h"

namespace millrace::delivery {
namespace {

// Whether `host` is `name` or lies below it. Both lower case.
bool is_below(std::string_view host, std::string_view name) {
  if (host.ends_with('.')) host.remove_suffix(1);
  if (!host.ends_with(name)) return false;
  return host.size() == name.size() || host[host.size() - name.size() - 1] == '.';
}

// What events call a policy of this level that no records decide.
std::string_view name_of(config::TlsLevel level) {
  switch (level) {
    case config::TlsLevel::none:
      return "none";
    case config::TlsLevel::required:
      return "required";
    case config::TlsLevel::verified:
      return "verified";
    default:
      return "opportunistic";
  }
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

config::TlsLevel asked_level(const config::Config& config, std::string_view domain) {
  return config.shaping_rules ? config.shaping_rules->tls_of(domain, config.tls) : config.tls;
}

dns::TlsDemand tls_demand(const dns::Route& route, std::string_view domain, config::TlsLevel level, dns::TlsDemand::Sts sts) {
  using config::TlsLevel;
  using Sts = dns::TlsDemand::Sts;
  dns::TlsDemand demand;
  demand.level = level;
  // With neither TLSA records nor a policy `auto` is what `opportunistic` is, and the connections are the same.
  const bool any = std::any_of(route.hosts.begin(), route.hosts.end(),
                               [](const dns::Host& host) { return host.dane.state != dns::Dane::State::none; });
  if (level == TlsLevel::automatic && !any && sts == Sts::none) demand.level = TlsLevel::opportunistic;
  switch (demand.level) {
    case TlsLevel::opportunistic:
      return demand;
    case TlsLevel::none:
    case TlsLevel::required:
    case TlsLevel::verified:
      demand.key = name_of(demand.level);
      return demand;
    case TlsLevel::dane:
      demand.key = "dane-only";
      break;
    case TlsLevel::mta_sts:
      demand.sts = Sts::enforce;
      demand.key = "mta-sts";
      return demand;
    case TlsLevel::automatic:
      demand.sts = sts;
      demand.key = any ? "dane" : "";
      if (sts != Sts::none) demand.key += sts == Sts::enforce ? "+mta-sts" : "+mta-sts-testing";
      break;
  }
  // RFC 7672 3.2.2: by DANE-TA the server may have the domain's name in place of its own. Who shares hosts with ten
  // thousand others does not, and shall share connections, too; so it counts for hosts within the domain.
  const bool inside = !route.explicit_hop && std::any_of(route.hosts.begin(), route.hosts.end(), [&](const dns::Host& host) {
    return host.dane.state == dns::Dane::State::records && is_below(host.dane.base, domain) &&
           std::any_of(host.dane.records.begin(), host.dane.records.end(),
                       [](const tls::TlsaRecord& record) { return record.usage == 2; });
  });
  if (inside) {
    demand.next_hop = domain;
    demand.key += fmt::format(":{}", domain);
  }
  return demand;
}

void ask_tls(dns::Route& route, std::string_view domain, config::TlsLevel level, const StsPolicy* policy) {
  using config::TlsLevel;
  using Sts = dns::TlsDemand::Sts;
  const auto give_up = [&](std::string why) {
    route.verdict = dns::Verdict::temporary;
    route.reason = std::move(why);
    route.hosts.clear();
  };
  Sts sts = Sts::none;
  if (policy != nullptr && !route.explicit_hop && (level == TlsLevel::automatic || level == TlsLevel::mta_sts)) {
    if (policy->mode == StsPolicy::Mode::enforce) sts = Sts::enforce;
    if (policy->mode == StsPolicy::Mode::testing) sts = Sts::testing;
  }
  if (level == TlsLevel::mta_sts && sts != Sts::enforce) {
    return give_up(fmt::format("{} has no MTA-STS policy in mode enforce, and tls = \"mta-sts\"", domain));
  }
  route.tls = tls_demand(route, domain, level, sts);
  if (sts != Sts::enforce) return;
  // Before connecting (RFC 8461 4.1). Usable TLSA records speak for their host by themselves (RFC 8461 2).
  const size_t all = route.hosts.size();
  std::erase_if(route.hosts, [&](const dns::Host& host) {
    const bool by_dane = level == TlsLevel::automatic &&
                         std::any_of(host.dane.records.begin(), host.dane.records.end(), tls::is_usable);
    return !by_dane && !policy->allows(host.name);
  });
  if (route.hosts.empty()) return give_up(fmt::format("no MX host of {} is named by its MTA-STS policy", domain));
  if (route.hosts.size() == all) return;
  // Fewer hosts than others of the site have.
  for (const dns::Host& host : route.hosts) route.tls.key += fmt::format(",{}", host.name);
}

// RFC 8689 4.2.1: the host is the domain's by a signed MX record or by its MTA-STS policy (or is named by the configuration, or
// is the domain itself), and is then checked by its TLSA records or by authorities.
static void require_tls(dns::Route& route, std::string_view domain, config::TlsLevel level, const StsPolicy* policy,
                        bool policy_unknown) {
  using Sts = dns::TlsDemand::Sts;
  const bool named = policy != nullptr && policy->mode != StsPolicy::Mode::none;
  const bool proven = route.secure || route.explicit_hop || route.implicit;
  const auto give_up = [&](dns::Verdict verdict, std::string why) {
    route.verdict = verdict;
    route.reason = std::move(why);
    route.hosts.clear();
  };
  if (!proven && !named) {
    if (policy_unknown) {
      return give_up(dns::Verdict::temporary, fmt::format("REQUIRETLS, and the MTA-STS policy of {} cannot be had now", domain));
    }
    return give_up(dns::Verdict::unprotected,
                   fmt::format("REQUIRETLS, and the MX records of {} are neither signed nor named by an MTA-STS policy", domain));
  }
  route.tls = tls_demand(route, domain, config::TlsLevel::automatic, Sts::none);
  route.tls.level = config::TlsLevel::automatic;
  route.tls.requiretls = true;
  route.tls.key.insert(0, route.tls.key.empty() ? "requiretls" : "requiretls+");
  const bool enforced = named && policy->mode == StsPolicy::Mode::enforce &&
                        (level == config::TlsLevel::automatic || level == config::TlsLevel::mta_sts);
  if (proven && !enforced) return;
  const size_t all = route.hosts.size();
  std::erase_if(route.hosts, [&](const dns::Host& host) {
    const bool by_dane = std::any_of(host.dane.records.begin(), host.dane.records.end(), tls::is_usable);
    return !(proven && by_dane) && !policy->allows(host.name);
  });
  if (route.hosts.empty()) {
    return give_up(dns::Verdict::unprotected,
                   fmt::format("REQUIRETLS, and no MX host of {} is named by its MTA-STS policy", domain));
  }
  if (route.hosts.size() == all) return;
  for (const dns::Host& host : route.hosts) route.tls.key += fmt::format(",{}", host.name);
}

void ask_tls(dns::Route& route, std::string_view domain, config::TlsLevel level, const StsPolicy* policy, mail::TlsWish wish,
             bool policy_unknown) {
  if (wish == mail::TlsWish::required) return require_tls(route, domain, level, policy, policy_unknown);
  if (!sets_aside(wish, level)) return ask_tls(route, domain, level, policy);
  route.tls = {};
  route.tls.level = config::TlsLevel::opportunistic;
  route.tls.not_required = true;
  route.tls.key = "not-required";
}

namespace {

// By the domain's own wish, or by TLSA records. `policy` comes with the level of an opportunistic one.
void ask_domain(TlsPolicy& policy, const dns::TlsDemand& demand, const dns::Host& host) {
  using config::TlsLevel;
  policy.requiretls = demand.requiretls;
  policy.not_required = demand.not_required;
  if (demand.not_required) {
    policy.level = TlsLevel::opportunistic;
    policy.name = "not-required";
    return;
  }
  switch (demand.level) {
    case TlsLevel::none:
    case TlsLevel::opportunistic:
    case TlsLevel::required:
    case TlsLevel::verified:
      policy.level = demand.level;
      return;
    case TlsLevel::dane:
    case TlsLevel::mta_sts:
    case TlsLevel::automatic:
      break;
  }
  const bool enforced = demand.sts == dns::TlsDemand::Sts::enforce;
  const auto by_sts = [&] {
    policy.level = TlsLevel::verified;
    policy.name = "mta-sts";
  };
  const bool only = demand.level == TlsLevel::dane;
  const auto by_authorities = [&] {
    policy.level = TlsLevel::verified;
    policy.name = "requiretls";
  };
  switch (host.dane.state) {
    case dns::Dane::State::unknown:
      policy.blocked = host.dane.reason;
      return;
    case dns::Dane::State::none:
      if (only) policy.blocked = "no secure TLSA records, and tls = \"dane\"";
      if (enforced) by_sts();
      if (demand.sts == dns::TlsDemand::Sts::testing) policy.name = "mta-sts-testing";
      if (demand.requiretls) by_authorities();
      return;
    case dns::Dane::State::records:
      break;
  }
  auto wish = std::make_shared<tls::DaneWish>();
  std::copy_if(host.dane.records.begin(), host.dane.records.end(), std::back_inserter(wish->records), tls::is_usable);
  if (wish->records.empty()) {  // RFC 7672 2.2: encrypted, without authentication
    policy.level = TlsLevel::required;
    policy.name = "dane-unusable";
    if (only) policy.blocked = "no usable TLSA records, and tls = \"dane\"";
    if (enforced) by_sts();
    if (demand.requiretls) by_authorities();
    return;
  }
  wish->names.push_back(host.dane.base);
  if (!demand.next_hop.empty()) wish->names.push_back(demand.next_hop);
  policy.level = TlsLevel::verified;
  policy.name = "dane";
  policy.server_name = host.dane.base;
  policy.dane = std::move(wish);
}

}  // namespace

TlsPolicy tls_policy(const config::Config& config, const dns::Route& route, const dns::Host& at) {
  const std::string_view host = at.name;
  TlsPolicy policy;
  policy.server_name = host;
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
    named = true;
    policy.level = level;
  }
  if (!named || route.tls.requiretls) ask_domain(policy, route.tls, at);
  if (!named && policy.level == config::TlsLevel::opportunistic && !policy.not_required && always_has_tls(host)) {
    policy.level = config::TlsLevel::required;
  }
  // Credentials go to nobody else.
  if (hop_credentials(config, route, host)) policy.level = config::TlsLevel::verified;
  if (policy.from_connect && policy.level < config::TlsLevel::required) policy.level = config::TlsLevel::required;
  if (policy.name.empty()) policy.name = name_of(policy.level);
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
