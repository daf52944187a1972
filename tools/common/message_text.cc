#include "common/message_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <ctime>

#include "base/prng.h"

namespace millrace::tools {

namespace {

// splitmix64: independent numbers from a message's number.
uint64_t scramble(uint64_t z) {
  z += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

Result<double> parse_number(std::string_view text, std::string_view& unit) {
  double value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || value < 0) return fail(fmt::format("\"{}\" is not a number", text));
  unit = std::string_view(end, static_cast<size_t>(text.data() + text.size() - end));
  return value;
}

}  // namespace

Result<uint64_t> parse_size(std::string_view text) {
  std::string_view unit;
  auto value = parse_number(text, unit);
  if (!value) return fail(value.error());
  double factor = unit.empty() || unit == "B" ? 1
                  : unit == "KiB"             ? 1024
                  : unit == "MiB"             ? 1024 * 1024
                  : unit == "kB"              ? 1000
                  : unit == "MB"              ? 1'000'000
                                              : 0;
  if (factor == 0) return fail(fmt::format("\"{}\": unknown unit (KiB, MiB, kB, MB)", text));
  return static_cast<uint64_t>(*value * factor);
}

Result<int64_t> parse_duration(std::string_view text) {
  std::string_view unit;
  auto value = parse_number(text, unit);
  if (!value) return fail(value.error());
  double factor = unit == "ms"                  ? 1e6
                  : unit.empty() || unit == "s" ? 1e9
                  : unit == "m"                 ? 60e9
                  : unit == "h"                 ? 3600e9
                  : unit == "us"                ? 1e3
                                                : 0;
  if (factor == 0) return fail(fmt::format("\"{}\": unknown unit (us, ms, s, m, h)", text));
  return static_cast<int64_t>(*value * factor);
}

void write_id(LoadId id, char* out) {
  fmt::format_to_n(out, kIdSize, "{:08x}-{:010}", id.run, id.number);
}

bool parse_id(std::string_view text, LoadId& id) {
  if (text.size() < kIdSize || text[8] != '-') return false;
  auto run = std::from_chars(text.data(), text.data() + 8, id.run, 16);
  auto number = std::from_chars(text.data() + 9, text.data() + kIdSize, id.number);
  return run.ec == std::errc() && run.ptr == text.data() + 8 && number.ec == std::errc() &&
         number.ptr == text.data() + kIdSize;
}

Result<SizeLaw> SizeLaw::parse(std::string_view text) {
  SizeLaw law;
  auto colon = text.find(':');
  std::string_view kind = text.substr(0, colon);
  std::string_view rest = colon == std::string_view::npos ? "" : text.substr(colon + 1);
  if (kind == "uniform") {
    auto dash = rest.find('-');
    if (dash == std::string_view::npos) return fail("uniform needs uniform:LEAST-MOST");
    auto least = parse_size(rest.substr(0, dash));
    if (!least) return fail(least.error());
    auto most = parse_size(rest.substr(dash + 1));
    if (!most) return fail(most.error());
    if (*most < *least) return fail("uniform:LEAST-MOST: the least is above the most");
    law.kind_ = Kind::uniform;
    law.least_ = *least;
    law.most_ = *most;
  } else if (kind == "lognormal") {
    law.kind_ = Kind::lognormal;
    law.median_ = 20480;
    law.sigma_ = 1;
    if (!rest.empty()) {
      auto comma = rest.find(',');
      auto median = parse_size(rest.substr(0, comma));
      if (!median) return fail(median.error());
      law.median_ = static_cast<double>(*median);
      if (comma != std::string_view::npos) {
        std::string_view unit;
        auto sigma = parse_number(rest.substr(comma + 1), unit);
        if (!sigma) return fail(sigma.error());
        law.sigma_ = *sigma;
      }
    }
    law.most_ = static_cast<uint64_t>(law.median_ * 100);  // the tail is cut here
  } else {
    auto size = parse_size(text);
    if (!size) return fail(size.error());
    law.least_ = law.most_ = *size;
  }
  if (law.most_ > (1u << 30)) return fail("messages are at most 1 GiB");
  return law;
}

uint64_t SizeLaw::size_of(uint64_t number) const {
  switch (kind_) {
    case Kind::fixed:
      break;
    case Kind::uniform:
      return least_ + scramble(number) % (most_ - least_ + 1);
    case Kind::lognormal: {
      // Box-Muller; the first number is above 0.
      double u = static_cast<double>((scramble(number) >> 11) + 1) * 0x1.0p-53;
      double v = static_cast<double>(scramble(number ^ (1ull << 63)) >> 11) * 0x1.0p-53;
      double normal = std::sqrt(-2 * std::log(u)) * std::cos(2 * 3.14159265358979323846 * v);
      double size = median_ * std::exp(sigma_ * normal);
      return std::min(most_, static_cast<uint64_t>(size));
    }
  }
  return most_;
}

MessageText::MessageText(uint32_t run, const SizeLaw& law, double leading_dots,
                         std::string_view from)
    : run_(run), law_(law) {
  char date[64];
  time_t now = time(nullptr);
  tm utc;
  gmtime_r(&now, &utc);
  strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S +0000", &utc);
  auto add_id = [&] {
    id_places_.push_back(header_.size());
    header_.append(kIdSize, '0');
  };
  header_ = kIdHeader;
  add_id();
  header_ += fmt::format("\r\nFrom: Load generator <{}>\r\nTo: undisclosed-recipients:;\r\n", from);
  header_ += fmt::format("Subject: Message ");
  add_id();
  header_ += fmt::format("\r\nDate: {}\r\nMessage-ID: <", date);
  add_id();
  header_ +=
      "@load.invalid>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n";

  // A window is at most law.most() long and begins at one of the first lines.
  size_t lines = law.most() / kLine + 2;
  first_lines_ = 4096;
  lines += first_lines_;
  Prng prng(0x6d696c6c72616365);
  plain_.reserve(lines * kLine);
  stuffed_.reserve(lines * kLine + lines / 4);
  dots_before_.reserve(lines + 1);
  uint32_t dots = 0;
  static constexpr std::string_view kLetters =
      "etaoinshrdlucmfwypvbgkjqxzETAOINSHRDLUCMFWYPVBGKJQXZ0123456789 ,;-   ";
  for (size_t i = 0; i < lines; ++i) {
    dots_before_.push_back(dots);
    char line[kLine];
    for (size_t k = 0; k < kLine - 2; ++k) line[k] = kLetters[prng.below(kLetters.size())];
    line[kLine - 3] = line[0] = 'x';  // no blank that a relay might be tempted to trim
    line[40] = '.';
    line[kLine - 2] = '\r';
    line[kLine - 1] = '\n';
    if (prng.chance(leading_dots)) {
      line[0] = '.';
      ++dots;
      stuffed_ += '.';
    }
    plain_.append(line, kLine);
    stuffed_.append(line, kLine);
  }
  dots_before_.push_back(dots);
}

void MessageText::write_header(uint64_t number, char* out) const {
  memcpy(out, header_.data(), header_.size());
  write_id({run_, number}, out + id_places_[0]);
  for (size_t i = 1; i < id_places_.size(); ++i) {
    memcpy(out + id_places_[i], out + id_places_[0], kIdSize);
  }
}

size_t MessageText::body(uint64_t number, bool stuffed, iovec (&parts)[kBodyParts]) const {
  static char crlf[] = "\r\n";
  uint64_t size = law_.size_of(number);
  size_t length = size > header_.size() + 2 ? size - header_.size() - 2 : 0;
  size_t first = scramble(~number) % first_lines_;
  // Between CR and LF a cut would leave a bare CR before the closing CRLF.
  if (length % kLine == kLine - 1) --length;
  size_t last = first + length / kLine;
  const std::string& text = stuffed ? stuffed_ : plain_;
  size_t begin = first * kLine;
  size_t end = begin + length;
  if (stuffed) {
    begin += dots_before_[first];
    end += dots_before_[last];
    // A cut inside a line that begins with a dot: its stuffed dot is before the cut.
    if (length % kLine != 0) end += dots_before_[last + 1] - dots_before_[last];
  }
  parts[0] = {const_cast<char*>(text.data() + begin), end - begin};
  parts[1] = {crlf, 2};
  return end - begin + 2;
}

Sha256 MessageText::digest(uint64_t number, Digest& digest) const {
  std::string header(header_.size(), '\0');
  write_header(number, header.data());
  iovec parts[kBodyParts];
  body(number, false, parts);
  digest.start();
  digest.add(header.data(), header.size());
  for (const iovec& part : parts) digest.add(part.iov_base, part.iov_len);
  return digest.finish();
}

}  // namespace millrace::tools
