// signal.cpp - tests of waiting for signals
#include <doctest/doctest.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bao.hpp"

namespace {

using namespace std::chrono_literals;

// Suspends until it holds; false when that takes too long.
bool soon(const std::function<bool()>& holds) {
  for (const bao::deadline until = 30s; !until.passed(); bao::sleep(1ms))
    if (holds()) return true;
  return holds();
}

}  // namespace

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
  bao::sleep(1ms);  // handlers that were cancelled before leave their seats
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

TEST_CASE("V34, V76: a handler is run for each signal that arrives") {
  int calls = 0;
  const auto on = bao::on_signal(SIGUSR1, [&] { ++calls; });
  ::raise(SIGUSR1);  // it is caught from the beginning
  ::raise(SIGUSR1);
  CHECK(calls == 0);
  CHECK(soon([&] { return calls == 2; }));
  ::raise(SIGUSR1);
  CHECK(soon([&] { return calls == 3; }));
  CHECK(bao::wait_signal({SIGUSR1}, 0s) == 0);
}

TEST_CASE("V34: a handler may ask for the number, and need not be copied") {
  std::vector<int> seen;
  const auto look = [&](int signal) { seen.push_back(signal); };
  const auto one = bao::on_signal(SIGUSR1, look);
  const auto two = bao::on_signal(
      SIGUSR2, [&, own = std::make_unique<int>(-1)] { seen.push_back(*own); });
  ::raise(SIGUSR1);
  CHECK(soon([&] { return seen.size() == 1; }));
  ::raise(SIGUSR2);
  CHECK(soon([&] { return seen.size() == 2; }));
  CHECK(seen == std::vector<int>{SIGUSR1, -1});
}

TEST_CASE("V34: each call is a task of its own, and may wait") {
  int begun = 0, ended = 0;
  bool go_on = false;
  const auto on = bao::on_signal(SIGUSR1, [&] {
    ++begun;
    while (!go_on) bao::sleep(1ms);
    ++ended;
  });
  ::raise(SIGUSR1);
  CHECK(soon([&] { return begun == 1; }));
  ::raise(SIGUSR1);
  CHECK(soon([&] { return begun == 2; }));
  CHECK(ended == 0);
  go_on = true;
  CHECK(soon([&] { return ended == 2; }));
}

TEST_CASE("V34: an error in a handler is told, and the next call comes") {
  static int told;
  told = 0;
  const auto before =
      bao::on_unhandled([](const char* whose, const std::exception_ptr&) {
        told += std::string(whose).find("signal " + std::to_string(SIGUSR1)) !=
                std::string::npos;
      });
  int calls = 0;
  {
    const auto on = bao::on_signal(SIGUSR1, [&] {
      if (++calls == 1) throw std::runtime_error("the first");
    });
    ::raise(SIGUSR1);
    CHECK(soon([&] { return calls == 1; }));
    ::raise(SIGUSR1);
    CHECK(soon([&] { return calls == 2; }));
  }
  CHECK(told == 1);
  bao::on_unhandled(before);
}

TEST_CASE("V34: after cancel no call begins, and what arrives is kept") {
  int calls = 0;
  auto on = bao::on_signal(SIGUSR1, [&] { ++calls; });
  bao::yield();  // it waits
  ::raise(SIGUSR1);
  on.cancel();
  CHECK(!on);
  on.cancel();
  bao::sleep(1ms);
  CHECK(calls == 0);
  CHECK(bao::wait_signal({SIGUSR1}, 0s) == SIGUSR1);
  // The call is ready to begin, but has not.
  on = bao::on_signal(SIGUSR1, [&] { ++calls; });
  ::raise(SIGUSR1);
  auto other = bao::spawn([&] { on.cancel(); });
  bao::join_all();
  CHECK(calls == 0);
  CHECK(bao::wait_signal({SIGUSR1}, 0s) == 0);
}

TEST_CASE("V34: a handler ends with its object, which may be moved") {
  int calls = 0;
  try {
    bao::signal_handler outer;
    CHECK(!outer);
    {
      auto inner = bao::on_signal(SIGUSR1, [&] { ++calls; });
      outer = std::move(inner);
    }
    ::raise(SIGUSR1);
    CHECK(soon([&] { return calls == 1; }));
    outer = bao::on_signal(SIGUSR1, [&] { calls += 10; });
    ::raise(SIGUSR1);
    CHECK(soon([&] { return calls == 11; }));
    throw 1;
  } catch (int) {
  }
  ::raise(SIGUSR1);
  bao::sleep(1ms);
  CHECK(calls == 11);
  CHECK(bao::wait_signal({SIGUSR1}, 0s) == SIGUSR1);
}

TEST_CASE("V34: a handler may end itself, and so may another thread") {
  int calls = 0;
  bao::signal_handler on;
  on = bao::on_signal(SIGUSR1, [&] {
    ++calls;
    on.cancel();
  });
  ::raise(SIGUSR1);
  CHECK(soon([&] { return calls == 1; }));
  ::raise(SIGUSR1);
  CHECK(bao::wait_signal({SIGUSR1}, 0s) == SIGUSR1);
  on = bao::on_signal(SIGUSR1, [&] { ++calls; });
  std::thread([mine = std::move(on)] {}).join();
  ::raise(SIGUSR1);
  bao::sleep(1ms);
  CHECK(calls == 1);
  CHECK(bao::wait_signal({SIGUSR1}, 0s) == SIGUSR1);
}

TEST_CASE("V34: join_all does not wait for a handler, but for its calls") {
  bool ended = false;
  const auto on = bao::on_signal(SIGUSR1, [&] {
    bao::sleep(1ms);
    ended = true;
  });
  bao::join_all();
  ::raise(SIGUSR1);
  auto last = bao::spawn([] { bao::sleep(1ms); });
  while (!last.done()) bao::join_all();
  CHECK(soon([&] { return ended; }));
}

TEST_CASE("V34: while a handler may end a wait, that is no deadlock") {
  auto sleeper = bao::spawn([] { bao::sleep(bao::never); });
  const auto on = bao::on_signal(SIGUSR1, [&] { sleeper.kill(); });
  std::thread other([] { ::kill(::getpid(), SIGUSR1); });
  sleeper.join();
  CHECK(sleeper.killed());
  other.join();
}

TEST_CASE("V34: to handle what cannot be caught is refused at once") {
  for (const int n : {0, -1, 65, SIGKILL})
    CHECK_THROWS_AS(static_cast<void>(bao::on_signal(n, [] {})),
                    std::system_error);
  bao::sleep(1ms);  // handlers that were cancelled leave their seats
  std::vector<bao::signal_handler> all;
  for (int i = 0; i < 16; ++i) all.push_back(bao::on_signal(SIGUSR1, [] {}));
  CHECK_THROWS_AS(static_cast<void>(bao::on_signal(SIGUSR1, [] {})),
                  std::runtime_error);
  all.clear();
  bao::sleep(1ms);
  CHECK(bao::on_signal(SIGUSR1, [] {}));
}

TEST_CASE("V34: a handler may outlive the tasks of its thread") {
  int calls = 0;
  bao::signal_handler on;
  std::thread([&] {
    on = bao::on_signal(SIGUSR1, [&] { ++calls; });
    bao::yield();
  }).join();
  ::raise(SIGUSR1);
  CHECK(bao::wait_signal({SIGUSR1}, 0s) == SIGUSR1);
  on.cancel();
  CHECK(calls == 0);
}
