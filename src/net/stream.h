// One connection's bytes: the only way ingress, delivery and admin speak over a socket. The stream
// owns the handle and the Ops; its owner owns the stream, usually as a member.
//
// Contract:
//  - No StreamOwner function is called from inside a Stream function. All of them come from turn().
//  - Every StreamOwner function may call any Stream function (close() included). The owner may be
//    destroyed, and the stream with it, only in on_closed() or after it, or before start().
//  - Exactly one on_closed() follows a close(), and no other call comes between them. The bytes and
//    buffers of an unfinished send must stay valid until then.
//  - Steady state allocates nothing: the parts of a send lie in an inline array that grows once.
//
// TLS. start_tls() puts an engine (tls/engine.h) between the owner and the socket, at any moment;
// on_secure() says that the handshake is done. From then on the same functions
// move plaintext: what was received is decrypted where it lies, except for a record that came in two
// receives, which is given in a private buffer of the same group; a send is encrypted 64 KiB at a time.
// A plaintext stream pays one test of a pointer for all that.
//
// Limits: one send at a time; no time-outs of its own (the owner arms timers and closes). A TLS
// connection ends with ENOBUFS when the group has no room for a record that came in pieces.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "reactor/io.h"
#include "tls/engine.h"

namespace millrace::net {

class StreamOwner {
 public:
  // `data` lies in `buffer`; keep the reference to keep the bytes, let it go otherwise.
  virtual void on_data(char* data, size_t size, reactor::BufferRef buffer) = 0;
  // After start_tls(): the handshake is done, see Stream::tls(). Data follow, sends may start.
  virtual void on_secure() {}
  // All bytes of the last send() have been handed to the kernel; the next one may start.
  virtual void on_sent() = 0;
  // 0: the peer closed its sending side; what we send still goes out. Otherwise a positive errno: the
  // connection is dead in both directions, and nothing but on_closed follows (after the owner's
  // close()). At most one call of each kind. With TLS: 0 may be the peer's close_notify or the bare end of
  // the connection; EPROTO is a failure of TLS, whose kind Stream::tls() tells.
  virtual void on_end(int error) = 0;
  // The handle is closed and all operations have come back: the owner may go.
  virtual void on_closed() = 0;

 protected:
  ~StreamOwner() = default;
};

class Stream {
 public:
  // `io` and `owner` outlive the stream.
  Stream(reactor::Io& io, StreamOwner& owner);
  // REQUIRES: never started, or closed (on_closed has been called).
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Takes over a connected socket and begins to receive into buffers of `group`, unless pause() was
  // called before. A stream may be started again once it has closed.
  void start(reactor::Handle handle, reactor::BufferGroup group);

  // Sends all of `parts`, continuing short sends, then on_sent(). The array may be temporary; the
  // bytes stay valid until on_sent, or until on_closed if it ends before. An empty send completes too.
  // After on_end(error) it is dropped in silence.
  // REQUIRES: open() and !sending().
  void send(std::span<const iovec> parts);
  bool sending() const { return sending_; }
  // Bytes of the current send that the kernel has not taken yet; in on_closed(), of the last one that
  // it never took.
  size_t unsent() const { return unsent_; }

  // From now on everything that comes or goes is the engine's, beginning with its own handshake; a send
  // that is under way still leaves in the clear (a server's 220), and on_sent() follows it.
  // REQUIRES: open(), no TLS yet; send() waits for on_secure().
  void start_tls(std::unique_ptr<tls::Engine> engine);
  // nullptr without TLS. Until the next start().
  const tls::Engine* tls() const { return tls_.get(); }

  // Stops receiving; what the kernel has handed over already may still arrive by on_data, and so may
  // on_end. Idempotent. resume() goes on where it stopped.
  void pause();
  void resume();
  bool paused() const { return !want_receive_; }

  // Half-close after the current send, if one is in progress: the peer sees the end of our bytes.
  // Nothing may be sent after it.
  void shutdown_send();

  // Cancels what is in flight, waits for it, closes the handle, then calls on_closed(). What was sent
  // (on_sent) still reaches the peer unless `reset`, which aborts with RST. An unfinished send is cut
  // off. A second call changes nothing, except that it may add the reset.
  // REQUIRES: started, and on_closed not called yet.
  void close(bool reset = false);

  bool open() const { return state_ == State::open; }
  bool closing() const { return state_ == State::closing; }
  // kNoHandle when not open or closing.
  reactor::Handle handle() const { return handle_; }

 private:
  enum class State : uint8_t { idle, open, closing };

  void start_receive();
  void start_send();
  void on_ciphertext(char* data, size_t size, reactor::BufferRef buffer);
  void on_end_of_stream();
  void pump_tls();
  void account_wire(size_t sent);
  void on_all_sent();
  void on_received(reactor::Completion& completion);
  void on_send_done(reactor::Completion& completion);
  void on_empty_send();
  void fail(int error);
  void finish_close();  // may destroy *this

  static constexpr size_t kInlineParts = 16;
  static constexpr size_t kMostParts = 1024;  // IOV_MAX: more is EMSGSIZE
  static constexpr size_t kTlsBatch = 4 * tls::Engine::kLongestRecord;
  // Of what the engine has to say by itself while the peer takes nothing.
  static constexpr size_t kTlsMostUnasked = 256 * 1024;
  static constexpr size_t kKeptWire = 4096;  // capacity

  reactor::Io& io_;
  StreamOwner& owner_;
  reactor::Op receive_;
  reactor::Op send_;
  reactor::Deferred empty_send_;
  reactor::Deferred close_now_;
  reactor::Handle handle_ = reactor::kNoHandle;
  reactor::BufferGroup group_ = reactor::BufferGroup::ingress;
  State state_ = State::idle;
  bool want_receive_ = true;   // not paused
  bool end_seen_ = false;      // the peer's end of stream: nothing more to receive
  bool failed_ = false;        // on_end(error) has been called
  bool sending_ = false;
  bool shutdown_wanted_ = false;
  bool reset_ = false;
  int send_error_ = 0;  // told once the receive has ended

  size_t unsent_ = 0;
  std::array<iovec, kInlineParts> inline_parts_;
  std::vector<iovec> many_parts_;  // used instead when a send has more; keeps its capacity
  std::span<iovec> parts_;         // what is left to send; with TLS, to encrypt

  // ---- with TLS
  std::unique_ptr<tls::Engine> tls_;
  bool secured_ = false;           // on_secure has been called
  bool send_shut_ = false;         // nothing more leaves
  bool plain_tail_ = false;        // the send under way began before start_tls()
  std::string wire_;               // ciphertext being sent
  iovec wire_part_{};              // what is left of it
  size_t wire_sent_ = 0;
  struct Record {
    size_t wire_end;               // in wire_
    size_t plain;                  // octets of the send
  };
  std::vector<Record> records_;    // of the current send in wire_, not wholly sent yet
};

}  // namespace millrace::net
