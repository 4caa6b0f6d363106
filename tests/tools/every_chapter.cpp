// every_chapter.cpp - a program for valgrind to run: something of everything
#include "bao.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace std::literals;

namespace {

void expect(bool true_enough, const char* what) {
  if (true_enough) return;
  std::fprintf(stderr, "every_chapter: %s\n", what);
  std::_Exit(1);
}

bao::generator<std::string> words(int n) {
  return [n](auto& yield) {
    const std::string mine = "on the stack of a generator, too long for SSO";
    for (int i = 0; i < n; ++i) yield(mine + std::to_string(i));
  };
}

void switching() {
  int letters = 0;
  for (const std::string& w : words(10)) letters += static_cast<int>(w.size());
  expect(letters == 460, "a generator");

  auto unfinished = words(10);
  unfinished.next();  // destroyed while suspended

  auto lengths = words(6) | bao::map([](std::string w) { return w.size(); }) |
                 bao::chunk(4) | bao::flatten() | bao::to<std::vector>();
  expect(lengths.size() == 6, "a pipeline");

  bao::coroutine<std::string> ping([](std::string said) {
    const auto parent = bao::this_coroutine<std::string>().parent();
    for (;;)
      said = bao::coroutine_ref<std::string>(parent).switch_to(said + "!");
  });
  expect(ping.switch_to("a") == "a!", "a coroutine");
  expect(ping.switch_to("b") == "b!", "a coroutine, again");

  bao::coroutine<> thrower([] {
    try {
      throw std::runtime_error("inner");
    } catch (...) {
      bao::this_coroutine()
          .parent()
          .switch_to();  // with an exception in flight
      throw;
    }
  });
  thrower.switch_to();
  bool thrown = false;
  try {
    thrower.switch_to();
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  expect(thrown, "an exception out of a coroutine");
}

void scheduling() {
  std::vector<bao::task<int>> all;
  for (int i = 0; i < 50; ++i)
    all.push_back(bao::spawn([](int n) { return bao::yield(), n; }, i));
  int sum = 0;
  for (auto& t : bao::as_completed(all)) sum += t.get();
  expect(sum == 1225, "tasks");

  // More than the pool has had, of another size, one after the other as well.
  for (int round = 0; round < 3; ++round) {
    std::vector<bao::task<>> small;
    for (int i = 0; i < 40; ++i)
      small.push_back(bao::spawn(bao::task_options().stack_size(32 * 1024), [] {
        std::string held(100, 'x');
        bao::sleep(1h);
      }));
    bao::yield();
    bao::kill_all(small);
  }

  auto fails = bao::spawn([] { throw std::runtime_error("of a task"); });
  fails.join();
  expect(fails.error() != nullptr, "the error of a task");

  expect(!bao::with_timeout(1ms, [] { bao::sleep(1h); }), "a timeout");
  auto later = bao::spawn_later(1ms, [] {});
  expect(later.join(5s), "a task that starts later");

  bao::virtual_time clock;
  bao::sleep(24h);
}

// One client says a line, the server says it back, over each kind of stream.
template <class Listener, class Connect>
void echo(Listener& door, Connect connect) {
  auto server = bao::spawn([&] {
    auto peer = door.accept();
    while (auto line = peer.read_line()) peer.write_all(*line + "\n");
  });
  auto peer = connect();
  const std::string word(5000, 'w');
  for (int i = 0; i < 5; ++i) {
    peer.write_all(word + "\n");
    expect(peer.read_line() == word, "an echo");
  }
  peer.shutdown_write();
  expect(peer.read_all().empty(), "the end of a stream");
  server.join();
}

void outside() {
  bao::tcp_listener tcp("127.0.0.1:0");
  echo(tcp, [&] { return bao::connect(tcp.local_address()); });

  const std::string path = "every_chapter." + std::to_string(::getpid());
  bao::unix_listener local("unix:" + path);
  echo(local, [&] { return bao::connect_unix(local.local_address()); });
  ::unlink(path.c_str());

  bao::udp_socket a("127.0.0.1:0"), b("127.0.0.1:0");
  auto receiver = bao::spawn([&] { return b.receive_from().data; });
  bao::yield();
  a.send_to("datagram", b.local_address());
  expect(receiver.get() == "datagram", "a datagram");

  const auto port = std::to_string(tcp.local_address().port());
  auto by_name = bao::connect("localhost:" + port);  // looked up by a helper
  expect(bao::offload([] { return 7; }) == 7, "a helper thread");

  auto here = bao::this_scheduler().remote();
  bool arrived = false;
  auto waits = bao::spawn([&] {
    while (!arrived) bao::sleep(1ms);
  });
  std::thread other([&] {
    bao::spawn([] { bao::sleep(1ms); }).join();
    here.post([&] { arrived = true; });
  });
  waits.join();
  other.join();

  auto signalled = bao::spawn([] { return bao::wait_signal({SIGUSR1}); });
  bao::yield();
  ::raise(SIGUSR1);
  expect(signalled.get() == SIGUSR1, "a signal");
  int handled = 0;
  const auto on = bao::on_signal(SIGUSR1, [&] { ++handled; });
  ::raise(SIGUSR1);
  while (handled == 0) bao::sleep(1ms);

  const auto sorted = bao::run({"sort"}, "2\n1\n", 60s);
  expect(sorted.output == "1\n2\n" && sorted.status == 0, "a process");
  const bao::process left({"cat"});
}

}  // namespace

int main() {
  switching();
  scheduling();
  outside();
  // Killed when main() has returned.
  bao::spawn([] {
    std::string held(100, 'x');
    bao::sleep(1h);
  });
  bao::yield();
}
