// exceptions.cpp - errors in flows, across them, and in code that knows of none
//
//   exceptions flows       every kind of flow throws, handles and waits
//   exceptions c           C code between the flows
//   exceptions unhandled   the line that tells of an error nobody caught
//
// It is compiled twice: as it is, and with -fno-rtti.
#include "bao.hpp"

#include <signal.h>

#include <chrono>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "c_code.hpp"
#include "expect.hpp"

using namespace std::literals;

namespace {

// An error that is no std::exception, and is counted.
struct odd {
  static inline int alive = 0;
  explicit odd(int n) : number(n) { ++alive; }
  odd(const odd& other) : number(other.number) { ++alive; }
  ~odd() { --alive; }
  int number;
};

// --- across flows ------------------------------------------------------------

void errors_cross_flows() {
  std::exception_ptr at_the_source;
  auto t = bao::spawn([&] {
    bao::coroutine<> c([&] {
      bao::generator<int> source([&](auto& yield) {
        yield(1);
        try {
          throw odd(7);
        } catch (...) {
          at_the_source = std::current_exception();
          bao::yield();
          throw;
        }
      });
      bao::generator<int> outer([&](auto& yield) { yield.from(source); });
      for (int n : outer | bao::map([](int x) { return x; }) | bao::take(5))
        static_cast<void>(n);
    });
    c.switch_to();
  });
  for (int i = 0; i < 2; ++i) {
    int number = 0;
    try {
      t.get();
    } catch (const odd& e) {
      number = e.number;
      bao::yield();
      if (std::current_exception() != at_the_source) number = -1;
    }
    expect(number == 7, "Y12, S9, V8: an error stays itself on its whole way");
  }
}

void errors_are_nested() {
  auto inner = bao::spawn([] { throw std::runtime_error("inner"); });
  auto outer = bao::spawn([&] {
    bao::generator<int> g([&](auto& yield) {
      try {
        inner.get();
      } catch (...) {
        bao::yield();
        std::throw_with_nested(std::logic_error("outer"));
      }
      yield(1);
    });
    g.next();
  });
  std::string seen;
  try {
    outer.get();
  } catch (const std::logic_error& e) {
    seen += e.what();
    bao::yield();
    try {
      throw;
    } catch (const std::nested_exception& n) {
      try {
        n.rethrow_nested();
      } catch (const std::runtime_error& cause) {
        bao::yield();
        seen += ' ';
        seen += cause.what();
      }
    }
  }
  expect(seen == "outer inner", "X13: an error tells its cause: " + seen);
}

// --- handlers that wait ------------------------------------------------------
//
// X13: each flow has exceptions of its own, in flight and in its handlers.

// Throws, waits in the handler, and in a handler within it. True if everything
// that the language says of exceptions has been so.
template <class Wait>
bool handles(int number, Wait wait) {
  bool right = std::current_exception() == nullptr;
  try {
    throw odd(number);
  } catch (const odd& outer) {
    wait();
    try {
      throw std::runtime_error(std::to_string(number));
    } catch (const std::runtime_error& inner) {
      wait();
      right = right && inner.what() == std::to_string(number);
      try {
        throw;
      } catch (const std::runtime_error& again) {
        right = right && &again == &inner;
      }
    }
    wait();
    try {
      throw;
    } catch (const odd& again) {
      right = right && &again == &outer && again.number == number;
    }
    right = right && std::current_exception() != nullptr;
  }
  wait();
  return right && std::current_exception() == nullptr &&
         std::uncaught_exceptions() == 0;
}

void handlers_wait_in_all_flows() {
  bool in_generator = false, in_stage = false, in_coroutine = false;
  bool in_child = false;

  bao::generator<int> g(
      [&](auto& yield) { in_generator = handles(1, [&] { yield(0); }); });
  auto line = bao::from(std::vector<int>(9)) |
              bao::stage<int>([&](auto& in, auto& yield) {
                in_stage = handles(2, [&] {
                  in.next();
                  yield(0);
                });
              });
  bao::coroutine<> c([&] {
    bao::coroutine<> child([&] {
      in_child = handles(3, [] { bao::main_coroutine().switch_to(); });
    });
    in_coroutine = handles(4, [&] { child.switch_to(); });
    while (!child.dead()) child.switch_to();
  });
  std::vector<bao::task<bool>> tasks;
  for (int i = 5; i < 9; ++i)
    tasks.push_back(
        bao::spawn([i] { return handles(i, [] { bao::yield(); }); }));
  tasks.push_back(bao::spawn([] {
    return handles(9, [] {
      bao::generator<int> inner([](auto& yield) {
        bao::yield();
        yield(handles(10, [] { bao::yield(); }));
      });
      if (inner.next() != 1) throw std::runtime_error("inner");
    });
  }));

  bool right = false;
  try {
    throw odd(11);
  } catch (const odd& mine) {
    for (int i = 0; i < 8; ++i) {
      g.next();
      bao::yield();
      line.next();
      if (!c.dead()) c.switch_to();
      right = mine.number == 11 && std::current_exception() != nullptr;
    }
    try {
      throw;
    } catch (const odd& again) {
      right = right && &again == &mine;
    }
  }
  expect(right, "X13: the main flow's handler is its own");
  expect(in_generator, "X13: a generator's handler may yield");
  expect(in_stage, "X13: a pipeline stage's handler may yield");
  expect(in_coroutine && in_child, "X13: a coroutine's handler may switch");
  for (auto& t : tasks)
    expect(t.get(), "X13: a task's handler may wait, in inner flows as well");
}

// Waits while an exception passes, having handled another one meanwhile.
template <class Wait>
struct waits {
  ~waits() {
    right = std::uncaught_exceptions() == 1;
    wait();
    try {
      throw odd(-1);
    } catch (const odd&) {
      wait();
      right = right && std::uncaught_exceptions() == 1;
    }
    wait();
    right = right && std::uncaught_exceptions() == 1;
  }
  bool& right;
  Wait wait;
};

void destructors_wait_in_all_flows() {
  bool in_task = false, in_generator = false, in_coroutine = false;
  const auto yields = [] { bao::yield(); };
  auto t = bao::spawn([&] {
    waits<decltype(yields)> last{in_task, yields};
    throw odd(1);
  });
  auto u = bao::spawn([&] {
    bao::generator<int> g([&](auto& yield) {
      waits<decltype(yields)> last{in_generator, yields};
      yield(1);
      throw odd(2);
    });
    for (int n : g) static_cast<void>(n);
  });
  auto v = bao::spawn([&] {
    const auto switches = [] { bao::main_coroutine().switch_to(); };
    bao::coroutine<> c([&] {
      waits<decltype(switches)> last{in_coroutine, switches};
      throw odd(3);
    });
    for (;;) {
      c.switch_to();
      bao::yield();
    }
  });
  bool none_here = true;
  for (int i = 0; i < 5; ++i) {
    bao::yield();
    none_here = none_here && std::uncaught_exceptions() == 0 &&
                std::current_exception() == nullptr;
  }
  expect(none_here, "X13: what passes in other flows does not pass here");
  int sum = 0;
  for (const auto& each : {t, u, v}) try {
      each.get();
    } catch (const odd& e) {
      sum += e.number;
    }
  expect(sum == 6, "X13: each flow goes on with its own error");
  expect(in_task && in_generator && in_coroutine,
         "X13: destructors may wait while an exception passes");
}

// --- what is thrown in from outside ------------------------------------------

void errors_come_from_outside() {
  std::string seen;
  bao::generator<int> g([&](auto& yield) {
    try {
      throw odd(1);
    } catch (const odd&) {
      try {
        yield(1);
      } catch (const std::runtime_error& e) {
        seen += e.what();
        yield(2);
      }
      throw;
    }
  });
  g.next();
  g.throw_in(std::runtime_error("into a handler"));
  try {
    g.next();
  } catch (const odd& e) {
    seen += e.number == 1 ? ", and out of it" : "";
  }
  expect(seen == "into a handler, and out of it",
         "Y7, X13: an error thrown in is handled within the handler: " + seen);

  seen = "";
  auto t = bao::spawn([&] {
    try {
      try {
        throw odd(2);
      } catch (const odd&) {
        bao::sleep(1h);
      }
    } catch (const std::exception&) {
      seen = "swallowed";
    } catch (...) {
      bao::yield();
      throw;
    }
  });
  bao::yield();
  t.kill();
  expect(t.killed() && seen.empty(),
         "V11: a kill passes the handlers that wait and rethrow");

  int number = 0;
  try {
    bao::offload([] { throw odd(3); });
  } catch (const odd& e) {
    bao::yield();
    number = e.number;
  }
  expect(number == 3, "an error crosses from another thread");
}

// --- C code ------------------------------------------------------------------

void c_code_in_between() {
  // A callback that waits: so does the C code below it, each in its own task.
  std::string order;
  const auto walks = [&order](char name) {
    struct context {
      std::string& order;
      char name;
    } here{order, name};
    return call_each(
        3,
        [](void* c, int i) {
          auto& me = *static_cast<context*>(c);
          me.order += me.name;
          me.order += static_cast<char>('0' + i);
          bao::yield();
          return me.name == 'b' && i == 1 ? 77 : 0;
        },
        &here);
  };
  auto a = bao::spawn(walks, 'a');
  auto b = bao::spawn(walks, 'b');
  expect(a.get() == 0 && b.get() == 77 && order == "a0b0a1b1a2",
         "tasks wait below C code: " + order);

  // A generator whose values come out of a C loop.
  bao::generator<int> g([](auto& yield) {
    call_each(
        3,
        [](void* y, int i) {
          (*static_cast<bao::yielder<int, void>*>(y))(i * i);
          return 0;
        },
        &yield);
  });
  int sum = 0;
  for (int n : g) sum += n;
  expect(sum == 5, "a generator yields below C code");

  // An error goes around the C code, as in a program without bao.
  auto careful = bao::spawn([] {
    std::exception_ptr error;
    const int stopped = call_each(
        9,
        [](void* e, int i) {
          try {
            bao::yield();
            if (i == 2) throw odd(5);
            return 0;
          } catch (...) {
            *static_cast<std::exception_ptr*>(e) = std::current_exception();
            bao::yield();
            return i;
          }
        },
        &error);
    if (error != nullptr) std::rethrow_exception(error);
    return stopped;
  });
  int number = 0;
  try {
    careful.get();
  } catch (const odd& e) {
    number = e.number;
  }
  expect(number == 5, "an error goes around C code");

  // A kill goes through it: what lies on the stack on either side goes.
  struct counts {
    int& n;
    ~counts() { ++n; }
  };
  int gone = 0;
  auto waiting = bao::spawn([&gone] {
    const counts above{gone};
    call_each(
        9,
        [](void* n, int) {
          const counts below{*static_cast<int*>(n)};
          bao::sleep(1h);
          return 0;
        },
        &gone);
  });
  bao::yield();
  waiting.kill();
  expect(waiting.killed() && gone == 2, "a kill passes C code");
}

// --- the line on stderr ------------------------------------------------------
//
// X9: an error that nobody asked for is told once, and the same one seldom.

void lines_on_stderr() {
  expect_ending(
      0,
      "bao: nobody caught the error of task 1 (here): "
      "std::runtime_error: no luck\n"
      "bao: nobody caught the error of task 2 \"crawler\" (here): int\n"
      "bao: nobody caught the error of task 3 (here): "
      "(anonymous namespace)::odd\n"
      "bao: nobody caught the error of task 4 (here): "
      "bao::end_of_stream: gone\n",
      "X9: a line tells the task, the type and the text", [] {
        bao::spawn([] { throw std::runtime_error("no luck"); });
        bao::spawn(bao::task_options().name("crawler"), [] { throw 5; });
        bao::spawn([] { throw odd(1); });
        bao::spawn([] { throw bao::end_of_stream("gone"); });
        bao::yield();
      });

  expect_ending(0,
                "bao: nobody caught the error of task 1 (here): int\n"
                "bao: nobody caught the error of task 2 (here): int (2 times)\n"
                "bao: nobody caught the error of task 4 (here): int (4 times)\n"
                "bao: nobody caught the error of task 8 (here): int (8 times)\n"
                "bao: nobody caught the error of task 11 (here): char\n"
                "bao: nobody caught the error of task 12 (here): int\n",
                "X9: the same line comes the 1st, 2nd, 4th, 8th time", [] {
                  for (int i = 0; i < 10; ++i) bao::spawn([] { throw 5; });
                  bao::spawn([] { throw 'x'; });
                  bao::spawn([] { throw 5; });
                  bao::yield();
                });

  expect_ending(0,
                "joined\n"
                "bao: nobody caught the error of task 1 (here): int\n"
                "dropped\n",
                "X9: it comes when the last handle goes; join() asks nothing",
                [] {
                  auto t = bao::spawn([] { throw 5; });
                  bao::task<> twin = t;
                  t.join();
                  t = {};
                  std::fputs("joined\n", stderr);
                  twin = {};
                  std::fputs("dropped\n", stderr);
                });

  expect_ending(0, "", "X9: whoever has asked is not told again", [] {
    const auto fails = [] { throw 5; };
    auto got = bao::spawn(fails);
    try {
      got.get();
    } catch (int) {
    }
    auto looked_at = bao::spawn(fails);
    looked_at.join();
    static_cast<void>(looked_at.ok());
    auto inspected = bao::spawn(fails);
    inspected.join();
    static_cast<void>(inspected.error());
    bao::spawn(fails).on_done([](const auto&) {});
    bao::spawn([] { bao::sleep(1h); }).kill();
    bao::yield();
  });

  expect_ending(
      0,
      "task 1 (here), std::logic_error: mine\n"
      "bao: nobody caught the error of task 2 (here): "
      "std::logic_error: mine\n",
      "V39: on_unhandled() takes the place of the line", [] {
        const auto fails = [] { throw std::logic_error("mine"); };
        bao::on_unhandled([](const char* whose, const std::exception_ptr& e) {
          std::fprintf(stderr, "%s, %s\n", whose, bao::describe(e).c_str());
        });
        bao::spawn(fails).join();
        bao::on_unhandled(nullptr);
        bao::spawn(fails).join();
      });

  const ending how = in_a_child([] {
    auto t = bao::spawn([] { throw std::runtime_error("from a task"); });
    const auto gets = [&]() noexcept { t.get(); };
    gets();
  });
  expect(how.signal == SIGABRT && how.says("from a task") &&
             !how.says("nobody caught"),
         "an error that main() does not catch ends the program as ever: " +
             how.text);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "flows") {
    errors_cross_flows();
    errors_are_nested();
    handlers_wait_in_all_flows();
    destructors_wait_in_all_flows();
    errors_come_from_outside();
  } else if (what == "c") {
    c_code_in_between();
  } else if (what == "unhandled") {
    lines_on_stderr();
  } else {
    expect(false, "the argument names one of those above");
  }
  expect(odd::alive == 0, "no error is left over");
  return untrue;
}
