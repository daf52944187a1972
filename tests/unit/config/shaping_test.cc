#include "config/shaping.h"

#include <gtest/gtest.h>

#include "config/values.h"

namespace millrace::config {
namespace {

using Key = ShapingKey;

std::vector<Source> two_sources() {
  return {*parse_source("192.0.2.1=mta1.example.com"), *parse_source("192.0.2.2+2001:db8::2=mta2.example.com")};
}

std::shared_ptr<const Shaping> read(std::string_view text) {
  auto rules = Shaping::parse(text, "shaping.toml", two_sources());
  EXPECT_TRUE(rules.ok()) << rules.error().text;
  return rules.ok() ? *rules : Shaping::built_in();
}

std::string error_of(std::string_view text) {
  auto rules = Shaping::parse(text, "shaping.toml", two_sources());
  return rules.ok() ? "" : rules.error().text;
}

const Provider* of(const Shaping& rules, std::string_view domain, std::vector<std::string_view> hosts) {
  return rules.provider_of(domain, hosts);
}

std::string name_of(const Provider* provider) { return provider ? provider->name : "none"; }

std::string value(const ShapingChoice& choice, Key key) {
  const ShapingValue* found = at(choice, key);
  return found ? to_string(key, *found) + " from " + found->where : "not set";
}

TEST(Providers, MxNamesRollUp) {
  auto rules = Shaping::built_in();
  EXPECT_EQ(name_of(of(*rules, "gmail.com", {"gmail-smtp-in.l.google.com"})), "gmail");
  EXPECT_EQ(name_of(of(*rules, "hosted.example", {"aspmx.l.google.com", "alt1.aspmx.l.google.com"})), "gmail");
  EXPECT_EQ(name_of(of(*rules, "aol.com", {"mx-aol.mail.gm0.yahoodns.net"})), "yahoo");
  EXPECT_EQ(name_of(of(*rules, "example.org", {"mx.example.org"})), "none");
  // The suffix is one of labels, and a name is not its own suffix.
  EXPECT_EQ(name_of(of(*rules, "a.example", {"mx.notgoogle.com"})), "none");
}

TEST(Providers, YahooJapanIsNotYahoo) {
  auto rules = Shaping::built_in();
  EXPECT_EQ(name_of(of(*rules, "yahoo.co.jp", {"mx1.mail.yahoo.co.jp"})), "yahoo-japan");
  EXPECT_EQ(name_of(of(*rules, "yahoo.co.jp", {"mx.unknown.example"})), "yahoo-japan");
  EXPECT_EQ(name_of(of(*rules, "yahoo.com", {"mta5.am0.yahoodns.net"})), "yahoo");
}

TEST(Providers, MicrosoftsConsumerAndBusinessMailAreTwo) {
  auto rules = Shaping::built_in();
  EXPECT_EQ(name_of(of(*rules, "outlook.com", {"outlook-com.olc.protection.outlook.com"})), "microsoft");
  EXPECT_EQ(name_of(of(*rules, "contoso.com", {"contoso-com.mail.protection.outlook.com"})), "microsoft-365");
  EXPECT_EQ(name_of(of(*rules, "contoso.com", {"contoso-com.a-v1.mx.microsoft"})), "microsoft-365");
}

TEST(Providers, HostsOfTwoProvidersSideBySideAreNeithers) {
  auto rules = Shaping::built_in();
  EXPECT_EQ(name_of(of(*rules, "a.example", {"aspmx.l.google.com", "eu-smtp-inbound-1.mimecast.com"})), "none");
  EXPECT_EQ(name_of(of(*rules, "a.example", {"aspmx.l.google.com", "mx.a.example"})), "none");
}

TEST(Providers, TheLongestSuffixWinsAndAWholeHostBeatsIt) {
  auto rules = read(R"(
[provider.outer]
mx = ["*.mail.example"]
[provider.inner]
mx = ["*.eu.mail.example"]
[provider.host]
mx = ["mx1.eu.mail.example"]
)");
  EXPECT_EQ(name_of(of(*rules, "x", {"a.mail.example"})), "outer");
  EXPECT_EQ(name_of(of(*rules, "x", {"a.eu.mail.example"})), "inner");
  EXPECT_EQ(name_of(of(*rules, "x", {"mx1.eu.mail.example"})), "host");
}

TEST(Providers, TheFileTakesNamesFromWhatIsBuiltIn) {
  auto rules = read(R"(
[provider.workspace]
mx = ["*.google.com"]
)");
  EXPECT_EQ(name_of(of(*rules, "x", {"aspmx.l.google.com"})), "workspace");
  EXPECT_EQ(name_of(of(*rules, "x", {"alt1.aspmx.l.googlemail.com"})), "gmail");
}

TEST(Layers, TheMostSpecificSettingWinsAndKeepsItsPlace) {
  auto rules = read(R"([default]
connections = 10
connect-rate = "5/s"
attempt-rate = "100/s"

[default.source."192.0.2.2"]
connections = 8

[provider.gmail]
connections = 20

[provider.gmail.source."mta2.example.com"]
connections = 3
)");
  const Provider* gmail = rules->provider("gmail");
  EXPECT_EQ(value(rules->pair(nullptr, 0), Key::connections), "10 from shaping.toml:2");
  EXPECT_EQ(value(rules->pair(nullptr, 1), Key::connections), "8 from shaping.toml:7");
  EXPECT_EQ(value(rules->pair(gmail, 0), Key::connections), "20 from shaping.toml:10");
  EXPECT_EQ(value(rules->pair(gmail, 1), Key::connections), "3 from shaping.toml:13");
  EXPECT_EQ(value(rules->pair(gmail, 1), Key::connect_rate), "5/s from shaping.toml:3");
  EXPECT_EQ(value(rules->pair(gmail, 1), Key::messages_per_connection), "50 from built in");
  EXPECT_EQ(value(rules->pair(rules->provider("yahoo"), 0), Key::messages_per_connection), "20 from built in");
}

TEST(Layers, NoneTakesALimitAway) {
  auto rules = read("[provider.gmail]\nconnections = \"none\"\n");
  EXPECT_EQ(value(rules->pair(rules->provider("gmail"), 0), Key::connections), "none from shaping.toml:2");
}

TEST(Layers, EachOfAKindAndOneOfThem) {
  auto rules = read(R"(
[tenant."*"]
message-rate = "1000/h"
in-flight = 10
[tenant.acme]
message-rate = ["100/m", "2000/h", "20000/d"]
[domain."Example.COM"]
byte-rate = "100M/h"
[domain."example.com".source."mta1.example.com"]
attempt-rate = "10/m"
[tenant.acme.provider.gmail]
attempt-rate = "7/s"
[pool.bulk]
recipient-rate = "30/10m"
)");
  EXPECT_EQ(value(rules->tenant("other"), Key::message_rate), "1000/h from shaping.toml:3");
  EXPECT_EQ(value(rules->tenant("acme"), Key::message_rate), "100/m, 2000/h, 20000/d from shaping.toml:6");
  EXPECT_EQ(value(rules->tenant("acme"), Key::in_flight), "10 from shaping.toml:4");
  EXPECT_EQ(value(rules->tenant(""), Key::in_flight), "not set");
  EXPECT_EQ(value(rules->domain("example.com"), Key::byte_rate), "100M/h from shaping.toml:8");
  EXPECT_EQ(value(rules->domain_source("example.com", 0), Key::attempt_rate), "10/m from shaping.toml:10");
  EXPECT_EQ(value(rules->domain_source("example.com", 1), Key::attempt_rate), "not set");
  EXPECT_EQ(value(rules->tenant_provider("acme", rules->provider("gmail")), Key::attempt_rate), "7/s from shaping.toml:12");
  EXPECT_EQ(value(rules->pool("bulk"), Key::recipient_rate), "30/10m from shaping.toml:14");
}

struct Wrong {
  std::string_view text, says;
};

TEST(Errors, EachNamesItsLineAndTheRemedy) {
  const Wrong wrongs[] = {
      {"[default]\nconections = 3\n", "shaping.toml:2: unknown key in [default] 'conections'; did you mean connections?"},
      {"[provder.gmail]\n", "shaping.toml:1: unknown section 'provder'; did you mean provider?"},
      {"[default]\nconnections = \"many\"\n", "shaping.toml:2: connections: expects a number"},
      {"[default]\nconnections = 0\n", "millracectl pause"},
      {"[default]\nattempt-rate = \"100\"\n", "shaping.toml:2: attempt-rate: "},
      {"[default]\nattempt-rate = \"100/y\"\n", "shaping.toml:2: attempt-rate: "},
      {"[default]\nattempt-rate = 100\n", "expects a rate in quotes, such as \"600/m\""},
      {"[default]\nbyte-rate = \"100M\"\n", "write for instance 100M/h"},
      {"[provider.gmal]\nconnections = 3\n", "shaping.toml:1: provider gmal can never match"},
      {"[provider.gmal]\nconnections = 3\n", "did you mean gmail?"},
      {"[provider.a]\nmx = [\"*.x.example\"]\n[provider.b]\nmx = [\"*.x.example\"]\n",
       "shaping.toml:4: mx: '*.x.example' can never match here: line 2 gives it to provider a"},
      {"[provider.a]\nmx = [\"*x.example\"]\n", "shaping.toml:2: mx: '*x.example' is neither a host name nor *.suffix"},
      {"[source.\"192.0.2.9\"]\nconnections = 3\n",
       "shaping.toml:1: source '192.0.2.9' is none of --source, so this can never match; sources are "
       "mta1.example.com, mta2.example.com"},
      {"[tenant.a]\nconnections = 3\n", "shaping.toml:2: connections has no meaning in [tenant.a]"},
      {"[tenant.a]\nconnections = 3\n", "in-flight"},
      {"[tenant.a.provider.nobody]\nin-flight = 3\n", "shaping.toml:1: provider 'nobody' is neither built in nor in this file"},
      {"[default]\nattempt-rate = [\"10/m\", \"600/h\"]\n", "600/h can never be met beside 10/m"},
      {"[domain]\nin-flight = 3\n", "write [domain.NAME]"},
      {"default = 3\n", "default is a section"},
      {"[default]\nx = \n", "shaping.toml:2: "},
  };
  for (const Wrong& wrong : wrongs) {
    std::string said = error_of(wrong.text);
    EXPECT_NE(said.find(wrong.says), std::string::npos) << wrong.text << "says: " << said;
  }
}

TEST(Errors, AllAreReportedAtOnceInTheOrderOfTheLines) {
  std::string said = error_of("[tenant.a]\nx = 1\n[default]\ny = 2\n[domain.\"a.example\"]\nz = 1\n");
  size_t x = said.find("'x'"), y = said.find("'y'"), z = said.find("'z'");
  EXPECT_LT(x, y);
  EXPECT_LT(y, z);
  EXPECT_NE(z, std::string::npos);
}

TEST(Errors, AnEhloNameOfTwoSourcesMustBeAnAddress) {
  std::vector<Source> sources = {*parse_source("192.0.2.1=mta.example.com"), *parse_source("192.0.2.2=mta.example.com")};
  auto rules = Shaping::parse("[source.\"mta.example.com\"]\nconnections = 3\n", "s.toml", sources);
  ASSERT_FALSE(rules.ok());
  EXPECT_NE(rules.error().text.find("s.toml:1: source 'mta.example.com' is the EHLO name of 2 sources"), std::string::npos);
}

// ---- replies

std::string told(const Shaping& rules, const Provider* provider, uint16_t code, std::string_view text) {
  const ReplyRule* rule = rules.match_reply(provider, code, text);
  if (!rule) return "nothing";
  std::string out;
  if (rule->back_off) out += "back-off ";
  if (rule->suspend_source) out += "suspend " + print_duration_ms(rule->rest_ms) + " ";
  if (rule->defer_queue) out += "defer " + print_duration_ms(rule->rest_ms) + " ";
  if (rule->bounce_queue) out += "bounce ";
  return out + rule->where;
}

TEST(Replies, PowerMtasLinesAreTakenAsTheyAre) {
  auto rules = read(R"([replies]
lines = '''
# a comment

reply /421 4\.7\.0 \[TSS04\]/ mode=backoff
reply /blocked using|(?i)listed at/ disable-source-ip reenable-after=6h
reply /http:\/\/postmaster/ defer-queue for=30m
'''
[provider.gmail.replies]
lines = "reply /550.*closed for good/ bounce-queue, mode=backoff"
)");
  const Provider* gmail = rules->provider("gmail");
  EXPECT_EQ(told(*rules, nullptr, 421, "4.7.0 [TSS04] Messages temporarily deferred"), "back-off shaping.toml:5");
  EXPECT_EQ(told(*rules, gmail, 554, "Listed AT example"), "suspend 6h shaping.toml:6");
  EXPECT_EQ(told(*rules, nullptr, 451, "see http://postmaster.example"), "defer 30m shaping.toml:7");
  EXPECT_EQ(told(*rules, gmail, 550, "5.1.1 closed for good"), "back-off bounce shaping.toml:10");
  EXPECT_EQ(told(*rules, nullptr, 550, "5.1.1 closed for good"), "nothing");
}

TEST(Replies, TheFirstLineThatMatchesDecides) {
  auto rules = read("[replies]\nlines = '''reply /aaa/ mode=backoff\nreply /aa/ defer-queue'''\n");
  EXPECT_EQ(told(*rules, nullptr, 450, "aaaa"), "back-off shaping.toml:2");
  EXPECT_EQ(told(*rules, nullptr, 450, "aa"), "defer 0 shaping.toml:3");
}

TEST(Replies, WhatCannotBeExpressedIsRefusedWithItsLineAndARewrite) {
  const Wrong wrongs[] = {
      {"[replies]\nlines = '''\nreply /a/ mode=backoff\nreply /x(?!y)/ mode=backoff\n'''\n", "shaping.toml:4: /x(?!y)/: "},
      {"[replies]\nlines = '''\nreply /x(?!y)/ mode=backoff\n'''\n", "let a line before it catch the exceptions"},
      {"[replies]\nlines = '''\nreply /(a)\\1/ mode=backoff\n'''\n", "write the alternatives out"},
      {"[replies]\nlines = '''\nreply /a/ mode=normal\n'''\n", "write normal-after"},
      {"[replies]\nlines = '''\nreply /a/ skip-mx\n'''\n", "shaping.toml:3: skip-mx cannot be expressed"},
      {"[replies]\nlines = '''\nreply /a/\n'''\n", "nothing to do"},
      {"[replies]\nlines = '''\nreply /a mode=backoff\n'''\n", "the regex has no end"},
      {"[replies]\nlines = '''\nreply /a/ mode=backof\n'''\n", "'mode=backof' is unknown"},
      {"[replies]\nlines = '''\nreply /a/ mode=backoff for=1h\n'''\n", "normal-after"},
      {"[default.backoff]\nnormal-after = 3\n", "shaping.toml:2: normal-after: expects a time"},
  };
  for (const Wrong& wrong : wrongs) {
    std::string said = error_of(wrong.text);
    EXPECT_NE(said.find(wrong.says), std::string::npos) << wrong.text << "says: " << said;
  }
}

TEST(Replies, BackOffHasLimitsOfItsOwn) {
  auto rules = read(R"([default]
connections = 10
attempt-rate = "100/s"
[default.backoff]
attempt-rate = "5/m"
normal-after = "20m"
[provider.gmail.backoff]
connections = 2
)");
  const Provider* gmail = rules->provider("gmail");
  EXPECT_EQ(value(rules->backed_off(nullptr, 0), Key::connections), "1 from built in, for back-off");
  EXPECT_EQ(value(rules->backed_off(gmail, 0), Key::connections), "2 from shaping.toml:8");
  EXPECT_EQ(value(rules->backed_off(gmail, 0), Key::attempt_rate), "5/m from shaping.toml:5");
  EXPECT_EQ(rules->normal_after_ms(gmail), 20 * 60'000);
}

// ---- whose mail it is

TEST(Rules, PatternsHaveStars) {
  EXPECT_TRUE(matches_pattern("*@acme.example", "News@ACME.example"));
  EXPECT_FALSE(matches_pattern("*@acme.example", "news@acme.example.org"));
  EXPECT_TRUE(matches_pattern("a*b*c", "aXXbYYbc"));
  EXPECT_FALSE(matches_pattern("a*b*c", "aXXbYYb"));
  EXPECT_TRUE(matches_pattern("*", ""));
  EXPECT_FALSE(matches_pattern("", "x"));
}

TEST(Rules, AreReadInTheirOrderAndCheckedForSense) {
  auto rules = read(R"(
[[rule]]
match = { client = ["10.0.0.0/8", "2001:db8::/32"] }
tenant = "shop"
[[rule]]
match = { sender = "*@acme.example", account = "acme" }
tenant = "acme"
pool = "bulk"
)");
  ASSERT_EQ(rules->mail_rules().size(), 2u);
  EXPECT_EQ(rules->mail_rules()[0].clients.size(), 2u);
  EXPECT_EQ(rules->mail_rules()[1].set_pool, "bulk");
  const Wrong wrongs[] = {
      {"[[rule]]\ntenant = \"a\"\n", "shaping.toml:1: a rule without match"},
      {"[[rule]]\nmatch = { sender = \"*\" }\n", "the rule sets nothing"},
      {"[[rule]]\nmatch = { sendr = \"*\" }\ntenant = \"a\"\n", "unknown key in match 'sendr'; did you mean sender?"},
      {"[[rule]]\nmatch = { client = \"10.0.0.0/99\" }\ntenant = \"a\"\n", "shaping.toml:2: client: "},
  };
  for (const Wrong& wrong : wrongs) {
    std::string said = error_of(wrong.text);
    EXPECT_NE(said.find(wrong.says), std::string::npos) << wrong.text << "says: " << said;
  }
}

TEST(Standing, TheJobDecidesOverThePoolAndThePoolOverTheTenant) {
  auto rules = read(R"(
[tenant."*"]
weight = 2
[tenant.acme]
weight = 5
priority = "transactional"
[pool.bulk]
priority = "bulk"
[job.receipts]
weight = 7
priority = "transactional"
)");
  EXPECT_TRUE(rules->reserves());
  EXPECT_FALSE(Shaping::built_in()->reserves());
  auto standing = rules->standing("acme", "", "");
  EXPECT_EQ(standing.tenant_weight, 5u);
  EXPECT_EQ(standing.job_weight, 1u);
  EXPECT_TRUE(standing.transactional);
  EXPECT_FALSE(rules->standing("acme", "bulk", "news").transactional);
  standing = rules->standing("other", "bulk", "receipts");
  EXPECT_EQ(standing.tenant_weight, 2u);
  EXPECT_EQ(standing.job_weight, 7u);
  EXPECT_TRUE(standing.transactional);
  EXPECT_EQ(rules->standing("", "", "").tenant_weight, 1u);
}

TEST(Standing, WrongWeightsAndPrioritiesAreNamed) {
  EXPECT_EQ(error_of("[tenant.a]\nweight = 0\n"),
            "shaping.toml:2: weight: expects a number from 1 to 1000; of two that have mail, one with 3 sends three for each of one with 1");
  EXPECT_EQ(error_of("[job.a]\npriority = \"high\"\n"), "shaping.toml:2: priority: expects \"transactional\" or \"bulk\"");
  EXPECT_NE(error_of("[pool.a]\nweight = 2\n").find("unknown key in [pool.a] 'weight'"), std::string::npos);
}

TEST(LimitShare, EachNodeHasItsPartAndAllTogetherAreNeverOver) {
  auto rules = Shaping::parse(R"(
[default]
connections = 10
messages-per-connection = 100
connect-rate = "5/s"
[provider.gmail]
attempt-rate = ["600/m", "20000/h"]
byte-rate = "100M/h"
[provider.gmail.backoff]
attempt-rate = "5/m"
[domain."small.example"]
in-flight = 2
attempt-rate = "2/h"
message-rate = "none"
[tenant."*"]
intake-rate = "100/h"
)", "shaping.toml", two_sources(), {90, 60'000}, 3);
  ASSERT_TRUE(rules.ok()) << rules.error().text;
  const Shaping& shared = **rules;
  ShapingChoice any = shared.pair(nullptr, 0);
  EXPECT_EQ(value(any, Key::connections), "3 from shaping.toml:3, 1/3 of 10");
  EXPECT_EQ(value(any, Key::messages_per_connection), "100 from shaping.toml:4");
  EXPECT_EQ(value(any, Key::connect_rate), "1/s from shaping.toml:5, 1/3 of 5/s");
  ShapingChoice gmail = shared.pair(shared.provider("gmail"), 0);
  EXPECT_EQ(value(gmail, Key::connections), "1 from built in, 1/3 of 5");
  EXPECT_EQ(value(gmail, Key::attempt_rate), "200/m, 6666/h from shaping.toml:7, 1/3 of 600/m, 20000/h");
  EXPECT_EQ(value(gmail, Key::byte_rate), "34952533/h from shaping.toml:8, 1/3 of 100M/h");
  EXPECT_EQ(value(shared.backed_off(shared.provider("gmail"), 0), Key::attempt_rate), "1/m from shaping.toml:10, 1/3 of 5/m");
  // Less than one for each.
  EXPECT_EQ(value(shared.domain("small.example"), Key::in_flight), "1 from shaping.toml:12, 1/3 of 2");
  EXPECT_EQ(value(shared.domain("small.example"), Key::attempt_rate), "1/1h30m from shaping.toml:13, 1/3 of 2/h");
  EXPECT_EQ(value(shared.domain("small.example"), Key::message_rate), "none from shaping.toml:14");
  EXPECT_EQ(value(shared.domain("other.example"), Key::attempt_rate), "30/m from --destination-rate, 1/3 of 90/m");
  EXPECT_EQ(print_rate(shared.intake("acme")->rates.at(0)), "33/h");
}

TEST(Pools, WeighTheirSourcesAndAMessageStaysWithItsOwn) {
  auto rules = read(R"(
[pool.bulk]
sources = { "mta1.example.com" = 1, "192.0.2.2" = 3 }
[pool.one]
sources = ["mta2.example.com"]
)");
  size_t second = 0;
  for (uint64_t hash = 0; hash < 4000; ++hash) {
    second += rules->source_of("bulk", hash, 2) == 1;
    EXPECT_EQ(rules->source_of("bulk", hash, 2), rules->source_of("bulk", hash, 2));
    EXPECT_EQ(rules->source_of("one", hash, 2), 1u);
  }
  EXPECT_EQ(second, 3000u);
  EXPECT_EQ(rules->source_of("MTA1.example.com", 5, 2), 0u) << "a virtual MTA may be a source's name";
  EXPECT_EQ(rules->source_of("2001:db8::2", 4, 2), 1u);
  EXPECT_EQ(rules->source_of("unknown", 7, 2), 1u);
  EXPECT_NE(error_of("[pool.x]\nsources = [\"192.0.2.77\"]\n").find("shaping.toml:2: source '192.0.2.77' is none of --source"),
            std::string::npos);
}

TEST(Delivering, EachWayIsRead) {
  auto rules = read(R"(
[domain."*"]
deliver = "discard"
[domain."a.example"]
deliver = "discard 451 4.7.1 try later"
[domain."b.example"]
deliver = "file:/tmp/"
[domain."c.example"]
deliver = "lmtp:/run/dovecot/lmtp"
[domain."d.example"]
deliver = "lmtp://[2001:db8::1]:24"
[domain."e.example"]
deliver = "smtp"
[provider.big]
mx = ["*.big.example"]
deliver = "discard 550 no"
)");
  using To = Deliver::To;
  EXPECT_EQ(rules->deliver_of_any()->reply, "250 2.0.0 discarded");
  EXPECT_EQ(rules->deliver_of("a.example")->reply, "451 4.7.1 try later");
  EXPECT_EQ(rules->deliver_of("b.example")->path, "/tmp");
  EXPECT_EQ(rules->deliver_of("b.example")->to, To::file);
  EXPECT_EQ(rules->deliver_of("c.example")->path, "/run/dovecot/lmtp");
  EXPECT_EQ(rules->deliver_of("d.example")->hop.host, "2001:db8::1");
  EXPECT_EQ(rules->deliver_of("d.example")->hop.port, 24);
  EXPECT_EQ(rules->deliver_of("e.example")->to, To::smtp);
  EXPECT_EQ(rules->deliver_of("e.example")->where, "shaping.toml:13");
  EXPECT_EQ(rules->deliver_of("f.example"), nullptr);
  EXPECT_TRUE(rules->providers_deliver());
  EXPECT_EQ(rules->provider("big")->deliver->reply, "550 no");
  EXPECT_EQ(rules->folders(), std::vector<std::string>{"/tmp"});
  EXPECT_FALSE(Shaping::built_in()->providers_deliver());
}

TEST(Delivering, WhatIsWrongIsNamedWithItsLineAndARemedy) {
  const auto wrong = [](std::string_view to) { return error_of("[domain.\"a.example\"]\ndeliver = \"" + std::string(to) + "\"\n"); };
  EXPECT_NE(wrong("discrad").find("shaping.toml:2: deliver: 'discrad' is unknown; known are \"discard\""), std::string::npos);
  EXPECT_NE(wrong("discard 251 x").find("give 250, or a code from 400"), std::string::npos);
  EXPECT_NE(wrong("discard 4511 x").find("is no reply"), std::string::npos);
  EXPECT_NE(wrong("discard 451\\tx").find("is no reply"), std::string::npos);
  EXPECT_NE(wrong("discard 451 \\u00e9").find("visible ASCII"), std::string::npos);
  EXPECT_NE(wrong("file:mail").find("'mail' is no absolute path"), std::string::npos);
  EXPECT_NE(wrong("file:/no/such/folder").find("install -d -o USER /no/such/folder"), std::string::npos);
  EXPECT_NE(wrong("lmtp://host.example").find("write the port"), std::string::npos);
  EXPECT_NE(wrong("lmtp:run/lmtp").find("no absolute path"), std::string::npos);
  EXPECT_NE(error_of("[domain.\"a.example\"]\ndeliver = 3\n").find("expects a text in quotes"), std::string::npos);
  EXPECT_NE(error_of("[pool.x]\ndeliver = \"discard\"\n").find("unknown key in [pool.x] 'deliver'"), std::string::npos);
}

}  // namespace
}  // namespace millrace::config
