// The rules of reactor/io.h as tests (conformance.cc), run over every back end: sim_conformance_test.cc and
// uring_conformance_test.cc say what a back end is and instantiate the suite.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "conformance_tools.h"
#include "reactor/io.h"

namespace millrace::reactor::conformance {

// What the suite needs of a back end.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual Io& io() = 0;
  // A second shard of the same machine.
  virtual Io& other() = 0;
  // Turns both until `done`; false when nothing has come of it for a long time.
  virtual bool run_until(const std::function<bool()>& done) = 0;
  // Turns both for long enough that whatever can happen has happened.
  virtual void settle() = 0;
  // An empty directory, and a path for a Unix socket.
  virtual std::string directory() = 0;
};

struct Parameter {
  const char* name;
  // Buffers of the ingress group are limited to `ingress_bytes`.
  std::function<std::unique_ptr<Backend>(uint64_t ingress_bytes)> make;
  friend void PrintTo(const Parameter& parameter, std::ostream* out) { *out << parameter.name; }
};

class Conformance : public ::testing::TestWithParam<Parameter> {
 protected:
  void make(uint64_t ingress_bytes = uint64_t{16} << 20) {
    backend = GetParam().make(ingress_bytes);
    ASSERT_NE(backend, nullptr);
  }
  Io& io() { return backend->io(); }
  ::testing::AssertionResult until(const std::function<bool()>& done) {
    if (backend->run_until(done)) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "nothing happens any more";
  }

  Handle listen(Io& on, Address address = Address::ipv4(INADDR_LOOPBACK, 0), bool reuse = false) {
    ListenOptions options;
    options.address = address;
    options.reuse_port = reuse;
    auto listener = on.listen(options);
    EXPECT_TRUE(listener.ok()) << listener.error().text;
    return listener.ok() ? *listener : kNoHandle;
  }

  struct Pair {
    Handle client;
    Handle server;
  };
  // Both ends on io(), unless told otherwise.
  Pair connect(Address to = Address::ipv4(INADDR_LOOPBACK, 0), Io* client_io = nullptr) {
    if (!client_io) client_io = &io();
    Handle listener = listen(io(), to);
    Address address = io().local_address(listener).value();
    Pair pair{client_io->open_socket(address, {}).value(), kNoHandle};
    Recorder accepting, connecting;
    accepting.then = [&] {
      if (accepting.last() >= 0) pair.server = accepting.last();
    };
    accepting.start([&](Op& op) { io().accept(op, listener); });
    connecting.start([&](Op& op) { client_io->connect(op, pair.client, address); });
    EXPECT_TRUE(until([&] { return connecting.ended && pair.server != kNoHandle; }));
    EXPECT_EQ(connecting.last(), 0);
    io().cancel(accepting.op);
    EXPECT_TRUE(until([&] { return accepting.ended; }));
    io().close(listener);
    return pair;
  }

  std::unique_ptr<Backend> backend;
};

}  // namespace millrace::reactor::conformance
