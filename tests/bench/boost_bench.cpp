// boost_bench.cpp - the same tests on Boost's context, coroutine2 and fiber
//
//     switch   boost.context: one resume and one yield, halved
//     gen      boost.coroutine2: a 64-bit value a step
//     yield    boost.fiber: two fibers yielding to each other, a yield
//     rr       boost.fiber: 10,000 fibers round robin, a yield
//     spawn    boost.fiber: start, run and join an empty fiber, one at a time
//              and (`spawn-batch`) 1,000 at a time; stacks come from a pool
//     channel  boost.fiber: a value through an unbuffered channel, and
//              (`channel-128`) through one of 128 slots
//     mutex    boost.fiber: a mutex between two fibers, each hand-over
//     timer N  boost.fiber: N fibers of 100 sleeps of 1 to 10 ms, CPU time a
//              sleep
//     mem N    boost.fiber: resident bytes of each of N fibers that wait, and
//              the mappings of the process; stacks of 64 KiB without guard
//
//     g++ -O2 -std=c++17 -pthread boost_bench.cpp -lboost_fiber -lboost_context
//     mv a.out boost_bench
//     taskset -c 1 ./boost_bench switch
//
// Debian: libboost-context-dev libboost-fiber-dev.
//
// SPDX-License-Identifier: MIT
#include <boost/context/fiber.hpp>
#include <boost/context/fixedsize_stack.hpp>
#include <boost/context/pooled_fixedsize_stack.hpp>
#include <boost/coroutine2/all.hpp>
#include <boost/fiber/all.hpp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench.hpp"

namespace {

namespace context = boost::context;
namespace fibers = boost::fibers;

constexpr std::size_t stack_size = 64 * 1024;

void measure_switch() {
  std::uint64_t value = 0;
  context::fiber worker([&](context::fiber&& caller) -> context::fiber {
    for (;;) {
      ++value;
      caller = std::move(caller).resume();
    }
  });
  worker = std::move(worker).resume();
  const double each =
      bench::each_ns(10000000, [&] { worker = std::move(worker).resume(); });
  bench::report("boost.context", "switch", each / 2, "ns");
}

void measure_gen() {
  using coroutine = boost::coroutines2::coroutine<std::uint64_t>;
  constexpr std::uint64_t count = 10000000;
  std::uint64_t sum = 0;
  const double start = bench::now_ns();
  coroutine::pull_type numbers([](coroutine::push_type& yield) {
    for (std::uint64_t i = 0; i < count; ++i) yield(i);
  });
  for (std::uint64_t number : numbers) sum += number;
  const double elapsed = bench::now_ns() - start;
  bench::keep(sum);
  bench::report("boost.coroutine2", "gen", elapsed / double{count}, "ns");
}

void measure_yield() {
  constexpr std::uint64_t count = 5000000;
  std::uint64_t theirs = 0;
  bool stop = false;
  fibers::fiber other([&] {
    while (!stop) {
      ++theirs;
      boost::this_fiber::yield();
    }
  });
  boost::this_fiber::yield();
  theirs = 0;
  const double start = bench::now_ns();
  for (std::uint64_t i = 0; i < count; ++i) boost::this_fiber::yield();
  const double elapsed = bench::now_ns() - start;
  bench::report("boost.fiber", "yield",
                elapsed / static_cast<double>(count + theirs), "ns");
  stop = true;
  other.join();
}

void measure_rr() {
  bench::round_robin clock;
  std::vector<fibers::fiber> all;
  for (int i = 0; i < bench::round_robin::tasks; ++i) {
    all.emplace_back(std::allocator_arg, context::fixedsize_stack(stack_size),
                     [&] { clock.body([] { boost::this_fiber::yield(); }); });
  }
  for (fibers::fiber& fiber : all) fiber.join();
  clock.report("boost.fiber");
}

void measure_spawn() {
  constexpr std::uint64_t count = 1000000;
  constexpr std::uint64_t batch = 1000;
  std::uint64_t ran = 0;
  context::pooled_fixedsize_stack pool(stack_size);
  const auto start_one = [&] {
    return fibers::fiber(fibers::launch::post, std::allocator_arg, pool,
                         [&] { ++ran; });
  };
  double each = bench::each_ns(count, [&] { start_one().join(); });
  bench::report("boost.fiber", "spawn", each, "ns");

  std::vector<fibers::fiber> alive;
  each = bench::each_ns(count / batch, [&] {
    for (std::uint64_t i = 0; i < batch; ++i) alive.push_back(start_one());
    for (fibers::fiber& fiber : alive) fiber.join();
    alive.clear();
  });
  bench::report("boost.fiber", "spawn-batch", each / double{batch}, "ns");
  if (ran != 2 * count) std::abort();
}

template <class Channel>
void measure_channel(const char* test, Channel& values) {
  constexpr std::uint64_t count = 2000000;
  std::uint64_t sum = 0;
  const double start = bench::now_ns();
  fibers::fiber sender([&] {
    for (std::uint64_t i = 0; i < count; ++i) values.push(i);
    values.close();
  });
  fibers::fiber receiver([&] {
    for (std::uint64_t value : values) sum += value;
  });
  sender.join();
  receiver.join();
  const double elapsed = bench::now_ns() - start;
  bench::report("boost.fiber", test, elapsed / double{count}, "ns");
  if (sum != count * (count - 1) / 2) std::abort();
}

void measure_channels() {
  fibers::unbuffered_channel<std::uint64_t> direct;
  measure_channel("channel", direct);
  fibers::buffered_channel<std::uint64_t> buffered(128);
  measure_channel("channel-128", buffered);
}

void measure_mutex() {
  constexpr int count = 1000000;
  fibers::mutex door;
  const auto body = [&] {
    for (int i = 0; i < count; ++i) {
      door.lock();
      boost::this_fiber::yield();
      door.unlock();
    }
  };
  const double start = bench::now_ns();
  fibers::fiber one(body), other(body);
  one.join();
  other.join();
  bench::report("boost.fiber", "mutex",
                (bench::now_ns() - start) / (2.0 * count), "ns");
}

void measure_timer(std::size_t count) {
  bench::nap_times times;
  std::vector<fibers::fiber> all;
  all.reserve(count);
  const double cpu = bench::cpu_ns();
  for (std::size_t i = 0; i < count; ++i) {
    all.emplace_back(std::allocator_arg, context::fixedsize_stack(stack_size),
                     [&] {
                       for (int k = 0; k < bench::nap_times::naps; ++k)
                         boost::this_fiber::sleep_for(times.next());
                     });
  }
  for (fibers::fiber& fiber : all) fiber.join();
  const auto naps = static_cast<double>(count) * bench::nap_times::naps;
  bench::report("boost.fiber", "timer", (bench::cpu_ns() - cpu) / naps, "ns");
}

void measure_mem(std::size_t count) {
  fibers::mutex door;
  door.lock();
  std::vector<fibers::fiber> all;
  all.reserve(count);
  const double before = bench::resident_bytes();
  for (std::size_t i = 0; i < count; ++i) {
    all.emplace_back(std::allocator_arg, context::fixedsize_stack(stack_size),
                     [&] {
                       door.lock();
                       door.unlock();
                     });
  }
  boost::this_fiber::yield();  // all of them run once, up to the closed door
  const double used = bench::resident_bytes() - before;
  bench::report("boost.fiber", "mem", used / static_cast<double>(count),
                "bytes");
  bench::report("boost.fiber", "mappings", bench::mapping_count(), "count");
  door.unlock();
  for (fibers::fiber& fiber : all) fiber.join();
}

}  // namespace

int main(int argc, char** argv) {
  const std::string test = argc > 1 ? argv[1] : "";
  const auto count = [&](std::size_t usual) {
    return argc > 2 ? std::strtoul(argv[2], nullptr, 10) : usual;
  };
  if (test == "switch") {
    measure_switch();
  } else if (test == "gen") {
    measure_gen();
  } else if (test == "yield") {
    measure_yield();
  } else if (test == "rr") {
    measure_rr();
  } else if (test == "spawn") {
    measure_spawn();
  } else if (test == "channel") {
    measure_channels();
  } else if (test == "mutex") {
    measure_mutex();
  } else if (test == "timer") {
    measure_timer(count(10000));
  } else if (test == "mem") {
    measure_mem(count(10000));
  } else {
    std::fputs(
        "usage: boost_bench switch|gen|yield|rr|spawn|channel|mutex|timer [N]|"
        "mem [N]\n",
        stderr);
    return 2;
  }
}
