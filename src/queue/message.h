// A resident message: envelope and content in memory, shared by the queue items that deliver it.
// Belongs to its home shard, which alone counts references and changes it; another shard may read it
// while the home holds an Attempt out on loan. Immutable once accepted.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/intrusive_list.h"
#include "mail/content.h"
#include "mail/envelope.h"
#include "mail/spool_id.h"
#include "reactor/buffers.h"
#include "spool/spool.h"

namespace millrace::queue {

struct Item;

struct Message {
  mail::SpoolId id;
  mail::Envelope envelope;
  mail::Content content;                     // its spans lie in `buffers`
  std::vector<reactor::BufferRef> buffers;
  spool::Location location;                  // where it lies in the spool, once durable
  uint64_t sequence = 0;                     // of its record
  uint32_t references = 0;

  // The queue's own.
  Item* item = nullptr;                      // one of its items, while it is queued and resident
  Link resident_link;                        // oldest first; off while an attempt is out
};

class MessageRef {
 public:
  MessageRef() = default;
  explicit MessageRef(Message* message) : message_(message) {
    if (message_) ++message_->references;
  }
  MessageRef(const MessageRef& other) : MessageRef(other.message_) {}
  MessageRef(MessageRef&& other) noexcept : message_(std::exchange(other.message_, nullptr)) {}
  MessageRef& operator=(MessageRef other) noexcept {
    std::swap(message_, other.message_);
    return *this;
  }
  ~MessageRef() {
    if (message_ && --message_->references == 0) retire(*message_);
  }
  // An empty message. Objects of those that have gone are used again, with the room of their texts and lists:
  // at a steady rate a message takes no memory for itself.
  static MessageRef make();

  Message* get() const { return message_; }
  Message* operator->() const { return message_; }
  Message& operator*() const { return *message_; }
  explicit operator bool() const { return message_ != nullptr; }

 private:
  static void retire(Message& message);

  Message* message_ = nullptr;
};

}  // namespace millrace::queue
