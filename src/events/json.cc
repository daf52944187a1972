#include "events/json.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

#include "base/short_copy.h"

namespace millrace::events {
namespace {

// 0: stands as it is; 'u': as \u00xx; '8': begins a sequence of UTF-8 or is wrong; else the letter
// after the backslash.
constexpr std::array<char, 256> kEscapes = [] {
  std::array<char, 256> table{};
  for (int c = 0; c < 0x20; ++c) table[static_cast<size_t>(c)] = 'u';
  table['"'] = '"';
  table['\\'] = '\\';
  table['\n'] = 'n';
  table['\r'] = 'r';
  table['\t'] = 't';
  table[0x7f] = 'u';
  for (size_t c = 0x80; c < 0x100; ++c) table[c] = '8';
  return table;
}();

// Whether none of the 8 octets at `at` needs an escape. May say no for some that need none.
bool plain_word(const unsigned char* at) {
  uint64_t word;
  std::memcpy(&word, at, 8);
  constexpr uint64_t kOnes = 0x0101010101010101, kHighs = 0x8080808080808080;
  // A high bit of (x - 1) & ~x marks an octet of x that is 0 (and perhaps its upper neighbours).
  auto zeros = [](uint64_t x) { return (x - kOnes) & ~x; };
  uint64_t control = (word - kOnes * 0x20) & ~word;
  return ((word | (word + kOnes) | control | zeros(word ^ kOnes * '"') |
           zeros(word ^ kOnes * '\\')) &
          kHighs) == 0;
}

char* put_unicode(char* at, unsigned code) {
  constexpr char kHex[] = "0123456789abcdef";
  *at++ = '\\';
  *at++ = 'u';
  *at++ = kHex[code >> 12 & 15];
  *at++ = kHex[code >> 8 & 15];
  *at++ = kHex[code >> 4 & 15];
  *at++ = kHex[code & 15];
  return at;
}

// The length of the well-formed sequence at `at` (Unicode table 3-7), and its character; 0: there
// is none.
size_t utf8_sequence(const unsigned char* at, const unsigned char* end, unsigned& code) {
  auto tail = [&](size_t i, unsigned least = 0x80, unsigned most = 0xbf) {
    return at + i < end && at[i] >= least && at[i] <= most;
  };
  unsigned first = at[0];
  if (first >= 0xc2 && first <= 0xdf && tail(1)) {
    code = (first & 0x1f) << 6 | (at[1] & 0x3f);
    return 2;
  }
  if (first >= 0xe0 && first <= 0xef &&
      tail(1, first == 0xe0 ? 0xa0 : 0x80, first == 0xed ? 0x9f : 0xbf) && tail(2)) {
    code = (first & 0x0f) << 12 | (at[1] & 0x3fu) << 6 | (at[2] & 0x3f);
    return 3;
  }
  if (first >= 0xf0 && first <= 0xf4 &&
      tail(1, first == 0xf0 ? 0x90 : 0x80, first == 0xf4 ? 0x8f : 0xbf) && tail(2) && tail(3)) {
    code = 0x10000;
    return 4;
  }
  return 0;
}

// Characters that end a line for some readers or turn the direction of what a terminal shows.
bool disguises(unsigned code) {
  return (code >= 0x80 && code < 0xa0) || code == 0x2028 || code == 0x2029 ||
         (code >= 0x200e && code <= 0x200f) || (code >= 0x202a && code <= 0x202e) ||
         (code >= 0x2066 && code <= 0x2069);
}

// Room for 6 octets an input octet must be there.
char* put_escaped(char* at, std::string_view text) {
  const auto* in = reinterpret_cast<const unsigned char*>(text.data());
  const auto* begin = in;
  const auto* end = in + text.size();
  while (in != end) {
    // Runs of plain octets are the rule.
    const auto* plain = in;
    while (end - in >= 8 && plain_word(in)) in += 8;
    while (in != end && kEscapes[*in] == 0) ++in;
    short_copy(at, text.data() + (plain - begin), static_cast<size_t>(in - plain));
    at += in - plain;
    if (in == end) break;
    char escape = kEscapes[*in];
    if (escape == '8') {
      unsigned code = 0;
      size_t size = utf8_sequence(in, end, code);
      if (size == 0) {
        at = put_unicode(at, *in++);
      } else if (disguises(code)) {
        at = put_unicode(at, code);
        in += size;
      } else {
        std::memcpy(at, in, size);
        at += size;
        in += size;
      }
    } else if (escape == 'u') {
      at = put_unicode(at, *in++);
    } else {
      *at++ = '\\';
      *at++ = escape;
      ++in;
    }
  }
  return at;
}

char* put_digits(char* at, unsigned value, int width) {
  for (int i = width - 1; i >= 0; --i) {
    at[i] = static_cast<char>('0' + value % 10);
    value /= 10;
  }
  return at + width;
}

struct Line {
  char* at;

  void raw(std::string_view text) {
    short_copy(at, text.data(), text.size());
    at += text.size();
  }
  // `key` holds quotes, colon and leading comma: ,"code":
  void text(std::string_view key, std::string_view value) {
    if (value.empty()) return;
    raw(key);
    *at++ = '"';
    at = put_escaped(at, value);
    *at++ = '"';
  }
  void number(std::string_view key, uint64_t value) {
    if (value == 0) return;
    raw(key);
    at = std::to_chars(at, at + 20, value).ptr;
  }
  void time(std::string_view key, int64_t utc_ms) {
    if (utc_ms == 0) return;
    raw(key);
    *at++ = '"';
    char formatted[kTimeSize];
    format_time(utc_ms, formatted);
    raw(std::string_view(formatted, kTimeSize));
    *at++ = '"';
  }
};

}  // namespace

void format_time(int64_t utc_ms, char (&out)[kTimeSize]) {
  constexpr int64_t kLast = 253'402'300'799'999;  // 9999-12-31T23:59:59.999Z
  utc_ms = std::clamp<int64_t>(utc_ms, 0, kLast);
  auto days = static_cast<unsigned>(utc_ms / 86'400'000);
  auto rest = static_cast<unsigned>(utc_ms % 86'400'000);
  // Gregorian calendar from days, in years that begin with March so that the leap day is the last.
  unsigned z = days + 719'468;
  unsigned era = z / 146'097;
  unsigned day_of_era = z % 146'097;
  unsigned year_of_era =
      (day_of_era - day_of_era / 1460 + day_of_era / 36'524 - day_of_era / 146'096) / 365;
  unsigned day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
  unsigned shifted_month = (5 * day_of_year + 2) / 153;
  unsigned day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
  unsigned month = shifted_month < 10 ? shifted_month + 3 : shifted_month - 9;
  unsigned year = year_of_era + era * 400 + (month <= 2 ? 1 : 0);

  char* at = put_digits(out, year, 4);
  *at++ = '-';
  at = put_digits(at, month, 2);
  *at++ = '-';
  at = put_digits(at, day, 2);
  *at++ = 'T';
  at = put_digits(at, rest / 3'600'000, 2);
  *at++ = ':';
  at = put_digits(at, rest / 60'000 % 60, 2);
  *at++ = ':';
  at = put_digits(at, rest / 1000 % 60, 2);
  *at++ = '.';
  at = put_digits(at, rest % 1000, 3);
  *at = 'Z';
}

void append_escaped(std::string& out, std::string_view text) {
  size_t start = out.size();
  out.resize(start + 6 * text.size());
  char* end = put_escaped(out.data() + start, text);
  out.resize(static_cast<size_t>(end - out.data()));
}

void append_json(const Event& event, std::string_view node, std::string& out) {
  size_t texts = node.size();
  for (const std::string_view* text :
       {&event.reverse_path, &event.recipient, &event.message_id, &event.envid,
        &event.orcpt,        &event.job,       &event.tenant,     &event.pool,
        &event.queue,        &event.site,      &event.provider,   &event.client,
        &event.account,      &event.source,    &event.ehlo_name,  &event.mx,
        &event.peer,         &event.reply,     &event.enhanced,   &event.bounce_class,
        &event.reason,       &event.tls_version, &event.tls_suite, &event.tls_verified,
        &event.tls_reason,   &event.tls_policy, &event.transport}) {
    texts += text->size();
  }
  // Keys, quotes, numbers and times of all fields come to less than 1600 octets.
  size_t most = 1600 + 6 * texts;
  // Mostly it fits into a buffer that nobody has to clear first.
  char small[8192];
  size_t start = out.size();
  bool fits = most <= sizeof small;
  if (!fits) out.resize(start + most);
  char* begin = fits ? small : out.data() + start;
  Line line{begin};

  char id[mail::SpoolId::kTextSize];
  event.spool_id.format(id);
  std::string_view id_text(id, sizeof id);
  line.raw("{\"version\":1,\"id\":\"");
  line.raw(id_text);
  *line.at++ = '-';
  line.at = std::to_chars(line.at, line.at + 20, event.number).ptr;
  line.raw("\",\"type\":\"");
  line.raw(to_string(event.type));
  *line.at++ = '"';
  line.time(",\"time\":", event.time_ms);
  line.text(",\"node\":", node);
  if (event.type != Type::queue) line.text(",\"spool_id\":", id_text);
  line.time(",\"received_time\":", event.received_ms);
  line.time(",\"first_attempt_time\":", event.first_attempt_ms);
  line.time(",\"next_attempt_time\":", event.next_attempt_ms);
  // An empty reverse-path is <>, which says something; events without a message have none at all.
  if (event.type != Type::queue) {
    line.raw(",\"reverse_path\":\"");
    line.at = put_escaped(line.at, event.reverse_path);
    *line.at++ = '"';
  }
  line.text(",\"recipient\":", event.recipient);
  line.text(",\"message_id\":", event.message_id);
  line.text(",\"envid\":", event.envid);
  line.text(",\"orcpt\":", event.orcpt);
  line.text(",\"job\":", event.job);
  line.text(",\"tenant\":", event.tenant);
  line.text(",\"pool\":", event.pool);
  line.text(",\"queue\":", event.queue);
  line.text(",\"site\":", event.site);
  line.text(",\"provider\":", event.provider);
  line.text(",\"client\":", event.client);
  line.text(",\"account\":", event.account);
  line.text(",\"source\":", event.source);
  line.text(",\"ehlo_name\":", event.ehlo_name);
  line.text(",\"mx\":", event.mx);
  line.text(",\"peer\":", event.peer);
  line.text(",\"transport\":", event.transport);
  line.text(",\"tls_policy\":", event.tls_policy);
  line.text(",\"tls_version\":", event.tls_version);
  line.text(",\"tls_suite\":", event.tls_suite);
  line.text(",\"tls_verified\":", event.tls_verified);
  line.text(",\"tls_reason\":", event.tls_reason);
  line.number(",\"session\":", event.session);
  line.number(",\"session_message\":", event.session_message);
  if (event.stage != Stage::none) line.text(",\"stage\":", to_string(event.stage));
  line.text(",\"reply\":", event.reply);
  line.number(",\"code\":", event.code);
  line.text(",\"enhanced_status\":", event.enhanced);
  line.text(",\"bounce_class\":", event.bounce_class);
  if (event.scope != Scope::none) line.text(",\"scope\":", to_string(event.scope));
  line.text(",\"reason\":", event.reason);
  line.number(",\"attempt\":", event.attempt);
  line.number(",\"size\":", event.size);
  line.number(",\"recipients\":", event.recipients);
  if (event.report_sent) line.raw(",\"report_sent\":true");
  line.number(",\"queued_ms\":", event.queued_ms);
  line.number(",\"connect_ms\":", event.connect_ms);
  line.number(",\"transaction_ms\":", event.transaction_ms);
  line.number(",\"total_ms\":", event.total_ms);
  line.raw("}\n");

  size_t written = static_cast<size_t>(line.at - begin);
  ASSERT(written <= most);
  if (fits) {
    out.append(small, written);
  } else {
    out.resize(start + written);
  }
}

}  // namespace millrace::events
