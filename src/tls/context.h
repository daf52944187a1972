// What connections of one kind have in common: certificates, trust, suites, ticket keys. Made once for each
// shard and configuration, immutable afterwards except for what wolfSSL keeps in it (so: one shard, one
// thread); connections that run under an old one keep it alive.
//
// TLS 1.2 and 1.3 with forward secrecy only. Servers offer authenticated encryption only; towards
// receivers the ECDHE suites with CBC stand at the end of the list, since opportunistic encryption with
// them is better than none.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tls/session_cache.h"
#include "tls/ticket_keys.h"

struct WOLFSSL_CTX;

namespace millrace::tls {

struct CertificateFiles {
  std::string chain;  // PEM: the server's certificate first, then those between it and the root
  std::string key;    // PEM
};

// PEM as read; the names that it serves, and what kind of key it has.
struct Certificate {
  std::string chain_pem, key_pem;
  std::vector<std::string> names;  // dNSName, lower case; "*.example.org" as it stands
  bool ecdsa = false;
};
Result<Certificate> read_certificate(const CertificateFiles& files);
// A bundle of authorities: PEM, at least one certificate in it.
Result<std::string> read_authorities(const std::string& path);

struct ServerSettings {
  std::vector<Certificate> certificates;  // at least one; the first serves clients that name no other
  std::string client_ca_pem;              // a certificate is asked for, and checked against these
  bool channel_bindings = false;          // Engine::channel_binding() is wanted
  std::string service = "smtp";           // tickets of one service open no session of another
};

class ServerContext {
 public:
  static Result<std::shared_ptr<ServerContext>> make(const ServerSettings& settings,
                                                     const TicketKeys::Secret& secret = TicketKeys::process_secret());
  ~ServerContext();
  ServerContext(const ServerContext&) = delete;
  ServerContext& operator=(const ServerContext&) = delete;

  // The certificate for a client that asks for `server_name` and takes these kinds of signature.
  WOLFSSL_CTX* choose(std::string_view server_name, bool takes_ecdsa, bool takes_rsa) const;
  bool asks_for_certificate() const { return asks_for_certificate_; }
  bool exports_bindings() const { return exports_bindings_; }

 private:
  explicit ServerContext(const TicketKeys::Secret& secret, const std::string& service)
      : ticket_keys_(secret, service) {}
  struct Entry {
    WOLFSSL_CTX* context;
    std::vector<std::string> names;
    bool ecdsa;
  };
  std::vector<Entry> entries_;
  TicketKeys ticket_keys_;
  bool asks_for_certificate_ = false;
  bool exports_bindings_ = false;
};

struct ClientSettings {
  std::string ca_pem;  // trusted authorities; empty: none, so that nothing verifies
  Certificate certificate;  // ours, for servers that ask; empty: none
  size_t sessions_most = 4096;
};

class ClientContext {
 public:
  static Result<std::shared_ptr<ClientContext>> make(const ClientSettings& settings);
  ~ClientContext();
  ClientContext(const ClientContext&) = delete;
  ClientContext& operator=(const ClientContext&) = delete;

  WOLFSSL_CTX* native() const { return context_; }
  SessionCache& sessions() { return sessions_; }

 private:
  explicit ClientContext(size_t sessions_most) : sessions_(sessions_most) {}
  WOLFSSL_CTX* context_ = nullptr;
  SessionCache sessions_;
};

// Whether a certificate's name covers the host: equal, or a wildcard for exactly the leftmost label
// (RFC 9525 6.3). Both in lower case.
bool name_matches(std::string_view pattern, std::string_view host);
// The dNSName entries of a DER certificate's subjectAltName.
std::vector<std::string> dns_names(std::string_view der);

}  // namespace millrace::tls
