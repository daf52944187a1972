#include "queue/message.h"

#include <memory>

namespace millrace::queue {
namespace {

constexpr size_t kMostKept = 1024;
// A message with more of either would keep more memory than its object is worth.
constexpr size_t kMostRecipients = 16, kMostPieces = 64, kMostDots = 1024, kMostPrefix = 4096;

// One a thread: a message belongs to its shard.
thread_local std::vector<std::unique_ptr<Message>> kept;

}  // namespace

MessageRef MessageRef::make() {
  if (kept.empty()) return MessageRef(new Message);
  Message* message = kept.back().release();
  kept.pop_back();
  return MessageRef(message);
}

void MessageRef::retire(Message& message) {
  std::unique_ptr<Message> owned(&message);
  message.resident_link.unlink();
  const mail::Content& content = message.content;
  if (kept.size() >= kMostKept || message.envelope.recipients.capacity() > kMostRecipients ||
      content.raw.capacity() > kMostPieces || content.dots.capacity() > kMostDots ||
      content.prefix.capacity() > kMostPrefix) {
    return;
  }
  message.id = {};
  message.envelope.clear();
  message.content.clear();
  message.buffers.clear();
  message.location = {};
  message.sequence = 0;
  message.item = nullptr;
  kept.push_back(std::move(owned));
}

}  // namespace millrace::queue
