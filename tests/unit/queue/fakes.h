// A spool and an agent of the test's own, so that the scheduler's decisions can be seen one by one. Both
// answer at the end of the turn, as the real ones do.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "dns/mx.h"
#include "events/sink.h"
#include "queue/scheduler.h"
#include "reactor/sim.h"

namespace millrace::queue {

class FakeSpool final : public spool::Spool {
 public:
  explicit FakeSpool(reactor::Io& io) : io_(io) {
    answer_.bind<&FakeSpool::on_answer>(this);
    read_timer_.bind<&FakeSpool::on_answer>(this);
  }
  ~FakeSpool() override {
    answer_.cancel();
    read_timer_.cancel();
  }

  void append(spool::Append&) override { UNREACHABLE(); }
  void note(spool::Note& note) override {
    notes.push_back({note.id, note.final, note.state, note.event});
    if (stats_.oldest_unsynced_ns == 0) stats_.oldest_unsynced_ns = io_.now();
    pending_.push_back(&note);
    if (!stalled) io_.defer(answer_);
  }
  void read(spool::Read& read) override {
    ++reads;
    const Stored& stored = messages.at(read.id);
    read.metadata = stored.metadata;
    read.pieces = {std::string_view(stored.body)};
    reads_.push_back(&read);
    if (read_ns > 0) {
      if (!read_timer_.armed()) io_.timers().arm(read_timer_, io_.now() + read_ns);
    } else if (!stalled_reads) {
      io_.defer(answer_);
    }
  }
  bool reserve(uint32_t) override { return true; }
  void put_state(std::string key, std::string value, std::function<void(Status)> done) override {
    value.empty() ? void(state.erase(key)) : void(state[key] = value);
    io_.timers();
    states_.push_back(std::move(done));
    io_.defer(answer_);
  }
  void events_emitted(uint64_t) override {}
  const spool::Stats& stats() const override { return stats_; }
  void go_on() {
    stalled = false;
    io_.defer(answer_);
  }

  struct Recorded {
    mail::SpoolId id;
    bool final;
    std::string state, event;
  };
  struct Stored {
    std::string metadata, body;
  };
  std::vector<Recorded> notes;
  std::map<mail::SpoolId, Stored> messages;
  std::map<std::string, std::string> state;
  uint64_t reads = 0;
  bool stalled = false, stalled_reads = false, unreadable = false, refuse_notes = false;
  int64_t read_ns = 0;  // how long a read takes; 0: until the end of the turn

 private:
  void on_answer() {
    auto notes_now = std::move(pending_);
    pending_.clear();
    if (stalled) std::swap(notes_now, pending_);
    if (pending_.empty()) stats_.oldest_unsynced_ns = 0;
    for (spool::Note* note : notes_now) {
      note->status = refuse_notes ? fail("the test's disk is broken", EIO) : success();
      if (!refuse_notes) note->sequence = ++sequence_;
      note->done(note->owner, *note);
    }
    auto reads_now = std::move(reads_);
    reads_.clear();
    if (stalled_reads || read_timer_.armed()) std::swap(reads_now, reads_);
    for (spool::Read* read : reads_now) {
      if (unreadable) read->status = fail("the test reads nothing");
      read->done(read->owner, *read);
    }
    auto states_now = std::move(states_);
    states_.clear();
    for (auto& done : states_now) done(success());
  }
  reactor::Io& io_;
  reactor::Deferred answer_;
  reactor::Timer read_timer_;
  std::vector<spool::Note*> pending_;
  std::vector<spool::Read*> reads_;
  std::vector<std::function<void(Status)>> states_;
  spool::Stats stats_;
  uint64_t sequence_ = 0;
};

// A message for one recipient, accepted now, in memory and in the spool.
inline MessageRef store_message(FakeSpool& spool, mail::SpoolId id, const reactor::Io& io, const config::Config& config,
                                const std::string& domain, const std::string& tenant, const std::string& job) {
  MessageRef made = MessageRef::make();
  made->id = id;
  made->envelope.reverse_path = "from@example.org";
  made->envelope.tenant = tenant;
  made->envelope.job = job;
  made->envelope.received_ms = io.wall_ms();
  made->envelope.expires_ms = io.wall_ms() + config.expire_after_ms;
  made->envelope.recipients.push_back({"a@" + domain, domain, "", 0});
  made->location = {1, static_cast<uint32_t>(spool.messages.size() * 512 + 512), 300};
  FakeSpool::Stored& stored = spool.messages[made->id];
  stored.body = "Subject: x\r\n\r\nhello\r\n";
  made->content.raw = {stored.body};
  made->content.raw_size = static_cast<uint32_t>(stored.body.size());
  mail::encode_metadata(made->envelope, made->content, stored.metadata);
  return made;
}

class FakeAgent final : public Agent {
 public:
  struct FakeLane final : Lane {
    FakeAgent* agent = nullptr;
    bool woken = false, retired = false, ready = false;
    int64_t ready_at = 0, idle_since = 0;
    uint32_t messages = 0;
    reactor::Timer timer;
    std::deque<Attempt*> out;
    void wake() override { woken = true; agent->schedule(); }
    void retire() override { retired = true; agent->schedule(); }
  };

  explicit FakeAgent(reactor::Io& io) : io_(io) { turn_.bind<&FakeAgent::on_turn>(this); }
  ~FakeAgent() override { turn_.cancel(); }
  void start(Dispatcher& dispatcher) override { dispatcher_ = &dispatcher; }
  void resolve(Destination& destination) override {
    ++resolves;
    if (on_resolve) on_resolve(destination);
    unresolved_.push_back(&destination);
    schedule();
  }
  Lane* open(Site&, unsigned) override {
    auto lane = std::make_unique<FakeLane>();
    lane->agent = this;
    lane->ready_at = io_.now() + connect_ns;
    lane->timer.owner = this;
    lane->timer.call = [](void* self) { static_cast<FakeAgent*>(self)->on_turn(); };
    if (connect_ns > 0) io_.timers().arm(lane->timer, lane->ready_at);
    ++opened;
    lanes.push_back(std::move(lane));
    most_lanes = std::max(most_lanes, lanes.size());
    schedule();
    return lanes.back().get();
  }
  void schedule() { io_.defer(turn_); }

  // The script: how many attempts a lane takes at once, what becomes of an attempt, what a domain's
  // route is, and whether connections fail.
  size_t depth = 1;
  int64_t connect_ns = 0;      // how long a connection takes
  uint32_t messages_most = 0;  // a connection; 0: any number
  int64_t idle_ns = 0;         // after which a connection closes; 0: never
  bool hold_attempts = false;  // taken, but finished only by finish_all()
  std::function<void(Attempt&)> serve = [](Attempt& attempt) {
    for (auto& result : attempt.results) {
      result.action = Action::delivered;
      result.code = 250;
    }
  };
  std::function<dns::Route(const std::string&)> route = [](const std::string& domain) {
    dns::Route found;
    found.verdict = dns::Verdict::usable;
    found.site = "mx." + domain;
    found.valid_until_ns = INT64_MAX;
    return found;
  };
  std::function<void(const Destination&)> on_resolve;
  std::optional<LaneEnd> fail_connect;
  std::function<std::optional<LaneEnd>(const Site&)> fails;  // of some sites

  void finish_all() {
    hold_attempts = false;
    schedule();
  }

  std::vector<std::string> attempted;  // "id/recipient numbers"
  std::vector<std::unique_ptr<FakeLane>> lanes;
  size_t most_lanes = 0;
  unsigned opened = 0, resolves = 0;

 private:
  void on_turn() {
    auto unresolved = std::move(unresolved_);
    unresolved_.clear();
    for (Destination* destination : unresolved) {
      dispatcher_->on_route(*destination, std::make_shared<dns::Route>(route(destination->domain)));
    }
    for (size_t i = 0; i < lanes.size(); ++i) {
      FakeLane& lane = *lanes[i];
      std::optional<LaneEnd> failure = fails ? fails(*lane.site) : fail_connect;
      if (!lane.ready && failure) {
        close(i--, *failure);
        continue;
      }
      if (!lane.ready && lane.retired) {
        close(i--, LaneEnd{});
        continue;
      }
      if (!lane.ready && io_.now() < lane.ready_at) continue;
      if (!lane.ready) {
        lane.ready = lane.woken = true;
        dispatcher_->lane_ready(lane);
      }
      if (idle_ns > 0 && !lane.woken && lane.out.empty() && io_.now() >= lane.idle_since + idle_ns) {
        close(i--, LaneEnd{});
        continue;
      }
      if (lane.retired) {
        while (!lane.out.empty() && !hold_attempts) finish(lane);
        if (lane.out.empty()) close(i--, LaneEnd{});
        continue;
      }
      while (!hold_attempts && !lane.out.empty()) {
        finish(lane);
        lane.woken = true;
      }
      while (lane.woken && lane.out.size() < depth) {
        Attempt* attempt = dispatcher_->take(lane);
        if (!attempt) {
          lane.woken = false;
          lane.idle_since = io_.now();
          if (idle_ns > 0) io_.timers().arm(lane.timer, lane.idle_since + idle_ns);
          break;
        }
        std::string text = attempt->message->id.to_string();
        for (uint32_t number : attempt->recipients) text += "/" + std::to_string(number);
        attempted.push_back(text);
        lane.out.push_back(attempt);
        if (++lane.messages == messages_most) {
          lane.retired = true;
          break;
        }
      }
      if ((lane.retired || !lane.out.empty()) && !hold_attempts) schedule();
    }
  }
  void finish(FakeLane& lane) {
    Attempt* attempt = lane.out.front();
    lane.out.pop_front();
    serve(*attempt);
    dispatcher_->finished(*attempt);
  }
  void close(size_t i, const LaneEnd& end) {
    auto lane = std::move(lanes[i]);
    lanes.erase(lanes.begin() + static_cast<std::ptrdiff_t>(i));
    dispatcher_->lane_closed(*lane, end);
  }

  reactor::Io& io_;
  reactor::Deferred turn_;
  Dispatcher* dispatcher_ = nullptr;
  std::vector<Destination*> unresolved_;
};

class FakeSink final : public events::Sink {
 public:
  bool behind() const override { return late; }
  bool late = false;
  void emit(uint64_t sequence, const events::Event& event) override {
    // An event owns nothing.
    bytes_.emplace_back();
    events::encode(event, bytes_.back());
    seen.push_back(events::decode(bytes_.back()).value());
    sequences.push_back(sequence);
  }
  std::vector<events::Event> seen;
  std::vector<uint64_t> sequences;
  size_t count(events::Type type) const {
    size_t n = 0;
    for (const auto& event : seen) n += event.type == type;
    return n;
  }

 private:
  std::deque<std::string> bytes_;
};

class FakeReporter final : public Reporter {
 public:
  explicit FakeReporter(reactor::Io& io) : io_(io) { answer_.bind<&FakeReporter::on_answer>(this); }
  ~FakeReporter() override { answer_.cancel(); }
  bool wants(const Message& message, uint32_t, ReportKind kind, bool) override {
    return !message.envelope.reverse_path.empty() && kind != ReportKind::delivered;
  }
  void report(ReportRequest& request) override {
    reported.push_back(request.lines);
    pending_.push_back(&request);
    io_.defer(answer_);
  }
  std::vector<std::vector<ReportLine>> reported;
  bool sends = true;

 private:
  void on_answer() {
    auto now = std::move(pending_);
    pending_.clear();
    for (ReportRequest* request : now) {
      request->sent = sends;
      request->done(request->owner, *request);
    }
  }
  reactor::Io& io_;
  reactor::Deferred answer_;
  std::vector<ReportRequest*> pending_;
};

}  // namespace millrace::queue
