// bao/process.hpp - run other programs
//
//     auto listing = bao::run({"ls", "-l"}, 5s);
//     if (listing.status == 0) show(listing.output);
//
// A child is a program of its own. To us it is a number, and three streams:
//
//     in()  -->  0  the child  1  -->  out()
//                              2  -->  err()
//
// A pipe holds 64 KiB; then whoever writes has to wait. So if we write all of a
// child's input before we read any of its output, and the child does not read
// on while nobody takes its output, both wait for ever. communicate() has a
// task for each pipe, and so does not.
//
// The child begins with what it was given and no other descriptor of bao's,
// with no signal blocked, and with the usual end by SIGPIPE. It is started by
// posix_spawn(), which does not copy our memory: some 150 microseconds, during
// which the thread stands still. Of its end Linux tells by a descriptor;
// elsewhere we ask time and again. Only children made here are waited for:
// those that others have started are theirs.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/syscall.h>  // pidfd_open
#endif

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "bao/group.hpp"
#include "bao/stream.hpp"

extern "C" char** environ;  // POSIX leaves it to the program to declare it

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// What a child is given besides its arguments:
//     bao::process_options().directory("/tmp").stdout_to("log.txt")
// Without more, its input and its outputs are pipes to us. A descriptor stays
// ours, and has to be open until the child has started: stdout_to(1) gives it
// our own output. A file is opened, and made or emptied to write to it;
// "/dev/null" is one. None of its members suspends.
class process_options {
 public:
  // With a copy of our environment, as it is now.
  process_options() {
    for (char** ours = environ; ours != nullptr && *ours != nullptr; ++ours)
      environment_.push_back(*ours);
  }

  // Where it starts, and from where a program named "./so" is looked for.
  process_options& directory(std::string path) {
    return directory_ = std::move(path), *this;
  }
  // One variable more, or another value. Throws std::invalid_argument for a
  // name that cannot be one.
  process_options& env(const std::string& name, const std::string& value);
  // None but those that are set from here on.
  process_options& clear_env() { return environment_.clear(), *this; }

  process_options& stdin_from(int fd) { return connect(0, fd); }
  process_options& stdin_from(std::string file) {
    return connect(0, a_file, std::move(file));
  }
  process_options& stdout_to(int fd) { return connect(1, fd); }
  process_options& stdout_to(std::string file) {
    return connect(1, a_file, std::move(file));
  }
  process_options& stderr_to(int fd) { return connect(2, fd); }
  process_options& stderr_to(std::string file) {
    return connect(2, a_file, std::move(file));
  }
  // Both outputs are one, as by 2>&1 in a shell.
  process_options& stderr_to_stdout() { return connect(2, its_output); }

 private:
  friend class process;

  enum : int { a_pipe = -2, a_file = -3, its_output = -4 };  // or a descriptor
  struct end {
    int fd = a_pipe;
    std::string file;
  };

  process_options& connect(int number, int fd, std::string file = {}) {
    return ends_[number] = {fd, std::move(file)}, *this;
  }

  std::string directory_;
  std::vector<std::string> environment_;
  end ends_[3];
};

struct process_result {
  std::string output, errors;
  int status = 0;  // as wait() tells it
};

// A child. Move-only; the calls of an empty one throw std::logic_error. It must
// neither be moved nor destroyed while a task uses it.
//
// Only communicate() and wait() suspend, until `until` at the latest; they
// throw what interrupts us, and the child runs on. All throw std::system_error
// whose text names the call: "waitpid" with ECHILD where others take the ends
// of our children, or the program ignores SIGCHLD.
//
// A child that has not ended is killed when its object goes. That blocks the
// thread until it is gone: some 100 microseconds, longer if it has much memory.
class process {
 public:
  process() = default;
  // Starts a program, looked for along our PATH unless its name has a /.
  // Throws std::system_error when that fails, also in the child: there is no
  // such program or directory, there are no descriptors left; and
  // std::invalid_argument when nothing is named, or a text has a NUL byte.
  explicit process(std::vector<std::string> command,
                   process_options options = {});
  process(process&& other) noexcept : my_(std::exchange(other.my_, {})) {}
  process& operator=(process&& other) noexcept {
    process taken(std::move(other));
    std::swap(my_, taken.my_);
    return *this;
  }
  ~process();

  explicit operator bool() const { return my_.pid != 0; }
  pid_t pid() const { return expect_one("pid"), my_.pid; }

  // What it reads and writes. Where that is not a pipe, they are empty.
  stream& in() { return expect_one("in"), my_.in; }
  stream& out() { return expect_one("out"), my_.out; }
  stream& err() { return expect_one("err"), my_.err; }

  // Writes `input`, closes in(), reads both outputs up to their ends, and waits
  // for the end of the child, which need not read its input. Throws
  // std::errc::timed_out when late. After that, or an interruption, it may be
  // called again: it goes on where it was, with what is left of the input
  // first. Throws std::logic_error while another task is at it.
  //
  // The outputs end when nobody can write to them any more, neither the child
  // nor those whom it has started.
  process_result communicate(std::string_view input, deadline until = never);
  process_result communicate(deadline until = never) {
    return communicate({}, until);
  }

  // Until it has ended: what it exited with, or -n when signal n was its end.
  // Empty when late.
  std::optional<int> wait(deadline until = never);
  bool running();
  // Sends it a signal, unless it has ended.
  void kill(int signal = SIGKILL);

 private:
  void expect_one(const char* call) const {
    if (my_.pid == 0)
      throw std::logic_error(std::string(call) + ": there is no process here");
  }
  std::string text(const char* call) const {
    return std::string(call) + ": process " + std::to_string(my_.pid);
  }
  void feed();

  struct state {
    pid_t pid = 0;
    std::optional<int> status;  // once it is reaped
    stream in, out, err;
    bool communicates = false;
    std::string input;           // what communicate() has still to write
    std::size_t fed = 0;         // but for so much of it
    std::string output, errors;  // what it has read to the end
  } my_;
};

// Suspends as communicate() does. Runs a program to its end; when this is late
// or interrupted, the child is killed.
inline process_result run(std::vector<std::string> command,
                          process_options options, std::string_view input,
                          deadline until = never) {
  process child(std::move(command), std::move(options));
  return child.communicate(input, until);
}
inline process_result run(std::vector<std::string> command,
                          process_options options, deadline until = never) {
  return run(std::move(command), std::move(options), {}, until);
}
inline process_result run(std::vector<std::string> command,
                          std::string_view input, deadline until = never) {
  return run(std::move(command), process_options(), input, until);
}
inline process_result run(std::vector<std::string> command,
                          deadline until = never) {
  return run(std::move(command), process_options(), {}, until);
}

// --- before it starts --------------------------------------------------------

inline process_options& process_options::env(const std::string& name,
                                             const std::string& value) {
  if (name.empty() || name.find('=') != std::string::npos)
    throw std::invalid_argument("env: \"" + name + "\" is no name");
  const std::string begin = name + '=';
  for (std::string& variable : environment_)
    if (variable.compare(0, begin.size(), begin) == 0)
      return variable = begin + value, *this;
  environment_.push_back(begin + value);
  return *this;
}

inline const char* c_string(const std::string& text) {
  if (text.find('\0') == std::string::npos) return text.c_str();
  throw std::invalid_argument(
      std::string("process: there is a NUL byte after \"") + text.c_str() +
      '"');
}

// As C takes them: null comes last.
inline std::vector<char*> c_strings(std::vector<std::string>& texts) {
  std::vector<char*> all;
  for (std::string& text : texts) c_string(text), all.push_back(text.data());
  all.push_back(nullptr);
  return all;
}

// A duplicate that is none of 0, 1 and 2, where one of ours is closed: what is
// to become one of those in the child must not be overwritten by another that
// does so first, and nobody shall print into a pipe of ours.
inline descriptor duplicate_above_2(int fd) {
  const int made = ::fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (made == -1) throw_errno("process: descriptor " + std::to_string(fd));
  return descriptor(made);
}

// A new pipe: read from its first end what is written to the other.
inline void make_pipe(descriptor (&its)[2]) {
  int ends[2];
#if defined(__APPLE__)
  check(::pipe(ends), "pipe");
  for (int fd : ends) ::fcntl(fd, F_SETFD, FD_CLOEXEC);
#else
  check(::pipe2(ends, O_CLOEXEC), "pipe2");
#endif
  for (int i = 0; i < 2; ++i) its[i] = descriptor(ends[i]);
}

// What posix_spawn() is told.
class child_setup {
 public:
  child_setup() {
    expect(::posix_spawnattr_init(&attributes_), "posix_spawn");
    expect(::posix_spawn_file_actions_init(&actions_), "posix_spawn");
    sigset_t blocked, usual;
    sigemptyset(&blocked);
    sigemptyset(&usual);
    sigaddset(&usual, SIGPIPE);  // those with a handler become so anyway
    ::posix_spawnattr_setsigmask(&attributes_, &blocked);
    ::posix_spawnattr_setsigdefault(&attributes_, &usual);
    ::posix_spawnattr_setflags(&attributes_,
                               POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  child_setup(const child_setup&) = delete;
  ~child_setup() {
    ::posix_spawnattr_destroy(&attributes_);
    ::posix_spawn_file_actions_destroy(&actions_);
  }

  void connect(int fd, int number) {
    expect(::posix_spawn_file_actions_adddup2(&actions_, fd, number),
           "posix_spawn");
  }
  void change_directory(const char* path) {
#if defined(__GLIBC__) && __GLIBC__ == 2 && __GLIBC_MINOR__ < 29
    static_cast<void>(path);
    expect(ENOSYS, "posix_spawn_file_actions_addchdir_np");
#else
    expect(::posix_spawn_file_actions_addchdir_np(&actions_, path),
           "posix_spawn_file_actions_addchdir_np");
#endif
  }
  pid_t spawn(char* const* words, char* const* variables,
              const std::string& what) {
    pid_t made = 0;
    expect(::posix_spawnp(&made, words[0], &actions_, &attributes_, words,
                          variables),
           what);
    return made;
  }

 private:
  static void expect(int error, const std::string& call) {
    if (error != 0) throw_errno(call, error);
  }

  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

inline process::process(std::vector<std::string> command,
                        process_options options) {
  if (command.empty())
    throw std::invalid_argument("process: no program is named");
  const std::vector<char*> words = c_strings(command);
  const std::vector<char*> variables = c_strings(options.environment_);

  child_setup setup;
  std::string what = "posix_spawn: \"" + command[0] + '"';
  if (!options.directory_.empty()) {
    setup.change_directory(c_string(options.directory_));
    what += " in " + options.directory_;
  }
  // The child's ends are closed here when it has them: while we could write to
  // its output ourselves, we would never read an end of it.
  descriptor its[3];
  stream* const ours[] = {&my_.in, &my_.out, &my_.err};
  for (int i = 0; i < 3; ++i) {
    const auto& [fd, file] = options.ends_[i];
    if (fd == options.its_output) {
      setup.connect(1, i);
      continue;
    }
    descriptor given;
    if (fd == options.a_pipe) {
      descriptor ends[2];
      make_pipe(ends);
      *ours[i] = stream(duplicate_above_2(ends[i == 0].fd()).release());
      given = std::move(ends[i != 0]);
    } else if (fd == options.a_file) {
      const int how = i == 0 ? O_RDONLY : O_WRONLY | O_CREAT | O_TRUNC;
      given = descriptor(::open(c_string(file), how | O_CLOEXEC, 0666));
      if (!given) throw_errno("open: " + file);
    }
    its[i] = duplicate_above_2(given ? given.fd() : fd);
    setup.connect(its[i].fd(), i);
  }
  my_.pid = setup.spawn(words.data(), variables.data(), what);
}

// --- while it runs -----------------------------------------------------------

// Until it is reaped, its number is given to nobody else: so whom we signal is
// our child, or what is left of it. One that we may not kill, having changed
// its user, is left alone; and in a child of ours by fork(), a sibling is.
inline process::~process() {
  if (my_.pid == 0 || my_.status) return;
  if (hook::original::waitpid(my_.pid, nullptr, WNOHANG) != 0) return;
  if (::kill(my_.pid, SIGKILL) == -1) return;
  while (hook::original::waitpid(my_.pid, nullptr, 0) == -1 && errno == EINTR) {
  }
}

inline bool process::running() {
  expect_one("running");
  if (my_.status) return false;
  int how = 0;
  const pid_t ended = hook::original::waitpid(my_.pid, &how, WNOHANG);
  if (ended == -1) throw_errno(text("waitpid"));
  if (ended == 0) return true;
  my_.status = WIFSIGNALED(how) ? -WTERMSIG(how) : WEXITSTATUS(how);
  return false;
}

inline void process::kill(int signal) {
  expect_one("kill");
  if (running() && ::kill(my_.pid, signal) == -1) throw_errno(text("kill"));
}

// Becomes readable when the child has ended. Empty where there is no such thing
// or none to spare.
inline descriptor watch_process(pid_t pid) {
#if defined(SYS_pidfd_open)
  return descriptor(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
#else
  static_cast<void>(pid);
  return {};
#endif
}

inline std::optional<int> process::wait(deadline until) {
  expect_one("wait");
  if (running() && !until.passed()) {
    if (const descriptor end = watch_process(my_.pid))
      wait_fd(end.fd(), readable, until);
    growing_pause pause;
    while (running() && !until.passed())
      sleep(std::min(until, deadline(pause.next())));
  }
  return my_.status;
}

inline void process::feed() {
  try {
    while (my_.fed < my_.input.size())
      my_.fed += my_.in.write_some(my_.input.data() + my_.fed,
                                   my_.input.size() - my_.fed);
  } catch (const std::system_error& e) {
    if (e.code() != std::errc::broken_pipe) throw;
  }
  my_.input.clear();
  my_.fed = 0;
  my_.in.close();
}

inline process_result process::communicate(std::string_view input,
                                           deadline until) {
  expect_one("communicate");
  if (my_.communicates)
    throw std::logic_error(text("communicate") + ": another task does");
  if (!input.empty() && !my_.in)
    throw std::logic_error(text("communicate") +
                           ": its input is no pipe of ours, or is closed");
  my_.input += input;
  my_.communicates = true;
  const at_end others_may([this] { my_.communicates = false; });
  const bool in_time = with_timeout(until, [&] {
    group helpers;
    const auto help = [&](void (*f)(process&)) {
      helpers.spawn(task_options(place::nowhere()).name(text("communicate")),
                    [this, f] { f(*this); });
    };
    help([](process& p) { p.feed(); });
    help([](process& p) {
      if (p.my_.err) p.my_.errors += p.my_.err.read_all();
    });
    if (my_.out) my_.output += my_.out.read_all();
    helpers.join();
    wait();
  });
  if (!in_time) throw_late(text("communicate"));
  return {std::exchange(my_.output, {}), std::exchange(my_.errors, {}),
          *my_.status};
}

}  // namespace BAO_ABI
}  // namespace bao
