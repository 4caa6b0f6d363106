// watchdog.cpp - tests of who is named, and who is not
#include <doctest/doctest.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "bao.hpp"
#include "child.hpp"

using namespace std::literals;

namespace {

using real = std::chrono::steady_clock;

// Keeps the thread until `done` says so, ten seconds at most.
template <class Done>
[[gnu::noinline]] bool spin(Done done) {
  const auto until = real::now() + 10s;
  while (!done())
    if (real::now() > until) return false;
  return true;
}

// The same for a certain time.
void spin_for(std::chrono::nanoseconds time) {
  const auto until = real::now() + time;
  spin([&] { return real::now() >= until; });
}

// How often a thread of ours has gone to sleep.
long sleeps() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  return used.ru_nvcsw;
}

}  // namespace

TEST_CASE("V47, V91, V93: a task that keeps its thread is named") {
  std::atomic<int> told{0};
  std::string who;
  std::chrono::nanoseconds kept{};
  int depth = 0;
  {
    bao::watchdog dog(20ms, [&](const bao::stall& s) {
      if (told == 0) {
        who = s.task;
        kept = s.kept;
        depth = s.where.depth;
      }
      ++told;
    });
    auto innocent = bao::spawn([] { bao::sleep(1ms); });
    auto culprit = bao::spawn(bao::task_options().name("culprit"),
                              [&] { CHECK(spin([&] { return told > 0; })); });
    culprit.join();
    const std::string id = std::to_string(culprit.id());
    CHECK(who.rfind("task " + id + " \"culprit\" (", 0) == 0);
    CHECK(who.find("watchdog.cpp:") != std::string::npos);
    innocent.join();
  }
  CHECK(kept >= 20ms);
#if defined(__GLIBC__) && defined(__x86_64__)
  CHECK(depth >= 4);
#endif
}

TEST_CASE("V93: a task that blocks its thread in a system call is named") {
  std::atomic<int> told{0};
  bao::watchdog dog(20ms, [&](const bao::stall&) { ++told; });
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  std::thread frees_it([&] {
    spin([&] { return told > 0; });
    CHECK(::write(ends[1], "x", 1) == 1);
  });
  char c = 0;
  CHECK(::read(ends[0], &c, 1) == 1);  // the signal does not end it
  frees_it.join();
  CHECK(told > 0);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_CASE("V93: what a signal ends is not ended before it is told of") {
  std::atomic<int> told{0};
  bao::watchdog dog(20ms, [&](const bao::stall&) { ++told; });
  const auto begin = real::now();
  ::poll(nullptr, 0, 10'000);
  CHECK(real::now() - begin >= 20ms);
  CHECK(spin([&] { return told > 0; }));
}

TEST_CASE("V93: the message names the task, for how long, and where it is") {
  const ending child = in_a_child([] {
    bao::watchdog dog(10ms);
    bao::spawn(bao::task_options().name("culprit"), [] {
      spin_for(200ms);
    }).join();
  });
  INFO(child.text);
  CHECK(child.code == 0);
  CHECK(child.says("bao: task "));
  CHECK(child.says("\"culprit\" ("));
  CHECK(child.says(" keeps its thread, for 0."));
#if defined(__GLIBC__) && defined(__x86_64__)
  CHECK(child.says("\n    "));
#endif
}

TEST_CASE("V91: the main task is named as well") {
  std::atomic<int> told{0};
  std::string who;
  bao::watchdog dog(10ms, [&](const bao::stall& s) {
    if (told == 0) who = s.task;
    ++told;
  });
  CHECK(spin([&] { return told > 0; }));
  CHECK(who == "task 0 \"main\"");
}

TEST_CASE(
    "V91, V93: a task that yields is not named, however seldom it waits") {
  std::atomic<int> told{0};
  bao::watchdog dog(400ms, [&](const bao::stall&) { ++told; });
  const auto until = real::now() + 1500ms;
  SUBCASE("alone") {
    while (real::now() < until) bao::yield();
  }
  SUBCASE("among others") {
    auto other = bao::spawn([&] {
      while (real::now() < until) bao::yield();
    });
    while (real::now() < until) bao::yield();
    other.join();
  }
  SUBCASE("whose turns take long of a sudden") {
    // The scheduler looks around every 512 turns by now, so not in the next.
    for (int i = 0; i < 200'000; ++i) bao::yield();
    while (real::now() < until) {
      spin_for(5ms);
      bao::yield();
    }
  }
  CHECK(told == 0);
}

TEST_CASE("V91: switching among the flows of one task is not giving way") {
  std::atomic<int> told{0};
  bao::watchdog dog(10ms, [&](const bao::stall&) { ++told; });
  bao::generator<int> numbers([](auto& yield) {
    for (int i = 0;; ++i) yield(i);
  });
  // Signals strike it everywhere, in the middle of a switch as well.
  CHECK(spin([&] {
    for (int i = 0; i < 100'000; ++i) numbers.next();
    return told > 2;
  }));
}

TEST_CASE("V93: who keeps on is named at 1, 2, 4 ... times the limit") {
  std::vector<std::chrono::nanoseconds> kept;
  {
    bao::watchdog dog(10ms,
                      [&](const bao::stall& s) { kept.push_back(s.kept); });
    spin_for(500ms);
  }
  REQUIRE(kept.size() >= 2);
  CHECK(kept.size() <= 6);  // 10, 20, 40, 80, 160, 320 ms
  CHECK(kept[0] >= 10ms);
  for (std::size_t i = 1; i < kept.size(); ++i)
    CHECK(kept[i] >= 2 * kept[i - 1]);
}

TEST_CASE("V93: two stalls are two, and told of in their order") {
  std::vector<std::string> names;
  std::atomic<int> stalls{0};
  {
    bao::watchdog dog(20ms, [&](const bao::stall& s) {
      if (!names.empty() && names.back() == s.task) return;
      names.push_back(s.task);
      ++stalls;
    });
    const auto culprit = [&](const char* name, int stall) {
      bao::spawn(bao::task_options().name(name), [&] {
        CHECK(spin([&] { return stalls == stall; }));
      }).join();
    };
    culprit("first", 1);
    bao::sleep(50ms);
    culprit("second", 2);
  }
  REQUIRE(names.size() == 2);
  CHECK(names[0].find("first") != std::string::npos);
  CHECK(names[1].find("second") != std::string::npos);
}

TEST_CASE("V93: a thread that sleeps is neither named nor woken") {
  std::atomic<int> told{0};
  bao::watchdog dog(4ms, [&](const bao::stall&) { ++told; });
  bao::sleep(20ms);
  const long before = sleeps();
  bao::sleep(1s);
  CHECK(told == 0);
  // To look on all the time would take hundreds of wake-ups.
  CHECK(sleeps() - before < 50);
}

TEST_CASE("V93: who wakes after a long sleep has not kept the thread") {
  std::atomic<int> told{0};
  bao::watchdog dog(400ms, [&](const bao::stall&) { ++told; });
  for (int i = 0; i < 3; ++i) {
    bao::sleep(500ms);
    spin_for(50ms);
  }
  CHECK(told == 0);
}

TEST_CASE("V48, V93: the wait of a loop of somebody else's is no stall") {
  std::atomic<int> told{0};
  bao::watchdog dog(100ms, [&](const bao::stall&) { ++told; });
  bao::scheduler& s = bao::this_scheduler();
  for (int i = 0; i < 2; ++i) {
    std::vector<pollfd> fds;
    s.prepare(fds);
    spin_for(400ms);  // poll() would end early if it were interrupted
    s.run_ready();
  }
  CHECK(told == 0);
  CHECK(spin([&] { return told > 0; }));
}

TEST_CASE("V93: each thread has its own watchdog, or none") {
  std::atomic<int> here{0}, there{0};
  bao::watchdog dog(10ms, [&](const bao::stall&) { ++here; });
  std::atomic<int> later{-1};
  std::thread other([&] {
    {
      bao::watchdog theirs(10ms, [&](const bao::stall&) { ++there; });
      CHECK(spin([&] { return there > 0; }));
    }
    const int before = there;
    spin_for(100ms);
    later = there - before;
  });
  while (later == -1) bao::sleep(1ms);
  other.join();
  CHECK(later == 0);
  CHECK(here == 0);
  CHECK_THROWS_AS(const bao::watchdog second(10ms), std::logic_error);
  CHECK(spin([&] { return here > 0; }));
}

TEST_CASE("V93: a watchdog may end at any time, and begin anew") {
  for (int i = 0; i < 200; ++i) {
    std::atomic<int> told{0};
    bao::watchdog dog(1ms, [&](const bao::stall&) { ++told; });
    if (i % 4 == 0) spin_for(std::chrono::microseconds(i * 20));  // in a stall
    if (i % 4 == 1) bao::sleep(1ms);
    if (i % 4 == 2) bao::yield();
  }
}

TEST_CASE("V93: the end of its thread ends a watchdog") {
  std::unique_ptr<bao::watchdog> left;
  std::atomic<int> told{0};
  std::thread([&] {
    left = std::make_unique<bao::watchdog>(2ms,
                                           [&](const bao::stall&) { ++told; });
    bao::sleep(1ms);
  }).join();
  const int before = told;
  spin_for(50ms);
  CHECK(told == before);
}

TEST_CASE("V93: a thread that holds signals back takes this one") {
  std::atomic<int> told{0};
  std::thread([&] {
    sigset_t all;
    sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
    bao::watchdog dog(10ms, [&](const bao::stall&) { ++told; });
    CHECK(spin([&] { return told > 0; }));
  }).join();
}

TEST_CASE("V93: a stall is real, whatever the time is said to be") {
  bao::virtual_time clock;
  std::atomic<int> told{0};
  bao::watchdog dog(400ms, [&](const bao::stall&) { ++told; });
  for (int i = 0; i < 100; ++i) bao::sleep(24h);
  clock.advance(24h);
  CHECK(told == 0);
  CHECK(spin([&] { return told > 0; }));
}

TEST_CASE("V93: on the smallest stack, and errno is left alone") {
  std::atomic<int> told{0};
  bao::watchdog dog(10ms, [&](const bao::stall&) { ++told; });
  bao::spawn(bao::task_options().stack_size(16 * 1024), [&] {
    errno = ENOENT;
    CHECK(spin([&] { return told > 0; }));
    CHECK(errno == ENOENT);
  }).join();
}

TEST_CASE("V93: a child process has no watchdog, and may make one") {
  std::atomic<int> told{0};
  bao::watchdog dog(10ms, [&](const bao::stall&) { ++told; });
  const ending child = in_a_child([&] {
    spin_for(100ms);
    if (told != 0) ::_exit(1);
    bao::watchdog own(10ms, [&](const bao::stall&) { ++told; });
    if (!spin([&] { return told > 0; })) ::_exit(2);
    bao::sleep(1ms);
  });
  CHECK(child.code == 0);
}

TEST_CASE("V93: a limit that is none is refused") {
  CHECK_THROWS_AS(const bao::watchdog none(0ms), std::invalid_argument);
  CHECK_THROWS_AS(const bao::watchdog less(-1s), std::invalid_argument);
}
