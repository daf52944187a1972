#include "mail/address.h"

#include <gtest/gtest.h>

namespace millrace::mail {
namespace {

std::string forward(std::string_view text) {
  auto path = parse_path(text, PathKind::forward);
  return path.ok() ? std::string(path->mailbox) : "!" + std::string(to_string(path.error()));
}
AddressError error(std::string_view text, PathKind kind = PathKind::forward) {
  auto path = parse_path(text, kind);
  EXPECT_FALSE(path.ok()) << text;
  return path.ok() ? AddressError::syntax : path.error();
}

TEST(Path, MailboxesInAllForms) {
  for (const char* mailbox :
       {"a@b.example", "first.last+tag@sub-domain.example.com", "!#$%&'*+-/=?^_`{|}~@x.example",
        "\"quoted string\"@x.example", "\"a\\\"b\\\\c@d\"@x.example", "\"\"@x.example",
        "a@[192.0.2.1]", "a@[IPv6:2001:db8::1]", "a@localhost", "a@_dmarc.example", "a@x.123a",
        "\xc3\xbc@example.com",
        "a@b\xc3\xbc"
        "cher.example",
        "A.B@EXAMPLE.com"}) {
    EXPECT_EQ(forward("<" + std::string(mailbox) + ">"), mailbox);
  }
}

TEST(Path, PartsAreViewsOfTheText) {
  std::string text = "<\"a b\"@[IPv6:::1]> SIZE=1";
  auto path = parse_path(text, PathKind::reverse);
  ASSERT_TRUE(path.ok());
  EXPECT_EQ(path->local_part, "\"a b\"");
  EXPECT_EQ(path->domain, "[IPv6:::1]");
  EXPECT_TRUE(path->literal);
  EXPECT_FALSE(path->utf8);
  EXPECT_EQ(text.substr(path->consumed), " SIZE=1");
}

TEST(Path, SourceRoutesAreStripped) {
  EXPECT_EQ(forward("<@one.example,@two.example:a@b.example>"), "a@b.example");
  EXPECT_EQ(forward("<@one.example:a@b.example>"), "a@b.example");
  for (const char* bad :
       {"<@:a@b.example>", "<@one:>", "<@one,two:a@b.example>", "<@one,:a@b.example>",
        "<@one a@b.example>", "<@one>", "<@one:postmaster>", "<@one"}) {
    EXPECT_EQ(error(bad), AddressError::syntax) << bad;
  }
}

TEST(Path, NullAndPostmaster) {
  EXPECT_TRUE(parse_path("<>", PathKind::reverse)->null());
  EXPECT_EQ(error("<>"), AddressError::syntax);
  auto postmaster = parse_path("<POSTmaster>", PathKind::forward);
  ASSERT_TRUE(postmaster.ok());
  EXPECT_TRUE(postmaster->postmaster());
  EXPECT_EQ(error("<postmaster>", PathKind::reverse), AddressError::syntax);
  EXPECT_EQ(error("<someone>"), AddressError::syntax);
}

TEST(Path, WrongSyntaxIsRefused) {
  for (const char* bad : {"",
                          "<",
                          "a@b.example",
                          "<a@b.example",
                          "<a@>",
                          "<@b.example>",
                          "<a b@c.example>",
                          "<.a@b.example>",
                          "<a.@b.example>",
                          "<a..b@c.example>",
                          "<\"a@b.example>",
                          "<\"a\"b@c.example>",
                          "<\"a\\",
                          "<a@b@c>",
                          "<a@b.example x>",
                          "<a\r\n@b.example>",
                          "<\"a\r\n\"@b.example>",
                          "<a@b.example\n>",
                          "<a@ b.example>",
                          "<(c)a@b.example>",
                          "<a@b.example>x<",
                          "<<a@b.example>>",
                          "<\"a\x01\"@b.example>"}) {
    auto path = parse_path(bad, PathKind::forward);
    if (path.ok()) {
      EXPECT_LT(path->consumed, std::string_view(bad).size()) << bad;
    } else {
      EXPECT_EQ(path.error(), AddressError::syntax) << bad;
    }
  }
  EXPECT_EQ(error(std::string_view("<\"a\0\"@b.example>", 16)), AddressError::syntax);
}

TEST(Path, WrongDomainsAreRefused) {
  for (const char* bad : {"<a@b..example>", "<a@.example>", "<a@example.>", "<a@-b.example>",
                          "<a@b-.example>", "<a@127.0.0.1>", "<a@1>", "<a@example.123>"}) {
    EXPECT_EQ(error(bad), AddressError::bad_domain) << bad;
  }
  EXPECT_EQ(error("<a@" + std::string(64, 'x') + ".example>"), AddressError::bad_domain);
  EXPECT_EQ(forward("<a@" + std::string(63, 'x') + ".example>"),
            "a@" + std::string(63, 'x') + ".example");
  for (const char* bad :
       {"<a@[192.0.2]>", "<a@[192.0.2.256]>", "<a@[]>", "<a@[IPv6:192.0.2.1]>", "<a@[2001:db8::1]>",
        "<a@[IPv6:]>", "<a@[tag:x]>", "<a@[192.0.2.1>", "<a@[IPv6:fe80::1%eth0]>"}) {
    EXPECT_EQ(error(bad), AddressError::bad_literal) << bad;
  }
}

TEST(Path, LimitsOfRfc5321) {
  std::string local(64, 'l');
  EXPECT_EQ(forward("<" + local + "@b.example>"), local + "@b.example");
  EXPECT_EQ(error("<" + local + "l@b.example>"), AddressError::local_part_too_long);
  std::string label(62, 'd');
  std::string domain = label + "." + label + "." + label + "." + label;  // 251
  EXPECT_EQ(forward("<ab@" + domain + ">"), "ab@" + domain);             // a path of 256
  EXPECT_EQ(error("<abc@" + domain + ">"), AddressError::path_too_long);
  EXPECT_EQ(error("<a@" + domain + "." + label + ">"), AddressError::domain_too_long);
}

TEST(Path, MalformedUtf8IsRefused) {
  for (const char* bad :
       {"\xff", "\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\x80", "\xe2\x82"}) {
    EXPECT_EQ(error(std::string("<") + bad + "@b.example>"), AddressError::bad_utf8);
    EXPECT_EQ(error(std::string("<a@") + bad + ".example>"), AddressError::bad_utf8);
    EXPECT_FALSE(is_utf8(bad));
  }
  EXPECT_TRUE(is_utf8("a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"));
}

TEST(Mailbox, IsTheWholeText) {
  EXPECT_EQ(parse_mailbox("a@b.example")->domain, "b.example");
  for (const char* bad : {"", "a", "a@b.example ", " a@b.example", "<a@b.example>", "postmaster"}) {
    EXPECT_FALSE(parse_mailbox(bad).ok()) << bad;
  }
}

std::string routing(std::string_view domain) {
  auto result = to_routing_domain(domain);
  return result.ok() ? *result : "!" + std::string(to_string(result.error()));
}

TEST(RoutingDomain, IsLowerCaseALabels) {
  EXPECT_EQ(routing("Example.COM"), "example.com");
  EXPECT_EQ(routing("b\xc3\xbc"
                    "cher.example"),
            "xn--bcher-kva.example");
  EXPECT_EQ(routing("B\xc3\x9c"
                    "CHER.example"),
            "xn--bcher-kva.example");
  EXPECT_EQ(routing("XN--BCHER-KVA.example"), "xn--bcher-kva.example");
  // Non-transitional: sharp s stays itself.
  EXPECT_EQ(routing("stra\xc3\x9f"
                    "e.example"),
            "xn--strae-oqa.example");
  // Full-width letters and the ideographic full stop are mapped.
  EXPECT_EQ(routing("\xef\xbd\x81\xe3\x80\x82"
                    "example"),
            "a.example");
}

TEST(RoutingDomain, LiteralsAreCanonical) {
  EXPECT_EQ(routing("[192.0.2.1]"), "[192.0.2.1]");
  EXPECT_EQ(routing("[ipv6:2001:DB8:0::1]"), "[IPv6:2001:db8::1]");
  EXPECT_EQ(routing("[x]").front(), '!');
  EXPECT_EQ(routing("[").front(), '!');
}

TEST(RoutingDomain, NothingElseComesOut) {
  // Full-width digits would become an address.
  EXPECT_EQ(routing("\xef\xbc\x91\xef\xbc\x92\xef\xbc\x97.0.0.1").front(), '!');
  EXPECT_EQ(routing("\xef\xbc\x8f.example").front(), '!');  // full-width slash
  EXPECT_EQ(routing("").front(), '!');
  EXPECT_EQ(routing("a b").front(), '!');
  EXPECT_EQ(routing("\xff").front(), '!');
  EXPECT_EQ(routing("a..b").front(), '!');
}

}  // namespace
}  // namespace millrace::mail
