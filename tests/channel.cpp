// channel.cpp - values from task to task
#include <doctest/doctest.h>

#include <memory>
#include <optional>
#include <ostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "bao.hpp"
#include "seeds.hpp"

using namespace std::literals;

TEST_CASE("V56: a sender waits until the buffer has room") {
  bao::channel<int> pipe(1);
  pipe.send(1);
  auto sender = bao::spawn([&] { pipe.send(2); });
  bao::yield();
  CHECK(!sender.done());
  CHECK(pipe.receive() == 1);
  sender.join();
  CHECK(pipe.receive() == 2);
}

TEST_CASE("V60: without a buffer, who sends waits until it has been received") {
  bao::channel<int> pipe;
  std::string order;
  auto sender = bao::spawn([&] {
    pipe.send(1);
    order += "sent ";
    pipe.send(2);
    order += "sent ";
  });
  bao::yield();
  CHECK(order.empty());
  CHECK(pipe.size() == 0);
  CHECK(pipe.receive() == 1);
  bao::yield();
  CHECK(order == "sent ");
  CHECK(pipe.receive() == 2);
  sender.join();
  CHECK(order == "sent sent ");
}

TEST_CASE("V56: values come in the order in which they were sent") {
  for (std::size_t capacity :
       {std::size_t{0}, std::size_t{1}, std::size_t{7}, bao::unbounded}) {
    CAPTURE(capacity);
    in_many_orders([&] {
      bao::channel<int> pipe(capacity);
      auto sender = bao::spawn([&] {
        for (int n = 0; n < 50; ++n) CHECK(pipe.send(n));
        pipe.close();
      });
      int expected = 0;
      for (int n : pipe) CHECK(n == expected++);
      CHECK(expected == 50);
      sender.get();
    });
  }
}

TEST_CASE("V56: every value is received once, whoever sends and receives") {
  for (std::size_t capacity : {0u, 3u}) {
    CAPTURE(capacity);
    in_many_orders([&] {
      bao::channel<int> pipe(capacity);
      std::vector<int> times(60);
      bao::wait_group senders;
      std::vector<bao::task<>> tasks;
      for (int i = 0; i < 3; ++i) {
        senders.add();
        tasks.push_back(bao::spawn([&, i] {
          for (int n = 0; n < 20; ++n) {
            pipe.send(i * 20 + n);
            if (n % 3 == 0) bao::yield();
          }
          senders.done();
        }));
        tasks.push_back(bao::spawn([&] {
          for (int n : pipe) ++times[static_cast<std::size_t>(n)];
        }));
      }
      senders.wait();
      pipe.close();
      for (auto& t : tasks) t.get();
      for (int n : times) CHECK(n == 1);
    });
  }
}

TEST_CASE("V56: blocked parties are served in the order of their arrival") {
  bao::channel<char> pipe;
  std::string order;
  std::vector<bao::task<>> tasks;
  for (int i = 0; i < 3; ++i)
    tasks.push_back(bao::spawn([&, i] {
      order += *pipe.receive();
      order += static_cast<char>('0' + i);
    }));
  bao::yield();
  for (char c : "abc"s) pipe.send(c);
  bao::join_all(tasks);
  CHECK(order == "a0b1c2");
  tasks.clear();
  for (char c : "xyz"s) tasks.push_back(bao::spawn([&, c] { pipe.send(c); }));
  bao::yield();
  CHECK(pipe.receive() == 'x');
  CHECK(pipe.receive() == 'y');
  CHECK(pipe.receive() == 'z');
  bao::join_all(tasks);
}

TEST_CASE("V56, X12: late is false or empty, and what was not sent stays") {
  bao::virtual_time clock;
  bao::channel<std::unique_ptr<int>> pipe(1);
  const auto start = bao::now();
  CHECK(!pipe.receive(1s));
  CHECK(!pipe.receive(0s));
  auto one = std::make_unique<int>(1);
  auto two = std::make_unique<int>(2);
  CHECK(pipe.send(std::move(one), 0s));
  CHECK(!one);
  CHECK(!pipe.send(std::move(two), 1s));
  CHECK(two);
  CHECK(!pipe.try_send(std::move(two)));
  CHECK(two);
  CHECK(bao::now() - start == 2s);
  CHECK(**pipe.try_receive() == 1);
  CHECK(!pipe.try_receive());
  CHECK(pipe.try_send(std::move(two)));
  CHECK(**pipe.receive() == 2);
}

TEST_CASE("V56: who is killed or late loses nothing") {
  for (std::size_t capacity : {0u, 1u}) {
    CAPTURE(capacity);
    in_many_orders([&] {
      bao::channel<int> pipe(capacity);
      int sent = 0, received = 0;
      std::vector<bao::task<>> tasks, doomed;
      const auto send = [&](bao::deadline until) {
        sent += pipe.send(1, until);
      };
      const auto receive = [&](bao::deadline until) {
        received += pipe.receive(until).value_or(0);
      };
      for (int i = 0; i < 3; ++i) {
        doomed.push_back(bao::spawn(send, bao::never));
        doomed.push_back(bao::spawn(receive, bao::never));
        tasks.push_back(bao::spawn(receive, i * 1ms));
        tasks.push_back(bao::spawn(send, i * 1ms));
        tasks.push_back(bao::spawn([&] {
          bao::sleep(1ms);
          bao::kill_all(doomed);
        }));
        tasks.push_back(bao::spawn(receive, 2ms));
      }
      for (auto& t : tasks) t.join();
      while (auto rest = pipe.try_receive()) received += *rest;
      CHECK(sent == received);
      CHECK(pipe.size() == 0);
    });
  }
}

TEST_CASE("V58: a closed channel gives out what it has, and takes nothing") {
  bao::channel<int> pipe(3);
  pipe.send(1);
  pipe.send(2);
  pipe.close();
  pipe.close();
  CHECK(pipe.closed());
  CHECK_THROWS_AS(pipe.send(3), bao::channel_closed);
  CHECK_THROWS_AS(pipe.try_send(3), bao::channel_closed);
  CHECK(pipe.size() == 2);
  CHECK(pipe.receive() == 1);
  CHECK(pipe.try_receive() == 2);
  CHECK(!pipe.receive());
  CHECK(!pipe.try_receive());
}

TEST_CASE("V58: to close a channel releases all who wait at it") {
  in_many_orders([] {
    bao::channel<int> full(1), empty;
    full.send(0);
    int refused = 0, ended = 0;
    std::vector<bao::task<>> tasks;
    for (int i = 0; i < 3; ++i) {
      tasks.push_back(bao::spawn([&] {
        try {
          full.send(1);
        } catch (const bao::channel_closed&) {
          ++refused;
        }
      }));
      tasks.push_back(bao::spawn([&] { ended += !empty.receive(); }));
    }
    bao::sleep(1ms);
    full.close();
    empty.close();
    for (auto& t : tasks) t.get();
    CHECK(refused == 3);
    CHECK(ended == 3);
    CHECK(full.receive() == 0);
    CHECK(!full.receive());
  });
}

TEST_CASE("V58: who is late while a channel is closed gets what is left") {
  in_many_orders([] {
    bao::channel<int> pipe(1), other(1);
    auto sender = bao::spawn([&] {
      bao::sleep(10ms);
      for (auto* to : {&pipe, &other}) to->send(1), to->close();
    });
    auto receiver = bao::spawn([&] {
      const auto got = pipe.receive(10ms);
      CHECK((got || !pipe.closed()));
    });
    auto chooser = bao::spawn([&] {
      bao::select(bao::on(other, [](std::optional<int> got) { CHECK(got); }),
                  bao::after(10ms, [] {}));
    });
    bao::join_all(sender, receiver, chooser);
  });
}

TEST_CASE("V58: a channel may be closed and what it has be discarded") {
  bao::channel<std::shared_ptr<int>> pipe(2);
  auto value = std::make_shared<int>(1);
  pipe.send(value);
  pipe.close(bao::discard);
  CHECK(value.use_count() == 1);
  CHECK(!pipe.receive());
}

TEST_CASE("V59: the latest first, or the greatest first") {
  bao::channel<int, bao::lifo> pile(bao::unbounded);
  bao::channel<int, bao::priority<std::less<int>>> queue(5);
  for (int n : {3, 1, 4, 1, 5}) {
    pile.send(n);
    queue.send(n);
  }
  pile.close();
  queue.close();
  std::vector<int> from_pile, from_queue;
  for (int n : pile) from_pile.push_back(n);
  for (int n : queue) from_queue.push_back(n);
  CHECK(from_pile == std::vector<int>{5, 1, 4, 1, 3});
  CHECK(from_queue == std::vector<int>{5, 4, 3, 1, 1});
}

TEST_CASE("V59: who waits to send takes part in the order") {
  bao::channel<int, bao::priority<std::less<int>>> queue(2);
  queue.send(2);
  queue.send(1);
  auto waiting = bao::spawn([&] { queue.send(3); });
  bao::yield();
  CHECK(queue.receive() == 3);
  waiting.join();
  CHECK(queue.receive() == 2);
  CHECK(queue.receive() == 1);
}

TEST_CASE("V56: values go from generators into channels and out of them") {
  bao::channel<int> numbers(2);
  auto sender = bao::spawn([&] {
    bao::generator<int> count([](auto& yield) {
      for (int n = 1; n <= 5; ++n) yield(n);
    });
    for (int n : count) numbers.send(n);
    numbers.close();
  });
  const auto squares = bao::from(numbers) |
                       bao::map([](int n) { return n * n; }) |
                       bao::to<std::vector<int>>();
  CHECK(squares == std::vector<int>{1, 4, 9, 16, 25});
  sender.get();
}

TEST_CASE("V56: who never has to wait lets the others run") {
  bao::channel<int> pipe(bao::unbounded);
  bool ran = false;
  auto other = bao::spawn([&] { ran = true; });
  int sent = 0;
  while (!ran && sent < 100'000) pipe.send(sent++);
  CHECK(ran);
  ran = false;
  auto another = bao::spawn([&] { ran = true; });
  int received = 0;
  while (!ran && pipe.try_receive()) CHECK(pipe.receive(0s).has_value() <= 1);
  while (!ran && received < 100'000) {
    pipe.send(1);
    pipe.receive();
    ++received;
  }
  CHECK(ran);
}

TEST_CASE("V56: a negative capacity is refused, and so is another thread") {
  try {
    bao::channel<int> absurd(static_cast<std::size_t>(-3));
    CHECK(false);
  } catch (const std::invalid_argument& e) {
    CHECK(std::string(e.what()).find("-3") != std::string::npos);
  }
  bao::channel<int> pipe(1);
  pipe.send(1);
  CHECK(pipe.receive() == 1);
  std::thread([&] {
    CHECK_THROWS_AS(pipe.send(1), bao::wrong_thread);
    CHECK_THROWS_AS(pipe.try_send(1), bao::wrong_thread);
    CHECK_THROWS_AS(pipe.receive(), bao::wrong_thread);
    CHECK_THROWS_AS(pipe.try_receive(), bao::wrong_thread);
    CHECK_THROWS_AS(pipe.close(), bao::wrong_thread);
  }).join();
  CHECK(!pipe.closed());
}

TEST_CASE("V56: a value that cannot be moved leaves all as it was") {
  struct brittle {
    int n;
    bool* breaks;
    brittle(int m, bool* b) : n(m), breaks(b) {}
    brittle(brittle&& other) : n(other.n), breaks(other.breaks) {
      if (*breaks) throw std::runtime_error("it broke");
    }
  };
  bool breaks = false;
  bao::channel<brittle> pipe;
  int received = 0;
  auto receiver = bao::spawn([&] { received = pipe.receive()->n; });
  bao::yield();
  breaks = true;
  CHECK_THROWS_AS(pipe.send(brittle(1, &breaks)), std::runtime_error);
  breaks = false;
  pipe.send(brittle(2, &breaks));
  receiver.get();
  CHECK(received == 2);
  auto sender = bao::spawn([&] { pipe.send(brittle(3, &breaks)); });
  bao::yield();
  breaks = true;
  CHECK_THROWS_AS(pipe.receive(), std::runtime_error);
  breaks = false;
  CHECK(pipe.receive()->n == 3);
  sender.get();
}
