// config.cpp - one program, one configuration
#include <doctest/doctest.h>

#include "bao.hpp"

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
