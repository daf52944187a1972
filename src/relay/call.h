// A function to be called on another shard's thread (or on a shard's, from outside). For control work
// only: it allocates.
#pragma once

#include <functional>

#include "reactor/mailbox.h"

namespace millrace::relay {

struct Call : reactor::Letter {
  std::function<void()> body;

  static void post(reactor::Mailbox& to, std::function<void()> body) {
    auto* call = new Call;
    call->body = std::move(body);
    call->address<&Call::deliver_to>(call);
    to.push(*call);
  }

 private:
  void deliver_to(reactor::Letter&) {
    std::function<void()> now = std::move(body);
    delete this;
    now();
  }
};

}  // namespace millrace::relay
