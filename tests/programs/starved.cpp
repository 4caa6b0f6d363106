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
// What fails is operator new, not malloc(): what the C++ runtime takes for
// itself, for an exception that is thrown say, is not ours to test.
//
//   starved                  all scenes
//   starved tasks memory 3   one, where the third allocation fails and the rest
#include "bao.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <new>
#include <string>
#include <thread>
#include <vector>

using namespace std::literals;

// --- what fails when it is told to -------------------------------------------

namespace {

enum resource { nothing, one_allocation, memory, slabs, guards };
constexpr const char* names[] = {"nothing", "one", "memory", "slabs", "guards"};

std::atomic<resource> scarce{nothing};
std::atomic<long> granted{0};  // so many are left
std::atomic<bool> failed{false};
std::atomic<long> in_use{0};  // allocations that were not given back

bool refused(resource kind) {
  if (scarce != kind || granted-- > 0) return false;
  if (kind == one_allocation) scarce = nothing;
  return failed = true;
}

}  // namespace

void* operator new(std::size_t n) {
  if (refused(one_allocation) || refused(memory)) throw std::bad_alloc();
  void* const p = std::malloc(n);
  if (p == nullptr) throw std::bad_alloc();
  ++in_use;
  return p;
}
void operator delete(void* p) noexcept {
  if (p != nullptr) --in_use;
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept { operator delete(p); }

// These stand before the C library's own.
extern "C" void* mmap(void* p, std::size_t n, int protection, int flags, int fd,
                      off_t offset) noexcept {
  if ((flags & MAP_STACK) != 0 && refused(slabs)) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  return reinterpret_cast<void*>(
      ::syscall(SYS_mmap, p, n, protection, flags, fd, offset));
}
extern "C" int madvise(void* p, std::size_t n, int advice) noexcept {
  constexpr int guard_install = 102;  // MADV_GUARD_INSTALL
  if (advice == guard_install && refused(guards)) return errno = ENOMEM, -1;
  return static_cast<int>(::syscall(SYS_madvise, p, n, advice));
}
extern "C" int mprotect(void* p, std::size_t n, int protection) noexcept {
  if (n == bao::guard_size && refused(guards)) return errno = ENOMEM, -1;
  return static_cast<int>(::syscall(SYS_mprotect, p, n, protection));
}

// --- what the scenes share ---------------------------------------------------

namespace {

const char* wrong = nullptr;  // the first thing that was
#define EXPECT(condition) \
  (!(condition) && wrong == nullptr ? void(wrong = #condition) : void())

std::atomic<int> unasked{0};  // errors that were told to on_unhandled()

constexpr auto soon = 5s;  // nothing takes so long, unless something hangs

// A text that does not fit into a string itself.
std::string lengthy(const char* text) {
  return text + std::string(", and more words than a string has room for");
}
using error = std::logic_error;

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
  ~curtain() {
    if (bao::current_thread == nullptr || bao::current_thread->tasks == nullptr)
      return;
    auto& left = bao::current_thread->tasks->tasks();
    while (!left.empty()) bao::task<>(left.first()).kill();
  }
};

struct joined {
  std::thread thread;
  ~joined() { thread.join(); }
};

bao::task_options named(const char* name) {
  return bao::task_options().name(lengthy(name));
}
void wait_for_ever() {
  bao::this_scheduler().park(bao::never, {"waiting for ever"});
}

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
  EXPECT(g.next() == lengthy("a word"));
  EXPECT(g.send(1) == lengthy("a word"));
  EXPECT(g.send(2) == std::nullopt);
  EXPECT(g.result() == lengthy("all words") + "3");

  bao::generator<std::string, int> outer([](auto& yield) {
    const std::string r = yield.from(words(1));
    try {
      yield(r);
    } catch (const error& e) {
      yield(e.what());
    }
  });
  EXPECT(outer.next() == lengthy("a word"));
  EXPECT(outer.next() == lengthy("all words") + "0");
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
  const auto back = [](std::string s) {
    return bao::main_coroutine<std::string>().switch_to(s);
  };
  talk ping, pong;
  ping = talk([&](std::string s) {
    while (s.size() < 200) s = pong.switch_to(s + lengthy("ping"));
    return s;
  });
  pong = talk([&](std::string s) {
    for (;;) s = ping.switch_to(s + lengthy("pong"));
  });
  EXPECT(ping.switch_to("").size() >= 200);
  EXPECT(ping.dead());

  talk parent([](std::string s) { return s + lengthy("parent"); });
  talk child([](std::string s) { return s + lengthy("child"); }, parent);
  EXPECT(child.switch_to("") == lengthy("child") + lengthy("parent"));

  talk catches([back](std::string s) {
    try {
      return back(s);
    } catch (const error& e) {
      throw error(e.what() + lengthy("caught"));
    }
  });
  catches.switch_to("");
  try {
    catches.throw_in(error(lengthy("thrown")));
    EXPECT(false);
  } catch (const error& e) {
    EXPECT(e.what() == lengthy("thrown") + lengthy("caught"));
  }
  talk waits(back), destroyed(back);
  waits.switch_to("");
  waits.kill();
  EXPECT(waits.dead());
  destroyed.switch_to("");
}

void tasks() {
  bao::virtual_time clock;
  auto first = bao::spawn(
      named("first"), [](const std::string& a, int n) { return a + char(n); },
      lengthy("argument"), 'x');
  bool told = false;
  const curtain falls;
  first.on_done(
      [&told, kept = lengthy("kept")](auto done) { told = done.ok(); });
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
  auto hears = bao::spawn([] {
    try {
      wait_for_ever();
    } catch (const error& e) {
      return std::string(e.what());
    }
    return ""s;
  });
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
  std::vector<bao::task<>> all;
  for (int i = 0; i < 2; ++i)
    all.push_back(bao::spawn([] {
      for (auto& s : bao::generator<std::string>([](auto& yield) {
             const std::string local = lengthy("local");
             yield(local);
             wait_for_ever();
           }))
        EXPECT(s == lengthy("local"));
    }));
  bao::yield();
  EXPECT(bao::kill_all(all, 1h));
  try {
    all[0].get();
    EXPECT(false);
  } catch (const bao::task_killed&) {
  }
  // One that swallows its kill is named, and killed again.
  auto stubborn = bao::spawn(named("stubborn"), [] {
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
  bao::spawn(named("careless"), [] { throw error(lengthy("a task's")); });
  bao::yield();
  bao::spawn([] {}).on_done([](auto) { throw error(lengthy("a call's")); });
  bao::yield();
  bao::coroutine<> c([] {
    try {
      bao::main_coroutine().switch_to();
    } catch (const bao::killed&) {
      throw error(lengthy("a coroutine's"));
    }
  });
  c.switch_to();
  bao::generator<int> g([](auto& yield) {
    try {
      yield(1);
    } catch (const bao::killed&) {
      throw error(lengthy("a generator's"));
    }
  });
  g.next();
}

// It names all tasks, unless there is no memory for that.
void deadlocks() {
  auto waits = bao::spawn(named("waits"), wait_for_ever);
  try {
    waits.get();
    EXPECT(false);
  } catch (const bao::deadlock& e) {
    EXPECT(failed || std::strstr(e.what(), "waiting for ever") != nullptr);
  }
  EXPECT(waits.kill());
}

void helpers() {
  EXPECT(bao::offload([](auto s) { return s + lengthy("done"); }, "x"s) ==
         "x" + lengthy("done"));
  try {
    bao::offload([] { throw error(lengthy("error")); });
    EXPECT(false);
  } catch (const error& e) {
    EXPECT(e.what() == lengthy("error"));
  }
  EXPECT(bao::resolve("127.0.0.1", "80").at(0).to_string() == "127.0.0.1:80");
  const auto ask = [] {  // what only the system knows; there may be no answer
    try {
      EXPECT(!bao::resolve("127.0.0.1", "http-or-another-service").empty());
    } catch (const std::runtime_error& e) {
      EXPECT(std::strstr(e.what(), "resolve: 127.0.0.1:http") == e.what());
    }
  };
  ask();
  auto leaves = bao::spawn(ask);  // and the helper alone
  bao::yield();
  EXPECT(leaves.kill());
}

void streams() {
  auto [near, far] = bao::socket_pair();
  auto echo = bao::spawn([peer = std::move(far)]() mutable {
    while (auto line = peer.read_line(soon))
      peer.write_all(*line + " echoed\n", soon);
    peer.write_all(lengthy("the end"), soon);
  });
  for (int i = 0; i < 3; ++i) {
    near.writev({lengthy("line"), "\n"}, soon);
    EXPECT(near.read_line(soon) == lengthy("line") + " echoed");
  }
  near.write_all(lengthy("x") + '\n', soon);
  EXPECT(near.read_exactly(10, soon) == "x, and mor");
  EXPECT(near.read_until("for ", 1000, soon) ==
         "e words than a string has room ");
  near.shutdown_write();
  EXPECT(near.read_all(1000, soon) == "echoed\n" + lengthy("the end"));
  echo.get();

  // One end is closed while somebody reads there.
  auto [one, other] = bao::socket_pair();
  const curtain falls;
  auto reader = bao::spawn([&peer = one] {
    try {
      peer.read_some(10, soon);
      EXPECT(false);
    } catch (const std::system_error& e) {
      EXPECT(e.code() == std::errc::bad_file_descriptor);
    }
  });
  bao::yield();
  one.close();
  reader.get();
}

// Whoever fails closes its end, of which the other one hears.
template <class Listener, class Connect>
void serve_and_ask(Listener listener, Connect connect) {
  const bao::address place = listener.local_address();
  auto server = bao::spawn([door = std::move(listener)]() mutable {
    for (auto& peer : door) {
      bao::spawn([p = std::move(peer)]() mutable {
        p.write_all(p.read_line(soon).value_or("") + '\n', soon);
      }).get();
      door.close();
    }
  });
  auto client = bao::spawn([connect, place] {
    auto peer = connect(place);
    peer.write_all(lengthy("question") + '\n', soon);
    EXPECT(peer.read_line(soon) == lengthy("question"));
  });
  client.join();
  if (!client.ok()) server.kill();  // it may not have come
  client.get();
  server.get();
}

void sockets() {
  serve_and_ask(bao::tcp_listener("127.0.0.1:0"), [](const bao::address& to) {
    return bao::connect(to.to_string(), soon);
  });
  const std::string name = "unix:@bao-starved-" + std::to_string(::getpid());
  serve_and_ask(bao::unix_listener(name), [](const bao::address& to) {
    return bao::connect_unix(to, soon);
  });
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

void files() {
  char path[] = "/tmp/bao-starved-XXXXXX";
  bao::stream file(bao::check(::mkostemp(path, O_CLOEXEC), "mkostemp"));
  ::unlink(path);
  file.write_all(lengthy("first") + '\n' + lengthy("second"), soon);
  ::lseek(file.fd(), 0, SEEK_SET);
  EXPECT(file.read_line(soon) == lengthy("first"));
  EXPECT(file.read_all(1000, soon) == lengthy("second"));
}

void pipes_and_signals() {
  int ends[2];
  bao::check(::pipe2(ends, O_CLOEXEC), "pipe");
  const bao::descriptor in(ends[0]), out(ends[1]);
  const curtain falls;
  auto waits =
      bao::spawn([&] { EXPECT(bao::wait_fd(in.fd(), bao::readable, soon)); });
  bao::yield();
  EXPECT(::write(out.fd(), "x", 1) == 1);
  waits.get();
  auto hears = bao::spawn([] { return bao::wait_signal({SIGUSR1}, soon); });
  bao::yield();
  ::raise(SIGUSR1);
  EXPECT(hears.get() == SIGUSR1);
}

// Each message that was sent arrives, though there may be no stack to act on it.
void messages() {
  int sent = 0, arrived = 0;
  unasked = 0;
  const curtain falls;
  bao::remote home = bao::this_scheduler().remote();
  std::exception_ptr trouble;
  {
    const joined other{std::thread([&, home]() mutable {
      try {
        for (; sent < 3; ++sent)
          home.post([&arrived, text = lengthy("text")] { ++arrived; });
      } catch (...) {
        trouble = std::current_exception();
      }
    })};
  }
  for (int i = 0; i < 3; ++i) bao::sleep(1ms);
  EXPECT(arrived + unasked == sent);
  if (trouble != nullptr) std::rethrow_exception(trouble);
}

// What another thread has let go of is unwound here, and may wait.
void releases() {
  bao::coroutine<> c([] {
    const lingers at_end;
    bao::main_coroutine().switch_to();
  });
  bao::yield();
  c.switch_to();
  {
    const joined other{std::thread([gone = std::move(c)] {})};
  }
  bao::sleep(1ms);
}

// Tasks that own what has to be unwound: what they were given, or return.
void owners() {
  bao::yield();
  const auto begun = [] {
    bao::generator<int> g([](auto& yield) {
      const lingers at_end;
      yield(1);
      yield(2);
    });
    EXPECT(g.next() == 1);
    return g;
  };
  for (int i = 0; i < 3; ++i) {
    bao::spawn([] {});  // its end is where the next one would begin
    auto t = bao::spawn([held = begun()] { bao::yield(); });
    t.on_done([held = words(3)](auto) mutable { EXPECT(held.next()); });
    bao::spawn([held = begun()]() mutable { return std::move(held); });
  }
  bao::join_all();
}

// What works after every scene, whatever has happened there.
void afterwards() {
  auto [near, far] = bao::socket_pair();
  auto reads =
      bao::spawn([&peer = near] { return peer.read_exactly(1, soon); });
  bao::yield();
  auto g = words(1);
  EXPECT(g.next() == lengthy("a word"));
  bao::remote home = bao::this_scheduler().remote();
  EXPECT(home.post([&peer = far] { peer.write_all("x"); }));
  EXPECT(reads.get() == "x");
  auto waits = bao::spawn(wait_for_ever);
  bao::yield();
  EXPECT(waits.kill());
  for (int i = 0; i < 1000 && lingers::gone < lingers::made; ++i)
    bao::sleep(1ms);
  EXPECT(lingers::gone == lingers::made);
}

struct {
  const char* name;
  void (*play)();
  long keeps = 0;       // what is made once in the life of the process:
  long keeps_open = 0;  // allocations, and descriptors
} const scenes[] = {
    {"generators", generators},
    {"pipelines", pipelines},
    {"coroutines", coroutines},
    {"tasks", tasks},
    {"limits_and_kills", limits_and_kills},
    {"unasked_errors", unasked_errors},
    {"deadlocks", deadlocks},
    {"helpers", helpers, 1},  // who they are
    {"streams", streams},
    {"sockets", sockets},
    {"files", files, 1},
    {"pipes_and_signals", pipes_and_signals, 1, 1},  // a bell
    {"messages", messages},
    {"releases", releases},
    {"owners", owners},
};

// --- the stage ---------------------------------------------------------------

char playing[100] = "";  // which scene, what is scarce, how much there is of it
int faults = 0;

void complain(const std::string& what) {
  std::printf("%s: %s\n", playing, what.c_str());
  ++faults;
}

long open_descriptors() {
  long n = 0;
  for (int fd = 0; fd < 100; ++fd) n += ::fcntl(fd, F_GETFD) != -1;
  return n;
}

// What a scene may end with: no memory, or what that has led to.
bool to_be_expected(const std::exception_ptr& e) {
  const std::string text = bao::describe(e);
  return text.find("std::bad_alloc") == 0 || text.find("bao::") == 0 ||
         text.find("std::system_error") == 0;
}

// Plays a scene once, where the n-th allocation, slab or guard fails. False
// when there was none to fail.
template <class Scene>
bool play(const Scene& scene, resource kind, long n, long& kept,
          long& kept_open) {
  std::snprintf(playing, sizeof playing, "%s %s %ld", scene.name, names[kind],
                n);
  ::alarm(20);
  failed = false;
  wrong = nullptr;
  const long before = in_use, open_before = open_descriptors();
  std::thread([&] {
    std::exception_ptr trouble;
    granted = n - 1;
    scarce = kind;
    try {
      scene.play();
    } catch (...) {
      trouble = std::current_exception();
    }
    if (trouble == nullptr && !failed) return;  // the end of the thread is left
    scarce = nothing;
    if (trouble != nullptr) wrong = nullptr;  // that is the result
    if (trouble != nullptr && (!failed || !to_be_expected(trouble)))
      complain("ended with " + bao::describe(trouble));
    afterwards();
  }).join();
  scarce = nothing;
  if (wrong != nullptr) complain("not so: "s + wrong);

  // A helper thread may be about to throw its job away.
  const auto left = [&] { return kept + in_use - before; };
  for (int i = 0; i < 500 && left() > scene.keeps; ++i) ::usleep(1000);
  kept = left();
  kept_open += open_descriptors() - open_before;
  if (kept < 0 || kept > scene.keeps)
    complain(std::to_string(kept) + " allocations are left");
  if (kept_open < 0 || kept_open > scene.keeps_open)
    complain(std::to_string(kept_open) + " descriptors are left");
  return failed;
}

// Wherever it is met.
void name_the_end(int signal) {
  char line[200];
  const int n = std::snprintf(line, sizeof line, "starved %s: %s\n", playing,
                              ::strsignal(signal));
  if (::write(2, line, static_cast<std::size_t>(n)) != n) ::_exit(3);
  ::_exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  for (int signal : {SIGALRM, SIGSEGV, SIGABRT}) ::signal(signal, name_the_end);
  ::signal(SIGUSR1, SIG_IGN);  // until somebody waits for it
  bao::on_unhandled([](const char* whose, const std::exception_ptr& e) {
    ++unasked;
    bao::print_unhandled(whose, e);
  });
  std::thread([] { bao::spawn([] {}).join(); }).join();

  for (const auto& scene : scenes) {
    if (argc > 1 && std::strcmp(argv[1], scene.name) != 0) continue;
    long kept = 0, kept_open = 0;
    for (resource kind : {one_allocation, memory, slabs, guards}) {
      if (argc > 2 && std::strcmp(argv[2], names[kind]) != 0) continue;
      long n = argc > 3 ? std::atol(argv[3]) : 1;
      while (play(scene, kind, n, kept, kept_open) && argc <= 3) ++n;
      std::printf("%s, %s: %ld\n", scene.name, names[kind], n - 1);
    }
  }
  return faults == 0 ? 0 : 1;
}
