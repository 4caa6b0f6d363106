// 10_channel_sieve.cpp - primes through a chain of channels
//
// A channel hands values from one task to another. Here each prime gets a task
// that lets pass what it does not divide, and the chain grows by one for every
// prime that comes out at its end: a program that Go's authors made famous.
#include "bao.hpp"

#include <cstdio>
#include <memory>

using numbers = std::shared_ptr<bao::channel<int>>;

numbers make_numbers() { return std::make_shared<bao::channel<int>>(); }

void count(numbers out) {
  for (int n = 2;; ++n) out->send(n);
}

void sift(numbers in, numbers out, int prime) {
  for (int n : *in)
    if (n % prime != 0) out->send(n);
}

int main() {
  numbers end = make_numbers();
  bao::spawn(count, end);
  for (int i = 0; i < 5; ++i) {
    const int prime = *end->receive();
    std::printf("%d\n", prime);
    numbers next = make_numbers();
    bao::spawn(sift, end, next, prime);
    end = next;
  }
}  // the counter and the sieves end here
// Prints:
//   2
//   3
//   5
//   7
//   11
