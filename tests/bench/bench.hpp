// bench.hpp - what the benchmarks share: clocks, memory figures, one line per
// result
//
// Every micro benchmark is called as PROGRAM TEST [N] and prints lines of four
// words, LIB TEST VALUE UNIT, which `compare` collects. Figures of one machine
// say nothing about another: compare ratios, taken in one sitting.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace bench {

inline double now_ns() {
  using namespace std::chrono;
  return duration<double, std::nano>(steady_clock::now().time_since_epoch())
      .count();
}

// CPU time of the whole process, all threads, in user and kernel mode.
inline double cpu_ns() {
  rusage use{};
  getrusage(RUSAGE_SELF, &use);
  const auto seconds = use.ru_utime.tv_sec + use.ru_stime.tv_sec;
  const auto micros = use.ru_utime.tv_usec + use.ru_stime.tv_usec;
  return static_cast<double>(seconds) * 1e9 + static_cast<double>(micros) * 1e3;
}

// Of /proc/self/status, in bytes; 0 where there is none. Not by getrusage(),
// which begins with what the program had that started this one.
inline double status(const char* field) {
  std::FILE* file = std::fopen("/proc/self/status", "r");
  if (!file) return 0;
  const std::string format = std::string(field) + ": %ld";
  long kib = 0;
  for (char line[200]; std::fgets(line, sizeof line, file) != nullptr;)
    if (std::sscanf(line, format.c_str(), &kib) == 1) break;
  std::fclose(file);
  return static_cast<double>(kib) * 1024;
}

// Memory that it has occupied at the most.
inline double peak_bytes() { return status("VmHWM"); }

// Addresses that it has had mapped at the most.
inline double address_space() { return status("VmPeak"); }

// Memory that the process really occupies; 0 where there is no /proc.
inline double resident_bytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (!file) return 0;
  long total = 0;
  long resident = 0;
  if (std::fscanf(file, "%ld %ld", &total, &resident) != 2) resident = 0;
  std::fclose(file);
  return static_cast<double>(resident) *
         static_cast<double>(sysconf(_SC_PAGESIZE));
}

// Lines of /proc/self/maps: Linux allows about 65,000 by default.
inline double mapping_count() {
  std::FILE* file = std::fopen("/proc/self/maps", "r");
  if (!file) return 0;
  long lines = 0;
  for (int c; (c = std::fgetc(file)) != EOF;) lines += c == '\n';
  std::fclose(file);
  return static_cast<double>(lines);
}

inline void report(const char* lib, const char* test, double value,
                   const char* unit) {
  std::printf("%s %s %.3f %s\n", lib, test, value, unit);
  std::fflush(stdout);
}

// Wall time of one step, in ns, over `count` of them.
template <class Step>
double each_ns(std::uint64_t count, Step step) {
  const double start = now_ns();
  for (std::uint64_t i = 0; i < count; ++i) step();
  return (now_ns() - start) / static_cast<double>(count);
}

// Makes the compiler believe that somebody looks at `value`.
inline void keep(std::uint64_t& value) { asm volatile("" : "+r"(value)); }

// Round robin: many tasks that do nothing but give way. The clock runs from
// when all of them have started to when the first is through, so that starting
// and ending are not in it.
class round_robin {
 public:
  static constexpr int tasks = 10000;
  static constexpr int yields = 1000;

  // The body of one task; `give_way` yields once.
  template <class GiveWay>
  void body(GiveWay give_way) {
    if (++started_ == tasks) start_ = now_ns();
    for (int i = 0; i <= yields; ++i) give_way();
    if (end_ == 0) end_ = now_ns();
  }

  void report(const char* lib) const {
    bench::report(lib, "rr", (end_ - start_) / (double{tasks} * yields), "ns");
  }

 private:
  int started_ = 0;
  double start_ = 0;
  double end_ = 0;
};

// Pseudo-random sleeps of 1 to 10 ms, the same ones in every run.
class nap_times {
 public:
  static constexpr int naps = 100;

  std::chrono::microseconds next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return std::chrono::microseconds(1000 + state_ % 9000);
  }

 private:
  std::uint64_t state_ = 88172645463325252u;
};

}  // namespace bench
