#include "common/ledger.h"

#include <gtest/gtest.h>

namespace millrace::tools {
namespace {

TEST(Ledger, LinesAreReadBack) {
  LedgerEntry entry;
  entry.id = {5, 77};
  entry.digest[0] = 0xab;
  entry.digest[31] = 0x01;
  entry.recipients = 9;
  entry.refused = {0, 3, 8};
  entry.times_sent = 2;
  entry.relay_id = "0123456789abcdefghijklmnop";
  std::string line;
  append_line(entry, line);
  ASSERT_EQ(line.back(), '\n');
  line.pop_back();
  LedgerEntry read;
  ASSERT_TRUE(parse_line(line, read)) << line;
  EXPECT_EQ(read.id.run, 5u);
  EXPECT_EQ(read.id.number, 77u);
  EXPECT_EQ(read.digest, entry.digest);
  EXPECT_EQ(read.recipients, 9u);
  EXPECT_EQ(read.refused, entry.refused);
  EXPECT_EQ(read.times_sent, 2u);
  EXPECT_EQ(read.relay_id, entry.relay_id);
}

TEST(Ledger, ATornLineIsRefused) {
  LedgerEntry entry;
  entry.relay_id = "x";
  std::string line;
  append_line(entry, line);
  line.pop_back();
  LedgerEntry read;
  ASSERT_TRUE(parse_line(line, read));
  for (size_t size = 0; size < line.size(); ++size) {
    EXPECT_FALSE(parse_line(std::string_view(line).substr(0, size), read)) << size;
  }
}

}  // namespace
}  // namespace millrace::tools
