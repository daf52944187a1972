#include "dns/mx.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "base/log.h"
#include "dns/address_rules.h"

namespace millrace::dns {

std::string_view to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::usable:
      return "usable";
    case Verdict::null_mx:
      return "null MX";
    case Verdict::no_such_domain:
      return "no such domain";
    case Verdict::no_usable_host:
      return "no usable host";
    case Verdict::temporary:
      return "temporary failure";
    case Verdict::loop:
      return "loop";
    case Verdict::unprotected:
      return "no protected way";
  }
  UNREACHABLE();
}

std::string_view enhanced_status(Verdict verdict) {
  switch (verdict) {
    case Verdict::usable:
      return {};
    case Verdict::null_mx:
      return "5.1.10";
    case Verdict::no_such_domain:
      return "5.1.2";
    case Verdict::no_usable_host:
      return "5.4.4";
    case Verdict::temporary:
      return "4.4.3";
    case Verdict::loop:
      return "5.4.6";
    case Verdict::unprotected:
      return "5.7.10";
  }
  UNREACHABLE();
}

namespace {

template <typename T>
void shuffle(T first, T last, reactor::Io& io) {
  for (auto count = last - first; count > 1; --count) {
    const auto chosen = static_cast<decltype(count)>(io.random() % static_cast<uint64_t>(count));
    std::swap(first[count - 1], first[chosen]);
  }
}

uint64_t hash_of(std::string_view text) { return std::hash<std::string_view>{}(text); }

// Canonical: sorted, no repeats. A set too long to be read by anyone is told by its hash.
std::string site_of(std::vector<std::string_view> names) {
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  std::string site = fmt::format("{}", fmt::join(names, ","));
  constexpr size_t kLongest = 500;
  if (site.size() > kLongest) {
    const uint64_t hash = hash_of(site);
    site = fmt::format("{},+{}:{:016x}", names[0], names.size() - 1, hash);
  }
  return site;
}

}  // namespace

Targets choose_targets(const Route& route, const Families& families, reactor::Io& io,
                       const SkipAddress& skip) {
  std::vector<Target> all;
  const auto is_first = [&](const Target& target) {
    return target.address.is_ipv6() == families.ipv6_first;
  };
  for (size_t i = 0; i < route.hosts.size();) {
    const size_t begin = all.size();
    const uint16_t preference = route.hosts[i].preference;
    for (; i < route.hosts.size() && route.hosts[i].preference == preference; ++i) {
      for (const reactor::Address& address : route.hosts[i].addresses) {
        const bool usable = address.is_ipv6() ? families.ipv6 : families.ipv4;
        if (usable && !(skip && skip(address))) all.push_back({&route.hosts[i], address});
      }
    }
    const auto from = all.begin() + static_cast<std::ptrdiff_t>(begin);
    shuffle(from, all.end(), io);
    std::stable_partition(from, all.end(), is_first);
  }

  Targets targets;
  targets.count = std::min(all.size(), kMostTargets);
  std::copy_n(all.begin(), targets.count, targets.list.begin());
  if (all.size() > kMostTargets) {
    // Cut to one family, the last place goes to the best of the other: if the first family does not
    // work here at all, the mail still leaves.
    const bool family = targets.list[0].address.is_ipv6();
    const auto other = std::find_if(all.begin(), all.end(), [&](const Target& target) {
      return target.address.is_ipv6() != family;
    });
    if (other - all.begin() >= static_cast<std::ptrdiff_t>(kMostTargets) && other != all.end()) {
      targets.list[kMostTargets - 1] = *other;
    }
  }
  return targets;
}

bool NxdomainWatch::observe(std::string_view domain, bool exists, int64_t now_ns) {
  while (!expiries_.empty() && expiries_.front().at_ns + kWindowNs <= now_ns) {
    const Expiry expiry = expiries_.front();
    expiries_.pop_front();
    const auto at = domains_.find(expiry.domain);
    if (at->second.at_ns + kWindowNs <= now_ns) {
      if (!at->second.exists) --missing_;
      domains_.erase(at);
    } else {  // seen again since
      expiries_.push_back({expiry.domain, at->second.at_ns});
    }
  }
  const uint64_t key = hash_of(domain);
  auto at = domains_.find(key);
  if (at == domains_.end() && domains_.size() < kMostDomains) {
    at = domains_.emplace(key, Seen{now_ns, true}).first;
    expiries_.push_back({key, now_ns});
  }
  if (at != domains_.end()) {
    if (at->second.exists != exists) exists ? --missing_ : ++missing_;
    at->second = {now_ns, exists};
  }
  return missing_ >= kFewest && missing_ * 20 > domains_.size();
}

// One find in progress: MX, then addresses of hosts, wave by wave.
class Mx::Finding {
 public:
  Finding(Mx& mx, std::string_view domain, Callback callback, bool with_dane)
      : done(std::move(callback)), mx_(mx), domain_(canonical_name(domain)), with_dane_(with_dane) {}

  Callback done;
  size_t index = 0;  // in mx_.findings_
  const std::string& domain() const { return domain_; }

  void start() {
    mx_.cache_.lookup(domain_, Type::mx, [this](const AnswerRef& answer) { on_mx(*answer); });
  }

  void start_next_hop(uint16_t port) {
    explicit_port_ = port;
    route_.secure = true;
    candidates_.push_back({domain_, 0});
    resolve_wave();
  }

 private:
  struct Candidate {
    std::string name;
    uint16_t preference = 0;
    AnswerRef a, aaaa;
    bool literal = false;  // the name is an address (allowed private destinations, explicit hops)
  };

  bool explicit_hop() const { return explicit_port_ != 0; }
  uint16_t port() const { return explicit_hop() ? explicit_port_ : mx_.options_.port; }

  void rests_on(const Answer& answer) {
    route_.answered_ns = std::min(route_.answered_ns, answer.answered_ns);
    route_.valid_until_ns = std::min(route_.valid_until_ns, answer.expires_ns);
  }

  void on_mx(const Answer& answer) {
    rests_on(answer);
    route_.secure = answer.secure;
    switch (answer.outcome) {
      case Outcome::records:
        break;
      case Outcome::no_data:  // RFC 5321 5.1: the implicit MX
        route_.implicit = true;
        if (mx_.own_name(domain_)) {
          was_cut_ = true;
        } else if (acceptable(domain_)) {
          candidates_.push_back({domain_, 0});
        }
        if (candidates_.empty()) some_known_ = true;  // not for want of records
        return resolve_wave();
      case Outcome::nxdomain:
        return finish(Verdict::no_such_domain, fmt::format("domain {} does not exist", domain_));
      case Outcome::alias:
      case Outcome::failure:
      case Outcome::malformed:
        return finish(Verdict::temporary,
                      fmt::format("MX look-up of {}: {}", domain_, answer.reason));
    }

    uint32_t cut = UINT32_MAX;
    bool all_root = true;
    for (const MxRecord& record : answer.mx) {
      if (record.host == ".") continue;
      all_root = false;
      if (mx_.own_name(record.host)) {
        cut = std::min<uint32_t>(cut, record.preference);
        continue;
      }
      if (!acceptable(record.host)) continue;
      candidates_.push_back({record.host, record.preference});
    }
    if (all_root) {
      return finish(Verdict::null_mx, fmt::format("domain {} accepts no mail (null MX)", domain_));
    }
    cut_at(cut);
    shuffle(candidates_.begin(), candidates_.end(), mx_.io_);
    std::stable_sort(
        candidates_.begin(), candidates_.end(),
        [](const Candidate& a, const Candidate& b) { return a.preference < b.preference; });
    resolve_wave();
  }

  // May this name be looked up at all? Notes why not.
  bool acceptable(std::string_view name) {
    const std::string_view why = why_not_a_host(name);
    if (why.empty()) return true;
    if (mx_.options_.allow_private && is_host_name(name)) return true;
    ++mx_.stats_.forbidden;
    note(fmt::format("{}: {}", name, why));
    return false;
  }

  void note(std::string text) {
    if (notes_.size() > 300) return;
    if (!notes_.empty()) notes_ += "; ";
    notes_ += text;
  }

  void cut_at(uint32_t preference) {
    if (preference == UINT32_MAX) return;
    was_cut_ = true;
    std::erase_if(candidates_,
                  [&](const Candidate& candidate) { return candidate.preference >= preference; });
  }

  void resolve_wave() {
    outstanding_ = 1;  // so that on_lookup ends the wave only once all of it has started
    for (size_t started = 0; started < kHostsAtOnce && next_ < candidates_.size(); ++started) {
      const size_t at = next_++;
      Candidate& candidate = candidates_[at];
      if (explicit_hop() || mx_.options_.allow_private) {
        if (reactor::Address::parse_host(candidate.name, 0).ok()) {
          candidate.literal = true;
          continue;
        }
      }
      ++outstanding_;
      mx_.cache_.lookup(candidate.name, Type::a, [this, at](const AnswerRef& answer) {
        candidates_[at].a = answer;
        on_lookup(*answer);
      });
      // Without IPv6 an implicit MX is asked for AAAA all the same: a domain that has nothing else
      // exists, and its mail must not bounce as if it did not.
      if (mx_.options_.ipv6 || route_.implicit) {
        ++outstanding_;
        mx_.cache_.lookup(candidate.name, Type::aaaa, [this, at](const AnswerRef& answer) {
          candidates_[at].aaaa = answer;
          on_lookup(*answer);
        });
      }
    }
    if (--outstanding_ == 0) on_wave();
  }

  void on_lookup(const Answer& answer) {
    rests_on(answer);
    if (--outstanding_ == 0) on_wave();
  }

  void on_wave() {
    size_t addresses = 0;
    for (; judged_ < next_ && judged_ < candidates_.size(); ++judged_) judge(candidates_[judged_]);
    next_ = judged_;
    for (const Host& host : route_.hosts) addresses += host.addresses.size();
    if (addresses < kMostTargets && next_ < candidates_.size()) return resolve_wave();
    conclude();
  }

  void judge(const Candidate& candidate) {
    Host host{.name = candidate.name, .preference = candidate.preference, .addresses = {}};
    Names names;
    bool known = candidate.literal;
    bool is_own = false;
    const auto take = [&](reactor::Address address) {
      known = true;
      if (!explicit_hop()) {
        if (mx_.own_address(address)) {
          is_own = true;
          return;
        }
        const std::string_view why = mx_.options_.allow_private ? "" : why_not_public(address);
        if (!why.empty()) {
          ++mx_.stats_.forbidden;
          note(fmt::format("{} [{}]: {}", candidate.name, address.host_string(), why));
          return;
        }
      }
      address.set_port(port());
      host.addresses.push_back(std::move(address));
    };
    if (candidate.literal) take(*reactor::Address::parse_host(candidate.name, 0));
    for (const AnswerRef& answer : {candidate.a, candidate.aaaa}) {
      if (!answer) continue;
      if (answer->outcome == Outcome::records) {
        // Without IPv6, AAAA was asked for only to tell whether the name exists.
        if (answer == candidate.aaaa && !mx_.options_.ipv6) {
          known = true;
          note(candidate.name + ": IPv6 addresses only");
          continue;
        }
        for (const reactor::Address& address : answer->addresses) take(address);
        names.secure = names.secure && answer->secure;
        if (!answer->expanded.empty()) names.expanded = answer->expanded;
      } else if (answer->outcome != Outcome::no_data && answer->outcome != Outcome::nxdomain) {
        some_temporary_ = true;
        note(fmt::format("{} look-up of {}: {}", answer == candidate.a ? "A" : "AAAA",
                         candidate.name, answer->reason));
      }
    }
    if (is_own) {
      // RFC 5321 5.1: we and everything behind us.
      was_cut_ = true;
      cut_after_ = std::min<uint32_t>(cut_after_, candidate.preference);
      // They are in order of preference.
      const auto kept = std::find_if(route_.hosts.begin(), route_.hosts.end(),
                                     [&](const Host& other) { return other.preference >= cut_after_; });
      route_.hosts.erase(kept, route_.hosts.end());
      names_.resize(route_.hosts.size());
      cut_at(cut_after_);
      next_ = std::min(next_, candidates_.size());
      judged_ = std::min(judged_, candidates_.size());
      return;
    }
    if (!host.addresses.empty()) {
      names.secure = names.secure && !candidate.literal;
      route_.hosts.push_back(std::move(host));
      names_.push_back(std::move(names));
    } else if (!known) {
      note(candidate.name + ": no address");
    }
    some_known_ = some_known_ || known;
  }

  void conclude() {
    name_site();
    if (!route_.hosts.empty()) return find_dane();
    if (explicit_hop()) {
      return finish(Verdict::temporary, fmt::format("next hop {}: {}", domain_, notes_));
    }
    if (some_temporary_) return finish(Verdict::temporary, notes_);
    if (was_cut_ && candidates_.empty()) {
      return finish(Verdict::loop, fmt::format("mail for {} loops back to this host", domain_));
    }
    if (route_.implicit && !some_known_) {
      return finish(Verdict::no_such_domain,
                    fmt::format("domain {} has neither MX nor address records", domain_));
    }
    finish(Verdict::no_usable_host, fmt::format("no usable mail host for {}: {}", domain_, notes_));
  }

  // ---- TLSA records (RFC 7672 2.2)

  void find_dane() {
    ASSERT(names_.size() == route_.hosts.size());
    outstanding_ = 1;
    if (with_dane_ && route_.secure) {
      for (size_t at = 0; at < route_.hosts.size(); ++at) {
        const Names& names = names_[at];
        if (names.secure) {
          find_tlsa(at, names.expanded.empty() ? route_.hosts[at].name : names.expanded);
        } else if (!names.expanded.empty()) {
          // The alias leads out of what is signed; it may itself be (RFC 7672 2.2.2).
          ++outstanding_;
          mx_.cache_.lookup(route_.hosts[at].name, Type::cname, [this, at](const AnswerRef& answer) {
            rests_on(*answer);
            if (failed(*answer)) {
              not_known(at, *answer, "CNAME", route_.hosts[at].name);
            } else if (answer->secure && answer->outcome == Outcome::records) {
              find_tlsa(at, route_.hosts[at].name);
            }
            one_known();
          });
        }
      }
    }
    one_known();
  }

  void find_tlsa(size_t at, const std::string& base) {
    const std::string name = fmt::format("_{}._tcp.{}", port(), base);
    if (!is_host_name(name)) return;  // too long to have any
    ++outstanding_;
    mx_.cache_.lookup(name, Type::tlsa, [this, at, base, name](const AnswerRef& answer) {
      rests_on(*answer);
      Dane& dane = route_.hosts[at].dane;
      if (failed(*answer)) {
        not_known(at, *answer, "TLSA", name);
      } else if (answer->outcome == Outcome::records && answer->secure) {
        dane.state = Dane::State::records;
        dane.records = answer->tlsa;
        dane.base = base;
      } else if (base != route_.hosts[at].name) {
        find_tlsa(at, route_.hosts[at].name);  // the name as it was before its aliases
      }
      one_known();
    });
  }

  static bool failed(const Answer& answer) {
    return answer.outcome == Outcome::failure || answer.outcome == Outcome::malformed || answer.outcome == Outcome::alias;
  }

  void not_known(size_t at, const Answer& answer, std::string_view what, std::string_view name) {
    Dane& dane = route_.hosts[at].dane;
    dane.state = Dane::State::unknown;
    dane.reason = fmt::format("{} look-up of {}: {}", what, name, answer.reason);
  }

  void one_known() {
    if (--outstanding_ == 0) finish(Verdict::usable, {});
  }

  void name_site() {
    if (explicit_hop()) {
      route_.site = fmt::format("{}:{}", domain_, explicit_port_);
    } else if (route_.implicit) {
      route_.site = domain_;
    } else {
      std::vector<std::string_view> names;
      for (const Candidate& candidate : candidates_) names.push_back(candidate.name);
      route_.site = names.empty() ? domain_ : site_of(std::move(names));
    }
  }

  // Destroys *this.
  void finish(Verdict verdict, std::string reason) {
    if (route_.site.empty()) route_.site = domain_;
    route_.verdict = verdict;
    route_.reason = std::move(reason);
    route_.explicit_hop = explicit_hop();
    if (verdict == Verdict::usable) {
      ASSERT(!route_.hosts.empty());
    } else {
      route_.hosts.clear();
    }
    if (route_.answered_ns == INT64_MAX) route_.answered_ns = mx_.io_.now();
    if (route_.valid_until_ns == INT64_MAX) {
      route_.valid_until_ns = mx_.io_.now() + Cache::kLongestTtlNs;  // rests on no answer
    }
    mx_.on_found(*this, std::move(route_), !explicit_hop());
  }

  struct Names {  // of a host of the route
    bool secure = true;    // its addresses are
    std::string expanded;  // what it is an alias of
  };

  Mx& mx_;
  std::string domain_;
  const bool with_dane_;
  std::vector<Names> names_;
  uint16_t explicit_port_ = 0;
  Route route_ = {.answered_ns = INT64_MAX, .valid_until_ns = INT64_MAX};
  std::vector<Candidate> candidates_;  // sorted by preference
  size_t next_ = 0;                    // the first not yet asked for
  size_t judged_ = 0;                  // the first not yet judged
  int outstanding_ = 0;
  uint32_t cut_after_ = UINT32_MAX;
  bool was_cut_ = false;
  bool some_temporary_ = false;
  bool some_known_ = false;  // a host exists, usable or not
  std::string notes_;
};

Mx::Mx(reactor::Io& io, Cache& cache, MxOptions options) : io_(io), cache_(cache) {
  configure(std::move(options));
  deliver_.bind<&Mx::on_deliver>(this);
}

Mx::~Mx() { deliver_.cancel(); }

void Mx::configure(MxOptions options) {
  options_ = std::move(options);
  for (std::string& name : options_.own_names) name = canonical_name(name);
}

bool Mx::own_name(std::string_view name) const {
  return std::find(options_.own_names.begin(), options_.own_names.end(), name) !=
         options_.own_names.end();
}

bool Mx::own_address(const reactor::Address& address) const {
  return std::any_of(options_.own_addresses.begin(), options_.own_addresses.end(),
                     [&](const reactor::Address& own) { return own.octets() == address.octets(); });
}

void Mx::find_hosts(std::string_view domain, Callback done, bool with_dane) {
  ++stats_.finds;
  if (domain.empty() || domain.front() == '[' || !is_host_name(canonical_name(domain))) {
    auto route = std::make_shared<Route>();
    route->site = domain;
    route->answered_ns = io_.now();
    route->valid_until_ns = io_.now() + Cache::kLongestTtlNs;
    reactor::Address address = parse_literal(domain);
    if (address.empty()) {
      route->verdict = Verdict::no_usable_host;
      route->reason = fmt::format("{} is no domain name and no address literal", domain);
    } else if (own_address(address)) {
      ++stats_.loops;
      route->verdict = Verdict::loop;
      route->reason = fmt::format("mail for {} loops back to this host", domain);
    } else if (const auto why = options_.allow_private ? "" : why_not_public(address);
               !why.empty()) {
      ++stats_.forbidden;
      route->verdict = Verdict::no_usable_host;
      route->reason = fmt::format("{}: {}", domain, why);
    } else {
      address.set_port(options_.port);
      route->verdict = Verdict::usable;
      route->hosts.push_back({.name = std::string(domain), .preference = 0, .addresses = {address}});
    }
    ready_.emplace_back(std::move(done), std::move(route));
    io_.defer(deliver_);
    return;
  }
  findings_.push_back(std::make_unique<Finding>(*this, domain, std::move(done), with_dane));
  findings_.back()->index = findings_.size() - 1;
  findings_.back()->start();
}

void Mx::find_next_hop(std::string_view host, uint16_t port, Callback done, bool with_dane) {
  ASSERT(port != 0);
  ++stats_.finds;
  // "[192.0.2.1]" asks for that address, as elsewhere in mail.
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  findings_.push_back(std::make_unique<Finding>(*this, host, std::move(done), with_dane));
  findings_.back()->index = findings_.size() - 1;
  findings_.back()->start_next_hop(port);
}

void Mx::on_found(Finding& finding, Route&& route, bool from_mx) {
  if (route.verdict == Verdict::loop) ++stats_.loops;
  if (from_mx && route.verdict != Verdict::temporary) {
    const bool exists = route.verdict != Verdict::no_such_domain;
    const bool suspicious = watch_.observe(finding.domain(), exists, io_.now());
    if (suspicious != stats_.nxdomain_suspicious) {
      stats_.nxdomain_suspicious = suspicious;
      if (suspicious) {
        ++stats_.nxdomain_alarms;
        log::error(
            "alarm: {} of {} domains asked for within 5 minutes do not exist; the resolver is "
            "suspect, so mail for such domains waits (4.4.3)",
            watch_.missing(), watch_.domains());
      } else {
        log::info("the share of domains that do not exist is normal again");
      }
    }
    if (suspicious && !exists) {
      route.verdict = Verdict::temporary;
      route.reason += ", as suddenly do many: the resolver is suspect";
    }
  }
  ready_.emplace_back(std::move(finding.done), std::make_shared<const Route>(std::move(route)));
  io_.defer(deliver_);
  const size_t index = finding.index;
  if (index + 1 != findings_.size()) {
    std::swap(findings_[index], findings_.back());
    findings_[index]->index = index;
  }
  findings_.pop_back();  // destroys the finding
}

void Mx::on_deliver() {
  auto ready = std::move(ready_);
  ready_.clear();
  for (auto& [done, route] : ready) done(route);
}

}  // namespace millrace::dns
