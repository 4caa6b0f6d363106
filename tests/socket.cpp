// socket.cpp - tests of addresses, connections, listeners and datagrams
//
// All of it stays on this machine.
//
// Nothing here waits for ever. Where a call must not miss that it is told, the
// guard is a timeout: at a deadline it would look again, and find it after all.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bao.hpp"
#include "io_tools.hpp"

using namespace std::chrono_literals;

// --- addresses ---------------------------------------------------------------

TEST_CASE("V66: an address that was parsed is written as it was") {
  for (const std::string text :
       {"127.0.0.1:80", "0.0.0.0:0", "255.255.255.255:65535", "[::1]:80",
        "[::]:0", "[2001:db8::8a2e:370:7334]:443", "unix:/tmp/some path:1",
        "unix:relative", "unix:@abstract", "unix:@"})
    CHECK(bao::address::parse(text).to_string() == text);
  CHECK(bao::address::parse("unix:" + std::string(107, 'x')).to_string() ==
        "unix:" + std::string(107, 'x'));
}

TEST_CASE("V66: an address has a family and a port") {
  CHECK(bao::address::parse("127.0.0.1:8080").port() == 8080);
  CHECK(bao::address::parse("127.0.0.1:8080").family() == AF_INET);
  CHECK(bao::address::parse("[::1]:65535").port() == 65535);
  CHECK(bao::address::parse("[::1]:65535").family() == AF_INET6);
  CHECK(bao::address::parse("unix:/tmp/x").port() == 0);
  CHECK(bao::address::parse("unix:/tmp/x").family() == AF_UNIX);
  CHECK(bao::address::parse(":80").to_string() == "0.0.0.0:80");
  CHECK(bao::address::parse("[0:0:0:0:0:0:0:1]:80").to_string() == "[::1]:80");
  CHECK(bao::address().to_string() == "");
}

TEST_CASE("V66: what is no address is refused, with its text") {
  for (const std::string text : {"",
                                 ":",
                                 "80",
                                 "127.0.0.1",
                                 "127.0.0.1:",
                                 "127.0.0.1:x",
                                 "127.0.0.1:65536",
                                 "127.0.0.1:99999999999",
                                 "127.0.0.1:-1",
                                 "127.0.0.1: 80",
                                 "127.0.0.1:80 ",
                                 " 127.0.0.1:80",
                                 "127.0.0:80",
                                 "127.0.0.256:80",
                                 "localhost:80",
                                 "::1:80",
                                 "::1",
                                 "[::1]",
                                 "[::1:80",
                                 "::1]:80",
                                 "[]:80",
                                 "[127.0.0.1]:80",
                                 "[[::1]]:80",
                                 "unix:"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(bao::address::parse(text), std::invalid_argument);
  }
  using namespace std::string_literals;
  for (const std::string& text :
       {"127.0.0.1\0:80"s, "unix:/tmp/a\0b"s, "unix:" + std::string(108, 'x')})
    CHECK_THROWS_AS(bao::address::parse(text), std::invalid_argument);
  try {
    bao::address::parse("nonsense:80");
  } catch (const std::invalid_argument& e) {
    CHECK(std::string(e.what()).find("nonsense:80") != std::string::npos);
  }
}

// --- names -------------------------------------------------------------------

TEST_CASE("V68: numbers are answered at once") {
  bool others_ran = false;
  auto other = bao::spawn([&] { others_ran = true; });
  CHECK(bao::resolve("127.0.0.1", "80").at(0).to_string() == "127.0.0.1:80");
  CHECK(bao::resolve("::1", "443").at(0).to_string() == "[::1]:443");
  CHECK(bao::resolve("127.0.0.1", "80", 0s).size() == 1);
  CHECK(!others_ran);
  other.join();
}

TEST_CASE("V68: a name is looked up while other tasks run") {
  bool others_ran = false;
  auto other = bao::spawn([&] { others_ran = true; });
  const auto found = bao::resolve("localhost", "80", 30s);
  CHECK(others_ran);
  REQUIRE(!found.empty());
  for (const bao::address& a : found) {
    CAPTURE(a.to_string());
    CHECK((a.to_string() == "127.0.0.1:80" || a.to_string() == "[::1]:80"));
  }
}

TEST_CASE("V69: a name has the addresses that the system gives, in its order") {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  REQUIRE(::getaddrinfo("localhost", "80", &hints, &found) == 0);
  std::string expected, got;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next)
    expected += bao::address(a->ai_addr, a->ai_addrlen).to_string() + ' ';
  ::freeaddrinfo(found);
  for (const bao::address& a : bao::resolve("localhost", "80", 30s))
    got += a.to_string() + ' ';
  CHECK(got == expected);
}

TEST_CASE("V68: what cannot be resolved is named in the error") {
  std::string text;
  try {
    bao::resolve("localhost", "no such service", 30s);
  } catch (const std::runtime_error& e) {
    text = e.what();
  }
  CHECK(text.find("resolve: localhost:no such service") == 0);
}

// Ten helpers are busy, so that nobody answers.
TEST_CASE("V68: a look-up may be left alone: by a kill, or when it is late") {
  busy_helpers busy;
  auto asker = bao::spawn([] { bao::resolve("localhost", "80"); });
  bao::yield();
  CHECK(asker.kill(5s));
  CHECK(asker.killed());
  CHECK(error_of([] { bao::resolve("localhost", "80", 1ms); }) ==
        std::errc::timed_out);
  CHECK(error_of([] { bao::connect("localhost:80", 1ms); }) ==
        std::errc::timed_out);
  CHECK(busy.let_go());
  busy.join();
  CHECK(bao::resolve("localhost", "80", 30s).size() > 0);  // the next is right
}

// --- connections -------------------------------------------------------------

TEST_CASE(
    "V66: a client and a server talk, and each knows the other's address") {
  bao::tcp_listener door("127.0.0.1:0");
  CHECK(door.port() > 0);
  CHECK(door.local_address().to_string() ==
        "127.0.0.1:" + std::to_string(door.port()));
  auto server = bao::spawn([&] {
    bao::tcp_stream peer = door.accept(5s);
    peer.write_all(peer.peer_address().to_string() + '\n', 5s);
    return peer.read_line(5s).value();
  });
  bao::tcp_stream client = bao::connect(door.local_address(), 5s);
  CHECK(client.peer_address().to_string() == door.local_address().to_string());
  CHECK(client.read_line(5s) == client.local_address().to_string());
  client.write_all("bye\n", 5s);
  CHECK(server.get() == "bye");
}

TEST_CASE("V66: fifty clients are served by one listener") {
  bao::tcp_listener door("127.0.0.1:0");
  auto server = bao::spawn([&] {
    for (bao::tcp_stream& peer : door)
      bao::spawn(
          [](bao::tcp_stream talk) {
            while (auto line = talk.read_line(30s))
              talk.write_all(*line + '\n', 30s);
          },
          std::move(peer));
  });
  std::vector<bao::task<>> clients;
  for (int i = 0; i < 50; ++i)
    clients.push_back(bao::spawn([&, i] {
      auto me = bao::connect(door.local_address(), 30s);
      for (int n = 0; n < 20; ++n) {
        const std::string text = std::to_string(i * 1000 + n);
        me.write_all(text + "\r\n", 30s);
        CHECK(me.read_line(30s) == text);
      }
    }));
  for (auto& client : clients) client.get();
  door.close();
  server.get();
}

TEST_CASE("V65: sockets are born non-blocking, not inherited, without delay") {
  bao::tcp_listener door("127.0.0.1:0");
  bao::tcp_stream client = bao::connect(door.local_address(), 5s);
  bao::tcp_stream peer = door.accept(5s);
  bao::udp_socket datagrams("127.0.0.1:0");
  for (const int fd : {door.fd(), client.fd(), peer.fd(), datagrams.fd()}) {
    CHECK((::fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    CHECK((::fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
  }
  for (const int fd : {client.fd(), peer.fd()}) {
    int on = 0;
    socklen_t n = sizeof on;
    ::getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, &n);
    CHECK(on != 0);
  }
}

TEST_CASE("V66: connect takes a name, and tries each of its addresses") {
  bao::tcp_listener door("127.0.0.1:0");  // ::1 may come first, and refuses
  auto client = bao::connect("localhost:" + std::to_string(door.port()), 30s);
  CHECK(client.peer_address().to_string() == door.local_address().to_string());
  CHECK_THROWS_AS(bao::connect("localhost"), std::invalid_argument);
}

TEST_CASE("V66: a connection that is refused throws, with the address") {
  bao::address nobody;
  {
    bao::tcp_listener door("127.0.0.1:0");
    nobody = door.local_address();
  }
  try {
    bao::connect(nobody, 5s);
    CHECK(false);
  } catch (const std::system_error& e) {
    CHECK(e.code() == std::errc::connection_refused);
    CHECK(std::string(e.what()).find("connect: " + nobody.to_string()) == 0);
  }
  CHECK(error_of([&] {
          bao::connect("localhost:" + std::to_string(nobody.port()), 30s);
        }) == std::errc::connection_refused);
}

// A listener whose queue is full answers nobody.
TEST_CASE("X12: a connection to nowhere is late, and may be killed") {
  bao::tcp_listener hole("127.0.0.1:0", 0);
  std::vector<bao::tcp_stream> in_line;
  std::error_code why;
  while (!why && in_line.size() < 100)
    why = error_of(
        [&] { in_line.push_back(bao::connect(hole.local_address(), 20ms)); });
  CHECK(why == std::errc::timed_out);
  auto client = bao::spawn([&] { bao::connect(hole.local_address()); });
  bao::sleep(1ms);
  CHECK(!client.done());
  CHECK(client.kill(5s));
  CHECK(client.killed());
  const auto in_time = bao::with_timeout(
      1ms, [&] { return bao::connect(hole.local_address()).fd(); });
  CHECK(!in_time);
}

TEST_CASE("V65: a reset connection throws, in a reader that waits and later") {
  bao::tcp_listener door("127.0.0.1:0");
  bao::tcp_stream client = bao::connect(door.local_address(), 5s);
  bao::tcp_stream peer = door.accept(5s);
  auto reader = bao::spawn([&] { client.read_some(100, 5s); });
  bao::yield();
  const linger at_once{1, 0};
  ::setsockopt(peer.fd(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  peer.close();
  CHECK(error_of([&] { reader.get(); }) == std::errc::connection_reset);
  CHECK(client.read_some(100, 5s) == "");
  CHECK(error_of([&] { client.write_all("x", 5s); }) == std::errc::broken_pipe);
}

TEST_CASE("V65: of TCP, too, the last data and the end are read in one event") {
  bao::timeout guard(5s);
  bao::tcp_listener door("127.0.0.1:0");
  bao::tcp_stream client = bao::connect(door.local_address());
  bao::tcp_stream peer = door.accept(5s);
  char bytes[100];
  CHECK(error_of([&] { client.read_some(bytes, 100, 1ms); }) ==
        std::errc::timed_out);
  auto writer = bao::spawn([&] {
    peer.write_all("last");
    peer.close();
  });
  CHECK(client.read_some(bytes, 100) == 4);
  CHECK(client.read_some(bytes, 100) == 0);
  writer.get();
}

TEST_CASE("V65: a reply is read though the question was answered half-closed") {
  bao::tcp_listener door("127.0.0.1:0");
  auto server = bao::spawn([&] {
    bao::tcp_stream peer = door.accept(5s);
    const std::string question = peer.read_all(SIZE_MAX, 5s);
    bao::sleep(1ms);
    peer.write_all(question + '!', 5s);
  });
  bao::tcp_stream client = bao::connect(door.local_address(), 5s);
  client.write_all("well?", 5s);
  client.shutdown_write();
  CHECK(client.read_all(SIZE_MAX, 5s) == "well?!");
  server.get();
}

TEST_CASE("V65: ten megabytes and back over TCP with small buffers") {
  bao::tcp_listener door("127.0.0.1:0");
  bao::tcp_stream client = bao::connect(door.local_address(), 5s);
  bao::tcp_stream peer = door.accept(5s);
  const int small = 16 * 1024;
  for (const int fd : {client.fd(), peer.fd()})
    ::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  std::string sent(10'000'000, '\0');
  for (std::size_t i = 0; i < sent.size(); ++i)
    sent[i] = static_cast<char>(i * 11 / 7 % 253);
  auto echo = bao::spawn([&] {
    for (;;) {
      const std::string piece = peer.read_some(64 * 1024, 60s);
      if (piece.empty()) break;
      peer.write_all(piece, 60s);
    }
    peer.close();
  });
  auto writer = bao::spawn([&] {
    client.write_all(sent, 60s);
    client.shutdown_write();
  });
  CHECK((client.read_all(SIZE_MAX, 60s) == sent));
  writer.get();
  echo.get();
}

TEST_CASE("V65: urgent data does not make the data behind it unreadable") {
  bao::timeout guard(5s);
  bao::tcp_listener door("127.0.0.1:0");
  bao::tcp_stream client = bao::connect(door.local_address());
  bao::tcp_stream peer = door.accept(5s);
  char bytes[100];
  CHECK(error_of([&] { client.read_some(bytes, 100, 1ms); }) ==
        std::errc::timed_out);
  REQUIRE(::send(peer.fd(), "a!", 2, MSG_OOB) == 2);
  peer.write_all("bc");
  bao::sleep(1ms);
  CHECK(client.read_some(bytes, 100) == 1);
  CHECK(client.read_some(bytes, 100) == 2);
}

TEST_CASE("V65: an accepted connection may be served by another thread") {
  bao::tcp_listener door("127.0.0.1:0");
  bao::tcp_stream client = bao::connect(door.local_address(), 5s);
  std::thread server(
      [](bao::tcp_stream peer) {
        auto reader = bao::spawn([&] { return peer.read_line(5s).value(); });
        peer.write_all("and you, " + reader.get() + "?\n", 5s);
      },
      door.accept(5s));
  client.write_all("Harry\n", 5s);
  CHECK(client.read_line(5s) == "and you, Harry?");
  server.join();
}

// --- listeners ---------------------------------------------------------------

TEST_CASE("V65: accept waits until somebody connects, and may be late") {
  bao::tcp_listener door("127.0.0.1:0");
  try {
    door.accept(1ms);
    CHECK(false);
  } catch (const std::system_error& e) {
    CHECK(e.code() == std::errc::timed_out);
    CHECK(std::string(e.what()).find("accepting on descriptor") == 0);
  }
  auto server = bao::spawn([&] { return door.accept(5s).read_line(5s); });
  bao::yield();
  CHECK(!server.done());
  auto client = bao::connect(door.local_address(), 5s);
  client.write_all("knock\n");
  CHECK(server.get() == "knock");
}

TEST_CASE(
    "V65: all who have connected are accepted, though the event was one") {
  bao::timeout guard(5s);
  bao::tcp_listener door("127.0.0.1:0");
  CHECK(error_of([&] { door.accept(1ms); }) == std::errc::timed_out);
  std::vector<bao::tcp_stream> clients;
  for (int i = 0; i < 50; ++i)
    clients.push_back(bao::connect(door.local_address()));
  for (int i = 0; i < 50; ++i) CHECK(door.accept(5s));
  CHECK(error_of([&] { door.accept(0s); }) == std::errc::timed_out);
}

TEST_CASE("V45: several tasks accept in the order in which they came") {
  bao::tcp_listener door("127.0.0.1:0");
  std::string order;
  std::vector<bao::task<>> servers;
  for (const char* name : {"1", "2", "3"})
    servers.push_back(bao::spawn([&, name] {
      auto peer = door.accept(5s);
      order += name;
      peer.write_all(name, 5s);
    }));
  bao::yield();
  CHECK(servers[1].kill(5s));
  auto first = bao::connect(door.local_address(), 5s);
  auto second = bao::connect(door.local_address(), 5s);
  CHECK(first.read_all(SIZE_MAX, 5s) == "1");
  CHECK(second.read_all(SIZE_MAX, 5s) == "3");
  bao::join_all(servers);
  CHECK(order == "13");
}

TEST_CASE("X20: closing a listener ends accept() with EBADF, and its loop") {
  bao::tcp_listener door("127.0.0.1:0");
  int served = 0;
  auto server = bao::spawn([&] {
    for (bao::tcp_stream& peer : door) {
      peer.write_all("hello", 5s);
      ++served;
    }
  });
  auto other = bao::spawn([&] { door.accept(5s); });
  auto client = bao::connect(door.local_address(), 5s);
  CHECK(client.read_all(SIZE_MAX, 5s) == "hello");
  door.close();
  server.get();
  CHECK(served == 1);
  CHECK(error_of([&] { other.get(); }) == std::errc::bad_file_descriptor);
  CHECK(error_of([&] { door.accept(5s); }) == std::errc::bad_file_descriptor);
  for (bao::tcp_stream& peer : door) CHECK(peer.fd() == 0);  // none any more
}

TEST_CASE("V66: the body of the loop may close the listener") {
  bao::unix_listener door("unix:@bao_close_" + std::to_string(::getpid()));
  auto client = bao::connect_unix(door.local_address(), 5s);
  auto second = bao::connect_unix(door.local_address(), 5s);
  int served = 0;
  for (bao::unix_stream& peer : door) {
    peer.write_all("only you", 5s);
    ++served;
    door.close();
  }
  CHECK(served == 1);
  CHECK(client.read_all(SIZE_MAX, 5s) == "only you");
  CHECK(error_of([&] { second.read_all(SIZE_MAX, 5s); }) !=
        std::errc::timed_out);
}

TEST_CASE("V66: an address can be used again at once, whatever lingers there") {
  auto door = std::make_unique<bao::tcp_listener>("127.0.0.1:0");
  const bao::address here = door->local_address();
  bao::tcp_stream client = bao::connect(here, 5s);
  bao::tcp_stream peer = door->accept(5s);
  peer.close();  // who closes first has the address linger
  CHECK(client.read_all(SIZE_MAX, 5s) == "");
  client.close();
  door.reset();
  door = std::make_unique<bao::tcp_listener>(here);
  CHECK(door->port() == here.port());
  client = bao::connect(here, 5s);
  CHECK(door->accept(5s));
}

TEST_CASE("V66: an address that is in use is refused, by name") {
  bao::tcp_listener door("127.0.0.1:0");
  try {
    bao::tcp_listener second(door.local_address());
    CHECK(false);
  } catch (const std::system_error& e) {
    CHECK(e.code() == std::errc::address_in_use);
    CHECK(std::string(e.what()).find("bind: " +
                                     door.local_address().to_string()) == 0);
  }
}

TEST_CASE("V65: who has gone again before accept() is passed over") {
  struct fickle_system final : bao::system_calls {
    std::vector<int> errors;
    int accept(int fd, sockaddr* from, socklen_t* n, int flags) override {
      if (errors.empty()) return system_calls::accept(fd, from, n, flags);
      errno = errors.back();
      errors.pop_back();
      return -1;
    }
  } system;
  bao::tcp_listener door("127.0.0.1:0");
  bool waits = false;
  SUBCASE("by one who need not wait") {}
  SUBCASE("by one who has to") { waits = true; }
  bao::tcp_stream client;
  auto visitor = bao::spawn([&] {
    if (waits) bao::sleep(1ms);
    client = bao::connect(door.local_address(), 5s);
    system.errors = {ECONNABORTED, EPROTO, EINTR, ENETDOWN};
  });
  if (!waits) visitor.get();
  bao::sys = &system;
  bao::tcp_stream peer;
  const bao::deadline guard = 5s;
  const auto why = error_of([&] { peer = door.accept(guard); });
  bao::sys = &bao::the_system;
  CHECK(!why);
  CHECK(!guard.passed());
  CHECK(peer);
  CHECK(system.errors.empty());
}

TEST_CASE("V65: accept without descriptors waits, without haste, for some") {
  struct counting_system final : bao::system_calls {
    int accepts = 0;
    int accept(int fd, sockaddr* from, socklen_t* n, int flags) override {
      ++accepts;
      return system_calls::accept(fd, from, n, flags);
    }
  } system;
  bao::tcp_listener door("127.0.0.1:0");
  bao::sys = &system;
  CHECK(error_of([&] { door.accept(1ms); }) == std::errc::timed_out);
  system.accepts = 0;
  auto client = bao::connect(door.local_address(), 5s);
  rlimit before, none;
  ::getrlimit(RLIMIT_NOFILE, &before);
  none = before;
  const int free_one = ::dup(door.fd());
  ::close(free_one);
  bao::tcp_stream first, second;
  bool enough = false;
  auto relief = bao::spawn([&] {
    while (!enough) bao::sleep(1ms);
    bao::sleep(20ms);
    ::setrlimit(RLIMIT_NOFILE, &before);
  });
  bao::yield();
  none.rlim_cur = static_cast<rlim_t>(free_one);
  ::setrlimit(RLIMIT_NOFILE, &none);
  const auto late = error_of([&] { first = door.accept(30ms); });
  enough = true;
  const auto in_time = error_of([&] { second = door.accept(30s); });
  relief.join();
  bao::sys = &bao::the_system;
  CHECK(late == std::errc::timed_out);
  CHECK(!in_time);
  CHECK(second.fd() == free_one);
  CHECK(system.accepts >= 3);
  CHECK(system.accepts < 20);
}

TEST_CASE("X20: a listener may be closed while accept has no descriptors") {
  bao::tcp_listener door("127.0.0.1:0");
  CHECK(error_of([&] { door.accept(1ms); }) == std::errc::timed_out);
  auto client = bao::connect(door.local_address(), 5s);
  rlimit before, none;
  ::getrlimit(RLIMIT_NOFILE, &before);
  none = before;
  const int free_one = ::dup(door.fd());
  ::close(free_one);
  auto closer = bao::spawn([&] {
    bao::yield();
    bao::sleep(5ms);
    door.close();
  });
  bao::yield();
  none.rlim_cur = static_cast<rlim_t>(free_one);
  ::setrlimit(RLIMIT_NOFILE, &none);
  const auto why = error_of([&] { door.accept(10s); });
  ::setrlimit(RLIMIT_NOFILE, &before);
  CHECK(why == std::errc::bad_file_descriptor);
  closer.get();
}

// --- IPv6, unix --------------------------------------------------------------

TEST_CASE("V66: the same over IPv6") {
  try {
    bao::tcp_listener test("[::1]:0");
  } catch (const std::system_error&) {
    MESSAGE("this machine has no IPv6");
    return;
  }
  bao::tcp_listener door("[::1]:0");
  auto client = bao::connect("[::1]:" + std::to_string(door.port()), 5s);
  bao::tcp_stream peer = door.accept(5s);
  CHECK(peer.peer_address().to_string() == client.local_address().to_string());
  CHECK(peer.peer_address().to_string().find("[::1]:") == 0);
  client.write_all("x\n");
  CHECK(peer.read_line(5s) == "x");
  bao::udp_socket a("[::1]:0"), b("[::1]:0");
  a.send_to("datagram", b.local_address(), 5s);
  CHECK(b.receive_from(100, 5s).from.to_string() ==
        a.local_address().to_string());
}

TEST_CASE("V66: an address of another kind than the connection is refused") {
  const auto tcp = bao::address::parse("127.0.0.1:1");
  const auto unix_path = bao::address::parse("unix:/nowhere");
  CHECK_THROWS_AS(bao::connect(unix_path, 5s), std::invalid_argument);
  CHECK_THROWS_AS(bao::connect_unix(tcp, 5s), std::invalid_argument);
  const std::vector<char> much(4096);
  CHECK_THROWS_AS(
      bao::address(reinterpret_cast<const sockaddr*>(much.data()), 4096),
      std::invalid_argument);
}

TEST_CASE(
    "V66: unix sockets have a path, or a name that is in no file system") {
  const std::string name = "bao_test_" + std::to_string(::getpid());
  for (const std::string& where : {"unix:/tmp/" + name, "unix:@" + name}) {
    const bao::address at = bao::address::parse(where);
    CHECK_THROWS_AS(bao::connect_unix(at, 5s), std::system_error);
    bao::unix_listener door(at);
    CHECK(door.local_address().to_string() == where);
    bao::unix_stream client = bao::connect_unix(at, 5s);
    bao::unix_stream peer = door.accept(5s);
    CHECK(client.peer_address().to_string() == where);
    CHECK(peer.peer_address().to_string() == "unix:");  // it has no name
    client.write_all("hello\n");
    CHECK(peer.read_line(5s) == "hello");
  }
  CHECK(::unlink(("/tmp/" + name).c_str()) == 0);
}

TEST_CASE("X12: who connects to a full unix listener waits until it accepts") {
  bao::unix_listener door("unix:@bao_full_" + std::to_string(::getpid()), 1);
  std::vector<bao::unix_stream> in_line;
  std::error_code why;
  while (!why && in_line.size() < 100)
    why = error_of([&] {
      in_line.push_back(bao::connect_unix(door.local_address(), 5ms));
    });
  CHECK(why == std::errc::timed_out);
  auto client = bao::spawn(
      [&] { return bao::connect_unix(door.local_address(), 10s).fd(); });
  bao::sleep(1ms);
  CHECK(!client.done());
  for (std::size_t i = 0; i < in_line.size(); ++i) door.accept(5s);
  CHECK(client.get() != -1);
}

TEST_CASE("V66: the two ends of a pair are connected with each other") {
  auto ends = bao::socket_pair();
  ends.first.write_all("to the second\n");
  ends.second.write_all("to the first\n");
  CHECK(ends.first.read_line(5s) == "to the first");
  CHECK(ends.second.read_line(5s) == "to the second");
  CHECK((::fcntl(ends.first.fd(), F_GETFD) & FD_CLOEXEC) != 0);
  CHECK((::fcntl(ends.second.fd(), F_GETFD) & FD_CLOEXEC) != 0);
}

// --- datagrams ---------------------------------------------------------------

TEST_CASE("V65: a datagram arrives whole, and says where it comes from") {
  bao::udp_socket here("127.0.0.1:0"), there("127.0.0.1:0");
  auto receiver = bao::spawn([&] { return there.receive_from(100, 5s); });
  bao::yield();
  CHECK(!receiver.done());
  here.send_to("one", there.local_address(), 5s);
  const auto got = receiver.get();
  CHECK(got.data == "one");
  CHECK(!got.truncated);
  CHECK(got.from.to_string() == here.local_address().to_string());
  CHECK(got.from.port() == here.port());
  there.send_to("back", got.from, 5s);
  CHECK(here.receive_from(100, 5s).data == "back");
}

TEST_CASE("V65: one that is too long is cut, and says so; one may be empty") {
  bao::udp_socket here("127.0.0.1:0"), there("127.0.0.1:0");
  const bao::address to = there.local_address();
  for (const char* text : {"123456", "1234", "", "12345", "x"})
    here.send_to(text, to, 5s);
  const auto cut = there.receive_from(5, 5s);
  CHECK(cut.data == "12345");
  CHECK(cut.truncated);
  CHECK(there.receive_from(5, 5s).data == "1234");
  const auto empty = there.receive_from(5, 5s);
  CHECK(empty.data == "");
  CHECK(!empty.truncated);
  const auto exact = there.receive_from(5, 5s);
  CHECK(exact.data == "12345");
  CHECK(!exact.truncated);
  const auto none = there.receive_from(0, 5s);
  CHECK(none.data == "");
  CHECK(none.truncated);
}

TEST_CASE("V65: datagrams that came with one event are all received") {
  bao::timeout guard(5s);
  bao::udp_socket here("127.0.0.1:0"), there("127.0.0.1:0");
  CHECK(error_of([&] { there.receive_from(100, 1ms); }) ==
        std::errc::timed_out);
  for (int i = 0; i < 20; ++i)
    here.send_to(std::to_string(i), there.local_address());
  for (int i = 0; i < 20; ++i)
    CHECK(there.receive_from(100).data == std::to_string(i));
  CHECK(error_of([&] { there.receive_from(100, 0s); }) == std::errc::timed_out);
}

TEST_CASE("V83: a task for each datagram answers whoever has sent it") {
  bao::udp_socket door("127.0.0.1:0");
  auto server = bao::spawn([&] {
    for (;;)
      bao::spawn(
          [&door](const bao::udp_socket::datagram& question) {
            bao::yield();  // the others' answers come in between
            door.send_to(question.data + '!', question.from, 5s);
          },
          door.receive_from(100));
  });
  std::vector<bao::task<>> clients;
  for (int i = 0; i < 20; ++i)
    clients.push_back(bao::spawn([&door, text = std::to_string(i)] {
      bao::udp_socket me("127.0.0.1:0");
      me.send_to(text, door.local_address(), 5s);
      CHECK(me.receive_from(100, 5s).data == text + '!');
    }));
  for (auto& client : clients) client.get();
  CHECK(server.kill(5s));
}

TEST_CASE("X20: closing a datagram socket wakes its receivers with EBADF") {
  bao::udp_socket here("127.0.0.1:0");
  auto receiver = bao::spawn([&] { here.receive_from(100, 5s); });
  auto killed = bao::spawn([&] { here.receive_from(100, 5s); });
  bao::yield();
  CHECK(killed.kill(5s));
  here.close();
  CHECK(error_of([&] { receiver.get(); }) == std::errc::bad_file_descriptor);
}

TEST_CASE("V65: a datagram that is larger than any may be is refused") {
  bao::udp_socket here("127.0.0.1:0");
  CHECK(error_of([&] {
          here.send_to(std::string(70'000, 'x'), here.local_address(), 5s);
        }) == std::errc::message_size);
}
