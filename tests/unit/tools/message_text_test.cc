#include "common/message_text.h"

#include <gtest/gtest.h>

#include <string>

#include "common/domains.h"
#include "common/end_of_data.h"
#include "common/histogram.h"

namespace millrace::tools {
namespace {

std::string whole(const MessageText& text, uint64_t number, bool stuffed) {
  std::string message(text.header_size(), '\0');
  text.write_header(number, message.data());
  iovec parts[MessageText::kBodyParts];
  size_t size = text.body(number, stuffed, parts);
  for (const iovec& part : parts) message.append(static_cast<char*>(part.iov_base), part.iov_len);
  EXPECT_EQ(message.size(), text.header_size() + size);
  return message;
}

TEST(MessageText, StuffedFormUnstuffsToThePlainForm) {
  auto law = SizeLaw::parse("uniform:10-9000");
  ASSERT_TRUE(law);
  MessageText text(7, *law, 0.3, "a@load.invalid");
  for (uint64_t number = 0; number < 2000; ++number) {
    std::string plain = whole(text, number, false);
    std::string wire = whole(text, number, true) + ".\r\n";
    EndOfData scanner;
    std::string content;
    size_t used = scanner.find(wire.data(), wire.size(),
                               [&](const char* data, size_t size) { content.append(data, size); });
    ASSERT_EQ(used, wire.size()) << number;
    ASSERT_EQ(content, plain) << number;
    ASSERT_EQ(scanner.bare_line_feeds(), 0u);
    // Every CR is followed by LF.
    for (size_t at = 0; (at = plain.find('\r', at)) != std::string::npos; ++at) {
      ASSERT_EQ(plain[at + 1], '\n');
    }
  }
}

TEST(MessageText, HasTheSizeAskedFor) {
  auto law = SizeLaw::parse("20KiB");
  ASSERT_TRUE(law);
  MessageText text(1, *law, 0.1, "a@load.invalid");
  for (uint64_t number = 0; number < 100; ++number) {
    size_t size = whole(text, number, false).size();
    EXPECT_LE(size, 20480u);
    EXPECT_GE(size, 20479u);  // one less where a cut would part CR from LF
  }
}

TEST(MessageText, BeginsWithItsIdAndTheSameNumberIsTheSameMessage) {
  auto law = SizeLaw::parse("lognormal");
  ASSERT_TRUE(law);
  MessageText text(0xabcdef01, *law, 0.1, "a@load.invalid");
  EXPECT_EQ(whole(text, 42, false).substr(0, 30), "X-Load-Id: abcdef01-0000000042");
  EXPECT_EQ(whole(text, 42, false), whole(text, 42, false));
  Digest digest;
  EXPECT_EQ(text.digest(42, digest), text.digest(42, digest));
  EXPECT_NE(text.digest(42, digest), text.digest(43, digest));
}

TEST(LoadIds, AreReadBackAndRubbishIsRefused) {
  char out[kIdSize];
  write_id({0x12ab, 9'999'999'999}, out);
  LoadId id;
  ASSERT_TRUE(parse_id(std::string_view(out, sizeof out), id));
  EXPECT_EQ(id.run, 0x12abu);
  EXPECT_EQ(id.number, 9'999'999'999u);
  EXPECT_FALSE(parse_id("12", id));
  EXPECT_FALSE(parse_id("0000000g-0000000000", id));
  EXPECT_FALSE(parse_id("00000000-00000000x0", id));
}

TEST(SizeLaws, MistakesAreNamed) {
  EXPECT_FALSE(SizeLaw::parse("uniform:9-3"));
  EXPECT_FALSE(SizeLaw::parse("twenty"));
  EXPECT_FALSE(SizeLaw::parse("4GiB"));
  EXPECT_TRUE(parse_size("4KiB"));
  EXPECT_EQ(*parse_size("4KiB"), 4096u);
  EXPECT_EQ(*parse_duration("80ms"), 80'000'000);
  EXPECT_FALSE(parse_duration("80 parsecs"));
}

TEST(Domains, AreDrawnByTheirWeights) {
  auto law = DomainLaw::parse("a.example:3,b.example");
  ASSERT_TRUE(law);
  Prng prng(1);
  int a = 0;
  for (int i = 0; i < 10'000; ++i) a += law->pick(prng) == "a.example";
  EXPECT_NEAR(a, 7500, 200);
  auto zipf = DomainLaw::parse("zipf:1000:x.example");
  ASSERT_TRUE(zipf);
  int first = 0, second = 0;
  for (int i = 0; i < 10'000; ++i) {
    auto name = zipf->pick(prng);
    first += name == "d0.x.example";
    second += name == "d1.x.example";
  }
  EXPECT_NEAR(first, 2 * second, 250);
  EXPECT_FALSE(DomainLaw::parse("zipf:x"));
  EXPECT_FALSE(DomainLaw::parse("/does/not/exist"));
}

TEST(Percentiles, LieWithinABucketOfTheTruth) {
  Histogram histogram;
  for (int i = 1; i <= 100'000; ++i) histogram.add(i * 1000);
  EXPECT_NEAR(histogram.percentile_ms(50), 50, 0.9);
  EXPECT_NEAR(histogram.percentile_ms(99), 99, 1.7);
  EXPECT_DOUBLE_EQ(histogram.percentile_ms(100), 100);
  EXPECT_DOUBLE_EQ(histogram.max_ms(), 100);
  EXPECT_DOUBLE_EQ(Histogram().percentile_ms(50), 0);
}

}  // namespace
}  // namespace millrace::tools
