// starved.cpp - no memory at one moment, or no further stack from then on
//
// Each scene below goes through some chapters of the library. It is played over
// and over: at first the first allocation fails, the next time the second, and
// so on until nothing is left that could fail. Then the same with the stacks:
// there is none at all, then only one, then two ...
//
// A scene may end with an exception, or as if nothing had happened: never with
// a wrong result, a crash or a hang. It leaves neither memory nor descriptors
// behind, and a scheduler that works. Each time it is played on a thread of its
// own, so that what threads keep is made, and given back, as well.
//
//     starved                     all scenes; says what goes wrong
//     starved tasks allocations 3     one scene, where the third one fails
//
#include "bao.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

using namespace std::literals;

// --- what fails when it is told to -------------------------------------------

namespace {

// How many are still granted, the one that fails included; 0: all are.
using allowance = std::atomic<long>;
allowance allocations{0};  // one fails, those after it do not
allowance memory{0};       // one fails, and so do those after it
allowance slabs{0};
allowance stacks{0};
std::atomic<bool> failed{false};
std::atomic<long> in_use{0};  // allocations that were not given back

bool refused(allowance& left) {
  if (left.load() == 0) return false;
  if (left.load() > 1) return --left, false;
  return failed = true;
}

void* allocate(std::size_t size, std::size_t alignment) noexcept {
  if (refused(memory)) return nullptr;
  if (refused(allocations)) return allocations = 0, nullptr;
  size = (size + alignment) / alignment * alignment;
  void* const p = std::aligned_alloc(alignment, size);
  if (p != nullptr) ++in_use;
  return p;
}
void* allocate_or_throw(std::size_t size, std::size_t alignment) {
  void* const p = allocate(size, alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void give_back(void* p) noexcept {
  if (p != nullptr) --in_use;
  std::free(p);
}

constexpr std::size_t usual = __STDCPP_DEFAULT_NEW_ALIGNMENT__;
constexpr std::size_t bytes(std::align_val_t a) {
  return static_cast<std::size_t>(a);
}

// To guard a stack may take more than one call.
std::atomic<void*> last_guard{nullptr};
std::atomic<bool> last_was_refused{false};

bool guard_refused(void* p, std::size_t size) {
  if (size != bao::guard_size) return false;
  if (last_guard.exchange(p) != p) last_was_refused = refused(stacks);
  return last_was_refused;
}

}  // namespace

using alignment = std::align_val_t;
using quiet = std::nothrow_t;

void* operator new(std::size_t n) { return allocate_or_throw(n, usual); }
void* operator new[](std::size_t n) { return allocate_or_throw(n, usual); }
void* operator new(std::size_t n, alignment a) {
  return allocate_or_throw(n, bytes(a));
}
void* operator new[](std::size_t n, alignment a) {
  return allocate_or_throw(n, bytes(a));
}
void* operator new(std::size_t n, const quiet&) noexcept {
  return allocate(n, usual);
}
void* operator new[](std::size_t n, const quiet&) noexcept {
  return allocate(n, usual);
}
void* operator new(std::size_t n, alignment a, const quiet&) noexcept {
  return allocate(n, bytes(a));
}
void* operator new[](std::size_t n, alignment a, const quiet&) noexcept {
  return allocate(n, bytes(a));
}

void operator delete(void* p) noexcept { give_back(p); }
void operator delete[](void* p) noexcept { give_back(p); }
void operator delete(void* p, std::size_t) noexcept { give_back(p); }
void operator delete[](void* p, std::size_t) noexcept { give_back(p); }
void operator delete(void* p, alignment) noexcept { give_back(p); }
void operator delete[](void* p, alignment) noexcept { give_back(p); }
void operator delete(void* p, std::size_t, alignment) noexcept { give_back(p); }
void operator delete[](void* p, std::size_t, alignment) noexcept {
  give_back(p);
}
void operator delete(void* p, const quiet&) noexcept { give_back(p); }
void operator delete[](void* p, const quiet&) noexcept { give_back(p); }
void operator delete(void* p, alignment, const quiet&) noexcept {
  give_back(p);
}
void operator delete[](void* p, alignment, const quiet&) noexcept {
  give_back(p);
}

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
  if (advice == guard_install && guard_refused(p, n)) return errno = ENOMEM, -1;
  return static_cast<int>(::syscall(SYS_madvise, p, n, advice));
}
extern "C" int mprotect(void* p, std::size_t n, int protection) noexcept {
  if (protection == PROT_NONE && guard_refused(p, n)) return errno = ENOMEM, -1;
  return static_cast<int>(::syscall(SYS_mprotect, p, n, protection));
}

// --- scenes ------------------------------------------------------------------

namespace {

struct axis {
  const char* name;
  allowance& granted;
};
const axis axes[] = {{"allocations", allocations},
                     {"memory", memory},
                     {"slabs", slabs},
                     {"stacks", stacks}};

void grant_everything() {
  for (const axis& a : axes) a.granted = 0;
  last_guard = nullptr;
  last_was_refused = false;
}

const char* wrong = nullptr;  // the first thing that was

#define EXPECT(condition) \
  (!(condition) && wrong == nullptr ? void(wrong = #condition) : void())

int unasked = 0;  // errors that were told to on_unhandled()

// Nothing takes so long, unless something hangs.
constexpr auto soon = 5s;

// A text that does not fit into a string itself.
std::string lengthy(const char* text) {
  return text + std::string(", and more words than a string has room for");
}

// Ends the tasks that refer to what comes before it in a scene.
struct curtain {
  ~curtain() {
    if (bao::current_thread == nullptr || bao::current_thread->tasks == nullptr)
      return;
    auto& left = bao::current_thread->tasks->tasks();
    while (!left.empty()) bao::task<>(left.first()).kill();
  }
};

void tell_unasked(const char* whose, const std::exception_ptr& error) {
  ++unasked;
  bao::print_unhandled(whose, error);
}

struct joined {
  std::thread thread;
  ~joined() { join(); }
  void join() {
    if (thread.joinable()) thread.join();
  }
};

bao::generator<std::string, int, std::string> words(int n) {
  return [n](auto& yield) -> std::string {
    int sum = 0;
    for (int i = 0; i < n; ++i) sum += yield(lengthy("a word"));
    return lengthy("all words") + std::to_string(sum);
  };
}

void generators() {
  auto g = words(3);
  EXPECT(g.next() == lengthy("a word"));
  EXPECT(g.send(1) == lengthy("a word"));
  EXPECT(g.send(2) == lengthy("a word"));
  EXPECT(g.send(3) == std::nullopt);
  EXPECT(g.result() == lengthy("all words") + "6");

  bao::generator<std::string, int, int> outer([](auto& yield) {
    const std::string r = yield.from(words(2));
    try {
      yield(r);
    } catch (const std::runtime_error& e) {
      yield(e.what());
    }
    return 7;
  });
  EXPECT(outer.next() == lengthy("a word"));
  EXPECT(outer.next() == lengthy("a word"));
  EXPECT(outer.next() == lengthy("all words") + "0");
  EXPECT(outer.throw_in(std::runtime_error(lengthy("thrown"))) ==
         lengthy("thrown"));
  EXPECT(outer.next() == std::nullopt);
  EXPECT(outer.result() == 7);

  bao::generator<std::string&> lends([](auto& yield) {
    std::vector<std::string> all{lengthy("one"), lengthy("two")};
    yield.from(all);
  });
  std::vector<std::string> taken;
  for (std::string& s : lends) taken.push_back(std::move(s));
  EXPECT(taken.size() == 2 && taken[1] == lengthy("two"));

  auto closed = words(3);
  closed.next();
  closed.close();
  auto destroyed = words(3);
  destroyed.next();
}

void pipelines() {
  std::vector<int> numbers{1, 2, 3, 4, 5, 6, 7, 8};
  auto names = bao::from(std::vector<std::string>{lengthy("a"), lengthy("b")});
  auto text =
      bao::from(numbers) | bao::drop(1) |
      bao::filter([](int n) { return n % 2 == 0; }) |
      bao::map([](int n) { return lengthy("n") + std::to_string(n); }) |
      bao::chain(std::move(names)) | bao::take(5) | bao::chunk(2) |
      bao::flatten() | bao::stage<std::string>([](auto& in, auto& yield) {
        for (auto& s : in) yield(s + '.');
      }) |
      bao::zip(bao::from(numbers)) |
      bao::map([](auto pair) { return pair.first; }) | bao::to<std::vector>();
  EXPECT(text.size() == 5);
  EXPECT(!text.empty() && text.back() == lengthy("a") + '.');
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
  EXPECT(ping.dead());

  talk parent([](std::string s) { return s + lengthy("parent"); });
  talk child([](std::string s) { return s + lengthy("child"); }, parent);
  EXPECT(child.switch_to("") == lengthy("child") + lengthy("parent"));

  talk fails([](std::string) -> std::string {
    throw std::logic_error(lengthy("error"));
  });
  try {
    fails.switch_to("");
    EXPECT(false);
  } catch (const std::logic_error& e) {
    EXPECT(e.what() == lengthy("error"));
  }
  talk catches([](std::string) {
    try {
      return bao::main_coroutine<std::string>().switch_to("");
    } catch (const std::logic_error& e) {
      return std::string(e.what());
    }
  });
  catches.switch_to("");
  EXPECT(catches.throw_in(std::logic_error(lengthy("thrown"))) ==
         lengthy("thrown"));
  talk waits([](std::string s) {
    return bao::main_coroutine<std::string>().switch_to(s);
  });
  waits.switch_to("");
  waits.kill();
  EXPECT(waits.dead());
  try {
    waits.switch_to(lengthy("to the dead"));
    EXPECT(false);
  } catch (const bao::dead_coroutine&) {
  }
}

bao::task_options named(const char* name) {
  return bao::task_options().name(lengthy(name));
}

void tasks() {
  bao::virtual_time clock;
  auto t = bao::spawn(
      named("first"),
      [](std::string a, int n) { return a + std::to_string(n); },
      lengthy("argument"), 3);
  bool told = false;
  const curtain falls;
  t.on_done(
      [&told, kept = lengthy("kept")](const auto& done) { told = done.ok(); });
  auto late = bao::spawn_later(1h, [] { return lengthy("late"); });
  EXPECT(t.get() == lengthy("argument") + "3");
  EXPECT(told);
  EXPECT(late.get() == lengthy("late"));

  std::vector<bao::task<std::string>> all;
  for (int i = 0; i < 4; ++i)
    all.push_back(bao::spawn(named("several"), [i] {
      bao::sleep(std::chrono::hours(4 - i));
      return lengthy("task") + std::to_string(i);
    }));
  EXPECT(bao::join_any(all) == 3u);
  std::string order;
  for (auto& done : bao::as_completed(all)) order += done.get().back();
  EXPECT(order == "3210");
  EXPECT(bao::join_all(all, 1h));

  auto fails = bao::spawn(named("fails"), [] {
    bao::sleep(1s);
    throw std::logic_error(lengthy("error"));
  });
  EXPECT(fails.join());
  EXPECT(!fails.ok());
  auto hears = bao::spawn(named("hears"), [] {
    try {
      bao::sleep(1h);
    } catch (const std::logic_error& e) {
      return std::string(e.what());
    }
    return ""s;
  });
  bao::yield();
  hears.throw_in(std::logic_error(lengthy("thrown")));
  EXPECT(hears.get() == lengthy("thrown"));
  bao::join_all();
}

// What a stage that nobody asks for waits for, for ever.
void limits_and_kills() {
  bao::virtual_time clock;
  const auto slow = bao::with_timeout(1s, [] {
    bao::sleep(1h);
    return lengthy("never");
  });
  EXPECT(!slow);
  EXPECT(bao::with_timeout(1h, [] { return lengthy("soon"); }) ==
         lengthy("soon"));
  std::vector<bao::task<>> all;
  for (int i = 0; i < 3; ++i)
    all.push_back(bao::spawn([] {
      bao::generator<std::string> inner([](auto& yield) {
        const std::string local = lengthy("local");
        yield(local);
        bao::sleep(1h);
      });
      for (auto& s : inner) EXPECT(s == lengthy("local"));
    }));
  bao::yield();
  EXPECT(all[0].kill());
  EXPECT(bao::kill_all(all, 1h));
  bool told = false;
  try {
    all[0].get();
  } catch (const bao::task_killed&) {
    told = true;
  }
  EXPECT(told);
  // One that swallows its kill is named, and killed again.
  auto stubborn = bao::spawn(named("stubborn"), [] {
    try {
      bao::sleep(1h);
    } catch (const bao::killed&) {
    }
    {
      const bao::shield peace;
      bao::sleep(1h);
    }
    bao::sleep(1h);
  });
  bao::yield();
  EXPECT(stubborn.kill());
  // Some are left when the thread ends, begun and not.
  bao::spawn([kept = lengthy("kept")] { bao::sleep(24h); });
  bao::yield();
  bao::spawn_later(24h, [kept = lengthy("kept")] {});
}

// Nobody asks for these: they are told to on_unhandled().
void unasked_errors() {
  bao::spawn(named("careless"), [] { throw std::logic_error(lengthy("one")); });
  bao::yield();
  {
    bao::coroutine<> c([] {
      try {
        bao::main_coroutine().switch_to();
      } catch (const bao::killed&) {
        throw std::logic_error(lengthy("a coroutine's"));
      }
    });
    c.switch_to();
    bao::generator<int> g([](auto& yield) {
      try {
        yield(1);
      } catch (const bao::killed&) {
        throw std::logic_error(lengthy("a generator's"));
      }
    });
    g.next();
  }
  auto t = bao::spawn([] {});
  t.on_done([](const auto&) { throw std::logic_error(lengthy("a call's")); });
  t.get();
}

void deadlocks() {
  auto waits = bao::spawn(named("waits"), [] {
    bao::this_scheduler().park(bao::never, {"waiting for nothing"});
  });
  bool told = false;
  try {
    waits.get();
  } catch (const bao::deadlock& e) {
    told = std::strstr(e.what(), "waiting for nothing") != nullptr;
  }
  EXPECT(told);
  EXPECT(waits.kill());
}

void helpers() {
  const std::string r = bao::offload(
      [](std::string s) { return s + lengthy("result"); }, lengthy("argument"));
  EXPECT(r == lengthy("argument") + lengthy("result"));
  bool thrown = false;
  try {
    bao::offload([] { throw std::logic_error(lengthy("error")); });
  } catch (const std::logic_error& e) {
    thrown = e.what() == lengthy("error");
  }
  EXPECT(thrown);
  const auto known = bao::resolve("127.0.0.1", "80");
  EXPECT(known.size() == 1 && known[0].to_string() == "127.0.0.1:80");
  // What only the system knows is asked by a helper. There may be no answer.
  const auto ask = [] {
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
      peer.write_all(*line + lengthy(" echoed") + '\n', soon);
    peer.write_all(lengthy("the end"), soon);
  });
  const std::string text = lengthy("line");
  for (int i = 0; i < 3; ++i) {
    near.writev({text, "\n"}, soon);
    EXPECT(near.read_line(soon) == text + lengthy(" echoed"));
  }
  near.write_all("x\n", soon);
  EXPECT(near.read_exactly(2, soon) == "x ");
  EXPECT(near.read_until(" room for\n", 1000, soon) ==
         "echoed, and more words than a string has");
  near.shutdown_write();
  EXPECT(near.read_all(1000, soon) == lengthy("the end"));
  echo.get();

  // One waits while the other end goes, one while its own does.
  auto [ours, theirs] = bao::socket_pair();
  auto [one, other] = bao::socket_pair();
  const curtain falls;
  auto reader =
      bao::spawn([&peer = ours] { EXPECT(peer.read_some(10, soon).empty()); });
  bao::yield();
  theirs.close();
  reader.get();
  auto second = bao::spawn([&peer = one] {
    bool told = false;
    try {
      peer.read_some(10, soon);
    } catch (const std::system_error& e) {
      told = e.code() == std::errc::bad_file_descriptor;
    }
    EXPECT(told);
  });
  bao::yield();
  one.close();
  second.get();
}

// Whoever fails closes its end, of which the others hear.
template <class Listener, class Connect>
void serve_and_ask(Listener listener, Connect connect) {
  const bao::address place = listener.local_address();
  auto server = bao::spawn([door = std::move(listener)]() mutable {
    std::vector<bao::task<>> served;
    for (auto& peer : door) {
      served.push_back(bao::spawn([p = std::move(peer)]() mutable {
        p.write_all(p.read_line(soon).value_or("") + '\n', soon);
      }));
      if (served.size() == 2) break;
    }
    door.close();
    for (auto& t : served) t.get();
  });
  std::vector<bao::task<>> clients;
  for (int i = 0; i < 2; ++i)
    clients.push_back(bao::spawn([connect, place] {
      auto peer = connect(place);
      peer.write_all(lengthy("question") + '\n', soon);
      EXPECT(peer.read_line(soon) == lengthy("question"));
    }));
  bao::join_all(clients);
  server.kill(0s);  // if one of them has not come
  server.join();
  for (auto& t : clients) t.get();
  server.get();
}

void tcp() {
  serve_and_ask(bao::tcp_listener("127.0.0.1:0"), [](const bao::address& to) {
    return bao::connect(to.to_string(), soon);
  });
}

void unix_sockets() {
  const std::string name = "unix:@bao-starved-" + std::to_string(::getpid());
  serve_and_ask(bao::unix_listener(name), [](const bao::address& to) {
    return bao::connect_unix(to, soon);
  });
}

void udp() {
  bao::udp_socket a("127.0.0.1:0"), b("127.0.0.1:0");
  const curtain falls;
  auto answers = bao::spawn([&] {
    const auto question = b.receive_from(1000, soon);
    b.send_to(question.data + lengthy("answer"), question.from, soon);
  });
  bao::yield();
  a.send_to(lengthy("question"), b.local_address(), soon);
  answers.get();
  EXPECT(a.receive_from(1000, soon).data ==
         lengthy("question") + lengthy("answer"));
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

void messages() {
  static int ran;
  ran = unasked = 0;
  int sent = 0;
  std::exception_ptr error;
  std::optional<bao::remote> gone;
  bao::remote home = bao::this_scheduler().remote();
  joined other{std::thread([&, home]() mutable {
    try {
      for (; sent < 3; ++sent) home.post([text = lengthy("text")] { ++ran; });
      gone.emplace(bao::this_scheduler().remote());
    } catch (...) {
      error = std::current_exception();
    }
  })};
  other.join();
  for (int i = 0; i < 1000 && ran + unasked < sent; ++i) bao::sleep(1ms);
  EXPECT(ran + unasked == sent);
  if (gone) EXPECT(!gone->post([text = lengthy("too late")] {}));
  if (error != nullptr) std::rethrow_exception(error);
  EXPECT(sent == 3);
}

// What another thread has let go of is unwound here, sooner or later.
void releases() {
  static bool unwound;
  unwound = false;
  struct tells {
    ~tells() { unwound = true; }
  };
  bao::coroutine<> c([] {
    const tells at_end;
    const std::string local = lengthy("local");
    bao::main_coroutine().switch_to();
  });
  c.switch_to();
  joined other{std::thread([gone = std::move(c)] {})};
  other.join();
  bao::sleep(1ms);
  if (!unwound && failed) {  // when there is memory again
    grant_everything();
    bao::sleep(1ms);
  }
  EXPECT(unwound);
}

void pipes_and_signals() {
  int ends[2];
  bao::check(::pipe2(ends, O_CLOEXEC), "pipe");
  const bao::descriptor in(ends[0]), out(ends[1]);
  const curtain falls;
  auto waits = bao::spawn([&] {
    EXPECT(bao::wait_fd(in.fd(), bao::readable, soon) == bao::readable);
  });
  bao::yield();
  EXPECT(::write(out.fd(), "x", 1) == 1);
  waits.get();
  auto hears = bao::spawn([] {
    return bao::wait_signal({SIGUSR1, SIGUSR2}, soon);
  });
  bao::yield();
  ::raise(SIGUSR1);
  EXPECT(hears.get() == SIGUSR1);
}

// Each owns a generator that stands in the middle of its body, and waits where
// it ends.
void captured_flows() {
  bao::yield();  // makes the scheduler
  static int unwound;
  unwound = 0;
  struct waits {
    ~waits() {
      const bao::shield peace;
      bao::yield();
      ++unwound;
    }
  };
  std::vector<bao::task<>> all;
  std::exception_ptr error;
  int made = 0;
  try {
    for (int i = 0; i < 5; ++i) {
      bao::generator<int> g([](auto& yield) {
        const waits at_end;
        const std::string local = lengthy("local");
        yield(1);
      });
      EXPECT(g.next() == 1);
      ++made;
      all.push_back(bao::spawn([] { bao::yield(); }));
      all.push_back(bao::spawn([held = std::move(g)] { bao::yield(); }));
    }
  } catch (const std::exception&) {
    error = std::current_exception();
  }
  bao::join_all(all);
  all.clear();
  bao::sleep(1ms);
  EXPECT(unwound == made);
  if (error != nullptr) std::rethrow_exception(error);
}

// What works after every scene, whatever has happened there.
void afterwards() {
  bao::virtual_time clock;
  auto t = bao::spawn([] {
    bao::sleep(1h);
    return 1;
  });
  EXPECT(t.get() == 1);
  auto g = words(1);
  EXPECT(g.next() == lengthy("a word"));
  auto [near, far] = bao::socket_pair();
  auto reads = bao::spawn([&peer = near] { return peer.read_exactly(1); });
  bao::yield();
  far.write_all("x");
  EXPECT(reads.get() == "x");
  auto posted = bao::spawn([] {
    bao::remote home = bao::this_scheduler().remote();
    int arrived = 0;
    home.post([&] { ++arrived; });
    while (arrived == 0) bao::sleep(1s);
  });
  posted.get();
  auto waits = bao::spawn(
      [] { bao::this_scheduler().park(bao::never, {"waiting for its end"}); });
  bao::yield();
  EXPECT(waits.kill());
}

struct scene {
  const char* name;
  void (*play)();
  long keeps;       // what stays, once in the life of the process: allocations,
  long keeps_open;  // and descriptors
};

constexpr scene scenes[] = {
    {"generators", generators, 0, 0},
    {"pipelines", pipelines, 0, 0},
    {"coroutines", coroutines, 0, 0},
    {"tasks", tasks, 0, 0},
    {"limits_and_kills", limits_and_kills, 0, 0},
    {"unasked_errors", unasked_errors, 0, 0},
    {"deadlocks", deadlocks, 0, 0},
    {"helpers", helpers, 1, 0},  // who they are
    {"streams", streams, 0, 0},
    {"tcp", tcp, 0, 0},
    {"unix_sockets", unix_sockets, 0, 0},
    {"udp", udp, 0, 0},
    {"files", files, 1, 0},
    {"messages", messages, 0, 0},
    {"releases", releases, 0, 0},
    {"pipes_and_signals", pipes_and_signals, 1, 1},  // the bell of a seat
    {"captured_flows", captured_flows, 0, 0},
};

// --- the stage ---------------------------------------------------------------

char playing[100] = "";  // which scene, which axis, which number
bool good = true;

void complain(const std::string& what) {
  std::fprintf(stderr, "starved %s: %s\n", playing, what.c_str());
  good = false;
}

// The end of the program, wherever it is met.
void die(const char* how) {
  char line[200];
  const int n =
      std::snprintf(line, sizeof line, "starved %s: %s\n", playing, how);
  if (::write(2, line, static_cast<std::size_t>(n)) != n) ::_exit(3);
  ::_exit(2);
}

long open_descriptors() {
  long n = 0;
  DIR* const d = ::opendir("/proc/self/fd");
  if (d == nullptr) return 0;
  while (::readdir(d) != nullptr) ++n;
  ::closedir(d);
  return n;
}

// Plays a scene once. Returns whether something has failed in it.
bool play(const scene& s, const axis& a, long n, long& kept, long& kept_open) {
  std::snprintf(playing, sizeof playing, "%s %s %ld", s.name, a.name, n);
  ::alarm(30);
  grant_everything();
  failed = false;
  wrong = nullptr;
  std::string ended;
  const long before = in_use, open_before = open_descriptors();
  std::thread([&] {
    std::exception_ptr error;
    a.granted = n;
    try {
      s.play();
    } catch (...) {
      error = std::current_exception();
    }
    if (failed) {
      grant_everything();
      if (error != nullptr) wrong = nullptr;  // the error is the result
      afterwards();
    }
    if (error == nullptr) return;
    const long left = a.granted.exchange(0);
    ended = bao::describe(error);
    a.granted = left;
    error = nullptr;
  }).join();
  grant_everything();

  if (wrong != nullptr) complain("not so: "s + wrong);
  if (!ended.empty() && !failed) complain("though nothing failed, " + ended);
  if (!ended.empty() && ended.find("bao::") == std::string::npos &&
      ended.find("std::bad_alloc") == std::string::npos &&
      ended.find("std::system_error") == std::string::npos)
    complain("ended with " + ended);
  std::string().swap(ended);
  // A helper thread may be about to throw its job away.
  const auto left = [&] { return in_use - before; };
  for (int i = 0; i < 500 && left() != 0; ++i) ::usleep(1000);
  kept += left();
  kept_open += open_descriptors() - open_before;
  if (left() < 0 || kept > s.keeps)
    complain(std::to_string(left()) + " allocations are left");
  if (kept_open < 0 || kept_open > s.keeps_open)
    complain(std::to_string(kept_open) + " descriptors are left");
  return failed;
}

}  // namespace

int main(int argc, char** argv) {
  ::signal(SIGALRM, [](int) { die("hangs"); });
  ::signal(SIGSEGV, [](int) { die("SIGSEGV"); });
  ::signal(SIGUSR1, SIG_IGN);  // until somebody waits for it
  std::set_terminate([] { die("std::terminate"); });
  bao::on_unhandled(tell_unasked);
  std::thread([] { bao::coroutine<>([] {}).switch_to(); }).join();

  for (const scene& s : scenes) {
    if (argc > 1 && s.name != std::string(argv[1])) continue;
    long kept = 0, kept_open = 0;
    for (const axis& a : axes) {
      if (argc > 2 && a.name != std::string(argv[2])) continue;
      if (argc > 3) {
        const bool last = !play(s, a, std::atol(argv[3]), kept, kept_open);
        if (good && last) return 77;
        continue;
      }
      long n = 1;
      while (play(s, a, n, kept, kept_open)) ++n;
      std::printf("%s, %s: %ld\n", s.name, a.name, n - 1);
    }
  }
  return good ? 0 : 1;
}
