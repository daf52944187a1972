// How a setting's value is written: the parsers and printers shared by the command line, the file,
// and everything else that reads a duration or a size from an operator (shaping profiles,
// millracectl).
//
// Each parser takes the whole text or says what is wrong with it and what would be right; each
// printer gives back a text that its parser reads as the same value. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "config/config.h"

namespace millrace::config {

// "250ms", "90s", "1h30m", "4d"; units d, h, m, s, ms, larger ones first, each once. A number
// without a unit is refused (what was meant differs by a factor of a thousand), except 0.
Result<int64_t> parse_duration_ms(std::string_view text);
std::string print_duration_ms(int64_t milliseconds);

// "52428800", "50M", "1G": K, M, G and T are powers of 1024; "KiB", "MiB", ... are the same.
Result<uint64_t> parse_size(std::string_view text);
std::string print_size(uint64_t bytes);

// "100/s", "0.5/s", "5000/h", "20000/d", "30/10m"; "none" is no limit.
Result<Rate> parse_rate(std::string_view text);
std::string print_rate(const Rate& rate);

// "5m,10m,1h"
Result<std::vector<int64_t>> parse_durations_ms(std::string_view text);
std::string print_durations_ms(const std::vector<int64_t>& list);

Result<uint64_t> parse_number(std::string_view text);
Result<bool> parse_switch(std::string_view text);  // true, false, yes, no, on, off

// "192.0.2.1:25", "[2001:db8::1]:25", "0.0.0.0:25,proxy", "unix:" is refused
Result<Listen> parse_listen(std::string_view text);
std::string print_listen(const Listen& listen);

// "192.0.2.1", "2001:db8::1=mta1.example.com", "192.0.2.1+2001:db8::1=mta1.example.com": one source
// is one identity towards receivers, with at most one address of each family.
Result<Source> parse_source(std::string_view text);
std::string print_source(const Source& source);

// "relay.example.com:587", "192.0.2.1", "[2001:db8::1]:25"; port 25 unless written.
// "smtps://relay.example.com:465": TLS before the greeting; port 465 unless written.
Result<NextHop> parse_next_hop(std::string_view text);
std::string print_next_hop(const NextHop& hop);

// "example.com=relay.example.com:25"; the domain is lower-cased.
Result<std::pair<std::string, NextHop>> parse_route(std::string_view text);
std::string print_route(const std::string& domain, const NextHop& hop);

// A host name by RFC 1123 2.1 as a peer will check it: letters, digits and hyphens in labels of at
// most 63, at most 253 in all.
bool is_host_name(std::string_view text);
// As above, with at least two labels and not an address.
bool is_fully_qualified(std::string_view text);
// RFC 5322 3.6.8
bool is_header_name(std::string_view text);

// Of `candidates` the one nearest to `text` by edit distance, if it is near enough to be meant;
// else empty.
std::string_view nearest(std::string_view text, const std::vector<std::string_view>& candidates);

}  // namespace millrace::config
