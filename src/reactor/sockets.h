// Opening and naming sockets: what answers at once and needs no ring.
//
// Sockets are blocking ones on purpose: the ring asks for non-blocking itself each time, and takes
// O_NONBLOCK as the wish to be told EAGAIN instead of being called when ready. Nothing here blocks.
#pragma once

#include "base/result.h"
#include "reactor/address.h"
#include "reactor/io.h"

namespace millrace::reactor {

// TCP: SO_REUSEADDR, SO_REUSEPORT if asked, TCP_NODELAY (accepted sockets inherit it), IPv6
// listeners take IPv6 only. Unix: a stale socket file is removed, a live one is an error; the mode
// is set before the first connection can be made.
Result<int> open_listener(const ListenOptions& options);
Result<int> open_stream_socket(const Address& peer, const Address& source);
Result<Address> socket_name(int descriptor);
Result<Address> peer_name(int descriptor);

}  // namespace millrace::reactor
