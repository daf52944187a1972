#include "config/parse.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <sstream>

#include "config/schema.h"
#include "config/shaping.h"

namespace millrace::config {
namespace {

const System kSystem{"mta.example.net", uint64_t{2} << 30};

Result<Invocation> run(std::vector<std::string> arguments, const System& system = kSystem) {
  return parse(arguments, system);
}

class File {
 public:
  explicit File(const std::string& content)
      : path_(testing::TempDir() + "millrace-config-" +
              std::to_string(reinterpret_cast<uintptr_t>(this)) + ".toml") {
    write(content);
  }
  ~File() { std::remove(path_.c_str()); }
  void write(const std::string& content) { std::ofstream(path_, std::ios::binary) << content; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string error_of(std::vector<std::string> arguments, const System& system = kSystem) {
  auto result = run(std::move(arguments), system);
  return result.ok() ? std::string() : result.error().text;
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

TEST(Defaults, NothingGivenIsAUsableConfiguration) {
  auto invocation = run({});
  ASSERT_TRUE(invocation.ok()) << invocation.error().text;
  const Config& config = *invocation->config;
  EXPECT_EQ(config.hostname, "mta.example.net");
  EXPECT_EQ(config.memory, uint64_t{1} << 30);
  EXPECT_EQ(config.admin_socket, "/var/spool/millrace/admin.sock");
  ASSERT_EQ(config.listen.size(), 1u);
  EXPECT_EQ(config.listen[0].address.to_string(), "127.0.0.1:2525");
  ASSERT_EQ(config.relay_from.size(), 2u);
  EXPECT_FALSE(config.connect_rate_given);
}

// RFC 5321 4.5.3.2: what a client must wait at least, and each of it is a flag.
TEST(Defaults, TimeOutsAreThoseOfTheStandardAndEachIsAFlag) {
  auto invocation = run({});
  const Config& config = *invocation->config;
  EXPECT_EQ(config.greeting_timeout_ms, 5 * 60'000);
  EXPECT_EQ(config.mail_timeout_ms, 5 * 60'000);
  EXPECT_EQ(config.rcpt_timeout_ms, 5 * 60'000);
  EXPECT_EQ(config.data_initiation_timeout_ms, 2 * 60'000);
  EXPECT_EQ(config.data_block_timeout_ms, 3 * 60'000);
  EXPECT_EQ(config.data_done_timeout_ms, 10 * 60'000);
  EXPECT_EQ(config.command_timeout_ms, 5 * 60'000);
  auto changed = run({"--greeting-timeout", "1s", "--mail-timeout", "2s", "--rcpt-timeout", "3s",
                      "--data-initiation-timeout", "4s", "--data-block-timeout", "5s",
                      "--data-done-timeout", "6s", "--command-timeout", "7s"});
  ASSERT_TRUE(changed.ok()) << changed.error().text;
  EXPECT_EQ(changed->config->greeting_timeout_ms, 1000);
  EXPECT_EQ(changed->config->data_done_timeout_ms, 6000);
  EXPECT_EQ(changed->config->command_timeout_ms, 7000);
}

TEST(Flags, EveryFlagThatScriptsUseIsThere) {
  auto invocation = run({"--listen",
                         "127.0.0.1:25",
                         "--listen",
                         "[::1]:25,proxy",
                         "--proxy-from",
                         "127.0.0.1",
                         "--spool",
                         "/tmp/spool",
                         "--shards",
                         "2",
                         "--hostname",
                         "mail.example.com",
                         "--durability",
                         "memory",
                         "--user",
                         "millrace",
                         "--relay-from",
                         "10.0.0.0/8",
                         "--max-message-size",
                         "10M",
                         "--source",
                         "192.0.2.1=mta1.example.com",
                         "--source",
                         "192.0.2.2",
                         "--ipv6",
                         "off",
                         "--dns-server",
                         "127.0.0.1:5353",
                         "--smarthost",
                         "relay.example.com:587",
                         "--route",
                         "example.com=127.0.0.1:2526",
                         "--route",
                         "example.org=[::1]:2526",
                         "--remote-port",
                         "2525",
                         "--allow-private-destinations",
                         "--memory",
                         "512M",
                         "--retry",
                         "1s,2s",
                         "--expire-after",
                         "1h",
                         "--retry-uncertain",
                         "1m",
                         "--hold",
                         "1s,2s",
                         "--destination-connections",
                         "4",
                         "--messages-per-connection",
                         "7",
                         "--destination-rate",
                         "100/s",
                         "--connect-rate",
                         "50/s",
                         "--events",
                         "/tmp/events",
                         "--admin-socket",
                         "/tmp/admin.sock",
                         "--drain-timeout",
                         "5s"});
  ASSERT_TRUE(invocation.ok()) << invocation.error().text;
  const Config& config = *invocation->config;
  EXPECT_EQ(config.listen.size(), 2u);
  EXPECT_TRUE(config.listen[1].proxy);
  EXPECT_EQ(config.relay_from.size(), 1u);
  EXPECT_EQ(config.durability, Durability::memory);
  EXPECT_EQ(config.sources.size(), 2u);
  EXPECT_EQ(config.routes.at("example.org").port, 2526);
  EXPECT_EQ(config.dns_servers[0].port(), 5353);
  EXPECT_EQ(config.retry_ms, (std::vector<int64_t>{1000, 2000}));
  EXPECT_TRUE(config.allow_private_destinations);
  EXPECT_TRUE(config.destination_connections_given);
  EXPECT_TRUE(config.messages_per_connection_given);
  EXPECT_TRUE(config.connect_rate_given);
  EXPECT_EQ(config.destination_rate.count, 100);
}

TEST(Flags, ValueAfterAnEqualsSign) {
  auto invocation = run(
      {"--shards=3", "--source=192.0.2.1=mta1.example.com", "--pipelining=false", "--no-chunking"});
  ASSERT_TRUE(invocation.ok()) << invocation.error().text;
  EXPECT_EQ(invocation->config->shards, 3u);
  EXPECT_EQ(invocation->config->sources[0].ehlo_name, "mta1.example.com");
  EXPECT_FALSE(invocation->config->pipelining);
  EXPECT_FALSE(invocation->config->chunking);
}

TEST(Flags, UnknownOneIsAnErrorThatNamesTheNearest) {
  EXPECT_TRUE(contains(error_of({"--lisen", "127.0.0.1:25"}),
                       "unknown flag --lisen; did you mean --listen?"));
  EXPECT_EQ(error_of({"--colour=red"}), "unknown flag --colour");
  EXPECT_TRUE(contains(error_of({"queue"}), "unexpected argument 'queue'"));
  EXPECT_TRUE(
      contains(error_of({"--listen", "127.0.0.1:25", "127.0.0.1:26"}), "unexpected argument"));
}

TEST(Flags, NothingIsOverriddenSilently) {
  EXPECT_EQ(error_of({"--shards", "2", "--shards", "4"}), "--shards: given 2 times; give it once");
  EXPECT_TRUE(
      contains(error_of({"--pipelining", "--no-pipelining"}), "--pipelining: given 2 times"));
  EXPECT_TRUE(contains(error_of({"--route", "a.example=h:25", "--route", "A.example=i:25"}),
                       "--route: a.example has two routes"));
  EXPECT_FALSE(error_of({"--shards"}).empty());
}

TEST(Flags, EveryErrorIsReportedAtOnceAndNamesItsFlag) {
  std::string errors = error_of({"--drain-timeout", "30", "--memory", "lots", "--remote-port", "0",
                                 "--ipv6", "maybe", "--retry", "5m,x"});
  EXPECT_TRUE(contains(errors, "--drain-timeout: '30' is not a duration"));
  EXPECT_TRUE(contains(errors, "--memory: 'lots' is not a size"));
  EXPECT_TRUE(contains(errors, "--remote-port: 0 is out of range; give 1 to 65535"));
  EXPECT_TRUE(
      contains(errors, "--ipv6: 'maybe' is unknown; choose one of: off, prefer, after-ipv4"));
  EXPECT_TRUE(contains(errors, "--retry: 'x' is not a duration"));
}

TEST(Files, KeysAreTheFlagsNames) {
  File file(
      "# comment\n"
      "hostname = \"mail.example.com\"\n"
      "listen = [\"127.0.0.1:25\", \"[::1]:25\"]\n"
      "route = \"example.com=127.0.0.1:2526\"\n"
      "shards = 4\n"
      "max-message-size = 1048576\n"
      "memory = \"256M\"\n"
      "chunking = false\n"
      "retry = \"1m,2m\"\n");
  auto invocation = run({"--config", file.path()});
  ASSERT_TRUE(invocation.ok()) << invocation.error().text;
  EXPECT_EQ(invocation->config->hostname, "mail.example.com");
  EXPECT_EQ(invocation->config->listen.size(), 2u);
  EXPECT_EQ(invocation->config->routes.size(), 1u);
  EXPECT_EQ(invocation->config->shards, 4u);
  EXPECT_EQ(invocation->config->max_message_size, 1u << 20);
  EXPECT_FALSE(invocation->config->chunking);
}

TEST(Files, ErrorsNameFileLineAndRemedy) {
  File file(
      "hostname = \"mail.example.com\"\n"
      "lisen = \"127.0.0.1:25\"\n"
      "drain-timeout = 30\n"
      "shards = [1, 2]\n"
      "pipelining = 1\n"
      "memory = true\n"
      "[limits]\n"
      "a = 1\n");
  std::string errors = error_of({"--config", file.path()});
  EXPECT_TRUE(contains(errors, file.path() + ":2: unknown key 'lisen'; did you mean listen?"))
      << errors;
  EXPECT_TRUE(contains(errors, file.path() + ":3: drain-timeout: '30' is not a duration"))
      << errors;
  EXPECT_TRUE(contains(errors, file.path() + ":4: shards: takes one value")) << errors;
  EXPECT_TRUE(contains(errors, file.path() + ":5: pipelining: ")) << errors;
  EXPECT_TRUE(contains(errors, file.path() + ":6: memory: expects BYTES, not a boolean")) << errors;
  EXPECT_TRUE(contains(errors, file.path() + ":7: unknown key 'limits'")) << errors;
}

TEST(Files, SyntaxErrorsAndMissingFilesAreNamed) {
  File file("hostname = \"a.example\"\nshards = = 2\n");
  EXPECT_TRUE(contains(error_of({"--config", file.path()}), file.path() + ":2: "));
  EXPECT_TRUE(contains(error_of({"--config", "/nonexistent/millrace.toml"}),
                       "--config /nonexistent/millrace.toml: No such file"));
  EXPECT_TRUE(contains(error_of({"--config", testing::TempDir()}), "--config "));
}

TEST(Files, WrongValueUnderAnOverridingFlagIsStillAnError) {
  File file("shards = \"many\"\n");
  EXPECT_TRUE(contains(error_of({"--config", file.path(), "--shards", "2"}), ":1: shards: 'many'"));
}

TEST(CheckConfig, ShowsWhereEachValueCameFrom) {
  File file("shards = 4\nremote-port = 26\n");
  auto invocation = run({"--config", file.path(), "--shards", "2", "--check-config"});
  ASSERT_TRUE(invocation.ok()) << invocation.error().text;
  EXPECT_EQ(invocation->action, Invocation::Action::check_config);
  std::istringstream lines(invocation->output);
  std::string shards, port, memory, user;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("shards = ")) shards = line;
    if (line.starts_with("remote-port = ")) port = line;
    if (line.starts_with("memory = ")) memory = line;
    if (line.starts_with("user = ")) user = line;
  }
  EXPECT_TRUE(contains(shards, "= 2 "));
  EXPECT_TRUE(contains(shards, "# command line, overrides " + file.path() + ":1"));
  EXPECT_TRUE(contains(port, "= 26 "));
  EXPECT_TRUE(contains(port, "# " + file.path() + ":2"));
  EXPECT_TRUE(contains(memory, "\"1G\"")) << memory;
  EXPECT_TRUE(contains(memory, "# default, from half of this machine's memory")) << memory;
  EXPECT_TRUE(contains(user, "# default")) << user;
}

TEST(CheckConfig, ItsOutputReadsBackAsTheSameConfiguration) {
  auto first = run({"--check-config", "--spool", "/tmp/a \"b\" \\c", "--source",
                    "192.0.2.1+2001:db8::1=mta.example.com", "--destination-rate", "30/10m",
                    "--route", "example.com=[::1]:26", "--own-address", "203.0.113.1",
                    "--smarthost", "relay.example", "--header-pool", ""});
  ASSERT_TRUE(first.ok()) << first.error().text;
  File file(first->output);
  auto second = run({"--config", file.path()});
  ASSERT_TRUE(second.ok()) << second.error().text;
  for (const Field& field : schema())
    EXPECT_EQ(field.get(*first->config), field.get(*second->config)) << field.name;
}

TEST(Help, GroupsEveryFlagByStageWithItsDefault) {
  auto invocation = run({"--help"});
  ASSERT_TRUE(invocation.ok());
  EXPECT_EQ(invocation->action, Invocation::Action::help);
  size_t ingress = invocation->output.find("\ningress:\n");
  size_t listen = invocation->output.find("\n  --listen ADDR:PORT[,proxy]");
  size_t spool = invocation->output.find("\nspool:\n");
  ASSERT_NE(ingress, std::string::npos);
  EXPECT_LT(ingress, listen);
  EXPECT_LT(listen, spool);
  for (const Field& field : schema())
    EXPECT_TRUE(contains(invocation->output, std::string(field.name)));
  EXPECT_TRUE(contains(invocation->output, "Default: 5m,10m,20m,40m,1h,2h,4h."));
  std::istringstream lines(invocation->output);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100u) << line;
}

TEST(Help, EveryTextOfTheSchemaIsComplete) {
  for (const Field& field : schema()) {
    EXPECT_FALSE(field.help.empty()) << field.name;
    EXPECT_TRUE(field.help.ends_with('.')) << field.name;
    EXPECT_EQ(find_field(field.name), &field) << "two fields of one name";
    EXPECT_EQ(field.shape == Field::Shape::many, field.clear != nullptr) << field.name;
  }
}

TEST(Version, IsPrinted) {
  EXPECT_TRUE(run({"--version"})->output.starts_with(std::string("millrace ") + MILLRACE_VERSION + "\nwolfSSL "));
}

TEST(Hostname, MustBeFullyQualified) {
  EXPECT_TRUE(
      contains(error_of({}, System{"box", 1u << 30}), "--hostname: no fully qualified name"));
  EXPECT_TRUE(
      contains(error_of({"--hostname", "box"}), "--hostname: 'box' is not a fully qualified"));
  EXPECT_TRUE(contains(error_of({"--hostname", "192.0.2.1"}), "--hostname: "));
  EXPECT_TRUE(run({"--hostname", "mail.example.com"}, System{"box", 1u << 30}).ok());
}

TEST(Validate, FieldsMustFitTogether) {
  EXPECT_TRUE(contains(error_of({"--listen", "127.0.0.1:25,proxy"}), "--proxy-from"));
  EXPECT_TRUE(contains(error_of({"--proxy-from", "127.0.0.1"}), "--listen ADDR:PORT,proxy"));
  EXPECT_TRUE(
      contains(error_of({"--listen", "127.0.0.1:25", "--listen", "127.0.0.1:25"}), "given twice"));
  EXPECT_TRUE(contains(error_of({"--source", "192.0.2.1", "--source", "192.0.2.1=a.example"}),
                       "belongs to two sources"));
  EXPECT_TRUE(
      contains(error_of({"--source", "192.0.2.1", "--ipv6", "prefer"}), "--ipv6: no --source"));
  EXPECT_TRUE(contains(error_of({"--initial-connections", "20"}), "--initial-connections: 20"));
  EXPECT_TRUE(
      contains(error_of({"--memory", "16M", "--max-message-size", "32M"}), "--max-message-size"));
}

TEST(Derived, DefaultsFollowWhatWasGiven) {
  auto invocation = run({"--destination-connections", "1", "--max-connections", "50", "--memory",
                         "32M", "--source", "2001:db8::1", "--spool", "/tmp/s"});
  ASSERT_TRUE(invocation.ok()) << invocation.error().text;
  EXPECT_EQ(invocation->config->initial_connections, 1u);
  EXPECT_EQ(invocation->config->max_connections_per_client, 50u);
  EXPECT_EQ(invocation->config->max_message_size, 32u << 20);
  EXPECT_EQ(invocation->config->ipv6, Ipv6::after_ipv4);
  EXPECT_EQ(invocation->config->admin_socket, "/tmp/s/admin.sock");
  auto large = run({"--max-message-size", "200M"});
  ASSERT_TRUE(large.ok()) << large.error().text;
  EXPECT_GE(large->config->segment_size, 200u << 20);
  EXPECT_EQ(large->config->segment_size % 4096, 0u);
}

TEST(Reload, TakesTheFileAsItIsNow) {
  File file("remote-port = 26\n");
  auto running = run({"--config", file.path(), "--log-level", "debug"});
  ASSERT_TRUE(running.ok());
  file.write("remote-port = 27\nlog-level = \"error\"\n");
  auto reloaded = reload(*running, kSystem);
  ASSERT_TRUE(reloaded.ok()) << reloaded.error().text;
  EXPECT_EQ(reloaded->invocation.config->remote_port, 27);
  EXPECT_EQ(reloaded->invocation.config->log_level, "debug") << "the flag still overrides";
  EXPECT_EQ(reloaded->changed, std::vector<std::string>{"remote-port"});
  EXPECT_TRUE(reloaded->needs_restart.empty());
  EXPECT_EQ(running->config->remote_port, 26) << "the old snapshot is immutable";
}

TEST(Reload, WrongFileSaysWhereAndKeepsTheOld) {
  File file("remote-port = 26\n");
  auto running = run({"--config", file.path()});
  file.write("\nremote-port = 0\n");
  auto reloaded = reload(*running, kSystem);
  ASSERT_FALSE(reloaded.ok());
  EXPECT_TRUE(contains(reloaded.error().text, file.path() + ":2: remote-port"));
}

TEST(Reload, WhatCannotChangeIsNamedAndKept) {
  File file("shards = 2\nlisten = \"127.0.0.1:25\"\n");
  auto running = run({"--config", file.path()});
  file.write("shards = 4\nlisten = [\"127.0.0.1:26\", \"127.0.0.1:27\"]\nremote-port = 28\n");
  auto reloaded = reload(*running, kSystem);
  ASSERT_TRUE(reloaded.ok()) << reloaded.error().text;
  EXPECT_EQ(reloaded->invocation.config->shards, 2u);
  ASSERT_EQ(reloaded->invocation.config->listen.size(), 1u);
  EXPECT_EQ(reloaded->invocation.config->remote_port, 28);
  EXPECT_EQ(reloaded->needs_restart, (std::vector<std::string>{"shards", "listen"}));
}

TEST(ShapingFile, IsCheckedWithTheConfigurationAndReadAgainByAReload) {
  File shaping("[default]\nconnections = 7\n");
  auto running = run({"--shaping", shaping.path()});
  ASSERT_TRUE(running.ok()) << running.error().text;
  ASSERT_NE(running->config->shaping_rules, nullptr);
  auto connections = [](const Config& config) {
    return at(config.shaping_rules->pair(nullptr, 0), ShapingKey::connections)->number;
  };
  EXPECT_EQ(connections(*running->config), 7u);

  shaping.write("[default]\nconnections = 9\n");
  auto reloaded = reload(*running, kSystem);
  ASSERT_TRUE(reloaded.ok()) << reloaded.error().text;
  EXPECT_EQ(connections(*reloaded->invocation.config), 9u);
  EXPECT_EQ(connections(*running->config), 7u);
  EXPECT_EQ(reloaded->changed, std::vector<std::string>{"shaping"});

  shaping.write("[default]\nconnexions = 9\n");
  auto wrong = reload(*running, kSystem);
  ASSERT_FALSE(wrong.ok());
  EXPECT_TRUE(contains(wrong.error().text, shaping.path() + ":2: unknown key")) << wrong.error().text;
  EXPECT_TRUE(contains(error_of({"--check-config", "--shaping", shaping.path()}), ":2: unknown key"));
  EXPECT_TRUE(contains(error_of({"--shaping", "/nonexistent.toml"}), "--shaping /nonexistent.toml: "));
}

TEST(ShapingFile, WithoutOneTheBuiltInProvidersHold) {
  auto running = run({});
  ASSERT_TRUE(running.ok());
  ASSERT_NE(running->config->shaping_rules, nullptr);
  EXPECT_NE(running->config->shaping_rules->provider("gmail"), nullptr);
}

TEST(Documentation, ReferenceTableIsThatOfTheSchema) {
  std::ifstream in(MILLRACE_SOURCE_ROOT "/docs/configuration.md");
  std::ostringstream page;
  page << in.rdbuf();
  EXPECT_TRUE(contains(page.str(), reference_markdown())) << "docs/configuration.md must contain:\n"
                                                          << reference_markdown();
}

}  // namespace
}  // namespace millrace::config
