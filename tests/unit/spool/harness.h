// A spool on a simulated host: one or more shards, a handler that remembers what recovery said, and
// calls that wait for their answer.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "reactor/mailbox.h"
#include "reactor/sim.h"
#include "spool/directory.h"
#include "spool/spool.h"

namespace millrace::spool::testing {

constexpr int64_t kSecond = 1'000'000'000;

inline std::string pattern(size_t size, unsigned salt) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>((i * 7 + i / 251 + salt * 31) % 253);
  return text;
}

struct Memory final : RecoveryHandler {
  struct Message {
    Location location;
    std::string metadata, state;
    uint64_t body_size = 0;
  };
  std::map<mail::SpoolId, Message> messages;
  std::vector<std::pair<uint64_t, std::string>> events;
  std::map<std::string, std::string> state;
  void on_message(const Recovered& m) override {
    bool fresh =
        messages.emplace(m.id, Message{m.location, std::string(m.metadata), std::string(m.state), m.body_size})
            .second;
    EXPECT_TRUE(fresh) << m.id.to_string() << " was recovered twice";
  }
  void on_event(uint64_t sequence, std::string_view event) override {
    if (!events.empty()) {
      EXPECT_GT(sequence, events.back().first);
    }
    events.emplace_back(sequence, event);
  }
  void on_state(std::string_view key, std::string_view value) override {
    EXPECT_TRUE(state.emplace(key, value).second);
  }
};

inline config::Config small_config() {
  config::Config config;
  config.spool = "/spool";
  config.segment_size = 256 << 10;
  config.max_message_size = 100 << 10;
  config.spool_reserve = 512 << 10;
  config.events = "/events";
  return config;
}

// An append with memory of its own.
struct Message {
  Append append;
  std::string metadata, event, body;
  std::vector<reactor::BufferRef> buffers;
  bool answered = false;
  static void on_done(void* owner, Append&) { static_cast<Message*>(owner)->answered = true; }
};
struct Outcome {
  Note note;
  bool answered = false;
  static void on_done(void* owner, Note&) { static_cast<Outcome*>(owner)->answered = true; }
};

class SpoolWorld {
 public:
  explicit SpoolWorld(uint64_t seed, config::Config config = small_config(),
                      const reactor::SimOptions& options = {}, unsigned shards = 1)
      : world(seed, options), config_(std::move(config)), shards_(shards) {
    host = world.add_host({"192.0.2.1"});
  }
  ~SpoolWorld() {
    if (!ios.empty()) {
      world.crash(host, reactor::Crash::process);
      drop();
    }
  }

  // Opens and recovers; the error's text, or nothing.
  std::string start() {
    memory = {};
    for (unsigned i = 0; i < shards_; ++i) {
      ios.push_back(world.make_io(host));
      boxes.push_back(std::make_unique<reactor::Mailbox>(*ios.back()));
      ios.back()->on_wake = [box = boxes.back().get()] { box->drain(); };
    }
    std::optional<std::string> result;
    reactor::spawn(open(), [&](std::string text) { result = std::move(text); });
    EXPECT_TRUE(world.run_until([&] { return result.has_value(); }, world.now() + 600 * kSecond));
    if (!result) return "it takes too long";
    return *result;
  }
  // Opens for one shard and does not recover.
  void open_only() {
    ios.push_back(world.make_io(host));
    boxes.push_back(std::make_unique<reactor::Mailbox>(*ios[0]));
    std::optional<Result<std::unique_ptr<Directory>>> opened;
    reactor::spawn(Directory::open(*ios[0], *boxes[0], config_), [&](auto result) { opened = std::move(result); });
    ASSERT_TRUE(run([&] { return opened.has_value(); }));
    ASSERT_TRUE(opened->ok());
    directory = std::move(**opened);
    spools.push_back(directory->shard(*ios[0], *boxes[0]));
  }
  void stop() {
    bool closed = false;
    reactor::spawn(directory->close(), [&](Status status) { closed = status.ok(); });
    EXPECT_TRUE(world.run_until([&] { return closed; }, world.now() + 600 * kSecond));
    world.crash(host, reactor::Crash::process);  // nothing is left to lose
    drop();
  }
  void crash(reactor::Crash kind) {
    world.crash(host, kind);
    drop();
  }
  void restart() {
    stop();
    ASSERT_EQ(start(), "");
  }
  void drop() {
    spools.clear();
    directory.reset();
    boxes.clear();
    in_flight.clear();
    outcomes.clear();
    ios.clear();
  }
  bool run(const std::function<bool()>& done, int64_t seconds = 600) {
    return world.run_until(done, world.now() + seconds * kSecond);
  }

  // A message with a body of `size` bytes, in pieces of at most `piece`, each in a buffer of its own.
  Message& make(mail::SpoolId id, size_t size, size_t piece = 1 << 20, unsigned shard = 0) {
    in_flight.emplace_back();
    Message& m = in_flight.back();
    m.body = pattern(size, static_cast<unsigned>(id.low));
    m.metadata = "metadata of " + std::to_string(id.low);
    m.event = "received " + std::to_string(id.low);
    m.append.id = id;
    m.append.metadata = m.metadata;
    m.append.event = m.event;
    m.append.body_crc = crc32c(0, m.body);
    for (size_t at = 0; at < size; at += piece) {
      size_t part = std::min(piece, size - at);
      size_t skew = (id.low * 13 + at / piece * 7) % 600;  // no piece begins where its buffer does
      auto buffer = ios[shard]->buffers(reactor::BufferGroup::ingress).allocate(static_cast<uint32_t>(part + skew));
      EXPECT_TRUE(buffer);
      std::memcpy(buffer->data + skew, m.body.data() + at, part);
      m.append.pieces.push_back({buffer->data + skew, static_cast<uint32_t>(part), buffer.get()});
      m.buffers.push_back(std::move(buffer));
    }
    m.append.owner = &m;
    m.append.done = &Message::on_done;
    return m;
  }
  Message& send(mail::SpoolId id, size_t size, size_t piece = 1 << 20, unsigned shard = 0) {
    Message& m = make(id, size, piece, shard);
    spools[shard]->append(m.append);
    return m;
  }
  // Appends and waits; the location.
  Location append(mail::SpoolId id, size_t size, size_t piece = 1 << 20, unsigned shard = 0) {
    Message& m = send(id, size, piece, shard);
    EXPECT_TRUE(run([&] { return m.answered; }));
    EXPECT_TRUE(m.append.status.ok()) << m.append.status.error().text;
    where[id] = m.append.location;
    m.buffers.clear();
    return m.append.location;
  }
  Outcome& give_note(mail::SpoolId id, const Location& message, bool final, std::string state, std::string event,
                     unsigned shard = 0) {
    outcomes.emplace_back();
    Outcome& o = outcomes.back();
    o.note.id = id;
    o.note.message = message;
    o.note.final = final;
    o.note.state = std::move(state);
    o.note.event = std::move(event);
    o.note.owner = &o;
    o.note.done = &Outcome::on_done;
    spools[shard]->note(o.note);
    return o;
  }
  void note(mail::SpoolId id, const Location& message, bool final, std::string state = "",
            std::string event = "", unsigned shard = 0) {
    Outcome& o = give_note(id, message, final, std::move(state), std::move(event), shard);
    EXPECT_TRUE(run([&] { return o.answered; }));
    EXPECT_TRUE(o.note.status.ok());
  }
  void put(std::string key, std::string value, unsigned shard = 0) {
    bool done = false;
    spools[shard]->put_state(std::move(key), std::move(value), [&](Status status) {
      EXPECT_TRUE(status.ok());
      done = true;
    });
    EXPECT_TRUE(run([&] { return done; }));
  }
  // The body, or the error in angle brackets.
  std::string read(mail::SpoolId id, const Location& location, unsigned shard = 0, std::string* metadata = nullptr) {
    Read read;
    bool done = false;
    read.id = id;
    read.message = location;
    read.owner = &done;
    read.done = [](void* owner, Read&) { *static_cast<bool*>(owner) = true; };
    spools[shard]->read(read);
    EXPECT_FALSE(done);
    EXPECT_TRUE(run([&] { return done; }));
    last_error = read.status.ok() ? 0 : read.status.error().number;
    if (!read.status.ok()) return "<" + read.status.error().text + ">";
    if (metadata) *metadata = read.metadata;
    std::string body;
    for (std::string_view piece : read.pieces) body += piece;
    return body;
  }

  // "intact", or what is wrong with it.
  std::string check(mail::SpoolId id, const Location& location, size_t size, unsigned shard = 0) {
    std::string body = read(id, location, shard);
    if (body == pattern(size, static_cast<unsigned>(id.low))) return "intact";
    return last_error != 0 ? body : "another body of " + std::to_string(body.size()) + " bytes";
  }

  reactor::SimWorld world;
  reactor::HostId host = 0;
  std::vector<std::unique_ptr<reactor::Io>> ios;
  std::vector<std::unique_ptr<reactor::Mailbox>> boxes;
  std::unique_ptr<Directory> directory;
  std::vector<std::unique_ptr<Spool>> spools;
  Memory memory;
  RecoverySummary summary;
  std::deque<Message> in_flight;
  std::deque<Outcome> outcomes;
  std::map<mail::SpoolId, Location> where;
  int last_error = 0;
  config::Config& config() { return config_; }

 private:
  reactor::Task<std::string> open() {
    auto opened = co_await Directory::open(*ios[0], *boxes[0], config_);
    if (!opened.ok()) co_return opened.error().text;
    directory = std::move(*opened);
    for (unsigned i = 0; i < shards_; ++i) spools.push_back(directory->shard(*ios[i], *boxes[i]));
    auto recovered = co_await directory->recover(memory);
    if (!recovered.ok()) co_return recovered.error().text;
    summary = std::move(*recovered);
    co_return std::string();
  }
  config::Config config_;
  unsigned shards_;
};

inline mail::SpoolId id(uint64_t n) { return {1, n}; }

}  // namespace millrace::spool::testing
