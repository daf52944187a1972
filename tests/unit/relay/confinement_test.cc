// What a confined process can still do and what it cannot, each in a child of its own.
#include "relay/confinement.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

namespace millrace::relay {
namespace {

namespace fs = std::filesystem;

// The first line of `steps` that is false is the child's exit code; 0: all were true, 99: it could not start.
int in_child(const std::function<int()>& steps) {
  pid_t child = fork();
  if (child == 0) _exit(steps());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

bool opens(const fs::path& path, int flags) {
  int descriptor = open(path.c_str(), flags, 0600);
  if (descriptor >= 0) close(descriptor);
  return descriptor >= 0;
}

bool refused(long result, int number = EPERM) { return result == -1 && errno == number; }

class ConfinedFiles : public testing::Test {
 protected:
  void SetUp() override {
    if (syscall(444 /* landlock_create_ruleset */, nullptr, 0, 1) < 0) GTEST_SKIP() << "this kernel has no Landlock";
    for (const char* name : {"spool", "etc", "other"}) {
      fs::create_directories(root_ / name);
      std::ofstream(root_ / name / "file") << "text";
    }
    files_ = {{root_ / "etc"}, {root_ / "spool"}, {}};
  }
  void TearDown() override { fs::remove_all(root_); }

  fs::path root_ = fs::temp_directory_path() / ("confined-" + std::to_string(getpid()));
  ReachableFiles files_;
};

TEST_F(ConfinedFiles, TheSpoolCanBeWrittenInEveryWay) {
  EXPECT_EQ(in_child([&] {
    if (!confine_files(files_).ok()) return 99;
    fs::path spool = root_ / "spool";
    if (!opens(spool / "file", O_RDWR)) return 1;
    if (!opens(spool / "new", O_RDWR | O_CREAT | O_EXCL)) return 2;
    if (truncate((spool / "new").c_str(), 10) != 0) return 3;
    if (rename((spool / "new").c_str(), (spool / "newer").c_str()) != 0) return 4;
    if (unlink((spool / "newer").c_str()) != 0) return 5;
    if (mkdir((spool / "folder").c_str(), 0700) != 0 || rmdir((spool / "folder").c_str()) != 0) return 6;
    if (!opens(spool, O_RDONLY | O_DIRECTORY)) return 7;
    return 0;
  }), 0);
}

TEST_F(ConfinedFiles, TheConfigurationCanBeReadAndNotWritten) {
  EXPECT_EQ(in_child([&] {
    if (!confine_files(files_).ok()) return 99;
    if (!opens(root_ / "etc/file", O_RDONLY)) return 1;
    if (opens(root_ / "etc/file", O_WRONLY)) return 2;
    if (!refused(unlink((root_ / "etc/file").c_str()), EACCES)) return 3;
    if (opens(root_ / "etc/new", O_WRONLY | O_CREAT)) return 4;
    return 0;
  }), 0);
}

TEST_F(ConfinedFiles, NothingElseCanBeOpened) {
  EXPECT_EQ(in_child([&] {
    if (!confine_files(files_).ok()) return 99;
    if (opens(root_ / "other/file", O_RDONLY)) return 1;
    if (opens(root_ / "spool/../other/file", O_RDONLY)) return 2;
    if (opens("/etc/passwd", O_RDONLY)) return 3;
    if (!refused(symlink("/", (root_ / "spool/link").c_str()), EACCES)) return 4;
    bool elsewhere = true;
    std::thread([&] { elsewhere = opens(root_ / "other/file", O_RDONLY); }).join();
    return elsewhere ? 5 : 0;
  }), 0);
}

TEST_F(ConfinedFiles, AFileNamedAloneCanBeReadAndAMissingOneIsPassedOver) {
  files_.read = {root_ / "etc/file", root_ / "not there"};
  EXPECT_EQ(in_child([&] {
    if (!confine_files(files_).ok()) return 99;
    return opens(root_ / "etc/file", O_RDONLY) && !opens(root_ / "etc", O_RDONLY) ? 0 : 1;
  }), 0);
}

TEST_F(ConfinedFiles, ADirectoryToSyncGivesNoFileInIt) {
  files_.sync = {root_};
  EXPECT_EQ(in_child([&] {
    if (!confine_files(files_).ok()) return 99;
    return opens(root_, O_RDONLY | O_DIRECTORY) && !opens(root_ / "other/file", O_RDONLY) ? 0 : 1;
  }), 0);
}

TEST(ConfinedSystemCalls, ForbidPrograms) {
  EXPECT_EQ(in_child([] {
    if (!confine_system_calls().ok()) return 99;
    char* none[] = {nullptr};
    return refused(execve("/bin/true", none, none)) ? 0 : 1;
  }), 0);
}

#ifndef __SANITIZE_ADDRESS__  // which needs both itself
TEST(ConfinedSystemCalls, ForbidProcessesAndDebugging) {
  EXPECT_EQ(in_child([] {
    if (!confine_system_calls().ok()) return 99;
    if (!refused(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0))) return 1;
    return refused(ptrace(PTRACE_TRACEME, 0, nullptr, nullptr)) ? 0 : 2;
  }), 0);
}
#endif

TEST(ConfinedSystemCalls, ForbidNamespacesUsersAndNewRings) {
  EXPECT_EQ(in_child([] {
    if (!confine_system_calls().ok()) return 99;
    if (!refused(unshare(CLONE_NEWUSER))) return 1;
    if (!refused(syscall(SYS_setresuid, getuid(), getuid(), getuid()))) return 2;
    if (!refused(syscall(SYS_io_uring_setup, 8, nullptr))) return 3;
    if (!refused(syscall(SYS_bpf, 0, nullptr, 0))) return 4;
    return 0;
  }), 0);
}

TEST(ConfinedSystemCalls, ForbidExecutableMemoryAndExoticSockets) {
  EXPECT_EQ(in_child([] {
    if (!confine_system_calls().ok()) return 99;
    void* page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return 1;
    if (!refused(mprotect(page, 4096, PROT_READ | PROT_EXEC))) return 2;
    if (mmap(nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) return 3;
    if (!refused(socket(AF_NETLINK, SOCK_RAW, 0)) || !refused(socket(AF_PACKET, SOCK_RAW, 0))) return 4;
    for (int family : {AF_UNIX, AF_INET, AF_INET6}) {
      int descriptor = socket(family, SOCK_STREAM, 0);
      if (descriptor < 0 && errno == EPERM) return 5;
      if (descriptor >= 0) close(descriptor);
    }
    return 0;
  }), 0);
}

TEST(ConfinedSystemCalls, AllowThreadsAndHoldForThoseThatRunAlready) {
  EXPECT_EQ(in_child([] {
    std::atomic<int> step = 0;
    bool refused_there = false;
    std::thread before([&] {
      while (step == 0) std::this_thread::yield();
      refused_there = refused(unshare(CLONE_NEWUSER));
    });
    if (!confine_system_calls().ok()) return 99;
    step = 1;
    before.join();
    if (!refused_there) return 1;
    bool ran = false;
    std::thread([&] { ran = true; }).join();
    return ran ? 0 : 2;
  }), 0);
}

}  // namespace
}  // namespace millrace::relay
