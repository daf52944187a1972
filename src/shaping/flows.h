// Whose mail waits: the names and weights between which turns.h shares. Interned, so that those who wait compare
// pointers; one table a shard. A reload changes weights and priorities in place.
//
// Limits: a tenant or job that has had mail is known until the next start.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "config/shaping.h"

namespace millrace::shaping {

struct Tenant {
  std::string name;
  uint32_t weight = 1;
};

// The mail of one tenant, job and pool.
struct Flow {
  const Tenant* tenant = nullptr;
  std::string pool, job;
  uint32_t weight = 1;         // among the jobs of its tenant
  bool transactional = false;  // goes before the rest
};

class Flows {
 public:
  const Flow& find(const config::Shaping& rules, std::string_view tenant, std::string_view pool, std::string_view job) {
    key_.assign(tenant).append(1, '\0').append(pool).append(1, '\0').append(job);
    auto& flow = flows_[key_];
    if (!flow) {
      flow = std::make_unique<Flow>();
      auto& owner = tenants_[std::string(tenant)];
      if (!owner) owner = std::make_unique<Tenant>(Tenant{std::string(tenant), 1});
      flow->tenant = owner.get();
      flow->pool = pool;
      flow->job = job;
      set(rules, *owner, *flow);
    }
    return *flow;
  }
  // Whoever keeps flows in Turns sorts them anew.
  void adopt(const config::Shaping& rules) {
    for (auto& [key, flow] : flows_) set(rules, *tenants_.at(flow->tenant->name), *flow);
  }

 private:
  static void set(const config::Shaping& rules, Tenant& tenant, Flow& flow) {
    config::Standing standing = rules.standing(tenant.name, flow.pool, flow.job);
    tenant.weight = standing.tenant_weight;
    flow.weight = standing.job_weight;
    flow.transactional = standing.transactional;
  }
  std::unordered_map<std::string, std::unique_ptr<Tenant>> tenants_;
  std::unordered_map<std::string, std::unique_ptr<Flow>> flows_;
  std::string key_;  // scratch
};

}  // namespace millrace::shaping
