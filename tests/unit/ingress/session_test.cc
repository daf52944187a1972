// Dialogues: what a client sends, what it hears, and what message comes of it.
#include "config/shaping.h"
#include "queue/state.h"
#include "rig.h"

namespace millrace::ingress {
namespace {

using testing::Test;

const std::string kPlain = "Subject: hello\r\nFrom: a@example.org\r\nDate: Sat, 21 Nov 2026 10:00:00 +0000\r\n"
                           "Message-ID: <1@example.org>\r\n\r\nHello\r\n";

bool starts(const std::string& text, std::string_view with) { return text.starts_with(with); }

TEST(Session, AnswersAMessageWithItsSpoolIdOnceItIsStored) {
  Rig rig;
  rig.start();
  Client& client = rig.introduce();
  std::string reply = rig.submit(client, kPlain);
  ASSERT_TRUE(rig.wait_messages(1));
  EXPECT_EQ(reply, "250 2.0.0 Ok: queued as " + rig.message().id.to_string() + "\r\n");
  EXPECT_EQ(rig.message().envelope.reverse_path, "a@example.org");
  ASSERT_EQ(rig.message().envelope.recipients.size(), 1u);
  EXPECT_EQ(rig.message().envelope.recipients[0].domain, "example.net");
  EXPECT_EQ(rig.message().envelope.client, "198.51.100.7");
  EXPECT_EQ(rig.message().envelope.message_id, "<1@example.org>");
  EXPECT_EQ(rig.message().envelope.expires_ms - rig.message().envelope.received_ms,
            rig.draft.expire_after_ms);
  std::string content = rig.content();
  EXPECT_TRUE(starts(content, "Received: by relay.example.org")) << content;
  EXPECT_NE(content.find(rig.message().id.to_string()), std::string::npos);
  EXPECT_EQ(content.find("198.51.100.7"), std::string::npos) << "hide-client is the default";
  EXPECT_TRUE(content.ends_with("\r\n" + kPlain)) << content;
  EXPECT_EQ(rig.stats().body_bytes_copied, 0u);
  EXPECT_EQ(rig.stats().messages, 1u);
  EXPECT_TRUE(starts(client.talk("QUIT"), "221 "));
  EXPECT_TRUE(client.wait_end());
}

TEST(Session, SaysNothingBeforeTheSpoolHasAnswered) {
  Rig rig;
  rig.spool.hold = true;
  rig.start();
  Client& client = rig.introduce();
  client.send("MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n");
  client.hear(3);
  client.send(kPlain + ".\r\n");
  rig.world.run_for(5 * kSecond);
  EXPECT_EQ(client.heard, "");
  EXPECT_TRUE(rig.intake.messages.empty());
  EXPECT_TRUE(rig.sink.events.empty());
  ASSERT_EQ(rig.spool.waiting.size(), 1u);
  rig.spool.release_all();
  EXPECT_TRUE(starts(client.hear(), "250 2.0.0 Ok: queued as "));
  EXPECT_EQ(rig.intake.messages.size(), 1u);
}

TEST(Session, AnySplitOfTheInputGivesTheSameMessage) {
  // Dots at line starts, a lone dot, a line end split everywhere, and the end of data split too.
  const std::string body =
      "Subject: dots\r\nDate: x\r\nMessage-ID: <2@x>\r\nBcc: secret@example.net\r\n\r\n"
      "..leading\r\nplain\r\n...\r\n..\r\nin . between\r\n\r\n..x\r\n";
  const std::string canonical =
      "Subject: dots\r\nDate: x\r\nMessage-ID: <2@x>\r\n\r\n"
      ".leading\r\nplain\r\n..\r\n.\r\nin . between\r\n\r\n.x\r\n";
  for (uint64_t seed = 1; seed <= 25; ++seed) {
    SCOPED_TRACE(seed);
    Rig rig(seed);
    rig.draft.received = config::ReceivedHeader::off;
    rig.world.faults().tiny_segment = 0.5;
    rig.start();
    Client& client = rig.introduce();
    client.send_split("MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n",
                      1 + seed % 7);
    client.hear(3);
    client.send_split(body + ".\r\nNOOP\r\n", 1 + seed % 9);
    EXPECT_TRUE(starts(client.hear(2), "250 2.0.0 Ok: queued as "));
    ASSERT_TRUE(rig.wait_messages(1));
    EXPECT_EQ(rig.content(), canonical);

    // The same content by BDAT, its chunks cut in the middle of line ends.
    size_t first = 1 + rig.world.chance().below(canonical.size() - 1);
    std::string input = "MAIL FROM:<a@example.org> BODY=8BITMIME\r\nRCPT TO:<b@example.net>\r\n";
    input += "BDAT " + std::to_string(first) + "\r\n" + canonical.substr(0, first);
    input += "BDAT " + std::to_string(canonical.size() - first) + " LAST\r\n" + canonical.substr(first);
    client.send_split(input, 1 + seed % 11);
    std::string replies = client.hear(4);
    EXPECT_NE(replies.find("Ok: queued as "), std::string::npos) << replies;
    ASSERT_TRUE(rig.wait_messages(2));
    EXPECT_EQ(rig.content(1), canonical);
  }
}

TEST(Session, RepliesLeaveInCommandOrderHoweverCommitsEnd) {
  Rig rig;
  rig.spool.hold = true;
  rig.start();
  Client& client = rig.introduce();
  for (int i = 0; i < 3; ++i) {
    std::string content = "Subject: " + std::to_string(i) + "\r\n\r\nx\r\n";
    client.send("MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nBDAT " +
                std::to_string(content.size()) + " LAST\r\n" + content);
  }
  client.send("NOOP\r\n");
  ASSERT_TRUE(rig.world.run_until([&] { return rig.spool.waiting.size() == 3; },
                                  rig.world.now() + 10 * kSecond));
  rig.spool.release(2);
  rig.world.run_for(kSecond);
  EXPECT_EQ(client.hear(2), "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n");
  EXPECT_EQ(client.heard, "") << "the third message's reply waits for the first";
  rig.spool.release(1);
  rig.world.run_for(kSecond);
  EXPECT_EQ(client.heard, "");
  rig.spool.release(0);
  std::string replies = client.hear(8);
  ASSERT_EQ(rig.intake.messages.size(), 3u);
  // Order of acceptance was 2, 1, 0; order of replies is 0, 1, 2.
  size_t first = replies.find(rig.message(2).id.to_string());
  size_t second = replies.find(rig.message(1).id.to_string());
  size_t third = replies.find(rig.message(0).id.to_string());
  EXPECT_LT(first, second);
  EXPECT_LT(second, third);
  EXPECT_NE(third, std::string::npos);
}

TEST(Session, RepliesToOneGroupLeaveInOneSend) {
  Rig rig;
  reactor::Faults& faults = rig.world.faults();
  faults.tiny_segment = faults.short_send = faults.multishot_end = 0;
  rig.start();
  Client& client = rig.introduce();
  size_t before = client.receives;
  client.send("MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nRCPT TO:<c@example.net>\r\nDATA\r\n");
  client.hear(4);
  EXPECT_EQ(client.receives, before + 1);
  // The end of a message and the next envelope in one piece, too.
  client.send(kPlain + ".\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n");
  client.hear(4);
  EXPECT_EQ(client.receives, before + 2);
}

TEST(Session, ParsesOnlySoFarAheadOfPendingCommits) {
  Rig rig;
  rig.spool.hold = true;
  rig.start();
  Client& client = rig.introduce();
  constexpr int kMessages = 20;
  std::string content = "Subject: x\r\n\r\n" + std::string(900, 'x') + "\r\n";
  for (int i = 0; i < kMessages; ++i) {
    client.send("MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nBDAT " +
                std::to_string(content.size()) + " LAST\r\n" + content);
  }
  rig.world.run_for(5 * kSecond);
  EXPECT_EQ(rig.spool.waiting.size(), 8u);
  EXPECT_EQ(rig.stats().sessions_paused, 1u);
  rig.world.run_for(1000 * kSecond);  // our delay is not the client's time-out
  EXPECT_FALSE(client.ended);
  rig.spool.release(0);
  ASSERT_TRUE(rig.wait_messages(1));
  rig.world.run_for(kSecond);
  EXPECT_EQ(rig.spool.waiting.size(), 8u);
  rig.spool.hold = false;
  rig.spool.release_all();
  EXPECT_TRUE(rig.wait_messages(kMessages));
  client.hear(3 * kMessages);
  EXPECT_EQ(rig.stats().sessions_paused, 0u);
}

TEST(Session, AConnectionLostBeforeTheEndOfDataLeavesNothing) {
  for (bool reset : {false, true}) {
    Rig rig;
    rig.start();
    Client& client = rig.introduce();
    client.talk("MAIL FROM:<a@example.org>");
    client.talk("RCPT TO:<b@example.net>");
    client.talk("DATA");
    client.send(kPlain + ".");
    rig.world.run_for(kSecond);
    client.close(reset);
    rig.world.run_for(5 * kSecond);
    EXPECT_EQ(rig.stats().connections_open, 0u);
    EXPECT_EQ(rig.stats().discarded, 1u);
    EXPECT_TRUE(rig.spool.metadata.empty());
    EXPECT_EQ(rig.acceptance->submissions(), 0u);
  }
}

TEST(Session, AConnectionLostAfterTheEndOfDataLosesNothing) {
  Rig rig;
  rig.spool.hold = true;
  rig.start();
  Client& client = rig.introduce();
  client.talk("MAIL FROM:<a@example.org>");
  client.talk("RCPT TO:<b@example.net>");
  client.talk("DATA");
  client.send(kPlain + ".\r\n");
  ASSERT_TRUE(rig.world.run_until([&] { return rig.spool.waiting.size() == 1; },
                                  rig.world.now() + 10 * kSecond));
  client.close(true);
  ASSERT_TRUE(rig.world.run_until([&] { return rig.stats().connections_open == 0; },
                                  rig.world.now() + 10 * kSecond));
  rig.spool.release_all();
  ASSERT_TRUE(rig.wait_messages(1));
  EXPECT_TRUE(rig.content().ends_with(kPlain));
}

TEST(Session, AClientThatSendsAllAndHalfClosesGetsItsReplies) {
  Rig rig;
  rig.start();
  Client& client = rig.introduce();
  std::string content = "Subject: x\r\n\r\nx\r\n";
  client.send("MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nBDAT " +
              std::to_string(content.size()) + " LAST\r\n" + content);
  client.finish();
  std::string replies = client.hear(3);
  EXPECT_NE(replies.find("Ok: queued as "), std::string::npos);
  EXPECT_TRUE(client.wait_end());
  EXPECT_EQ(client.end_error, 0);
}

TEST(Session, StrangersMayNotRelay) {
  Rig rig;
  rig.start();
  Client& client = rig.introduce("203.0.113.9");
  EXPECT_TRUE(starts(client.talk("MAIL FROM:<a@example.org>"), "550 5.7.1 "));
  EXPECT_TRUE(starts(client.talk("RCPT TO:<b@example.net>"), "503 "));
  EXPECT_EQ(rig.stats().rejected_relay, 1u);
  ASSERT_EQ(rig.sink.events.size(), 1u);
  EXPECT_EQ(rig.sink.events[0].type, events::Type::rejected);
  EXPECT_EQ(rig.sink.events[0].code, 550);
  EXPECT_EQ(rig.sink.events[0].client, "203.0.113.9");
  EXPECT_EQ(rig.sink.sequences[0], 0u);
}

TEST(Session, AReloadReachesARunningSessionAtItsNextMail) {
  Rig rig;
  rig.start();
  Client& client = rig.introduce();
  EXPECT_TRUE(starts(rig.submit(client, kPlain), "250 "));
  EXPECT_TRUE(starts(client.talk("MAIL FROM:<a@example.org>"), "250 "));
  rig.draft.relay_from.clear();
  rig.adopt();
  EXPECT_TRUE(starts(client.talk("RCPT TO:<b@example.net>"), "250 ")) << "a transaction keeps its own";
  EXPECT_TRUE(starts(client.talk("RSET"), "250 "));
  EXPECT_TRUE(starts(client.talk("MAIL FROM:<a@example.org>"), "550 5.7.1 "));
}

// ---- headers

TEST(Session, MetadataHeadersActAndAreStripped) {
  Rig rig;
  rig.draft.received = config::ReceivedHeader::off;
  rig.start();
  Client& client = rig.introduce();
  std::string reply = rig.submit(client,
                                 "X-Virtual-MTA: pool\r\n 1\r\nDate: x\r\nX-JOB: spring\r\n"
                                 "x-envid: A+B\r\nMessage-ID: <3@x>\r\nX-Expire-After: 4h\r\n"
                                 "X-Job: second\r\nReturn-Path: <x@y>\r\n\r\nbody\r\n");
  EXPECT_TRUE(starts(reply, "250 ")) << reply;
  ASSERT_TRUE(rig.wait_messages(1));
  const mail::Envelope& envelope = rig.message().envelope;
  EXPECT_EQ(envelope.pool, "pool 1");
  EXPECT_EQ(envelope.job, "spring");
  EXPECT_EQ(envelope.envid, "A+2BB");
  EXPECT_EQ(envelope.expires_ms - envelope.received_ms, 4 * 3'600'000);
  EXPECT_EQ(rig.content(), "Date: x\r\nMessage-ID: <3@x>\r\n\r\nbody\r\n");
  Result<mail::Metadata> stored = mail::decode_metadata(rig.spool.metadata.at(0));
  ASSERT_TRUE(stored.ok());
  EXPECT_EQ(stored->envelope.pool, "pool 1");
  EXPECT_EQ(stored->content.cuts.size(), rig.message().content.cuts.size());
}

TEST(Session, RulesSayWhoseMailItIsAndTheFirstOneDecides) {
  Rig rig;
  auto rules = config::Shaping::parse(R"(
[[rule]]
match = { sender = "*@other.example" }
tenant = "other"
[[rule]]
match = { client = ["198.51.100.0/24"], recipient = "*@EXAMPLE.net" }
tenant = "acme"
pool = "bulk"
[[rule]]
match = { job = "spring*", pool = "mine" }
tenant = "late"
job = "season"
)", "shaping.toml", {});
  ASSERT_TRUE(rules.ok()) << rules.error().text;
  rig.draft.shaping_rules = *rules;
  rig.start();
  Client& client = rig.introduce();
  std::string reply = rig.submit(client, "X-Virtual-MTA: mine\r\nX-Job: spring-1\r\n\r\nbody\r\n");
  EXPECT_TRUE(starts(reply, "250 ")) << reply;
  ASSERT_TRUE(rig.wait_messages(1));
  EXPECT_EQ(rig.message().envelope.tenant, "acme");
  EXPECT_EQ(rig.message().envelope.pool, "bulk");
  EXPECT_EQ(rig.message().envelope.job, "season") << "rules see the pool that the message came with";
}

TEST(Session, ATenantsQuotaRefusesWholeMessagesAndSaysWhenThereIsMore) {
  Rig rig;
  auto rules = config::Shaping::parse(R"(
[[rule]]
match = { sender = "*@example.org" }
tenant = "acme"
[tenant."*"]
intake-rate = ["3/h", "50/d"]
)", "shaping.toml", {});
  ASSERT_TRUE(rules.ok()) << rules.error().text;
  rig.draft.shaping_rules = *rules;
  rig.start();
  Client& client = rig.introduce();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(starts(rig.submit(client, kPlain), "250 "));
  std::string reply = rig.submit(client, kPlain);
  EXPECT_TRUE(starts(reply, "452 4.7.1 The 3/h recipients of tenant acme are used up; more from 20")) << reply;
  EXPECT_NE(reply.find("Z on"), reply.npos) << reply;
  EXPECT_EQ(rig.stats().rejected_quota, 1u);
  rig.world.run_for(3700 * kSecond);
  Client& later = rig.introduce();
  // What the disk does not take is given back.
  rig.spool.fail_with = ENOSPC;
  EXPECT_TRUE(starts(rig.submit(later, kPlain), "452 4.3.1"));
  rig.spool.fail_with = 0;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(starts(rig.submit(later, kPlain), "250 ")) << i;
  EXPECT_TRUE(starts(rig.submit(later, kPlain), "452 4.7.1"));
}

TEST(Session, AReportIsInNoTenantsQuota) {
  Rig rig;
  auto rules = config::Shaping::parse("[tenant.\"*\"]\nintake-rate = \"1/h\"\n", "shaping.toml", {});
  ASSERT_TRUE(rules.ok()) << rules.error().text;
  rig.draft.shaping_rules = *rules;
  rig.start();
  Injector injector(*rig.acceptance);
  const std::string text = "Subject: failed\r\n\r\nsorry\r\n";
  for (bool report : {true, true, false, false, true}) {
    Injection injection;
    bool answered = false;
    injection.owner = &answered;
    injection.done = [](void* owner, Injection&) { *static_cast<bool*>(owner) = true; };
    injection.envelope.tenant = "acme";
    injection.envelope.reverse_path = report ? "" : "a@example.org";
    injection.envelope.recipients.resize(1);
    injection.envelope.recipients[0].address = "b@example.net";
    injection.content = text;
    injection.report = report;
    injector.inject(injection);
    ASSERT_TRUE(rig.world.run_until([&] { return answered; }, rig.world.now() + 30 * kSecond));
    EXPECT_EQ(injection.code, report || rig.stats().rejected_quota == 0 ? 250 : 452) << injection.text;
  }
  EXPECT_EQ(rig.stats().rejected_quota, 1u);
}

TEST(Session, ALifetimeNeverLengthensAndMustBeReadable) {
  Rig rig;
  rig.start();
  Client& client = rig.introduce();
  EXPECT_TRUE(starts(rig.submit(client, "X-Expire-After: 90d\r\n\r\nx\r\n"), "250 "));
  ASSERT_TRUE(rig.wait_messages(1));
  EXPECT_EQ(rig.message().envelope.expires_ms - rig.message().envelope.received_ms,
            rig.draft.expire_after_ms);
  for (const char* bad : {"soon", "4x", "-1h", "0s", ""}) {
    std::string reply =
        rig.submit(client, std::string("X-Expire-After: ") + bad + "\r\n\r\nx\r\n");
    EXPECT_TRUE(starts(reply, "554 5.6.0 X-Expire-After: ")) << reply;
  }
  EXPECT_EQ(rig.stats().rejected_headers, 5u);
  EXPECT_TRUE(starts(rig.submit(client, kPlain), "250 ")) << "state is clean after a refusal";
}

TEST(Session, MissingHeadersAreAddedAndPresentOnesKept) {
  Rig rig;
  rig.start();
  Client& client = rig.introduce();
  rig.submit(client, "Subject: x\r\n\r\nbody\r\n");
  ASSERT_TRUE(rig.wait_messages(1));
  std::string content = rig.content();
  EXPECT_NE(content.find("\r\nDate: Thu, 01 Jan 2026 00:00:"), std::string::npos) << content;
  EXPECT_NE(content.find(" +0000\r\n"), std::string::npos);
  EXPECT_NE(content.find("\r\nMessage-ID: <"), std::string::npos);
  EXPECT_NE(rig.message().envelope.message_id, "");
  rig.draft.add_missing_headers = false;
  rig.adopt();
  rig.submit(client, "Subject: x\r\n\r\nbody\r\n");
  ASSERT_TRUE(rig.wait_messages(2));
  EXPECT_EQ(rig.content(1).find("Date:"), std::string::npos);
}

TEST(Session, AMailLoopEndsAtAHundredReceived) {
  Rig rig;
  rig.start();
  Client& client = rig.introduce();
  std::string trace;
  for (int i = 0; i < 100; ++i) trace += "Received: from a by b; x\r\n";
  EXPECT_TRUE(starts(rig.submit(client, trace + "\r\nx\r\n"), "250 "));
  std::string reply = rig.submit(client, "Received: one more\r\n" + trace + "\r\nx\r\n");
  EXPECT_TRUE(starts(reply, "554 5.4.6 ")) << reply;
  EXPECT_EQ(rig.stats().rejected_loop, 1u);
}

// ---- bad lines

TEST(Session, BadLinesAreRefusedByLineAndOctet) {
  Rig rig;
  rig.start();
  Client& client = rig.introduce();
  std::string reply = rig.submit(client, "Subject: x\r\n\r\nab\ncd\r\n");
  EXPECT_EQ(reply, "554 5.6.0 bare LF in line 3, octet 3\r\n");
  // A dot between bare LFs ends nothing: the "command" after it is content.
  reply = rig.submit(client, "Subject: x\r\n\r\nab\n.\nMAIL FROM:<smuggled@example.org>\r\n");
  EXPECT_TRUE(starts(reply, "554 5.6.0 bare LF")) << reply;
  reply = rig.submit(client, "Subject: x\r\n\r\n" + std::string(1200, 'x') + "\r\n");
  EXPECT_TRUE(starts(reply, "554 5.6.0 ")) << reply;
  EXPECT_EQ(rig.stats().rejected_bad_lines, 3u);
  EXPECT_TRUE(rig.intake.messages.empty());
  EXPECT_TRUE(starts(rig.submit(client, kPlain), "250 "));
}

TEST(Session, BadLinesAreMendedWhenAskedTo) {
  Rig rig;
  rig.draft.on_bad_lines = config::BadLines::fix;
  rig.draft.received = config::ReceivedHeader::off;
  rig.start();
  Client& client = rig.introduce();
  std::string bad = "Date: x\r\nMessage-ID: <4@x>\r\nBcc: s\r\n\r\nab\n..cd\r\ne\rf\r\n";
  EXPECT_TRUE(starts(rig.submit(client, bad), "250 "));
  ASSERT_TRUE(rig.wait_messages(1));
  EXPECT_EQ(rig.content(), "Date: x\r\nMessage-ID: <4@x>\r\n\r\nab\r\n..cd\r\ne\r\nf\r\n");
  EXPECT_GT(rig.stats().body_bytes_copied, 0u);

  rig.draft.on_bad_lines = config::BadLines::tag;
  rig.adopt();
  EXPECT_TRUE(starts(rig.submit(client, bad), "250 "));
  ASSERT_TRUE(rig.wait_messages(2));
  EXPECT_TRUE(starts(rig.content(1), "X-Millrace-Bad-Lines: bare LF in line 5, octet 3\r\nDate: x"))
      << rig.content(1);
  EXPECT_EQ(rig.stats().bad_lines_fixed, 2u);
  EXPECT_EQ(rig.sink.events.back().reason, "bare LF in line 5, octet 3");
}

// ---- limits

TEST(Session, TooManyRecipientsAreToldSo) {
  Rig rig;
  rig.draft.max_recipients = 100;
  rig.start();
  Client& client = rig.introduce();
  client.talk("MAIL FROM:<a@example.org>");
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(starts(client.talk("RCPT TO:<b" + std::to_string(i) + "@example.net>"), "250 "));
  }
  EXPECT_TRUE(starts(client.talk("RCPT TO:<c@example.net>"), "452 4.5.3 "));
  client.talk("DATA");
  client.send(kPlain + ".\r\n");
  EXPECT_TRUE(starts(client.hear(), "250 "));
  ASSERT_TRUE(rig.wait_messages(1));
  EXPECT_EQ(rig.message().envelope.recipients.size(), 100u);
  EXPECT_EQ(rig.spool.reserved, 100u);
}

TEST(Session, AMessageOverTheLimitCostsNothing) {
  Rig rig;
  rig.draft.max_message_size = 100'000;
  rig.start();
  Client& client = rig.introduce();
  EXPECT_TRUE(starts(client.talk("MAIL FROM:<a@example.org> SIZE=100001"), "552 5.3.4 "));
  std::string big = "Subject: x\r\n\r\n";
  for (int i = 0; i < 5000; ++i) big += std::string(70, 'x') + "\r\n";
  EXPECT_TRUE(starts(rig.submit(client, big), "552 5.3.4 "));
  EXPECT_EQ(rig.stats().rejected_size, 1u);
  EXPECT_EQ(rig.sink.events.back().code, 552);
  EXPECT_TRUE(starts(rig.submit(client, kPlain), "250 "));
  ASSERT_EQ(rig.intake.messages.size(), 1u);
}

TEST(Session, AnEndlessLineEndsInAReplyAndCostsNoMemory) {
  Rig rig;
  rig.start();
  Client& client = rig.introduce();
  std::string block(100'000, 'x');
  uint64_t most = 0;
  for (int i = 0; i < 100 && !client.ended; ++i) {
    client.send(block);
    rig.world.run_for(kSecond);
    most = std::max(most, rig.io->buffers(reactor::BufferGroup::ingress).bytes_in_use());
  }
  EXPECT_TRUE(client.wait_end());
  EXPECT_TRUE(starts(client.heard, "500 ") || starts(client.heard, "421 ")) << client.heard;
  EXPECT_LT(most, 4u << 20);
}

TEST(Session, TooManyErrorsEndTheSession) {
  Rig rig;
  rig.draft.max_errors = 5;
  rig.start();
  Client& client = rig.introduce();
  std::string replies;
  for (int i = 0; i < 10 && !client.ended; ++i) {
    client.send("BLAH\r\n");
    rig.world.run_for(kSecond);
  }
  EXPECT_TRUE(client.wait_end());
  EXPECT_NE(client.heard.find("421 4.7.0 Too many errors"), std::string::npos) << client.heard;
}

TEST(Session, WhoSpeaksWithinAMillisecondIsRefusedWheneverItConnects) {
  // Wherever between two ticks of the timers the connection comes.
  for (int64_t offset_ns = 0; offset_ns < 1'000'000; offset_ns += 100'000) {
    Rig rig;
    rig.world.faults().latency_min_ns = rig.world.faults().latency_max_ns = 300'000;
    rig.start();
    rig.world.run_for(offset_ns);
    Client& client = rig.connect();
    client.send("EHLO early.example.org\r\n");
    EXPECT_TRUE(client.wait_end());
    EXPECT_TRUE(starts(client.heard, "554 ")) << offset_ns << ": " << client.heard;
  }
}

TEST(Session, WhoSpeaksBeforeTheGreetingIsRefused) {
  Rig rig;
  rig.world.faults().latency_min_ns = rig.world.faults().latency_max_ns = 1000;
  rig.start();
  Client& client = rig.connect();
  client.send("EHLO early.example.org\r\nMAIL FROM:<a@example.org>\r\n");
  EXPECT_TRUE(client.wait_end());
  EXPECT_TRUE(starts(client.heard, "554 ")) << client.heard;
  EXPECT_EQ(client.heard.find("250"), std::string::npos);
  EXPECT_EQ(rig.stats().early_talkers, 1u);
}

TEST(Session, AClientThatNeverReadsIsNotAnsweredWithoutEnd) {
  reactor::SimOptions options;
  options.socket_bytes_min = options.socket_bytes_max = 4096;
  Rig rig(3, options);
  rig.draft.max_recipients = 10;
  rig.draft.command_timeout_ms = 20'000;
  rig.start();
  Client& client = rig.introduce();
  client.talk("MAIL FROM:<a@example.org>");
  client.pause();
  std::string flood;
  for (int i = 0; i < 20'000; ++i) flood += "RCPT TO:<b@example.net>\r\n";
  client.send(flood);
  rig.world.run_for(10 * kSecond);
  EXPECT_LT(rig.io->buffers(reactor::BufferGroup::ingress).bytes_in_use(), 4u << 20);
  rig.world.run_for(60 * kSecond);
  EXPECT_EQ(rig.stats().connections_open, 0u) << "it neither reads nor ends";
  client.resume();
}

// ---- admission

TEST(Session, AMailThatMustWaitIsAnsweredWhenAdmitted) {
  Rig rig;
  rig.start();
  rig.intake.admission = queue::Admission::later;
  Client& client = rig.introduce();
  client.send("MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n");
  rig.world.run_for(8 * kSecond);
  EXPECT_EQ(client.heard, "");
  EXPECT_EQ(rig.intake.waiting(), 1u);
  rig.intake.answer_waiters(false);
  std::string replies = client.hear(3);
  EXPECT_NE(replies.find("354"), std::string::npos) << replies;
  client.send(kPlain + ".\r\n");
  EXPECT_TRUE(starts(client.hear(), "250 "));
  EXPECT_EQ(rig.stats().admission_waits, 1u);
}

TEST(Session, AMailThatIsNotAdmittedGets452) {
  Rig rig;
  rig.start();
  rig.intake.admission = queue::Admission::later;
  Client& client = rig.introduce();
  client.send("MAIL FROM:<a@example.org>\r\n");
  rig.world.run_for(kSecond);
  rig.intake.answer_waiters(true);
  EXPECT_EQ(client.hear(), "452 4.3.1 waited in vain\r\n");
  rig.intake.admission = queue::Admission::refused;
  EXPECT_EQ(client.talk("MAIL FROM:<a@example.org>"), "452 4.3.1 no room\r\n");
  rig.intake.admission = queue::Admission::now;
  EXPECT_TRUE(starts(rig.submit(client, kPlain), "250 "));
  EXPECT_EQ(rig.stats().rejected_admission, 2u);
}

TEST(Session, AClientThatLeavesWhileWaitingLeavesTheQueue) {
  Rig rig;
  rig.start();
  rig.intake.admission = queue::Admission::later;
  Client& client = rig.introduce();
  client.send("MAIL FROM:<a@example.org>\r\n");
  ASSERT_TRUE(rig.world.run_until([&] { return rig.intake.waiting() == 1; },
                                  rig.world.now() + 10 * kSecond));
  rig.listener->stop();
  rig.world.run_for(5 * kSecond);
  EXPECT_EQ(rig.intake.waiting(), 0u);
  EXPECT_EQ(rig.stats().connections_open, 0u);
}

// ---- the spool fails

TEST(Session, AStoreThatFailsIsATemporaryFailure) {
  Rig rig;
  rig.start();
  Client& client = rig.introduce();
  rig.spool.fail_with = EIO;
  EXPECT_TRUE(starts(rig.submit(client, kPlain), "451 4.3.0 "));
  rig.spool.fail_with = ENOSPC;
  EXPECT_TRUE(starts(rig.submit(client, kPlain), "452 4.3.1 "));
  rig.spool.fail_with = 0;
  rig.spool.full = true;
  EXPECT_TRUE(starts(rig.submit(client, kPlain), "452 4.3.1 "));
  rig.spool.full = false;
  EXPECT_TRUE(starts(rig.submit(client, kPlain), "250 "));
  EXPECT_EQ(rig.stats().rejected_spool, 3u);
  EXPECT_EQ(rig.intake.messages.size(), 1u);
}

TEST(Session, WhatCouldNotBeVoidedIsNotAnswered) {
  Rig rig;
  rig.start();
  Client& client = rig.introduce();
  rig.spool.fail_with = EIO;
  rig.spool.close_silently = true;
  client.talk("MAIL FROM:<a@example.org>");
  client.talk("RCPT TO:<b@example.net>");
  client.talk("DATA");
  client.send(kPlain + ".\r\n");
  EXPECT_TRUE(client.wait_end());
  EXPECT_EQ(client.heard, "");
  EXPECT_TRUE(rig.intake.messages.empty());
}

// ---- time

TEST(Session, ASilentClientIsTimedOut) {
  Rig rig;
  rig.start();
  Client& client = rig.introduce();
  rig.world.run_for(299 * kSecond);
  EXPECT_FALSE(client.ended);
  EXPECT_TRUE(starts(client.talk("NOOP"), "250 "));
  rig.world.run_for(299 * kSecond);
  EXPECT_FALSE(client.ended) << "the time counts from the last reply";
  EXPECT_TRUE(client.wait_end(5 * kSecond));
  EXPECT_TRUE(starts(client.heard, "421 4.4.2 ")) << client.heard;
}

TEST(Session, ALineThatTricklesIsTimedOut) {
  Rig rig;
  rig.start();
  Client& client = rig.introduce();
  for (int i = 0; i < 40 && !client.ended; ++i) {
    client.send("N");
    rig.world.run_for(10 * kSecond);
  }
  EXPECT_TRUE(client.ended);
  EXPECT_TRUE(starts(client.heard, "421 4.4.2 ")) << client.heard;
}

TEST(Session, DataHasAPauseLimitAndATotalLimit) {
  Rig rig;
  rig.start();
  Client& stalls = rig.introduce();
  stalls.talk("MAIL FROM:<a@example.org>");
  stalls.talk("RCPT TO:<b@example.net>");
  stalls.talk("DATA");
  stalls.send("Subject: x\r\n");
  rig.world.run_for(179 * kSecond);
  EXPECT_FALSE(stalls.ended);
  EXPECT_TRUE(stalls.wait_end(5 * kSecond));
  EXPECT_TRUE(starts(stalls.heard, "421 4.4.2 ")) << stalls.heard;

  Client& trickles = rig.introduce();
  trickles.talk("MAIL FROM:<a@example.org>");
  trickles.talk("RCPT TO:<b@example.net>");
  trickles.talk("DATA");
  int64_t began = rig.world.now();
  while (!trickles.ended && rig.world.now() < began + 5000 * kSecond) {
    trickles.send("x\r\n");
    rig.world.run_for(60 * kSecond);
  }
  EXPECT_LT(rig.world.now() - began, 3700 * kSecond);
  EXPECT_TRUE(starts(trickles.heard, "421 4.4.2 ")) << trickles.heard;
  EXPECT_EQ(rig.stats().timeouts, 2u);
  EXPECT_EQ(rig.stats().discarded, 2u);
}

// ---- memory

TEST(Session, AnIdleClientCostsLittle) {
  // With what the library's strings and vectors of an idle session hold, about 2 KiB.
  EXPECT_LE(sizeof(Session), 2048u);
}

TEST(Session, ASlowMessageMovesToSmallBuffersWhenMemoryIsScarce) {
  reactor::SimOptions options;
  options.buffer_limits[0] = 1 << 20;
  options.faults.multishot_end = 0;
  Rig rig(5, options);
  rig.draft.received = config::ReceivedHeader::off;
  rig.start();
  // Most of the pool is taken by something else.
  std::vector<reactor::BufferRef> taken;
  auto& pool = rig.io->buffers(reactor::BufferGroup::ingress);
  while (pool.bytes_in_use() < pool.bytes_limit() * 6 / 10) taken.push_back(pool.allocate(4096));
  Client& client = rig.introduce();
  client.talk("MAIL FROM:<a@example.org>");
  client.talk("RCPT TO:<b@example.net>");
  client.talk("DATA");
  std::string content = "Date: x\r\nMessage-ID: <5@x>\r\n\r\n";
  client.send(content);
  for (int i = 0; i < 30; ++i) {
    std::string line = "..line " + std::to_string(i) + "\r\n";
    client.send(line);
    content += line.substr(1);
    rig.world.run_for(kSecond);
  }
  EXPECT_GT(rig.stats().body_bytes_copied, content.size() / 2);
  client.send(".\r\n");
  EXPECT_TRUE(starts(client.hear(), "250 "));
  ASSERT_TRUE(rig.wait_messages(1));
  EXPECT_EQ(rig.content(), content);
}

TEST(Session, AMessageThatStandsStillGoesWhenNoMemoryIsLeft) {
  reactor::SimOptions options;
  options.buffer_limits[0] = 1 << 20;
  Rig rig(6, options);
  rig.start();
  Client& stalled = rig.introduce();
  stalled.talk("MAIL FROM:<a@example.org>");
  stalled.talk("RCPT TO:<b@example.net>");
  stalled.talk("DATA");
  stalled.send("Subject: half");
  rig.world.run_for(10 * kSecond);
  EXPECT_FALSE(stalled.ended);
  std::vector<reactor::BufferRef> taken;
  auto& pool = rig.io->buffers(reactor::BufferGroup::ingress);
  while (reactor::BufferRef buffer = pool.allocate(4096)) taken.push_back(std::move(buffer));
  EXPECT_TRUE(starts(stalled.hear(), "421 4.3.1 "));
  EXPECT_TRUE(stalled.wait_end());
  EXPECT_EQ(rig.stats().stalled_aborted, 1u);
}

TEST(Session, AMessageInVeryManyPiecesIsJoined) {
  Rig rig;
  rig.draft.received = config::ReceivedHeader::off;
  rig.start();
  Client& client = rig.introduce();
  std::string content = "Date: x\r\nMessage-ID: <6@x>\r\n\r\n" + std::string(600, 'y') + "\r\n";
  client.talk("MAIL FROM:<a@example.org>");
  client.talk("RCPT TO:<b@example.net>");
  for (char octet : content) client.send(std::string("BDAT 1\r\n") + octet);
  client.send("BDAT 0 LAST\r\n");
  std::string replies = client.hear(static_cast<int>(content.size()) + 1, 300 * kSecond);
  EXPECT_NE(replies.find("Ok: queued as "), std::string::npos);
  ASSERT_TRUE(rig.wait_messages(1));
  EXPECT_EQ(rig.content(), content);
  EXPECT_LT(rig.message().content.raw.size(), 100u);
}

// ---- shutdown

TEST(Session, ShutdownTellsIdleClientsAndFinishesTransactions) {
  Rig rig;
  rig.start();
  Client& idle = rig.introduce();
  Client& busy = rig.introduce();
  busy.talk("MAIL FROM:<a@example.org>");
  bool drained = false;
  rig.listener->drained_owner = &drained;
  rig.listener->on_drained = [](void* flag) { *static_cast<bool*>(flag) = true; };
  rig.listener->drain();
  EXPECT_TRUE(starts(idle.hear(), "421 4.3.2 "));
  EXPECT_TRUE(idle.wait_end());
  Client& late = rig.connect();
  EXPECT_TRUE(late.wait_end());
  EXPECT_TRUE(starts(busy.talk("RCPT TO:<b@example.net>"), "250 "));
  EXPECT_FALSE(drained);
  busy.talk("DATA");
  busy.send(kPlain + ".\r\n");
  std::string replies = busy.hear(2);
  EXPECT_TRUE(starts(replies, "250 ")) << replies;
  EXPECT_NE(replies.find("\r\n421 4.3.2 "), std::string::npos) << replies;
  EXPECT_TRUE(busy.wait_end());
  idle.close();
  busy.close();
  EXPECT_TRUE(rig.world.run_until([&] { return drained; }, rig.world.now() + 30 * kSecond));
  EXPECT_EQ(rig.intake.messages.size(), 1u);
}

TEST(Session, StoppingEndsWhatIsUnderWay) {
  Rig rig;
  rig.start();
  Client& busy = rig.introduce();
  busy.talk("MAIL FROM:<a@example.org>");
  busy.talk("RCPT TO:<b@example.net>");
  busy.talk("DATA");
  busy.send("Subject: half");
  rig.world.run_for(kSecond);
  rig.listener->drain();
  rig.world.run_for(10 * kSecond);
  EXPECT_FALSE(busy.ended);
  rig.listener->stop();
  EXPECT_TRUE(starts(busy.hear(), "421 4.3.2 "));
  EXPECT_TRUE(rig.world.run_until([&] { return rig.listener->drained(); },
                                  rig.world.now() + 3 * kSecond));
  EXPECT_TRUE(rig.intake.messages.empty());
}

// ---- events

TEST(Session, TheReceivedEventFollowsTheCommit) {
  Rig rig;
  rig.start();
  Client& client = rig.introduce();
  rig.submit(client, kPlain, "MAIL FROM:<a@example.org> RET=HDRS ENVID=abc");
  ASSERT_EQ(rig.sink.events.size(), 1u);
  const events::Event& event = rig.sink.events[0];
  EXPECT_EQ(event.type, events::Type::received);
  EXPECT_EQ(event.spool_id, rig.message().id);
  EXPECT_EQ(rig.sink.sequences[0], 1u);
  EXPECT_EQ(event.reverse_path, "a@example.org");
  EXPECT_EQ(event.recipient, "b@example.net");
  EXPECT_EQ(event.recipients, 1u);
  EXPECT_EQ(event.message_id, "<1@example.org>");
  EXPECT_EQ(event.envid, "abc");
  EXPECT_EQ(event.size, rig.content().size());
  EXPECT_EQ(event.session_message, 1u);
  EXPECT_NE(event.session, 0u);
}

TEST(Session, TheReceivedEventIsStoredAsRecoveryReadsIt) {
  Rig rig;
  rig.start();
  Client& client = rig.introduce();
  rig.submit(client, kPlain);
  ASSERT_EQ(rig.spool.events.size(), 1u);
  std::string_view rest = rig.spool.events[0], one;
  ASSERT_TRUE(queue::take_event_bytes(rest, one));
  EXPECT_TRUE(rest.empty());
  Result<events::Event> event = events::decode(one);
  ASSERT_TRUE(event.ok()) << event.error().text;
  EXPECT_EQ(event->type, events::Type::received);
  EXPECT_EQ(event->spool_id, rig.message().id);
}

TEST(Session, AnyFaultOfTheNetworkLeavesNothingBehind) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(seed);
    Rig rig(seed);
    rig.start();
    rig.world.faults().reset = 0.01;
    rig.world.faults().multishot_end = 0.1;
    rig.world.faults().tiny_segment = 0.3;
    std::string session = "EHLO x\r\n";
    for (int i = 0; i < 6; ++i) {
      std::string content = kPlain + std::string(100 * static_cast<size_t>(i), 'z') + "\r\n";
      session += "MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nBDAT " +
                 std::to_string(content.size()) + " LAST\r\n" + content;
    }
    for (int c = 0; c < 4; ++c) {
      Client& client = rig.connect();
      rig.world.run_until([&] { return !client.heard.empty() || client.ended; },
                          rig.world.now() + 10 * kSecond);
      size_t line = session.find('\n') + 1;
      client.send(session.substr(0, line));
      rig.world.run_for(10 * kMs);
      client.send(session.substr(line));
    }
    rig.world.run_for(20 * kSecond);
    for (size_t i = 0; i < rig.intake.messages.size(); ++i) {
      EXPECT_NE(rig.content(i).find(kPlain), std::string::npos);
    }
    rig.world.faults().reset = 0;
  }  // Rig's destructor checks the rest
}

}  // namespace
}  // namespace millrace::ingress
