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
  tls_.reset();
  secured_ = send_shut_ = plain_tail_ = false;
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
    if (failed_) return;
    if (tls_) {
      on_ciphertext(data, static_cast<size_t>(result), std::move(buffer));
    } else {
      owner_.on_data(data, static_cast<size_t>(result), std::move(buffer));
    }
    return;
  }
  if (failed_) return;
  if (result == 0) return on_end_of_stream();
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

void Stream::on_end_of_stream() {
  if (end_seen_) return;
  end_seen_ = true;
  if (send_error_ != 0) {
    fail(send_error_);
  } else {
    owner_.on_end(0);
  }
}

// Decrypts where the ciphertext lay: the plaintext of a record is shorter than the record was.
void Stream::on_ciphertext(char* data, size_t size, reactor::BufferRef buffer) {
  tls_->give({data, size});
  size_t begin = 0;
  size_t end = 0;
  while (state_ == State::open && !failed_) {
    const size_t ready = tls_->next();
    if (!secured_ && (tls_->state() == tls::Engine::State::open || tls_->state() == tls::Engine::State::closed)) {
      secured_ = true;
      pump_tls();  // our last words of the handshake go ahead of what the owner says
      owner_.on_secure();
      if (state_ != State::open || failed_) return;
    }
    if (ready == 0) break;
    if (ready <= tls_->taken() - end) {
      tls_->read(data + end, ready);
      end += ready;
      continue;
    }
    // The record began in an earlier receive: there is no room for all of it here.
    reactor::BufferRef apart = io_.buffers(group_).allocate(static_cast<uint32_t>(ready));
    if (!apart) return fail(ENOBUFS);
    if (end > begin) owner_.on_data(data + begin, end - begin, buffer);
    begin = end;
    if (state_ != State::open || failed_) return;
    tls_->read(apart->data, ready);
    owner_.on_data(apart->data, ready, apart);
  }
  if (state_ != State::open || failed_) return;
  if (end > begin) owner_.on_data(data + begin, end - begin, std::move(buffer));
  if (state_ != State::open || failed_) return;
  if (tls_->state() == tls::Engine::State::failed || tls_->output().size() > kTlsMostUnasked) return fail(EPROTO);
  pump_tls();
  if (tls_->state() == tls::Engine::State::closed) on_end_of_stream();
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
  ASSERT(state_ == State::open && !sending_ && !shutdown_wanted_ && (!tls_ || secured_));
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
  } else if (tls_) {
    pump_tls();
  } else {
    start_send();
  }
}

void Stream::start_tls(std::unique_ptr<tls::Engine> engine) {
  ASSERT(state_ == State::open && !tls_ && engine);
  tls_ = std::move(engine);
  plain_tail_ = sending_;
  pump_tls();
}

// Sends what the engine has to say and, behind it, as much of the current send as makes a batch.
void Stream::pump_tls() {
  // After a send that failed (send_error_) nothing more leaves, whatever the peer's last words ask for.
  if (send_.pending() || plain_tail_ || failed_ || send_shut_ || send_error_ != 0 || state_ != State::open) return;
  ASSERT(wire_.empty() && records_.empty());
  std::string& output = tls_->output();
  if (sending_ && !parts_.empty() && !output.empty() && output.capacity() < kKeptWire) output.reserve(kKeptWire);
  for (size_t batch = 0; sending_ && !parts_.empty() && batch < kTlsBatch;) {
    const size_t plain = tls_->encrypt(parts_, tls::Engine::kLongestRecord);
    if (tls_->state() == tls::Engine::State::failed) return io_.defer(empty_send_);  // tells it from there
    batch += plain;
    records_.push_back({output.size(), plain});
  }
  if (output.empty()) {
    if (shutdown_wanted_ && !sending_) {
      send_shut_ = true;
      io_.shutdown_send(handle_);
    }
    return;
  }
  wire_.swap(output);
  wire_sent_ = 0;
  wire_part_ = {wire_.data(), wire_.size()};
  io_.send(send_, handle_, {&wire_part_, 1});
}

// `sent` more octets of the wire have left: whole records count as sent, since a part of one tells the
// peer nothing.
void Stream::account_wire(size_t sent) {
  wire_sent_ += sent;
  size_t whole = 0;
  while (whole < records_.size() && records_[whole].wire_end <= wire_sent_) unsent_ -= records_[whole++].plain;
  records_.erase(records_.begin(), records_.begin() + static_cast<ptrdiff_t>(whole));
  wire_part_ = {wire_.data() + wire_sent_, wire_.size() - wire_sent_};
}

void Stream::start_send() {
  io_.send(send_, handle_, {parts_.data(), std::min(parts_.size(), kMostParts)});
}

void Stream::on_send_done(Completion& completion) {
  if (state_ == State::closing || failed_) {
    // What left all the same: the owner may ask for it in on_closed().
    if (completion.result > 0) {
      if (tls_ && !plain_tail_) {
        if (!wire_.empty()) account_wire(static_cast<size_t>(completion.result));
      } else {
        unsent_ -= static_cast<size_t>(completion.result);
      }
    }
    if (state_ == State::closing && !receive_.pending()) finish_close();
    return;
  }
  if (completion.result < 0) {
    int error = -completion.result;
    if (error == EAGAIN || error == EINTR) {
      if (tls_ && !plain_tail_) {
        io_.send(send_, handle_, {&wire_part_, 1});
      } else {
        start_send();
      }
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
  if (tls_ && !plain_tail_) {
    account_wire(sent);
    if (wire_sent_ < wire_.size()) return io_.send(send_, handle_, {&wire_part_, 1});
    if (wire_.capacity() > kKeptWire) wire_ = {};
    wire_.clear();
    if (sending_ && parts_.empty() && unsent_ == 0) return on_all_sent();
    return pump_tls();
  }
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
  on_all_sent();
}

void Stream::on_all_sent() {
  sending_ = plain_tail_ = false;
  if (tls_) {
    if (shutdown_wanted_) tls_->close();
    pump_tls();
  } else if (shutdown_wanted_) {
    io_.shutdown_send(handle_);
  }
  owner_.on_sent();
}

void Stream::on_empty_send() {
  if (state_ != State::open || failed_) return;
  if (tls_ && tls_->state() == tls::Engine::State::failed) return fail(EPROTO);
  if (sending_) on_all_sent();
}

void Stream::shutdown_send() {
  ASSERT(state_ == State::open);
  if (shutdown_wanted_) return;
  shutdown_wanted_ = true;
  if (sending_ || failed_) return;
  if (tls_) {
    tls_->close();
    pump_tls();
  } else {
    io_.shutdown_send(handle_);
  }
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
  if (tls_ && !reset_ && !send_.pending() && !send_shut_ && send_error_ == 0) {
    // Our alert or close_notify, as far as the kernel takes it at once: the cancel follows.
    tls_->close();
    wire_.swap(tls_->output());
    records_.clear();
    wire_sent_ = 0;
    wire_part_ = {wire_.data(), wire_.size()};
    if (!wire_.empty()) io_.send(send_, handle_, {&wire_part_, 1});
  }
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
  wire_ = {};
  records_.clear();
  state_ = State::idle;
  want_receive_ = true;
  owner_.on_closed();
}

}  // namespace millrace::net
