// bao_bench.cpp - bao's own figures, test by test
//
//     switch        one switch between coroutines that ping-pong; the exception
//                   state goes along, and the value both ways is void
//     fiber-switch  the same with the lowest layer that keeps the exception
//                   state, without parents, states and values
//     gen           a 64-bit value of a generator, by range-for
//     gen-next      the same by next()
//     gen-from4     the same through four levels of yield.from
//     yield         two tasks yielding to each other, a yield
//     rr            10,000 tasks round robin, a yield
//     spawn         start, run and join an empty task, one at a time and
//                   (`spawn-batch`) 1,000 at a time
//     channel       a 64-bit value through a channel without a buffer, and
//                   (`channel-128`) with one of 128 slots
//     mutex         a mutex that goes back and forth between two tasks, each
//                   time it is handed over
//     timer [N]     N tasks of 100 sleeps of 1 to 10 ms, CPU time a sleep
//     mem [N]       resident bytes of each of N parked tasks, and the mappings
//                   of the process
//
//     g++ -O2 -std=c++17 -I../../include bao_bench.cpp -o bao_bench -pthread
//     taskset -c 1 ./bao_bench switch
//
// SPDX-License-Identifier: MIT
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "bao.hpp"
#include "bench.hpp"

namespace {

// Two flows at fixed places, as the contexts of switch_limit.cpp are, so that both
// programs find them in the same way.
class ponging final : public bao::fiber {
  bao::fiber* run() noexcept override;
};
class pinging final : public bao::fiber {
  bao::fiber* run() noexcept override;
};
ponging pong;
pinging ping;
std::uint64_t pongs = 0;

bao::fiber* ponging::run() noexcept {
  for (;;) {
    ++pongs;
    bao::switch_fiber(pong, ping);
  }
}

bao::fiber* pinging::run() noexcept {
  const double each =
      bench::each_ns(25000000, [] { bao::switch_fiber(ping, pong); });
  bench::report("bao", "fiber-switch", each / 2, "ns");
  return &home->main;
}

void measure_fiber_switch() {
  bao::thread_state& thread = bao::this_thread_state();
  pong.start(thread);
  ping.start(thread);
  bao::switch_fiber(thread.main, ping);
}

using numbers = bao::generator<std::uint64_t>;

void measure_switch() {
  std::uint64_t value = 0;
  bao::coroutine<> worker([&] {
    for (;;) {
      ++value;
      bao::main_coroutine<>().switch_to();
    }
  });
  const double each = bench::each_ns(25000000, [&] { worker.switch_to(); });
  bench::report("bao", "switch", each / 2, "ns");
}

numbers count_to(std::uint64_t end) {
  return [end](auto& yield) {
    for (std::uint64_t i = 0; i < end; ++i) yield(i);
  };
}

numbers delegate(int depth, std::uint64_t end) {
  return [depth, end](auto& yield) {
    numbers inner = depth == 1 ? count_to(end) : delegate(depth - 1, end);
    yield.from(inner);
  };
}

constexpr std::uint64_t gen_count = 20000000;

void measure_range_for(const char* test, numbers source) {
  std::uint64_t sum = 0;
  const double start = bench::now_ns();
  for (std::uint64_t number : source) sum += number;
  const double elapsed = bench::now_ns() - start;
  bench::keep(sum);
  bench::report("bao", test, elapsed / double{gen_count}, "ns");
}

void measure_next() {
  numbers source = count_to(gen_count);
  std::uint64_t sum = 0;
  const double start = bench::now_ns();
  while (auto number = source.next()) sum += *number;
  const double elapsed = bench::now_ns() - start;
  bench::keep(sum);
  bench::report("bao", "gen-next", elapsed / double{gen_count}, "ns");
}

void measure_yield() {
  constexpr std::uint64_t count = 10000000;
  std::uint64_t theirs = 0;
  bool stop = false;
  auto other = bao::spawn([&] {
    while (!stop) {
      ++theirs;
      bao::yield();
    }
  });
  bao::yield();
  theirs = 0;
  const double start = bench::now_ns();
  for (std::uint64_t i = 0; i < count; ++i) bao::yield();
  const double elapsed = bench::now_ns() - start;
  bench::report("bao", "yield", elapsed / static_cast<double>(count + theirs),
                "ns");
  stop = true;
  other.join();
}

void measure_rr() {
  bench::round_robin clock;
  std::vector<bao::task<>> all;
  for (int i = 0; i < bench::round_robin::tasks; ++i)
    all.push_back(bao::spawn([&] { clock.body([] { bao::yield(); }); }));
  for (auto& task : all) task.join();
  clock.report("bao");
}

void measure_spawn() {
  constexpr std::uint64_t count = 5000000;
  constexpr std::uint64_t batch = 1000;
  std::uint64_t ran = 0;
  const auto start_one = [&] { return bao::spawn([&] { ++ran; }); };
  double each = bench::each_ns(count, [&] { start_one().join(); });
  bench::report("bao", "spawn", each, "ns");

  std::vector<bao::task<>> alive;
  each = bench::each_ns(count / batch, [&] {
    for (std::uint64_t i = 0; i < batch; ++i) alive.push_back(start_one());
    for (auto& task : alive) task.join();
    alive.clear();
  });
  bench::report("bao", "spawn-batch", each / double{batch}, "ns");
  if (ran != 2 * count) std::abort();
}

void measure_channel(const char* test, std::size_t capacity) {
  constexpr std::uint64_t count = 5000000;
  std::uint64_t sum = 0;
  const double start = bench::now_ns();
  bao::channel<std::uint64_t> values(capacity);
  auto sender = bao::spawn([&] {
    for (std::uint64_t i = 0; i < count; ++i) values.send(i);
    values.close();
  });
  auto receiver = bao::spawn([&] {
    for (std::uint64_t value : values) sum += value;
  });
  sender.join();
  receiver.join();
  const double elapsed = bench::now_ns() - start;
  bench::report("bao", test, elapsed / double{count}, "ns");
  if (sum != count * (count - 1) / 2) std::abort();
}

void measure_mutex() {
  constexpr int count = 2000000;
  bao::mutex door;
  const auto body = [&] {
    for (int i = 0; i < count; ++i) {
      door.lock();
      bao::yield();  // so that the other one waits for it
      door.unlock();
    }
  };
  const double start = bench::now_ns();
  auto one = bao::spawn(body);
  auto other = bao::spawn(body);
  one.join();
  other.join();
  bench::report("bao", "mutex", (bench::now_ns() - start) / (2.0 * count),
                "ns");
}

void measure_timer(std::size_t count) {
  bench::nap_times times;
  std::vector<bao::task<>> all;
  all.reserve(count);
  const double cpu = bench::cpu_ns();
  for (std::size_t i = 0; i < count; ++i) {
    all.push_back(bao::spawn([&] {
      for (int k = 0; k < bench::nap_times::naps; ++k) bao::sleep(times.next());
    }));
  }
  for (auto& task : all) task.join();
  const auto naps = static_cast<double>(count) * bench::nap_times::naps;
  bench::report("bao", "timer", (bench::cpu_ns() - cpu) / naps, "ns");
}

void measure_mem(std::size_t count) {
  std::size_t parked = 0;
  const double before = bench::resident_bytes();
  for (std::size_t i = 0; i < count; ++i) {
    bao::spawn([&] {
      ++parked;
      bao::sleep(std::chrono::hours(1));
    });
  }
  while (parked < count) bao::yield();
  const double used = bench::resident_bytes() - before;
  bench::report("bao", "mem", used / static_cast<double>(count), "bytes");
  bench::report("bao", "mappings", bench::mapping_count(), "count");
  std::_Exit(0);  // unwinding them all is not what is measured
}

}  // namespace

int main(int argc, char** argv) {
  const std::string test = argc > 1 ? argv[1] : "";
  const auto count = [&](std::size_t usual) {
    return argc > 2 ? std::strtoul(argv[2], nullptr, 10) : usual;
  };
  if (test == "switch") {
    measure_switch();
  } else if (test == "fiber-switch") {
    measure_fiber_switch();
  } else if (test == "gen") {
    measure_range_for("gen", count_to(gen_count));
  } else if (test == "gen-next") {
    measure_next();
  } else if (test == "gen-from4") {
    measure_range_for("gen-from4", delegate(4, gen_count));
  } else if (test == "yield") {
    measure_yield();
  } else if (test == "rr") {
    measure_rr();
  } else if (test == "spawn") {
    measure_spawn();
  } else if (test == "channel") {
    measure_channel("channel", 0);
    measure_channel("channel-128", 128);
  } else if (test == "mutex") {
    measure_mutex();
  } else if (test == "timer") {
    measure_timer(count(10000));
  } else if (test == "mem") {
    measure_mem(count(10000));
  } else {
    std::fputs(
        "usage: bao_bench switch|fiber-switch|gen|gen-next|gen-from4|yield|rr|"
        "spawn|channel|mutex|timer [N]|mem [N]\n",
        stderr);
    return 2;
  }
}
