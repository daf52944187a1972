#include "script.h"

#include <fmt/format.h>

#include <charconv>

namespace millrace::transcripts {
namespace {

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

std::string_view take_word(std::string_view& text) {
  text = trim(text);
  size_t end = text.find(' ');
  std::string_view word = text.substr(0, end);
  text = end == text.npos ? std::string_view() : trim(text.substr(end));
  return word;
}

// "# row 7", "# rows 7, 8 and 26; RFC 5321 2.3.8": the numbers after the word, up to what is none.
void note_rows(std::string_view comment, std::set<unsigned>& rows) {
  for (std::string_view word : {"# row ", "# rows "}) {
    if (!comment.starts_with(word)) continue;
    std::string_view rest = comment.substr(word.size());
    while (true) {
      rest = trim(rest);
      if (rest.starts_with("and ")) rest.remove_prefix(4);
      unsigned number = 0;
      auto [end, problem] = std::from_chars(rest.data(), rest.data() + rest.size(), number);
      if (problem != std::errc()) break;
      rows.insert(number);
      rest.remove_prefix(static_cast<size_t>(end - rest.data()));
      rest = trim(rest);
      if (rest.starts_with(',')) {
        rest.remove_prefix(1);
      } else if (!rest.starts_with("and ")) {
        break;
      }
    }
    return;
  }
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// "C", "C2", "W13".
bool is_party(std::string_view word) {
  if (word.empty() || std::string_view("CSRW").find(word[0]) == std::string_view::npos) return false;
  for (char c : word.substr(1)) {
    if (!is_digit(c)) return false;
  }
  return true;
}

Step parse_step(std::string_view line, unsigned number) {
  Step step;
  step.line = number;
  size_t end = 0;
  while (end < line.size() && line[end] != ' ' && line[end] != ':' && line[end] != '+') ++end;
  std::string_view word = line.substr(0, end);
  std::string_view rest = line.substr(end);
  if (!is_party(word)) {
    if (rest.starts_with(':')) rest.remove_prefix(1);
    step.verb = word;
    step.text = trim(rest);
    return step;
  }
  step.party = word.substr(0, 1);
  if (word.size() > 1) std::from_chars(word.data() + 1, word.data() + word.size(), step.connection);
  if (rest.starts_with(':') || rest.starts_with('+')) {
    step.verb = rest.substr(0, 1);
    rest.remove_prefix(1);
    if (rest.starts_with(' ')) rest.remove_prefix(1);
    step.text = rest;  // as it is: blanks at the end of a line are sent
    return step;
  }
  std::string_view verb = take_word(rest);
  if (verb.ends_with(':')) verb.remove_suffix(1);
  step.verb = verb;
  step.text = rest;
  return step;
}

int hex_value(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

Result<std::vector<Scenario>> parse(std::string_view text, const std::string& file) {
  std::vector<Scenario> scenarios;
  std::set<unsigned> file_rows;
  std::set<std::string> names;
  unsigned number = 0;
  auto wrong = [&](std::string_view what) { return fail(Error{fmt::format("{}:{}: {}", file, number, what)}); };
  while (!text.empty()) {
    size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == text.npos ? text.size() : end + 1);
    ++number;
    if (trim(line).empty()) continue;
    if (line[0] == '#') {
      note_rows(line, scenarios.empty() ? file_rows : scenarios.back().rows);
      continue;
    }
    if (line.starts_with("== ")) {
      Scenario& scenario = scenarios.emplace_back();
      scenario.file = file;
      scenario.name = trim(line.substr(3));
      scenario.line = number;
      scenario.rows = file_rows;
      if (!names.insert(scenario.name).second) return wrong("two scenarios of this name");
      continue;
    }
    if (scenarios.empty()) return wrong("a step before the first scenario (== name)");
    Scenario& scenario = scenarios.back();
    if (line[0] == '|') {
      if (scenario.steps.empty()) return wrong("a line of a block, and no step above it");
      line.remove_prefix(1);
      if (line.starts_with(' ')) line.remove_prefix(1);
      scenario.steps.back().block.emplace_back(line);
      continue;
    }
    if (line.starts_with("sim only:")) {
      scenario.sim_only = trim(line.substr(9));
      if (scenario.sim_only.empty()) return wrong("say why it can only be simulated");
      continue;
    }
    Step step = parse_step(line, number);
    if (step.verb == "relay" && step.text.starts_with("--")) {
      if (!scenario.steps.empty()) return wrong("flags of the relay come before the first step");
      for (std::string& word : words_of(step.text)) scenario.flags.push_back(std::move(word));
      continue;
    }
    if (step.party == "R" || step.party == "W") scenario.scripts_receiver = true;
    scenario.steps.push_back(std::move(step));
  }
  for (const Scenario& scenario : scenarios) {
    number = scenario.line;
    if (scenario.steps.empty()) return wrong("a scenario without steps");
    if (scenario.rows.empty()) return wrong("a scenario without a row (# row N)");
  }
  return scenarios;
}

Result<std::string> resolve(std::string_view text, bool pattern) {
  std::string out;
  auto wrong = [&](std::string_view what) { return fail(Error{fmt::format("{} in: {}", what, text)}); };
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '*' && pattern) {
      out += kAnything;
    } else if (c == '{') {
      // {TEXT*N}; a brace that is not one stands for itself.
      size_t close = text.find('}', i);
      size_t star = close == text.npos ? text.npos : text.substr(0, close).rfind('*');
      size_t count = 0;
      bool repeat = star != text.npos && star > i && star + 1 < close;
      if (repeat) {
        auto [end, problem] = std::from_chars(text.data() + star + 1, text.data() + close, count);
        repeat = problem == std::errc() && end == text.data() + close;
      }
      if (!repeat) {
        out += c;
        continue;
      }
      Result<std::string> inner = resolve(text.substr(i + 1, star - i - 1), pattern);
      if (!inner.ok()) return inner;
      if (inner->size() * count > (size_t{1} << 31)) return wrong("too long a repetition");
      for (; count > 0; --count) out += *inner;
      i = close;
    } else if (c != '\\') {
      out += c;
    } else {
      if (++i == text.size()) return wrong("a backslash at the end");
      switch (text[i]) {
        case 'r': out += '\r'; break;
        case 'n': out += '\n'; break;
        case 't': out += '\t'; break;
        case '0': out += '\0'; break;
        case 's': out += ' '; break;
        case '\\':
        case '*':
        case '{':
        case '|': out += text[i]; break;
        case 'x': {
          int high = i + 2 < text.size() ? hex_value(text[i + 1]) : -1;
          int low = i + 2 < text.size() ? hex_value(text[i + 2]) : -1;
          if (high < 0 || low < 0) return wrong("\\x without two hexadecimal digits");
          out += static_cast<char>(high * 16 + low);
          i += 2;
          break;
        }
        default: return wrong(fmt::format("unknown escape \\{}", text[i]));
      }
    }
  }
  return out;
}

bool matches(std::string_view text, std::string_view pattern) {
  // One place to go back to is enough: the last kAnything.
  size_t t = 0, p = 0, star = pattern.npos, after = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == kAnything) {
      star = p++;
      after = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p;
      ++t;
    } else if (star != pattern.npos) {
      p = star + 1;
      t = ++after;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == kAnything) ++p;
  return p == pattern.size();
}

Result<int64_t> parse_time(std::string_view text) {
  text = trim(text);
  int64_t number = 0;
  auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  constexpr int64_t kSecond = 1'000'000'000;
  int64_t factor = unit == "ms" ? kSecond / 1000 : unit == "s" ? kSecond : unit == "m" ? 60 * kSecond
                   : unit == "h" ? 3600 * kSecond : unit == "d" ? 86'400 * kSecond : 0;
  if (problem != std::errc() || factor == 0) return fail(Error{fmt::format("'{}' is no time; write 250ms, 10s, 5m, 2h", text)});
  return number * factor;
}

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  bool quoted = false, any = false;
  for (char c : text) {
    if (c == '"') {
      quoted = !quoted;
      any = true;
    } else if (c == ' ' && !quoted) {
      if (any) words.push_back(std::move(word));
      word.clear();
      any = false;
    } else {
      word += c;
      any = true;
    }
  }
  if (any) words.push_back(std::move(word));
  return words;
}

}  // namespace millrace::transcripts
