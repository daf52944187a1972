#include "ingress/listener.h"

#include <cstring>

#include "base/log.h"

namespace millrace::ingress {
namespace {

constexpr int64_t kSecondNs = 1'000'000'000;
constexpr smtp::Reply kTooMany{421, {4, 3, 2}, "Too many connections, try again later"};
constexpr smtp::Reply kShedding{421, {4, 3, 2}, "No mail is accepted now, try again later"};
constexpr smtp::Reply kTooManyOfClient{421, {4, 7, 0}, "Too many connections from your address"};

}  // namespace

SmtpListener::SmtpListener(Context& context, Acceptance& acceptance)
    : context_(context), acceptance_(acceptance) {
  announce_.bind<&SmtpListener::announce_drained>(this);
  acceptance_.idle_owner = this;
  acceptance_.on_idle = [](void* self) { static_cast<SmtpListener*>(self)->check_drained(); };
}

SmtpListener::~SmtpListener() {
  acceptance_.on_idle = nullptr;
  announce_.cancel();
}

Status SmtpListener::open(const std::vector<config::Listen>& listen, Sharing sharing) {
  for (const config::Listen& at : listen) {
    auto port = std::make_unique<Port>(*this, context_.io, Opening{at.proxy, at.tls});
    reactor::ListenOptions options;
    options.address = at.address;
    Status opened = success();
    if (sharing == Sharing::first) {
      Result<reactor::Handle> probe = context_.io.listen(options);
      if (probe) {
        context_.io.close(*probe);
      } else {
        opened = fail(probe.error());
      }
    }
    options.reuse_port = sharing != Sharing::alone;
    if (opened) opened = port->listener.open(options);
    if (!opened) {
      return fail(Error{fmt::format("cannot listen on {}: {}", at.address.to_string(),
                                    opened.error().text),
                        opened.error().number});
    }
    ports_.push_back(std::move(port));
  }
  return success();
}

void SmtpListener::set_shedding(bool shedding, std::string_view why) {
  if (shedding_ == shedding) return;
  shedding_ = shedding;
  if (shedding) {
    log::warning("new connections are refused: {}", why);
  } else {
    log::info("new connections are served again");
  }
}

void SmtpListener::on_accepted(reactor::Handle handle, Opening opening) {
  if (draining_) return context_.io.close(handle);
  Result<reactor::Address> peer = context_.io.peer_address(handle);
  if (!peer) return context_.io.close(handle, true);  // gone already
  Session& session = take_session();
  if (shedding_) {
    ++context_.stats.refused_shedding;
    session.start_refused(handle, kShedding, opening);
    return;
  }
  uint64_t number = uint64_t{context_.shard} << 48 | next_session_++;
  session.start(handle, *peer, number, opening);
}

Session& SmtpListener::take_session() {
  std::unique_ptr<Session> session;
  if (free_.empty()) {
    session = std::make_unique<Session>(*this, acceptance_);
  } else {
    session = std::move(free_.back());
    free_.pop_back();
  }
  running_.push_back(*session);
  return *session.release();  // on_session_closed() takes it back
}

void SmtpListener::on_session_closed(Session& session, bool refused) {
  std::unique_ptr<Session> owned(&session);
  session.link.unlink();
  if (refused) --refusals_;
  if (free_.size() < kMostFreeSessions) free_.push_back(std::move(owned));
  check_drained();
}

void SmtpListener::on_accept_error(int error) {
  ++context_.stats.accept_errors;
  int64_t now = context_.io.now();
  if (last_error_logged_ != 0 && now - last_error_logged_ < kSecondNs) return;
  last_error_logged_ = now;
  log::warning("cannot accept a connection: {}", std::strerror(error));
}

smtp::Reply SmtpListener::enter(const reactor::Address& client) {
  const config::Config& config = **context_.config;
  switch (context_.limits.enter(client, config.max_connections, config.max_connections_per_client)) {
    case ConnectionLimits::Verdict::granted:
      return {};
    case ConnectionLimits::Verdict::too_many:
      ++context_.stats.refused_total_limit;
      return kTooMany;
    case ConnectionLimits::Verdict::too_many_of_client:
      ++context_.stats.refused_client_limit;
      return kTooManyOfClient;
  }
  UNREACHABLE();
}

bool SmtpListener::may_refuse() {
  if (refusals_ >= kMostRefusals) return false;
  ++refusals_;
  return true;
}

bool SmtpListener::may_abort_stalled() {
  int64_t second = context_.io.now() / kSecondNs;
  if (second != stalled_second_) {
    stalled_second_ = second;
    stalled_in_second_ = 0;
  }
  return ++stalled_in_second_ <= kStalledPerSecond;
}

bool SmtpListener::may_log_refusal() {
  int64_t second = context_.io.now() / kSecondNs;
  if (second != logged_second_) {
    logged_second_ = second;
    logged_in_second_ = 0;
  }
  return ++logged_in_second_ <= kLoggedPerSecond;
}

smtp::Reply SmtpListener::admission_refusal(std::string_view why) {
  refusal_text_ = why.empty() ? std::string_view("Insufficient resources, try again later") : why;
  return {452, {4, 3, 1}, refusal_text_};
}

void SmtpListener::drain() {
  if (draining_) return;
  draining_ = true;
  for (auto& port : ports_) {
    if (port->listener.is_open()) port->listener.close();
  }
  for (Session* session = running_.front(); session;) {
    Session* next = running_.next(*session);
    session->drain();
    session = next;
  }
  check_drained();
}

void SmtpListener::stop() {
  drain();
  for (Session* session = running_.front(); session;) {
    Session* next = running_.next(*session);
    session->stop();
    session = next;
  }
}

bool SmtpListener::drained() const {
  if (!draining_ || !running_.empty() || acceptance_.pending() > 0) return false;
  for (const auto& port : ports_) {
    if (port->listener.is_open()) return false;
  }
  return true;
}

void SmtpListener::check_drained() {
  if (!announced_ && drained()) context_.io.defer(announce_);
}

void SmtpListener::announce_drained() {
  if (announced_ || !drained()) return;
  announced_ = true;
  if (on_drained) on_drained(drained_owner);
}

}  // namespace millrace::ingress
