// signal.cpp - tests of waiting for signals
#include <doctest/doctest.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "bao.hpp"

using namespace std::chrono_literals;

TEST_CASE("V34: wait_signal suspends until a signal arrives, and says which") {
  auto waiter = bao::spawn([] {
    return bao::wait_signal({SIGUSR1, SIGUSR2}, 5s);
  });
  bao::yield();
  CHECK(!waiter.done());
  ::kill(::getpid(), SIGUSR2);
  CHECK(waiter.get() == SIGUSR2);
  auto sender = bao::spawn([] { ::raise(SIGUSR1); });
  CHECK(bao::wait_signal({SIGUSR1, SIGUSR2}, 5s) == SIGUSR1);
}

TEST_CASE("X12: wait_signal returns 0 when it is late, and not before") {
  const bao::deadline until = 5ms;
  CHECK(bao::wait_signal({SIGUSR1}, until) == 0);
  CHECK(until.passed());
  CHECK(bao::wait_signal({SIGUSR1}, 0s) == 0);
}

TEST_CASE("V34: signals that come while nobody waits are kept, and counted") {
  CHECK(bao::wait_signal({SIGUSR1, SIGUSR2}, 0s) == 0);
  ::raise(SIGUSR1);
  ::raise(SIGUSR2);
  ::raise(SIGUSR1);
  CHECK(bao::wait_signal({SIGUSR1}, 0s) == SIGUSR1);
  CHECK(bao::wait_signal({SIGUSR2}, 0s) == SIGUSR2);
  CHECK(bao::wait_signal({SIGUSR1}, 5s) == SIGUSR1);
  CHECK(bao::wait_signal({SIGUSR1, SIGUSR2}, 0s) == 0);
}

TEST_CASE("V34: each signal is taken by one of those who wait for it") {
  int taken = 0;
  std::vector<bao::task<>> waiters;
  for (int i = 0; i < 3; ++i)
    waiters.push_back(
        bao::spawn([&] { taken += bao::wait_signal({SIGUSR1}, 5s) != 0; }));
  bao::yield();
  ::raise(SIGUSR1);
  bao::join_any(waiters, 5s);
  bao::sleep(5ms);
  CHECK(taken == 1);
  ::raise(SIGUSR1);
  ::raise(SIGUSR1);
  bao::join_all(waiters);
  CHECK(taken == 3);
}

TEST_CASE(
    "V34: those who wait for different signals do not disturb each other") {
  auto one = bao::spawn([] { return bao::wait_signal({SIGUSR1}, 5s); });
  auto two = bao::spawn([] { return bao::wait_signal({SIGUSR2}, 5s); });
  bao::yield();
  ::raise(SIGUSR2);
  CHECK(two.get() == SIGUSR2);
  CHECK(!one.done());
  ::raise(SIGUSR1);
  CHECK(one.get() == SIGUSR1);
}

TEST_CASE("V34: a number that is no signal, or cannot be caught, is refused") {
  for (const int n : {0, -1, 65, 1'000'000, SIGKILL, SIGSTOP}) {
    CAPTURE(n);
    try {
      bao::wait_signal({n}, 0s);
      CHECK(false);
    } catch (const std::system_error& e) {
      CHECK(e.code() == std::errc::invalid_argument);
      CHECK(std::string(e.what()).find(std::to_string(n)) != std::string::npos);
    }
  }
}

TEST_CASE("V34: to wait for no signal at all is an error") {
  CHECK_THROWS_AS(bao::wait_signal({}, 1ms), std::invalid_argument);
}

TEST_CASE("V34: who is killed, late or timed out takes no signal along") {
  for (int i = 0; i < 40; ++i) {  // more than may wait at one time
    auto waiter = bao::spawn([] { bao::wait_signal({SIGUSR1}); });
    bao::yield();
    CHECK(waiter.kill(5s));
    CHECK(!bao::with_timeout(10us, [] { bao::wait_signal({SIGUSR1}); }));
    CHECK(bao::wait_signal({SIGUSR1}, 10us) == 0);
  }
  ::raise(SIGUSR1);
  CHECK(bao::wait_signal({SIGUSR1}, 5s) == SIGUSR1);
}

TEST_CASE("V34: the seventeenth who waits is told that there is no room") {
  std::vector<bao::task<>> waiters;
  for (int i = 0; i < 16; ++i)
    waiters.push_back(bao::spawn([] { bao::wait_signal({SIGUSR1}, 5s); }));
  bao::yield();
  CHECK_THROWS_AS(bao::wait_signal({SIGUSR1}, 0s), std::runtime_error);
  CHECK(bao::kill_all(waiters, 5s));
  CHECK(bao::wait_signal({SIGUSR1}, 0s) == 0);
}

TEST_CASE("V34: two threads wait, each for its own, whoever was interrupted") {
  CHECK(bao::wait_signal({SIGUSR1, SIGUSR2}, 0s) == 0);
  std::atomic<bool> waits{false};
  int theirs = 0;
  std::thread other([&] {
    auto waiter = bao::spawn([&] {
      waits = true;
      theirs = bao::wait_signal({SIGUSR2}, 10s);
    });
    waiter.join();
  });
  while (!waits) bao::sleep(1ms);
  // Each interrupts the thread that does not wait for it; ours comes first, as
  // the other thread is gone soon after its own.
  ::pthread_kill(other.native_handle(), SIGUSR1);
  ::raise(SIGUSR2);
  CHECK(bao::wait_signal({SIGUSR1}, 10s) == SIGUSR1);
  other.join();
  CHECK(theirs == SIGUSR2);
}

TEST_CASE("V34: while a task waits for a signal the others run") {
  auto ends = bao::socket_pair();
  auto waiter = bao::spawn([] { return bao::wait_signal({SIGUSR1}, 10s); });
  auto echo = bao::spawn([&] {
    for (int i = 0; i < 100; ++i) ends.second.write_all("x", 5s), bao::yield();
    ::raise(SIGUSR1);
  });
  CHECK(ends.first.read_exactly(100, 5s) == std::string(100, 'x'));
  CHECK(waiter.get() == SIGUSR1);
}

TEST_CASE("V34: a signal leaves the error number of whom it interrupts alone") {
  std::vector<bao::task<>> waiters;
  waiters.push_back(bao::spawn([] { bao::wait_signal({SIGUSR1}, 5s); }));
  bao::yield();
  errno = ENOENT;
  ::raise(SIGUSR1);
  CHECK(errno == ENOENT);
  bao::join_all(waiters);
}
