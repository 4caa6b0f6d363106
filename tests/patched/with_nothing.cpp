// with_nothing.cpp - what waits in libc and in the standard library, in tasks
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "../checks.hpp"
#include "bao.hpp"
#include "servers.hpp"

BAO_PATCH_ALL();

namespace {

// What f() answers, in a crowd.
template <class F>
std::string among(crowd& all, F f) {
  all.enter();
  std::string answer = f();
  all.leave();
  return answer;
}

// --- what knows nothing of bao

// What a program has written to a pipe, and how it ended.
std::string output_of(const std::string& script) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) == -1) return "no pipe";
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], 1);
    ::execl("/bin/sh", "sh", "-c", script.c_str(), nullptr);
    ::_exit(127);
  }
  ::close(ends[1]);
  std::string text;
  char bytes[100];
  for (ssize_t n; (n = ::read(ends[0], bytes, sizeof bytes)) > 0;)
    text.append(bytes, static_cast<std::size_t>(n));
  ::close(ends[0]);
  int status = -1;
  const bool ended = ::waitpid(child, &status, 0) == child;
  return text + (ended ? std::to_string(status) : "no end");
}

std::string sleep_for(int i) {
  std::this_thread::sleep_for(300ms);
  return std::to_string(i);
}

std::string line_of(const std::string& file) {
  std::ifstream from(file);
  std::string line;
  std::getline(from, line);
  return line;
}

std::string look_up(const char* name) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(name, "80", &hints, &found))
    return std::string("error: ") + ::gai_strerror(error);
  sockaddr_in first{};
  std::memcpy(&first, found->ai_addr, sizeof first);
  ::freeaddrinfo(found);
  char text[INET_ADDRSTRLEN];
  return ::inet_ntop(AF_INET, &first.sin_addr, text, sizeof text);
}

}  // namespace

TEST_CASE("twenty children live at the same time") {
  const server_process nobody("exec sleep infinity");
  // Each waits until there are so many, for ten seconds at most.
  const auto child = [&](int i, int all) {
    const std::string n = std::to_string(i);
    return output_of("cd " + nobody.folder() + "; : >" + n +
                     "; tries=0; until [ -e " + std::to_string(all - 1) +
                     " ] || [ $tries = 100 ]; do sleep 0.1; "
                     "tries=$((tries + 1)); done; sleep 0.3; echo " +
                     n + "; exit $((tries == 100))");
  };
  const answers all = at_once(
      20, [&](int i) { return child(i, 20); }, [] {});
  for (int i = 0; i < 20; ++i)
    CHECK(all[static_cast<std::size_t>(i)] == std::to_string(i) + "\n0");
  CHECK(one_by_one(3, [&](int i) { return child(i, 1); }) == first(3, all));
}

TEST_CASE("fifty tasks sleep at the same time") {
  crowd all_of_us;
  const answers all = at_once(
      50, [&](int i) { return among(all_of_us, [&] { return sleep_for(i); }); },
      [] {});
  CHECK(all_of_us.most() == 50);
  CHECK(one_by_one(3, sleep_for) == first(3, all));
}

TEST_CASE("twenty tasks wait for a line of a FIFO at the same time") {
  const server_process nobody("exec sleep infinity");
  const auto name = [&](int i) {
    return nobody.folder() + '/' + std::to_string(i);
  };
  const auto line = [&](int i) { return line_of(name(i)); };
  std::vector<bao::descriptor> writers;
  for (int i = 0; i < 20; ++i) {
    bao::check(::mkfifo(name(i).c_str(), 0600), "mkfifo");
    writers.emplace_back(::open(name(i).c_str(), O_RDWR | O_CLOEXEC));
  }
  const auto write = [&](int i) {
    const std::string text = "line " + std::to_string(i) + '\n';
    const int fd = writers[static_cast<std::size_t>(i)].fd();
    CHECK(::write(fd, text.data(), text.size()) ==
          static_cast<ssize_t>(text.size()));
  };
  crowd all_of_us;
  const answers all = at_once(
      20, [&](int i) { return among(all_of_us, [&] { return line(i); }); },
      [&] {
        until([&] { return all_of_us.now() == 20; });
        for (int i = 0; i < 20; ++i) write(i);
      });
  for (int i = 0; i < 20; ++i)
    CHECK(all[static_cast<std::size_t>(i)] == "line " + std::to_string(i));
  for (int i = 0; i < 3; ++i) write(i);
  CHECK(one_by_one(3, line) == first(3, all));
}

TEST_CASE("fifty tasks look a name up at the same time") {
  crowd all_of_us;
  const auto local = [](int) { return look_up("localhost"); };
  const answers all = at_once(
      50, [&](int i) { return among(all_of_us, [&] { return local(i); }); },
      [] {});
  CHECK(all_of_us.most() == 50);
  CHECK(all == answers(50, "127.0.0.1"));
  CHECK(one_by_one(3, local) == first(3, all));
}

TEST_CASE("where the patch is off, the thread waits, and nobody runs") {
  bool ran = false;
  auto other = bao::spawn([&] { ran = true; });
  {
    const bao::patch_off here;
    CHECK(sleep_for(1) == "1");
    CHECK(output_of("echo blocking") == "blocking\n0");
    CHECK(look_up("localhost") == "127.0.0.1");
  }
  CHECK(!ran);
  CHECK(sleep_for(2) == "2");
  CHECK(ran);
}
