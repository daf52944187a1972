#include "delivery/tls_reporter.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "base/log.h"
#include "dns/address_rules.h"

namespace millrace::delivery {
namespace {

constexpr int64_t kDayS = 86'400;
constexpr int64_t kMillisecond = 1'000'000;

int64_t midnight_after(int64_t seconds) { return (seconds / kDayS + 1) * kDayS; }

// The same in every run, and different for all: reports do not come all at once (RFC 8460 4.1).
int64_t delay_s(std::string_view domain, std::string_view node) {
  uint64_t hash = 0xcbf29ce484222325;
  for (std::string_view text : {domain, node}) {
    for (char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  }
  constexpr uint64_t kRange = TlsReporter::kLongestDelayS - TlsReporter::kShortestDelayS;
  return TlsReporter::kShortestDelayS + static_cast<int64_t>((hash >> 20) % kRange);
}

}  // namespace

TlsReporter::TlsReporter(reactor::Io& io, dns::Cache& cache) : io_(io), cache_(cache) {
  timer_.bind<&TlsReporter::on_timer>(this);
}

TlsReporter::~TlsReporter() {
  *alive_ = false;
  for (const auto& [name, report] : reports_) {
    if (report->job != nullptr) report->job->owner = nullptr;
  }
}

std::string TlsReporter::key(int64_t start_s, const std::string& domain) { return fmt::format("tlsrpt/{}/{}", start_s, domain); }

void TlsReporter::configure(Options options) {
  options_ = std::move(options);
  if (!running_) return;
  if (!options_.on) forget();
  arm();
}

// Nobody wants reports any more. Those under way go on.
void TlsReporter::forget() {
  for (const auto& [domain, counted] : period_.counts.domains()) store(key(period_.start_s, domain), "", nullptr);
  period_.counts = {};
  period_.changed.clear();
  for (const auto& [due_ms, name] : std::exchange(due_, {})) {
    store(name, "", nullptr);
    reports_.erase(name);
  }
}

void TlsReporter::recover(std::string_view key, std::string_view value) {
  const size_t slash = key.find('/');
  int64_t start_s = 0;
  const auto [end, error] = std::from_chars(key.data(), key.data() + std::min(slash, key.size()), start_s);
  std::optional<TlsCounts::Domain> counted = decode_tls_counts(value);
  if (slash == key.npos || error != std::errc() || end != key.data() + slash || start_s < 0 || !counted) return;
  const std::string domain(key.substr(slash + 1));
  auto& report = reports_[TlsReporter::key(start_s, domain)];
  report = std::make_unique<Report>();
  report->domain = domain;
  report->start_s = start_s;
  report->counted = std::move(*counted);
}

void TlsReporter::start() {
  running_ = true;
  // Of today is what began today: the newest of it is gone on with.
  const int64_t now = now_s();
  const int64_t midnight = now / kDayS * kDayS;
  period_.start_s = midnight;
  for (const auto& [name, report] : reports_) {
    if (report->start_s <= now) period_.start_s = std::max(period_.start_s, report->start_s);
  }
  for (auto& [name, report] : std::exchange(reports_, {})) {
    if (report->start_s == period_.start_s) {
      period_.counts.add(report->domain, report->counted);
      continue;
    }
    const int64_t end_s = std::min(midnight_after(report->start_s), std::max(period_.start_s, report->start_s + 1));
    add_report(report->domain, report->start_s, end_s, std::move(report->counted), false);
  }
  if (!options_.on) forget();
  gather_at_ = io_.now() + kGatherNs;
  arm();
}

// ---- counting

void TlsReporter::take(TlsCounts counts) {
  for (const auto& [domain, counted] : counts.domains()) period_.changed.insert(domain);
  const uint64_t before = period_.counts.left_out();
  period_.counts.add(counts);
  stats_.left_out += period_.counts.left_out() - before;
}

void TlsReporter::gather_then(std::function<void()> done) {
  gathered_.push_back(std::move(done));
  if (std::exchange(gathering_, true)) return;
  gather([this, alive = alive_](TlsCounts counts) {
    if (!*alive) return;
    gathering_ = false;
    take(std::move(counts));
    for (const auto& then : std::exchange(gathered_, {})) then();
  });
}

void TlsReporter::write(size_t most, const std::function<void()>& done) {
  auto left = std::make_shared<size_t>(1);
  const auto stored = [left, done] {
    if (--*left == 0 && done) done();
  };
  const auto& domains = period_.counts.domains();
  for (auto at = period_.changed.begin(); at != period_.changed.end() && most > 0; --most) {
    const auto counted = domains.find(*at);
    if (counted != domains.end()) {
      ++*left;
      store(key(period_.start_s, *at), encode(counted->second), stored);
    }
    at = period_.changed.erase(at);
  }
  stored();
}

void TlsReporter::end_period(int64_t end_s, bool at_once) {
  // What has not been stored is, so that a restart finds it.
  write(SIZE_MAX, nullptr);
  Period ended = std::exchange(period_, {});
  period_.start_s = end_s;
  for (const auto& [domain, counted] : ended.counts.domains()) add_report(domain, ended.start_s, end_s, counted, at_once);
  if (ended.counts.left_out() > 0) {
    log::warning("TLS reports: {} sessions were to more domains than are counted, and are in no report", ended.counts.left_out());
  }
}

void TlsReporter::add_report(std::string domain, int64_t start_s, int64_t end_s, TlsCounts::Domain counted, bool at_once) {
  const std::string name = key(start_s, domain);
  if (reports_.size() >= kMostPeriods * TlsCounts::kMostDomains) {
    ++stats_.given_up;
    store(name, "", nullptr);
    return;
  }
  auto& place = reports_[name];
  place = std::make_unique<Report>();
  Report& report = *place;
  report.reporter = this;
  report.due_ms = at_once ? io_.wall_ms() : (end_s + delay_s(domain, options_.node)) * 1000;
  report.give_up_ms = report.due_ms + kGiveUpS * 1000;
  report.domain = std::move(domain);
  report.start_s = start_s;
  report.end_s = end_s;
  report.counted = std::move(counted);
  due_.emplace(report.due_ms, name);
}

void TlsReporter::arm() {
  if (!options_.on) return timer_.cancel();
  const int64_t wall_ms = io_.wall_ms();
  int64_t at = gather_at_;
  const int64_t midnight_ms = midnight_after(period_.start_s) * 1000;
  if (!gathering_) at = std::min(at, io_.now() + std::max<int64_t>(0, midnight_ms - wall_ms) * kMillisecond);
  if (!due_.empty() && busy_ < kMostAtOnce) {
    at = std::min(at, io_.now() + std::max<int64_t>(0, due_.begin()->first - wall_ms) * kMillisecond);
  }
  if (at == INT64_MAX) return timer_.cancel();  // what is gathered arms it
  io_.timers().arm(timer_, at);
}

void TlsReporter::on_timer() {
  if (!running_) return;
  const bool new_day = now_s() >= midnight_after(period_.start_s);
  if (!gathering_ && (new_day || io_.now() >= gather_at_)) {
    gather_at_ = INT64_MAX;
    gather_then([this] {
      gather_at_ = io_.now() + kGatherNs;
      if (!running_) return;
      const int64_t midnight = midnight_after(period_.start_s);
      if (now_s() >= midnight) {
        end_period(midnight, false);
        period_.start_s = now_s() / kDayS * kDayS;
      } else {
        write(kMostWritten, nullptr);
      }
      arm();
    });
  }
  send_due();
  arm();
}

void TlsReporter::send_now(std::function<void(size_t)> done) {
  gather_then([this, done = std::move(done)] {
    // Periods have keys of their own, by their second.
    const int64_t now = std::max(now_s(), period_.start_s + 1);
    if (!period_.counts.empty()) end_period(now, true);
    for (const auto& [due_ms, name] : std::exchange(due_, {})) {
      reports_.at(name)->due_ms = io_.wall_ms();
      due_.emplace(io_.wall_ms(), name);
    }
    done(reports_.size());
    if (running_) arm();
  });
}

void TlsReporter::stop(std::function<void()> done) {
  running_ = false;
  timer_.cancel();
  if (!options_.on) return done();
  gather_then([this, done = std::move(done)] { write(SIZE_MAX, done); });
}

std::vector<TlsReporter::Row> TlsReporter::rows() const {
  std::vector<Row> out;
  for (const auto& [domain, counted] : period_.counts.domains()) {
    out.push_back({domain, period_.start_s, successful_of(counted), failed_of(counted), 0, {}});
  }
  for (const auto& [name, report] : reports_) {
    out.push_back({report->domain, report->start_s, successful_of(report->counted), failed_of(report->counted), report->due_ms,
                   report->why});
  }
  std::sort(out.begin(), out.end(), [](const Row& a, const Row& b) {
    return a.failed != b.failed ? a.failed > b.failed : a.domain != b.domain ? a.domain < b.domain : a.start_s < b.start_s;
  });
  return out;
}

// ---- sending

void TlsReporter::send_due() {
  while (busy_ < kMostAtOnce && !due_.empty() && due_.begin()->first <= io_.wall_ms()) {
    const std::string name = due_.begin()->second;
    due_.erase(due_.begin());
    begin(*reports_.at(name));
  }
}

void TlsReporter::begin(Report& report) {
  ++busy_;
  report.failed = false;
  report.why.clear();
  const std::string name = "_smtp._tls." + report.domain;
  if (!dns::is_host_name(name)) return remove(report);
  cache_.lookup(name, dns::Type::txt, [this, alive = alive_, &report](const dns::AnswerRef& answer) {
    if (*alive) on_record(report, *answer);
  });
}

void TlsReporter::on_record(Report& report, const dns::Answer& answer) {
  if (answer.outcome == dns::Outcome::failure || answer.outcome == dns::Outcome::malformed) {
    return retry(report, "its TXT record at _smtp._tls cannot be had");
  }
  const std::optional<TlsReportAddresses> addresses =
      answer.outcome == dns::Outcome::records ? read_tlsrpt_record(answer.texts) : std::nullopt;
  if (!addresses) return remove(report);  // it wants none
  if (addresses->https.empty()) {
    if (!addresses->mailto.empty()) {
      ++stats_.mail_only;
      log::info("TLS report for {} is not sent: it wants it by mail ({}), and reports by mail must be signed, which is not possible yet",
                report.domain, addresses->mailto.front());
    }
    return remove(report);
  }
  TlsReportHead head{options_.organization, options_.contact,
                     fmt::format("{}.{}@{}", report.start_s, report.domain, options_.node), report.start_s, report.end_s};
  report.body = gzip(tls_report(head, report.counted));
  report.left = addresses->https;
  post_next(report);
}

void TlsReporter::post_next(Report& report) {
  while (!report.left.empty() && report.posted.contains(report.left.back())) report.left.pop_back();
  if (report.left.empty()) {
    if (report.failed) return retry(report, std::move(report.why));
    ++stats_.sent;
    log::info("TLS report for {} sent: {} sessions good, {} failed", report.domain, successful_of(report.counted),
              failed_of(report.counted));
    return remove(report);
  }
  const std::optional<HttpsUrl> url = read_https_url(report.left.back());
  if (!url) {
    log::info("TLS report for {}: {} is no URL that reports can be posted to", report.domain, report.left.back());
    report.left.pop_back();
    report.failed = true;
    report.why = "its address is no URL that reports can be posted to";
    return post_next(report);
  }
  report.url = *url;
  report.addresses.clear();
  report.lookups = options_.ipv6 ? 2 : 1;
  const auto on_answer = [this, alive = alive_, &report](const dns::AnswerRef& answer) {
    if (*alive) on_address(report, *answer);
  };
  const int lookups = report.lookups;
  cache_.lookup(report.url.host, dns::Type::a, on_answer);
  if (lookups == 2) cache_.lookup(report.url.host, dns::Type::aaaa, on_answer);
}

void TlsReporter::on_address(Report& report, const dns::Answer& answer) {
  for (const reactor::Address& address : answer.addresses) {
    if (options_.allow_private || dns::why_not_public(address).empty()) report.addresses.push_back(address);
  }
  if (--report.lookups > 0) return;
  post(report);
}

void TlsReporter::post(Report& report) {
  const auto not_now = [&](std::string why) {
    report.failed = true;
    report.why = std::move(why);
    report.left.pop_back();
    post_next(report);
  };
  if (report.addresses.empty()) return not_now(fmt::format("{} has no address that may be posted to", report.url.host));
  if (fetcher_ == nullptr || !running_) return not_now("nothing can be posted now");
  auto job = std::make_unique<StsFetch>();
  job->host = report.url.host;
  job->port = report.url.port;
  job->target = report.url.target;
  job->upload = report.body;
  job->upload_type = "application/tlsrpt+gzip";
  job->addresses = report.addresses;
  job->authorities = options_.authorities;
  job->mailbox = mailbox_;
  job->owner = &report;
  job->done = [](void* owner, StsFetch& done) {
    auto* one = static_cast<Report*>(owner);
    one->job = nullptr;
    one->reporter->on_posted(*one, done);
  };
  report.job = job.get();
  if (fetcher_->submit(std::move(job))) return;
  report.job = nullptr;
  not_now("too much else is being fetched and posted");
}

void TlsReporter::on_posted(Report& report, StsFetch& job) {
  if (job.fetched) {
    report.posted.insert(report.left.back());
  } else {
    report.failed = true;
    report.why = fmt::format("{}: {}", report.left.back(), job.error);
  }
  report.left.pop_back();
  post_next(report);
}

void TlsReporter::retry(Report& report, std::string why) {
  report.wait_s = report.wait_s == 0 ? kFirstRetryS : std::min(2 * report.wait_s, kLongestRetryS);
  const int64_t next_ms = io_.wall_ms() + report.wait_s * 1000;
  if (next_ms > report.give_up_ms) {
    ++stats_.given_up;
    log::warning("TLS report for {} given up: {}", report.domain, why);
    return remove(report);
  }
  log::info("TLS report for {} could not be sent: {}; again in {} s", report.domain, why, report.wait_s);
  report.why = std::move(why);
  report.due_ms = next_ms;
  --busy_;
  report.body.clear();
  due_.emplace(next_ms, key(report.start_s, report.domain));
  if (running_) arm();
}

void TlsReporter::remove(Report& report) {
  const std::string name = key(report.start_s, report.domain);
  --busy_;
  store(name, "", nullptr);
  reports_.erase(name);
  if (running_) arm();
}

}  // namespace millrace::delivery
