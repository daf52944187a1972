// The agent against scripted receivers in the simulator, with a dispatcher of the test's own in place of the
// queue.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "delivery/agent.h"
#include "dns/model.h"
#include "messages.h"
#include "peer.h"
#include "queue/destination.h"

namespace millrace::delivery::testing {

using queue::LaneEnd;

constexpr int64_t kSecond = 1'000'000'000;

class FakeQueue final : public queue::Dispatcher {
 public:
  queue::Attempt* take(queue::Lane& lane) override {
    if (queue.empty()) {
      waiting = &lane;
      return nullptr;
    }
    queue::Attempt* attempt = queue.front();
    queue.pop_front();
    return attempt;
  }
  void finished(queue::Attempt& attempt) override { finished_.push_back(&attempt); }
  void lane_ready(queue::Lane&) override { ++ready; }
  void lane_closed(queue::Lane& lane, const LaneEnd& end) override {
    if (waiting == &lane) waiting = nullptr;
    ends.push_back(end);
  }
  void on_route(queue::Destination& destination, std::shared_ptr<const dns::Route> route) override {
    destination.route = std::move(route);
  }
  void waiting_domains(const queue::Lane&, size_t most, std::vector<std::string_view>& domains) override {
    for (const std::string& domain : waiting_for) {
      if (domains.size() < most) domains.push_back(domain);
    }
  }
  std::string outcomes() const {
    std::string out;
    for (const queue::Attempt* attempt : finished_) out += fmt::format("[{}]", outcome(*attempt));
    return out;
  }

  std::deque<queue::Attempt*> queue;
  std::vector<queue::Attempt*> finished_;
  std::vector<LaneEnd> ends;
  queue::Lane* waiting = nullptr;
  int ready = 0;
  std::vector<std::string> waiting_for;
};

class ConnectionTest : public ::testing::Test {
 protected:
  ConnectionTest() : world_(7), host_(world_.add_host({"192.0.2.250", "2001:db8::250"})) {
    io_ = world_.make_io(host_);
    config_.hostname = "relay.example";
    transport_ = std::make_unique<dns::ModelTransport>(*io_, zones_);
    cache_ = std::make_unique<dns::Cache>(*io_, *transport_, dns::Cache::Options{});
    restart();
  }
  ~ConnectionTest() override {
    if (agent_) agent_->abort();
    for (auto& peer : peers_) peer->close();
    world_.run_for(200 * kSecond);
    EXPECT_EQ(agent_->stats().lanes, 0u);
    EXPECT_EQ(world_.open_handles(host_), 0u);
  }
  // After a change of config_.
  void restart() {
    agent_.reset();
    mx_ = std::make_unique<dns::Mx>(*io_, *cache_, mx_options(config_));
    agent_ = std::make_unique<DeliveryAgent>(*io_, std::make_shared<config::Config>(config_), *mx_, *cache_);
    agent_->start(queue_);
  }
  Peer& add_peer(std::string_view address) {
    peers_.push_back(std::make_unique<Peer>(world_, address));
    return *peers_.back();
  }
  void resolve(std::string_view domain) {
    destination_.domain = domain;
    destination_.route.reset();
    agent_->resolve(destination_);
    ASSERT_TRUE(run([&] { return destination_.route != nullptr; }));
    site_.route = destination_.route;
    site_.key = destination_.route->site;
  }
  // One receiver at dest.example.
  Peer& simple_peer() {
    Peer& peer = add_peer("198.51.100.1");
    zones_.add_mx("dest.example", 10, "mx.example");
    zones_.add_address("mx.example", "198.51.100.1");
    return peer;
  }
  queue::Lane* open() {
    queue::Lane* lane = agent_->open(site_, 0);
    lane->site = &site_;
    return lane;
  }
  Mail& add(std::string body, std::vector<std::string> recipients = {"a@dest.example"}) {
    mails_.push_back(std::make_unique<Mail>(std::move(body), recipients));
    queue_.queue.push_back(&mails_.back()->attempt);
    return *mails_.back();
  }
  bool run(const std::function<bool()>& done, int64_t seconds = 60) {
    return world_.run_until(done, world_.now() + seconds * kSecond);
  }
  bool run_until_closed(size_t lanes = 1, int64_t seconds = 1000) {
    return run([&] { return queue_.ends.size() >= lanes; }, seconds);
  }

  reactor::SimWorld world_;
  reactor::HostId host_;
  std::unique_ptr<reactor::Io> io_;
  config::Config config_;
  dns::ModelZones zones_;
  std::unique_ptr<dns::ModelTransport> transport_;
  std::unique_ptr<dns::Cache> cache_;
  std::unique_ptr<dns::Mx> mx_;
  FakeQueue queue_;
  std::unique_ptr<DeliveryAgent> agent_;
  std::vector<std::unique_ptr<Peer>> peers_;
  std::vector<std::unique_ptr<Mail>> mails_;
  queue::Destination destination_;
  queue::Site site_;
};

}  // namespace millrace::delivery::testing
