// The shaping file (--shaping): how fast mail may go to whom, from where and for whom. Read whole,
// checked whole, immutable; part of the configuration's snapshot. docs/shaping.md is its page.
//
// A section names a scope, and its limits are that scope's own:
//
//   [default]                          each (provider, source), where a site without a provider is
//   [provider.NAME]                    its own
//   [default.source.NAME]  [provider.NAME.source.NAME]
//   [provider.NAME.total]              a provider, all sources together
//   [domain.NAME]  [domain.NAME.source.NAME]
//   [source.NAME]  [pool.NAME]  [tenant.NAME]  [job.NAME]  [tenant.NAME.provider.NAME]
//
// "*" for the name of a domain, source, pool, tenant or job means each of them. Where several sections
// speak of the same scope, the most specific one that has the key wins, key by key; where it was
// written stays with the value. Unknown keys, wrong units and rules that can never match are errors
// with file, line and remedy, all reported at once.
//
// Limits: a built-in provider's own numbers (docs/shaping.md) are less specific than any written ones
// for the same provider, and more specific than [default].
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "config/config.h"

namespace millrace::config {

enum class ShapingKey : uint8_t {
  connections,                 // open at a time
  in_flight,                   // transactions at a time
  connect_rate,                // new connections
  attempt_rate,                // transactions begun
  message_rate,                // messages accepted by the receiver
  recipient_rate,              // recipients attempted
  byte_rate,                   // octets of content attempted
  messages_per_connection,
  recipients_per_transaction,
};
inline constexpr size_t kShapingKeys = 9;
std::string_view to_string(ShapingKey key);

struct ShapingValue {
  bool given = false;
  uint64_t number = 0;      // 0: none, no limit
  std::vector<Rate> rates;  // empty: none, no limit; several windows hold together
  std::string where;        // "shaping.toml:12", "built in", "--destination-connections"
};
// As the file writes it: "20", "600/m, 20000/d", "none".
std::string to_string(ShapingKey key, const ShapingValue& value);

struct ShapingSection {
  std::array<ShapingValue, kShapingKeys> values;
  const ShapingValue& operator[](ShapingKey key) const { return values[static_cast<size_t>(key)]; }
  ShapingValue& operator[](ShapingKey key) { return values[static_cast<size_t>(key)]; }
  bool empty() const {
    for (const ShapingValue& value : values) {
      if (value.given) return false;
    }
    return true;
  }
};

// How the mail of a pool, tenant or job stands among what waits for the same thing.
struct Share {
  uint32_t weight = 0;      // 0: not said
  bool priority_said = false;
  bool transactional = false;
};
// What a tenant may hand in: recipients of accepted messages over sliding windows.
struct IntakeRates {
  bool said = false;
  std::vector<Rate> rates;  // empty: none
};
struct Standing {
  uint32_t tenant_weight = 1, job_weight = 1;
  bool transactional = false;
};

// What holds for one scope: of each key the most specific value, or nullptr. Points into the Shaping.
using ShapingChoice = std::array<const ShapingValue*, kShapingKeys>;
inline const ShapingValue* at(const ShapingChoice& choice, ShapingKey key) {
  return choice[static_cast<size_t>(key)];
}

// What a line "reply /regex/ action..." asks for when a receiver's refusal matches it.
struct ReplyRule {
  bool back_off = false;        // mode=backoff
  bool suspend_source = false;  // disable-source-ip, for rest_ms
  bool defer_queue = false;     // for rest_ms
  bool bounce_queue = false;
  int64_t rest_ms = 0;          // 0: as --hold says
  std::string where;
};
// Compiled together: one pass over the text, linear in its length whatever the patterns are.
class ReplyRules {
 public:
  ReplyRules();
  ~ReplyRules();
  ReplyRules(ReplyRules&&) noexcept;
  ReplyRules& operator=(ReplyRules&&) noexcept;
  bool empty() const { return rules_.empty(); }
  // The first that matches "CODE TEXT", or nullptr.
  const ReplyRule* match(uint16_t code, std::string_view text) const;

 private:
  friend class ShapingReader;
  struct Set;
  std::unique_ptr<Set> set_;
  std::vector<ReplyRule> rules_;
};

// Limits while a (provider, source) is backed off, and when that ends.
struct BackOff {
  ShapingSection section;
  int64_t normal_after_ms = 0;  // after the last reply that asked for it; 0: not said
};

// Where mail goes in place of its receiver's hosts: `deliver` of [domain.NAME] and [provider.NAME].
struct Deliver {
  enum class To : uint8_t {
    smtp,     // to its hosts after all, whatever is said of "*"
    discard,  // nowhere: answered with `reply`
    file,     // one file each in the folder `path`
    lmtp,     // RFC 2033, to the Unix socket `path` or else to `hop`
  } to = To::smtp;
  std::string reply;  // "250 2.0.0 discarded"
  std::string path;
  NextHop hop;
  std::string where;
};
// "discard", "discard 451 4.7.1 later", "file:/FOLDER", "lmtp:/SOCKET", "lmtp://HOST:PORT", "smtp". Touches no file.
Result<Deliver> parse_deliver(std::string_view text);

struct Provider {
  std::string name;
  std::vector<std::string> suffixes;  // of MX host names, with the dot in front: ".google.com"
  std::vector<std::string> hosts;     // MX host names
  std::vector<std::string> domains;   // recipient domains, whatever their MX hosts are
  ShapingSection built_in, section, total;
  std::map<unsigned, ShapingSection> by_source;
  BackOff back_off;
  ReplyRules replies;
  std::optional<Deliver> deliver;
};

// Whose a message is and where it leaves: [[rule]]. All of what is given must match; patterns are
// case-free and may hold '*'.
struct MailRule {
  std::vector<reactor::Network> clients;
  std::string account, sender, recipient, pool, job;     // patterns; empty: any
  std::string set_tenant, set_pool, set_job;                  // empty: left as it is
  std::string where;
};
// `pattern`: '*' stands for any characters, none included.
bool matches_pattern(std::string_view pattern, std::string_view text);

class Shaping {
 public:
  // The whole rules; `text` is the content of `file` (for messages). Empty text: what is built in. `destination_rate`
  // is the attempt-rate of each domain for which the file gives none. `limit_share`: of each limit one part in so many.
  static Result<std::shared_ptr<const Shaping>> parse(std::string_view text, const std::string& file,
                                                      const std::vector<Source>& sources, const Rate& destination_rate = {},
                                                      uint32_t limit_share = 1);
  static std::shared_ptr<const Shaping> built_in() { return *parse({}, {}, {}); }

  // `hosts`: the MX hosts of the lowest preference, lower case. The recipient domain decides first, then a host
  // named whole, then the longest suffix; the hosts must agree. nullptr: the site stands for itself.
  const Provider* provider_of(std::string_view domain, std::span<const std::string_view> hosts) const;
  const Provider* provider(std::string_view name) const;

  // (provider, source); `provider` may be nullptr.
  ShapingChoice pair(const Provider* provider, unsigned source) const;
  ShapingChoice provider_total(const Provider* provider) const;
  ShapingChoice domain(std::string_view domain) const;
  ShapingChoice domain_source(std::string_view domain, unsigned source) const;
  ShapingChoice source(unsigned source) const;
  ShapingChoice pool(std::string_view pool) const { return named(pools_, pool); }
  ShapingChoice tenant(std::string_view tenant) const { return named(tenants_, tenant); }
  ShapingChoice job(std::string_view job) const { return named(jobs_, job); }
  ShapingChoice tenant_provider(std::string_view tenant, const Provider* provider) const;

  // Weights of [tenant.NAME] and [job.NAME]; the priority of the job, else of the pool, else of the tenant.
  Standing standing(std::string_view tenant, std::string_view pool, std::string_view job) const;
  // nullptr: nothing is said.
  const IntakeRates* intake(std::string_view tenant) const;
  // Whether any mail is transactional: then a tenth of each budget of an hour or longer is kept for it.
  bool reserves() const { return reserves_; }

  // (provider, source) while it is backed off: the back-off sections over what holds normally.
  ShapingChoice backed_off(const Provider* provider, unsigned source) const;
  int64_t normal_after_ms(const Provider* provider) const;
  // What the operator has written about a 4xx or 5xx reply: the provider's lines first. nullptr: nothing.
  // What the domain's section says of TLS, or `otherwise`.
  TlsLevel tls_of(std::string_view domain, TlsLevel otherwise) const;
  // What the section of `domain`, or of "*", says of where its mail goes; nullptr: nothing.
  const Deliver* deliver_of(std::string_view domain) const;
  const Deliver* deliver_of_any() const { return deliver_of("*"); }
  // Some provider's mail goes elsewhere, so that MX hosts matter.
  bool providers_deliver() const { return providers_deliver_; }
  // Folders that mail is written into.
  std::vector<std::string> folders() const;
  const ReplyRule* match_reply(const Provider* provider, uint16_t code, std::string_view text) const;

  // The source of a message that has this hash: of the pool's by weight, the one that the pool names,
  // or of all.
  unsigned source_of(std::string_view pool, uint64_t hash, unsigned sources) const;
  // In the order of the file; the first that matches and sets a field decides that field.
  const std::vector<MailRule>& mail_rules() const { return mail_rules_; }

  const std::string& file() const { return file_; }
  // The EHLO name of a source, or its address where that is nobody's alone.
  std::string source_name(unsigned source) const;
  const std::string& text() const { return text_; }  // what the file held
  const std::vector<std::unique_ptr<Provider>>& providers() const { return providers_; }
  // Whether anything is limited for domains, pools, tenants or jobs at all.
  bool has_domains() const { return !domains_.empty() || !domain_sources_.empty(); }

 private:
  friend class ShapingReader;
  using Sections = std::map<std::string, ShapingSection, std::less<>>;
  static void layer(ShapingChoice& choice, const ShapingSection& section);
  static ShapingChoice named(const Sections& sections, std::string_view name);
  void add_built_in();
  void divide(uint32_t parts);
  void index();

  std::string file_, text_;
  std::vector<std::string> source_names_;
  std::vector<std::unique_ptr<Provider>> providers_;
  std::map<std::string, const Provider*, std::less<>> by_suffix_, by_host_, by_domain_;
  ShapingSection default_;
  BackOff back_off_;
  ReplyRules replies_;
  std::map<unsigned, ShapingSection> default_sources_;
  Sections domains_, pools_, tenants_, jobs_;
  using Shares = std::map<std::string, Share, std::less<>>;
  std::map<std::string, IntakeRates, std::less<>> intakes_;  // by tenant
  Shares pool_shares_, tenant_shares_, job_shares_;
  bool reserves_ = false;
  struct Weight {
    unsigned source;
    uint32_t weight;
  };
  std::map<std::string, std::vector<Weight>, std::less<>> pool_sources_;
  std::map<std::string, unsigned, std::less<>> sources_by_name_;  // EHLO name (if one's alone) or address
  std::map<std::string, TlsLevel, std::less<>> tls_;  // by domain, or "*"
  std::map<std::string, Deliver, std::less<>> deliver_;  // by domain, or "*"
  bool providers_deliver_ = false;
  std::vector<MailRule> mail_rules_;
  std::map<unsigned, ShapingSection> sources_;
  ShapingSection any_source_;
  std::map<std::pair<std::string, unsigned>, ShapingSection> domain_sources_;
  std::map<std::pair<std::string, std::string>, ShapingSection> tenant_providers_;
};

}  // namespace millrace::config
