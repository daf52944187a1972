#include "config/shaping.h"

#include <fmt/format.h>
#include <re2/re2.h>
#include <re2/set.h>
#include <toml++/toml.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <set>

#include "config/values.h"

namespace millrace::config {
namespace {

using Key = ShapingKey;

enum class Kind : uint8_t { number, rates, byte_rates };

struct KeyRow {
  Key key;
  std::string_view name;
  Kind kind;
  bool of_connections;  // a connection serves many domains, pools, tenants and jobs
};
constexpr KeyRow kKeys[] = {
    {Key::connections, "connections", Kind::number, true},
    {Key::in_flight, "in-flight", Kind::number, false},
    {Key::connect_rate, "connect-rate", Kind::rates, true},
    {Key::attempt_rate, "attempt-rate", Kind::rates, false},
    {Key::message_rate, "message-rate", Kind::rates, false},
    {Key::recipient_rate, "recipient-rate", Kind::rates, false},
    {Key::byte_rate, "byte-rate", Kind::byte_rates, false},
    {Key::messages_per_connection, "messages-per-connection", Kind::number, true},
    {Key::recipients_per_transaction, "recipients-per-transaction", Kind::number, false},
};
static_assert(std::size(kKeys) == kShapingKeys);

constexpr uint64_t kMostNumber = 1'000'000;
constexpr int64_t kNormalAfterMs = 3'600'000;
constexpr size_t kReplyRead = 1024;  // octets of a reply that patterns see
constexpr size_t kMostWindows = 4;

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  }
  return out;
}

struct BuiltIn {
  std::string_view name;
  std::vector<std::string_view> mx;  // "*.suffix" or a host
  std::vector<std::string_view> domains;
  uint64_t connections = 0, messages_per_connection = 0, recipients_per_transaction = 0;
};

// From what the receivers publish, or else from what senders report (docs/shaping.md says which).
const std::vector<BuiltIn>& built_in_table() {
  static const std::vector<BuiltIn> table = {
      {"gmail", {"*.google.com", "*.googlemail.com"}, {}, 5, 50, 0},
      {"yahoo", {"*.yahoodns.net"}, {}, 0, 20, 0},
      {"yahoo-japan", {"*.yahoo.co.jp"}, {"yahoo.co.jp"}, 0, 0, 0},
      {"microsoft", {"*.olc.protection.outlook.com"}, {}, 5, 50, 0},
      {"microsoft-365", {"*.mail.protection.outlook.com", "*.mx.microsoft"}, {}, 5, 50, 0},
      {"comcast", {"*.comcast.net"}, {}, 25, 1000, 100},
      {"apple", {"*.mail.icloud.com"}, {}, 10, 5, 0},
      {"orange", {"*.orange.fr"}, {}, 2, 100, 100},
      {"gmx", {"*.gmx.net", "*.gmx.de", "*.web.de"}, {}, 0, 0, 0},
      {"mimecast", {"*.mimecast.com"}, {}, 10, 100, 0},
  };
  return table;
}

// "100M/h": octets; a size where parse_rate() has a number.
Result<Rate> parse_byte_rate(std::string_view text) {
  size_t slash = text.find('/');
  if (slash == std::string_view::npos) {
    return fail(fmt::format("'{}' is not a rate of bytes; write for instance 100M/h", text));
  }
  auto size = parse_size(text.substr(0, slash));
  if (!size) return fail(size.error());
  if (*size == 0) return fail("0 would let nothing through; none is no limit");
  auto period = parse_rate(fmt::format("1/{}", text.substr(slash + 1)));
  if (!period) return fail(period.error());
  return Rate{static_cast<double>(*size), period->period_ms};
}

std::string print_byte_rate(const Rate& rate) {
  std::string period = print_rate(Rate{1, rate.period_ms});
  return print_size(static_cast<uint64_t>(rate.count)) + period.substr(period.find('/'));
}

}  // namespace

std::string_view to_string(ShapingKey key) { return kKeys[static_cast<size_t>(key)].name; }

std::string to_string(ShapingKey key, const ShapingValue& value) {
  Kind kind = kKeys[static_cast<size_t>(key)].kind;
  if (kind == Kind::number) return value.number == 0 ? "none" : fmt::format("{}", value.number);
  if (value.rates.empty()) return "none";
  std::string out;
  for (const Rate& rate : value.rates) {
    if (!out.empty()) out += ", ";
    out += kind == Kind::rates ? print_rate(rate) : print_byte_rate(rate);
  }
  return out;
}

Result<Deliver> parse_deliver(std::string_view text) {
  using To = Deliver::To;
  Deliver deliver;
  if (text == "smtp") return deliver;
  if (text == "discard" || text.starts_with("discard ")) {
    deliver.to = To::discard;
    std::string_view reply = text.substr(std::min(text.size(), std::string_view("discard ").size()));
    if (reply.empty()) reply = "250 2.0.0 discarded";
    const bool code = reply.size() >= 3 && reply[1] >= '0' && reply[1] <= '5' && reply[2] >= '0' && reply[2] <= '9' &&
                      (reply.size() == 3 || reply[3] == ' ');
    const bool known = reply.starts_with("250") || (code && (reply[0] == '4' || reply[0] == '5'));
    if (!code || !known) {
      return fail(fmt::format("'{}' is no reply: give 250, or a code from 400 to 559, and a text, as in \"discard 451 4.7.1 later\"", reply));
    }
    if (reply.size() > 500) return fail("the reply is longer than 500 octets");
    for (char c : reply) {
      if (c < ' ' || c > '~') return fail("the reply may have visible ASCII characters and blanks only");
    }
    deliver.reply = reply;
    if (reply.size() == 3) deliver.reply += ' ';
    return deliver;
  }
  const auto path_of = [&](std::string_view path) -> Result<std::string> {
    if (!path.starts_with('/')) return fail(fmt::format("'{}' is no absolute path", path));
    if (path.find('\0') != path.npos || path.find('\n') != path.npos) return fail("the path has characters that none should have");
    while (path.size() > 1 && path.ends_with('/')) path.remove_suffix(1);
    return std::string(path);
  };
  if (text.starts_with("file:")) {
    auto path = path_of(text.substr(5));
    if (!path) return fail(path.error());
    deliver.to = To::file;
    deliver.path = *path;
    return deliver;
  }
  if (text.starts_with("lmtp://")) {
    auto hop = parse_next_hop(text.substr(7));
    if (!hop) return fail(hop.error());
    if (hop->tls || hop->host == lower(text.substr(7))) return fail("write the port, too: lmtp://HOST:24");
    deliver.to = To::lmtp;
    deliver.hop = *hop;
    return deliver;
  }
  if (text.starts_with("lmtp:")) {
    auto path = path_of(text.substr(5));
    if (!path) return fail(path.error());
    if (path->size() > 100) return fail("the path of a Unix socket has at most 100 octets");
    deliver.to = To::lmtp;
    deliver.path = *path;
    return deliver;
  }
  return fail(fmt::format("'{}' is unknown; known are \"discard\", \"discard 451 TEXT\", \"file:/FOLDER\", \"lmtp:/SOCKET\", "
                          "\"lmtp://HOST:PORT\" and \"smtp\"", text));
}

struct ReplyRules::Set {
  Set() : set(options(), RE2::UNANCHORED) {}
  static RE2::Options options() {
    RE2::Options options;
    options.set_log_errors(false);
    options.set_case_sensitive(true);
    options.set_encoding(RE2::Options::EncodingLatin1);  // a receiver's octets are what they are
    return options;
  }
  RE2::Set set;
};

ReplyRules::ReplyRules() = default;
ReplyRules::~ReplyRules() = default;
ReplyRules::ReplyRules(ReplyRules&&) noexcept = default;
ReplyRules& ReplyRules::operator=(ReplyRules&&) noexcept = default;

const ReplyRule* ReplyRules::match(uint16_t code, std::string_view text) const {
  if (rules_.empty()) return nullptr;
  std::string whole = fmt::format("{} {}", code, text.substr(0, kReplyRead));
  std::vector<int> found;
  if (!set_->set.Match(whole, &found) || found.empty()) return nullptr;
  return &rules_[static_cast<size_t>(*std::min_element(found.begin(), found.end()))];
}

// Reads the file into a Shaping, collecting what is wrong.
class ShapingReader {
 public:
  ShapingReader(Shaping& to, const std::string& file, const std::vector<Source>& sources)
      : to_(to), file_(file), sources_(sources) {}

  std::string read(std::string_view text) {
    raw_ = text;
    toml::table table;
    try {
      table = toml::parse(text, file_);
    } catch (const toml::parse_error& error) {
      return fmt::format("{}:{}: {}", file_, error.source().begin.line, error.description());
    }
    for (const auto& [key, node] : table) {
      std::string_view name = key.str();
      if (name == "default") {
        if (const toml::table* section = table_of(key, node)) {
          read_section(*section, "default", to_.default_, kPairKeys, {"source", "backoff"});
          read_back_off(*section, "default", to_.back_off_);
          each(*section, "source", "default.source", [&](const toml::key& at, const toml::table& one, std::string title) {
            if (auto source = source_of(at)) {
              read_section(one, title, to_.default_sources_[*source], kPairKeys, {});
            }
          });
        }
      } else if (name == "provider") {
        each(table, "provider", "provider", [&](const toml::key& at, const toml::table& one, std::string title) {
          read_provider(at, one, title);
        });
      } else if (name == "domain") {
        each(table, "domain", "domain", [&](const toml::key& at, const toml::table& one, std::string title) {
          read_domain(at, one, title);
        });
      } else if (name == "source") {
        each(table, "source", "source", [&](const toml::key& at, const toml::table& one, std::string title) {
          if (at.str() == "*") return read_section(one, title, to_.any_source_, kSourceKeys, {});
          if (auto source = source_of(at)) read_section(one, title, to_.sources_[*source], kSourceKeys, {});
        });
      } else if (name == "pool") {
        each(table, "pool", "pool", [&](const toml::key& at, const toml::table& one, std::string title) {
          read_section(one, title, to_.pools_[std::string(at.str())], kMailKeys, {"sources", "priority"});
          read_share(one, to_.pool_shares_[std::string(at.str())]);
          if (const toml::node* list = one.get("sources")) read_pool_sources(std::string(at.str()), *list);
        });
      } else if (name == "job") {
        each(table, "job", "job", [&](const toml::key& at, const toml::table& one, std::string title) {
          read_section(one, title, to_.jobs_[std::string(at.str())], kMailKeys, {"weight", "priority"});
          read_share(one, to_.job_shares_[std::string(at.str())]);
        });
      } else if (name == "replies") {
        read_replies(table, "replies", to_.replies_);
      } else if (name == "rule") {
        read_rules(key, node);
      } else if (name == "tenant") {
        each(table, "tenant", "tenant", [&](const toml::key& at, const toml::table& one, std::string title) {
          std::string tenant(at.str());
          read_section(one, title, to_.tenants_[tenant], kMailKeys, {"provider", "weight", "priority", "intake-rate"});
          read_share(one, to_.tenant_shares_[tenant]);
          read_intake(one, tenant);
          each(one, "provider", title + ".provider", [&](const toml::key& named, const toml::table& pair, std::string inner) {
            uses_.push_back({line_of(named), std::string(named.str())});
            read_section(pair, inner, to_.tenant_providers_[{tenant, std::string(named.str())}], kMailKeys, {});
          });
        });
      } else {
        unknown(key, name, {"default", "provider", "domain", "source", "pool", "tenant", "job", "rule", "replies"}, "section");
      }
    }
    check_providers();
    std::stable_sort(errors_.begin(), errors_.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    std::string out;
    for (const auto& [line, error] : errors_) out += (out.empty() ? "" : "\n") + error;
    return out;
  }

 private:
  // Which keys a section may have.
  enum : unsigned { kPairKeys, kSourceKeys, kDomainKeys, kMailKeys, kTotalKeys };

  static unsigned line_of(const toml::key& key) { return static_cast<unsigned>(key.source().begin.line); }
  static unsigned line_of(const toml::node& node) { return static_cast<unsigned>(node.source().begin.line); }
  void error(unsigned line, std::string text) {
    errors_.emplace_back(line, fmt::format("{}:{}: {}", file_, line, text));
  }
  void unknown(const toml::key& key, std::string_view name, std::vector<std::string_view> known, std::string_view what) {
    std::string_view near = nearest(name, known);
    std::string hint = near.empty() ? fmt::format("; known are {}", fmt::join(known, ", "))
                                    : fmt::format("; did you mean {}?", near);
    error(line_of(key), fmt::format("unknown {} '{}'{}", what, name, hint));
  }
  const toml::table* table_of(const toml::key& key, const toml::node& node) {
    if (const toml::table* table = node.as_table()) return table;
    error(line_of(key), fmt::format("{} is a section: write [{}] and its keys below", key.str(), key.str()));
    return nullptr;
  }
  template <typename Visit>
  void each(const toml::table& in, std::string_view name, const std::string_view title_of, Visit visit) {
    const toml::node* node = in.get(name);
    if (!node) return;
    const toml::table* all = node->as_table();
    if (!all) return error(line_of(*node), fmt::format("{} needs a name: write [{}.NAME]", name, title_of));
    std::string base(title_of);
    for (const auto& [key, one] : *all) {
      const toml::table* section = one.as_table();
      if (!section) {
        error(line_of(key), fmt::format("{} needs a name: write [{}.NAME] and '{}' below it", name, base, key.str()));
        continue;
      }
      visit(key, *section, base + "." + std::string(key.str()));
    }
  }

  std::optional<unsigned> source_of(const toml::key& key) { return source_of(key.str(), line_of(key)); }
  std::optional<unsigned> source_of(std::string_view text, unsigned line) {
    std::string name = lower(text);
    std::vector<unsigned> found;
    std::vector<std::string> names;
    for (unsigned i = 0; i < sources_.size(); ++i) {
      const Source& source = sources_[i];
      std::string ipv4 = source.ipv4.empty() ? "" : source.ipv4.host_string();
      std::string ipv6 = source.ipv6.empty() ? "" : source.ipv6.host_string();
      std::string ehlo = lower(source.ehlo_name);
      if (name == ipv4 || name == ipv6 || (!ehlo.empty() && name == ehlo)) found.push_back(i);
      names.push_back(!ehlo.empty() ? ehlo : !ipv4.empty() ? ipv4 : ipv6);
    }
    if (found.size() == 1) return found[0];
    if (found.empty()) {
      error(line,
            fmt::format("source '{}' is none of --source, so this can never match; {}", text,
                        names.empty() ? "no --source is configured" : fmt::format("sources are {}", fmt::join(names, ", "))));
    } else {
      error(line, fmt::format("source '{}' is the EHLO name of {} sources; name the one meant by its address", text,
                              found.size()));
    }
    return std::nullopt;
  }

  bool allowed(const KeyRow& row, unsigned keys) const {
    switch (keys) {
      case kPairKeys: return true;
      case kSourceKeys:
      case kTotalKeys: return row.key != Key::messages_per_connection && row.key != Key::recipients_per_transaction;
      case kDomainKeys: return !row.of_connections;
      default: return !row.of_connections && row.key != Key::recipients_per_transaction;
    }
  }

  void read_section(const toml::table& table, std::string_view title, ShapingSection& to, unsigned keys,
                    std::vector<std::string_view> other) {
    std::vector<std::string_view> known = other;
    for (const KeyRow& row : kKeys) {
      if (allowed(row, keys)) known.push_back(row.name);
    }
    for (const auto& [key, node] : table) {
      std::string_view name = key.str();
      if (std::find(other.begin(), other.end(), name) != other.end()) continue;
      const KeyRow* row = std::find_if(std::begin(kKeys), std::end(kKeys), [&](const KeyRow& r) { return r.name == name; });
      if (row == std::end(kKeys)) {
        unknown(key, name, known, fmt::format("key in [{}]", title));
        continue;
      }
      if (!allowed(*row, keys)) {
        error(line_of(key), row->of_connections && (keys == kMailKeys || keys == kDomainKeys)
                                ? fmt::format("{} has no meaning in [{}]: a connection serves many; in-flight limits how "
                                              "many transactions it has at a time", name, title)
                                : fmt::format("{} has no meaning in [{}]; write it in [default], [provider.NAME] or "
                                              "[provider.NAME.source.NAME]", name, title));
        continue;
      }
      read_value(*row, key, node, to[row->key]);
    }
  }

  void read_value(const KeyRow& row, const toml::key& key, const toml::node& node, ShapingValue& to) {
    unsigned line = line_of(key);
    ShapingValue value;
    value.given = true;
    value.where = fmt::format("{}:{}", file_, line);
    auto wrong = [&](std::string_view why) { error(line, fmt::format("{}: {}", row.name, why)); };
    auto is_none = [](const toml::node& one) { return one.value_exact<std::string>() == std::string("none"); };
    if (row.kind == Kind::number) {
      auto number = node.value_exact<int64_t>();
      if (is_none(node)) {
        value.number = 0;
      } else if (!number) {
        return wrong("expects a number, or \"none\"");
      } else if (*number < 1 || static_cast<uint64_t>(*number) > kMostNumber) {
        return wrong(*number == 0 ? "0 would let nothing through: \"none\" is no limit, and 'millracectl pause' stops mail"
                                  : fmt::format("{} is out of range; give 1 to {}", *number, kMostNumber));
      } else {
        value.number = static_cast<uint64_t>(*number);
      }
      to = std::move(value);
      return;
    }
    auto take = [&](const toml::node& one) {
      auto text = one.value_exact<std::string>();
      std::string_view example = row.kind == Kind::rates ? "\"600/m\"" : "\"100M/h\"";
      if (!text) return wrong(fmt::format("expects a rate in quotes, such as {}", example)), false;
      auto rate = row.kind == Kind::rates ? parse_rate(*text) : parse_byte_rate(*text);
      if (!rate) return wrong(rate.error().text), false;
      if (!rate->limited()) return wrong("none stands alone, not in a list"), false;
      value.rates.push_back(*rate);
      return true;
    };
    if (const toml::array* array = node.as_array()) {
      if (array->size() > kMostWindows) return wrong(fmt::format("more than {} windows", kMostWindows));
      if (array->empty()) return wrong("an empty list; \"none\" is no limit");
      for (const toml::node& one : *array) {
        if (!take(one)) return;
      }
      std::sort(value.rates.begin(), value.rates.end(), [](const Rate& a, const Rate& b) { return a.period_ms < b.period_ms; });
      for (size_t i = 1; i < value.rates.size(); ++i) {
        const Rate &shorter = value.rates[i - 1], &longer = value.rates[i];
        if (shorter.period_ms == longer.period_ms) return wrong("two rates with the same period: keep the lower one");
        if (longer.count >= shorter.count * static_cast<double>(longer.period_ms) / static_cast<double>(shorter.period_ms)) {
          return wrong(fmt::format("{} can never be met beside {}: take it out, or lower it", print_rate(longer), print_rate(shorter)));
        }
      }
    } else if (!is_none(node) && !take(node)) {
      return;
    }
    to = std::move(value);
  }

  void read_provider(const toml::key& key, const toml::table& table, const std::string& title) {
    std::string name(key.str());
    if (name == "*") {
      return error(line_of(key), "[provider.\"*\"]: each provider's limits are [default]'s");
    }
    auto found = std::find_if(to_.providers_.begin(), to_.providers_.end(), [&](auto& p) { return p->name == name; });
    Provider* provider;
    if (found != to_.providers_.end()) {
      provider = found->get();
    } else {
      provider = to_.providers_.emplace_back(std::make_unique<Provider>()).get();
      provider->name = name;
      fresh_.push_back({line_of(key), name});
    }
    lines_[name] = line_of(key);
    if (const toml::node* mx = table.get("mx")) {
      provider->suffixes.clear();
      provider->hosts.clear();
      names(*mx, "mx", [&](std::string host, unsigned line) {
        bool suffix = host.starts_with("*.");
        std::string bare = suffix ? host.substr(2) : host;
        if (!is_host_name(bare)) {
          return error(line, fmt::format("mx: '{}' is neither a host name nor *.suffix", host));
        }
        auto& list = suffix ? provider->suffixes : provider->hosts;
        std::string text = suffix ? "." + bare : bare;
        auto [at, added] = owners_.try_emplace(text, name, line);
        if (!added) {
          return error(line, fmt::format("mx: '{}' can never match here: line {} gives it to provider {}", host,
                                         at->second.second, at->second.first));
        }
        list.push_back(std::move(text));
      });
    }
    if (const toml::node* domains = table.get("domains")) {
      provider->domains.clear();
      names(*domains, "domains", [&](std::string domain, unsigned line) {
        if (!is_host_name(domain)) return error(line, fmt::format("domains: '{}' is not a domain in ASCII form", domain));
        auto [at, added] = owners_.try_emplace("@" + domain, name, line);
        if (!added) {
          return error(line, fmt::format("domains: '{}' can never match here: line {} gives it to provider {}", domain,
                                         at->second.second, at->second.first));
        }
        provider->domains.push_back(std::move(domain));
      });
    }
    read_section(table, title, provider->section, kPairKeys, {"mx", "domains", "source", "total", "backoff", "replies", "deliver"});
    if (const toml::node* to = table.get("deliver")) {
      provider->deliver = read_deliver(*to);
      to_.providers_deliver_ |= provider->deliver.has_value();
    }
    read_back_off(table, title, provider->back_off);
    read_replies(table, title + ".replies", provider->replies);
    if (const toml::node* total = table.get("total")) {
      if (const toml::table* section = total->as_table()) {
        read_section(*section, title + ".total", provider->total, kTotalKeys, {});
      } else {
        error(line_of(*total), fmt::format("total is a section: write [{}.total]", title));
      }
    }
    each(table, "source", title + ".source", [&](const toml::key& at, const toml::table& one, std::string inner) {
      if (auto source = source_of(at)) read_section(one, inner, provider->by_source[*source], kPairKeys, {});
    });
  }

  void read_domain(const toml::key& key, const toml::table& table, const std::string& title) {
    std::string domain = lower(key.str());
    if (domain != "*" && !is_host_name(domain)) {
      return error(line_of(key), fmt::format("'{}' is not a recipient domain in ASCII form", key.str()));
    }
    std::vector<std::string_view> other = {"source", "tls", "deliver"};
    read_section(table, title, to_.domains_[domain], kDomainKeys, other);
    if (const toml::node* level = table.get("tls")) read_tls(*level, domain);
    if (const toml::node* to = table.get("deliver")) {
      if (auto deliver = read_deliver(*to)) to_.deliver_[domain] = *deliver;
    }
    if (domain == "*" && table.get("source")) {
      return error(line_of(*table.get("source")), "a source's limit for each domain is not kept; write [default.source.NAME]");
    }
    each(table, "source", title + ".source", [&](const toml::key& at, const toml::table& one, std::string inner) {
      if (auto source = source_of(at)) {
        read_section(one, inner, to_.domain_sources_[{domain, *source}], kDomainKeys, {});
      }
    });
  }

  void read_tls(const toml::node& node, const std::string& domain) {
    constexpr std::pair<std::string_view, TlsLevel> kLevels[] = {
        {"none", TlsLevel::none},         {"opportunistic", TlsLevel::opportunistic}, {"required", TlsLevel::required},
        {"verified", TlsLevel::verified}, {"dane", TlsLevel::dane},                   {"mta-sts", TlsLevel::mta_sts},
        {"auto", TlsLevel::automatic}};
    auto text = node.value_exact<std::string>();
    std::string all;
    for (const auto& [word, level] : kLevels) {
      if (text && *text == word) {
        to_.tls_[domain] = level;
        return;
      }
      all += fmt::format("{}\"{}\"", all.empty() ? "" : ", ", word);
    }
    error(line_of(node), fmt::format("tls: expects one of {}", all));
  }

  std::optional<Deliver> read_deliver(const toml::node& node) {
    auto text = node.value_exact<std::string>();
    auto deliver = text ? parse_deliver(*text)
                        : Result<Deliver>(fail("expects a text in quotes, such as \"discard\" or \"lmtp:/run/lmtp\""));
    std::error_code none;
    if (deliver && deliver->to == Deliver::To::file && !std::filesystem::is_directory(deliver->path, none)) {
      deliver = fail(fmt::format("there is no folder {0}: make it with 'install -d -o USER {0}', USER being --user", deliver->path));
    }
    if (!deliver) {
      error(line_of(node), "deliver: " + deliver.error().text);
      return std::nullopt;
    }
    deliver->where = fmt::format("{}:{}", file_, line_of(node));
    return *deliver;
  }

  template <typename Take>
  void names(const toml::node& node, std::string_view key, Take take) {
    const toml::array* array = node.as_array();
    if (!array) return error(line_of(node), fmt::format("{}: expects a list of names, such as [\"mx.example.com\"]", key));
    for (const toml::node& one : *array) {
      auto text = one.value_exact<std::string>();
      if (!text) {
        error(line_of(one), fmt::format("{}: expects names in quotes", key));
        continue;
      }
      take(lower(*text), line_of(one));
    }
  }

  // What is neither a limit nor of one attempt: how its mail stands among others'.
  void read_share(const toml::table& table, Share& to) {
    for (const auto& [key, node] : table) {
      if (key.str() == "weight") {
        auto weight = node.value_exact<int64_t>();
        if (!weight || *weight < 1 || *weight > 1000) {
          error(line_of(key), "weight: expects a number from 1 to 1000; of two that have mail, one with 3 sends three for each of one with 1");
          continue;
        }
        to.weight = static_cast<uint32_t>(*weight);
      } else if (key.str() == "priority") {
        auto text = node.value_exact<std::string>();
        if (!text || (*text != "transactional" && *text != "bulk")) {
          error(line_of(key), "priority: expects \"transactional\" or \"bulk\"");
          continue;
        }
        to.priority_said = true;
        to.transactional = *text == "transactional";
        to_.reserves_ |= to.transactional;
      }
    }
  }

  void read_intake(const toml::table& table, const std::string& tenant) {
    static constexpr KeyRow kIntake{Key::recipient_rate, "intake-rate", Kind::rates, false};
    for (const auto& [key, node] : table) {
      if (key.str() != kIntake.name) continue;
      ShapingValue value;
      read_value(kIntake, key, node, value);
      to_.intakes_[tenant] = {value.given, std::move(value.rates)};
    }
  }

  void read_back_off(const toml::table& table, const std::string& title, BackOff& to) {
    const toml::node* node = table.get("backoff");
    if (!node) return;
    const toml::table* section = node->as_table();
    if (!section) return error(line_of(*node), fmt::format("backoff is a section: write [{}.backoff]", title));
    read_section(*section, title + ".backoff", to.section, kPairKeys, {"normal-after"});
    if (const toml::node* after = section->get("normal-after")) {
      auto text = after->value_exact<std::string>();
      auto time = text ? parse_duration_ms(*text) : Result<int64_t>(fail("expects a time in quotes, such as \"1h\""));
      if (time && *time < 1000) time = fail("at least 1s");
      if (!time) return error(line_of(*after), "normal-after: " + time.error().text);
      to.normal_after_ms = *time;
    }
  }

  // lines = '''...''': PowerMTA's lines as they are.
  void read_replies(const toml::table& table, const std::string& title, ReplyRules& to) {
    const toml::node* node = table.get("replies");
    if (!node) return;
    const toml::table* section = node->as_table();
    if (!section) return error(line_of(*node), fmt::format("replies is a section: write [{}] and lines below", title));
    for (const auto& [key, value] : *section) {
      if (key.str() != "lines") {
        unknown(key, key.str(), {"lines"}, fmt::format("key in [{}]", title));
        continue;
      }
      auto text = value.value_exact<std::string>();
      if (!text) {
        error(line_of(key), "lines: expects '''lines''', each reply /regex/ and what to do");
        continue;
      }
      // The text begins on the line of the quotes, or on the next one when they end theirs.
      unsigned line = line_of(value);
      std::string_view opening = raw_line(line);
      for (const std::string& quotes : {std::string(3, '\''), std::string(3, '"')}) {
        if (opening.ends_with(quotes) && opening.find(quotes) == opening.size() - quotes.size()) ++line;
      }
      to.set_ = std::make_unique<ReplyRules::Set>();
      std::string_view rest = *text;
      for (; !rest.empty(); ++line) {
        size_t end = std::min(rest.find('\n'), rest.size());
        read_reply_line(rest.substr(0, end), line, to);
        rest.remove_prefix(std::min(end + 1, rest.size()));
      }
      if (!to.set_->set.Compile()) error(line_of(key), "lines: the patterns are too large together; split or shorten them");
    }
  }

  // Without blanks at its end.
  std::string_view raw_line(unsigned number) const {
    std::string_view rest = raw_;
    for (unsigned at = 1; at < number && !rest.empty(); ++at) rest.remove_prefix(std::min(rest.find('\n') + 1, rest.size()));
    rest = rest.substr(0, rest.find('\n'));
    while (!rest.empty() && (rest.back() == ' ' || rest.back() == '\t' || rest.back() == '\r')) rest.remove_suffix(1);
    return rest;
  }

  void read_reply_line(std::string_view text, unsigned line, ReplyRules& to) {
    auto blank = [](char c) { return c == ' ' || c == '\t' || c == '\r'; };
    while (!text.empty() && blank(text.front())) text.remove_prefix(1);
    while (!text.empty() && blank(text.back())) text.remove_suffix(1);
    if (text.empty() || text[0] == '#') return;
    std::string_view begin = text.substr(0, text.find('/'));
    while (!begin.empty() && blank(begin.back())) begin.remove_suffix(1);
    if (begin != "reply") return error(line, fmt::format("'{}': a line is reply /regex/ and what to do", text));
    text.remove_prefix(text.find('/') + 1);
    // The regex ends at a slash that no backslash stands before.
    std::string regex;
    size_t at = 0;
    for (; at < text.size() && text[at] != '/'; ++at) {
      if (text[at] == '\\' && at + 1 < text.size()) {
        if (text[at + 1] != '/') regex += '\\';
        ++at;
      }
      regex += text[at];
    }
    if (at == text.size()) return error(line, "the regex has no end: write reply /regex/ mode=backoff");
    text.remove_prefix(at + 1);

    ReplyRule rule;
    rule.where = fmt::format("{}:{}", file_, line);
    bool any = false, timed = false;
    while (!text.empty()) {
      if (blank(text.front()) || text.front() == ',') {
        text.remove_prefix(1);
        continue;
      }
      size_t size = std::min(text.find_first_of(" \t\r,"), text.size());
      std::string_view word = text.substr(0, size);
      text.remove_prefix(size);
      any = true;
      if (word == "mode=backoff") {
        rule.back_off = true;
      } else if (word == "disable-source-ip") {
        rule.suspend_source = true;
      } else if (word == "defer-queue") {
        rule.defer_queue = true;
      } else if (word == "bounce-queue") {
        rule.bounce_queue = true;
      } else if (word.starts_with("reenable-after=") || word.starts_with("for=")) {
        auto time = parse_duration_ms(word.substr(word.find('=') + 1));
        if (!time) return error(line, fmt::format("{}: {}", word, time.error().text));
        rule.rest_ms = *time;
        timed = true;
      } else if (word == "mode=normal") {
        return error(line, "mode=normal cannot be expressed: no reply ends a back-off early; write normal-after = \"10m\" in "
                           "[default.backoff] and take this line out");
      } else if (word == "skip-mx") {
        return error(line, "skip-mx cannot be expressed: a refusal of the connection tries the next MX host by itself; take "
                           "this line out, or write disable-source-ip reenable-after=10m");
      } else {
        return error(line, fmt::format("'{}' is unknown; known are mode=backoff, disable-source-ip, defer-queue, bounce-queue, "
                                       "reenable-after=TIME and for=TIME", word));
      }
    }
    if (!any) return error(line, "nothing to do: write for instance reply /regex/ mode=backoff");
    if (rule.defer_queue && rule.bounce_queue) return error(line, "defer-queue and bounce-queue exclude each other");
    if (timed && !rule.suspend_source && !rule.defer_queue) {
      return error(line, "a time belongs to disable-source-ip or defer-queue; that of a back-off is normal-after in [default.backoff]");
    }
    std::string why;
    if (to.set_->set.Add(regex, &why) < 0) {
      bool perl = regex.find("(?=") != regex.npos || regex.find("(?!") != regex.npos || regex.find("(?<") != regex.npos;
      bool back = false;
      for (size_t i = 0; i + 1 < regex.size(); ++i) back |= regex[i] == '\\' && regex[i + 1] >= '1' && regex[i + 1] <= '9';
      std::string rewrite =
          perl   ? "; look-around has no linear-time form: name what shall match in a line, and let a line before it catch the exceptions"
          : back ? "; a back-reference has no linear-time form: write the alternatives out, as in (a.*a|b.*b)"
                 : "; write a character that means itself as \\x2e or [.]";
      return error(line, fmt::format("/{}/: {}{}", regex, why, rewrite));
    }
    to.rules_.push_back(std::move(rule));
  }

  // sources = ["mta1.example.com", "192.0.2.2"], or with weights { "mta1.example.com" = 3, "192.0.2.2" = 1 }
  void read_pool_sources(const std::string& pool, const toml::node& node) {
    auto& list = to_.pool_sources_[pool];
    auto take = [&](std::string_view name, unsigned line, int64_t weight) {
      auto source = source_of(name, line);
      if (!source) return;
      if (weight < 1 || weight > 1000) return error(line, fmt::format("sources: weight {} is out of range; give 1 to 1000", weight));
      for (const auto& known : list) {
        if (known.source == *source) return error(line, fmt::format("sources: '{}' is given twice", name));
      }
      list.push_back({*source, static_cast<uint32_t>(weight)});
    };
    if (const toml::array* array = node.as_array()) {
      for (const toml::node& one : *array) {
        auto name = one.value_exact<std::string>();
        if (!name) {
          error(line_of(one), "sources: expects names in quotes");
          continue;
        }
        take(*name, line_of(one), 1);
      }
      if (array->empty()) error(line_of(node), "sources: an empty list; leave it out to use every source");
    } else if (const toml::table* table = node.as_table()) {
      for (const auto& [key, one] : *table) {
        auto weight = one.value_exact<int64_t>();
        if (!weight) {
          error(line_of(key), "sources: expects weights as numbers, such as { \"mta1.example.com\" = 3 }");
          continue;
        }
        take(key.str(), line_of(key), *weight);
      }
    } else {
      error(line_of(node), "sources: expects a list of sources, or a table of their weights");
    }
    if (pool == "*") error(line_of(node), "sources: \"*\" is every pool; name one");
  }

  void read_rules(const toml::key& key, const toml::node& node) {
    const toml::array* array = node.as_array();
    if (!array) return error(line_of(key), "rules are written as [[rule]], each with match and what it sets");
    for (const toml::node& one : *array) {
      const toml::table* table = one.as_table();
      if (!table) return error(line_of(one), "rules are written as [[rule]], each with match and what it sets");
      MailRule rule;
      unsigned line = line_of(one);
      rule.where = fmt::format("{}:{}", file_, line);
      bool matched = false;
      auto text = [&](const toml::key& at, const toml::node& value, std::string& to) {
        auto given = value.value_exact<std::string>();
        if (!given || given->empty()) return error(line_of(at), fmt::format("{}: expects a text in quotes", at.str()));
        to = *given;
      };
      for (const auto& [name, value] : *table) {
        if (name.str() == "tenant") {
          text(name, value, rule.set_tenant);
        } else if (name.str() == "pool") {
          text(name, value, rule.set_pool);
        } else if (name.str() == "job") {
          text(name, value, rule.set_job);
        } else if (name.str() == "match") {
          const toml::table* match = value.as_table();
          if (!match) {
            error(line_of(name), "match: expects a table, such as match = { sender = \"*@example.com\" }");
            continue;
          }
          matched = !match->empty();
          read_match(*match, rule);
        } else {
          unknown(name, name.str(), {"match", "tenant", "pool", "job"}, "key in [[rule]]");
        }
      }
      if (!matched) error(line, "a rule without match would be every message's; write match = { client = \"0.0.0.0/0\" } to mean that");
      if (rule.set_tenant.empty() && rule.set_pool.empty() && rule.set_job.empty()) {
        error(line, "the rule sets nothing; give it tenant, pool or job");
      }
      to_.mail_rules_.push_back(std::move(rule));
    }
  }

  void read_match(const toml::table& match, MailRule& rule) {
    for (const auto& [key, node] : match) {
      std::string_view name = key.str();
      std::vector<std::string> values;
      if (auto one = node.value_exact<std::string>()) values.push_back(*one);
      if (const toml::array* array = name == "client" ? node.as_array() : nullptr) {
        for (const toml::node& each_one : *array) values.push_back(each_one.value_or(std::string()));
      }
      std::string* to = name == "account"     ? &rule.account
                        : name == "sender"    ? &rule.sender
                        : name == "recipient" ? &rule.recipient
                        : name == "pool"      ? &rule.pool
                        : name == "job"       ? &rule.job
                                              : nullptr;
      if (!to && name != "client") {
        unknown(key, name, {"client", "account", "sender", "recipient", "pool", "job"}, "key in match");
      } else if (values.empty() || values[0].empty()) {
        error(line_of(key), fmt::format("{}: expects a text in quotes", name));
      } else if (to) {
        *to = lower(values[0]);
      } else {
        for (const std::string& value : values) {
          auto network = reactor::Network::parse(value);
          if (network) {
            rule.clients.push_back(*network);
          } else {
            error(line_of(key), fmt::format("client: {}", network.error().text));
          }
        }
      }
    }
  }

  void check_providers() {
    for (const auto& [line, name] : fresh_) {
      const Provider* provider = to_.provider(name);
      if (provider->hosts.empty() && provider->suffixes.empty() && provider->domains.empty()) {
        std::vector<std::string_view> known;
        for (const auto& each_one : to_.providers_) known.push_back(each_one->name);
        known.erase(std::find(known.begin(), known.end(), name));
        std::string_view near = nearest(name, known);
        error(line, fmt::format("provider {} can never match: give it mx = [\"*.example.net\"] or domains{}", name,
                                near.empty() ? "" : fmt::format(", or did you mean {}?", near)));
      }
    }
    for (const auto& [line, name] : uses_) {
      if (!to_.provider(name)) error(line, fmt::format("provider '{}' is neither built in nor in this file", name));
    }
    // What the file gives to a provider it takes from the built-in ones.
    for (auto& provider : to_.providers_) {
      auto drop = [&](std::vector<std::string>& list, std::string_view mark) {
        std::erase_if(list, [&](const std::string& text) {
          auto at = owners_.find(std::string(mark) + text);
          return at != owners_.end() && at->second.first != provider->name;
        });
      };
      drop(provider->suffixes, "");
      drop(provider->hosts, "");
      drop(provider->domains, "@");
    }
  }

  Shaping& to_;
  std::string_view raw_;
  const std::string& file_;
  const std::vector<Source>& sources_;
  std::vector<std::pair<unsigned, std::string>> errors_;  // by line
  std::vector<std::pair<unsigned, std::string>> fresh_, uses_;
  std::map<std::string, unsigned> lines_;
  std::map<std::string, std::pair<std::string, unsigned>> owners_;  // of the file's patterns
};

void Shaping::add_built_in() {
  for (const BuiltIn& row : built_in_table()) {
    auto provider = std::make_unique<Provider>();
    provider->name = row.name;
    for (std::string_view mx : row.mx) {
      if (mx.starts_with("*.")) {
        provider->suffixes.emplace_back(mx.substr(1));
      } else {
        provider->hosts.emplace_back(mx);
      }
    }
    for (std::string_view domain : row.domains) provider->domains.emplace_back(domain);
    auto set = [&](Key key, uint64_t number) {
      if (number > 0) provider->built_in[key] = {true, number, {}, "built in"};
    };
    set(Key::connections, row.connections);
    set(Key::messages_per_connection, row.messages_per_connection);
    set(Key::recipients_per_transaction, row.recipients_per_transaction);
    providers_.push_back(std::move(provider));
  }
}

// Leaves us one part in `parts` of what is about more than one connection or transaction.
void Shaping::divide(uint32_t parts) {
  auto divide_rates = [&](std::vector<Rate>& rates) {
    for (Rate& rate : rates) rate = part_of(rate, parts);
  };
  auto divide_section = [&](ShapingSection& section) {
    for (size_t i = 0; i < kShapingKeys; ++i) {
      const Key key = static_cast<Key>(i);
      ShapingValue& value = section.values[i];
      if (!value.given || (value.number == 0 && value.rates.empty())) continue;
      if (key == Key::messages_per_connection || key == Key::recipients_per_transaction) continue;
      value.where += fmt::format(", 1/{} of {}", parts, to_string(key, value));
      if (value.number > 0) value.number = part_of(static_cast<uint32_t>(value.number), parts);
      divide_rates(value.rates);
    }
  };
  auto divide_all = [&](auto& sections) {
    for (auto& [name, section] : sections) divide_section(section);
  };
  for (ShapingSection* one : {&default_, &back_off_.section, &any_source_}) divide_section(*one);
  for (auto& provider : providers_) {
    for (ShapingSection* one : {&provider->built_in, &provider->section, &provider->total, &provider->back_off.section}) {
      divide_section(*one);
    }
    divide_all(provider->by_source);
  }
  divide_all(default_sources_);
  divide_all(domains_);
  divide_all(pools_);
  divide_all(tenants_);
  divide_all(jobs_);
  divide_all(sources_);
  divide_all(domain_sources_);
  divide_all(tenant_providers_);
  for (auto& [tenant, intake] : intakes_) divide_rates(intake.rates);
}

void Shaping::index() {
  for (const auto& provider : providers_) {
    for (const std::string& suffix : provider->suffixes) by_suffix_[suffix] = provider.get();
    for (const std::string& host : provider->hosts) by_host_[host] = provider.get();
    for (const std::string& domain : provider->domains) by_domain_[domain] = provider.get();
  }
}

Result<std::shared_ptr<const Shaping>> Shaping::parse(std::string_view text, const std::string& file,
                                                      const std::vector<Source>& sources, const Rate& destination_rate,
                                                      uint32_t limit_share) {
  auto shaping = std::make_shared<Shaping>();
  shaping->file_ = file;
  shaping->text_ = text;
  for (const Source& source : sources) {
    auto same = [&](const Source& other) { return other.ehlo_name == source.ehlo_name; };
    bool alone = !source.ehlo_name.empty() && std::count_if(sources.begin(), sources.end(), same) == 1;
    const reactor::Address& address = source.ipv4.empty() ? source.ipv6 : source.ipv4;
    auto number = static_cast<unsigned>(shaping->source_names_.size());
    shaping->source_names_.push_back(alone ? lower(source.ehlo_name) : address.host_string());
    for (const reactor::Address* each_one : {&source.ipv4, &source.ipv6}) {
      if (!each_one->empty()) shaping->sources_by_name_[each_one->host_string()] = number;
    }
    if (alone) shaping->sources_by_name_[lower(source.ehlo_name)] = number;
  }
  shaping->add_built_in();
  std::string wrong = ShapingReader(*shaping, file, sources).read(text);
  if (!wrong.empty()) return fail(std::move(wrong));
  if (destination_rate.limited()) {
    ShapingValue& any = shaping->domains_["*"][ShapingKey::attempt_rate];
    if (!any.given) any = {true, 0, {destination_rate}, "--destination-rate"};
  }
  if (limit_share > 1) shaping->divide(limit_share);
  shaping->index();
  return std::shared_ptr<const Shaping>(std::move(shaping));
}

const Provider* Shaping::provider_of(std::string_view domain, std::span<const std::string_view> hosts) const {
  if (auto at = by_domain_.find(domain); at != by_domain_.end()) return at->second;
  const Provider* all = nullptr;
  for (std::string_view host : hosts) {
    if (host.ends_with('.')) host.remove_suffix(1);
    const Provider* found = nullptr;
    if (auto at = by_host_.find(host); at != by_host_.end()) {
      found = at->second;
    } else {
      // From the left, so the longest suffix comes first.
      for (size_t dot = host.find('.'); dot != std::string_view::npos && !found; dot = host.find('.', dot + 1)) {
        if (auto suffix = by_suffix_.find(host.substr(dot)); suffix != by_suffix_.end()) found = suffix->second;
      }
    }
    // Hosts of several providers side by side: nobody's limits fit all of them.
    if (!found || (all && found != all)) return nullptr;
    all = found;
  }
  return all;
}

std::string Shaping::source_name(unsigned source) const {
  return source < source_names_.size() ? source_names_[source] : fmt::format("{}", source);
}

unsigned Shaping::source_of(std::string_view pool, uint64_t hash, unsigned sources) const {
  if (sources <= 1) return 0;
  if (!pool.empty()) {
    if (auto at = pool_sources_.find(pool); at != pool_sources_.end()) {
      uint64_t sum = 0;
      for (const Weight& each : at->second) sum += each.weight;
      uint64_t left = hash % sum;
      for (const Weight& each : at->second) {
        if (left < each.weight) return each.source;
        left -= each.weight;
      }
    }
    if (auto at = sources_by_name_.find(lower(pool)); at != sources_by_name_.end()) return at->second;
  }
  return static_cast<unsigned>(hash % sources);
}

bool matches_pattern(std::string_view pattern, std::string_view text) {
  auto same = [](char a, char b) {
    auto low = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
    return low(a) == low(b);
  };
  // One '*' remembered is enough: an earlier one need not take more than it has.
  size_t p = 0, t = 0, star = std::string_view::npos, from = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      from = t;
    } else if (p < pattern.size() && same(pattern[p], text[t])) {
      ++p, ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++from;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

const Provider* Shaping::provider(std::string_view name) const {
  for (const auto& provider : providers_) {
    if (provider->name == name) return provider.get();
  }
  return nullptr;
}

// `section` is more specific than what `choice` holds.
void Shaping::layer(ShapingChoice& choice, const ShapingSection& section) {
  for (size_t i = 0; i < kShapingKeys; ++i) {
    if (section.values[i].given) choice[i] = &section.values[i];
  }
}

ShapingChoice Shaping::named(const Sections& sections, std::string_view name) {
  ShapingChoice choice{};
  if (sections.empty() || name.empty()) return choice;
  if (auto any = sections.find("*"); any != sections.end()) layer(choice, any->second);
  if (auto at = sections.find(name); at != sections.end()) layer(choice, at->second);
  return choice;
}

const IntakeRates* Shaping::intake(std::string_view tenant) const {
  if (intakes_.empty() || tenant.empty()) return nullptr;
  auto at = intakes_.find(tenant);
  if (at == intakes_.end() || !at->second.said) at = intakes_.find("*");
  return at == intakes_.end() ? nullptr : &at->second;
}

Standing Shaping::standing(std::string_view tenant, std::string_view pool, std::string_view job) const {
  Standing standing;
  auto layer_of = [](const Shares& shares, std::string_view name, auto apply) {
    if (shares.empty() || name.empty()) return;
    if (auto any = shares.find("*"); any != shares.end()) apply(any->second);
    if (auto at = shares.find(name); at != shares.end()) apply(at->second);
  };
  auto priority = [&](const Share& share) {
    if (share.priority_said) standing.transactional = share.transactional;
  };
  layer_of(tenant_shares_, tenant, [&](const Share& share) {
    if (share.weight > 0) standing.tenant_weight = share.weight;
    priority(share);
  });
  layer_of(pool_shares_, pool, priority);
  layer_of(job_shares_, job, [&](const Share& share) {
    if (share.weight > 0) standing.job_weight = share.weight;
    priority(share);
  });
  return standing;
}

ShapingChoice Shaping::pair(const Provider* provider, unsigned source) const {
  ShapingChoice choice{};
  layer(choice, default_);
  if (auto at = default_sources_.find(source); at != default_sources_.end()) layer(choice, at->second);
  if (!provider) return choice;
  layer(choice, provider->built_in);
  layer(choice, provider->section);
  if (auto at = provider->by_source.find(source); at != provider->by_source.end()) layer(choice, at->second);
  return choice;
}

ShapingChoice Shaping::backed_off(const Provider* provider, unsigned source) const {
  static const ShapingSection built_in_section = [] {
    ShapingSection section;
    section[Key::connections] = {true, 1, {}, "built in, for back-off"};
    return section;
  }();
  ShapingChoice choice = pair(provider, source);
  layer(choice, built_in_section);
  layer(choice, back_off_.section);
  if (provider) layer(choice, provider->back_off.section);
  return choice;
}

int64_t Shaping::normal_after_ms(const Provider* provider) const {
  if (provider && provider->back_off.normal_after_ms > 0) return provider->back_off.normal_after_ms;
  return back_off_.normal_after_ms > 0 ? back_off_.normal_after_ms : kNormalAfterMs;
}

const ReplyRule* Shaping::match_reply(const Provider* provider, uint16_t code, std::string_view text) const {
  if (provider) {
    if (const ReplyRule* rule = provider->replies.match(code, text)) return rule;
  }
  return replies_.match(code, text);
}

ShapingChoice Shaping::provider_total(const Provider* provider) const {
  ShapingChoice choice{};
  if (provider) layer(choice, provider->total);
  return choice;
}

TlsLevel Shaping::tls_of(std::string_view domain, TlsLevel otherwise) const {
  if (tls_.empty()) return otherwise;
  auto at = tls_.find(domain);
  if (at == tls_.end()) at = tls_.find("*");
  return at == tls_.end() ? otherwise : at->second;
}

const Deliver* Shaping::deliver_of(std::string_view domain) const {
  if (deliver_.empty()) return nullptr;
  auto at = deliver_.find(domain);
  return at == deliver_.end() ? nullptr : &at->second;
}

std::vector<std::string> Shaping::folders() const {
  std::vector<std::string> out;
  const auto add = [&](const Deliver& deliver) {
    if (deliver.to == Deliver::To::file) out.push_back(deliver.path);
  };
  for (const auto& [domain, deliver] : deliver_) add(deliver);
  for (const auto& provider : providers_) {
    if (provider->deliver) add(*provider->deliver);
  }
  return out;
}

ShapingChoice Shaping::domain(std::string_view domain) const { return named(domains_, domain); }

ShapingChoice Shaping::domain_source(std::string_view domain, unsigned source) const {
  ShapingChoice choice{};
  if (domain_sources_.empty()) return choice;
  if (auto at = domain_sources_.find({std::string(domain), source}); at != domain_sources_.end()) {
    layer(choice, at->second);
  }
  return choice;
}

ShapingChoice Shaping::source(unsigned source) const {
  ShapingChoice choice{};
  layer(choice, any_source_);
  if (auto at = sources_.find(source); at != sources_.end()) layer(choice, at->second);
  return choice;
}

ShapingChoice Shaping::tenant_provider(std::string_view tenant, const Provider* provider) const {
  ShapingChoice choice{};
  if (tenant_providers_.empty() || !provider || tenant.empty()) return choice;
  for (std::string_view name : {std::string_view("*"), tenant}) {
    if (auto at = tenant_providers_.find({std::string(name), provider->name}); at != tenant_providers_.end()) {
      layer(choice, at->second);
    }
  }
  return choice;
}

}  // namespace millrace::config
