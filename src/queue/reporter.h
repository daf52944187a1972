// What the queue asks of bounce: a report to the sender, before the outcome that it tells of is recorded.
#pragma once

#include <string>
#include <vector>

#include "queue/agent.h"

namespace millrace::queue {

enum class ReportKind : uint8_t { failed, expired, delivered };

struct ReportLine {
  uint32_t recipient = 0;  // number in the envelope
  ReportKind kind = ReportKind::failed;
  RecipientResult result;  // the reply, or our own words
  std::string mx;
};

// Stays valid until done(), which is never called inline. One message, one report.
struct ReportRequest {
  const Message* message = nullptr;
  std::vector<ReportLine> lines;
  bool sent = false;       // the answer: a report was due and is durable in the queue
  void* owner = nullptr;
  void (*done)(void* owner, ReportRequest& request) = nullptr;
};

class Reporter {
 public:
  virtual ~Reporter() = default;
  // Whether the sender gets a report about this recipient (--reports, NOTIFY, a null reverse-path).
  // `receiver_reports`: the next relay took our NOTIFY, so successes are its to report (RFC 3461 5.2.2).
  virtual bool wants(const Message& message, uint32_t recipient, ReportKind kind, bool receiver_reports) = 0;
  virtual void report(ReportRequest& request) = 0;
};

}  // namespace millrace::queue
