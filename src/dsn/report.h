// Delivery status reports (RFC 3461, 3464, 6522, 6533): who gets one, and the message itself. Pure.
//
// The report is a multipart/report of three parts: words for a person, message/delivery-status for
// a program, and what came back: the header section, or with RET=FULL the message, cut at
// kMostReturned octets. Where the reverse-path needs SMTPUTF8 the parts are their message/global-*
// forms and the report is sent with SMTPUTF8; everything else is made so that it is 7-bit, except
// an 8-bit message returned in full (message/rfc822 may not be encoded, RFC 2046 5.2.1): that
// report needs 8BITMIME.
//
// Whatever a peer has said: control characters become '?', octets above 127 of a reply too, lines
// are folded below 998 octets, and no line of a header or of the status part begins with a peer's
// text.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "mail/content.h"
#include "mail/envelope.h"
#include "mail/spool_id.h"

namespace millrace::dsn {

enum class ReportKind : uint8_t {
  failed,   // refused for good
  expired,  // given up after its time
  delayed,
  delivered,  // into the receiver's hands; it does not report itself
  relayed,    // the same, where the sender asked for a success report and the receiver knows none
};

// ---- who gets one

struct ReportPolicy {  // --reports and --delay-reports
  bool failures = true;
  bool successes = false;
  bool delays = false;
};
// Whether a report about this recipient is due. `notify` is a set of mail::Notify bits.
// `receiver_reports`: the receiver offered DSN, and got NOTIFY, so that successes are its to
// report.
bool report_due(const ReportPolicy& policy, ReportKind kind, std::string_view reverse_path,
                uint8_t notify, bool receiver_reports = false);

// ---- the report

struct ReportedRecipient {
  ReportKind kind = ReportKind::failed;
  std::string_view address;
  std::string_view orcpt;  // as given, xtext undecoded; may be empty
  uint16_t code = 0;       // of the reply; 0: the words are our own
  std::string_view
      enhanced;            // "5.1.1"; one that fits the kind is made where it is empty or does not
  std::string_view reply;  // verbatim
  std::string_view mx;     // who said it; may be empty
  int64_t last_attempt_ms = 0;  // UTC; 0: none
  int64_t retry_until_ms = 0;   // delayed: when it will be given up
};

struct ReportSource {
  std::string_view hostname;
  const mail::Envelope* envelope = nullptr;  // of the message that is reported on
  mail::SpoolId message;                     // its id
  mail::SpoolId id;                          // the report's own
  // What was accepted, or nullptr when it cannot be read any more: then nothing is returned.
  const mail::Content* content = nullptr;
  std::span<const ReportedRecipient> recipients;  // at least one
  int64_t now_ms = 0;
  uint64_t random = 0;  // for the boundary
};

struct Report {
  mail::Envelope envelope;  // from <>, to the reverse-path
  std::string content;      // CRLF lines, not dot-stuffed
};

inline constexpr size_t kMostReturned = 64 * 1024;

// REQUIRES: the reverse-path is not empty.
Report build_report(const ReportSource& source);

}  // namespace millrace::dsn
