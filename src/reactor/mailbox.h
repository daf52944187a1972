// Letters from core to core. A mailbox is a lock-free queue of many writers and one reader (Vyukov's
// intrusive MPSC queue): the link lives in the letter, the letter in the object that travels, so a push
// is one atomic exchange, never fails and never waits. That is how outcomes and returns always have
// room; the number of letters is bounded by the number of the objects themselves, which credits bound.
//
// While a letter is under way its object belongs to the receiver; it travels back by the same means.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/assert.h"

namespace millrace::reactor {

class Io;

struct Letter {
  std::atomic<Letter*> next_letter{nullptr};
  void* receiver = nullptr;
  void (*deliver)(void* receiver, Letter& letter) = nullptr;

  // letter.address<&Writer::on_append>(writer), with void Writer::on_append(Letter&).
  template <auto method, typename Receiver>
  void address(Receiver* to) {
    receiver = to;
    deliver = [](void* self, Letter& letter) { (static_cast<Receiver*>(self)->*method)(letter); };
  }
};

class Mailbox {
 public:
  // Any thread. Wakes the reader when the box was empty.
  void push(Letter& letter);
  // The reader's thread: delivers every letter that has arrived. A letter pushed meanwhile may wait for
  // the next call. The letter may be pushed again, anywhere, from within its delivery.
  void drain();
  explicit Mailbox(Io& reader);

 private:
  Io& reader_;
  alignas(64) std::atomic<Letter*> head_;
  alignas(64) Letter* tail_;
  Letter stub_;
};

}  // namespace millrace::reactor
