// The scheduler of one shard: takes durable messages over from ingress, decides what goes when, hands
// attempts to delivery, and turns results into durable outcomes, schedules, reports and events.
//
// It moves no bytes and opens no sockets: delivery does (agent.h). Everything it decides from is on this
// shard. docs/queue.md holds the table of item states and the invariants that check() asserts.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/prng.h"
#include "config/config.h"
#include "events/sink.h"
#include "queue/agent.h"
#include "queue/destination.h"
#include "queue/id_index.h"
#include "queue/intake.h"
#include "queue/item.h"
#include "queue/pending_end.h"
#include "queue/pool.h"
#include "queue/reporter.h"
#include "queue/state.h"
#include "reactor/io.h"
#include "reactor/mailbox.h"
#include "spool/spool.h"

namespace millrace::queue {

// A message of several recipients: what is left of it, over its items (one or more a domain).
struct Fanout {
  struct Recipient {
    Item* item = nullptr;  // nullptr: final
  };
  std::vector<Recipient> recipients;  // by number
  std::vector<Item*> items;
  uint32_t pending = 0;               // recipients not yet final
  uint32_t events = 0;
};

struct Filter {
  std::string domain, job, sender, account, tenant;  // empty: any
  mail::SpoolId id;                 // empty: any
  int64_t before_ms = INT64_MAX;    // only mail whose id has an earlier time (an action does not catch later mail)
  // A whole sub-queue matches or none of it.
  bool of_sub_queues() const { return sender.empty() && id.empty() && before_ms == INT64_MAX; }
  bool all() const { return domain.empty() && tenant.empty() && job.empty() && sender.empty() && account.empty() && id.empty(); }
};
std::string encode_filter(const Filter& filter);
Result<Filter> decode_filter(std::string_view text);

enum class Command : uint8_t { pause, resume, retry, remove, bounce };
std::string_view to_string(Command command);

struct QueueRow {
  std::string domain, pool, site;
  uint64_t messages = 0, ready = 0, in_flight = 0, waiting = 0, paused = 0;
  uint64_t delivered = 0, deferred = 0, bounced = 0;
  int64_t oldest_ms = 0;        // UTC; 0: unknown
  int64_t next_attempt_ms = 0;  // UTC; 0: none
  uint32_t connections = 0;
  std::string last_reply;
  int64_t last_reply_ms = 0;
  std::string why;              // why it waits, in words
};

struct RecipientRow {
  std::string address, state, why;
  uint32_t attempts = 0;
  int64_t next_attempt_ms = 0;
};
struct MessageRow {
  mail::SpoolId id;
  std::string reverse_path, job, tenant, pool, account, client, message_id;
  int64_t received_ms = 0, expires_ms = 0;
  uint64_t size = 0;
  bool resident = false;
  std::vector<RecipientRow> recipients;
};

// Why the mail of one tenant and job to a domain goes as it does: `millracectl explain`.
struct ExplainRow {
  std::string domain, pool, tenant, job;
  std::string provider, site, source;  // site empty: its MX hosts are not known yet
  unsigned source_number = 0;
  uint64_t messages = 0, ready = 0, in_flight = 0, waiting = 0;
  uint32_t connections = 0;
  int64_t next_attempt_ms = 0;         // UTC; 0: not known
  std::string why;                     // a hold, or where it stands; the limits are apart
  int64_t held_until_ms = 0;           // UTC
  std::string source_wrong;            // what the DNS says of it that is not as it should be (by the relay)
  std::string mode;                    // "backed off: ..."; empty: normal
  int64_t mode_until_ms = 0;           // UTC
  // By the arbiter, on its shard.
  std::vector<shaping::LimitRow> connection_limits, attempt_limits;
  std::string messages_per_connection, messages_per_connection_where;
  std::string recipients_per_transaction, recipients_per_transaction_where;
};

struct SchedulerStats {
  uint64_t enqueued = 0, delivered = 0, deferred = 0, bounced = 0, expired = 0, removed = 0;
  uint64_t attempts = 0, given_back = 0, uncertain = 0;
  uint64_t connects = 0, connection_failures = 0;
  uint64_t reads = 0, evictions = 0, admissions_delayed = 0, admissions_refused = 0;
  uint64_t items = 0, ready = 0, in_flight = 0, lanes = 0;
};

class Scheduler final : public Dispatcher, public Intake {
 public:
  struct Context {
    reactor::Io& io;
    config::Snapshot config;
    Agent& agent;
    events::Sink& events;
    unsigned shard = 0;
    unsigned shards = 1;
  };
  explicit Scheduler(Context context);
  ~Scheduler() override;

  // The schedulers of all shards and their mailboxes, by number. Before start(), when there are several.
  struct Peer {
    Scheduler* scheduler = nullptr;
    reactor::Mailbox* mailbox = nullptr;
  };
  void set_peers(std::vector<Peer> peers) { peers_ = std::move(peers); }
  // Of the first shard: decides what the shaping file limits, for all of them.
  shaping::Arbiter* arbiter() { return arbiter_.get(); }
  // After recovery (the spool takes no requests before): attempts may start.
  void start(spool::Spool& spool, Reporter& reporter);
  // No new attempt starts; lanes retire; `done` once no attempt is out and every outcome is recorded.
  void stop(std::function<void()> done);
  void adopt(config::Snapshot config);

  // ---- Intake
  Admission admit(AdmissionWaiter& waiter, std::string& why) override;
  void enqueue(MessageRef message) override;

  // ---- Dispatcher
  Attempt* take(Lane& lane) override;
  void finished(Attempt& attempt) override;
  void waiting_domains(const Lane& lane, size_t most, std::vector<std::string_view>& domains) override;
  void lane_ready(Lane& lane) override;
  void lane_closed(Lane& lane, const LaneEnd& end) override;
  void on_route(Destination& destination, std::shared_ptr<const dns::Route> route) override;

  // ---- recovery: before start()
  void recover(const spool::Recovered& message);
  // The latest time in the ids of mail that has been queued here. Ids never go back, the wall clock may: what
  // an operator's command reaches is told by these.
  int64_t newest_ms() const { return newest_ms_; }

  // ---- the operator's view and hand (control.cc)
  std::vector<QueueRow> queue_rows() const;
  // Reads the message's metadata where it is not resident; `done` may be called inline.
  void show(const mail::SpoolId& id, std::function<void(Result<MessageRow>)> done);
  // The sub-queues with mail for the domain or, if that is empty, those of the message. O(items).
  std::vector<ExplainRow> explain(std::string_view domain, const mail::SpoolId& id) const;
  // On the first shard: what the limits say about it.
  void explain_limits(ExplainRow& row);
  // What an operator's command does to this shard; who commands, and that it is durable and reaches
  // every shard, is relay/control.h's business. Counts are of recipients.
  uint64_t count_matching(const Filter& filter) const;
  // From now on mail that matches does not go; what is in delivery finishes.
  void add_pause(uint64_t number, Filter filter);
  void remove_pause(uint64_t number);
  // Due now, whatever their schedule and the holds in their way.
  void retry_matching(const Filter& filter);
  // After an outage of the name service: what waits only for a look-up is due now.
  void name_service_back();
  // Ends what matches, with an event for each recipient (and a report, if bounced), a slice at a time;
  // `done` once everything that matched has been met.
  void end_matching(Command command, Filter filter, std::function<void()> done);
  SchedulerStats stats() const;
  // Asserts the invariants of docs/queue.md; for tests and the simulator. O(items).
  void check() const;

 private:
  struct Outcome;
  struct Loading;
  struct PauseRule {
    uint64_t number;
    Filter filter;
  };
  // Delete or bounce of what matches, item by item in slices.
  struct Removal {
    Command command = Command::remove;
    Filter filter;
    std::function<void()> done;
    size_t slot = 0;      // of the index: how far the scan has come
    size_t capacity = 0;  // of the index when the scan began
    uint64_t found = 0;   // in this round
    uint64_t out = 0;     // in this round: that end when they come back, which a restart would forget
    int64_t next_at = 0;  // monotonic: when it looks again, if only such were met
    std::unordered_set<mail::SpoolId, mail::SpoolIdHash> spared;  // of a sender with the same hash
    std::optional<RecipientResult> why;  // not an operator's word
  };

  int64_t now() const { return context_.io.now(); }
  const config::Config& config() const { return *context_.config; }

  // ---- items (scheduler.cc)
  Destination& destination_of(std::string_view domain, std::string_view pool, unsigned source, mail::TlsWish tls);
  unsigned source_of(const mail::SpoolId& id, std::string_view pool, std::string_view account) const;
  SubQueue& sub_queue_of(Destination& destination, std::string_view tenant, std::string_view job, std::string_view account);
  Item& make_item(const mail::SpoolId& id, SubQueue& queue);
  void enter(Item& item, State state, bool front = false);
  void leave(Item& item);           // off the list or wheel it is on
  void on_due(Item& item);          // the timer of a waiting item
  void destroy(Item& item);
  void wait_until(Item& item, int64_t due_monotonic);
  bool item_expired(const Item& item) const;
  void keep_resident(Item& item, MessageRef message);
  void drop_resident(Item& item);
  void set_moved(const mail::SpoolId& id, spool::Location from, spool::Location to);
  void recipients_of(const Item& item, std::vector<uint32_t>& out) const;
  Item& split(Item& item, const std::vector<uint32_t>& recipients);

  // ---- dispatch (scheduler.cc)
  void work_arrived(Destination& destination);
  bool in_turn(const SubQueue& queue) const;
  void list(Destination& destination);
  void unlist(Destination& destination);
  bool blocked(const Destination& destination) const;
  void pump(Site& site, unsigned source);
  Item* next_item(SubQueue& queue);
  bool may_load(const SubQueue& queue) const;
  void on_loads_freed();
  void load_ahead(SubQueue& queue);
  void drain_fatal(Destination& destination);
  void load(Item& item);
  void on_loaded(Loading& loading);
  Site& site_of(const std::shared_ptr<const dns::Route>& route, std::string_view domain);
  Site& site_named(const std::string& name, const std::shared_ptr<const dns::Route>& route, std::string_view provider,
                   Site* base);
  void pump_kin(Site& site, unsigned source);
  bool kin_waits(const Site& site, unsigned source) const;
  Attempt* next_attempt(Site& site, LaneGroup& group, bool lending = false);
  Attempt* next_borrowed(LaneGroup& group);
  Attempt* make_attempt(Item& item, const Site& site);
  // Between shards: see LaneGroup::borrowed.
  void lend(Site& site, unsigned source);
  // Slots of --total-connections.
  void serve_slot_waiters();
  void keep_slot(Site& site, unsigned source);
  void forget_owed();
  void on_borrowed(reactor::Letter& letter);
  void on_returned(reactor::Letter& letter);
  void return_borrowed(Attempt& attempt);
  void return_all_borrowed(LaneGroup& group);
  void return_all_borrowed();
  void release_attempt(Attempt& attempt);
  void on_site_timer(Site& site);
  void load_again(Item& item);
  bool outcomes_behind() const;
  void open_gate();
  void report_stopped();
  void look_up_failed(Destination& destination, const dns::Route& route);
  void set_fatal(Destination& destination, const dns::Route& route);
  double first_window(const Site& site, const LaneGroup& group) const;
  void set_connect_rate(Site& site) const;
  void hold_site(Site& site, unsigned source, const LaneEnd& end, int64_t begun);
  void evict_ready(Destination& destination);
  void evict_ready(SubQueue& queue, const Item* keep = nullptr);
  void relieve_memory();
  void release_waiters(unsigned count);
  void on_waiter_timer();
  uint32_t share_of(uint32_t limit) const;
  uint32_t connection_limit(const LaneGroup& group) const;
  uint32_t total_share() const;
  void queue_event(Site& site, const LaneEnd& end, unsigned source);
  int64_t expiry_clock_s() const;  // UTC seconds, blind to jumps ahead of the wall clock
  void watch_wall_clock();

  // ---- limits of the shaping file (limits.cc)
  void update_turn(SubQueue& queue, bool front = false);
  void find_limits(SubQueue& queue, Site& site);
  void find_limits(Attempt& borrowed, Site& site);
  void find_limits(Site& site, unsigned source);
  std::string_view provider_of(const dns::Route& route, std::string_view domain);
  bool permitted(Site& site, Item& item);
  bool lendable(Site& site, Item& item);
  bool borrowed_permitted(Attempt& borrowed, std::vector<const SubQueue*>& asking);
  void forget_request(Attempt& borrowed);
  void free_request(Permit& request);
  bool connection_permitted(Site& site, unsigned source);
  bool waits_for_attempt(Site& site, LaneGroup& group, shaping::Subject& subject);
  static void name_subject(Permit& permit, const SubQueue& queue, Site& site);
  void park(SubQueue& queue, Item& first);
  void hold_grant(Permit& permit);
  shaping::Release use(Permit& permit);
  bool ask(Permit& permit);
  void on_asked(reactor::Letter& letter);     // the arbiter's shard
  void on_answered(reactor::Letter& letter);  // the shard that asked
  static void on_granted(void* owner, shaping::Request& request);
  void tell_answers();
  void withdraw(Permit& permit);
  void on_withdrawal(reactor::Letter& letter);  // the arbiter's shard
  void on_withdrawn(reactor::Letter& letter);   // the shard that asked
  void answered(Permit& permit);
  void give_back(Permit& permit);
  void release(const shaping::Release& release);
  void on_released(reactor::Letter& letter);
  void expire_grants();
  void recall(std::string_view provider, std::string_view site, unsigned source);
  void on_recall(reactor::Letter& letter);
  // Replies that the operator's lines speak of, and holds and back-offs that all shards know.
  void obey(Destination& destination, const RecipientResult& result, int64_t begun);
  void bounce_queue(std::string_view domain, const RecipientResult& why);
  void on_bounce_queue(reactor::Letter& letter);
  void back_off(Site& site, unsigned source, std::string_view reply, std::string_view where);
  void on_back_off(reactor::Letter& letter);
  void tell_mode(const shaping::Arbiter::Mode& mode, bool backed_off);
  void on_mode(reactor::Letter& letter);
  void set_mode(std::string_view provider, std::string_view site, unsigned source, bool backed_off);
  void tell_hold(std::string_view provider, unsigned source, const shaping::Hold& hold);
  void on_hold(reactor::Letter& letter);
  void pump_pair(std::string_view provider, unsigned source);
  shaping::Hold* pair_hold_of(std::string_view provider, unsigned source);
  bool backed_off(const shaping::Subject& subject) const;
  void retire_idle(std::string_view provider, std::string_view site, unsigned source, uint32_t most = UINT32_MAX,
                   int64_t idle_ns = 0);
  void give_back_all(shaping::Release& permit, bool used, bool accepted);

  // ---- outcomes (outcome.cc)
  Outcome& make_outcome(Item& item);
  events::Event make_event(Item& item, events::Type type, uint32_t recipient, const Message& message);
  void add_event(Outcome& outcome, const events::Event& event);
  void mark_report_sent(Outcome& outcome);
  void settle(Outcome& outcome);          // report first, if one is due, then record
  static void on_reported(void* owner, ReportRequest& request);
  void record(Outcome& outcome);
  static void on_recorded(void* owner, spool::Note& note);
  void recorded(Outcome& outcome);
  void retry_failed_notes();
  void encode_state_of(const Item& item, std::string& out) const;
  int64_t retry_delay_ms(unsigned attempts);
  int64_t longest_wait_ms() const;
  // Ends all recipients of a resident item with one result (expired, removed, bounced by us).
  void end_item(Item& item, events::Type type, const RecipientResult& why, bool report);
  // Reads the item's message if need be, or waits for its attempt to come back, then end_item().
  void end_when_resident(Item& item, PendingEnd end);
  void set_ending(Item& item, PendingEnd end);
  PendingEnd take_ending(Item& item);
  void spare(Item& item, const PendingEnd& end);
  bool apply_pending_end(Item& item);
  void residents_again(Item& item);
  static RecipientResult expiry_result();

  // ---- operator (control.cc)
  bool matches(const Item& item, const Filter& filter) const;
  static bool matches(const SubQueue& queue, const Filter& filter);
  bool paused(const Item& item) const;
  bool paused(const Attempt& borrowed) const;
  void update_held(SubQueue& queue);
  void resume_paused();
  void run_removals();
  void sweep();  // a slice of all items: expiry of those that are due but may not go
  template <typename Visit>
  void each_item(Visit visit) const;

  Context context_;
  spool::Spool* spool_ = nullptr;
  Reporter* reporter_ = nullptr;
  std::vector<Peer> peers_;
  Prng prng_;
  bool started_ = false;
  bool stopping_ = false;
  std::function<void()> stopped_;
  // Expiry follows the monotonic clock from this pair; watch_wall_clock() adopts steps.
  int64_t wall_base_ms_ = 0, monotonic_base_ = 0;
  int64_t no_expiry_until_ = INT64_MIN;

  std::shared_ptr<const config::Shaping> rules_;
  // Names of providers stay, whatever rules come: requests that are out point at them.
  std::unordered_set<std::string> provider_names_;
  uint64_t rules_version_ = 1;
  shaping::Flows flows_;
  std::unique_ptr<shaping::Arbiter> arbiter_;  // shard 0 only
  IntrusiveList<Permit, &Permit::link> grants_;   // in the order of their end
  IntrusiveList<Permit, &Permit::link> answers_;  // granted within a call, told at the end of the turn
  reactor::Deferred answering_;
  reactor::Timer grant_timer_;
  std::vector<shaping::ScopeRef> scratch_scopes_;
  std::vector<const SubQueue*> scratch_queues_;
  IntrusiveList<Attempt, &Attempt::home_link> lent_;
  bool underway_ = false;  // this take() has begun what an attempt waits for: a permit asked for, a message read back
  Pool<Permit> requests_;  // of borrowed attempts
  std::unordered_set<std::string> backed_off_;  // names of pairs
  std::map<std::pair<std::string, unsigned>, shaping::Hold, std::less<>> pair_holds_;

  IdIndex index_;
  std::unordered_map<Item*, PendingEnd> endings_;  // of items whose `ending` is set
  std::unordered_map<std::string, std::unique_ptr<Destination>> destinations_;
  std::unordered_map<std::string, std::unique_ptr<Site>> sites_;
  std::string key_;  // scratch for look-ups
  IntrusiveList<Message, &Message::resident_link> residents_;
  IntrusiveList<AdmissionWaiter, &AdmissionWaiter::link> waiters_;
  IntrusiveList<Site, &Site::slot_link> slot_waiters_;  // mail waits for --total-connections
  // One of them was permitted a connection from this source while there was no slot: the next slot is kept for it, until
  // it is permitted one again. Else those that need no permit would always be quicker; its other sources are such, too.
  Site* owed_ = nullptr;
  unsigned owed_source_ = 0;
  reactor::Timer owed_timer_;
  IntrusiveList<Site, &Site::load_link> load_waiters_;  // a free lane waits for room to read mail back
  reactor::Deferred loads_freed_;
  reactor::Timer waiter_timer_, note_timer_, sweep_timer_, gate_timer_;
  reactor::Timer removal_timer_;
  Pool<Outcome> outcomes_;
  Pool<Loading> loadings_;
  std::vector<Outcome*> outcomes_failed_;
  Pool<Attempt> attempts_;
  std::vector<PauseRule> pauses_;
  std::deque<Removal> removals_;
  size_t sweep_slot_ = 0;
  int64_t newest_ms_ = 0;
  uint64_t backlog_bytes_ = 0;  // raw bytes of resident messages
  std::vector<uint32_t> scratch_ended_, scratch_deferred_;
  std::string scratch_event_;
  uint32_t loads_ = 0;        // reads in flight
  uint32_t loaded_ = 0;       // items loaded and not yet taken
  uint32_t outcomes_open_ = 0;
  uint32_t lanes_open_ = 0;
  bool gated_ = false;        // outcomes are behind: no new attempt
  SchedulerStats stats_;
};

template <typename Visit>
void Scheduler::each_item(Visit visit) const {
  for (size_t slot = 0; slot < index_.capacity(); ++slot) {
    Item* item = index_.at(slot);
    if (!item) continue;
    if (!item->fanout) {
      visit(*item);
      continue;
    }
    std::vector<Item*> parts = item->fanout->items;
    for (Item* part : parts) visit(*part);
  }
}

}  // namespace millrace::queue
