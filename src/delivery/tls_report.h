// SMTP TLS reporting (RFC 8460), the part without time and network: what is counted of the sessions to a recipient domain,
// where its owner wants to read it, and the report.
//
// A session is a connection that came as far as TLS, or for which TLS was the reason not to come about. It counts once for each
// recipient domain whose mail it carried, or would have; under the policy that it was held to.
//
// Limits: kMostDomains domains, kMostPolicies policies of each, kMostFailures kinds of failure of each policy. Sessions of
// further domains and policies are only counted in left_out(); failures of further kinds count by their result alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "delivery/mta_sts.h"
#include "tls/session_cache.h"

namespace millrace::delivery {

// RFC 8460 4.3.
enum class TlsResult : uint8_t {
  starttls_not_supported,
  certificate_host_mismatch,
  certificate_expired,
  certificate_not_trusted,
  validation_failure,
  tlsa_invalid,
  dnssec_invalid,
  dane_required,
  sts_policy_fetch_error,
  sts_policy_invalid,
  sts_webpki_invalid,
};
std::string_view to_string(TlsResult result);
// Of a certificate that is not ok; `no_match` is DANE's.
TlsResult result_of(tls::Verified verified);

// RFC 8460 4.2: the policy that was applied.
struct TlsReportPolicy {
  enum class Type : uint8_t { none, tlsa, sts } type = Type::none;
  std::string domain;                // the recipient domain; of tlsa the TLSA base domain
  std::vector<std::string> strings;  // TLSA records, or the lines of the MTA-STS policy
  std::vector<std::string> mx;       // the patterns of the latter
  bool operator==(const TlsReportPolicy&) const = default;
};
std::string_view to_string(TlsReportPolicy::Type type);
TlsReportPolicy report_policy(std::string_view domain, const StsPolicy& policy);

struct TlsFailure {
  TlsResult result = TlsResult::validation_failure;
  std::string sending_ip, mx, receiving_ip;  // empty: there was none
  std::string reason;                        // RFC 8460: failure-reason-code
  bool operator==(const TlsFailure&) const = default;
};

class TlsCounts {
 public:
  static constexpr size_t kMostDomains = 10'000;
  static constexpr size_t kMostPolicies = 8;
  static constexpr size_t kMostFailures = 50;
  static constexpr size_t kLongestReason = 200;

  struct Failure {
    TlsFailure what;
    uint64_t sessions = 0;
  };
  struct Policy {
    TlsReportPolicy policy;
    uint64_t successful = 0, failed = 0;
    std::vector<Failure> failures;
  };
  using Domain = std::vector<Policy>;

  void add_success(std::string_view domain, const TlsReportPolicy& policy, uint64_t sessions = 1);
  void add_failure(std::string_view domain, const TlsReportPolicy& policy, TlsFailure failure, uint64_t sessions = 1);
  void add(std::string_view domain, const Domain& counted);
  void add(const TlsCounts& others);

  bool empty() const { return domains_.empty() && left_out_ == 0; }
  const std::unordered_map<std::string, Domain>& domains() const { return domains_; }
  // Sessions that are in no domain's counts for want of room.
  uint64_t left_out() const { return left_out_; }

 private:
  Policy* find(std::string_view domain, const TlsReportPolicy& policy);

  std::unordered_map<std::string, Domain> domains_;
  uint64_t left_out_ = 0;
};
uint64_t successful_of(const TlsCounts::Domain& counted);
uint64_t failed_of(const TlsCounts::Domain& counted);

// As it is stored.
std::string encode(const TlsCounts::Domain& counted);
std::optional<TlsCounts::Domain> decode_tls_counts(std::string_view text);

// Where reports go, by the TXT records at _smtp._tls.DOMAIN; nothing unless exactly one of them begins with v=TLSRPTv1 and is
// well formed (RFC 8460 3). URIs of other schemes are left out; at most kMostReportAddresses of each are taken.
struct TlsReportAddresses {
  std::vector<std::string> https, mailto;
};
inline constexpr size_t kMostReportAddresses = 4;
std::optional<TlsReportAddresses> read_tlsrpt_record(const std::vector<std::string>& texts);

struct HttpsUrl {
  std::string host;  // a name, lower case
  uint16_t port = 443;
  std::string target;  // path and query
};
// "https://host[:port][/path][?query]"; no user, no fragment, no address in place of the name.
std::optional<HttpsUrl> read_https_url(std::string_view url);

struct TlsReportHead {
  std::string organization, contact, id;
  int64_t start_s = 0, end_s = 0;  // UTC; the end is no longer in it
};
// RFC 8460 4.4.
std::string tls_report(const TlsReportHead& head, const TlsCounts::Domain& counted);
std::string gzip(std::string_view octets);

}  // namespace millrace::delivery
