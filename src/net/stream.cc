#include "net/stream.h"

#include <algorithm>
#include <cerrno>

namespace millrace::net {

using reactor::Completion;
using reactor::kNoHandle;

Stream::Stream(reactor::Io& io, StreamOwner& owner) : io_(io), owner_(owner) {
  receive_.bind<&Stream::on_received>(this);
  send_.bind<&Stream::on_send_done>(this);
  empty_send_.bind<&Stream::on_empty_send>(this);
  close_now_.bind<&Stream::finish_close>(this);
}

Stream::~Stream() {
  // The Ops assert that they are idle. The state is not asked: after a simulated crash of the host the
  // stream goes as it stands.
  empty_send_.cancel();
  close_now_.cancel();
}

void Stream::start(reactor::Handle handle, reactor::BufferGroup group) {
  ASSERT(state_ == State::idle && handle != kNoHandle);
  handle_ = handle;
  group_ = group;
  state_ = State::open;
  end_seen_ = failed_ = sending_ = shutdown_wanted_ = reset_ = false;
  send_error_ = 0;
  unsent_ = 0;
  start_receive();
}

// ---- bytes in

void Stream::start_receive() {
  if (receive_.pending() || !want_receive_ || end_seen_ || failed_ || state_ != State::open) return;
  io_.receive(receive_, handle_, group_);
}

void Stream::on_received(Completion& completion) {
  if (state_ == State::closing) {
    if (!completion.more && !send_.pending()) finish_close();
    return;
  }
  int32_t result = completion.result;
  // A multishot receive may end at any time without being asked to. It is started again before the
  // owner is told, because the owner may close.
  if (result > 0) {
    char* data = completion.data;
    reactor::BufferRef buffer = std::move(completion.buffer);
    if (!completion.more) start_receive();
    if (!failed_) owner_.on_data(data, static_cast<size_t>(result), std::move(buffer));
    return;
  }
  if (failed_) return;
  if (result == 0) {
    end_seen_ = true;
    if (send_error_ != 0) {
      fail(send_error_);
    } else {
      owner_.on_end(0);
    }
    return;
  }
  switch (-result) {
    case ECANCELED:  // by pause(); resume() may have been called meanwhile
    case EAGAIN:
    case EINTR:
      if (want_receive_ || send_error_ == 0) {
        start_receive();
      } else {
        fail(send_error_);
      }
      return;
    default:
      fail(-result);
  }
}

void Stream::pause() {
  if (!want_receive_) return;
  want_receive_ = false;
  if (state_ == State::open) io_.cancel(receive_);
}

void Stream::resume() {
  if (want_receive_) return;
  want_receive_ = true;
  // While the cancelled receive is on its way back, its completion starts the next one.
  if (state_ == State::open) start_receive();
}

// ---- bytes out

void Stream::send(std::span<const iovec> parts) {
  ASSERT(state_ == State::open && !sending_ && !shutdown_wanted_);
  if (failed_) return;
  sending_ = true;
  unsent_ = 0;
  iovec* to = inline_parts_.data();
  if (parts.size() > kInlineParts) {
    if (many_parts_.size() < parts.size()) many_parts_.resize(parts.size());
    to = many_parts_.data();
  }
  size_t count = 0;
  for (const iovec& part : parts) {
    if (part.iov_len == 0) continue;
    to[count++] = part;
    unsent_ += part.iov_len;
  }
  parts_ = {to, count};
  if (count == 0) {
    io_.defer(empty_send_);
  } else {
    start_send();
  }
}

void Stream::start_send() {
  io_.send(send_, handle_, {parts_.data(), std::min(parts_.size(), kMostParts)});
}

void Stream::on_send_done(Completion& completion) {
  if (state_ == State::closing || failed_) {
    // What left all the same: the owner may ask for it in on_closed().
    if (completion.result > 0) unsent_ -= static_cast<size_t>(completion.result);
    if (state_ == State::closing && !receive_.pending()) finish_close();
    return;
  }
  if (completion.result < 0) {
    int error = -completion.result;
    if (error == EAGAIN || error == EINTR) {
      start_send();
    } else if (receive_.pending() && want_receive_) {
      // What the peer said before it went away (a 421, most often) may still be on its way to us. The
      // receive comes to its end soon, since the connection is dead; then the owner is told.
      send_error_ = error;
    } else {
      fail(error);
    }
    return;
  }
  auto sent = static_cast<size_t>(completion.result);
  ASSERT(sent <= unsent_);
  unsent_ -= sent;
  size_t whole = 0;
  while (sent > 0 && sent >= parts_[whole].iov_len) sent -= parts_[whole++].iov_len;
  parts_ = parts_.subspan(whole);
  if (sent > 0) {
    // The array is ours: inline_parts_ or many_parts_.
    iovec& cut = parts_.front();
    cut.iov_base = static_cast<char*>(cut.iov_base) + sent;
    cut.iov_len -= sent;
  }
  if (unsent_ > 0) {
    start_send();
    return;
  }
  sending_ = false;
  if (shutdown_wanted_) io_.shutdown_send(handle_);
  owner_.on_sent();
}

void Stream::on_empty_send() {
  if (state_ != State::open || failed_ || !sending_) return;
  sending_ = false;
  if (shutdown_wanted_) io_.shutdown_send(handle_);
  owner_.on_sent();
}

void Stream::shutdown_send() {
  ASSERT(state_ == State::open);
  if (shutdown_wanted_) return;
  shutdown_wanted_ = true;
  if (!sending_ && !failed_) io_.shutdown_send(handle_);
}

// ---- the end

void Stream::fail(int error) {
  if (failed_) return;
  failed_ = true;
  sending_ = false;
  owner_.on_end(error);
}

void Stream::close(bool reset) {
  ASSERT(state_ != State::idle);
  reset_ = reset_ || reset;
  if (state_ == State::closing) return;
  state_ = State::closing;
  empty_send_.cancel();
  io_.cancel(receive_);
  io_.cancel(send_);
  if (!receive_.pending() && !send_.pending()) io_.defer(close_now_);
}

void Stream::finish_close() {
  io_.close(handle_, reset_);
  handle_ = kNoHandle;
  sending_ = false;
  state_ = State::idle;
  want_receive_ = true;
  owner_.on_closed();
}

}  // namespace millrace::net
