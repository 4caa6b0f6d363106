// bao/list.hpp - intrusive lists whose members leave by themselves
//
// A waiter that lies on the stack of whoever waits cannot outlive its function:
// not when the wait is over, not when an exception comes instead. So the links
// are part of the member, and its destructor takes it out of the list that it
// is in. Entering and leaving allocate nothing and take the same time whatever
// the length. The price is two pointers in each member, which cannot be moved.
//
// SPDX-License-Identifier: MIT
#pragma once

#include "bao/config.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

template <class T>
class list;

template <class T>
class list_node {
 public:
  list_node() = default;
  list_node(const list_node&) = delete;
  ~list_node() { leave(); }

  bool in_list() const { return next_ != nullptr; }
  void leave() {
    if (next_ == nullptr) return;
    previous_->next_ = next_;
    next_->previous_ = previous_;
    next_ = previous_ = nullptr;
  }

 private:
  friend class list<T>;
  list_node* next_ = nullptr;  // null in both: in no list
  list_node* previous_ = nullptr;
};

// A list of T, which derives from list_node<T>. Owns nothing: what is in it
// when it goes just leaves.
template <class T>
class list {
 public:
  constexpr list() { end_.next_ = end_.previous_ = &end_; }
  list(const list&) = delete;
  ~list() {
    clear();
    end_.next_ = end_.previous_ = nullptr;
  }

  void clear() {
    while (!empty()) front().leave();
  }
  bool empty() const { return end_.next_ == &end_; }
  T& front() { return static_cast<T&>(*end_.next_); }
  void push_back(T& member) { put_before(&end_, &member); }
  void push_front(T& member) {
    static_cast<list_node<T>&>(member).leave();
    put_before(end_.next_, &member);
  }
  // The one that stands behind `member`, or null.
  T* after(T& member) {
    list_node<T>& node = member;
    return node.next_ == &end_ ? nullptr : static_cast<T*>(node.next_);
  }
  T* first() { return empty() ? nullptr : &front(); }

 private:
  static void put_before(list_node<T>* next, list_node<T>* node) {
    // GCC 12 sees the address of a local variable stored in a longer-lived
    // list, and warns, for it does not see its destructor take it out again.
    __asm__("" : "+r"(node));
    node->leave();
    node->next_ = next;
    node->previous_ = next->previous_;
    next->previous_->next_ = node;
    next->previous_ = node;
  }

  list_node<T> end_;
};

}  // namespace BAO_ABI
}  // namespace bao
