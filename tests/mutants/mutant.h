// One switch of tests/mutants/mutants.toml, at the place where mutate.py has put it.
#pragma once

#include <cstdlib>
#include <cstring>

namespace millrace {

class Mutant {
 public:
  explicit Mutant(const char* name) {
    const char* wanted = std::getenv("MILLRACE_MUTANT");
    on_ = wanted && std::strcmp(wanted, name) == 0;
  }
  // Every n-th time it is asked, if it is switched on.
  bool operator()(unsigned n = 1) { return on_ && ++asked_ % n == 0; }

 private:
  bool on_ = false;
  unsigned asked_ = 0;
};

}  // namespace millrace
