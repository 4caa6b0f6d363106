// bao/error.hpp - what can go wrong
//
// What is to be expected, a closed channel or a passed deadline, comes back as
// a value. The rest is thrown, and there are three families:
//
//   interruptions   killed and timed_out: somebody wants this flow to end.
//                   They do not derive from std::exception, so that an honest
//                   `catch (const std::exception&)` does not swallow them.
//   misuse          from std::logic_error: the program asked for nonsense.
//   the world       from std::runtime_error; what the operating system refuses
//                   is a std::system_error whose text begins with the call.
//
// To throw and catch one takes a microsecond and more. Nothing in this chapter
// suspends.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <cxxabi.h>  // the name of an exception's type

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <typeinfo>
#include <utility>

#include "bao/config.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Thrown in a flow that is to end: at the place where it waits, or at the next
// one. Let it pass, or rethrow it; a flow that swallows it meets it again.
class killed {
 public:
  // `target` is whom the kill is meant for: it ends there, not on the way.
  explicit killed(const void* target) : target_(target) {}
  bool is_for(const void* flow) const { return target_ == flow; }

 private:
  const void* target_;
};

class scope;

// Thrown at the place where a flow waits when one of its `timeout`s has passed.
class timed_out {
 public:
  explicit timed_out(const scope* limit) : limit_(limit) {}
  // Whose it is: ours, or one that our caller has opened around us.
  bool is_for(const scope& limit) const { return limit_ == &limit; }

 private:
  const scope* limit_;
};

// Misuse. Each says in its text which call, on what, and why not.
// clang-format off
struct dead_coroutine  : std::logic_error { using logic_error::logic_error; };
struct already_running : std::logic_error { using logic_error::logic_error; };
struct close_ignored   : std::logic_error { using logic_error::logic_error; };
struct not_started     : std::logic_error { using logic_error::logic_error; };
struct wrong_thread    : std::logic_error { using logic_error::logic_error; };
struct wrong_task      : std::logic_error { using logic_error::logic_error; };
struct wrong_flow      : std::logic_error { using logic_error::logic_error; };
struct wrong_type      : std::logic_error { using logic_error::logic_error; };
struct parent_cycle    : std::logic_error { using logic_error::logic_error; };

// The world.
using world_error = std::runtime_error;
struct deadlock        : world_error { using world_error::world_error; };
struct channel_closed  : world_error { using world_error::world_error; };
struct task_killed     : world_error { using world_error::world_error; };
struct stack_exhausted : world_error { using world_error::world_error; };
struct line_too_long   : world_error { using world_error::world_error; };
struct end_of_stream   : world_error { using world_error::world_error; };
// clang-format on

// Throws what the operating system says of a failed call.
[[noreturn, gnu::cold]] inline void throw_errno(const std::string& call,
                                                int error = errno) {
  throw std::system_error(error, std::generic_category(), call);
}

// The same where it is we who end a wait: the system says of that, whatever it
// was for, "Connection timed out".
[[noreturn, gnu::cold]] inline void throw_late(const std::string& call) {
  throw_errno(call + ": the deadline has passed", ETIMEDOUT);
}

template <class Integer>
Integer check(Integer result, const char* call) {
  if (result == -1) throw_errno(call);
  return result;
}

// Ends the program, saying why: it has broken a rule where no exception can be
// thrown. Takes no memory.
[[noreturn, gnu::cold]] inline void die(const char* why, const char* more = "",
                                        const char* still_more = "") {
  std::fprintf(stderr, "bao: %s%s%s\n", why, more, still_more);
  std::terminate();
}

// How a type or a function is written in C++, from the compiler's name for it.
inline std::string demangle(const char* symbol) {
  const struct freed {
    char* text;
    ~freed() { std::free(text); }
  } name{abi::__cxa_demangle(symbol, nullptr, nullptr, nullptr)};
  std::string text = name.text != nullptr ? name.text : symbol;
  constexpr char inside[] = BAO_STRING(BAO_ABI) "::";  // which nobody writes
  for (auto at = text.find(inside); at != std::string::npos;)
    at = text.erase(at, sizeof inside - 1).find(inside, at);
  return text;
}

// The type and the text of an exception.
inline std::string describe(const std::exception_ptr& error) {
  const auto type = [] {
    const std::type_info* t = abi::__cxa_current_exception_type();
    return t != nullptr ? demangle(t->name()) : "an exception of unknown type";
  };
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return type() + ": " + e.what();
  } catch (...) {
    return type();
  }
}

// Told of an error that nobody is left to catch, and of whose it is.
using unhandled_handler = void (*)(const char* whose,
                                   const std::exception_ptr& error);

// Prints a line to stderr. One that comes over and over, but for the number of
// the task, is printed when it has come 1, 2, 4, 8 ... times.
inline void print_unhandled(const char* whose,
                            const std::exception_ptr& error) {
  static thread_local std::size_t last;  // a hash: a string ends at exit()
  static thread_local unsigned long times;
  std::string text = "an error";
  std::size_t hash = 0;
  try {
    text = describe(error);
    // Without the number of the task, as no two have the same.
    const char* const kind = whose + std::strspn(whose, "task 0123456789");
    hash = std::hash<std::string>()(kind + text);
  } catch (const std::bad_alloc&) {
  }
  times = hash == std::exchange(last, hash) ? times + 1 : 1;
  if ((times & (times - 1)) != 0) return;
  std::fprintf(stderr, "bao: nobody caught the error of %s: %s", whose,
               text.c_str());
  if (times > 1) std::fprintf(stderr, " (%lu times)", times);
  std::fputc('\n', stderr);
}

inline unhandled_handler tell_unhandled = print_unhandled;

// Who hears of errors that nobody can catch: those that leave a flow while its
// handle is destroyed, and those of tasks whose last handle goes without anyone
// having asked. One for the process: set it before other threads run. It must
// neither throw nor suspend. Null stands for print_unhandled, as in the
// beginning. Returns who it was until now.
inline unhandled_handler on_unhandled(unhandled_handler handler) {
  unhandled_handler before = tell_unhandled;
  tell_unhandled = handler != nullptr ? handler : print_unhandled;
  return before;
}

}  // namespace BAO_ABI
}  // namespace bao
