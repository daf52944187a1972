#include "mail/content.h"

#include <gtest/gtest.h>

#include "base/prng.h"
#include "mail/enhanced_status.h"
#include "mail/spool_id.h"

namespace millrace::mail {
namespace {

std::string gathered(const Content& content, WireForm form) {
  std::vector<iovec> parts;
  content.gather(form, parts);
  std::string bytes;
  for (const iovec& part : parts) {
    EXPECT_GT(part.iov_len, 0u);
    bytes.append(static_cast<const char*>(part.iov_base), part.iov_len);
  }
  EXPECT_EQ(bytes.size(), content.wire_size(form));
  return bytes;
}

TEST(Content, EachFormFromEachForm) {
  std::string stuffed = "a\r\n..b\r\n.c\r\n";
  Content by_data;
  by_data.prefix = "X: y\r\n";
  by_data.append_raw(stuffed);
  by_data.stuffed = true;
  by_data.dots = {3, 8};
  EXPECT_EQ(gathered(by_data, WireForm::data), "X: y\r\n" + stuffed);
  EXPECT_EQ(gathered(by_data, WireForm::bdat), "X: y\r\na\r\n.b\r\nc\r\n");
  EXPECT_EQ(by_data.size(), 16u);

  std::string plain = ".a\r\n.\r\nb";
  Content by_bdat;
  by_bdat.append_raw(plain);
  by_bdat.dots = {0, 4};
  by_bdat.ends_in_crlf = false;
  EXPECT_EQ(gathered(by_bdat, WireForm::bdat), plain);
  EXPECT_EQ(gathered(by_bdat, WireForm::data), "..a\r\n..\r\nb\r\n");
}

TEST(Content, CutsLeaveBothForms) {
  std::string raw = "A: 1\r\nBcc: x\r\nB: 2\r\n\r\n..\r\n";
  Content content;
  content.append_raw(raw);
  content.stuffed = true;
  content.dots = {22};
  content.cuts = {{6, 8}};
  EXPECT_EQ(gathered(content, WireForm::data), "A: 1\r\nB: 2\r\n\r\n..\r\n");
  EXPECT_EQ(gathered(content, WireForm::bdat), "A: 1\r\nB: 2\r\n\r\n.\r\n");
}

TEST(Content, GatherIsTheSameForEverySplitOfTheRawBytes) {
  Prng prng(4);
  for (int round = 0; round < 500; ++round) {
    std::string raw, stuffed_form, plain_form;
    Content whole;
    whole.stuffed = round % 2;
    size_t lines = prng.below(12);
    for (size_t i = 0; i < lines; ++i) {
      std::string text(prng.below(6), 'x');
      bool dot = prng.chance(0.4), cut = !dot && prng.chance(0.3);
      uint32_t at = static_cast<uint32_t>(raw.size());
      std::string line = (dot ? (whole.stuffed ? ".." : ".") : "") + text + "\r\n";
      raw += line;
      if (dot) whole.dots.push_back(at);
      if (cut) whole.cuts.push_back({at, static_cast<uint32_t>(line.size())});
      if (cut) continue;
      plain_form += (dot ? "." : "") + text + "\r\n";
      stuffed_form += (dot ? ".." : "") + text + "\r\n";
    }
    std::vector<std::string> pieces;
    for (size_t at = 0; at < raw.size();) {
      size_t size = std::min<size_t>(1 + prng.below(5), raw.size() - at);
      pieces.push_back(raw.substr(at, size));
      at += size;
    }
    for (const std::string& piece : pieces) whole.append_raw(piece);
    ASSERT_EQ(whole.raw_size, raw.size());
    ASSERT_EQ(gathered(whole, WireForm::bdat), plain_form);
    ASSERT_EQ(gathered(whole, WireForm::data), stuffed_form);
  }
}

TEST(Content, NeighboursInMemoryAreOneSpan) {
  std::string bytes = "abcdef";
  std::string other = "gh";
  Content content;
  content.append_raw(std::string_view(bytes).substr(0, 2));
  content.append_raw(std::string_view(bytes).substr(2, 4));
  content.append_raw({});
  content.append_raw(other);
  EXPECT_EQ(content.raw.size(), 2u);
  EXPECT_EQ(content.raw[0], "abcdef");
  content.truncate_raw(6);
  EXPECT_EQ(content.raw.size(), 1u);
  content.truncate_raw(4);
  EXPECT_EQ(content.raw[0], "abcd");
  content.truncate_raw(0);
  EXPECT_TRUE(content.raw.empty());
}

TEST(Content, UnlistedDotsCountAndOneFormIsLeft) {
  std::string raw = "..\r\n..\r\n";
  Content content;
  content.append_raw(raw);
  content.stuffed = true;
  content.unlisted_dots = 2;
  EXPECT_EQ(content.size(), 6u);
  EXPECT_EQ(content.wire_size(WireForm::data), 8u);
  EXPECT_EQ(gathered(content, WireForm::data), raw);
  EXPECT_FALSE(content.supports(WireForm::bdat));
}

TEST(SpoolId, TextRoundTripsAndSortsAsTheNumber) {
  SpoolId low{0x0123456789abcdef, 0xfedcba9876543210};
  SpoolId high{0x0123456789abcdf0, 0};
  EXPECT_EQ(low.to_string().size(), SpoolId::kTextSize);
  EXPECT_LT(low.to_string(), high.to_string());
  for (const SpoolId& id : {low, high, SpoolId{}, SpoolId{UINT64_MAX, UINT64_MAX}}) {
    auto parsed = SpoolId::parse(id.to_string());
    ASSERT_TRUE(parsed.ok());
    EXPECT_EQ(*parsed, id);
  }
  SpoolId one{0, 0x21};  // "...11"
  EXPECT_EQ(SpoolId::parse("oooooooooooooooooooooooOiL")->low, one.low);
}

TEST(SpoolId, WrongTextIsRefused) {
  std::string text = SpoolId{1, 2}.to_string();
  EXPECT_FALSE(SpoolId::parse(text.substr(1)).ok());
  EXPECT_FALSE(SpoolId::parse(text + "0").ok());
  EXPECT_FALSE(SpoolId::parse("8" + text.substr(1)).ok());
  EXPECT_FALSE(SpoolId::parse("U" + text.substr(1)).ok());
  EXPECT_FALSE(SpoolId::parse("\n" + text.substr(1)).ok());
}

TEST(SpoolIdMaker, NeverRepeatsAndNeverGoesBack) {
  SpoolIdMaker maker(7, 0), other(7, 1);
  SpoolId last;
  for (int i = 0; i < 200000; ++i) {
    SpoolId id = maker.make(1000 - i / 1000);
    ASSERT_LT(last, id);
    last = id;
  }
  EXPECT_EQ(maker.make(5000).time_ms(), 5000);
  EXPECT_NE(maker.make(9000), other.make(9000));
}

TEST(SpoolIdMaker, KeepsToTheTimeThatItIsGivenAsTheEarliest) {
  SpoolIdMaker maker(7, 0);
  SpoolId before = maker.make(1000);
  maker.not_before(3000);
  SpoolId after = maker.make(1000);
  EXPECT_EQ(after.time_ms(), 3000);
  EXPECT_LT(before, after);
  maker.not_before(2000);
  EXPECT_LT(after, maker.make(1000));
  EXPECT_EQ(maker.make(4000).time_ms(), 4000);
}

TEST(EnhancedStatus, ParsesAndPrints) {
  EXPECT_EQ(EnhancedStatus::parse("5.7.26")->to_string(), "5.7.26");
  EXPECT_EQ(EnhancedStatus::parse_prefix("4.0.999 text")->to_string(), "4.0.999");
  EXPECT_EQ(EnhancedStatus::parse_prefix("2.0.0")->status_class, 2);
  for (const char* bad :
       {"", "5", "5.1", "5.1.", "3.1.1", "5.1.1x", "5.1.1000", "5.01.1", "5..1", "55.1.1"}) {
    EXPECT_FALSE(EnhancedStatus::parse(bad)) << bad;
    EXPECT_FALSE(EnhancedStatus::parse_prefix(bad)) << bad;
  }
  EXPECT_FALSE(EnhancedStatus::parse("5.1.1 x"));
}

}  // namespace
}  // namespace millrace::mail
