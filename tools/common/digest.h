// SHA-256 of what was sent and of what arrived, by libcrypto: it uses the processor's SHA
// instructions (2 GB/s), where Debian's wolfSSL does not (0.3 GB/s).
#pragma once

#include <openssl/evp.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/assert.h"

namespace millrace::tools {

using Sha256 = std::array<uint8_t, 32>;

class Digest {
 public:
  Digest() : context_(EVP_MD_CTX_new()), algorithm_(EVP_MD_fetch(nullptr, "SHA256", nullptr)) {
    ASSERT(context_ && algorithm_);
  }
  void start() { ASSERT(EVP_DigestInit_ex2(context_.get(), algorithm_.get(), nullptr) == 1); }
  void add(const void* data, size_t size) {
    ASSERT(EVP_DigestUpdate(context_.get(), data, size) == 1);
  }
  Sha256 finish() {
    Sha256 result;
    ASSERT(EVP_DigestFinal_ex(context_.get(), result.data(), nullptr) == 1);
    return result;
  }

 private:
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
    void operator()(EVP_MD* algorithm) const { EVP_MD_free(algorithm); }
  };
  std::unique_ptr<EVP_MD_CTX, Free> context_;
  std::unique_ptr<EVP_MD, Free> algorithm_;
};

inline std::string to_hex(const Sha256& digest) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (uint8_t octet : digest) {
    text += kDigits[octet >> 4];
    text += kDigits[octet & 15];
  }
  return text;
}

// False when `text` is not 64 hexadecimal digits.
inline bool from_hex(std::string_view text, Sha256& digest) {
  if (text.size() != 64) return false;
  auto value = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  for (size_t i = 0; i < 32; ++i) {
    int high = value(text[2 * i]);
    int low = value(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    digest[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return true;
}

}  // namespace millrace::tools
