// bao/fiber.hpp - a flow with a stack of its own
//
// A context is a place to continue. A fiber is what has to go with it: a stack,
// the C++ exceptions that it is handling, and the notes that sanitizers want.
//
//     exceptions   Each thread keeps a list of the exceptions being handled. A
//                  flow that switches inside a catch block must take its part
//                  of the list along, or `throw;` would rethrow a stranger's.
//                  In nearly every switch there is nothing to take, which one
//                  test on the fast path finds out.
//     pending      An exception that somebody else wants thrown here: it is the
//                  first thing that a continued flow looks for. That is how a
//                  flow is killed, and how its stack is unwound.
//
// Not errno, and not the floating-point modes, which belong to the thread.
//
// Fibers never change threads: this keeps thread_local variables, and every
// address that a compiler has cached, right.
//
// A switch takes 1 to 3 ns; a fiber a block of 512 bytes, and its stack.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <cxxabi.h>  // the list of exceptions, the end of a thread
#include <signal.h>
#include <unistd.h>  // write

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "bao/libc.hpp"
#include "bao/stack.hpp"

#if defined(BAO_ASAN)
#include <pthread.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(BAO_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

#if defined(_LIBCPP_VERSION)
namespace __cxxabiv1 {  // has this, and most often does not declare it
struct __cxa_eh_globals;
extern "C" __cxa_eh_globals* __cxa_get_globals();
}  // namespace __cxxabiv1
#endif

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// A thread's exceptions in flight, as both C++ runtimes lay them out: Itanium
// C++ ABI, Exception Handling, 2.2.2.
struct exceptions_in_flight {
  void* caught = nullptr;
  unsigned uncaught = 0;

  bool any() const {
    return __builtin_expect(
        (reinterpret_cast<std::uintptr_t>(caught) | uncaught) != 0, 0);
  }
};

struct thread_state;

// Control blocks of fibers that are gone, for the next ones. To recycle them
// takes a few loads; malloc() and free() took a third of a spawn, and more than
// half where a thousand tasks end together.
class spare_blocks {
 public:
  static constexpr std::size_t size = 512;  // holds nearly every fiber

  spare_blocks() = default;
  spare_blocks(const spare_blocks&) = delete;
  ~spare_blocks() {
    while (first_ != nullptr) ::operator delete(take());
  }

  // Null when there is none.
  void* take() noexcept {
    spare* const s = first_;
    if (s == nullptr) return nullptr;
    first_ = s->next;
    ++room_;
    return s;
  }
  // False when there are enough.
  bool keep(void* block) noexcept {
    if (room_ == 0) return false;
    --room_;
    first_ = new (block) spare{first_};
    return true;
  }

 private:
  struct spare {
    spare* next;
  };
  spare* first_ = nullptr;
#if defined(BAO_ASAN) || defined(BAO_TSAN)
  int room_ = 0;  // none is used again: they find out who uses it too long
#else
  int room_ = 1024;
#endif
};

// Where a flow is in its life.
enum class flow_state { created, suspended, running, finished };

class fiber : public context {  // which is where it stands while suspended
 public:
  fiber() = default;
  fiber(const fiber&) = delete;

  // A small one lies in a spare block of the thread that makes it.
  static void* operator new(std::size_t size);
  static void operator delete(void* block, std::size_t size) noexcept;
  static void* operator new(std::size_t size, std::align_val_t at) {
    return ::operator new(size, at);
  }
  static void operator delete(void* block, std::size_t,
                              std::align_val_t at) noexcept {
    ::operator delete(block, at);
  }

  // For messages: what it is, and what it is called, if anything.
  virtual const char* kind() const noexcept { return "main flow"; }
  virtual const char* title() const noexcept { return ""; }
  virtual unsigned long number() const noexcept { return 0; }

  thread_state* home = nullptr;   // its thread, for good once it has started
  stack* memory = nullptr;        // the thread's own flow has none
  fiber* killer = nullptr;        // who waits for its end, instead of `link`
  fiber* link = nullptr;          // who goes on when it ends, or yields
  fiber* leaf = nullptr;          // suspended: whom to continue; else null
  std::exception_ptr pending;     // to be thrown when it is continued
  exceptions_in_flight handling;  // kept here while it does not run
  class scope* scopes = nullptr;  // time limits and shields opened in it
  fiber* root = nullptr;          // the first flow of its tree
  void* owner = nullptr;          // the task whose first flow it is
  const void* expects = nullptr;  // the type it waits for in a switch, ...
  void* inbox = nullptr;          // ... and the std::optional to put it in
  void* fake_stack = nullptr;     // AddressSanitizer's
  flow_state life = flow_state::created;  // never `suspended`: see state()
  bool cleaning = false;  // has ended; what the body held is being destroyed
  bool lends = false;     // a generator: its link is whoever resumed it last
  std::atomic<bool> orphan{false};  // its owner has let go of it
  unsigned references = 0;
  std::atomic<unsigned> released_elsewhere{0};  // references, not yet counted
  fiber* next_released = nullptr;

  flow_state state() const {
    return leaf != nullptr ? flow_state::suspended : life;
  }

  // Throws what somebody left here to be thrown.
  [[gnu::always_inline]] void meet_pending() {
    if (pending != nullptr) throw_pending();
  }

  // Takes a stack of `size` bytes; the next switch here calls run(). Throws
  // stack_exhausted, in which case nothing has changed.
  void start(thread_state& t, std::size_t size = default_stack_size);

  void retain();
  // One reference less; the last one disposes of the fiber. On another thread
  // than its own it is left for that one to do, if it still runs.
  void release() noexcept;
  void release_later() noexcept;          // left in any case
  void give_up(unsigned count) noexcept;  // so many less, here and now

  // Ends it, on its own thread, if it has begun and not ended.
  virtual void unwind() noexcept {}

 protected:
  ~fiber() override;
  virtual void dispose() noexcept { delete this; }

 private:
  // The body, called on the new stack. Returns who goes on: one that has begun.
  // This fiber may be gone by then.
  virtual fiber* run() noexcept { return nullptr; }

  [[gnu::cold, noreturn, gnu::noinline]] void throw_pending() {
    std::exception_ptr error = std::move(pending);
    pending = nullptr;
    std::rethrow_exception(std::move(error));
  }

  static void runner();
};

// The flow that a thread begins with. Whoever refers to it keeps the
// thread_state alive.
class main_flow final : public fiber {
  void dispose() noexcept override;
};

// What a thread that runs fibers keeps. It stays until the thread has ended and
// the last fiber that has started there is gone.
struct thread_state {
  main_flow main;
  stack_pool stacks;
  spare_blocks blocks;
  std::unique_ptr<char[]> scratch;        // room for bytes on their way
  std::atomic<fiber*> released{nullptr};  // by other threads; see take_back()
  class scheduler* tasks = nullptr;       // once there are any
  unsigned number;                        // of the thread, for messages
  std::atomic<bool> ended{false};
  char* signal_stack = nullptr;   // where an overflow is reported
  const char* own_low = nullptr;  // the thread's own stack
  std::size_t own_size = 0;

  thread_state();
  ~thread_state() { main.home = nullptr; }
  void end();

  // Counts the fibers that have started here and still exist. Most are
  // destroyed on their own thread, where a plain counter does; only the others
  // pay for an atomic one, which starts high so that it cannot reach zero
  // before the thread ends.
  void add() {
    if (ended)  // in the destructor of an object at namespace scope
      others_.fetch_add(1);
    else
      ++fibers_;
  }
  void drop() noexcept;

  // Does what other threads have left for this one to do: see fiber::release.
  void take_back() noexcept;
  void leave_for_home(fiber& f) noexcept;

 private:
  static constexpr long alive = 1L << 30;
  long fibers_ = 0;
  std::atomic<long> others_{alive};
  std::atomic<bool> taking_{false};  // back, by one thread at a time
};

// What every switch touches, where it can be reached by one instruction: these
// need neither constructor nor guard. All null before the thread's first fiber.
// No struct: GCC would keep its address on the stack across a switch, and wait
// for it there before it can begin the next one: 1 ns for a generator's value.
#if defined(__ELF__) && defined(__PIC__) && !defined(__PIE__)
#define BAO_HOT [[gnu::tls_model("initial-exec")]]  // as a program has it
#else
#define BAO_HOT
#endif
BAO_HOT inline thread_local fiber* current_flow = nullptr;  // who runs
BAO_HOT inline thread_local fiber* current_root = nullptr;  // of its tree
BAO_HOT inline thread_local exceptions_in_flight* current_exceptions = nullptr;
BAO_HOT inline thread_local thread_state* current_thread = nullptr;
#undef BAO_HOT

// The destructor of a thread_local object would run once in a thread, and too
// soon: objects that are destroyed later may run fibers again, for which a new
// state is made. So the function that serves such destructors is called
// directly. Its last argument is for dlclose(): it lies in the shared object
// that has to wait for the thread.
[[gnu::noinline]] inline thread_state& make_thread_state() {
  void (*const end)(void*) = [](void*) { current_thread->end(); };
  auto* const made = new thread_state;
  if (abi::__cxa_thread_atexit(end, nullptr, reinterpret_cast<void*>(end)) !=
      0) {
    delete made;
    throw std::bad_alloc();
  }
  return *(current_thread = made);
}

// This thread's, made when there is none. Never suspends.
inline thread_state& this_thread_state() {
  return current_thread != nullptr ? *current_thread : make_thread_state();
}
inline fiber* this_flow() { return this_thread_state(), current_flow; }

// What sanitizers are told: that a flow is about to be left, and that another
// one has been reached. Nothing at all without them.
#if defined(BAO_ASAN)
inline void leave_flow(void** fake_stack, const stack* to) {
  const thread_state& t = *current_thread;
  __sanitizer_start_switch_fiber(fake_stack,
                                 to != nullptr ? to->low : t.own_low,
                                 to != nullptr ? to->used_size() : t.own_size);
}
inline void reach_flow(void* fake_stack) {
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}
#elif defined(BAO_TSAN)
inline thread_local void* tsan_main = nullptr;
inline void leave_flow(void**, stack* to) {
  if (tsan_main == nullptr) tsan_main = __tsan_get_current_fiber();
  if (to != nullptr && to->tsan_fiber == nullptr)
    to->tsan_fiber = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(to != nullptr ? to->tsan_fiber : tsan_main, 0);
}
inline void reach_flow(void*) {}
#else
inline void leave_flow(void**, const stack*) {}
inline void reach_flow(void*) {}
#endif

// Continues `to` where no exception is in flight.
[[gnu::always_inline]] inline arrival switch_plainly(fiber& from, fiber& to,
                                                     void* message = nullptr) {
  current_flow = &to;
  leave_flow(&from.fake_stack, to.memory);
  const arrival a = switch_context(from, to, message);
  reach_flow(static_cast<fiber&>(a.self).fake_stack);
  return a;
}

// The slow path of switch_fiber: inside a catch block, or while unwinding.
[[gnu::cold, gnu::noinline]] inline arrival switch_while_handling(
    fiber& from, fiber& to, void* message = nullptr) {
  from.handling = *current_exceptions;
  *current_exceptions = {};
  const arrival a = switch_plainly(from, to, message);
  *current_exceptions = from.handling;
  from.handling = {};
  return a;
}

// Continues `to`, a started fiber of this thread, where `message` arrives.
// Returns when somebody continues `from`, the one that runs. Whoever arrives
// finds no exception in flight: whoever left has taken theirs along.
[[gnu::always_inline]] inline arrival switch_fiber(fiber& from, fiber& to,
                                                   void* message = nullptr) {
  if (current_exceptions->any())
    return switch_while_handling(from, to, message);
  return switch_plainly(from, to, message);
}

// The first function on every stack: runs a fiber, hands the stack back to the
// pool, and waits there for the next one.
inline void fiber::runner() {
  // Nobody has called it, so there is nothing below for a backtrace to show.
#if defined(__GCC_HAVE_DWARF2_CFI_ASM)
#if defined(__x86_64__)
  __asm__ volatile(".cfi_undefined rip");
#elif defined(__aarch64__)
  __asm__ volatile(".cfi_undefined x30");
#elif defined(__riscv)
  __asm__ volatile(".cfi_undefined ra");
#endif
#endif
  stack* const mine = current_flow->memory;
  reach_flow(nullptr);
  for (;;) {
    fiber* next = current_flow->run();
    current_flow = next;
    current_thread->stacks.give(mine);
    leave_flow(&mine->fake_stack, next->memory);
    switch_context(mine->idle, *next, nullptr);
    reach_flow(mine->fake_stack);
  }
}

inline void fiber::start(thread_state& t, std::size_t size) {
  memory = t.stacks.take(size);
  if (memory->idle.empty())
    memory->idle = make_context(memory->low, memory->high(), runner);
  static_cast<context&>(*this) = memory->idle;
  memory->stands = this;
  life = flow_state::running;
  if (home != nullptr) return;
  home = &t;
  t.add();
}

inline void* fiber::operator new(std::size_t size) {
  if (size > spare_blocks::size) return ::operator new(size);
  void* const spare =
      current_thread != nullptr ? current_thread->blocks.take() : nullptr;
  return spare != nullptr ? spare : ::operator new(spare_blocks::size);
}

inline void fiber::operator delete(void* block, std::size_t size) noexcept {
  // GCC 12 warns of a mismatch where it has inlined this and not the above.
  __asm__("" : "+r"(block));
  if (size > spare_blocks::size || current_thread == nullptr ||
      !current_thread->blocks.keep(block))
    ::operator delete(block);
}

inline fiber::~fiber() {
  if (home != nullptr) home->drop();
}

inline void fiber::retain() {
  if (references++ == 0 && this == &home->main) home->add();
}
inline void main_flow::dispose() noexcept { home->drop(); }

inline void fiber::release() noexcept {
  if (home == nullptr || home == current_thread)
    give_up(1);
  else
    release_later();
}

inline void fiber::release_later() noexcept {
  if (released_elsewhere.fetch_add(1) == 0) home->leave_for_home(*this);
}

inline void fiber::give_up(unsigned count) noexcept {
  if (orphan) {
    // Suspended, and its thread has ended: there is nothing to run it on.
    if (leaf != nullptr && home != current_thread) return;
    unwind();
    if (life == flow_state::running) return;  // exit() was called within it
  }
  references -= count;
  if (references == 0) dispose();
}

// Nearly always on another thread. Counted like a fiber meanwhile, so that we
// stay.
inline void thread_state::leave_for_home(fiber& f) noexcept {
  others_.fetch_add(1);
  fiber* first = released.load();
  do f.next_released = first;
  while (!released.compare_exchange_weak(first, &f));
  if (ended) take_back();  // nobody else will
  drop();
}

// Done by one thread at a time, which looks again when it is through. So
// whoever finds it busy may go, be it a destructor that is called from here.
inline void thread_state::take_back() noexcept {
  while (released.load() != nullptr && !taking_.exchange(true)) {
    for (fiber* f = released.exchange(nullptr); f != nullptr;) {
      fiber* const next = f->next_released;
      f->give_up(f->released_elsewhere.exchange(0));
      f = next;
    }
    taking_ = false;
  }
}

inline void forget_thread() {
  current_thread = nullptr;
  current_flow = current_root = nullptr;
  current_exceptions = nullptr;
}

inline void thread_state::drop() noexcept {
  if (current_thread == this && !ended) {
    --fibers_;
  } else if (others_.fetch_sub(1) == 1) {
    if (current_thread == this) forget_thread();
    delete this;
  }
}

// --- a stack that runs over -------------------------------------------------
//
// The fault comes when there is no stack left to handle it on, so the handler
// runs on one of its own, once in the life of the process: it prints a line
// that names the flow, puts the former handler back, and lets the fault happen
// again.

inline struct sigaction segv_before {};

inline void report_overflow(int signal, siginfo_t* info, void*) {
  if (current_flow != nullptr && current_flow->memory != nullptr &&
      current_flow->memory->guards(info->si_addr)) {
    const fiber& root = *current_root;
    const bool inner = current_flow != &root;
    char whose[80] = "";
    if (root.number() != 0)
      std::snprintf(whose, sizeof whose, " (number %lu%s%s)", root.number(),
                    *root.title() != '\0' ? ", " : "", root.title());
    char line[320];
    int n = std::snprintf(
        line, sizeof line,
        "bao: stack overflow in a %s%s%s%s: its %zu KiB are used up. Give it "
        "more (task_options().stack_size(), BAO_STACK_SIZE), or keep less in "
        "local variables\n",
        current_flow->kind(), inner ? " of a " : "", inner ? root.kind() : "",
        whose, current_flow->memory->size / 1024);
    // Whether or not anybody reads it, the fault has to come again.
    [[maybe_unused]] const ssize_t told =
        hook::original::write(2, line, static_cast<std::size_t>(n));
  }
  ::sigaction(signal, &segv_before, nullptr);
}

inline void watch_for_overflow(thread_state& t) {
  static const bool installed = [] {
    struct sigaction ours {};
    ours.sa_sigaction = report_overflow;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    return ::sigaction(SIGSEGV, &ours, &segv_before) == 0;
  }();
  stack_t before;
  if (!installed || ::sigaltstack(nullptr, &before) != 0 ||
      (before.ss_flags & SS_DISABLE) == 0)
    return;  // the program has made its own arrangements
  constexpr std::size_t size = 32 * 1024;
  t.signal_stack = new char[size];
  stack_t ours{};
  ours.ss_sp = t.signal_stack;
  ours.ss_size = size;
  ::sigaltstack(&ours, nullptr);
}

inline thread_state::thread_state() {
  static std::atomic<unsigned> threads{0};
  watch_for_overflow(*this);  // the rest cannot fail
  number = ++threads;
  main.home = this;
  main.root = &main;
  current_flow = current_root = &main;
  current_exceptions =
      reinterpret_cast<exceptions_in_flight*>(abi::__cxa_get_globals());
  main.life = flow_state::running;
#if defined(BAO_ASAN) && defined(__linux__)
  pthread_attr_t attributes;
  void* low = nullptr;
  if (::pthread_getattr_np(::pthread_self(), &attributes) == 0) {
    ::pthread_attr_getstack(&attributes, &low, &own_size);
    ::pthread_attr_destroy(&attributes);
  }
  own_low = static_cast<const char*>(low);
#endif
}

// When the thread ends. Objects at namespace scope may hold suspended fibers
// still, which are unwound after this: so whatever they need is left in place.
inline void thread_state::end() {
  ended = true;
  take_back();
  stacks.release();
  if (signal_stack != nullptr) {
    stack_t off{};
    off.ss_flags = SS_DISABLE;
    ::sigaltstack(&off, nullptr);
    delete[] signal_stack;
    signal_stack = nullptr;
  }
  const long ours = fibers_;  // another thread may delete us any time now
  if (others_.fetch_add(ours - alive) + ours == alive) {
    forget_thread();
    delete this;
  }
}

// --- who is asking -----------------------------------------------------------

[[noreturn, gnu::cold]] inline void throw_wrong_thread(const char* call,
                                                       const fiber& f) {
  std::string text = call;
  text += ": this ";
  text += f.kind();
  text += " belongs to thread " + std::to_string(f.home->number);
  text += f.home->ended ? ", which has ended" : "";
  text += "; we are thread " + std::to_string(this_thread_state().number);
  throw wrong_thread(text);
}

// What has ended a body, in the handler that has caught it. The unwinding that
// pthread_exit() and pthread_cancel() begin is no exception that could be kept,
// and to go on with it would leave the thread's own stack as it is.
[[gnu::cold]] inline std::exception_ptr what_ended(const char* flow) {
  std::exception_ptr error = std::current_exception();
  if (error == nullptr)
    die("pthread_exit() or pthread_cancel() in a ", flow,
        ": only the main flow of a thread can end it");
  return error;
}

// --- what a fiber runs -------------------------------------------------------

// Its type is what f(args...) returns, with copies that are moved from.
template <class F, class... Args>
struct call_result : std::invoke_result<F, Args...> {
  static_assert(std::is_invocable_v<F, Args...>,
                "f cannot be called with copies of these arguments: are there "
                "too many or too few? Where it takes a reference, pass "
                "std::ref(x)");
};

// A callable and what it is called with: once, as all of it is moved from.
template <class F, class... Args>
struct bound_call {
  template <class... First>
  typename call_result<F, First&..., Args...>::type operator()(
      First&... first) {
    return std::apply(
        [&first...](F& f, Args&... args) -> decltype(auto) {
          return std::invoke(std::move(f), first..., std::move(args)...);
        },
        kept);
  }
  std::tuple<F, Args...> kept;
};
template <class F>  // most have no arguments, which saves compilers much work
struct bound_call<F> {
  template <class... First>
  decltype(auto) operator()(First&... first) {
    return std::invoke(std::move(kept), first...);
  }
  F kept;
};

// A Frame, which is a fiber, with its body. drop_body() destroys that, once and
// early: when the fiber has ended, or knows that it will not begin.
template <class Frame, class F, class... Args>
class frame_with_body : public Frame {
 public:
  template <class... A>
  explicit frame_with_body(A&&... a) : body{{std::forward<A>(a)...}} {}

 protected:
  ~frame_with_body() override {
    if (this->life == flow_state::created) drop_body();
  }
  void drop_body() noexcept override { std::destroy_at(&body); }

  union {
    bound_call<F, Args...> body;
  };
};

}  // namespace BAO_ABI
}  // namespace bao
