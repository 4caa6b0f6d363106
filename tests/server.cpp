// server.cpp - a task for each connection
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <ostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "bao.hpp"
#include "checks.hpp"
#include "io_tools.hpp"
#include "sanitized.hpp"

using namespace std::literals;

namespace {

void echo(bao::tcp_stream& peer) {
  while (auto line = peer.read_line()) peer.write_all(*line + "\n");
}

std::string ask(bao::tcp_stream& peer, const std::string& line) {
  peer.write_all(line + "\n", 10s);
  return peer.read_line(10s).value_or("the end");
}

// Reads until the other end is gone, however it went.
bool is_closed(bao::tcp_stream& peer) {
  try {
    while (!peer.read_some(4096, 10s).empty()) {
    }
    return true;
  } catch (const std::system_error& e) {
    return e.code() == std::errc::connection_reset;
  }
}

// The process may have `wanted` descriptors, or as many as the machine allows,
// for as long as it lives.
class more_descriptors {
 public:
  explicit more_descriptors(rlim_t wanted) {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    rlimit now = before_;
    now.rlim_cur = std::max(now.rlim_cur, std::min(now.rlim_max, wanted));
    ::setrlimit(RLIMIT_NOFILE, &now);
    ::getrlimit(RLIMIT_NOFILE, &now);
    allowed_ = static_cast<std::size_t>(std::min(now.rlim_cur, wanted));
  }
  more_descriptors(const more_descriptors&) = delete;
  ~more_descriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  std::size_t allowed() const { return allowed_; }

 private:
  rlimit before_{};
  std::size_t allowed_;
};

// Passes when it is told to; while something may come from outside, that is
// waited for.
struct patient_clock final : bao::virtual_time {
  bao::nanoseconds may_sleep(bao::nanoseconds until, bool) override {
    return until > now() ? 10'000'000'000 : 0;
  }
};

// Connections that go no further.
#if defined(BAO_USE_SELECT)
constexpr std::size_t half_open = 400;
#elif defined(SANITIZED)
constexpr std::size_t half_open = 1000;
#else
constexpr std::size_t half_open = 10'000;
#endif

}  // namespace

TEST_CASE("V79: a server has a task for each connection, and closes it after") {
  bao::tcp_server server("127.0.0.1:0", echo);
  auto serving = bao::spawn([&] { server.serve(); });
  std::vector<bao::tcp_stream> peers;
  for (int i = 0; i < 20; ++i)
    peers.push_back(bao::connect(server.local_address(), 10s));
  for (std::size_t i = peers.size(); i-- > 0;)
    CHECK(ask(peers[i], std::to_string(i)) == std::to_string(i));
  CHECK(server.clients() == 20);
  for (auto& p : peers) p.shutdown_write();
  for (auto& p : peers) CHECK(is_closed(p));
  CHECK(server.stop(10s));
  serving.get();
  CHECK(server.clients() == 0);
}

TEST_CASE("V79: a handler may own the stream, or borrow it") {
  bao::tcp_server owner("127.0.0.1:0",
                        [](bao::tcp_stream peer) { peer.write_all("mine\n"); });
  auto serving = bao::spawn([&] { owner.serve(); });
  auto peer = bao::connect("127.0.0.1:" + std::to_string(owner.port()), 10s);
  CHECK(peer.read_line(10s) == "mine");
  CHECK(is_closed(peer));
  owner.stop();
  serving.get();
}

TEST_CASE(
    "V79: the error of a handler ends its connection alone, and is told") {
  static std::string told;
  told.clear();
  auto* const before =
      bao::on_unhandled([](const char* whose, const std::exception_ptr& e) {
        told += whose + ": "s + bao::describe(e);
      });
  bao::tcp_server server("127.0.0.1:0", [](bao::tcp_stream& peer) {
    while (auto line = peer.read_line()) {
      if (*line == "fail") throw std::runtime_error("as told");
      peer.write_all(*line + "\n");
    }
  });
  auto serving = bao::spawn([&] { server.serve(); });
  auto good = bao::connect(server.local_address());
  auto bad = bao::connect(server.local_address());
  CHECK(ask(good, "1") == "1");
  bad.write_all("fail\n");
  CHECK(is_closed(bad));
  bao::on_unhandled(before);
  CHECK(told.find("\"client\": std::runtime_error: as told") !=
        std::string::npos);
  CHECK(ask(good, "2") == "2");
  good.close();
  CHECK(server.stop(10s));
  serving.get();
}

TEST_CASE(
    "V79: ten thousand who go no further hold up nobody, and are let go") {
  const more_descriptors limit(2 * half_open + 100);
  const std::size_t many = (limit.allowed() - 100) / 2;
  if (many < half_open) MESSAGE("descriptors here: enough for ", many);
  patient_clock clock;
  std::size_t late = 0;
  bao::tcp_server server("127.0.0.1:0", [&](bao::tcp_stream& peer) {
    try {
      while (auto line = peer.read_line(1h)) peer.write_all(*line + "\n", 1h);
    } catch (const std::system_error& e) {
      late += e.code() == std::errc::timed_out;
    }
  });
  auto serving = bao::spawn([&] { server.serve(); });
  const bao::address at = server.local_address();
  [[maybe_unused]] const long before = resident_bytes();
  std::vector<bao::tcp_stream> peers;
  {
    auto first = bao::connect(at);
    while (peers.size() < many) {
      peers.push_back(bao::connect(at));
      if (peers.size() % 2 == 0) peers.back().write_all("half a line");
      if (peers.size() % 100 != 0 && peers.size() != many) continue;
      auto last = bao::connect(at);
      CHECK(ask(first, "first") == "first");
      CHECK(ask(last, "last") == "last");
    }
  }
  CHECK(server.clients() >= many);
#if !defined(SANITIZED)
  CHECK(resident_bytes() < before + static_cast<long>(many) * 16 * 1024);
#endif
  CHECK(late == 0);
  clock.advance(1h);
  for (auto& p : peers) CHECK(is_closed(p));
  CHECK(late == many);
  CHECK(server.stop(10s));
  serving.get();
}

TEST_CASE("V80: no more clients at a time than are wanted: the others wait") {
  int serving_now = 0, most = 0;
  bao::tcp_server server(
      "127.0.0.1:0",
      [&](bao::tcp_stream& peer) {
        most = std::max(most, ++serving_now);
        echo(peer);
        --serving_now;
      },
      bao::server_options().max_clients(2));
  auto serving = bao::spawn([&] { server.serve(); });
  bao::group clients;
  for (int i = 0; i < 10; ++i)
    clients.spawn([&] {
      auto peer = bao::connect(server.local_address(), 10s);
      CHECK(ask(peer, "x") == "x");
      bao::sleep(1ms);
      CHECK(ask(peer, "y") == "y");
    });
  clients.join();
  CHECK(most == 2);
  CHECK(server.stop(10s));
  serving.get();
}

TEST_CASE("V81: who stops with grace serves those who have come") {
  std::string order;
  bao::tcp_server server("127.0.0.1:0", [&](bao::tcp_stream& peer) {
    const auto line = peer.read_line();
    bao::sleep(1ms);
    peer.write_all(*line + " served\n");
  });
  auto serving = bao::spawn([&] { server.serve(); });
  bao::yield();
  // The connections have been made, and wait in the system's queue.
  std::vector<bao::tcp_stream> peers;
  for (int i = 0; i < 5; ++i) {
    const bao::address at = server.local_address();
    bao::descriptor d(bao::make_socket(at.family(), SOCK_STREAM));
    ::connect(d.fd(), at.data(), at.size());
    peers.emplace_back(d.release());
  }
  for (auto& p : peers) bao::spawn([&] { p.write_all("x\n", 10s); });
  const bao::address at = server.local_address();
  CHECK(server.stop(10s));
  serving.get();
  for (auto& p : peers) CHECK(p.read_line(10s) == "x served");
  CHECK_THROWS_AS(bao::connect(at, 10s), std::system_error);
  bao::tcp_server next(at, echo);  // the address is free again
  CHECK(next.port() == at.port());
}

TEST_CASE("V81: those who have not ended when grace is over are killed") {
  bool unwound = false;
  bao::tcp_server server("127.0.0.1:0", [&](bao::tcp_stream& peer) {
    struct at_end {
      bool& note;
      ~at_end() { note = true; }
    } note{unwound};
    peer.write_all("hello\n");
    peer.read_line();  // of which none comes
  });
  auto serving = bao::spawn([&] { server.serve(); });
  auto peer = bao::connect(server.local_address());
  CHECK(peer.read_line(10s) == "hello");
  CHECK(!server.stop(1ms));
  CHECK(unwound);
  serving.get();
  CHECK(is_closed(peer));
  CHECK(!server.stop());  // nobody is left, but they were not all served
}

TEST_CASE("V81: a server that goes, or whose task is killed, leaves nobody") {
  int unwound = 0;
  struct at_end {
    int& note;
    ~at_end() { ++note; }
  };
  bao::tcp_stream peer, other;
  {
    bao::tcp_server server("127.0.0.1:0", [&](bao::tcp_stream& p) {
      at_end note{unwound};
      p.write_all("hello\n");
      bao::sleep(1h);
    });
    auto serving = bao::spawn([&] { server.serve(); });
    peer = bao::connect(server.local_address());
    CHECK(peer.read_line(10s) == "hello");
    serving.kill();
    CHECK(serving.killed());
    CHECK(unwound == 1);
  }
  CHECK(is_closed(peer));
}

TEST_CASE("V81: what cannot be is refused") {
  bao::tcp_server server("127.0.0.1:0", echo);
  auto serving = bao::spawn([&] { server.serve(); });
  bao::yield();
  CHECK_THROWS_AS(server.serve(), std::logic_error);
  server.stop();
  serving.get();
  server.serve();  // returns at once
  CHECK_THROWS_AS(bao::server_options().max_clients(0), std::invalid_argument);
  CHECK_THROWS_AS(
      bao::server_options().max_clients(static_cast<std::size_t>(-5)),
      std::invalid_argument);
  CHECK_THROWS_AS(bao::server_options().threads(0), std::invalid_argument);
  CHECK_THROWS_AS(bao::server_options().backlog(-1), std::invalid_argument);
  bao::tcp_server first("127.0.0.1:0", echo);
  CHECK_THROWS_AS(bao::tcp_server(first.local_address(), echo),
                  std::system_error);
}

TEST_CASE("X11: a handler that stops its server would wait for itself") {
  bool refused = false, served = false;
  bao::tcp_server server("127.0.0.1:0", [&](bao::tcp_stream& peer) {
    try {
      server.stop();
    } catch (const bao::deadlock&) {
      refused = true;
    }
    bao::spawn([&] { server.stop(10s); });
    bao::yield();
    peer.write_all("bye\n");
    served = true;
  });
  auto serving = bao::spawn([&] { server.serve(); });
  auto peer = bao::connect(server.local_address());
  CHECK(peer.read_line(10s) == "bye");
  serving.get();
  CHECK(refused);
  CHECK(served);
}

TEST_CASE("V79: a server at a unix path takes the file away when it stops") {
  const std::string path = "bao_tests_" + std::to_string(::getpid());
  const std::string name = "unix:" + path;
  auto server =
      std::make_unique<bao::unix_server>(name, [](bao::unix_stream& peer) {
        while (auto line = peer.read_line()) peer.write_all(*line + "\n");
      });
  auto serving = bao::spawn([&] { server->serve(); });
  auto peer = bao::connect_unix(bao::address::parse(name));
  peer.write_all("x\n");
  CHECK(peer.read_line(10s) == "x");
  peer.close();
  CHECK(server->stop(10s));
  serving.get();
  CHECK(::access(path.c_str(), F_OK) == -1);
}

TEST_CASE("V81: several threads serve one address, and stop together") {
  std::atomic<int> served{0};
  bao::tcp_server server(
      "127.0.0.1:0",
      [&](bao::tcp_stream& peer) {
        echo(peer);
        ++served;
      },
      bao::server_options().threads(3));
  auto serving = bao::spawn([&] { server.serve(); });
  bao::group clients;
  for (int i = 0; i < 50; ++i)
    clients.spawn([&] {
      auto peer = bao::connect(server.local_address(), 10s);
      for (int k = 0; k < 5; ++k) CHECK(ask(peer, "x") == "x");
    });
  clients.join();
  CHECK(server.stop(10s));
  serving.get();
  CHECK(served == 50);
}

TEST_CASE("V81: threads too kill whom no grace is left for") {
  std::atomic<int> greeted{0}, unwound{0};
  bao::tcp_server server(
      "127.0.0.1:0",
      [&](bao::tcp_stream& peer) {
        struct at_end {
          std::atomic<int>& note;
          ~at_end() { ++note; }
        } note{unwound};
        ++greeted;
        peer.write_all("hello\n");
        bao::sleep(1h);
      },
      bao::server_options().threads(2));
  auto serving = bao::spawn([&] { server.serve(); });
  std::vector<bao::tcp_stream> peers;
  for (int i = 0; i < 20; ++i) {
    peers.push_back(bao::connect(server.local_address(), 10s));
    CHECK(peers.back().read_line(10s) == "hello");
  }
  CHECK(!server.stop(0s));
  serving.get();
  CHECK(greeted == 20);
  CHECK(unwound == 20);
  for (auto& p : peers) CHECK(is_closed(p));
}

TEST_CASE("V80: threads divide among them how many clients there may be") {
  std::atomic<int> serving_now{0}, most{0};
  bao::tcp_server server(
      "127.0.0.1:0",
      [&](bao::tcp_stream& peer) {
        const int now = ++serving_now;
        for (int seen = most; now > seen;)
          if (most.compare_exchange_weak(seen, now)) break;
        try {
          echo(peer);
        } catch (const std::system_error&) {
          // a client that breaks off
        }
        --serving_now;
      },
      bao::server_options().max_clients(3).threads(2));
  auto serving = bao::spawn([&] { server.serve(); });
  std::vector<bao::tcp_stream> peers;
  // Those who come before the other thread listens are all for this one.
  while (serving_now < 3 && peers.size() < 500) {
    peers.push_back(bao::connect(server.local_address(), 10s));
    peers.back().write_all("x\n", 10s);
    bao::sleep(1ms);
  }
  peers.clear();
  CHECK(server.stop(10s));
  serving.get();
  CHECK(most == 3);
  const auto two = bao::server_options().threads(2);
  auto options = two;
  CHECK_THROWS_AS(bao::tcp_server("127.0.0.1:0", echo, options.max_clients(1)),
                  std::invalid_argument);
  CHECK_THROWS_AS(bao::unix_server(
                      "unix:nowhere", [](bao::unix_stream&) {}, two),
                  std::invalid_argument);
}

TEST_CASE("V46: a server is stopped on its own thread") {
  bao::tcp_server server("127.0.0.1:0", echo);
  std::thread([&] {
    CHECK_THROWS_AS(server.stop(), bao::wrong_thread);
  }).join();
  CHECK(server.stop());
}

TEST_CASE("V82: a listener that is broken ends the server, and says why") {
  struct odd_system final : other_system {
    int accept(int, sockaddr*, socklen_t*, int) override {
      errno = ENOTSOCK;
      return -1;
    }
  };
  bao::tcp_server server("127.0.0.1:0", echo);
  {
    odd_system here;
    CHECK_THROWS_AS(server.serve(), std::system_error);
  }
  CHECK(server.stop());
}

TEST_CASE("V81: two may stop a server at once") {
  bao::tcp_server server(
      "127.0.0.1:0", [](bao::tcp_stream&) { bao::sleep(1h); },
      bao::server_options().max_clients(1));
  auto serving = bao::spawn([&] { server.serve(); });
  auto peer = bao::connect(server.local_address(), 10s);
  while (server.clients() == 0) bao::sleep(1ms);
  auto patient = bao::spawn([&] { return server.stop(10s); });
  bao::yield();
  CHECK(!server.stop(0s));
  patient.get();
  serving.get();
}

TEST_CASE(
    "V81: serve() returns when all threads have stopped, in their grace") {
  std::atomic<int> served{0}, greeted{0};
  int clients = 0;
  {
    bao::tcp_server server(
        "127.0.0.1:0",
        [&](bao::tcp_stream& peer) {
          ++greeted;
          peer.read_line();
          ++served;
        },
        bao::server_options().threads(3));
    auto serving = bao::spawn([&] { server.serve(); });
    std::vector<bao::tcp_stream> peers;
    for (clients = 0; clients < 30; ++clients)
      peers.push_back(bao::connect(server.local_address(), 10s));
    while (greeted < clients) bao::sleep(1ms);
    auto stopping = bao::spawn([&] { CHECK(server.stop(10s)); });
    bao::sleep(10ms);
    for (auto& p : peers) p.write_all("x\n", 10s);
    serving.get();
    stopping.get();
  }
  CHECK(served == clients);
}
