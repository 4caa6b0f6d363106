// bao/config.hpp - what was chosen when compiling
//
// A header-only library is compiled anew by every file that includes it. Two
// files that disagree about a macro would disagree about the layout of a
// struct, and the linker would quietly pick one of the two. So all that a macro
// can change is part of a namespace's name, BAO_ABI. When the program starts,
// each file compares its configuration with that of the first: a program that
// mixes two ends at once, and names both. The price is one comparison a file.
//
// A user may set, for the whole program:
//
//     BAO_USE_EPOLL, BAO_USE_POLL, BAO_USE_SELECT   how to wait for I/O
//     BAO_USE_UCONTEXT     switch by swapcontext() instead of in assembly
//     BAO_NO_MAKECONTEXT   begin flows without makecontext() (musl has none)
//     BAO_STACK_SIZE       bytes of stack a flow gets, 256 KiB unless set
//
// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>

#define BAO_VERSION "0.1.0"

#if __cplusplus < 201703L
#error "bao needs C++17: compile with -std=c++17"
#endif
#ifndef __cpp_exceptions
#error "bao needs C++ exceptions: compile without -fno-exceptions"
#endif

#ifndef BAO_STACK_SIZE
#define BAO_STACK_SIZE (256 * 1024)
#endif

#if defined(__SANITIZE_ADDRESS__)
#define BAO_ASAN 1
#elif defined(__SANITIZE_THREAD__)
#define BAO_TSAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BAO_ASAN 1
#elif __has_feature(thread_sanitizer)
#define BAO_TSAN 1
#endif
#endif

#if defined(BAO_USE_EPOLL) + defined(BAO_USE_POLL) + defined(BAO_USE_SELECT) > 1
#error "bao: choose one of BAO_USE_EPOLL, BAO_USE_POLL and BAO_USE_SELECT"
#elif defined(BAO_USE_EPOLL) && !defined(__linux__)
#error "bao: BAO_USE_EPOLL needs Linux"
#elif defined(BAO_USE_SELECT)
#define BAO_ABI_POLLER select
#elif defined(BAO_USE_POLL) || !defined(__linux__)
#define BAO_ABI_POLLER poll
#else
#define BAO_ABI_POLLER epoll
#endif

// musl has no makecontext. The assembly is for x86-64, AArch64 and 64-bit
// RISC-V, with pointers of 64 bits.
#if defined(__linux__) && !defined(__GLIBC__) && !defined(BAO_NO_MAKECONTEXT)
#define BAO_NO_MAKECONTEXT 1
#endif
#if !defined(BAO_USE_UCONTEXT) && \
    !(defined(__LP64__) &&        \
      (defined(__x86_64__) || defined(__aarch64__) || defined(__riscv)))
#define BAO_USE_UCONTEXT 1
#endif

#if defined(BAO_USE_UCONTEXT)
#if defined(BAO_NO_MAKECONTEXT)
#error \
    "bao: BAO_USE_UCONTEXT needs makecontext(), which musl has in libucontext"
#endif
#define BAO_ABI_SWITCH ucontext
#elif defined(BAO_NO_MAKECONTEXT)
#define BAO_ABI_SWITCH bare
#else
#define BAO_ABI_SWITCH assembly
#endif

#if defined(BAO_ASAN)
#define BAO_ABI_TOOL asan
#elif defined(BAO_TSAN)
#define BAO_ABI_TOOL tsan
#else
#define BAO_ABI_TOOL plain
#endif

#define BAO_PASTE(a, b, c, d) a##_##b##_##c##_##d
#define BAO_NAME(a, b, c, d) BAO_PASTE(a, b, c, d)
#define BAO_ABI BAO_NAME(v0_1, BAO_ABI_POLLER, BAO_ABI_SWITCH, BAO_ABI_TOOL)
#define BAO_QUOTE(x) #x
#define BAO_STRING(x) BAO_QUOTE(x)

namespace bao {

// Which configuration this program runs. It lies outside of BAO_ABI: all share
// it, in whatever way they were compiled.
struct configuration {
  const char* name;
  std::size_t stack_size;
};
[[gnu::visibility("default")]] inline std::atomic<const configuration*>
    chosen_configuration{nullptr};

// Ends the program, naming both, unless `mine` is what it runs already.
inline void agree_on(const configuration& mine) {
  const configuration* first = nullptr;
  if (chosen_configuration.compare_exchange_strong(first, &mine)) return;
  if (std::strcmp(first->name, mine.name) == 0 &&
      first->stack_size == mine.stack_size)
    return;
  std::fprintf(
      stderr,
      "bao: this program was compiled with two configurations: %s with "
      "stacks of %zu bytes, and %s with stacks of %zu bytes\n",
      first->name, first->stack_size, mine.name, mine.stack_size);
  std::terminate();
}

// Visible, also out of a shared object that is compiled to hide all it has: so
// those of a program share one runtime, and catch each other's errors.
inline namespace [[gnu::visibility("default")]] BAO_ABI {

inline constexpr std::size_t default_stack_size = BAO_STACK_SIZE;

// A template, so that two files that differ in the size make two of it.
template <std::size_t StackSize>
inline constexpr configuration this_configuration{
    BAO_VERSION " " BAO_STRING(BAO_ABI), StackSize};

// In every file, when the program starts.
[[maybe_unused]] static const bool agreed =
    (agree_on(this_configuration<BAO_STACK_SIZE>), true);

}  // namespace BAO_ABI
}  // namespace bao
