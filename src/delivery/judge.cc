#include "delivery/judge.h"

namespace millrace::delivery {

using events::Scope;
using events::Stage;
using queue::Action;

Verdict judge(const smtp::PeerReply& reply, Stage stage, std::string_view) {
  Verdict verdict;
  const bool permanent = reply.reply_class() == 5;
  const bool conversation = stage == Stage::greeting || stage == Stage::ehlo ||
                            stage == Stage::starttls || stage == Stage::auth ||
                            stage == Stage::none;
  if (reply.code == 421) {
    verdict.action = Action::give_back;
    verdict.scope = Scope::source;
    verdict.slow_down = true;
  } else if (conversation) {
    verdict.action = Action::give_back;
    verdict.scope = Scope::source;
  } else {
    verdict.action = permanent ? Action::bounce : Action::defer;
    verdict.scope = stage == Stage::rcpt ? Scope::recipient : Scope::message;
  }
  return verdict;
}

bool means_enough(const smtp::PeerReply& reply, bool some_accepted) {
  if (!some_accepted || (reply.code != 452 && reply.code != 552)) return false;
  return reply.status.empty() || (reply.status.subject == 5 && reply.status.detail == 3);
}

}  // namespace millrace::delivery
