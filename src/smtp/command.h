// One command line of a client (without its CRLF) to a Command of views into that line, or to the
// Reply that refuses it. Nothing is allocated; the line must outlive the Command.
//
// Syntax only: whether a command is allowed now is server_protocol.h's business. Odd but tolerated:
// blanks at the end of a line, several blanks between parameters. Refused: a blank before or after
// the colon of FROM: and TO: (RFC 5321 3.3), parameters of extensions that are not offered (555), a
// parameter given twice.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/result.h"
#include "mail/address.h"
#include "mail/envelope.h"
#include "smtp/reply.h"

namespace millrace::smtp {

enum class Verb : uint8_t {
  helo,
  ehlo,
  mail,
  rcpt,
  data,
  bdat,
  rset,
  noop,
  quit,
  vrfy,
  expn,
  help,
  starttls,
  auth,
};
std::string_view to_string(Verb verb);

struct Extensions {  // what EHLO offers, and so which parameters MAIL and RCPT may have
  bool size = true;
  bool pipelining = true;
  bool eight_bit_mime = true;
  bool smtputf8 = true;
  bool dsn = true;
  bool chunking = true;
  bool enhanced_status = true;
  bool limits = true;
  bool requiretls = false;  // behind TLS (RFC 8689)
  bool auth = false;  // MAIL may have AUTH= (RFC 4954 5); what it says is not used
};

struct Command {
  Verb verb = Verb::noop;
  std::string_view argument;  // HELO, EHLO: the name. VRFY, EXPN, HELP, NOOP, AUTH: what was given

  mail::Path path;  // MAIL, RCPT
  // MAIL
  uint64_t size = 0;  // SIZE=, UINT64_MAX if larger; 0 when absent
  mail::BodyType body = mail::BodyType::seven_bit;
  mail::Ret ret = mail::Ret::unset;
  bool smtputf8 = false;
  bool requiretls = false;
  std::string_view envid;  // xtext, valid
  // RCPT
  uint8_t notify = mail::Notify::unset;
  std::string_view orcpt;  // "type;xtext", valid
  // BDAT
  uint64_t chunk_size = 0;
  bool last = false;
};

struct CommandError {
  Reply reply;
  // What follows cannot be told from commands (a BDAT whose size is unknown, an HTTP request):
  // reply and close.
  bool close = false;
};

// `session_utf8`: the transaction was opened with SMTPUTF8, so RCPT may carry it (MAIL says it
// itself).
Result<Command, CommandError> parse_command(std::string_view line, const Extensions& extensions,
                                            bool session_utf8);

}  // namespace millrace::smtp
