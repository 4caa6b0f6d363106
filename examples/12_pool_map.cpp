// 12_pool_map.cpp - a function for each, a few at a time
//
// A pool runs so many tasks at once and no more. Its imap() asks for the next
// element when there is room, so the range may be endless; results come in
// order, or as they are done.
#include "bao.hpp"

#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

using namespace std::chrono_literals;

std::string bake(int minutes) {
  if (minutes > 60) throw std::runtime_error("burnt");
  bao::sleep(std::chrono::minutes(minutes));
  return std::to_string(minutes) + "-minute bread";
}

int main() {
  bao::virtual_time clock;  // an hour of baking takes no time
  bao::pool oven(3);
  const std::vector<int> wanted = {40, 10, 30, 5};

  std::printf("all, in order:");
  for (const std::string& bread : oven.map(wanted, bake))
    std::printf(" %s,", bread.c_str());

  std::printf("\nas they are done:");
  for (const std::string& bread : oven.imap_unordered(wanted, bake))
    std::printf(" %s,", bread.c_str());

  std::printf("\nan error is in its place:");
  auto breads = oven.imap(std::vector<int>{10, 90, 20}, bake);
  for (bool more = true; more;) {
    try {
      const auto bread = breads.next();
      more = bread.has_value();
      std::printf(" %s,", more ? bread->c_str() : "no more");
    } catch (const std::runtime_error& e) {
      std::printf(" %s,", e.what());
    }
  }

  std::printf("\nin a pipeline:");
  for (const std::string& bread :
       bao::from(wanted) | bao::par(2, bake) | bao::take(2))
    std::printf(" %s,", bread.c_str());
  std::printf("\n");
}
// Prints:
//   all, in order: 40-minute bread, 10-minute bread, 30-minute bread, 5-minute bread,
//   as they are done: 10-minute bread, 5-minute bread, 30-minute bread, 40-minute bread,
//   an error is in its place: 10-minute bread, burnt, 20-minute bread, no more,
//   in a pipeline: 40-minute bread, 10-minute bread,
