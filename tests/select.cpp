// select.cpp - whatever comes first
#include <doctest/doctest.h>

#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "bao.hpp"
#include "seeds.hpp"

using namespace std::literals;

TEST_CASE("V28: select() may let others run, and a channel go meanwhile") {
  std::unique_ptr<bao::channel<int>> numbers;
  for (int i = 0; i < 200; ++i) {
    numbers = std::make_unique<bao::channel<int>>();
    bao::event rung;
    bao::spawn([&] { numbers.reset(); });
    bao::spawn([&] { rung.set(); });
    CHECK(bao::select(bao::on(*numbers, [] {}), bao::on(rung, [] {}),
                      bao::otherwise([] {})) != 0);
    bao::yield();
  }
}

TEST_CASE("V28: select takes the case that is ready, and no other") {
  bao::channel<int> a(1), b(1);
  b.send(7);
  std::string taken;
  const std::size_t which = bao::select(
      bao::on(a, [&](std::optional<int>) { taken += "a"; }),
      bao::on(b, [&](std::optional<int> n) { taken += std::to_string(*n); }));
  CHECK(which == 1);
  CHECK(taken == "7");
}

TEST_CASE("V28: select waits for whatever comes first") {
  in_many_orders([] {
    bao::channel<int> numbers;
    bao::channel<std::string> words;
    std::string order;
    auto sender = bao::spawn([&] {
      bao::sleep(2ms);
      words.send("two");
      bao::sleep(2ms);
      numbers.send(4);
      numbers.close();
    });
    for (int i = 0; i < 3; ++i)
      bao::select(
          bao::on(numbers,
                  [&](std::optional<int> n) {
                    order += n ? std::to_string(*n) : "end";
                  }),
          bao::on(words, [&](auto word) { order += word.value_or("?"); }));
    CHECK(order == "two4end");
    sender.get();
  });
}

TEST_CASE("V28: a case that is not taken loses nothing") {
  in_many_orders([] {
    bao::channel<int> in;
    bao::channel<std::unique_ptr<int>> out;
    int received = 0, sent = 0, got = 0;
    auto sender = bao::spawn([&] {
      for (int n = 0; n < 10; ++n) {
        in.send(1);
        bao::yield();
      }
      in.close();
    });
    auto receiver = bao::spawn([&] {
      while (auto p = out.receive()) {
        got += **p;
        if (got % 2) bao::yield();
      }
    });
    auto value = std::make_unique<int>(1);
    while (!in.closed() || sent < 10) {
      bao::select(bao::on(in, [&](auto n) { received += n.value_or(0); }),
                  bao::on_send(out, std::move(value), [&] {
                    ++sent;
                    value = std::make_unique<int>(1);
                  }));
      CHECK(value);
    }
    out.close();
    sender.get();
    receiver.get();
    CHECK(received == 10);
    CHECK(got == sent);
  });
}

TEST_CASE("V28: among the cases that are ready, none starves") {
  bao::channel<int> a(bao::unbounded), b(bao::unbounded), c(bao::unbounded);
  for (int i = 0; i < 3000; ++i) a.send(i), b.send(i), c.send(i);
  int times[3] = {};
  for (int i = 0; i < 3000; ++i)
    ++times[bao::select(bao::on(a, [] {}), bao::on(b, [] {}),
                        bao::on(c, [] {}))];
  for (int n : times) CHECK(n > 800);
}

TEST_CASE("V28: select has a limit, and a case for when nothing is ready") {
  bao::virtual_time clock;
  bao::channel<int> quiet;
  bao::event never_set;
  const auto start = bao::now();
  CHECK(bao::select(bao::on(quiet, [] {}), bao::after(3s, [] {}),
                    bao::after(2s, [] {}), bao::on(never_set, [] {})) == 2);
  CHECK(bao::now() - start == 2s);
  CHECK(bao::select(bao::on(quiet, [] {}), bao::otherwise([] {})) == 1);
  CHECK(bao::now() - start == 2s);
  never_set.set();
  CHECK(bao::select(bao::otherwise([] {}), bao::on(never_set, [] {})) == 1);
}

TEST_CASE("V28: select waits for tasks, events and descriptors as well") {
  auto ends = bao::socket_pair();
  bao::event door;
  auto worker = bao::spawn([&] {
    bao::yield();
    return 42;
  });
  std::string order;
  auto setter = bao::spawn([&] {
    worker.join();
    for (int i = 0; i < 3; ++i) bao::yield();
    door.set();
    for (int i = 0; i < 3; ++i) bao::yield();
    ends.second.write_all("x");
  });
  bool task_told = false, event_told = false;
  bao::channel<int> quiet;
  while (order.size() < 3) {
    const auto tell = [&](bao::readiness r) {
      CHECK(r == bao::readable);
      order += 'd';
      ends.first.read_some();
    };
    if (!task_told)
      bao::select(bao::on(quiet, [] {}),
                  bao::on(worker,
                          [&](bao::task<int> t) {
                            order += t.get() == 42 ? 't' : '?';
                            task_told = true;
                          }),
                  bao::on(door, [&] { order += '!'; }),
                  bao::on(ends.first.fd(), bao::readable, tell));
    else if (!event_told)
      bao::select(bao::on(door,
                          [&] {
                            order += 'e';
                            event_told = true;
                          }),
                  bao::on(quiet, [] {}),
                  bao::on(ends.first.fd(), bao::readable, tell));
    else
      bao::select(bao::on(ends.first.fd(), bao::readable, tell),
                  bao::on(quiet, [] {}), bao::after(10s, [] {}));
  }
  CHECK(order == "ted");
  setter.get();
}

TEST_CASE("V28: a descriptor that is ready already is taken at once") {
  auto ends = bao::socket_pair();
  CHECK(bao::select(bao::on(ends.first.fd(), bao::readable, [] {}),
                    bao::otherwise([] {})) == 1);
  ends.second.write_all("x");
  CHECK(bao::select(bao::on(ends.first.fd(), bao::readable, [] {}),
                    bao::otherwise([] {})) == 0);
  CHECK(bao::select(bao::on(ends.first.fd(), bao::readable | bao::writable,
                            [](bao::readiness r) {
                              CHECK((r & bao::readable));
                              CHECK((r & bao::writable));
                            })) == 0);
}

TEST_CASE("X20, V36: a descriptor that is closed meanwhile is EBADF") {
  auto ends = bao::socket_pair();
  bao::channel<int> quiet;
  auto reader = bao::spawn([&] { ends.first.read_some(); });
  auto waiter = bao::spawn([&] {
    bao::select(bao::on(quiet, [] {}),
                bao::on(ends.first.fd(), bao::readable, [] {}));
  });
  bao::yield();
  ends.first.close();
  for (auto& t : {bao::task<>(reader), bao::task<>(waiter)}) {
    try {
      t.get();
      CHECK(false);
    } catch (const std::system_error& e) {
      CHECK(e.code() == std::errc::bad_file_descriptor);
    }
  }
}

TEST_CASE("V58: who would send learns that the channel is closed") {
  bao::channel<int> out, quiet;
  auto waiter = bao::spawn(
      [&] { bao::select(bao::on(quiet, [] {}), bao::on_send(out, 1, [] {})); });
  bao::yield();
  out.close();
  CHECK_THROWS_AS(waiter.get(), bao::channel_closed);
  CHECK_THROWS_WITH_AS(bao::select(bao::on_send(out, 1, [] {})),
                       "select: the channel is closed", bao::channel_closed);
  CHECK_THROWS_WITH_AS(out.try_send(1), "try_send: the channel is closed",
                       bao::channel_closed);
}

TEST_CASE("V28: who is killed in a select stands in no line any more") {
  in_many_orders([] {
    bao::channel<int> in, out;
    bao::event door;
    auto sleeper = bao::spawn([] { bao::sleep(1h); });
    bool took = false;
    auto doomed = bao::spawn([&] {
      const auto take = [&] { took = true; };
      bao::select(bao::on(in, take), bao::on_send(out, 1, take),
                  bao::on(door, take), bao::on(sleeper, take));
    });
    bao::sleep(1ms);
    doomed.kill();
    CHECK(!in.try_send(1));
    CHECK(!out.try_receive());
    door.set();
    sleeper.kill();
    CHECK(!took);
  });
}

TEST_CASE("V28: two selects may meet each other") {
  in_many_orders([] {
    bao::channel<int> there, back;
    int sent = 0, received = 0;
    const auto player = [&](bao::channel<int>& out, bao::channel<int>& in) {
      for (int i = 0; i < 20; ++i)
        bao::select(bao::on_send(out, 1, [&] { ++sent; }),
                    bao::on(in, [&](auto n) { received += *n; }));
    };
    auto one = bao::spawn([&] { player(there, back); });
    auto two = bao::spawn([&] { player(back, there); });
    bao::join_all(one, two);
    CHECK(sent == 20);
    CHECK(received == 20);
  });
}

TEST_CASE("V42: a select that nothing can end is a deadlock") {
  bao::channel<int> quiet;
  CHECK_THROWS_AS(bao::select(bao::on(quiet, [] {})), bao::deadlock);
}

TEST_CASE("V28: a select that is always ready lets the others run") {
  bao::event door;
  door.set();
  bool ran = false;
  auto other = bao::spawn([&] { ran = true; });
  int rounds = 0;
  while (!ran && ++rounds < 100'000) bao::select(bao::on(door, [] {}));
  CHECK(ran);
}

TEST_CASE("V28: while the function of a case runs, nothing else is taken") {
  bao::channel<int> a, b;
  bool sent = true;
  auto waiter = bao::spawn([&] {
    bao::select(bao::on(b, [] {}), bao::on(a, [&] {
                  bao::spawn([&] { sent = b.try_send(1); }).join();
                }));
  });
  bao::yield();
  CHECK(a.try_send(1));
  waiter.get();
  CHECK(!sent);
}

TEST_CASE("V28: what a select waits for may go meanwhile") {
  bao::virtual_time clock;
  auto in = std::make_unique<bao::channel<int>>();
  auto out = std::make_unique<bao::channel<int>>();
  auto door = std::make_unique<bao::event>();
  std::size_t taken = 9;
  auto waiter = bao::spawn([&] {
    taken = bao::select(bao::on(*in, [] {}), bao::on_send(*out, 1, [] {}),
                        bao::on(*door, [] {}), bao::after(1s, [] {}));
  });
  bao::yield();
  in.reset();
  out.reset();
  door.reset();
  waiter.get();
  CHECK(taken == 3);
}

TEST_CASE("V28: to wait for a descriptor in no direction is refused") {
  auto ends = bao::socket_pair();
  CHECK_THROWS_AS(bao::on(ends.first.fd(), bao::readiness(), [] {}),
                  std::invalid_argument);
}

TEST_CASE("V28: what one line has given, another one does not take as well") {
  bao::channel<int> in, out;
  bao::event door;
  int sent = 0, taken = 0;
  auto waiter = bao::spawn([&] {
    bao::select(bao::on(in, [&] { ++taken; }), bao::on(door, [&] { ++taken; }),
                bao::on_send(out, 7, [&] { ++sent; }));
  });
  bao::yield();
  CHECK(out.try_receive() == 7);
  door.set();  // before the waiter runs
  door.clear();
  in.close();
  waiter.get();
  CHECK(sent == 1);
  CHECK(taken == 0);
}
