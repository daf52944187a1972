// Probing is by trying: a version number says little on kernels with backports or in sandboxes that
// filter system calls.
#include "reactor/io_features.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/utsname.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include "reactor/uring_constants.h"
#include "reactor/uring_setup.h"

namespace millrace::reactor {
namespace {

struct Name {
  std::string_view text;
  bool Features::*member;
};
constexpr std::array<Name, 2> kNames{
    {{"incremental-buffers", &Features::incremental_buffers}, {"msg-ring", &Features::msg_ring}}};

std::string kernel_release() {
  utsname names{};
  return uname(&names) == 0 ? names.release : "unknown";
}

struct RequiredOperation {
  int opcode;
  const char* name;
};
constexpr RequiredOperation kRequired[] = {
    {IORING_OP_ACCEPT, "ACCEPT"},
    {IORING_OP_CONNECT, "CONNECT"},
    {IORING_OP_RECV, "RECV"},
    {IORING_OP_SEND, "SEND"},
    {IORING_OP_SENDMSG, "SENDMSG"},
    {IORING_OP_POLL_ADD, "POLL_ADD"},
    {IORING_OP_READV, "READV"},
    {IORING_OP_WRITEV, "WRITEV"},
    {IORING_OP_READ, "READ"},
    {IORING_OP_FSYNC, "FSYNC"},
    {IORING_OP_ASYNC_CANCEL, "ASYNC_CANCEL"},
};

bool offers_incremental_buffers(io_uring& ring) {
  constexpr size_t kSize = 4096;
  void* memory = mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return false;
  io_uring_buf_reg registration{};
  registration.ring_addr = reinterpret_cast<uint64_t>(memory);
  registration.ring_entries = 8;
  registration.bgid = 0;
  registration.pad = kPbufRingIncremental;
  // EINVAL: the kernel does not know the flag.
  bool offered = io_uring_register_buf_ring(&ring, &registration, 0) == 0;
  if (offered) io_uring_unregister_buf_ring(&ring, 0);
  munmap(memory, kSize);
  return offered;
}

}  // namespace

std::string Features::to_string() const {
  std::string text;
  for (const Name& name : kNames) {
    if (!(this->*name.member)) continue;
    if (!text.empty()) text += ',';
    text += name.text;
  }
  return text.empty() ? "none" : text;
}

Result<Features> parse_features(std::string_view text) {
  if (text == "all") return kAllFeatures;
  if (text == "none") return Features{};
  Features features;
  while (true) {
    size_t comma = text.find(',');
    std::string_view word = text.substr(0, comma);
    bool known = false;
    for (const Name& name : kNames) {
      if (name.text != word) continue;
      features.*name.member = true;
      known = true;
    }
    if (!known) {
      return fail(fmt::format("unknown I/O feature \"{}\"; known are {}, and \"all\" or \"none\"",
                              word, kAllFeatures.to_string()));
    }
    if (comma == std::string_view::npos) return features;
    text.remove_prefix(comma + 1);
  }
}

Error setup_error(int number) {
  const char* why = "";
  switch (number) {
    case EINVAL:
      why = "; SINGLE_ISSUER and DEFER_TASKRUN are needed, which Linux has since 6.1";
      break;
    case ENOSYS:
      why = "; this kernel was built without it, or a sandbox hides it";
      break;
    case EPERM:
    case EACCES:
      why = "; look at the sysctl kernel.io_uring_disabled and at the container's seccomp profile";
      break;
    case ENOMEM:
      why =
          "; look at the locked memory limit (ulimit -l) and at the memory limit of the container";
      break;
    case EMFILE:
    case ENFILE:
      why = "; look at the descriptor limit (ulimit -n)";
      break;
    default:
      break;
  }
  return {fmt::format("io_uring cannot be set up on kernel {}: {}{}", kernel_release(),
                      std::strerror(number), why),
          number};
}

Result<Features> probe_features() {
  io_uring ring{};
  io_uring_params parameters{};
  parameters.flags = kRingFlags & ~static_cast<unsigned>(IORING_SETUP_R_DISABLED);
  parameters.cq_entries = 16;
  if (int r = io_uring_queue_init_params(8, &ring, &parameters); r < 0)
    return fail(setup_error(-r));
  auto close_ring = [](io_uring* open) { io_uring_queue_exit(open); };
  std::unique_ptr<io_uring, decltype(close_ring)> guard(&ring, close_ring);

  if (!(parameters.features & IORING_FEAT_NODROP) || !(parameters.features & IORING_FEAT_EXT_ARG)) {
    return fail(
        fmt::format("io_uring of kernel {} lacks NODROP or EXT_ARG; Linux 6.1 or newer is "
                    "needed",
                    kernel_release()));
  }
  std::unique_ptr<io_uring_probe, decltype(&io_uring_free_probe)> probe(
      io_uring_get_probe_ring(&ring), &io_uring_free_probe);
  if (!probe) {
    return fail(
        fmt::format("io_uring of kernel {} does not answer which operations it has; Linux 6.1 "
                    "or newer is needed",
                    kernel_release()));
  }
  for (const RequiredOperation& operation : kRequired) {
    if (!io_uring_opcode_supported(probe.get(), operation.opcode)) {
      return fail(
          fmt::format("io_uring of kernel {} lacks the operation {}; Linux 6.1 or newer is "
                      "needed",
                      kernel_release(), operation.name));
    }
  }
  Features features;
  features.msg_ring = io_uring_opcode_supported(probe.get(), IORING_OP_MSG_RING) != 0;
  features.incremental_buffers = offers_incremental_buffers(ring);
  return features;
}

}  // namespace millrace::reactor
