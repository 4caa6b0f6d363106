// group.cpp - tasks that belong together
#include <doctest/doctest.h>

#include <memory>
#include <ostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "bao.hpp"
#include "seeds.hpp"

using namespace std::literals;

namespace {

struct noted_end {
  int& counted;
  ~noted_end() { ++counted; }
};

std::vector<int> up_to(int n) {
  std::vector<int> all;
  for (int i = 1; i <= n; ++i) all.push_back(i);
  return all;
}

}  // namespace

// --- group -------------------------------------------------------------------

TEST_CASE("V61, V19: join waits for all members, and for those they spawn") {
  in_many_orders([] {
    bao::group all;
    int ended = 0;
    for (int i = 0; i < 3; ++i)
      all.spawn([&, i] {
        bao::sleep(i * 1ms);
        all.spawn([&] {
          bao::sleep(1ms);
          ++ended;
        });
        ++ended;
      });
    CHECK(all.size() == 3);
    CHECK(!all.join(0s));
    CHECK(all.join());
    CHECK(ended == 6);
    CHECK(all.empty());
    CHECK(all.join());
  });
}

TEST_CASE("V61: members return what they return, with arguments and options") {
  bao::group all;
  auto sum = all.spawn([](int a, int b, int c) { return a + b + c; }, 1, 2, 3);
  auto named = all.spawn(bao::task_options().name("named"), [] { return 7; });
  CHECK(named.name() == "named");
  CHECK(all.contains(sum));
  all.join();
  CHECK(!all.contains(sum));
  CHECK(sum.get() == 6);
  CHECK(named.get() == 7);
}

TEST_CASE("V61: the first error kills the others, and is thrown") {
  in_many_orders([] {
    bao::group all;
    int unwound = 0;
    for (int i = 0; i < 3; ++i)
      all.spawn([&] {
        noted_end note{unwound};
        bao::sleep(1h);
      });
    all.spawn([] {
      bao::sleep(1ms);
      throw std::out_of_range("the first");
    });
    all.spawn([] {
      bao::sleep(2ms);
      throw std::logic_error("too late");
    });
    const auto start = bao::now();
    CHECK_THROWS_AS(all.join(), std::out_of_range);
    CHECK(bao::now() - start < 1s);
    CHECK(unwound == 3);
    CHECK(all.empty());
    CHECK(all.join());
  });
}

TEST_CASE("V61: when a group goes its members are killed, and waited for") {
  in_many_orders([] {
    int unwound = 0;
    bao::task<> kept;
    {
      bao::group all;
      for (int i = 0; i < 3; ++i)
        kept = all.spawn([&] {
          noted_end note{unwound};
          try {
            bao::sleep(1h);
          } catch (const bao::killed&) {
            bao::sleep(1ms);  // in its handler a task may wait
            throw;
          }
        });
      bao::sleep(1us);
    }
    CHECK(unwound == 3);
    CHECK(kept.killed());
  });
}

TEST_CASE("V61: kill reaches those that are added meanwhile") {
  in_many_orders([] {
    bao::group all;
    int unwound = 0;
    all.spawn([&] {
      try {
        bao::sleep(1h);
      } catch (const bao::killed&) {
        all.spawn([&] {
          noted_end note{unwound};
          bao::sleep(1h);
        });
        bao::sleep(1ms);
        throw;
      }
    });
    bao::sleep(1us);
    CHECK(all.kill());
    CHECK(unwound == 1);
    CHECK(all.empty());
  });
}

TEST_CASE(
    "V61: who is killed while it joins a group kills it when it unwinds") {
  in_many_orders([] {
    int unwound = 0;
    auto parent = bao::spawn([&] {
      bao::group all;
      all.spawn([&] {
        noted_end note{unwound};
        bao::sleep(1h);
      });
      all.join();
    });
    bao::sleep(1ms);
    parent.kill();
    CHECK(unwound == 1);
  });
}

TEST_CASE("V61: all who join are told of the first error, once each") {
  in_many_orders([] {
    bao::group all;
    all.spawn([] {
      bao::sleep(1ms);
      throw std::out_of_range("the first");
    });
    int told = 0;
    std::vector<bao::task<>> joiners;
    for (int i = 0; i < 3; ++i)
      joiners.push_back(bao::spawn([&] {
        CHECK_THROWS_AS(all.join(), std::out_of_range);
        ++told;
      }));
    bao::join_all(joiners);
    CHECK(told == 3);
    CHECK(all.join());
  });
}

TEST_CASE("X11: a member that joins its own group would wait for itself") {
  bao::group all;
  auto t = all.spawn([&] { CHECK_THROWS_AS(all.join(), bao::deadlock); });
  all.join();
  CHECK(t.ok());
}

TEST_CASE(
    "X9, V39: an error that nobody joined for is told, and whose it is, where "
    "it was spawned") {
  static std::string told;
  told.clear();
  auto* const before =
      bao::on_unhandled([](const char* whose, const std::exception_ptr& e) {
        told += whose + ": "s + bao::describe(e);
      });
  const auto fail = [](const char* why) { throw std::runtime_error(why); };
  int line = 0;
  const auto says = [&](const std::string& name, const std::string& why) {
    INFO(told);
    CHECK(told.find(name + " (" __FILE__ ":" + std::to_string(line) +
                    "): std::runtime_error: " + why) != std::string::npos);
    told.clear();
  };
  SUBCASE("of a group, when that goes") {
    {
      bao::group all;
      line = __LINE__ + 1;
      auto first = all.spawn(bao::task_options().name("first"), fail, "lost");
      all.spawn(fail, "later");
      bao::yield();
      first = {};
      CHECK(told.empty());
    }
    CHECK(told.find("later") == std::string::npos);
    says(" \"first\"", "lost");
  }
  SUBCASE("of a group, unless its handle is asked") {
    {
      bao::group all;
      auto t = all.spawn(fail, "lost");
      CHECK_THROWS_AS(t.get(), std::runtime_error);
    }
    CHECK(told.empty());
  }
  SUBCASE("of a pool, at once") {
    bao::pool two(2);
    line = __LINE__ + 1;
    const unsigned long id = two.spawn(fail, "lost").id();
    two.join();
    says("task " + std::to_string(id), "lost");
  }
  bao::on_unhandled(before);
}

// --- pool --------------------------------------------------------------------

TEST_CASE("V63: a pool runs so many at a time; the next one waits") {
  in_many_orders([] {
    bao::pool three(3);
    int running = 0, most = 0, ended = 0;
    for (int i = 0; i < 10; ++i)
      three.spawn([&] {
        most = std::max(most, ++running);
        bao::sleep(1ms);
        --running;
        ++ended;
      });
    CHECK(three.size() <= 3);
    CHECK(three.join());
    CHECK(most == 3);
    CHECK(ended == 10);
    CHECK(three.free_count() == 3);
  });
}

TEST_CASE("V20, V21, V63: a task of a pool has a name, or tells its place") {
  bao::pool two(2);
  auto named = two.spawn(bao::task_options().name("washer"), [] {});
  CHECK(named.name() == "washer");
  for (auto placed : {two.spawn([] {}), two.spawn([](int) {}, 1)})
    CHECK(bao::describe(placed.checked("test"), 0).find("group.cpp:") !=
          std::string::npos);
  two.join();
}

TEST_CASE("V63: a pool of nobody, or of a negative size, is refused") {
  CHECK_THROWS_AS(bao::pool(0), std::invalid_argument);
  CHECK_THROWS_AS(bao::pool(static_cast<std::size_t>(-1)),
                  std::invalid_argument);
}

TEST_CASE("V63: an error stays with its task, and its slot is free again") {
  bao::pool one(1);
  auto failed = one.spawn([] { throw std::runtime_error("mine"); });
  auto killed = one.spawn([] { bao::sleep(1h); });
  killed.kill();
  auto unstarted = one.spawn([] {});
  unstarted.kill();
  auto fine = one.spawn([] { return 1; });
  CHECK(one.join());
  CHECK_THROWS_AS(failed.get(), std::runtime_error);
  CHECK(fine.get() == 1);
  CHECK(one.free_count() == 1);
}

TEST_CASE("V63: who is killed while it waits for a slot takes none") {
  in_many_orders([] {
    bao::pool one(1);
    auto busy = one.spawn([] { bao::sleep(1ms); });
    auto waiter = bao::spawn([&] { one.spawn([] {}); });
    bao::sleep(1us);
    waiter.kill();
    busy.join();
    CHECK(one.free_count() == 1);
  });
}

TEST_CASE("V62: map calls a function for each, together, in their order") {
  in_many_orders([] {
    bao::pool four(4);
    const auto squares = four.map(up_to(9), [](int n) {
      bao::sleep((10 - n) * 1ms);
      return n * n;
    });
    CHECK(squares == std::vector<int>{1, 4, 9, 16, 25, 36, 49, 64, 81});
    int sum = 0;
    const std::vector<int> numbers = up_to(4);
    four.map(numbers, [&](const int& n) { sum += n; });
    CHECK(sum == 10);
    CHECK(four.map(std::vector<int>(), [](int n) { return n; }).empty());
  });
}

TEST_CASE("V62: imap keeps the order, and is no further ahead than its size") {
  in_many_orders([] {
    bao::pool three(3);
    int asked = 0, taken = 0;
    bao::generator<int> endless([&](auto& yield) {
      for (;;) yield(++asked);
    });
    for (int n : three.imap(endless, [](int m) {
           bao::yield();
           return m;
         })) {
      CHECK(n == ++taken);
      CHECK(asked - taken <= 3);
      if (n == 10) break;
    }
    CHECK(taken == 10);
    CHECK(three.empty());  // the rest has been killed
    CHECK(three.free_count() == 3);
  });
}

TEST_CASE("V62: imap_unordered has results as they are done") {
  bao::virtual_time clock;
  bao::pool three(3);
  std::vector<int> order;
  for (int n : three.imap_unordered(std::vector<int>{5, 3, 1}, [](int m) {
         bao::sleep(m * 1ms);
         return m;
       }))
    order.push_back(n);
  CHECK(order == std::vector<int>{1, 3, 5});
}

TEST_CASE("V62: imap_unordered has each result once, in whatever order") {
  in_many_orders([] {
    bao::pool three(3);
    std::vector<int> times(20);
    for (int n : three.imap_unordered(up_to(20), [](int m) {
           bao::sleep(m % 3 * 1ms);
           return m;
         }))
      ++times[static_cast<std::size_t>(n - 1)];
    CHECK(times == std::vector<int>(20, 1));
  });
}

TEST_CASE("V62: an error is thrown in its place, and the next call goes on") {
  in_many_orders([] {
    bao::pool two(2);
    auto results = two.imap(up_to(4), [](int n) {
      if (n == 2) throw std::out_of_range("two");
      return n;
    });
    CHECK(results.next() == 1);
    CHECK_THROWS_AS(results.next(), std::out_of_range);
    CHECK(results.next() == 3);
    CHECK(results.next() == 4);
    CHECK(!results.next());
    CHECK(!results.next());
    CHECK_THROWS_AS(two.map(up_to(4),
                            [](int n) {
                              if (n == 3) throw std::out_of_range("three");
                              return n;
                            }),
                    std::out_of_range);
    CHECK(two.free_count() == 2);
  });
}

TEST_CASE("V62: an error of the range itself is thrown") {
  bao::pool two(2);
  bao::generator<int> broken([](auto& yield) {
    yield(1);
    throw std::domain_error("no more");
  });
  auto results = two.imap(broken, [](int n) { return n; });
  CHECK_THROWS_AS(
      [&] {
        while (results.next()) {
        }
      }(),
      std::domain_error);
  CHECK(two.empty());
}

TEST_CASE("V62: members of a full pool may map on it as well") {
  in_many_orders([] {
    bao::pool two(2);
    const auto sums = two.map(up_to(4), [&](int n) {
      int sum = 0;
      for (int m : two.map(up_to(n), [](int k) { return k * 10; })) sum += m;
      return sum;
    });
    CHECK(sums == std::vector<int>{10, 30, 60, 100});
    CHECK(two.free_count() == 2);
  });
}

TEST_CASE("V62: values need not be copied") {
  bao::pool two(2);
  bao::generator<std::unique_ptr<int>> made([](auto& yield) {
    for (int n = 1; n <= 3; ++n) yield(std::make_unique<int>(n));
  });
  int sum = 0;
  for (auto& p : two.imap(std::move(made), [](std::unique_ptr<int> q) {
         *q *= 2;
         return q;
       }))
    sum += *p;
  CHECK(sum == 12);
}

// --- stages ------------------------------------------------------------------

TEST_CASE("V62: par runs a stage in so many tasks, and keeps the order") {
  in_many_orders([] {
    int running = 0, most = 0;
    const auto doubled = bao::from(up_to(8)) |
                         bao::par(3,
                                  [&](int n) {
                                    most = std::max(most, ++running);
                                    bao::sleep(1ms);
                                    --running;
                                    return 2 * n;
                                  }) |
                         bao::filter([](int n) { return n % 4 == 0; }) |
                         bao::to<std::vector<int>>();
    CHECK(doubled == std::vector<int>{4, 8, 12, 16});
    CHECK(most == 3);
  });
}

TEST_CASE("V62: par_unordered hands on what is done") {
  bao::virtual_time clock;
  const auto order = bao::from(std::vector<int>{4, 2, 1, 3}) |
                     bao::par_unordered(4,
                                        [](int n) {
                                          bao::sleep(n * 1ms);
                                          return n;
                                        }) |
                     bao::to<std::vector<int>>();
  CHECK(order == std::vector<int>{1, 2, 3, 4});
}

TEST_CASE("V62: merge has the values of several generators as they come") {
  bao::virtual_time clock;
  const auto ticks = [](int first, bao::clock::duration every) {
    return bao::generator<int>([=](auto& yield) {
      for (int n = first; n < first + 3; ++n) {
        bao::sleep(every);
        yield(n);
      }
    });
  };
  std::vector<int> order;
  for (int n : bao::merge(ticks(10, 2ms), ticks(20, 5ms))) order.push_back(n);
  CHECK(order == std::vector<int>{10, 11, 20, 12, 21, 22});
}

TEST_CASE("V62: the first error ends a merge, and all that it ran") {
  in_many_orders([] {
    int unwound = 0;
    bao::generator<int> patient([&](auto& yield) {
      const noted_end note{unwound};
      for (;;) yield(1);
    });
    bao::generator<int> broken([](auto& yield) {
      yield(2);
      bao::sleep(1ms);
      throw std::out_of_range("broken");
    });
    int seen = 0;
    {
      auto both = bao::merge(std::move(patient), std::move(broken));
      CHECK_THROWS_AS(
          [&] {
            for (int n : both) {
              seen += n;
              bao::sleep(100us);
            }
          }(),
          std::out_of_range);
    }
    CHECK(seen > 2);
    CHECK(unwound == 1);
  });
}

TEST_CASE("V61: several who join a group that fails are all told") {
  bao::group all;
  all.spawn([] {
    bao::sleep(1ms);
    throw std::out_of_range("told");
  });
  all.spawn([] { bao::sleep(1h); });
  int told = 0;
  const auto join = [&] {
    try {
      all.join();
    } catch (const std::out_of_range&) {
      ++told;
    }
  };
  bao::virtual_time clock;
  auto one = bao::spawn(join), other = bao::spawn(join);
  bao::join_all(one, other);
  CHECK(one.ok());
  CHECK(other.ok());
  CHECK(told == 2);
}

TEST_CASE("V62: a member that maps can be killed, and is in time when late") {
  in_many_orders([] {
    bao::pool two(2);
    const auto nested = [&] { two.map(up_to(4), [](int) { bao::sleep(1h); }); };
    const auto start = bao::now();
    bool in_time = true;
    auto limited = two.spawn([&] { in_time = bao::with_timeout(1s, nested); });
    auto doomed = two.spawn(nested);
    bao::sleep(1ms);
    doomed.kill();
    limited.join();
    CHECK(!in_time);
    CHECK(bao::now() - start < 10s);
    CHECK(two.join());
    CHECK(two.free_count() == 2);
  });
}
