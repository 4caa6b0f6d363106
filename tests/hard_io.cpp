// hard_io.cpp - the hard cases of descriptors, pipes and terminals
//
// Short counts, signals, closed and reused numbers, limits met exactly: what
// the tests of the chapter (io.cpp) do not reach. Nothing waits for ever; where
// time matters it is virtual, and passes only when nothing else can happen.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <ostream>
#include <string>
#include <tuple>
#include <utility>

#include "bao.hpp"
#include "io_tools.hpp"

using namespace std::chrono_literals;

namespace {

// A handler without SA_RESTART, for as long as it lives.
class on_signal {
 public:
  on_signal(int number, void (*handler)(int)) : number_(number) {
    struct sigaction action {};
    action.sa_handler = handler;
    ::sigaction(number, &action, &before_);
  }
  on_signal(const on_signal&) = delete;
  ~on_signal() { ::sigaction(number_, &before_, nullptr); }

 private:
  int number_;
  struct sigaction before_ {};
};

// The two ends of a terminal that changes nothing; empty where there is none.
std::pair<bao::stream, bao::stream> make_terminal() {
  const int master = ::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (master == -1 || ::grantpt(master) == -1 || ::unlockpt(master) == -1) {
    MESSAGE("no terminals on this machine");
    if (master != -1) ::close(master);
    return {};
  }
  const int slave = bao::check(
      ::open(::ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC), "open");
  termios modes;
  ::tcgetattr(slave, &modes);
  ::cfmakeraw(&modes);
  ::tcsetattr(slave, TCSANOW, &modes);
  return {bao::stream(master), bao::stream(slave)};
}

}  // namespace

// --- calls that do less than they were asked ---------------------------------

// Of TCP a short read means that there is no more, so it is told no such lie.
TEST_CASE(
    "V65: short reads and short writes lose nothing, and keep the order") {
  struct odd_system final : other_system {
    std::size_t cut = 0;
    std::size_t some(std::size_t n) { return std::min(n, 1 + ++cut % 7); }
    ssize_t read(int fd, void* p, std::size_t n) override {
      return below->read(fd, p, some(n));
    }
    ssize_t write(int fd, const void* p, std::size_t n) override {
      return below->write(fd, p, some(n));
    }
    ssize_t recv(int fd, void* p, std::size_t n, int flags) override {
      return below->recv(fd, p, some(n), flags);
    }
    ssize_t send(int fd, const void* p, std::size_t n, int flags) override {
      return below->send(fd, p, some(n), flags);
    }
  };
  bao::stream in, out;
  SUBCASE("of a socket") { std::tie(in, out) = make_socket_pair(); }
  SUBCASE("of a pipe") { std::tie(in, out) = make_pipe(); }
  SUBCASE("of a non-blocking pipe") {
    std::tie(in, out) = make_pipe(O_NONBLOCK);
  }
  SUBCASE("of a terminal") { std::tie(in, out) = make_terminal(); }
  if (!in) return;
  odd_system system;
  const std::string sent = numbers(2000);
  auto writer = bao::spawn([&] {
    for (std::size_t at = 0; at < sent.size(); at += 1000)
      out.write_all(std::string_view(sent).substr(at, 1000), 30s);
  });
  std::string got;
  while (got.size() < sent.size()) {
    got += in.read_line(30s).value() + '\n';
    got += in.read_until("\n", 10, 30s).value() + '\n';
    got += in.read_some(1, 30s);
    got += in.read_exactly(1, 30s);
    got += in.read_line(30s).value() + '\n';
    if (got.back() != '\n' || sent.compare(0, got.size(), got) != 0) break;
  }
  CHECK((got == sent));
  writer.get();
  CHECK(system.cut > sent.size() / 7);
}

TEST_CASE("V65: whatever a signal interrupts is called again") {
  struct odd_system final : other_system {
    int interruptions = 0;
    bool interrupts() { return ++interruptions % 3 != 0 && (errno = EINTR); }
    ssize_t read(int fd, void* p, std::size_t n) override {
      return interrupts() ? -1 : below->read(fd, p, n);
    }
    ssize_t write(int fd, const void* p, std::size_t n) override {
      return interrupts() ? -1 : below->write(fd, p, n);
    }
    ssize_t recv(int fd, void* p, std::size_t n, int flags) override {
      return interrupts() ? -1 : below->recv(fd, p, n, flags);
    }
    ssize_t send(int fd, const void* p, std::size_t n, int flags) override {
      return interrupts() ? -1 : below->send(fd, p, n, flags);
    }
    ssize_t recvmsg(int fd, msghdr* m, int flags) override {
      return interrupts() ? -1 : below->recvmsg(fd, m, flags);
    }
    ssize_t sendmsg(int fd, const msghdr* m, int flags) override {
      return interrupts() ? -1 : below->sendmsg(fd, m, flags);
    }
    int accept(int fd, sockaddr* from, socklen_t* n, int flags) override {
      return interrupts() ? -1 : below->accept(fd, from, n, flags);
    }
    // One that is interrupted goes on by itself.
    int connect(int fd, const sockaddr* to, socklen_t n) override {
      below->connect(fd, to, n);
      ++interruptions;
      errno = EINTR;
      return -1;
    }
  } system;
  bao::timeout guard(60s);
  for (const int flags : {0, O_NONBLOCK}) {
    bao::stream in, out;
    std::tie(in, out) = make_pipe(flags);
    auto reader = bao::spawn([&] { return in.read_line().value(); });
    bao::yield();
    out.write_all("through a pipe\n");
    CHECK(reader.get() == "through a pipe");
  }
  bao::udp_socket here("127.0.0.1:0"), there("127.0.0.1:0");
  here.send_to("a datagram", there.local_address());
  CHECK(there.receive_from().data == "a datagram");
  bao::tcp_listener door("127.0.0.1:0");
  auto server = bao::spawn([&] { return door.accept(); });
  bao::tcp_stream client = bao::connect(door.local_address());
  client.write_all("hello\n");
  CHECK(server.get().read_line() == "hello");
  CHECK(error_of([&] {
          bao::address nobody = door.local_address();
          door.close();
          bao::connect(nobody);
        }) == std::errc::connection_refused);
  CHECK(system.interruptions >= 20);
}

TEST_CASE(
    "V65: an error is of the call that met it; the next in line goes on") {
  struct odd_system final : other_system {
    int error = 0;
    bool fails() { return error != 0 && (errno = std::exchange(error, 0)); }
    ssize_t recv(int fd, void* p, std::size_t n, int flags) override {
      return fails() ? -1 : below->recv(fd, p, n, flags);
    }
    ssize_t send(int fd, const void* p, std::size_t n, int flags) override {
      return fails() ? -1 : below->send(fd, p, n, flags);
    }
  } system;
  auto ends = bao::socket_pair();
  auto first = bao::spawn([&] { ends.first.read_exactly(3, 30s); });
  auto second = bao::spawn([&] { return ends.first.read_exactly(3, 30s); });
  bao::sleep(1ms);
  system.error = ENOBUFS;
  std::string text;
  try {
    ends.second.write_all("one");
  } catch (const std::system_error& e) {
    CHECK(e.code() == std::errc::no_buffer_space);
    text = e.what();
  }
  CHECK(text.find("writing descriptor") == 0);
  ends.second.write_all("two");
  system.error = ECONNRESET;
  CHECK(error_of([&] { first.get(); }) == std::errc::connection_reset);
  CHECK(second.get() == "two");
}

// --- signals -----------------------------------------------------------------

TEST_CASE("V65: whoever waits sleeps on through a storm of signals") {
  static volatile sig_atomic_t signals;
  signals = 0;
  on_signal count(SIGALRM, [](int) { signals = signals + 1; });
  bao::timeout guard(60s);
  bao::stream empty, feed, drain, full;
  std::tie(empty, feed) = make_pipe();
  std::tie(drain, full) = make_pipe();
  auto ends = bao::socket_pair();
  bao::udp_socket datagrams("127.0.0.1:0");
  bao::tcp_listener door("127.0.0.1:0");
  bao::unix_listener narrow("unix:@bao_storm_" + std::to_string(::getpid()), 0);
  const auto caller = bao::connect_unix(narrow.local_address());
  const std::string much(1'000'000, 'x');
  const bao::deadline soon = 30ms;

  struct storm {
    storm() { every(300); }
    ~storm() { every(0); }
    void every(suseconds_t us) {
      const itimerval t{{0, us}, {0, us}};
      ::setitimer(ITIMER_REAL, &t, nullptr);
    }
  } rages;
  auto sleeper = bao::spawn([&] {
    bao::sleep(soon);
    CHECK(soon.passed());
  });
  auto late = bao::spawn([&] {
    CHECK(!bao::wait_fd(ends.first.fd(), bao::readable, soon));
    CHECK(soon.passed());
  });
  auto told = bao::spawn([&] { bao::wait_fd(empty.fd(), bao::readable); });
  auto reader = bao::spawn([&] { return empty.read_some(10); });
  auto to_pipe = bao::spawn([&] { full.write_all(much); });
  auto to_socket = bao::spawn([&] { ends.first.write_all(much); });
  auto receiver = bao::spawn([&] { return datagrams.receive_from().data; });
  auto server = bao::spawn([&] { return door.accept().read_line().value(); });
  auto one_more = bao::spawn(
      [&] { return bao::connect_unix(narrow.local_address()).fd(); });
  auto second = bao::spawn(
      [&] { return bao::connect_unix(narrow.local_address()).fd(); });
  auto helped = bao::spawn([] { bao::offload([] { ::usleep(20'000); }); });
  while (signals < 50) bao::sleep(1ms);
  CHECK(!told.done());
  CHECK(!to_pipe.done());
  CHECK(!to_socket.done());
  CHECK(!receiver.done());
  CHECK(!server.done());

  feed.write_all("fed");
  auto client = bao::connect(door.local_address());
  client.write_all("at last\n");
  bao::udp_socket("127.0.0.1:0").send_to("sent", datagrams.local_address());
  for (int i = 0; i < 3; ++i) narrow.accept();
  CHECK(drain.read_exactly(much.size()).size() == much.size());
  CHECK(ends.second.read_exactly(much.size()).size() == much.size());
  CHECK(reader.get() == "fed");
  CHECK(receiver.get() == "sent");
  CHECK(server.get() == "at last");
  CHECK(one_more.get() != -1);
  CHECK(second.get() != -1);
  bao::join_all(sleeper, late, told, to_pipe, to_socket, helped);
  for (auto& t : {bao::task<>(told), bao::task<>(to_pipe),
                  bao::task<>(to_socket), bao::task<>(helped)})
    CHECK(t.ok());
}

TEST_CASE("V73: writing to a pipe that nobody reads is EPIPE, and no SIGPIPE") {
  static volatile sig_atomic_t signals;
  signals = 0;
  on_signal count(SIGPIPE, [](int) { signals = signals + 1; });
  for (const int flags : {0, O_NONBLOCK}) {
    bao::stream in, out;
    std::tie(in, out) = make_pipe(flags);
    auto waits =
        bao::spawn([&] { out.write_all(std::string(1'000'000, 'x'), 30s); });
    bao::sleep(1ms);
    CHECK(!waits.done());
    in.close();
    CHECK(error_of([&] { waits.get(); }) == std::errc::broken_pipe);
    CHECK(error_of([&] { out.write_some("x", 1, 30s); }) ==
          std::errc::broken_pipe);
    CHECK(error_of([&] {
            out.writev({"x", "y"}, 30s);
          }) == std::errc::broken_pipe);
  }
  CHECK(signals == 0);
  sigset_t none, mask;
  sigemptyset(&none);
  ::pthread_sigmask(SIG_BLOCK, &none, &mask);
  CHECK(sigismember(&mask, SIGPIPE) == 0);  // as it was
}

TEST_CASE(
    "V73: a SIGPIPE of somebody else's is not lost by writing to a pipe") {
  static volatile sig_atomic_t signals;
  signals = 0;
  on_signal count(SIGPIPE, [](int) { signals = signals + 1; });
  sigset_t held, before;
  sigemptyset(&held);
  sigaddset(&held, SIGPIPE);
  ::pthread_sigmask(SIG_BLOCK, &held, &before);
  ::raise(SIGPIPE);
  bao::stream in, out;
  std::tie(in, out) = make_pipe();
  in.close();
  CHECK(error_of([&] { out.write_all("x", 30s); }) == std::errc::broken_pipe);
  sigset_t pending;
  ::sigpending(&pending);
  CHECK(sigismember(&pending, SIGPIPE) == 1);
  CHECK(signals == 0);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  CHECK(signals == 1);
}

// --- FIFOs, terminals, the standard descriptors ------------------------------

TEST_CASE("V73: a FIFO ends with its writers, and goes on with the next one") {
  bao::timeout guard(60s);
  const std::string path = "/tmp/bao_hard_" + std::to_string(::getpid());
  REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  bao::stream in(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  ::fcntl(in.fd(), F_SETFL, 0);
  bao::stream blocking(::fcntl(in.fd(), F_DUPFD_CLOEXEC, 0));
  for (int i = 0; i < 3; ++i) {
    bao::stream out(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    auto reader = bao::spawn([&] { return blocking.read_line(); });
    bao::sleep(1ms);
    CHECK(!reader.done());
    out.write_all("one more\nand its rest");
    CHECK(reader.get() == "one more");
    out.close();
    CHECK(blocking.read_all() == "and its rest");
    CHECK(blocking.read_some(10) == "");
  }
  ::unlink(path.c_str());
}

TEST_CASE("V73: a terminal gives its lines when they are complete, and ends") {
  bao::timeout guard(60s);
  bao::stream keys, program;
  std::tie(keys, program) = make_terminal();
  if (!keys) return;
  termios modes;
  ::tcgetattr(program.fd(), &modes);
  modes.c_lflag |= ICANON;
  modes.c_cc[VEOF] = 4;
  modes.c_cc[VERASE] = '#';
  ::tcsetattr(program.fd(), TCSANOW, &modes);
  auto reader = bao::spawn([&] { return program.read_line().value(); });
  keys.write_all("helxx##");
  bao::sleep(5ms);
  CHECK(!reader.done());
  keys.write_all("lo\nnext\n\4");
  CHECK(reader.get() == "hello");
  CHECK(program.read_line() == "next");
  CHECK(!program.read_line());  // ^D
  keys.write_all("and on\n");
  CHECK(program.read_line() == "and on");
  program.write_all("last words");
  program.close();
  CHECK(keys.read_exactly(10) == "last words");
#if defined(__linux__)
  CHECK(error_of([&] { keys.read_some(10); }) == std::errc::io_error);
#endif
}

// Where no call may block, what would have blocked comes back short.
TEST_CASE("V73: a terminal that nobody reads does not hold up the thread") {
  bao::virtual_time clock;
  struct odd_system final : other_system {
    bool short_of_room = false;
    ssize_t write(int fd, const void* p, std::size_t n) override {
      ::fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK);
      const ssize_t put = below->write(fd, p, n);
      ::fcntl(fd, F_SETFL, O_RDWR);
      short_of_room = short_of_room || put != static_cast<ssize_t>(n);
      return put;
    }
  } system;
  bao::stream in, out;
  std::string much(200'000, 'x');
  SUBCASE("to whom a program writes") { std::tie(in, out) = make_terminal(); }
  SUBCASE("to whom a keyboard writes") { std::tie(out, in) = make_terminal(); }
  SUBCASE("that makes two bytes of some") {
    std::tie(in, out) = make_terminal();
    for (std::size_t i = 0; i < much.size(); i += 1 + i / 1000) much[i] = '\n';
    if (out) {
      termios modes;
      ::tcgetattr(out.fd(), &modes);
      modes.c_oflag = OPOST | ONLCR;
      ::tcsetattr(out.fd(), TCSANOW, &modes);
    }
  }
  if (!out) return;
  for (std::size_t room = 1; room < 10'000; room = room * 3 + 1) {
    CHECK(error_of([&] { out.write_all(much, 1h); }) == std::errc::timed_out);
    CHECK(in.read_exactly(room, 0s).size() == room);
  }
  CHECK(!system.short_of_room);
}

TEST_CASE("V73: standard input, output and error are streams like others") {
  int type = 0;
  SUBCASE("that are pipes") {}
  SUBCASE("that are sockets") { type = SOCK_STREAM; }
  SUBCASE("that are sockets of messages") { type = SOCK_SEQPACKET; }
  int in[2], out[2], err[2];
  for (auto* ends : {&in, &out, &err})
    REQUIRE((type == 0 ? ::pipe(*ends)
                       : ::socketpair(AF_UNIX, type, 0, *ends)) == 0);
  const auto child_does = []() noexcept {
    bao::stream from(0), to(1), errors(2);
    auto waiter = bao::spawn([] { return bao::wait_fd(0, bao::readable); });
    while (auto line = from.read_line(30s)) {
      to.write_all("out " + *line + '\n', 30s);
      errors.write_all("err " + *line + '\n', 30s);
    }
    bool works = waiter.get() == bao::readable;
    from.close();
    auto ends = bao::socket_pair();  // 0 is a number like others
    works = works && ends.first.fd() == 0;
    auto reader = bao::spawn([&] { return ends.first.read_some(10, 30s); });
    bao::yield();
    ends.second.write_all("x", 30s);
    return reader.get() == "x" && works;
  };
  const pid_t child = ::fork();
  REQUIRE(child != -1);
  if (child == 0) {
    ::dup2(in[0], 0);
    ::dup2(out[1], 1);
    ::dup2(err[1], 2);
    for (const auto* ends : {&in, &out, &err})
      for (const int fd : *ends) ::close(fd);
    ::_exit(child_does() ? 0 : 1);
  }
  for (const int fd : {in[0], out[1], err[1]}) ::close(fd);
  bao::stream to(in[1]), from(out[0]), errors(err[0]);
  for (const std::string text : {"one", "two"}) {
    to.write_all(text + '\n', 30s);
    CHECK(from.read_line(30s) == "out " + text);
    CHECK(errors.read_line(30s) == "err " + text);
  }
  to.close();
  CHECK(from.read_all(SIZE_MAX, 30s) == "");
  CHECK(errors.read_all(SIZE_MAX, 30s) == "");
  int status = -1;
  CHECK(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}

// --- regular files -----------------------------------------------------------

TEST_CASE("V73: a file that finds no number for its helper is read later on") {
  char path[] = "/tmp/bao_hard_XXXXXX";
  bao::stream file(::mkstemp(path));
  ::unlink(path);
  file.write_all("some text", 30s);
  ::lseek(file.fd(), 0, SEEK_SET);
  CHECK(bao::wait_fd(file.fd(), bao::readable | bao::writable, 0s) ==
        (bao::readable | bao::writable));
  rlimit before, none;
  ::getrlimit(RLIMIT_NOFILE, &before);
  none = before;
  const int free_one = ::dup(file.fd());
  ::close(free_one);
  none.rlim_cur = static_cast<rlim_t>(free_one);
  ::setrlimit(RLIMIT_NOFILE, &none);
  const auto why = error_of([&] { file.read_some(4, 30s); });
  ::setrlimit(RLIMIT_NOFILE, &before);
  CHECK(why == std::errc::too_many_files_open);
  CHECK(file.read_all(100, 30s) == "some text");
}

// --- limits met exactly ------------------------------------------------------

TEST_CASE("V65: a line of exactly the limit passes; one byte more loses none") {
  auto ends = bao::socket_pair();
  const std::string exact(64 * 1024, 'x');
  auto writer = bao::spawn([&] {
    ends.second.write_all(exact + '\n', 30s);
    ends.second.write_all(exact + "y\n", 30s);
    ends.second.write_all(exact, 30s);
    ends.second.close();
  });
  CHECK((ends.first.read_line(30s) == exact));
  CHECK_THROWS_AS(ends.first.read_line(30s), bao::line_too_long);
  CHECK_THROWS_AS(ends.first.read_line(30s), bao::line_too_long);
  CHECK((ends.first.read_line(64 * 1024 + 1, 30s) == exact + 'y'));
  CHECK_THROWS_AS(ends.first.read_line(64 * 1024 - 1, 30s), bao::line_too_long);
  CHECK((ends.first.read_line(30s) == exact));  // the last one, without its end
  CHECK(!ends.first.read_line(30s));
}

TEST_CASE("V65: a delimiter may lie across any border of what is read ahead") {
  for (std::size_t before = 16 * 1024 - 5; before <= 16 * 1024 + 1; ++before) {
    CAPTURE(before);
    auto ends = bao::socket_pair();
    const std::string text(before, '-');  // as the delimiter begins
    auto writer = bao::spawn([&] {
      ends.second.write_all(text + "--->" + text + "--->rest", 30s);
      ends.second.close();
    });
    CHECK_THROWS_AS(ends.first.read_until("--->", before - 1, 30s),
                    bao::line_too_long);
    CHECK((ends.first.read_until("--->", before, 30s) == text));
    CHECK((ends.first.read_until("--->", before, 30s) == text));
    CHECK_THROWS_AS(ends.first.read_until("--->", 3, 30s), bao::end_of_stream);
    CHECK_THROWS_AS(ends.first.read_exactly(5, 30s), bao::end_of_stream);
    CHECK(ends.first.read_all(4, 30s) == "rest");
  }
}

// --- what is late keeps what it has ------------------------------------------

TEST_CASE("X12: every read that is late keeps its part for the next one") {
  bao::virtual_time clock;
  bao::stream in, out;
  SUBCASE("of a socket") { std::tie(in, out) = make_socket_pair(); }
  SUBCASE("of a pipe") { std::tie(in, out) = make_pipe(); }
  const auto late = [&](auto read) {
    out.write_all("part ");
    const auto start = bao::now();
    CHECK(error_of(read) == std::errc::timed_out);
    CHECK(bao::now() - start == 1h);
    CHECK(error_of([&] { in.read_exactly(100, 0s); }) == std::errc::timed_out);
    out.write_all("of it\n");
  };
  late([&] { in.read_line(1h); });
  CHECK(in.read_line(1h) == "part of it");
  late([&] { in.read_until(" of it\n", 100, 1h); });
  CHECK(in.read_until(" of it\n", 100, 1h) == "part");
  late([&] { in.read_exactly(11, 1h); });
  CHECK(in.read_exactly(11, 1h) == "part of it\n");
  char bytes[11];
  late([&] { in.read_exactly(bytes, 11, 1h); });
  in.read_exactly(bytes, 11, 1h);
  CHECK(std::string(bytes, 11) == "part of it\n");
  late([&] { in.read_all(100, 1h); });
  out.close();
  CHECK(in.read_all(11, 1h) == "part of it\n");
}

TEST_CASE("X12: what comes at the very moment of the deadline is taken") {
  bao::virtual_time clock;
  bao::stream in, out;
  SUBCASE("of a socket") { std::tie(in, out) = make_socket_pair(); }
  SUBCASE("of a pipe") { std::tie(in, out) = make_pipe(); }
  const auto start = bao::now();
  auto writer = bao::spawn([&] {  // sleeps before the reader does
    bao::sleep(1h);
    out.write_all("in time");
  });
  auto reader = bao::spawn([&] { return in.read_some(10, 1h); });
  CHECK(reader.get() == "in time");
  CHECK(bao::now() - start == 1h);
  CHECK(error_of([&] { in.read_some(10, 0s); }) == std::errc::timed_out);
}

TEST_CASE("X12: what follows a late write continues where that one stopped") {
  bao::virtual_time clock;
  bao::stream in, out;
  SUBCASE("of a socket") { std::tie(in, out) = make_socket_pair(); }
  SUBCASE("of a pipe") { std::tie(in, out) = make_pipe(); }
  const std::string sent = numbers(200'000);
  CHECK(error_of([&] { out.write_all(sent, 1h); }) == std::errc::timed_out);
  auto waits = bao::spawn([&] { out.write_all("the next", 2h); });
  CHECK(error_of([&] { out.write_some("x", 1, 1h); }) == std::errc::timed_out);
  CHECK(!waits.done());
  auto reader = bao::spawn([&] { return in.read_all(SIZE_MAX, 2h); });
  waits.get();
  out.close();
  const std::string got = reader.get();
  REQUIRE(got.size() > 8);
  CHECK(got.size() < sent.size());
  CHECK((got.substr(0, got.size() - 8) == sent.substr(0, got.size() - 8)));
  CHECK(got.substr(got.size() - 8) == "the next");
}
