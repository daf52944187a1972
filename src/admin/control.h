// What the admin socket asks of the relay as a whole: an operator's view over all shards, and the
// hand on them. relay/control.h implements it. Every call is made on the control shard (0) and
// answers there by a callback, perhaps from within the call.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "millrace/status.h"
#include "queue/scheduler.h"

namespace millrace::admin {

class Control {
 public:
  virtual ~Control() = default;
  virtual void status(std::function<void(RelayStatus)> done) = 0;
  // One row a destination, in the order in which an operator wants to see them.
  virtual void queue_rows(std::function<void(std::vector<queue::QueueRow>)> done) = 0;
  virtual void show(const mail::SpoolId& id,
                    std::function<void(Result<queue::MessageRow>)> done) = 0;
  // Of a domain or, if that is empty, of a message: its limits, and what binds.
  virtual void explain(const std::string& domain, const mail::SpoolId& id,
                       std::function<void(Result<std::vector<queue::ExplainRow>>)> done) = 0;
  // The number of recipients that match and, unless `dry_run`, on whom the command has begun to
  // act: the command itself is durable then.
  virtual void command(queue::Command command, queue::Filter filter, bool dry_run,
                       std::function<void(Result<uint64_t>)> done) = 0;
  // Freezes an account (new mail 4xx, queued mail held) or ends that; durable when it answers.
  virtual void freeze(const std::string& account, bool frozen, std::function<void(Status)> done) = 0;
  // Frozen ones, and why.
  virtual std::vector<std::pair<std::string, std::string>> frozen_accounts() const = 0;
  // That the sites which queued mail of the domain is for have had TLS; their names, once it is durable.
  virtual void forget_tls(const std::string& domain, std::function<void(Result<std::vector<std::string>>)> done) = 0;
  // TLS reports (RFC 8460): one row for each that is being counted or waits to be sent.
  struct TlsReportRow {
    std::string domain;
    uint64_t successful = 0, failed = 0;  // sessions
    int64_t since_ms = 0;                 // UTC
    int64_t due_ms = 0;                   // UTC; 0: still being counted
    std::string why;                      // it has not been sent
  };
  virtual std::vector<TlsReportRow> tls_reports() const = 0;
  // Makes all of them due now; how many there are.
  virtual void send_tls_reports(std::function<void(Result<uint64_t>)> done) = 0;
  // The pauses in force, as the operator gave them.
  virtual std::vector<queue::Filter> pauses() const = 0;
};

}  // namespace millrace::admin
