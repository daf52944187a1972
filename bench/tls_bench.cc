// What TLS costs a core: full and resumed handshakes (both ends together), and 20 KiB moved through two engines.
// Run it where tools/wolfssl has built the library; with the system's package it shows what that costs.
#include <benchmark/benchmark.h>
#include <stdlib.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/assert.h"
#include "tls/engine.h"

namespace {

using namespace millrace::tls;

std::shared_ptr<ServerContext> make_server(const std::string& key_options) {
  char name[] = "/tmp/millrace-bench-XXXXXX";
  ASSERT(mkdtemp(name) != nullptr);
  const std::string at = name;
  const std::string command = "openssl req -x509 -newkey " + key_options + " -nodes -days 30 -subj /CN=bench -keyout " +
                              at + "/key -out " + at + "/chain 2> /dev/null";
  ASSERT(std::system(command.c_str()) == 0);
  ServerSettings settings;
  settings.certificates.push_back(*read_certificate({at + "/chain", at + "/key"}));
  std::filesystem::remove_all(at);
  return *ServerContext::make(settings);
}

void pass(Engine& from, Engine& to, std::string& scratch, size_t& plain) {
  scratch.swap(from.output());
  from.output().clear();
  to.give(scratch);
  size_t written = 0;
  while (const size_t ready = to.next()) {
    ASSERT(ready <= to.taken() - written);
    to.read(scratch.data() + written, ready);
    written += ready;
  }
  plain += written;
}

void connect(Engine& near, Engine& far) {
  std::string scratch;
  size_t plain = 0;
  while (!near.output().empty() || !far.output().empty()) {
    pass(near, far, scratch, plain);
    pass(far, near, scratch, plain);
  }
  ASSERT(near.state() == Engine::State::open && far.state() == Engine::State::open);
}

void handshake(benchmark::State& state, const char* key, bool resume) {
  auto server = make_server(key);
  auto client = *ClientContext::make({});
  for (auto _ : state) {
    ClientOptions options;
    if (resume) options.session_key = "peer";
    auto near = Engine::connect(client, options);
    auto far = Engine::accept(server);
    connect(*near, *far);
  }
}

void message(benchmark::State& state) {
  auto near = Engine::connect(*ClientContext::make({}), {});
  auto far = Engine::accept(make_server("ec -pkeyopt ec_paramgen_curve:P-256"));
  connect(*near, *far);
  std::string text(20 * 1024, 'x');
  std::string scratch;
  size_t plain = 0;
  for (auto _ : state) {
    iovec part{text.data(), text.size()};
    std::span<iovec> parts(&part, 1);
    near->encrypt(parts, SIZE_MAX);
    pass(*near, *far, scratch, plain);
  }
  ASSERT(plain == text.size() * state.iterations());
  state.SetBytesProcessed(static_cast<int64_t>(plain));
}

BENCHMARK_CAPTURE(handshake, full_ecdsa_p256, "ec -pkeyopt ec_paramgen_curve:P-256", false);
BENCHMARK_CAPTURE(handshake, full_rsa_2048, "rsa:2048", false);
BENCHMARK_CAPTURE(handshake, resumed, "ec -pkeyopt ec_paramgen_curve:P-256", true);
BENCHMARK(message)->Name("20_KiB_one_way");

}  // namespace

BENCHMARK_MAIN();
