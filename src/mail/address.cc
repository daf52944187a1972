#include "mail/address.h"

#include <arpa/inet.h>
#include <idn2.h>

#include <array>
#include <cstring>

namespace millrace::mail {
namespace {

constexpr size_t kLongestLocalPart = 64;
constexpr size_t kLongestDomain = 255;
constexpr size_t kLongestName = 253;  // what fits a DNS message without the root's dot
constexpr size_t kLongestLabel = 63;
constexpr size_t kLongestPath = 256;

enum : uint8_t { kAtext = 1, kLabel = 2, kDigit = 4 };

constexpr std::array<uint8_t, 256> make_classes() {
  std::array<uint8_t, 256> classes{};
  for (int c = 0; c < 256; ++c) {
    bool digit = c >= '0' && c <= '9';
    bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (digit || letter) classes[static_cast<size_t>(c)] = kAtext | kLabel;
    if (digit) classes[static_cast<size_t>(c)] |= kDigit;
    if (c >= 0x80) classes[static_cast<size_t>(c)] = kAtext | kLabel;
  }
  for (char c : std::string_view("!#$%&'*+-/=?^_`{|}~")) {
    classes[static_cast<size_t>(c)] |= kAtext;
  }
  classes['-'] |= kLabel;
  classes['_'] |= kLabel;
  return classes;
}
constexpr auto kClasses = make_classes();

bool is(char c, uint8_t kind) { return kClasses[static_cast<uint8_t>(c)] & kind; }
bool is_high(char c) { return static_cast<uint8_t>(c) >= 0x80; }

// Eight octets at a time: every address passes here.
bool has_high(std::string_view text) {
  uint64_t seen = 0;
  size_t i = 0;
  for (; i + 8 <= text.size(); i += 8) {
    uint64_t octets;
    std::memcpy(&octets, text.data() + i, 8);
    seen |= octets;
  }
  bool high = (seen & 0x8080808080808080) != 0;
  for (; i < text.size(); ++i) high |= is_high(text[i]);
  return high;
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

bool equals_ignoring_case(std::string_view text, std::string_view lower_case) {
  if (text.size() != lower_case.size()) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (lower(text[i]) != lower_case[i]) return false;
  }
  return true;
}

// How many octets from the front are a local part (dot-string or quoted string); 0 is a syntax
// error.
size_t local_part_size(std::string_view text) {
  if (!text.empty() && text[0] == '"') {
    for (size_t i = 1; i < text.size(); ++i) {
      unsigned char c = static_cast<unsigned char>(text[i]);
      if (c == '"') return i + 1;
      if (c == '\\') {
        if (++i == text.size()) return 0;
        c = static_cast<unsigned char>(text[i]);
        if (c >= 0x80) return 0;  // RFC 5321 4.1.2: a quoted pair is ASCII
      }
      if (c < 0x20 || c == 0x7f) return 0;
    }
    return 0;
  }
  size_t i = 0;
  bool after_dot = true;  // an atom must come
  for (; i < text.size(); ++i) {
    if (is(text[i], kAtext)) {
      after_dot = false;
    } else if (text[i] == '.' && !after_dot) {
      after_dot = true;
    } else {
      break;
    }
  }
  return after_dot ? 0 : i;
}

// "@one,@two:" at the front; 0 when it is not well-formed.
size_t source_route_size(std::string_view text) {
  size_t i = 0;
  while (i < text.size() && text[i] == '@') {
    size_t start = ++i;
    while (i < text.size() && (is(text[i], kLabel) || text[i] == '.')) ++i;
    if (i == start || i == text.size()) return 0;
    if (text[i] == ':') return i + 1;
    if (text[i++] != ',') return 0;
  }
  return 0;
}

enum class Literal : uint8_t { bad, ipv4, ipv6 };

struct Ip {
  Literal kind = Literal::bad;
  unsigned char octets[16] = {};
};

// `domain` with its brackets.
Ip parse_literal(std::string_view domain) {
  Ip ip;
  char text[INET6_ADDRSTRLEN];
  std::string_view inner = domain.substr(1, domain.size() - 2);
  bool ipv6 = inner.size() >= 5 && equals_ignoring_case(inner.substr(0, 5), "ipv6:");
  if (ipv6) inner.remove_prefix(5);
  if (inner.empty() || inner.size() >= sizeof text || inner.find('\0') != inner.npos) return ip;
  std::memcpy(text, inner.data(), inner.size());
  text[inner.size()] = '\0';
  if (inet_pton(ipv6 ? AF_INET6 : AF_INET, text, ip.octets) == 1) {
    ip.kind = ipv6 ? Literal::ipv6 : Literal::ipv4;
  }
  return ip;
}

struct Mailbox {
  std::string_view local_part, domain;
  size_t size = 0;
  bool utf8 = false, literal = false;
};

// A mailbox from the front of `text`, which ends it at `end` ('>'), or at the end of text if end is
// 0.
Result<Mailbox, AddressError> take_mailbox(std::string_view text, char end, bool allow_postmaster) {
  Mailbox mailbox;
  size_t local = local_part_size(text);
  if (local == 0) return fail(AddressError::syntax);
  mailbox.local_part = text.substr(0, local);
  if (local > kLongestLocalPart) return fail(AddressError::local_part_too_long);
  size_t at = local;
  if (at < text.size() && text[at] == '@') {
    size_t start = at + 1;
    size_t stop = start;
    if (start < text.size() && text[start] == '[') {
      stop = text.find(']', start);
      if (stop == text.npos) return fail(AddressError::bad_literal);
      ++stop;
      mailbox.literal = true;
    } else {
      while (stop < text.size() && (is(text[stop], kLabel) || text[stop] == '.')) ++stop;
    }
    mailbox.domain = text.substr(start, stop - start);
    if (mailbox.domain.size() > kLongestDomain) return fail(AddressError::domain_too_long);
    if (mailbox.domain.empty()) return fail(AddressError::syntax);
    at = stop;
  } else if (!allow_postmaster || !equals_ignoring_case(mailbox.local_part, "postmaster")) {
    return fail(AddressError::syntax);
  }
  mailbox.size = at;
  if (end == 0 ? at != text.size() : at == text.size() || text[at] != end) {
    return fail(AddressError::syntax);
  }
  mailbox.utf8 = has_high(text.substr(0, at));
  if (mailbox.utf8 && !is_utf8(text.substr(0, at))) return fail(AddressError::bad_utf8);
  if (mailbox.literal) {
    if (parse_literal(mailbox.domain).kind == Literal::bad) return fail(AddressError::bad_literal);
  } else if (!mailbox.domain.empty()) {
    // The labels of a UTF-8 domain are checked when it is converted.
    if (!is_ascii_domain(mailbox.domain) && !has_high(mailbox.domain)) {
      return fail(AddressError::bad_domain);
    }
  }
  return mailbox;
}

}  // namespace

std::string_view to_string(AddressError error) {
  switch (error) {
    case AddressError::syntax:
      return "bad address syntax";
    case AddressError::local_part_too_long:
      return "local part longer than 64 octets";
    case AddressError::domain_too_long:
      return "domain longer than 255 octets";
    case AddressError::path_too_long:
      return "path longer than 256 octets";
    case AddressError::bad_domain:
      return "bad domain name";
    case AddressError::bad_literal:
      return "bad address literal";
    case AddressError::bad_utf8:
      return "malformed UTF-8";
    case AddressError::not_convertible:
      return "domain is not a valid internationalized name";
  }
  UNREACHABLE();
}

Result<Path, AddressError> parse_path(std::string_view text, PathKind kind) {
  if (text.empty() || text[0] != '<') return fail(AddressError::syntax);
  Path path;
  if (text.size() > 1 && text[1] == '>') {
    if (kind == PathKind::forward) return fail(AddressError::syntax);
    path.consumed = 2;
    return path;
  }
  size_t start = 1;
  if (text.size() > 1 && text[1] == '@') {
    size_t route = source_route_size(text.substr(1));
    if (route == 0) return fail(AddressError::syntax);
    start += route;
  }
  auto mailbox = take_mailbox(text.substr(start), '>', kind == PathKind::forward && start == 1);
  if (!mailbox) return fail(mailbox.error());
  size_t consumed = start + mailbox->size + 1;
  if (consumed > kLongestPath) return fail(AddressError::path_too_long);
  path.mailbox = text.substr(start, mailbox->size);
  path.local_part = mailbox->local_part;
  path.domain = mailbox->domain;
  path.consumed = static_cast<uint16_t>(consumed);
  path.utf8 = mailbox->utf8;
  path.literal = mailbox->literal;
  return path;
}

Result<Path, AddressError> parse_mailbox(std::string_view text) {
  auto mailbox = take_mailbox(text, 0, false);
  if (!mailbox) return fail(mailbox.error());
  if (text.size() + 2 > kLongestPath) return fail(AddressError::path_too_long);
  Path path;
  path.mailbox = text;
  path.local_part = mailbox->local_part;
  path.domain = mailbox->domain;
  path.consumed = static_cast<uint16_t>(text.size());
  path.utf8 = mailbox->utf8;
  path.literal = mailbox->literal;
  return path;
}

bool is_ascii_domain(std::string_view text) {
  if (text.empty() || text.size() > kLongestName) return false;
  size_t label = 0;        // octets of the current one
  bool all_digits = true;  // of the current one
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '.') {
      if (label == 0 || text[i - 1] == '-') return false;
      label = 0;
      all_digits = true;
      continue;
    }
    if (!is(c, kLabel) || is_high(c) || (label == 0 && c == '-')) return false;
    if (++label > kLongestLabel) return false;
    all_digits = all_digits && is(c, kDigit);
  }
  return label > 0 && text.back() != '-' && !all_digits;
}

bool is_utf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    auto at = [&](size_t k) { return static_cast<uint8_t>(text[k]); };
    uint8_t first = at(i);
    if (first < 0x80) {
      ++i;
      continue;
    }
    size_t more = first >= 0xc2 && first <= 0xdf   ? 1
                  : first >= 0xe0 && first <= 0xef ? 2
                  : first >= 0xf0 && first <= 0xf4 ? 3
                                                   : 0;
    if (more == 0 || text.size() - i <= more) return false;
    uint8_t second = at(i + 1);
    if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) ||
        (first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f)) {
      return false;
    }
    for (size_t k = 1; k <= more; ++k) {
      if ((at(i + k) & 0xc0) != 0x80) return false;
    }
    i += more + 1;
  }
  return true;
}

Result<std::string, AddressError> to_routing_domain(std::string_view domain) {
  if (!domain.empty() && domain.front() == '[') {
    if (domain.back() != ']') return fail(AddressError::bad_literal);
    Ip ip = parse_literal(domain);
    if (ip.kind == Literal::bad) return fail(AddressError::bad_literal);
    char text[INET6_ADDRSTRLEN];
    bool ipv6 = ip.kind == Literal::ipv6;
    inet_ntop(ipv6 ? AF_INET6 : AF_INET, ip.octets, text, sizeof text);
    return std::string(ipv6 ? "[IPv6:" : "[").append(text).append("]");
  }
  if (is_ascii_domain(domain)) {
    std::string name(domain);
    for (char& c : name) c = lower(c);
    return name;
  }
  if (domain.size() > kLongestDomain) return fail(AddressError::domain_too_long);
  if (!has_high(domain) || domain.find('\0') != domain.npos) return fail(AddressError::bad_domain);
  if (!is_utf8(domain)) return fail(AddressError::bad_utf8);
  char* converted = nullptr;
  int status = idn2_to_ascii_8z(std::string(domain).c_str(), &converted,
                                IDN2_NFC_INPUT | IDN2_NONTRANSITIONAL);
  if (status != IDN2_OK) return fail(AddressError::not_convertible);
  std::string name(converted);
  idn2_free(converted);
  // Mapping can make dots, digits and other ASCII out of their wide forms.
  if (!is_ascii_domain(name)) return fail(AddressError::bad_domain);
  for (char& c : name) c = lower(c);
  return name;
}

}  // namespace millrace::mail
