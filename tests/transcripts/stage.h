// Where a scenario is played: a relay, the network between it and the script's hosts, name servers and a
// clock. Two of them, with one interface: the real `millrace` over loopback, and the simulator.
//
// Both have the same addresses, so that a scenario reads the same on either: the relay listens on
// relay_address(), clients come from client_address(n), and the script's nine hosts are host_address(1) to
// host_address(9), port 25.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dns/answer.h"
#include "reactor/io.h"

namespace millrace::transcripts {

// What the name servers are told. Anything not told does not exist.
enum class NameFault : uint8_t {
  none,
  servfail,
  nxdomain,
  silent,          // no answer at all
  garbage,         // octets that are no reply
  wrong_id,        // a reply to another query
  wrong_question,  // a reply about another name
  truncated,       // over UDP cut short; whole over TCP
  loop,            // an alias of itself
};

class Stage {
 public:
  virtual ~Stage() = default;

  virtual reactor::Io& io() = 0;  // of the clients
  virtual reactor::Io& host_io(unsigned host) = 0;
  virtual bool simulated() const = 0;
  // Lets time pass until `done` or for so long.
  virtual bool run_until(const std::function<bool()>& done, int64_t for_ns) = 0;

  // Starts the relay with these flags besides the stage's own, and waits until it serves. The error is what it says.
  virtual Status start_relay(const std::vector<std::string>& flags) = 0;
  // SIGTERM, and all that follows: an error unless it ends well.
  virtual Status stop_relay() = 0;
  // SIGKILL, or (simulated) a power cut.
  virtual void kill_relay(bool power) = 0;
  // Reads the configuration again, with these flags. Simulated only.
  virtual Status reload_relay(const std::vector<std::string>& flags) = 0;
  virtual bool relay_runs() const = 0;
  // Each line of the events file, or what observers were told.
  virtual const std::vector<std::string>& events() = 0;
  // Whether the relay has a connection to the host, from its beginning until the relay closes it.
  virtual bool relay_is_connected_to(unsigned host) = 0;
  // Octets of memory that came with the peers' octets: what buffers hold, or growth of the process.
  virtual uint64_t memory_used() = 0;

  virtual void add_mx(const std::string& domain, uint16_t preference, const std::string& host) = 0;
  virtual void add_address(const std::string& name, const std::string& address) = 0;
  virtual void add_alias(const std::string& name, const std::string& target) = 0;
  virtual void add_empty(const std::string& name) = 0;
  virtual void remove_name(const std::string& name) = 0;
  virtual void set_name_fault(const std::string& name, NameFault fault) = 0;
  virtual void set_name_outage(bool down) = 0;  // every query is answered SERVFAIL

  // Simulated only.
  virtual void set_disk_full(bool full) = 0;
  virtual void set_disk_errors(bool errors) = 0;  // writes and syncs fail with EIO
  virtual void step_clock(int64_t ms) = 0;
  // The host's link is cut: nothing arrives, in either direction.
  virtual void set_silent(unsigned host, bool silent) = 0;

  virtual std::string relay_address() const = 0;
  virtual std::string client_address(unsigned n) const = 0;
  virtual std::string host_address(unsigned n) const = 0;
};

constexpr unsigned kHosts = 9;
constexpr uint16_t kRelayPort = 2525, kReceiverPort = 25;
constexpr const char* kRelayName = "relay.example";

std::unique_ptr<Stage> make_sim_stage(uint64_t seed);
// `slot`: scenarios played at the same time have different ones, 0 to 200. `folder` is the relay's to write to.
std::unique_ptr<Stage> make_real_stage(const std::string& relay_program, const std::string& folder, unsigned slot);

// The flags that every relay is started with, those given taking the place of the stage's own.
std::vector<std::string> with_defaults(const std::vector<std::string>& flags, std::vector<std::string> defaults);

}  // namespace millrace::transcripts
