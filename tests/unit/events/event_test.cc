#include "events/event.h"

#include <gtest/gtest.h>

#include <deque>
#include <nlohmann/json.hpp>

#include "base/prng.h"
#include "events/json.h"

namespace millrace::events {
namespace {

using namespace std::string_literals;
using namespace std::string_view_literals;

// Every field different from its default and from every other.
Event full_event() {
  Event e;
  e.type = Type::deferred;
  e.spool_id = mail::SpoolId{0x0199'1234'5678'0001, 0x1122'3344'5566'7788};
  e.number = 3;
  e.time_ms = 1'795'249'800'123;
  e.received_ms = 1'795'249'700'000;
  e.first_attempt_ms = 1'795'249'710'000;
  e.next_attempt_ms = 1'795'250'100'000;
  e.reverse_path = "bounce@example.com";
  e.recipient = "rcpt@example.net";
  e.message_id = "<1@example.com>";
  e.envid = "env+2B1";
  e.orcpt = "rfc822;rcpt@example.net";
  e.job = "job";
  e.tenant = "tenant";
  e.pool = "pool";
  e.queue = "example.net";
  e.site = "mx.example.net";
  e.provider = "example";
  e.client = "10.0.0.1";
  e.account = "account";
  e.source = "192.0.2.1";
  e.ehlo_name = "mta1.example.com";
  e.mx = "mx1.example.net";
  e.peer = "198.51.100.1:25";
  e.session = 77;
  e.session_message = 4;
  e.stage = Stage::rcpt;
  e.reply = "4.2.1 The user is receiving too fast";
  e.code = 450;
  e.enhanced = "4.2.1";
  e.bounce_class = "quota-issues";
  e.scope = Scope::recipient;
  e.reason = "why";
  e.transport = "lmtp";
  e.attempt = 2;
  e.size = 20480;
  e.recipients = 5;
  e.report_sent = true;
  e.queued_ms = 10;
  e.connect_ms = 11;
  e.transaction_ms = 12;
  e.total_ms = 13;
  return e;
}

std::string encoded(const Event& event) {
  std::string out;
  encode(event, out);
  return out;
}

// Decodes a copy that lives as long as the test: an event owns nothing.
Result<Event> decoded(std::string bytes) {
  static std::deque<std::string> kept;
  return decode(kept.emplace_back(std::move(bytes)));
}

nlohmann::json json(const Event& event) {
  std::string out;
  append_json(event, "mta.example.com", out);
  EXPECT_EQ(out.back(), '\n');
  EXPECT_EQ(out.find('\n'), out.size() - 1);
  return nlohmann::json::parse(out);
}

TEST(Encoding, EveryFieldComesBack) {
  Event event = full_event();
  auto back = decoded(encoded(event));
  ASSERT_TRUE(back.ok()) << back.error().text;
  // The two forms cover the same fields, and json() is checked field by field below.
  EXPECT_EQ(json(*back), json(event));
  EXPECT_EQ(encoded(*back), encoded(event));
  EXPECT_EQ(back->spool_id, event.spool_id);
}

TEST(Encoding, EmptyFieldsTakeNoRoom) { EXPECT_EQ(encoded(Event{}).size(), 1u); }

TEST(Encoding, AppendsBehindWhatIsThere) {
  std::string out = "before";
  encode(full_event(), out);
  EXPECT_EQ(out, "before" + encoded(full_event()));
}

TEST(Encoding, LargestValuesFit) {
  Event event = full_event();
  event.number = event.session_message = event.attempt = event.recipients = event.queued_ms =
      event.connect_ms = event.transaction_ms = event.total_ms = UINT32_MAX;
  event.session = event.size = UINT64_MAX;
  event.code = UINT16_MAX;
  event.time_ms = event.received_ms = event.first_attempt_ms = event.next_attempt_ms = INT64_MAX;
  const std::string long_text(1024, '\x01');
  for (std::string_view* text :
       {&event.reverse_path, &event.recipient, &event.message_id, &event.envid,
        &event.orcpt,        &event.job,       &event.tenant,     &event.pool,
        &event.queue,        &event.site,      &event.provider,   &event.client,
        &event.account,      &event.source,    &event.ehlo_name,  &event.mx,
        &event.peer,         &event.reply,     &event.enhanced,   &event.bounce_class,
        &event.reason}) {
    *text = long_text;
  }
  auto back = decoded(encoded(event));
  ASSERT_TRUE(back.ok()) << back.error().text;
  EXPECT_EQ(json(*back), json(event));
  EXPECT_EQ(json(event)["session"], UINT64_MAX);
}

TEST(Encoding, LongTextsAreCut) {
  Event event;
  std::string reply(5000, 'x');
  event.reply = reply;
  EXPECT_EQ(decoded(encoded(event))->reply.size(), 1024u);
}

TEST(Decoding, EveryTruncationIsAnErrorOrAShorterEvent) {
  std::string whole = encoded(full_event());
  size_t errors = 0;
  for (size_t size = 0; size < whole.size(); ++size) {
    // A copy of exactly that size, so that a sanitizer sees a read past its end.
    std::string cut(whole.data(), size);
    if (!decode(cut).ok()) ++errors;
  }
  EXPECT_GT(errors, whole.size() / 2);
}

TEST(Decoding, RandomDamageNeverReadsPastTheEnd) {
  Prng prng(7);
  std::string whole = encoded(full_event());
  for (int i = 0; i < 20'000; ++i) {
    std::string damaged = whole;
    for (uint64_t n = prng.below(4) + 1; n > 0; --n)
      damaged[prng.below(damaged.size())] = static_cast<char>(prng.next());
    auto event = decode(damaged);
    if (event.ok()) {
      EXPECT_TRUE(decode(encoded(*event)).ok());
    }
  }
}

TEST(Decoding, UnknownFieldsArePassedOver) {
  std::string bytes = encoded(full_event());
  bytes += "\x3e\x85\x01"s;  // field 62, a varint
  bytes +=
      "\x7f\x03"
      "abc"s;  // field 63, a text
  auto event = decode(bytes);
  ASSERT_TRUE(event.ok()) << event.error().text;
  EXPECT_EQ(json(*event), json(full_event()));
}

TEST(Decoding, UnknownFieldMarkedSoIsRefused) {
  EXPECT_FALSE(decode(encoded(full_event()) + "\xff\x01x"s).ok());
  EXPECT_FALSE(decode(encoded(full_event()) + "\xbf\x01x"s).ok());
}

TEST(Decoding, OtherVersionsAndImpossibleValuesAreErrors) {
  EXPECT_FALSE(decode("").ok());
  EXPECT_FALSE(decode("\x02").ok());
  EXPECT_FALSE(decode("\x01\x01\x63"s).ok()) << "type 99";
  EXPECT_FALSE(decode("\x01\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"s).ok())
      << "a varint of more than 64 bits";
  EXPECT_FALSE(decode("\x01\x03\xff\xff\xff\xff\xff\x01"s).ok()) << "a number of more than 32 bits";
}

TEST(Json, NamesAndValuesOfTheSchema) {
  nlohmann::json line = json(full_event());
  nlohmann::json expected = {
      {"version", 1},
      {"type", "deferred"},
      {"time", "2026-11-21T08:30:00.123Z"},
      {"node", "mta.example.com"},
      {"received_time", "2026-11-21T08:28:20.000Z"},
      {"first_attempt_time", "2026-11-21T08:28:30.000Z"},
      {"next_attempt_time", "2026-11-21T08:35:00.000Z"},
      {"reverse_path", "bounce@example.com"},
      {"recipient", "rcpt@example.net"},
      {"message_id", "<1@example.com>"},
      {"envid", "env+2B1"},
      {"orcpt", "rfc822;rcpt@example.net"},
      {"job", "job"},
      {"tenant", "tenant"},
      {"transport", "lmtp"},
      {"pool", "pool"},
      {"queue", "example.net"},
      {"site", "mx.example.net"},
      {"provider", "example"},
      {"client", "10.0.0.1"},
      {"account", "account"},
      {"source", "192.0.2.1"},
      {"ehlo_name", "mta1.example.com"},
      {"mx", "mx1.example.net"},
      {"peer", "198.51.100.1:25"},
      {"session", 77},
      {"session_message", 4},
      {"stage", "rcpt"},
      {"reply", "4.2.1 The user is receiving too fast"},
      {"code", 450},
      {"enhanced_status", "4.2.1"},
      {"bounce_class", "quota-issues"},
      {"scope", "recipient"},
      {"reason", "why"},
      {"attempt", 2},
      {"size", 20480},
      {"recipients", 5},
      {"report_sent", true},
      {"queued_ms", 10},
      {"connect_ms", 11},
      {"transaction_ms", 12},
      {"total_ms", 13},
  };
  std::string id = full_event().spool_id.to_string();
  expected["id"] = id + "-3";
  expected["spool_id"] = id;
  EXPECT_EQ(line, expected);
}

TEST(Json, EmptyFieldsAreLeftOutButTheNullReversePathIsNot) {
  Event event;
  event.type = Type::bounced;
  nlohmann::json line = json(event);
  EXPECT_EQ(line["reverse_path"], "");
  EXPECT_FALSE(line.contains("reply"));
  EXPECT_FALSE(line.contains("code"));
  EXPECT_FALSE(line.contains("scope"));
  event.type = Type::queue;
  EXPECT_FALSE(json(event).contains("reverse_path"));
  EXPECT_FALSE(json(event).contains("spool_id"));
}

// Checklist row 26.
TEST(Json, NothingThatAPeerSaysBreaksTheLine) {
  Event event;
  event.reply = "a\r\nb\0c\x7f\x1b[2J\"\\\t"sv;
  event.recipient = "x\n{\"type\":\"delivered\"}@example.com";
  event.mx = "\x80\xff";
  std::string out;
  append_json(event, "n\node", out);
  for (size_t i = 0; i + 1 < out.size(); ++i) {
    auto octet = static_cast<unsigned char>(out[i]);
    EXPECT_TRUE(octet >= 0x20 && octet < 0x7f) << i;
  }
  nlohmann::json line = nlohmann::json::parse(out);
  EXPECT_EQ(line["reply"], event.reply);
  EXPECT_EQ(line["recipient"], event.recipient);
  EXPECT_EQ(line["node"], "n\node");
  EXPECT_EQ(line["mx"], "\xc2\x80\xc3\xbf") << "wrong octets are read as ISO 8859-1";
}

TEST(Json, WellFormedUtf8StaysAndTheRestIsEscaped) {
  auto escaped = [](std::string_view text) {
    std::string out;
    append_escaped(out, text);
    return out;
  };
  EXPECT_EQ(escaped("b\xc3\xbc\x63her \xe2\x82\xac \xf0\x9f\x93\xac"),
            "b\xc3\xbc\x63her \xe2\x82\xac \xf0\x9f\x93\xac");
  EXPECT_EQ(escaped("caf\xe9"), "caf\\u00e9");
  EXPECT_EQ(escaped("\xc0\xaf"), "\\u00c0\\u00af") << "overlong";
  EXPECT_EQ(escaped("\xed\xa0\x80"), "\\u00ed\\u00a0\\u0080") << "surrogate";
  EXPECT_EQ(escaped("\xf4\x90\x80\x80"), "\\u00f4\\u0090\\u0080\\u0080") << "past U+10FFFF";
  EXPECT_EQ(escaped("\xe2\x82"), "\\u00e2\\u0082") << "cut";
  EXPECT_EQ(escaped("\xc2\x85"), "\\u0085") << "a C1 control";
  EXPECT_EQ(escaped("\xe2\x80\xa8\xe2\x80\xae"), "\\u2028\\u202e") << "line separator, direction";
}

TEST(Json, AnyBytesGiveValidJson) {
  Prng prng(11);
  for (int i = 0; i < 2000; ++i) {
    Event event;
    std::string reply(prng.below(64), ' ');
    for (char& c : reply) c = static_cast<char>(prng.next());
    event.reply = reply;
    std::string out;
    append_json(event, "node", out);
    EXPECT_TRUE(nlohmann::json::accept(out)) << out;
  }
}

TEST(Time, Rfc3339OverTheCalendar) {
  auto text = [](int64_t ms) {
    char out[kTimeSize];
    format_time(ms, out);
    return std::string(out, sizeof out);
  };
  EXPECT_EQ(text(0), "1970-01-01T00:00:00.000Z");
  EXPECT_EQ(text(951'782'400'000), "2000-02-29T00:00:00.000Z");
  EXPECT_EQ(text(951'868'799'999), "2000-02-29T23:59:59.999Z");
  EXPECT_EQ(text(4'107'542'399'000), "2100-02-28T23:59:59.000Z");
  EXPECT_EQ(text(4'107'542'400'000), "2100-03-01T00:00:00.000Z");
  EXPECT_EQ(text(-1), "1970-01-01T00:00:00.000Z");
  EXPECT_EQ(text(INT64_MAX), "9999-12-31T23:59:59.999Z");
  // Against the library, over every day of four hundred years.
  for (int64_t day = 0; day < 146'097; day += 13) {
    time_t seconds = day * 86'400 + 45'296;
    tm utc;
    gmtime_r(&seconds, &utc);
    char expected[32];
    strftime(expected, sizeof expected, "%Y-%m-%dT%H:%M:%S.007Z", &utc);
    ASSERT_EQ(text(seconds * 1000 + 7), expected);
  }
}

}  // namespace
}  // namespace millrace::events
