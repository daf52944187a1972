// What an operator's delete or bounce will do to an item once its message is resident and at home.
#pragma once

#include <string>

#include "queue/agent.h"

namespace millrace::queue {

struct PendingEnd {
  events::Type type = events::Type::removed;
  RecipientResult why;
  bool report = false;
  std::string sender;  // only if the reverse-path is this one; empty: any
  int64_t due = 0;     // monotonic: what it waits for if it turns out to be another's; 0: nothing
  bool filter_matches(const Message& message) const {
    return sender.empty() || message.envelope.reverse_path == sender;
  }
};

}  // namespace millrace::queue
