// Coroutines for slow, linear flows: recovery, MX chains, compaction. Not for the message path, whose
// sessions are state machines.
//
//   Task<Result<int>> flow(Io& io) { co_await sleep(io, 5ms); ... co_return 3; }
//   spawn(flow(io), [](Result<int> r) { ... });      // starts at once, ends in the callback
//
// A Task owns its frame; awaiting it runs it; a spawned one owns itself until it ends. Nothing here is
// cancelled from outside: a flow that must stop looks at its owner's flag after each co_await.
#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

#include "reactor/io.h"

namespace millrace::reactor {

template <typename T>
class [[nodiscard]] Task {
 public:
  struct promise_type {
    std::optional<T> value;
    std::coroutine_handle<> waiter = std::noop_coroutine();
    Task get_return_object() { return Task(std::coroutine_handle<promise_type>::from_promise(*this)); }
    std::suspend_always initial_suspend() noexcept { return {}; }
    struct Final {
      bool await_ready() noexcept { return false; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<promise_type> h) noexcept {
        return h.promise().waiter;
      }
      void await_resume() noexcept {}
    };
    Final final_suspend() noexcept { return {}; }
    void return_value(T result) { value.emplace(std::move(result)); }
    [[noreturn]] void unhandled_exception() { std::terminate(); }
  };

  explicit Task(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;
  ~Task() {
    if (handle_) handle_.destroy();
  }

  bool await_ready() const noexcept { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> waiter) noexcept {
    handle_.promise().waiter = waiter;
    return handle_;
  }
  T await_resume() { return std::move(*handle_.promise().value); }

 private:
  std::coroutine_handle<promise_type> handle_;
};

namespace detail {
struct Detached {
  struct promise_type {
    Detached get_return_object() { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() {}
    [[noreturn]] void unhandled_exception() { std::terminate(); }
  };
};
}  // namespace detail

// Starts `task` now and calls `done(result)` when it ends.
template <typename T, typename Done>
void spawn(Task<T> task, Done done) {
  [](Task<T> running, Done finished) -> detail::Detached {
    finished(co_await std::move(running));
  }(std::move(task), std::move(done));
}

// co_await started([&](Op& op) { io.read(op, file, parts, offset); })  ->  int32_t result
template <typename Start>
class Started {
 public:
  explicit Started(Start start) : start_(std::move(start)) {}
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> waiter) {
    waiter_ = waiter;
    op_.bind<&Started::on_complete>(this);
    start_(op_);
  }
  int32_t await_resume() const noexcept { return result_; }

 private:
  void on_complete(Completion& completion) {
    result_ = completion.result;
    waiter_.resume();  // may destroy *this
  }
  Start start_;
  Op op_;
  std::coroutine_handle<> waiter_;
  int32_t result_ = 0;
};
template <typename Start>
Started<Start> started(Start start) {
  return Started<Start>(std::move(start));
}

class Sleep {
 public:
  Sleep(Io& io, int64_t nanoseconds) : io_(io), nanoseconds_(nanoseconds) {}
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> waiter) {
    waiter_ = waiter;
    timer_.bind<&Sleep::on_due>(this);
    io_.timers().arm(timer_, io_.now() + nanoseconds_);
  }
  void await_resume() const noexcept {}

 private:
  void on_due() { waiter_.resume(); }
  Io& io_;
  int64_t nanoseconds_;
  Timer timer_;
  std::coroutine_handle<> waiter_;
};
inline Sleep sleep(Io& io, int64_t nanoseconds) { return Sleep(io, nanoseconds); }

}  // namespace millrace::reactor
