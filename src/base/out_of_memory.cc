#include "base/out_of_memory.h"

#include <unistd.h>

#include <new>
#include <string_view>

namespace millrace {

void end_out_of_memory() {
  constexpr std::string_view kWords =
      "millrace: out of memory: this process ends; what was acknowledged is in the spool, and the next start goes on "
      "with it. Lower --memory, or give it more\n";
  [[maybe_unused]] ssize_t written = ::write(STDERR_FILENO, kWords.data(), kWords.size());
  _exit(kOutOfMemoryExitCode);
}

void name_the_end_of_memory() { std::set_new_handler(end_out_of_memory); }

}  // namespace millrace
