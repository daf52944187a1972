#include "dns/answer.h"

#include <fmt/format.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstring>
#include <optional>

namespace millrace::dns {

std::string_view to_string(Type type) {
  switch (type) {
    case Type::a:
      return "A";
    case Type::cname:
      return "CNAME";
    case Type::soa:
      return "SOA";
    case Type::ptr:
      return "PTR";
    case Type::mx:
      return "MX";
    case Type::txt:
      return "TXT";
    case Type::aaaa:
      return "AAAA";
    case Type::tlsa:
      return "TLSA";
  }
  UNREACHABLE();
}

std::string_view to_string(Outcome outcome) {
  switch (outcome) {
    case Outcome::records:
      return "records";
    case Outcome::alias:
      return "alias";
    case Outcome::no_data:
      return "no data";
    case Outcome::nxdomain:
      return "NXDOMAIN";
    case Outcome::failure:
      return "failure";
    case Outcome::malformed:
      return "malformed";
  }
  UNREACHABLE();
}

std::string canonical_name(std::string_view name) {
  if (name.size() > 1 && name.back() == '.') name.remove_suffix(1);
  std::string lower(name);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + ('a' - 'A'));
  }
  return lower;
}

bool is_host_name(std::string_view name) {
  if (name.empty() || name.size() > 253) return false;
  size_t label = 0;  // octets of the current label so far
  for (size_t i = 0; i <= name.size(); ++i) {
    if (i == name.size() || name[i] == '.') {
      if (label == 0 || label > 63 || name[i - 1] == '-') return false;
      label = 0;
      continue;
    }
    const char c = name[i];
    const bool alphanumeric =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
    if (!alphanumeric && (c != '-' || label == 0)) return false;
    ++label;
  }
  return true;
}

namespace {

// A cursor over a packet. A read past the end sets `failed` and yields zeros, so that the caller
// checks once after a group of reads.
class Reader {
 public:
  explicit Reader(std::string_view packet) : packet_(packet) {}

  bool failed() const { return failed_; }
  size_t offset() const { return offset_; }
  void skip(size_t octets) { take(octets); }
  void seek(size_t offset) { offset_ = offset; }

  uint8_t u8() {
    const char* at = take(1);
    return at ? static_cast<uint8_t>(octet(at[0])) : uint8_t{0};
  }
  uint16_t u16() {
    const char* at = take(2);
    return at ? static_cast<uint16_t>(octet(at[0]) << 8 | octet(at[1])) : uint16_t{0};
  }
  uint32_t u32() {
    const uint32_t high = u16();
    return high << 16 | u16();
  }
  const char* take(size_t octets) {
    if (failed_ || octets > packet_.size() - offset_) {
      failed_ = true;
      return nullptr;
    }
    const char* at = packet_.data() + offset_;
    offset_ += octets;
    return at;
  }

  // A name in presentation form, lower case, "." for the root. Octets that no host name has come
  // out as \DDD, so that a dot inside of a label is no label's end. Pointers (RFC 1035 4.1.4) lead
  // strictly backwards, so a chain of them ends.
  std::string name() {
    std::string out;
    size_t at = offset_;
    size_t lowest = packet_.size();  // where the latest pointer led
    size_t wire = 0;                 // octets of the uncompressed form
    bool jumped = false;
    while (!failed_) {
      if (at >= packet_.size()) break;
      const unsigned length = octet(packet_[at]);
      if (length == 0) {
        if (!jumped) offset_ = at + 1;
        if (out.empty()) return ".";
        out.pop_back();  // the last label's dot
        return out;
      }
      if ((length & 0xc0) == 0xc0) {
        if (at + 1 >= packet_.size()) break;
        const size_t target = (length & 0x3f) << 8 | octet(packet_[at + 1]);
        if (!jumped) offset_ = at + 2;
        jumped = true;
        if (target >= std::min(at, lowest)) break;
        lowest = at = target;
        continue;
      }
      if (length > 63 || at + 1 + length > packet_.size()) break;
      wire += 1 + length;
      if (wire > 254) break;
      for (char c : packet_.substr(at + 1, length)) {
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + ('a' - 'A'));
        if (c > ' ' && c < 0x7f && c != '.' && c != '\\') {
          out += c;
        } else {
          fmt::format_to(std::back_inserter(out), "\\{:03}", octet(c));
        }
      }
      out += '.';
      at += 1 + length;
    }
    failed_ = true;
    return {};
  }

 private:
  static unsigned octet(char c) { return static_cast<unsigned char>(c); }
  std::string_view packet_;
  size_t offset_ = 0;
  bool failed_ = false;
};

struct RecordHead {
  std::string owner;
  uint16_t type = 0;
  uint16_t record_class = 0;
  uint32_t ttl_s = 0;
  size_t data = 0;  // offset
  uint16_t size = 0;
};

// Leaves the reader behind the record. Check failed().
RecordHead read_head(Reader& reader) {
  RecordHead head;
  head.owner = reader.name();
  head.type = reader.u16();
  head.record_class = reader.u16();
  head.ttl_s = reader.u32();
  if (head.ttl_s > 0x7fffffff) head.ttl_s = 0;  // RFC 2181 8
  head.size = reader.u16();
  head.data = reader.offset();
  reader.skip(head.size);
  return head;
}

Answer malformed(std::string reason) {
  Answer answer;
  answer.outcome = Outcome::malformed;
  answer.reason = std::move(reason);
  return answer;
}

// RFC 2308 5: the lesser of the SOA's own TTL and its MINIMUM.
uint32_t negative_ttl(std::string_view packet, Reader reader, unsigned authority_count) {
  for (unsigned i = 0; i < authority_count && i < kMostRecords; ++i) {
    const RecordHead head = read_head(reader);
    if (reader.failed()) break;
    if (head.type != static_cast<uint16_t>(Type::soa)) continue;
    Reader data(packet.substr(0, head.data + head.size));
    data.seek(head.data);
    data.name();
    data.name();
    data.skip(16);
    const uint32_t minimum = data.u32();
    if (!data.failed()) return std::min(head.ttl_s, minimum);
  }
  return kDefaultNegativeTtlS;
}

}  // namespace

Answer parse_reply(std::string_view packet, std::string_view name, Type type, bool trusted) {
  Reader reader(packet);
  reader.skip(2);  // the id is checked where it was drawn
  const unsigned flags = reader.u16();
  const unsigned question_count = reader.u16();
  const unsigned answer_count = reader.u16();
  const unsigned authority_count = reader.u16();
  reader.skip(2);
  if (reader.failed()) return malformed("reply shorter than a header");
  if ((flags & 0x8000) == 0) return malformed("a query in place of a reply");
  if ((flags & 0x0200) != 0) return malformed("truncated reply");
  if (question_count != 1) return malformed("reply without its question");
  const std::string question = reader.name();
  const uint16_t question_type = reader.u16();
  const uint16_t question_class = reader.u16();
  if (reader.failed()) return malformed("broken question section");
  const std::string asked = canonical_name(name);
  if (question != asked || question_type != static_cast<uint16_t>(type) || question_class != 1) {
    return malformed("reply to another question");
  }

  const unsigned rcode = flags & 0x000f;
  if (rcode != 0 && rcode != 3) {
    Answer answer;
    answer.outcome = Outcome::failure;
    answer.reason = rcode == 2   ? "SERVFAIL"
                    : rcode == 5 ? "REFUSED"
                                 : fmt::format("response code {}", rcode);
    return answer;
  }

  std::vector<RecordHead> records;
  records.reserve(std::min<unsigned>(answer_count, kMostRecords));
  bool all_read = true;
  for (unsigned i = 0; i < answer_count; ++i) {
    if (i == kMostRecords) {
      all_read = false;
      break;
    }
    RecordHead head = read_head(reader);
    if (reader.failed()) return malformed("broken answer section");
    if (head.record_class == 1) records.push_back(std::move(head));
  }

  Answer answer;
  answer.ttl_s = UINT32_MAX;
  answer.secure = trusted && (flags & 0x0020) != 0;
  std::string owner = asked;
  int aliases = 0;
  while (type != Type::cname) {
    auto alias = std::find_if(records.begin(), records.end(), [&](const RecordHead& record) {
      return record.type == static_cast<uint16_t>(Type::cname) && record.owner == owner;
    });
    if (alias == records.end()) break;
    if (++aliases > kMostAliases) return malformed("too long a chain of aliases");
    Reader data(packet.substr(0, alias->data + alias->size));
    data.seek(alias->data);
    owner = data.name();
    if (data.failed()) return malformed("broken CNAME record");
    answer.ttl_s = std::min(answer.ttl_s, alias->ttl_s);
  }

  for (const RecordHead& record : records) {
    if (record.type != static_cast<uint16_t>(type) || record.owner != owner) continue;
    const std::string_view bytes = packet.substr(record.data, record.size);
    switch (type) {
      case Type::a: {
        if (bytes.size() != 4) return malformed("A record of a wrong size");
        uint32_t address;
        std::memcpy(&address, bytes.data(), 4);
        answer.addresses.push_back(reactor::Address::ipv4(ntohl(address), 0));
        break;
      }
      case Type::aaaa: {
        if (bytes.size() != 16) return malformed("AAAA record of a wrong size");
        uint8_t octets[16];
        std::memcpy(octets, bytes.data(), 16);
        answer.addresses.push_back(reactor::Address::ipv6(octets, 0));
        break;
      }
      case Type::mx: {
        Reader data(packet.substr(0, record.data + record.size));
        data.seek(record.data);
        MxRecord mx;
        mx.preference = data.u16();
        mx.host = data.name();
        if (data.failed()) return malformed("broken MX record");
        answer.mx.push_back(std::move(mx));
        break;
      }
      case Type::ptr: {
        Reader data(packet.substr(0, record.data + record.size));
        data.seek(record.data);
        answer.names.push_back(data.name());
        if (data.failed()) return malformed("broken PTR record");
        break;
      }
      case Type::txt: {
        Reader data(bytes);
        std::string text;
        while (data.offset() < bytes.size()) {
          const unsigned length = data.u8();
          const char* at = data.take(length);
          if (data.failed()) return malformed("broken TXT record");
          text.append(at, length);
        }
        answer.texts.push_back(std::move(text));
        break;
      }
      case Type::tlsa: {
        // RFC 6698 2.1. No data at all makes a record that is never usable.
        if (bytes.size() < 3) return malformed("broken TLSA record");
        tls::TlsaRecord tlsa{static_cast<uint8_t>(bytes[0]), static_cast<uint8_t>(bytes[1]), static_cast<uint8_t>(bytes[2]),
                             std::string(bytes.substr(3))};
        answer.tlsa.push_back(std::move(tlsa));
        break;
      }
      case Type::cname: {
        Reader data(packet.substr(0, record.data + record.size));
        data.seek(record.data);
        answer.alias = data.name();
        if (data.failed()) return malformed("broken CNAME record");
        break;
      }
      case Type::soa:
        continue;
    }
    answer.ttl_s = std::min(answer.ttl_s, record.ttl_s);
  }

  if (owner != asked) answer.expanded = owner;
  if (!answer.addresses.empty() || !answer.mx.empty() || !answer.texts.empty() || !answer.tlsa.empty() ||
      !answer.names.empty() || !answer.alias.empty()) {
    answer.outcome = Outcome::records;
    return answer;
  }
  if (!all_read) return malformed("answer not among the first 100 records");
  // A chain that ends here without a word on its end (no NXDOMAIN, no SOA) was cut by the server.
  if (aliases > 0 && rcode == 0 && authority_count == 0) {
    answer.outcome = Outcome::alias;
    answer.alias = owner;
    return answer;
  }
  answer.outcome = rcode == 3 ? Outcome::nxdomain : Outcome::no_data;
  answer.ttl_s = std::min(answer.ttl_s, negative_ttl(packet, reader, authority_count));
  return answer;
}

}  // namespace millrace::dns
