// The power goes at every moment of a workload: after each change of the disk, the next one torn. What
// was answered before is there; what was final is gone; nothing is there that was never given.
// MILLRACE_CRASH_SEEDS=n runs more workloads (default 2).
#include <cstdlib>

#include "../unit/spool/harness.h"

namespace millrace::spool {
namespace {

using namespace testing;
using reactor::Crash;

constexpr size_t kNever = SIZE_MAX;

// When, in changes of the disk, something was asked for and answered.
struct Span {
  size_t asked = kNever, answered = kNever;
};
struct Life {
  size_t size = 0;
  Span append, final;
  std::vector<std::pair<std::string, Span>> states;  // in order
  std::vector<std::pair<std::string, Span>> events;
};
struct Key {
  std::vector<std::pair<std::string, Span>> values;
};

config::Config crash_config() {
  config::Config config = small_config();
  config.segment_size = 96 << 10;
  config.max_message_size = 12 << 10;
  config.spool_reserve = 0;
  config.compact_below_percent = 50;
  return config;
}

// Messages come, some stay, some are deferred, most are finished; keys change; time passes, so that
// segments are compacted and used again.
class Workload {
 public:
  explicit Workload(uint64_t seed, config::Config config) : w(seed, std::move(config)) {}

  void run(int steps) {
    ASSERT_EQ(w.start(), "");
    w.spools[0]->on_moved = [this](const mail::SpoolId& which, Location, Location to) { where[which] = to; };
    Prng& chance = w.world.chance();
    w.world.disk(w.host).start_journal();
    for (int i = 0; i < steps; ++i) {
      uint64_t what = chance.below(10);
      if (what < 4) {
        mail::SpoolId at = id(++last);
        Life& life = lives[at];
        life.size = chance.below(9000);
        life.append.asked = now();
        w.send(at, life.size, 1 + chance.below(6000));
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
      }
      w.world.run_for(static_cast<int64_t>(chance.below(300'000)));
      collect();
    }
    w.world.run_for(2 * kSecond);
    collect();
    changes = now();
  }

  // What a restart found, after a power cut after `at` changes.
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
      if (!here) continue;
      ASSERT_EQ(found->second.body_size, life.size) << context;
      // The latest answered state or one asked for later.
      size_t least = 0;
      for (size_t i = 0; i < life.states.size(); ++i) {
        if (life.states[i].second.answered <= at) least = i + 1;
      }
      bool fits = least == 0 && found->second.state.empty();
      for (size_t i = least == 0 ? 0 : least - 1; i < life.states.size(); ++i) {
        fits = fits || (life.states[i].first == found->second.state && life.states[i].second.asked <= at);
      }
      ASSERT_TRUE(fits) << context << ": message " << which.low << " has the state " << found->second.state;
    }
    for (auto& [which, m] : memory.messages) ASSERT_TRUE(lives.contains(which)) << context;
    for (auto& [name, key] : keys) {
      auto found = memory.state.find(name);
      std::string value = found == memory.state.end() ? "" : found->second;
      size_t least = 0;
      for (size_t i = 0; i < key.values.size(); ++i) {
        if (key.values[i].second.answered <= at) least = i + 1;
      }
      bool fits = least == 0 && value.empty();
      for (size_t i = least == 0 ? 0 : least - 1; i < key.values.size(); ++i) {
        fits = fits || (key.values[i].first == value && key.values[i].second.asked <= at);
      }
      ASSERT_TRUE(fits) << context << ": " << name << " is '" << value << "'";
    }
    // Nothing marks events as emitted here: each one answered must be replayed.
    std::multiset<std::string> replayed;
    for (auto& [sequence, event] : memory.events) replayed.insert(event);
    for (auto& [which, life] : lives) {
      for (auto& [text, span] : life.events) {
        size_t answered = text.starts_with("received") ? life.append.answered : span.answered;
        if (!check_events || answered > at) continue;
        ASSERT_EQ(replayed.count(text), 1u) << context << ": event " << text;
      }
    }
  }

  size_t now() { return w.world.disk(w.host).journal().size(); }
  SpoolWorld w;
  std::map<mail::SpoolId, Life> lives;
  std::map<std::string, Key> keys;
  size_t changes = 0;
  bool check_events = false;

 private:
  struct Given {
    Outcome* note;
    mail::SpoolId id;
    bool final;
    size_t state, event;
  };
  void collect() {
    std::erase_if(waiting, [&](Message* m) {
      if (!m->answered) return false;
      EXPECT_TRUE(m->append.status.ok());
      lives[m->append.id].append.answered = now();
      where[m->append.id] = m->append.location;
      open.push_back(m->append.id);
      m->buffers.clear();
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
      life.events[g.event].second.answered = now();
      return true;
    });
  }
  uint64_t last = 0;
  std::map<mail::SpoolId, Location> where;
  std::vector<mail::SpoolId> open;
  std::vector<Message*> waiting;
  std::vector<Given> notes;
};

uint64_t seeds() {
  const char* text = std::getenv("MILLRACE_CRASH_SEEDS");
  return text ? std::strtoull(text, nullptr, 10) : 2;
}

void replay_all(Workload& workload, uint64_t seed, size_t stride) {
  const reactor::SimDisk& disk = workload.w.world.disk(workload.w.host);
  for (size_t at = seed % stride; at <= workload.changes; at += stride) {
    std::string context = "seed " + std::to_string(seed) + ", power cut after change " + std::to_string(at);
    SpoolWorld after(seed * 1000 + at, workload.w.config());
    after.world.disk(after.host) = disk.after_power_cut(at, seed + at);
    ASSERT_EQ(after.start(), "") << context;
    ASSERT_NO_FATAL_FAILURE(workload.check(after.memory, at, context));
    ASSERT_EQ(after.summary.records_damaged, 0u) << context << ": " << after.summary.remarks.front();
    std::map<mail::SpoolId, Location> now_at;
    after.spools[0]->on_moved = [&](const mail::SpoolId& which, Location, Location to) { now_at[which] = to; };
    for (auto& [which, m] : after.memory.messages) now_at.emplace(which, m.location);
    for (auto& [which, m] : after.memory.messages) {
      ASSERT_EQ(after.check(which, now_at[which], workload.lives[which].size), "intact") << context;
    }
    // And again, after what the restart did itself.
    Memory before = after.memory;
    after.world.run_for(static_cast<int64_t>(after.world.chance().below(3 * kSecond)));
    after.crash(Crash::power);
    ASSERT_EQ(after.start(), "") << context;
    ASSERT_EQ(after.summary.records_damaged, 0u) << context << ", and again";
    ASSERT_EQ(after.memory.messages.size(), before.messages.size()) << context << ", and again";
    for (auto& [which, m] : before.messages) {
      ASSERT_TRUE(after.memory.messages.contains(which)) << context << ", and again";
      ASSERT_EQ(after.memory.messages.at(which).state, m.state) << context << ", and again";
    }
    ASSERT_EQ(after.memory.state, before.state) << context << ", and again";
  }
}

TEST(SpoolCrash, EveryPrefixOfTheLogRecovers) {
  for (uint64_t seed = 1; seed <= seeds(); ++seed) {
    Workload workload(seed, crash_config());
    workload.check_events = true;
    ASSERT_NO_FATAL_FAILURE(workload.run(150));
    ASSERT_NO_FATAL_FAILURE(replay_all(workload, seed, 1));
  }
}

TEST(SpoolCrash, EveryPrefixRecoversWhileSegmentsAreRecycled) {
  for (uint64_t seed = 1; seed <= seeds(); ++seed) {
    auto config = crash_config();
    config.events.clear();
    Workload workload(100 + seed, config);
    ASSERT_NO_FATAL_FAILURE(workload.run(600));
    EXPECT_GT(workload.w.spools[0]->stats().bytes_compacted, 0u);
    ASSERT_NO_FATAL_FAILURE(replay_all(workload, seed, 3));
  }
}

}  // namespace
}  // namespace millrace::spool
