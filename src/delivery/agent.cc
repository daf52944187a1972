#include "delivery/agent.h"

#include <fmt/format.h>

#include "base/log.h"
#include "base/out_of_memory.h"
#include "dns/address_rules.h"
#include "queue/destination.h"

namespace millrace::delivery {

dns::MxOptions mx_options(const config::Config& config) {
  dns::MxOptions options;
  options.ipv6 = config.ipv6 != config::Ipv6::off;
  options.allow_private = config.allow_private_destinations;
  options.port = config.remote_port;
  options.own_names.push_back(config.hostname);
  options.own_addresses = config.own_addresses;
  // A loopback or private source says nothing of who we are to the world, and with private
  // destinations allowed our neighbours live at such addresses too.
  const auto add_own = [&](const reactor::Address& address) {
    if (!address.empty() && dns::why_not_public(address).empty()) {
      options.own_addresses.push_back(address);
    }
  };
  for (const config::Source& source : config.sources) {
    if (!source.ehlo_name.empty()) options.own_names.push_back(source.ehlo_name);
    add_own(source.ipv4);
    add_own(source.ipv6);
  }
  for (const config::Listen& listen : config::listeners(config)) add_own(listen.address);
  return options;
}

namespace {

using config::Deliver;

// Whether `deliver` needs no look-up: the mail stays on this machine.
bool is_local(const Deliver& deliver) { return deliver.to != Deliver::To::smtp && deliver.hop.empty(); }

// What the shaping file says of the domain, before its hosts are known: nullptr: nothing, or it depends on them.
const Deliver* delivered_by_domain(const config::Config& config, std::string_view domain) {
  if (!config.shaping_rules) return nullptr;
  const config::Shaping& rules = *config.shaping_rules;
  if (const Deliver* deliver = rules.deliver_of(domain)) return deliver;
  return rules.providers_deliver() ? nullptr : rules.deliver_of_any();
}

// Likewise, of the domain whose hosts these are; its provider's name, if it is that provider's section that says so.
const Deliver* delivered_by_hosts(const config::Config& config, const dns::Route& route, std::string_view domain,
                                  std::string& name) {
  if (!config.shaping_rules || !config.shaping_rules->providers_deliver()) return nullptr;
  const config::Shaping& rules = *config.shaping_rules;
  std::vector<std::string_view> hosts;
  for (const dns::Host& host : route.hosts) {
    if (host.preference == route.hosts.front().preference) hosts.push_back(host.name);
  }
  const config::Provider* provider = rules.provider_of(domain, hosts);
  if (!provider || !provider->deliver) return rules.deliver_of_any();
  name = provider->name;
  return &*provider->deliver;
}

std::string site_of(std::string_view name, std::string_view provider) {
  return provider.empty() ? std::string(name) : fmt::format("{} for {}", name, provider);
}

std::shared_ptr<const dns::Route> local_route(const Deliver& deliver, std::string provider, int64_t now) {
  auto route = std::make_shared<dns::Route>();
  route->verdict = dns::Verdict::usable;
  route->explicit_hop = true;
  route->answered_ns = now;
  route->valid_until_ns = INT64_MAX;  // a reload asks anew
  if (deliver.to == Deliver::To::discard) {
    route->carriage = dns::Carriage::discard;
    route->handed_to = deliver.reply;
    route->site = site_of("discard:" + deliver.reply, provider);
  } else if (deliver.to == Deliver::To::file) {
    route->carriage = dns::Carriage::file;
    route->handed_to = deliver.path;
    route->site = site_of("file:" + deliver.path, provider);
  } else {
    route->carriage = dns::Carriage::lmtp;
    route->site = site_of("lmtp:" + deliver.path, provider);
    route->hosts.push_back({.name = deliver.path, .preference = 0, .addresses = {reactor::Address::unix_path(deliver.path)}});
  }
  route->provider = std::move(provider);
  return route;
}

}  // namespace

DeliveryAgent::DeliveryAgent(reactor::Io& io, config::Snapshot config, dns::Mx& mx, dns::Cache& cache, unsigned shard)
    : io_(io), config_(std::move(config)), mx_(mx), sts_(io, cache), next_number_(uint64_t{shard} << 48) {
  answer_.bind<&DeliveryAgent::on_answers>(this);
  make_tls_context();
  sts_.on_fault = [this](const std::string& domain, StsPolicies::Fault fault, std::string_view why) {
    using Fault = StsPolicies::Fault;
    TlsFailure failure;
    failure.result = fault == Fault::no_https    ? TlsResult::sts_policy_fetch_error
                     : fault == Fault::untrusted ? TlsResult::sts_webpki_invalid
                                                 : TlsResult::sts_policy_invalid;
    failure.reason = why;
    count_sts_failure(domain, std::move(failure));
  };
}

void DeliveryAgent::count_sts_failure(const std::string& domain, TlsFailure failure) {
  if (!config_->sends_tls_reports()) return;
  const StsPolicies::PolicyRef policy = sts_.known(domain);
  tls_counts_.add_failure(domain, policy ? report_policy(domain, *policy) : TlsReportPolicy{TlsReportPolicy::Type::sts, domain, {}, {}},
                          std::move(failure));
}

// A new one only for new authorities: with the old one go its sessions.
void DeliveryAgent::make_tls_context() {
  const auto& settings = config_->tls_client;
  // Shares the settings' life.
  static const auto none = std::make_shared<const std::string>();
  sts_.configure(settings ? std::shared_ptr<const std::string>(settings, &settings->ca_pem) : none,
                 config_->ipv6 != config::Ipv6::off, config_->allow_private_destinations);
  if (tls_ && settings && tls_settings_ && settings->ca_pem == tls_settings_->ca_pem) return;
  auto made = tls::ClientContext::make(settings ? *settings : tls::ClientSettings{});
  if (!made && tls_) {
    log::error("--tls-ca-file: {}; the old authorities stay", made.error().text);
    return;
  }
  if (!made) {
    log::error("--tls-ca-file: {}; no certificate will verify", made.error().text);
    made = tls::ClientContext::make({});
    if (!made) end_out_of_memory();
  }
  tls_ = std::move(*made);
  tls_settings_ = settings;
}

std::shared_ptr<tls::ClientContext> DeliveryAgent::tls_context(const config::HopCredentials* credentials) {
  if (!credentials || credentials->certificate.chain_pem.empty()) return tls_;
  auto& context = tls_with_certificate_[credentials->certificate.chain_pem + credentials->certificate.key_pem];
  if (!context) {
    tls::ClientSettings settings = config_->tls_client ? *config_->tls_client : tls::ClientSettings{};
    settings.certificate = credentials->certificate;
    auto made = tls::ClientContext::make(settings);
    if (!made) {  // they fitted together when they were read
      log::error("next hop's certificate: {}", made.error().text);
      return tls_;
    }
    context = std::move(*made);
  }
  return context;
}

DeliveryAgent::~DeliveryAgent() { answer_.cancel(); }

void DeliveryAgent::start(queue::Dispatcher& dispatcher) { dispatcher_ = &dispatcher; }

// A destination's hosts and its MTA-STS policy, looked up side by side.
struct DeliveryAgent::Resolving {
  queue::Destination* destination;
  config::TlsLevel level;
  int left = 1;
  dns::RouteRef route;
  StsPolicies::PolicyRef policy;
  int64_t policy_until_ns = INT64_MAX;
  bool policy_unknown = false;  // there may be one
  bool lmtp = false;            // the route is to the host of `deliver`
  bool elsewhere_known = false; // what the shaping file says of the domain itself
  std::string provider;         // that says so
};

void DeliveryAgent::resolved(const std::shared_ptr<Resolving>& both) {
  if (--both->left > 0) return;
  queue::Destination& destination = *both->destination;
  if (both->route->verdict != dns::Verdict::usable) return dispatcher_->on_route(destination, both->route);
  if (!both->elsewhere_known && !both->route->explicit_hop) {
    const Deliver* deliver = delivered_by_hosts(*config_, *both->route, destination.domain, both->provider);
    if (deliver && is_local(*deliver)) return answer(destination, local_route(*deliver, both->provider, io_.now()));
    if (deliver && deliver->to == Deliver::To::lmtp) {
      both->elsewhere_known = both->lmtp = true;
      both->left = 1;
      both->policy = nullptr;
      both->policy_unknown = false;
      return mx_.find_next_hop(deliver->hop.host, deliver->hop.port, [this, both](const dns::RouteRef& found) {
        both->route = found;
        resolved(both);
      });
    }
  }
  auto route = std::make_shared<dns::Route>(*both->route);
  route->valid_until_ns = std::min(route->valid_until_ns, both->policy_until_ns);
  if (both->lmtp) {
    route->carriage = dns::Carriage::lmtp;
    route->site = site_of("lmtp:" + route->site, both->provider);
    route->provider = both->provider;
    if (both->level == config::TlsLevel::mta_sts) both->level = config::TlsLevel::verified;
  }
  ask_tls(*route, destination.domain, both->level, both->policy.get(), destination.tls, both->policy_unknown);
  const bool by_policy = both->policy && both->policy->mode == StsPolicy::Mode::enforce && destination.tls == mail::TlsWish::none;
  if (by_policy && route->verdict == dns::Verdict::temporary && !both->route->hosts.empty()) {
    count_sts_failure(destination.domain, {.result = TlsResult::validation_failure, .mx = both->route->hosts[0].name,
                                           .reason = "no MX host is named by the policy"});
  }
  dispatcher_->on_route(destination, std::move(route));
}

void DeliveryAgent::resolve(queue::Destination& destination) {
  using config::TlsLevel;
  TlsLevel level = asked_level(*config_, destination.domain);
  // In a run beside the real one nothing may slip through: it goes ahead of smarthost and routes.
  const Deliver* deliver = delivered_by_domain(*config_, destination.domain);
  if (deliver && is_local(*deliver)) return answer(destination, local_route(*deliver, {}, io_.now()));
  const config::NextHop* hop = &config_->smarthost;
  if (const auto route = config_->routes.find(destination.domain); route != config_->routes.end()) {
    hop = &route->second;
  }
  const bool lmtp = deliver && deliver->to == Deliver::To::lmtp;
  if (lmtp) hop = &deliver->hop;
  // Policies are about MX hosts.
  if (!hop->empty() && level == TlsLevel::mta_sts) level = TlsLevel::verified;
  const auto both = std::make_shared<Resolving>(Resolving{.destination = &destination, .level = level, .route = {}, .policy = {}, .policy_unknown = false, .provider = {}});
  const auto done = [this, both](const dns::RouteRef& found) {
    both->route = found;
    resolved(both);
  };
  both->lmtp = lmtp;
  both->elsewhere_known = deliver != nullptr;
  const bool requires_tls = destination.tls == mail::TlsWish::required;
  const bool aside = sets_aside(destination.tls, level);
  const bool with_dane = requires_tls || (!aside && (level == TlsLevel::dane || level == TlsLevel::automatic));
  const bool with_sts = requires_tls || (!aside && (level == TlsLevel::mta_sts || level == TlsLevel::automatic));
  if (hop->empty() && with_sts && sts_.active() && dns::is_host_name("_mta-sts." + destination.domain)) {
    ++both->left;
    sts_.find(destination.domain, [this, both](const StsPolicies::PolicyRef& policy, int64_t valid_until_ns, bool unknown) {
      both->policy = policy;
      both->policy_until_ns = valid_until_ns;
      both->policy_unknown = unknown;
      resolved(both);
    });
  }
  if (hop->empty()) {
    mx_.find_hosts(destination.domain, done, with_dane);
  } else {
    mx_.find_next_hop(hop->host, hop->port, done, with_dane);
  }
}

queue::Lane* DeliveryAgent::open(queue::Site& site, unsigned source) {
  ASSERT(site.route != nullptr);
  if (site.route->carriage == dns::Carriage::discard || site.route->carriage == dns::Carriage::file) {
    hand_overs_.push_back(std::make_unique<HandOver>(*this, site.route, source));
    hand_overs_.back()->index = hand_overs_.size() - 1;
    ++stats_.lanes;
    return hand_overs_.back().get();
  }
  connections_.push_back(std::make_unique<Connection>(*this, site.route, site.key, source));
  connections_.back()->index = connections_.size() - 1;
  ++stats_.lanes;
  return connections_.back().get();
}

void DeliveryAgent::adopt(config::Snapshot config) {
  config_ = std::move(config);
  tls_with_certificate_.clear();
  make_tls_context();
}

void DeliveryAgent::abort() {
  for (const auto& connection : connections_) connection->abort();
  for (const auto& hand_over : hand_overs_) hand_over->abort();
}

void DeliveryAgent::answer(queue::Destination& destination, std::shared_ptr<const dns::Route> route) {
  answers_.emplace_back(&destination, std::move(route));
  io_.defer(answer_);
}

void DeliveryAgent::on_answers() {
  const auto answers = std::exchange(answers_, {});
  for (const auto& [destination, route] : answers) dispatcher_->on_route(*destination, route);
}

void DeliveryAgent::closed(HandOver& hand_over) {
  const size_t at = hand_over.index;
  if (at + 1 != hand_overs_.size()) {
    std::swap(hand_overs_[at], hand_overs_.back());
    hand_overs_[at]->index = at;
  }
  --stats_.lanes;
  hand_overs_.pop_back();
}

void DeliveryAgent::closed(Connection& connection) {
  const size_t index = connection.index;
  if (index + 1 != connections_.size()) {
    std::swap(connections_[index], connections_.back());
    connections_[index]->index = index;
  }
  --stats_.lanes;
  connections_.pop_back();
}

}  // namespace millrace::delivery
