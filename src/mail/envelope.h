// The envelope of an accepted message: what MAIL and RCPT said, what its metadata headers said, and
// where it came from. Pure data, with the binary form in which the spool keeps it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace millrace::mail {

enum class BodyType : uint8_t { seven_bit, eight_bit_mime };  // RFC 6152
enum class Ret : uint8_t { unset, full, headers };            // RFC 3461 4.3

// What its sender asks of TLS, over what receivers publish and the operator prefers (RFC 8689).
enum class TlsWish : uint8_t {
  none,
  required,      // MAIL's REQUIRETLS: over verified TLS to those that pass it on, or not at all
  not_required,  // the header TLS-Required: no
};

// RFC 3461 4.1; a set of bits. `never` excludes the others.
struct Notify {
  enum : uint8_t { unset = 0, never = 1, success = 2, failure = 4, delay = 8 };
};

struct Recipient {
  std::string address;  // the mailbox without angle brackets, local part as given
  std::string
      domain;         // routing domain: lower-case A-labels (UTS 46), or an address literal "[...]"
  std::string orcpt;  // ORCPT as given, xtext undecoded ("rfc822;a+2Bb@c"), or empty
  uint8_t notify = Notify::unset;
};

struct Envelope {
  std::string reverse_path;  // without angle brackets; empty is <>
  std::vector<Recipient> recipients;
  std::string envid;  // xtext undecoded
  Ret ret = Ret::unset;
  BodyType body = BodyType::seven_bit;
  bool smtputf8 = false;
  TlsWish tls = TlsWish::none;
  int64_t received_ms = 0;  // UTC
  int64_t expires_ms = 0;   // UTC; when undelivered mail is given up
  std::string tenant;
  std::string job;
  std::string pool;        // virtual MTA
  std::string account;     // who authenticated
  std::string client;      // address of the injecting client, "192.0.2.1"
  std::string message_id;  // the Message-ID header's value, bounded, for events

  // As if made anew; the texts keep their room.
  void clear() {
    for (std::string* text : {&reverse_path, &envid, &tenant, &job, &pool, &account, &client, &message_id}) {
      text->clear();
    }
    recipients.clear();
    ret = Ret::unset;
    body = BodyType::seven_bit;
    smtputf8 = false;
    tls = TlsWish::none;
    received_ms = expires_ms = 0;
  }
};

}  // namespace millrace::mail
