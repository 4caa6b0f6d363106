// 14_offload.cpp - what must block, elsewhere
//
// A long computation, or a library that blocks, would keep all tasks of the
// thread waiting. offload() has it done by a helper thread, and only the task
// that wants the result waits.
#include "bao.hpp"

#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

// Nothing in it gives way.
long collatz_steps(long n) {
  if (n < 1) throw std::invalid_argument("from 1 on");
  long steps = 0;
  for (; n != 1; ++steps) n = n % 2 == 0 ? n / 2 : 3 * n + 1;
  return steps;
}

int main() {
  const std::thread::id here = std::this_thread::get_id();
  std::thread::id there = here;

  auto ticker = bao::spawn([] {
    for (;;) bao::yield();  // goes on all the time
  });
  const long steps = bao::offload([&there] {
    there = std::this_thread::get_id();
    return collatz_steps(837799);
  });
  std::printf("%ld steps, on %s thread\n", steps,
              there == here ? "this" : "another");

  try {
    bao::offload(collatz_steps, -1L);
  } catch (const std::invalid_argument& e) {
    std::printf("its errors come back: %s\n", e.what());
  }

  bao::thread_pool two(2);  // our own, with two threads at most
  bao::pool tasks(4);
  for (long n : tasks.imap(std::vector<long>{27, 97, 871}, [&](long start) {
         return two.offload(collatz_steps, start);
       }))
    std::printf("%ld steps\n", n);
}
// Prints:
//   524 steps, on another thread
//   its errors come back: from 1 on
//   111 steps
//   118 steps
//   178 steps
