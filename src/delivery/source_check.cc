#include "delivery/source_check.h"

#include <fmt/format.h>

#include <algorithm>

#include "dns/address_rules.h"

namespace millrace::delivery {

namespace {

dns::Type type_of(const reactor::Address& address) { return address.is_ipv6() ? dns::Type::aaaa : dns::Type::a; }

bool is_unknown(const dns::Answer& answer) {
  return answer.outcome == dns::Outcome::failure || answer.outcome == dns::Outcome::malformed;
}

bool leads_to(const dns::Answer& answer, const reactor::Address& address) {
  return std::any_of(answer.addresses.begin(), answer.addresses.end(),
                     [&](const reactor::Address& one) { return one.octets() == address.octets(); });
}

}  // namespace

std::string reverse_name(const reactor::Address& address) {
  const std::string_view octets = address.octets();
  std::string name;
  for (size_t i = octets.size(); i-- > 0;) {
    const unsigned octet = static_cast<uint8_t>(octets[i]);
    name += address.is_ipv6() ? fmt::format("{:x}.{:x}.", octet & 15, octet >> 4) : fmt::format("{}.", octet);
  }
  return name + (address.is_ipv6() ? "ip6.arpa" : "in-addr.arpa");
}

struct SourceCheck::Source {
  unsigned number = 0;
  std::string ehlo_name, first;
  size_t left = 0;  // addresses
  bool unknown = false;
  Verdict ipv6 = Verdict::unknown;
  std::string wrong;
};

// One address of it.
struct SourceCheck::Address {
  std::shared_ptr<Source> of;
  reactor::Address address;
  size_t left = 0;  // look-ups
  bool unknown = false, has_ptr = false, confirmed = false, ehlo_leads_here = false;
  std::string names;  // of its PTR records
};

SourceCheck::SourceCheck(reactor::Io& io, dns::Cache& cache) : io_(io), cache_(cache) {
  timer_.bind<&SourceCheck::on_timer>(this);
}

SourceCheck::~SourceCheck() {
  timer_.cancel();
  if (alive_) *alive_ = false;
}

void SourceCheck::start(config::Snapshot config) {
  // What was found of a source that has changed is no longer about it.
  const bool same = config_ && config_->sources.size() == config->sources.size() && config_->hostname == config->hostname &&
                    std::equal(config->sources.begin(), config->sources.end(), config_->sources.begin(),
                               [](const config::Source& a, const config::Source& b) {
                                 return a.ipv4 == b.ipv4 && a.ipv6 == b.ipv6 && a.ehlo_name == b.ehlo_name;
                               });
  config_ = std::move(config);
  if (!same) known_.assign(config_->sources.size(), {});
  check();
}

bool SourceCheck::ipv6_usable(unsigned source) const {
  if (!config_ || source >= config_->sources.size() || config_->ipv6_without_ptr) return true;
  const Verdict verdict = known_[source].ipv6;
  return verdict == Verdict::good || (verdict == Verdict::unknown && config_->sources[source].ipv4.empty());
}

std::string SourceCheck::wrong(unsigned source) const { return source < known_.size() ? known_[source].wrong : std::string(); }

void SourceCheck::on_timer() { check(); }

void SourceCheck::check() {
  timer_.cancel();
  if (alive_) *alive_ = false;
  alive_ = std::make_shared<bool>(true);
  failed_ = false;
  left_ = config_->sources.size();
  for (unsigned number = 0; number < config_->sources.size(); ++number) {
    const config::Source& from = config_->sources[number];
    auto source = std::make_shared<Source>();
    source->number = number;
    source->ehlo_name = from.ehlo_name.empty() ? config_->hostname : from.ehlo_name;
    source->left = 1;
    for (const reactor::Address* address : {&from.ipv4, &from.ipv6}) {
      if (address->empty()) continue;
      if (source->first.empty()) source->first = address->host_string();
      if (!dns::why_not_public(*address).empty()) {
        if (address->is_ipv6()) source->ipv6 = Verdict::good;  // nobody's to judge
        continue;
      }
      ++source->left;
      check_address(source, *address);
    }
    if (--source->left == 0) finish(*source);
  }
}

void SourceCheck::check_address(const std::shared_ptr<Source>& source, const reactor::Address& address) {
  auto one = std::make_shared<Address>();
  one->of = source;
  one->address = address;
  one->left = 2;
  cache_.lookup(reverse_name(address), dns::Type::ptr, [this, one, alive = alive_](const dns::AnswerRef& answer) {
    if (*alive) on_ptr(one, *answer);
  });
  cache_.lookup(source->ehlo_name, type_of(address), [this, one, alive = alive_](const dns::AnswerRef& answer) {
    if (!*alive) return;
    one->unknown |= is_unknown(*answer);
    one->ehlo_leads_here = leads_to(*answer, one->address);
    one_less(one);
  });
}

void SourceCheck::on_ptr(const std::shared_ptr<Address>& one, const dns::Answer& answer) {
  one->unknown |= is_unknown(answer);
  for (size_t i = 0; i < std::min(answer.names.size(), kMostNames); ++i) {
    const std::string& name = answer.names[i];
    one->has_ptr = true;
    one->names += (one->names.empty() ? "" : ", ") + name;
    if (!dns::is_host_name(name)) continue;
    ++one->left;
    cache_.lookup(name, type_of(one->address), [this, one, alive = alive_](const dns::AnswerRef& found) {
      if (!*alive) return;
      one->unknown |= is_unknown(*found);
      one->confirmed |= leads_to(*found, one->address);
      one_less(one);
    });
  }
  one_less(one);
}

void SourceCheck::one_less(const std::shared_ptr<Address>& one) {
  if (--one->left > 0) return;
  Source& source = *one->of;
  const std::string address = one->address.host_string();
  const std::string_view type = to_string(type_of(one->address));
  std::string wrong;
  if (one->unknown) {
    source.unknown = true;
  } else if (!one->has_ptr) {
    wrong = fmt::format("{} has no PTR record: have whoever gave you the address set {} PTR {}", address,
                        reverse_name(one->address), source.ehlo_name);
  } else if (!one->confirmed) {
    wrong = fmt::format("the PTR record of {} names {}, which does not lead back: add {} {} to that name, or set the PTR to {}",
                        address, one->names, type, address, source.ehlo_name);
  }
  if (!one->unknown && one->address.is_ipv6()) {
    source.ipv6 = one->confirmed ? Verdict::good : Verdict::bad;
    if (!one->confirmed) {
      wrong += config_->ipv6_without_ptr ? "" : "; IPv6 is not used (--ipv6-without-ptr would)";
    }
  }
  if (!one->unknown && !one->ehlo_leads_here) {
    wrong += fmt::format("{}the EHLO name {} does not lead to {}: add {} {} {}", wrong.empty() ? "" : "; ", source.ehlo_name,
                         address, source.ehlo_name, type, address);
  }
  if (!wrong.empty()) source.wrong += (source.wrong.empty() ? "" : "; ") + wrong;
  if (--source.left == 0) finish(source);
}

void SourceCheck::finish(Source& source) {
  if (source.unknown) {
    failed_ = true;
  } else {
    Known& known = known_[source.number];
    known.ipv6 = source.ipv6;
    if (!known.told || known.wrong != source.wrong) {
      known.told = true;
      known.wrong = source.wrong;
      if (on_finding) on_finding({source.number, source.ehlo_name, source.first, source.wrong});
    }
  }
  if (--left_ == 0) io_.timers().arm(timer_, io_.now() + (failed_ ? kAgainNs : kEveryNs));
}

}  // namespace millrace::delivery
