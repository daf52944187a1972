// MTA-STS (RFC 8461): what a recipient domain says of the TLS of its MX hosts, and what is kept of that.
//
// The reading of the TXT record and of the policy is pure. StsPolicies has the policies of one shard: it looks the TXT record
// up, has the policy fetched where there is a new one (off the shard's thread, see StsFetcher), and keeps it for as long as it
// says (max_age), whatever becomes of TXT record and HTTPS server meanwhile. The relay keeps the shards' policies alike and
// stores them in the spool's state.
//
// A policy that is known goes on to hold while a newer one cannot be had; where none is known, a failure means that there is
// none (RFC 8461 5.1).
//
// Limits: at most kMostPolicies are kept, and kMostFetches under way; past that a domain's policy is unknown, until there is
// room. A policy of more than 64 KiB or kMostPatterns mx patterns is none.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "dns/cache.h"
#include "reactor/io.h"
#include "reactor/mailbox.h"

namespace millrace::delivery {

struct StsPolicy {
  enum class Mode : uint8_t { none, testing, enforce } mode = Mode::none;
  std::vector<std::string> mx;  // lower case; "*.example.org" stands for one label more
  int64_t max_age_s = 0;
  // Beside what the policy says:
  std::string id;               // of the TXT record that it was fetched for
  int64_t fetched_ms = 0;       // UTC
  int64_t expires_ms() const { return fetched_ms + max_age_s * 1000; }
  bool allows(std::string_view host) const;
};
std::string_view to_string(StsPolicy::Mode mode);

// The id; nothing unless exactly one of the TXT records begins with v=STSv1 and is well formed (RFC 8461 3.1).
std::optional<std::string> read_sts_record(const std::vector<std::string>& texts);
// RFC 8461 3.2: the body of the policy file.
Result<StsPolicy> read_sts_policy(std::string_view body);
// As it is stored.
std::string encode(const StsPolicy& policy);
std::optional<StsPolicy> decode_sts_policy(std::string_view text);

inline constexpr size_t kLongestStsPolicy = 64 * 1024;

// One HTTPS request: a GET of https://mta-sts.DOMAIN/.well-known/mta-sts.txt or, with an upload, a POST of a report
// (delivery/tls_reporter.h). Made by a shard, given away with submit(), and back by `mailbox`, where `done` is called unless
// `owner` has been taken out meanwhile.
struct StsFetch : reactor::Letter {
  std::string host;                         // "mta-sts.example.org"
  uint16_t port = 443;
  std::string target = "/.well-known/mta-sts.txt";
  std::string upload, upload_type;          // the body and its media type; empty: GET
  std::vector<reactor::Address> addresses;  // of it
  std::shared_ptr<const std::string> authorities;  // PEM
  // The answer.
  bool fetched = false;  // 200, text/plain, from a server whose certificate is good for the host; of an upload any 2xx
  bool untrusted = false;  // its certificate is not
  bool aborted = false;    // by stop(): says nothing about the server
  std::string body;
  std::string error;

  reactor::Mailbox* mailbox = nullptr;
  void* owner = nullptr;
  void (*done)(void* owner, StsFetch& fetch) = nullptr;
  static void give_back(std::unique_ptr<StsFetch> fetch) {
    StsFetch* it = fetch.release();
    it->address<&StsFetch::deliver_to>(it);
    it->mailbox->push(*it);
  }

 private:
  void deliver_to(reactor::Letter&) {
    std::unique_ptr<StsFetch> owned(this);
    if (owner) done(owner, *this);
  }
};

class StsFetcher {
 public:
  virtual ~StsFetcher() = default;
  // Ends within a minute or so. False: too many wait; the job is gone. Any thread.
  virtual bool submit(std::unique_ptr<StsFetch> fetch) = 0;
  // Gives everything back, also what has not begun. Idempotent.
  virtual void stop() = 0;
};

class StsPolicies {
 public:
  static constexpr size_t kMostPolicies = 50'000;
  static constexpr size_t kMostFetches = 500;
  static constexpr size_t kMostPatterns = 200;
  static constexpr int64_t kRefreshMs = 86'400'000;       // a policy is fetched again when it is so old, or half its age
  static constexpr int64_t kAfterFailureNs = 300'000'000'000;  // no fetch of the domain's so soon after one that failed

  // nullptr: none. The policy stays as it is after the call.
  using PolicyRef = std::shared_ptr<const StsPolicy>;
  // `valid_until_ns`: monotonic, when to ask again. `unknown`: there is no policy that we know, and there may be one all the same.
  using Callback = std::function<void(const PolicyRef& policy, int64_t valid_until_ns, bool unknown)>;

  StsPolicies(reactor::Io& io, dns::Cache& cache);
  ~StsPolicies();
  StsPolicies(const StsPolicies&) = delete;
  StsPolicies& operator=(const StsPolicies&) = delete;

  // Without it nothing is fetched, and only policies from note() are known.
  void set_fetcher(StsFetcher* fetcher, reactor::Mailbox* mailbox) { fetcher_ = fetcher, mailbox_ = mailbox; }
  // `ipv6`: policy hosts may be reached by it; `allow_private`: at private addresses too.
  void configure(std::shared_ptr<const std::string> authorities, bool ipv6, bool allow_private);

  // `domain`: canonical. Never calls back inline.
  void find(const std::string& domain, Callback done);
  // From the state, or from another shard.
  void note(const std::string& domain, StsPolicy policy);
  // Of one that was fetched: to be stored and told to the other shards.
  std::function<void(const std::string& domain, const StsPolicy& policy)> on_news;
  // A policy could not be had, for a reason of its domain's.
  enum class Fault : uint8_t { no_https, untrusted, malformed };
  std::function<void(const std::string& domain, Fault fault, std::string_view why)> on_fault;
  // nullptr: none that we know.
  PolicyRef known(const std::string& domain) const;
  // No policy and no fetch of the domain is kept.
  void forget(const std::string& domain) { policies_.erase(domain), failed_.erase(domain); }

  struct Stats {
    uint64_t fetched = 0;
    uint64_t no_host = 0, too_many = 0, no_https = 0, malformed = 0;  // why not
  };
  // There may be a policy at all.
  bool active() const { return fetcher_ != nullptr || !policies_.empty(); }
  const Stats& stats() const { return stats_; }
  size_t size() const { return policies_.size(); }

 private:
  struct Fetching {  // one domain's, whoever waits for it
    std::string domain, id;
    std::vector<Callback> waiting;
    std::vector<reactor::Address> addresses;
    int lookups = 0;
    StsFetch* job = nullptr;  // while it is away
    StsPolicies* policies = nullptr;
  };

  void on_record(const std::string& domain, const dns::Answer& answer, const Callback& done);
  void fetch(const std::string& domain, const std::string& id, Callback done);
  void on_address(Fetching& fetching, const dns::Answer& answer);
  void on_fetched(Fetching& fetching, StsFetch& job);
  void finish(Fetching& fetching, bool unknown);  // destroys it
  void fail(Fetching& fetching, uint64_t& counter, std::string_view why, std::optional<Fault> fault);

  reactor::Io& io_;
  dns::Cache& cache_;
  StsFetcher* fetcher_ = nullptr;
  reactor::Mailbox* mailbox_ = nullptr;
  std::shared_ptr<const std::string> authorities_;
  bool ipv6_ = false, allow_private_ = false;
  std::unordered_map<std::string, PolicyRef> policies_;
  std::unordered_map<std::string, int64_t> failed_;  // monotonic: no fetch before
  std::unordered_map<std::string, std::unique_ptr<Fetching>> fetching_;
  Stats stats_;
};

}  // namespace millrace::delivery
