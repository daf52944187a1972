// millrace-spool: looks into a spool directory without the relay. Never writes and takes no lock, so it
// works on a live spool: what it shows of one is as old as its reading of each segment, and the batch
// that is being written is left out.
//
//   list            queued messages
//   show ID         all that is known of a message
//   verify          every record and every body; exit code 1 when something is damaged
//   export ID       the message as it would be sent (CRLF line ends), to standard output or a file
//   stat            segments, and what they hold
//
// Exit code 2 is bad usage, 1 anything that went wrong. Segments are mapped into memory one by one.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "mail/content.h"
#include "spool/format.h"

namespace {

using namespace millrace;
using namespace millrace::spool;

// A file in memory, read-only.
class Mapping {
 public:
  Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (data_) munmap(data_, size_);
  }
  bool open(const std::string& path, std::string& why) {
    int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status {};
    if (descriptor < 0 || fstat(descriptor, &status) != 0) {
      why = std::strerror(errno);
      if (descriptor >= 0) close(descriptor);
      return false;
    }
    size_ = static_cast<size_t>(status.st_size);
    if (size_ > 0) {
      void* at = mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
      if (at == MAP_FAILED) {
        why = std::strerror(errno);
        close(descriptor);
        return false;
      }
      data_ = at;
    }
    close(descriptor);
    return true;
  }
  std::string_view bytes() const { return {static_cast<const char*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

struct SegmentFile {
  std::string path, name;
  HeaderVerdict verdict = HeaderVerdict::damaged;
  SegmentHeader header{};
  bool sealed = false;
  Trailer trailer{};
  bool newest = false;
  bool given_up = false;
  uint32_t known_end = 0;
  uint64_t size = 0;
};

struct NoteAt {
  uint64_t sequence = 0;
  bool final = false;
};
struct CopyAt {
  uint64_t sequence = 0;
  uint32_t generation = 0, offset = 0;
};

struct Spool {
  std::string directory;
  std::vector<SegmentFile> segments;  // by generation; files that are not segments in use come last
  std::unordered_map<mail::SpoolId, NoteAt, mail::SpoolIdHash> notes;
  std::unordered_map<mail::SpoolId, CopyAt, mail::SpoolIdHash> copies;
  std::vector<std::string> remarks;
  bool damaged = false;

  bool used(const SegmentFile& file) const {
    return file.verdict == HeaderVerdict::good && file.header.state == SegmentState::log && !file.given_up;
  }
  // Whether this record is the message's current copy and the message is queued.
  bool live(const MessageView& message, uint32_t generation, uint32_t offset) const {
    auto note = notes.find(message.id);
    if (note != notes.end() && note->second.final) return false;
    auto copy = copies.find(message.id);
    return copy == copies.end() || (copy->second.generation == generation && copy->second.offset == offset);
  }
};

[[noreturn]] void die(const std::string& text) {
  fmt::print(stderr, "millrace-spool: {}\n", text);
  std::exit(1);
}

std::string time_text(int64_t ms) {
  std::time_t seconds = static_cast<std::time_t>(ms / 1000);
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

// What a peer wrote must not steer the terminal.
std::string printable(std::string_view text) {
  std::string out;
  for (char c : text) {
    unsigned char u = static_cast<unsigned char>(c);
    if (u < 0x20 || u == 0x7f) {
      out += fmt::format("\\x{:02x}", u);
    } else {
      out += c;
    }
  }
  return out;
}

void find_segments(Spool& spool) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(spool.directory, error)) {
    std::string name = entry.path().filename();
    if (name.size() != 14 || (!name.ends_with(".seg") && !name.ends_with(".new"))) continue;
    SegmentFile file;
    file.path = entry.path();
    file.name = name;
    Mapping mapping;
    std::string why;
    if (!mapping.open(file.path, why)) {
      if (why == std::strerror(ENOENT)) continue;  // removed meanwhile
      die(file.path + ": " + why);
    }
    file.size = mapping.bytes().size();
    if (file.size < kBlock) continue;
    file.verdict = read_segment_header(mapping.bytes().substr(0, kBlock), file.header);
    if (file.verdict == HeaderVerdict::newer_format) {
      die(fmt::format("{}: written by a newer version (format {}, this one knows {})", file.path,
                      file.header.format_version, kFormatVersion));
    }
    if (file.verdict == HeaderVerdict::blank && name.ends_with(".new")) continue;
    if (file.verdict == HeaderVerdict::good && file.header.state == SegmentState::log && file.size >= 2 * kBlock) {
      file.sealed = read_trailer(mapping.bytes().substr(file.size - kBlock), file.header,
                                 static_cast<uint32_t>(file.size), file.trailer);
    }
    spool.segments.push_back(std::move(file));
  }
  if (error) die(fmt::format("{}: {}", spool.directory, error.message()));
  std::sort(spool.segments.begin(), spool.segments.end(), [&](const SegmentFile& a, const SegmentFile& b) {
    return std::pair(!spool.used(a), a.header.generation) < std::pair(!spool.used(b), b.header.generation);
  });
  // As recovery does: the header of a segment says where the one before it in its stream ends.
  for (SegmentFile& file : spool.segments) {
    if (!spool.used(file)) continue;
    file.newest = true;
    for (const SegmentFile& later : spool.segments) {
      if (!spool.used(later) || later.header.stream != file.header.stream) continue;
      if (later.header.generation <= file.header.generation) continue;
      file.newest = false;
      if (later.header.previous_generation == file.header.generation) file.known_end = later.header.previous_end;
      if (later.header.previous_generation < file.header.generation) file.given_up = true;
    }
  }
}

// Maps a segment and walks its batches; `use(file, scan, bytes)`.
template <typename Use>
void for_each_segment(Spool& spool, bool verify, Use use) {
  for (SegmentFile& file : spool.segments) {
    if (!spool.used(file)) continue;
    Mapping mapping;
    std::string why;
    if (!mapping.open(file.path, why)) continue;  // recycled meanwhile: nothing in it was needed
    std::string_view bytes = mapping.bytes();
    bytes = bytes.substr(0, round_down(bytes.size(), kBlock));
    ScanOptions options;
    options.newest = file.newest && !file.sealed;
    options.verify_bodies = verify;
    options.known_end = file.sealed ? file.trailer.chain_end : file.known_end;
    Scan scan = scan_segment(bytes, file.header.uuid, file.header.generation, options, file.name);
    use(file, scan, bytes);
  }
}

void gather(Spool& spool, bool verify) {
  for_each_segment(spool, verify, [&](const SegmentFile& file, const Scan& scan, std::string_view) {
    spool.damaged = spool.damaged || scan.damaged;
    for (const std::string& text : scan.remarks) spool.remarks.push_back(text);
    if (!scan.refused.empty()) die(scan.refused);
    for (const RecordRef& record : scan.records) {
      RecordHeader header = record.header();
      NoteView note;
      MessageView message;
      switch (header.kind) {
        case RecordKind::note:
        case RecordKind::tombstone:
        case RecordKind::void_:
          if (view(record, note)) {
            NoteAt& at = spool.notes[note.id];
            at.final = at.final || header.kind != RecordKind::note || (header.flags & RecordFlags::final);
            at.sequence = std::max(at.sequence, header.sequence);
          }
          break;
        case RecordKind::message:
          if ((header.flags & RecordFlags::moved) && view(record, message) && !record.body_damaged) {
            CopyAt& at = spool.copies[message.id];
            if (header.sequence > at.sequence) at = {header.sequence, file.header.generation, record.offset};
          }
          break;
        case RecordKind::state: break;
      }
    }
  });
}

std::string_view stream_name(StreamNumber stream) { return stream == StreamNumber::kept ? "kept" : "mail"; }

int list(Spool& spool, bool everything) {
  gather(spool, false);
  uint64_t count = 0, octets = 0;
  for_each_segment(spool, false, [&](const SegmentFile& file, const Scan& scan, std::string_view) {
    for (const RecordRef& record : scan.records) {
      MessageView message;
      if (record.header().kind != RecordKind::message || !view(record, message)) continue;
      bool live = spool.live(message, file.header.generation, record.offset);
      if (!live && !everything) continue;
      auto metadata = mail::decode_metadata(message.metadata);
      std::string about = "metadata cannot be read";
      if (metadata.ok()) {
        const mail::Envelope& envelope = metadata->envelope;
        about = fmt::format("{} <{}> ->", time_text(envelope.received_ms), printable(envelope.reverse_path));
        for (size_t i = 0; i < envelope.recipients.size() && i < 3; ++i) {
          about += " <" + printable(envelope.recipients[i].address) + ">";
        }
        if (envelope.recipients.size() > 3) about += fmt::format(" and {} more", envelope.recipients.size() - 3);
      }
      fmt::print("{} {:>9} {} {}\n", message.id.to_string(), message.fixed.body_size, live ? "queued" : "done  ",
                 about);
      if (live) {
        ++count;
        octets += message.fixed.body_size;
      }
    }
  });
  fmt::print("{} messages queued, {} octets\n", count, octets);
  return 0;
}

// Calls `use` with the message's current record; false when there is none.
template <typename Use>
bool find_message(Spool& spool, mail::SpoolId id, Use use) {
  bool found = false;
  for_each_segment(spool, false, [&](const SegmentFile& file, const Scan& scan, std::string_view bytes) {
    for (const RecordRef& record : scan.records) {
      MessageView message;
      if (found || record.header().kind != RecordKind::message || !view(record, message) || message.id != id) continue;
      auto copy = spool.copies.find(id);
      if (copy != spool.copies.end() &&
          (copy->second.generation != file.header.generation || copy->second.offset != record.offset)) {
        continue;
      }
      found = true;
      use(file, record, message, bytes);
    }
  });
  return found;
}

bool body_of(const MessageView& message, std::string_view bytes, std::vector<std::string_view>& pieces) {
  for (uint32_t i = 0; i < message.fixed.extents; ++i) {
    Extent extent = message.extent(i);
    if (uint64_t{extent.offset} + extent.size > bytes.size()) return false;
    pieces.push_back(bytes.substr(extent.offset, extent.size));
  }
  return true;
}

int show(Spool& spool, mail::SpoolId id) {
  gather(spool, false);
  bool found = find_message(spool, id, [&](const SegmentFile& file, const RecordRef& record,
                                           const MessageView& message, std::string_view) {
    fmt::print("id            {}\n", id.to_string());
    bool queued = spool.live(message, file.header.generation, record.offset);
    fmt::print("state         {}\n", queued ? "queued" : "done, its space is not used again yet");
    fmt::print("place         {} offset {} ({} stream), record of {} bytes, sequence {}\n", file.name, record.offset,
               stream_name(file.header.stream), message.header.size, message.header.sequence);
    fmt::print("raw body      {} octets, CRC32C {:08x}\n", message.fixed.body_size, message.fixed.body_crc);
    for (uint32_t i = 0; i < message.fixed.extents; ++i) {
      Extent extent = message.extent(i);
      fmt::print("extent        offset {}, {} bytes\n", extent.offset, extent.size);
    }
    auto metadata = mail::decode_metadata(message.metadata);
    if (!metadata.ok()) {
      fmt::print("metadata      cannot be read: {}\n", metadata.error().text);
      return;
    }
    const mail::Envelope& envelope = metadata->envelope;
    fmt::print("received      {}\n", time_text(envelope.received_ms));
    fmt::print("expires       {}\n", time_text(envelope.expires_ms));
    fmt::print("reverse path  <{}>\n", printable(envelope.reverse_path));
    for (const mail::Recipient& recipient : envelope.recipients) {
      fmt::print("recipient     <{}> by {}\n", printable(recipient.address), printable(recipient.domain));
    }
    auto optional_line = [](std::string_view name, std::string_view value) {
      if (!value.empty()) fmt::print("{:<13} {}\n", name, printable(value));
    };
    optional_line("tenant", envelope.tenant);
    optional_line("job", envelope.job);
    optional_line("pool", envelope.pool);
    optional_line("account", envelope.account);
    optional_line("client", envelope.client);
    optional_line("Message-ID", envelope.message_id);
    optional_line("ENVID", envelope.envid);
  });
  if (!found) die("no message " + id.to_string());
  for_each_segment(spool, false, [&](const SegmentFile& file, const Scan& scan, std::string_view) {
    for (const RecordRef& record : scan.records) {
      NoteView note;
      RecordKind kind = record.header().kind;
      if (kind == RecordKind::message || kind == RecordKind::state || !view(record, note) || note.id != id) continue;
      fmt::print("{:<13} {} offset {}, sequence {}{}{}\n", to_string(kind), file.name, record.offset,
                 note.header.sequence, note.header.flags & RecordFlags::final ? ", final" : "",
                 note.state.empty() ? "" : fmt::format(", state of {} bytes", note.state.size()));
    }
  });
  return 0;
}

int export_message(Spool& spool, mail::SpoolId id, const std::string& to) {
  gather(spool, false);
  bool found = find_message(spool, id, [&](const SegmentFile&, const RecordRef&, const MessageView& message,
                                           std::string_view bytes) {
    auto metadata = mail::decode_metadata(message.metadata);
    if (!metadata.ok()) die(metadata.error().text);
    mail::Content& content = metadata->content;
    if (!body_of(message, bytes, content.raw)) die("its extents are damaged");
    std::vector<iovec> parts;
    content.gather(mail::WireForm::bdat, parts);
    std::FILE* out = to.empty() ? stdout : std::fopen(to.c_str(), "wbx");
    if (!out) die(to + ": " + std::strerror(errno));
    for (const iovec& part : parts) {
      if (std::fwrite(part.iov_base, 1, part.iov_len, out) != part.iov_len) die(std::strerror(errno));
    }
    if (std::fflush(out) != 0 || (out != stdout && std::fclose(out) != 0)) die(std::strerror(errno));
  });
  if (!found) die("no message " + id.to_string());
  return 0;
}

int verify(Spool& spool) {
  gather(spool, true);
  uint64_t segments = 0, batches = 0, records = 0, messages = 0, octets = 0;
  for (const SegmentFile& file : spool.segments) {
    if (file.verdict == HeaderVerdict::good) continue;
    spool.remarks.push_back(file.name + ": damaged header");
    spool.damaged = true;
  }
  for_each_segment(spool, false, [&](const SegmentFile& file, const Scan& scan, std::string_view bytes) {
    ++segments;
    batches += scan.batches;
    records += scan.records.size();
    for (const RecordRef& record : scan.records) {
      MessageView message;
      if (record.header().kind != RecordKind::message || !view(record, message)) continue;
      ++messages;
      octets += message.fixed.body_size;
    }
    if (!file.sealed) return;
    std::vector<RecordRef> index;
    std::string refused;
    if (!scan_index(bytes.substr(file.trailer.index_offset), file.trailer, index, refused)) {
      spool.remarks.push_back(file.name + ": damaged index (its batches can be read instead)");
      spool.damaged = true;
    }
  });
  for (const std::string& text : spool.remarks) fmt::print("{}\n", text);
  fmt::print("{} segments, {} batches, {} records, {} messages, {} octets of bodies: {}\n", segments, batches, records,
             messages, octets, spool.damaged ? "DAMAGED" : "no damage");
  return spool.damaged ? 1 : 0;
}

int statistics(Spool& spool) {
  gather(spool, false);
  uint64_t free = 0, free_bytes = 0;
  fmt::print("generation stream  state           size   used     batches  messages live   live MiB\n");
  for_each_segment(spool, false, [&](const SegmentFile& file, const Scan& scan, std::string_view) {
    uint64_t messages = 0, live = 0, bytes = 0;
    for (const RecordRef& record : scan.records) {
      MessageView message;
      if (record.header().kind != RecordKind::message || !view(record, message)) continue;
      ++messages;
      if (!spool.live(message, file.header.generation, record.offset)) continue;
      ++live;
      bytes += message.fixed.body_size + message.header.size;
    }
    std::string state = file.sealed ? "sealed" : file.newest ? "in use" : "not sealed";
    if (scan.damaged) state += ", damaged";
    fmt::print("{:>10} {:<7} {:<15} {:>3} MiB {:>3} % {:>10} {:>9} {:>7} {:>7.1f}\n", file.header.generation,
               stream_name(file.header.stream), state, file.size >> 20, uint64_t{scan.end} * 100 / file.size,
               scan.batches, messages, live, static_cast<double>(bytes) / (1 << 20));
  });
  std::optional<Uuid> uuid;
  for (const SegmentFile& file : spool.segments) {
    if (file.verdict == HeaderVerdict::good) uuid = file.header.uuid;
    if (file.verdict != HeaderVerdict::good || file.header.state != SegmentState::free) continue;
    ++free;
    free_bytes += file.size;
  }
  fmt::print("{} free segments, {} MiB\n", free, free_bytes >> 20);
  if (uuid) fmt::print("spool {}\n", to_string(*uuid));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Looks into a millrace spool directory. Never writes; works while the relay runs."};
  Spool spool;
  spool.directory = "/var/spool/millrace";
  std::string id_text, to;
  bool everything = false;
  app.add_option("--spool", spool.directory, "the spool directory")->capture_default_str();
  app.require_subcommand(1);
  app.fallthrough();
  CLI::App* list_command = app.add_subcommand("list", "queued messages");
  list_command->add_flag("--all", everything, "also those that are done but not overwritten yet");
  CLI::App* show_command = app.add_subcommand("show", "all that is known of a message");
  show_command->add_option("ID", id_text, "spool id")->required();
  CLI::App* verify_command = app.add_subcommand("verify", "check every record and body; exit code 1 on damage");
  CLI::App* export_command = app.add_subcommand("export", "write a message out as it would be sent");
  export_command->add_option("ID", id_text, "spool id")->required();
  export_command->add_option("-o,--output", to, "file to create (default: standard output)");
  CLI::App* stat_command = app.add_subcommand("stat", "segments and what they hold");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  mail::SpoolId id;
  if (*show_command || *export_command) {
    auto parsed = mail::SpoolId::parse(id_text);
    if (!parsed.ok()) {
      fmt::print(stderr, "millrace-spool: {}\n", parsed.error().text);
      return 2;
    }
    id = *parsed;
  }
  find_segments(spool);
  if (*list_command) return list(spool, everything);
  if (*show_command) return show(spool, id);
  if (*verify_command) return verify(spool);
  if (*export_command) return export_message(spool, id, to);
  if (*stat_command) return statistics(spool);
  return 2;
}
