#include "admin/protocol.h"

#include <gtest/gtest.h>

#include "admin/view.h"

namespace millrace::admin {
namespace {

using nlohmann::json;

constexpr const char* kId = "01KAMZ3T5S00104H4K8NAPCRW8";

std::string error_of(std::string_view line) {
  auto request = parse_request(line);
  return request.ok() ? std::string() : request.error().text;
}

TEST(Requests, EachCommandIsRead) {
  EXPECT_TRUE(std::holds_alternative<StatusRequest>(*parse_request(R"({"command":"status"})")));
  auto queue = parse_request(R"({"command":"queue","domain":"Example.COM","limit":5})");
  ASSERT_TRUE(queue.ok());
  EXPECT_EQ(std::get<QueueRequest>(*queue).domain, "example.com");
  EXPECT_EQ(std::get<QueueRequest>(*queue).limit, 5u);
  auto show = parse_request(std::string(R"({"command":"show","id":")") + kId + "\"}");
  ASSERT_TRUE(show.ok()) << show.error().text;
  EXPECT_EQ(std::get<ShowRequest>(*show).id.to_string(), kId);
  for (auto [name, command] : {std::pair{"pause", queue::Command::pause},
                               {"resume", queue::Command::resume},
                               {"retry", queue::Command::retry},
                               {"delete", queue::Command::remove},
                               {"bounce", queue::Command::bounce}}) {
    auto request = parse_request(json{
        {"command", name},
        {"domain", "Example.com"},
        {"job", "J"},
        {"sender", "a@B"},
        {"id", kId},
        {"dry_run", true}}.dump());
    ASSERT_TRUE(request.ok()) << request.error().text;
    const auto& given = std::get<CommandRequest>(*request);
    EXPECT_EQ(given.command, command);
    EXPECT_EQ(given.filter.domain, "example.com");
    EXPECT_EQ(given.filter.job, "J");
    EXPECT_EQ(given.filter.sender, "a@B");
    EXPECT_EQ(given.filter.id.to_string(), kId);
    EXPECT_TRUE(given.dry_run);
  }
}

TEST(Requests, EverythingMustBeMeant) {
  EXPECT_NE(error_of(R"({"command":"delete"})"), "");
  EXPECT_NE(error_of(R"({"command":"delete","domain":""})"), "");
  EXPECT_NE(error_of(R"({"command":"delete","all":false})"), "");
  EXPECT_EQ(error_of(R"({"command":"delete","all":true})"), "");
  EXPECT_NE(error_of(R"({"command":"delete","all":true,"job":"x"})"), "");
}

TEST(Requests, MisspeltKeysNeverActOnEverything) {
  EXPECT_NE(error_of(R"({"command":"delete","all":true,"domian":"example.com"})"), "");
  EXPECT_NE(error_of(R"({"command":"delete","domain":7})"), "");
  EXPECT_NE(error_of(R"({"command":"delete","domain":null})"), "");
  EXPECT_NE(error_of(R"({"command":"delete","id":"x"})"), "");
  EXPECT_NE(error_of(R"({"command":"delete","id":"x","domain":"example.com"})"), "");
  EXPECT_NE(error_of(R"({"command":"delete","domain":"a","dry_run":"yes"})"), "");
  EXPECT_NE(error_of(R"({"command":"status","domain":"a"})"), "");
}

TEST(Requests, JunkIsAnError) {
  for (const char* junk :
       {"", "{", "[]", "7", "null", "\"status\"", "{}", R"({"command":7})", R"({"command":"stop"})",
        R"({"command":"show"})", "\x80\xff", R"({"command":"status"} x)"}) {
    EXPECT_NE(error_of(junk), "") << junk;
  }
  EXPECT_NE(error_of(std::string(60'000, '[')), "");
}

TEST(Replies, AreOneAsciiLine) {
  std::string line = reply_line({{"reply", "a\r\nb\x80\xff \x1b[2J \xc3\xbc"}});
  EXPECT_EQ(line.find('\n'), line.size() - 1);
  for (char c : line.substr(0, line.size() - 1)) EXPECT_TRUE(c >= 0x20 && c < 0x7f);
  EXPECT_TRUE(json::accept(line));
  EXPECT_TRUE(json::accept(error_line("no\xff")));
}

TEST(Rows, TimesAreUtcAndTheUnknownIsLeftOut) {
  queue::QueueRow row;
  row.domain = "example.com";
  row.oldest_ms = 1'795'249'800'123;
  json out = to_json(row);
  EXPECT_EQ(out["oldest"], "2026-11-21T08:30:00.123Z");
  EXPECT_FALSE(out.contains("next_attempt"));
  EXPECT_EQ(parse_time("2026-11-21T08:30:00.123Z"), 1'795'249'800'123);
  EXPECT_EQ(parse_time("yesterday"), 0);
}

TEST(View, QueueIsATableThatSaysWhy) {
  queue::QueueRow row;
  row.domain = "example.com";
  row.messages = 1200;
  row.delivered = 7;
  row.connections = 2;
  row.oldest_ms = 1'000'000;
  row.next_attempt_ms = 1'000'000 + 3'600'000 + 300'000;
  row.why = "source 192.0.2.1 rests at this site";
  row.last_reply = "421 4.7.0 try \x1b[31mlater";
  queue::QueueRow other;
  other.domain = "b.example";
  other.pool = "bulk";
  other.paused = 1;
  ViewOptions options;
  options.now_ms = 1'000'000 + 3'600'000;
  options.width = 140;
  EXPECT_EQ(show_queue({{"destinations", {to_json(row), to_json(other)}}, {"total", 5}}, options),
            "DOMAIN       POOL  MAIL  OLDEST  NEXT  CONN  SENT  WHY IT WAITS, LAST REPLY\n"
            "example.com  -     1200      1h    5m     2     7  source 192.0.2.1 rests at this "
            "site [421 4.7.0 try "
            "\\u001b[31mlater]\n"
            "b.example    bulk     0       -     -     0     0  paused\n"
            "(3 more destinations; --limit shows them)\n");
  EXPECT_EQ(show_queue({{"destinations", json::array()}}, options), "nothing is queued\n");
}

TEST(View, MessageShowsEachRecipient) {
  queue::MessageRow row;
  row.id = *mail::SpoolId::parse(kId);
  row.reverse_path = "a@example.com";
  row.size = 20480;
  row.received_ms = 1'000'000;
  row.expires_ms = 5'000'000'000;
  row.recipients.push_back({"b@example.net", "waiting", "450 4.2.1 slow", 3, 1'120'000});
  ViewOptions options;
  options.now_ms = 1'060'000;
  EXPECT_EQ(show_message(to_json(row), options),
            "id           01KAMZ3T5S00104H4K8NAPCRW8\n"
            "from         <a@example.com>\n"
            "received     1970-01-01T00:16:40.000Z (1m ago)\n"
            "expires      1970-02-27T20:53:20.000Z (in 57d20h)\n"
            "size         20.0 KiB, in the spool only\n"
            "\n"
            "RECIPIENT      STATE    TRIES  NEXT  WHY\n"
            "b@example.net  waiting      3    1m  450 4.2.1 slow\n");
}

TEST(View, CommandsSayWhatTheyDid) {
  EXPECT_EQ(show_command({{"recipients", 42}, {"dry_run", false}}, "delete"),
            "42 recipients are deleted\n");
  EXPECT_EQ(show_command({{"recipients", 1}, {"dry_run", true}}, "pause"),
            "1 recipient would be paused\n");
}

TEST(View, StatusNamesThePauses) {
  RelayStatus status;
  status.shards = 2;
  status.accepted = 10;
  json result = to_json(status);
  result["version"] = "1";
  result["node"] = "mta";
  result["uptime_s"] = 90061;
  queue::Filter filter;
  filter.domain = "example.com";
  filter.job = "j";
  result["pauses"] = {to_json(filter), to_json(queue::Filter{})};
  std::string text = show_status(result, {});
  EXPECT_NE(text.find("millrace 1 at mta, 2 shards, up 1d1h\n"), std::string::npos) << text;
  EXPECT_NE(text.find("paused\n  domain example.com, job j\n  everything\n"), std::string::npos)
      << text;
}

TEST(View, AnyJsonIsShownWithoutHarm) {
  for (const json& strange :
       {json(nullptr), json::array(), json(7), json{{"destinations", {1, "x", nullptr}}},
        json{{"destinations", {{{"domain", 7}, {"messages", "x"}}}}, {"total", -1}},
        json{{"recipients", {{{"address", nullptr}}}}}, json{{"pauses", {1}}}}) {
    if (!strange.is_object()) continue;
    show_queue(strange, {});
    show_status(strange, {});
    show_message(strange, {});
    show_explain(strange, {});
    show_command(strange, "retry");
  }
}

TEST(Explain, NeedsADomainOrAnIdAndNamesWhatBinds) {
  auto request = parse_request(R"({"command":"explain","domain":"Example.COM"})");
  ASSERT_TRUE(request.ok()) << request.error().text;
  EXPECT_EQ(std::get<ExplainRequest>(*request).domain, "example.com");
  EXPECT_FALSE(parse_request(R"({"command":"explain"})").ok());
  EXPECT_FALSE(parse_request(std::string(R"({"command":"explain","domain":"a.example","id":")") + kId + "\"}").ok());

  queue::ExplainRow row;
  row.domain = "example.com";
  row.source = "mta1.example.com";
  row.provider = "gmail";
  row.messages = row.ready = 12;
  constexpr int64_t kNow = 5'000'000'000, kWall = 1'700'000'000'000;
  row.attempt_limits = {{"provider gmail from source mta1.example.com", "attempt-rate", "600/m", "shaping.toml:7", 0, kNow + 90'000'000'000, 3},
                        {"tenant acme", "in-flight", "5", "shaping.toml:9", 2, 0, 0}};
  row.connection_limits = {{"provider gmail from source mta1.example.com", "connections", "5", "built in", 1, 0, 0}};
  row.messages_per_connection = "50";
  row.messages_per_connection_where = "built in";
  json explained = to_json(row, kNow, kWall);
  EXPECT_EQ(explained["binds"], "provider gmail from source mta1.example.com: attempt-rate 600/m (shaping.toml:7)");
  std::string text = show_explain({{"rows", {explained}}}, ViewOptions{.now_ms = kWall});
  for (const char* part : {"binds        provider gmail from source mta1.example.com: attempt-rate 600/m (shaping.toml:7)",
                           "in-flight 5", "built in", "1m30s", "messages-per-connection 50", "shaping.toml:9"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  }
}

}  // namespace
}  // namespace millrace::admin
