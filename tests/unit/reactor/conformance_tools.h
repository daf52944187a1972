// Small users of an Io for the reactor's tests: they start operations, continue short ones, and check
// on the way that no completion runs inside the call that started it.
#pragma once

#include <gtest/gtest.h>

#include <cerrno>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "reactor/io.h"

namespace millrace::reactor::conformance {

// An Op and what it delivered.
struct Recorder {
  Recorder() { op.bind<&Recorder::on_complete>(this); }
  void on_complete(Completion& completion) {
    EXPECT_FALSE(inside);
    EXPECT_FALSE(ended) << "a completion after the final one";
    results.push_back(completion.result);
    if (completion.result > 0 && completion.data) {
      if (keep) {
        kept.push_back({completion.data, static_cast<size_t>(completion.result), completion.buffer});
      }
      bytes.append(completion.data, static_cast<size_t>(completion.result));
    }
    ended = !completion.more;
    EXPECT_EQ(op.pending(), completion.more);
    if (then) then();
  }
  // Starts an operation, and sees to it that nothing completes inside.
  template <typename Start>
  void start(Start call) {
    ended = false;
    inside = true;
    call(op);
    inside = false;
    EXPECT_TRUE(op.pending());
  }
  int32_t last() const { return results.empty() ? 1 : results.back(); }

  struct Kept {
    char* data;
    size_t size;
    BufferRef buffer;
  };
  Op op;
  std::vector<int32_t> results;
  std::string bytes;
  std::vector<Kept> kept;
  std::function<void()> then;
  bool keep = false;
  bool inside = false;
  bool ended = false;
};

// Receives until the end of the stream, through every end of a multishot in between.
struct Reader {
  Reader(Io& on, Handle from, BufferGroup into = BufferGroup::ingress)
      : io(on), socket(from), group(into) {
    recorder.then = [this] {
      if (!recorder.ended) return;
      int32_t result = recorder.last();
      if (result > 0) {
        go_on();
      } else if (!(result == -ECANCELED && stopping)) {
        end = result;
        over = true;
      }
    };
    go_on();
  }
  void go_on() {
    if (stopping) return;
    recorder.start([this](Op& op) { io.receive(op, socket, group); });
  }
  void stop() {
    stopping = true;
    io.cancel(recorder.op);
  }
  const std::string& bytes() const { return recorder.bytes; }
  Io& io;
  Handle socket;
  BufferGroup group;
  Recorder recorder;
  bool stopping = false;
  bool over = false;
  int32_t end = 1;
};

// Sends all of a text, continuing short sends.
struct Writer {
  Writer(Io& on, Handle to, std::string what) : io(on), socket(to), text(std::move(what)) {
    recorder.then = [this] {
      if (recorder.last() < 0) {
        error = recorder.last();
      } else {
        sent += static_cast<size_t>(recorder.last());
        if (sent < text.size() && !stopping) return go_on();
      }
      over = true;
    };
    go_on();
  }
  void go_on() {
    // In three parts, to see them gathered.
    size_t left = text.size() - sent, third = left / 3;
    char* at = text.data() + sent;
    parts[0] = {at, third};
    parts[1] = {at + third, third};
    parts[2] = {at + 2 * third, left - 2 * third};
    recorder.start([this](Op& op) { io.send(op, socket, parts); });
  }
  Io& io;
  Handle socket;
  std::string text;
  iovec parts[3];
  Recorder recorder;
  void stop() {
    stopping = true;
    io.cancel(recorder.op);
  }
  size_t sent = 0;
  int32_t error = 0;
  bool stopping = false;
  bool over = false;
};

inline std::string pattern(size_t size, unsigned salt = 0) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>((i * 7 + i / 251 + salt) % 253);
  return text;
}

struct Aligned {
  explicit Aligned(size_t bytes) : size(bytes) {
    data = static_cast<char*>(std::aligned_alloc(4096, bytes));
  }
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  char* data;
  size_t size;
};

// Writes or reads all, continuing short ones; the final result is 0 or the error.
struct Mover {
  Mover(Io& on, Handle with, std::vector<iovec> what, uint64_t at, bool writes, bool durably = false)
      : io(on), file(with), parts(std::move(what)), offset(at), writing(writes), durable(durably) {
    recorder.then = [this] {
      int32_t result = recorder.last();
      if (result <= 0) {
        error = result;
        over = true;
        return;
      }
      moved += static_cast<size_t>(result);
      auto left = static_cast<size_t>(result);
      while (!parts.empty() && left >= parts.front().iov_len) {
        left -= parts.front().iov_len;
        parts.erase(parts.begin());
      }
      if (parts.empty()) {
        over = true;
        return;
      }
      parts.front().iov_base = static_cast<char*>(parts.front().iov_base) + left;
      parts.front().iov_len -= left;
      go_on();
    };
    go_on();
  }
  void go_on() {
    recorder.start([this](Op& op) {
      if (writing) {
        io.write(op, file, parts, offset + moved, durable);
      } else {
        io.read(op, file, parts, offset + moved);
      }
    });
  }
  Io& io;
  Handle file;
  std::vector<iovec> parts;
  uint64_t offset;
  bool writing, durable;
  Recorder recorder;
  size_t moved = 0;
  int32_t error = 0;
  bool over = false;
};

}  // namespace millrace::reactor::conformance
