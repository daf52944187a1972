#include "admin/view.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <vector>

#include "events/json.h"

namespace millrace::admin {
namespace {

using nlohmann::json;

std::string text_of(const json& object, const char* key) {
  auto at = object.find(key);
  if (at == object.end() || !at->is_string()) return {};
  std::string out;
  events::append_escaped(out, at->get_ref<const std::string&>());
  return out;
}
uint64_t number_of(const json& object, const char* key) {
  auto at = object.find(key);
  if (at == object.end() || !at->is_number_integer()) return 0;
  return at->is_number_unsigned() ? at->get<uint64_t>()
                                  : static_cast<uint64_t>(std::max<int64_t>(0, at->get<int64_t>()));
}

// Characters, for columns: continuation octets of UTF-8 take no room.
size_t columns(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}
std::string cut(std::string_view text, size_t width) {
  if (columns(text) <= width) return std::string(text);
  size_t seen = 0, at = 0;
  while (at < text.size()) {
    if ((static_cast<unsigned char>(text[at]) & 0xc0) != 0x80 && seen++ == width - 1) break;
    ++at;
  }
  return std::string(text.substr(0, at)) + "~";
}

// Columns as wide as their widest cell; numbers to the right.
class Table {
 public:
  struct Column {
    std::string_view title;
    bool right = false;
    size_t most = SIZE_MAX;  // cells are cut to it
  };
  explicit Table(std::vector<Column> columns_given) : columns_(std::move(columns_given)) {}
  void add(std::vector<std::string> row) {
    for (size_t i = 0; i < row.size(); ++i) row[i] = cut(row[i], columns_[i].most);
    rows_.push_back(std::move(row));
  }
  std::string text() const {
    std::vector<size_t> widths;
    for (const Column& column : columns_) widths.push_back(column.title.size());
    for (const auto& row : rows_) {
      for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], columns(row[i]));
    }
    std::string out;
    auto line = [&](auto cell) {
      std::string one;
      for (size_t i = 0; i < columns_.size(); ++i) {
        std::string_view content = cell(i);
        std::string blanks(widths[i] - columns(content), ' ');
        if (i > 0) one += "  ";
        one += columns_[i].right ? blanks + std::string(content) : std::string(content) + blanks;
      }
      one.resize(one.find_last_not_of(' ') + 1);
      out += one + '\n';
    };
    line([&](size_t i) { return columns_[i].title; });
    for (const auto& row : rows_) line([&](size_t i) { return std::string_view(row[i]); });
    return out;
  }

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

std::string age(const json& object, const char* key, int64_t now_ms) {
  int64_t at = parse_time(text_of(object, key));
  return at == 0 ? "-" : short_duration(std::max<int64_t>(0, now_ms - at));
}
std::string until(const json& object, const char* key, int64_t now_ms) {
  int64_t at = parse_time(text_of(object, key));
  if (at == 0) return "-";
  return at <= now_ms ? "now" : short_duration(at - now_ms);
}

std::string size_text(uint64_t bytes) {
  constexpr std::string_view kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) value /= 1024, ++unit;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

}  // namespace

std::string short_duration(int64_t milliseconds) {
  struct Unit {
    char name;
    int64_t seconds;
  };
  constexpr Unit kUnits[] = {{'d', 86'400}, {'h', 3600}, {'m', 60}, {'s', 1}};
  int64_t seconds = milliseconds / 1000;
  if (seconds <= 0) return "<1s";
  std::string out;
  int parts = 0;
  for (const Unit& unit : kUnits) {
    int64_t count = seconds / unit.seconds;
    seconds %= unit.seconds;
    if (count > 0) out += fmt::format("{}{}", count, unit.name);
    if ((count > 0 || parts > 0) && ++parts == 2) break;
  }
  return out;
}

int64_t parse_time(std::string_view text) {
  tm utc{};
  int milliseconds = 0;
  if (text.size() != events::kTimeSize ||
      sscanf(std::string(text).c_str(), "%4d-%2d-%2dT%2d:%2d:%2d.%3dZ", &utc.tm_year, &utc.tm_mon,
             &utc.tm_mday, &utc.tm_hour, &utc.tm_min, &utc.tm_sec, &milliseconds) != 7)
    return 0;
  utc.tm_year -= 1900;
  utc.tm_mon -= 1;
  return timegm(&utc) * int64_t{1000} + milliseconds;
}

std::string show_accounts(const json& result) {
  auto frozen = result.find("frozen");
  if (frozen != result.end() && frozen->is_array()) {
    if (frozen->empty()) return "no account is frozen\n";
    std::string out = "frozen\n";
    for (const json& one : *frozen) out += fmt::format("  {}: {}\n", text_of(one, "account"), text_of(one, "why"));
    return out;
  }
  const bool is_frozen = frozen != result.end() && frozen->is_boolean() && frozen->get<bool>();
  return fmt::format("{} is {}\n", text_of(result, "account"),
                     is_frozen ? "frozen: new mail gets 450, what is queued is held" : "not frozen any more");
}

std::string show_forgotten(const json& result) {
  std::string out = "forgotten that these have had TLS:\n";
  if (auto sites = result.find("sites"); sites != result.end() && sites->is_array()) {
    for (const json& site : *sites) out += fmt::format("  {}\n", site.is_string() ? site.get<std::string>() : std::string());
  }
  return out;
}

std::string show_tls_reports(const json& result, const ViewOptions& options) {
  auto rows = result.find("rows");
  if (rows == result.end() || !rows->is_array()) {
    return fmt::format("{} domains are asked whether they want a report; the log and 'millracectl status' tell what becomes of them\n", number_of(result, "reports"));
  }
  if (rows->empty()) return "nothing has been counted\n";
  std::string out;
  for (const json& row : *rows) {
    const std::string why = text_of(row, "why");
    out += fmt::format("{:<40} {:>8} good {:>8} failed  since {}  {}{}{}\n", text_of(row, "domain"), number_of(row, "successful"),
                       number_of(row, "failed"), text_of(row, "since"),
                       text_of(row, "due").empty() ? "being counted" : "due in " + until(row, "due", options.now_ms),
                       why.empty() ? "" : ": ", why);
  }
  if (const uint64_t truncated = number_of(result, "truncated"); truncated > 0) out += fmt::format("and {} more\n", truncated);
  return out;
}

std::string show_status(const json& result, const ViewOptions&) {
  auto n = [&](const char* key) { return number_of(result, key); };
  std::string out =
      fmt::format("millrace {} at {}, {} shard{}, up {}\n", text_of(result, "version"),
                  text_of(result, "node"), n("shards"), n("shards") == 1 ? "" : "s",
                  short_duration(static_cast<int64_t>(n("uptime_s")) * 1000));
  out += fmt::format("\nqueue        {} waiting for delivery, {} due now, {} being sent\n",
                     n("queued"), n("ready"), n("in_flight"));
  out += fmt::format("connections  {} in, {} out\n", n("inbound_connections"),
                     n("outbound_connections"));
  out += "\nsince start\n";
  for (const auto& [key, title] : {std::pair{"tls_in", "TLS in "}, std::pair{"tls_out", "TLS out"}}) {
    auto tls = result.find(key);
    if (tls == result.end() || !tls->is_object()) continue;
    auto t = [&](const char* name) { return number_of(*tls, name); };
    const uint64_t failed = t("failed_plaintext") + t("failed_no_common") + t("failed_certificate") +
                            t("failed_alert") + t("failed_protocol") + t("failed_ended");
    out += fmt::format("  {}    {} handshakes, {} resumed, {} failed", title, t("handshakes"), t("resumed"), failed);
    if (t("verified_dane") > 0) out += fmt::format("; {} verified by DANE", t("verified_dane"));
    if (t("verified_mta_sts") > 0) out += fmt::format("; {} under MTA-STS", t("verified_mta_sts"));
    const uint64_t not_had = t("policies_no_host") + t("policies_too_many") + t("policies_no_https") + t("policies_malformed");
    if (t("policies_fetched") + not_had > 0) {
      out += fmt::format("; {} policies fetched, {} could not be had", t("policies_fetched"), not_had);
    }
    if (t("reports_sent") > 0) out += fmt::format("; {} TLS reports sent", t("reports_sent"));
    if (t("reports_given_up") > 0) out += fmt::format("; {} TLS reports given up", t("reports_given_up"));
    if (t("blocked") > 0) out += fmt::format("; {} hosts not tried", t("blocked"));
    if (t("sessions_in_the_clear") > 0) out += fmt::format("; {} sessions in the clear", t("sessions_in_the_clear"));
    out += '\n';
  }
  if (auto auth = result.find("auth"); auth != result.end() && auth->is_object()) {
    auto a = [&](const char* name) { return number_of(*auth, name); };
    if (a("succeeded") + a("failed") + a("shut_out") + a("busy") > 0) {
      out += fmt::format("  AUTH       {} succeeded, {} failed, {} shut out, {} when busy; {} times mail of accounts refused\n",
                         a("succeeded"), a("failed"), a("shut_out"), a("busy"), a("mail_refused"));
    }
  }
  out += fmt::format("  accepted   {} messages ({}), {} refused\n", n("accepted"),
                     size_text(n("bytes_accepted")), n("rejected"));
  out += fmt::format("  delivered  {} recipients in {} attempts over {} connections\n",
                     n("delivered"), n("attempts"), n("connects"));
  out += fmt::format("  deferred   {} times\n", n("deferred"));
  out += fmt::format("  ended      {} bounced, {} expired, {} removed\n", n("bounced"),
                     n("expired"), n("removed"));
  out += fmt::format(
      "  spool      {} written in {} syncs, {} of message bodies, {} bodies read back\n",
      size_text(n("bytes_written")), n("syncs"), size_text(n("body_bytes")), n("bodies_read_back"));
  out += fmt::format("  memory     {} of buffers in use\n", size_text(n("memory_buffers")));
  auto pauses = result.find("pauses");
  if (pauses != result.end() && pauses->is_array() && !pauses->empty()) {
    out += "\npaused\n";
    for (const json& pause : *pauses) {
      std::string what;
      for (const char* key : {"domain", "tenant", "job", "sender", "account", "id"}) {
        std::string value = text_of(pause, key);
        if (!value.empty()) what += fmt::format("{}{} {}", what.empty() ? "" : ", ", key, value);
      }
      out += fmt::format("  {}\n", what.empty() ? "everything" : what);
    }
  }
  return out;
}

std::string show_queue(const json& result, const ViewOptions& options) {
  auto rows = result.find("destinations");
  if (rows == result.end() || !rows->is_array() || rows->empty()) return "nothing is queued\n";
  Table table({{"DOMAIN", false, 40},
               {"POOL", false, 16},
               {"MAIL", true},
               {"OLDEST", true},
               {"NEXT", true},
               {"CONN", true},
               {"SENT", true},
               {"WHY IT WAITS, LAST REPLY", false, std::max<size_t>(options.width, 80) - 50}});
  for (const json& row : *rows) {
    std::string why = text_of(row, "why"), reply = text_of(row, "last_reply");
    if (why.empty() && number_of(row, "paused") > 0) why = "paused";
    if (!reply.empty()) why += fmt::format("{}[{}]", why.empty() ? "" : " ", reply);
    std::string pool = text_of(row, "pool");
    table.add({text_of(row, "domain"), pool.empty() ? "-" : pool,
               fmt::format("{}", number_of(row, "messages")), age(row, "oldest", options.now_ms),
               until(row, "next_attempt", options.now_ms),
               fmt::format("{}", number_of(row, "connections")),
               fmt::format("{}", number_of(row, "delivered")), why});
  }
  std::string out = table.text();
  uint64_t total = number_of(result, "total");
  if (total > rows->size())
    out += fmt::format("({} more destinations; --limit shows them)\n", total - rows->size());
  return out;
}

std::string show_explain(const json& result, const ViewOptions& options) {
  std::string out;
  auto rows = result.find("rows");
  if (rows == result.end() || !rows->is_array()) return out;
  for (const json& row : *rows) {
    if (!out.empty()) out += '\n';
    auto line = [&](std::string_view title, const std::string& value) {
      if (!value.empty()) out += fmt::format("{:<12} {}\n", title, value);
    };
    line("domain", text_of(row, "domain"));
    line("pool", text_of(row, "pool"));
    line("tenant", text_of(row, "tenant"));
    line("job", text_of(row, "job"));
    line("provider", text_of(row, "provider"));
    line("site", text_of(row, "site"));
    line("source", text_of(row, "source"));
    line("", text_of(row, "source_wrong"));
    line("mail", fmt::format("{}: {} ready, {} in delivery, {} waiting for a retry; {} connections",
                             number_of(row, "messages"), number_of(row, "ready"), number_of(row, "in_flight"),
                             number_of(row, "waiting"), number_of(row, "connections")));
    line("now", text_of(row, "why"));
    if (!text_of(row, "mode").empty()) {
      line("mode", fmt::format("{}, for {} more", text_of(row, "mode"), until(row, "mode_until", options.now_ms)));
    }
    line("binds", text_of(row, "binds").empty() ? "no limit" : text_of(row, "binds"));
    if (!text_of(row, "next_attempt").empty()) {
      line("next", fmt::format("{} (in {})", text_of(row, "next_attempt"), until(row, "next_attempt", options.now_ms)));
    }
    Table table({{"OF", false}, {"SCOPE", false, 60}, {"LIMIT", false}, {"IN USE", true}, {"WAITING", true}, {"NEXT", true},
                 {"SET AT", false, 60}});
    auto limits = row.find("limits");
    if (limits != row.end() && limits->is_array()) {
      for (const json& limit : *limits) {
        std::string next = text_of(limit, "next");
        std::string when = until(limit, "next", options.now_ms);
        table.add({text_of(limit, "of"), text_of(limit, "scope"), text_of(limit, "key") + " " + text_of(limit, "limit"),
                   fmt::format("{}", number_of(limit, "used")), fmt::format("{}", number_of(limit, "waiting")),
                   next.empty() ? "now" : parse_time(next) == 0 ? next : when, text_of(limit, "where")});
      }
    }
    for (const char* key : {"messages_per_connection", "recipients_per_transaction"}) {
      std::string value = text_of(row, key);
      if (value.empty()) continue;
      std::string name = key;
      std::replace(name.begin(), name.end(), '_', '-');
      table.add({"each", "", name + " " + value, "", "", "", text_of(row, (std::string(key) + "_where").c_str())});
    }
    out += '\n' + table.text();
  }
  return out;
}

std::string show_message(const json& result, const ViewOptions& options) {
  std::string out;
  auto line = [&](std::string_view title, const std::string& value) {
    if (!value.empty()) out += fmt::format("{:<12} {}\n", title, value);
  };
  line("id", text_of(result, "id"));
  line("from", fmt::format("<{}>", text_of(result, "reverse_path")));
  line("message-id", text_of(result, "message_id"));
  line("job", text_of(result, "job"));
  line("tenant", text_of(result, "tenant"));
  line("pool", text_of(result, "pool"));
  line("client", text_of(result, "client"));
  line("received", fmt::format("{} ({} ago)", text_of(result, "received"),
                               age(result, "received", options.now_ms)));
  line("expires", fmt::format("{} (in {})", text_of(result, "expires"),
                              until(result, "expires", options.now_ms)));
  auto in_memory = result.find("in_memory");
  bool resident = in_memory != result.end() && in_memory->is_boolean() && in_memory->get<bool>();
  line("size", fmt::format("{}, {}", size_text(number_of(result, "size")),
                           resident ? "in memory" : "in the spool only"));
  auto recipients = result.find("recipients");
  if (recipients == result.end() || !recipients->is_array()) return out;
  Table table({{"RECIPIENT", false, 60},
               {"STATE", false},
               {"TRIES", true},
               {"NEXT", true},
               {"WHY", false, 80}});
  for (const json& each : *recipients) {
    table.add({text_of(each, "address"), text_of(each, "state"),
               fmt::format("{}", number_of(each, "attempts")),
               until(each, "next_attempt", options.now_ms), text_of(each, "why")});
  }
  return out + "\n" + table.text();
}

std::string show_command(const json& result, std::string_view command) {
  struct Words {
    std::string_view command, done;
  };
  constexpr Words kWords[] = {{"pause", "paused"},
                              {"resume", "resumed"},
                              {"retry", "due for another attempt"},
                              {"delete", "deleted"},
                              {"bounce", "bounced"}};
  std::string_view done = command;
  for (const Words& words : kWords) {
    if (words.command == command) done = words.done;
  }
  uint64_t count = number_of(result, "recipients");
  auto dry = result.find("dry_run");
  bool dry_run = dry != result.end() && dry->is_boolean() && dry->get<bool>();
  return fmt::format("{} recipient{} {} {}\n", count, count == 1 ? "" : "s",
                     dry_run      ? "would be"
                     : count == 1 ? "is"
                                  : "are",
                     done);
}

}  // namespace millrace::admin
