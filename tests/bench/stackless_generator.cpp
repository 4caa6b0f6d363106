// stackless_generator.cpp - the smallest C++20 generator, as a yardstick
//
// What the compiler's own coroutines take for a value, with no iterator, no
// exception and no ownership around them. They keep one frame on the heap and
// cannot yield from a function they call; a generator with a stack of its own
// can, and has to be measured against what that costs.
//
//     g++ -O2 -std=c++20 stackless_generator.cpp -o stackless_generator
//     taskset -c 1 ./stackless_generator
//
// SPDX-License-Identifier: MIT
#include <coroutine>
#include <cstdint>

#include "bench.hpp"

namespace {

struct generator {
  struct promise_type {
    std::uint64_t value = 0;

    generator get_return_object() {
      return {std::coroutine_handle<promise_type>::from_promise(*this)};
    }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_always final_suspend() noexcept { return {}; }
    std::suspend_always yield_value(std::uint64_t next) noexcept {
      value = next;
      return {};
    }
    void return_void() {}
    void unhandled_exception() {}
  };

  std::coroutine_handle<promise_type> handle;
};

// Not inlined, or the compiler may remove the coroutine altogether.
[[gnu::noinline]] generator count_to(std::uint64_t end) {
  for (std::uint64_t i = 0; i < end; ++i) co_yield i;
}

}  // namespace

int main() {
  constexpr std::uint64_t count = 50000000;
  std::uint64_t sum = 0;
  generator numbers = count_to(count);
  const double start = bench::now_ns();
  for (;;) {
    numbers.handle.resume();
    if (numbers.handle.done()) break;
    sum += numbers.handle.promise().value;
  }
  const double elapsed = bench::now_ns() - start;
  bench::report("stackless", "gen", elapsed / static_cast<double>(count), "ns");
  numbers.handle.destroy();
  return sum == 1;
}
