// Where events go once the record that holds them is durable.
#pragma once

#include "events/event.h"

namespace millrace::events {

class Sink {
 public:
  virtual ~Sink() = default;
  // Whether anybody listens. If not, events need not be made up for emit().
  virtual bool wanted() const { return true; }
  // Too much is unwritten (a disk that stalls): nothing that makes more events should be started.
  virtual bool behind() const { return false; }
  // `sequence` is the spool record's: when all events up to it are safely out, they need no replay. 0:
  // the event has no record (a refusal, a connection failure).
  virtual void emit(uint64_t sequence, const Event& event) = 0;
};

}  // namespace millrace::events
