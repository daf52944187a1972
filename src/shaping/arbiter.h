// Decides who may connect or attempt now: the one owner of every limit of the shaping file. It lives on
// shard 0; the other shards ask by letter. Since every counter has one owner, a decision over all of an
// attempt's scopes is one step: all of them or none, and no limit is ever over, however many shards ask.
//
//   request ---> every counter of every scope has room? ---yes---> charged, granted
//                     | no
//                     v
//            waits at the counter that will be free last, in the order of turns.h: transactional mail first,
//            tenants and jobs by their weights, first come first served within a job;
//            a timer (rates) or a release (slots) serves the counter's list again
//
// Contract: a Request stays in place and unchanged from submit() until it is granted. A grant is to be
// used before `valid_until`; release() follows where `to_release` says so, and may follow if it is not
// used: what can be given back then, is. A use may come
// up to kGrantNs after its charge; the windows of all rates are widened by that, so it cannot bring one
// over its limit. Rates are charged when granted.
//
// Limits: one thread decides for all shards. What was begun under no limit at all is not counted in one
// that a reload brings; it ends by itself.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/intrusive_list.h"
#include "config/shaping.h"
#include "reactor/io.h"
#include "reactor/mailbox.h"
#include "shaping/rate.h"
#include "shaping/scopes.h"
#include "shaping/turns.h"
#include "shaping/window.h"

namespace millrace::shaping {

inline constexpr int64_t kGrantNs = 20'000'000;

class Arbiter;
struct Counter;
struct Scope;

// The scopes of one kind of attempt or connection. Made and kept by the arbiter; others only carry it.
struct ScopeSet {
  Purpose purpose = Purpose::attempt;
  std::string provider, site, domain, pool, tenant, job;
  unsigned source = 0;
  std::vector<Scope*> scopes;
  uint32_t out = 0;          // granted and not yet released
  bool needs_release = false;
  bool stale = false;        // of a configuration before: bound anew at its next request
};

// One attempt (or connection) that asks. Its owner may be on any shard; the letter brings it here and back.
struct Request : reactor::Letter {
  Purpose purpose = Purpose::attempt;
  Subject subject;
  uint32_t recipients = 0;
  uint64_t octets = 0;
  // A connection: it is of use only once an attempt of this subject may go, so it waits for that too, and takes
  // nothing of it.
  bool for_attempt = false;
  // The arbiter's answer.
  ScopeSet* set = nullptr;   // kept between requests of the same subject; nullptr: find it
  int64_t granted_at = 0;
  int64_t valid_until = 0;
  bool to_release = false;   // release() must follow: a slot is held, or a part may be given back
  // Called on the arbiter's thread when a request that had to wait is granted.
  void* owner = nullptr;
  void (*granted)(void* owner, Request& request) = nullptr;

  // The arbiter's own. Whoever renames the subject takes the flow away.
  const Flow* flow = nullptr;
  Link wait_link;
  Counter* waits_for = nullptr;
  ScopeSet* condition = nullptr;
};

// Gives back what a grant holds.
struct Release {
  ScopeSet* set = nullptr;
  bool to_release = false;  // as the grant said
  int64_t granted_at = 0;
  uint32_t recipients = 0;
  uint64_t octets = 0;
  bool used = true;       // false: nothing was begun
  bool accepted = false;  // an attempt: the receiver took the message
};

// A limit as an operator sees it.
struct LimitRow {
  std::string scope, key, limit, where;
  uint64_t used = 0;        // slots in use, or what the window holds
  int64_t free_at = 0;      // monotonic: when it lets the next one through; 0: now; INT64_MAX: when a slot comes back
  uint32_t waiting = 0;     // requests that wait for it
};

class Arbiter {
 public:
  Arbiter(reactor::Io& io, std::shared_ptr<const config::Shaping> rules);
  ~Arbiter();
  Arbiter(const Arbiter&) = delete;
  Arbiter& operator=(const Arbiter&) = delete;

  // True: granted at once. Else `granted` is called when it is, never from within submit().
  bool submit(Request& request);
  void release(const Release& release);
  // A waiting request that is wanted no more. REQUIRES: not granted.
  void cancel(Request& request);
  // Someone waits for a connection of `set`, which holds one that has nothing to send: it is to end then. One for
  // each that waits.
  bool wanted(const ScopeSet& set);
  // Called when connections are waited for, at most every kRecallNs a limit: one that idles should
  // end. `provider` and `site` are empty where it is the source's limit.
  std::function<void(std::string_view provider, std::string_view site, unsigned source)> on_contended;
  static constexpr int64_t kRecallNs = 100'000'000;

  void adopt(std::shared_ptr<const config::Shaping> rules);

  // The (provider, source) of the subject gets its back-off limits until no more such reply has come for
  // the time that the rules say.
  void back_off(const Subject& subject, std::string_view reason);
  struct Mode {
    std::string provider, site, reason;  // site: of the first reply; of a provider all sites are meant
    unsigned source = 0;
    int64_t since = 0, until = 0;        // monotonic
    Arbiter* arbiter = nullptr;
    reactor::Timer timer;
  };
  // nullptr: normal.
  const Mode* mode(const Subject& subject) const;
  // Called when one begins or ends.
  std::function<void(const Mode& mode, bool backed_off)> on_mode;

  // Budgets of an hour or longer survive a restart: a part of each is written down before it is used.
  // `write` answers by its callback, later. Without it nothing is kept. Before the first request, after
  // what was found has been recovered.
  using Write = std::function<void(std::string key, std::string value, std::function<void(Status)> done)>;
  void keep_budgets(Write write);
  static constexpr std::string_view kBudgetKey = "budget/";
  void recover(std::string_view key, std::string_view value);

  // The limits that hold for `subject`, in their order.
  std::vector<LimitRow> describe(const Subject& subject, Purpose purpose);

  size_t scopes() const { return scopes_.size(); }
  size_t sets() const { return sets_.size(); }
  // Asserts that every counter is within its limit; for tests.
  void check() const;

 private:
  void bind(Request& request);
  ScopeSet& set_of(const Subject& subject, Purpose purpose);
  void bind(ScopeSet& set);
  Scope& scope_of(const ScopeRef& found);
  void configure(Scope& scope, const config::ShapingChoice& choice);
  Counter* blocking(const Request& request, const Counter* served);
  void grant(Request& request);
  void park(Request& request, Counter& at);
  void serve(Counter& counter);
  void arm(Counter& counter);
  void persist(Counter& counter);
  void count_out(ScopeSet& set, int by);
  void end_mode(Mode& mode);
  void ask_anew(const std::function<void()>& change);
  bool backed_off(const Subject& subject) const { return !modes_.empty() && mode(subject) != nullptr; }
  int64_t now() const { return io_.now(); }

  reactor::Io& io_;
  std::shared_ptr<const config::Shaping> rules_;
  std::unordered_map<std::string, std::unique_ptr<Scope>> scopes_;
  std::unordered_map<std::string, std::unique_ptr<ScopeSet>> sets_;
  std::unordered_map<std::string, std::string> recovered_;  // budgets whose scope has not been met yet
  std::unordered_map<std::string, std::unique_ptr<Mode>> modes_;  // of those that are backed off, by the pair's name
  Flows flows_;
  std::vector<ScopeRef> found_;  // scratch
  std::string key_;
  Write write_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace millrace::shaping
