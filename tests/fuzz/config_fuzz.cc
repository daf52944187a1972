// Settings as an operator may write them: the values of flags, a TOML file, a shaping file. Whatever they are, they
// end in a configuration or in errors in words; what was accepted is accepted once more and is no change then.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/assert.h"
#include "config/parse.h"

using namespace millrace;

namespace {

// A file in memory, and its name.
class MemoryFile {
 public:
  MemoryFile() : descriptor_(memfd_create("config", 0)) { ASSERT(descriptor_ >= 0); }
  std::string fill(std::string_view text) {
    ASSERT(ftruncate(descriptor_, 0) == 0);
    ASSERT(pwrite(descriptor_, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
    return "/proc/self/fd/" + std::to_string(descriptor_);
  }

 private:
  int descriptor_;
};

}  // namespace

// The first line holds flags, separated by blanks; then the file; after a line "%%", if there is one, the
// shaping file.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static MemoryFile file, shaping;
  std::string_view input(reinterpret_cast<const char*>(data), size);
  if (input.find('\0') != input.npos) return 0;  // no argument has one
  size_t line = std::min(input.find('\n'), input.size());
  std::vector<std::string> arguments;
  for (std::string_view left = input.substr(0, line); !left.empty();) {
    std::string word(left.substr(0, left.find(' ')));
    left.remove_prefix(std::min(left.size(), word.size() + 1));
    if (word.find('/') != word.npos && !word.starts_with("--relay-from")) return 0;  // a file of this machine
    if (!word.empty()) arguments.push_back(std::move(word));
  }
  std::string_view text = input.substr(std::min(line + 1, input.size()));
  size_t second = text.find("\n%%\n");
  arguments.push_back("--config=" + file.fill(text.substr(0, second)));
  if (second != text.npos) arguments.push_back("--shaping=" + shaping.fill(text.substr(second + 4)));

  config::System system{"relay.example", uint64_t{8} << 30};
  Result<config::Invocation> parsed = config::parse(arguments, system);
  if (!parsed.ok()) {
    ASSERT(!parsed.error().text.empty());
    return 0;
  }
  if (parsed->action != config::Invocation::Action::run) return 0;
  ASSERT(parsed->config != nullptr);
  // The same words are no change.
  Result<config::Reloaded> reloaded = config::reload(*parsed, system);
  ASSERT(reloaded.ok() && reloaded->changed.empty() && reloaded->needs_restart.empty());
  return 0;
}
