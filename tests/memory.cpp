// memory.cpp - many stacks, stacks that run over, and none left
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bao.hpp"
#include "checks.hpp"
#include "child.hpp"
#include "sanitized.hpp"

#if defined(__linux__)
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#endif

using namespace std::literals;

// A sanitizer brings handlers and limits of its own; /proc is Linux's.
#if defined(__linux__) && !defined(SANITIZED)

namespace {

bool under_valgrind() {
  return bao::valgrind_request(0x1001, nullptr, nullptr) != 0;
}

// Runs a test case that is skipped otherwise in this program started anew,
// where bao has done nothing yet. `first` is called before.
template <class F>
ending started_anew(const char* test_case, F first) {
  const std::string which = "--test-case="s + test_case;
  return in_a_child([&] {
    first();
    ::execl("/proc/self/exe", "bao_tests", "--no-skip", "--minimal",
            which.c_str(), nullptr);
    ::_exit(127);
  });
}

}  // namespace

// --- stacks that run over ----------------------------------------------------

namespace {

// The stack that a coroutine runs on.
const bao::stack& stack_of(const bao::coroutine<>& c) {
  return *static_cast<const bao::fiber*>(c.id())->memory;
}

// One frame that is larger than the stack, and is touched at its far end only.
[[gnu::noinline]] int too_large(int n) {
  char frame[300 * 1024];
  __asm__ volatile("" : : "r"(frame) : "memory");  // all of it is wanted
  frame[0] = static_cast<char>(n);
  __asm__ volatile("" : : "r"(frame) : "memory");
  return frame[0];
}

using runs_over = int (*)(int);
constexpr runs_over ways[] = {too_deep, too_large};
constexpr int steps = 1000000;

constexpr const char* in_a_coroutine = "bao: stack overflow in a coroutine";

}  // namespace

TEST_CASE("an overflow names the task, whichever of its flows it is in") {
  for (runs_over over : ways) {
    CAPTURE(over == too_large);
    const auto in_task = [&](const char* name, auto body) {
      return in_a_child([&] {
        const auto t = bao::spawn(bao::task_options().name(name), body);
        std::fprintf(stderr, "it is number %lu\n", t.id());
        t.join();
      });
    };
    const auto numbers_it = [](const ending& how) {
      const std::size_t line = how.text.find('\n');
      return line > 6 && how.text.find(how.text.substr(6, line - 6), line) !=
                             std::string::npos;
    };

    const ending plain = in_task("reader", [&] { over(steps); });
    CAPTURE(plain.text);
    CHECK(plain.signal == SIGSEGV);
    CHECK(plain.says("bao: stack overflow in a task"));
    CHECK(plain.says("reader"));
    CHECK(numbers_it(plain));

    const ending unnamed = in_task("", [&] { over(steps); });
    CAPTURE(unnamed.text);
    CHECK(unnamed.signal == SIGSEGV);
    CHECK(unnamed.says("bao: stack overflow in a task"));
    CHECK(numbers_it(unnamed));

    const ending switched = in_task("reader", [&] {
      bao::coroutine<> c([&] { over(steps); });
      c.switch_to();
    });
    CAPTURE(switched.text);
    CHECK(switched.signal == SIGSEGV);
    CHECK(switched.says("bao: stack overflow in a coroutine of "));
    CHECK(switched.says("reader"));
    CHECK(numbers_it(switched));

    const ending lent = in_task("", [&] {
      bao::generator<int> g([&](auto& yield) { yield(over(steps)); });
      g.next();
    });
    CAPTURE(lent.text);
    CHECK(lent.signal == SIGSEGV);
    CHECK(lent.says("bao: stack overflow in a generator of "));
    CHECK(numbers_it(lent));
  }
}

TEST_CASE("an overflow outside of tasks says what kind of flow it was") {
  for (runs_over over : ways) {
    CAPTURE(over == too_large);
    const ending switched = in_a_child([&] {
      bao::coroutine<> c([&] { over(steps); });
      c.switch_to();
    });
    CHECK(switched.signal == SIGSEGV);
    CHECK(switched.says(in_a_coroutine));
    CHECK(switched.says("256 KiB are used up"));

    const ending lent = in_a_child([&] {
      bao::generator<int> g([&](auto& yield) { yield(over(steps)); });
      g.next();
    });
    CHECK(lent.signal == SIGSEGV);
    CHECK(lent.says("bao: stack overflow in a generator"));
    CHECK(lent.says("256 KiB are used up"));
  }
}

TEST_CASE("an overflow tells the size of the stack, and what can be done") {
  const ending how = in_a_child([] {
    bao::spawn(bao::task_options().stack_size(32 * 1024),
               [] { too_deep(steps); });
    bao::join_all();
  });
  CHECK(how.signal == SIGSEGV);
  CHECK(how.says("its 32 KiB are used up."));
  CHECK(how.says("task_options().stack_size()"));
  CHECK(how.says("BAO_STACK_SIZE"));
  CHECK(std::count(how.text.begin(), how.text.end(), '\n') == 1);
}

TEST_CASE("an overflow is told on a thread that has made its flows later") {
  const ending how = in_a_child([] {
    bao::coroutine<> first([] {});
    first.switch_to();
    std::thread([] {
      bao::spawn(bao::task_options().name("far"), [] { too_deep(steps); });
      bao::join_all();
    }).join();
  });
  CHECK(how.signal == SIGSEGV);
  CHECK(how.says("bao: stack overflow in a task"));
  CHECK(how.says("far"));
}

// --- and the handlers that a program has itself ------------------------------

namespace {

struct {
  const char* low;
  std::vector<char> copy;
  struct sigaction before;
} neighbour;

void handle_segv(void (*handler)(int, siginfo_t*, void*), int flags,
                 struct sigaction* before = nullptr) {
  struct sigaction ours {};
  ours.sa_sigaction = handler;
  ours.sa_flags = SA_SIGINFO | flags;
  sigemptyset(&ours.sa_mask);
  bao::check(::sigaction(SIGSEGV, &ours, before), "sigaction");
}

void exit_with_42(int, siginfo_t*, void*) { ::_exit(42); }

}  // namespace

TEST_CASE("a stack that runs over leaves the one below it as it was") {
  for (runs_over over : ways) {
    CAPTURE(over == too_large);
    const ending how = in_a_child([&] {
      const auto flows = [&] {
        bao::coroutine<> below([] {
          volatile char full[32 * 1024];
          for (volatile char& c : full) c = 'b';
          bao::main_coroutine().switch_to();
        });
        below.switch_to();
        const bao::stack& s = stack_of(below);
        neighbour.low = s.low;
        neighbour.copy.assign(s.low, s.low + s.size);
        // It has ours print its line, and then looks.
        handle_segv(
            [](int n, siginfo_t* info, void* context) {
              neighbour.before.sa_sigaction(n, info, context);
              const bool same = std::equal(neighbour.copy.begin(),
                                           neighbour.copy.end(), neighbour.low);
              ::_exit(same ? 42 : 43);
            },
            SA_ONSTACK, &neighbour.before);
        bao::coroutine<> above([&] {
          const bao::stack& mine = *bao::current_flow->memory;
          if (mine.low != s.low + s.size + bao::guard_size) ::_exit(41);
          over(steps);
        });
        above.switch_to();
      };
      std::thread(flows).join();  // whose stacks lie side by side
    });
    CHECK(how.code == 42);
    CHECK(how.says(in_a_coroutine));
  }
}

TEST_CASE("a handler of SIGSEGV that comes after ours runs on our stack") {
  const ending how = in_a_child([] {
    bao::coroutine<> first([] {});
    first.switch_to();
    handle_segv(exit_with_42, SA_ONSTACK);
    bao::coroutine<> over([] { too_deep(steps); });
    over.switch_to();
  });
  CHECK(how.code == 42);
  CHECK(how.text.empty());  // it may call the one that was there before
}

TEST_CASE("alone: an overflow under a handler from before" * doctest::skip()) {
  handle_segv(exit_with_42, SA_ONSTACK);
  bao::coroutine<> over([] { too_large(steps); });
  over.switch_to();
}

TEST_CASE("alone: an overflow under a handler and a stack from before" *
          doctest::skip()) {
  static char memory[64 * 1024];
  stack_t mine{};
  mine.ss_sp = memory;
  mine.ss_size = sizeof memory;
  bao::check(::sigaltstack(&mine, nullptr), "sigaltstack");
  handle_segv(
      [](int, siginfo_t*, void*) {
        char here;
        ::_exit(&here >= memory && &here < memory + sizeof memory ? 42 : 43);
      },
      SA_ONSTACK);
  bao::coroutine<> over([] { too_large(steps); });
  over.switch_to();
}

TEST_CASE("alone: an overflow under a handler that needs stack itself" *
          doctest::skip()) {
  handle_segv(exit_with_42, 0);
  bao::coroutine<> over([] { too_large(steps); });
  over.switch_to();
}

TEST_CASE("a handler of SIGSEGV from before bao is called after our line") {
  if (under_valgrind()) {
    MESSAGE("skipped: valgrind has a handler of its own");
    return;
  }
  const auto nothing_first = [] {};

  const ending on_ours = started_anew(
      "alone: an overflow under a handler from before", nothing_first);
  CHECK(on_ours.code == 42);
  CHECK(on_ours.says(in_a_coroutine));

  const ending on_theirs =
      started_anew("alone: an overflow under a handler and a stack from before",
                   nothing_first);
  CHECK(on_theirs.code == 42);
  CHECK(on_theirs.says(in_a_coroutine));

  // The system cannot call it: there is no stack left.
  const ending unreachable =
      started_anew("alone: an overflow under a handler that needs stack itself",
                   nothing_first);
  CHECK(unreachable.signal == SIGSEGV);
  CHECK(unreachable.says(in_a_coroutine));
}

// --- no more stacks ----------------------------------------------------------

namespace {

constexpr int guard_install = 102;  // MADV_GUARD_INSTALL

// Whether stacks can be guarded without a mapping for each guard.
bool light_guards() {
  const std::size_t size = bao::guard_size;
  void* p = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const bool light = ::madvise(p, size, guard_install) == 0;
  ::munmap(p, size);
  return light;
}

// From now on this process and what it starts are told that the system is older
// than Linux 6.13. False where that cannot be done.
bool forbid_light_guards() {
  sock_filter code[] = {
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      {BPF_JMP | BPF_JEQ | BPF_K, 0, 3, SYS_madvise},
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, args[2])},
      {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, guard_install},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | EINVAL},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  };
  const sock_fprog filter{std::size(code), code};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0 &&
         !light_guards();
}

long mappings() {
  std::ifstream maps("/proc/self/maps");
  return std::count(std::istreambuf_iterator<char>(maps), {}, '\n');
}

bool can_be_touched(const char* p) {
  int ends[2];
  bao::check(::pipe(ends), "pipe");
  const bool can = ::write(ends[1], p, 1) == 1;
  ::close(ends[0]);
  ::close(ends[1]);
  return can;
}

std::string text_of(const std::exception_ptr& error) {
  return error == nullptr ? "" : bao::describe(error);
}

// Tasks that wait at a gate, as many as get a stack; the last one does not.
struct gathering {
  explicit gathering(std::size_t most) {
    while (tasks.size() < most) {
      auto t = bao::spawn([this] {
        const leaves at_end{left};
        gate.join();
        ++ran;
      });
      bao::yield();
      if (t.done()) {
        refusal = text_of(t.error());
        return;
      }
      tasks.push_back(t);
    }
  }
  struct leaves {
    std::size_t& count;
    ~leaves() { ++count; }
  };

  bao::task<> gate = bao::spawn(
      [] { bao::this_scheduler().park(bao::never, {"waiting for the test"}); });
  std::size_t ran = 0, left = 0;
  std::vector<bao::task<>> tasks;
  std::string refusal;
};

// What must hold when no further stack can be had: `words` are in the error,
// and the flows that there are go on, end, and are unwound.
void check_the_end_of(std::size_t most, const char* words) {
  bao::generator<int> begun([](auto& yield) {
    for (int i = 1;; ++i) yield(i);
  });
  CHECK(begun.next() == 1);
  gathering all(most);
  const std::size_t n = all.tasks.size();
  REQUIRE(n > 100);
  REQUIRE(n < most);
  CAPTURE(all.refusal);
  CHECK(all.refusal.find("bao::stack_exhausted: ") == 0);
  CHECK(all.refusal.find(words) != std::string::npos);
  CHECK(all.refusal.find("another stack of 262144 bytes") != std::string::npos);

  // It is so each time, and for whatever needs a stack.
  bao::task<> late = bao::spawn([] {});
  late.join();
  CHECK(text_of(late.error()) == all.refusal);
  bao::generator<int> g([](auto& yield) { yield(1); });
  CHECK_THROWS_AS(g.next(), bao::stack_exhausted);
  bool switched = false;
  bao::coroutine<> c([&] { switched = true; });
  CHECK_THROWS_AS(c.switch_to(), bao::stack_exhausted);
  CHECK(begun.next() == 2);

  // Half of them are killed, which makes room for those that were refused.
  for (std::size_t i = 0; i < n; i += 2) CHECK(all.tasks[i].kill());
  CHECK(all.left == (n + 1) / 2);
  CHECK(all.ran == 0);
  CHECK(g.next() == 1);
  c.switch_to();
  CHECK(switched);

  all.gate.kill();
  CHECK(bao::join_all(all.tasks));
  CHECK(all.left == n);
  CHECK(all.ran == n / 2);

  gathering again(n - 10);
  CHECK(again.tasks.size() == n - 10);
  CHECK(again.refusal == "");
  CHECK(begun.next() == 3);
}

}  // namespace

TEST_CASE("alone: guards by mprotect" * doctest::skip()) {
  const long before = mappings();
  bao::stack_pool pool;
  std::vector<bao::stack*> stacks;
  for (int i = 0; i < 100; ++i) stacks.push_back(pool.take(64 * 1024));
  // A stack and a guard each, but for slabs that happen to be neighbours.
  CHECK(mappings() - before >= 190);
  for (bao::stack* s : stacks) {
    CHECK(can_be_touched(s->low));
    CHECK(!can_be_touched(s->low - 1));
    CHECK(!can_be_touched(s->low - bao::guard_size));
  }
  const ending how = in_a_child([] {
    bao::coroutine<> c([] { too_large(steps); });
    c.switch_to();
  });
  CHECK(how.signal == SIGSEGV);
  CHECK(how.says(in_a_coroutine));
}

TEST_CASE("alone: the last mapping" * doctest::skip()) {
  // All but some hundreds are taken: every other page of a large piece.
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  std::size_t most = 0;
  std::ifstream("/proc/sys/vm/max_map_count") >> most;
  REQUIRE(most > 2000);
  if (most > 2000000) {
    MESSAGE("vm.max_map_count is too high to be reached");
    return;
  }
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  auto* const piece = static_cast<char*>(
      ::mmap(nullptr, (most + 2) * page, PROT_NONE, flags, -1, 0));
  std::size_t n = 1;
  while (n < most && ::mprotect(piece + n * page, page, PROT_READ) == 0) n += 2;
  REQUIRE(n < most);
  REQUIRE(::mprotect(piece, 1000 * page, PROT_NONE) == 0);

  check_the_end_of(2000, "vm.max_map_count");
}

TEST_CASE("where guards take mappings they are as good, while there are any") {
  if (under_valgrind()) {
    MESSAGE("skipped: valgrind keeps its own account of mappings");
    return;
  }
  const auto old_linux = [] {
    if (!forbid_light_guards()) ::_exit(77);
  };
  const ending guards = started_anew("alone: guards by mprotect", old_linux);
  if (guards.code == 77) {
    MESSAGE("skipped: the system calls of a child cannot be filtered");
    return;
  }
  CHECK(guards.code == 0);
  CHECK(started_anew("alone: the last mapping", old_linux).code == 0);
}

TEST_CASE("alone: the last of the address space" * doctest::skip()) {
  const auto used = static_cast<rlim_t>(mapped_bytes());
  const rlimit little{used + (rlim_t{200} << 20), RLIM_INFINITY};
  REQUIRE(::setrlimit(RLIMIT_AS, &little) == 0);
  check_the_end_of(2000, "mmap: ");
}

TEST_CASE("without address space for more stacks, those made so far are good") {
  if (under_valgrind()) {
    MESSAGE("skipped: valgrind needs address space itself");
    return;
  }
  CHECK(started_anew("alone: the last of the address space", [] {}).code == 0);
}

// --- many stacks -------------------------------------------------------------

TEST_CASE("100,000 guarded tasks wait in little memory and few mappings") {
  if (!light_guards() || under_valgrind()) {
    MESSAGE("skipped: this needs Linux 6.13, and no valgrind");
    return;
  }
  constexpr std::size_t n = 100000;
  std::size_t begun = 0, ended = 0, unguarded = 0;
  long mapped = 0, resident = 0;
  const auto spawn_them = [&] {
    const bao::task<> gate = bao::spawn([] {
      bao::this_scheduler().park(bao::never, {"waiting for the test"});
    });
    std::vector<bao::task<>> tasks;
    tasks.reserve(n);
    bao::yield();
    const long mapped_before = mappings();
    const long resident_before = resident_bytes();
    while (tasks.size() < n && begun == tasks.size()) {
      for (int i = 0; i < 1000; ++i)
        tasks.push_back(bao::spawn([&] {
          const char* const low = bao::current_flow->memory->low;
          if (++begun % 1000 == 0 && can_be_touched(low - 1)) ++unguarded;
          gate.join();
          ++ended;
        }));
      bao::yield();
    }
    mapped = mappings() - mapped_before;
    resident = resident_bytes() - resident_before;
    gate.kill();
    bao::join_all(tasks);
  };
  std::thread(spawn_them).join();  // with which the stacks go
  CHECK(begun == n);
  CHECK(ended == n);
  CHECK(unguarded == 0);
  CHECK(mapped < 1000);
#if defined(BAO_USE_UCONTEXT)
  const long most = 10 * 1024;  // a ucontext_t may lie across two pages
#else
  const long most = 6 * 1024;
#endif
  CHECK(resident / static_cast<long>(n) < most);
}

#endif
