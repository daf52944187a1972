#include "dsn/classify.h"

#include <gtest/gtest.h>

#include <string>

#include "base/prng.h"

namespace millrace::dsn {
namespace {

// A reply as it stands on the wire after its code: "4.7.0 words".
ReplyContext reply(Stage stage, uint16_t code, std::string_view text) {
  ReplyContext context;
  context.stage = stage;
  context.code = code;
  context.text = text;
  if (auto status = mail::EnhancedStatus::parse_prefix(text)) context.status = *status;
  return context;
}

struct Case {
  Stage stage;
  uint16_t code;
  const char* text;
  Action action;
  Scope scope;
  const char* category;
  Throttle throttle = Throttle::none;
  int64_t rest_ms = 0;
};

constexpr int64_t kHour = 3'600'000;

void check(const Case& c) {
  Verdict v = classify(reply(c.stage, c.code, c.text));
  std::string name = std::string(to_string(c.stage)) + " " + std::to_string(c.code) + " " + c.text;
  EXPECT_EQ(to_string(v.action), to_string(c.action)) << name;
  EXPECT_EQ(to_string(v.scope), to_string(c.scope)) << name;
  EXPECT_EQ(to_string(v.category), c.category) << name;
  EXPECT_EQ(to_string(v.throttle), to_string(c.throttle)) << name;
  EXPECT_EQ(v.rest_ms, c.rest_ms) << name;
  if (c.code >= 400) {
    EXPECT_EQ(v.status.status_class, c.code / 100) << name;
  }
}

TEST(Positive, EachStageWaitsForItsOwnCode) {
  EXPECT_EQ(classify(reply(Stage::end_of_data, 250, "2.0.0 Ok")).action, Action::delivered);
  EXPECT_EQ(classify(reply(Stage::end_of_data, 250, "ok")).status, (mail::EnhancedStatus{2, 0, 0}));
  EXPECT_EQ(classify(reply(Stage::mail, 250, "2.1.0 Ok")).action, Action::proceed);
  EXPECT_EQ(classify(reply(Stage::rcpt, 251, "2.1.5 will forward")).action, Action::proceed);
  EXPECT_EQ(classify(reply(Stage::data, 354, "go ahead")).action, Action::proceed);
  EXPECT_EQ(classify(reply(Stage::auth, 334, "")).action, Action::proceed);
}

// Checklist row 29.
TEST(Positive, OfTheWrongKindMeansThatStepIsLost) {
  for (auto [stage, code] :
       {std::pair{Stage::data, 250}, {Stage::mail, 354}, {Stage::end_of_data, 354}}) {
    Verdict v = classify(reply(stage, static_cast<uint16_t>(code), "Ok"));
    EXPECT_EQ(v.action, Action::hold);
    EXPECT_TRUE(v.close);
  }
}

TEST(Scope, OneRecipient) {
  check({Stage::rcpt, 450,
         "4.2.1 The user you are trying to contact is receiving mail too quickly. Please resend "
         "later. "
         "https://support.google.com/mail/?p=ReceivingRate a1 - gsmtp",
         Action::defer, Scope::recipient, "quota-issues"});
  check({Stage::rcpt, 550,
         "5.1.1 <spam.blocklist@example.net>: Recipient address rejected: User unknown",
         Action::bounce, Scope::recipient, "bad-mailbox"});
  check({Stage::rcpt, 550, "<virus@example.net>: no such user here", Action::bounce,
         Scope::recipient, "bad-mailbox"});
  check({Stage::rcpt, 552, "5.2.2 Mailbox full", Action::bounce, Scope::recipient, "quota-issues"});
  check({Stage::rcpt, 452, "4.2.2 The email account that you tried to reach is over quota",
         Action::defer, Scope::recipient, "quota-issues"});
  check({Stage::rcpt, 550, "5.2.1 The email account that you tried to reach is disabled",
         Action::bounce, Scope::recipient, "inactive-mailbox"});
  check({Stage::end_of_data, 554, "delivery error: dd This user doesn't have a yahoo.com account",
         Action::bounce, Scope::message, "bad-mailbox"});
  check({Stage::rcpt, 550, "5.4.1 Recipient address rejected: Access denied. AS(201806281)",
         Action::bounce, Scope::recipient, "bad-mailbox"});
  check({Stage::rcpt, 550, "Requested action not taken: mailbox unavailable", Action::bounce,
         Scope::recipient, "bad-mailbox"});
  check({Stage::rcpt, 550, "no", Action::bounce, Scope::recipient, "bad-mailbox"});
  check({Stage::rcpt, 450, "not now", Action::defer, Scope::recipient, "other"});
  check({Stage::rcpt, 554, "5.7.1 <a@example.net>: Relay access denied", Action::bounce,
         Scope::recipient, "relaying-issues"});
  check({Stage::rcpt, 556, "5.1.10 Domain does not accept mail (nullMX)", Action::bounce,
         Scope::recipient, "bad-domain"});
  check({Stage::rcpt, 550, "5.7.1 You have been blocked by the recipient", Action::bounce,
         Scope::recipient, "policy-related"});
}

TEST(Scope, GreylistingIsOneRecipientAndItsTimeIsKept) {
  Verdict v = classify(reply(Stage::rcpt, 450,
                             "4.2.0 <a@example.net>: Recipient address rejected: Greylisted, see "
                             "http://postgrey.example/help; try again in 300 seconds"));
  EXPECT_EQ(v.action, Action::defer);
  EXPECT_EQ(v.scope, Scope::recipient);
  EXPECT_EQ(v.retry_after_ms, 300'000);
  EXPECT_EQ(v.rest_ms, 0) << "nobody else rests for it";
  v = classify(
      reply(Stage::rcpt, 451, "4.7.1 Greylisting in action, please come back in 5 minutes"));
  EXPECT_EQ(v.scope, Scope::recipient);
  EXPECT_EQ(v.retry_after_ms, 300'000);
}

TEST(Scope, OneTransaction) {
  check({Stage::rcpt, 452, "4.5.3 Too many recipients", Action::defer, Scope::transaction,
         "protocol-errors"});
  check({Stage::data, 451, "4.3.0 Multiple destination domains per transaction is unsupported",
         Action::defer, Scope::transaction, "protocol-errors"});
  ReplyContext context = reply(Stage::rcpt, 452, "4.5.3 Too many recipients");
  context.recipient_accepted = true;
  EXPECT_EQ(classify(context).action, Action::enough);
  EXPECT_EQ(classify(context).scope, Scope::transaction);
}

TEST(EnoughRecipients, OnlyBareCodesAndOnlyAfterAnAcceptance) {
  for (uint16_t code : {452, 552}) {
    ReplyContext context = reply(Stage::rcpt, code, "Too many recipients");
    context.recipient_accepted = true;
    EXPECT_EQ(classify(context).action, Action::enough) << code;
    context.recipient_accepted = false;
    EXPECT_NE(classify(context).action, Action::enough) << code;
  }
  ReplyContext full = reply(Stage::rcpt, 552, "5.2.2 Over quota");
  full.recipient_accepted = true;
  EXPECT_EQ(classify(full).action, Action::bounce);
  EXPECT_EQ(classify(full).scope, Scope::recipient);
  ReplyContext words = reply(Stage::rcpt, 552, "mailbox full");
  words.recipient_accepted = true;
  EXPECT_EQ(classify(words).action, Action::bounce);
  ReplyContext later = reply(Stage::end_of_data, 552, "too much");
  later.recipient_accepted = true;
  EXPECT_EQ(classify(later).action, Action::bounce);
}

TEST(Scope, OneSenderDomain) {
  check({Stage::end_of_data, 421,
         "4.7.28 Our system has detected an unusual rate of unsolicited mail\n4.7.28 originating "
         "from your SPF "
         "domain [example.com      35]. - gsmtp",
         Action::defer, Scope::sender_domain, "policy-related"});
  check({Stage::end_of_data, 421,
         "4.7.28 Gmail has detected an unusual rate of unsolicited mail containing one of your URL "
         "domains",
         Action::defer, Scope::sender_domain, "policy-related"});
  check({Stage::end_of_data, 550,
         "5.7.26 Your email has been blocked because the sender is unauthenticated. Gmail requires "
         "all senders to "
         "authenticate with either SPF or DKIM.",
         Action::bounce, Scope::sender_domain, "policy-related"});
  check({Stage::end_of_data, 421,
         "4.7.30 This mail has been rate limited because DKIM does not pass. - gsmtp",
         Action::defer, Scope::sender_domain, "policy-related"});
  check({Stage::end_of_data, 421, "4.7.32 no alignment - gsmtp", Action::defer,
         Scope::sender_domain, "policy-related"});
  check({Stage::end_of_data, 550,
         "5.7.515 Access denied, sending domain example.com does not meet the required "
         "authentication level",
         Action::bounce, Scope::sender_domain, "policy-related"});
  check({Stage::end_of_data, 550,
         "5.7.1 Unauthenticated email from example.com is not accepted due to domain's "
         "DMARC policy",
         Action::bounce, Scope::sender_domain, "policy-related"});
  check({Stage::mail, 554, "5.7.1 Sender address blacklisted", Action::bounce, Scope::sender_domain,
         "spam-related"});
}

TEST(Scope, OurSourceAtAProvider) {
  check({Stage::end_of_data, 421,
         "4.7.28 Our system has detected an unusual rate of unsolicited mail\n4.7.28 originating "
         "from your IP "
         "address. To protect our users from spam, mail sent\n4.7.28 from your IP address has been "
         "temporarily "
         "rate limited.",
         Action::hold, Scope::source, "policy-related", Throttle::volume});
  check({Stage::mail, 421,
         "4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or "
         "user complaints - 4.16.55.1; see https://postmaster.yahooinc.com/error-codes",
         Action::hold, Scope::source, "policy-related", Throttle::reputation, 4 * kHour});
  check({Stage::greeting, 421,
         "4.7.1 [TS03] All messages from 192.0.2.1 will be permanently deferred", Action::hold,
         Scope::source, "policy-related", Throttle::reputation, 4 * kHour});
  check({Stage::rcpt, 451, "4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77719)",
         Action::hold, Scope::source, "policy-related", Throttle::volume});
  check({Stage::mail, 451,
         "4.7.652 The mail server [192.0.2.1] has exceeded the maximum number of connections. "
         "(S3115)",
         Action::hold, Scope::source, "policy-related", Throttle::concurrency});
  check({Stage::greeting, 421,
         "RP-001 (BAY) Unfortunately, some messages from 192.0.2.1 weren't sent. Please try "
         "again. We have limits for how many messages can be sent per hour",
         Action::hold, Scope::source, "policy-related", Throttle::reputation});
  check({Stage::mail, 421, "4.1.0 192.0.2.1 Throttled - try again later. Please see RL000001",
         Action::hold, Scope::source, "policy-related", Throttle::volume});
  check({Stage::greeting, 421,
         "mwinf5c04 ME Trop de connexions, veuillez verifier votre configuration. Too many "
         "connections, slow down. OFR004_104 [104]",
         Action::hold, Scope::source, "policy-related", Throttle::concurrency});
  check({Stage::mail, 421, "4.7.1 Message temporarily rejected", Action::hold, Scope::source,
         "policy-related", Throttle::volume});
  check({Stage::mail, 450,
         "Too many concurrent SMTP connections from your host; try again in 10 minutes",
         Action::hold, Scope::source, "policy-related", Throttle::concurrency, 600'000});
  check({Stage::rcpt, 421, "closing", Action::hold, Scope::source, "other"});
}

// A 5xx that is about our source must not bounce mail.
TEST(Scope, BlocksOfOurSourceDeferAndSuspend) {
  check({Stage::mail, 550,
         "5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your "
         "Internet service "
         "provider since part of their network is on our block list (S3140).",
         Action::defer, Scope::source, "spam-related", Throttle::reputation});
  check({Stage::mail, 550, "5.7.1 ... is on our block list (S3150)", Action::defer, Scope::source,
         "spam-related", Throttle::reputation});
  check({Stage::rcpt, 550, "5.7.606 Access denied, banned sending IP [192.0.2.1]", Action::defer,
         Scope::source, "spam-related", Throttle::reputation});
  check({Stage::rcpt, 550, "5.7.649 Access denied", Action::defer, Scope::source, "spam-related",
         Throttle::reputation});
  check({Stage::rcpt, 550, "5.7.605 Access denied", Action::bounce, Scope::message,
         "policy-related"});
  check({Stage::rcpt, 554,
         "5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org",
         Action::defer, Scope::source, "spam-related", Throttle::reputation});
  check({Stage::greeting, 554, "Your IP address is on the blacklist", Action::hold, Scope::source,
         "spam-related", Throttle::reputation});
  check({Stage::end_of_data, 550,
         "5.7.25 The IP address sending this message does not have a PTR record", Action::defer,
         Scope::source, "bad-configuration"});
  check({Stage::rcpt, 450,
         "4.7.1 Client host rejected: cannot find your reverse hostname, [192.0.2.1]", Action::hold,
         Scope::source, "bad-configuration"});
}

TEST(Scope, TheMessage) {
  check({Stage::end_of_data, 554, "5.7.1 Message rejected as spam", Action::bounce, Scope::message,
         "spam-related"});
  check({Stage::end_of_data, 554, "5.7.1 Blocked: URL listed on dbl.spamhaus.org", Action::bounce,
         Scope::message, "spam-related"});
  check({Stage::end_of_data, 552, "5.3.4 Message size exceeds fixed limit", Action::bounce,
         Scope::message, "content-related"});
  check({Stage::end_of_data, 552,
         "5.7.0 This message was blocked because its content presents a potential security "
         "issue: virus found",
         Action::bounce, Scope::message, "virus-related"});
  check({Stage::end_of_data, 550, "5.7.1 [CS01] Message rejected due to local policy.",
         Action::bounce, Scope::message, "spam-related"});
  check({Stage::mail, 553, "5.1.8 Domain of sender address does not exist", Action::bounce,
         Scope::message, "invalid-sender"});
  check({Stage::mail, 550, "Sender rejected", Action::bounce, Scope::message, "invalid-sender"});
  check({Stage::end_of_data, 451, "4.3.0 Temporary local problem", Action::defer, Scope::message,
         "other"});
  check({Stage::end_of_data, 554, "5.4.6 Too many hops", Action::bounce, Scope::message,
         "routing-errors"});
  check({Stage::data, 503, "5.5.1 Need MAIL", Action::bounce, Scope::message, "protocol-errors"});
}

TEST(Scope, TheDestination) {
  check({Stage::mail, 452, "4.3.1 Insufficient system storage", Action::hold, Scope::destination,
         "other"});
  check({Stage::end_of_data, 452, "4.3.1 Insufficient system storage", Action::defer,
         Scope::message, "other"});
}

TEST(Opening, A5xxBeforeMailNeverBounces) {
  for (Stage stage : {Stage::greeting, Stage::ehlo, Stage::starttls, Stage::auth}) {
    for (uint16_t code : {500, 502, 504, 521, 530, 535, 550, 554}) {
      for (const char* text :
           {"no", "5.7.1 spam", "5.1.1 user unknown", "5.7.1 blocked using a blocklist"}) {
        EXPECT_EQ(classify(reply(stage, code, text)).action, Action::hold)
            << to_string(stage) << code << text;
      }
    }
  }
}

TEST(Opening, AFlagRestoresBouncingOnA5xxGreeting) {
  ReplyContext context = reply(Stage::greeting, 554, "No SMTP service here");
  context.bounce_on_5xx_greeting = true;
  EXPECT_EQ(classify(context).action, Action::bounce);
  context.code = 421;
  EXPECT_EQ(classify(context).action, Action::hold);
  context.code = 554;
  context.text = "Your IP is on our blocklist";
  EXPECT_EQ(classify(context).action, Action::hold) << "that is about our source";
}

TEST(Opening, EhloFallsBackToHelo) {
  EXPECT_TRUE(classify(reply(Stage::ehlo, 500, "unrecognized")).try_helo);
  EXPECT_TRUE(classify(reply(Stage::ehlo, 502, "5.5.1 not implemented")).try_helo);
  EXPECT_FALSE(classify(reply(Stage::ehlo, 550, "go away")).try_helo);
  EXPECT_TRUE(classify(reply(Stage::ehlo, 550, "go away")).next_host);
}

TEST(Opening, AnotherAddressIsTriedUnlessTheReplyIsAboutLoad) {
  EXPECT_TRUE(classify(reply(Stage::greeting, 554, "No SMTP service here")).next_host);
  EXPECT_TRUE(classify(reply(Stage::greeting, 450, "try later")).next_host);
  EXPECT_FALSE(classify(reply(Stage::greeting, 421, "closing")).next_host);
  EXPECT_FALSE(classify(reply(Stage::greeting, 450, "too many connections")).next_host);
  EXPECT_FALSE(classify(reply(Stage::greeting, 554, "your IP is on the spamhaus list")).next_host);
}

TEST(Status, IsJudgedWhereThePeerGaveNoneOrAWrongClass) {
  EXPECT_EQ(classify(reply(Stage::rcpt, 550, "no such user")).status,
            (mail::EnhancedStatus{5, 1, 1}));
  EXPECT_EQ(classify(reply(Stage::rcpt, 552, "mailbox full")).status,
            (mail::EnhancedStatus{5, 2, 2}));
  EXPECT_EQ(classify(reply(Stage::rcpt, 450, "5.1.1 confused")).status.status_class, 4);
  EXPECT_EQ(classify(reply(Stage::end_of_data, 552, "message too large")).status,
            (mail::EnhancedStatus{5, 3, 4}));
}

TEST(NamedTimes, AreReadAndBounded) {
  auto rest = [](const char* text) { return classify(reply(Stage::mail, 421, text)).rest_ms; };
  EXPECT_EQ(rest("Too many connections, retry after 30 minutes"), 30 * 60'000);
  EXPECT_EQ(rest("Too many connections, please wait 2 hours."), 2 * kHour);
  EXPECT_EQ(rest("Too many connections, try again in 90s."), 90'000);
  EXPECT_EQ(rest("Too many connections, try again in 9999999 hours"), 24 * kHour);
  EXPECT_EQ(rest("Too many connections, try again in a while"), 0);
  EXPECT_EQ(rest("Too many connections, try again in 5 bananas"), 0);
}

TEST(Classify, AnyBytesAndAnyCodeGiveAVerdict) {
  Prng prng(3);
  constexpr const char* kParts[] = {"spam",
                                    " ",
                                    "\n",
                                    "@",
                                    "4.7.28",
                                    "5.7.606 ",
                                    "try again in ",
                                    "99",
                                    "\0x",
                                    "rate",
                                    "blocked using",
                                    "<",
                                    "\xff",
                                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
  for (int i = 0; i < 20'000; ++i) {
    std::string text;
    for (uint64_t n = prng.below(60); n > 0; --n) text += kParts[prng.below(std::size(kParts))];
    ReplyContext context = reply(static_cast<Stage>(prng.below(13)),
                                 static_cast<uint16_t>(200 + prng.below(400)), text);
    context.recipient_accepted = prng.below(2);
    Verdict v = classify(context);
    if (context.code >= 400) {
      EXPECT_NE(v.action, Action::delivered);
      EXPECT_NE(v.action, Action::proceed);
      EXPECT_EQ(v.status.status_class, context.code / 100);
      EXPECT_NE(v.category, Category::none);
    }
    EXPECT_TRUE(context.code >= 500 || v.action != Action::bounce) << context.code << text;
  }
  // All blanks, all addresses, exactly the length that is read.
  for (const char* unit : {" ", "\n", "a@b ", "x", "\n@\n"}) {
    std::string text;
    while (text.size() < 5000) text += unit;
    classify(reply(Stage::rcpt, 550, text));
  }
}

TEST(Categories, AreTheSeventeenOfPowerMta) {
  size_t named = 0;
  for (int i = 1; i <= static_cast<int>(Category::virus_related); ++i)
    named += !to_string(static_cast<Category>(i)).empty();
  EXPECT_EQ(named, 17u);
  EXPECT_EQ(to_string(category_of_silence(Stage::connect)), "no-answer-from-host");
}

}  // namespace
}  // namespace millrace::dsn
