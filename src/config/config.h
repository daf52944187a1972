// The configuration: one immutable snapshot, checked whole. Every field is a flag of `millrace` and a key
// of the TOML file (config/schema.cc binds the names, units, defaults, help and checks; `--help` and
// docs/ are made from it). Durations are milliseconds, sizes bytes, unless the name says otherwise.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "reactor/address.h"
#include "tls/context.h"
#include "tls/level.h"

namespace millrace::config {

class Credentials;  // config/credentials.h
class HopCredentialsFile;  // config/hop_credentials.h
class Shaping;      // config/shaping.h

enum class Durability : uint8_t { disk, memory };
enum class Ipv6 : uint8_t { off, prefer, after_ipv4 };
enum class BadLines : uint8_t { reject, tag, fix };
enum class ReceivedHeader : uint8_t { full, hide_client, off };
using TlsLevel = tls::Level;  // towards receivers
enum class Reports : uint8_t { all, failure, none };

struct Listen {
  reactor::Address address;
  bool proxy = false;  // PROXY v1/v2 expected from --proxy-from
  bool tls = false;    // --listen-tls: TLS before the greeting
};

struct Source {
  reactor::Address ipv4, ipv6;  // either may be empty; both empty: the kernel chooses
  std::string ehlo_name;        // empty: the hostname
};

// An explicit next hop: a smarthost, or a route of one domain. No MX look-up, no private-address rule, no
// ramp and no default rate.
struct NextHop {
  std::string host;  // name or address
  uint16_t port = 25;
  bool tls = false;  // smtps://: before the greeting
  bool empty() const { return host.empty(); }
};

// A rate counts messages: `count` per `period_ms`; 0 is no limit.
struct Rate {
  double count = 0;
  int64_t period_ms = 1000;
  bool limited() const { return count > 0; }
};

struct Config {
  // ---- process
  std::string hostname;               // --hostname, a fully qualified name
  std::string spool = "/var/spool/millrace";
  unsigned shards = 0;                // 0: the number of cores
  Durability durability = Durability::disk;
  std::string user;
  bool confinement = true;            // Landlock and seccomp
  uint64_t memory = 0;                // 0: half of the machine's, at most 4 GiB
  std::string io_features = "all";
  std::string log_level = "info";
  int64_t drain_timeout_ms = 30'000;

  // ---- ingress
  std::vector<Listen> listen;
  std::vector<Listen> listen_tls;
  std::vector<std::string> tls_certificates;  // PEM files; the n-th key belongs to the n-th certificate
  std::vector<std::string> tls_keys;
  bool require_tls = false;                   // no mail in the clear
  std::string client_ca;                      // PEM file: a certificate of these is permission to relay
  std::string credentials;                    // file; empty: nobody authenticates
  bool auth_on_loopback = false;              // also without TLS, for clients of this machine
  std::vector<reactor::Network> relay_from;   // default: loopback
  std::vector<reactor::Network> proxy_from;
  uint64_t max_message_size = 50u << 20;
  uint32_t max_recipients = 1000;             // per transaction
  uint32_t max_connections = 10'000;          // inbound, all shards
  uint32_t max_connections_per_client = 1000;
  uint32_t max_errors = 20;                   // per session, then 421
  int64_t command_timeout_ms = 300'000;       // RFC 5321 4.5.3.2.7
  int64_t data_timeout_ms = 180'000;          // between pieces of data
  int64_t message_timeout_ms = 3'600'000;     // one message's data in all
  int64_t admission_wait_ms = 10'000;         // held back at MAIL before 452 4.3.1
  BadLines on_bad_lines = BadLines::reject;
  ReceivedHeader received = ReceivedHeader::hide_client;
  bool add_missing_headers = true;            // Date, Message-ID
  uint32_t max_received_headers = 100;
  std::string header_pool = "X-Virtual-MTA";
  std::string header_job = "X-Job";
  std::string header_envid = "X-EnvID";
  std::string header_expire = "X-Expire-After";

  // ---- spool
  uint64_t segment_size = 64u << 20;
  uint64_t spool_reserve = 256u << 20;        // kept free for outcomes and compaction
  uint32_t compact_below_percent = 25;        // live share under which a segment is compacted

  // ---- DNS
  std::vector<reactor::Address> dns_servers;  // default: /etc/resolv.conf
  std::vector<reactor::Address> dnssec_resolvers;  // whose AD counts, beside loopback ones
  int64_t dns_timeout_ms = 5'000;
  int64_t dns_negative_ttl_ms = 300'000;      // at most
  int64_t nxdomain_confirm_ms = 600'000;

  // ---- queue and delivery
  std::vector<Source> sources;
  Ipv6 ipv6 = Ipv6::off;
  bool ipv6_without_ptr = false;              // also from addresses whose PTR record and name do not match
  NextHop smarthost;
  std::map<std::string, NextHop> routes;      // by routing domain
  std::string next_hop_credentials;           // file; empty: none
  uint16_t remote_port = 25;
  bool allow_private_destinations = false;
  TlsLevel tls = TlsLevel::automatic;         // where the shaping file says nothing of the domain
  std::map<std::string, TlsLevel> tls_for;    // by host name: that host and those below it
  std::string tls_ca_file = "/etc/ssl/certs/ca-certificates.crt";
  std::string tls_reports = "off";            // RFC 8460: the address that reports name as ours, or "off"
  std::string tls_reports_organization;       // empty: the hostname
  bool sends_tls_reports() const { return tls_reports != "off"; }
  std::vector<reactor::Address> own_addresses;  // --own-address: NAT addresses that are ours
  std::vector<int64_t> retry_ms = {300'000, 600'000, 1'200'000, 2'400'000, 3'600'000, 7'200'000, 14'400'000};
  int64_t expire_after_ms = 4 * 86'400'000LL;
  int64_t retry_uncertain_ms = 600'000;
  std::vector<int64_t> hold_ms = {60'000, 120'000, 240'000, 480'000, 900'000};
  uint32_t destination_connections = 10;      // a (site, source)
  uint32_t initial_connections = 2;           // grows from here to destination_connections
  uint32_t messages_per_connection = 100;
  uint32_t total_connections = 20'000;        // outbound, all shards
  uint32_t recipients_per_transaction = 100;
  uint32_t uncertain_per_connection = 1;      // messages with an unanswered end of data
  Rate destination_rate;                      // default: none
  std::string shaping;                        // file; empty: what is built in
  std::shared_ptr<const Shaping> shaping_rules;  // what it says; never null once parsed
  Rate connect_rate{5, 1000};                 // a site
  uint32_t limit_share = 1;                   // 1/N: where N nodes send from the same sources
  bool destination_connections_given = false; // an explicit next hop obeys only what was given
  bool messages_per_connection_given = false;
  bool connect_rate_given = false;
  int64_t idle_timeout_ms = 5'000;
  int64_t connect_timeout_ms = 30'000;
  int64_t greeting_timeout_ms = 300'000;      // RFC 5321 4.5.3.2
  int64_t mail_timeout_ms = 300'000;
  int64_t rcpt_timeout_ms = 300'000;
  int64_t data_initiation_timeout_ms = 120'000;
  int64_t data_block_timeout_ms = 180'000;
  int64_t data_done_timeout_ms = 600'000;
  bool bounce_on_5xx_greeting = false;
  bool pipelining = true;                     // outbound; off: lockstep
  bool chunking = true;                       // outbound BDAT when offered

  // ---- reports and events
  Reports reports = Reports::failure;
  bool delay_reports = false;
  uint32_t reports_per_hour = 1000;           // per reverse-path
  std::string events;                         // file; empty: none
  uint64_t events_max_size = 1u << 30;        // then rotated
  std::string admin_socket;                   // Unix path; empty: <spool>/admin.sock

  // ---- read from the files named above when the configuration is (not settings)
  std::shared_ptr<const tls::ServerSettings> tls_server;  // null: TLS is not offered
  std::shared_ptr<const tls::ClientSettings> tls_client;  // null: as if it were empty
  std::shared_ptr<const Credentials> accounts;            // null: AUTH is not offered
  std::shared_ptr<const HopCredentialsFile> hop_credentials;  // null: none
};

// One part in `parts` of a limit, rounded down, so that the parts together are never over it; but of connections at least
// one, and of a rate one event in as many periods as it takes. `parts` 1: as it is.
uint32_t part_of(uint32_t limit, uint32_t parts);
Rate part_of(const Rate& rate, uint32_t parts);
// What this node may do of --destination-connections and --connect-rate.
inline uint32_t own_connections(const Config& config) { return part_of(config.destination_connections, config.limit_share); }
inline Rate own_connect_rate(const Config& config) { return part_of(config.connect_rate, config.limit_share); }

// All listeners in one list: --listen first.
std::vector<Listen> listeners(const Config& config);

using Snapshot = std::shared_ptr<const Config>;

}  // namespace millrace::config
