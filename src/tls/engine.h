// One end of a TLS connection without I/O: ciphertext in, plaintext out, and the other way round. The
// stream (net/stream.h) owns one and moves the bytes.
//
//   engine->give({data, size});                    // what arrived
//   while (size_t ready = engine->next()) {        // plaintext of one record at most
//     engine->read(to, ready);
//   }
//   ... send engine->output(), which fills at any of these calls, and clear it
//   engine->encrypt(parts, most);                  // as much as fits into `most` plaintext octets
//
// next() takes all that was given before it says 0, whatever state comes of it. The plaintext of a record
// is never longer than the record was, and taken() says how much of what was given has been read: so
// plaintext may be written over the ciphertext that it came from, unless the record began in an earlier
// piece.
//
// States: handshaking -> open -> closed (the peer said close_notify; we may still send) or failed.
//
// Limits: wolfSSL copies a record into a buffer of its own, decrypts it there, and is asked for it: two
// copies a direction. Renegotiation is refused, compression and early data are not offered. Certificates
// are judged by the system's clock.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "tls/context.h"
#include "tls/dane.h"
#include "tls/session_cache.h"

struct WOLFSSL;
struct WOLFSSL_X509_STORE_CTX;

namespace millrace::tls {

// Why it failed, for counting; Engine::error() has the words.
enum class Failure : uint8_t {
  none,
  not_tls,      // what came was no TLS: the other side speaks in the clear
  no_common,    // no version, suite or group in common
  certificate,  // the peer's certificate is not what was required
  peer_alert,   // the peer refused, with an alert
  protocol,     // a broken record, message or signature
};
std::string_view to_string(Failure failure);

struct ClientOptions {
  std::string server_name;  // for SNI and the check of the certificate; empty: neither
  bool verify = false;      // fail unless the certificate verifies; else only say what it is like
  std::shared_ptr<const DaneWish> dane;  // it verifies by these, and must; authorities and server_name do not count
  bool channel_binding = false;  // Engine::channel_binding() is wanted
  std::string session_key;  // of the session cache; empty: not resumed, not kept
};

class Engine {
 public:
  enum class State : uint8_t { handshaking, open, closed, failed };

  static std::unique_ptr<Engine> accept(std::shared_ptr<ServerContext> context);
  // Its first message is in output() at once.
  static std::unique_ptr<Engine> connect(std::shared_ptr<ClientContext> context, ClientOptions options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  State state() const { return state_; }

  // ---- bytes in
  // REQUIRES: next() has said 0 since the last give(). The bytes stay valid until it does.
  void give(std::string_view ciphertext);
  // Octets that read() will give now; 0: all has been taken, more ciphertext is needed.
  size_t next();
  // REQUIRES: size <= what next() said.
  void read(char* to, size_t size);
  // Octets taken of what was last given.
  size_t taken() const { return taken_; }

  // ---- bytes out
  // Encrypts from the front of `parts`, which is moved on, at most `most` octets, into output(). Says how
  // many. Parts are gathered into full records. REQUIRES: state() == open or closed.
  size_t encrypt(std::span<iovec>& parts, size_t most);
  // Says close_notify, once. Harmless in any state.
  void close();
  std::string& output() { return output_; }

  // ---- once open, or failed
  struct Info {
    std::string_view version;  // "TLSv1.3"
    std::string_view suite;    // "TLS_AES_128_GCM_SHA256"
    bool resumed = false;
    Verified verified = Verified::not_checked;  // of the peer's certificate
  };
  const Info& info() const { return info_; }
  Failure failure() const { return failure_; }
  const std::string& error() const { return error_; }
  // RFC 9266 (tls-exporter), where it was asked for; empty before TLS 1.3.
  const std::string& channel_binding() const { return channel_binding_; }

  static constexpr size_t kLongestRecord = 16384;  // octets of plaintext

 private:
  Engine() = default;
  static int receive_callback(WOLFSSL*, char* to, int size, void* self);
  static int send_callback(WOLFSSL*, char* from, int size, void* self);
  static int verify_callback(int fine, WOLFSSL_X509_STORE_CTX* store);
  static int ticket_callback(WOLFSSL*, const unsigned char*, int, void* self);

  bool wants_binding() const;
  bool must_verify() const { return options_.verify || options_.dane; }
  bool begin_server();      // false: more of the ClientHello is needed, or it failed
  void attach(WOLFSSL* ssl);
  void handshake();
  void on_open();
  void keep_session();
  void fail_native(int error);
  void fail(Failure failure, std::string error);

  std::shared_ptr<ServerContext> server_;  // one of the two
  std::shared_ptr<ClientContext> client_;
  ClientOptions options_;
  WOLFSSL* ssl_ = nullptr;
  State state_ = State::handshaking;
  std::string_view given_;
  size_t taken_ = 0;
  std::string hello_;        // server: the first record, until it is whole
  size_t hello_taken_ = 0;
  std::string output_;
  size_t ready_ = 0;         // what next() said
  bool heard_ = false;  // client: the first octet has been looked at
  bool fresh_session_ = false;
  bool close_said_ = false;
  bool dane_judged_ = false;
  bool own_certificate_seen_ = false;  // the peer's, in this handshake
  Info info_;
  std::string channel_binding_;
  Failure failure_ = Failure::none;
  std::string error_;
};
std::string_view to_string(Engine::State state);

}  // namespace millrace::tls
