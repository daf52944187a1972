// Observing what becomes of messages.
#pragma once

#include <functional>
#include <string_view>

namespace millrace {

// Called with one event as a line of JSON (docs/events.md; without line end), after its record is durable,
// on a thread of the relay: be quick. The view lasts for the call. Events of one message come in order, and
// may come again after a crash, with the same id; calls for messages of different shards overlap, so the
// function must be safe to call from several threads.
using EventObserver = std::function<void(std::string_view json)>;

}  // namespace millrace
