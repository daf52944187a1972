// A shard's Spool: passes requests to the log by letters (or directly on the log's own shard), takes
// the answers, reads for itself.
#pragma once

#include <memory>
#include <string>

#include "spool/log.h"
#include "spool/reader.h"
#include "spool/spool.h"

namespace millrace::spool {

class Front final : public Spool {
 public:
  Front(Log& log, reactor::Io& io, reactor::Mailbox& mailbox);
  ~Front() override;

  void append(Append& append) override;
  void note(Note& note) override;
  void read(Read& read) override;
  bool reserve(uint32_t recipients) override;
  void put_state(std::string key, std::string value, std::function<void(Status)> done) override;
  void events_emitted(uint64_t sequence) override;
  const Stats& stats() const override;

  // ---- for the log
  // Hands a letter to this shard; on the log's own shard it is delivered at once.
  void deliver(reactor::Letter& letter);
  void on_append_back(reactor::Letter& letter);
  void on_note_back(reactor::Letter& letter);
  void on_state_back(reactor::Letter& letter);
  void on_emitted_back(reactor::Letter& letter);
  void on_moved(reactor::Letter& letter);
  void on_release(reactor::Letter& letter);
  void on_writable_changed(reactor::Letter& letter);

  uint16_t number_at_log = kHomeUnknown;  // the log's own; set before any letter comes back

 private:
  void send(reactor::Letter& letter);

  Log& log_;
  reactor::Io& io_;
  reactor::Mailbox& mailbox_;
  const bool local_;
  Reader reader_;
  mutable Stats stats_;

  // When the notes under way were given, oldest first: they are answered in this order.
  std::deque<int64_t> unsynced_since_;

  Hello hello_;
  Emitted emitted_;
  bool emitted_under_way_ = false;
  uint64_t emitted_wanted_ = 0;
};

}  // namespace millrace::spool
