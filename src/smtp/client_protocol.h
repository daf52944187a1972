// Commands to a server: builders of single lines, with the parameters that the server's
// capabilities allow and no others. The connection and its states are delivery's.
//
// Envelopes come from the command parser or from a checked spool record, so their text holds no CR,
// LF or NUL; the builders assert it, because what they write is a command line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "mail/content.h"
#include "mail/envelope.h"
#include "smtp/capabilities.h"

namespace millrace::smtp {

// Whether a message may be sent to a server as it is; checked per message (checklist 16, 17).
enum class Fit : uint8_t {
  ok,
  too_large,       // 5.3.4: over the peer's SIZE
  needs_smtputf8,  // 5.6.7: an address or header is UTF-8 and the peer has no SMTPUTF8
  needs_8bitmime,  // 5.6.3: 8-bit content and the peer has no 8BITMIME
  needs_requiretls,  // 5.7.30: it is to go on as REQUIRETLS, and the peer does not know that
};
std::string_view to_string(Fit fit);
Fit check_fit(const mail::Envelope& envelope, const mail::Content& content,
              const Capabilities& capabilities);

// DATA or BDAT: BDAT where the peer has CHUNKING and the content supports it.
mail::WireForm choose_wire_form(const mail::Content& content, const Capabilities& capabilities);

void append_ehlo(std::string& out, std::string_view name);
void append_helo(std::string& out, std::string_view name);
void append_lhlo(std::string& out, std::string_view name);  // LMTP (RFC 2033 4.1)
// SIZE, BODY, SMTPUTF8, REQUIRETLS, RET and ENVID where announced and meaningful.
void append_mail(std::string& out, const mail::Envelope& envelope, const mail::Content& content,
                 const Capabilities& capabilities);
// NOTIFY and ORCPT where DSN is announced. A utf-8 ORCPT goes out only with SMTPUTF8.
void append_rcpt(std::string& out, const mail::Envelope& envelope, const mail::Recipient& recipient,
                 const Capabilities& capabilities);
void append_bdat(std::string& out, uint64_t size, bool last);
inline constexpr std::string_view kDataLine = "DATA\r\n";
inline constexpr std::string_view kRsetLine = "RSET\r\n";
inline constexpr std::string_view kQuitLine = "QUIT\r\n";
inline constexpr std::string_view kStartTlsLine = "STARTTLS\r\n";
inline constexpr std::string_view kEndOfData = ".\r\n";

}  // namespace millrace::smtp
