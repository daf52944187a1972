// xtext (RFC 3461 4): how ENVID and ORCPT carry arbitrary printable text in a parameter.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace millrace::smtp {

// Well-formed xtext whose decoded form is printable US-ASCII or blank: "+00", "+0D", "+0A" and
// every other control character are refused. With `utf8`, octets above 127 may stand as they are
// when they are well-formed UTF-8 (RFC 6533 3).
bool is_xtext(std::string_view text, bool utf8 = false);
// Appends the xtext form of `text`; control characters are left out, so that what comes out always
// passes is_xtext(out, true).
void append_xtext(std::string& out, std::string_view text);
// Appends the decoded form. False, and nothing appended, when !is_xtext(text, true).
bool append_decoded_xtext(std::string& out, std::string_view text);

}  // namespace millrace::smtp
