// patched_bench.cpp - unmodified libraries in tasks, beside threads and beside
// bao's own sockets
//
//     fetch N       one thread, N tasks, each gets a page that takes 0.3 s
//     threads N     the same with N threads, in which nothing is patched
//     exchange N    N requests and replies over TCP, by recv() and send();
//     own N         by bao's own streams: count the system calls (strace -c)
//     outside N     ns that a patched call takes more, where there are no tasks
//     locks N       ns that a lock and unlock take more, there and in a task
//
// SPDX-License-Identifier: MIT
#include "bao.hpp"

BAO_PATCH_ALL();
BAO_PATCH_SYNC();

#include <curl/curl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench.hpp"

namespace {

using namespace std::literals;

// In a process of its own: each page takes 0.3 s. Returns its address.
std::string start_slow_server() {
  bao::tcp_listener door("127.0.0.1:0");
  const std::string url = "http://" + door.local_address().to_string() + '/';
  if (bao::check(::fork(), "fork") != 0) return url;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (bao::tcp_stream& peer : door)
    bao::spawn(
        [](bao::tcp_stream client) {
          while (const auto line = client.read_line())
            if (line->empty()) {
              bao::sleep(300ms);
              client.write_all(
                  "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        },
        std::move(peer));
  ::_exit(0);
}

std::size_t count_bytes(char*, std::size_t, std::size_t n, void* all) {
  *static_cast<std::size_t*>(all) += n;
  return n;
}

// What knows nothing of tasks.
void fetch(const std::string& url) {
  const std::unique_ptr<CURL, void (*)(CURL*)> c(curl_easy_init(),
                                                 curl_easy_cleanup);
  std::size_t bytes = 0;
  curl_easy_setopt(c.get(), CURLOPT_URL, url.c_str());
  curl_easy_setopt(c.get(), CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(c.get(), CURLOPT_WRITEFUNCTION, count_bytes);
  curl_easy_setopt(c.get(), CURLOPT_WRITEDATA, &bytes);
  const CURLcode failed = curl_easy_perform(c.get());
  if (failed == CURLE_OK && bytes == 2) return;
  std::fprintf(stderr, "%s: %s\n", url.c_str(), curl_easy_strerror(failed));
  std::exit(1);
}

template <class Run>
void fetch_all(const char* library, Run run) {
  curl_global_init(CURL_GLOBAL_ALL);
  const std::string url = start_slow_server();
  fetch(url);  // whatever is only once
  const double memory = bench::peak_bytes(), space = bench::address_space();
  const double begin = bench::now_ns();
  run([&url] { fetch(url); });
  bench::report(library, "fetch", (bench::now_ns() - begin) / 1e6, "ms");
  bench::report(library, "fetch_space", (bench::address_space() - space) / 1e6,
                "MB");
  bench::report(library, "fetch_memory", (bench::peak_bytes() - memory) / 1e6,
                "MB");
}

constexpr char request[] = "a request of some bytes";

void exchange(int n, bool own) {
  bao::tcp_listener door("127.0.0.1:0");
  bao::tcp_stream near = bao::connect(door.local_address());
  bao::tcp_stream far = door.accept();
  if (!own)
    for (int fd : {near.fd(), far.fd()}) ::fcntl(fd, F_SETFL, 0);
  bao::spawn([&] {
    char room[100];
    for (;;) {
      const std::size_t got = own ? far.read_some(room, sizeof room)
                                  : static_cast<std::size_t>(
                                        ::recv(far.fd(), room, sizeof room, 0));
      if (got == 0) return;
      if (own)
        far.write_all(room, got);
      else
        bao::check(::send(far.fd(), room, got, 0), "send");
    }
  });
  char room[100];
  for (int i = 0; i < n; ++i) {
    if (own) {
      near.write_all(request);
      near.read_some(room, sizeof room);
    } else {
      bao::check(::send(near.fd(), request, sizeof request, 0), "send");
      bao::check(::recv(near.fd(), room, sizeof room, 0), "recv");
    }
  }
  near.shutdown_write();
  bao::join_all();
}

// How much longer one call takes than the other: in turn, and the shortest of
// many times.
template <class Patched, class Original>
double more(int n, Patched patched, Original original) {
  double with = 1e9, without = 1e9;
  for (int round = 0; round < 200; ++round) {
    const auto time = [n](auto call) {
      const double begin = bench::now_ns();
      for (int i = 0; i < n; ++i) call();
      return (bench::now_ns() - begin) / n;
    };
    with = std::min(with, time(patched));
    without = std::min(without, time(original));
  }
  return with - without;
}

void outside(int n) {  // by calls that fail at once
  const double ns = more(
      n, [] { ::close(-1); }, [] { bao::hook::original::close(-1); });
  bench::report("bao", "outside", ns, "ns");
}

void locks(int n) {
  std::thread([] {}).join();  // glibc spares a program of one thread much
  static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
  const auto measure = [n] {
    return more(
        n,
        [] {
          ::pthread_mutex_lock(&m);
          ::pthread_mutex_unlock(&m);
        },
        [] {
          bao::hook::original::pthread_mutex_lock(&m);
          bao::hook::original::pthread_mutex_unlock(&m);
        });
  };
  bench::report("bao", "locks_outside", measure(), "ns");
  bench::report("bao", "locks_in_task", bao::spawn(measure).get(), "ns");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string test = argc > 1 ? argv[1] : "";
  const int n = argc > 2 ? std::atoi(argv[2]) : 200;
  if (test == "fetch") {
    fetch_all("bao", [n](auto job) {
      std::vector<bao::task<>> all;
      for (int i = 0; i < n; ++i) all.push_back(bao::spawn(job));
      bao::join_all(all);
    });
  } else if (test == "threads") {
    fetch_all("threads", [n](auto job) {
      std::vector<std::thread> all;
      for (int i = 0; i < n; ++i) all.emplace_back(job);
      for (auto& t : all) t.join();
    });
  } else if (test == "exchange" || test == "own") {
    exchange(n, test == "own");
  } else if (test == "outside") {
    outside(n);
  } else if (test == "locks") {
    locks(n);
  } else {
    std::fprintf(stderr,
                 "usage: %s fetch|threads|exchange|own|outside|locks N\n",
                 argv[0]);
    return 2;
  }
}
