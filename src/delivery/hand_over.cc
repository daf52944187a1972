#include "delivery/hand_over.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "delivery/agent.h"
#include "queue/destination.h"

namespace millrace::delivery {

using events::Stage;
using queue::LaneEnd;
using reactor::kNoHandle;

namespace {

constexpr int64_t kMillisecond = 1'000'000;
// Discarded by one lane before others of the shard have their turn.
constexpr int kMostATurn = 64;
constexpr size_t kPartsPerWrite = 1024;  // IOV_MAX

// Without the dots of transparency: of a message that has too many of them to list.
void unstuff(const std::vector<iovec>& parts, std::string& out) {
  out.clear();
  bool line_start = true;
  for (const iovec& part : parts) {
    for (const char c : std::string_view(static_cast<const char*>(part.iov_base), part.iov_len)) {
      if (!(line_start && c == '.')) out += c;
      line_start = c == '\n';
    }
  }
}

}  // namespace

HandOver::HandOver(DeliveryAgent& agent, std::shared_ptr<const dns::Route> route, unsigned source_index)
    : agent_(agent), io_(agent.io_), config_(agent.config_), route_(std::move(route)) {
  turn_.bind<&HandOver::on_turn>(this);
  timer_.bind<&HandOver::on_timer>(this);
  op_.bind<&HandOver::on_done>(this);
  ehlo_name_ = config_->hostname;
  if (source_index < config_->sources.size()) {
    const config::Source& from = config_->sources[source_index];
    if (!from.ehlo_name.empty()) ehlo_name_ = from.ehlo_name;
    source_text_ = from.ipv4.empty() ? (from.ipv6.empty() ? "" : from.ipv6.host_string()) : from.ipv4.host_string();
  }
  if (route_->carriage == dns::Carriage::discard) {
    smtp::ReplyParser parser;
    const std::string line = route_->handed_to + "\r\n";
    std::string_view rest = line;
    const auto outcome = parser.next(rest);
    ASSERT(outcome == smtp::ReplyParser::Outcome::reply);
    reply_ = std::move(parser.reply());
  }
  number_ = ++agent_.next_number_;
  io_.defer(turn_);
}

HandOver::~HandOver() {
  turn_.cancel();
  timer_.cancel();
}

void HandOver::wake() { io_.defer(turn_); }

void HandOver::retire() {
  retired_ = true;
  io_.defer(turn_);
}

void HandOver::abort() {
  retired_ = true;
  aborted_ = true;
  if (op_.pending()) {
    io_.cancel(op_);
  } else {
    io_.defer(turn_);
  }
}

bool HandOver::over() const {
  return retired_ || end_.cause != LaneEnd::Cause::idle ||
         (messages_most && *messages_most > 0 && messages_ >= *messages_most);
}

void HandOver::on_turn() {
  if (state_ != State::idle) return;
  timer_.cancel();
  if (!ready_ && !retired_) {
    if (route_->carriage == dns::Carriage::file && !check_folder()) return finish();
    ready_ = true;
    agent_.dispatcher_->lane_ready(*this);
  }
  bool more = true;
  for (int i = 0; more && i < kMostATurn; ++i) {
    if (over()) return finish();
    more = route_->carriage == dns::Carriage::discard ? discard_one() : begin_file();
    if (state_ != State::idle) return;
  }
  if (over()) return finish();
  idle_ = !more;
  io_.timers().arm(timer_, more ? io_.now() : io_.now() + config_->idle_timeout_ms * kMillisecond);
}

void HandOver::on_timer() {
  if (state_ != State::idle) return;
  if (idle_ && !turn_.scheduled()) return finish();
  on_turn();
}

// False: there was nothing.
bool HandOver::discard_one() {
  queue::Attempt* attempt = agent_.dispatcher_->take(*this);
  if (attempt == nullptr) return false;
  began_ = io_.now();
  if (reply_.reply_class() == 2) {
    for (queue::RecipientResult& result : attempt->results) set_delivered(result, reply_);
  } else {
    const config::Shaping* rules = config_->shaping_rules.get();
    const config::Provider* provider = rules && site ? rules->provider(site->provider) : nullptr;
    const Verdict verdict = judge(reply_, Stage::end_of_data, false, rules, provider);
    for (queue::RecipientResult& result : attempt->results) set_result(result, reply_, Stage::end_of_data, verdict);
    if (verdict.slow_down) {
      end_.cause = LaneEnd::Cause::told_to_slow;
      end_.scope = verdict.scope;
      end_.stage = Stage::end_of_data;
      end_.code = reply_.code;
      end_.enhanced = attempt->results.front().enhanced;
      end_.reply = attempt->results.front().reply;
      end_.rest_ms = verdict.rest_ms;
      end_.asks = verdict.asks;
    }
  }
  finished(*attempt);
  return true;
}

void HandOver::finished(queue::Attempt& attempt) {
  ++agent_.stats_.messages;
  attempt.transport = route_->carriage == dns::Carriage::discard ? "discard" : "file";
  attempt.mx.clear();
  attempt.peer = {};
  attempt.peer_text.clear();
  attempt.source_text = source_text_;
  attempt.ehlo_name = ehlo_name_;
  attempt.tls_version = attempt.tls_suite = attempt.tls_verified = attempt.tls_policy = {};
  attempt.tls_reason.clear();
  attempt.session = number_;
  attempt.session_message = ++messages_;
  attempt.connect_ms = 0;
  attempt.transaction_ms = static_cast<uint32_t>((io_.now() - began_) / kMillisecond);
  agent_.dispatcher_->finished(attempt);
}

// ---- files

// Before a message is taken.
bool HandOver::check_folder() {
  const std::string& folder = route_->handed_to;
  if (folder_ == kNoHandle) {
    Result<reactor::Handle> opened = io_.open_file(folder, {});
    if (!opened) return file_failed(opened.error().text), false;
    folder_ = *opened;
  }
  const Result<uint64_t> room = io_.free_space(folder);
  if (!room) return file_failed(room.error().text), false;
  if (*room < config_->spool_reserve) {
    file_failed(fmt::format("less than --spool-reserve is free in {}", folder));
    return false;
  }
  return true;
}

// False: there was nothing, or it failed; see over().
bool HandOver::begin_file() {
  if (!check_folder()) return false;
  const std::string& folder = route_->handed_to;
  attempt_ = agent_.dispatcher_->take(*this);
  if (attempt_ == nullptr) return false;
  began_ = io_.now();
  const queue::Message& message = *attempt_->message;
  name_ = fmt::format("{}/{}-{}", folder, message.id.to_string(), attempt_->recipients.front());
  const std::string temporary = name_ + ".tmp";
  const reactor::FileOptions fresh{.create = true, .write = true};
  Result<reactor::Handle> opened = io_.open_file(temporary, fresh);
  if (!opened && opened.error().number == EEXIST) {  // left by a crash
    const Status removed = io_.remove_file(temporary);
    if (removed.ok()) opened = io_.open_file(temporary, fresh);
  }
  if (!opened) return file_failed(opened.error().text), false;
  file_ = *opened;
  head_ = fmt::format("Return-Path: <{}>\r\n", message.envelope.reverse_path);
  for (const uint32_t number : attempt_->recipients) {
    head_ += fmt::format("Delivered-To: {}\r\n", message.envelope.recipients[number].address);
  }
  parts_.clear();
  parts_.push_back({head_.data(), head_.size()});
  if (message.content.supports(mail::WireForm::bdat)) {
    message.content.gather(mail::WireForm::bdat, parts_);
  } else {
    std::vector<iovec> stuffed;
    message.content.gather(mail::WireForm::data, stuffed);
    unstuff(stuffed, unstuffed_);
    parts_.push_back({unstuffed_.data(), unstuffed_.size()});
  }
  part_ = 0;
  offset_ = 0;
  state_ = State::writing;
  write_more();
  return true;
}

void HandOver::write_more() {
  const size_t count = std::min(parts_.size() - part_, kPartsPerWrite);
  io_.write(op_, file_, {parts_.data() + part_, count}, offset_, false);
}

void HandOver::on_done(reactor::Completion& completion) {
  const State at = state_;
  if (aborted_) {
    give_back();
    return finish();
  }
  if (completion.result < 0 || (at == State::writing && completion.result == 0)) {
    file_failed(fmt::format("cannot write {}: {}", name_, completion.result < 0 ? std::strerror(-completion.result) : "no progress"));
    return finish();
  }
  switch (at) {
    case State::idle:
      UNREACHABLE();
    case State::writing: {
      auto left = static_cast<size_t>(completion.result);
      offset_ += left;
      while (part_ < parts_.size() && left >= parts_[part_].iov_len) left -= parts_[part_++].iov_len;
      if (part_ < parts_.size()) {
        parts_[part_].iov_base = static_cast<char*>(parts_[part_].iov_base) + left;
        parts_[part_].iov_len -= left;
        return write_more();
      }
      state_ = State::syncing_file;
      return io_.sync(op_, file_);
    }
    case State::syncing_file: {
      io_.close(std::exchange(file_, kNoHandle));
      const Status renamed = io_.rename_file(name_ + ".tmp", name_ + ".eml");
      if (!renamed.ok()) {
        file_failed(renamed.error().text);
        return finish();
      }
      state_ = State::syncing_folder;
      return io_.sync_names(op_, folder_);
    }
    case State::syncing_folder: {
      smtp::PeerReply reply;
      reply.code = 250;
      reply.status = {2, 0, 0};
      reply.text = fmt::format("2.0.0 written to {}.eml", name_);
      for (queue::RecipientResult& result : attempt_->results) set_delivered(result, reply);
      state_ = State::idle;
      finished(*std::exchange(attempt_, nullptr));
      return on_turn();
    }
  }
}

// The folder is of no use now: its mail waits, along --hold.
void HandOver::file_failed(std::string why) {
  end_.cause = LaneEnd::Cause::failed;
  end_.scope = events::Scope::destination;
  end_.stage = Stage::body;
  end_.enhanced = "4.3.0";
  end_.reply = std::move(why);
  give_back();
}

void HandOver::give_back() {
  const bool named = file_ != kNoHandle;
  close_handles();
  if (named) (void)io_.remove_file(name_ + ".tmp");
  state_ = State::idle;
  if (attempt_ == nullptr) return;
  for (queue::RecipientResult& result : attempt_->results) result.action = queue::Action::give_back;
  finished(*std::exchange(attempt_, nullptr));
}

void HandOver::close_handles() {
  if (file_ != kNoHandle) io_.close(std::exchange(file_, kNoHandle));
  if (folder_ != kNoHandle) io_.close(std::exchange(folder_, kNoHandle));
}

void HandOver::finish() {
  ASSERT(!op_.pending() && attempt_ == nullptr);
  close_handles();
  timer_.cancel();
  if (retired_ && end_.cause == LaneEnd::Cause::failed) end_.cause = LaneEnd::Cause::idle;
  end_.messages = messages_;
  agent_.dispatcher_->lane_closed(*this, end_);
  agent_.closed(*this);
}

}  // namespace millrace::delivery
