// The loop and the operations. Each turn is one io_uring_enter(2): what was started since the last
// one is submitted with the wait for what comes next.
//
// What the ring itself ends too early (a multishot operation out of buffers, or dropped by the
// kernel when its completion queue overflowed) is started again here, so that users see rule 5 of
// io.h.
#include "reactor/uring.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstring>
#include <ctime>
#include <vector>

#include "base/log.h"
#include "base/prng.h"
#include "reactor/files.h"
#include "reactor/provided_buffers.h"
#include "reactor/sockets.h"
#include "reactor/uring_constants.h"
#include "reactor/uring_setup.h"

namespace millrace::reactor {
namespace {

constexpr int64_t kSecond = 1'000'000'000;
// Out of descriptors: accepting goes on after this pause, when some may have been closed.
constexpr int64_t kAcceptPause = 100'000'000;
constexpr unsigned kFewestSubmissions = 128;
constexpr int64_t kLongestWait = 3600 * kSecond;  // what a timespec of the kernel surely takes

// user_data of a submission: the address of its Op (a multiple of 8), or one of these.
enum class Tag : uint64_t { op = 0, internal = 1, message = 2 };
constexpr uint64_t kTagMask = 7;
constexpr uint64_t kIgnored = (0 << 3) | static_cast<uint64_t>(Tag::internal);  // a cancel failed
constexpr uint64_t kMessage =
    (1 << 3) | static_cast<uint64_t>(Tag::internal);  // another ring wakes
constexpr uint64_t kEventRead =
    (2 << 3) | static_cast<uint64_t>(Tag::internal);  // the eventfd wakes

// What the back end notes in an Op while it is pending.
struct Note {
  enum class Kind : uint8_t { accept, connect, receive, send, other };
  enum class Where : uint8_t {
    ring,      // the kernel has it, or will with the next submission
    callback,  // between the ring's last completion and being started again
    parked,    // waits for a buffer
    resting,   // an accept that waits for descriptors
    ending,    // cancelled while not in the ring; completes in a later turn
  };
  Kind kind = Kind::other;
  Where where = Where::ring;
  BufferGroup group = BufferGroup::ingress;
  bool cancelled = false;
  int32_t descriptor = -1;
};
struct SendNote : Note {
  msghdr message;
};
struct ConnectNote : Note {
  sockaddr_storage peer;
};
static_assert(sizeof(SendNote) <= sizeof(Op::Scratch));
static_assert(sizeof(ConnectNote) <= sizeof(Op::Scratch));

template <typename T>
T& make_note(Op& op, Note::Kind kind, int descriptor) {
  T* note = new (op.scratch.bytes) T;
  note->kind = kind;
  note->descriptor = descriptor;
  return *note;
}
Note& note_of(Op& op) { return *std::launder(reinterpret_cast<Note*>(op.scratch.bytes)); }

int64_t monotonic_now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * kSecond + time.tv_nsec;
}

class UringIo final : public Io {
 public:
  UringIo() = default;
  ~UringIo() override;
  Status start(const UringOptions& options);

  int64_t now() const override { return now_; }
  int64_t wall_ms() const override {
    timespec time{};
    clock_gettime(CLOCK_REALTIME, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1'000'000;
  }
  uint64_t random() override { return random_.next(); }
  void turn(int64_t longest_wait_ns) override;
  void wake() override;

  Result<Handle> listen(const ListenOptions& options) override { return open_listener(options); }
  Result<Address> local_address(Handle handle) override { return socket_name(handle); }
  Result<Address> peer_address(Handle handle) override { return peer_name(handle); }
  Result<Handle> open_socket(const Address& peer, const Address& source) override {
    return open_stream_socket(peer, source);
  }
  void accept(Op& op, Handle listener) override;
  void connect(Op& op, Handle socket, const Address& peer) override;
  void receive(Op& op, Handle socket, BufferGroup group) override;
  void send(Op& op, Handle socket, std::span<const iovec> parts) override;
  void shutdown_send(Handle socket) override;
  void close(Handle handle, bool reset) override;
  void cancel(Op& op) override;
  void poll(Op& op, int descriptor, short events) override;

  BufferPool& buffers(BufferGroup group) override {
    return groups_[static_cast<size_t>(group)].pool;
  }

  Result<Handle> open_file(const std::string& path, const FileOptions& options) override {
    return open_descriptor(path, options);
  }
  Alignment alignment(Handle file) override { return descriptor_alignment(file); }
  Result<uint64_t> file_size(Handle file) override { return descriptor_size(file); }
  Status allocate(Handle file, uint64_t size) override { return allocate_bytes(file, size); }
  void write(Op& op, Handle file, std::span<const iovec> parts, uint64_t offset,
             bool durable) override;
  void read(Op& op, Handle file, std::span<const iovec> parts, uint64_t offset) override;
  void sync(Op& op, Handle file) override;
  void sync_names(Op& op, Handle directory) override;
  Result<std::vector<std::string>> list_directory(const std::string& path) override {
    return directory_names(path);
  }
  Status make_directory(const std::string& path) override { return create_directory(path); }
  Status rename_file(const std::string& from, const std::string& to) override {
    return rename_path(from, to);
  }
  Status remove_file(const std::string& path) override { return remove_path(path); }
  Status sync_directory(const std::string& path) override { return sync_path(path); }
  Status lock_file(const std::string& path) override;
  Result<uint64_t> free_space(const std::string& path) override { return bytes_free(path); }

 private:
  using OpList = IntrusiveList<Op, &Op::parked>;
  struct Group {
    ProvidedBuffers pool;
    OpList parked;  // receives that found no buffer, the longest waiting first
  };

  Status make_ring(const UringOptions& options);
  Status restrict_ring();
  io_uring_sqe& next_entry();
  void submit_entry(Op& op, io_uring_sqe& entry);
  void submit_queued();
  void move_spilled();
  void enable();
  void enter(int64_t wait_ns);
  void read_event();

  void arm_accept(Op& op);
  void arm_receive(Op& op, bool poll_first);
  void feed_groups();
  void on_rested();

  void handle(uint64_t user_data, int32_t result, uint32_t flags);
  void on_accept(Op& op, int32_t result, uint32_t flags);
  void on_receive(Op& op, int32_t result, uint32_t flags);
  void finish(Op& op, int32_t result);
  void end_cancelled(Op& op);
  void end_due();

  // ---- constant after start()
  Features features_;
  int event_ = -1;  // wakes this ring from threads that run none
  // ---- this shard's
  io_uring ring_{};
  bool ring_made_ = false;
  bool enabled_ = false;
  int64_t now_ = 0;
  Prng random_{0};
  std::array<Group, kBufferGroups> groups_;
  OpList resting_;
  Timer rest_timer_;
  OpList ending_;
  // Entries that found the submission queue full and the kernel short of memory, in order.
  std::vector<io_uring_sqe> spilled_;
  bool messages_queued_ = false;  // to other rings, since the last submission
  uint64_t event_value_ = 0;
  int64_t next_accept_warning_ = 0;
  int64_t next_enter_warning_ = 0;
  std::vector<int> locks_;
  // ---- written by any shard
  // One word, so that all that matters has one order: whoever sets kNotified and sees kSleeping
  // sends the signal; whoever sets kSleeping and sees kNotified does not sleep.
  static constexpr uint32_t kSleeping = 1;
  static constexpr uint32_t kNotified = 2;
  alignas(64) std::atomic<uint32_t> wakefulness_{0};
};

// The Io whose turn() this thread is in.
thread_local UringIo* running = nullptr;

// ---- life

Status UringIo::start(const UringOptions& options) {
  Result<Features> usable = usable_features(options.features);
  if (!usable) return fail(usable.error());
  features_ = *usable;

  if (Status made = make_ring(options); !made) return made;
  // Blocking on purpose: with O_NONBLOCK the ring would report EAGAIN instead of waiting.
  event_ = eventfd(0, EFD_CLOEXEC);
  if (event_ < 0)
    return fail(fmt::format("cannot make an eventfd: {}", std::strerror(errno)), errno);

  // Large blocks where pieces of many connections share one. Replies are small, so the blocks of
  // the other groups are: a reply that is kept for a while pins less.
  bool incremental = features_.incremental_buffers;
  struct Shape {
    BufferGroup group;
    uint64_t limit;
    uint32_t incremental_block, incremental_entries, classic_block, classic_entries;
  };
  const Shape shapes[] = {
      {BufferGroup::ingress, options.ingress_bytes, 1 << 20, 8, 16 << 10, 512},
      {BufferGroup::delivery, options.delivery_bytes, 64 << 10, 32, 4 << 10, 512},
      {BufferGroup::spool, options.spool_bytes, 4 << 10, 0, 4 << 10, 0},  // private buffers only
      {BufferGroup::control, options.control_bytes, 64 << 10, 8, 4 << 10, 128},
  };
  for (const Shape& shape : shapes) {
    ProvidedBuffers::Options buffers;
    buffers.group = static_cast<uint16_t>(shape.group);
    buffers.incremental = incremental;
    buffers.block_size = incremental ? shape.incremental_block : shape.classic_block;
    buffers.ring_entries = incremental ? shape.incremental_entries : shape.classic_entries;
    buffers.limit = shape.limit;
    auto& group = groups_[static_cast<size_t>(shape.group)];
    if (Status started = group.pool.start(ring_, buffers); !started) return fail(started.error());
  }

  uint64_t seed = 0;
  if (getrandom(&seed, sizeof seed, 0) != sizeof seed) {
    return fail(fmt::format("cannot read random bytes: {}", std::strerror(errno)), errno);
  }
  random_ = Prng(seed);
  now_ = monotonic_now();
  timers_.start(now_);
  rest_timer_.bind<&UringIo::on_rested>(this);
  read_event();
  return restrict_ring();
}

// Whatever goes wrong in this process, its ring opens no file, makes no socket and starts nothing: it
// does what this file asks for and no more. In force once the ring is enabled.
Status UringIo::restrict_ring() {
  constexpr uint8_t kOperations[] = {IORING_OP_ACCEPT, IORING_OP_CONNECT,      IORING_OP_RECV,
                                     IORING_OP_SEND,   IORING_OP_SENDMSG,      IORING_OP_POLL_ADD,
                                     IORING_OP_READ,   IORING_OP_READV,        IORING_OP_WRITEV,
                                     IORING_OP_FSYNC,  IORING_OP_ASYNC_CANCEL, IORING_OP_MSG_RING};
  constexpr uint8_t kRegistrations[] = {IORING_REGISTER_ENABLE_RINGS, IORING_UNREGISTER_PBUF_RING};
  std::vector<io_uring_restriction> rules;
  for (uint8_t operation : kOperations) {
    rules.emplace_back().opcode = IORING_RESTRICTION_SQE_OP;
    rules.back().sqe_op = operation;
  }
  for (uint8_t registration : kRegistrations) {
    rules.emplace_back().opcode = IORING_RESTRICTION_REGISTER_OP;
    rules.back().register_op = registration;
  }
  rules.emplace_back().opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
  rules.back().sqe_flags = IOSQE_BUFFER_SELECT | IOSQE_CQE_SKIP_SUCCESS;
  // Like io_uring_enable_rings(), declared by liburing 2.3 but missing from its shared library.
  int r = io_uring_register(static_cast<unsigned>(ring_.ring_fd), IORING_REGISTER_RESTRICTIONS, rules.data(),
                            static_cast<unsigned>(rules.size()));
  if (r < 0) return fail(fmt::format("cannot restrict io_uring: {}", std::strerror(-r)), -r);
  return success();
}

// Newer kernels charge rings to the user's locked memory, which may be limited to 8 MiB for all
// shards and programs together. Smaller rings work as well, with more system calls at peaks.
Status UringIo::make_ring(const UringOptions& options) {
  unsigned submissions = options.submission_entries;
  unsigned completions = options.completion_entries;
  while (true) {
    io_uring_params parameters{};
    parameters.flags = kRingFlags;
    parameters.cq_entries = completions;
    int r = io_uring_queue_init_params(submissions, &ring_, &parameters);
    if (r == 0) break;
    if (r != -ENOMEM || submissions <= kFewestSubmissions) return fail(setup_error(-r));
    submissions /= 2;
    completions /= 2;
  }
  ring_made_ = true;
  if (submissions != options.submission_entries) {
    log::warning(
        "io_uring queues cut from {} to {} submissions: locked memory is short (ulimit -l)",
        options.submission_entries, submissions);
  }
  return success();
}

UringIo::~UringIo() {
  if (running == this) running = nullptr;
  for (Group& group : groups_) {
    while (group.parked.pop_front()) {
    }
  }
  while (resting_.pop_front()) {
  }
  while (ending_.pop_front()) {
  }
  while (deferred_.pop_front()) {
  }
  // The pools unregister from the ring, so it must outlive them: they are members, torn down after
  // this body, hence ended by hand here.
  for (Group& group : groups_) group.pool.stop();
  if (ring_made_) io_uring_queue_exit(&ring_);
  if (event_ >= 0) ::close(event_);
  for (int lock : locks_) ::close(lock);
}

void UringIo::enable() {
  // From here on the ring belongs to this thread.
  // io_uring_enable_rings() is declared by liburing 2.3 but missing from its shared library.
  int r = io_uring_register(static_cast<unsigned>(ring_.ring_fd), IORING_REGISTER_ENABLE_RINGS,
                            nullptr, 0);
  if (r < 0) log::error("io_uring cannot be enabled: {}", std::strerror(-r));
  ASSERT(r == 0);
  enabled_ = true;
}

// ---- the loop

void UringIo::turn(int64_t longest_wait_ns) {
  ASSERT(running == nullptr);
  if (!enabled_) enable();
  running = this;
  feed_groups();

  int64_t wait = 0;
  // Completions are there already when the last turn had to submit. Then the wait below would
  // return without asking the kernel for others, and a loop that always submits would never
  // receive.
  if (ending_.empty() && deferred_.empty() && io_uring_cq_ready(&ring_) == 0) {
    int64_t next = timers_.next();
    // The clock is read again: the time this thread was away would be slept on top.
    wait = next == INT64_MAX ? longest_wait_ns : std::min(longest_wait_ns, next - monotonic_now());
  }
  if (wait > 0) {
    uint32_t before = wakefulness_.fetch_or(kSleeping, std::memory_order_acq_rel);
    if (before & kNotified) wait = 0;
  }
  enter(wait);
  bool notified = wakefulness_.exchange(0, std::memory_order_acq_rel) & kNotified;
  now_ = monotonic_now();

  end_due();
  // As many as there are now: timers and letters get their turn however fast completions come.
  for (unsigned ready = io_uring_cq_ready(&ring_); ready > 0; --ready) {
    io_uring_cqe* entry = nullptr;
    if (io_uring_peek_cqe(&ring_, &entry) != 0) break;
    uint64_t user_data = entry->user_data;
    int32_t result = entry->res;
    uint32_t flags = entry->flags;
    // Given back before the callback, which may submit and make the kernel post more.
    io_uring_cq_advance(&ring_, 1);
    handle(user_data, result, flags);
  }
  timers_.advance(now_);
  if (notified && on_wake) on_wake();
  run_deferred();
  if (messages_queued_) {
    // Not left for the next turn's wait, since there may be none: a loop that ends must not leave
    // those asleep whom its last turn woke. Under load nobody sleeps, so this costs little.
    messages_queued_ = false;
    move_spilled();
    submit_queued();
  }
  running = nullptr;
}

void UringIo::enter(int64_t wait_ns) {
  move_spilled();
  int r;
  if (wait_ns > 0) {
    wait_ns = std::min(wait_ns, kLongestWait);
    __kernel_timespec limit{wait_ns / kSecond, wait_ns % kSecond};
    io_uring_cqe* unused = nullptr;
    r = io_uring_submit_and_wait_timeout(&ring_, &unused, 1, &limit, nullptr);
  } else {
    r = io_uring_submit_and_get_events(&ring_);
  }
  if (r >= 0) return;
  switch (-r) {
    case ETIME:  // nothing came
    case EINTR:  // a signal
      return;
    case EAGAIN:  // no memory for a request
    case ENOMEM:
    case EBUSY:  // completions to be taken first
      // What was not submitted stays queued; completions are taken now, which frees memory.
      if (now_ >= next_enter_warning_) {
        next_enter_warning_ = now_ + kSecond;
        log::warning("io_uring: the kernel is short of memory: {}", std::strerror(-r));
      }
      return;
    default:
      // EBADR: a completion was lost for want of kernel memory, and its Op would never end. The
      // others are mistakes of ours. Either way nothing sensible can follow.
      log::error("io_uring_enter failed: {}", std::strerror(-r));
      UNREACHABLE();
  }
}

io_uring_sqe& UringIo::next_entry() {
  if (spilled_.empty()) {
    if (io_uring_sqe* entry = io_uring_get_sqe(&ring_)) return *entry;
    submit_queued();
    if (io_uring_sqe* entry = io_uring_get_sqe(&ring_)) return *entry;
  }
  return spilled_.emplace_back();
}

void UringIo::submit_queued() {
  if (!enabled_) return;
  int r = io_uring_submit(&ring_);
  // Short of memory: the entries stay where they are, and the next turn tries again.
  ASSERT(r >= 0 || r == -EAGAIN || r == -ENOMEM || r == -EBUSY || r == -EINTR);
}

void UringIo::move_spilled() {
  size_t moved = 0;
  while (moved < spilled_.size()) {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    if (!entry) {
      submit_queued();
      entry = io_uring_get_sqe(&ring_);
      if (!entry) break;
    }
    *entry = spilled_[moved++];
  }
  if (moved > 0) spilled_.erase(spilled_.begin(), spilled_.begin() + static_cast<ptrdiff_t>(moved));
}

void UringIo::submit_entry(Op& op, io_uring_sqe& entry) {
  io_uring_sqe_set_data64(&entry, reinterpret_cast<uint64_t>(&op));
}

// ---- waking

void UringIo::wake() {
  uint32_t before = wakefulness_.fetch_or(kNotified, std::memory_order_acq_rel);
  // Awake: its next turn starts by looking. Notified: somebody else sends the signal.
  if (before != kSleeping) return;
  UringIo* sender = running;
  if (sender && sender != this && sender->features_.msg_ring) {
    io_uring_sqe& entry = sender->next_entry();
    io_uring_prep_msg_ring(&entry, ring_.ring_fd, 0, kMessage, 0);
    sender->messages_queued_ = true;
    // Only a failure comes back, with the eventfd to use in its place.
    entry.flags |= IOSQE_CQE_SKIP_SUCCESS;
    io_uring_sqe_set_data64(
        &entry, (static_cast<uint64_t>(event_) << 3) | static_cast<uint64_t>(Tag::message));
    return;
  }
  uint64_t one = 1;
  // Cannot block or fail: the counter is read long before it is full.
  [[maybe_unused]] ssize_t written = ::write(event_, &one, sizeof one);
  ASSERT(written == sizeof one);
}

void UringIo::read_event() {
  io_uring_sqe& entry = next_entry();
  io_uring_prep_read(&entry, event_, &event_value_, sizeof event_value_, 0);
  io_uring_sqe_set_data64(&entry, kEventRead);
}

// ---- sockets

void UringIo::accept(Op& op, Handle listener) {
  op.begin();
  make_note<Note>(op, Note::Kind::accept, listener);
  arm_accept(op);
}

void UringIo::arm_accept(Op& op) {
  Note& note = note_of(op);
  note.where = Note::Where::ring;
  io_uring_sqe& entry = next_entry();
  io_uring_prep_multishot_accept(&entry, note.descriptor, nullptr, nullptr, SOCK_CLOEXEC);
  submit_entry(op, entry);
}

void UringIo::connect(Op& op, Handle socket, const Address& peer) {
  op.begin();
  auto& note = make_note<ConnectNote>(op, Note::Kind::connect, socket);
  std::memcpy(&note.peer, peer.raw(), peer.raw_length());
  io_uring_sqe& entry = next_entry();
  io_uring_prep_connect(&entry, socket, reinterpret_cast<sockaddr*>(&note.peer), peer.raw_length());
  submit_entry(op, entry);
}

void UringIo::receive(Op& op, Handle socket, BufferGroup group) {
  ASSERT(group != BufferGroup::spool);
  op.begin();
  make_note<Note>(op, Note::Kind::receive, socket).group = group;
  // A connection seldom has bytes waiting when its receive starts: ask for the event first.
  arm_receive(op, true);
}

void UringIo::arm_receive(Op& op, bool poll_first) {
  Note& note = note_of(op);
  note.where = Note::Where::ring;
  io_uring_sqe& entry = next_entry();
  io_uring_prep_recv_multishot(&entry, note.descriptor, nullptr, 0, 0);
  entry.flags |= IOSQE_BUFFER_SELECT;
  entry.buf_group = static_cast<uint16_t>(note.group);
  if (poll_first) entry.ioprio |= IORING_RECVSEND_POLL_FIRST;
  submit_entry(op, entry);
}

void UringIo::send(Op& op, Handle socket, std::span<const iovec> parts) {
  ASSERT(!parts.empty());
  op.begin();
  // WAITALL: the kernel goes on after a short send by itself, and one completion tells of the
  // whole.
  constexpr int kFlags = MSG_NOSIGNAL | MSG_WAITALL;
  auto& note = make_note<SendNote>(op, Note::Kind::send, socket);
  io_uring_sqe& entry = next_entry();
  if (parts.size() == 1) {
    // The length is 32 bits wide there; more is a short send.
    size_t size = std::min<size_t>(parts[0].iov_len, INT_MAX);
    io_uring_prep_send(&entry, socket, parts[0].iov_base, size, kFlags);
  } else {
    note.message = {};
    note.message.msg_iov = const_cast<iovec*>(parts.data());
    note.message.msg_iovlen = std::min<size_t>(parts.size(), IOV_MAX);
    io_uring_prep_sendmsg(&entry, socket, &note.message, kFlags);
  }
  submit_entry(op, entry);
}

void UringIo::shutdown_send(Handle socket) {
  // ENOTCONN: the peer was faster with a reset. EBADF and EINVAL would be mistakes of ours.
  if (::shutdown(socket, SHUT_WR) != 0) ASSERT(errno == ENOTCONN);
}

void UringIo::close(Handle handle, bool reset) {
  ASSERT(handle >= 0);
  if (reset) {
    linger abort{1, 0};
    // Refused only by what is no TCP socket, where closing is all there is.
    (void)setsockopt(handle, SOL_SOCKET, SO_LINGER, &abort, sizeof abort);
  }
  // EIO and ENOSPC tell of a file's earlier buffered writes, which sync() reported; EINTR still
  // closes.
  if (::close(handle) != 0) ASSERT(errno != EBADF);
}

void UringIo::cancel(Op& op) {
  if (!op.pending()) return;
  Note& note = note_of(op);
  if (note.cancelled) return;
  note.cancelled = true;
  switch (note.where) {
    case Note::Where::ring: {
      io_uring_sqe& entry = next_entry();
      io_uring_prep_cancel64(&entry, reinterpret_cast<uint64_t>(&op), 0);
      // Not found: its final completion is on its way. Either way nothing is to be done.
      entry.flags |= IOSQE_CQE_SKIP_SUCCESS;
      io_uring_sqe_set_data64(&entry, kIgnored);
      return;
    }
    case Note::Where::callback:  // seen when the callback returns
    case Note::Where::ending:
      return;
    case Note::Where::parked:
    case Note::Where::resting:
      op.parked.unlink();
      end_cancelled(op);
      return;
  }
}

void UringIo::poll(Op& op, int descriptor, short events) {
  op.begin();
  make_note<Note>(op, Note::Kind::other, descriptor);
  io_uring_sqe& entry = next_entry();
  io_uring_prep_poll_add(&entry, descriptor, static_cast<unsigned short>(events));
  submit_entry(op, entry);
}

// ---- files

void UringIo::write(Op& op, Handle file, std::span<const iovec> parts, uint64_t offset,
                    bool durable) {
  op.begin();
  make_note<Note>(op, Note::Kind::other, file);
  io_uring_sqe& entry = next_entry();
  io_uring_prep_writev2(&entry, file, parts.data(),
                        static_cast<unsigned>(std::min<size_t>(parts.size(), IOV_MAX)), offset,
                        durable ? RWF_DSYNC : 0);
  submit_entry(op, entry);
}

void UringIo::read(Op& op, Handle file, std::span<const iovec> parts, uint64_t offset) {
  op.begin();
  make_note<Note>(op, Note::Kind::other, file);
  io_uring_sqe& entry = next_entry();
  io_uring_prep_readv(&entry, file, parts.data(),
                      static_cast<unsigned>(std::min<size_t>(parts.size(), IOV_MAX)), offset);
  submit_entry(op, entry);
}

void UringIo::sync(Op& op, Handle file) {
  op.begin();
  make_note<Note>(op, Note::Kind::other, file);
  io_uring_sqe& entry = next_entry();
  io_uring_prep_fsync(&entry, file, IORING_FSYNC_DATASYNC);
  submit_entry(op, entry);
}

void UringIo::sync_names(Op& op, Handle directory) {
  op.begin();
  make_note<Note>(op, Note::Kind::other, directory);
  io_uring_sqe& entry = next_entry();
  io_uring_prep_fsync(&entry, directory, 0);
  submit_entry(op, entry);
}

Status UringIo::lock_file(const std::string& path) {
  Result<int> lock = lock_path(path);
  if (!lock) return fail(lock.error());
  locks_.push_back(*lock);
  return success();
}

// ---- completions

void UringIo::handle(uint64_t user_data, int32_t result, uint32_t flags) {
  switch (static_cast<Tag>(user_data & kTagMask)) {
    case Tag::op: {
      Op& op = *reinterpret_cast<Op*>(user_data);
      switch (note_of(op).kind) {
        case Note::Kind::accept:
          return on_accept(op, result, flags);
        case Note::Kind::receive:
          return on_receive(op, result, flags);
        case Note::Kind::connect:
        case Note::Kind::send:
        case Note::Kind::other:
          return finish(op, result);
      }
      UNREACHABLE();
    }
    case Tag::internal:
      // A message of another ring, or a cancel that found nothing, needs nothing more: the turn
      // runs on_wake because kNotified is set.
      if (user_data == kEventRead) read_event();
      return;
    case Tag::message: {
      // The message could not be posted: EBADF and EBADFD when that ring is gone, else want of
      // memory.
      if (result >= 0 || result == -EBADF || result == -EBADFD) return;
      uint64_t one = 1;
      [[maybe_unused]] ssize_t written =
          ::write(static_cast<int>(user_data >> 3), &one, sizeof one);
      return;
    }
  }
  UNREACHABLE();
}

void UringIo::finish(Op& op, int32_t result) {
  Completion completion;
  completion.result = result;
  op.complete(completion);
}

void UringIo::end_cancelled(Op& op) {
  note_of(op).where = Note::Where::ending;
  ending_.push_back(op);
}

void UringIo::end_due() {
  Op* last = ending_.back();
  while (Op* op = ending_.pop_front()) {
    finish(*op, -ECANCELED);
    if (op == last) return;
  }
}

void UringIo::on_accept(Op& op, int32_t result, uint32_t flags) {
  Note& note = note_of(op);
  bool armed = flags & IORING_CQE_F_MORE;
  if (!armed) note.where = Note::Where::callback;
  bool rest = false;
  if (result < 0) {
    switch (-result) {
      case EMFILE:
      case ENFILE:
      case ENOBUFS:
      case ENOMEM:
        rest = true;
        if (now_ >= next_accept_warning_) {
          next_accept_warning_ = now_ + kSecond;
          log::warning("cannot accept connections: {}; trying again 10 times a second",
                       std::strerror(-result));
        }
        break;
      case ECONNABORTED:  // gone before it was accepted
      case EAGAIN:
      case EINTR:
      case EPROTO:
      case EPERM:  // a firewall rule
        break;
      case ENETDOWN:  // errors of the new socket that Linux passes on, accept(2)
      case ENOPROTOOPT:
      case EHOSTDOWN:
      case ENONET:
      case EHOSTUNREACH:
      case EOPNOTSUPP:
      case ENETUNREACH:
        rest = true;
        break;
      default:  // ECANCELED, and EBADF, EINVAL, ENOTSOCK of a listener that is none
        ASSERT(!armed);
        return finish(op, result);
    }
  }
  if (result >= 0 || rest) {
    Completion completion;
    completion.result = result;
    completion.more = true;
    op.complete(completion);
  }
  if (armed) return;
  if (note.cancelled) return end_cancelled(op);
  if (!rest) return arm_accept(op);
  note.where = Note::Where::resting;
  resting_.push_back(op);
  if (!rest_timer_.armed()) timers_.arm(rest_timer_, now_ + kAcceptPause);
}

void UringIo::on_rested() {
  while (Op* op = resting_.pop_front()) arm_accept(*op);
}

void UringIo::on_receive(Op& op, int32_t result, uint32_t flags) {
  Note& note = note_of(op);
  bool armed = flags & IORING_CQE_F_MORE;
  ProvidedBuffers& pool = groups_[static_cast<size_t>(note.group)].pool;
  if (result > 0) {
    ProvidedBuffers::Piece piece = pool.take(flags, static_cast<uint32_t>(result));
    if (!armed) note.where = Note::Where::callback;
    Completion completion;
    completion.result = result;
    completion.more = true;
    completion.data = piece.data;
    completion.buffer = std::move(piece.buffer);
    op.complete(completion);
    if (armed) return;
    // The kernel stopped for a reason of its own (its completion queue was full).
    if (note.cancelled) return end_cancelled(op);
    return arm_receive(op, false);
  }
  if (flags & IORING_CQE_F_BUFFER) pool.take(flags, 0);
  ASSERT(!armed);
  switch (-result) {
    case ENOBUFS:
      if (note.cancelled) return finish(op, -ECANCELED);
      note.where = Note::Where::parked;
      groups_[static_cast<size_t>(note.group)].parked.push_back(op);
      return;
    case EAGAIN:
    case EINTR:
      if (note.cancelled) return finish(op, -ECANCELED);
      return arm_receive(op, true);
    default:  // 0: end of stream. ECANCELED. ECONNRESET, ETIMEDOUT and the like: the connection's
              // end.
      return finish(op, result);
  }
}

// Gives the kernel buffers as far as the limits allow, and starts as many parked receives as those
// can serve. The others stay parked: started all at once they would find the ring empty again, and
// spin.
void UringIo::feed_groups() {
  for (Group& group : groups_) {
    group.pool.refill();
    if (group.parked.empty()) continue;
    uint64_t room = uint64_t{group.pool.blocks_in_ring()} * group.pool.receives_per_block();
    while (room-- > 0) {
      Op* op = group.parked.pop_front();
      if (!op) break;
      arm_receive(*op, false);
    }
  }
}

}  // namespace

Result<Features> usable_features(Features allowed) {
  Result<Features> offered = probe_features();
  if (!offered) return fail(offered.error());
  return *offered & allowed;
}

Result<std::unique_ptr<Io>> make_uring(const UringOptions& options) {
  auto io = std::make_unique<UringIo>();
  if (Status started = io->start(options); !started) return fail(started.error());
  return std::unique_ptr<Io>(std::move(io));
}

}  // namespace millrace::reactor
