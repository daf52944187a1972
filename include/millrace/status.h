// How an embedded relay is doing: counters since its start, summed over its shards.
#pragma once

#include <cstdint>
#include <string>

namespace millrace {

// An empty text is success. Otherwise what is wrong, where, and the remedy.
struct Problem {
  std::string text;
  explicit operator bool() const { return !text.empty(); }
};

// Connections and TLS, one direction; docs/tls.md tells what each means.
struct TlsStatus {
  uint64_t handshakes = 0;  // completed
  uint64_t resumed = 0;     // of them
  uint64_t unverified = 0;  // of them, outbound: with a certificate that is not good for the host
  uint64_t not_offered = 0, refused = 0;  // outbound: by receivers
  uint64_t failed_plaintext = 0, failed_no_common = 0, failed_certificate = 0, failed_alert = 0;
  uint64_t failed_protocol = 0, failed_ended = 0;
  uint64_t sessions_in_the_clear = 0;  // outbound, that came to transactions
  uint64_t verified_dane = 0;  // outbound: handshakes verified by TLSA records
  uint64_t verified_mta_sts = 0;  // outbound: under an MTA-STS policy in mode enforce
  // Outbound: MTA-STS policies that were fetched, and that could not be had: their host has no address that may be asked, too
  // many were being fetched, HTTPS failed or was answered with something else than a text, or the text is no policy.
  uint64_t policies_fetched = 0;
  uint64_t policies_no_host = 0, policies_too_many = 0, policies_no_https = 0, policies_malformed = 0;
  uint64_t policies_kept = 0;  // now, of the shard that has most
  uint64_t blocked = 0;        // outbound: hosts not tried, since what must be known of their TLS could not be had

  // Outbound: TLS reports (RFC 8460) that were posted, that could not be within a day, and that are wanted by mail only.
  uint64_t reports_sent = 0, reports_given_up = 0, reports_mail_only = 0;

  TlsStatus& operator+=(const TlsStatus& part);
};

// Authentication of clients; docs/auth.md tells what each means.
struct AuthStatus {
  uint64_t succeeded = 0;
  uint64_t failed = 0;        // 535
  uint64_t shut_out = 0;      // 454: too many failures before
  uint64_t busy = 0;          // 454: too many passwords were being checked
  uint64_t mail_refused = 0;  // to accounts: sender, network, budget, freeze

  AuthStatus& operator+=(const AuthStatus& part);
};

struct RelayStatus {
  unsigned shards = 0;
  // Messages.
  uint64_t accepted = 0;         // durable and acknowledged
  uint64_t rejected = 0;
  uint64_t bytes_accepted = 0;
  // Recipients.
  uint64_t delivered = 0, deferred = 0, bounced = 0, expired = 0, removed = 0;
  // Now.
  uint64_t queued = 0;           // queue items: a message's recipients of one domain
  uint64_t ready = 0, in_flight = 0;
  uint64_t inbound_connections = 0, outbound_connections = 0;
  TlsStatus tls_in, tls_out;
  AuthStatus auth;
  // Cost.
  uint64_t connects = 0;         // outbound connections opened
  uint64_t attempts = 0;
  uint64_t syncs = 0;            // durable writes of the log
  uint64_t bytes_written = 0;    // to the spool: bodies, records, padding, compaction
  uint64_t body_bytes = 0;       // of accepted bodies; bytes_written / body_bytes is the amplification
  uint64_t body_bytes_copied = 0;
  uint64_t bodies_read_back = 0; // from the spool, after they had left memory
  uint64_t memory_buffers = 0;   // bytes of receive buffers in use

  RelayStatus& operator+=(const RelayStatus& part);
};

}  // namespace millrace
