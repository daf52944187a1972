#include "smtp/command.h"

#include <gtest/gtest.h>

#include <string>

#include "smtp/xtext.h"

namespace millrace::smtp {
namespace {

Command good(std::string_view line, bool utf8 = false) {
  auto command = parse_command(line, Extensions{}, utf8);
  EXPECT_TRUE(command.ok()) << line << ": " << (command.ok() ? "" : command.error().reply.text);
  return command.ok() ? *command : Command{};
}

int code(std::string_view line, bool utf8 = false, const Extensions& extensions = {}) {
  auto command = parse_command(line, extensions, utf8);
  return command.ok() ? 0 : command.error().reply.code;
}

TEST(Command, VerbsAreCaseFreeAndTrailingBlanksTolerated) {
  EXPECT_EQ(good("mAiL fRoM:<a@example.com>  ").verb, Verb::mail);
  EXPECT_EQ(good("rcpt to:<a@example.com>").verb, Verb::rcpt);
  EXPECT_EQ(good("data \t").verb, Verb::data);
  EXPECT_EQ(good("Quit").verb, Verb::quit);
  EXPECT_EQ(good("noop whatever").verb, Verb::noop);
  EXPECT_EQ(code("MAI FROM:<a@example.com>"), 500);
  EXPECT_EQ(code(""), 500);
  EXPECT_EQ(code("DATAX"), 500);
  EXPECT_EQ(code("DATA x"), 501);
  EXPECT_EQ(code("RSET x"), 501);
  EXPECT_EQ(code("VRFY"), 501);
}

TEST(Command, TheLocalPartKeepsItsCase) {
  EXPECT_EQ(good("MAIL FROM:<Some.One@Example.COM>").path.mailbox, "Some.One@Example.COM");
}

TEST(Command, NoBlankStandsBesideTheColon) {
  EXPECT_EQ(code("MAIL FROM: <a@example.com>"), 501);
  EXPECT_EQ(code("MAIL FROM :<a@example.com>"), 501);
  EXPECT_EQ(code("RCPT TO: <a@example.com>"), 501);
  EXPECT_EQ(code("MAIL FROM:a@example.com"), 501);
  EXPECT_EQ(code("MAIL FROM:<a@example.com>SIZE=1"), 501);
  EXPECT_EQ(code("MAIL"), 501);
  EXPECT_EQ(code("MAIL TO:<a@example.com>"), 501);
}

TEST(Command, NullPathIsASenderOnly) {
  EXPECT_TRUE(good("MAIL FROM:<>").path.null());
  EXPECT_EQ(code("RCPT TO:<>"), 501);
  EXPECT_TRUE(good("RCPT TO:<PostMaster>").path.postmaster());
  EXPECT_EQ(code("MAIL FROM:<postmaster>"), 501);
}

TEST(Command, AddressLimitsAreNamed) {
  std::string local(65, 'a');
  auto result = parse_command("RCPT TO:<" + local + "@example.com>", Extensions{}, false);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().reply.text, replies::kLocalPartTooLong.text);
  EXPECT_EQ(code("RCPT TO:<" + local.substr(1) + "@example.com>"), 0);
}

TEST(Command, MailParametersAreParsed) {
  Command command = good(
      "MAIL FROM:<a@example.com> SIZE=12345 body=8bitmime SMTPUTF8 RET=HDRS ENVID=QQ+2B314159");
  EXPECT_EQ(command.size, 12345u);
  EXPECT_EQ(command.body, mail::BodyType::eight_bit_mime);
  EXPECT_TRUE(command.smtputf8);
  EXPECT_EQ(command.ret, mail::Ret::headers);
  EXPECT_EQ(command.envid, "QQ+2B314159");
  EXPECT_EQ(good("MAIL FROM:<> BODY=7BIT RET=FULL").ret, mail::Ret::full);
}

TEST(Command, RcptParametersAreParsed) {
  Command command =
      good("RCPT TO:<a@example.com> NOTIFY=SUCCESS,failure,DELAY ORCPT=rfc822;a+2Bb@c");
  EXPECT_EQ(command.notify, mail::Notify::success | mail::Notify::failure | mail::Notify::delay);
  EXPECT_EQ(command.orcpt, "rfc822;a+2Bb@c");
  EXPECT_EQ(good("RCPT TO:<a@example.com> NOTIFY=NEVER").notify, mail::Notify::never);
}

TEST(Command, WrongParametersAreRefused) {
  for (const char* parameters :
       {"SIZE=", "SIZE", "SIZE=-1", "SIZE=1x", "SIZE=123456789012345678901", "BODY=BINARYMIME",
        "BODY", "SMTPUTF8=1", "RET=ALL", "ENVID=", "ENVID=a=b", "ENVID=+4", "ENVID=+zz",
        "ENVID=+2b", "=1", "SIZE=1 SIZE=1", "ENVID=a\tENVID=b"}) {
    EXPECT_EQ(code(std::string("MAIL FROM:<a@example.com> ") + parameters), 501) << parameters;
  }
  for (const char* parameters : {"NOTIFY", "NOTIFY=", "NOTIFY=NEVER,DELAY", "NOTIFY=SUCCESS,",
                                 "NOTIFY=SOMETIMES", "ORCPT=a@b", "ORCPT=;a", "ORCPT=rfc822;",
                                 "ORCPT=rfc822;a=b", "NOTIFY=DELAY NOTIFY=DELAY"}) {
    EXPECT_EQ(code(std::string("RCPT TO:<a@example.com> ") + parameters), 501) << parameters;
  }
  EXPECT_EQ(code("MAIL FROM:<> ENVID=" + std::string(101, 'e')), 501);
  EXPECT_EQ(code("RCPT TO:<a@example.com> ORCPT=rfc822;" + std::string(500, 'e')), 501);
}

TEST(Command, UnknownAndUnofferedParametersAre555) {
  EXPECT_EQ(code("MAIL FROM:<a@example.com> XVERP"), 555);
  EXPECT_EQ(code("MAIL FROM:<a@example.com> AUTH=<>"), 555);
  EXPECT_EQ(code("MAIL FROM:<a@example.com> NOTIFY=NEVER"), 555);
  EXPECT_EQ(code("RCPT TO:<a@example.com> SIZE=1"), 555);
  Extensions none;
  none.size = none.dsn = none.eight_bit_mime = none.smtputf8 = none.chunking = false;
  for (const char* parameter : {"SIZE=1", "BODY=7BIT", "SMTPUTF8", "RET=FULL", "ENVID=a"}) {
    EXPECT_EQ(code(std::string("MAIL FROM:<a@example.com> ") + parameter, false, none), 555);
  }
  EXPECT_EQ(code("RCPT TO:<a@example.com> NOTIFY=NEVER", false, none), 555);
  EXPECT_EQ(code("BDAT 1", false, none), 502);
}

TEST(Command, ALargerSizeThanFitsIsTheLargest) {
  EXPECT_EQ(good("MAIL FROM:<> SIZE=99999999999999999999").size, UINT64_MAX);
}

TEST(Command, NoControlCharacterComesOutOfXtext) {
  for (const char* xtext : {"a+00b", "a+0Db", "a+0Ab", "a+0D+0Ab", "a+7Fb", "a+1Fb", "a+80b"}) {
    EXPECT_EQ(code(std::string("MAIL FROM:<> ENVID=") + xtext), 501) << xtext;
    EXPECT_EQ(code(std::string("RCPT TO:<a@example.com> ORCPT=rfc822;") + xtext), 501) << xtext;
    std::string out;
    EXPECT_FALSE(append_decoded_xtext(out, xtext));
    EXPECT_EQ(out, "");
  }
}

TEST(Command, Utf8AddressesNeedSmtpUtf8) {
  EXPECT_EQ(code("MAIL FROM:<\xc3\xbc@example.com>"), 553);
  EXPECT_EQ(code("MAIL FROM:<\xc3\xbc@example.com> SMTPUTF8"), 0);
  EXPECT_EQ(code("RCPT TO:<a@b\xc3\xbc.example>"), 553);
  EXPECT_EQ(code("RCPT TO:<a@b\xc3\xbc.example>", true), 0);
  EXPECT_EQ(code("RCPT TO:<a\xff@example.com>", true), 501);
  EXPECT_EQ(code("RCPT TO:<a@example.com> ORCPT=utf-8;\xc3\xbc@c", true), 0);
  EXPECT_EQ(code("RCPT TO:<a@example.com> ORCPT=utf-8;\xc3\xbc@c"), 501);
}

TEST(Command, BdatSizes) {
  Command command = good("BDAT 100 LAST");
  EXPECT_EQ(command.chunk_size, 100u);
  EXPECT_TRUE(command.last);
  EXPECT_FALSE(good("bdat 0").last);
  EXPECT_EQ(good("BDAT 18446744073709551615").chunk_size, UINT64_MAX);
  EXPECT_EQ(good("BDAT 18446744073709551616").chunk_size, UINT64_MAX);
  for (const char* line : {"BDAT", "BDAT -1", "BDAT +1", "BDAT 0x10", "BDAT 1 LAS", "BDAT LAST",
                           "BDAT 1 LAST x", "BDAT 111111111111111111111", "BDAT 1.5"}) {
    auto result = parse_command(line, Extensions{}, false);
    ASSERT_FALSE(result.ok()) << line;
    EXPECT_EQ(result.error().reply.code, 501) << line;
    EXPECT_TRUE(result.error().close) << line;
  }
}

TEST(Command, HelloNeedsAName) {
  EXPECT_EQ(good("EHLO mail.example.com").argument, "mail.example.com");
  EXPECT_EQ(good("HELO [IPv6:2001:db8::1]").argument, "[IPv6:2001:db8::1]");
  EXPECT_EQ(code("EHLO"), 501);
  EXPECT_EQ(code("EHLO a b"), 501);
  EXPECT_EQ(code("EHLO a(b)"), 501);
  EXPECT_EQ(code("EHLO <x>"), 501);
  EXPECT_EQ(code("EHLO " + std::string(256, 'a')), 501);
}

TEST(Command, HttpIsTurnedAway) {
  auto result = parse_command("POST / HTTP/1.1", Extensions{}, false);
  ASSERT_FALSE(result.ok());
  EXPECT_TRUE(result.error().close);
  EXPECT_EQ(result.error().reply.code, 421);
}

TEST(Xtext, RoundTrips) {
  std::string plain = "a+b=c d\\{}~!\xc3\xbc", encoded, decoded;
  append_xtext(encoded, plain);
  EXPECT_EQ(encoded, "a+2Bb+3Dc+20d\\{}~!\xc3\xbc");
  EXPECT_TRUE(is_xtext(encoded, true));
  EXPECT_TRUE(append_decoded_xtext(decoded, encoded));
  EXPECT_EQ(decoded, plain);
}

TEST(Xtext, EncodingLeavesOutControlCharacters) {
  std::string encoded;
  append_xtext(encoded, std::string_view("a\r\n\0b\x7f\xff", 7));
  EXPECT_EQ(encoded, "ab");
}

TEST(Reply, TextCannotStartALineOfItsOwn) {
  std::string out;
  append_reply(out, {550, {5, 1, 1}, "no\r250 yes\nsecond\tline"});
  EXPECT_EQ(out, "550-5.1.1 no?250 yes\r\n550 5.1.1 second?line\r\n");
  out.clear();
  append_reply(out, {550, {5, 1, 1}, std::string(2000, 'x')});
  EXPECT_EQ(out.size(), 512u);
}

}  // namespace
}  // namespace millrace::smtp
