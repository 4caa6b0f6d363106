// checks.hpp - what several tests ask, and do
#pragma once

#include <unistd.h>

#include <atomic>
#include <fstream>
#include <string>

#include "bao.hpp"

inline bool says(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// What an Error that the call throws says; "nothing" where it throws none.
template <class Error, class Call>
std::string text_of(Call call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing";
}

// How many are inside, on whatever threads, and how many were at the most.
class crowd {
 public:
  void enter() {
    const int with_us = ++now_;
    for (int seen = most_; with_us > seen;)
      if (most_.compare_exchange_weak(seen, with_us)) return;
  }
  void leave() { --now_; }
  int now() const { return now_; }
  int most() const { return most_; }

 private:
  std::atomic<int> now_{0}, most_{0};
};

inline void wait_for_ever() {
  bao::this_scheduler().park(bao::never, {"waiting for ever"});
}

// How much memory this process holds, where Linux tells.
inline long resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  long total = 0, resident = 0;
  statm >> total >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}
// And how much of its address space is in use.
inline long mapped_bytes() {
  long pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * ::sysconf(_SC_PAGESIZE);
}
