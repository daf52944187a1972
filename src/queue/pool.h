// Objects of one kind that go out and come back, so that a message costs no allocation of them. What is out when the
// pool ends, ends with it.
#pragma once

#include <memory>
#include <vector>

namespace millrace::queue {

template <typename T>
class Pool {
 public:
  // One that has come back, as it was then; or a new one, to which `prepare` is done first.
  template <typename Prepare>
  T& take(Prepare prepare) {
    if (free_.empty()) {
      T& made = *all_.emplace_back(std::make_unique<T>());
      prepare(made);
      return made;
    }
    T& one = *free_.back();
    free_.pop_back();
    return one;
  }
  void give_back(T& one) { free_.push_back(&one); }

  auto begin() const { return all_.begin(); }
  auto end() const { return all_.end(); }

 private:
  std::vector<std::unique_ptr<T>> all_;
  std::vector<T*> free_;
};

}  // namespace millrace::queue
