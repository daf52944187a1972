#include "bounce/reports.h"

#include "base/log.h"

namespace millrace::bounce {
namespace {

// Past so many senders in an hour the count begins anew: it guards one mailbox, not the machine.
constexpr size_t kMostSenders = 100'000;

dsn::ReportKind kind_of(queue::ReportKind kind) {
  switch (kind) {
    case queue::ReportKind::failed: return dsn::ReportKind::failed;
    case queue::ReportKind::expired: return dsn::ReportKind::expired;
    case queue::ReportKind::delivered: return dsn::ReportKind::relayed;
  }
  UNREACHABLE();
}

}  // namespace

struct Reports::Job {
  Reports* reports = nullptr;
  queue::ReportRequest* request = nullptr;
  dsn::Report report;
  ingress::Injection injection;
};

Reports::Reports(reactor::Io& io, config::Snapshot config, ingress::Injector& injector)
    : io_(io), config_(std::move(config)), injector_(injector), ids_(io.random(), 0) {
  skip_.bind<&Reports::on_skipped>(this);
}

Reports::~Reports() { skip_.cancel(); }

bool Reports::wants(const queue::Message& message, uint32_t recipient, queue::ReportKind kind,
                    bool receiver_reports) {
  dsn::ReportPolicy policy;
  policy.failures = config_->reports != config::Reports::none;
  policy.successes = config_->reports == config::Reports::all;
  policy.delays = config_->delay_reports;
  return dsn::report_due(policy, kind_of(kind), message.envelope.reverse_path,
                         message.envelope.recipients[recipient].notify, receiver_reports);
}

bool Reports::within_limit(std::string_view reverse_path) {
  int64_t hour = io_.now() / 3'600'000'000'000;
  if (hour != hour_ || this_hour_.size() > kMostSenders) {
    hour_ = hour;
    this_hour_.clear();
  }
  return ++this_hour_[std::string(reverse_path)] <= config_->reports_per_hour;
}

void Reports::report(queue::ReportRequest& request) {
  const queue::Message& message = *request.message;
  if (!within_limit(message.envelope.reverse_path)) {
    ++stats_.over_limit;
    skipped_.push_back(&request);
    io_.defer(skip_);
    return;
  }
  std::unique_ptr<Job> job;
  if (free_.empty()) {
    job = std::make_unique<Job>();
    job->reports = this;
    job->injection.owner = job.get();
    job->injection.done = &Reports::on_injected;
    job->injection.report = true;
  } else {
    job = std::move(free_.back());
    free_.pop_back();
  }
  job->request = &request;
  std::vector<dsn::ReportedRecipient> recipients;
  for (const queue::ReportLine& line : request.lines) {
    const mail::Recipient& to = message.envelope.recipients[line.recipient];
    dsn::ReportedRecipient& reported = recipients.emplace_back();
    reported.kind = kind_of(line.kind);
    reported.address = to.address;
    reported.orcpt = to.orcpt;
    reported.code = line.result.code;
    reported.enhanced = line.result.enhanced;
    reported.reply = line.result.reply;
    reported.mx = line.mx;
    reported.last_attempt_ms = io_.wall_ms();
  }
  dsn::ReportSource source;
  source.hostname = config_->hostname;
  source.envelope = &message.envelope;
  source.message = message.id;
  source.id = ids_.make(io_.wall_ms());
  source.content = &message.content;
  source.recipients = recipients;
  source.now_ms = io_.wall_ms();
  source.random = io_.random();
  job->report = dsn::build_report(source);
  job->injection.envelope = std::move(job->report.envelope);
  job->injection.content = job->report.content;
  ingress::Injection& injection = job.release()->injection;
  injector_.inject(injection);
}

void Reports::on_skipped() {
  std::vector<queue::ReportRequest*> skipped = std::move(skipped_);
  skipped_.clear();
  for (queue::ReportRequest* request : skipped) request->done(request->owner, *request);
}

void Reports::on_injected(void* self, ingress::Injection& injection) {
  std::unique_ptr<Job> job(static_cast<Job*>(self));
  Reports& reports = *job->reports;
  queue::ReportRequest& request = *job->request;
  request.sent = injection.accepted();
  if (request.sent) {
    ++reports.stats_.sent;
  } else {
    ++reports.stats_.failed;
    log::warning("message {}: the report to <{}> could not be stored: {}", request.message->id.to_string(),
                 request.message->envelope.reverse_path, injection.text);
  }
  reports.free_.push_back(std::move(job));
  request.done(request.owner, request);
}

}  // namespace millrace::bounce
