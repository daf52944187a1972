// The header section: one scan over the spans of a Content at intake, and builders of the lines
// that the relay adds. Works on the canonical content: in a stuffed Content the transparency dot of
// a line is not part of it (".Bcc: x" received by DATA *is* "Bcc: x").
//
// The section ends at the first empty line. When the very first line is no header field, there is
// no section: `has_section` is false, nothing is cut, and added headers must be followed by an
// empty line (add_standard_headers does it).
//
// Limits: at most kMostCuts ranges are cut (neighbouring lines are one range); past it
// `too_many_cuts` is set and the message should be refused. Values are unfolded, bounded to
// kLongestValue octets, and control characters in them are replaced by '?'.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "mail/content.h"
#include "mail/spool_id.h"

namespace millrace::mail {

constexpr size_t kMostCuts = 1024;
constexpr size_t kLongestValue = 998;
constexpr size_t kLongestFrom = 8192;

// The names to look for; made once for a configuration, read by every scan.
class HeaderRules {
 public:
  // `metadata_names`: headers whose first value is returned and which are always removed, in the
  // order of HeaderScan::values. `removed_names`: removed on top of Bcc, Resent-Bcc and
  // Return-Path.
  explicit HeaderRules(const std::vector<std::string>& metadata_names = {},
                       const std::vector<std::string>& removed_names = {});
  size_t metadata_count() const { return metadata_count_; }

  enum class Kind : uint8_t { other, received, date, message_id, from, tls_required, removed, metadata };
  struct Match {
    Kind kind = Kind::other;
    uint16_t index = 0;  // of the metadata name
  };
  // `name` in any case, without the colon and the blanks before it.
  Match find(std::string_view name) const;

 private:
  struct Entry {
    std::string lower;
    Match match;
  };
  void add(std::string_view name, Match match);
  static constexpr size_t kBuckets = 64;
  std::array<std::vector<Entry>, kBuckets> by_length_;  // longer names in the last one
  size_t metadata_count_ = 0;
};

struct HeaderScan {
  uint64_t section_size = 0;  // raw octets up to and including the empty line
  uint32_t received_count = 0;
  uint32_t field_count = 0;
  bool has_section = false;
  bool has_date = false;
  bool has_message_id = false;
  bool too_many_cuts = false;
  std::string message_id;  // the value, with its angle brackets if it has them
  // TLS-Required (RFC 8689 3): the first value, and how often the header was there.
  std::string tls_required;
  uint32_t tls_required_count = 0;
  // The values of all From fields, a comma between two; only where it is asked for. Cut at kLongestFrom: `from_cut`.
  bool wants_from = false;  // the caller's; clear() leaves it
  bool from_cut = false;
  std::string from;
  // By metadata name: the first value, and how often the header was there.
  struct Value {
    std::string text;
    uint32_t count = 0;
  };
  std::vector<Value> values;

  void clear() {
    section_size = 0;
    received_count = field_count = tls_required_count = 0;
    tls_required.clear();
    has_section = has_date = has_message_id = too_many_cuts = from_cut = false;
    message_id.clear();
    from.clear();
    for (Value& value : values) {
      value.text.clear();
      value.count = 0;
    }
  }
};

// Scans the header section and adds the removed lines to content.cuts; dots inside a cut are taken
// out of content.dots, so that no cut holds a dot. What `scan` held is overwritten, the room of its
// texts is kept. REQUIRES: content.cuts is empty, line ends are CRLF only (the decoder found no
// fault).
void scan_headers(Content& content, const HeaderRules& rules, HeaderScan& scan);

// RFC 5322 3.3, always "+0000". No line end.
void append_rfc5322_date(std::string& out, int64_t utc_ms);

enum class ReceivedMode : uint8_t { full, hide_client, off };

struct ReceivedFields {   // RFC 5321 4.4; whatever the values hold, no CR, LF or NUL comes out
  std::string_view helo;  // the client's EHLO or HELO argument
  std::string_view client_address;  // "192.0.2.1" or "2001:db8::1"
  std::string_view hostname;        // ours
  bool esmtp = true;                // EHLO, not HELO
  bool tls = false;
  bool authenticated = false;
  bool smtputf8 = false;  // RFC 6531 4.3: UTF8SMTP...
  SpoolId id;
  std::string_view only_recipient;  // the mailbox when there is exactly one recipient, else empty
  int64_t utc_ms = 0;
};
// hide_client leaves out the whole "from" clause. off appends nothing.
void append_received(std::string& out, ReceivedMode mode, const ReceivedFields& fields);
void append_date(std::string& out, int64_t utc_ms);  // "Date: ...\r\n"
void append_message_id(std::string& out, const SpoolId& id, std::string_view hostname);
// "Name: value\r\n" with control characters replaced and at most kLongestValue - name octets.
void append_header(std::string& out, std::string_view name, std::string_view value);

// Sets content.prefix: Received, then Date and Message-ID if the message has none, then an empty
// line if it has no header section. The Message-ID given to a message without one is returned in
// scan.message_id.
void add_standard_headers(Content& content, HeaderScan& scan, ReceivedMode mode,
                          const ReceivedFields& fields);

}  // namespace millrace::mail
