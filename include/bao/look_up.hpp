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

#include <netdb.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "bao/offload.hpp"
#include "bao/wait_queue.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Belongs to all who ask it, and to the helper while it looks for the answer,
// which is part of it. One class for each kind of question says how.
class question : public offloaded, public in_flight {
 public:
  // Never suspends. Takes over what was made by new, and has a helper thread
  // look it up; or joins those who wait for the same already, and returns what
  // they ask. The key says what that is, and so of what class. Throws
  // std::system_error when there is no helper.
  static std::shared_ptr<question> ask(question* made) {
    std::shared_ptr<question> q(made);
    if (auto same = asked_already(q->key_)) return same;
    begin(q);
    return q;
  }
  virtual ~question() = default;

  // Whoever has asked waits once, and then leaves.

  // Suspends until the answer is there (true), or `until` passes (false).
  // Throws what interrupts us, and std::bad_alloc when there was no memory for
  // the answer.
  bool wait(deadline until) {
    const at_end leave([this] { --askers_; });
    const bool in_time = waiters_.wait(until, asking, [&] { return done; });
    if (no_memory_) throw std::bad_alloc();
    return in_time;
  }
  // The same for a caller in C, without a limit: returns what park_in_c() does,
  // or ENOMEM.
  int wait_in_c() {
    const at_end leave([this] { --askers_; });
    scheduler& s = waiters_.enter(asking.what);
    waiter me(s.running());
    waiters_.push_back(me);
    while (!done)
      if (const int error = s.park_in_c(never, asking)) return error;
    return no_memory_ ? ENOMEM : 0;
  }

 protected:
  explicit question(std::string key) : key_(std::move(key)) {}

 private:
  static constexpr wait_reason asking{"asking the resolver"};

  // On a helper thread; uses what it owns, nothing else. May throw nothing but
  // std::bad_alloc.
  virtual void look_up() = 0;

  static std::shared_ptr<question> asked_already(const std::string& key) {
    auto& all = this_scheduler().questions;
    for (auto* one = all.first(); one != nullptr; one = all.after(*one)) {
      auto& q = static_cast<question&>(*one);
      if (q.key_ == key && q.join()) return q.self_;
    }
    return nullptr;
  }
  static void begin(const std::shared_ptr<question>& q) {
    q->submit();
    q->waits = nullptr;  // no single task
    if (q->done) return;
    q->self_ = q;
    this_scheduler().questions.push_back(*q);
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
      look_up();
    } catch (const std::bad_alloc&) {
      no_memory_ = true;
    }
  }
  // Called when it is done, as there is no single task to be woken.
  void abandon() noexcept override {
    in_flight::leave();
    const auto last_use = std::move(self_);
    waiters_.wake_all();
  }

  std::string key_;
  bool no_memory_ = false;
  wait_queue waiters_;
  std::atomic<int> askers_{1};
  std::shared_ptr<question> self_;  // until a helper is done
};

// The addresses of a host for a service, which may be empty: what getaddrinfo()
// says. Of the hints these four count.
struct addresses_of final : question {
  addresses_of(const std::string& name, const std::string& port,
               const addrinfo& hints)
      : question(key_of(name, port, hints)), host(name), service(port) {
    how.ai_flags = hints.ai_flags;
    how.ai_family = hints.ai_family;
    how.ai_socktype = hints.ai_socktype;
    how.ai_protocol = hints.ai_protocol;
  }
  ~addresses_of() override {
    if (list != nullptr) ::freeaddrinfo(list);
  }

  const std::string host, service;
  addrinfo how{};
  int result = 0, error = 0;  // of the call, and errno
  addrinfo* list = nullptr;

 private:
  static std::string key_of(const std::string& name, const std::string& port,
                            const addrinfo& hints) {
    std::string key = "getaddrinfo " + name + '\0' + port;
    for (int n : {hints.ai_flags, hints.ai_family, hints.ai_socktype,
                  hints.ai_protocol})
      key += '\0' + std::to_string(n);
    return key;
  }
  void look_up() override {
    result =
        hook::original::getaddrinfo(host.c_str(), service.c_str(), &how, &list);
    error = errno;
  }
};

}  // namespace BAO_ABI
}  // namespace bao
