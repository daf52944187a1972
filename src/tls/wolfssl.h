// wolfSSL's headers in the order and with the settings that they need. For the .cc files of this folder and
// for tests: no other header includes it.
#pragma once

#include <wolfssl/options.h>
#include <wolfssl/ssl.h>
#include <wolfssl/wolfcrypt/settings.h>
