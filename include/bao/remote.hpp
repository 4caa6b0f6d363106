// bao/remote.hpp - wake a thread's tasks from other threads
//
// Tasks belong to one thread and need no locking. What other threads may do is
// leave a message: it goes into a mailbox, and a doorbell that the poller
// watches is rung. A message costs a lock and a system call.
//
//     bao::remote home = bao::this_scheduler().remote();
//     std::thread([home]() mutable { home.post([] { ... }); }).detach();
//
// SPDX-License-Identifier: MIT
#pragma once

#include <pthread.h>

#include <memory>
#include <utility>

#include "bao/libc.hpp"
#include "bao/timeout.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// A lock between threads; <mutex> would double what it takes to parse this
// file. The holder must not suspend, so it is libc's whatever is patched.
class thread_mutex {
 public:
  thread_mutex() = default;
  thread_mutex(const thread_mutex&) = delete;
  ~thread_mutex() { ::pthread_mutex_destroy(&mutex_); }
  pthread_mutex_t* native() { return &mutex_; }

 private:
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
};

class thread_lock {
 public:
  explicit thread_lock(thread_mutex& m) : mutex_(m) {
    hook::original::pthread_mutex_lock(mutex_.native());
  }
  thread_lock(const thread_lock&) = delete;
  ~thread_lock() { hook::original::pthread_mutex_unlock(mutex_.native()); }

 private:
  thread_mutex& mutex_;
};

// Something to be done on another thread.
struct message {
  message* next = nullptr;
  // Called there, between two tasks; null for the scheduler: it has ended, and
  // only what the message holds is to be given up.
  void (*arrive)(message&, scheduler*) = nullptr;
};

// Shared by a scheduler and the remotes of it; goes with the last of them.
struct mailbox {
  thread_mutex mutex;
  scheduler* home = nullptr;  // null when it has ended
  message* first = nullptr;
  message** last = &first;
  int remotes = 0;

  // False when the thread has ended: nobody will see the message.
  bool put(message& m) {
    thread_lock hold(mutex);
    if (home == nullptr) return false;
    m.next = nullptr;
    *last = &m;
    last = &m.next;
    home->poller().wake();
    return true;
  }

  // In a child process: what was left here is for the parent, and so are the
  // remotes. A thread that has not come along may have held the mutex.
  static void start_over(scheduler& s) {
    mailbox* const box = std::exchange(s.mail, nullptr);
    if (box == nullptr) return;
    new (&box->mutex) thread_mutex;
    box->home = nullptr;
    s.take_mail = nullptr;
    s.remotes = 0;
    if (box->remotes == 0) delete box;
  }

  // On the home thread.
  static void take(scheduler& s, bool last_time) {
    mailbox& box = *s.mail;
    message* all = nullptr;
    bool last_use = false;
    {
      thread_lock hold(box.mutex);
      all = std::exchange(box.first, nullptr);
      box.last = &box.first;
      s.remotes = box.remotes;
      if (last_time) {
        box.home = nullptr;
        last_use = box.remotes == 0;
      }
    }
    while (all != nullptr) {
      message& m = *std::exchange(all, all->next);
      m.arrive(m, last_time ? nullptr : &s);
    }
    if (last_use) delete &box;
  }
};

// A way to another thread's scheduler. May be copied and used on any thread;
// while one lives, waiting on its home thread for nothing else is no deadlock.
// None of its members suspends.
class remote {
 public:
  remote() = default;  // to nowhere: nothing arrives
  explicit remote(scheduler& s) {
    if (s.mail == nullptr) {
      s.mail = new mailbox;
      s.mail->home = &s;
      s.take_mail = mailbox::take;
    }
    box_ = s.mail;
    enter();
    ++s.remotes;
  }
  remote(const remote& other) : box_(other.box_) { enter(); }
  remote(remote&& other) noexcept : box_(std::exchange(other.box_, nullptr)) {}
  remote& operator=(remote other) noexcept {
    box_ = std::exchange(other.box_, box_);
    return *this;
  }
  ~remote() {
    if (box_ == nullptr) return;
    bool last_use = false;
    {
      thread_lock hold(box_->mutex);
      if (--box_->remotes == 0) {
        scheduler* const home = box_->home;
        last_use = home == nullptr;
        // Where there is mail, it has been told to look. On the home thread
        // itself, nobody sleeps.
        if (home != nullptr && box_->first == nullptr) {
          if (home == tasks_here())
            home->remotes = 0;
          else
            home->poller().wake();
        }
      }
    }
    if (last_use) delete box_;
  }

  // Has f() run as a task of the home thread. False, and f is dropped, when
  // that thread has ended.
  template <class F>
  bool post(F f) {
    // The task is made here, where it can be said that there is no memory.
    using call = task_call<spawned_result<F>, F>;
    struct posted final : message {
      std::unique_ptr<call> task;
    };
    auto made = std::make_unique<posted>();
    made->task = std::make_unique<call>(std::move(f));
    made->task->name = "posted";
    made->arrive = [](message& m, scheduler* s) {
      const std::unique_ptr<posted> mine(static_cast<posted*>(&m));
      if (s != nullptr) s->add(*mine->task.release(), clock::duration{0});
    };
    return put(*made) && (made.release(), true);
  }

  // For the chapters that follow.
  bool put(message& m) { return box_ != nullptr && box_->put(m); }
  explicit operator bool() const { return box_ != nullptr; }

 private:
  void enter() {
    if (box_ == nullptr) return;
    thread_lock hold(box_->mutex);
    ++box_->remotes;
  }

  mailbox* box_ = nullptr;
};

inline class remote scheduler::remote() { return bao::remote(*this); }

}  // namespace BAO_ABI
}  // namespace bao
