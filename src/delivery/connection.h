// One lane of the queue: one connection slot of a (site, source). Tries the site's addresses in
// turn, holds an SMTP conversation on the first that greets well, reuses it for as long as there is
// mail, and ends with the reason.
//
// Everything ends in on_over or on_closed: first the socket is closed and all Ops are back, then
// the session gives its attempts back, then either the next address is tried or the queue is told
// that the lane is closed, which destroys it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "delivery/session.h"
#include "delivery/tls_policy.h"
#include "delivery/tls_report.h"
#include "dns/mx.h"
#include "net/stream.h"
#include "queue/agent.h"
#include "reactor/io.h"

namespace millrace::delivery {

class DeliveryAgent;

class Connection final : public queue::Lane, private SessionOwner, private net::StreamOwner {
 public:
  Connection(DeliveryAgent& agent, std::shared_ptr<const dns::Route> route,
             std::string_view site_key, unsigned source);
  ~Connection() override;

  // ---- queue::Lane. What they ask for is done at the end of the turn.
  void wake() override;
  void retire() override;

  // Closes at once, with a reset; what is out comes back as lost.
  void abort();

  bool connected() const { return session_.has_value(); }
  size_t index = 0;  // in the agent's list

 private:
  // Named for the operator's log.
  enum class State : uint8_t {
    starting,  // opened in this turn
    connecting,
    conversing,  // the session's state says what about
    closing,
  };

  void on_start_or_wake();
  void choose_targets();
  void try_next();
  void on_connected(reactor::Completion& completion);
  void connect_failed(std::string why);
  void on_timer();
  void on_turn_end();
  void after_event();
  void arm(int64_t deadline);
  void start_session(reactor::Handle handle);
  void note_failure(events::Stage stage, std::string reply);
  void note_blocked();
  void bounce_all(const queue::RecipientResult& why);
  bool begin_more_targets();
  bool leave_without_requiretls();
  bool take_without_requiretls();
  bool all_decided() const;
  void note_requiretls_end();
  void finish();  // destroys *this
  SessionOptions session_options() const;
  bool may_fall_back(const TlsPolicy& policy) const;
  bool leave_to_fallback();
  bool take_fallback();
  void note_tls_end(Ending ending);
  void begin_tls();
  // ---- RFC 8460
  bool counts_tls() const;
  TlsReportPolicy report_policy_of(std::string_view domain) const;
  void count_blocked(const dns::Host& host);
  void count_tls_failure(TlsResult result, std::string_view reason);
  void note_tls_outcome();
  void count_session(std::string_view domain);
  TlsFailure tls_failure(TlsResult result, std::string_view reason) const;

  // ---- SessionOwner
  queue::Attempt* take() override;
  void finished(queue::Attempt& attempt) override;
  void ready() override;
  void start_tls() override;
  std::unique_ptr<auth::ClientExchange> authenticate(const smtp::Capabilities& capabilities, std::string& why) override;
  void send(std::span<const iovec> parts) override;
  uint64_t unsent() const override;
  void over() override;

  // ---- net::StreamOwner
  void on_data(char* data, size_t size, reactor::BufferRef buffer) override;
  void on_secure() override;
  void on_sent() override;
  void on_end(int error) override;
  void on_closed() override;

  DeliveryAgent& agent_;
  reactor::Io& io_;
  const config::Snapshot config_;
  const std::shared_ptr<const dns::Route> route_;
  const std::string site_key_;
  const unsigned source_index_;
  config::Source source_;

  State state_ = State::starting;
  dns::Targets targets_;
  size_t next_target_ = 0;
  reactor::Address peer_;
  std::string peer_text_, source_text_;  // of this connection, for the events
  std::string_view host_;  // the target's name, in route_
  bool probing_ = false;   // the address holds know that we try peer_
  int64_t target_began_ = 0, began_ = 0;
  uint32_t connect_ms_ = 0;
  uint64_t number_ = 0;  // of the connection, 0 before there is one

  reactor::Handle connecting_ = reactor::kNoHandle;
  reactor::Op connect_;
  net::Stream stream_;
  std::optional<Session> session_;
  reactor::Timer timer_;
  reactor::Deferred call_, turn_end_;
  bool retired_ = false;
  bool aborted_ = false;
  bool woken_ = false;
  bool timed_out_ = false;
  queue::LaneEnd end_;
  // ---- TLS
  TlsPolicy tls_policy_;            // of the present target
  const config::HopCredentials* credentials_ = nullptr;  // for it; in config_
  std::string tls_session_key_;
  bool in_the_clear_ = false;       // every host refused TLS to an earlier connection, or failed at it: now without
  std::string tls_refusal_;         // what the last of them said
  std::vector<reactor::Address> tls_refusing_;  // those; in the clear: of the earlier connection, and nobody else is tried
  bool tls_unclear_ = false;        // one was silent, or cut off, or must not be sent to in the clear
  bool refused_5xx_ = false;  // the last host refused by a 5xx greeting
  // What became of TLS, for reports: counted for each domain that has mail on the connection.
  bool counting_ = false;
  std::optional<TlsFailure> tls_fault_;
  std::string last_counted_;
  std::vector<std::string> counted_;
  std::vector<std::string> blocked_counted_;  // hosts
  // ---- REQUIRETLS (RFC 8689 4.2.1), on routes that ask for it
  std::string unprotected_;           // what one host said or showed that has no good TLS
  bool requiretls_missing_ = false;   // one has, and does not offer REQUIRETLS
  bool without_requiretls_ = false;   // no host offered it to an earlier connection: now for reports, and to tell the others so
  bool undecided_ = false;            // another time one may do what this mail asks for
  std::vector<reactor::Address> tried_;  // in this round
};

}  // namespace millrace::delivery
