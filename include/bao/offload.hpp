// bao/offload.hpp - threads for what must block
//
// Some calls cannot wait politely: name look-ups, regular files, a long
// computation. They run on a helper thread while the task that wants the result
// waits as for anything else. The price is two switches between threads, some
// microseconds.
//
// The helpers are made when they are needed, ten at most, and leave after five
// seconds without work; what comes eleventh waits for its turn. They take no
// signals. Who wants more, or fewer, or some to himself, makes a thread_pool.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "bao/remote.hpp"
#include "bao/timeout.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

struct job : list_node<job> {
  void (*run)(job&) = nullptr;  // on a helper thread; must not throw
};

// Makes a thread that takes no signals. Returns what pthread_create() does.
inline int make_thread(pthread_t& made, void* (*body)(void*), void* argument) {
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const int failed = ::pthread_create(&made, nullptr, body, argument);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return failed;
}

// A job that offloads in its turn does the work itself: were it to wait for
// another helper, ten of them could wait for each other.
inline thread_local bool on_helper_thread = false;

// Threads for jobs, at most so many. Any thread may use it.
class thread_pool {
 public:
  // Throws std::invalid_argument unless `most` is from 1 to 10,000.
  explicit thread_pool(int most) : most_(most) {
    if (most < 1 || most > 10000)
      throw std::invalid_argument("thread_pool: of " + std::to_string(most) +
                                  " threads");
  }
  thread_pool(const thread_pool&) = delete;
  // Blocks until all jobs are done and all threads have left.
  ~thread_pool() {
    if (process_ != ::getpid()) return;  // they are in the parent
    thread_lock hold(mutex_);
    ending_ = true;
    hook::original::pthread_cond_broadcast(&wanted_);
    while (threads_ > 0)
      hook::original::pthread_cond_wait(&left_, mutex_.native());
  }

  // As bao::offload(), by a thread of this pool.
  template <class F, class... Args>
  auto offload(F f, Args... args);

  // Throws std::system_error when there is no helper and none can be made.
  void submit(job& j) {
    if (process_ != ::getpid()) start_over();
    thread_lock hold(mutex_);
    jobs_.push_back(j);
    if (idle_ > waiting_) {
      ++waiting_;
      hook::original::pthread_cond_signal(&wanted_);
    } else if (threads_ < most_) {
      pthread_t made;
      const int failed = make_thread(made, serve, this);
      if (failed == 0) {
        ::pthread_detach(made);
        ++threads_;
      } else if (threads_ == 0) {
        j.leave();
        throw_errno("pthread_create", failed);
      }
    }
  }

 private:
  static constexpr time_t patience = 5;  // seconds

  // In a child process: there are no helpers, and none was at work for it.
  void start_over() {
    jobs_.clear();
    const int most = most_;
    new (this) thread_pool(most);
  }

  static void* serve(void* pool) {
    auto& me = *static_cast<thread_pool*>(pool);
    on_helper_thread = true;
    while (job* j = me.next()) j->run(*j);
    return nullptr;
  }

  job* next() {
    thread_lock hold(mutex_);
    while (jobs_.empty()) {
      if (ending_) return leave();
      timespec until;
      ::clock_gettime(CLOCK_REALTIME, &until);
      until.tv_sec += patience;
      ++idle_;
      const int late = hook::original::pthread_cond_timedwait(
          &wanted_, mutex_.native(), &until);
      --idle_;
      // Late, but there is work: the signal may have come too late for us.
      if (waiting_ > 0 && (late == 0 || !jobs_.empty())) --waiting_;
      if (late != 0 && jobs_.empty()) return leave();
    }
    job* const j = jobs_.first();
    j->leave();
    return j;
  }

  job* leave() {
    --threads_;
    hook::original::pthread_cond_signal(&left_);
    return nullptr;
  }

  int most_;
  pid_t process_ = ::getpid();  // which a fork leaves
  thread_mutex mutex_;
  pthread_cond_t wanted_ = PTHREAD_COND_INITIALIZER;
  pthread_cond_t left_ = PTHREAD_COND_INITIALIZER;
  bool ending_ = false;
  list<job> jobs_;
  int threads_ = 0;
  int idle_ = 0;
  int waiting_ = 0;  // signals on their way to idle helpers
};

// The process has one such pool. It is never destroyed, for a helper may still
// be busy when the process ends.
inline thread_pool& helpers() {
  static auto* const all = new thread_pool(10);
  return *all;
}

// A job that sends word home when it is done.
class offloaded : public job, public message {
 public:
  virtual void work() noexcept = 0;

  bool done = false;
  task_block* waits = nullptr;  // null: nobody does any more

  // Hands itself to a helper. Whoever calls waits until `done`, or lets it go.
  void submit(thread_pool& pool = helpers()) {
    if (on_helper_thread) {
      work();
      done = true;
      return;
    }
    scheduler& s = this_scheduler();
    home_ = remote(s);
    run = [](job& j) {
      auto& me = static_cast<offloaded&>(j);
      me.work();
      // Once it has been put, it may be gone.
      remote way = me.home_;
      if (!way.put(me)) me.abandon();
    };
    arrive = [](message& m, scheduler* home) {
      auto& me = static_cast<offloaded&>(m);
      me.done = true;
      if (home != nullptr) --home->jobs;
      if (me.waits == nullptr || home == nullptr)
        me.abandon();
      else
        home->wake(*me.waits);
    };
    pool.submit(*this);
    waits = &s.running();
    ++s.jobs;
  }

 protected:
  ~offloaded() = default;
  virtual void abandon() noexcept {}

 private:
  remote home_;
};

template <class F, class... Args>
auto thread_pool::offload(F f, Args... args) {
  using R = std::decay_t<typename call_result<F, Args...>::type>;
  const auto f_with_args = [&]() -> R {
    return std::invoke(std::move(f), std::move(args)...);
  };
  struct call final : offloaded {
    explicit call(const decltype(f_with_args)& c) : function(c) {}
    void work() noexcept override {
      try {
        if constexpr (std::is_void_v<R>)
          function(), result.emplace();
        else
          result.emplace(function());
      } catch (...) {
        error = what_ended("job of offload");
      }
    }
    const decltype(f_with_args)& function;
    std::optional<std::conditional_t<std::is_void_v<R>, nothing, R>> result;
    std::exception_ptr error;
  } here(f_with_args);
  here.submit(*this);
  {
    shield until_it_is_done;
    while (!here.done)
      this_scheduler().park(never, {"waiting for a helper thread"});
  }
  if (here.error != nullptr) std::rethrow_exception(here.error);
  if constexpr (!std::is_void_v<R>) return std::move(*here.result);
}

// Suspends until f(args...), called on a helper thread, has finished; returns,
// as a value, or throws what it does. It may refer to our variables: we stay
// even when we are killed or late, and learn of that at the next wait. Throws
// std::system_error when no helper can be made.
template <class F, class... Args>
auto offload(F f, Args... args) {
  return helpers().offload(std::move(f), std::move(args)...);
}

}  // namespace BAO_ABI
}  // namespace bao
