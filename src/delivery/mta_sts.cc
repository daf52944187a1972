#include "delivery/mta_sts.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "dns/address_rules.h"

namespace millrace::delivery {
namespace {

using Mode = StsPolicy::Mode;

constexpr int64_t kLongestAgeS = 31'557'600;  // RFC 8461 3.2
constexpr int64_t kLongestValidNs = 3'600'000'000'000;

bool is_blank(char c) { return c == ' ' || c == '\t'; }

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

bool is_id(std::string_view text) {
  return !text.empty() && text.size() <= 32 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  });
}

std::optional<Mode> mode_of(std::string_view text) {
  for (Mode mode : {Mode::none, Mode::testing, Mode::enforce}) {
    if (to_string(mode) == text) return mode;
  }
  return std::nullopt;
}

bool is_pattern(std::string_view text) {
  if (text.starts_with("*.")) text.remove_prefix(2);
  return dns::is_host_name(text);
}

template <typename Number>
bool read_number(std::string_view text, Number& to) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), to);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

}  // namespace

std::string_view to_string(StsPolicy::Mode mode) {
  switch (mode) {
    case Mode::none: return "none";
    case Mode::testing: return "testing";
    case Mode::enforce: return "enforce";
  }
  UNREACHABLE();
}

bool StsPolicy::allows(std::string_view host) const {
  return std::any_of(mx.begin(), mx.end(), [&](std::string_view pattern) {
    if (!pattern.starts_with("*.")) return host == pattern;
    // RFC 8461 4.1: exactly one label in place of the asterisk.
    const size_t dot = host.find('.');
    return dot != host.npos && dot > 0 && host.substr(dot) == pattern.substr(1);
  });
}

std::optional<std::string> read_sts_record(const std::vector<std::string>& texts) {
  const std::string* record = nullptr;
  for (const std::string& text : texts) {
    if (!text.starts_with("v=STSv1") || (text.size() > 7 && text[7] != ';' && !is_blank(text[7]))) continue;
    if (record != nullptr) return std::nullopt;
    record = &text;
  }
  if (record == nullptr) return std::nullopt;
  std::optional<std::string> id;
  std::string_view left = *record;
  for (bool first = true; !left.empty(); first = false) {
    const size_t end = std::min(left.find(';'), left.size());
    const std::string_view field = trimmed(left.substr(0, end));
    left.remove_prefix(std::min(end + 1, left.size()));
    if (first) {
      if (field != "v=STSv1") return std::nullopt;
      continue;
    }
    const size_t equals = field.find('=');
    if (field.empty() && left.empty()) break;  // the last one may end in a semicolon
    if (equals == field.npos || equals == 0) return std::nullopt;
    if (trimmed(field.substr(0, equals)) != "id") continue;
    const std::string_view value = trimmed(field.substr(equals + 1));
    if (id || !is_id(value)) return std::nullopt;
    id = value;
  }
  return id;
}

Result<StsPolicy> read_sts_policy(std::string_view body) {
  if (body.size() > kLongestStsPolicy) return fail("the policy is longer than 64 KiB");
  StsPolicy policy;
  bool version = false, mode = false, max_age = false;
  while (!body.empty()) {
    const size_t end = std::min(body.find('\n'), body.size());
    std::string_view line = body.substr(0, end);
    body.remove_prefix(std::min(end + 1, body.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (trimmed(line).empty()) continue;
    const size_t colon = line.find(':');
    if (colon == line.npos) return fail("the policy has a line without a colon");
    const std::string_view key = trimmed(line.substr(0, colon)), value = trimmed(line.substr(colon + 1));
    // Of what is said twice the first counts (RFC 8461 3.2), mx excepted.
    if (key == "version") {
      if (!version && value != "STSv1") return fail("the policy is of another version");
      version = true;
    } else if (key == "mode") {
      const std::optional<Mode> said = mode_of(value);
      if (!mode && !said) return fail("the policy's mode is unknown");
      if (!mode) policy.mode = *said;
      mode = true;
    } else if (key == "max_age") {
      uint64_t seconds = 0;
      if (!max_age && (value.size() > 10 || !read_number(value, seconds))) return fail("the policy's max_age is no number");
      if (!max_age) policy.max_age_s = std::min(static_cast<int64_t>(seconds), kLongestAgeS);
      max_age = true;
    } else if (key == "mx") {
      std::string pattern = dns::canonical_name(value);
      if (!is_pattern(pattern)) return fail("the policy has an mx that is neither a host name nor *.suffix");
      if (policy.mx.size() == StsPolicies::kMostPatterns) return fail("the policy names too many hosts");
      policy.mx.push_back(std::move(pattern));
    }
  }
  if (!version) return fail("the policy does not say its version");
  if (!mode) return fail("the policy does not say its mode");
  if (!max_age) return fail("the policy does not say its max_age");
  if (policy.mx.empty() && policy.mode != Mode::none) return fail("the policy names no host");
  return policy;
}

std::string encode(const StsPolicy& policy) {
  return nlohmann::json{{"mode", to_string(policy.mode)},
                        {"id", policy.id},
                        {"fetched_ms", policy.fetched_ms},
                        {"max_age_s", policy.max_age_s},
                        {"mx", policy.mx}}
      .dump();
}

std::optional<StsPolicy> decode_sts_policy(std::string_view text) {
  const nlohmann::json value = nlohmann::json::parse(text, nullptr, false);
  if (!value.is_object()) return std::nullopt;
  const auto string_at = [&](const char* key) {
    const auto at = value.find(key);
    return at != value.end() && at->is_string() ? at->get<std::string>() : std::string();
  };
  const auto number_at = [&](const char* key) {
    const auto at = value.find(key);
    return at != value.end() && at->is_number_integer() ? at->get<int64_t>() : int64_t{-1};
  };
  StsPolicy policy;
  const std::optional<Mode> mode = mode_of(string_at("mode"));
  policy.id = string_at("id");
  policy.fetched_ms = number_at("fetched_ms");
  policy.max_age_s = number_at("max_age_s");
  const auto mx = value.find("mx");
  if (!mode || !is_id(policy.id) || policy.fetched_ms < 0 || policy.max_age_s < 0 || policy.max_age_s > kLongestAgeS ||
      mx == value.end() || !mx->is_array()) {
    return std::nullopt;
  }
  policy.mode = *mode;
  for (const auto& one : *mx) {
    if (!one.is_string() || !is_pattern(one.get<std::string>())) return std::nullopt;
    policy.mx.push_back(one.get<std::string>());
  }
  return policy;
}

// ---- the policies of a shard

StsPolicies::StsPolicies(reactor::Io& io, dns::Cache& cache) : io_(io), cache_(cache) {}

StsPolicies::~StsPolicies() {
  for (const auto& [domain, fetching] : fetching_) {
    if (fetching->job != nullptr) fetching->job->owner = nullptr;
  }
}

void StsPolicies::configure(std::shared_ptr<const std::string> authorities, bool ipv6, bool allow_private) {
  authorities_ = std::move(authorities);
  ipv6_ = ipv6;
  allow_private_ = allow_private;
}

StsPolicies::PolicyRef StsPolicies::known(const std::string& domain) const {
  const auto at = policies_.find(domain);
  return at != policies_.end() && io_.wall_ms() < at->second->expires_ms() ? at->second : nullptr;
}

void StsPolicies::note(const std::string& domain, StsPolicy policy) {
  if (policies_.size() >= kMostPolicies && !policies_.contains(domain)) {
    std::erase_if(policies_, [&](const auto& item) { return io_.wall_ms() >= item.second->expires_ms(); });
    if (policies_.size() >= kMostPolicies) return;
  }
  PolicyRef& place = policies_[domain];
  // One from the future was fetched under a clock that was wrong.
  if (!place || place->fetched_ms <= policy.fetched_ms || place->fetched_ms > io_.wall_ms()) {
    place = std::make_shared<const StsPolicy>(std::move(policy));
  }
}

void StsPolicies::find(const std::string& domain, Callback done) {
  cache_.lookup("_mta-sts." + domain, dns::Type::txt, [this, domain, done = std::move(done)](const dns::AnswerRef& answer) {
    on_record(domain, *answer, done);
  });
}

void StsPolicies::on_record(const std::string& domain, const dns::Answer& answer, const Callback& done) {
  const int64_t until = std::min(answer.expires_ns, io_.now() + kLongestValidNs);
  const PolicyRef policy = known(domain);
  const bool unknown = answer.outcome == dns::Outcome::failure || answer.outcome == dns::Outcome::malformed;
  const std::optional<std::string> id =
      answer.outcome == dns::Outcome::records ? read_sts_record(answer.texts) : std::nullopt;
  if (!unknown && !id) failed_.erase(domain);
  if (!id || fetcher_ == nullptr) return done(policy, until, !policy && (unknown || id));
  if (policy && policy->id == *id) {
    // Ahead of its end: whoever keeps the HTTPS server away from us must do so for long.
    const int64_t age_ms = io_.wall_ms() - policy->fetched_ms;
    if (age_ms >= std::min(kRefreshMs, policy->max_age_s * 500)) fetch(domain, *id, nullptr);
    return done(policy, until, false);
  }
  fetch(domain, *id, done);
}

void StsPolicies::fetch(const std::string& domain, const std::string& id, Callback done) {
  // There is a record, so what is not known is unknown.
  const auto answer_now = [&] {
    if (!done) return;
    const PolicyRef policy = known(domain);
    done(policy, io_.now() + kAfterFailureNs, !policy);
  };
  if (const auto at = fetching_.find(domain); at != fetching_.end()) {
    if (done) at->second->waiting.push_back(std::move(done));
    return;
  }
  if (const auto at = failed_.find(domain); at != failed_.end()) {
    if (io_.now() < at->second) return answer_now();
    failed_.erase(at);
  }
  if (fetching_.size() >= kMostFetches) {
    ++stats_.too_many;
    return answer_now();
  }
  auto& place = fetching_[domain];
  place = std::make_unique<Fetching>();
  Fetching& fetching = *place;
  fetching.domain = domain;
  fetching.id = id;
  fetching.policies = this;
  if (done) fetching.waiting.push_back(std::move(done));
  fetching.lookups = ipv6_ ? 2 : 1;
  // The policy host is found as all others are: by our resolver, and not at addresses that are nobody's business.
  const auto on_answer = [this, &fetching](const dns::AnswerRef& answer) { on_address(fetching, *answer); };
  cache_.lookup("mta-sts." + domain, dns::Type::a, on_answer);
  if (ipv6_) cache_.lookup("mta-sts." + domain, dns::Type::aaaa, on_answer);
}

void StsPolicies::on_address(Fetching& fetching, const dns::Answer& answer) {
  for (const reactor::Address& address : answer.addresses) {
    if (allow_private_ || dns::why_not_public(address).empty()) fetching.addresses.push_back(address);
  }
  if (--fetching.lookups > 0) return;
  if (fetching.addresses.empty()) {
    return fail(fetching, stats_.no_host, "its host has no address that may be asked", Fault::no_https);
  }
  auto job = std::make_unique<StsFetch>();
  job->host = "mta-sts." + fetching.domain;
  job->addresses = fetching.addresses;
  job->authorities = authorities_;
  job->mailbox = mailbox_;
  job->owner = &fetching;
  job->done = [](void* owner, StsFetch& done) {
    auto* one = static_cast<Fetching*>(owner);
    one->job = nullptr;
    one->policies->on_fetched(*one, done);
  };
  fetching.job = job.get();
  if (fetcher_->submit(std::move(job))) return;
  fetching.job = nullptr;
  fail(fetching, stats_.too_many, "too many are being fetched", std::nullopt);
}

void StsPolicies::on_fetched(Fetching& fetching, StsFetch& job) {
  if (job.aborted) return finish(fetching, true);
  if (!job.fetched) {
    return fail(fetching, stats_.no_https, job.error, job.untrusted ? Fault::untrusted : Fault::no_https);
  }
  Result<StsPolicy> policy = read_sts_policy(job.body);
  if (!policy) return fail(fetching, stats_.malformed, policy.error().text, Fault::malformed);
  ++stats_.fetched;
  policy->id = fetching.id;
  policy->fetched_ms = io_.wall_ms();
  log::debug("MTA-STS policy of {}: {}, for {} s", fetching.domain, to_string(policy->mode), policy->max_age_s);
  note(fetching.domain, *policy);
  if (on_news) on_news(fetching.domain, *policy);
  finish(fetching, !policies_.contains(fetching.domain));  // there may have been no room
}

void StsPolicies::fail(Fetching& fetching, uint64_t& counter, std::string_view why, std::optional<Fault> fault) {
  ++counter;
  if (fault && on_fault) on_fault(fetching.domain, *fault, why);
  log::info("the MTA-STS policy of {} cannot be had: {}{}", fetching.domain, why,
            known(fetching.domain) ? "; the one that is known goes on to hold" : "");
  if (failed_.size() >= kMostPolicies) std::erase_if(failed_, [&](const auto& item) { return item.second <= io_.now(); });
  if (failed_.size() < kMostPolicies) failed_[fetching.domain] = io_.now() + kAfterFailureNs;
  finish(fetching, true);
}

void StsPolicies::finish(Fetching& fetching, bool unknown) {
  const auto at = fetching_.find(fetching.domain);
  const std::unique_ptr<Fetching> owned = std::move(at->second);
  fetching_.erase(at);
  const PolicyRef policy = known(owned->domain);
  const int64_t until = io_.now() + kAfterFailureNs;
  for (const Callback& done : owned->waiting) done(policy, until, !policy && unknown);
}

}  // namespace millrace::delivery
