// Messages and attempts for the tests of delivery.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "queue/agent.h"
#include "queue/message.h"

namespace millrace::delivery::testing {

// A message with its attempt, as the queue lends it.
struct Mail {
  queue::MessageRef message = queue::MessageRef::make();
  queue::Attempt attempt;
  std::string body;

  // `text` is the content as the client sent it by BDAT: unstuffed, with CRLF.
  Mail(std::string text, const std::vector<std::string>& recipients) : body(std::move(text)) {
    message->envelope.reverse_path = "sender@client.example";
    for (const std::string& recipient : recipients) {
      mail::Recipient to;
      to.address = recipient;
      to.domain = recipient.substr(recipient.find('@') + 1);
      message->envelope.recipients.push_back(to);
    }
    message->content.raw = {std::string_view(body)};
    message->content.raw_size = static_cast<uint32_t>(body.size());
    message->content.ends_in_crlf = body.ends_with("\r\n");
    for (uint32_t at = 0; at < body.size(); ++at) {
      const bool line_start = at == 0 || body[at - 1] == '\n';
      if (line_start && body[at] == '.') message->content.dots.push_back(at);
    }
    for (uint32_t i = 0; i < recipients.size(); ++i) attempt.recipients.push_back(i);
    attempt.message = message.get();
    attempt.results.resize(recipients.size());
  }
};

inline std::string name_of(queue::Action action) {
  switch (action) {
    case queue::Action::delivered:
      return "delivered";
    case queue::Action::defer:
      return "defer";
    case queue::Action::bounce:
      return "bounce";
    case queue::Action::give_back:
      return "give back";
    case queue::Action::uncertain:
      return "uncertain";
  }
  return "?";
}

// "delivered, bounce"
inline std::string outcome(const queue::Attempt& attempt) {
  std::string out;
  for (const queue::RecipientResult& result : attempt.results) {
    if (!out.empty()) out += ", ";
    out += name_of(result.action);
  }
  return out;
}

}  // namespace millrace::delivery::testing
