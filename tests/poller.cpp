// poller.cpp - one contract (poller/readiness.hpp), three pollers
#include <doctest/doctest.h>

#include "bao.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

// The single header holds one poller; the chapters are three files.
#if defined(__linux__) && __has_include("bao/poller/epoll.hpp")
#include "bao/poller/epoll.hpp"
#include "bao/poller/poll.hpp"
#include "bao/poller/select.hpp"
#define POLLERS bao::epoll_poller, bao::poll_poller, bao::select_poller
TYPE_TO_STRING(bao::epoll_poller);
TYPE_TO_STRING(bao::poll_poller);
TYPE_TO_STRING(bao::select_poller);
#else
#define POLLERS bao::poller
TYPE_TO_STRING(bao::poller);
#endif

using namespace std::literals;

namespace {

struct connection {
  connection() {
    int ends[2];
    bao::check(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "socketpair");
    ours = ends[0], theirs = ends[1];
  }
  ~connection() {
    ::close(ours);
    if (theirs != -1) ::close(theirs);
  }
  void they_write() const { REQUIRE(::send(theirs, "x", 1, 0) == 1); }
  void we_read() const {
    char c;
    REQUIRE(::recv(ours, &c, 1, 0) == 1);
  }

  int ours = -1, theirs = -1;
};

using reports = std::map<int, bao::readiness>;

// What a wait of `ns` reports; each descriptor once at most.
template <class Poller>
reports ask(Poller& poller, bao::nanoseconds ns) {
  reports all;
  poller.wait(ns, [&](int fd, bao::readiness ready) {
    CHECK(ready);
    CHECK(all.emplace(fd, ready).second);
  });
  return all;
}

constexpr bao::nanoseconds at_most = 10'000'000'000;  // for what comes at once

}  // namespace

TEST_CASE_TEMPLATE("what was ready before the watch is reported", P, POLLERS) {
  P poller;
  connection c;
  c.they_write();
  CHECK(poller.watch(c.ours, bao::readable));
  const reports got = ask(poller, at_most);
  REQUIRE(got.size() == 1);
  CHECK(got.begin()->first == c.ours);
  CHECK((got.begin()->second & bao::readable));
}

TEST_CASE_TEMPLATE("what becomes ready later is reported", P, POLLERS) {
  P poller;
  connection c;
  CHECK(poller.watch(c.ours, bao::readable));
  CHECK(ask(poller, 0).empty());
  c.they_write();
  CHECK(ask(poller, at_most).count(c.ours) == 1);
}

TEST_CASE_TEMPLATE("one report a watch; watch again to hear more", P, POLLERS) {
  P poller;
  connection c;
  c.they_write();
  poller.watch(c.ours, bao::readable);
  CHECK(ask(poller, at_most).size() == 1);
  CHECK(ask(poller, 0).empty());  // though it is readable still
  c.they_write();
  CHECK(ask(poller, 0).empty());
  poller.watch(c.ours, bao::readable);
  CHECK(ask(poller, at_most).size() == 1);
}

TEST_CASE_TEMPLATE("each direction is reported for itself", P, POLLERS) {
  P poller;
  connection c;
  poller.watch(c.ours, bao::writable);
  reports got = ask(poller, at_most);
  CHECK(got[c.ours] == bao::writable);

  c.they_write();
  poller.watch(c.ours, bao::readable);
  got = ask(poller, at_most);
  CHECK((got[c.ours] & bao::readable));

  poller.watch(c.ours, bao::readable | bao::writable);
  got = ask(poller, at_most);
  CHECK(got[c.ours] == (bao::readable | bao::writable));
}

TEST_CASE_TEMPLATE("either of two directions will do", P, POLLERS) {
  P poller;
  connection c;
  poller.watch(c.ours, bao::readable | bao::writable);
  CHECK(ask(poller, at_most)[c.ours] == bao::writable);
}

TEST_CASE_TEMPLATE("a hang-up counts as readable", P, POLLERS) {
  P poller;
  connection c;
  poller.watch(c.ours, bao::readable);
  ::close(std::exchange(c.theirs, -1));
  CHECK((ask(poller, at_most)[c.ours] & bao::readable));
}

TEST_CASE_TEMPLATE("the end of the stream counts as readable", P, POLLERS) {
  P poller;
  connection c;
  poller.watch(c.ours, bao::readable);
  ::shutdown(c.theirs, SHUT_WR);
  CHECK((ask(poller, at_most)[c.ours] & bao::readable));
}

TEST_CASE_TEMPLATE("a broken pipe counts as both directions", P, POLLERS) {
  P poller;
  int ends[2];
  bao::check(::pipe(ends), "pipe");
  while (::fcntl(ends[1], F_SETFL, O_NONBLOCK) == 0 &&
         ::write(ends[1], "full", 4) == 4) {
  }
  SUBCASE("for who would write") {
    poller.watch(ends[1], bao::writable);
    CHECK(ask(poller, 0).empty());
    ::close(ends[0]);
    CHECK((ask(poller, at_most)[ends[1]] & bao::writable));
  }
  SUBCASE("for who would read") {
    poller.watch(ends[1], bao::readable);
    CHECK(ask(poller, 0).empty());
    ::close(ends[0]);
    CHECK((ask(poller, at_most)[ends[1]] & bao::readable));
  }
  ::close(ends[1]);
}

TEST_CASE_TEMPLATE("nothing is reported of what was forgotten", P, POLLERS) {
  P poller;
  connection c, other;
  poller.watch(c.ours, bao::readable);
  poller.watch(other.ours, bao::readable);
  poller.forget(c.ours);
  poller.forget(c.ours);  // once more: nothing happens
  c.they_write();
  other.they_write();
  const reports got = ask(poller, at_most);
  CHECK(got.size() == 1);
  CHECK(got.count(other.ours) == 1);
  poller.watch(c.ours, bao::readable);
  CHECK(ask(poller, at_most).count(c.ours) == 1);
}

TEST_CASE_TEMPLATE("a wake that came first ends the next wait", P, POLLERS) {
  P poller;
  poller.wake();
  poller.wake();
  CHECK(ask(poller, -1).empty());  // would last for ever
}

TEST_CASE_TEMPLATE("a wake ends one wait only, and reports nothing", P,
                   POLLERS) {
  P poller;
  poller.wake();
  CHECK(ask(poller, -1).empty());
  const auto start = std::chrono::steady_clock::now();
  CHECK(ask(poller, 20'000'000).empty());
  CHECK(std::chrono::steady_clock::now() - start >= 20ms);
}

TEST_CASE_TEMPLATE("another thread's wake ends a wait", P, POLLERS) {
  P poller;
  connection c;
  poller.watch(c.ours, bao::readable);
  std::thread other([&] {
    std::this_thread::sleep_for(10ms);
    poller.wake();
  });
  CHECK(ask(poller, -1).empty());
  other.join();
}

TEST_CASE_TEMPLATE("a wake does not hide what is ready", P, POLLERS) {
  P poller;
  connection c;
  c.they_write();
  poller.watch(c.ours, bao::readable);
  poller.wake();
  reports got = ask(poller, at_most);
  if (got.empty()) got = ask(poller, at_most);
  CHECK(got.count(c.ours) == 1);
}

TEST_CASE_TEMPLATE("a signal ends a wait", P, POLLERS) {
  struct sigaction nothing {
  }, before{};
  nothing.sa_handler = [](int) {};
  ::sigaction(SIGUSR2, &nothing, &before);
  P poller;
  std::atomic<bool> ended{false};
  const pthread_t waiting = ::pthread_self();
  std::thread other([&] {  // more than once: it may come before the wait
    while (!ended) {
      std::this_thread::sleep_for(5ms);
      ::pthread_kill(waiting, SIGUSR2);
    }
  });
  CHECK(ask(poller, -1).empty());
  ended = true;
  other.join();
  ::sigaction(SIGUSR2, &before, nullptr);
}

TEST_CASE_TEMPLATE("a wait is as long as it may be, and not shorter", P,
                   POLLERS) {
  P poller;
  connection c;
  poller.watch(c.ours, bao::readable);
  const auto start = std::chrono::steady_clock::now();
  CHECK(ask(poller, 0).empty());
  CHECK(ask(poller, 1).empty());
  CHECK(ask(poller, 1'500'000).empty());
  CHECK(std::chrono::steady_clock::now() - start >= 1500us);
  CHECK(ask(poller, 30'000'000).empty());
  CHECK(std::chrono::steady_clock::now() - start >= 31500us);
  CHECK(std::chrono::steady_clock::now() - start < 30s);
}

TEST_CASE_TEMPLATE("the longest wait is no error", P, POLLERS) {
  P poller;
  poller.wake();
  CHECK(ask(poller, std::numeric_limits<bao::nanoseconds>::max()).empty());
}

TEST_CASE_TEMPLATE("X20: a number that is used again starts afresh", P,
                   POLLERS) {
  P poller;
  connection first, second;
  const int number = ::dup(first.ours);  // the file outlives the number
  poller.watch(number, bao::readable);
  ::close(number);
  REQUIRE(::dup2(second.ours, number) == number);
  poller.watch(number, bao::readable);

  first.they_write();  // is no news of the new file
  CHECK(ask(poller, 0).empty());
  second.they_write();
  CHECK(ask(poller, at_most).count(number) == 1);
  poller.forget(number);
  ::close(number);
}

TEST_CASE_TEMPLATE("nobody hears of the former bearer of a number", P,
                   POLLERS) {
  P poller;
  connection first, second;
  const int number = ::dup(first.ours);
  poller.watch(number, bao::readable);
  poller.forget(number);
  ::close(number);
  REQUIRE(::dup2(second.ours, number) == number);
  poller.watch(number, bao::readable);
  first.they_write();
  CHECK(ask(poller, 0).empty());
  poller.forget(number);
  ::close(number);
}

TEST_CASE_TEMPLATE("X20: a closed descriptor is refused or reported", P,
                   POLLERS) {
  P poller;
  const int closed = ::dup(0);
  ::close(closed);
  reports got;
  try {
    poller.watch(closed, bao::readable);
    got = ask(poller, at_most);
    CHECK((got[closed] & bao::readable));
    CHECK(ask(poller, 0).empty());  // once
  } catch (const std::system_error& e) {
    CHECK((e.code() == std::errc::bad_file_descriptor));
  }
}

TEST_CASE_TEMPLATE("a closed descriptor does not hold up the others", P,
                   POLLERS) {
  P poller;
  connection c;
  const int closed = ::dup(c.ours);
  poller.watch(closed, bao::readable);
  poller.watch(c.ours, bao::readable);
  ::close(closed);
  c.they_write();
  reports got = ask(poller, at_most);
  if (got.count(c.ours) == 0) got = ask(poller, at_most);
  CHECK(got.count(c.ours) == 1);
}

TEST_CASE_TEMPLATE("a negative number is no descriptor", P, POLLERS) {
  P poller;
  try {
    poller.watch(-1, bao::readable);
    FAIL("it has returned");
  } catch (const std::system_error& e) {
    CHECK((e.code() == std::errc::bad_file_descriptor));
  }
  CHECK_THROWS_AS(poller.watch_owned(-1, bao::readable), std::system_error);
  poller.forget(-1);
  CHECK(ask(poller, 0).empty());
}

TEST_CASE_TEMPLATE("a regular file is always ready, or cannot be watched", P,
                   POLLERS) {
  P poller;
  std::FILE* const file = std::tmpfile();
  REQUIRE(file != nullptr);
  const int fd = ::fileno(file);
  if (poller.watch(fd, bao::readable))
    CHECK(ask(poller, at_most).count(fd) == 1);
  else
    CHECK(ask(poller, 0).empty());
#if defined(__linux__) && __has_include("bao/poller/epoll.hpp")
  CHECK(poller.watch(fd, bao::readable) ==
        !std::is_same_v<P, bao::epoll_poller>);
#endif
  poller.forget(fd);
  std::fclose(file);
}

TEST_CASE_TEMPLATE("however many are ready, each is reported once", P,
                   POLLERS) {
  P poller;
  connection c;
  std::vector<int> many;
  for (int i = 0; i < 100; ++i) many.push_back(::dup(c.ours));
  for (int fd : many) REQUIRE(poller.watch(fd, bao::writable));
  reports all;
  for (int turn = 0; turn < 20 && all.size() < many.size(); ++turn) {
    const reports some = ask(poller, 0);
    CHECK(some.size() <= 32);
    for (const auto& one : some) CHECK(all.insert(one).second);
  }
  for (int fd : many) CHECK(all.count(fd) == 1);
  CHECK(ask(poller, 0).empty());
  for (int fd : many) poller.forget(fd), ::close(fd);
}

TEST_CASE_TEMPLATE("among many that are always ready, nobody starves", P,
                   POLLERS) {
  P poller;
  connection c;
  std::vector<int> many;
  for (int i = 0; i < 100; ++i) many.push_back(::dup(c.ours));
  for (int fd : many) REQUIRE(poller.watch(fd, bao::writable));
  std::map<int, int> times;
  for (int turn = 0; turn < 100; ++turn) {
    for (const auto& one : ask(poller, 0)) {
      ++times[one.first];
      poller.watch(one.first, bao::writable);
    }
  }
  for (int fd : many) CHECK(times[fd] >= 5);  // of 32 were all treated alike
  for (int fd : many) poller.forget(fd), ::close(fd);
}

TEST_CASE_TEMPLATE("a report may watch again at once", P, POLLERS) {
  P poller;
  connection c;
  std::vector<int> many;
  for (int i = 0; i < 20; ++i) many.push_back(::dup(c.ours));
  for (int fd : many) REQUIRE(poller.watch(fd, bao::writable));
  for (int turn = 0; turn < 3; ++turn) {
    std::map<int, int> times;
    poller.wait(at_most, [&](int fd, bao::readiness) {
      ++times[fd];
      poller.watch(fd, bao::writable);
    });
    CHECK(times.size() == many.size());
  }
  for (int fd : many) poller.forget(fd), ::close(fd);
}

TEST_CASE_TEMPLATE("an owned descriptor is heard of whenever it has been empty",
                   P, POLLERS) {
  P poller;
  connection c;
  for (int turn = 0; turn < 3; ++turn) {
    CHECK(poller.watch_owned(c.ours, bao::readable));
    c.they_write();
    reports got = ask(poller, at_most);
    while (got.count(c.ours) == 1 && !(got[c.ours] & bao::readable))
      got = ask(poller, at_most);
    CHECK((got[c.ours] & bao::readable));
    c.we_read();
  }
  poller.forget(c.ours);
  c.they_write();
  CHECK(ask(poller, 0).empty());
  CHECK(poller.watch_owned(c.ours, bao::readable));
  CHECK((ask(poller, at_most)[c.ours] & bao::readable));
  poller.forget(c.ours);
}

TEST_CASE_TEMPLATE("an owned number that is used again starts afresh", P,
                   POLLERS) {
  P poller;
  connection first, second;
  const int number = ::dup(first.ours);
  poller.watch_owned(number, bao::readable);
  ask(poller, 0);
  poller.forget(number);
  ::close(number);
  REQUIRE(::dup2(second.ours, number) == number);
  poller.watch_owned(number, bao::readable);
  ask(poller, 0);
  first.they_write();
  CHECK(!(ask(poller, 0)[number] & bao::readable));
  second.they_write();
  CHECK((ask(poller, at_most)[number] & bao::readable));
  poller.forget(number);
  ::close(number);
}

TEST_CASE_TEMPLATE("what is watched again and again is reported each time", P,
                   POLLERS) {
  P poller;
  connection c;
  for (int round = 0; round < 3; ++round) {
    CHECK(poller.watch_again(c.ours, bao::readable, false));
    CHECK(ask(poller, 0).empty());
    c.they_write();
    CHECK(ask(poller, at_most).count(c.ours) == 1);
    c.we_read();
    poller.unwatch(c.ours);
  }
  // In the other direction, too, and told anew.
  CHECK(poller.watch_again(c.ours, bao::writable, false));
  CHECK((ask(poller, at_most)[c.ours] & bao::writable));
  c.they_write();
  CHECK(poller.watch_again(c.ours, bao::readable, true));
  CHECK((ask(poller, at_most)[c.ours] & bao::readable));
  poller.forget(c.ours);
  CHECK_FALSE(poller.lasts(c.ours));
}

TEST_CASE_TEMPLATE("a short read tells that there is no more, if it can", P,
                   POLLERS) {
  P poller;
  connection c;
  const auto read_short = [&](bool tells) {
    poller.read_short(c.ours, [tells] { return tells; });
    return poller.emptied(c.ours);
  };
  CHECK_FALSE(read_short(true));  // not watched yet
  CHECK(poller.watch_again(c.ours, bao::readable, false));
  const bool lasts = poller.lasts(c.ours);
  CHECK(read_short(true) == lasts);
  c.they_write();
  ask(poller, at_most);
  CHECK_FALSE(poller.emptied(c.ours));
  CHECK(read_short(false) == lasts);  // asked only once
  CHECK(poller.watch_again(c.ours, bao::readable, true));
  CHECK_FALSE(poller.emptied(c.ours));
  CHECK_FALSE(read_short(false));
  CHECK_FALSE(read_short(true));
  // What is read behind a hang-up is short, and is not the end.
  CHECK(poller.watch_again(c.ours, bao::readable, true));
  c.they_write();
  ::shutdown(c.theirs, SHUT_WR);
  ask(poller, at_most);
  CHECK_FALSE(read_short(true));
  poller.forget(c.ours);
  CHECK_FALSE(poller.emptied(c.ours));
}

TEST_CASE_TEMPLATE("a number with a new file is watched when told anew", P,
                   POLLERS) {
  P poller;
  connection first, second;
  const int number = ::dup(first.ours);
  CHECK(poller.watch_again(number, bao::readable, false));
  poller.unwatch(number);
  ::close(number);  // of which the poller is told nothing
  REQUIRE(::dup2(second.ours, number) == number);
  second.they_write();
  CHECK(poller.watch_again(number, bao::readable, false));
  ask(poller, 0);
  poller.doubt(number);
  CHECK_FALSE(poller.emptied(number));
  CHECK(poller.watch_again(number, bao::readable, false));
  CHECK((ask(poller, at_most)[number] & bao::readable));
  // An owner of the number takes nothing on trust.
  CHECK(poller.watch_again(number, bao::readable | bao::writable, true));
  ::close(number);
  REQUIRE(::dup2(second.ours, number) == number);
  CHECK(poller.watch_owned(number, bao::readable));
  CHECK((ask(poller, at_most)[number] & bao::readable));
  poller.forget(number);
  ::close(number);
}

TEST_CASE_TEMPLATE("what lasts is reported to nobody until it is forgotten", P,
                   POLLERS) {
  P poller;
  connection c;
  poller.watch_again(c.ours, bao::readable, false);
  poller.unwatch(c.ours);
  const bool lasts = poller.lasts(c.ours);
  c.they_write();
  CHECK(ask(poller, 0).size() == (lasts ? 1 : 0));
  poller.forget(c.ours);
  CHECK_FALSE(poller.lasts(c.ours));
  c.they_write();
  CHECK(ask(poller, 0).empty());
}

TEST_CASE_TEMPLATE("what has no bit in an fd_set is watched, or refused", P,
                   POLLERS) {
  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  rlimit more = before;
  more.rlim_cur = before.rlim_max < 4096 ? before.rlim_max : 4096;
  if (before.rlim_cur < more.rlim_cur) ::setrlimit(RLIMIT_NOFILE, &more);
  connection c;
  const int high = ::fcntl(c.ours, F_DUPFD, FD_SETSIZE);
  REQUIRE(high >= FD_SETSIZE);
  P poller;
  try {
    poller.watch(high, bao::writable);
    CHECK(ask(poller, at_most).count(high) == 1);
  } catch (const std::system_error& e) {
    CHECK((e.code() == std::errc::too_many_files_open));
    CHECK(std::string(e.what()).find(std::to_string(high)) !=
          std::string::npos);
    CHECK_THROWS_AS(poller.watch_owned(high, bao::readable), std::system_error);
    CHECK(ask(poller, 0).empty());
  }
#if defined(__linux__) && __has_include("bao/poller/epoll.hpp")
  if (std::is_same_v<P, bao::select_poller>)
    CHECK_THROWS_AS(poller.watch(high, bao::readable), std::system_error);
  else
    CHECK_NOTHROW(poller.watch(high, bao::readable));
#endif
  poller.forget(high);
  ::close(high);
  ::setrlimit(RLIMIT_NOFILE, &before);
}

TEST_CASE("readiness is a set") {
  const bao::readiness none;
  CHECK(!none);
  CHECK((bao::readable | bao::writable).without(bao::readable) ==
        bao::writable);
  CHECK(!(bao::readable & bao::writable));
  CHECK((bao::readable | bao::uncertain) != bao::readable);
}
