// An SMTP listener on a simulated machine, clients on another, and a spool, an intake and an event sink
// that do as the test says.
#pragma once

#include <gtest/gtest.h>

#include <cerrno>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/crc32c.h"
#include "ingress/inject.h"
#include "ingress/listener.h"
#include "net/stream.h"
#include "reactor/sim.h"

namespace millrace::ingress {

constexpr int64_t kMs = 1'000'000;
constexpr int64_t kSecond = 1'000'000'000;

class FakeSpool final : public spool::Spool {
 public:
  explicit FakeSpool(reactor::Io& io) : io_(io) { timer_.bind<&FakeSpool::answer>(this); }

  struct Stored {
    spool::Append* append;
    std::string body;
    Status status = success();
    bool close_silently = false;
  };

  void append(spool::Append& append) override {
    std::string body;
    for (const spool::Piece& piece : append.pieces) {
      EXPECT_GE(piece.data, piece.buffer->data);
      EXPECT_LE(piece.data + piece.size, piece.buffer->data + piece.buffer->size);
      body.append(piece.data, piece.size);
    }
    EXPECT_EQ(crc32c(0, body), append.body_crc);
    metadata.emplace_back(append.metadata);
    events.emplace_back(append.event);
    Stored stored{&append, std::move(body)};
    if (fail_with != 0) stored.status = fail("no such luck", fail_with);
    stored.close_silently = close_silently;
    waiting.push_back(std::move(stored));
    if (!hold) release_all();
  }
  void note(spool::Note&) override { FAIL() << "ingress writes no notes"; }
  void read(spool::Read&) override { FAIL() << "ingress reads nothing"; }
  bool reserve(uint32_t recipients) override {
    reserved += recipients;
    return !full;
  }
  void put_state(std::string, std::string, std::function<void(Status)>) override {}
  void events_emitted(uint64_t) override {}
  const spool::Stats& stats() const override { return stats_; }

  // Answers come from a turn of the Io, as the real spool's do.
  void release_all() {
    while (!waiting.empty()) release(0);
  }
  void release(size_t index) {
    ready_.push_back(std::move(waiting[index]));
    waiting.erase(waiting.begin() + static_cast<ptrdiff_t>(index));
    io_.timers().arm(timer_, io_.now() + kMs);
  }

  bool hold = false;
  bool full = false;
  int fail_with = 0;
  bool close_silently = false;
  uint64_t reserved = 0;
  std::vector<Stored> waiting;
  std::vector<std::string> metadata;
  std::vector<std::string> events;

 private:
  void answer() {
    auto ready = std::exchange(ready_, {});
    for (Stored& stored : ready) {
      std::string now;
      for (const spool::Piece& piece : stored.append->pieces) now.append(piece.data, piece.size);
      EXPECT_EQ(now, stored.body) << "the bytes changed while they were being written";
      stored.append->status = std::move(stored.status);
      stored.append->close_silently = stored.close_silently;
      stored.append->location = {1, static_cast<uint32_t>(++sequence_ * 4096), 4096};
      stored.append->sequence = sequence_;
      stored.append->done(stored.append->owner, *stored.append);
    }
  }

  reactor::Io& io_;
  reactor::Timer timer_;
  std::deque<Stored> ready_;
  uint64_t sequence_ = 0;
  spool::Stats stats_;
};

class FakeIntake final : public queue::Intake {
 public:
  explicit FakeIntake(reactor::Io& io) : io_(io) { timer_.bind<&FakeIntake::answer>(this); }

  queue::Admission admit(queue::AdmissionWaiter& waiter, std::string& why) override {
    ++asked;
    if (admission == queue::Admission::refused) why = "no room";
    if (admission == queue::Admission::later) waiters.push_back(waiter);
    return admission;
  }
  void enqueue(queue::MessageRef message) override {
    EXPECT_NE(message->location.size, 0u);
    messages.push_back(std::move(message));
  }
  void answer_waiters(bool refused) {
    refuse_ = refused;
    io_.timers().arm(timer_, io_.now() + kMs);
  }
  size_t waiting() {
    size_t count = 0;
    for (auto* waiter = waiters.front(); waiter; waiter = waiters.next(*waiter)) ++count;
    return count;
  }

  queue::Admission admission = queue::Admission::now;
  int asked = 0;
  IntrusiveList<queue::AdmissionWaiter, &queue::AdmissionWaiter::link> waiters;
  std::vector<queue::MessageRef> messages;

 private:
  void answer() {
    while (queue::AdmissionWaiter* waiter = waiters.pop_front()) {
      waiter->on_admitted(refuse_, "waited in vain");
    }
  }
  reactor::Io& io_;
  reactor::Timer timer_;
  bool refuse_ = false;
};

class FakeSink final : public events::Sink {
 public:
  void emit(uint64_t sequence, const events::Event& event) override {
    sequences.push_back(sequence);
    // An event owns nothing.
    bytes_.emplace_back();
    events::encode(event, bytes_.back());
    events.push_back(events::decode(bytes_.back()).value());
  }
  std::vector<uint64_t> sequences;
  std::vector<events::Event> events;

 private:
  std::deque<std::string> bytes_;
};

// A client that sends what it is told and keeps what it hears.
class Client final : private net::StreamOwner {
 public:
  Client(reactor::SimWorld& world, reactor::Io& io, const reactor::Address& server,
         std::string_view source)
      : world_(world), io_(io), server_(server), stream_(io, *this) {
    connect_.bind<&Client::on_connected>(this);
    reactor::Address from;
    if (!source.empty()) from = *reactor::Address::parse_host(source, 0);
    Result<reactor::Handle> handle = io.open_socket(server, from);
    EXPECT_TRUE(handle.ok());
    handle_ = *handle;
    io_.connect(connect_, handle_, server_);
  }
  ~Client() {
    close();
    if (started_) world_.run_until([&] { return gone; }, world_.now() + 100 * kSecond);
    EXPECT_TRUE(gone || !started_);
  }

  void send(std::string_view bytes) {
    queued_ += bytes;
    pump();
  }
  // Sends in pieces of random sizes up to `most`, a while apart.
  void send_split(std::string_view bytes, uint64_t most) {
    while (!bytes.empty()) {
      size_t size = 1 + world_.chance().below(most);
      send(bytes.substr(0, size));
      bytes.remove_prefix(std::min(size, bytes.size()));
      world_.run_for(static_cast<int64_t>(world_.chance().below(3)) * kMs);
    }
  }
  void finish() {  // half-close once everything is sent
    world_.run_until([&] { return queued_.empty() && !stream_.sending(); }, world_.now() + 60 * kSecond);
    stream_.shutdown_send();
  }
  void close(bool reset = false) {
    if (started_ && !gone && !stream_.closing()) stream_.close(reset);
  }
  // After the 220 to STARTTLS, or at once where TLS comes first; waits for the handshake to end.
  bool secure(std::unique_ptr<tls::Engine> engine) {
    bool started = world_.run_until([&] { return connected && !stream_.sending(); }, world_.now() + 30 * kSecond);
    EXPECT_TRUE(started);
    if (!started || !stream_.open()) return false;
    stream_.start_tls(std::move(engine));
    return world_.run_until([&] { return secured || ended || gone; }, world_.now() + 30 * kSecond) && secured;
  }
  void pause() { stream_.pause(); }
  void resume() { stream_.resume(); }

  // Waits for `count` complete replies and returns them; fails the test when they do not come.
  std::string hear(int count = 1, int64_t within = 30 * kSecond) {
    size_t end = std::string::npos;
    bool came = world_.run_until([&] { return (end = replies_end(count)) != std::string::npos; },
                                 world_.now() + within);
    EXPECT_TRUE(came) << "heard only: " << heard;
    if (!came) return {};
    std::string replies = heard.substr(0, end);
    heard.erase(0, end);
    return replies;
  }
  std::string talk(std::string_view line, int replies = 1) {
    send(std::string(line) + "\r\n");
    return hear(replies);
  }
  bool wait_end(int64_t within = 30 * kSecond) {
    return world_.run_until([&] { return ended || gone; }, world_.now() + within);
  }

  std::string heard;
  bool connected = false;
  bool secured = false;
  bool ended = false;    // the server has closed
  int end_error = -1;
  bool gone = false;
  size_t receives = 0;   // pieces that arrived

 private:
  void on_connected(reactor::Completion& completion) {
    if (completion.result < 0) {
      ended = gone = true;
      io_.close(handle_);
      return;
    }
    connected = started_ = true;
    stream_.start(handle_, reactor::BufferGroup::control);
    pump();
  }
  void pump() {
    if (!connected || gone || !stream_.open() || stream_.sending() || queued_.empty()) return;
    flying_ = std::exchange(queued_, {});
    iovec part{flying_.data(), flying_.size()};
    stream_.send({&part, 1});
  }
  void on_data(char* data, size_t size, reactor::BufferRef) override {
    heard.append(data, size);
    ++receives;
  }
  void on_secure() override { secured = true; }
  void on_sent() override { pump(); }
  void on_end(int error) override {
    ended = true;
    end_error = error;
    if (error != 0) close();
  }
  void on_closed() override { gone = true; }

  size_t replies_end(int count) const {
    size_t at = 0;
    while (count > 0) {
      size_t end = heard.find("\r\n", at);
      if (end == std::string::npos) return end;
      if (end >= at + 4 && heard[at + 3] == ' ') --count;
      at = end + 2;
    }
    return at;
  }

  reactor::SimWorld& world_;
  reactor::Io& io_;
  reactor::Address server_;
  reactor::Handle handle_ = reactor::kNoHandle;
  reactor::Op connect_;
  net::Stream stream_;
  std::string queued_, flying_;
  bool started_ = false;
};

struct Rig {
  explicit Rig(uint64_t seed = 1, reactor::SimOptions options = {})
      : world(seed, options),
        relay_host(world.add_host({"192.0.2.1", "2001:db8::1"})),
        client_host(world.add_host({"198.51.100.7", "198.51.100.8", "203.0.113.9", "2001:db8:1::7"})),
        io(world.make_io(relay_host)),
        client_io(world.make_io(client_host)),
        spool(*io),
        intake(*io),
        mailbox(*io) {
    io->on_wake = [this] { mailbox.drain(); };
    draft.hostname = "relay.example.org";
    draft.relay_from = {*reactor::Network::parse("198.51.100.0/24")};
    draft.proxy_from = {*reactor::Network::parse("203.0.113.9")};
  }
  ~Rig() {
    clients.clear();
    if (!listener) return;
    spool.hold = false;
    spool.release_all();
    listener->stop();
    EXPECT_TRUE(world.run_until([&] { return listener->drained(); }, world.now() + 100 * kSecond));
    EXPECT_EQ(context->stats.connections_open, 0u);
    EXPECT_EQ(context->stats.pending, 0u);
    EXPECT_EQ(context->stats.sessions_paused, 0u);
    EXPECT_EQ(limits->open(), 0u);
    intake.messages.clear();
    EXPECT_EQ(world.open_handles(relay_host), 0u);
    listener.reset();
  }

  // After changes to `draft`.
  void start() {
    config = std::make_shared<const config::Config>(draft);
    context.emplace(Context{*io, &config, spool, intake, sink, *limits, mail::SpoolIdMaker(7, 0), 0, {}, accounts.get(),
                            &passwords, &mailbox, quotas.get()});
    acceptance.emplace(*context);
    listener.emplace(*context, *acceptance);
    std::vector<config::Listen> listen(2);
    listen[0].address = *reactor::Address::parse("192.0.2.1:25");
    listen[1].address = *reactor::Address::parse("192.0.2.1:26");
    listen[1].proxy = true;
    if (draft.tls_server) {
      listen.resize(3);
      listen[2].address = *reactor::Address::parse("192.0.2.1:465");
      listen[2].tls = true;
    }
    Status opened = listener->open(listen, SmtpListener::Sharing::alone);
    ASSERT_TRUE(opened.ok()) << opened.error().text;
  }
  // What SIGHUP does.
  void adopt() { config = std::make_shared<const config::Config>(draft); }

  Client& connect(std::string_view source = "198.51.100.7", uint16_t port = 25) {
    clients.push_back(std::make_unique<Client>(
        world, *client_io, *reactor::Address::parse_host("192.0.2.1", port), source));
    return *clients.back();
  }
  // Connected, greeted and introduced.
  Client& introduce(std::string_view source = "198.51.100.7") {
    Client& client = connect(source);
    EXPECT_EQ(client.hear().substr(0, 4), "220 ");
    EXPECT_EQ(client.talk("EHLO app.example.org").substr(0, 4), "250-");
    return client;
  }
  // The reply to the end of data of one whole message.
  std::string submit(Client& client, std::string_view content,
                     std::string_view mail = "MAIL FROM:<a@example.org>") {
    EXPECT_EQ(client.talk(mail).substr(0, 3), "250");
    EXPECT_EQ(client.talk("RCPT TO:<b@example.net>").substr(0, 3), "250");
    EXPECT_EQ(client.talk("DATA").substr(0, 3), "354");
    client.send(content);
    client.send(".\r\n");
    return client.hear();
  }
  bool wait_messages(size_t count, int64_t within = 30 * kSecond) {
    return world.run_until([&] { return intake.messages.size() >= count; }, world.now() + within);
  }
  const queue::Message& message(size_t index = 0) { return *intake.messages.at(index); }
  // The canonical content: what would be sent by BDAT.
  std::string content(size_t index = 0) {
    std::vector<iovec> parts;
    message(index).content.gather(mail::WireForm::bdat, parts);
    std::string text;
    for (const iovec& part : parts) text.append(static_cast<char*>(part.iov_base), part.iov_len);
    EXPECT_EQ(text.size(), message(index).content.size());
    return text;
  }
  Stats& stats() { return context->stats; }

  reactor::SimWorld world;
  reactor::HostId relay_host, client_host;
  std::unique_ptr<reactor::Io> io, client_io;
  FakeSpool spool;
  FakeIntake intake;
  FakeSink sink;
  reactor::Mailbox mailbox;
  std::unique_ptr<Accounts> accounts = std::make_unique<Accounts>();
  std::unique_ptr<Quotas> quotas = std::make_unique<Quotas>();
  InlineChecker passwords;
  // On the heap because of its alignment: GCC bug 110027, with AddressSanitizer.
  std::unique_ptr<ConnectionLimits> limits = std::make_unique<ConnectionLimits>();
  config::Config draft;
  config::Snapshot config;
  std::optional<Context> context;
  std::optional<Acceptance> acceptance;
  std::optional<SmtpListener> listener;
  std::vector<std::unique_ptr<Client>> clients;
};

}  // namespace millrace::ingress
