// The checker: what senders were told, what receivers got, and whether the two agree. Apart from the
// simulator and from the relay, so that neither can hide a mistake in it.
//
// Every test message carries its number in a header line, "X-Test-Number: n".
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace millrace::sim {

// What a sender knows of its message.
enum class Told : uint8_t {
  unsent,     // the end of data was never sent
  refused,    // a 4xx or 5xx reply
  accepted,   // 250
  uncertain,  // the end of data may have been seen, and no reply came
};

const char* to_string(Told told);

// One copy that reached a receiver.
enum class Copy : uint8_t {
  unreplied,     // no reply was sent: the relay must try again
  uncertain,     // 250 was sent, and the connection ended such that the relay may not have seen it
  acknowledged,  // 250 was sent and seen: no other copy may come
};

// A message with that number, of about `size` bytes, with lines that begin with dots among its lines.
std::string numbered_message(uint64_t number, size_t size);
// The number in a received message, or 0.
uint64_t number_of(std::string_view content);

class Ledger {
 public:
  // A sender handed the message over, for these recipients. `content` as it must arrive.
  void submitted(uint64_t number, const std::vector<std::string>& recipients, std::string content);
  void told(uint64_t number, Told told);
  // Any number of reports about one message keep the best: accepted wins over uncertain, and so on.

  // The time is that of the reply.
  void received(std::string_view content, const std::string& recipient, Copy copy, int64_t at_ns);
  // The relay crashed: what it was told less than `unsynced_ns` before may not be on its disk.
  void crashed(int64_t at_ns, int64_t unsynced_ns);
  // A delivery report for this recipient left the relay: the recipient has ended as bounced.
  void bounced(uint64_t number, const std::string& recipient);

  // Everything accepted has ended.
  bool complete() const;
  // Every violation of the promises, in words; empty when they were kept.
  //  - an accepted recipient has ended, exactly once; two copies only if all but one were uncertain or unreplied
  //  - nothing refused or unsent was delivered
  //  - what arrived is what was sent, after lines added in front
  // `done`: the run is over, so what has not ended is lost.
  std::vector<std::string> violations(bool done) const;
  // Numbers of what was accepted, and for whom.
  std::map<uint64_t, std::vector<std::string>> promises() const;
  size_t accepted() const;
  size_t delivered() const;

 private:
  struct Recipient {
    std::vector<std::pair<Copy, int64_t>> copies;
    unsigned bounced = 0;
    unsigned count(Copy copy) const;
  };
  struct Entry {
    std::string content;
    Told told = Told::unsent;
    std::map<std::string, Recipient> recipients;
    unsigned altered = 0;
  };
  std::map<uint64_t, Entry> entries_;
  std::vector<std::pair<int64_t, int64_t>> crashes_;  // from and to: acknowledgements that may be lost
  std::vector<std::string> strange_;
};

}  // namespace millrace::sim
