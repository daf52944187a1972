// The configuration as ingress uses it: made once per snapshot and shard, shared by the sessions that
// run under it. A session keeps the ServerOptions it began with (hostname, size limit, recipients);
// everything else is taken anew at each MAIL, so a reload reaches connections that live for days.
#pragma once

#include <memory>

#include "config/config.h"
#include "config/credentials.h"
#include "mail/headers.h"
#include "reactor/address.h"
#include "smtp/server_protocol.h"
#include "tls/context.h"

namespace millrace::ingress {

struct Settings {
  explicit Settings(config::Snapshot snapshot);

  // Places of the metadata headers in HeaderScan::values.
  enum Metadata : size_t { kPool, kJob, kEnvid, kExpire };

  config::Snapshot config;
  smtp::ServerOptions server;
  mail::HeaderRules rules;
  mail::ReceivedMode received_mode;
  std::shared_ptr<tls::ServerContext> tls;  // null: not offered

  bool may_relay(const reactor::Address& client) const;
  bool may_proxy(const reactor::Address& peer) const;
};
// nullptr: no such account (any more).
const config::Account* find_account(const Settings& settings, std::string_view name);

using SettingsRef = std::shared_ptr<const Settings>;

}  // namespace millrace::ingress
