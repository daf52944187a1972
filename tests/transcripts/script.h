// The language of transcripts: text to scenarios. README.md describes it for whoever writes one; this is its
// grammar. What a step does is the player's business (player.h).
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace millrace::transcripts {

struct Step {
  unsigned line = 0;  // of the file
  // "C", "S", "R", "W": a party of a connection; empty: a directive.
  std::string party;
  unsigned connection = 1;         // C2: 2
  std::string verb;                // ":" a line, "+" octets without a line end, else a word: "close", "event"
  std::string text;                // the rest of the line, escapes not yet resolved
  std::vector<std::string> block;  // the lines below it that begin with '|', likewise
};

struct Scenario {
  std::string file, name;
  std::string folder;              // that the file lies in; set by who has read it
  unsigned line = 0;
  std::set<unsigned> rows;         // of the checklist, named by comments of the file's head and its own
  std::vector<std::string> flags;  // of the relay
  std::string sim_only;            // why it can only be simulated; empty: it is run both ways
  std::vector<Step> steps;
  bool scripts_receiver = false;   // has lines of R or W
};

// All scenarios of a file's text, or what is wrong with it and where.
Result<std::vector<Scenario>> parse(std::string_view text, const std::string& file);

// Resolves \r \n \t \0 \\ \* \xHH and {TEXT*N}. `pattern`: an unescaped '*' becomes kAnything.
constexpr char kAnything = '\x1a';
Result<std::string> resolve(std::string_view text, bool pattern);
// Whether `text` is what `pattern` (resolved) says: kAnything stands for any octets, none included.
bool matches(std::string_view text, std::string_view pattern);

// "250ms", "10s", "5m", "2h", "4d"; in nanoseconds.
Result<int64_t> parse_time(std::string_view text);
// Words, with "quotes" around those that hold blanks: a=1 b="x y".
std::vector<std::string> words_of(std::string_view text);

}  // namespace millrace::transcripts
