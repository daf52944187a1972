#include "common/domains.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>

namespace millrace::tools {

namespace {

bool parse_weight(std::string_view text, double& weight) {
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), weight);
  return error == std::errc() && end == text.data() + text.size() && weight > 0;
}

}  // namespace

void DomainLaw::add(std::string name, double weight) {
  names_.push_back(std::move(name));
  up_to_.push_back((up_to_.empty() ? 0 : up_to_.back()) + weight);
}

Result<DomainLaw> DomainLaw::parse(const std::string& text) {
  DomainLaw law;
  bool zipf = text.starts_with("zipf:");
  if (zipf || text.starts_with("uniform:")) {
    std::string_view rest = std::string_view(text).substr(text.find(':') + 1);
    size_t count = 0;
    auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), count);
    std::string_view suffix(end, static_cast<size_t>(rest.data() + rest.size() - end));
    if (error != std::errc() || count == 0 || (!suffix.empty() && suffix[0] != ':')) {
      return fail(fmt::format("\"{}\" is not zipf:N[:SUFFIX] or uniform:N[:SUFFIX]", text));
    }
    suffix = suffix.empty() ? "load.invalid" : suffix.substr(1);
    for (size_t i = 0; i < count; ++i) {
      law.add(fmt::format("d{}.{}", i, suffix), zipf ? 1 / static_cast<double>(i + 1) : 1);
    }
    return law;
  }
  if (text.find('/') != std::string::npos) {
    std::ifstream file(text);
    if (!file) return fail(fmt::format("{}: cannot be read", text));
    std::string line;
    for (int number = 1; std::getline(file, line); ++number) {
      std::istringstream words(line);
      std::string name, weight;
      if (!(words >> name) || name[0] == '#') continue;
      double value = 1;
      if (words >> weight && !parse_weight(weight, value)) {
        return fail(fmt::format("{}:{}: \"{}\" is not a weight", text, number, weight));
      }
      law.add(name, value);
    }
  } else {
    for (size_t at = 0; at <= text.size();) {
      size_t comma = std::min(text.find(',', at), text.size());
      std::string item = text.substr(at, comma - at);
      at = comma + 1;
      double weight = 1;
      if (auto colon = item.find(':'); colon != std::string::npos) {
        if (!parse_weight(std::string_view(item).substr(colon + 1), weight)) {
          return fail(fmt::format("\"{}\" is not NAME:WEIGHT", item));
        }
        item.resize(colon);
      }
      if (!item.empty()) law.add(item, weight);
    }
  }
  if (law.names_.empty()) return fail(fmt::format("\"{}\" names no domain", text));
  return law;
}

std::string_view DomainLaw::pick(Prng& prng) const {
  double point = prng.unit() * up_to_.back();
  auto found = std::upper_bound(up_to_.begin(), up_to_.end(), point);
  return names_[std::min(static_cast<size_t>(found - up_to_.begin()), names_.size() - 1)];
}

}  // namespace millrace::tools
