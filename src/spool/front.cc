#include "spool/front.h"

namespace millrace::spool {

Front::Front(Log& log, reactor::Io& io, reactor::Mailbox& mailbox)
    : log_(log),
      io_(io),
      mailbox_(mailbox),
      local_(&io == &log.io()),
      reader_(io, log.directory(), false) {
  hello_.front = this;
  hello_.address<&Log::on_hello>(&log_);
  send(hello_);
}

Front::~Front() {
  if (reader_.pending() == 0) reader_.close_files();
}

void Front::send(reactor::Letter& letter) {
  if (local_) {
    letter.deliver(letter.receiver, letter);
  } else {
    log_.mailbox().push(letter);
  }
}

void Front::deliver(reactor::Letter& letter) {
  if (local_) {
    letter.deliver(letter.receiver, letter);
  } else {
    mailbox_.push(letter);
  }
}

void Front::append(Append& append) {
  append.status = success();
  append.close_silently = false;
  append.front = this;
  append.address<&Log::on_append>(&log_);
  send(append);
}

void Front::on_append_back(reactor::Letter& letter) {
  Append& append = static_cast<Append&>(letter);
  if (append.status.ok()) {
    ++stats_.messages;
    for (const Piece& piece : append.pieces) stats_.bytes_body += piece.size;
  }
  append.done(append.owner, append);
}

void Front::note(Note& note) {
  note.status = success();
  note.front = this;
  unsynced_since_.push_back(io_.now());
  note.address<&Log::on_note>(&log_);
  send(note);
}

void Front::on_note_back(reactor::Letter& letter) {
  Note& note = static_cast<Note&>(letter);
  unsynced_since_.pop_front();
  note.done(note.owner, note);
}

void Front::read(Read& read) { reader_.read(read); }

bool Front::reserve(uint32_t) { return log_.accepting(); }

void Front::put_state(std::string key, std::string value, std::function<void(Status)> done) {
  auto* put = new StatePut;  // operator actions and budgets: not on the message path
  put->key = std::move(key);
  put->value = std::move(value);
  put->done = std::move(done);
  put->front = this;
  put->address<&Log::on_state>(&log_);
  send(*put);
}

void Front::on_state_back(reactor::Letter& letter) {
  std::unique_ptr<StatePut> put(static_cast<StatePut*>(&letter));
  if (put->done) put->done(std::move(put->status));
}

void Front::events_emitted(uint64_t sequence) {
  emitted_wanted_ = std::max(emitted_wanted_, sequence);
  if (emitted_under_way_ || emitted_.sequence == emitted_wanted_) return;
  emitted_under_way_ = true;
  emitted_.sequence = emitted_wanted_;
  emitted_.front = this;
  emitted_.address<&Log::on_emitted>(&log_);
  send(emitted_);
}

void Front::on_emitted_back(reactor::Letter&) {
  emitted_under_way_ = false;
  if (emitted_wanted_ != emitted_.sequence) events_emitted(emitted_wanted_);
}

void Front::on_moved(reactor::Letter& letter) {
  Moved& moved = static_cast<Moved&>(letter);
  if (Spool::on_moved) Spool::on_moved(moved.id, moved.from, moved.to);
  moved.address<&Log::on_moved_back>(&log_);
  send(moved);
}

void Front::on_release(reactor::Letter& letter) {
  Release& release = static_cast<Release&>(letter);
  release.address<&Log::on_released_back>(&log_);
  struct Context {
    Front* front;
    Release* release;
  };
  // Answers when no read of the segment is pending here.
  auto* context = new Context{this, &release};
  reader_.release(release.generation, context, [](void* at) {
    std::unique_ptr<Context> owned(static_cast<Context*>(at));
    owned->front->send(*owned->release);
  });
}

void Front::on_writable_changed(reactor::Letter& letter) {
  Writable& writable = static_cast<Writable&>(letter);
  if (on_writable) on_writable(writable.writable, writable.why);
  writable.address<&Log::on_writable_back>(&log_);
  send(writable);
}

const Stats& Front::stats() const {
  if (local_) {
    Stats log = log_.stats();
    log.messages = stats_.messages;
    log.bytes_body = stats_.bytes_body;
    stats_ = log;
  }
  stats_.notes_unsynced = unsynced_since_.size();
  stats_.oldest_unsynced_ns = unsynced_since_.empty() ? 0 : unsynced_since_.front();
  return stats_;
}

}  // namespace millrace::spool
