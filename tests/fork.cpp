// What a child process has of the tasks of its parent, and what it has not.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>

#include <cstdlib>
#include <functional>
#include <string>

#include "bao.hpp"
#include "child.hpp"

namespace {

using namespace std::chrono_literals;

// What becomes of a child that calls body() where we are: its exit status, and
// what it wrote to `out`. It is killed after ten seconds.
struct end_of_child {
  int status;
  std::string text;
};

end_of_child in_child(const std::function<void(bao::stream& out)>& body) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  REQUIRE(child != -1);
  if (child == 0) {
    ::alarm(10);
    ::close(ends[0]);
    bao::stream out(ends[1]);
    body(out);
    ::_exit(0);
  }
  ::close(ends[1]);
  bao::stream in(ends[0]);
  end_of_child o{0, in.read_all()};
  REQUIRE(::waitpid(child, &o.status, 0) == child);
  return o;
}

}  // namespace

TEST_CASE("X19, V33: the child has the task that forked, and no other") {
  bool ran_in_child = false;
  auto other = bao::spawn([&] {
    bao::sleep(10ms);
    ran_in_child = true;
  });
  auto fresh = bao::spawn([&] { ran_in_child = true; });
  bao::yield();
  const end_of_child o = in_child([&](bao::stream& out) {
    ran_in_child = false;
    bao::sleep(30ms);
    bao::join_all();  // nobody is left
    out.write_all(ran_in_child ? "ran " : "gone ");
    out.write_all(other.done() && other.killed() ? "killed " : "alive ");
    try {
      other.get();
    } catch (const bao::task_killed&) {
      out.write_all("told");
    }
  });
  CHECK(o.text == "gone killed told");
  CHECK(o.status == 0);
  CHECK(other.join(10s));
  CHECK(fresh.done());
}

TEST_CASE("X19: destructors of the other tasks do not run in the child") {
  struct noisy {
    std::string& where;
    ~noisy() { where += "destroyed"; }
  };
  std::string where;
  auto other = bao::spawn([&] {
    noisy here{where};
    bao::sleep(bao::never);
  });
  bao::yield();
  const end_of_child o = in_child([&](bao::stream& out) {
    bao::yield();
    out.write_all("[" + where + "]");
  });
  CHECK(o.text == "[]");
  other.kill();
  CHECK(where == "destroyed");
}

TEST_CASE("X19: parent and child both go on with I/O, timers and helpers") {
  auto ends = bao::socket_pair();
  bao::unix_stream &left = ends.first, &right = ends.second;
  auto echo = bao::spawn([&] {
    while (auto line = right.read_line()) right.write_all(*line + "!\n");
  });
  left.write_all("one\n");
  CHECK(left.read_line() == "one!");  // registered with the poller by now
  const end_of_child o = in_child([&](bao::stream& out) {
    auto own = bao::socket_pair();
    bao::unix_stream &mine = own.first, &theirs = own.second;
    auto pong =
        bao::spawn([&] { theirs.write_all(*theirs.read_line() + "?"); });
    mine.write_all("ping\n");
    out.write_all(mine.read_exactly(5));
    bao::sleep(5ms);
    out.write_all(bao::offload([] { return std::string(" offloaded"); }));
    bool posted = false;
    bao::this_scheduler().remote().post([&] { posted = true; });
    while (!posted) bao::yield();
    out.write_all(" posted");
  });
  CHECK(o.text == "ping? offloaded posted");
  left.write_all("two\n");
  CHECK(left.read_line(10s) == "two!");
  CHECK(bao::offload([] { return 7; }) == 7);
  left.close();
  CHECK(echo.join(10s));
}

TEST_CASE("X19: events of the parent's sockets are not taken by the child") {
  auto ends = bao::socket_pair();
  bao::unix_stream &left = ends.first, &right = ends.second;
  auto reader = bao::spawn([&] { return right.read_line(10s); });
  bao::yield();
  const end_of_child o = in_child([&](bao::stream& out) {
    right.close();  // the child's copy: the parent goes on reading
    out.write_all("closed");
  });
  CHECK(o.text == "closed");
  left.write_all("still here\n");
  CHECK(reader.get() == "still here");
}

TEST_CASE("X19: a socket that the parent has waited for works in the child") {
  auto ends = bao::socket_pair();
  bao::unix_stream &left = ends.first, &right = ends.second;
  bao::spawn([&] { left.write_all("a\n"); });
  CHECK(right.read_line() == "a");
  const end_of_child o = in_child([&](bao::stream& out) {
    bao::spawn([&] {
      bao::sleep(10ms);
      left.write_all("b\n");
    });
    out.write_all(*right.read_line(5s));
  });
  CHECK(o.text == "b");
}

TEST_CASE("X19: signals that the parent has not taken are not the child's") {
  CHECK(bao::wait_signal({SIGUSR1}, 0s) == 0);
  ::raise(SIGUSR1);
  const end_of_child o = in_child([](bao::stream& out) {
    out.write_all(std::to_string(bao::wait_signal({SIGUSR1}, 0s)));
  });
  CHECK(o.text == "0");
  CHECK(bao::wait_signal({SIGUSR1}, 0s) == SIGUSR1);
}

TEST_CASE("X19, V34: handlers of signals stay with the parent") {
  int calls = 0;
  auto on = bao::on_signal(SIGUSR1, [&] { ++calls; });
  bao::yield();  // it waits
  const end_of_child o = in_child([&](bao::stream& out) {
    ::raise(SIGUSR1);
    bao::sleep(5ms);
    out.write_all(std::to_string(calls));
    on.cancel();
    const auto its = bao::on_signal(SIGUSR1, [&] { ++calls; });
    bao::sleep(5ms);
    out.write_all(std::to_string(calls));
  });
  CHECK(o.text == "01");
  ::raise(SIGUSR1);
  for (int i = 0; i < 1000 && calls == 0; ++i) bao::sleep(5ms);
  CHECK(calls == 1);
}

TEST_CASE("X19: a child does not wait for time limits of the parent's tasks") {
  auto other = bao::spawn([] {
    bao::timeout limit(1h);
    bao::sleep(2h);
  });
  bao::yield();
  int status = -1;
  bao::spawn([&status] {
    const pid_t child = ::fork();
    REQUIRE(child != -1);
    if (child == 0) {
      ::alarm(10);
      std::atexit([] { ::_exit(0); });  // no look for leaks: main is lost
      return;
    }
    bao::offload([&] { ::waitpid(child, &status, 0); });
  }).join();
  CHECK(status == 0);
  other.kill();
}

TEST_CASE("X19: a group that has members can be destroyed in a child") {
  const ending child = in_a_child([] {
    pid_t forked;
    {
      bao::group members;
      members.spawn([] { bao::sleep(1h); });
      bao::yield();
      forked = ::fork();
      if (forked != 0) members.kill();
    }
    if (forked == 0) ::_exit(7);
    int status = 0;
    ::waitpid(forked, &status, 0);
    ::_exit(WEXITSTATUS(status));
  });
  CHECK(child.code == 7);
}

TEST_CASE("X19: a task that forks is alone, and the child ends with it") {
  int status = -1;
  bool main_ran_in_child = false;
  pid_t child = 0;
  auto forks = bao::spawn([&] {
    child = ::fork();
    if (child == 0) {
      ::alarm(10);
      std::atexit([] { ::_exit(7); });  // exit() was called
      bao::sleep(10ms);
    }
  });
  forks.join();
  if (child == 0) {  // the main task, which does not exist there
    main_ran_in_child = true;
    ::_exit(9);
  }
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 7);
  CHECK(!main_ran_in_child);
}

TEST_CASE("X19: a child whose last task waits for nothing ends with a report") {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  pid_t child = 0;
  auto forks = bao::spawn([&] {
    child = ::fork();
    if (child != 0) return;
    ::alarm(10);
    ::dup2(ends[1], 2);
    std::set_terminate([] { ::_exit(3); });
    bao::self().set_name("orphan");
    bao::sleep(bao::never);
  });
  forks.join();
  ::close(ends[1]);
  bao::stream in(ends[0]);
  const std::string said = in.read_all();
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WEXITSTATUS(status) == 3);
  CHECK(said.find("deadlock in a child process") != std::string::npos);
  CHECK(said.find("\"orphan\"") != std::string::npos);
}
