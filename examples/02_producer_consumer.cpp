// 02_producer_consumer.cpp - values that go into a generator
//
// yield() can bring something back: what the other side passes to send(). Here
// two guests wait for baozi (steamed buns) and a cook sends them some. There is
// no queue between them, no lock and no thread: send() continues the guest, and
// the guest's next yield() continues the cook.
#include "bao.hpp"

#include <cstdio>
#include <string>

// It yields nothing (void) and is sent numbers (int).
void consumer(bao::yielder<void, int>& yield, const std::string& name) {
  std::printf("%s sits down\n", name.c_str());
  for (;;) {
    const int baozi = yield();
    std::printf("%s eats baozi %d\n", name.c_str(), baozi);
  }
}

int main() {
  bao::generator<void, int> con1(consumer, "c1");
  bao::generator<void, int> con2(consumer, "c2");

  // To their first yield: before that there is nobody to take what is sent.
  con1.next();
  con2.next();

  for (int n = 1; n <= 3; ++n) {
    std::printf("the cook makes two baozi\n");
    con1.send(2 * n - 1);
    con2.send(2 * n);
  }
  // The guests would wait for ever. Here their generators are destroyed, which
  // ends them where they stand; the objects on their stacks are destroyed too.
}
// Prints:
//   c1 sits down
//   c2 sits down
//   the cook makes two baozi
//   c1 eats baozi 1
//   c2 eats baozi 2
//   the cook makes two baozi
//   c1 eats baozi 3
//   c2 eats baozi 4
//   the cook makes two baozi
//   c1 eats baozi 5
//   c2 eats baozi 6
