// context.cpp - tests of switching, with nothing around it
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "bao.hpp"
#include "child.hpp"

TEST_CASE("a flow continues where it was left") {
  static bao::context here, there;
  static char memory[64 * 1024];
  static std::string steps;
  there = bao::make_context(memory, memory + sizeof memory, [] {
    steps += "b";
    bao::switch_context(there, here, nullptr);
    steps += "d";
    bao::switch_context(there, here, nullptr);
  });
  steps = "a";
  bao::switch_context(here, there, nullptr);
  steps += "c";
  bao::switch_context(here, there, nullptr);
  CHECK(steps == "abcd");
}

TEST_CASE("a context is empty until somebody has left a flow in it") {
  static bao::context here, there;
  static char memory[64 * 1024];
  CHECK(here.empty());
  CHECK(there.empty());
  there = bao::make_context(memory, memory + sizeof memory,
                            [] { bao::switch_context(there, here, nullptr); });
  CHECK(!there.empty());
  bao::switch_context(here, there, nullptr);
  CHECK(!here.empty());
}

TEST_CASE("a flow runs on the stack that it was given, aligned as calls are") {
  static bao::context here, there;
  alignas(16) static char memory[64 * 1024];
  static volatile std::uintptr_t frame;
  // An odd upper end is put right.
  there = bao::make_context(memory, memory + sizeof memory - 5, [] {
    // Not the address of a variable: sanitizers keep those elsewhere.
    frame = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
    bao::switch_context(there, here, nullptr);
  });
  bao::switch_context(here, there, nullptr);
  CHECK(frame > reinterpret_cast<std::uintptr_t>(memory));
  CHECK(frame < reinterpret_cast<std::uintptr_t>(memory + sizeof memory));
  CHECK(frame % 16 == 0);
}

TEST_CASE("the values that a flow works with survive a switch") {
  static bao::context here, there;
  static char memory[64 * 1024];
  static volatile long seed = 1;
  there = bao::make_context(memory, memory + sizeof memory, [] {
    for (;;) {  // as many values as there are registers, and others than ours
      long a = -seed, b = -seed * 2, c = -seed * 3, d = -seed * 5;
      long e = -seed * 7, f = -seed * 11, g = -seed * 13, h = -seed * 17;
      double u = std::sqrt(static_cast<double>(seed) * 7), v = u * u, w = v + u;
      bao::switch_context(there, here, nullptr);
      seed = seed + 0 * (a + b + c + d + e + f + g + h);
      seed = seed + 0 * static_cast<long>(u + v + w);
    }
  });
  for (long n = 1; n <= 3; ++n) {
    seed = n;
    long a = seed, b = seed * 2, c = seed * 3, d = seed * 5;
    long e = seed * 7, f = seed * 11, g = seed * 13, h = seed * 17;
    double u = static_cast<double>(seed) / 4, v = u * 3, w = u * 5, x = u * 9;
    float s = static_cast<float>(seed) / 8;
    long double t = static_cast<long double>(seed) / 3;
    bao::switch_context(here, there, nullptr);
    CHECK(a + b + c + d == n * 11);
    CHECK(e + f + g + h == n * 48);
    CHECK(u + v + w + x == static_cast<double>(n) * 4.5);
    CHECK(s == static_cast<float>(n) / 8);
    CHECK(t == static_cast<long double>(n) / 3);
  }
}

TEST_CASE("a flow may be left in a function other than the one it began with") {
  static bao::context here, there;
  static char memory[64 * 1024];
  static int sum;
  struct down {
    static int to(int depth) {
      if (depth > 0) return to(depth - 1) + depth;
      bao::switch_context(there, here, nullptr);
      return 0;
    }
  };
  there = bao::make_context(memory, memory + sizeof memory, [] {
    sum = down::to(10);
    bao::switch_context(there, here, nullptr);
  });
  bao::switch_context(here, there, nullptr);
  CHECK(sum == 0);
  bao::switch_context(here, there, nullptr);
  CHECK(sum == 55);
}

// Clang reaches the local variables of such a function through a register that
// no other function uses for that.
static bao::context aligned[2];

[[gnu::noinline]] static int sum(const char* numbers, int count) {
  int all = 0;
  for (int i = 0; i < count; ++i) all += numbers[i];
  return all;
}

static int sums_that_survive(int mine) {
  alignas(64) char fixed[64];
  static volatile std::size_t size = 100;
  const std::size_t n = size;
  auto variable = static_cast<char*>(__builtin_alloca(n));
  std::memset(fixed, mine, sizeof fixed);
  std::memset(variable, mine, n);
  bao::switch_context(aligned[mine - 1], aligned[2 - mine], nullptr);
  return sum(fixed, sizeof fixed) + sum(variable, static_cast<int>(n));
}

TEST_CASE("aligned variables and arrays of variable size survive a switch") {
  static char memory[64 * 1024];
  static int second;
  aligned[1] = bao::make_context(memory, memory + sizeof memory, [] {
    for (;;) second = sums_that_survive(2);
  });
  for (int i = 0; i < 3; ++i) CHECK(sums_that_survive(1) == 164);
  CHECK(second == 328);
}

// GCC's -fipa-reference takes the function below for one that leaves this
// variable alone, for it cannot see who runs meanwhile. Its address is never
// taken.
static int count_of_flow;
static bao::context before_counting, counting_flow;

[[gnu::noinline]] static void let_it_count() {
  bao::switch_context(before_counting, counting_flow, nullptr);
}

TEST_CASE("a static variable that another flow has changed is seen changed") {
  static char memory[64 * 1024];
  counting_flow = bao::make_context(memory, memory + sizeof memory, [] {
    for (;;) {
      ++count_of_flow;
      bao::switch_context(counting_flow, before_counting, nullptr);
    }
  });
  int stale = 0;
  for (int i = 0; i < 3; ++i) {
    int before = count_of_flow;
    let_it_count();
    if (count_of_flow == before) ++stale;
  }
  CHECK(stale == 0);
}

TEST_CASE("many flows take turns, each with its own stack and its own count") {
  static bao::context here, flows[8];
  static char memory[8][64 * 1024];
  static int now, counts[8];
  for (now = 0; now < 8; ++now) {
    flows[now] =
        bao::make_context(memory[now], memory[now] + sizeof memory[now], [] {
          const int mine = now;
          for (int own = 1;; ++own) {
            counts[mine] = own;
            bao::switch_context(flows[mine], here, nullptr);
          }
        });
  }
  for (int round = 0; round < 5; ++round)
    for (now = 0; now < 8; ++now)
      bao::switch_context(here, flows[now], nullptr);
  for (int count : counts) CHECK(count == 5);
}

#if !defined(BAO_USE_UCONTEXT)
TEST_CASE("a program with a shadow stack is told what to do before it faults") {
  static char memory[64 * 1024];
  CHECK(!bao::shadow_stack_in_use());
  const ending how = in_a_child([] {
    bao::has_shadow_stack = [] { return true; };
    bao::make_context(memory, memory + sizeof memory, [] {});
  });
  CHECK(how.signal != 0);
  CHECK(how.says("BAO_USE_UCONTEXT"));
}
#endif
