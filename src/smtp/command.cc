#include "smtp/command.h"

#include <array>
#include <limits>
#include <optional>

#include "smtp/xtext.h"

namespace millrace::smtp {
namespace {

constexpr size_t kLongestName = 255;    // RFC 5321 4.5.3.1.2
constexpr size_t kLongestEnvid = 100;   // RFC 3461 4.4
constexpr size_t kLongestOrcpt = 500;   // RFC 3461 4.2
constexpr size_t kMostSizeDigits = 20;  // RFC 1870 4

using Checked = std::optional<Reply>;  // what is wrong, or nothing

bool is_blank(char c) { return c == ' ' || c == '\t'; }
char upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; }

bool equals_ignoring_case(std::string_view text, std::string_view upper_case) {
  if (text.size() != upper_case.size()) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (upper(text[i]) != upper_case[i]) return false;
  }
  return true;
}

std::string_view skip_blanks(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  return text;
}

// Removes the word before the next blank, and the blanks after it.
std::string_view take_word(std::string_view& text) {
  size_t end = 0;
  while (end < text.size() && !is_blank(text[end])) ++end;
  std::string_view word = text.substr(0, end);
  text = skip_blanks(text.substr(end));
  return word;
}

struct VerbName {
  std::string_view name;
  Verb verb;
};
constexpr VerbName kVerbs[] = {
    {"MAIL", Verb::mail}, {"RCPT", Verb::rcpt},         {"DATA", Verb::data}, {"BDAT", Verb::bdat},
    {"RSET", Verb::rset}, {"EHLO", Verb::ehlo},         {"QUIT", Verb::quit}, {"HELO", Verb::helo},
    {"NOOP", Verb::noop}, {"VRFY", Verb::vrfy},         {"EXPN", Verb::expn}, {"HELP", Verb::help},
    {"AUTH", Verb::auth}, {"STARTTLS", Verb::starttls},
};

std::optional<Verb> find_verb(std::string_view word) {
  for (const VerbName& known : kVerbs) {
    if (equals_ignoring_case(word, known.name)) return known.verb;
  }
  return std::nullopt;
}

// A browser, or something made to speak through one, must not get as far as a MAIL in its body.
bool is_http(std::string_view word, std::string_view line) {
  for (std::string_view method : {"GET", "POST", "PUT", "HEAD", "CONNECT", "OPTIONS", "DELETE"}) {
    if (word == method) return line.find(" HTTP/") != line.npos;
  }
  return false;
}

// A name for EHLO. Only what can stand in a Received line without harm; what it names is not
// checked, because private and misconfigured names are common and harmless.
bool is_helo_name(std::string_view name) {
  if (name.empty() || name.size() > kLongestName) return false;
  for (char c : name) {
    bool letter_or_digit =
        (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (!letter_or_digit && std::string_view("-._:[]").find(c) == std::string_view::npos) {
      return false;
    }
  }
  return true;
}

bool is_keyword(std::string_view word) {
  if (word.empty() || word[0] == '-') return false;
  for (char c : word) {
    bool letter_or_digit =
        (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (!letter_or_digit && c != '-') return false;
  }
  return true;
}

// Digits to a number; too large a one becomes the largest.
bool parse_number(std::string_view digits, uint64_t& number) {
  if (digits.empty() || digits.size() > kMostSizeDigits) return false;
  number = 0;
  for (char c : digits) {
    if (c < '0' || c > '9') return false;
    uint64_t digit = static_cast<uint64_t>(c - '0');
    constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();
    number = number > (kMost - digit) / 10 ? kMost : number * 10 + digit;
  }
  return true;
}

Reply address_reply(mail::AddressError error, bool sender) {
  using mail::AddressError;
  switch (error) {
    case AddressError::local_part_too_long:
      return replies::kLocalPartTooLong;
    case AddressError::domain_too_long:
      return replies::kDomainTooLong;
    case AddressError::path_too_long:
      return replies::kPathTooLong;
    default:
      return sender ? replies::kBadSender : replies::kBadRecipient;
  }
}

Checked parse_notify(std::string_view value, uint8_t& notify) {
  if (equals_ignoring_case(value, "NEVER")) {
    notify = mail::Notify::never;
    return std::nullopt;
  }
  while (true) {
    size_t comma = value.find(',');
    std::string_view word = value.substr(0, comma);
    uint8_t bit = equals_ignoring_case(word, "SUCCESS")   ? mail::Notify::success
                  : equals_ignoring_case(word, "FAILURE") ? mail::Notify::failure
                  : equals_ignoring_case(word, "DELAY")   ? mail::Notify::delay
                                                          : mail::Notify::unset;
    if (bit == mail::Notify::unset) return replies::kBadParameter;
    notify |= bit;
    if (comma == value.npos) return std::nullopt;
    value.remove_prefix(comma + 1);
  }
}

Checked check_orcpt(std::string_view value, bool utf8) {
  size_t semicolon = value.find(';');
  if (value.size() > kLongestOrcpt || semicolon == value.npos || semicolon == 0 ||
      semicolon + 1 == value.size() || !is_keyword(value.substr(0, semicolon)) ||
      !is_xtext(value.substr(semicolon + 1), utf8)) {
    return replies::kBadParameter;
  }
  return std::nullopt;
}

// Which parameters have been given; no bit is one that is not known or not offered.
enum Given : unsigned {
  kNone = 0,
  kSize = 1,
  kBody = 2,
  kUtf8 = 4,
  kRet = 8,
  kEnvid = 16,
  kNotify = 32,
  kOrcpt = 64,
  kAuth = 128,
  kRequireTls = 256
};

Checked mail_parameter(std::string_view keyword, std::string_view value, bool has_value,
                       const Extensions& extensions, Command& command, unsigned& given) {
  auto is = [&](const char* name) { return equals_ignoring_case(keyword, name); };
  unsigned bit = extensions.size && is("SIZE")             ? kSize
                 : extensions.eight_bit_mime && is("BODY") ? kBody
                 : extensions.smtputf8 && is("SMTPUTF8")   ? kUtf8
                 : extensions.dsn && is("RET")             ? kRet
                 : extensions.dsn && is("ENVID")           ? kEnvid
                 : extensions.auth && is("AUTH")           ? kAuth
                 : extensions.requiretls && is("REQUIRETLS") ? kRequireTls
                                                           : kNone;
  if (bit == kNone) return replies::kUnknownParameter;
  if (given & bit) return replies::kRepeatedParameter;
  given |= bit;
  if (has_value == (bit == kUtf8 || bit == kRequireTls)) return replies::kBadParameter;
  bool good = true;
  switch (bit) {
    case kSize:
      good = parse_number(value, command.size);
      break;
    case kBody:
      if (equals_ignoring_case(value, "8BITMIME")) {
        command.body = mail::BodyType::eight_bit_mime;
      } else {
        good = equals_ignoring_case(value, "7BIT");
      }
      break;
    case kUtf8:
      command.smtputf8 = true;
      break;
    case kRequireTls:
      command.requiretls = true;
      break;
    case kRet:
      command.ret = equals_ignoring_case(value, "FULL")   ? mail::Ret::full
                    : equals_ignoring_case(value, "HDRS") ? mail::Ret::headers
                                                          : mail::Ret::unset;
      good = command.ret != mail::Ret::unset;
      break;
    case kEnvid:
      good = !value.empty() && value.size() <= kLongestEnvid && is_xtext(value);
      command.envid = value;
      break;
    case kAuth:  // "<>" or an address: whom others trust to have sent it; nobody does here
      good = value == "<>" || (!value.empty() && is_xtext(value, true));
      break;
  }
  return good ? Checked() : replies::kBadParameter;
}

Checked rcpt_parameter(std::string_view keyword, std::string_view value, bool has_value,
                       const Extensions& extensions, bool utf8, Command& command, unsigned& given) {
  unsigned bit = !extensions.dsn                           ? kNone
                 : equals_ignoring_case(keyword, "NOTIFY") ? kNotify
                 : equals_ignoring_case(keyword, "ORCPT")  ? kOrcpt
                                                           : kNone;
  if (bit == kNone) return replies::kUnknownParameter;
  if (given & bit) return replies::kRepeatedParameter;
  given |= bit;
  if (!has_value) return replies::kBadParameter;
  if (bit == kNotify) return parse_notify(value, command.notify);
  command.orcpt = value;
  return check_orcpt(value, utf8);
}

// "FROM:<path> parameters" or "TO:<path> parameters".
Checked parse_path_command(std::string_view rest, std::string_view prefix, bool session_utf8,
                           const Extensions& extensions, Command& command) {
  const bool sender = command.verb == Verb::mail;
  const Reply& syntax = sender ? replies::kMailSyntax : replies::kRcptSyntax;
  if (!equals_ignoring_case(rest.substr(0, prefix.size()), prefix)) return syntax;
  rest.remove_prefix(prefix.size());
  if (rest.empty() || rest[0] != '<') return syntax;
  auto path = mail::parse_path(rest, sender ? mail::PathKind::reverse : mail::PathKind::forward);
  if (!path) return address_reply(path.error(), sender);
  command.path = *path;
  rest.remove_prefix(path->consumed);
  if (!rest.empty() && !is_blank(rest[0])) return syntax;
  rest = skip_blanks(rest);
  unsigned given = 0;
  while (!rest.empty()) {
    std::string_view word = take_word(rest);
    size_t equals = word.find('=');
    std::string_view keyword = word.substr(0, equals);
    bool has_value = equals != word.npos;
    std::string_view value = has_value ? word.substr(equals + 1) : std::string_view();
    if (!is_keyword(keyword)) return replies::kBadParameter;
    Checked wrong = sender ? mail_parameter(keyword, value, has_value, extensions, command, given)
                           : rcpt_parameter(keyword, value, has_value, extensions, session_utf8,
                                            command, given);
    if (wrong) return wrong;
  }
  if (command.path.utf8 && !(sender ? command.smtputf8 : session_utf8)) {
    return replies::kNeedsSmtpUtf8;
  }
  return std::nullopt;
}

Checked parse_bdat(std::string_view rest, Command& command) {
  std::string_view size = take_word(rest);
  if (!parse_number(size, command.chunk_size)) return replies::kBdatSyntax;
  if (!rest.empty()) {
    command.last = true;
    if (!equals_ignoring_case(take_word(rest), "LAST") || !rest.empty()) {
      return replies::kBdatSyntax;
    }
  }
  return std::nullopt;
}

}  // namespace

std::string_view to_string(Verb verb) {
  for (const VerbName& known : kVerbs) {
    if (known.verb == verb) return known.name;
  }
  UNREACHABLE();
}

Result<Command, CommandError> parse_command(std::string_view line, const Extensions& extensions,
                                            bool session_utf8) {
  const std::string_view whole = line;
  while (!line.empty() && is_blank(line.back())) line.remove_suffix(1);
  std::string_view rest = line;
  std::string_view word = take_word(rest);
  std::optional<Verb> verb = find_verb(word);
  if (!verb) {
    if (is_http(word, whole)) return fail(CommandError{replies::kHttp, true});
    return fail(CommandError{replies::kUnknownCommand});
  }
  Command command;
  command.verb = *verb;
  command.argument = rest;
  Checked wrong;
  switch (command.verb) {
    case Verb::mail:
      wrong = parse_path_command(rest, "FROM:", session_utf8, extensions, command);
      break;
    case Verb::rcpt:
      wrong = parse_path_command(rest, "TO:", session_utf8, extensions, command);
      break;
    case Verb::bdat:
      if (!extensions.chunking) return fail(CommandError{replies::kNotImplemented, true});
      // Without a size what follows could be content that looks like commands.
      wrong = parse_bdat(rest, command);
      if (wrong) return fail(CommandError{*wrong, true});
      break;
    case Verb::helo:
    case Verb::ehlo:
      if (!is_helo_name(rest)) wrong = replies::kNeedsDomain;
      break;
    case Verb::data:
    case Verb::rset:
    case Verb::quit:
    case Verb::starttls:
      if (!rest.empty()) wrong = replies::kNoArgument;
      break;
    case Verb::vrfy:
    case Verb::expn:
    case Verb::auth:
      if (rest.empty()) wrong = replies::kNeedsArgument;
      break;
    case Verb::noop:
    case Verb::help:
      break;
  }
  if (wrong) return fail(CommandError{*wrong});
  return command;
}

}  // namespace millrace::smtp
