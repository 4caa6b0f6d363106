// sync.cpp - events, semaphores, locks
#include <doctest/doctest.h>

#include <memory>
#include <mutex>
#include <ostream>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "bao.hpp"
#include "checks.hpp"
#include "seeds.hpp"

using namespace std::literals;

TEST_CASE("V52: what is destroyed for another thread has locks of its own") {
  struct holder {
    bao::mutex& m;
    bao::event& may_go;
    ~holder() {
      const std::lock_guard lock(m);
      may_go.wait();
    }
  };
  bao::mutex m;
  bao::event may_go;
  auto g = std::make_unique<bao::generator<int>>([&](auto& yield) {
    const holder h{m, may_go};
    yield(1);
  });
  g->next();
  std::thread([g = std::move(g)]() mutable { g.reset(); }).join();
  while (m.try_lock()) {
    m.unlock();
    bao::sleep(1ms);
  }
  may_go.set();
  CHECK(m.lock(60s));  // and not: it is ours already
  m.unlock();
}

// --- event -------------------------------------------------------------------

TEST_CASE("V49: all who wait at an event pass, in the order of their arrival") {
  bao::event door;
  std::string order;
  std::vector<bao::task<>> tasks;
  for (char c : "abc"s)
    tasks.push_back(bao::spawn([&, c] {
      CHECK(door.wait());
      order += c;
    }));
  bao::yield();
  CHECK(order.empty());
  door.set();
  CHECK(door.is_set());
  bao::join_all(tasks);
  CHECK(order == "abc");
}

TEST_CASE("V49: an event that is set and cleared lets those pass who waited") {
  in_many_orders([] {
    bao::event door;
    int passed = 0;
    auto early = bao::spawn([&] { passed += door.wait(); });
    bao::sleep(1ms);
    door.set();
    door.clear();
    auto late = bao::spawn([&] { passed += door.wait(1s); });
    early.join();
    CHECK(passed == 1);
    late.join();
    CHECK(passed == 1);
  });
}

TEST_CASE("V49: who finds an event set does not wait") {
  bao::event door;
  door.set();
  auto other = bao::spawn([] {});
  CHECK(door.wait());
  CHECK(door.wait(0s));
  CHECK(!other.done());
  door.clear();
  CHECK(!door.is_set());
  CHECK(!door.wait(0s));
  other.join();
}

TEST_CASE("X12: who waits at an event is told when it is late, never early") {
  bao::virtual_time clock;
  bao::event door;
  const auto start = bao::now();
  CHECK(!door.wait(3s));
  CHECK(bao::now() - start == 3s);
}

// --- semaphore ---------------------------------------------------------------

TEST_CASE(
    "V51: a semaphore lets as many pass as it has units, in their order") {
  bao::semaphore slots(2);
  std::string order;
  std::vector<bao::task<>> tasks;
  for (char c : "abcd"s)
    tasks.push_back(bao::spawn([&, c] {
      CHECK(slots.acquire());
      order += c;
    }));
  bao::yield();
  CHECK(order == "ab");
  CHECK(slots.available() == 0);
  CHECK(!slots.try_acquire());
  slots.release();
  bao::yield();
  CHECK(order == "abc");
  slots.release(5);
  bao::join_all(tasks);
  CHECK(order == "abcd");
  CHECK(slots.available() == 4);
  CHECK(slots.try_acquire());
  CHECK(slots.available() == 3);
}

TEST_CASE("V51: who releases and acquires again cannot starve who waits") {
  bao::semaphore one(1);
  CHECK(one.acquire());
  bool had_it = false;
  auto waiter = bao::spawn([&] {
    one.acquire();
    had_it = true;
    one.release();
  });
  bao::yield();
  one.release();
  CHECK(!one.try_acquire());  // it is the waiter's, though that has not run
  CHECK(one.acquire());
  CHECK(had_it);
}

TEST_CASE("V51: who is late or killed takes no unit along") {
  in_many_orders([] {
    bao::semaphore one(0);
    int got = 0;
    auto late = bao::spawn([&] { got += one.acquire(1ms); });
    auto doomed = bao::spawn([&] { got += one.acquire(); });
    auto limited = bao::spawn(
        [&] { got += bao::with_timeout(1ms, [&] { one.acquire(); }); });
    auto patient = bao::spawn([&] { got += one.acquire(); });
    bao::sleep(1ms);  // the order of who is late, and of us, is open
    one.release();
    doomed.kill();
    bao::join_all(late, limited);
    one.release();
    patient.join();
    // Two units: patient has one, and one of the others the other, or nobody.
    CHECK(got + one.available() == 2);
    CHECK(got >= 1);
  });
}

TEST_CASE(
    "V52: to release more than the maximum is an error, and does nothing") {
  bao::semaphore bounded(1, 2);
  bounded.release();
  CHECK(says(text_of<std::logic_error>([&] { bounded.release(); }), "release"));
  CHECK_THROWS_AS(bounded.release(-1), std::logic_error);
  CHECK(bounded.available() == 2);
  CHECK_THROWS_AS(bao::semaphore(-1), std::invalid_argument);
  CHECK_THROWS_AS(bao::semaphore(3, 2), std::invalid_argument);
}

// --- mutex -------------------------------------------------------------------

TEST_CASE("V54: one task at a time is within a mutex, also while it waits") {
  in_many_orders([] {
    bao::mutex door;
    int inside = 0, entered = 0;
    std::vector<bao::task<>> tasks;
    for (int i = 0; i < 10; ++i)
      tasks.push_back(bao::spawn([&] {
        for (int k = 0; k < 3; ++k) {
          std::lock_guard hold(door);
          CHECK(++inside == 1);
          bao::sleep(1ms);
          CHECK(--inside == 0);
          ++entered;
        }
      }));
    for (auto& t : tasks) t.get();
    CHECK(entered == 30);
  });
}

TEST_CASE("V54: a lock is handed to the first in line, and not snatched") {
  bao::mutex door;
  door.lock();
  bool had_it = false;
  auto waiter = bao::spawn([&] {
    std::lock_guard hold(door);
    had_it = true;
  });
  bao::yield();
  door.unlock();
  CHECK(!door.try_lock());
  door.lock();
  CHECK(had_it);
  door.unlock();
}

TEST_CASE("V54: the standard's guards take bao's locks, with limits as well") {
  bao::virtual_time clock;
  bao::mutex door;
  {
    std::unique_lock hold(door);
    auto other = bao::spawn([&] {
      std::unique_lock late(door, 5ms);
      CHECK(!late);
      std::unique_lock later(door, bao::now() + 5ms);
      CHECK(!later);
      CHECK(!std::unique_lock(door, std::try_to_lock));
      CHECK(!door.lock(1ms));
    });
    other.get();
  }
  std::unique_lock free(door, std::try_to_lock);
  CHECK(free);
  free.unlock();
  bao::mutex first, second;
  std::scoped_lock both(first, second);
  CHECK(!bao::spawn([&] { return second.try_lock(); }).get());
}

TEST_CASE("X11, V10: to lock what one holds is a deadlock, at once") {
  bao::mutex door("the door");
  door.lock();
  auto other = bao::spawn([] { bao::sleep(1h); });
  const std::string text = text_of<bao::deadlock>([&] { door.lock(); });
  CHECK(says(text, "the door"));
  CHECK_THROWS_AS(door.lock(1s), bao::deadlock);
  CHECK(!door.try_lock());
  door.unlock();
  other.kill();
}

TEST_CASE("V54: to unlock what another one holds, or nobody, is an error") {
  bao::mutex door("the door");
  CHECK(says(text_of<std::logic_error>([&] { door.unlock(); }), "no task"));
  door.lock();
  auto thief = bao::spawn([&] {
    const std::string text = text_of<std::logic_error>([&] { door.unlock(); });
    CHECK(says(text, "the door"));
    CHECK(says(text, "task 0"));
  });
  thief.get();
  door.unlock();
  CHECK(door.try_lock());
  door.unlock();
}

TEST_CASE("V54: who is late or killed does not get the lock") {
  in_many_orders([] {
    bao::mutex door;
    door.lock();
    auto late = bao::spawn([&] {
      if (door.lock(1ms)) door.unlock();
    });
    auto doomed = bao::spawn([&] {
      std::lock_guard hold(door);
      bao::sleep(1h);
    });
    bool had_it = false;
    auto patient = bao::spawn([&] {
      std::lock_guard hold(door);
      had_it = true;
    });
    bao::sleep(1ms);
    doomed.kill(0s);
    door.unlock();
    doomed.join();
    late.join();
    patient.join();
    CHECK(had_it);
    CHECK(door.try_lock());
    door.unlock();
  });
}

TEST_CASE("V54: a recursive mutex is taken as often as it is released") {
  in_many_orders([] {
    bao::recursive_mutex door;
    door.lock();
    CHECK(door.try_lock());
    CHECK(door.lock(1s));
    bool had_it = false;
    auto other = bao::spawn([&] {
      CHECK(!door.try_lock());
      std::lock_guard once(door);
      std::lock_guard twice(door);
      had_it = true;
    });
    for (int i = 0; i < 2; ++i) {
      bao::sleep(1us);
      door.unlock();
      CHECK(!had_it);
    }
    door.unlock();
    other.get();
    CHECK(had_it);
    CHECK_THROWS_AS(door.unlock(), std::logic_error);
    CHECK(door.try_lock());
    door.unlock();
  });
}

TEST_CASE("V42: the report names who holds a lock, and the circle of waits") {
  bao::mutex m1("m1"), m2("m2");
  const auto take = [](bao::mutex& first, bao::mutex& second) {
    std::lock_guard one(first);
    bao::yield();
    std::lock_guard two(second);
  };
  auto a = bao::spawn(bao::task_options().name("A"), [&] { take(m1, m2); });
  auto b = bao::spawn(bao::task_options().name("B"), [&] { take(m2, m1); });
  auto c = bao::spawn(bao::task_options().name("C"), [&] { a.join(); });
  const std::string text = text_of<bao::deadlock>([&] { c.join(); });
  const auto task = [](const bao::task<>& t, const std::string& name) {
    return "task " + std::to_string(t.id()) + " \"" + name + '"';
  };
  INFO(text);
  CHECK(says(text, "locking m2, held by task " + std::to_string(b.id())));
  CHECK(says(text, task(a, "A") + " holds m1, waits for m2; " + task(b, "B") +
                       " holds m2, waits for m1\n"));
  CHECK(text.find("waits for m1") == text.rfind("waits for m1"));
  bao::kill_all(std::vector<bao::task<>>{a, b, c});
}

TEST_CASE("V42: a circle of joins is told too, without those that lead to it") {
  bao::task<> b;
  auto a = bao::spawn([&] { b.join(); });
  b = bao::spawn([&] { a.join(); });
  auto c = bao::spawn([&] { b.join(); });
  const std::string text = text_of<bao::deadlock>([&] { c.join(); });
  INFO(text);
  const auto task = [](const bao::task<>& t) {
    return "task " + std::to_string(t.id());
  };
  CHECK(says(text, "\n  " + task(a) + " waits for " + task(b) + "; " + task(b) +
                       " waits for " + task(a) + "\n"));
  CHECK(!says(text, task(c) + " waits for"));
  bao::kill_all(std::vector<bao::task<>>{a, b, c});
}

// --- shared_mutex ------------------------------------------------------------

TEST_CASE("V54: a shared mutex is shared by many, or held by one") {
  in_many_orders([] {
    bao::shared_mutex door;
    int readers = 0, writers = 0, most = 0, entered = 0;
    std::vector<bao::task<>> tasks;
    for (int i = 0; i < 12; ++i)
      tasks.push_back(bao::spawn([&, i] {
        if (i % 4 == 0) {
          std::lock_guard alone(door);
          CHECK(++writers == 1);
          CHECK(readers == 0);
          bao::sleep(1ms);
          --writers;
        } else {
          std::shared_lock share(door);
          most = std::max(most, ++readers);
          CHECK(writers == 0);
          bao::sleep(1ms);
          --readers;
        }
        ++entered;
      }));
    for (auto& t : tasks) t.get();
    CHECK(entered == 12);
    CHECK(most > 1);
  });
}

TEST_CASE("V54: who would share waits behind who waits to have it alone") {
  bao::shared_mutex door;
  door.lock_shared();
  std::string order;
  auto writer = bao::spawn([&] {
    std::lock_guard alone(door);
    order += 'w';
  });
  auto reader = bao::spawn([&] {
    std::shared_lock share(door);
    order += 'r';
  });
  bao::yield();
  CHECK(!door.try_lock_shared());
  CHECK(order.empty());
  door.unlock_shared();
  bao::join_all(writer, reader);
  CHECK(order == "wr");
}

TEST_CASE("V54: when a writer gives up, the readers behind it go on") {
  in_many_orders([] {
    bao::shared_mutex door;
    door.lock_shared();
    auto late = bao::spawn([&] { CHECK(!door.lock(1ms)); });
    bao::sleep(1us);
    auto doomed = bao::spawn([&] { door.lock(); });
    bao::sleep(1us);
    auto reader = bao::spawn([&] {
      CHECK(door.lock_shared(1h));
      door.unlock_shared();
    });
    bao::sleep(1us);
    doomed.kill();
    reader.get();
    late.get();
    door.unlock_shared();
    CHECK(door.try_lock());
    door.unlock();
  });
}

TEST_CASE("X11: misuse of a shared mutex is an error") {
  bao::shared_mutex door("ledger");
  CHECK_THROWS_AS(door.unlock(), std::logic_error);
  CHECK_THROWS_AS(door.unlock_shared(), std::logic_error);
  door.lock();
  CHECK_THROWS_AS(door.lock(), bao::deadlock);
  CHECK_THROWS_AS(door.lock_shared(), bao::deadlock);
  CHECK_THROWS_AS(door.unlock_shared(), std::logic_error);
  CHECK_THROWS_AS(bao::spawn([&] { door.unlock(); }).get(), std::logic_error);
  door.unlock();
}

// --- condition_variable ------------------------------------------------------

TEST_CASE("V54: who waits for a condition has let go of the lock meanwhile") {
  in_many_orders([] {
    bao::mutex door;
    bao::condition_variable changed;
    std::vector<int> queue;
    int sum = 0;
    std::vector<bao::task<>> takers;
    for (int i = 0; i < 3; ++i)
      takers.push_back(bao::spawn([&] {
        std::unique_lock hold(door);
        changed.wait(hold, [&] { return !queue.empty(); });
        CHECK(hold.owns_lock());
        sum += queue.back();
        queue.pop_back();
      }));
    for (int n : {1, 10, 100}) {
      bao::yield();
      std::lock_guard hold(door);
      queue.push_back(n);
      changed.notify_one();
    }
    for (auto& t : takers) t.get();
    CHECK(sum == 111);
  });
}

TEST_CASE("V54: a condition with a limit, as the standard has it") {
  bao::virtual_time clock;
  bao::mutex door;
  bao::condition_variable changed;
  std::unique_lock hold(door);
  const auto start = bao::now();
  CHECK(!changed.wait(hold, 1s));
  CHECK(!changed.wait_for(hold, 1s));
  CHECK(!changed.wait_until(hold, bao::now() + 1s, [] { return false; }));
  CHECK(changed.wait_for(hold, 1s, [] { return true; }));
  CHECK(bao::now() - start == 3s);
  CHECK(hold.owns_lock());
  auto other = bao::spawn([&] {
    std::lock_guard us(door);
    changed.notify_all();
  });
  CHECK(changed.wait(hold, 1s));
  other.get();
}

TEST_CASE("V54: who is killed while it waits has the lock when it unwinds") {
  in_many_orders([] {
    bao::mutex door;
    bao::condition_variable changed;
    bool held = false;
    auto doomed = bao::spawn([&] {
      std::unique_lock hold(door);
      struct at_end {
        bao::mutex& m;
        bool& note;
        ~at_end() { note = m.held_by_us(); }
      } note{door, held};
      changed.wait(hold);
    });
    bao::sleep(1ms);
    auto busy = bao::spawn([&] {
      std::lock_guard hold(door);
      bao::sleep(1ms);
    });
    bao::yield();
    doomed.kill();
    CHECK(held);
    busy.get();
    // The one who is notified next is one that still waits.
    bool notified = false;
    auto waiter = bao::spawn([&] {
      std::unique_lock hold(door);
      notified = changed.wait(hold, 1s);
    });
    bao::sleep(1us);
    changed.notify_one();
    waiter.get();
    CHECK(notified);
  });
}

// --- wait_group, async_result ------------------------------------------------

TEST_CASE("V57: who waits for a group passes when all is done") {
  in_many_orders([] {
    bao::wait_group all;
    CHECK(all.wait());
    int done = 0;
    for (int i = 0; i < 5; ++i) {
      all.add();
      bao::spawn([&, i] {
        bao::sleep(i * 1ms);
        ++done;
        all.done();
      });
    }
    CHECK(!all.wait(0s));
    CHECK(all.wait(1s));
    CHECK(done == 5);
    CHECK_THROWS_AS(all.done(), std::logic_error);
    all.add(2);
    CHECK_THROWS_AS(all.add(-3), std::logic_error);
    CHECK(!all.wait(1ms));
    all.add(-2);
    CHECK(all.wait());
  });
}

TEST_CASE("V50: a result is there for all who wait for it, and stays") {
  in_many_orders([] {
    bao::async_result<std::string> answer;
    CHECK(!answer.ready());
    CHECK(!answer.wait(1ms));
    auto one = bao::spawn([&] { return answer.get(); });
    auto two = bao::spawn([&] { return answer.get(1s); });
    bao::yield();
    answer.set("42");
    CHECK(one.get() == "42");
    CHECK(two.get() == "42");
    CHECK(answer.ready());
    CHECK(answer.get(0s) == "42");
    CHECK_THROWS_AS(answer.set("43"), std::logic_error);
    CHECK(answer.get() == "42");
  });
}

TEST_CASE("V50: a result may be an error, nothing, or not to be copied") {
  bao::async_result<> nothing;
  auto waiter = bao::spawn([&] { nothing.get(); });
  bao::yield();
  nothing.set();
  waiter.get();
  bao::async_result<int> failed;
  failed.set_error(std::make_exception_ptr(std::out_of_range("no")));
  CHECK(failed.wait());
  for (int i = 0; i < 2; ++i) CHECK_THROWS_AS(failed.get(), std::out_of_range);
  CHECK_THROWS_AS(failed.set(1), std::logic_error);
  CHECK_THROWS_AS(bao::async_result<>().set_error(nullptr),
                  std::invalid_argument);
  bao::async_result<std::unique_ptr<int>> moved;
  moved.set(std::make_unique<int>(7));
  CHECK(*std::move(moved.get()) == 7);
}

TEST_CASE("V50, X12: a result that does not come is an error when late") {
  bao::virtual_time clock;
  bao::async_result<int> never_set;
  try {
    never_set.get(1s);
    CHECK(false);
  } catch (const std::system_error& e) {
    CHECK(e.code() == std::errc::timed_out);
    CHECK(says(e.what(), "async_result: get: the deadline has passed"));
  }
}

// --- lines of waiting tasks --------------------------------------------------

TEST_CASE("V46: what belongs to one thread refuses another, naming both") {
  bao::event door;
  bao::semaphore slots(1);
  bao::mutex lock;
  CHECK(!door.wait(0s));
  CHECK(slots.try_acquire());
  CHECK(lock.try_lock());
  std::thread([&] {
    CHECK(says(text_of<bao::wrong_thread>([&] { door.set(); }), "event: set"));
    CHECK_THROWS_AS(door.wait(1s), bao::wrong_thread);
    CHECK_THROWS_AS(slots.acquire(), bao::wrong_thread);
    CHECK_THROWS_AS(slots.release(), bao::wrong_thread);
    CHECK_THROWS_AS(lock.lock(), bao::wrong_thread);
    CHECK_THROWS_AS(lock.try_lock(), bao::wrong_thread);
    CHECK_THROWS_AS(lock.unlock(), bao::wrong_thread);
  }).join();
  CHECK(!door.is_set());
  lock.unlock();
}

TEST_CASE("V42: who waits for something that is gone is told of") {
  auto door = std::make_unique<bao::event>();
  auto waiter = bao::spawn([&] { door->wait(); });
  bao::yield();
  door.reset();
  const std::string text = text_of<bao::deadlock>([&] { waiter.join(); });
  CHECK(says(text, "waiting for something that is gone"));
  waiter.kill();
}

TEST_CASE("V49: who is killed as it is woken has been woken") {
  // The first cause wins; the kill is met at the next wait.
  bao::semaphore one(0);
  bool got = false, more = false;
  auto waiter = bao::spawn([&] {
    got = one.acquire();
    bao::yield();
    more = true;
  });
  bao::yield();
  one.release();
  waiter.kill();
  CHECK(got);
  CHECK(!more);
  CHECK(one.available() == 0);
}

TEST_CASE("V29: a limit that is taken back as it strikes leaves us waiting") {
  bao::virtual_time clock;
  std::unique_ptr<bao::timeout> limit;
  bao::semaphore one(0);
  bool got = false;
  // Due at once with the limit, and first: so it acts when the limit has made
  // the waiter ready, and before that runs.
  auto meddler = bao::spawn([&] {
    bao::sleep(1ms);
    limit.reset();
    one.release();
  });
  auto waiter = bao::spawn([&] {
    limit = std::make_unique<bao::timeout>(1ms);
    got = one.acquire();
  });
  bao::join_all(meddler, waiter);
  CHECK(waiter.ok());
  CHECK(got);
}

TEST_CASE("V49: who is spared by its limit as it strikes has been woken too") {
  bao::virtual_time clock;
  std::unique_ptr<bao::timeout> limits[2];
  bao::event door;
  bao::mutex lock;
  bao::condition_variable changed;
  bool passed = false, notified = false;
  auto meddler = bao::spawn([&] {
    bao::sleep(1ms);
    for (auto& limit : limits) limit->cancel();
    door.set();
    door.clear();
    changed.notify_one();
  });
  auto waiter = bao::spawn([&] {
    limits[0] = std::make_unique<bao::timeout>(1ms);
    passed = door.wait(1h);
    limits[0].reset();
  });
  auto other = bao::spawn([&] {
    std::unique_lock hold(lock);
    limits[1] = std::make_unique<bao::timeout>(1ms);
    notified = changed.wait(hold, 1h);
    limits[1].reset();
  });
  const auto start = bao::now();
  bao::join_all(meddler, waiter, other);
  CHECK(passed);
  CHECK(notified);
  CHECK(bao::now() - start < 1s);
}

TEST_CASE("V46: conditions, too, belong to one thread") {
  bao::condition_variable changed;
  bao::async_result<int> answer;
  changed.notify_all();
  CHECK(!answer.wait(0s));
  std::thread([&] {
    CHECK_THROWS_AS(changed.notify_one(), bao::wrong_thread);
    CHECK_THROWS_AS(changed.notify_all(), bao::wrong_thread);
    CHECK_THROWS_AS(answer.set(1), bao::wrong_thread);
  }).join();
  answer.set(2);
  CHECK(answer.get() == 2);
}
