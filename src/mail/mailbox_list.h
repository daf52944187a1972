// The addresses of a From field (RFC 5322 3.4: a list of mailboxes), for checking who a message says it is from.
//
// Strict, because readers of mail are not: what can be read in two ways is refused as a whole. Comments and quoted
// texts are passed over; groups and source routes are refused.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace millrace::mail {

// nullopt: it cannot be told whose addresses these are.
std::optional<std::vector<std::string>> parse_mailbox_list(std::string_view value);

}  // namespace millrace::mail
