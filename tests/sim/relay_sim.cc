// The whole relay in simulation: every shard of a relay::Core between scripted senders and receivers, with
// faults of the network, the disk, the name servers and the power, all of it drawn from one seed; and
// checkers for the promises, apart from the scripts. docs/simulation.md tells what is checked and how.
//
//   relay_sim [--seeds A-B] [--jobs N] [--keep-going]
//                                            each seed in a process of its own, N at a time (by default one a core);
//                                            ends at the first that fails
//   relay_sim --forever [--seeds A-]         from A, by default the time of day, until one fails
//   relay_sim --seed N [--messages M] [--without KIND,...]
//                                            one seed in this process, with the relay's log and every event,
//                                            with fewer messages and kinds of trouble if so told
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <malloc.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/assert.h"
#include "base/base64.h"
#include "base/log.h"
#include "certificate.h"
#include "config/parse.h"
#include "config/shaping.h"
#include "dns/model.h"
#include "leave.h"
#include "ledger.h"
#include "mail/spool_id.h"
#include "reactor/sim.h"
#include "receiver.h"
#include "relay/core.h"
#include "sender.h"
#include "shaping/arbiter.h"
#include "tls/x509.h"

namespace millrace::sim {
namespace {

using reactor::Address;
using reactor::Crash;

constexpr int64_t kMillisecond = 1'000'000;
constexpr int64_t kSecond = 1'000 * kMillisecond;
constexpr int64_t kHour = 3'600 * kSecond;
constexpr int64_t kPauseSettles = 120 * kSecond;  // transactions under way when a command comes end within it
constexpr unsigned kSeedSeconds = 60;  // of processor time: past it a seed hangs
// What a crash may lose of the outcomes that receivers have confirmed: they are synced within 100 ms of the
// reply's arrival, and a disk that does not stall takes little more. Plan adds how long a reply is under way.
constexpr int64_t kUnsyncedNs = 500 * kMillisecond;

// ---- what a seed decides --------------------------------------------------------------------------

enum class Fate : uint8_t {
  well,      // with the misbehaviour of its receiver
  refused,   // nobody listens until the end
  silent,    // accepts, and says nothing until the end
  no_route,  // SERVFAIL until the end
  missing,   // NXDOMAIN for ever
};
const char* to_string(Fate fate) {
  switch (fate) {
    case Fate::well: return "well";
    case Fate::refused: return "refused";
    case Fate::silent: return "silent";
    case Fate::no_route: return "no route";
    case Fate::missing: return "missing";
  }
  return "?";
}

struct Site {
  Fate fate = Fate::well;
  unsigned hosts = 1;    // receivers, one address each
  unsigned domains = 1;  // hosted there
  // DANE: every second domain is signed, and the hosts' TLSA records are right, or wrong until faults end.
  enum class Dane : uint8_t { none, right, wrong } dane = Dane::none;
  // MTA-STS: every second domain has a policy. It names the last host only, or all of them; and with `wrong_names` the hosts'
  // certificates are not good for their names, so that until faults end an enforced policy lets nothing go. Then there is a
  // new one that enforces nothing.
  enum class Sts : uint8_t { absent, none, testing, enforce } sts = Sts::absent;
  bool last_host_only = false, wrong_names = false;
  ReceiverBehaviour behaviour;
};

const char* to_string(Site::Sts mode) {
  switch (mode) {
    case Site::Sts::absent: return "absent";
    case Site::Sts::none: return "none";
    case Site::Sts::testing: return "testing";
    case Site::Sts::enforce: return "enforce";
  }
  return "?";
}

// What an operator does, at a time after the start.
struct Act {
  enum class Kind : uint8_t { command, reload, clock } kind = Kind::command;
  int64_t at_ns = 0;
  queue::Command command = queue::Command::pause;
  uint64_t target = 0;      // a domain or a message, by its number
  bool by_sender = false;
  int64_t step_ms = 0;      // of the clock
  uint64_t draw = 0;        // for what a reload changes
};

// Kinds of trouble that a replay may leave out (--without), to find what a failure needs.
constexpr const char* kKinds[] = {"crashes", "network", "receivers", "senders", "dns", "full", "disk", "flips",
                                  "operator", "reload", "clock", "rates", "sources", "shaping", "tls", "sts"};
struct Less {
  std::set<std::string> without;
  unsigned messages = UINT32_MAX;
};

// A shaping file: the first two sites are one provider. 0: not written.
struct Shaping {
  bool on = false;
  unsigned others = 0;    // connections to each other site, from each source
  unsigned provider = 0;  // to the provider, from each source
  unsigned total = 0;     // to it from all sources
  unsigned source = 0;    // from the first source
  unsigned messages = 0, recipients = 0;  // of a connection and of a transaction with the provider
  config::Rate connects{};  // to the provider, from each source
  // At the provider, from all sources.
  unsigned in_flight = 0;
  config::Rate attempts{}, accepted{}, addressed{}, octets{};
  bool counted() const {
    return on && (attempts.limited() || accepted.limited() || addressed.limited() || octets.limited());
  }
  unsigned tenants = 0;     // mail is of three tenants and two jobs, with weights and priorities of this draw
  std::string text() const;
};

std::string Shaping::text() const {
  std::string text;
  auto number = [&](const char* key, unsigned value) {
    if (value > 0) text += fmt::format("{} = {}\n", key, value);
  };
  auto rate = [&](const char* key, const config::Rate& value) {
    if (value.limited()) text += fmt::format("{} = \"{}/{}s\"\n", key, value.count, value.period_ms / 1'000);
  };
  text += "[default]\n";
  number("connections", others);
  text += "[provider.both]\nmx = [\"*.d0.example\", \"*.d1.example\"]\n";
  number("connections", provider);
  number("messages-per-connection", messages);
  number("recipients-per-transaction", recipients);
  rate("connect-rate", connects);
  text += "[provider.both.total]\n";
  number("connections", total);
  number("in-flight", in_flight);
  rate("attempt-rate", attempts);
  rate("message-rate", accepted);
  rate("recipient-rate", addressed);
  rate("byte-rate", octets);
  if (source > 0) {
    text += "[source.\"192.0.2.1\"]\n";
    number("connections", source);
  }
  if (tenants > 0) {
    text += "[[rule]]\nmatch = { sender = \"s*1@*\" }\ntenant = \"one\"\njob = \"a\"\n";
    text += "[[rule]]\nmatch = { sender = \"s*2@*\" }\ntenant = \"one\"\njob = \"b\"\n";
    text += "[[rule]]\nmatch = { sender = \"s*3@*\" }\ntenant = \"two\"\n";
    text += fmt::format("[tenant.one]\nweight = {}\n[tenant.two]\npriority = \"{}\"\n[job.a]\nweight = {}\npriority = \"{}\"\n",
                        1 + tenants % 5, tenants % 2 ? "transactional" : "bulk", 1 + tenants % 3, tenants % 4 > 1 ? "transactional" : "bulk");
  }
  return text;
}

void set_shaping(config::Config& config, const Shaping& shaping) {
  auto rules = config::Shaping::parse(shaping.on ? shaping.text() : "", "shaping.toml", config.sources, config.destination_rate);
  ASSERT(rules.ok());
  config.shaping_rules = std::move(*rules);
}

void draw_connections(Shaping& shaping, Prng& chance) {
  if (shaping.tenants > 0) shaping.tenants = 1 + (shaping.tenants + 17) % 60;
  auto some = [&](unsigned& limit) {
    if (limit > 0) limit = static_cast<unsigned>(1 + chance.below(8));
  };
  some(shaping.others);
  some(shaping.provider);
  some(shaping.total);
  some(shaping.source);
}

struct Plan {
  unsigned shards = 1;
  Shaping shaping;
  std::vector<Act> acts;
  bool disk_errors = false;
  bool tls = false;
  bool sts = false;
  double sts_failure = 0;             // of fetches of policies
  bool flips = false;                 // bits on the disk flip while the relay is down
  std::shared_ptr<config::Config> config;
  std::vector<Site> sites;
  unsigned senders = 1;
  SenderBehaviour sending;
  unsigned messages = 0;
  size_t most_bytes = 0;
  reactor::Faults faults;
  double dns_failure = 0;
  std::vector<std::pair<int64_t, Crash>> crashes;  // after so long a time of running
  int64_t trouble_ns = 0;                          // faults last so long after the crashes
  bool disk_fills = false;
  int64_t unsynced_ns = kUnsyncedNs;  // before a crash: outcomes of so late a time may be lost
  std::string text;
};

Plan make_plan(uint64_t seed, const Less& less) {
  auto has = [&](const char* kind) { return !less.without.contains(kind); };
  Prng chance(seed * 0x2545f4914f6cdd1d + 1);
  auto pick = [&](std::initializer_list<uint64_t> of) { return *(of.begin() + chance.below(of.size())); };
  auto below_ns = [&](int64_t bound) { return static_cast<int64_t>(chance.below(static_cast<uint64_t>(bound))); };
  Plan plan;
  plan.shards = static_cast<unsigned>(1 + chance.below(3));
  auto parsed = config::parse({"--hostname", "relay.example", "--spool", "/spool", "--listen", "192.0.2.1:2525",
                               "--relay-from", "192.0.2.0/24", "--allow-private-destinations", "--shards",
                               std::to_string(plan.shards), "--memory", "64M", "--segment-size", "1M",
                               "--spool-reserve", "4M", "--max-message-size", "300000", "--tls-ca-file", ""},
                              config::System{"relay.example", uint64_t{8} << 30});
  ASSERT(parsed.ok());
  plan.config = std::make_shared<config::Config>(*parsed->config);
  config::Config& config = *plan.config;
  config.durability = chance.chance(0.85) ? config::Durability::disk : config::Durability::memory;
  config.memory = pick({16, 32, 64, 256}) << 20;
  config.segment_size = pick({1, 1, 2, 4}) << 20;
  config.compact_below_percent = static_cast<uint32_t>(pick({0, 25, 75}));
  config.destination_connections = static_cast<uint32_t>(pick({1, 1, 2, 3, 5, 10}));
  config.initial_connections = static_cast<uint32_t>(1 + chance.below(config.destination_connections));
  config.total_connections = static_cast<uint32_t>(chance.chance(0.3) ? 1 + chance.below(6) : 20'000);
  config.messages_per_connection = static_cast<uint32_t>(pick({1, 2, 5, 100}));
  config.recipients_per_transaction = static_cast<uint32_t>(pick({1, 3, 100}));
  config.connect_rate = {chance.chance(0.5) ? 5.0 : 100.0, 1000};
  config.pipelining = chance.chance(0.8);
  config.chunking = chance.chance(0.7);
  config.retry_ms = {1'000, 2'000, 5'000, 10'000};
  config.hold_ms = {1'000, 2'000, 5'000};
  config.retry_uncertain_ms = 5'000;
  config.nxdomain_confirm_ms = 5'000;
  config.dns_negative_ttl_ms = 2'000;
  config.expire_after_ms = chance.chance(0.2) ? 60'000 : 86'400'000;
  config.idle_timeout_ms = static_cast<int64_t>(pick({100, 1'000, 5'000}));
  config.connect_timeout_ms = 5'000;
  config.greeting_timeout_ms = config.mail_timeout_ms = config.rcpt_timeout_ms = 20'000;
  config.data_initiation_timeout_ms = config.data_block_timeout_ms = config.data_done_timeout_ms = 20'000;
  config.command_timeout_ms = config.data_timeout_ms = 30'000;
  config.admission_wait_ms = 2'000;
  config.drain_timeout_ms = 10'000;
  bool events_file = chance.chance(0.5);

  unsigned sites = static_cast<unsigned>(2 + chance.below(4));
  double evil = chance.chance(0.3) ? 0 : chance.unit();  // how badly receivers behave, in all
  for (unsigned i = 0; i < sites; ++i) {
    Site& site = plan.sites.emplace_back();
    if (i > 0 && chance.chance(0.35)) site.fate = static_cast<Fate>(1 + chance.below(4));
    site.hosts = chance.chance(0.3) ? 2 : 1;
    site.domains = chance.chance(0.3) ? 2 : 1;
    ReceiverBehaviour& behaviour = site.behaviour;
    behaviour.pipelining = chance.chance(0.8);
    behaviour.chunking = chance.chance(0.6);
    behaviour.reply_delay_max_ns = static_cast<int64_t>(pick({0, 2, 50, 2'000})) * kMillisecond;
    if (evil > 0 && chance.chance(0.7)) {
      behaviour.refuse_greeting = chance.chance(0.4) ? 0.3 * evil : 0;
      behaviour.reject_greeting = chance.chance(0.3) ? 0.3 * evil : 0;
      behaviour.defer_recipient = chance.chance(0.5) ? 0.3 * evil : 0;
      behaviour.reject_recipient = chance.chance(0.3) ? 0.2 * evil : 0;
      behaviour.defer_data = chance.chance(0.5) ? 0.3 * evil : 0;
      behaviour.reject_data = chance.chance(0.3) ? 0.2 * evil : 0;
      behaviour.drop_unreplied = chance.chance(0.5) ? 0.15 * evil : 0;
      behaviour.drop_replied = chance.chance(0.5) ? 0.15 * evil : 0;
      behaviour.drop_anywhere = chance.chance(0.5) ? 0.03 * evil : 0;
      behaviour.messages_most = chance.chance(0.3) ? static_cast<unsigned>(1 + chance.below(5)) : 0;
    }
  }
  Prng more(seed * 0x9e3779b97f4a7c15 + 2);  // what was added later, so that a seed stays what it was
  auto pick_more = [&](std::initializer_list<uint64_t> of) { return *(of.begin() + more.below(of.size())); };
  for (Site& site : plan.sites) {
    if (more.chance(0.3)) site.behaviour.recipients_most = static_cast<unsigned>(1 + more.below(3));
  }
  plan.senders = static_cast<unsigned>(1 + chance.below(5));
  plan.sending.pipelining = chance.chance(0.7);
  plan.sending.retry_ns = 500 * kMillisecond;
  plan.sending.attempts_most = 100'000;
  plan.sending.messages_per_connection = 1 + chance.below(30);
  if (chance.chance(0.5)) {
    plan.sending.drop_in_data = 0.05;
    plan.sending.drop_after_data = 0.05;
  }
  plan.messages = static_cast<unsigned>(10 + chance.below(70));
  plan.most_bytes = pick({500, 4'000, 20'000, 100'000});

  reactor::Faults& faults = plan.faults;
  faults.latency_max_ns = static_cast<int64_t>(pick({400'000, 5'000'000, 80'000'000}));
  faults.disk_latency_max_ns = static_cast<int64_t>(pick({300'000, 5'000'000, 40'000'000}));
  if (chance.chance(0.6)) {
    faults.reset = chance.chance(0.5) ? 0.003 : 0;
    faults.silence = chance.chance(0.3) ? 0.001 : 0;
    faults.connect_refused = chance.chance(0.3) ? 0.1 : 0;
    faults.connect_silent = chance.chance(0.3) ? 0.05 : 0;
    faults.connect_unreachable = chance.chance(0.3) ? 0.05 : 0;
    faults.accept_aborted = chance.chance(0.2) ? 0.05 : 0;
    plan.dns_failure = chance.chance(0.3) ? 0.2 : 0;
  }
  plan.disk_fills = chance.chance(0.1);
  if (config.durability == config::Durability::disk && chance.chance(0.6)) {
    for (uint64_t left = 1 + chance.below(4); left > 0; --left) {
      plan.crashes.emplace_back(below_ns(chance.chance(0.5) ? kSecond : 10 * kSecond),
                                chance.chance(0.5) ? Crash::power : Crash::process);
    }
  }
  plan.trouble_ns = below_ns(60 * kSecond);
  if (more.chance(0.3) && has("sources")) {
    config.sources = {{*Address::parse_host("192.0.2.1", 0), {}, ""}, {*Address::parse_host("192.0.2.11", 0), {}, "second.example"}};
  }
  if (more.chance(0.15) && has("rates")) config.destination_rate = {static_cast<double>(4 + more.below(9)), 60'000};
  if (more.chance(0.15)) config.memory = pick_more({6, 8, 12}) << 20;
  plan.disk_errors = more.chance(0.2) && has("disk");
  if (plan.disk_errors) {
    faults.write_error = more.chance(0.7) ? 0.02 : 0;
    faults.sync_error = more.chance(0.7) ? 0.05 : 0;
    faults.read_error = more.chance(0.5) ? 0.02 : 0;
    faults.disk_stall = more.chance(0.5) ? 0.005 : 0;
  }
  plan.flips = more.chance(0.15) && has("flips") && !plan.crashes.empty();
  auto act = [&](Act::Kind kind) -> Act& {
    Act& made = plan.acts.emplace_back();
    made.kind = kind;
    made.at_ns = static_cast<int64_t>(more.below(40 * kSecond));
    made.draw = more.next();
    return made;
  };
  if (more.chance(0.4)) {
    for (uint64_t left = 1 + more.below(4); left > 0; --left) {
      Act& made = act(Act::Kind::command);
      made.command = static_cast<queue::Command>(more.below(5));
      made.target = more.below(1'000'000);
      made.by_sender = more.chance(0.5);
    }
  }
  if (more.chance(0.3)) {
    for (uint64_t left = 1 + more.below(3); left > 0; --left) act(Act::Kind::reload);
  }
  if (more.chance(0.2)) {
    for (uint64_t left = 1 + more.below(3); left > 0; --left) {
      auto step = static_cast<int64_t>(pick_more({500, 30'000, 1'800'000, 7'200'000, 86'400'000}));
      act(Act::Kind::clock).step_ms = more.chance(0.5) ? step : -step;
    }
  }
  if (more.chance(0.25)) {
    Shaping& shaping = plan.shaping;
    plan.shards = static_cast<unsigned>(pick_more({1, 2, 3, 8}));
    config.shards = plan.shards;
    config.memory = std::max<uint64_t>(config.memory, plan.shards == 8 ? 64 << 20 : 0);
    shaping.on = has("shaping");
    shaping.others = more.chance(0.5);
    shaping.provider = more.chance(0.8);
    shaping.total = more.chance(0.6);
    shaping.source = more.chance(0.4) && !config.sources.empty();
    draw_connections(shaping, more);
    if (more.chance(0.4)) shaping.messages = static_cast<unsigned>(1 + more.below(5));
    if (more.chance(0.4)) shaping.recipients = static_cast<unsigned>(1 + more.below(5));
    if (more.chance(0.4)) shaping.connects = {static_cast<double>(2 + more.below(9)), static_cast<int64_t>(1'000 * (1 + more.below(5)))};
    if (more.chance(0.5)) shaping.attempts = {static_cast<double>(3 + more.below(20)), static_cast<int64_t>(1'000 * (2 + more.below(20)))};
    Prng further(seed * 0x9e3779b97f4a7c15 + 7);
    auto some = [&](uint64_t least, uint64_t range) {
      if (!further.chance(0.2)) return config::Rate{};
      return config::Rate{static_cast<double>(least + further.below(range)), static_cast<int64_t>(1'000 * (2 + further.below(20)))};
    };
    shaping.accepted = some(3, 20);
    shaping.addressed = some(6, 30);
    shaping.octets = some(8'000, 40'000);
    if (further.chance(0.25)) shaping.in_flight = static_cast<unsigned>(1 + further.below(5));
    // So that a transaction's first line leaves when it is begun, and does not wait behind other octets.
    if (shaping.counted()) plan.most_bytes = std::min<size_t>(plan.most_bytes, 4'000);
    // By the seed itself: what is drawn for the rest stays as it was.
    if (seed % 5 < 3) shaping.tenants = static_cast<unsigned>(1 + seed % 60);
  }
  set_shaping(config, plan.shaping);
  std::erase_if(plan.acts, [&](const Act& at) {
    return !has(at.kind == Act::Kind::command ? "operator" : at.kind == Act::Kind::reload ? "reload" : "clock");
  });
  for (const Act& at : plan.acts) {
    if (at.kind == Act::Kind::command && at.command == queue::Command::pause) plan.trouble_ns += 3 * kPauseSettles;
  }
  if (!has("crashes")) plan.crashes.clear();
  if (!has("full")) plan.disk_fills = false;
  if (!has("dns")) plan.dns_failure = 0;
  if (!has("senders")) plan.sending.drop_in_data = plan.sending.drop_after_data = 0;
  if (!has("network")) {
    faults.reset = faults.silence = faults.connect_refused = faults.connect_silent = faults.connect_unreachable = 0;
    faults.accept_aborted = 0;
  }
  if (!has("receivers")) {
    for (Site& site : plan.sites) {
      site.fate = Fate::well;
      ReceiverBehaviour well;
      well.pipelining = site.behaviour.pipelining;
      well.chunking = site.behaviour.chunking;
      well.tls = site.behaviour.tls;
      site.behaviour = well;
    }
  }
  if (more.chance(0.12)) {
    bool in = more.chance(0.8), on = has("tls");
    double refuse = more.chance(0.3) ? 0.2 : 0, broken = more.chance(0.3) ? 0.1 : 0;
    tls::ServerSettings settings;
    settings.certificates.push_back(simulated_certificate());
    if (in && on) {
      config.tls_server = std::make_shared<const tls::ServerSettings>(settings);
      plan.sending.tls = *tls::ClientContext::make({});
    }
    for (Site& site : plan.sites) {
      if (!more.chance(0.7) || !on) continue;
      site.behaviour.tls = *tls::ServerContext::make(settings);
      site.behaviour.refuse_tls = refuse;
      site.behaviour.break_tls = broken;
      if (more.chance(0.5)) site.dane = more.chance(0.3) ? Site::Dane::wrong : Site::Dane::right;
    }
    plan.tls = on;
  }
  Prng last(seed * 0x9e3779b97f4a7c15 + 11);
  if (last.chance(0.15)) {
    const bool on = has("sts");
    const double failure = last.chance(0.4) ? 0.3 : 0;
    tls::ServerSettings settings;
    settings.certificates.push_back(simulated_certificate());
    for (size_t i = 0; i < plan.sites.size(); ++i) {
      Site& site = plan.sites[i];
      const double draw = last.unit();
      const auto mode = draw < 0.6 ? Site::Sts::enforce : draw < 0.8 ? Site::Sts::testing : Site::Sts::none;
      const bool secure = last.chance(0.8), last_only = last.chance(0.5), wrong_names = last.chance(0.3);
      // Hosts have names of their own there, which the shaping file does not know.
      if (!last.chance(0.7) || !on || site.dane != Site::Dane::none || (plan.shaping.on && i < 2)) continue;
      site.sts = mode;
      if (secure && !site.behaviour.tls) site.behaviour.tls = *tls::ServerContext::make(settings);
      site.last_host_only = last_only && site.hosts > 1;
      site.wrong_names = wrong_names;
      plan.sts = true;
    }
    if (plan.sts) {
      auto authorities = std::make_shared<tls::ClientSettings>();
      authorities->ca_pem = simulated_certificate().chain_pem;
      config.tls_client = std::move(authorities);
      plan.sts_failure = failure;
    }
  }
  plan.messages = std::min(plan.messages, less.messages);
  // Without the file a crash may lose the events of its moment, and with them what the judge goes by.
  if (events_file || !plan.crashes.empty()) config.events = "/spool/events.json";

  int64_t slowest_reply_ns = 0;
  for (const Site& site : plan.sites) slowest_reply_ns = std::max(slowest_reply_ns, site.behaviour.reply_delay_max_ns);
  plan.unsynced_ns += slowest_reply_ns + 4 * faults.latency_max_ns;
  // While the disk fails, outcomes wait for it, and no attempt begins.
  if (plan.disk_errors) plan.unsynced_ns += 60 * kSecond;

  plan.text = fmt::format(
      "shards {}, {}, memory {}M, segments {}M, {} connections (total {}), {} messages a connection, "
      "{} recipients a transaction, {} messages up to {} bytes, {} senders, {} crashes, reset {}, silence {}{}{}{}{}{}, "
      "{} sources, {} acts, {} messages a minute to a domain",
      plan.shards, config.durability == config::Durability::disk ? "disk" : "memory", config.memory >> 20,
      config.segment_size >> 20, config.destination_connections, config.total_connections,
      config.messages_per_connection, config.recipients_per_transaction, plan.messages, plan.most_bytes,
      plan.senders, plan.crashes.size(), faults.reset, faults.silence, plan.disk_fills ? ", disk fills" : "",
      config.events.empty() ? "" : ", events file", plan.disk_errors ? ", disk errors" : "",
      plan.flips ? ", bits flip" : "", plan.tls ? ", TLS" : "", std::max<size_t>(1, config.sources.size()), plan.acts.size(),
      config.destination_rate.count);
  if (plan.shaping.on) plan.text += "\n" + plan.shaping.text();
  for (const Site& site : plan.sites) {
    plan.text += fmt::format("\n  site {}, {} hosts, {} domains{}", to_string(site.fate), site.hosts, site.domains,
                             site.dane == Site::Dane::none ? "" : site.dane == Site::Dane::right ? ", DANE" : ", DANE with wrong records");
    if (site.sts != Site::Sts::absent) {
      plan.text += fmt::format(", MTA-STS {}{}{}", to_string(site.sts), site.last_host_only ? ", last host only" : "",
                               site.wrong_names ? ", wrong certificates" : "");
    }
  }
  return plan;
}

// ---- the judge of events ----------------------------------------------------------------------------

// Each sender's message number n has the reverse-path sn@..., so that events tell it.
uint64_t number_of_path(std::string_view path) {
  uint64_t number = 0;
  if (path.starts_with('s')) std::from_chars(path.data() + 1, path.data() + path.size(), number);
  return number;
}

class EventJudge {
 public:
  explicit EventJudge(bool verbose) : verbose_(verbose) {}

  // What may end other than by a delivery: a recipient that its receiver has refused for good, one of a domain
  // that does not exist, and what is older than so many seconds.
  void refused(const std::string& recipient) { refused_.insert(recipient); }
  void missing(const std::string& domain) { missing_.insert(domain); }
  void expire_after(int64_t seconds) { expire_after_s_ = seconds; }
  // An operator's delete or bounce was given: it may end what it is about, accepted up to now.
  void ended_by_operator(const queue::Filter& filter, bool bounce) { operator_ends_.emplace_back(filter, bounce); }
  // Such a command is durable: what it is about and was accepted before may not be delivered after this time.
  void surely_ended(const queue::Filter& filter, int64_t asked_ns, int64_t by_ns) {
    sure_ends_.push_back({filter, asked_ns, by_ns});
  }

  void on_event(std::string_view line, int64_t now) {
    if (verbose_) fmt::print("{:.6f} {}\n", static_cast<double>(now) / 1e9, line);
    nlohmann::json event = nlohmann::json::parse(line, nullptr, false);
    if (event.is_discarded()) return object(fmt::format("not JSON: {}", line));
    std::string type = event.value("type", ""), id = event.value("id", "");
    if (type == "queue" || type == "rejected") return;
    auto [seen, fresh] = seen_.emplace(id, line);
    if (!fresh) {
      if (seen->second != line) object(fmt::format("two events of one id:\n  {}\n  {}", seen->second, line));
      if (!replays_) object(fmt::format("an event twice without a crash: {}", line));
      return;
    }
    std::string spool_id = event.value("spool_id", ""), recipient = event.value("recipient", "");
    uint64_t number = number_of_path(event.value("reverse_path", ""));
    if (type == "received") {
      recipients_[spool_id] = event.value("recipients", 0u);
      received_at_.emplace(spool_id, now);
      if (number > 0 && !of_number_.emplace(number, spool_id).second) {
        object(fmt::format("message {} was received twice", number));
      }
    } else if (type == "delivered" || type == "bounced" || type == "expired" || type == "suppressed" ||
               type == "removed") {
      auto [end, first] = ends_.try_emplace({spool_id, recipient}, End{type, now});
      if (!first) {
        object(fmt::format("{} for {} ended as {} and as {}", spool_id, recipient, end->second.type, type));
      }
      ++ended_[spool_id];
      std::string domain = recipient.substr(recipient.find('@') + 1), sender = event.value("reverse_path", "");
      auto about = [&](const queue::Filter& filter) {
        return (filter.domain.empty() || filter.domain == domain) && (filter.sender.empty() || filter.sender == sender);
      };
      auto asked = [&](bool bounce) {
        return std::any_of(operator_ends_.begin(), operator_ends_.end(),
                           [&](const auto& one) { return one.second == bounce && about(one.first); });
      };
      if (type == "bounced" && !refused_.contains(recipient) && !missing_.contains(domain) && !asked(true)) {
        object(fmt::format("bounced, though nobody refused it: {}", line));
      }
      for (const SureEnd& sure : sure_ends_) {
        auto received = received_at_.find(spool_id);
        if (type == "delivered" && now > sure.by_ns && about(sure.filter) && received != received_at_.end() &&
            received->second < sure.asked_ns) {
          object(fmt::format("delivered after an operator ended it: {}", line));
        }
      }
      int64_t age_s = seconds_of(event.value("time", "")) - seconds_of(event.value("received_time", ""));
      if (type == "expired" && age_s < expire_after_s_) object(fmt::format("expired at {} s: {}", age_s, line));
      if (type == "suppressed" || (type == "removed" && !asked(false))) {
        object(fmt::format("nobody asked for that: {}", line));
      }
    }
  }
  // From now on the relay may tell events again.
  void crashed() { replays_ = true; }
  // A 250 with this id was read by the sender.
  void promised(uint64_t number, std::string id) { promised_[id] = number; }

  struct End {
    std::string type;
    int64_t at_ns;
  };
  const End* end_of(uint64_t number, const std::string& recipient) const {
    auto id = of_number_.find(number);
    if (id == of_number_.end()) return nullptr;
    auto end = ends_.find({id->second, recipient});
    return end == ends_.end() ? nullptr : &end->second;
  }
  // Every message with a 250 has its event of reception, and every recipient has ended. Asked each second.
  bool all_ended() const {
    auto received = [this](const auto& promise) { return recipients_.contains(promise.first); };
    return std::all_of(recipients_.begin(), recipients_.end(), [this](const auto& of) { return count_ended(of.first) == of.second; }) &&
           std::all_of(promised_.begin(), promised_.end(), received);
  }
  // What is missing for that.
  std::vector<std::string> unended() const {
    std::vector<std::string> found;
    for (const auto& [id, number] : promised_) {
      if (!recipients_.contains(id)) found.push_back(fmt::format("{} (number {}) has a 250 and no event", id, number));
    }
    for (const auto& [id, recipients] : recipients_) {
      unsigned count = count_ended(id);
      if (count != recipients) found.push_back(fmt::format("{}: {} of {} recipients ended", id, count, recipients));
    }
    return found;
  }
  const std::map<std::pair<std::string, std::string>, End>& ends() const { return ends_; }
  const std::map<uint64_t, std::string>& ids() const { return of_number_; }
  std::vector<std::string> objections;

 private:
  void object(std::string what) { objections.push_back(std::move(what)); }

  const bool verbose_;
  unsigned count_ended(const std::string& id) const {
    auto ended = ended_.find(id);
    return ended == ended_.end() ? 0 : ended->second;
  }

  static int64_t seconds_of(const std::string& time) {
    tm utc{};
    return strptime(time.c_str(), "%Y-%m-%dT%H:%M:%S", &utc) ? timegm(&utc) : 0;
  }

  struct SureEnd {
    queue::Filter filter;
    int64_t asked_ns, by_ns;
  };
  bool replays_ = false;
  std::set<std::string> refused_, missing_;
  std::vector<std::pair<queue::Filter, bool>> operator_ends_;  // and whether it bounces
  std::vector<SureEnd> sure_ends_;
  std::map<std::string, int64_t> received_at_;
  int64_t expire_after_s_ = 0;
  std::map<std::string, std::string> seen_;        // id of an event: its line
  std::map<std::string, uint64_t> promised_;       // spool id: number
  std::map<std::string, unsigned> recipients_;     // spool id: how many it was received for
  std::map<std::string, unsigned> ended_;          // spool id: how many have ended
  std::map<uint64_t, std::string> of_number_;
  std::map<std::pair<std::string, std::string>, End> ends_;
};

// ---- policies --------------------------------------------------------------------------------------

// The HTTPS servers of MTA-STS, and the way to them: answers after a while with what is published then, or fails. One a
// start of the relay; what a killed one has asked for is never answered.
class PolicyServers final : public delivery::StsFetcher {
 public:
  struct Published {
    std::map<std::string, std::string> policies;  // by domain
    double failure = 0;
    std::set<std::string> failed, taken;          // domains whose policy could not be had, or has been, at some time
    Prng chance{0};
  };
  PolicyServers(reactor::SimWorld& world, Published& published, std::shared_ptr<bool> alive)
      : world_(world), published_(published), alive_(std::move(alive)) {}
  bool submit(std::unique_ptr<delivery::StsFetch> fetch) override {
    const uint64_t number = ++number_;
    fetches_[number] = std::move(fetch);
    const auto wait = static_cast<int64_t>(published_.chance.below(2 * kSecond));
    world_.after(wait, [this, number, alive = alive_] {
      if (*alive) answer(number);
    });
    return true;
  }
  void stop() override {
    while (!fetches_.empty()) {
      auto fetch = std::move(fetches_.extract(fetches_.begin()).mapped());
      fetch->error = "the relay stops";
      published_.failed.insert(domain_of(*fetch));
      delivery::StsFetch::give_back(std::move(fetch));
    }
  }
  ~PolicyServers() override { *alive_ = false; }

 private:
  static std::string domain_of(const delivery::StsFetch& fetch) { return fetch.host.substr(fetch.host.find('.') + 1); }
  void answer(uint64_t number) {
    const auto at = fetches_.find(number);
    if (at == fetches_.end()) return;
    auto fetch = std::move(fetches_.extract(at).mapped());
    const std::string domain = domain_of(*fetch);
    const auto policy = published_.policies.find(domain);
    fetch->fetched = policy != published_.policies.end() && !published_.chance.chance(published_.failure);
    (fetch->fetched ? published_.taken : published_.failed).insert(domain);
    if (fetch->fetched) {
      fetch->body = policy->second;
    } else {
      fetch->error = "no answer";
    }
    delivery::StsFetch::give_back(std::move(fetch));
  }

  reactor::SimWorld& world_;
  Published& published_;
  std::shared_ptr<bool> alive_;
  std::map<uint64_t, std::unique_ptr<delivery::StsFetch>> fetches_;
  uint64_t number_ = 0;
};

// ---- a run ------------------------------------------------------------------------------------------

class Run {
 public:
  Run(uint64_t seed, const Less& less, bool verbose);
  // The first promises that were broken, in words; empty: none.
  std::vector<std::string> run();
  uint64_t fingerprint() const { return world_.fingerprint(); }

 private:
  struct Copied {
    uint64_t number;
    std::string recipient;
    size_t receiver;
    uint64_t connection;
    Copy copy;
    int64_t at_ns;
  };

  bool boot();
  void crash(Crash kind);
  void flip_bits();
  void schedule_acts();
  void act(const Act& act);
  void command(const Act& act);
  void reload(uint64_t draw);
  void resume_all();
  void on_connect(const Address& local, const Address& peer);
  void on_send(uint64_t connection, const Address& local, const Address& peer, std::string_view octets);
  void judge_rates();
  unsigned sources() const { return static_cast<unsigned>(std::max<size_t>(1, plan_.config->sources.size())); }
  // Connections are counted by site and source.
  size_t pair_of(unsigned site, const Address& local) const {
    return site * sources() + (sources() > 1 && local.octets() == second_source_.octets() ? 1 : 0);
  }
  bool provided(unsigned site) const { return plan_.shaping.on && site < 2; }
  void make_bounds();
  // The limits of now, in the order of bounds_.
  std::vector<unsigned> limits() const;
  bool shut_down();
  void submit();
  void on_message(size_t receiver, const ReceivedMessage& message);
  void publish(unsigned site, unsigned host, bool right);
  std::string host_name(unsigned site, unsigned host) const;
  void publish_policies(unsigned site, bool enforced);
  void judge_policy(const ReceivedMessage& message, size_t receiver, const std::string& domain);
  void calm();
  void revive();
  // Runs that long, or until `done`, looking at the limits after every turn.
  bool run_until(const std::function<bool()>& done, int64_t for_ns);
  void look();
  void look_at_transactions();
  void tell_queues();
  bool well_ended() const;
  void judge();
  std::vector<std::string> end_after_flips();
  void object(std::string what) {
    if (problems_.size() < 40) problems_.push_back(std::move(what));
  }
  bool failed() const { return !problems_.empty() || (!judge_.objections.empty() && !plan_.flips); }

  const bool verbose_;
  Plan plan_;
  reactor::SimWorld world_;
  const reactor::HostId relay_host_, sender_host_, receiver_host_;
  dns::ModelZones zones_;
  std::set<std::string> signed_;  // domains
  PolicyServers::Published published_;
  std::shared_ptr<bool> policies_alive_;  // of the present relay's PolicyServers
  std::vector<unsigned> host_of_receiver_;  // which of its site's
  Ledger ledger_;
  EventJudge judge_;
  std::unique_ptr<reactor::Io> sender_io_, receiver_io_;
  std::deque<Receiver> receivers_;
  std::deque<Sender> senders_;
  std::vector<std::unique_ptr<reactor::Io>> ios_;
  std::unique_ptr<relay::Core> core_;
  std::vector<Copied> copies_;
  std::vector<int64_t> crashed_at_;
  const Address second_source_ = *Address::parse_host("192.0.2.11", 0);
  std::map<std::string, unsigned> site_of_address_;
  std::unordered_map<Address, unsigned, reactor::AddressHash> site_of_peer_;
  std::map<std::string, unsigned> site_of_domain_;
  std::vector<std::string> domains_;
  std::vector<unsigned> open_;  // connections now, by pair_of
  int64_t next_check_ = 0;
  bool started_ = false;  // the relay runs
  bool calm_ = false;  // faults have ended
  // Limits in force. A lowered one is met when connections have closed: until then none may open.
  struct Bound {
    std::string what;
    std::vector<size_t> pairs;  // whose connections together
    unsigned limit;             // of now; 0: none
    unsigned allowed;
    bool exact;                 // one shard decides for all
  };
  std::vector<Bound> bounds_;
  int64_t limits_change_until_ = 0;    // a reload is on its way to every shard
  bool lowered_ = false;
  // The most of all configurations so far.
  uint32_t messages_a_connection_ = 0, recipients_a_transaction_ = 0, uncertain_ = 0;
  std::vector<std::deque<int64_t>> connects_;                  // by pair_of (or by site): when connections began
  // A transaction with the provider, as the relay began it in the clear.
  struct Begun {
    int64_t at_ns;
    size_t life;                     // of the relay: a crash ends it, and what it counted
    uint64_t recipients = 0, octets = 0;
    bool taken = false;
  };
  std::vector<Begun> begun_;
  struct Talk {
    uint64_t connection = 0;
    std::string line;                // the last, not yet whole
    std::vector<size_t> begun;
  };
  std::unordered_map<Address, Talk, reactor::AddressHash> talks_;  // by the relay's end
  std::map<std::string, std::deque<int64_t>> transactions_;    // by domain: when they began
  struct Pause {
    std::string domain;
    int64_t from_ns, to_ns;
  };
  uint64_t damage_told_ = 0;           // what recoveries set aside
  std::vector<Pause> paused_;          // surely in force
  bool resumed_ = true;                // no pause is left
  std::vector<std::string> problems_;
};

reactor::SimOptions sim_options(const Plan& plan) {
  reactor::SimOptions options;
  options.faults.latency_max_ns = plan.faults.latency_max_ns;
  return options;
}

Run::Run(uint64_t seed, const Less& less, bool verbose)
    : verbose_(verbose), plan_(make_plan(seed, less)), world_(seed, sim_options(plan_)),
      relay_host_(world_.add_host({"192.0.2.1", "192.0.2.11"})), sender_host_(world_.add_host({"192.0.2.2"})),
      receiver_host_(world_.add_host({"198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4",
                                      "198.51.100.5", "198.51.100.6", "198.51.100.7", "198.51.100.8",
                                      "198.51.100.9", "198.51.100.10"})),
      judge_(verbose) {
  if (verbose) fmt::print("seed {}: {}\n", seed, plan_.text);
  sender_io_ = world_.make_io(sender_host_);
  static const reactor::Io* clock = nullptr;
  clock = sender_io_.get();
  log::set_clock([] { return clock->wall_ms(); });
  receiver_io_ = world_.make_io(receiver_host_);
  open_.resize(plan_.sites.size() * sources());
  connects_.resize(plan_.sites.size() * sources());
  make_bounds();
  published_.chance = Prng(seed * 0x9e3779b97f4a7c15 + 13);
  published_.failure = plan_.sts_failure;
  messages_a_connection_ = plan_.config->messages_per_connection;
  recipients_a_transaction_ = plan_.config->recipients_per_transaction;
  uncertain_ = plan_.config->uncertain_per_connection;
  world_.on_connect([this](reactor::HostId host, const Address& local, const Address& peer) {
    if (host == relay_host_) on_connect(local, peer);
  });
  if (plan_.shaping.counted()) {
    world_.on_send([this](reactor::HostId host, uint64_t connection, const Address& local, const Address& peer,
                          std::string_view octets) {
      if (host == relay_host_) on_send(connection, local, peer, octets);
    });
  }
  judge_.expire_after(plan_.config->expire_after_ms / 1'000);
  // After a failed sync of the events file the next start tells again what the file may have lost.
  if (plan_.disk_errors) judge_.crashed();
  for (unsigned i = 0; i < plan_.sites.size(); ++i) {
    Site& site = plan_.sites[i];
    for (unsigned d = 0; d < site.domains; ++d) {
      std::string domain = fmt::format("d{}-{}.example", i, d);
      domains_.push_back(domain);
      site_of_domain_[domain] = i;
      for (unsigned h = 0; h < site.hosts && site.fate != Fate::missing; ++h) {
        zones_.add_mx(domain, static_cast<uint16_t>(10 * (h + 1)), host_name(i, h));
      }
      if (site.fate == Fate::missing) judge_.missing(domain);
      if (site.fate == Fate::no_route) zones_.fail(domain, dns::Outcome::failure);
      if (site.dane != Site::Dane::none && d % 2 == 0) {
        zones_.sign(domain);
        signed_.insert(domain);
      }
    }
    if (site.sts != Site::Sts::absent) publish_policies(i, site.sts == Site::Sts::enforce);
    for (unsigned h = 0; h < site.hosts; ++h) {
      size_t number = receivers_.size();
      std::string address = fmt::format("198.51.100.{}", number + 1);
      zones_.add_address(host_name(i, h), address);
      host_of_receiver_.push_back(h);
      if (site.dane != Site::Dane::none) {
        zones_.sign(fmt::format("mx{}.d{}.example", h, i));
        publish(i, h, site.dane == Site::Dane::right);
      }
      site_of_address_[address] = i;
      site_of_peer_[*Address::parse(address + ":25")] = i;
      Receiver& receiver = receivers_.emplace_back(*receiver_io_, seed * 1000 + number, site.behaviour);
      if (site.fate == Fate::silent) {
        receiver.behaviour.reply_delay_min_ns = receiver.behaviour.reply_delay_max_ns = kHour;
      }
      receiver.on_message = [this, number](const ReceivedMessage& message) { on_message(number, message); };
      receiver.on_refused = [this](const std::string& recipient) { judge_.refused(recipient); };
      receiver.on_transaction = [this](const std::string& recipient) {
        if (plan_.config->destination_rate.limited()) {
          transactions_[recipient.substr(recipient.find('@') + 1)].push_back(world_.now());
        }
      };
      if (site.fate == Fate::refused) continue;
      if (!receiver.listen(*Address::parse(address + ":25")).ok()) object("a receiver cannot listen");
    }
  }
  for (unsigned i = 0; i < plan_.senders; ++i) {
    Sender& sender = senders_.emplace_back(*sender_io_, *Address::parse("192.0.2.1:2525"), seed * 2000 + i, ledger_,
                                           plan_.sending);
    sender.on_accepted = [this](uint64_t number, std::string_view reply) {
      if (reply.size() > mail::SpoolId::kTextSize) {
        std::string id(reply.substr(reply.size() - mail::SpoolId::kTextSize));
        if (mail::SpoolId::parse(id).ok()) return judge_.promised(number, std::move(id));
      }
      object(fmt::format("a 250 without a spool id: {}", reply));
    };
  }
  if (!world_.disk(relay_host_).make_directory("/spool").ok() || !world_.disk(relay_host_).sync_directory("/").ok()) {
    object("the spool's directory cannot be made");
  }
}

bool Run::boot() {
  relay::Core::Parts parts;
  parts.config = plan_.config;
  parts.observers.push_back([this](std::string_view line) { judge_.on_event(line, world_.now()); });
  uint64_t share = plan_.config->memory / 2 / plan_.shards;  // as relay.cc does
  for (unsigned i = 0; i < plan_.shards; ++i) {
    ios_.push_back(world_.make_io(relay_host_));
    reactor::Io& io = *ios_.back();
    io.buffers(reactor::BufferGroup::ingress).set_limit(share / 8 * 5);
    io.buffers(reactor::BufferGroup::delivery).set_limit(share / 8);
    io.buffers(reactor::BufferGroup::spool).set_limit(share / 8);
    io.buffers(reactor::BufferGroup::control).set_limit(share / 16);
    parts.ios.push_back(&io);
    parts.transports.push_back(std::make_unique<dns::ModelTransport>(io, zones_));
  }
  if (plan_.sts) {
    policies_alive_ = std::make_shared<bool>(true);
    parts.policies = std::make_unique<PolicyServers>(world_, published_, policies_alive_);
  }
  core_ = std::make_unique<relay::Core>(std::move(parts));
  // A relay that cannot read or sync its spool at the start exits and names the cause; this one does not fail then.
  reactor::Faults& faults = world_.faults();
  faults.read_error = faults.write_error = faults.sync_error = 0;
  bool answered = false;
  std::string why;
  core_->open([&](Status status) {
    answered = true;
    if (!status.ok()) why = status.error().text;
  });
  if (!world_.run_until([&] { return answered; }, world_.now() + 600 * kSecond)) why = "no answer in 10 minutes";
  if (!why.empty()) {
    object("the relay does not start: " + why);
    return false;
  }
  damage_told_ += core_->recovery().records_damaged + core_->recovery().remarks.size();
  if (!calm_) {
    faults.read_error = plan_.faults.read_error;
    faults.write_error = plan_.faults.write_error;
    faults.sync_error = plan_.faults.sync_error;
  }
  if (core_->recovery().records_damaged > 0 && !plan_.flips) {
    object(fmt::format("recovery found damaged records: {}", fmt::join(core_->recovery().remarks, "; ")));
  }
  for (unsigned i = 0; i < plan_.shards; ++i) core_->start(i);
  started_ = true;
  return true;
}

void Run::crash(Crash kind) {
  if (verbose_) fmt::print("{:.6f} crash: {}\n", static_cast<double>(world_.now()) / 1e9, kind == Crash::power ? "power" : "process");
  world_.crash(relay_host_, kind);
  started_ = false;
  // A killed process destroys nothing: what it was stays as it is until this one ends.
  static std::vector<std::pair<relay::Core*, std::vector<std::unique_ptr<reactor::Io>>>> killed;
  killed.emplace_back(core_.release(), std::move(ios_));
  if (policies_alive_) *policies_alive_ = false;
  ios_.clear();
  ledger_.crashed(world_.now(), plan_.unsynced_ns);
  judge_.crashed();
  crashed_at_.push_back(world_.now());
  // What a rate remembers goes with the process.
  for (auto& begun : connects_) begun.clear();
  for (Bound& bound : bounds_) bound.allowed = bound.limit;
  limits_change_until_ = 0;
  if (plan_.flips) flip_bits();
}

// Of what lies on the disk, one to three bits.
void Run::flip_bits() {
  reactor::SimDisk& disk = world_.disk(relay_host_);
  auto names = disk.list("/spool");
  if (!names.ok()) return;
  std::erase_if(*names, [](const std::string& name) { return !name.ends_with(".seg"); });
  for (uint64_t left = 1 + world_.chance().below(3); left > 0 && !names->empty(); --left) {
    std::string path = "/spool/" + (*names)[world_.chance().below(names->size())];
    // Where something lies: most of a segment is empty.
    std::string content = disk.content(path);
    size_t used = content.find_last_not_of('\0');
    if (used == std::string::npos) continue;
    uint64_t offset = world_.chance().chance(0.5) ? world_.chance().below(std::min<uint64_t>(used + 1, 65'536))
                                                  : world_.chance().below(used + 1);
    if (verbose_) fmt::print("{}: a bit of octet {} flips\n", path, offset);
    disk.flip_bit(path, offset, static_cast<unsigned>(world_.chance().below(8)));
  }
}

// ---- the operator

void Run::schedule_acts() {
  for (const Act& one : plan_.acts) {
    world_.after(one.at_ns, [this, &one] { act(one); });
  }
}

void Run::act(const Act& one) {
  if (calm_) return;
  if (one.kind == Act::Kind::clock) {
    if (verbose_) fmt::print("{:.6f} the clock steps by {} ms\n", static_cast<double>(world_.now()) / 1e9, one.step_ms);
    world_.step_wall(one.step_ms);
    return;
  }
  // The relay may be down now, or not up yet.
  if (!core_ || !started_) {
    world_.after(kSecond, [this, &one] { act(one); });
    return;
  }
  if (one.kind == Act::Kind::reload) return reload(one.draw);
  command(one);
}

void Run::command(const Act& one) {
  queue::Filter filter;
  if (one.by_sender && one.command != queue::Command::pause) {
    filter.sender = fmt::format("s{}@{}", 1 + one.target % plan_.messages, domains_[0]);
  } else {
    filter.domain = domains_[one.target % domains_.size()];
  }
  if (one.command == queue::Command::resume) filter = {};
  if (verbose_) {
    fmt::print("{:.6f} operator: {} {}{}\n", static_cast<double>(world_.now()) / 1e9, queue::to_string(one.command),
               filter.domain, filter.sender);
  }
  int64_t asked = world_.now();
  bool ends = one.command == queue::Command::remove || one.command == queue::Command::bounce;
  if (ends) judge_.ended_by_operator(filter, one.command == queue::Command::bounce);
  if (one.command == queue::Command::pause) resumed_ = false;
  if (one.command == queue::Command::resume) {
    for (Pause& pause : paused_) pause.to_ns = std::min(pause.to_ns, asked);
  }
  core_->control().command(one.command, filter, false, [this, one, filter, asked, ends](Result<uint64_t> answer) {
    if (!answer.ok()) return;  // a resume of nothing, or a disk that fails
    if (one.command == queue::Command::pause) paused_.push_back({filter.domain, world_.now() + kPauseSettles, INT64_MAX});
    // A message that cannot be read just now ends later.
    if (ends && !plan_.disk_errors && !plan_.flips) judge_.surely_ended(filter, asked, world_.now() + kPauseSettles);
  });
}

// What was paused goes on: asked for until it is so, since the relay may fall meanwhile.
void Run::resume_all() {
  for (Pause& pause : paused_) pause.to_ns = std::min(pause.to_ns, world_.now());
  if (core_) {
    core_->control().command(queue::Command::resume, {}, false, [this](Result<uint64_t>) {
      resumed_ = core_->control().pauses().empty();
    });
  }
}

void Run::reload(uint64_t draw) {
  Prng chance(draw);
  auto changed = std::make_shared<config::Config>(*plan_.config);
  changed->destination_connections = static_cast<uint32_t>(1 + chance.below(10));
  changed->initial_connections = static_cast<uint32_t>(1 + chance.below(changed->destination_connections));
  changed->total_connections = static_cast<uint32_t>(chance.chance(0.5) ? 1 + chance.below(6) : 20'000);
  changed->messages_per_connection = static_cast<uint32_t>(1 + chance.below(10));
  changed->recipients_per_transaction = static_cast<uint32_t>(1 + chance.below(10));
  changed->idle_timeout_ms = static_cast<int64_t>(100 + chance.below(5'000));
  if (verbose_) {
    fmt::print("{:.6f} reload: {} connections (total {}), {} messages a connection\n",
               static_cast<double>(world_.now()) / 1e9, changed->destination_connections, changed->total_connections,
               changed->messages_per_connection);
  }
  if (plan_.shaping.on && chance.chance(0.7)) {
    draw_connections(plan_.shaping, chance);
    set_shaping(*changed, plan_.shaping);
    if (verbose_) fmt::print("{}", plan_.shaping.text());
  }
  plan_.config = changed;
  messages_a_connection_ = std::max(messages_a_connection_, changed->messages_per_connection);
  recipients_a_transaction_ = std::max(recipients_a_transaction_, changed->recipients_per_transaction);
  std::vector<unsigned> now = limits();
  for (size_t i = 0; i < bounds_.size(); ++i) {
    lowered_ = lowered_ || now[i] < bounds_[i].limit;
    bounds_[i].limit = now[i];
    bounds_[i].allowed = std::max(bounds_[i].allowed, now[i]);
  }
  limits_change_until_ = world_.now() + kSecond;
  core_->adopt(changed);
}

void Run::make_bounds() {
  unsigned sites = static_cast<unsigned>(plan_.sites.size());
  auto bound = [&](std::string what, bool exact, auto&& covers) {
    Bound& made = bounds_.emplace_back();
    made.what = std::move(what);
    made.exact = exact;
    for (unsigned site = 0; site < sites; ++site) {
      for (unsigned source = 0; source < sources(); ++source) {
        if (covers(site, source)) made.pairs.push_back(site * sources() + source);
      }
    }
  };
  const Shaping& shaping = plan_.shaping;
  bound("in all", false, [](unsigned, unsigned) { return true; });
  for (unsigned source = 0; source < sources(); ++source) {
    for (unsigned of = 0; of < sites; ++of) {
      bool said = provided(of) ? shaping.provider > 0 || shaping.others > 0 : shaping.on && shaping.others > 0;
      if (provided(of) && said && of > 0) continue;  // told of with the first
      bound(fmt::format("to site {} from source {}", of, source), said, [&](unsigned site, unsigned from) {
        return from == source && (site == of || (said && provided(of) && provided(site)));
      });
    }
  }
  if (shaping.on && shaping.total > 0) bound("to the provider", true, [&](unsigned site, unsigned) { return provided(site); });
  if (shaping.on && shaping.source > 0) bound("from the first source", true, [](unsigned, unsigned source) { return source == 0; });
  std::vector<unsigned> now = limits();
  ASSERT(now.size() == bounds_.size());
  for (size_t i = 0; i < bounds_.size(); ++i) bounds_[i].limit = bounds_[i].allowed = now[i];
}

std::vector<unsigned> Run::limits() const {
  const Shaping& shaping = plan_.shaping;
  std::vector<unsigned> found = {plan_.config->total_connections};
  for (unsigned source = 0; source < sources(); ++source) {
    for (unsigned of = 0; of < plan_.sites.size(); ++of) {
      unsigned said = !shaping.on ? 0 : provided(of) && shaping.provider > 0 ? shaping.provider : shaping.others;
      if (provided(of) && said > 0 && of > 0) continue;
      found.push_back(said > 0 ? said : plan_.config->destination_connections);
    }
  }
  if (shaping.on && shaping.total > 0) found.push_back(shaping.total);
  if (shaping.on && shaping.source > 0) found.push_back(shaping.source);
  return found;
}

void Run::on_connect(const Address& local, const Address& peer) {
  auto found = site_of_peer_.find(peer);
  if (found == site_of_peer_.end()) return;
  unsigned site = found->second;
  // Where one address of several does not answer, the next is tried at once, which the rate does not count.
  if (plan_.sites[site].hosts > 1) return;
  config::Rate rate = plan_.config->connect_rate;
  size_t at = site * sources();
  double most = 0;
  if (provided(site) && plan_.shaping.connects.limited()) {
    if (plan_.sites[0].hosts > 1 || plan_.sites[1].hosts > 1) return;
    rate = plan_.shaping.connects;
    at = pair_of(0, local);
    most = rate.count;
  } else {
    most = rate.count;
  }
  std::deque<int64_t>& begun = connects_[at];
  begun.push_back(world_.now());
  while (begun.front() <= world_.now() - rate.period_ms * kMillisecond) begun.pop_front();
  if (static_cast<double>(begun.size()) > most) {
    object(fmt::format("{} connections to site {} begun within {} ms", begun.size(), site, rate.period_ms));
  }
}

// What the relay says to the provider: the transactions that it begins.
void Run::on_send(uint64_t connection, const Address& local, const Address& peer, std::string_view octets) {
  auto site = site_of_peer_.find(peer);
  if (site == site_of_peer_.end() || !provided(site->second)) return;
  Talk& talk = talks_[local];
  if (talk.connection != connection) talk = {.connection = connection, .line = {}, .begun = {}};
  talk.line += octets;
  size_t at = 0;
  for (size_t end; (end = talk.line.find("\r\n", at)) != std::string::npos; at = end + 2) {
    std::string_view line = std::string_view(talk.line).substr(at, end - at);
    if (line.starts_with("MAIL FROM:<")) {
      talk.begun.push_back(begun_.size());
      Begun& made = begun_.emplace_back(Begun{world_.now(), crashed_at_.size()});
      static constexpr std::string_view kSize = " SIZE=";
      if (size_t size = line.find(kSize); size != std::string_view::npos) {
        made.octets = std::strtoull(line.data() + size + kSize.size(), nullptr, 10);
      }
    } else if (line.starts_with("RCPT TO:<") && !talk.begun.empty()) {
      ++begun_[talk.begun.back()].recipients;
    }
  }
  talk.line.erase(0, at);
}

// A transaction counts from when it was begun.
void Run::judge_rates() {
  auto judge = [this](const char* what, const config::Rate& rate, auto weight) {
    if (!rate.limited()) return;
    double sum = 0;
    for (size_t last = 0, first = 0; last < begun_.size(); ++last) {
      sum += std::min<double>(rate.count, weight(begun_[last]));
      for (; begun_[first].at_ns <= begun_[last].at_ns - rate.period_ms * kMillisecond || begun_[first].life != begun_[last].life; ++first) {
        sum -= std::min<double>(rate.count, weight(begun_[first]));
      }
      if (sum <= rate.count) continue;
      object(fmt::format("{} {} with the provider begun within {} ms before {:.6f}", sum, what, rate.period_ms,
                         static_cast<double>(begun_[last].at_ns) / 1e9));
      return;
    }
  };
  const Shaping& shaping = plan_.shaping;
  judge("transactions", shaping.attempts, [](const Begun&) { return 1.0; });
  judge("accepted messages", shaping.accepted, [](const Begun& one) { return one.taken ? 1.0 : 0.0; });
  judge("recipients", shaping.addressed, [](const Begun& one) { return static_cast<double>(one.recipients); });
  judge("octets", shaping.octets, [](const Begun& one) { return static_cast<double>(one.octets); });
}

bool Run::shut_down() {
  bool stopped = false;
  started_ = false;
  core_->stop([&] { stopped = true; });
  if (!world_.run_until([&] { return stopped; }, world_.now() + 120 * kSecond)) {
    object("the relay does not stop within two minutes");
    return false;
  }
  core_.reset();
  if (size_t left = world_.open_handles(relay_host_); left > 0) {
    object(fmt::format("{} handles are open after the relay has stopped", left));
  }
  ios_.clear();
  return true;
}

void Run::submit() {
  Prng& chance = world_.chance();
  for (unsigned number = 1; number <= plan_.messages; ++number) {
    std::vector<std::string> recipients;
    for (uint64_t left = chance.chance(0.7) ? 1 : 1 + chance.below(6); left > 0; --left) {
      recipients.push_back(fmt::format("r{}.{}@{}", number, left, domains_[chance.below(domains_.size())]));
    }
    senders_[chance.below(senders_.size())].add(number, fmt::format("s{}@{}", number, domains_[0]),
                                                std::move(recipients),
                                                numbered_message(number, 1 + chance.below(plan_.most_bytes)));
  }
  for (Sender& sender : senders_) {
    world_.after(static_cast<int64_t>(chance.below(5 * kSecond)), [&sender] { sender.start(); });
  }
}

// The TLSA record of a host of the site.
void Run::publish(unsigned site, unsigned host, bool right) {
  static const std::string key = [] {
    std::string pem = simulated_certificate().chain_pem, text;
    for (size_t at = pem.find('\n') + 1; pem[at] != '-'; ++at) {
      if (pem[at] != '\n') text += pem[at];
    }
    const std::string der = from_base64(text).value();
    return std::string(tls::view_certificate(der)->public_key);
  }();
  const std::string name = fmt::format("_25._tcp.mx{}.d{}.example", host, site);
  zones_.remove(name);
  zones_.add_tlsa(name, {3, 1, 0, right ? key : "\x30\x01\x01"});
}

std::string Run::host_name(unsigned site, unsigned host) const {
  // Of what the certificate is good for, where a policy asks for that.
  const bool good = plan_.sites[site].sts != Site::Sts::absent && !plan_.sites[site].wrong_names;
  return fmt::format("mx{}{}d{}.example", host, good ? '-' : '.', site);
}

// Of every second domain of the site. `enforced` says less than the site's mode once faults have ended.
void Run::publish_policies(unsigned site, bool enforced) {
  const Site& of = plan_.sites[site];
  for (unsigned d = 0; d < of.domains; d += 2) {
    const std::string domain = fmt::format("d{}-{}.example", site, d);
    std::string policy = "version: STSv1\r\nmax_age: 604800\r\n";
    policy += fmt::format("mode: {}\r\n", enforced ? "enforce" : of.sts == Site::Sts::enforce ? "none" : to_string(of.sts));
    for (unsigned h = of.last_host_only ? of.hosts - 1 : 0; h < of.hosts; ++h) policy += fmt::format("mx: {}\r\n", host_name(site, h));
    const bool first = published_.policies.emplace(domain, policy).second;
    if (!first) published_.policies[domain] = policy;
    zones_.remove("_mta-sts." + domain);
    zones_.add_text("_mta-sts." + domain, fmt::format("v=STSv1; id={};", first ? 1 : 2));
    if (first) zones_.add_address("mta-sts." + domain, "198.51.100.99");
  }
}

// An enforced policy that the relay surely knows: each try to have it has succeeded, and so has each look-up.
void Run::judge_policy(const ReceivedMessage& message, size_t receiver, const std::string& domain) {
  const Site& site = plan_.sites[site_of_domain_.at(domain)];
  if (calm_ || site.sts != Site::Sts::enforce || !published_.policies.contains(domain)) return;
  if (plan_.dns_failure > 0 || published_.failed.contains(domain)) return;
  if (!published_.taken.contains(domain)) object(fmt::format("mail for {} without a look at its policy", domain));
  if (!message.secure) object(fmt::format("mail for {} in the clear, which an enforced policy forbids", domain));
  if (site.wrong_names) object(fmt::format("mail for {} to a host with a wrong certificate, which an enforced policy forbids", domain));
  if (site.last_host_only && host_of_receiver_[receiver] + 1 < site.hosts) {
    object(fmt::format("mail for {} to a host that its enforced policy does not name", domain));
  }
}

void Run::on_message(size_t receiver, const ReceivedMessage& message) {
  unsigned site = site_of_address_[fmt::format("198.51.100.{}", receiver + 1)];
  unsigned most = provided(site) && plan_.shaping.recipients > 0 ? plan_.shaping.recipients : recipients_a_transaction_;
  if (message.recipients.size() > most) object(fmt::format("{} recipients in a transaction", message.recipients.size()));
  // Of what the relay has surely read the 250.
  if (auto talk = talks_.find(message.peer); talk != talks_.end() && message.copy == Copy::acknowledged) {
    const std::vector<size_t>& begun = talk->second.begun;
    if (message.mail <= begun.size()) begun_[begun[message.mail - 1]].taken = true;
  }
  if (message.reverse_path.empty()) return;  // a report
  uint64_t number = number_of(message.content);
  if (number != number_of_path(message.reverse_path)) object("a message arrived with another's envelope");
  for (const std::string& recipient : message.recipients) {
    if (signed_.contains(recipient.substr(recipient.find('@') + 1))) {
      if (!message.secure) object(fmt::format("mail for {} in the clear, whose host has TLSA records", recipient));
      if (plan_.sites[site].dane == Site::Dane::wrong && !calm_) object(fmt::format("mail for {} to a host that its TLSA records deny", recipient));
    }
    if (plan_.sts) judge_policy(message, receiver, recipient.substr(recipient.find('@') + 1));
    ledger_.received(message.content, recipient, message.copy, message.at_ns);
    copies_.push_back({number, recipient, receiver, message.connection, message.copy, message.at_ns});
  }
}

void Run::calm() {
  calm_ = true;
  reactor::Faults calm;
  calm.latency_max_ns = plan_.faults.latency_max_ns;
  calm.disk_latency_max_ns = plan_.faults.disk_latency_max_ns;
  world_.faults() = calm;
  zones_.faults.failure = 0;
  world_.disk(relay_host_).set_capacity(uint64_t{1} << 40);
  for (size_t i = 0; i < receivers_.size(); ++i) {
    Site& site = plan_.sites[site_of_address_[fmt::format("198.51.100.{}", i + 1)]];
    if (site.fate == Fate::silent) continue;
    ReceiverBehaviour better;
    better.pipelining = site.behaviour.pipelining;
    better.chunking = site.behaviour.chunking;
    better.recipients_most = site.behaviour.recipients_most;
    better.tls = site.behaviour.tls;
    receivers_[i].behaviour = better;
  }
  for (Sender& sender : senders_) sender.behaviour.drop_in_data = sender.behaviour.drop_after_data = 0;
  published_.failure = 0;
  for (unsigned i = 0; i < plan_.sites.size(); ++i) {
    if (plan_.sites[i].sts == Site::Sts::enforce) publish_policies(i, false);
  }
  for (unsigned i = 0; i < plan_.sites.size(); ++i) {
    for (unsigned h = 0; h < plan_.sites[i].hosts && plan_.sites[i].dane == Site::Dane::wrong; ++h) publish(i, h, true);
  }
}

void Run::revive() {
  for (size_t i = 0; i < receivers_.size(); ++i) {
    std::string address = fmt::format("198.51.100.{}", i + 1);
    Site& site = plan_.sites[site_of_address_[address]];
    receivers_[i].behaviour.reply_delay_min_ns = receivers_[i].behaviour.reply_delay_max_ns = 0;
    if (site.fate == Fate::refused && !receivers_[i].listen(*Address::parse(address + ":25")).ok()) {
      object("a receiver cannot listen");
    }
  }
  for (const auto& [domain, site] : site_of_domain_) {
    if (plan_.sites[site].fate == Fate::no_route) zones_.heal(domain);
  }
}

bool Run::run_until(const std::function<bool()>& done, int64_t for_ns) {
  int64_t deadline = world_.now() + for_ns;
  bool ended = false;
  while (world_.now() < deadline && !ended && !failed()) {
    int64_t step = std::min(world_.now() + kSecond, deadline);
    world_.run_until(
        [&] {
          look();
          return failed();
        },
        step);
    ended = done();
  }
  return ended;
}

void Run::look() {
  if (!core_) return;
  std::fill(open_.begin(), open_.end(), 0u);
  world_.each_outbound(relay_host_, [&](const Address& local, const Address& peer) {
    auto site = site_of_peer_.find(peer);
    if (site == site_of_peer_.end()) return object("a connection to " + peer.to_string());
    ++open_[pair_of(site->second, local)];
  });
  for (Bound& bound : bounds_) {
    unsigned open = 0;
    for (size_t pair : bound.pairs) open += open_[pair];
    // Over several shards a lowered limit is met shard by shard, but for those that one shard decides for all: until
    // the next start the higher one counts.
    if (bound.allowed > bound.limit && world_.now() >= limits_change_until_ && (bound.exact || plan_.shards == 1)) {
      bound.allowed = std::max(bound.limit, std::min(bound.allowed, open));
    }
    if (open > bound.allowed) {
      object(fmt::format("{:.6f} {} connections {}", static_cast<double>(world_.now()) / 1e9, open, bound.what));
    }
  }
  if (plan_.shaping.on && plan_.shaping.in_flight > 0) look_at_transactions();
  if (world_.now() < next_check_) return;
  next_check_ = world_.now() + 250 * kMillisecond;
  uint64_t bytes = 0;
  for (auto& io : ios_) {
    for (int group = 0; group < reactor::kBufferGroups; ++group) {
      bytes += io->buffers(static_cast<reactor::BufferGroup>(group)).bytes_in_use();
    }
  }
  if (bytes > plan_.config->memory) object(fmt::format("{} bytes of buffers in use", bytes));
  // It holds connections against the limit of now, and those of a higher limit may be open still.
  for (unsigned i = 0; i < core_->shards() && !lowered_; ++i) core_->shard(i).scheduler().check();
  if (plan_.shaping.on && started_) core_->shard(0).scheduler().arbiter()->check();
}

// Those that receivers are in the middle of, on connections that the relay has not closed.
void Run::look_at_transactions() {
  std::unordered_set<Address, reactor::AddressHash> open;
  world_.each_outbound(relay_host_, [&](const Address& local, const Address& peer) {
    auto site = site_of_peer_.find(peer);
    if (site != site_of_peer_.end() && provided(site->second)) open.insert(local);
  });
  if (open.size() <= plan_.shaping.in_flight) return;
  size_t under_way = 0;
  for (const Receiver& receiver : receivers_) {
    for (const Address& local : receiver.in_transaction()) under_way += open.contains(local);
  }
  if (under_way > plan_.shaping.in_flight) object(fmt::format("{} transactions with the provider at a time", under_way));
}

void Run::tell_queues() {
  for (unsigned i = 0; i < senders_.size(); ++i) {
    if (!senders_[i].idle()) object(fmt::format("sender {} is not done: {}", i, senders_[i].last_refusal));
  }
  for (unsigned i = 0; i < core_->shards(); ++i) {
    for (const queue::QueueRow& row : core_->shard(i).scheduler().queue_rows()) {
      object(fmt::format("shard {}: {} has {} messages, {} ready, {} in flight, {} waiting: {}", i, row.domain,
                         row.messages, row.ready, row.in_flight, row.waiting, row.why));
      if (!plan_.shaping.on) continue;
      for (queue::ExplainRow& one : core_->shard(i).scheduler().explain(row.domain, {})) {
        core_->shard(0).scheduler().explain_limits(one);
        std::string text = fmt::format("  {} from source {}: {}; {} connections", one.domain, one.source_number, one.why, one.connections);
        for (const auto* limits : {&one.connection_limits, &one.attempt_limits}) {
          for (const shaping::LimitRow& limit : *limits) {
            text += fmt::format("; {} {} {}: {} used, {} wait", limit.scope, limit.key, limit.limit, limit.used, limit.waiting);
          }
        }
        object(std::move(text));
      }
    }
  }
  for (std::string& one : judge_.unended()) object(std::move(one));
}

// Everything that was promised to senders has ended, where its destination lives.
bool Run::well_ended() const {
  for (const Sender& sender : senders_) {
    if (!sender.idle()) return false;
  }
  for (const auto& [number, recipients] : ledger_.promises()) {
    for (const std::string& recipient : recipients) {
      std::string domain = recipient.substr(recipient.find('@') + 1);
      if (plan_.sites[site_of_domain_.at(domain)].fate != Fate::well) continue;
      if (!judge_.end_of(number, recipient)) return false;
    }
  }
  return true;
}

std::vector<std::string> Run::run() {
  submit();
  if (!boot()) return problems_;
  world_.faults() = plan_.faults;
  zones_.faults.failure = plan_.dns_failure;
  schedule_acts();
  if (plan_.disk_fills) {
    world_.after(static_cast<int64_t>(world_.chance().below(5 * kSecond)),
                 [this] {
                   if (!calm_) world_.disk(relay_host_).set_capacity(world_.chance().below(16 << 20));
                 });
  }
  auto never = [] { return false; };
  for (const auto& [after_ns, kind] : plan_.crashes) {
    run_until(never, after_ns);
    if (failed()) break;
    crash(kind);
    run_until(never, static_cast<int64_t>(world_.chance().below(5 * kSecond)));
    if (plan_.disk_fills) world_.disk(relay_host_).set_capacity(uint64_t{1} << 40);
    if (!boot()) break;
  }
  if (!failed()) run_until(never, plan_.trouble_ns);
  calm();
  for (int i = 0; i < 600 && !resumed_ && !failed(); ++i) {
    resume_all();
    run_until(never, kSecond);
  }
  if (!resumed_ && !failed()) object("what was paused cannot be resumed");
  if (plan_.flips) return end_after_flips();
  if (!failed() && !run_until([this] { return well_ended(); }, 3 * kHour) && !failed()) {
    object("mail to destinations that live does not drain while others are dead");
    tell_queues();
  }
  revive();
  auto drained = [this] {
    if (!judge_.all_ended()) return false;
    for (unsigned i = 0; i < core_->shards(); ++i) {
      if (core_->shard(i).scheduler().stats().items > 0) return false;
    }
    return true;
  };
  if (!failed() && !run_until(drained, 30 * kHour) && !failed()) {
    object("the queues do not drain");
    tell_queues();
  }
  if (!failed() && shut_down() && plan_.config->durability == config::Durability::disk && boot()) {
    run_until(never, kSecond);
    for (unsigned i = 0; i < core_->shards(); ++i) {
      if (core_->shard(i).scheduler().stats().items > 0) object("what has ended is in the queue again after a restart");
    }
    shut_down();
  }
  if (!failed()) {
    for (Receiver& receiver : receivers_) receiver.close();
    world_.run_until([&] { return std::all_of(receivers_.begin(), receivers_.end(), [](auto& r) { return r.closed(); }); },
                     world_.now() + 60 * kSecond);
    judge();
  }
  for (std::string& one : judge_.objections) object(std::move(one));
  if (verbose_) {
    fmt::print("{:.1f} s: {} accepted, {} copies, {} ended\n", static_cast<double>(world_.now()) / 1e9,
               ledger_.accepted(), copies_.size(), judge_.ends().size());
  }
  return std::move(problems_);
}

// What bits that flipped have damaged may stay undelivered, and an outcome that was damaged may be repeated. But it
// is set aside and told, everything else is delivered, and nothing arrives altered.
std::vector<std::string> Run::end_after_flips() {
  revive();
  auto drained = [this] { return judge_.all_ended(); };
  run_until(drained, 3 * kHour);
  uint64_t queued = 0;  // what cannot be read is told in the log and tried again
  for (unsigned i = 0; i < core_->shards(); ++i) queued += core_->shard(i).scheduler().stats().items;
  if (!drained() && damage_told_ == 0 && queued == 0 && !failed()) {
    object("mail is missing after bits have flipped, and no damage was told");
    tell_queues();
  }
  for (std::string& one : ledger_.violations(false)) {
    if (one.find("other bytes") != std::string::npos) object(std::move(one));
  }
  if (problems_.empty()) shut_down();
  return std::move(problems_);
}

void Run::judge() {
  for (size_t i = 0; i < receivers_.size(); ++i) {
    unsigned site = site_of_address_[fmt::format("198.51.100.{}", i + 1)];
    unsigned most = provided(site) && plan_.shaping.messages > 0 ? plan_.shaping.messages : messages_a_connection_;
    if (receivers_[i].messages_on_connection_most > most) {
      object(fmt::format("{} messages on a connection to receiver {}", receivers_[i].messages_on_connection_most, i));
    }
  }
  judge_rates();
  // What the relay says has ended is no longer lost, whatever the ledger could see of it.
  std::map<std::pair<std::string, std::string>, bool> taken;
  for (const auto& [number, id] : judge_.ids()) {
    for (const auto& [key, end] : judge_.ends()) {
      if (key.first == id && end.type != "delivered") ledger_.bounced(number, key.second);
    }
  }
  for (std::string& one : ledger_.violations(true)) object(std::move(one));
  for (const Copied& copy : copies_) {
    std::string domain = copy.recipient.substr(copy.recipient.find('@') + 1);
    for (const Pause& pause : paused_) {
      if (pause.domain == domain && copy.at_ns > pause.from_ns && copy.at_ns < pause.to_ns) {
        object(fmt::format("message {} for {} was sent while its domain was paused", copy.number, copy.recipient));
      }
    }
  }
  // Receivers see a transaction up to half a minute after it was begun. A crash and a reload begin a rate anew.
  bool rates_kept = plan_.config->destination_rate.limited() && crashed_at_.empty();
  double most = plan_.config->destination_rate.count * 2.5 + 1;
  for (const auto& [domain, begun] : transactions_) {
    for (size_t i = 0, first = 0; i < begun.size() && rates_kept; ++i) {
      while (begun[first] < begun[i] - 120 * kSecond) ++first;
      if (static_cast<double>(i - first + 1) <= most) continue;
      object(fmt::format("{} transactions for {} within two minutes", i - first + 1, domain));
      break;
    }
  }
  std::map<std::pair<size_t, uint64_t>, std::set<uint64_t>> doubled;  // by connection: numbers
  for (const Copied& copy : copies_) {
    const EventJudge::End* end = judge_.end_of(copy.number, copy.recipient);
    if (end && copy.at_ns > end->at_ns) {
      object(fmt::format("message {} for {} was sent again after it had ended as {}", copy.number, copy.recipient, end->type));
    }
    if (copy.copy != Copy::unreplied && judge_.ids().contains(copy.number)) taken[{judge_.ids().at(copy.number), copy.recipient}] = true;
    bool crash_near = std::any_of(crashed_at_.begin(), crashed_at_.end(), [&](int64_t at) {
      return at + kSecond > copy.at_ns && at - plan_.unsynced_ns < copy.at_ns;
    });
    bool again = std::any_of(copies_.begin(), copies_.end(), [&](const Copied& other) {
      return other.number == copy.number && other.recipient == copy.recipient && other.at_ns > copy.at_ns;
    });
    if (again && !crash_near) doubled[{copy.receiver, copy.connection}].insert(copy.number);
  }
  for (const auto& [connection, numbers] : doubled) {
    if (numbers.size() > uncertain_) {
      object(fmt::format("{} messages of one connection were sent twice", numbers.size()));
    }
  }
  for (const auto& [number, id] : judge_.ids()) {
    for (const auto& [key, end] : judge_.ends()) {
      if (key.first == id && end.type == "delivered" && !taken.contains(key)) {
        object(fmt::format("message {} for {} is delivered, and no receiver has taken it", number, key.second));
      }
    }
  }
}

[[noreturn]] void replay(uint64_t seed, const Less& less) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // in order with the log
  Run& run = *new Run(seed, less, true);  // never destroyed: a run that has failed stops wherever it is
  std::vector<std::string> problems = run.run();
  for (const std::string& problem : problems) fmt::print("seed {}: {}\n", seed, problem);
  fmt::print("seed {}: {} (fingerprint {:016x})\n", seed, problems.empty() ? "every promise kept" : "FAILED",
             run.fingerprint());
  leave(problems.empty() ? 0 : 1);
}

// Runs one seed in a process of its own, which writes its log to `log`; -1: none could be made.
pid_t begin_child(uint64_t seed, const Less& less, std::FILE* log, bool fingerprints, bool quiet) {
  if (ftruncate(fileno(log), 0) != 0) return -1;
  std::fflush(stdout);
  pid_t child = fork();
  if (child != 0) return child;
  dup2(fileno(log), STDERR_FILENO);
  fcntl(STDERR_FILENO, F_SETFL, O_APPEND);
  if (quiet) dup2(fileno(log), STDOUT_FILENO);
  itimerval most{.it_interval = {}, .it_value = {.tv_sec = kSeedSeconds, .tv_usec = 0}};
  setitimer(ITIMER_PROF, &most, nullptr);
  Run& run = *new Run(seed, less, false);
  std::vector<std::string> problems = run.run();
  for (const std::string& problem : problems) fmt::print("seed {}: {}\n", seed, problem);
  if (fingerprints) fmt::print("seed {}: fingerprint {:016x}\n", seed, run.fingerprint());
  leave(problems.empty() ? 0 : 1);
}

// What of a failing seed can be left out such that it still fails: kinds of trouble, then messages.
Less shrink(uint64_t seed, std::FILE* log) {
  auto fails = [&](const Less& less) {
    int status = 0;
    pid_t child = begin_child(seed, less, log, false, true);
    return child > 0 && waitpid(child, &status, 0) == child && status != 0;
  };
  Less least;
  for (const char* kind : kKinds) {
    Less less = least;
    less.without.insert(kind);
    if (fails(less)) least = less;
  }
  for (unsigned step = 64; step > 0; step /= 2) {
    Less less = least;
    less.messages = std::min(least.messages, 80u) - std::min(std::min(least.messages, 80u) - 1, step);
    if (less.messages < least.messages && fails(less)) least = less;
  }
  return least;
}

std::string options_of(const Less& less) {
  std::string text;
  if (less.messages != UINT32_MAX) text += fmt::format(" --messages {}", less.messages);
  if (!less.without.empty()) text += fmt::format(" --without {}", fmt::join(less.without, ","));
  return text;
}

void tell_failure(uint64_t seed, int status, std::FILE* log, const char* program) {
  if (WIFSIGNALED(status)) {
    fmt::print("seed {}: {}\n", seed,
               WTERMSIG(status) == SIGPROF ? fmt::format("not done in {} s", kSeedSeconds) : strsignal(WTERMSIG(status)));
  }
  std::rewind(log);
  std::deque<std::string> lines;
  char line[2048];
  while (std::fgets(line, sizeof line, log)) {
    lines.push_back(line);
    if (lines.size() > 25) lines.pop_front();
  }
  for (const std::string& one : lines) fmt::print("  {}", one);
  fmt::print("seed {} failed. To replay it:\n  {} --seed {}\n", seed, program, seed);
  if (!std::getenv("MILLRACE_MUTANT")) {
    std::fflush(stdout);
    fmt::print("and with what it takes to fail:\n  {} --seed {}{}\n", program, seed, options_of(shrink(seed, log)));
  }
  std::fflush(stdout);
}

// `jobs` seeds at a time.
int all(uint64_t first, uint64_t last, unsigned jobs, bool keep_going, bool fingerprints, const char* program) {
  auto begun = std::chrono::steady_clock::now();
  auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count(); };
  struct Job {
    std::FILE* log = std::tmpfile();
    pid_t child = -1;
    uint64_t seed = 0;
  };
  std::vector<Job> running(jobs);
  std::vector<uint64_t> failed;
  uint64_t next = first, done = 0;
  double told = 0;
  bool more = true;
  for (;;) {
    for (Job& job : running) {
      if (job.child >= 0 || !more || (!keep_going && !failed.empty())) continue;
      job.seed = next;
      job.child = begin_child(next, {}, job.log, fingerprints, false);
      if (job.child < 0) return 2;
      more = next++ != last;
    }
    int status = 0;
    pid_t child = waitpid(-1, &status, 0);
    if (child < 0) break;  // no child is left
    auto job = std::find_if(running.begin(), running.end(), [&](const Job& one) { return one.child == child; });
    if (job == running.end()) continue;
    job->child = -1;
    ++done;
    if (status != 0) {
      failed.push_back(job->seed);
      tell_failure(job->seed, status, job->log, program);
    }
    if (last == UINT64_MAX && seconds() > told + 60) {
      told = seconds();
      fmt::print("{} seeds from {}, {} failed\n", done, first, failed.size());
      std::fflush(stdout);
    }
  }
  if (!failed.empty()) {
    if (keep_going) fmt::print("{} of {} seeds failed: {}\n", failed.size(), done, fmt::join(failed, " "));
    return 1;
  }
  rusage used{};
  getrusage(RUSAGE_CHILDREN, &used);
  auto of = [](const timeval& time) { return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6; };
  double processor = of(used.ru_utime) + of(used.ru_stime);
  fmt::print("{} seeds kept every promise: {:.1f} s, {:.0f} seeds a minute of one core\n", done, seconds(),
             static_cast<double>(done) * 60 / processor);
  return 0;
}

int usage() {
  fmt::print(stderr, "usage: relay_sim [--seeds A-B] [--jobs N] [--forever] [--keep-going] [--fingerprints] |\n"
                     "       --seed N [--messages M] [--without KIND,...], of {}\n", fmt::join(kKinds, " "));
  return 2;
}

bool read_without(std::string_view list, Less& less) {
  while (!list.empty()) {
    std::string kind(list.substr(0, list.find(',')));
    list.remove_prefix(std::min(list.size(), kind.size() + 1));
    if (std::find(std::begin(kKinds), std::end(kKinds), kind) == std::end(kKinds)) return false;
    less.without.insert(kind);
  }
  return true;
}

}  // namespace
}  // namespace millrace::sim

int main(int argc, char** argv) {
  using namespace millrace;
  // Memory stays with the process: a seed asks for megabytes again and again.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  uint64_t first = 1, last = std::getenv("MILLRACE_TEST_LONG") ? 20'000 : 2'000, seed = 0;
  unsigned jobs = std::clamp(std::thread::hardware_concurrency(), 1u, 16u);
  bool keep_going = false, fingerprints = false, forever = false, chosen = false;
  sim::Less less;
  for (int i = 1; i < argc; ++i) {
    std::string_view option = argv[i];
    if (option == "--keep-going") {
      keep_going = true;
    } else if (option == "--fingerprints") {
      fingerprints = true;
    } else if (option == "--forever") {
      forever = true;
    } else if (option == "--jobs" && i + 1 < argc) {
      jobs = static_cast<unsigned>(std::clamp(std::strtoul(argv[++i], nullptr, 10), 1ul, 256ul));
    } else if (option == "--seed" && i + 1 < argc) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (option == "--messages" && i + 1 < argc) {
      less.messages = static_cast<unsigned>(std::max(1ul, std::strtoul(argv[++i], nullptr, 10)));
    } else if (option == "--without" && i + 1 < argc) {
      if (!sim::read_without(argv[++i], less)) return sim::usage();
    } else if (option == "--seeds" && i + 1 < argc) {
      chosen = true;
      char* end = nullptr;
      first = last = std::strtoull(argv[++i], &end, 10);
      if (*end == '-') last = std::strtoull(end + 1, &end, 10);
      if (*end != 0 || (last < first && !forever)) return sim::usage();
    } else {
      return sim::usage();
    }
  }
  if (seed != 0) {
    log::set_level(log::Level::debug);
    sim::replay(seed, less);
  }
  if (forever) {
    last = UINT64_MAX;
    if (!chosen) first = static_cast<uint64_t>(std::time(nullptr)) * 1'000;
  }
  log::set_level(log::Level::info);
  return sim::all(first, last, fingerprints ? 1 : jobs, keep_going, fingerprints, argv[0]);
}
