// Fetches MTA-STS policies by HTTPS (RFC 8461 3.3) and posts TLS reports (RFC 8460 5.2) with libcurl, on one thread beside the
// shards: kMostAtOnce at a time, a bounded number waiting. The thread starts with the first of them.
//
// What is taken: 200 and text/plain from a server whose certificate is good for the policy host, within 64 KiB and
// kTimeoutMs; to a report any 2xx from such a server. No redirects, no proxy, no other protocol; the addresses are those that our resolver found.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "delivery/mta_sts.h"

namespace millrace::relay {

class PolicyFetcher final : public delivery::StsFetcher {
 public:
  static constexpr size_t kMostAtOnce = 32;
  static constexpr size_t kMostWaiting = 1000;
  static constexpr long kTimeoutMs = 30'000;
  static constexpr long kConnectTimeoutMs = 10'000;

  // Before the process gives up its rights: the libraries read files of their own.
  PolicyFetcher();
  ~PolicyFetcher() override;
  bool submit(std::unique_ptr<delivery::StsFetch> fetch) override;
  // All come back, those that waited too, before it returns.
  void stop() override;

 private:
  struct Transfer;
  void run();

  std::mutex mutex_;
  std::deque<std::unique_ptr<delivery::StsFetch>> waiting_;
  void* multi_ = nullptr;  // CURLM, made with the thread
  std::thread thread_;
  bool stopping_ = false;
  bool usable_ = false;  // the library could be started
};

}  // namespace millrace::relay
