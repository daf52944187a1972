// What one shard's ingress is wired to. Everything outlives the listener, the injector and every
// message they have handed to the spool.
#pragma once

#include "config/config.h"
#include "events/sink.h"
#include "ingress/accounts.h"
#include "ingress/connection_limits.h"
#include "ingress/password_checker.h"
#include "ingress/quotas.h"
#include "ingress/stats.h"
#include "mail/spool_id.h"
#include "queue/intake.h"
#include "reactor/io.h"
#include "spool/spool.h"

namespace millrace::ingress {

struct Context {
  reactor::Io& io;
  const config::Snapshot* config;  // the shard's current one; the shard replaces it between completions
  spool::Spool& spool;
  queue::Intake& intake;
  events::Sink& events;
  ConnectionLimits& limits;        // of all shards
  mail::SpoolIdMaker ids;
  unsigned shard = 0;
  Stats stats{};
  // Authentication; without them it is not offered.
  Accounts* accounts = nullptr;          // of all shards
  PasswordChecker* passwords = nullptr;  // the same
  reactor::Mailbox* mailbox = nullptr;   // the shard's
  Quotas* quotas = nullptr;              // of tenants, of all shards
};

}  // namespace millrace::ingress
