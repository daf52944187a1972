#include "common/end_of_data.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/prng.h"

namespace millrace::tools {
namespace {

struct Found {
  std::string content;
  size_t consumed = 0;
  bool ended = false;
  bool operator==(const Found&) const = default;
};

// Feeds `wire` in pieces cut at `cuts`, as a receiver would.
Found feed(const std::string& wire, const std::vector<size_t>& cuts) {
  EndOfData scanner;
  Found found;
  size_t begin = 0;
  for (size_t i = 0; i <= cuts.size(); ++i) {
    size_t end = i < cuts.size() ? cuts[i] : wire.size();
    // A copy of exact size, so that a sanitizer sees a read past the piece.
    std::vector<char> piece(wire.begin() + static_cast<long>(begin),
                            wire.begin() + static_cast<long>(end));
    size_t used = scanner.find(piece.data(), piece.size(), [&](const char* data, size_t size) {
      found.content.append(data, size);
    });
    if (used != EndOfData::kNotYet) {
      found.consumed = begin + used;
      found.ended = true;
      break;
    }
    begin = end;
  }
  return found;
}

void expect_at_every_split(const std::string& wire, const Found& expected) {
  EXPECT_EQ(feed(wire, {}), expected);
  for (size_t a = 0; a <= wire.size(); ++a) {
    for (size_t b = a; b <= wire.size(); ++b) {
      ASSERT_EQ(feed(wire, {a, b}), expected) << "cut at " << a << " and " << b;
    }
  }
  std::vector<size_t> all;
  for (size_t i = 1; i < wire.size(); ++i) all.push_back(i);
  EXPECT_EQ(feed(wire, all), expected) << "octet by octet";
}

TEST(EndOfData, IsFoundAtEverySplit) {
  expect_at_every_split("a\r\nbc\r\n.\r\nMAIL", {"a\r\nbc\r\n", 10, true});
}
TEST(EndOfData, StuffedDotsAreRemovedAtEverySplit) {
  expect_at_every_split("..\r\n..a\r\n.b\r\n...\r\n.\r\n.\r\n",
                        {".\r\n.a\r\nb\r\n..\r\n", 21, true});
}
TEST(EndOfData, DataMayBeEmpty) { expect_at_every_split(".\r\nQUIT\r\n", {"", 3, true}); }
TEST(EndOfData, ABareLineFeedOrReturnEndsNothing) {
  std::string wire = "a\n.\nb\r.\rc\n.\r\nd\r\n.\nx\r\n.\rx\r\n\r\r\n.\r\n";
  expect_at_every_split(wire, {"a\n.\nb\r.\rc\n.\r\nd\r\n\nx\r\n\rx\r\n\r\r\n", wire.size(), true});
}
TEST(EndOfData, IsNotSeenBeforeItsLastOctet) {
  EXPECT_FALSE(feed("a\r\n.\r", {}).ended);
  EXPECT_FALSE(feed("a\r\n.", {}).ended);
}
TEST(EndOfData, BareLineFeedsAreCounted) {
  EndOfData scanner;
  std::string wire = "a\nb\r\nc\n\n.\r\n\r\n.\r\n";
  EXPECT_NE(scanner.find(wire.data(), wire.size()), EndOfData::kNotYet);
  EXPECT_EQ(scanner.bare_line_feeds(), 3u);
}

// A slow reading of the same rule, to compare with.
Found by_lines(const std::string& wire) {
  Found found;
  size_t at = 0;
  while (true) {
    size_t end = wire.find("\r\n", at);
    if (end == std::string::npos) return found;
    std::string line = wire.substr(at, end + 2 - at);
    at = end + 2;
    if (line == ".\r\n") {
      found.consumed = at;
      found.ended = true;
      return found;
    }
    found.content += line[0] == '.' ? line.substr(1) : line;
  }
}

TEST(EndOfData, AgreesWithASlowReadingOnRandomStreams) {
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    Prng prng(seed);
    std::string wire;
    size_t length = prng.below(60);
    for (size_t i = 0; i < length; ++i) wire += "\r\n.x\r\n."[prng.below(7)];
    wire += "\r\n.\r\n";
    std::vector<size_t> cuts;
    for (size_t at = 0; (at += prng.below(9)) < wire.size();) cuts.push_back(at);
    ASSERT_EQ(feed(wire, cuts), by_lines(wire)) << "seed " << seed;
  }
}

}  // namespace
}  // namespace millrace::tools
