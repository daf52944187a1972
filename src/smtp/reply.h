// Replies that the relay gives (RFC 5321 4.2). A Reply is a code, an enhanced status (RFC 2034) and
// a text; all the fixed ones are constants here, so that a test and an operator find them in one
// place.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "mail/enhanced_status.h"

namespace millrace::smtp {

struct Reply {
  uint16_t code = 0;
  mail::EnhancedStatus status;  // empty: none is written (greeting, EHLO, 354)
  std::string_view text;        // lines separated by '\n'; each is written with code and status

  bool positive() const { return code < 400; }
};

// Appends the wire form. CR, NUL and other control characters of the text become '?', an overlong
// line is cut at 512 octets (RFC 5321 4.5.3.1.5).
void append_reply(std::string& out, const Reply& reply);

namespace replies {
inline constexpr Reply kBye{221, {2, 0, 0}, "Bye"};
inline constexpr Reply kOk{250, {2, 0, 0}, "Ok"};
inline constexpr Reply kStartTls{220, {2, 0, 0}, "Ready to start TLS"};
inline constexpr Reply kSenderOk{250, {2, 1, 0}, "Ok"};
inline constexpr Reply kRecipientOk{250, {2, 1, 5}, "Ok"};
inline constexpr Reply kChunkOk{250, {2, 0, 0}, "Chunk received"};
inline constexpr Reply kHelp{214, {2, 0, 0}, "See RFC 5321"};
inline constexpr Reply kCannotVerify{
    252, {2, 5, 0}, "Cannot verify, but will accept and try to deliver"};
inline constexpr Reply kStartData{354, {}, "End data with <CR><LF>.<CR><LF>"};

inline constexpr Reply kShuttingDown{421, {4, 3, 2}, "Shutting down"};
inline constexpr Reply kTooManyErrors{421, {4, 7, 0}, "Too many errors"};
inline constexpr Reply kTooMuchJunk{421, {4, 7, 0}, "Too many commands without mail"};
inline constexpr Reply kEndlessLine{421, {4, 7, 0}, "Endless command line"};
inline constexpr Reply kHttp{421, {4, 7, 0}, "This is not an HTTP server"};
inline constexpr Reply kTooManyRecipients{452, {4, 5, 3}, "Too many recipients"};
inline constexpr Reply kTooManyMessages{421, {4, 7, 0}, "Too many messages in this session"};

inline constexpr Reply kUnknownCommand{500, {5, 5, 1}, "Command not recognized"};
inline constexpr Reply kLineTooLong{500, {5, 5, 2}, "Line too long"};
inline constexpr Reply kBareLf{500, {5, 5, 2}, "Bare LF in a command; lines end in CRLF"};
inline constexpr Reply kBareCr{500, {5, 5, 2}, "Bare CR in a command; lines end in CRLF"};
inline constexpr Reply kNul{500, {5, 5, 2}, "NUL in a command"};
inline constexpr Reply kNoArgument{501, {5, 5, 4}, "This command takes no argument"};
inline constexpr Reply kNeedsDomain{501, {5, 5, 4}, "A domain name or address literal is required"};
inline constexpr Reply kNeedsArgument{501, {5, 5, 4}, "An argument is required"};
inline constexpr Reply kMailSyntax{501, {5, 5, 2}, "Syntax: MAIL FROM:<address> [parameters]"};
inline constexpr Reply kRcptSyntax{501, {5, 5, 2}, "Syntax: RCPT TO:<address> [parameters]"};
inline constexpr Reply kBadSender{501, {5, 1, 7}, "Bad sender address syntax"};
inline constexpr Reply kBadRecipient{501, {5, 1, 3}, "Bad recipient address syntax"};
inline constexpr Reply kLocalPartTooLong{501, {5, 1, 3}, "Local part longer than 64 octets"};
inline constexpr Reply kDomainTooLong{501, {5, 1, 3}, "Domain longer than 255 octets"};
inline constexpr Reply kPathTooLong{501, {5, 1, 3}, "Path longer than 256 octets"};
inline constexpr Reply kBadParameter{501, {5, 5, 4}, "Syntax error in a parameter"};
inline constexpr Reply kRepeatedParameter{501, {5, 5, 4}, "Parameter given twice"};
inline constexpr Reply kBdatSyntax{501, {5, 5, 4}, "Syntax: BDAT size [LAST]; closing"};
inline constexpr Reply kNotImplemented{502, {5, 5, 1}, "Command not implemented"};
inline constexpr Reply kHelloFirst{503, {5, 5, 1}, "Send EHLO or HELO first"};
inline constexpr Reply kMailFirst{503, {5, 5, 1}, "Send MAIL first"};
inline constexpr Reply kNestedMail{503, {5, 5, 1}, "Sender already given"};
inline constexpr Reply kNotDuringBdat{503, {5, 5, 1}, "Not between BDAT commands"};
inline constexpr Reply kTlsActive{503, {5, 5, 1}, "TLS is active already"};
inline constexpr Reply kNotInTransaction{503, {5, 5, 1}, "Not in the middle of a transaction"};
inline constexpr Reply kAuthOk{235, {2, 7, 0}, "Authentication successful"};
inline constexpr Reply kTooManyAuthFailures{421, {4, 7, 0}, "Too many failed authentications"};
inline constexpr Reply kAuthBusy{454, {4, 7, 0}, "Temporary authentication failure, try again later"};
inline constexpr Reply kAuthLineTooLong{500, {5, 5, 6}, "Authentication exchange line is too long"};
inline constexpr Reply kAuthBadBase64{501, {5, 5, 2}, "Not base64"};
inline constexpr Reply kAuthCancelled{501, {5, 7, 0}, "Authentication cancelled"};
inline constexpr Reply kAuthSyntax{501, {5, 5, 4}, "Syntax: AUTH mechanism [initial-response]"};
inline constexpr Reply kAuthMalformed{501, {5, 5, 2}, "No message of this mechanism"};
inline constexpr Reply kAuthenticated{503, {5, 5, 1}, "Authenticated already"};
inline constexpr Reply kUnknownMechanism{504, {5, 5, 4}, "Unrecognized authentication mechanism"};
inline constexpr Reply kAuthFailed{535, {5, 7, 8}, "Authentication credentials invalid"};
inline constexpr Reply kAuthNeedsTls{538, {5, 7, 11}, "Encryption required for authentication"};
inline constexpr Reply kTlsFirst{530, {5, 7, 0}, "Must issue a STARTTLS command first"};
// What needs TLS has no code of its own at MAIL: 530 is RFC 3207 4's, X.7.10 the one of RFC 8689 4.2.1.
inline constexpr Reply kRequireTlsNeedsTls{530, {5, 7, 10}, "REQUIRETLS needs TLS: issue STARTTLS first"};
inline constexpr Reply kNoRecipients{554, {5, 5, 1}, "No valid recipients"};
inline constexpr Reply kBdatFailed{503, {5, 5, 1}, "An earlier BDAT was refused; send RSET"};
inline constexpr Reply kMessageTooLarge{552, {5, 3, 4}, "Message larger than the announced limit"};
inline constexpr Reply kChunkTooLarge{
    552, {5, 3, 4}, "Chunk far larger than the announced limit; closing"};
inline constexpr Reply kEndlessMessage{
    552, {5, 3, 4}, "Message far larger than the announced limit; closing"};
inline constexpr Reply kTooManyChunks{554, {5, 5, 0}, "Too many small chunks"};
inline constexpr Reply kNeedsSmtpUtf8{553, {5, 6, 7}, "Address needs SMTPUTF8"};
inline constexpr Reply kUnknownParameter{555, {5, 5, 4}, "Parameter not recognized"};
inline constexpr Reply kEarlyTalker{554, {5, 5, 0}, "Spoke before the greeting"};
inline constexpr Reply kBadPipelining{554, {5, 5, 0}, "Improper use of command pipelining"};
}  // namespace replies

}  // namespace millrace::smtp
