#include "config/hop_credentials.h"

#include <fmt/format.h>
#include <string.h>
#include <toml++/toml.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "auth/crypto.h"
#include "config/values.h"

namespace millrace::config {
namespace {

constexpr std::string_view kKeys[] = {"user", "password", "password-file", "token-file", "mechanisms", "certificate", "key"};

bool has_control(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

}  // namespace

const HopCredentials* HopCredentialsFile::find(std::string_view host, uint16_t port) const {
  auto at = hops_.find(fmt::format("{}:{}", host, port));
  if (at == hops_.end()) at = hops_.find(host);
  return at == hops_.end() ? nullptr : &at->second;
}

class HopCredentialsReader {
 public:
  HopCredentialsReader(HopCredentialsFile& to, const std::string& file, const Config& config)
      : to_(to), file_(file), config_(config) {}

  std::string read(std::string_view text) {
    digested_ = text;
    toml::table table;
    try {
      table = toml::parse(text, file_);
    } catch (const toml::parse_error& error) {
      return fmt::format("{}:{}: not TOML; a next hop is [next-hop.\"NAME\"] and its keys below, texts in quotation marks",
                         file_, error.source().begin.line);
    }
    for (const auto& [key, node] : table) {
      const toml::table* all = node.as_table();
      if (key.str() != "next-hop" || !all) {
        error(key, "unknown section; a next hop is [next-hop.\"smtp.example.net\"]");
        continue;
      }
      for (const auto& [name, one] : *all) {
        if (const toml::table* section = one.as_table()) {
          read_hop(name, *section);
        } else {
          error(name, "next-hop needs a name in quotation marks: write [next-hop.\"smtp.example.net\"]");
        }
      }
    }
    to_.digest_ = auth::sha256(digested_);
    std::stable_sort(errors_.begin(), errors_.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::string out;
    for (const auto& [line, error] : errors_) out += (out.empty() ? "" : "\n") + error;
    return out;
  }

 private:
  void error(const toml::key& key, std::string text) {
    const auto line = static_cast<unsigned>(key.source().begin.line);
    errors_.emplace_back(line, fmt::format("{}:{}: {}", file_, line, text));
  }
  std::string text_of(const toml::key& key, const toml::node& node) {
    auto text = node.value<std::string>();
    if (!node.is_string() || !text || text->empty() || has_control(*text)) {
      error(key, fmt::format("{} is a text in quotation marks", key.str()));
      return {};
    }
    return *text;
  }
  // One line.
  std::string content_of(const toml::key& key, const toml::node& node) {
    const std::string path = text_of(key, node);
    if (path.empty()) return {};
    to_.files_.push_back(path);
    std::ifstream in(path, std::ios::binary);
    std::ostringstream content;
    content << in.rdbuf();
    std::string text = content.str();
    digested_ += text;
    while (text.ends_with('\n') || text.ends_with('\r')) text.pop_back();
    if (!in || text.empty() || has_control(text)) {
      error(key, fmt::format("{}: {} cannot be read, or is not one line of text", key.str(), path));
      return {};
    }
    return text;
  }

  void read_hop(const toml::key& name, const toml::table& section) {
    HopCredentials hop;
    auto parsed = parse_next_hop(name.str());
    if (!parsed || reactor::Address::parse_host(parsed->host, 0) || !is_host_name(parsed->host)) {
      error(name, "a next hop is named by its host name (an address has none that a certificate could be good for)");
      return;
    }
    unsigned secrets = 0;
    tls::CertificateFiles files;
    for (const auto& [key, node] : section) {
      const std::string_view what = key.str();
      if (what == "user") {
        hop.user = text_of(key, node);
      } else if (what == "password") {
        hop.secret = text_of(key, node);
        ++secrets;
      } else if (what == "password-file" || what == "token-file") {
        hop.secret = content_of(key, node);
        hop.token = what == "token-file";
        ++secrets;
      } else if (what == "mechanisms") {
        read_mechanisms(hop, key, node);
      } else if (what == "certificate") {
        files.chain = text_of(key, node);
      } else if (what == "key") {
        files.key = text_of(key, node);
      } else {
        const std::vector<std::string_view> known(std::begin(kKeys), std::end(kKeys));
        const std::string_view near = nearest(what, known);
        error(key, fmt::format("unknown key{}", near.empty() ? fmt::format("; known are {}", fmt::join(known, ", "))
                                                              : fmt::format("; did you mean {}?", near)));
      }
    }
    if (secrets > 1) error(name, "give one of password, password-file and token-file");
    if ((secrets > 0) != section.contains("user")) error(name, "a user needs a password, password-file or token-file, and these a user");
    if (files.chain.empty() != files.key.empty()) error(name, "a certificate needs its key, and a key its certificate");
    if (secrets == 0 && files.chain.empty()) error(name, "neither a user nor a certificate");
    if (!files.chain.empty() && !files.key.empty()) {
      to_.files_.push_back(files.chain);
      to_.files_.push_back(files.key);
      auto certificate = tls::read_certificate(files);
      if (certificate) {
        hop.certificate = std::move(*certificate);
        digested_ += hop.certificate.chain_pem + hop.certificate.key_pem;
      } else {
        error(name, certificate.error().text);
      }
    }
    for (const auto& [host, level] : config_.tls_for) {
      if (host == parsed->host && level != TlsLevel::verified) {
        error(name, fmt::format("--tls-for {} allows less than 'verified', and credentials go to no other host; take it away", host));
      }
    }
    to_.hops_.emplace(std::string(name.str()), std::move(hop));
  }

  void read_mechanisms(HopCredentials& hop, const toml::key& key, const toml::node& node) {
    const toml::array* list = node.as_array();
    if (!list || list->empty()) return error(key, "mechanisms is a list of texts; leave it out to allow all");
    for (const toml::node& one : *list) {
      auto found = auth::find_client_mechanism(one.value<std::string>().value_or(""));
      if (found) {
        hop.mechanisms.push_back(*found);
      } else {
        error(key, "mechanisms: known are SCRAM-SHA-256-PLUS, SCRAM-SHA-256, PLAIN, LOGIN, OAUTHBEARER and XOAUTH2");
      }
    }
  }

  HopCredentialsFile& to_;
  const std::string& file_;
  const Config& config_;
  std::string digested_;
  std::vector<std::pair<unsigned, std::string>> errors_;
};

Result<std::shared_ptr<const HopCredentialsFile>> HopCredentialsFile::parse(std::string_view text, const std::string& file,
                                                                            const Config& config) {
  auto made = std::make_shared<HopCredentialsFile>();
  if (std::string wrong = HopCredentialsReader(*made, file, config).read(text); !wrong.empty()) return fail(std::move(wrong));
  return std::shared_ptr<const HopCredentialsFile>(std::move(made));
}

}  // namespace millrace::config
