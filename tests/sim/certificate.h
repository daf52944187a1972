// The certificate of every server in simulation, which signs for itself: the same in every run, so that the
// sizes of what a handshake sends are too; also an authority, for MTA-STS. Ed25519, whose signatures have one length and cost little. Its key opens
// nothing else.
#pragma once

#include "tls/context.h"

namespace millrace::sim {

inline tls::Certificate simulated_certificate() {
  tls::Certificate made;
  made.names = {"relay.example", "*.example"};
  made.chain_pem = R"(-----BEGIN CERTIFICATE-----
MIIBSjCB/aADAgECAhQ79swV3GCvgxEPXM4iSciK+9kDPTAFBgMrZXAwGDEWMBQG
A1UEAwwNcmVsYXkuZXhhbXBsZTAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMTIzMTAw
MDAwMFowGDEWMBQGA1UEAwwNcmVsYXkuZXhhbXBsZTAqMAUGAytlcAMhAPVyQBu1
oJqFvncQv1fXrrXHcdB1JY1iWt644aCjeZyco1cwVTAdBgNVHQ4EFgQUzWeGrH9o
OECKnEURvv2kEv2f1QQwDwYDVR0TAQH/BAUwAwEB/zAjBgNVHREEHDAagg1yZWxh
eS5leGFtcGxlggkqLmV4YW1wbGUwBQYDK2VwA0EAE6JczNPZ8JwsDbBBSx6XFTWd
11iQRf5W57hhP8gsPcHogLwmThNNrSZL62i2J85o7MZCZ+fq4DlLIb0LjfMIDQ==
-----END CERTIFICATE-----
)";
  made.key_pem = R"(-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIDY7LsCuNudf/QD3a5DdpgeshtxPmgBeK/iK70z4KDh7
-----END PRIVATE KEY-----
)";
  return made;
}

}  // namespace millrace::sim
