// 18_patched_sleep.cpp - code that knows nothing of tasks gives way
//
// The functions below block, as those of most libraries do: one sleeps, one
// reads a pipe. BAO_PATCH_ALL(), once in a program, replaces the calls of libc
// that block. In a task they let the others run meanwhile, and everywhere else
// they are what they were.
//
// Take the line away, and the program stands still for good: the first task
// would have the thread wait for a bell that only others can ring.
#include "bao.hpp"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

using namespace std::chrono_literals;

BAO_PATCH_ALL();

// --- somebody else's code ----------------------------------------------------

void cook(const char* dish, std::chrono::milliseconds time) {
  std::this_thread::sleep_for(time);
  std::printf("%s: done\n", dish);
}

std::string hear(int fd) {
  char text[64];
  const ssize_t n = ::read(fd, text, sizeof text);
  return n < 0 ? "" : std::string(text, static_cast<std::size_t>(n));
}

// --- ours --------------------------------------------------------------------

int main() {
  int bell[2];
  if (::pipe(bell) != 0) return 1;
  auto guest = bao::spawn(
      [&] { std::printf("guest: hears \"%s\"\n", hear(bell[0]).c_str()); });

  const auto start = bao::now();
  bao::group kitchen;
  kitchen.spawn(cook, "beef", 300ms);
  kitchen.spawn(cook, "rice", 200ms);
  kitchen.spawn(cook, "eggs", 100ms);
  kitchen.join();
  std::printf("cooked %s\n",
              bao::now() - start < 600ms ? "together" : "one by one");

  if (::write(bell[1], "dinner!", 7) != 7) return 1;
  guest.join();
}
// Prints:
//   eggs: done
//   rice: done
//   beef: done
//   cooked together
//   guest: hears "dinner!"
