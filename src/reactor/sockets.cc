#include "reactor/sockets.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "reactor/uring_constants.h"

namespace millrace::reactor {
namespace {

// Closes unless released.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  int get() const { return number_; }
  int release() { return std::exchange(number_, -1); }

 private:
  int number_;
};

Failure<Error> failed(std::string_view what, const Address& address, int number) {
  const char* remedy = "";
  switch (number) {
    case EADDRINUSE:
      remedy = " (another program listens there)";
      break;
    case EADDRNOTAVAIL:
      remedy = " (no interface of this machine has the address)";
      break;
    case EACCES:
    case EPERM:
      remedy = " (ports below 1024 need root or CAP_NET_BIND_SERVICE)";
      break;
    case EMFILE:
    case ENFILE:
      remedy = " (look at the descriptor limit, ulimit -n)";
      break;
    default:
      break;
  }
  return fail(fmt::format("{} {}: {}{}", what, address.to_string(), std::strerror(number), remedy),
              number);
}

bool set_option(int descriptor, int level, int name) {
  int on = 1;
  return setsockopt(descriptor, level, name, &on, sizeof on) == 0;
}

// A socket file nobody answers at is left from a process that did not end cleanly.
Status remove_stale_socket(const Address& address) {
  std::string path = address.to_string().substr(std::string_view("unix:").size());
  struct stat status {};
  if (lstat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return success();
    return failed("cannot look at", address, errno);
  }
  if (!S_ISSOCK(status.st_mode))
    return failed("there is a file that is no socket at", address, EEXIST);
  Descriptor probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (probe.get() < 0) return failed("cannot make a socket for", address, errno);
  if (connect(probe.get(), address.raw(), address.raw_length()) == 0 || errno == EAGAIN) {
    return failed("cannot listen on", address, EADDRINUSE);
  }
  if (errno == ENOENT) return success();
  if (errno != ECONNREFUSED) return failed("cannot listen on", address, errno);
  if (unlink(path.c_str()) != 0 && errno != ENOENT) {
    return failed("cannot remove the stale socket", address, errno);
  }
  return success();
}

}  // namespace

Result<int> open_listener(const ListenOptions& options) {
  const Address& address = options.address;
  if (address.empty()) return fail("a listener needs an address", EINVAL);
  Descriptor listener(socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (listener.get() < 0) return failed("cannot make a socket for", address, errno);
  if (address.is_unix()) {
    if (Status removed = remove_stale_socket(address); !removed) return fail(removed.error());
  } else {
    if (!set_option(listener.get(), SOL_SOCKET, SO_REUSEADDR) ||
        (options.reuse_port && !set_option(listener.get(), SOL_SOCKET, SO_REUSEPORT)) ||
        !set_option(listener.get(), IPPROTO_TCP, TCP_NODELAY) ||
        (address.is_ipv6() && !set_option(listener.get(), IPPROTO_IPV6, IPV6_V6ONLY))) {
      return failed("cannot set an option of the listener", address, errno);
    }
  }
  if (bind(listener.get(), address.raw(), address.raw_length()) != 0) {
    return failed("cannot listen on", address, errno);
  }
  if (address.is_unix()) {
    // Until listen() a connection is refused, so whatever the umask made of the mode lets nobody
    // in.
    std::string path = address.to_string().substr(std::string_view("unix:").size());
    if (chmod(path.c_str(), options.unix_mode) != 0) {
      return failed("cannot set the mode of", address, errno);
    }
  }
  if (::listen(listener.get(), options.backlog) != 0) {
    return failed("cannot listen on", address, errno);
  }
  return listener.release();
}

Result<int> open_stream_socket(const Address& peer, const Address& source) {
  Descriptor stream(socket(peer.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (stream.get() < 0) return failed("cannot make a socket for", peer, errno);
  if (!peer.is_unix() && !set_option(stream.get(), IPPROTO_TCP, TCP_NODELAY)) {
    return failed("cannot set TCP_NODELAY on a socket for", peer, errno);
  }
  if (!source.empty()) {
    // Without IP_BIND_ADDRESS_NO_PORT each source address would be limited to its ephemeral ports
    // over all destinations together: the port is chosen at connect, when the destination is known.
    if (!source.is_unix() && (!set_option(stream.get(), SOL_SOCKET, SO_REUSEADDR) ||
                              !set_option(stream.get(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT))) {
      return failed("cannot set an option of a socket bound to", source, errno);
    }
    if (bind(stream.get(), source.raw(), source.raw_length()) != 0) {
      return failed("cannot send from", source, errno);
    }
  }
  return stream.release();
}

Result<Address> socket_name(int descriptor) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  if (getsockname(descriptor, reinterpret_cast<sockaddr*>(&storage), &length) != 0) {
    return fail(fmt::format("cannot learn a socket's address: {}", std::strerror(errno)), errno);
  }
  return Address::from_sockaddr(reinterpret_cast<sockaddr*>(&storage), length);
}

Result<Address> peer_name(int descriptor) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  if (getpeername(descriptor, reinterpret_cast<sockaddr*>(&storage), &length) != 0) {
    return fail(fmt::format("cannot learn a socket's peer: {}", std::strerror(errno)), errno);
  }
  return Address::from_sockaddr(reinterpret_cast<sockaddr*>(&storage), length);
}

}  // namespace millrace::reactor
