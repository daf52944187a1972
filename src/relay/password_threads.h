// The threads on which passwords are checked: few, so that a flood of them takes no more than their share of the
// machine, with a bounded queue in front. A queue that is full is a 454, not a wait.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "ingress/password_checker.h"

namespace millrace::relay {

class PasswordThreads final : public ingress::PasswordChecker {
 public:
  PasswordThreads(unsigned threads, size_t waiting_most) : threads_most_(threads), waiting_most_(waiting_most) {}
  ~PasswordThreads() override;

  // The first one starts the threads: a relay without accounts has none.
  bool submit(std::unique_ptr<ingress::PasswordJob> job) override;
  // Drops what waits and ends; what is being checked comes back first. Idempotent.
  void stop() override;

 private:
  void run();

  const unsigned threads_most_;
  const size_t waiting_most_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::unique_ptr<ingress::PasswordJob>> waiting_;
  std::vector<std::thread> threads_;
  bool stopping_ = false;
};

}  // namespace millrace::relay
