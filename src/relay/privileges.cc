#include "relay/privileges.h"

#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "config/shaping.h"
#include "relay/confinement.h"

namespace millrace::relay {
namespace {

std::string why() { return std::strerror(errno); }

Status keep_low_ports() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  data[0].effective = data[0].permitted = 1u << CAP_NET_BIND_SERVICE;
  if (syscall(SYS_capset, &header, data) != 0) return fail("--user: capset: " + why(), errno);
  return success();
}

Status check_access(const std::string& path, int mode, const char* flag, const std::string& user) {
  if (access(path.c_str(), mode) == 0) return success();
  return fail(std::string(flag) + ": user " + user + " cannot " + (mode & W_OK ? "write" : "read") + " " + path + ": " +
                  why() + "; change its owner or mode",
              errno);
}

}  // namespace

Status become_user(const config::Invocation& invocation) {
  const config::Config& config = *invocation.config;
  const std::string& user = config.user;
  errno = 0;
  const passwd* entry = getpwnam(user.c_str());
  if (!entry) return fail("--user " + user + ": no such user; make it with 'adduser --system --group " + user + "'");
  if (geteuid() == 0) {
    std::error_code error;
    std::filesystem::create_directories(config.spool, error);
    if (error) return fail("--spool " + config.spool + ": " + error.message(), error.value());
    if (chown(config.spool.c_str(), entry->pw_uid, entry->pw_gid) != 0) {
      return fail("--spool " + config.spool + ": chown to " + user + ": " + why(), errno);
    }
    prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0);
    if (initgroups(user.c_str(), entry->pw_gid) != 0 || setgid(entry->pw_gid) != 0 || setuid(entry->pw_uid) != 0) {
      return fail("--user " + user + ": " + why(), errno);
    }
    Status kept = keep_low_ports();
    if (!kept.ok()) return kept;
  } else if (geteuid() != entry->pw_uid) {
    return fail("--user " + user + ": started as another user; start as root or as " + user);
  }
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  Status status = check_access(config.spool, R_OK | W_OK | X_OK, "--spool", user);
  if (status.ok() && !config.events.empty()) {
    std::string directory = std::filesystem::absolute(config.events).parent_path();
    status = check_access(directory, W_OK | X_OK, "--events", user);
  }
  for (const std::string& folder : config.shaping_rules ? config.shaping_rules->folders() : std::vector<std::string>()) {
    if (status.ok()) status = check_access(folder, R_OK | W_OK | X_OK, "deliver in --shaping", user);
  }
  for (const std::string& path : read_again(invocation)) {
    if (status.ok()) status = check_access(path, R_OK, "after a reload", user);
  }
  return status;
}

}  // namespace millrace::relay
