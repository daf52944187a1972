// From the end of data to the durable message, the same for SMTP sessions, the embedding API and our
// own reports: header scan, what is refused, added headers, metadata, the `received` event, room for
// the outcomes, the spool, and then the queue.
//
// A Submission is one message on that way. It belongs to the Acceptance and outlives the session that
// began it: past the end of data the message is accepted even when nobody is left to tell
// (`owner = nullptr`). Its objects are reused, so in the steady state a message costs one Message and
// the strings of its envelope.
//
// No body byte is copied here, except: slow or finely cut partial messages (compact), lines that are to
// be fixed, content given as memory (append_copy). stats.body_bytes_copied counts them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/intrusive_list.h"
#include "events/event.h"
#include "ingress/context.h"
#include "ingress/settings.h"
#include "mail/headers.h"
#include "queue/message.h"
#include "smtp/data_decoder.h"
#include "smtp/reply.h"
#include "spool/spool.h"

namespace millrace::ingress {

class Acceptance;

// What the answer to a message is. `text` lives until the callback returns.
struct Answer {
  smtp::Reply reply;
  mail::SpoolId id;  // of the accepted message
  // The spool could neither keep nor void the message: no reply at all, close.
  bool close_silently = false;
};

class Submission {
 public:
  // ---- while bytes come in
  // Body bytes in order; each call keeps one reference, unless the bytes continue the last piece.
  void append(std::string_view bytes, const reactor::BufferRef& buffer);
  // The same, copied into private buffers. False: the pool is at its limit, nothing is kept of it.
  bool append_copy(std::string_view bytes);
  // Moves what pins more than it uses into private buffers. For messages that grow slowly.
  void compact();
  uint64_t bytes() const { return bytes_; }

  queue::MessageRef message;

  // ---- who asks
  void* owner = nullptr;  // nullptr: gone, nobody to tell
  void (*done)(void* owner, Submission& submission, const Answer& answer) = nullptr;
  uint64_t number = 0;    // the owner's
  // Recipients that were charged to the account's budgets, and when: given back unless it is accepted.
  uint64_t charged = 0;
  int64_t charged_at = 0;
  uint64_t quota_charged = 0;  // the same of the tenant's quota
  int64_t quota_charged_at = 0;
  Link link;              // on the owner's list

 private:
  friend class Acceptance;
  explicit Submission(Acceptance& acceptance) : acceptance_(acceptance) {}

  Acceptance& acceptance_;
  // Parallel to message->buffers until submit(), which drops repeated references.
  std::vector<spool::Piece>& pieces() { return append_.pieces; }
  spool::Append append_;
  uint64_t bytes_ = 0;
  size_t settled_ = 0;             // pieces that compact() has judged already
  reactor::BufferRef private_;     // the last private buffer and what is used of it
  uint32_t private_used_ = 0;
  std::string metadata_;
  uint64_t session_ = 0;
  std::string event_bytes_;
};

// Where a message comes from, for Received and the event. Views are read during submit() only.
struct Origin {
  std::string_view helo;
  bool esmtp = true;
  std::string_view tls_version, tls_suite;  // empty without TLS
  std::string_view tls_verified;            // of the client's certificate, where one is asked for
  uint64_t session = 0;
  uint32_t session_message = 0;
  uint32_t transaction_ms = 0;
  bool injected = false;
  // Our own: neither do its headers steer us, nor did anyone send it to us, nor is it in a tenant's quota.
  bool report = false;
  // Line ends are mended whatever --on-bad-lines says: content from memory often has bare LFs.
  bool mend_lines = false;
};

class Acceptance {
 public:
  explicit Acceptance(Context& context);
  // REQUIRES: no message is with the spool.
  ~Acceptance();
  Acceptance(const Acceptance&) = delete;
  Acceptance& operator=(const Acceptance&) = delete;

  // Of the shard's current snapshot.
  const SettingsRef& settings();

  // A new message, its envelope and buffers empty.
  Submission& begin();
  // Before submit(): the message will not come.
  void discard(Submission& submission);
  // The message is complete, message->envelope and the pieces are set. Code 0: the spool has it, and
  // `done` follows, at once or later. Otherwise the reply that refuses it (its text lives until the
  // next call here); the submission is gone then.
  [[nodiscard]] smtp::Reply submit(Submission& submission, const Settings& settings,
                                   smtp::IntakeFacts& facts, const Origin& origin);
  // Writes a `rejected` event, at most kRejectedPerSecond of them.
  void report_rejected(const mail::Envelope& envelope, std::string_view client,
                       const smtp::Reply& reply, std::string_view reason, uint64_t session,
                       events::Stage stage);

  Context& context() { return context_; }
  reactor::BufferPool& buffers() { return buffers_; }
  uint64_t pending() const { return context_.stats.pending; }
  size_t submissions() const { return submissions_; }  // those still coming in included
  // Called when the last pending message has been answered (a drain waits for it). May be null.
  void (*on_idle)(void*) = nullptr;
  void* idle_owner = nullptr;

  static constexpr uint32_t kRejectedPerSecond = 200;

 private:
  void take_raw(Submission& submission, smtp::IntakeFacts& facts);
  bool rewrite(Submission& submission);
  smtp::Reply charge_quota(Submission& submission, const config::Config& config);
  smtp::Reply check_account(queue::Message& message, const config::Account& account, const mail::HeaderScan& scan);
  void refund(Submission& submission);
  smtp::Reply apply_metadata(queue::Message& message, const Settings& settings,
                             mail::HeaderScan& scan);
  void encode_event(Submission& submission, const Origin& origin, std::string_view bad_lines);
  smtp::Reply refuse(Submission& submission, const Origin& origin, uint64_t& counter,
                     uint16_t code, mail::EnhancedStatus status, std::string_view text);
  static void on_appended(void* self, spool::Append& append);
  void finish(Submission& submission);
  void count_accepted(const mail::Envelope& envelope);
  void release(Submission& submission);

  Context& context_;
  reactor::BufferPool& buffers_;
  SettingsRef settings_;
  std::string text_;           // of the reply given last
  std::string scratch_event_;
  mail::HeaderScan scan_;      // of the message being submitted
  int64_t rejected_second_ = 0;
  uint32_t rejected_in_second_ = 0;
  std::vector<std::unique_ptr<Submission>> free_;
  size_t submissions_ = 0;     // begun and not released
  static constexpr size_t kMostFree = 256;
};

}  // namespace millrace::ingress
