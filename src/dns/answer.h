// What a DNS query brings back, and the reading of a reply from its bytes (RFC 1035 4).
//
// Contract: parse_reply reads what a stranger sent. Whatever the bytes are, it ends in an Answer
// and never reads past them; what cannot be right is `malformed`, which the layers above treat as a
// reason to wait. Aliases (CNAME) inside the reply are followed; an alias that leads out of it is
// named in `alias`, for the cache to ask on. Records whose owner is not the question's name, or the
// end of its chain of aliases, are ignored.
//
// Limits: 100 records of a section are read, the rest is ignored. Only A, AAAA, PTR, MX, TXT, TLSA and, where it is asked
// for itself, CNAME are decoded.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "reactor/address.h"
#include "tls/dane.h"

namespace millrace::dns {

enum class Type : uint16_t { a = 1, cname = 5, soa = 6, ptr = 12, mx = 15, txt = 16, aaaa = 28, tlsa = 52 };
std::string_view to_string(Type type);

enum class Outcome : uint8_t {
  records,    // there is at least one
  alias,      // the name is an alias and the reply does not say what lies behind it
  no_data,    // the name exists, without records of this type
  nxdomain,   // the name does not exist
  failure,    // SERVFAIL, REFUSED, time-out, no server: nobody knows
  malformed,  // bytes that make no sense: nobody knows
};
std::string_view to_string(Outcome outcome);

struct MxRecord {
  uint16_t preference = 0;
  std::string
      host;  // lower case, no trailing dot; "." is the root; escaped where it is no host name
};

struct Answer {
  Outcome outcome = Outcome::failure;
  uint32_t ttl_s =
      0;  // lowest of all that the answer rests on; for a negative answer, the zone's own
  std::vector<reactor::Address> addresses;  // A, AAAA; port 0
  std::vector<MxRecord> mx;
  std::vector<std::string> names;       // PTR: as hosts of MX records are
  std::vector<std::string> texts;       // TXT: the strings of a record put together
  std::vector<tls::TlsaRecord> tlsa;
  std::string alias;   // Outcome::alias: the name to ask for next; asked for CNAME: what it leads to
  std::string expanded;  // the end of the chain of aliases; empty: the name itself
  // All that it rests on is signed and was checked, by a resolver whose word (AD, RFC 4035 3.2.3) we take.
  bool secure = false;
  std::string reason;  // failure and malformed: in words, for a log or a reply
  // Set by the cache: monotonic times of the reply, and until when it may be used.
  int64_t answered_ns = 0;
  int64_t expires_ns = 0;
};

inline constexpr int kMostRecords = 100;
inline constexpr int kMostAliases = 8;
// Where a negative answer carries no SOA to say how long it holds.
inline constexpr uint32_t kDefaultNegativeTtlS = 60;

// `name` and `type` are what was asked: a reply to another question is malformed. `trusted`: the resolver's AD counts.
Answer parse_reply(std::string_view packet, std::string_view name, Type type, bool trusted = false);

// Lower case and without a trailing dot.
std::string canonical_name(std::string_view name);
// Letters, digits, hyphens and underscores in labels of 1 to 63, 253 in all, no hyphen at a label's
// ends.
bool is_host_name(std::string_view name);

}  // namespace millrace::dns
