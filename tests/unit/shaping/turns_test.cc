#include "shaping/turns.h"

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <string>

#include "base/prng.h"

namespace millrace::shaping {
namespace {

struct Item {
  const Flow* flow = nullptr;
  int number = 0;
  Link link;
};

class TurnsTest : public testing::Test {
 protected:
  ~TurnsTest() override { turns_.clear(); }
  std::shared_ptr<const config::Shaping> rules_of(std::string_view text) {
    auto rules = config::Shaping::parse(text, "shaping.toml", {});
    EXPECT_TRUE(rules.ok()) << rules.error().text;
    return *rules;
  }
  Item& add(std::string_view tenant, std::string_view job = "") {
    Item& item = items_.emplace_back();
    item.flow = &flows_.find(*rules_, tenant, "", job);
    item.number = static_cast<int>(items_.size()) - 1;
    turns_.push_back(item);
    return item;
  }
  // Whose items go, one after the other: each leaves.
  std::string next(uint32_t cost = 1) {
    Item* item = turns_.front();
    if (!item) return "";
    turns_.served(*item, cost);
    turns_.remove(*item);
    return item->flow->tenant->name + item->flow->job;
  }
  std::map<std::string, int> count(int n, uint32_t cost = 1) {
    std::map<std::string, int> counts;
    for (int i = 0; i < n; ++i) ++counts[next(cost)];
    return counts;
  }

  std::shared_ptr<const config::Shaping> rules_ = rules_of(
      "[tenant.t]\nweight = 3\n[job.j]\nweight = 2\n[job.now]\npriority = \"transactional\"\n");
  Flows flows_;
  Turns<Item, &Item::link> turns_;
  std::deque<Item> items_;
};

TEST_F(TurnsTest, OfOneFlowTheFirstToComeIsTheFirstToGo) {
  for (int i = 0; i < 5; ++i) add("a");
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(turns_.front()->number, i);
    next();
  }
  EXPECT_TRUE(turns_.empty());
  EXPECT_EQ(turns_.front(), nullptr);
}

TEST_F(TurnsTest, AManyHeadedFlowHasOneTurnInARound) {
  for (int i = 0; i < 1000; ++i) add("many");
  for (int i = 0; i < 10; ++i) add("few");
  auto counts = count(20);
  EXPECT_EQ(counts["few"], 10);
  EXPECT_EQ(counts["many"], 10);
}

TEST_F(TurnsTest, WeightsAreTurnsInARound) {
  for (int i = 0; i < 1000; ++i) add("t"), add("u");
  auto counts = count(400);
  EXPECT_NEAR(counts["t"], 300, 3);
}

TEST_F(TurnsTest, JobsShareWhatTheirTenantHas) {
  for (int i = 0; i < 1000; ++i) add("a", "j"), add("a", "k"), add("b", "j");
  auto counts = count(600);
  EXPECT_NEAR(counts["bj"], 300, 3);
  EXPECT_NEAR(counts["aj"], 200, 3);
  EXPECT_NEAR(counts["ak"], 100, 3);
}

TEST_F(TurnsTest, WhatWeighsMorePaysForMoreTurns) {
  for (int i = 0; i < 1000; ++i) add("large"), add("small");
  int large = 0, small = 0;
  for (int i = 0; i < 500; ++i) {
    bool is_large = turns_.front()->flow->tenant->name == "large";
    ++(is_large ? large : small);
    next(is_large ? 4 : 1);
  }
  EXPECT_NEAR(small, 4 * large, 8);
}

TEST_F(TurnsTest, WhoComesBackAfterARoundGoesAheadOfQueues) {
  for (int tenant = 0; tenant < 20; ++tenant) {
    for (int i = 0; i < 100; ++i) add("queue" + std::to_string(tenant));
  }
  count(30);
  add("light");
  EXPECT_EQ(next(), "light");
  // Not within the same round: then it waits for its turn, as they do.
  add("light");
  auto counts = count(19);
  EXPECT_EQ(counts["light"], 0);
  count(2);
  counts = count(40);
  add("light");
  EXPECT_EQ(next(), "light");
}

TEST_F(TurnsTest, NewcomersWithoutEndDoNotStarveWhoHasAQueue) {
  for (int i = 0; i < 100; ++i) add("queue");
  int queue = 0;
  for (int i = 0; i < 900; ++i) {
    add("new" + std::to_string(i));
    queue += next() == "queue";
  }
  EXPECT_GE(queue, 900 / 9 - 2);
}

TEST_F(TurnsTest, TransactionalGoesFirstButBulkIsNotStarved) {
  for (int i = 0; i < 1000; ++i) add("a"), add("a", "now"), add("b", "now");
  auto counts = count(90);
  EXPECT_EQ(counts["a"], 10);
  EXPECT_EQ(counts["anow"], 40);
  ASSERT_NE(turns_.transactional_front(), nullptr);
  EXPECT_TRUE(turns_.transactional_front()->flow->transactional);
}

TEST_F(TurnsTest, ServedItemsThatStayGoBehindTheOthersOfTheirFlow) {
  for (const char* tenant : {"a", "a", "a", "b"}) add(tenant);
  std::string order;
  for (int i = 0; i < 8; ++i) {
    Item* item = turns_.front();
    order += std::to_string(item->number);
    turns_.served(*item, 1);
  }
  EXPECT_EQ(order, "03132303");
  EXPECT_EQ(turns_.size(), 4u);
}

TEST_F(TurnsTest, WhatHadItsTurnGoesAheadOfAllAndPaysNoMore) {
  for (int i = 0; i < 3; ++i) add("a"), add("b");
  Item* item = turns_.front();
  turns_.served(*item, 1);
  turns_.remove(*item);
  turns_.push_first(*item);
  EXPECT_EQ(turns_.front(), item);
  turns_.served(*item, 0);
  EXPECT_NE(turns_.front(), item);
  EXPECT_EQ(turns_.size(), 6u);
}

TEST_F(TurnsTest, AReloadSortsWhatWaitsAnew) {
  for (int i = 0; i < 1000; ++i) add("a", "k"), add("a", "now");
  EXPECT_GT(count(90)["anow"], 70);
  rules_ = rules_of("[job.k]\npriority = \"transactional\"\n");
  flows_.adopt(*rules_);
  turns_.rebuild();
  EXPECT_GT(count(90)["ak"], 70);
  size_t seen = 0;
  turns_.each([&](Item&) { return ++seen, true; });
  EXPECT_EQ(seen, turns_.size());
}

// Whatever comes and goes: nothing is lost, and nobody with a queue gets less than its share.
TEST_F(TurnsTest, UnderRandomSchedulesEachGetsItsShare) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Prng prng(seed);
    std::map<std::string, int> went;
    for (int i = 0; i < 3000; ++i) add("queue"), add("t");
    uint32_t gone = 0, added = 6000;
    const uint32_t others = static_cast<uint32_t>(prng.below(4));
    for (int step = 0; step < 2000; ++step) {
      if (others > 0 && prng.below(4) > 0) {
        add("other" + std::to_string(prng.below(others)), prng.below(2) ? "j" : "k");
        ++added;
      }
      std::string who = next();
      ASSERT_NE(who, "");
      ++went[who.starts_with("other") ? who.substr(0, 6) : who];
      ++gone;
      ASSERT_EQ(turns_.size(), added - gone);
    }
    // Of weights 1 and 3, beside at most `others` of weight 1.
    int least = static_cast<int>(2000 / (4 + others));
    EXPECT_GE(went["queue"], least - 10) << seed;
    EXPECT_GE(went["t"], 3 * least - 30) << seed;
    turns_.clear();
    items_.clear();
  }
}

}  // namespace
}  // namespace millrace::shaping
