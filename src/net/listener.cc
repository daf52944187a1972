#include "net/listener.h"

#include <cerrno>

namespace millrace::net {

using reactor::Completion;
using reactor::kNoHandle;

Listener::Listener(reactor::Io& io, ListenerOwner& owner) : io_(io), owner_(owner) {
  accept_.bind<&Listener::on_accept>(this);
  rest_.bind<&Listener::start_accept>(this);
  close_now_.bind<&Listener::finish_close>(this);
}

Listener::~Listener() { close_now_.cancel(); }

Status Listener::open(const reactor::ListenOptions& options) {
  ASSERT(!is_open());
  auto handle = io_.listen(options);
  if (!handle) return fail(handle.error());
  auto address = io_.local_address(*handle);
  if (!address) {
    io_.close(*handle);
    return fail(address.error());
  }
  handle_ = *handle;
  address_ = *address;
  closing_ = false;
  start_accept();
  return success();
}

void Listener::start_accept() {
  if (!is_open() || closing_ || !want_accept_ || accept_.pending() || rest_.armed()) return;
  io_.accept(accept_, handle_);
}

void Listener::on_accept(Completion& completion) {
  int32_t result = completion.result;
  if (closing_) {
    if (result >= 0) io_.close(result, true);
    if (!completion.more) finish_close();
    return;
  }
  if (result >= 0) ends_in_a_row_ = 0;
  if (completion.more) {
    if (result >= 0) owner_.on_accepted(result);
    return;
  }
  if (result >= 0) {
    start_accept();  // first, because the owner may close
    owner_.on_accepted(result);
    return;
  }
  switch (-result) {
    case ECANCELED:  // by pause(); resume() may have been called meanwhile
      return start_accept();
    case EAGAIN:
    case EINTR:
    case ECONNABORTED:  // that connection is gone, others wait
      if (++ends_in_a_row_ < kEndsInARow) return start_accept();
      [[fallthrough]];
    default:
      // EMFILE, ENFILE, ENOBUFS, ENOMEM, and what else the network says of a connection (accept(2)).
      ends_in_a_row_ = 0;
      io_.timers().arm(rest_, io_.now() + kRestNs);
      owner_.on_accept_error(-result);
  }
}

void Listener::pause() {
  if (!want_accept_) return;
  want_accept_ = false;
  if (is_open() && !closing_) io_.cancel(accept_);
}

void Listener::resume() {
  if (want_accept_) return;
  want_accept_ = true;
  start_accept();
}

void Listener::close() {
  ASSERT(is_open() && !closing_);
  closing_ = true;
  rest_.cancel();
  if (accept_.pending()) {
    io_.cancel(accept_);
  } else {
    io_.defer(close_now_);
  }
}

void Listener::finish_close() {
  io_.close(handle_);
  handle_ = kNoHandle;
  address_ = {};
  closing_ = false;
  want_accept_ = true;
  owner_.on_listener_closed();
}

}  // namespace millrace::net
