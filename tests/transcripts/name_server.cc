#include "name_server.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <cstring>
#include <stdexcept>

namespace millrace::transcripts {
namespace {

constexpr size_t kHeader = 12;
constexpr uint16_t kServFail = 2, kNxDomain = 3;

void put16(std::string& out, unsigned value) {
  out += static_cast<char>(value >> 8);
  out += static_cast<char>(value & 255);
}
void put32(std::string& out, uint32_t value) {
  put16(out, value >> 16);
  put16(out, value & 0xffff);
}
void put_name(std::string& out, std::string_view name) {
  while (!name.empty() && name != ".") {
    size_t dot = name.find('.');
    std::string_view label = name.substr(0, dot);
    out += static_cast<char>(label.size());
    out += label;
    name.remove_prefix(dot == name.npos ? name.size() : dot + 1);
  }
  out += '\0';
}

// The question's name in lower case, and where its type begins; npos: no question.
size_t read_name(std::string_view packet, std::string& name) {
  size_t at = kHeader;
  while (at < packet.size() && packet[at] != 0) {
    size_t size = static_cast<unsigned char>(packet[at]);
    if (size > 63 || at + 1 + size > packet.size()) return packet.npos;
    if (!name.empty()) name += '.';
    name += packet.substr(at + 1, size);
    at += 1 + size;
  }
  if (at + 5 > packet.size()) return packet.npos;
  name = dns::canonical_name(name);
  return at + 1;
}

void add_record(std::string& out, uint16_t type, uint32_t ttl, std::string_view data) {
  put16(out, 0xc000 | kHeader);  // the question's name
  put16(out, type);
  put16(out, 1);
  put32(out, ttl);
  put16(out, static_cast<unsigned>(data.size()));
  out += data;
}

}  // namespace

class NameServer::Connection final : public net::StreamOwner {
 public:
  Connection(NameServer& server, reactor::Handle handle) : server_(server), stream_(server.io_, *this) {
    stream_.start(handle, reactor::BufferGroup::control);
  }

 private:
  void on_data(char* data, size_t size, reactor::BufferRef) override {
    in_.append(data, size);
    if (in_.size() < 2 || stream_.sending()) return;
    size_t length = static_cast<unsigned char>(in_[0]) * 256u + static_cast<unsigned char>(in_[1]);
    if (in_.size() < 2 + length) return;
    std::string reply = server_.reply_to(std::string_view(in_).substr(2, length), true);
    in_.erase(0, 2 + length);
    out_.clear();
    put16(out_, static_cast<unsigned>(reply.size()));
    out_ += reply;
    iovec part{out_.data(), out_.size()};
    stream_.send({&part, 1});
  }
  void on_sent() override {}
  void on_end(int) override { stream_.close(); }
  void on_closed() override {}

  NameServer& server_;
  net::Stream stream_;
  std::string in_, out_;
};

NameServer::NameServer(reactor::Io& io, const reactor::Address& address) : io_(io), listener_(io, *this) {
  readable_.bind<&NameServer::on_readable>(this);
  udp_ = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  reactor::ListenOptions options;
  options.address = address;
  if (udp_ < 0 || bind(udp_, address.raw(), address.raw_length()) != 0 || !listener_.open(options).ok()) {
    throw std::runtime_error(fmt::format("no name server at {}: {}", address.to_string(), std::strerror(errno)));
  }
  io_.poll(readable_, udp_, POLLIN);
}

NameServer::~NameServer() = default;

void NameServer::on_readable(reactor::Completion&) {
  char bytes[1500];
  sockaddr_storage from{};
  socklen_t from_size = sizeof from;
  ssize_t size;
  while ((size = recvfrom(udp_, bytes, sizeof bytes, 0, reinterpret_cast<sockaddr*>(&from), &from_size)) > 0) {
    std::string reply = reply_to({bytes, static_cast<size_t>(size)}, false);
    if (!reply.empty()) sendto(udp_, reply.data(), reply.size(), 0, reinterpret_cast<sockaddr*>(&from), from_size);
  }
  io_.poll(readable_, udp_, POLLIN);
}

void NameServer::on_accepted(reactor::Handle handle) {
  connections_.push_back(std::make_unique<Connection>(*this, handle));
}

std::string NameServer::reply_to(std::string_view query, bool tcp) {
  std::string name;
  size_t type_at = query.size() < kHeader ? query.npos : read_name(query, name);
  if (type_at == query.npos) return {};
  auto type = static_cast<uint16_t>(static_cast<unsigned char>(query[type_at]) << 8 | static_cast<unsigned char>(query[type_at + 1]));
  auto found = faults.find(name);
  NameFault fault = outage ? NameFault::servfail : found == faults.end() ? NameFault::none : found->second;
  if (fault == NameFault::silent) return {};
  std::string reply(query.substr(0, 2));
  if (fault == NameFault::wrong_id) reply[0] = static_cast<char>(reply[0] ^ 0x55);
  if (fault == NameFault::garbage) return reply + std::string("\x81\x80\x00\x01\x00\xff\x00\x00\x00\x00\xff\xff\xff\xff", 14);

  dns::Answer answer = zones.answer(name, static_cast<dns::Type>(type));
  uint16_t code = 0;
  if (fault == NameFault::servfail) code = kServFail;
  if (fault == NameFault::nxdomain || (fault == NameFault::none && answer.outcome == dns::Outcome::nxdomain)) code = kNxDomain;
  bool cut = fault == NameFault::truncated && !tcp;
  std::string records;
  unsigned count = 0;
  if (code == 0 && !cut && fault == NameFault::loop) {
    std::string data;
    put_name(data, name);
    add_record(records, static_cast<uint16_t>(dns::Type::cname), answer.ttl_s, data);
    ++count;
  } else if (code == 0 && !cut) {
    for (const dns::MxRecord& mx : answer.mx) {
      std::string data;
      put16(data, mx.preference);
      put_name(data, mx.host);
      add_record(records, type, answer.ttl_s, data);
      ++count;
    }
    for (const reactor::Address& address : answer.addresses) {
      add_record(records, type, answer.ttl_s, address.octets());
      ++count;
    }
  }
  if (records.size() > 1200 && !tcp) {
    cut = true;
    records.clear();
    count = 0;
  }
  put16(reply, 0x8180u | (cut ? 0x0200u : 0u) | code);
  put16(reply, 1);
  put16(reply, count);
  put32(reply, 0);
  if (fault == NameFault::wrong_question) {
    put_name(reply, "elsewhere.example");
  } else {
    put_name(reply, name);
  }
  put16(reply, type);
  put16(reply, 1);
  return reply + records;
}

}  // namespace millrace::transcripts
