// part.cpp - a shared object that uses bao
//
// It is compiled twice: as it is, and as careful authors do it, with
// -fvisibility=hidden and -fno-rtti.
#include "part.hpp"

#include <chrono>
#include <vector>

using namespace std::literals;

namespace {

bool works() {
  std::vector<bao::task<int>> tasks;
  for (int i = 0; i < 10; ++i)
    tasks.push_back(bao::spawn([i] {
      int sum = 0;
      bao::generator<int> upto([i](auto& yield) {
        for (int n = 0; n <= i; ++n) {
          bao::yield();
          yield(n);
        }
      });
      for (int n : upto) sum += n;
      try {
        throw part_error("within");
      } catch (const part_error&) {
        bao::sleep(1ms);
      }
      return sum;
    }));
  int sum = 0;
  for (auto& t : tasks) sum += t.get();

  int switches = 0;
  bao::coroutine<> c([&] {
    for (;;) {
      ++switches;
      bao::main_coroutine().switch_to();
    }
  });
  c.switch_to();
  c.switch_to();

  auto sleeper = bao::spawn([] { bao::sleep(1h); });
  bao::yield();
  sleeper.kill();

  const bool late = !bao::with_timeout(1ms, [] { bao::sleep(1h); });
  const int job = bao::offload([] { return 5; });
  return sum == 165 && switches == 2 && sleeper.killed() && late && job == 5;
}

const part mine = {
    [] { return const_cast<const bao::scheduler*>(&bao::this_scheduler()); },
    [] { return bao::self().id(); },
    [] { return bao::sys->now(); },

    [](int x) {
      return bao::spawn([x] {
        bao::yield();
        return 2 * x;
      });
    },
    [] {
      return bao::spawn([] {
        bao::yield();
        throw part_error("in a task");
      });
    },
    [](int* unwound) {
      return bao::spawn([unwound] {
        struct counts {
          int* n;
          ~counts() { ++*n; }
        } here{unwound};
        bao::sleep(1h);
      });
    },
    [](int n) {
      return bao::generator<int>([n](auto& yield) {
        for (int i = 0; i < n; ++i) yield(i);
      });
    },
    [](int* switches) {
      return bao::coroutine<>([switches] {
        for (;;) {
          ++*switches;
          bao::main_coroutine().switch_to();
        }
      });
    },
    [] {
      return bao::coroutine<std::string>([](std::string s) {
        for (;;) s = bao::main_coroutine<std::string>().switch_to(s + "!");
      });
    },

    [](const bao::task<int>& t) { return t.get(); },
    [](bao::generator<int>& g) {
      int sum = 0;
      for (int n : g) sum += n;
      return sum;
    },
    [](bao::deadline limit, void (*f)()) {
      return bao::with_timeout(limit, f);
    },
    [](void (*f)()) -> std::string {
      try {
        f();
      } catch (const part_error& e) {
        return std::string("part_error ") + e.what();
      } catch (const bao::end_of_stream& e) {
        return std::string("end_of_stream ") + e.what();
      } catch (const bao::killed&) {
        return "killed";
      } catch (...) {
        return "something else";
      }
      return "nothing";
    },
    [] {
      bao::spawn([] { throw part_error("dropped"); });
      bao::yield();
    },
    works,
};

}  // namespace

[[gnu::visibility("default")]] const part* the_part() { return &mine; }
