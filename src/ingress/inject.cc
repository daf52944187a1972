#include "ingress/inject.h"

#include <utility>

#include "mail/address.h"

namespace millrace::ingress {
namespace {

constexpr smtp::Reply kNoMemory{452, {4, 3, 1}, "Insufficient memory, try again later"};

// Checks and completes what a protocol would have checked.
smtp::Reply check_envelope(mail::Envelope& envelope, const config::Config& config) {
  if (!envelope.reverse_path.empty() && !mail::parse_mailbox(envelope.reverse_path)) {
    return smtp::replies::kBadSender;
  }
  if (envelope.recipients.empty()) return smtp::replies::kNoRecipients;
  if (envelope.recipients.size() > config.max_recipients) {
    return smtp::replies::kTooManyRecipients;
  }
  for (mail::Recipient& recipient : envelope.recipients) {
    Result<mail::Path, mail::AddressError> path = mail::parse_mailbox(recipient.address);
    if (!path) return smtp::replies::kBadRecipient;
    if (path->utf8) envelope.smtputf8 = true;
    if (!recipient.domain.empty()) continue;
    Result<std::string, mail::AddressError> domain = mail::to_routing_domain(path->domain);
    if (!domain) return smtp::replies::kBadRecipient;
    recipient.domain = std::move(*domain);
  }
  return {};
}

}  // namespace

void Injection::answer_later(const smtp::Reply& reply) {
  code = reply.code;
  status = reply.status;
  text = reply.text;
  injector_->context_.io.defer(tell_);
}

void Injection::tell() {
  busy_ = false;
  done(owner, *this);  // may destroy *this
}

void Injection::on_admitted(bool refused, std::string_view why) {
  AdmissionWaiter::link.unlink();
  if (refused) return answer_later({452, {4, 3, 1}, why});
  injector_->admitted(*this);
}

Injector::Injector(Acceptance& acceptance)
    : acceptance_(acceptance), context_(acceptance.context()) {}

void Injector::inject(Injection& injection) {
  ASSERT(!injection.busy_ && injection.done != nullptr);
  injection.busy_ = true;
  injection.injector_ = this;
  injection.tell_.bind<&Injection::tell>(&injection);
  injection.id = {};
  smtp::Reply bad = check_envelope(injection.envelope, *acceptance_.settings()->config);
  if (bad.code != 0) return injection.answer_later(bad);
  if (!injection.report) {
    std::string why;
    injection.since = context_.io.now();
    switch (context_.intake.admit(injection, why)) {
      case queue::Admission::now:
        break;
      case queue::Admission::later:
        ++context_.stats.admission_waits;
        return;
      case queue::Admission::refused:
        ++context_.stats.rejected_admission;
        return injection.answer_later({452, {4, 3, 1}, why});
    }
  }
  admitted(injection);
}

void Injector::admitted(Injection& injection) {
  SettingsRef settings = acceptance_.settings();
  Submission& submission = acceptance_.begin();
  if (!submission.append_copy(injection.content)) {
    acceptance_.discard(submission);
    return injection.answer_later(kNoMemory);
  }
  smtp::BdatDecoder decoder(settings->server.max_message_size);
  decoder.consume(injection.content.data(), injection.content.size());
  decoder.finish();

  submission.message->envelope = std::move(injection.envelope);
  injection.envelope = {};
  submission.owner = &injection;
  submission.done = &Injector::on_answer;
  injection.submission_ = &submission;
  Origin origin;
  origin.injected = true;
  origin.mend_lines = true;
  origin.report = injection.report;
  smtp::Reply refusal = acceptance_.submit(submission, *settings, decoder.facts(), origin);
  if (refusal.code == 0) return;
  injection.submission_ = nullptr;
  injection.answer_later(refusal);
}

void Injector::on_answer(void* self, Submission&, const Answer& answer) {
  auto& injection = *static_cast<Injection*>(self);
  injection.submission_ = nullptr;
  injection.id = answer.id;
  injection.answer_later(answer.reply);
}

void Injector::abandon(Injection& injection) {
  if (!injection.busy_) return;
  injection.busy_ = false;
  injection.tell_.cancel();
  injection.queue::AdmissionWaiter::link.unlink();
  if (injection.submission_) std::exchange(injection.submission_, nullptr)->owner = nullptr;
}

}  // namespace millrace::ingress
