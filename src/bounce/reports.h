// From an outcome to a delivery status report: who gets one, built by dsn/report.h, and put into the
// queue like any other message, from <>, before the outcome that says so is recorded.
//
// A report that cannot be stored now is left out (the outcome's event says that none was sent); one that
// cannot be delivered ends with its own event and no further report.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "config/config.h"
#include "dsn/report.h"
#include "ingress/inject.h"
#include "queue/reporter.h"
#include "reactor/io.h"

namespace millrace::bounce {

class Reports final : public queue::Reporter {
 public:
  struct Stats {
    uint64_t sent = 0;
    uint64_t over_limit = 0;  // left out because of --reports-per-hour
    uint64_t failed = 0;      // left out because the spool would not take them
  };

  Reports(reactor::Io& io, config::Snapshot config, ingress::Injector& injector);
  // REQUIRES: no report is on its way.
  ~Reports() override;

  bool wants(const queue::Message& message, uint32_t recipient, queue::ReportKind kind,
             bool receiver_reports) override;
  void report(queue::ReportRequest& request) override;
  void adopt(config::Snapshot config) { config_ = std::move(config); }
  const Stats& stats() const { return stats_; }

 private:
  struct Job;
  static void on_injected(void* self, ingress::Injection& injection);
  void on_skipped();
  bool within_limit(std::string_view reverse_path);

  reactor::Io& io_;
  config::Snapshot config_;
  ingress::Injector& injector_;
  std::vector<std::unique_ptr<Job>> free_;
  std::unordered_map<std::string, uint32_t> this_hour_;  // reports by reverse-path
  int64_t hour_ = 0;
  mail::SpoolIdMaker ids_;  // of the reports' Message-IDs
  std::vector<queue::ReportRequest*> skipped_;
  reactor::Deferred skip_;
  Stats stats_;
};

}  // namespace millrace::bounce
