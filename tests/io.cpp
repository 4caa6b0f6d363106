// io.cpp - tests of descriptors, of waiting for them, and of streams
//
// Nothing here waits for ever. Where a call must not miss that it is told, the
// guard is a timeout: at a deadline it would look again, and find it after all.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "bao.hpp"
#include "checks.hpp"
#include "io_tools.hpp"
#include "sanitized.hpp"

using namespace std::chrono_literals;

static double cpu_seconds() {
  timespec t;
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// --- reading and writing -----------------------------------------------------

TEST_CASE("V65: a reader waits until there is something, while others run") {
  auto ends = bao::socket_pair();
  std::string order;
  auto reader = bao::spawn([&] {
    const std::string got = ends.first.read_some(100, 5s);
    order += " read " + got;
  });
  auto writer = bao::spawn([&] {
    order += "write";
    ends.second.write_all("this", 5s);
  });
  reader.get();
  CHECK(order == "write read this");
}

TEST_CASE(
    "V65: a read takes what there is; the end is 0 bytes, again and again") {
  auto ends = bao::socket_pair();
  ends.second.write_all("abc");
  ends.second.close();
  char piece[2];
  CHECK(ends.first.read_some(piece, 2, 5s) == 2);
  CHECK(ends.first.read_some(piece, 2, 5s) == 1);
  CHECK(piece[0] == 'c');
  CHECK(ends.first.read_some(piece, 2, 5s) == 0);
  CHECK(ends.first.read_some(100, 5s) == "");
  CHECK(ends.first.read_some(piece, 2, 5s) == 0);
}

TEST_CASE("V65: nothing is read or written of 0 bytes, not even waited for") {
  auto ends = bao::socket_pair();
  char unused;
  CHECK(ends.first.read_some(&unused, 0) == 0);
  CHECK(ends.first.read_exactly(0) == "");
  CHECK(ends.first.write_some(&unused, 0) == 0);
  ends.first.write_all("");
  ends.first.writev({"", ""});
  CHECK(error_of([&] { ends.second.read_some(&unused, 1, 1ms); }) ==
        std::errc::timed_out);
}

TEST_CASE("V65: ten megabytes pass through small buffers unchanged") {
  auto ends = bao::socket_pair();
  const int small = 4096;
  ::setsockopt(ends.first.fd(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  std::string sent(10'000'000, '\0');
  for (std::size_t i = 0; i < sent.size(); ++i)
    sent[i] = static_cast<char>(i * 7 / 5 % 251);
  auto writer = bao::spawn([&] {
    ends.first.write_all(sent, 60s);
    ends.first.shutdown_write();
  });
  const std::string got = ends.second.read_all(SIZE_MAX, 60s);
  CHECK(got.size() == sent.size());
  CHECK((got == sent));  // would print them
  writer.get();
}

TEST_CASE(
    "V65: write_some writes what there is room for, and no less than one") {
  auto ends = bao::socket_pair();
  const std::string much(10'000'000, 'x');
  const std::size_t put = ends.first.write_some(much.data(), much.size(), 5s);
  CHECK(put > 0);
  CHECK(put < much.size());
  ends.first.shutdown_write();
  CHECK(ends.second.read_all(SIZE_MAX, 5s).size() == put);
}

TEST_CASE("V65: writev writes its pieces one after the other") {
  auto ends = bao::socket_pair();
  ends.first.writev({"GET ", "", "/", " HTTP/1.1\r\n"}, 5s);
  CHECK(ends.second.read_line(5s) == "GET / HTTP/1.1");
}

TEST_CASE("V65: one task reads while another one writes the same descriptor") {
  auto ends = bao::socket_pair();
  const std::string much(1'000'000, 'x');
  auto writer = bao::spawn([&] { ends.first.write_all(much, 30s); });
  auto reader = bao::spawn(
      [&] { return ends.first.read_exactly(much.size(), 30s).size(); });
  auto echo = bao::spawn([&] {
    for (std::size_t n = 0; n < much.size();) {
      const std::string piece = ends.second.read_some(5000, 30s);
      ends.second.write_all(piece, 30s);
      n += piece.size();
    }
  });
  writer.get();
  echo.get();
  CHECK(reader.get() == much.size());
}

// --- the end of a connection -------------------------------------------------

TEST_CASE("V65: after shutdown_write the other direction still works") {
  auto ends = bao::socket_pair();
  auto other = bao::spawn([&] {
    const std::string question = ends.second.read_all(SIZE_MAX, 5s);
    ends.second.write_all(question + ", and the answer", 5s);
    ends.second.close();
  });
  ends.first.write_all("the question");
  ends.first.shutdown_write();
  CHECK(ends.first.read_all(SIZE_MAX, 5s) == "the question, and the answer");
  other.get();
}

// Data and the end arrive in one event: of an edge-triggered poller there is no
// second one, though the first read was short.
TEST_CASE("V65: what was written just before the end is read, then the end") {
  bao::timeout guard(5s);
  for (const bool reader_waits : {true, false}) {
    auto ends = bao::socket_pair();
    char bytes[100];
    CHECK(error_of([&] { ends.first.read_some(bytes, 100, 1ms); }) ==
          std::errc::timed_out);  // the poller knows it now
    auto writer = bao::spawn([&] {
      ends.second.write_all("last");
      ends.second.close();
    });
    if (!reader_waits) bao::sleep(2ms);  // the event comes while nobody waits
    CHECK(ends.first.read_some(bytes, 100) == 4);
    CHECK(ends.first.read_some(bytes, 100) == 0);
    writer.get();
  }
}

TEST_CASE("V65: the end is seen though it comes after a read that drained") {
  bao::timeout guard(5s);
  auto ends = bao::socket_pair();
  char bytes[100];
  auto writer = bao::spawn([&] {
    ends.second.write_all("last");
    bao::yield();  // the reader is told of the data only
    bao::sleep(1ms);
    ends.second.shutdown_write();
  });
  CHECK(ends.first.read_some(bytes, 100) == 4);
  CHECK(ends.first.read_some(bytes, 100) == 0);
  writer.get();
}

TEST_CASE(
    "V65: whoever has heard of the end still reads all that is before it") {
  bao::timeout guard(5s);
  auto ends = bao::socket_pair();
  char bytes[100];
  CHECK(error_of([&] { ends.first.read_some(bytes, 100, 1ms); }) ==
        std::errc::timed_out);
  ends.second.write_all(std::string(100'000, 'x'));
  ends.second.shutdown_write();
  bao::sleep(1ms);
  std::size_t all = 0, n;
  while ((n = ends.first.read_some(bytes, 99)) != 0) all += n;
  CHECK(all == 100'000);
}

TEST_CASE("V65: writing to a closed peer throws EPIPE, and no signal comes") {
  auto ends = bao::socket_pair();
  ends.second.close();
  const auto before = ::signal(SIGPIPE, SIG_DFL);  // it would end the program
  CHECK(error_of([&] { ends.first.write_all("x", 5s); }) ==
        std::errc::broken_pipe);
  ::signal(SIGPIPE, before);
}

TEST_CASE("V65: a writer that waits learns that its peer has closed") {
  auto ends = bao::socket_pair();
  const std::string much(10'000'000, 'x');
  auto writer = bao::spawn([&] { ends.first.write_all(much, 5s); });
  bao::yield();
  ends.second.close();
  CHECK(error_of([&] { writer.get(); }) == std::errc::broken_pipe);
}

// recvmsg() of 100 bytes stops where descriptors were sent along.
TEST_CASE("V65: a short read that has left something behind loses nothing") {
  bao::timeout guard(5s);
  auto ends = bao::socket_pair();
  char bytes[100];
  CHECK(error_of([&] { ends.first.read_some(bytes, 100, 1ms); }) ==
        std::errc::timed_out);
  iovec piece{bytes, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr m{};
  m.msg_iov = &piece;
  m.msg_iovlen = 1;
  m.msg_control = control;
  m.msg_controllen = sizeof control;
  cmsghdr* const h = CMSG_FIRSTHDR(&m);
  h->cmsg_level = SOL_SOCKET;
  h->cmsg_type = SCM_RIGHTS;
  h->cmsg_len = CMSG_LEN(sizeof(int));
  const int sent_along = ends.second.fd();
  std::memcpy(CMSG_DATA(h), &sent_along, sizeof sent_along);
  REQUIRE(::sendmsg(ends.second.fd(), &m, 0) == 1);
  REQUIRE(::send(ends.second.fd(), "b", 1, 0) == 1);
  CHECK(ends.first.read_some(bytes, 100) == 1);
  CHECK(ends.first.read_some(bytes, 100) == 1);
  CHECK(bytes[0] == 'b');
}

TEST_CASE("V65: messages that came with one event are read one by one") {
  bao::timeout guard(5s);
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
  bao::stream in(ends[0]), out(ends[1]);
  char bytes[100];
  CHECK(error_of([&] { in.read_some(bytes, 100, 1ms); }) ==
        std::errc::timed_out);
  out.write_all("one");
  out.write_all("three");
  CHECK(in.read_some(bytes, 100) == 3);
  CHECK(in.read_some(bytes, 100) == 5);
}

// --- deadlines, timeouts, kills ----------------------------------------------

TEST_CASE("X12: a read that is late says which call and which descriptor") {
  auto ends = bao::socket_pair();
  const bao::deadline until = 5ms;
  std::string text;
  try {
    ends.first.read_some(100, until);
  } catch (const std::system_error& e) {
    CHECK(e.code() == std::errc::timed_out);
    text = e.what();
  }
  CHECK(until.passed());
  const std::string call =
      "reading descriptor " + std::to_string(ends.first.fd());
  CHECK(text.find(call + ": the deadline has passed") == 0);
}

TEST_CASE("X12: what arrives after a late read is there for the next one") {
  auto ends = bao::socket_pair();
  CHECK(error_of([&] { ends.first.read_some(100, 1ms); }) ==
        std::errc::timed_out);
  ends.second.write_all("late");
  CHECK(ends.first.read_some(100, 5s) == "late");
}

TEST_CASE("X12: a write that is late has written what there was room for") {
  auto ends = bao::socket_pair();
  const std::string much(10'000'000, 'x');
  CHECK(error_of([&] { ends.first.write_all(much, 5ms); }) ==
        std::errc::timed_out);
  ends.first.shutdown_write();
  const std::size_t got = ends.second.read_all(SIZE_MAX, 5s).size();
  CHECK(got > 0);
  CHECK(got < much.size());
}

TEST_CASE("X12: a deadline that has passed still takes what is there") {
  auto ends = bao::socket_pair();
  char bytes[100];
  auto writer = bao::spawn([&] { ends.second.write_all("first"); });
  CHECK(ends.first.read_some(bytes, 100, 5s) == 5);  // drained
  ends.second.write_all("second");
  CHECK(ends.first.read_some(bytes, 100, 0s) == 6);
  CHECK(error_of([&] { ends.first.read_some(bytes, 100, 0s); }) ==
        std::errc::timed_out);
}

TEST_CASE("X12: three calls that share a deadline end by it together") {
  auto ends = bao::socket_pair();
  const bao::deadline until = 5ms;
  for (int i = 0; i < 3; ++i)
    CHECK(error_of([&] { ends.first.read_some(100, until); }) ==
          std::errc::timed_out);
  CHECK(until.passed());
}

TEST_CASE("V65: a timeout around a read loses nothing, though it had a part") {
  auto ends = bao::socket_pair();
  ends.second.write_all("half ");
  const auto whole =
      bao::with_timeout(5ms, [&] { return ends.first.read_exactly(10); });
  CHECK(!whole);
  ends.second.write_all("whole");
  CHECK(ends.first.read_exactly(10, 5s) == "half whole");
}

TEST_CASE("V65: a reader that is killed loses nothing, though it had a part") {
  auto ends = bao::socket_pair();
  auto reader = bao::spawn([&] { ends.first.read_line(); });
  bao::yield();
  ends.second.write_all("half ");
  bao::sleep(1ms);
  CHECK(reader.kill(5s));
  CHECK(reader.killed());
  ends.second.write_all("whole\n");
  CHECK(ends.first.read_line(5s) == "half whole");
}

TEST_CASE("V65: data that arrives together with a kill is not lost") {
  auto ends = bao::socket_pair();
  std::string got;
  auto reader = bao::spawn([&] { got = ends.first.read_some(100); });
  bao::yield();
  ends.second.write_all("data");
  reader.kill(5s);
  if (got.empty()) got = ends.first.read_some(100, 5s);
  CHECK(got == "data");
}

TEST_CASE("V65: one who reads and never has to wait can be killed") {
  bao::stream zero(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  const bao::deadline guard = 5s;
  auto reader = bao::spawn([&] {
    char byte;
    while (!guard.passed()) zero.read_some(&byte, 1);
  });
  bao::yield();
  reader.kill();
  CHECK(reader.killed());
}

TEST_CASE("V65: a timeout strikes one who reads and never has to wait") {
  bao::stream zero(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  const bao::deadline guard = 5s;
  char byte;
  CHECK(!bao::with_timeout(5ms, [&] {
    while (!guard.passed()) zero.read_some(&byte, 1);
  }));
}

// --- several tasks on one descriptor -----------------------------------------

TEST_CASE("V45: several readers are served in the order in which they came") {
  bao::timeout guard(5s);
  auto ends = bao::socket_pair();
  std::string order;
  std::vector<bao::task<>> readers;
  for (const char name : {'1', '2', '3'})
    readers.push_back(bao::spawn([&, name] {
      char byte;
      ends.first.read_some(&byte, 1);
      order += {name, byte};
    }));
  bao::yield();
  ends.second.write_all("abc");
  for (auto& reader : readers) reader.join();
  CHECK(order == "1a2b3c");
}

TEST_CASE(
    "V45: a reader who comes when data is there stands behind the others") {
  bao::timeout guard(5s);
  auto ends = bao::socket_pair();
  std::string order;
  const auto read_one = [&](char name) {
    char byte;
    ends.first.read_some(&byte, 1);
    order += {name, byte};
  };
  auto first = bao::spawn(read_one, '1');
  auto second = bao::spawn(read_one, '2');
  bao::yield();
  ends.second.write_all("abc");
  read_one('3');
  first.join();
  second.join();
  CHECK(order == "1a2b3c");
}

TEST_CASE(
    "V45: when the first of several readers is killed the next is served") {
  bao::timeout guard(5s);
  auto ends = bao::socket_pair();
  const auto read_one = [&] {
    char byte = '-';
    ends.first.read_some(&byte, 1);
    return byte;
  };
  auto first = bao::spawn(read_one);
  auto second = bao::spawn(read_one);
  bao::yield();
  SUBCASE("before anything arrives") {
    first.kill();
    ends.second.write_all("x");
    CHECK(second.get() == 'x');
  }
  SUBCASE("at the moment when it arrives") {
    ends.second.write_all("x");
    first.kill(0s);
    first.join();
    CHECK((first.killed() ? second.get() : first.get()) == 'x');
    if (!first.killed()) second.kill();
  }
}

TEST_CASE("V45: when the first of several readers is late the next is served") {
  auto ends = bao::socket_pair();
  char byte = '-';
  auto first = bao::spawn([&] {
    char unused;
    ends.first.read_some(&unused, 1, 5ms);
  });
  auto second = bao::spawn([&] { ends.first.read_some(&byte, 1, 5s); });
  CHECK(error_of([&] { first.get(); }) == std::errc::timed_out);
  ends.second.write_all("x");
  second.get();
  CHECK(byte == 'x');
}

TEST_CASE("V45: of two who read lines each gets one, in their order") {
  bao::timeout guard(5s);
  bao::tcp_listener door("127.0.0.1:0");
  bao::tcp_stream peer = bao::connect(door.local_address());
  bao::tcp_stream in = door.accept(5s);
  auto first = bao::spawn([&] { return in.read_line().value(); });
  auto second = bao::spawn([&] { return in.read_line().value(); });
  bao::sleep(1ms);
  SUBCASE("though both came at once") { peer.write_all("one\ntwo\n"); }
  SUBCASE("though the first came in pieces") {
    peer.write_all("on");
    bao::sleep(5ms);
    peer.write_all("e\ntwo\n");
  }
  CHECK(first.get() == "one");
  CHECK(second.get() == "two");
}

TEST_CASE("V45: readers who need not wait do not overtake each other") {
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
  bao::stream in(ends[0]), out(ends[1]);
  std::string sent;
  for (char byte = 0; byte < 100; ++byte) {  // a message each
    sent += byte;
    out.write_all(&byte, 1, 5s);
  }
  auto first = bao::spawn([&] { return in.read_exactly(50, 5s); });
  auto second = bao::spawn([&] { return in.read_exactly(50, 5s); });
  CHECK((first.get() + second.get() == sent));
}

TEST_CASE("V45: two who write much at once do not mix it") {
  auto ends = bao::socket_pair();
  const auto write = [&](char byte) {
    ends.first.write_all(std::string(1'000'000, byte), 30s);
  };
  auto first = bao::spawn(write, 'a'), second = bao::spawn(write, 'b');
  const std::string got = ends.second.read_exactly(2'000'000, 30s);
  CHECK(got.find('b') == 1'000'000);
  CHECK(got.rfind('a') == 999'999);
  first.get();
  second.get();
}

TEST_CASE("V45: several writers are served in the order in which they came") {
  auto ends = bao::socket_pair();
  const std::string much(100'000, 'x');
  std::size_t full = 0;
  while (
      !error_of([&] { full += ends.first.write_some(much.data(), 1000, 0s); }))
    continue;
  std::string order;
  std::vector<bao::task<>> writers;
  for (const char* name : {"1", "2", "3"})
    writers.push_back(bao::spawn([&, name] {
      ends.first.write_all(name, 5s);
      order += name;
    }));
  bao::yield();
  ends.second.read_exactly(full, 5s);
  CHECK(ends.second.read_exactly(3, 5s) == "123");
  for (auto& writer : writers) writer.join();
  CHECK(order == "123");
}

TEST_CASE("V45: one who waits for both directions holds up neither") {
  bao::timeout guard(5s);
  auto ends = bao::socket_pair();
  char bytes[4096] = {};
  CHECK(error_of([&] { ends.first.read_some(bytes, 1, 1ms); }) ==
        std::errc::timed_out);
  while (::send(ends.first.fd(), bytes, sizeof bytes, MSG_DONTWAIT) > 0)
    continue;
  auto both = bao::spawn([&] {
    return bao::wait_fd(ends.first.fd(), bao::readable | bao::writable);
  });
  auto reader = bao::spawn([&] { return ends.first.read_some(10); });
  auto writer = bao::spawn([&] { ends.first.write_all("x"); });
  bao::sleep(1ms);
  ends.second.write_all("y");
  while (::recv(ends.second.fd(), bytes, sizeof bytes, MSG_DONTWAIT) > 0)
    continue;
  CHECK(both.get());
  CHECK(reader.get() == "y");
  writer.get();
}

TEST_CASE("V65: a connection that floods does not keep a quiet one waiting") {
  auto ends = bao::socket_pair();
  bao::stream flood(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  bool heard = false;
  auto flooded = bao::spawn([&] {
    char byte;
    const bao::deadline guard = 10s;
    while (!heard && !guard.passed()) flood.read_some(&byte, 1);
  });
  auto quiet = bao::spawn([&] {
    ends.first.read_some(100);
    heard = true;
  });
  bao::yield();
  ends.second.write_all("psst");
  flooded.get();
  CHECK(heard);
}

// --- closing, and numbers that come again ------------------------------------

TEST_CASE("X20: closing a descriptor wakes all who wait for it, with EBADF") {
  auto ends = bao::socket_pair();
  const std::string much(10'000'000, 'x');
  auto reader = bao::spawn([&] { ends.first.read_some(100, 5s); });
  auto second = bao::spawn([&] { ends.first.read_line(5s); });
  auto writer = bao::spawn([&] { ends.first.write_all(much, 5s); });
  auto waiter =
      bao::spawn([&] { bao::wait_fd(ends.first.fd(), bao::readable, 5s); });
  bao::sleep(1ms);
  ends.first.close();
  for (auto& t : {bao::task<>(reader), bao::task<>(second), bao::task<>(writer),
                  bao::task<>(waiter)})
    CHECK(error_of([&] { t.get(); }) == std::errc::bad_file_descriptor);
}

TEST_CASE("X20: a stream may go while tasks wait for it") {
  auto ends = bao::socket_pair();
  auto going = std::make_unique<bao::unix_stream>(std::move(ends.first));
  auto reader = bao::spawn([&] { going->read_line(5s); });
  auto second = bao::spawn([&] { going->read_some(100, 5s); });
  bao::yield();
  ends.second.write_all("x");  // it may be told of that first
  going.reset();
  CHECK(error_of([&] { reader.get(); }) == std::errc::bad_file_descriptor);
  CHECK(error_of([&] { second.get(); }) == std::errc::bad_file_descriptor);
}

// Who never has to wait gives way now and then: the stream goes meanwhile.
TEST_CASE("X20: a stream may go while tasks use it that need not wait") {
  auto in =
      std::make_unique<bao::stream>(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  auto out =
      std::make_unique<bao::stream>(::open("/dev/null", O_WRONLY | O_CLOEXEC));
  const std::string much(10'000'000, 'x');
  auto reader = bao::spawn([&] { in->read_exactly(much.size(), 5s); });
  auto writer = bao::spawn([&] { out->write_all(much, 5s); });
  bao::yield();
  in.reset();
  out.reset();
  for (auto& t : {bao::task<>(reader), bao::task<>(writer)})
    if (!t.done())
      CHECK(error_of([&] { t.get(); }) == std::errc::bad_file_descriptor);
}

TEST_CASE("X20: a number that is used again at once is another descriptor") {
  auto ends = bao::socket_pair();
  auto others = bao::socket_pair();
  auto reader = bao::spawn([&] { ends.first.read_some(100, 5s); });
  bao::yield();
  const int number = ends.first.fd();
  ends.first.close();
  bao::unix_stream again(::fcntl(others.first.fd(), F_DUPFD_CLOEXEC, 0));
  REQUIRE(again.fd() == number);
  others.second.write_all("for the other");
  CHECK(again.read_some(100, 5s) == "for the other");
  CHECK(error_of([&] { reader.get(); }) == std::errc::bad_file_descriptor);
  ends.second.close();
  others.second.write_all("and more");
  CHECK(again.read_some(100, 5s) == "and more");
}

TEST_CASE("X20: a reader who has not had to wait does not read another file") {
  auto ends = bao::socket_pair();
  auto others = bao::socket_pair();
  ends.second.write_all(std::string(1000, 'x'));
  others.second.write_all(std::string(1000, 'y'));
  std::string got;
  auto reader = bao::spawn([&] {
    char byte;
    for (int i = 0; i < 1000; ++i) {
      ends.first.read_some(&byte, 1, 5s);
      got += byte;
    }
  });
  bao::yield();  // until it gives way
  const int number = ends.first.fd();
  ends.first.close();
  bao::unix_stream again(::fcntl(others.first.fd(), F_DUPFD_CLOEXEC, 0));
  REQUIRE(again.fd() == number);
  CHECK(error_of([&] { reader.get(); }) == std::errc::bad_file_descriptor);
  CHECK(got.size() < 1000);
  CHECK(got.find('y') == std::string::npos);
}

TEST_CASE("X20: an event that was on its way when it was closed goes nowhere") {
  auto ends = bao::socket_pair();
  auto others = bao::socket_pair();
  CHECK(error_of([&] { ends.first.read_some(100, 1ms); }) ==
        std::errc::timed_out);
  const int copy = ::dup(ends.first.fd());  // keeps the connection alive
  const int number = ends.first.fd();
  ends.first.close();
  bao::unix_stream again(::fcntl(others.first.fd(), F_DUPFD_CLOEXEC, 0));
  REQUIRE(again.fd() == number);
  auto reader = bao::spawn([&] { return again.read_some(100, 5s); });
  bao::yield();
  ends.second.write_all("for the copy");
  bao::sleep(1ms);
  CHECK(!reader.done());
  others.second.write_all("for the other");
  CHECK(reader.get() == "for the other");
  bao::unix_stream copied(copy);
  CHECK(copied.read_some(100, 5s) == "for the copy");
}

TEST_CASE("X20: two numbers of one connection are closed one by one") {
  auto ends = bao::socket_pair();
  bao::unix_stream copy(::dup(ends.first.fd()));
  auto reader = bao::spawn([&] { ends.first.read_some(100, 5s); });
  auto other = bao::spawn([&] { return copy.read_some(100, 5s); });
  bao::yield();
  ends.first.close();
  CHECK(error_of([&] { reader.get(); }) == std::errc::bad_file_descriptor);
  CHECK(!other.done());
  ends.second.write_all("x");
  CHECK(other.get() == "x");
}

TEST_CASE("X20: a released number that others close and reuse is a new one") {
  auto ends = bao::socket_pair();
  auto others = bao::socket_pair();
  CHECK(error_of([&] { ends.first.read_some(100, 1ms); }) ==
        std::errc::timed_out);
  const int number = ends.first.release();
  CHECK(!ends.first);
  ::close(number);
  bao::unix_stream again(::fcntl(others.first.fd(), F_DUPFD_CLOEXEC, 0));
  REQUIRE(again.fd() == number);
  auto reader = bao::spawn([&] { return again.read_some(100, 5s); });
  bao::yield();
  others.second.write_all("x");
  CHECK(reader.get() == "x");
}

TEST_CASE(
    "X20: a number closed behind our back is known anew by its new owner") {
  auto ends = bao::socket_pair();
  auto others = bao::socket_pair();
  auto reader = bao::spawn([&] { ends.first.read_some(100, 5s); });
  bao::yield();
  const int number = ends.first.fd();
  ::close(number);
  bao::unix_stream again(::fcntl(others.first.fd(), F_DUPFD_CLOEXEC, 0));
  REQUIRE(again.fd() == number);
  auto other = bao::spawn([&] { return again.read_some(100, 5s); });
  bao::yield();
  others.second.write_all("x");
  CHECK(other.get() == "x");
  reader.kill();
  reader.error();
  ends.first.release();  // the number is no longer its own
}

TEST_CASE("V67: a number closed behind our back is known anew by wait_fd") {
  auto ends = bao::socket_pair();
  auto others = bao::socket_pair();
  const int number = ::dup(ends.first.fd());
  CHECK(!bao::wait_fd(number, bao::readable, 1ms));
  ::close(number);
  REQUIRE(::fcntl(others.first.fd(), F_DUPFD_CLOEXEC, 0) == number);
  auto waiter =
      bao::spawn([&] { return bao::wait_fd(number, bao::readable, 5s); });
  bao::yield();
  others.second.write_all("x");
  CHECK(waiter.get() == bao::readable);
  ::close(number);
}

TEST_CASE("X20: an empty stream and one that was closed are bad descriptors") {
  bao::stream empty;
  CHECK(!empty);
  CHECK(empty.fd() == -1);
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  bao::stream in(ends[0]), out(ends[1]);
  in.close();
  in.close();
  out.close();
  auto pair = bao::socket_pair();
  pair.first.close();
  bao::stream file(::open("/dev/zero", O_RDWR | O_CLOEXEC));
  file.close();
  char byte = 'x';
  for (bao::stream* s :
       {&empty, &in, &out, &file, static_cast<bao::stream*>(&pair.first)}) {
    CHECK(!*s);
    for (int i = 0; i < 50; ++i) {  // some calls let others run first
      CHECK(error_of([&] { s->read_some(&byte, 1, 5s); }) ==
            std::errc::bad_file_descriptor);
      CHECK(error_of([&] { s->write_some(&byte, 1, 5s); }) ==
            std::errc::bad_file_descriptor);
    }
  }
  CHECK(error_of([] { bao::stream s(-1); }) == std::errc::bad_file_descriptor);
}

// --- wait_fd -----------------------------------------------------------------

TEST_CASE("V36: to wait for neither direction is an error") {
  auto ends = bao::socket_pair();
  for (const bao::readiness neither : {bao::readiness(), bao::uncertain})
    CHECK_THROWS_AS(bao::wait_fd(ends.first.fd(), neither, 1ms),
                    std::invalid_argument);
}

TEST_CASE("V36: wait_fd says which direction is ready, and empty when late") {
  auto ends = bao::socket_pair();
  const int fd = ends.first.fd();
  CHECK(bao::wait_fd(fd, bao::readable | bao::writable) == bao::writable);
  CHECK(!bao::wait_fd(fd, bao::readable, 0s));
  const bao::deadline until = 5ms;
  CHECK(!bao::wait_fd(fd, bao::readable, until));
  CHECK(until.passed());
  auto writer = bao::spawn([&] { ends.second.write_all("x"); });
  CHECK(bao::wait_fd(fd, bao::readable, 5s) == bao::readable);
  CHECK(bao::wait_fd(fd, bao::readable | bao::writable) ==
        (bao::readable | bao::writable));
}

TEST_CASE("V67: wait_fd takes any descriptor: 0, a pipe, a file, /dev/null") {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const int before = ::fcntl(0, F_DUPFD_CLOEXEC, 3);
  REQUIRE(::dup2(ends[0], 0) == 0);
  CHECK(!bao::wait_fd(0, bao::readable, 1ms));
  auto writer = bao::spawn([&] { CHECK(::write(ends[1], "x", 1) == 1); });
  CHECK(bao::wait_fd(0, bao::readable, 5s) == bao::readable);
  if (before != -1) {
    ::dup2(before, 0);
    ::close(before);
  } else {
    ::close(0);
  }
  CHECK(bao::wait_fd(ends[0], bao::readable, 5s) == bao::readable);
  ::close(ends[0]);
  CHECK(bao::wait_fd(ends[1], bao::writable, 5s) == bao::writable);
  ::close(ends[1]);
  for (const char* path : {"/proc/self/exe", "/dev/null"}) {
    const int file = ::open(path, O_RDONLY | O_CLOEXEC);
    CHECK(bao::wait_fd(file, bao::readable, 5s) == bao::readable);
    ::close(file);
  }
}

TEST_CASE("V67: wait_fd of what is not open throws EBADF") {
  const int closed = ::dup(1);
  ::close(closed);
  for (const int fd : {closed, -1})
    for (const bao::deadline until : {bao::deadline(0s), bao::deadline(5s)})
      CHECK(error_of([&] { bao::wait_fd(fd, bao::readable, until); }) ==
            std::errc::bad_file_descriptor);
  CHECK_THROWS_WITH(bao::wait_fd(-1, bao::readable, 5s),
                    "wait_fd: descriptor -1: Bad file descriptor");
}

TEST_CASE("V36: all who wait for a foreign descriptor hear of it") {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const auto wait = [&] { return bao::wait_fd(ends[0], bao::readable, 5s); };
  auto first = bao::spawn(wait), second = bao::spawn(wait);
  auto killed = bao::spawn(wait);
  bao::yield();
  killed.kill();
  CHECK(::write(ends[1], "x", 1) == 1);
  CHECK(first.get() == bao::readable);
  CHECK(second.get() == bao::readable);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_CASE("V36: opposite directions of a foreign descriptor do not meet") {
  auto ends = bao::socket_pair();
  const int fd = ends.first.fd();
  char bytes[4096] = {};
  while (::send(fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0) continue;
  auto reader = bao::spawn([&] { return bao::wait_fd(fd, bao::readable, 5s); });
  auto writer = bao::spawn([&] { return bao::wait_fd(fd, bao::writable, 5s); });
  bao::yield();
  ends.second.write_all("x");
  CHECK(reader.get() == bao::readable);
  CHECK(!writer.done());
  while (::recv(ends.second.fd(), bytes, sizeof bytes, MSG_DONTWAIT) > 0)
    continue;
  CHECK(writer.get() == bao::writable);
}

TEST_CASE("V36: a hang-up is ready for reading, and for writing to a pipe") {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  auto reader =
      bao::spawn([&] { return bao::wait_fd(ends[0], bao::readable, 5s); });
  bao::yield();
  ::close(ends[1]);
  CHECK(reader.get() == bao::readable);
  ::close(ends[0]);
  REQUIRE(::pipe(ends) == 0);
  bao::stream out(::fcntl(ends[1], F_DUPFD_CLOEXEC, 0));
  const std::string much(1000, 'x');
  while (!error_of([&] { out.write_some(much.data(), 1000, 0s); })) continue;
  auto writer =
      bao::spawn([&] { return bao::wait_fd(ends[1], bao::writable, 5s); });
  bao::yield();
  ::close(ends[0]);
  CHECK(writer.get() == bao::writable);
  ::close(ends[1]);
}

TEST_CASE("V67: wait_fd goes on when the owner begins to wait as well") {
  auto ends = bao::socket_pair();
  auto foreign = bao::spawn(
      [&] { return bao::wait_fd(ends.first.fd(), bao::readable, 5s); });
  bao::yield();
  auto owner = bao::spawn([&] { return ends.first.read_some(100, 5s); });
  bao::sleep(1ms);
  CHECK(!foreign.done());
  ends.second.write_all("x");
  CHECK(foreign.get() == bao::readable);
  CHECK(owner.get() == "x");
}

// --- no work without a cause -------------------------------------------------

TEST_CASE("V67: to wait takes no time of the processor") {
  auto ends = bao::socket_pair();
  const int fd = ends.first.fd();
  char bytes[4096] = {};
  double before = 0;
  SUBCASE("beside an open connection that is idle") {
    CHECK(error_of([&] { ends.first.read_some(bytes, 1, 1ms); }) ==
          std::errc::timed_out);
    before = cpu_seconds();
    bao::sleep(50ms);
  }
  SUBCASE("beside one that has sent what nobody reads, and hung up") {
    CHECK(error_of([&] { ends.first.read_some(bytes, 1, 1ms); }) ==
          std::errc::timed_out);
    ends.second.write_all("x");
    ends.second.close();
    before = cpu_seconds();
    bao::sleep(50ms);
  }
  SUBCASE("for a reader") {
    before = cpu_seconds();
    CHECK(error_of([&] { ends.first.read_some(bytes, 1, 50ms); }) ==
          std::errc::timed_out);
  }
  SUBCASE("for room, at a peer that has sent its end") {
    while (::send(fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0) continue;
    ends.second.shutdown_write();
    before = cpu_seconds();
    CHECK(!bao::wait_fd(fd, bao::writable, 50ms));
  }
  SUBCASE("for room, of a stream whose peer has sent its end") {
    while (::send(fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0) continue;
    ends.second.shutdown_write();
    before = cpu_seconds();
    CHECK(error_of([&] { ends.first.write_some(bytes, 1, 50ms); }) ==
          std::errc::timed_out);
  }
  CHECK(cpu_seconds() - before < 0.03);
}

// --- lines, and other pieces -------------------------------------------------

TEST_CASE(
    "V65: read_line drops \\n and \\r\\n, and takes a last line without") {
  auto ends = bao::socket_pair();
  ends.second.write_all("one\ntwo\r\n\n\r\nin\rside\r\r\nlast");
  ends.second.close();
  std::vector<std::string> lines;
  while (auto line = ends.first.read_line(5s)) lines.push_back(*line);
  CHECK(lines ==
        std::vector<std::string>{"one", "two", "", "", "in\rside\r", "last"});
  CHECK(!ends.first.read_line(5s));
}

TEST_CASE("V65: a line may arrive byte by byte, and many at once") {
  auto ends = bao::socket_pair();
  auto writer = bao::spawn([&] {
    for (const char c : std::string("slow\r\n")) {
      ends.second.write_all(&c, 1, 5s);
      bao::sleep(100us);
    }
    ends.second.write_all("a\nb\nc\nd");
    ends.second.close();
  });
  CHECK(ends.first.read_line(5s) == "slow");
  CHECK(ends.first.read_line(5s) == "a");
  CHECK(ends.first.read_some(2, 5s) == "b\n");
  CHECK(ends.first.read_exactly(1, 5s) == "c");
  CHECK(ends.first.read_line(5s) == "");
  CHECK(ends.first.read_all(SIZE_MAX, 5s) == "d");
}

TEST_CASE("V65: read_line throws when the limit is passed, and not before") {
  auto ends = bao::socket_pair();
  ends.second.write_all("12345\n12345\n12345\n12345");
  CHECK(ends.first.read_line(SIZE_MAX, 5s) == "12345");  // and no overflow
  CHECK(ends.first.read_line(5, 5s) == "12345");
  CHECK_THROWS_AS(ends.first.read_line(4, 5s), bao::line_too_long);
  CHECK(ends.first.read_line(SIZE_MAX, 5s) == "12345");
  CHECK_THROWS_AS(ends.first.read_line(4, 5s), bao::line_too_long);
  CHECK(ends.first.read_exactly(5, 5s) == "12345");  // nothing was lost
}

TEST_CASE("V65: a peer that never ends its line cannot fill our memory") {
  auto ends = bao::socket_pair();
  auto peer = bao::spawn([&] {
    const std::string some(10'000, 'x');
    for (;;) ends.second.write_all(some, 30s);
  });
  CHECK_THROWS_AS(ends.first.read_line(30s), bao::line_too_long);
  peer.kill();
}

TEST_CASE("V65: read_until finds delimiters of several bytes across reads") {
  auto ends = bao::socket_pair();
  auto writer = bao::spawn([&] {
    for (const char* piece : {"a--b-", "-", "-c--", "-", "---d", "--", "x"}) {
      ends.second.write_all(piece, 5s);
      bao::sleep(200us);
    }
    ends.second.close();
  });
  CHECK(ends.first.read_until("---", 100, 5s) == "a--b");
  CHECK(ends.first.read_until("---", 100, 5s) == "c");
  CHECK(ends.first.read_until("---", 100, 5s) == "");
  CHECK_THROWS_AS(ends.first.read_until("---", 100, 5s), bao::end_of_stream);
  CHECK(ends.first.read_all(SIZE_MAX, 5s) == "d--x");
  CHECK(ends.first.read_until("---", 100, 5s) == std::nullopt);
}

TEST_CASE("V65: read_until counts its limit without the delimiter") {
  auto ends = bao::socket_pair();
  ends.second.write_all("0--1234--12345--");
  CHECK(ends.first.read_until("--", SIZE_MAX, 5s) == "0");
  CHECK(ends.first.read_until("--", 4, 5s) == "1234");
  CHECK_THROWS_AS(ends.first.read_until("--", 4, 5s), bao::line_too_long);
  CHECK(ends.first.read_until("--", SIZE_MAX, 5s) == "12345");
  CHECK_THROWS_AS(ends.first.read_until("", 4, 5s), std::invalid_argument);
}

TEST_CASE("V65: read_exactly waits for all, and keeps what was too little") {
  auto ends = bao::socket_pair();
  auto writer = bao::spawn([&] {
    ends.second.write_all("12");
    bao::sleep(1ms);
    ends.second.write_all("345");
    ends.second.close();
  });
  char three[3];
  ends.first.read_exactly(three, 3, 5s);
  CHECK(std::string(three, 3) == "123");
  CHECK_THROWS_WITH_AS(ends.first.read_exactly(3, 5s),
                       "read_exactly: the stream ended after 2 of 3 bytes",
                       bao::end_of_stream);
  CHECK(ends.first.read_exactly(2, 5s) == "45");
  CHECK(ends.first.read_all(SIZE_MAX, 5s) == "");
}

TEST_CASE("V65: read_all reads to the end, but no more than its limit") {
  auto ends = bao::socket_pair();
  ends.second.write_all("0123456789");
  ends.second.close();
  CHECK_THROWS_AS(ends.first.read_all(9, 5s), bao::line_too_long);
  CHECK(ends.first.read_exactly(1, 5s) == "0");
  CHECK_THROWS_AS(ends.first.read_all(8, 5s), bao::line_too_long);
  CHECK(ends.first.read_all(9, 5s) == "123456789");
  CHECK(ends.first.read_all(0, 5s) == "");
}

TEST_CASE("V65: large pieces and small ones come out of one buffer in order") {
  auto ends = bao::socket_pair();
  std::string sent;
  for (int i = 0; i < 100'000; ++i) sent += std::to_string(i) + '\n';
  auto writer = bao::spawn([&] {
    ends.second.write_all(sent, 30s);
    ends.second.close();
  });
  std::string got;
  for (;;) {
    const auto line = ends.first.read_line(30s);
    if (!line) break;
    got += *line + '\n' + ends.first.read_some(7, 30s);
    if (got.size() == sent.size()) continue;
    got += ends.first.read_exactly(
        std::min<std::size_t>(20'000, sent.size() - got.size()), 30s);
    if (got.size() == sent.size() || got.back() == '\n') continue;
    got += ends.first.read_until("\n", 100, 30s).value() + '\n';
  }
  CHECK((got == sent));
}

TEST_CASE("V65: release is refused while there are unread bytes") {
  auto ends = bao::socket_pair();
  ends.second.write_all("a\nb");
  CHECK(ends.first.read_line(5s) == "a");
  CHECK_THROWS_AS(ends.first.release(), std::logic_error);
  CHECK(ends.first.read_exactly(1, 5s) == "b");
  const int fd = ends.first.release();
  CHECK(::fcntl(fd, F_GETFD) != -1);  // it is open
  CHECK(ends.first.fd() == -1);
  bao::unix_stream again(fd);
  ends.second.write_all("c");
  CHECK(again.read_some(100, 5s) == "c");
}

TEST_CASE("V65: a stream that is moved takes along what was read ahead") {
  auto ends = bao::socket_pair();
  ends.second.write_all("first\nsecond\nthird\n");
  CHECK(ends.first.read_line(5s) == "first");
  bao::unix_stream moved(std::move(ends.first));
  CHECK(moved.read_line(5s) == "second");
  bao::unix_stream assigned;
  assigned = std::move(moved);
  CHECK(assigned.read_line(5s) == "third");
  ends.second.close();
  CHECK(!assigned.read_line(5s));
}

TEST_CASE("V65: a stream that was moved from is empty") {
  auto ends = bao::socket_pair();
  ends.second.write_all("first\nsecond\n");
  CHECK(ends.first.read_line(5s) == "first");
  bao::unix_stream moved(std::move(ends.first));
  CHECK(!ends.first);
  CHECK(ends.first.release() == -1);
  ends.first = std::move(moved);
  CHECK(ends.first.read_line(5s) == "second");
}

TEST_CASE("X20: assigning to a stream closes the one that it was") {
  auto ends = bao::socket_pair();
  auto others = bao::socket_pair();
  auto reader = bao::spawn([&] { ends.first.read_some(100, 5s); });
  bao::yield();
  ends.first = std::move(others.first);
  CHECK(error_of([&] { reader.get(); }) == std::errc::bad_file_descriptor);
  CHECK(ends.second.read_some(100, 5s) == "");
  others.second.write_all("x");
  CHECK(ends.first.read_some(100, 5s) == "x");
}

// --- files and pipes ---------------------------------------------------------

TEST_CASE("V73: a pipe is waited for, whether it blocks or not") {
  for (const int flags : {0, O_NONBLOCK}) {
    int ends[2];
    REQUIRE(::pipe2(ends, flags | O_CLOEXEC) == 0);
    bao::stream in(ends[0]), out(ends[1]);
    const int flags_of_in = ::fcntl(ends[0], F_GETFL);
    const int flags_of_out = ::fcntl(ends[1], F_GETFL);
    const std::string much(1'000'000, 'x');
    auto reader = bao::spawn([&] { return in.read_all(SIZE_MAX, 30s).size(); });
    bao::yield();
    CHECK(!reader.done());
    CHECK(::fcntl(ends[0], F_GETFL) == flags_of_in);
    out.write_all(much, 30s);
    CHECK(::fcntl(ends[1], F_GETFL) == flags_of_out);
    out.close();
    CHECK(reader.get() == much.size());
    CHECK(::fcntl(ends[0], F_GETFL) == flags_of_in);
  }
}

TEST_CASE(
    "V73: a full pipe and an empty one are late, whether they block or not") {
  for (const int flags : {0, O_NONBLOCK}) {
    int ends[2];
    REQUIRE(::pipe2(ends, flags | O_CLOEXEC) == 0);
    bao::stream in(ends[0]), out(ends[1]);
    const std::string much(1'000'000, 'x');
    CHECK(error_of([&] { in.read_some(100, 5ms); }) == std::errc::timed_out);
    CHECK(error_of([&] { out.write_all(much, 5ms); }) == std::errc::timed_out);
    in.close();
  }
}

TEST_CASE("V73: several readers of a pipe are served in order, byte by byte") {
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  bao::stream in(ends[0]), out(ends[1]);
  std::string order;
  std::vector<bao::task<>> readers;
  for (const char name : {'1', '2', '3'})
    readers.push_back(bao::spawn([&, name] {
      char byte;
      in.read_some(&byte, 1, 5s);
      order += {name, byte};
    }));
  bao::yield();
  out.write_all("abc");
  for (auto& reader : readers) reader.join();
  CHECK(order == "1a2b3c");
}

TEST_CASE("V73: a FIFO is a pipe that has a name") {
  const std::string path = "/tmp/bao_fifo_" + std::to_string(::getpid());
  REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  bao::stream in(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  bao::stream out(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  ::unlink(path.c_str());
  auto reader = bao::spawn([&] { return in.read_line(5s); });
  bao::yield();
  CHECK(!reader.done());
  out.write_all("by name\n");
  CHECK(reader.get() == "by name");
}

TEST_CASE(
    "V73: a regular file is written, read, and ends; others run meanwhile") {
  char path[] = "/tmp/bao_io_XXXXXX";
  bao::stream out(::mkstemp(path));
  const int flags = ::fcntl(out.fd(), F_GETFL);
  bool others_ran = false;
  auto other = bao::spawn([&] { others_ran = true; });
  out.write_all("one\ntwo\nthree");
  CHECK(others_ran);
  CHECK(::fcntl(out.fd(), F_GETFL) == flags);
  bao::stream in(::open(path, O_RDONLY | O_CLOEXEC));
  ::unlink(path);
  CHECK(in.read_line() == "one");
  CHECK(in.read_line() == "two");
  CHECK(in.read_line() == "three");
  CHECK(!in.read_line());
  out.write_all(" and a half\n");
  CHECK(in.read_line() == " and a half");
}

TEST_CASE("V73: what a file refuses is thrown where it was asked") {
  bao::stream directory(::open("/tmp", O_RDONLY | O_CLOEXEC));
  CHECK(error_of([&] { directory.read_some(100); }) ==
        std::errc::is_a_directory);
  try {
    directory.read_some(100);
  } catch (const std::system_error& e) {  // which names the descriptor
    CHECK(std::string(e.what()).find(' ' + std::to_string(directory.fd())) !=
          std::string::npos);
  }
  bao::stream program(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  CHECK(error_of([&] { program.write_all("x"); }) ==
        std::errc::bad_file_descriptor);
}

TEST_CASE("X18: a killed reader of a file waits for the helper that reads") {
  busy_helpers busy;
  bao::stream file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  bool went_on = false;
  std::string got;
  auto reader = bao::spawn([&] {
    got = file.read_exactly(4);
    bao::yield();
    went_on = true;
  });
  bao::yield();
  CHECK(!reader.kill(1ms));
  CHECK(got == "");
  CHECK(busy.let_go());
  reader.join();
  CHECK(reader.killed());
  CHECK(got == "\177ELF");
  CHECK(!went_on);
  busy.join();
}

TEST_CASE("X20: a file that is closed while a helper has it is not mistaken") {
  busy_helpers busy;
  bao::stream file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  std::string got;
  auto reader = bao::spawn([&] { got = file.read_some(4); });
  bao::yield();
  const int number = file.fd();
  file.close();
  const int other = ::open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  CHECK(busy.let_go());
  reader.join();
  if (reader.error() == nullptr) CHECK(got == "\177ELF");
  CHECK(::lseek(other, 0, SEEK_CUR) == 0);  // nobody has read it
  busy.join();
  ::close(other);
  if (other != number) ::close(number);
}

TEST_CASE("X20: a stream of a file may go while a helper reads it") {
  busy_helpers busy;
  auto file = std::make_unique<bao::stream>(
      ::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  auto reader = bao::spawn([&] { file->read_exactly(4); });
  bao::yield();
  file.reset();
  CHECK(busy.let_go());
  CHECK(error_of([&] { reader.get(); }) == std::errc::bad_file_descriptor);
  busy.join();
}

TEST_CASE("V73: of a file there is one operation at a time") {
  char path[] = "/tmp/bao_io_XXXXXX";
  bao::stream file(::mkstemp(path));
  ::unlink(path);
  std::string text;
  for (int i = 0; i < 200'000; ++i) text += std::to_string(i) + '\n';
  file.write_all(text);
  ::lseek(file.fd(), 0, SEEK_SET);
  std::vector<int> seen(200'000);
  const auto read = [&] {
    while (const auto line = file.read_line()) {
      const std::size_t n = std::strtoul(line->c_str(), nullptr, 10);
      if (n < seen.size()) ++seen[n];
    }
  };
  auto first = bao::spawn(read), second = bao::spawn(read);
  first.get();
  second.get();
  CHECK(std::count(seen.begin(), seen.end(), 1) == 200'000);
}

TEST_CASE("V73: what a helper reads is not what others read meanwhile") {
  char path[] = "/tmp/bao_io_XXXXXX";
  bao::stream file(::mkstemp(path));
  ::unlink(path);
  const std::string text(2'000'000, 'f');
  file.write_all(text);
  ::lseek(file.fd(), 0, SEEK_SET);
  auto reader = bao::spawn([&] { return file.read_all(); });
  auto ends = bao::socket_pair();
  while (!reader.done()) {
    ends.first.write_all("socket\n");
    CHECK(ends.second.read_line() == "socket");
  }
  const bool same = reader.get() == text;
  CHECK(same);
}

TEST_CASE("a task with the smallest stack reads lines") {
  auto ends = bao::socket_pair();
  auto reader = bao::spawn(bao::task_options().stack_size(16 * 1024), [&] {
    return ends.second.read_line().value_or("none");
  });
  bao::yield();
  ends.first.write_all("in pieces ");
  bao::yield();
  ends.first.write_all("of any size\n");
  CHECK(reader.get() == "in pieces of any size");
}

TEST_CASE("a short line does not come in the memory of a long one") {
  auto ends = bao::socket_pair();
  auto writer = bao::spawn([&] {
    ends.first.write_all(std::string(50'000, 'x') + "\nshort, but ");
    bao::yield();
    ends.first.write_all("not tiny\n");
  });
  CHECK(ends.second.read_line()->size() == 50'000);
  const std::string line = ends.second.read_line().value_or("none");
  CHECK(line == "short, but not tiny");
  CHECK(line.capacity() < 100);
}

#if !defined(SANITIZED)
TEST_CASE("what has come behind much does not sit in its memory") {
  constexpr long much = 40 << 20;
  auto ends = bao::socket_pair();
  const long before = mapped_bytes();
  bao::spawn([&] { ends.first.write_all(std::string(much, 'x') + "rest"); });
  CHECK(ends.second.read_exactly(much).size() == much);
  CHECK(mapped_bytes() < before + much / 2);
  CHECK(ends.second.read_some() == "rest");
}
#endif

// --- threads -----------------------------------------------------------------

TEST_CASE("V65: a descriptor that was waited for belongs to that thread") {
  auto ends = bao::socket_pair();
  CHECK(error_of([&] { ends.first.read_some(100, 1ms); }) ==
        std::errc::timed_out);
  ends.second.write_all("x");
  int refused = 0;
  std::thread([&] {
    try {
      ends.first.read_some(100, 5s);
    } catch (const bao::wrong_thread&) {
      ++refused;
    }
    try {
      ends.first.write_all("x", 5s);
    } catch (const bao::wrong_thread&) {
      ++refused;
    }
  }).join();
  CHECK(refused == 2);
  CHECK(ends.first.read_some(100, 5s) == "x");
}

TEST_CASE("V65: one that was not waited for may move to another thread") {
  auto ends = bao::socket_pair();
  std::thread echo([other = std::move(ends.second)]() mutable {
    while (auto line = other.read_line(5s)) other.write_all(*line + '\n', 5s);
  });
  for (const char* text : {"one", "two", "three"}) {
    ends.first.write_all(text + std::string("\n"));
    CHECK(ends.first.read_line(5s) == text);
  }
  ends.first.close();
  echo.join();
}

#if defined(BAO_USE_SELECT)
TEST_CASE("V65: select refuses a descriptor for which it has no bit") {
  auto ends = bao::socket_pair();
  bao::unix_stream high(::fcntl(ends.first.fd(), F_DUPFD_CLOEXEC, FD_SETSIZE));
  if (!high) return;  // ulimit -n
  ends.second.write_all("x");
  CHECK(high.read_some(100, 5s) == "x");  // which needs no waiting
  CHECK(error_of([&] { high.read_some(100, 5s); }) ==
        std::errc::too_many_files_open);
  CHECK(error_of([&] { bao::wait_fd(high.fd(), bao::readable, 5s); }) ==
        std::errc::too_many_files_open);
}
#endif
