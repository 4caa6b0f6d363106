// hook_sync.cpp - locks between threads, for tasks: called here by name, so
// that nothing else is patched. What the standard library makes of them is
// tested in patched/with_locks.cpp.
#include <doctest/doctest.h>

#include "bao.hpp"
#include "sanitized.hpp"

#if defined(BAO_HAS_HOOK_SYNC)
#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

using namespace std::literals;
namespace hook = bao::hook;

namespace {

class mutex {
 public:
  mutex() = default;
  explicit mutex(int type) {
    pthread_mutexattr_t how;
    ::pthread_mutexattr_init(&how);
    ::pthread_mutexattr_settype(&how, type);
    ::pthread_mutex_init(&mutex_, &how);
  }
  ~mutex() { ::pthread_mutex_destroy(&mutex_); }
  void lock() { CHECK(hook::pthread_mutex_lock(&mutex_) == 0); }
  bool try_lock() { return hook::pthread_mutex_trylock(&mutex_) == 0; }
  void unlock() { CHECK(hook::pthread_mutex_unlock(&mutex_) == 0); }
  pthread_mutex_t* native() { return &mutex_; }

  // What a wait of so long comes to.
  int lock_for(std::chrono::milliseconds time) {
    const timespec until = in(time);
    return hook::pthread_mutex_clocklock(&mutex_, CLOCK_MONOTONIC, &until);
  }
  int lock_and_unlock_for(std::chrono::milliseconds time) {
    const int error = lock_for(time);
    if (error == 0) unlock();
    return error;
  }
  static timespec in(std::chrono::milliseconds time) {
    timespec t{};
    ::clock_gettime(CLOCK_MONOTONIC, &t);
    const auto ns = t.tv_nsec + std::chrono::nanoseconds(time).count();
    return {t.tv_sec + ns / 1000000000, ns % 1000000000};
  }

 private:
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
};

struct condition {
  ~condition() { ::pthread_cond_destroy(&c); }
  template <class Ready>
  void wait(mutex& m, Ready ready) {
    while (!ready()) CHECK(hook::pthread_cond_wait(&c, m.native()) == 0);
  }
  int wait_for(mutex& m, std::chrono::milliseconds time) {
    const timespec until = mutex::in(time);
    return hook::pthread_cond_clockwait(&c, m.native(), CLOCK_MONOTONIC,
                                        &until);
  }
  void signal() { hook::pthread_cond_signal(&c); }
  void broadcast() { hook::pthread_cond_broadcast(&c); }

  pthread_cond_t c = PTHREAD_COND_INITIALIZER;
};

using hold = std::lock_guard<mutex>;

// Lets the others run until it holds, for ten seconds at most.
template <class F>
bool comes_true(F f) {
  for (int i = 0; i < 10000 && !f(); ++i) bao::sleep(1ms);
  return f();
}

}  // namespace

TEST_CASE("V87: those who wait for a mutex get it in their order") {
  mutex door;
  std::string order;
  bao::group tasks;
  for (const char name : {'a', 'b', 'c'})
    tasks.spawn([&, name] {
      for (int i = 0; i < 3; ++i) {
        const hold mine(door);
        order += name;
        bao::yield();
        order += name;
      }
    });
  tasks.join();
  CHECK(order == "aabbccaabbccaabbcc");
}

TEST_CASE("V87: one who gives up leaves the line to the others") {
  mutex door;
  door.lock();
  auto late = bao::spawn([&] { return door.lock_for(1ms); });
  auto next = bao::spawn([&] { return door.lock_and_unlock_for(1h); });
  CHECK(late.get() == ETIMEDOUT);
  CHECK(!next.done());
  door.unlock();
  CHECK(next.get() == 0);
}

TEST_CASE("V87: tasks of several threads wait for each other's mutexes") {
  mutex door;
  condition changed;
  int inside = 0, most = 0, turns = 0;
  const auto work = [&] {
    bao::group tasks;
    for (int i = 0; i < 5; ++i)
      tasks.spawn([&] {
        for (int k = 0; k < 20; ++k) {
          const hold mine(door);
          most = std::max(most, ++inside);
          if (k % 4 == 0) bao::yield();
          --inside;
          ++turns;
          changed.signal();
        }
      });
    tasks.join();
  };
  std::thread first(work), second(work);
  std::thread third([&] {  // one that has no tasks
    const hold mine(door);
    changed.wait(door, [&] { return turns >= 150; });
    ++turns;
  });
  work();
  bao::offload([&] { first.join(), second.join(), third.join(); });
  CHECK(turns == 301);
  CHECK(most == 1);
}

TEST_CASE("V87: a condition tells one at a time, or all") {
  mutex door;
  condition told;
  int woken = 0;
  const auto wait = [&] {
    const hold mine(door);
    CHECK(hook::pthread_cond_wait(&told.c, door.native()) == 0);
    ++woken;
  };
  bao::group tasks;
  for (int i = 0; i < 5; ++i) tasks.spawn(wait);
  bao::yield();
  told.signal();
  told.signal();  // though the first has not run yet
  for (int i = 0; i < 10; ++i) bao::yield();
  CHECK(woken == 2);
  std::thread([&] { told.signal(); }).join();
  CHECK(comes_true([&] { return woken == 3; }));
  std::thread([&] { told.broadcast(); }).join();
  tasks.join();
  CHECK(woken == 5);
}

TEST_CASE("V87: whom a condition tells while he is late, he has been told") {
  mutex door;
  condition told;
  door.lock();
  auto waits = bao::spawn([&] {
    const hold mine(door);
    return told.wait_for(door, 1ms);
  });
  bao::yield();
  door.unlock();
  bao::yield();  // it waits for the condition
  door.lock();
  told.signal();
  std::this_thread::sleep_for(5ms);  // the thread does
  door.unlock();
  CHECK(waits.get() == 0);

  const hold mine(door);
  CHECK(told.wait_for(door, 1ms) == ETIMEDOUT);
  CHECK(told.wait_for(door, -1ms) == ETIMEDOUT);
}

#if !defined(SANITIZED)  // TSan sees one thread, and says that it locks twice
TEST_CASE("V87: a recursive mutex is for one task at a time") {
  mutex door(PTHREAD_MUTEX_RECURSIVE);
  door.lock();
  door.lock();
  CHECK(!bao::spawn([&] { return door.try_lock(); }).get());
  auto other = bao::spawn([&] {
    const hold mine(door);
    CHECK(door.lock_for(0ms) == 0);
    bao::yield();
    door.unlock();
  });
  bao::yield();
  CHECK(door.lock_for(0ms) == 0);  // though somebody is in line
  for (int i = 0; i < 3; ++i) {
    CHECK(!other.done());
    door.unlock();
    bao::yield();
  }
  CHECK(!door.try_lock());
  other.join();
  CHECK(door.try_lock());
  door.unlock();
}
#endif

TEST_CASE("V87: what other processes may unlock is left to libc") {
  pthread_mutexattr_t how;
  ::pthread_mutexattr_init(&how);
  ::pthread_mutexattr_setpshared(&how, PTHREAD_PROCESS_SHARED);
  pthread_mutex_t door;
  ::pthread_mutex_init(&door, &how);
  CHECK(!hook::is_for_tasks(&door));
  CHECK(hook::pthread_mutex_lock(&door) == 0);
  CHECK(hook::pthread_mutex_trylock(&door) == EBUSY);
  CHECK(hook::pthread_mutex_unlock(&door) == 0);
  ::pthread_mutex_destroy(&door);
}

TEST_CASE("X13, V87: a kill waits until the lock is there, even in a handler") {
  mutex door;
  door.lock();
  std::string did;
  auto waits = bao::spawn([&] {
    try {
      bao::sleep(1h);
    } catch (const bao::killed&) {
      const hold mine(door);
      did = "cleaned up";
      throw;
    }
  });
  bao::yield();
  waits.kill(bao::deadline(0s));
  bao::yield();
  CHECK(did.empty());
  door.unlock();
  CHECK(waits.join(10s));
  CHECK(did == "cleaned up");
}

TEST_CASE("V87: virtual time passes while tasks wait for locks") {
  const bao::virtual_time clock;
  mutex door;
  door.lock();
  auto late = bao::spawn([&] { return door.lock_for(1s); });
  auto waits = bao::spawn([&] { return door.lock_and_unlock_for(1h); });
  bao::sleep(30min);
  CHECK(late.done());
  CHECK(!waits.done());
  door.unlock();
  CHECK(waits.get() == 0);
}
#endif
