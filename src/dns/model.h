// A model of the DNS for simulations and tests: zones written by hand, faults and latency by dice,
// time by the reactor. Stands in place of the c-ares transport below the same cache and MX logic.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <utility>

#include "dns/resolver.h"

namespace millrace::dns {

// What the world's name servers know. Shared by the models of all shards; changes take effect at
// the next query. A name with any record exists; any other is NXDOMAIN.
class ModelZones {
 public:
  void add_mx(std::string_view domain, uint16_t preference, std::string_view host);
  void add_address(std::string_view host, std::string_view address);  // A or AAAA, by its form
  void add_alias(std::string_view name, std::string_view target);
  void add_tlsa(std::string_view name, const tls::TlsaRecord& record);  // name: "_25._tcp.mx.example"
  void add_pointer(std::string_view name, std::string_view target);  // PTR; name: "1.2.0.192.in-addr.arpa"
  void add_text(std::string_view name, std::string_view text);
  // Answers about this name and those below it are secure.
  void sign(std::string_view name);
  // `name` exists, without records.
  void add_empty(std::string_view name);
  // Queries for `name` end so, whatever else is known about it; heal() ends it.
  void fail(std::string_view name, Outcome outcome);
  void heal(std::string_view name);
  void remove(std::string_view name);

  struct Faults {
    std::optional<Outcome> outage;  // every query ends so
    double failure = 0;             // chance of a SERVFAIL or time-out, per query
    double malformed = 0;
    // Aliases are left to the asker to follow, as some servers do.
    bool leave_aliases = false;
    int64_t shortest_latency_ns = 1'000'000;
    int64_t longest_latency_ns = 20'000'000;
    int64_t timeout_ns = 5'000'000'000;  // how long a failure takes, half of the time
  };
  Faults faults;
  uint32_t ttl_s = 300;
  uint32_t negative_ttl_s = 60;

  Answer answer(const std::string& name, Type type) const;

 private:
  struct Node {
    std::vector<MxRecord> mx;
    std::vector<reactor::Address> ipv4, ipv6;
    std::vector<tls::TlsaRecord> tlsa;
    std::vector<std::string> texts, names;
    std::string alias;
  };
  bool is_signed(std::string_view name) const;
  std::map<std::string, Node, std::less<>> nodes_;
  std::set<std::string, std::less<>> signed_;
  std::map<std::string, Outcome, std::less<>> failing_;
};

class ModelTransport final : public Transport {
 public:
  // Both outlive the transport.
  ModelTransport(reactor::Io& io, const ModelZones& zones) : io_(io), zones_(zones) {}
  ~ModelTransport() override = default;

  void query(const std::string& name, Type type, Callback done) override;
  void stop(std::function<void()> done) override;

  uint64_t queries() const { return queries_; }
  // How often one question was asked.
  uint64_t asked(std::string_view name, Type type) const;
  size_t in_flight() const { return in_flight_.size(); }

 private:
  struct InFlight {
    ModelTransport* transport = nullptr;
    reactor::Timer due;
    Callback done;
    Answer answer;
    std::function<void()> stopped;
    void on_due();
  };
  double unit() { return static_cast<double>(io_.random() >> 11) * 0x1.0p-53; }

  reactor::Io& io_;
  const ModelZones& zones_;
  std::vector<std::unique_ptr<InFlight>> in_flight_;
  std::map<std::pair<std::string, Type>, uint64_t> asked_;
  uint64_t queries_ = 0;
};

}  // namespace millrace::dns
