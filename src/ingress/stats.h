// What a shard's ingress counts. Plain numbers of the shard's own; admin reads published copies.
#pragma once

#include <cstdint>

namespace millrace::ingress {

struct Stats {
  // ---- connections
  uint64_t connections_accepted = 0;   // greeted with 220
  uint64_t connections_open = 0;       // now, those being refused included
  uint64_t refused_total_limit = 0;    // 421: --max-connections
  uint64_t refused_client_limit = 0;   // 421: --max-connections-per-client
  uint64_t refused_shedding = 0;       // 421: intake stopped
  uint64_t refused_proxy = 0;          // no valid PROXY header, or not from --proxy-from
  uint64_t early_talkers = 0;
  uint64_t accept_errors = 0;          // out of descriptors or memory
  uint64_t timeouts = 0;               // command, data, message total
  uint64_t command_errors = 0;         // 5xx to commands
  uint64_t sessions_paused = 0;        // now: receiving stopped by us

  // ---- TLS
  uint64_t tls_handshakes = 0;         // completed, resumed ones included
  uint64_t tls_resumed = 0;
  uint64_t tls_failed_plaintext = 0;   // the client spoke in the clear
  uint64_t tls_failed_no_common = 0;   // no version or suite in common
  uint64_t tls_failed_alert = 0;       // the client refused
  uint64_t tls_failed_protocol = 0;    // broken records or messages
  uint64_t tls_failed_ended = 0;       // closed, reset or silent during the handshake

  // ---- authentication
  uint64_t auth_succeeded = 0;
  uint64_t auth_failed = 0;            // 535
  uint64_t auth_shut_out = 0;          // 454: too many failures before
  uint64_t auth_busy = 0;              // 454: too many passwords are being checked
  uint64_t rejected_quota = 0;         // 452: the tenant's intake-rate is used up
  uint64_t rejected_account = 0;       // sender, network, budget or freeze: 452, 450, 550, 553

  // ---- messages
  uint64_t messages = 0;               // accepted
  uint64_t bytes = 0;                  // canonical octets of them
  uint64_t recipients = 0;
  uint64_t injected = 0;               // of `messages`, by the API or as reports
  uint64_t pending = 0;                // now: between the end of data and the answer of the spool
  uint64_t discarded = 0;              // connection lost, or refused, before the end of data
  uint64_t body_bytes_copied = 0;      // slow partial messages, rewrites, injected content
  uint64_t bad_lines_fixed = 0;        // messages let in by --on-bad-lines tag or fix
  uint64_t admission_waits = 0;        // MAIL held back until delivery caught up
  uint64_t stalled_aborted = 0;        // partial messages given up because no buffer was left

  // ---- messages refused, by reason
  uint64_t rejected_relay = 0;         // 550 5.7.1
  uint64_t rejected_admission = 0;     // 452 4.3.1
  uint64_t rejected_size = 0;          // 552 5.3.4
  uint64_t rejected_bad_lines = 0;     // 554 5.6.0
  uint64_t rejected_headers = 0;       // 554 5.6.0
  uint64_t rejected_loop = 0;          // 554 5.4.6
  uint64_t rejected_spool = 0;         // 451, 452, or closed without a reply
  uint64_t events_suppressed = 0;      // `rejected` events past the rate that is written
};

}  // namespace millrace::ingress
