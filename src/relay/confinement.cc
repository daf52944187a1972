#include "relay/confinement.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>

#include "config/hop_credentials.h"
#include "config/shaping.h"

// Newer than the headers of Debian 12 (Linux 6.2).
#ifndef LANDLOCK_ACCESS_FS_TRUNCATE
#define LANDLOCK_ACCESS_FS_TRUNCATE (1ULL << 14)
#endif

namespace millrace::relay {
namespace {

Failure<Error> failed(const char* what) { return fail(std::string(what) + ": " + std::strerror(errno), errno); }

// ---- files

constexpr uint64_t kReadFile = LANDLOCK_ACCESS_FS_READ_FILE;
constexpr uint64_t kRead = kReadFile | LANDLOCK_ACCESS_FS_READ_DIR;
// Of Landlock's first version; every kernel from 6.1 on has them.
constexpr uint64_t kWrite = kRead | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_FILE |
                            LANDLOCK_ACCESS_FS_REMOVE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG |
                            LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_SOCK;
constexpr uint64_t kNever = LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_MAKE_CHAR |
                            LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO |
                            LANDLOCK_ACCESS_FS_MAKE_SYM;

Status allow(int rules, const std::string& path, uint64_t access) {
  int descriptor = open(path.c_str(), O_PATH | O_CLOEXEC);
  if (descriptor < 0) {
    if (errno == ENOENT || errno == EACCES) return success();  // then it cannot be opened later either
    return failed(("confining files: " + path).c_str());
  }
  struct stat status;
  if (fstat(descriptor, &status) == 0 && !S_ISDIR(status.st_mode)) {
    access &= kReadFile | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_TRUNCATE;
  }
  landlock_path_beneath_attr rule{access, descriptor};
  long r = syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
  int number = errno;
  close(descriptor);
  errno = number;
  return r == 0 ? success() : Status(failed(("confining files: " + path).c_str()));
}

// ---- system calls

#if defined(__x86_64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#endif

constexpr long kForbidden[] = {
    // programs and other processes
    SYS_execve, SYS_execveat, SYS_process_vm_readv, SYS_process_vm_writev, SYS_kcmp, SYS_pidfd_getfd,
#ifndef __SANITIZE_ADDRESS__  // whose search for leaks stops its own threads
    SYS_ptrace,
#endif
#ifdef SYS_fork
    SYS_fork, SYS_vfork,
#endif
    // file systems and namespaces
    SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_move_mount, SYS_open_tree, SYS_fsopen, SYS_fsconfig,
    SYS_fsmount, SYS_fspick, SYS_mount_setattr, SYS_unshare, SYS_setns, SYS_swapon, SYS_swapoff, SYS_quotactl,
    SYS_acct, SYS_open_by_handle_at, SYS_mknodat, SYS_memfd_create,
    // the kernel
    SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load, SYS_reboot, SYS_bpf, SYS_perf_event_open,
    SYS_userfaultfd, SYS_keyctl, SYS_add_key, SYS_request_key, SYS_syslog, SYS_personality, SYS_io_uring_setup,
#ifdef SYS_kexec_file_load
    SYS_kexec_file_load,
#endif
#ifdef SYS_iopl
    SYS_iopl, SYS_ioperm, SYS_modify_ldt, SYS_mknod,
#endif
    // who we are and what time it is
    SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid, SYS_setresgid, SYS_setgroups, SYS_setfsuid,
    SYS_setfsgid, SYS_capset, SYS_settimeofday, SYS_clock_settime, SYS_clock_adjtime, SYS_adjtimex, SYS_sethostname,
    SYS_setdomainname,
};

class Filter {
 public:
  // What every program begins with: calls of another architecture (or the x32 numbers) are forbidden.
  Filter() {
    load(offsetof(seccomp_data, arch));
    jump_unless_equal(kArchitecture, 0);
    code_[code_.size() - 1].jt = 1;
    code_[code_.size() - 1].jf = 0;
    answer(EPERM);
    load(offsetof(seccomp_data, nr));
#if defined(__x86_64__)
    constexpr uint32_t kX32 = 0x40000000;
    code_.push_back(BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, kX32, 0, 1));
    answer(EPERM);
#endif
  }
  void forbid(long call, int number = EPERM) {
    jump_unless_equal(static_cast<uint32_t>(call), 1);
    answer(number);
  }
  // Forbidden when its argument (lower half) has any of `bits`.
  void forbid_with(long call, unsigned argument, uint32_t bits) { judge(call, argument, bits, true); }
  // Forbidden when its argument (lower half) has none of `bits`.
  void forbid_without(long call, unsigned argument, uint32_t bits) { judge(call, argument, bits, false); }
  // Allowed with these values of the argument only.
  void forbid_but(long call, unsigned argument, std::initializer_list<uint32_t> values) {
    auto count = static_cast<uint8_t>(values.size());
    jump_unless_equal(static_cast<uint32_t>(call), static_cast<uint8_t>(count + 3));
    load_argument(argument);
    uint8_t left = count;
    for (uint32_t value : values) code_.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, left--, 0));
    answer(EPERM);
    allow();
  }
  void allow() { code_.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)); }
  sock_fprog program() { return {static_cast<unsigned short>(code_.size()), code_.data()}; }

 private:
  void load(size_t offset) { code_.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset))); }
  void load_argument(unsigned argument) { load(offsetof(seccomp_data, args) + 8 * argument); }  // little-endian
  void jump_unless_equal(uint32_t value, uint8_t over) {
    code_.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, over));
  }
  void answer(int number) {
    code_.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<uint32_t>(number)));
  }
  void judge(long call, unsigned argument, uint32_t bits, bool forbidden_when_set) {
    jump_unless_equal(static_cast<uint32_t>(call), 4);
    load_argument(argument);
    uint8_t set = forbidden_when_set ? 0 : 1;
    code_.push_back(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, set, static_cast<uint8_t>(1 - set)));
    answer(EPERM);
    allow();
  }

  std::vector<sock_filter> code_;
};

}  // namespace

std::vector<std::string> read_again(const config::Invocation& invocation) {
  const config::Config& config = *invocation.config;
  std::vector<std::string> paths = config.tls_certificates;
  paths.insert(paths.end(), config.tls_keys.begin(), config.tls_keys.end());
  for (const std::string& path : {invocation.config_file, config.client_ca, config.shaping, config.credentials, config.next_hop_credentials}) {
    if (!path.empty()) paths.push_back(path);
  }
  if (config.hop_credentials) {
    const std::vector<std::string>& named = config.hop_credentials->files();
    paths.insert(paths.end(), named.begin(), named.end());
  }
  return paths;
}

ReachableFiles reachable_files(const config::Invocation& invocation) {
  const config::Config& config = *invocation.config;
  auto folder_of = [](const std::string& path) {
    std::filesystem::path whole = std::filesystem::absolute(path).lexically_normal();
    if (!whole.has_filename()) whole = whole.parent_path();  // it ended in a slash
    return whole.parent_path().string();
  };
  ReachableFiles files;
  files.write = {config.spool, folder_of(config.admin_socket)};
  files.sync = {folder_of(config.spool)};
  if (!config.events.empty()) files.write.push_back(folder_of(config.events));
  if (config.shaping_rules) {
    for (std::string& folder : config.shaping_rules->folders()) files.write.push_back(std::move(folder));
  }
  for (const std::string& path : read_again(invocation)) files.read.push_back(folder_of(path));
  if (!config.tls_ca_file.empty()) files.read.push_back(folder_of(config.tls_ca_file));
  // What the resolver reads, and reads again when it has changed.
  for (const char* path : {"/etc", "/run/systemd/resolve", "/dev/urandom", "/dev/null"}) {
    files.read.push_back(path);
  }
  return files;
}

Status confine_files(const ReachableFiles& files) {
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return failed("forbidding new privileges");
  long version = syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  if (version < 0) return failed("this kernel has no Landlock");
  uint64_t write = kWrite;
  if (version >= 3) write |= LANDLOCK_ACCESS_FS_TRUNCATE;
  landlock_ruleset_attr attributes{};
  attributes.handled_access_fs = write | kNever;
  long rules = syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0);
  if (rules < 0) return failed("confining files");
  Status status = success();
  for (const std::string& path : files.read) {
    if (status.ok()) status = allow(static_cast<int>(rules), path, kRead);
  }
  for (const std::string& path : files.write) {
    if (status.ok()) status = allow(static_cast<int>(rules), path, write);
  }
  for (const std::string& path : files.sync) {
    if (status.ok()) status = allow(static_cast<int>(rules), path, LANDLOCK_ACCESS_FS_READ_DIR);
  }
  if (status.ok() && syscall(SYS_landlock_restrict_self, rules, 0) != 0) status = failed("confining files");
  close(static_cast<int>(rules));
  return status;
}

Status confine_system_calls() {
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return failed("forbidding new privileges");
  Filter filter;
  for (long call : kForbidden) filter.forbid(call);
  filter.forbid_with(SYS_mmap, 2, PROT_EXEC);
  filter.forbid_with(SYS_mprotect, 2, PROT_EXEC);
  filter.forbid_with(SYS_pkey_mprotect, 2, PROT_EXEC);
  filter.forbid_but(SYS_socket, 0, {AF_UNIX, AF_INET, AF_INET6});
#ifndef __SANITIZE_ADDRESS__
  // A thread yes, a process no. clone3() hides its flags in memory; told that it is not there, the C library
  // uses clone().
  filter.forbid_without(SYS_clone, 0, CLONE_THREAD);
  filter.forbid(SYS_clone3, ENOSYS);
#endif
  filter.allow();
  sock_fprog program = filter.program();
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0) {
    return failed("confining system calls");
  }
  return success();
}

}  // namespace millrace::relay
