// LMTP (RFC 2033) in the client's state machine: a reply for each recipient behind the end of data.
#include "session_rig.h"

namespace millrace::delivery {
namespace {

using namespace testing;
using events::Stage;

constexpr std::string_view kCapabilities = "250-mx.example\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 8BITMIME\r\n";
constexpr std::string_view kThree =
    "MAIL FROM:<sender@client.example>\r\nRCPT TO:<a@dest.example>\r\nRCPT TO:<b@dest.example>\r\n"
    "RCPT TO:<c@dest.example>\r\nDATA\r\n";
constexpr std::string_view kThreeAccepted = "250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n";

class LmtpTest : public SessionTest {
 protected:
  void open_lmtp(std::string_view capabilities = kCapabilities) {
    SessionOptions options = default_options();
    options.lmtp = true;
    start(options);
    EXPECT_EQ(peer("220 hello\r\n"), "LHLO relay.example\r\n");
    greeted_ = peer(capabilities);
    EXPECT_TRUE(ready_);
  }
  void add_three() { add("one\r\n", {"a@dest.example", "b@dest.example", "c@dest.example"}); }
};

TEST_F(LmtpTest, EachRecipientHasTheReplyThatIsItsOwn) {
  add_three();
  open_lmtp();
  EXPECT_EQ(greeted_, kThree);  // by DATA, though BDAT is offered
  EXPECT_EQ(peer(kThreeAccepted), "one\r\n.\r\n");
  EXPECT_EQ(peer("250 2.0.0 a has it\r\n552 5.2.2 b is full\r\n"), "");
  EXPECT_EQ(taken_log(), "");
  EXPECT_EQ(peer("450 4.2.0 c is locked\r\n"), "");
  EXPECT_EQ(taken_log(), "[delivered, bounce, defer]");
  const auto& results = finished_[0]->results;
  EXPECT_EQ(results[0].reply, "250 2.0.0 a has it");
  EXPECT_EQ(results[1].reply, "552 5.2.2 b is full");
  EXPECT_EQ(results[2].code, 450);
  EXPECT_EQ(results[2].stage, Stage::end_of_data);
  EXPECT_TRUE(session_->idle());
  EXPECT_EQ(session_->messages(), 1u);
}

TEST_F(LmtpTest, RefusedAtRcptHasNoReplyBehindTheData) {
  add_three();
  open_lmtp();
  EXPECT_EQ(peer("250 ok\r\n250 ok\r\n550 5.1.1 no b\r\n250 ok\r\n354 go\r\n"), "one\r\n.\r\n");
  peer("250 a\r\n");
  EXPECT_EQ(taken_log(), "");
  peer("250 c\r\n");
  EXPECT_EQ(taken_log(), "[delivered, bounce, delivered]");
  EXPECT_EQ(finished_[0]->results[2].reply, "250 c");
}

TEST_F(LmtpTest, NextMessageWaitsForTheLastReply) {
  add_three();
  add("two\r\n");
  open_lmtp();
  EXPECT_EQ(peer(kThreeAccepted), "one\r\n.\r\n");
  EXPECT_EQ(peer("250 a\r\n250 b\r\n"), "");
  EXPECT_EQ(peer("250 c\r\n"), "MAIL FROM:<sender@client.example>\r\nRCPT TO:<a@dest.example>\r\nDATA\r\n");
  EXPECT_EQ(peer("250 ok\r\n250 ok\r\n354 go\r\n"), "two\r\n.\r\n");
  peer("250 done\r\n");
  EXPECT_EQ(taken_log(), "[delivered, delivered, delivered][delivered]");
}

TEST_F(LmtpTest, TooFewRepliesLeaveTheOthersUncertain) {
  add_three();
  open_lmtp();
  peer(kThreeAccepted);
  peer("250 all of it\r\n");
  now_ = session_->deadline();
  session_->on_timeout(now_);
  ASSERT_EQ(session_->state(), SessionState::over);
  settle();
  EXPECT_EQ(taken_log(), "[delivered, uncertain, uncertain]");
}

TEST_F(LmtpTest, ConnectionLostBetweenRepliesKeepsThoseThatCame) {
  add_three();
  open_lmtp();
  peer(kThreeAccepted);
  peer("250 a\r\n554 5.7.1 not b\r\n");
  end(ECONNRESET);
  settle();
  EXPECT_EQ(taken_log(), "[delivered, bounce, uncertain]");
}

TEST_F(LmtpTest, OneReplyTooManyEndsTheConversationAndChangesNothing) {
  add_three();
  open_lmtp();
  peer(kThreeAccepted);
  peer("250 a\r\n250 b\r\n250 c\r\n250 and one more\r\n");
  EXPECT_EQ(session_->ending(), Ending::protocol);
  settle();
  EXPECT_EQ(taken_log(), "[delivered, delivered, delivered]");
}

TEST_F(LmtpTest, ClosingReplyIsItsRecipientsAlone) {
  add_three();
  open_lmtp();
  peer(kThreeAccepted);
  peer("250 a\r\n421 4.3.2 shutting down\r\n");
  EXPECT_EQ(session_->state(), SessionState::over);
  settle();
  EXPECT_EQ(taken_log(), "[delivered, give back, give back]");
}

TEST_F(LmtpTest, GoAheadForNobodyIsNoLmtp) {
  add_three();
  open_lmtp();
  EXPECT_EQ(peer("250 ok\r\n550 5.1.1 no\r\n550 5.1.1 no\r\n550 5.1.1 no\r\n354 go\r\n"), "");
  EXPECT_EQ(session_->ending(), Ending::protocol);
  settle();
  EXPECT_EQ(taken_log(), "[bounce, bounce, bounce]");
}

TEST_F(LmtpTest, RefusalOfDataIsEverybodys) {
  add_three();
  open_lmtp();
  peer("250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n451 4.3.0 not now\r\n");
  EXPECT_EQ(taken_log(), "[defer, defer, defer]");
}

TEST_F(LmtpTest, WithoutPipeliningToo) {
  add("one\r\n", {"a@dest.example", "b@dest.example"});
  open_lmtp("250 mx.example\r\n");
  EXPECT_EQ(greeted_, "MAIL FROM:<sender@client.example>\r\n");
  EXPECT_EQ(peer("250 ok\r\n"), "RCPT TO:<a@dest.example>\r\n");
  EXPECT_EQ(peer("250 ok\r\n"), "RCPT TO:<b@dest.example>\r\n");
  EXPECT_EQ(peer("250 ok\r\n"), "DATA\r\n");
  EXPECT_EQ(peer("354 go\r\n"), "one\r\n.\r\n");
  peer("250 a\r\n");
  EXPECT_EQ(taken_log(), "");
  peer("250 b\r\n");
  EXPECT_EQ(taken_log(), "[delivered, delivered]");
}

TEST_F(LmtpTest, SmtpServerIsNotSpokenToWithHelo) {
  SessionOptions options = default_options();
  options.lmtp = true;
  add("one\r\n");
  start(options);
  EXPECT_EQ(peer("220 hello\r\n"), "LHLO relay.example\r\n");
  EXPECT_EQ(peer("500 what\r\n"), "");
  EXPECT_EQ(session_->state(), SessionState::over);
  EXPECT_EQ(session_->ending(), Ending::refused);
}

}  // namespace
}  // namespace millrace::delivery
