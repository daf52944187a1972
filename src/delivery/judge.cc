#include "delivery/judge.h"

#include "base/assert.h"
#include "dsn/classify.h"

namespace millrace::delivery {

Verdict judge(const smtp::PeerReply& reply, events::Stage stage, bool recipient_accepted) {
  dsn::ReplyContext context;
  context.stage = stage;
  context.code = reply.code;
  context.status = reply.status;
  context.text = reply.text;
  context.recipient_accepted = recipient_accepted;
  const dsn::Verdict judged = dsn::classify(context);

  Verdict verdict;
  verdict.scope = judged.scope;
  verdict.bounce_class = dsn::to_string(judged.category);
  verdict.status = judged.status;
  verdict.rest_ms = judged.rest_ms > 0 ? judged.rest_ms : judged.retry_after_ms;
  verdict.next_host = judged.next_host;
  verdict.try_helo = judged.try_helo;
  switch (judged.action) {
    case dsn::Action::hold:
      verdict.action = queue::Action::give_back;
      break;
    case dsn::Action::bounce:
      verdict.action = queue::Action::bounce;
      break;
    case dsn::Action::enough:
      verdict.action = queue::Action::give_back;
      verdict.enough = true;
      break;
    case dsn::Action::defer:
    case dsn::Action::proceed:
    case dsn::Action::delivered:
      verdict.action = queue::Action::defer;
      break;
  }
  verdict.slow_down = verdict.action != queue::Action::bounce && !verdict.enough &&
                      (judged.scope == dsn::Scope::source || judged.scope == dsn::Scope::provider ||
                       judged.scope == dsn::Scope::destination);
  return verdict;
}

void apply(const config::ReplyRule& rule, const smtp::PeerReply& reply, Verdict& verdict) {
  verdict.asks.back_off |= rule.back_off;
  verdict.asks.defer_queue |= rule.defer_queue;
  verdict.asks.bounce_queue |= rule.bounce_queue;
  verdict.asks.where = rule.where;
  if (rule.rest_ms > 0) verdict.rest_ms = rule.rest_ms;
  if (rule.suspend_source) {
    verdict.scope = events::Scope::source;
    verdict.slow_down = true;
    verdict.enough = false;
    verdict.next_host = false;
    verdict.action = reply.code / 100 == 5 ? queue::Action::defer : queue::Action::give_back;
  } else if (rule.defer_queue && verdict.action == queue::Action::bounce) {
    verdict.action = queue::Action::defer;
  } else if (rule.bounce_queue) {
    verdict.action = queue::Action::bounce;
    verdict.slow_down = false;
  }
}

Verdict judge(const smtp::PeerReply& reply, events::Stage stage, bool recipient_accepted, const config::Shaping* shaping,
              const config::Provider* provider) {
  Verdict verdict = judge(reply, stage, recipient_accepted);
  if (!shaping || reply.code < 400) return verdict;
  if (const config::ReplyRule* rule = shaping->match_reply(provider, reply.code, reply.text)) apply(*rule, reply, verdict);
  return verdict;
}

void assign_reply(std::string& out, const smtp::PeerReply& reply) {
  const char code[4] = {static_cast<char>('0' + reply.code / 100), static_cast<char>('0' + reply.code / 10 % 10),
                        static_cast<char>('0' + reply.code % 10), ' '};
  out.assign(code, sizeof(code));
  out += reply.text;
}

void set_result(queue::RecipientResult& result, const smtp::PeerReply& reply, events::Stage stage, const Verdict& verdict) {
  result.action = verdict.action;
  result.scope = verdict.scope;
  result.stage = stage;
  result.code = reply.code;
  result.enhanced.clear();
  if (!verdict.status.empty()) verdict.status.append_to(result.enhanced);
  result.bounce_class = verdict.bounce_class;
  assign_reply(result.reply, reply);
  result.rest_ms = verdict.rest_ms;
  result.asks = verdict.asks;
}

void set_delivered(queue::RecipientResult& result, const smtp::PeerReply& reply) {
  result.action = queue::Action::delivered;
  result.stage = events::Stage::end_of_data;
  result.code = reply.code;
  result.enhanced.clear();
  if (!reply.status.empty()) reply.status.append_to(result.enhanced);
  assign_reply(result.reply, reply);
}

}  // namespace millrace::delivery
