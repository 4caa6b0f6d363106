// bao/look_up.hpp - questions to the system's resolver
//
// libc blocks when it looks up a name, sometimes for seconds, and only libc
// knows the files and services that an administrator has set up. So a helper
// thread asks it. offload() would do, but its job may refer to variables of the
// task that waits, which must therefore stay until the job is done, even when
// it is killed. A question owns all it works on, so those who wait may leave:
//
//     task 1 --.
//     task 2 ---+--> "example.org:80" ... helper ... answer --> tasks 1 and 3
//     task 3 --'          task 2 is killed: it just leaves
//
// While a question is in flight, others who ask the same share its answer.
//
// It costs what offload() does; who shares an answer pays for the wait alone.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "bao/offload.hpp"
#include "bao/wait_queue.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Belongs to all who ask it, and to the helper while it looks for the answer.
class question : public offloaded {
 public:
  // Never suspends. Has a helper thread call find(), which must own all it
  // needs, returns a std::shared_ptr to the answer, and may throw nothing but
  // std::bad_alloc; or joins those who wait for the same already. The key says
  // what is asked, and so of what type the answer is. Throws std::system_error
  // when there is no helper.
  template <class Find>
  static std::shared_ptr<question> ask(std::string key, Find find) {
    if (auto same = asked_already(key)) return same;
    struct asked final : question {
      Find find;
      asked(std::string what, Find f)
          : question(std::move(what)), find(std::move(f)) {}
      answer look_up() override { return find(); }
    };
    question* const made = new asked(std::move(key), std::move(find));
    return begin(std::shared_ptr<question>(made));
  }
  virtual ~question() = default;

  // Whoever has asked waits once, and then leaves.

  // Suspends until the answer is there (true), or `until` passes (false).
  // Throws what interrupts us.
  bool wait(deadline until) {
    const at_end leave([this] { --askers_; });
    return waiters_.wait(until, asking, [&] { return done; });
  }
  // The same for a caller in C, without a limit: returns what park_in_c() does.
  int wait_in_c() {
    const at_end leave([this] { --askers_; });
    scheduler& s = waiters_.enter(asking.what);
    waiter me(s.running());
    waiters_.push_back(me);
    while (!done)
      if (const int error = s.park_in_c(never, asking)) return error;
    return 0;
  }
  // Never suspends. The answer, once it is there; throws std::bad_alloc when
  // there was no memory for it.
  template <class Answer>
  const Answer& get() const {
    if (answer_ == nullptr) throw std::bad_alloc();
    return *static_cast<const Answer*>(answer_.get());
  }

 private:
  using answer = std::shared_ptr<const void>;
  static constexpr wait_reason asking{"asking the resolver"};

  explicit question(std::string key) : key_(std::move(key)) {}
  virtual answer look_up() = 0;

  static std::shared_ptr<question> asked_already(const std::string& key) {
    for (auto& one : this_scheduler().questions) {
      auto q = one.lock();
      if (q != nullptr && !q->done && q->key_ == key && q->join()) return q;
    }
    return nullptr;
  }
  static std::shared_ptr<question> begin(std::shared_ptr<question> q) {
    auto& asked = this_scheduler().questions;
    std::size_t i = 0;  // a place that is free
    while (i < asked.size() && !asked[i].expired()) ++i;
    if (i == asked.size()) asked.emplace_back();
    asked[i] = q;
    q->submit();
    if (!q->done) q->self_ = q;
    q->waits = nullptr;  // no single task
    return q;
  }

  // One more asks, unless the helper has found that nobody does (false).
  bool join() {
    int n = askers_;
    while (n >= 0 && !askers_.compare_exchange_weak(n, n + 1)) {
    }
    return n >= 0;
  }

  void work() noexcept override {
    int nobody = 0;
    if (askers_.compare_exchange_strong(nobody, -1)) return;
    try {
      answer_ = look_up();
    } catch (const std::bad_alloc&) {  // get() tells
    }
  }
  // Called when it is done, as there is no single task to be woken.
  void abandon() noexcept override {
    const auto last_use = std::move(self_);
    waiters_.wake_all();
  }

  std::string key_;
  answer answer_;
  wait_queue waiters_;
  std::atomic<int> askers_{1};
  std::shared_ptr<question> self_;  // until a helper is done
};

}  // namespace BAO_ABI
}  // namespace bao
