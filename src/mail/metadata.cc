// The metadata record of a message (declared in content.h; the page is docs/spool-format.md).
//
// A sequence of fields, little endian: tag (1 octet), size (4), value. A tag of 128 and above that
// is not known makes the record unreadable, one below is skipped. Absent fields are empty or zero.
//
//   1  tenant   2  job   3  pool   4  account   5  client   6  message_id   (text)
// 128  fixed: received_ms (8), expires_ms (8), ret (1), body (1), smtputf8 (1)
// 129  reverse_path (text)                130  envid (text)
// 131  recipient, repeated in order: notify (1), sizes of address, domain, orcpt (2 each), their
// text 132  prefix (text) 133  content: raw_size (4), crc (4), unlisted_dots (4), flags (1: stuffed
// 1, eight bit 2, no CRLF
//      at the end 4, eight bit in the header section 8)
// 134  dots (4 each)                      135  cuts: offset, size (4 each)
// 136  tls (1: REQUIRETLS, 2: TLS-Required: no); absent where nothing is asked
#include <algorithm>
#include <bit>
#include <cstring>

#include "base/assert.h"
#include "mail/content.h"
#include "mail/headers.h"

namespace millrace::mail {
namespace {

static_assert(std::endian::native == std::endian::little, "fields are copied as they are");

enum Tag : uint8_t {
  kTenant = 1,
  kJob = 2,
  kPool = 3,
  kAccount = 4,
  kClient = 5,
  kMessageId = 6,
  kFixed = 128,
  kReversePath = 129,
  kEnvid = 130,
  kRecipient = 131,
  kPrefix = 132,
  kContent = 133,
  kDots = 134,
  kCuts = 135,
  kTls = 136,
};
constexpr uint8_t kRefuseIfUnknown = 128;
constexpr size_t kFieldHead = 5;
constexpr size_t kFixedSize = 19;
constexpr size_t kRecipientHead = 7;
constexpr size_t kContentSize = 13;
constexpr uint8_t kStuffed = 1, kEightBit = 2, kNoFinalCrlf = 4, kEightBitHeader = 8;

template <typename T>
void put(std::string& out, T number) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &number, sizeof(T));
  out.append(bytes, sizeof(T));
}

void put_head(std::string& out, Tag tag, size_t size) {
  ASSERT(size <= UINT32_MAX);
  put(out, static_cast<uint8_t>(tag));
  put(out, static_cast<uint32_t>(size));
}

void put_text(std::string& out, Tag tag, std::string_view text) {
  if (text.empty()) return;
  put_head(out, tag, text.size());
  out.append(text);
}

template <typename T>
T get(std::string_view bytes, size_t offset) {
  T number;
  std::memcpy(&number, bytes.data() + offset, sizeof(T));
  return number;
}

struct Field {
  uint8_t tag = 0;
  std::string_view value;
};

// Removes one field from the front; false when `bytes` is cut short.
bool take_field(std::string_view& bytes, Field& field) {
  if (bytes.size() < kFieldHead) return false;
  field.tag = get<uint8_t>(bytes, 0);
  uint32_t size = get<uint32_t>(bytes, 1);
  if (size > bytes.size() - kFieldHead) return false;
  field.value = bytes.substr(kFieldHead, size);
  bytes.remove_prefix(kFieldHead + size);
  return true;
}

struct RecipientView {
  uint8_t notify = 0;
  std::string_view address, domain, orcpt;
};

bool read_recipient(std::string_view value, RecipientView& recipient) {
  if (value.size() < kRecipientHead) return false;
  recipient.notify = get<uint8_t>(value, 0);
  size_t address = get<uint16_t>(value, 1);
  size_t domain = get<uint16_t>(value, 3);
  size_t orcpt = get<uint16_t>(value, 5);
  if (value.size() != kRecipientHead + address + domain + orcpt) return false;
  value.remove_prefix(kRecipientHead);
  recipient.address = value.substr(0, address);
  recipient.domain = value.substr(address, domain);
  recipient.orcpt = value.substr(address + domain);
  return true;
}

// Text of the envelope goes into commands, reports and logs: no control character may hide in it.
bool is_clean(std::string_view text) {
  return std::none_of(text.begin(), text.end(),
                      [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

// Whole lines ended by CRLF, none beginning with a dot, no other control of lines.
bool is_clean_prefix(std::string_view prefix) {
  bool line_start = true;
  for (size_t i = 0; i < prefix.size(); ++i) {
    char c = prefix[i];
    if (c == '\0' || c == '\n' || (line_start && c == '.')) return false;
    line_start = false;
    if (c == '\r') {
      if (i + 1 == prefix.size() || prefix[i + 1] != '\n') return false;
      ++i;
      line_start = true;
    }
  }
  return line_start;
}

bool is_notify(uint8_t notify) {
  return notify <= 15 && (!(notify & Notify::never) || notify == Notify::never);
}

bool edits_hold(const Content& content) {
  uint64_t end = 0, cut_octets = 0;
  for (const Cut& cut : content.cuts) {
    if (cut.size == 0 || cut.offset < end) return false;
    end = uint64_t{cut.offset} + cut.size;
    cut_octets += cut.size;
  }
  if (end > content.raw_size) return false;
  auto cut = content.cuts.begin();
  uint64_t next = 0;
  for (uint32_t dot : content.dots) {
    if (dot < next || dot >= content.raw_size) return false;
    next = uint64_t{dot} + 1;
    while (cut != content.cuts.end() && cut->offset + uint64_t{cut->size} <= dot) ++cut;
    if (cut != content.cuts.end() && cut->offset <= dot) return false;
  }
  return content.dots.size() + cut_octets + content.unlisted_dots <= content.raw_size;
}

Failure<Error> damaged(const char* what) {
  return fail(std::string("message metadata: bad ") + what);
}

// One walk for both decoders: `on_field` gets each field; it returns what is wrong with it, or
// null.
template <typename F>
Status walk(std::string_view bytes, F&& on_field) {
  Field field;
  while (!bytes.empty()) {
    if (!take_field(bytes, field)) return damaged("field size");
    if (const char* wrong = on_field(field)) return damaged(wrong);
  }
  return success();
}

const char* read_fixed(std::string_view value, int64_t& received_ms, int64_t& expires_ms) {
  if (value.size() != kFixedSize) return "fixed field";
  received_ms = get<int64_t>(value, 0);
  expires_ms = get<int64_t>(value, 8);
  return nullptr;
}

const char* read_text(std::string_view value, std::string& text) {
  if (!is_clean(value)) return "text";
  text = value;
  return nullptr;
}

const char* read_tls(std::string_view value, TlsWish& tls) {
  if (value.size() != 1 || (value[0] != 1 && value[0] != 2)) return "TLS field";
  tls = static_cast<TlsWish>(value[0]);
  return nullptr;
}

const char* read_envelope_field(const Field& field, Envelope& envelope) {
  switch (field.tag) {
    case kTenant:
      return read_text(field.value, envelope.tenant);
    case kJob:
      return read_text(field.value, envelope.job);
    case kPool:
      return read_text(field.value, envelope.pool);
    case kAccount:
      return read_text(field.value, envelope.account);
    case kClient:
      return read_text(field.value, envelope.client);
    case kMessageId:
      return read_text(field.value, envelope.message_id);
    case kReversePath:
      return read_text(field.value, envelope.reverse_path);
    case kEnvid:
      return read_text(field.value, envelope.envid);
    case kFixed: {
      if (const char* wrong = read_fixed(field.value, envelope.received_ms, envelope.expires_ms)) {
        return wrong;
      }
      uint8_t ret = get<uint8_t>(field.value, 16), body = get<uint8_t>(field.value, 17);
      uint8_t smtputf8 = get<uint8_t>(field.value, 18);
      if (ret > 2 || body > 1 || smtputf8 > 1) return "fixed field";
      envelope.ret = static_cast<Ret>(ret);
      envelope.body = static_cast<BodyType>(body);
      envelope.smtputf8 = smtputf8 == 1;
      return nullptr;
    }
    case kRecipient: {
      RecipientView view;
      if (!read_recipient(field.value, view) || view.address.empty() || !is_notify(view.notify) ||
          !is_clean(view.address) || !is_clean(view.domain) || !is_clean(view.orcpt)) {
        return "recipient";
      }
      envelope.recipients.push_back({std::string(view.address), std::string(view.domain),
                                     std::string(view.orcpt), view.notify});
      return nullptr;
    }
    case kTls:
      return read_tls(field.value, envelope.tls);
    default:
      return field.tag >= kRefuseIfUnknown ? "tag: written by a newer version" : nullptr;
  }
}

const char* read_field(const Field& field, Metadata& metadata) {
  Content& content = metadata.content;
  switch (field.tag) {
    case kPrefix:
      if (!is_clean_prefix(field.value)) return "prefix";
      content.prefix = field.value;
      return nullptr;
    case kContent: {
      if (field.value.size() != kContentSize) return "content field";
      content.raw_size = get<uint32_t>(field.value, 0);
      content.crc = get<uint32_t>(field.value, 4);
      content.unlisted_dots = get<uint32_t>(field.value, 8);
      uint8_t flags = get<uint8_t>(field.value, 12);
      if (flags > (kStuffed | kEightBit | kNoFinalCrlf | kEightBitHeader)) return "content flags";
      content.stuffed = flags & kStuffed;
      content.eight_bit = flags & kEightBit;
      content.ends_in_crlf = !(flags & kNoFinalCrlf);
      content.eight_bit_header = flags & kEightBitHeader;
      return nullptr;
    }
    case kDots: {
      size_t count = field.value.size() / 4;
      if (field.value.size() % 4 != 0 || count > kMostListedDots) return "dots";
      content.dots.resize(count);
      if (count > 0) std::memcpy(content.dots.data(), field.value.data(), field.value.size());
      return nullptr;
    }
    case kCuts: {
      static_assert(sizeof(Cut) == 8);
      size_t count = field.value.size() / 8;
      if (field.value.size() % 8 != 0 || count > kMostCuts) return "cuts";
      content.cuts.resize(count);
      if (count > 0) std::memcpy(content.cuts.data(), field.value.data(), field.value.size());
      return nullptr;
    }
    default:
      return read_envelope_field(field, metadata.envelope);
  }
}

}  // namespace

void encode_metadata(const Envelope& envelope, const Content& content, std::string& out) {
  put_head(out, kFixed, kFixedSize);
  put(out, envelope.received_ms);
  put(out, envelope.expires_ms);
  put(out, static_cast<uint8_t>(envelope.ret));
  put(out, static_cast<uint8_t>(envelope.body));
  put(out, static_cast<uint8_t>(envelope.smtputf8));
  put_text(out, kReversePath, envelope.reverse_path);
  put_text(out, kEnvid, envelope.envid);
  put_text(out, kTenant, envelope.tenant);
  put_text(out, kJob, envelope.job);
  put_text(out, kPool, envelope.pool);
  put_text(out, kAccount, envelope.account);
  put_text(out, kClient, envelope.client);
  put_text(out, kMessageId, envelope.message_id);
  for (const Recipient& recipient : envelope.recipients) {
    size_t address = recipient.address.size();
    size_t domain = recipient.domain.size();
    size_t orcpt = recipient.orcpt.size();
    ASSERT(address <= UINT16_MAX && domain <= UINT16_MAX && orcpt <= UINT16_MAX);
    put_head(out, kRecipient, kRecipientHead + address + domain + orcpt);
    put(out, recipient.notify);
    put(out, static_cast<uint16_t>(address));
    put(out, static_cast<uint16_t>(domain));
    put(out, static_cast<uint16_t>(orcpt));
    out.append(recipient.address).append(recipient.domain).append(recipient.orcpt);
  }
  put_text(out, kPrefix, content.prefix);
  put_head(out, kContent, kContentSize);
  put(out, content.raw_size);
  put(out, content.crc);
  put(out, content.unlisted_dots);
  put(out,
      static_cast<uint8_t>((content.stuffed ? kStuffed : 0) | (content.eight_bit ? kEightBit : 0) |
                           (content.ends_in_crlf ? 0 : kNoFinalCrlf) |
                           (content.eight_bit_header ? kEightBitHeader : 0)));
  if (!content.dots.empty()) {
    put_head(out, kDots, content.dots.size() * 4);
    for (uint32_t dot : content.dots) put(out, dot);
  }
  if (!content.cuts.empty()) {
    put_head(out, kCuts, content.cuts.size() * 8);
    for (const Cut& cut : content.cuts) {
      put(out, cut.offset);
      put(out, cut.size);
    }
  }
  if (envelope.tls != TlsWish::none) {
    put_head(out, kTls, 1);
    put(out, static_cast<uint8_t>(envelope.tls));
  }
}

Result<Metadata> decode_metadata(std::string_view bytes) {
  Metadata metadata;
  bool fixed = false, content = false;
  Status status = walk(bytes, [&](const Field& field) {
    fixed |= field.tag == kFixed;
    content |= field.tag == kContent;
    return read_field(field, metadata);
  });
  if (!status) return fail(status.error());
  if (!fixed || !content) return damaged("record: a field is missing");
  if (metadata.envelope.recipients.empty()) return damaged("record: no recipients");
  if (!edits_hold(metadata.content)) return damaged("edits");
  return metadata;
}

Result<MetadataSummary> summarize_metadata(std::string_view bytes) {
  MetadataSummary summary;
  bool fixed = false;
  Status status = walk(bytes, [&](const Field& field) -> const char* {
    switch (field.tag) {
      case kFixed:
        fixed = true;
        return read_fixed(field.value, summary.received_ms, summary.expires_ms);
      case kReversePath:
        summary.reverse_path = field.value;
        break;
      case kTenant:
        summary.tenant = field.value;
        break;
      case kJob:
        summary.job = field.value;
        break;
      case kPool:
        summary.pool = field.value;
        break;
      case kAccount:
        summary.account = field.value;
        break;
      case kRecipient: {
        RecipientView view;
        if (!read_recipient(field.value, view) || view.address.empty()) return "recipient";
        summary.recipient_domains.push_back(view.domain);
        break;
      }
      case kTls:
        return read_tls(field.value, summary.tls);
      default:
        if (field.tag > kTls) return "tag: written by a newer version";
        break;
    }
    return nullptr;
  });
  if (!status) return fail(status.error());
  if (!fixed || summary.recipient_domains.empty()) return damaged("record: a field is missing");
  if (!is_clean(summary.reverse_path) || !is_clean(summary.tenant) || !is_clean(summary.job) || !is_clean(summary.pool) ||
      !is_clean(summary.account)) {
    return damaged("text");
  }
  return summary;
}

}  // namespace millrace::mail
