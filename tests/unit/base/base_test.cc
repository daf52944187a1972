#include <gtest/gtest.h>

#include <new>
#include <string>

#include "base/crc32c.h"
#include "base/intrusive_list.h"
#include "base/out_of_memory.h"
#include "base/prng.h"
#include "base/result.h"

namespace millrace {
namespace {

TEST(Crc32c, KnownVectors) {
  EXPECT_EQ(crc32c(0, "123456789"), 0xe3069283u);            // RFC 3720 B.4's check value
  EXPECT_EQ(crc32c(0, std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(0, std::string(32, '\xff')), 0x62a8ab43u);
}

TEST(Crc32c, AnySplitGivesTheSameSum) {
  Prng prng(1);
  std::string bytes(5000, '\0');
  for (char& c : bytes) c = static_cast<char>(prng.next());
  uint32_t bitwise = ~0u;
  for (unsigned char c : bytes) {
    bitwise ^= c;
    for (int bit = 0; bit < 8; ++bit) bitwise = (bitwise >> 1) ^ ((bitwise & 1) ? 0x82f63b78u : 0);
  }
  EXPECT_EQ(crc32c(0, bytes), ~bitwise);
  EXPECT_EQ(detail::crc32c_unfolded(0, bytes.data(), bytes.size()), ~bitwise);
  for (int i = 0; i < 100; ++i) {
    size_t at = prng.below(bytes.size());
    std::string_view view = bytes;
    EXPECT_EQ(crc32c(crc32c(0, view.substr(0, at)), view.substr(at)), ~bitwise);
  }
}

struct Node {
  int number;
  Link link;
};

TEST(IntrusiveList, KeepsOrderAndUnlinksFromTheMiddle) {
  Node a{1, {}}, b{2, {}}, c{3, {}};
  IntrusiveList<Node, &Node::link> list;
  list.push_back(b);
  list.push_back(c);
  list.push_front(a);
  b.link.unlink();
  EXPECT_FALSE(b.link.linked());
  EXPECT_EQ(list.front()->number, 1);
  EXPECT_EQ(list.next(a)->number, 3);
  EXPECT_EQ(list.next(c), nullptr);
  EXPECT_EQ(list.pop_front()->number, 1);
  EXPECT_EQ(list.pop_front()->number, 3);
  EXPECT_TRUE(list.empty());
}

TEST(Result, HoldsAValueOrItsError) {
  Result<int> good = 3;
  EXPECT_TRUE(good.ok());
  EXPECT_EQ(*good, 3);
  Result<int> bad = fail("no such file", 2);
  EXPECT_FALSE(bad.ok());
  EXPECT_EQ(bad.error().text, "no such file");
  EXPECT_EQ(bad.error().number, 2);
}

TEST(ResultDeathTest, ValueOfAnErrorStopsTheProcess) {
  Result<int> bad = fail("no");
  EXPECT_DEATH((void)*bad, "assertion failed");
}

TEST(OutOfMemoryDeathTest, EndsTheProcessByName) {
  EXPECT_EXIT(
      {
        name_the_end_of_memory();
        std::get_new_handler()();
      },
      ::testing::ExitedWithCode(kOutOfMemoryExitCode), "out of memory");
}

TEST(Prng, SameSeedSameRun) {
  Prng a(7), b(7);
  for (int i = 0; i < 100; ++i) {
    uint64_t x = a.below(10);
    EXPECT_EQ(x, b.below(10));
    EXPECT_LT(x, 10u);
  }
}

}  // namespace
}  // namespace millrace
