#include "events/log.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "events/json.h"

namespace millrace::events {
namespace {

constexpr size_t kBatchTarget = 256 * 1024;  // a batch is handed over early past this
constexpr size_t kKeptCapacity = 512 * 1024;

std::string directory_of(const std::string& path) {
  size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// "20261121T083000Z"
std::string compact_time(int64_t utc_ms) {
  char text[kTimeSize];
  format_time(utc_ms, text);
  std::string out;
  for (char c : std::string_view(text, 19)) {
    if (c != '-' && c != ':') out += c;
  }
  return out + 'Z';
}

}  // namespace

// ---- the shard's side

ShardEvents::ShardEvents(reactor::Io& io, reactor::Mailbox& mailbox, EventLog& log,
                         reactor::Mailbox& log_mailbox)
    : io_(io), mailbox_(mailbox), log_(log), log_mailbox_(log_mailbox), local_(&io == &log.io_) {
  flush_.bind<&ShardEvents::flush>(this);
  log_.attach(*this, mailbox);
}

ShardEvents::~ShardEvents() {
  flush_.cancel();
  // Where the process has stopped at once, the log still holds some.
  for (auto& batch : batches_) batch->link.unlink();
}

void ShardEvents::emit(uint64_t sequence, const Event& event) {
  if (!current_) {
    if (free_.empty()) {
      batches_.push_back(std::make_unique<EventBatch>());
      batches_.back()->shard = this;
      free_.push_back(batches_.back().get());
    }
    current_ = free_.back();
    free_.pop_back();
    io_.defer(flush_);
  }
  size_t before = current_->lines.size();
  append_json(event, log_.options().node, current_->lines);
  bytes_waiting_ += current_->lines.size() - before;
  current_->sequence = std::max(current_->sequence, sequence);
  ++current_->count;
  if (current_->lines.size() >= kBatchTarget) flush();
}

void ShardEvents::flush() {
  flush_.cancel();
  EventBatch* batch = std::exchange(current_, nullptr);
  if (!batch) return;
  if (local_) {
    log_.take(*batch);
  } else {
    batch->address<&EventLog::on_batch>(&log_);
    log_mailbox_.push(*batch);
  }
}

void ShardEvents::give_back(EventBatch& batch) {
  if (local_) {
    on_return(batch);
  } else {
    batch.address<&ShardEvents::on_return>(this);
    mailbox_.push(batch);
  }
}

void ShardEvents::on_return(reactor::Letter& letter) {
  auto& batch = static_cast<EventBatch&>(letter);
  ASSERT(bytes_waiting_ >= batch.lines.size());
  bytes_waiting_ -= batch.lines.size();
  batch.lines.clear();
  // One burst must not keep its memory for ever.
  if (batch.lines.capacity() > kKeptCapacity) std::string().swap(batch.lines);
  batch.sequence = 0;
  batch.count = 0;
  free_.push_back(&batch);
}

void ShardEvents::on_question(reactor::Letter& letter) {
  flush();
  letter.address<&EventLog::on_answer>(&log_);
  log_mailbox_.push(letter);
}

// ---- the log's side

EventLog::EventLog(reactor::Io& io, EventLogOptions options)
    : io_(io), options_(std::move(options)) {
  tick_.bind<&EventLog::on_tick>(this);
  rest_.bind<&EventLog::on_rest_over>(this);
}

EventLog::~EventLog() {
  while (waiting_.pop_front()) {
  }
}

std::string_view EventLog::to_string(State state) {
  switch (state) {
    case State::closed:
      return "closed";
    case State::idle:
      return "idle";
    case State::mending:
      return "looking for a cut line";
    case State::writing:
      return "writing";
    case State::syncing:
      return "syncing";
    case State::resting:
      return "waiting after an error";
  }
  UNREACHABLE();
}

void EventLog::enter(State state) {
  if (log::enabled(log::Level::debug))
    log::debug("events file: {} -> {}", to_string(state_), to_string(state));
  state_ = state;
}

void EventLog::attach(ShardEvents& shard, reactor::Mailbox& mailbox) {
  ports_.push_back(std::make_unique<Port>());
  ports_.back()->shard = &shard;
  ports_.back()->mailbox = &mailbox;
}

Status EventLog::open() {
  ASSERT(state_ == State::closed);
  closing_ = Closing::no;
  if (Status status = open_path(); !status) return status;
  enter(State::idle);
  io_.timers().arm(tick_, io_.now() + options_.sync_interval_ns);
  return success();
}

Status EventLog::open_path() {
  reactor::FileOptions options;
  options.write = true;
  auto file = io_.open_file(options_.path, options);
  bool created = false;
  if (!file && file.error().number == ENOENT) {
    options.create = true;
    file = io_.open_file(options_.path, options);
    created = true;
  }
  if (!file)
    return fail(fmt::format("events file {}: {}", options_.path, file.error().text),
                file.error().number);
  auto size = io_.file_size(*file);
  if (!size) {
    io_.close(*file);
    return fail(fmt::format("events file {}: {}", options_.path, size.error().text),
                size.error().number);
  }
  if (created) {
    if (Status status = io_.sync_directory(directory_of(options_.path)); !status) {
      io_.close(*file);
      return fail(fmt::format("events file {}: {}", options_.path, status.error().text),
                  status.error().number);
    }
  }
  file_ = *file;
  size_ = *size;
  mend_ = size_ > 0;
  line_cut_ = false;
  return success();
}

// The file is complete (or given up): what follows goes elsewhere.
void EventLog::leave_file() {
  if (file_ == reactor::kNoHandle) return;
  io_.close(file_);
  file_ = reactor::kNoHandle;
}

void EventLog::reopen() {
  if (state_ == State::closed) return;
  reopen_due_ = true;
  step();
}

void EventLog::close(std::function<void()> closed) {
  ASSERT(state_ != State::closed && closing_ == Closing::no);
  closed_ = std::move(closed);
  closing_ = Closing::asked;
  // A round that is under way may have asked a shard already: only the next is about everything.
  if (answers_missing_ == 0) start_round();
}

void EventLog::on_batch(reactor::Letter& letter) { take(static_cast<EventBatch&>(letter)); }

void EventLog::take(EventBatch& batch) {
  // Too late, at the end of the process: what has a record is replayed at the next start.
  if (state_ == State::closed) return batch.shard->give_back(batch);
  highest_ = std::max(highest_, batch.sequence);
  ++batches_taken_;
  waiting_.push_back(batch);
  step();
}

// What is to be done next; called whenever something has ended or arrived.
void EventLog::step() {
  if (state_ != State::idle) return;
  if (file_ == reactor::kNoHandle) {
    if (Status status = open_path(); !status) return trouble(status.error().text);
  }
  if (mend_) {
    mend_ = false;
    enter(State::mending);
    parts_[0] = {&last_octet_, 1};
    op_.bind<&EventLog::on_read>(this);
    io_.read(op_, file_, std::span(parts_, 1), size_ - 1);
    return;
  }
  // A line and its rest belong into one file, unless the file cannot be written.
  if ((reopen_due_ || size_ >= options_.max_size) &&
      (front_written_ == 0 || !last_error_.empty())) {
    front_written_ = 0;
    if (unsynced_) return start_sync();
    if (reopen_due_) {
      reopen_due_ = false;
      leave_file();
    } else {
      rotate();
    }
    return step();
  }
  bool marks = covered() && mark_due();
  if (sync_due_ && (unsynced_ || marks)) return start_sync();
  if (!waiting_.empty()) return start_write();
  if (closing_ == Closing::flushing) {
    if (unsynced_ || marks) return start_sync();
    finish_close();
  }
}

void EventLog::on_read(reactor::Completion& completion) {
  line_cut_ = completion.result != 1 || last_octet_ != '\n';
  enter(State::idle);
  step();
}

void EventLog::start_write() {
  // Somebody truncated the file: without this the write would leave a hole before it.
  if (auto size = io_.file_size(file_); size && *size < size_) size_ = *size;
  size_t count = 0;
  if (line_cut_) parts_[count++] = {const_cast<char*>("\n"), 1};
  size_t skip = front_written_;
  for (EventBatch* batch = waiting_.front(); batch && count < kMostParts;
       batch = waiting_.next(*batch)) {
    parts_[count++] = {batch->lines.data() + skip, batch->lines.size() - skip};
    skip = 0;
  }
  enter(State::writing);
  op_.bind<&EventLog::on_written>(this);
  io_.write(op_, file_, std::span(parts_, count), size_, false);
}

void EventLog::on_written(reactor::Completion& completion) {
  enter(State::idle);
  if (completion.result <= 0) {
    int error = completion.result == 0 ? EIO : -completion.result;
    return trouble(
        fmt::format("events file {}: writing: {}; events wait in memory and delivery will "
                    "pause when they are many: free disk space or mend the disk",
                    options_.path, strerror(error)));
  }
  if (!last_error_.empty()) {
    log::info("events file {}: writing again", options_.path);
    last_error_.clear();
  }
  auto written = static_cast<size_t>(completion.result);
  size_ += written;
  stats_.bytes += written;
  unsynced_ = true;
  if (line_cut_) {
    line_cut_ = false;
    --written;
  }
  written += front_written_;
  while (EventBatch* batch = waiting_.front()) {
    if (written < batch->lines.size()) break;
    written -= batch->lines.size();
    waiting_.pop_front();
    ++batches_written_;
    stats_.events += batch->count;
    batch->shard->give_back(*batch);
  }
  front_written_ = written;
  step();
}

void EventLog::start_sync() {
  sync_covers_ = covered() ? complete_ : emitted_;
  enter(State::syncing);
  op_.bind<&EventLog::on_synced>(this);
  io_.sync(op_, file_);
}

void EventLog::on_synced(reactor::Completion& completion) {
  enter(State::idle);
  if (completion.result < 0) {
    // Nothing is reported as safe any more, so there is nothing to try again for: the next sync comes with the
    // next events.
    mark_frozen_ = true;
    unsynced_ = sync_due_ = false;
    front_written_ = 0;
    ++stats_.errors;
    last_error_ = fmt::format(
        "events file {}: syncing: {}; the file is left as it is and a new one "
        "begun; restart the relay to have the events of the last seconds written again",
        options_.path, strerror(-completion.result));
    log::error("{}", last_error_);
    rotate();
    return step();
  }
  ++stats_.syncs;
  unsynced_ = false;
  sync_due_ = false;
  if (sync_covers_ > emitted_) {
    emitted_ = sync_covers_;
    if (!mark_frozen_ && on_emitted) on_emitted(emitted_);
  }
  step();
}

void EventLog::rotate() {
  std::string name = fmt::format("{}.{}", options_.path, compact_time(io_.wall_ms()));
  // Two rotations within a second must not share a name. Only a handful of names can be taken.
  auto taken = io_.list_directory(directory_of(options_.path));
  std::string base = name.substr(name.rfind('/') + 1);
  std::string suffix;
  for (int i = 1; taken && std::find(taken->begin(), taken->end(), base + suffix) != taken->end();
       ++i)
    suffix = fmt::format("-{}", i);
  leave_file();
  Status renamed = io_.rename_file(options_.path, name + suffix);
  if (renamed) renamed = io_.sync_directory(directory_of(options_.path));
  if (renamed) {
    ++stats_.rotations;
  } else if (renamed.error().number != ENOENT) {
    ++stats_.errors;
    log::error("events file {}: cannot be set aside: {}", options_.path, renamed.error().text);
  }
}

void EventLog::trouble(std::string what) {
  ++stats_.errors;
  // Once for each kind of trouble, not once a second.
  if (what != last_error_) log::error("{}", what);
  last_error_ = std::move(what);
  if (closing_ == Closing::flushing) return finish_close();
  enter(State::resting);
  io_.timers().arm(rest_, io_.now() + kRestNs);
}

void EventLog::on_rest_over() {
  enter(State::idle);
  step();
}

void EventLog::on_tick() {
  io_.timers().arm(tick_, io_.now() + options_.sync_interval_ns);
  // One mark after the other: under load a new round every second would move what must be covered
  // ahead of the writes for ever.
  if (answers_missing_ == 0 && complete_ <= emitted_ && highest_ > complete_) start_round();
  if (unsynced_ || mark_due()) sync_due_ = true;
  step();
}

void EventLog::start_round() {
  if (closing_ == Closing::asked) closing_ = Closing::last_round;
  round_ = highest_;
  answers_missing_ = ports_.size();
  for (auto& port : ports_) {
    if (port->shard->local_) {
      port->shard->flush();
      --answers_missing_;
    } else {
      port->address<&ShardEvents::on_question>(port->shard);
      port->mailbox->push(*port);
    }
  }
  if (answers_missing_ == 0) finish_round();
}

void EventLog::on_answer(reactor::Letter&) {
  ASSERT(answers_missing_ > 0);
  if (--answers_missing_ == 0) finish_round();
}

void EventLog::finish_round() {
  // The last round is about everything that was emitted, so also about what came during it.
  complete_ = closing_ == Closing::last_round ? highest_ : round_;
  complete_at_ = batches_taken_;
  if (closing_ == Closing::asked) return start_round();
  if (closing_ == Closing::last_round) closing_ = Closing::flushing;
  step();
}

void EventLog::finish_close() {
  while (EventBatch* batch = waiting_.pop_front()) batch->shard->give_back(*batch);
  front_written_ = 0;
  leave_file();
  tick_.cancel();
  enter(State::closed);
  // The owner may destroy this log in it.
  auto closed = std::exchange(closed_, nullptr);
  closed();
}

}  // namespace millrace::events
