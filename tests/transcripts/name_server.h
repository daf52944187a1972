// A name server for the real stage: answers over UDP and TCP from a dns::ModelZones, with the faults that only
// a wire can have (NameFault). The model of the simulated stage answers above the wire.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <string>

#include "dns/model.h"
#include "net/listener.h"
#include "net/stream.h"
#include "stage.h"

namespace millrace::transcripts {

class NameServer final : private net::ListenerOwner {
 public:
  NameServer(reactor::Io& io, const reactor::Address& address);
  ~NameServer();

  dns::ModelZones zones;
  std::map<std::string, NameFault> faults;
  bool outage = false;

 private:
  class Connection;
  void on_readable(reactor::Completion& completion);
  // The reply to a query; empty: none is sent.
  std::string reply_to(std::string_view query, bool tcp);
  void on_accepted(reactor::Handle handle) override;
  void on_accept_error(int) override {}
  void on_listener_closed() override {}

  reactor::Io& io_;
  int udp_ = -1;
  reactor::Op readable_;
  net::Listener listener_;
  std::list<std::unique_ptr<Connection>> connections_;
};

}  // namespace millrace::transcripts
