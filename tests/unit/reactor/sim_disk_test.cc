// The simulated disk: what a power cut leaves, and that it leaves no less than it may and no more.
#include "reactor/sim_disk.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <set>
#include <string>
#include <vector>

namespace millrace::reactor {
namespace {

constexpr size_t kSector = SimDisk::kSector;

SimDisk disk_with(const std::string& path, SimDisk::FileId* file) {
  SimDisk disk;
  *file = disk.open(path, true).value();
  EXPECT_TRUE(disk.sync_directory("/").ok());
  return disk;
}

std::string sectors(std::initializer_list<char> letters) {
  std::string bytes;
  for (char letter : letters) bytes.append(kSector, letter);
  return bytes;
}

TEST(SimDisk, ReadsWhatWasWrittenAndZerosInHoles) {
  SimDisk::FileId file;
  SimDisk disk = disk_with("/f", &file);
  EXPECT_EQ(disk.write(file, 10'000, "tail", false), 4);
  EXPECT_EQ(disk.size(file), 10'004u);
  std::string bytes(20, 'x');
  EXPECT_EQ(disk.read(file, 9'990, bytes.data(), 20), 14u);
  EXPECT_EQ(bytes.substr(0, 14), std::string(10, '\0') + "tail");
  EXPECT_EQ(disk.read(file, 10'004, bytes.data(), 20), 0u);
}

TEST(SimDisk, DurableWritesSurviveEveryPowerCut) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SimDisk::FileId file;
    SimDisk disk = disk_with("/f", &file);
    disk.write(file, 0, sectors({'a', 'b', 'c'}), true);
    Prng chance(seed);
    disk.power_cut(chance);
    EXPECT_EQ(disk.content("/f"), sectors({'a', 'b', 'c'})) << seed;
  }
}

TEST(SimDisk, SyncedWritesSurviveEveryPowerCut) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SimDisk::FileId file;
    SimDisk disk = disk_with("/f", &file);
    disk.write(file, 0, sectors({'a', 'b'}), false);
    disk.write(file, kSector, sectors({'c'}), false);
    EXPECT_EQ(disk.unsynced_bytes(), 3 * kSector);
    disk.sync(file);
    EXPECT_EQ(disk.unsynced_bytes(), 0u);
    Prng chance(seed);
    disk.power_cut(chance);
    EXPECT_EQ(disk.content("/f"), sectors({'a', 'c'})) << seed;
  }
}

TEST(SimDisk, UnsyncedWritesSurviveByTheSectorInEveryWay) {
  std::set<std::string> left;
  for (uint64_t seed = 0; seed < 400; ++seed) {
    SimDisk::FileId file;
    SimDisk disk = disk_with("/f", &file);
    disk.write(file, 0, sectors({'a', 'b', 'c'}), true);
    disk.write(file, 0, sectors({'x', 'y', 'z'}), false);
    Prng chance(seed);
    disk.power_cut(chance);
    std::string content = disk.content("/f");
    ASSERT_EQ(content.size(), 3 * kSector);
    std::string firsts;
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(content.substr(i * kSector, kSector), std::string(kSector, content[i * kSector]));
      firsts += content[i * kSector];
    }
    left.insert(firsts);
  }
  EXPECT_EQ(left, (std::set<std::string>{"abc", "xbc", "ayc", "abz", "xyc", "xbz", "ayz", "xyz"}));
}

TEST(SimDisk, ALaterWriteMaySurviveWithoutTheEarlierOne) {
  std::set<std::string> left;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SimDisk::FileId file;
    SimDisk disk = disk_with("/f", &file);
    disk.write(file, 0, sectors({'.', '.'}), true);
    disk.write(file, 0, sectors({'1'}), false);
    disk.write(file, kSector, sectors({'2'}), false);
    Prng chance(seed);
    disk.power_cut(chance);
    left.insert({disk.content("/f")[0], disk.content("/f")[kSector]});
  }
  EXPECT_TRUE(left.contains(".2"));
  EXPECT_TRUE(left.contains("1."));
}

TEST(SimDisk, ADurableWriteOverAnUnsyncedOneWins) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SimDisk::FileId file;
    SimDisk disk = disk_with("/f", &file);
    disk.write(file, 0, sectors({'o', 'o'}), false);
    disk.write(file, 0, sectors({'n'}), true);
    Prng chance(seed);
    disk.power_cut(chance);
    EXPECT_EQ(disk.content("/f").substr(0, kSector), sectors({'n'})) << seed;
  }
}

TEST(SimDisk, NamesAreDurableOnlyOnceTheirDirectoryIs) {
  int kept = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SimDisk disk;
    SimDisk::FileId file = disk.open("/new", true).value();
    disk.write(file, 0, "content", true);
    disk.sync(file);
    Prng chance(seed);
    disk.power_cut(chance);
    if (disk.exists("/new")) {
      ++kept;
      EXPECT_EQ(disk.content("/new"), "content");
    }
  }
  EXPECT_GT(kept, 10);
  EXPECT_LT(kept, 90);
}

TEST(SimDisk, NameChangesOfADirectorySurviveAsAPrefix) {
  std::set<std::string> left;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SimDisk disk;
    disk.write(disk.open("/old", true).value(), 0, "new", true);
    ASSERT_TRUE(disk.sync_directory("/").ok());
    disk.write(disk.open("/temporary", true).value(), 0, "newer", true);
    ASSERT_TRUE(disk.rename("/temporary", "/old").ok());
    ASSERT_TRUE(disk.open("/last", true).ok());
    Prng chance(seed);
    disk.power_cut(chance);
    std::vector<std::string> listed = disk.list("/").value();
    std::string names;
    for (const auto& name : listed) names += name + " ";
    left.insert(names + disk.content("/old"));
  }
  EXPECT_EQ(left, (std::set<std::string>{"old new", "old temporary new", "old newer",
                                         "last old newer"}));
}

TEST(SimDisk, ARemovedFileMayComeBack) {
  std::set<bool> left;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SimDisk::FileId file;
    SimDisk disk = disk_with("/f", &file);
    disk.write(file, 0, "content", true);
    ASSERT_TRUE(disk.remove("/f").ok());
    disk.release(file);
    EXPECT_FALSE(disk.exists("/f"));
    Prng chance(seed);
    disk.power_cut(chance);
    left.insert(disk.exists("/f"));
    if (disk.exists("/f")) {
      EXPECT_EQ(disk.content("/f"), "content");
    }
  }
  EXPECT_EQ(left.size(), 2u);
}

TEST(SimDisk, AFailedSyncMayLoseWritesForGood) {
  int lost = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SimDisk::FileId file;
    SimDisk disk = disk_with("/f", &file);
    disk.write(file, 0, sectors({'a'}), true);
    disk.write(file, 0, sectors({'b'}), false);
    Prng chance(seed);
    disk.fail_sync(file, chance);
    disk.sync(file);  // says all is well
    EXPECT_EQ(disk.content("/f")[0], 'b') << "it can still be read";
    disk.power_cut(chance);
    if (disk.content("/f")[0] == 'a') ++lost;
  }
  EXPECT_GT(lost, 5);
  EXPECT_LT(lost, 45);
}

TEST(SimDisk, AFullDiskTakesWhatFits) {
  SimDisk disk(16384);
  SimDisk::FileId file = disk.open("/f", true).value();
  EXPECT_EQ(disk.write(file, 0, std::string(12'288, 'x'), false), 12'288);
  EXPECT_EQ(disk.free_space(), 4096u);
  EXPECT_EQ(disk.write(file, 12'288, std::string(8192, 'x'), false), 4096);
  EXPECT_EQ(disk.write(file, 16'384, "x", false), -ENOSPC);
  EXPECT_EQ(disk.write(file, 0, std::string(8192, 'y'), false), 8192) << "its own space is its own";
  SimDisk::FileId second = disk.open("/g", true).value();
  EXPECT_EQ(disk.resize(second, 1).error().number, ENOSPC);
  ASSERT_TRUE(disk.remove("/f").ok());
  ASSERT_TRUE(disk.sync_directory("/").ok());
  disk.release(file);
  EXPECT_TRUE(disk.resize(second, 16'384).ok());
}

TEST(SimDisk, ACopyIsASnapshot) {
  SimDisk::FileId file;
  SimDisk disk = disk_with("/f", &file);
  disk.write(file, 0, "before", true);
  SimDisk snapshot = disk;
  disk.write(file, 0, "after!", true);
  EXPECT_EQ(snapshot.content("/f"), "before");
  EXPECT_EQ(disk.content("/f"), "after!");
}

TEST(SimDisk, AFlippedBitStaysFlipped) {
  SimDisk::FileId file;
  SimDisk disk = disk_with("/f", &file);
  disk.write(file, 0, "abc", true);
  disk.flip_bit("/f", 1, 0);
  EXPECT_EQ(disk.content("/f"), "acc");
  Prng chance(1);
  disk.power_cut(chance);
  EXPECT_EQ(disk.content("/f"), "acc");
}

TEST(SimDisk, TheJournalReplaysEveryMoment) {
  SimDisk::FileId file;
  SimDisk disk = disk_with("/log", &file);
  disk.write(file, 0, sectors({'0'}), true);
  disk.start_journal();
  for (int i = 1; i <= 8; ++i) {
    disk.write(file, static_cast<uint64_t>(i) * kSector,
               sectors({static_cast<char>('0' + i)}), i % 2 == 0);
    if (i == 5) {
      SimDisk::FileId next = disk.open("/next", true).value();
      ASSERT_TRUE(disk.resize(next, 8192).ok());
      disk.sync(next);
      ASSERT_TRUE(disk.sync_directory("/").ok());
    }
  }
  ASSERT_EQ(disk.journal().size(), 12u);
  for (size_t at = 0; at <= disk.journal().size(); ++at) {
    for (uint64_t seed = 0; seed < 10; ++seed) {
      SimDisk after = disk.after_power_cut(at, seed);
      std::string content = after.content("/log");
      ASSERT_GE(content.size(), kSector);
      EXPECT_EQ(content[0], '0');
      size_t synced_names = 0;
      for (size_t i = 0; i < at; ++i) {
        const SimDisk::Change& change = disk.journal()[i];
        if (change.kind == SimDisk::Change::Kind::durable_write) {
          EXPECT_EQ(content.substr(change.offset, change.bytes.size()), change.bytes);
        }
        if (change.kind == SimDisk::Change::Kind::sync_directory) ++synced_names;
      }
      if (synced_names > 0) {
        EXPECT_EQ(after.content("/next").size(), 8192u);
      }
    }
  }
  // The same moment and seed are the same disk.
  EXPECT_EQ(disk.after_power_cut(7, 3).content("/log"), disk.after_power_cut(7, 3).content("/log"));
}

}  // namespace
}  // namespace millrace::reactor
