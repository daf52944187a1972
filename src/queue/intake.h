// What ingress (and bounce, and the embedding API) asks of the queue: whether a message may come in, and
// to take a durable one over.
#pragma once

#include <cstdint>
#include <string>

#include "base/intrusive_list.h"
#include "queue/message.h"

namespace millrace::queue {

// Someone who waits to start a message while delivery catches up (admission follows delivery).
struct AdmissionWaiter {
  virtual ~AdmissionWaiter() = default;
  // May start now (`refused` false), or 452 4.3.1 with `why`. Never called inline from admit().
  virtual void on_admitted(bool refused, std::string_view why) = 0;
  Link link;
  int64_t since = 0;  // monotonic
};

enum class Admission : uint8_t {
  now,      // go on
  later,    // on_admitted() will be called; until then read nothing more of this transaction
  refused,  // 452 4.3.1
};

class Intake {
 public:
  virtual ~Intake() = default;
  // Before each transaction (at MAIL). `later` links the waiter; unlink it to give up. `why` is set when
  // refused.
  virtual Admission admit(AdmissionWaiter& waiter, std::string& why) = 0;
  // Takes over a message whose Append has completed: location and sequence are set.
  virtual void enqueue(MessageRef message) = 0;
};

}  // namespace millrace::queue
