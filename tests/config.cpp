// config.cpp - one program, one configuration
#include <doctest/doctest.h>

#include "bao.hpp"
#include "child.hpp"

#include <signal.h>

#include <string>

TEST_CASE("the version is three numbers, known to the preprocessor") {
  int major = -1, minor = -1, patch = -1;
  char more = 0;
  CHECK(std::sscanf(BAO_VERSION, "%d.%d.%d%c", &major, &minor, &patch, &more) ==
        3);
}

TEST_CASE("the name of a configuration says the version") {
  const std::string name = bao::this_configuration<BAO_STACK_SIZE>.name;
  CHECK(name.find(BAO_VERSION) == 0);
}

TEST_CASE("the same configuration is agreed on from however many files") {
  const bao::configuration& first = bao::this_configuration<BAO_STACK_SIZE>;
  const std::string name = first.name;
  const bao::configuration twin{name.c_str(), first.stack_size};
  bao::agree_on(first);
  bao::agree_on(twin);  // would end the program
}

TEST_CASE("V35: a program that mixes two configurations ends, naming both") {
  const bao::configuration& ours = bao::this_configuration<BAO_STACK_SIZE>;
  const bao::configuration others[] = {{"9.8.7 other", ours.stack_size},
                                       {ours.name, 12345}};
  for (const bao::configuration& other : others) {
    const ending how = in_a_child([&] { bao::agree_on(other); });
    CAPTURE(how.text);
    CHECK(how.signal == SIGABRT);
    for (const bao::configuration* each : {&ours, &other})
      CHECK(how.says(each->name + std::string(" with stacks of ") +
                     std::to_string(each->stack_size)));
  }
}
