// scheduler.cpp - who runs next; park and wake; how a program ends
#include <doctest/doctest.h>

#include "bao.hpp"
#include "checks.hpp"
#include "child.hpp"
#include "seeds.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using namespace std::literals;

namespace {

std::size_t times(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos;
       at = text.find(part, at + 1))
    ++n;
  return n;
}

bool is_silent_child = false;

// As in_a_child(); of what the child prints nothing is seen, and no leaks are
// looked for.
template <class F>
ending in_a_silent_child(F f) {
  return in_a_child([&] {
    is_silent_child = true;
    ::dup2(::open("/dev/null", O_WRONLY), 1);
    f();
  });
}

}  // namespace

// A child would be charged with whatever its parent still holds: LeakSanitizer,
// where there is one, asks here whether it is wanted.
extern "C" int __lsan_is_turned_off() { return is_silent_child ? 1 : 0; }

// --- who runs next -----------------------------------------------------------

TEST_CASE("V24: those that yield take turns, in the order they came") {
  std::string order;
  std::vector<bao::task<>> all;
  for (char name : {'a', 'b', 'c'})
    all.push_back(bao::spawn([&order, name] {
      for (int i = 0; i < 3; ++i) {
        order += name;
        bao::yield();
      }
    }));
  bao::join_all(all);
  CHECK(order == "abcabcabc");
}

TEST_CASE("V24: a sleep of zero or less lets all the others run once") {
  std::string order;
  auto other = bao::spawn([&] {
    order += '1';
    bao::sleep(0s);
    order += '2';
    bao::sleep(-1s);
    order += '3';
  });
  order += 'a';
  bao::sleep(0s);
  order += 'b';
  bao::sleep(-1h);
  order += 'c';
  other.join();
  CHECK(order == "a1b2c3");
}

TEST_CASE("V24: a sleep is never early, on the real clock") {
  for (const auto d : {1ns, 1000ns, 300000ns, 1500000ns}) {
    const auto start = std::chrono::steady_clock::now();
    bao::sleep(d);
    CHECK(std::chrono::steady_clock::now() - start >= d);
  }
}

TEST_CASE("V24: sleepers that are due at once wake in the order they slept") {
  bao::virtual_time clock;
  std::string order;
  std::vector<bao::task<>> all;
  const bao::deadline noon = 12h;
  for (char name = 'a'; name <= 'z'; ++name)
    all.push_back(bao::spawn([&order, name, noon] {
      bao::sleep(noon);
      order += name;
    }));
  bao::join_all(all);
  CHECK(order == "abcdefghijklmnopqrstuvwxyz");
}

TEST_CASE("those that are woken run in the order they were woken") {
  bao::scheduler& s = bao::this_scheduler();
  std::string order;
  std::vector<bao::task<>> all;
  for (char name : {'a', 'b', 'c'})
    all.push_back(bao::spawn([&order, name] {
      wait_for_ever();
      order += name;
    }));
  bao::yield();
  for (int i : {2, 0, 1})
    CHECK(s.wake(all[static_cast<std::size_t>(i)].checked("test")));
  bao::join_all(all);
  CHECK(order == "cab");
}

TEST_CASE("V24: a storm of yields does not starve the timers") {
  bao::virtual_time clock;
  bool over = false;
  auto sleeper = bao::spawn([&] { bao::sleep(1s), over = true; });
  int turns = 0;
  for (; !over && turns < 100'000; ++turns) {
    clock.advance(1ms);
    bao::yield();
  }
  CHECK(over);
  CHECK(turns >= 1000);
  CHECK(turns < 10'000);
  sleeper.join();
}

TEST_CASE("V24: a storm of yields does not starve other threads") {
  bool over = false;
  bao::remote home = bao::this_scheduler().remote();
  std::thread other(
      [home, &over]() mutable { home.post([&] { over = true; }); });
  other.join();
  int turns = 0;
  for (; !over && turns < 100'000; ++turns) bao::yield();
  CHECK(over);
}

TEST_CASE("V23: each thread has its own tasks, made on first use") {
  bao::scheduler* const here = &bao::this_scheduler();
  CHECK(here == &bao::this_scheduler());
  bao::scheduler* there = nullptr;
  std::thread([&] { there = &bao::this_scheduler(); }).join();
  CHECK(there != here);
}

// --- park and wake -----------------------------------------------------------

TEST_CASE_SEEDS("wake ends a park, once, and says whether it did") {
  bao::scheduler& s = bao::this_scheduler();
  int woken = 0;
  auto t = bao::spawn([&] {
    while (s.park(bao::never, {"waiting"})) ++woken;
  });
  CHECK(!s.wake(t.checked("test")));  // it has not begun
  bao::sleep(1us);
  CHECK(s.wake(t.checked("test")));
  CHECK(!s.wake(t.checked("test")));  // it is ready already
  CHECK(woken == 0);
  bao::sleep(1us);
  CHECK(woken == 1);
  CHECK(!s.wake(s.running()));
  t.kill();
  CHECK(!s.wake(t.checked("test")));  // it has ended
}

TEST_CASE("a park says that its deadline has passed, and is not early") {
  bao::virtual_time clock;
  const auto start = bao::now();
  CHECK(!bao::this_scheduler().park(1s, {"waiting"}));
  CHECK(bao::now() - start == 1s);
}

TEST_CASE_SEEDS("V44: who is woken by the wrong party goes on waiting") {
  bao::scheduler& s = bao::this_scheduler();
  const auto start = bao::now();
  auto sleeper = bao::spawn([] {
    bao::sleep(3s);
    return bao::now();
  });
  const std::vector<bao::task<>> all{sleeper};
  auto joins = bao::spawn([&] { return sleeper.join(), bao::now(); });
  auto joins_any = bao::spawn([&] { return bao::join_any(all), bao::now(); });
  auto reads = bao::spawn([&] {
    for (auto& t : bao::as_completed(all)) t.join();
    return bao::now();
  });
  bao::sleep(1s);
  for (auto* each : {&sleeper, &joins, &joins_any, &reads}) {
    CHECK(s.wake(each->checked("test")));
    bao::yield();
    CHECK(!each->done());
  }
  for (auto* each : {&sleeper, &joins, &joins_any, &reads})
    CHECK(each->get() - start == 3s);
}

TEST_CASE("when tasks begin to compute, others are late once") {
  bao::virtual_time clock;
  bool computes = false;
  auto worker = bao::spawn([&] {
    for (;; bao::yield())
      if (computes) clock.advance(1ms);
  });
  for (int i = 0; i < 5000; ++i) bao::yield();
  computes = true;
  bao::sleep(1ms);  // for as many turns as those before had time for
  const auto begin = bao::now();
  for (int i = 0; i < 5; ++i) bao::sleep(1ms);
  CHECK(bao::now() - begin <= 20ms);
  worker.kill();
}

TEST_CASE_SEEDS("X12: a park whose deadline has passed suspends nobody") {
  bao::scheduler& s = bao::this_scheduler();
  const auto earlier = bao::now();
  bao::sleep(1ms);  // after which the clock is looked at
  bool other_ran = false;
  auto other = bao::spawn([&] { other_ran = true; });
  CHECK(!s.park(0s, {"waiting"}));
  CHECK(!s.park(bao::at_once, {"waiting"}));
  CHECK(!s.park(earlier, {"waiting"}));
  CHECK(!other_ran);
  CHECK(!s.park(bao::now(), {"waiting"}));  // this may suspend
  other.join();
}

TEST_CASE("a wake and the deadline fall together: the first cause wins") {
  // The clock is looked at every so many turns: in some of these rounds it
  // happens between the wake and the turn of the one that was woken.
  bao::virtual_time clock;
  bao::scheduler& s = bao::this_scheduler();
  for (int round = 0; round < 1000; ++round) {
    bool woken = false;
    int passes = 0;
    auto t = bao::spawn([&] {
      woken = s.park(1s, {"waiting"});
      ++passes;
      bao::yield();
    });
    auto bystander = bao::spawn([] { bao::yield(); });
    bao::yield();
    REQUIRE(s.wake(t.checked("test")));
    clock.advance(2s);
    bao::join_all(t, bystander);
    REQUIRE(woken);
    REQUIRE(passes == 1);
  }
}

TEST_CASE("of two that are due at once, the second finds the first awake") {
  bao::virtual_time clock;
  bao::scheduler& s = bao::this_scheduler();
  const bao::deadline noon = 12h;
  bool second_woke_first = true, first_was_woken = true;
  auto first = bao::spawn([&] { first_was_woken = s.park(noon, {"waiting"}); });
  auto second = bao::spawn([&] {
    bao::sleep(noon);
    second_woke_first = s.wake(first.checked("test"));
  });
  bao::join_all(first, second);
  CHECK(!first_was_woken);
  CHECK(!second_woke_first);
}

TEST_CASE_SEEDS(
    "V11: a kill of a task that was woken is met at its next park") {
  bao::scheduler& s = bao::this_scheduler();
  std::string log;
  auto t = bao::spawn([&] {
    log += s.park(bao::never, {"waiting"}) ? "woken " : "late ";
    try {
      bao::sleep(1h);
      log += "slept ";
    } catch (const bao::killed&) {
      log += "killed";
      throw;
    }
  });
  bao::sleep(1us);
  s.wake(t.checked("test"));
  t.kill();
  CHECK(log == "woken killed");
}

TEST_CASE_SEEDS(
    "a park in a generator's body parks the task that has resumed it") {
  std::string log;
  bao::generator<int> ticks([](auto& yield) {
    for (int i = 1;; ++i) {
      bao::sleep(1s);
      yield(i);
    }
  });
  auto consumer = bao::spawn([&] {
    log += std::to_string(*ticks.next());
    log += std::to_string(*ticks.next());
  });
  bao::sleep(1us);
  CHECK((consumer.state() == bao::task_state::parked));
  CHECK(log.empty());
  bao::sleep(1500ms);
  CHECK(log == "1");
  consumer.join();
  CHECK(log == "12");
  CHECK(ticks.next() == 3);  // any task may resume it: now we are its consumer
}

TEST_CASE_SEEDS(
    "X15: a generator whose body waits is running for all the others") {
  bao::generator<int> g([](auto& yield) {
    bao::sleep(1s);
    yield(1);
  });
  auto first = bao::spawn([&] { return g.next().value_or(0); });
  bao::sleep(1us);
  CHECK_THROWS_AS(g.next(), bao::already_running);
  CHECK(first.get() == 1);
  CHECK(!g.next());
}

TEST_CASE_SEEDS("X15: a task cannot switch to another task's coroutine") {
  bao::coroutine<int> mine([](int) { return 7; });
  bao::coroutine<int> started(
      [](int v) { return bao::main_coroutine<int>().switch_to(v); });
  started.switch_to(1);
  auto other = bao::spawn([&] {
    CHECK_THROWS_AS(mine.switch_to(1), bao::wrong_task);
    CHECK_THROWS_AS(started.switch_to(1), bao::wrong_task);
    CHECK_THROWS_AS(started.kill(), bao::wrong_task);
    CHECK_THROWS_AS(started.throw_in(1), bao::wrong_task);
    CHECK_THROWS_AS(mine.set_parent(bao::this_coroutine()), bao::wrong_task);
    bao::coroutine<int> own([](int v) { return v + 1; });
    CHECK(own.switch_to(1) == 2);
  });
  other.get();
  CHECK(mine.switch_to(1) == 7);
  CHECK(started.switch_to(3) == 3);
}

TEST_CASE("X15: coroutines that wait park their own task only") {
  bao::virtual_time clock;
  std::string log;
  std::vector<bao::task<>> all;
  for (char name : {'a', 'b'})
    all.push_back(bao::spawn([&log, name] {
      bao::coroutine<> inside([&] {
        for (int i = 0; i < 3; ++i) {
          bao::sleep(1s);
          log += name;
          bao::main_coroutine().switch_to();
        }
      });
      for (int i = 0; i < 3; ++i) inside.switch_to();
    }));
  bao::join_all(all);
  CHECK(log == "ababab");
}

TEST_CASE_SEEDS("X13: two tasks handle exceptions of their own") {
  const auto handle = [](int mine) {
    int seen = 0;
    try {
      throw mine;
    } catch (int) {
      bao::yield();
      try {
        throw;  // the one that is handled here, not the other task's
      } catch (int n) {
        bao::yield();
        seen = n;
      }
      CHECK(std::current_exception() != nullptr);
    }
    CHECK(std::current_exception() == nullptr);
    return seen;
  };
  auto one = bao::spawn(handle, 1);
  auto two = bao::spawn(handle, 2);
  auto three = bao::spawn([] {
    for (int i = 0; i < 5; ++i) {
      CHECK(std::current_exception() == nullptr);
      CHECK(std::uncaught_exceptions() == 0);
      bao::yield();
    }
  });
  CHECK(one.get() == 1);
  CHECK(two.get() == 2);
  three.get();
}

TEST_CASE_SEEDS("X13: an exception is uncaught in its own task only") {
  struct waits {
    int& seen;
    ~waits() {
      bao::yield();
      seen = std::uncaught_exceptions();
      bao::yield();
    }
  };
  int in_one = -1, in_two = -1;
  const auto fail = [](int& seen) {
    waits here{seen};
    throw std::runtime_error("error");
  };
  auto one = bao::spawn(fail, std::ref(in_one));
  auto two = bao::spawn(fail, std::ref(in_two));
  for (int i = 0; i < 4; ++i) {
    CHECK(std::uncaught_exceptions() == 0);
    bao::yield();
  }
  CHECK_THROWS_AS(one.get(), std::runtime_error);
  CHECK_THROWS_AS(two.get(), std::runtime_error);
  CHECK(in_one == 1);
  CHECK(in_two == 1);
}

// --- deadlock ----------------------------------------------------------------

TEST_CASE_SEEDS("V42: when nothing can wake anybody, main is told") {
  auto stuck = bao::spawn(wait_for_ever);
  CHECK_THROWS_AS(stuck.join(), bao::deadlock);
  CHECK(!stuck.done());
  CHECK_THROWS_AS(wait_for_ever(), bao::deadlock);
  bao::this_scheduler().wake(stuck.checked("test"));
  CHECK(stuck.join());  // we go on as before
}

TEST_CASE_SEEDS("V42: a timer, or a remote, may still wake somebody") {
  auto stuck = bao::spawn(wait_for_ever);
  CHECK(!stuck.join(1h));
  stuck.kill();
}

TEST_CASE("V42: a deadlock is thrown in the flow of main that waits") {
  bao::generator<int> g([](auto& yield) {
    try {
      wait_for_ever();
    } catch (const bao::deadlock&) {
      yield(1);
    }
  });
  CHECK(g.next() == 1);
}

TEST_CASE("V42: a deadlock while main is shielded ends the program, with why") {
  const ending how = in_a_silent_child([] {
    auto angler = bao::spawn(wait_for_ever);
    angler.set_name("angler");
    bao::shield calm;
    angler.join();
  });
  INFO(how.text);
  CHECK(how.signal == SIGABRT);
  CHECK(how.says("deadlock"));
  CHECK(how.says("\"angler\""));
  CHECK(how.says("waiting for ever"));
}

TEST_CASE("V42: a deadlock while main unwinds ends the program, and says why") {
  const ending how = in_a_silent_child([] {
    struct waits {
      ~waits() { wait_for_ever(); }
    };
    try {
      waits here;
      throw 1;
    } catch (int) {
    }
  });
  INFO(how.text);
  CHECK(how.signal == SIGABRT);
  CHECK(how.says("waiting for ever"));
}

TEST_CASE("V42: a deadlock while a body is destroyed says why, too") {
  const ending how = in_a_silent_child([] {
    struct waits {
      waits() = default;
      waits(waits&& other) noexcept : last(std::exchange(other.last, false)) {}
      ~waits() {
        if (last) wait_for_ever();
      }
      bool last = true;
    };
    bao::coroutine<> one([here = waits()] {});
    one.switch_to();
  });
  INFO(how.text);
  CHECK(how.signal == SIGABRT);
  CHECK(how.says("waiting for ever"));
}

// --- errors that nobody has asked for ----------------------------------------

TEST_CASE(
    "X9: a line to stderr names the task, and the error's type and text") {
  const ending how = in_a_silent_child([] {
    bao::spawn(bao::task_options().name("loser"),
               [] { throw std::out_of_range("too far"); });
    auto known = bao::spawn([] { throw std::out_of_range("not this one"); });
    known.join();
    if (!known.ok()) bao::yield();
  });
  INFO(how.text);
  CHECK(how.code == 0);
  CHECK(how.says("\"loser\""));
  CHECK(how.says("std::out_of_range: too far"));
  CHECK(times(how.text, "\n") == 1);
}

TEST_CASE("X9: the same error again and again is printed ever more rarely") {
  const ending how = in_a_silent_child([] {
    for (int i = 0; i < 100; ++i)
      bao::spawn([] { throw std::runtime_error("the same"); });
    bao::yield();
    bao::spawn([] { throw std::runtime_error("another"); });
    bao::yield();
  });
  INFO(how.text);
  CHECK(how.code == 0);
  CHECK(times(how.text, "the same") == 7);  // when it came 1, 2, 4 ... 64 times
  CHECK(how.says("(64 times)"));
  CHECK(times(how.text, "another") == 1);
}

TEST_CASE("X9: the same error of tasks of another name or place is another") {
  const ending how = in_a_silent_child([] {
    const auto fail = [] { throw std::runtime_error("the same"); };
    bao::spawn(fail);
    bao::spawn(fail);
    for (const char* name : {"a", "b"})
      bao::spawn(bao::task_options().name(name), fail);
    bao::spawn(fail, bao::place::nowhere());
    bao::yield();
  });
  INFO(how.text);
  CHECK(times(how.text, "the same\n") == 5);
}

// --- kills that are not heeded -----------------------------------------------

TEST_CASE("X3: a swallowed kill comes again, and stderr names the task once") {
  const ending how = in_a_silent_child([] {
    int swallowed = 0;
    auto stubborn = bao::spawn(bao::task_options().name("stubborn"), [&] {
      while (swallowed < 5) {
        try {
          bao::sleep(1h);
        } catch (...) {
          ++swallowed;
        }
      }
    });
    bao::yield();
    stubborn.kill();
    std::fprintf(stderr, "swallowed %d\n", swallowed);
  });
  INFO(how.text);
  CHECK(how.code == 0);
  CHECK(how.says("swallowed 5\n"));
  CHECK(times(how.text, "\"stubborn\"") == 1);
  CHECK(how.says("swallowed bao::killed"));
}

TEST_CASE("X3: a loop that swallows kills does not keep the thread") {
  const ending how = in_a_silent_child([] {
    bool enough = false;
    auto stubborn = bao::spawn([&] {
      while (!enough) {
        try {
          bao::yield();
        } catch (...) {
        }
      }
    });
    bao::yield();
    if (!stubborn.kill(10ms)) std::fprintf(stderr, "it lives, and so do we\n");
    enough = true;
    if (stubborn.join(10s)) std::fprintf(stderr, "ended\n");
  });
  INFO(how.text);
  CHECK(how.code == 0);
  CHECK(how.says("it lives, and so do we\nended"));
}

TEST_CASE(
    "V38, X3: who refuses 16 times when its thread ends, ends the program") {
  const ending how = in_a_silent_child([] {
    std::thread([] {
      bao::spawn(bao::task_options().name("stubborn"), [] {
        for (;;) {
          try {
            bao::sleep(1h);
          } catch (...) {
            std::fprintf(stderr, "no\n");
          }
        }
      });
      bao::yield();
    }).join();
  });
  INFO(how.text);
  CHECK(how.signal == SIGABRT);
  CHECK(times(how.text, "no\n") >= 16);
  CHECK(times(how.text, "no\n") <= 18);
  CHECK(how.says("\"stubborn\""));
}

TEST_CASE("X3: who refuses a few times only may do so at the end as well") {
  const ending how = in_a_silent_child([] {
    bao::spawn([] {
      note here("refuser");
      for (int i = 0; i < 10; ++i) {
        try {
          bao::sleep(1h);
        } catch (...) {
        }
      }
    });
    bao::yield();
  });
  INFO(how.text);
  CHECK(how.code == 0);
  CHECK(how.says("refuser gone"));
}

// --- the end of a thread, of a program ---------------------------------------

TEST_CASE("X16: tasks that are left when main returns are unwound") {
  const ending how = in_a_silent_child([] {
    bao::spawn([] {
      note outer("outer");
      bao::generator<int> g([](auto& yield) {
        note inner("inner");
        bao::sleep(1h);
        yield(1);
      });
      g.next();
    });
    bao::spawn([argument = std::make_unique<note>("argument")] {
      std::fprintf(stderr, "a task began\n");
    });
    bao::this_scheduler().park(10ms, {"waiting"});
    bao::spawn([argument = std::make_unique<note>("unstarted")] {
      std::fprintf(stderr, "began too late\n");
    });
  });
  INFO(how.text);
  CHECK(how.code == 0);
  CHECK(how.says("inner gone\nouter gone\n"));
  CHECK(how.says("a task began\nargument gone\n"));
  CHECK(how.says("unstarted gone\n"));
  CHECK(!how.says("too late"));
}

TEST_CASE("X16: tasks that are left when a thread ends are unwound there") {
  std::string log;
  std::thread::id where, home;
  std::thread([&] {
    home = std::this_thread::get_id();
    struct notes_its_end {
      std::string& text;
      std::thread::id& ended_on;
      ~notes_its_end() {
        text += "unwound ";
        ended_on = std::this_thread::get_id();
      }
    };
    bao::spawn([&] {
      notes_its_end here{log, where};
      bao::sleep(1h);
      log += "slept ";
    });
    bao::yield();
  }).join();
  CHECK(log == "unwound ");
  CHECK((where == home));
}

TEST_CASE("X16: what is left may wait while it is unwound") {
  std::string log;
  std::thread([&] {
    bao::virtual_time* const clock = new bao::virtual_time;
    struct waits {
      std::string& text;
      ~waits() {
        bao::yield();
        bao::this_scheduler().park(1ms, {"cleaning up"});
        text += "clean ";
      }
    };
    for (int i = 0; i < 3; ++i)
      bao::spawn([&] {
        waits here{log};
        wait_for_ever();
      });
    bao::yield();
    delete clock;
  }).join();
  CHECK(log == "clean clean clean ");
}

TEST_CASE("V38, X16: what is left is killed in the order it was spawned") {
  std::string log;
  std::thread([&] {
    for (char name : {'a', 'b', 'c'})
      bao::spawn([&log, name] {
        try {
          wait_for_ever();
        } catch (...) {
          log += name;
          throw;
        }
      });
    bao::yield();
  }).join();
  CHECK(log == "abc");
}

TEST_CASE("X16: what is spawned at the end is killed as well") {
  const ending how = in_a_silent_child([] {
    std::thread([] {
      bao::spawn([] {
        struct spawns {
          ~spawns() {
            bao::spawn([] {
              note here("late child");
              bao::sleep(1h);
            });
            bao::this_scheduler().park(10ms, {"cleaning up"});
          }
        } here;
        bao::sleep(1h);
      });
      bao::yield();
    }).join();
    std::fprintf(stderr, "thread ended\n");
  });
  INFO(how.text);
  CHECK(how.code == 0);
  CHECK(how.says("thread ended"));
}

TEST_CASE("X16: the end of a thread pierces the handler of an earlier kill") {
  const ending how = in_a_silent_child([] {
    std::thread([] {
      auto t = bao::spawn([] {
        try {
          wait_for_ever();
        } catch (const bao::killed&) {
          note here("handler");
          wait_for_ever();
        }
      });
      bao::yield();
      t.kill(0s);
      bao::yield();
    }).join();
    std::fprintf(stderr, "thread ended\n");
  });
  INFO(how.text);
  CHECK(how.code == 0);
  CHECK(how.says("handler gone\nthread ended"));
}

TEST_CASE("X16: who can wait for nothing at the end is named, and ends it") {
  const ending how = in_a_silent_child([] {
    std::thread([] {
      bao::spawn(bao::task_options().name("hermit"), [] {
        bao::shield calm;
        wait_for_ever();
      });
      bao::yield();
    }).join();
  });
  INFO(how.text);
  CHECK(how.signal == SIGABRT);
  CHECK(how.says("\"hermit\""));
  CHECK(how.says("waiting for ever"));
}

TEST_CASE("X16: a handle may outlive its thread, and go elsewhere") {
  bao::task<std::string> left;
  std::thread([&] {
    left = bao::spawn([] { return std::string(100, 'x'); });
    left.join();
  }).join();
  CHECK_THROWS_AS(left.get(), bao::wrong_thread);
  left = {};
}

TEST_CASE("X23: exit() in a task does not unwind it, and does no harm") {
  const ending how = in_a_silent_child([] {
    static note at_exit("static");
    static thread_local note at_thread_end("thread-local");
    CHECK(at_thread_end.word != nullptr);
    bao::spawn([] {
      note here("waiter");
      bao::sleep(1h);
    });
    bao::spawn([] {
      note here("caller");
      std::exit(0);
    });
    bao::sleep(1h);
  });
  INFO(how.text);
  CHECK(how.code == 0);
  CHECK(how.says("static gone"));
  CHECK(how.says("thread-local gone"));
  CHECK(!how.says("caller gone"));
  CHECK(!how.says("waiter gone"));
}

TEST_CASE("X23: exit() in a generator's body in a task does no harm") {
  const ending how = in_a_silent_child([] {
    bao::spawn([] {
      bao::generator<int> g([](auto& yield) {
        yield(1);
        std::exit(0);
      });
      g.next();
      g.next();
    });
    bao::sleep(1h);
  });
  INFO(how.text);
  CHECK(how.code == 0);
}
