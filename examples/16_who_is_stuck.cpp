// 16_who_is_stuck.cpp - a deadlock explained
//
// Two diners need two forks each, and each has taken one. When nobody is left
// who could run, and nothing outside can change that, the main task is told by
// an exception: its text has a line for each task, and spells out the circle.
#include "bao.hpp"

#include <cstdio>
#include <mutex>
#include <sstream>
#include <string>

bao::mutex left_fork("the left fork"), right_fork("the right fork");

void dine(bao::mutex& first, bao::mutex& second) {
  std::lock_guard one(first);
  bao::yield();
  std::lock_guard other(second);
}

int main() {
  const auto diner = [](const char* name) {
    return bao::task_options().name(name);
  };
  auto ann = bao::spawn(diner("Ann"), [] { dine(left_fork, right_fork); });
  auto bob = bao::spawn(diner("Bob"), [] { dine(right_fork, left_fork); });
  try {
    bao::join_all(ann, bob);
  } catch (const bao::deadlock& stuck) {
    std::istringstream report(stuck.what());
    std::string line;
    std::getline(report, line);
    std::getline(report, line);  // the rest tells where each of them is
    std::printf("%s\n", line.c_str());
  }
}
// Prints:
//     task 1 "Ann" holds the left fork, waits for the right fork; task 2 "Bob" holds the right fork, waits for the left fork
