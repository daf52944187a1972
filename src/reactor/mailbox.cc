// Dmitry Vyukov's intrusive queue of many producers and one consumer. The queue always holds at
// least one node; the stub stands in when no letter does.
#include "reactor/mailbox.h"

#include "reactor/io.h"

namespace millrace::reactor {

Mailbox::Mailbox(Io& reader) : reader_(reader), head_(&stub_), tail_(&stub_) {}

void Mailbox::push(Letter& letter) {
  ASSERT(letter.deliver != nullptr);
  letter.next_letter.store(nullptr, std::memory_order_relaxed);
  Letter* before = head_.exchange(&letter, std::memory_order_acq_rel);
  before->next_letter.store(&letter, std::memory_order_release);
  // Only the first letter of an empty box wakes. A later one follows a letter that its reader has
  // not taken yet, and cannot take before the line above has run: drain() notices and comes again.
  if (before == &stub_) reader_.wake();
}

void Mailbox::drain() {
  // Letters that arrive from now on, perhaps because of those delivered below, wait for the next
  // turn: a reader that always gets new mail must still see its sockets.
  Letter* last = head_.load(std::memory_order_acquire);
  while (true) {
    Letter* letter = tail_;
    Letter* next = letter->next_letter.load(std::memory_order_acquire);
    if (letter == &stub_) {
      if (!next) {
        // Empty, or the first letter is not linked yet: then its pusher wakes us after linking it.
        return;
      }
      if (last == &stub_) {
        // An earlier call put it behind the letters that have just been delivered.
        reader_.wake();
        return;
      }
      tail_ = letter = next;
      next = letter->next_letter.load(std::memory_order_acquire);
    }
    if (!next) {
      if (head_.load(std::memory_order_acquire) == letter) {
        // The last one: put the stub behind it, so that it can leave.
        stub_.next_letter.store(nullptr, std::memory_order_relaxed);
        Letter* before = head_.exchange(&stub_, std::memory_order_acq_rel);
        before->next_letter.store(&stub_, std::memory_order_release);
        next = letter->next_letter.load(std::memory_order_acquire);
      }
      if (!next) {
        // Somebody is between the two steps of push() and does not know that we look: come again.
        reader_.wake();
        return;
      }
    }
    tail_ = next;
    bool done = letter == last;
    letter->deliver(letter->receiver, *letter);
    if (done) {
      if (tail_ != &stub_ || stub_.next_letter.load(std::memory_order_acquire)) reader_.wake();
      return;
    }
  }
}

}  // namespace millrace::reactor
