// 05_spawn_and_join.cpp - tasks: functions that run while others wait
//
// spawn() makes a task of a function call. It starts when we wait for
// something, here in join_all(). bao::sleep() keeps its own task waiting and
// nobody else: so both eat at the same time, on one thread.
#include "bao.hpp"

#include <chrono>
#include <cstdio>
#include <string>

using namespace std::chrono_literals;

int eat(const std::string& name, int baozi) {
  std::printf("%s starts\n", name.c_str());
  for (int i = 0; i < baozi; ++i) bao::sleep(50ms);  // each takes its time
  std::printf("%s has eaten %d\n", name.c_str(), baozi);
  return baozi;
}

int main() {
  auto harry = bao::spawn(eat, "harry", 4);
  auto ron = bao::spawn(eat, "ron", 2);

  std::printf("main waits\n");
  bao::join_all(harry, ron);

  // get() is what the function has returned. Had it thrown an exception, get()
  // would throw that.
  std::printf("together they ate %d\n", harry.get() + ron.get());
}
// Prints:
//   main waits
//   harry starts
//   ron starts
//   ron has eaten 2
//   harry has eaten 4
//   together they ate 6
