#include "reactor/sim_disk.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include "base/assert.h"

namespace millrace::reactor {
namespace {

constexpr uint64_t kBlock = 4096;

std::string normal(std::string_view path) {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  return std::string(path);
}

bool is_root(std::string_view path) { return path.empty() || path == "." || path == "/"; }

std::string parent_of(const std::string& path) {
  size_t slash = path.rfind('/');
  if (slash == std::string::npos) return "";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// Two spellings of a root are one directory.
bool same_directory(const std::string& a, const std::string& b) {
  return a == b || (is_root(a) && is_root(b) && a != "/" && b != "/");
}

Failure<Error> failure(std::string_view what, const std::string& path, int number) {
  return fail(Error{std::string(what) + " " + path + ": " + strerror(number), number});
}

bool all_zero(const char* data, size_t size) {
  return size == 0 || (data[0] == 0 && std::memcmp(data, data + 1, size - 1) == 0);
}

}  // namespace

SparseBytes::Page& SparseBytes::own_page(size_t index) {
  if (index >= pages_.size()) pages_.resize(index + 1);
  auto& page = pages_[index];
  if (!page) {
    page = std::make_shared<Page>();
    page->fill(0);
  } else if (page.use_count() > 1) {
    page = std::make_shared<Page>(*page);
  }
  return *page;
}

void SparseBytes::write(uint64_t offset, std::string_view bytes) {
  while (!bytes.empty()) {
    size_t at = offset % kPage;
    size_t n = std::min(bytes.size(), kPage - at);
    size_t index = offset / kPage;
    // Zeros over a hole leave it one: segments are filled with zeros ahead of their use.
    bool hole = index >= pages_.size() || !pages_[index];
    if (!hole || !all_zero(bytes.data(), n)) std::memcpy(own_page(index).data() + at, bytes.data(), n);
    offset += n;
    bytes.remove_prefix(n);
  }
}

void SparseBytes::read(uint64_t offset, char* to, size_t size) const {
  while (size > 0) {
    size_t at = offset % kPage;
    size_t index = offset / kPage;
    size_t n = std::min(size, kPage - at);
    if (index < pages_.size() && pages_[index]) {
      std::memcpy(to, pages_[index]->data() + at, n);
    } else {
      std::memset(to, 0, n);
    }
    offset += n;
    to += n;
    size -= n;
  }
}

void SparseBytes::truncate(uint64_t size) {
  size_t pages = (size + kPage - 1) / kPage;
  if (pages < pages_.size()) pages_.resize(pages);
  if (size % kPage != 0 && pages <= pages_.size() && pages > 0 && pages_[pages - 1]) {
    Page& last = own_page(pages - 1);
    std::fill(last.begin() + static_cast<ptrdiff_t>(size % kPage), last.end(), '\0');
  }
}

uint64_t SparseBytes::digest() const {
  // Not a CRC: what carries its own CRC has the same one whatever it is.
  uint64_t sum = 0;
  for (size_t i = 0; i < pages_.size(); ++i) {
    if (!pages_[i]) continue;
    uint64_t lanes[4] = {}, any = 0;
    for (size_t at = 0; at < kPage; at += 32) {
      for (size_t lane = 0; lane < 4; ++lane) {
        uint64_t word;
        std::memcpy(&word, pages_[i]->data() + at + lane * 8, 8);
        any |= word;
        lanes[lane] = (lanes[lane] ^ word) * 0x9e3779b97f4a7c15;
        lanes[lane] ^= lanes[lane] >> 29;
      }
    }
    if (any == 0) continue;  // as a hole
    for (uint64_t lane : lanes) sum = (sum ^ lane ^ i) * 0x9e3779b97f4a7c15 + 0x632be59b;
  }
  return sum;
}

SimDisk::SimDisk(uint64_t capacity_bytes) : capacity_(capacity_bytes) {}

SimDisk::File& SimDisk::file_of(FileId file) {
  auto found = files_.find(file);
  ASSERT(found != files_.end());
  return found->second;
}

const SimDisk::File& SimDisk::file_of(FileId file) const {
  auto found = files_.find(file);
  ASSERT(found != files_.end());
  return found->second;
}

bool SimDisk::exists(const std::string& path) const {
  return is_root(path) || names_.contains(normal(path));
}

SimDisk::FileId SimDisk::add_name(const std::string& path, bool directory) {
  FileId id = next_file_++;
  files_[id].directory = directory;
  NameChange change{parent_of(path), "", path, id};
  apply(names_, change);
  name_changes_.push_back(std::move(change));
  return id;
}

void SimDisk::apply(std::map<std::string, FileId>& names, const NameChange& change) {
  if (!change.from.empty()) {
    // By what a lost earlier change has left, the old name may belong to another file or be missing.
    auto found = names.find(change.from);
    if (found != names.end() && found->second == change.file) names.erase(found);
  }
  if (!change.to.empty()) names[change.to] = change.file;
}

Result<SimDisk::FileId> SimDisk::open(const std::string& path, bool create) {
  std::string name = normal(path);
  auto found = names_.find(name);
  if (create) {
    if (found != names_.end()) return failure("open", path, EEXIST);
    if (!exists(parent_of(name))) return failure("open", path, ENOENT);
    FileId id = add_name(name, false);
    files_[id].open = 1;
    record({Change::Kind::create, id, 0, name, "", ""});
    return id;
  }
  if (found == names_.end()) return failure("open", path, ENOENT);
  File& file = file_of(found->second);
  ++file.open;
  return found->second;
}

void SimDisk::release(FileId file) {
  File& released = file_of(file);
  ASSERT(released.open > 0);
  if (--released.open == 0) drop_unnamed();
}

uint64_t SimDisk::size(FileId file) const { return file_of(file).size; }

bool SimDisk::reserve(File& file, uint64_t end) {
  uint64_t wanted = (end + kBlock - 1) / kBlock * kBlock;
  if (wanted <= file.reserved) return true;
  uint64_t more = wanted - file.reserved;
  if (more > free_space()) return false;
  used_ += more;
  file.reserved = wanted;
  return true;
}

uint64_t SimDisk::free_space() const { return capacity_ > used_ ? capacity_ - used_ : 0; }

int64_t SimDisk::write(FileId file, uint64_t offset, std::string bytes, bool durable) {
  File& written = file_of(file);
  ASSERT(!written.directory);
  if (!reserve(written, offset + bytes.size())) {
    uint64_t room = written.reserved + free_space() / kBlock * kBlock;
    if (room <= offset) return -ENOSPC;
    bytes.resize(room - offset);
    bool reserved = reserve(written, offset + bytes.size());
    ASSERT(reserved);
  }
  record({durable ? Change::Kind::durable_write : Change::Kind::write, file, offset, "", "",
          recording_ ? bytes : std::string()});
  written.cached.write(offset, bytes);
  uint64_t size = bytes.size();
  written.size = std::max(written.size, offset + size);
  if (durable && written.unsynced.empty()) {
    written.durable.write(offset, bytes);
  } else {
    written.unsynced.push_back({offset, std::move(bytes), durable, false});
  }
  if (durable) written.durable_size = std::max(written.durable_size, offset + size);
  return static_cast<int64_t>(size);
}

size_t SimDisk::read(FileId file, uint64_t offset, char* to, size_t size) const {
  const File& source = file_of(file);
  if (offset >= source.size) return 0;
  size = std::min<uint64_t>(size, source.size - offset);
  source.cached.read(offset, to, size);
  return size;
}

Status SimDisk::resize(FileId file, uint64_t size) {
  File& grown = file_of(file);
  if (!reserve(grown, size)) return fail("allocate: no space left on device", ENOSPC);
  record({Change::Kind::resize, file, size, "", "", ""});
  grown.size = std::max(grown.size, size);
  return success();
}

void SimDisk::sync(FileId file) {
  File& synced = file_of(file);
  if (synced.directory) {
    for (const auto& [name, id] : names_) {
      if (id == file) {
        (void)sync_directory(std::string(name));
        return;
      }
    }
    return;  // it was removed meanwhile
  }
  record({Change::Kind::sync, file, 0, "", "", ""});
  for (const Unsynced& write : synced.unsynced) {
    if (!write.lost) synced.durable.write(write.offset, write.bytes);
  }
  synced.unsynced.clear();
  synced.durable_size = synced.size;
}

void SimDisk::fail_sync(FileId file, Prng& chance) {
  record({Change::Kind::failed_sync, file, 0, "", "", ""});
  for (Unsynced& write : file_of(file).unsynced) {
    if (!write.durable && chance.chance(0.5)) write.lost = true;
  }
}

Result<std::vector<std::string>> SimDisk::list(const std::string& directory) const {
  std::string name = normal(directory);
  if (!is_root(name)) {
    auto found = names_.find(name);
    if (found == names_.end()) return failure("list", directory, ENOENT);
    if (!file_of(found->second).directory) return failure("list", directory, ENOTDIR);
  }
  std::vector<std::string> entries;
  for (const auto& [path, file] : names_) {
    if (same_directory(parent_of(path), name)) entries.push_back(path.substr(path.rfind('/') + 1));
  }
  return entries;
}

Status SimDisk::make_directory(const std::string& path) {
  std::string name = normal(path);
  if (is_root(name)) return success();
  auto found = names_.find(name);
  if (found != names_.end()) {
    if (file_of(found->second).directory) return success();
    return failure("mkdir", path, ENOTDIR);
  }
  if (!exists(parent_of(name))) return failure("mkdir", path, ENOENT);
  FileId id = add_name(name, true);
  record({Change::Kind::make_directory, id, 0, name, "", ""});
  return success();
}

Status SimDisk::rename(const std::string& from, const std::string& to) {
  std::string source = normal(from), target = normal(to);
  auto found = names_.find(source);
  if (found == names_.end()) return failure("rename", from, ENOENT);
  ASSERT(!file_of(found->second).directory);  // would have to carry its entries along
  if (!exists(parent_of(target))) return failure("rename", to, ENOENT);
  auto existing = names_.find(target);
  if (existing != names_.end() && file_of(existing->second).directory) {
    return failure("rename", to, EISDIR);
  }
  if (source == target) return success();
  record({Change::Kind::rename, found->second, 0, source, target, ""});
  NameChange change{parent_of(target), source, target, found->second};
  apply(names_, change);
  name_changes_.push_back(std::move(change));
  drop_unnamed();
  return success();
}

Status SimDisk::remove(const std::string& path) {
  std::string name = normal(path);
  auto found = names_.find(name);
  if (found == names_.end()) return failure("remove", path, ENOENT);
  if (file_of(found->second).directory) return failure("remove", path, EISDIR);
  record({Change::Kind::remove, found->second, 0, name, "", ""});
  NameChange change{parent_of(name), name, "", found->second};
  apply(names_, change);
  name_changes_.push_back(std::move(change));
  drop_unnamed();
  return success();
}

Status SimDisk::sync_directory(const std::string& path) {
  std::string name = normal(path);
  if (!is_root(name) && !names_.contains(name)) return failure("sync", path, ENOENT);
  record({Change::Kind::sync_directory, 0, 0, name, "", ""});
  std::vector<NameChange> rest;
  for (NameChange& change : name_changes_) {
    if (same_directory(change.directory, name)) {
      apply(durable_names_, change);
    } else {
      rest.push_back(std::move(change));
    }
  }
  name_changes_ = std::move(rest);
  drop_unnamed();
  return success();
}

void SimDisk::drop_unnamed() {
  std::set<FileId> named;
  for (const auto& [path, file] : names_) named.insert(file);
  for (const auto& [path, file] : durable_names_) named.insert(file);
  for (const NameChange& change : name_changes_) named.insert(change.file);
  for (auto file = files_.begin(); file != files_.end();) {
    if (file->second.open == 0 && !named.contains(file->first)) {
      used_ -= file->second.reserved;
      file = files_.erase(file);
    } else {
      ++file;
    }
  }
}

void SimDisk::power_cut(Prng& chance) {
  std::vector<std::string> ended;  // directories whose later changes are lost
  for (const NameChange& change : name_changes_) {
    if (std::find(ended.begin(), ended.end(), change.directory) != ended.end()) continue;
    if (chance.chance(0.5)) {
      apply(durable_names_, change);
    } else {
      ended.push_back(change.directory);
    }
  }
  name_changes_.clear();
  // A name whose directory did not survive went with it.
  for (auto name = durable_names_.begin(); name != durable_names_.end();) {
    std::string parent = parent_of(name->first);
    name = is_root(parent) || durable_names_.contains(parent) ? std::next(name)
                                                              : durable_names_.erase(name);
  }
  names_ = durable_names_;

  for (auto& [id, file] : files_) {
    file.open = 0;
    uint64_t size = file.durable_size;
    for (const Unsynced& write : file.unsynced) {
      uint64_t end = write.offset + write.bytes.size();
      uint64_t first = write.offset / kSector;
      uint64_t sectors = (end + kSector - 1) / kSector - first;
      uint64_t fate = write.durable ? 0 : write.lost ? 1 : chance.below(4);
      uint64_t prefix = fate == 2 ? chance.below(sectors + 1) : 0;
      for (uint64_t i = 0; i < sectors; ++i) {
        bool kept = fate == 0 || (fate == 2 && i < prefix) || (fate == 3 && chance.chance(0.5));
        if (!kept) continue;
        uint64_t from = std::max(write.offset, (first + i) * kSector);
        uint64_t to = std::min(end, (first + i + 1) * kSector);
        file.durable.write(from, std::string_view(write.bytes).substr(from - write.offset, to - from));
        size = std::max(size, to);
      }
    }
    file.unsynced.clear();
    if (file.size > size && chance.chance(0.5)) size = file.size;  // the inode was written, or not
    file.durable.truncate(size);
    file.cached = file.durable;
    file.size = file.durable_size = size;
  }
  drop_unnamed();
}

void SimDisk::process_end() {
  for (auto& [id, file] : files_) file.open = 0;
  drop_unnamed();
}

std::string SimDisk::content(const std::string& path) const {
  auto found = names_.find(normal(path));
  ASSERT(found != names_.end());
  std::string bytes(size(found->second), '\0');
  read(found->second, 0, bytes.data(), bytes.size());
  return bytes;
}

void SimDisk::flip_bit(const std::string& path, uint64_t offset, unsigned bit) {
  auto found = names_.find(normal(path));
  ASSERT(found != names_.end());
  File& file = file_of(found->second);
  ASSERT(offset < file.size && bit < 8);
  for (SparseBytes* bytes : {&file.cached, &file.durable}) {
    char octet;
    bytes->read(offset, &octet, 1);
    octet = static_cast<char>(octet ^ (1 << bit));
    bytes->write(offset, std::string_view(&octet, 1));
  }
}

uint64_t SimDisk::unsynced_bytes() const {
  uint64_t total = 0;
  for (const auto& [id, file] : files_) {
    for (const Unsynced& write : file.unsynced) total += write.durable ? 0 : write.bytes.size();
  }
  return total;
}

void SimDisk::start_journal() {
  recording_ = false;
  journal_.clear();
  journal_base_ = nullptr;
  journal_base_ = std::make_shared<const SimDisk>(*this);
  recording_ = true;
}

SimDisk SimDisk::after_power_cut(size_t changes, uint64_t seed) const {
  Replay replay(*this, seed);
  while (replay.at() < changes) replay.next();
  return replay.power_cut(seed);
}

SimDisk::Replay::Replay(const SimDisk& recorded, uint64_t seed)
    : recorded_(recorded), disk_(*recorded.journal_base_), chance_(~seed) {
  // The journal does not say when files were closed: all stay open, and take space, until the end.
  disk_.capacity_ = UINT64_MAX;
  for (auto& [id, file] : disk_.files_) file.open = 1;
}

void SimDisk::Replay::next() {
  ASSERT(at_ < recorded_.journal_.size());
  disk_.apply(recorded_.journal_[at_++], chance_);
}

void SimDisk::Replay::begin_next(SimDisk& disk) const {
  if (at_ == recorded_.journal_.size()) return;
  const Change& next = recorded_.journal_[at_];
  if (next.kind == Change::Kind::write || next.kind == Change::Kind::durable_write) {
    disk.write(next.file, next.offset, next.bytes, false);
  }
}

SimDisk SimDisk::Replay::power_cut(uint64_t seed) const {
  SimDisk disk = disk_;
  begin_next(disk);
  Prng chance(seed);
  disk.power_cut(chance);
  disk.capacity_ = recorded_.capacity_;
  return disk;
}

SimDisk SimDisk::Replay::kill(uint64_t seed) const {
  SimDisk disk = disk_;
  if (Prng(seed).chance(0.5)) begin_next(disk);
  disk.process_end();
  disk.capacity_ = recorded_.capacity_;
  return disk;
}

uint64_t SimDisk::digest() const {
  uint64_t sum = 0;
  auto mix = [&](uint64_t value) { sum = (sum ^ value) * 0x9e3779b97f4a7c15 + 0x632be59b; };
  for (const auto& [name, id] : names_) {
    const File& file = file_of(id);
    for (char c : name) mix(static_cast<unsigned char>(c));
    mix(file.size);
    mix(file.cached.digest());
  }
  return sum;
}

void SimDisk::apply(const Change& change, Prng& chance) {
  switch (change.kind) {
    case Change::Kind::create: {
      // Ids are handed out again in the same order.
      auto file = open(change.path, true);
      ASSERT(file.ok() && *file == change.file);
      return;
    }
    case Change::Kind::make_directory: {
      bool made = make_directory(change.path).ok();
      ASSERT(made);
      return;
    }
    case Change::Kind::rename: {
      bool renamed = rename(change.path, change.to).ok();
      ASSERT(renamed);
      return;
    }
    case Change::Kind::remove: {
      bool removed = remove(change.path).ok();
      ASSERT(removed);
      return;
    }
    case Change::Kind::sync_directory: {
      bool synced = sync_directory(change.path).ok();
      ASSERT(synced);
      return;
    }
    case Change::Kind::write:
    case Change::Kind::durable_write: {
      int64_t written = write(change.file, change.offset, change.bytes,
                              change.kind == Change::Kind::durable_write);
      ASSERT(written == static_cast<int64_t>(change.bytes.size()));
      return;
    }
    case Change::Kind::resize: {
      bool resized = resize(change.file, change.offset).ok();
      ASSERT(resized);
      return;
    }
    case Change::Kind::sync:
      sync(change.file);
      return;
    case Change::Kind::failed_sync:
      fail_sync(change.file, chance);
      return;
  }
  UNREACHABLE();
}

}  // namespace millrace::reactor
