// What only the simulator promises: one seed is one run, faults happen as they are described, a crash
// takes what it should, and misuse of the seam is found out.
#include "reactor/sim.h"

#include <gtest/gtest.h>
#include <netinet/in.h>

#include <cerrno>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "conformance_tools.h"

namespace millrace::reactor {
namespace {

using conformance::Aligned;
using conformance::Mover;
using conformance::pattern;
using conformance::Reader;
using conformance::Recorder;
using conformance::Writer;

constexpr int64_t kSecond = 1'000'000'000;

struct Connected {
  Handle client = kNoHandle;
  Handle server = kNoHandle;
};

// Two hosts, one Io each.
struct Hosts {
  explicit Hosts(uint64_t seed, const SimOptions& options = {})
      : world(seed, options),
        here(world.add_host({"192.0.2.1", "2001:db8::1"})),
        there(world.add_host({"192.0.2.2", "2001:db8::2"})),
        io(world.make_io(here)),
        far(world.make_io(there)) {}
  bool until(const std::function<bool()>& done, int64_t limit = 3600 * kSecond) {
    return world.run_until(done, world.now() + limit);
  }
  Handle listen(Io& on, const Address& address) {
    ListenOptions options;
    options.address = address;
    return on.listen(options).value();
  }
  Connected connect(const Address& to) {
    Connected connected;
    Handle listener = listen(*far, to);
    Recorder accepting, connecting;
    connected.client = io->open_socket(to, {}).value();
    accepting.then = [&] {
      if (accepting.last() >= 0) connected.server = accepting.last();
    };
    accepting.start([&](Op& op) { far->accept(op, listener); });
    connecting.start([&](Op& op) { io->connect(op, connected.client, to); });
    EXPECT_TRUE(until([&] { return connecting.ended && connected.server != kNoHandle; }));
    EXPECT_EQ(connecting.last(), 0);
    far->cancel(accepting.op);
    EXPECT_TRUE(until([&] { return accepting.ended; }));
    far->close(listener);
    return connected;
  }
  // The result, and the virtual time it took.
  std::pair<int32_t, int64_t> try_connect(const Address& to) {
    int64_t start = world.now();
    Recorder connecting;
    Handle socket = io->open_socket(to, {}).value();
    connecting.start([&](Op& op) { io->connect(op, socket, to); });
    EXPECT_TRUE(until([&] { return connecting.ended; }));
    io->close(socket);
    return {connecting.last(), world.now() - start};
  }

  SimWorld world;
  HostId here, there;
  std::unique_ptr<Io> io, far;
  const Address target = Address::parse("192.0.2.2:25").value();
};

uint64_t busy_run(uint64_t seed) {
  SimOptions options;
  options.faults.reset = 0.001;
  options.faults.write_error = 0.05;
  options.faults.disk_stall = 0.05;
  Hosts hosts(seed, options);
  std::deque<Connected> connections;
  std::deque<Reader> readers;
  std::deque<Writer> writers;
  for (int i = 0; i < 8; ++i) connections.push_back(hosts.connect(hosts.target));
  for (Connected& one : connections) {
    readers.emplace_back(*hosts.far, one.server);
    writers.emplace_back(*hosts.io, one.client, pattern(200'000));
  }
  FileOptions create;
  create.create = create.write = true;
  Handle file = hosts.io->open_file("/log", create).value();
  std::deque<Recorder> writes(50);
  std::string text = pattern(4096);
  iovec part{text.data(), text.size()};
  for (size_t i = 0; i < writes.size(); ++i) {
    writes[i].start([&](Op& op) { hosts.io->write(op, file, {&part, 1}, i * 4096, i % 2 == 0); });
  }
  hosts.world.run_for(30 * kSecond);
  hosts.world.crash(hosts.here, Crash::power);
  hosts.world.crash(hosts.there, Crash::process);
  return hosts.world.fingerprint();
}

TEST(Sim, OneSeedIsOneRun) {
  std::vector<std::unique_ptr<char[]>> noise;  // other addresses in every run
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    uint64_t first = busy_run(seed);
    noise.push_back(std::make_unique<char[]>(1000 * seed));
    EXPECT_EQ(busy_run(seed), first);
    EXPECT_NE(busy_run(seed + 100), first);
  }
}

TEST(Sim, TheClockJumpsToTheNextTimer) {
  Hosts hosts(1);
  struct Owner {
    Timer timer;
    bool fired = false;
    void on_due() { fired = true; }
  } owner;
  owner.timer.bind<&Owner::on_due>(&owner);
  hosts.io->timers().arm(owner.timer, hosts.io->now() + 86'400 * kSecond);
  hosts.world.run_for(86'399 * kSecond);
  EXPECT_FALSE(owner.fired);
  hosts.world.run_for(2 * kSecond);
  EXPECT_TRUE(owner.fired);
}

TEST(Sim, AStepOfTheWallClockMovesNoTimer) {
  Hosts hosts(1);
  int64_t now = hosts.io->now(), wall = hosts.io->wall_ms();
  hosts.world.step_wall(-3'600'000);
  EXPECT_EQ(hosts.io->now(), now);
  EXPECT_EQ(hosts.io->wall_ms(), wall - 3'600'000);
  hosts.world.run_for(5 * kSecond);
  EXPECT_EQ(hosts.io->wall_ms(), wall - 3'600'000 + 5'000);
}

TEST(Sim, EveryAddressOfAHostIsReached) {
  Hosts hosts(2);
  for (const char* text : {"192.0.2.2:25", "[2001:db8::2]:25"}) {
    Address to = Address::parse(text).value();
    Connected connected = hosts.connect(to);
    EXPECT_EQ(hosts.io->peer_address(connected.client).value(), to);
    EXPECT_EQ(hosts.far->peer_address(connected.server).value().host_string(),
              to.is_ipv4() ? "192.0.2.1" : "2001:db8::1");
    hosts.io->close(connected.client);
    hosts.far->close(connected.server);
  }
}

TEST(Sim, ConnectsFailTheWaysNetworksDo) {
  Hosts hosts(3);
  EXPECT_EQ(hosts.try_connect(hosts.target).first, -ECONNREFUSED);
  auto nobody = hosts.try_connect(Address::parse("198.51.100.1:25").value());
  EXPECT_EQ(nobody.first, -ETIMEDOUT);
  EXPECT_GE(nobody.second, 127 * kSecond);
  Handle listener = hosts.listen(*hosts.far, hosts.target);
  EXPECT_EQ(hosts.try_connect(hosts.target).first, 0);
  hosts.world.faults().connect_refused = 1;
  EXPECT_EQ(hosts.try_connect(hosts.target).first, -ECONNREFUSED);
  hosts.world.faults().connect_refused = 0;
  hosts.world.faults().connect_silent = 1;
  EXPECT_EQ(hosts.try_connect(hosts.target).first, -ETIMEDOUT);
  hosts.world.faults().connect_silent = 0;
  hosts.world.faults().connect_unreachable = 1;
  EXPECT_EQ(hosts.try_connect(hosts.target).first, -EHOSTUNREACH);
  hosts.far->close(listener);
}

TEST(Sim, AConnectIntoSilenceCanBeCancelled) {
  Hosts hosts(4);
  Address to = Address::parse("198.51.100.1:25").value();
  Handle socket = hosts.io->open_socket(to, {}).value();
  Recorder connecting;
  connecting.start([&](Op& op) { hosts.io->connect(op, socket, to); });
  hosts.world.run_for(30 * kSecond);
  EXPECT_FALSE(connecting.ended);
  hosts.io->cancel(connecting.op);
  ASSERT_TRUE(hosts.until([&] { return connecting.ended; }));
  EXPECT_EQ(connecting.last(), -ECANCELED);
  hosts.io->close(socket);
}

TEST(Sim, WhatIsUnderWayWhenALinkFailsArrivesLater) {
  Hosts hosts(5);
  Connected connected = hosts.connect(hosts.target);
  Reader reader(*hosts.far, connected.server);
  hosts.world.set_link(hosts.here, hosts.there, false);
  Writer writer(*hosts.io, connected.client, pattern(5000));
  hosts.world.run_for(300 * kSecond);
  EXPECT_EQ(reader.bytes(), "");
  hosts.world.set_link(hosts.here, hosts.there, true);
  ASSERT_TRUE(hosts.until([&] { return reader.bytes().size() == 5000; }));
  hosts.io->close(connected.client);
  ASSERT_TRUE(hosts.until([&] { return reader.over; }));
  hosts.far->close(connected.server);
}

TEST(Sim, ResetsHappenAsOftenAsTheyAreAskedFor) {
  int resets = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Hosts hosts(seed);
    Connected connected = hosts.connect(hosts.target);
    hosts.world.faults().reset = 0.1;
    Reader reader(*hosts.far, connected.server);
    Writer writer(*hosts.io, connected.client, pattern(5 * 8192));
    hosts.until([&] { return writer.over; });
    hosts.io->shutdown_send(connected.client);
    ASSERT_TRUE(hosts.until([&] { return reader.over; }));
    if (reader.end != 0) {
      EXPECT_EQ(reader.end, -ECONNRESET);
      ++resets;
    } else {
      EXPECT_EQ(reader.bytes().size(), writer.text.size());
    }
    hosts.io->close(connected.client);
    hosts.far->close(connected.server);
  }
  EXPECT_GT(resets, 5);
  EXPECT_LT(resets, 40);
}

TEST(Sim, ARunOutOfHandlesIsAnError) {
  Hosts hosts(6);
  hosts.world.faults().handles_max = 3;
  std::vector<Handle> open;
  for (int i = 0; i < 3; ++i) open.push_back(hosts.io->open_socket(hosts.target, {}).value());
  auto failed = hosts.io->open_socket(hosts.target, {});
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().number, EMFILE);
  for (Handle handle : open) hosts.io->close(handle);
}

// ---- crashes

struct Relay {
  Relay(Io& on, Handle with) : io(on), reader(on, with), writer(on, with, pattern(1 << 20)) {
    timer.bind<&Relay::on_due>(this);
    deferred.bind<&Relay::on_due>(this);
    io.timers().arm(timer, io.now() + 10 * kSecond);
  }
  void on_due() { ADD_FAILURE() << "a crashed host's timer fired"; }
  Io& io;
  Reader reader;
  Writer writer;
  Timer timer;
  Deferred deferred;
};

TEST(Sim, AKilledProcessResetsItsPeersAndLeavesItsOpsIdle) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    Hosts hosts(seed);
    Connected connected = hosts.connect(hosts.target);
    Reader reader(*hosts.far, connected.server);
    {
      Relay relay(*hosts.io, connected.client);
      hosts.world.run_for(1'000'000);
      hosts.world.crash(hosts.here, Crash::process);
      hosts.world.run_for(60 * kSecond);
      EXPECT_FALSE(relay.reader.recorder.op.pending());
    }
    EXPECT_TRUE(reader.over);
    hosts.far->close(connected.server);
    hosts.io = hosts.world.make_io(hosts.here);
    connected = hosts.connect(hosts.target);
    hosts.io->close(connected.client);
    hosts.far->close(connected.server);
  }
}

TEST(Sim, APowerCutIsSilentUntilTheRebootAnswersWithAReset) {
  Hosts hosts(7);
  Connected connected = hosts.connect(hosts.target);
  Reader reader(*hosts.io, connected.client);
  hosts.world.crash(hosts.there, Crash::power);
  Writer writer(*hosts.io, connected.client, "anybody there?");
  hosts.world.run_for(60 * kSecond);
  EXPECT_FALSE(reader.over);
  EXPECT_EQ(hosts.world.open_handles(hosts.there), 0u);
  hosts.far = hosts.world.make_io(hosts.there);
  ASSERT_TRUE(hosts.until([&] { return reader.over; }));
  EXPECT_EQ(reader.end, -ECONNRESET);
  hosts.io->close(connected.client);
}

TEST(Sim, AHostWithoutPowerAnswersNoConnect) {
  Hosts hosts(8);
  hosts.world.crash(hosts.there, Crash::power);
  EXPECT_EQ(hosts.try_connect(hosts.target).first, -ETIMEDOUT);
  hosts.far = hosts.world.make_io(hosts.there);
  EXPECT_EQ(hosts.try_connect(hosts.target).first, -ECONNREFUSED);
}

TEST(Sim, AnAcknowledgedDurableWriteSurvivesThePowerCut) {
  int torn = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Hosts hosts(seed);
    FileOptions create;
    create.create = create.write = true;
    Handle file = hosts.io->open_file("/log", create).value();
    ASSERT_TRUE(hosts.io->sync_directory("/").ok());
    std::string text = pattern(8192);
    auto first = std::make_unique<Mover>(*hosts.io, file, std::vector<iovec>{{text.data(), 8192}},
                                         0, true, true);
    ASSERT_TRUE(hosts.until([&] { return first->over; }));
    // A second one is under way.
    auto second = std::make_unique<Mover>(*hosts.io, file, std::vector<iovec>{{text.data(), 8192}},
                                          8192, true, true);
    hosts.world.crash(hosts.here, Crash::power);
    EXPECT_FALSE(second->recorder.op.pending());
    first.reset();
    second.reset();
    hosts.io = hosts.world.make_io(hosts.here);
    std::string content = hosts.world.disk(hosts.here).content("/log");
    ASSERT_GE(content.size(), 8192u);
    EXPECT_TRUE(content.substr(0, 8192) == text);
    content.resize(16384);
    bool none = content.substr(8192) == std::string(8192, '\0');
    if (!none && content.substr(8192) != text) ++torn;
  }
  EXPECT_GT(torn, 5);
}

TEST(Sim, LocksGoWithTheirProcess) {
  Hosts hosts(9);
  ASSERT_TRUE(hosts.io->lock_file("/lock").ok());
  hosts.world.crash(hosts.here, Crash::process);
  hosts.io = hosts.world.make_io(hosts.here);
  EXPECT_TRUE(hosts.io->lock_file("/lock").ok());
  hosts.io = nullptr;  // this process ends by itself
  hosts.io = hosts.world.make_io(hosts.here);
  EXPECT_TRUE(hosts.io->lock_file("/lock").ok());
}

TEST(Sim, DiskFaultsAreErrnos) {
  Hosts hosts(10);
  FileOptions create;
  create.create = create.write = true;
  Handle file = hosts.io->open_file("/log", create).value();
  std::string text = pattern(4096);
  auto result = [&](bool writing) {
    Mover mover(*hosts.io, file, {{text.data(), text.size()}}, 0, writing);
    EXPECT_TRUE(hosts.until([&] { return mover.over; }));
    return mover.error;
  };
  hosts.world.faults().write_error = 1;
  EXPECT_EQ(result(true), -EIO);
  hosts.world.faults().write_error = 0;
  EXPECT_EQ(result(true), 0);
  hosts.world.faults().read_error = 1;
  EXPECT_EQ(result(false), -EIO);
  hosts.world.faults().read_error = 0;
  EXPECT_EQ(result(false), 0);
  hosts.world.faults().sync_error = 1;
  Recorder syncing;
  syncing.start([&](Op& op) { hosts.io->sync(op, file); });
  EXPECT_TRUE(hosts.until([&] { return syncing.ended; }));
  EXPECT_EQ(syncing.last(), -EIO);
  hosts.world.disk(hosts.here).set_capacity(4096);
  Mover mover(*hosts.io, file, {{text.data(), text.size()}}, 4096, true);
  EXPECT_TRUE(hosts.until([&] { return mover.over; }));
  EXPECT_EQ(mover.error, -ENOSPC);
  hosts.io->close(file);
}

// ---- misuse

using SimDeathTest = ::testing::Test;

TEST(SimDeathTest, ClosingUnderAPendingOpIsFoundOut) {
  Hosts hosts(11);
  Connected connected = hosts.connect(hosts.target);
  Recorder receiving;
  receiving.start([&](Op& op) { hosts.io->receive(op, connected.client, BufferGroup::ingress); });
  EXPECT_DEATH(hosts.io->close(connected.client), "pending == 0");
  hosts.world.crash(hosts.here, Crash::process);
  hosts.world.crash(hosts.there, Crash::process);
}

TEST(SimDeathTest, AClosedHandleIsNotUsedAgain) {
  Hosts hosts(12);
  Handle socket = hosts.io->open_socket(hosts.target, {}).value();
  hosts.io->close(socket);
  EXPECT_NE(hosts.io->open_socket(hosts.target, {}).value(), socket);
  EXPECT_DEATH(hosts.io->shutdown_send(socket), "found != nullptr");
  hosts.world.crash(hosts.here, Crash::process);
}

TEST(SimDeathTest, SendsOfOneSocketDoNotOverlap) {
  Hosts hosts(13);
  Connected connected = hosts.connect(hosts.target);
  std::string text = "x";
  iovec part{text.data(), 1};
  Recorder first, second;
  first.start([&](Op& op) { hosts.io->send(op, connected.client, {&part, 1}); });
  EXPECT_DEATH(hosts.io->send(second.op, connected.client, {&part, 1}), "me.send");
  hosts.world.crash(hosts.here, Crash::process);
  hosts.world.crash(hosts.there, Crash::process);
}

TEST(SimDeathTest, MisalignedDirectWritesAreFoundOut) {
  Hosts hosts(14);
  FileOptions create;
  create.create = create.write = create.direct = true;
  Handle file = hosts.io->open_file("/log", create).value();
  EXPECT_TRUE(hosts.io->alignment(file).direct);
  Aligned block(8192);
  std::memset(block.data, 'x', block.size);
  iovec part{block.data, 4096};
  Recorder writing;
  EXPECT_DEATH(
      {
        hosts.io->write(writing.op, file, {&part, 1}, 512, false);
        hosts.world.run_for(kSecond);
      },
      "offset % unit");
  part = {block.data + 8, 4096};
  EXPECT_DEATH(
      {
        hosts.io->write(writing.op, file, {&part, 1}, 0, false);
        hosts.world.run_for(kSecond);
      },
      "iov_base");
  hosts.io->close(file);
}

}  // namespace
}  // namespace millrace::reactor
