// 07_one_by_one_or_together.cpp - waiting costs nothing to others
//
// Ten tasks of half a second each. One after the other they take five seconds;
// together they take half a second, for all ten wait at the same time.
//
// So that you need not wait yourself, the clock is a virtual one: it jumps to
// the next moment at which something is due. Take the line away, and the
// program prints the same in five and a half real seconds.
#include "bao.hpp"

#include <chrono>
#include <cstdio>
#include <vector>

using namespace std::chrono_literals;

void work() { bao::sleep(500ms); }

double seconds_since(bao::clock::time_point start) {
  return std::chrono::duration<double>(bao::now() - start).count();
}

int main() {
  bao::virtual_time clock;  // the line

  auto start = bao::now();
  for (int i = 0; i < 10; ++i) work();
  std::printf("one by one: %.1f s\n", seconds_since(start));

  start = bao::now();
  std::vector<bao::task<>> tasks;
  for (int i = 0; i < 10; ++i) tasks.push_back(bao::spawn(work));
  bao::join_all(tasks);
  std::printf("together:   %.1f s\n", seconds_since(start));
}
// Prints:
//   one by one: 5.0 s
//   together:   0.5 s
