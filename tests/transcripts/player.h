// Plays one scenario on a stage, step by step, in the order in which the lines stand; then looks at what no
// scenario should have to say:
//  - the relay's replies are well-formed, and what it sends to receivers holds no bare CR, LF or NUL
//  - nothing bounces or expires that the scenario does not expect to
//  - every accepted message has its event, no recipient ends twice, every line of events and log is clean
//  - the relay stops when it is asked to
#pragma once

#include <deque>
#include <list>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "net/listener.h"
#include "peer.h"
#include "script.h"
#include "stage.h"

namespace millrace::transcripts {

// Thrown by a step that is not met, caught by whoever runs the scenario.
struct Failure {
  unsigned line = 0;
  std::string text;
};

class Player {
 public:
  Player(Stage& stage, const Scenario& scenario, bool verbose);
  ~Player();
  void play();  // throws Failure

 private:
  struct Message {  // as it came to a receiver
    std::string mail, raw, content;  // the MAIL line; as sent; without transparency dots
    std::vector<std::string> recipients;  // RCPT lines
  };
  struct Connection {
    explicit Connection(reactor::Io& io) : peer(io) {}
    Peer peer;
    std::vector<std::string> reply;  // lines of the last one that came
    std::string capabilities;        // what EHLO is answered with
    uint64_t chunk = 0;              // of the last BDAT line that came
    bool chunk_last = false;
    bool good = false;               // served by serve()
    bool greeted = false;            // by the script
    enum class Part : uint8_t { commands, content, chunk } part = Part::commands;
    Message message;
  };
  class Host;
  enum class Mode : uint8_t { good, scripted, closed };
  struct Expected {
    const Step* step;
    std::string type;
    std::map<std::string, std::string> fields;  // patterns
  };

  void step(const Step& step);
  void client_step(const Step& step);
  void server_step(const Step& step);
  void receiver_step(const Step& step);
  void writer_step(const Step& step);
  void directive(const Step& step);

  [[noreturn]] void fail(std::string text) const;
  std::string text(std::string_view source, bool pattern = false) const;
  std::string names(std::string_view source) const;  // {relay}, {@1} and the like put in
  int64_t time(std::string_view source) const;
  bool wait(const std::function<bool()>& done, int64_t for_ns = 0);  // 0: as long as anything may take
  void pause(int64_t ns);

  void start_relay();
  void listen(unsigned host);
  Connection& client(unsigned number, const std::string& from = "1");
  Connection& receiver(unsigned number);
  void flush();
  void on_accepted(unsigned host, reactor::Handle handle);
  std::string line_of(Connection& connection, std::string_view what);
  void read_reply(Connection& connection, std::string_view wanted);
  bool take_reply(Connection& connection, std::vector<std::string>& lines);
  void check_reply(const std::vector<std::string>& lines) const;
  void converse(Connection& connection, std::string_view send, std::string_view reply);
  void submit(const Step& step);
  void drip(Peer& peer, const Step& step);
  void end_silently(Connection& connection, std::string_view who);
  void expect_silence(Peer& peer, int64_t for_ns);

  // A receiver without a script.
  void serve(Connection& connection);
  bool serve_step(Connection& connection);
  void read_content(Connection& connection);
  void read_octets(Connection& connection);
  void keep(Connection& connection, std::string raw, bool stuffed);
  void check_wire(std::string_view octets, bool text_lines) const;

  void look_at_events();
  bool event_matches(const nlohmann::json& event, const Expected& wanted) const;
  void expect_event(const Step& step);
  void expect_no_event(const Step& step);
  void message_step(const Step& step);
  void name_step(const Step& step);
  void finish();

  Stage& stage_;
  const Scenario& scenario_;
  const bool verbose_;
  const Step* at_ = nullptr;
  std::map<unsigned, std::unique_ptr<Connection>> clients_, receivers_;
  std::deque<std::unique_ptr<Connection>> unclaimed_;
  std::list<std::unique_ptr<Connection>> good_, finished_;
  std::vector<std::unique_ptr<Host>> hosts_;
  Mode modes_[kHosts + 1] = {};
  std::string good_capabilities_ = "PIPELINING, SIZE 10000000, 8BITMIME, SMTPUTF8, DSN, ENHANCEDSTATUSCODES";
  Connection* writing_ = nullptr;  // whose lines are gathered to leave in one send
  std::string gathered_;
  std::deque<Message> messages_;
  std::unique_ptr<Message> message_;  // the one looked at
  size_t events_seen_ = 0;
  std::vector<nlohmann::json> events_;     // not expected yet
  std::map<std::string, std::string> event_ids_;           // and their lines
  std::map<std::string, unsigned> recipients_, ended_;     // of each spool id: how many
  std::vector<std::string> accepted_ids_, received_ids_;
  size_t connections_ = 0;  // to the hosts but the last
  int64_t step_began_ = 0, last_step_took_ = 0;
  bool started_ = false, refused_to_start_ = false, restarted_ = false, memory_only_ = false;
};

}  // namespace millrace::transcripts
