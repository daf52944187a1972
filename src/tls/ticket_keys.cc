#include "tls/ticket_keys.h"

#include <sys/random.h>

#include <mutex>

#include "base/assert.h"
#include "tls/wolfssl.h"

#include <wolfssl/wolfcrypt/hmac.h>

namespace millrace::tls {

TicketKeys::TicketKeys(const Secret& secret, std::string service)
    : secret_(secret), service_(std::move(service)) {}

const TicketKeys::Secret& TicketKeys::process_secret() {
  static Secret secret;
  static std::once_flag once;
  std::call_once(once, [] {
    ASSERT(getrandom(secret.data(), secret.size(), 0) == static_cast<ssize_t>(secret.size()));
  });
  return secret;
}

uint64_t TicketKeys::period_of(int64_t unix_seconds) {
  return static_cast<uint64_t>(unix_seconds / kPeriodSeconds);
}

bool TicketKeys::is_good(uint64_t period, int64_t unix_seconds) {
  const uint64_t now = period_of(unix_seconds);
  return period == now || period + 1 == now;
}

const TicketKeys::Key& TicketKeys::key(uint64_t period) {
  Slot& slot = slots_[period % slots_.size()];
  if (slot.period == period) return slot.key;
  std::string text = "session ticket key\n" + service_ + "\n" + std::to_string(period);
  Hmac hmac;
  ASSERT(wc_HmacInit(&hmac, nullptr, INVALID_DEVID) == 0);
  ASSERT(wc_HmacSetKey(&hmac, WC_SHA256, secret_.data(), static_cast<word32>(secret_.size())) == 0);
  ASSERT(wc_HmacUpdate(&hmac, reinterpret_cast<const byte*>(text.data()),
                       static_cast<word32>(text.size())) == 0);
  ASSERT(wc_HmacFinal(&hmac, slot.key.data()) == 0);
  wc_HmacFree(&hmac);
  slot.period = period;
  return slot.key;
}

}  // namespace millrace::tls
