// Runs a simulation with many seeds. A failing seed ends the test and is printed with the command that
// replays it.
//
//   TEST(Relay, LosesNothing) { for_each_seed(20, [](uint64_t seed) { ... EXPECT_... }); }
//
// MILLRACE_SEED=n runs that one; MILLRACE_SEEDS=n runs n of them in place of the number in the test;
// MILLRACE_FIRST_SEED=n begins there.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>

namespace millrace::sim {

inline std::optional<uint64_t> number_from_environment(const char* name) {
  const char* text = std::getenv(name);
  if (!text || !*text) return {};
  return std::strtoull(text, nullptr, 0);
}

template <typename Run>
void for_each_seed(uint64_t count, Run run) {
  uint64_t first = number_from_environment("MILLRACE_FIRST_SEED").value_or(1);
  count = number_from_environment("MILLRACE_SEEDS").value_or(count);
  if (auto one = number_from_environment("MILLRACE_SEED")) {
    first = *one;
    count = 1;
  }
  for (uint64_t seed = first; seed < first + count; ++seed) {
    run(seed);
    if (!::testing::Test::HasFailure()) continue;
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    std::printf("seed %llu failed. To replay it:\n  MILLRACE_SEED=%llu build/tests/sim/test_sim "
                "--gtest_filter=%s.%s\n",
                static_cast<unsigned long long>(seed), static_cast<unsigned long long>(seed),
                test->test_suite_name(), test->name());
    return;
  }
}

}  // namespace millrace::sim
