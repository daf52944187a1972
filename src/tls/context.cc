#include "tls/context.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <sstream>

#include "base/assert.h"
#include "base/out_of_memory.h"
#include "tls/library.h"
#include "tls/wolfssl.h"

#include <wolfssl/wolfcrypt/aes.h>
#include <wolfssl/wolfcrypt/asn_public.h>
#include <wolfssl/wolfcrypt/random.h>

namespace millrace::tls {
namespace {

constexpr char kServerSuites[] =
    "TLS13-AES128-GCM-SHA256:TLS13-AES256-GCM-SHA384:TLS13-CHACHA20-POLY1305-SHA256:"
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";
constexpr char kClientSuites[] =
    "TLS13-AES128-GCM-SHA256:TLS13-AES256-GCM-SHA384:TLS13-CHACHA20-POLY1305-SHA256:"
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:"
    "DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES128-SHA256:"
    "ECDHE-ECDSA-AES256-SHA384:ECDHE-RSA-AES256-SHA384:"
    "ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA";
constexpr int kServerSmallestRsaBits = 2048;
// Of receivers: what is weaker still is common, and plaintext would be weaker than that.
constexpr int kClientSmallestRsaBits = 1024;

Result<std::string> read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return fail(fmt::format("cannot read {}: {}", path, std::strerror(errno)), errno);
  std::ostringstream bytes;
  bytes << in.rdbuf();
  return std::move(bytes).str();
}

const byte* bytes_of(const std::string& text) { return reinterpret_cast<const byte*>(text.data()); }

std::string reason(int code) {
  char text[WOLFSSL_MAX_ERROR_SZ];
  wolfSSL_ERR_error_string_n(static_cast<unsigned long>(code), text, sizeof text);
  return text;
}

// One element of DER; `left` moves behind it. An empty content with tag 0 is the end, or a fault.
struct Element {
  uint8_t tag = 0;
  std::string_view content;
};
Element next_element(std::string_view& left) {
  if (left.size() < 2) return {};
  const auto octet = [&](size_t at) { return static_cast<uint8_t>(left[at]); };
  size_t length = octet(1);
  size_t header = 2;
  if (length >= 0x80) {
    const size_t octets = length & 0x7f;
    if (octets == 0 || octets > 4 || left.size() < 2 + octets) return {};
    length = 0;
    for (size_t i = 0; i < octets; ++i) length = length << 8 | octet(2 + i);
    header += octets;
  }
  if (length > left.size() - header) return {};
  Element element{octet(0), left.substr(header, length)};
  left.remove_prefix(header + length);
  return element;
}

// Encrypts or opens a ticket in place. Layout of what wolfSSL gives us room for: the period in the name,
// a random nonce of 12 octets, an AES-GCM tag of 16.
int ticket_callback(WOLFSSL*, byte name[WOLFSSL_TICKET_NAME_SZ], byte iv[WOLFSSL_TICKET_IV_SZ],
                    byte mac[WOLFSSL_TICKET_MAC_SZ], int encrypt, byte* ticket, int size, int* out_size,
                    void* owner) {
  constexpr word32 kNonce = 12;
  constexpr word32 kTag = 16;
  auto& keys = *static_cast<TicketKeys*>(owner);
  const int64_t now = std::time(nullptr);
  uint64_t period = TicketKeys::period_of(now);
  if (encrypt) {
    std::memset(name, 0, WOLFSSL_TICKET_NAME_SZ);
    std::memcpy(name, &period, sizeof period);
    std::memset(iv, 0, WOLFSSL_TICKET_IV_SZ);
    std::memset(mac, 0, WOLFSSL_TICKET_MAC_SZ);
    thread_local struct Random {
      // Needs memory, and a descriptor for a moment: without them there is no ticket this time.
      bool ready() { return made || (made = wc_InitRng(&rng) == 0); }
      ~Random() {
        if (made) wc_FreeRng(&rng);
      }
      bool made = false;
      WC_RNG rng;
    } random;
    if (!random.ready() || wc_RNG_GenerateBlock(&random.rng, iv, kNonce) != 0) return WOLFSSL_TICKET_RET_FATAL;
  } else {
    std::memcpy(&period, name, sizeof period);
    if (!TicketKeys::is_good(period, now)) return WOLFSSL_TICKET_RET_REJECT;
  }
  const TicketKeys::Key& key = keys.key(period);
  Aes aes;
  if (wc_AesInit(&aes, nullptr, INVALID_DEVID) != 0) return WOLFSSL_TICKET_RET_FATAL;
  int result = wc_AesGcmSetKey(&aes, key.data(), static_cast<word32>(key.size()));
  const auto length = static_cast<word32>(size);
  if (result == 0) {
    result = encrypt ? wc_AesGcmEncrypt(&aes, ticket, ticket, length, iv, kNonce, mac, kTag, name,
                                        WOLFSSL_TICKET_NAME_SZ)
                     : wc_AesGcmDecrypt(&aes, ticket, ticket, length, iv, kNonce, mac, kTag, name,
                                        WOLFSSL_TICKET_NAME_SZ);
  }
  wc_AesFree(&aes);
  if (result != 0) return encrypt ? WOLFSSL_TICKET_RET_FATAL : WOLFSSL_TICKET_RET_REJECT;
  *out_size = size;
  return WOLFSSL_TICKET_RET_OK;
}

Status set_common(WOLFSSL_CTX* context, const char* suites) {
  if (wolfSSL_CTX_SetMinVersion(context, WOLFSSL_TLSV1_2) != WOLFSSL_SUCCESS ||
      wolfSSL_CTX_set_cipher_list(context, suites) != WOLFSSL_SUCCESS) {
    return fail(std::string("wolfSSL takes neither our versions nor our suites"));
  }
  // Its own cache of sessions is one for the whole process, behind a lock.
  wolfSSL_CTX_set_session_cache_mode(context, WOLFSSL_SESS_CACHE_OFF);
  return success();
}

Status use_certificate(WOLFSSL_CTX* context, const Certificate& certificate) {
  int result = wolfSSL_CTX_use_certificate_chain_buffer(context, bytes_of(certificate.chain_pem),
                                                        static_cast<long>(certificate.chain_pem.size()));
  if (result != WOLFSSL_SUCCESS) return fail(fmt::format("the certificate is no good: {}", reason(result)));
  result = wolfSSL_CTX_use_PrivateKey_buffer(context, bytes_of(certificate.key_pem),
                                             static_cast<long>(certificate.key_pem.size()), WOLFSSL_FILETYPE_PEM);
  if (result != WOLFSSL_SUCCESS) return fail(fmt::format("the key is no good: {}", reason(result)));
  return success();
}

Status trust(WOLFSSL_CTX* context, const std::string& pem, bool pass_over_faults) {
  const int loaded = wolfSSL_CTX_load_verify_buffer_ex(
      context, bytes_of(pem), static_cast<long>(pem.size()), WOLFSSL_FILETYPE_PEM, 0,
      pass_over_faults ? WOLFSSL_LOAD_FLAG_IGNORE_ERR : WOLFSSL_LOAD_FLAG_NONE);
  if (loaded != WOLFSSL_SUCCESS) return fail(fmt::format("no authorities: {}", reason(loaded)));
  return success();
}

}  // namespace

Result<std::string> read_authorities(const std::string& path) {
  start_library();
  Result<std::string> pem = read_file(path);
  if (!pem) return pem;
  if (pem->find("-----BEGIN CERTIFICATE-----") == std::string::npos) {
    return fail(fmt::format("{} holds no certificate", path));
  }
  return pem;
}

bool name_matches(std::string_view pattern, std::string_view host) {
  if (pattern == host) return true;
  if (!pattern.starts_with("*.")) return false;
  const size_t dot = host.find('.');
  return dot != host.npos && dot > 0 && host.substr(dot) == pattern.substr(1);
}

std::vector<std::string> dns_names(std::string_view der) {
  constexpr std::string_view kSubjectAltName("\x06\x03\x55\x1d\x11", 5);
  std::vector<std::string> names;
  const size_t at = der.find(kSubjectAltName);
  if (at == der.npos) return names;
  std::string_view left = der.substr(at + kSubjectAltName.size());
  Element element = next_element(left);
  if (element.tag == 0x01) element = next_element(left);  // critical
  if (element.tag != 0x04) return names;
  left = element.content;
  element = next_element(left);
  if (element.tag != 0x30) return names;
  left = element.content;
  while (!left.empty()) {
    element = next_element(left);
    if (element.tag == 0) break;
    if (element.tag != 0x82) continue;
    std::string name(element.content);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    names.push_back(std::move(name));
  }
  return names;
}

Result<Certificate> read_certificate(const CertificateFiles& files) {
  start_library();
  Certificate certificate;
  Result<std::string> chain = read_file(files.chain);
  if (!chain) return fail(chain.error());
  Result<std::string> key = read_file(files.key);
  if (!key) return fail(key.error());
  certificate.chain_pem = std::move(*chain);
  certificate.key_pem = std::move(*key);

  DerBuffer* der = nullptr;
  const int result = wc_PemToDer(bytes_of(certificate.chain_pem), static_cast<long>(certificate.chain_pem.size()),
                                 CERT_TYPE, &der, nullptr, nullptr, nullptr);
  if (result != 0) return fail(fmt::format("{} holds no certificate: {}", files.chain, reason(result)));
  const std::string_view bytes(reinterpret_cast<const char*>(der->buffer), der->length);
  certificate.names = dns_names(bytes);
  constexpr std::string_view kEcPublicKey("\x06\x07\x2a\x86\x48\xce\x3d\x02\x01", 9);
  certificate.ecdsa = bytes.find(kEcPublicKey) != bytes.npos;
  wc_FreeDer(&der);

  // Whether the two belong together: wolfSSL says so when both are in a context.
  WOLFSSL_CTX* context = wolfSSL_CTX_new(wolfSSLv23_server_method());
  if (context == nullptr) end_out_of_memory();
  Status used = use_certificate(context, certificate);
  if (used.ok() && wolfSSL_CTX_check_private_key(context) != WOLFSSL_SUCCESS) {
    used = fail(std::string("the key does not belong to the certificate"));
  }
  wolfSSL_CTX_free(context);
  if (!used) return fail(fmt::format("{} and {}: {}", files.chain, files.key, used.error().text));
  return certificate;
}

Result<std::shared_ptr<ServerContext>> ServerContext::make(const ServerSettings& settings,
                                                           const TicketKeys::Secret& secret) {
  ASSERT(!settings.certificates.empty());
  start_library();
  std::shared_ptr<ServerContext> made(new ServerContext(secret, settings.service));
  made->asks_for_certificate_ = !settings.client_ca_pem.empty();
  made->exports_bindings_ = settings.channel_bindings;
  for (const Certificate& certificate : settings.certificates) {
    WOLFSSL_CTX* context = wolfSSL_CTX_new(wolfSSLv23_server_method());
    if (context == nullptr) end_out_of_memory();
    made->entries_.push_back({context, certificate.names, certificate.ecdsa});
    if (Status status = set_common(context, kServerSuites); !status) return fail(status.error());
    if (Status status = use_certificate(context, certificate); !status) return fail(status.error());
    wolfSSL_CTX_SetMinRsaKey_Sz(context, kServerSmallestRsaBits);
    if (made->asks_for_certificate_) {
      if (Status status = trust(context, settings.client_ca_pem, false); !status) return fail(status.error());
      // A session that is resumed shows no certificate: whoever relays by one shows it each time.
      wolfSSL_CTX_no_ticket_TLSv13(context);
    } else {
      wolfSSL_CTX_set_TicketEncCb(context, ticket_callback);
      wolfSSL_CTX_set_TicketEncCtx(context, &made->ticket_keys_);
      wolfSSL_CTX_set_TicketHint(context, static_cast<int>(TicketKeys::kPeriodSeconds));
    }
  }
  return made;
}

ServerContext::~ServerContext() {
  for (const Entry& entry : entries_) wolfSSL_CTX_free(entry.context);
}

WOLFSSL_CTX* ServerContext::choose(std::string_view server_name, bool takes_ecdsa, bool takes_rsa) const {
  std::string name(server_name);
  std::transform(name.begin(), name.end(), name.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  const Entry* best = nullptr;
  int best_worth = -1;
  for (const Entry& entry : entries_) {
    const bool usable = entry.ecdsa ? takes_ecdsa : takes_rsa;
    const bool named = !name.empty() && std::any_of(entry.names.begin(), entry.names.end(),
                                                    [&](const std::string& pattern) { return name_matches(pattern, name); });
    // A certificate that the client can check comes before one with the right name; of equals the ECDSA
    // one, which costs us a tenth; then the first.
    int worth = (usable ? 4 : 0) + (named ? 2 : 0) + (named && entry.ecdsa ? 1 : 0);
    if (worth > best_worth) {
      best = &entry;
      best_worth = worth;
    }
  }
  return best->context;
}

Result<std::shared_ptr<ClientContext>> ClientContext::make(const ClientSettings& settings) {
  start_library();
  std::shared_ptr<ClientContext> made(new ClientContext(settings.sessions_most));
  made->context_ = wolfSSL_CTX_new(wolfSSLv23_client_method());
  if (made->context_ == nullptr) end_out_of_memory();
  WOLFSSL_CTX* context = made->context_;
  if (Status status = set_common(context, kClientSuites); !status) return fail(status.error());
  wolfSSL_CTX_SetMinRsaKey_Sz(context, kClientSmallestRsaBits);
  wolfSSL_CTX_UseSessionTicket(context);
  if (!settings.ca_pem.empty()) {
    // One odd certificate in a bundle must not cost the other hundred.
    if (Status status = trust(context, settings.ca_pem, true); !status) return fail(status.error());
  }
  if (!settings.certificate.chain_pem.empty()) {
    if (Status status = use_certificate(context, settings.certificate); !status) return fail(status.error());
  }
  return made;
}

ClientContext::~ClientContext() {
  if (context_ != nullptr) wolfSSL_CTX_free(context_);
}

}  // namespace millrace::tls
