// 06_in_turn.cpp - a task runs until it waits
//
// Nobody interrupts a task. What it does between two waits, it does in one
// piece: so tasks need no locks, and one that never waits lets nobody else run.
#include "bao.hpp"

#include <chrono>
#include <cstdio>

using namespace std::chrono_literals;

void count(char name) {
  for (int i = 1; i <= 3; ++i) std::printf(" %c%d", name, i);
}

void count_slowly(char name) {
  for (int i = 1; i <= 3; ++i) {
    std::printf(" %c%d", name, i);
    bao::sleep(20ms);  // the others' turn
  }
}

int main() {
  std::printf("without waiting:");
  auto a = bao::spawn(count, 'a');
  auto b = bao::spawn(count, 'b');
  auto c = bao::spawn(count, 'c');
  bao::join_all(a, b, c);

  std::printf("\nwith a sleep:");
  a = bao::spawn(count_slowly, 'a');
  b = bao::spawn(count_slowly, 'b');
  c = bao::spawn(count_slowly, 'c');
  bao::join_all(a, b, c);
  std::printf("\n");
}
// Prints:
//   without waiting: a1 a2 a3 b1 b2 b3 c1 c2 c3
//   with a sleep: a1 b1 c1 a2 b2 c2 a3 b3 c3
