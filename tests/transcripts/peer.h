// One connection of a script, as raw as a socket: octets out when told to, octets in kept until they are
// asked for, and every way in which a connection can be left. Works over either back end of reactor/io.h.
//
// Limits: what comes in is kept without bound; a script that floods itself does so on purpose.
#pragma once

#include <functional>
#include <string>

#include "net/stream.h"

namespace millrace::transcripts {

class Peer final : private net::StreamOwner {
 public:
  explicit Peer(reactor::Io& io);
  ~Peer() = default;

  // A connection that a listener has accepted. `host`: which of the script's hosts it came to.
  void adopt(reactor::Handle handle, unsigned host);
  void connect(const reactor::Address& to, const reactor::Address& from);

  void send(std::string octets);  // behind what is still to be sent
  // Sends `octets` over and over until the connection ends or stop_endless().
  void send_endlessly(std::string octets);
  void stop_endless() { endless_.clear(); }
  void stop_reading();
  void read_on();
  void half_close();
  void close();
  void reset();

  bool connected() const { return connected_; }
  bool all_sent() const { return waiting_.empty() && sending_.empty(); }
  // The other side has closed or reset, or connecting has failed.
  bool ended() const { return ended_; }
  int error() const { return error_; }
  bool open() const { return connected_ && !closed_; }
  unsigned host() const { return host_; }
  uint64_t octets_sent() const { return octets_sent_; }

  std::string in;  // what has come and has not been looked at
  // Called after each arrival; a built-in server lives here.
  std::function<void()> on_input;

 private:
  void on_data(char* data, size_t size, reactor::BufferRef buffer) override;
  void on_sent() override;
  void on_end(int error) override;
  void on_closed() override;
  void on_connected(reactor::Completion& completion);
  void pump();

  reactor::Io& io_;
  net::Stream stream_;
  reactor::Op connect_;
  reactor::Handle socket_ = reactor::kNoHandle;
  std::string waiting_, sending_, endless_;
  uint64_t octets_sent_ = 0;
  bool connected_ = false, ended_ = false, closed_ = false;
  bool half_close_ = false, half_closed_ = false, close_when_sent_ = false;
  int error_ = 0;
  unsigned host_ = 0;
};

}  // namespace millrace::transcripts
