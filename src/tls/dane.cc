#include "tls/dane.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "base/out_of_memory.h"
#include "tls/context.h"
#include "tls/library.h"
#include "tls/wolfssl.h"
#include "tls/x509.h"

#include <wolfssl/wolfcrypt/sha256.h>
#include <wolfssl/wolfcrypt/sha512.h>

namespace millrace::tls {
namespace {

constexpr uint8_t kTrustAnchor = 2, kEndEntity = 3;
constexpr uint8_t kWhole = 0, kSha256 = 1, kSha512 = 2;
constexpr uint8_t kSequence = 0x30;

const byte* bytes_of(std::string_view text) { return reinterpret_cast<const byte*>(text.data()); }

bool matches(const TlsaRecord& record, std::string_view der, const CertificateView& view) {
  const std::string_view selected = record.selector == 0 ? der : view.public_key;
  byte digest[WC_SHA512_DIGEST_SIZE];
  switch (record.matching) {
    case kWhole:
      return selected == record.data;
    case kSha256:
      return wc_Sha256Hash(bytes_of(selected), static_cast<word32>(selected.size()), digest) == 0 &&
             record.data == std::string_view(reinterpret_cast<char*>(digest), WC_SHA256_DIGEST_SIZE);
    case kSha512:
      return wc_Sha512Hash(bytes_of(selected), static_cast<word32>(selected.size()), digest) == 0 &&
             record.data == std::string_view(reinterpret_cast<char*>(digest), WC_SHA512_DIGEST_SIZE);
    default:
      return false;
  }
}

bool is_weaker(const TlsaRecord& record, const std::vector<TlsaRecord>& all) {
  return record.matching == kSha256 && std::any_of(all.begin(), all.end(), [&](const TlsaRecord& other) {
           return other.usage == record.usage && other.selector == record.selector && other.matching == kSha512;
         });
}

Verified verified_of(int error) {
  switch (error) {
    case ASN_AFTER_DATE_E:
    case ASN_BEFORE_DATE_E:
      return Verified::expired;
    case ASN_NO_SIGNER_E:
    case ASN_SELF_SIGNED_E:
      return Verified::untrusted;
    default:
      return Verified::invalid;
  }
}

// Whether the server's certificate follows from `anchor`, by the others of the chain in whatever order.
Verified follows(std::span<const std::string_view> chain, const std::vector<CertificateView>& views, size_t anchor) {
  using Manager = std::unique_ptr<WOLFSSL_CERT_MANAGER, void (*)(WOLFSSL_CERT_MANAGER*)>;
  const Manager manager(wolfSSL_CertManagerNew(), wolfSSL_CertManagerFree);
  if (!manager) end_out_of_memory();
  const auto trust = [&](size_t at) {
    return wolfSSL_CertManagerLoadCABuffer(manager.get(), bytes_of(chain[at]), static_cast<long>(chain[at].size()),
                                           WOLFSSL_FILETYPE_ASN1);
  };
  const auto verify = [&](size_t at) {
    return wolfSSL_CertManagerVerifyBuffer(manager.get(), bytes_of(chain[at]), static_cast<long>(chain[at].size()),
                                           WOLFSSL_FILETYPE_ASN1);
  };
  if (int loaded = trust(anchor); loaded != WOLFSSL_SUCCESS) return verified_of(loaded);
  std::vector<bool> known(chain.size());
  known[anchor] = true;
  Verified fault = Verified::untrusted;
  while (true) {
    const int leaf = verify(0);
    if (leaf == WOLFSSL_SUCCESS) return Verified::ok;
    bool more = false;
    for (size_t at = 1; at < chain.size(); ++at) {
      // wolfSSL would take anybody's certificate for an authority here.
      if (known[at] || !views[at].is_authority) continue;
      const int checked = verify(at);
      if (checked == WOLFSSL_SUCCESS && trust(at) == WOLFSSL_SUCCESS) {
        known[at] = more = true;
      } else if (verified_of(checked) == Verified::expired) {
        fault = Verified::expired;
      }
    }
    if (!more) return verified_of(leaf) == Verified::untrusted ? fault : verified_of(leaf);
  }
}

bool has_name(const CertificateView& leaf, const std::vector<std::string>& names) {
  return std::any_of(names.begin(), names.end(), [&](const std::string& name) {
    if (leaf.names.empty()) return name_matches(leaf.common_name, name);
    return std::any_of(leaf.names.begin(), leaf.names.end(),
                       [&](const std::string& pattern) { return name_matches(pattern, name); });
  });
}

}  // namespace

bool is_usable(const TlsaRecord& record) {
  if (record.usage != kTrustAnchor && record.usage != kEndEntity) return false;
  if (record.selector > 1) return false;
  switch (record.matching) {
    case kWhole:
      return is_der_element(record.data, kSequence) && (record.selector == 1 || view_certificate(record.data));
    case kSha256:
      return record.data.size() == WC_SHA256_DIGEST_SIZE;
    case kSha512:
      return record.data.size() == WC_SHA512_DIGEST_SIZE;
    default:
      return false;
  }
}

std::string to_string(const TlsaRecord& record) {
  std::string out = fmt::format("{} {} {} ", record.usage, record.selector, record.matching);
  for (char c : record.data) fmt::format_to(std::back_inserter(out), "{:02x}", static_cast<uint8_t>(c));
  return out;
}

Verified check_dane(const DaneWish& wish, std::span<const std::string_view> chain) {
  start_library();
  std::vector<CertificateView> views;
  for (std::string_view der : chain) {
    std::optional<CertificateView> view = view_certificate(der);
    if (!view && views.empty()) return Verified::invalid;
    // One in the middle that cannot be read leads nowhere.
    views.push_back(view ? std::move(*view) : CertificateView{});
  }
  if (views.empty()) return Verified::not_checked;
  for (const TlsaRecord& record : wish.records) {
    if (record.usage == kEndEntity && !is_weaker(record, wish.records) && matches(record, chain[0], views[0])) {
      return Verified::ok;
    }
  }
  Verified best = Verified::no_match;
  for (size_t at = 1; at < chain.size(); ++at) {
    if (!views[at].is_authority) continue;
    const bool anchors = std::any_of(wish.records.begin(), wish.records.end(), [&](const TlsaRecord& record) {
      return record.usage == kTrustAnchor && !is_weaker(record, wish.records) && matches(record, chain[at], views[at]);
    });
    if (!anchors) continue;
    best = follows(chain, views, at);
    if (best != Verified::ok) continue;
    if (has_name(views[0], wish.names)) return Verified::ok;
    best = Verified::wrong_name;
  }
  return best;
}

}  // namespace millrace::tls
