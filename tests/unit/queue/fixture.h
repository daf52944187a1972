// One scheduler of one shard, with the fakes around it.
#pragma once

#include <gtest/gtest.h>

#include "fakes.h"

namespace millrace::queue {

inline constexpr int64_t kSecond = 1'000'000'000;

class SchedulerTest : public testing::Test {
 protected:
  SchedulerTest() : host_(world_.add_host({"192.0.2.1"})), io_(world_.make_io(host_)) {
    config_.hostname = "relay.example";
    config_.connect_rate = {};
    config_.memory = 1u << 30;
  }
  ~SchedulerTest() override { reset(); }

  void reset() {
    scheduler_.reset();
    reporter_.reset();
    agent_.reset();
    spool_.reset();
  }
  void build() {
    spool_ = std::make_unique<FakeSpool>(*io_);
    agent_ = std::make_unique<FakeAgent>(*io_);
    reporter_ = std::make_unique<FakeReporter>(*io_);
    scheduler_ = std::make_unique<Scheduler>(Scheduler::Context{
        *io_, std::make_shared<config::Config>(config_), *agent_, sink_, 0, 1});
    agent_->start(*scheduler_);
  }
  void start() {
    build();
    scheduler_->start(*spool_, *reporter_);
  }

  MessageRef message(std::vector<std::string> recipients, std::string job = "", std::string sender = "from@example.org") {
    MessageRef made = MessageRef::make();
    made->id = ids_.make(io_->wall_ms());
    made->envelope.reverse_path = std::move(sender);
    made->envelope.job = std::move(job);
    made->envelope.received_ms = io_->wall_ms();
    made->envelope.expires_ms = io_->wall_ms() + config_.expire_after_ms;
    for (const std::string& address : recipients) {
      made->envelope.recipients.push_back({address, address.substr(address.find('@') + 1), "", 0});
    }
    made->location = {1, static_cast<uint32_t>(spool_->messages.size() * 512 + 512), 300};
    FakeSpool::Stored& stored = spool_->messages[made->id];
    stored.body = "Subject: x\r\n\r\nhello\r\n";
    made->content.raw = {stored.body};
    made->content.raw_size = static_cast<uint32_t>(stored.body.size());
    mail::encode_metadata(made->envelope, made->content, stored.metadata);
    return made;
  }
  mail::SpoolId enqueue(std::vector<std::string> recipients, std::string job = "", std::string sender = "from@example.org") {
    MessageRef made = message(std::move(recipients), std::move(job), std::move(sender));
    mail::SpoolId id = made->id;
    scheduler_->enqueue(std::move(made));
    scheduler_->check();
    return id;
  }
  // One whose envelope the test has changed.
  mail::SpoolId enqueue(MessageRef made) {
    std::string& metadata = spool_->messages[made->id].metadata;
    metadata.clear();
    mail::encode_metadata(made->envelope, made->content, metadata);
    mail::SpoolId id = made->id;
    scheduler_->enqueue(std::move(made));
    scheduler_->check();
    return id;
  }
  void run(int64_t seconds = 1) {
    world_.run_for(seconds * kSecond);
    scheduler_->check();
  }
  void all_results(Action action, uint16_t code, std::string enhanced, events::Scope scope = events::Scope::recipient) {
    agent_->serve = [=](Attempt& attempt) {
      for (auto& result : attempt.results) {
        result.action = action;
        result.code = code;
        result.enhanced = enhanced;
        result.scope = scope;
        result.reply = std::to_string(code) + " " + enhanced + " said the test";
      }
    };
  }

  reactor::SimWorld world_{1};
  reactor::HostId host_;
  std::unique_ptr<reactor::Io> io_;
  config::Config config_;
  mail::SpoolIdMaker ids_{42, 0};
  FakeSink sink_;
  std::unique_ptr<FakeSpool> spool_;
  std::unique_ptr<FakeAgent> agent_;
  std::unique_ptr<FakeReporter> reporter_;
  std::unique_ptr<Scheduler> scheduler_;
};

}  // namespace millrace::queue
