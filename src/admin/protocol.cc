#include "admin/protocol.h"

#include <fmt/format.h>

#include <algorithm>

#include "events/json.h"

namespace millrace::admin {
namespace {

using nlohmann::json;

// RFC 3339; nothing for 0, which is "unknown".
void put_time(json& object, const char* key, int64_t utc_ms) {
  if (utc_ms == 0) return;
  char text[events::kTimeSize];
  events::format_time(utc_ms, text);
  object[key] = std::string(text, sizeof text);
}

void put_text(json& object, const char* key, const std::string& text) {
  if (!text.empty()) object[key] = text;
}

// Takes keys out of the request one by one, so that what is left over is an error.
class Keys {
 public:
  explicit Keys(json object) : object_(std::move(object)) {}

  std::string text(const char* key) {
    json value = take(key);
    if (value.is_null()) return {};
    if (!value.is_string()) return wrong(key, "a text"), std::string();
    return value.get<std::string>();
  }
  bool flag(const char* key) {
    json value = take(key);
    if (value.is_null()) return false;
    if (!value.is_boolean()) return wrong(key, "true or false"), false;
    return value.get<bool>();
  }
  uint64_t number(const char* key, uint64_t otherwise) {
    json value = take(key);
    if (value.is_null()) return otherwise;
    if (!value.is_number_unsigned()) return wrong(key, "a number"), otherwise;
    return value.get<uint64_t>();
  }
  mail::SpoolId id() {
    std::string given = text("id");
    if (given.empty()) return {};
    auto parsed = mail::SpoolId::parse(given);
    if (!parsed || parsed->empty()) {
      error_ =
          fmt::format("'{}' is not a spool id; it has 26 characters, as in the 250 reply", given);
      return {};
    }
    return *parsed;
  }
  Status finish() {
    if (error_.empty() && !object_.empty())
      error_ = fmt::format("unknown key '{}'", object_.begin().key());
    if (!error_.empty()) return fail(error_);
    return success();
  }

 private:
  json take(const char* key) {
    auto at = object_.find(key);
    if (at == object_.end()) return nullptr;
    json value = std::move(*at);
    object_.erase(at);
    return value;
  }
  void wrong(const char* key, const char* wanted) {
    error_ = fmt::format("'{}' must be {}", key, wanted);
  }

  json object_;
  std::string error_;
};

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return text;
}

constexpr queue::Command kCommands[] = {queue::Command::pause, queue::Command::resume,
                                        queue::Command::retry, queue::Command::remove,
                                        queue::Command::bounce};

}  // namespace

Result<Request> parse_request(std::string_view line) {
  json object = json::parse(line, nullptr, false);
  if (!object.is_object()) return fail("a request is a JSON object on one line");
  Keys keys(std::move(object));
  std::string name = keys.text("command");
  Request request;
  if (name == "status") {
    request = StatusRequest{};
  } else if (name == "queue") {
    QueueRequest queue;
    queue.domain = lower(keys.text("domain"));
    queue.limit = std::min<uint64_t>(keys.number("limit", queue.limit), 100'000);
    request = std::move(queue);
  } else if (name == "show") {
    ShowRequest show{keys.id()};
    if (Status status = keys.finish(); !status) return fail(status.error());
    if (show.id.empty()) return fail("show needs an id");
    request = show;
  } else if (name == "explain") {
    ExplainRequest explain{lower(keys.text("domain")), keys.id()};
    if (Status status = keys.finish(); !status) return fail(status.error());
    if (explain.domain.empty() == explain.id.empty()) return fail("explain needs either a domain or an id");
    request = std::move(explain);
  } else if (name == "accounts") {
    request = AccountsRequest{};
  } else if (name == "freeze" || name == "unfreeze") {
    FreezeRequest freeze{keys.text("account"), name == "freeze"};
    if (Status status = keys.finish(); !status) return fail(status.error());
    if (freeze.account.empty()) return fail(fmt::format("{} needs an account", name));
    request = std::move(freeze);
  } else if (name == "forget-tls") {
    ForgetTlsRequest forget{lower(keys.text("domain"))};
    if (Status status = keys.finish(); !status) return fail(status.error());
    if (forget.domain.empty()) return fail("forget-tls needs a domain");
    request = std::move(forget);
  } else if (name == "tls-reports" || name == "send-tls-reports") {
    request = TlsReportsRequest{name == "send-tls-reports"};
  } else {
    const queue::Command* found =
        std::find_if(std::begin(kCommands), std::end(kCommands),
                     [&](queue::Command c) { return queue::to_string(c) == name; });
    if (found == std::end(kCommands)) {
      return fail(
          fmt::format("unknown command '{}'; known are status, queue, show, explain, pause, resume, "
                      "retry, delete, bounce, accounts, freeze, unfreeze, forget-tls, tls-reports and send-tls-reports",
                      name));
    }
    CommandRequest command;
    command.command = *found;
    command.filter.domain = lower(keys.text("domain"));
    command.filter.job = keys.text("job");
    command.filter.sender = keys.text("sender");
    command.filter.account = keys.text("account");
    command.filter.tenant = keys.text("tenant");
    command.filter.id = keys.id();
    command.dry_run = keys.flag("dry_run");
    bool all = keys.flag("all");
    if (Status status = keys.finish(); !status) return fail(status.error());
    if (command.filter.all() && !all) {
      return fail(fmt::format(
          "{} without domain, tenant, job, sender, account or id is about everything; say all to mean it", name));
    }
    if (!command.filter.all() && all) return fail("all and a filter exclude each other");
    request = std::move(command);
  }
  if (Status status = keys.finish(); !status) return fail(status.error());
  return request;
}

json to_json(const TlsStatus& s) {
  return json{{"handshakes", s.handshakes},
              {"resumed", s.resumed},
              {"unverified", s.unverified},
              {"not_offered", s.not_offered},
              {"refused", s.refused},
              {"failed_plaintext", s.failed_plaintext},
              {"failed_no_common", s.failed_no_common},
              {"failed_certificate", s.failed_certificate},
              {"failed_alert", s.failed_alert},
              {"failed_protocol", s.failed_protocol},
              {"failed_ended", s.failed_ended},
              {"sessions_in_the_clear", s.sessions_in_the_clear},
              {"verified_dane", s.verified_dane},
              {"verified_mta_sts", s.verified_mta_sts},
              {"policies_fetched", s.policies_fetched},
              {"policies_no_host", s.policies_no_host},
              {"policies_too_many", s.policies_too_many},
              {"policies_no_https", s.policies_no_https},
              {"policies_malformed", s.policies_malformed},
              {"policies_kept", s.policies_kept},
              {"blocked", s.blocked},
              {"reports_sent", s.reports_sent},
              {"reports_given_up", s.reports_given_up},
              {"reports_mail_only", s.reports_mail_only}};
}

json to_json(const AuthStatus& s) {
  return json{{"succeeded", s.succeeded}, {"failed", s.failed}, {"shut_out", s.shut_out}, {"busy", s.busy},
              {"mail_refused", s.mail_refused}};
}

json to_json(const RelayStatus& s) {
  return json{{"shards", s.shards},
              {"accepted", s.accepted},
              {"rejected", s.rejected},
              {"bytes_accepted", s.bytes_accepted},
              {"delivered", s.delivered},
              {"deferred", s.deferred},
              {"bounced", s.bounced},
              {"expired", s.expired},
              {"removed", s.removed},
              {"queued", s.queued},
              {"ready", s.ready},
              {"in_flight", s.in_flight},
              {"inbound_connections", s.inbound_connections},
              {"outbound_connections", s.outbound_connections},
              {"tls_in", to_json(s.tls_in)},
              {"tls_out", to_json(s.tls_out)},
              {"auth", to_json(s.auth)},
              {"connects", s.connects},
              {"attempts", s.attempts},
              {"syncs", s.syncs},
              {"bytes_written", s.bytes_written},
              {"body_bytes", s.body_bytes},
              {"body_bytes_copied", s.body_bytes_copied},
              {"bodies_read_back", s.bodies_read_back},
              {"memory_buffers", s.memory_buffers}};
}

json to_json(const queue::QueueRow& row) {
  json out{{"domain", row.domain},          {"messages", row.messages}, {"ready", row.ready},
           {"in_flight", row.in_flight},    {"waiting", row.waiting},   {"paused", row.paused},
           {"delivered", row.delivered},    {"deferred", row.deferred}, {"bounced", row.bounced},
           {"connections", row.connections}};
  put_text(out, "pool", row.pool);
  put_text(out, "site", row.site);
  put_time(out, "oldest", row.oldest_ms);
  put_time(out, "next_attempt", row.next_attempt_ms);
  put_text(out, "last_reply", row.last_reply);
  put_time(out, "last_reply_time", row.last_reply_ms);
  put_text(out, "why", row.why);
  return out;
}

json to_json(const queue::MessageRow& row) {
  json out{{"id", row.id.to_string()},
           {"reverse_path", row.reverse_path},
           {"size", row.size},
           {"in_memory", row.resident}};
  put_text(out, "job", row.job);
  put_text(out, "tenant", row.tenant);
  put_text(out, "pool", row.pool);
  put_text(out, "account", row.account);
  put_text(out, "client", row.client);
  put_text(out, "message_id", row.message_id);
  put_time(out, "received", row.received_ms);
  put_time(out, "expires", row.expires_ms);
  out["recipients"] = json::array();
  for (const queue::RecipientRow& recipient : row.recipients) {
    json one{{"address", recipient.address},
             {"state", recipient.state},
             {"attempts", recipient.attempts}};
    put_time(one, "next_attempt", recipient.next_attempt_ms);
    put_text(one, "why", recipient.why);
    out["recipients"].push_back(std::move(one));
  }
  return out;
}

json to_json(const queue::ExplainRow& row, int64_t now, int64_t wall_ms) {
  json out{{"domain", row.domain}, {"source", row.source}, {"messages", row.messages}, {"ready", row.ready},
           {"in_flight", row.in_flight}, {"waiting", row.waiting}, {"connections", row.connections}};
  put_text(out, "pool", row.pool);
  put_text(out, "tenant", row.tenant);
  put_text(out, "job", row.job);
  put_text(out, "provider", row.provider);
  put_text(out, "site", row.site);
  put_text(out, "why", row.why);
  put_time(out, "next_attempt", row.next_attempt_ms);
  put_time(out, "held_until", row.held_until_ms);
  put_text(out, "source_wrong", row.source_wrong);
  put_text(out, "mode", row.mode);
  put_time(out, "mode_until", row.mode_until_ms);
  put_text(out, "messages_per_connection", row.messages_per_connection);
  put_text(out, "messages_per_connection_where", row.messages_per_connection_where);
  put_text(out, "recipients_per_transaction", row.recipients_per_transaction);
  put_text(out, "recipients_per_transaction_where", row.recipients_per_transaction_where);
  out["limits"] = json::array();
  // What binds is what lets the next one through last.
  const shaping::LimitRow* binds = nullptr;
  auto add = [&](const shaping::LimitRow& limit, const char* of) {
    json one{{"of", of}, {"scope", limit.scope}, {"key", limit.key}, {"limit", limit.limit}, {"where", limit.where},
             {"used", limit.used}, {"waiting", limit.waiting}};
    if (limit.free_at == INT64_MAX) {
      one["next"] = "when one ends";
    } else if (limit.free_at > 0) {
      put_time(one, "next", wall_ms + (limit.free_at - now) / 1'000'000);
    }
    out["limits"].push_back(std::move(one));
    if (limit.free_at > 0 && (!binds || limit.free_at > binds->free_at)) binds = &limit;
  };
  for (const shaping::LimitRow& limit : row.attempt_limits) add(limit, "attempts");
  for (const shaping::LimitRow& limit : row.connection_limits) add(limit, "connections");
  if (binds) out["binds"] = binds->scope + ": " + binds->key + " " + binds->limit + " (" + binds->where + ")";
  return out;
}

json to_json(const queue::Filter& filter) {
  json out = json::object();
  put_text(out, "domain", filter.domain);
  put_text(out, "job", filter.job);
  put_text(out, "sender", filter.sender);
  put_text(out, "account", filter.account);
  put_text(out, "tenant", filter.tenant);
  if (!filter.id.empty()) out["id"] = filter.id.to_string();
  if (filter.all()) out["all"] = true;
  return out;
}

std::string reply_line(json result) {
  json reply{{"ok", true}, {"result", std::move(result)}};
  return reply.dump(-1, ' ', true, json::error_handler_t::replace) + '\n';
}

std::string error_line(std::string_view why) {
  json reply{{"ok", false}, {"error", std::string(why)}};
  return reply.dump(-1, ' ', true, json::error_handler_t::replace) + '\n';
}

}  // namespace millrace::admin
