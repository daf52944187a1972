#include <gtest/gtest.h>

#include "base/prng.h"
#include "mail/content.h"

namespace millrace::mail {
namespace {

Envelope full_envelope() {
  Envelope envelope;
  envelope.reverse_path = "bounce+1@example.com";
  envelope.recipients.push_back(
      {"a@example.org", "example.org", "rfc822;a+2Bb@c", Notify::success | Notify::delay});
  envelope.recipients.push_back({"\xc3\xbc@b.example", "b.example", "", Notify::never});
  envelope.envid = "job+2B17";
  envelope.ret = Ret::headers;
  envelope.body = BodyType::eight_bit_mime;
  envelope.smtputf8 = true;
  envelope.received_ms = 1763766000123;
  envelope.expires_ms = 1763766000123 + 4 * 86400000LL;
  envelope.tenant = "acme";
  envelope.job = "spring";
  envelope.pool = "vmta-1";
  envelope.account = "api";
  envelope.client = "192.0.2.1";
  envelope.message_id = "<x@y>";
  return envelope;
}

Content full_content() {
  Content content;
  content.prefix = "Received: by x\r\n\tid y\r\nDate: z\r\n";
  content.raw_size = 100;
  content.dots = {5, 40, 99};
  content.cuts = {{10, 20}, {50, 10}};
  content.stuffed = true;
  content.eight_bit = true;
  content.eight_bit_header = true;
  content.ends_in_crlf = false;
  content.crc = 0xdeadbeef;
  return content;
}

std::string encoded(const Envelope& envelope, const Content& content) {
  std::string bytes;
  encode_metadata(envelope, content, bytes);
  return bytes;
}

TEST(Metadata, RoundTrips) {
  std::string bytes = encoded(full_envelope(), full_content());
  auto decoded = decode_metadata(bytes);
  ASSERT_TRUE(decoded.ok()) << decoded.error().text;
  EXPECT_EQ(encoded(decoded->envelope, decoded->content), bytes);
  const Envelope& envelope = decoded->envelope;
  EXPECT_EQ(envelope.reverse_path, "bounce+1@example.com");
  ASSERT_EQ(envelope.recipients.size(), 2u);
  EXPECT_EQ(envelope.recipients[0].orcpt, "rfc822;a+2Bb@c");
  EXPECT_EQ(envelope.recipients[1].notify, Notify::never);
  EXPECT_EQ(envelope.recipients[1].domain, "b.example");
  EXPECT_EQ(envelope.ret, Ret::headers);
  EXPECT_TRUE(envelope.smtputf8);
  EXPECT_EQ(envelope.received_ms, 1763766000123);
  EXPECT_EQ(envelope.message_id, "<x@y>");
  const Content& content = decoded->content;
  EXPECT_EQ(content.prefix, full_content().prefix);
  EXPECT_EQ(content.dots, full_content().dots);
  ASSERT_EQ(content.cuts.size(), 2u);
  EXPECT_EQ(content.cuts[1].offset, 50u);
  EXPECT_EQ(content.raw_size, 100u);
  EXPECT_EQ(content.crc, 0xdeadbeef);
  EXPECT_TRUE(content.stuffed && content.eight_bit && content.eight_bit_header);
  EXPECT_FALSE(content.ends_in_crlf);
}

TEST(Metadata, TheSummaryAgreesWithTheWhole) {
  std::string bytes = encoded(full_envelope(), full_content());
  auto summary = summarize_metadata(bytes);
  ASSERT_TRUE(summary.ok());
  EXPECT_EQ(summary->expires_ms, full_envelope().expires_ms);
  EXPECT_FALSE(summary->reverse_path.empty());
  EXPECT_EQ(summary->reverse_path, full_envelope().reverse_path);
  EXPECT_EQ(summary->tenant, "acme");
  EXPECT_EQ(summary->job, "spring");
  EXPECT_EQ(summary->pool, "vmta-1");
  EXPECT_EQ(summary->recipient_domains,
            (std::vector<std::string_view>{"example.org", "b.example"}));
  EXPECT_GE(summary->tenant.data(), bytes.data());  // a view into the record
}

TEST(Metadata, WhatIsAskedOfTlsIsKept) {
  Envelope envelope = full_envelope();
  EXPECT_EQ(decode_metadata(encoded(envelope, full_content()))->envelope.tls, TlsWish::none);
  const size_t without = encoded(envelope, full_content()).size();
  for (TlsWish wish : {TlsWish::required, TlsWish::not_required}) {
    envelope.tls = wish;
    std::string bytes = encoded(envelope, full_content());
    EXPECT_GT(bytes.size(), without) << "mail that asks for nothing is stored as ever";
    auto decoded = decode_metadata(bytes);
    ASSERT_TRUE(decoded.ok()) << decoded.error().text;
    EXPECT_EQ(decoded->envelope.tls, wish);
    EXPECT_EQ(summarize_metadata(bytes)->tls, wish);
    EXPECT_GE(static_cast<uint8_t>(bytes[bytes.size() - 6]), 128) << "who does not know it may not deliver";
    bytes.back() = 3;
    EXPECT_FALSE(decode_metadata(bytes).ok());
    EXPECT_FALSE(summarize_metadata(bytes).ok());
  }
}

TEST(Metadata, UnknownFieldsAreSkippedOrRefusedAsTheirTagSays) {
  std::string bytes = encoded(full_envelope(), full_content());
  std::string skip = bytes + std::string("\x7f\3\0\0\0abc", 8);
  EXPECT_TRUE(decode_metadata(skip).ok());
  EXPECT_TRUE(summarize_metadata(skip).ok());
  std::string refuse = bytes + std::string("\xf0\3\0\0\0abc", 8);
  EXPECT_FALSE(decode_metadata(refuse).ok());
  EXPECT_FALSE(summarize_metadata(refuse).ok());
}

TEST(Metadata, EveryTruncationIsAnError) {
  std::string bytes = encoded(full_envelope(), full_content());
  int accepted = 0;
  for (size_t size = 0; size < bytes.size(); ++size) {
    accepted += decode_metadata(bytes.substr(0, size)).ok();
  }
  EXPECT_LE(accepted, 2);  // before the optional edits only
}

TEST(Metadata, BrokenInvariantsAreErrors) {
  auto refused = [](auto change) {
    Envelope envelope = full_envelope();
    Content content = full_content();
    change(envelope, content);
    std::string bytes = encoded(envelope, content);
    return !decode_metadata(bytes).ok();
  };
  EXPECT_FALSE(refused([](Envelope&, Content&) {}));
  EXPECT_TRUE(refused([](Envelope& e, Content&) { e.recipients.clear(); }));
  EXPECT_TRUE(refused([](Envelope& e, Content&) { e.recipients[0].address = "a\r\nb"; }));
  EXPECT_TRUE(refused([](Envelope& e, Content&) { e.recipients[0].orcpt = std::string(1, '\0'); }));
  EXPECT_TRUE(refused([](Envelope& e, Content&) { e.recipients[0].notify = 3; }));
  EXPECT_TRUE(refused([](Envelope& e, Content&) { e.reverse_path = "x\n"; }));
  EXPECT_TRUE(refused([](Envelope& e, Content&) { e.envid = "x\x7f"; }));
  EXPECT_TRUE(refused([](Envelope& e, Content&) { e.job = "\x1b[2J"; }));
  EXPECT_TRUE(refused([](Envelope&, Content& c) { c.prefix = "no line end"; }));
  EXPECT_TRUE(refused([](Envelope&, Content& c) { c.prefix = "bare\nLF\r\n"; }));
  EXPECT_TRUE(refused([](Envelope&, Content& c) { c.prefix = "a\r\n.\r\n"; }));
  EXPECT_TRUE(refused([](Envelope&, Content& c) { c.dots = {5, 5}; }));
  EXPECT_TRUE(refused([](Envelope&, Content& c) { c.dots = {100}; }));
  EXPECT_TRUE(refused([](Envelope&, Content& c) { c.dots = {15}; }));  // within a cut
  EXPECT_TRUE(refused([](Envelope&, Content& c) { c.dots = {9, 3}; }));
  EXPECT_TRUE(refused([](Envelope&, Content& c) { c.cuts = {{10, 20}, {29, 1}}; }));
  EXPECT_TRUE(refused([](Envelope&, Content& c) { c.cuts = {{90, 11}}; }));
  EXPECT_TRUE(refused([](Envelope&, Content& c) { c.cuts = {{90, UINT32_MAX}}; }));
  EXPECT_TRUE(refused([](Envelope&, Content& c) { c.cuts = {{10, 0}}; }));
  EXPECT_TRUE(refused([](Envelope&, Content& c) { c.unlisted_dots = 1000; }));
}

TEST(Metadata, FlippedBitsNeverDoHarm) {
  Prng prng(5);
  const std::string bytes = encoded(full_envelope(), full_content());
  for (int round = 0; round < 20000; ++round) {
    std::string bad = bytes;
    for (uint64_t i = 0, n = 1 + prng.below(3); i < n; ++i) {
      bad[prng.below(bad.size())] ^= static_cast<char>(1 << prng.below(8));
    }
    auto decoded = decode_metadata(bad);
    (void)summarize_metadata(bad);
    if (!decoded.ok()) continue;
    std::string raw(decoded->content.raw_size < 1000 ? decoded->content.raw_size : 0, 'x');
    if (raw.size() != decoded->content.raw_size) continue;
    decoded->content.raw = {raw};
    std::vector<iovec> parts;
    decoded->content.gather(decoded->content.stuffed ? WireForm::data : WireForm::bdat, parts);
    if (decoded->content.supports(WireForm::bdat)) decoded->content.gather(WireForm::bdat, parts);
  }
}

}  // namespace
}  // namespace millrace::mail
