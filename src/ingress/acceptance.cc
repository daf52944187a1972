#include "ingress/acceptance.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "config/shaping.h"
#include "config/values.h"
#include "events/json.h"
#include "mail/mailbox_list.h"
#include "queue/state.h"
#include "smtp/rewrite.h"
#include "smtp/xtext.h"

namespace millrace::ingress {
namespace {

constexpr uint32_t kPrivateBufferMost = 256 * 1024;
constexpr uint32_t kPage = 4096;
constexpr size_t kLongestEnvid = 100;  // RFC 3461 4.4
constexpr size_t kLongestName = 255;   // of a pool or job

constexpr std::string_view kQueuedAs = "Ok: queued as ";

bool is_no(std::string_view text) {
  return text.size() == 2 && (text[0] == 'n' || text[0] == 'N') && (text[1] == 'o' || text[1] == 'O');
}

uint32_t round_to_page(uint64_t size) {
  return static_cast<uint32_t>((size + kPage - 1) / kPage * kPage);
}

// A message in many small pieces costs a page of the log, a span of every send and 48 bytes of memory
// for each of them: past these bounds they are joined as they come.
constexpr size_t kManyPieces = 64;
constexpr uint64_t kSmallPiece = 1024;

}  // namespace

// ---- Submission

void Submission::append(std::string_view bytes, const reactor::BufferRef& buffer) {
  if (bytes.empty()) return;
  auto& kept = message->buffers;
  if (!pieces().empty()) {
    spool::Piece& last = pieces().back();
    if (last.buffer == buffer.get() && last.data + last.size == bytes.data()) {
      last.size += static_cast<uint32_t>(bytes.size());
      bytes_ += bytes.size();
      return;
    }
  }
  pieces().push_back({bytes.data(), static_cast<uint32_t>(bytes.size()), buffer.get()});
  kept.push_back(buffer);
  bytes_ += bytes.size();

  size_t fresh = pieces().size() - settled_;
  if (fresh < kManyPieces) return;
  uint64_t size = 0;
  for (size_t i = settled_; i < pieces().size(); ++i) size += pieces()[i].size;
  if (size < fresh * kSmallPiece) {
    compact();
  } else {
    settled_ = pieces().size();
  }
}

bool Submission::append_copy(std::string_view bytes) {
  while (!bytes.empty()) {
    uint32_t room = private_ ? private_->size - private_used_ : 0;
    if (room == 0) {
      uint32_t wanted = round_to_page(std::min<uint64_t>(bytes.size(), kPrivateBufferMost));
      reactor::BufferRef fresh = acceptance_.buffers().allocate(wanted);
      if (!fresh) return false;
      private_ = std::move(fresh);
      private_used_ = 0;
      room = private_->size;
    }
    uint32_t size = static_cast<uint32_t>(std::min<size_t>(room, bytes.size()));
    char* to = private_->data + private_used_;
    std::memcpy(to, bytes.data(), size);
    private_used_ += size;
    acceptance_.context().stats.body_bytes_copied += size;
    append({to, size}, private_);
    settled_ = pieces().size();  // a private buffer holds nothing else
    bytes.remove_prefix(size);
  }
  return true;
}

void Submission::compact() {
  auto& list = pieces();
  auto& kept = message->buffers;
  // A piece that fills half of its buffer pins little that is not its own.
  auto wasteful = [&](const spool::Piece& piece) {
    return uint64_t{piece.size} * 2 < piece.buffer->size;
  };
  uint64_t left = 0;
  for (size_t i = settled_; i < list.size(); ++i) {
    if (wasteful(list[i])) left += list[i].size;
  }
  size_t to = settled_;
  size_t from = settled_;
  for (; from < list.size(); ++from) {
    spool::Piece piece = list[from];
    reactor::BufferRef buffer = std::move(kept[from]);
    if (wasteful(piece)) {
      if (!private_ || private_->size - private_used_ < piece.size) {
        uint64_t wanted = std::max<uint64_t>(piece.size, std::min<uint64_t>(left, kPrivateBufferMost));
        reactor::BufferRef fresh = acceptance_.buffers().allocate(round_to_page(wanted));
        if (!fresh) {  // no room to move to: the rest stays where it is
          kept[from] = std::move(buffer);
          break;
        }
        private_ = std::move(fresh);
        private_used_ = 0;
      }
      char* place = private_->data + private_used_;
      std::memcpy(place, piece.data, piece.size);
      private_used_ += piece.size;
      left -= piece.size;
      acceptance_.context().stats.body_bytes_copied += piece.size;
      piece.data = place;
      piece.buffer = private_.get();
      buffer = private_;
    }
    if (to > 0 && list[to - 1].buffer == piece.buffer &&
        list[to - 1].data + list[to - 1].size == piece.data) {
      list[to - 1].size += piece.size;
      continue;
    }
    list[to] = piece;
    kept[to] = std::move(buffer);
    ++to;
  }
  settled_ = to;
  for (; from < list.size(); ++from, ++to) {
    if (to == from) continue;
    list[to] = list[from];
    kept[to] = std::move(kept[from]);
  }
  list.resize(to);
  kept.resize(to);
}

// ---- Acceptance

Acceptance::Acceptance(Context& context)
    : context_(context), buffers_(context.io.buffers(reactor::BufferGroup::ingress)) {}

Acceptance::~Acceptance() { ASSERT(submissions_ == 0); }

const SettingsRef& Acceptance::settings() {
  if (!settings_ || settings_->config != *context_.config) {
    settings_ = std::make_shared<const Settings>(*context_.config);
  }
  return settings_;
}

Submission& Acceptance::begin() {
  std::unique_ptr<Submission> submission;
  if (free_.empty()) {
    submission.reset(new Submission(*this));
  } else {
    submission = std::move(free_.back());
    free_.pop_back();
  }
  ++submissions_;
  submission->message = queue::MessageRef::make();
  return *submission.release();  // release() takes it back
}

void Acceptance::refund(Submission& submission) {
  if (submission.quota_charged > 0) {
    context_.quotas->refund(submission.message->envelope.tenant, std::exchange(submission.quota_charged, 0),
                            submission.quota_charged_at, context_.io.now());
  }
  if (submission.charged == 0) return;
  context_.accounts->refund(submission.message->envelope.account, submission.charged, submission.charged_at,
                            context_.io.now());
  submission.charged = 0;
}

void Acceptance::discard(Submission& submission) {
  ++context_.stats.discarded;
  release(submission);
}

void Acceptance::release(Submission& submission) {
  std::unique_ptr<Submission> owned(&submission);
  ASSERT(submissions_ > 0);
  --submissions_;
  submission.link.unlink();
  if (free_.size() >= kMostFree) return;
  submission.message = {};
  submission.owner = nullptr;
  submission.done = nullptr;
  submission.charged = submission.quota_charged = 0;
  submission.append_.pieces.clear();
  submission.append_.status = success();
  submission.append_.close_silently = false;
  submission.append_.location = {};
  submission.append_.sequence = 0;
  submission.bytes_ = 0;
  submission.settled_ = 0;
  submission.private_.reset();
  submission.private_used_ = 0;
  submission.metadata_.clear();
  submission.event_bytes_.clear();
  free_.push_back(std::move(owned));
}

// Lays the received pieces into the Content and cuts both to what belongs to the message.
void Acceptance::take_raw(Submission& submission, smtp::IntakeFacts& facts) {
  mail::Content& content = submission.message->content;
  auto& pieces = submission.pieces();
  content.raw.reserve(pieces.size());
  uint64_t size = 0;
  for (const spool::Piece& piece : pieces) {
    content.raw.emplace_back(piece.data, piece.size);
    size += piece.size;
  }
  ASSERT(size <= UINT32_MAX);
  content.raw_size = static_cast<uint32_t>(size);
  facts.apply_to(content);

  // The final dot may have lain in pieces of its own.
  size_t left = content.raw_size;
  size_t count = 0;
  while (count < pieces.size() && left > 0) {
    pieces[count].size = static_cast<uint32_t>(std::min<size_t>(pieces[count].size, left));
    left -= pieces[count].size;
    ++count;
  }
  ASSERT(left == 0);
  pieces.resize(count);
  submission.message->buffers.resize(count);
}

// Brings the content into a form that can be sent: the only place where a whole body is copied.
bool Acceptance::rewrite(Submission& submission) {
  mail::Content& content = submission.message->content;
  smtp::Rewritten rewritten = smtp::rewrite_content(content);
  context_.stats.body_bytes_copied += rewritten.bytes_copied;
  submission.pieces().clear();
  submission.message->buffers.clear();
  submission.settled_ = 0;
  if (!submission.append_copy(rewritten.bytes)) return false;
  for (const spool::Piece& piece : submission.pieces()) {
    content.raw.emplace_back(piece.data, piece.size);
  }
  return true;
}

// Whose the message is and where it leaves, by the [[rule]]s of the shaping file.
static void apply_rules(mail::Envelope& envelope, const config::Config& config) {
  if (!config.shaping_rules || config.shaping_rules->mail_rules().empty()) return;
  auto fits = [](const std::string& pattern, std::string_view text) {
    return pattern.empty() || config::matches_pattern(pattern, text);
  };
  auto applies = [&](const config::MailRule& rule) {
    if (!fits(rule.account, envelope.account) || !fits(rule.sender, envelope.reverse_path) ||
        !fits(rule.pool, envelope.pool) || !fits(rule.job, envelope.job)) {
      return false;
    }
    if (!rule.clients.empty()) {
      Result<reactor::Address> client = reactor::Address::parse_host(envelope.client, 0);
      if (!client || std::none_of(rule.clients.begin(), rule.clients.end(),
                                  [&](const reactor::Network& network) { return network.contains(*client); })) {
        return false;
      }
    }
    return rule.recipient.empty() ||
           std::all_of(envelope.recipients.begin(), envelope.recipients.end(),
                       [&](const mail::Recipient& recipient) { return fits(rule.recipient, recipient.address); });
  };
  // All rules see the message as it came.
  std::string_view tenant, pool, job;
  for (const config::MailRule& rule : config.shaping_rules->mail_rules()) {
    if (!applies(rule)) continue;
    if (tenant.empty()) tenant = rule.set_tenant;
    if (pool.empty()) pool = rule.set_pool;
    if (job.empty()) job = rule.set_job;
  }
  if (!tenant.empty()) envelope.tenant = tenant;
  if (!pool.empty()) envelope.pool = pool;
  if (!job.empty()) envelope.job = job;
}

// What the metadata headers ask for. They are cut from the content whether or not they are obeyed.
smtp::Reply Acceptance::apply_metadata(queue::Message& message, const Settings& settings,
                                       mail::HeaderScan& scan) {
  mail::Envelope& envelope = message.envelope;
  auto value = [&](Settings::Metadata which) -> std::string* {
    if (which >= scan.values.size() || scan.values[which].count == 0) return nullptr;
    return &scan.values[which].text;
  };
  auto bad = [&](std::string_view header, std::string_view why) {
    text_ = fmt::format("{}: {}", header, why);
    return smtp::Reply{554, {5, 6, 0}, text_};
  };
  if (std::string* pool = value(Settings::kPool)) {
    if (pool->size() > kLongestName) return bad(settings.config->header_pool, "name too long");
    envelope.pool = std::move(*pool);
  }
  if (std::string* job = value(Settings::kJob)) {
    if (job->size() > kLongestName) return bad(settings.config->header_job, "name too long");
    envelope.job = std::move(*job);
  }
  apply_rules(envelope, *settings.config);
  // The parameter of MAIL is the standard's own way and goes first.
  if (std::string* envid = value(Settings::kEnvid); envid && envelope.envid.empty()) {
    smtp::append_xtext(envelope.envid, *envid);
    if (envelope.envid.size() > kLongestEnvid) {
      return bad(settings.config->header_envid, "longer than 100 characters");
    }
  }
  // A lifetime that cannot be read is refused, not ignored: the sender of a one-hour code would find
  // out four days later. It shortens and never lengthens.
  int64_t lifetime_ms = settings.config->expire_after_ms;
  if (std::string* expire = value(Settings::kExpire)) {
    Result<int64_t> wanted = config::parse_duration_ms(*expire);
    if (!wanted || *wanted <= 0) {
      return bad(settings.config->header_expire, "not a duration such as 90s, 30m, 4h or 2d12h");
    }
    lifetime_ms = std::min(lifetime_ms, *wanted);
  }
  envelope.expires_ms = envelope.received_ms + lifetime_ms;
  return {};
}

// What an account may write into its messages: From, and the pool.
smtp::Reply Acceptance::check_account(queue::Message& message, const config::Account& account, const mail::HeaderScan& scan) {
  mail::Envelope& envelope = message.envelope;
  if (!account.senders.empty()) {
    auto addresses = scan.from_cut ? std::nullopt : mail::parse_mailbox_list(scan.from);
    if (!addresses) return {550, {5, 7, 1}, "From: no address that can be told, and this account may use some only"};
    for (const std::string& address : *addresses) {
      if (!account.allows_sender(address)) return {550, {5, 7, 1}, "From: address not allowed for this account"};
    }
  }
  if (!account.tenant.empty()) envelope.tenant = account.tenant;  // whatever a rule said
  if (envelope.pool.empty() && !account.pools.empty()) envelope.pool = account.pools.front();
  if (!account.allows_pool(envelope.pool)) return {550, {5, 7, 1}, "Pool not allowed for this account"};
  return {};
}

// What the tenant may hand in. Its tenant is known only now, so the whole message is refused.
smtp::Reply Acceptance::charge_quota(Submission& submission, const config::Config& config) {
  const mail::Envelope& envelope = submission.message->envelope;
  if (envelope.tenant.empty() || !config.shaping_rules || !context_.quotas) return {};
  const config::IntakeRates* intake = config.shaping_rules->intake(envelope.tenant);
  if (!intake || intake->rates.empty()) return {};
  int64_t now = context_.io.now(), wall_ms = context_.io.wall_ms();
  auto refusal = context_.quotas->charge(envelope.tenant, intake->rates, envelope.recipients.size(), now, wall_ms);
  if (!refusal) {
    submission.quota_charged = envelope.recipients.size();
    submission.quota_charged_at = now;
    return {};
  }
  char time[events::kTimeSize];
  events::format_time(refusal->until_ms, time);
  text_ = fmt::format("The {} recipients of tenant {} are used up; more from {} on", config::print_rate(refusal->rate), envelope.tenant,
                      std::string_view(time, sizeof time));
  return {452, {4, 7, 1}, text_};
}

smtp::Reply Acceptance::refuse(Submission& submission, const Origin& origin, uint64_t& counter,
                               uint16_t code, mail::EnhancedStatus status, std::string_view text) {
  ++counter;
  smtp::Reply reply{code, status, text};
  const mail::Envelope& envelope = submission.message->envelope;
  report_rejected(envelope, envelope.client, reply, text, origin.session,
                  events::Stage::end_of_data);
  refund(submission);
  release(submission);
  return reply;
}

smtp::Reply Acceptance::submit(Submission& submission, const Settings& settings,
                               smtp::IntakeFacts& facts, const Origin& origin) {
  queue::Message& message = *submission.message;
  mail::Envelope& envelope = message.envelope;
  mail::Content& content = message.content;
  Stats& stats = context_.stats;
  const config::Config& config = *settings.config;
  ASSERT(!envelope.recipients.empty());

  if (facts.too_large) {
    return refuse(submission, origin, stats.rejected_size, 552, {5, 3, 4},
                  "Message larger than the limit");
  }
  std::string bad_lines;
  if (facts.fault != smtp::LineFault::none) {
    bad_lines = smtp::ServerProtocol::describe_fault(facts);
    if (config.on_bad_lines == config::BadLines::reject && !origin.mend_lines) {
      text_ = std::move(bad_lines);
      return refuse(submission, origin, stats.rejected_bad_lines, 554, {5, 6, 0}, text_);
    }
  }

  int64_t now_ms = context_.io.wall_ms();
  message.id = context_.ids.make(now_ms);
  envelope.received_ms = now_ms;
  take_raw(submission, facts);
  // Past `reject` faults are mended whatever the policy calls it: no bare CR or LF leaves. A BDAT message with more
  // dots than can be listed takes the form that needs no list.
  if (!bad_lines.empty() || (content.unlisted_dots > 0 && !content.stuffed)) {
    if (!rewrite(submission)) {
      return refuse(submission, origin, stats.rejected_admission, 452, {4, 3, 1},
                    "Insufficient memory, try again later");
    }
    if (origin.mend_lines) bad_lines.clear();
    if (!bad_lines.empty()) ++stats.bad_lines_fixed;
  }

  mail::HeaderScan& scan = scan_;
  const config::Account* account = envelope.account.empty() ? nullptr : find_account(settings, envelope.account);
  scan.wants_from = account && !account->senders.empty();
  mail::scan_headers(content, settings.rules, scan);
  if (scan.received_count > config.max_received_headers) {
    return refuse(submission, origin, stats.rejected_loop, 554, {5, 4, 6},
                  "Too many Received headers: mail loop");
  }
  // RFC 8689 4.1: REQUIRETLS goes ahead of the header; 3: which may be there once.
  if (envelope.tls == mail::TlsWish::none && scan.tls_required_count == 1 && is_no(scan.tls_required)) {
    envelope.tls = mail::TlsWish::not_required;
  }
  if (scan.too_many_cuts) {
    return refuse(submission, origin, stats.rejected_headers, 554, {5, 6, 0},
                  "Too many headers to remove");
  }
  if (!origin.report) {
    smtp::Reply bad = apply_metadata(message, settings, scan);
    if (bad.code != 0) {
      return refuse(submission, origin, stats.rejected_headers, bad.code, bad.status, bad.text);
    }
  } else {
    envelope.expires_ms = now_ms + config.expire_after_ms;
  }
  if (account) {
    smtp::Reply wrong = check_account(message, *account, scan);
    if (wrong.code != 0) {
      return refuse(submission, origin, stats.rejected_account, wrong.code, wrong.status, wrong.text);
    }
  }

  if (!origin.report) {
    smtp::Reply full = charge_quota(submission, config);
    if (full.code != 0) return refuse(submission, origin, stats.rejected_quota, full.code, full.status, full.text);
  }

  mail::ReceivedFields received;
  received.helo = origin.helo;
  received.client_address = envelope.client;
  received.hostname = config.hostname;
  received.esmtp = origin.esmtp;
  received.tls = !origin.tls_version.empty();
  received.authenticated = !envelope.account.empty();
  received.smtputf8 = envelope.smtputf8;
  received.id = message.id;
  if (envelope.recipients.size() == 1) received.only_recipient = envelope.recipients[0].address;
  received.utc_ms = now_ms;
  if (!config.add_missing_headers) scan.has_date = scan.has_message_id = true;
  mail::add_standard_headers(
      content, scan, origin.report ? mail::ReceivedMode::off : settings.received_mode,
      received);
  if (!bad_lines.empty() && config.on_bad_lines == config::BadLines::tag) {
    std::string tag;
    mail::append_header(tag, "X-Millrace-Bad-Lines", bad_lines);
    content.prefix.insert(0, tag);
  }
  envelope.message_id = scan.message_id;

  if (!context_.spool.reserve(static_cast<uint32_t>(envelope.recipients.size()))) {
    return refuse(submission, origin, stats.rejected_spool, 452, {4, 3, 1},
                  "Insufficient system storage");
  }

  // One reference a buffer is enough from here on.
  auto& buffers = message.buffers;
  auto same = [](const reactor::BufferRef& a, const reactor::BufferRef& b) {
    return a.get() == b.get();
  };
  buffers.erase(std::unique(buffers.begin(), buffers.end(), same), buffers.end());
  submission.private_.reset();

  mail::encode_metadata(envelope, content, submission.metadata_);
  encode_event(submission, origin, bad_lines);

  spool::Append& append = submission.append_;
  append.id = message.id;
  append.metadata = submission.metadata_;
  append.body_crc = content.crc;
  append.recipients = static_cast<uint32_t>(envelope.recipients.size());
  append.event = submission.event_bytes_;
  append.owner = &submission;
  append.done = &Acceptance::on_appended;
  submission.session_ = origin.session;
  ++stats.pending;
  if (origin.injected) ++stats.injected;
  context_.spool.append(append);
  return {};
}

void Acceptance::encode_event(Submission& submission, const Origin& origin, std::string_view bad_lines) {
  const queue::Message& message = *submission.message;
  const mail::Envelope& envelope = message.envelope;
  events::Event event;
  event.type = events::Type::received;
  event.spool_id = message.id;
  event.time_ms = event.received_ms = envelope.received_ms;
  event.reverse_path = envelope.reverse_path;
  event.message_id = envelope.message_id;
  event.envid = envelope.envid;
  bool single = envelope.recipients.size() == 1;
  if (single) event.recipient = envelope.recipients[0].address;
  if (single) event.orcpt = envelope.recipients[0].orcpt;
  event.job = envelope.job;
  event.tenant = envelope.tenant;
  event.pool = envelope.pool;
  event.client = envelope.client;
  event.account = envelope.account;
  event.tls_version = origin.tls_version;
  event.tls_suite = origin.tls_suite;
  event.tls_verified = origin.tls_verified;
  event.session = origin.session;
  event.session_message = origin.session_message;
  event.size = message.content.size();
  event.recipients = static_cast<uint32_t>(envelope.recipients.size());
  event.transaction_ms = origin.transaction_ms;
  event.reason = bad_lines;
  scratch_event_.clear();
  events::encode(event, scratch_event_);
  queue::append_event_bytes(scratch_event_, submission.event_bytes_);
}

void Acceptance::on_appended(void* self, spool::Append& append) {
  auto& submission = *static_cast<Submission*>(self);
  ASSERT(&submission.append_ == &append);
  submission.acceptance_.finish(submission);
}

void Acceptance::finish(Submission& submission) {
  Stats& stats = context_.stats;
  ASSERT(stats.pending > 0);
  --stats.pending;
  spool::Append& append = submission.append_;
  Answer answer;
  char text[kQueuedAs.size() + mail::SpoolId::kTextSize];
  queue::MessageRef message;
  if (append.status.ok()) {
    message = std::move(submission.message);
    message->location = append.location;
    ++stats.messages;
    stats.bytes += message->content.size();
    stats.recipients += message->envelope.recipients.size();
    if (!message->envelope.account.empty()) count_accepted(message->envelope);
    if (context_.events.wanted()) {
      std::string_view bytes = submission.event_bytes_, one;
      bool whole = queue::take_event_bytes(bytes, one);
      Result<events::Event> event = events::decode(one);
      ASSERT(whole && event.ok());
      context_.events.emit(append.sequence, *event);
    }
    char id[mail::SpoolId::kTextSize];
    message->id.format(id);
    std::memcpy(text, kQueuedAs.data(), kQueuedAs.size());
    std::memcpy(text + kQueuedAs.size(), id, sizeof id);
    answer.reply = {250, {2, 0, 0}, {text, sizeof text}};
    answer.id = message->id;
  } else {
    refund(submission);
    ++stats.rejected_spool;
    answer.close_silently = append.close_silently;
    answer.reply = append.status.error().number == ENOSPC
                       ? smtp::Reply{452, {4, 3, 1}, "Insufficient system storage"}
                       : smtp::Reply{451, {4, 3, 0}, "The message could not be stored"};
    if (!answer.close_silently) {
      const mail::Envelope& envelope = submission.message->envelope;
      report_rejected(envelope, envelope.client, answer.reply, append.status.error().text,
                      submission.session_, events::Stage::end_of_data);
    }
  }
  submission.link.unlink();
  if (submission.owner) submission.done(submission.owner, submission, answer);
  release(submission);
  if (message) context_.intake.enqueue(std::move(message));
  if (stats.pending == 0 && on_idle) on_idle(idle_owner);
}

void Acceptance::count_accepted(const mail::Envelope& envelope) {
  const config::Account* account = find_account(*settings(), envelope.account);
  if (account && context_.accounts) context_.accounts->accepted(*account, envelope.recipients.size(), context_.io.wall_ms());
}

void Acceptance::report_rejected(const mail::Envelope& envelope, std::string_view client,
                                 const smtp::Reply& reply, std::string_view reason,
                                 uint64_t session, events::Stage stage) {
  // A client that is refused in a loop must not fill the disk with the news of it.
  int64_t second = context_.io.now() / 1'000'000'000;
  if (second != rejected_second_) {
    rejected_second_ = second;
    rejected_in_second_ = 0;
  }
  if (++rejected_in_second_ > kRejectedPerSecond) {
    ++context_.stats.events_suppressed;
    return;
  }
  events::Event event;
  event.type = events::Type::rejected;
  event.time_ms = context_.io.wall_ms();
  event.reverse_path = envelope.reverse_path;
  if (envelope.recipients.size() == 1) event.recipient = envelope.recipients[0].address;
  event.recipients = static_cast<uint32_t>(envelope.recipients.size());
  event.message_id = envelope.message_id;
  event.envid = envelope.envid;
  event.job = envelope.job;
  event.tenant = envelope.tenant;
  event.pool = envelope.pool;
  event.client = client;
  event.account = envelope.account;
  event.session = session;
  event.stage = stage;
  event.reply = reply.text;
  event.code = reply.code;
  std::string enhanced = reply.status.to_string();
  event.enhanced = enhanced;
  event.scope = events::Scope::message;
  event.reason = reason;
  context_.events.emit(0, event);
}

}  // namespace millrace::ingress
