// with_locks.cpp - std::mutex, std::condition_variable and what they are made
// of, in tasks and in threads
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../child.hpp"
#include "../programs/unaware.hpp"
#include "bao.hpp"

BAO_PATCH_ALL();
BAO_PATCH_SYNC();

namespace {

using namespace std::literals;
using lock = std::unique_lock<std::mutex>;

// Counts those within.
struct room {
  void enter() { most = std::max(most, ++now); }
  void leave() { --now; }
  int now = 0;
  int most = 0;
};

// A thread that does one thing after the other, each when it is told to.
class worker {
 public:
  ~worker() {
    tell(nullptr);
    thread_.join();
  }
  // Suspends until it is done.
  void operator()(const std::function<void()>& what) {
    const int before = done_;
    tell(what);
    while (done_ == before) bao::sleep(1ms);
  }

 private:
  void tell(const std::function<void()>& what) {
    next_ = what;
    told_ = true;
  }
  void run() {
    for (;;) {
      while (!told_) std::this_thread::sleep_for(1ms);
      told_ = false;
      if (next_ == nullptr) return;
      next_();
      ++done_;
    }
  }

  std::function<void()> next_;
  std::atomic<bool> told_{false};
  std::atomic<int> done_{0};
  std::thread thread_{[this] { run(); }};
};

}  // namespace

// --- mutexes -----------------------------------------------------------------

TEST_CASE("V87: ten tasks hold a std::mutex while they sleep, one at a time") {
  std::mutex door;
  room inside;
  bao::group tasks;
  int done = 0;
  for (int i = 0; i < 10; ++i)
    tasks.spawn([&] {
      for (int k = 0; k < 3; ++k) {
        const std::lock_guard<std::mutex> hold(door);
        inside.enter();
        std::this_thread::sleep_for(1ms);
        inside.leave();
      }
      ++done;
    });
  tasks.join();
  CHECK(inside.most == 1);
  CHECK(done == 10);
}

TEST_CASE("V87: a task that unlocks and locks again is behind one that waits") {
  std::mutex door;
  std::string order;
  bao::group tasks;
  for (const char name : {'a', 'b', 'c'})
    tasks.spawn([&, name] {
      for (int i = 0; i < 3; ++i) {
        const std::lock_guard<std::mutex> hold(door);
        order += name;
        bao::yield();
      }
    });
  tasks.join();
  CHECK(order == "abcabcabc");
}

TEST_CASE("V87: whoever tries to lock again and again lets the holder run") {
  std::mutex first, second;
  bao::group tasks;
  int done = 0;
  for (int i = 0; i < 4; ++i)
    tasks.spawn([&, i] {
      for (int k = 0; k < 20; ++k) {
        if (i % 2 == 0)
          std::lock(first, second);
        else
          std::lock(second, first);
        bao::yield();
        first.unlock();
        second.unlock();
      }
      ++done;
    });
  tasks.spawn([&] {
    const std::lock_guard<std::mutex> hold(first);
    bao::sleep(5ms);
  });
  tasks.spawn([&] {
    while (!first.try_lock()) {
    }
    first.unlock();
    ++done;
  });
  tasks.join();
  CHECK(done == 5);
}

TEST_CASE(
    "V87: a mutex that a thread holds, a task waits for, while others "
    "run") {
  std::mutex door;
  worker other;
  other([&] { door.lock(); });
  bool locked = false;
  auto waits = bao::spawn([&] {
    const std::lock_guard<std::mutex> hold(door);
    locked = true;
  });
  for (int i = 0; i < 10; ++i) bao::sleep(1ms);
  CHECK(!locked);
  other([&] { door.unlock(); });
  CHECK(waits.join(10s));
  CHECK(locked);
}

TEST_CASE("V87: a mutex that a task holds, a thread waits for") {
  std::mutex door;
  int inside = 0, seen = -1;
  lock hold(door);
  inside = 1;
  std::thread other([&] {
    const std::lock_guard<std::mutex> its(door);
    seen = inside;
  });
  bao::sleep(10ms);
  inside = 2;
  hold.unlock();
  other.join();
  CHECK(seen == 2);
}

TEST_CASE("V87: threads and the tasks of threads count without a mistake") {
  std::mutex door;
  std::condition_variable all_even;
  long count = 0;
  int inside = 0, most = 0;
  const auto add = [&](int times) {
    for (int i = 0; i < times; ++i) {
      lock hold(door);
      most = std::max(most, ++inside);
      ++count;
      if (i % 16 == 0) std::this_thread::sleep_for(10us);
      --inside;
      if (i % 3 == 0) all_even.notify_one();
      if (i % 7 == 0) all_even.wait_for(hold, 50us);
    }
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      if (t == 0) return add(500);
      bao::group tasks;
      for (int k = 0; k < 10; ++k) tasks.spawn([&] { add(50); });
      tasks.join();
    });
  bao::group tasks;
  for (int k = 0; k < 10; ++k) tasks.spawn([&] { add(50); });
  tasks.join();
  bao::offload([&] {
    for (auto& t : threads) t.join();
  });
  CHECK(count == 2000);
  CHECK(most == 1);
}

TEST_CASE("V87: a recursive mutex belongs to a task, as often as it locks") {
  std::recursive_mutex door;
  room inside;
  bao::group tasks;
  for (int i = 0; i < 4; ++i)
    tasks.spawn([&] {
      const std::lock_guard<std::recursive_mutex> hold(door);
      inside.enter();
      bao::yield();
      {
        const std::lock_guard<std::recursive_mutex> again(door);
        CHECK(door.try_lock());
        bao::yield();
        door.unlock();
      }
      bao::yield();
      inside.leave();
    });
  tasks.join();
  CHECK(inside.most == 1);

  // Threads are told from tasks, too.
  const std::lock_guard<std::recursive_mutex> hold(door);
  const std::lock_guard<std::recursive_mutex> again(door);
  const auto is_free = [&] {
    if (!door.try_lock()) return false;
    door.unlock();
    return true;
  };
  CHECK(!bao::offload(is_free));
  CHECK(!bao::spawn(is_free).get());
  CHECK(is_free());
}

TEST_CASE(
    "V87: what main has locked before there are tasks is the main "
    "task's") {
  std::recursive_mutex door;
  std::thread([&] {
    const std::lock_guard<std::recursive_mutex> hold(door);
    CHECK(!bao::spawn([&] { return door.try_lock(); }).get());
    const std::lock_guard<std::recursive_mutex> again(door);
  }).join();
  CHECK(door.try_lock());
  door.unlock();
}

TEST_CASE("V87: an error-checking mutex tells the task that has it already") {
  static pthread_mutex_t door = PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP;
  room inside;
  bao::group tasks;
  for (int i = 0; i < 3; ++i)
    tasks.spawn([&] {
      CHECK(::pthread_mutex_lock(&door) == 0);
      inside.enter();
      CHECK(::pthread_mutex_lock(&door) == EDEADLK);
      bao::yield();
      inside.leave();
      CHECK(::pthread_mutex_unlock(&door) == 0);
    });
  tasks.join();
  CHECK(inside.most == 1);
  CHECK(::pthread_mutex_unlock(&door) == EPERM);
}

TEST_CASE("V87: a std::timed_mutex is waited for until its time is up") {
  std::timed_mutex door;
  door.lock();
  auto late = bao::spawn([&] { return door.try_lock_for(5ms); });
  auto by_date = bao::spawn([&] {
    return door.try_lock_until(std::chrono::system_clock::now() + 5ms);
  });
  auto in_time = bao::spawn([&] {
    const bool got = door.try_lock_for(1h);
    if (got) door.unlock();
    return got;
  });
  CHECK(!late.get());
  CHECK(!by_date.get());
  CHECK(!in_time.done());
  CHECK(!bao::spawn([&] { return door.try_lock_for(-1s); }).get());
  door.unlock();
  CHECK(in_time.get());
  timespec wrong{0, 1000000000};
  CHECK(::pthread_mutex_timedlock(door.native_handle(), &wrong) == 0);
  CHECK(bao::spawn([&] {
          return ::pthread_mutex_timedlock(door.native_handle(), &wrong);
        }).get() == EINVAL);
  door.unlock();
}

TEST_CASE("V87: one that gives up in line is not what the next waits for") {
  std::timed_mutex door;
  door.lock();
  auto first = bao::spawn([&] { return door.try_lock_for(2ms); });
  auto second = bao::spawn([&] {
    door.lock();
    door.unlock();
  });
  CHECK(!first.get());
  door.unlock();
  CHECK(second.join(10s));
}

// --- conditions --------------------------------------------------------------

TEST_CASE("V87: tasks wait for a condition that tasks and threads signal") {
  std::mutex door;
  std::condition_variable more;
  std::deque<int> items;
  long sum = 0;
  bao::group consumers;
  for (int i = 0; i < 3; ++i)
    consumers.spawn([&] {
      for (;;) {
        lock hold(door);
        more.wait(hold, [&] { return !items.empty(); });
        const int item = items.front();
        items.pop_front();
        if (item == 0) return;
        sum += item;
      }
    });
  const auto produce = [&](int n) {
    for (int i = 1; i <= n; ++i) {
      {
        const std::lock_guard<std::mutex> hold(door);
        items.push_back(i);
      }
      more.notify_one();
      if (i % 10 == 0) std::this_thread::sleep_for(100us);
    }
  };
  std::thread other([&] { produce(200); });
  produce(100);
  bao::offload([&] { other.join(); });
  {
    const std::lock_guard<std::mutex> hold(door);
    items.insert(items.end(), 3, 0);
  }
  more.notify_all();
  consumers.join();
  CHECK(sum == 200 * 201 / 2 + 100 * 101 / 2);
}

TEST_CASE(
    "V87: a thread waits for a condition that a task signals, and gives "
    "its mutex to tasks meanwhile") {
  std::mutex door;
  std::condition_variable changed;
  int turn = 0;
  std::thread other([&] {
    lock hold(door);
    for (int i = 1; i < 100; i += 2) {
      changed.wait(hold, [&] { return turn == i; });
      ++turn;
      changed.notify_all();
    }
  });
  bao::spawn([&] {
    lock hold(door);
    for (int i = 0; i < 100; i += 2) {
      changed.wait(hold, [&] { return turn == i; });
      ++turn;
      changed.notify_all();
    }
  }).join();
  bao::offload([&] { other.join(); });
  CHECK(turn == 100);
}

TEST_CASE("V87: wait_for() is late, or is not") {
  std::mutex door;
  std::condition_variable never_told, told;
  lock hold(door);
  CHECK(never_told.wait_for(hold, 5ms) == std::cv_status::timeout);
  CHECK(never_told.wait_until(hold, std::chrono::system_clock::now() + 5ms) ==
        std::cv_status::timeout);
  CHECK(hold.owns_lock());
  CHECK(!bao::spawn([&] { return door.try_lock(); }).get());
  bool ready = false;
  auto waits = bao::spawn([&] {
    lock its(door);
    return told.wait_for(its, 1h, [&] { return ready; });
  });
  hold.unlock();
  bao::yield();
  ready = true;
  told.notify_one();
  CHECK(waits.get());
}

TEST_CASE("V87: a condition goes by the clock that it was made for") {
  pthread_condattr_t how;
  ::pthread_condattr_init(&how);
  ::pthread_condattr_setclock(&how, CLOCK_MONOTONIC);
  pthread_cond_t steady, dated = PTHREAD_COND_INITIALIZER;
  ::pthread_cond_init(&steady, &how);
  pthread_mutex_t door = PTHREAD_MUTEX_INITIALIZER;
  const auto is_late = [&](pthread_cond_t& c, clockid_t clock) {
    timespec until{};
    ::clock_gettime(clock, &until);
    ++until.tv_nsec;
    ::pthread_mutex_lock(&door);
    const int error = ::pthread_cond_timedwait(&c, &door, &until);
    ::pthread_mutex_unlock(&door);
    return error == ETIMEDOUT;
  };
  CHECK(bao::spawn(is_late, std::ref(steady), CLOCK_MONOTONIC).get());
  CHECK(bao::spawn(is_late, std::ref(dated), CLOCK_REALTIME).get());
  CHECK(bao::offload([&] { return is_late(steady, CLOCK_MONOTONIC); }));
  // By the wrong clock, it would have waited for decades.
  timespec wrong{0, -1};
  ::pthread_mutex_lock(&door);
  CHECK(::pthread_cond_timedwait(&dated, &door, &wrong) == EINVAL);
  ::pthread_mutex_unlock(&door);
  ::pthread_cond_destroy(&steady);
}

TEST_CASE("V87: notify_all() wakes all, in their order, and notify_one() one") {
  std::mutex door;
  std::condition_variable go;
  std::string order;
  bao::group tasks;
  for (const char name : {'a', 'b', 'c', 'd'})
    tasks.spawn([&, name] {
      lock hold(door);
      go.wait(hold);
      order += name;
    });
  bao::yield();
  go.notify_one();
  while (order.empty()) bao::yield();
  CHECK(order == "a");
  SUBCASE("by a task") { go.notify_all(); }
  SUBCASE("by a thread") {
    std::thread([&] { go.notify_all(); }).join();
  }
  tasks.join();
  CHECK(order == "abcd");
}

TEST_CASE("V87: a condition may go as soon as all have been told") {
  for (int i = 0; i < 100; ++i) {
    std::mutex door;
    auto done = std::make_unique<std::condition_variable>();
    bool ready = false;
    std::thread other([&] {
      const std::lock_guard<std::mutex> hold(door);
      ready = true;
      done->notify_one();
    });
    {
      lock hold(door);
      done->wait(hold, [&] { return ready; });
    }
    done.reset();
    bao::offload([&] { other.join(); });
  }
}

TEST_CASE("V87: std::condition_variable_any works with a recursive mutex") {
  std::recursive_mutex door;
  std::condition_variable_any told;
  bool ready = false;
  auto waits = bao::spawn([&] {
    std::unique_lock<std::recursive_mutex> hold(door);
    told.wait(hold, [&] { return ready; });
    return door.try_lock() && (door.unlock(), true);
  });
  bao::yield();
  {
    const std::lock_guard<std::recursive_mutex> hold(door);
    ready = true;
  }
  told.notify_all();
  CHECK(waits.get());
}

// --- kills, limits, forks ----------------------------------------------------

TEST_CASE("V87: a kill is met behind the lock, which is given back") {
  std::mutex door;
  lock hold(door);
  bool locked = false, went_on = false;
  auto waits = bao::spawn([&] {
    const std::lock_guard<std::mutex> its(door);
    locked = true;
    bao::yield();
    went_on = true;
  });
  bao::yield();
  waits.kill(bao::deadline(0s));
  for (int i = 0; i < 5; ++i) bao::yield();
  CHECK(!waits.done());
  hold.unlock();
  CHECK(waits.join(10s));
  CHECK(waits.killed());
  CHECK(locked);
  CHECK(!went_on);
  CHECK(door.try_lock());
  door.unlock();
}

TEST_CASE("V87: a limit is met behind the lock, and behind the condition") {
  std::mutex door;
  std::condition_variable told;
  bool ready = false, late = false;
  auto waits = bao::spawn([&] {
    bao::timeout limit(1ms);
    try {
      lock hold(door);
      told.wait(hold, [&] { return ready; });
      bao::sleep(1h);
    } catch (const bao::timed_out&) {
      late = true;
    }
  });
  bao::sleep(5ms);
  CHECK(!waits.done());
  {
    const std::lock_guard<std::mutex> hold(door);
    ready = true;
  }
  told.notify_one();
  CHECK(waits.join(10s));
  CHECK(late);
}

TEST_CASE("V87: a wait leaves errno as it was") {
  std::mutex door;
  door.lock();
  auto waits = bao::spawn([&] {
    errno = 123;
    door.lock();
    const int after = errno;
    door.unlock();
    return after;
  });
  bao::sleep(1ms);
  door.unlock();
  CHECK(waits.get() == 123);
}

TEST_CASE("V87, X19: in a child there is nobody in line") {
  std::mutex door;
  std::condition_variable told;
  const ending child = in_a_child([&] {
    bool ready = false;
    lock hold(door);
    bao::group others;
    others.spawn([&] { const lock its(door); });
    others.spawn([&] {
      std::mutex own;
      lock its(own);
      told.wait(its, [&] { return ready; });
    });
    bao::yield();
    const pid_t forked = ::fork();
    if (forked == 0) {
      // The same mutex, the same condition, other tasks.
      bao::group mine;
      int got = 0;
      mine.spawn([&] {
        lock its(door);
        told.wait(its, [&] { return ready; });
        ++got;
      });
      bao::yield();
      hold.unlock();
      bao::yield();
      ready = true;
      told.notify_one();
      std::thread([&] { told.notify_one(); }).join();
      mine.join();
      ::_exit(got == 1 ? 7 : 8);
    }
    int status = 0;
    ::waitpid(forked, &status, 0);
    hold.unlock();
    ready = true;
    told.notify_all();
    others.join();
    ::_exit(WEXITSTATUS(status));
  });
  CHECK(child.code == 7);
  CHECK(child.text == "");
}

TEST_CASE("X23: exit() while tasks wait for locks ends the process") {
  const ending child = in_a_child([] {
    static std::mutex door;
    static std::condition_variable told;
    struct last {
      ~last() {
        door.unlock();
        told.notify_all();
        ::_exit(5);  // no look for leaks: main is lost
      }
    };
    static last at_exit;
    door.lock();
    for (int i = 0; i < 3; ++i) {
      bao::spawn([] { const lock hold(door); });
      bao::spawn([] {
        static std::mutex own;
        lock hold(own);
        told.wait(hold);
      });
    }
    bao::spawn([] { std::exit(4); });
    bao::sleep(1h);
  });
  CHECK(child.code == 5);
}

// --- libraries ---------------------------------------------------------------

TEST_CASE("V87: a library that holds its lock while it sleeps serves tasks") {
  bao::group tasks;
  int turns = 0;
  for (int i = 0; i < 5; ++i)
    tasks.spawn([] { CHECK(unaware_sleep_alone() == 0); });
  auto others = bao::spawn([&] {
    for (;; ++turns) bao::sleep(1ms);
  });
  tasks.join();
  others.kill();
  CHECK(turns >= 1);
}

TEST_CASE("V87: where the patch is off, the thread waits, and nobody runs") {
  std::timed_mutex door;
  std::mutex own;
  std::condition_variable told;
  bool ran = false;
  worker holder;
  holder([&] { door.lock(); });
  auto other = bao::spawn([&] { ran = true; });
  {
    const bao::patch_off here;
    CHECK(!door.try_lock_for(1ms));
    lock hold(own);
    CHECK(told.wait_for(hold, 1ms) == std::cv_status::timeout);
  }
  CHECK(!ran);
  holder([&] { door.unlock(); });
  CHECK(ran);
}

TEST_CASE("V88: patch_status() knows of the locks") {
  int locks = 0;
  for (const auto& call : bao::patch_status(nullptr))
    if (call.name.rfind("pthread_", 0) == 0) {
      ++locks;
      CHECK(call.live);
    }
  CHECK(locks == 10);
}

TEST_CASE("V87: a thread that waits for a condition can be cancelled") {
  static pthread_mutex_t door = PTHREAD_MUTEX_INITIALIZER;
  static pthread_cond_t never_told = PTHREAD_COND_INITIALIZER;
  static std::atomic<bool> waits{false};
  pthread_t thread;
  ::pthread_create(
      &thread, nullptr,
      [](void*) -> void* {
        ::pthread_mutex_lock(&door);
        waits = true;
        pthread_cleanup_push([](void*) { ::pthread_mutex_unlock(&door); },
                             nullptr);
        for (;;) ::pthread_cond_wait(&never_told, &door);
        pthread_cleanup_pop(1);
      },
      nullptr);
  while (!waits) std::this_thread::sleep_for(1ms);
  ::pthread_mutex_lock(&door);
  ::pthread_cancel(thread);
  ::pthread_mutex_unlock(&door);
  void* how = nullptr;
  bao::offload([&] { ::pthread_join(thread, &how); });
  CHECK(how == PTHREAD_CANCELED);
  CHECK(::pthread_mutex_trylock(&door) == 0);
  ::pthread_mutex_unlock(&door);
}
