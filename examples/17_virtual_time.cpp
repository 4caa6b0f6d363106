// 17_virtual_time.cpp - a test that finds what luck hides
//
// On a virtual clock an hour takes no time: when all tasks wait, it jumps. With
// a seed, tasks also run in another order, the same one for the same seed. So a
// test can try many orders, and replay the one that fails.
#include "bao.hpp"

#include <chrono>
#include <cstdint>
#include <cstdio>

using namespace std::chrono_literals;

// Two people take 10 from an account that has 15. Each looks, then takes.
int left_in_account() {
  int account = 15;
  const auto withdraw = [&] {
    bao::sleep(1h);  // until the bank opens
    if (account >= 10) {
      bao::yield();  // "it will not matter if I wait here"
      account -= 10;
    }
  };
  auto ann = bao::spawn(withdraw);
  auto bob = bao::spawn([&] {
    bao::yield();
    withdraw();
  });
  bao::join_all(ann, bob);
  return account;
}

int main() {
  int wrong = 0;
  std::uint64_t first_wrong = 0;
  for (std::uint64_t seed = 100; seed-- > 0;) {
    bao::virtual_time clock(seed);
    if (left_in_account() >= 0) continue;
    ++wrong;
    first_wrong = seed;
  }
  std::printf("wrong under some seeds: %s\n", wrong > 0 ? "yes" : "no");
  std::printf("right under others: %s\n", wrong < 100 ? "yes" : "no");

  bao::virtual_time clock(first_wrong);
  std::printf("the first such seed, replayed: %d left\n", left_in_account());
}
// Prints:
//   wrong under some seeds: yes
//   right under others: yes
//   the first such seed, replayed: -5 left
