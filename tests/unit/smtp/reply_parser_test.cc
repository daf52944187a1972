#include "smtp/reply_parser.h"

#include <gtest/gtest.h>

#include "smtp/capabilities.h"

namespace millrace::smtp {
namespace {

using Outcome = ReplyParser::Outcome;

// "code/text;" for each reply, then the error if there was one.
std::string read_all(std::string_view input, size_t step) {
  ReplyParser parser;
  std::string seen;
  while (!input.empty()) {
    std::string owned(input.substr(0, step));
    input.remove_prefix(owned.size());
    std::string_view piece = owned;
    while (!piece.empty()) {
      Outcome outcome = parser.next(piece);
      if (outcome == Outcome::reply) {
        seen.append(std::to_string(parser.reply().code)).append("/");
        seen.append(parser.reply().text).append(";");
        EXPECT_TRUE(parser.empty());
      } else if (outcome != Outcome::incomplete) {
        return seen.append(to_string(outcome));
      } else {
        EXPECT_TRUE(piece.empty());
      }
    }
  }
  return seen;
}

void expect(std::string_view input, std::string_view seen) {
  for (size_t step : {size_t{1}, size_t{2}, size_t{3}, size_t{7}, input.size()}) {
    EXPECT_EQ(read_all(input, step), seen) << input << " by " << step;
  }
}

TEST(ReplyParser, RepliesOneOctetAtATimeAndAllAtOnce) {
  expect("220 mx ESMTP\r\n250-mx\r\n250-SIZE 1\r\n250 DSN\r\n550 5.1.1 no\r\n",
         "220/mx ESMTP;250/mx\nSIZE 1\nDSN;550/5.1.1 no;");
}

TEST(ReplyParser, OddButClearRepliesAreUnderstood) {
  expect("250 bare lf\n250\r\n250 \r\n250-\r\n250\n354\tgo\r\n",
         "250/bare lf;250/;250/;250/\n;354/go;");
  expect("250 a\rb\r\r\n", "250/a\rb\r;");
}

TEST(ReplyParser, UnclearRepliesAreErrors) {
  expect("250-a\r\n550 b\r\n", std::string(to_string(Outcome::mixed_codes)));
  for (const char* bad : {"25 x\r\n", "\r\n250 x\r\n", "199 x\r\n", "600 x\r\n", "abc\r\n",
                          "2505 x\r\n", "-250 x\r\n", " 250 x\r\n"}) {
    expect(bad, to_string(Outcome::bad_code));
  }
}

TEST(ReplyParser, AnEndlessReplyIsBounded) {
  ReplyParser parser;
  Outcome outcome = Outcome::incomplete;
  size_t given = 0;
  while (outcome == Outcome::incomplete && given < 1 << 20) {
    std::string_view piece = "250-abcdefgh\r\n";
    given += piece.size();
    outcome = parser.next(piece);
  }
  EXPECT_EQ(outcome, Outcome::too_long);
  EXPECT_LE(given, ReplyParser::kLongestReply + 20);
  EXPECT_LE(parser.reply().text.size(), 2048u);

  ReplyParser one_line;
  std::string text(100000, 'x');
  std::string_view piece = text = "250 " + text;
  EXPECT_EQ(one_line.next(piece), Outcome::too_long);
}

TEST(ReplyParser, TextPastTheLimitIsCountedOnly) {
  ReplyParser parser(10);
  std::string_view piece = "250-12345678\r\n250 abcdefgh\r\n";
  ASSERT_EQ(parser.next(piece), Outcome::reply);
  EXPECT_EQ(parser.reply().text, "12345678\na");
  EXPECT_EQ(parser.reply().text_size, 17u);
  EXPECT_EQ(parser.reply().lines, 2u);
}

TEST(ReplyParser, TheEnhancedStatusMustBeOfTheCodesClass) {
  ReplyParser parser;
  std::string_view piece = "550 5.7.26 unauthenticated\r\n450 5.1.1 odd\r\n250 2.0.0\r\n";
  ASSERT_EQ(parser.next(piece), Outcome::reply);
  EXPECT_EQ(parser.reply().status, (mail::EnhancedStatus{5, 7, 26}));
  ASSERT_EQ(parser.next(piece), Outcome::reply);
  EXPECT_TRUE(parser.reply().status.empty());
  ASSERT_EQ(parser.next(piece), Outcome::reply);
  EXPECT_EQ(parser.reply().status, (mail::EnhancedStatus{2, 0, 0}));
}

TEST(ReplyParser, AReplyMayBeMovedOut) {
  ReplyParser parser;
  std::string_view piece = "250-one\r\n250 two\r\n251 three\r\n";
  ASSERT_EQ(parser.next(piece), Outcome::reply);
  PeerReply reply = std::move(parser.reply());
  ASSERT_EQ(parser.next(piece), Outcome::reply);
  EXPECT_EQ(reply.text, "one\ntwo");
  EXPECT_EQ(parser.reply().code, 251);
  EXPECT_EQ(parser.reply().text, "three");
}

Capabilities capabilities(std::string_view lines) {
  ReplyParser parser;
  EXPECT_EQ(parser.next(lines), Outcome::reply);
  return parse_capabilities(parser.reply());
}

TEST(Capabilities, WhatIsAnnouncedIsKnownInAnyCase) {
  Capabilities all = capabilities(
      "250-mx.example.com at your service\r\n250-size "
      "35882577\r\n250-PIPELINING\r\n250-8bitmime\r\n"
      "250-STARTTLS\r\n250-SMTPUTF8\r\n250-DSN\r\n250-CHUNKING\r\n250-ENHANCEDSTATUSCODES\r\n"
      "250-AUTH LOGIN PLAIN XOAUTH2\r\n250-REQUIRETLS\r\n250-XUNKNOWN a b\r\n"
      "250 LIMITS MAILMAX=20 RCPTMAX=100 RCPTDOMAINMAX=1 OTHER=2\r\n");
  EXPECT_TRUE(all.size && all.pipelining && all.eight_bit_mime && all.starttls && all.smtputf8);
  EXPECT_TRUE(all.dsn && all.chunking && all.enhanced_status && all.auth_plain && all.auth_login);
  EXPECT_TRUE(all.requiretls);
  EXPECT_EQ(all.size_limit, 35882577u);
  EXPECT_EQ(all.mail_max, 20u);
  EXPECT_EQ(all.rcpt_max, 100u);
  EXPECT_EQ(all.rcpt_domain_max, 1u);
}

TEST(Capabilities, NothingIsAssumed) {
  Capabilities none = capabilities("250 PIPELINING SIZE 8BITMIME\r\n");  // the greeting's words
  EXPECT_FALSE(none.pipelining || none.size || none.eight_bit_mime || none.chunking || none.dsn);
  Capabilities odd =
      capabilities("250-mx\r\n250-SIZE abc\r\n250-LIMITS RCPTMAX=-1 =\r\n250 PIPELININGX\r\n");
  EXPECT_TRUE(odd.size);
  EXPECT_EQ(odd.size_limit, 0u);
  EXPECT_EQ(odd.rcpt_max, 0u);
  EXPECT_FALSE(odd.pipelining);
}

TEST(Capabilities, AKeywordCutByTheTextLimitIsNone) {
  ReplyParser parser(6);
  std::string_view piece = "250-mx\r\n250 DSNX\r\n";
  ASSERT_EQ(parser.next(piece), Outcome::reply);
  EXPECT_FALSE(parse_capabilities(parser.reply()).dsn);
}

}  // namespace
}  // namespace millrace::smtp
