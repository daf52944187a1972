#include "shaping/scopes.h"

namespace millrace::shaping {
namespace {

using Key = config::ShapingKey;

bool limits(const config::ShapingValue* value) { return value && (value->number > 0 || !value->rates.empty()); }

bool matters(const config::ShapingChoice& choice, Purpose purpose) {
  using config::at;
  if (purpose == Purpose::connect) return limits(at(choice, Key::connections)) || limits(at(choice, Key::connect_rate));
  return limits(at(choice, Key::in_flight)) || limits(at(choice, Key::attempt_rate)) ||
         limits(at(choice, Key::message_rate)) || limits(at(choice, Key::recipient_rate)) ||
         limits(at(choice, Key::byte_rate));
}

}  // namespace

std::string pair_name(const config::Shaping& rules, const Subject& subject) {
  bool site = subject.provider.empty();
  return std::string(site ? "site " : "provider ") + std::string(site ? subject.site : subject.provider) + " from source " +
         rules.source_name(subject.source);
}

void find_scopes(const config::Shaping& rules, const Subject& subject, Purpose purpose, bool backed_off,
                 std::vector<ScopeRef>& out) {
  out.clear();
  const config::Provider* provider = subject.provider.empty() ? nullptr : rules.provider(subject.provider);
  std::string source = rules.source_name(subject.source);
  auto add = [&](const config::ShapingChoice& choice, auto&& name) {
    if (matters(choice, purpose)) out.push_back({name(), choice});
  };
  std::string_view receiver = subject.provider.empty() ? subject.site : subject.provider;
  add(backed_off ? rules.backed_off(provider, subject.source) : rules.pair(provider, subject.source),
      [&] { return pair_name(rules, subject); });
  add(rules.provider_total(provider), [&] { return "provider " + std::string(receiver); });
  if (purpose == Purpose::attempt && rules.has_domains()) {
    add(rules.domain_source(subject.domain, subject.source),
        [&] { return "domain " + std::string(subject.domain) + " from source " + source; });
    add(rules.domain(subject.domain), [&] { return "domain " + std::string(subject.domain); });
  }
  add(rules.source(subject.source), [&] { return "source " + source; });
  if (purpose == Purpose::connect) return;
  add(rules.pool(subject.pool), [&] { return "pool " + std::string(subject.pool); });
  add(rules.tenant_provider(subject.tenant, provider),
      [&] { return "tenant " + std::string(subject.tenant) + " at provider " + std::string(receiver); });
  add(rules.tenant(subject.tenant), [&] { return "tenant " + std::string(subject.tenant); });
  add(rules.job(subject.job), [&] { return "job " + std::string(subject.job); });
}

}  // namespace millrace::shaping
