// The file functions that answer at once: opening, naming, directories, locks. They may block for
// the time of a metadata operation; io.h says which of them are for start-up and control work only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "reactor/io.h"

namespace millrace::reactor {

// Files are made with mode 0600, directories with 0700: mail is nobody else's business.
Result<int> open_descriptor(const std::string& path, const FileOptions& options);
Alignment descriptor_alignment(int descriptor);
Result<uint64_t> descriptor_size(int descriptor);
Status allocate_bytes(int descriptor, uint64_t size);
Result<std::vector<std::string>> directory_names(const std::string& path);  // sorted
Status create_directory(const std::string& path);
Status rename_path(const std::string& from, const std::string& to);
Status remove_path(const std::string& path);
Status sync_path(const std::string& path);
// The descriptor that holds the lock until it is closed.
Result<int> lock_path(const std::string& path);
Result<uint64_t> bytes_free(const std::string& path);

}  // namespace millrace::reactor
