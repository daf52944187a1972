// What a receiver's reply means, and to whom: the one place where codes and wordings are judged.
// Pure: a reply and where it came in, a verdict out. docs/replies.md is the page for operators.
//
// The rules are a table (classify.cc), tried in order: codes that receivers have published,
// wordings about our source, then the enhanced status, then wordings, then the bare code and the
// stage. Words are searched in the first kilobyte of the text, case-free, without the parts that
// hold an '@' (an address may contain any word). No allocation, no regular expressions: a refusal
// costs a few microseconds, a 250 next to nothing.
//
// Limits: English wordings only; what a reply means by its provider's own habit (a silent close
// after N messages) is not in it.
#pragma once

#include <cstdint>
#include <string_view>

#include "dsn/scope.h"
#include "mail/enhanced_status.h"

namespace millrace::dsn {

struct ReplyContext {
  Stage stage = Stage::none;
  uint16_t code = 0;
  mail::EnhancedStatus status;  // as the peer wrote it; empty: none
  std::string_view text;        // lines separated by '\n', as the peer wrote it
  // At RCPT: a recipient of this transaction has been accepted already.
  bool recipient_accepted = false;
  bool bounce_on_5xx_greeting = false;
};

enum class Action : uint8_t {
  proceed,    // the positive reply that this stage waits for, and not the last
  delivered,  // 2xx to the end of data
  defer,      // about the message or recipient: its schedule advances
  bounce,
  hold,    // says nothing about the message: no attempt is counted, the scope rests
  enough,  // no more recipients in this transaction: send it, the rest follows in the next,
           // uncounted
};
std::string_view to_string(Action action);

// Which of the receiver's limits was met, where the reply tells: what is to be cut.
enum class Throttle : uint8_t { none, concurrency, volume, reputation };
std::string_view to_string(Throttle throttle);

struct Verdict {
  Action action = Action::proceed;
  Scope scope = Scope::none;
  Category category = Category::none;
  Throttle throttle = Throttle::none;
  mail::EnhancedStatus status;  // the peer's, or one that fits where it gave none or a wrong class
  // The connection is of no more use: 421, or a reply that makes no sense here.
  bool close = false;
  // At greeting, EHLO, STARTTLS: another address may do better. Not after 421, a rate code or a
  // block.
  bool next_host = false;
  // At EHLO: say HELO instead (500, 502).
  bool try_helo = false;
  // How long the scope must rest, where the receiver names it or is known to mean it; 0: not known.
  int64_t rest_ms = 0;
  // How long this recipient must wait, where the receiver names it (greylisting); 0: not known.
  int64_t retry_after_ms = 0;
};

Verdict classify(const ReplyContext& reply);

// For what ends without a reply: a look-up, connect, TLS, or a connection that is lost.
Category category_of_silence(Stage stage);

}  // namespace millrace::dsn
