// patched.cpp - a library that knows nothing of tasks lets them run, in however
// a program is compiled and linked
//
// V86, V88: With PATCH, the patch is in this file; else it is in a library.
#include "expect.hpp"
#include "unaware.hpp"

#include "bao.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>

#ifdef PATCH
BAO_PATCH_ALL();
#endif

namespace {

// A byte comes after some turns of ours, then another: the library must not
// have kept the thread meanwhile.
void expect_turns(const char* name, const std::function<int(int)>& blocks) {
  int ends[2];
  bao::check(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "socketpair");
  const bao::descriptor ours(ends[0]), its(ends[1]);
  auto library = bao::spawn([&] {
    const int status = blocks(its.fd());
    expect(status == 0, std::string(name) + " says what it should, not " +
                            std::to_string(status));
  });
  int turns = 0;
  while (!library.done() && turns < 10000) {
    bao::sleep(std::chrono::milliseconds(1));
    ++turns;
    if (turns >= 5)
      bao::check(::send(ours.fd(), "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT),
                 "send");
  }
  expect(turns >= 5, std::string(name) + " lets others run");
}

// With ASan: it still sees where the library writes.
int write_behind(bool socket) {
  int ends[2];
  bao::check(
      socket ? ::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) : ::pipe(ends),
      "ends");
  bao::check(::write(ends[1], "abcdefgh", 8), "write");
  bao::spawn([&] {
    const std::unique_ptr<char[]> room(new char[4]);
    volatile std::size_t n = 8;
    bao::check(::read(ends[0], room.get(), n), "read");
  }).join();
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return write_behind(argv[1] == std::string("socket"));
  const auto all = bao::patch_status(stdout);
  expect(!all.empty(), "there is a patch");
  for (const auto& call : all) expect(call.live, call.name + " is live");

  expect_turns("read", unaware_read);
  expect_turns("read into known room", unaware_read_into_known_room);
  expect_turns("poll", unaware_poll);
  expect_turns("sleep", [](int) { return unaware_sleep(); });
  expect(in_a_child([] { ::_exit(3); }).code == 3, "a child starts over");
  return untrue;
}
