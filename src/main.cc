// millrace: arguments, signals, and a Relay. Exit codes: 0 stopped as told, 1 could not run (on), 2 bad usage.
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#ifdef MILLRACE_MIMALLOC
#include <mimalloc.h>
#endif

#include <cerrno>
#include <cstdio>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "base/log.h"
#include "base/out_of_memory.h"
#include "config/parse.h"
#include "millrace/relay.h"
#include "millrace/version.h"
#include "reactor/files.h"
#include "relay/confinement.h"
#include "relay/descriptors.h"
#include "relay/privileges.h"
#include "tls/library.h"

namespace {

using namespace millrace;

void share_out_descriptors(const config::Config& config) {
  relay::DescriptorSplit split = relay::split_descriptors(config, relay::raise_descriptor_limit(config));
  log::info("descriptors: {}, of which {} for inbound and {} for outbound connections", split.limit, split.inbound,
            split.outbound);
  if (!split.enough()) {
    log::warning("{} descriptors are too few for --max-connections {} and --total-connections {}, which are scaled down "
                 "({} needed): raise LimitNOFILE= or ulimit -n, or lower the two",
                 split.limit, config.max_connections, config.total_connections, split.needed);
  }
}

// Memory that was freed goes back to the system after a while, not at once: what a busy relay frees it needs
// again a moment later, and each way costs a system call, a flush of every core's address cache and faults.
void keep_freed_memory_for_a_while() {
#ifdef MILLRACE_MIMALLOC
  constexpr long kMilliseconds = 5000;
  mi_option_set(mi_option_decommit_delay, kMilliseconds);
#endif
}

// The allocator's own `new` ends the process without a word and asks no handler of the standard's.
void name_the_end_of_all_memory() {
  name_the_end_of_memory();
#ifdef MILLRACE_MIMALLOC
  mi_register_error(
      [](int error, void*) {
        if (error == ENOMEM) end_out_of_memory();
      },
      nullptr);
#endif
}

log::Level level_of(const std::string& name) {
  if (name == "debug") return log::Level::debug;
  if (name == "warning") return log::Level::warning;
  if (name == "error") return log::Level::error;
  return log::Level::info;
}

int run(const config::Invocation& invocation, const std::vector<std::string>& arguments) {
  const config::Config& config = *invocation.config;
  log::set_level(level_of(config.log_level));
  share_out_descriptors(config);
  if (!config.user.empty()) {
    Status status = relay::become_user(invocation);
    if (!status.ok()) {
      std::fprintf(stderr, "millrace: %s\n", status.error().text.c_str());
      return 1;
    }
  }

  if (config.user.empty() && geteuid() == 0) {
    log::warning("running as root: give --user NAME, which keeps nothing of root but the right to bind low ports");
  }
  if (config.confinement) {
    // Made now, because what does not exist yet cannot be named as reachable.
    (void)reactor::create_directory(config.spool);
    Status confined = relay::confine_files(relay::reachable_files(invocation));
    if (!confined.ok()) log::warning("--confinement: {}; files are not confined", confined.error().text);
  }

  // Every thread inherits the mask: signals come to sigwait() below and nowhere else.
  sigset_t signals;
  sigemptyset(&signals);
  for (int number : {SIGTERM, SIGINT, SIGHUP, SIGUSR2}) sigaddset(&signals, number);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  Relay relay;
  Problem problem = relay.configure(arguments);
  if (!problem) problem = relay.start();
  if (problem) {
    std::fprintf(stderr, "millrace: %s\n", problem.text.c_str());
    return 1;
  }
  if (config.confinement) {
    Status confined = relay::confine_system_calls();
    if (!confined.ok()) log::warning("--confinement: {}; system calls are not confined", confined.error().text);
  }
  const std::vector<config::Listen> listeners = config::listeners(config);
  for (unsigned n = 0; n < listeners.size(); ++n) {
    log::info("listening on {}{}", relay.listen_address(n), listeners[n].tls ? " (TLS)" : "");
  }
  if (!tls::has_fast_library()) {
    log::warning("TLS will be slow: {}; tools/wolfssl builds a fast one", tls::library_description());
  }
  log::info("millrace {} is ready; durability={}", version(),
            config.durability == config::Durability::disk ? "disk" : "memory");

  std::thread stopper;
  pthread_t self = pthread_self();
  while (true) {
    int number = 0;
    sigwait(&signals, &number);
    if (number == SIGUSR2) break;  // the stopper has finished
    if (number == SIGHUP) {
      if (stopper.joinable()) continue;  // there is nothing left to configure
      Problem wrong = relay.reload();
      if (wrong) {
        log::error("reload: {}; the old configuration stays", wrong.text);
      } else {
        log::info("configuration reloaded");
      }
      continue;
    }
    if (stopper.joinable()) {
      log::info("stopping at once");
      relay.stop_now();
      continue;
    }
    log::info("stopping: no new connections; transactions under way have {} s", config.drain_timeout_ms / 1000);
    try {
      stopper = std::thread([&relay, self] {
        relay.stop();
        pthread_kill(self, SIGUSR2);
      });
    } catch (const std::system_error&) {
      relay.stop();  // no thread to be had: then nothing hears a second signal
      break;
    }
  }
  if (stopper.joinable()) stopper.join();
  log::info("stopped; what is queued stays in the spool");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  name_the_end_of_all_memory();
  keep_freed_memory_for_a_while();
  std::vector<std::string> arguments(argv + 1, argv + argc);
  Result<config::Invocation> invocation = config::parse(argc, argv);
  if (!invocation.ok()) {
    std::fprintf(stderr, "millrace: %s\n", invocation.error().text.c_str());
    return 2;
  }
  if (invocation->action != config::Invocation::Action::run) {
    std::fputs(invocation->output.c_str(), stdout);
    return 0;
  }
  return run(*invocation, arguments);
}
