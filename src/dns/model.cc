#include "dns/model.h"

#include <algorithm>

namespace millrace::dns {

void ModelZones::add_mx(std::string_view domain, uint16_t preference, std::string_view host) {
  nodes_[canonical_name(domain)].mx.push_back({preference, canonical_name(host)});
}

void ModelZones::add_address(std::string_view host, std::string_view address) {
  auto parsed = reactor::Address::parse_host(address, 0);
  ASSERT(parsed.ok());
  Node& node = nodes_[canonical_name(host)];
  (parsed->is_ipv6() ? node.ipv6 : node.ipv4).push_back(*parsed);
}

void ModelZones::add_alias(std::string_view name, std::string_view target) {
  nodes_[canonical_name(name)].alias = canonical_name(target);
}

void ModelZones::add_tlsa(std::string_view name, const tls::TlsaRecord& record) {
  nodes_[canonical_name(name)].tlsa.push_back(record);
}

void ModelZones::add_pointer(std::string_view name, std::string_view target) {
  nodes_[canonical_name(name)].names.push_back(canonical_name(target));
}

void ModelZones::add_text(std::string_view name, std::string_view text) {
  nodes_[canonical_name(name)].texts.emplace_back(text);
}

void ModelZones::sign(std::string_view name) { signed_.insert(canonical_name(name)); }

bool ModelZones::is_signed(std::string_view name) const {
  while (true) {
    if (signed_.contains(name)) return true;
    const size_t dot = name.find('.');
    if (dot == name.npos) return false;
    name.remove_prefix(dot + 1);
  }
}

void ModelZones::add_empty(std::string_view name) { nodes_[canonical_name(name)]; }

void ModelZones::fail(std::string_view name, Outcome outcome) {
  failing_[canonical_name(name)] = outcome;
}

void ModelZones::heal(std::string_view name) { failing_.erase(canonical_name(name)); }

void ModelZones::remove(std::string_view name) { nodes_.erase(canonical_name(name)); }

Answer ModelZones::answer(const std::string& name, Type type) const {
  Answer answer;
  answer.ttl_s = ttl_s;
  std::string at = name;
  answer.secure = true;
  for (int aliases = 0;; ++aliases) {
    answer.secure = answer.secure && is_signed(at);
    if (auto failing = failing_.find(at); failing != failing_.end()) {
      answer.outcome = failing->second;
      answer.reason = "the model's own";
      answer.secure = false;
      if (answer.outcome == Outcome::nxdomain) answer.ttl_s = negative_ttl_s;
      return answer;
    }
    const auto node = nodes_.find(at);
    if (node == nodes_.end()) {
      answer.outcome = Outcome::nxdomain;
      answer.ttl_s = negative_ttl_s;
      return answer;
    }
    if (!node->second.alias.empty()) {
      if (type == Type::cname) {
        answer.outcome = Outcome::records;
        answer.alias = node->second.alias;
        return answer;
      }
      if (faults.leave_aliases) {
        answer.outcome = Outcome::alias;
        answer.alias = node->second.alias;
        return answer;
      }
      if (aliases == kMostAliases) {
        answer.outcome = Outcome::malformed;
        answer.reason = "too long a chain of aliases";
        return answer;
      }
      answer.expanded = at = node->second.alias;
      continue;
    }
    if (type == Type::mx) answer.mx = node->second.mx;
    if (type == Type::a) answer.addresses = node->second.ipv4;
    if (type == Type::aaaa) answer.addresses = node->second.ipv6;
    if (type == Type::tlsa) answer.tlsa = node->second.tlsa;
    if (type == Type::txt) answer.texts = node->second.texts;
    if (type == Type::ptr) answer.names = node->second.names;
    const bool found = !answer.mx.empty() || !answer.addresses.empty() || !answer.tlsa.empty() || !answer.texts.empty() ||
                       !answer.names.empty();
    answer.outcome = found ? Outcome::records : Outcome::no_data;
    if (!found) answer.ttl_s = negative_ttl_s;
    return answer;
  }
}

void ModelTransport::query(const std::string& name, Type type, Callback done) {
  ++queries_;
  ++asked_[{name, type}];
  const ModelZones::Faults& faults = zones_.faults;
  auto one = std::make_unique<InFlight>();
  one->transport = this;
  one->done = std::move(done);
  const int64_t spread =
      std::max<int64_t>(faults.longest_latency_ns - faults.shortest_latency_ns, 0);
  int64_t latency = faults.shortest_latency_ns +
                    static_cast<int64_t>(io_.random() % static_cast<uint64_t>(spread + 1));
  const double dice = unit();
  if (faults.outage) {
    one->answer.outcome = *faults.outage;
    one->answer.reason = "outage";
    one->answer.ttl_s = zones_.negative_ttl_s;
  } else if (dice < faults.failure) {
    one->answer.reason = "SERVFAIL";
    if (unit() < 0.5) {
      one->answer.reason = "time-out";
      latency = faults.timeout_ns;
    }
  } else if (dice < faults.failure + faults.malformed) {
    one->answer.outcome = Outcome::malformed;
    one->answer.reason = "noise";
  } else {
    one->answer = zones_.answer(name, type);
  }
  one->due.bind<&InFlight::on_due>(one.get());
  io_.timers().arm(one->due, io_.now() + latency);
  in_flight_.push_back(std::move(one));
}

void ModelTransport::InFlight::on_due() {
  auto& all = transport->in_flight_;
  auto at =
      std::find_if(all.begin(), all.end(), [&](const auto& one) { return one.get() == this; });
  std::unique_ptr<InFlight> self = std::move(*at);
  *at = std::move(all.back());
  all.pop_back();
  if (stopped) {
    stopped();
  } else {
    done(std::move(answer));
  }
}

void ModelTransport::stop(std::function<void()> done) {
  in_flight_.clear();
  auto last = std::make_unique<InFlight>();
  last->transport = this;
  last->stopped = std::move(done);
  last->due.bind<&InFlight::on_due>(last.get());
  io_.timers().arm(last->due, io_.now());
  in_flight_.push_back(std::move(last));
}

uint64_t ModelTransport::asked(std::string_view name, Type type) const {
  auto at = asked_.find({canonical_name(name), type});
  return at == asked_.end() ? 0 : at->second;
}

}  // namespace millrace::dns
