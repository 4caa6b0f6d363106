// ends.cpp - the ways in which a program and its threads end
//
//   ends exit           exit() in the middle of any flow
//   ends abrupt         quick_exit() and abort()
//   ends namespace      flows that are suspended at namespace scope
//   ends threads        tasks that are left, handles that are elsewhere
//   ends pthread_exit   a thread that leaves in the middle of a flow
#include "bao.hpp"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "expect.hpp"

using namespace std::literals;

namespace {

void wait_for_ever() { bao::this_scheduler().park(1h, {"waiting for ever"}); }

// --- exit() ------------------------------------------------------------------
//
// X23: the destructors of static and thread-local objects run on the stack of
// the flow that calls it. The tasks of its thread are not unwound, unless it is
// the main task that calls.

[[noreturn]] void leave() {
  static const note of_the_process("static");
  static thread_local const note of_the_thread("thread-local");
  const note here("caller");
  std::exit(7);
}

void leave_in_a_pipeline() {
  auto source = bao::generator<int>([](auto& yield) {
    yield(1);
    leave();
  });
  auto line = source | bao::map([](int x) { return x; }) | bao::drop(1);
  line.next();
}

void leave_in_many_flows() {
  bao::coroutine<> c([] {
    bao::generator<int> outer([](auto& yield) {
      yield.from(bao::generator<int>([](auto& inner) {
        inner(1);
        leave();
      }));
    });
    for (int n : outer) static_cast<void>(n);
  });
  c.switch_to();
}

void leave_in_handlers() {
  bao::timeout limit(1h);
  bao::shield calm;
  try {
    throw std::runtime_error("outer");
  } catch (const std::runtime_error&) {
    try {
      throw 1;
    } catch (int) {
      bao::yield();
      leave();
    }
  }
}

void leave_in_a_destructor() {
  struct leaves {
    ~leaves() { leave(); }
  };
  const leaves on_the_way;
  throw 1;
}

void in_a_task(void (*f)()) {
  bao::spawn(f);
  bao::sleep(1h);
}

void exits() {
  struct place {
    const char* sentence;
    void (*go)();
    bool unwinds;  // the other tasks of its thread
  };
  const place places[] = {
      {"X23: exit() in the main task", leave, true},
      {"X23: exit() in a coroutine",
       [] {
         bao::coroutine<> c(leave);
         c.switch_to();
       },
       true},
      {"X23: exit() in a generator",
       [] {
         bao::generator<int> g([](auto&) { leave(); });
         g.next();
       },
       true},
      {"X23: exit() in a pipeline", leave_in_a_pipeline, true},
      {"X23: exit() in generators in a coroutine", leave_in_many_flows, true},
      {"X23: exit() in a task", [] { in_a_task(leave); }, false},
      {"X23: exit() in a task's pipeline",
       [] { in_a_task(leave_in_a_pipeline); }, false},
      {"X23: exit() in a task's coroutine",
       [] { in_a_task(leave_in_many_flows); }, false},
      {"X23: exit() in a task's handler", [] { in_a_task(leave_in_handlers); },
       false},
      {"X23: exit() in a task's destructor",
       [] { in_a_task(leave_in_a_destructor); }, false},
      {"X23: exit() in on_done",
       [] {
         bao::spawn([] {}).on_done([](const auto&) { leave(); });
         bao::sleep(1h);
       },
       false},
      {"X23: exit() in an offloaded job", [] { bao::offload(leave); }, false},
      {"X23: exit() in another thread's task",
       [] { std::thread(in_a_task, leave).join(); }, false},
      {"X23: exit() in another thread's coroutine",
       [] { std::thread(leave_in_many_flows).join(); }, false},
  };
  for (const place& p : places) {
    const char* const text =
        p.unwinds ? "thread-local gone\nbystander gone\nstatic gone\n"
                  : "thread-local gone\nstatic gone\n";
    expect_ending(7, text, p.sentence, [&] {
      bao::spawn([] {
        const note here("bystander");
        wait_for_ever();
      });
      bao::yield();
      p.go();
    });
  }
}

void abrupt_ends() {
  static const auto quick_exit = [] {
    static const note of_the_process("static");
    const note here("caller");
    std::at_quick_exit([] { std::fputs("handler\n", stderr); });
    std::quick_exit(3);
  };
  const char* const quick = "quick_exit() calls its handlers, no destructor";
  expect_ending(3, "handler\n", quick, [] { in_a_task(quick_exit); });
  expect_ending(3, "handler\n", quick, [] {
    bao::generator<int> g([](auto&) { quick_exit(); });
    g.next();
  });

  static const auto abort = [] {
    const note here("caller");
    std::abort();
  };
  const auto is_abort = [](const ending& how) {
    expect(how.signal == SIGABRT && how.text.empty(),
           "abort() ends by its signal: " + how.text);
  };
  is_abort(in_a_child([] { in_a_task(abort); }));
  is_abort(in_a_child([] {
    bao::coroutine<> c(abort);
    c.switch_to();
  }));
}

// --- namespace scope ---------------------------------------------------------
//
// X14: a flow that is suspended at exit is unwound by its object's destructor.

// Runs a flow when its turn to be destroyed has come.
struct last_words {
  ~last_words() {
    if (!wanted) return;
    int sum = 0;
    for (int n : bao::generator<int>([](auto& yield) {
           yield(1);
           yield(2);
         }))
      sum += n;
    std::fprintf(stderr, "the sum is %d\n", sum);
  }
  bool wanted = false;
};

last_words after_the_others;
bao::task<> the_task;
bao::generator<int> the_numbers;
bao::coroutine<> the_talk;
last_words before_the_others;

void suspend_at_namespace_scope() {
  the_numbers = bao::generator<int>([](auto& yield) {
    const note here("outer generator");
    bao::generator<int> inner([](auto& further) {
      const note there("inner generator");
      bao::timeout limit(1h);
      further(1);
    });
    yield.from(inner);
  });
  the_numbers.next();
  the_talk = bao::coroutine<>([] {
    const note here("coroutine");
    bao::coroutine<> child([] {
      const note there("child");
      bao::main_coroutine().switch_to();
    });
    child.switch_to();
  });
  the_talk.switch_to();
  the_task = bao::spawn([] {
    const note here("task");
    wait_for_ever();
  });
  bao::yield();
}

const std::string unwound =
    "child gone\ncoroutine gone\n"
    "inner generator gone\nouter generator gone\n";
const std::string task_and_unwound = "task gone\n" + unwound;

void namespace_scope() {
  expect_ending(0, task_and_unwound.c_str(),
                "X14: at exit all is unwound, inner objects first",
                suspend_at_namespace_scope);

  expect_ending(7, unwound.c_str(),
                "X14, X23: exit() in a task unwinds what has an owner", [] {
                  suspend_at_namespace_scope();
                  in_a_task([] { std::exit(7); });
                });

  expect_ending(7,
                "child gone\ncoroutine gone\n"
                "thread-local gone\ntask gone\nstatic gone\n"
                "inner generator gone\nouter generator gone\n",
                "X14, X23: a coroutine at namespace scope may call exit()", [] {
                  suspend_at_namespace_scope();
                  the_talk = bao::coroutine<>([] { leave(); });
                  the_talk.switch_to();
                });

  expect_ending(0,
                "bao: nobody caught the error of a coroutine: int\n"
                "bao: nobody caught the error of a generator: "
                "std::runtime_error: at the end\n"
                "bao: nobody caught the error of task 1 (here): "
                "std::logic_error: why\n",
                "X14, X9: what escapes at exit is told", [] {
                  the_numbers = bao::generator<int>([](auto& yield) {
                    try {
                      yield(1);
                    } catch (...) {
                      throw std::runtime_error("at the end");
                    }
                  });
                  the_numbers.next();
                  the_talk = bao::coroutine<>([] {
                    try {
                      bao::main_coroutine().switch_to();
                    } catch (...) {
                      throw 5;
                    }
                  });
                  the_talk.switch_to();
                  the_task = bao::spawn([] { throw std::logic_error("why"); });
                  the_task.join();
                });

  const char* const ignored =
      "bao: nobody caught the error of a generator: bao::close_ignored: "
      "close: the body yields instead of ending";
  static const std::string asked_again = std::string("refused\n") + ignored +
                                         "\nrefused\n" + ignored +
                                         " (2 times)\nrefused\nstubborn gone\n";
  expect_ending(0, asked_again.c_str(),
                "X14, Y8: a body that goes on is asked again", [] {
                  the_numbers = bao::generator<int>([](auto& yield) {
                    const note here("stubborn");
                    for (int i = 0; i < 3; ++i) try {
                        yield(i);
                      } catch (const bao::killed&) {
                        std::fputs("refused\n", stderr);
                      }
                  });
                  the_numbers.next();
                });

  expect_ending(0, "task gone\nthread ended\n",
                "X17: what is left of a thread that has ended is not run", [] {
                  std::thread(suspend_at_namespace_scope).join();
                  std::fputs("thread ended\n", stderr);
                });

  expect_ending(
      7, "", "X14, X17: exit() on another thread leaves them to their own", [] {
        suspend_at_namespace_scope();
        std::thread([] { std::exit(7); }).join();
      });

  static const std::string with_sums =
      "task gone\nthe sum is 3\n" + unwound + "the sum is 3\n";
  expect_ending(0, with_sums.c_str(),
                "X14: a destructor at namespace scope may run a generator", [] {
                  suspend_at_namespace_scope();
                  before_the_others.wanted = after_the_others.wanted = true;
                });
}

// --- the end of a thread -----------------------------------------------------
//
// X16, X17: what is left is unwound there; handles may be released elsewhere.

// What a flow's callable holds.
struct counted {
  static inline std::atomic<int> alive{0};
  counted() { ++alive; }
  counted(const counted&) { ++alive; }
  ~counted() { --alive; }
};

// What lies on a flow's stack: it is to go on its own thread.
struct resident : counted {
  static inline std::atomic<int> astray{0};
  const std::thread::id home = std::this_thread::get_id();
  ~resident() {
    if (std::this_thread::get_id() != home) ++astray;
  }
};

void expect_alive(int number, const char* sentence) {
  expect(counted::alive == number,
         std::string(sentence) + ", but " + std::to_string(counted::alive) +
             " objects are alive instead of " + std::to_string(number));
  expect(resident::astray == 0,
         std::string(sentence) + ": nothing was unwound on a foreign thread");
  counted::alive = resident::astray = 0;
}

void tasks_that_are_left() {
  std::atomic<bool> job_done{false};
  std::thread([&] {
    int ends[2];
    bao::check(::pipe(ends), "pipe");
    auto sleeper = bao::spawn([held = counted()] {
      const resident here;
      bao::sleep(1h);
    });
    bao::spawn([=, held = counted()] {
      const resident here;
      sleeper.join();
    });
    bao::spawn([=, held = counted()] {
      const resident here;
      bao::wait_fd(ends[0], bao::readable);
    });
    bao::spawn([=, held = counted()] {
      const resident here;
      bao::timeout limit(1h);
      bao::generator<int> g([=](auto& yield) {
        const resident inside;
        bao::wait_fd(ends[0], bao::readable);
        yield(1);
      });
      g.next();
    });
    bao::spawn([held = counted()] {
      const resident here;
      bao::coroutine<> c([] {
        const resident inside;
        wait_for_ever();
      });
      c.switch_to();
    });
    bao::spawn([held = counted()] {
      const resident here;
      try {
        throw std::runtime_error("handled");
      } catch (const std::runtime_error&) {
        const resident inside;
        wait_for_ever();
      }
    });
    bao::spawn([&, held = counted()] {
      const resident here;
      bao::offload([&] {
        std::this_thread::sleep_for(20ms);
        job_done = true;
      });
      bao::yield();
    });
    bao::spawn_later(1h, [held = counted()] { const resident never; });
    bao::yield();
    bao::spawn([held = counted()] { const resident never; });
    // The pipe stays open: the tasks wait for it to the end.
  }).join();
  expect(job_done, "X16, X18: a thread waits for the jobs of its tasks");
  expect_alive(0, "X16: the tasks that are left are unwound");
}

// A handle of each kind, in each state.
struct handles {
  bao::task<> fresh_task, parked_task, ended_task;
  bao::coroutine<> fresh, suspended, ended;
  bao::coroutine_ref<> reference;
  bao::generator<int> paused, exhausted;
};

std::unique_ptr<handles> make_handles() {
  auto h = std::make_unique<handles>();
  const auto ends = [held = counted()] { const resident here; };
  const auto waits = [held = counted()] {
    const resident here;
    wait_for_ever();
  };
  const auto switches = [held = counted()] {
    const resident here;
    bao::main_coroutine().switch_to();
  };
  h->parked_task = bao::spawn(waits);
  h->ended_task = bao::spawn(ends);
  h->ended_task.join();
  h->fresh_task = bao::spawn_later(1h, ends);
  h->fresh = bao::coroutine<>(ends);
  h->suspended = bao::coroutine<>(switches);
  h->suspended.switch_to();
  h->ended = bao::coroutine<>(ends);
  h->ended.switch_to();
  h->reference = bao::this_coroutine();
  h->paused = bao::generator<int>([held = counted()](auto& yield) {
    const resident here;
    yield(1);
  });
  h->paused.next();
  h->exhausted = bao::generator<int>([held = counted()](auto&) {});
  h->exhausted.next();
  return h;
}

void handles_elsewhere() {
  std::unique_ptr<handles> passed;
  std::thread([&] {
    passed = make_handles();
    std::thread([&] {
      bool refused = false;
      try {
        passed->parked_task.join();
      } catch (const bao::wrong_thread&) {
        refused = true;
      }
      expect(refused, "X17: another thread may not join a task");
      passed.reset();
    }).join();
    bao::yield();
  }).join();
  expect_alive(0, "X17: what is released elsewhere goes while its home is");

  std::thread([] {
    static thread_local std::unique_ptr<handles> until_the_tasks_are_gone;
    until_the_tasks_are_gone = make_handles();
    static thread_local std::unique_ptr<handles> while_they_are_left;
    while_they_are_left = make_handles();
  }).join();
  expect_alive(0, "X17: a thread's last handles go with it");

  std::thread([&] { passed = make_handles(); }).join();
  expect(passed->suspended.state() == bao::flow_state::suspended &&
             passed->reference.dead(),
         "S26: the main flow of a thread that has ended is dead");
  passed.reset();
  // What the two that are suspended hold: their callables and their locals.
  expect_alive(4, "X17: what has no thread any more cannot be unwound");
}

// Threads that make handles and release each other's, while and after those
// others live.
void handles_everywhere() {
  std::mutex m;
  std::vector<std::unique_ptr<handles>> table;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int j = 0; j < 40; ++j) {
        auto mine = make_handles();
        std::unique_ptr<handles> other;
        {
          const std::lock_guard hold(m);
          table.push_back(std::move(mine));
          std::swap(table.front(), table.back());
          if (j % 2 == 1) other = std::move(table.back()), table.pop_back();
        }
        other.reset();
        bao::yield();
      }
    });
  for (std::thread& t : threads) t.join();
  table.clear();
  expect(resident::astray == 0, "X17: flows are unwound on their own thread");
}

// --- pthread_exit() ----------------------------------------------------------
//
// It unwinds one stack. So it ends a thread from its main flow only; elsewhere
// it ends the program, with a line that says so.

[[noreturn]] void leave_thread() {
  static thread_local const note of_the_thread("thread-local");
  const note here("caller");
  ::pthread_exit(nullptr);
}

void leave_thread_in_a_handler() {
  try {
    throw std::runtime_error("handled");
  } catch (const std::runtime_error&) {
    leave_thread();
  }
}

void with_a_bystander(void (*f)()) {
  bao::spawn([] {
    const note here("bystander");
    wait_for_ever();
  });
  bao::yield();
  const note here("thread's own");
  f();
}

void thread_exits() {
  const char* const clean =
      "caller gone\nthread's own gone\nthread-local gone\nbystander gone\n";
  for (auto f : {leave_thread, leave_thread_in_a_handler}) {
    expect_ending(0, clean, "X16: pthread_exit() in a thread's main task",
                  [=] { std::thread(with_a_bystander, f).join(); });
    expect_ending(0, clean, "X16: pthread_exit() in main()",
                  [=] { with_a_bystander(f); });
  }

  struct place {
    const char* name;
    void (*go)();
  };
  const place places[] = {
      {"task", [] { in_a_task(leave_thread); }},
      {"coroutine",
       [] {
         bao::coroutine<> c(leave_thread);
         c.switch_to();
       }},
      {"generator",
       [] {
         bao::generator<int> g([](auto&) { leave_thread(); });
         g.next();
       }},
      {"job of offload", [] { bao::offload(leave_thread); }},
      {"callback of on_done",
       [] {
         bao::spawn([] {}).on_done([](const auto&) { leave_thread(); });
         bao::sleep(1h);
       }},
  };
  for (const place& p : places) {
    const ending how = in_a_child([&] { std::thread(p.go).join(); });
    expect(how.signal == SIGABRT &&
               how.says(std::string("caller gone\nbao: pthread_exit()") +
                        " or pthread_cancel() in a " + p.name),
           std::string("pthread_exit() in a ") + p.name +
               " ends the program, and says so: " + how.text);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "exit")
    exits();
  else if (what == "abrupt")
    abrupt_ends();
  else if (what == "namespace")
    namespace_scope();
  else if (what == "threads")
    tasks_that_are_left(), handles_elsewhere(), handles_everywhere();
  else if (what == "pthread_exit")
    thread_exits();
  else
    expect(false, "the argument names one of those above");
  return untrue;
}
