// A lane without a receiver: what the shaping file says with `deliver`. Messages are discarded, answered with a reply
// that was configured, or written as files. To the queue it is a connection slot like any other, so whatever limits
// attempts and connections holds; the outcome goes through the same judge as a receiver's reply.
//
// Files: one a transaction, named after the message's id and the number of its first recipient, with a Return-Path and a
// Delivered-To for each recipient in front; CRLF as on the wire. Written under a name that ends in .tmp, synced, renamed,
// and the folder synced before the outcome is told: a crash leaves the whole file or none under the last name, and a
// message that is handed over again after it takes the same name. What cannot be written is no attempt of the message:
// the site rests and the reason is in the queue event.
//
// Limits: a lane writes one file at a time. Below --spool-reserve nothing is written.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "delivery/judge.h"
#include "dns/mx.h"
#include "queue/agent.h"
#include "reactor/io.h"

namespace millrace::delivery {

class DeliveryAgent;

class HandOver final : public queue::Lane {
 public:
  HandOver(DeliveryAgent& agent, std::shared_ptr<const dns::Route> route, unsigned source);
  ~HandOver() override;

  void wake() override;
  void retire() override;
  // Begins nothing more; a file that is being written comes back as not tried.
  void abort();
  size_t index = 0;  // in the agent's list

 private:
  // Named for the operator's log.
  enum class State : uint8_t {
    idle,            // opened, or waiting for a message
    writing,         // the file's bytes
    syncing_file,
    syncing_folder,
  };

  void on_turn();
  void on_done(reactor::Completion& completion);
  void on_timer();
  bool discard_one();
  bool check_folder();
  bool begin_file();
  void write_more();
  Status rename_file();
  void file_failed(std::string why);
  void close_handles();
  void give_back();
  void finished(queue::Attempt& attempt);
  bool over() const;
  void finish();  // destroys *this

  DeliveryAgent& agent_;
  reactor::Io& io_;
  const config::Snapshot config_;
  const std::shared_ptr<const dns::Route> route_;
  State state_ = State::idle;
  smtp::PeerReply reply_;  // discard
  std::string source_text_;
  std::string_view ehlo_name_;  // of config_: what an attempt says of it outlives this
  uint64_t number_ = 0;
  uint32_t messages_ = 0;
  bool ready_ = false, idle_ = false, retired_ = false, aborted_ = false;
  queue::LaneEnd end_;
  reactor::Deferred turn_;
  reactor::Timer timer_;
  // ---- file
  queue::Attempt* attempt_ = nullptr;
  int64_t began_ = 0;
  reactor::Op op_;
  reactor::Handle file_ = reactor::kNoHandle, folder_ = reactor::kNoHandle;
  std::string name_, head_, unstuffed_;
  std::vector<iovec> parts_;
  size_t part_ = 0;
  uint64_t offset_ = 0;
};

}  // namespace millrace::delivery
