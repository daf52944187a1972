#include "dsn/report.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/assert.h"
#include "mail/address.h"
#include "mail/enhanced_status.h"
#include "mail/headers.h"
#include "smtp/xtext.h"

namespace millrace::dsn {
namespace {

constexpr size_t kFoldAt = 76;        // octets of a line, where a blank allows it
constexpr size_t kLongestLine = 900;  // and where none does; the limit is 998

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

// `text` on one line without control characters, blanks not doubled. `utf8`: octets above 127 may
// stay if they are well-formed; otherwise each becomes '?'.
std::string clean(std::string_view text, bool utf8) {
  bool keep = utf8 && mail::is_utf8(text);
  std::string out;
  out.reserve(text.size());
  for (char c : text) {
    auto octet = static_cast<unsigned char>(c);
    if (c == ' ' || c == '\n' || c == '\t' || c == '\r') {
      if (!out.empty() && out.back() != ' ') out += ' ';
    } else if (octet < 0x20 || octet == 0x7f || (octet >= 0x80 && !keep)) {
      out += '?';
    } else {
      out += c;
    }
  }
  while (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

// RFC 6533 3, utf-8-addr-xtext: the 7-bit form of an address that is not ASCII.
std::string embedded(std::string_view address) {
  std::string out;
  for (size_t i = 0; i < address.size();) {
    auto octet = static_cast<unsigned char>(address[i]);
    unsigned size = octet < 0x80 ? 1 : octet < 0xe0 ? 2 : octet < 0xf0 ? 3 : 4;
    if (size == 1 && octet > 0x20 && octet != '\\' && octet != '+' && octet != '=' &&
        octet != 0x7f) {
      out += address[i];
    } else {
      unsigned code = size == 1 ? octet : octet & (0x7fu >> size);
      for (unsigned k = 1; k < size && i + k < address.size(); ++k)
        code = code << 6 | (static_cast<unsigned char>(address[i + k]) & 0x3f);
      fmt::format_to(std::back_inserter(out), "\\x{{{:02X}}}", code);
    }
    i += size;
  }
  return out;
}

// "Name: value", folded. `value` is clean.
void add_field(std::string& out, std::string_view name, std::string_view value) {
  if (value.empty()) return;
  out += name;
  out += ':';
  size_t line = name.size() + 1;
  while (!value.empty()) {
    size_t blank = value.find(' ');
    std::string_view word = value.substr(0, blank);
    if (line > name.size() + 1 && line + 1 + word.size() > kFoldAt) {
      out += "\r\n";
      line = 0;
    }
    // A word that no line can hold is cut.
    size_t take = std::min(word.size(), kLongestLine - 1 - std::min(line, kLongestLine - 2));
    out += ' ';
    out += word.substr(0, take);
    line += 1 + take;
    if (take < word.size()) {
      out += "\r\n";
      line = 0;
      value.remove_prefix(take);
    } else {
      value.remove_prefix(std::min(value.size(), take + 1));
    }
  }
  out += "\r\n";
}

void add_date(std::string& out, std::string_view name, int64_t utc_ms) {
  if (utc_ms == 0) return;
  std::string date;
  mail::append_rfc5322_date(date, utc_ms);
  add_field(out, name, date);
}

// RFC 2045 6.7, for text of CRLF lines.
void add_quoted_printable(std::string& out, std::string_view text) {
  size_t line = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    auto octet = static_cast<unsigned char>(text[i]);
    if (octet == '\r' && i + 1 < text.size() && text[i + 1] == '\n') {
      out += "\r\n";
      line = 0;
      ++i;
      continue;
    }
    bool line_ends = i + 1 == text.size() || text[i + 1] == '\r';
    bool plain = (octet > 0x20 && octet < 0x7f && octet != '=') ||
                 ((octet == ' ' || octet == '\t') && !line_ends);
    size_t width = plain ? 1 : 3;
    if (line + width > 75) {
      out += "=\r\n";
      line = 0;
    }
    if (plain) {
      out += text[i];
    } else {
      fmt::format_to(std::back_inserter(out), "={:02X}", octet);
    }
    line += width;
  }
}

// Words for a person, wrapped.
void add_paragraph(std::string& out, std::string_view text, std::string_view indent = "") {
  while (!text.empty()) {
    size_t room = kFoldAt - indent.size();
    size_t take = text.size();
    if (take > room) {
      take = text.rfind(' ', room);
      if (take == std::string_view::npos || take == 0)
        take = std::min({text.find(' '), text.size(), kLongestLine});
    }
    out += indent;
    out += text.substr(0, take);
    out += "\r\n";
    text.remove_prefix(take);
    while (!text.empty() && text[0] == ' ') text.remove_prefix(1);
  }
}

std::string_view action_of(ReportKind kind) {
  switch (kind) {
    case ReportKind::failed:
    case ReportKind::expired:
      return "failed";
    case ReportKind::delayed:
      return "delayed";
    case ReportKind::delivered:
      return "delivered";
    case ReportKind::relayed:
      return "relayed";
  }
  UNREACHABLE();
}

std::string status_of(const ReportedRecipient& recipient) {
  char wanted = '5';
  std::string_view otherwise = "5.0.0";
  switch (recipient.kind) {
    case ReportKind::failed:
      break;
    // RFC 3463: 4.4.7 is expiry; action "failed" makes it final.
    case ReportKind::expired:
      wanted = '4', otherwise = "4.4.7";
      break;
    case ReportKind::delayed:
      wanted = '4', otherwise = "4.0.0";
      break;
    case ReportKind::delivered:
    case ReportKind::relayed:
      wanted = '2', otherwise = "2.0.0";
      break;
  }
  auto parsed = mail::EnhancedStatus::parse(recipient.enhanced);
  if (!parsed || recipient.enhanced[0] != wanted) return std::string(otherwise);
  return parsed->to_string();
}

std::string_view headline(ReportKind kind) {
  switch (kind) {
    case ReportKind::failed:
    case ReportKind::expired:
      return "Failure";
    case ReportKind::delayed:
      return "Delay";
    case ReportKind::delivered:
    case ReportKind::relayed:
      return "Success";
  }
  UNREACHABLE();
}

// What a person needs first is first: failures before delays before successes.
ReportKind gravest(std::span<const ReportedRecipient> recipients) {
  ReportKind worst = recipients[0].kind;
  for (const ReportedRecipient& each : recipients) worst = std::min(worst, each.kind);
  return worst;
}

std::string reply_text(const ReportedRecipient& recipient) {
  std::string text = recipient.code != 0 ? fmt::format("{} ", recipient.code) : std::string();
  return text + clean(recipient.reply, false);
}

std::string words(const ReportSource& source) {
  std::string out;
  add_paragraph(out, fmt::format("This is the mail system at {}.", clean(source.hostname, false)));
  struct Section {
    ReportKind kind;
    std::string_view text;
  };
  constexpr Section kSections[] = {
      {ReportKind::failed,
       "Your message could not be delivered to the recipients below. This is final: no further "
       "attempt "
       "will be made."},
      {ReportKind::expired,
       "Your message could not be delivered to the recipients below in the time it had. No further "
       "attempt will be made."},
      {ReportKind::delayed,
       "Your message has not been delivered to the recipients below yet. You need not send it "
       "again: it "
       "will be tried until the time given."},
      {ReportKind::delivered,
       "Your message has been delivered to the recipients below, as you asked to be told."},
      {ReportKind::relayed,
       "Your message has been passed on for the recipients below. Their mail system sends no "
       "reports of its "
       "own, so this is the last one."}};
  for (const Section& section : kSections) {
    bool first = true;
    for (const ReportedRecipient& recipient : source.recipients) {
      if (recipient.kind != section.kind) continue;
      if (first) {
        out += "\r\n";
        add_paragraph(out, section.text);
        first = false;
      }
      out += "\r\n";
      add_paragraph(out, fmt::format("<{}>", clean(recipient.address, true)), "  ");
      if (!recipient.reply.empty() || recipient.code != 0) {
        std::string_view who = recipient.mx;
        add_paragraph(out,
                      who.empty()
                          ? reply_text(recipient)
                          : fmt::format("{} said: {}", clean(who, false), reply_text(recipient)),
                      "    ");
      }
      if (recipient.kind == ReportKind::delayed && recipient.retry_until_ms != 0) {
        std::string until;
        mail::append_rfc5322_date(until, recipient.retry_until_ms);
        add_paragraph(out, fmt::format("It will be tried until {}.", until), "    ");
      }
    }
  }
  return out;
}

std::string address_field(std::string_view type, std::string_view address, bool utf8) {
  if (is_ascii(address)) return fmt::format("{}; {}", type, clean(address, false));
  if (!mail::is_utf8(address)) return fmt::format("{}; {}", type, clean(address, false));
  return fmt::format("utf-8; {}", utf8 ? clean(address, true) : embedded(address));
}

// RFC 3464 2
std::string status(const ReportSource& source, bool utf8) {
  std::string out;
  std::string envid;
  if (smtp::append_decoded_xtext(envid, source.envelope->envid))
    add_field(out, "Original-Envelope-Id", clean(envid, false));
  add_field(out, "Reporting-MTA", fmt::format("dns; {}", clean(source.hostname, false)));
  add_date(out, "Arrival-Date", source.envelope->received_ms);
  add_field(out, "X-Spool-Id", source.message.to_string());
  for (const ReportedRecipient& recipient : source.recipients) {
    out += "\r\n";
    size_t semicolon = recipient.orcpt.find(';');
    std::string original;
    if (semicolon != std::string_view::npos &&
        smtp::append_decoded_xtext(original, recipient.orcpt.substr(semicolon + 1)) &&
        !original.empty())
      add_field(out, "Original-Recipient",
                address_field(clean(recipient.orcpt.substr(0, semicolon), false), original, utf8));
    add_field(out, "Final-Recipient", address_field("rfc822", recipient.address, utf8));
    add_field(out, "Action", action_of(recipient.kind));
    add_field(out, "Status", status_of(recipient));
    if (!recipient.mx.empty())
      add_field(out, "Remote-MTA", fmt::format("dns; {}", clean(recipient.mx, false)));
    if (recipient.code != 0) {
      add_field(out, "Diagnostic-Code", fmt::format("smtp; {}", reply_text(recipient)));
    } else if (!recipient.reply.empty()) {
      add_field(out, "Diagnostic-Code",
                fmt::format("X-Millrace; {}", clean(recipient.reply, false)));
    }
    add_date(out, "Last-Attempt-Date", recipient.last_attempt_ms);
    if (recipient.kind == ReportKind::delayed)
      add_date(out, "Will-Retry-Until", recipient.retry_until_ms);
  }
  return out;
}

struct Returned {
  std::string bytes;
  bool cut = false;
};

// The canonical content from its start: the header section, or as much of all as may go back.
Returned returned_part(const mail::Content& content, bool full) {
  std::vector<iovec> parts;
  content.gather(mail::WireForm::bdat, parts);
  Returned returned;
  for (const iovec& part : parts) {
    size_t room = kMostReturned - returned.bytes.size();
    returned.bytes.append(static_cast<const char*>(part.iov_base), std::min(part.iov_len, room));
    if (part.iov_len > room) returned.cut = true;
    if (returned.cut) break;
  }
  std::string& bytes = returned.bytes;
  if (!full) {
    size_t end = bytes.starts_with("\r\n") ? 0 : bytes.find("\r\n\r\n");
    if (end != std::string::npos) {
      bytes.resize(end == 0 ? 0 : end + 2);
      returned.cut = false;
    }
  }
  if (returned.cut) {
    size_t line_end = bytes.rfind("\r\n");
    if (line_end != std::string::npos) bytes.resize(line_end + 2);
  }
  // It was checked when it was accepted; a report must not depend on that.
  size_t line = 0;
  std::string safe;
  safe.reserve(bytes.size() + 2);
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] == '\r' && i + 1 < bytes.size() && bytes[i + 1] == '\n') {
      safe += "\r\n";
      line = 0;
      ++i;
      continue;
    }
    if (line == 998) {
      safe += "\r\n ";
      line = 1;
    }
    char c = bytes[i];
    safe += c == '\r' || c == '\n' || c == '\0' ? '?' : c;
    ++line;
  }
  if (!safe.ends_with("\r\n")) safe += "\r\n";
  bytes = std::move(safe);
  return returned;
}

}  // namespace

bool report_due(const ReportPolicy& policy, ReportKind kind, std::string_view reverse_path,
                uint8_t notify, bool receiver_reports) {
  if (reverse_path.empty()) return false;  // RFC 5321 4.5.5: a report about a report is never sent
  if (notify & mail::Notify::never) return false;
  bool unset = notify == mail::Notify::unset;
  switch (kind) {
    case ReportKind::failed:
    case ReportKind::expired:
      return policy.failures && (unset || (notify & mail::Notify::failure));
    case ReportKind::delayed:
      return policy.delays && (unset || (notify & mail::Notify::delay));
    case ReportKind::delivered:
    case ReportKind::relayed:
      return policy.successes && (notify & mail::Notify::success) && !receiver_reports;
  }
  UNREACHABLE();
}

Report build_report(const ReportSource& source) {
  const mail::Envelope& original = *source.envelope;
  ASSERT(!original.reverse_path.empty() && !source.recipients.empty());
  Report report;
  bool utf8 = !is_ascii(original.reverse_path);

  std::string human = words(source);
  // RFC 8689 5: the report is protected as the message was, and says nothing of its text.
  const bool protect = original.tls == mail::TlsWish::required;
  bool full = original.ret == mail::Ret::full && !protect;
  Returned returned;
  if (source.content) returned = returned_part(*source.content, full);
  if (returned.cut && full) {
    human += "\r\n";
    add_paragraph(human, fmt::format("Only the first {} KiB of your message are returned.",
                                     kMostReturned / 1024));
  }
  std::string machine = status(source, utf8);

  // No part may hold the boundary; with a chance of 2^-64 a line, but what is returned is a
  // stranger's.
  std::string boundary;
  for (uint64_t random = source.random;;
       random = random * 6364136223846793005u + 1442695040888963407u) {
    boundary = fmt::format("=_{:016x}.{}", random, source.id.to_string());
    if (returned.bytes.find(boundary) == std::string::npos &&
        human.find(boundary) == std::string::npos && machine.find(boundary) == std::string::npos)
      break;
  }

  bool eight_bit = false;  // a part that stays 8-bit
  std::string body;
  auto open_part = [&](std::string_view type, std::string_view encoding) {
    body += fmt::format("--{}\r\nContent-Type: {}\r\n", boundary, type);
    if (!encoding.empty()) body += fmt::format("Content-Transfer-Encoding: {}\r\n", encoding);
    body += "\r\n";
  };

  if (is_ascii(human)) {
    open_part("text/plain; charset=us-ascii", "");
    body += human;
  } else {
    open_part("text/plain; charset=utf-8", "quoted-printable");
    add_quoted_printable(body, human);
  }
  body += "\r\n";

  if (is_ascii(machine)) {
    open_part(utf8 ? "message/global-delivery-status" : "message/delivery-status", "");
  } else {
    eight_bit = true;
    open_part("message/global-delivery-status", "8bit");
  }
  body += machine;
  body += "\r\n";

  if (source.content) {
    bool returned_ascii = is_ascii(returned.bytes);
    if (full && !original.smtputf8) {
      open_part("message/rfc822", returned_ascii ? "" : "8bit");
      eight_bit |= !returned_ascii;
      body += returned.bytes;
    } else {
      // The types for UTF-8 may be encoded, and text/rfc822-headers may: 7-bit in any case.
      std::string_view type = full                ? "message/global"
                              : original.smtputf8 ? "message/global-headers"
                                                  : "text/rfc822-headers";
      open_part(type, returned_ascii ? "" : "quoted-printable");
      if (returned_ascii) {
        body += returned.bytes;
      } else {
        add_quoted_printable(body, returned.bytes);
      }
    }
    body += "\r\n";
  }
  body += fmt::format("--{}--\r\n", boundary);

  std::string& out = report.content;
  std::string hostname = clean(source.hostname, false);
  add_field(out, "From", fmt::format("Mail Delivery System <MAILER-DAEMON@{}>", hostname));
  add_field(out, "To", fmt::format("<{}>", clean(original.reverse_path, true)));
  add_field(out, "Subject",
            fmt::format("Delivery Status Notification ({})", headline(gravest(source.recipients))));
  add_date(out, "Date", source.now_ms);
  mail::append_message_id(out, source.id, hostname);
  add_field(out, "Auto-Submitted", "auto-replied");
  add_field(out, "MIME-Version", "1.0");
  out += fmt::format("Content-Type: multipart/report; report-type={};\r\n boundary=\"{}\"\r\n",
                     utf8 ? "global-delivery-status" : "delivery-status", boundary);
  if (eight_bit) out += "Content-Transfer-Encoding: 8bit\r\n";
  out += "\r\n";
  add_paragraph(out, "This is a report in MIME form (RFC 3464).");
  out += "\r\n";
  out += body;

  mail::Envelope& envelope = report.envelope;
  mail::Recipient to;
  to.address = original.reverse_path;
  auto path = mail::parse_mailbox(to.address);
  if (path) {
    auto domain = mail::to_routing_domain(path->domain);
    if (domain) to.domain = std::move(*domain);
  }
  envelope.recipients.push_back(std::move(to));
  envelope.body = eight_bit || utf8 ? mail::BodyType::eight_bit_mime : mail::BodyType::seven_bit;
  envelope.smtputf8 = utf8;
  if (protect) envelope.tls = mail::TlsWish::required;
  envelope.received_ms = source.now_ms;
  envelope.tenant = original.tenant;
  const std::string id = source.id.to_string();
  envelope.message_id = fmt::format("<{}@{}>", id, hostname);
  return report;
}

}  // namespace millrace::dsn
