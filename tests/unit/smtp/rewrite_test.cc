#include "smtp/rewrite.h"

#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "base/prng.h"
#include "smtp/data_decoder.h"

namespace millrace::smtp {
namespace {

Rewritten rewrite(const std::string& raw, bool stuffed, mail::Content& content) {
  content = {};
  content.append_raw(raw);
  content.stuffed = stuffed;
  Rewritten rewritten = rewrite_content(content);
  EXPECT_EQ(content.raw_size, rewritten.bytes.size());
  EXPECT_EQ(content.crc, crc32c(0, rewritten.bytes));
  EXPECT_TRUE(content.stuffed);
  EXPECT_TRUE(content.raw.empty());
  return rewritten;
}

std::string rewritten(const std::string& raw, bool stuffed = false) {
  mail::Content content;
  return rewrite(raw, stuffed, content).bytes;
}

TEST(Rewrite, LineEndsBecomeCrlf) {
  EXPECT_EQ(rewritten("a\nb\rc\r\nd\r\n"), "a\r\nb\r\nc\r\nd\r\n");
  EXPECT_EQ(rewritten("a\r\rb\n\nc"), "a\r\n\r\nb\r\n\r\nc");
  EXPECT_EQ(rewritten("a\r\r\nb\r\n"), "a\r\nb\r\n");  // no empty line comes about
  EXPECT_EQ(rewritten(std::string("a\0b\r\n", 5)), "ab\r\n");
  EXPECT_EQ(rewritten("a\r"), "a\r\n");
  EXPECT_EQ(rewritten(""), "");
}

TEST(Rewrite, DotsAreStuffedWhereverALineBegins) {
  EXPECT_EQ(rewritten(".a\n.b\r\n"), "..a\r\n..b\r\n");
  // Received by DATA: only a dot after CRLF was put there for transparency.
  EXPECT_EQ(rewritten("..a\r\n.b\n.c\r\n", true), "..a\r\nb\r\n..c\r\n");
  mail::Content content;
  rewrite("x\n.\n", false, content);
  EXPECT_EQ(content.dots, std::vector<uint32_t>{3});
}

TEST(Rewrite, LongHeaderLinesAreFoldedAtABlank) {
  std::string raw = "Subject: " + std::string(500, 'a') + " " + std::string(600, 'b') + "\r\n\r\n";
  EXPECT_EQ(rewritten(raw),
            "Subject: " + std::string(500, 'a') + "\r\n " + std::string(600, 'b') + "\r\n\r\n");
  EXPECT_EQ(rewritten("X:" + std::string(1000, 'a') + "\r\n"),
            "X:" + std::string(996, 'a') + "\r\n aaaa\r\n");
}

TEST(Rewrite, LongBodyLinesAreBrokenBetweenCharacters) {
  EXPECT_EQ(rewritten("\r\n" + std::string(1000, 'a') + "\r\n"),
            "\r\n" + std::string(998, 'a') + "\r\naa\r\n");
  EXPECT_EQ(rewritten("\r\n" + std::string(997, 'a') + "\xc3\xa9z\r\n"),
            "\r\n" + std::string(997, 'a') + "\r\n\xc3\xa9z\r\n");
  EXPECT_EQ(rewritten("\r\n" + std::string(998, 'a') + ".b\r\n"),
            "\r\n" + std::string(998, 'a') + "\r\n..b\r\n");
}

TEST(Rewrite, ManyDotsAreCountedAndDataServesThem) {
  std::string raw;
  for (uint32_t i = 0; i <= mail::kMostListedDots; ++i) raw += ".\r\n";
  mail::Content content;
  Rewritten result = rewrite(raw, false, content);
  EXPECT_EQ(result.faults_fixed, 0u);
  EXPECT_EQ(result.bytes_copied, result.bytes.size());
  EXPECT_TRUE(content.supports(mail::WireForm::data));
  EXPECT_FALSE(content.supports(mail::WireForm::bdat));
  EXPECT_EQ(content.size(), raw.size());
}

TEST(Rewrite, WhateverComesInNoFaultComesOut) {
  Prng prng(3);
  const char interesting[] = {'\r', '\n', '.', '\0', '\xc3', '\xa9', ' ', 'a'};
  for (int round = 0; round < 3000; ++round) {
    std::string raw;
    size_t tokens = prng.below(30);
    for (size_t i = 0; i < tokens; ++i) {
      raw.append(prng.chance(0.1) ? prng.below(1100) : 1, interesting[prng.below(8)]);
    }
    bool stuffed = prng.chance(0.5);
    mail::Content content;
    Rewritten result = rewrite(raw, stuffed, content);
    std::string wire = result.bytes + (content.ends_in_crlf ? ".\r\n" : "\r\n.\r\n");
    DataDecoder decoder(1 << 30);
    auto consumed = decoder.consume(wire.data(), wire.size());
    ASSERT_TRUE(consumed.finished);
    ASSERT_EQ(consumed.used, wire.size());
    ASSERT_EQ(decoder.facts().fault, LineFault::none) << round;
    ASSERT_EQ(decoder.facts().dots, content.dots);
    ASSERT_EQ(decoder.facts().eight_bit, content.eight_bit);
  }
}

}  // namespace
}  // namespace millrace::smtp
