#include "delivery/connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "config/shaping.h"
#include "auth/crypto.h"
#include "base/base64.h"
#include "base/log.h"
#include "delivery/agent.h"
#include "dsn/scope.h"
#include "queue/destination.h"

namespace millrace::delivery {

using events::Stage;
using queue::LaneEnd;
using reactor::kNoHandle;

namespace {

constexpr int64_t kMillisecond = 1'000'000;
// Of a lane that finds every address probed by others: about as long as a probe takes.
constexpr int64_t kProbedByOthersMs = 30'000;
// Connections in a row that end before the reply to their first MAIL, until the site rests.
constexpr uint32_t kMostBarren = 3;
// Bounced by one lane: because of a 5xx greeting (--bounce-on-5xx-greeting), or for want of TLS (REQUIRETLS).
constexpr int kMostBouncedAtOnce = 100;
// Tried by one lane before mail that requires TLS is given up; where there are more it waits.
constexpr size_t kMostTried = 5 * dns::kMostTargets;

config::Source source_at(const config::Config& config, unsigned index) {
  return index < config.sources.size() ? config.sources[index] : config::Source{};
}

bool is_in(const std::vector<reactor::Address>& list, const reactor::Address& address) {
  return std::find(list.begin(), list.end(), address) != list.end();
}

dns::Families families_of(const config::Config& config, const config::Source& source, bool ipv6_usable) {
  dns::Families families;
  const bool bound = !source.ipv4.empty() || !source.ipv6.empty();
  families.ipv4 = !bound || !source.ipv4.empty();
  families.ipv6 = ipv6_usable && config.ipv6 != config::Ipv6::off && (!bound || !source.ipv6.empty());
  families.ipv6_first = config.ipv6 == config::Ipv6::prefer;
  return families;
}

}  // namespace

Connection::Connection(DeliveryAgent& agent, std::shared_ptr<const dns::Route> route,
                       std::string_view site_key, unsigned source_index)
    : agent_(agent),
      io_(agent.io_),
      config_(agent.config_),
      route_(std::move(route)),
      site_key_(site_key),
      source_index_(source_index),
      source_(source_at(*config_, source_index)),
      stream_(io_, *this) {
  connect_.bind<&Connection::on_connected>(this);
  timer_.bind<&Connection::on_timer>(this);
  call_.bind<&Connection::on_start_or_wake>(this);
  turn_end_.bind<&Connection::on_turn_end>(this);
  began_ = io_.now();
  io_.defer(call_);
}

Connection::~Connection() {
  call_.cancel();
  turn_end_.cancel();
}

// ---- the queue's word

void Connection::wake() {
  woken_ = true;
  io_.defer(call_);
}

void Connection::retire() {
  retired_ = true;
  io_.defer(call_);
}

void Connection::abort() {
  retired_ = true;
  aborted_ = true;
  switch (state_) {
    case State::starting:
      io_.defer(call_);
      return;
    case State::connecting:
      io_.cancel(connect_);
      return;
    case State::conversing:
      if (session_->state() != SessionState::over) session_->on_end(ECONNABORTED, io_.now());
      stream_.close(true);
      return;
    case State::closing:
      stream_.close(true);
      return;
  }
}

void Connection::on_start_or_wake() {
  switch (state_) {
    case State::starting:
      if (retired_) return finish();
      in_the_clear_ = take_fallback();
      without_requiretls_ = route_->tls.requiretls && take_without_requiretls();
      choose_targets();
      return try_next();
    case State::connecting:
      if (retired_) io_.cancel(connect_);
      return;
    case State::conversing:
      if (retired_) {
        session_->retire(io_.now());
      } else if (std::exchange(woken_, false)) {
        session_->wake(io_.now());
      }
      return after_event();
    case State::closing:
      return;
  }
}

// ---- connecting

// Of the addresses that may be tried now and have not been in this round.
void Connection::choose_targets() {
  const auto skip = [this](const reactor::Address& address) {
    return !agent_.holds_.usable(source_index_, address, io_.now()) ||
           (in_the_clear_ && !is_in(tls_refusing_, address)) || is_in(tried_, address);
  };
  next_target_ = 0;
  const bool ipv6_usable = route_->explicit_hop || agent_.sources_ == nullptr || agent_.sources_->ipv6_usable(source_index_);
  targets_ = dns::choose_targets(*route_, families_of(*config_, source_, ipv6_usable), io_, skip);
  if (targets_.count == 0 && route_->explicit_hop && tried_.empty()) {
    // The operator named this very host: its family is as good as told.
    targets_ = dns::choose_targets(*route_, {.ipv4 = true, .ipv6 = true}, io_, skip);
  }
}

void Connection::try_next() {
  while (next_target_ < targets_.count) {
    const dns::Target& target = targets_.list[next_target_++];
    const int64_t now = io_.now();
    // Another lane may have failed there or begun a probe since.
    if (!agent_.holds_.usable(source_index_, target.address, now)) continue;
    peer_ = target.address;
    host_ = target.host->name;
    tls_policy_ = tls_policy(*config_, *route_, *target.host);
    if (peer_.is_unix()) {
      tls_policy_ = {};
      tls_policy_.level = config::TlsLevel::none;
      tls_policy_.name = "none";
    }
    if (!tls_policy_.blocked.empty()) {
      note_blocked();
      count_blocked(*target.host);
      continue;
    }
    // Others of its site refuse TLS; that changes nothing for this one.
    if (in_the_clear_ && !may_fall_back(tls_policy_)) continue;
    credentials_ = hop_credentials(*config_, *route_, host_);
    target_began_ = now;
    if (route_->tls.requiretls) tried_.push_back(peer_);
    ++agent_.stats_.connects;
    static const reactor::Address kUnbound;
    const reactor::Address& bound = peer_.is_unix() ? kUnbound : peer_.is_ipv6() ? source_.ipv6 : source_.ipv4;
    Result<reactor::Handle> socket = io_.open_socket(peer_, bound);
    if (!socket) {
      // Ours, not the address's: out of descriptors, or a source that this machine does not have.
      note_failure(Stage::connect, fmt::format("no socket from {} to {}: {}",
                                               bound.empty() ? "any address" : bound.host_string(),
                                               peer_.to_string(), socket.error().text));
      continue;
    }
    agent_.holds_.begin(source_index_, peer_);
    probing_ = true;
    connecting_ = *socket;
    state_ = State::connecting;
    timed_out_ = false;
    io_.connect(connect_, connecting_, peer_);
    arm(now + config_->connect_timeout_ms * kMillisecond);
    return;
  }

  if (leave_to_fallback()) return finish();
  if (begin_more_targets()) return try_next();
  if (leave_without_requiretls()) return finish();
  if (end_.stage == Stage::none) {
    // Not one was tried.
    end_.stage = Stage::connect;
    int64_t until = INT64_MAX;
    bool any = false;
    for (const dns::Host& host : route_->hosts) {
      for (const reactor::Address& address : host.addresses) {
        const int64_t held = agent_.holds_.until(source_index_, address);
        if (held == 0) continue;
        any = true;
        until = std::min(until, held);
      }
    }
    if (any) {
      const int64_t wait_ms = (until - io_.now()) / kMillisecond;
      end_.rest_ms = wait_ms > 0 ? wait_ms + 1 : kProbedByOthersMs;
      end_.reply = fmt::format("no address of {} answers", site_key_);
    } else {
      end_.reply = fmt::format("no address of {} is of a family that this source has", site_key_);
      if (agent_.sources_ != nullptr && !agent_.sources_->ipv6_usable(source_index_)) {
        const std::string wrong = agent_.sources_->wrong(source_index_);
        end_.reply += wrong.empty() ? "; whether IPv6 may be used is not known yet" : "; " + wrong;
      }
    }
  }
  end_.cause = LaneEnd::Cause::failed;
  if (all_decided()) {
    queue::RecipientResult why;
    why.scope = events::Scope::message;
    why.stage = Stage::starttls;
    why.enhanced = "5.7.10";
    why.reply = fmt::format("REQUIRETLS, and no host has TLS that is good for it: {}", unprotected_);
    bounce_all(why);
    end_.cause = LaneEnd::Cause::idle;  // it was about this mail, not about the hosts
  } else if (refused_5xx_ && config_->bounce_on_5xx_greeting) {
    // The operator wants a host that greets so to be the mail's end.
    queue::RecipientResult why;
    why.scope = events::Scope::source;
    why.stage = Stage::greeting;
    why.code = end_.code;
    why.enhanced = end_.enhanced;
    why.reply = end_.reply;
    bounce_all(why);
  }
  finish();
}

void Connection::on_connected(reactor::Completion& completion) {
  timer_.cancel();
  const reactor::Handle handle = std::exchange(connecting_, kNoHandle);
  if (completion.result == 0 && !retired_ && !timed_out_) return start_session(handle);
  io_.close(handle, true);
  if (retired_) {
    agent_.holds_.given_up(source_index_, peer_);
    probing_ = false;
    return finish();
  }
  connect_failed(timed_out_ ? "connect: timed out"
                            : fmt::format("connect: {}", std::strerror(-completion.result)));
}

void Connection::connect_failed(std::string why) {
  note_failure(Stage::connect, fmt::format("{}[{}]: {}", host_, peer_.to_string(), why));
  try_next();
}

// What is asked of TLS cannot be had of this host, and nothing is asked of it.
void Connection::note_blocked() {
  ++agent_.stats_.tls_blocked;
  tls_unclear_ = true;
  undecided_ = true;
  end_.stage = Stage::starttls;
  end_.scope = events::Scope::destination;
  end_.code = 0;
  end_.enhanced.clear();
  end_.reply = fmt::format("{}: {}", host_, tls_policy_.blocked);
  end_.mx = host_;
  end_.peer = peer_;
}

// This address is of no use now.
void Connection::note_failure(Stage stage, std::string reply) {
  if (probing_) {
    ++agent_.stats_.connect_failures;
    agent_.holds_.failed(source_index_, peer_, target_began_, io_.now(), config_->hold_ms);
    probing_ = false;
  }
  // Whether or not its address is held now.
  if (stage == Stage::connect) undecided_ = true;
  end_.stage = stage;
  end_.scope = stage == Stage::connect || stage == Stage::starttls || stage == Stage::auth ? events::Scope::destination : events::Scope::source;
  end_.reply = std::move(reply);
  end_.mx = host_;
  end_.peer = peer_;
}

SessionOptions Connection::session_options() const {
  SessionOptions options;
  options.ehlo_name = source_.ehlo_name.empty() ? config_->hostname : source_.ehlo_name;
  options.pipelining = config_->pipelining;
  options.chunking = config_->chunking;
  options.lmtp = route_->carriage == dns::Carriage::lmtp;
  options.uncertain = std::max(config_->uncertain_per_connection, 1u);
  const bool limited = !route_->explicit_hop || config_->messages_per_connection_given;
  options.messages_most = limited ? config_->messages_per_connection : 0;
  if (messages_most) options.messages_most = *messages_most;
  const uint32_t learned = agent_.close_limits_.limit(site_key_, source_index_, io_.now());
  if (learned > 0 && (options.messages_most == 0 || learned < options.messages_most)) {
    options.messages_most = learned;
  }
  using Tls = SessionOptions::Tls;
  const bool wanted = tls_policy_.level != config::TlsLevel::none && !in_the_clear_;
  options.tls = tls_policy_.from_connect ? Tls::from_connect
                : !wanted                 ? Tls::off
                : may_fall_back(tls_policy_) ? Tls::offered
                                             : Tls::required;
  options.authenticate = credentials_ && credentials_->authenticates();
  options.requiretls = tls_policy_.requiretls && !without_requiretls_;
  options.greeting_timeout_ns = config_->greeting_timeout_ms * kMillisecond;
  options.mail_timeout_ns = config_->mail_timeout_ms * kMillisecond;
  options.rcpt_timeout_ns = config_->rcpt_timeout_ms * kMillisecond;
  options.data_initiation_timeout_ns = config_->data_initiation_timeout_ms * kMillisecond;
  options.data_block_timeout_ns = config_->data_block_timeout_ms * kMillisecond;
  options.data_done_timeout_ns = config_->data_done_timeout_ms * kMillisecond;
  options.idle_timeout_ns = config_->idle_timeout_ms * kMillisecond;
  options.shaping = config_->shaping_rules.get();
  if (options.shaping && site) options.provider = options.shaping->provider(site->provider);
  return options;
}

void Connection::start_session(reactor::Handle handle) {
  connect_ms_ = static_cast<uint32_t>((io_.now() - target_began_) / kMillisecond);
  Result<reactor::Address> local = io_.local_address(handle);
  source_text_ = local ? local->host_string() : std::string();
  peer_text_ = peer_.to_string();
  number_ = ++agent_.next_number_;
  state_ = State::conversing;
  session_.emplace(static_cast<SessionOwner&>(*this), session_options());
  stream_.start(handle, reactor::BufferGroup::delivery);
  if (tls_policy_.from_connect) begin_tls();
  session_->greet(io_.now(), host_);
  after_event();
}

// ---- TLS

// Whether mail may go to this host in the clear when TLS does not come about.
bool Connection::may_fall_back(const TlsPolicy& policy) const {
  if (policy.level != config::TlsLevel::opportunistic) return false;
  return policy.not_required || !agent_.tls_memory_.remembers(site_key_, io_.wall_ms());
}

// All targets have been tried: the next connection tries them in the clear, if each that answered refused TLS or
// failed at it with an alert, and nothing forbids it. To go on here would be a connection that no rate counts.
bool Connection::leave_to_fallback() {
  if (in_the_clear_ || retired_ || tls_unclear_ || tls_refusing_.empty()) return false;
  auto& fallbacks = agent_.fallbacks_;
  if (fallbacks.size() >= DeliveryAgent::kMostFallbacks) {
    std::erase_if(fallbacks, [now = io_.now()](const auto& item) {
      return now - item.second.refused_ns >= DeliveryAgent::kFallbackNs;
    });
  }
  DeliveryAgent::Fallback& fallback = fallbacks[{site, source_index_}];
  if (io_.now() - fallback.refused_ns >= DeliveryAgent::kFallbackNs) fallback.connections = 0;
  ++fallback.connections;
  fallback.refusal = tls_refusal_;
  fallback.refusing = std::move(tls_refusing_);
  fallback.refused_ns = io_.now();
  end_ = {};
  end_.cause = LaneEnd::Cause::idle;
  return true;
}

// Every host has been tried (RFC 8689 4.2.1), and none may do another time what REQUIRETLS asks for.
bool Connection::all_decided() const {
  if (!route_->tls.requiretls || retired_ || undecided_ || unprotected_.empty()) return false;
  return std::none_of(route_->hosts.begin(), route_->hosts.end(), [&](const dns::Host& host) {
    return std::any_of(host.addresses.begin(), host.addresses.end(), [&](const reactor::Address& address) {
      return agent_.holds_.until(source_index_, address) != 0;
    });
  });
}

// What is decided so far rests on no more than kMostTargets addresses: those that were left out are asked, too, before mail
// bounces for want of TLS.
bool Connection::begin_more_targets() {
  if (!all_decided()) return false;
  choose_targets();
  if (targets_.count == 0) return false;
  if (tried_.size() < kMostTried) return true;
  undecided_ = true;
  targets_.count = 0;
  return false;
}

// No host offers REQUIRETLS, and one has good TLS: reports may go there all the same (RFC 8689 5), and what else waits learns
// from Session::fits() that it may not. By another connection, so that what limits connections and their rate counts it.
bool Connection::leave_without_requiretls() {
  if (without_requiretls_ || !requiretls_missing_ || !all_decided()) return false;
  auto& lacking = agent_.lacking_requiretls_;
  if (lacking.size() >= DeliveryAgent::kMostFallbacks) {
    std::erase_if(lacking, [now = io_.now()](const auto& item) {
      return now - item.second.found_ns >= DeliveryAgent::kFallbackNs;
    });
  }
  if (lacking.size() >= DeliveryAgent::kMostFallbacks && !lacking.contains({site, source_index_})) return false;
  DeliveryAgent::Lacking& of = lacking[{site, source_index_}];
  if (io_.now() - of.found_ns >= DeliveryAgent::kFallbackNs) of.connections = 0;
  ++of.connections;
  of.found_ns = io_.now();
  end_ = {};
  end_.cause = LaneEnd::Cause::idle;
  return true;
}

// Whether this is such a connection.
bool Connection::take_without_requiretls() {
  const auto at = agent_.lacking_requiretls_.find({site, source_index_});
  if (at == agent_.lacking_requiretls_.end()) return false;
  const bool over = io_.now() - at->second.found_ns >= DeliveryAgent::kFallbackNs;
  if (over || --at->second.connections == 0) agent_.lacking_requiretls_.erase(at);
  return !over;
}

// A connection of such a route has ended before its first transaction.
void Connection::note_requiretls_end() {
  const tls::Engine* engine = stream_.tls();
  if (session_->lacks_requiretls()) {
    requiretls_missing_ = true;
    if (unprotected_.empty()) unprotected_ = session_->reply();
    if (probing_) agent_.holds_.succeeded(source_index_, peer_);
    probing_ = false;
    return;
  }
  const bool refused = engine == nullptr ? session_->tls_refused() && session_->code() / 100 != 4
                                         : engine->failure() == tls::Failure::certificate ||
                                               engine->failure() == tls::Failure::no_common ||
                                               engine->failure() == tls::Failure::peer_alert;
  if (refused) {
    unprotected_ = fmt::format("{}: {}", host_, session_->reply());
  } else {
    undecided_ = true;
  }
}

// Whether this is such a connection. What is asked of TLS may have changed since.
bool Connection::take_fallback() {
  const auto at = agent_.fallbacks_.find({site, source_index_});
  if (at == agent_.fallbacks_.end()) return false;
  const DeliveryAgent::Fallback fallback = at->second;
  const bool over = io_.now() - fallback.refused_ns >= DeliveryAgent::kFallbackNs;
  if (over || --at->second.connections == 0) agent_.fallbacks_.erase(at);
  if (over) return false;
  const auto goes = [&](const dns::Host& host) {
    const bool refused = std::any_of(host.addresses.begin(), host.addresses.end(), [&](const reactor::Address& address) {
      return is_in(fallback.refusing, address) && agent_.holds_.usable(source_index_, address, io_.now());
    });
    return refused && may_fall_back(tls_policy(*config_, *route_, host));
  };
  if (std::none_of(route_->hosts.begin(), route_->hosts.end(), goes)) return false;
  tls_refusal_ = fallback.refusal;
  tls_refusing_ = fallback.refusing;
  return true;
}

void Connection::begin_tls() {
  tls::ClientOptions options;
  options.server_name = tls_policy_.server_name;
  options.verify = tls_policy_.level == config::TlsLevel::verified;
  options.dane = tls_policy_.dane;
  options.channel_binding = credentials_ && credentials_->authenticates();
  // All that a session was made and checked under.
  tls_session_key_ = fmt::format("{}|{}|{}|{}|{}", source_index_, session_options().ehlo_name, peer_.to_string(), host_,
                                 static_cast<int>(tls_policy_.level));
  if (tls_policy_.dane) {
    for (const std::string& name : tls_policy_.dane->names) tls_session_key_ += "|" + name;
    for (const tls::TlsaRecord& record : tls_policy_.dane->records) tls_session_key_ += "|" + to_string(record);
  }
  if (credentials_) tls_session_key_ += "|" + credentials_->user;
  options.session_key = tls_session_key_;
  stream_.start_tls(tls::Engine::connect(agent_.tls_context(credentials_), std::move(options)));
}

void Connection::start_tls() { begin_tls(); }

void Connection::on_secure() {
  AgentStats& stats = agent_.stats_;
  const tls::Engine::Info& info = stream_.tls()->info();
  ++stats.tls_handshakes;
  if (info.resumed) ++stats.tls_resumed;
  if (info.verified != tls::Verified::ok) ++stats.tls_unverified;
  if (tls_policy_.dane) ++stats.tls_dane;
  if (tls_policy_.name == "mta-sts") ++stats.tls_mta_sts;
  session_->secured(io_.now());
  after_event();
}

std::unique_ptr<auth::ClientExchange> Connection::authenticate(const smtp::Capabilities& capabilities, std::string& why) {
  using auth::ClientMechanism;
  const tls::Engine* engine = stream_.tls();
  if (engine == nullptr || engine->state() != tls::Engine::State::open || engine->info().verified != tls::Verified::ok) {
    why = "credentials go only to a host whose certificate is good for its name";
    return nullptr;
  }
  const config::HopCredentials& credentials = *credentials_;
  const std::string& binding = engine->channel_binding();
  const std::pair<ClientMechanism, bool> choices[] = {
      {ClientMechanism::scram_sha_256_plus, !credentials.token && capabilities.auth_scram_plus && !binding.empty()},
      {ClientMechanism::scram_sha_256, !credentials.token && capabilities.auth_scram},
      {ClientMechanism::plain, !credentials.token && capabilities.auth_plain},
      {ClientMechanism::login, !credentials.token && capabilities.auth_login},
      {ClientMechanism::oauthbearer, credentials.token && capabilities.auth_oauthbearer},
      {ClientMechanism::xoauth2, credentials.token && capabilities.auth_xoauth2},
  };
  for (const auto& [mechanism, possible] : choices) {
    const auto& allowed = credentials.mechanisms;
    if (!possible || (!allowed.empty() && std::find(allowed.begin(), allowed.end(), mechanism) == allowed.end())) continue;
    auth::ClientExchange::Facts facts;
    facts.user = credentials.user;
    facts.password = credentials.secret;
    facts.host = host_;
    facts.port = peer_.port();
    facts.nonce = to_base64(auth::random_octets(18));
    facts.channel_binding = binding;
    facts.plus_offered = capabilities.auth_scram_plus;
    return std::make_unique<auth::ClientExchange>(mechanism, std::move(facts));
  }
  why = fmt::format("{} offers no mechanism that the credentials are for", host_);
  return nullptr;
}

// What the end of a connection at STARTTLS says about TLS there.
void Connection::note_tls_end(Ending ending) {
  AgentStats& stats = agent_.stats_;
  const tls::Engine* engine = stream_.tls();
  bool refused = false;
  if (engine == nullptr) {
    refused = ending == Ending::refused && session_->tls_refused();
    if (refused) ++(session_->code() == 0 ? stats.tls_not_offered : stats.tls_refused);
  } else {
    switch (engine->failure()) {
      case tls::Failure::no_common:
        ++stats.tls_failed_no_common;
        refused = true;
        break;
      case tls::Failure::certificate:
        ++stats.tls_failed_certificate;
        break;
      case tls::Failure::peer_alert:
        ++stats.tls_failed_alert;
        refused = true;
        break;
      case tls::Failure::not_tls:
      case tls::Failure::protocol:
        // We send an alert then; what came may have been put there by anybody.
        ++stats.tls_failed_protocol;
        break;
      case tls::Failure::none:
        ++stats.tls_failed_ended;
        break;
    }
    refused = refused || tls_policy_.not_required;  // RFC 8689 4.2.2: whatever becomes of TLS
  }
  if (engine == nullptr) {
    if (session_->tls_refused()) {
      count_tls_failure(TlsResult::starttls_not_supported, {});
    } else {
      count_tls_failure(TlsResult::validation_failure, "the connection ended at STARTTLS");
    }
  } else if (engine->failure() == tls::Failure::certificate) {
    count_tls_failure(result_of(engine->info().verified), tls::to_string(engine->info().verified));
  } else {
    count_tls_failure(TlsResult::validation_failure, engine->failure() == tls::Failure::none ? "the connection ended in the handshake"
                                                                                          : tls::to_string(engine->failure()));
  }
  if (refused && may_fall_back(tls_policy_)) {
    tls_refusing_.push_back(peer_);
    tls_refusal_ = session_->reply();
    // Its address is as good as ever, for mail in the clear.
    if (probing_) agent_.holds_.succeeded(source_index_, peer_);
    probing_ = false;
  } else {
    tls_unclear_ = true;
    // It answers well, only not as this mail's policy wants it: others that ask less of it are served.
    const bool by_policy = refused || (engine != nullptr && engine->failure() == tls::Failure::certificate);
    if (by_policy && probing_) {
      agent_.holds_.succeeded(source_index_, peer_);
      probing_ = false;
    }
  }
}

// ---- TLS reports (RFC 8460)

// Of next hops that the operator named, and of mail that asks for itself, nobody wants a report. In the clear: the connection
// that was refused TLS has been counted. One that we cut short says nothing about its peer.
bool Connection::counts_tls() const {
  return config_->sends_tls_reports() && !aborted_ && !route_->explicit_hop && !in_the_clear_ && !tls_policy_.requiretls &&
         !tls_policy_.not_required && tls_policy_.level != config::TlsLevel::none;
}

TlsReportPolicy Connection::report_policy_of(std::string_view domain) const {
  using Type = TlsReportPolicy::Type;
  TlsReportPolicy policy;
  policy.domain = domain;
  const bool sts = tls_policy_.name == "mta-sts" || tls_policy_.name == "mta-sts-testing";
  if (sts) {
    const StsPolicies::PolicyRef known = agent_.sts_.known(policy.domain);
    if (known) return report_policy(domain, *known);
    policy.type = Type::sts;
    return policy;
  }
  if (!tls_policy_.dane && tls_policy_.name != "dane-unusable" && tls_policy_.blocked.empty()) return policy;
  policy.type = Type::tlsa;
  for (const dns::Host& host : route_->hosts) {
    if (host.name != host_) continue;
    if (!host.dane.base.empty()) policy.domain = host.dane.base;
    for (const tls::TlsaRecord& record : host.dane.records) policy.strings.push_back(to_string(record));
    break;
  }
  return policy;
}

TlsFailure Connection::tls_failure(TlsResult result, std::string_view reason) const {
  TlsFailure failure;
  failure.result = result;
  failure.sending_ip = source_text_;
  failure.mx = host_;
  failure.receiving_ip = peer_.host_string();
  failure.reason = reason;
  return failure;
}

// Once, however many addresses it has.
void Connection::count_blocked(const dns::Host& host) {
  if (std::find(blocked_counted_.begin(), blocked_counted_.end(), host.name) != blocked_counted_.end()) return;
  blocked_counted_.push_back(host.name);
  source_text_.clear();
  switch (host.dane.state) {
    case dns::Dane::State::unknown: return count_tls_failure(TlsResult::dnssec_invalid, {});
    case dns::Dane::State::none: return count_tls_failure(TlsResult::dane_required, {});
    case dns::Dane::State::records: return count_tls_failure(TlsResult::tlsa_invalid, {});
  }
}

// Before any mail went: it is every domain's that waits for such a connection.
void Connection::count_tls_failure(TlsResult result, std::string_view reason) {
  constexpr size_t kMostDomains = 20;
  if (!counts_tls()) return;
  std::vector<std::string_view> domains;
  agent_.dispatcher_->waiting_domains(*this, kMostDomains, domains);
  for (std::string_view domain : domains) {
    agent_.tls_counts_.add_failure(domain, report_policy_of(domain), tls_failure(result, reason));
  }
}

// The conversation has begun.
void Connection::note_tls_outcome() {
  counting_ = counts_tls();
  tls_fault_.reset();
  last_counted_.clear();
  counted_.clear();
  if (!counting_) return;
  if (!session_->secure()) {
    tls_fault_ = tls_failure(TlsResult::starttls_not_supported, {});
    return;
  }
  const tls::Verified verified = stream_.tls()->info().verified;
  if (tls_policy_.name == "dane-unusable") {
    tls_fault_ = tls_failure(TlsResult::tlsa_invalid, {});
  } else if (tls_policy_.name == "mta-sts-testing" && verified != tls::Verified::ok) {
    tls_fault_ = tls_failure(result_of(verified), tls::to_string(verified));
  }
}

void Connection::count_session(std::string_view domain) {
  last_counted_ = domain;
  if (std::find(counted_.begin(), counted_.end(), domain) != counted_.end()) return;
  counted_.emplace_back(domain);
  const TlsReportPolicy policy = report_policy_of(domain);
  if (tls_fault_) return agent_.tls_counts_.add_failure(domain, policy, *tls_fault_);
  if (tls_policy_.name == "mta-sts-testing") {
    const StsPolicies::PolicyRef known = agent_.sts_.known(last_counted_);
    if (known && !known->allows(host_)) {
      return agent_.tls_counts_.add_failure(
          domain, policy, tls_failure(TlsResult::validation_failure, "the policy does not name this MX host"));
    }
  }
  agent_.tls_counts_.add_success(domain, policy);
}

// ---- conversing

void Connection::on_data(char* data, size_t size, reactor::BufferRef) {
  session_->receive({data, size}, io_.now());
  after_event();
}

void Connection::on_sent() {
  session_->on_sent(io_.now());
  after_event();
}

void Connection::on_end(int error) {
  const tls::Engine* engine = stream_.tls();
  if (engine != nullptr && engine->failure() != tls::Failure::none) {
    session_->tls_failed(engine->error(), io_.now());
  } else {
    session_->on_end(error, io_.now());
  }
  after_event();
}

void Connection::on_timer() {
  switch (state_) {
    case State::starting:
    case State::closing:
      return;
    case State::connecting:
      timed_out_ = true;
      io_.cancel(connect_);
      return;
    case State::conversing:
      session_->on_timeout(io_.now());
      return after_event();
  }
}

void Connection::on_turn_end() {
  if (state_ != State::conversing) return;
  session_->on_turn_end(io_.now());
  after_event();
}

void Connection::after_event() {
  if (state_ != State::conversing) return;
  if (session_->late_reply()) io_.defer(turn_end_);
  const int64_t deadline = session_->deadline();
  // A later deadline is left to the timer's coming too early.
  if (!timer_.armed() || deadline < timer_.deadline) arm(deadline);
}

void Connection::arm(int64_t deadline) {
  if (deadline == INT64_MAX) {
    timer_.cancel();
  } else {
    io_.timers().arm(timer_, deadline);
  }
}

queue::Attempt* Connection::take() {
  if (retired_) return nullptr;
  queue::Attempt* attempt = agent_.dispatcher_->take(*this);
  if (counting_ && attempt != nullptr && attempt->domain != last_counted_) count_session(attempt->domain);
  return attempt;
}

void Connection::finished(queue::Attempt& attempt) {
  ++agent_.stats_.messages;
  attempt.peer = peer_;
  attempt.peer_text = peer_text_;
  attempt.source_text = source_text_;
  attempt.ehlo_name = source_.ehlo_name.empty() ? config_->hostname : source_.ehlo_name;
  const tls::Engine* engine = stream_.tls();
  attempt.tls_version = engine != nullptr ? engine->info().version : std::string_view();
  attempt.tls_suite = engine != nullptr ? engine->info().suite : std::string_view();
  attempt.tls_verified = engine != nullptr ? tls::to_string(engine->info().verified) : std::string_view();
  attempt.tls_reason.clear();
  attempt.tls_policy = tls_policy_.name;
  attempt.transport = route_->carriage == dns::Carriage::lmtp ? std::string_view("lmtp") : std::string_view();
  if (engine == nullptr) {
    attempt.tls_reason = in_the_clear_                                      ? tls_refusal_
                         : tls_policy_.level == config::TlsLevel::none ? "TLS is off"
                                                                       : "STARTTLS not offered";
  }
  attempt.session = number_;
  attempt.connect_ms = connect_ms_;
  agent_.dispatcher_->finished(attempt);
}

void Connection::ready() {
  ++agent_.stats_.sessions;
  agent_.holds_.succeeded(source_index_, peer_);
  probing_ = false;
  if (session_->secure()) {
    const int64_t wall_ms = io_.wall_ms();
    agent_.fallbacks_.erase({site, source_index_});
    if (!route_->explicit_hop && agent_.tls_memory_.completed(site_key_, wall_ms) && agent_.on_tls_news) {
      agent_.on_tls_news(TlsMemory::key(site_key_), wall_ms);
    }
  } else {
    ++agent_.stats_.plaintext_sessions;
    if (session_->tls_refused()) ++agent_.stats_.tls_not_offered;
  }
  note_tls_outcome();
  agent_.dispatcher_->lane_ready(*this);
}

void Connection::send(std::span<const iovec> parts) { stream_.send(parts); }

uint64_t Connection::unsent() const { return stream_.unsent(); }

void Connection::over() {
  state_ = State::closing;
  timer_.cancel();
  turn_end_.cancel();
  stream_.close();
}

// ---- the end

void Connection::on_closed() {
  ASSERT(session_ && session_->state() == SessionState::over);
  session_->settle(stream_.unsent(), io_.now());
  const Ending ending = session_->ending();
  const Stage stage = session_->stage();
  const bool before_mail = stage == Stage::greeting || stage == Stage::ehlo || stage == Stage::starttls || stage == Stage::auth;
  // Not what we ended ourselves, and 421 is about all of the connection.
  if (stage == Stage::starttls && ending != Ending::done && ending != Ending::told_to_slow) note_tls_end(ending);

  if (before_mail && ending != Ending::told_to_slow && ending != Ending::done) {
    refused_5xx_ = stage == Stage::greeting && session_->code() / 100 == 5;
    if (stage == Stage::auth) {
      ++agent_.stats_.auth_failures;
      log::warning("{}[{}] does not let us in: {}; its mail waits", host_, peer_text_, session_->reply());
    }
    if (route_->tls.requiretls) note_requiretls_end();
    note_failure(stage, session_->reply());
    end_.code = session_->code();
    end_.enhanced = session_->enhanced();
    session_.reset();
    if (retired_) return finish();
    return try_next();
  }

  end_ = {};
  if (session_->messages() > 0 || stage != Stage::mail) agent_.close_limits_.note_fruitful(site_key_, source_index_);
  switch (ending) {
    case Ending::none:
      UNREACHABLE();
    case Ending::done:
      end_.cause = LaneEnd::Cause::idle;
      break;
    case Ending::peer_closed:
      end_.cause = session_->ended_idle() ? LaneEnd::Cause::idle : LaneEnd::Cause::peer_limit;
      if (!session_->ended_idle()) {
        agent_.close_limits_.note_close(site_key_, source_index_, session_->messages(), io_.now());
      }
      break;
    case Ending::told_to_slow:
      end_.cause = LaneEnd::Cause::told_to_slow;
      end_.scope = session_->verdict().scope;
      end_.rest_ms = session_->verdict().rest_ms;
      break;
    case Ending::lost:
      ++agent_.stats_.lost;
      end_.cause = LaneEnd::Cause::lost;
      // Nothing was said about a message: silence rests the site at once, a close or reset after several.
      if (session_->started() == 1 && session_->messages() == 0 && stage == Stage::mail &&
          (agent_.close_limits_.note_barren(site_key_, source_index_) >= kMostBarren || !session_->closed_by_peer())) {
        end_.cause = LaneEnd::Cause::failed;
      }
      break;
    case Ending::protocol:
    case Ending::refused:
      ++agent_.stats_.protocol_errors;
      end_.cause = LaneEnd::Cause::failed;
      break;
  }
  if (probing_) {  // retired, or told to slow down by the greeting: it answers, after all
    if (ending == Ending::done) {
      agent_.holds_.given_up(source_index_, peer_);
    } else {
      agent_.holds_.succeeded(source_index_, peer_);
    }
    probing_ = false;
  }
  end_.asks = session_->verdict().asks;
  if (ending != Ending::done) {
    end_.stage = stage;
    end_.code = session_->code();
    end_.enhanced = session_->enhanced();
    end_.reply = session_->reply();
  }
  end_.mx = host_;
  end_.peer = peer_;
  end_.messages = session_->messages();
  finish();
}

// `why`: all but the action and the class, which are the same for all.
void Connection::bounce_all(const queue::RecipientResult& why) {
  for (int i = 0; i < kMostBouncedAtOnce; ++i) {
    queue::Attempt* attempt = agent_.dispatcher_->take(*this);
    if (attempt == nullptr) return;
    for (queue::RecipientResult& result : attempt->results) {
      result = why;
      result.action = queue::Action::bounce;
      result.bounce_class = dsn::to_string(dsn::Category::policy_related);
    }
    attempt->mx = end_.mx;
    attempt->session_message = static_cast<uint32_t>(i) + 1;
    attempt->transaction_ms = 0;
    finished(*attempt);
  }
}

void Connection::finish() {
  if (retired_ && end_.cause == LaneEnd::Cause::failed) end_.cause = LaneEnd::Cause::idle;
  agent_.dispatcher_->lane_closed(*this, end_);
  agent_.closed(*this);
}

}  // namespace millrace::delivery
