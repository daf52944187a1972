#include "ingress/settings.h"

#include <algorithm>

#include "base/out_of_memory.h"

namespace millrace::ingress {
namespace {

mail::ReceivedMode received_mode_of(config::ReceivedHeader header) {
  switch (header) {
    case config::ReceivedHeader::full: return mail::ReceivedMode::full;
    case config::ReceivedHeader::hide_client: return mail::ReceivedMode::hide_client;
    case config::ReceivedHeader::off: return mail::ReceivedMode::off;
  }
  UNREACHABLE();
}

bool any_contains(const std::vector<reactor::Network>& networks, const reactor::Address& address) {
  return std::any_of(networks.begin(), networks.end(),
                     [&](const reactor::Network& network) { return network.contains(address); });
}

smtp::ServerOptions server_options_of(const config::Config& config) {
  smtp::ServerOptions options;
  options.hostname = config.hostname;
  options.max_message_size = std::min(config.max_message_size, smtp::kLargestMessage);
  options.max_recipients = config.max_recipients;
  options.max_errors = config.max_errors;
  options.starttls = config.tls_server != nullptr;
  options.require_tls = config.require_tls;
  options.extensions.requiretls = config.tls_server != nullptr;
  options.extensions.auth = config.accounts != nullptr;
  // Line faults are judged at the end of the message, by the settings of that moment.
  options.keep_bad_lines = true;
  return options;
}

}  // namespace

Settings::Settings(config::Snapshot snapshot)
    : config(std::move(snapshot)),
      server(server_options_of(*config)),
      rules({config->header_pool, config->header_job, config->header_envid, config->header_expire}),
      received_mode(received_mode_of(config->received)) {
  if (!config->tls_server) return;
  auto made = tls::ServerContext::make(*config->tls_server);
  if (!made.ok()) end_out_of_memory();  // it has been made once when the configuration was read
  tls = std::move(*made);
}

bool Settings::may_relay(const reactor::Address& client) const {
  return any_contains(config->relay_from, client);
}

const config::Account* find_account(const Settings& settings, std::string_view name) {
  return settings.config->accounts ? settings.config->accounts->find(name) : nullptr;
}

bool Settings::may_proxy(const reactor::Address& peer) const {
  return any_contains(config->proxy_from, peer);
}

}  // namespace millrace::ingress
