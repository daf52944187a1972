#include "relay/password_threads.h"

namespace millrace::relay {

PasswordThreads::~PasswordThreads() { stop(); }

bool PasswordThreads::submit(std::unique_ptr<ingress::PasswordJob> job) {
  std::lock_guard lock(mutex_);
  if (stopping_ || waiting_.size() >= waiting_most_) return false;
  waiting_.push_back(std::move(job));
  if (threads_.empty()) {
    for (unsigned n = 0; n < threads_most_; ++n) threads_.emplace_back([this] { run(); });
  }
  changed_.notify_one();
  return true;
}

void PasswordThreads::run() {
  while (true) {
    std::unique_ptr<ingress::PasswordJob> job;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (stopping_) return;
      job = std::move(waiting_.front());
      waiting_.pop_front();
    }
    job->check();
    ingress::PasswordJob::give_back(std::move(job));
  }
}

void PasswordThreads::stop() {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    stopping_ = true;
    waiting_.clear();
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace millrace::relay
