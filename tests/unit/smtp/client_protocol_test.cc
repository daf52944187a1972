#include "smtp/client_protocol.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "smtp/command.h"

namespace millrace::smtp {
namespace {

mail::Content content_of(std::string_view bytes) {
  mail::Content content;
  content.append_raw(bytes);
  return content;
}

Capabilities everything() {
  Capabilities all;
  all.pipelining = all.eight_bit_mime = all.smtputf8 = all.dsn = all.chunking = all.size = true;
  return all;
}

TEST(ClientProtocol, ParametersGoOnlyToPeersThatAnnouncedThem) {
  mail::Envelope envelope;
  envelope.reverse_path = "a@example.com";
  envelope.ret = mail::Ret::headers;
  envelope.envid = "x+2By";
  mail::Content content = content_of("Subject: \xc3\xbc\r\n\r\n");
  content.eight_bit = true;
  mail::Recipient recipient{"b@example.org", "example.org", "rfc822;b+2Bc@d",
                            mail::Notify::success | mail::Notify::delay};
  std::string out;
  append_mail(out, envelope, content, {});
  append_rcpt(out, envelope, recipient, {});
  EXPECT_EQ(out, "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\n");
  out.clear();
  append_mail(out, envelope, content, everything());
  append_rcpt(out, envelope, recipient, everything());
  EXPECT_EQ(out,
            "MAIL FROM:<a@example.com> SIZE=15 BODY=8BITMIME RET=HDRS ENVID=x+2By\r\n"
            "RCPT TO:<b@example.org> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;b+2Bc@d\r\n");
}

TEST(ClientProtocol, RequireTlsGoesToPeersThatPassItOnAndNowhereElse) {
  mail::Envelope envelope;
  envelope.reverse_path = "a@example.com";
  envelope.tls = mail::TlsWish::required;
  const mail::Content content = content_of("Subject: x\r\n\r\n");
  Capabilities plain, offering;
  offering.requiretls = true;
  EXPECT_EQ(check_fit(envelope, content, plain), Fit::needs_requiretls);
  EXPECT_EQ(check_fit(envelope, content, offering), Fit::ok);
  std::string out;
  append_mail(out, envelope, content, offering);
  EXPECT_EQ(out, "MAIL FROM:<a@example.com> REQUIRETLS\r\n");
  envelope.reverse_path.clear();
  EXPECT_EQ(check_fit(envelope, content, plain), Fit::ok) << "a report is not thrown away for it";
  out.clear();
  append_mail(out, envelope, content, plain);
  EXPECT_EQ(out, "MAIL FROM:<>\r\n");
  envelope.tls = mail::TlsWish::not_required;
  out.clear();
  append_mail(out, envelope, content, offering);
  EXPECT_EQ(out, "MAIL FROM:<>\r\n");
}

// RFC 3461: what a client told us reaches the next server unchanged.
TEST(ClientProtocol, DsnParametersRoundTrip) {
  std::string line = "RCPT TO:<b@example.org> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;b+2Bc@d";
  auto command = parse_command(line, Extensions{}, false);
  ASSERT_TRUE(command.ok());
  mail::Recipient recipient{std::string(command->path.mailbox), "example.org",
                            std::string(command->orcpt), command->notify};
  std::string out;
  append_rcpt(out, {}, recipient, everything());
  EXPECT_EQ(out, line + "\r\n");
  recipient.notify = mail::Notify::never;
  recipient.orcpt.clear();
  out.clear();
  append_rcpt(out, {}, recipient, everything());
  EXPECT_EQ(out, "RCPT TO:<b@example.org> NOTIFY=NEVER\r\n");
}

TEST(ClientProtocol, AMessageIsCheckedAgainstThePeer) {
  mail::Envelope envelope;
  envelope.recipients.push_back({"b@example.org", "example.org", "", 0});
  mail::Content content = content_of("hello\r\n");
  Capabilities peer;
  EXPECT_EQ(check_fit(envelope, content, peer), Fit::ok);
  peer.size = true;
  peer.size_limit = 6;
  EXPECT_EQ(check_fit(envelope, content, peer), Fit::too_large);
  peer.size_limit = 7;
  EXPECT_EQ(check_fit(envelope, content, peer), Fit::ok);
  content.eight_bit = true;
  EXPECT_EQ(check_fit(envelope, content, peer), Fit::needs_8bitmime);
  peer.eight_bit_mime = true;
  EXPECT_EQ(check_fit(envelope, content, peer), Fit::ok);
  envelope.smtputf8 = true;  // declared without need
  EXPECT_EQ(check_fit(envelope, content, peer), Fit::ok);
  content.eight_bit_header = true;
  EXPECT_EQ(check_fit(envelope, content, peer), Fit::needs_smtputf8);
  content.eight_bit_header = envelope.smtputf8 = false;
  envelope.recipients[0].address = "\xc3\xbc@example.org";
  EXPECT_EQ(check_fit(envelope, content, peer), Fit::needs_smtputf8);
  peer.smtputf8 = true;
  EXPECT_EQ(check_fit(envelope, content, peer), Fit::ok);
  std::string out;
  append_mail(out, envelope, content, peer);
  EXPECT_EQ(out, "MAIL FROM:<> SIZE=7 BODY=8BITMIME SMTPUTF8\r\n");
}

TEST(ClientProtocol, BdatWhereItIsAnnouncedAndPossible) {
  mail::Content content = content_of("a\r\n");
  EXPECT_EQ(choose_wire_form(content, {}), mail::WireForm::data);
  EXPECT_EQ(choose_wire_form(content, everything()), mail::WireForm::bdat);
  content.stuffed = true;
  content.unlisted_dots = 1;
  EXPECT_EQ(choose_wire_form(content, everything()), mail::WireForm::data);
  std::string out;
  append_bdat(out, 1234567890123, true);
  append_bdat(out, 0, false);
  append_ehlo(out, "mx.example.com");
  append_helo(out, "mx.example.com");
  EXPECT_EQ(out,
            "BDAT 1234567890123 LAST\r\nBDAT 0\r\nEHLO mx.example.com\r\nHELO mx.example.com\r\n");
}

TEST(ClientProtocolDeathTest, NoLineEndGetsIntoACommand) {
  mail::Envelope envelope;
  envelope.reverse_path = "a@b\r\nRCPT TO:<x@y>";
  std::string out;
  EXPECT_DEATH(append_mail(out, envelope, {}, {}), "");
}

TEST(ClientProtocol, WhatDoesNotFitIsToldInWords) {
  std::set<std::string_view> words;
  for (Fit fit : {Fit::ok, Fit::too_large, Fit::needs_smtputf8, Fit::needs_8bitmime}) {
    EXPECT_TRUE(words.insert(to_string(fit)).second) << to_string(fit);
  }
}

TEST(ClientProtocol, NothingIsAskedForThatNobodyAskedFor) {
  mail::Envelope envelope;
  envelope.reverse_path = "a@example.com";
  mail::Recipient recipient{"b@example.org", "example.org", "", 0};
  std::string out;
  append_mail(out, envelope, content_of("hello\r\n"), everything());
  append_rcpt(out, envelope, recipient, everything());
  EXPECT_EQ(out, "MAIL FROM:<a@example.com> SIZE=7\r\nRCPT TO:<b@example.org>\r\n");
  out.clear();
  envelope.ret = mail::Ret::full;
  recipient.notify = mail::Notify::failure;
  append_mail(out, envelope, content_of("hello\r\n"), everything());
  append_rcpt(out, envelope, recipient, everything());
  EXPECT_EQ(out, "MAIL FROM:<a@example.com> SIZE=7 RET=FULL\r\nRCPT TO:<b@example.org> NOTIFY=FAILURE\r\n");
}

// RFC 6533 3: an original recipient in UTF-8 goes only where SMTPUTF8 goes.
TEST(ClientProtocol, AnOriginalRecipientInUtf8NeedsSmtputf8) {
  mail::Envelope envelope;
  mail::Recipient recipient{"b@example.org", "example.org", "utf-8;\xc3\xbc@d", 0};
  std::string out;
  append_rcpt(out, envelope, recipient, everything());
  EXPECT_EQ(out, "RCPT TO:<b@example.org>\r\n");
  envelope.smtputf8 = true;
  out.clear();
  append_rcpt(out, envelope, recipient, everything());
  EXPECT_EQ(out, "RCPT TO:<b@example.org> ORCPT=utf-8;\xc3\xbc@d\r\n");
}

}  // namespace
}  // namespace millrace::smtp
