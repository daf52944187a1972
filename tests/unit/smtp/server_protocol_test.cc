// Dialogues with the receiving side: what is sent, what comes back, what the session gets to know.
#include "smtp/server_protocol.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/prng.h"

namespace millrace::smtp {
namespace {

using Event = ServerProtocol::Event;
using State = ServerProtocol::State;

struct TestPolicy final : ServerPolicy {
  Reply mail, recipient, data;
  Reply check_mail(const mail::Envelope&, uint64_t) override { return mail; }
  Reply check_recipient(const mail::Envelope&, const mail::Recipient& r) override {
    return r.domain == "refused.example" ? Reply{550, {5, 7, 1}, "No"} : recipient;
  }
  Reply check_data(const mail::Envelope&) override { return data; }
};

// A session that keeps the messages and answers them at once, or when told to.
struct Session {
  explicit Session(ServerOptions given = {}) : options(std::move(given)) {
    if (options.hostname.empty()) options.hostname = "relay.example";
    protocol.emplace(options, policy);
    protocol->greet();
    output();
  }
  // Gives `input` in pieces of `step` octets and returns what is answered.
  std::string send(std::string_view input, size_t step = SIZE_MAX) {
    while (!input.empty()) {
      std::string owned(input.substr(0, step));
      input.remove_prefix(owned.size());
      std::string_view piece = owned;
      while (!piece.empty() && !blocked) {
        auto taken = protocol->advance(piece);
        piece.remove_prefix(taken.consumed);
        if (taken.begins) {
          EXPECT_FALSE(open);
          open = true;
          body.clear();
          ++begun;
        }
        if (!taken.body.empty()) {
          EXPECT_TRUE(open);
          body.append(taken.body);
        }
        switch (taken.event) {
          case Event::none:
            break;
          case Event::message_end:
            EXPECT_TRUE(open);
            open = false;
            body.resize(protocol->facts().raw_size);
            bodies.push_back(body);
            envelopes.push_back(std::move(protocol->envelope()));
            facts.push_back(protocol->facts());
            numbers.push_back(protocol->message_number());
            if (answer_at_once) protocol->message_done(numbers.back(), {250, {2, 0, 0}, "Queued"});
            break;
          case Event::message_discarded:
            EXPECT_TRUE(open);
            open = false;
            ++discarded;
            discarded_of = protocol->envelope().reverse_path;
            discarded_for_size = protocol->facts().too_large;
            break;
          case Event::start_tls:
            EXPECT_TRUE(piece.empty());
            ++tls_started;
            break;
          case Event::blocked:
            blocked = true;
            waiting = piece;
            break;
        }
      }
      if (blocked) {
        waiting.append(input);
        break;
      }
    }
    return output();
  }
  std::string output() {
    std::string out;
    protocol->take_output(out);
    return out;
  }
  // The codes only, in order: "250 354".
  std::string codes(std::string_view input, size_t step = SIZE_MAX) {
    std::string out = send(input, step), codes;
    size_t at = 0;
    while (at < out.size()) {
      if (out[at + 3] == ' ') codes.append(codes.empty() ? "" : " ").append(out, at, 3);
      at = out.find("\r\n", at) + 2;
    }
    return codes;
  }
  void hello() { send("EHLO client.example\r\n"); }

  ServerOptions options;
  TestPolicy policy;
  std::optional<ServerProtocol> protocol;
  bool answer_at_once = true, blocked = false, open = false;
  int begun = 0, discarded = 0, tls_started = 0;
  std::string body, waiting, discarded_of;
  bool discarded_for_size = false;
  std::vector<std::string> bodies;
  std::vector<mail::Envelope> envelopes;
  std::vector<IntakeFacts> facts;
  std::vector<uint64_t> numbers;
};

constexpr std::string_view kMailRcpt = "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\n";

TEST(ServerProtocol, GreetsAndAnnouncesOnlyWhatIsThere) {
  ServerOptions options;
  options.hostname = "relay.example";
  TestPolicy policy;
  ServerProtocol protocol(options, policy);
  protocol.greet();
  protocol.advance("EHLO client.example\r\n");
  std::string out;
  protocol.take_output(out);
  EXPECT_EQ(out,
            "220 relay.example ESMTP Millrace\r\n250-relay.example\r\n250-SIZE 52428800\r\n"
            "250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-ENHANCEDSTATUSCODES\r\n"
            "250-CHUNKING\r\n250-DSN\r\n250 LIMITS RCPTMAX=1000\r\n");
  EXPECT_EQ(protocol.helo(), "client.example");
  EXPECT_TRUE(protocol.esmtp());
}

TEST(ServerProtocol, AMessageByData) {
  Session session;
  session.hello();
  EXPECT_EQ(session.codes(kMailRcpt), "250 250");
  EXPECT_EQ(session.codes("DATA\r\n"), "354");
  EXPECT_EQ(session.codes("Subject: x\r\n\r\n..dot\r\n.\r\n"), "250");
  ASSERT_EQ(session.bodies.size(), 1u);
  EXPECT_EQ(session.bodies[0], "Subject: x\r\n\r\n..dot\r\n");
  EXPECT_EQ(session.facts[0].dots, std::vector<uint32_t>{14});
  EXPECT_EQ(session.envelopes[0].reverse_path, "a@example.com");
  ASSERT_EQ(session.envelopes[0].recipients.size(), 1u);
  EXPECT_EQ(session.envelopes[0].recipients[0].domain, "example.org");
  EXPECT_EQ(session.codes("QUIT\r\n"), "221");
  EXPECT_TRUE(session.protocol->finished());
}

TEST(ServerProtocol, TheEnvelopeOfADiscardedMessageIsThereToBeReported) {
  ServerOptions options;
  options.max_message_size = 2048;
  const std::string large(4000, 'x');
  // Its end comes in the same piece as the octet too many.
  Session by_data(options);
  by_data.hello();
  by_data.send(std::string(kMailRcpt) + "DATA\r\n");
  EXPECT_EQ(by_data.codes(large + "\r\n.\r\n"), "552");
  EXPECT_EQ(by_data.discarded_of, "a@example.com");
  EXPECT_TRUE(by_data.discarded_for_size);
  EXPECT_EQ(by_data.codes("RCPT TO:<c@example.org>\r\nMAIL FROM:<>\r\nDATA\r\n"), "503 250 554");
  // A chunk that is announced too large ends it before its first octet.
  Session by_chunks(options);
  by_chunks.hello();
  EXPECT_EQ(by_chunks.codes(std::string(kMailRcpt) + "BDAT 4000 LAST\r\n" + large), "250 250 552");
  EXPECT_EQ(by_chunks.discarded_of, "a@example.com");
  EXPECT_TRUE(by_chunks.discarded_for_size);
}

TEST(ServerProtocol, AMessageByBdatWithPipeliningInOnePiece) {
  Session session;
  session.hello();
  EXPECT_EQ(session.codes(std::string(kMailRcpt) + "BDAT 5\r\nab\r\n.BDAT 4 LAST\r\nx\r\n\n" +
                          std::string(kMailRcpt) + "BDAT 0 LAST\r\n"),
            "250 250 250 554 250 250 250");
  // The second chunk ended in a bare LF.
  EXPECT_EQ(session.discarded, 1);
  EXPECT_EQ(session.bodies, std::vector<std::string>{""});
}

TEST(ServerProtocol, EverySplitOfADialogueGivesTheSame) {
  std::string dialogue =
      std::string(kMailRcpt) + "BDAT 6\r\na\r\n.\r\nBDAT 3 LAST\r\nb\r\n" +
      "NOOP\r\nMAIL FROM:<>\r\nRCPT TO:<c@refused.example>\r\nBDAT 2\r\nxxRSET\r\n" +
      "MAIL FROM:<x\r\nFOO\r\n";
  std::string whole;
  for (size_t step = 1; step < dialogue.size() + 1; ++step) {
    Session session;
    session.hello();
    std::string out = session.send(dialogue, step);
    if (whole.empty()) whole = out;
    EXPECT_EQ(out, whole) << step;
    EXPECT_EQ(session.bodies, std::vector<std::string>{"a\r\n.\r\nb\r\n"});
  }
}

TEST(ServerProtocol, CommandsOutOfOrderAre503) {
  Session session;
  EXPECT_EQ(session.codes("MAIL FROM:<a@example.com>\r\n"), "503");
  EXPECT_EQ(session.codes("RCPT TO:<a@example.com>\r\n"), "503");
  EXPECT_EQ(session.codes("DATA\r\n"), "503");
  session.hello();
  EXPECT_EQ(session.codes("RCPT TO:<a@example.com>\r\n"), "503");
  EXPECT_EQ(session.codes("DATA\r\n"), "503");
  EXPECT_EQ(session.codes("MAIL FROM:<a@example.com>\r\n"), "250");
  EXPECT_EQ(session.codes("MAIL FROM:<a@example.com>\r\n"), "503");
  EXPECT_EQ(session.codes("DATA\r\n"), "554");
  EXPECT_EQ(session.codes("RCPT TO:<a@example.com>\r\n"), "250");
  EXPECT_EQ(session.codes("RSET\r\n"), "250");
  EXPECT_EQ(session.codes("DATA\r\n"), "503");
}

TEST(ServerProtocol, RsetAndEhloClearTheTransaction) {
  for (const char* clear : {"RSET\r\n", "EHLO again\r\n", "HELO again\r\n"}) {
    Session session;
    session.hello();
    session.send(kMailRcpt);
    EXPECT_EQ(session.codes(clear), "250");
    EXPECT_EQ(session.codes("RCPT TO:<late@example.org>\r\n"), "503");
    EXPECT_EQ(session.codes("MAIL FROM:<new@example.com>\r\n"), "250");
    session.send("RCPT TO:<c@example.org>\r\n");
    session.send("DATA\r\n");
    session.send(".\r\n");
    ASSERT_EQ(session.envelopes.size(), 1u);
    EXPECT_EQ(session.envelopes[0].reverse_path, "new@example.com");
    EXPECT_EQ(session.envelopes[0].recipients.size(), 1u);
  }
}

TEST(ServerProtocol, StateIsCleanAfterEveryRejection) {
  Session session;
  session.hello();
  auto expect_clean = [&](const char* after) {
    EXPECT_EQ(session.codes("RCPT TO:<b@example.org>\r\n"), "503") << after;
    EXPECT_EQ(session.codes("MAIL FROM:<ok@example.com>\r\n"), "250") << after;
    EXPECT_EQ(session.codes("RCPT TO:<b@example.org>\r\n"), "250") << after;
    session.send("DATA\r\n");
    EXPECT_EQ(session.codes("x\r\n.\r\n"), "250") << after;
    EXPECT_EQ(session.envelopes.back().reverse_path, "ok@example.com");
    EXPECT_FALSE(session.envelopes.back().smtputf8);
    EXPECT_EQ(session.envelopes.back().envid, "");
  };
  EXPECT_EQ(session.codes("MAIL FROM:<a@example.com> SIZE=999999999999\r\n"), "552");
  expect_clean("SIZE");
  session.policy.mail = {451, {4, 7, 1}, "Later"};
  EXPECT_EQ(session.codes("MAIL FROM:<a@example.com> SMTPUTF8 ENVID=x\r\n"), "451");
  session.policy.mail = {};
  expect_clean("policy at MAIL");
  session.send(kMailRcpt);
  session.policy.data = {452, {4, 3, 1}, "Full"};
  EXPECT_EQ(session.codes("DATA\r\n"), "452");
  session.policy.data = {};
  expect_clean("policy at DATA");
  session.send(kMailRcpt);
  session.send("DATA\r\n");
  EXPECT_EQ(session.codes("a\nb\r\n.\r\n"), "554");
  expect_clean("bare LF");
  session.send(kMailRcpt);
  EXPECT_EQ(session.codes("BDAT 3 LAST\r\na\nb"), "554");
  expect_clean("bare LF in BDAT");
}

TEST(ServerProtocol, LineFaultsAreNamedAndTheRestDrained) {
  Session session;
  session.hello();
  session.send(kMailRcpt);
  session.send("DATA\r\n");
  EXPECT_EQ(session.send("ok\r\nab\rc\r\n", 3), "");
  std::string out = session.send("more\r\n.\r\n");
  EXPECT_EQ(out, "554 5.6.0 bare CR in line 2, octet 3\r\n");
  EXPECT_EQ(session.discarded, 1);
  EXPECT_TRUE(session.bodies.empty());
}

TEST(ServerProtocol, FaultyMessagesAreKeptWhenAskedFor) {
  ServerOptions options;
  options.keep_bad_lines = true;
  Session session(options);
  session.hello();
  session.send(kMailRcpt);
  session.send("DATA\r\n");
  EXPECT_EQ(session.codes("a\nb\r\n.\r\n"), "250");
  ASSERT_EQ(session.facts.size(), 1u);
  EXPECT_EQ(session.facts[0].fault, LineFault::bare_lf);
}

TEST(ServerProtocol, SmuggledCommandsStayContent) {
  for (std::string end : {"\n.\n", "\r\n.\n", "\n.\r\n", "\r.\r\n"}) {
    Session session;
    session.hello();
    session.send(kMailRcpt);
    session.send("DATA\r\n");
    EXPECT_EQ(session.codes("x" + end + "MAIL FROM:<evil@example.com>\r\n.\r\n"), "554");
    EXPECT_TRUE(session.bodies.empty());
  }
}

TEST(ServerProtocol, SizesPastTheLimitAre552) {
  ServerOptions options;
  options.max_message_size = 10;
  Session session(options);
  session.hello();
  EXPECT_EQ(session.codes("MAIL FROM:<a@example.com> SIZE=11\r\n"), "552");
  EXPECT_EQ(session.codes("MAIL FROM:<a@example.com> SIZE=10\r\n"), "250");
  session.send("RCPT TO:<b@example.org>\r\n");
  session.send("DATA\r\n");
  EXPECT_EQ(session.codes("12345678\r\n.\r\n"), "250");
  session.send(kMailRcpt);
  session.send("DATA\r\n");
  EXPECT_EQ(session.codes("123456789\r\n.\r\n", 4), "552");
  EXPECT_EQ(session.discarded, 1);
  session.send(kMailRcpt);
  EXPECT_EQ(session.codes("BDAT 11 LAST\r\n12345678901NOOP\r\n"), "552 250");
  session.send(kMailRcpt);
  EXPECT_EQ(session.codes("BDAT 6\r\n123456BDAT 5\r\n12345BDAT 1 LAST\r\nxNOOP\r\n"),
            "250 552 503 250");
  EXPECT_EQ(session.codes(kMailRcpt), "250 250");
}

TEST(ServerProtocol, AFailedBdatIsDrainedAndAnsweredUntilRset) {
  Session session;
  session.hello();
  session.send("MAIL FROM:<a@example.com>\r\n");
  EXPECT_EQ(session.codes("BDAT 6\r\nRSET\r\nRCPT TO:<b@example.org>\r\n"), "554 250");
  session.policy.data = {452, {4, 3, 1}, "Full"};
  EXPECT_EQ(session.codes("BDAT 6\r\nQUIT\r\nBDAT 6\r\nQUIT\r\nDATA\r\n"), "452 503 503");
  session.policy.data = {};
  EXPECT_EQ(session.codes("MAIL FROM:<a@example.com>\r\n"), "503");
  EXPECT_EQ(session.codes("RSET\r\n"), "250");
  EXPECT_EQ(session.codes(kMailRcpt), "250 250");
}

TEST(ServerProtocol, BdatAndDataDoNotMix) {
  Session session;
  session.hello();
  session.send(kMailRcpt);
  EXPECT_EQ(session.codes("BDAT 3\r\na\r\nDATA\r\n"), "250 503");
  EXPECT_EQ(session.codes("MAIL FROM:<x@example.com>\r\n"), "503");
  EXPECT_EQ(session.codes("RCPT TO:<x@example.com>\r\n"), "503");
  EXPECT_EQ(session.codes("NOOP\r\nBDAT 3 LAST\r\nb\r\n"), "250 250");
  EXPECT_EQ(session.bodies, std::vector<std::string>{"a\r\nb\r\n"});
}

TEST(ServerProtocol, BdatOfUnknownOrHugeSizeCloses) {
  for (const char* line : {"BDAT -1\r\n", "BDAT 18446744073709551616\r\n", "BDAT x LAST\r\n",
                           "BDAT 9999999999 LAST\r\n"}) {
    Session session;
    session.hello();
    session.send(kMailRcpt);
    std::string codes = session.codes(std::string(line) + "MAIL FROM:<smuggled@example.com>\r\n");
    EXPECT_TRUE(codes == "501" || codes == "552") << line << codes;
    EXPECT_TRUE(session.protocol->finished());
  }
}

TEST(ServerProtocol, AMillionTinyChunksEndEarly) {
  Session session;
  session.hello();
  session.send(kMailRcpt);
  int accepted = 0;
  while (session.codes("BDAT 1\r\nx") == "250" && accepted < 5000) ++accepted;
  EXPECT_LT(accepted, 1010);
  EXPECT_EQ(session.discarded, 1);
}

TEST(ServerProtocol, RsetAndQuitBetweenChunksDiscard) {
  for (const char* command : {"RSET\r\n", "QUIT\r\n", "EHLO x\r\n"}) {
    Session session;
    session.hello();
    session.send(kMailRcpt);
    session.send("BDAT 3\r\na\r\n");
    session.send(command);
    EXPECT_EQ(session.discarded, 1);
    EXPECT_FALSE(session.protocol->receiving_message());
  }
}

TEST(ServerProtocol, RecipientsPastTheLimitAre452AndNeverLessThanAHundred) {
  ServerOptions options;
  options.max_recipients = 100;
  Session session(options);
  session.hello();
  session.send("MAIL FROM:<a@example.com>\r\n");
  for (int i = 0; i < 100; ++i) ASSERT_EQ(session.codes("RCPT TO:<b@example.org>\r\n"), "250");
  EXPECT_EQ(session.codes("RCPT TO:<b@example.org>\r\n"), "452");
  EXPECT_EQ(session.codes("DATA\r\n"), "354");
  session.send(".\r\n");
  EXPECT_EQ(session.envelopes[0].recipients.size(), 100u);
  session.send("MAIL FROM:<a@example.com>\r\n");
  std::string codes;
  for (int i = 0; i < 1200 && !session.protocol->finished(); ++i) {
    codes = session.codes("RCPT TO:<b@example.org>\r\n");
  }
  EXPECT_EQ(codes, "421");
}

TEST(ServerProtocol, AFewCommands) {
  Session session;
  EXPECT_EQ(session.codes("VRFY a\r\n"), "252");
  EXPECT_EQ(session.codes("EXPN a\r\n"), "502");
  EXPECT_EQ(session.codes("HELP\r\n"), "214");
  EXPECT_EQ(session.codes("NOOP\r\n"), "250");
  EXPECT_EQ(session.codes("STARTTLS\r\n"), "502");
  EXPECT_EQ(session.codes("AUTH PLAIN x\r\n"), "502");
  EXPECT_EQ(session.codes("RSET\r\n"), "250");
  EXPECT_EQ(session.codes("XYZZY\r\n"), "500");
}

TEST(ServerProtocol, PostmasterNeedsNoDomain) {
  Session session;
  session.hello();
  session.send("MAIL FROM:<>\r\n");
  EXPECT_EQ(session.codes("RCPT TO:<Postmaster>\r\n"), "250");
  session.send("DATA\r\n");
  session.send(".\r\n");
  EXPECT_EQ(session.envelopes[0].recipients[0].address, "Postmaster@relay.example");
  EXPECT_EQ(session.envelopes[0].recipients[0].domain, "relay.example");
  EXPECT_EQ(session.envelopes[0].reverse_path, "");
}

TEST(ServerProtocol, EarlyTalkersAreRefused) {
  ServerOptions options;
  options.hostname = "relay.example";
  TestPolicy policy;
  ServerProtocol protocol(options, policy);
  protocol.advance("EHLO x\r\n");
  std::string out;
  protocol.take_output(out);
  EXPECT_EQ(out.substr(0, 3), "554");
  EXPECT_TRUE(protocol.finished());
}

TEST(ServerProtocol, IllegalPipeliningIsRefused) {
  Session early_mail;
  EXPECT_EQ(early_mail.codes("EHLO x\r\nMAIL FROM:<a@example.com>\r\n"), "554");
  EXPECT_TRUE(early_mail.protocol->finished());
  Session early_body;
  early_body.hello();
  EXPECT_EQ(early_body.codes(std::string(kMailRcpt) + "DATA\r\nSubject: x\r\n"), "250 250 554");
  EXPECT_TRUE(early_body.protocol->finished());
  Session helo;
  helo.send("HELO x\r\n");
  EXPECT_EQ(helo.codes("NOOP\r\nNOOP\r\n"), "554");
  Session good;
  good.hello();
  EXPECT_EQ(good.codes(std::string(kMailRcpt) + "RSET\r\n" + std::string(kMailRcpt) + "DATA\r\n"),
            "250 250 250 250 250 354");
}

TEST(ServerProtocol, DataBeforeAHeldBack354IsIllegal) {
  Session session;
  session.answer_at_once = false;
  session.hello();
  session.send(kMailRcpt);
  session.send("BDAT 3 LAST\r\na\r\n");
  EXPECT_EQ(session.codes(std::string(kMailRcpt) + "DATA\r\n"), "");
  session.send("too early\r\n.\r\n");
  EXPECT_EQ(session.discarded, 1);
  session.protocol->message_done(1, {250, {2, 0, 0}, "Queued"});
  EXPECT_EQ(session.codes("x"), "250 250 250 354 554");
  EXPECT_TRUE(session.protocol->finished());
}

TEST(ServerProtocol, RepliesLeaveInCommandOrderWhileCommitsPend) {
  Session session;
  session.answer_at_once = false;
  session.hello();
  std::string message = std::string(kMailRcpt) + "BDAT 3 LAST\r\na\r\n";
  EXPECT_EQ(session.codes(message), "250 250");
  EXPECT_EQ(session.codes(message), "");
  EXPECT_EQ(session.codes("NOOP\r\nQUIT\r\n"), "");
  EXPECT_FALSE(session.protocol->finished());
  session.protocol->message_done(2, {451, {4, 3, 0}, "second"});
  EXPECT_EQ(session.output(), "");
  session.protocol->message_done(1, {250, {2, 0, 0}, "first"});
  EXPECT_EQ(session.output(),
            "250 2.0.0 first\r\n250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n451 4.3.0 second\r\n"
            "250 2.0.0 Ok\r\n221 2.0.0 Bye\r\n");
  EXPECT_TRUE(session.protocol->finished());
}

TEST(ServerProtocol, TooManyPendingMessagesBlock) {
  ServerOptions options;
  options.max_pending_messages = 2;
  Session session(options);
  session.answer_at_once = false;
  session.hello();
  std::string message = std::string(kMailRcpt) + "BDAT 3 LAST\r\na\r\n";
  session.send(message + message + message);
  EXPECT_TRUE(session.blocked);
  EXPECT_EQ(session.bodies.size(), 2u);
  EXPECT_EQ(session.waiting, message);
  session.protocol->message_done(1, {250, {2, 0, 0}, "Queued"});
  session.blocked = false;
  session.send(std::string(session.waiting));
  EXPECT_EQ(session.bodies.size(), 3u);
  session.protocol->message_done(2, {250, {2, 0, 0}, "Queued"});
  session.protocol->message_done(3, {250, {2, 0, 0}, "Queued"});
  EXPECT_EQ(session.protocol->pending_messages(), 0u);
}

TEST(ServerProtocol, ErrorsAndJunkAreBounded) {
  Session errors;
  errors.hello();
  std::string codes;
  for (int i = 0; i < 100 && !errors.protocol->finished(); ++i) codes = errors.codes("FOO\r\n");
  EXPECT_EQ(codes, "500 421");
  EXPECT_EQ(errors.protocol->errors(), errors.options.max_errors + 1);
  Session junk;
  junk.hello();
  for (int i = 0; i < 1000 && !junk.protocol->finished(); ++i) codes = junk.codes("NOOP\r\n");
  EXPECT_EQ(codes, "421");
}

TEST(ServerProtocol, AnEndlessLineIsAnsweredAndClosed) {
  Session session;
  session.hello();
  std::string piece(65536, 'x');
  std::string codes;
  for (int i = 0; i < 100 && !session.protocol->finished(); ++i) {
    std::string more = session.codes(piece);
    codes.append(more.empty() ? "" : " ").append(more);
  }
  EXPECT_EQ(codes, " 500 421");
}

TEST(ServerProtocol, BadLineEndsInCommandsAreSyntaxErrors) {
  Session session;
  session.hello();
  EXPECT_EQ(session.codes("MAIL FROM:<a@example.com>\nRCPT TO:<b@example.org>\r\nNOOP\r\n"),
            "500 250");
  EXPECT_EQ(session.codes("NOOP\rNOOP\r\nNOOP\r\n"), "500 250");
  EXPECT_EQ(session.codes(std::string_view("NO\0OP\r\nNOOP\r\n", 13)), "500 250");
  EXPECT_EQ(session.codes("RCPT TO:<b@example.org>\r\n"), "503");
}

TEST(ServerProtocol, ShutDownWaitsForTheMessageBeingReceived) {
  Session idle;
  idle.hello();
  idle.protocol->shut_down(replies::kShuttingDown);
  EXPECT_TRUE(idle.protocol->finished());
  EXPECT_EQ(idle.output().substr(0, 3), "421");
  Session busy;
  busy.hello();
  busy.send(kMailRcpt);
  busy.send("DATA\r\n");
  busy.send("half");
  busy.protocol->shut_down(replies::kShuttingDown);
  EXPECT_FALSE(busy.protocol->finished());
  EXPECT_EQ(busy.codes("\r\n.\r\n"), "250 421");
  EXPECT_TRUE(busy.protocol->finished());
}

TEST(ServerProtocol, MessagesPerSessionAreLimitedWhenAsked) {
  ServerOptions options;
  options.max_messages = 1;
  Session session(options);
  session.hello();
  EXPECT_EQ(session.codes(std::string(kMailRcpt) + "BDAT 0 LAST\r\n"), "250 250 250");
  EXPECT_EQ(session.codes(kMailRcpt), "421");
}

TEST(ServerProtocol, ARefusedRecipientDoesNotRefuseTheOthers) {
  Session session;
  session.hello();
  EXPECT_EQ(session.codes("MAIL FROM:<a@example.com>\r\nRCPT TO:<x@refused.example>\r\n"
                          "RCPT TO:<\xc3\xbc@example.com>\r\nRCPT TO:<c@example.org>\r\nDATA\r\n"),
            "250 550 553 250 354");
  session.send(".\r\n");
  EXPECT_EQ(session.envelopes[0].recipients.size(), 1u);
}

// ---- REQUIRETLS (RFC 8689)

TEST(ServerProtocol, RequireTlsIsOfferedAndTakenBehindTlsOnly) {
  ServerOptions options;
  options.starttls = true;
  options.extensions.requiretls = true;
  Session session(options);
  EXPECT_EQ(session.send("EHLO c.example\r\n").find("REQUIRETLS"), std::string::npos);
  EXPECT_EQ(session.send("MAIL FROM:<a@b.example> REQUIRETLS\r\n").substr(0, 10), "530 5.7.10");
  EXPECT_EQ(session.codes("STARTTLS\r\n"), "220");
  session.protocol->secured();
  EXPECT_NE(session.send("EHLO c.example\r\n").find("REQUIRETLS\r\n"), std::string::npos);
  EXPECT_EQ(session.codes("MAIL FROM:<a@b.example> REQUIRETLS=yes\r\n"), "501");
  EXPECT_EQ(session.codes("MAIL FROM:<a@b.example> REQUIRETLS requiretls\r\n"), "501");
  EXPECT_EQ(session.codes("MAIL FROM:<a@b.example> RET=FULL requiretls\r\n"), "250");
  EXPECT_EQ(session.protocol->envelope().tls, mail::TlsWish::required);
  EXPECT_EQ(session.protocol->envelope().ret, mail::Ret::headers) << "the whole never goes back";
  EXPECT_EQ(session.codes("RSET\r\nMAIL FROM:<a@b.example>\r\n"), "250 250");
  EXPECT_EQ(session.protocol->envelope().tls, mail::TlsWish::none);
}

TEST(ServerProtocol, WithoutTlsRequireTlsIsUnknown) {
  Session session;
  session.codes("EHLO c.example\r\n");
  EXPECT_EQ(session.codes("MAIL FROM:<a@b.example> REQUIRETLS\r\n"), "555");
}

// ---- STARTTLS (RFC 3207)

ServerOptions with_starttls(bool required = false) {
  ServerOptions options;
  options.starttls = true;
  options.require_tls = required;
  return options;
}

TEST(StartTlsTest, IsOfferedInTheClearOnly) {
  Session session(with_starttls());
  EXPECT_NE(session.send("EHLO c.example\r\n").find("STARTTLS"), std::string::npos);
  EXPECT_EQ(session.codes("STARTTLS\r\n"), "220");
  EXPECT_EQ(session.tls_started, 1);
  session.protocol->secured();
  EXPECT_EQ(session.send("EHLO c.example\r\n").find("STARTTLS"), std::string::npos);
  EXPECT_EQ(session.codes("STARTTLS\r\n"), "503");
}

TEST(StartTlsTest, IsUnknownWithoutACertificate) {
  Session session;
  EXPECT_EQ(session.send("EHLO c.example\r\n").find("STARTTLS"), std::string::npos);
  EXPECT_EQ(session.codes("STARTTLS\r\n"), "502");
}

TEST(StartTlsTest, ForgetsWhatWasSaidBefore) {
  Session session(with_starttls());
  session.hello();
  session.codes("STARTTLS\r\n");
  session.protocol->secured();
  EXPECT_EQ(session.protocol->helo(), "");
  EXPECT_EQ(session.codes("MAIL FROM:<a@b.example>\r\n"), "503") << "EHLO comes again";
  session.hello();
  EXPECT_EQ(session.codes("MAIL FROM:<a@b.example>\r\n"), "250");
}

TEST(StartTlsTest, InputBehindItInTheClearEndsTheSession) {
  Session session(with_starttls());
  session.hello();
  EXPECT_EQ(session.codes("STARTTLS\r\nMAIL FROM:<evil@b.example>\r\n"), "554");
  EXPECT_EQ(session.tls_started, 0);
  EXPECT_EQ(session.protocol->state(), ServerProtocol::State::closing);
}

TEST(StartTlsTest, AStartedLineIsForgotten) {
  Session session(with_starttls());
  session.hello();
  EXPECT_EQ(session.codes("STARTTLS\r\n"), "220");
  EXPECT_EQ(session.codes("RSE"), "");  // passes by: it is not for us
  session.protocol->secured();
  EXPECT_EQ(session.codes("NOOP\r\n"), "250");
}

TEST(StartTlsTest, IsRefusedBeforeEhloAndInATransaction) {
  Session session(with_starttls());
  EXPECT_EQ(session.codes("STARTTLS\r\n"), "503");
  session.hello();
  EXPECT_EQ(session.codes("MAIL FROM:<a@b.example>\r\n"), "250");
  EXPECT_EQ(session.codes("STARTTLS\r\n"), "503");
  EXPECT_EQ(session.codes("RSET\r\n"), "250");
  EXPECT_EQ(session.codes("STARTTLS now\r\n"), "501");
  EXPECT_EQ(session.codes("STARTTLS\r\n"), "220");
}

TEST(StartTlsTest, RequiredItLetsNothingElsePass) {
  Session session(with_starttls(true));
  session.hello();
  EXPECT_EQ(session.codes("MAIL FROM:<a@b.example>\r\n"), "530");
  EXPECT_EQ(session.codes("RSET\r\n"), "530");
  EXPECT_EQ(session.codes("BDAT 4 LAST\r\nabcdNOOP\r\n"), "530 250");
  EXPECT_EQ(session.codes("STARTTLS\r\n"), "220");
  session.protocol->secured();
  session.hello();
  EXPECT_EQ(session.codes("MAIL FROM:<a@b.example>\r\n"), "250");
}

TEST(ServerProtocol, ACheckThatTakesTimeStopsTheSessionUntilItsAnswer) {
  Session session;
  session.hello();
  session.policy.mail = ServerPolicy::kLater;
  EXPECT_EQ(session.codes("MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\n"), "");
  EXPECT_TRUE(session.blocked);
  session.protocol->answer_mail({});
  EXPECT_EQ(session.protocol->state(), State::mail);
  session.blocked = false;
  EXPECT_EQ(session.codes(std::exchange(session.waiting, {})), "250 250");
  session.send("RSET\r\n");
  session.send("MAIL FROM:<a@example.com>\r\n");
  session.protocol->answer_mail({451, {4, 7, 1}, "Not now"});
  EXPECT_EQ(session.protocol->state(), State::ready);
  EXPECT_TRUE(session.output().starts_with("451 4.7.1"));
}

TEST(ServerProtocol, ChunksOutOfOrderAreRefusedAndPassBy) {
  Session session;
  EXPECT_EQ(session.codes("BDAT 5 LAST\r\nhelloNOOP\r\n"), "503 250");
  session.hello();
  EXPECT_EQ(session.codes("BDAT 5 LAST\r\nhelloNOOP\r\n", 3), "503 250");
  session.send("MAIL FROM:<a@example.com>\r\n");
  EXPECT_EQ(session.codes("BDAT 5 LAST\r\nhelloNOOP\r\n", 1), "554 250");
  EXPECT_EQ(session.codes("RCPT TO:<b@example.org>\r\nBDAT 5 LAST\r\nhello"), "250 250");
  EXPECT_EQ(session.bodies, std::vector<std::string>{"hello"});
}

TEST(ServerProtocol, AfterARefusedChunkOnlyRsetHelps) {
  ServerOptions options;
  options.max_message_size = 10;
  Session session(options);
  session.hello();
  session.send(kMailRcpt);
  EXPECT_EQ(session.codes("BDAT 11\r\nhello world"), "552");
  for (const char* command : {"MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>", "DATA", "BDAT 0 LAST"}) {
    SCOPED_TRACE(command);
    if (session.protocol->state() != State::bdat_failed) break;
    EXPECT_EQ(session.codes(std::string(command) + "\r\n"), "503");
  }
  session.send("RSET\r\n");
  EXPECT_EQ(session.codes(kMailRcpt), "250 250");
}

TEST(ServerProtocol, ADomainThatNoIdnaTakesIsRefused) {
  Session session;
  session.hello();
  // A zero width space alone: nothing is left of the label.
  EXPECT_EQ(session.codes("MAIL FROM:<a@\xe2\x80\x8b.example> SMTPUTF8\r\n").substr(0, 1), "5");
  EXPECT_EQ(session.codes("MAIL FROM:<a@b.example> SMTPUTF8\r\n"), "250");
  EXPECT_EQ(session.codes("RCPT TO:<a@\xe2\x80\x8b.example>\r\n").substr(0, 1), "5");
  EXPECT_EQ(session.codes("RCPT TO:<a@b\xc3\xbc.example>\r\n"), "250");
}

TEST(ServerProtocol, OutputIsAddedToWhatIsThere) {
  Session session;
  session.protocol->advance("NOOP\r\n");
  std::string out = "before ";
  session.protocol->take_output(out);
  EXPECT_EQ(out, "before 250 2.0.0 Ok\r\n");
}

TEST(ServerProtocol, EachStateHasANameOfItsOwn) {
  std::set<std::string_view> names;
  for (auto state = State::connected; state <= State::closing; state = State(static_cast<int>(state) + 1)) {
    EXPECT_FALSE(to_string(state).empty());
    EXPECT_TRUE(names.insert(to_string(state)).second) << to_string(state);
  }
  EXPECT_GE(names.size(), 12u);
}

// ---- AUTH (RFC 4954): the frame. What is said in it is tested with the sessions.

struct AuthPolicy final : ServerPolicy {
  std::string mechanisms = "PLAIN";
  Reply refusal = replies::kAuthNeedsTls;
  Reply verdict = replies::kAuthOk;
  std::vector<std::string> heard;
  int cancelled = 0;
  std::string_view auth_mechanisms() override { return mechanisms; }
  Reply auth_refusal() override { return refusal; }
  AuthStep auth_begin(std::string_view mechanism, const std::string* initial) override {
    heard.emplace_back(mechanism);
    if (!initial) return {{}, "tell me"};
    heard.push_back(*initial);
    return {verdict, {}};
  }
  AuthStep auth_respond(std::string_view response) override {
    heard.emplace_back(response);
    return {verdict, {}};
  }
  void auth_cancelled() override { ++cancelled; }
};

struct AuthDialogue {
  explicit AuthDialogue(bool ehlo = true) {
    options.hostname = "relay.example";
    options.extensions.auth = true;
    protocol.emplace(options, policy);
    protocol->greet();
    output();
    if (ehlo) capabilities = say("EHLO x");
  }
  std::string output() {
    std::string out;
    protocol->take_output(out);
    return out;
  }
  // `step`: octets a piece. Whether each octet of what was said was to be overwritten is kept in `secret`.
  std::string say(std::string line, size_t step = SIZE_MAX) {
    line += "\r\n";
    secret.clear();
    for (size_t at = 0; at < line.size();) {
      std::string piece = line.substr(at, step);
      auto taken = protocol->advance(piece);
      if (taken.consumed == 0) break;
      secret.append(taken.consumed, taken.secret ? 's' : '-');
      at += taken.consumed;
    }
    return output();
  }
  ServerOptions options;
  AuthPolicy policy;
  std::optional<ServerProtocol> protocol;
  std::string capabilities, secret;
};

TEST(Auth, IsAnnouncedOnlyWhereThePolicyHasMechanisms) {
  AuthDialogue with;
  EXPECT_NE(with.capabilities.find("250-AUTH PLAIN\r\n"), std::string::npos);
  with.policy.mechanisms.clear();
  EXPECT_EQ(with.say("EHLO x").find("AUTH"), std::string::npos);
  EXPECT_EQ(with.say("AUTH PLAIN AGEAYg==").substr(0, 3), "538");
  EXPECT_TRUE(with.policy.heard.empty());
}

TEST(Auth, AnInitialResponseAnEmptyOneAndNone) {
  AuthDialogue dialogue;
  dialogue.policy.verdict = replies::kAuthFailed;
  EXPECT_EQ(dialogue.say("auth plain YQBi").substr(0, 3), "535");
  EXPECT_EQ(dialogue.say("AUTH PLAIN =").substr(0, 3), "535");
  dialogue.policy.verdict = replies::kAuthOk;
  EXPECT_EQ(dialogue.say("AUTH PLAIN"), "334 dGVsbCBtZQ==\r\n");
  EXPECT_EQ(dialogue.say("YWI=").substr(0, 3), "235");
  EXPECT_EQ(dialogue.policy.heard, (std::vector<std::string>{"plain", std::string("a\0b", 3), "PLAIN", "", "PLAIN", "ab"}));
  EXPECT_TRUE(dialogue.protocol->authenticated());
  EXPECT_EQ(dialogue.say("AUTH PLAIN YQBi").substr(0, 9), "503 5.5.1");
}

TEST(Auth, BadBase64StarsAndLongLinesEndTheExchange) {
  AuthDialogue dialogue;
  for (auto [line, code] : {std::pair<std::string, const char*>{"*", "501 5.7.0"}, {"a", "501 5.5.2"}, {"YQ=", "501 5.5.2"},
                            {" *", "501 5.5.2"}, {std::string(12'287, 'A'), "500 5.5.6"}}) {
    EXPECT_EQ(dialogue.say("AUTH PLAIN").substr(0, 3), "334");
    EXPECT_EQ(dialogue.say(line, 1000).substr(0, 9), code) << line.substr(0, 20);
    EXPECT_EQ(dialogue.say("NOOP").substr(0, 3), "250");
  }
  EXPECT_EQ(dialogue.policy.cancelled, 5);
  EXPECT_EQ(dialogue.say("AUTH PLAIN").substr(0, 3), "334");
  EXPECT_EQ(dialogue.say(std::string(12'284, 'A'), 1000).substr(0, 3), "235");
}

TEST(Auth, TakesALineOfTwelveThousandOctetsAndNobodyElseDoes) {
  AuthDialogue dialogue;
  EXPECT_EQ(dialogue.say("AUTH PLAIN " + std::string(12'272, 'A')).substr(0, 3), "235");
  AuthDialogue other;
  EXPECT_EQ(other.say("NOOP " + std::string(4090, 'x')).substr(0, 3), "500");
  EXPECT_EQ(other.say("AUTH PLAIN " + std::string(12'280, 'A')).substr(0, 3), "500");
}

TEST(Auth, ComesBehindEhloAndNotInATransaction) {
  AuthDialogue dialogue(false);
  EXPECT_EQ(dialogue.say("AUTH PLAIN YQBi").substr(0, 9), "503 5.5.1");
  EXPECT_EQ(dialogue.say("HELO x").substr(0, 3), "250");
  EXPECT_EQ(dialogue.say("AUTH PLAIN YQBi").substr(0, 9), "503 5.5.1");
  EXPECT_EQ(dialogue.say("EHLO x").substr(0, 3), "250");
  EXPECT_EQ(dialogue.say("MAIL FROM:<a@example.org>").substr(0, 3), "250");
  EXPECT_EQ(dialogue.say("AUTH PLAIN YQBi").substr(0, 9), "503 5.5.1");
  EXPECT_EQ(dialogue.say("RCPT TO:<a@example.org>").substr(0, 3), "250");
  EXPECT_EQ(dialogue.say("AUTH PLAIN YQBi").substr(0, 9), "503 5.5.1");
  EXPECT_EQ(dialogue.say("RSET").substr(0, 3), "250");
  EXPECT_EQ(dialogue.say("AUTH PLAIN YQBi").substr(0, 3), "235");
}

TEST(Auth, IsForgottenWithTls) {
  AuthDialogue dialogue;
  dialogue.options.starttls = true;
  EXPECT_EQ(dialogue.say("AUTH PLAIN YQBi").substr(0, 3), "235");
  EXPECT_EQ(dialogue.say("STARTTLS").substr(0, 3), "220");
  dialogue.protocol->secured();
  EXPECT_FALSE(dialogue.protocol->authenticated());
  EXPECT_EQ(dialogue.say("EHLO x").substr(0, 3), "250");
  EXPECT_EQ(dialogue.say("AUTH PLAIN YQBi").substr(0, 3), "235");
}

TEST(Auth, TheThirdFailureEndsTheSession) {
  AuthDialogue dialogue;
  dialogue.policy.verdict = replies::kAuthFailed;
  EXPECT_EQ(dialogue.say("AUTH PLAIN YQBi").substr(0, 3), "535");
  EXPECT_EQ(dialogue.say("AUTH PLAIN YQBi").substr(0, 3), "535");
  EXPECT_NE(dialogue.say("AUTH PLAIN YQBi").find("421 4.7.0"), std::string::npos);
  EXPECT_TRUE(dialogue.protocol->finished());
}

TEST(Auth, AnAnswerThatComesLaterHoldsTheInputBack) {
  AuthDialogue dialogue;
  dialogue.policy.verdict = ServerPolicy::kLater;
  EXPECT_EQ(dialogue.say("AUTH PLAIN YQBi"), "");
  EXPECT_EQ(dialogue.protocol->advance("NOOP\r\n").event, Event::blocked);
  dialogue.protocol->answer_auth(replies::kAuthFailed);
  EXPECT_EQ(dialogue.output().substr(0, 3), "535");
  EXPECT_EQ(dialogue.say("AUTH PLAIN YQBi"), "");
  dialogue.protocol->shut_down(replies::kShuttingDown);
  EXPECT_EQ(dialogue.output().substr(0, 3), "421");
  dialogue.protocol->answer_auth(replies::kAuthOk);
  EXPECT_EQ(dialogue.output(), "");
}

// Receive buffers go to the log as they are.
TEST(Auth, EveryOctetOfAPasswordIsReportedAsSecretAtEverySplit) {
  for (size_t step = 1; step < 40; ++step) {
    AuthDialogue dialogue;
    dialogue.policy.verdict = replies::kAuthFailed;
    dialogue.say("AUTH PLAIN YWJjZGVmZ2hpamts", step);
    EXPECT_EQ(dialogue.secret.substr(11, 16), std::string(16, 's')) << step;
    dialogue.say("AUTH PLAIN", step);
    dialogue.say("YWJjZGVmZ2hpamts", step);
    EXPECT_EQ(dialogue.secret, std::string(18, 's')) << step;
    dialogue.say("MAIL FROM:<a@example.org>", step);
    EXPECT_EQ(dialogue.secret, std::string(27, '-')) << step;
  }
  AuthDialogue refused;
  refused.policy.mechanisms.clear();
  refused.say("AUTH PLAIN YWJjZGVmZ2hpamts");
  EXPECT_EQ(refused.secret, std::string(29, 's'));
}

TEST(Auth, TheParameterOfMailIsTakenWhereAuthIsThere) {
  AuthDialogue dialogue;
  EXPECT_EQ(dialogue.say("MAIL FROM:<a@example.org> AUTH=<>").substr(0, 3), "250");
  dialogue.say("RSET");
  EXPECT_EQ(dialogue.say("MAIL FROM:<a@example.org> AUTH=a+2Bb@example.org").substr(0, 3), "250");
  dialogue.say("RSET");
  EXPECT_EQ(dialogue.say("MAIL FROM:<a@example.org> AUTH=").substr(0, 3), "501");
  EXPECT_EQ(dialogue.say("MAIL FROM:<a@example.org> AUTH=a+zz").substr(0, 3), "501");
  Session without;
  without.send("EHLO x\r\n");
  EXPECT_EQ(without.send("MAIL FROM:<a@example.org> AUTH=<>\r\n").substr(0, 3), "555");
}

}  // namespace
}  // namespace millrace::smtp
