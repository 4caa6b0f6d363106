// remote.cpp - other threads leave messages
#include <doctest/doctest.h>

#include "bao.hpp"

#include <atomic>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

using namespace std::literals;

TEST_CASE("what another thread posts runs here, as a task") {
  bao::remote home = bao::this_scheduler().remote();
  const std::thread::id here = std::this_thread::get_id();
  bool ran = false;
  std::thread other([&, home]() mutable {
    CHECK(home.post([&] {
      CHECK((std::this_thread::get_id() == here));
      CHECK(bao::self().name() == "posted");
      bao::sleep(1ms);  // it may wait, like any other task
      ran = true;
    }));
  });
  other.join();
  CHECK(!ran);
  for (int i = 0; i < 1000 && !ran; ++i) bao::sleep(1ms);
  CHECK(ran);
}

TEST_CASE("a post wakes a thread that waits for nothing else") {
  // No timer is set: the remote alone keeps this from being a deadlock.
  bao::remote home = bao::this_scheduler().remote();
  bao::task_block& me = bao::this_scheduler().running();
  std::thread other([&me, home]() mutable {
    std::this_thread::sleep_for(20ms);
    home.post([&me] { bao::this_scheduler().wake(me); });
  });
  CHECK(bao::this_scheduler().park(bao::never, {"waiting for a post"}));
  other.join();
}

TEST_CASE("V42: when the last remote has gone, waiting is a deadlock again") {
  std::optional<bao::remote> home(bao::this_scheduler().remote());
  std::thread other([mine = *home] { std::this_thread::sleep_for(20ms); });
  home.reset();
  CHECK_THROWS_AS(bao::this_scheduler().park(bao::never, {"waiting"}),
                  bao::deadlock);
  other.join();
}

TEST_CASE("many threads post; each message arrives once, in its order") {
  constexpr int posters = 8, messages = 500;
  bao::remote home = bao::this_scheduler().remote();
  bao::task_block& me = bao::this_scheduler().running();
  std::vector<std::vector<int>> got(posters);
  int all = 0;
  std::vector<std::thread> threads;
  for (std::size_t p = 0; p < posters; ++p)
    threads.emplace_back([&, p, home]() mutable {
      for (int i = 0; i < messages; ++i)
        CHECK(home.post([&, p, i] {
          got[p].push_back(i);
          if (++all == posters * messages) bao::this_scheduler().wake(me);
        }));
    });
  bao::this_scheduler().park(60s, {"waiting for the posts"});
  for (auto& t : threads) t.join();
  CHECK(all == posters * messages);
  for (const auto& one : got) {
    REQUIRE(one.size() == messages);
    for (int i = 0; i < messages; ++i)
      REQUIRE(one[static_cast<std::size_t>(i)] == i);
  }
}

TEST_CASE("what is posted may be moved only, and goes when it has run") {
  bao::remote home = bao::this_scheduler().remote();
  auto counted = std::make_shared<int>(7);
  auto owned = std::make_unique<std::shared_ptr<int>>(counted);
  int got = 0;
  std::thread([&, home, owned = std::move(owned)]() mutable {
    home.post([&got, mine = std::move(owned)] { got = **mine; });
  }).join();
  for (int i = 0; i < 1000 && got == 0; ++i) bao::sleep(1ms);
  CHECK(got == 7);
  CHECK(counted.use_count() == 1);
}

TEST_CASE("a thread may post to itself") {
  bao::remote home = bao::this_scheduler().remote();
  bool ran = false;
  CHECK(home.post([&] { ran = true; }));
  CHECK(!ran);
  for (int i = 0; i < 1000 && !ran; ++i) bao::sleep(1ms);
  CHECK(ran);
}

TEST_CASE("a post to a thread that has ended is false, and is dropped") {
  std::optional<bao::remote> gone;
  std::thread([&] { gone = bao::this_scheduler().remote(); }).join();
  auto counted = std::make_shared<int>(1);
  bool ran = false;
  CHECK(!gone->post([&ran, counted] { ran = true; }));
  CHECK(counted.use_count() == 1);
  CHECK(!ran);
  bao::remote copy = *gone;
  gone.reset();
  CHECK(!copy.post([] {}));
}

TEST_CASE("X16: what was posted and not run when the thread ended is dropped") {
  auto counted = std::make_shared<int>(1);
  std::optional<bao::remote> gone;
  std::thread([&] {
    gone = bao::this_scheduler().remote();
    CHECK(gone->post([counted] { bao::sleep(1h); }));
  }).join();
  CHECK(counted.use_count() == 1);
}

TEST_CASE("X16: posts are taken in while the tasks that are left end") {
  std::atomic<bool> arrived{false};
  std::promise<bao::remote> way;
  std::promise<void> ending;
  std::thread home([&] {
    struct waits_at_the_end {
      std::promise<bao::remote>& tell;
      std::promise<void>& begun;
      std::atomic<bool>& flag;
      ~waits_at_the_end() {
        tell.set_value(bao::this_scheduler().remote());
        begun.set_value();
        for (int i = 0; i < 5000 && !flag; ++i)
          bao::this_scheduler().park(1ms, {"waiting for a post"});
      }
    };
    bao::spawn([&] {
      waits_at_the_end here{way, ending, arrived};
      bao::sleep(1h);
    });
    bao::yield();
  });
  bao::remote there = way.get_future().get();
  ending.get_future().wait();
  // As a task it is killed before it starts, for its thread is ending; but what
  // it holds is given up there at once.
  struct notes {
    std::atomic<bool>* flag;
    explicit notes(std::atomic<bool>& f) : flag(&f) {}
    notes(notes&& other) noexcept : flag(std::exchange(other.flag, nullptr)) {}
    ~notes() {
      if (flag != nullptr) *flag = true;
    }
  };
  there.post([held = notes(arrived)] {});
  home.join();
  CHECK(arrived);
}

TEST_CASE("threads that post while the home thread ends do no harm") {
  for (int round = 0; round < 50; ++round) {
    std::promise<bao::remote> way;
    std::atomic<int> dropped{0};
    std::thread home([&] {
      way.set_value(bao::this_scheduler().remote());
      bao::sleep(100us);
    });
    std::vector<std::thread> posters;
    bao::remote there = way.get_future().get();
    for (int p = 0; p < 3; ++p)
      posters.emplace_back([there, &dropped]() mutable {
        for (int i = 0; i < 10'000; ++i)
          if (!there.post([] {})) {
            ++dropped;
            break;
          }
      });
    home.join();
    for (auto& t : posters) t.join();
    CHECK(!there.post([] {}));
  }
}

TEST_CASE("two threads play ping-pong") {
  constexpr int rounds = 200;
  int pings = 0;
  bool over = false;  // for the other thread
  bao::remote ping = bao::this_scheduler().remote();
  bao::task_block& me = bao::this_scheduler().running();
  std::promise<bao::remote> way;
  std::thread other([&] {
    way.set_value(bao::this_scheduler().remote());
    while (!over) bao::sleep(1ms);
  });
  bao::remote pong = way.get_future().get();
  for (int i = 0; i < rounds; ++i) {
    CHECK(pong.post([&, ping]() mutable {
      ping.post([&] {
        ++pings;
        bao::this_scheduler().wake(me);
      });
    }));
    REQUIRE(bao::this_scheduler().park(30s, {"waiting for the other thread"}));
  }
  CHECK(pings == rounds);
  CHECK(pong.post([&] { over = true; }));
  other.join();
}
