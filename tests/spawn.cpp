// spawn.cpp - spawn, join, get, kill
#include <doctest/doctest.h>

#include "bao.hpp"
#include "checks.hpp"
#include "seeds.hpp"

#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

using namespace std::literals;

namespace {

// The last error that nobody caught, while one of these lives.
struct unhandled_errors {
  unhandled_errors()
      : before(bao::on_unhandled(
            [](const char* whose, const std::exception_ptr& error) {
              ++count;
              last = whose + ": "s + bao::describe(error);
            })) {
    count = 0;
    last.clear();
  }
  ~unhandled_errors() { bao::on_unhandled(before); }

  bao::unhandled_handler before;
  static inline int count = 0;
  static inline std::string last;
};

}  // namespace

// --- spawn -------------------------------------------------------------------

TEST_CASE_SEEDS("V1: a spawned task runs when we wait, never at once") {
  bool ran = false;
  auto t = bao::spawn([&] { ran = true; });
  CHECK(!ran);
  bao::sleep(1us);
  CHECK(ran);
  CHECK(t.done());
}

TEST_CASE("V42: a task that is never to start is no reason to wait") {
  bao::virtual_time clock;
  auto t = bao::spawn_later(bao::never, [] {});
  CHECK_THROWS_AS(t.join(), bao::deadlock);
  t.kill();
  CHECK(t.done());
}

TEST_CASE("V1: tasks begin in the order in which they were spawned") {
  std::string order;
  for (char name : {'a', 'b', 'c'})
    bao::spawn([&order, name] { order += name; });
  bao::yield();
  CHECK(order == "abc");
}

TEST_CASE_SEEDS("V1: arguments are copied, moved, or lent by std::ref") {
  std::string copied = "copied", lent = "lent";
  auto owned = std::make_unique<std::string>("owned");
  auto t = bao::spawn(
      [](std::string& a, std::unique_ptr<std::string> b, std::string& c,
         const char* d) {
        c += "!";
        return a + *b + c + d;
      },
      std::ref(copied), std::move(owned), std::ref(lent), "literal");
  copied = "changed ";
  CHECK(owned == nullptr);
  CHECK(t.get() == "changed ownedlent!literal");
  CHECK(lent == "lent!");

  auto by_value = bao::spawn([](std::string s) { return s; }, copied);
  copied = "later";
  CHECK(by_value.get() == "changed ");
}

TEST_CASE_SEEDS("V1: anything that can be invoked can be spawned") {
  struct counter {
    int add(int n) { return count += n; }
    int count = 0;
  } counter;
  struct move_only {
    std::unique_ptr<int> value;
    int operator()() && { return *value; }
  };
  CHECK(bao::spawn(&counter::add, &counter, 3).get() == 3);
  CHECK(bao::spawn(&counter::add, std::ref(counter), 3).get() == 6);
  CHECK(bao::spawn(&counter::count, &counter).get() == 6);
  CHECK(bao::spawn(move_only{std::make_unique<int>(7)}).get() == 7);
  std::function<int(int, int, int, int)> sum = [](int a, int b, int c, int d) {
    return a + b + c + d;
  };
  CHECK(bao::spawn(sum, 1, 2, 3, 4).get() == 10);
}

TEST_CASE_SEEDS(
    "V2: a task that is spawned for later starts then, and not before") {
  const auto start = bao::now();
  auto t = bao::spawn_later(
      200ms, [](int n) { return bao::now() + n * 1s; }, 2);
  CHECK(t.get() == start + 2200ms);
  auto now = bao::spawn_later(0s, [] {});
  bao::sleep(1us);
  CHECK(now.done());
}

TEST_CASE_SEEDS("V3: a task whose handle is dropped runs on") {
  bool ended = false;
  bao::spawn([&] {
    bao::sleep(1s);
    ended = true;
  });
  bao::sleep(2s);
  CHECK(ended);
}

TEST_CASE_SEEDS(
    "X21: captures live in the task, and go when its body has ended") {
  const auto captured = std::make_shared<int>(7);
  bao::task<int> t;
  {
    auto body = [captured] {
      bao::sleep(1s);
      return *captured;
    };
    t = bao::spawn(std::move(body));
  }
  bao::sleep(1us);
  CHECK(captured.use_count() == 2);
  CHECK(t.get() == 7);
  CHECK(captured.use_count() == 1);  // though we have the handle still
}

TEST_CASE_SEEDS(
    "a result may be a reference, may not be copyable, may be nothing") {
  int lent = 1;
  auto reference = bao::spawn([&]() -> int& { return lent; });
  CHECK(&reference.get() == &lent);
  CHECK(std::is_same_v<decltype(reference.get()), int&>);

  auto unique = bao::spawn([] { return std::make_unique<int>(7); });
  CHECK(*unique.get() == 7);
  CHECK(*unique.get() == 7);  // it stays in the task ...
  std::unique_ptr<int> mine = std::move(unique.get());  // ... until it is moved
  CHECK(*mine == 7);
  std::unique_ptr<int> own =
      bao::spawn([] { return std::make_unique<int>(8); }).get();
  CHECK(*own == 8);

  auto nothing = bao::spawn([] {});
  nothing.get();
  CHECK(std::is_void_v<decltype(nothing.get())>);
}

TEST_CASE_SEEDS("handles are shared; any of them will do") {
  bao::task<int> first = bao::spawn([] { return 7; });
  bao::task<int> second = first;
  const bao::task<> any = second;
  CHECK(first == second);
  CHECK(any.id() == first.id());
  first = {};
  CHECK(!first);
  CHECK(second);
  CHECK(second.get() == 7);
  any.get();  // of no type: only whether it went well
  CHECK(first != second);
}

TEST_CASE("an empty handle is nobody's") {
  const bao::task<int> none;
  CHECK(!none);
  CHECK_THROWS_AS(none.join(), std::logic_error);
  CHECK_THROWS_AS(none.get(), std::logic_error);
  CHECK_THROWS_AS(none.done(), std::logic_error);
  CHECK_THROWS_AS(none.kill(), std::logic_error);
}

TEST_CASE_SEEDS("V20: each task has an id, and a name when it is given one") {
  auto a = bao::spawn([] {});
  auto b = bao::spawn(bao::task_options().name("crawler"),
                      [] { return bao::self().name(); });
  CHECK(a.id() != b.id());
  CHECK(a.name() == "");
  a.set_name("reader");
  CHECK(a.name() == "reader");
  CHECK(b.get() == "crawler");
  CHECK(b.name() == "crawler");  // after its end as well
  CHECK(bao::self().name() == "main");
}

TEST_CASE_SEEDS("V20: a stack is as large as was asked for") {
  const auto deep = [] {
    volatile char large[600 * 1024];
    large[0] = 1;
    large[sizeof large - 1] = 2;
    return large[0] + large[sizeof large - 1];
  };
  CHECK(bao::spawn(bao::task_options().stack_size(1024 * 1024), deep).get() ==
        3);
}

TEST_CASE_SEEDS("V23: self is the task that runs") {
  bao::task<> inside;
  auto t = bao::spawn([&] { inside = bao::self(); });
  t.join();
  CHECK(inside == t);
  CHECK(bao::self() != t);
  CHECK(bao::self() == bao::self());
}

// --- results and errors ------------------------------------------------------

TEST_CASE_SEEDS("V6: the result, the error, the kill: each may be asked for") {
  auto good = bao::spawn([] { return 7; });
  auto bad = bao::spawn([]() -> int { throw std::out_of_range("bad"); });
  auto dead = bao::spawn([] { return wait_for_ever(), 1; });
  CHECK(good.error() == nullptr);  // not yet
  bao::yield();
  dead.kill();

  CHECK(good.get() == 7);
  CHECK(good.error() == nullptr);
  CHECK(!good.killed());

  CHECK_THROWS_AS(bad.get(), std::out_of_range);
  CHECK(bad.error() != nullptr);
  CHECK(!bad.killed());

  CHECK(dead.killed());
  CHECK(dead.error() == nullptr);
}

TEST_CASE_SEEDS(
    "V7: done is finished in any way, ok is finished with a value") {
  auto good = bao::spawn([] {});
  auto bad = bao::spawn([] { throw 1; });
  auto dead = bao::spawn(wait_for_ever);
  for (const auto& t : {good, bad, dead}) CHECK(!t.done());
  for (const auto& t : {good, bad, dead}) CHECK(!t.ok());
  bao::sleep(1us);
  dead.kill();
  for (const auto& t : {good, bad, dead}) CHECK(t.done());
  CHECK(good.ok());
  CHECK(!bad.ok());
  CHECK(!dead.ok());
}

TEST_CASE_SEEDS("V8: who waits too long gives up; the task goes on") {
  auto t = bao::spawn([] { return bao::sleep(2s), 7; });
  CHECK(!t.join(1s));
  CHECK(!t.done());
  CHECK(t.join(2s));
  CHECK(t.get() == 7);
}

TEST_CASE_SEEDS("V8: any number may get, as often as they like") {
  auto t = bao::spawn([] { return bao::sleep(1s), 7; });
  auto one = bao::spawn([&] { return t.get(); });
  auto two = bao::spawn([&] { return t.get() + t.get(); });
  CHECK(one.get() == 7);
  CHECK(two.get() == 14);
  CHECK(t.get() == 7);
}

TEST_CASE_SEEDS("X9: every get throws the error, the very same one") {
  auto t = bao::spawn([] { throw std::runtime_error("bad"); });
  for (int i = 0; i < 3; ++i) CHECK_THROWS_WITH(t.get(), "bad");
  try {
    t.get();
  } catch (...) {
    CHECK(std::current_exception() == t.error());
  }
}

TEST_CASE_SEEDS(
    "X9: an error that nobody asked for is told when the handle goes") {
  unhandled_errors told;
  auto t = bao::spawn(bao::task_options().name("loser"),
                      [] { throw std::out_of_range("too far"); });
  t.join();  // does not ask
  CHECK(told.count == 0);
  t = {};
  CHECK(told.count == 1);
  CHECK(told.last.find("\"loser\"") != std::string::npos);
  CHECK(told.last.find("out_of_range") != std::string::npos);
  CHECK(told.last.find("too far") != std::string::npos);
}

TEST_CASE_SEEDS(
    "V39: the error of a task that nobody holds is told at its end") {
  unhandled_errors told;
  bao::spawn([] { throw std::runtime_error("bad"); });
  bao::sleep(1us);
  CHECK(told.count == 1);
}

TEST_CASE("V39: an error that somebody asked for is not told") {
  unhandled_errors told;
  const auto fail = [] { throw std::runtime_error("bad"); };
  SUBCASE("by get") {
    auto t = bao::spawn(fail);
    CHECK_THROWS(t.get());
  }
  SUBCASE("by ok") {
    auto t = bao::spawn(fail);
    t.join();
    CHECK(!t.ok());
  }
  SUBCASE("by error") {
    auto t = bao::spawn(fail);
    t.join();
    CHECK(t.error());
  }
  SUBCASE("by on_done") {
    bao::spawn(fail).on_done([](const bao::task<>&) {});
    bao::yield();
  }
  CHECK(told.count == 0);
}

TEST_CASE_SEEDS("V39: a kill is no error") {
  unhandled_errors told;
  bao::spawn(wait_for_ever).kill();
  auto t = bao::spawn(wait_for_ever);
  bao::yield();
  t.kill();
  t = {};
  CHECK(told.count == 0);
}

TEST_CASE_SEEDS(
    "X6: get on a killed task throws task_killed, which kills nobody") {
  auto victim = bao::spawn(wait_for_ever);
  bao::yield();
  victim.kill();
  auto getter = bao::spawn([&] {
    try {
      victim.get();
    } catch (const std::runtime_error&) {
    }
    bao::yield();
    return 7;
  });
  CHECK(getter.get() == 7);
  CHECK(!victim.ok());
  CHECK_THROWS_AS(victim.get(), bao::task_killed);
}

TEST_CASE_SEEDS("X6: a getter that lets task_killed pass ends with an error") {
  auto victim = bao::spawn(wait_for_ever);
  auto getter = bao::spawn([&] { victim.get(); });
  bao::yield();
  victim.kill();
  getter.join();
  CHECK(!getter.killed());
  CHECK_THROWS_AS(getter.get(), bao::task_killed);
}

// --- join --------------------------------------------------------------------

TEST_CASE_SEEDS("X10: join does not throw the task's error") {
  auto bad = bao::spawn([] { throw std::runtime_error("bad"); });
  CHECK(bad.join());
  CHECK(bad.join(1s));
  CHECK_THROWS(bad.get());
}

TEST_CASE_SEEDS("V9: join returns at once when the task has ended") {
  auto t = bao::spawn([] {});
  t.join();
  bool other_ran = false;
  auto other = bao::spawn([&] { other_ran = true; });
  CHECK(t.join());
  CHECK(t.join(0s));
  CHECK(!other_ran);
  CHECK(!other.join(0s));  // nor does it suspend when it is late already
  CHECK(!other_ran);
  other.join();
}

TEST_CASE("V9: several may join; they go on in the order they came") {
  bao::virtual_time clock;
  std::string order;
  auto t = bao::spawn([] { bao::sleep(1s); });
  std::vector<bao::task<>> all;
  for (char name : {'a', 'b', 'c'})
    all.push_back(bao::spawn([&, name] {
      t.join();
      order += name;
    }));
  bao::join_all(all);
  CHECK(order == "abc");
}

TEST_CASE_SEEDS("V10: to join oneself is a deadlock, at once") {
  CHECK_THROWS_AS(bao::self().join(), bao::deadlock);
  auto t = bao::spawn([] { bao::self().join(); });
  CHECK_THROWS_AS(t.get(), bao::deadlock);
}

TEST_CASE_SEEDS("X11: even with a deadline: it could not but pass") {
  auto t = bao::spawn([] { bao::self().join(1h); });
  const auto start = bao::now();
  CHECK_THROWS_AS(t.get(), bao::deadlock);
  CHECK(bao::now() == start);
}

TEST_CASE_SEEDS("X12: a late join is false, a late join_any is empty") {
  std::vector<bao::task<>> all{bao::spawn(wait_for_ever)};
  CHECK(!all[0].join(1s));
  CHECK(!bao::join_all(all, 1s));
  CHECK(!bao::join_any(all, 1s));
  CHECK(bao::kill_all(all));
}

// --- kill --------------------------------------------------------------------

TEST_CASE_SEEDS("V11: a kill is thrown where the task waits, and waited for") {
  std::string log;
  auto t = bao::spawn([&] {
    struct guard {
      std::string& text;
      ~guard() { text += "unwound"; }
    } here{log};
    wait_for_ever();
    log += "went on ";
  });
  bao::sleep(1us);
  CHECK(t.kill());
  CHECK(log == "unwound");
  CHECK(t.killed());
  CHECK(t.done());
}

TEST_CASE_SEEDS("V11: a kill that does not wait") {
  auto t = bao::spawn(wait_for_ever);
  bao::sleep(1us);
  CHECK(!t.kill(0s));
  CHECK(!t.done());
  bao::sleep(1us);
  CHECK(t.killed());
}

TEST_CASE_SEEDS("V11: a late death just returns false") {
  auto t = bao::spawn([] {
    bao::shield calm;
    bao::sleep(2s);
  });
  bao::sleep(1us);
  CHECK(!t.kill(1s));
  CHECK(t.join(2s));
}

TEST_CASE_SEEDS(
    "V11: one that has not started never runs; its links are told") {
  bool ran = false, told = false;
  auto argument = std::make_shared<int>(1);
  auto t = bao::spawn([&ran, argument] { ran = true; });
  t.on_done([&](const bao::task<>& ended) {
    told = true;
    CHECK(ended.killed());
  });
  CHECK(argument.use_count() == 2);
  CHECK(t.kill());
  CHECK(told);
  CHECK(t.killed());
  CHECK(argument.use_count() == 1);
  bao::yield();
  CHECK(!ran);
}

TEST_CASE_SEEDS("V11: one that was to start later never runs either") {
  bool ran = false;
  auto t = bao::spawn_later(1s, [&] { ran = true; });
  CHECK(t.kill());
  bao::sleep(5s);
  CHECK(!ran);
}

TEST_CASE("V11: killing the unstarted keeps the others in line") {
  std::string order;
  std::vector<bao::task<>> all;
  for (char name : {'a', 'b', 'c', 'd'})
    all.push_back(bao::spawn([&order, name] { order += name; }));
  all[3].kill();
  all[1].kill();
  all.push_back(bao::spawn([&order] { order += 'e'; }));
  all[0].kill();
  bao::join_all(all);
  CHECK(order == "ce");
}

TEST_CASE_SEEDS("V11: to kill what has ended does nothing") {
  auto t = bao::spawn([] { return 7; });
  t.join();
  CHECK(t.kill());
  CHECK(!t.killed());
  CHECK(t.get() == 7);
}

TEST_CASE_SEEDS("V11: repeated kills are harmless") {
  auto t = bao::spawn(wait_for_ever);
  bao::yield();
  for (int i = 0; i < 5; ++i) t.kill(0s);
  CHECK(t.kill());
  CHECK(t.kill());
}

TEST_CASE_SEEDS("V11: who kills himself dies at the call") {
  bool went_on = false;
  auto t = bao::spawn([&] {
    bao::self().kill();
    went_on = true;
  });
  t.join();
  CHECK(t.killed());
  CHECK(!went_on);
}

TEST_CASE_SEEDS("V11: who kills himself inside a shield dies after it") {
  std::string log;
  auto t = bao::spawn([&] {
    {
      bao::shield calm;
      CHECK(!bao::self().kill());
      log += "shielded ";
    }
    bao::yield();
    log += "went on ";
  });
  t.join();
  CHECK(t.killed());
  CHECK(log == "shielded ");
}

TEST_CASE_SEEDS(
    "V11: a killed task that ends before its next wait was not killed") {
  auto t = bao::spawn([] { return bao::yield(), 7; });
  bao::sleep(1us);
  t.kill(0s);  // it is ready: its last wait is over
  const bool killed = t.join() && t.killed();
  CHECK(!killed);
  CHECK(t.get() == 7);
}

TEST_CASE_SEEDS("V11: a body that catches its kill and ends has its result") {
  auto t = bao::spawn([] {
    try {
      wait_for_ever();
    } catch (const bao::killed&) {
      return 7;
    }
    return 1;
  });
  bao::sleep(1us);
  CHECK(t.kill());
  CHECK(!t.killed());
  CHECK(t.get() == 7);
}

TEST_CASE_SEEDS(
    "V11: an error that takes the place of a kill is the task's error") {
  auto t = bao::spawn([] {
    try {
      wait_for_ever();
    } catch (const bao::killed&) {
      throw std::runtime_error("no");
    }
  });
  bao::sleep(1us);
  t.kill();
  CHECK(!t.killed());
  CHECK_THROWS_WITH(t.get(), "no");
}

TEST_CASE_SEEDS("a kill reaches a task that waits in a generator's body") {
  std::string log;
  bao::generator<int> g([&](auto& yield) {
    try {
      wait_for_ever();
    } catch (const bao::killed&) {
      log += "inner ";
      throw;
    }
    yield(1);
  });
  auto t = bao::spawn([&] {
    try {
      g.next();
    } catch (const bao::killed&) {
      log += "outer ";
      throw;
    }
  });
  bao::sleep(1us);
  t.kill();
  CHECK(log == "inner outer ");
  CHECK(t.killed());
  CHECK((g.state() == bao::flow_state::finished));
}

TEST_CASE_SEEDS(
    "a kill reaches a task that waits in a coroutine of a coroutine") {
  std::string log;
  auto t = bao::spawn([&] {
    bao::coroutine<> outer([&] {
      bao::coroutine<> inner([&] {
        try {
          wait_for_ever();
        } catch (const bao::killed&) {
          log += "inner ";
          throw;
        }
      });
      try {
        inner.switch_to();
      } catch (const bao::killed&) {
        log += "outer ";
        throw;
      }
    });
    outer.switch_to();
    log += "went on ";
  });
  bao::sleep(1us);
  t.kill();
  CHECK(log == "inner outer ");
  CHECK(t.killed());
}

TEST_CASE_SEEDS(
    "a kill leaves suspended generators of the task to their owners") {
  std::string log;
  auto t = bao::spawn([&] {
    struct guard {
      std::string& text;
      char name;
      ~guard() { text += name; }
    };
    guard last{log, 'c'};
    bao::generator<int> g([&](auto& yield) {
      guard inside{log, 'a'};
      yield(1);
    });
    g.next();
    guard first{log, 'b'};
    wait_for_ever();
  });
  bao::sleep(1us);
  t.kill();
  CHECK(log == "bac");
}

TEST_CASE("X7: the main task, and a main flow, cannot be killed") {
  const bao::task<> main = bao::self();
  CHECK_THROWS_AS(main.kill(), std::logic_error);
  CHECK_THROWS_AS(main.kill(0s), std::logic_error);
  CHECK_THROWS_AS(bao::main_coroutine().kill(), std::logic_error);
  auto t = bao::spawn([&] {
    CHECK_THROWS_AS(main.kill(), std::logic_error);
    CHECK_THROWS_AS(bao::main_coroutine().kill(), std::logic_error);
  });
  t.get();
  bao::yield();
}

TEST_CASE_SEEDS(
    "X1: a kill holds back while a destructor waits in the unwinding") {
  std::string log;
  struct waits {
    std::string& text;
    ~waits() {
      bao::sleep(1s);
      bao::yield();
      text += "waited ";
    }
  };
  auto t = bao::spawn([&] {
    try {
      waits here{log};
      throw std::runtime_error("error");
    } catch (const std::runtime_error&) {
      log += "caught ";
    }
    bao::yield();
    log += "went on ";
  });
  bao::sleep(1us);
  CHECK(log.empty());
  t.kill();
  CHECK(log == "waited caught ");
  CHECK(t.killed());
}

TEST_CASE_SEEDS("V12: destructors may wait while a kill unwinds") {
  std::string log;
  struct waits {
    std::string& text;
    ~waits() {
      bao::sleep(1s);
      text += "waited ";
    }
  };
  auto t = bao::spawn([&] {
    waits first{log};
    waits second{log};
    wait_for_ever();
  });
  bao::sleep(1us);
  t.kill(0s);
  bao::sleep(500ms);
  t.kill(0s);  // once more does not pierce a destructor
  CHECK(t.join());
  CHECK(log == "waited waited ");
  CHECK(t.killed());
}

TEST_CASE_SEEDS(
    "V12: a shield protects destructors that run without an exception") {
  std::string log;
  struct waits {
    std::string& text;
    ~waits() {
      bao::shield calm;
      bao::sleep(1s);
      text += "waited ";
    }
  };
  auto t = bao::spawn([&] {
    { waits here{log}; }
    bao::yield();
    log += "went on ";
  });
  bao::sleep(1us);
  t.kill();
  CHECK(log == "waited ");
  CHECK(t.killed());
}

TEST_CASE_SEEDS(
    "X2: the handler of a kill may wait; a second kill pierces it") {
  std::string log;
  auto t = bao::spawn([&] {
    try {
      wait_for_ever();
    } catch (const bao::killed&) {
      bao::sleep(1s);
      bao::yield();
      log += "first ";
      bao::sleep(1h);
      log += "second ";
    }
  });
  bao::sleep(1us);
  t.kill(0s);
  bao::sleep(2s);
  CHECK(log == "first ");
  CHECK(!t.done());
  const auto start = bao::now();
  CHECK(t.kill());
  CHECK(log == "first ");
  CHECK(bao::now() == start);
  CHECK(t.killed());
}

TEST_CASE_SEEDS("X2: a generator resumed in the handler of a kill may wait") {
  std::string log;
  auto t = bao::spawn([&] {
    try {
      wait_for_ever();
    } catch (const bao::killed&) {
      bao::generator<int> g([](auto& yield) {
        bao::yield();
        yield(7);
      });
      log += std::to_string(g.next().value_or(0));
      throw;
    }
  });
  bao::sleep(1us);
  t.kill();
  CHECK(log == "7");
}

TEST_CASE_SEEDS("X5: what is thrown in is met once, at the task's next wait") {
  std::string log;
  auto t = bao::spawn([&] {
    try {
      bao::sleep(1h);
    } catch (const std::out_of_range& e) {
      log += e.what();
    }
    bao::sleep(1s);
    log += " once";
  });
  bao::sleep(1us);
  const auto start = bao::now();
  t.throw_in(std::out_of_range("thrown"));
  t.get();
  CHECK(log == "thrown once");
  CHECK(bao::now() - start == 1s);
}

TEST_CASE("X5: thrown into a ready task it waits for the next wait") {
  std::string log;
  auto t = bao::spawn([&] {
    bao::yield();
    log += "ready ";
    bao::yield();
    log += "went on";
  });
  bao::yield();
  t.throw_in(std::make_exception_ptr(std::out_of_range("thrown")));
  CHECK_THROWS_AS(t.get(), std::out_of_range);
  CHECK(log == "ready ");
}

TEST_CASE_SEEDS("X5: a task that has not started ends with what is thrown in") {
  bool ran = false, told = false;
  auto t = bao::spawn([&] { ran = true; });
  t.on_done([&](const bao::task<>& ended) {
    told = true;
    CHECK(!ended.killed());
    CHECK(ended.error() != nullptr);
  });
  t.throw_in(std::out_of_range("thrown"));
  CHECK(told);
  CHECK_THROWS_AS(t.get(), std::out_of_range);
  CHECK(!ran);
}

TEST_CASE_SEEDS("X5: thrown into what has ended, it is gone") {
  auto t = bao::spawn([] { return 7; });
  t.join();
  t.throw_in(std::out_of_range("thrown"));
  CHECK(t.get() == 7);
}

TEST_CASE_SEEDS("V26: kill_all kills all first, then waits for all") {
  std::vector<bao::task<>> all;
  int began = 0;
  for (int i = 0; i < 3; ++i)
    all.push_back(bao::spawn([] {
      try {
        wait_for_ever();
      } catch (...) {
        bao::sleep(1s);
        throw;
      }
    }));
  bao::sleep(1us);
  all.push_back(bao::spawn([&] { ++began; }));
  all.push_back(all.front());  // twice is harmless
  const auto start = bao::now();
  CHECK(!bao::kill_all(all, 500ms));
  CHECK(bao::join_all(all, 10s));
  CHECK(bao::now() - start <= 1500ms);  // 1 s side by side, not 3 s
  for (const auto& t : all) CHECK(t.done());
  CHECK(began == 0);
  CHECK(bao::kill_all(std::vector<bao::task<>>()));
}

TEST_CASE_SEEDS(
    "V26: kill_all tells those after us, too, when we are among them") {
  std::vector<bao::task<>> all;
  int killed = 0;
  for (int i = 0; i < 3; ++i)
    all.push_back(bao::spawn([&, i] {
      try {
        bao::sleep(1us);
        if (i == 1) bao::kill_all(all);
        wait_for_ever();
      } catch (const bao::killed&) {
        ++killed;
        throw;
      }
    }));
  CHECK(bao::join_all(all, 10s));
  CHECK(killed == 3);
  for (const auto& t : all) CHECK(t.killed());
}

// --- on_done -----------------------------------------------------------------

TEST_CASE_SEEDS("V15: links are told at the end, in order, with the task") {
  std::string log;
  auto t = bao::spawn([&] { log += "body "; });
  for (int i : {1, 2, 3})
    t.on_done([&, i](const bao::task<>& ended) {
      CHECK(ended == t);
      CHECK(ended.done());
      log += std::to_string(i);
    });
  CHECK(log.empty());
  t.join();
  CHECK(log == "body 123");
}

TEST_CASE_SEEDS("V15: who links too late is told at once") {
  auto t = bao::spawn([] {});
  t.join();
  bool told = false;
  t.on_done([&](const bao::task<>&) { told = true; });
  CHECK(told);
}

TEST_CASE("V16: a link asks the task how it has ended") {
  std::string log;
  const auto note = [&](const bao::task<>& ended) {
    log += ended.ok() ? "ok " : ended.killed() ? "killed " : "failed ";
    if (ended.error() != nullptr) log += bao::describe(ended.error()) + ' ';
  };
  auto good = bao::spawn([] { return 7; });
  auto bad = bao::spawn([] { throw 1; });
  auto dead = bao::spawn(wait_for_ever);
  for (const auto& t : {bao::task<>(good), bad, dead}) t.on_done(note);
  bao::yield();
  dead.kill();
  CHECK(log == "ok failed int killed ");
}

TEST_CASE_SEEDS(
    "V15, V16: a link that throws stops neither the others nor the task") {
  unhandled_errors told;
  std::string log;
  auto t = bao::spawn([] { return 7; });
  t.on_done([&](const bao::task<>&) { throw std::runtime_error("link"); });
  t.on_done([&](const bao::task<>&) { log += "second"; });
  CHECK(t.get() == 7);
  CHECK(log == "second");
  CHECK(told.count == 1);
  CHECK(told.last.find("link") != std::string::npos);
  t.on_done([](const bao::task<>&) { throw 1; });
  CHECK(told.count == 2);
}

TEST_CASE_SEEDS("V15: a link may spawn, wake, link and kill") {
  std::string log;
  auto victim = bao::spawn(wait_for_ever);
  bao::yield();
  auto t = bao::spawn([] {});
  bao::task<> child;
  t.on_done([&](const bao::task<>& ended) {
    child = bao::spawn([&] { log += "spawned "; });
    victim.kill(0s);
    ended.on_done([&](const bao::task<>&) { log += "linked "; });
  });
  t.join();
  victim.join();
  child.join();
  CHECK(victim.killed());
  CHECK(log == "linked spawned ");
}

TEST_CASE("V15: a link that is never told goes with its task") {
  auto held = std::make_shared<int>(1);
  std::thread([&] {
    auto t = bao::spawn(wait_for_ever);
    t.on_done([held](const bao::task<>&) {});
    bao::yield();
  }).join();
  CHECK(held.use_count() == 1);
}

// --- several at once ---------------------------------------------------------

TEST_CASE_SEEDS("V27: join_all waits for all, however they end") {
  const auto start = bao::now();
  auto a = bao::spawn([] { bao::sleep(1s); });
  auto b = bao::spawn([] { return bao::sleep(3s), 7; });
  auto c = bao::spawn([] { bao::sleep(2s), throw std::runtime_error("bad"); });
  bao::join_all(a, b, c);
  CHECK(bao::now() - start == 3s);
  CHECK(c.error() != nullptr);

  std::vector<bao::task<>> all{a, b, c, a, a};
  CHECK(bao::join_all(all, 0s));
  CHECK(bao::join_all(std::vector<bao::task<>>()));
}

TEST_CASE_SEEDS("V27: join_all shares one deadline among all") {
  std::vector<bao::task<>> all;
  for (int i = 1; i <= 5; ++i)
    all.push_back(bao::spawn([i] { bao::sleep(i * 1s); }));
  const auto start = bao::now();
  CHECK(!bao::join_all(all, 3500ms));
  CHECK(bao::now() - start == 3500ms);
  CHECK(bao::join_all(all));
}

TEST_CASE_SEEDS("V27: join_any returns the first to end") {
  std::vector<bao::task<>> all;
  for (const auto d : {3s, 1s, 2s})
    all.push_back(bao::spawn([d] { bao::sleep(d); }));
  all.push_back(all[0]);
  CHECK(bao::join_any(all) == 1u);
  CHECK(bao::join_any(all) == 1u);  // it has ended already
  CHECK(!all[0].done());
  CHECK(bao::join_all(all));
  CHECK(!bao::join_any(std::vector<bao::task<>>()));
}

TEST_CASE_SEEDS(
    "V27: join_any gives up at its deadline, and lets the tasks go on") {
  std::vector<bao::task<>> all{bao::spawn([] { bao::sleep(2s); })};
  const auto start = bao::now();
  CHECK(!bao::join_any(all, 1s));
  CHECK(bao::now() - start == 1s);
  CHECK(bao::join_any(all, 5s) == 0u);
}

TEST_CASE_SEEDS(
    "V28: as_completed yields tasks in the order in which they end") {
  std::vector<bao::task<int>> all;
  for (int n : {3, 1, 2})
    all.push_back(bao::spawn([n] { return bao::sleep(n * 1s), n; }));
  all.push_back(all[1]);
  std::string order;
  for (auto& t : bao::as_completed(all)) order += std::to_string(t.get());
  CHECK(order == "1123");
  order.clear();
  for (auto& t : bao::as_completed(all)) order += std::to_string(t.get());
  CHECK(order == "3121");  // all have ended: as they stand
  for (auto& t : bao::as_completed(std::vector<bao::task<>>())) t.join();
}

TEST_CASE_SEEDS(
    "V28: who leaves as_completed early is not woken by the others") {
  std::vector<bao::task<>> all;
  for (const auto d : {1s, 2s, 3s})
    all.push_back(bao::spawn([d] { bao::sleep(d); }));
  for (auto& t : bao::as_completed(all)) {
    CHECK(t == all[0]);
    break;
  }
  CHECK(!bao::this_scheduler().park(5s, {"waiting"}));
}

TEST_CASE_SEEDS("V28: as_completed wakes nobody who waits for something else") {
  std::vector<bao::task<>> all;
  for (const auto d : {1s, 2s, 3s})
    all.push_back(bao::spawn([d] { bao::sleep(d); }));
  int n = 0;
  for (auto& t : bao::as_completed(all)) {
    CHECK(t == all[static_cast<std::size_t>(n++)]);
    CHECK(!bao::this_scheduler().park(1500ms, {"waiting"}));
  }
  CHECK(n == 3);
}

TEST_CASE_SEEDS("V28: a limit strikes in as_completed, which is over then") {
  std::vector<bao::task<>> all{bao::spawn([] { bao::sleep(1h); })};
  auto ended = bao::as_completed(all);
  {
    bao::timeout limit(1s);
    CHECK_THROWS_AS(ended.next(), bao::timed_out);
  }
  CHECK(!ended.next());
  bao::kill_all(all);
}

TEST_CASE_SEEDS("V37: join_all without arguments waits until nothing is left") {
  std::string log;
  bao::spawn([&] {
    bao::sleep(1s);
    bao::spawn_later(1h, [&] { log += "grandchild "; });
    log += "child ";
  });
  bao::spawn([&] { log += "first "; });
  bao::join_all();
  CHECK(log == "first child grandchild ");
  bao::join_all();
}

TEST_CASE_SEEDS(
    "V28: join_all without arguments may be called by a task, too") {
  bool ended = false;
  bao::spawn([&] { bao::sleep(1s), ended = true; });
  auto t = bao::spawn([&] {
    bao::join_all();
    return ended;
  });
  CHECK(t.get());
}

// --- threads -----------------------------------------------------------------

TEST_CASE("V46, X17: a task belongs to its thread, and says so elsewhere") {
  auto t = bao::spawn([] { return 7; });
  std::thread([&] {
    CHECK_THROWS_AS(t.join(), bao::wrong_thread);
    CHECK_THROWS_AS(t.get(), bao::wrong_thread);
    CHECK_THROWS_AS(t.kill(), bao::wrong_thread);
    CHECK_THROWS_AS(t.done(), bao::wrong_thread);
    CHECK_THROWS_AS(t.throw_in(1), bao::wrong_thread);
    CHECK_THROWS_AS(t.on_done([](const bao::task<>&) {}), bao::wrong_thread);
    CHECK_THROWS_AS(bao::task<int>{t}, bao::wrong_thread);
    bao::yield();
    CHECK_THROWS_AS(t.join(), bao::wrong_thread);
  }).join();
  CHECK(t.get() == 7);
}

TEST_CASE("X17: wrong_thread names both threads") {
  auto t = bao::spawn([] {});
  std::string text;
  const unsigned our_number = bao::this_thread_state().number;
  unsigned their_number = 0;
  std::thread([&] {
    their_number = bao::this_thread_state().number;
    try {
      t.join();
    } catch (const bao::wrong_thread& e) {
      text = e.what();
    }
  }).join();
  CHECK(text == "join: this task belongs to thread " +
                    std::to_string(our_number) + "; we are thread " +
                    std::to_string(their_number));
  t.join();
}

TEST_CASE("V46: a thread whose tasks have ended takes no others") {
  for (bool keeps : {false, true}) {
    static std::string text;
    text.clear();
    std::thread([keeps] {
      struct last_words {
        bao::task<> kept;
        ~last_words() {
          try {
            bao::yield();
          } catch (const std::logic_error& e) {
            text = e.what();
          }
        }
      };
      static thread_local last_words here;
      if (keeps) here.kept = bao::spawn([] {});
      bao::yield();
    }).join();
    CHECK(text.find("this thread has ended") != std::string::npos);
  }
}

// Waits for its tasks when it goes.
struct nursery {
  std::vector<bao::task<>> tasks;
  nursery() = default;
  nursery(nursery&&) = default;
  ~nursery() { bao::kill_all(tasks); }
};

TEST_CASE_SEEDS(
    "V11: what is killed before its start never runs, whatever it owns") {
  bool ran = false;
  nursery n;
  n.tasks.push_back(bao::spawn([] { bao::sleep(1h); }));
  bao::yield();
  auto t = bao::spawn([&ran, owned = std::move(n)] { ran = true; });
  CHECK(t.kill());
  bao::yield();
  CHECK(!ran);
  CHECK(t.killed());
}

TEST_CASE_SEEDS(
    "V16: a callback that waits is refused, and nobody waits for ever") {
  unhandled_errors errors;
  auto other = bao::spawn([] { bao::sleep(1h); });
  bao::sleep(1us);
  auto t = bao::spawn([] {});
  bool goes_on = false;
  t.on_done([&](const bao::task<>&) {
    CHECK_THROWS_AS(bao::sleep(1ms), std::logic_error);
    CHECK_THROWS_AS(bao::yield(), std::logic_error);
    other.kill(0s);
    goes_on = true;
    other.join();
  });
  CHECK(t.join(10s));
  CHECK(goes_on);
  CHECK(errors.last ==
        "on_done: std::logic_error: on_done: a callback must not wait");
  CHECK(other.join(10s));
  CHECK_THROWS_AS(bao::self().on_done([](const bao::task<>&) {}),
                  std::logic_error);
}

TEST_CASE_SEEDS("X17: who is told of an error may ask which task it was") {
  static bao::task<> told;
  const auto before = bao::on_unhandled(
      [](const char*, const std::exception_ptr&) { told = bao::self(); });
  bao::spawn([] { throw std::runtime_error("burnt"); });
  bao::sleep(1us);
  bao::on_unhandled(before);
  REQUIRE(told);
  CHECK(told.done());
  CHECK(told.error() != nullptr);
  told = {};
}

TEST_CASE("X17: a handle may be moved to another thread and released there") {
  auto counted = std::make_shared<int>(1);
  auto t = bao::spawn([counted] { return counted; });
  t.join();
  CHECK(counted.use_count() == 2);  // the result
  std::thread([mine = std::move(t)]() mutable { mine = {}; }).join();
  CHECK(!t);
  // Handed to its owner, who looks when he waits.
  bao::this_scheduler().park(1ms, {"waiting"});
  CHECK(counted.use_count() == 1);
}

TEST_CASE("X17: several threads run tasks side by side") {
  std::vector<std::thread> threads;
  std::vector<int> sums(4);
  for (int& sum : sums)
    threads.emplace_back([&sum] {
      std::vector<bao::task<int>> all;
      for (int i = 0; i < 100; ++i)
        all.push_back(bao::spawn([i] { return bao::yield(), i; }));
      for (auto& t : all) sum += t.get();
    });
  for (auto& t : threads) t.join();
  for (int sum : sums) CHECK(sum == 4950);
}

TEST_CASE_SEEDS("V11: a handle may go while its task is killed") {
  std::optional<bao::task<>> only = bao::spawn([] { bao::sleep(1h); });
  bao::yield();
  only->on_done([&](const bao::task<>&) { only.reset(); });
  CHECK(only->kill());
  CHECK(!only);
}

TEST_CASE_SEEDS("V12: what a killed task held may wait while it is destroyed") {
  struct waits {
    bool* done;
    explicit waits(bool* d) : done(d) {}
    waits(waits&& other) noexcept : done(std::exchange(other.done, nullptr)) {}
    ~waits() {
      if (done == nullptr) return;
      bao::sleep(1s);
      *done = true;
    }
  };
  bool done = false;
  auto task = bao::spawn([w = waits(&done)] { bao::sleep(1h); });
  bao::yield();
  CHECK(task.kill());
  CHECK(done);
}

TEST_CASE("X17: a handle of a thread's main task may outlive the thread") {
  bao::task<> kept;
  std::thread([&] { kept = bao::self(); }).join();
  CHECK_THROWS_AS(static_cast<void>(kept.state()), bao::wrong_thread);
}

TEST_CASE("X17: what another thread lets go of may wait while it is unwound") {
  bao::virtual_time clock;
  bool unwound = false;
  struct waits {
    bool& done;
    ~waits() {
      bao::sleep(1s);
      done = true;
    }
  };
  bao::generator<int> counting([&](auto& yield) {
    waits at_end{unwound};
    yield(1);
  });
  counting.next();
  std::thread([moved = std::move(counting)]() mutable {
    bao::generator<int> gone(std::move(moved));
  }).join();
  auto sleeper = bao::spawn([] { bao::sleep(10ms); });
  bao::spawn([] {});
  sleeper.join();
  bao::sleep(2s);
  CHECK(unwound);
}

// --- what a task owns when there is nothing to unwind it on ------------------

namespace {

// A generator that stands in the middle of its body, and waits where it ends.
bao::generator<int> lingering(int& gone) {
  struct waits {
    int& count;
    ~waits() {
      bao::sleep(1ms);
      ++count;
    }
  };
  bao::generator<int> g([&gone](auto& yield) {
    const waits at_end{gone};
    yield(1);
  });
  g.next();
  return g;
}

bao::task_options without_stack() {
  return bao::task_options().stack_size(std::size_t{2} << 30);
}

}  // namespace

TEST_CASE_SEEDS(
    "a task without a stack may own flows that wait while they end") {
  unhandled_errors none;
  int gone = 0;
  // Whoever parks finds the first one, whoever ends the others.
  auto first = bao::spawn(without_stack(), [g = lingering(gone)] {});
  bao::spawn([] {});
  auto second = bao::spawn(without_stack(), [g = lingering(gone)] {});
  bao::spawn([] {});
  bao::coroutine<> c([&] {
    auto g = lingering(gone);
    bao::main_coroutine().switch_to();
  });
  c.switch_to();
  auto third = bao::spawn(without_stack(), [c = std::move(c)] {});
  CHECK_THROWS_AS(first.get(), bao::stack_exhausted);
  CHECK_THROWS_AS(second.get(), bao::stack_exhausted);
  CHECK_THROWS_AS(third.get(), bao::stack_exhausted);
  bao::sleep(10s);
  CHECK(gone == 3);
  CHECK(none.count == 0);
}

TEST_CASE_SEEDS(
    "what a task without a stack owns goes with the last handle at once") {
  int gone = 0;
  auto t = bao::spawn(without_stack(), [g = lingering(gone)] {});
  t.join();
  CHECK(t.error() != nullptr);
  t = {};
  CHECK(gone == 1);
  bao::sleep(10s);
  CHECK(gone == 1);
}

TEST_CASE("what a task without a stack owns is unwound when its thread ends") {
  int gone = 0;
  unhandled_errors all;
  std::thread([&] {
    bao::virtual_time clock;
    bao::spawn(without_stack(), [g = lingering(gone)] {});
    bao::spawn(without_stack(), [g = lingering(gone)] {});
    bao::yield();
  }).join();
  CHECK(gone == 2);
}

TEST_CASE_SEEDS(
    "the callback of on_done may run flows, whatever the task ended by") {
  int sum = 0;
  const auto use_flows = [&](auto) {
    bao::generator<int> g([](auto& yield) { yield(1); });
    for (int n : g) sum += n;
    bao::coroutine<> c([&] { sum += 10; });
    c.switch_to();
  };
  auto before = bao::spawn([] {});
  auto t = bao::spawn(without_stack(), [] {});
  auto after = bao::spawn([] {});
  for (const bao::task<>& each : {before, t, after}) each.on_done(use_flows);
  bao::join_all();
  CHECK(sum == 33);
}

TEST_CASE_SEEDS(
    "a result that nobody can ask for may wait while it is unwound") {
  int gone = 0;
  bao::spawn([&gone] { return lingering(gone); });
  bao::join_all();
  CHECK(gone == 1);
}

TEST_CASE_SEEDS(
    "a result is kept for whoever hears of the end, without a handle") {
  std::string heard;
  bao::spawn([] { return "a result"s; }).on_done([&](auto t) {
    heard = t.get();
  });
  bao::join_all();
  CHECK(heard == "a result");
}
