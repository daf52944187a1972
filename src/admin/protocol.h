// The language of the admin socket: a request is one line of JSON, and so is its reply.
// docs/admin.md tells it to operators. Pure.
//
//   {"command":"status"}
//   {"command":"queue","domain":"example.com","limit":100}
//   {"command":"show","id":"01KAMZ3T5S00104H4K8NAPCRW8"}
//   {"command":"explain","domain":"example.com"}                  or "id"
//   {"command":"pause","domain":"example.com","dry_run":true}      also resume, retry, delete,
//   bounce
//
//   {"command":"freeze","account":"acme"}                         also unfreeze; accounts
//
//   {"command":"forget-tls","domain":"example.com"}
//   {"command":"tls-reports"}                                     also send-tls-reports
//
//   {"ok":true,"result":{...}}
//   {"ok":false,"error":"why, and what would be right"}
//
// A command without domain, tenant, job, sender, account or id needs "all":true: it is about everything. An unknown
// key is an error, because a misspelled filter would act on everything.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <variant>

#include "base/result.h"
#include "millrace/status.h"
#include "queue/scheduler.h"

namespace millrace::admin {

struct StatusRequest {};
struct QueueRequest {
  std::string domain;     // empty: all
  uint64_t limit = 1000;  // rows
};
struct ShowRequest {
  mail::SpoolId id;
};
struct ExplainRequest {
  std::string domain;  // empty: the message
  mail::SpoolId id;
};
struct CommandRequest {
  queue::Command command = queue::Command::pause;
  queue::Filter filter;
  bool dry_run = false;
};
struct AccountsRequest {};
struct FreezeRequest {
  std::string account;
  bool frozen = true;  // false: unfreeze
};
struct ForgetTlsRequest {
  std::string domain;
};
struct TlsReportsRequest {
  bool send = false;  // false: what there is
};
using Request = std::variant<StatusRequest, QueueRequest, ShowRequest, ExplainRequest, CommandRequest, AccountsRequest,
                             FreezeRequest, ForgetTlsRequest, TlsReportsRequest>;

Result<Request> parse_request(std::string_view line);

nlohmann::json to_json(const RelayStatus& status);
nlohmann::json to_json(const AuthStatus& status);
nlohmann::json to_json(const queue::QueueRow& row);
nlohmann::json to_json(const queue::MessageRow& row);
nlohmann::json to_json(const queue::ExplainRow& row, int64_t now, int64_t wall_ms);
nlohmann::json to_json(const queue::Filter& filter);  // the keys of a request

// Whole lines, '\n' included; ASCII only, whatever a peer has said.
std::string reply_line(nlohmann::json result);
std::string error_line(std::string_view why);

}  // namespace millrace::admin
