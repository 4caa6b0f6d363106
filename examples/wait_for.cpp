// wait_for.cpp - waits until servers answer, for scripts that start things
//
//     ./wait_for 127.0.0.1:5432 localhost:6379 --limit 30 && ./start
//     127.0.0.1:5432  answers after 0.0 s
//     localhost:6379  answers after 2.3 s
//
// Each address has a task that tries again and again. The exit status is 0 when
// all have answered, 1 when the limit has passed before that.
#include "bao.hpp"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

using namespace std::chrono_literals;
using seconds = std::chrono::duration<double>;

const char* const usage =
    "usage: wait_for HOST:PORT... [--limit SECONDS]\n"
    "  SECONDS  how long to wait in all, 60 unless given\n";

// Returns when somebody accepts a connection there.
void wait_for(const std::string& where) {
  for (;;) {
    try {
      bao::connect(where, 5s);
      return;
    } catch (const std::invalid_argument&) {
      throw;  // no address: it will never answer
    } catch (const std::exception&) {
      bao::sleep(100ms);
    }
  }
}

bool wait_for_all(const std::vector<std::string>& servers, seconds limit) {
  const auto start = bao::now();
  bool all = true;
  bao::group tasks;
  for (const std::string& where : servers)
    tasks.spawn([&, where] {
      const bool answered = bao::with_timeout(limit, [&] { wait_for(where); });
      std::printf("%s  %s after %.1f s\n", where.c_str(),
                  answered ? "answers" : "does not answer",
                  seconds(bao::now() - start).count());
      std::fflush(stdout);
      all = all && answered;
    });
  tasks.join();
  return all;
}

int main(int argc, char** argv) {
  std::vector<std::string> servers;
  seconds limit = 60s;
  try {
    for (int i = 1; i < argc; ++i) {
      if (std::string(argv[i]) != "--limit") {
        servers.push_back(argv[i]);
        continue;
      }
      char* end = nullptr;
      limit = seconds(++i < argc ? std::strtod(argv[i], &end) : -1);
      if (end == nullptr || *end != '\0' || !(limit >= 0s))
        throw std::invalid_argument("--limit needs a number of seconds");
    }
    if (servers.empty()) throw std::invalid_argument("wait for whom?");
    return wait_for_all(servers, limit) ? 0 : 1;
  } catch (const std::invalid_argument& e) {
    std::fprintf(stderr, "wait_for: %s\n%s", e.what(), usage);
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "wait_for: %s\n", e.what());
    return 1;
  }
}
