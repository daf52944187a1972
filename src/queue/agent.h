// What the queue asks of delivery, and what delivery answers: the one upward call of the layers.
//
// The queue decides *what* and *when*; delivery knows *how*. A Site is a resolved MX host set; a Lane is
// one connection slot of a (site, source) on this shard, acquired from the limits before open() and given
// back by lane_closed(). An open lane pulls its work: Dispatcher::take() until it answers nothing, then
// it idles until wake() or its idle time-out. Several Attempts may be out on one lane (pipelining).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "events/event.h"
#include "queue/message.h"
#include "reactor/address.h"
#include "reactor/mailbox.h"
#include "shaping/arbiter.h"

namespace millrace::dns {
struct Route;  // dns/mx.h: ordered MX hosts with addresses, the site key, or why there are none
}

namespace millrace::queue {

struct Destination;  // destination.h: the mail of one routing domain (and pool)
struct Site;         // destination.h
struct Item;         // item.h
struct SubQueue;     // destination.h
struct Permit;       // permit.h

// What became of one recipient of an attempt (dsn/classify.h decides it from the reply).
enum class Action : uint8_t {
  delivered,
  defer,        // advances the message's schedule
  bounce,
  give_back,    // was not tried, or the failure says nothing about it: no attempt, no change of schedule
  uncertain,    // end of data sent, reply lost: may have been delivered; after --retry-uncertain
};

// What a line of the shaping file wants of the queue for a reply.
struct Asks {
  bool back_off = false;      // the (provider, source)
  bool defer_queue = false;   // the destination rests
  bool bounce_queue = false;  // all of it ends
  std::string where;          // the line
  bool any() const { return back_off || defer_queue || bounce_queue; }
};

struct RecipientResult {
  Action action = Action::give_back;
  events::Scope scope = events::Scope::none;
  events::Stage stage = events::Stage::none;
  uint16_t code = 0;              // 0: no reply
  std::string enhanced;           // "5.1.1", as the peer wrote it or as we judged
  std::string_view bounce_class;  // static text
  std::string reply;              // verbatim, bounded to 1 KiB; or our own words when there was no reply
  int64_t rest_ms = 0;            // the receiver (or rule) names a time to stay away
  Asks asks;
};

// One transaction. Made by the queue, lent to delivery by take(), returned by finished() with a result
// for each recipient. Self-contained, so that a lane on another shard can serve it.
struct Attempt : reactor::Letter {
  const Message* message = nullptr;      // read-only; its home keeps it until the attempt is back
  std::vector<uint32_t> recipients;      // indices into message->envelope.recipients, one domain
  std::string_view domain;               // that one, as it is routed; its home keeps it, too
  // Filled in by delivery before finished(), parallel to `recipients`.
  std::vector<RecipientResult> results;
  // About the connection that served it.
  std::string mx;
  reactor::Address peer;
  std::string peer_text, source_text;    // "192.0.2.1:25" and our own address, for the event
  std::string_view ehlo_name;            // valid as long as the configuration
  std::string_view tls_version, tls_suite, tls_verified;  // static texts; empty in the clear
  std::string tls_reason;                // why it went in the clear
  std::string_view tls_policy;           // static text
  std::string_view transport;            // static text: "discard", "file", "lmtp"; empty: SMTP
  uint64_t session = 0;                  // number of the connection
  uint32_t session_message = 0;          // which message of it, from 1
  uint32_t connect_ms = 0, transaction_ms = 0;
  bool receiver_reports = false;         // it announced DSN and got our NOTIFY (RFC 3461)
  // The receiver takes no more recipients than this in a transaction (452 4.5.3, LIMITS); 0: unknown.
  uint32_t recipients_learned = 0;

  // The queue's own.
  Item* item = nullptr;
  unsigned home_shard = 0;
  int64_t taken_at = 0;                  // monotonic
  shaping::Release permit;               // to give back when it ends; no set: nothing
  // Lent to another shard, which has connections to the site where the home has no share of them.
  std::shared_ptr<const dns::Route> route;
  Site* lent_by = nullptr;               // the home's
  unsigned source = 0;
  shaping::Subject subject;              // texts are the home's; site and provider the borrower's
  Permit* request = nullptr;             // the borrower's for it, until a lane takes it; nullptr: no limit is on it
  const SubQueue* lent_from = nullptr;   // a name only, at the borrower
  int64_t held_until = 0;                // given back because of a hold until then (monotonic)
  std::atomic<bool> unwanted = false;    // its home has ended it: no lane takes it any more
  Link home_link;                        // on the home's list of what it has lent
  Link link;                             // on the borrower's list until a lane takes it
};

// Why a connection failed or ended; one event each, not one per waiting message.
struct LaneEnd {
  enum class Cause : uint8_t {
    idle,            // closed by us: nothing to do, message limit, drained
    peer_limit,      // closed by the peer between transactions, without an error: reconnect at once
    failed,          // DNS, connect, TLS, greeting, 4xx/5xx before any MAIL: next host or hold
    lost,            // connection lost before any reply to MAIL: reconnect at once, paced
    told_to_slow,    // 421 or a rate code: hold
  } cause = Cause::idle;
  events::Scope scope = events::Scope::source;  // of failed and told_to_slow: source at this site, or site
  events::Stage stage = events::Stage::none;
  uint16_t code = 0;
  std::string enhanced, reply, mx;
  reactor::Address peer;
  int64_t rest_ms = 0;               // named by the receiver; 0: the --hold schedule
  uint32_t messages = 0;             // finished on this connection
  Asks asks;
};

// Delivery's connection, as the queue sees it. Owned by the Agent.
struct Lane {
  virtual ~Lane() = default;
  // Work may be waiting: take() again when there is room. Called at most once until the lane takes.
  virtual void wake() = 0;
  // Finish what is out, start nothing new, then end. (Pause, recall of the slot, shut-down.)
  virtual void retire() = 0;

  Site* site = nullptr;
  unsigned source = 0;               // index into Config::sources (0 when there are none)
  // Messages on this connection by the shaping file (0: any number); not set: as configured.
  std::optional<uint32_t> messages_most;

  // The queue's own.
  bool connecting = false;           // opened, lane_ready() not yet called
  bool called = false;               // woken, take() not yet called
  int64_t opened_at = 0;             // monotonic
  shaping::Release permit;           // to give back when it has closed; no set: nothing
  Link idle_link;                    // on one of its group's lists, while it connects or waits for wake()
  int64_t idle_at = 0;               // monotonic: since when
};

// What delivery calls.
class Dispatcher {
 public:
  virtual ~Dispatcher() = default;
  // The next transaction for this lane, or nullptr: nothing that may go now. The attempt stays lent until
  // finished(); `previous` is one that is still out on the same lane or nullptr.
  virtual Attempt* take(Lane& lane) = 0;
  virtual void finished(Attempt& attempt) = 0;
  // The connection is up (greeting and EHLO done): the ramp may grow.
  virtual void lane_ready(Lane& lane) = 0;
  // The lane's socket is closed and its slot free again; every attempt has been finished before. The
  // Agent destroys the lane after this call.
  virtual void lane_closed(Lane& lane, const LaneEnd& end) = 0;
  virtual void on_route(Destination& destination, std::shared_ptr<const dns::Route> route) = 0;
  // Whose mail waits for a connection such as this lane's: domains, each once, at most `most`. They hold until the end of
  // the turn.
  virtual void waiting_domains(const Lane& lane, size_t most, std::vector<std::string_view>& domains) {}
};

// What the queue calls.
class Agent {
 public:
  virtual ~Agent() = default;
  virtual void start(Dispatcher& dispatcher) = 0;
  // Finds the next hop of the destination (explicit route, smarthost or MX), answers on_route, never
  // inline.
  virtual void resolve(Destination& destination) = 0;
  // Opens a connection to the site's hosts (site.route) from the source; a slot has been acquired.
  virtual Lane* open(Site& site, unsigned source) = 0;
};

}  // namespace millrace::queue
