// part.hpp - what a shared object offers to the program that it is loaded into
#pragma once

#include <string>

#include "bao.hpp"

struct [[gnu::visibility("default")]] part_error : std::runtime_error {
  using runtime_error::runtime_error;
};

struct part {
  // Where it runs.
  const bao::scheduler* (*scheduler)();
  unsigned long (*own_id)();
  bao::nanoseconds (*now)();

  // Flows that it makes, for others to run.
  bao::task<int> (*spawn_twice)(int x);
  bao::task<> (*spawn_failing)();
  bao::task<> (*spawn_sleeping)(int* unwound);
  bao::generator<int> (*count)(int n);
  bao::coroutine<> (*counter)(int* switches);
  bao::coroutine<std::string> (*echo)();

  // Flows that others have made, for it to run.
  int (*get)(const bao::task<int>& t);
  int (*sum)(bao::generator<int>& g);
  bool (*in_time)(bao::deadline limit, void (*f)());
  std::string (*caught)(void (*f)());
  void (*drop_failing)();

  // Work of its own, on tasks that nobody else sees: true when all went well.
  bool (*works)();
};

using part_function = const part*();
extern "C" part_function the_part;
