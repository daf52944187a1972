#include "peer.h"

#include <cerrno>

namespace millrace::transcripts {

Peer::Peer(reactor::Io& io) : io_(io), stream_(io, *this) { connect_.bind<&Peer::on_connected>(this); }

void Peer::adopt(reactor::Handle handle, unsigned host) {
  host_ = host;
  connected_ = true;
  stream_.start(handle, reactor::BufferGroup::control);
}

void Peer::connect(const reactor::Address& to, const reactor::Address& from) {
  Result<reactor::Handle> socket = io_.open_socket(to, from);
  if (!socket) {
    ended_ = true;
    error_ = socket.error().number;
    return;
  }
  socket_ = *socket;
  io_.connect(connect_, socket_, to);
}

void Peer::on_connected(reactor::Completion& completion) {
  if (completion.result < 0) {
    io_.close(socket_);
    ended_ = true;
    error_ = -completion.result;
    return;
  }
  connected_ = true;
  stream_.start(socket_, reactor::BufferGroup::control);
  pump();
}

void Peer::send(std::string octets) {
  waiting_ += octets;
  pump();
}

void Peer::send_endlessly(std::string octets) {
  endless_.clear();
  while (endless_.size() < 16384) endless_ += octets;
  pump();
}

void Peer::pump() {
  if (!open() || stream_.closing() || stream_.sending() || half_closed_ || (ended_ && error_ != 0)) return;
  if (waiting_.empty() && !endless_.empty()) waiting_ = endless_;
  if (!waiting_.empty()) {
    sending_ = std::move(waiting_);
    waiting_.clear();
    iovec part{sending_.data(), sending_.size()};
    stream_.send({&part, 1});
    return;
  }
  if (half_close_) {
    half_closed_ = true;
    stream_.shutdown_send();
  }
  if (close_when_sent_) stream_.close();
}

void Peer::stop_reading() { stream_.pause(); }
void Peer::read_on() { stream_.resume(); }

void Peer::half_close() {
  half_close_ = true;
  pump();
}

void Peer::close() {
  endless_.clear();
  close_when_sent_ = true;
  if (!open()) return;
  if (ended_ && error_ != 0) {
    stream_.close();
  } else {
    pump();
  }
}

void Peer::reset() {
  endless_.clear();
  if (open()) stream_.close(true);
}

void Peer::on_data(char* data, size_t size, reactor::BufferRef) {
  in.append(data, size);
  if (on_input) on_input();
}

void Peer::on_sent() {
  octets_sent_ += sending_.size();
  sending_.clear();
  pump();
}

void Peer::on_end(int error) {
  ended_ = true;
  error_ = error;
  if (error != 0) {
    endless_.clear();
    sending_.clear();
    waiting_.clear();
    stream_.close();
  }
}

void Peer::on_closed() {
  closed_ = true;
  endless_.clear();
}

}  // namespace millrace::transcripts
