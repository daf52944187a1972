#include "spool/directory.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <map>

#include "spool/front.h"
#include "spool/log.h"
#include "spool/recovery.h"

namespace millrace::spool {
namespace {

constexpr size_t kHeadersAtOnce = 32;

// "0000000012.seg" or "0000000012.new"
bool parse_name(std::string_view name, uint32_t& number, bool& fresh) {
  if (name.size() != 14 || (!name.ends_with(".seg") && !name.ends_with(".new"))) return false;
  auto [end, error] = std::from_chars(name.data(), name.data() + 10, number);
  if (error != std::errc() || end != name.data() + 10) return false;
  fresh = name.ends_with(".new");
  return true;
}

std::string parent_of(std::string_view path) {
  while (path.size() > 1 && path.ends_with('/')) path.remove_suffix(1);
  size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return ".";
  return slash == 0 ? "/" : std::string(path.substr(0, slash));
}

reactor::Task<bool> read_file_ends(reactor::Io& io, std::string path, Directory::File* file) {
  auto handle = io.open_file(path, {.create = false, .write = false, .direct = true});
  if (!handle.ok()) {
    file->status = fail(handle.error());
    co_return false;
  }
  // A killed process may have left what can be read and is not durable: a batch, an index, a header that
  // says the segment is free. What follows builds on it.
  int32_t synced = co_await reactor::started([&](reactor::Op& op) { io.sync(op, *handle); });
  if (synced < 0) {
    io.close(*handle);
    file->status = fail(fmt::format("{}: sync: {}", path, std::strerror(-synced)), -synced);
    co_return false;
  }
  auto size = io.file_size(*handle);
  reactor::Alignment alignment = io.alignment(*handle);
  uint32_t align = std::max({1u, alignment.memory, alignment.offset});
  AlignedBytes block;
  block.reserve(kBlock);
  auto read_block = [&](uint64_t offset) -> reactor::Task<bool> {
    iovec part{block.data(), kBlock};
    for (uint32_t done = 0; done < kBlock;) {
      part = {block.data() + done, kBlock - done};
      int32_t result = co_await reactor::started(
          [&](reactor::Op& op) { io.read(op, *handle, {&part, 1}, offset + done); });
      if (result <= 0) co_return false;
      uint32_t got = static_cast<uint32_t>(result);
      if (done + got < kBlock) got = static_cast<uint32_t>(round_down(got, align));
      if (got == 0) co_return false;
      done += got;
    }
    co_return true;
  };
  if (!size.ok()) {
    file->status = fail(size.error());
  } else {
    file->size = *size;
    if (*size < kBlock) {
      file->verdict = HeaderVerdict::blank;  // cut off while it was being made
    } else if (co_await read_block(0)) {
      file->verdict = read_segment_header({block.data(), kBlock}, file->header);
      if (file->verdict == HeaderVerdict::good && file->header.state == SegmentState::log &&
          *size % kBlock == 0 && *size >= 2 * kBlock && co_await read_block(*size - kBlock)) {
        file->sealed = read_trailer({block.data(), kBlock}, file->header, static_cast<uint32_t>(*size),
                                    file->trailer);
      }
    }
  }
  io.close(*handle);
  co_return true;
}

}  // namespace

Directory::Directory(reactor::Io& io, reactor::Mailbox& mailbox, const config::Config& config)
    : io_(io),
      mailbox_(mailbox),
      path_(config.spool),
      // The largest message must fit, with its head, noise at the ends of its ranges and the footer.
      segment_size_(round_up(std::max(config.segment_size,
                                      config.max_message_size + config.max_message_size / 16 + 32 * kBlock),
                             kBlock)),
      reserve_(config.spool_reserve),
      compact_below_percent_(config.compact_below_percent),
      durable_(config.durability == config::Durability::disk),
      events_kept_(!config.events.empty()) {}

Directory::~Directory() = default;

reactor::Task<Result<std::unique_ptr<Directory>>> Directory::open(reactor::Io& io, reactor::Mailbox& mailbox,
                                                                  const config::Config& config) {
  std::unique_ptr<Directory> made(new Directory(io, mailbox, config));
  if (made->segment_size_ > UINT32_MAX - kBlock) {
    co_return fail("segments and messages of 4 GiB or more are not possible");
  }
  const std::string& path = made->path_;
  Status status = io.make_directory(path);
  // The directory's own name must survive, too.
  if (status.ok()) status = io.sync_directory(parent_of(path));
  if (status.ok()) status = io.lock_file(path + "/lock");
  // Names that a killed process made or removed may not be durable, either.
  if (status.ok()) status = io.sync_directory(path);
  if (!status.ok()) co_return fail(status.error());
  auto names = io.list_directory(path);
  if (!names.ok()) co_return fail(names.error());
  for (const std::string& name : *names) {
    File file;
    if (!parse_name(name, file.number, file.fresh)) continue;
    file.name = name;
    made->files_.push_back(std::move(file));
  }
  auto& files = made->files_;
  co_await in_parallel(io, files.size(), kHeadersAtOnce,
                       [&](size_t i) { return read_file_ends(io, path + "/" + files[i].name, &files[i]); });
  // The spool's identity is that of most of its segments.
  std::map<Uuid, size_t> votes;
  for (const File& file : files) {
    if (!file.status.ok()) co_return fail(file.status.error());
    if (file.verdict == HeaderVerdict::newer_format) {
      co_return fail(fmt::format("{}/{} was written by a newer version (format {}, this one knows {})", path,
                                 file.name, file.header.format_version, kFormatVersion));
    }
    if (file.verdict == HeaderVerdict::good) ++votes[file.header.uuid];
  }
  if (votes.empty()) {
    for (size_t i = 0; i < made->uuid_.size(); i += 8) {
      uint64_t random = io.random();
      std::memcpy(made->uuid_.data() + i, &random, 8);
    }
  } else {
    auto most = std::max_element(votes.begin(), votes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
    for (const auto& [uuid, segments] : votes) {
      if (segments < most->second || uuid == most->first) continue;
      auto one_of = [&](const Uuid& spool) {
        return std::find_if(files.begin(), files.end(), [&](const File& file) {
          return file.verdict == HeaderVerdict::good && file.header.uuid == spool;
        })->name;
      };
      const auto [one, another] = std::minmax({one_of(uuid), one_of(most->first)});
      co_return fail(fmt::format("{}: as many segments of one spool ({}) as of another ({}): move away those that do not "
                                 "belong here", path, one, another));
    }
    made->uuid_ = most->first;
  }
  made->make_log();
  co_return std::move(made);
}

void Directory::make_log() {
  LogSettings settings;
  settings.directory = path_;
  settings.uuid = uuid_;
  settings.segment_size = segment_size_;
  settings.reserve = reserve_;
  settings.compact_below_percent = compact_below_percent_;
  settings.durable = durable_;
  settings.events_kept = events_kept_;
  log_ = std::make_unique<Log>(io_, mailbox_, std::move(settings));
}

reactor::Task<Result<RecoverySummary>> Directory::recover(RecoveryHandler& handler) {
  Recovery recovery(io_, path_, uuid_, segment_size_, events_kept_, handler);
  Status status = co_await recovery.run(&files_);
  if (!status.ok()) co_return fail(status.error());
  status = co_await log_->start(std::move(recovery.contents));
  if (!status.ok()) co_return fail(status.error());
  co_return std::move(recovery.summary);
}

std::unique_ptr<Spool> Directory::shard(reactor::Io& io, reactor::Mailbox& mailbox) {
  return std::make_unique<Front>(*log_, io, mailbox);
}

reactor::Task<Status> Directory::close() {
  co_return co_await log_->close();
}

}  // namespace millrace::spool
