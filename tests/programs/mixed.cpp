// mixed.cpp - the two files of a program that disagree about bao
//
// config.hpp is all that it takes: what is compared lies there.
#include "bao/config.hpp"

int size_elsewhere();

#ifndef MAIN
int size_elsewhere() { return BAO_STACK_SIZE; }
#else
int main() {
  std::printf("it runs, with stacks of %d and of %d bytes\n", BAO_STACK_SIZE,
              size_elsewhere());
}
#endif
