// timeout.cpp - a limit on a block of code
#include <doctest/doctest.h>

#include "bao.hpp"
#include "seeds.hpp"

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using namespace std::literals;

TEST_CASE("V29: a timeout strikes at the wait that takes too long") {
  bao::virtual_time clock;
  const auto start = bao::now();
  bao::timeout limit(5s);
  bao::sleep(4s);
  CHECK(!limit.expired());
  try {
    bao::sleep(4s);
    FAIL("it was not struck");
  } catch (const bao::timed_out& e) {
    CHECK(e.is_for(limit));
  }
  CHECK(limit.expired());
  CHECK(bao::now() - start == 5s);
}

TEST_CASE("V29: the limit and the end of a wait fall together: one wins") {
  bao::virtual_time clock;
  for (int i = 0; i < 3; ++i) {
    bool struck = false;
    auto t = bao::spawn([&] {
      try {
        bao::timeout limit(1s);
        bao::sleep(1s);
      } catch (const bao::timed_out&) {
        struck = true;
      }
    });
    auto witness = bao::spawn([] {
      for (int j = 0; j < 20; ++j) bao::sleep(100ms);
    });
    CHECK(t.join(10s));
    CHECK(struck);  // it was armed first
    CHECK(witness.join(10s));
  }
}

TEST_CASE("V29: a timeout that has come in time does nothing") {
  bao::virtual_time clock;
  {
    bao::timeout limit(5s);
    bao::sleep(4s);
  }
  bao::sleep(10s);
}

TEST_CASE("V29: zero and less strike at the next wait, never does not") {
  bao::virtual_time clock;
  {
    bao::timeout limit(0s);
    CHECK_THROWS_AS(bao::yield(), bao::timed_out);
  }
  {
    bao::timeout limit(-5s);
    CHECK_THROWS_AS(bao::sleep(1s), bao::timed_out);
  }
  bao::timeout limit(bao::never);
  bao::sleep(24h * 365);
  CHECK(!limit.pending());
}

TEST_CASE("V29: who has computed for too long is struck at its next wait") {
  bao::virtual_time clock;
  bao::timeout limit(1s);
  clock.advance(2s);
  CHECK_THROWS_AS(bao::sleep(1ns), bao::timed_out);
}

TEST_CASE("X4: a timeout is raised once, then spent") {
  bao::virtual_time clock;
  bao::timeout limit(1s);
  CHECK_THROWS_AS(bao::sleep(2s), bao::timed_out);
  CHECK(!limit.pending());
  bao::sleep(10s);
  bao::yield();
}

TEST_CASE("V31: start, cancel and pending do as they are named") {
  bao::virtual_time clock;
  bao::timeout limit(5s);
  CHECK(limit.pending());
  limit.cancel();
  CHECK(!limit.pending());
  bao::sleep(10s);
  limit.start(3s);
  CHECK(limit.pending());
  bao::sleep(2s);
  limit.start(3s);  // anew
  bao::sleep(2s);
  CHECK_THROWS_AS(bao::sleep(2s), bao::timed_out);
  CHECK(limit.expired());
  CHECK(!limit.pending());
  limit.start(1s);
  CHECK(!limit.expired());
  CHECK_THROWS_AS(bao::sleep(2s), bao::timed_out);
}

TEST_CASE("V31: one that has passed unnoticed can still be cancelled") {
  bao::virtual_time clock;
  bao::timeout limit(1s);
  {
    bao::shield calm;
    bao::sleep(2s);
  }
  CHECK(limit.expired());
  CHECK(limit.pending());
  limit.cancel();
  bao::sleep(1s);
}

TEST_CASE("V30: with_timeout swallows only its own expiry") {
  bao::virtual_time clock;
  CHECK(bao::with_timeout(2s, [] { bao::sleep(1s); }));
  CHECK(!bao::with_timeout(1s, [] { bao::sleep(2s); }));

  bao::timeout outer(1s);
  try {
    bao::with_timeout(5s, [] { bao::sleep(10s); });
    FAIL("the outer limit was swallowed");
  } catch (const bao::timed_out& e) {
    CHECK(e.is_for(outer));
  }
}

TEST_CASE("V32: with_timeout returns what came in time, or else nothing") {
  bao::virtual_time clock;
  const auto slow = [] {
    bao::sleep(2s);
    return std::make_unique<int>(7);
  };
  auto in_time = bao::with_timeout(3s, slow);
  REQUIRE(in_time);
  CHECK(**in_time == 7);
  CHECK(!bao::with_timeout(1s, slow));
  CHECK(bao::with_timeout(1s, [] { return 1; }).value_or(9) == 1);
  const auto late = [] { return bao::sleep(1h), 1; };
  CHECK(bao::with_timeout(1s, late).value_or(9) == 9);
}

TEST_CASE("V32: what the function throws passes through with_timeout") {
  bao::virtual_time clock;
  CHECK_THROWS_AS(bao::with_timeout(1s, [] { throw std::out_of_range("x"); }),
                  std::out_of_range);
  bao::sleep(2s);
}

TEST_CASE("nested limits: each is told from the other") {
  bao::virtual_time clock;
  bao::timeout outer(2s);
  try {
    bao::timeout inner(1s);
    bao::sleep(5s);
    FAIL("the inner one did not strike");
  } catch (const bao::timed_out& e) {
    CHECK(!e.is_for(outer));
  }
  CHECK(!outer.expired());
  CHECK_THROWS_AS(bao::sleep(5s), bao::timed_out);
  CHECK(outer.expired());
}

TEST_CASE("of two limits that are due the outermost is thrown") {
  bao::virtual_time clock;
  SUBCASE("both at once, the inner one armed last") {
    bao::timeout outer(1s);
    bao::timeout inner(1s);
    try {
      bao::sleep(5s);
      FAIL("neither has struck");
    } catch (const bao::timed_out& e) {
      CHECK(e.is_for(outer));
    }
  }
  SUBCASE("both before the next wait, the inner one first") {
    bao::timeout outer(2s);
    bao::timeout inner(1s);
    clock.advance(3s);
    try {
      bao::sleep(5s);
      FAIL("neither has struck");
    } catch (const bao::timed_out& e) {
      CHECK(e.is_for(outer));
    }
  }
}

TEST_CASE("a limit opened in a suspended generator spares its consumer") {
  bao::virtual_time clock;
  bao::generator<int> g([](auto& yield) {
    try {
      bao::timeout limit(1s);
      yield(1);
      bao::sleep(1ns);
      yield(2);
    } catch (const bao::timed_out&) {
      yield(-1);
    }
  });
  CHECK(g.next() == 1);
  bao::sleep(5s);         // the generator's limit passes, and does not strike
  CHECK(g.next() == -1);  // but at its own next wait
}

TEST_CASE("a limit opened in a suspended coroutine spares the others") {
  bao::virtual_time clock;
  std::string log;
  const auto home = bao::this_coroutine();
  bao::coroutine<> c([&] {
    bao::timeout limit(1s);
    bao::coroutine_ref<>(home).switch_to();
    try {
      bao::sleep(1ns);
    } catch (const bao::timed_out& e) {
      log += e.is_for(limit) ? "its own" : "a stranger's";
    }
  });
  c.switch_to();
  bao::sleep(5s);
  CHECK(log.empty());
  c.switch_to();
  CHECK(log == "its own");
}

TEST_CASE("a consumer's limit strikes the generator that waits for it") {
  bao::virtual_time clock;
  bool unwound = false;
  bao::generator<int> g([&](auto& yield) {
    struct on_the_stack {
      bool& gone;
      ~on_the_stack() { gone = true; }
    } here{unwound};
    bao::sleep(1h);
    yield(1);
  });
  bao::timeout limit(1s);
  CHECK_THROWS_AS(g.next(), bao::timed_out);
  CHECK(unwound);
  CHECK((g.state() == bao::flow_state::finished));
}

TEST_CASE("a consumer's limit strikes at the deepest of several flows") {
  bao::virtual_time clock;
  bao::timeout limit(1s);
  bao::coroutine<> c([] {
    bao::generator<int> outer([](auto& yield) {
      bao::generator<int> inner([](auto& y) {
        bao::sleep(1h);
        y(1);
      });
      yield.from(inner);
    });
    outer.next();
  });
  CHECK_THROWS_AS(c.switch_to(), bao::timed_out);
  CHECK(c.dead());
}

TEST_CASE_SEEDS(
    "V9: an outer limit strikes in a join, and the joined task goes on") {
  auto sleeper = bao::spawn([] { bao::sleep(2s); });
  {
    bao::timeout limit(1s);
    CHECK_THROWS_AS(sleeper.join(), bao::timed_out);
  }
  CHECK(!sleeper.done());
  CHECK(sleeper.join());
  CHECK(sleeper.ok());
}

TEST_CASE("a shield holds a limit off until it goes") {
  bao::virtual_time clock;
  const auto start = bao::now();
  bao::timeout limit(1s);
  {
    bao::shield calm;
    bao::sleep(3s);
    bao::yield();
    CHECK(bao::now() - start == 3s);
  }
  CHECK_THROWS_AS(bao::yield(), bao::timed_out);
}

TEST_CASE("a limit inside a shield works") {
  bao::virtual_time clock;
  bao::timeout outside(1s);
  {
    bao::shield calm;
    bao::timeout inside(2s);
    try {
      bao::sleep(10s);
      FAIL("it was not struck");
    } catch (const bao::timed_out& e) {
      CHECK(e.is_for(inside));
    }
    bao::sleep(1s);
  }
  CHECK_THROWS_AS(bao::yield(), bao::timed_out);
}

TEST_CASE("X1: a limit holds back while a destructor waits in the unwinding") {
  bao::virtual_time clock;
  std::string log;
  struct waits_at_the_end {
    std::string& text;
    ~waits_at_the_end() {
      bao::sleep(5s);
      bao::yield();
      text += "waited ";
    }
  };
  bao::timeout limit(1s);
  try {
    waits_at_the_end here{log};
    throw std::runtime_error("error");
  } catch (const std::runtime_error&) {
    log += "caught ";
  }
  CHECK(log == "waited caught ");
  CHECK_THROWS_AS(bao::yield(), bao::timed_out);
}

TEST_CASE("X1: a limit opened inside such a destructor works") {
  bao::virtual_time clock;
  bool in_time = true;
  struct waits_a_little {
    bool& done;
    ~waits_a_little() {
      done = bao::with_timeout(1s, [] { bao::sleep(1h); });
    }
  };
  try {
    waits_a_little here{in_time};
    throw std::runtime_error("error");
  } catch (const std::runtime_error&) {
  }
  CHECK(!in_time);
}

TEST_CASE("X2: the handler of a limit may wait") {
  bao::virtual_time clock;
  const auto start = bao::now();
  bao::timeout limit(1s);
  try {
    bao::sleep(1h);
  } catch (const bao::timed_out&) {
    bao::sleep(5s);
  }
  CHECK(bao::now() - start == 6s);
}

TEST_CASE_SEEDS("a task's limit does not strike the others") {
  auto limited = bao::spawn([] {
    bao::timeout limit(1s);
    bao::sleep(10s);
  });
  auto free = bao::spawn([] { bao::sleep(10s); });
  bao::join_all(limited, free);
  CHECK(free.ok());
  CHECK(limited.error() != nullptr);
  CHECK_THROWS_AS(limited.get(), bao::timed_out);
}

TEST_CASE_SEEDS("a kill outranks a limit") {
  std::string met;
  auto t = bao::spawn([&] {
    bao::timeout limit(1s);
    try {
      {
        bao::shield calm;
        bao::sleep(5s);
      }
      bao::yield();
    } catch (const bao::timed_out&) {
      met = "timed_out";
      throw;
    } catch (const bao::killed&) {
      met = "killed";
      throw;
    }
  });
  bao::sleep(1us);
  t.kill();
  CHECK(met == "killed");
  CHECK(t.killed());
}

TEST_CASE_SEEDS("limits cost nothing to others when many pass at once") {
  std::vector<bao::task<bool>> all;
  for (int i = 0; i < 100; ++i)
    all.push_back(bao::spawn([i] {
      return bao::with_timeout(std::chrono::milliseconds(i % 10 + 1),
                               [] { bao::sleep(5500us); });
    }));
  CHECK(bao::join_all(all, 1h));
  for (std::size_t i = 0; i < all.size(); ++i)
    CHECK(all[i].get() == (i % 10 + 1 > 5));
}

TEST_CASE_SEEDS("X14: a limit in a coroutine that is destroyed strikes there") {
  bool struck = false;
  struct waits {
    bool& struck;
    ~waits() {
      struck = !bao::with_timeout(1s, [] { bao::sleep(1h); });
    }
  };
  bao::coroutine<> suspended;
  auto owner = bao::spawn([&] {
    suspended = bao::coroutine<>([&] {
      waits at_end{struck};
      bao::main_coroutine().switch_to();
    });
    suspended.switch_to();
    bao::sleep(2h);
  });
  bao::sleep(1us);
  const auto before = bao::now();
  bao::spawn([&] { suspended = {}; }).join();
  CHECK(struck);
  CHECK(bao::now() - before < 1h);
  owner.kill();
}
