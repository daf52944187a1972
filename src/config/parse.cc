#include "config/parse.h"

#include <fmt/format.h>
#include <toml++/toml.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "config/credentials.h"
#include "config/hop_credentials.h"
#include "config/schema.h"
#include "config/shaping.h"
#include "config/values.h"
#include "tls/library.h"

namespace millrace::config {
namespace {

using Shape = Field::Shape;

// The values that one origin (the file or the command line) gives to one field.
struct Given {
  bool present = false;
  unsigned line = 0;
  std::vector<std::string> values;
};

struct Errors {
  std::string text;
  void add(std::string line) {
    if (!text.empty()) text += '\n';
    text += line;
  }
  bool any() const { return !text.empty(); }
};

std::string suggestion(std::string_view name, std::string_view dashes) {
  std::vector<std::string_view> names{"config", "check-config", "help", "version"};
  if (dashes.empty()) names.clear();
  for (const Field& field : schema()) names.push_back(field.name);
  std::string_view near = nearest(name, names);
  return near.empty() ? std::string() : fmt::format("; did you mean {}{}?", dashes, near);
}

// ---- the file

// One TOML value as the text that the field's `set` reads.
Result<std::string> node_text(const Field& field, const toml::node& node) {
  if (auto text = node.value_exact<std::string>()) return *text;
  if (auto truth = node.value_exact<bool>()) {
    if (field.shape != Shape::toggle)
      return fail(fmt::format("expects {}, not a boolean", field.value));
    return std::string(*truth ? "true" : "false");
  }
  if (auto number = node.value_exact<int64_t>()) {
    if (*number < 0) return fail("is negative");
    return fmt::format("{}", *number);
  }
  if (field.shape == Shape::toggle) return fail("expects true or false");
  return fail(fmt::format("expects {} as a text in quotes", field.value));
}

void read_file(const std::string& path, std::vector<Given>& given, Errors& errors) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    errors.add(fmt::format("--config {}: {}", path, strerror(errno)));
    return;
  }
  std::ostringstream content;
  content << in.rdbuf();
  if (in.bad() || content.bad() || std::filesystem::is_directory(path)) {
    errors.add(fmt::format("--config {}: cannot be read as a file", path));
    return;
  }
  toml::table table;
  try {
    table = toml::parse(content.str(), path);
  } catch (const toml::parse_error& error) {
    errors.add(fmt::format("{}:{}: {}", path, error.source().begin.line, error.description()));
    return;
  }
  for (const auto& [key, node] : table) {
    unsigned line = static_cast<unsigned>(key.source().begin.line);
    std::string_view name = key.str();
    const Field* field = find_field(name);
    if (!field) {
      errors.add(fmt::format("{}:{}: unknown key '{}'{}", path, line, name, suggestion(name, "")));
      continue;
    }
    Given& to = given[static_cast<size_t>(field - schema().data())];
    to.present = true;
    to.line = line;
    auto take = [&](const toml::node& one) {
      auto text = node_text(*field, one);
      if (text) {
        to.values.push_back(std::move(*text));
      } else {
        errors.add(
            fmt::format("{}:{}: {}: {}", path, one.source().begin.line, name, text.error().text));
      }
    };
    if (const toml::array* array = node.as_array()) {
      if (field->shape != Shape::many) {
        errors.add(fmt::format("{}:{}: {}: takes one value, not a list", path, line, name));
        continue;
      }
      for (const toml::node& each : *array) take(each);
    } else {
      take(node);
    }
  }
}

// ---- the command line

struct Commands {
  bool help = false, version = false, check = false;
  std::string config_file;
};

void read_arguments(const std::vector<std::string>& arguments, std::vector<Given>& given,
                    Commands& commands, Errors& errors) {
  CLI::App app;
  app.set_help_flag();
  app.allow_extras();
  app.add_flag("-h,--help", commands.help);
  app.add_flag("--version", commands.version);
  app.add_flag("--check-config", commands.check);
  std::vector<std::string> files;
  app.add_option("--config", files)->allow_extra_args(false);

  const std::vector<Field>& fields = schema();
  std::vector<std::vector<std::string>> values(fields.size());
  std::vector<CLI::Option*> options(fields.size());
  for (size_t i = 0; i < fields.size(); ++i) {
    std::string flag = fmt::format("--{}", fields[i].name);
    if (fields[i].shape == Shape::toggle) {
      options[i] = app.add_flag(fmt::format("{},!--no-{}", flag, fields[i].name))
                       ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    } else {
      options[i] = app.add_option(flag, values[i])->allow_extra_args(false);
    }
  }
  try {
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
    app.parse(std::move(reversed));
  } catch (const CLI::ParseError& error) {
    errors.add(error.what());
    return;
  }
  // What CLI11 could not place: an unknown flag, with what may be its value behind it.
  bool after_unknown = false;
  for (const std::string& extra : app.remaining()) {
    if (extra.size() > 1 && extra[0] == '-') {
      std::string_view name = std::string_view(extra).substr(0, extra.find('='));
      name.remove_prefix(std::min(name.find_first_not_of('-'), name.size()));
      errors.add(fmt::format("unknown flag {}{}", extra.substr(0, extra.find('=')),
                             suggestion(name, "--")));
      after_unknown = true;
    } else if (!after_unknown) {
      errors.add(
          fmt::format("unexpected argument '{}': every setting is a flag, see --help", extra));
    } else {
      after_unknown = false;
    }
  }
  if (files.size() > 1) errors.add("--config: given twice; one file is read");
  if (!files.empty()) commands.config_file = files[0];
  for (size_t i = 0; i < fields.size(); ++i) {
    if (options[i]->count() == 0) continue;
    given[i].present = true;
    given[i].values = fields[i].shape == Shape::toggle ? options[i]->results() : values[i];
    if (fields[i].shape != Shape::many && given[i].values.size() > 1) {
      errors.add(fmt::format("--{}: given {} times; give it once", fields[i].name,
                             given[i].values.size()));
      given[i].values.resize(1);
    }
  }
}

// ---- defaults that depend on other settings or on the machine

void derive(Config& config, std::vector<Origin>& origins, const System& system) {
  auto origin = [&](std::string_view name) -> Origin& {
    return origins[static_cast<size_t>(find_field(name) - schema().data())];
  };
  auto preset = [&](std::string_view name) { return origin(name).from == Origin::From::preset; };
  auto set = [&](std::string_view name, std::string_view why) {
    origin(name) = Origin{Origin::From::derived, 0, why};
  };

  if (preset("hostname") && is_fully_qualified(system.hostname)) {
    config.hostname = system.hostname;
    set("hostname", "this machine's name");
  }
  if (preset("memory") && system.memory != 0) {
    config.memory = std::clamp<uint64_t>(system.memory / 2, 64u << 20, uint64_t{4} << 30);
    config.memory &= ~uint64_t{(1u << 20) - 1};
    set("memory", "half of this machine's memory, at most 4G");
  }
  if (preset("max-message-size") && config.memory != 0 && config.max_message_size > config.memory) {
    config.max_message_size = config.memory;
    set("max-message-size", "memory");
  }
  // A message lies in one segment, with room beside it for its metadata.
  uint64_t wanted = config.max_message_size + config.max_message_size / 8;
  if (preset("segment-size") && config.segment_size < wanted) {
    config.segment_size = (wanted + ((1u << 20) - 1)) & ~uint64_t{(1u << 20) - 1};
    set("segment-size", "max-message-size");
  }
  if (preset("admin-socket")) {
    config.admin_socket = config.spool + "/admin.sock";
    set("admin-socket", "spool");
  }
  if (preset("ipv6") && std::any_of(config.sources.begin(), config.sources.end(),
                                    [](const Source& s) { return !s.ipv6.empty(); })) {
    config.ipv6 = Ipv6::after_ipv4;
    set("ipv6", "source");
  }
  if (preset("initial-connections") &&
      config.initial_connections > config.destination_connections) {
    config.initial_connections = config.destination_connections;
    set("initial-connections", "destination-connections");
  }
  if (preset("max-connections-per-client") &&
      config.max_connections_per_client > config.max_connections) {
    config.max_connections_per_client = config.max_connections;
    set("max-connections-per-client", "max-connections");
  }
  config.destination_connections_given = !preset("destination-connections");
  config.messages_per_connection_given = !preset("messages-per-connection");
  config.connect_rate_given = !preset("connect-rate");
}

// ---- the shaping file

Status read_shaping(Config& config) {
  if (config.shaping.empty()) {
    config.shaping_rules = *Shaping::parse({}, {}, config.sources, config.destination_rate, config.limit_share);
    return success();
  }
  std::ifstream in(config.shaping, std::ios::binary);
  if (!in) return fail(fmt::format("--shaping {}: {}", config.shaping, strerror(errno)));
  std::ostringstream content;
  content << in.rdbuf();
  if (in.bad() || content.bad() || std::filesystem::is_directory(config.shaping)) {
    return fail(fmt::format("--shaping {}: cannot be read as a file", config.shaping));
  }
  auto rules = Shaping::parse(content.str(), config.shaping, config.sources, config.destination_rate, config.limit_share);
  if (!rules) return fail(rules.error());
  config.shaping_rules = std::move(*rules);
  return success();
}

// ---- the credentials file

Status read_credentials(Config& config) {
  config.accounts = nullptr;
  if (config.credentials.empty()) return success();
  std::ifstream in(config.credentials, std::ios::binary);
  if (!in) return fail(fmt::format("--credentials {}: {}", config.credentials, strerror(errno)));
  std::ostringstream content;
  content << in.rdbuf();
  if (in.bad() || content.bad() || std::filesystem::is_directory(config.credentials)) {
    return fail(fmt::format("--credentials {}: cannot be read as a file", config.credentials));
  }
  auto accounts = Credentials::parse(content.str(), config.credentials, config.sources);
  if (!accounts) return fail(accounts.error());
  config.accounts = std::move(*accounts);
  return success();
}

Status read_hop_credentials(Config& config) {
  config.hop_credentials = nullptr;
  if (config.next_hop_credentials.empty()) return success();
  std::ifstream in(config.next_hop_credentials, std::ios::binary);
  if (!in) return fail(fmt::format("--next-hop-credentials {}: {}", config.next_hop_credentials, strerror(errno)));
  std::ostringstream content;
  content << in.rdbuf();
  if (in.bad() || content.bad() || std::filesystem::is_directory(config.next_hop_credentials)) {
    return fail(fmt::format("--next-hop-credentials {}: cannot be read as a file", config.next_hop_credentials));
  }
  auto hops = HopCredentialsFile::parse(content.str(), config.next_hop_credentials, config);
  if (!hops) return fail(hops.error());
  config.hop_credentials = std::move(*hops);
  return success();
}

// ---- output

std::string toml_text(std::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string toml_value(const Field& field, const Config& config) {
  std::vector<std::string> values = field.get(config);
  if (field.shape == Shape::many) {
    std::string out = "[";
    for (const std::string& value : values) {
      if (out.size() > 1) out += ", ";
      out += toml_text(value);
    }
    return out + "]";
  }
  return field.toml == Field::Toml::text ? toml_text(values[0]) : values[0];
}

std::string effective_toml(const Invocation& invocation) {
  std::string out = fmt::format("# millrace {}: the configuration in effect\n", MILLRACE_VERSION);
  const std::vector<Field>& fields = schema();
  for (size_t i = 0; i < fields.size(); ++i) {
    if (i == 0 || fields[i].stage != fields[i - 1].stage)
      out += fmt::format("\n# {}\n", to_string(fields[i].stage));
    const Origin& origin = invocation.origins[i];
    std::string from;
    switch (origin.from) {
      case Origin::From::preset:
        from = "default";
        break;
      case Origin::From::derived:
        from = fmt::format("default, from {}", origin.why);
        break;
      case Origin::From::file:
        from = fmt::format("{}:{}", invocation.config_file, origin.line);
        break;
      case Origin::From::flag:
        from = "command line";
        if (origin.line != 0)
          from += fmt::format(", overrides {}:{}", invocation.config_file, origin.line);
        break;
    }
    // A line end in a file's name must not end the comment.
    std::replace_if(
        from.begin(), from.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, '?');
    std::string setting =
        fmt::format("{} = {}", fields[i].name, toml_value(fields[i], *invocation.config));
    out += fmt::format("{:<55} # {}\n", setting, from);
  }
  return out;
}

// Breaks `text` at blanks into lines of at most `width`, each after `indent` blanks.
void wrap(std::string& out, std::string_view text, size_t indent, size_t width) {
  while (!text.empty()) {
    size_t take = text.size();
    if (take > width) {
      take = text.rfind(' ', width);
      if (take == std::string_view::npos || take == 0) take = std::min(text.find(' '), text.size());
    }
    out.append(indent, ' ');
    out += text.substr(0, take);
    out += '\n';
    text.remove_prefix(std::min(text.size(), take + 1));
  }
}

std::string help() {
  std::string out =
      "millrace: an outbound SMTP relay\n"
      "\n"
      "  millrace [--config FILE] [--FLAG VALUE ...]\n"
      "\n"
      "Every flag but the next five is also a key of the TOML file; a flag overrides the file.\n"
      "TIME is a number with ms, s, m, h or d (90s, 1h30m); BYTES may end in K, M, G or T (powers "
      "of\n"
      "1024); a rate is a number per s, m, h or d (100/s, 5000/h).\n"
      "\n"
      "  --config FILE         reads settings from FILE\n"
      "  --check-config        checks the settings, prints all in effect and where each came from\n"
      "  --version\n"
      "  -h, --help\n";
  const std::vector<Field>& fields = schema();
  for (size_t i = 0; i < fields.size(); ++i) {
    const Field& field = fields[i];
    if (i == 0 || field.stage != fields[i - 1].stage)
      out += fmt::format("\n{}:\n", to_string(field.stage));
    std::string flag = field.shape == Shape::toggle
                           ? fmt::format("  --[no-]{}", field.name)
                           : fmt::format("  --{} {}", field.name, field.value);
    if (field.shape == Shape::many) flag += "  (repeat)";
    out += flag + '\n';
    wrap(out, field.help, 8, 88);
    wrap(out, fmt::format("Default: {}.", default_text(field)), 8, 88);
  }
  return out;
}

// What the settings only name. Read with the configuration, so that a reload takes all of it or nothing,
// and keys may be readable by root alone.
Status read_files(Config& config, bool ca_file_given) {
  auto client = std::make_shared<tls::ClientSettings>();
  if (!config.tls_ca_file.empty()) {
    auto authorities = tls::read_authorities(config.tls_ca_file);
    if (authorities) {
      client->ca_pem = std::move(*authorities);
    } else if (ca_file_given) {
      return fail(fmt::format("--tls-ca-file: {}", authorities.error().text));
    }
  }
  config.tls_client = std::move(client);
  if (config.tls_certificates.empty()) return success();
  auto server = std::make_shared<tls::ServerSettings>();
  for (size_t i = 0; i < config.tls_certificates.size(); ++i) {
    auto certificate = tls::read_certificate({config.tls_certificates[i], config.tls_keys[i]});
    if (!certificate) return fail(fmt::format("--tls-certificate: {}", certificate.error().text));
    server->certificates.push_back(std::move(*certificate));
  }
  if (!config.client_ca.empty()) {
    auto authorities = tls::read_authorities(config.client_ca);
    if (!authorities) return fail(fmt::format("--client-ca: {}", authorities.error().text));
    server->client_ca_pem = std::move(*authorities);
  }
  server->channel_bindings = !config.credentials.empty();
  if (auto context = tls::ServerContext::make(*server); !context) {
    return fail(fmt::format("--tls-certificate or --client-ca: {}", context.error().text));
  }
  config.tls_server = std::move(server);
  return success();
}

}  // namespace

System System::this_machine() {
  System system;
  char name[256] = {};
  if (gethostname(name, sizeof name - 1) == 0) system.hostname = name;
  long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0)
    system.memory = static_cast<uint64_t>(pages) * static_cast<uint64_t>(page);
  return system;
}

std::vector<Listen> listeners(const Config& config) {
  std::vector<Listen> all = config.listen;
  all.insert(all.end(), config.listen_tls.begin(), config.listen_tls.end());
  return all;
}

Result<Invocation> parse(int argc, const char* const* argv) {
  return parse(std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc),
               System::this_machine());
}

Result<Invocation> parse(const std::vector<std::string>& arguments, const System& system) {
  const std::vector<Field>& fields = schema();
  Errors errors;
  Commands commands;
  std::vector<Given> flags(fields.size()), file(fields.size());
  read_arguments(arguments, flags, commands, errors);

  Invocation invocation;
  invocation.arguments = arguments;
  invocation.config_file = commands.config_file;
  if (!errors.any() && (commands.help || commands.version)) {
    invocation.action = commands.help ? Invocation::Action::help : Invocation::Action::version;
    invocation.output = commands.help ? help() : fmt::format("millrace {}\n{}\n", MILLRACE_VERSION, tls::library_description());
    return invocation;
  }
  if (!commands.config_file.empty()) read_file(commands.config_file, file, errors);

  auto config = std::make_shared<Config>(default_config());
  invocation.origins.resize(fields.size());
  for (size_t i = 0; i < fields.size(); ++i) {
    const Field& field = fields[i];
    // The file's values are checked even where a flag overrides them: a wrong line must not surface
    // on the day the flag goes.
    auto apply = [&](const Given& given, auto&& where) {
      if (field.clear) field.clear(*config);
      for (const std::string& value : given.values) {
        if (Status status = field.set(*config, value); !status)
          errors.add(fmt::format("{}: {}", where(value), status.error().text));
      }
    };
    if (file[i].present) {
      apply(file[i], [&](const std::string&) {
        return fmt::format("{}:{}: {}", commands.config_file, file[i].line, field.name);
      });
      invocation.origins[i] = Origin{Origin::From::file, file[i].line, {}};
    }
    if (flags[i].present) {
      apply(flags[i], [&](const std::string&) { return fmt::format("--{}", field.name); });
      invocation.origins[i] = Origin{Origin::From::flag, file[i].line, {}};
    }
  }
  if (errors.any()) return fail(std::move(errors.text));
  derive(*config, invocation.origins, system);
  if (Status status = validate(*config); !status) return fail(status.error());
  const bool ca_file_given = invocation.origins[static_cast<size_t>(find_field("tls-ca-file") - fields.data())].from != Origin::From::preset;
  if (Status status = read_files(*config, ca_file_given); !status) return fail(status.error());
  if (Status status = read_shaping(*config); !status) return fail(status.error());
  if (Status status = read_credentials(*config); !status) return fail(status.error());
  if (Status status = read_hop_credentials(*config); !status) return fail(status.error());
  invocation.config = std::move(config);
  if (commands.check) {
    invocation.action = Invocation::Action::check_config;
    invocation.output = effective_toml(invocation);
  }
  return invocation;
}

Result<Reloaded> reload(const Invocation& running, const System& system) {
  auto fresh = parse(running.arguments, system);
  if (!fresh) return fail(fresh.error());
  Reloaded reloaded;
  reloaded.invocation = std::move(*fresh);
  auto config = std::make_shared<Config>(*reloaded.invocation.config);
  const std::vector<Field>& fields = schema();
  for (size_t i = 0; i < fields.size(); ++i) {
    std::vector<std::string> before = fields[i].get(*running.config);
    if (before == fields[i].get(*config)) continue;
    if (!fields[i].at_start_only) {
      reloaded.changed.emplace_back(fields[i].name);
      continue;
    }
    reloaded.needs_restart.emplace_back(fields[i].name);
    reloaded.invocation.origins[i] = running.origins[i];
    if (fields[i].clear) fields[i].clear(*config);
    for (const std::string& value : before) {
      Status status = fields[i].set(*config, value);
      ASSERT(status.ok());
    }
  }
  // What was kept may not fit with what is new; the shaping file is read for the sources that stay.
  if (Status status = validate(*config); !status) return fail(status.error());
  if (Status status = read_shaping(*config); !status) return fail(status.error());
  if (Status status = read_credentials(*config); !status) return fail(status.error());
  if (config->accounts && running.config->accounts && config->credentials == running.config->credentials &&
      config->accounts->text() != running.config->accounts->text())
    reloaded.changed.emplace_back("credentials");
  if (config->hop_credentials && running.config->hop_credentials &&
      config->next_hop_credentials == running.config->next_hop_credentials &&
      config->hop_credentials->digest() != running.config->hop_credentials->digest())
    reloaded.changed.emplace_back("next-hop-credentials");
  if (!config->shaping.empty() && config->shaping == running.config->shaping &&
      config->shaping_rules->text() != running.config->shaping_rules->text())
    reloaded.changed.emplace_back("shaping");
  reloaded.invocation.config = std::move(config);
  return reloaded;
}

std::string reference_markdown() {
  std::string out;
  const std::vector<Field>& fields = schema();
  for (size_t i = 0; i < fields.size(); ++i) {
    const Field& field = fields[i];
    if (i == 0 || field.stage != fields[i - 1].stage) {
      std::string title(to_string(field.stage));
      title[0] = static_cast<char>(toupper(title[0]));
      out += fmt::format(
          "{}### {}\n\n| Setting | Value | Default | What it does |\n|---|---|---|---|\n",
          i == 0 ? "" : "\n", title);
    }
    std::string value = field.shape == Shape::toggle ? "true or false" : std::string(field.value);
    for (size_t at = 0; (at = value.find('|', at)) != std::string::npos; at += 2)
      value.insert(at, "\\");
    if (field.shape == Shape::many) value += ", repeated";
    std::string help_text(field.help);
    for (size_t at = 0; (at = help_text.find('|', at)) != std::string::npos; at += 2)
      help_text.insert(at, "\\");
    out += fmt::format("| `{}` | {} | {} | {}{} |\n", field.name, value, default_text(field),
                       help_text, field.at_start_only ? " Read at start only." : "");
  }
  return out;
}

}  // namespace millrace::config
