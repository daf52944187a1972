// A scripted SMTP receiver on the simulated network: greets, parses what comes line by line,
// answers from a script, and remembers what it was told.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "net/listener.h"
#include "net/stream.h"
#include "reactor/sim.h"

namespace millrace::delivery::testing {

class Peer final : private net::ListenerOwner {
 public:
  struct Session;
  // Called with each command line (without CRLF), with "." for the end of data, and with
  // "<connect>". Returns the reply with its CRLF; empty: none. "CLOSE" closes, "RESET" resets, also
  // behind a reply.
  using Script = std::function<std::string(Session&, const std::string&)>;

  struct Session final : private net::StreamOwner {
    Session(Peer& peer, reactor::Handle handle) : owner(peer), stream(peer.io_, *this) {
      stream.start(handle, reactor::BufferGroup::ingress);
      if (peer.tls_from_connect) {
        stream.start_tls(tls::Engine::accept(peer.tls));
      } else {
        answer("<connect>");
      }
    }
    Peer& owner;
    net::Stream stream;
    std::string in, out, sending, message;
    std::vector<std::string> lines;
    uint64_t chunk_left = 0;
    bool in_data = false, closing = false, ended = false, secured = false;
    bool answer_anything = false;  // with text, whatever comes
    int messages = 0;

   private:
    friend class Peer;
    void on_data(char* data, size_t size, reactor::BufferRef) override {
      if (answer_anything) {
        out += "250 what\r\n";
        return flush();
      }
      in.append(data, size);
      parse();
    }
    void parse() {
      while (!closing) {
        if (chunk_left > 0) {
          const size_t taken = std::min<size_t>(chunk_left, in.size());
          message += in.substr(0, taken);
          in.erase(0, taken);
          chunk_left -= taken;
          if (chunk_left > 0) return;
          end_message();
          continue;
        }
        const size_t end = in.find("\r\n");
        if (end == std::string::npos) return;
        const std::string line = in.substr(0, end);
        in.erase(0, end + 2);
        if (in_data) {
          if (line == ".") {
            in_data = false;
            end_message();
          } else {
            message += (line.starts_with(".") ? line.substr(1) : line) + "\r\n";
          }
          continue;
        }
        lines.push_back(line);
        if (line.starts_with("BDAT ")) {
          chunk_left = std::stoull(line.substr(5));
          message.clear();
          continue;
        }
        answer(line);
      }
    }
    void end_message() {
      ++messages;
      owner.messages.push_back(message);
      message.clear();
      answer(".");
    }
    void answer(const std::string& line) {
      std::string reply = owner.script(*this, line);
      if (line == "DATA" && reply.starts_with("354")) in_data = true;
      const bool reset = reply.ends_with("RESET"), close = reply.ends_with("CLOSE");
      if (reset || close) {
        closing = true;
        reply.resize(reply.size() - 5);
      }
      out += reply;
      flush();
      if (line == "STARTTLS" && reply.starts_with("220") && owner.tls && stream.open()) {
        stream.start_tls(tls::Engine::accept(owner.tls));
      }
      if (reset) stream.close(true);
    }
    void flush() {
      if (!stream.open() || stream.sending()) return;
      if (!out.empty()) {
        sending = std::exchange(out, {});
        const iovec part = {sending.data(), sending.size()};
        stream.send({&part, 1});
      } else if (closing || ended) {
        stream.close();
      }
    }
    void on_secure() override {
      secured = true;
      if (owner.tls_from_connect) answer("<connect>");
    }
    void on_sent() override { flush(); }
    void on_end(int) override {
      ended = true;
      if (stream.open()) stream.close();
    }
    void on_closed() override { ++owner.closed; }
  };

  Peer(reactor::SimWorld& world, std::string_view address)
      : io_holder_(world.make_io(world.add_host({address}))),
        io_(*io_holder_),
        listener_(io_, *this) {
    reactor::ListenOptions options;
    options.address = *reactor::Address::parse_host(address, 25);
    EXPECT_TRUE(listener_.open(options).ok());
  }
  // REQUIRES: the relay's connections are closed and the world has run a little.
  ~Peer() = default;
  // Call before the end of the test, then run the world.
  void close() {
    for (auto& session : sessions) {
      if (session->stream.open()) session->stream.close(true);
    }
    listener_.close();
  }

  // A receiver without faults. `extensions` are EHLO keywords.
  static Script well_behaved(std::vector<std::string> extensions) {
    return [extensions](Session&, const std::string& line) -> std::string {
      if (line == "<connect>") return "220 mx ESMTP\r\n";
      if (line.starts_with("EHLO")) {
        std::string reply = "250-mx\r\n";
        for (const std::string& extension : extensions) reply += "250-" + extension + "\r\n";
        return reply + "250 HELP\r\n";
      }
      if (line == "DATA") return "354 go\r\n";
      if (line == "QUIT") return "221 bye\r\nCLOSE";
      return "250 2.0.0 ok\r\n";
    };
  }

  bool tls_from_connect = false;
  std::shared_ptr<tls::ServerContext> tls;  // for a script that answers STARTTLS with 220
  Script script = well_behaved({"PIPELINING", "8BITMIME"});
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<std::string> messages;
  int closed = 0;

 private:
  void on_accepted(reactor::Handle handle) override {
    sessions.push_back(std::make_unique<Session>(*this, handle));
  }
  void on_accept_error(int) override {}
  void on_listener_closed() override {}

  std::unique_ptr<reactor::Io> io_holder_;
  reactor::Io& io_;
  net::Listener listener_;
};

}  // namespace millrace::delivery::testing
