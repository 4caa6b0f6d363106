// sharing.cpp - one program, several shared objects, and who shares what
//
//   sharing together PART...   they have one runtime: PARTs that are linked to
//                              the program, or loaded when it was linked with
//                              -rdynamic
//   sharing apart PART         loaded into a program that shows no symbols, a
//                              PART has a runtime of its own
#include "part.hpp"

#include <dlfcn.h>

#include <chrono>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "expect.hpp"

using namespace std::literals;

namespace {

const part* load(const char* file) {
  void* const handle = ::dlopen(file, RTLD_NOW | RTLD_LOCAL);
  void* const found = handle != nullptr ? ::dlsym(handle, "the_part") : nullptr;
  if (found == nullptr) {
    std::printf("%s\n", ::dlerror());
    return nullptr;
  }
  return reinterpret_cast<part_function*>(found)();
}

// --- together ----------------------------------------------------------------

void tasks_are_shared(const part& p) {
  expect(p.scheduler() == &bao::this_scheduler(), "there is one scheduler");
  expect(p.own_id() == bao::self().id(),
         "self() is the same task on both sides");

  auto here = bao::spawn([&] {
    bao::yield();
    return p.own_id() == bao::self().id() ? 1 : 0;
  });
  auto there = p.spawn_twice(21);
  expect(there.id() == here.id() + 1, "the numbers of tasks go on");
  expect(p.get(here) == 1, "there, a task from here is joined");
  expect(there.get() == 42, "here, a task from there is joined");

  int unwound = 0;
  auto sleeping = p.spawn_sleeping(&unwound);
  bao::yield();
  sleeping.kill();
  expect(sleeping.killed() && unwound == 1, "a task from there is killed here");
  expect(!p.in_time(1ms, [] { bao::sleep(1h); }),
         "a limit from there strikes what waits here");
}

void flows_are_shared(const part& p) {
  int sum = 0;
  for (int n : p.count(5)) sum += n;
  expect(sum == 10, "a generator from there is run here");
  bao::generator<int> g([](auto& yield) {
    yield(3);
    bao::yield();
    yield(4);
  });
  expect(p.sum(g) == 7, "a generator from here is run there");

  int switches = 0;
  auto c = p.counter(&switches);
  c.switch_to();
  c.switch_to();
  expect(switches == 2, "a coroutine from there is switched to from here");
  auto e = p.echo();
  expect(e.switch_to("bean") == "bean!" && e.switch_to("pork") == "pork!",
         "values go from here to there and back");
}

void errors_are_shared(const part& p) {
  std::string text;
  auto failing = p.spawn_failing();
  try {
    failing.get();
  } catch (const part_error& e) {
    text = e.what();
  }
  expect(text == "in a task",
         "an error from there is caught here, by its type");
  expect(p.caught([] { throw part_error("x"); }) == "part_error x" &&
             p.caught([] { throw bao::end_of_stream("y"); }) ==
                 "end_of_stream y" &&
             p.caught([] { throw bao::killed(nullptr); }) == "killed",
         "an error from here is caught there, by its type");

  static int told;
  told = 0;
  bao::on_unhandled([](const char*, const std::exception_ptr&) { ++told; });
  p.drop_failing();
  bao::on_unhandled(nullptr);
  expect(told == 1, "on_unhandled() hears of errors from there");
}

void time_is_shared(const part& p) {
  bao::virtual_time clock;
  const bao::nanoseconds before = p.now();
  bao::sleep(1h);
  expect(p.now() - before >= 3600000000000,
         "virtual time passes there as well");
}

void together(const part& p) {
  tasks_are_shared(p);
  flows_are_shared(p);
  errors_are_shared(p);
  time_is_shared(p);
  expect(p.works(), "the part works by itself");
  bool worked = false;
  std::thread([&] { worked = p.works(); }).join();
  expect(worked, "the part works on another thread");
}

void together(const part& a, const part& b) {
  auto numbers = a.count(4);
  expect(b.sum(numbers) == 6, "one part runs a generator of another one");
  expect(b.get(a.spawn_twice(4)) == 8, "one part joins a task of another one");
}

// --- apart -------------------------------------------------------------------

void apart(const part& p) {
  expect(p.scheduler() != &bao::this_scheduler(),
         "the part has a scheduler of its own");

  // To our scheduler, whoever works there is one task that computes.
  int turns = 0;
  auto other = bao::spawn([&] {
    for (;; ++turns) bao::yield();
  });
  bao::yield();
  const int turns_before = turns;
  expect(p.works(), "the part works, called from the main task");
  expect(turns == turns_before, "meanwhile our tasks stand still");
  bao::yield();
  expect(turns > turns_before, "and go on after that");
  other.kill();

  std::vector<bao::task<bool>> tasks;
  for (int i = 0; i < 3; ++i)
    tasks.push_back(bao::spawn([&] {
      bool right = p.works();
      bao::sleep(1ms);
      bao::generator<bool> g([&](auto& yield) { yield(p.works()); });
      right = right && g.next() == true;
      bao::coroutine<> c([&] { right = right && p.works(); });
      c.switch_to();
      try {
        throw part_error("ours");
      } catch (const part_error& ours) {
        right = right && p.works();
        bao::yield();
        try {
          throw;
        } catch (const part_error& again) {
          right = right && &again == &ours;
        }
      }
      return right;
    }));
  for (auto& t : tasks)
    expect(t.get(), "the part works, called from any flow and from a handler");

  expect(p.caught([] { throw part_error("x"); }) == "part_error x",
         "errors that are passed on are caught by their type");

  bool refused = false;
  try {
    auto strays = p.spawn_twice(1);
    strays.get();
  } catch (const bao::wrong_thread&) {
    refused = true;
  }
  expect(refused, "a handle that strays is refused");

  bool worked = false;
  int unwound = 0;
  std::thread([&] {
    worked = p.works();
    static_cast<void>(p.spawn_sleeping(&unwound));
    static_cast<void>(p.works());
    auto ours = bao::spawn([&] { bao::sleep(1h); });
    bao::yield();
  }).join();
  expect(worked, "the part works on another thread");
  expect(unwound == 1, "at the thread's end it unwinds what is left");
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<const part*> parts;
  for (int i = 2; i < argc; ++i) {
    parts.push_back(load(argv[i]));
    if (parts.back() == nullptr) return 1;
  }
  if (parts.empty()) return 1;

  if (argv[1] == "apart"s) {
    apart(*parts.front());
    return untrue;
  }
  for (const part* p : parts) together(*p);
  together(*parts.front(), *parts.back());
  together(*parts.back(), *parts.front());
  return untrue;
}
