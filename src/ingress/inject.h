// Messages given as memory: by the embedding API (include/millrace) and by our own reports. They are
// copied once into private buffers and then go the way of every other message (acceptance.h).
//
//   Injection injection;                      // in the caller; reusable after done
//   injection.envelope.reverse_path = "a@example.org";
//   injection.envelope.recipients.push_back({.address = "b@example.net"});
//   injection.content = text;                 // stays valid until done
//   injection.owner = this; injection.done = ...;
//   injector.inject(injection);               // done() follows exactly once, never inline
//
// Content is unstuffed, header section first, lines ended by CRLF or LF: line ends are mended.
#pragma once

#include <string>
#include <string_view>

#include "ingress/acceptance.h"

namespace millrace::ingress {

class Injector;

class Injection final : private queue::AdmissionWaiter {
 public:
  Injection() = default;
  Injection(const Injection&) = delete;
  Injection& operator=(const Injection&) = delete;
  ~Injection() { ASSERT(!busy_); }

  // ---- the message. The envelope is taken; an empty Recipient::domain is derived from the address.
  mail::Envelope envelope;
  std::string_view content;
  // A report of ours: needs no admission (it follows from mail that was admitted), its headers do not
  // steer us, and no Received is added.
  bool report = false;

  // ---- who asks
  void* owner = nullptr;
  void (*done)(void* owner, Injection& injection) = nullptr;

  // ---- the answer
  uint16_t code = 0;              // 250, or 4xx: try again, or 5xx: never
  mail::EnhancedStatus status;
  std::string text;               // what an SMTP client would have been told
  mail::SpoolId id;               // when 250
  bool accepted() const { return code == 250; }
  bool busy() const { return busy_; }

 private:
  friend class Injector;
  void on_admitted(bool refused, std::string_view why) override;
  void answer_later(const smtp::Reply& reply);
  void tell();

  Injector* injector_ = nullptr;
  Submission* submission_ = nullptr;  // with the spool
  reactor::Deferred tell_;
  bool busy_ = false;
};

class Injector {
 public:
  explicit Injector(Acceptance& acceptance);

  // REQUIRES: !injection.busy(), done set.
  void inject(Injection& injection);
  // The owner goes before the answer: done() will not be called, and a message that is with the spool
  // is accepted all the same. Harmless when not busy.
  void abandon(Injection& injection);

 private:
  friend class Injection;
  void admitted(Injection& injection);
  static void on_answer(void* self, Submission& submission, const Answer& answer);

  Acceptance& acceptance_;
  Context& context_;
};

}  // namespace millrace::ingress
