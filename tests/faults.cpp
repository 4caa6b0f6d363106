// faults.cpp - system calls that fail
//
// What a kernel may do to a call by its contract, though it rarely does: here
// it happens often, at each place, and under many seeds.
#include <doctest/doctest.h>
#include <fcntl.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <map>
#include <ostream>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "bao.hpp"
#include "faults.hpp"
#include "io_tools.hpp"

using namespace std::chrono_literals;

namespace {

void echo_bytes(bao::stream& peer) {
  for (;;) {
    const std::string block = peer.read_some(5000);
    if (block.empty()) return;
    peer.write_all(block);
  }
}

void echo_lines(bao::stream& peer) {
  while (const auto line = peer.read_line()) peer.write_all(*line + '\n');
}

// Writes while it reads.
void expect_echo(bao::socket_stream peer, const std::string& sent) {
  auto writer = bao::spawn([&] {
    peer.write_all(sent);
    peer.shutdown_write();
  });
  CHECK((peer.read_all() == sent));
  writer.get();
}

void expect_lines(bao::socket_stream peer) {
  for (int i = 0; i < 20; ++i) {
    const std::string line = "line " + std::to_string(i);
    peer.write_all(line + '\n');
    CHECK(peer.read_line() == line);
  }
  peer.shutdown_write();
  CHECK(!peer.read_line());
}

}  // namespace

TEST_CASE("V65: what fails for a moment loses no byte, and no order") {
  const std::string sent = numbers(2500);
  int interrupted = 0, postponed = 0, shortened = 0, refused = 0;
  bao::tcp_server server("127.0.0.1:0",
                         [](bao::tcp_stream& peer) { echo_lines(peer); });
  bao::tcp_listener door("127.0.0.1:0");
  auto serving = bao::spawn([&] { server.serve(); });
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    faulty_system system(seed, 2);
    bao::timeout guard(1h);
    bao::group all;
    all.spawn([&] {
      auto peer = door.accept();
      echo_bytes(peer);
    });
    all.spawn([&] { expect_echo(bao::connect(door.local_address()), sent); });
    for (int i = 0; i < 2; ++i)
      all.spawn([&] { expect_lines(bao::connect(server.local_address())); });

    auto ends = bao::socket_pair();
    all.spawn([peer = std::move(ends.first)]() mutable { echo_bytes(peer); });
    all.spawn([&, peer = std::move(ends.second)]() mutable {
      expect_echo(std::move(peer), sent);
    });

    for (const int flags : {0, O_NONBLOCK}) {
      auto pipe = make_pipe(flags);
      all.spawn([&, in = std::move(pipe.first)]() mutable {
        std::string got;
        while (const auto line = in.read_line()) got += *line + '\n';
        CHECK((got == sent));
      });
      all.spawn([&, out = std::move(pipe.second)]() mutable {
        for (std::size_t at = 0; at < sent.size(); at += 1000)
          out.write_all(std::string_view(sent).substr(at, 1000));
      });
    }

    all.spawn([] {
      bao::udp_socket here(unix_name("here")), there(unix_name("there"));
      for (int i = 0; i < 10; ++i) {
        here.send_to(std::to_string(i), there.local_address());
        CHECK(there.receive_from().data == std::to_string(i));
      }
    });
    all.join();
    interrupted += system.interrupted;
    postponed += system.postponed;
    shortened += system.shortened;
    refused += system.refused;
  }
  CHECK(server.stop(10s));
  serving.get();
  CHECK(interrupted > 10'000);
  CHECK(postponed > 10'000);
  CHECK(shortened > 10'000);
  CHECK(refused > 100);
}

// --- what is fatal -----------------------------------------------------------

namespace {

struct end_of_talk {
  std::error_code code;
  std::string text;
};

// Of body(), which tells whether it has had all.
template <class Body>
end_of_talk outcome_of(Body&& body) {
  try {
    return {{}, body() ? "all" : "the end"};
  } catch (const bao::end_of_stream&) {
    return {{}, "the end"};
  } catch (const std::system_error& e) {
    return {e.code(), e.what()};
  }
}

// Who has to do with whom: of the others nobody hears of a fault.
char company_of(const std::string& name) {
  if (name == "sender" || name == "echo") return 's';
  if (name == "writer" || name == "reader") return 'p';
  return name == "datagrams" ? 'd' : 't';
}

// Some who talk, the n-th of whose calls fails: who made it, and what it was;
// empty if there are not so many.
std::string talk(std::uint64_t seed, std::size_t n, int error) {
  faulty_system system(seed, 0);
  std::map<std::string, end_of_talk> ends;
  {
    bao::timeout guard(1h);
    std::vector<bao::task<>> all;
    const auto spawn = [&](const char* name, auto body) {
      all.push_back(bao::spawn(bao::task_options().name(name),
                               [&, name, body = std::move(body)]() mutable {
                                 ends[name] = outcome_of(body);
                               }));
    };
    system.fail_at(n, error);

    bao::tcp_server server("127.0.0.1:0", [&](bao::tcp_stream& peer) {
      ends["client"] = outcome_of([&] {
        echo_lines(peer);
        return true;
      });
    });
    const bao::address at = server.local_address();
    auto serving = bao::spawn([&] {
      ends["accepting"] = outcome_of([&] {
        server.serve();
        return true;
      });
    });
    spawn("caller", [at] {
      auto peer = bao::connect(at);
      for (const std::string line : {"one", "two"}) {
        peer.write_all(line + '\n');
        if (peer.read_line() != line) return false;
      }
      return true;
    });

    auto ends_of_pair = bao::socket_pair();
    spawn("echo", [peer = std::move(ends_of_pair.first)]() mutable {
      peer.write_all(peer.read_exactly(1000));
      return true;
    });
    spawn("sender", [peer = std::move(ends_of_pair.second)]() mutable {
      const std::string sent(1000, 'x');
      peer.write_all(sent);
      return peer.read_all() == sent;
    });

    auto pipe = make_pipe();
    spawn("reader", [in = std::move(pipe.first)]() mutable {
      return in.read_all() == "onetwo";
    });
    spawn("writer", [out = std::move(pipe.second)]() mutable {
      out.write_all("one");
      bao::sleep(1ms);
      out.write_all("two");
      return true;
    });

    spawn("datagrams", [] {
      bao::udp_socket here(unix_name("here")), there(unix_name("there"));
      here.send_to("datagram", there.local_address());
      return there.receive_from().data == "datagram";
    });

    bao::join_all(all);
    system.fail_at(0, 0);
    for (const auto& t : all) CHECK(t.ok());
    server.stop(2h);
    serving.get();
    bao::join_all();
  }

  const std::string& struck = system.struck();
  CHECK((struck.empty() || ends.count(struck) == 1));
  for (const auto& end : ends) {
    const std::string& name = end.first;
    const end_of_talk& how = end.second;
    CAPTURE(name);
    CAPTURE(how.text);
    if (name == struck) {
      CHECK(how.code == std::error_code(error, std::generic_category()));
      CHECK(how.text.find(system.doing()) == 0);
    } else if (!struck.empty() && company_of(name) == company_of(struck)) {
      CHECK((!how.code || how.code == std::errc::broken_pipe ||
             how.code == std::errc::connection_reset));
    } else {
      CHECK(how.text == "all");
    }
  }
  return struck.empty() ? "" : struck + ' ' + system.doing();
}

}  // namespace

TEST_CASE("V65: a fatal error is of its call; the others see an end at most") {
  std::set<std::string> met;
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    const int error = std::array{ECONNRESET, ENOMEM, ENOBUFS}[seed % 3];
    CAPTURE(seed);
    CAPTURE(error);
    std::string last = "not yet";
    for (std::size_t n = 1; !last.empty(); ++n) {
      CAPTURE(n);
      const int before = open_descriptors();
      last = talk(seed, n, error);
      CHECK(open_descriptors() == before);
      met.insert(last);
    }
  }
  for (const char* call :
       {"accepting accepting", "caller connect", "caller writing",
        "caller reading", "client reading", "client writing", "echo reading",
        "echo writing", "sender writing", "sender reading", "reader reading",
        "writer writing", "datagrams writing", "datagrams reading"}) {
    CAPTURE(call);
    CHECK(met.count(call) == 1);
  }
}
