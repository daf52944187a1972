#include "config/schema.h"

#include <fmt/format.h>

#include <limits>
#include <set>
#include <type_traits>
#include <utility>

#include "config/values.h"
#include "mail/address.h"

namespace millrace::config {
namespace {

constexpr int64_t kSecond = 1000, kMinute = 60 * kSecond, kHour = 60 * kMinute, kDay = 24 * kHour;
constexpr uint64_t kKi = 1024, kMi = 1024 * kKi, kGi = 1024 * kMi, kTi = 1024 * kGi;
// A RECEIVED limit or a port is small; a count of connections is bounded by descriptors.
constexpr uint64_t kMillion = 1'000'000;

using Shape = Field::Shape;
using Toml = Field::Toml;

// ---- makers of rows, one a type. The help and everything else that differs is added at the row.

struct Row {
  Field field;
  Row& at_start() { return field.at_start_only = true, *this; }
  Row& empty_means(std::string_view what) { return field.when_empty = what, *this; }
};

Row make(std::string_view name, std::string_view value, std::string_view help,
         Toml toml = Toml::text, Shape shape = Shape::one) {
  Row row;
  row.field.name = name;
  row.field.value = value;
  row.field.help = help;
  row.field.toml = toml;
  row.field.shape = shape;
  return row;
}

template <typename Member>
Row number(std::string_view name, Member Config::*member, uint64_t least, uint64_t most,
           std::string_view help) {
  Row row = make(name, "N", help, Toml::integer);
  row.field.set = [=](Config& config, std::string_view text) -> Status {
    auto parsed = parse_number(text);
    if (!parsed) return fail(parsed.error());
    if (*parsed < least || *parsed > most)
      return fail(fmt::format("{} is out of range; give {} to {}", *parsed, least, most));
    config.*member = static_cast<Member>(*parsed);
    return success();
  };
  row.field.get = [=](const Config& config) {
    return std::vector{fmt::format("{}", config.*member)};
  };
  return row;
}

Row size(std::string_view name, uint64_t Config::*member, uint64_t least, uint64_t most,
         std::string_view help) {
  Row row = make(name, "BYTES", help);
  row.field.set = [=](Config& config, std::string_view text) -> Status {
    auto parsed = parse_size(text);
    if (!parsed) return fail(parsed.error());
    if (*parsed < least || *parsed > most)
      return fail(fmt::format("{} is out of range; give {} to {}", text, print_size(least),
                              print_size(most)));
    config.*member = *parsed;
    return success();
  };
  row.field.get = [=](const Config& config) { return std::vector{print_size(config.*member)}; };
  return row;
}

Row duration(std::string_view name, int64_t Config::*member, int64_t least, int64_t most,
             std::string_view help) {
  Row row = make(name, "TIME", help);
  row.field.set = [=](Config& config, std::string_view text) -> Status {
    auto parsed = parse_duration_ms(text);
    if (!parsed) return fail(parsed.error());
    if (*parsed < least || *parsed > most)
      return fail(fmt::format("{} is out of range; give {} to {}", text, print_duration_ms(least),
                              print_duration_ms(most)));
    config.*member = *parsed;
    return success();
  };
  row.field.get = [=](const Config& config) {
    return std::vector{print_duration_ms(config.*member)};
  };
  return row;
}

Row durations(std::string_view name, std::vector<int64_t> Config::*member, int64_t least,
              std::string_view help) {
  Row row = make(name, "TIME,TIME,...", help);
  row.field.set = [=](Config& config, std::string_view text) -> Status {
    auto parsed = parse_durations_ms(text);
    if (!parsed) return fail(parsed.error());
    if (parsed->size() > 64) return fail("more than 64 steps; the last one repeats by itself");
    for (int64_t each : *parsed) {
      if (each < least || each > 30 * kDay)
        return fail(fmt::format("{} is out of range; give {} to 30d", print_duration_ms(each),
                                print_duration_ms(least)));
    }
    config.*member = std::move(*parsed);
    return success();
  };
  row.field.get = [=](const Config& config) {
    return std::vector{print_durations_ms(config.*member)};
  };
  return row;
}

Row rate(std::string_view name, Rate Config::*member, std::string_view help) {
  Row row = make(name, "N/s|m|h|d", help);
  row.field.set = [=](Config& config, std::string_view text) -> Status {
    auto parsed = parse_rate(text);
    if (!parsed) return fail(parsed.error());
    config.*member = *parsed;
    return success();
  };
  row.field.get = [=](const Config& config) { return std::vector{print_rate(config.*member)}; };
  return row;
}

Row toggle(std::string_view name, bool Config::*member, std::string_view help) {
  Row row = make(name, "", help, Toml::boolean, Shape::toggle);
  row.field.set = [=](Config& config, std::string_view text) -> Status {
    auto parsed = parse_switch(text);
    if (!parsed) return fail(parsed.error());
    config.*member = *parsed;
    return success();
  };
  row.field.get = [=](const Config& config) {
    return std::vector<std::string>{config.*member ? "true" : "false"};
  };
  return row;
}

using Check = Status (*)(std::string_view text);
Status anything(std::string_view text) {
  for (char c : text) {
    if (static_cast<unsigned char>(c) < 0x20)
      return fail("a control character stands in the value");
  }
  return success();
}
Status header_name(std::string_view text) {
  if (text.empty() || is_header_name(text)) return success();
  return fail(fmt::format("'{}' is not a header field's name; leave it empty to use none", text));
}
Status host_name(std::string_view text) {
  if (is_fully_qualified(text)) return success();
  return fail(
      fmt::format("'{}' is not a fully qualified host name; receivers check it, give one "
                  "that resolves to this machine, such as mail.example.com",
                  text));
}
Status level(std::string_view text) {
  if (text == "debug" || text == "info" || text == "warning" || text == "error") return success();
  return fail(fmt::format("'{}' is unknown; choose debug, info, warning or error", text));
}

Status mail_address_or_off(std::string_view given) {
  if (given == "off" || (given.find_first_of(" \t<>") == given.npos && mail::parse_mailbox(given).ok())) return success();
  return fail(fmt::format("'{}' is no mail address; write one such as tls-reports@example.com, or off", given));
}

Row text(std::string_view name, std::string_view value, std::string Config::*member,
         std::string_view help, Check check = anything) {
  Row row = make(name, value, help);
  row.field.set = [=](Config& config, std::string_view given) -> Status {
    if (Status status = anything(given); !status) return status;
    if (Status status = check(given); !status) return status;
    config.*member = std::string(given);
    return success();
  };
  row.field.get = [=](const Config& config) { return std::vector{config.*member}; };
  return row;
}

template <typename Enum>
Row choice(std::string_view name, Enum Config::*member, std::string_view value,
           std::vector<std::pair<std::string_view, Enum>> choices, std::string_view help) {
  Row row = make(name, value, help);
  row.field.set = [=](Config& config, std::string_view given) -> Status {
    std::string known;
    for (const auto& [word, meaning] : choices) {
      if (word == given) {
        config.*member = meaning;
        return success();
      }
      known += fmt::format("{}{}", known.empty() ? "" : ", ", word);
    }
    return fail(fmt::format("'{}' is unknown; choose one of: {}", given, known));
  };
  row.field.get = [=](const Config& config) {
    for (const auto& [word, meaning] : choices) {
      if (meaning == config.*member) return std::vector{std::string(word)};
    }
    UNREACHABLE();
  };
  return row;
}

template <typename T, typename Parse, typename Print>
Row many(std::string_view name, std::string_view value, std::vector<T> Config::*member, Parse parse,
         Print print, std::string_view help) {
  Row row = make(name, value, help, Toml::text, Shape::many);
  row.field.set = [=](Config& config, std::string_view given) -> Status {
    auto parsed = parse(given);
    if (!parsed) return fail(parsed.error());
    (config.*member).push_back(std::move(*parsed));
    return success();
  };
  row.field.clear = [=](Config& config) { (config.*member).clear(); };
  row.field.get = [=](const Config& config) {
    std::vector<std::string> values;
    for (const T& each : config.*member) values.push_back(print(each));
    return values;
  };
  return row;
}

Result<reactor::Network> parse_network(std::string_view given) {
  auto parsed = reactor::Network::parse(given);
  if (!parsed)
    return fail(
        fmt::format("'{}' is not a network; write an address or ADDRESS/BITS, for instance "
                    "10.0.0.0/8",
                    given));
  return parsed;
}
Result<reactor::Address> parse_ip(std::string_view given) {
  auto parsed = reactor::Address::parse_host(given, 0);
  if (!parsed || parsed->is_unix()) return fail(fmt::format("'{}' is not an IP address", given));
  return parsed;
}
Result<reactor::Address> parse_server(std::string_view given) {
  // A bare IPv6 address has no place for a port, so both forms are tried.
  auto parsed = reactor::Address::parse_host(given, 53);
  if (!parsed || parsed->is_unix()) parsed = reactor::Address::parse(given, 53);
  if (!parsed || parsed->is_unix())
    return fail(
        fmt::format("'{}' is not an address; write for instance 192.0.2.53 or "
                    "[2001:db8::53]:53",
                    given));
  return parsed;
}

Result<Listen> parse_listen_tls(std::string_view given) {
  auto parsed = parse_listen(given);
  if (parsed) parsed->tls = true;
  return parsed;
}
Result<std::string> parse_file(std::string_view given) {
  if (Status status = anything(given); !status) return fail(status.error());
  if (given.empty()) return fail("a file is needed");
  return std::string(given);
}
std::string print_file(const std::string& path) { return path; }

Row limit_share() {
  Row row = make("limit-share", "1/N",
                 "Where N nodes send from the same sources: each keeps to one part in N of the limits of connections and rates "
                 "towards receivers, as docs/shaping.md tells.");
  row.field.set = [](Config& config, std::string_view text) -> Status {
    auto parts = text.starts_with("1/") ? parse_number(text.substr(2)) : Result<uint64_t>(fail(""));
    if (!parts || *parts < 1 || *parts > 1000) {
      return fail(fmt::format("'{}' is not a share; write 1/N with the number of nodes, 1 to 1000, such as 1/3", text));
    }
    config.limit_share = static_cast<uint32_t>(*parts);
    return success();
  };
  row.field.get = [](const Config& config) { return std::vector{fmt::format("1/{}", config.limit_share)}; };
  return row;
}

Row smarthost() {
  Row row = make("smarthost", "[smtps://]HOST:PORT",
                 "Sends all mail that no --route names to this host: no MX look-up, no "
                 "private-address rule, no ramp.");
  row.field.set = [](Config& config, std::string_view given) -> Status {
    config.smarthost = NextHop{};
    if (given.empty()) return success();
    auto parsed = parse_next_hop(given);
    if (!parsed) return fail(parsed.error());
    config.smarthost = *parsed;
    return success();
  };
  row.field.get = [](const Config& config) {
    return std::vector{print_next_hop(config.smarthost)};
  };
  return row;
}

Row route() {
  Row row = make("route", "DOMAIN=[smtps://]HOST:PORT",
                 "Sends the mail of one recipient domain to this host instead of its MX hosts.",
                 Toml::text, Shape::many);
  row.field.set = [](Config& config, std::string_view given) -> Status {
    auto parsed = parse_route(given);
    if (!parsed) return fail(parsed.error());
    if (!config.routes.insert(*parsed).second)
      return fail(fmt::format("{} has two routes; keep one of them", parsed->first));
    return success();
  };
  row.field.clear = [](Config& config) { config.routes.clear(); };
  row.field.get = [](const Config& config) {
    std::vector<std::string> values;
    for (const auto& [domain, hop] : config.routes) values.push_back(print_route(domain, hop));
    return values;
  };
  return row;
}

constexpr std::pair<std::string_view, TlsLevel> kTlsLevels[] = {{"none", TlsLevel::none},
                                                                 {"opportunistic", TlsLevel::opportunistic},
                                                                 {"required", TlsLevel::required},
                                                                 {"verified", TlsLevel::verified}};

Row tls_for() {
  Row row = make("tls-for", "HOST=LEVEL",
                 "The same for one host (an MX, or a next hop) and those below it; goes ahead of --tls and the shaping file, "
                 "and the longest name ahead of the rest.",
                 Toml::text, Shape::many);
  row.field.set = [](Config& config, std::string_view given) -> Status {
    const size_t equals = given.find('=');
    if (equals == given.npos) return fail(fmt::format("'{}' has no =; write HOST=LEVEL", given));
    std::string host(given.substr(0, equals));
    for (char& c : host) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    if (!reactor::Address::parse_host(host, 0) && !is_host_name(host))
      return fail(fmt::format("'{}' is neither a host name nor an address", host));
    for (const auto& [word, level] : kTlsLevels) {
      if (word != given.substr(equals + 1)) continue;
      if (!config.tls_for.emplace(host, level).second)
        return fail(fmt::format("{} is given twice; keep one of them", host));
      return success();
    }
    return fail(fmt::format("'{}' is unknown; choose none, opportunistic, required or verified",
                            given.substr(equals + 1)));
  };
  row.field.clear = [](Config& config) { config.tls_for.clear(); };
  row.field.get = [](const Config& config) {
    std::vector<std::string> values;
    for (const auto& [host, level] : config.tls_for) {
      for (const auto& [word, known] : kTlsLevels) {
        if (known == level) values.push_back(fmt::format("{}={}", host, word));
      }
    }
    return values;
  };
  return row;
}

std::vector<Field> make_schema() {
  std::vector<Field> fields;
  Stage stage = Stage::process;
  auto add = [&](Row row) {
    row.field.stage = stage;
    fields.push_back(std::move(row.field));
  };
  using C = Config;

  stage = Stage::process;
  add(text("hostname", "NAME", &C::hostname,
           "The name in EHLO, Received, Message-ID and reports; fully qualified.", host_name)
          .empty_means("this machine's name, if that is fully qualified"));
  add(number("shards", &C::shards, 0, 1024, "Threads, one a core.")
          .at_start()
          .empty_means("the number of cores"));
  add(size("memory", &C::memory, 16 * kMi, 16 * kTi,
           "What mail, buffers and queues may take in all; past it new mail is refused with 4xx.")
          .at_start()
          .empty_means("half of this machine's memory, at most 4G"));
  add(text("user", "NAME", &C::user, "Whom to become once ports and files are open.")
          .at_start()
          .empty_means("stay who started it"));
  add(toggle("confinement", &C::confinement,
             "Gives up other files and the system calls that a relay does not need "
             "(Landlock, seccomp).")
          .at_start());
  add(choice<Durability>("durability", &C::durability, "disk|memory",
                         {{"disk", Durability::disk}, {"memory", Durability::memory}},
                         "disk: a 250 means that the message survives a power cut. memory: it does "
                         "not survive the process.")
          .at_start());
  add(text("io-features", "LIST", &C::io_features,
           "Which features of newer kernels may be used: all, none, or names with commas.")
          .at_start());
  add(text("log-level", "LEVEL", &C::log_level, "debug, info, warning or error.", level));
  add(duration("drain-timeout", &C::drain_timeout_ms, 0, kDay,
               "How long transactions in flight may take to end after SIGTERM."));

  stage = Stage::ingress;
  add(many("listen", "ADDR:PORT[,proxy]", &C::listen, parse_listen, print_listen,
           "Accepts SMTP here; ',proxy' expects a PROXY header from --proxy-from.")
          .at_start());
  add(many("listen-tls", "ADDR:PORT[,proxy]", &C::listen_tls, parse_listen_tls, print_listen,
           "Accepts SMTP here with TLS from the first octet (RFC 8314: port 465).")
          .at_start());
  add(many("tls-certificate", "FILE", &C::tls_certificates, parse_file, print_file,
           "PEM: our certificate and those up to the root; STARTTLS is offered. With several, the name "
           "that the client asks for chooses, and the first serves the rest."));
  add(many("tls-key", "FILE", &C::tls_keys, parse_file, print_file,
           "PEM: the key of the certificate given in the same place."));
  add(toggle("require-tls", &C::require_tls, "No mail is taken in the clear: 530 5.7.0."));
  add(text("client-ca", "FILE", &C::client_ca,
           "PEM: clients that show a certificate of these authorities may send mail to anywhere, as "
           "those of --relay-from may.")
          .empty_means("none"));
  add(text("credentials", "FILE", &C::credentials,
           "Accounts that may authenticate (AUTH) and so send mail to anywhere, as docs/auth.md tells.")
          .empty_means("none"));
  add(toggle("auth-on-loopback", &C::auth_on_loopback,
             "Offers AUTH without TLS too, to clients on this machine's loopback addresses only."));
  add(many(
      "relay-from", "CIDR", &C::relay_from, parse_network,
      [](const reactor::Network& n) { return n.to_string(); },
      "Clients that may send mail to anywhere. Given, it replaces the default."));
  add(many(
      "proxy-from", "CIDR", &C::proxy_from, parse_network,
      [](const reactor::Network& n) { return n.to_string(); },
      "Proxies whose PROXY v1 or v2 header is believed."));
  add(size("max-message-size", &C::max_message_size, kKi, 2 * kGi,
           "Largest message, announced as SIZE."));
  add(number("max-recipients", &C::max_recipients, 100, 100'000,
             "Recipients of one transaction (RFC 5321 4.5.3.1.8: at least 100)."));
  add(number("max-connections", &C::max_connections, 1, kMillion, "Inbound connections in all."));
  add(number("max-connections-per-client", &C::max_connections_per_client, 1, kMillion,
             "Inbound connections of one client address."));
  add(number("max-errors", &C::max_errors, 1, 100'000,
             "Refused commands of a session before it is closed with 421."));
  add(duration("command-timeout", &C::command_timeout_ms, kSecond, kDay,
               "Wait for a client's command (RFC 5321 4.5.3.2.7: at least 5m)."));
  add(duration("data-timeout", &C::data_timeout_ms, kSecond, kDay,
               "Wait for the next piece of a message's data (RFC 5321 4.5.3.2.5)."));
  add(duration("message-timeout", &C::message_timeout_ms, kSecond, 7 * kDay,
               "For all of one message's data."));
  add(duration("admission-wait", &C::admission_wait_ms, 0, 10 * kMinute,
               "How long MAIL is held back for room before 452 4.3.1."));
  add(choice<BadLines>(
      "on-bad-lines", &C::on_bad_lines, "reject|tag|fix",
      {{"reject", BadLines::reject}, {"tag", BadLines::tag}, {"fix", BadLines::fix}},
      "A bare CR or LF, or a line over 998 octets: 554 5.6.0; or accept it repaired, "
      "with a header that says so (tag) or without (fix)."));
  add(choice<ReceivedHeader>("received", &C::received, "full|hide-client|off",
                             {{"full", ReceivedHeader::full},
                              {"hide-client", ReceivedHeader::hide_client},
                              {"off", ReceivedHeader::off}},
                             "The Received header added to each message."));
  add(toggle("add-missing-headers", &C::add_missing_headers,
             "Adds Date and Message-ID where they are missing."));
  add(number("max-received-headers", &C::max_received_headers, 10, 10'000,
             "More Received headers than this are a loop: 554 5.4.6."));
  add(text("header-pool", "NAME", &C::header_pool,
           "Header that names the message's virtual MTA; always removed.", header_name)
          .empty_means("none"));
  add(text("header-job", "NAME", &C::header_job,
           "Header that names the message's job; always removed.", header_name)
          .empty_means("none"));
  add(text("header-envid", "NAME", &C::header_envid,
           "Header that sets the envelope id; always removed.", header_name)
          .empty_means("none"));
  add(text("header-expire", "NAME", &C::header_expire,
           "Header that shortens --expire-after for one message; always removed.", header_name)
          .empty_means("none"));

  stage = Stage::spool;
  add(text("spool", "DIR", &C::spool, "Where accepted mail is kept.").at_start());
  add(size("segment-size", &C::segment_size, kMi, 4 * kGi, "Size of a file of the spool.")
          .at_start());
  add(size("spool-reserve", &C::spool_reserve, 0, kTi,
           "Disk space kept free for outcomes and compaction: below it new mail is refused."));
  add(number("compact-below-percent", &C::compact_below_percent, 0, 90,
             "A segment of which less than this share is alive is compacted."));

  stage = Stage::dns;
  add(many(
          "dns-server", "ADDR[:PORT]", &C::dns_servers, parse_server,
          [](const reactor::Address& a) { return a.to_string(); }, "Resolver to ask.")
          .empty_means("those of /etc/resolv.conf"));
  add(many(
          "dnssec-resolver", "ADDR", &C::dnssec_resolvers, parse_ip,
          [](const reactor::Address& a) { return a.host_string(); },
          "A resolver that checks DNSSEC, on a network where nobody can alter its answers: its word that an answer is secure "
          "counts, as that of one at a loopback address does. DANE needs such a resolver.")
          .at_start()
          .empty_means("loopback addresses only"));
  add(duration("dns-timeout", &C::dns_timeout_ms, 100, 5 * kMinute, "For one query, all tries."));
  add(duration("dns-negative-ttl", &C::dns_negative_ttl_ms, 0, kDay,
               "Longest time that a negative answer is kept."));
  add(duration("nxdomain-confirm", &C::nxdomain_confirm_ms, 0, kDay,
               "A recipient domain that does not exist bounces when a second query this much later "
               "agrees."));

  stage = Stage::routing;
  add(many("source", "ADDR[=EHLO-NAME]", &C::sources, parse_source, print_source,
           "Local address to send from, and its EHLO name if not the hostname; ADDR4+ADDR6=NAME is "
           "one source with two addresses.")
          .at_start()
          .empty_means("one, whose address the kernel chooses"));
  add(choice<Ipv6>("ipv6", &C::ipv6, "off|prefer|after-ipv4",
                   {{"off", Ipv6::off}, {"prefer", Ipv6::prefer}, {"after-ipv4", Ipv6::after_ipv4}},
                   "Whether MX hosts are reached by IPv6; unless given, after-ipv4 once a --source "
                   "has an IPv6 address."));
  add(toggle("ipv6-without-ptr", &C::ipv6_without_ptr,
             "Reaches MX hosts by IPv6 also from an address whose PTR record does not name a host that leads back to it; many "
             "receivers refuse such mail."));
  add(smarthost().empty_means("none"));
  add(route().empty_means("none"));
  add(text("next-hop-credentials", "FILE", &C::next_hop_credentials,
           "How to authenticate to --smarthost and --route hosts, as docs/auth.md tells; only ever to a host "
           "whose certificate is good for its name.")
          .empty_means("none"));
  add(number("remote-port", &C::remote_port, 1, 65535, "Port of MX hosts."));
  add(choice<TlsLevel>(
      "tls", &C::tls, "none|opportunistic|required|verified|dane|mta-sts|auto",
      {{"none", TlsLevel::none},
       {"opportunistic", TlsLevel::opportunistic},
       {"required", TlsLevel::required},
       {"verified", TlsLevel::verified},
       {"dane", TlsLevel::dane},
       {"mta-sts", TlsLevel::mta_sts},
       {"auto", TlsLevel::automatic}},
      "Encryption towards receivers, for domains of which the shaping file says nothing: where it is offered; or nothing in "
      "the clear; or only with a certificate that is good for the host; or only as TLSA records say; or only under an "
      "MTA-STS policy that is enforced; or (auto) by TLSA records where there are any, else by an MTA-STS policy, else where it "
      "is offered."));
  add(tls_for().empty_means("none"));
  add(text("tls-ca-file", "FILE", &C::tls_ca_file,
           "PEM: the authorities that receivers' certificates are checked against."));
  add(text("tls-reports", "ADDRESS|off", &C::tls_reports,
           "Sends the operators of recipient domains who ask for it daily reports of what became of TLS (RFC 8460), as docs/tls.md "
           "tells; they name this mail address for questions.",
           mail_address_or_off));
  add(text("tls-reports-organization", "NAME", &C::tls_reports_organization, "Who sends these reports.")
          .empty_means("the hostname"));
  add(toggle("allow-private-destinations", &C::allow_private_destinations,
             "Lets MX hosts have loopback, private and link-local addresses."));
  add(many(
          "own-address", "ADDR", &C::own_addresses, parse_ip,
          [](const reactor::Address& a) { return a.host_string(); },
          "An address that leads back here (NAT): cuts an MX set as the hostname does.")
          .empty_means("those of the machine only"));

  stage = Stage::retry;
  add(durations("retry", &C::retry_ms, kSecond,
                "Waits after a deferred attempt; the last repeats, each varies by 10 %."));
  add(duration("expire-after", &C::expire_after_ms, kMinute, 30 * kDay,
               "When undelivered mail is given up."));
  add(duration("retry-uncertain", &C::retry_uncertain_ms, kSecond, 7 * kDay,
               "Wait after a lost reply to the end of data: the message may have been delivered."));
  add(durations("hold", &C::hold_ms, kSecond,
                "Waits for a dead host, site or source; the last repeats."));
  add(toggle("bounce-on-5xx-greeting", &C::bounce_on_5xx_greeting,
             "A 5xx greeting bounces the mail instead of holding it."));

  stage = Stage::limits;
  add(number("destination-connections", &C::destination_connections, 1, kMillion,
             "Connections to one site from one source, all shards."));
  add(number("initial-connections", &C::initial_connections, 1, kMillion,
             "Connections to begin with; they grow with success."));
  add(number("messages-per-connection", &C::messages_per_connection, 1, kMillion,
             "Messages sent over one connection."));
  add(number("total-connections", &C::total_connections, 1, kMillion,
             "Outbound connections in all."));
  add(number("recipients-per-transaction", &C::recipients_per_transaction, 1, 10'000,
             "Recipients of one outbound transaction."));
  add(number(
      "uncertain-per-connection", &C::uncertain_per_connection, 1, 1000,
      "Messages of one connection whose end of data is unanswered; so many may be sent twice "
      "when it breaks."));
  add(rate("destination-rate", &C::destination_rate,
           "Messages (not recipients) to one routing domain."));
  add(rate("connect-rate", &C::connect_rate, "New connections to one site."));
  add(limit_share());
  add(text("shaping", "FILE", &C::shaping,
           "Limits by provider, domain, source, pool, tenant and job, as docs/shaping.md tells.")
          .empty_means("what is built in for large receivers"));
  add(toggle("pipelining", &C::pipelining, "Uses PIPELINING where it is offered (RFC 2920)."));
  add(toggle("chunking", &C::chunking, "Uses BDAT where it is offered (RFC 3030)."));

  stage = Stage::timeouts;
  add(duration("idle-timeout", &C::idle_timeout_ms, 0, kHour,
               "How long an outbound connection waits for another message."));
  add(duration("connect-timeout", &C::connect_timeout_ms, kSecond, kHour, "For a TCP connection."));
  add(duration("greeting-timeout", &C::greeting_timeout_ms, kSecond, kHour,
               "For the greeting and the reply to EHLO (RFC 5321 4.5.3.2.1)."));
  add(duration("mail-timeout", &C::mail_timeout_ms, kSecond, kHour,
               "For the reply to MAIL (RFC 5321 4.5.3.2.2)."));
  add(duration("rcpt-timeout", &C::rcpt_timeout_ms, kSecond, kHour,
               "For the reply to RCPT (RFC 5321 4.5.3.2.3)."));
  add(duration("data-initiation-timeout", &C::data_initiation_timeout_ms, kSecond, kHour,
               "For the reply to DATA (RFC 5321 4.5.3.2.4)."));
  add(duration("data-block-timeout", &C::data_block_timeout_ms, kSecond, kHour,
               "For the receiver to take more data (RFC 5321 4.5.3.2.5)."));
  add(duration("data-done-timeout", &C::data_done_timeout_ms, kSecond, kHour,
               "For the reply to the end of data (RFC 5321 4.5.3.2.6)."));

  stage = Stage::reporting;
  add(choice<Reports>(
      "reports", &C::reports, "all|failure|none",
      {{"all", Reports::all}, {"failure", Reports::failure}, {"none", Reports::none}},
      "Which delivery status reports may be sent; NOTIFY is obeyed within it."));
  add(toggle("delay-reports", &C::delay_reports, "Also reports that mail is delayed."));
  add(number("reports-per-hour", &C::reports_per_hour, 0, kMillion,
             "Reports to one reverse-path an hour."));
  add(text("events", "FILE", &C::events, "Where every outcome is written, a line of JSON each.")
          .at_start()
          .empty_means("none"));
  add(size("events-max-size", &C::events_max_size, kMi, kTi,
           "The events file is set aside under a name with the time past this size."));
  add(text("admin-socket", "PATH", &C::admin_socket, "Unix socket that millracectl speaks to.")
          .at_start()
          .empty_means("admin.sock in the spool"));
  return fields;
}

}  // namespace

std::string_view to_string(Stage stage) {
  switch (stage) {
    case Stage::process:
      return "process";
    case Stage::ingress:
      return "ingress";
    case Stage::spool:
      return "spool";
    case Stage::dns:
      return "DNS";
    case Stage::routing:
      return "sources and routes";
    case Stage::retry:
      return "retry and expiry";
    case Stage::limits:
      return "limits of delivery";
    case Stage::timeouts:
      return "time-outs of delivery";
    case Stage::reporting:
      return "reports, events and administration";
  }
  UNREACHABLE();
}

const std::vector<Field>& schema() {
  static const std::vector<Field> fields = make_schema();
  return fields;
}

const Field* find_field(std::string_view name) {
  for (const Field& field : schema()) {
    if (field.name == name) return &field;
  }
  return nullptr;
}

Config default_config() {
  Config config;
  auto add = [&](std::string_view name, std::string_view value) {
    Status status = find_field(name)->set(config, value);
    ASSERT(status.ok());
  };
  add("listen", "127.0.0.1:2525");
  add("relay-from", "127.0.0.0/8");
  add("relay-from", "::1");
  return config;
}

std::string default_text(const Field& field) {
  static const Config defaults = default_config();
  std::string text;
  for (const std::string& value : field.get(defaults)) {
    if (!text.empty()) text += ", ";
    text += value;
  }
  if (!field.when_empty.empty() && (text.empty() || text == "0"))
    return std::string(field.when_empty);
  if (text.empty()) return "none";
  if (field.toml == Toml::boolean) return text == "true" ? "on" : "off";
  return text;
}

Status validate(const Config& config) {
  std::string wrong;
  auto say = [&](std::string text) {
    if (!wrong.empty()) wrong += '\n';
    wrong += text;
  };

  if (config.hostname.empty()) {
    say("--hostname: no fully qualified name is known for this machine; give the name that "
        "receivers "
        "can look up, such as --hostname mail.example.com");
  } else if (!is_fully_qualified(config.hostname)) {
    say(fmt::format(
        "--hostname: '{}' is not a fully qualified host name; give the name that receivers "
        "can look up, such as mail.example.com",
        config.hostname));
  }
  if (config.spool.empty()) say("--spool: a directory is needed");
  bool proxy = false;
  for (const Listen& listen : listeners(config)) proxy |= listen.proxy;
  if (proxy && config.proxy_from.empty())
    say("--listen ...,proxy: nobody's PROXY header would be believed; name the proxies with "
        "--proxy-from CIDR");
  if (!proxy && !config.proxy_from.empty())
    say("--proxy-from: no listener expects a PROXY header; write --listen ADDR:PORT,proxy");
  std::set<std::string> seen;
  for (const Listen& listen : listeners(config)) {
    if (!seen.insert(listen.address.to_string()).second)
      say(fmt::format("--listen{}: {} is given twice", listen.tls ? "-tls" : "", listen.address.to_string()));
  }
  if (config.tls_certificates.size() != config.tls_keys.size())
    say(fmt::format("--tls-key: {} for {} --tls-certificate; each certificate needs its key, in the same order",
                    config.tls_keys.size(), config.tls_certificates.size()));
  if (config.tls_certificates.empty()) {
    if (!config.listen_tls.empty()) say("--listen-tls: needs --tls-certificate and --tls-key");
    if (config.require_tls) say("--require-tls: needs --tls-certificate and --tls-key");
    if (!config.client_ca.empty()) say("--client-ca: needs --tls-certificate and --tls-key");
    if (!config.credentials.empty() && !config.auth_on_loopback)
      say("--credentials: passwords are taken under TLS only, so it needs --tls-certificate and --tls-key "
          "(or, for clients of this machine alone, --auth-on-loopback)");
  }
  if (config.auth_on_loopback && config.credentials.empty())
    say("--auth-on-loopback: nobody has a password; name the accounts with --credentials FILE");
  seen.clear();
  bool ipv6_source = false;
  for (const Source& source : config.sources) {
    for (const reactor::Address* address : {&source.ipv4, &source.ipv6}) {
      if (!address->empty() && !seen.insert(address->host_string()).second)
        say(fmt::format("--source: {} belongs to two sources", address->host_string()));
    }
    ipv6_source |= !source.ipv6.empty();
  }
  if (config.ipv6 != Ipv6::off && !config.sources.empty() && !ipv6_source)
    say("--ipv6: no --source has an IPv6 address; add one, or leave --ipv6 off");
  if (config.initial_connections > config.destination_connections)
    say(fmt::format("--initial-connections: {} is more than --destination-connections {}",
                    config.initial_connections, config.destination_connections));
  if (config.max_connections_per_client > config.max_connections)
    say(fmt::format("--max-connections-per-client: {} is more than --max-connections {}",
                    config.max_connections_per_client, config.max_connections));
  if (config.memory != 0 && config.max_message_size > config.memory)
    say(fmt::format(
        "--max-message-size: {} is more than --memory {}: such a message could never be "
        "taken",
        print_size(config.max_message_size), print_size(config.memory)));
  if (config.segment_size % 4096 != 0) say("--segment-size: must be a multiple of 4096 bytes");
  if (config.max_message_size > config.segment_size / 100 * 90 &&
      config.durability == Durability::disk)
    say(fmt::format(
        "--max-message-size: {} does not fit into a --segment-size of {}; raise the latter",
        print_size(config.max_message_size), print_size(config.segment_size)));
  if (config.retry_ms.empty()) say("--retry: at least one wait is needed");
  if (config.hold_ms.empty()) say("--hold: at least one wait is needed");
  if (!wrong.empty()) return fail(std::move(wrong));
  return success();
}

}  // namespace millrace::config
