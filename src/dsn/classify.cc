#include "dsn/classify.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace millrace::dsn {
namespace {

constexpr int64_t kMinute = 60'000, kHour = 60 * kMinute;
constexpr int64_t kLongestRest = 24 * kHour;
constexpr size_t kTextRead = 1024;

// ---- the text as the rules see it: lower case, one line, no enhanced codes at line starts, no
// words with '@'; a blank at both ends, so that " word" finds a word's begin.
class Words {
 public:
  explicit Words(std::string_view text) {
    text = text.substr(0, kTextRead);
    buffer_[size_++] = ' ';
    while (!text.empty()) {
      size_t end = text.find('\n');
      std::string_view line = text.substr(0, end);
      if (mail::EnhancedStatus::parse_prefix(line))
        line.remove_prefix(std::min(line.find(' '), line.size()));
      add_line(line);
      if (end == std::string_view::npos) break;
      text.remove_prefix(end + 1);
    }
    if (buffer_[size_ - 1] != ' ') buffer_[size_++] = ' ';
    for (size_t i = 0; i + 1 < size_; ++i) {
      unsigned at = pair(buffer_[i], buffer_[i + 1]);
      pairs_[at / 64] |= uint64_t{1} << at % 64;
    }
  }

  std::string_view view() const { return {buffer_, size_}; }
  bool has(std::string_view word) const {
    // Nearly every word of the table is absent from nearly every text, and nearly always one of its
    // pairs of letters is, too.
    for (size_t i = 0; i + 1 < word.size(); ++i) {
      unsigned at = pair(word[i], word[i + 1]);
      if (!(pairs_[at / 64] >> at % 64 & 1)) return false;
    }
    return memmem(buffer_, size_, word.data(), word.size()) != nullptr;
  }
  // Any of "a|b|c".
  bool has_any(std::string_view words) const {
    while (!words.empty()) {
      size_t bar = words.find('|');
      if (has(words.substr(0, bar))) return true;
      if (bar == std::string_view::npos) return false;
      words.remove_prefix(bar + 1);
    }
    return false;
  }

 private:
  void add_line(std::string_view line) {
    if (buffer_[size_ - 1] != ' ') buffer_[size_++] = ' ';
    size_t word = size_;
    bool address = false;
    auto end_word = [&] {
      if (address) size_ = word;
      if (buffer_[size_ - 1] != ' ') buffer_[size_++] = ' ';
      word = size_;
      address = false;
    };
    for (char c : line) {
      if (c == ' ' || c == '\t' || c == '\r') {
        end_word();
        continue;
      }
      if (c == '@') address = true;
      buffer_[size_++] = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    }
    end_word();
  }

  static unsigned pair(char first, char second) {
    return (static_cast<unsigned>(first) & 63) << 6 | (static_cast<unsigned>(second) & 63);
  }

  // Each line adds at most one blank that was not there, in place of its '\n'.
  char buffer_[kTextRead + 8];
  uint64_t pairs_[64] = {};  // which pairs of letters the text holds, by their low six bits
  size_t size_ = 0;
};

// ---- the table

enum Classes : uint8_t { k4 = 1, k5 = 2, kAny = 3 };

// What a rule makes of a reply in a transaction. At the stages before it see opening() below.
enum class Meaning : uint8_t {
  recipient,    // defer or bounce, by class; scope recipient
  message,      // the same, scope message
  domain,       // the same, scope sender domain
  transaction,  // defer, scope transaction
  source,       // about our address here: 4xx holds, 5xx defers
  destination,  // about the receiver's own state: holds
};

struct Rule {
  uint8_t classes;
  uint16_t code;                      // 0: any
  int16_t subject;                    // of the enhanced status; -1: any
  int16_t detail_first, detail_last;  // -1: any
  std::string_view words;             // any of them must be there; empty: none need
  std::string_view also;              // and any of these
  Meaning meaning;
  Throttle throttle;
  Category category;
  int64_t rest_ms;
};

constexpr int16_t kX = -1;
using M = Meaning;
using T = Throttle;
using C = Category;

constexpr std::string_view kConcurrencyWords =
    "too many connections|too many concurrent|too many simultaneous|concurrent connection|"
    "simultaneous connection|connection limit|maximum number of connections|max connections|"
    "number of connections|connections from your|too many sessions";
constexpr std::string_view kVolumeWords =
    "rate limit|rate-limit|ratelimit|throttl|slow down|too fast|too quickly|too many messages|"
    "too many emails|too many mails|too much mail|unusual rate|sending rate|message rate|mail rate|"
    "unexpected volume|volume of mail|exceeded the rate|too frequent";
// Lists of addresses. What stands on a list of domains (URLs in the body) is found before.
constexpr std::string_view kListWords =
    "spamhaus|spamcop|barracudacentral|dnsbl|dnswl|rbl.|-rbl| rbl |sorbs|blocklist|block "
    "list|block-list|"
    "blacklist|black list|black-list|denylist|deny list|blocked using|listed at|listed by|listed "
    "on|"
    "listed in|cloudmark|senderscore|sender score|ip reputation|reputation of your ip|poor "
    "reputation|"
    "bad reputation|low reputation|banned sending ip|banned sender|ip address has been blocked|"
    "ip has been blocked|your ip is blocked|ip address is blocked|your network is on our|"
    "mail from your ip|mail from ip";
constexpr std::string_view kDomainListWords =
    "surbl|uribl|dbl.spamhaus|spamhaus dbl|url block|uri block";
constexpr std::string_view kNoMailboxWords =
    "user unknown|unknown user|no such user|user not found|user doesn't exist|user does not exist|"
    "does not exist|doesn't exist|doesn't have a|no such recipient|unknown recipient|recipient "
    "unknown|"
    "invalid recipient|recipient not found|recipient rejected|recipient address rejected|no "
    "mailbox here|"
    "no such mailbox|mailbox not found|mailbox unavailable|mailbox unknown|unknown mailbox|"
    "invalid mailbox|address unknown|unknown address|no such address|not a valid|not our customer|"
    "address rejected|unrouteable address|unroutable address|no longer valid";
constexpr std::string_view kFullWords =
    "mailbox full|mailbox is full|full mailbox|inbox is full|over quota|overquota|quota exceeded|"
    "exceeded quota|exceeds quota|exceeded storage|exceeded its quota|out of storage|"
    "storage allocation|insufficient quota|user is over|mailbox size";
constexpr std::string_view kInactiveWords =
    "inactive|disabled|deactivated|suspended|account has been closed|no longer active|not "
    "active|expired "
    "account|account expired|mailbox is locked|discontinued";
constexpr std::string_view kGreyWords =
    "greylist|graylist|grey list|gray list|grey-list|gray-list|greylisting";
constexpr std::string_view kRelayWords =
    "relaying denied|relay denied|relay access denied|unable to relay|relay not permitted|"
    "relaying not|not permitted to relay|cannot relay|not allowed to relay|relay not allowed|open "
    "relay|"
    "we do not relay|no relaying|relaying is not|relaying prohibited";
constexpr std::string_view kVirusWords = "virus|malware|trojan|infected|malicious|phish";
constexpr std::string_view kSpamWords = "spam|unsolicited|junk|bulk mail|ube |uce |complaint";
constexpr std::string_view kAuthWords =
    " spf|spf |spf-| dkim|dkim | dmarc|dmarc |not authenticated|unauthenticated email";
constexpr std::string_view kSenderWords =
    "sender rejected|sender address rejected|sender denied|invalid sender|sender verify|sender "
    "domain|"
    "bad sender|sender unknown|unknown sender|domain of sender|sender's domain|return path|from "
    "address";
constexpr std::string_view kContentWords =
    "content|attachment|header|message size|too large|too big|size limit|maximum message "
    "size|exceeds size|"
    "message-id|mime ";
constexpr std::string_view kReverseWords =
    "ptr |ptr-|(ptr)|reverse dns|reverse-dns|rdns|reverse hostname|reverse lookup|reverse record";

// Published codes: they say more exactly than any word what is meant.
constexpr Rule kPublished[] = {
    // Yahoo and AOL: about four hours of rest.
    {kAny, 0, kX, kX, kX, "[ts01]|[ts02]|[ts03]|[tss0", "", M::source, T::reputation,
     C::policy_related, 4 * kHour},
    // Microsoft, consumer: block lists, then limits.
    {kAny, 0, kX, kX, kX, "s3140|s3150", "", M::source, T::reputation, C::spam_related, 0},
    {kAny, 0, kX, kX, kX, "rp-001|rp-002|rp-003", "", M::source, T::reputation, C::policy_related,
     0},
    {k4, 0, 7, 652, 652, "", "", M::source, T::concurrency, C::policy_related, 0},
    {kAny, 0, kX, kX, kX, "s3115", "", M::source, T::concurrency, C::policy_related, 0},
    {k4, 0, 7, 650, 651, "", "", M::source, T::reputation, C::policy_related, 0},
    {k5, 0, 7, 515, 515, "", "", M::domain, T::none, C::policy_related, 0},
    // Microsoft 365: a banned address, a busy server.
    {k5, 0, 7, 606, 649, "", "", M::source, T::reputation, C::spam_related, 0},
    {k5, 0, 7, 511, 511, "", "", M::source, T::reputation, C::spam_related, 0},
    {k4, 0, 7, 500, 699, "", "", M::source, T::volume, C::policy_related, 0},
    {k5, 0, 4, 1, 1, "recipient address rejected: access denied", "", M::recipient, T::none,
     C::bad_mailbox, 0},
    // Gmail. x.7.28 is about whom its words name; x.7.23 and 25 are PTR records.
    {kAny, 0, 7, 28, 28, " spf | dkim | url |domain", "", M::domain, T::none, C::policy_related, 0},
    {kAny, 0, 7, 28, 28, "", "", M::source, T::volume, C::policy_related, 0},
    {kAny, 0, 7, 25, 25, "", "", M::source, T::none, C::bad_configuration, 0},
    {kAny, 0, 7, 23, 23, kReverseWords, "", M::source, T::none, C::bad_configuration, 0},
    {kAny, 0, 7, 20, 24, "", "", M::domain, T::none, C::policy_related, 0},  // RFC 7372
    {kAny, 0, 7, 26, 27, "", "", M::domain, T::none, C::policy_related, 0},
    {kAny, 0, 7, 29, 29, "", "", M::message, T::none, C::policy_related, 0},
    {kAny, 0, 7, 30, 32, "", "", M::domain, T::none, C::policy_related, 0},
    {kAny, 0, 7, 40, 40, "", "", M::domain, T::none, C::policy_related, 0},
    {k4, 451, 3, 0, 0, "domains in one|multiple destination domains|single transaction", "",
     M::transaction, T::none, C::protocol_errors, 0},
    // Comcast and Orange number their limits.
    {kAny, 0, kX, kX, kX, "rl0000", kConcurrencyWords, M::source, T::concurrency, C::policy_related,
     0},
    {kAny, 0, kX, kX, kX, "rl0000", "", M::source, T::volume, C::policy_related, 0},
    {kAny, 0, kX, kX, kX, "ofr004_104|ofr_104|ofr004_103", "", M::source, T::concurrency,
     C::policy_related, 0},
    {kAny, 0, kX, kX, kX, "ofr004_4|ofr_4|ofr_506", "", M::source, T::reputation, C::spam_related,
     0},
    // Apple: its content and policy filters.
    {k5, 0, kX, kX, kX, "[cs01]|[hm08]|[hm07]", "", M::message, T::none, C::spam_related, 0},
    {k4, 421, 7, 1, 1, "", "", M::source, T::volume, C::policy_related, 0},
};

// About our source, whatever the status says: a 5xx must not bounce mail that another day would
// take.
constexpr Rule kAboutSource[] = {
    {k5, 0, kX, kX, kX, "by the recipient|recipient has blocked|by recipient", "", M::recipient,
     T::none, C::policy_related, 0},
    {kAny, 0, kX, kX, kX, kDomainListWords, "", M::message, T::none, C::spam_related, 0},
    {kAny, 0, kX, kX, kX,
     "sender address|sender domain|sender's domain|from address|from domain|sending domain",
     "blacklist|blocklist|block list|black list|blocked|listed", M::domain, T::none,
     C::spam_related, 0},
    {kAny, 0, kX, kX, kX, kListWords, "", M::source, T::reputation, C::spam_related, 0},
    {kAny, 0, kX, kX, kX, kReverseWords, "", M::source, T::none, C::bad_configuration, 0},
};

// By enhanced status (RFC 3463, IANA registry), where the wording cannot say it better.
constexpr Rule kByStatus[] = {
    {kAny, 0, 1, 2, 2, "", "", M::recipient, T::none, C::bad_domain, 0},
    {kAny, 0, 1, 10, 10, "", "", M::recipient, T::none, C::bad_domain, 0},
    {kAny, 0, 1, 6, 6, "", "", M::recipient, T::none, C::inactive_mailbox, 0},
    {kAny, 0, 1, 7, 9, "", "", M::message, T::none, C::invalid_sender, 0},
    {kAny, 0, 1, 0, 0, kSenderWords, "", M::message, T::none, C::invalid_sender, 0},
    {kAny, 0, 1, kX, kX, "", "", M::recipient, T::none, C::bad_mailbox, 0},
    {kAny, 0, 2, 1, 1, "too quickly|too fast|rate", "", M::recipient, T::none, C::quota_issues, 0},
    {kAny, 0, 2, 1, 1, "", "", M::recipient, T::none, C::inactive_mailbox, 0},
    {kAny, 0, 2, 2, 2, "", "", M::recipient, T::none, C::quota_issues, 0},
    {kAny, 0, 2, 3, 3, "", "", M::message, T::none, C::content_related, 0},
    {kAny, 0, 2, kX, kX, kFullWords, "", M::recipient, T::none, C::quota_issues, 0},
    {kAny, 0, 2, kX, kX, kInactiveWords, "", M::recipient, T::none, C::inactive_mailbox, 0},
    {k4, 0, 2, kX, kX, kGreyWords, "", M::recipient, T::none, C::policy_related, 0},
    {kAny, 0, 2, kX, kX, "", "", M::recipient, T::none, C::bad_mailbox, 0},
    {k4, 0, 5, 3, 3, "", "", M::transaction, T::none, C::protocol_errors, 0},
};

// By wording, for a status that says little (x.0.0, x.7.1) or is not there.
constexpr Rule kByWords[] = {
    {kAny, 0, kX, kX, kX, kGreyWords, "", M::recipient, T::none, C::policy_related, 0},
    {kAny, 0, kX, kX, kX, kConcurrencyWords, "", M::source, T::concurrency, C::policy_related, 0},
    {kAny, 0, kX, kX, kX, kVolumeWords, "", M::source, T::volume, C::policy_related, 0},
    {k4, 0, kX, kX, kX, "too many recipients", "", M::transaction, T::none, C::protocol_errors, 0},
    {kAny, 0, kX, kX, kX, kSenderWords, "", M::message, T::none, C::invalid_sender, 0},
    {kAny, 0, kX, kX, kX, kNoMailboxWords, "", M::recipient, T::none, C::bad_mailbox, 0},
    {kAny, 0, kX, kX, kX, kFullWords, "", M::recipient, T::none, C::quota_issues, 0},
    {kAny, 0, kX, kX, kX, kVirusWords, "", M::message, T::none, C::virus_related, 0},
    {kAny, 0, kX, kX, kX, kAuthWords, "", M::domain, T::none, C::policy_related, 0},
    {kAny, 0, kX, kX, kX, kRelayWords, "", M::recipient, T::none, C::relaying_issues, 0},
    {kAny, 0, kX, kX, kX, kSpamWords, "", M::message, T::none, C::spam_related, 0},
    {kAny, 0, kX, kX, kX, kInactiveWords, "", M::recipient, T::none, C::inactive_mailbox, 0},
    {kAny, 0, 6, kX, kX, "", "", M::message, T::none, C::content_related, 0},
    {k4, 0, 3, 1, 2, "", "", M::destination, T::none, C::other, 0},
    {kAny, 0, 3, 4, 4, "", "", M::message, T::none, C::content_related, 0},
    {k5, 0, 4, 6, 6, "", "", M::message, T::none, C::routing_errors, 0},
    {kAny, 0, 4, 7, 7, "", "", M::message, T::none, C::message_expired, 0},
    {kAny, 0, 4, 1, 2, "", "", M::message, T::none, C::no_answer_from_host, 0},
    {kAny, 0, 4, kX, kX, "", "", M::message, T::none, C::routing_errors, 0},
    {kAny, 0, 5, kX, kX, "", "", M::message, T::none, C::protocol_errors, 0},
    {kAny, 0, kX, kX, kX, kContentWords, "", M::message, T::none, C::content_related, 0},
    {kAny, 0, 7, kX, kX, "", "", M::message, T::none, C::policy_related, 0},
};

template <size_t n>
const Rule* find(const Rule (&rules)[n], const ReplyContext& reply, const Words& words) {
  uint8_t reply_class = reply.code >= 500 ? k5 : k4;
  for (const Rule& rule : rules) {
    if (!(rule.classes & reply_class)) continue;
    if (rule.code != 0 && rule.code != reply.code) continue;
    if (rule.subject != kX) {
      if (reply.status.empty() || reply.status.subject != rule.subject) continue;
      if (rule.detail_first != kX &&
          (reply.status.detail < rule.detail_first || reply.status.detail > rule.detail_last))
        continue;
    }
    if (!rule.words.empty() && !words.has_any(rule.words)) continue;
    if (!rule.also.empty() && !words.has_any(rule.also)) continue;
    return &rule;
  }
  return nullptr;
}

// "try again in 300 seconds", "retry after 5 minutes", "wait 2 hours": the time; 0: none is named.
int64_t named_time_ms(std::string_view text) {
  for (std::string_view lead : {"again in ", "again after ", "retry in ", "retry after ", " wait ",
                                "come back in ", "retry-after: ", "delayed for "}) {
    size_t at = text.find(lead);
    if (at == std::string_view::npos) continue;
    std::string_view rest = text.substr(at + lead.size());
    for (std::string_view filler : {"at least ", "another ", "about "}) {
      if (rest.starts_with(filler)) rest.remove_prefix(filler.size());
    }
    int64_t number = 0;
    size_t digits = 0;
    while (digits < rest.size() && digits < 7 && rest[digits] >= '0' && rest[digits] <= '9')
      number = number * 10 + (rest[digits++] - '0');
    if (digits == 0) continue;
    rest.remove_prefix(digits);
    if (rest.starts_with(' ')) rest.remove_prefix(1);
    int64_t unit = 0;
    if (rest.starts_with("sec") || rest.starts_with("s ") || rest.starts_with("s.")) unit = 1000;
    if (rest.starts_with("min") || rest.starts_with("m ")) unit = kMinute;
    if (rest.starts_with("hour") || rest.starts_with("hr") || rest.starts_with("h ")) unit = kHour;
    if (unit == 0) continue;
    return std::min(number * unit, kLongestRest);
  }
  return 0;
}

// A status where the peer gave none, or one whose class is not its code's.
mail::EnhancedStatus judged_status(const ReplyContext& reply, const Verdict& verdict) {
  auto status_class =
      static_cast<uint8_t>(reply.code / 100 == 2 || reply.code / 100 == 3 ? 2 : reply.code / 100);
  if (reply.status.status_class == status_class) return reply.status;
  auto made = [&](uint16_t subject, uint16_t detail) {
    return mail::EnhancedStatus{status_class, subject, detail};
  };
  if (status_class == 2) return made(0, 0);
  if (verdict.action == Action::enough) return made(5, 3);
  switch (verdict.category) {
    case C::bad_mailbox:
      return made(1, 1);
    case C::bad_domain:
      return made(1, 2);
    case C::inactive_mailbox:
      return made(2, 1);
    case C::quota_issues:
      return made(2, 2);
    case C::invalid_sender:
      return made(1, 0);
    case C::content_related:
      return reply.code == 552 ? made(3, 4) : made(6, 0);
    case C::policy_related:
    case C::spam_related:
    case C::relaying_issues:
      return made(7, 1);
    case C::virus_related:
      return made(7, 0);
    case C::protocol_errors:
      return made(5, 0);
    case C::routing_errors:
      return made(4, 0);
    case C::bad_connection:
    case C::no_answer_from_host:
      return made(4, 2);
    default:
      return made(0, 0);
  }
}

bool positive(const ReplyContext& reply) {
  switch (reply.stage) {
    case Stage::data:
      return reply.code == 354;
    case Stage::auth:
      return reply.code / 100 == 2 || reply.code == 334;
    default:
      return reply.code / 100 == 2;
  }
}

void rest(Verdict& verdict, const Rule* rule, const Words& words) {
  verdict.rest_ms = std::max(rule ? rule->rest_ms : 0, named_time_ms(words.view()));
}

// Greeting, EHLO, STARTTLS, AUTH: whatever it says, it says nothing about a message.
Verdict opening(const ReplyContext& reply, const Words& words) {
  Verdict verdict;
  if (reply.stage == Stage::ehlo && (reply.code == 500 || reply.code == 502)) {
    verdict.action = Action::hold;
    verdict.scope = Scope::destination;
    verdict.category = C::protocol_errors;
    verdict.try_helo = true;
    return verdict;
  }
  verdict.close = true;
  verdict.action = Action::hold;
  const Rule* rule = find(kPublished, reply, words);
  if (!rule) rule = find(kAboutSource, reply, words);
  if (!rule) rule = find(kByWords, reply, words);
  if (rule && rule->meaning == M::source) {
    verdict.scope = Scope::source;
    verdict.throttle = rule->throttle;
    verdict.category = rule->category;
    rest(verdict, rule, words);
    return verdict;
  }
  if (reply.stage == Stage::greeting && reply.code >= 500 && reply.bounce_on_5xx_greeting) {
    verdict.action = Action::bounce;
    verdict.scope = Scope::message;
    verdict.category = rule && rule->category != C::none ? rule->category : C::other;
    return verdict;
  }
  // 421 without more words: we are too much for it just now. The rest is its own trouble.
  verdict.scope = reply.code == 421 ? Scope::source : Scope::destination;
  verdict.category = reply.stage == Stage::auth ? C::bad_configuration : C::bad_connection;
  verdict.next_host = reply.code != 421 && reply.stage != Stage::auth;
  rest(verdict, nullptr, words);
  return verdict;
}

// MAIL, RCPT, DATA, end of data.
Verdict transaction(const ReplyContext& reply, const Words& words) {
  Verdict verdict;
  bool permanent = reply.code >= 500;
  bool at_recipient = reply.stage == Stage::rcpt;
  verdict.close = reply.code == 421;

  // RFC 5321 4.5.3.1.10: a receiver that has had its fill of recipients. After an acceptance a bare
  // 552 means the same (RFC 821 knew no other); with 5.2.2 it is a full mailbox.
  if (at_recipient && (reply.code == 452 || reply.code == 552)) {
    bool named = reply.status.subject == 5 && reply.status.detail == 3 && !reply.status.empty();
    bool bare = reply.status.empty() && !words.has_any(kFullWords);
    if (reply.recipient_accepted && (named || bare)) {
      verdict.action = Action::enough;
      verdict.scope = Scope::transaction;
      verdict.category = C::protocol_errors;
      return verdict;
    }
  }

  const Rule* rule = find(kPublished, reply, words);
  if (!rule) rule = find(kAboutSource, reply, words);
  if (!rule) rule = find(kByStatus, reply, words);
  if (!rule) rule = find(kByWords, reply, words);

  verdict.action = permanent ? Action::bounce : Action::defer;
  verdict.scope = at_recipient ? Scope::recipient : Scope::message;
  if (rule) {
    verdict.category = rule->category;
    switch (rule->meaning) {
      case M::recipient:
        // At the end of data the reply is about all of them.
        break;
      case M::message:
        verdict.scope = Scope::message;
        break;
      case M::domain:
        verdict.scope = Scope::sender_domain;
        break;
      case M::transaction:
        verdict.action = Action::defer;
        verdict.scope = Scope::transaction;
        break;
      case M::source:
        verdict.action = permanent ? Action::defer : Action::hold;
        verdict.scope = Scope::source;
        verdict.throttle = rule->throttle;
        rest(verdict, rule, words);
        break;
      case M::destination:
        verdict.action = reply.stage == Stage::mail ? Action::hold : Action::defer;
        verdict.scope = reply.stage == Stage::mail ? Scope::destination : verdict.scope;
        break;
    }
  } else if (permanent) {
    // A bare code: RFC 5321 4.2.3.
    switch (reply.code) {
      case 550:
      case 551:
      case 553:
        verdict.category = at_recipient ? C::bad_mailbox : C::other;
        break;
      case 552:
        verdict.category = at_recipient ? C::quota_issues : C::content_related;
        break;
      case 500:
      case 501:
      case 502:
      case 503:
      case 504:
      case 555:
        verdict.category = C::protocol_errors;
        break;
      case 530:
      case 535:
        verdict.category = C::bad_configuration;
        break;
      default:
        verdict.category = C::other;
    }
    if (reply.stage == Stage::mail && (reply.code == 550 || reply.code == 553))
      verdict.category = C::invalid_sender;
  } else {
    verdict.category = reply.code == 452 && at_recipient ? C::quota_issues : C::other;
  }
  // 421 says that the connection ends; unless it names the sender's domain or the recipient, it
  // says nothing about the message.
  if (reply.code == 421 && verdict.action == Action::defer &&
      verdict.scope != Scope::sender_domain && !(rule && rule->meaning == M::recipient)) {
    verdict.action = Action::hold;
    verdict.scope = Scope::source;
    rest(verdict, nullptr, words);
  }
  if (verdict.action == Action::defer && verdict.scope != Scope::source)
    verdict.retry_after_ms = named_time_ms(words.view());
  return verdict;
}

}  // namespace

std::string_view to_string(Action action) {
  switch (action) {
    case Action::proceed:
      return "proceed";
    case Action::delivered:
      return "delivered";
    case Action::defer:
      return "defer";
    case Action::bounce:
      return "bounce";
    case Action::hold:
      return "hold";
    case Action::enough:
      return "enough recipients";
  }
  UNREACHABLE();
}

std::string_view to_string(Throttle throttle) {
  switch (throttle) {
    case Throttle::none:
      return "none";
    case Throttle::concurrency:
      return "concurrency";
    case Throttle::volume:
      return "volume";
    case Throttle::reputation:
      return "reputation";
  }
  UNREACHABLE();
}

Verdict classify(const ReplyContext& reply) {
  Verdict verdict;
  if (positive(reply)) {
    verdict.action = reply.stage == Stage::end_of_data ? Action::delivered : Action::proceed;
    verdict.status = judged_status(reply, verdict);
    return verdict;
  }
  if (reply.code < 400 || reply.code > 599) {
    // A positive reply of the wrong kind (354 to MAIL, 250 to DATA): the two sides have lost step,
    // and nothing on this connection can be trusted any more.
    verdict.action = Action::hold;
    verdict.scope = Scope::destination;
    verdict.category = C::protocol_errors;
    verdict.close = true;
    verdict.next_host = true;
    verdict.status = {4, 5, 0};
    return verdict;
  }
  Words words(reply.text);
  switch (reply.stage) {
    case Stage::greeting:
    case Stage::ehlo:
    case Stage::starttls:
    case Stage::auth:
      verdict = opening(reply, words);
      break;
    default:
      verdict = transaction(reply, words);
  }
  verdict.status = judged_status(reply, verdict);
  return verdict;
}

Category category_of_silence(Stage stage) {
  switch (stage) {
    case Stage::dns:
      return C::routing_errors;
    case Stage::connect:
      return C::no_answer_from_host;
    default:
      return C::bad_connection;
  }
}

}  // namespace millrace::dsn
