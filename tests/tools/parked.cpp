// parked.cpp - a program for gdb to look at: every task waits, each elsewhere
#include "bao.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <thread>

using namespace std::literals;

namespace {

volatile int passed = 0;  // what follows a call keeps its caller on the stack

[[gnu::noinline]] void stop_here() { passed = passed + 1; }

[[gnu::noinline]] void wait_for_pipe(int fd) {
  bao::wait_fd(fd, bao::readable);
  passed = passed + 1;
}

[[gnu::noinline]] void read_on(int fd) {
  wait_for_pipe(fd);
  passed = passed + 1;
}

[[gnu::noinline]] void nap() {
  bao::sleep(1h);
  passed = passed + 1;
}

bao::generator<int> slow_numbers() {
  return [](auto& yield) {
    nap();
    yield(1);
  };
}

[[gnu::noinline]] void add_numbers() {
  for (int n : slow_numbers()) passed = passed + n;
}

[[gnu::noinline]] void switch_about() {
  bao::coroutine<> inner([] {
    nap();
    passed = passed + 1;
  });
  inner.switch_to();
  passed = passed + 1;
}

[[gnu::noinline]] void join_it(const bao::task<>& t) {
  t.join();
  passed = passed + 1;
}

}  // namespace

// gdb 13 writes no core of a stack whose guard is one that Linux 6.13 has: bao
// is to take the other kind.
int madvise(void*, std::size_t, int) noexcept {
  errno = EINVAL;
  return -1;
}

int main() {
  int ends[2];
  if (::pipe(ends) != 0) return 1;
  const auto named = [](const char* name) {
    return bao::task_options().name(name);
  };
  auto reader = bao::spawn(named("reader"), read_on, ends[0]);
  auto adder = bao::spawn(named("adder"), add_numbers);
  auto switcher = bao::spawn(named("switcher"), switch_about);
  auto joiner = bao::spawn(named("joiner"), join_it, reader);
  auto later = bao::spawn_later(1h, [] {});
  auto last = bao::spawn(named("busy"), [] { bao::sleep(1ms), stop_here(); });

  std::atomic<bool> there{false};
  std::thread other([&] {
    auto foreigner = bao::spawn(bao::task_options().name("foreigner"), nap);
    bao::yield();
    there = true;
    foreigner.join();
  });
  while (!there) std::this_thread::yield();

  last.join();
  std::_Exit(0);  // the rest waits for an hour
}
