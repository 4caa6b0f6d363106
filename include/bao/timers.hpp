// bao/timers.hpp - what is due next
//
// Most timers are limits on something that happens in time: they are set, and
// taken back again. A pairing heap (Fredman, Sedgewick, Sleator and Tarjan,
// 1986) is made for that. It is a tree in which no child is due before its
// parent; to add a timer is one comparison with the root, to take one back is
// to cut it out and merge its children, together some tens of ns; only taking
// out the root does real work, O(log n) amortised.
//
//            3            A timer is part of whoever waits, so nothing is
//         /  |  \         allocated, and adding one cannot fail.
//        7 - 4 - 9
//       /    |
//      8     5            `-`: siblings; only the first child is linked down
//
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <utility>

#include "bao/time.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

class timer_heap;

class timer {
 public:
  timer() = default;
  timer(const timer&) = delete;
  ~timer() { cancel(); }

  bool armed() const { return heap_ != nullptr; }
  nanoseconds due() const { return due_; }
  void cancel();

 private:
  friend class timer_heap;

  bool before(const timer& other) const {
    return due_ != other.due_ ? due_ < other.due_ : order_ < other.order_;
  }

  timer* child_ = nullptr;
  timer* next_ = nullptr;      // sibling
  timer* previous_ = nullptr;  // sibling, or the parent of a first child
  nanoseconds due_ = 0;
  std::uint64_t order_ = 0;  // among those due at once: first armed, first out
  timer_heap* heap_ = nullptr;  // last, beside what a wake reads of its task
};

class timer_heap {
 public:
  timer_heap() = default;
  timer_heap(const timer_heap&) = delete;
  ~timer_heap() {
    while (root_ != nullptr) remove(*root_);
  }

  // From now on, those due at once come out in another order, always the same
  // one; 0: as armed.
  void shuffle(std::uint64_t how) {
    shuffle_ = how;
    before_ = how != 0 ? armed_ : 0;
  }

  bool empty() const { return root_ == nullptr; }
  timer* first() const { return root_; }

  void arm(timer& t, nanoseconds due) {
    t.cancel();
    t.heap_ = this;
    t.due_ = due;
    t.order_ = (armed_++ - before_) ^ shuffle_;
    root_ = root_ == nullptr ? &t : merge(root_, &t);
  }

  void remove(timer& t) {
    timer* orphans = merge_siblings(t.child_);
    if (&t == root_) {
      root_ = orphans;
    } else {
      if (t.previous_->child_ == &t)
        t.previous_->child_ = t.next_;
      else
        t.previous_->next_ = t.next_;
      if (t.next_ != nullptr) t.next_->previous_ = t.previous_;
      if (orphans != nullptr) root_ = merge(root_, orphans);
    }
    t.heap_ = nullptr;
    t.child_ = t.next_ = t.previous_ = nullptr;
  }

 private:
  // The later of two roots becomes the other one's first child.
  static timer* merge(timer* a, timer* b) {
    if (b->before(*a)) std::swap(a, b);
    b->previous_ = a;
    b->next_ = a->child_;
    if (a->child_ != nullptr) a->child_->previous_ = b;
    a->child_ = b;
    return a;
  }

  // Makes one tree of siblings: pairs from left to right, then those together
  // from right to left. It is this order that makes the heap fast.
  static timer* merge_siblings(timer* first) {
    timer* pairs = nullptr;
    while (first != nullptr) {
      timer* a = first;
      timer* b = a->next_;
      first = b != nullptr ? b->next_ : nullptr;
      a->next_ = a->previous_ = nullptr;
      if (b != nullptr) {
        b->next_ = b->previous_ = nullptr;
        a = merge(a, b);
      }
      a->next_ = pairs;
      pairs = a;
    }
    timer* all = nullptr;
    while (pairs != nullptr) {
      timer* rest = std::exchange(pairs->next_, nullptr);
      all = all == nullptr ? pairs : merge(all, pairs);
      pairs = rest;
    }
    return all;
  }

  timer* root_ = nullptr;
  std::uint64_t armed_ = 0;
  std::uint64_t before_ = 0;  // they were shuffled
  std::uint64_t shuffle_ = 0;
};

inline void timer::cancel() {
  if (heap_ != nullptr) heap_->remove(*this);
}

}  // namespace BAO_ABI
}  // namespace bao
