// Whole relays in this process, by the interface of include/millrace: two shards each, on io_uring and real
// files, one handing its mail to the other. What crosses cores here is everything that does in production
// (mail to the log's shard, attempts to the shard that holds the connection, events to the file's shard,
// what the operator asks), so built with ThreadSanitizer it shows unordered accesses.
#include "millrace/relay.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "reactor/uring.h"

namespace millrace {
namespace {

// The events of one relay, as its observer is told them and as its file has them.
class Events {
 public:
  void add(std::string_view json) {
    auto event = nlohmann::json::parse(json);
    std::lock_guard lock(mutex_);
    ++by_type_[event.at("type")];
    if (event.at("type") != "delivered") return;
    ++delivered_[std::string(event.at("spool_id")) + " " + std::string(event.at("recipient"))];
  }
  size_t count(const std::string& type) {
    std::lock_guard lock(mutex_);
    return by_type_[type];
  }
  size_t delivered_once() {
    std::lock_guard lock(mutex_);
    size_t once = 0;
    for (const auto& [recipient, times] : delivered_) once += times == 1 ? 1 : 0;
    return once;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, size_t> by_type_, delivered_;
};

class RelayTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (auto io = reactor::make_uring({}); !io.ok()) GTEST_SKIP() << io.error().text;
    const char* where = std::getenv("TMPDIR");
    path_ = std::string(where ? where : "/tmp") + "/millrace-relay-XXXXXX";
    ASSERT_NE(mkdtemp(path_.data()), nullptr);
  }
  void TearDown() override {
    if (!path_.empty()) std::filesystem::remove_all(path_);
  }

  std::vector<std::string> arguments(const std::string& name, std::vector<std::string> more) const {
    std::vector<std::string> all = {
        "--hostname", name + ".test.invalid", "--listen", "127.0.0.1:0", "--spool", path_ + "/" + name,
        "--events", path_ + "/" + name + ".events", "--shards", "2", "--memory", "64M", "--segment-size", "1M", "--spool-reserve", "2M", "--max-message-size", "256K"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  Problem start(Relay& relay, const std::string& name, std::vector<std::string> more) const {
    std::filesystem::create_directories(path_ + "/" + name);
    Problem problem = relay.configure(arguments(name, std::move(more)));
    return problem ? problem : relay.start();
  }
  // A relay whose own next hop never answers: it keeps what it gets.
  void start_keeper(Relay& relay) const {
    Problem problem = start(relay, "keeper", {"--smarthost", "127.0.0.1:1"});
    ASSERT_FALSE(problem) << problem.text;
  }
  // Hands over `count` messages; returns how many were accepted once all are answered.
  static size_t inject(Relay& relay, size_t count) {
    std::mutex mutex;
    std::condition_variable changed;
    size_t accepted = 0, answered = 0;
    for (size_t i = 0; i < count; ++i) {
      Message message;
      message.reverse_path = "sender@example.org";
      message.recipients = {"a@one.example", "b@one.example"};
      message.content = "Subject: " + std::to_string(i) + "\r\n\r\n" + std::string(i * 97 % 20'000, 'x') + "\r\n";
      relay.inject(std::move(message), [&](const Injected& answer) {
        std::lock_guard lock(mutex);
        accepted += answer.accepted() ? 1 : 0;
        if (++answered == count) changed.notify_one();
      });
    }
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return answered == count; });
    return accepted;
  }
  template <typename Condition>
  static void wait_until(Condition condition) {
    while (!condition()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }

  std::string path_;
};

class RelayOfTwoShards : public RelayTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(RelayOfTwoShards, DeliversWhatItAcceptsOnce) {
  constexpr size_t kCount = 300;
  Relay keeper, relay;
  start_keeper(keeper);
  Events events;
  relay.observe([&](std::string_view json) { events.add(json); });
  Problem problem = start(relay, "relay",
                          {"--smarthost", keeper.listen_address(0), "--destination-connections", GetParam()});
  ASSERT_FALSE(problem) << problem.text;

  std::thread other([&] { EXPECT_EQ(inject(relay, kCount), kCount); });
  EXPECT_EQ(inject(relay, kCount), kCount);
  wait_until([&] { return relay.status().delivered == 4 * kCount; });
  other.join();
  RelayStatus status = relay.status();
  EXPECT_EQ(status.shards, 2u);
  EXPECT_EQ(status.accepted, 2 * kCount);
  EXPECT_EQ(status.queued, 0u);
  relay.stop();
  EXPECT_EQ(events.count("received"), 2 * kCount);
  EXPECT_EQ(events.count("delivered"), 4 * kCount);
  EXPECT_EQ(events.delivered_once(), 4 * kCount);

  Events written;
  std::ifstream file(path_ + "/relay.events");
  for (std::string line; std::getline(file, line);) written.add(line);
  EXPECT_EQ(written.count("received"), 2 * kCount);
  EXPECT_EQ(written.delivered_once(), 4 * kCount);

  EXPECT_EQ(keeper.status().accepted, 2 * kCount);
  keeper.stop();
}

// With one connection the shard that holds it sends the other's mail, too.
INSTANTIATE_TEST_SUITE_P(Connections, RelayOfTwoShards, ::testing::Values("1", "6"));

TEST_F(RelayTest, WhatAStopInterruptsIsThereAfterTheNextStart) {
  constexpr size_t kCount = 200;
  Relay keeper;
  start_keeper(keeper);
  Events events;
  for (bool last : {false, true}) {
    Relay relay;
    relay.observe([&](std::string_view json) { events.add(json); });
    Problem problem = start(relay, "relay", {"--smarthost", keeper.listen_address(0)});
    ASSERT_FALSE(problem) << problem.text;
    if (last) {
      wait_until([&] { return relay.status().queued == 0; });
    } else {
      EXPECT_EQ(inject(relay, kCount), kCount);
    }
    relay.stop();
  }
  EXPECT_EQ(events.delivered_once(), 2 * kCount);
  EXPECT_EQ(keeper.status().accepted, kCount);
  keeper.stop();
}

TEST_F(RelayTest, MayBeToldToHurryAtAnyTime) {
  for (int round = 0; round < 5; ++round) {
    Relay relay;
    start_keeper(relay);
    inject(relay, 10);
    std::atomic<bool> stopped{false};
    std::thread impatient([&] {
      while (!stopped) {
        relay.stop_now();
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      relay.stop_now();
    });
    relay.stop();
    stopped = true;
    impatient.join();
  }
}

TEST_F(RelayTest, ReadsItsConfigurationAgainWhileItWorks) {
  std::string file = path_ + "/relay.toml";
  auto write = [&](int connections) {
    std::ofstream(file) << "destination-connections = " << connections << "\n";
  };
  write(1);
  Relay keeper, relay;
  start_keeper(keeper);
  Problem problem = start(relay, "relay", {"--smarthost", keeper.listen_address(0), "--config", file});
  ASSERT_FALSE(problem) << problem.text;
  std::thread sender([&] { EXPECT_EQ(inject(relay, 300), 300u); });
  for (int round = 0; round < 20; ++round) {
    write(1 + round % 3);
    Problem reloaded = relay.reload();
    EXPECT_FALSE(reloaded) << reloaded.text;
  }
  sender.join();
  wait_until([&] { return relay.status().queued == 0; });
  EXPECT_EQ(relay.status().delivered, 600u);
  relay.stop();
  keeper.stop();
}

TEST_F(RelayTest, TellsWhyItDoesNotStartAndLeavesNothingBehind) {
  Relay first;
  start_keeper(first);
  {
    // A port that is not shared; the port before it in the list is open already.
    auto io = std::move(reactor::make_uring({})).value();
    auto taken = io->listen({.address = *reactor::Address::parse("127.0.0.1:0")});
    ASSERT_TRUE(taken.ok());
    std::string address = io->local_address(*taken)->to_string();
    Relay second;
    Problem problem = start(second, "other", {"--listen", address});
    EXPECT_NE(problem.text.find("cannot listen on " + address), std::string::npos) << problem.text;
    io->close(*taken);
  }
  {
    // One that another relay's shards share among them.
    Relay second;
    Problem problem = start(second, "other", {"--listen", first.listen_address(0)});
    EXPECT_NE(problem.text.find("cannot listen on " + first.listen_address(0)), std::string::npos)
        << problem.text;
  }
  {
    Relay second;
    Problem problem = start(second, "keeper", {});
    EXPECT_NE(problem.text.find("lock"), std::string::npos) << problem.text;
  }
  {
    Relay second;
    Problem problem = start(second, "other", {"--admin-socket", path_ + "/keeper/admin.sock"});
    EXPECT_NE(problem.text.find("admin.sock"), std::string::npos) << problem.text;
  }
  first.stop();
}

}  // namespace
}  // namespace millrace
