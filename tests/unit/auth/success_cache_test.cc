#include "auth/success_cache.h"

#include <gtest/gtest.h>

namespace millrace::auth {
namespace {

TEST(SuccessCache, KnowsWhatWasRightForSomeMinutes) {
  SuccessCache cache("key");
  const std::string digest = cache.digest("joe", "$y$hash", "secret");
  EXPECT_FALSE(cache.contains(digest, 0));
  cache.add(digest, 0);
  EXPECT_TRUE(cache.contains(digest, 299'999));
  EXPECT_FALSE(cache.contains(digest, 300'000));
  EXPECT_EQ(cache.size(), 0u);
}

TEST(SuccessCache, EveryPartMustBeTheSame) {
  SuccessCache cache("key"), other("another key");
  const std::string digest = cache.digest("joe", "hash", "secret");
  EXPECT_NE(digest, cache.digest("joe", "new hash", "secret"));
  EXPECT_NE(digest, cache.digest("joe", "hash", "Secret"));
  EXPECT_NE(digest, cache.digest("joeh", "ash", "secret"));
  EXPECT_NE(digest, other.digest("joe", "hash", "secret"));
}

TEST(SuccessCache, IsBounded) {
  SuccessCache cache("key", 300'000, 10);
  for (int i = 0; i < 100; ++i) cache.add(cache.digest("joe", "hash", std::to_string(i)), 0);
  EXPECT_EQ(cache.size(), 10u);
  EXPECT_TRUE(cache.contains(cache.digest("joe", "hash", "99"), 0));
}

}  // namespace
}  // namespace millrace::auth
