// fiber.cpp - tests of what a flow takes along when it is left
#include <doctest/doctest.h>
#include <signal.h>

#include <cfenv>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bao.hpp"
#include "child.hpp"
#include "sanitized.hpp"

// --- exceptions --------------------------------------------------------------

TEST_CASE("X13: `throw;` rethrows the exception that its own flow has caught") {
  std::string theirs;
  bao::coroutine<> other([&] {
    try {
      throw std::runtime_error("theirs");
    } catch (...) {
      bao::main_coroutine().switch_to();
      try {
        throw;
      } catch (const std::exception& e) {
        theirs = e.what();
      }
    }
  });
  std::string ours;
  try {
    throw std::runtime_error("ours");
  } catch (...) {
    other.switch_to();
    try {
      throw;
    } catch (const std::exception& e) {
      ours = e.what();
    }
    other.switch_to();
  }
  CHECK(ours == "ours");
  CHECK(theirs == "theirs");
  CHECK(std::current_exception() == nullptr);
}

TEST_CASE("X13: handlers that end in another order than they began are right") {
  std::string ends;
  const auto body = [&](const char* name) {
    return [&ends, name] {
      try {
        throw std::runtime_error(name);
      } catch (const std::exception& e) {
        bao::main_coroutine().switch_to();
        ends += e.what();
        CHECK(std::current_exception() != nullptr);
      }
      CHECK(std::current_exception() == nullptr);
      bao::main_coroutine().switch_to();
    };
  };
  bao::coroutine<> a(body("a")), b(body("b")), c(body("c"));
  a.switch_to();
  b.switch_to();
  c.switch_to();
  CHECK(std::current_exception() == nullptr);
  a.switch_to();
  c.switch_to();
  b.switch_to();
  CHECK(ends == "acb");
}

TEST_CASE("X13: a handler within a handler survives a switch") {
  std::string seen;
  bao::coroutine<> other([&] {
    try {
      throw 1;
    } catch (int) {
      try {
        throw 2;
      } catch (int) {
        bao::main_coroutine().switch_to();
        try {
          throw;
        } catch (int inner) {
          seen += std::to_string(inner);
        }
      }
      bao::main_coroutine().switch_to();
      try {
        throw;
      } catch (int outer) {
        seen += std::to_string(outer);
      }
    }
  });
  other.switch_to();
  other.switch_to();
  other.switch_to();
  CHECK(seen == "21");
}

TEST_CASE("S25: a new flow handles no exception, whoever starts it") {
  std::exception_ptr seen_inside;
  std::exception_ptr seen_after;
  try {
    throw 1;
  } catch (int) {
    bao::coroutine<> fresh([&] { seen_inside = std::current_exception(); });
    fresh.switch_to();
    seen_after = std::current_exception();
  }
  CHECK(seen_inside == nullptr);
  CHECK(seen_after != nullptr);
}

TEST_CASE("X13: uncaught exceptions are counted by each flow for itself") {
  int before = -1, inside = -1, after = -1;
  {
    bao::coroutine<> other([&] {
      inside = std::uncaught_exceptions();
      bao::main_coroutine().switch_to();
      // We can throw and catch, whatever the one who continues us is up to.
      try {
        throw 1;
      } catch (int) {
        inside += std::uncaught_exceptions();
      }
    });
    struct switches_when_destroyed {
      bao::coroutine<>& to;
      int &before, &after;
      ~switches_when_destroyed() {
        before = std::uncaught_exceptions();
        to.switch_to();
        to.switch_to();
        after = std::uncaught_exceptions();
      }
    };
    try {
      switches_when_destroyed last{other, before, after};
      throw std::runtime_error("unwinding");
    } catch (const std::runtime_error&) {
    }
  }
  CHECK(before == 1);
  CHECK(inside == 0);
  CHECK(after == 1);
  CHECK(std::uncaught_exceptions() == 0);
}

TEST_CASE("X13: two flows may unwind at the same time") {
  std::string order;
  struct switches_when_destroyed {
    std::string& order;
    char name;
    ~switches_when_destroyed() {
      order += name;
      bao::main_coroutine().switch_to();
      order += name;
      CHECK(std::uncaught_exceptions() == 1);
    }
  };
  const auto body = [&](char name) {
    return [&order, name] {
      try {
        switches_when_destroyed last{order, name};
        throw name;
      } catch (char caught) {
        CHECK(caught == name);
      }
    };
  };
  bao::coroutine<> a(body('a')), b(body('b'));
  a.switch_to();
  CHECK(std::uncaught_exceptions() == 0);
  b.switch_to();
  a.switch_to();
  b.switch_to();
  CHECK(order == "abab");
  CHECK(a.dead());
  CHECK(b.dead());
}

// --- what a flow computes with -----------------------------------------------

TEST_CASE("what a flow computes with survives the others' computations") {
  double sums[3] = {};
  std::vector<bao::coroutine<>> flows;
  for (int i = 0; i < 3; ++i)
    flows.emplace_back([&sums, i] {
      double own = 0;
      long double precise = 0;
      for (int n = 1; n <= 10; ++n) {
        own += n * (i + 0.5);
        precise += n;
        bao::main_coroutine().switch_to();
      }
      sums[i] = own + static_cast<double>(precise);
    });
  for (int n = 0; n <= 10; ++n)
    for (auto& flow : flows) flow.switch_to();
  CHECK(sums[0] == 55 * 0.5 + 55);
  CHECK(sums[1] == 55 * 1.5 + 55);
  CHECK(sums[2] == 55 * 2.5 + 55);
}

#if defined(FE_UPWARD)

TEST_CASE("X22: who restores the rounding mode before a wait disturbs nobody") {
  const auto divide = [](int mode, bool waits) {
    volatile double one = 1, three = 3;
    const int before = std::fegetround();
    std::fesetround(mode);
    const volatile double third = one / three;
    std::fesetround(before);
    if (waits) bao::main_coroutine().switch_to();
    return std::pair(double(third), double(one / three));
  };
  const double nearest = divide(FE_TONEAREST, false).first;
  std::pair<double, double> up, down;
  bao::coroutine<> a([&] { up = divide(FE_UPWARD, true); });
  bao::coroutine<> b([&] { down = divide(FE_DOWNWARD, true); });
  for (auto* each : {&a, &b, &a, &b}) {
    each->switch_to();
    CHECK(std::fegetround() == FE_TONEAREST);
  }
  CHECK(up.first > down.first);
  CHECK(up.second == nearest);
  CHECK(down.second == nearest);
}

#if !defined(BAO_USE_UCONTEXT)  // swapcontext() takes the mode along
TEST_CASE("X22: a rounding mode that is not restored is the whole thread's") {
  int theirs = -1;
  bao::coroutine<> careless([&] {
    std::fesetround(FE_UPWARD);
    bao::main_coroutine().switch_to();
    theirs = std::fegetround();
  });
  careless.switch_to();
  const int ours = std::fegetround();
  std::fesetround(FE_TONEAREST);
  careless.switch_to();
  CHECK(ours == FE_UPWARD);
  CHECK(theirs == FE_TONEAREST);
}
#endif

#endif

// A file's own static variable, whose address is never taken.
static int turns_of_other;

[[gnu::noinline]] static void let_run(bao::coroutine<>& other) {
  other.switch_to();
}

TEST_CASE("a static variable that a coroutine changes is seen changed") {
  bao::coroutine<> other([] {
    for (;;) {
      ++turns_of_other;
      bao::main_coroutine().switch_to();
    }
  });
  int stale = 0;
  for (int i = 0; i < 3; ++i) {
    int before = turns_of_other;
    let_run(other);
    if (turns_of_other == before) ++stale;
  }
  CHECK(stale == 0);
}

// --- stacks ------------------------------------------------------------------

TEST_CASE("a flow that begins is given the stack of the last that has ended") {
  const void* first = nullptr;
  const void* second = nullptr;
  const auto where = [](const void*& place) {
    return [&place] { place = bao::current_flow->memory; };
  };
  bao::coroutine<> a(where(first));
  a.switch_to();
  bao::coroutine<> b(where(second));
  b.switch_to();
  CHECK(first != nullptr);
  CHECK(first == second);
}

TEST_CASE("a fiber that asks for too large a stack is as it was before") {
  struct : bao::fiber {
  } f;
  bao::thread_state& t = bao::this_thread_state();
  CHECK_THROWS_AS(f.start(t, std::size_t{1} << 50), bao::stack_exhausted);
  CHECK(f.memory == nullptr);
  CHECK(f.home == nullptr);
  CHECK(f.state() == bao::flow_state::created);
}

#if !defined(SANITIZED)

TEST_CASE("a stack that runs over ends the program with a line that says so") {
  for (bool on_other_thread : {false, true}) {
    CAPTURE(on_other_thread);
    const ending how = in_a_child([&] {
      const auto run_over = [] {
        bao::coroutine<> deep([] {
          bao::generator<int> deeper(
              [](auto& yield) { yield(too_deep(1000000)); });
          deeper.next();
        });
        deep.switch_to();
      };
      if (on_other_thread)
        std::thread(run_over).join();
      else
        run_over();
    });
    CHECK(how.signal == SIGSEGV);
    CHECK(how.says("stack overflow in a generator"));
    CHECK(how.says("256 KiB"));
  }
}

TEST_CASE("a stack that runs over ends the program with stderr closed, too") {
  const ending how = in_a_child([] {
    ::close(2);
    bao::generator<int> deep([](auto& yield) { yield(too_deep(1000000)); });
    deep.next();
  });
  CHECK(how.signal == SIGSEGV);
}

TEST_CASE("a fault that is no overflow meets the handler that was there") {
  const ending how = in_a_child([] {
    bao::coroutine<> careless([] { ::raise(SIGSEGV); });
    careless.switch_to();
    ::raise(SIGSEGV);
  });
  // An emulator may say something of its own accord, but bao says nothing.
  CHECK(!how.says("bao"));
  CHECK(how.signal == SIGSEGV);
}

#endif

// --- threads -----------------------------------------------------------------

TEST_CASE("S26: each thread has a main flow and flows of its own") {
  const void* mains[2] = {};
  long sums[2] = {};
  const auto work = [&](int i) {
    mains[i] = bao::main_coroutine().id();
    bao::generator<long> numbers([](auto& yield) {
      for (long n = 1;; ++n) yield(n);
    });
    bao::coroutine<long> add([&](long n) {
      for (long sum = 0;;) {
        sum += n;
        n = bao::main_coroutine<long>().switch_to(sum);
      }
    });
    for (int n = 0; n < 1000; ++n)
      sums[i] = add.switch_to(numbers.next().value());
  };
  std::thread other([&] { work(1); });
  work(0);
  other.join();
  CHECK(mains[0] != mains[1]);
  CHECK(sums[0] == 500500);
  CHECK(sums[1] == 500500);
}

TEST_CASE("S26: the main flow of a thread that has ended counts as dead") {
  bao::coroutine_ref<> main_of_other;
  bool alive = false;
  std::thread([&] {
    main_of_other = bao::main_coroutine();
    alive = !main_of_other.dead();
  }).join();
  CHECK(alive);
  CHECK(main_of_other.dead());
}

TEST_CASE(
    "S23, X17: one released on another thread is unwound on its own thread") {
  bool unwound = false;
  bool unwound_early = true;
  bool unwound_on_its_own = false;
  std::thread([&] {
    struct tells {
      bool& destroyed;
      bool& here;
      std::thread::id owner = std::this_thread::get_id();
      ~tells() {
        destroyed = true;
        here = std::this_thread::get_id() == owner;
      }
    };
    bao::coroutine<> held([&] {
      tells local{unwound, unwound_on_its_own};
      bao::main_coroutine().switch_to();
    });
    held.switch_to();
    std::thread([moved = std::move(held)]() mutable {
      bao::coroutine<> gone = std::move(moved);
    }).join();
    unwound_early = unwound;
  }).join();
  CHECK(!unwound_early);
  CHECK(unwound);
  CHECK(unwound_on_its_own);
}

TEST_CASE("X17: a generator released on another thread is unwound on its own") {
  bool unwound = false;
  bool unwound_early = true;
  bool unwound_on_its_own = false;
  std::thread([&] {
    struct tells {
      bool& destroyed;
      bool& here;
      std::thread::id owner = std::this_thread::get_id();
      ~tells() {
        destroyed = true;
        here = std::this_thread::get_id() == owner;
      }
    };
    bao::generator<int> held([&](auto& yield) {
      tells local{unwound, unwound_on_its_own};
      yield(1);
    });
    held.next();
    std::thread([moved = std::move(held)]() mutable {
      bao::generator<int> gone = std::move(moved);
    }).join();
    unwound_early = unwound;
  }).join();
  CHECK(!unwound_early);
  CHECK(unwound);
  CHECK(unwound_on_its_own);
}

TEST_CASE("X17: a handle of a coroutine is copied on its own thread alone") {
  bao::coroutine<> mine([] {});
  const bao::coroutine_ref<> handle = mine;
  std::thread([&] {
    CHECK_THROWS_AS(bao::coroutine_ref<>{handle}, bao::wrong_thread);
  }).join();
  mine.switch_to();
  CHECK(handle.dead());
}

TEST_CASE("X17: what outlives its thread can be released, and is not run") {
  bao::coroutine<> suspended, unstarted;
  bao::generator<int> paused, finished;
  std::thread([&] {
    suspended = bao::coroutine<>([] { bao::main_coroutine().switch_to(); });
    suspended.switch_to();
    unstarted = bao::coroutine<>([] {});
    paused = bao::generator<int>([](auto& yield) { yield(1); });
    paused.next();
    finished = bao::generator<int>([](auto&) {});
    finished.next();
  }).join();
  std::string text;
  try {
    suspended.switch_to();
  } catch (const bao::wrong_thread& e) {
    text = e.what();
  }
  CHECK(text.find("which has ended") != std::string::npos);
  CHECK_THROWS_AS(unstarted.switch_to(), bao::wrong_thread);
  CHECK_THROWS_AS(paused.next(), bao::wrong_thread);
  CHECK(!finished.next());
}

TEST_CASE("X14: a thread-local generator is unwound when its thread ends") {
  bool unwound = false;
  std::thread([&] {
    static thread_local bao::generator<int> numbers;
    struct tells {
      bool& destroyed;
      ~tells() { destroyed = true; }
    };
    numbers = bao::generator<int>([&unwound](auto& yield) {
      tells local{unwound};
      yield(1);
    });
    CHECK(numbers.next() == 1);
  }).join();
  CHECK(unwound);
}

// --- what it is made of ------------------------------------------------------

namespace {

// A callable that checks where it lies.
template <std::size_t Size, std::size_t Alignment>
struct placed {
  alignas(Alignment) char bytes[Size] = {};

  template <class... Yield>
  void operator()(Yield&...) const {
    CHECK(reinterpret_cast<std::uintptr_t>(this) % Alignment == 0);
    CHECK(bytes[Size - 1] == 0);
  }
};

template <class Callable>
void run_in_every_kind_of_flow() {
  for (int i = 0; i < 3; ++i) {
    bao::generator<int>(Callable()).next();
    bao::coroutine<>(Callable()).switch_to();
    bao::spawn(Callable()).join();
    std::thread([] { bao::spawn(Callable()).join(); }).join();
  }
}

}  // namespace

TEST_CASE("a callable may be of any size and alignment") {
  run_in_every_kind_of_flow<placed<1, 1>>();
  run_in_every_kind_of_flow<placed<4000, 8>>();
  run_in_every_kind_of_flow<placed<64, 64>>();
  run_in_every_kind_of_flow<placed<4000, 128>>();
}

TEST_CASE("the block of a fiber that is gone serves the next one") {
  const auto block = [] {
    const void* lies_at = nullptr;
    bao::spawn([&] { lies_at = bao::current_flow; }).join();
    return lies_at;
  };
#if defined(SANITIZED)
  CHECK(block() != nullptr);  // it is kept apart, so that who uses it is seen
#else
  const void* const first = block();
  CHECK(block() == first);
#endif

  bao::spare_blocks few;
  CHECK(few.take() == nullptr);
  int kept = 0;
  for (; kept < 5000; ++kept) {
    void* const one = ::operator new(bao::spare_blocks::size);
    if (few.keep(one)) continue;
    ::operator delete(one);
    break;
  }
  CHECK(kept < 5000);  // the rest goes back, and these when it is destroyed
}
