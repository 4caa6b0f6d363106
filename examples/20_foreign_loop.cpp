// 20_foreign_loop.cpp - tasks inside of an event loop that somebody else wrote
//
// A program may have its own loop already: of a window system, of a database,
// or twenty lines around poll(). It asks what the tasks wait for, waits for
// that along with its own descriptors, and lets those run that are ready.
#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <vector>

#include "bao.hpp"

using namespace std::chrono_literals;

// How long poll() may sleep, rounded up so as never to look too early.
int milliseconds(bao::deadline until) {
  if (until.is_never()) return -1;
  const auto now = bao::now().time_since_epoch().count();
  return until.passed() ? 0 : int((until.at() - now + 999999) / 1000000);
}

int main() {
  int button[2];  // the program's own source of events
  if (pipe(button) != 0) return 1;

  auto presses = bao::spawn([&] {  // a task, written as if it had the thread
    for (int i = 1; i <= 3; ++i) {
      bao::sleep(10ms);
      std::printf("task: press %d\n", i);
      if (write(button[1], "x", 1) != 1) return;
    }
  });

  bao::scheduler& tasks = bao::this_scheduler();
  for (int seen = 0; seen < 3 || !presses.done();) {
    std::vector<pollfd> fds{{button[0], POLLIN, 0}};
    const bao::deadline until = tasks.prepare(fds);  // adds what they wait for
    if (poll(fds.data(), fds.size(), milliseconds(until)) < 0) return 1;
    char press;
    if (fds[0].revents != 0 && read(button[0], &press, 1) == 1)
      std::printf("loop: saw press %d\n", ++seen);
    tasks.run_ready();
  }
}
// Prints:
//   task: press 1
//   loop: saw press 1
//   task: press 2
//   loop: saw press 2
//   task: press 3
//   loop: saw press 3
