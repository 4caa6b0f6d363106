// 03_pipeline.cpp - generators joined by |, like commands in a shell
//
// Each stage asks the one on its left for the next value. So one line at a time
// goes all the way through: nothing is collected in between, and when take()
// has enough, the rest of the log is not even read.
#include "bao.hpp"

#include <cstdio>
#include <istream>
#include <sstream>
#include <string>

const char* const log_file =
    "INFO  the door is open\n"
    "ERROR no flour\n"
    "INFO  flour has come\n"
    "ERROR no steam\n"
    "ERROR no guests\n"
    "INFO  nobody reads this line\n";

// The left end: the lines of any stream.
bao::generator<std::string> lines_of(std::istream& in) {
  return [&in](auto& yield) {
    for (std::string line; std::getline(in, line);) yield(line);
  };
}

bool is_error(const std::string& line) { return line.rfind("ERROR", 0) == 0; }

std::string message_of(const std::string& line) { return line.substr(6); }

// A stage of one's own is a loop that reads `in` and yields to the right.
auto numbered() {
  return bao::stage<std::string>([](auto& in, auto& yield) {
    int number = 0;
    for (const std::string& text : in)
      yield(std::to_string(++number) + ". " + text);
  });
}

int main() {
  std::istringstream log(log_file);

  auto report = lines_of(log) | bao::filter(is_error) | bao::map(message_of) |
                numbered() | bao::take(2);
  for (const std::string& line : report) std::printf("%s\n", line.c_str());

  std::string next;
  std::getline(log, next);
  std::printf("the log is read up to here: %s\n", next.c_str());
}
// Prints:
//   1. no flour
//   2. no steam
//   the log is read up to here: ERROR no guests
