// The client's state machine by transcripts: what the peer says, what goes out in one group, and
// what becomes of each recipient.
#include "delivery/session.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "session_rig.h"

namespace millrace::delivery {
namespace {

using namespace testing;
using events::Stage;

constexpr int64_t kSecond = 1'000'000'000;

constexpr std::string_view kPipelining = "250-mx.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n";
constexpr std::string_view kChunking =
    "250-mx.example\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 SIZE 100000\r\n";
constexpr std::string_view kPlain = "250 mx.example\r\n";

constexpr std::string_view kEnvelope =
    "MAIL FROM:<sender@client.example>\r\nRCPT TO:<a@dest.example>\r\nDATA\r\n";
constexpr std::string_view kAccepted = "250 ok\r\n250 ok\r\n354 go\r\n";

// ---- steady state

TEST_F(SessionTest, PipelinedMessageTakesOneGroupForItsEnvelopeAndOneForItsContent) {
  add("one\r\n");
  open(kPipelining);
  EXPECT_EQ(greeted_, kEnvelope);
  EXPECT_EQ(peer(kAccepted), "one\r\n.\r\n");
  EXPECT_EQ(peer("250 2.0.0 queued as 7\r\n"), "");
  EXPECT_EQ(taken_log(), "[delivered]");
  EXPECT_EQ(finished_[0]->results[0].reply, "250 2.0.0 queued as 7");
  EXPECT_EQ(finished_[0]->results[0].enhanced, "2.0.0");
  EXPECT_EQ(finished_[0]->results[0].stage, Stage::end_of_data);
  EXPECT_TRUE(session_->idle());
}

TEST_F(SessionTest, ContentAndTheNextEnvelopeLeaveInOneSend) {
  add("one\r\n");
  add("two\r\n");
  add("three\r\n");
  open(kPipelining);
  EXPECT_EQ(greeted_, kEnvelope);
  EXPECT_EQ(peer(kAccepted), fmt::format("one\r\n.\r\n{}", kEnvelope));
  EXPECT_EQ(taken_log(), "");
  EXPECT_EQ(peer(fmt::format("250 done\r\n{}", kAccepted)),
            fmt::format("two\r\n.\r\n{}", kEnvelope));
  EXPECT_EQ(taken_log(), "[delivered]");
  EXPECT_EQ(peer(fmt::format("250 done\r\n{}", kAccepted)), "three\r\n.\r\n");
  peer("250 done\r\n");
  EXPECT_EQ(taken_log(), "[delivered][delivered]");
  EXPECT_EQ(sends_, 5);  // EHLO and four groups
  EXPECT_EQ(finished_[2]->session_message, 3u);
}

TEST_F(SessionTest, ChunkLeavesWithItsEnvelopeWhenNothingIsUncertain) {
  add("one\r\n");
  open(kChunking);
  EXPECT_EQ(greeted_,
            "MAIL FROM:<sender@client.example> SIZE=5\r\nRCPT TO:<a@dest.example>\r\n"
            "BDAT 5 LAST\r\none\r\n");
  peer("250 ok\r\n250 ok\r\n250 done\r\n");
  EXPECT_EQ(taken_log(), "[delivered]");
}

TEST_F(SessionTest, NextChunkWaitsForTheReplyToTheLastButItsEnvelopeDoesNot) {
  for (const char* body : {"one\r\n", "two\r\n", "six\r\n"}) add(body);
  open(kChunking);
  const std::string envelope =
      "MAIL FROM:<sender@client.example> SIZE=5\r\nRCPT TO:<a@dest.example>\r\n";
  EXPECT_EQ(greeted_, envelope + "BDAT 5 LAST\r\none\r\n" + envelope);
  EXPECT_EQ(peer("250 ok\r\n250 ok\r\n"), "");
  EXPECT_EQ(peer("250 done\r\n250 ok\r\n250 ok\r\n"), "BDAT 5 LAST\r\ntwo\r\n" + envelope);
  EXPECT_EQ(peer("250 done\r\n250 ok\r\n250 ok\r\n"), "BDAT 5 LAST\r\nsix\r\n");
  EXPECT_EQ(taken_log(), "[delivered][delivered]");
  EXPECT_EQ(sends_, 4);
}

TEST_F(SessionTest, MoreUncertainMessagesLeaveAtOnceWhenAllowed) {
  for (const char* body : {"one\r\n", "two\r\n", "six\r\n"}) add(body);
  SessionOptions options = default_options();
  options.uncertain = 2;
  open(kChunking, options);
  const std::string envelope =
      "MAIL FROM:<sender@client.example> SIZE=5\r\nRCPT TO:<a@dest.example>\r\n";
  EXPECT_EQ(greeted_,
            envelope + "BDAT 5 LAST\r\none\r\n" + envelope + "BDAT 5 LAST\r\ntwo\r\n" + envelope);
  EXPECT_EQ(peer("250 ok\r\n250 ok\r\n250 done\r\n250 ok\r\n250 ok\r\n"), "");
  EXPECT_EQ(peer("250 done\r\n250 ok\r\n250 ok\r\n"), "BDAT 5 LAST\r\nsix\r\n");
}

TEST_F(SessionTest, LockstepSendsOneCommandAtATime) {
  add("one\r\n");
  add("two\r\n");
  open(kPlain);
  EXPECT_EQ(greeted_, "MAIL FROM:<sender@client.example>\r\n");
  EXPECT_EQ(peer("250 ok\r\n"), "RCPT TO:<a@dest.example>\r\n");
  EXPECT_EQ(peer("250 ok\r\n"), "DATA\r\n");
  EXPECT_EQ(peer("354 go\r\n"), "one\r\n.\r\n");
  EXPECT_EQ(peer("250 done\r\n"), "MAIL FROM:<sender@client.example>\r\n");
  EXPECT_EQ(taken_log(), "[delivered]");
}

TEST_F(SessionTest, PipeliningAndChunkingCanBeTurnedOff) {
  add("one\r\n");
  SessionOptions options = default_options();
  options.pipelining = options.chunking = false;
  open(kChunking, options);
  EXPECT_EQ(greeted_, "MAIL FROM:<sender@client.example> SIZE=5\r\n");
  peer("250 ok\r\n");
  EXPECT_EQ(peer("250 ok\r\n"), "DATA\r\n");
}

TEST_F(SessionTest, DotsAreStuffedForDataAndNotForChunks) {
  add(".one\r\n..\r\n");
  open(kPipelining);
  EXPECT_EQ(peer(kAccepted), "..one\r\n...\r\n.\r\n");
}

TEST_F(SessionTest, RepliesMayComeByteByByte) {
  add("one\r\n");
  add("two\r\n");
  open(kPipelining);
  std::string out;
  for (char c : std::string("250-a\r\n250 ok\r\n250 ok\r\n354 go\r\n")) out += peer({&c, 1});
  EXPECT_EQ(out, fmt::format("one\r\n.\r\n{}", kEnvelope));
  for (char c : std::string("250 done\r\n250 ok\r\n250 ok\r\n354 go\r\n")) out += peer({&c, 1});
  for (char c : std::string("250 done\r\n")) out += peer({&c, 1});
  EXPECT_EQ(taken_log(), "[delivered][delivered]");
}

// ---- recipients

TEST_F(SessionTest, EachRecipientHasItsOwnResult) {
  add("one\r\n", {"a@d.example", "b@d.example", "c@d.example"});
  open(kPipelining);
  EXPECT_EQ(peer("250 ok\r\n250 ok\r\n550 5.1.1 who?\r\n450 4.2.1 later\r\n354 go\r\n"),
            "one\r\n.\r\n");
  peer("250 done\r\n");
  EXPECT_EQ(taken_log(), "[delivered, bounce, defer]");
  EXPECT_EQ(finished_[0]->results[1].code, 550);
  EXPECT_EQ(finished_[0]->results[1].reply, "550 5.1.1 who?");
  EXPECT_EQ(finished_[0]->results[1].stage, Stage::rcpt);
}

TEST_F(SessionTest, RefusalAfterTheDotIsEveryAcceptedRecipients) {
  add("one\r\n", {"a@d.example", "b@d.example", "c@d.example"});
  open(kPipelining);
  peer("250 ok\r\n250 ok\r\n550 5.1.1 who?\r\n250 ok\r\n354 go\r\n");
  peer("451 4.3.0 later\r\n");
  EXPECT_EQ(taken_log(), "[defer, bounce, defer]");
  EXPECT_TRUE(session_->idle());
}

TEST_F(SessionTest, LoneDotFollowsA354ThatNobodyIsLeftFor) {
  add("one\r\n");
  add("two\r\n");
  open(kPipelining);
  EXPECT_EQ(peer("250 ok\r\n550 5.1.1 who?\r\n354 go\r\n"), fmt::format(".\r\n{}", kEnvelope));
  EXPECT_EQ(taken_log(), "");
  EXPECT_EQ(peer(fmt::format("554 5.5.1 no valid recipients\r\n{}", kAccepted)), "two\r\n.\r\n");
  EXPECT_EQ(taken_log(), "[bounce]");
  peer("250 done\r\n");
  EXPECT_EQ(taken_log(), "[delivered]");
}

TEST_F(SessionTest, ResetFollowsADataThatWasRefusedForWantOfRecipients) {
  add("one\r\n");
  add("two\r\n");
  open(kPipelining);
  EXPECT_EQ(peer("250 ok\r\n550 5.1.1 who?\r\n554 5.5.1 no valid recipients\r\n"),
            fmt::format("RSET\r\n{}", kEnvelope));
  EXPECT_EQ(taken_log(), "[bounce]");
  EXPECT_EQ(peer(fmt::format("250 reset\r\n{}", kAccepted)), "two\r\n.\r\n");
}

// A rate counts it from when it is taken.
TEST_F(SessionTest, WithoutPipeliningTheNextIsTakenOnceTheResetIsAnswered) {
  add("one\r\n");
  add("two\r\n");
  open(kPlain);
  peer("250 ok\r\n");
  EXPECT_EQ(peer("550 5.1.1 who?\r\n"), "RSET\r\n");
  EXPECT_EQ(queue_.size(), 1u);
  EXPECT_EQ(peer("250 reset\r\n").substr(0, 10), "MAIL FROM:");
  EXPECT_TRUE(queue_.empty());
}

TEST_F(SessionTest, RefusedMailIsEveryRecipientsAndNeedsNoReset) {
  add("one\r\n", {"a@d.example", "b@d.example"});
  add("two\r\n");
  open(kPipelining);
  EXPECT_EQ(peer("451 4.1.8 sender unknown\r\n503 5.5.1 MAIL first\r\n503 5.5.1 MAIL first\r\n503 "
                 "5.5.1 MAIL "
                 "first\r\n"),
            kEnvelope);
  EXPECT_EQ(taken_log(), "[defer, defer]");
  EXPECT_EQ(finished_[0]->results[1].reply, "451 4.1.8 sender unknown");
  EXPECT_EQ(finished_[0]->results[1].stage, Stage::mail);
}

TEST_F(SessionTest, RefusedDataIsEveryAcceptedRecipients) {
  add("one\r\n", {"a@d.example", "b@d.example"});
  open(kPipelining);
  peer("250 ok\r\n250 ok\r\n550 5.1.1 who?\r\n451 4.3.0 no\r\n");
  EXPECT_EQ(taken_log(), "[defer, bounce]");
  EXPECT_EQ(finished_[0]->results[0].stage, Stage::data);
}

TEST_F(SessionTest, EnoughGivesTheRestBackAndRemembersTheNumber) {
  for (const char* enough : {"452 4.5.3 too many\r\n", "452 too many\r\n", "552 too many\r\n"}) {
    SCOPED_TRACE(enough);
    finished_.clear();
    session_.reset();
    ready_ = over_ = false;
    add("one\r\n", {"a@d.example", "b@d.example", "c@d.example"});
    open(kPipelining);
    peer(fmt::format("250 ok\r\n250 ok\r\n{}{}354 go\r\n", enough, enough));
    peer("250 done\r\n");
    EXPECT_EQ(taken_log(), "[delivered, give back, give back]");
    EXPECT_EQ(finished_[0]->recipients_learned, 1u);
    session_->retire(now_);
    finish_sends();
    settle();
    sent_.clear();
  }
}

TEST_F(SessionTest, FullMailboxIsNotEnough) {
  add("one\r\n", {"a@d.example", "b@d.example"});
  open(kPipelining);
  peer("250 ok\r\n250 ok\r\n552 5.2.2 mailbox full\r\n354 go\r\n");
  peer("250 done\r\n");
  EXPECT_EQ(taken_log(), "[delivered, bounce]");
}

TEST_F(SessionTest, EnoughBeforeAnyoneIsAcceptedDefers) {
  add("one\r\n");
  open(kPipelining);
  peer("250 ok\r\n452 4.5.3 too many\r\n554 5.5.1 no valid recipients\r\n");
  EXPECT_EQ(taken_log(), "[defer]");
}

TEST_F(SessionTest, AnnouncedRecipientLimitIsObeyed) {
  add("one\r\n", {"a@d.example", "b@d.example", "c@d.example"});
  open("250-mx\r\n250-PIPELINING\r\n250 LIMITS RCPTMAX=2\r\n");
  EXPECT_EQ(
      greeted_,
      "MAIL FROM:<sender@client.example>\r\nRCPT TO:<a@d.example>\r\nRCPT TO:<b@d.example>\r\n"
      "DATA\r\n");
  peer("250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n");
  peer("250 done\r\n");
  EXPECT_EQ(taken_log(), "[delivered, delivered, give back]");
  EXPECT_EQ(finished_[0]->recipients_learned, 2u);
}

TEST_F(SessionTest, AnnouncedMailLimitIsObeyed) {
  add("one\r\n");
  add("two\r\n");
  open("250-mx\r\n250-PIPELINING\r\n250 LIMITS MAILMAX=1\r\n");
  EXPECT_EQ(peer(kAccepted), "one\r\n.\r\n");
  EXPECT_EQ(peer("250 done\r\n"), "QUIT\r\n");
  EXPECT_EQ(session_->ending(), Ending::done);
}

TEST_F(SessionTest, MessageLimitEndsInQuitWhoseReplyNobodyAwaits) {
  add("one\r\n");
  add("two\r\n");
  SessionOptions options = default_options();
  options.messages_most = 1;
  open(kPipelining, options);
  EXPECT_EQ(peer(kAccepted), "one\r\n.\r\n");
  EXPECT_EQ(peer("250 done\r\n"), "QUIT\r\n");
  EXPECT_TRUE(over_);
  EXPECT_EQ(queue_.size(), 1u);
}

// ---- chunks refused

TEST_F(SessionTest, ChunkAfterAllRecipientsWereRefusedIsAnsweredOnce) {
  add("one\r\n");
  open(kChunking);
  EXPECT_EQ(peer("250 ok\r\n550 5.1.1 who?\r\n"), "");
  add("two\r\n");
  EXPECT_EQ(peer("554 5.5.1 no valid recipients\r\n"), "");
  EXPECT_EQ(taken_log(), "[bounce]");
  EXPECT_EQ(wake(),
            "RSET\r\nMAIL FROM:<sender@client.example> SIZE=5\r\nRCPT TO:<a@dest.example>\r\n"
            "BDAT 5 LAST\r\ntwo\r\n");
}

TEST_F(SessionTest, EnvelopeBehindAFailedChunkIsSentAgainAfterAReset) {
  add("one\r\n");
  add("two\r\n");
  open(kChunking);
  peer("250 ok\r\n250 ok\r\n");
  const std::string again = peer("554 5.6.0 no\r\n503 5.5.1 nested MAIL\r\n503 5.5.1 no\r\n");
  EXPECT_EQ(taken_log(), "[bounce]");
  EXPECT_EQ(again,
            "RSET\r\nMAIL FROM:<sender@client.example> SIZE=5\r\nRCPT TO:<a@dest.example>\r\n"
            "BDAT 5 LAST\r\ntwo\r\n");
  peer("250 ok\r\n250 ok\r\n250 ok\r\n250 done\r\n");
  EXPECT_EQ(taken_log(), "[delivered]");
}

TEST_F(SessionTest, EnvelopeBehindAFailedChunkIsKeptWhereItWasTaken) {
  add("one\r\n");
  add("two\r\n");
  open(kChunking);
  EXPECT_EQ(peer("250 ok\r\n250 ok\r\n554 5.6.0 no\r\n250 ok\r\n250 ok\r\n"),
            "BDAT 5 LAST\r\ntwo\r\n");
}

TEST_F(SessionTest, ContentIsNotSentToRecipientsKnownToBeRefused) {
  add("one\r\n");
  add("two\r\n");
  open(kChunking);
  peer("250 ok\r\n250 ok\r\n");
  EXPECT_EQ(peer("250 done\r\n250 ok\r\n550 5.1.1 who?\r\n"), "");
  EXPECT_EQ(taken_log(), "[delivered][bounce]");
  add("six\r\n");
  EXPECT_EQ(wake().substr(0, 6), "RSET\r\n");
}

// ---- what a receiver cannot take

TEST_F(SessionTest, MessageOverTheAnnouncedSizeBouncesUnsent) {
  add(std::string(99'998, 'x') + "\r\n" + "y\r\n");
  add("two\r\n");
  open(kChunking);
  EXPECT_EQ(taken_log(), "[bounce]");
  EXPECT_EQ(finished_[0]->results[0].enhanced, "5.3.4");
  EXPECT_EQ(finished_[0]->results[0].code, 0);
  EXPECT_NE(greeted_.find("two\r\n"), std::string::npos);
  EXPECT_EQ(greeted_.find("xxx"), std::string::npos);
}

// RFC 3461 5.2.2: then it is for the receiver to say that the message went further.
TEST_F(SessionTest, AReceiverThatTakesNotifyReportsSuccessesItself) {
  add("one\r\n").message->envelope.recipients[0].notify = mail::Notify::success;
  open("250-mx.example\r\n250-PIPELINING\r\n250 DSN\r\n");
  EXPECT_NE(greeted_.find("NOTIFY=SUCCESS"), std::string::npos) << greeted_;
  peer("250 ok\r\n250 ok\r\n354 go\r\n");
  peer("250 done\r\n");
  ASSERT_EQ(finished_.size(), 1u);
  EXPECT_TRUE(finished_[0]->receiver_reports);
}

TEST_F(SessionTest, AReceiverWithoutDsnReportsNothing) {
  add("one\r\n").message->envelope.recipients[0].notify = mail::Notify::success;
  open(kPipelining);
  EXPECT_EQ(greeted_, kEnvelope);
  peer(kAccepted);
  peer("250 done\r\n");
  EXPECT_FALSE(finished_[0]->receiver_reports);
}

TEST_F(SessionTest, EightBitContentAndUtf8AddressesBounceWhereNotOffered) {
  Mail& eight_bit = add("\xc3\xa4\r\n");
  eight_bit.message->content.eight_bit = true;
  Mail& utf8 = add("x\r\n", {"\xc3\xa4@d.example"});
  utf8.message->envelope.smtputf8 = true;
  open("250-mx\r\n250 PIPELINING\r\n");
  EXPECT_EQ(greeted_, "");
  EXPECT_EQ(eight_bit.attempt.results[0].enhanced, "5.6.3");
  EXPECT_EQ(utf8.attempt.results[0].enhanced, "5.6.7");
  EXPECT_EQ(taken_log(), "[bounce][bounce]");
}

TEST_F(SessionTest, ManyMisfitsDoNotHoldUpTheTurn) {
  for (int i = 0; i < 150; ++i) add("\xc3\xa4\r\n").message->content.eight_bit = true;
  open("250-mx\r\n250 PIPELINING\r\n");
  EXPECT_EQ(finished_.size(), 100u);
  EXPECT_LE(session_->deadline(), now_);
  session_->on_timeout(now_);
  EXPECT_EQ(finished_.size(), 150u);
  EXPECT_EQ(session_->state(), SessionState::open);
}

// ---- greeting

TEST_F(SessionTest, HeloFollowsAnEhloThatIsNotKnown) {
  add("one\r\n");
  start();
  peer("220 hello\r\n");
  EXPECT_EQ(peer("502 5.5.1 what?\r\n"), "HELO relay.example\r\n");
  EXPECT_EQ(peer("250 hello\r\n"), "MAIL FROM:<sender@client.example>\r\n");
}

// A receiver that answers EHLO in the segment of its greeting, before EHLO can have left.
TEST_F(SessionTest, EarlyRefusalOfEhloWaitsUntilEhloHasLeft) {
  add("one\r\n");
  start();
  send_at_once_ = false;
  EXPECT_EQ(peer("220 hello\r\n500 what?\r\n"), "EHLO relay.example\r\n");
  EXPECT_EQ(peer("250 hello\r\n"), "");
  send_at_once_ = true;
  let_go();
  EXPECT_EQ(std::exchange(sent_, {}), "HELO relay.example\r\nMAIL FROM:<sender@client.example>\r\n");
}

TEST_F(SessionTest, EarlyOfferOfStartTlsWaitsUntilEhloHasLeft) {
  add("one\r\n");
  SessionOptions options = default_options();
  options.tls = SessionOptions::Tls::offered;
  start(options);
  send_at_once_ = false;
  EXPECT_EQ(peer("220 hello\r\n250-hello\r\n250 STARTTLS\r\n"), "EHLO relay.example\r\n");
  let_go();
  EXPECT_EQ(std::exchange(sent_, {}), "STARTTLS\r\n");
  EXPECT_EQ(peer("220 go\r\n"), "");
  EXPECT_EQ(taken_log(), "");
  let_go();
  EXPECT_EQ(taken_log(), "(TLS)");
  EXPECT_EQ(session_->state(), SessionState::securing);
}

TEST_F(SessionTest, NothingMayFollowAnEarlyReplyToStartTls) {
  add("one\r\n");
  SessionOptions options = default_options();
  options.tls = SessionOptions::Tls::offered;
  start(options);
  peer("220 hello\r\n");
  send_at_once_ = false;
  EXPECT_EQ(peer("250-hello\r\n250 STARTTLS\r\n"), "STARTTLS\r\n");
  EXPECT_EQ(peer("220 go\r\n250 injected\r\n"), "");
  let_go();
  EXPECT_EQ(taken_log(), "");
  EXPECT_EQ(session_->ending(), Ending::protocol);
  EXPECT_EQ(session_->stage(), events::Stage::starttls);
}

TEST_F(SessionTest, RefusedGreetingEndsWithoutTakingMail) {
  add("one\r\n");
  start();
  EXPECT_EQ(peer("554 5.7.1 go away\r\n"), "");
  EXPECT_EQ(session_->ending(), Ending::refused);
  EXPECT_EQ(session_->reply(), "554 5.7.1 go away");
  EXPECT_EQ(session_->stage(), Stage::greeting);
  EXPECT_EQ(takes_, 0);
}

TEST_F(SessionTest, RefusedEhloEndsWithoutTakingMail) {
  add("one\r\n");
  start();
  peer("220 hello\r\n");
  EXPECT_EQ(peer("550 no\r\n"), "");
  EXPECT_EQ(session_->ending(), Ending::refused);
  EXPECT_EQ(session_->stage(), Stage::ehlo);
  EXPECT_EQ(takes_, 0);
}

TEST_F(SessionTest, Greeting421IsToldToSlow) {
  start();
  peer("421 4.7.0 too many\r\n");
  EXPECT_EQ(session_->ending(), Ending::told_to_slow);
}

TEST_F(SessionTest, NothingIsAssumedAfterHelo) {
  add("one\r\n");
  start();
  peer("220 hello\r\n");
  peer("500 what?\r\n");
  // A 250 to HELO with EHLO's keywords announces nothing.
  EXPECT_EQ(peer("250-hello\r\n250 PIPELINING\r\n"), "MAIL FROM:<sender@client.example>\r\n");
}

// ---- slow down

TEST_F(SessionTest, ReceiverInTroubleGivesEverythingBackAndEndsOnceAllIsAnswered) {
  add("one\r\n");
  add("two\r\n");
  open(kPipelining);
  EXPECT_EQ(peer("452 4.3.1 disk full\r\n503 5.5.1 MAIL first\r\n"), "");
  EXPECT_FALSE(over_);
  EXPECT_EQ(peer("503 5.5.1 MAIL first\r\n"), "");
  EXPECT_TRUE(over_);
  EXPECT_EQ(session_->ending(), Ending::told_to_slow);
  settle();
  EXPECT_EQ(taken_log(), "[give back]");
  EXPECT_EQ(queue_.size(), 1u);
}

TEST_F(SessionTest, BlocklistRefusalDefersAndNamesTheSource) {
  add("one\r\n", {"a@d.example", "b@d.example"});
  open(kPipelining);
  peer(
      "250 ok\r\n550 5.7.1 Service unavailable; listed at zen.spamhaus.org\r\n250 ok\r\n354 "
      "go\r\n");
  EXPECT_EQ(session_->ending(), Ending::told_to_slow);
  settle();
  EXPECT_EQ(taken_log(), "[defer, give back]");
  EXPECT_EQ(finished_[0]->results[0].scope, events::Scope::source);
}

TEST_F(SessionTest, A421GivesBackAllThatWasNotTriedAndKeepsWhatWasSaid) {
  add("one\r\n", {"a@d.example", "b@d.example", "c@d.example"});
  open(kPipelining);
  peer("250 ok\r\n550 5.1.1 who?\r\n421 4.7.0 rate\r\n");
  EXPECT_TRUE(over_);
  EXPECT_EQ(session_->ending(), Ending::told_to_slow);
  settle();
  EXPECT_EQ(taken_log(), "[bounce, give back, give back]");
}

TEST_F(SessionTest, A421ToTheEndOfDataIsNoDeliveryAndNotUncertain) {
  add("one\r\n");
  add("two\r\n");
  open(kPipelining);
  peer(kAccepted);
  peer("421 4.3.2 shutting down\r\n");
  settle();
  EXPECT_EQ(taken_log(), "[give back][give back]");
}

TEST_F(SessionTest, A421WhileIdleIsThePeersLeave) {
  add("one\r\n");
  open(kPipelining);
  peer(kAccepted);
  peer("250 done\r\n");
  peer("421 4.4.2 idle too long\r\n");
  EXPECT_EQ(session_->ending(), Ending::peer_closed);
  EXPECT_TRUE(session_->ended_idle());
}

TEST_F(SessionTest, EnvelopeOnItsWayWhenThePeerClosesIsNotTried) {
  add("one\r\n");
  add("two\r\n");
  open(kPipelining);
  peer(kAccepted);
  peer("250 done\r\n");
  end(0);
  EXPECT_EQ(session_->ending(), Ending::peer_closed);
  EXPECT_FALSE(session_->ended_idle());
  EXPECT_EQ(session_->messages(), 1u);
  settle();
  EXPECT_EQ(taken_log(), "[delivered][give back]");
}

// ---- lost connections

TEST_F(SessionTest, CloseBeforeTheReplyToMailIsNoAttempt) {
  add("one\r\n");
  open(kPipelining);
  end(0);
  EXPECT_EQ(session_->ending(), Ending::lost);
  settle();
  EXPECT_EQ(taken_log(), "[give back]");
}

TEST_F(SessionTest, CloseAfterTheReplyToMailDefers) {
  add("one\r\n", {"a@d.example", "b@d.example"});
  open(kPipelining);
  peer("250 ok\r\n550 5.1.1 who?\r\n");
  end(104);
  settle();
  EXPECT_EQ(taken_log(), "[bounce, defer]");
  EXPECT_EQ(finished_[0]->results[1].enhanced, "4.4.2");
}

TEST_F(SessionTest, CloseAfterTheEndOfDataIsUncertain) {
  add("one\r\n", {"a@d.example", "b@d.example"});
  add("two\r\n");
  open(kPipelining);
  peer("250 ok\r\n250 ok\r\n550 5.1.1 who?\r\n354 go\r\n");
  end(104);
  EXPECT_EQ(session_->ending(), Ending::lost);
  settle();
  EXPECT_EQ(taken_log(), "[uncertain, bounce][give back]");
}

TEST_F(SessionTest, CloseBeforeAllOfTheDataLeftDefers) {
  add("one\r\n");
  open(kPipelining);
  send_at_once_ = false;
  peer(kAccepted);
  unsent_ = 1;  // the last octet of the final dot
  end(104);
  settle();
  EXPECT_EQ(taken_log(), "[defer]");
}

TEST_F(SessionTest, OnlyOneMessageIsEverUncertain) {
  for (const char* body : {"one\r\n", "two\r\n", "six\r\n"}) add(body);
  open(kChunking);
  peer("250 ok\r\n250 ok\r\n");
  end(104);
  settle();
  EXPECT_EQ(taken_log(), "[uncertain][give back]");
}

TEST_F(SessionTest, ResetBeforeTheReplyToMailIsNoAttemptThoughAChunkWentAlong) {
  add("one\r\n");
  open(kChunking);
  end(104);
  settle();
  EXPECT_EQ(taken_log(), "[give back]");
}

TEST_F(SessionTest, CleanCloseBeforeTheReplyToMailIsNoAttemptEither) {
  add("one\r\n");
  open(kChunking);
  end(0);
  settle();
  EXPECT_EQ(taken_log(), "[give back]");
}

TEST_F(SessionTest, SilenceAfterAChunkIsUncertainThoughNothingWasSaid) {
  add("one\r\n");
  open(kChunking);
  now_ = session_->deadline();
  session_->on_timeout(now_);
  settle();
  EXPECT_EQ(taken_log(), "[uncertain]");
}

TEST_F(SessionTest, OurOwnAbortAfterAChunkIsUncertain) {
  add("one\r\n");
  open(kChunking);
  end(ECONNABORTED);
  settle();
  EXPECT_EQ(taken_log(), "[uncertain]");
}

TEST_F(SessionTest, RetireBeforeTheGreetingEndsAtOnce) {
  start();
  session_->retire(now_);
  EXPECT_EQ(session_->ending(), Ending::done);
}

// ---- hostile and broken peers

TEST_F(SessionTest, PositiveReplyBeforeTheDataIsNoDelivery) {
  add("one\r\n");
  open(kPipelining);
  EXPECT_EQ(peer("250 ok\r\n250 ok\r\n354 go\r\n250 done\r\n"), "");
  EXPECT_EQ(session_->ending(), Ending::protocol);
  settle();
  EXPECT_EQ(taken_log(), "[defer]");
}

TEST_F(SessionTest, PositiveReplyWhileTheDataIsStillLeavingIsNoDelivery) {
  add("one\r\n");
  open(kPipelining);
  send_at_once_ = false;
  peer(kAccepted);
  peer("250 done\r\n");
  EXPECT_EQ(taken_log(), "");
  EXPECT_TRUE(session_->late_reply());
  session_->on_turn_end(now_);
  EXPECT_EQ(session_->ending(), Ending::protocol);
  settle();
  EXPECT_EQ(taken_log(), "[defer]");
}

TEST_F(SessionTest, ReplyThatOvertookTheCompletionOfItsSendCounts) {
  add("one\r\n");
  add("two\r\n");
  open(kPipelining);
  send_at_once_ = false;
  peer(kAccepted);
  peer("250 done\r\n250 ok\r\n250 ok\r\n354 go\r\n");
  EXPECT_EQ(taken_log(), "");
  let_go();
  EXPECT_EQ(taken_log(), "[delivered]");
  EXPECT_EQ(sent_, "two\r\n.\r\n");
}

TEST_F(SessionTest, EarlyRefusalIsGivenBackOnlyOnceTheBytesAreFree) {
  add("one\r\n");
  open(kPipelining);
  send_at_once_ = false;
  peer(kAccepted);
  peer("552 5.3.4 too big\r\n");
  EXPECT_EQ(taken_log(), "");
  session_->on_turn_end(now_);
  EXPECT_EQ(session_->state(), SessionState::open);
  let_go();
  EXPECT_EQ(taken_log(), "[bounce]");
}

TEST_F(SessionTest, EarlyRefusalCountsThoughTheConnectionBreaks) {
  add("one\r\n");
  open(kPipelining);
  send_at_once_ = false;
  peer(kAccepted);
  peer("552 5.3.4 too big\r\n");
  end(104);
  settle();
  EXPECT_EQ(taken_log(), "[bounce]");
}

TEST_F(SessionTest, ExtraReplyEndsTheConversation) {
  add("one\r\n");
  open(kPipelining);
  peer(kAccepted);
  peer("250 done\r\n250 and again\r\n");
  EXPECT_EQ(session_->ending(), Ending::protocol);
  settle();
  EXPECT_EQ(taken_log(), "[delivered]");
}

TEST_F(SessionTest, ShiftedRepliesAreNoDelivery) {
  add("one\r\n");
  open(kPipelining);
  peer("250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n");
  EXPECT_EQ(session_->ending(), Ending::protocol);
  settle();
  EXPECT_EQ(taken_log(), "[defer]");
}

TEST_F(SessionTest, GarbageEndsTheConversation) {
  for (const char* garbage : {"hello\r\n", "99 x\r\n", "250-a\r\n251 b\r\n", "650 x\r\n"}) {
    session_.reset();
    start();
    peer(garbage);
    EXPECT_EQ(session_->ending(), Ending::protocol) << garbage;
    settle();
  }
}

TEST_F(SessionTest, EndlessReplyIsCutOff) {
  start();
  const std::string line(1000, 'x');
  for (int i = 0; i < 200 && session_->state() != SessionState::over; ++i)
    peer("220-" + line + "\r\n");
  EXPECT_EQ(session_->ending(), Ending::protocol);
}

TEST_F(SessionTest, ReplyTextIsBounded) {
  add("one\r\n");
  open(kPipelining);
  peer(kAccepted);
  std::string reply;
  for (int i = 0; i < 50; ++i) reply += "550-" + std::string(400, 'y') + "\r\n";
  peer(reply + "550 no\r\n");
  EXPECT_EQ(taken_log(), "[bounce]");
  EXPECT_LE(finished_[0]->results[0].reply.size(), 1024u);
}

TEST_F(SessionTest, AReplyOfTheWrongKindIsBlamedOnItsOwnCommand) {
  add("one\r\n");
  open(kPipelining);
  peer("354 go\r\n");
  EXPECT_EQ(session_->ending(), Ending::protocol);
  EXPECT_EQ(session_->stage(), Stage::mail);
  EXPECT_EQ(session_->reply(), "3xx in reply to MAIL while waiting for the reply to MAIL");
}

TEST_F(SessionTest, A354ToTheEndOfDataIsUncertain) {
  add("one\r\n");
  open(kPipelining);
  peer(kAccepted);
  peer("354 more?\r\n");
  settle();
  EXPECT_EQ(taken_log(), "[uncertain]");
}

// ---- time

TEST_F(SessionTest, EachStageHasItsTime) {
  add("one\r\n");
  start();
  EXPECT_EQ(session_->deadline(), now_ + 300 * kSecond);
  now_ += 10 * kSecond;
  peer("220 hello\r\n");
  EXPECT_EQ(session_->deadline(), now_ + 300 * kSecond);
  peer(kPipelining);
  peer("250 ok\r\n250 ok\r\n");
  EXPECT_EQ(session_->deadline(), now_ + 120 * kSecond);
  peer("354 go\r\n");
  EXPECT_EQ(session_->deadline(), now_ + 600 * kSecond);
  peer("250 done\r\n");
  EXPECT_EQ(session_->deadline(), now_ + 5 * kSecond);
  now_ += 5 * kSecond;
  session_->on_timeout(now_);
  EXPECT_EQ(std::exchange(sent_, {}), "QUIT\r\n");
  finish_sends();
  EXPECT_EQ(session_->ending(), Ending::done);
}

TEST_F(SessionTest, PartOfAReplyBuysNoTime) {
  start();
  const int64_t deadline = session_->deadline();
  now_ += 200 * kSecond;
  peer("220-a\r\n");
  EXPECT_EQ(session_->deadline(), deadline);
  now_ = deadline;
  session_->on_timeout(now_);
  EXPECT_EQ(session_->ending(), Ending::lost);
  EXPECT_EQ(session_->stage(), Stage::greeting);
}

TEST_F(SessionTest, SilenceAfterTheEndOfDataIsUncertain) {
  add("one\r\n");
  open(kPipelining);
  peer(kAccepted);
  now_ += 599 * kSecond;
  session_->on_timeout(now_);
  EXPECT_FALSE(over_);
  now_ += kSecond;
  session_->on_timeout(now_);
  settle();
  EXPECT_EQ(taken_log(), "[uncertain]");
}

TEST_F(SessionTest, SlowContentMayGoOnWhileItMovesAndNotForever) {
  add(std::string(1 << 20, 'x') + "\r\n");
  open(kPipelining);
  send_at_once_ = false;
  peer(kAccepted);
  int steps = 0;
  while (!over_ && steps < 100) {
    now_ = session_->deadline();
    --unsent_;
    session_->on_timeout(now_);
    ++steps;
  }
  // 1 MiB at 4 KiB a second, in steps of three minutes.
  EXPECT_TRUE(over_);
  EXPECT_EQ(steps, 3);
  settle();
  EXPECT_EQ(taken_log(), "[defer]");
}

TEST_F(SessionTest, StalledContentEndsAfterABlocksTime) {
  add(std::string(1 << 20, 'x') + "\r\n");
  open(kPipelining);
  send_at_once_ = false;
  peer(kAccepted);
  EXPECT_EQ(session_->deadline(), now_ + 180 * kSecond);
  now_ = session_->deadline();
  session_->on_timeout(now_);
  EXPECT_TRUE(over_);
  settle();
  EXPECT_EQ(taken_log(), "[defer]");
  EXPECT_EQ(finished_[0]->results[0].stage, Stage::body);
}

TEST_F(SessionTest, RecipientsAnsweredOneTimeoutApartDoNotLastForever) {
  std::vector<std::string> recipients;
  for (int i = 0; i < 100; ++i) recipients.push_back(fmt::format("r{}@d.example", i));
  add("one\r\n", recipients);
  open(kPipelining);
  const int64_t begun = now_;
  peer("250 ok\r\n");
  while (!over_) {
    const int64_t next = now_ + 290 * kSecond;
    if (session_->deadline() <= next) {
      now_ = session_->deadline();
      session_->on_timeout(now_);
    } else {
      now_ = next;
      peer("250 ok\r\n");
    }
  }
  EXPECT_LE(now_ - begun, 1800 * kSecond);
  settle();
}

// ---- the owner's word

TEST_F(SessionTest, RetireFinishesWhatIsOut) {
  add("one\r\n");
  add("two\r\n");
  open(kPipelining);
  session_->retire(now_);
  EXPECT_EQ(peer(kAccepted), "one\r\n.\r\n");
  EXPECT_EQ(peer("250 done\r\n"), "QUIT\r\n");
  EXPECT_EQ(session_->ending(), Ending::done);
  EXPECT_EQ(queue_.size(), 1u);
}

TEST_F(SessionTest, WakeStartsTheNextMessage) {
  open(kPipelining);
  EXPECT_EQ(greeted_, "");
  add("one\r\n");
  EXPECT_EQ(wake(), kEnvelope);
  peer(kAccepted);
  add("two\r\n");
  // The envelope of the next may go while the first one's reply is awaited.
  EXPECT_EQ(wake(), kEnvelope);
  EXPECT_EQ(peer(fmt::format("250 done\r\n{}", kAccepted)), "two\r\n.\r\n");
}

TEST_F(SessionTest, NothingIsTakenAgainUntilWoken) {
  open(kPipelining);
  const int takes = takes_;
  add("one\r\n");
  peer("");
  EXPECT_EQ(takes_, takes);
}

}  // namespace
}  // namespace millrace::delivery
