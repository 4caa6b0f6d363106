// hard_kills.cpp - a kill at every moment of a scenario that uses every chapter
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <ostream>
#include <set>
#include <shared_mutex>
#include <string>
#include <vector>

#include "bao.hpp"
#include "io_tools.hpp"

using namespace std::literals;

namespace {

struct counted {
  static inline int alive = 0;
  int value;
  explicit counted(int v = 0) : value(v) { ++alive; }
  counted(const counted& other) : value(other.value) { ++alive; }
  counted& operator=(const counted&) = default;
  ~counted() { --alive; }
};

bao::task_local<counted> counted_by_task;

// Kills the victim at the turn numbered `at`, wherever it is then.
class killing_clock final : public bao::virtual_time {
 public:
  killing_clock(std::uint64_t seed, bool in_order)
      : virtual_time(seed), in_order_(in_order) {}

  void kill(const bao::task<>& victim, std::size_t at) {
    victim_ = victim;
    left_ = at;
  }
  bool has_killed() const { return killed_; }

  std::size_t choose(std::size_t n) override {
    if (left_ != 0 && --left_ == 0 && !victim_.done()) {
      killed_ = true;
      bao::this_scheduler().kill(victim_.checked("test"));
    }
    return in_order_ ? 0 : virtual_time::choose(n);
  }

 private:
  bool in_order_;
  bao::task<> victim_;
  std::size_t left_ = 0;
  bool killed_ = false;
};

// What must hold when it has ended, whenever it was killed.
struct world {
  bao::mutex door;
  bao::shared_mutex ledger;
  bao::semaphore slots{2};
  bao::pool pool{2};
  int entered = 0, left = 0;
};

bao::generator<counted> count(int n) {
  return [n](auto& yield) {
    const counted inside;
    for (int i = 1; i <= n; ++i) {
      bao::yield();
      yield(counted(i));
    }
  };
}

void work_with_locks(world& w) {
  const std::lock_guard hold(w.door);
  ++w.entered;
  struct at_end {
    int& note;
    ~at_end() {
      const bao::shield in_peace;  // a destructor may wait, with care
      bao::yield();
      ++note;
    }
  } note{w.left};
  bao::sleep(1ms);
  std::shared_lock share(w.ledger);
  bao::sleep(1ms);
}

void scenario(world& w) {
  counted_by_task = counted(1);
  bao::channel<counted> goods(1);
  bao::event begun;
  bao::async_result<int> answer;
  bao::mutex inside;
  bao::condition_variable changed;
  int stock = 0;
  auto ends = bao::socket_pair();
  bao::group all;  // goes before what its members use

  all.spawn([&] {
    counted_by_task = counted(2);
    for (counted& c : count(4)) goods.send(c);
    goods.close();
  });
  all.spawn([&] {
    begun.wait();
    for (const counted& c : goods) {
      std::lock_guard hold(inside);
      stock += c.value;
      changed.notify_all();
    }
    answer.set(stock);
  });
  all.spawn([&] {
    try {
      while (auto line = ends.second.read_line()) {
        bao::select(bao::on(ends.second.fd(), bao::writable, [] {}),
                    bao::after(1s, [] {}));
        ends.second.write_all(*line + "!\n");
      }
    } catch (const std::system_error&) {
      // the other end was closed before it had read all
    }
  });
  for (int i = 0; i < 2; ++i)
    all.spawn([&] {
      work_with_locks(w);
      std::lock_guard alone(w.ledger);
    });

  begun.set();
  {
    std::unique_lock hold(inside);
    changed.wait(hold, [&] { return stock >= 3; });
  }
  // No call that waits stands in a CHECK, which would swallow a kill.
  const int answered = answer.get();
  CHECK(answered == 10);

  bao::coroutine<int> adder([](int n) {
    for (;;) {
      bao::sleep(1ms);
      n = bao::main_coroutine<int>().switch_to(n + 1);
    }
  });
  const int added = adder.switch_to(1);
  CHECK(added == 2);

  w.slots.acquire();
  const auto squares = w.pool.map(std::vector<int>{1, 2, 3}, [](int n) {
    const counted inner(n);
    bao::sleep(1ms);
    return n * n;
  });
  w.slots.release();
  CHECK(squares == std::vector<int>{1, 4, 9});
  int sum = 0;
  for (const counted& c :
       bao::merge(count(2), count(2)) | bao::par(2, [](counted x) {
         bao::sleep(1ms);
         return x;
       }))
    sum += c.value;
  CHECK(sum == 6);

  const bool in_time = bao::with_timeout(1ms, [] { bao::sleep(1h); });
  CHECK(!in_time);
  const int lucky = bao::offload([] { return 7; });
  CHECK(lucky == 7);
  ends.first.write_all("hello\n");
  const auto reply = ends.first.read_line();
  CHECK(reply == "hello!");
  ends.first.close();
  all.join();
}

// How many turns it takes when it is not killed, or was killed too late.
bool run(std::uint64_t seed, bool in_order, std::size_t at) {
  CAPTURE(seed);
  CAPTURE(at);
  const int descriptors = open_descriptors();
  const int alive = counted::alive;
  bool killed = false;
  {
    killing_clock clock(seed, in_order);
    world w;
    auto victim = bao::spawn([&] {
      bao::semaphore& slots = w.slots;
      const auto before = slots.available();
      try {
        scenario(w);
      } catch (...) {
        if (slots.available() != before) slots.release();
        throw;
      }
    });
    clock.kill(victim, at);
    bao::join_all();
    killed = clock.has_killed();
    CHECK(victim.done());
    CHECK(victim.error() == nullptr);
    CHECK((killed || victim.ok()));
    CHECK(counted::alive == alive);
    CHECK(w.entered == w.left);
    CHECK(w.door.try_lock());
    w.door.unlock();
    CHECK(w.ledger.try_lock());
    w.ledger.unlock();
    CHECK(w.pool.empty());
    CHECK(w.pool.free_count() == 2);
    bao::scheduler& s = bao::this_scheduler();
    CHECK(s.tasks().empty());
    CHECK(s.descriptor_waits == 0);
    CHECK(s.jobs == 0);
    CHECK(s.timers().empty());
  }
  CHECK(open_descriptors() == descriptors);
  return killed;
}

}  // namespace

TEST_CASE("V11, X1, X14: a kill at any moment leaves nothing behind") {
  bao::offload([] {});  // what the process keeps
  std::size_t at = 1;
  while (run(0, true, at)) ++at;
  CHECK(at > 50);  // it is a long scenario
}

TEST_CASE("V11, X1, X14: nor does it in whatever order the tasks run") {
  for (std::uint64_t seed = 0; seed < 300; ++seed)
    run(seed, false, 1 + static_cast<std::size_t>(seed * 7 % 211));
}

TEST_CASE("V24: a seed stands for one order, another seed for another one") {
  const auto order_of = [](std::uint64_t seed) {
    bao::virtual_time clock(seed);
    std::string order;
    std::vector<bao::task<>> tasks;
    for (char c = 'a'; c <= 'h'; ++c)
      tasks.push_back(bao::spawn([&order, c] {
        bao::sleep(1s);  // all are due at once
        order += c;
        bao::yield();
        order += c;
      }));
    bao::join_all(tasks);
    return order;
  };
  std::set<std::string> orders;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const std::string order = order_of(seed);
    CHECK(order == order_of(seed));
    orders.insert(order);
  }
  CHECK(orders.size() > 45);
}

TEST_CASE("V24: a program with sockets of its own replays as well") {
  const auto order_of = [](std::uint64_t seed) {
    bao::virtual_time clock(seed);
    std::string order;
    std::vector<bao::task<>> tasks;
    for (char c = 'a'; c <= 'e'; ++c)
      tasks.push_back(bao::spawn([&order, c] {
        auto ends = bao::socket_pair();
        auto echo = bao::spawn([&] {
          while (auto line = ends.second.read_line())
            ends.second.write_all(*line + "\n");
        });
        for (int i = 0; i < 3; ++i) {
          ends.first.write_all("x\n");
          ends.first.read_line();
          order += c;
        }
        ends.first.close();
        bao::channel<int> a(1), b(1);
        for (int i = 0; i < 4; ++i) {
          a.try_send(1), b.try_send(1);
          order += static_cast<char>(
              '0' + bao::select(bao::on(a, [] {}), bao::on(b, [] {})));
        }
        echo.join();
      }));
    bao::join_all(tasks);
    return order;
  };
  for (std::uint64_t seed = 0; seed < 20; ++seed)
    CHECK(order_of(seed) == order_of(seed));
}
