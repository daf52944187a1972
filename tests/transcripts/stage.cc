#include "stage.h"

#include <map>
#include <set>
#include <string_view>

namespace millrace::transcripts {
namespace {

// "--no-chunking" and "--chunking" set the same thing.
std::string_view name_of(std::string_view flag) {
  flag.remove_prefix(2);
  if (flag.starts_with("no-")) flag.remove_prefix(3);
  return flag;
}

}  // namespace

std::vector<std::string> with_defaults(const std::vector<std::string>& flags, std::vector<std::string> defaults) {
  for (const char* word : {"--hostname", kRelayName, "--relay-from", "203.0.113.0/28",
                           "--shards", "1", "--memory", "64M", "--max-message-size", "1000000", "--segment-size", "4M",
                           "--spool-reserve", "4M", "--total-connections", "100", "--max-connections", "1000",
                           "--log-level", "debug"}) {
    defaults.emplace_back(word);
  }
  std::set<std::string_view> given;
  for (const std::string& flag : flags) {
    if (flag.starts_with("--")) given.insert(name_of(flag));
  }
  std::vector<std::string> all;
  for (size_t i = 0; i + 1 < defaults.size(); i += 2) {
    if (given.contains(name_of(defaults[i]))) continue;
    all.push_back(defaults[i]);
    all.push_back(defaults[i + 1]);
  }
  all.insert(all.end(), flags.begin(), flags.end());
  return all;
}

}  // namespace millrace::transcripts
