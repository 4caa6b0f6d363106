// 04_switch.cpp - two coroutines that hand over to each other
//
// A generator always goes back to whoever asked. A coroutine goes where it
// likes: switch_to() leaves this one right here and continues the other one
// where that had stopped. The value that it sends along is what the other one's
// own switch_to() returns; the first time, it is the function's argument.
#include "bao.hpp"

#include <cstdio>
#include <string>

int main() {
  bao::coroutine<std::string> eat;
  bao::coroutine<std::string> play;

  eat = bao::coroutine<std::string>([&](std::string name) {
    std::printf("%s eats a baozi\n", name.c_str());
    std::string game = play.switch_to(name);
    std::printf("%s eats another one after %s\n", name.c_str(), game.c_str());
    play.switch_to("the piano");
    std::printf("never printed: nobody switches back here\n");
  });

  play = bao::coroutine<std::string>([&](std::string name) {
    std::printf("%s plays hide and seek\n", name.c_str());
    std::string what = eat.switch_to("hide and seek");
    std::printf("%s plays %s\n", name.c_str(), what.c_str());
    return "good night, " + name;
  });

  // A function that ends hands its result to its parent, who is whoever made
  // the coroutine: here main().
  std::string result = eat.switch_to("harry");
  std::printf("main hears: %s\n", result.c_str());

  // eat still stands in its last switch_to(). Destroying it ends it there, and
  // destroys the objects on its stack.
}
// Prints:
//   harry eats a baozi
//   harry plays hide and seek
//   harry eats another one after hide and seek
//   harry plays the piano
//   main hears: good night, harry
