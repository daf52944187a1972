#include "relay/descriptors.h"

#include <gtest/gtest.h>

namespace millrace::relay {
namespace {

config::Config configured(uint32_t in, uint32_t out) {
  config::Config config;
  config.max_connections = in;
  config.total_connections = out;
  return config;
}

TEST(Descriptors, AreAsConfiguredWhereThereAreEnough) {
  DescriptorSplit split = split_descriptors(configured(10'000, 20'000), 31'000);
  EXPECT_TRUE(split.enough());
  EXPECT_EQ(split.inbound, 10'000u);
  EXPECT_EQ(split.outbound, 20'000u);
}

TEST(Descriptors, AreSharedInProportionWhereThereAreTooFew) {
  DescriptorSplit split = split_descriptors(configured(10'000, 20'000), 16'000);
  EXPECT_FALSE(split.enough());
  EXPECT_EQ(split.needed, 31'000u);
  EXPECT_EQ(split.inbound, 5'000u);
  EXPECT_EQ(split.outbound, 10'000u);
}

TEST(Descriptors, LeaveBothSidesSomethingHoweverFew) {
  for (uint64_t limit : {0u, 1u, 8u, 100u, 999u, 1000u, 1001u}) {
    DescriptorSplit split = split_descriptors(configured(1, 20'000), limit);
    EXPECT_GE(split.inbound, 1u) << limit;
    EXPECT_GE(split.outbound, 1u) << limit;
    EXPECT_LE(uint64_t{split.inbound} + split.outbound, std::max<uint64_t>(limit, 2)) << limit;
  }
}

}  // namespace
}  // namespace millrace::relay
