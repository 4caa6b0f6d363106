// a.cpp - two units that include the whole header share one runtime
//
// It links at all only if nothing is defined twice, and it ends only if the
// scheduler that b spawns in is the one that a waits in.
#include "b.hpp"

#include <cstdio>

int main() {
  int sum = 0;
  for (int i : count_in_b(5)) sum += i;

  bao::task<int> mine = bao::spawn([] { return spawn_in_b(20).get() + 2; });
  const int answer = mine.get();

  if (sum == 10 && answer == 42) return 0;
  std::printf("the sum is %d instead of 10, the answer %d instead of 42\n", sum,
              answer);
  return 1;
}
