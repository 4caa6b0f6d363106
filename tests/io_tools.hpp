// io_tools.hpp - what the tests of descriptors and connections have in common
#pragma once

#include <fcntl.h>
#include <sys/select.h>
#include <unistd.h>

#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "bao.hpp"

// What the system says when f() fails.
template <class F>
std::error_code error_of(F f) {
  try {
    f();
  } catch (const std::system_error& e) {
    return e.code();
  }
  return {};
}

// The numbers from 0 on, n of them, each in a line of its own.
inline std::string numbers(int n) {
  std::string text;
  for (int i = 0; i < n; ++i) text += std::to_string(i) + '\n';
  return text;
}

inline std::pair<bao::stream, bao::stream> make_pipe(int flags = 0) {
  int ends[2];
  bao::check(::pipe2(ends, flags | O_CLOEXEC), "pipe2");
  return {bao::stream(ends[0]), bao::stream(ends[1])};
}

inline std::pair<bao::stream, bao::stream> make_socket_pair() {
  auto ends = bao::socket_pair();
  return {std::move(ends.first), std::move(ends.second)};
}

// An abstract name that no other process has.
inline bao::address unix_name(const std::string& of) {
  return bao::address::parse("unix:@bao_tests_" + std::to_string(::getpid()) +
                             of);
}

inline int open_descriptors() {
  bao::this_scheduler();  // has some of its own
  int n = 0;
  for (int fd = 0; fd < FD_SETSIZE + 200; ++fd) n += ::fcntl(fd, F_GETFD) != -1;
  return n;
}

// Stands in the seam for as long as it lives, before whoever stood there.
class other_system : public bao::system_calls {
 public:
  other_system() : below(std::exchange(bao::sys, this)) {}
  other_system(const other_system&) = delete;

  bao::nanoseconds now() override { return below->now(); }
  bao::nanoseconds may_sleep(bao::nanoseconds until, bool jobs) override {
    return below->may_sleep(until, jobs);
  }
  void slept_until(bao::nanoseconds until) override {
    below->slept_until(until);
  }

 protected:
  ~other_system() { bao::sys = below; }
  bao::system_calls* const below;
};

// All ten helpers, busy until they are let go: whoever asks them has to wait.
class busy_helpers {
 public:
  busy_helpers() {
    bao::check(::pipe2(gate_, O_CLOEXEC), "pipe2");
    for (int i = 0; i < 10; ++i)
      tasks_.push_back(bao::spawn([from = gate_[0]] {
        char unused;
        bao::offload([&] { return ::read(from, &unused, 1); });
      }));
  }
  busy_helpers(const busy_helpers&) = delete;
  ~busy_helpers() {
    ::close(gate_[0]);
    ::close(gate_[1]);
  }

  bool let_go() { return ::write(gate_[1], "0123456789", 10) == 10; }
  void join() { bao::join_all(tasks_); }

 private:
  int gate_[2];
  std::vector<bao::task<>> tasks_;
};
