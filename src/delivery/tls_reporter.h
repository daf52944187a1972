// Sends TLS reports (RFC 8460): gathers what the shards have counted, keeps it in the spool's state, and once a day (UTC) sends
// the operators of recipient domains theirs, by HTTPS. One of a relay, on one shard.
//
//   counted today -> (midnight) due, one to four hours later -> looked up, posted -> gone
//                                         ^ failed: after 5 minutes, doubling to 4 hours; given up after 24 hours
//
// Whether a domain wants a report (_smtp._tls.DOMAIN) is asked when it is due. mailto: addresses alone get none: it is said in
// the log, and the counts are dropped.
//
// Limits: of TlsCounts, for each of kMostPeriods periods. kMostAtOnce reports under way. What a crash can lose is what was
// counted in the last kGatherNs; a report may be sent twice when its server's answer is lost (with the same id).
#pragma once

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
  static constexpr int64_t kGiveUpS = 86'400;
  static constexpr size_t kMostAtOnce = 8;
  static constexpr size_t kMostPeriods = 4;
  static constexpr size_t kMostWritten = 2000;  // states at a time, but at the end

  struct Options {
    bool on = false;
    std::string organization, contact, node;
    std::shared_ptr<const std::string> authorities;  // PEM
    bool ipv6 = false, allow_private = false;        // where reports may go
  };
  struct Stats {
    uint64_t sent = 0;
    uint64_t given_up = 0;  // a day of failures
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
    int64_t give_up_ms = 0;   // UTC
    int64_t wait_s = 0;       // before the next try
    std::string why;
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
    std::unordered_set<std::string> changed;  // since they were stored
  };

  static std::string key(int64_t start_s, const std::string& domain);
  int64_t now_s() const { return io_.wall_ms() / 1000; }
  void on_timer();
  void arm();
  void take(TlsCounts counts);
  void gather_then(std::function<void()> done);
  void write(size_t most, const std::function<void()>& done);
  void end_period(int64_t end_s, bool at_once);
  void add_report(std::string domain, int64_t start_s, int64_t end_s, TlsCounts::Domain counted, bool at_once);
  void forget();
  void send_due();
  void begin(Report& report);
  void on_record(Report& report, const dns::Answer& answer);
  void post_next(Report& report);
  void on_address(Report& report, const dns::Answer& answer);
  void post(Report& report);
  void on_posted(Report& report, StsFetch& job);
  void retry(Report& report, std::string why);
  void remove(Report& report);  // destroys it

  reactor::Io& io_;
  dns::Cache& cache_;
  StsFetcher* fetcher_ = nullptr;
  reactor::Mailbox* mailbox_ = nullptr;
  Options options_;
  Period period_;
  std::map<std::string, std::unique_ptr<Report>> reports_;  // by key
  std::set<std::pair<int64_t, std::string>> due_;           // of those that are not under way
  size_t busy_ = 0;
  int64_t gather_at_ = 0;  // monotonic
  bool gathering_ = false;
  std::vector<std::function<void()>> gathered_;
  bool running_ = false;
  reactor::Timer timer_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  Stats stats_;
};

}  // namespace millrace::delivery
