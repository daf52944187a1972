#include "mail/headers.h"

#include <gtest/gtest.h>

#include "base/prng.h"

namespace millrace::mail {
namespace {

const HeaderRules kRules({"X-Virtual-MTA", "X-Job", "X-EnvID", "X-Expire-After"}, {"X-Secret"});

std::string canonical(const Content& content) {
  std::vector<iovec> parts;
  content.gather(WireForm::bdat, parts);
  std::string bytes;
  for (const iovec& part : parts) {
    bytes.append(static_cast<const char*>(part.iov_base), part.iov_len);
  }
  return bytes;
}

struct Scanned {
  std::string raw;
  Content content;
  HeaderScan scan;
  std::string left;
};

// `step`: the raw bytes lie in pieces of so many octets.
std::unique_ptr<Scanned> scanned(std::string raw, bool stuffed = false, size_t step = SIZE_MAX) {
  auto result = std::make_unique<Scanned>();
  result->raw = std::move(raw);
  Content& content = result->content;
  const std::string& bytes = result->raw;
  content.raw_size = static_cast<uint32_t>(bytes.size());
  for (size_t at = 0; at < bytes.size(); at += std::min(step, bytes.size() - at)) {
    content.raw.push_back(std::string_view(bytes).substr(at, step));
  }
  content.stuffed = stuffed;
  for (size_t at = 0; at < bytes.size(); ++at) {
    if (bytes[at] == '.' && (at == 0 || (at > 1 && bytes.substr(at - 2, 2) == "\r\n"))) {
      content.dots.push_back(static_cast<uint32_t>(at));
    }
    content.eight_bit |= static_cast<unsigned char>(bytes[at]) >= 0x80;
  }
  content.ends_in_crlf = bytes.empty() || bytes.ends_with("\r\n");
  scan_headers(content, kRules, result->scan);
  result->left = canonical(content);
  for (const Cut& cut : content.cuts) {
    for (uint32_t dot : content.dots)
      EXPECT_FALSE(dot >= cut.offset && dot < cut.offset + cut.size);
  }
  return result;
}

TEST(Headers, MetadataAndPrivateHeadersAreRemovedWhereverTheyAreSplit) {
  std::string raw =
      "Received: a\r\nreceived: b\r\n\tfolded\r\nX-JOB: spring\r\n  sale \r\nDate: now\r\n"
      "Bcc: x@y,\r\n z@y\r\nbcc : second\r\nReturn-Path: <r>\r\nSubject: s\r\nResent-Bcc: t\r\n"
      "x-virtual-mta:\tpool1\r\nX-Job: ignored\r\nMessage-ID: <id@x>\r\nX-Secret: s\r\n\r\n"
      "Bcc: body\r\nReceived: body\r\n";
  std::string left =
      "Received: a\r\nreceived: b\r\n\tfolded\r\nDate: now\r\nSubject: s\r\nMessage-ID: "
      "<id@x>\r\n\r\n"
      "Bcc: body\r\nReceived: body\r\n";
  for (size_t step = 1; step <= raw.size(); ++step) {
    auto result = scanned(raw, false, step);
    ASSERT_EQ(result->left, left) << step;
    const HeaderScan& scan = result->scan;
    EXPECT_EQ(scan.received_count, 2u);
    EXPECT_TRUE(scan.has_section && scan.has_date && scan.has_message_id);
    EXPECT_EQ(scan.message_id, "<id@x>");
    EXPECT_EQ(scan.values[0].text, "pool1");
    EXPECT_EQ(scan.values[1].text, "spring  sale");
    EXPECT_EQ(scan.values[1].count, 2u);
    EXPECT_EQ(scan.values[2].count, 0u);
    EXPECT_EQ(raw.substr(scan.section_size, 9), "Bcc: body");
    EXPECT_EQ(result->content.cuts.size(), 4u);  // neighbours are one
  }
}

TEST(Headers, TlsRequiredIsReadAndStays) {
  const std::string raw = "Subject: s\r\ntls-required: \r\n No \r\nTLS-Required: yes\r\n\r\nTLS-Required: No\r\n";
  auto result = scanned(raw);
  EXPECT_EQ(result->scan.tls_required, "No");
  EXPECT_EQ(result->scan.tls_required_count, 2u);
  EXPECT_EQ(result->left, raw);
  EXPECT_EQ(scanned("Subject: s\r\n\r\nTLS-Required: No\r\n")->scan.tls_required_count, 0u);
}

TEST(Headers, ATransparencyDotHidesNoHeader) {
  auto result = scanned(".Bcc: a\r\n. folded\r\nSubject: x\r\n.X-Job: j\r\n\r\n..body\r\n", true);
  EXPECT_EQ(result->left, "Subject: x\r\n\r\n.body\r\n");
  EXPECT_EQ(result->scan.values[1].text, "j");
  EXPECT_EQ(result->content.dots.size(), 1u);
  // By BDAT a dot is part of the name.
  EXPECT_EQ(scanned("Subject: x\r\n.Bcc: a\r\n\r\n")->left, "Subject: x\r\n.Bcc: a\r\n\r\n");
}

TEST(Headers, UnlistedDotsWithinCutsAreUncounted) {
  std::string raw = "A: b\r\n.Bcc: a\r\n\r\n..\r\n";
  Content content;
  content.append_raw(raw);
  content.stuffed = true;
  content.unlisted_dots = 2;
  HeaderScan scan;
  scan_headers(content, kRules, scan);
  EXPECT_EQ(content.unlisted_dots, 1u);
  EXPECT_EQ(content.size(), std::string("A: b\r\n\r\n.\r\n").size());
}

TEST(Headers, WithoutAHeaderSectionNothingIsTouched) {
  for (const char* raw :
       {"just text\r\nBcc: x\r\n", " Bcc: x\r\n\r\n", ": x\r\nBcc: y\r\n", "B cc: x\r\n"}) {
    auto result = scanned(raw);
    EXPECT_FALSE(result->scan.has_section) << raw;
    EXPECT_EQ(result->left, raw);
  }
  EXPECT_TRUE(scanned("")->scan.has_section);
  EXPECT_TRUE(scanned("\r\nbody\r\n")->scan.has_section);
}

TEST(Headers, ALineThatIsNoFieldDoesNotEndTheSection) {
  auto result = scanned("Subject: x\r\ngarbage\r\n folded garbage\r\nBcc: y\r\n\r\nbody");
  EXPECT_EQ(result->left, "Subject: x\r\ngarbage\r\n folded garbage\r\n\r\nbody");
}

TEST(Headers, TheSectionMayEndWithTheMessage) {
  auto result = scanned("Subject: x\r\nBcc: y");
  EXPECT_EQ(result->left, "Subject: x\r\n");
  EXPECT_TRUE(result->content.ends_in_crlf);
  EXPECT_FALSE(scanned("Subject: x")->content.ends_in_crlf);
}

TEST(Headers, EightBitHeadersAreNoticed) {
  EXPECT_TRUE(scanned("Subject: \xc3\xbc\r\n\r\n")->content.eight_bit_header);
  EXPECT_FALSE(scanned("Subject: u\r\n\r\n\xc3\xbc\r\n")->content.eight_bit_header);
}

TEST(Headers, AMillionHeadersAreBounded) {
  std::string raw;
  for (int i = 0; i < 5000; ++i) raw += "A: b\r\nBcc: x\r\n";
  auto result = scanned(raw);
  EXPECT_TRUE(result->scan.too_many_cuts);
  EXPECT_EQ(result->content.cuts.size(), kMostCuts);
  raw.clear();
  for (int i = 0; i < 5000; ++i) raw += "Bcc: x\r\n";
  EXPECT_FALSE(scanned(raw)->scan.too_many_cuts);
  raw = "X-Job: a\r\n";
  for (int i = 0; i < 5000; ++i) raw += " folded\r\n";
  result = scanned(raw);
  EXPECT_LE(result->scan.values[1].text.size(), kLongestValue);
  EXPECT_EQ(result->left, "");
}

TEST(Headers, ControlCharactersOfAValueAreReplaced) {
  EXPECT_EQ(scanned("X-Job: a\x01"
                    "b\x7f\tc\r\n\r\n")
                ->scan.values[1]
                .text,
            "a?b? c");
}

TEST(HeaderLines, ReceivedTellsWhatItMay) {
  ReceivedFields fields;
  fields.helo = "client.example";
  fields.client_address = "2001:db8::1";
  fields.hostname = "relay.example";
  fields.id = {1, 2};
  fields.only_recipient = "b@example.org";
  fields.utc_ms = 880019706000;
  fields.authenticated = true;
  std::string id = fields.id.to_string(), out;
  append_received(out, ReceivedMode::full, fields);
  EXPECT_EQ(
      out,
      "Received: from client.example ([IPv6:2001:db8::1])\r\n\tby relay.example with ESMTPA id " +
          id + "\r\n\tfor <b@example.org>;\r\n\tThu, 20 Nov 1997 09:55:06 +0000\r\n");
  out.clear();
  fields.only_recipient = {};
  fields.tls = true;
  append_received(out, ReceivedMode::hide_client, fields);
  EXPECT_EQ(out, "Received: by relay.example with ESMTPSA id " + id +
                     ";\r\n\tThu, 20 Nov 1997 09:55:06 +0000\r\n");
  out.clear();
  append_received(out, ReceivedMode::off, fields);
  EXPECT_EQ(out, "");
  fields.esmtp = fields.tls = fields.authenticated = false;
  fields.client_address = "192.0.2.1";
  fields.only_recipient = "\xc3\xbc@example.org";
  append_received(out, ReceivedMode::full, fields);
  EXPECT_EQ(out.find("for"), out.npos);  // no UTF-8 in a message that is not SMTPUTF8
  EXPECT_NE(out.find("([192.0.2.1])"), out.npos);
  EXPECT_NE(out.find("with SMTP id"), out.npos);
}

TEST(HeaderLines, NoValueCanStartALine) {
  ReceivedFields fields;
  std::string evil("x\r\nBcc: a\n.\0b", 13);
  fields.helo = fields.client_address = fields.hostname = fields.only_recipient = evil;
  std::string out;
  append_received(out, ReceivedMode::full, fields);
  append_message_id(out, {}, evil);
  append_header(out, "X-Test", evil);
  append_header(out, evil, std::string(5000, 'v'));
  std::string_view rest = out;
  while (!rest.empty()) {
    size_t end = rest.find("\r\n");
    ASSERT_NE(end, rest.npos);
    std::string_view line = rest.substr(0, end);
    EXPECT_LE(line.size(), 998u);
    EXPECT_FALSE(line.starts_with("Bcc"));
    EXPECT_FALSE(line.starts_with("."));
    for (char c : line) EXPECT_TRUE(c == '\t' || (c >= 32 && c < 127));
    rest.remove_prefix(end + 2);
  }
}

TEST(HeaderLines, MissingHeadersAreAddedAndOthersLeft) {
  ReceivedFields fields;
  fields.hostname = "relay.example";
  fields.id = {1, 2};
  auto bare = scanned("Subject: x\r\n\r\n");
  add_standard_headers(bare->content, bare->scan, ReceivedMode::off, fields);
  EXPECT_EQ(bare->content.prefix, "Date: Thu, 01 Jan 1970 00:00:00 +0000\r\nMessage-ID: <" +
                                      fields.id.to_string() + "@relay.example>\r\n");
  EXPECT_EQ(bare->scan.message_id, "<" + fields.id.to_string() + "@relay.example>");
  auto complete = scanned("Date: d\r\nMessage-ID: <m>\r\n\r\n");
  add_standard_headers(complete->content, complete->scan, ReceivedMode::off, fields);
  EXPECT_EQ(complete->content.prefix, "");
  auto text = scanned("no headers here\r\n");
  add_standard_headers(text->content, text->scan, ReceivedMode::hide_client, fields);
  EXPECT_TRUE(text->content.prefix.ends_with(">\r\n\r\n"));
}

TEST(HeaderLines, DatesOverTheYears) {
  auto date = [](int64_t ms) {
    std::string out;
    append_rfc5322_date(out, ms);
    return out;
  };
  EXPECT_EQ(date(951782399999), "Mon, 28 Feb 2000 23:59:59 +0000");
  EXPECT_EQ(date(951782400000), "Tue, 29 Feb 2000 00:00:00 +0000");
  EXPECT_EQ(date(1795305600000), "Sun, 22 Nov 2026 00:00:00 +0000");
  EXPECT_EQ(date(-5), "Thu, 01 Jan 1970 00:00:00 +0000");
  EXPECT_EQ(date(INT64_MAX), "Fri, 31 Dec 9999 23:59:59 +0000");
}

}  // namespace
}  // namespace millrace::mail
