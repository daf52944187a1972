// libmillrace: a relay inside your program. `millrace` itself is a main() around this class.
//
//   millrace::Relay relay;
//   if (auto problem = relay.configure({"--spool", "/var/spool/x", "--listen", "127.0.0.1:2525"})) ...
//   relay.observe([](std::string_view json) { ... });
//   if (auto problem = relay.start()) ...          // recovers the spool, listens, returns
//   relay.inject({"from@a.example", {"to@b.example"}, "Subject: x\r\n\r\nhello\r\n"},
//                [](const millrace::Injected& answer) { ... });
//   relay.stop();                                  // drains; what is queued stays on disk
//
// A Relay runs one thread a shard. Its functions may be called from any thread, one at a time, except
// where they say otherwise.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "millrace/events.h"
#include "millrace/message.h"
#include "millrace/status.h"

namespace millrace {

class Relay {
 public:
  Relay();
  ~Relay();  // stops, if need be
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  // The flags of `millrace`, one string each word. Before start().
  Problem configure(const std::vector<std::string>& arguments);
  // Before start(). More than one observer may be added.
  void observe(EventObserver observer);
  // Opens and recovers the spool, binds the listeners, starts the threads. Returns when mail is accepted.
  Problem start();
  // The address that the n-th --listen is bound to ("127.0.0.1:40123"): tells the port when 0 was given.
  std::string listen_address(unsigned n) const;
  // Hands a message over; `done` is called once, on a thread of the relay, when it is durable or refused.
  // Any thread, any number at a time, between start() and stop().
  void inject(Message message, std::function<void(const Injected&)> done);
  // Any thread, between start() and stop(). Not a snapshot of one moment.
  RelayStatus status() const;
  // Reads the configuration file again and adopts what may change while running; on a problem the old
  // configuration stays. Reopens the events file.
  Problem reload();
  // Stops accepting, finishes what is under way up to --drain-timeout, syncs, joins the threads.
  void stop();
  // Any thread, also while stop() waits: ends the drain at once.
  void stop_now();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace millrace
