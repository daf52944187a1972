// A scripted submitting client on a simulated host: hands numbered messages to the relay one after the
// other, misbehaves at the rates it is given, and tells the ledger what it was told.
//
// A message refused with 4xx is tried again; one whose reply was lost is not, since the relay may have it.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/prng.h"
#include "ledger.h"
#include "net/stream.h"

namespace millrace::sim {

struct SenderBehaviour {
  bool pipelining = true;
  double chunked = 0.5;             // BDAT in place of DATA
  unsigned attempts_most = 50;      // connections and 4xx replies until it gives a message up
  int64_t retry_ns = 1'000'000'000;
  int64_t patience_ns = 60'000'000'000;  // without a word from the relay, then it resets
  size_t messages_per_connection = 10;
  std::shared_ptr<tls::ClientContext> tls;  // STARTTLS first, when there is one
  // Chances, per message.
  double drop_in_data = 0;     // goes in the middle of the content, and tries again
  double drop_after_data = 0;  // sends the end of data and resets without waiting for the reply
};

class Sender final : private net::StreamOwner {
 public:
  Sender(reactor::Io& io, const reactor::Address& relay, uint64_t seed, Ledger& ledger,
         SenderBehaviour behaviour = {});
  // Destroy it when idle(), or after a crash of its host.
  ~Sender();

  void add(uint64_t number, std::string reverse_path, std::vector<std::string> recipients,
           std::string content);
  // Begins, and goes on by itself whenever there is a message.
  void start();
  // Nothing left to say, and the connection closed.
  bool idle() const { return state_ == State::idle && jobs_.empty(); }

  // Told of each 250 to an end of data, with its text.
  std::function<void(uint64_t number, std::string_view reply)> on_accepted;

  SenderBehaviour behaviour;
  unsigned given_up = 0;
  std::string last_refusal;

 private:
  enum class State : uint8_t {
    idle, waiting, connecting, greeting, hello, start_tls, securing, envelope, content, end, quit, closing
  };
  struct Job {
    uint64_t number;
    std::string reverse_path;
    std::vector<std::string> recipients;
    std::string content;
    unsigned attempts = 0;
  };

  void on_data(char* data, size_t size, reactor::BufferRef buffer) override;
  void on_secure() override;
  void on_sent() override;
  void on_end(int error) override;
  void on_closed() override;
  void on_connected(reactor::Completion& completion);
  void on_retry();
  void on_impatient();
  void wait_for_reply();
  void connect();
  void say(std::string text);
  void reply(unsigned code, std::string_view text);
  void begin_message();
  void send_content();
  void message_over(Told told);
  // The connection is over; the message in hand, if any, is told so or tried again.
  void go(bool reset);

  reactor::Io& io_;
  const reactor::Address relay_;
  Prng chance_;
  Ledger& ledger_;
  net::Stream stream_;
  reactor::Op connect_;
  reactor::Timer retry_, patience_;
  reactor::Handle socket_ = reactor::kNoHandle;
  State state_ = State::idle;
  std::deque<Job> jobs_;
  std::string in_;
  std::string out_, sending_;
  std::string envelope_;            // lines still to be said, when not pipelining
  std::vector<std::string> taken_;  // recipients of the message in hand
  unsigned replies_left_ = 0;
  size_t replies_seen_ = 0;
  size_t on_connection_ = 0;
  bool chunked_ = false;
  bool reset_when_sent_ = false;
  bool content_under_way_ = false;
};

}  // namespace millrace::sim
