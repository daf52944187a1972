#include "admin/server.h"

#include <gtest/gtest.h>

#include <deque>

#include "net/stream.h"
#include "reactor/sim.h"

namespace millrace::admin {
namespace {

using nlohmann::json;
using reactor::Io;
using reactor::SimWorld;

constexpr int64_t kSecond = 1'000'000'000;
constexpr const char* kPath = "/run/admin.sock";
constexpr const char* kId = "01KAMZ3T5S00104H4K8NAPCRW8";

// Answers at once, or when the test says so.
struct FakeControl final : Control {
  bool hold = false;
  std::deque<std::function<void()>> held;
  RelayStatus status_answer;
  std::vector<queue::QueueRow> rows;
  Result<queue::MessageRow> message = fail("no such message");
  std::vector<std::pair<queue::Command, queue::Filter>> commands;
  Result<uint64_t> count = uint64_t{3};

  void give(std::function<void()> answer) {
    if (hold) {
      held.push_back(std::move(answer));
    } else {
      answer();
    }
  }
  void status(std::function<void(RelayStatus)> done) override {
    give([=, this] { done(status_answer); });
  }
  void queue_rows(std::function<void(std::vector<queue::QueueRow>)> done) override {
    give([=, this] { done(rows); });
  }
  void show(const mail::SpoolId&, std::function<void(Result<queue::MessageRow>)> done) override {
    give([=, this] { done(message); });
  }
  void explain(const std::string& domain, const mail::SpoolId&,
               std::function<void(Result<std::vector<queue::ExplainRow>>)> done) override {
    queue::ExplainRow row;
    row.domain = domain;
    row.source = "mta1.example.com";
    row.attempt_limits.push_back({"tenant acme", "attempt-rate", "10/m", "shaping.toml:3", 0, INT64_MAX, 2});
    give([=] { done(std::vector<queue::ExplainRow>{row}); });
  }
  void command(queue::Command command, queue::Filter filter, bool dry_run,
               std::function<void(Result<uint64_t>)> done) override {
    if (!dry_run) commands.emplace_back(command, filter);
    give([=, this] { done(count); });
  }
  void freeze(const std::string& account, bool frozen, std::function<void(Status)> done) override {
    if (!frozen && !frozen_.contains(account)) return done(fail(account + " is not frozen"));
    if (frozen) {
      frozen_.insert(account);
    } else {
      frozen_.erase(account);
    }
    done(success());
  }
  void forget_tls(const std::string& domain, std::function<void(Result<std::vector<std::string>>)> done) override {
    if (domain != "example.com") return done(fail("no such mail"));
    done(std::vector<std::string>{"mx1.example.com,mx2.example.com"});
  }
  std::vector<TlsReportRow> tls_reports() const override {
    return {{"example.com", 5, 2, 1'700'000'000'000, 0, {}}, {"example.org", 1, 0, 1'700'000'000'000, 1'700'000'001'000, "no server"}};
  }
  void send_tls_reports(std::function<void(Result<uint64_t>)> done) override { done(uint64_t{2}); }
  std::vector<std::pair<std::string, std::string>> frozen_accounts() const override {
    std::vector<std::pair<std::string, std::string>> all;
    for (const std::string& account : frozen_) all.emplace_back(account, "by the operator");
    return all;
  }
  std::set<std::string> frozen_;
  std::vector<queue::Filter> pauses() const override {
    queue::Filter filter;
    filter.domain = "paused.example";
    return {filter};
  }
};

class Client final : public net::StreamOwner {
 public:
  explicit Client(Io& io) : io_(io), stream_(io, *this) {
    auto socket = io.open_socket(reactor::Address::unix_path(kPath), {});
    EXPECT_TRUE(socket.ok());
    socket_ = *socket;
    connect_.bind<&Client::on_connected>(this);
    io.connect(connect_, socket_, reactor::Address::unix_path(kPath));
  }
  ~Client() {
    if (connected && !closed) abandoned = true;
  }
  void say(std::string text) {
    out_ = std::move(text);
    if (connected) send();
  }
  void half_close() { stream_.shutdown_send(); }
  void close() { stream_.close(); }

  bool connected = false, failed = false, ended = false, closed = false, abandoned = false;
  std::string received;
  std::vector<json> lines() const {
    std::vector<json> out;
    size_t at = 0;
    for (size_t end; (end = received.find('\n', at)) != std::string::npos; at = end + 1)
      out.push_back(json::parse(received.substr(at, end - at)));
    return out;
  }

 private:
  void on_connected(reactor::Completion& completion) {
    if (completion.result < 0) {
      failed = true;
      io_.close(socket_);
      return;
    }
    connected = true;
    stream_.start(socket_, reactor::BufferGroup::delivery);
    if (!out_.empty()) send();
  }
  void send() {
    iovec part{out_.data(), out_.size()};
    stream_.send(std::span(&part, 1));
  }
  void on_data(char* data, size_t size, reactor::BufferRef) override {
    received.append(data, size);
  }
  void on_sent() override {}
  void on_end(int) override {
    ended = true;
    stream_.close();
  }
  void on_closed() override { closed = true; }

  Io& io_;
  net::Stream stream_;
  reactor::Op connect_;
  reactor::Handle socket_ = reactor::kNoHandle;
  std::string out_;
};

class AdminServer : public testing::Test {
 protected:
  AdminServer() : world_(1) {
    host_ = world_.add_host({"192.0.2.1"});
    io_ = world_.make_io(host_);
    EXPECT_TRUE(io_->make_directory("/run").ok());
    server_ = std::make_unique<Server>(*io_, control_, "mta.example.com");
    EXPECT_TRUE(server_->open(kPath).ok());
  }
  ~AdminServer() override {
    bool gone = false;
    server_->close([&] { gone = true; });
    EXPECT_TRUE(world_.run_until([&] { return gone; }, world_.now() + 10 * kSecond));
    server_.reset();
    world_.run_for(kSecond);
    clients_.clear();
    EXPECT_EQ(world_.open_handles(host_), 0u);
  }
  Client& client() {
    clients_.push_back(std::make_unique<Client>(*io_));
    Client* made = clients_.back().get();
    EXPECT_TRUE(
        world_.run_until([&] { return made->connected || made->failed; }, world_.now() + kSecond));
    return *made;
  }
  bool wait(const std::function<bool()>& done, int64_t ns = 5 * kSecond) {
    return world_.run_until(done, world_.now() + ns);
  }
  json ask(const json& request) {
    Client& one = client();
    one.say(request.dump() + "\n");
    EXPECT_TRUE(wait([&] { return !one.lines().empty(); }));
    return one.lines().empty() ? json() : one.lines()[0];
  }

  SimWorld world_;
  reactor::HostId host_;
  std::unique_ptr<Io> io_;
  FakeControl control_;
  std::unique_ptr<Server> server_;
  std::vector<std::unique_ptr<Client>> clients_;
};

TEST_F(AdminServer, AnswersStatus) {
  control_.status_answer.accepted = 12;
  json answer = ask({{"command", "status"}});
  EXPECT_EQ(answer["ok"], true);
  EXPECT_EQ(answer["result"]["accepted"], 12);
  EXPECT_EQ(answer["result"]["node"], "mta.example.com");
  EXPECT_EQ(answer["result"]["pauses"][0]["domain"], "paused.example");
}

TEST_F(AdminServer, QueueIsFilteredAndLimited) {
  for (const char* domain : {"a.example", "b.example", "c.example"}) {
    control_.rows.emplace_back();
    control_.rows.back().domain = domain;
  }
  json two = ask({{"command", "queue"}, {"limit", 2}});
  EXPECT_EQ(two["result"]["destinations"].size(), 2u);
  EXPECT_EQ(two["result"]["total"], 3);
  json one = ask({{"command", "queue"}, {"domain", "b.example"}});
  EXPECT_EQ(one["result"]["destinations"].size(), 1u);
  EXPECT_EQ(one["result"]["destinations"][0]["domain"], "b.example");
}

TEST_F(AdminServer, ShowAnswersOrSaysWhyNot) {
  json no = ask({{"command", "show"}, {"id", kId}});
  EXPECT_EQ(no["ok"], false);
  EXPECT_EQ(no["error"], "no such message");
  control_.message = queue::MessageRow{};
  control_.message->id = *mail::SpoolId::parse(kId);
  EXPECT_EQ(ask({{"command", "explain"}, {"domain", "Example.COM"}})["result"]["rows"][0]["domain"], "example.com");
  EXPECT_EQ(ask({{"command", "show"}, {"id", kId}})["result"]["id"], kId);
}

TEST_F(AdminServer, CommandsReachTheControlAndDryRunsDoNotAct) {
  json dry = ask({{"command", "delete"}, {"job", "j"}, {"dry_run", true}});
  EXPECT_EQ(dry["result"]["recipients"], 3);
  EXPECT_TRUE(control_.commands.empty());
  ask({{"command", "delete"}, {"job", "j"}});
  ASSERT_EQ(control_.commands.size(), 1u);
  EXPECT_EQ(control_.commands[0].first, queue::Command::remove);
  EXPECT_EQ(control_.commands[0].second.job, "j");
  control_.count = fail("the spool cannot be written");
  EXPECT_EQ(ask({{"command", "pause"}, {"all", true}})["error"], "the spool cannot be written");
}

TEST_F(AdminServer, AccountsAreFrozenListedAndThawed) {
  Client& one = client();
  one.say("{\"command\":\"freeze\",\"account\":\"joe\"}\n{\"command\":\"accounts\"}\n{\"command\":\"unfreeze\",\"account\":\"joe\"}\n"
          "{\"command\":\"unfreeze\",\"account\":\"joe\"}\n{\"command\":\"freeze\"}\n");
  EXPECT_TRUE(wait([&] { return one.lines().size() == 5; }));
  EXPECT_EQ(one.lines()[0]["result"]["frozen"], true);
  EXPECT_EQ(one.lines()[1]["result"]["frozen"][0]["account"], "joe");
  EXPECT_EQ(one.lines()[2]["result"]["frozen"], false);
  EXPECT_EQ(one.lines()[3]["ok"], false);
  EXPECT_EQ(one.lines()[4]["ok"], false);
}

TEST_F(AdminServer, TlsIsForgottenOfADomain) {
  EXPECT_EQ(ask({{"command", "forget-tls"}, {"domain", "Example.com"}})["result"]["sites"][0], "mx1.example.com,mx2.example.com");
  EXPECT_EQ(ask({{"command", "forget-tls"}, {"domain", "other.example"}})["error"], "no such mail");
  EXPECT_EQ(ask({{"command", "forget-tls"}})["ok"], false);
  EXPECT_EQ(ask({{"command", "forget-tls"}, {"domain", "example.com"}, {"job", "x"}})["ok"], false) << "about a job it says nothing";
}

TEST_F(AdminServer, TlsReportsAreListedAndSent) {
  const json listed = ask({{"command", "tls-reports"}})["result"]["rows"];
  EXPECT_EQ(listed[0]["failed"], 2);
  EXPECT_FALSE(listed[0].contains("due"));
  EXPECT_EQ(listed[1]["due"], "2023-11-14T22:13:21.000Z");
  EXPECT_EQ(listed[1]["why"], "no server");
  EXPECT_EQ(ask({{"command", "send-tls-reports"}})["result"]["reports"], 2);
  EXPECT_EQ(ask({{"command", "tls-reports"}, {"domain", "x"}})["ok"], false);
}

TEST_F(AdminServer, SeveralRequestsOfAConnectionAreAnsweredInOrder) {
  control_.hold = true;
  Client& one = client();
  one.say("{\"command\":\"status\"}\r\nnonsense\n{\"command\":\"queue\"}\n");
  EXPECT_TRUE(wait([&] { return control_.held.size() == 1; }));
  world_.run_for(kSecond);
  EXPECT_EQ(control_.held.size(), 1u) << "one at a time";
  control_.held.front()();
  EXPECT_TRUE(wait([&] { return control_.held.size() == 2; }));
  control_.held.back()();
  EXPECT_TRUE(wait([&] { return one.lines().size() == 3; }));
  EXPECT_TRUE(one.lines()[0]["result"].contains("accepted"));
  EXPECT_EQ(one.lines()[1]["ok"], false);
  EXPECT_TRUE(one.lines()[2]["result"].contains("destinations"));
}

TEST_F(AdminServer, HalfClosedClientStillGetsItsAnswer) {
  control_.hold = true;
  Client& one = client();
  one.say("{\"command\":\"status\"}\n");
  one.half_close();
  EXPECT_TRUE(wait([&] { return control_.held.size() == 1; }));
  world_.run_for(kSecond);
  control_.held.front()();
  EXPECT_TRUE(wait([&] { return one.ended; }));
  EXPECT_EQ(one.lines().size(), 1u);
}

TEST_F(AdminServer, AnswerToAClientThatHasGoneIsDropped) {
  control_.hold = true;
  Client& one = client();
  one.say("{\"command\":\"status\"}\n");
  EXPECT_TRUE(wait([&] { return control_.held.size() == 1; }));
  one.close();
  world_.run_for(kSecond);
  control_.held.front()();
  EXPECT_EQ(ask({{"command", "nothing"}})["ok"], false) << "others are served";
}

TEST_F(AdminServer, EndlessRequestIsRefused) {
  Client& one = client();
  one.say(std::string(Server::kLongestLine + 10, 'x'));
  EXPECT_TRUE(wait([&] { return one.ended; }));
  ASSERT_EQ(one.lines().size(), 1u);
  EXPECT_EQ(one.lines()[0]["ok"], false);
}

TEST_F(AdminServer, IdleAndExcessConnectionsAreClosed) {
  std::vector<Client*> all;
  for (size_t i = 0; i < Server::kMostSessions; ++i) all.push_back(&client());
  EXPECT_TRUE(wait([&] { return server_->sessions() == Server::kMostSessions; }));
  Client& excess = client();
  EXPECT_TRUE(wait([&] { return excess.ended || excess.failed; }));
  world_.run_for(Server::kIdleNs + kSecond);
  EXPECT_EQ(server_->sessions(), 0u);
  EXPECT_EQ(ask({{"command", "status"}})["ok"], true);
}

TEST_F(AdminServer, CloseDropsWhatIsUnderWay) {
  control_.hold = true;
  Client& one = client();
  one.say("{\"command\":\"status\"}\n");
  EXPECT_TRUE(wait([&] { return control_.held.size() == 1; }));
  bool gone = false;
  server_->close([&] { gone = true; });
  EXPECT_TRUE(wait([&] { return gone; }));
  control_.held.front()();
  // The fixture closes what is open.
  ASSERT_TRUE(server_->open(kPath).ok());
}

}  // namespace
}  // namespace millrace::admin
