// The sending side of a session: a receiver that says anything, in any pieces, to three messages, with or without TLS.
// Every attempt comes back once; delivered is only what a positive reply came for after its end of data was in a
// group; a bare CR or LF never leaves; nothing is written after the end; no address leaves in the clear where TLS is
// required.
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "delivery/session.h"
#include "queue/message.h"

using namespace millrace;
using namespace millrace::delivery;

namespace {

struct Mail {
  queue::MessageRef message = queue::MessageRef::make();
  queue::Attempt attempt;
  std::string body;
  bool out = false, back = false;
  Mail(std::string text, unsigned recipients) : body(std::move(text)) {
    message->envelope.reverse_path = "sender@client.example";
    for (unsigned i = 0; i < recipients; ++i) {
      mail::Recipient to;
      to.address = std::string(1, static_cast<char>('a' + i)) + "@dest.example";
      to.domain = "dest.example";
      message->envelope.recipients.push_back(to);
      attempt.recipients.push_back(i);
    }
    message->content.raw = {std::string_view(body)};
    message->content.raw_size = static_cast<uint32_t>(body.size());
    message->content.ends_in_crlf = body.ends_with("\r\n");
    for (uint32_t at = 0; at < body.size(); ++at) {
      if (body[at] == '.' && (at == 0 || body[at - 1] == '\n')) message->content.dots.push_back(at);
    }
    attempt.message = message.get();
    attempt.results.resize(recipients);
  }
};

struct Owner final : SessionOwner {
  std::vector<std::unique_ptr<Mail>> mails;
  size_t next = 0;
  std::string sent;
  uint64_t unsent_ = 0;
  bool over_ = false, complete = false, handshake = false;

  queue::Attempt* take() override {
    ASSERT(!over_);
    if (next == mails.size()) return nullptr;
    mails[next]->out = true;
    return &mails[next++]->attempt;
  }
  void finished(queue::Attempt& attempt) override {
    for (auto& mail : mails) {
      if (&mail->attempt != &attempt) continue;
      ASSERT(mail->out && !mail->back);
      mail->back = true;
      for (const queue::RecipientResult& result : attempt.results) {
        if (result.action == queue::Action::delivered) {
          ASSERT(result.code / 100 == 2 && result.stage == events::Stage::end_of_data);
          ASSERT(sent.find(mail->body.substr(0, 8)) != std::string::npos);
        }
        if (result.action == queue::Action::bounce) ASSERT(result.code == 0 || result.code / 100 == 5);
        ASSERT(result.reply.size() <= 4096);
      }
      return;
    }
    UNREACHABLE();
  }
  void ready() override {}
  void start_tls() override {
    ASSERT(!over_ && !handshake);
    handshake = true;
  }
  void send(std::span<const iovec> parts) override {
    ASSERT(unsent_ == 0 && !over_);
    for (const iovec& part : parts) {
      sent.append(static_cast<const char*>(part.iov_base), part.iov_len);
      unsent_ += part.iov_len;
    }
    complete = true;
  }
  uint64_t unsent() const override { return unsent_; }
  void over() override { over_ = true; }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 3) return 0;
  constexpr int64_t kSecond = 1'000'000'000;
  SessionOptions options;
  options.ehlo_name = "relay.example";
  options.pipelining = data[0] & 1;
  options.chunking = data[0] & 2;
  options.messages_most = data[0] & 4 ? 2 : 0;
  options.tls = static_cast<SessionOptions::Tls>(data[0] >> 5 & 3);
  options.greeting_timeout_ns = options.mail_timeout_ns = options.rcpt_timeout_ns = options.data_initiation_timeout_ns =
      options.data_block_timeout_ns = options.data_done_timeout_ns = options.idle_timeout_ns = 60 * kSecond;
  Owner owner;
  owner.mails.push_back(std::make_unique<Mail>("message one\r\n..dots\r\n.\r\n", 1));
  owner.mails.push_back(std::make_unique<Mail>("message two\r\n", 3));
  owner.mails.push_back(std::make_unique<Mail>("third message, no line end", 2));
  int64_t now = kSecond;
  {
    Session session(owner, options);
    session.greet(now, "mx.example");
    owner.handshake = options.tls == SessionOptions::Tls::from_connect;
    // Sends complete at once, or before every so many-th piece.
    size_t slow = data[1] % 4;
    size_t piece_size = 1 + data[2] % 96;
    std::string_view left(reinterpret_cast<const char*>(data) + 3, size - 3);
    auto finish_sends = [&] {
      while (owner.complete && !owner.over_) {
        owner.complete = false;
        owner.unsent_ = 0;
        session.on_sent(now);
      }
    };
    for (size_t count = 0; !left.empty() && !owner.over_; ++count) {
      std::string piece(left.substr(0, piece_size));
      left.remove_prefix(piece.size());
      if (slow == 0 || count % slow == 0) finish_sends();
      now += 1'000'000;
      if (std::exchange(owner.handshake, false)) {
        finish_sends();
        if (session.state() == SessionState::securing) {
          if (data[0] & 128) {
            session.tls_failed("no common cipher", now);
          } else {
            session.secured(now);
          }
          finish_sends();
        }
      }
      if (!owner.over_) session.receive(piece, now);
      if (!owner.over_ && session.late_reply()) session.on_turn_end(now);
      if (!owner.over_ && count == 20) session.wake(now);
    }
    finish_sends();
    if (!owner.over_ && (data[0] & 8)) {
      now = session.deadline();
      for (int i = 0; i < 100 && !owner.over_ && now < INT64_MAX; ++i) {
        session.on_timeout(now);
        finish_sends();
        now = std::max(now, session.deadline());
      }
    }
    if (!owner.over_) session.on_end(data[0] & 16 ? 104 : 0, now);
    ASSERT(owner.over_ && session.state() == SessionState::over);
    if (options.tls >= SessionOptions::Tls::required && !session.secure()) {
      ASSERT(owner.sent.find("MAIL FROM") == std::string::npos);
    }
    session.settle(owner.unsent_, now);
  }
  for (const auto& mail : owner.mails) ASSERT(mail->out == mail->back);
  for (size_t at = 0; at < owner.sent.size(); ++at) {
    ASSERT(owner.sent[at] != '\n' || (at > 0 && owner.sent[at - 1] == '\r'));
    ASSERT(owner.sent[at] != '\r' || (at + 1 < owner.sent.size() && owner.sent[at + 1] == '\n'));
  }
  return 0;
}
