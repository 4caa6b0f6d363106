// 15_subprocess.cpp - run other programs, and talk to them
//
// run() waits for a program's output and its end; the three ends of a process
// are streams. Either way it is the task that waits, and not the thread.
#include "bao.hpp"

#include <signal.h>

#include <chrono>
#include <cstdio>

using namespace std::chrono_literals;

int main() {
  auto sorted = bao::run({"sort", "-r"}, "bean\npork\nlotus\n", 10s);
  std::printf("%s", sorted.output.c_str());

  auto failed = bao::run({"sh", "-c", "echo no steam >&2; exit 3"}, 10s);
  std::printf("status %d: %s", failed.status, failed.errors.c_str());

  bao::process cook({"cat"});
  for (const char* order : {"soup\n", "baozi\n"}) {
    cook.in().write_all(order);
    std::printf("here comes the %s\n", cook.out().read_line()->c_str());
  }

  // The cook goes on until nobody can order any more, or a signal comes.
  if (!cook.wait(10ms)) std::printf("still there after 10 ms\n");
  cook.kill(SIGTERM);
  if (cook.wait() == -SIGTERM) std::printf("sent home\n");
}
// Prints:
//   pork
//   lotus
//   bean
//   status 3: no steam
//   here comes the soup
//   here comes the baozi
//   still there after 10 ms
//   sent home
