#include "spool/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/crc32c.h"

namespace millrace::spool {
namespace {

constexpr uint32_t kGap = 32768;  // ranges nearer than this are read in one go

class HeapPool final : public reactor::BufferPool {
 public:
  reactor::BufferRef allocate(uint32_t size) override {
    auto* buffer = new reactor::Buffer;
    buffer->size = static_cast<uint32_t>(round_up(std::max(size, 1u), kBlock));
    buffer->data = static_cast<char*>(std::aligned_alloc(kBlock, buffer->size));
    ASSERT(buffer->data != nullptr);
    buffer->references = 1;
    buffer->pool = this;
    in_use_.fetch_add(buffer->size, std::memory_order_relaxed);
    return reactor::BufferRef(buffer);
  }
  uint64_t bytes_in_use() const override { return in_use_.load(std::memory_order_relaxed); }
  uint64_t bytes_limit() const override { return UINT64_MAX; }
  void set_limit(uint64_t) override {}

 protected:
  void recycle(reactor::Buffer& buffer) override {
    in_use_.fetch_sub(buffer.size, std::memory_order_relaxed);
    std::free(buffer.data);
    delete &buffer;
  }

 private:
  std::atomic<uint64_t> in_use_{0};  // a figure for humans; nothing is decided by it
};

HeapPool& heap_pool() {
  static HeapPool pool;
  return pool;
}

Failure<Error> damaged(const Location& at, std::string_view what) {
  return fail(fmt::format("{}, record at offset {}: {}", segment_name(at.segment), at.offset, what), EBADMSG);
}

}  // namespace

reactor::BufferRef allocate_on_heap(uint32_t size) { return heap_pool().allocate(size); }

Reader::Reader(reactor::Io& io, std::string directory, bool prefer_heap)
    : io_(io), directory_(std::move(directory)), prefer_heap_(prefer_heap) {
  refuse_.bind<&Reader::answer_refused>(this);
}

Reader::~Reader() { refuse_.cancel(); }

void Reader::close_files() {
  ASSERT(pending_ == 0);
  for (auto& [generation, file] : files_) {
    if (file->handle != reactor::kNoHandle) io_.close(file->handle);
  }
  files_.clear();
}

reactor::BufferRef Reader::allocate(uint32_t size) {
  if (!prefer_heap_) {
    if (auto buffer = io_.buffers(reactor::BufferGroup::spool).allocate(size)) return buffer;
  }
  return allocate_on_heap(size);
}

Result<Reader::File*> Reader::file(uint32_t generation) {
  auto it = files_.find(generation);
  if (it != files_.end()) {
    if (it->second->released) {
      return fail(fmt::format("{} is being taken out of use", segment_name(generation)), ESTALE);
    }
    it->second->last_use = ++uses_;
    return it->second.get();
  }
  if (files_.size() >= kHandles) {
    auto oldest = files_.end();
    for (auto at = files_.begin(); at != files_.end(); ++at) {
      if (at->second->pending > 0 || at->second->released) continue;
      if (oldest == files_.end() || at->second->last_use < oldest->second->last_use) oldest = at;
    }
    if (oldest != files_.end()) {
      io_.close(oldest->second->handle);
      files_.erase(oldest);
    }
  }
  std::string path = directory_ + "/" + segment_name(generation);
  auto handle = io_.open_file(path, {.create = false, .write = false, .direct = true});
  if (!handle.ok()) {
    int number = handle.error().number == ENOENT ? ESTALE : handle.error().number;
    return fail(handle.error().text, number);
  }
  auto made = std::make_unique<File>();
  made->handle = *handle;
  reactor::Alignment alignment = io_.alignment(*handle);
  made->align = std::max({1u, alignment.memory, alignment.offset});
  made->last_use = ++uses_;
  File* result = made.get();
  files_.emplace(generation, std::move(made));
  return result;
}

void Reader::read(Read& read) {
  read.pieces.clear();
  read.buffers.clear();
  read.metadata = {};
  read.status = success();
  auto found = file(read.message.segment);
  if (!found.ok()) {
    read.status = fail(found.error());
    refused_.push_back(&read);
    io_.defer(refuse_);
    return;
  }
  if (idle_.empty()) {
    jobs_.push_back(std::make_unique<Job>());
    jobs_.back()->reader = this;
    jobs_.back()->op.bind<&Job::on_read>(jobs_.back().get());
    idle_.push_back(jobs_.back().get());
  }
  Job& job = *idle_.back();
  idle_.pop_back();
  ++pending_;
  job.request = &read;
  job.file = *found;
  ++job.file->pending;
  job.in_body = false;
  job.range = 0;
  job.done = 0;
  job.ranges.clear();
  uint32_t from = static_cast<uint32_t>(round_down(read.message.offset, job.file->align));
  uint32_t to = static_cast<uint32_t>(
      round_up(uint64_t{read.message.offset} + read.message.size, job.file->align));
  read.buffers.push_back(allocate(to - from));
  job.ranges.push_back({from, to - from, read.buffers.back()->data});
  go_on(job);
}

void Reader::go_on(Job& job) {
  Range& range = job.ranges[job.range];
  job.part = {range.to + job.done, range.size - job.done};
  io_.read(job.op, job.file->handle, {&job.part, 1}, uint64_t{range.offset} + job.done);
}

void Reader::on_read(Job& job, reactor::Completion& completion) {
  Range& range = job.ranges[job.range];
  if (completion.result < 0) {
    return finish(job, fail(fmt::format("reading {} at offset {}: {}",
                                        segment_name(job.request->message.segment), range.offset + job.done,
                                        std::strerror(-completion.result)),
                            -completion.result));
  }
  uint32_t got = static_cast<uint32_t>(completion.result);
  if (job.done + got < range.size) {
    got = static_cast<uint32_t>(round_down(got, job.file->align));
    if (got == 0) return finish(job, damaged(job.request->message, "the file ends before it"));
  }
  job.done += got;
  if (job.done < range.size) return go_on(job);
  job.done = 0;
  if (++job.range < job.ranges.size()) return go_on(job);
  if (job.in_body) return check_body(job);

  Read& request = *job.request;
  const Location& at = request.message;
  RecordRef record{job.ranges[0].to + (at.offset - job.ranges[0].offset), at.offset, at.size, false};
  if (at.size < kMessageOverhead || !check_record({record.data, at.size}) ||
      record.header().size != at.size) {
    return finish(job, damaged(at, "its checksum does not match"));
  }
  if (record.header().kind != RecordKind::message || !view(record, job.message)) {
    return finish(job, damaged(at, "it is not a message"));
  }
  if (job.message.id != request.id) {
    return finish(job, damaged(at, fmt::format("it is of message {}, not of {}", job.message.id.to_string(),
                                               request.id.to_string())));
  }
  request.metadata = job.message.metadata;
  request.record = record.data;
  if (!request.body || job.message.fixed.extents == 0) return finish(job, success());
  start_body(job);
}

void Reader::start_body(Job& job) {
  // The ranges to read, in the order of the extents; what lies near the range before is read with it.
  uint32_t align = job.file->align;
  job.ranges.clear();
  for (uint32_t i = 0; i < job.message.fixed.extents; ++i) {
    Extent extent = job.message.extent(i);
    uint32_t from = static_cast<uint32_t>(round_down(extent.offset, align));
    uint64_t to = round_up(uint64_t{extent.offset} + extent.size, align);
    if (to > UINT32_MAX) return finish(job, damaged(job.request->message, "an extent is out of range"));
    if (!job.ranges.empty()) {
      Range& last = job.ranges.back();
      if (from >= last.offset && from <= uint64_t{last.offset} + last.size + kGap) {
        last.size = std::max(last.size, static_cast<uint32_t>(to) - last.offset);
        continue;
      }
    }
    job.ranges.push_back({from, static_cast<uint32_t>(to) - from, nullptr});
  }
  uint64_t total = 0;
  for (const Range& range : job.ranges) total += round_up(range.size, kBlock);
  if (total > UINT32_MAX) return finish(job, damaged(job.request->message, "its extents are too large"));
  job.request->buffers.push_back(allocate(static_cast<uint32_t>(total)));
  char* to = job.request->buffers.back()->data;
  for (Range& range : job.ranges) {
    range.to = to;
    to += round_up(range.size, kBlock);
  }
  job.in_body = true;
  job.range = 0;
  go_on(job);
}

void Reader::check_body(Job& job) {
  uint32_t crc = 0;
  uint64_t size = 0;
  size_t range = 0;
  for (uint32_t i = 0; i < job.message.fixed.extents; ++i) {
    Extent extent = job.message.extent(i);
    while (extent.offset < job.ranges[range].offset ||
           uint64_t{extent.offset} + extent.size > uint64_t{job.ranges[range].offset} + job.ranges[range].size) {
      ++range;  // ranges were made in this order
    }
    const char* data = job.ranges[range].to + (extent.offset - job.ranges[range].offset);
    job.request->pieces.emplace_back(data, extent.size);
    crc = crc32c(crc, data, extent.size);
    size += extent.size;
  }
  if (crc != job.message.fixed.body_crc || size != job.message.fixed.body_size) {
    return finish(job, damaged(job.request->message,
                               fmt::format("the body of message {} does not match its checksum",
                                           job.request->id.to_string())));
  }
  finish(job, success());
}

void Reader::finish(Job& job, Status status) {
  Read& request = *job.request;
  File* file = job.file;
  --file->pending;
  --pending_;
  idle_.push_back(&job);
  if (!status.ok()) {
    request.pieces.clear();
    request.metadata = {};
    request.buffers.clear();
  }
  request.status = std::move(status);
  if (file->pending == 0 && file->released) {
    auto released = file->released;
    void* context = file->context;
    io_.close(file->handle);
    std::erase_if(files_, [&](const auto& entry) { return entry.second.get() == file; });
    released(context);
  }
  request.done(request.owner, request);
}

void Reader::release(uint32_t generation, void* context, void (*released)(void* context)) {
  auto it = files_.find(generation);
  if (it == files_.end()) return released(context);
  if (it->second->pending == 0) {
    io_.close(it->second->handle);
    files_.erase(it);
    return released(context);
  }
  it->second->context = context;
  it->second->released = released;
}

void Reader::answer_refused() {
  std::vector<Read*> refused = std::move(refused_);
  refused_.clear();
  for (Read* read : refused) read->done(read->owner, *read);
}

}  // namespace millrace::spool
