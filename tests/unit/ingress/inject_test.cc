// Messages given as memory.
#include "rig.h"

namespace millrace::ingress {
namespace {

struct Caller {
  explicit Caller(Rig& rig) : rig_(rig), injector(*rig.acceptance) {
    injection.owner = this;
    injection.done = [](void* self, Injection&) { ++static_cast<Caller*>(self)->answers; };
  }
  ~Caller() { injector.abandon(injection); }
  void give(std::string_view recipient, std::string text, bool report = false) {
    content = std::move(text);
    injection.envelope.reverse_path = report ? "" : "a@example.org";
    injection.envelope.recipients.resize(1);
    injection.envelope.recipients[0].address = recipient;
    injection.content = content;
    injection.report = report;
    injector.inject(injection);
    EXPECT_EQ(answers, 0) << "answered inline";
  }
  uint16_t wait() {
    EXPECT_TRUE(rig_.world.run_until([&] { return answers > 0; }, rig_.world.now() + 30 * kSecond));
    answers = 0;
    return injection.code;
  }
  Rig& rig_;
  Injector injector;
  Injection injection;
  std::string content;
  int answers = 0;
};

TEST(Injector, AMessageFromMemoryGoesTheWayOfAll) {
  Rig rig;
  rig.start();
  Caller caller(rig);
  caller.give("b@EXAMPLE.net", "X-Job: j\nSubject: x\nBcc: s@x\n\n.dot\nlast");
  EXPECT_EQ(caller.wait(), 250);
  EXPECT_EQ(caller.injection.id, rig.message().id);
  EXPECT_EQ(caller.injection.text, "Ok: queued as " + rig.message().id.to_string());
  EXPECT_EQ(rig.message().envelope.recipients[0].domain, "example.net");
  EXPECT_EQ(rig.message().envelope.job, "j");
  std::string content = rig.content();
  EXPECT_NE(content.find("\r\nSubject: x\r\n\r\n.dot\r\nlast"), std::string::npos) << content;
  EXPECT_EQ(content.find("Bcc"), std::string::npos);
  EXPECT_EQ(rig.stats().injected, 1u);
  EXPECT_EQ(rig.sink.events.size(), 1u);
}

TEST(Injector, AReportNeedsNoAdmissionAndIsNotSteeredByItsHeaders) {
  Rig rig;
  rig.start();
  rig.intake.admission = queue::Admission::refused;
  Caller caller(rig);
  caller.give("b@example.net",
              "Date: x\r\nMessage-ID: <r@x>\r\nX-Job: theirs\r\nSubject: failed\r\n\r\nsorry\r\n", true);
  EXPECT_EQ(caller.wait(), 250);
  EXPECT_EQ(rig.message().envelope.job, "");
  EXPECT_TRUE(rig.content().starts_with("Date: x\r\n")) << rig.content();
  EXPECT_EQ(rig.intake.asked, 0);
}

TEST(Injector, WhatASessionWouldRefuseIsRefused) {
  Rig rig;
  rig.draft.max_message_size = 1000;
  rig.start();
  Caller caller(rig);
  caller.give("not an address", "Subject: x\r\n\r\n");
  EXPECT_EQ(caller.wait(), 501);
  caller.give("b@example.net", "Subject: x\r\n\r\n" + std::string(2000, 'x') + "\r\n");
  EXPECT_EQ(caller.wait(), 552);
  rig.intake.admission = queue::Admission::refused;
  caller.give("b@example.net", "Subject: x\r\n\r\n");
  EXPECT_EQ(caller.wait(), 452);
  rig.intake.admission = queue::Admission::now;
  rig.spool.fail_with = EIO;
  caller.give("b@example.net", "Subject: x\r\n\r\n");
  EXPECT_EQ(caller.wait(), 451);
  EXPECT_TRUE(rig.intake.messages.empty());
}

TEST(Injector, ACallerThatWaitsIsServedInItsTurn) {
  Rig rig;
  rig.start();
  rig.intake.admission = queue::Admission::later;
  Caller caller(rig);
  caller.give("b@example.net", "Subject: x\r\n\r\n");
  rig.world.run_for(kSecond);
  EXPECT_EQ(caller.answers, 0);
  rig.intake.answer_waiters(false);
  EXPECT_EQ(caller.wait(), 250);
}

TEST(Injector, ACallerThatGoesLeavesItsMessageWithTheSpool) {
  Rig rig;
  rig.start();
  rig.spool.hold = true;
  {
    Caller caller(rig);
    caller.give("b@example.net", "Subject: x\r\n\r\n");
    EXPECT_EQ(rig.spool.waiting.size(), 1u);
  }
  rig.spool.release_all();
  EXPECT_TRUE(rig.wait_messages(1));
}

}  // namespace
}  // namespace millrace::ingress
