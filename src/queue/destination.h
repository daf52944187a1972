// Where mail waits. An Item lies in a SubQueue (tenant, job and account) of a Destination (routing domain, pool,
// egress source and what it asks of TLS); the Destination's next hop is a Site (a set of MX hosts, shared by every domain
// hosted there), whose connections from that source are a LaneGroup: its sub-queues take turns (shaping/turns.h). All of
// it belongs to one shard.
//
// The source of a message follows from its id, so a retry, even after a restart, leaves from the same
// address (greylisting), unless the list of sources was changed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/intrusive_list.h"
#include "queue/agent.h"
#include "queue/item.h"
#include "queue/permit.h"
#include "shaping/hold.h"
#include "shaping/rate.h"
#include "shaping/turns.h"

namespace millrace::queue {

class Scheduler;

// A lane that others wait for is let idle for so long: its next message may be on its way from the disk, or its permit
// from the arbiter.
inline constexpr int64_t kRecallAfter = 100'000'000;

// Messages of a sub-queue being read back or read back and not yet taken: enough that a lane finds
// the next one resident, few enough that a backlog of many of them stays small in memory.
inline constexpr uint32_t kLoadAhead = 16;

// Items use their timer's link, so that being on the wheel and on a list exclude each other.
class ItemList {
 public:
  bool empty() const { return list_.empty(); }
  uint32_t size() const { return size_; }
  void push_back(Item& item) { list_.push_back(item), ++size_; }
  void push_front(Item& item) { list_.push_front(item), ++size_; }
  Item* front() { return static_cast<Item*>(list_.front()); }
  Item* next(Item& item) { return static_cast<Item*>(list_.next(item)); }
  void remove(Item& item) { item.link.unlink(), --size_; }
  Item* pop_front() {
    Item* item = front();
    if (item) remove(*item);
    return item;
  }

 private:
  IntrusiveList<reactor::Timer, &reactor::Timer::link> list_;
  uint32_t size_ = 0;
};

// Of a destination: the mail of one tenant, job and account.
struct SubQueue {
  Destination* destination = nullptr;
  std::string tenant, job, account;
  ItemList fresh;         // never attempted, in order of arrival
  ItemList retry;         // due again
  ItemList loaded;        // resident again, first to go
  ItemList paused;        // due, but an operator's pause covers them
  uint32_t items = 0;     // in every state
  uint32_t loading = 0;   // items
  uint8_t turn = 0;       // new mail is never starved by retries, nor the reverse: see next_item()
  bool reading = false;   // out of turn until something of it has been read back
  bool slow_reads = false;  // the last one took more than half of what a permit is good for
  bool held = false;      // out of turn: an operator's pause covers all of it
  const shaping::Flow* flow = nullptr;
  Link turn_link;         // on its lane group's `ready`: see Scheduler::in_turn()
  // What the shaping file says of its attempts, found for this site and these rules.
  const Site* limits_site = nullptr;
  uint64_t limits_version = 0;
  bool limited = false;
  bool parked = false;    // waits for its permit, or for what it has lent
  bool paid = false;      // its turn came while it had no permit: it goes first once it has
  uint32_t recipients_most = 0;  // by the shaping file; 0: not said
  uint32_t lent = 0;      // attempts under a limit that another shard has
  std::unique_ptr<Permit> permit;

  uint32_t due() const { return fresh.size() + retry.size() + loaded.size(); }
};

// The last thing a receiver said, for the operator's view.
struct LastReply {
  std::string text;
  uint16_t code = 0;
  int64_t at_ms = 0;  // UTC
};

struct Destination {
  std::string domain, pool;
  unsigned source = 0;
  mail::TlsWish tls = mail::TlsWish::none;  // of its mail: what asks another TLS waits for other connections
  std::shared_ptr<const dns::Route> route;
  int64_t route_until = INT64_MIN;   // monotonic; past it the route is found anew
  bool resolving = false;
  Site* site = nullptr;
  shaping::Hold hold;                // no usable route just now
  bool tried = false;                // since start, if only by a look-up or a connection that failed
  std::optional<RecipientResult> fatal;  // the domain takes no mail: its mail bounces with this
  std::vector<std::unique_ptr<SubQueue>> queues;
  std::unordered_map<std::string, SubQueue*> by_name;  // once there are more than a few
  bool listed = false;               // its sub-queues with mail are in their lane group's turn
  uint32_t ready = 0;                // fresh + retry + loaded + loading
  uint32_t items = 0;
  uint32_t in_flight = 0;
  uint64_t delivered = 0, deferred = 0, bounced = 0;
  LastReply last_reply;
  int64_t missing_since = 0;         // monotonic: first NXDOMAIN or no data of the domain, 0: none
  reactor::Timer timer;              // end of a hold, or of the wait for a second NXDOMAIN
  Scheduler* scheduler = nullptr;
};

struct LaneGroup {
  uint32_t open = 0;                 // slots held: connecting, open and closing
  uint32_t open_all = 0;             // of a base site: by all of its kin
  uint32_t connecting = 0;
  uint32_t called = 0;               // were idle, and have not come for their attempt yet
  double window = 0;                 // how many may be open: the ramp
  shaping::Hold hold;                // of this site
  shaping::Hold* pair_hold = nullptr;  // of the provider from this source, shared by its sites; nullptr: a site of its own
  const shaping::Hold* holding(int64_t now) const {
    if (pair_hold && pair_hold->active(now)) return pair_hold;
    return hold.active(now) ? &hold : nullptr;
  }
  bool held(int64_t now) const { return holding(now) != nullptr; }
  int64_t held_until(int64_t now) const {
    int64_t until = hold.active(now) ? hold.until() : INT64_MIN;
    return pair_hold && pair_hold->active(now) ? std::max(until, pair_hold->until()) : until;
  }
  bool probing() const { return hold.failures() > 0 || (pair_hold && pair_hold->failures() > 0); }
  IntrusiveList<Lane, &Lane::idle_link> idle;                  // most recently used first
  IntrusiveList<Lane, &Lane::idle_link> opening;               // connecting
  shaping::Turns<SubQueue, &SubQueue::turn_link> ready;  // with mail that may go
  bool tried = false;                // a connection failed since start
  // What the shaping file says of its connections.
  bool limited = false;              // each needs a permit
  bool connections_said = false;     // else the shard's share of --destination-connections
  uint32_t connections = 0;          // 0: none
  std::optional<uint32_t> messages_most;
  uint32_t recipients_most = 0;      // 0: not said
  std::unique_ptr<Permit> permit;
  // Several shards, fewer connections: a shard without a share lends its attempts to one that has.
  uint32_t lent = 0;
  uint32_t borrowed_count = 0;
  IntrusiveList<Attempt, &Attempt::link> borrowed;
  bool borrowed_turn = false;        // own and borrowed attempts take turns
};

struct Site {
  std::string key;
  bool of_domain = false;                   // its provider is its domains', not its hosts'
  // Domains with the same hosts that differ in what they ask of TLS have sites of their own, whose limits are their
  // base's, the site that asks for nothing special.
  Site* base = nullptr;                     // itself, or the one that it was made beside
  std::vector<Site*> kin;                   // of a base: itself and the others, once there are others
  std::string_view provider;                // by the shaping rules, static; empty: it stands for itself
  std::shared_ptr<const dns::Route> route;  // the newest one seen
  bool explicit_hop = false;                // smarthost or --route: no ramp, only the limits given
  std::deque<LaneGroup> groups;             // by source
  uint32_t connect_share = UINT32_MAX;      // this shard's part of the connect rate; 0: it lends its attempts
  shaping::RateLimiter connect_rate;
  uint32_t destinations = 0;                // that point here
  uint32_t recipients_learned = 0;          // the most recipients a transaction may have, 0: unknown
  Scheduler* scheduler = nullptr;
  reactor::Timer timer;                     // end of a hold or of a pause of the connect rate
  Link slot_link;                           // while it waits for a connection of any site to close
  Link load_link;                           // while it waits for another site's mail to be read back, or to go
};

}  // namespace millrace::queue
