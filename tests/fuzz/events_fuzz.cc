// An event as it lies in the spool: any bytes are refused or decoded; what was decoded is encoded the same, and its
// line for the events file is one line of valid JSON that carries no control character.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "base/assert.h"
#include "events/event.h"
#include "events/json.h"

using namespace millrace;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view bytes(reinterpret_cast<const char*>(data), size);
  Result<events::Event> event = events::decode(bytes);
  if (!event.ok()) return 0;
  std::string again;
  events::encode(*event, again);
  Result<events::Event> same = events::decode(again);
  ASSERT(same.ok());
  std::string third;
  events::encode(*same, third);
  ASSERT(again == third);

  std::string line;
  events::append_json(*event, "relay.example", line);
  ASSERT(line.ends_with('\n'));
  for (char c : std::string_view(line).substr(0, line.size() - 1)) ASSERT(static_cast<unsigned char>(c) >= ' ');
  nlohmann::json parsed = nlohmann::json::parse(line, nullptr, false);
  ASSERT(parsed.is_object() && parsed.contains("type"));
  ASSERT(parsed.contains("time") == (event->time_ms != 0));
  return 0;
}
