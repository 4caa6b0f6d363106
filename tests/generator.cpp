// generator.cpp - tests of yield, send, throw and close
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#if __cplusplus >= 202002L
#include <ranges>
#endif

#include "bao.hpp"

// --- next --------------------------------------------------------------------

TEST_CASE(
    "Y1: a generator runs nothing and takes no stack before its first use") {
  bool ran = false;
  bao::stack_pool& stacks = bao::this_thread_state().stacks;
  bao::stack* const next = stacks.take(bao::default_stack_size);
  stacks.give(next);
  {
    bao::generator<int> g([&](auto& yield) {
      ran = true;
      yield(1);
    });
    CHECK(g.state() == bao::flow_state::created);
    CHECK(stacks.take(bao::default_stack_size) == next);  // it is free still
    stacks.give(next);
  }
  CHECK(!ran);
}

TEST_CASE("Y2: next runs to the next yield and returns its value") {
  std::string steps;
  bao::generator<int> g([&](auto& yield) {
    steps += "a";
    yield(1);
    steps += "b";
    yield(2);
    steps += "c";
  });
  CHECK(g.next() == 1);
  CHECK(steps == "a");
  CHECK(g.next() == 2);
  CHECK(steps == "ab");
  CHECK(g.next() == std::nullopt);
  CHECK(steps == "abc");
}

TEST_CASE(
    "Y2: arguments are kept for the body, and a function may be the body") {
  const auto count = [](auto& yield, int from, int to) {
    for (int n = from; n < to; ++n) yield(n);
  };
  bao::generator<int> g(count, 3, 5);
  CHECK(g.next() == 3);
  CHECK(g.next() == 4);
  CHECK(!g.next());
  struct plain {
    static void body(bao::yielder<std::string, void>& yield, const char* text) {
      yield(text);
    }
  };
  bao::generator<std::string> h(plain::body, "hello");
  CHECK(h.next() == "hello");
}

TEST_CASE("Y2: a function that returns a generator may just return its body") {
  struct squares {
    static bao::generator<int> up_to(int n) {
      return [n](auto& yield) {
        for (int i = 1; i <= n; ++i) yield(i * i);
      };
    }
  };
  int sum = 0;
  for (int n : squares::up_to(4)) sum += n;
  CHECK(sum == 30);
}

TEST_CASE("Y2: a generator of nothing only says that it goes on") {
  int steps = 0;
  bao::generator<void> g([&](auto& yield) {
    ++steps;
    yield();
    ++steps;
  });
  CHECK(g.next());
  CHECK(steps == 1);
  CHECK(!g.next());
  CHECK(steps == 2);
}

TEST_CASE("Y3: past its end, a generator stays at its end") {
  bao::generator<int> g([](auto& yield) { yield(1); });
  g.next();
  for (int i = 0; i < 3; ++i) CHECK(!g.next());
  CHECK(g.state() == bao::flow_state::finished);
  CHECK(g.begin() == g.end());
}

TEST_CASE("Y3: what the body returned is the result") {
  bao::generator<int, void, std::string> g([](auto& yield) {
    yield(1);
    return "returned";
  });
  CHECK_THROWS_AS(g.result(), std::logic_error);
  g.next();
  CHECK_THROWS_AS(g.result(), std::logic_error);
  CHECK(!g.next());
  CHECK(g.result() == "returned");
  CHECK(!g.next());
  CHECK(g.result() == "returned");
}

TEST_CASE("Y3: there is no result when the body was closed or has thrown") {
  bao::generator<int, void, int> closed([](auto& yield) {
    yield(1);
    return 1;
  });
  closed.next();
  closed.close();
  CHECK_THROWS_AS(closed.result(), std::logic_error);
  bao::generator<int, void, int> thrown([](auto&) -> int { throw 1; });
  CHECK_THROWS_AS(thrown.next(), int);
  CHECK_THROWS_AS(thrown.result(), std::logic_error);
  bao::generator<int, void, int> empty;
  CHECK_THROWS_AS(empty.result(), std::logic_error);
}

// --- send --------------------------------------------------------------------

TEST_CASE("Y4: send makes its value the result of the yield") {
  bao::generator<int, int> g([](auto& yield) {
    int sent = yield(0);
    for (;;) sent = yield(sent * 10);
  });
  CHECK(g.next() == 0);
  CHECK(g.send(1) == 10);
  CHECK(g.send(2) == 20);
}

TEST_CASE("Y4: what is sent is moved into the body") {
  std::vector<int> got;
  bao::generator<void, std::unique_ptr<int>> g([&](auto& yield) {
    while (std::unique_ptr<int> p = yield()) got.push_back(*p);
  });
  g.next();
  CHECK(g.send(std::make_unique<int>(1)));
  CHECK(g.send(std::make_unique<int>(2)));
  CHECK(!g.send(nullptr));
  CHECK(got == std::vector<int>{1, 2});
}

TEST_CASE("Y4: what is sent to a generator that has ended is lost") {
  bao::generator<int, int> g([](auto&) {});
  CHECK(!g.next());
  CHECK(!g.send(1));
  bao::generator<int, int> empty;
  CHECK(!empty.send(1));
}

TEST_CASE("Y5: send is refused before the first yield") {
  bool ran = false;
  bao::generator<int, int> g([&](auto& yield) {
    ran = true;
    yield(1);
  });
  CHECK_THROWS_AS(g.send(1), bao::not_started);
  CHECK(!ran);
  CHECK(g.next() == 1);
}

TEST_CASE("Y6: next sends a default value") {
  std::vector<int> got;
  bao::generator<int, int> g([&](auto& yield) {
    for (;;) got.push_back(yield(0));
  });
  g.next();
  g.send(7);
  g.next();
  g.next();
  CHECK(got == std::vector<int>{7, 0, 0});
}

TEST_CASE("Y6: a type without a default can be sent, once the body has begun") {
  struct no_default {
    explicit no_default(int number) : n(number) {}
    int n;
  };
  bao::generator<int, no_default> g([](auto& yield) {
    int sum = 0;
    for (;;) sum += yield(sum).n;
  });
  CHECK(*g.begin() == 0);
  CHECK(g.send(no_default(3)) == 3);
  CHECK(g.send(no_default(4)) == 7);
  CHECK_THROWS_AS(g.begin(), std::logic_error);  // nothing can be sent by that
}

// --- throw_in ----------------------------------------------------------------

TEST_CASE("Y7: an exception thrown in comes out of the yield") {
  bao::generator<std::string> g([](auto& yield) {
    try {
      yield("first");
    } catch (int n) {
      yield("caught " + std::to_string(n));
    }
    yield("last");
  });
  g.next();
  CHECK(g.throw_in(5) == "caught 5");
  CHECK(g.next() == "last");
}

TEST_CASE(
    "Y7: throw_in is empty when the body catches the exception and ends") {
  bao::generator<int> g([](auto& yield) {
    try {
      yield(1);
    } catch (int) {
    }
  });
  g.next();
  CHECK(g.throw_in(5) == std::nullopt);
  CHECK(g.state() == bao::flow_state::finished);
}

TEST_CASE("Y7: what the body does not catch comes back, and has ended it") {
  bao::generator<int> g([](auto& yield) {
    yield(1);
    yield(2);
  });
  g.next();
  CHECK_THROWS_WITH_AS(g.throw_in(std::runtime_error("in and out")),
                       "in and out", std::runtime_error);
  CHECK(!g.next());
}

TEST_CASE("Y7: thrown into a fresh generator, it comes back and nothing runs") {
  auto captured = std::make_shared<int>(1);
  bool ran = false;
  bao::generator<int> g([&ran, captured](auto& yield) {
    ran = true;
    yield(1);
  });
  CHECK_THROWS_AS(g.throw_in(5), int);
  CHECK(!ran);
  CHECK(g.state() == bao::flow_state::finished);
  CHECK(captured.use_count() == 1);
  CHECK(!g.next());
}

TEST_CASE("Y7: thrown into a finished or an empty generator, it comes back") {
  bao::generator<int> finished([](auto&) {});
  finished.next();
  CHECK_THROWS_AS(finished.throw_in(5), int);
  bao::generator<int> empty;
  CHECK_THROWS_AS(empty.throw_in(std::make_exception_ptr(5)), int);
}

// --- close -------------------------------------------------------------------

TEST_CASE("Y8: close destroys what is on the stack, inner objects first") {
  std::string order;
  struct says {
    std::string& order;
    char name;
    ~says() { order += name; }
  };
  bao::generator<int> g([&](auto& yield) {
    says outer{order, 'a'};
    [&] {
      says inner{order, 'b'};
      yield(1);
    }();
    order += "never";
  });
  g.next();
  g.close();
  CHECK(order == "ba");
  CHECK(g.state() == bao::flow_state::finished);
  CHECK(!g.next());
}

TEST_CASE("Y8: a body may catch the close, and rethrow it or return") {
  for (bool rethrow : {true, false}) {
    CAPTURE(rethrow);
    bool caught = false;
    bao::generator<int> g([&](auto& yield) {
      try {
        yield(1);
      } catch (const bao::killed&) {
        caught = true;
        if (rethrow) throw;
      }
    });
    g.next();
    CHECK_NOTHROW(g.close());
    CHECK(caught);
    CHECK(g.state() == bao::flow_state::finished);
  }
}

TEST_CASE(
    "Y8: a body that yields when it is closed is reported to the closer") {
  int refusals = 0;
  bao::generator<int> g([&](auto& yield) {
    for (;;) try {
        yield(refusals);
      } catch (const bao::killed&) {
        if (++refusals == 3) throw;
      }
  });
  CHECK(g.next() == 0);
  CHECK_THROWS_AS(g.close(), bao::close_ignored);
  // It is suspended still, and can go on.
  CHECK(g.state() == bao::flow_state::suspended);
  CHECK(g.next() == 1);
  CHECK_THROWS_AS(g.close(), bao::close_ignored);
  CHECK_NOTHROW(g.close());
  CHECK(refusals == 3);
  CHECK(g.state() == bao::flow_state::finished);
}

TEST_CASE("Y8: another error of a body that is closed comes out of close") {
  bao::generator<int> g([](auto& yield) {
    try {
      yield(1);
    } catch (const bao::killed&) {
      throw std::runtime_error("cannot close");
    }
  });
  g.next();
  CHECK_THROWS_AS(g.close(), std::runtime_error);
  CHECK(g.state() == bao::flow_state::finished);
  CHECK_NOTHROW(g.close());
}

TEST_CASE(
    "Y8: to close a fresh, a finished or an empty one does nothing more") {
  bool ran = false;
  auto captured = std::make_shared<int>(1);
  bao::generator<int> fresh([&ran, captured](auto&) { ran = true; });
  CHECK_NOTHROW(fresh.close());
  CHECK(!ran);
  CHECK(captured.use_count() == 1);
  CHECK(!fresh.next());
  CHECK(!ran);
  bao::generator<int> finished([](auto&) {});
  finished.next();
  CHECK_NOTHROW(finished.close());
  CHECK_NOTHROW(finished.close());
  bao::generator<int> empty;
  CHECK_NOTHROW(empty.close());
}

TEST_CASE("Y9: the destructor closes; what escapes goes to on_unhandled") {
  static std::string told;
  told.clear();
  const auto before =
      bao::on_unhandled([](const char* whose, const std::exception_ptr& error) {
        told += whose + (": " + bao::describe(error));
      });
  {
    bao::generator<int> g([](auto& yield) {
      try {
        yield(1);
      } catch (const bao::killed&) {
        throw std::runtime_error("escaped");
      }
    });
    g.next();
  }
  bao::on_unhandled(before);
  CHECK(told.find("a generator: ") == 0);
  CHECK(told.find("escaped") != std::string::npos);
}

TEST_CASE(
    "Y9: a destructor closes until the body ends, and is told each time") {
  static int told;
  told = 0;
  const auto before =
      bao::on_unhandled([](const char*, const std::exception_ptr& error) {
        try {
          std::rethrow_exception(error);
        } catch (const bao::close_ignored&) {
          ++told;
        }
      });
  int refusals = 0;
  {
    bao::generator<int> g([&](auto& yield) {
      for (;;) try {
          yield(1);
        } catch (const bao::killed&) {
          if (++refusals == 3) throw;
        }
    });
    g.next();
  }
  bao::on_unhandled(before);
  CHECK(refusals == 3);
  CHECK(told == 2);
}

TEST_CASE("Y10: bao::killed is not caught as a std::exception") {
  bool swallowed = false;
  bao::generator<int> g([&](auto& yield) {
    try {
      yield(1);
    } catch (const std::exception&) {
      swallowed = true;
    }
  });
  g.next();
  g.close();
  CHECK(!swallowed);
  CHECK(!std::is_base_of_v<std::exception, bao::killed>);
}

// --- who may resume ----------------------------------------------------------

TEST_CASE("Y11: a generator that runs cannot be resumed, and takes no harm") {
  bao::generator<int> g;
  g = bao::generator<int>([&](auto& yield) {
    CHECK(g.state() == bao::flow_state::running);
    CHECK_THROWS_AS(g.next(), bao::already_running);
    CHECK_THROWS_AS(g.close(), bao::already_running);
    CHECK_THROWS_AS(g.throw_in(1), bao::already_running);
    CHECK_THROWS_AS(g.begin(), bao::already_running);
    yield(1);
    yield(2);
  });
  CHECK(g.next() == 1);
  CHECK(g.next() == 2);
  CHECK(!g.next());
}

TEST_CASE("Y11: what was sent to a generator that runs does not arrive later") {
  bao::generator<int, int> g;
  int got = -1;
  g = bao::generator<int, int>([&](auto& yield) {
    yield(1);
    CHECK_THROWS_AS(g.send(7), bao::already_running);
    got = yield(2);
  });
  g.next();
  g.next();
  g.next();
  CHECK(got == 0);
}

TEST_CASE("Y11: nor can one that waits for a generator which it has resumed") {
  bao::generator<int> outer;
  bao::generator<int> inner([&](auto& yield) {
    CHECK_THROWS_AS(outer.next(), bao::already_running);
    yield(1);
  });
  outer =
      bao::generator<int>([&](auto& yield) { yield(inner.next().value()); });
  CHECK(outer.next() == 1);
}

TEST_CASE("Y11: nor can one whose body has switched away") {
  bao::generator<int> g([](auto& yield) {
    bao::main_coroutine().switch_to();
    yield(1);
  });
  std::optional<int> got;
  bao::coroutine<> c([&] { got = g.next(); });
  c.switch_to();
  CHECK(g.state() == bao::flow_state::running);
  CHECK_THROWS_AS(g.next(), bao::already_running);
  CHECK_THROWS_AS(g.close(), bao::already_running);
  c.switch_to();
  CHECK(got == 1);
  CHECK(!g.next());
}

TEST_CASE("Y12: an error of the body comes out of next, the very object") {
  const std::exception* thrown = nullptr;
  const std::exception* caught = nullptr;
  bao::generator<int> g([&](auto& yield) {
    yield(1);
    try {
      throw std::runtime_error("body");
    } catch (const std::exception& e) {
      thrown = &e;
      throw;
    }
  });
  CHECK(g.next() == 1);
  try {
    g.next();
  } catch (const std::exception& e) {
    caught = &e;
  }
  CHECK(caught != nullptr);
  CHECK(caught == thrown);
  CHECK(g.state() == bao::flow_state::finished);
  CHECK(!g.next());  // once is enough
}

TEST_CASE("Y12: an error of the body comes out of begin and of ++ as well") {
  bao::generator<int> at_once([](auto&) { throw 1; });
  CHECK_THROWS_AS(at_once.begin(), int);
  bao::generator<int> later([](auto& yield) {
    yield(1);
    throw 2;
  });
  int sum = 0;
  CHECK_THROWS_AS(
      [&] {
        for (int n : later) sum += n;
      }(),
      int);
  CHECK(sum == 1);
}

TEST_CASE("a generator that gets no stack is as it was before") {
  bao::generator<int> g([](auto& yield) { yield(1); });
  bao::thread_state& t = bao::this_thread_state();
  std::vector<bao::stack*> all;
  CHECK_THROWS_AS(t.stacks.take(std::size_t{1} << 40), bao::stack_exhausted);
  CHECK(g.state() == bao::flow_state::created);
  CHECK(g.next() == 1);
}

// --- yield.from --------------------------------------------------------------

TEST_CASE("Y14: yield.from yields all of the other and returns its result") {
  std::string result;
  bao::generator<int> outer([&](auto& yield) {
    yield(1);
    bao::generator<int, void, std::string> inner([](auto& inner_yield) {
      inner_yield(2);
      inner_yield(3);
      return "inner's";
    });
    result = yield.from(inner);
    yield(4);
  });
  CHECK(outer.next() == 1);
  CHECK(outer.next() == 2);
  CHECK(outer.next() == 3);
  CHECK(outer.next() == 4);
  CHECK(!outer.next());
  CHECK(result == "inner's");
}

TEST_CASE("Y14: what is sent reaches the innermost generator") {
  std::vector<int> got;
  bao::generator<int, int> outer([&](auto& yield) {
    got.push_back(yield(0));
    yield.from(bao::generator<int, int>([&](auto& middle) {
      got.push_back(middle(1));
      middle.from(bao::generator<int, int>(
          [&](auto& inner) { got.push_back(inner(2)); }));
      got.push_back(middle(3));
    }));
    got.push_back(yield(4));
  });
  outer.next();
  CHECK(outer.send(10) == 1);
  CHECK(outer.send(11) == 2);
  CHECK(outer.send(12) == 3);
  CHECK(outer.send(13) == 4);
  CHECK(!outer.send(14));
  CHECK(got == std::vector<int>{10, 11, 12, 13, 14});
}

TEST_CASE(
    "Y14: what is thrown in is thrown in the inner one, then in the outer") {
  std::string heard;
  bao::generator<int> outer([&](auto& yield) {
    try {
      yield.from(bao::generator<int>([&](auto& inner) {
        try {
          inner(1);
        } catch (int n) {
          heard += "inner " + std::to_string(n);
        }
        inner(2);
      }));
    } catch (int n) {
      heard += ", outer " + std::to_string(n);
    }
    yield(3);
  });
  CHECK(outer.next() == 1);
  CHECK(outer.throw_in(7) == 2);
  CHECK(outer.throw_in(8) == 3);
  CHECK(heard == "inner 7, outer 8");
}

TEST_CASE("Y14: to close the outer one closes the inner one first") {
  std::string order;
  struct says {
    std::string& order;
    char name;
    ~says() { order += name; }
  };
  bao::generator<int> inner([&](auto& yield) {
    says local{order, 'i'};
    yield(1);
  });
  bao::generator<int> outer([&](auto& yield) {
    says local{order, 'o'};
    yield.from(inner);
  });
  outer.next();
  outer.close();
  CHECK(order == "io");
  CHECK(inner.state() == bao::flow_state::finished);
  CHECK(outer.state() == bao::flow_state::finished);
}

TEST_CASE("Y14: an inner one that catches the close does not save the outer") {
  bool went_on = false;
  bool outer_met_it = false;
  bao::generator<int> outer([&](auto& yield) {
    try {
      yield.from(bao::generator<int>([](auto& inner) {
        try {
          inner(1);
        } catch (const bao::killed&) {
        }
      }));
      went_on = true;
    } catch (const bao::killed&) {
      outer_met_it = true;
      throw;
    }
  });
  outer.next();
  CHECK_NOTHROW(outer.close());
  CHECK(outer_met_it);
  CHECK(!went_on);
  CHECK(outer.state() == bao::flow_state::finished);
}

TEST_CASE("Y14: an inner one that yields when it is closed is reported") {
  int refusals = 0;
  bao::generator<int> outer([&](auto& yield) {
    yield.from(bao::generator<int>([&](auto& inner) {
      for (int n = 1;; ++n) try {
          inner(n);
        } catch (const bao::killed&) {
          if (++refusals == 2) throw;
        }
    }));
  });
  CHECK(outer.next() == 1);
  CHECK_THROWS_AS(outer.close(), bao::close_ignored);
  CHECK(outer.next() == 3);
  CHECK_NOTHROW(outer.close());
  CHECK(refusals == 2);
}

TEST_CASE("Y14: an error of the inner one comes out of yield.from") {
  std::string caught;
  bao::generator<int> outer([&](auto& yield) {
    try {
      yield.from(bao::generator<int>([](auto& inner) {
        inner(1);
        throw std::runtime_error("inner's");
      }));
    } catch (const std::runtime_error& e) {
      caught = e.what();
    }
    yield(2);
  });
  CHECK(outer.next() == 1);
  CHECK(outer.next() == 2);
  CHECK(caught == "inner's");
}

TEST_CASE("Y14: any other range will do as well") {
  const std::vector<int> numbers{1, 2, 3};
  bao::generator<int> g([&](auto& yield) {
    yield.from(numbers);
    yield.from(std::vector<int>{4, 5});
  });
  CHECK(std::vector<int>(g.begin(), g.end()) ==
        std::vector<int>{1, 2, 3, 4, 5});
}

TEST_CASE("Y14: one that has begun goes on, one that has ended gives nothing") {
  bao::generator<int> begun([](auto& yield) {
    for (int n = 1; n <= 3; ++n) yield(n);
  });
  begun.next();
  bao::generator<int> outer([&](auto& yield) {
    yield.from(begun);
    yield.from(begun);
    yield.from(bao::generator<int>());
    yield(9);
  });
  CHECK(std::vector<int>(outer.begin(), outer.end()) ==
        std::vector<int>{2, 3, 9});
}

TEST_CASE("Y14: one that is in the middle of a yield.from may be handed on") {
  std::vector<int> got;
  bao::generator<int, int> innermost([&](auto& yield) {
    for (int n = 1; n <= 3; ++n) got.push_back(yield(n));
  });
  bao::generator<int, int> middle([&](auto& yield) {
    yield.from(innermost);
    got.push_back(yield(4));
  });
  CHECK(middle.next() == 1);
  bao::generator<int, int> outer([&](auto& yield) {
    yield.from(middle);
    got.push_back(yield(5));
  });
  CHECK(outer.next() == 2);
  CHECK(outer.send(20) == 3);
  CHECK(outer.send(30) == 4);
  CHECK(outer.send(40) == 5);
  CHECK(!outer.send(50));
  CHECK(got == std::vector<int>{0, 20, 30, 40, 50});
}

TEST_CASE("Y14: while the outer one has it, nobody else may resume the inner") {
  bao::generator<int> inner([](auto& yield) {
    yield(1);
    yield(2);
  });
  bao::generator<int> outer([&](auto& yield) { yield.from(inner); });
  CHECK(outer.next() == 1);
  CHECK_THROWS_AS(inner.next(), bao::already_running);
  CHECK_THROWS_AS(inner.close(), bao::already_running);
  CHECK(outer.next() == 2);
  CHECK(!outer.next());
  CHECK(!inner.next());
}

TEST_CASE("Y14: a generator cannot yield from itself") {
  bao::generator<int> g;
  g = bao::generator<int>([&](auto& yield) {
    CHECK_THROWS_AS(yield.from(g), bao::already_running);
    yield(1);
  });
  CHECK(g.next() == 1);
  CHECK(!g.next());
}

TEST_CASE("Y14: a tree is walked by yield.from, 100 levels deep") {
  struct walk {
    static void down(bao::yielder<int, void>& yield, int depth) {
      yield(depth);
      if (depth > 1) yield.from(bao::generator<int>(down, depth - 1));
      yield(-depth);
    }
  };
  bao::generator<int> g(walk::down, 100);
  std::vector<int> all(g.begin(), g.end());
  REQUIRE(all.size() == 200);
  CHECK(all[0] == 100);
  CHECK(all[99] == 1);
  CHECK(all[100] == -1);
  CHECK(all[199] == -100);
  // And one that is left at the deepest place is unwound from there.
  bao::generator<int> left(walk::down, 100);
  for (int i = 0; i < 100; ++i) left.next();
  CHECK_NOTHROW(left.close());
  CHECK(left.state() == bao::flow_state::finished);
}

// Else a value would cost a switch for each level that it comes up.
TEST_CASE("Y14: the innermost one and the consumer switch to each other") {
  std::vector<bao::fiber*> bodies;
  struct walk {
    static void down(bao::yielder<int, void>& yield, int depth,
                     std::vector<bao::fiber*>* bodies) {
      bodies->push_back(bao::current_flow);
      if (depth > 0)
        return yield.from(bao::generator<int>(down, depth - 1, bodies));
      yield(1);
      yield(2);
    }
  };
  bao::generator<int> g(walk::down, 50, &bodies);
  CHECK(g.next() == 1);
  REQUIRE(bodies.size() == 51);
  bao::fiber* const outermost = bodies.front();
  auto* const innermost =
      static_cast<bao::generator_core<int, void>*>(bodies.back());
  CHECK(outermost->leaf == innermost);      // is whom next() continues, ...
  CHECK(innermost->consumed == outermost);  // ... who returns to our next()
  CHECK(g.next() == 2);
  CHECK(!g.next());
}

TEST_CASE("Y15: a generator returns to whoever has resumed it last") {
  std::string order;
  bao::generator<int> g([&](auto& yield) {
    for (int n = 1;; ++n) yield(n);
  });
  bao::coroutine<> c([&] {
    order += std::to_string(g.next().value());
    bao::main_coroutine().switch_to();
    order += std::to_string(g.next().value());
  });
  order += std::to_string(g.next().value());
  c.switch_to();
  order += std::to_string(g.next().value());
  c.switch_to();
  order += std::to_string(g.next().value());
  CHECK(order == "12345");
  CHECK(c.dead());
}

// --- exceptions that are being handled ---------------------------------------

TEST_CASE("Y16: the exception that the consumer handles is not seen inside") {
  bool seen = true;
  bao::generator<int> g([&](auto& yield) {
    seen = std::current_exception() != nullptr;
    yield(1);
    seen = seen || std::current_exception() != nullptr;
    yield(2);
  });
  for (int n = 1; n <= 2; ++n) try {
      throw n;
    } catch (int) {
      CHECK(g.next() == n);
      CHECK(std::current_exception() != nullptr);
    }
  CHECK(!seen);
}

TEST_CASE(
    "Y16: the exception that the body handles is kept across its yields") {
  std::string rethrown;
  bao::generator<int> g([&](auto& yield) {
    try {
      throw std::runtime_error("body's");
    } catch (...) {
      yield(1);
      try {
        throw;
      } catch (const std::exception& e) {
        rethrown = e.what();
      }
      yield(2);
    }
    CHECK(std::current_exception() == nullptr);
    yield(3);
  });
  CHECK(g.next() == 1);
  CHECK(std::current_exception() == nullptr);
  try {
    throw std::runtime_error("consumer's");
  } catch (const std::exception&) {
    CHECK(g.next() == 2);
  }
  CHECK(g.next() == 3);
  CHECK(rethrown == "body's");
}

TEST_CASE("Y16: a consumer may call next while it unwinds") {
  int got = 0;
  int uncaught_inside = -1;
  bao::generator<int> g([&](auto& yield) {
    for (int n = 1;; ++n) {
      uncaught_inside = std::uncaught_exceptions();
      yield(n);
    }
  });
  struct asks_when_destroyed {
    bao::generator<int>& from;
    int& got;
    ~asks_when_destroyed() {
      got = from.next().value_or(-1) * 10 + from.next().value_or(-1);
    }
  };
  try {
    asks_when_destroyed last{g, got};
    throw std::runtime_error("unwinding");
  } catch (const std::runtime_error&) {
  }
  CHECK(got == 12);
  CHECK(uncaught_inside == 0);
  CHECK(g.next() == 3);
}

TEST_CASE("Y16: a generator may be closed inside its handler") {
  bool destroyed = false;
  struct tells {
    bool& told;
    ~tells() { told = true; }
  };
  {
    bao::generator<int> g([&](auto& yield) {
      tells local{destroyed};
      try {
        throw 1;
      } catch (int) {
        yield(1);
      }
    });
    g.next();
  }
  CHECK(destroyed);
  CHECK(std::current_exception() == nullptr);
  CHECK(std::uncaught_exceptions() == 0);
}

TEST_CASE("Y17: the handler of a close may resume other generators") {
  std::string order;
  bao::generator<int> g([&](auto& yield) {
    try {
      yield(1);
    } catch (const bao::killed&) {
      // Other flows may be resumed on the way out.
      bao::generator<int> other([](auto& others) { others(5); });
      order += std::to_string(other.next().value());
      throw;
    }
  });
  g.next();
  CHECK_NOTHROW(g.close());
  CHECK(order == "5");
}

TEST_CASE("Y17: a yield in the handler of a close waits there for the next") {
  bool went_on = false;
  bao::generator<int> g([&](auto& yield) {
    try {
      yield(1);
    } catch (const bao::killed&) {
      yield(2);
      went_on = true;
      throw;
    }
  });
  g.next();
  CHECK_THROWS_AS(g.close(), bao::close_ignored);
  CHECK(g.state() == bao::flow_state::suspended);
  CHECK(!went_on);
  CHECK(!g.next());  // the handler ends, and lets the kill pass
  CHECK(went_on);
  CHECK(g.state() == bao::flow_state::finished);
}

TEST_CASE("Y17: a yield in a destructor that unwinds is an error of close") {
  struct yields_when_destroyed {
    bao::yielder<int, void>& yield;
    ~yields_when_destroyed() { yield(2); }
  };
  bao::generator<int> g([](bao::yielder<int, void>& yield) {
    yields_when_destroyed last{yield};
    yield(1);
  });
  CHECK(g.next() == 1);
  CHECK_THROWS_AS(g.close(), bao::close_ignored);
  CHECK(g.state() == bao::flow_state::finished);
  CHECK_NOTHROW(g.close());
}

// --- handles -----------------------------------------------------------------

TEST_CASE(
    "Y18: a generator is moved, not copied, without disturbing its body") {
  CHECK(!std::is_copy_constructible_v<bao::generator<int>>);
  CHECK(!std::is_copy_assignable_v<bao::generator<int>>);
  CHECK(std::is_nothrow_move_constructible_v<bao::generator<int>>);
  bao::generator<int> a([](auto& yield) {
    for (int n = 1;; ++n) yield(n);
  });
  a.next();
  bao::generator<int> b = std::move(a);
  CHECK(b.next() == 2);
  CHECK(!a.next());
  CHECK(a.state() == bao::flow_state::finished);
  bao::generator<int>& same = b;
  b = std::move(same);
  CHECK(b.next() == 3);
}

TEST_CASE("Y18: to assign to a generator closes what it was") {
  bool closed = false;
  struct tells {
    bool& told;
    ~tells() { told = true; }
  };
  bao::generator<int> g([&](auto& yield) {
    tells local{closed};
    yield(1);
  });
  g.next();
  g = bao::generator<int>([](auto& yield) { yield(2); });
  CHECK(closed);
  CHECK(g.next() == 2);
}

TEST_CASE(
    "Y18: a generator is created, runs or is suspended, and has finished") {
  using bao::flow_state;
  flow_state inside{};
  bao::generator<int> g;
  CHECK(g.state() == flow_state::finished);
  g = bao::generator<int>([&](auto& yield) {
    inside = g.state();
    yield(1);
  });
  CHECK(g.state() == flow_state::created);
  g.next();
  CHECK(inside == flow_state::running);
  CHECK(g.state() == flow_state::suspended);
  g.next();
  CHECK(g.state() == flow_state::finished);
}

TEST_CASE("X21: nothing dangles when the callable and the arguments die") {
  bao::generator<std::string> g;
  {
    const std::string text = "long enough to live on the heap and be missed";
    const auto body = [text](auto& yield, const std::string& argument) {
      yield(text);
      yield(argument);
    };
    g = bao::generator<std::string>(body, text + "!");
  }
  CHECK(g.next() == "long enough to live on the heap and be missed");
  CHECK(g.next() == "long enough to live on the heap and be missed!");
}

TEST_CASE("X21: the body and what it holds are gone when it has ended") {
  auto captured = std::make_shared<int>(1);
  bao::generator<int> g([captured](auto&) {});
  CHECK(captured.use_count() == 2);
  CHECK(!g.next());
  CHECK(captured.use_count() == 1);
}

// --- values ------------------------------------------------------------------

TEST_CASE("an rvalue is handed over itself, an lvalue is copied once") {
  struct counted {
    int copies = 0, moves = 0;
    counted() = default;
    counted(const counted& c) : copies(c.copies + 1), moves(c.moves) {}
    counted(counted&& c) noexcept : copies(c.copies), moves(c.moves + 1) {}
  };
  bao::generator<counted> g([](auto& yield) {
    for (;;) {
      yield(counted());
      counted kept;
      yield(kept);
      CHECK(kept.copies == 0);
    }
  });
  auto it = g.begin();
  CHECK(it->copies == 0);
  CHECK(it->moves == 0);
  ++it;
  CHECK(it->copies == 1);
  CHECK(it->moves == 0);
  const auto step = g.next();
  REQUIRE(step);
  CHECK(step->copies == 0);
  CHECK(step->moves == 1);
}

TEST_CASE("an lvalue that was yielded stays the body's own") {
  std::string seen;
  bao::generator<std::string> g([&](auto& yield) {
    std::string mine = "a text that is long enough to be moved away";
    yield(mine);
    seen = mine;
  });
  CHECK(g.next() == "a text that is long enough to be moved away");
  g.next();
  CHECK(seen == "a text that is long enough to be moved away");
}

TEST_CASE("values that can only be moved can be yielded") {
  bao::generator<std::unique_ptr<int>> g([](auto& yield) {
    yield(std::make_unique<int>(1));
    auto two = std::make_unique<int>(2);
    yield(std::move(two));
  });
  std::unique_ptr<int> first = g.next().value();
  CHECK(*first == 1);
  auto it = g.begin();
  std::unique_ptr<int> second = std::move(*it);
  CHECK(*second == 2);
  CHECK(++it == g.end());
}

TEST_CASE("a generator of references lends what it yields") {
  std::string text = "ours";
  bao::generator<std::string&> g([&](auto& yield) {
    yield(text);
    yield(text);
  });
  std::string* lent = g.next();
  CHECK(lent == &text);
  for (std::string& same : g) same = "changed";
  CHECK(text == "changed");
  CHECK(g.next() == nullptr);
}

TEST_CASE("it++ does not take away what is only lent") {
  std::string text = "a text that is long enough to be moved away";
  bao::generator<std::string&> g([&](auto& yield) {
    yield(text);
    yield(text);
  });
  auto it = g.begin();
  std::string copy = *it++;
  CHECK(copy == "a text that is long enough to be moved away");
  CHECK(text == "a text that is long enough to be moved away");
}

// --- iteration ---------------------------------------------------------------

TEST_CASE("Y2: a range-for goes through all values, and a second one goes on") {
  bao::generator<int> g([](auto& yield) {
    for (int n = 1; n <= 5; ++n) yield(n);
  });
  std::vector<int> seen;
  for (int n : g) {
    seen.push_back(n);
    if (n == 2) break;
  }
  for (int n : g) seen.push_back(n * 10);
  CHECK(seen == std::vector<int>{1, 2, 30, 40, 50});
}

TEST_CASE("the value may be changed or moved where it lies") {
  bao::generator<std::string> g([](auto& yield) {
    std::string kept = "mine";
    yield(std::move(kept));
    CHECK(kept == "changed");
    yield("last");
  });
  std::vector<std::string> taken;
  for (std::string& text : g) {
    if (text == "mine") text = "changed";
    taken.push_back(text);
  }
  CHECK(taken == std::vector<std::string>{"changed", "last"});
}

TEST_CASE("the standard's algorithms take a generator's iterators") {
  const auto digits = [](auto& yield) {
    for (int n : {3, 1, 4, 1, 5}) yield(n);
  };
  bao::generator<int> a(digits), b(digits), c(digits), d(digits);
  CHECK(std::accumulate(a.begin(), a.end(), 0) == 14);
  CHECK(std::count(b.begin(), b.end(), 1) == 2);
  CHECK(*std::find(c.begin(), c.end(), 4) == 4);
  CHECK(c.next() == 1);  // it goes on behind the one that was found
  std::vector<int> all;
  std::copy(d.begin(), d.end(), std::back_inserter(all));
  CHECK(all == std::vector<int>{3, 1, 4, 1, 5});
}

TEST_CASE("it++ keeps the value that it leaves") {
  bao::generator<int> g([](auto& yield) {
    for (int n = 1; n <= 3; ++n) yield(n);
  });
  auto it = g.begin();
  CHECK(*it++ == 1);
  CHECK(*it++ == 2);
  CHECK(*it == 3);
  CHECK(++it == g.end());
  CHECK(it == decltype(it)());
}

using int_iterator = bao::generator<int>::iterator;
static_assert(
    std::is_same_v<std::iterator_traits<int_iterator>::iterator_category,
                   std::input_iterator_tag>);
static_assert(
    std::is_same_v<std::iterator_traits<int_iterator>::value_type, int>);
static_assert(
    std::is_same_v<std::iterator_traits<int_iterator>::reference, int&>);

#if __cplusplus >= 202002L
static_assert(std::input_iterator<int_iterator>);
static_assert(std::sentinel_for<int_iterator, int_iterator>);
static_assert(std::ranges::input_range<bao::generator<int>>);
static_assert(std::ranges::input_range<bao::generator<std::string&>>);
static_assert(std::ranges::input_range<bao::generator<std::unique_ptr<int>>>);
static_assert(!std::ranges::forward_range<bao::generator<int>>);

// What is lent need not be movable.
struct stays_where_it_is {
  stays_where_it_is() = default;
  stays_where_it_is(stays_where_it_is&&) = delete;
};
static_assert(std::ranges::range<bao::generator<stays_where_it_is&>>);

TEST_CASE("a generator is a range of the standard's") {
  bao::generator<int> g([](auto& yield) {
    for (int n = 1;; ++n) yield(n);
  });
  CHECK(*std::ranges::find_if(g, [](int n) { return n % 4 == 0; }) == 4);
  CHECK(*std::ranges::find(g, 7) == 7);
}
#endif

// --- many --------------------------------------------------------------------

TEST_CASE("thousands of generators may be alive") {
  std::vector<bao::generator<int>> all;
  for (int i = 0; i < 5000; ++i)
    all.emplace_back([i](auto& yield) {
      for (int n = i;; ++n) yield(n);
    });
  for (int round = 0; round < 3; ++round) {
    long sum = 0;
    for (auto& g : all) sum += g.next().value();
    CHECK(sum == 4999L * 5000 / 2 + round * 5000);
  }
}

TEST_CASE("a generator takes over the stack of one that has ended") {
  const void* places[2] = {};
  for (const void*& place : places) {
    bao::generator<int> g([&](auto& yield) {
      place = bao::current_flow->memory;
      yield(1);
    });
    g.next();
  }
  CHECK(places[0] != nullptr);
  CHECK(places[0] == places[1]);
}

TEST_CASE("a generator may end while another one is begun in its place") {
  int sum = 0;
  for (int i = 0; i < 1000; ++i) {
    bao::generator<int> a([](auto& yield) { yield(1); });
    bao::generator<int> b([](auto& yield) { yield(2); });
    sum += a.next().value();
    a.next();
    sum += b.next().value();
  }
  CHECK(sum == 3000);
}

// --- rules -------------------------------------------------------------------

TEST_CASE("a yield from another flow than the body's is refused") {
  bao::yielder<int, void>* stolen = nullptr;
  bao::generator<int> g([&](auto& yield) {
    stolen = &yield;
    bao::coroutine<> other([&] { yield(1); });
    CHECK_THROWS_AS(other.switch_to(), bao::wrong_flow);
    bao::generator<int> inner([&](auto&) { yield(2); });
    CHECK_THROWS_AS(inner.next(), bao::wrong_flow);
    bao::generator<int> delegates(
        [&](auto&) { yield.from(bao::generator<int>([](auto& y) { y(3); })); });
    CHECK_THROWS_AS(delegates.next(), bao::wrong_flow);
    yield(4);
  });
  CHECK(g.next() == 4);
  CHECK_THROWS_AS((*stolen)(5), bao::wrong_flow);
  CHECK(!g.next());
}

TEST_CASE("X13: `throw;` in a body that was left in a handler is the body's") {
  std::string order;
  const auto body = [&](auto& yield, int n) {
    try {
      throw n;
    } catch (int) {
      yield(n);
      try {
        throw;
      } catch (int mine) {
        order += std::to_string(mine);
      }
    }
  };
  bao::generator<int> a(body, 1), b(body, 2);
  a.next();
  b.next();
  a.next();
  b.next();
  CHECK(order == "12");
}

TEST_CASE("X14: a destroyed generator is unwound with those that it holds") {
  std::string order;
  struct says {
    std::string& order;
    char name;
    ~says() { order += name; }
  };
  {
    bao::generator<int> g([&](auto& yield) {
      says local{order, 'a'};
      bao::generator<int> inner([&](auto& inner_yield) {
        says mine{order, 'b'};
        inner_yield(1);
      });
      inner.next();
      yield(1);
    });
    g.next();
  }
  CHECK(order == "ba");
}

static bao::generator<int> generator_at_namespace_scope;

TEST_CASE("X14: a generator at namespace scope is unwound at exit") {
  int fds[2];
  REQUIRE(::pipe(fds) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(fds[0]);
    struct writes {
      int fd;
      ~writes() {
        if (::write(fd, "unwound", 7) != 7) ::_exit(1);
      }
    };
    generator_at_namespace_scope =
        bao::generator<int>([to = fds[1]](auto& yield) {
          writes last{to};
          yield(1);
        });
    generator_at_namespace_scope.next();
    std::exit(0);
  }
  ::close(fds[1]);
  char text[16] = {};
  CHECK(::read(fds[0], text, sizeof text - 1) == 7);
  CHECK(std::string(text) == "unwound");
  ::close(fds[0]);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("X15: any task may resume a generator, one at a time") {
  bao::generator<int> g([](auto& yield) {
    for (int n = 1;; ++n) {
      bao::yield();  // the task that has resumed us waits
      yield(n);
    }
  });
  int first = 0, second = 0;
  auto a = bao::spawn([&] { first = g.next().value(); });
  bao::yield();
  CHECK(g.state() == bao::flow_state::running);
  CHECK_THROWS_AS(g.next(), bao::already_running);
  a.join();
  auto b = bao::spawn([&] { second = g.next().value(); });
  b.join();
  CHECK(first == 1);
  CHECK(second == 2);
  CHECK(g.next() == 3);
}

TEST_CASE("X17: a generator that has begun is refused on another thread") {
  bao::generator<int, int> g([](auto& yield) {
    for (int n = 1; n <= 3; ++n) yield(n);
  });
  g.next();
  std::string text;
  const unsigned our_number = bao::this_thread_state().number;
  unsigned their_number = 0;
  std::thread([&] {
    their_number = bao::this_thread_state().number;
    try {
      g.next();
    } catch (const bao::wrong_thread& e) {
      text = e.what();
    }
  }).join();
  CHECK(text == "next: this generator belongs to thread " +
                    std::to_string(our_number) + "; we are thread " +
                    std::to_string(their_number));
  CHECK(g.next() == 2);
}

TEST_CASE("X17: what another thread tried to do to a generator has no effect") {
  int got = -1;
  bao::generator<int, int> sent_to([&](auto& yield) {
    got = yield(1);
    yield(2);
  });
  bao::generator<int> thrown_at([](auto& yield) {
    yield(1);
    yield(2);
  });
  bao::generator<int> closed([](auto& yield) {
    yield(1);
    yield(2);
  });
  sent_to.next();
  thrown_at.next();
  closed.next();
  bool refused[3] = {};
  std::thread([&] {
    try {
      sent_to.send(7);
    } catch (const bao::wrong_thread&) {
      refused[0] = true;
    }
    try {
      thrown_at.throw_in(8);
    } catch (const bao::wrong_thread&) {
      refused[1] = true;
    }
    try {
      closed.close();
    } catch (const bao::wrong_thread&) {
      refused[2] = true;
    }
  }).join();
  for (bool each : refused) CHECK(each);
  CHECK(sent_to.next() == 2);
  CHECK(got == 0);
  CHECK(thrown_at.next() == 2);
  CHECK(closed.next() == 2);
}

TEST_CASE("X17: a generator that has not begun belongs to no thread yet") {
  bao::generator<int> g([](auto& yield) { yield(1); });
  std::optional<int> got;
  std::thread([&got, mine = std::move(g)]() mutable {
    got = mine.next();
    mine.close();
  }).join();
  CHECK(got == 1);
}

TEST_CASE("Y7: no exception is not thrown in, but refused") {
  bao::generator<int> g([](auto& yield) { yield(1); });
  g.next();
  CHECK_THROWS_AS(g.throw_in(std::exception_ptr()), std::invalid_argument);
  CHECK(!g.next());
}
