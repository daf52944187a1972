// Finds an item by its message's id: open addressing with linear probing over item pointers, 8 bytes an
// entry and 16 at the usual load. Not a general map: ids are unique and already random.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "queue/item.h"

namespace millrace::queue {

class IdIndex {
 public:
  size_t size() const { return size_; }
  size_t capacity() const { return slots_.size(); }

  Item* find(const mail::SpoolId& id) const {
    if (slots_.empty()) return nullptr;
    for (size_t at = start(id); slots_[at]; at = next(at)) {
      if (slots_[at]->id == id) return slots_[at];
    }
    return nullptr;
  }
  void insert(Item& item) {
    if ((size_ + 1) * 4 > slots_.size() * 3) grow();
    size_t at = start(item.id);
    while (slots_[at]) {
      ASSERT(slots_[at]->id != item.id);
      at = next(at);
    }
    slots_[at] = &item;
    ++size_;
  }
  // The entry of `item`'s id now leads to `item`.
  void replace(Item& item) {
    for (size_t at = start(item.id); slots_[at]; at = next(at)) {
      if (slots_[at]->id == item.id) {
        slots_[at] = &item;
        return;
      }
    }
    UNREACHABLE();
  }
  void erase(const mail::SpoolId& id) {
    size_t at = start(id);
    while (slots_[at]->id != id) at = next(at);
    // Backward shift: no tombstones, so that probes stay short for ever.
    size_t hole = at;
    for (size_t probe = next(hole); slots_[probe]; probe = next(probe)) {
      size_t home = start(slots_[probe]->id);
      if (((probe - home) & mask()) >= ((probe - hole) & mask())) {
        slots_[hole] = slots_[probe];
        hole = probe;
      }
    }
    slots_[hole] = nullptr;
    --size_;
  }
  // Slot by slot, for scans in slices: nullptr where a slot is empty. A scan that must miss nothing
  // starts again when the capacity has changed, and may meet an item twice when one before it was erased.
  Item* at(size_t slot) const { return slots_[slot]; }

 private:
  size_t mask() const { return slots_.size() - 1; }
  size_t start(const mail::SpoolId& id) const { return mail::SpoolIdHash()(id) * 0x9e3779b97f4a7c15 >> shift_; }
  size_t next(size_t at) const { return (at + 1) & mask(); }
  void grow() {
    std::vector<Item*> old = std::move(slots_);
    size_t capacity = old.empty() ? 64 : old.size() * 2;
    slots_.assign(capacity, nullptr);
    shift_ = 64 - __builtin_ctzll(capacity);
    size_ = 0;
    for (Item* item : old) {
      if (item) insert(*item);
    }
  }

  std::vector<Item*> slots_;
  size_t size_ = 0;
  int shift_ = 64;
};

}  // namespace millrace::queue
