// 13_structured_group.cpp - tasks that cannot be forgotten
//
// Tasks that are spawned in a group end with it: when its braces close they
// have been waited for or killed, whatever happens in between. The first error
// of one of them ends the others, and comes out of join().
#include "bao.hpp"

#include <chrono>
#include <cstdio>
#include <stdexcept>

using namespace std::chrono_literals;

struct course {
  const char* name;
  explicit course(const char* n) : name(n) { std::printf("  %s begins\n", n); }
  ~course() { std::printf("  %s is over\n", name); }
};

void cook(const char* name, std::chrono::minutes time, bool burns) {
  const course ours(name);
  bao::sleep(time);
  if (burns) throw std::runtime_error("it burnt");
}

void dinner(bool soup_burns) {
  bao::group kitchen;
  kitchen.spawn(cook, "the soup", 10min, soup_burns);
  kitchen.spawn(cook, "the roast", 60min, false);
  kitchen.join();
}

int main() {
  bao::virtual_time clock;
  std::printf("a good evening\n");
  dinner(false);
  std::printf("a bad one\n");
  try {
    dinner(true);
  } catch (const std::runtime_error& e) {
    std::printf("no dinner: %s\n", e.what());
  }
}
// Prints:
//   a good evening
//     the soup begins
//     the roast begins
//     the soup is over
//     the roast is over
//   a bad one
//     the soup begins
//     the roast begins
//     the soup is over
//     the roast is over
//   no dinner: it burnt
