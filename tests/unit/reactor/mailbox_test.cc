// Letters between threads that each run a ring, as shards do. A lost wake-up shows as a hang, since
// nobody here wakes by time; built with ThreadSanitizer it also shows unordered accesses.
#include "reactor/mailbox.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "base/prng.h"
#include "reactor/uring.h"

namespace millrace::reactor {
namespace {

constexpr int64_t kForever = INT64_MAX;
// Mailboxes are on the heap: what is aligned to cache lines is misaligned on the stack that GCC 12 gives to
// AddressSanitizer's search for uses after return (GCC bug 110027).

UringOptions small(const char* features) {
  UringOptions options;
  options.submission_entries = 64;
  options.completion_entries = 256;
  options.features = parse_features(features).value();
  return options;
}

class MailboxTest : public ::testing::TestWithParam<const char*> {};

struct Reader {
  void on_letter(Letter& letter) { got.push_back(&letter); }
  std::vector<Letter*> got;
};

TEST_P(MailboxTest, LettersArriveInTheOrderOfOneSender) {
  auto io = make_uring(small(GetParam())).value();
  auto box = std::make_unique<Mailbox>(*io);
  io->on_wake = [&] { box->drain(); };
  Reader reader;
  std::vector<Letter> letters(10);
  for (Letter& letter : letters) {
    letter.address<&Reader::on_letter>(&reader);
    box->push(letter);
  }
  io->turn(kForever);
  ASSERT_EQ(reader.got.size(), letters.size());
  for (size_t i = 0; i < letters.size(); ++i) EXPECT_EQ(reader.got[i], &letters[i]);
  box->push(letters[3]);
  io->turn(kForever);
  EXPECT_EQ(reader.got.back(), &letters[3]);
}

struct Echo {
  void on_letter(Letter& letter) {
    if (++count < 1000) box->push(letter);
  }
  Mailbox* box = nullptr;
  int count = 0;
};

TEST_P(MailboxTest, LetterPushedFromItsDeliveryWaitsForTheNextTurn) {
  auto io = make_uring(small(GetParam())).value();
  auto box = std::make_unique<Mailbox>(*io);
  io->on_wake = [&] { box->drain(); };
  Echo echo;
  echo.box = box.get();
  std::vector<Letter> letters(2);
  for (Letter& letter : letters) {
    letter.address<&Echo::on_letter>(&echo);
    box->push(letter);
  }
  io->turn(kForever);
  EXPECT_LE(echo.count, 3);
  for (int turns = 0; echo.count < 1000 && turns < 1000; ++turns) io->turn(kForever);
  EXPECT_GE(echo.count, 1000);
}

// Shards that pass letters to each other at random until each letter made its hops.
class Office {
 public:
  struct Shard;
  struct Traveller : Letter {
    int hops_left = 0;
    uint64_t touched = 0;  // not atomic: only its receiver may touch it
  };
  struct Shard {
    Shard(Office& at, size_t number, const char* features)
        : office(at), prng(number + 1), io(make_uring(small(features)).value()), box(*io) {
      io->on_wake = [this] { box.drain(); };
    }
    void on_letter(Letter& letter) {
      auto& traveller = static_cast<Traveller&>(letter);
      ++traveller.touched;
      ++delivered;
      if (--traveller.hops_left == 0) {
        if (office.travelling.fetch_sub(1) == 1) office.stop();
        return;
      }
      office.forward(traveller, prng);
    }
    void run() {
      while (!office.stopped.load()) io->turn(kForever);
    }
    Office& office;
    Prng prng;
    std::unique_ptr<Io> io;
    Mailbox box;
    uint64_t delivered = 0;
  };

  Office(size_t shard_count, int letters, int hops, const char* features)
      : travellers(static_cast<size_t>(letters)) {
    for (size_t i = 0; i < shard_count; ++i)
      shards.push_back(std::make_unique<Shard>(*this, i, features));
    for (Traveller& traveller : travellers) traveller.hops_left = hops;
    travelling = letters;
  }
  void forward(Traveller& traveller, Prng& prng) {
    Shard& to = *shards[prng.below(shards.size())];
    traveller.address<&Shard::on_letter>(&to);
    to.box.push(traveller);
  }
  void stop() {
    stopped = true;
    for (auto& shard : shards) shard->io->wake();
  }
  void run() {
    std::vector<std::thread> threads;
    for (auto& shard : shards) threads.emplace_back([&shard] { shard->run(); });
    // A thread without a ring posts them.
    Prng prng(99);
    for (Traveller& traveller : travellers) forward(traveller, prng);
    for (std::thread& thread : threads) thread.join();
  }
  uint64_t delivered() const {
    uint64_t sum = 0;
    for (const auto& shard : shards) sum += shard->delivered;
    return sum;
  }

  std::vector<std::unique_ptr<Shard>> shards;
  std::vector<Traveller> travellers;
  std::atomic<int> travelling{0};
  std::atomic<bool> stopped{false};
};

TEST_P(MailboxTest, ManyLettersBetweenFourShardsAllArrive) {
  Office office(4, 500, 800, GetParam());
  office.run();
  EXPECT_EQ(office.delivered(), 400'000u);
  for (auto& traveller : office.travellers) EXPECT_EQ(traveller.touched, 800u);
}

// With fewer letters than shards everyone falls asleep all the time.
TEST_P(MailboxTest, SleepersAreAlwaysWoken) {
  Office office(4, 2, 20'000, GetParam());
  office.run();
  EXPECT_EQ(office.delivered(), 40'000u);
}

INSTANTIATE_TEST_SUITE_P(Features, MailboxTest, ::testing::Values("all", "none"),
                         [](const auto& used) { return std::string(used.param); });

}  // namespace
}  // namespace millrace::reactor
