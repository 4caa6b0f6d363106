// hook.cpp - libc's blocking calls, for tasks: called here by name, so that
// nothing else is patched. How they compare with libc's is tested case by case
// in patched/conformance.cpp.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bao.hpp"
#include "io_tools.hpp"
#include "seeds.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

using namespace std::literals;
namespace hook = bao::hook;

namespace {

// A pair of sockets that block, as C makes them.
struct pair_of_sockets {
  pair_of_sockets() {
    bao::check(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "socketpair");
  }
  ~pair_of_sockets() {
    for (int fd : ends)
      if (fd != -1) ::close(fd);
  }
  int ends[2];
};

// What a C library does: calls, and looks at -1 and errno.
struct outcome {
  long result = 0;
  int error = 0;
};
bool operator==(const outcome& a, const outcome& b) {
  return a.result == b.result && (a.result != -1 || a.error == b.error);
}
template <class Call>
outcome in_c(Call call) {
  errno = 0;
  const long result = call();
  return {result, errno};
}

// Calls that wait for ever, each as its name says it.
struct endless {
  const char* name;
  std::function<long(int fd)> call;
};
const std::vector<endless>& endless_calls() {
  static char byte;
  static iovec part{&byte, 1};
  static const std::vector<endless> all = {
      {"read", [](int fd) { return hook::read(fd, &byte, 1); }},
      {"readv", [](int fd) { return hook::readv(fd, &part, 1); }},
      {"recv", [](int fd) { return hook::recv(fd, &byte, 1, 0); }},
      {"recvmsg",
       [](int fd) {
         msghdr m{};
         m.msg_iov = &part;
         m.msg_iovlen = 1;
         return hook::recvmsg(fd, &m, 0);
       }},
      {"poll",
       [](int fd) {
         pollfd p{fd, POLLIN, 0};
         return long{hook::poll(&p, 1, -1)};
       }},
      {"poll of what has no word",
       [](int fd) {
         pollfd p{fd, POLLPRI, 0};
         return long{hook::poll(&p, 1, -1)};
       }},
      {"select",
       [](int fd) {
         fd_set in;
         FD_ZERO(&in);
         FD_SET(fd, &in);
         return long{hook::select(fd + 1, &in, nullptr, nullptr, nullptr)};
       }},
      {"usleep", [](int) { return long{hook::usleep(999999999)}; }},
      {"nanosleep",
       [](int) {
         const timespec day{86400, 0};
         return long{hook::nanosleep(&day, nullptr)};
       }},
  };
  return all;
}

}  // namespace

TEST_CASE("V13, X8: a kill ends a call with ECANCELED, and is thrown outside") {
  for (const endless& one : endless_calls()) {
    CAPTURE(one.name);
    bao::virtual_time clock;
    pair_of_sockets s;
    outcome got;
    bool cleaned_up = false, went_on = false;
    auto t = bao::spawn([&] {
      got = in_c([&] { return one.call(s.ends[0]); });
      cleaned_up = true;  // C goes on here
      bao::yield();
      went_on = true;
    });
    bao::yield();
    CHECK(t.kill(1s));
    CHECK(got == outcome{-1, ECANCELED});
    CHECK(cleaned_up);
    CHECK(!went_on);
    CHECK(t.killed());
  }
}

TEST_CASE("V13, X8: a limit ends a call with ETIMEDOUT, and is thrown once") {
  for (const endless& one : endless_calls()) {
    CAPTURE(one.name);
    bao::virtual_time clock;
    pair_of_sockets s;
    const auto begin = bao::now();
    bao::timeout limit(5s);
    CHECK(in_c([&] { return one.call(s.ends[0]); }) == outcome{-1, ETIMEDOUT});
    CHECK(bao::now() - begin == 5s);
    // It is still there for the next one in C, and for the first of bao's.
    CHECK(in_c([&] { return one.call(s.ends[0]); }) == outcome{-1, ETIMEDOUT});
    CHECK_THROWS_AS(bao::yield(), bao::timed_out);
    bao::yield();
  }
}

TEST_CASE("X8: who is killed and calls on and on does not keep the thread") {
  bao::virtual_time clock;
  int calls = 0, turns = 0;
  bool enough = false;
  auto stubborn = bao::spawn([&] {
    while (!enough) {
      CHECK(hook::usleep(1000000) == -1);
      ++calls;
    }
  });
  auto other = bao::spawn([&] {
    for (; turns < 100; ++turns) bao::yield();
    enough = true;
  });
  bao::yield();
  stubborn.kill(bao::clock::duration{0});
  CHECK(other.join(1s));
  CHECK(stubborn.join(1s));
  CHECK(calls > 90);
}

TEST_CASE("X8: who sleeps for what is left ends when interrupted") {
  bao::virtual_time clock;
  int naps = 0;
  const auto sleep = [&] {
    for (unsigned left = 9; left != 0 && naps < 100; ++naps)
      left = hook::sleep(left);
    CHECK(naps == 1);
    bao::yield();
  };
  auto t = bao::spawn(sleep);
  bao::yield();
  CHECK(t.kill(1s));
  CHECK(t.killed());
  naps = 0;
  CHECK_FALSE(bao::with_timeout(4s, sleep));
}

TEST_CASE(
    "X1, X2, X8: who is handling a kill may call, and so may destructors") {
  bao::virtual_time clock;
  int first = 0, in_handler = -1, in_destructor = -1;
  const timespec nine_seconds{9, 0};
  timespec left{};
  struct says {
    int& what;
    ~says() { what = hook::usleep(1000000); }
  };
  auto t = bao::spawn([&] {
    try {
      first = hook::nanosleep(&nine_seconds, &left);
      const says goodbye{in_destructor};
      bao::yield();
    } catch (const bao::killed&) {
      in_handler = hook::usleep(1000000);
      throw;
    }
  });
  bao::sleep(4s);
  CHECK(t.kill(10s));
  CHECK(first == -1);
  CHECK(left.tv_sec == 5);
  CHECK(in_destructor == 0);
  CHECK(in_handler == 0);
}

TEST_CASE("a call of what does not block lets nobody else run") {
  int ends[2];
  bao::check(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), "pipe2");
  int turns = 0;
  char byte = 'x';
  auto other = bao::spawn([&] {
    for (;; bao::yield()) ++turns;
  });
  auto t = bao::spawn([&] {
    CHECK(hook::usleep(9) == -1);  // killed, which C does not know
    const int before = turns;
    for (int i = 0; i < 100; ++i) {
      CHECK(hook::write(ends[1], &byte, 1) == 1);
      CHECK(hook::read(ends[0], &byte, 1) == 1);
      CHECK(in_c([&] { return hook::read(ends[0], &byte, 1); }) ==
            outcome{-1, EAGAIN});
    }
    CHECK(turns == before);
    bao::yield();
  });
  bao::yield();
  t.kill(bao::clock::duration{0});
  CHECK(t.join(1s));
  CHECK(t.killed());
  other.kill();
  for (int fd : ends) ::close(fd);
}

TEST_CASE("a deadlock in C is told by an error, and thrown outside") {
  CHECK(in_c([] { return hook::poll(nullptr, 0, -1); }) ==
        outcome{-1, ECANCELED});
  CHECK_THROWS_AS(bao::yield(), bao::deadlock);
  bao::yield();
}

TEST_CASE_SEEDS("V72, V74: reads and writes wait for each other") {
  pair_of_sockets s;
  std::string got;
  auto reader = bao::spawn([&] {
    char some[1000];
    for (;;) {
      const ssize_t n = hook::read(s.ends[1], some, sizeof some);
      REQUIRE(n >= 0);
      if (n == 0) return;
      got.append(some, static_cast<std::size_t>(n));
    }
  });
  const std::string all = numbers(60000);  // more than a socket holds
  auto writer = bao::spawn([&] {
    errno = EDOM;
    CHECK(hook::write(s.ends[0], all.data(), all.size()) ==
          static_cast<ssize_t>(all.size()));
    CHECK(errno == EDOM);  // as it was: nothing has failed
    ::shutdown(s.ends[0], SHUT_WR);
  });
  reader.join();
  CHECK(got == all);
  CHECK((::fcntl(s.ends[0], F_GETFL) & O_NONBLOCK) == 0);
}

TEST_CASE("V74: more bytes than there can be are refused as libc does it") {
  pair_of_sockets s;
  const volatile std::size_t n = SIZE_MAX;
  char byte = 0;
  CHECK(in_c([&] { return hook::read(s.ends[0], &byte, n); }) ==
        in_c([&] { return hook::original::read(s.ends[0], &byte, n); }));
  CHECK(in_c([&] { return hook::write(s.ends[0], &byte, n); }) ==
        in_c([&] { return hook::original::write(s.ends[0], &byte, n); }));
}

TEST_CASE("V71: select waits for several, and says how much time is left") {
  bao::virtual_time clock;
  pair_of_sockets a, b;
  auto writer = bao::spawn([&] {
    bao::sleep(2s);
    hook::send(b.ends[1], "x", 1, 0);
  });
  fd_set in, out;
  FD_ZERO(&in);
  FD_ZERO(&out);
  FD_SET(a.ends[0], &in);
  FD_SET(b.ends[0], &in);
  timeval limit{5, 0};
  CHECK(hook::select(std::max(a.ends[0], b.ends[0]) + 1, &in, &out, nullptr,
                     &limit) == 1);
  CHECK(!FD_ISSET(a.ends[0], &in));
  CHECK(FD_ISSET(b.ends[0], &in));
  CHECK(limit.tv_sec == 3);

  limit = {1, 0};
  FD_ZERO(&in);
  FD_SET(a.ends[0], &in);
  CHECK(hook::select(a.ends[0] + 1, &in, nullptr, nullptr, &limit) == 0);
  CHECK(!FD_ISSET(a.ends[0], &in));
  CHECK(limit.tv_sec + limit.tv_usec == 0);
}

TEST_CASE("V71: select for writing waits on where the other end has hung up") {
  pair_of_sockets s;
  const std::string much(1 << 20, 'x');
  while (::send(s.ends[0], much.data(), much.size(), MSG_DONTWAIT) > 0) {
  }
  ::shutdown(s.ends[1], SHUT_RDWR);
  const auto turn = bao::this_scheduler().turn();
  fd_set out;
  FD_ZERO(&out);
  FD_SET(s.ends[0], &out);
  timeval limit{0, 20000};
  CHECK(hook::select(s.ends[0] + 1, nullptr, &out, nullptr, &limit) == 0);
  CHECK(bao::this_scheduler().turn() - turn < 100);
  // To read all makes room.
  auto reader = bao::spawn([&] {
    std::string some(1 << 20, 'x');
    while (::recv(s.ends[1], some.data(), some.size(), 0) > 0) bao::sleep(1ms);
  });
  FD_SET(s.ends[0], &out);
  CHECK(hook::select(s.ends[0] + 1, nullptr, &out, nullptr, nullptr) == 1);
  CHECK(FD_ISSET(s.ends[0], &out));
  reader.join();
}

TEST_CASE("V72: epoll_wait waits, and an epoll of ours is as any other") {
  bao::virtual_time clock;
  pair_of_sockets s;
  const bao::descriptor mine(
      bao::check(::epoll_create1(EPOLL_CLOEXEC), "epoll_create1"));
  epoll_event want{};
  want.events = EPOLLIN;
  want.data.u64 = 7;
  bao::check(::epoll_ctl(mine.fd(), EPOLL_CTL_ADD, s.ends[0], &want),
             "epoll_ctl");
  auto writer = bao::spawn([&] {
    bao::sleep(2s);
    hook::send(s.ends[1], "x", 1, 0);
  });
  epoll_event got{};
  CHECK(hook::epoll_wait(mine.fd(), &got, 1, 1000) == 0);
  CHECK(hook::epoll_wait(mine.fd(), &got, 1, 5000) == 1);
  CHECK(std::uint64_t{got.data.u64} == 7);
}

TEST_CASE("V78: sleeps let others run, and wake together") {
  bao::virtual_time clock;
  bao::sleep(1h);  // which the system's clocks know nothing of
  const auto begin = bao::now();
  int done = 0;
  const timespec second{1, 0};
  const auto spawn = [&](auto f) {
    bao::spawn([&done, f] {
      f();
      ++done;
    });
  };
  spawn([] { CHECK(hook::sleep(1) == 0); });
  spawn([] { CHECK(hook::usleep(1000000) == 0); });
  spawn([&] { CHECK(hook::nanosleep(&second, nullptr) == 0); });
  spawn([&] {
    CHECK(hook::clock_nanosleep(CLOCK_REALTIME, 0, &second, nullptr) == 0);
  });
  for (clockid_t which : {CLOCK_REALTIME, CLOCK_MONOTONIC})
    spawn([=] {
      timespec then;
      ::clock_gettime(which, &then);
      ++then.tv_sec;
      const auto before = bao::now();
      CHECK(hook::clock_nanosleep(which, TIMER_ABSTIME, &then, nullptr) == 0);
      CHECK(bao::now() - before > 900ms);
    });
  spawn([&] {
    timespec past{1, 0};
    CHECK(hook::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &past,
                                nullptr) == 0);
  });
  bao::join_all();
  CHECK(done == 7);
  CHECK(bao::now() - begin <= 1s);
  CHECK(bao::now() - begin > 900ms);  // the real clock has gone on a little
}

TEST_CASE("a number that stands for another file, unnoticed, is waited for") {
  pair_of_sockets first;
  const auto wait_for_byte = [](int fd, int from) {
    char byte = 0;
    auto reader = bao::spawn([&] { CHECK(hook::recv(fd, &byte, 1, 0) == 1); });
    bao::yield();
    CHECK(::send(from, "x", 1, 0) == 1);
    CHECK(reader.join(10s));
    CHECK(byte == 'x');
  };
  const int number = ::dup(first.ends[0]);
  wait_for_byte(number, first.ends[1]);
  for (int round = 0; round < 3; ++round) {
    pair_of_sockets next;
    ::close(number);  // not the hook's: as fclose() does it, say
    REQUIRE(::dup2(next.ends[0], number) == number);
    wait_for_byte(number, next.ends[1]);
    wait_for_byte(number, next.ends[1]);
  }
  ::close(number);
}

// The ends of a TCP connection, which block.
struct tcp_pair {
  bao::tcp_listener door{"127.0.0.1:0"};
  bao::tcp_stream near = bao::connect(door.local_address());
  bao::tcp_stream far = door.accept();
  tcp_pair() {
    for (int fd : {near.fd(), far.fd()}) ::fcntl(fd, F_SETFL, 0);
  }
};

TEST_CASE("what comes over TCP is read at once, however short the last read") {
  tcp_pair c;
  const int fd = ::dup(c.near.fd());  // of which only libc knows
  char room[100];
  const auto read = [&] { return hook::recv(fd, room, sizeof room, 0); };
  const auto send = [&] { CHECK(::send(c.far.fd(), "abc", 3, 0) == 3); };
  const auto exchange = [&] {
    auto reader = bao::spawn([&] { CHECK(read() == 3); });
    bao::yield();
    send();
    CHECK(reader.join(10s));
  };
  bao::poller& poller = bao::this_scheduler().poller();
  for (int round = 0; round < 3; ++round) exchange();
  // Before we wait, with or without a look at the poller; and twice.
  send();
  CHECK(read() == 3);
  exchange();
  send();
  bao::sleep(1ms);
  CHECK(read() == 3);
  exchange();
  send();
  CHECK(hook::recv(fd, room, 2, 0) == 2);
  CHECK(hook::recv(fd, room, 2, 0) == 1);
  exchange();
  // By one that does not block, without a word of the poller's.
  ::fcntl(fd, F_SETFL, O_NONBLOCK);
  CHECK(in_c(read) == outcome{-1, EAGAIN});
  send();
  CHECK(read() == 3);
  ::fcntl(fd, F_SETFL, 0);
  // Of another file with its number.
  exchange();
  const bool knows = poller.emptied(fd);
  CHECK(knows == poller.lasts(fd));
  pair_of_sockets other;
  REQUIRE(::dup2(other.ends[0], fd) == fd);  // not the hook's
  CHECK(::send(other.ends[1], "of it", 5, 0) == 5);
  CHECK(read() == 5);
  // The end, when it comes with the last bytes and behind them.
  REQUIRE(::dup2(c.near.fd(), fd) == fd);
  exchange();
  send();
  c.far.shutdown_write();
  CHECK(read() == 3);
  CHECK(read() == 0);
  CHECK(read() == 0);
  ::close(fd);
}

// How long a call takes when nothing comes between.
template <class Call>
bao::clock::duration at_best(Call call) {
  auto best = bao::clock::duration::max();
  for (int i = 0; i < 50; ++i) {
    const auto begin = bao::now();
    call();
    best = std::min(best, bao::now() - begin);
  }
  return best;
}

TEST_CASE("a number that stands for another file makes one read late") {
  tcp_pair first, next;
  const int number = ::dup(first.near.fd());
  char room[100];
  const auto exchange = [&](int from) {
    auto reader = bao::spawn(
        [&] { CHECK(hook::recv(number, room, sizeof room, 0) == 1); });
    bao::yield();
    CHECK(::send(from, "x", 1, 0) == 1);
    CHECK(reader.join(10s));
  };
  for (int i = 0; i < 3; ++i) exchange(first.far.fd());
  REQUIRE(::dup2(next.near.fd(), number) == number);  // not the hook's
  CHECK(at_best([&] { exchange(next.far.fd()); }) < 1ms);
  // So does one that is always ready.
  const bao::descriptor file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  REQUIRE(::dup2(file.fd(), number) == number);
  const auto read = [&] { CHECK(hook::read(number, room, 100) == 100); };
  CHECK(at_best(read) < 1ms);
  ::close(number);
}

TEST_CASE("one that is waited for no more wakes nobody, twice") {
  pair_of_sockets s;
  auto reader = bao::spawn([&] {
    char byte;
    CHECK(hook::read(s.ends[0], &byte, 1) == 1);
  });
  bao::yield();
  CHECK(::write(s.ends[1], "x", 1) == 1);
  reader.join();
  bao::poller& poller = bao::this_scheduler().poller();
  int reports = 0;
  for (int round = 0; round < 3; ++round) {
    CHECK(::write(s.ends[1], "x", 1) == 1);
    bao::yield();
    bao::sleep(1ms);  // whatever is reported is taken in
    reports += poller.lasts(s.ends[0]);
  }
  CHECK(reports == 0);
  // Nor does a number that is closed.
  CHECK(hook::close(s.ends[0]) == 0);
  CHECK_FALSE(poller.lasts(s.ends[0]));
  s.ends[0] = -1;
}

TEST_CASE("X20: close, dup2 and close_range wake those who wait, with EBADF") {
  using closing = std::function<void(int)>;
  const pair_of_sockets spare;
  for (const closing& close :
       {closing([](int fd) { CHECK(hook::close(fd) == 0); }),
        closing([&](int fd) { CHECK(hook::dup2(spare.ends[0], fd) == fd); }),
        closing([&](int fd) {
          CHECK(hook::dup3(spare.ends[0], fd, O_CLOEXEC) == fd);
        }),
        closing([](int fd) {
          const auto number = static_cast<unsigned>(fd);
          CHECK(hook::close_range(number, number, 0) == 0);
        })}) {
    pair_of_sockets s;
    outcome read, polled;
    auto reader = bao::spawn([&] {
      char byte;
      read = in_c([&] { return hook::read(s.ends[0], &byte, 1); });
    });
    auto poller = bao::spawn([&] {
      pollfd p{s.ends[0], POLLIN, 0};
      polled = in_c([&] { return hook::poll(&p, 1, -1); });
    });
    bao::yield();
    close(s.ends[0]);
    bao::join_all(reader, poller);
    CHECK(read == outcome{-1, EBADF});
    CHECK(polled == outcome{-1, EBADF});
    // The number works at once for whatever it is given to.
    pair_of_sockets next;
    auto again = bao::spawn([&] {
      char byte;
      CHECK(hook::read(next.ends[0], &byte, 1) == 1);
    });
    bao::yield();
    CHECK(hook::write(next.ends[1], "x", 1) == 1);
    CHECK(again.join(10s));
    ::close(s.ends[0]);
    s.ends[0] = -1;
  }
}

TEST_CASE("who waits for the same descriptor does not wake each other") {
  bao::virtual_time clock;
  pair_of_sockets s;
  bao::group waiting;
  for (int i = 0; i < 3; ++i)
    waiting.spawn([&] {
      char byte;
      hook::recv(s.ends[0], &byte, 1, 0);
    });
  for (int i = 0; i < 3; ++i)
    waiting.spawn([&] {
      pollfd p{s.ends[0], POLLIN, 0};
      hook::poll(&p, 1, -1);
    });
  bao::sleep(1s);
  CHECK(::write(s.ends[1], "x", 1) == 1);  // the first takes it
  bao::sleep(1s);
  CHECK(waiting.size() == 5);
  const auto turn = bao::this_scheduler().turn();
  for (int i = 0; i < 10; ++i) bao::sleep(1s);
  CHECK(bao::this_scheduler().turn() - turn < 5000);
  waiting.kill();
}

TEST_CASE("who comes too late for what there was is not later each time") {
  bao::virtual_time clock;
  pair_of_sockets s;
  auto peer = bao::spawn([&] {
    for (int i = 0; i < 8; ++i) {
      bao::sleep(100ms);
      hook::write(s.ends[1], "x", 1);
    }
  });
  // What comes is taken by others, just after poll() has told us of it.
  bool is_there = false;
  int lost = 0;
  auto since = bao::now();
  hook::call reading(bao::this_scheduler(), s.ends[0], bao::readable);
  reading.retry([&](int flags) -> ssize_t {
    char byte;
    if (is_there) {
      hook::original::recv(s.ends[0], &byte, 1, flags);
      CHECK(bao::now() - since <= 1ms);
      if (++lost == 8) return 0;
    }
    is_there = hook::original::recv(s.ends[0], &byte, 1, flags | MSG_PEEK) == 1;
    since = bao::now();
    return hook::fail(EAGAIN);
  });
  CHECK(lost == 8);
}

TEST_CASE("V78: who sleeps for longer than nanoseconds can count, sleeps") {
  bao::virtual_time clock;
  for (const time_t time : {time_t{10000000000}, ~(time_t{1} << 63)}) {
    const timespec long_time{time, 0};
    auto sleeper = bao::spawn([&] { hook::nanosleep(&long_time, nullptr); });
    auto poller =
        bao::spawn([&] { hook::ppoll(nullptr, 0, &long_time, nullptr); });
    bao::sleep(24h);
    CHECK(!sleeper.done());
    CHECK(!poller.done());
    bao::kill_all(std::vector<bao::task<>>{sleeper, poller});
  }
}

TEST_CASE("V74: SO_RCVTIMEO and SO_SNDTIMEO are kept") {
  bao::virtual_time clock;
  pair_of_sockets s;
  const timeval limit{3, 500000};
  ::setsockopt(s.ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  ::setsockopt(s.ends[0], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  char byte;
  auto begin = bao::now();
  CHECK(in_c([&] { return hook::recv(s.ends[0], &byte, 1, 0); }) ==
        outcome{-1, EAGAIN});
  CHECK(bao::now() - begin == 3500ms);
  begin = bao::now();
  const std::string much(1 << 22, 'x');
  const long sent = hook::send(s.ends[0], much.data(), much.size(), 0);
  CHECK(sent > 0);
  CHECK(sent < long{1} << 22);
  CHECK(bao::now() - begin == 3500ms);
  CHECK(in_c([&] { return hook::send(s.ends[0], "x", 1, 0); }) ==
        outcome{-1, EAGAIN});
}

TEST_CASE("V74: SO_RCVTIMEO is kept by one who is woken all the time") {
  bao::virtual_time clock;
  pair_of_sockets s;
  const timeval limit{0, 20000};
  ::setsockopt(s.ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  const auto begin = bao::now();
  auto reader = bao::spawn([&] {
    char byte;
    return in_c([&] { return hook::recv(s.ends[0], &byte, 1, 0); });
  });
  for (int i = 0; i < 100 && !reader.done(); ++i)  // whoever leaves wakes it
    bao::wait_fd(s.ends[0], bao::readable, 500us);
  CHECK(bao::now() - begin < 21ms);
  CHECK(reader.get() == outcome{-1, EAGAIN});
}

TEST_CASE("V74: SO_SNDTIMEO of a unix socket is for each piece it takes") {
  bao::virtual_time clock;
  pair_of_sockets s;
  const timeval limit{0, 20000};
  ::setsockopt(s.ends[0], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  const std::string much(1 << 22, 'x');
  auto sender = bao::spawn(
      [&] { return hook::send(s.ends[0], much.data(), much.size(), 0); });
  std::string piece(1 << 16, 'x');
  const auto begin = bao::now();
  while (!sender.done()) {
    bao::sleep(5ms);
    hook::recv(s.ends[1], piece.data(), piece.size(), MSG_DONTWAIT);
  }
  CHECK(bao::now() - begin > 100ms);
  CHECK(sender.get() == long{1} << 22);
}

TEST_CASE("V75: waitpid lets others run until the child has ended") {
  pair_of_sockets s;
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(30);  // one that is never told to end
    char byte;
    ::_exit(::read(s.ends[1], &byte, 1) == 1 ? 7 : 1);
  }
  int turns = 0;
  auto other = bao::spawn([&] {
    while (turns < 2) bao::sleep(1ms), ++turns;
    CHECK(::write(s.ends[0], "x", 1) == 1);
  });
  int status = 0;
  CHECK(hook::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 7);
  other.join();
  CHECK(turns > 1);
  CHECK(in_c([&] { return hook::waitpid(child, &status, 0); }) ==
        outcome{-1, ECHILD});
  CHECK(WEXITSTATUS(hook::system("exit 3")) == 3);
  // The number that has stood for the child is as any other.
  const bao::descriptor next(::dup(s.ends[0]));
  CHECK_FALSE(bao::this_scheduler().poller().lasts(next.fd()));
}

TEST_CASE("V75: a kill ends system(), and the command with it") {
  outcome got;
  auto t = bao::spawn(
      [&] { got = in_c([] { return hook::system("exec sleep 600"); }); });
  bao::yield();
  CHECK(t.kill(60s));
  CHECK(got == outcome{-1, ECANCELED});
  CHECK(in_c([] { return ::waitpid(-1, nullptr, WNOHANG); }) ==
        outcome{-1, ECHILD});
}

TEST_CASE(
    "V68: equal look-ups in flight are asked once; who is killed leaves") {
  std::vector<bao::task<>> tasks;
  int found = 0;
  for (int i = 0; i < 20; ++i)
    tasks.push_back(bao::spawn([&] {
      addrinfo hints{};
      hints.ai_socktype = SOCK_STREAM;
      addrinfo* list = nullptr;
      if (hook::getaddrinfo("localhost", "80", &hints, &list) != 0) return;
      found += list->ai_socktype == SOCK_STREAM;
      ::freeaddrinfo(list);
    }));
  outcome killed;
  auto leaves = bao::spawn([&] {
    addrinfo* list = nullptr;
    killed = in_c([&] {
      return hook::getaddrinfo("localhost", nullptr, nullptr, &list);
    });
  });
  bao::yield();
  auto& asked = bao::this_scheduler().questions;
  REQUIRE(!asked.empty());
  auto* const other = asked.after(asked.front());
  REQUIRE(other != nullptr);
  CHECK(asked.after(*other) == nullptr);
  CHECK(leaves.kill(10s));
  CHECK(killed.result == EAI_SYSTEM);
  CHECK(killed.error == ECANCELED);
  CHECK(bao::join_all(tasks));
  CHECK(found == 20);
}

TEST_CASE("V64, V68, X8: a job may look up names in tasks of its own") {
  int found = 0;
  outcome killed;
  bao::offload([&] {
    addrinfo hints{}, *list = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    const auto look_up = [&] {
      return hook::getaddrinfo("localhost", "80", &hints, &list);
    };
    std::vector<bao::task<>> tasks;
    for (int i = 0; i < 20; ++i)
      tasks.push_back(bao::spawn([&] {
        if (look_up() != 0) return;
        ++found;
        ::freeaddrinfo(list);
      }));
    bao::join_all(tasks);
    auto leaves = bao::spawn([&] {
      hook::usleep(1000000);
      killed = in_c(look_up);
    });
    bao::yield();
    leaves.kill();
  });
  CHECK(found == 20);
  CHECK(killed.result == EAI_SYSTEM);
  CHECK(killed.error == ECANCELED);
}

TEST_CASE("V68: names of addresses, and the older family") {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(80);
  char host[100], service[100];
  CHECK(hook::getnameinfo(reinterpret_cast<sockaddr*>(&address), sizeof address,
                          host, sizeof host, service, sizeof service, 0) == 0);
  CHECK(host == "localhost"s);
  CHECK(hook::getnameinfo(reinterpret_cast<sockaddr*>(&address), sizeof address,
                          host, 3, nullptr, 0, 0) == EAI_OVERFLOW);

  hostent* const mine = hook::gethostbyname("localhost");
  REQUIRE(mine != nullptr);
  const std::string name = mine->h_name;
  // Each task has memory of its own for it.
  bao::spawn([] {
    hostent* const other = hook::gethostbyaddr("\x7f\0\0\1", 4, AF_INET);
    REQUIRE(other != nullptr);
    CHECK(other->h_name == "localhost"s);
  }).get();
  CHECK(mine->h_name == name);
  CHECK(mine->h_addrtype == AF_INET);
  CHECK(std::memcmp(mine->h_addr_list[0], "\x7f\0\0\1", 4) == 0);
  CHECK(mine->h_addr_list[1] == nullptr);

  hostent room, *found = nullptr;
  char small[4];
  int error = 0;
  CHECK(hook::gethostbyname_r("localhost", &room, small, sizeof small, &found,
                              &error) == ERANGE);
  CHECK(hook::gethostbyname("no.such.name.invalid") == nullptr);
}

TEST_CASE(
    "V87: under patch_off, and where no tasks are, calls are libc's own") {
  pair_of_sockets s;
  const timeval limit{0, 20000};
  ::setsockopt(s.ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  int turns = 0;
  bool enough = false;
  auto other = bao::spawn([&] {
    while (!enough) bao::yield(), ++turns;
  });
  char byte;
  const auto reads = [&] { return hook::read(s.ends[0], &byte, 1); };
  {
    const bao::patch_off off;
    CHECK(in_c(reads) == outcome{-1, EAGAIN});
    CHECK(turns == 0);
    bao::spawn([&] {  // others are as they were
      CHECK(in_c(reads) == outcome{-1, EAGAIN});
      CHECK(turns > 1);
    })
        .join();
  }
  CHECK(in_c(reads) == outcome{-1, EAGAIN});
  enough = true;
  other.join();
  std::thread([&] {
    CHECK(in_c(reads) == outcome{-1, EAGAIN});
    CHECK(bao::current_thread == nullptr);  // nor has it got any by that
  }).join();
}

TEST_CASE("V88: without BAO_PATCH_ALL() nothing is live") {
  CHECK(bao::patch_status(nullptr).empty());
  char byte;
  CHECK(in_c([&] { return hook::original::read(-1, &byte, 1); }) ==
        outcome{-1, EBADF});
}

TEST_CASE("a FILE of bao::fdopen lets others run") {
  int ends[2];
  bao::check(::pipe(ends), "pipe");
  std::FILE* const in = bao::fdopen(ends[0], "r");
  std::FILE* const out = bao::fdopen(ends[1], "w");
  REQUIRE(in != nullptr);
  REQUIRE(out != nullptr);
  auto writer = bao::spawn([&] {
    for (int i = 0; i < 3; ++i) {
      bao::yield();
      std::fprintf(out, "line %d\n", i);
      std::fflush(out);
    }
    std::fclose(out);
  });
  char line[100];
  for (int i = 0; i < 3; ++i) {
    REQUIRE(std::fgets(line, sizeof line, in) != nullptr);
    CHECK(line == "line " + std::to_string(i) + '\n');
  }
  CHECK(std::fgets(line, sizeof line, in) == nullptr);
  std::fclose(in);
  CHECK(::fcntl(ends[0], F_GETFD) == -1);
  CHECK(bao::fdopen(-1, "r") == nullptr);
  CHECK(errno == EBADF);
}

TEST_CASE("a FILE of bao::fdopen to append to a file leaves what is there") {
  char name[] = "/tmp/bao-append-XXXXXX";
  const int fd = bao::check(::mkstemp(name), "mkstemp");
  bao::check(static_cast<int>(::pwrite(fd, "first ", 6, 0)), "pwrite");
  std::FILE* const one = bao::fdopen(::open(name, O_WRONLY), "a");
  std::FILE* const other = bao::fdopen(::open(name, O_WRONLY), "a");
  ::unlink(name);
  for (std::FILE* to : {one, other}) {
    std::fputs(to == one ? "second " : "third", to);
    std::fclose(to);
  }
  char text[30] = "";
  CHECK(::pread(fd, text, sizeof text - 1, 0) == 18);
  CHECK(text == "first second third"s);
  ::close(fd);
}
