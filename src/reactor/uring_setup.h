// How every ring of the relay is set up, shared by the probe and the back end.
#pragma once

#include <liburing.h>

#include "base/result.h"

namespace millrace::reactor {

// SINGLE_ISSUER and DEFER_TASKRUN: one thread submits, and completions are worked off only when it
//   asks, never in the middle of something else (-4 us of 29 per message where it was measured).
// COOP_TASKRUN: implied in effect, kept for kernels that look at it alone.
// R_DISABLED: the ring may be made on one thread and enabled on the one that will run it.
// SUBMIT_ALL: one bad entry does not hold up those after it.
inline constexpr unsigned kRingFlags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                                       IORING_SETUP_COOP_TASKRUN | IORING_SETUP_CQSIZE |
                                       IORING_SETUP_SUBMIT_ALL | IORING_SETUP_R_DISABLED;

// The message for a failed io_uring_setup(2), with the remedy.
Error setup_error(int number);

}  // namespace millrace::reactor
