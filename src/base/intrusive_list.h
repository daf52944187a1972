// A doubly linked list whose links live in the elements: no allocation, O(1) removal from the middle.
// An element is on at most one list per Link member and must be unlinked before it is destroyed.
#pragma once

#include <cstddef>

#include "base/assert.h"

namespace millrace {

struct Link {
  Link* prev = nullptr;
  Link* next = nullptr;

  Link() = default;
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;
  ~Link() { ASSERT(!linked()); }

  bool linked() const { return next != nullptr; }
  // Leaves whichever list it is on; harmless when on none.
  void unlink() {
    if (!linked()) return;
    prev->next = next;
    next->prev = prev;
    prev = next = nullptr;
  }
};

// IntrusiveList<Timer, &Timer::link>
template <typename T, Link T::*member>
class IntrusiveList {
 public:
  IntrusiveList() { head_.prev = head_.next = &head_; }
  ~IntrusiveList() {
    ASSERT(empty());
    head_.prev = head_.next = nullptr;
  }
  IntrusiveList(const IntrusiveList&) = delete;
  IntrusiveList& operator=(const IntrusiveList&) = delete;

  bool empty() const { return head_.next == &head_; }
  void push_back(T& item) { insert_before(&head_, item.*member); }
  void push_front(T& item) { insert_before(head_.next, item.*member); }
  T* front() { return empty() ? nullptr : owner(head_.next); }
  T* back() { return empty() ? nullptr : owner(head_.prev); }
  T* pop_front() {
    T* item = front();
    if (item) (item->*member).unlink();
    return item;
  }
  // The element after `item`, or nullptr at the end: lets a loop unlink what it visits.
  T* next(T& item) {
    Link* link = (item.*member).next;
    return link == &head_ ? nullptr : owner(link);
  }

 private:
  static void insert_before(Link* at, Link& link) {
    ASSERT(!link.linked());
    link.prev = at->prev;
    link.next = at;
    at->prev->next = &link;
    at->prev = &link;
  }
  static T* owner(Link* link) {
    // The offset of `member` in T, without constructing a T.
    const T* none = reinterpret_cast<const T*>(alignof(T));
    auto offset = reinterpret_cast<const char*>(&(none->*member)) - reinterpret_cast<const char*>(none);
    return reinterpret_cast<T*>(reinterpret_cast<char*>(link) - offset);
  }
  Link head_;
};

}  // namespace millrace
