// How DNS queries leave and come back. Transport is the seam below the cache: production speaks to
// real servers by c-ares (ares.cc), simulation asks a model (model.h).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dns/answer.h"
#include "reactor/io.h"

namespace millrace::dns {

class Transport {
 public:
  virtual ~Transport() = default;
  using Callback = std::function<void(Answer&&)>;
  // One question to the network, with its own time-outs and retries. `done` is called exactly once,
  // from turn() and never from inside query(), unless stop() is called first: then not at all.
  // `name` is canonical (canonical_name).
  virtual void query(const std::string& name, Type type, Callback done) = 0;
  // Gives up every query and calls `done` once nothing is in flight: only then may the transport be
  // destroyed.
  virtual void stop(std::function<void()> done) = 0;
};

struct AresOptions {
  std::vector<reactor::Address> servers;  // with ports; empty: /etc/resolv.conf
  int64_t timeout_ms = 5'000;             // a query's whole time, over all servers and tries
  // Beside those at loopback addresses: servers that check signatures, and the way to which is safe. AD counts only if all
  // servers are such, since it is c-ares that chooses among them.
  std::vector<reactor::Address> trusted;
};

// Queries by c-ares, its sockets polled by `io` (production only). Replies are matched by id,
// server and question; truncated ones are asked again over TCP.
Result<std::unique_ptr<Transport>> make_ares_transport(reactor::Io& io, const AresOptions& options);

}  // namespace millrace::dns
