// expect.hpp - what these programs have in common
//
// Each says in sentences what must be true, prints those that are not, and
// returns how many there were.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

inline int untrue = 0;

inline void expect(bool holds, const std::string& sentence) {
  if (holds) return;
  ++untrue;
  std::printf("not true: %s\n", sentence.c_str());
}

// How a process has ended, and what it has written to stderr.
struct ending {
  int code = -1;
  int signal = 0;
  std::string text;
};

// In a process of its own, where nothing else has happened yet: calls f(), and
// then exit(0), as if main() had returned.
template <class F>
ending in_a_child(F f) {
  ending how;
  int ends[2];
  std::fflush(stdout);
  if (::pipe(ends) != 0) return how;
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::alarm(20);  // one that hangs ends by SIGALRM
    ::dup2(ends[1], 2);
    ::close(ends[0]);
    ::close(ends[1]);
    f();
    std::exit(0);
  }
  ::close(ends[1]);
  char part[512];
  for (ssize_t n; (n = ::read(ends[0], part, sizeof part)) > 0;)
    how.text.append(part, static_cast<std::size_t>(n));
  ::close(ends[0]);
  int status = 0;
  if (::waitpid(pid, &status, 0) != pid) return how;
  if (WIFEXITED(status)) how.code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) how.signal = WTERMSIG(status);
  return how;
}

// The same, and what it must come to. No std::string: exit() on another stack
// than this would let LeakSanitizer think that nobody holds it.
template <class F>
void expect_ending(int code, const char* text, const char* sentence, F f) {
  const ending how = in_a_child(f);
  const bool right = how.code == code && how.text == text;
  expect(right, sentence);
  if (!right)
    std::printf("  exit status %d, signal %d, and on stderr:\n%s", how.code,
                how.signal, how.text.c_str());
}

inline bool says(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// Says on stderr when it is destroyed.
struct note {
  explicit note(const char* w) : word(w) {}
  note(const note&) = delete;
  ~note() { std::fprintf(stderr, "%s gone\n", word); }
  const char* word;
};
