// TLS reports (RFC 8460): what is counted, what a report looks like, where it goes and when.
#include "delivery/tls_report.h"

#include <zlib.h>

#include <deque>
#include <map>
#include <nlohmann/json.hpp>

#include "../tls/certificates.h"
#include "connection_rig.h"
#include "delivery/tls_reporter.h"

namespace millrace::delivery {
namespace {

using namespace testing;
using nlohmann::json;
using Type = TlsReportPolicy::Type;

TlsReportPolicy policy_of_company_y() {
  StsPolicy policy;
  policy.mode = StsPolicy::Mode::testing;
  policy.mx = {"*.mail.company-y.example"};
  policy.max_age_s = 86400;
  return report_policy("company-y.example", policy);
}

TlsCounts::Domain counts_of_company_y() {
  TlsCounts counts;
  const TlsReportPolicy policy = policy_of_company_y();
  counts.add_success("company-y.example", policy, 5326);
  counts.add_failure("company-y.example", policy,
                     {TlsResult::certificate_expired, "2001:db8:abcd:12::1", "mx1.mail.company-y.example", {}, {}}, 100);
  counts.add_failure("company-y.example", policy,
                     {TlsResult::starttls_not_supported, "2001:db8:abcd:13::1", "mx2.mail.company-y.example", "203.0.113.56", {}}, 200);
  counts.add_failure("company-y.example", policy,
                     {TlsResult::validation_failure, "198.51.100.62", "mx-backup.mail.company-y.example", "203.0.113.58", "protocol"}, 3);
  return counts.domains().at("company-y.example");
}

std::string inflated(std::string_view octets) {
  z_stream stream{};
  EXPECT_EQ(inflateInit2(&stream, 16 + MAX_WBITS), Z_OK);
  std::string out(1 << 20, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(octets.data()));
  stream.avail_in = static_cast<uInt>(octets.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(inflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  inflateEnd(&stream);
  return out;
}

// ---- the report

TEST(TlsReport, IsWrittenAsTheExampleOfTheRfc) {
  const TlsReportHead head{"Company-X", "sts-reporting@company-x.example", "5065427c-23d3-47ca-b6e0-946ea0e8c4be", 1'459'468'800,
                           1'459'468'800 + 86'400};
  // RFC 8460 appendix B, with the names of 4.4, mx-host as the array that 4.4 makes of it, and the addresses in their short form.
  EXPECT_EQ(tls_report(head, counts_of_company_y()),
            R"({"organization-name":"Company-X",)"
            R"("date-range":{"start-datetime":"2016-04-01T00:00:00Z","end-datetime":"2016-04-01T23:59:59Z"},)"
            R"("contact-info":"sts-reporting@company-x.example","report-id":"5065427c-23d3-47ca-b6e0-946ea0e8c4be",)"
            R"("policies":[{"policy":{"policy-type":"sts",)"
            R"("policy-string":["version: STSv1","mode: testing","mx: *.mail.company-y.example","max_age: 86400"],)"
            R"("policy-domain":"company-y.example","mx-host":["*.mail.company-y.example"]},)"
            R"("summary":{"total-successful-session-count":5326,"total-failure-session-count":303},)"
            R"("failure-details":[{"result-type":"certificate-expired","sending-mta-ip":"2001:db8:abcd:12::1",)"
            R"("receiving-mx-hostname":"mx1.mail.company-y.example","failed-session-count":100},)"
            R"({"result-type":"starttls-not-supported","sending-mta-ip":"2001:db8:abcd:13::1",)"
            R"("receiving-mx-hostname":"mx2.mail.company-y.example","receiving-ip":"203.0.113.56","failed-session-count":200},)"
            R"({"result-type":"validation-failure","sending-mta-ip":"198.51.100.62",)"
            R"("receiving-mx-hostname":"mx-backup.mail.company-y.example","receiving-ip":"203.0.113.58","failed-session-count":3,)"
            R"("failure-reason-code":"protocol"}]}]})");
}

TEST(TlsReport, WithoutFailuresHasNoDetails) {
  TlsCounts counts;
  counts.add_success("a.example", {Type::none, "a.example", {}, {}});
  const json report = json::parse(tls_report({"x", "x@x.example", "1", 0, 86'400}, counts.domains().at("a.example")));
  EXPECT_EQ(report["policies"], json::parse(R"([{"policy":{"policy-type":"no-policy-found","policy-domain":"a.example"},
      "summary":{"total-successful-session-count":1,"total-failure-session-count":0}}])"));
}

TEST(TlsReport, IsCompressedAndComesBack) {
  const std::string text = tls_report({"x", "y", "z", 0, 86'400}, counts_of_company_y());
  const std::string small = gzip(text);
  EXPECT_LT(small.size(), text.size());
  EXPECT_EQ(inflated(small), text);
}

// ---- counting

TEST(TlsCounts, StoredFormComesBack) {
  const TlsCounts::Domain counted = counts_of_company_y();
  const auto back = decode_tls_counts(encode(counted));
  ASSERT_TRUE(back);
  EXPECT_EQ(encode(*back), encode(counted));
  EXPECT_EQ(successful_of(*back), 5326u);
  EXPECT_EQ(failed_of(*back), 303u);
  for (const char* text : {"", "{}", "x", "[1]", R"([{"policy":{}}])", R"([{"policy":{"policy-type":"sts"},"summary":{}}])",
                           R"([{"policy":{"policy-type":"x"},"summary":{"total-successful-session-count":1,"total-failure-session-count":1}}])",
                           R"([{"policy":{"policy-type":"sts","policy-string":[1]},"summary":{"total-successful-session-count":1,"total-failure-session-count":1}}])",
                           R"([{"policy":{"policy-type":"sts"},"summary":{"total-successful-session-count":1,"total-failure-session-count":1},"failure-details":{"a":1}}])"}) {
    EXPECT_FALSE(decode_tls_counts(text)) << text;
  }
}

TEST(TlsCounts, AreBoundedAndSayWhatIsLeftOut) {
  TlsCounts counts;
  for (size_t i = 0; i < TlsCounts::kMostDomains + 3; ++i) {
    counts.add_success("d" + std::to_string(i) + ".example", {});
  }
  EXPECT_EQ(counts.domains().size(), TlsCounts::kMostDomains);
  EXPECT_EQ(counts.left_out(), 3u);
  for (size_t i = 0; i < TlsCounts::kMostPolicies; ++i) counts.add_success("d0.example", {Type::tlsa, "m", {std::to_string(i)}, {}});
  EXPECT_EQ(counts.domains().at("d0.example").size(), TlsCounts::kMostPolicies);
  EXPECT_EQ(counts.left_out(), 4u);
}

TEST(TlsCounts, FailuresPastTheBoundCountByTheirResultAlone) {
  TlsCounts counts;
  for (size_t i = 0; i < TlsCounts::kMostFailures + 10; ++i) {
    counts.add_failure("a.example", {}, {TlsResult::certificate_expired, "192.0.2.1", "mx" + std::to_string(i) + ".example", {}, {}});
  }
  const TlsCounts::Policy& policy = counts.domains().at("a.example").at(0);
  EXPECT_EQ(policy.failed, TlsCounts::kMostFailures + 10);
  ASSERT_EQ(policy.failures.size(), TlsCounts::kMostFailures + 1);
  EXPECT_EQ(policy.failures.back().sessions, 10u);
  EXPECT_EQ(policy.failures.back().what, (TlsFailure{TlsResult::certificate_expired, {}, {}, {}, {}}));
}

// ---- where it goes

TEST(TlsReportRecord, IsRead) {
  const auto one = read_tlsrpt_record({"v=spf1 -all", "v=TLSRPTv1;rua=mailto:reports@example.com"});
  ASSERT_TRUE(one);
  EXPECT_EQ(one->mailto, std::vector<std::string>{"mailto:reports@example.com"});
  EXPECT_TRUE(one->https.empty());
  const auto two = read_tlsrpt_record({"v=TLSRPTv1; x=y; rua=https://a.example/v1?x=1 , mailto:b@example , ftp://c ; "});
  ASSERT_TRUE(two);
  EXPECT_EQ(two->https, std::vector<std::string>{"https://a.example/v1?x=1"});
  EXPECT_EQ(two->mailto, std::vector<std::string>{"mailto:b@example"});
}

TEST(TlsReportRecord, AnythingElseIsNone) {
  for (const auto& texts : std::vector<std::vector<std::string>>{
           {}, {""}, {"v=TLSRPTv1"}, {"v=TLSRPTv1;"}, {"v=TLSRPTv1; rua="}, {"v=TLSRPTv1; rua=,"}, {"v=TLSRPTv1; rua"},
           {"v=TLSRPTv10; rua=mailto:a@b"}, {"V=TLSRPTV1; rua=mailto:a@b"}, {"rua=mailto:a@b; v=TLSRPTv1"}, {"v=TLSRPTv1; ; rua=mailto:a@b"},
           {"v=TLSRPTv1; rua=mailto:a@b; rua=mailto:c@d"}, {"v=TLSRPTv1; rua=mailto:a@b", "v=TLSRPTv1; rua=mailto:a@b"},
           {"v=TLSRPTv1; rua=https://a b"}, {std::string("v=TLSRPTv1; rua=https://a\r\n", 26)}, {"v=TLSRPTv1; =x; rua=mailto:a@b"}}) {
    EXPECT_FALSE(read_tlsrpt_record(texts).has_value()) << (texts.empty() ? "" : texts[0]);
  }
  std::string many = "v=TLSRPTv1; rua=";
  for (int i = 0; i < 100; ++i) many += (i > 0 ? ",https://a.example/" : "https://a.example/") + std::to_string(i);
  EXPECT_EQ(read_tlsrpt_record({many})->https.size(), kMostReportAddresses);
}

TEST(TlsReportUrl, IsReadOrRefused) {
  const auto url = read_https_url("HTTPS://Reports.Example:8443/v1/tlsrpt?a=b");
  ASSERT_TRUE(url);
  EXPECT_EQ(url->host, "reports.example");
  EXPECT_EQ(url->port, 8443);
  EXPECT_EQ(url->target, "/v1/tlsrpt?a=b");
  EXPECT_EQ(read_https_url("https://a.example")->target, "/");
  EXPECT_EQ(read_https_url("https://a.example?x")->target, "/?x");
  for (const char* bad : {"http://a.example/", "https://", "https:///x", "https://u@a.example/", "https://a.example:0/", "https://a.example:x/",
                          "https://a.example:99999/", "https://a.example:/", "https://127.0.0.1/", "https://[::1]/", "https://a.example/#x",
                          "https://a.example/ x", "https://a..example/", "https://0x7f.1/", "https://127.0x1/", "https://0x7f000001/", "mailto:a@b", "https://a.example\\@b/"}) {
    EXPECT_FALSE(read_https_url(bad).has_value()) << bad;
  }
}

// ---- what a session counts as

tls::test::Certificates& made() {
  static tls::test::Certificates certificates;
  return certificates;
}

class TlsCounting : public ConnectionTest {
 protected:
  TlsCounting() {
    auto settings = std::make_shared<tls::ClientSettings>();
    settings->ca_pem = *tls::read_authorities(made().authority());
    config_.tls_client = settings;
    config_.tls_reports = "reports@relay.example";
    queue_.waiting_for = {"dest.example", "other.example"};
    restart();
  }
  Peer& peer_with(const tls::test::Certificates::Wish& wish, std::string answer = "220 go\r\n") {
    static int number = 0;
    Peer& peer = simple_peer();
    tls::ServerSettings settings;
    settings.certificates.push_back(*tls::read_certificate(made().make("report" + std::to_string(++number), wish)));
    peer.tls = *tls::ServerContext::make(settings);
    Peer::Script before = Peer::well_behaved({"PIPELINING", "STARTTLS"}), after = Peer::well_behaved({"PIPELINING"});
    peer.script = [=](Peer::Session& session, const std::string& line) {
      if (line == "STARTTLS") return answer;
      return session.secured ? after(session, line) : before(session, line);
    };
    return peer;
  }
  // Says what was counted: "domain: type good/failed result..."
  std::string counted(std::vector<std::string> domains = {"dest.example"}, int64_t seconds = 1000) {
    const size_t before = queue_.ends.size();
    for (const std::string& domain : domains) add("x\r\n", {"a@" + domain}).attempt.domain = domains_.emplace_back(domain);
    resolve("dest.example");
    open();
    EXPECT_TRUE(run_until_closed(before + 1, seconds));
    const TlsCounts counts = agent_->take_tls_counts();
    const std::map<std::string, TlsCounts::Domain> sorted(counts.domains().begin(), counts.domains().end());
    std::string out;
    for (const auto& [domain, policies] : sorted) {
      for (const TlsCounts::Policy& policy : policies) {
        out += fmt::format("{}{}: {} {}/{}", out.empty() ? "" : "; ", domain, to_string(policy.policy.type), policy.successful, policy.failed);
        for (const TlsCounts::Failure& failure : policy.failures) {
          out += fmt::format(" {}", to_string(failure.what.result));
          last_ = failure.what;
        }
      }
    }
    return out;
  }
  std::deque<std::string> domains_;
  TlsFailure last_;
};

TEST_F(TlsCounting, SessionCountsOnceForEachDomainItCarries) {
  peer_with({.names = "DNS:mx.example"});
  EXPECT_EQ(counted({"dest.example", "dest.example", "other.example", "dest.example"}),
            "dest.example: no-policy-found 1/0; other.example: no-policy-found 1/0");
}

TEST_F(TlsCounting, NothingIsCountedWhenNobodyReports) {
  config_.tls_reports = "off";
  restart();
  peer_with({.names = "DNS:mx.example"});
  EXPECT_EQ(counted(), "");
}

TEST_F(TlsCounting, WithoutTheOfferIsAFailure) {
  simple_peer();
  EXPECT_EQ(counted(), "dest.example: no-policy-found 0/1 starttls-not-supported");
  EXPECT_EQ(last_, (TlsFailure{TlsResult::starttls_not_supported, "192.0.2.250", "mx.example", "198.51.100.1", {}}));
}

TEST_F(TlsCounting, RefusalIsCountedOnceAndForAllThatWait) {
  peer_with({.names = "DNS:mx.example"}, "454 not now\r\n");
  EXPECT_EQ(counted(), "dest.example: no-policy-found 0/1 starttls-not-supported; other.example: no-policy-found 0/1 starttls-not-supported");
  EXPECT_EQ(counted(), "") << "the connection in the clear is no session of its own";
}

TEST_F(TlsCounting, CertificateThatIsNotGoodIsAFailureWhereItMustBe) {
  config_.tls = config::TlsLevel::verified;
  restart();
  peer_with({.names = "DNS:other.example"});
  EXPECT_EQ(counted(), "dest.example: no-policy-found 0/1 certificate-host-mismatch; "
                       "other.example: no-policy-found 0/1 certificate-host-mismatch");
}

TEST_F(TlsCounting, BrokenHandshakeIsAFailureToValidate) {
  config_.tls = config::TlsLevel::required;
  restart();
  peer_with({.names = "DNS:mx.example"}).tls = nullptr;  // 220, and then no TLS
  queue_.waiting_for = {"dest.example"};
  EXPECT_EQ(counted(), "dest.example: no-policy-found 0/1 validation-failure");
  EXPECT_FALSE(last_.reason.empty());
}

TEST_F(TlsCounting, WhatWeCutShortIsNobodysFailure) {
  Peer& peer = peer_with({.names = "DNS:mx.example"}, "");  // says nothing to STARTTLS
  resolve("dest.example");
  add("x\r\n", {"a@dest.example"}).attempt.domain = "dest.example";
  open();
  world_.run_for(kSecond);
  ASSERT_EQ(peer.sessions.size(), 1u);
  agent_->abort();
  world_.run_for(kSecond);
  EXPECT_EQ(queue_.ends.size(), 1u);
  EXPECT_TRUE(agent_->take_tls_counts().empty());
}

TEST_F(TlsCounting, HostThatIsNotTriedCountsOnceWhateverItsAddresses) {
  peer_with({.names = "DNS:mx.example"});
  zones_.add_address("mx.example", "198.51.100.2");
  zones_.sign("dest.example");
  zones_.sign("mx.example");
  zones_.fail("_25._tcp.mx.example", dns::Outcome::failure);
  queue_.waiting_for = {"dest.example"};
  EXPECT_EQ(counted(), "dest.example: tlsa 0/1 dnssec-invalid");
  EXPECT_EQ(agent_->stats().tls_blocked, 2u);
}

class StsCounting : public TlsCounting {
 protected:
  StsCounting() { queue_.waiting_for = {"dest.example"}; }
  void know(StsPolicy::Mode mode, std::vector<std::string> mx) {
    StsPolicy policy;
    policy.mode = mode;
    policy.mx = std::move(mx);
    policy.max_age_s = 86'400;
    policy.id = "1";
    policy.fetched_ms = io_->wall_ms();
    agent_->sts_policies().note("dest.example", policy);
  }
};

TEST_F(StsCounting, EnforcedPolicyThatIsMet) {
  peer_with({.names = "DNS:mx.example"});
  know(StsPolicy::Mode::enforce, {"mx.example"});
  EXPECT_EQ(counted(), "dest.example: sts 1/0");
}

TEST_F(StsCounting, TestingPolicyThatIsNotMetIsAFailureAndMailGoes) {
  peer_with({.names = "DNS:other.example"});
  know(StsPolicy::Mode::testing, {"mx.example"});
  EXPECT_EQ(counted(), "dest.example: sts 0/1 certificate-host-mismatch");
  EXPECT_EQ(queue_.outcomes(), "[delivered]");
}

TEST_F(StsCounting, TestingPolicyThatNamesOtherHosts) {
  peer_with({.names = "DNS:mx.example"});
  know(StsPolicy::Mode::testing, {"mx.elsewhere.example"});
  EXPECT_EQ(counted(), "dest.example: sts 0/1 validation-failure");
}

TEST_F(StsCounting, EnforcedPolicyThatNamesOtherHosts) {
  peer_with({.names = "DNS:mx.example"});
  know(StsPolicy::Mode::enforce, {"mx.elsewhere.example"});
  resolve("dest.example");
  const TlsCounts counts = agent_->take_tls_counts();
  ASSERT_TRUE(counts.domains().contains("dest.example"));
  EXPECT_EQ(counts.domains().at("dest.example")[0].failures[0].what.mx, "mx.example");
}

// ---- sending

class FakePoster final : public StsFetcher {
 public:
  bool submit(std::unique_ptr<StsFetch> fetch) override {
    posts.push_back(fmt::format("{}:{}{} {} {}", fetch->host, fetch->port, fetch->target, fetch->upload_type, fetch->addresses.at(0).host_string()));
    last_upload = fetch->upload;
    fetch->fetched = well;
    if (!well) fetch->error = "no server";
    StsFetch::give_back(std::move(fetch));
    return true;
  }
  void stop() override {}
  bool well = true;
  std::vector<std::string> posts;
  std::string last_upload;
};

class Reporting : public ConnectionTest {
 protected:
  static constexpr int64_t kDay = 86'400;

  Reporting() : mailbox_(*io_) {
    io_->on_wake = [this] { mailbox_.drain(); };
    zones_.add_text("_smtp._tls.dest.example", "v=TLSRPTv1; rua=https://reports.example/in");
    zones_.add_address("reports.example", "198.51.100.90");
    begin();
  }
  ~Reporting() override {
    reporter_.reset();
    io_->on_wake = nullptr;
  }
  // A relay's start, with what was stored.
  void begin() {
    reporter_.reset();
    reporter_ = std::make_unique<TlsReporter>(*io_, *cache_);
    reporter_->set_fetcher(&poster_, &mailbox_);
    reporter_->gather = [this](std::function<void(TlsCounts)> done) { done(std::exchange(counted_, {})); };
    reporter_->set_spool("0123");
    reporter_->store = [this](std::string key, std::string value, std::function<void()> done) {
      if (!disk_works_) return unwritten_.push_back(key);
      if (value.empty()) {
        stored_.erase(key);
      } else {
        stored_[key] = value;
      }
      if (done) done();
    };
    reporter_->configure(options_);
    for (const auto& [key, value] : stored_) reporter_->recover(std::string_view(key).substr(7), value);
    reporter_->start();
  }
  void count(const std::string& domain, uint64_t good, uint64_t failed = 0) {
    if (good > 0) counted_.add_success(domain, {Type::none, domain, {}, {}}, good);
    if (failed > 0) counted_.add_failure(domain, {Type::none, domain, {}, {}}, {TlsResult::starttls_not_supported, {}, "mx", {}, {}}, failed);
  }
  int64_t now_s() { return io_->wall_ms() / 1000; }
  int64_t midnight() { return (now_s() / kDay + 1) * kDay; }
  json last_report() { return json::parse(inflated(poster_.last_upload)); }
  void run_to(int64_t utc_s) { world_.run_for((utc_s - now_s()) * kSecond); }
  void stop() {
    bool stopped = false;
    reporter_->stop([&] { stopped = true; });
    EXPECT_TRUE(stopped);
  }

  reactor::Mailbox mailbox_;
  FakePoster poster_;
  TlsCounts counted_;
  std::map<std::string, std::string> stored_;
  bool disk_works_ = true;
  std::vector<std::string> unwritten_;
  TlsReporter::Options options_{.on = true, .organization = "Relay", .contact = "r@relay.example", .node = "relay.example", .authorities = {}};
  std::unique_ptr<TlsReporter> reporter_;
};

TEST_F(Reporting, DayIsSentAfterItsEndOnceAndWithADelay) {
  const int64_t end = midnight();
  count("dest.example", 3, 2);
  run_to(end + TlsReporter::kShortestDelayS - 10);
  EXPECT_TRUE(poster_.posts.empty());
  run_to(end + TlsReporter::kLongestDelayS + 600);
  ASSERT_EQ(poster_.posts, std::vector<std::string>{"reports.example:443/in application/tlsrpt+gzip 198.51.100.90"});
  const json report = json::parse(inflated(poster_.last_upload));
  EXPECT_EQ(report["organization-name"], "Relay");
  EXPECT_EQ(report["contact-info"], "r@relay.example");
  EXPECT_EQ(report["policies"][0]["summary"]["total-successful-session-count"], 3);
  EXPECT_EQ(report["policies"][0]["summary"]["total-failure-session-count"], 2);
  EXPECT_TRUE(report["date-range"]["end-datetime"].get<std::string>().ends_with("T23:59:59Z"));
  EXPECT_EQ(reporter_->stats().sent, 1u);
  EXPECT_TRUE(stored_.empty());
  run_to(end + kDay);
  EXPECT_EQ(poster_.posts.size(), 1u);
}

TEST_F(Reporting, CountsOfADaySurviveARestart) {
  const int64_t end = midnight();
  count("dest.example", 3);
  stop();
  begin();
  count("dest.example", 4);
  run_to(end + TlsReporter::kLongestDelayS + 600);
  ASSERT_EQ(poster_.posts.size(), 1u);
  EXPECT_EQ(json::parse(inflated(poster_.last_upload))["policies"][0]["summary"]["total-successful-session-count"], 7);
}

TEST_F(Reporting, RestartAfterMidnightSendsTheDayBefore) {
  const int64_t end = midnight();
  count("dest.example", 3);
  stop();
  reporter_.reset();
  run_to(end + 100);
  begin();
  count("dest.example", 4);
  run_to(end + TlsReporter::kLongestDelayS + 600);
  ASSERT_EQ(poster_.posts.size(), 1u);
  EXPECT_EQ(json::parse(inflated(poster_.last_upload))["policies"][0]["summary"]["total-successful-session-count"], 3);
}

TEST_F(Reporting, FailureIsTriedAgainForADayAndThenGivenUp) {
  const int64_t end = midnight();
  poster_.well = false;
  count("dest.example", 1);
  run_to(end + TlsReporter::kLongestDelayS + 3 * 3600);
  EXPECT_GE(poster_.posts.size(), 4u);
  EXPECT_EQ(reporter_->stats().given_up, 0u);
  ASSERT_EQ(reporter_->rows().size(), 1u);
  EXPECT_EQ(reporter_->rows()[0].why, "https://reports.example/in: no server");
  run_to(end + TlsReporter::kLongestDelayS + TlsReporter::kGiveUpS + 600);
  EXPECT_EQ(reporter_->stats().given_up, 1u);
  EXPECT_LT(poster_.posts.size(), 15u);
  EXPECT_TRUE(stored_.empty());
}

TEST_F(Reporting, AnsweredAtLast) {
  const int64_t end = midnight();
  poster_.well = false;
  count("dest.example", 1);
  run_to(end + TlsReporter::kLongestDelayS + 600);
  poster_.well = true;
  run_to(end + TlsReporter::kLongestDelayS + 3 * 3600);
  EXPECT_EQ(reporter_->stats().sent, 1u);
}

TEST_F(Reporting, WhoWantsNoneOrMailGetsNone) {
  zones_.add_text("_smtp._tls.mail.example", "v=TLSRPTv1; rua=mailto:reports@mail.example");
  count("mail.example", 1);
  count("silent.example", 1);
  run_to(midnight() + TlsReporter::kLongestDelayS + 600);
  EXPECT_TRUE(poster_.posts.empty());
  EXPECT_EQ(reporter_->stats().mail_only, 1u);
  EXPECT_TRUE(stored_.empty());
}

TEST_F(Reporting, PrivateAddressesAreNotPostedTo) {
  zones_.add_text("_smtp._tls.bad.example", "v=TLSRPTv1; rua=https://inside.example/");
  zones_.add_address("inside.example", "127.0.0.1");
  count("bad.example", 1);
  run_to(midnight() + TlsReporter::kLongestDelayS + 600);
  EXPECT_TRUE(poster_.posts.empty());
  ASSERT_EQ(reporter_->rows().size(), 1u);
}

TEST_F(Reporting, OperatorSendsNowAndTheRestOfTheDayComesLater) {
  const int64_t end = midnight();
  count("dest.example", 1);
  size_t due = 0;
  reporter_->send_now([&](size_t reports) { due = reports; });
  EXPECT_EQ(due, 1u);
  world_.run_for(60 * kSecond);
  ASSERT_EQ(poster_.posts.size(), 1u);
  count("dest.example", 5);
  stop();
  begin();
  run_to(end + TlsReporter::kLongestDelayS + 600);
  ASSERT_EQ(poster_.posts.size(), 2u);
  const json report = json::parse(inflated(poster_.last_upload));
  EXPECT_EQ(report["policies"][0]["summary"]["total-successful-session-count"], 5);
  EXPECT_FALSE(report["date-range"]["start-datetime"].get<std::string>().ends_with("T00:00:00Z"));
}

TEST_F(Reporting, StopDoesNotWaitForADiskThatTakesNothing) {
  disk_works_ = false;
  count("dest.example", 1);
  stop();
  EXPECT_EQ(unwritten_.size(), 1u) << "it was asked to";
}

TEST_F(Reporting, WhileTheDiskTakesNothingNoFurtherBatchWaitsForIt) {
  disk_works_ = false;
  for (int i = 0; i < 5; ++i) {
    count("dest.example", 1);
    world_.run_for(TlsReporter::kGatherNs);
  }
  EXPECT_EQ(unwritten_.size(), 1u);
}

TEST_F(Reporting, AllOfManyDomainsAreStoredSoon) {
  const size_t many = 2 * TlsReporter::kMostWritten + 1;
  run_to(midnight());  // far from the next one
  for (size_t i = 0; i < many; ++i) count(fmt::format("d{}.example", i), 1);
  world_.run_for(TlsReporter::kGatherNs + 10 * TlsReporter::kWriteAgainNs);
  EXPECT_EQ(stored_.size(), many);
}

TEST_F(Reporting, SentPartStaysAReportOfItsOwnAfterARestart) {
  poster_.well = false;
  count("dest.example", 2);
  reporter_->send_now([](size_t) {});
  world_.run_for(60 * kSecond);
  ASSERT_EQ(poster_.posts.size(), 1u);
  const json first = last_report();
  stop();
  begin();
  count("dest.example", 5);
  poster_.well = true;
  run_to(midnight() - 1);
  ASSERT_EQ(poster_.posts.size(), 2u);
  EXPECT_EQ(last_report(), first) << "the same, by the same id";
  run_to(midnight() + TlsReporter::kLongestDelayS + 600);
  ASSERT_EQ(poster_.posts.size(), 3u);
  EXPECT_EQ(last_report()["policies"][0]["summary"]["total-successful-session-count"], 5);
  EXPECT_NE(last_report()["report-id"], first["report-id"]);
  EXPECT_TRUE(stored_.empty());
}

TEST_F(Reporting, ClockPutBackDelaysNothing) {
  const int64_t right = midnight();
  world_.step_wall((right - now_s() + 30 * kDay + 100) * 1000);
  world_.run_for(2 * TlsReporter::kGatherNs);
  count("dest.example", 3);
  world_.run_for(TlsReporter::kGatherNs);
  EXPECT_EQ(stored_.size(), 1u);
  world_.step_wall((right + 100 - now_s()) * 1000);
  count("dest.example", 4);
  world_.run_for(2 * TlsReporter::kGatherNs);
  stop();
  begin();
  ASSERT_EQ(reporter_->rows().size(), 1u);
  EXPECT_EQ(reporter_->rows()[0].successful, 7u);
  run_to(right + kDay + TlsReporter::kLongestDelayS + 600);
  ASSERT_EQ(poster_.posts.size(), 1u);
  EXPECT_EQ(last_report()["policies"][0]["summary"]["total-successful-session-count"], 7);
  EXPECT_TRUE(stored_.empty());
}

TEST_F(Reporting, WhatWasDueUnderAWrongClockIsDueSoon) {
  const int64_t right = midnight();
  count("dest.example", 3);
  world_.step_wall((right - now_s() + 30 * kDay - 1000) * 1000);
  world_.run_for(TlsReporter::kGatherNs + 60 * kSecond);
  EXPECT_EQ(poster_.posts.size(), 1u);
  count("dest.example", 4);
  world_.run_for(1000 * kSecond);  // over a midnight of the wrong time
  EXPECT_EQ(stored_.size(), 1u);
  world_.step_wall((right + 100 - now_s()) * 1000);
  run_to(right + 100 + TlsReporter::kLongestDelayS + 600);
  EXPECT_EQ(poster_.posts.size(), 2u);
}

TEST_F(Reporting, ADomainThatDoesNotAnswerIsNoReportGivenUp) {
  zones_.fail("_smtp._tls.mute.example", dns::Outcome::failure);
  count("mute.example", 1);
  run_to(midnight() + TlsReporter::kLongestDelayS + TlsReporter::kGiveUpS + 5 * 3600);
  EXPECT_EQ(reporter_->stats().given_up, 0u);
  EXPECT_TRUE(reporter_->rows().empty());
  EXPECT_TRUE(stored_.empty());
}

TEST_F(Reporting, MalformedAddressIsNotTriedAgain) {
  zones_.add_text("_smtp._tls.odd.example", "v=TLSRPTv1; rua=https://192.0.2.1/in");
  count("odd.example", 1);
  run_to(midnight() + TlsReporter::kLongestDelayS + 60);
  EXPECT_TRUE(reporter_->rows().empty());
  EXPECT_EQ(reporter_->stats().sent + reporter_->stats().given_up, 0u);
}

TEST_F(Reporting, OneOfSeveralAddressesIsEnoughToCountAsSent) {
  zones_.add_text("_smtp._tls.two.example", "v=TLSRPTv1; rua=https://nowhere.example/,https://reports.example/in");
  count("two.example", 1);
  run_to(midnight() + TlsReporter::kLongestDelayS + TlsReporter::kGiveUpS + 5 * 3600);
  EXPECT_EQ(poster_.posts.size(), 1u);
  EXPECT_EQ(reporter_->stats().sent, 1u);
  EXPECT_EQ(reporter_->stats().given_up, 0u);
}

TEST_F(Reporting, AfterAnOutageAReportHasItsDayOfTries) {
  const int64_t end = midnight();
  count("dest.example", 3);
  stop();
  reporter_.reset();
  run_to(end + 2 * kDay);
  poster_.well = false;
  begin();
  run_to(end + 2 * kDay + 10 * 3600);
  EXPECT_EQ(reporter_->stats().given_up, 0u);
  poster_.well = true;
  run_to(end + 3 * kDay);
  EXPECT_EQ(reporter_->stats().sent, 1u);
}

TEST_F(Reporting, TurnedOffNothingIsKept) {
  count("dest.example", 1);
  stop();
  EXPECT_EQ(stored_.size(), 1u);
  options_.on = false;
  begin();
  EXPECT_TRUE(stored_.empty());
  run_to(midnight() + TlsReporter::kLongestDelayS + 600);
  EXPECT_TRUE(poster_.posts.empty());
}

}  // namespace
}  // namespace millrace::delivery
