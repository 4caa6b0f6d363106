// b.cpp - one of two units: it starts flows, and unit a runs them
#include "b.hpp"

bao::generator<int> count_in_b(int n) {
  return [n](auto& yield) {
    for (int i = 0; i < n; ++i) yield(i);
  };
}

bao::task<int> spawn_in_b(int x) {
  return bao::spawn([x] {
    bao::yield();
    return 2 * x;
  });
}
