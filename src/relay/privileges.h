// Giving up root: the relay runs as --user from before it opens its spool, keeping nothing but the right
// to bind low ports.
#pragma once

#include "base/result.h"
#include "config/parse.h"

namespace millrace::relay {

// Makes the spool directory (owned by the user) if it is not there, becomes the user, keeps
// CAP_NET_BIND_SERVICE, and forbids any new privilege. Checks that what is needed later can be read and
// written by that user. As another user than root, only the check. Before any thread is started.
Status become_user(const config::Invocation& invocation);

}  // namespace millrace::relay
