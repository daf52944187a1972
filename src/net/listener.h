// A listening socket: one multishot accept that can be paused. Paused, connections wait in the
// kernel's backlog; those it had already handed over are still delivered.
//
// No ListenerOwner function is called from inside a Listener function. When the process is out of
// descriptors or memory, accepting rests for kRestNs and goes on by itself: re-arming at once would
// spin, because the connection that failed is still the first in the backlog. So it does when accepting ends
// kEndsInARow times in a row without a connection for a reason that is nobody's fault.
#pragma once

#include "reactor/io.h"

namespace millrace::net {

class ListenerOwner {
 public:
  // The handle is the callee's to close.
  virtual void on_accepted(reactor::Handle handle) = 0;
  // A positive errno. Accepting goes on, after a rest; for the log and a metric.
  virtual void on_accept_error(int error) = 0;
  virtual void on_listener_closed() = 0;

 protected:
  ~ListenerOwner() = default;
};

class Listener {
 public:
  Listener(reactor::Io& io, ListenerOwner& owner);
  // REQUIRES: never opened, or closed (on_listener_closed has been called).
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  // Binds, listens and begins to accept, unless pause() was called before.
  Status open(const reactor::ListenOptions& options);
  // Where it listens: the real port when 0 was asked for. Empty when not open.
  const reactor::Address& address() const { return address_; }

  void pause();
  void resume();
  bool paused() const { return !want_accept_; }

  // Stops and closes; connections that arrive meanwhile are closed unseen. on_listener_closed()
  // follows once; the owner may be destroyed in it.
  // REQUIRES: open.
  void close();
  bool is_open() const { return handle_ != reactor::kNoHandle; }

  static constexpr int64_t kRestNs = 100'000'000;
  static constexpr int kEndsInARow = 64;

 private:
  void start_accept();
  void on_accept(reactor::Completion& completion);
  void finish_close();  // may destroy *this

  reactor::Io& io_;
  ListenerOwner& owner_;
  reactor::Op accept_;
  int ends_in_a_row_ = 0;
  reactor::Timer rest_;
  reactor::Deferred close_now_;
  reactor::Address address_;
  reactor::Handle handle_ = reactor::kNoHandle;
  bool want_accept_ = true;
  bool closing_ = false;
};

}  // namespace millrace::net
