// bao/stack.hpp - memory to run on, with a guard at its end
//
// A stack is only memory that nobody else uses. The interesting parts are what
// lies below it, and what it costs:
//
//      low                                                   high
//      | guard, 64 KiB | ...... untouched ...... | in use <- | record |
//
// The guard makes an overflow a fault instead of a neighbour's corrupted
// variable. A page costs memory only once it is touched, so 256 KiB of stack
// are one page of memory for a flow that does little. Stacks are cut from large
// slabs and used again, last in first out, while they are still in the cache.
//
// A stack is set up once: between two flows a small loop stays parked on it,
// which waits for the next one to run (fiber.hpp). What a flow has touched
// stays in memory, for one that goes as deep next time. When the thread has
// nothing to do, it gives back what lies below the place where a flow stands,
// some stacks at a time.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "bao/context.hpp"
#include "bao/error.hpp"

#if defined(BAO_ASAN)
#include <sanitizer/lsan_interface.h>
#endif

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// Below every stack. Wider than a page, since a function with large local
// arrays may step over a narrow one; AArch64 compilers probe every 64 KiB.
inline constexpr std::size_t guard_size = 64 * 1024;

// The record at the top of a stack.
struct stack {
  char* low;         // the end that the stack grows to, right above the guard
  std::size_t size;  // bytes from there on, this record among the last
  context idle;      // where its loop is parked while no flow uses it
  context* stands;   // who is on it: idle, or a fiber
  stack* next;       // in the pool
  stack* older;      // in the list of all
  struct slab* from;
  unsigned long valgrind_id;
  void* fake_stack;  // AddressSanitizer's, of the parked loop
  void* tsan_fiber;

  char* high() { return low + used_size(); }
  // Without the record.
  std::size_t used_size() const {
    return static_cast<std::size_t>(reinterpret_cast<const char*>(this) - low);
  }
  bool guards(const void* address) const {
    auto a = static_cast<const char*>(address);
    return a >= low - guard_size && a < low;
  }
};

struct slab {
  char* memory;
  std::size_t bytes;
  std::size_t in_use;  // stacks that are not in the pool
  slab* next;
};

// What can be asked of valgrind, in the numbers of its valgrind.h.
inline constexpr unsigned long running_on_valgrind = 0x1001;
inline constexpr unsigned long stack_register = 0x1501;
inline constexpr unsigned long stack_deregister = 0x1502;

// Asks valgrind, if that is who runs us; else the answer is 0. The request is a
// sequence of rotations that does nothing anywhere else.
inline unsigned long valgrind_request(unsigned long request,
                                      const void* low = nullptr,
                                      const void* high = nullptr) {
#if defined(__x86_64__)
  std::uintptr_t arguments[6] = {request, reinterpret_cast<std::uintptr_t>(low),
                                 reinterpret_cast<std::uintptr_t>(high)};
  std::uintptr_t result = 0;
  __asm__ volatile(
      "rolq $3, %%rdi\n\trolq $13, %%rdi\n\trolq $61, %%rdi\n\trolq $51, %%rdi"
      "\n\txchgq %%rbx, %%rbx"
      : "=d"(result)
      : "a"(arguments), "0"(result)
      : "cc", "memory");
  return result;
#else
  static_cast<void>(request), static_cast<void>(low), static_cast<void>(high);
  return 0;
#endif
}

// Guards [p, p + guard_size). Linux 6.13 can do so without splitting the
// mapping, of which a process may have only 65,530; some emulators accept that
// call and do nothing, so a system call that must fail has the last word.
inline bool install_guard(char* p) {
#if defined(__linux__)
  constexpr int guard_install = 102;  // MADV_GUARD_INSTALL
  static const bool light = [p] {
    if (::madvise(p, guard_size, guard_install) != 0) return false;
    int zero = ::open("/dev/zero", O_RDONLY | O_CLOEXEC);
    if (zero == -1) return false;
    bool guarded = ::read(zero, p, 1) == -1 && errno == EFAULT;
    ::close(zero);
    return guarded;
  }();
  if (light) return ::madvise(p, guard_size, guard_install) == 0;
#endif
  return ::mprotect(p, guard_size, PROT_NONE) == 0;
}

// The stacks of one thread.
class stack_pool {
 public:
  stack_pool() = default;
  stack_pool(const stack_pool&) = delete;
  ~stack_pool() { release(); }

  // A stack of `size` bytes, rounded up to a power of two, from the pool if it
  // has one; our record takes 1.2 KiB of them at most. Throws stack_exhausted,
  // which says what ran out.
  stack* take(std::size_t size);

  // Takes back what take() gave. Its loop is parked in s->idle.
  void give(stack* s) noexcept;

  // Gives memory back that flows have used and left, of the next few stacks in
  // turn: 256 calls reach all. A stack with nothing to give costs 0.3 us.
  void sweep() noexcept;

  // Gives the slabs that no flow uses back to the system.
  void release() noexcept;

  // Which stacks serve a size: 16 KiB, where a signal handler fits, 32 KiB ...
  static std::size_t size_class(std::size_t size) {
    if (size <= smallest) return 0;
    const unsigned long long more = (size - 1) / smallest;
    return static_cast<std::size_t>(64 - __builtin_clzll(more));
  }

 private:
  static constexpr std::size_t smallest = 16 * 1024;
  static constexpr std::size_t classes = 17;  // the largest: 1 GiB

  stack* carve(std::size_t n);
  void add_slab(std::size_t n);

  stack* idle_[classes] = {};
  slab* newest_[classes] = {};
  char* uncut_[classes] = {};  // what is left of that
  slab* slabs_ = nullptr;
  stack* all_ = nullptr;
  stack* to_sweep_ = nullptr;  // from here on
  std::size_t carved_ = 0;
};

inline stack* stack_pool::take(std::size_t size) {
  if (size > (smallest << (classes - 1)))
    throw stack_exhausted("a stack of " + std::to_string(size) +
                          " bytes is more than the largest, 1 GiB");
  std::size_t n = size_class(size);
  stack* s = idle_[n];
  if (s == nullptr) return carve(n);
  idle_[n] = s->next;
  ++s->from->in_use;
  return s;
}

inline void stack_pool::give(stack* s) noexcept {
  std::size_t n = size_class(s->size);
  s->stands = &s->idle;
  s->next = idle_[n];
  idle_[n] = s;
  --s->from->in_use;
}

inline stack* stack_pool::carve(std::size_t n) {
  if (newest_[n] == nullptr ||
      uncut_[n] == newest_[n]->memory + newest_[n]->bytes)
    add_slab(n);
  const std::size_t size = smallest << n;
  char* const low = uncut_[n] + guard_size;
  if (!install_guard(uncut_[n])) {
    std::string why = std::strerror(errno);
    throw stack_exhausted("no guard for another stack of " +
                          std::to_string(size) + " bytes: " + why +
                          " (each takes two of vm.max_map_count mappings)");
  }
  uncut_[n] += size + guard_size;
  // Were all records at the same distance from a page, a thousand stacks would
  // fight for the same few cache lines: so they are spread over 16 places.
  char* at = low + size - sizeof(stack) - (carved_++ % 16) * 64;
  at -= reinterpret_cast<std::uintptr_t>(at) % 64;
  auto s = new (at) stack{};
  s->low = low;
  s->size = size;
  s->from = newest_[n];
  s->stands = &s->idle;
  s->older = std::exchange(all_, s);
  s->valgrind_id = valgrind_request(stack_register, low, at);
#if defined(BAO_ASAN)
  __lsan_register_root_region(low, s->size);  // what it points to is no leak
#endif
  ++s->from->in_use;
  return s;
}

// Small programs get small slabs; a million flows few system calls.
inline void stack_pool::add_slab(std::size_t n) {
  const std::size_t size = smallest << n;
  std::size_t count = carved_ < 16 ? 16 : carved_ < 1024 ? 64 : 256;
  if (size > default_stack_size) count = 4;
  if (size >= 64 * 1024 * 1024) count = 1;
  auto made = new slab{nullptr, count * (size + guard_size), 0, slabs_};
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#if defined(MAP_NORESERVE)
  flags |= MAP_NORESERVE;
#endif
#if defined(MAP_STACK)
  flags |= MAP_STACK;
#endif
  void* p = ::mmap(nullptr, made->bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (p == MAP_FAILED) {
    const int why = errno;
    delete made;
    throw stack_exhausted("no address space for another stack of " +
                          std::to_string(size) +
                          " bytes: mmap: " + std::strerror(why) +
                          " (see ulimit -v and vm.overcommit_memory)");
  }
#if defined(MADV_NOHUGEPAGE)
  ::madvise(p, made->bytes, MADV_NOHUGEPAGE);  // 2 MiB for every small flow
#endif
  made->memory = static_cast<char*>(p);
  slabs_ = newest_[n] = made;
  uncut_[n] = made->memory;
}

inline void stack_pool::sweep() noexcept {
  static const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto here = static_cast<const char*>(__builtin_frame_address(0));
  for (std::size_t i = 0; i < 32 + carved_ / 256; ++i) {
    stack* const s = to_sweep_ != nullptr ? to_sweep_ : all_;
    if (s == nullptr) return;
    to_sweep_ = s->older;
    if (here >= s->low && here < s->high()) continue;  // our own
    if (s->stands->empty()) continue;                  // nobody's yet
    const char* const used = s->stands->lowest_used();
    if (used == nullptr) continue;
    const auto end = reinterpret_cast<std::uintptr_t>(used) / page * page;
    const auto low = reinterpret_cast<std::uintptr_t>(s->low);
    if (end > low) ::madvise(s->low, end - low, MADV_DONTNEED);
    if (to_sweep_ == nullptr) return;  // all have been seen
  }
}

inline void stack_pool::release() noexcept {
  all_ = to_sweep_ = nullptr;
  for (std::size_t n = 0; n < classes; ++n) {
    for (stack** link = &idle_[n]; *link != nullptr;) {
      stack* s = *link;
      if (s->from->in_use != 0) {
        link = &s->next;
        continue;
      }
      *link = s->next;
      if (s->valgrind_id != 0)
        valgrind_request(stack_deregister,
                         reinterpret_cast<void*>(s->valgrind_id));
#if defined(BAO_ASAN)
      __lsan_unregister_root_region(s->low, s->size);
#endif
    }
    if (newest_[n] != nullptr && newest_[n]->in_use == 0) newest_[n] = nullptr;
  }
  for (slab** link = &slabs_; *link != nullptr;) {
    slab* s = *link;
    if (s->in_use != 0) {
      link = &s->next;
      continue;
    }
    *link = s->next;
    ::munmap(s->memory, s->bytes);
    delete s;
  }
}

}  // namespace BAO_ABI
}  // namespace bao
