// serving.cpp - the examples that serve, as their users meet them
//
// Called with the paths of the programs: starts each on a port of its own,
// talks to it politely and otherwise, and ends it.
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <system_error>
#include <vector>

#include "bao.hpp"
#include "expect.hpp"

using namespace std::literals;

namespace {

// A server that runs for as long as this lives.
class running {
 public:
  explicit running(std::vector<std::string> command)
      : child_(std::move(command),
               bao::process_options().stdin_from("/dev/null").stderr_to(2)) {
    const auto line = child_.out().read_line(20s);
    const std::string begin = "listening on ";
    if (!line || line->rfind(begin, 0) != 0)
      throw std::runtime_error("it does not say where it listens");
    where_ = line->substr(begin.size());
  }

  bao::tcp_stream connect() const { return bao::connect(where_, 20s); }
  const std::string& where() const { return where_; }
  pid_t pid() const { return child_.pid(); }

  // Ends it as a user would. Its exit status.
  int stop() {
    child_.kill(SIGTERM);
    return child_.wait(20s).value_or(-1000);
  }

 private:
  bao::process child_;
  std::string where_;
};

// All that comes until the other end closes, or resets.
std::string rest(bao::tcp_stream& peer) {
  std::string all;
  try {
    for (;;) {
      const std::string piece = peer.read_some(65536, 20s);
      if (piece.empty()) return all;
      all += piece;
    }
  } catch (const std::system_error& e) {
    if (e.code() != std::errc::connection_reset) throw;
    return all;
  }
}

struct answer {
  std::string head, body;
  bool is(const std::string& status) const {
    return head.rfind("HTTP/1.1 " + status + ' ', 0) == 0;
  }
  bool has(const std::string& header) const {
    return head.find(header) != std::string::npos;
  }
};

answer read_answer(bao::tcp_stream& peer, bool with_body = true) {
  answer a;
  a.head = peer.read_until("\r\n\r\n", 65536, 20s).value_or("");
  const std::size_t at = a.head.find("Content-Length: ");
  if (at != std::string::npos && with_body)
    a.body = peer.read_exactly(std::stoul(a.head.substr(at + 16)), 20s);
  return a;
}

answer get(bao::tcp_stream& peer, const std::string& target,
           const std::string& headers = "") {
  peer.write_all(
      "GET " + target + " HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n", 20s);
  return read_answer(peer);
}

std::string raw(const running& server, const std::string& text) {
  auto peer = server.connect();
  peer.write_all(text, 20s);
  return rest(peer);
}

void write_file(const std::string& name, const std::string& text) {
  std::FILE* const file = std::fopen(name.c_str(), "w");
  if (file == nullptr) throw std::runtime_error("cannot write " + name);
  std::fwrite(text.data(), 1, text.size(), file);
  std::fclose(file);
}

void http(const std::string& program) {
  char folder[] = "serving_XXXXXX";
  if (::mkdtemp(folder) == nullptr) throw std::runtime_error("mkdtemp");
  const std::string root = folder, file = root + "/a.html";
  write_file(file, "first");
  write_file(root + "/large", std::string(300'000, 'x'));
  {
    running plain({program, "0"});
    auto peer = plain.connect();
    expect(get(peer, "/").is("200"), "there is a greeting");
    expect(get(peer, "/a.html").is("404"), "and no file without a root");
    peer.close();
    expect(plain.stop() == 0, "http_server ends with 0");
  }
  running server({program, "0", "--root", root, "--threads", "2"});
  auto peer = server.connect();
  answer a = get(peer, "/a.html");
  expect(a.is("200") && a.body == "first" && a.has("text/html"), "a file");
  write_file(file, "the second");
  a = get(peer, "/a.html?query");
  expect(a.body == "the second", "a file that has changed is read anew");
  a = get(peer, "/large", "Range: bytes=0-9\r\n");
  expect(
      a.is("200") && a.body.size() == 300'000 && a.has("Accept-Ranges: none"),
      "a large file comes whole, whatever range is wanted");
  peer.write_all("HEAD /large HTTP/1.1\r\n\r\n", 20s);
  a = read_answer(peer, false);
  expect(a.is("200") && a.has("Content-Length: 300000"), "HEAD has no body");
  expect(get(peer, "/nowhere").is("404"), "what is not there is not found");
  for (const char* target : {"/../serving.cpp", "/%2e%2e/x", "/a/../../x"})
    expect(get(peer, target).is("403"), std::string("refused: ") + target);
  peer.write_all(
      "GET /a.html HTTP/1.1\r\n\r\nGET /nowhere HTTP/1.1\r\n\r\n"
      "POST /a.html HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
      "GET /a.html HTTP/1.1\r\nConnection: close\r\n\r\n",
      20s);
  expect(read_answer(peer).is("200"), "the first of four in a row");
  expect(read_answer(peer).is("404"), "the second");
  a = read_answer(peer);
  expect(a.is("405"), "the third, whose body is skipped");
  a = read_answer(peer);
  expect(a.is("200") && a.body == "the second", "the fourth");
  expect(rest(peer).empty(), "after that the connection is closed");

  for (const auto& [text, status] :
       std::vector<std::pair<std::string, std::string>>{
           {"nonsense\r\n\r\n", "400"},
           {"GET a HTTP/1.1\r\n\r\n", "400"},
           {"GET / HTTP/3.7\r\n\r\n", "505"},
           {"GET / HTTP/1.1\r\nno colon\r\n\r\n", "400"},
           {"GET /%zz HTTP/1.1\r\n\r\n", "400"},
           {"GET /%00 HTTP/1.1\r\n\r\n", "400"},
           {"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "400"},
           {"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", "413"},
           {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "501"},
           {"GET /" + std::string(20'000, 'x') + " HTTP/1.1\r\n\r\n", "431"},
           {"GET / HTTP/1.1\r\nX: " + std::string(20'000, 'x'), "431"},
       })
    expect(raw(server, text).rfind("HTTP/1.1 " + status, 0) == 0,
           status + " for " + text.substr(0, 40));

  // Half-open connections, and one who sends a byte now and then: the others
  // keep their service.
  std::vector<bao::tcp_stream> silent;
  for (int i = 0; i < 300; ++i) silent.push_back(server.connect());
  auto slow = server.connect();
  for (char c : "GET /a.html HTTP/1.1\r\n\r\n"s) {
    slow.write_all(std::string(1, c), 20s);
    auto other = server.connect();
    expect(get(other, "/a.html").is("200"), "one is served beside a slow one");
  }
  expect(read_answer(slow).is("200"), "and so is the slow one");
  silent.clear();
  slow.close();
  expect(server.stop() == 0, "http_server ends with 0 on two threads");
  ::unlink(file.c_str());
  ::unlink((root + "/large").c_str());
  ::rmdir(folder);
}

struct guest {
  bao::tcp_stream stream;
  guest(const running& server, const std::string& name)
      : stream(server.connect()) {
    stream.read_line(20s);
    stream.write_all(name + "\n", 20s);
  }
  void say(const std::string& text) { stream.write_all(text + "\n", 20s); }
  // Whether that line comes, after whatever others.
  bool hears(const std::string& text) {
    while (auto line = stream.read_line(20s))
      if (*line == text) return true;
    return false;
  }
};

void chat(const std::string& program) {
  running server({program, "0"});
  guest ann(server, "ann"), bob(server, "bob");
  expect(ann.hears("* bob comes into lobby"), "who is there sees who comes");
  bob.say("hello");
  expect(ann.hears("bob: hello") && bob.hears("bob: hello"), "all hear");
  bob.say("/join kitchen");
  expect(ann.hears("* bob leaves"), "who leaves is seen to");
  expect(bob.hears("* bob comes into kitchen"), "and comes elsewhere");
  ann.say("alone");
  bob.say("/who");
  expect(bob.hears("bob"), "rooms are told apart");
  guest other(server, "ann");
  expect(other.hears("that name cannot be used, or is in use"),
         "a name is used once");
  bob.say(std::string(5000, 'x'));
  expect(bob.hears("that line is too long, good bye"), "a line has a limit");

  // One who never reads is shown the door, and holds up nobody.
  guest deaf(server, "deaf");
  const int small = 4096;
  ::setsockopt(deaf.stream.fd(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  expect(ann.hears("* deaf comes into lobby"), "he comes");
  const std::string text(900, 'y');
  bool gone = false;
  for (int i = 0; i < 100'000 && !gone; ++i) {
    ann.say(text);
    for (std::string line; line != "ann: " + text && !gone;) {
      line = ann.stream.read_line(20s).value_or("* deaf leaves");
      gone = line == "* deaf leaves";
    }
  }
  expect(gone, "and is shown out");
  ann.say("/quit");
  rest(ann.stream);
  expect(server.stop() == 0, "chat_server ends with 0");
}

void prefork(const std::string& program) {
  running server({program, "0", "--processes", "2", "--threads", "2"});
  bao::group clients;
  for (int i = 0; i < 50; ++i)
    clients.spawn([&] {
      auto peer = server.connect();
      peer.write_all("hello", 20s);
      if (peer.read_exactly(5, 20s) != "hello")
        throw std::runtime_error("another echo");
    });
  clients.join();
  expect(server.stop() == 0, "prefork_echo ends with 0");
}

void wait_for(const std::string& program) {
  bao::tcp_listener door("127.0.0.1:0");
  const std::string here = door.local_address().to_string();
  auto there = bao::run({program, here, "--limit", "20"}, 30s);
  expect(there.status == 0, "wait_for meets who is there");
  expect(there.output.find(here + "  answers") == 0, "and says so");
  door.close();
  there = bao::run({program, here, "--limit", "0.2"}, 30s);
  expect(there.status == 1, "wait_for does not wait for ever");
  expect(there.output.find("does not answer") != std::string::npos, "and says");
  expect(bao::run({program}, 30s).status == 2, "for nobody is an error");
  expect(bao::run({program, "x:1", "--limit", "-1"}, 30s).status == 2,
         "a limit is a time");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 3 ? argv[1] : "";
  bao::timeout guard(80s);
  if (what == "http")
    http(argv[2]);
  else if (what == "chat")
    chat(argv[2]);
  else if (what == "prefork")
    prefork(argv[2]);
  else if (what == "wait_for")
    wait_for(argv[2]);
  else
    return 2;
  return untrue;
}
