#include "config/values.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

namespace millrace::config {
namespace {

struct Unit {
  std::string_view name;
  int64_t milliseconds;
};
constexpr Unit kUnits[] = {
    {"d", 86'400'000}, {"h", 3'600'000}, {"m", 60'000}, {"s", 1000}, {"ms", 1}};

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = lower(c);
  return out;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

Result<uint16_t> parse_port(std::string_view text) {
  unsigned port = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc() || end != text.data() + text.size() || port == 0 || port > 65535)
    return fail(fmt::format("'{}' is not a port; a port is a number from 1 to 65535", text));
  return static_cast<uint16_t>(port);
}

Error not_a_duration(std::string_view text) {
  return Error{
      fmt::format("'{}' is not a duration; write a number and a unit (ms, s, m, h, d), "
                  "for instance 30s or 1h30m",
                  text)};
}

}  // namespace

Result<int64_t> parse_duration_ms(std::string_view text) {
  if (text == "0") return int64_t{0};
  int64_t total = 0;
  int64_t smallest = std::numeric_limits<int64_t>::max();
  std::string_view rest = text;
  if (rest.empty()) return fail(not_a_duration(text));
  while (!rest.empty()) {
    uint64_t count = 0;
    auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), count);
    if (error != std::errc() || count > 1'000'000'000'000) return fail(not_a_duration(text));
    rest.remove_prefix(static_cast<size_t>(end - rest.data()));
    size_t letters = 0;
    while (letters < rest.size() && is_letter(rest[letters])) ++letters;
    const Unit* unit = std::find_if(std::begin(kUnits), std::end(kUnits), [&](const Unit& u) {
      return u.name == rest.substr(0, letters);
    });
    if (unit == std::end(kUnits) || unit->milliseconds >= smallest)
      return fail(not_a_duration(text));
    smallest = unit->milliseconds;
    // A hundred years: the sum of two such stays far from the end of an int64_t.
    constexpr int64_t kLongest = 36'500LL * 86'400'000;
    if (static_cast<int64_t>(count) > kLongest / unit->milliseconds)
      return fail(fmt::format("'{}' is more than a hundred years", text));
    total += static_cast<int64_t>(count) * unit->milliseconds;
    if (total > kLongest) return fail(fmt::format("'{}' is more than a hundred years", text));
    rest.remove_prefix(letters);
  }
  return total;
}

std::string print_duration_ms(int64_t milliseconds) {
  if (milliseconds == 0) return "0";
  std::string out;
  for (const Unit& unit : kUnits) {
    if (int64_t count = milliseconds / unit.milliseconds; count > 0) {
      out += fmt::format("{}{}", count, unit.name);
      milliseconds %= unit.milliseconds;
    }
  }
  return out;
}

Result<uint64_t> parse_size(std::string_view text) {
  auto wrong = [&] {
    return fail(
        fmt::format("'{}' is not a size; write bytes, or a number with K, M, G or T "
                    "(powers of 1024), for instance 50M",
                    text));
  };
  uint64_t count = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error != std::errc()) return wrong();
  std::string unit = lower(text.substr(static_cast<size_t>(end - text.data())));
  unsigned shift = 0;
  if (!unit.empty()) {
    size_t power = std::string_view("kmgt").find(unit[0]);
    if (power == std::string_view::npos || (unit.size() > 1 && unit.substr(1) != "ib"))
      return wrong();
    shift = 10 * static_cast<unsigned>(power + 1);
  }
  if (count > (uint64_t{1} << 50) >> shift)
    return fail(fmt::format("'{}' is more than 1024T", text));
  return count << shift;
}

std::string print_size(uint64_t bytes) {
  constexpr std::string_view kLetters = "TGMK";
  for (unsigned i = 0; i < 4; ++i) {
    unsigned shift = 40 - 10 * i;
    if (bytes != 0 && bytes % (uint64_t{1} << shift) == 0)
      return fmt::format("{}{}", bytes >> shift, kLetters[i]);
  }
  return fmt::format("{}", bytes);
}

Result<Rate> parse_rate(std::string_view text) {
  auto wrong = [&] {
    return fail(
        fmt::format("'{}' is not a rate; write a number per s, m, h or d, for instance "
                    "100/s or 5000/h, or none",
                    text));
  };
  if (text == "none") return Rate{0, 1000};
  size_t slash = text.find('/');
  if (slash == std::string_view::npos) return wrong();
  Rate rate;
  std::string_view count = text.substr(0, slash);
  auto [end, error] = std::from_chars(count.data(), count.data() + count.size(), rate.count,
                                      std::chars_format::fixed);
  // At most 1e12: a bucket counts in whole nanoseconds.
  if (error != std::errc() || end != count.data() + count.size() || !(rate.count > 0) ||
      rate.count > 1e12)
    return wrong();
  std::string_view period = text.substr(slash + 1);
  if (period.empty() || period == "ms") return wrong();
  auto milliseconds =
      parse_duration_ms(is_digit(period[0]) ? std::string(period) : "1" + std::string(period));
  if (!milliseconds || *milliseconds <= 0) return wrong();
  rate.period_ms = *milliseconds;
  return rate;
}

uint32_t part_of(uint32_t limit, uint32_t parts) { return std::max<uint32_t>(1, limit / std::max<uint32_t>(1, parts)); }

Rate part_of(const Rate& rate, uint32_t parts) {
  if (parts <= 1 || !rate.limited()) return rate;
  double part = std::floor(rate.count / parts);
  if (part >= 1) return {part, rate.period_ms};
  return {1, static_cast<int64_t>(std::ceil(static_cast<double>(rate.period_ms) * parts / rate.count))};
}

std::string print_rate(const Rate& rate) {
  if (!rate.limited()) return "none";
  std::string period = print_duration_ms(rate.period_ms);
  if (period == "1s" || period == "1m" || period == "1h" || period == "1d") period.erase(0, 1);
  // Shortest decimal that reads back as the same number, never in exponent form.
  char digits[64];
  auto [end, error] =
      std::to_chars(digits, digits + sizeof digits, rate.count, std::chars_format::fixed);
  ASSERT(error == std::errc());
  return fmt::format("{}/{}", std::string_view(digits, static_cast<size_t>(end - digits)), period);
}

Result<std::vector<int64_t>> parse_durations_ms(std::string_view text) {
  std::vector<int64_t> list;
  for (;;) {
    size_t comma = text.find(',');
    auto one = parse_duration_ms(trim(text.substr(0, comma)));
    if (!one) return fail(one.error());
    list.push_back(*one);
    if (comma == std::string_view::npos) return list;
    text.remove_prefix(comma + 1);
  }
}

std::string print_durations_ms(const std::vector<int64_t>& list) {
  std::string out;
  for (int64_t each : list) {
    if (!out.empty()) out += ',';
    out += print_duration_ms(each);
  }
  return out;
}

Result<uint64_t> parse_number(std::string_view text) {
  uint64_t number = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size())
    return fail(fmt::format("'{}' is not a whole number", text));
  return number;
}

Result<bool> parse_switch(std::string_view text) {
  if (text == "true" || text == "yes" || text == "on") return true;
  if (text == "false" || text == "no" || text == "off") return false;
  return fail(fmt::format("'{}' is neither true nor false", text));
}

Result<Listen> parse_listen(std::string_view text) {
  Listen listen;
  std::string_view address = text;
  if (size_t comma = text.find(','); comma != std::string_view::npos) {
    if (text.substr(comma + 1) != "proxy")
      return fail(fmt::format("'{}' after the address is unknown; only ',proxy' may stand there",
                              text.substr(comma + 1)));
    listen.proxy = true;
    address = text.substr(0, comma);
  }
  auto parsed = reactor::Address::parse(address);
  if (!parsed || parsed->is_unix())
    return fail(
        fmt::format("'{}' is not an address with a port; write for instance 127.0.0.1:25 "
                    "or [::1]:25",
                    address));
  listen.address = *parsed;
  return listen;
}

std::string print_listen(const Listen& listen) {
  return listen.address.to_string() + (listen.proxy ? ",proxy" : "");
}

Result<Source> parse_source(std::string_view text) {
  Source source;
  std::string_view addresses = text;
  if (size_t equals = text.find('='); equals != std::string_view::npos) {
    std::string_view name = text.substr(equals + 1);
    if (!is_fully_qualified(name))
      return fail(fmt::format("the EHLO name '{}' is not a fully qualified host name", name));
    source.ehlo_name = lower(name);
    addresses = text.substr(0, equals);
  }
  for (;;) {
    size_t plus = addresses.find('+');
    std::string_view one = addresses.substr(0, plus);
    auto parsed = reactor::Address::parse_host(one, 0);
    if (!parsed || parsed->is_unix())
      return fail(
          fmt::format("'{}' is not an IP address; write for instance 192.0.2.1 or "
                      "192.0.2.1=mta1.example.com",
                      one));
    reactor::Address& field = parsed->is_ipv4() ? source.ipv4 : source.ipv6;
    if (!field.empty())
      return fail(
          fmt::format("two addresses of one family in '{}'; a source has at most one of "
                      "each: repeat --source",
                      text));
    field = *parsed;
    if (plus == std::string_view::npos) return source;
    addresses.remove_prefix(plus + 1);
  }
}

std::string print_source(const Source& source) {
  std::string out;
  if (!source.ipv4.empty()) out = source.ipv4.host_string();
  if (!source.ipv6.empty()) out += (out.empty() ? "" : "+") + source.ipv6.host_string();
  if (!source.ehlo_name.empty()) out += "=" + source.ehlo_name;
  return out;
}

Result<NextHop> parse_next_hop(std::string_view text) {
  constexpr std::string_view kTls = "smtps://";
  NextHop hop;
  if (text.starts_with(kTls)) {
    text.remove_prefix(kTls.size());
    hop.tls = true;
    hop.port = 465;
  }
  std::string_view host = text;
  std::string_view port;
  if (!text.empty() && text[0] == '[') {
    size_t close = text.find(']');
    if (close == std::string_view::npos) return fail(fmt::format("']' is missing in '{}'", text));
    host = text.substr(1, close - 1);
    std::string_view rest = text.substr(close + 1);
    if (!rest.empty() && rest[0] != ':')
      return fail(fmt::format("'{}' follows the address in '{}'; only :PORT may", rest, text));
    if (!rest.empty()) {
      auto number = parse_port(rest.substr(1));
      if (!number) return fail(number.error());
      hop.port = *number;
    }
    auto address = reactor::Address::parse_host(host, 0);
    if (!address || address->is_unix())
      return fail(fmt::format("'[{}]' is not an IP address in brackets", host));
    hop.host = address->host_string();
    return hop;
  }
  if (size_t colon = text.find(':'); colon != std::string_view::npos) {
    host = text.substr(0, colon);
    port = text.substr(colon + 1);
    if (port.find(':') != std::string_view::npos)
      return fail(fmt::format("write the IPv6 address in brackets: [{}]:25", text));
    auto number = parse_port(port);
    if (!number) return fail(number.error());
    hop.port = *number;
  }
  auto address = reactor::Address::parse_host(host, 0);
  bool is_address = address && !address->is_unix();
  if (!is_address && !is_host_name(host))
    return fail(
        fmt::format("'{}' is neither a host name nor an address; write HOST:PORT, for "
                    "instance relay.example.com:587",
                    host));
  hop.host = is_address ? address->host_string() : lower(host);
  return hop;
}

std::string print_next_hop(const NextHop& hop) {
  if (hop.empty()) return "";
  const char* scheme = hop.tls ? "smtps://" : "";
  if (hop.host.find(':') != std::string::npos) return fmt::format("{}[{}]:{}", scheme, hop.host, hop.port);
  return fmt::format("{}{}:{}", scheme, hop.host, hop.port);
}

Result<std::pair<std::string, NextHop>> parse_route(std::string_view text) {
  size_t equals = text.find('=');
  if (equals == std::string_view::npos)
    return fail(
        fmt::format("'{}' is not a route; write DOMAIN=HOST:PORT, for instance "
                    "example.com=relay.example.com:25",
                    text));
  std::string domain = lower(text.substr(0, equals));
  if (!is_host_name(domain))
    return fail(fmt::format("'{}' is not a domain in ASCII form (A-labels)", domain));
  auto hop = parse_next_hop(text.substr(equals + 1));
  if (!hop) return fail(hop.error());
  return std::pair{std::move(domain), std::move(*hop)};
}

std::string print_route(const std::string& domain, const NextHop& hop) {
  return domain + "=" + print_next_hop(hop);
}

bool is_host_name(std::string_view text) {
  if (text.empty() || text.size() > 253) return false;
  size_t label = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '.') {
      if (label == 0 || text[i - 1] == '-') return false;
      label = 0;
      continue;
    }
    if (!is_letter(c) && !is_digit(c) && c != '-') return false;
    if (c == '-' && label == 0) return false;
    if (++label > 63) return false;
  }
  return label > 0 && text.back() != '-';
}

bool is_fully_qualified(std::string_view text) {
  if (!is_host_name(text)) return false;
  size_t dot = text.rfind('.');
  if (dot == std::string_view::npos) return false;
  // A last label of digits only is an address (RFC 1123 2.1).
  return !std::all_of(text.begin() + static_cast<ptrdiff_t>(dot) + 1, text.end(), is_digit);
}

bool is_header_name(std::string_view text) {
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), [](char c) {
    return c > 32 && c < 127 && c != ':';
  });
}

std::string_view nearest(std::string_view text, const std::vector<std::string_view>& candidates) {
  std::string_view best;
  // Up to a third of the letters may differ: closer than that is a slip, farther another word.
  size_t best_distance = std::max<size_t>(text.size() / 3, 1) + 1;
  for (std::string_view candidate : candidates) {
    std::vector<size_t> row(candidate.size() + 1);
    for (size_t j = 0; j < row.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= text.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j < row.size(); ++j) {
        size_t substitute = diagonal + (text[i - 1] == candidate[j - 1] ? 0 : 1);
        diagonal = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitute});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  if (!best.empty()) return best;
  // A word that is part of exactly one name ("expire" of "expire-after") is meant as that name.
  for (std::string_view candidate : candidates) {
    if (text.size() < 4 || candidate.find(text) == std::string_view::npos) continue;
    if (!best.empty()) return {};
    best = candidate;
  }
  return best;
}

}  // namespace millrace::config
