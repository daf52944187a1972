// Where passwords are checked: crypt(3) takes tens of milliseconds, so not on a shard's thread. The relay has threads
// for it (relay/password_threads.h); without them InlineChecker does it where it is asked.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "auth/crypto.h"
#include "auth/secret.h"
#include "reactor/mailbox.h"

namespace millrace::ingress {

// One password. Made by a session, given away with submit(), and back by `mailbox`, where `done` is called unless
// `owner` has been taken out meanwhile. Both are touched on the mailbox's thread only.
struct PasswordJob : reactor::Letter {
  auth::Secret secret;
  std::string password;
  bool right = false;
  reactor::Mailbox* mailbox = nullptr;
  void* owner = nullptr;
  void (*done)(void* owner, PasswordJob& job) = nullptr;

  ~PasswordJob() { auth::wipe(password); }
  void check() {
    right = auth::password_matches(secret, password);
    auth::wipe(password);
  }
  static void give_back(std::unique_ptr<PasswordJob> job) {
    PasswordJob* it = job.release();
    it->address<&PasswordJob::deliver_to>(it);
    it->mailbox->push(*it);
  }

 private:
  void deliver_to(reactor::Letter&) {
    std::unique_ptr<PasswordJob> owned(this);
    if (owner) done(owner, *this);
  }
};

class PasswordChecker {
 public:
  virtual ~PasswordChecker() = default;
  // False: too many wait already; the job is gone. Any thread.
  virtual bool submit(std::unique_ptr<PasswordJob> job) = 0;
  // Drops what waits; what is being checked is given back before it returns.
  virtual void stop() {}
};

class InlineChecker final : public PasswordChecker {
 public:
  bool submit(std::unique_ptr<PasswordJob> job) override {
    job->check();
    PasswordJob::give_back(std::move(job));
    return true;
  }
};

}  // namespace millrace::ingress
