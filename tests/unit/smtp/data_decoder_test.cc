// The intake pass against a model that looks at one octet at a time, over every kind of split.
#include "smtp/data_decoder.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "base/crc32c.h"
#include "base/prng.h"

namespace millrace::smtp {
namespace {

// What a message's facts are, by the definitions alone.
struct Model {
  uint64_t used = 0;  // octets up to and including the end of data
  bool finished = false;
  uint64_t raw_size = 0;
  std::vector<uint32_t> dots;
  LineFault fault = LineFault::none;
  uint64_t line = 0, octet = 0;
  bool eight_bit = false;
  bool ends_in_crlf = true;
};

Model model_of(std::string_view bytes, bool stuffed) {
  Model model;
  uint64_t line = 1, line_start = 0;
  auto report = [&](LineFault fault, uint64_t at) {
    if (model.fault != LineFault::none) return;
    model.fault = fault;
    model.line = line;
    model.octet = at - line_start + 1;
  };
  size_t i = 0;
  bool start = true;
  for (; i < bytes.size(); ++i) {
    char c = bytes[i];
    if (start && c == '.') {
      if (stuffed && bytes.substr(i, 3) == ".\r\n") {
        model.finished = true;
        model.used = i + 3;
        break;
      }
      model.dots.push_back(static_cast<uint32_t>(i));
      if (stuffed) {
        line_start = i + 1;
        start = false;
        continue;
      }
    }
    start = false;
    if (static_cast<unsigned char>(c) >= 0x80) model.eight_bit = true;
    if (c == '\r' && i + 1 < bytes.size() && bytes[i + 1] == '\n') {
      ++i;
      ++line;
      line_start = i + 1;
      start = true;
      continue;
    }
    if (c == '\r' && stuffed && i + 1 == bytes.size()) continue;  // nobody can know yet
    if (c == '\r') report(LineFault::bare_cr, i);
    if (c == '\n') report(LineFault::bare_lf, i);
    if (c == '\0') report(LineFault::nul, i);
    if (i - line_start >= 998) report(LineFault::long_line, i);
  }
  model.raw_size = i;
  model.ends_in_crlf = i == 0 || start;
  if (!model.finished) model.used = i;
  return model;
}

IntakeFacts run_data(std::string_view bytes, const std::vector<size_t>& splits, size_t& used,
                     bool& finished, uint64_t max_size = 1 << 30) {
  DataDecoder decoder(max_size);
  used = 0;
  finished = false;
  size_t next = 0;
  while (used < bytes.size() && !finished) {
    while (next < splits.size() && splits[next] <= used) ++next;
    size_t end = next < splits.size() ? std::min(splits[next], bytes.size()) : bytes.size();
    // A copy, so that a read past the piece is seen by the sanitizers.
    std::vector<char> piece(bytes.begin() + static_cast<ptrdiff_t>(used),
                            bytes.begin() + static_cast<ptrdiff_t>(end));
    auto consumed = decoder.consume(piece.data(), piece.size());
    EXPECT_LE(consumed.body, consumed.used);
    if (!consumed.finished) {
      EXPECT_EQ(consumed.used, piece.size());
      EXPECT_EQ(consumed.body, piece.size());
    }
    used += consumed.used;
    finished = consumed.finished;
  }
  return decoder.facts();
}

void expect_data(std::string_view bytes, const std::vector<size_t>& splits) {
  Model model = model_of(bytes, true);
  size_t used = 0;
  bool finished = false;
  IntakeFacts facts = run_data(bytes, splits, used, finished);
  ASSERT_EQ(finished, model.finished);
  ASSERT_EQ(used, model.used);
  ASSERT_EQ(facts.fault, model.fault);
  ASSERT_EQ(facts.fault_line, model.line);
  ASSERT_EQ(facts.fault_octet, model.octet);
  ASSERT_EQ(facts.eight_bit, model.eight_bit);
  if (!finished) return;  // the rest is exact only then
  ASSERT_EQ(facts.raw_size, model.raw_size);
  ASSERT_EQ(facts.dot_count, model.dots.size());
  if (model.dots.size() <= mail::kMostListedDots) {
    ASSERT_EQ(facts.dots, model.dots);
  }
  ASSERT_EQ(facts.crc, crc32c(0, bytes.substr(0, model.raw_size)));
  ASSERT_EQ(facts.ends_in_crlf, model.ends_in_crlf);
}

void expect_bdat(std::string_view bytes, const std::vector<size_t>& splits) {
  Model model = model_of(bytes, false);
  BdatDecoder decoder(1 << 30);
  size_t from = 0;
  for (size_t i = 0; i <= splits.size(); ++i) {
    size_t to = i < splits.size() ? std::min(splits[i], bytes.size()) : bytes.size();
    if (to < from) continue;
    std::vector<char> piece(bytes.begin() + static_cast<ptrdiff_t>(from),
                            bytes.begin() + static_cast<ptrdiff_t>(to));
    decoder.consume(piece.data(), piece.size());
    from = to;
  }
  decoder.finish();
  const IntakeFacts& facts = decoder.facts();
  ASSERT_EQ(facts.raw_size, bytes.size());
  ASSERT_EQ(facts.fault, model.fault);
  ASSERT_EQ(facts.fault_line, model.line);
  ASSERT_EQ(facts.fault_octet, model.octet);
  ASSERT_EQ(facts.eight_bit, model.eight_bit);
  ASSERT_EQ(facts.ends_in_crlf, model.ends_in_crlf);
  ASSERT_EQ(facts.dots, model.dots);
  ASSERT_EQ(facts.crc, crc32c(0, bytes));
}

// Text made of what matters, with runs of plain octets so that blocks of 64 are crossed at all
// places.
std::string random_text(Prng& prng, bool faults) {
  std::string text;
  size_t tokens = prng.below(40);
  for (size_t i = 0; i < tokens; ++i) {
    switch (prng.below(faults ? 14 : 8)) {
      case 0:
      case 1:
      case 2:
        text += "\r\n";
        break;
      case 3:
        text += ".";
        break;
      case 4:
        text += "\r\n.";
        break;
      case 5:
        text.append(prng.below(130), 'a');
        break;
      case 6:
        text.append(prng.below(4), 'b');
        break;
      case 7:
        text += prng.chance(0.2) ? "\xc3\xa9" : "c";
        break;
      case 8:
        text += "\n";
        break;
      case 9:
        text += "\r";
        break;
      case 10:
        text += prng.chance(0.3) ? std::string(1, '\0') : "d";
        break;
      case 11:
        text.append(900 + prng.below(200), 'e');
        break;
      case 12:
        text += "\n.";
        break;
      case 13:
        text += "\r\n.\r";
        break;
    }
  }
  return text;
}

std::vector<size_t> random_splits(Prng& prng, size_t size) {
  std::vector<size_t> splits;
  size_t at = 0;
  uint64_t longest = 1 + prng.below(prng.chance(0.5) ? 4 : 300);
  while (at < size) splits.push_back(at += 1 + prng.below(longest));
  return splits;
}

TEST(Blocks, BothWaysOfPassingPlainOnesAgree) {
  if (!detail::avx512_usable()) GTEST_SKIP() << "the processor has no AVX-512";
  Prng prng(3);
  size_t passed = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string bytes;
    while (bytes.size() < 1000) {
      bytes.append(prng.below(120), static_cast<char>(prng.chance(0.01) ? 0xe4 : 'a' + prng.below(26)));
      bytes += prng.chance(0.98) ? "\r\n" : prng.chance(0.5) ? "\n." : std::string("\r\0.", 3);
    }
    detail::PlainRun one, other;
    one.at_line_start = other.at_line_start = 1;
    const size_t at = detail::pass_plain(one, bytes.data(), 0, bytes.size());
    EXPECT_EQ(detail::pass_plain_avx512(other, bytes.data(), 0, bytes.size()), at);
    EXPECT_EQ(one.line_start, other.line_start);
    EXPECT_EQ(one.after_cr, other.after_cr);
    EXPECT_EQ(one.at_line_start, other.at_line_start);
    EXPECT_EQ(one.lines, other.lines);
    EXPECT_EQ(one.eight_bit, other.eight_bit);
    passed += at;
  }
  EXPECT_GT(passed, 64'000u);
}

TEST(DataDecoder, AgreesWithTheModelAtEverySplit) {
  Prng prng(1);
  for (int round = 0; round < 6000 && !testing::Test::HasFailure(); ++round) {
    std::string text = random_text(prng, round % 2 == 0);
    if (round % 3) text += "\r\n.\r\nMAIL FROM:<\xc3\xa9>\r\n";
    SCOPED_TRACE(round);
    expect_data(text, {});
    expect_data(text, random_splits(prng, text.size()));
    expect_bdat(text, {});
    expect_bdat(text, random_splits(prng, text.size()));
  }
}

TEST(DataDecoder, EveryTwoSplitsOfShortDataGiveTheSame) {
  for (std::string text :
       {"..\r\na\r\n.\r\nX", ".\r\n", ".\r.\r\n.\r\n", "a\r\n.\r\r\n.\r\n", "\r\n..\r\n.\r\n"}) {
    for (size_t i = 0; i <= text.size(); ++i) {
      for (size_t j = i; j <= text.size(); ++j) expect_data(text, {i, j});
    }
  }
}

TEST(DataDecoder, LongPiecesAreScannedInStripsWithTheSameResult) {
  // Longer than a strip of 8192, the final dot at every place around its end.
  for (size_t size = 8180; size < 8200; ++size) {
    std::string text;
    while (text.size() + 2 < size)
      text.append(std::min<size_t>(70, size - 2 - text.size()), 'x') += "\r\n";
    text.resize(size - 2);
    text += "\r\n.\r\nQUIT\r\n";
    expect_data(text, {});
    for (size_t split = size - 3; split < size + 4; ++split) expect_data(text, {split});
  }
}

TEST(DataDecoder, AVeryLongStreamCostsNoMemoryAndIsCounted) {
  DataDecoder decoder(1000);
  std::string piece(65536, 'x');
  for (int i = 0; i < 100; ++i) ASSERT_FALSE(decoder.consume(piece.data(), piece.size()).finished);
  EXPECT_TRUE(decoder.facts().too_large);
  EXPECT_EQ(decoder.facts().fault, LineFault::long_line);
  EXPECT_EQ(decoder.facts().fault_octet, 999u);
  std::string end = "\r\n.\r\n";
  EXPECT_TRUE(decoder.consume(end.data(), end.size()).finished);
}

// CVE-2023-51764 and its kin: none of these ends data.
TEST(DataDecoder, OnlyCrlfDotCrlfEndsData) {
  for (std::string end : {"\n.\n", "\r\n.\n", "\n.\r\n", "\r.\r", "\r.\r\n", "\r\n.\r",
                          "\r\n.\r\r\n", "\n\r.\r\n", "\r\n.\n\r\n"}) {
    std::string text = "body" + end + "MAIL FROM:<smuggled@example.org>\r\n";
    size_t used = 0;
    bool finished = true;
    IntakeFacts facts = run_data(text, {}, used, finished);
    EXPECT_FALSE(finished);
    EXPECT_NE(facts.fault, LineFault::none);
  }
  std::string with_nul("body\r\n\0.\r\nMAIL", 14);
  size_t used = 0;
  bool finished = true;
  EXPECT_EQ(run_data(with_nul, {}, used, finished).fault, LineFault::nul);
  EXPECT_FALSE(finished);
}

TEST(DataDecoder, TheFirstFaultIsNamedByLineAndOctet) {
  size_t used = 0;
  bool finished = false;
  IntakeFacts facts = run_data("one\r\n..two\nthree\rfour\r\n.\r\n", {}, used, finished);
  EXPECT_EQ(facts.fault, LineFault::bare_lf);
  EXPECT_EQ(facts.fault_line, 2u);
  EXPECT_EQ(facts.fault_octet, 5u);  // of ".two", the transparency dot not counted
}

TEST(DataDecoder, ALineOf998OctetsIsTheLongest) {
  for (bool dotted : {false, true}) {
    std::string line = (dotted ? ".." : "a") + std::string(997, 'x');  // 998 canonical octets
    size_t used = 0;
    bool finished = false;
    EXPECT_EQ(run_data("a\r\n" + line + "\r\n.\r\n", {}, used, finished).fault, LineFault::none);
    IntakeFacts facts = run_data("a\r\n" + line + "x\r\n.\r\n", {}, used, finished);
    EXPECT_EQ(facts.fault, LineFault::long_line);
    EXPECT_EQ(facts.fault_line, 2u);
    EXPECT_EQ(facts.fault_octet, 999u);
  }
}

TEST(DataDecoder, TheSizeLimitIsAboutTheCanonicalContent) {
  // 3 canonical lines of ".", 9 octets, in 12 raw ones.
  std::string text = "..\r\n..\r\n..\r\n.\r\n";
  for (size_t split = 0; split < text.size(); ++split) {
    size_t used = 0;
    bool finished = false;
    EXPECT_FALSE(run_data(text, {split}, used, finished, 9).too_large);
    EXPECT_TRUE(run_data(text, {split}, used, finished, 8).too_large);
    EXPECT_TRUE(finished);
  }
}

TEST(DataDecoder, PastTheListedDotsTheyAreOnlyCounted) {
  std::string text;
  for (uint32_t i = 0; i < mail::kMostListedDots; ++i) text += "..\r\n";
  size_t used = 0;
  bool finished = false;
  IntakeFacts facts = run_data(text + ".\r\n", {text.size() + 1}, used, finished);
  EXPECT_EQ(facts.dots.size(), mail::kMostListedDots);
  facts = run_data(text + "..\r\n.\r\n", {}, used, finished);
  EXPECT_EQ(facts.dots.size(), 0u);
  EXPECT_EQ(facts.dot_count, mail::kMostListedDots + 1);
  EXPECT_EQ(facts.size(), facts.raw_size - facts.dot_count);
}

TEST(DataDecoder, FactsTrimTheSpansToTheContent) {
  DataDecoder decoder(1000);
  mail::Content content;
  std::string a = "x\r\n.", b = "\r", c = "\nQUIT\r\n";
  for (std::string* piece : {&a, &b, &c}) {
    auto consumed = decoder.consume(piece->data(), piece->size());
    content.append_raw(std::string_view(*piece).substr(0, consumed.body));
    if (consumed.finished) {
      EXPECT_EQ(consumed.used, 1u);
    }
  }
  decoder.facts().apply_to(content);
  EXPECT_EQ(content.raw_size, 3u);
  ASSERT_EQ(content.raw.size(), 1u);
  EXPECT_EQ(content.raw[0], "x\r\n");
  EXPECT_TRUE(content.stuffed);
  EXPECT_EQ(content.crc, crc32c(0, "x\r\n"));
}

TEST(DataDecoder, WideAndPortableMasksAgree) {
  Prng prng(2);
  const char interesting[] = {'\r', '\n', '.', '\0', '\x80', '\xff', 'a', '\x7f'};
  for (int round = 0; round < 1000; ++round) {
    char block[64];
    for (char& c : block) c = interesting[prng.below(8)];
    auto fast = detail::masks_fast(block);
    auto slow = detail::masks_portable(block);
    ASSERT_EQ(fast.cr, slow.cr);
    ASSERT_EQ(fast.lf, slow.lf);
    ASSERT_EQ(fast.dot, slow.dot);
    ASSERT_EQ(fast.nul, slow.nul);
    ASSERT_EQ(fast.high, slow.high);
  }
}

TEST(BdatDecoder, CrlfMaySplitOverChunks) {
  BdatDecoder decoder(1000);
  decoder.consume("a\r", 2);
  decoder.consume("\n.b\r", 4);
  decoder.consume("\n", 1);
  decoder.finish();
  EXPECT_EQ(decoder.facts().fault, LineFault::none);
  EXPECT_TRUE(decoder.facts().ends_in_crlf);
  EXPECT_EQ(decoder.facts().dots, std::vector<uint32_t>{3});
}

TEST(BdatDecoder, ACrAtTheVeryEndIsBare) {
  BdatDecoder decoder(1000);
  decoder.consume("a\r\nbc\r", 6);
  decoder.finish();
  EXPECT_EQ(decoder.facts().fault, LineFault::bare_cr);
  EXPECT_EQ(decoder.facts().fault_line, 2u);
  EXPECT_EQ(decoder.facts().fault_octet, 3u);
}

TEST(BdatDecoder, NothingInsideEndsTheData) {
  std::string text = "a\r\n.\r\nb\r\n";
  BdatDecoder decoder(1000);
  decoder.consume(text.data(), text.size());
  decoder.finish();
  EXPECT_EQ(decoder.facts().raw_size, text.size());
  EXPECT_EQ(decoder.facts().fault, LineFault::none);
}

}  // namespace
}  // namespace millrace::smtp
