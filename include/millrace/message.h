// A message handed to an embedded relay, and the answer.
#pragma once

#include <string>
#include <vector>

namespace millrace {

struct Message {
  std::string reverse_path;             // RFC 5321 4.1.2 without angle brackets; empty is <>
  std::vector<std::string> recipients;  // mailboxes without angle brackets
  // RFC 5322 message with CRLF line ends, not dot-stuffed. Its metadata headers (X-Job and the others) act
  // as they do over SMTP.
  std::string content;
  bool smtputf8 = false;                // RFC 6531
};

// The reply that SMTP would have given: 250 and the id, or why not.
struct Injected {
  unsigned code = 0;
  std::string id;    // 26 characters, when code is 250
  std::string text;
  bool accepted() const { return code == 250; }
};

}  // namespace millrace
