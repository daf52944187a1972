// Paths, mailboxes and routing domains of any bytes. What is accepted is clean and parses again.
#include <cstdint>
#include <string>

#include "base/assert.h"
#include "mail/address.h"

using namespace millrace::mail;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  for (PathKind kind : {PathKind::reverse, PathKind::forward}) {
    auto path = parse_path(text, kind);
    if (!path) continue;
    ASSERT(path->consumed >= 2 && path->consumed <= size && path->consumed <= 256);
    ASSERT(text[path->consumed - 1u] == '>');
    ASSERT(path->local_part.size() <= 64 && path->domain.size() <= 255);
    for (char c : path->mailbox) ASSERT(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
    if (path->null() || path->postmaster()) continue;
    auto again = parse_mailbox(path->mailbox);
    ASSERT(again.ok() && again->domain == path->domain);
    auto routing = to_routing_domain(path->domain);
    if (!routing) continue;
    ASSERT(path->literal || is_ascii_domain(*routing));
    auto twice = to_routing_domain(*routing);
    ASSERT(twice.ok() && *twice == *routing);
  }
  (void)parse_mailbox(text);
  (void)to_routing_domain(text);
  return 0;
}
