// Whom an attempt or a connection counts for: from its names to the scopes that limit it, in the one
// order in which they are asked. Pure; both sides of a request (the shard that asks and the arbiter)
// find the same.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "config/shaping.h"

namespace millrace::shaping {

// The names behind one attempt or connection. Views: whoever fills it keeps the texts.
struct Subject {
  std::string_view provider;  // empty: the site stands for itself
  std::string_view site;
  unsigned source = 0;
  std::string_view domain, pool, tenant, job;  // of an attempt only
};

enum class Purpose : uint8_t { connect, attempt };

struct ScopeRef {
  std::string name;  // unique, and what an operator reads: "provider gmail from source mta1.example.com"
  config::ShapingChoice choice{};
};

// The (provider, source)'s scope, whether or not anything limits it.
std::string pair_name(const config::Shaping& rules, const Subject& subject);

// Scopes that limit `subject` in what `purpose` needs, in order: (provider, source), provider, (domain,
// source), domain, source, pool, (tenant, provider), tenant, job. Only those with a limit; a pair that is
// `backed_off` has the limits of that.
void find_scopes(const config::Shaping& rules, const Subject& subject, Purpose purpose, bool backed_off,
                 std::vector<ScopeRef>& out);

}  // namespace millrace::shaping
