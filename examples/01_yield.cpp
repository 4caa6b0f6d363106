// 01_yield.cpp - functions that stop in the middle and go on later
//
// A generator is a function that hands out its results one at a time. At each
// yield() it stands still, with all its variables, until somebody asks for the
// next result by next(). So two of them can be driven in turn, each from where
// it stopped, though neither knows of the other.
#include "bao.hpp"

#include <cstdio>
#include <optional>
#include <string>

bao::generator<std::string> sing() {
  return [](auto& yield) {
    for (int verse = 1; verse <= 3; ++verse)
      yield("sings verse " + std::to_string(verse));
  };
}

bao::generator<std::string> dance() {
  return [](auto& yield) {
    yield("steps to the left");
    yield("steps to the right");
  };
}

int main() {
  bao::generator<std::string> singer = sing();  // nothing runs yet
  bao::generator<std::string> dancer = dance();

  // next() returns a std::optional, which is empty when the function has ended.
  std::optional<std::string> song = singer.next();
  std::optional<std::string> step = dancer.next();
  while (song || step) {
    if (song) std::printf("the singer %s\n", song->c_str());
    if (step) std::printf("the dancer %s\n", step->c_str());
    song = singer.next();
    step = dancer.next();
  }

  // All results of one generator: a for loop asks, and stops at the end.
  for (const std::string& next_step : dance())
    std::printf("another dancer %s\n", next_step.c_str());
}
// Prints:
//   the singer sings verse 1
//   the dancer steps to the left
//   the singer sings verse 2
//   the dancer steps to the right
//   the singer sings verse 3
//   another dancer steps to the left
//   another dancer steps to the right
