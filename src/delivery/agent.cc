#include "delivery/agent.h"

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

DeliveryAgent::DeliveryAgent(reactor::Io& io, config::Snapshot config, dns::Mx& mx, dns::Cache& cache, unsigned shard)
    : io_(io), config_(std::move(config)), mx_(mx), sts_(io, cache), next_number_(uint64_t{shard} << 48) {
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

DeliveryAgent::~DeliveryAgent() = default;

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
};

void DeliveryAgent::resolved(const std::shared_ptr<Resolving>& both) {
  if (--both->left > 0) return;
  queue::Destination& destination = *both->destination;
  if (both->route->verdict != dns::Verdict::usable) return dispatcher_->on_route(destination, both->route);
  auto route = std::make_shared<dns::Route>(*both->route);
  route->valid_until_ns = std::min(route->valid_until_ns, both->policy_until_ns);
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
  const config::NextHop* hop = &config_->smarthost;
  if (const auto route = config_->routes.find(destination.domain); route != config_->routes.end()) {
    hop = &route->second;
  }
  // Policies are about MX hosts.
  if (!hop->empty() && level == TlsLevel::mta_sts) level = TlsLevel::verified;
  const auto both = std::make_shared<Resolving>(Resolving{.destination = &destination, .level = level, .route = {}, .policy = {}, .policy_unknown = false});
  const auto done = [this, both](const dns::RouteRef& found) {
    both->route = found;
    resolved(both);
  };
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
