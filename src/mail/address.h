// Addresses as SMTP writes them (RFC 5321 4.1.2, RFC 6531 3.3): paths in MAIL and RCPT, mailboxes,
// and the routing domain by which mail is queued. Parsers return views into the given text and
// allocate nothing; only to_routing_domain makes a string.
//
// Limits (RFC 5321 4.5.3.1): local part 64 octets, domain 255 (a DNS name 253, a label 63), path
// 256. Stricter than the grammar in one place: a domain whose last label is all digits is refused,
// because resolvers would take "user@127.0.0.1" for an address. Looser in one: '_' is allowed in a
// label.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace millrace::mail {

enum class AddressError : uint8_t {
  syntax,  // no path, a bad character, an unclosed quote
  local_part_too_long,
  domain_too_long,
  path_too_long,
  bad_domain,       // label empty or too long, a hyphen at its edge, an all-digit last label
  bad_literal,      // "[...]" that is neither an IPv4 nor an IPv6 address
  bad_utf8,         // octets above 127 that are not well-formed UTF-8
  not_convertible,  // a U-label that UTS 46 does not allow
};
std::string_view to_string(AddressError error);

struct Path {
  std::string_view mailbox;     // "local@domain", source route stripped; empty for "<>"
  std::string_view local_part;  // as given, with its quotes if quoted
  std::string_view domain;      // as given; a literal with its brackets; empty for <postmaster>
  uint16_t consumed = 0;        // octets of the text, angle brackets included
  bool utf8 = false;            // an octet above 127: needs SMTPUTF8
  bool literal = false;         // the domain is an address literal
  bool null() const { return mailbox.empty(); }
  // "<postmaster>" without a domain (RFC 5321 4.5.1)
  bool postmaster() const { return domain.empty() && !mailbox.empty(); }
};

enum class PathKind : uint8_t { reverse, forward };
// A path at the start of `text`, which begins with '<'. What follows is the caller's business. "<>"
// is a reverse path only, "<postmaster>" (any case) a forward path only.
Result<Path, AddressError> parse_path(std::string_view text, PathKind kind);

// "local@domain" with nothing before or after it.
Result<Path, AddressError> parse_mailbox(std::string_view text);

// The domain by which mail is routed: lower-case A-labels (UTS 46, non-transitional), or a literal
// in its canonical form ("[192.0.2.1]", "[IPv6:2001:db8::1]"). `domain` is a Path's.
Result<std::string, AddressError> to_routing_domain(std::string_view domain);

// A domain name of letters, digits, '-', '_' and dots within the limits above.
bool is_ascii_domain(std::string_view text);
// Well-formed UTF-8 (RFC 3629): no overlong forms, no surrogates, nothing above U+10FFFF.
bool is_utf8(std::string_view text);

}  // namespace millrace::mail
