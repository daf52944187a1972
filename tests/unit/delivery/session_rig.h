// The client's state machine without a network: what the peer says, what goes out in one group, and what becomes of
// each recipient.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "delivery/session.h"
#include "messages.h"

namespace millrace::delivery::testing {

constexpr int64_t kSessionSecond = 1'000'000'000;

inline SessionOptions default_options() {
  SessionOptions options;
  options.ehlo_name = "relay.example";
  options.greeting_timeout_ns = 300 * kSessionSecond;
  options.mail_timeout_ns = 300 * kSessionSecond;
  options.rcpt_timeout_ns = 300 * kSessionSecond;
  options.data_initiation_timeout_ns = 120 * kSessionSecond;
  options.data_block_timeout_ns = 180 * kSessionSecond;
  options.data_done_timeout_ns = 600 * kSessionSecond;
  options.idle_timeout_ns = 5 * kSessionSecond;
  return options;
}

class SessionTest : public ::testing::Test, public SessionOwner {
 protected:
  ~SessionTest() override {
    if (!session_) return;
    if (session_->state() != SessionState::over) end(0);
    EXPECT_TRUE(queue_.empty() || session_->ending() != Ending::none);
    settle();
  }

  // ---- SessionOwner
  queue::Attempt* take() override {
    ++takes_;
    if (queue_.empty()) return nullptr;
    queue::Attempt* attempt = queue_.front();
    queue_.pop_front();
    return attempt;
  }
  void finished(queue::Attempt& attempt) override {
    log_ += fmt::format("[{}]", outcome(attempt));
    finished_.push_back(&attempt);
  }
  void ready() override { ready_ = true; }
  void start_tls() override { log_ += "(TLS)"; }
  void send(std::span<const iovec> parts) override {
    EXPECT_EQ(unsent_, 0u);
    ++sends_;
    for (const iovec& part : parts) {
      EXPECT_GT(part.iov_len, 0u);
      sent_.append(static_cast<const char*>(part.iov_base), part.iov_len);
      unsent_ += part.iov_len;
    }
    if (send_at_once_) complete_ = true;
  }
  uint64_t unsent() const override { return unsent_; }
  void over() override { over_ = true; }

  // ---- the script
  void start(SessionOptions options = default_options()) {
    session_ = std::make_unique<Session>(*this, options);
    session_->greet(now_, "mx.example");
  }
  void open(std::string_view capabilities, SessionOptions options = default_options()) {
    start(options);
    EXPECT_EQ(peer("220 hello\r\n"), "EHLO relay.example\r\n");
    greeted_ = peer(capabilities);
    EXPECT_TRUE(ready_);
  }
  // Says `bytes`, returns what went out because of it.
  std::string peer(std::string_view bytes) {
    session_->receive(bytes, now_);
    finish_sends();
    return std::exchange(sent_, {});
  }
  void finish_sends() {
    while (std::exchange(complete_, false)) {
      unsent_ = 0;
      session_->on_sent(now_);
    }
  }
  void let_go() {
    complete_ = true;
    finish_sends();
  }
  Mail& add(std::string body, std::vector<std::string> recipients = {"a@dest.example"}) {
    mails_.push_back(std::make_unique<Mail>(std::move(body), recipients));
    queue_.push_back(&mails_.back()->attempt);
    return *mails_.back();
  }
  std::string wake() {
    session_->wake(now_);
    finish_sends();
    return std::exchange(sent_, {});
  }
  void end(int error) { session_->on_end(error, now_); }
  void settle() { session_->settle(std::exchange(unsent_, 0), now_); }
  std::string taken_log() { return std::exchange(log_, {}); }

  std::unique_ptr<Session> session_;
  std::deque<queue::Attempt*> queue_;
  std::vector<std::unique_ptr<Mail>> mails_;
  std::vector<queue::Attempt*> finished_;
  std::string sent_, log_, greeted_;
  uint64_t unsent_ = 0;
  int sends_ = 0, takes_ = 0;
  bool ready_ = false, over_ = false, complete_ = false;
  bool send_at_once_ = true;
  int64_t now_ = kSessionSecond;
};

}  // namespace millrace::delivery::testing
