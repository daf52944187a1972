// Which domains the load generator writes to, and how often.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/prng.h"
#include "base/result.h"

namespace millrace::tools {

class DomainLaw {
 public:
  // "a.example:3,b.example" (weights, 1 by default); "zipf:N[:SUFFIX]" (d0.SUFFIX ... with weight
  // 1/rank, SUFFIX load.invalid by default); "uniform:N[:SUFFIX]"; or a file with one "name
  // [weight]" a line.
  static Result<DomainLaw> parse(const std::string& text);

  // Draws one number.
  std::string_view pick(Prng& prng) const;
  size_t size() const { return names_.size(); }

 private:
  void add(std::string name, double weight);
  std::vector<std::string> names_;
  std::vector<double> up_to_;  // running sums of the weights
};

}  // namespace millrace::tools
