// main.cpp - the consumer: one generator and one task, if it can be compiled
#include <bao.hpp>

int main() {
  bao::generator<int> count = [](auto& yield) {
    for (int i = 0; i < 4; ++i) yield(i);
  };
  auto sum = bao::spawn([&] {
    int total = 0;
    for (int i : count) total += i;
    return total;
  });
  return sum.get() == 6 ? 0 : 1;
}
