// The words in which the relay speaks of a failure: whom it is about, where in the conversation it
// happened, which kind of failure it was. Shared by classification, queue, events and reports.
#pragma once

#include <cstdint>
#include <string_view>

namespace millrace::dsn {

// Whom a reply is about: only that slows down. docs/replies.md tells how it is found.
enum class Scope : uint8_t {
  none,
  recipient,
  message,
  transaction,    // as it was put together: too many recipients, several domains
  sender_domain,  // SPF, DKIM, DMARC, URLs: the tenant's domain, wherever it is sent from
  source,         // our address at this provider
  destination,
  provider,
};
std::string_view to_string(Scope scope);

// Where it happened: which command the reply answers.
enum class Stage : uint8_t {
  none,
  dns,
  connect,
  greeting,
  ehlo,
  starttls,
  auth,
  mail,
  rcpt,
  data,
  body,
  end_of_data,
  quit,
};
std::string_view to_string(Stage stage);

// PowerMTA's names of bounce categories, so that reports made for them go on working.
enum class Category : uint8_t {
  none,
  bad_configuration,
  bad_connection,
  bad_domain,
  bad_mailbox,
  content_related,
  inactive_mailbox,
  invalid_sender,
  message_expired,
  no_answer_from_host,
  other,
  policy_related,
  protocol_errors,
  quota_issues,
  relaying_issues,
  routing_errors,
  spam_related,
  virus_related,
};
// "bad-mailbox"; static text. Empty for none.
std::string_view to_string(Category category);

}  // namespace millrace::dsn
