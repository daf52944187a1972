#include "reactor/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "reactor/uring_constants.h"

namespace millrace::reactor {
namespace {

constexpr uint32_t kPage = 4096;

Failure<Error> failed(std::string_view what, const std::string& path, int number) {
  return fail(fmt::format("cannot {} {}: {}", what, path, std::strerror(number)), number);
}

// What O_DIRECT asks for on this file; offset 0: the file cannot do it.
StatxDioAlign direct_alignment(int descriptor) {
  struct statx status {};
  static_assert(sizeof status >= kStatxDioAlignOffset + sizeof(StatxDioAlign));
  if (statx(descriptor, "", AT_EMPTY_PATH, kStatxDioAlign, &status) != 0 ||
      !(status.stx_mask & kStatxDioAlign)) {
    return {kPage, kPage};  // the kernel or the file system does not say; a page suits them all
  }
  StatxDioAlign alignment{};
  std::memcpy(&alignment, reinterpret_cast<const char*>(&status) + kStatxDioAlignOffset,
              sizeof alignment);
  return alignment;
}

int open_retrying(const char* path, int flags) {
  int descriptor;
  do {
    descriptor = open(path, flags, 0600);
  } while (descriptor < 0 && errno == EINTR);
  return descriptor;
}

}  // namespace

Result<int> open_descriptor(const std::string& path, const FileOptions& options) {
  int flags = O_CLOEXEC | (options.write ? O_RDWR : O_RDONLY);
  if (options.create) flags |= O_CREAT | O_EXCL;
  if (!options.direct) {
    int descriptor = open_retrying(path.c_str(), flags);
    if (descriptor < 0) return failed("open", path, errno);
    return descriptor;
  }
  int descriptor = open_retrying(path.c_str(), flags | O_DIRECT);
  if (descriptor < 0 && errno == EINVAL) {
    // The file system refuses O_DIRECT, and may have made the file before it did so.
    descriptor = open_retrying(path.c_str(), flags & ~O_EXCL);
  }
  if (descriptor < 0) return failed("open", path, errno);
  if (direct_alignment(descriptor).offset == 0) {
    // Accepted at open, but the file system would do it through the cache or fail each write.
    int now = fcntl(descriptor, F_GETFL);
    if (now < 0 || fcntl(descriptor, F_SETFL, now & ~O_DIRECT) < 0) {
      int number = errno;
      ::close(descriptor);
      return failed("open without O_DIRECT", path, number);
    }
  }
  return descriptor;
}

Alignment descriptor_alignment(int descriptor) {
  int flags = fcntl(descriptor, F_GETFL);
  ASSERT(flags >= 0);  // EBADF only
  if (!(flags & O_DIRECT)) return {};
  StatxDioAlign alignment = direct_alignment(descriptor);
  return {std::max(alignment.memory, 1u), std::max(alignment.offset, 1u), true};
}

Result<uint64_t> descriptor_size(int descriptor) {
  struct stat status {};
  if (fstat(descriptor, &status) != 0) {
    return fail(fmt::format("cannot learn a file's size: {}", std::strerror(errno)), errno);
  }
  return static_cast<uint64_t>(status.st_size);
}

Status allocate_bytes(int descriptor, uint64_t size) {
  int number;
  do {
    number = posix_fallocate(descriptor, 0, static_cast<off_t>(size));
  } while (number == EINTR);
  if (number != 0) {
    return fail(fmt::format("cannot reserve {} bytes for a file: {}", size, std::strerror(number)),
                number);
  }
  return success();
}

Result<std::vector<std::string>> directory_names(const std::string& path) {
  DIR* directory = opendir(path.c_str());
  if (!directory) return failed("read the directory", path, errno);
  std::vector<std::string> names;
  int number = 0;
  while (true) {
    errno = 0;
    dirent* entry = readdir(directory);
    if (!entry) {
      number = errno;
      break;
    }
    std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  closedir(directory);
  if (number != 0) return failed("read the directory", path, number);
  std::sort(names.begin(), names.end());
  return names;
}

Status create_directory(const std::string& path) {
  if (mkdir(path.c_str(), 0700) == 0) return success();
  if (errno != EEXIST) return failed("make the directory", path, errno);
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return failed("look at", path, errno);
  if (!S_ISDIR(status.st_mode)) return failed("make the directory", path, ENOTDIR);
  return success();
}

Status rename_path(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0)
    return failed("rename " + from + " to", to, errno);
  return success();
}

Status remove_path(const std::string& path) {
  if (unlink(path.c_str()) != 0) return failed("remove", path, errno);
  return success();
}

Status sync_path(const std::string& path) {
  int descriptor = open_retrying(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return failed("open the directory", path, errno);
  int number = fsync(descriptor) == 0 ? 0 : errno;
  ::close(descriptor);
  if (number != 0) return failed("sync the directory", path, number);
  return success();
}

Result<int> lock_path(const std::string& path) {
  int descriptor = open_retrying(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC);
  if (descriptor < 0) return failed("open the lock", path, errno);
  if (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    int number = errno;
    ::close(descriptor);
    if (number == EWOULDBLOCK) {
      return fail(fmt::format("{} is locked by another process", path), number);
    }
    return failed("lock", path, number);
  }
  return descriptor;
}

Result<uint64_t> bytes_free(const std::string& path) {
  struct statvfs status {};
  if (statvfs(path.c_str(), &status) != 0) return failed("learn the free space of", path, errno);
  return static_cast<uint64_t>(status.f_bavail) * status.f_frsize;
}

}  // namespace millrace::reactor
