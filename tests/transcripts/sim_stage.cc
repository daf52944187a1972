// The simulated stage: the whole relay and its peers in one thread on virtual time (docs/simulation.md).
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/log.h"
#include "config/parse.h"
#include "dns/model.h"
#include "reactor/sim.h"
#include "relay/core.h"
#include "stage.h"

namespace millrace::transcripts {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

reactor::SimOptions quiet_network() {
  reactor::SimOptions options;
  options.faults.latency_max_ns = 200'000;
  return options;
}

class SimStage final : public Stage {
 public:
  explicit SimStage(uint64_t seed)
      : world_(seed, quiet_network()), relay_host_(world_.add_host({"192.0.2.1"})),
        client_host_(world_.add_host({"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.20"})) {
    io_ = world_.make_io(client_host_);
    for (unsigned n = 1; n <= kHosts; ++n) silent_hosts_.push_back(world_.add_host({host_address(n)}));
    for (reactor::HostId host : silent_hosts_) host_ios_.push_back(world_.make_io(host));
    clock = io_.get();
    log::set_clock([] { return clock->wall_ms(); });
    (void)world_.disk(relay_host_).make_directory("/spool");
    (void)world_.disk(relay_host_).sync_directory("/");
  }

  reactor::Io& io() override { return *io_; }
  reactor::Io& host_io(unsigned n) override { return *host_ios_[n - 1]; }
  bool simulated() const override { return true; }

  bool run_until(const std::function<bool()>& done, int64_t for_ns) override {
    return world_.run_until(
        [&] {
          look_at_memory();
          return done();
        },
        world_.now() + for_ns);
  }

  Status start_relay(const std::vector<std::string>& flags) override {
    Result<std::shared_ptr<const config::Config>> config = parse_flags(flags);
    if (!config.ok()) return fail(config.error());
    relay::Core::Parts parts;
    parts.config = *config;
    // What a file of events would hold is told to observers, and told again after a crash.
    parts.observers.push_back([this](std::string_view line) { events_.emplace_back(line); });
    uint64_t share = (*config)->memory / 2 / (*config)->shards;  // as relay.cc does
    for (unsigned i = 0; i < (*config)->shards; ++i) {
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
    Status result = success();
    core_->open([&](Status status) {
      answered = true;
      result = std::move(status);
    });
    if (!world_.run_until([&] { return answered; }, world_.now() + 600 * kSecond)) return fail("no answer in ten minutes");
    if (!result.ok()) return result;
    for (unsigned i = 0; i < core_->shards(); ++i) core_->start(i);
    return success();
  }

  Status stop_relay() override {
    bool stopped = false;
    core_->stop([&] { stopped = true; });
    if (!world_.run_until([&] { return stopped; }, world_.now() + 120 * kSecond)) {
      return fail("the relay does not stop within two minutes");
    }
    core_.reset();
    size_t left = world_.open_handles(relay_host_);
    ios_.clear();
    if (left > 0) return fail(fmt::format("{} handles are open after the relay has stopped", left));
    return success();
  }

  void kill_relay(bool power) override {
    world_.crash(relay_host_, power ? reactor::Crash::power : reactor::Crash::process);
    // A killed process destroys nothing.
    static std::vector<std::pair<relay::Core*, std::vector<std::unique_ptr<reactor::Io>>>> killed;
    killed.emplace_back(core_.release(), std::move(ios_));
    ios_.clear();
  }

  Status reload_relay(const std::vector<std::string>& flags) override {
    Result<std::shared_ptr<const config::Config>> config = parse_flags(flags);
    if (!config.ok()) return fail(config.error());
    core_->adopt(*config);
    return success();
  }

  bool relay_runs() const override { return core_ != nullptr; }
  const std::vector<std::string>& events() override { return events_; }
  uint64_t memory_used() override { return most_memory_; }
  bool relay_is_connected_to(unsigned host) override {
    bool found = false;
    const std::string address = host_address(host);
    world_.each_outbound(relay_host_, [&](const reactor::Address&, const reactor::Address& peer) { found = found || peer.host_string() == address; });
    return found;
  }

  void add_mx(const std::string& domain, uint16_t preference, const std::string& host) override {
    zones_.add_mx(domain, preference, host);
  }
  void add_address(const std::string& name, const std::string& address) override { zones_.add_address(name, address); }
  void add_alias(const std::string& name, const std::string& target) override { zones_.add_alias(name, target); }
  void add_empty(const std::string& name) override { zones_.add_empty(name); }
  void remove_name(const std::string& name) override { zones_.remove(name); }

  void set_name_fault(const std::string& name, NameFault fault) override {
    zones_.heal(name);
    switch (fault) {
      case NameFault::none:
      case NameFault::truncated:  // below the model
        return;
      case NameFault::nxdomain: return zones_.fail(name, dns::Outcome::nxdomain);
      case NameFault::garbage: return zones_.fail(name, dns::Outcome::malformed);
      case NameFault::loop: return zones_.add_alias(name, name);
      case NameFault::servfail:
      case NameFault::silent:
      case NameFault::wrong_id:
      case NameFault::wrong_question: return zones_.fail(name, dns::Outcome::failure);
    }
  }
  void set_name_outage(bool down) override {
    zones_.faults.outage = down ? std::optional(dns::Outcome::failure) : std::nullopt;
  }

  void set_disk_full(bool full) override {
    world_.disk(relay_host_).set_capacity(full ? 0 : uint64_t{1} << 40);
  }
  void set_disk_errors(bool errors) override {
    world_.faults().write_error = world_.faults().sync_error = errors ? 1 : 0;
  }
  void step_clock(int64_t ms) override { world_.step_wall(ms); }
  void set_silent(unsigned host, bool silent) override { world_.set_link(relay_host_, silent_hosts_[host - 1], !silent); }

  std::string relay_address() const override { return "192.0.2.1"; }
  std::string client_address(unsigned n) const override { return fmt::format("203.0.113.{}", n); }
  std::string host_address(unsigned n) const override { return fmt::format("198.51.100.{}", n); }

 private:
  Result<std::shared_ptr<const config::Config>> parse_flags(const std::vector<std::string>& flags) {
    std::vector<std::string> all = with_defaults(flags, {"--spool", "/spool", "--tls-ca-file", "",
                                                          "--listen", fmt::format("{}:{}", relay_address(), kRelayPort)});
    auto parsed = config::parse(all, config::System{kRelayName, uint64_t{8} << 30});
    if (!parsed.ok()) return fail(parsed.error());
    return std::shared_ptr<const config::Config>(parsed->config);
  }

  void look_at_memory() {
    uint64_t bytes = 0;
    for (auto& io : ios_) {
      for (int group = 0; group < reactor::kBufferGroups; ++group) {
        bytes += io->buffers(static_cast<reactor::BufferGroup>(group)).bytes_in_use();
      }
    }
    most_memory_ = std::max(most_memory_, bytes);
  }

  static inline const reactor::Io* clock = nullptr;
  reactor::SimWorld world_;
  const reactor::HostId relay_host_, client_host_;
  std::vector<reactor::HostId> silent_hosts_;
  std::unique_ptr<reactor::Io> io_;
  std::vector<std::unique_ptr<reactor::Io>> host_ios_, ios_;
  dns::ModelZones zones_;
  std::unique_ptr<relay::Core> core_;
  std::vector<std::string> events_;
  uint64_t most_memory_ = 0;
};

}  // namespace

std::unique_ptr<Stage> make_sim_stage(uint64_t seed) { return std::make_unique<SimStage>(seed); }

}  // namespace millrace::transcripts
