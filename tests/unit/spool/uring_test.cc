// The spool over io_uring and a real file system: the same calls as in simulation, once.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <optional>
#include <thread>

#include "base/crc32c.h"
#include "reactor/uring.h"
#include "spool/directory.h"
#include "spool/format.h"
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
  config_.spool += '/';  // as people write it
  std::vector<Location> where;
  std::string body(20480, 'x');
  for (size_t i = 0; i < body.size(); ++i) body[i] = static_cast<char>(i * 31 % 251);
  uint32_t crc = crc32c(0, body);
  {
    std::unique_ptr<Directory> directory, second;
    Nobody nobody;
    ASSERT_EQ(open(directory, nobody), "");
    EXPECT_NE(open(second, nobody).find("lock"), std::string::npos);
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
  // The last segment is nearly empty, so compaction may move its messages at any time from here on.
  spool->on_moved = [&](const mail::SpoolId& id, Location from, Location to) {
    ASSERT_LE(id.low, where.size());
    Location& at = where[id.low - 1];
    EXPECT_EQ(at.segment, from.segment);
    EXPECT_EQ(at.offset, from.offset);
    at = to;
  };
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

// What a hurried restore from a backup leaves behind.
TEST_F(SpoolUring, AForeignSegmentIsLeftAloneAndACopiedOneIsRefused) {
  if (!io_) return;
  const std::string own = config_.spool, other = path_ + "/other";
  std::string segment;
  for (const std::string& spool_path : {other, own}) {
    config_.spool = spool_path;
    std::unique_ptr<Directory> directory;
    Nobody nobody;
    ASSERT_EQ(open(directory, nobody), "");
    auto spool = directory->shard(*io_, *box_);
    bool answered = false;
    std::string body = "Subject: x\r\n\r\nhello\r\n";
    Append append;
    append.id = {1, 1};
    append.metadata = "metadata";
    append.pieces.push_back({body.data(), static_cast<uint32_t>(body.size()), nullptr});
    append.body_crc = crc32c(0, body);
    append.owner = &answered;
    append.done = [](void* owner, Append&) { *static_cast<bool*>(owner) = true; };
    spool->append(append);
    run([&] { return answered; });
    ASSERT_TRUE(append.status.ok());
    segment = "/" + segment_name(append.location.segment);
    close(*directory);
    spool.reset();
    directory.reset();
    drop_io();
    make_io();
  }
  const std::string added = own + "/" + segment_name(77);
  auto start = [&](RecoveryHandler& handler) {
    std::unique_ptr<Directory> directory;
    std::string text = open(directory, handler);
    if (text.empty()) close(*directory);
    directory.reset();
    drop_io();
    make_io();
    return text;
  };
  auto segments = [&] {
    size_t n = 0;
    for (const auto& entry : std::filesystem::directory_iterator(own)) n += entry.path().extension() == ".seg";
    return n;
  };
  ASSERT_EQ(segments(), 1u);
  // One prepared ahead, if the close left it time, would count as well.
  std::filesystem::remove(own + "/0000000002.new");
  std::filesystem::copy_file(other + segment, added);
  Nobody nobody;
  std::string text = start(nobody);
  EXPECT_NE(text.find("as many segments of one spool (0000000001.seg) as of another (0000000077.seg)"), std::string::npos) << text;
  EXPECT_TRUE(std::filesystem::exists(added)) << "it is somebody's mail";
  std::filesystem::remove(added);
  std::filesystem::copy_file(own + segment, added);
  text = start(nobody);
  EXPECT_NE(text.find("move away the one that is a copy"), std::string::npos) << text;
  EXPECT_TRUE(std::filesystem::exists(added));
  std::filesystem::remove(added);
  Nobody found;
  EXPECT_EQ(start(found), "");
  EXPECT_EQ(found.messages.size(), 1u);
}

// A shard on a thread of its own, far from the log: a message in, read back, done; many times.
class Remote {
 public:
  Remote(Directory& directory, unsigned number) : number_(number) {
    io_ = std::move(reactor::make_uring({})).value();
    box_ = std::make_unique<reactor::Mailbox>(*io_);
    io_->on_wake = [this] { box_->drain(); };
    spool_ = directory.shard(*io_, *box_);
    append_.metadata = "metadata";
    append_.owner = note_.owner = read_.owner = this;
    append_.done = [](void* self, Append& append) {
      auto& remote = *static_cast<Remote*>(self);
      remote.failed_ = remote.failed_ || !append.status.ok();
      remote.read_.id = append.id;
      remote.read_.message = append.location;
      remote.spool_->read(remote.read_);
    };
    read_.done = [](void* self, Read& read) {
      auto& remote = *static_cast<Remote*>(self);
      remote.failed_ = remote.failed_ || !read.status.ok() || read.pieces.size() != 1 || read.pieces[0] != remote.body_;
      read.buffers.clear();
      remote.note_.id = read.id;
      remote.note_.message = read.message;
      remote.note_.final = true;
      remote.spool_->note(remote.note_);
    };
    note_.done = [](void* self, Note& note) {
      auto& remote = *static_cast<Remote*>(self);
      remote.failed_ = remote.failed_ || !note.status.ok();
      if (++remote.rounds_ < 200) remote.next();
    };
  }
  void loop() {
    buffer_ = io_->buffers(reactor::BufferGroup::ingress).allocate(65536);
    next();
    while (rounds_ < 200) io_->turn(100'000'000);
    buffer_.reset();
  }
  // After the loops of all shards, on whatever thread.
  void drain() { box_->drain(); }
  void drop() {
    spool_.reset();
    box_.reset();
    io_.reset();
  }
  bool failed() const { return failed_; }

 private:
  void next() {
    body_.assign(3000 + rounds_ * 17, static_cast<char>('a' + rounds_ % 26));
    std::memcpy(buffer_->data + 100, body_.data(), body_.size());
    append_.id = {2 + number_, rounds_ + 1};
    append_.pieces.assign(1, {buffer_->data + 100, static_cast<uint32_t>(body_.size()), buffer_.get()});
    append_.body_crc = crc32c(0, body_);
    spool_->append(append_);
  }
  const unsigned number_;
  std::unique_ptr<reactor::Io> io_;
  std::unique_ptr<reactor::Mailbox> box_;
  std::unique_ptr<Spool> spool_;
  reactor::BufferRef buffer_;
  std::string body_;
  Append append_;
  Read read_;
  Note note_;
  size_t rounds_ = 0;
  bool failed_ = false;
};

TEST_F(SpoolUring, ShardsOnOtherThreadsShareTheLog) {
  if (!io_) return;
  std::unique_ptr<Directory> directory;
  Nobody nobody;
  ASSERT_EQ(open(directory, nobody), "");
  Remote one(*directory, 1), two(*directory, 2);
  std::atomic<int> running{2};
  std::thread first([&] { one.loop(); --running; });
  std::thread second([&] { two.loop(); --running; });
  while (running > 0) io_->turn(10'000'000);
  first.join();
  second.join();
  EXPECT_FALSE(one.failed());
  EXPECT_FALSE(two.failed());
  // A segment that is released asks every shard, those whose loop has ended too.
  auto settle = [&] {
    for (int round = 0; round < 4; ++round) {
      one.drain();
      two.drain();
      box_->drain();
    }
  };
  settle();
  close(*directory);
  settle();
  one.drop();
  two.drop();
}

}  // namespace
}  // namespace millrace::spool
