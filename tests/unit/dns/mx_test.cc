// MX rules over the model of the DNS, on a simulated clock.
#include "dns/mx.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "dns/model.h"
#include "reactor/sim.h"

namespace millrace::dns {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

class MxTest : public ::testing::Test {
 protected:
  MxTest()
      : world_(1),
        io_(world_.make_io(world_.add_host({"192.0.2.250"}))),
        transport_(*io_, zones_),
        cache_(*io_, transport_, {.max_entries = 1000}),
        mx_(*io_, cache_, {.own_names = {"Relay.Example"}}) {}

  RouteRef find(std::string_view domain) {
    RouteRef found;
    mx_.find_hosts(domain, [&](const RouteRef& route) { found = route; });
    EXPECT_EQ(found, nullptr) << "answered inside the call";
    EXPECT_TRUE(world_.run_until([&] { return found != nullptr; }, world_.now() + 600 * kSecond));
    return found;
  }
  Verdict verdict(std::string_view domain) { return find(domain)->verdict; }
  void options(MxOptions options) {
    options.own_names = {"relay.example"};
    mx_.configure(options);
  }
  static std::string names(const Route& route) {
    std::string out;
    for (const Host& host : route.hosts) out += fmt::format("{}:{} ", host.preference, host.name);
    return out;
  }

  reactor::SimWorld world_;
  std::unique_ptr<reactor::Io> io_;
  ModelZones zones_;
  ModelTransport transport_;
  Cache cache_;
  Mx mx_;
};

TEST_F(MxTest, HostsComeInOrderOfPreference) {
  zones_.add_mx("example.com", 20, "b.mx.example");
  zones_.add_mx("example.com", 10, "a.mx.example");
  zones_.add_mx("example.com", 30, "c.mx.example");
  zones_.add_address("a.mx.example", "198.51.100.1");
  zones_.add_address("b.mx.example", "198.51.100.2");
  zones_.add_address("c.mx.example", "198.51.100.3");
  const RouteRef route = find("example.com");
  EXPECT_EQ(route->verdict, Verdict::usable);
  EXPECT_EQ(names(*route), "10:a.mx.example 20:b.mx.example 30:c.mx.example ");
  EXPECT_EQ(route->hosts[0].addresses.at(0).to_string(), "198.51.100.1:25");
  EXPECT_EQ(route->site, "a.mx.example,b.mx.example,c.mx.example");
  EXPECT_FALSE(route->implicit);
}

class DaneTest : public MxTest {
 protected:
  DaneTest() {
    zones_.add_mx("example.com", 10, "mx.example.com");
    zones_.add_address("mx.example.com", "198.51.100.1");
  }
  Dane dane(std::string_view domain = "example.com") {
    RouteRef found;
    mx_.find_hosts(domain, [&](const RouteRef& route) { found = route; }, true);
    EXPECT_TRUE(world_.run_until([&] { return found != nullptr; }, world_.now() + 600 * kSecond));
    EXPECT_EQ(found->verdict, Verdict::usable) << found->reason;
    return found->hosts.at(0).dane;
  }
  const tls::TlsaRecord record_{3, 1, 1, std::string(32, 'x')};
};

TEST_F(DaneTest, RecordsOfASignedHostOfASignedDomainAreFound) {
  zones_.sign("example.com");
  zones_.add_tlsa("_25._tcp.mx.example.com", record_);
  const Dane found = dane();
  ASSERT_EQ(found.state, Dane::State::records);
  EXPECT_EQ(found.records, std::vector{record_});
  EXPECT_EQ(found.base, "mx.example.com");
}

TEST_F(DaneTest, RecordsAreNotAskedForWhereTheMxAnswerIsNotSecure) {
  zones_.sign("mx.example.com");  // the host is, the domain is not
  zones_.add_tlsa("_25._tcp.mx.example.com", record_);
  EXPECT_EQ(dane().state, Dane::State::none);
  EXPECT_EQ(transport_.asked("_25._tcp.mx.example.com", Type::tlsa), 0u);
}

TEST_F(DaneTest, RecordsAreNotAskedForWhereTheAddressIsNotSecure) {
  zones_.add_mx("other.example", 10, "mx.example.com");
  zones_.sign("other.example");
  zones_.add_tlsa("_25._tcp.mx.example.com", record_);
  EXPECT_EQ(dane("other.example").state, Dane::State::none);
  EXPECT_EQ(transport_.asked("_25._tcp.mx.example.com", Type::tlsa), 0u);
}

TEST_F(DaneTest, NoRecordsAreNone) {
  zones_.sign("example.com");
  EXPECT_EQ(dane().state, Dane::State::none);
}

TEST_F(DaneTest, FailedLookUpIsUnknownAndNeverNone) {
  zones_.sign("example.com");
  for (Outcome outcome : {Outcome::failure, Outcome::malformed}) {
    zones_.fail("_25._tcp.mx.example.com", outcome);
    const Dane found = dane();
    EXPECT_EQ(found.state, Dane::State::unknown);
    EXPECT_NE(found.reason.find("_25._tcp.mx.example.com"), std::string::npos) << found.reason;
    world_.run_for(10 * kSecond);
  }
  zones_.heal("_25._tcp.mx.example.com");
  EXPECT_EQ(dane().state, Dane::State::none);
}

TEST_F(DaneTest, AliasIsExpandedFirstAndThenTakenAsItIs) {
  zones_.sign("example.com");
  zones_.add_mx("a.example.com", 10, "alias.example.com");
  zones_.add_alias("alias.example.com", "mx.example.com");
  for (bool leave_aliases : {false, true}) {
    zones_.faults.leave_aliases = leave_aliases;
    cache_.flush();
    zones_.remove("_25._tcp.mx.example.com");
    zones_.add_tlsa("_25._tcp.alias.example.com", record_);
    EXPECT_EQ(dane("a.example.com").base, "alias.example.com");
    cache_.flush();
    zones_.add_tlsa("_25._tcp.mx.example.com", record_);
    EXPECT_EQ(dane("a.example.com").base, "mx.example.com");
  }
}

TEST_F(DaneTest, SignedAliasOfAnUnsignedHostHasRecordsOfItsOwn) {
  zones_.sign("example.com");
  zones_.add_mx("a.example.com", 10, "alias.example.com");
  zones_.add_alias("alias.example.com", "host.elsewhere.example");
  zones_.add_address("host.elsewhere.example", "198.51.100.2");
  zones_.add_tlsa("_25._tcp.host.elsewhere.example", record_);
  EXPECT_EQ(dane("a.example.com").state, Dane::State::none);
  cache_.flush();
  zones_.add_tlsa("_25._tcp.alias.example.com", record_);
  EXPECT_EQ(dane("a.example.com").base, "alias.example.com");
}

TEST_F(DaneTest, ImplicitMxHasRecordsToo) {
  zones_.add_address("plain.example", "198.51.100.3");
  zones_.sign("plain.example");
  zones_.add_tlsa("_25._tcp.plain.example", record_);
  EXPECT_EQ(dane("plain.example").base, "plain.example");
}

TEST_F(DaneTest, NextHopIsAskedForAtItsPort) {
  zones_.sign("example.com");
  zones_.add_tlsa("_465._tcp.mx.example.com", record_);
  RouteRef found;
  mx_.find_next_hop("mx.example.com", 465, [&](const RouteRef& route) { found = route; }, true);
  ASSERT_TRUE(world_.run_until([&] { return found != nullptr; }, world_.now() + 600 * kSecond));
  EXPECT_EQ(found->hosts.at(0).dane.state, Dane::State::records);
}

TEST_F(MxTest, EqualHostsAreShuffledAndAllOfThemComeFirst) {
  for (int i = 0; i < 4; ++i) {
    const std::string host = fmt::format("mx{}.example", i);
    zones_.add_mx("example.com", 10, host);
    zones_.add_address(host, fmt::format("198.51.100.{}", i));
  }
  const RouteRef route = find("example.com");
  std::set<std::string> first;
  for (int round = 0; round < 200; ++round) {
    const Targets targets = choose_targets(*route, {}, *io_);
    ASSERT_EQ(targets.count, 4u);
    first.insert(targets.list[0].host->name);
  }
  EXPECT_EQ(first.size(), 4u);
}

TEST_F(MxTest, LowerPreferenceNeverComesLater) {
  zones_.add_mx("example.com", 10, "a.example");
  zones_.add_mx("example.com", 20, "b.example");
  zones_.add_address("a.example", "198.51.100.1");
  zones_.add_address("a.example", "198.51.100.2");
  zones_.add_address("b.example", "198.51.100.3");
  const RouteRef route = find("example.com");
  for (int round = 0; round < 50; ++round) {
    const Targets targets = choose_targets(*route, {}, *io_);
    ASSERT_EQ(targets.count, 3u);
    EXPECT_EQ(targets.list[2].host->name, "b.example");
  }
}

TEST_F(MxTest, SameHostSetIsTheSameSiteWhateverTheDomain) {
  zones_.add_mx("one.example", 10, "a.mx.example");
  zones_.add_mx("one.example", 20, "b.mx.example");
  zones_.add_mx("two.example", 5, "B.mx.example");
  zones_.add_mx("two.example", 5, "a.MX.example");
  zones_.add_address("a.mx.example", "198.51.100.1");
  zones_.add_address("b.mx.example", "198.51.100.2");
  EXPECT_EQ(find("one.example")->site, find("two.example")->site);
}

TEST_F(MxTest, WithoutMxTheDomainItselfIsTheHost) {
  zones_.add_address("example.com", "198.51.100.9");
  const RouteRef route = find("example.com");
  EXPECT_EQ(route->verdict, Verdict::usable);
  EXPECT_TRUE(route->implicit);
  EXPECT_EQ(names(*route), "0:example.com ");
  EXPECT_EQ(route->site, "example.com");
}

TEST_F(MxTest, ImplicitMxIsNotUsedWhenThereIsAnMx) {
  zones_.add_mx("example.com", 10, "gone.example");
  zones_.add_address("example.com", "198.51.100.9");
  EXPECT_EQ(verdict("example.com"), Verdict::no_usable_host);
}

TEST_F(MxTest, NullMxTakesNoMail) {
  zones_.add_mx("example.com", 0, ".");
  zones_.add_address("example.com", "198.51.100.9");
  const RouteRef route = find("example.com");
  EXPECT_EQ(route->verdict, Verdict::null_mx);
  EXPECT_EQ(enhanced_status(route->verdict), "5.1.10");
}

TEST_F(MxTest, RootAmongOtherHostsIsSkipped) {
  zones_.add_mx("example.com", 0, ".");
  zones_.add_mx("example.com", 10, "a.example");
  zones_.add_address("a.example", "198.51.100.1");
  EXPECT_EQ(names(*find("example.com")), "10:a.example ");
}

TEST_F(MxTest, DomainWithoutAnythingDoesNotExist) {
  EXPECT_EQ(verdict("nowhere.example"), Verdict::no_such_domain);
  zones_.add_empty("empty.example");
  EXPECT_EQ(verdict("empty.example"), Verdict::no_such_domain);
}

TEST_F(MxTest, SecondQueryOfAMissingDomainIsANewOneOnceTheFirstHasLapsed) {
  const RouteRef first = find("nowhere.example");
  world_.run_for(600 * kSecond);
  const RouteRef second = find("nowhere.example");
  EXPECT_EQ(second->verdict, Verdict::no_such_domain);
  EXPECT_GE(second->answered_ns, first->answered_ns + 600 * kSecond);
  EXPECT_EQ(transport_.asked("nowhere.example", Type::mx), 2u);
}

TEST_F(MxTest, DomainWithIpv6OnlyExistsThoughWeCannotReachIt) {
  zones_.add_address("six.example", "2001:db8::1");
  EXPECT_EQ(verdict("six.example"), Verdict::no_usable_host);
}

TEST_F(MxTest, ServfailAndMalformedDefer) {
  zones_.add_address("one.example", "198.51.100.9");
  zones_.fail("one.example", Outcome::failure);
  EXPECT_EQ(verdict("one.example"), Verdict::temporary);
  zones_.fail("two.example", Outcome::malformed);
  EXPECT_EQ(verdict("two.example"), Verdict::temporary);
  EXPECT_EQ(enhanced_status(Verdict::temporary), "4.4.3");
}

TEST_F(MxTest, MissingHostIsRemovedAlone) {
  zones_.add_mx("example.com", 10, "gone.example");
  zones_.add_mx("example.com", 20, "b.example");
  zones_.add_address("b.example", "198.51.100.2");
  EXPECT_EQ(names(*find("example.com")), "20:b.example ");
}

TEST_F(MxTest, FailedHostIsLeftOutWhileAnotherIsUsable) {
  zones_.add_mx("example.com", 10, "a.example");
  zones_.add_mx("example.com", 20, "b.example");
  zones_.add_address("b.example", "198.51.100.2");
  zones_.fail("a.example", Outcome::failure);
  EXPECT_EQ(names(*find("example.com")), "20:b.example ");
  zones_.fail("b.example", Outcome::nxdomain);
  world_.run_for(3600 * kSecond);
  EXPECT_EQ(verdict("example.com"), Verdict::temporary);
}

TEST_F(MxTest, ForbiddenHostsAndAddressesAreRefused) {
  zones_.add_address("mx.private.example", "10.1.2.3");
  zones_.add_address("mx.metadata.example", "169.254.169.254");
  zones_.add_address("mx.zero.example", "0.0.0.0");
  for (const char* host : {"localhost", "127.0.0.1", "192.0.2.1", "mx.private.example",
                           "mx.metadata.example", "mx.zero.example", "bad\\046host.example"}) {
    zones_.remove("example.com");
    cache_.flush();
    zones_.add_mx("example.com", 10, host);
    const RouteRef route = find("example.com");
    EXPECT_EQ(route->verdict, Verdict::no_usable_host) << host;
    EXPECT_EQ(enhanced_status(route->verdict), "5.4.4");
    EXPECT_NE(route->reason, "") << host;
  }
}

TEST_F(MxTest, PrivateDestinationsAreUsedWhenAllowed) {
  zones_.add_mx("example.com", 10, "mx.private.example");
  zones_.add_mx("example.com", 20, "127.0.0.1");
  zones_.add_address("mx.private.example", "10.1.2.3");
  options({.allow_private = true, .port = 2525});
  const RouteRef route = find("example.com");
  ASSERT_EQ(names(*route), "10:mx.private.example 20:127.0.0.1 ");
  EXPECT_EQ(route->hosts[1].addresses.at(0).to_string(), "127.0.0.1:2525");
}

TEST_F(MxTest, OneForbiddenAddressDoesNotSpoilTheHost) {
  zones_.add_mx("example.com", 10, "mx.example");
  zones_.add_address("mx.example", "10.1.2.3");
  zones_.add_address("mx.example", "198.51.100.1");
  const RouteRef route = find("example.com");
  ASSERT_EQ(route->verdict, Verdict::usable);
  ASSERT_EQ(route->hosts[0].addresses.size(), 1u);
  EXPECT_EQ(route->hosts[0].addresses[0].host_string(), "198.51.100.1");
}

TEST_F(MxTest, OwnNameCutsTheSetAtItsPreference) {
  zones_.add_mx("example.com", 10, "a.example");
  zones_.add_mx("example.com", 20, "relay.example");
  zones_.add_mx("example.com", 20, "b.example");
  zones_.add_mx("example.com", 30, "c.example");
  for (const char* host : {"a.example", "b.example", "c.example", "relay.example"}) {
    zones_.add_address(host, "198.51.100.1");
  }
  EXPECT_EQ(names(*find("example.com")), "10:a.example ");
}

TEST_F(MxTest, OwnNameAsBestHostIsALoop) {
  zones_.add_mx("example.com", 10, "relay.example");
  zones_.add_mx("example.com", 20, "b.example");
  zones_.add_address("b.example", "198.51.100.1");
  EXPECT_EQ(verdict("example.com"), Verdict::loop);
  EXPECT_EQ(enhanced_status(Verdict::loop), "5.4.6");
  zones_.add_address("relay.example", "198.51.100.7");
  EXPECT_EQ(verdict("relay.example"), Verdict::loop);
}

TEST_F(MxTest, OwnAddressCutsTheSetToo) {
  options({.own_addresses = {*reactor::Address::parse_host("198.51.100.77", 0)}});
  zones_.add_mx("example.com", 10, "a.example");
  zones_.add_mx("example.com", 20, "us.example");
  zones_.add_mx("example.com", 30, "c.example");
  zones_.add_address("a.example", "198.51.100.1");
  zones_.add_address("us.example", "198.51.100.77");
  zones_.add_address("c.example", "198.51.100.3");
  EXPECT_EQ(names(*find("example.com")), "10:a.example ");
  zones_.add_mx("two.example", 10, "us.example");
  zones_.add_mx("two.example", 20, "c.example");
  EXPECT_EQ(verdict("two.example"), Verdict::loop);
  EXPECT_EQ(verdict("[198.51.100.77]"), Verdict::loop);
}

TEST_F(MxTest, AliasedHostsAreFollowed) {
  zones_.add_mx("example.com", 10, "alias.example");
  zones_.add_alias("alias.example", "real.example");
  zones_.add_address("real.example", "198.51.100.4");
  for (const bool left_to_us : {false, true}) {
    zones_.faults.leave_aliases = left_to_us;
    cache_.flush();
    const RouteRef route = find("example.com");
    ASSERT_EQ(route->verdict, Verdict::usable) << left_to_us;
    EXPECT_EQ(route->hosts[0].addresses[0].host_string(), "198.51.100.4");
  }
}

TEST_F(MxTest, AliasLoopDefers) {
  zones_.add_alias("a.example", "b.example");
  zones_.add_alias("b.example", "a.example");
  for (const bool left_to_us : {false, true}) {
    zones_.faults.leave_aliases = left_to_us;
    cache_.flush();
    EXPECT_EQ(verdict("a.example"), Verdict::temporary);
  }
}

TEST_F(MxTest, AtMostFiveAddressesOfBothFamilies) {
  options({.ipv6 = true});
  zones_.add_mx("example.com", 10, "mx.example");
  for (int i = 1; i <= 8; ++i) zones_.add_address("mx.example", fmt::format("2001:db8::{}", i));
  zones_.add_address("mx.example", "198.51.100.1");
  zones_.add_address("mx.example", "198.51.100.2");
  const RouteRef route = find("example.com");
  const auto families = [](const Targets& targets) {
    std::string out;
    for (size_t i = 0; i < targets.count; ++i) out += targets.list[i].address.is_ipv6() ? '6' : '4';
    return out;
  };
  EXPECT_EQ(
      families(choose_targets(*route, {.ipv4 = true, .ipv6 = true, .ipv6_first = true}, *io_)),
      "66664");
  EXPECT_EQ(
      families(choose_targets(*route, {.ipv4 = true, .ipv6 = true, .ipv6_first = false}, *io_)),
      "44666");
  EXPECT_EQ(families(choose_targets(*route, {.ipv4 = true, .ipv6 = false}, *io_)), "44");
  EXPECT_EQ(families(choose_targets(*route, {.ipv4 = false, .ipv6 = true}, *io_)), "66666");
}

TEST_F(MxTest, LargeSetsAreResolvedWaveByWave) {
  for (int i = 0; i < 60; ++i) {
    const std::string host = fmt::format("mx{:02}.example", i);
    zones_.add_mx("example.com", static_cast<uint16_t>(i), host);
    if (i >= 50) zones_.add_address(host, "198.51.100.1");
  }
  zones_.add_mx("two.example", 1, "mx50.example");
  const RouteRef route = find("example.com");
  ASSERT_EQ(route->verdict, Verdict::usable);
  EXPECT_EQ(route->hosts[0].name, "mx50.example");
  EXPECT_LE(transport_.queries(), 61u);
  EXPECT_LE(route->site.size(), 520u);
}

TEST_F(MxTest, LiteralsGoToTheirAddress) {
  const RouteRef route = find("[192.0.2.1]");
  ASSERT_EQ(route->verdict, Verdict::usable);
  EXPECT_EQ(route->hosts[0].addresses[0].to_string(), "192.0.2.1:25");
  EXPECT_EQ(route->site, "[192.0.2.1]");
  EXPECT_EQ(verdict("[10.0.0.1]"), Verdict::no_usable_host);
  EXPECT_EQ(verdict("[IPv6:::1]"), Verdict::no_usable_host);
  EXPECT_EQ(verdict("[nonsense]"), Verdict::no_usable_host);
  EXPECT_EQ(transport_.queries(), 0u);
}

TEST_F(MxTest, NextHopNeedsNoMxAndMayBePrivate) {
  zones_.add_mx("hub.example", 10, "elsewhere.example");
  zones_.add_address("hub.example", "10.0.0.5");
  RouteRef found;
  const auto next_hop = [&](std::string_view host) {
    found.reset();
    mx_.find_next_hop(host, 587, [&](const RouteRef& route) { found = route; });
    EXPECT_TRUE(world_.run_until([&] { return found != nullptr; }, world_.now() + 60 * kSecond));
    return found->verdict;
  };
  ASSERT_EQ(next_hop("hub.example"), Verdict::usable);
  EXPECT_TRUE(found->explicit_hop);
  EXPECT_EQ(found->site, "hub.example:587");
  EXPECT_EQ(found->hosts[0].addresses[0].to_string(), "10.0.0.5:587");
  ASSERT_EQ(next_hop("127.0.0.1"), Verdict::usable);
  EXPECT_EQ(found->hosts[0].addresses[0].to_string(), "127.0.0.1:587");
  ASSERT_EQ(next_hop("[::1]"), Verdict::usable);
  EXPECT_EQ(found->hosts[0].addresses[0].to_string(), "[::1]:587");
  EXPECT_EQ(next_hop("typo.example"), Verdict::temporary);
}

TEST_F(MxTest, ManyMissingDomainsAtOnceDeferAndAlarm) {
  for (int i = 0; i < 100; ++i) {
    const std::string domain = fmt::format("good{}.example", i);
    zones_.add_address(domain, "198.51.100.1");
    find(domain);
  }
  int bounced = 0, deferred = 0;
  for (int i = 0; i < 50; ++i) {
    const Verdict verdict = find(fmt::format("bad{}.example", i))->verdict;
    bounced += verdict == Verdict::no_such_domain;
    deferred += verdict == Verdict::temporary;
  }
  EXPECT_LE(bounced, 10);
  EXPECT_GE(deferred, 40);
  EXPECT_EQ(mx_.stats().nxdomain_alarms, 1u);
  EXPECT_TRUE(mx_.stats().nxdomain_suspicious);
  // Once the window has passed, one missing domain is a missing domain again.
  world_.run_for(400 * kSecond);
  EXPECT_EQ(verdict("bad1.example"), Verdict::no_such_domain);
  EXPECT_FALSE(mx_.stats().nxdomain_suspicious);
}

TEST(NxdomainWatch, CountsDistinctDomainsOnly) {
  NxdomainWatch watch;
  for (int i = 0; i < 1000; ++i) EXPECT_FALSE(watch.observe("typo.example", false, i));
  EXPECT_EQ(watch.missing(), 1u);
  for (int i = 0; i < 400; ++i) watch.observe(fmt::format("good{}.example", i), true, 2000);
  // 21 of 421 is less than 5 %, 22 of 422 is more.
  for (int i = 1; i < 21; ++i)
    EXPECT_FALSE(watch.observe(fmt::format("bad{}.example", i), false, 3000)) << i;
  EXPECT_FALSE(watch.observe("bad20.example", false, 3000));
  EXPECT_TRUE(watch.observe("bad21.example", false, 3000));
  EXPECT_FALSE(watch.observe("bad21.example", true, 4000));  // it came back
}

}  // namespace
}  // namespace millrace::dns
