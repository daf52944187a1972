#include "tls/x509.h"

#include <algorithm>
#include <cstdint>

namespace millrace::tls {
namespace {

constexpr uint8_t kBoolean = 0x01, kBitString = 0x03, kOctetString = 0x04, kOid = 0x06, kSequence = 0x30, kSet = 0x31;
constexpr uint8_t kVersion = 0xa0, kExtensions = 0xa3, kDnsName = 0x82;
constexpr std::string_view kCommonName("\x55\x04\x03", 3);
constexpr std::string_view kKeyUsage("\x55\x1d\x0f", 3);
constexpr std::string_view kSubjectAltName("\x55\x1d\x11", 3);
constexpr std::string_view kBasicConstraints("\x55\x1d\x13", 3);

// A cursor over the elements of a constructed one. A fault ends it, and is remembered.
class Elements {
 public:
  explicit Elements(std::string_view bytes) : left_(bytes) {}
  bool done() const { return left_.empty(); }
  bool failed() const { return failed_; }
  uint8_t tag() const { return left_.empty() ? uint8_t{0} : static_cast<uint8_t>(left_[0]); }
  // The next one's content; `whole` gets it with its header.
  std::string_view next(std::string_view* whole = nullptr) {
    const auto octet = [&](size_t at) { return static_cast<uint8_t>(left_[at]); };
    if (left_.size() < 2) return fail();
    size_t length = octet(1), header = 2;
    if (length >= 0x80) {
      const size_t octets = length & 0x7f;
      if (octets == 0 || octets > 4 || left_.size() < 2 + octets) return fail();
      length = 0;
      for (size_t i = 0; i < octets; ++i) length = length << 8 | octet(2 + i);
      header += octets;
    }
    if (length > left_.size() - header) return fail();
    if (whole) *whole = left_.substr(0, header + length);
    const std::string_view content = left_.substr(header, length);
    left_.remove_prefix(header + length);
    return content;
  }
  // The next one, which must have this tag.
  std::string_view next(uint8_t wanted, std::string_view* whole = nullptr) {
    return tag() == wanted ? next(whole) : fail();
  }

 private:
  std::string_view fail() {
    failed_ = true;
    left_ = {};
    return {};
  }
  std::string_view left_;
  bool failed_ = false;
};

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return out;
}

bool read_names(std::string_view value, std::vector<std::string>& names) {
  Elements outer(value);
  Elements all(outer.next(kSequence));
  while (!outer.failed() && !all.done()) {
    const uint8_t tag = all.tag();
    const std::string_view name = all.next();
    if (tag == kDnsName && !name.empty() && name.find('\0') == name.npos) names.push_back(lower(name));
  }
  return !outer.failed() && !all.failed();
}

bool read_common_name(std::string_view subject, std::string& to) {
  Elements sets(subject);
  while (!sets.done()) {
    Elements pairs(sets.next(kSet));
    while (!pairs.done()) {
      Elements pair(pairs.next(kSequence));
      const std::string_view type = pair.next(kOid);
      const std::string_view value = pair.next();
      if (pair.failed()) return false;
      if (type == kCommonName) to = value.find('\0') == value.npos ? lower(value) : std::string();
    }
    if (pairs.failed()) return false;
  }
  return !sets.failed();
}

}  // namespace

bool is_der_element(std::string_view der, unsigned char tag) {
  Elements one(der);
  one.next(tag);
  return !one.failed() && one.done();
}

std::optional<CertificateView> view_certificate(std::string_view der) {
  CertificateView view;
  Elements outer(der);
  Elements certificate(outer.next(kSequence));
  Elements tbs(certificate.next(kSequence));
  if (tbs.tag() == kVersion) tbs.next();
  tbs.next();           // serial number
  tbs.next(kSequence);  // algorithm
  tbs.next(kSequence);  // issuer
  tbs.next(kSequence);  // validity
  const std::string_view subject = tbs.next(kSequence);
  tbs.next(kSequence, &view.public_key);
  if (outer.failed() || !outer.done() || certificate.failed() || tbs.failed()) return std::nullopt;
  if (!read_common_name(subject, view.common_name)) return std::nullopt;
  bool is_ca = false, signs = true;
  while (!tbs.done()) {
    if (tbs.tag() != kExtensions) {
      tbs.next();
      continue;
    }
    Elements explicitly(tbs.next());
    Elements extensions(explicitly.next(kSequence));
    while (!extensions.done()) {
      Elements extension(extensions.next(kSequence));
      const std::string_view type = extension.next(kOid);
      if (extension.tag() == kBoolean) extension.next();  // critical
      const std::string_view value = extension.next(kOctetString);
      if (extension.failed()) return std::nullopt;
      if (type == kSubjectAltName && !read_names(value, view.names)) return std::nullopt;
      if (type == kBasicConstraints) {
        Elements one(value);
        Elements fields(one.next(kSequence));
        if (fields.tag() == kBoolean) {
          const std::string_view flag = fields.next();
          is_ca = flag.size() == 1 && flag[0] != 0;
        }
      }
      if (type == kKeyUsage) {
        Elements one(value);
        const std::string_view bits = one.next(kBitString);  // the first octet counts unused bits
        signs = bits.size() >= 2 && (static_cast<uint8_t>(bits[1]) & 0x04) != 0;
      }
    }
    if (explicitly.failed() || extensions.failed()) return std::nullopt;
  }
  if (tbs.failed()) return std::nullopt;
  view.is_authority = is_ca && signs;
  return view;
}

}  // namespace millrace::tls
