// bao/local.hpp - one value a task
//
//     bao::task_local<std::string> user("nobody");   // at namespace scope, say
//
//     user = "harry";          // this task's; every other one has its own
//     log(user);               // deep in calls that nobody hands it to
//
// It is to a task what thread_local is to a thread. A task's value is made when
// the task first asks for it, as a copy of the first one, and destroyed when
// the task ends. Coroutines and generators have that of the task that runs
// them; a task that is spawned inherits none. To ask takes some ns for each
// such value that the task has.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <type_traits>
#include <utility>

#include "bao/scheduler.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Never reused: so a value outlives its variable without being taken for
// another one's.
inline std::atomic<unsigned long> last_local_key{0};

// None of its members suspends. They throw what T's constructors do. It may be
// used by any thread.
template <class T>
class task_local {
 public:
  // Each begins as T(), or as a copy of `first`.
  task_local() = default;
  template <class U = T,
            class = std::enable_if_t<std::is_copy_constructible_v<U>>>
  explicit task_local(T first) : first_(std::move(first)) {}
  task_local(const task_local&) = delete;

  T& get() const {
    task_block& t = this_scheduler().running();
    for (local_value* v = t.locals; v != nullptr; v = v->next)
      if (v->key == key_) return static_cast<value&>(*v).own;
    auto* const made = new value(*this);  // which may make others
    made->next = std::exchange(t.locals, made);
    return made->own;
  }
  operator T&() const { return get(); }
  T& operator*() const { return get(); }
  T* operator->() const { return &get(); }
  task_local& operator=(T v) {
    get() = std::move(v);
    return *this;
  }

 private:
  struct value final : local_value {
    explicit value(const task_local& of)
        : local_value(of.key_), own(of.first()) {}
    T own;
  };
  T first() const {
    if constexpr (std::is_copy_constructible_v<T>)
      return first_;
    else
      return T();
  }

  T first_{};
  const unsigned long key_ = ++last_local_key;
};

}  // namespace BAO_ABI
}  // namespace bao
