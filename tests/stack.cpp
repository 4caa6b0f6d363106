// stack.cpp - tests of the memory that flows run on
#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "bao.hpp"
#include "checks.hpp"
#include "child.hpp"
#include "sanitized.hpp"

TEST_CASE("a stack has the size asked for, rounded up to a power of two") {
  bao::stack_pool pool;
  CHECK(pool.take(1)->size == 16 * 1024);
  CHECK(pool.take(16 * 1024)->size == 16 * 1024);
  CHECK(pool.take(16 * 1024 + 1)->size == 32 * 1024);
  CHECK(pool.take(256 * 1024)->size == 256 * 1024);
  CHECK(pool.take(1024 * 1024 * 1024)->size == 1024 * 1024 * 1024);
  // The record of its own is all that is missing, and less than 2 KiB.
  bao::stack* s = pool.take(64 * 1024);
  CHECK(s->used_size() >= 62 * 1024);
  CHECK(s->high() == reinterpret_cast<char*>(s));
}

TEST_CASE("all of a stack can be used, and two have nothing in common") {
  bao::stack_pool pool;
  bao::stack* a = pool.take(16 * 1024);
  bao::stack* b = pool.take(16 * 1024);
  std::memset(a->low, 'a', a->used_size());
  std::memset(b->low, 'b', b->used_size());
  CHECK(*a->low == 'a');
  CHECK(a->high()[-1] == 'a');
  CHECK(a->size == 16 * 1024);
  CHECK(b->size == 16 * 1024);
}

TEST_CASE("nobody can touch the guard below a stack") {
  bao::stack_pool pool;
  int fds[2];
  REQUIRE(::pipe(fds) == 0);
  for (int i = 0; i < 40; ++i) {  // of more slabs than one
    bao::stack* s = pool.take(16 * 1024);
    CHECK(::write(fds[1], s->low, 1) == 1);
    errno = 0;
    CHECK(::write(fds[1], s->low - 1, 1) == -1);
    CHECK(errno == EFAULT);
    CHECK(::write(fds[1], s->low - bao::guard_size, 1) == -1);
    CHECK(s->guards(s->low - 1));
    CHECK(s->guards(s->low - bao::guard_size));
    CHECK(!s->guards(s->low));
    CHECK(!s->guards(s->low - bao::guard_size - 1));
  }
  ::close(fds[0]);
  ::close(fds[1]);
}

TEST_CASE("the stack that was given back last is the next to be taken") {
  bao::stack_pool pool;
  bao::stack* a = pool.take(16 * 1024);
  bao::stack* b = pool.take(16 * 1024);
  pool.give(a);
  pool.give(b);
  CHECK(pool.take(32 * 1024) != b);  // another size
  CHECK(pool.take(16 * 1024) == b);
  CHECK(pool.take(16 * 1024) == a);
}

TEST_CASE("the records of many stacks do not share their cache lines") {
  bao::stack_pool pool;
  std::set<std::uintptr_t> places;
  for (int i = 0; i < 16; ++i)
    places.insert(reinterpret_cast<std::uintptr_t>(pool.take(1)) % 4096);
  CHECK(places.size() == 16);
  for (std::uintptr_t place : places) CHECK(place % 64 == 0);
}

TEST_CASE("release() unmaps what no flow uses, and nothing else") {
  bao::stack_pool pool;
  int fds[2];
  REQUIRE(::pipe(fds) == 0);
  bao::stack* small = pool.take(16 * 1024);
  bao::stack* large = pool.take(1024 * 1024);
  char* unused = large->low;
  pool.give(large);
  pool.release();
  CHECK(::write(fds[1], small->low, 1) == 1);
  CHECK(::write(fds[1], unused, 1) == -1);
  // What is left can be used as before.
  CHECK(pool.take(1024 * 1024)->size == 1024 * 1024);
  pool.give(small);
  CHECK(pool.take(16 * 1024) == small);
  ::close(fds[0]);
  ::close(fds[1]);
}

TEST_CASE("a stack beyond all reason is refused with its size") {
  bao::stack_pool pool;
  std::string text;
  try {
    pool.take(std::size_t{1} << 40);
  } catch (const bao::stack_exhausted& e) {
    text = e.what();
  }
  CHECK(text.find("1099511627776") != std::string::npos);
  CHECK_THROWS_AS(pool.take(SIZE_MAX), bao::stack_exhausted);
  CHECK_THROWS_AS(pool.take(1024 * 1024 * 1024 + 1), bao::stack_exhausted);
  CHECK(pool.take(1)->size == 16 * 1024);
}

// The sanitizers need more address space than the limit leaves them.
#if !defined(SANITIZED)
TEST_CASE("when the address space is used up, the error says so") {
  const ending how = in_a_child([] {
    rlimit little{};  // beside what the tests before have left
    little.rlim_cur = little.rlim_max =
        static_cast<rlim_t>(mapped_bytes()) + (rlim_t{4} << 30);
    ::setrlimit(RLIMIT_AS, &little);
    if (::mmap(nullptr, std::size_t{5} << 30, PROT_NONE,
               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
      ::_exit(3);
    bao::stack_pool pool;
    try {
      for (int i = 0; i < 10; ++i) pool.take(1024 * 1024 * 1024);
    } catch (const bao::stack_exhausted& e) {
      const std::string text = e.what();
      const bool good = text.find("mmap: ") != std::string::npos &&
                        text.find("ulimit -v") != std::string::npos;
      // And the pool is as good as before.
      ::_exit(good && pool.take(1)->size == 16 * 1024 ? 0 : 1);
    }
    ::_exit(2);
  });
  if (how.code == 3) {
    MESSAGE("skipped: there is no limit on address space here");
    return;
  }
  CHECK(how.code == 0);
}
#endif
