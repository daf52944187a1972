#include "config/credentials.h"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <optional>

#include "auth/crypto.h"
#include "auth/server_exchange.h"
#include "config/values.h"
#include "mail/address.h"

namespace millrace::config {
namespace {

constexpr std::string_view kKeys[] = {"password", "scram-sha-256", "networks", "senders", "tenant", "pools", "sources",
                                      "recipients-per-hour", "recipients-per-day", "auto-freeze"};
constexpr int64_t kMostRecipients = 1'000'000'000'000;

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return out;
}

bool has_control(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

// As the table has it: the local part as given, the domain in lower case.
std::string sender_form(std::string_view mailbox) {
  const size_t at = mailbox.rfind('@');
  if (at == mailbox.npos) return lower(mailbox);
  return std::string(mailbox.substr(0, at + 1)) + lower(mailbox.substr(at + 1));
}

}  // namespace

bool Account::allows_network(const reactor::Address& client) const {
  return networks.empty() || std::any_of(networks.begin(), networks.end(),
                                         [&](const reactor::Network& network) { return network.contains(client); });
}

bool Account::allows_sender(std::string_view mailbox) const {
  if (senders.empty() || mailbox.empty()) return true;
  const std::string form = sender_form(mailbox);
  const std::string_view whole = form;
  const size_t at = whole.rfind('@');
  if (at == whole.npos) return false;
  const std::string_view domain = whole.substr(at + 1);
  return std::any_of(senders.begin(), senders.end(), [&](const std::string& sender) {
    if (sender.starts_with("*.")) return domain.size() > sender.size() - 1 && domain.ends_with(std::string_view(sender).substr(1));
    return sender.find('@') == sender.npos ? domain == sender : whole == sender;
  });
}

bool Account::allows_pool(std::string_view pool) const {
  return pools.empty() || std::find(pools.begin(), pools.end(), pool) != pools.end();
}

const Account* Credentials::find(std::string_view name) const {
  auto at = accounts_.find(name);
  return at == accounts_.end() ? nullptr : &at->second;
}

class CredentialsReader {
 public:
  CredentialsReader(Credentials& to, const std::string& file, const std::vector<Source>& sources)
      : to_(to), file_(file), sources_(sources) {}

  std::string read(std::string_view text) {
    toml::table table;
    try {
      table = toml::parse(text, file_);
    } catch (const toml::parse_error& error) {
      // The description may repeat what it stumbled over, which may be a secret: only its place is told.
      return fmt::format("{}:{}: not TOML; an account is [account.NAME] and its keys below, texts in quotation marks",
                         file_, error.source().begin.line);
    }
    for (const auto& [key, node] : table) {
      if (key.str() != "account") {
        error(line_of(key), fmt::format("unknown section '{}'; an account is [account.NAME]", printable(key.str())));
        continue;
      }
      const toml::table* all = node.as_table();
      if (!all) {
        error(line_of(key), "account needs a name: write [account.NAME]");
        continue;
      }
      for (const auto& [name, one] : *all) {
        if (const toml::table* section = one.as_table()) {
          read_account(name, *section);
        } else {
          error(line_of(name), "account needs a name: write [account.NAME] and its keys below it");
        }
      }
    }
    std::stable_sort(errors_.begin(), errors_.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::string out;
    for (const auto& [line, error] : errors_) out += (out.empty() ? "" : "\n") + error;
    return out;
  }

 private:
  static std::string printable(std::string_view text) {
    std::string out(text.substr(0, 64));
    for (char& c : out) c = static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
    return out;
  }
  static unsigned line_of(const toml::key& key) { return static_cast<unsigned>(key.source().begin.line); }
  static unsigned line_of(const toml::node& node) { return static_cast<unsigned>(node.source().begin.line); }
  void error(unsigned line, std::string text) {
    errors_.emplace_back(line, fmt::format("{}:{}: {}", file_, line, text));
  }

  std::string text_of(const toml::key& key, const toml::node& node) {
    auto text = node.value<std::string>();
    if (!node.is_string() || !text || text->empty() || has_control(*text)) {
      error(line_of(key), fmt::format("{} is a text in quotation marks", key.str()));
      return {};
    }
    return *text;
  }
  std::vector<std::string> texts_of(const toml::key& key, const toml::node& node) {
    std::vector<std::string> texts;
    const toml::array* list = node.as_array();
    if (!list || list->empty()) {
      error(line_of(key), fmt::format("{} is a list of texts, such as {} = [\"...\"]; leave it out to allow all", key.str(), key.str()));
      return texts;
    }
    for (const toml::node& one : *list) {
      auto text = one.value<std::string>();
      if (!one.is_string() || !text || text->empty() || has_control(*text)) {
        error(line_of(one), fmt::format("{}: each is a text in quotation marks", key.str()));
        continue;
      }
      texts.push_back(*text);
    }
    return texts;
  }
  uint64_t number_of(const toml::key& key, const toml::node& node) {
    auto number = node.value<int64_t>();
    if (!node.is_integer() || *number < 1 || *number > kMostRecipients) {
      error(line_of(key), fmt::format("{} is a number from 1 to {}; leave it out for no limit", key.str(), kMostRecipients));
      return 0;
    }
    return static_cast<uint64_t>(*number);
  }

  void read_account(const toml::key& name, const toml::table& section) {
    Account account;
    account.name = name.str();
    if (account.name.empty() || account.name.size() > auth::kLongestUser || has_control(account.name)) {
      error(line_of(name), fmt::format("an account's name has 1 to {} octets and no control characters", auth::kLongestUser));
      return;
    }
    for (const auto& [key, node] : section) {
      const std::string_view what = key.str();
      if (what == "password") {
        account.secret.crypt = text_of(key, node);
        if (account.secret.crypt.empty()) continue;
        if (Status good = auth::check_crypt_hash(account.secret.crypt); !good) error(line_of(key), "password: " + good.error().text);
      } else if (what == "scram-sha-256") {
        const std::string text = text_of(key, node);
        if (text.empty()) continue;
        auto verifier = auth::parse_scram_verifier(text);
        if (verifier) {
          account.secret.scram = std::move(*verifier);
        } else {
          error(line_of(key), "scram-sha-256: " + verifier.error().text);
        }
      } else if (what == "networks") {
        for (const std::string& text : texts_of(key, node)) {
          auto network = reactor::Network::parse(text);
          if (network) {
            account.networks.push_back(*network);
          } else {
            error(line_of(key), fmt::format("networks: '{}' is no network; write for instance 192.0.2.0/24 or 2001:db8::/32", text));
          }
        }
      } else if (what == "senders") {
        for (const std::string& text : texts_of(key, node)) read_sender(account, key, text);
      } else if (what == "tenant") {
        account.tenant = text_of(key, node);
      } else if (what == "pools") {
        account.pools = texts_of(key, node);
      } else if (what == "sources") {
        for (const std::string& text : texts_of(key, node)) read_source(account, key, text);
      } else if (what == "recipients-per-hour") {
        account.recipients_per_hour = number_of(key, node);
      } else if (what == "recipients-per-day") {
        account.recipients_per_day = number_of(key, node);
      } else if (what == "auto-freeze") {
        auto given = node.value<bool>();
        if (node.is_boolean()) {
          account.auto_freeze = *given;
        } else {
          error(line_of(key), "auto-freeze is true or false");
        }
      } else {
        const std::vector<std::string_view> known(std::begin(kKeys), std::end(kKeys));
        const std::string_view near = nearest(what, known);
        error(line_of(key), fmt::format("unknown key '{}'{}", printable(what),
                                        near.empty() ? fmt::format("; known are {}", fmt::join(known, ", "))
                                                     : fmt::format("; did you mean {}?", near)));
      }
    }
    if (!section.contains("password") && !section.contains("scram-sha-256")) {
      error(line_of(name), fmt::format("account {} has neither password nor scram-sha-256; 'millracectl passwd NAME' writes both",
                                       printable(account.name)));
    }
    if (account.recipients_per_day > 0 && account.recipients_per_hour > account.recipients_per_day) {
      error(line_of(name), "recipients-per-hour is more than recipients-per-day, so it never limits; lower it or leave it out");
    }
    to_.accounts_.emplace(account.name, std::move(account));
  }

  void read_sender(Account& account, const toml::key& key, const std::string& text) {
    const size_t at = text.rfind('@');
    const std::string_view domain = std::string_view(text).substr(at == text.npos ? (text.starts_with("*.") ? 2 : 0) : at + 1);
    if (at == 0 || domain.empty() || domain.find_first_of(" <>,@") != domain.npos) {
      error(line_of(key), fmt::format("senders: '{}' is no domain or address; write for instance example.com, *.example.com "
                                      "(what is below it) or news@example.com", text));
      return;
    }
    account.senders.push_back(sender_form(text));
  }

  void read_source(Account& account, const toml::key& key, const std::string& text) {
    const std::string name = lower(text);
    std::vector<unsigned> found;
    for (unsigned i = 0; i < sources_.size(); ++i) {
      const Source& source = sources_[i];
      if ((!source.ipv4.empty() && name == source.ipv4.host_string()) || (!source.ipv6.empty() && name == source.ipv6.host_string()) ||
          (!source.ehlo_name.empty() && name == lower(source.ehlo_name))) {
        found.push_back(i);
      }
    }
    if (found.empty()) {
      error(line_of(key), fmt::format("sources: '{}' is none of --source; name one by its EHLO name or an address", text));
      return;
    }
    account.sources.insert(account.sources.end(), found.begin(), found.end());
  }

  Credentials& to_;
  const std::string& file_;
  const std::vector<Source>& sources_;
  std::vector<std::pair<unsigned, std::string>> errors_;
};

Result<std::shared_ptr<const Credentials>> Credentials::parse(std::string_view text, const std::string& file,
                                                              const std::vector<Source>& sources) {
  auto made = std::make_shared<Credentials>();
  made->text_ = text;
  if (std::string wrong = CredentialsReader(*made, file, sources).read(text); !wrong.empty()) return fail(std::move(wrong));
  std::string crypt;
  for (const auto& [name, account] : made->accounts_) {
    if (account.secret.scram && made->scram_iterations_ == 0) made->scram_iterations_ = account.secret.scram->iterations;
    if (crypt.empty()) crypt = account.secret.crypt;
  }
  if (!made->accounts_.empty()) {
    if (!crypt.empty() || !made->has_scram()) {
      made->decoy_.crypt = auth::make_decoy_hash(crypt);
    } else {
      made->decoy_.scram = auth::make_scram_verifier("", auth::random_octets(auth::kSaltSize), made->scram_iterations_);
      made->decoy_.scram->stored_key = auth::random_octets(auth::kDigestSize);
    }
  }
  return std::shared_ptr<const Credentials>(std::move(made));
}

namespace {

// A name as TOML writes it in a section's title.
std::string title_of(std::string_view account) {
  const bool bare = !account.empty() && std::all_of(account.begin(), account.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
  });
  if (bare) return fmt::format("[account.{}]", account);
  std::string quoted;
  for (char c : account) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return fmt::format("[account.\"{}\"]", quoted);
}

// The key that a line sets; empty: none.
std::string_view key_of(std::string_view line) {
  while (line.starts_with(' ') || line.starts_with('\t')) line.remove_prefix(1);
  const size_t end = line.find_first_of(" \t=");
  return end == line.npos ? std::string_view() : line.substr(0, end);
}

}  // namespace

Result<std::string> set_password(std::string_view text, std::string_view account, std::string_view crypt,
                                 std::string_view scram) {
  if (account.empty() || account.size() > auth::kLongestUser || has_control(account)) {
    return fail(fmt::format("an account's name has 1 to {} octets and no control characters", auth::kLongestUser));
  }
  unsigned line = 0;   // of its section, from 1; 0: none
  try {
    toml::table table = toml::parse(text);
    if (const toml::table* found = table["account"].as_table()) {
      for (const auto& [key, node] : *found) {
        if (key.str() == account) line = static_cast<unsigned>(node.source().begin.line);
      }
    }
  } catch (const toml::parse_error& error) {
    return fail(fmt::format("line {} is not TOML", error.source().begin.line));
  }
  const std::string lines = fmt::format("password = \"{}\"\nscram-sha-256 = \"{}\"\n", crypt, scram);
  if (line == 0) {
    std::string out(text);
    if (!out.empty() && !out.ends_with('\n')) out += '\n';
    return out + (out.empty() ? "" : "\n") + title_of(account) + "\n" + lines;
  }
  std::string out;
  unsigned number = 0;
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    size_t end = std::min(text.find('\n', at), text.size() - 1) + 1;
    std::string_view one = text.substr(at, end - at);
    at = end;
    ++number;
    std::string_view trimmed = one;
    while (trimmed.starts_with(' ') || trimmed.starts_with('\t')) trimmed.remove_prefix(1);
    if (inside && trimmed.starts_with('[')) inside = false;
    if (inside && (key_of(one) == "password" || key_of(one) == "scram-sha-256")) continue;
    out += one;
    if (number == line) {
      if (!trimmed.starts_with('[')) return fail(fmt::format("line {}: write the account as {} and its keys below it", number, title_of(account)));
      if (!out.ends_with('\n')) out += '\n';
      out += lines;
      inside = true;
    }
  }
  // Whatever odd form the file has: only what reads back right is written.
  try {
    toml::table table = toml::parse(out);
    if (table["account"][account]["password"].value<std::string>() != std::string(crypt) ||
        table["account"][account]["scram-sha-256"].value<std::string>() != std::string(scram)) {
      return fail(fmt::format("the section of {} has a form that cannot be changed; edit it by hand", account));
    }
  } catch (const toml::parse_error&) {
    return fail(fmt::format("the section of {} has a form that cannot be changed; edit it by hand", account));
  }
  return out;
}

}  // namespace millrace::config
