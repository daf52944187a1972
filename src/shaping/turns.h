// Whose turn it is among those that wait for one thing: a connection of a lane group, or room in a limit's counter.
//
//   transactional before bulk, but one of bulk after every eight that went ahead of it
//     tenants by deficit round robin (Shreedhar and Varghese, SIGCOMM 1995), each by its weight
//       jobs of a tenant the same way
//         items of a job (domains, requests) in turn
//
// A tenant or job that comes back after all others have had their turns goes ahead of them once ("newcomer"): who asks
// for less than its share does not wait for a round of those that have queues. After eight newcomers one of the others goes.
// What an item costs is charged after it was served, so its size need not be known before.
//
// While all that waits is one flow's it is a plain list: a push, a pop and no more. The tree is made when a second flow
// comes, and kept.
//
// Contract: `T::flow` (const Flow*) is set and does not change while the item is on it; after a change of weights or
// priorities rebuild(). served() comes before the item leaves.
#pragma once

#include <array>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/intrusive_list.h"
#include "shaping/flows.h"

namespace millrace::shaping {

// One for each message, one more for each 64 KiB of it.
inline uint32_t turn_cost(uint64_t octets) { return static_cast<uint32_t>(1 + std::min<uint64_t>(octets >> 16, 63)); }

template <typename T, Link T::*member>
class Turns {
 public:
  Turns() = default;
  ~Turns() { clear(); }

  bool empty() const { return size_ == 0; }
  uint32_t size() const { return size_; }
  // Who goes next; nullptr: nobody is here.
  T* front() {
    if (T* item = first_.front()) return item;
    if (!tree_) return flat_.front();
    Branch* at = tree_->next_class();
    return at ? front_of(*at) : nullptr;
  }
  // The first of the transactional ones, whatever they let pass.
  T* transactional_front() {
    if (!tree_) {
      T* item = flat_.front();
      return item && item->flow->transactional ? item : nullptr;
    }
    Branch& at = tree_->classes[0];
    return at.idle() ? nullptr : front_of(at);
  }
  void push_back(T& item) {
    list_for(item).push_back(item);
    ++size_;
  }
  // Ahead of the others of its flow.
  void push_front(T& item) {
    list_for(item).push_front(item);
    ++size_;
  }
  // Ahead of all: what had its turn, and could not go then.
  void push_first(T& item) {
    first_.push_back(item);
    ++size_;
  }
  // REQUIRES: here.
  void remove(T& item) {
    (item.*member).unlink();
    --size_;
    if (tree_) tree_->left(*item.flow);
  }
  // REQUIRES: here. It, or its turn, is used: the others of its flow come before it, and its flow pays. 0: has paid.
  void served(T& item, uint32_t cost) {
    if (tree_ && cost > 0) tree_->charge(*item.flow, cost);
    (item.*member).unlink();
    list_for(item).push_back(item);
  }
  // All, until `visit` says false: those of one flow together, in their order. `visit` changes nothing here.
  template <typename Visit>
  void each(Visit visit) {
    auto walk = [&](List& list) {
      for (T* item = list.front(); item; item = list.next(*item)) {
        if (!visit(*item)) return false;
      }
      return true;
    };
    auto children = [](Node& node, auto next) {
      for (auto* list : {&node.newcomers, &node.active}) {
        for (Node* child = list->front(); child; child = list->next(*child)) {
          if (!next(*child)) return false;
        }
      }
      return true;
    };
    if (!walk(first_) || !walk(flat_) || !tree_) return;
    for (Branch& top : tree_->classes) {
      bool on = children(top, [&](Node& tenant) {
        return children(tenant, [&](Node& leaf) { return walk(static_cast<Leaf&>(leaf).items); });
      });
      if (!on) return;
    }
  }
  void rebuild() {
    std::vector<T*> all;
    all.reserve(size_);
    each([&](T& item) { return all.push_back(&item), true; });
    clear();
    for (T* item : all) push_back(*item);
  }
  void clear() {
    while (T* item = first_.pop_front()) (void)item;
    while (T* item = flat_.pop_front()) (void)item;
    if (tree_) tree_->clear();
    tree_.reset();
    size_ = 0;
  }

 private:
  using List = IntrusiveList<T, member>;
  static constexpr uint32_t kAhead = 8;

  struct Node {
    Node* parent = nullptr;
    Link link;                  // on its parent's `newcomers` or `active` while something below it waits
    int64_t credit = 0;
    uint32_t weight = 1;
    bool newcomer = false;
    uint64_t left_at = 0;       // what its parent had served when it left
    // Of a parent:
    IntrusiveList<Node, &Node::link> newcomers, active;
    uint64_t served = 0;        // the costs of all that went
    uint64_t weights = 0;       // of those that wait: what a round costs
    uint32_t ahead = 0;         // newcomers that went since one of the active did

    bool linked() const { return link.linked(); }
    bool idle() const { return weights == 0; }
    void enter() {
      if (linked() || !parent) return;
      newcomer = parent->served >= left_at + parent->weights;
      if (newcomer) {
        credit = weight;
        parent->newcomers.push_back(*this);
      } else if (credit > 0) {
        parent->active.push_front(*this);  // it left in the middle of its turn
      } else {
        parent->active.push_back(*this);
      }
      parent->weights += weight;
      parent->enter();
    }
    void leave() {
      if (!linked()) return;
      link.unlink();
      left_at = parent->served;
      parent->weights -= weight;
      if (parent->idle()) parent->leave();
    }
    void pay(uint32_t cost) {
      if (!parent) return;
      credit -= cost;
      parent->served += cost;
      if (linked()) {
        parent->ahead = newcomer ? parent->ahead + 1 : 0;
        if (credit <= 0) {
          newcomer = false;
          link.unlink();
          parent->active.push_back(*this);
        }
      }
      parent->pay(cost);
    }
    // REQUIRES: something waits below.
    Node* next() {
      if (!newcomers.empty() && (active.empty() || ahead < kAhead)) return newcomers.front();
      for (;;) {
        Node* first = active.front();
        if (first->credit <= 0) first->credit += first->weight;
        if (first->credit > 0) return first;
        first->link.unlink();  // it had more than a turn's worth
        active.push_back(*first);
      }
    }
  };
  using Branch = Node;
  struct Leaf : Node {
    List items;
  };

  struct Tree {
    std::array<Branch, 2> classes;  // transactional, bulk
    std::array<std::unordered_map<const Tenant*, std::unique_ptr<Branch>>, 2> tenants;
    std::unordered_map<const Flow*, std::unique_ptr<Leaf>> leaves;
    uint32_t ahead = 0;  // transactional ones that went while bulk waited

    Branch* next_class() {
      if (classes[0].idle() && classes[1].idle()) return nullptr;
      if (classes[0].idle()) return &classes[1];
      return classes[1].idle() || ahead < kAhead ? &classes[0] : &classes[1];
    }
    Leaf& leaf_of(const Flow& flow) {
      auto& leaf = leaves[&flow];
      if (!leaf) {
        size_t of = flow.transactional ? 0 : 1;
        auto& tenant = tenants[of][flow.tenant];
        if (!tenant) {
          tenant = std::make_unique<Branch>();
          tenant->parent = &classes[of];
          tenant->weight = flow.tenant->weight;
        }
        leaf = std::make_unique<Leaf>();
        leaf->parent = tenant.get();
        leaf->weight = flow.weight;
      }
      return *leaf;
    }
    void charge(const Flow& flow, uint32_t cost) {
      leaf_of(flow).pay(cost);
      ahead = flow.transactional && !classes[1].idle() ? ahead + 1 : 0;
    }
    void left(const Flow& flow) {
      Leaf& leaf = leaf_of(flow);
      if (leaf.items.empty()) leaf.leave();
    }
    void clear() {
      for (auto& [flow, leaf] : leaves) {
        while (T* item = leaf->items.pop_front()) (void)item;
        leaf->leave();
      }
    }
  };

  static T* front_of(Branch& top) { return static_cast<Leaf*>(top.next()->next())->items.front(); }

  // Where the item belongs; what it belongs to waits from now on.
  List& list_for(T& item) {
    if (!tree_) {
      if (flat_.empty() || flat_.front()->flow == item.flow) return flat_;
      tree_ = std::make_unique<Tree>();
      Leaf& leaf = tree_->leaf_of(*flat_.front()->flow);
      while (T* other = flat_.pop_front()) leaf.items.push_back(*other);
      leaf.enter();
    }
    Leaf& leaf = tree_->leaf_of(*item.flow);
    leaf.enter();
    return leaf.items;
  }

  List first_, flat_;
  std::unique_ptr<Tree> tree_;
  uint32_t size_ = 0;
};

}  // namespace millrace::shaping
