// switch_limit.cpp - what switching stacks costs with nothing around it
//
// The floor under every library: two flows that hand the processor to each
// other a few million times, with no object, no pool and no check in between.
//
//     switch   one resume and one yield, halved:
//       limit-inline      program counter, stack and frame pointer are stored;
//                         the compiler is told that every other register dies,
//                         and spills only what is alive
//       limit-inline+eh   the same, and the thread's two words of C++ exception
//                         state go along (what catch blocks that wait need)
//       limit-jmp         a called function that pushes the six registers of
//                         the ABI and leaves by a jump
//       swapcontext       libc's, with a system call for the signal mask
//     gen      one 64-bit value handed through a switch there and back, and
//              `hand-loop`, the loop a compiler makes of it without a generator
//
//     g++ -O2 -std=c++17 switch_limit.cpp -o switch_limit
//     taskset -c 1 ./switch_limit switch
//
// Only x86-64 has the hand-written switches; elsewhere the program says so and
// measures swapcontext alone. Do not build it with -mavx512f: the registers
// that this adds are not in the list of the dying.
//
// SPDX-License-Identifier: MIT
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "bench.hpp"

namespace {

constexpr std::size_t stack_size = 64 * 1024;

char* new_stack() {
  void* stack = mmap(nullptr, stack_size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) {
    std::perror("mmap");
    std::exit(1);
  }
  return static_cast<char*>(stack);
}

std::uint64_t value;  // what the other flow writes and this one reads

// Runs `step`, a switch there and back, and reports half of what it takes.
template <class Step>
void report_switch(const char* name, std::uint64_t count, Step step) {
  for (int i = 0; i < 1000; ++i) step();
  bench::report(name, "switch", bench::each_ns(count, step) / 2, "ns");
}

// ---- swapcontext -----------------------------------------------------------

ucontext_t main_ucontext;
ucontext_t worker_ucontext;

void ucontext_body() {
  for (;;) {
    ++value;
    swapcontext(&worker_ucontext, &main_ucontext);
  }
}

void measure_swapcontext() {
  getcontext(&worker_ucontext);
  worker_ucontext.uc_stack.ss_sp = new_stack();
  worker_ucontext.uc_stack.ss_size = stack_size;
  makecontext(&worker_ucontext, ucontext_body, 0);
  report_switch("swapcontext", 1000000,
                [] { swapcontext(&main_ucontext, &worker_ucontext); });
}

}  // namespace

#if defined(__x86_64__)

// ---- push, switch, pop, jump -----------------------------------------------

extern "C" void limit_jmp(void** save, void* to);
asm(R"(.text
.p2align 4
.globl limit_jmp
limit_jmp:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
)");

// Never called. An inline-asm switch runs code the compiler does not see, and
// GCC's -fipa-reference ignores the "memory" clobber for statics whose address
// is never taken: it keeps them in registers across the switch. A path to an
// opaque call, never taken and free of cost, keeps it honest.
extern "C" void limit_opaque();
asm(".text\nlimit_opaque: ret\n");

namespace {

void* main_sp;
void* worker_sp;

void* jmp_entry(void (*body)()) {
  void** sp = reinterpret_cast<void**>(new_stack() + stack_size);
  *--sp = nullptr;  // where the ABI expects a return address
  *--sp = reinterpret_cast<void*>(body);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  return sp;
}

void jmp_switch_body() {
  for (;;) {
    ++value;
    limit_jmp(&worker_sp, main_sp);
  }
}

void jmp_gen_body() {
  for (std::uint64_t i = 0;; ++i) {
    value = i;
    limit_jmp(&worker_sp, main_sp);
  }
}

// ---- inline ----------------------------------------------------------------

struct context {
  void* pc;
  void* sp;
  void* frame;
};

// Nothing is pushed, so the surrounding function's red zone is safe.
[[gnu::always_inline]] inline void inline_switch(context* from, context* to) {
  asm volatile(R"(
    leaq 1f(%%rip), %%rax
    movq %%rax, 0(%0)
    movq %%rsp, 8(%0)
    movq %%rbp, 16(%0)
    movq 8(%1), %%rsp
    movq 16(%1), %%rbp
    jmp *0(%1)
    .p2align 4
1:)"
               : "+D"(from), "+S"(to)
               :
               : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12",
                 "r13", "r14", "r15", "memory", "cc", "xmm0", "xmm1", "xmm2",
                 "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                 "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
  asm goto("" : : : : never);
  return;
never:
  limit_opaque();
}

// The head of libstdc++'s and libc++'s __cxa_eh_globals: which exceptions are
// being handled, and how many are in flight.
struct exception_state {
  void* caught;
  unsigned uncaught;
};
exception_state* exceptions;
extern "C" void* __cxa_get_globals() noexcept;

[[gnu::always_inline]] inline void inline_switch_eh(context* from,
                                                    context* to) {
  const exception_state mine = *exceptions;
  inline_switch(from, to);
  *exceptions = mine;
}

context main_context;
context worker_context;

context inline_entry(void (*body)()) {
  return {reinterpret_cast<void*>(body), new_stack() + stack_size - 8, nullptr};
}

void inline_switch_body() {
  for (;;) {
    ++value;
    inline_switch(&worker_context, &main_context);
  }
}

void inline_switch_eh_body() {
  for (;;) {
    ++value;
    inline_switch_eh(&worker_context, &main_context);
  }
}

void inline_gen_body() {
  for (std::uint64_t i = 0;; ++i) {
    value = i;
    inline_switch(&worker_context, &main_context);
  }
}

void inline_gen_eh_body() {
  for (std::uint64_t i = 0;; ++i) {
    value = i;
    inline_switch_eh(&worker_context, &main_context);
  }
}

// ---- the two tests ---------------------------------------------------------

void measure_switch() {
  constexpr std::uint64_t count = 25000000;
  worker_context = inline_entry(inline_switch_body);
  report_switch("limit-inline", count,
                [] { inline_switch(&main_context, &worker_context); });

  exceptions = static_cast<exception_state*>(__cxa_get_globals());
  worker_context = inline_entry(inline_switch_eh_body);
  report_switch("limit-inline+eh", count,
                [] { inline_switch_eh(&main_context, &worker_context); });

  worker_sp = jmp_entry(jmp_switch_body);
  report_switch("limit-jmp", count, [] { limit_jmp(&main_sp, worker_sp); });
}

void measure_gen() {
  constexpr std::uint64_t count = 20000000;
  std::uint64_t sum = 0;
  worker_context = inline_entry(inline_gen_body);
  double each = bench::each_ns(count, [&] {
    inline_switch(&main_context, &worker_context);
    sum += value;
  });
  bench::report("limit-inline", "gen", each, "ns");

  exceptions = static_cast<exception_state*>(__cxa_get_globals());
  worker_context = inline_entry(inline_gen_eh_body);
  each = bench::each_ns(count, [&] {
    inline_switch_eh(&main_context, &worker_context);
    sum += value;
  });
  bench::report("limit-inline+eh", "gen", each, "ns");

  worker_sp = jmp_entry(jmp_gen_body);
  each = bench::each_ns(count, [&] {
    limit_jmp(&main_sp, worker_sp);
    sum += value;
  });
  bench::report("limit-jmp", "gen", each, "ns");

  std::uint64_t i = 0;
  each = bench::each_ns(count, [&] {
    sum += ++i;
    bench::keep(sum);
  });
  bench::report("hand-loop", "gen", each, "ns");
}

}  // namespace

#else

namespace {

void measure_switch() {
  std::fputs("switch_limit: the bare switches exist for x86-64 only\n", stderr);
}
void measure_gen() { measure_switch(); }

}  // namespace

#endif

int main(int argc, char** argv) {
  const std::string test = argc > 1 ? argv[1] : "switch";
  if (test == "switch") {
    measure_switch();
    measure_swapcontext();
  } else if (test == "gen") {
    measure_gen();
  } else {
    std::fputs("usage: switch_limit switch|gen\n", stderr);
    return 2;
  }
}
