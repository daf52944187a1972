// The power goes, or the process is killed, at every moment of a workload: after each change of the disk,
// what was not synced then torn, reordered and lost in many ways; and once more at every moment of the
// recovery. What was answered before is there; what was final or refused is gone; nothing is there that was
// never given; what a recovery has once told stays so.
//
// Every test here counts the different disks that it recovered from, and the last one holds the sum against
// a floor. MILLRACE_CRASH_SEEDS=n runs n times the workloads (default 1, under tools/test --long 5).
#include <fmt/format.h>

#include <cstdlib>

#include "../unit/spool/harness.h"
#include "base/log.h"

namespace millrace::spool {
namespace {

using namespace testing;
using reactor::Crash;
using reactor::SimDisk;

constexpr size_t kNever = SIZE_MAX;
constexpr uint64_t kStatesLeast = 20'000;

// When, in changes of the disk, something was asked for and answered.
struct Span {
  size_t asked = kNever, answered = kNever;
};
struct Event {
  std::string text;
  Span span;
  uint64_t sequence = 0;  // once answered
};
struct Life {
  std::string body;
  Span append, final;
  size_t refused = kNever;
  std::vector<std::pair<std::string, Span>> states;  // in order
  std::vector<Event> events;
};
struct Key {
  std::vector<std::pair<std::string, Span>> values;
};

struct Shape {
  std::string name;
  config::Config config;
  int steps = 0;
  double write_error = 0, sync_error = 0;
  bool mark_events = false;   // says from time to time that events are emitted
  bool direct_io = true;
  int cuts = 1;               // ways, at each moment, for the power to go: so many are tried
  size_t stride = 1;          // of the moments
  size_t nested_stride = 97;  // of the disks whose recovery is cut, too
};

config::Config crash_config() {
  config::Config config = small_config();
  config.segment_size = 96 << 10;
  config.max_message_size = 12 << 10;
  config.spool_reserve = 0;
  config.compact_below_percent = 50;
  return config;
}

reactor::SimOptions options_of(const Shape& shape) {
  reactor::SimOptions options;
  options.direct_io = shape.direct_io;
  return options;
}

// Messages come, some stay, some are deferred, most are finished; keys change; time passes, so that
// segments are compacted and used again.
class Workload {
 public:
  Workload(uint64_t seed, const Shape& of) : shape(of), w(seed, of.config, options_of(of)) {}

  void run() {
    ASSERT_EQ(w.start(), "");
    w.spools[0]->on_moved = [this](const mail::SpoolId& which, Location, Location to) { where[which] = to; };
    Prng& chance = w.world.chance();
    w.world.disk(w.host).start_journal();
    w.world.faults().write_error = shape.write_error;
    w.world.faults().sync_error = shape.sync_error;
    for (int i = 0; i < shape.steps; ++i) {
      uint64_t what = chance.below(10);
      if (what < 4) {
        mail::SpoolId at = id(++last);
        Life& life = lives[at];
        size_t size = chance.below(9000);
        life.append.asked = now();
        life.body = w.send(at, size, 1 + chance.below(6000)).body;
        life.events.push_back({"received " + std::to_string(at.low), life.append});
        waiting.push_back(&w.in_flight.back());
      } else if (what < 8 && !open.empty()) {
        mail::SpoolId at = open[chance.below(open.size())];
        Life& life = lives[at];
        bool final = at.low % 6 != 0 && chance.chance(0.7);
        std::string state = final ? "" : "state " + std::to_string(i);
        std::string event = (final ? "final " : "deferred ") + std::to_string(i);
        Outcome& note = w.give_note(at, where[at], final, state, event);
        notes.push_back({&note, at, final, life.states.size(), life.events.size()});
        Span span{now(), kNever};
        if (final) {
          life.final = span;
          std::erase(open, at);
        } else {
          life.states.push_back({state, span});
        }
        life.events.push_back({event, span});
      } else if (what == 8) {
        std::string name = "key " + std::to_string(chance.below(4));
        Key& key = keys[name];
        size_t index = key.values.size();
        std::string value = chance.chance(0.3) ? "" : "value " + std::to_string(i);
        key.values.push_back({value, {now(), kNever}});
        w.spools[0]->put_state(name, value, [this, name, index](Status status) {
          if (status.ok()) keys[name].values[index].second.answered = now();
        });
      } else {
        w.world.run_for(static_cast<int64_t>(chance.below(chance.chance(0.2) ? 3 * kSecond : 2'000'000)));
        if (shape.mark_events && newest_event > 0) {
          marks.push_back({now(), newest_event});
          w.spools[0]->events_emitted(newest_event);
        }
      }
      w.world.run_for(static_cast<int64_t>(chance.below(300'000)));
      collect();
    }
    w.world.faults().write_error = w.world.faults().sync_error = 0;
    w.world.run_for(5 * kSecond);
    collect();
    EXPECT_TRUE(waiting.empty() && notes.empty()) << shape.name << ": something was never answered";
    changes = now();
  }

  // What a restart found, after a crash after `at` changes.
  void check(const Memory& memory, size_t at, const std::string& context) {
    for (auto& [which, life] : lives) {
      auto found = memory.messages.find(which);
      bool here = found != memory.messages.end();
      if (life.append.answered <= at && life.final.asked > at) {
        ASSERT_TRUE(here) << context << ": accepted message " << which.low << " is lost";
      }
      if (life.final.answered <= at || life.append.asked > at) {
        ASSERT_FALSE(here) << context << ": message " << which.low << " is back";
      }
      ASSERT_FALSE(here && life.refused <= at) << context << ": refused message " << which.low << " is there";
      if (!here) continue;
      ASSERT_EQ(found->second.body_size, life.body.size()) << context;
      ASSERT_EQ(found->second.metadata, "metadata of " + std::to_string(which.low)) << context;
      ASSERT_TRUE(fits(life.states, found->second.state, at))
          << context << ": message " << which.low << " has the state " << found->second.state;
    }
    for (auto& [which, m] : memory.messages) ASSERT_TRUE(lives.contains(which)) << context;
    for (auto& [name, key] : keys) {
      auto found = memory.state.find(name);
      std::string value = found == memory.state.end() ? "" : found->second;
      ASSERT_TRUE(fits(key.values, value, at)) << context << ": " << name << " is '" << value << "'";
    }
    if (shape.config.events.empty()) return;
    uint64_t marked = 0;  // these need not be told again
    for (auto& [asked, sequence] : marks) {
      if (asked <= at) marked = std::max(marked, sequence);
    }
    std::multiset<std::string> replayed;
    for (auto& [sequence, event] : memory.events) replayed.insert(event);
    for (auto& [which, life] : lives) {
      for (const Event& event : life.events) {
        size_t told = replayed.count(event.text);
        ASSERT_LE(told, 1u) << context << ": event " << event.text;
        if (event.span.answered <= at && event.sequence > marked) {
          ASSERT_EQ(told, 1u) << context << ": event " << event.text << " is lost";
        }
      }
    }
  }

  size_t now() { return w.world.disk(w.host).journal().size(); }
  const Shape shape;
  SpoolWorld w;
  std::map<mail::SpoolId, Life> lives;
  std::map<std::string, Key> keys;
  std::vector<std::pair<size_t, uint64_t>> marks;  // when, up to which sequence
  size_t changes = 0;

 private:
  struct Given {
    Outcome* note;
    mail::SpoolId id;
    bool final;
    size_t state, event;
  };
  // The latest value answered, or one asked for later.
  static bool fits(const std::vector<std::pair<std::string, Span>>& values, const std::string& value, size_t at) {
    size_t least = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      if (values[i].second.answered <= at) least = i + 1;
    }
    bool fits = least == 0 && value.empty();
    for (size_t i = least == 0 ? 0 : least - 1; i < values.size(); ++i) {
      fits = fits || (values[i].first == value && values[i].second.asked <= at);
    }
    return fits;
  }
  void collect() {
    std::erase_if(waiting, [&](Message* m) {
      if (!m->answered) return false;
      Life& life = lives[m->append.id];
      m->buffers.clear();
      if (!m->append.status.ok()) {
        EXPECT_GT(shape.write_error + shape.sync_error, 0) << m->append.status.error().text;
        if (!m->append.close_silently) life.refused = now();
        return true;
      }
      life.append.answered = life.events[0].span.answered = now();
      life.events[0].sequence = m->append.sequence;
      newest_event = std::max(newest_event, m->append.sequence);
      where[m->append.id] = m->append.location;
      open.push_back(m->append.id);
      return true;
    });
    std::erase_if(notes, [&](Given& g) {
      if (!g.note->answered) return false;
      EXPECT_TRUE(g.note->note.status.ok());
      Life& life = lives[g.id];
      if (g.final) {
        life.final.answered = now();
      } else {
        life.states[g.state].second.answered = now();
      }
      life.events[g.event].span.answered = now();
      life.events[g.event].sequence = g.note->note.sequence;
      newest_event = std::max(newest_event, g.note->note.sequence);
      return true;
    });
  }
  uint64_t last = 0, newest_event = 0;
  std::map<mail::SpoolId, Location> where;
  std::vector<mail::SpoolId> open;
  std::vector<Message*> waiting;
  std::vector<Given> notes;
};

struct Counts {
  uint64_t moments = 0;   // of a workload at which the power went
  uint64_t disks = 0;     // different ones, that recovery was given
  uint64_t in_recovery = 0;  // of these: left by a cut during a recovery
};

class SpoolCrash : public ::testing::Test {
 protected:
  static Counts total;

  static void SetUpTestSuite() { log::set_level(log::Level::error); }
  static void TearDownTestSuite() {
    fmt::print("crash states: {} different disks recovered, of {} moments; {} of them left by a crash during "
               "recovery\n",
               total.disks, total.moments, total.in_recovery);
    if (::testing::GTEST_FLAG(filter) != "*") return;
    EXPECT_GE(total.disks, kStatesLeast) << "fewer crash states than promised";
  }

  static uint64_t rounds() {
    if (const char* text = std::getenv("MILLRACE_CRASH_SEEDS")) return std::strtoull(text, nullptr, 10);
    return std::getenv("MILLRACE_TEST_LONG") ? 5 : 1;
  }

  // Recovers `after` from the disk it was given; everything must be as the workload was told.
  void recover(Workload& workload, SpoolWorld& after, size_t at, const std::string& context) {
    ASSERT_EQ(after.start(), "") << context;
    ASSERT_NO_FATAL_FAILURE(workload.check(after.memory, at, context));
    ASSERT_EQ(after.summary.records_damaged, 0u) << context << ": " << after.summary.remarks.front();
    std::map<mail::SpoolId, Location> now_at;
    after.spools[0]->on_moved = [&](const mail::SpoolId& which, Location, Location to) { now_at[which] = to; };
    for (auto& [which, m] : after.memory.messages) now_at.emplace(which, m.location);
    for (auto& [which, m] : after.memory.messages) {
      ASSERT_TRUE(after.read(which, now_at[which]) == workload.lives[which].body) << context << ": " << which.low;
    }
    after.spools[0]->on_moved = nullptr;
  }
  static void same(const Memory& before, const Memory& after, const std::string& context) {
    ASSERT_EQ(after.messages.size(), before.messages.size()) << context;
    for (auto& [which, m] : before.messages) {
      ASSERT_TRUE(after.messages.contains(which)) << context;
      ASSERT_EQ(after.messages.at(which).state, m.state) << context;
    }
    ASSERT_EQ(after.state, before.state) << context;
  }

  // The disk that a crash after `at` changes has left: recovered, cut again after a while, recovered again.
  // `told` is what the first recovery found.
  void recover_twice(Workload& workload, SimDisk disk, size_t at, uint64_t seed, const std::string& context,
                     Memory& told) {
    SpoolWorld after(seed, workload.w.config(), options_of(workload.shape));
    after.world.disk(after.host) = std::move(disk);
    ASSERT_NO_FATAL_FAILURE(recover(workload, after, at, context));
    told = after.memory;
    after.world.run_for(static_cast<int64_t>(after.world.chance().below(3 * kSecond)));
    after.crash(Crash::power);
    ASSERT_EQ(after.start(), "") << context;
    ASSERT_EQ(after.summary.records_damaged, 0u) << context << ", and again";
    ASSERT_NO_FATAL_FAILURE(workload.check(after.memory, at, context + ", and again"));
    ASSERT_NO_FATAL_FAILURE(same(told, after.memory, context + ", and again"));
  }

  // The same, and the power goes at every moment of that recovery and of what it does in the first seconds.
  void cut_recovery(Workload& workload, const SimDisk& disk, size_t at, uint64_t seed, const std::string& context,
                    std::set<uint64_t>& seen) {
    SpoolWorld after(seed, workload.w.config(), options_of(workload.shape));
    after.world.disk(after.host) = disk;
    after.world.disk(after.host).start_journal();
    ASSERT_NO_FATAL_FAILURE(recover(workload, after, at, context));
    size_t told = after.world.disk(after.host).journal().size();  // from here on it may not change its mind
    after.world.run_for(3 * kSecond);
    SimDisk::Replay replay(after.world.disk(after.host));
    for (;;) {
      for (uint64_t way = 0; way < 4; ++way) {
        SimDisk cut = way == 3 ? replay.kill(seed) : replay.power_cut(seed * 100 + way);
        if (!seen.insert(cut.digest()).second) continue;
        ++total.disks;
        ++total.in_recovery;
        std::string where = fmt::format("{}, again after change {} of recovery, way {}", context, replay.at(), way);
        SpoolWorld second(seed + way, workload.w.config(), options_of(workload.shape));
        second.world.disk(second.host) = std::move(cut);
        ASSERT_NO_FATAL_FAILURE(recover(workload, second, at, where));
        if (replay.at() >= told) {
          ASSERT_NO_FATAL_FAILURE(same(after.memory, second.memory, where));
        }
      }
      if (replay.at() == after.world.disk(after.host).journal().size()) break;
      replay.next();
    }
  }

  void every_moment(const Shape& shape, uint64_t seed) {
    Workload workload(seed, shape);
    ASSERT_NO_FATAL_FAILURE(workload.run());
    compacted += workload.w.spools[0]->stats().bytes_compacted;
    const SimDisk& disk = workload.w.world.disk(workload.w.host);
    std::map<uint64_t, Memory> told;  // by digest: one disk is recovered once
    std::set<uint64_t> seen_in_recovery;
    SimDisk::Replay replay(disk, seed);
    for (size_t at = 0;; ++at) {
      if (at % shape.stride == seed % shape.stride) {
        ++total.moments;
        for (int way = 0; way <= shape.cuts; ++way) {
          uint64_t chance = seed * 1'000'003 + at * 101 + static_cast<uint64_t>(way);
          // A killed process loses nothing, but what it had not synced may go with the next power cut.
          bool killed = way == shape.cuts;
          SimDisk cut = killed ? replay.kill(chance) : replay.power_cut(chance);
          uint64_t digest = cut.digest();
          std::string context = fmt::format("{}, seed {}, {} after change {}, way {}", shape.name, seed,
                                            killed ? "killed" : "power cut", at, way);
          if ((at * 31 + static_cast<uint64_t>(way) * 7) % shape.nested_stride == 0) {
            ASSERT_NO_FATAL_FAILURE(cut_recovery(workload, cut, at, chance, context, seen_in_recovery));
          }
          auto [known, fresh] = told.try_emplace(digest);
          if (fresh) ++total.disks;
          if (fresh || killed) {
            ASSERT_NO_FATAL_FAILURE(recover_twice(workload, std::move(cut), at, chance, context, known->second));
          } else {  // by now more may have been promised
            ASSERT_NO_FATAL_FAILURE(workload.check(known->second, at, context));
          }
        }
      }
      if (at == workload.changes) break;
      replay.next();
    }
    fmt::print("  {}, seed {}: {} changes, {} disks so far\n", shape.name, seed, workload.changes, total.disks);
  }

  uint64_t compacted = 0;
};
Counts SpoolCrash::total;

TEST_F(SpoolCrash, EveryMomentOfTheLogRecovers) {
  for (uint64_t seed = 1; seed <= rounds(); ++seed) {
    Shape shape{.name = "events kept", .config = crash_config(), .steps = 150, .cuts = 24, .nested_stride = 61};
    ASSERT_NO_FATAL_FAILURE(every_moment(shape, seed));
  }
}

TEST_F(SpoolCrash, EveryMomentRecoversWhileSegmentsAreRecycled) {
  for (uint64_t seed = 1; seed <= rounds(); ++seed) {
    Shape shape{.name = "recycled", .config = crash_config(), .steps = 600, .cuts = 6, .stride = 2, .nested_stride = 307};
    shape.config.events.clear();
    ASSERT_NO_FATAL_FAILURE(every_moment(shape, 100 + seed));
  }
  EXPECT_GT(compacted, 0u);
}

TEST_F(SpoolCrash, EveryMomentRecoversWhileEventsAreMarkedAsEmitted) {
  for (uint64_t seed = 1; seed <= rounds(); ++seed) {
    Shape shape{.name = "emitted", .config = crash_config(), .steps = 400, .mark_events = true, .cuts = 6, .stride = 2,
                .nested_stride = 211};
    ASSERT_NO_FATAL_FAILURE(every_moment(shape, 200 + seed));
  }
  EXPECT_GT(compacted, 0u);
}

TEST_F(SpoolCrash, EveryMomentRecoversWhileTheDiskFailsNowAndThen) {
  for (uint64_t seed = 1; seed <= 2 * rounds(); ++seed) {
    Shape shape{.name = "failing disk", .config = crash_config(), .steps = 150, .write_error = seed % 2 ? 0.05 : 0.4,
                .sync_error = 0.2, .mark_events = true, .cuts = 6, .nested_stride = 149};
    ASSERT_NO_FATAL_FAILURE(every_moment(shape, 300 + seed));
  }
}

TEST_F(SpoolCrash, EveryMomentRecoversWithoutDirectWrites) {
  for (uint64_t seed = 1; seed <= rounds(); ++seed) {
    Shape shape{.name = "buffered", .config = crash_config(), .steps = 250, .mark_events = true, .direct_io = false,
                .cuts = 12, .nested_stride = 211};
    ASSERT_NO_FATAL_FAILURE(every_moment(shape, 400 + seed));
  }
}

}  // namespace
}  // namespace millrace::spool
