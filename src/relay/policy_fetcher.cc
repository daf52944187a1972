#include "relay/policy_fetcher.h"

#include <curl/curl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <vector>

#include "base/log.h"
#include "base/out_of_memory.h"

namespace millrace::relay {
namespace {

// The media type of "Text/Plain; charset=utf-8".
bool is_plain_text(const char* type) {
  if (type == nullptr) return false;
  std::string_view text(type);
  text = text.substr(0, text.find(';'));
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return std::equal(text.begin(), text.end(), std::begin("text/plain"), std::end("text/plain") - 1,
                    [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; });
}

}  // namespace

struct PolicyFetcher::Transfer {
  explicit Transfer(std::unique_ptr<delivery::StsFetch> one) : fetch(std::move(one)) {
    easy = curl_easy_init();
    if (easy == nullptr) end_out_of_memory();
    std::string entry = fmt::format("{}:{}:", fetch->host, fetch->port);
    for (size_t i = 0; i < fetch->addresses.size(); ++i) {
      if (i > 0) entry += ',';
      const reactor::Address& address = fetch->addresses[i];
      entry += address.is_ipv6() ? fmt::format("[{}]", address.host_string()) : address.host_string();
    }
    resolve = curl_slist_append(nullptr, entry.c_str());
    const std::string url = fmt::format("https://{}:{}{}", fetch->host, fetch->port, fetch->target);
    curl_easy_setopt(easy, CURLOPT_URL, url.c_str());
    curl_easy_setopt(easy, CURLOPT_RESOLVE, resolve);
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "https");
    curl_easy_setopt(easy, CURLOPT_PROXY, "");  // whatever the environment says
    curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
    curl_easy_setopt(easy, CURLOPT_USERAGENT, "millrace");
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, kTimeoutMs);
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, kConnectTimeoutMs);
    curl_easy_setopt(easy, CURLOPT_FORBID_REUSE, 1L);
    curl_easy_setopt(easy, CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
    // The same authorities as for receivers, as they were read with the configuration; no others.
    curl_blob authorities{};
    authorities.data = const_cast<char*>(fetch->authorities->data());
    authorities.len = fetch->authorities->size();
    authorities.flags = CURL_BLOB_NOCOPY;
    curl_easy_setopt(easy, CURLOPT_CAINFO_BLOB, &authorities);
    curl_easy_setopt(easy, CURLOPT_CAPATH, nullptr);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, error);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, this);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, &Transfer::on_bytes);
    curl_easy_setopt(easy, CURLOPT_PRIVATE, this);
    if (fetch->upload.empty()) return;
    headers = curl_slist_append(nullptr, fmt::format("Content-Type: {}", fetch->upload_type).c_str());
    headers = curl_slist_append(headers, "Expect:");  // it is short
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(fetch->upload.size()));
    curl_easy_setopt(easy, CURLOPT_POSTFIELDS, fetch->upload.data());
  }
  ~Transfer() {
    curl_easy_cleanup(easy);
    curl_slist_free_all(resolve);
    curl_slist_free_all(headers);
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  static size_t on_bytes(char* bytes, size_t, size_t size, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    if (!transfer.fetch->upload.empty()) return size;  // what it says to a report is its own business
    std::string& body = transfer.fetch->body;
    if (size > delivery::kLongestStsPolicy - body.size()) {
      transfer.too_long = true;
      return 0;  // ends it
    }
    body.append(bytes, size);
    return size;
  }

  // Gives the answer back.
  void finish(CURLcode code) {
    long status = 0;
    char* type = nullptr;
    curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(easy, CURLINFO_CONTENT_TYPE, &type);
    if (too_long) {
      fetch->error = "the policy is longer than 64 KiB";
    } else if (code != CURLE_OK) {
      fetch->error = error[0] != '\0' ? error : curl_easy_strerror(code);
      fetch->untrusted = code == CURLE_PEER_FAILED_VERIFICATION;
      fetch->aborted = code == CURLE_ABORTED_BY_CALLBACK;  // run() ends: no callback of ours does that
    } else if (!fetch->upload.empty() ? status / 100 != 2 : status != 200) {
      fetch->error = fmt::format("the server answers {}", status);
    } else if (fetch->upload.empty() && !is_plain_text(type)) {
      fetch->error = "what the server sends is not text/plain";
    } else {
      fetch->fetched = true;
    }
    delivery::StsFetch::give_back(std::move(fetch));
  }

  std::unique_ptr<delivery::StsFetch> fetch;
  CURL* easy = nullptr;
  curl_slist* resolve = nullptr;
  curl_slist* headers = nullptr;
  char error[CURL_ERROR_SIZE] = {};
  bool too_long = false;
};

PolicyFetcher::PolicyFetcher() {
  static const CURLcode started = curl_global_init(CURL_GLOBAL_DEFAULT);
  usable_ = started == CURLE_OK;
  if (!usable_) log::error("libcurl: {}; no MTA-STS policies are fetched, and no TLS reports sent", curl_easy_strerror(started));
}

PolicyFetcher::~PolicyFetcher() { stop(); }

bool PolicyFetcher::submit(std::unique_ptr<delivery::StsFetch> fetch) {
  std::lock_guard lock(mutex_);
  if (!usable_ || stopping_ || waiting_.size() >= kMostWaiting) return false;
  if (multi_ == nullptr) {
    multi_ = curl_multi_init();
    if (multi_ == nullptr) end_out_of_memory();
    thread_ = std::thread([this] { run(); });
  }
  waiting_.push_back(std::move(fetch));
  curl_multi_wakeup(multi_);
  return true;
}

void PolicyFetcher::run() {
  CURLM* multi = multi_;
  std::vector<std::unique_ptr<Transfer>> transfers;
  const auto finish = [&](CURL* easy, CURLcode code) {
    curl_multi_remove_handle(multi, easy);
    const auto at = std::find_if(transfers.begin(), transfers.end(), [&](const auto& one) { return one->easy == easy; });
    (*at)->finish(code);
    transfers.erase(at);
  };
  while (true) {
    {
      std::lock_guard lock(mutex_);
      if (stopping_) break;
      while (!waiting_.empty() && transfers.size() < kMostAtOnce) {
        transfers.push_back(std::make_unique<Transfer>(std::move(waiting_.front())));
        waiting_.pop_front();
        curl_multi_add_handle(multi, transfers.back()->easy);
      }
    }
    int running = 0;
    curl_multi_perform(multi, &running);
    int left = 0;
    bool ended = false;
    while (CURLMsg* message = curl_multi_info_read(multi, &left)) {
      if (message->msg != CURLMSG_DONE) continue;
      finish(message->easy_handle, message->data.result);
      ended = true;
    }
    // Those that wait come next; else until something happens, submit() included.
    if (!ended) curl_multi_poll(multi, nullptr, 0, 10'000, nullptr);
  }
  while (!transfers.empty()) finish(transfers.back()->easy, CURLE_ABORTED_BY_CALLBACK);
}

void PolicyFetcher::stop() {
  std::deque<std::unique_ptr<delivery::StsFetch>> dropped;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    dropped.swap(waiting_);
    if (multi_ != nullptr) curl_multi_wakeup(multi_);
  }
  for (auto& fetch : dropped) {
    fetch->error = "the relay stops";
    fetch->aborted = true;
    delivery::StsFetch::give_back(std::move(fetch));
  }
  if (thread_.joinable()) thread_.join();
  if (multi_ != nullptr) curl_multi_cleanup(multi_);
  multi_ = nullptr;
}

}  // namespace millrace::relay
