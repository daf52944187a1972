// Where mail may go: which addresses and host names of a stranger's DNS are refused, because they
// lead into the operator's own network (RFC 1918, loopback, link-local, metadata services, ...) or
// nowhere. Pure. Documentation networks are not refused: they lead nowhere and hurt nobody.
#pragma once

#include <optional>
#include <string_view>

#include "reactor/address.h"

namespace millrace::dns {

// A reason in words ("loopback address"), or empty when the address is a public unicast one. IPv4
// embedded in IPv6 (mapped, compatible, NAT64, 6to4) is judged by what is embedded; mapped and
// compatible ones are always refused.
std::string_view why_not_public(const reactor::Address& address);

// "localhost" and names below it (RFC 6761 6.3), and names that are an address in disguise
// ("127.1", "0x7f000001"). Empty when it may be looked up.
std::string_view why_not_a_host(std::string_view name);

// The address in "[192.0.2.1]" or "[IPv6:2001:db8::1]" (RFC 5321 4.1.3); empty address when it is
// none.
reactor::Address parse_literal(std::string_view domain);

}  // namespace millrace::dns
