// The tools of the simulations, tried on each other before a relay stands between them: senders speak
// straight to receivers, and the ledger must agree whatever the network does; and it must object to what
// it is there to object to.
#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "ledger.h"
#include "reactor/sim.h"
#include "receiver.h"
#include "seeds.h"
#include "sender.h"

namespace millrace::sim {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

TEST(SimTools, SendersAndReceiversAgreeUnderFaults) {
  for_each_seed(40, [](uint64_t seed) {
    reactor::SimWorld world(seed);
    reactor::HostId here = world.add_host({"192.0.2.1"});
    reactor::HostId there = world.add_host({"192.0.2.2"});
    auto io = world.make_io(here);
    auto far = world.make_io(there);
    auto address = reactor::Address::parse("192.0.2.2:25").value();
    if (seed % 3 != 0) {
      world.faults().reset = 0.002;
      world.faults().connect_refused = 0.1;
    }
    Ledger ledger;
    ReceiverBehaviour receives;
    receives.pipelining = seed % 2 == 0;
    receives.defer_recipient = 0.05;
    receives.defer_data = 0.05;
    receives.drop_unreplied = 0.02;
    receives.drop_replied = 0.02;
    receives.drop_anywhere = 0.01;
    receives.refuse_greeting = 0.05;
    Receiver receiver(*far, seed, receives);
    receiver.on_message = [&](const ReceivedMessage& message) {
      for (const std::string& recipient : message.recipients) {
        ledger.received(message.content, recipient, message.copy, message.at_ns);
      }
    };
    ASSERT_TRUE(receiver.listen(address).ok());
    std::deque<Sender> senders;
    SenderBehaviour sends;
    sends.pipelining = receives.pipelining;
    sends.drop_in_data = 0.02;
    sends.drop_after_data = 0.02;
    uint64_t number = 0;
    for (uint64_t i = 0; i < 4; ++i) {
      senders.emplace_back(*io, address, seed * 100 + i, ledger, sends);
      for (int j = 0; j < 25; ++j) {
        ++number;
        std::vector<std::string> recipients{"a" + std::to_string(number) + "@example.com"};
        if (number % 7 == 0) recipients.push_back("second@example.net");
        senders.back().add(number, "from@example.com", recipients,
                           numbered_message(number, world.chance().below(30'000)));
      }
      senders.back().start();
    }
    bool idle = world.run_until(
        [&] {
          for (Sender& sender : senders) {
            if (!sender.idle()) return false;
          }
          return true;
        },
        36'000 * kSecond);
    ASSERT_TRUE(idle);
    receiver.close();
    ASSERT_TRUE(world.run_until([&] { return receiver.closed(); }, world.now() + 10 * kSecond));
    EXPECT_EQ(joined(ledger.violations(true)), "") << "seed " << seed;
    EXPECT_GT(ledger.accepted(), 80u);
    EXPECT_EQ(world.open_handles(here), 0u);
    EXPECT_EQ(world.open_handles(there), 0u);
  });
}

TEST(Ledger, ObjectsToWhatIsLost) {
  Ledger ledger;
  ledger.submitted(1, {"a@x.example"}, numbered_message(1, 100));
  ledger.told(1, Told::accepted);
  EXPECT_FALSE(ledger.complete());
  EXPECT_EQ(joined(ledger.violations(false)), "");
  EXPECT_EQ(joined(ledger.violations(true)), "message 1 (accepted) for a@x.example is lost\n");
  ledger.received(numbered_message(1, 100), "a@x.example", Copy::unreplied, 1);
  EXPECT_FALSE(ledger.complete()) << "without a reply it must be tried again";
  ledger.received("Received: x\r\n" + numbered_message(1, 100), "a@x.example", Copy::acknowledged, 2);
  EXPECT_TRUE(ledger.complete());
  EXPECT_EQ(joined(ledger.violations(true)), "");
}

TEST(Ledger, ObjectsToASecondCopy) {
  Ledger ledger;
  std::string content = numbered_message(1, 100);
  ledger.submitted(1, {"a@x.example"}, content);
  ledger.told(1, Told::accepted);
  ledger.received(content, "a@x.example", Copy::uncertain, 1'000);
  ledger.received(content, "a@x.example", Copy::acknowledged, 2'000);
  EXPECT_EQ(joined(ledger.violations(true)), "");
  ledger.received(content, "a@x.example", Copy::acknowledged, 3'000);
  EXPECT_EQ(joined(ledger.violations(true)), "message 1 (accepted) for a@x.example ended 2 times\n");
  ledger.crashed(3'500, 1'000);  // the second outcome was not on the disk yet
  EXPECT_EQ(joined(ledger.violations(true)), "");
}

TEST(Ledger, ObjectsToWhatWasRefusedOrAltered) {
  Ledger ledger;
  std::string content = numbered_message(7, 500);
  ledger.submitted(7, {"a@x.example"}, content);
  ledger.told(7, Told::refused);
  ledger.received(content, "a@x.example", Copy::acknowledged, 1);
  EXPECT_EQ(joined(ledger.violations(true)), "message 7 (refused) for a@x.example was delivered\n");
  ledger.submitted(8, {"b@x.example"}, numbered_message(8, 500));
  ledger.told(8, Told::accepted);
  std::string altered = numbered_message(8, 500);
  altered[altered.size() - 3] = '!';
  ledger.received(altered, "b@x.example", Copy::acknowledged, 1);
  ledger.received(numbered_message(8, 500), "other@x.example", Copy::acknowledged, 1);
  std::string found = joined(ledger.violations(true));
  EXPECT_NE(found.find("message 8 arrived 1 times with other bytes"), std::string::npos) << found;
  EXPECT_NE(found.find("whom it was not sent to"), std::string::npos) << found;
}

}  // namespace
}  // namespace millrace::sim
