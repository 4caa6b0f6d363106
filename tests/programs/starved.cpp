// starved.cpp - no memory at one moment, or no further stack from then on
//
// Each scene below goes through some chapters of the library, and is played
// over and over: at first its first allocation fails, the next time the second,
// and so on until there is none left that could. Then the same, but from there
// on all fail. Then there is no memory for stacks; then no guard for any, for
// all but one, for all but two ...
//
// A scene may end with an exception, or as if nothing had happened: never with
// a wrong result, a crash or a hang. It leaves neither memory nor descriptors
// behind, and a scheduler that works. It is played on a thread of its own, so
// that what threads keep is made, and given back, as well.
//
//   starved         all scenes
//   starved tasks   that one
#include "bao.hpp"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "scarce.hpp"

using namespace std::literals;

// --- what the scenes share ---------------------------------------------------

namespace {

const char* wrong = nullptr;  // the first thing that was
#define EXPECT(condition) \
  (!(condition) && wrong == nullptr ? void(wrong = #condition) : void())

std::atomic<int> unasked{0};  // errors that were told to on_unhandled()

constexpr auto soon = 5s;  // nothing takes so long, unless something hangs

// A text that does not fit into a string itself.
std::string lengthy(const char* text) {
  return text + ", and more words than a string has room for"s;
}

using error = std::logic_error;

// What the E says that f() throws.
template <class E, class F>
std::string said(F f) {
  try {
    f();
  } catch (const E& e) {
    return e.what();
  }
  return "";
}

void wait_for_ever() {
  bao::this_scheduler().park(bao::never, {"waiting for ever"});
}

// Waits where it ends.
struct lingers {
  static inline int made = 0, gone = 0;
  lingers() { ++made; }
  lingers(const lingers&) = delete;
  ~lingers() {
    const bao::shield peace;
    bao::sleep(1ms);
    ++gone;
  }
};

// Ends the tasks that refer to what comes before it in a scene.
struct curtain {
  bao::scheduler& s = bao::this_scheduler();
  ~curtain() {
    while (auto* left = s.tasks().first()) bao::task<>(left).kill();
  }
};

// --- the scenes --------------------------------------------------------------

bao::generator<std::string, int, std::string> words(int n) {
  return [n](auto& yield) {
    int sum = 0;
    for (int i = 0; i < n; ++i) sum += yield(lengthy("a word"));
    return lengthy("all words") + std::to_string(sum);
  };
}

void generators() {
  auto g = words(2);
  g.next();
  EXPECT(g.send(1) == lengthy("a word"));
  EXPECT(g.send(2) == std::nullopt);
  EXPECT(g.result() == lengthy("all words") + "3");

  bao::generator<std::string, int> outer([](auto& yield) {
    yield.from(words(1));
    yield(said<error>([&] { yield(lengthy("before")); }));
  });
  EXPECT(outer.next() == lengthy("a word"));
  EXPECT(outer.next() == lengthy("before"));
  EXPECT(outer.throw_in(error(lengthy("thrown"))) == lengthy("thrown"));
  EXPECT(outer.next() == std::nullopt);

  auto closed = words(3), destroyed = words(3);
  closed.next();
  closed.close();
  destroyed.next();
}

void pipelines() {
  auto two = bao::from(std::vector<std::string>{lengthy("a"), lengthy("b")});
  const auto text =
      bao::from(std::vector<int>{1, 2, 3, 4}) | bao::drop(1) |
      bao::filter([](int n) { return n % 2 == 0; }) |
      bao::map([](int n) { return lengthy("n") + std::to_string(n); }) |
      bao::chain(std::move(two)) | bao::take(3) | bao::chunk(2) |
      bao::flatten() | bao::stage<std::string>([](auto& in, auto& yield) {
        for (auto& s : in) yield(s + '.');
      }) |
      bao::zip(words(5)) | bao::map([](auto pair) { return pair.first; }) |
      bao::to<std::vector>();
  EXPECT(text.size() == 3 && text.back() == lengthy("a") + '.');
}

void coroutines() {
  using talk = bao::coroutine<std::string>;
  talk ping, pong;
  ping = talk([&](std::string s) {
    while (s.size() < 200) s = pong.switch_to(s + lengthy("ping"));
    return s;
  });
  pong = talk([&](std::string s) {
    for (;;) s = ping.switch_to(s + lengthy("pong"));
  });
  EXPECT(ping.switch_to("").size() >= 200);

  talk parent([](std::string s) { return s + lengthy("parent"); });
  talk child([](std::string s) { return s + lengthy("child"); }, parent);
  EXPECT(child.switch_to("") == lengthy("child") + lengthy("parent"));

  const auto back = [](std::string s) {
    return bao::main_coroutine<std::string>().switch_to(s);
  };
  talk throws(back), killed(back), destroyed(back);
  for (talk* each : {&throws, &killed, &destroyed}) each->switch_to("");
  const error thrown(lengthy("thrown"));
  EXPECT(said<error>([&] { throws.throw_in(thrown); }) == thrown.what());
  killed.kill();
}

void tasks() {
  bao::virtual_time clock;
  auto options = bao::task_options().name(lengthy("first"));
  auto first = bao::spawn(
      options, [](const std::string& a, char c) { return a + c; },
      lengthy("argument"), 'x');
  bool told = false;
  const curtain falls;
  first.on_done([&told, kept = lengthy("kept")](auto t) { told = t.ok(); });
  EXPECT(first.get() == lengthy("argument") + 'x');
  EXPECT(told);

  std::vector<bao::task<std::string>> all;
  for (int i = 0; i < 4; ++i)
    all.push_back(bao::spawn_later(std::chrono::hours(4 - i), [i] {
      bao::sleep(1min);
      return lengthy("task") + std::to_string(i);
    }));
  EXPECT(bao::join_any(all) == 3u);
  std::string order;
  for (auto& done : bao::as_completed(all)) order += done.get().back();
  EXPECT(order == "3210");

  auto fails = bao::spawn([] { throw error(lengthy("error")); });
  EXPECT(fails.join() && !fails.ok());
  auto hears = bao::spawn([] { return said<error>(wait_for_ever); });
  bao::yield();
  hears.throw_in(error(lengthy("thrown")));
  EXPECT(hears.get() == lengthy("thrown"));
  bao::join_all();
}

void limits_and_kills() {
  bao::virtual_time clock;
  const auto slow = [] { return bao::sleep(1h), lengthy("slow"); };
  EXPECT(!bao::with_timeout(1s, slow));
  EXPECT(bao::with_timeout(2h, slow) == lengthy("slow"));
  auto inner = bao::spawn([] {
    bao::generator<int> g(
        [local = lengthy("local")](auto&) { wait_for_ever(); });
    g.next();
  });
  bao::yield();
  EXPECT(bao::kill_all(std::vector<bao::task<>>{inner}, 1h));
  EXPECT(said<bao::task_killed>([&] { inner.get(); }) != "");
  // One that swallows its kill is named, and killed again.
  auto stubborn = bao::spawn([] {
    try {
      wait_for_ever();
    } catch (const bao::killed&) {
    }
    wait_for_ever();
  });
  bao::yield();
  EXPECT(stubborn.kill());
  // Two are left when the thread ends: one has begun.
  bao::spawn([kept = lengthy("kept")] { wait_for_ever(); });
  bao::yield();
  bao::spawn_later(24h, [kept = lengthy("kept")] {});
}

// Nobody asks for these: they are told to on_unhandled().
void unasked_errors() {
  const auto ends_badly = [](auto wait) {
    try {
      wait();
    } catch (const bao::killed&) {
    }
    throw error(lengthy("error"));
  };
  bao::spawn(ends_badly, [] {});
  bao::spawn([] {}).on_done([=](auto) { ends_badly([] {}); });
  bao::yield();
  bao::coroutine<> c(
      [=] { ends_badly([] { bao::main_coroutine().switch_to(); }); });
  bao::generator<int> g([=](auto& yield) { ends_badly([&] { yield(1); }); });
  c.switch_to();
  g.next();
}

// It names all tasks, unless there is no memory for that.
void deadlocks() {
  auto waits = bao::spawn(wait_for_ever);
  const auto text = said<bao::deadlock>([&] { waits.get(); });
  EXPECT(text.find("waiting for ever") != text.npos || (failed && text != ""));
  EXPECT(waits.kill());
}

void helpers() {
  const auto r = bao::offload([](auto s) { return s + lengthy("done"); }, "x"s);
  EXPECT(r == "x" + lengthy("done"));
  const auto fails = [] { throw error(lengthy("error")); };
  EXPECT(said<error>([&] { bao::offload(fails); }) == lengthy("error"));
  EXPECT(bao::resolve("127.0.0.1", "80").at(0).to_string() == "127.0.0.1:80");
  // What only the system knows is asked by a helper. There may be no answer.
  const auto ask = [] { bao::resolve("127.0.0.1", "http-or-another-one"); };
  said<std::runtime_error>(ask);
  auto leaves = bao::spawn(ask);  // and the helper alone
  bao::yield();
  EXPECT(leaves.kill());
}

// A line is never lost: it can be read again, or there is nothing more to read.
std::string line_of(bao::stream& s) {
  try {
    if (auto line = s.read_line(soon)) return std::move(*line);
  } catch (const std::bad_alloc&) {
    if (!s) throw;
  }
  if (auto line = s.read_line(soon)) return std::move(*line);
  throw bao::end_of_stream("the other one has failed");
}

void streams() {
  auto [near, far] = bao::socket_pair();
  auto echo = bao::spawn([peer = std::move(far)]() mutable {
    while (auto line = peer.read_line(2 * soon))
      peer.write_all(*line + " echoed\n", soon);
    peer.write_all(lengthy("the end"), soon);
  });
  near.writev({lengthy("line"), "\n"}, soon);
  EXPECT(line_of(near) == lengthy("line") + " echoed");
  near.write_all(lengthy("x") + '\n', soon);
  EXPECT(near.read_exactly(17, soon) == "x, and more words");
  EXPECT(near.read_until("for ", 1000, soon) == " than a string has room ");
  near.shutdown_write();
  const std::string rest = "echoed\n" + lengthy("the end");
  EXPECT(near.read_exactly(rest.size(), soon) == rest);
  echo.get();

  // One end is closed while somebody reads there.
  auto [one, other] = bao::socket_pair();
  const curtain falls;
  auto reader = bao::spawn([&peer = one] { peer.read_some(10, soon); });
  bao::yield();
  one.close();
  EXPECT(said<std::system_error>([&] { reader.get(); }) != "");

  char path[] = "/tmp/bao-starved-XXXXXX";
  bao::stream file(bao::check(::mkostemp(path, O_CLOEXEC), "mkostemp"));
  ::unlink(path);
  file.write_all(lengthy("first") + '\n' + lengthy("second"), soon);
  ::lseek(file.fd(), 0, SEEK_SET);
  EXPECT(line_of(file) == lengthy("first"));
  EXPECT(file.read_all(1000, soon) == lengthy("second"));
}

// Whoever fails closes its end, of which the other one hears.
void sockets() {
  bao::tcp_listener door("127.0.0.1:0");
  const bao::address place = door.local_address();
  auto server = bao::spawn([d = std::move(door)]() mutable {
    for (auto& peer : d) {
      bao::spawn([p = std::move(peer)]() mutable {
        p.write_all(line_of(p) + '\n', soon);
      }).get();
      d.close();
    }
  });
  auto client = bao::spawn([place] {
    auto peer = bao::connect(place.to_string(), soon);
    peer.write_all(lengthy("question") + '\n', soon);
    EXPECT(line_of(peer) == lengthy("question"));
  });
  client.join();
  if (!client.ok()) server.kill();  // it may not have come
  client.get();
  server.get();

  bao::udp_socket a("127.0.0.1:0"), b("127.0.0.1:0");
  const curtain falls;
  auto answers = bao::spawn([&] {
    const auto question = b.receive_from(1000, soon);
    b.send_to(question.data + lengthy("answer"), question.from, soon);
  });
  bao::yield();
  a.send_to("to ", b.local_address(), soon);
  answers.get();
  EXPECT(a.receive_from(1000, soon).data == "to " + lengthy("answer"));
}

void pipes_and_signals() {
  int ends[2];
  bao::check(::pipe2(ends, O_CLOEXEC), "pipe");
  const bao::descriptor in(ends[0]), out(ends[1]);
  const curtain falls;
  auto waits = bao::spawn(bao::wait_fd, in.fd(), bao::readable, soon);
  auto hears = bao::spawn([] { return bao::wait_signal({SIGUSR1}, soon); });
  bao::yield();
  EXPECT(::write(out.fd(), "x", 1) == 1);
  ::raise(SIGUSR1);
  EXPECT(waits.get() == bao::readable);
  EXPECT(hears.get() == SIGUSR1);
}

// Each message arrives that could be sent, though there may be no stack then.
// Those that tasks and other threads have in common.
void locks() {
#if defined(BAO_HAS_HOOK_SYNC)
  namespace hook = bao::hook;
  pthread_mutex_t door = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t told = PTHREAD_COND_INITIALIZER;
  int turn = 0;
  const auto take_turns = [&](int mine) {
    hook::pthread_mutex_lock(&door);
    for (; mine < 6; mine += 2) {
      while (turn != mine) hook::pthread_cond_wait(&told, &door);
      ++turn;
      hook::pthread_cond_broadcast(&told);
    }
    hook::pthread_mutex_unlock(&door);
  };
  std::thread other(take_turns, 1);
  take_turns(0);
  other.join();
  EXPECT(turn == 6);
#endif
}

void messages() {
  int sent = 0, arrived = 0;
  unasked = 0;
  const curtain falls;
  bao::remote home = bao::this_scheduler().remote();
  const auto send = [&] {
    for (; sent < 3; ++sent)
      home.post([&arrived, text = lengthy("text")] { ++arrived; });
  };
  std::thread([&] { said<std::bad_alloc>(send); }).join();
  for (int i = 0; i < 3; ++i) bao::sleep(1ms);
  EXPECT(arrived + unasked == sent);
}

// What another thread has let go of is unwound here, and may wait.
void releases() {
  bao::yield();
  bao::coroutine<> c([] {
    const lingers at_end;
    bao::main_coroutine().switch_to();
  });
  c.switch_to();
  std::thread([&c] { const bao::coroutine<> gone(std::move(c)); }).join();
  bao::sleep(1ms);
}

// Tasks that own what has to be unwound: what they were given, or return.
void owners() {
  bao::yield();
  const auto begun = [] {
    bao::generator<int> g([](auto& yield) {
      const lingers at_end;
      yield(1);
    });
    EXPECT(g.next() == 1);
    return g;
  };
  for (int i = 0; i < 3; ++i) {
    bao::spawn([] {});  // its end is where the next one would begin
    auto t = bao::spawn([held = begun()] { bao::yield(); });
    t.on_done([held = words(3)](auto) mutable { held.next(); });
    bao::spawn([held = begun()]() mutable { return std::move(held); });
  }
  bao::join_all();
}

// What works after every scene, whatever has happened there.
void afterwards() {
  auto [near, far] = bao::socket_pair();
  auto reads = bao::spawn([&p = near] { return p.read_exactly(1, soon); });
  auto waits = bao::spawn(wait_for_ever);
  bao::yield();
  bao::remote home = bao::this_scheduler().remote();
  EXPECT(home.post([&p = far] { p.write_all("x"); }));
  EXPECT(reads.get() == "x");
  EXPECT(waits.kill());
  EXPECT(words(1).next() == lengthy("a word"));
  for (int i = 0; i < 1000 && lingers::gone < lingers::made; ++i)
    bao::sleep(1ms);
  EXPECT(lingers::gone == lingers::made);
}

struct scene {
  const char* name;
  void (*play)();
} constexpr scenes[] = {
    {"generators", generators},
    {"pipelines", pipelines},
    {"coroutines", coroutines},
    {"tasks", tasks},
    {"limits_and_kills", limits_and_kills},
    {"unasked_errors", unasked_errors},
    {"deadlocks", deadlocks},
    {"helpers", helpers},
    {"streams", streams},
    {"sockets", sockets},
    {"pipes_and_signals", pipes_and_signals},
    {"messages", messages},
    {"locks", locks},
    {"releases", releases},
    {"owners", owners},
};

// --- the stage ---------------------------------------------------------------

int faults = 0;

void complain(const std::string& what) {
  std::printf("  %s\n", what.c_str());
  ++faults;
}

// There was no memory, or this is what that has led to; but nobody has waited.
bool to_be_expected(const std::string& text) {
  return text.find("std::bad_alloc") == 0 || text.find("bao::") == 0 ||
         (text.find("std::system_error") == 0 &&
          text.find("timed out") == text.npos);
}

// On a thread of its own: plays, looks what came of it, and goes on.
void play_and_see(const scene& s) {
  std::exception_ptr trouble;
  try {
    s.play();
  } catch (...) {
    trouble = std::current_exception();
  }
  if (trouble == nullptr && !failed) return;  // the end of the thread is left
  scarce = nothing;
  if (trouble != nullptr) {
    const std::string text = bao::describe(trouble);
    if (!failed || !to_be_expected(text)) complain("it ended with " + text);
  }
  afterwards();
}

long open_descriptors() {
  long n = 0;
  for (int fd = 0; fd < 100; ++fd) n += ::fcntl(fd, F_GETFD) != -1;
  return n;
}

// False when there was nothing that could fail: it was played to the end.
bool play(const scene& s, resource kind, long n) {
  std::printf("%s %s %ld\n", s.name, names[kind], n);
  ::alarm(20);
  static const long used = in_use, open = open_descriptors();
  constexpr long made_once = 2;  // who the helpers are, and a bell for signals
  failed = false;
  wrong = nullptr;
  granted = n - 1;
  std::thread([&s, kind] {
    scarce = kind;
    play_and_see(s);
  }).join();
  scarce = nothing;
  if (wrong != nullptr) complain("not so: "s + wrong);
  // A helper thread may be about to throw its job away.
  const auto left = [] { return in_use - used; };
  for (int i = 0; i < 500 && left() > made_once; ++i) ::usleep(1000);
  if (left() < 0 || left() > made_once)
    complain(std::to_string(left()) + " allocations are left");
  if (open_descriptors() - open > 1) complain("descriptors are left open");
  return failed;
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IONBF, 0);
  ::signal(SIGUSR1, SIG_IGN);  // until somebody waits for it
  bao::on_unhandled([](const char* whose, const std::exception_ptr& e) {
    ++unasked;
    bao::print_unhandled(whose, e);
  });
  std::thread([] { bao::spawn([] {}).join(); }).join();

  for (const scene& s : scenes)
    for (resource kind : {one_allocation, memory, slabs, guards}) {
      if (argc > 1 && std::strcmp(argv[1], s.name) != 0) continue;
      for (long n = 1; play(s, kind, n);) ++n;
    }
  return faults == 0 ? 0 : 1;
}
