// offload.cpp - threads for what must block
#include <doctest/doctest.h>

#include "bao.hpp"
#include "checks.hpp"

#include <unistd.h>

#include <atomic>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using namespace std::literals;

TEST_CASE("V64: the result of a job comes back from another thread") {
  const std::thread::id here = std::this_thread::get_id();
  std::thread::id there = here;
  const int sum = bao::offload(
      [&there](int a, int b) {
        there = std::this_thread::get_id();
        return a + b;
      },
      3, 4);
  CHECK(sum == 7);
  CHECK((there != here));
}

TEST_CASE("a job may return nothing, or what can only be moved") {
  bool ran = false;
  bao::offload([&] { ran = true; });
  CHECK(ran);
  auto unique = bao::offload([](std::unique_ptr<int> p) { return p; },
                             std::make_unique<int>(7));
  CHECK(*unique == 7);
}

TEST_CASE("a job takes its arguments by value, and returns a value") {
  const auto length = [](std::unique_ptr<std::string> s) { return s->size(); };
  CHECK(bao::offload(length, std::make_unique<std::string>("four")) == 4);
  const std::string mine = "mine";
  const auto same = [&]() -> const std::string& { return mine; };
  static_assert(std::is_same_v<decltype(bao::offload(same)), std::string>);
  CHECK(bao::offload(same) == "mine");
  CHECK(bao::with_timeout(60s, same) == "mine");
}

TEST_CASE("a job may use our variables, by reference too") {
  std::string text = "here";
  bao::offload([](std::string& t) { t += " and there"; }, std::ref(text));
  CHECK(text == "here and there");
}

TEST_CASE("V64: the error of a job is thrown here") {
  CHECK_THROWS_WITH(
      bao::offload([]() -> int { throw std::runtime_error("failed there"); }),
      "failed there");
  CHECK_THROWS_AS(bao::offload([] { throw 1; }), int);
}

TEST_CASE("V64: other tasks run while a job does") {
  std::atomic<bool> go{false};
  auto waiter = bao::spawn([&] {
    bao::offload([&] {
      while (!go) ::usleep(1000);
    });
  });
  auto other = bao::spawn([&] { go = true; });  // else the job never ends
  CHECK(waiter.join(30s));
  CHECK(other.done());
}

TEST_CASE("V42: waiting for a helper thread is no deadlock") {
  auto t = bao::spawn([] { bao::offload([] { ::usleep(20000); }); });
  CHECK(t.join());
  bao::offload([] { ::usleep(20000); });
}

TEST_CASE("V64: more jobs than helpers: all are done, ten at most at a time") {
  crowd busy;
  std::atomic<int> done{0};
  std::vector<bao::task<>> all;
  for (int i = 0; i < 40; ++i)
    all.push_back(bao::spawn([&] {
      bao::offload([&] {
        busy.enter();
        ::usleep(5000);
        busy.leave();
        ++done;
      });
    }));
  CHECK(bao::join_all(all, 60s));
  CHECK(done == 40);
  CHECK(busy.most() <= 10);
  CHECK(busy.most() >= 2);
}

TEST_CASE("X18: a killed waiter stays until its job has ended") {
  std::atomic<bool> began{false}, go{false}, ended{false};
  bool was_ended = false;
  auto t = bao::spawn([&] {
    struct last_look {
      std::atomic<bool>& seen;
      bool& result;
      ~last_look() { result = seen; }
    } here{ended, was_ended};
    bao::offload([&] {
      began = true;
      while (!go) ::usleep(1000);
      ended = true;
    });
    bao::yield();
  });
  while (!began) bao::sleep(1ms);
  CHECK(!t.kill(10ms));
  CHECK(!t.done());
  go = true;
  CHECK(t.join(30s));
  CHECK(was_ended);
  CHECK(t.killed());
}

TEST_CASE("X18: a late waiter stays, and learns of it at its next wait") {
  std::atomic<bool> ended{false};
  bao::timeout limit(5ms);
  bao::offload([&] {
    ::usleep(50000);
    ended = true;
  });
  CHECK(ended);
  CHECK_THROWS_AS(bao::yield(), bao::timed_out);
}

TEST_CASE("X18: a thread ends when the jobs of its tasks have ended") {
  std::atomic<bool> began{false}, ended{false};
  bool unwound = false;
  std::thread([&] {
    bao::spawn([&] {
      struct guard {
        bool& gone;
        ~guard() { gone = true; }
      } here{unwound};
      bao::offload([&] {
        began = true;
        ::usleep(50000);
        ended = true;
      });
    });
    while (!began) bao::sleep(1ms);
  }).join();
  CHECK(ended);
  CHECK(unwound);
}

TEST_CASE("several threads offload at once, each gets its own results") {
  std::vector<std::thread> threads;
  std::vector<int> sums(4);
  for (std::size_t n = 0; n < sums.size(); ++n)
    threads.emplace_back([&sums, n] {
      std::vector<bao::task<int>> all;
      for (int i = 0; i < 50; ++i)
        all.push_back(bao::spawn([i, n] {
          return bao::offload([&] { return i * static_cast<int>(n); });
        }));
      for (auto& t : all) sums[n] += t.get();
    });
  for (auto& t : threads) t.join();
  for (std::size_t n = 0; n < sums.size(); ++n)
    CHECK(sums[n] == 1225 * static_cast<int>(n));
}

TEST_CASE("a job may run tasks of its own, on its thread") {
  const int n = bao::offload([] {
    auto t = bao::spawn([] { return bao::yield(), 7; });
    return t.get();
  });
  CHECK(n == 7);
}

TEST_CASE("a generator's body may offload") {
  bao::generator<int> g([](auto& yield) {
    for (int i = 0; i < 3; ++i) yield(bao::offload([i] { return i * i; }));
  });
  CHECK(g.next() == 0);
  CHECK(g.next() == 1);
  CHECK(g.next() == 4);
  CHECK(!g.next());
}

TEST_CASE("V64: jobs may offload in their turn, however many they are") {
  std::vector<bao::task<int>> all;
  for (int i = 0; i < 20; ++i)
    all.push_back(bao::spawn([i] {
      return bao::offload([i] {
        ::usleep(5000);  // until all helpers are busy
        return bao::offload([i] { return i; }) +
               static_cast<int>(bao::resolve("localhost", "80").size());
      });
    }));
  REQUIRE(bao::join_all(all, 10s));
  for (int i = 0; i < 20; ++i)
    CHECK(all[static_cast<std::size_t>(i)].get() > i);
}

// --- pools of one's own ------------------------------------------------------

TEST_CASE("V40, V64: a pool has as many threads as it was given, at most") {
  bao::thread_pool two(2);
  crowd running;
  std::atomic<int> done{0};
  std::vector<bao::task<>> tasks;
  for (int i = 0; i < 8; ++i)
    tasks.push_back(bao::spawn([&] {
      two.offload([&] {
        running.enter();
        ::usleep(2000);
        running.leave();
        ++done;
      });
    }));
  for (auto& t : tasks) t.get();
  CHECK(running.most() == 2);
  CHECK(done == 8);
  CHECK_THROWS_AS(bao::thread_pool(0), std::invalid_argument);
  CHECK_THROWS_AS(bao::thread_pool(-1), std::invalid_argument);
  CHECK_THROWS_AS(bao::thread_pool(1'000'000), std::invalid_argument);
}

TEST_CASE("V64: results and errors come back from a pool of one's own") {
  bao::thread_pool one(1);
  CHECK(one.offload([](int a, int b) { return a + b; }, 3, 4) == 7);
  CHECK_THROWS_WITH(one.offload([] { throw std::runtime_error("there"); }),
                    "there");
  auto nested = one.offload([&] { return one.offload([] { return 5; }); });
  CHECK(nested == 5);
}

TEST_CASE("V64: several threads share a pool, each with its own scheduler") {
  bao::thread_pool three(3);
  std::atomic<int> sum{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      std::vector<bao::task<>> tasks;
      for (int k = 0; k < 20; ++k)
        tasks.push_back(
            bao::spawn([&, k] { sum += three.offload([k] { return k; }); }));
      bao::join_all(tasks);
    });
  for (auto& t : threads) t.join();
  CHECK(sum == 4 * 190);
}

TEST_CASE("X18: a pool goes when its jobs are done, whoever was killed") {
  std::atomic<bool> go{false}, done{false};
  auto pool = std::make_unique<bao::thread_pool>(1);
  auto waiter = bao::spawn([&] {
    pool->offload([&] {
      while (!go) ::usleep(100);
      done = true;
    });
  });
  bao::yield();
  waiter.kill(0s);
  go = true;
  pool.reset();
  CHECK(done);
  waiter.join();
}
