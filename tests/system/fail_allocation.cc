// Preloaded into a program (LD_PRELOAD), makes one allocation of it fail, or all from one on:
//
//   MILLRACE_FAIL_NEW=N        the Nth `new` since there is a handler for that: the handler is called
//   MILLRACE_FAIL_MALLOC=N     the Nth malloc(), calloc() or realloc() of a C library: nullptr
//   MILLRACE_FAIL_FROM_THEN_ON=1
//   MILLRACE_ALLOCATIONS=FILE  16 octets: how many there were of each so far, 64 bits each
//
// Everything else goes on to the allocator that the program has.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

using Counter = std::atomic<uint64_t>;

Counter unshared[2];

struct Plan {
  Counter* counters = unshared;
  uint64_t fail_new = 0, fail_malloc = 0;
  bool from_then_on = false;
  void* (*malloc)(size_t) = nullptr;
  void* (*calloc)(size_t, size_t) = nullptr;
  void* (*realloc)(void*, size_t) = nullptr;
  void (*free)(void*) = nullptr;
  void* (*make)(size_t) = nullptr;                             // operator new
  void* (*make_aligned)(size_t, std::align_val_t) = nullptr;
};

uint64_t number(const char* name) {
  const char* value = getenv(name);
  return value ? strtoull(value, nullptr, 10) : 0;
}

template <typename Function>
void find(Function*& function, const char* name) {
  function = reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

// dlsym() itself may allocate before the functions are known: from here, and never given back.
alignas(16) char early[1 << 16];
std::atomic<size_t> early_used{0};
std::atomic<bool> looking{false};
Plan plan;

void* early_memory(size_t size) {
  size_t at = early_used.fetch_add((size + 15) / 16 * 16);
  if (at + size > sizeof early) abort();
  return early + at;
}
bool is_early(void* memory) { return memory >= early && memory < early + sizeof early; }

void prepare() {
  looking = true;
  find(plan.calloc, "calloc");
  find(plan.realloc, "realloc");
  find(plan.free, "free");
  find(plan.make, "_Znwm");
  find(plan.make_aligned, "_ZnwmSt11align_val_t");
  void* (*found)(size_t) = nullptr;
  find(found, "malloc");
  plan.fail_new = number("MILLRACE_FAIL_NEW");
  plan.fail_malloc = number("MILLRACE_FAIL_MALLOC");
  plan.from_then_on = number("MILLRACE_FAIL_FROM_THEN_ON") != 0;
  if (const char* path = getenv("MILLRACE_ALLOCATIONS")) {
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, sizeof unshared) != 0) abort();
    void* shared = mmap(nullptr, sizeof unshared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (shared == MAP_FAILED) abort();
    close(file);
    plan.counters = static_cast<Counter*>(shared);
  }
  plan.malloc = found;
  looking = false;
}
// While there is one thread.
__attribute__((constructor)) void begin() {
  if (!plan.malloc) prepare();
}

bool fails(int which, uint64_t nth) {
  uint64_t count = ++plan.counters[which];
  return nth != 0 && (count == nth || (plan.from_then_on && count > nth));
}

bool malloc_fails() {
  if (!fails(1, plan.fail_malloc)) return false;
  errno = ENOMEM;
  return true;
}

void ask_for_new() {
  if (!plan.malloc) prepare();
  std::new_handler handler = std::get_new_handler();
  if (!handler || !fails(0, plan.fail_new)) return;
  handler();
  abort();  // it had no memory to give
}

}  // namespace

extern "C" {

void* malloc(size_t size) noexcept {
  if (!plan.malloc) {
    if (looking) return early_memory(size);
    prepare();
  }
  return malloc_fails() ? nullptr : plan.malloc(size);
}

void* calloc(size_t count, size_t size) noexcept {
  if (!plan.malloc) {
    if (looking) return early_memory(count * size);
    prepare();
  }
  return malloc_fails() ? nullptr : plan.calloc(count, size);
}

void* realloc(void* memory, size_t size) noexcept {
  if (is_early(memory)) {
    void* moved = malloc(size);
    size_t most = static_cast<size_t>(early + sizeof early - static_cast<char*>(memory));
    if (moved) memcpy(moved, memory, std::min(size, most));
    return moved;
  }
  if (!plan.malloc) prepare();
  return malloc_fails() ? nullptr : plan.realloc(memory, size);
}

void free(void* memory) noexcept {
  if (memory && !is_early(memory) && plan.free) plan.free(memory);
}

}  // extern "C"

void* operator new(size_t size) {
  ask_for_new();
  return plan.make(size);
}
void* operator new[](size_t size) { return operator new(size); }
void* operator new(size_t size, std::align_val_t alignment) {
  ask_for_new();
  return plan.make_aligned(size, alignment);
}
void* operator new[](size_t size, std::align_val_t alignment) { return operator new(size, alignment); }
