// Reading replies: what is right is read, what is wrong is malformed and never more than that.
#include "dns/answer.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/prng.h"
#include "dns/address_rules.h"
#include "packet.h"

namespace millrace::dns {
namespace {

using namespace testing;

TEST(ParseReply, AddressesAreReadWithTheLowestTtl) {
  const std::string packet =
      Packet("MX.Example", 1).a(kQuestion, 300, 0xc0000201).a(kQuestion, 60, 0xc0000202).str();
  const Answer answer = parse_reply(packet, "mx.example", Type::a);
  ASSERT_EQ(answer.outcome, Outcome::records);
  ASSERT_EQ(answer.addresses.size(), 2u);
  EXPECT_EQ(answer.addresses[0].host_string(), "192.0.2.1");
  EXPECT_EQ(answer.addresses[1].host_string(), "192.0.2.2");
  EXPECT_EQ(answer.ttl_s, 60u);
}

TEST(ParseReply, MxRecordsCarryPreferenceAndLowerCaseHost) {
  const std::string packet = Packet("example.com", 15)
                                 .mx(kQuestion, 100, 10, "MX1.Example.com")
                                 .mx(kQuestion, 100, 20, ".")
                                 .str();
  const Answer answer = parse_reply(packet, "example.com", Type::mx);
  ASSERT_EQ(answer.mx.size(), 2u);
  EXPECT_EQ(answer.mx[0].preference, 10);
  EXPECT_EQ(answer.mx[0].host, "mx1.example.com");
  EXPECT_EQ(answer.mx[1].host, ".");
}

TEST(ParseReply, TlsaAndTextRecordsAreRead) {
  const std::string data = std::string("\x03\x01\x01", 3) + std::string(32, 'd');
  const Answer tlsa = parse_reply(Packet("_25._tcp.mx.example", 52).answer(kQuestion, 52, 60, data).str(), "_25._tcp.mx.example", Type::tlsa);
  ASSERT_EQ(tlsa.outcome, Outcome::records);
  ASSERT_EQ(tlsa.tlsa.size(), 1u);
  EXPECT_EQ(tlsa.tlsa[0], (tls::TlsaRecord{3, 1, 1, std::string(32, 'd')}));
  const Answer pointer = parse_reply(
      Packet("1.2.0.192.in-addr.arpa", 12).answer(kQuestion, 12, 60, wire_name("Mta1.Example")).answer(kQuestion, 12, 60, wire_name("b.example")).str(),
      "1.2.0.192.in-addr.arpa", Type::ptr);
  EXPECT_EQ(pointer.outcome, Outcome::records);
  EXPECT_EQ(pointer.names, (std::vector<std::string>{"mta1.example", "b.example"}));
  EXPECT_EQ(parse_reply(Packet("p.example", 12).answer(kQuestion, 12, 60, "\x09v=S").str(), "p.example", Type::ptr).outcome,
            Outcome::malformed);
  const Answer text = parse_reply(Packet("t.example", 16).answer(kQuestion, 16, 60, "\x03v=S\x04Tsv1").str(), "t.example", Type::txt);
  ASSERT_EQ(text.texts.size(), 1u);
  EXPECT_EQ(text.texts[0], "v=STsv1") << "the strings of a record put together";
}

TEST(ParseReply, BrokenTlsaAndTextRecordsAreMalformed) {
  for (const std::string& data : {std::string(), std::string("\x03\x01", 2)}) {
    EXPECT_EQ(parse_reply(Packet("t.example", 52).answer(kQuestion, 52, 60, data).str(), "t.example", Type::tlsa).outcome,
              Outcome::malformed);
  }
  EXPECT_EQ(parse_reply(Packet("t.example", 16).answer(kQuestion, 16, 60, "\x09v=S").str(), "t.example", Type::txt).outcome,
            Outcome::malformed);
}

TEST(ParseReply, AuthenticDataCountsOnlyFromWhomWeTrust) {
  const std::string packet = Packet("mx.example", 1).flags(0x81a0).a(kQuestion, 60, 0xc0000201).str();
  EXPECT_TRUE(parse_reply(packet, "mx.example", Type::a, true).secure);
  EXPECT_FALSE(parse_reply(packet, "mx.example", Type::a, false).secure);
  EXPECT_FALSE(parse_reply(Packet("mx.example", 1).a(kQuestion, 60, 1).str(), "mx.example", Type::a, true).secure);
}

TEST(ParseReply, AliasAskedForItselfIsNotFollowed) {
  const std::string packet = Packet("www.example", 5).cname(kQuestion, 60, "host.example").str();
  const Answer answer = parse_reply(packet, "www.example", Type::cname);
  EXPECT_EQ(answer.outcome, Outcome::records);
  EXPECT_EQ(answer.alias, "host.example");
}

TEST(ParseReply, EndOfTheChainOfAliasesIsNamed) {
  const std::string packet =
      Packet("www.example", 1).cname(kQuestion, 60, "host.example").a(wire_name("host.example"), 60, 0xc0000201).str();
  EXPECT_EQ(parse_reply(packet, "www.example", Type::a).expanded, "host.example");
  EXPECT_EQ(parse_reply(Packet("a.example", 1).a(kQuestion, 60, 1).str(), "a.example", Type::a).expanded, "");
}

TEST(ParseReply, AliasesAreFollowedInAnyOrder) {
  const std::string packet = Packet("www.example", 1)
                                 .a(wire_name("c.example"), 500, 0xc0000203)
                                 .cname(wire_name("b.example"), 40, "c.example")
                                 .cname(kQuestion, 70, "b.example")
                                 .str();
  const Answer answer = parse_reply(packet, "www.example", Type::a);
  ASSERT_EQ(answer.outcome, Outcome::records);
  EXPECT_EQ(answer.addresses[0].host_string(), "192.0.2.3");
  EXPECT_EQ(answer.ttl_s, 40u);
}

TEST(ParseReply, AliasLeadingOutOfTheReplyIsNamed) {
  const Answer answer = parse_reply(
      Packet("www.example", 1).cname(kQuestion, 70, "b.example").str(), "www.example", Type::a);
  EXPECT_EQ(answer.outcome, Outcome::alias);
  EXPECT_EQ(answer.alias, "b.example");
}

TEST(ParseReply, AliasLoopIsMalformed) {
  const std::string packet = Packet("a.example", 1)
                                 .cname(kQuestion, 70, "b.example")
                                 .cname(wire_name("b.example"), 70, "a.example")
                                 .str();
  EXPECT_EQ(parse_reply(packet, "a.example", Type::a).outcome, Outcome::malformed);
}

TEST(ParseReply, RecordsOfOtherOwnersAreIgnored) {
  const std::string packet =
      Packet("a.example", 1).a(wire_name("evil.example"), 70, 0xc0000201).soa(30, 30).str();
  const Answer answer = parse_reply(packet, "a.example", Type::a);
  EXPECT_EQ(answer.outcome, Outcome::no_data);
  EXPECT_TRUE(answer.addresses.empty());
}

TEST(ParseReply, NegativeAnswersTakeTheLesserOfSoaTtlAndMinimum) {
  Answer answer =
      parse_reply(Packet("a.example", 15).rcode(3).soa(900, 120).str(), "a.example", Type::mx);
  EXPECT_EQ(answer.outcome, Outcome::nxdomain);
  EXPECT_EQ(answer.ttl_s, 120u);
  answer = parse_reply(Packet("a.example", 15).soa(33, 120).str(), "a.example", Type::mx);
  EXPECT_EQ(answer.outcome, Outcome::no_data);
  EXPECT_EQ(answer.ttl_s, 33u);
  answer = parse_reply(Packet("a.example", 15).str(), "a.example", Type::mx);
  EXPECT_EQ(answer.outcome, Outcome::no_data);
  EXPECT_EQ(answer.ttl_s, kDefaultNegativeTtlS);
}

TEST(ParseReply, ServfailAndRefusedAreFailures) {
  EXPECT_EQ(parse_reply(Packet("a.example", 15).rcode(2).str(), "a.example", Type::mx).outcome,
            Outcome::failure);
  EXPECT_EQ(parse_reply(Packet("a.example", 15).rcode(5).str(), "a.example", Type::mx).outcome,
            Outcome::failure);
}

TEST(ParseReply, TtlWithTheTopBitIsZero) {
  const Answer answer = parse_reply(
      Packet("a.example", 1).a(kQuestion, 0x80000001, 0xc0000201).str(), "a.example", Type::a);
  EXPECT_EQ(answer.ttl_s, 0u);
}

TEST(ParseReply, ReplyToAnotherQuestionIsMalformed) {
  const std::string packet = Packet("a.example", 1).a(kQuestion, 70, 0xc0000201).str();
  EXPECT_EQ(parse_reply(packet, "b.example", Type::a).outcome, Outcome::malformed);
  EXPECT_EQ(parse_reply(packet, "a.example", Type::mx).outcome, Outcome::malformed);
  EXPECT_EQ(parse_reply(packet, "a.example", Type::a).outcome, Outcome::records);
}

TEST(ParseReply, QueriesAndTruncatedRepliesAreMalformed) {
  EXPECT_EQ(parse_reply(Packet("a.example", 1).flags(0x0100).str(), "a.example", Type::a).outcome,
            Outcome::malformed);
  EXPECT_EQ(parse_reply(Packet("a.example", 1).flags(0x8380).str(), "a.example", Type::a).outcome,
            Outcome::malformed);
}

TEST(ParseReply, WrongRecordSizesAreMalformed) {
  EXPECT_EQ(
      parse_reply(Packet("a.example", 1).answer(kQuestion, 1, 5, "abc").str(), "a.example", Type::a)
          .outcome,
      Outcome::malformed);
  EXPECT_EQ(parse_reply(Packet("a.example", 28).answer(kQuestion, 28, 5, "abcd").str(), "a.example",
                        Type::aaaa)
                .outcome,
            Outcome::malformed);
  EXPECT_EQ(parse_reply(Packet("a.example", 15).answer(kQuestion, 15, 5, "a").str(), "a.example",
                        Type::mx)
                .outcome,
            Outcome::malformed);
  // The host's name runs out of its record.
  EXPECT_EQ(parse_reply(Packet("a.example", 15)
                            .answer(kQuestion, 15, 5,
                                    be16(1) + "\x05"
                                              "ab")
                            .mx(kQuestion, 5, 1, "x")
                            .str(),
                        "a.example", Type::mx)
                .outcome,
            Outcome::malformed);
}

TEST(ParseReply, MoreAnswersClaimedThanSentIsMalformed) {
  EXPECT_EQ(parse_reply(Packet("a.example", 1).a(kQuestion, 5, 1).claim_answers(2).str(),
                        "a.example", Type::a)
                .outcome,
            Outcome::malformed);
}

TEST(ParseReply, PointerLoopsAndForwardPointersEnd) {
  // The answer's owner points at itself: its offset is 12 + question.
  const std::string question_only = Packet("a.example", 1).str();
  const size_t at = question_only.size();
  std::string itself = {static_cast<char>(0xc0), static_cast<char>(at)};
  EXPECT_EQ(
      parse_reply(Packet("a.example", 1).answer(itself, 1, 5, "abcd").str(), "a.example", Type::a)
          .outcome,
      Outcome::malformed);
  std::string forward = {static_cast<char>(0xc0), static_cast<char>(at + 12)};
  EXPECT_EQ(
      parse_reply(Packet("a.example", 1).answer(forward, 1, 5, "abcd").str(), "a.example", Type::a)
          .outcome,
      Outcome::malformed);
}

TEST(ParseReply, AtMostAHundredRecordsAreRead) {
  Packet packet("a.example", 1);
  for (uint32_t i = 0; i < 400; ++i) packet.a(kQuestion, 300, 0xc0000200 + i);
  const Answer answer = parse_reply(packet.str(), "a.example", Type::a);
  EXPECT_EQ(answer.outcome, Outcome::records);
  EXPECT_EQ(answer.addresses.size(), 100u);
}

TEST(ParseReply, OddOctetsInNamesComeOutEscaped) {
  const std::string evil =
      std::string("\x04") + "a.\nb" + std::string("\x03") + "com" + std::string(1, '\0');
  const Answer answer =
      parse_reply(Packet("a.example", 15).answer(kQuestion, 15, 5, be16(1) + evil).str(),
                  "a.example", Type::mx);
  ASSERT_EQ(answer.outcome, Outcome::records);
  EXPECT_EQ(answer.mx[0].host, "a\\046\\010b.com");
  EXPECT_FALSE(is_host_name(answer.mx[0].host));
}

TEST(ParseReply, EveryPrefixAndEveryFlippedByteEnds) {
  const std::string good = Packet("www.example", 15)
                               .cname(kQuestion, 70, "b.example")
                               .mx(wire_name("b.example"), 70, 10, "mx.b.example")
                               .soa(1, 2)
                               .str();
  ASSERT_EQ(parse_reply(good, "www.example", Type::mx).outcome, Outcome::records);
  for (size_t size = 0; size < good.size(); ++size) {
    // An exact allocation, so that a sanitizer sees a read past the end.
    const std::vector<char> prefix(good.begin(), good.begin() + static_cast<long>(size));
    parse_reply({prefix.data(), prefix.size()}, "www.example", Type::mx);
  }
  Prng prng(7);
  for (int round = 0; round < 20'000; ++round) {
    std::vector<char> bytes(good.begin(), good.end());
    for (uint64_t i = 0, flips = 1 + prng.below(4); i < flips; ++i) {
      bytes[prng.below(bytes.size())] = static_cast<char>(prng.below(256));
    }
    const Answer answer = parse_reply({bytes.data(), bytes.size()}, "www.example", Type::mx);
    EXPECT_EQ(answer.outcome == Outcome::records, !answer.mx.empty());
  }
}

TEST(HostNames, FollowTheRulesOfLabels) {
  for (const char* good : {"a", "mx1.example.com", "a-b.c", "_dmarc.example", "1.example"}) {
    EXPECT_TRUE(is_host_name(good)) << good;
  }
  for (const char* bad :
       {"", ".", "a..b", ".a", "a.", "-a.b", "a-.b", "a b", "a\\046b.c", "a/b", "\xc3\xa4.de"}) {
    EXPECT_FALSE(is_host_name(bad)) << bad;
  }
  EXPECT_TRUE(is_host_name(std::string(63, 'a')));
  EXPECT_FALSE(is_host_name(std::string(64, 'a')));
  std::string long_name;
  while (long_name.size() < 252) long_name += "a.";
  long_name += "aaa";
  EXPECT_EQ(long_name.size(), 255u);
  EXPECT_FALSE(is_host_name(long_name));
}

reactor::Address ip(std::string_view text) { return *reactor::Address::parse_host(text, 0); }

TEST(AddressRules, PrivateAndSpecialAddressesAreNotPublic) {
  for (const char* address : {"0.0.0.0",
                              "0.1.2.3",
                              "10.0.0.1",
                              "100.64.0.1",
                              "100.127.255.255",
                              "127.0.0.1",
                              "127.255.0.1",
                              "169.254.169.254",
                              "172.16.0.1",
                              "172.31.255.255",
                              "192.168.1.1",
                              "192.0.0.8",
                              "198.18.0.1",
                              "224.0.0.1",
                              "240.0.0.1",
                              "255.255.255.255",
                              "::",
                              "::1",
                              "::ffff:10.0.0.1",
                              "::ffff:8.8.8.8",
                              "::10.0.0.1",
                              "fe80::1",
                              "fec0::1",
                              "fc00::1",
                              "fd12:3456::1",
                              "ff02::1",
                              "64:ff9b::10.0.0.1",
                              "64:ff9b:1::1",
                              "2002:7f00:1::",
                              "2002:c0a8:101::1",
                              "100::1",
                              "2001::1"}) {
    EXPECT_NE(why_not_public(ip(address)), "") << address;
  }
  for (const char* address :
       {"1.1.1.1",        "9.255.255.255",      "11.0.0.0",         "100.63.255.255",
        "100.128.0.0",    "126.255.255.255",    "128.0.0.1",        "169.253.255.255",
        "172.15.255.255", "172.32.0.0",         "192.0.2.1",        "192.167.255.255",
        "192.169.0.0",    "198.17.255.255",     "198.20.0.0",       "223.255.255.255",
        "2001:db8::1",    "2a00:1450:4001::1a", "64:ff9b::8.8.8.8", "2002:808:808::1"}) {
    EXPECT_EQ(why_not_public(ip(address)), "") << address;
  }
}

TEST(AddressRules, HostsThatAreAddressesOrTheLocalHostAreRefused) {
  for (const char* host :
       {"localhost", "LOCALHOST", "a.localhost", "localhost.localdomain", "127.0.0.1", "192.0.2.1",
        "127.1", "0x7f000001", "10", "::1", "a..b", "."}) {
    EXPECT_NE(why_not_a_host(host), "") << host;
  }
  for (const char* host : {"mx.example.com", "1.example.com", "localhost.example.com", "mail"}) {
    EXPECT_EQ(why_not_a_host(host), "") << host;
  }
}

TEST(AddressRules, LiteralsAreRead) {
  EXPECT_EQ(parse_literal("[192.0.2.1]").host_string(), "192.0.2.1");
  EXPECT_EQ(parse_literal("[IPv6:2001:db8::1]").host_string(), "2001:db8::1");
  EXPECT_EQ(parse_literal("[ipv6:2001:db8::1]").host_string(), "2001:db8::1");
  for (const char* bad : {"[]", "[2001:db8::1]", "[IPv6:192.0.2.1]", "192.0.2.1", "[192.0.2]",
                          "[x]", "[192.0.2.1", "[[192.0.2.1]]", "[IPv6:]"}) {
    EXPECT_TRUE(parse_literal(bad).empty()) << bad;
  }
}

}  // namespace
}  // namespace millrace::dns
