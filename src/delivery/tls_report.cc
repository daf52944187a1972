#include "delivery/tls_report.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <charconv>
#include <ctime>
#include <nlohmann/json.hpp>

#include "base/assert.h"
#include "base/out_of_memory.h"
#include "dns/cache.h"
#include "dns/address_rules.h"

namespace millrace::delivery {
namespace {

using Type = TlsReportPolicy::Type;
using Json = nlohmann::ordered_json;

constexpr TlsResult kResults[] = {
    TlsResult::starttls_not_supported, TlsResult::certificate_host_mismatch, TlsResult::certificate_expired,
    TlsResult::certificate_not_trusted, TlsResult::validation_failure, TlsResult::tlsa_invalid, TlsResult::dnssec_invalid,
    TlsResult::dane_required, TlsResult::sts_policy_fetch_error, TlsResult::sts_policy_invalid, TlsResult::sts_webpki_invalid};
constexpr Type kTypes[] = {Type::none, Type::tlsa, Type::sts};

bool is_blank(char c) { return c == ' ' || c == '\t'; }

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

bool is_visible(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 127; });
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return out;
}

// The text up to the separator, which is taken, too.
std::string_view cut(std::string_view& text, char separator) {
  const size_t end = std::min(text.find(separator), text.size());
  const std::string_view front = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  return trimmed(front);
}

std::string date_time(int64_t seconds) {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(static_cast<std::time_t>(seconds)));
}

Json to_json(const TlsCounts::Policy& counted) {
  Json policy{{"policy-type", to_string(counted.policy.type)}};
  if (!counted.policy.strings.empty()) policy["policy-string"] = counted.policy.strings;
  policy["policy-domain"] = counted.policy.domain;
  if (!counted.policy.mx.empty()) policy["mx-host"] = counted.policy.mx;
  Json out{{"policy", std::move(policy)},
           {"summary",
            {{"total-successful-session-count", counted.successful}, {"total-failure-session-count", counted.failed}}}};
  if (counted.failures.empty()) return out;
  Json& details = out["failure-details"] = Json::array();
  for (const TlsCounts::Failure& failure : counted.failures) {
    Json one{{"result-type", to_string(failure.what.result)}};
    if (!failure.what.sending_ip.empty()) one["sending-mta-ip"] = failure.what.sending_ip;
    if (!failure.what.mx.empty()) one["receiving-mx-hostname"] = failure.what.mx;
    if (!failure.what.receiving_ip.empty()) one["receiving-ip"] = failure.what.receiving_ip;
    one["failed-session-count"] = failure.sessions;
    if (!failure.what.reason.empty()) one["failure-reason-code"] = failure.what.reason;
    details.push_back(std::move(one));
  }
  return out;
}

template <typename Value, size_t size>
std::optional<Value> by_name(const Value (&all)[size], const Json& name) {
  if (!name.is_string()) return std::nullopt;
  for (Value one : all) {
    if (to_string(one) == name.get_ref<const std::string&>()) return one;
  }
  return std::nullopt;
}

bool read_text(const Json& object, const char* key, std::string& to) {
  const auto at = object.find(key);
  if (at == object.end()) return true;
  if (!at->is_string()) return false;
  to = at->get<std::string>();
  return true;
}

bool read_texts(const Json& object, const char* key, std::vector<std::string>& to) {
  const auto at = object.find(key);
  if (at == object.end()) return true;
  if (!at->is_array()) return false;
  for (const Json& one : *at) {
    if (!one.is_string()) return false;
    to.push_back(one.get<std::string>());
  }
  return true;
}

bool read_number(const Json& object, const char* key, uint64_t& to) {
  const auto at = object.find(key);
  if (at == object.end() || !at->is_number_unsigned()) return false;
  to = at->get<uint64_t>();
  return true;
}

const Json& at_or_null(const Json& object, const char* key) {
  static const Json null;
  const auto at = object.find(key);
  return at == object.end() ? null : *at;
}

std::optional<TlsCounts::Policy> read_policy(const Json& value) {
  TlsCounts::Policy out;
  if (!value.is_object()) return std::nullopt;
  const Json& policy = at_or_null(value, "policy");
  const Json& summary = at_or_null(value, "summary");
  if (!policy.is_object() || !summary.is_object()) return std::nullopt;
  const auto type = by_name(kTypes, at_or_null(policy, "policy-type"));
  if (!type || !read_text(policy, "policy-domain", out.policy.domain) ||
      !read_texts(policy, "policy-string", out.policy.strings) || !read_texts(policy, "mx-host", out.policy.mx) ||
      !read_number(summary, "total-successful-session-count", out.successful) ||
      !read_number(summary, "total-failure-session-count", out.failed)) {
    return std::nullopt;
  }
  out.policy.type = *type;
  const Json& details = at_or_null(value, "failure-details");
  if (!details.is_null() && !details.is_array()) return std::nullopt;
  for (const Json& one : details) {
    TlsCounts::Failure failure;
    if (!one.is_object()) return std::nullopt;
    const auto result = by_name(kResults, at_or_null(one, "result-type"));
    if (!result || !read_text(one, "sending-mta-ip", failure.what.sending_ip) ||
        !read_text(one, "receiving-mx-hostname", failure.what.mx) ||
        !read_text(one, "receiving-ip", failure.what.receiving_ip) ||
        !read_text(one, "failure-reason-code", failure.what.reason) ||
        !read_number(one, "failed-session-count", failure.sessions)) {
      return std::nullopt;
    }
    failure.what.result = *result;
    out.failures.push_back(std::move(failure));
  }
  return out;
}

}  // namespace

std::string_view to_string(TlsResult result) {
  switch (result) {
    case TlsResult::starttls_not_supported: return "starttls-not-supported";
    case TlsResult::certificate_host_mismatch: return "certificate-host-mismatch";
    case TlsResult::certificate_expired: return "certificate-expired";
    case TlsResult::certificate_not_trusted: return "certificate-not-trusted";
    case TlsResult::validation_failure: return "validation-failure";
    case TlsResult::tlsa_invalid: return "tlsa-invalid";
    case TlsResult::dnssec_invalid: return "dnssec-invalid";
    case TlsResult::dane_required: return "dane-required";
    case TlsResult::sts_policy_fetch_error: return "sts-policy-fetch-error";
    case TlsResult::sts_policy_invalid: return "sts-policy-invalid";
    case TlsResult::sts_webpki_invalid: return "sts-webpki-invalid";
  }
  UNREACHABLE();
}

TlsResult result_of(tls::Verified verified) {
  using tls::Verified;
  switch (verified) {
    case Verified::untrusted: return TlsResult::certificate_not_trusted;
    case Verified::expired: return TlsResult::certificate_expired;
    case Verified::wrong_name: return TlsResult::certificate_host_mismatch;
    case Verified::ok:
    case Verified::not_checked:
    case Verified::invalid:
    case Verified::no_match:
      break;
  }
  return TlsResult::validation_failure;
}

std::string_view to_string(TlsReportPolicy::Type type) {
  switch (type) {
    case Type::none: return "no-policy-found";
    case Type::tlsa: return "tlsa";
    case Type::sts: return "sts";
  }
  UNREACHABLE();
}

TlsReportPolicy report_policy(std::string_view domain, const StsPolicy& policy) {
  TlsReportPolicy out{Type::sts, std::string(domain), {}, policy.mx};
  out.strings.reserve(policy.mx.size() + 3);
  out.strings.emplace_back("version: STSv1");
  out.strings.push_back(fmt::format("mode: {}", to_string(policy.mode)));
  for (const std::string& pattern : policy.mx) out.strings.push_back("mx: " + pattern);
  out.strings.push_back(fmt::format("max_age: {}", policy.max_age_s));
  return out;
}

// ---- counting

TlsCounts::Policy* TlsCounts::find(std::string_view domain, const TlsReportPolicy& policy) {
  std::string name(domain);
  auto at = domains_.find(name);
  if (at == domains_.end()) {
    if (domains_.size() >= kMostDomains) return nullptr;
    at = domains_.emplace(std::move(name), Domain{}).first;
  }
  Domain& policies = at->second;
  const auto same = std::find_if(policies.begin(), policies.end(), [&](const Policy& one) { return one.policy == policy; });
  if (same != policies.end()) return &*same;
  if (policies.size() >= kMostPolicies) return nullptr;
  policies.push_back({policy, 0, 0, {}});
  return &policies.back();
}

void TlsCounts::add_success(std::string_view domain, const TlsReportPolicy& policy, uint64_t sessions) {
  Policy* counted = find(domain, policy);
  (counted != nullptr ? counted->successful : left_out_) += sessions;
}

void TlsCounts::add_failure(std::string_view domain, const TlsReportPolicy& policy, TlsFailure failure, uint64_t sessions) {
  Policy* counted = find(domain, policy);
  if (counted == nullptr) {
    left_out_ += sessions;
    return;
  }
  counted->failed += sessions;
  failure.reason.resize(std::min(failure.reason.size(), kLongestReason));
  auto& failures = counted->failures;
  const auto same_as = [&](const TlsFailure& what) {
    return std::find_if(failures.begin(), failures.end(), [&](const Failure& one) { return one.what == what; });
  };
  auto at = same_as(failure);
  if (at == failures.end() && failures.size() >= kMostFailures) {
    failure = {failure.result, {}, {}, {}, {}};
    at = same_as(failure);
  }
  if (at == failures.end()) at = failures.insert(failures.end(), {std::move(failure), 0});
  at->sessions += sessions;
}

void TlsCounts::add(std::string_view domain, const Domain& counted) {
  for (const Policy& policy : counted) {
    if (policy.successful > 0) add_success(domain, policy.policy, policy.successful);
    for (const Failure& failure : policy.failures) add_failure(domain, policy.policy, failure.what, failure.sessions);
  }
}

void TlsCounts::add(const TlsCounts& others) {
  for (const auto& [domain, counted] : others.domains_) add(domain, counted);
  left_out_ += others.left_out_;
}

uint64_t successful_of(const TlsCounts::Domain& counted) {
  uint64_t sum = 0;
  for (const TlsCounts::Policy& policy : counted) sum += policy.successful;
  return sum;
}

uint64_t failed_of(const TlsCounts::Domain& counted) {
  uint64_t sum = 0;
  for (const TlsCounts::Policy& policy : counted) sum += policy.failed;
  return sum;
}

std::string encode(const TlsCounts::Domain& counted) {
  Json out = Json::array();
  for (const TlsCounts::Policy& policy : counted) out.push_back(to_json(policy));
  return out.dump(-1, ' ', true, Json::error_handler_t::replace);
}

std::optional<TlsCounts::Domain> decode_tls_counts(std::string_view text) {
  const Json value = Json::parse(text, nullptr, false);
  if (!value.is_array() || value.size() > TlsCounts::kMostPolicies) return std::nullopt;
  TlsCounts::Domain out;
  for (const Json& one : value) {
    auto policy = read_policy(one);
    if (!policy) return std::nullopt;
    out.push_back(std::move(*policy));
  }
  return out;
}

// ---- where it goes

std::optional<TlsReportAddresses> read_tlsrpt_record(const std::vector<std::string>& texts) {
  constexpr std::string_view kVersion = "v=TLSRPTv1";
  const std::string* record = nullptr;
  for (const std::string& text : texts) {
    if (!text.starts_with(kVersion)) continue;
    if (text.size() > kVersion.size() && text[kVersion.size()] != ';' && !is_blank(text[kVersion.size()])) continue;
    if (record != nullptr) return std::nullopt;
    record = &text;
  }
  if (record == nullptr) return std::nullopt;
  std::string_view left = *record;
  if (cut(left, ';') != kVersion) return std::nullopt;
  std::optional<TlsReportAddresses> addresses;
  while (!left.empty()) {
    const std::string_view field = cut(left, ';');
    if (field.empty() && left.empty()) break;  // the last one may end in a semicolon
    const size_t equals = field.find('=');
    if (equals == field.npos || equals == 0) return std::nullopt;
    if (field.substr(0, equals) != "rua") continue;
    if (addresses) return std::nullopt;
    addresses.emplace();
    std::string_view uris = field.substr(equals + 1);
    if (trimmed(uris).empty()) return std::nullopt;
    while (!uris.empty()) {
      const std::string_view uri = cut(uris, ',');
      if (uri.empty() || !is_visible(uri)) return std::nullopt;
      const std::string scheme = lower(uri.substr(0, uri.find(':')));
      if (scheme != "https" && scheme != "mailto") continue;
      auto& list = scheme == "https" ? addresses->https : addresses->mailto;
      if (list.size() < kMostReportAddresses) list.emplace_back(uri);
    }
  }
  return addresses;
}

std::optional<HttpsUrl> read_https_url(std::string_view url) {
  constexpr std::string_view kScheme = "https://";
  if (!is_visible(url) || lower(url.substr(0, kScheme.size())) != kScheme) return std::nullopt;
  url.remove_prefix(kScheme.size());
  if (url.find_first_of("#\\\"<>") != url.npos) return std::nullopt;
  HttpsUrl out;
  const size_t end = std::min(url.find_first_of("/?"), url.size());
  std::string_view authority = url.substr(0, end);
  out.target = url.substr(end);
  if (!out.target.starts_with('/')) out.target.insert(0, "/");
  if (const size_t colon = authority.find(':'); colon != authority.npos) {
    const std::string_view port = authority.substr(colon + 1);
    const auto [last, error] = std::from_chars(port.data(), port.data() + port.size(), out.port);
    if (error != std::errc() || last != port.data() + port.size() || out.port == 0) return std::nullopt;
    authority = authority.substr(0, colon);
  }
  out.host = lower(authority);
  // No top-level domain begins with a digit, but addresses by other names do: 127.1, 0x7f000001.
  if (!dns::is_host_name(out.host)) return std::nullopt;
  const char first = out.host[out.host.rfind('.') + 1];
  if (first >= '0' && first <= '9') return std::nullopt;
  return out;
}

// ---- the report

std::string tls_report(const TlsReportHead& head, const TlsCounts::Domain& counted) {
  Json out{{"organization-name", head.organization},
           {"date-range", {{"start-datetime", date_time(head.start_s)}, {"end-datetime", date_time(head.end_s - 1)}}},
           {"contact-info", head.contact},
           {"report-id", head.id},
           {"policies", Json::array()}};
  for (const TlsCounts::Policy& policy : counted) out["policies"].push_back(to_json(policy));
  return out.dump(-1, ' ', true, Json::error_handler_t::replace);
}

std::string gzip(std::string_view octets) {
  z_stream stream{};
  constexpr int kGzip = 16 + MAX_WBITS;
  if (deflateInit2(&stream, Z_BEST_COMPRESSION, Z_DEFLATED, kGzip, 8, Z_DEFAULT_STRATEGY) != Z_OK) end_out_of_memory();
  std::string out(deflateBound(&stream, octets.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(octets.data()));
  stream.avail_in = static_cast<uInt>(octets.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  const int ended = deflate(&stream, Z_FINISH);
  ASSERT(ended == Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

}  // namespace millrace::delivery
