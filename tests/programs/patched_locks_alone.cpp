// patched_locks_alone.cpp - locks can be patched where nothing else is
//
// V87: Each patch is live by itself, and patch_status() knows both.
#include "expect.hpp"

#include "bao.hpp"

#include <mutex>

BAO_PATCH_SYNC();

int main() {
  const auto all = bao::patch_status(stdout);
  expect(all.size() == 10, "ten calls are patched");
  for (const auto& call : all) expect(call.live, call.name + " is live");

  std::mutex door;
  int inside = 0, most = 0;
  bao::group tasks;
  for (int i = 0; i < 10; ++i)
    tasks.spawn([&] {
      const std::lock_guard<std::mutex> hold(door);
      most = std::max(most, ++inside);
      bao::sleep(std::chrono::milliseconds(1));
      --inside;
    });
  tasks.join();
  expect(most == 1 && inside == 0, "one task at a time holds a std::mutex");
  return untrue;
}
