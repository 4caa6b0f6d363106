// bao/context.hpp - save one flow, continue another
//
// A thread is a program counter and a stack pointer. Save that pair somewhere,
// load another one, and the thread carries on in the middle of a different
// function. That is the whole trick; every later chapter is built on it.
//
//     main                  worker
//      |  switch_context()   .
//      +-------------------> |    worker runs until it switches back, and main
//      .                     |    sees its own call to switch_context() return
//      | <-------------------+    as if nothing had happened.
//
// swapcontext() does exactly this, and also saves the signal mask, which costs
// a system call: read it first, it is six lines. The same trick in assembly
// takes 1 to 3 ns, more than 50 times less.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <unistd.h>  // pause

#include <cstddef>
#include <cstdint>

#include "bao/error.hpp"

#ifndef BAO_NO_MAKECONTEXT
#include <ucontext.h>
#endif

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

struct context;

// What a flow finds when it is continued: its own context, and what was sent.
struct arrival {
  context& self;
  void* message;
};

#if defined(BAO_USE_UCONTEXT)

// Where a flow stands while it does not run: its ucontext_t, which lies on its
// own stack.
struct context {
  virtual ~context() = default;

  ucontext_t* saved = nullptr;

  bool empty() const { return saved == nullptr; }
  // Where its stack is in use; null if it has none.
  const void* top() const { return saved; }
  // What lies below on its stack is not used; null where that is not known.
  const char* lowest_used() const {
#if defined(__linux__) && defined(__x86_64__)
    return reinterpret_cast<char*>(saved->uc_mcontext.gregs[REG_RSP]) - 128;
#else
    return nullptr;
#endif
  }
};

// Leaves this flow, to be found in `from`, and continues the one in `to`, where
// `message` arrives. Returns when somebody continues `from`: with what they
// send.
[[gnu::always_inline]] inline arrival switch_context(context& from, context& to,
                                                     void* message) {
  static thread_local void* sent;
  ucontext_t here;
  from.saved = &here;
  sent = message;
  ::swapcontext(&here, to.saved);
  return {from, sent};
}

// A flow that begins with entry() on the stack [low, high). entry() must not
// return: there is nothing below it to return to.
inline context make_context(char* low, char* high, void (*entry)()) {
  high -= sizeof(ucontext_t);
  high -= reinterpret_cast<std::uintptr_t>(high) % alignof(ucontext_t);
  context made;
  made.saved = reinterpret_cast<ucontext_t*>(high);
  ::getcontext(made.saved);
  made.saved->uc_stack.ss_sp = low;
  made.saved->uc_stack.ss_size = static_cast<std::size_t>(high - low);
  made.saved->uc_link = nullptr;
  ::makecontext(made.saved, entry, 0);
  return made;
}

#else

// Where a flow stands while it does not run: its stack pointer, its frame
// pointer, where to continue, and its base pointer if it has one. All else it
// left on its stack.
//
// It is polymorphic for the sake of fibers, which are: so they begin with their
// context, and whoever has the address of one has that of the other in the same
// register.
struct context {
  virtual ~context() = default;

  void* sp = nullptr;
  void* fp = nullptr;
  void* ip = nullptr;
  void* bp = nullptr;

  bool empty() const { return ip == nullptr; }
  // Where its stack is in use; null if it has none.
  const void* top() const { return sp; }
  // What lies below on its stack is not used. The 128 bytes are x86-64's red
  // zone, where a function may keep variables.
  const char* lowest_used() const { return static_cast<char*>(sp) - 128; }
};

// The assembly below says that it changes "memory", but GCC's -fipa-reference
// does not believe it: across a function that makes no call to the outside, GCC
// keeps a file's own static variables in registers. This cures it: a call to
// the outside, which is never made. Clang needs no cure, and would pay 0.6 ns a
// value for this one.
[[gnu::always_inline]] inline void others_may_run() {
#if !defined(__clang__)
  __asm__ goto("" : : : : never);
  return;
never:
  ::pause();
#endif
}

// Leaves this flow, to be found in `from`, and continues the one in `to`, where
// `message` arrives. Returns when somebody continues `from`: with what they
// send. Both `from` and the message come along in registers: to look for them
// in memory would cost loads, and loads are what a switch is made of.
//
// The assembly saves three registers, and tells the compiler that all others
// have changed: so the compiler saves those, and only those, that the
// surrounding code still needs. It is always inlined, since a call of its own
// would leave the processor's stack of return addresses one off, and every
// return that follows would be predicted wrongly: 27 ns instead of 5 for a
// switch three calls deep. Nothing is pushed, so the red zone below the stack
// pointer of the surrounding function stays intact.
//
// The frame pointer cannot be named as changed, hence it is saved by hand. So
// is what serves clang as base pointer: it reaches the local variables by it
// where some are over-aligned and others are arrays of unknown size, and does
// not believe there that it changes. The modes of floating-point arithmetic
// belong to the thread and are not switched.
#if defined(__clang__)
#define BAO_IN_CLANG(...) __VA_ARGS__
#define BAO_IN_GCC(...)
#else
#define BAO_IN_CLANG(...)
#define BAO_IN_GCC(...) __VA_ARGS__
#endif
[[gnu::always_inline]] inline arrival switch_context(context& from, context& to,
                                                     void* message) {
#if defined(__x86_64__)
  context* out = &from;
  context* in = &to;
  __asm__ volatile(
      "leaq 1f(%%rip), %%rax\n\t"
      "movq %%rsp, 8(%0)\n\t"
      "movq %%rbp, 16(%0)\n\t"
      "movq %%rax, 24(%0)\n\t"
      BAO_IN_CLANG("movq %%rbx, 32(%0)\n\t")
      "movq 8(%1), %%rsp\n\t"
      "movq 16(%1), %%rbp\n\t"
      "jmpq *24(%1)\n\t"
      ".p2align 4\n"
      "1:\n\t"
#if defined(__CET__) && (__CET__ & 1)
      "endbr64\n\t"  // a place that an indirect jump may reach
#endif
      BAO_IN_CLANG("movq 32(%1), %%rbx\n\t")
      : "+D"(out), "+S"(in), "+d"(message)
      :
      : BAO_IN_GCC("rbx",)
        "rax", "rcx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
        "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
        "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "st",
        "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)",
#if defined(__AVX512F__)
        "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23",
        "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31",
        "k1", "k2", "k3", "k4", "k5", "k6", "k7",
#endif
#if defined(__APX_F__)
        "r16", "r17", "r18", "r19", "r20", "r21", "r22", "r23", "r24", "r25",
        "r26", "r27", "r28", "r29", "r30", "r31",
#endif
        "memory", "cc");
#elif defined(__aarch64__)
  register context* out __asm__("x0") = &from;
  register context* in __asm__("x1") = &to;
  register void* sent __asm__("x2") = message;
  __asm__ volatile(
      "adr x16, 1f\n\t"
      "mov x17, sp\n\t"
      "stp x17, x29, [x0, #8]\n\t"
      "str x16, [x0, #24]\n\t"
      BAO_IN_CLANG("str x19, [x0, #32]\n\t")
      "ldp x17, x29, [x1, #8]\n\t"
      "ldr x16, [x1, #24]\n\t"
      "mov sp, x17\n\t"
      "mov x30, xzr\n\t"  // a new flow has nowhere to return to
      "br x16\n"
      "1:\n\t"
#if defined(__ARM_FEATURE_BTI_DEFAULT)
      "hint #36\n\t"  // bti j: a place that an indirect jump may reach
#endif
      BAO_IN_CLANG("ldr x19, [x1, #32]\n\t")
      : "+r"(out), "+r"(in), "+r"(sent)
      :
      : BAO_IN_GCC("x19",)
        "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13",
        "x14", "x15", "x16", "x17", "x18", "x20", "x21", "x22", "x23", "x24",
        "x25", "x26", "x27", "x28", "x30", "v0", "v1", "v2", "v3", "v4", "v5",
        "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16",
        "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26",
        "v27", "v28", "v29", "v30", "v31",
#if defined(__ARM_FEATURE_SVE)
        "p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9", "p10",
        "p11", "p12", "p13", "p14", "p15",
#endif
        "memory", "cc");
  message = sent;
#elif defined(__riscv)
  register context* out __asm__("a0") = &from;
  register context* in __asm__("a1") = &to;
  register void* sent __asm__("a2") = message;
  __asm__ volatile(
      "lla t2, 1f\n\t"
      "sd sp, 8(a0)\n\t"
      "sd s0, 16(a0)\n\t"
      "sd t2, 24(a0)\n\t"
      BAO_IN_CLANG("sd s1, 32(a0)\n\t")
      "ld sp, 8(a1)\n\t"
      "ld s0, 16(a1)\n\t"
      "ld t2, 24(a1)\n\t"
      "li ra, 0\n\t"  // a new flow has nowhere to return to
      "jr t2\n"  // by ra or t0 it would look like a return to the processor
      "1:\n\t"
      BAO_IN_CLANG("ld s1, 32(a1)\n\t")
      : "+r"(out), "+r"(in), "+r"(sent)
      :
      : BAO_IN_GCC("s1",)
        "ra", "t0", "t1", "t2", "t3", "t4", "t5", "t6", "a3", "a4", "a5", "a6",
        "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11",
        "ft0", "ft1", "ft2", "ft3", "ft4", "ft5", "ft6", "ft7", "ft8", "ft9",
        "ft10", "ft11", "fa0", "fa1", "fa2", "fa3", "fa4", "fa5", "fa6", "fa7",
        "fs0", "fs1", "fs2", "fs3", "fs4", "fs5", "fs6", "fs7", "fs8", "fs9",
        "fs10", "fs11",
#if defined(__riscv_vector)
        "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10",
        "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20",
        "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30",
        "v31", "vl", "vtype",
#endif
        "memory");
  message = sent;
#endif
  others_may_run();
  return {*in, message};
}
#undef BAO_IN_CLANG
#undef BAO_IN_GCC

// Some processors can keep return addresses on a second stack too, where the
// program cannot write, and check every return by it. The assembly does not
// switch that one; swapcontext() does.
inline bool shadow_stack_in_use() {
#if defined(__CET__) && (__CET__ & 2)
  std::uint64_t top = 0;  // and so it stays where there is none
  __asm__ volatile("rdsspq %0" : "+r"(top));
  return top != 0;
#elif defined(__aarch64__)
  register std::uint64_t missing __asm__("x16") = 1;
  __asm__ volatile("hint #40" : "+r"(missing));  // chkfeat
  return missing == 0;
#else
  return false;
#endif
}
inline bool (*has_shadow_stack)() = shadow_stack_in_use;  // for tests to change

// A flow that begins with entry() on the stack [low, high). entry() must not
// return: there is nothing below it to return to, and a zero says so to those
// who unwind.
inline context make_context(char* low, char* high, void (*entry)()) {
  if (has_shadow_stack())
    die("this program runs with a shadow stack: compile it with "
        "BAO_USE_UCONTEXT");
  context made;
  made.ip = reinterpret_cast<void*>(entry);
#if defined(BAO_NO_MAKECONTEXT)
  static_cast<void>(low);
  auto top = reinterpret_cast<std::uintptr_t>(high) & ~std::uintptr_t{15};
#if defined(__x86_64__)
  top -= 8;  // as if a call had pushed its return address
  *reinterpret_cast<void**>(top) = nullptr;
#endif
  made.sp = reinterpret_cast<void*>(top);
#else
  ucontext_t start;
  ::getcontext(&start);
  start.uc_stack.ss_sp = low;
  start.uc_stack.ss_size = static_cast<std::size_t>(high - low);
  start.uc_link = nullptr;
  ::makecontext(&start, entry, 0);
  // Only this is needed: the assembly can enter there by itself.
#if defined(__x86_64__)
  made.sp = reinterpret_cast<void*>(start.uc_mcontext.gregs[REG_RSP]);
#elif defined(__aarch64__)
  made.sp = reinterpret_cast<void*>(start.uc_mcontext.sp);
#elif defined(__riscv)
  made.sp = reinterpret_cast<void*>(start.uc_mcontext.__gregs[REG_SP]);
#endif
#endif
  return made;
}

#endif

}  // namespace BAO_ABI
}  // namespace bao
