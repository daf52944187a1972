// The spool over io_uring and a real file system: the same calls as in simulation, once.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <optional>

#include "base/crc32c.h"
#include "reactor/uring.h"
#include "spool/directory.h"
#include "spool/spool.h"

namespace millrace::spool {
namespace {

struct Nobody final : RecoveryHandler {
  std::vector<Recovered> messages;
  void on_message(const Recovered& message) override { messages.push_back(message); }
  void on_event(uint64_t, std::string_view) override {}
  void on_state(std::string_view, std::string_view) override {}
};

class SpoolUring : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* where = std::getenv("TMPDIR");
    path_ = std::string(where ? where : "/tmp") + "/millrace-spool-XXXXXX";
    ASSERT_NE(mkdtemp(path_.data()), nullptr);
    config_.spool = path_ + "/spool";
    config_.segment_size = 1 << 20;
    config_.max_message_size = 256 << 10;
    config_.spool_reserve = 2 << 20;
    make_io();
  }
  void TearDown() override {
    drop_io();
    std::filesystem::remove_all(path_);
  }
  void make_io() {
    auto io = reactor::make_uring({});
    if (!io.ok()) GTEST_SKIP() << io.error().text;
    io_ = std::move(*io);
    box_ = std::make_unique<reactor::Mailbox>(*io_);
    io_->on_wake = [this] { box_->drain(); };
  }
  void drop_io() {
    box_.reset();
    io_.reset();
  }
  template <typename Done>
  void run(Done done) {
    while (!done()) io_->turn(100'000'000);
  }
  std::string open(std::unique_ptr<Directory>& directory, RecoveryHandler& handler) {
    std::optional<std::string> text;
    reactor::spawn(Directory::open(*io_, *box_, config_), [&](Result<std::unique_ptr<Directory>> result) {
      if (result.ok()) directory = std::move(*result);
      text = result.ok() ? "" : result.error().text;
    });
    run([&] { return text.has_value(); });
    if (!text->empty()) return *text;
    text.reset();
    reactor::spawn(directory->recover(handler), [&](Result<RecoverySummary> result) {
      text = result.ok() ? "" : result.error().text;
    });
    run([&] { return text.has_value(); });
    return *text;
  }
  void close(Directory& directory) {
    bool closed = false;
    reactor::spawn(directory.close(), [&](Status) { closed = true; });
    run([&] { return closed; });
  }

  std::string path_;
  config::Config config_;
  std::unique_ptr<reactor::Io> io_;
  std::unique_ptr<reactor::Mailbox> box_;
};

TEST_F(SpoolUring, MessagesSurviveARestartAndASecondProcessIsLockedOut) {
  if (!io_) return;
  std::vector<Location> where;
  std::string body(20480, 'x');
  for (size_t i = 0; i < body.size(); ++i) body[i] = static_cast<char>(i * 31 % 251);
  uint32_t crc = crc32c(0, body);
  {
    std::unique_ptr<Directory> directory, second;
    Nobody nobody;
    ASSERT_EQ(open(directory, nobody), "");
    EXPECT_NE(open(second, nobody).find("locked"), std::string::npos);
    auto spool = directory->shard(*io_, *box_);
    size_t answered = 0;
    constexpr size_t kCount = 200;
    std::vector<std::unique_ptr<Append>> appends;
    std::vector<reactor::BufferRef> buffers;
    for (size_t i = 0; i < kCount; ++i) {
      auto append = std::make_unique<Append>();
      auto buffer = io_->buffers(reactor::BufferGroup::ingress).allocate(32768);
      ASSERT_TRUE(buffer);
      std::memcpy(buffer->data + i, body.data(), body.size());
      append->id = {1, i + 1};
      append->metadata = "some metadata";
      append->pieces.push_back({buffer->data + i, static_cast<uint32_t>(body.size()), buffer.get()});
      append->body_crc = crc;
      append->owner = &answered;
      append->done = [](void* owner, Append& at) {
        EXPECT_TRUE(at.status.ok());
        ++*static_cast<size_t*>(owner);
      };
      buffers.push_back(std::move(buffer));
      spool->append(*append);
      appends.push_back(std::move(append));
    }
    run([&] { return answered == kCount; });
    for (auto& append : appends) where.push_back(append->location);
    close(*directory);
    buffers.clear();
  }
  drop_io();
  make_io();
  std::unique_ptr<Directory> directory;
  Nobody found;
  ASSERT_EQ(open(directory, found), "");
  EXPECT_EQ(found.messages.size(), where.size());
  auto spool = directory->shard(*io_, *box_);
  for (size_t i = 0; i < where.size(); i += 7) {
    Read read;
    bool done = false;
    read.id = {1, i + 1};
    read.message = where[i];
    read.owner = &done;
    read.done = [](void* owner, Read&) { *static_cast<bool*>(owner) = true; };
    spool->read(read);
    run([&] { return done; });
    ASSERT_TRUE(read.status.ok()) << read.status.error().text;
    std::string got;
    for (auto piece : read.pieces) got += piece;
    EXPECT_TRUE(got == body);
  }
  close(*directory);
}

}  // namespace
}  // namespace millrace::spool
