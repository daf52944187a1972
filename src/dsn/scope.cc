#include "dsn/scope.h"

#include "base/assert.h"

namespace millrace::dsn {

std::string_view to_string(Scope scope) {
  switch (scope) {
    case Scope::none:
      return "none";
    case Scope::recipient:
      return "recipient";
    case Scope::message:
      return "message";
    case Scope::transaction:
      return "transaction";
    case Scope::sender_domain:
      return "sender_domain";
    case Scope::source:
      return "source";
    case Scope::destination:
      return "destination";
    case Scope::provider:
      return "provider";
  }
  UNREACHABLE();
}

std::string_view to_string(Stage stage) {
  switch (stage) {
    case Stage::none:
      return "none";
    case Stage::dns:
      return "dns";
    case Stage::connect:
      return "connect";
    case Stage::greeting:
      return "greeting";
    case Stage::ehlo:
      return "ehlo";
    case Stage::starttls:
      return "starttls";
    case Stage::auth:
      return "auth";
    case Stage::mail:
      return "mail";
    case Stage::rcpt:
      return "rcpt";
    case Stage::data:
      return "data";
    case Stage::body:
      return "body";
    case Stage::end_of_data:
      return "end_of_data";
    case Stage::quit:
      return "quit";
  }
  UNREACHABLE();
}

std::string_view to_string(Category category) {
  switch (category) {
    case Category::none:
      return "";
    case Category::bad_configuration:
      return "bad-configuration";
    case Category::bad_connection:
      return "bad-connection";
    case Category::bad_domain:
      return "bad-domain";
    case Category::bad_mailbox:
      return "bad-mailbox";
    case Category::content_related:
      return "content-related";
    case Category::inactive_mailbox:
      return "inactive-mailbox";
    case Category::invalid_sender:
      return "invalid-sender";
    case Category::message_expired:
      return "message-expired";
    case Category::no_answer_from_host:
      return "no-answer-from-host";
    case Category::other:
      return "other";
    case Category::policy_related:
      return "policy-related";
    case Category::protocol_errors:
      return "protocol-errors";
    case Category::quota_issues:
      return "quota-issues";
    case Category::relaying_issues:
      return "relaying-issues";
    case Category::routing_errors:
      return "routing-errors";
    case Category::spam_related:
      return "spam-related";
    case Category::virus_related:
      return "virus-related";
  }
  UNREACHABLE();
}

}  // namespace millrace::dsn
