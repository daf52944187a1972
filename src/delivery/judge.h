// From a peer's reply to what it means for the session: what becomes of the recipient, whose fault
// it is, and whether the connection should rest. The judging itself is dsn/classify.h's; here it is
// put into the queue's words. Pure.
#pragma once

#include <cstdint>
#include <string_view>

#include "config/shaping.h"
#include "events/event.h"
#include "mail/enhanced_status.h"
#include "queue/agent.h"
#include "smtp/reply_parser.h"

namespace millrace::delivery {

struct Verdict {
  queue::Action action = queue::Action::defer;
  events::Scope scope = events::Scope::none;
  std::string_view bounce_class;  // static text
  mail::EnhancedStatus status;    // the peer's, or one that fits
  // How long the scope (or the recipient, if that is the scope) must be left alone; 0: not known.
  int64_t rest_ms = 0;
  // The reply is about us, our rate or the receiver's state, not about this message: close, give
  // back what was not tried, hold.
  bool slow_down = false;
  bool next_host = false;  // before the first MAIL: another address may do better
  bool try_helo = false;
  queue::Asks asks;     // what the operator's lines want of the queue
  bool enough = false;  // at RCPT: the rest follows in another transaction
};

// `reply` is a 4xx or 5xx.
Verdict judge(const smtp::PeerReply& reply, events::Stage stage, bool recipient_accepted = false);

// By the operator's lines about replies, too; nullptr: there are none.
Verdict judge(const smtp::PeerReply& reply, events::Stage stage, bool recipient_accepted, const config::Shaping* shaping,
              const config::Provider* provider);
// The outcome of one recipient.
void set_result(queue::RecipientResult& result, const smtp::PeerReply& reply, events::Stage stage, const Verdict& verdict);
void set_delivered(queue::RecipientResult& result, const smtp::PeerReply& reply);
// "250 2.0.0 ok"
void assign_reply(std::string& out, const smtp::PeerReply& reply);

// Changes the verdict as a line of the shaping file says (config/shaping.h).
void apply(const config::ReplyRule& rule, const smtp::PeerReply& reply, Verdict& verdict);

}  // namespace millrace::delivery
