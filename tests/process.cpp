// process.cpp - tests of running other programs
#include <doctest/doctest.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "bao.hpp"
#include "child.hpp"
#include "io_tools.hpp"

namespace {

using namespace std::chrono_literals;

// No test is late by this unless something hangs.
constexpr auto patience = 60s;

// We have no child, and none that has ended.
bool no_children() {
  return ::waitpid(-1, nullptr, WNOHANG) == -1 && errno == ECHILD;
}

std::vector<std::string> shell(const std::string& script) {
  return {"sh", "-c", script};
}

// Emulators run vfork() as a fork(), where posix_spawn() hears of no failure.
bool failures_are_told() {
  char name[] = "/nowhere/at/all";
  char* const words[] = {name, nullptr};
  pid_t child = 0;
  if (::posix_spawn(&child, name, nullptr, nullptr, words, environ) != 0)
    return true;
  ::waitpid(child, nullptr, 0);
  return false;
}

template <class F>
std::string text_of_error(F f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "no error";
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// An empty file that goes with the object.
struct temporary_file {
  char name[32] = "/tmp/bao_process_XXXXXX";
  const int fd = bao::check(::mkostemp(name, O_CLOEXEC), "mkostemp");

  temporary_file() = default;
  temporary_file(const temporary_file&) = delete;
  ~temporary_file() {
    ::close(fd);
    ::unlink(name);
  }
  std::string content() const {
    char bytes[256];
    const ssize_t n = bao::check(::pread(fd, bytes, sizeof bytes, 0), "pread");
    return std::string(bytes, static_cast<std::size_t>(n));
  }
};

}  // namespace

TEST_CASE("V77: run gives what a program has written, and how it ended") {
  const auto r =
      bao::run(shell("echo to out; echo to err >&2; exit 3"), patience);
  CHECK(r.output == "to out\n");
  CHECK(r.errors == "to err\n");
  CHECK(r.status == 3);
  CHECK(bao::run({"true"}).status == 0);
  CHECK(bao::run({"cat"}, "eat", patience).output == "eat");
  CHECK(bao::run(shell("kill -9 $$"), patience).status == -SIGKILL);
}

TEST_CASE("V77: all pipes are served at once, however much goes through") {
  const std::string much = numbers(300'000);
  REQUIRE(much.size() > 1 << 20);
  const auto r = bao::run({"tee", "/dev/stderr"}, much, patience);
  CHECK(r.status == 0);
  CHECK((r.output == much));
  CHECK((r.errors == much));
}

TEST_CASE("V77: a program need not read its input, nor keep it open") {
  const std::string much(1 << 20, 'x');
  CHECK(bao::run({"true"}, much, patience).status == 0);
  const auto r = bao::run(shell("exec <&-; echo closed"), much, patience);
  CHECK(r.output == "closed\n");
  CHECK(r.status == 0);
}

TEST_CASE("V77: a child is talked to by streams") {
  bao::process child({"cat"});
  CHECK(child);
  CHECK(child.pid() > 0);
  child.in().write_all("one\n", patience);
  CHECK(child.out().read_line(patience) == "one");
  child.in().write_all("two\n", patience);
  CHECK(child.out().read_line(patience) == "two");
  CHECK(child.running());
  child.in().close();
  CHECK(child.wait(patience) == 0);
  CHECK(!child.running());
  CHECK(child.out().read_all(SIZE_MAX, patience).empty());
  CHECK(child.err().read_all(SIZE_MAX, patience).empty());
  CHECK(child.communicate().status == 0);
}

TEST_CASE("V75, X12: wait is empty when late, and not before") {
  bao::process child({"cat"});
  const bao::deadline until = 5ms;
  CHECK(!child.wait(until));
  CHECK(until.passed());
  CHECK(!child.wait(0s));
  child.in().close();
  CHECK(child.wait() == 0);
  CHECK(child.wait(0s) == 0);
}

TEST_CASE("V75: any number of tasks may wait for one child") {
  bao::process child({"cat"});
  std::vector<bao::task<std::optional<int>>> waiters;
  for (int i = 0; i < 5; ++i)
    waiters.push_back(bao::spawn([&] { return child.wait(patience); }));
  bao::sleep(1ms);
  CHECK(waiters.front().kill(patience));
  for (const auto& t : waiters) CHECK(t.done() == t.killed());
  child.in().close();
  CHECK(child.wait(patience) == 0);
  for (std::size_t i = 1; i < waiters.size(); ++i) CHECK(waiters[i].get() == 0);
}

TEST_CASE("V75: where there is no descriptor to wait with, wait asks") {
  const ending e = in_a_child([] {
    bao::process child({"cat"});
    const rlimit few{64, 64};
    bao::check(::setrlimit(RLIMIT_NOFILE, &few), "setrlimit");
    while (::dup(2) != -1) {
    }
    if (child.wait(5ms)) ::_exit(1);
    auto ender = bao::spawn([&] { child.in().close(); });
    ::_exit(child.wait(patience) == 0 ? 0 : 2);
  });
  CHECK(e.code == 0);
  CHECK(e.text == "");
}

TEST_CASE("V77: kill sends a signal, and the status tells of it") {
  bao::process child({"cat"});
  child.kill(0);
  CHECK(child.running());
  child.kill(SIGTERM);
  CHECK(child.wait(patience) == -SIGTERM);
  child.kill();  // nobody is there
  bao::process other({"cat"});
  CHECK(error_of([&] { other.kill(1000); }) == std::errc::invalid_argument);
  other.kill();
  CHECK(other.wait(patience) == -SIGKILL);
  CHECK(no_children());
}

TEST_CASE("V77: a program that cannot be started is an error with its name") {
  if (!failures_are_told()) return;
  const int before = open_descriptors();
  for (const bool slash : {false, true}) {
    const std::string name = slash ? "./no such program" : "no such program";
    const auto start = [&] { bao::process child({name, "-l"}); };
    CHECK(error_of(start) == std::errc::no_such_file_or_directory);
    CHECK(has(text_of_error(start), "posix_spawn: \"" + name + "\": "));
  }
  const auto nowhere = [] {
    bao::run({"true"}, bao::process_options().directory("/no/where"));
  };
  CHECK(error_of(nowhere) == std::errc::no_such_file_or_directory);
  CHECK(has(text_of_error(nowhere), "\"true\" in /no/where: "));
  const auto forbidden = [] { bao::run({"/dev/null"}); };
  CHECK(error_of(forbidden) == std::errc::permission_denied);
  const auto too_much = [] { bao::run({"true", std::string(1 << 24, 'x')}); };
  CHECK(error_of(too_much) == std::errc::argument_list_too_long);
  CHECK(has(text_of_error(too_much), "posix_spawn: \"true\": "));
  CHECK(open_descriptors() == before);
  CHECK(no_children());
}

TEST_CASE("V77: what cannot be given to a child is refused") {
  using options = bao::process_options;
  const std::string nul("a\0b", 3);
  CHECK_THROWS_AS(bao::process(std::vector<std::string>()),
                  std::invalid_argument);
  CHECK_THROWS_AS(bao::run({"echo", nul}), std::invalid_argument);
  CHECK_THROWS_AS(bao::run({"true"}, options().env("X", nul)),
                  std::invalid_argument);
  CHECK_THROWS_AS(bao::run({"true"}, options().directory(nul)),
                  std::invalid_argument);
  CHECK_THROWS_AS(bao::run({"true"}, options().stdin_from(nul)),
                  std::invalid_argument);
  CHECK_THROWS_AS(options().env("", "x"), std::invalid_argument);
  CHECK_THROWS_AS(options().env("A=B", "x"), std::invalid_argument);
  const auto closed = [] { bao::run({"true"}, options().stdout_to(-1)); };
  CHECK(error_of(closed) == std::errc::bad_file_descriptor);
  const auto no_file = [] {
    bao::run({"true"}, options().stdin_from("/no/where"));
  };
  CHECK(has(text_of_error(no_file), "open: /no/where: "));
  CHECK(no_children());
}

TEST_CASE("V77: an empty process is nobody's") {
  bao::process none;
  CHECK(!none);
  CHECK_THROWS_AS(none.pid(), std::logic_error);
  CHECK_THROWS_AS(none.in(), std::logic_error);
  CHECK_THROWS_AS(none.out(), std::logic_error);
  CHECK_THROWS_AS(none.err(), std::logic_error);
  CHECK_THROWS_AS(none.wait(), std::logic_error);
  CHECK_THROWS_AS(none.running(), std::logic_error);
  CHECK_THROWS_AS(none.kill(), std::logic_error);
  CHECK_THROWS_AS(none.communicate(), std::logic_error);
  bao::process some({"cat"});
  none = std::move(some);
  CHECK(!some);
  CHECK_THROWS_AS(some.wait(), std::logic_error);
  CHECK(none.communicate("moved", patience).output == "moved");
}

TEST_CASE("V77: options tell the child's directory and environment") {
  using options = bao::process_options;
  bao::check(::setenv("BAO_OURS", "ours", 1), "setenv");
  const auto script =
      shell("pwd; echo $BAO_OURS $BAO_ITS; test -n \"$HOME$PATH\" && echo all");
  CHECK(
      bao::run(script, options().directory("/").env("BAO_ITS", "its")).output ==
      "/\nours its\nall\n");
  CHECK(bao::run(
            script,
            options().env("BAO_OURS", "x").env("BAO_OURS", "y").directory("/"))
            .output == "/\ny\nall\n");
  CHECK(bao::run({"env"}, options().env("A", "1").clear_env().env("B", "a=b"))
            .output == "B=a=b\n");
  CHECK(bao::run({"env"}, options().clear_env()).output == "");
  CHECK(std::string(::getenv("BAO_OURS")) == "ours");
}

TEST_CASE("V77: options tell where the child's three ends lead") {
  using options = bao::process_options;
  const auto both = shell("echo out; echo err >&2; cat");
  const temporary_file file;
  const temporary_file other;
  auto r = bao::run(both, options().stderr_to_stdout(), "in", patience);
  CHECK(r.output == "out\nerr\nin");
  CHECK(r.errors == "");
  r = bao::run(both, options().stdout_to(file.fd).stderr_to(other.name), "in",
               patience);
  CHECK(file.content() == "out\nin");
  CHECK(other.content() == "err\n");
  CHECK(r.output == "");
  r = bao::run(
      both,
      options().stdin_from(file.name).stdout_to(other.name).stderr_to_stdout(),
      "", patience);
  CHECK(other.content() == "out\nerr\nout\nin");
  r = bao::run(both, options().stdin_from("/dev/null").stderr_to("/dev/null"),
               "", patience);
  CHECK(r.output == "out\n");
  CHECK(::fcntl(file.fd, F_GETFD) == FD_CLOEXEC);  // still ours
}

TEST_CASE("V77: the output of a child may be the input of another one") {
  bao::process first({"cat"});
  bao::process second({"tr", "a-z", "A-Z"},
                      bao::process_options().stdin_from(first.out().fd()));
  first.out().close();
  first.in().write_all("bao", patience);
  first.in().close();
  CHECK(second.communicate(patience).output == "BAO");
  CHECK(first.wait(patience) == 0);
}

TEST_CASE("V77: a child's outputs may be ours, the other way round too") {
  const ending e = in_a_child([] {
    const temporary_file file;
    ::dup2(file.fd, 1);
    const auto r =
        bao::run(shell("echo first; echo second >&2"),
                 bao::process_options().stdout_to(2).stderr_to(1), patience);
    ::_exit(file.content() == "second\n" && r.status == 0 ? 0 : 1);
  });
  CHECK(e.code == 0);
  CHECK(e.text == "first\n");
}

TEST_CASE("V77: a program that has closed its own three ends can run others") {
  for (const int left : {0, 1, 2, 3}) {
    CAPTURE(left);
    const ending e = in_a_child([left] {
      const temporary_file file;
      bao::this_scheduler();
      for (int fd = 0; fd < 3; ++fd)
        if (fd != left) ::close(fd);
      const auto script = shell("echo out; cat; echo err >&2");
      const auto r = bao::run(script, "in", patience);
      if (r.output != "out\nin" || r.errors != "err\n") ::_exit(1);
      const auto options =
          bao::process_options().stdin_from("/dev/null").stdout_to(file.fd);
      if (bao::run(script, options, patience).errors != "err\n") ::_exit(2);
      ::_exit(file.content() == "out\n" ? 0 : 3);
    });
    CHECK(e.code == 0);
  }
}

TEST_CASE("V77: a child has its three ends, and no descriptor of bao's") {
  const int before = open_descriptors();
  {
    auto pipe = make_pipe();
    bao::process other({"cat"});
    auto waiter = bao::spawn([&] { bao::wait_signal({SIGUSR1}, 10ms); });
    bao::yield();
    std::vector<int> ours;
    for (int fd = 3; fd < 1000; ++fd)
      if (::fcntl(fd, F_GETFD) == 0) ours.push_back(fd);
    std::istringstream listed(
        bao::run({"ls", "/proc/self/fd"}, patience).output);
    std::vector<int> its;
    for (int fd; listed >> fd;) its.push_back(fd);
    CHECK(its.size() == ours.size() + 4);  // and one to read the directory
    for (const int fd : ours)
      CHECK(std::count(its.begin(), its.end(), fd) == 1);
    for (const int fd : {0, 1, 2})
      CHECK(std::count(its.begin(), its.end(), fd) == 1);
    waiter.join();
  }
  CHECK(open_descriptors() <= before + 1);  // the bell of wait_signal stays
}

TEST_CASE("V77: no child keeps another one's input open") {
  bao::process first({"cat"});
  bao::process second({"cat"});
  first.in().close();
  CHECK(first.wait(patience) == 0);
  CHECK(second.running());
}

TEST_CASE("V76, V77: a child begins with no signal blocked, and with SIGPIPE") {
  sigset_t some, before;
  sigemptyset(&some);
  sigaddset(&some, SIGUSR1);
  ::pthread_sigmask(SIG_BLOCK, &some, &before);
  const auto pipe_before = ::signal(SIGPIPE, SIG_IGN);
  bao::wait_signal({SIGUSR2}, 0s);  // is caught from now on
  const std::string status =
      bao::run({"cat", "/proc/self/status"}, patience).output;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ::signal(SIGPIPE, pipe_before);
  const auto number_after = [&](const std::string& name) {
    const auto at = status.find(name);
    REQUIRE(at != std::string::npos);
    return std::stoull(status.substr(at + name.size()), nullptr, 16);
  };
  const auto bit = [](int signal) { return 1ull << (signal - 1); };
  CHECK(number_after("SigBlk:") == 0);
  CHECK((number_after("SigIgn:") & bit(SIGPIPE)) == 0);
  CHECK((number_after("SigCgt:") & bit(SIGUSR2)) == 0);
}

TEST_CASE("V75: a child that goes out of scope is killed and reaped") {
  pid_t gone = 0;
  for (const int signal : {0, SIGSTOP}) {
    bao::process child({"cat"});
    gone = child.pid();
    child.kill(signal);
    bao::process ended({"true"});
    ended.wait(patience);
  }
  CHECK(::kill(gone, 0) == -1);
  CHECK(errno == ESRCH);
  bao::process child({"cat"});
  gone = child.pid();
  child = bao::process({"true"});
  CHECK(::kill(gone, 0) == -1);
  CHECK(child.wait(patience) == 0);
  CHECK(no_children());
}

TEST_CASE("V75: children that others have started are left to them") {
  const pid_t theirs = ::fork();
  REQUIRE(theirs != -1);
  if (theirs == 0) ::_exit(7);
  siginfo_t how;  // it has ended
  REQUIRE(::waitid(P_PID, static_cast<id_t>(theirs), &how, WEXITED | WNOWAIT) ==
          0);
  CHECK(bao::run({"cat"}, "ours", patience).output == "ours");
  { bao::process killed({"cat"}); }
  int status = 0;
  CHECK(::waitpid(theirs, &status, 0) == theirs);
  CHECK(WEXITSTATUS(status) == 7);
}

TEST_CASE("V75: an end that others have taken is an error") {
  bao::process child({"true"});
  CHECK(::waitpid(child.pid(), nullptr, 0) == child.pid());
  CHECK(error_of([&] { child.wait(patience); }) == std::errc::no_child_process);
  CHECK(has(text_of_error([&] { child.kill(); }),
            "waitpid: process " + std::to_string(child.pid())));
  const ending e = in_a_child([] {
    ::signal(SIGCHLD, SIG_IGN);
    const auto wait = [] { bao::process({"true"}).wait(patience); };
    bao::process killed({"cat"});
    ::_exit(error_of(wait) == std::errc::no_child_process ? 0 : 1);
  });
  CHECK(e.code == 0);
}

TEST_CASE("V75, X19: a child by fork() does not end our children") {
  bao::process child({"cat"});
  const ending e = in_a_child([&] {
    const bao::process mine = std::move(child);
    static_cast<void>(mine);
  });
  CHECK(e.code == 0);
  CHECK(child.communicate("alive", patience).output == "alive");
}

TEST_CASE("V77: fifty children run at once, on one thread") {
  std::vector<bao::process> children;
  for (int i = 0; i < 50; ++i)
    children.push_back(bao::process(shell("read x; exit $x")));
  int ended = 0;
  std::vector<bao::task<std::optional<int>>> waiters;
  for (auto& child : children)
    waiters.push_back(bao::spawn([&] {
      const auto status = child.wait(patience);
      ++ended;
      return status;
    }));
  bao::sleep(10ms);
  CHECK(ended == 0);
  for (int i = 49; i >= 0; --i)
    children[static_cast<std::size_t>(i)].in().write_all(std::to_string(i) +
                                                         '\n');
  for (int i = 0; i < 50; ++i)
    CHECK(waiters[static_cast<std::size_t>(i)].get() == i);
  CHECK(ended == 50);
}

TEST_CASE("V75, V77: who is killed while he waits leaves the child as it is") {
  bao::process child({"cat"});
  child.kill(SIGSTOP);
  const std::string much = numbers(200'000);
  auto waiter = bao::spawn([&] { child.wait(); });
  bao::yield();
  CHECK(waiter.kill(patience));
  auto talker = bao::spawn([&] { child.communicate(much); });
  bao::sleep(1ms);
  CHECK_THROWS_AS(child.communicate("at the same time"), std::logic_error);
  CHECK(talker.kill(patience));
  CHECK(!bao::with_timeout(1ms, [&] { child.communicate(); }));
  CHECK(child.running());
  child.kill(SIGCONT);
  CHECK((child.communicate("end", patience).output == much + "end"));
}

TEST_CASE("V77, X12: a communicate that is late can be gone on with") {
  bao::process child({"cat"});
  child.kill(SIGSTOP);
  const std::string much = numbers(200'000);
  const auto talk = [&] { child.communicate(much, 20ms); };
  CHECK(error_of(talk) == std::errc::timed_out);
  CHECK(child.running());
  CHECK(has(text_of_error([&] { child.communicate("more\n", 1ms); }),
            "communicate: process " + std::to_string(child.pid()) +
                ": the deadline has passed"));
  child.kill(SIGCONT);
  const auto r = child.communicate("end", patience);
  CHECK((r.output == much + "more\nend"));
  CHECK(r.status == 0);
}

TEST_CASE("V77: what a late communicate has read is not lost") {
  auto gate = make_pipe();
  bao::process child(shell("echo out; exec >&-; echo err >&2; cat >&2"),
                     bao::process_options().stdin_from(gate.first.fd()));
  gate.first.close();
  // Then it has closed its output, which will be read up to the end.
  REQUIRE(bao::wait_fd(child.err().fd(), bao::readable, patience));
  const auto talk = [&] { child.communicate(20ms); };
  CHECK(error_of(talk) == std::errc::timed_out);
  gate.second.write_all("late\n");
  gate.second.close();
  const auto r = child.communicate(patience);
  CHECK(r.output == "out\n");
  CHECK(r.errors == "err\nlate\n");
}

TEST_CASE("V77: a run that is late or interrupted leaves no child behind") {
  const auto late = [] { bao::run({"cat"}, "", 0s); };
  CHECK(error_of(late) == std::errc::timed_out);
  CHECK(no_children());
  const auto asleep = [] { bao::run({"sleep", "1000"}, 5ms); };
  CHECK(error_of(asleep) == std::errc::timed_out);
  CHECK(no_children());
  auto runs = bao::spawn([] { bao::run({"sleep", "1000"}); });
  bao::sleep(1ms);
  CHECK(runs.kill(patience));
  CHECK(no_children());
}

TEST_CASE("V77: each thread has children of its own") {
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&right, i] {
      for (int n = 0; n < 10; ++n) {
        const std::string text = numbers(10'000 + 1000 * i + n);
        right += bao::run({"cat"}, text, patience).output == text;
      }
    });
  for (auto& t : threads) t.join();
  CHECK(right == 40);
  CHECK(no_children());
}
