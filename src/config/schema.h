// The schema: one table that binds every field of Config to its flag (which is also its TOML key),
// its stage, unit, bounds, help and default. The command line, the file, --help, --check-config and
// the table in docs/configuration.md are all made from it, so they cannot disagree.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "config/config.h"

namespace millrace::config {

// Where in the flow a setting acts; --help is grouped by it.
enum class Stage : uint8_t {
  process,
  ingress,
  spool,
  dns,
  routing,
  retry,
  limits,
  timeouts,
  reporting
};
std::string_view to_string(Stage stage);

struct Field {
  enum class Shape : uint8_t {
    one,     // --name VALUE, once
    many,    // --name VALUE, repeated; an array in the file
    toggle,  // --name or --no-name; true or false in the file
  };
  enum class Toml : uint8_t { text, integer, boolean };  // how --check-config writes it

  std::string_view name;   // without the dashes
  std::string_view value;  // what --help shows for the value, with its unit
  Stage stage = Stage::process;
  Shape shape = Shape::one;
  Toml toml = Toml::text;
  bool at_start_only = false;  // a reload that changes it says so and keeps the old value
  std::string_view help;
  std::string_view when_empty;  // what the default means where it is empty or 0

  // Reads one value into the field; `many`: appends it. Says what is wrong and what would be right.
  std::function<Status(Config&, std::string_view)> set;
  std::function<void(Config&)> clear;  // `many` only
  // The values as texts that `set` reads back.
  std::function<std::vector<std::string>(const Config&)> get;
};

const std::vector<Field>& schema();
const Field* find_field(std::string_view name);

// Every field at its default, the lists included.
Config default_config();
// The default as a person reads it: "50M", "none", or when_empty.
std::string default_text(const Field& field);

// Whether the fields fit together; bounds of single fields have been checked by `set`. Names the
// flags and the remedy, one line an error.
Status validate(const Config& config);

}  // namespace millrace::config
