// From a recipient's domain to the hosts that take its mail (RFC 5321 5.1, RFC 7505), or to the
// reason why there are none.
//
// Contract: callbacks come from turn(), never from inside the call. A Route is shared and never
// changes; after valid_until_ns it should be asked for again. The verdict `no_such_domain` is
// evidence, not a sentence: the queue bounces only when a Route with answered_ns at least
// --nxdomain-confirm after the first one agrees.
//
// Limits: 100 MX records are read; hosts are resolved kHostsAtOnce at a time, until kMostTargets
// addresses are known. A host whose look-up fails is left out while others are usable.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/intrusive_list.h"
#include "dns/cache.h"
#include "tls/level.h"

namespace millrace::dns {

enum class Verdict : uint8_t {
  usable,
  null_mx,         // "MX 0 .": takes no mail
  no_such_domain,  // NXDOMAIN or no data at all
  no_usable_host,  // nothing but forbidden or missing hosts
  temporary,       // nobody knows now
  loop,            // the best host is ourselves
  unprotected,     // none of the hosts is proven to be the domain's, and the mail asks for that (RFC 8689)
};
std::string_view to_string(Verdict verdict);
// "5.1.10", "5.1.2", "5.4.4", "4.4.3", "5.4.6", "5.7.10"; empty when usable.
std::string_view enhanced_status(Verdict verdict);

// What DANE (RFC 7672 2.2) found of a host.
struct Dane {
  enum class State : uint8_t {
    none,     // no TLSA records, or an answer on the way to them is not secure
    records,  // secure ones
    unknown,  // nobody knows now: no mail to this host
  } state = State::none;
  std::vector<tls::TlsaRecord> records;  // usable or not
  std::string base;                      // the TLSA base domain, which also names the server
  std::string reason;                    // unknown: why
};

struct Host {
  std::string name;
  uint16_t preference = 0;
  std::vector<reactor::Address> addresses;  // with the port to connect to; IPv4 before IPv6
  Dane dane = {};                           // where it was asked for
};

// What the recipient's domain asks of TLS, beside what its hosts do. Delivery decides it (delivery/tls_policy.h).
struct TlsDemand {
  tls::Level level = tls::Level::automatic;
  enum class Sts : uint8_t { none, testing, enforce } sts = Sts::none;  // the mode of its MTA-STS policy
  // What messages ask by themselves (RFC 8689), whatever the domain does.
  bool requiretls = false, not_required = false;
  // Domains that share hosts and differ in this are sites of their own, with connections of their own; their limits are
  // the same. Empty: nothing special.
  std::string key;
  // Also a name that a server may have by DANE-TA (RFC 7672 3.2.2), beside its base domain; of the key. Empty: none.
  std::string next_hop;
};

// How mail goes to a route's hosts, or what becomes of it instead (`deliver` in the shaping file).
enum class Carriage : uint8_t {
  smtp,
  lmtp,     // RFC 2033
  discard,  // answered by ourselves
  file,     // written into a folder
};

struct Route {
  Verdict verdict = Verdict::temporary;
  // Names the set of hosts: the same for all domains with the same MX host set, in whatever order
  // and with whatever preferences. "mx1.example,mx2.example"; the domain itself when it has no MX;
  // "[192.0.2.1]" for a literal; "relay.example:587" for an explicit next hop.
  std::string site;
  std::vector<Host> hosts;    // usable: at least one, each with addresses; in order of preference
  bool implicit = false;      // no MX record: the domain's own addresses
  bool explicit_hop = false;  // smarthost or route: no ramp, no default rate
  bool secure = false;        // its MX answer is (DANE); explicit hops are as secure as the configuration
  Carriage carriage = Carriage::smtp;
  std::string provider = {};  // whose limits hold, where its hosts do not tell: by the shaping file
  std::string handed_to = {};  // discard: the reply, "250 2.0.0 discarded"; file: the folder
  TlsDemand tls = {};
  std::string reason;         // not usable: in words, for a reply or report
  int64_t answered_ns = 0;    // monotonic time of the oldest answer it rests on
  int64_t valid_until_ns = 0;
};
using RouteRef = std::shared_ptr<const Route>;

// One address to try.
struct Target {
  const Host* host = nullptr;  // of the Route
  reactor::Address address;
};

inline constexpr size_t kMostTargets = 5;

struct Targets {
  std::array<Target, kMostTargets> list;
  size_t count = 0;
};

struct Families {
  bool ipv4 = true;
  bool ipv6 = false;
  bool ipv6_first = false;
};

// The addresses a connection tries, in order: by preference, equals shuffled anew at each call, at
// most kMostTargets, and of both families when both are usable.
// Addresses that `skip` names do not count.
using SkipAddress = std::function<bool(const reactor::Address&)>;
Targets choose_targets(const Route& route, const Families& families, reactor::Io& io,
                       const SkipAddress& skip = {});

// Notices when suddenly many domains do not exist: more likely our resolver is broken than the
// world. Counts distinct domains asked for within kWindowNs; suspicious when at least kFewest of
// them, and more than 5 %, do not exist. An approximation per shard.
class NxdomainWatch {
 public:
  static constexpr int64_t kWindowNs = 300'000'000'000;
  static constexpr size_t kFewest = 10;
  static constexpr size_t kMostDomains = 100'000;

  // Records one answer; true while suspicious.
  bool observe(std::string_view domain, bool exists, int64_t now_ns);
  size_t domains() const { return domains_.size(); }
  size_t missing() const { return missing_; }

 private:
  struct Seen {
    int64_t at_ns = 0;
    bool exists = true;
  };
  struct Expiry {
    uint64_t domain;
    int64_t at_ns;
  };
  std::unordered_map<uint64_t, Seen> domains_;  // by hash
  std::deque<Expiry> expiries_;
  size_t missing_ = 0;
};

struct MxOptions {
  bool ipv6 = false;  // ask for AAAA too
  bool allow_private = false;
  uint16_t port = 25;
  std::vector<std::string> own_names;           // any case
  std::vector<reactor::Address> own_addresses;  // ports are ignored
};

class Mx {
 public:
  using Callback = std::function<void(const RouteRef&)>;
  struct Stats {
    uint64_t finds = 0, forbidden = 0, loops = 0, nxdomain_alarms = 0;
    bool nxdomain_suspicious = false;
  };
  static constexpr size_t kHostsAtOnce = 8;

  // `io` and `cache` outlive this; the cache calls nothing after this is destroyed only if the
  // cache's transport has been stopped and the reactor does not turn between the two.
  Mx(reactor::Io& io, Cache& cache, MxOptions options);
  ~Mx();
  Mx(const Mx&) = delete;
  Mx& operator=(const Mx&) = delete;

  // `domain`: lower-case A-labels, or an address literal "[...]". `with_dane`: finds the TLSA records of each host, too,
  // where all answers on the way to them are secure.
  void find_hosts(std::string_view domain, Callback done, bool with_dane = false);
  // A smarthost or route: a host name or address, no MX, no private-address rule. What does not
  // exist is temporary: the operator's mistake bounces nobody's mail.
  void find_next_hop(std::string_view host, uint16_t port, Callback done, bool with_dane = false);
  // From the next find on.
  void configure(MxOptions options);
  const Stats& stats() const { return stats_; }

 private:
  class Finding;
  bool own_name(std::string_view name) const;
  bool own_address(const reactor::Address& address) const;
  void on_found(Finding& finding, Route&& route, bool from_mx);

  reactor::Io& io_;
  Cache& cache_;
  MxOptions options_;
  NxdomainWatch watch_;
  std::vector<std::unique_ptr<Finding>> findings_;
  reactor::Deferred deliver_;
  std::vector<std::pair<Callback, RouteRef>> ready_;
  Stats stats_;
  void on_deliver();
};

}  // namespace millrace::dns
