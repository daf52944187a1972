#include "receiver.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace millrace::sim {
namespace {

bool begins_with(std::string_view line, std::string_view verb) {
  if (line.size() < verb.size()) return false;
  for (size_t i = 0; i < verb.size(); ++i) {
    if ((line[i] & ~0x20) != (verb[i] & ~0x20)) return false;
  }
  return true;
}

std::string path_of(std::string_view line) {
  size_t open = line.find('<'), close = line.find('>', open);
  if (open == std::string_view::npos || close == std::string_view::npos) return "";
  return std::string(line.substr(open + 1, close - open - 1));
}

constexpr size_t kMostLine = 4096;

}  // namespace

// One connection.
class Receiver::Session final : public net::StreamOwner {
 public:
  Session(Receiver& receiver, reactor::Handle handle)
      : receiver_(receiver), stream_(receiver.io_, *this), number_(receiver.connections_total + 1) {
    if (auto peer = receiver.io_.peer_address(handle); peer.ok()) peer_ = *peer;
    patience_.bind<&Session::on_impatient>(this);
    wait_for_command();
    timer_.bind<&Session::on_reply_due>(this);
    stream_.start(handle, reactor::BufferGroup::control);
    if (chance(receiver.behaviour.refuse_greeting)) {
      reply("421 4.3.2 too busy\r\n");
      quit_ = true;
    } else if (chance(receiver.behaviour.reject_greeting)) {
      reply("554 5.3.2 no service here\r\n");
      quit_ = true;
    } else {
      reply("220 receiver.example ESMTP\r\n");
    }
  }

  void close(bool reset) {
    if (!stream_.closing()) stream_.close(reset);
  }
  std::list<std::unique_ptr<Session>>::iterator place;
  bool in_transaction() const { return have_mail_ && (!have_recipient_ || !message_.recipients.empty()); }
  const reactor::Address& peer() const { return peer_; }

 private:
  const ReceiverBehaviour& behaviour() const { return receiver_.behaviour; }
  bool chance(double probability) {
    return probability > 0 && receiver_.chance_.chance(probability);
  }

  void on_data(char* data, size_t size, reactor::BufferRef) override {
    wait_for_command();
    if (quit_ || starting_tls_) return;
    in_.append(data, size);
    parse();
  }

  void on_secure() override { ++receiver_.handshakes_total; }

  void on_sent() override {
    sending_.clear();
    if (reset_after_send_) {
      close(true);
    } else {
      pump();
    }
  }

  void on_end(int error) override {
    broken_ = error != 0;
    close(false);
  }

  void on_closed() override {
    timer_.cancel();
    patience_.cancel();
    for (size_t i = 0; i < replied_.size(); ++i) {
      // After QUIT the relay has read every reply. Otherwise it has read those before the last two, since
      // it runs at most one message ahead.
      replied_[i].copy = !quit_seen_ && i + 2 >= replied_.size() ? Copy::uncertain : Copy::acknowledged;
      if (receiver_.on_message) receiver_.on_message(replied_[i]);
    }
    receiver_.sessions_.erase(place);  // destroys *this
  }

  void parse() {
    size_t at = 0;
    while (!quit_ && !starting_tls_ && !stream_.closing()) {
      if (chunk_left_ > 0 || chunk_open_) {
        size_t n = std::min<uint64_t>(chunk_left_, in_.size() - at);
        message_.content.append(in_, at, n);
        at += n;
        chunk_left_ -= n;
        if (chunk_left_ > 0) break;
        chunk_open_ = false;
        if (chunk_last_) {
          end_of_data();
        } else {
          reply("250 2.0.0 chunk\r\n");
        }
        continue;
      }
      size_t end = in_.find("\r\n", at);
      if (end == std::string::npos) {
        if (in_.size() - at > kMostLine) close(true);
        break;
      }
      std::string_view line = std::string_view(in_).substr(at, end - at);
      at = end + 2;
      if (in_data_) {
        data_line(line);
      } else {
        command(line);
      }
    }
    in_.erase(0, at);
  }

  void data_line(std::string_view line) {
    if (line == ".") {
      in_data_ = false;
      end_of_data();
      return;
    }
    if (line.starts_with('.')) line.remove_prefix(1);
    message_.content.append(line).append("\r\n");
  }

  void command(std::string_view line) {
    if (chance(behaviour().drop_anywhere)) return close(receiver_.chance_.chance(0.5));
    if (begins_with(line, "EHLO")) {
      std::string text = "250-receiver.example\r\n";
      if (behaviour().pipelining) text += "250-PIPELINING\r\n";
      if (behaviour().chunking) text += "250-CHUNKING\r\n";
      if (behaviour().dsn) text += "250-DSN\r\n";
      if (behaviour().tls && !stream_.tls()) text += "250-STARTTLS\r\n";
      text += fmt::format("250-SIZE {}\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME\r\n", behaviour().size);
      forget();
      reply(std::move(text));
    } else if (begins_with(line, "HELO")) {
      forget();
      reply("250 receiver.example\r\n");
    } else if (begins_with(line, "MAIL FROM:")) {
      ++mails_;
      if (have_mail_) return reply("503 5.5.1 nested MAIL\r\n");
      forget();
      have_mail_ = true;
      message_.reverse_path = path_of(line);
      reply("250 2.1.0 ok\r\n");
    } else if (begins_with(line, "RCPT TO:")) {
      recipient(path_of(line));
    } else if (begins_with(line, "DATA")) {
      if (message_.recipients.empty()) return reply("503 5.5.1 no recipients\r\n");
      in_data_ = true;
      reply("354 go on\r\n");
    } else if (begins_with(line, "BDAT ")) {
      chunk(line.substr(5));
    } else if (begins_with(line, "RSET")) {
      forget();
      reply("250 2.0.0 ok\r\n");
    } else if (begins_with(line, "STARTTLS") && behaviour().tls && !stream_.tls()) {
      if (chance(behaviour().refuse_tls)) return reply("454 4.7.0 not now\r\n");
      forget();
      starting_tls_ = true;
      reset_after_send_ = chance(behaviour().break_tls);
      reply("220 2.0.0 go ahead\r\n");
    } else if (begins_with(line, "NOOP")) {
      reply("250 2.0.0 ok\r\n");
    } else if (begins_with(line, "QUIT")) {
      reply("221 2.0.0 bye\r\n");
      quit_ = quit_seen_ = true;
    } else {
      reply("500 5.5.2 what\r\n");
    }
  }

  void recipient(std::string path) {
    if (!have_mail_) return reply("503 5.5.1 MAIL first\r\n");
    if (!std::exchange(have_recipient_, true) && receiver_.on_transaction) receiver_.on_transaction(path);
    if (behaviour().recipients_most > 0 && message_.recipients.size() >= behaviour().recipients_most) {
      return reply("452 4.5.3 too many recipients\r\n");
    }
    std::string answer = behaviour().on_recipient ? behaviour().on_recipient(path) : std::string();
    if (answer.empty() && chance(behaviour().defer_recipient)) answer = "451 4.7.1 greylisted";
    if (answer.empty() && chance(behaviour().reject_recipient)) answer = "550 5.1.1 no such user";
    if (answer.empty()) answer = "250 2.1.5 ok";
    if (answer.starts_with('5')) refused(path);
    if (answer.starts_with('2')) message_.recipients.push_back(std::move(path));
    reply(answer + "\r\n");
  }

  void chunk(std::string_view rest) {
    uint64_t size = 0;
    auto [end, problem] = std::from_chars(rest.data(), rest.data() + rest.size(), size);
    if (problem != std::errc()) return reply("501 5.5.4 size\r\n");
    std::string_view last = rest.substr(static_cast<size_t>(end - rest.data()));
    message_.chunked = true;
    chunk_left_ = size;
    chunk_open_ = true;
    chunk_last_ = begins_with(last, " LAST");
  }

  void wait_for_command() {
    patience_.cancel();
    receiver_.io_.timers().arm(patience_, receiver_.io_.now() + behaviour().patience_ns);
  }

  void on_impatient() { close(false); }

  void end_of_data() {
    message_.connection = number_;
    message_.peer = peer_;
    message_.mail = mails_;
    if (!have_mail_ || message_.recipients.empty()) {
      // The chunks of a transaction without recipients are read and refused.
      forget();
      return reply("503 5.5.1 no recipients\r\n");
    }
    receiver_.messages_on_connection_most = std::max(receiver_.messages_on_connection_most, ++messages_);
    if (chance(behaviour().defer_data)) {
      forget();
      return reply("451 4.3.0 later\r\n");
    }
    if (chance(behaviour().reject_data)) {
      for (const std::string& recipient : message_.recipients) refused(recipient);
      forget();
      return reply("554 5.7.1 no\r\n");
    }
    ++receiver_.messages_total;
    message_.at_ns = receiver_.io_.now();
    message_.secure = stream_.tls() != nullptr;
    if (chance(behaviour().drop_unreplied)) {
      message_.copy = Copy::unreplied;
      if (receiver_.on_message) receiver_.on_message(message_);
      forget();
      return close(receiver_.chance_.chance(0.5));
    }
    replied_.push_back(std::move(message_));
    forget();
    reply("250 2.0.0 taken\r\n");
    if (chance(behaviour().drop_replied)) quit_ = reset_after_send_ = true;
    if (behaviour().messages_most > 0 && messages_ >= behaviour().messages_most) quit_ = true;
  }

  void refused(const std::string& recipient) {
    if (receiver_.on_refused) receiver_.on_refused(recipient);
  }

  void forget() {
    message_ = {};
    have_mail_ = have_recipient_ = false;
  }

  // Replies leave in order, after a delay.
  void reply(std::string text) {
    waiting_ += text;
    pump();
  }

  void pump() {
    if (waiting_.empty()) {
      if (quit_ && sending_.empty()) close(false);
      return;
    }
    if (timer_.armed() || !sending_.empty() || !stream_.open()) return;
    auto spread = static_cast<uint64_t>(behaviour().reply_delay_max_ns - behaviour().reply_delay_min_ns);
    int64_t delay = behaviour().reply_delay_min_ns +
                    static_cast<int64_t>(receiver_.chance_.below(spread + 1));
    receiver_.io_.timers().arm(timer_, receiver_.io_.now() + delay);
  }

  void on_reply_due() {
    if (!stream_.open() || broken_) return;
    sending_ = std::move(waiting_);
    waiting_.clear();
    iovec part{sending_.data(), sending_.size()};
    stream_.send({&part, 1});
    // Nothing but the 220 was waiting: what the relay said after STARTTLS was not listened to.
    if (!starting_tls_ || reset_after_send_) return;
    starting_tls_ = false;
    in_.clear();
    stream_.start_tls(tls::Engine::accept(behaviour().tls));
  }

  Receiver& receiver_;
  net::Stream stream_;
  reactor::Timer timer_, patience_;
  std::string in_;
  std::string waiting_, sending_;
  ReceivedMessage message_;
  std::vector<ReceivedMessage> replied_;
  uint64_t chunk_left_ = 0;
  bool have_mail_ = false;
  bool have_recipient_ = false;
  bool in_data_ = false;
  bool chunk_open_ = false;
  bool chunk_last_ = false;
  bool quit_ = false;
  bool reset_after_send_ = false;
  bool starting_tls_ = false;
  bool broken_ = false;
  bool quit_seen_ = false;
  const uint64_t number_;
  size_t messages_ = 0, mails_ = 0;
  reactor::Address peer_;
};

Receiver::Receiver(reactor::Io& io, uint64_t seed, ReceiverBehaviour with)
    : behaviour(std::move(with)), io_(io), chance_(seed), listener_(io, *this) {}

Receiver::~Receiver() = default;

Status Receiver::listen(const reactor::Address& address) {
  reactor::ListenOptions options;
  options.address = address;
  Status status = listener_.open(options);
  listening_ = status.ok();
  return status;
}

void Receiver::close() {
  if (listener_.is_open()) listener_.close();
  for (auto& session : sessions_) session->close(true);
}

std::vector<reactor::Address> Receiver::in_transaction() const {
  std::vector<reactor::Address> found;
  for (const auto& session : sessions_) {
    if (session->in_transaction()) found.push_back(session->peer());
  }
  return found;
}

void Receiver::on_accepted(reactor::Handle handle) {
  auto place = sessions_.insert(sessions_.end(), std::make_unique<Session>(*this, handle));
  (*place)->place = place;
  ++connections_total;
  connections_most = std::max(connections_most, sessions_.size());
}

}  // namespace millrace::sim
