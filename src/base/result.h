// Result<T, E>: a value or the error that took its place. Our own, small, because libstdc++ 12 hides
// std::expected from Debian's clang, which builds the fuzzers. No exceptions on the message path.
#pragma once

#include <string>
#include <type_traits>
#include <utility>
#include <variant>

#include "base/assert.h"

namespace millrace {

// The error of anything that can fail for reasons of the outside world: the text names the place and
// the remedy; `number` is an errno, or 0.
struct Error {
  std::string text;
  int number = 0;
};

template <typename E>
struct Failure {
  E error;
};

// `return fail(Error{...});` from a function returning Result<T>.
template <typename E>
  requires(!std::is_convertible_v<E, std::string>)  // a text is an Error, see below
[[nodiscard]] Failure<std::decay_t<E>> fail(E&& error) {
  return {std::forward<E>(error)};
}
[[nodiscard]] inline Failure<Error> fail(std::string text, int number = 0) {
  return {Error{std::move(text), number}};
}

template <typename T, typename E = Error>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  template <typename F>
  Result(Failure<F> failure) : state_(std::in_place_index<1>, std::move(failure.error)) {}

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  // REQUIRES: ok()
  T& value() & { return check(), *std::get_if<0>(&state_); }
  const T& value() const& { return check(), *std::get_if<0>(&state_); }
  T&& value() && { return check(), std::move(*std::get_if<0>(&state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  // REQUIRES: !ok()
  const E& error() const {
    ASSERT(!ok());
    return *std::get_if<1>(&state_);
  }

 private:
  void check() const { ASSERT(ok()); }
  std::variant<T, E> state_;
};

struct Nothing {};
using Status = Result<Nothing, Error>;
inline Status success() { return Nothing{}; }

}  // namespace millrace
