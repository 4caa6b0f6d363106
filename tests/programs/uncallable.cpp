// uncallable.cpp - V1: a copy is nothing to refer to: must not compile
#include "bao.hpp"

int main() {
  int x = 0;
  const auto f = [](int&) {};
#if defined(spawn_it)
  bao::spawn(f, x);
#elif defined(options_it)
  bao::spawn(bao::task_options(), f, x);
#elif defined(later_it)
  bao::spawn_later(bao::at_once, f, x);
#elif defined(group_it)
  bao::group().spawn(f, x);
#elif defined(generator_it)
  bao::generator<int>([](auto& yield, int& n) { yield(n); }, x);
#else
  bao::offload(f, x);
#endif
}
