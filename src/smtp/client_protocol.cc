#include "smtp/client_protocol.h"

#include <algorithm>

#include "base/assert.h"

namespace millrace::smtp {
namespace {

bool is_high(char c) { return static_cast<unsigned char>(c) >= 0x80; }

bool has_utf8(std::string_view text) { return std::any_of(text.begin(), text.end(), is_high); }

// Appends text of the envelope into a command line.
void append_checked(std::string& out, std::string_view text) {
  for (char c : text) ASSERT(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
  out.append(text);
}

void append_number(std::string& out, uint64_t number) {
  char digits[20];
  size_t at = sizeof digits;
  do {
    digits[--at] = static_cast<char>('0' + number % 10);
    number /= 10;
  } while (number > 0);
  out.append(digits + at, sizeof digits - at);
}

// What was declared is not enough to need it: clients declare SMTPUTF8 for plain mail too.
bool needs_smtputf8(const mail::Envelope& envelope, const mail::Content& content) {
  if (envelope.smtputf8 && content.eight_bit_header) return true;
  if (has_utf8(envelope.reverse_path)) return true;
  for (const mail::Recipient& recipient : envelope.recipients) {
    if (has_utf8(recipient.address)) return true;
  }
  return false;
}

}  // namespace

std::string_view to_string(Fit fit) {
  switch (fit) {
    case Fit::ok:
      return "ok";
    case Fit::too_large:
      return "message larger than the server's limit";
    case Fit::needs_smtputf8:
      return "server does not offer SMTPUTF8";
    case Fit::needs_8bitmime:
      return "server does not offer 8BITMIME";
    case Fit::needs_requiretls:
      return "server does not offer REQUIRETLS";
  }
  UNREACHABLE();
}

Fit check_fit(const mail::Envelope& envelope, const mail::Content& content,
              const Capabilities& capabilities) {
  if (capabilities.size_limit > 0 && content.size() > capabilities.size_limit) {
    return Fit::too_large;
  }
  if (needs_smtputf8(envelope, content) && !capabilities.smtputf8) return Fit::needs_smtputf8;
  if (content.eight_bit && !capabilities.eight_bit_mime) return Fit::needs_8bitmime;
  // RFC 8689 5: a report is not thrown away for it.
  if (envelope.tls == mail::TlsWish::required && !capabilities.requiretls && !envelope.reverse_path.empty()) {
    return Fit::needs_requiretls;
  }
  return Fit::ok;
}

mail::WireForm choose_wire_form(const mail::Content& content, const Capabilities& capabilities) {
  return capabilities.chunking && content.supports(mail::WireForm::bdat) ? mail::WireForm::bdat
                                                                         : mail::WireForm::data;
}

void append_ehlo(std::string& out, std::string_view name) {
  out.append("EHLO ");
  append_checked(out, name);
  out.append("\r\n");
}

void append_lhlo(std::string& out, std::string_view name) {
  out.append("LHLO ");
  append_checked(out, name);
  out.append("\r\n");
}

void append_helo(std::string& out, std::string_view name) {
  out.append("HELO ");
  append_checked(out, name);
  out.append("\r\n");
}

void append_mail(std::string& out, const mail::Envelope& envelope, const mail::Content& content,
                 const Capabilities& capabilities) {
  out.append("MAIL FROM:<");
  append_checked(out, envelope.reverse_path);
  out.push_back('>');
  if (capabilities.size) {
    out.append(" SIZE=");
    append_number(out, content.size());
  }
  // What the content is decides, not what was declared: ASCII needs no parameter (RFC 6152 2).
  if (capabilities.eight_bit_mime && content.eight_bit) out.append(" BODY=8BITMIME");
  if (capabilities.smtputf8 && (envelope.smtputf8 || needs_smtputf8(envelope, content))) {
    out.append(" SMTPUTF8");
  }
  if (capabilities.requiretls && envelope.tls == mail::TlsWish::required) out.append(" REQUIRETLS");
  if (capabilities.dsn) {
    if (envelope.ret != mail::Ret::unset) {
      out.append(envelope.ret == mail::Ret::full ? " RET=FULL" : " RET=HDRS");
    }
    if (!envelope.envid.empty()) {
      out.append(" ENVID=");
      append_checked(out, envelope.envid);
    }
  }
  out.append("\r\n");
}

void append_rcpt(std::string& out, const mail::Envelope& envelope, const mail::Recipient& recipient,
                 const Capabilities& capabilities) {
  out.append("RCPT TO:<");
  append_checked(out, recipient.address);
  out.push_back('>');
  if (capabilities.dsn) {
    using mail::Notify;
    if (recipient.notify == Notify::never) {
      out.append(" NOTIFY=NEVER");
    } else if (recipient.notify != Notify::unset) {
      out.append(" NOTIFY=");
      if (recipient.notify & Notify::success) out.append("SUCCESS,");
      if (recipient.notify & Notify::failure) out.append("FAILURE,");
      if (recipient.notify & Notify::delay) out.append("DELAY,");
      out.pop_back();
    }
    const bool utf8 = has_utf8(recipient.orcpt);
    if (!recipient.orcpt.empty() && (!utf8 || (envelope.smtputf8 && capabilities.smtputf8))) {
      out.append(" ORCPT=");
      append_checked(out, recipient.orcpt);
    }
  }
  out.append("\r\n");
}

void append_bdat(std::string& out, uint64_t size, bool last) {
  out.append("BDAT ");
  append_number(out, size);
  out.append(last ? " LAST\r\n" : "\r\n");
}

}  // namespace millrace::smtp
