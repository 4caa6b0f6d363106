// scarce.hpp - memory and stacks that fail when they are told to
//
// It is operator new that fails, not malloc(): what the C++ runtime takes for
// itself, for an exception that is thrown say, is not ours to test. Stacks come
// from mmap(), in slabs, and each has a guard by madvise() or mprotect(): what
// is defined here stands before the C library's own. For one file of a program.
#pragma once

#include "bao.hpp"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>

namespace {

enum resource { nothing, one_allocation, memory, slabs, guards };
constexpr const char* names[] = {"nothing", "one", "memory", "slabs", "guards"};

std::atomic<resource> scarce{nothing};
std::atomic<long> granted{0};     // so many are left; then one fails, or all
std::atomic<bool> failed{false};  // something has
std::atomic<long> in_use{0};      // allocations that were not given back

bool refused(resource kind) {
  if (scarce != kind || granted-- > 0) return false;
  if (kind == one_allocation) scarce = nothing;
  return failed = true;
}

}  // namespace

void* operator new(std::size_t n) {
  if (refused(one_allocation) || refused(memory)) throw std::bad_alloc();
  void* const p = std::malloc(n);
  if (p == nullptr) throw std::bad_alloc();
  ++in_use;
  return p;
}
void operator delete(void* p) noexcept {
  if (p != nullptr) --in_use;
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept { operator delete(p); }

extern "C" void* mmap(void* p, std::size_t n, int protection, int flags, int fd,
                      off_t offset) noexcept {
  if ((flags & MAP_STACK) != 0 && refused(slabs)) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  return reinterpret_cast<void*>(
      ::syscall(SYS_mmap, p, n, protection, flags, fd, offset));
}
extern "C" int madvise(void* p, std::size_t n, int advice) noexcept {
  constexpr int guard_install = 102;  // MADV_GUARD_INSTALL
  if (advice == guard_install && refused(guards)) return errno = ENOMEM, -1;
  return static_cast<int>(::syscall(SYS_madvise, p, n, advice));
}
extern "C" int mprotect(void* p, std::size_t n, int protection) noexcept {
  if (n == bao::guard_size && refused(guards)) return errno = ENOMEM, -1;
  return static_cast<int>(::syscall(SYS_mprotect, p, n, protection));
}
