#include "dsn/report.h"

#include <gtest/gtest.h>

#include "base/prng.h"

namespace millrace::dsn {
namespace {

using mail::Notify;
using namespace std::string_literals;

constexpr int64_t kNow = 1'795'249'800'000;  // 2026-11-21T08:30:00Z

const std::string kOriginal =
    "Received: by mail.example.com\r\n"
    "From: Anna <anna@example.com>\r\n"
    "To: rcpt@example.net\r\n"
    "Subject: hello\r\n"
    "\r\n"
    "The body.\r\n";

mail::Content content_of(const std::string& bytes) {
  mail::Content content;
  content.raw.push_back(bytes);
  content.raw_size = static_cast<uint32_t>(bytes.size());
  return content;
}

// A source with one refused recipient; tests change what they are about.
struct Fixture {
  std::string original = kOriginal;
  mail::Content content;
  mail::Envelope envelope;
  std::vector<ReportedRecipient> recipients;
  ReportSource source;

  Fixture() {
    envelope.reverse_path = "bounce@example.com";
    envelope.envid = "job+2B7";
    envelope.received_ms = kNow - 60'000;
    envelope.tenant = "tenant";
    ReportedRecipient recipient;
    recipient.address = "rcpt@example.net";
    recipient.orcpt = "rfc822;old+2Bname@example.net";
    recipient.code = 550;
    recipient.enhanced = "5.1.1";
    recipient.reply = "5.1.1 <rcpt@example.net>: Recipient address rejected:\n5.1.1 User unknown";
    recipient.mx = "mx.example.net";
    recipient.last_attempt_ms = kNow - 1000;
    recipients.push_back(recipient);
  }
  Report build() {
    content = content_of(original);
    source.hostname = "mail.example.com";
    source.envelope = &envelope;
    source.message = mail::SpoolId{0x0199'0000'0000'0001, 7};
    source.id = mail::SpoolId{0x0199'0000'0000'0002, 7};
    source.content = &content;
    source.recipients = recipients;
    source.now_ms = kNow;
    source.random = 0x0123456789abcdef;
    return build_report(source);
  }
};

// What holds for every report.
void expect_sound(const Report& report) {
  size_t line = 0;
  bool eight_bit = false;
  for (size_t i = 0; i < report.content.size(); ++i) {
    auto octet = static_cast<unsigned char>(report.content[i]);
    if (octet == '\r') {
      ASSERT_LT(i + 1, report.content.size());
      ASSERT_EQ(report.content[i + 1], '\n');
      line = 0;
      ++i;
      continue;
    }
    ASSERT_NE(octet, '\n');
    ASSERT_NE(octet, '\0');
    eight_bit |= octet >= 0x80;
    ASSERT_LE(++line, 998u);
  }
  EXPECT_TRUE(report.content.ends_with("\r\n"));
  EXPECT_TRUE(!eight_bit || report.envelope.body == mail::BodyType::eight_bit_mime);
  EXPECT_TRUE(report.envelope.reverse_path.empty());
}

bool contains(const Report& report, std::string_view text) {
  return report.content.find(text) != std::string::npos;
}
size_t count(const std::string& text, std::string_view what) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += what.size()) ++n;
  return n;
}

TEST(Report, GoldenFailure) {
  Fixture f;
  Report report = f.build();
  std::string id = f.source.id.to_string(), message = f.source.message.to_string();
  std::string boundary = "=_0123456789abcdef." + id;
  EXPECT_EQ(report.content,
            "From: Mail Delivery System <MAILER-DAEMON@mail.example.com>\r\n"
            "To: <bounce@example.com>\r\n"
            "Subject: Delivery Status Notification (Failure)\r\n"
            "Date: Sat, 21 Nov 2026 08:30:00 +0000\r\n"
            "Message-ID: <" +
                id +
                "@mail.example.com>\r\n"
                "Auto-Submitted: auto-replied\r\n"
                "MIME-Version: 1.0\r\n"
                "Content-Type: multipart/report; report-type=delivery-status;\r\n"
                " boundary=\"" +
                boundary +
                "\"\r\n"
                "\r\n"
                "This is a report in MIME form (RFC 3464).\r\n"
                "\r\n"
                "--" +
                boundary +
                "\r\n"
                "Content-Type: text/plain; charset=us-ascii\r\n"
                "\r\n"
                "This is the mail system at mail.example.com.\r\n"
                "\r\n"
                "Your message could not be delivered to the recipients below. This is final:\r\n"
                "no further attempt will be made.\r\n"
                "\r\n"
                "  <rcpt@example.net>\r\n"
                "    mx.example.net said: 550 5.1.1 <rcpt@example.net>: Recipient address\r\n"
                "    rejected: 5.1.1 User unknown\r\n"
                "\r\n"
                "--" +
                boundary +
                "\r\n"
                "Content-Type: message/delivery-status\r\n"
                "\r\n"
                "Original-Envelope-Id: job+7\r\n"
                "Reporting-MTA: dns; mail.example.com\r\n"
                "Arrival-Date: Sat, 21 Nov 2026 08:29:00 +0000\r\n"
                "X-Spool-Id: " +
                message +
                "\r\n"
                "\r\n"
                "Original-Recipient: rfc822; old+name@example.net\r\n"
                "Final-Recipient: rfc822; rcpt@example.net\r\n"
                "Action: failed\r\n"
                "Status: 5.1.1\r\n"
                "Remote-MTA: dns; mx.example.net\r\n"
                "Diagnostic-Code: smtp; 550 5.1.1 <rcpt@example.net>: Recipient address\r\n"
                " rejected: 5.1.1 User unknown\r\n"
                "Last-Attempt-Date: Sat, 21 Nov 2026 08:29:59 +0000\r\n"
                "\r\n"
                "--" +
                boundary +
                "\r\n"
                "Content-Type: text/rfc822-headers\r\n"
                "\r\n"
                "Received: by mail.example.com\r\n"
                "From: Anna <anna@example.com>\r\n"
                "To: rcpt@example.net\r\n"
                "Subject: hello\r\n"
                "\r\n"
                "--" +
                boundary + "--\r\n");
  expect_sound(report);
  ASSERT_EQ(report.envelope.recipients.size(), 1u);
  EXPECT_EQ(report.envelope.recipients[0].address, "bounce@example.com");
  EXPECT_EQ(report.envelope.recipients[0].domain, "example.com");
  EXPECT_EQ(report.envelope.body, mail::BodyType::seven_bit);
  EXPECT_EQ(report.envelope.tenant, "tenant");
  EXPECT_EQ(report.envelope.message_id, "<" + id + "@mail.example.com>");
}

TEST(Report, FullMessageWhenAsked) {
  Fixture f;
  f.envelope.ret = mail::Ret::full;
  Report report = f.build();
  EXPECT_TRUE(contains(report, "Content-Type: message/rfc822\r\n\r\n" + kOriginal + "\r\n--"));
  expect_sound(report);
}

// RFC 8689 5
TEST(Report, OfAMessageThatRequiresTlsIsProtectedAsThatWasAndTellsItsHeadersOnly) {
  Fixture f;
  EXPECT_EQ(f.build().envelope.tls, mail::TlsWish::none);
  f.envelope.ret = mail::Ret::full;
  f.envelope.tls = mail::TlsWish::required;
  Report report = f.build();
  EXPECT_EQ(report.envelope.tls, mail::TlsWish::required);
  EXPECT_FALSE(contains(report, "message/rfc822"));
  EXPECT_TRUE(contains(report, "text/rfc822-headers"));
  expect_sound(report);
}

TEST(Report, LongMessagesAreCutAtALine) {
  Fixture f;
  f.envelope.ret = mail::Ret::full;
  while (f.original.size() < 3 * kMostReturned) f.original += std::string(70, 'x') + "\r\n";
  Report report = f.build();
  EXPECT_LT(report.content.size(), kMostReturned + 4096);
  EXPECT_GT(report.content.size(), kMostReturned);
  EXPECT_TRUE(contains(report, "Only the first 64 KiB"));
  EXPECT_TRUE(contains(report, "xxx\r\n\r\n--="));
  expect_sound(report);
}

TEST(Report, EndlessHeadersAreCutToo) {
  Fixture f;
  f.original.clear();
  while (f.original.size() < 3 * kMostReturned)
    f.original += "X-Header: " + std::string(70, 'x') + "\r\n";
  Report report = f.build();
  EXPECT_LT(report.content.size(), kMostReturned + 4096);
  expect_sound(report);
}

TEST(Report, MessageWithoutHeadersOrThatCannotBeRead) {
  Fixture f;
  f.original = "\r\njust a body\r\n";
  EXPECT_FALSE(contains(f.build(), "just a body"));
  f.build();
  f.source.content = nullptr;
  Report report = build_report(f.source);
  EXPECT_FALSE(contains(report, "text/rfc822-headers"));
  EXPECT_TRUE(contains(report, "Status: 5.1.1"));
  expect_sound(report);
}

TEST(Report, EightBitHeadersStaySevenBitAndAnEightBitMessageNeeds8Bitmime) {
  Fixture f;
  f.original = "Subject: caf\xe9 = 1 \r\n\r\nbody \xe9\r\n";
  Report headers = f.build();
  EXPECT_EQ(headers.envelope.body, mail::BodyType::seven_bit);
  EXPECT_TRUE(contains(
      headers,
      "Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: quoted-printable\r\n"
      "\r\nSubject: caf=E9 =3D 1=20\r\n"));
  expect_sound(headers);
  f.envelope.ret = mail::Ret::full;
  Report full = f.build();
  EXPECT_EQ(full.envelope.body, mail::BodyType::eight_bit_mime);
  EXPECT_TRUE(contains(
      full,
      "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\nSubject: caf\xe9"));
  expect_sound(full);
}

// RFC 6533
TEST(Report, InternationalAddresses) {
  Fixture f;
  f.envelope.smtputf8 = true;
  f.recipients[0].address = "j\xc3\xbcrgen@example.net";
  f.recipients[0].orcpt = "";
  Report ascii_sender = f.build();
  EXPECT_TRUE(contains(ascii_sender, "Content-Type: message/delivery-status\r\n"));
  EXPECT_TRUE(contains(ascii_sender, "Final-Recipient: utf-8; j\\x{FC}rgen@example.net\r\n"));
  EXPECT_TRUE(contains(ascii_sender, "j=C3=BCrgen"));
  EXPECT_FALSE(ascii_sender.envelope.smtputf8);
  EXPECT_EQ(ascii_sender.envelope.body, mail::BodyType::seven_bit);
  expect_sound(ascii_sender);

  f.envelope.reverse_path = "\xe7\x94\xa8\xe6\x88\xb7@example.com";
  Report utf8_sender = f.build();
  EXPECT_TRUE(utf8_sender.envelope.smtputf8);
  EXPECT_TRUE(contains(utf8_sender, "To: <\xe7\x94\xa8\xe6\x88\xb7@example.com>\r\n"));
  EXPECT_TRUE(contains(utf8_sender, "report-type=global-delivery-status"));
  EXPECT_TRUE(contains(utf8_sender, "Content-Type: message/global-delivery-status\r\n"));
  EXPECT_TRUE(contains(utf8_sender, "Final-Recipient: utf-8; j\xc3\xbcrgen@example.net\r\n"));
  EXPECT_TRUE(contains(utf8_sender, "Content-Type: message/global-headers\r\n"));
  expect_sound(utf8_sender);
}

TEST(Report, KindsHaveTheirActionsStatusesAndSubjects) {
  Fixture f;
  f.recipients[0].kind = ReportKind::delayed;
  f.recipients[0].code = 450;
  f.recipients[0].enhanced = "4.2.1";
  f.recipients[0].retry_until_ms = kNow + 86'400'000;
  Report delayed = f.build();
  EXPECT_TRUE(contains(delayed, "Subject: Delivery Status Notification (Delay)\r\n"));
  EXPECT_TRUE(contains(delayed, "Action: delayed\r\nStatus: 4.2.1\r\n"));
  EXPECT_TRUE(contains(delayed, "Will-Retry-Until: Sun, 22 Nov 2026 08:30:00 +0000\r\n"));

  f.recipients[0].kind = ReportKind::expired;
  f.recipients[0].enhanced = "";
  f.recipients[0].code = 0;
  f.recipients[0].mx = "";
  f.recipients[0].reply = "not delivered before its time was up";
  Report expired = f.build();
  EXPECT_TRUE(contains(expired, "Action: failed\r\nStatus: 4.4.7\r\n"));
  EXPECT_TRUE(
      contains(expired, "Diagnostic-Code: X-Millrace; not delivered before its time was up\r\n"));
  EXPECT_FALSE(contains(expired, "Remote-MTA"));

  f.recipients[0].kind = ReportKind::relayed;
  Report relayed = f.build();
  EXPECT_TRUE(contains(relayed, "Subject: Delivery Status Notification (Success)\r\n"));
  EXPECT_TRUE(contains(relayed, "Action: relayed\r\nStatus: 2.0.0\r\n"));
}

TEST(Report, StatusOfTheWrongClassIsReplaced) {
  Fixture f;
  for (const char* wrong : {"4.1.1", "2.0.0", "5.1", "5.1.1\r\nX: y", "", "x"}) {
    f.recipients[0].enhanced = wrong;
    EXPECT_TRUE(contains(f.build(), "Status: 5.0.0\r\n")) << wrong;
  }
}

TEST(Report, SeveralRecipientsAreOneReport) {
  Fixture f;
  ReportedRecipient second = f.recipients[0];
  second.address = "other@example.net";
  second.kind = ReportKind::delivered;
  second.code = 250;
  second.enhanced = "2.0.0";
  second.reply = "2.0.0 Ok";
  f.recipients.insert(f.recipients.begin(), second);
  Report report = f.build();
  EXPECT_EQ(count(report.content, "Final-Recipient:"), 2u);
  EXPECT_TRUE(contains(report, "(Failure)")) << "the gravest names the report";
  expect_sound(report);
}

// Checklist rows 8 and 26: nothing a peer or a client said makes a line of its own.
TEST(Report, PeersCannotInjectLines) {
  const std::string evil =
      "a\r\nBcc: evil@example.org\r\n\r\n--x\n.\r\nFinal-Recipient: x\rY: z\0\x1b[2J\xff"s;
  Fixture f;
  f.recipients[0].reply = evil;
  f.recipients[0].mx = evil;
  f.recipients[0].address = evil;
  const std::string evil_orcpt = "rfc822;" + evil;
  f.recipients[0].orcpt = evil_orcpt;
  f.envelope.envid = evil;
  f.envelope.reverse_path = "a\r\nBcc: b@example.com";
  Report report = f.build();
  expect_sound(report);
  EXPECT_EQ(count(report.content, "\r\nBcc:"), 0u);
  EXPECT_EQ(count(report.content, "\r\nY:"), 0u);
  EXPECT_EQ(count(report.content, "\r\nFinal-Recipient:"), 1u);
  EXPECT_EQ(count(report.content, "\r\n.\r\n"), 0u);
  EXPECT_EQ(report.content.find('\x1b'), std::string::npos);
  EXPECT_EQ(count(report.content, "\r\n--"), 4u) << "three parts and the end";
}

TEST(Report, LongTextsAreFolded) {
  Fixture f;
  for (const std::string& reply :
       {std::string(5000, 'x'), std::string(2000, ' '), std::string(3000, 'x') + " y"}) {
    f.recipients[0].reply = reply;
    f.recipients[0].mx = reply;
    f.recipients[0].address = reply;
    expect_sound(f.build());
  }
}

TEST(Report, TheBoundaryIsNotInWhatIsReturned) {
  Fixture f;
  f.build();
  std::string first = "=_0123456789abcdef." + f.source.id.to_string();
  f.original = "Subject: x\r\nX-Trap: " + first + "\r\n\r\n";
  Report report = f.build();
  EXPECT_EQ(count(report.content, first), 1u) << "only in the returned header";
  expect_sound(report);
}

TEST(Report, AnyBytesGiveASoundReport) {
  Prng prng(5);
  auto bytes = [&](size_t most) {
    std::string out(prng.below(most), '\0');
    for (char& c : out)
      c = prng.below(4) ? static_cast<char>('a' + prng.below(26)) : static_cast<char>(prng.next());
    return out;
  };
  for (int i = 0; i < 3000; ++i) {
    Fixture f;
    std::string reply = bytes(2000), mx = bytes(300), address = bytes(300),
                orcpt = "utf-8;" + bytes(100);
    f.recipients[0].reply = reply;
    f.recipients[0].mx = mx;
    f.recipients[0].address = address;
    f.recipients[0].orcpt = orcpt;
    f.recipients[0].kind = static_cast<ReportKind>(prng.below(5));
    f.envelope.reverse_path = "x" + bytes(100);
    f.envelope.smtputf8 = prng.below(2);
    f.envelope.ret = prng.below(2) ? mail::Ret::full : mail::Ret::headers;
    f.original = bytes(3000);
    Report report = f.build();
    expect_sound(report);
    if (HasFatalFailure()) return;
  }
}

TEST(Policy, WhoGetsAReport) {
  ReportPolicy failures;  // the default
  ReportPolicy all{true, true, true};
  ReportPolicy none{false, false, false};
  auto due = [](const ReportPolicy& policy, ReportKind kind, uint8_t notify,
                bool receiver = false) {
    return report_due(policy, kind, "sender@example.com", notify, receiver);
  };
  for (ReportKind kind : {ReportKind::failed, ReportKind::expired}) {
    EXPECT_TRUE(due(failures, kind, Notify::unset));
    EXPECT_TRUE(due(failures, kind, Notify::failure));
    EXPECT_TRUE(due(failures, kind, Notify::failure | Notify::delay));
    EXPECT_FALSE(due(failures, kind, Notify::success)) << "NOTIFY without FAILURE";
    EXPECT_FALSE(due(failures, kind, Notify::never));
    EXPECT_FALSE(due(none, kind, Notify::failure));
  }
  EXPECT_FALSE(due(failures, ReportKind::delivered, Notify::success)) << "--reports failure";
  EXPECT_TRUE(due(all, ReportKind::delivered, Notify::success));
  EXPECT_FALSE(due(all, ReportKind::delivered, Notify::unset)) << "successes only when asked for";
  EXPECT_FALSE(due(all, ReportKind::relayed, Notify::success, true)) << "the receiver reports it";
  EXPECT_FALSE(due(failures, ReportKind::delayed, Notify::delay)) << "delay reports are off";
  EXPECT_TRUE(due(all, ReportKind::delayed, Notify::unset));
  EXPECT_FALSE(due(all, ReportKind::delayed, Notify::failure));
}

// Checklist row 5.
TEST(Policy, ABounceNeverBounces) {
  ReportPolicy all{true, true, true};
  for (int kind = 0; kind < 5; ++kind)
    EXPECT_FALSE(report_due(all, static_cast<ReportKind>(kind), "",
                            Notify::failure | Notify::success | Notify::delay));
}

}  // namespace
}  // namespace millrace::dsn
