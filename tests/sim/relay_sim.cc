// The whole relay in simulation: every shard of a relay::Core between scripted senders and receivers, with
// faults of the network, the disk, the name servers and the power, all of it drawn from one seed; and
// checkers for the promises, apart from the scripts. docs/simulation.md tells what is checked and how.
//
//   relay_sim [--seeds A-B] [--keep-going]   each seed in a process of its own; ends at the first that fails
//   relay_sim --seed N                       one seed in this process, with the relay's log and every event
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
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
#include <unordered_map>
#include <vector>

#include "base/assert.h"
#include "base/log.h"
#include "config/parse.h"
#include "dns/model.h"
#include "ledger.h"
#include "mail/spool_id.h"
#include "reactor/sim.h"
#include "receiver.h"
#include "relay/core.h"
#include "sender.h"

namespace millrace::sim {
namespace {

using reactor::Address;
using reactor::Crash;

constexpr int64_t kMillisecond = 1'000'000;
constexpr int64_t kSecond = 1'000 * kMillisecond;
constexpr int64_t kHour = 3'600 * kSecond;
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
  ReceiverBehaviour behaviour;
};

struct Plan {
  unsigned shards = 1;
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

Plan make_plan(uint64_t seed) {
  Prng chance(seed * 0x2545f4914f6cdd1d + 1);
  auto pick = [&](std::initializer_list<uint64_t> of) { return *(of.begin() + chance.below(of.size())); };
  auto below_ns = [&](int64_t bound) { return static_cast<int64_t>(chance.below(static_cast<uint64_t>(bound))); };
  Plan plan;
  plan.shards = static_cast<unsigned>(1 + chance.below(3));
  auto parsed = config::parse({"--hostname", "relay.example", "--spool", "/spool", "--listen", "192.0.2.1:2525",
                               "--relay-from", "192.0.2.0/24", "--allow-private-destinations", "--shards",
                               std::to_string(plan.shards), "--memory", "64M", "--segment-size", "1M",
                               "--spool-reserve", "4M", "--max-message-size", "300000"},
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
  // Without the file a crash may lose the events of its moment, and with them what the judge goes by.
  if (events_file || !plan.crashes.empty()) config.events = "/spool/events.json";

  int64_t slowest_reply_ns = 0;
  for (const Site& site : plan.sites) slowest_reply_ns = std::max(slowest_reply_ns, site.behaviour.reply_delay_max_ns);
  plan.unsynced_ns += slowest_reply_ns + 4 * faults.latency_max_ns;

  plan.text = fmt::format(
      "shards {}, {}, memory {}M, segments {}M, {} connections (total {}), {} messages a connection, "
      "{} recipients a transaction, {} messages up to {} bytes, {} senders, {} crashes, reset {}, silence {}{}{}",
      plan.shards, config.durability == config::Durability::disk ? "disk" : "memory", config.memory >> 20,
      config.segment_size >> 20, config.destination_connections, config.total_connections,
      config.messages_per_connection, config.recipients_per_transaction, plan.messages, plan.most_bytes,
      plan.senders, plan.crashes.size(), faults.reset, faults.silence, plan.disk_fills ? ", disk fills" : "",
      config.events.empty() ? "" : ", events file");
  for (const Site& site : plan.sites) {
    plan.text += fmt::format("\n  site {}, {} hosts, {} domains", to_string(site.fate), site.hosts, site.domains);
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
      if (type == "bounced" && !refused_.contains(recipient) &&
          !missing_.contains(recipient.substr(recipient.find('@') + 1))) {
        object(fmt::format("bounced, though nobody refused it: {}", line));
      }
      int64_t age_s = seconds_of(event.value("time", "")) - seconds_of(event.value("received_time", ""));
      if (type == "expired" && age_s < expire_after_s_) object(fmt::format("expired at {} s: {}", age_s, line));
      if (type == "suppressed" || type == "removed") object(fmt::format("nobody asked for that: {}", line));
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
  bool all_ended() const { return unended().empty(); }
  // Messages with a 250 or an event of reception, and recipients that have not ended.
  std::vector<std::string> unended() const {
    std::vector<std::string> found;
    for (const auto& [id, number] : promised_) {
      if (!recipients_.contains(id)) found.push_back(fmt::format("{} (number {}) has a 250 and no event", id, number));
    }
    for (const auto& [id, recipients] : recipients_) {
      auto ended = ended_.find(id);
      unsigned count = ended == ended_.end() ? 0 : ended->second;
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
  static int64_t seconds_of(const std::string& time) {
    tm utc{};
    return strptime(time.c_str(), "%Y-%m-%dT%H:%M:%S", &utc) ? timegm(&utc) : 0;
  }

  bool replays_ = false;
  std::set<std::string> refused_, missing_;
  int64_t expire_after_s_ = 0;
  std::map<std::string, std::string> seen_;        // id of an event: its line
  std::map<std::string, uint64_t> promised_;       // spool id: number
  std::map<std::string, unsigned> recipients_;     // spool id: how many it was received for
  std::map<std::string, unsigned> ended_;          // spool id: how many have ended
  std::map<uint64_t, std::string> of_number_;
  std::map<std::pair<std::string, std::string>, End> ends_;
};

// ---- a run ------------------------------------------------------------------------------------------

class Run {
 public:
  Run(uint64_t seed, bool verbose);
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
  bool shut_down();
  void submit();
  void on_message(size_t receiver, const ReceivedMessage& message);
  void calm();
  void revive();
  // Runs that long, or until `done`, looking at the limits after every turn.
  bool run_until(const std::function<bool()>& done, int64_t for_ns);
  void look();
  void tell_queues();
  bool well_ended() const;
  void judge();
  void object(std::string what) {
    if (problems_.size() < 20) problems_.push_back(std::move(what));
  }
  bool failed() const { return !problems_.empty() || !judge_.objections.empty(); }

  const uint64_t seed_;
  const bool verbose_;
  Plan plan_;
  reactor::SimWorld world_;
  const reactor::HostId relay_host_, sender_host_, receiver_host_;
  dns::ModelZones zones_;
  Ledger ledger_;
  EventJudge judge_;
  std::unique_ptr<reactor::Io> sender_io_, receiver_io_;
  std::deque<Receiver> receivers_;
  std::deque<Sender> senders_;
  std::vector<std::unique_ptr<reactor::Io>> ios_;
  std::unique_ptr<relay::Core> core_;
  std::vector<Copied> copies_;
  std::vector<int64_t> crashed_at_;
  std::map<std::string, unsigned> site_of_address_;
  std::unordered_map<Address, unsigned, reactor::AddressHash> site_of_peer_;
  std::map<std::string, unsigned> site_of_domain_;
  std::vector<std::string> domains_;
  std::vector<unsigned> open_;  // connections now, by site
  int64_t next_check_ = 0;
  bool calm_ = false;  // faults have ended
  std::vector<std::string> problems_;
};

reactor::SimOptions sim_options(const Plan& plan) {
  reactor::SimOptions options;
  options.faults.latency_max_ns = plan.faults.latency_max_ns;
  return options;
}

Run::Run(uint64_t seed, bool verbose)
    : seed_(seed), verbose_(verbose), plan_(make_plan(seed)), world_(seed, sim_options(plan_)),
      relay_host_(world_.add_host({"192.0.2.1"})), sender_host_(world_.add_host({"192.0.2.2"})),
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
  open_.resize(plan_.sites.size());
  judge_.expire_after(plan_.config->expire_after_ms / 1'000);
  for (unsigned i = 0; i < plan_.sites.size(); ++i) {
    Site& site = plan_.sites[i];
    for (unsigned d = 0; d < site.domains; ++d) {
      std::string domain = fmt::format("d{}-{}.example", i, d);
      domains_.push_back(domain);
      site_of_domain_[domain] = i;
      for (unsigned h = 0; h < site.hosts && site.fate != Fate::missing; ++h) {
        zones_.add_mx(domain, static_cast<uint16_t>(10 * (h + 1)), fmt::format("mx{}.d{}.example", h, i));
      }
      if (site.fate == Fate::missing) judge_.missing(domain);
      if (site.fate == Fate::no_route) zones_.fail(domain, dns::Outcome::failure);
    }
    for (unsigned h = 0; h < site.hosts; ++h) {
      size_t number = receivers_.size();
      std::string address = fmt::format("198.51.100.{}", number + 1);
      zones_.add_address(fmt::format("mx{}.d{}.example", h, i), address);
      site_of_address_[address] = i;
      site_of_peer_[*Address::parse(address + ":25")] = i;
      Receiver& receiver = receivers_.emplace_back(*receiver_io_, seed * 1000 + number, site.behaviour);
      if (site.fate == Fate::silent) {
        receiver.behaviour.reply_delay_min_ns = receiver.behaviour.reply_delay_max_ns = kHour;
      }
      receiver.on_message = [this, number](const ReceivedMessage& message) { on_message(number, message); };
      receiver.on_refused = [this](const std::string& recipient) { judge_.refused(recipient); };
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
  core_ = std::make_unique<relay::Core>(std::move(parts));
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
  if (core_->recovery().records_damaged > 0) {
    object(fmt::format("recovery found damaged records: {}", fmt::join(core_->recovery().remarks, "; ")));
  }
  for (unsigned i = 0; i < plan_.shards; ++i) core_->start(i);
  return true;
}

void Run::crash(Crash kind) {
  if (verbose_) fmt::print("{:.6f} crash: {}\n", static_cast<double>(world_.now()) / 1e9, kind == Crash::power ? "power" : "process");
  world_.crash(relay_host_, kind);
  // A killed process destroys nothing: what it was stays as it is until this one ends.
  static std::vector<std::pair<relay::Core*, std::vector<std::unique_ptr<reactor::Io>>>> killed;
  killed.emplace_back(core_.release(), std::move(ios_));
  ios_.clear();
  ledger_.crashed(world_.now(), plan_.unsynced_ns);
  judge_.crashed();
  crashed_at_.push_back(world_.now());
}

bool Run::shut_down() {
  bool stopped = false;
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

void Run::on_message(size_t receiver, const ReceivedMessage& message) {
  if (message.reverse_path.empty()) return;  // a report
  uint64_t number = number_of(message.content);
  if (number != number_of_path(message.reverse_path)) object("a message arrived with another's envelope");
  for (const std::string& recipient : message.recipients) {
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
    receivers_[i].behaviour = better;
  }
  for (Sender& sender : senders_) sender.behaviour.drop_in_data = sender.behaviour.drop_after_data = 0;
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
  unsigned total = 0;
  world_.each_outbound(relay_host_, [&](const Address& peer) {
    auto site = site_of_peer_.find(peer);
    if (site == site_of_peer_.end()) return object("a connection to " + peer.to_string());
    ++total;
    if (++open_[site->second] > plan_.config->destination_connections) {
      object(fmt::format("{:.6f} {} connections to site {}", static_cast<double>(world_.now()) / 1e9,
                         open_[site->second], site->second));
    }
  });
  if (total > plan_.config->total_connections) object(fmt::format("{} connections in all", total));
  if (world_.now() < next_check_) return;
  next_check_ = world_.now() + 250 * kMillisecond;
  uint64_t bytes = 0;
  for (auto& io : ios_) {
    for (int group = 0; group < reactor::kBufferGroups; ++group) {
      bytes += io->buffers(static_cast<reactor::BufferGroup>(group)).bytes_in_use();
    }
  }
  if (bytes > plan_.config->memory) object(fmt::format("{} bytes of buffers in use", bytes));
  for (unsigned i = 0; i < core_->shards(); ++i) core_->shard(i).scheduler().check();
}

void Run::tell_queues() {
  for (unsigned i = 0; i < senders_.size(); ++i) {
    if (!senders_[i].idle()) object(fmt::format("sender {} is not done: {}", i, senders_[i].last_refusal));
  }
  for (unsigned i = 0; i < core_->shards(); ++i) {
    for (const queue::QueueRow& row : core_->shard(i).scheduler().queue_rows()) {
      object(fmt::format("shard {}: {} has {} messages, {} ready, {} in flight, {} waiting: {}", i, row.domain,
                         row.messages, row.ready, row.in_flight, row.waiting, row.why));
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

void Run::judge() {
  for (size_t i = 0; i < receivers_.size(); ++i) {
    if (receivers_[i].messages_on_connection_most > plan_.config->messages_per_connection) {
      object(fmt::format("{} messages on a connection to receiver {}", receivers_[i].messages_on_connection_most, i));
    }
  }
  // What the relay says has ended is no longer lost, whatever the ledger could see of it.
  std::map<std::pair<std::string, std::string>, bool> taken;
  for (const auto& [number, id] : judge_.ids()) {
    for (const auto& [key, end] : judge_.ends()) {
      if (key.first == id && (end.type == "bounced" || end.type == "expired")) ledger_.bounced(number, key.second);
    }
  }
  for (std::string& one : ledger_.violations(true)) object(std::move(one));
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
    if (numbers.size() > plan_.config->uncertain_per_connection) {
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

[[noreturn]] void replay(uint64_t seed) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // in order with the log
  Run& run = *new Run(seed, true);  // never destroyed: a run that has failed stops wherever it is
  std::vector<std::string> problems = run.run();
  for (const std::string& problem : problems) fmt::print("seed {}: {}\n", seed, problem);
  fmt::print("seed {}: {} (fingerprint {:016x})\n", seed, problems.empty() ? "every promise kept" : "FAILED",
             run.fingerprint());
  std::fflush(stdout);
  _exit(problems.empty() ? 0 : 1);
}

int all(uint64_t first, uint64_t last, bool keep_going, bool fingerprints, const char* program) {
  auto begun = std::chrono::steady_clock::now();
  std::FILE* log = std::tmpfile();
  std::vector<uint64_t> failed;
  for (uint64_t seed = first; seed <= last; ++seed) {
    if (ftruncate(fileno(log), 0) != 0) return 2;
    std::fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
      dup2(fileno(log), STDERR_FILENO);
      fcntl(STDERR_FILENO, F_SETFL, O_APPEND);
      itimerval most{.it_interval = {}, .it_value = {.tv_sec = kSeedSeconds, .tv_usec = 0}};
      setitimer(ITIMER_PROF, &most, nullptr);
      Run& run = *new Run(seed, false);
      std::vector<std::string> problems = run.run();
      for (const std::string& problem : problems) fmt::print("seed {}: {}\n", seed, problem);
      if (fingerprints) fmt::print("seed {}: fingerprint {:016x}\n", seed, run.fingerprint());
      std::fflush(stdout);
      _exit(problems.empty() ? 0 : 1);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return 2;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) continue;
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
    failed.push_back(seed);
    if (!keep_going) return 1;
  }
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  uint64_t count = last - first + 1;
  if (!failed.empty()) {
    fmt::print("{} of {} seeds failed: {}\n", failed.size(), count, fmt::join(failed, " "));
    return 1;
  }
  fmt::print("{} seeds kept every promise: {:.1f} s, {:.0f} seeds a minute\n", count, seconds,
             static_cast<double>(count) * 60 / seconds);
  return 0;
}

int usage() {
  fmt::print(stderr, "usage: relay_sim [--seeds A-B] [--keep-going] [--fingerprints] | --seed N\n");
  return 2;
}

}  // namespace
}  // namespace millrace::sim

int main(int argc, char** argv) {
  using namespace millrace;
  uint64_t first = 1, last = std::getenv("MILLRACE_TEST_LONG") ? 2000 : 250;
  bool keep_going = false, fingerprints = false;
  for (int i = 1; i < argc; ++i) {
    std::string_view option = argv[i];
    if (option == "--keep-going") {
      keep_going = true;
    } else if (option == "--fingerprints") {
      fingerprints = true;
    } else if (option == "--seed" && argc == 3) {
      log::set_level(log::Level::debug);
      sim::replay(std::strtoull(argv[2], nullptr, 10));
    } else if (option == "--seeds" && i + 1 < argc) {
      char* end = nullptr;
      first = last = std::strtoull(argv[++i], &end, 10);
      if (*end == '-') last = std::strtoull(end + 1, &end, 10);
      if (*end != 0 || last < first) return sim::usage();
    } else {
      return sim::usage();
    }
  }
  log::set_level(log::Level::info);
  return sim::all(first, last, keep_going, fingerprints, argv[0]);
}
