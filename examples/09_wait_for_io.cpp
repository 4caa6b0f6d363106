// 09_wait_for_io.cpp - wait for a descriptor while others run
//
// wait_fd() waits until a descriptor is ready, a pipe, a socket or a terminal,
// and meanwhile the other tasks go on. It is what select(), poll() and epoll
// are for; bao asks one of them for all tasks at once.
#include "bao.hpp"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>

using namespace std::chrono_literals;

void cook(int to) {
  for (const char* dish : {"soup", "baozi"}) {
    bao::sleep(100ms);
    if (write(to, dish, std::strlen(dish)) == -1) std::perror("write");
  }
  close(to);
}

int main() {
  int ends[2];
  if (pipe(ends) == -1) {
    std::perror("pipe");
    return 1;
  }

  bao::spawn(cook, ends[1]);

  // The last argument says how long: nothing is there so soon.
  if (!bao::wait_fd(ends[0], bao::readable, 10ms))
    std::printf("nothing after 10 ms\n");

  // Until something comes, or the cook closes his end: then read() returns 0.
  for (;;) {
    bao::wait_fd(ends[0], bao::readable);
    char dish[64];
    const ssize_t size = read(ends[0], dish, sizeof dish);
    if (size <= 0) break;
    std::printf("here comes the %.*s\n", static_cast<int>(size), dish);
  }
  std::printf("the kitchen is closed\n");
  close(ends[0]);
}
// Prints:
//   nothing after 10 ms
//   here comes the soup
//   here comes the baozi
//   the kitchen is closed
