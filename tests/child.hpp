// child.hpp - how a process ends that a test has started
#pragma once

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

#include "bao.hpp"

// How a process has ended, and what it has written to stderr.
struct ending {
  int code = -1;   // what it has exited with
  int signal = 0;  // or what has killed it
  std::string text;

  bool says(const std::string& part) const {
    return text.find(part) != std::string::npos;
  }
};

// In a process of its own: calls f(), and then exit(0), as if main() had
// returned.
template <class F>
ending in_a_child(F f) {
  int ends[2];
  bao::check(::pipe(ends), "pipe");
  std::fflush(stdout);  // or the child's exit() writes it once more
  const pid_t child = bao::check(::fork(), "fork");
  if (child == 0) {
    const rlimit none{0, 0};
    ::setrlimit(RLIMIT_CORE, &none);
    ::signal(SIGABRT, SIG_DFL);  // doctest's handler is for the parent
    ::alarm(30);                 // one that hangs ends by SIGALRM
    ::dup2(ends[1], 2);
    ::close(ends[0]);
    ::close(ends[1]);
    try {
      f();
    } catch (const std::exception& e) {  // or it would go on as a test runner
      std::fprintf(stderr, "in a child: %s\n", e.what());
      ::_exit(98);
    }
    std::exit(0);
  }
  ::close(ends[1]);
  ending how;
  char part[512];
  for (ssize_t n; (n = ::read(ends[0], part, sizeof part)) > 0;)
    how.text.append(part, static_cast<std::size_t>(n));
  ::close(ends[0]);
  int status = 0;
  bao::check(::waitpid(child, &status, 0), "waitpid");
  if (WIFEXITED(status)) how.code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) how.signal = WTERMSIG(status);
  return how;
}

// Says on stderr when it is destroyed.
struct note {
  explicit note(const char* w) : word(w) {}
  note(const note&) = delete;
  ~note() { std::fprintf(stderr, "%s gone\n", word); }
  const char* word;
};

// Returns only when it has run out of numbers, and needs a lot of stack.
[[gnu::noinline]] inline int too_deep(int n) {
  volatile char frame[1000] = {};
  frame[n % 1000] = 1;
  return n == 0 ? 0 : too_deep(n - 1) + frame[n % 1000];
}
