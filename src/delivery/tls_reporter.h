// Sends TLS reports (RFC 8460): gathers what the shards have counted, keeps it in the spool's state, and once a day (UTC) sends
// the operators of recipient domains theirs, by HTTPS. One of a relay, on one shard.
//
//   counted today -> (midnight) due, one to four hours later -> looked up, posted -> gone
//                                         ^ failed: after 5 minutes, doubling to 4 hours; given up 24 hours after the first try
//
// Whether a domain wants a report (_smtp._tls.DOMAIN) is asked when it is due. mailto: addresses alone get none: it is said in
// the log, and the counts are dropped.
//
// Periods begin at midnight, when an operator has sent what was counted, or when the clock has been put back to before their
// beginning: what was counted under the wrong time is then the new period's.
//
// Limits: of TlsCounts, for each of kMostPeriods periods. kMostAtOnce reports under way. What a crash can lose is what was
// counted in the last kGatherNs, and kWriteAgainNs more for each kMostWritten domains; a report may be sent twice when its
// server's answer is lost (with the same id).
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_set>
#include <vector>

#include "delivery/mta_sts.h"
#include "delivery/tls_report.h"
#include "dns/cache.h"
#include "reactor/io.h"

namespace millrace::delivery {

class TlsReporter {
 public:
  static constexpr int64_t kGatherNs = 300'000'000'000;
  static constexpr int64_t kShortestDelayS = 3600, kLongestDelayS = 4 * 3600;
  static constexpr int64_t kFirstRetryS = 300, kLongestRetryS = 4 * 3600;
  static constexpr int64_t kGiveUpS = 86'400;       // after the first try of this run of the relay,
  static constexpr int64_t kOldestS = 7 * 86'400;   // and when it is so old
  static constexpr int64_t kClockSlackS = 60;       // a clock put back by less changes nothing
  static constexpr size_t kMostAtOnce = 8;
  static constexpr size_t kMostPeriods = 4;
  static constexpr size_t kMostWritten = 2000;  // states at a time, but at the end
  static constexpr int64_t kWriteAgainNs = 2'000'000'000;  // while there are more

  struct Options {
    bool on = false;
    std::string organization, contact, node;
    std::shared_ptr<const std::string> authorities;  // PEM
    bool ipv6 = false, allow_private = false;        // where reports may go
  };
  struct Stats {
    uint64_t sent = 0;
    uint64_t given_up = 0;  // wanted, and no address took it for a day; or dropped for want of room
    uint64_t mail_only = 0;
    uint64_t left_out = 0;  // sessions: see TlsCounts
  };
  struct Row {
    std::string domain;
    int64_t start_s = 0;
    uint64_t successful = 0, failed = 0;
    int64_t due_ms = 0;  // UTC; 0: still being counted
    std::string why;     // it has not been sent
  };

  // `io` and `cache` are of the shard that it runs on, and outlive it.
  TlsReporter(reactor::Io& io, dns::Cache& cache);
  ~TlsReporter();
  TlsReporter(const TlsReporter&) = delete;
  TlsReporter& operator=(const TlsReporter&) = delete;

  // ---- set before start()
  // What all shards have counted since it was last asked.
  std::function<void(std::function<void(TlsCounts)> done)> gather;
  // Durable pairs, keys below "tlsrpt/"; an empty value removes the key.
  std::function<void(std::string key, std::string value, std::function<void()> done)> store;
  void set_fetcher(StsFetcher* fetcher, reactor::Mailbox* mailbox) { fetcher_ = fetcher, mailbox_ = mailbox; }
  // Tells its reports from those of another spool under the same node name.
  void set_spool(std::string spool) { spool_ = std::move(spool); }
  // What store() was given: `key` without its beginning. Before start().
  void recover(std::string_view key, std::string_view value);

  void configure(Options options);
  void start();
  // Everything counted so far is due now. `done` with the number of reports then due; what becomes of them is in the log.
  void send_now(std::function<void(size_t)> done);
  // Gathers and stores once more; nothing is sent after `done`.
  void stop(std::function<void()> done);

  const Stats& stats() const { return stats_; }
  std::vector<Row> rows() const;

 private:
  struct Report {
    std::string domain;
    int64_t start_s = 0, end_s = 0;
    TlsCounts::Domain counted;
    int64_t due_ms = 0;       // UTC
    int64_t give_up_ms = 0;   // UTC; 0: not tried yet
    int64_t wait_s = 0;       // before the next try
    std::string why;
    bool wanted = false;      // as far as is known
    // ---- while it is under way
    std::vector<std::string> left;  // URLs
    std::set<std::string> posted;   // of all tries
    std::string body;
    int lookups = 0;
    HttpsUrl url;
    std::vector<reactor::Address> addresses;
    StsFetch* job = nullptr;
    bool failed = false;
    TlsReporter* reporter = nullptr;
  };
  struct Period {
    int64_t start_s = 0;
    TlsCounts counts;
    std::deque<std::string> changed;         // since they were stored, the first to change first
    std::unordered_set<std::string> marked;  // the same
  };

  static std::string key(int64_t start_s, const std::string& domain);
  int64_t now_s() const { return io_.wall_ms() / 1000; }
  void on_timer();
  void arm();
  void take(TlsCounts counts);
  void gather_then(std::function<void()> done);
  void mark(const std::string& domain);
  void write(size_t most);
  void write_some();
  bool clock_went_back() const { return now_s() + kClockSlackS < period_.start_s; }
  void follow_clock_back();
  // `second`, or the next one that no report began at.
  int64_t free_start(int64_t second) const;
  void set_start(int64_t start_s);
  void end_period(int64_t end_s, bool at_once);
  // False: no room.
  bool add_report(const std::string& domain, int64_t start_s, int64_t end_s, TlsCounts::Domain counted, bool at_once);
  void warn_dropped(size_t reports);
  void bring_forward();
  void forget();
  void send_due();
  void begin(Report& report);
  void on_record(Report& report, const dns::Answer& answer);
  void post_next(Report& report);
  void on_address(Report& report, const dns::Answer& answer);
  void post(Report& report);
  void on_posted(Report& report, StsFetch& job);
  void retry(Report& report, std::string why);
  void give_up(Report& report, const std::string& why);
  void remove(Report& report);  // destroys it

  reactor::Io& io_;
  dns::Cache& cache_;
  StsFetcher* fetcher_ = nullptr;
  reactor::Mailbox* mailbox_ = nullptr;
  Options options_;
  std::string spool_;
  Period period_;
  std::map<std::string, std::unique_ptr<Report>> reports_;  // by key
  std::set<std::pair<int64_t, std::string>> due_;           // of those that are not under way
  size_t busy_ = 0;
  int64_t gather_at_ = 0;  // monotonic
  bool gathering_ = false;
  int64_t write_at_ = INT64_MAX;  // monotonic
  size_t writes_ = 0;             // under way
  int64_t began_s_ = 0;           // as it is stored: the period's start when it is no midnight
  std::vector<std::function<void()>> gathered_;
  bool running_ = false;
  reactor::Timer timer_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  Stats stats_;
};

}  // namespace millrace::delivery
