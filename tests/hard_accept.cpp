// hard_accept.cpp - the hard cases of listeners and datagrams
//
// No descriptors left, reports that come to nothing, full queues. All of it
// stays on this machine. Nothing waits for ever: what must be told in time
// stands under a timeout, as at a deadline it would look again, and find it
// after all.
#include <doctest/doctest.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "bao.hpp"
#include "io_tools.hpp"

using namespace std::chrono_literals;

// --- accepting ---------------------------------------------------------------

TEST_CASE(
    "V65, V82: accept without descriptors backs off, says so once, recovers") {
  struct odd_system final : other_system {
    int error = 0;
    int accepts = 0;
    int accept(int fd, sockaddr* from, socklen_t* n, int flags) override {
      ++accepts;
      if (error == 0) return below->accept(fd, from, n, flags);
      errno = error;
      return -1;
    }
  };
  std::FILE* const said = std::tmpfile();
  REQUIRE(said != nullptr);
  const int standard_error = ::dup(2);
  ::dup2(::fileno(said), 2);
  {
    bao::virtual_time clock;
    odd_system system;
    bao::unix_listener door(unix_name("no_room"));
    for (const int error : {EMFILE, ENFILE, ENOBUFS, ENOMEM}) {
      auto client = bao::connect_unix(door.local_address());
      system.error = error;
      const auto start = bao::now();
      CHECK(error_of([&] { door.accept(100ms); }) == std::errc::timed_out);
      CHECK(bao::now() - start == 100ms);
      auto killed = bao::spawn([&] { door.accept(); });
      bao::sleep(1s);
      const auto then = bao::now();
      CHECK(killed.kill(1h));
      CHECK(bao::now() == then);

      system.accepts = 0;
      std::string order;
      auto first = bao::spawn([&] {
        door.accept();
        order += '1';
      });
      auto second = bao::spawn([&] {
        door.accept();
        order += '2';
      });
      bao::sleep(10s);
      CHECK(system.accepts >= 10);
      CHECK(system.accepts < 30);  // the second stands in line
      CHECK(order == "");
      system.error = 0;
      first.get();
      CHECK(bao::now() - start < 13s);
      CHECK(!second.done());
      auto late = bao::connect_unix(door.local_address());
      second.get();
      CHECK(order == "12");
    }
  }
  ::dup2(standard_error, 2);
  ::close(standard_error);
  char text[4096] = {};
  std::rewind(said);
  const std::size_t n = std::fread(text, 1, sizeof text - 1, said);
  std::fclose(said);
  const std::string all(text, n);
  // Sanitizers may have said something, too.
  CHECK(all.find("bao: accept: ") != std::string::npos);
  CHECK(all.find("bao: accept: ") == all.rfind("bao: accept: "));
}

TEST_CASE("X12: what was late works when it comes") {
  bao::unix_listener door(unix_name("late"));
  bao::tcp_listener other_door("127.0.0.1:0");
  bao::udp_socket here("127.0.0.1:0"), there("127.0.0.1:0");
  {
    bao::virtual_time clock;
    for (int i = 0; i < 3; ++i) {
      const auto start = bao::now();
      CHECK(error_of([&] { door.accept(1h); }) == std::errc::timed_out);
      CHECK(error_of([&] { other_door.accept(1h); }) == std::errc::timed_out);
      CHECK(error_of([&] { here.receive_from(9, 1h); }) ==
            std::errc::timed_out);
      CHECK(bao::now() - start == 3h);
    }
  }
  bao::timeout guard(60s);
  auto local = bao::connect_unix(door.local_address());
  CHECK(door.accept());
  auto client = bao::connect(other_door.local_address());
  CHECK(other_door.accept());
  there.send_to("come", here.local_address());
  CHECK(here.receive_from().data == "come");
}

// As when another process was faster, or a datagram was damaged.
TEST_CASE("V65: a report that comes to nothing is waited out") {
  struct odd_system final : other_system {
    bool robs = true;
    int accept(int fd, sockaddr* from, socklen_t* n, int flags) override {
      const int got = below->accept(fd, from, n, flags);
      if (got == -1 || !std::exchange(robs, false)) return got;
      ::close(got);
      errno = EAGAIN;
      return -1;
    }
    ssize_t recvmsg(int fd, msghdr* m, int flags) override {
      const ssize_t got = below->recvmsg(fd, m, flags);
      if (got == -1 || !std::exchange(robs, false)) return got;
      errno = EAGAIN;
      return -1;
    }
  } system;
  bao::timeout guard(60s);
  bao::tcp_listener door("127.0.0.1:0");
  auto server = bao::spawn([&] { return door.accept().read_some(10); });
  bao::sleep(1ms);
  auto first = bao::connect(door.local_address());
  CHECK(error_of([&] { first.read_some(10); }) != std::errc::timed_out);
  CHECK(!system.robs);
  CHECK(!server.done());
  auto second = bao::connect(door.local_address());
  second.write_all("second");
  CHECK(server.get() == "second");

  system.robs = true;
  bao::udp_socket here("127.0.0.1:0"), there("127.0.0.1:0");
  auto receiver = bao::spawn([&] { return here.receive_from().data; });
  bao::sleep(1ms);
  there.send_to("first", here.local_address());
  while (system.robs) bao::sleep(1ms);
  bao::sleep(1ms);
  CHECK(!receiver.done());
  there.send_to("second", here.local_address());
  CHECK(receiver.get() == "second");
}

// --- datagrams ---------------------------------------------------------------

TEST_CASE("V65: unix datagrams are whole, cut or empty, and say whence") {
  bao::timeout guard(60s);
  bao::udp_socket here(unix_name("here")), there(unix_name("there"));
  auto receiver = bao::spawn([&] { return there.receive_from(5); });
  auto second = bao::spawn([&] { return there.receive_from(5); });
  bao::yield();
  here.send_to("", there.local_address());
  here.send_to("123456", there.local_address());
  CHECK(receiver.get().data == "");
  CHECK(!receiver.get().truncated);
  CHECK(second.get().data == "12345");
  CHECK(second.get().truncated);
  there.send_to("back", second.get().from);
  const auto back = here.receive_from();
  CHECK(back.data == "back");
  CHECK(back.from.to_string() == there.local_address().to_string());
}

TEST_CASE("V65: who sends to a full unix socket waits, without haste") {
  struct odd_system final : other_system {
    int sends = 0;
    ssize_t sendmsg(int fd, const msghdr* m, int flags) override {
      ++sends;
      return below->sendmsg(fd, m, flags);
    }
  } system;
  bao::udp_socket full(unix_name("full")), first(unix_name("first"));
  bao::udp_socket second(unix_name("second"));
  const bao::address to = full.local_address();
  int n = 0;
  while (n < 10'000 && !error_of([&] { first.send_to("x", to, 0s); })) ++n;
  REQUIRE(n < 10'000);
  bool mine = false;
  SUBCASE("of his own datagrams") { mine = true; }
  SUBCASE("of another's datagrams") {}
  auto sender = bao::spawn([&] { (mine ? first : second).send_to("y", to); });
  system.sends = 0;
  bao::sleep(50ms);
  CHECK(!sender.done());
  CHECK(system.sends < 100);
  for (int i = 0; i < n; ++i) CHECK(full.receive_from(10, 30s).data == "x");
  CHECK(sender.join(30s));
  CHECK(full.receive_from(10, 30s).data == "y");
}

TEST_CASE("V65: a pair of unix datagram sockets keeps its bounds as a stream") {
  bao::timeout guard(60s);
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0);
  bao::stream here(ends[0]), there(ends[1]);
  auto writer = bao::spawn([&] {  // more than fit
    for (int i = 0; i < 2000; ++i) here.write_all(std::to_string(i));
  });
  char bytes[10];
  for (int i = 0; i < 2000; ++i) {
    const std::size_t n = there.read_some(bytes, 10);
    CHECK(std::string(bytes, n) == std::to_string(i));
  }
  writer.get();
}

TEST_CASE("V45: datagrams are received in the order of those who came") {
  bao::timeout guard(60s);
  bao::udp_socket here("127.0.0.1:0"), there("127.0.0.1:0");
  std::string order;
  std::vector<bao::task<>> receivers;
  for (const char name : {'1', '2', '3', '4'})
    receivers.push_back(
        bao::spawn([&, name] { order += name + here.receive_from().data; }));
  bao::yield();
  CHECK(receivers[1].kill(30s));
  for (const char* text : {"a", "b", "c"})
    there.send_to(text, here.local_address());
  bao::join_all(receivers);
  CHECK(order == "1a3b4c");
}
