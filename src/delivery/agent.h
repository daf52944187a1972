// Delivery as the queue sees it: finds the next hop of a destination, opens connections, and
// remembers what they taught: addresses that do not answer, receivers that close after so many
// messages.
//
// One a shard. Everything runs on its thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "config/config.h"
#include "config/shaping.h"
#include "delivery/address_holds.h"
#include "delivery/close_limits.h"
#include "delivery/connection.h"
#include "delivery/hand_over.h"
#include "delivery/mta_sts.h"
#include "delivery/source_check.h"
#include "delivery/tls_report.h"
#include "delivery/tls_policy.h"
#include "dns/mx.h"
#include "queue/agent.h"

namespace millrace::delivery {

// What the DNS side must know of the configuration: our own names and addresses, ports, families.
dns::MxOptions mx_options(const config::Config& config);

struct AgentStats {
  uint64_t connects = 0;          // connections tried
  uint64_t connect_failures = 0;  // addresses that did not answer or did not greet
  uint64_t sessions = 0;          // conversations that came to transactions
  uint64_t messages = 0;          // transactions given back to the queue
  uint64_t lanes = 0;             // now
  uint64_t protocol_errors = 0;
  uint64_t lost = 0;
  // TLS
  uint64_t tls_handshakes = 0;        // completed, resumed ones included
  uint64_t tls_resumed = 0;
  uint64_t tls_unverified = 0;        // of them, with a certificate that is not good for the host
  uint64_t tls_not_offered = 0;       // EHLO without STARTTLS
  uint64_t tls_refused = 0;           // STARTTLS answered with 4xx or 5xx
  uint64_t tls_failed_no_common = 0;  // no version or suite in common
  uint64_t tls_failed_certificate = 0;
  uint64_t tls_failed_alert = 0;      // the receiver's
  uint64_t tls_failed_protocol = 0;   // broken, or not TLS at all
  uint64_t tls_failed_ended = 0;      // closed, reset or silent
  uint64_t tls_dane = 0;              // handshakes verified by TLSA records
  uint64_t tls_mta_sts = 0;           // under an MTA-STS policy in mode enforce
  uint64_t tls_blocked = 0;           // hosts not tried: TLSA records not to be had
  uint64_t auth_failures = 0;         // AUTH refused, or not possible
  uint64_t plaintext_sessions = 0;    // that came to transactions in the clear
};

class DeliveryAgent final : public queue::Agent {
 public:
  // `io` and `mx` outlive the agent.
  DeliveryAgent(reactor::Io& io, config::Snapshot config, dns::Mx& mx, dns::Cache& cache, unsigned shard = 0);
  // REQUIRES: no lane is open: the queue was stopped, or abort() has run to its end.
  ~DeliveryAgent() override;

  // ---- queue::Agent
  void start(queue::Dispatcher& dispatcher) override;
  void resolve(queue::Destination& destination) override;
  queue::Lane* open(queue::Site& site, unsigned source) override;

  // For connections opened from now on.
  void adopt(config::Snapshot config);
  // What the DNS says of our sources; outlives the agent. nullptr: nobody asks.
  void set_sources(const SourceCheck* sources) { sources_ = sources; }
  // Resets every connection; each still ends by lane_closed().
  void abort();
  const AgentStats& stats() const { return stats_; }

  // Sites that completed TLS. on_tls_news tells of one that is to be stored and told to the other shards.
  TlsMemory& tls_memory() { return tls_memory_; }
  StsPolicies& sts_policies() { return sts_; }
  std::function<void(uint64_t site, int64_t wall_ms)> on_tls_news;
  // What was counted for reports since the last call.
  TlsCounts take_tls_counts() { return std::exchange(tls_counts_, {}); }

 private:
  friend class Connection;
  friend class HandOver;
  void closed(Connection& connection);  // destroys it
  void closed(HandOver& hand_over);     // likewise
  // The route of mail that goes elsewhere; answered at the end of the turn.
  void answer(queue::Destination& destination, std::shared_ptr<const dns::Route> route);
  void on_answers();

  reactor::Io& io_;
  config::Snapshot config_;
  dns::Mx& mx_;
  StsPolicies sts_;
  const SourceCheck* sources_ = nullptr;
  queue::Dispatcher* dispatcher_ = nullptr;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::vector<std::unique_ptr<HandOver>> hand_overs_;
  std::vector<std::pair<queue::Destination*, std::shared_ptr<const dns::Route>>> answers_;
  reactor::Deferred answer_;
  AddressHolds holds_;
  CloseLimits close_limits_;
  // Of a (site, source): how many of its next connections go in the clear, because all hosts refused TLS to as many; where to,
  // and what the last one said. Connections of their own, so that what limits connections and their rate counts them. Holds
  // for kFallbackNs after the last refusal, or until TLS comes about. As long as that so that a slow connect rate, too, lets
  // the connection in the clear follow: else such mail would go on being refused TLS for ever.
  static constexpr int64_t kFallbackNs = 600'000'000'000;
  static constexpr size_t kMostFallbacks = 10'000;
  struct Fallback {
    uint32_t connections = 0;
    std::string refusal;
    std::vector<reactor::Address> refusing;  // by the last connection that all refused
    int64_t refused_ns = 0;
  };
  std::map<std::pair<const queue::Site*, unsigned>, Fallback> fallbacks_;
  // Likewise, how many do without REQUIRETLS, because no host offered it to as many.
  struct Lacking {
    uint32_t connections = 0;
    int64_t found_ns = 0;
  };
  std::map<std::pair<const queue::Site*, unsigned>, Lacking> lacking_requiretls_;
  void make_tls_context();
  void count_sts_failure(const std::string& domain, TlsFailure failure);
  struct Resolving;
  void resolved(const std::shared_ptr<Resolving>& both);
  // With the certificate that these credentials have, if they have one.
  std::shared_ptr<tls::ClientContext> tls_context(const config::HopCredentials* credentials);
  std::shared_ptr<tls::ClientContext> tls_;
  std::shared_ptr<const tls::ClientSettings> tls_settings_;  // that it was made from
  // By certificate; of the present configuration.
  std::map<std::string, std::shared_ptr<tls::ClientContext>> tls_with_certificate_;
  TlsMemory tls_memory_;
  TlsCounts tls_counts_;  // RFC 8460; while --tls-reports says so
  uint64_t next_number_;
  AgentStats stats_;
};

}  // namespace millrace::delivery
