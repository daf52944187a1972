// From a peer's reply to what it means for us: what becomes of the recipient, whose fault it is,
// and whether the connection should rest. Pure.
#pragma once

#include <cstdint>
#include <string_view>

#include "events/event.h"
#include "queue/agent.h"
#include "smtp/reply_parser.h"

namespace millrace::delivery {

struct Verdict {
  queue::Action action = queue::Action::defer;
  events::Scope scope = events::Scope::none;
  std::string_view bounce_class;  // static text
  int64_t rest_ms = 0;            // the receiver named, or its code means, a time to stay away
  // The reply is about us or our rate, not about this message: close, give back what was not tried,
  // hold.
  bool slow_down = false;
};

// `reply` is a 4xx or 5xx. `mx` is the host's name: what a code means depends on whose it is.
Verdict judge(const smtp::PeerReply& reply, events::Stage stage, std::string_view mx);

// "Enough for now" at RCPT (delivery rules; RFC 5321 4.5.3.1.10): the rest follows in another
// transaction.
bool means_enough(const smtp::PeerReply& reply, bool some_accepted);

}  // namespace millrace::delivery
