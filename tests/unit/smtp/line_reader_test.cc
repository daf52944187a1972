#include "smtp/line_reader.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/prng.h"

namespace millrace::smtp {
namespace {

using Outcome = LineReader::Outcome;

// Everything the reader reports, lines in brackets, with the input cut at `splits`.
std::string read_all(std::string_view input, const std::vector<size_t>& splits, size_t limit = 64) {
  LineReader reader(limit);
  std::string seen;
  size_t from = 0;
  for (size_t i = 0; i <= splits.size(); ++i) {
    size_t to = i < splits.size() ? std::min(splits[i], input.size()) : input.size();
    std::string owned(input.substr(from, to - from));  // an own block, so that stale views show
    std::string_view piece = owned;
    while (!piece.empty()) {
      auto line = reader.next(piece);
      EXPECT_LE(line.consumed, piece.size());
      if (line.outcome == Outcome::line) {
        seen.append("[").append(line.text).append("]");
      } else if (line.outcome == Outcome::incomplete) {
        EXPECT_EQ(line.consumed, piece.size());
      } else {
        seen.append("!").append(std::to_string(static_cast<int>(line.outcome)));
      }
      piece.remove_prefix(line.consumed);
    }
    from = to;
  }
  return seen;
}

TEST(LineReader, SplitsLinesAtCrlf) {
  EXPECT_EQ(read_all("EHLO a\r\n\r\nQUIT\r\nNO", {}), "[EHLO a][][QUIT]");
}

TEST(LineReader, EverySplitGivesTheSame) {
  for (const std::string& input : std::vector<std::string>{
           "ab\r\nc\nd\r\ne\r\n", "a\rb\r\nc\r\r\nd\r\n", std::string("a\0b\r\nc\r\n", 8),
           std::string(100, 'x') + "\r\ny\r\n", std::string(63, 'x') + "\r\ny\r\n",
           std::string(62, 'x') + "\r\ny\r\n"}) {
    std::string whole = read_all(input, {});
    for (size_t i = 0; i <= input.size(); ++i) {
      for (size_t j = i; j <= input.size(); ++j) {
        EXPECT_EQ(read_all(input, {i, j}), whole) << input << i << " " << j;
      }
    }
    std::vector<size_t> single;
    for (size_t i = 1; i < input.size(); ++i) single.push_back(i);
    EXPECT_EQ(read_all(input, single), whole);
  }
}

TEST(LineReader, BareLineEndsAndNulAreReportedOnceAndEndNoLine) {
  EXPECT_EQ(read_all("a\nMAIL\nb\r\nc\r\n", {}), "!3[c]");
  EXPECT_EQ(read_all("a\rMAIL\rb\r\nc\r\n", {}), "!4[c]");
  EXPECT_EQ(read_all(std::string_view("a\0b\r\nc\r\n", 8), {}), "!5[c]");
}

TEST(LineReader, TheLimitCountsCrlf) {
  EXPECT_EQ(read_all(std::string(62, 'x') + "\r\n", {}), "[" + std::string(62, 'x') + "]");
  EXPECT_EQ(read_all(std::string(63, 'x') + "\r\nb\r\n", {}), "!2[b]");
}

TEST(LineReader, AHundredMegabytesWithoutALineEndCostNothing) {
  LineReader reader(512);
  std::string piece(1 << 20, 'x');
  int reports = 0;
  for (int i = 0; i < 100; ++i) {
    std::string_view rest = piece;
    while (!rest.empty()) {
      auto line = reader.next(rest);
      reports += line.outcome == Outcome::too_long;
      rest.remove_prefix(line.consumed);
    }
  }
  EXPECT_EQ(reports, 1);
  EXPECT_EQ(reader.skipped(), 100u << 20);
  EXPECT_EQ(reader.next("\r\n").outcome, Outcome::incomplete);
  EXPECT_EQ(reader.next("NOOP\r\n").text, "NOOP");
}

TEST(LineReader, ResetForgetsAStartedLine) {
  LineReader reader;
  reader.next("MAIL FROM:<in");
  EXPECT_FALSE(reader.empty());
  reader.reset();
  EXPECT_TRUE(reader.empty());
  EXPECT_EQ(reader.next("EHLO x\r\n").text, "EHLO x");
}

}  // namespace
}  // namespace millrace::smtp
