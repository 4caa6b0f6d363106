// hard_numbers.cpp - the hard cases of descriptors as numbers
//
// Closed under whoever waits, used again at once, doubled, too high, used up.
// Nothing waits for ever: what must be told in time stands under a timeout, as
// at a deadline it would look again, and find it after all.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "bao.hpp"
#include "io_tools.hpp"

using namespace std::chrono_literals;

namespace {

// The process may have so many descriptors, for as long as it lives.
class descriptor_limit {
 public:
  explicit descriptor_limit(int most) {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    rlimit now = before_;
    now.rlim_cur = static_cast<rlim_t>(most);
    works_ = ::setrlimit(RLIMIT_NOFILE, &now) == 0;
    if (!works_) MESSAGE("this machine does not allow ", most, " descriptors");
  }
  descriptor_limit(const descriptor_limit&) = delete;
  ~descriptor_limit() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  explicit operator bool() const { return works_; }

 private:
  rlimit before_{};
  bool works_;
};

int lowest_free() {
  const int fd = bao::check(::open("/dev/null", O_RDONLY | O_CLOEXEC), "open");
  ::close(fd);
  return fd;
}

// Whether the poller has no bit for what is at FD_SETSIZE or above.
#if defined(BAO_USE_SELECT)
constexpr bool has_bits_only = true;
#else
constexpr bool has_bits_only = false;
#endif

}  // namespace

// --- closing, and numbers that come again ------------------------------------

TEST_CASE("X20: a number works anew before those who waited for it have run") {
  bao::timeout guard(60s);
  const std::string much(10'000'000, 'x');
  for (const bool pipes : {false, true})
    for (const bool reading : {false, true})
      for (const char* how : {"closed", "released", "gone"}) {
        CAPTURE(pipes);
        CAPTURE(reading);
        CAPTURE(how);
        bao::stream in, out, next_in, next_out;
        std::tie(in, out) = pipes ? make_pipe() : make_socket_pair();
        std::tie(next_in, next_out) = pipes ? make_pipe() : make_socket_pair();
        auto used =
            std::make_unique<bao::stream>(std::move(reading ? in : out));
        const int number = used->fd();
        std::vector<bao::task<>> waiters;
        for (int i = 0; i < 2; ++i)
          waiters.push_back(bao::spawn([&] {
            if (reading)
              used->read_line();
            else
              used->write_all(much);
          }));
        waiters.push_back(bao::spawn([&] {
          bao::wait_fd(number, reading ? bao::readable : bao::writable);
        }));
        bao::sleep(1ms);
        if (how == std::string("closed")) used->close();
        if (how == std::string("released")) ::close(used->release());
        used.reset();
        bao::stream again(::fcntl((reading ? next_in : next_out).fd(),
                                  F_DUPFD_CLOEXEC, number));
        REQUIRE(again.fd() == number);
        bao::stream& writer = reading ? next_out : again;
        bao::stream& reader = reading ? again : next_in;
        writer.write_all("at once");
        CHECK(reader.read_some(10) == "at once");
        for (auto& waiter : waiters) CHECK(!waiter.done());
        auto later = bao::spawn([&] { return reader.read_some(10); });
        bao::sleep(1ms);
        writer.write_all("later");
        CHECK(later.get() == "later");
        for (auto& waiter : waiters)
          CHECK(error_of([&] { waiter.get(); }) ==
                std::errc::bad_file_descriptor);
      }
}

// Three files live on under numbers of their own, so that what the poller was
// told of the shared number outlives it.
TEST_CASE(
    "X20: a number that keeps changing its file and owner is never deaf") {
  bao::virtual_time clock;
  bao::stream ends[3][2];
  std::tie(ends[0][0], ends[0][1]) = make_socket_pair();
  std::tie(ends[1][0], ends[1][1]) = make_pipe();
  std::tie(ends[2][0], ends[2][1]) = make_pipe(O_NONBLOCK);
  const int number = ::fcntl(ends[0][0].fd(), F_DUPFD_CLOEXEC, 0);
  ::close(number);
  unsigned dice = 1;
  for (int turn = 0; turn < 200; ++turn) {
    dice = dice * 1103515245 + 12345;
    auto& file = ends[dice / 65536 % 3];
    const bool owned = dice / 8192 % 2 != 0, meanwhile = dice / 4096 % 2 != 0;
    CAPTURE(turn);
    REQUIRE(::dup2(file[0].fd(), number) == number);
    auto writer = bao::spawn([&] {
      if (meanwhile) bao::sleep(1min);
      file[1].write_all("x");
    });
    if (!meanwhile) writer.join();
    char byte;
    if (owned) {
      bao::stream in(number);
      CHECK(in.read_some(&byte, 1, 1h) == 1);
      CHECK(error_of([&] { in.read_some(&byte, 1, 1h); }) ==
            std::errc::timed_out);
      if (dice / 2048 % 2 != 0) ::close(in.release());
    } else {
      CHECK(bao::wait_fd(number, bao::readable, 1h) == bao::readable);
      CHECK(::read(number, &byte, 1) == 1);
      CHECK(!bao::wait_fd(number, bao::readable, 1h));
      ::close(number);
    }
    writer.join();
  }
}

TEST_CASE("V67: who waits for a foreign number waits on when it is reused") {
  bao::timeout guard(60s);
  auto ends = bao::socket_pair();
  auto others = bao::socket_pair();
  const int number = ::dup(ends.first.fd());
  const auto wait = [&] { return bao::wait_fd(number, bao::readable); };
  auto first = bao::spawn(wait);
  bao::yield();
  bool lives_on = false;
  SUBCASE("though the former file is gone") { ends.first.close(); }
  SUBCASE("though the former file lives on") { lives_on = true; }
  ::close(number);
  REQUIRE(::fcntl(others.first.fd(), F_DUPFD_CLOEXEC, number) == number);
  auto second = bao::spawn(wait);
  bao::yield();
  if (lives_on) ends.second.write_all("for nobody");
  bao::sleep(1ms);
  CHECK(!first.done());
  CHECK(!second.done());
  others.second.write_all("x");
  CHECK(second.get() == bao::readable);
  CHECK(first.get() == bao::readable);
  ::close(number);
}

TEST_CASE(
    "V67: a number closed behind its waiter's back holds up nobody else") {
  auto ends = bao::socket_pair();
  auto others = bao::socket_pair();
  const int number = ::dup(ends.first.fd());
  auto robbed = bao::spawn([&] { bao::wait_fd(number, bao::readable, 100ms); });
  auto reader = bao::spawn([&] { return others.first.read_some(10); });
  bao::sleep(1ms);
  ::close(number);
  bao::sleep(1ms);
  others.second.write_all("x");
  const bool told = reader.join(30s);
  CHECK(told);
  CHECK(reader.kill(30s));
  const auto why = error_of([&] { robbed.get(); });  // not told by epoll
  CHECK((!why || why == std::errc::bad_file_descriptor));
}

TEST_CASE("V67: an owned number closed behind our back is waited for anew") {
  bao::timeout guard(60s);
  auto ends = bao::socket_pair();
  CHECK(error_of([&] { ends.first.read_some(10, 1ms); }) ==
        std::errc::timed_out);
  const int number = ends.first.fd();
  bool released = false;
  SUBCASE("by another thread") {
    std::thread([moved = std::move(ends.first)] {}).join();
  }
  SUBCASE("by the system") { released = ::close(number) == 0; }
  auto others = bao::socket_pair();
  REQUIRE(others.first.fd() == number);
  auto writer = bao::spawn([&] { others.second.write_all("x"); });
  CHECK(bao::wait_fd(number, bao::readable) == bao::readable);
  CHECK(others.first.read_some(10) == "x");
  auto reader = bao::spawn([&] { return others.first.read_some(10); });
  bao::yield();
  others.second.write_all("y");
  CHECK(reader.get() == "y");
  if (released) ends.first.release();
}

TEST_CASE("X17: a descriptor may outlive the thread that has waited for it") {
  auto ends = bao::socket_pair();
  std::thread([&] {
    CHECK(error_of([&] { ends.first.read_some(10, 1us); }) ==
          std::errc::timed_out);
  }).join();
  const int number = ends.first.fd();
  ends.first.close();
  CHECK(ends.second.read_some(10, 10s) == "");
  auto others = bao::socket_pair();
  REQUIRE(others.first.fd() == number);
  CHECK(!bao::wait_fd(number, bao::readable, 1us));
}

TEST_CASE("V45: two numbers of one file are both told; one of them gets it") {
  bao::timeout guard(60s);
  bao::stream in, out;
  SUBCASE("of a socket") { std::tie(in, out) = make_socket_pair(); }
  SUBCASE("of a pipe") { std::tie(in, out) = make_pipe(); }
  SUBCASE("of a non-blocking pipe") {
    std::tie(in, out) = make_pipe(O_NONBLOCK);
  }
  SUBCASE("of TCP") {
    bao::tcp_listener door("127.0.0.1:0");
    in = bao::connect(door.local_address());
    out = door.accept();
  }
  bao::stream copy(::fcntl(in.fd(), F_DUPFD_CLOEXEC, 0));
  std::string got;
  const auto read = [&](bao::stream& from) {
    for (std::string some; !(some = from.read_some(1)).empty();) got += some;
  };
  auto first = bao::spawn([&] { read(in); });
  auto second = bao::spawn([&] { read(copy); });
  const auto told = [&](bao::stream& of) {
    return bao::spawn([&] { return bao::wait_fd(of.fd(), bao::readable); });
  };
  auto third = told(in), fourth = told(copy);
  bao::sleep(1ms);
  for (int i = 1; i <= 20; ++i) {
    out.write_all("x");
    while (got.size() < static_cast<std::size_t>(i)) bao::sleep(1ms);
  }
  out.close();
  first.get();
  second.get();
  CHECK(got == std::string(20, 'x'));
  CHECK(third.get() == bao::readable);
  CHECK(fourth.get() == bao::readable);
}

TEST_CASE("X20: who has been told and has not run yet gets EBADF, no more") {
  bao::timeout guard(60s);
  bao::unix_stream ends[2], peers[2];
  for (int i : {0, 1}) std::tie(ends[i], peers[i]) = bao::socket_pair();
  auto others = bao::socket_pair();
  others.second.write_all("of another");
  bao::unix_stream again;
  const auto read = [&](bao::unix_stream& from, bao::unix_stream& other) {
    return bao::spawn([&] {
      const std::string got = from.read_some(10);
      const int number = other.fd();
      other.close();
      again =
          bao::unix_stream(::fcntl(others.first.fd(), F_DUPFD_CLOEXEC, number));
      CHECK(again.fd() == number);
      return got;
    });
  };
  auto first = read(ends[0], ends[1]), second = read(ends[1], ends[0]);
  bao::yield();
  peers[0].write_all("told");
  peers[1].write_all("told");
  first.join();
  second.join();
  auto& served = first.ok() ? first : second;
  auto& closed = first.ok() ? second : first;
  CHECK(served.get() == "told");
  CHECK(error_of([&] { closed.get(); }) == std::errc::bad_file_descriptor);
  CHECK(again.read_some(20) == "of another");
}

TEST_CASE("X20: a listener's number and a receiver's work anew at once") {
  bao::timeout guard(60s);
  bao::unix_listener door(unix_name("old"));
  auto accepts = bao::spawn([&] { door.accept(); });
  auto next = bao::spawn([&] { door.accept(); });
  bao::udp_socket here("127.0.0.1:0"), there("127.0.0.1:0");
  auto receives = bao::spawn([&] { here.receive_from(); });
  bao::sleep(1ms);

  const int number = door.fd();
  door.close();
  bao::unix_listener new_door(unix_name("new"));
  REQUIRE(new_door.fd() == number);
  auto client = bao::connect_unix(new_door.local_address());
  CHECK(new_door.accept());
  const int receiver = here.fd();
  here.close();
  bao::udp_socket new_here("127.0.0.1:0");
  REQUIRE(new_here.fd() == receiver);
  there.send_to("at once", new_here.local_address());
  CHECK(new_here.receive_from().data == "at once");

  auto later = bao::spawn([&] { return new_door.accept().read_some(10); });
  auto last = bao::spawn([&] { return new_here.receive_from().data; });
  bao::sleep(1ms);
  auto second = bao::connect_unix(new_door.local_address());
  second.write_all("later");
  there.send_to("later", new_here.local_address());
  CHECK(later.get() == "later");
  CHECK(last.get() == "later");
  for (auto& t :
       {bao::task<>(accepts), bao::task<>(next), bao::task<>(receives)})
    CHECK(error_of([&] { t.get(); }) == std::errc::bad_file_descriptor);
}

// --- numbers that are too high, or used up -----------------------------------

TEST_CASE("V65: numbers from FD_SETSIZE on work, or are refused by name") {
  const descriptor_limit enough(FD_SETSIZE + 200);
  if (!enough) return;
  bao::timeout guard(60s);
  auto low = bao::socket_pair();
  CHECK(error_of([&] { low.first.read_some(1, 1ms); }) == std::errc::timed_out);
  const int before = open_descriptors();
  {
    std::vector<bao::descriptor> taken;
    while (lowest_free() < FD_SETSIZE)
      taken.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    bao::tcp_listener door("127.0.0.1:0");
    auto client = bao::connect(door.local_address());
    bao::tcp_stream peer = door.accept();
    bao::udp_socket here("127.0.0.1:0"), there("127.0.0.1:0");
    bao::stream in, out, drain, full;
    std::tie(in, out) = make_pipe();
    std::tie(drain, full) = make_pipe();
    const std::string much(4096, 'x');
    std::size_t filled = 0;
    const auto fill = [&] {
      return error_of(
          [&] { filled += full.write_some(much.data(), 4096, 0s); });
    };
    CHECK(door.fd() >= FD_SETSIZE);

    // Waits in a task until `cause` has come, or is refused at once; what
    // has come to whom was refused is there for him who need not wait.
    const auto check = [&](int fd, auto wait, auto cause) {
      CAPTURE(fd);
      auto waiter = bao::spawn(wait);
      bao::sleep(1ms);
      CHECK(waiter.done() == has_bits_only);
      std::string text;
      cause();
      try {
        const bool works = waiter.get();
        CHECK(works);
      } catch (const std::system_error& e) {
        CHECK(e.code() == std::errc::too_many_files_open);
        text = e.what();
      }
      const std::string said = "descriptor " + std::to_string(fd) + ' ';
      CHECK((text.find(said) != std::string::npos) == has_bits_only);
      CHECK((text.find("FD_SETSIZE") != std::string::npos) == has_bits_only);
      if (has_bits_only) CHECK(wait());
    };
    for (int turn = 0; turn < 3; ++turn) {
      check(
          peer.fd(), [&] { return peer.read_some(5) == "hello"; },
          [&] { client.write_all("hello"); });
      check(
          in.fd(), [&] { return in.read_some(5) == "hello"; },
          [&] { out.write_all("hello"); });
      check(
          here.fd(), [&] { return here.receive_from().data == "x"; },
          [&] { there.send_to("x", here.local_address()); });
      bao::tcp_stream second;
      check(
          door.fd(), [&] { return door.accept().fd() != -1; },
          [&] { second = bao::connect(door.local_address()); });
      check(
          client.fd(),
          [&] { return !!bao::wait_fd(client.fd(), bao::readable); },
          [&] { peer.write_all("x"); });
      CHECK(client.read_some(1) == "x");
      while (!fill()) continue;
      check(
          full.fd(), [&] { return full.write_some("x", 1) == 1; },
          [&] { drain.read_exactly(std::exchange(filled, 0)); });
      drain.read_exactly(1);

      auto reader = bao::spawn([&] { return low.first.read_some(10); });
      bao::sleep(1ms);
      low.second.write_all("low");
      CHECK(reader.get() == "low");
    }
  }
  CHECK(open_descriptors() == before);
}

TEST_CASE("V65: a thread that finds no number to wait with is told so") {
  const int before = open_descriptors();
  std::vector<std::string> said;
  int spare = 0;
  do {
    const int free_one = lowest_free();
    std::thread([&] {
      const auto sleep = [&] {
        try {
          bao::sleep(1us);
          said.push_back("");
        } catch (const std::system_error& e) {
          CHECK(e.code() == std::errc::too_many_files_open);
          said.push_back(e.what());
        }
      };
      {
        const descriptor_limit few(free_one + spare);
        sleep();
      }
      const std::string first = said.back();
      sleep();
      CHECK(said.back() == "");
      said.back() = first;
    }).join();
    CHECK(open_descriptors() == before);
  } while (said.back() != "" && ++spare < 10);
  CHECK(said.front() != "");
  CHECK(said.back() == "");
}

TEST_CASE("V65: a thread may come when the low numbers are taken") {
  const descriptor_limit enough(FD_SETSIZE + 200);
  if (!enough) return;
  const int before = open_descriptors();
  {
    std::vector<bao::descriptor> taken;
    while (lowest_free() < FD_SETSIZE)
      taken.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    std::thread([&] {
      const auto why = error_of([] { bao::sleep(1us); });
      CHECK((why == std::errc::too_many_files_open) == has_bits_only);
      taken.clear();
      auto ends = bao::socket_pair();
      auto reader = bao::spawn([&] { return ends.first.read_some(10, 10s); });
      bao::sleep(1us);
      ends.second.write_all("x");
      CHECK(reader.get() == "x");
    }).join();
  }
  CHECK(open_descriptors() == before);
}
