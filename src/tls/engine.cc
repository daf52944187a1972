#include "tls/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "base/out_of_memory.h"
#include "tls/client_hello.h"
#include "tls/library.h"
#include "tls/wolfssl.h"

#include <wolfssl/error-ssl.h>
#include <wolfssl/wolfcrypt/error-crypt.h>

namespace millrace::tls {
namespace {

// The system's package says it in OpenSSL's numbers (its X509_V_ERR_...), ours in wolfSSL's.
Verified verified_of(int error) {
  switch (error) {
    case 0:
      return Verified::ok;
    case 2:   // no issuer
    case 18:  // self-signed
    case 19:  // self-signed in the chain
    case 20:  // no issuer at hand
    case 21:  // the leaf cannot be checked
    case 22:  // chain too long
      return Verified::untrusted;
    case 13:  // both dates again, in the numbers of its version 5.5
    case 14:
    case 9:   // not yet valid
    case 10:  // expired
      return Verified::expired;
    case 62:  // host name
      return Verified::wrong_name;
    case ASN_NO_SIGNER_E:
    case ASN_SELF_SIGNED_E:
    case MAX_CHAIN_ERROR:
      return Verified::untrusted;
    case ASN_AFTER_DATE_E:
    case ASN_BEFORE_DATE_E:
      return Verified::expired;
    case DOMAIN_NAME_MISMATCH:
    case IPADDR_MISMATCH:
      return Verified::wrong_name;
    default:
      return Verified::invalid;
  }
}

Failure failure_of(int error) {
  switch (error) {
    case VERSION_ERROR:
    case MATCH_SUITE_ERROR:
    case UNSUPPORTED_SUITE:
    case ECC_CURVETYPE_ERROR:
    case ECC_CURVE_ERROR:
    case KEY_SHARE_ERROR:
    case NO_PEER_KEY:
      return Failure::no_common;
    case FATAL_ERROR:  // an alert of the peer's
      return Failure::peer_alert;
    case NO_PEER_CERT:
    case VERIFY_CERT_ERROR:
      return Failure::certificate;
    default:
      return Failure::protocol;
  }
}

// The IANA name; of the suites of TLS 1.3 the system's package has names of its own.
std::string_view suite_name(WOLFSSL* ssl) {
  switch (wolfSSL_get_current_cipher_suite(ssl)) {
    case 0x1301: return "TLS_AES_128_GCM_SHA256";
    case 0x1302: return "TLS_AES_256_GCM_SHA384";
    case 0x1303: return "TLS_CHACHA20_POLY1305_SHA256";
    default: return wolfSSL_get_cipher(ssl);
  }
}

bool is_address(std::string_view name) {
  return name.find(':') != name.npos ||
         std::all_of(name.begin(), name.end(), [](char c) { return c == '.' || (c >= '0' && c <= '9'); });
}

}  // namespace

std::string_view to_string(Failure failure) {
  switch (failure) {
    case Failure::none: return "none";
    case Failure::not_tls: return "not TLS";
    case Failure::no_common: return "nothing in common";
    case Failure::certificate: return "certificate";
    case Failure::peer_alert: return "alert of the peer";
    case Failure::protocol: return "protocol";
  }
  UNREACHABLE();
}

std::string_view to_string(Engine::State state) {
  switch (state) {
    case Engine::State::handshaking: return "handshaking";
    case Engine::State::open: return "open";
    case Engine::State::closed: return "closed by the peer";
    case Engine::State::failed: return "failed";
  }
  UNREACHABLE();
}

std::unique_ptr<Engine> Engine::accept(std::shared_ptr<ServerContext> context) {
  std::unique_ptr<Engine> engine(new Engine);
  engine->server_ = std::move(context);
  return engine;
}

std::unique_ptr<Engine> Engine::connect(std::shared_ptr<ClientContext> context, ClientOptions options) {
  std::unique_ptr<Engine> engine(new Engine);
  engine->client_ = std::move(context);
  engine->options_ = std::move(options);
  const ClientOptions& wanted = engine->options_;
  WOLFSSL* ssl = wolfSSL_new(engine->client_->native());
  if (ssl == nullptr) end_out_of_memory();
  engine->attach(ssl);
  if (wanted.channel_binding) wolfSSL_KeepArrays(ssl);
  wolfSSL_set_verify(ssl, WOLFSSL_VERIFY_PEER, verify_callback);
  if (!wanted.server_name.empty() && !is_address(wanted.server_name)) {
    wolfSSL_UseSNI(ssl, WOLFSSL_SNI_HOST_NAME, wanted.server_name.data(),
                   static_cast<unsigned short>(wanted.server_name.size()));
    if (!wanted.dane) wolfSSL_check_domain_name(ssl, wanted.server_name.c_str());
  }
  if (!wanted.session_key.empty()) {
    wolfSSL_set_SessionTicket_cb(ssl, ticket_callback, engine.get());
    const SessionCache::Found found = engine->client_->sessions().find(wanted.session_key);
    if (found.session != nullptr) {
      wolfSSL_set_session(ssl, found.session);
      wolfSSL_SESSION_free(found.session);  // the connection holds its own reference
      engine->info_.verified = found.verified;
    }
  }
  engine->handshake();
  return engine;
}

void Engine::attach(WOLFSSL* ssl) {
  ssl_ = ssl;
  wolfSSL_SSLSetIORecv(ssl, receive_callback);
  wolfSSL_SSLSetIOSend(ssl, send_callback);
  wolfSSL_SetIOReadCtx(ssl, this);
  wolfSSL_SetIOWriteCtx(ssl, this);
  wolfSSL_SetCertCbCtx(ssl, this);
}

Engine::~Engine() {
  if (ssl_ != nullptr) wolfSSL_free(ssl_);
}

// ---- what wolfSSL calls

int Engine::receive_callback(WOLFSSL*, char* to, int size, void* self) {
  Engine& engine = *static_cast<Engine*>(self);
  auto room = static_cast<size_t>(size);
  if (engine.hello_taken_ < engine.hello_.size()) {
    const size_t part = std::min(room, engine.hello_.size() - engine.hello_taken_);
    std::memcpy(to, engine.hello_.data() + engine.hello_taken_, part);
    engine.hello_taken_ += part;
    return static_cast<int>(part);
  }
  const size_t part = std::min(room, engine.given_.size() - engine.taken_);
  if (part == 0) return WOLFSSL_CBIO_ERR_WANT_READ;
  std::memcpy(to, engine.given_.data() + engine.taken_, part);
  engine.taken_ += part;
  return static_cast<int>(part);
}

int Engine::send_callback(WOLFSSL*, char* from, int size, void* self) {
  static_cast<Engine*>(self)->output_.append(from, static_cast<size_t>(size));
  return size;
}

// Called for each fault of the chain, and for the peer's own certificate in any case. 1 goes on.
int Engine::verify_callback(int fine, WOLFSSL_X509_STORE_CTX* store) {
  Engine& engine = *static_cast<Engine*>(store->userCtx);
  Verified& verified = engine.info_.verified;
  if (store->totalCerts == 0) return 1;  // it showed none
  // Whoever passes over the fault of an authority in the chain makes wolfSSL believe in it: it joins those that all
  // connections of the context trust. Unless wolfSSL is told that nothing is verified, until the peer's own certificate
  // comes, last and always; from then on it must prove that it has the key.
  engine.own_certificate_seen_ = store->error_depth == 0;
  wolfSSL_set_verify(engine.ssl_, engine.own_certificate_seen_ || engine.options_.verify ? WOLFSSL_VERIFY_PEER : WOLFSSL_VERIFY_NONE,
                     verify_callback);
  if (engine.options_.dane) {
    // All of the chain is here with the first call, and what wolfSSL thinks of it does not matter.
    if (!std::exchange(engine.dane_judged_, true)) {
      std::vector<std::string_view> chain;
      for (int i = 0; i < store->totalCerts; ++i) {
        chain.emplace_back(reinterpret_cast<const char*>(store->certs[i].buffer), store->certs[i].length);
      }
      verified = check_dane(*engine.options_.dane, chain);
    }
    return verified == Verified::ok ? 1 : 0;
  }
  if (fine) {
    if (verified != Verified::not_checked) return 1;
    // A name to compare it with there is only where wolfSSL was given one.
    const std::string& name = engine.options_.server_name;
    verified = engine.client_ && (name.empty() || is_address(name)) ? Verified::wrong_name : Verified::ok;
    return verified == Verified::ok || !engine.options_.verify ? 1 : 0;
  }
  if (verified == Verified::not_checked || verified == Verified::ok) verified = verified_of(store->error);
  return engine.options_.verify ? 0 : 1;
}

int Engine::ticket_callback(WOLFSSL*, const unsigned char*, int, void* self) {
  static_cast<Engine*>(self)->fresh_session_ = true;
  return 0;
}

// ---- bytes in

void Engine::give(std::string_view ciphertext) {
  ASSERT(ready_ == 0 && taken_ == given_.size());
  given_ = ciphertext;
  taken_ = 0;
}

bool Engine::begin_server() {
  // The name that the client asks for decides whose certificate it sees, so its first record is looked at
  // before wolfSSL sees a byte of it.
  const size_t room = std::min(given_.size() - taken_, kLongestRecord + 1024 - hello_.size());
  hello_.append(given_.substr(taken_, room));
  taken_ += room;
  const RecordLength record = first_record(hello_);
  if (record.outcome == RecordLength::Outcome::incomplete) return false;
  if (record.outcome == RecordLength::Outcome::not_tls) {
    fail(Failure::not_tls, "what the client sent is no TLS");
    return false;
  }
  const ClientHello hello = parse_client_hello(std::string_view(hello_).substr(0, record.size));
  WOLFSSL* ssl = wolfSSL_new(server_->choose(hello.server_name, hello.takes_ecdsa, hello.takes_rsa));
  if (ssl == nullptr) end_out_of_memory();
  attach(ssl);
  wolfSSL_set_verify(ssl, server_->asks_for_certificate() ? WOLFSSL_VERIFY_PEER : WOLFSSL_VERIFY_NONE,
                     verify_callback);
  if (server_->exports_bindings()) wolfSSL_KeepArrays(ssl);
  return true;
}

void Engine::handshake() {
  if (ssl_ == nullptr && !begin_server()) return;
  if (client_ && !heard_ && !given_.empty()) {
    heard_ = true;
    // A handshake message or an alert; wolfSSL would call text a version that it does not know.
    if (given_.front() != 22 && given_.front() != 21) {
      return fail(Failure::not_tls, "what the server sent is no TLS");
    }
  }
  const int result = server_ ? wolfSSL_accept(ssl_) : wolfSSL_connect(ssl_);
  if (result == WOLFSSL_SUCCESS) return on_open();
  const int error = wolfSSL_get_error(ssl_, result);
  if (error != WOLFSSL_ERROR_WANT_READ && error != WOLFSSL_ERROR_WANT_WRITE) fail_native(error);
}

bool Engine::wants_binding() const {
  return server_ ? server_->exports_bindings() : options_.channel_binding;
}

void Engine::on_open() {
  // What is checked in the callback, or was when the session was made: no way around it may be open.
  const bool proven = own_certificate_seen_ || wolfSSL_session_reused(ssl_) != 0;
  if (must_verify() && (info_.verified != Verified::ok || !proven)) {
    return fail(Failure::certificate, fmt::format("certificate {}", proven ? to_string(info_.verified) : "not shown"));
  }
  state_ = State::open;
  info_.version = wolfSSL_get_version(ssl_);
  info_.suite = suite_name(ssl_);
  info_.resumed = wolfSSL_session_reused(ssl_) != 0;
  hello_ = {};
  hello_taken_ = 0;
  if (wants_binding()) {
    if (info_.version == "TLSv1.3") {
      constexpr std::string_view kLabel = "EXPORTER-Channel-Binding";
      channel_binding_.resize(32);  // RFC 9266 4.2: 32 octets, an empty context
      if (wolfSSL_export_keying_material(ssl_, reinterpret_cast<unsigned char*>(channel_binding_.data()),
                                         channel_binding_.size(), kLabel.data(), kLabel.size(), nullptr, 0,
                                         1) != WOLFSSL_SUCCESS) {
        channel_binding_.clear();
      }
    }
    wolfSSL_FreeArrays(ssl_);
  }
  if (!client_ || options_.session_key.empty()) return;
  // TLS 1.2 has its session now; TLS 1.3 gets tickets later.
  if (info_.version == "TLSv1.2") fresh_session_ = true;
  if (!info_.resumed) client_->sessions().remove(options_.session_key);
}

void Engine::keep_session() {
  fresh_session_ = false;
  if (WOLFSSL_SESSION* session = wolfSSL_get1_session(ssl_)) {
    // A copy, because wolfSSL goes on writing into its own.
    if (WOLFSSL_SESSION* copy = wolfSSL_SESSION_dup(session)) {
      client_->sessions().put(options_.session_key, copy, info_.verified);
    }
    wolfSSL_SESSION_free(session);
  }
}

size_t Engine::next() {
  if (ready_ > 0) return ready_;
  if (state_ == State::handshaking) handshake();
  while (state_ == State::open) {
    char first;
    const size_t before = taken_;
    const int peeked = wolfSSL_peek(ssl_, &first, 1);
    if (fresh_session_) keep_session();
    if (peeked > 0) {
      ready_ = static_cast<size_t>(wolfSSL_pending(ssl_));
      ASSERT(ready_ > 0);
      return ready_;
    }
    const int error = wolfSSL_get_error(ssl_, peeked);
    if (error == WOLFSSL_ERROR_ZERO_RETURN) {
      state_ = State::closed;
    } else if (error != WOLFSSL_ERROR_WANT_READ && error != WOLFSSL_ERROR_WANT_WRITE) {
      fail_native(error);
    } else if (taken_ == given_.size()) {
      return 0;
    } else if (taken_ == before) {
      fail(Failure::protocol, "the library takes no more");
    }
    // Behind a message of its own (a ticket, a new key) wolfSSL asks to be called again.
  }
  // Behind an end nothing counts any more.
  if (state_ == State::closed || state_ == State::failed) taken_ = given_.size();
  return 0;
}

void Engine::read(char* to, size_t size) {
  ASSERT(size <= ready_);
  while (size > 0) {
    const int got = wolfSSL_read(ssl_, to, static_cast<int>(size));
    ASSERT(got > 0);
    to += got;
    size -= static_cast<size_t>(got);
    ready_ -= static_cast<size_t>(got);
  }
}

// ---- bytes out

size_t Engine::encrypt(std::span<iovec>& parts, size_t most) {
  ASSERT(state_ == State::open || state_ == State::closed);
  // One for the thread: it holds nothing between calls.
  thread_local char gathered[kLongestRecord];
  size_t done = 0;
  while (!parts.empty() && done < most) {
    const size_t longest = std::min(kLongestRecord, most - done);
    iovec& front = parts.front();
    const char* record = static_cast<const char*>(front.iov_base);
    size_t size = 0;
    if (front.iov_len >= longest) {
      size = longest;
      front.iov_base = static_cast<char*>(front.iov_base) + size;
      front.iov_len -= size;
      if (front.iov_len == 0) parts = parts.subspan(1);
    } else {
      record = gathered;
      while (!parts.empty() && size < longest) {
        iovec& part = parts.front();
        const size_t piece = std::min(part.iov_len, longest - size);
        std::memcpy(gathered + size, part.iov_base, piece);
        size += piece;
        part.iov_base = static_cast<char*>(part.iov_base) + piece;
        part.iov_len -= piece;
        if (part.iov_len == 0) parts = parts.subspan(1);
      }
    }
    if (size == 0) break;
    const int written = wolfSSL_write(ssl_, record, static_cast<int>(size));
    if (written != static_cast<int>(size)) {
      fail_native(wolfSSL_get_error(ssl_, written));
      break;
    }
    done += size;
  }
  return done;
}

void Engine::close() {
  if (ssl_ == nullptr || close_said_ || state_ == State::failed || state_ == State::handshaking) return;
  close_said_ = true;
  wolfSSL_shutdown(ssl_);
}

// ---- the end

void Engine::fail_native(int error) {
  char text[WOLFSSL_MAX_ERROR_SZ];
  wolfSSL_ERR_error_string_n(static_cast<unsigned long>(error), text, sizeof text);
  Failure failure = failure_of(error);
  WOLFSSL_ALERT_HISTORY history{};
  wolfSSL_get_alert_history(ssl_, &history);
  // Those of the handshake; a certificate that we refused has its own name.
  if (info_.verified != Verified::ok && info_.verified != Verified::not_checked &&
      (must_verify() || server_) && state_ == State::handshaking) {
    return fail(Failure::certificate, fmt::format("certificate {}: {}", to_string(info_.verified), text));
  }
  if (history.last_rx.level == alert_fatal) {
    return fail(Failure::peer_alert, fmt::format("the peer sent alert {} ({})", history.last_rx.code, text));
  }
  fail(failure, text);
}

void Engine::fail(Failure failure, std::string error) {
  state_ = State::failed;
  failure_ = failure;
  error_ = std::move(error);
  taken_ = given_.size();
  ready_ = 0;
}

}  // namespace millrace::tls
