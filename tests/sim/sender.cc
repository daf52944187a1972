#include "sender.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

namespace millrace::sim {

Sender::Sender(reactor::Io& io, const reactor::Address& relay, uint64_t seed, Ledger& ledger,
               SenderBehaviour with)
    : behaviour(with), io_(io), relay_(relay), chance_(seed), ledger_(ledger), stream_(io, *this) {
  connect_.bind<&Sender::on_connected>(this);
  retry_.bind<&Sender::on_retry>(this);
  patience_.bind<&Sender::on_impatient>(this);
}

Sender::~Sender() = default;

void Sender::add(uint64_t number, std::string reverse_path, std::vector<std::string> recipients,
                 std::string content) {
  jobs_.push_back({number, std::move(reverse_path), std::move(recipients), std::move(content)});
}

void Sender::start() {
  if (state_ == State::idle && !jobs_.empty()) connect();
}

void Sender::connect() {
  auto socket = io_.open_socket(relay_, {});
  if (!socket) {
    state_ = State::waiting;
    io_.timers().arm(retry_, io_.now() + behaviour.retry_ns);
    return;
  }
  socket_ = *socket;
  state_ = State::connecting;
  io_.connect(connect_, socket_, relay_);
}

void Sender::on_connected(reactor::Completion& completion) {
  if (completion.result != 0) {
    io_.close(socket_);
    state_ = State::closing;
    on_closed();
    return;
  }
  in_.clear();
  out_.clear();
  sending_.clear();
  on_connection_ = 0;
  reset_when_sent_ = content_under_way_ = false;
  state_ = State::greeting;
  replies_left_ = 1;
  wait_for_reply();
  stream_.start(socket_, reactor::BufferGroup::control);
}

void Sender::wait_for_reply() {
  patience_.cancel();
  io_.timers().arm(patience_, io_.now() + behaviour.patience_ns);
}

void Sender::on_impatient() { go(true); }

void Sender::say(std::string text) {
  out_ += text;
  if (!sending_.empty() || !stream_.open()) return;
  sending_ = std::move(out_);
  out_.clear();
  iovec part{sending_.data(), sending_.size()};
  stream_.send({&part, 1});
}

void Sender::on_secure() {
  state_ = State::hello;
  say("EHLO sender.example\r\n");
}

void Sender::on_sent() {
  sending_.clear();
  if (!out_.empty()) {
    say("");
  } else if (reset_when_sent_) {
    go(true);
  }
}

void Sender::on_data(char* data, size_t size, reactor::BufferRef) {
  wait_for_reply();
  in_.append(data, size);
  size_t at = 0;
  while (stream_.open() && !reset_when_sent_) {
    size_t end = in_.find("\r\n", at);
    if (end == std::string::npos) break;
    std::string line = in_.substr(at, end - at);
    at = end + 2;
    if (line.size() >= 4 && line[3] == '-') continue;
    reply(static_cast<unsigned>(std::atoi(line.c_str())), line);
  }
  in_.erase(0, std::min(at, in_.size()));
}

void Sender::reply(unsigned code, std::string_view text) {
  if (code >= 400) last_refusal = text;
  if (code == 421) return go(false);
  switch (state_) {
    case State::greeting:
      if (code != 220) return go(false);
      state_ = State::hello;
      say("EHLO sender.example\r\n");
      return;
    case State::hello:
      if (code != 250) return go(false);
      if (behaviour.tls && !stream_.tls()) {
        state_ = State::start_tls;
        say("STARTTLS\r\n");
        return;
      }
      begin_message();
      return;
    case State::start_tls:
      if (code != 220) return go(false);
      state_ = State::securing;
      stream_.start_tls(tls::Engine::connect(behaviour.tls, {.session_key = "relay"}));
      return;
    case State::envelope: {
      const Job& job = jobs_.front();
      if (replies_seen_ > 0 && replies_seen_ <= job.recipients.size() && code == 250) {
        taken_.push_back(job.recipients[replies_seen_ - 1]);
      }
      bool refused = replies_seen_ == 0 && code != 250;
      ++replies_seen_;
      if (--replies_left_ > 0) {
        if (!envelope_.empty() && !refused) {
          size_t end = envelope_.find('\n') + 1;
          say(envelope_.substr(0, end));
          envelope_.erase(0, end);
          return;
        }
        if (!refused || behaviour.pipelining) return;
      }
      if (refused || taken_.empty()) return message_over(Told::refused);
      if (chunked_) {
        send_content();
      } else {
        state_ = State::content;
        say("DATA\r\n");
      }
      return;
    }
    case State::content:
      if (code != 354) return message_over(Told::refused);
      send_content();
      return;
    case State::end:
      if (code == 250 && replies_left_ > 0) {  // to a chunk before the last
        --replies_left_;
        return;
      }
      if (code == 250 && on_accepted) on_accepted(jobs_.front().number, text);
      message_over(code == 250 ? Told::accepted : Told::refused);
      return;
    case State::quit:
      go(false);
      return;
    default:
      return;
  }
}

void Sender::begin_message() {
  if (jobs_.empty() || on_connection_ >= behaviour.messages_per_connection) {
    state_ = State::quit;
    say("QUIT\r\n");
    return;
  }
  ++on_connection_;
  Job& job = jobs_.front();
  ++job.attempts;
  taken_.clear();
  chunked_ = chance_.chance(behaviour.chunked);
  state_ = State::envelope;
  replies_seen_ = 0;
  replies_left_ = static_cast<unsigned>(1 + job.recipients.size());
  envelope_ = fmt::format("MAIL FROM:<{}>\r\n", job.reverse_path);
  for (const std::string& recipient : job.recipients) {
    envelope_ += fmt::format("RCPT TO:<{}>\r\n", recipient);
  }
  size_t first = behaviour.pipelining ? envelope_.size() : envelope_.find('\n') + 1;
  say(envelope_.substr(0, first));
  envelope_.erase(0, first);
}

void Sender::send_content() {
  const Job& job = jobs_.front();
  std::string wire;
  replies_left_ = 0;
  if (chunked_) {
    // In one chunk or several.
    std::string_view rest = job.content;
    while (true) {
      size_t n = chance_.chance(0.5) ? rest.size() : chance_.below(rest.size() + 1);
      bool last = n == rest.size();
      if (!last) ++replies_left_;
      wire += fmt::format("BDAT {}{}\r\n", n, last ? " LAST" : "");
      wire += rest.substr(0, n);
      rest.remove_prefix(n);
      if (last) break;
    }
  } else {
    std::string_view rest = job.content;
    while (!rest.empty()) {
      size_t end = rest.find("\r\n");
      std::string_view line = rest.substr(0, end + 2);
      if (line.starts_with('.')) wire += '.';
      wire += line;
      rest.remove_prefix(line.size());
    }
    wire += ".\r\n";
  }
  if (chance_.chance(behaviour.drop_in_data)) {
    wire.resize(chance_.below(wire.size() - 2));
    reset_when_sent_ = true;
    state_ = State::content;
    say(wire.empty() ? "D" : std::move(wire));
    return;
  }
  content_under_way_ = true;
  ledger_.submitted(job.number, taken_, job.content);
  state_ = State::end;
  if (chance_.chance(behaviour.drop_after_data)) reset_when_sent_ = true;
  say(std::move(wire));
}

void Sender::message_over(Told told) {
  Job& job = jobs_.front();
  if (content_under_way_) ledger_.told(job.number, told);
  content_under_way_ = false;
  if (told != Told::refused) {
    jobs_.pop_front();
    begin_message();
    return;
  }
  // Later, on a new connection, so that a whole run of refusals takes time.
  go(false);
}

void Sender::go(bool reset) {
  if (stream_.closing()) return;
  state_ = State::closing;
  stream_.close(reset);
}

void Sender::on_end(int) { go(false); }

void Sender::on_closed() {
  patience_.cancel();
  if (content_under_way_) {
    ledger_.told(jobs_.front().number, Told::uncertain);
    content_under_way_ = false;
    jobs_.pop_front();
  } else if (!jobs_.empty() && jobs_.front().attempts >= behaviour.attempts_most) {
    ++given_up;
    jobs_.pop_front();
  }
  if (jobs_.empty()) {
    state_ = State::idle;
    return;
  }
  state_ = State::waiting;
  io_.timers().arm(retry_, io_.now() + behaviour.retry_ns);
}

void Sender::on_retry() { connect(); }

}  // namespace millrace::sim
