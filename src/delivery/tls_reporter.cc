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
constexpr std::string_view kBegan = "began";  // a key

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
  period_.marked.clear();
  for (const auto& [due_ms, name] : std::exchange(due_, {})) {
    store(name, "", nullptr);
    reports_.erase(name);
  }
}

void TlsReporter::recover(std::string_view key, std::string_view value) {
  const size_t slash = key.find('/');
  int64_t start_s = 0;
  if (key == kBegan) {
    std::from_chars(value.data(), value.data() + value.size(), began_s_);
    return;
  }
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
  // Of today is what began today: the newest of it is gone on with, unless it is known that a later period has begun.
  const int64_t newest = now_s() + kClockSlackS;
  const int64_t midnight = now_s() / kDayS * kDayS;
  std::set<int64_t> starts;
  for (const auto& [name, report] : reports_) starts.insert(report->start_s);
  const auto after = starts.upper_bound(newest);
  const int64_t last = after == starts.begin() ? 0 : *std::prev(after);
  const int64_t start_s = began_s_ >= midnight && began_s_ <= newest ? began_s_ : last >= midnight ? last : midnight;
  starts.insert(start_s);
  set_start(start_s);
  size_t dropped = 0;
  std::vector<std::string> moved;
  for (auto& [name, report] : std::exchange(reports_, {})) {
    if (report->start_s == start_s) {
      period_.counts.add(report->domain, report->counted);
    } else if (report->start_s > newest) {  // counted under a clock that was wrong
      period_.counts.add(report->domain, report->counted);
      mark(report->domain);
      moved.push_back(name);
    } else {
      const auto next = starts.upper_bound(report->start_s);
      const int64_t end_s = std::min(midnight_after(report->start_s), next == starts.end() ? INT64_MAX : *next);
      dropped += !add_report(report->domain, report->start_s, end_s, std::move(report->counted), false);
    }
  }
  warn_dropped(dropped);
  if (!moved.empty()) write(SIZE_MAX);
  for (const std::string& name : moved) store(name, "", nullptr);
  if (!options_.on) forget();
  gather_at_ = io_.now() + kGatherNs;
  arm();
}

// ---- counting

void TlsReporter::mark(const std::string& domain) {
  if (period_.marked.insert(domain).second) period_.changed.push_back(domain);
}

void TlsReporter::take(TlsCounts counts) {
  const uint64_t before = period_.counts.left_out();
  period_.counts.add(counts);
  stats_.left_out += period_.counts.left_out() - before;
  for (const auto& [domain, counted] : counts.domains()) {
    if (period_.counts.domains().contains(domain)) mark(domain);
  }
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

void TlsReporter::write(size_t most) {
  ++writes_;
  auto left = std::make_shared<size_t>(1);
  const auto stored = [this, alive = alive_, left] {
    if (--*left > 0 || !*alive || --writes_ > 0) return;
    if (!running_ || period_.changed.empty()) return;
    write_at_ = io_.now() + kWriteAgainNs;
    arm();
  };
  for (; most > 0 && !period_.changed.empty(); --most) {
    const std::string domain = std::move(period_.changed.front());
    period_.changed.pop_front();
    period_.marked.erase(domain);
    ++*left;
    store(key(period_.start_s, domain), encode(period_.counts.domains().at(domain)), stored);
  }
  stored();
}

// One batch at a time: while the spool cannot be written, what waits for it must not grow.
void TlsReporter::write_some() {
  write_at_ = INT64_MAX;
  if (writes_ == 0) write(kMostWritten);
}

int64_t TlsReporter::free_start(int64_t second) const {
  const auto taken = [this](int64_t start_s) {
    const std::string front = key(start_s, {});
    const auto at = reports_.lower_bound(front);
    return at != reports_.end() && at->first.starts_with(front);
  };
  while (taken(second)) ++second;
  return second;
}

void TlsReporter::set_start(int64_t start_s) {
  period_.start_s = start_s;
  const int64_t began_s = start_s % kDayS == 0 ? 0 : start_s;
  if (std::exchange(began_s_, began_s) == began_s) return;
  store(fmt::format("tlsrpt/{}", kBegan), began_s == 0 ? "" : std::to_string(began_s), nullptr);
}

void TlsReporter::follow_clock_back() {
  const int64_t wrong_s = period_.start_s;
  set_start(free_start(now_s()));
  log::warning("TLS reports: the clock has been put back; what was counted meanwhile is counted as of now");
  for (const auto& [domain, counted] : period_.counts.domains()) mark(domain);
  write(SIZE_MAX);
  for (const auto& [domain, counted] : period_.counts.domains()) store(key(wrong_s, domain), "", nullptr);
}

// The next one has begun at its end.
void TlsReporter::end_period(int64_t end_s, bool at_once) {
  // What has not been stored is, so that a restart finds it.
  write(SIZE_MAX);
  write_at_ = INT64_MAX;
  Period ended = std::exchange(period_, {});
  size_t dropped = 0;
  for (const auto& [domain, counted] : ended.counts.domains()) {
    dropped += !add_report(domain, ended.start_s, end_s, counted, at_once);
  }
  warn_dropped(dropped);
  set_start(free_start(end_s));
  if (ended.counts.left_out() > 0) {
    log::warning("TLS reports: {} sessions were to more domains than are counted, and are in no report", ended.counts.left_out());
  }
}

void TlsReporter::warn_dropped(size_t reports) {
  if (reports == 0) return;
  log::warning("TLS reports: {} are dropped, since {} wait already", reports, reports_.size());
}

bool TlsReporter::add_report(const std::string& domain, int64_t start_s, int64_t end_s, TlsCounts::Domain counted, bool at_once) {
  const std::string name = key(start_s, domain);
  if (const auto same = reports_.find(name); same != reports_.end()) {
    // It may be under way, and be known by its place.
    TlsCounts both;
    both.add(domain, same->second->counted);
    both.add(domain, counted);
    same->second->counted = both.domains().at(domain);
    store(name, encode(same->second->counted), nullptr);
    return true;
  }
  if (reports_.size() >= kMostPeriods * TlsCounts::kMostDomains) {
    ++stats_.given_up;
    store(name, "", nullptr);
    return false;
  }
  auto& place = reports_[name];
  place = std::make_unique<Report>();
  Report& report = *place;
  report.reporter = this;
  const int64_t now_ms = io_.wall_ms();
  report.due_ms = at_once ? now_ms : std::min((end_s + delay_s(domain, options_.node)) * 1000, now_ms + kLongestDelayS * 1000);
  report.domain = domain;
  report.start_s = start_s;
  report.end_s = end_s;
  report.counted = std::move(counted);
  due_.emplace(report.due_ms, name);
  return true;
}

// None is due later than this, but by a clock that was wrong.
void TlsReporter::bring_forward() {
  const int64_t latest_ms = io_.wall_ms() + std::max(kLongestDelayS, kLongestRetryS) * 1000;
  while (!due_.empty() && due_.rbegin()->first > latest_ms) {
    const auto last = std::prev(due_.end());
    Report& report = *reports_.at(last->second);
    report.due_ms = latest_ms;
    report.give_up_ms = 0;
    due_.emplace(latest_ms, last->second);
    due_.erase(last);
  }
}

void TlsReporter::arm() {
  if (!options_.on) return timer_.cancel();
  const int64_t wall_ms = io_.wall_ms();
  int64_t at = std::min(gathering_ ? INT64_MAX : gather_at_, write_at_);
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
  const bool new_period = now_s() >= midnight_after(period_.start_s) || clock_went_back();
  if (!gathering_ && (new_period || io_.now() >= gather_at_)) {
    gather_at_ = INT64_MAX;
    gather_then([this] {
      gather_at_ = io_.now() + kGatherNs;
      if (!running_) return;
      const int64_t midnight = midnight_after(period_.start_s);
      if (now_s() >= midnight) {
        end_period(midnight, false);
        set_start(free_start(now_s() / kDayS * kDayS));
      } else {
        if (clock_went_back()) follow_clock_back();
        write_some();
      }
      arm();
    });
  }
  if (io_.now() >= write_at_) write_some();
  bring_forward();
  send_due();
  arm();
}

void TlsReporter::send_now(std::function<void(size_t)> done) {
  gather_then([this, done = std::move(done)] {
    if (clock_went_back()) follow_clock_back();
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

// Not when all is written: that may never be, and the spool writes what it can before it closes.
void TlsReporter::stop(std::function<void()> done) {
  running_ = false;
  timer_.cancel();
  if (!options_.on) return done();
  gather_then([this, done = std::move(done)] {
    write(SIZE_MAX);
    done();
  });
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
  if (report.give_up_ms == 0) {
    const int64_t now_ms = io_.wall_ms();
    report.give_up_ms = std::clamp((report.end_s + kOldestS) * 1000, now_ms, now_ms + kGiveUpS * 1000);
  }
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
  report.wanted = true;
  std::string id = fmt::format("{}-{}.{}.{}@{}", report.start_s, report.end_s, report.domain, spool_, options_.node);
  TlsReportHead head{options_.organization, options_.contact, std::move(id), report.start_s, report.end_s};
  report.body = gzip(tls_report(head, report.counted));
  report.left = addresses->https;
  post_next(report);
}

void TlsReporter::post_next(Report& report) {
  while (!report.left.empty() && report.posted.contains(report.left.back())) report.left.pop_back();
  if (report.left.empty()) {
    if (report.failed) return retry(report, std::move(report.why));
    if (report.posted.empty()) return remove(report);  // none of its addresses is one
    ++stats_.sent;
    log::info("TLS report for {} sent: {} sessions good, {} failed", report.domain, successful_of(report.counted),
              failed_of(report.counted));
    return remove(report);
  }
  const std::optional<HttpsUrl> url = read_https_url(report.left.back());
  if (!url) {
    log::info("TLS report for {}: {} is no URL that reports can be posted to", report.domain, report.left.back());
    report.left.pop_back();
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
  // At a stop it is left to the next start.
  if (running_ && next_ms > report.give_up_ms) return give_up(report, why);
  if (running_ && report.wanted) {
    log::info("TLS report for {} could not be sent: {}; again in {} s", report.domain, why, report.wait_s);
  }
  report.why = std::move(why);
  report.due_ms = next_ms;
  --busy_;
  report.body.clear();
  due_.emplace(next_ms, key(report.start_s, report.domain));
  if (running_) arm();
}

void TlsReporter::give_up(Report& report, const std::string& why) {
  if (!report.posted.empty()) {
    ++stats_.sent;
    log::info("TLS report for {} sent to {} of its addresses; not to all: {}", report.domain, report.posted.size(), why);
  } else if (report.wanted) {
    ++stats_.given_up;
    log::warning("TLS report for {} given up: {}", report.domain, why);
  } else {
    log::debug("no TLS report for {}: {}", report.domain, why);  // most domains want none
  }
  remove(report);
}

void TlsReporter::remove(Report& report) {
  const std::string name = key(report.start_s, report.domain);
  --busy_;
  store(name, "", nullptr);
  reports_.erase(name);
  if (running_) arm();
}

}  // namespace millrace::delivery
