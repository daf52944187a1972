#include "player.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

namespace millrace::transcripts {
namespace {

constexpr int64_t kSecond = 1'000'000'000, kMillisecond = 1'000'000;
// How long a step may take: on virtual time, longer than any of the relay's own waits but expiry.
constexpr int64_t kSimPatience = 6 * 3600 * kSecond, kRealPatience = 20 * kSecond;
constexpr size_t kShown = 2000;  // of what came, in a failure
constexpr size_t kLongestReplyLine = 512;  // RFC 5321 4.5.3.1.5
constexpr size_t kLongestTextLine = 1000;  // RFC 5321 4.5.3.1.6

std::string printable(std::string_view text) {
  std::string out;
  for (char c : text.substr(0, kShown)) {
    auto octet = static_cast<unsigned char>(c);
    if (c == kAnything) {
      out += '*';
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\n') {
      out += "\\n";
    } else if (octet < 0x20 || octet >= 0x7f) {
      out += fmt::format("\\x{:02x}", octet);
    } else {
      out += c;
    }
  }
  if (text.size() > kShown) out += fmt::format("... ({} octets)", text.size());
  return out;
}

std::string_view first_word(std::string_view text, std::string_view& rest) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  size_t end = text.find(' ');
  rest = end == text.npos ? std::string_view() : text.substr(end + 1);
  while (rest.starts_with(' ')) rest.remove_prefix(1);
  return text.substr(0, end);
}

std::string_view words_after(std::string_view text, std::string_view word) {
  text.remove_prefix(word.size());
  while (text.starts_with(' ')) text.remove_prefix(1);
  return text;
}

bool begins_with(std::string_view line, std::string_view verb) {
  if (line.size() < verb.size()) return false;
  for (size_t i = 0; i < verb.size(); ++i) {
    if ((line[i] & ~0x20) != (verb[i] & ~0x20)) return false;
  }
  return true;
}

std::vector<std::string> split(std::string_view text, char at) {
  std::vector<std::string> parts;
  while (!text.empty()) {
    size_t end = text.find(at);
    std::string_view part = text.substr(0, end);
    while (part.starts_with(' ')) part.remove_prefix(1);
    while (part.ends_with(' ')) part.remove_suffix(1);
    if (!part.empty()) parts.emplace_back(part);
    text.remove_prefix(end == text.npos ? text.size() : end + 1);
  }
  return parts;
}

}  // namespace

class Player::Host final : public net::ListenerOwner {
 public:
  Host(Player& player, unsigned number) : player_(player), number_(number), listener_(player.stage_.host_io(number), *this) {}
  Status open() {
    reactor::ListenOptions options;
    options.address = *reactor::Address::parse(fmt::format("{}:{}", player_.stage_.host_address(number_), kReceiverPort));
    return listener_.open(options);
  }
  void close() {
    if (listener_.is_open()) listener_.close();
  }

 private:
  void on_accepted(reactor::Handle handle) override { player_.on_accepted(number_, handle); }
  void on_accept_error(int) override {}
  void on_listener_closed() override {}

  Player& player_;
  const unsigned number_;
  net::Listener listener_;
};

Player::Player(Stage& stage, const Scenario& scenario, bool verbose)
    : stage_(stage), scenario_(scenario), verbose_(verbose) {
  hosts_.resize(kHosts + 1);
  for (unsigned host = 1; host <= kHosts; ++host) {
    modes_[host] = scenario.scripts_receiver && host < kHosts ? Mode::scripted : Mode::good;
  }
  for (const std::string& flag : scenario.flags) memory_only_ = memory_only_ || flag == "memory";
  // Where mail goes unless the scenario says otherwise.
  struct Default {
    const char* domain;
    unsigned host;
  };
  for (const Default& one : {Default{"there.example", 1}, {"other.example", 2}, {"here.example", kHosts}}) {
    std::string mx = fmt::format("mx.{}", one.domain);
    stage_.add_mx(one.domain, 10, mx);
    stage_.add_address(mx, stage_.host_address(one.host));
  }
}

Player::~Player() = default;

void Player::fail(std::string text) const { throw Failure{at_ ? at_->line : scenario_.line, std::move(text)}; }

std::string Player::names(std::string_view source) const {
  std::string out(source);
  auto replace = [&](const std::string& from, const std::string& to) {
    for (size_t at = out.find(from); at != out.npos; at = out.find(from, at + to.size())) out.replace(at, from.size(), to);
  };
  replace("{relay}", stage_.relay_address());
  for (unsigned n = 1; n <= kHosts; ++n) replace(fmt::format("{{@{}}}", n), stage_.host_address(n));
  for (unsigned n : {1u, 2u, 3u, 20u}) replace(fmt::format("{{client{}}}", n), stage_.client_address(n));
  replace("{files}", scenario_.folder + "/files");
  return out;
}

std::string Player::text(std::string_view source, bool pattern) const {
  Result<std::string> resolved = resolve(names(source), pattern);
  if (!resolved.ok()) fail(resolved.error().text);
  return std::move(*resolved);
}

int64_t Player::time(std::string_view source) const {
  Result<int64_t> parsed = parse_time(source);
  if (!parsed.ok()) fail(parsed.error().text);
  return *parsed;
}

bool Player::wait(const std::function<bool()>& done, int64_t for_ns) {
  if (for_ns == 0) for_ns = stage_.simulated() ? kSimPatience : kRealPatience;
  return stage_.run_until(done, for_ns);
}

void Player::pause(int64_t ns) {
  stage_.run_until([] { return false; }, ns);
}

void Player::play() {
  for (const Step& each : scenario_.steps) {
    at_ = &each;
    bool same = !gathered_.empty() && writing_ && (each.party == "C" || each.party == "W") &&
                (each.verb == ":" || each.verb == "+");
    if (same) {
      auto& of = each.party == "C" ? clients_ : receivers_;
      auto found = of.find(each.connection);
      same = found != of.end() && found->second.get() == writing_;
    }
    if (!same) flush();
    if (each.verb != "took") step_began_ = stage_.io().now();
    step(each);
    if (each.verb != "took") last_step_took_ = stage_.io().now() - step_began_;
  }
  flush();
  at_ = nullptr;
  finish();
}

void Player::step(const Step& each) {
  if (verbose_) {
    fmt::print("{:.6f} {}: {}{} {} {}\n", static_cast<double>(stage_.io().now()) / 1e9, each.line, each.party,
               each.connection > 1 ? std::to_string(each.connection) : "", each.verb, printable(each.text));
  }
  if (each.party.empty()) return directive(each);
  if (!started_) start_relay();
  if (each.party == "C") return client_step(each);
  if (each.party == "S") return server_step(each);
  if (each.party == "R") return receiver_step(each);
  writer_step(each);
}

// ---- the relay and its surroundings

void Player::start_relay() {
  if (!started_) {
    for (unsigned host = 1; host <= kHosts; ++host) {
      if (modes_[host] != Mode::closed) listen(host);
    }
  }
  std::vector<std::string> flags;
  for (const std::string& flag : scenario_.flags) flags.push_back(names(flag));
  for (std::string& flag : flags) flag = flag.starts_with("--") ? flag : text(flag);
  Status status = stage_.start_relay(flags);
  started_ = true;
  if (!status.ok()) fail("the relay does not start: " + status.error().text);
}

void Player::listen(unsigned host) {
  hosts_[host] = std::make_unique<Host>(*this, host);
  Status status = hosts_[host]->open();
  if (!status.ok()) fail(status.error().text);
}

void Player::on_accepted(unsigned host, reactor::Handle handle) {
  if (host < kHosts) ++connections_;  // the last is for reports
  auto connection = std::make_unique<Connection>(stage_.host_io(host));
  connection->peer.adopt(handle, host);
  if (verbose_) fmt::print("{:.6f} a connection to @{}\n", static_cast<double>(stage_.io().now()) / 1e9, host);
  if (modes_[host] == Mode::good) {
    connection->good = true;
    connection->peer.send(fmt::format("220 mx{}.example ESMTP\r\n", host));
    serve(*connection);
    good_.push_back(std::move(connection));
  } else {
    unclaimed_.push_back(std::move(connection));
  }
}

void Player::directive(const Step& each) {
  std::string_view rest;
  std::string_view word = first_word(each.text, rest);
  const std::string& verb = each.verb;
  auto host_of = [&](std::string_view name) {
    unsigned host = name.size() == 2 && name[0] == '@' ? static_cast<unsigned>(name[1] - '0') : 0;
    if (host < 1 || host > kHosts) fail("a host is @1 to @9");
    return host;
  };
  // What may come before the relay starts.
  if (verb == "dns") return name_step(each);
  if (verb == "good" || verb == "scripted" || verb == "closed" || verb == "silent") {
    for (const std::string& name : words_of(each.text)) {
      unsigned host = host_of(name);
      if (verb == "silent") {
        stage_.set_silent(host, true);
        continue;
      }
      bool was_closed = modes_[host] == Mode::closed;
      modes_[host] = verb == "good" ? Mode::good : verb == "closed" ? Mode::closed : Mode::scripted;
      if (!started_) continue;
      if (modes_[host] == Mode::closed) hosts_[host]->close();
      if (was_closed && modes_[host] != Mode::closed) listen(host);
    }
    if (verb == "silent" || !started_ || modes_[host_of(word)] != Mode::good) return;
    for (auto at = unclaimed_.begin(); at != unclaimed_.end();) {
      if (modes_[(*at)->peer.host()] != Mode::good) {
        ++at;
        continue;
      }
      (*at)->good = true;
      (*at)->peer.send("220 mx.example ESMTP\r\n");
      serve(**at);
      good_.push_back(std::move(*at));
      at = unclaimed_.erase(at);
    }
    return;
  }
  if (verb == "receivers") {  // what good receivers announce
    good_capabilities_ = each.text;
    return;
  }
  if (verb == "link") {
    // A host whose link was cut answers again.
    return stage_.set_silent(host_of(word), false);
  }
  if (verb == "refuses") {  // to start
    std::vector<std::string> flags;
    for (const std::string& flag : scenario_.flags) flags.push_back(names(flag));
    Status status = stage_.start_relay(flags);
    started_ = true;
    refused_to_start_ = true;
    if (status.ok()) fail("the relay starts");
    std::string pattern = kAnything + text(each.text, true) + kAnything;
    if (!matches(status.error().text, pattern)) fail("it says: " + printable(status.error().text));
    return;
  }
  if (!started_) start_relay();
  if (verb == "relay") {
    if (word == "kill" || word == "power-cut") {
      stage_.kill_relay(word == "power-cut");
      restarted_ = true;
      return;
    }
    if (word == "start") return start_relay();
    if (word == "stop") {
      Status status = stage_.stop_relay();
      if (!status.ok()) fail(status.error().text);
      return;
    }
    if (word == "reload") {
      std::vector<std::string> flags;
      for (std::string& flag : words_of(names(rest))) flags.push_back(std::move(flag));
      Status status = stage_.reload_relay(flags);
      if (!status.ok()) fail(status.error().text);
      return;
    }
    fail("relay kill, power-cut, start, stop or reload");
  }
  if (verb == "submit") return submit(each);
  if (verb == "event") return expect_event(each);
  if (verb == "no" && word == "event") return expect_no_event(each);
  if (verb == "message") return message_step(each);
  if (verb == "no" && word == "message") {
    pause(rest.empty() ? kMillisecond : time(rest));
    if (!messages_.empty()) fail("a message came: " + printable(messages_.front().mail));
    return;
  }
  if (verb == "no" && word == "connection") {
    size_t before = connections_;
    if (!unclaimed_.empty()) fail("a connection has come already");
    pause(rest.empty() ? kSecond : time(rest));
    if (connections_ != before) fail("a connection came");
    return;
  }
  if (verb == "connections") {
    size_t wanted = 0;
    std::from_chars(word.data(), word.data() + word.size(), wanted);
    if (connections_ != wanted) fail(fmt::format("{} connections came", connections_));
    return;
  }
  if (verb == "wait") return pause(time(each.text));
  if (verb == "took") {
    int64_t wanted = time(each.text);
    int64_t least = wanted - wanted / 8 - 20 * kMillisecond;
    int64_t most = wanted + wanted / 8 + (stage_.simulated() ? 3 * kSecond : 15 * kSecond);
    if (last_step_took_ < least || last_step_took_ > most) {
      fail(fmt::format("the step before took {:.3f} s", static_cast<double>(last_step_took_) / 1e9));
    }
    return;
  }
  if (verb == "memory") {
    // "memory below 20M"
    std::string_view amount;
    first_word(each.text, amount);
    uint64_t most = 0;
    std::from_chars(amount.data(), amount.data() + amount.size(), most);
    uint64_t used = stage_.memory_used();
    if (used > most << 20) fail(fmt::format("{} octets of memory", used));
    return;
  }
  if (verb == "disk") {
    if (word == "full") return stage_.set_disk_full(true);
    if (word == "free") return stage_.set_disk_full(false);
    if (word == "failing") return stage_.set_disk_errors(true);
    if (word == "well") return stage_.set_disk_errors(false);
  }
  if (verb == "clock") {
    bool back = word.starts_with('-');
    int64_t ms = time(word.substr(1)) / kMillisecond;
    return stage_.step_clock(back ? -ms : ms);
  }
  fail("unknown step: " + verb);
}

void Player::name_step(const Step& each) {
  std::vector<std::string> words = words_of(names(each.text));
  auto place = [&](const std::string& word) {
    return word.size() == 2 && word[0] == '@' ? stage_.host_address(static_cast<unsigned>(word[1] - '0')) : word;
  };
  if (words.size() == 1 && words[0] == "down") return stage_.set_name_outage(true);
  if (words.size() == 1 && words[0] == "up") return stage_.set_name_outage(false);
  if (words.size() < 2) fail("dns: NAME MX PREFERENCE HOST, NAME A ADDRESS, NAME CNAME NAME, NAME FAULT");
  const std::string& name = words[0];
  const std::string& what = words[1];
  static const std::map<std::string, NameFault> kFaults = {
      {"ANSWERS", NameFault::none},         {"SERVFAIL", NameFault::servfail},
      {"NXDOMAIN", NameFault::nxdomain},    {"SILENT", NameFault::silent},
      {"GARBAGE", NameFault::garbage},      {"WRONG-ID", NameFault::wrong_id},
      {"WRONG-QUESTION", NameFault::wrong_question}, {"TRUNCATED", NameFault::truncated},
      {"LOOP", NameFault::loop}};
  if (auto fault = kFaults.find(what); fault != kFaults.end()) {
    stage_.set_name_fault(name, fault->second);
  } else if (what == "MX" && words.size() == 4) {
    unsigned preference = 0;
    std::from_chars(words[2].data(), words[2].data() + words[2].size(), preference);
    stage_.add_mx(name, static_cast<uint16_t>(preference), words[3]);
  } else if ((what == "A" || what == "AAAA") && words.size() == 3) {
    stage_.add_address(name, place(words[2]));
  } else if (what == "CNAME" && words.size() == 3) {
    stage_.add_alias(name, words[2]);
  } else if (what == "EMPTY") {
    stage_.add_empty(name);
  } else if (what == "REMOVED") {
    stage_.remove_name(name);
  } else {
    fail("dns: what is " + what + "?");
  }
}

// ---- what senders do, and what the relay says to them

Player::Connection& Player::client(unsigned number, const std::string& from) {
  auto& connection = clients_[number];
  if (connection) return *connection;
  connection = std::make_unique<Connection>(stage_.io());
  unsigned n = 1;
  std::from_chars(from.data(), from.data() + from.size(), n);
  connection->peer.connect(*reactor::Address::parse(fmt::format("{}:{}", stage_.relay_address(), kRelayPort)),
                           *reactor::Address::parse_host(stage_.client_address(n), 0));
  return *connection;
}

void Player::flush() {
  if (!writing_) return;
  Connection& connection = *writing_;
  writing_ = nullptr;
  connection.peer.send(std::move(gathered_));
  gathered_.clear();
}

void Player::client_step(const Step& each) {
  std::string_view rest;
  std::string_view word = first_word(each.text, rest);
  if (each.verb == "connect") {
    // "C connect from 2"
    clients_.erase(each.connection);
    Peer& peer = client(each.connection, word == "from" ? std::string(rest) : "1").peer;
    wait([&] { return peer.connected() || peer.ended(); });
    if (!peer.connected()) fail("the relay does not take the connection");
    return;
  }
  Connection& connection = client(each.connection);
  Peer& peer = connection.peer;
  if (each.verb == ":" || each.verb == "+") {
    writing_ = &connection;
    if (each.block.empty() || !each.text.empty()) gathered_ += text(each.text) + (each.verb == ":" ? "\r\n" : "");
    for (const std::string& line : each.block) gathered_ += text(line) + "\r\n";
    return;
  }
  if (each.verb == "hello") {
    read_reply(connection, "220");
    return converse(connection, fmt::format("EHLO {}", each.text.empty() ? "client.example" : each.text), "250");
  }
  if (each.verb == "drip") return drip(peer, each);
  if (each.verb == "endless") return peer.send_endlessly(text(each.text));
  if (each.verb == "stop") return word == "reading" ? peer.stop_reading() : peer.stop_endless();
  if (each.verb == "read") return peer.read_on();
  if (each.verb == "half-close") return peer.half_close();
  if (each.verb == "close") return peer.close();
  if (each.verb == "reset") return peer.reset();
  fail("unknown step: C " + each.verb);
}

void Player::drip(Peer& peer, const Step& each) {
  std::string octets = text(each.text) + (each.text.empty() ? "" : "\r\n");
  for (const std::string& line : each.block) octets += text(line) + "\r\n";
  for (char c : octets) {
    peer.send(std::string(1, c));
    wait([&] { return peer.all_sent() || peer.ended(); });
    pause(stage_.simulated() ? 300'000 : 100'000);
  }
}

bool Player::take_reply(Connection& connection, std::vector<std::string>& lines) {
  size_t at = 0;
  std::vector<std::string> found;
  while (true) {
    size_t end = connection.peer.in.find('\n', at);
    if (end == std::string::npos) return false;
    found.push_back(connection.peer.in.substr(at, end + 1 - at));
    at = end + 1;
    if (found.back().size() < 4 || found.back()[3] != '-') break;
  }
  connection.peer.in.erase(0, at);
  lines = std::move(found);
  return true;
}

// RFC 5321 4.2, 4.5.3.1.5; RFC 2034 4: whatever the relay says has this form.
void Player::check_reply(const std::vector<std::string>& lines) const {
  for (const std::string& line : lines) {
    if (!line.ends_with("\r\n")) fail("a line of a reply ends without CR: " + printable(line));
    std::string_view bare(line.data(), line.size() - 2);
    if (line.size() > kLongestReplyLine) fail("a line of a reply is too long");
    if (bare.size() < 3 || bare.substr(0, 3) != std::string_view(lines[0]).substr(0, 3)) fail("codes differ within a reply");
    for (char c : bare) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) fail("a control character in a reply: " + printable(line));
    }
    // The class of the enhanced status is that of the code.
    if (bare.size() > 6 && bare[5] == '.' && bare[4] >= '2' && bare[4] <= '5' && bare[4] != bare[0]) {
      fail("the enhanced status is of another class: " + printable(line));
    }
  }
}

void Player::read_reply(Connection& connection, std::string_view wanted) {
  Peer& peer = connection.peer;
  if (!wait([&] { return take_reply(connection, connection.reply) || peer.ended(); })) {
    fail(fmt::format("no reply; {} was expected{}", printable(wanted), peer.in.empty() ? "" : ", and there is: " + printable(peer.in)));
  }
  if (connection.reply.empty()) {
    fail(fmt::format("the connection ended ({}); {} was expected", peer.error(), printable(wanted)));
  }
  check_reply(connection.reply);
  std::string_view line = connection.reply.back();
  line.remove_suffix(2);
  if (verbose_) fmt::print("{:.6f}   < {}\n", static_cast<double>(stage_.io().now()) / 1e9, printable(line));
  if (line.starts_with("250 2.0.0 Ok: queued as ")) accepted_ids_.emplace_back(line.substr(24));
  std::string longer = std::string(wanted) + ' ' + kAnything;
  if (!matches(line, wanted) && !matches(line, longer)) {
    fail(fmt::format("the relay said: {}; {} was expected", printable(line), printable(wanted)));
  }
}

void Player::converse(Connection& connection, std::string_view send, std::string_view reply) {
  connection.peer.send(std::string(send) + "\r\n");
  connection.reply.clear();
  read_reply(connection, reply);
}

void Player::server_step(const Step& each) {
  Connection& connection = client(each.connection);
  Peer& peer = connection.peer;
  if (each.verb == ":") {
    connection.reply.clear();
    return read_reply(connection, text(each.text, true));
  }
  if (each.text.starts_with("times:")) {  // "S 200 times: 250"
    int count = std::atoi(each.verb.c_str());
    if (count < 1) fail("how many times?");
    for (; count > 0; --count) {
      connection.reply.clear();
      read_reply(connection, text(words_after(each.text, "times:"), true));
    }
    return;
  }
  if (each.verb == "accepts") {
    connection.reply.clear();
    return read_reply(connection, std::string("250 2.0.0 Ok: queued as ") + kAnything);
  }
  if (each.verb == "has" || each.verb == "lacks") {
    std::string pattern = text(each.text, true);
    bool found = std::any_of(connection.reply.begin(), connection.reply.end(), [&](const std::string& line) {
      return matches(std::string_view(line).substr(std::min<size_t>(4, line.size()), line.size() - std::min<size_t>(6, line.size())), pattern);
    });
    if (found != (each.verb == "has")) fail(fmt::format("the reply is: {}", printable(fmt::format("{}", fmt::join(connection.reply, "")))));
    return;
  }
  if (each.verb == "ends") return end_silently(connection, "the relay");
  if (each.verb == "silent") return expect_silence(peer, time(each.text));
  if (each.verb == "stops") {
    // Any number of replies, then the end: of what is refused in the middle of a flood.
    if (!wait([&] { return peer.ended(); })) fail("the relay goes on");
    return;
  }
  fail("unknown step: S " + each.verb);
}

void Player::end_silently(Connection& connection, std::string_view who) {
  Peer& peer = connection.peer;
  if (!wait([&] { return peer.ended() || !peer.in.empty(); })) fail(fmt::format("{} does not end the connection", who));
  if (!peer.in.empty()) fail(fmt::format("{} says more: {}", who, printable(peer.in)));
}

void Player::expect_silence(Peer& peer, int64_t for_ns) {
  size_t before = peer.in.size();
  pause(for_ns);
  if (peer.in.size() != before) fail("something came: " + printable(peer.in));
  if (peer.ended()) fail(fmt::format("the connection ended ({})", peer.error()));
}

// "submit FROM TO [TO...] [/ parameters of MAIL]": a message handed over as it should be.
void Player::submit(const Step& each) {
  auto halves = split(each.text, '/');
  std::vector<std::string> words = words_of(names(halves.at(0)));
  if (words.size() < 2) fail("submit FROM TO [TO ...] [/ parameters]");
  auto& kept = finished_.emplace_back(std::make_unique<Connection>(stage_.io()));
  Connection& with = *kept;
  with.peer.connect(*reactor::Address::parse(fmt::format("{}:{}", stage_.relay_address(), kRelayPort)),
                    *reactor::Address::parse_host(stage_.client_address(1), 0));
  wait([&] { return with.peer.connected() || with.peer.ended(); });
  if (!with.peer.connected()) fail("the relay does not take the connection");
  read_reply(with, "220");
  converse(with, "EHLO client.example", "250");
  auto bare = [](std::string word) { return word == "<>" ? std::string() : word; };
  std::string parameters = halves.size() > 1 ? " " + text(halves[1]) : "";
  converse(with, fmt::format("MAIL FROM:<{}>{}", bare(words[0]), parameters), "250");
  for (size_t i = 1; i < words.size(); ++i) {
    // TO;NOTIFY=NEVER: parameters of RCPT
    auto parts = split(words[i], ';');
    std::string line = fmt::format("RCPT TO:<{}>", parts[0]);
    for (size_t p = 1; p < parts.size(); ++p) line += " " + parts[p];
    converse(with, line, "250");
  }
  converse(with, "DATA", "354");
  std::string body;
  if (each.block.empty()) body = "Subject: a test\r\nFrom: <a@here.example>\r\n\r\ntext\r\n";
  for (const std::string& line : each.block) {
    std::string one = text(line);
    if (one.starts_with('.')) body += '.';
    body += one + "\r\n";
  }
  with.peer.send(body);
  converse(with, ".", std::string("250 2.0.0 Ok: queued as ") + kAnything);
  with.peer.send("QUIT\r\n");
  read_reply(with, "221");
  with.peer.close();
}

// ---- what the relay says to receivers, and what they answer

Player::Connection& Player::receiver(unsigned number) {
  auto& connection = receivers_[number];
  if (connection) return *connection;
  if (!wait([&] { return !unclaimed_.empty(); })) {
    receivers_.erase(number);
    fail("no connection comes");
  }
  connection = std::move(unclaimed_.front());
  unclaimed_.pop_front();
  return *connection;
}

// The next line, without its CRLF.
std::string Player::line_of(Connection& connection, std::string_view what) {
  Peer& peer = connection.peer;
  if (!wait([&] { return peer.in.find('\n') != std::string::npos || peer.ended(); }) || peer.in.find('\n') == std::string::npos) {
    fail(fmt::format("no line came ({}); {} was expected{}", peer.ended() ? fmt::format("the connection ended: {}", peer.error()) : "silence",
                     printable(what), peer.in.empty() ? "" : ", and there is: " + printable(peer.in)));
  }
  size_t end = peer.in.find('\n');
  std::string line = peer.in.substr(0, end + 1);
  peer.in.erase(0, end + 1);
  check_wire(line, true);
  line.resize(line.size() - 2);
  if (verbose_) fmt::print("{:.6f}   > {}\n", static_cast<double>(stage_.io().now()) / 1e9, printable(line));
  return line;
}

void Player::receiver_step(const Step& each) {
  Connection& connection = receiver(each.connection);
  Peer& peer = connection.peer;
  std::string_view rest;
  std::string_view word = first_word(each.text, rest);
  auto expect_line = [&](const std::string& pattern) {
    std::string line = line_of(connection, pattern);
    if (!matches(line, pattern)) fail(fmt::format("the relay sent: {}; {} was expected", printable(line), printable(pattern)));
    if (begins_with(line, "MAIL FROM:")) {
      connection.message = {};
      connection.message.mail = line;
    }
    if (begins_with(line, "RCPT TO:")) connection.message.recipients.push_back(line);
    if (begins_with(line, "BDAT ")) {
      connection.chunk = 0;
      std::from_chars(line.data() + 5, line.data() + line.size(), connection.chunk);
      connection.chunk_last = line.ends_with(" LAST");
    }
  };
  if (each.verb == ":") return expect_line(text(each.text, true));
  if (each.verb == "connect") {
    if (word == "at" && (rest.size() != 2 || peer.host() != static_cast<unsigned>(rest[1] - '0'))) {
      fail(fmt::format("the connection came to @{}", peer.host()));
    }
    return;
  }
  if (each.verb == "greets" || each.verb == "hello") {
    connection.greeted = true;
    if (each.verb == "hello" || each.text.empty()) peer.send("220 mx.there.example ESMTP\r\n");
    else peer.send(text(each.text) + "\r\n");
    if (each.verb == "greets") return;
    expect_line(fmt::format("EHLO {}", kAnything));
    std::string capabilities = each.text == "none" ? "" : each.text.empty() ? "PIPELINING, 8BITMIME, ENHANCEDSTATUSCODES" : each.text;
    std::vector<std::string> lines = split(capabilities, ',');
    lines.insert(lines.begin(), "mx.there.example");
    std::string reply;
    for (size_t i = 0; i < lines.size(); ++i) reply += fmt::format("250{}{}\r\n", i + 1 < lines.size() ? "-" : " ", lines[i]);
    return peer.send(reply);
  }
  if (each.verb == "envelope") {
    // MAIL and one RCPT, each answered with 250.
    expect_line(fmt::format("MAIL FROM:<{}", kAnything));
    peer.send("250 2.1.0 sender ok\r\n");
    expect_line(fmt::format("RCPT TO:<{}", kAnything));
    return peer.send("250 2.1.5 recipient ok\r\n");
  }
  if (each.verb == "data") {
    expect_line("DATA");
    return peer.send("354 go ahead\r\n");
  }
  if (each.verb == "content") return read_content(connection);
  if (each.verb == "octets") return read_octets(connection);
  if (each.verb == "ends") return end_silently(connection, "the relay");
  if (each.verb == "gone") {
    if (!wait([&] { return peer.ended(); })) fail("the relay does not end the connection");
    return;
  }
  if (each.verb == "quits") {
    expect_line("QUIT");
    peer.send("221 2.0.0 bye\r\n");
    return end_silently(connection, "the relay");
  }
  if (each.verb == "silent") return expect_silence(peer, time(each.text));
  if (each.verb == "good") {
    // From here on it is served without a script.
    connection.good = true;
    if (!connection.greeted) peer.send("220 mx.example ESMTP\r\n");
    serve(connection);
    return;
  }
  fail("unknown step: R " + each.verb);
}

void Player::writer_step(const Step& each) {
  Connection& connection = receiver(each.connection);
  connection.greeted = true;
  Peer& peer = connection.peer;
  std::string_view rest;
  std::string_view word = first_word(each.text, rest);
  if (each.verb == ":" || each.verb == "+") {
    writing_ = &connection;
    gathered_ += text(each.text) + (each.verb == ":" ? "\r\n" : "");
    return;
  }
  if (each.verb == "drip") return drip(peer, each);
  if (each.verb == "endless") return peer.send_endlessly(text(each.text));
  if (each.verb == "stop") return word == "reading" ? peer.stop_reading() : peer.stop_endless();
  if (each.verb == "read") return peer.read_on();
  if (each.verb == "half-close") return peer.half_close();
  if (each.verb == "close") return peer.close();
  if (each.verb == "reset") return peer.reset();
  fail("unknown step: W " + each.verb);
}

// RFC 5321 2.3.8, 4.5.3.1.6: what leaves the relay, commands and content alike.
void Player::check_wire(std::string_view octets, bool text_lines) const {
  size_t line = 0;
  for (size_t i = 0; i < octets.size(); ++i) {
    char c = octets[i];
    if (c == '\0') fail("a NUL left the relay");
    if (c == '\n' && (i == 0 || octets[i - 1] != '\r')) fail("a bare LF left the relay: " + printable(octets.substr(line)));
    if (c == '\r' && (i + 1 == octets.size() || octets[i + 1] != '\n')) fail("a bare CR left the relay: " + printable(octets.substr(line)));
    if (c != '\n') continue;
    // With its CRLF, and the dot that was put before it.
    if (text_lines && i + 1 - line > kLongestTextLine + 1) fail(fmt::format("a line of {} octets left the relay", i + 1 - line));
    line = i + 1;
  }
}

// The content that follows a 354, up to the final dot.
void Player::read_content(Connection& connection) {
  Peer& peer = connection.peer;
  auto end_of = [&] {
    if (peer.in.starts_with(".\r\n")) return size_t{0};
    size_t at = peer.in.find("\r\n.\r\n");
    return at == std::string::npos ? at : at + 2;
  };
  if (!wait([&] { return end_of() != std::string::npos || peer.ended(); }) || end_of() == std::string::npos) {
    fail(fmt::format("the end of data does not come; there is: {}", printable(peer.in)));
  }
  size_t end = end_of();
  std::string raw = peer.in.substr(0, end);
  peer.in.erase(0, end + 3);
  keep(connection, std::move(raw), true);
}

void Player::read_octets(Connection& connection) {
  Peer& peer = connection.peer;
  if (!wait([&] { return peer.in.size() >= connection.chunk || peer.ended(); }) || peer.in.size() < connection.chunk) {
    fail(fmt::format("{} octets came, {} were announced", peer.in.size(), connection.chunk));
  }
  std::string raw = connection.message.raw + peer.in.substr(0, connection.chunk);
  peer.in.erase(0, connection.chunk);
  if (connection.chunk_last) {
    keep(connection, std::move(raw), false);
  } else {
    connection.message.raw = std::move(raw);
  }
}

void Player::keep(Connection& connection, std::string raw, bool stuffed) {
  check_wire(raw, true);
  Message& message = connection.message;
  message.raw = std::move(raw);
  message.content.clear();
  bool line_start = true;
  for (char c : message.raw) {
    if (!(stuffed && line_start && c == '.')) message.content += c;
    line_start = c == '\n';
  }
  messages_.push_back(message);
}

// ---- receivers without a script

void Player::serve(Connection& connection) {
  connection.peer.on_input = [this, &connection] {
    while (serve_step(connection)) {
    }
  };
  connection.peer.on_input();
}

// Takes one command or one content; false when more must come first.
bool Player::serve_step(Connection& connection) {
  Peer& peer = connection.peer;
  using Part = Connection::Part;
  if (connection.part == Part::content) {
    size_t end = peer.in.starts_with(".\r\n") ? 0 : peer.in.find("\r\n.\r\n");
    if (end == std::string::npos) return false;
    if (end > 0) end += 2;
    std::string raw = peer.in.substr(0, end);
    peer.in.erase(0, end + 3);
    keep(connection, std::move(raw), true);
    connection.part = Part::commands;
    peer.send("250 2.0.0 taken\r\n");
    return true;
  }
  if (connection.part == Part::chunk) {
    if (peer.in.size() < connection.chunk) return false;
    std::string raw = connection.message.raw + peer.in.substr(0, connection.chunk);
    peer.in.erase(0, connection.chunk);
    connection.part = Part::commands;
    if (connection.chunk_last) {
      keep(connection, std::move(raw), false);
    } else {
      connection.message.raw = std::move(raw);
    }
    peer.send("250 2.0.0 taken\r\n");
    return true;
  }
  size_t end = peer.in.find('\n');
  if (end == std::string::npos) return false;
  std::string line = peer.in.substr(0, end + 1);
  peer.in.erase(0, end + 1);
  check_wire(line, true);
  line.resize(line.size() - 2);
  if (verbose_) fmt::print("{:.6f}   @{} > {}\n", static_cast<double>(stage_.io().now()) / 1e9, peer.host(), printable(line));
  if (begins_with(line, "EHLO ")) {
    std::vector<std::string> lines = split(good_capabilities_ == "none" ? "" : good_capabilities_, ',');
    lines.insert(lines.begin(), "mx.example");
    std::string reply;
    for (size_t i = 0; i < lines.size(); ++i) reply += fmt::format("250{}{}\r\n", i + 1 < lines.size() ? "-" : " ", lines[i]);
    peer.send(reply);
  } else if (begins_with(line, "MAIL FROM:")) {
    connection.message = {};
    connection.message.mail = line;
    peer.send("250 2.1.0 ok\r\n");
  } else if (begins_with(line, "RCPT TO:")) {
    connection.message.recipients.push_back(line);
    peer.send("250 2.1.5 ok\r\n");
  } else if (line == "DATA") {
    connection.part = Part::content;
    peer.send("354 go ahead\r\n");
  } else if (begins_with(line, "BDAT ")) {
    connection.chunk = 0;
    std::from_chars(line.data() + 5, line.data() + line.size(), connection.chunk);
    connection.chunk_last = line.ends_with(" LAST");
    connection.part = Part::chunk;
  } else if (line == "QUIT") {
    peer.send("221 2.0.0 bye\r\n");
    peer.close();
    return false;
  } else {
    peer.send(begins_with(line, "HELO ") || line == "RSET" ? "250 2.0.0 ok\r\n" : "500 5.5.1 what\r\n");
  }
  return true;
}

// ---- what came out of it

void Player::message_step(const Step& each) {
  std::string_view rest;
  std::string_view word = first_word(each.text, rest);
  std::string what(word);
  if (what.ends_with(':')) what.pop_back();
  if (what.empty() || what == "arrives" || what == "from") {
    // The next one; with "from", the next one from there, whatever came before it.
    std::string pattern = what == "from" ? fmt::format("MAIL FROM:<{}>{}", text(rest, true), kAnything) : std::string(1, kAnything);
    auto find = [&] {
      return std::find_if(messages_.begin(), messages_.end(), [&](const Message& one) { return matches(one.mail, pattern); });
    };
    if (!wait([&] { return find() != messages_.end(); })) fail("no such message comes to a receiver");
    auto found = find();
    message_ = std::make_unique<Message>(std::move(*found));
    messages_.erase(found);
    return;
  }
  if (!message_) fail("which message? 'message arrives' comes first");
  const Message& message = *message_;
  auto lines = [&](std::string_view content) {
    std::vector<std::string> all;
    while (!content.empty()) {
      size_t end = content.find("\r\n");
      all.emplace_back(content.substr(0, end));
      content.remove_prefix(end == content.npos ? content.size() : end + 2);
    }
    return all;
  };
  auto any = [&](const std::vector<std::string>& all, const std::string& pattern) {
    return std::any_of(all.begin(), all.end(), [&](const std::string& line) { return matches(line, pattern); });
  };
  std::string pattern = text(rest, true);
  size_t split_at = message.content.find("\r\n\r\n");
  std::string header = message.content.starts_with("\r\n") ? "" : message.content.substr(0, split_at == std::string::npos ? split_at : split_at + 2);
  std::string body = message.content.starts_with("\r\n") ? message.content.substr(2)
                     : split_at == std::string::npos     ? ""
                                                         : message.content.substr(split_at + 4);
  if (what == "mail") {
    if (!matches(message.mail, pattern)) fail("it came with: " + printable(message.mail));
  } else if (what == "to") {
    if (!any(message.recipients, "RCPT TO:" + pattern)) fail("it came for: " + printable(fmt::format("{}", fmt::join(message.recipients, " "))));
  } else if (what == "recipients") {
    size_t wanted = 0;
    std::from_chars(rest.data(), rest.data() + rest.size(), wanted);
    if (message.recipients.size() != wanted) fail(fmt::format("it came for {} recipients", message.recipients.size()));
  } else if (what == "has" || what == "lacks") {
    if (any(lines(message.content), pattern) != (what == "has")) fail("it is: " + printable(message.content));
  } else if (what == "header" || what == "lacks-header") {
    if (any(lines(header), pattern) != (what == "header")) fail("its header is: " + printable(header));
  } else if (what == "body") {
    std::string wanted;
    for (const std::string& line : each.block) wanted += text(line) + "\r\n";
    if (body != wanted) fail(fmt::format("its body is: {}; {} was expected", printable(body), printable(wanted)));
  } else if (what == "ends-in") {
    std::string end = text(rest);
    if (!message.content.ends_with(end)) fail("it ends in: " + printable(std::string_view(message.content).substr(message.content.size() > 60 ? message.content.size() - 60 : 0)));
  } else if (what == "at-most") {
    size_t most = 0;
    std::from_chars(rest.data(), rest.data() + rest.size(), most);
    if (message.content.size() > most) fail(fmt::format("it has {} octets", message.content.size()));
  } else if (what == "size") {
    size_t wanted = 0;
    std::from_chars(rest.data(), rest.data() + rest.size(), wanted);
    if (body.size() != wanted) fail(fmt::format("its body has {} octets", body.size()));
  } else {
    fail("message what?");
  }
}

void Player::look_at_events() {
  const std::vector<std::string>& lines = stage_.events();
  for (; events_seen_ < lines.size(); ++events_seen_) {
    const std::string& line = lines[events_seen_];
    if (verbose_) fmt::print("{:.6f}   event {}\n", static_cast<double>(stage_.io().now()) / 1e9, line);
    for (char c : line) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) fail("a control character in an event: " + printable(line));
    }
    nlohmann::json event = nlohmann::json::parse(line, nullptr, false);
    if (event.is_discarded()) fail("an event is no JSON: " + printable(line));
    std::string type = event.value("type", ""), id = event.value("id", "");
    if (type != "queue" && type != "rejected") {
      auto [seen, fresh] = event_ids_.emplace(id, line);
      if (!fresh) {
        if (seen->second != line) fail("two events of one id: " + line);
        if (!restarted_) fail("an event twice: " + line);
        continue;
      }
    }
    std::string spool_id = event.value("spool_id", "");
    if (type == "received") {
      received_ids_.push_back(spool_id);
      recipients_[spool_id] = event.value("recipients", 0u);
    }
    if (type == "delivered" || type == "bounced" || type == "expired" || type == "removed") {
      // One recipient may stand in an envelope twice.
      if (++ended_[spool_id] > recipients_[spool_id]) fail("a recipient has ended more than once: " + line);
    }
    events_.push_back(std::move(event));
  }
}

bool Player::event_matches(const nlohmann::json& event, const Expected& wanted) const {
  if (event.value("type", "") != wanted.type) return false;
  for (const auto& [key, pattern] : wanted.fields) {
    auto found = event.find(key);
    std::string value;
    if (found != event.end()) value = found->is_string() ? found->get<std::string>() : found->dump();
    if (!matches(value, pattern)) return false;
  }
  return true;
}

void Player::expect_event(const Step& each) {
  std::vector<std::string> words = words_of(each.text);
  if (words.empty()) fail("an event of which type?");
  Expected wanted{&each, words[0], {}};
  for (size_t i = 1; i < words.size(); ++i) {
    size_t equals = words[i].find('=');
    if (equals == std::string::npos) fail("fields are written NAME=VALUE");
    wanted.fields[words[i].substr(0, equals)] = text(words[i].substr(equals + 1), true);
  }
  auto found = events_.end();
  bool came = wait([&] {
    look_at_events();
    found = std::find_if(events_.begin(), events_.end(), [&](const nlohmann::json& one) { return event_matches(one, wanted); });
    return found != events_.end();
  });
  if (!came) {
    std::string others;
    for (const nlohmann::json& one : events_) {
      if (one.value("type", "") == wanted.type && others.size() < 3000) others += "\n    " + one.dump();
    }
    fail("no such event; there are:" + others);
  }
  events_.erase(found);
}

void Player::expect_no_event(const Step& each) {
  std::vector<std::string> words = words_of(each.text);  // "event TYPE NAME=VALUE"
  if (words.size() < 2) fail("no event of which type?");
  Expected wanted{&each, words[1], {}};
  for (size_t i = 2; i < words.size(); ++i) {
    size_t equals = words[i].find('=');
    if (equals == std::string::npos) fail("fields are written NAME=VALUE");
    wanted.fields[words[i].substr(0, equals)] = text(words[i].substr(equals + 1), true);
  }
  if (!stage_.simulated()) pause(50 * kMillisecond);
  look_at_events();
  for (const nlohmann::json& one : events_) {
    if (event_matches(one, wanted)) fail("there is one: " + one.dump());
  }
}

void Player::finish() {
  if (refused_to_start_) return;
  if (!started_) fail("nothing happens in it");
  for (auto& [number, connection] : clients_) connection->peer.reset();
  for (auto& [number, connection] : receivers_) {
    if (!connection->good) connection->peer.reset();
  }
  for (auto& connection : unclaimed_) connection->peer.reset();
  // Events are not awaited before a reply; those of accepted messages are due.
  if (stage_.relay_runs()) {
    bool told = wait(
        [&] {
          look_at_events();
          return received_ids_.size() >= accepted_ids_.size();
        },
        10 * kSecond);
    if (!told) fail(fmt::format("{} messages were accepted, and there are {} events of it", accepted_ids_.size(), received_ids_.size()));
    for (unsigned host = 1; host <= kHosts; ++host) {
      if (hosts_[host]) hosts_[host]->close();
    }
    Status status = stage_.stop_relay();
    if (!status.ok()) fail(status.error().text);
  }
  look_at_events();
  for (const std::string& id : accepted_ids_) {
    if (std::find(received_ids_.begin(), received_ids_.end(), id) == received_ids_.end()) {
      fail(fmt::format("{} was accepted, and no event says so", id));
    }
  }
  for (const nlohmann::json& event : events_) {
    std::string type = event.value("type", "");
    if (type == "bounced" || type == "expired" || type == "removed" || type == "suppressed") {
      fail("nobody expected this: " + event.dump());
    }
  }
}

}  // namespace millrace::transcripts
