// What happens when the heap has no more memory: the process ends, at once and by name. Mail that was acknowledged is
// in the spool, and the next start finds it there, as after any kill; going on with half a change made would be worse.
// Buffers of messages are not of the heap: when those run out, receiving waits and new mail gets a 4xx.
#pragma once

namespace millrace {

inline constexpr int kOutOfMemoryExitCode = 1;

// Says why on standard error and ends the process, without destructors, and without allocating anything.
[[noreturn]] void end_out_of_memory();

// From now on, for every thread: what `new` cannot get ends the process so.
void name_the_end_of_memory();

}  // namespace millrace
