// A loop of somebody else's has the thread, and lets the scheduler run.
#include <doctest/doctest.h>
#include <poll.h>

#include <climits>
#include <string>
#include <vector>

#include "bao.hpp"

namespace {

using namespace std::chrono_literals;

// For poll(2): rounded up, so as not to look before it is due.
int milliseconds(bao::deadline until) {
  if (until.is_never()) return -1;
  if (until.passed()) return 0;
  const auto left = until.at() - bao::now().time_since_epoch().count();
  const auto ms = (left + 999999) / 1000000;
  return ms > INT_MAX ? INT_MAX : static_cast<int>(ms);
}

// One round of a plain poll loop.
void go_round(bao::scheduler& s) {
  std::vector<pollfd> fds;
  const bao::deadline until = s.prepare(fds);
  REQUIRE(::poll(fds.data(), static_cast<nfds_t>(fds.size()),
                 milliseconds(until)) != -1);
  s.run_ready();
}

}  // namespace

TEST_CASE("V48: prepare says until when there is nothing to do") {
  bao::virtual_time clock;
  bao::scheduler& s = bao::this_scheduler();
  std::vector<pollfd> fds;
  CHECK(s.prepare(fds).is_never());
  auto sleeper = bao::spawn([] { bao::sleep(1h); });
  CHECK(s.prepare(fds).passed());  // it has not run yet
  s.run_ready();
  CHECK(s.prepare(fds).at() == (bao::now() + 1h).time_since_epoch().count());
  clock.advance(1h);
  CHECK(s.prepare(fds).passed());
  s.run_ready();
  CHECK(sleeper.done());
  CHECK(s.prepare(fds).is_never());
}

TEST_CASE("V48: run_ready lets each task that is ready run once") {
  int first = 0, second = 0;
  const auto count = [](int& n) {
    for (; n < 3; ++n) bao::yield();
  };
  auto a = bao::spawn([&] { count(first); });
  auto b = bao::spawn([&] { count(second); });
  bao::scheduler& s = bao::this_scheduler();
  s.run_ready();
  CHECK((first == 0 && second == 0));  // both stand at their first yield
  s.run_ready();
  CHECK((first == 1 && second == 1));
  bao::join_all(a, b);
}

TEST_CASE("V48: under a plain poll loop, tasks serve sockets and sleep") {
  bao::tcp_listener door("127.0.0.1:0");
  auto server = bao::spawn([&] {
    for (bao::tcp_stream& peer : door)
      bao::spawn(
          [](bao::tcp_stream p) {
            while (auto line = p.read_line()) p.write_all(*line + "!\n");
          },
          std::move(peer));
  });
  std::string answers;
  auto client = bao::spawn([&] {
    auto peer = bao::connect(door.local_address());
    for (int i = 0; i < 3; ++i) {
      peer.write_all("hi\n");
      answers += *peer.read_line(10s);
      bao::sleep(2ms);
    }
  });
  bao::scheduler& s = bao::this_scheduler();
  for (int rounds = 0; rounds < 1000 && !client.done(); ++rounds) go_round(s);
  CHECK(client.ok());
  CHECK(answers == "hi!hi!hi!");
  door.close();
  while (!server.done()) go_round(s);
}

TEST_CASE("V48: what other threads post ends the wait of a foreign loop") {
  bao::scheduler& s = bao::this_scheduler();
  bool posted = false;
  bao::spawn([&] {
    bao::remote home = bao::this_scheduler().remote();
    bao::offload([&] { return home.post([&] { posted = true; }); });
  });
  for (int rounds = 0; rounds < 1000 && !posted; ++rounds) go_round(s);
  CHECK(posted);
}

TEST_CASE("V48: a descriptor that is foreign to all is waited for as well") {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const bao::descriptor in(ends[0]), out(ends[1]);
  auto waits =
      bao::spawn([&] { return bool(bao::wait_fd(in.fd(), bao::readable)); });
  bao::scheduler& s = bao::this_scheduler();
  s.run_ready();
  CHECK(!waits.done());
  CHECK(::write(out.fd(), "x", 1) == 1);
  go_round(s);
  s.run_ready();
  CHECK(waits.done());
}
