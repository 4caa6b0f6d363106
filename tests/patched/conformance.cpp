// conformance.cpp - patched calls do what libc's do, to the last errno
//
// Each case runs twice: in a thread without tasks, where the calls are libc's
// own, and in a task, where they wait politely. Both must tell the same. In a
// case that waits somebody else does, a little later, what it waits for: there
// another thread, here another task, which can do so only if the thread is not
// held. If it is, a thread comes to the rescue, and the case has failed.
#define DOCTEST_CONFIG_IMPLEMENT
#define DOCTEST_CONFIG_NO_POSIX_SIGNALS  // children shall die of theirs
#include <doctest/doctest.h>
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/net_tstamp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <ostream>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "bao.hpp"

BAO_PATCH_ALL();

using namespace std::chrono_literals;
using std::size_t;

// --- the two worlds ----------------------------------------------------------

// What a call has done: what it returned, errno if it failed, and whatever else
// is worth comparing.
struct outcome {
  long result;
  int error;
  std::string bytes;

  explicit outcome(long r) : result(r), error(r == -1 ? errno : 0) {}
  outcome(long r, int e) : result(r), error(e) {}
  outcome& add(const std::string& text) {
    bytes += (bytes.empty() ? "" : " ") + text;
    return *this;
  }
  outcome& add(long number) { return add(std::to_string(number)); }
  outcome& add(const outcome& o) {
    return add("[" + std::to_string(o.result) + ' ' + std::to_string(o.error) +
               ' ' + o.bytes + "]");
  }
  outcome& with(const char* p) {  // the bytes that it has got
    return result > 0 ? add(std::string(p, static_cast<size_t>(result)))
                      : *this;
  }
  bool operator==(const outcome& o) const {
    return result == o.result && error == o.error && bytes == o.bytes;
  }
};

static std::ostream& operator<<(std::ostream& out, const outcome& o) {
  out << o.result;
  if (o.error != 0) out << " (" << ::strerror(o.error) << ")";
  out << " \"";
  for (char c : o.bytes.substr(0, 300)) out << (c < ' ' || c > '~' ? '?' : c);
  return out << '"';
}

static long turns = 0;  // of the task that runs beside all others

// What a case has made, and who helps it.
class situation {
 public:
  explicit situation(bool in_task) : in_task_(in_task) {}
  situation(const situation&) = delete;
  ~situation() {
    finish();
    while (!fds_.empty()) drop(fds_.back());
  }

  // A descriptor that is closed in the end.
  int keep(int fd) {
    if (fd == -1) throw std::system_error(errno, std::generic_category());
    fds_.push_back(fd);
    return fd;
  }
  int drop(int fd) {
    fds_.erase(std::remove(fds_.begin(), fds_.end(), fd), fds_.end());
    return ::close(fd);
  }

  // Has somebody else do this when we probably wait.
  struct helper {
    situation& s;
    ~helper() { s.finish(); }
  };
  // It refers to what is in the same block, so it ends with that.
  [[nodiscard]] helper later(std::function<void()> action) {
    finish();
    action_ = std::move(action);
    claimed_ = false;
    mark();
    thread_ = std::thread([this] {
      {
        std::unique_lock<std::mutex> hold(mutex_);
        const auto until =
            std::chrono::system_clock::now() + (in_task_ ? 3000ms : 4ms);
        changed_.wait_until(hold, until, [this] { return claimed_; });
      }
      if (!claim()) return;
      if (in_task_) rescued_ = true;
      action_();
    });
    if (in_task_)
      task_ = bao::spawn([this] {
        bao::sleep(4ms);
        if (claim()) action_();
      });
    return {*this};
  }
  // Until that is done.
  void finish() {
    if (!thread_.joinable()) return;
    if (in_task_) task_.join();
    thread_.join();
  }

  // Calls what waits, at least so long, without anybody's help.
  template <class Call>
  outcome takes(std::chrono::milliseconds least, Call call) {
    mark();
    const auto begin = std::chrono::steady_clock::now();
    outcome o = call();
    const bool soon = std::chrono::steady_clock::now() - begin < least;
    return soon ? o.add("too soon") : o;
  }

  void mark() { mark_ = turns; }
  bool held() const { return rescued_ || turns == mark_; }

 private:
  bool claim() {
    std::lock_guard<std::mutex> hold(mutex_);
    changed_.notify_all();
    return !std::exchange(claimed_, true);
  }

  const bool in_task_;
  std::vector<int> fds_;
  std::function<void()> action_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool claimed_ = false;
  std::atomic<bool> rescued_{false};
  std::thread thread_;
  bao::task<> task_;
  long mark_ = turns;
};

using body = std::function<outcome(situation&)>;

static outcome run(const body& f, bool in_task, bool& held) {
  outcome o(-2);
  situation s(in_task);
  try {
    o = f(s);
  } catch (const std::exception& e) {
    o.add(e.what());
  }
  held = s.held();
  return o;
}

static int open_descriptors() {
  int n = 0;
  DIR* list = ::opendir("/proc/self/fd");
  while (::readdir(list) != nullptr) ++n;
  ::closedir(list);
  return n;
}

static char now_running[200];
static int comparisons = 0;

static void compare(const std::string& name, const body& f, bool waits) {
  name.copy(now_running, sizeof now_running - 1);
  now_running[std::min(name.size(), sizeof now_running - 1)] = 0;
  INFO(name);
  ++comparisons;
  const int descriptors = open_descriptors();
  outcome in_thread(-3), in_task(-3);
  bool held = false;
  std::thread([&] { in_thread = run(f, false, held); }).join();
  auto task = bao::spawn([&] { in_task = run(f, true, held); });
  if (!task.join(6s)) {
    FAIL_CHECK("does not return");
    task.kill();
  }
  CHECK(in_task == in_thread);
  if (waits) CHECK_FALSE(held);
  CHECK(open_descriptors() == descriptors);
  const long children = ::syscall(SYS_wait4, -1, nullptr, WNOHANG, nullptr);
  CHECK(children == -1);
}

// Both worlds see the same; and in a task nobody else is kept from running.
static void same(const std::string& name, const body& f) {
  compare(name, f, false);
}
static void waits(const std::string& name, const body& f) {
  compare(name, f, true);
}

// --- what bytes go through ---------------------------------------------------

enum kind { stream, seqpacket, datagram, tcp, udp, pipes, fifo, tty, pty };
static const char* const kind_names[] = {"stream", "seqpacket", "datagram",
                                         "tcp",    "udp",       "pipe",
                                         "fifo",   "tty",       "pty"};
static const kind all_kinds[] = {stream, seqpacket, datagram, tcp, udp,
                                 pipes,  fifo,      tty,      pty};

static bool is_socket(kind k) { return k <= udp; }
static bool is_message(kind k) {
  return k == seqpacket || k == datagram || k == udp;
}
static bool is_terminal(kind k) { return k >= tty; }

// What is written to `out` can be read from `in`.
struct line {
  int in, out;
};

template <class Address>
static sockaddr* any(Address& a) {
  return reinterpret_cast<sockaddr*>(&a);
}
template <class Address>
static const sockaddr* any(const Address& a) {
  return reinterpret_cast<const sockaddr*>(&a);
}

static sockaddr_in loopback(int port = 0) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  a.sin_port = htons(static_cast<std::uint16_t>(port));
  return a;
}

static sockaddr_in address_of(int fd) {
  sockaddr_in a{};
  socklen_t n = sizeof a;
  ::getsockname(fd, any(a), &n);
  return a;
}

static void must(long result) {
  if (result == -1) throw std::system_error(errno, std::generic_category());
}

// A socket of the loopback device, with a port of its own.
static int bound(situation& s, int type) {
  const int fd = s.keep(::socket(AF_INET, type | SOCK_CLOEXEC, 0));
  const sockaddr_in any_port = loopback();
  must(::bind(fd, any(any_port), sizeof any_port));
  return fd;
}

static int listener(situation& s, int flags = 0) {
  const int fd = bound(s, SOCK_STREAM | flags);
  must(::listen(fd, 5));
  return fd;
}

static int connect_to(int fd, const sockaddr_in& to) {
  return ::connect(fd, any(to), sizeof to);
}

static std::string scratch;  // a directory
static std::string fresh_name() {
  static std::atomic<int> n{0};
  return scratch + "/" + std::to_string(++n);
}

static int file(situation& s, const std::string& content = "",
                std::string name = "") {
  if (name.empty()) name = fresh_name();
  const int fd =
      s.keep(::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  must(::pwrite(fd, content.data(), content.size(), 0));
  return fd;
}

static void set_flag(int fd, bool on, int flag = O_NONBLOCK) {
  const int flags = ::fcntl(fd, F_GETFL);
  must(::fcntl(fd, F_SETFL, on ? flags | flag : flags & ~flag));
}

static line make(situation& s, kind k) {
  int p[2];
  if (k == stream || k == seqpacket || k == datagram) {
    const int type = k == stream      ? SOCK_STREAM
                     : k == seqpacket ? SOCK_SEQPACKET
                                      : SOCK_DGRAM;
    must(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, p));
  } else if (k == pipes) {
    must(::pipe2(p, O_CLOEXEC));
  } else if (k == udp) {
    const int a = bound(s, SOCK_DGRAM), b = bound(s, SOCK_DGRAM);
    must(connect_to(a, address_of(b)));
    must(connect_to(b, address_of(a)));
    return {a, b};
  } else if (k == tcp) {
    const int door = listener(s);
    const int a = s.keep(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    must(connect_to(a, address_of(door)));
    const int b = s.keep(::accept(door, nullptr, nullptr));
    s.drop(door);
    return {a, b};
  } else if (k == fifo) {
    const std::string name = fresh_name();
    must(::mkfifo(name.c_str(), 0600));
    const int a =
        s.keep(::open(name.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    const int b = s.keep(::open(name.c_str(), O_WRONLY | O_CLOEXEC));
    set_flag(a, false);
    ::unlink(name.c_str());
    return {a, b};
  } else {
    termios raw{};
    ::cfmakeraw(&raw);
    raw.c_cc[VMIN] = 1;
    raw.c_cflag |= CREAD;
    must(::openpty(&p[0], &p[1], nullptr, &raw, nullptr));
    if (k == tty) std::swap(p[0], p[1]);
  }
  s.keep(p[0]);
  s.keep(p[1]);
  return {p[0], p[1]};
}

static void put(int fd, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const long n = ::write(fd, &text[done], text.size() - done);
    must(n);
    done += static_cast<size_t>(n);
  }
}

// Reads so many bytes, and returns them, or what came before the end.
static std::string drain(int fd, size_t n) {
  static thread_local char piece[100000];
  std::string all;
  while (all.size() < n) {
    const long k = ::read(fd, piece, std::min(sizeof piece, n - all.size()));
    if (k <= 0) break;
    all.append(piece, static_cast<size_t>(k));
  }
  return all;
}

// Writes until nothing goes in any more, and returns how much has.
static size_t fill(int fd) {
  static const std::string much(3000, 'f');
  int on = 0;
  socklen_t size = sizeof on;
  // What was written may be on its way for a while: an acknowledgement of TCP's
  // comes after 40 ms, and makes room.
  const bool by_tcp =
      ::getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, &size) == 0;
  const int rounds = by_tcp ? 20 : ::isatty(fd) == 1 ? 10 : 3;
  size_t n = 0;
  set_flag(fd, true);
  for (int quiet = 0; quiet < rounds;) {
    const long more = ::write(fd, much.data(), quiet == 0 ? much.size() : 1);
    if (more > 0) {
      n += static_cast<size_t>(more);
      quiet = std::min(quiet, 1);
    } else {
      ++quiet;
      ::usleep(rounds > 3 ? 3000 : 100);
    }
  }
  set_flag(fd, false);
  return n;
}

// What can be read at once, or in a moment.
static std::string rest(int fd) {
  pollfd p{fd, POLLIN, 0};
  if (::poll(&p, 1, 8) != 1) return "nothing";
  char b[100];
  set_flag(fd, true);
  const long n = ::read(fd, b, sizeof b);
  set_flag(fd, false);
  return n < 0 ? "error" : "rest:" + std::string(b, static_cast<size_t>(n));
}

static std::string pattern(size_t n) {
  std::string text(n, '\0');
  for (size_t i = 0; i < n; ++i) text[i] = static_cast<char>(i * 7 / 5 % 251);
  return text;
}

static void set_time(int fd, int option, int ms) {
  const timeval t{0, ms * 1000};
  must(::setsockopt(fd, SOL_SOCKET, option, &t, sizeof t));
}

static std::atomic<int> broken_pipes{0};  // how often SIGPIPE came

// --- the calls that read, and those that write -------------------------------

static iovec piece(const void* p, size_t n) {
  return {const_cast<void*>(p), n};
}

// A message of two pieces.
struct message : msghdr {
  iovec parts[2];
  message(const void* p, size_t n) : msghdr() {
    const size_t half = n / 2;
    parts[0] = piece(p, half);
    parts[1] = piece(static_cast<const char*>(p) + half, n - half);
    msg_iov = parts;
    msg_iovlen = 2;
  }
  message(const message&) = delete;
};

#ifdef __GLIBC__
extern "C" {
ssize_t __read_chk(int, void*, size_t, size_t);
ssize_t __pread_chk(int, void*, size_t, off_t, size_t);
ssize_t __recv_chk(int, void*, size_t, size_t, int);
ssize_t __recvfrom_chk(int, void*, size_t, size_t, int, sockaddr*, socklen_t*);
int __poll_chk(pollfd*, nfds_t, int, size_t);
int __ppoll_chk(pollfd*, nfds_t, const timespec*, const sigset_t*, size_t);
}
#endif

struct reader {
  const char* name;
  bool of_sockets;
  long (*call)(int fd, char* p, size_t n, int flags);
};

static const reader readers[] = {
    {"read", false,
     [](int fd, char* p, size_t n, int) -> long { return ::read(fd, p, n); }},
    {"readv", false,
     [](int fd, char* p, size_t n, int) -> long {
       return ::readv(fd, message(p, n).parts, 2);
     }},
    {"preadv2", false,
     [](int fd, char* p, size_t n, int) -> long {
       return ::preadv2(fd, message(p, n).parts, 2, -1, 0);
     }},
    {"recv", true,
     [](int fd, char* p, size_t n, int flags) -> long {
       return ::recv(fd, p, n, flags);
     }},
    {"recvfrom", true,
     [](int fd, char* p, size_t n, int flags) -> long {
       return ::recvfrom(fd, p, n, flags, nullptr, nullptr);
     }},
    {"recvmsg", true,
     [](int fd, char* p, size_t n, int flags) -> long {
       message m(p, n);
       return ::recvmsg(fd, &m, flags);
     }},
    {"recvmmsg", true,
     [](int fd, char* p, size_t n, int flags) -> long {
       message m(p, n);
       mmsghdr one{m, 0};
       const int got = ::recvmmsg(fd, &one, 1, flags, nullptr);
       return got == 1 ? static_cast<long>(one.msg_len) : got;
     }},
    {"recvfrom with an address", true,
     [](int fd, char* p, size_t n, int flags) -> long {
       sockaddr_storage from;
       socklen_t room = sizeof from;
       return ::recvfrom(fd, p, n, flags, any(from), &room);
     }},
#ifdef __GLIBC__
    {"__read_chk", false,
     [](int fd, char* p, size_t n, int) -> long {
       return ::__read_chk(fd, p, n, n);
     }},
    {"__recv_chk", true,
     [](int fd, char* p, size_t n, int flags) -> long {
       return ::__recv_chk(fd, p, n, n, flags);
     }},
    {"__recvfrom_chk", true,
     [](int fd, char* p, size_t n, int flags) -> long {
       return ::__recvfrom_chk(fd, p, n, n, flags, nullptr, nullptr);
     }},
#endif
};

struct writer {
  const char* name;
  bool of_sockets;
  long (*call)(int fd, const char* p, size_t n, int flags);
};

static const writer writers[] = {
    {"write", false,
     [](int fd, const char* p, size_t n, int) -> long {
       return ::write(fd, p, n);
     }},
    {"writev", false,
     [](int fd, const char* p, size_t n, int) -> long {
       return ::writev(fd, message(p, n).parts, 2);
     }},
    {"pwritev2", false,
     [](int fd, const char* p, size_t n, int) -> long {
       return ::pwritev2(fd, message(p, n).parts, 2, -1, 0);
     }},
    {"send", true,
     [](int fd, const char* p, size_t n, int flags) -> long {
       return ::send(fd, p, n, flags);
     }},
    {"sendto", true,
     [](int fd, const char* p, size_t n, int flags) -> long {
       return ::sendto(fd, p, n, flags, nullptr, 0);
     }},
    {"sendmsg", true,
     [](int fd, const char* p, size_t n, int flags) -> long {
       message m(p, n);
       return ::sendmsg(fd, &m, flags);
     }},
    {"sendmmsg", true,
     [](int fd, const char* p, size_t n, int flags) -> long {
       message m(p, n);
       mmsghdr one{m, 0};
       const int sent = ::sendmmsg(fd, &one, 1, flags);
       return sent == 1 ? static_cast<long>(one.msg_len) : sent;
     }},
};

static outcome got(const reader& r, int fd, size_t n = 40, int flags = 0) {
  char b[64] = {};
  return outcome(r.call(fd, b, n, flags)).with(b);
}

static outcome gave(const writer& w, int fd, const std::string& text,
                    int flags = 0) {
  const int before = broken_pipes;
  outcome o(w.call(fd, text.data(), text.size(), flags));
  return o.add(broken_pipes - before);
}

// --- reading -----------------------------------------------------------------

// The first of a family does it with all kinds, the others with some.
static bool leads(const std::string& name) {
  for (const char* one :
       {"read", "write", "recv", "send", "poll", "select", "epoll_wait"})
    if (name == one) return true;
  return false;
}
template <class Call>
static bool tries(const Call& c, kind k) {
  return leads(c.name) || k == stream || k == udp || k == pipes || k == tty;
}

template <class Call, size_t N, class F>
static void each(const Call (&calls)[N], const std::string& what, F f) {
  for (const Call& c : calls)
    for (kind k : all_kinds)
      if (tries(c, k) && (!c.of_sockets || is_socket(k)))
        f(c, k, std::string(c.name) + ", " + kind_names[k] + ", " + what);
}

TEST_CASE("what is there is read at once") {
  each(readers, "full", [](const reader& r, kind k, const std::string& name) {
    same(name, [&](situation& s) {
      const line l = make(s, k);
      put(l.out, "hello");
      if (is_terminal(k)) ::usleep(2000);
      outcome o = got(r, l.in, 3);
      return o.add(rest(l.in));
    });
  });
}

TEST_CASE("where there is nothing, a blocking read waits") {
  each(readers, "empty", [](const reader& r, kind k, const std::string& name) {
    waits(name, [&](situation& s) {
      const line l = make(s, k);
      int flags = -1;
      const auto helps = s.later([&] {
        flags = ::fcntl(l.in, F_GETFL);
        put(l.out, "hello");
      });
      return got(r, l.in).add(flags).add(::fcntl(l.in, F_GETFL));
    });
  });
}

TEST_CASE("where there is nothing, a non-blocking read says so") {
  each(readers, "O_NONBLOCK",
       [](const reader& r, kind k, const std::string& name) {
         same(name, [&](situation& s) {
           const line l = make(s, k);
           set_flag(l.in, true);
           return got(r, l.in).add(::fcntl(l.in, F_GETFL));
         });
       });
}

TEST_CASE("what the peer left is read, and then the end") {
  each(readers, "closed", [](const reader& r, kind k, const std::string& name) {
    if (k == datagram || k == udp) return;
    same(name, [&](situation& s) {
      const line l = make(s, k);
      if (!is_terminal(k)) put(l.out, "hello");  // those may drop it
      s.drop(l.out);
      outcome o = got(r, l.in);
      return o.add(got(r, l.in)).add(got(r, l.in));
    });
    waits(name + " while it is read", [&](situation& s) {
      const line l = make(s, k);
      const auto helps = s.later([&] { s.drop(l.out); });
      outcome o = got(r, l.in);
      // A terminal tells those whom it has kept waiting, and no others.
      return k == tty && o.error == EIO ? outcome(0) : o;
    });
    if (is_socket(k))
      waits(name + " one way", [&](situation& s) {
        const line l = make(s, k);
        const auto helps = s.later([&] { ::shutdown(l.out, SHUT_WR); });
        outcome o = got(r, l.in);
        put(l.in, "x");
        return o.add(rest(l.out));
      });
  });
}

TEST_CASE("a shutdown of one's own ends the wait") {
  each(readers, "SHUT_RD",
       [](const reader& r, kind k, const std::string& name) {
         if (!is_socket(k)) return;
         waits(name, [&](situation& s) {
           const line l = make(s, k);
           const auto helps = s.later([&] { ::shutdown(l.in, SHUT_RD); });
           return got(r, l.in);
         });
       });
}

TEST_CASE("nothing read of no bytes") {
  each(readers, "0 bytes",
       [](const reader& r, kind k, const std::string& name) {
         same(name + ", empty", [&](situation& s) {
           const line l = make(s, k);
           const auto helps = s.later([&] { put(l.out, "hello"); });
           outcome o = got(r, l.in, 0);
           s.finish();
           return o.add(rest(l.in));
         });
         same(name + ", full", [&](situation& s) {
           const line l = make(s, k);
           put(l.out, "hello");
           outcome o = got(r, l.in, 0);
           return o.add(rest(l.in));
         });
       });
}

TEST_CASE("SO_RCVTIMEO") {
  each(readers, "SO_RCVTIMEO",
       [](const reader& r, kind k, const std::string& name) {
         if (k != stream && k != tcp && k != datagram) return;
         waits(name, [&](situation& s) {
           const line l = make(s, k);
           set_time(l.in, SO_RCVTIMEO, 20);
           return s.takes(10ms, [&] { return got(r, l.in); });
         });
         for (std::time_t seconds : {1L, 10000000000L})
           waits(name + ", in time, " + std::to_string(seconds),
                 [&](situation& s) {
                   const line l = make(s, k);
                   const timeval t{seconds, 0};
                   must(::setsockopt(l.in, SOL_SOCKET, SO_RCVTIMEO, &t,
                                     sizeof t));
                   const auto helps = s.later([&] { put(l.out, "hello"); });
                   return got(r, l.in);
                 });
       });
}

TEST_CASE("reading what cannot be read") {
  for (const reader& r : readers) {
    const std::string name = r.name;
    same(name + ", no descriptor", [&](situation&) { return got(r, -1); });
    same(name + ", closed", [&](situation& s) {
      const line l = make(s, stream);
      s.drop(l.in);
      return got(r, l.in);
    });
    same(name + ", end to write to",
         [&](situation& s) { return got(r, make(s, pipes).out); });
    same(name + ", directory", [&](situation& s) {
      return got(r, s.keep(::open("/", O_RDONLY | O_DIRECTORY)));
    });
    same(name + ", file", [&](situation& s) {
      const int f = file(s, "content");
      outcome o = got(r, f);
      return o.add(got(r, f));
    });
    same(name + ", file written only", [&](situation& s) {
      return got(r, s.keep(::open("/dev/null", O_WRONLY)));
    });
    same(name + ", /dev/null", [&](situation& s) {
      return got(r, s.keep(::open("/dev/null", O_RDWR)));
    });
    same(name + ", epoll",
         [&](situation& s) { return got(r, s.keep(::epoll_create1(0))); });
    same(name + ", listener",
         [&](situation& s) { return got(r, listener(s)); });
    same(name + ", not connected", [&](situation& s) {
      return got(r, s.keep(::socket(AF_INET, SOCK_STREAM, 0)));
    });
    same(name + ", unix, not connected", [&](situation& s) {
      return got(r, s.keep(::socket(AF_UNIX, SOCK_SEQPACKET, 0)));
    });
    same(name + ", nobody at the port", [&](situation& s) {
      const line l = make(s, udp);
      s.drop(l.out);
      ::send(l.in, "x", 1, 0);
      return got(r, l.in);
    });
    if (r.of_sockets)
      same(name + ", empty pipe", [&](situation& s) {
        return got(r, make(s, pipes).in);  // must not wait
      });
  }
}

TEST_CASE("descriptors that are neither files nor sockets") {
  for (const reader& r : readers) {
    if (r.of_sockets) continue;
    const std::string name = r.name;
    const std::uint64_t seven = 7;
    waits(name + ", eventfd", [&](situation& s) {
      const int fd = s.keep(::eventfd(0, 0));
      const auto helps = s.later([&] { must(::write(fd, &seven, 8)); });
      return got(r, fd, 8);
    });
    same(name + ", eventfd as a semaphore", [&](situation& s) {
      const int fd = s.keep(::eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK));
      outcome o = got(r, fd, 8);
      return o.add(got(r, fd, 8)).add(got(r, fd, 8));
    });
    same(name + ", eventfd, too small",
         [&](situation& s) { return got(r, s.keep(::eventfd(1, 0)), 4); });
    waits(name + ", timerfd", [&](situation& s) {
      const int fd = s.keep(::timerfd_create(CLOCK_MONOTONIC, 0));
      itimerspec t{};
      t.it_value.tv_nsec = 20000000;
      must(::timerfd_settime(fd, 0, &t, nullptr));
      return s.takes(20ms, [&] { return got(r, fd, 8); });
    });
    same(name + ", timerfd, not blocking", [&](situation& s) {
      const int fd = s.keep(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
      return got(r, fd, 8);
    });
    waits(name + ", inotify", [&](situation& s) {
      const std::string path = fresh_name();
      const int fd = s.keep(::inotify_init1(0)), f = file(s, "", path);
      must(::inotify_add_watch(fd, path.c_str(), IN_ATTRIB));
      const auto helps = s.later([&] { ::fchmod(f, 0400); });
      outcome o = got(r, fd, sizeof(inotify_event));
      return o;
    });
  }
  for (const writer& w : writers) {
    if (w.of_sockets) continue;
    const std::string one("\1\0\0\0\0\0\0\0", 8), none(8, '\xff');
    waits(std::string(w.name) + ", full eventfd", [&](situation& s) {
      const int fd = s.keep(::eventfd(0, 0));
      const std::uint64_t most = UINT64_MAX - 1;
      must(::write(fd, &most, 8));
      const auto helps = s.later([&] { drain(fd, 8); });
      outcome o = gave(w, fd, one);
      s.finish();
      return o.add(rest(fd));
    });
    same(std::string(w.name) + ", eventfd", [&](situation& s) {
      const int fd = s.keep(::eventfd(3, 0));
      outcome o = gave(w, fd, one);
      return o.add(rest(fd)).add(gave(w, fd, none));
    });
  }
}

// --- writing -----------------------------------------------------------------

TEST_CASE("what there is room for is written at once") {
  each(writers, "room", [](const writer& w, kind k, const std::string& name) {
    same(name, [&](situation& s) {
      const line l = make(s, k);
      outcome o = gave(w, l.out, "hello");
      return o.add(rest(l.in));
    });
    same(name + ", 0 bytes", [&](situation& s) {
      const line l = make(s, k);
      outcome o = gave(w, l.out, "");
      return o.add(rest(l.in));
    });
  });
}

TEST_CASE("what is always ready, and would block, is waited for") {
  // An error that nobody takes: the time at which a byte was sent.
  each(readers, "error", [](const reader& r, kind k, const std::string& name) {
    if (k != tcp && k != udp) return;
    waits(name, [&](situation& s) {
      const line l = make(s, k);
      const int stamps =
          SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE;
      must(::setsockopt(l.in, SOL_SOCKET, SO_TIMESTAMPING, &stamps,
                        sizeof stamps));
      put(l.in, "x");
      const auto helps = s.later([&] { put(l.out, "hello"); });
      return got(r, l.in);
    });
  });
  // Room of somebody to whom we are not connected.
  const auto to_one_without_room = [](situation& s, auto f) {
    const int in = s.keep(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    const int out = s.keep(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    fresh_name().copy(a.sun_path, sizeof a.sun_path - 1);
    must(::bind(in, any(a), sizeof a));
    const auto send = [&](int flags) {
      return outcome(::sendto(out, "x", 1, flags, any(a), sizeof a));
    };
    while (send(MSG_DONTWAIT).result == 1) {
    }
    outcome o = f(in, out, send);
    ::unlink(a.sun_path);
    return o;
  };
  waits("unix, room", [&](situation& s) {
    return to_one_without_room(s, [&](int in, int, auto send) {
      const auto helps = s.later([&] { drain(in, 1); });
      return send(0);
    });
  });
  waits("unix, SO_SNDTIMEO", [&](situation& s) {
    return to_one_without_room(s, [&](int, int out, auto send) {
      set_time(out, SO_SNDTIMEO, 20);
      return s.takes(10ms, [&] { return send(0); });
    });
  });
}

TEST_CASE("where there is no room, a write waits, or says so") {
  each(writers, "full", [](const writer& w, kind k, const std::string& name) {
    if (k == udp) return;
    waits(name, [&](situation& s) {
      const line l = make(s, k);
      const size_t n = fill(l.out);
      int flags = -1;
      const auto helps = s.later([&] {
        flags = ::fcntl(l.out, F_GETFL);
        drain(l.in, n);
      });
      outcome o = gave(w, l.out, "hello");
      s.finish();
      return o.add(drain(l.in, 5)).add(flags).add(::fcntl(l.out, F_GETFL));
    });
    same(name + ", O_NONBLOCK", [&](situation& s) {
      const line l = make(s, k);
      fill(l.out);
      set_flag(l.out, true);
      return gave(w, l.out, "hello").add(::fcntl(l.out, F_GETFL));
    });
    if (!is_terminal(k))
      waits(name + ", until closed", [&](situation& s) {
        const line l = make(s, k);
        fill(l.out);
        const auto helps = s.later([&] { s.drop(l.in); });
        return gave(w, l.out, "hello");
      });
    if (is_socket(k)) {
      waits(name + ", until shut down", [&](situation& s) {
        const line l = make(s, k);
        fill(l.out);
        const auto helps = s.later([&] { ::shutdown(l.out, SHUT_RDWR); });
        return gave(w, l.out, "hello");
      });
      waits(name + ", SO_SNDTIMEO", [&](situation& s) {
        const line l = make(s, k);
        fill(l.out);
        set_time(l.out, SO_SNDTIMEO, 20);
        return s.takes(10ms, [&] { return gave(w, l.out, "hello"); });
      });
    }
  });
}

TEST_CASE("all of it is written, however much") {
  each(writers, "much", [](const writer& w, kind k, const std::string& name) {
    const size_t n = is_terminal(k)  ? 1 << 16
                     : leads(w.name) ? 1 << 22
                                     : 1 << 20;
    const std::string much = pattern(n);
    const bool whole = !is_message(k);
    const auto test = whole ? waits : same;
    test(name, [&](situation& s) {
      const line l = make(s, k);
      bool intact = false;
      const auto helps =
          s.later([&] { intact = whole && drain(l.in, n) == much; });
      outcome o = gave(w, l.out, much);
      s.finish();
      return o.add(intact);
    });
    if (!whole || is_terminal(k)) return;
    const auto part = [](outcome o) {
      if (o.result > 0) o.result = 1;
      return o;
    };
    same(name + ", O_NONBLOCK", [&](situation& s) {
      const line l = make(s, k);
      set_flag(l.out, true);
      return part(gave(w, l.out, much));
    });
    waits(name + ", closed in the middle", [&](situation& s) {
      const line l = make(s, k);
      const auto helps = s.later([&] {
        drain(l.in, 300000);
        s.drop(l.in);
      });
      return part(gave(w, l.out, much));
    });
    if (is_socket(k))
      waits(name + ", SO_SNDTIMEO", [&](situation& s) {
        const line l = make(s, k);
        set_time(l.out, SO_SNDTIMEO, 20);
        return s.takes(10ms, [&] { return part(gave(w, l.out, much)); });
      });
  });
}

TEST_CASE("writing to who has gone, and what cannot be written") {
  each(writers, "closed", [](const writer& w, kind k, const std::string& name) {
    same(name, [&](situation& s) {
      const line l = make(s, k);
      s.drop(l.in);
      outcome o = gave(w, l.out, "hello");
      ::usleep(2000);
      return o.add(gave(w, l.out, "hello"));
    });
    if (!is_socket(k)) return;
    same(name + ", MSG_NOSIGNAL", [&](situation& s) {
      const line l = make(s, k);
      ::shutdown(l.out, SHUT_WR);
      return gave(w, l.out, "hello", MSG_NOSIGNAL);
    });
  });
  for (const writer& w : writers) {
    const std::string name = w.name;
    same(name + ", no descriptor",
         [&](situation&) { return gave(w, -1, "x"); });
    same(name + ", end to read from",
         [&](situation& s) { return gave(w, make(s, pipes).in, "x"); });
    same(name + ", file", [&](situation& s) {
      const int f = file(s, "content");
      outcome o = gave(w, f, "text");
      return o.add(::lseek(f, 0, SEEK_CUR)).add(rest(f));
    });
    same(name + ", O_APPEND", [&](situation& s) {
      const int f = file(s, "content");
      set_flag(f, true, O_APPEND);
      outcome o = gave(w, f, "text");
      return o.add(::lseek(f, 0, SEEK_CUR));
    });
    same(name + ", as much as a file may hold", [&](situation& s) {
      const int f = file(s);
      const rlimit much{RLIM_INFINITY, RLIM_INFINITY};
      const rlimit four{4, RLIM_INFINITY};
      must(::setrlimit(RLIMIT_FSIZE, &four));
      outcome o = gave(w, f, "content");
      must(::setrlimit(RLIMIT_FSIZE, &much));
      return o;
    });
    same(name + ", /dev/null", [&](situation& s) {
      return gave(w, s.keep(::open("/dev/null", O_RDWR)), "hello");
    });
    same(name + ", /dev/full", [&](situation& s) {
      return gave(w, s.keep(::open("/dev/full", O_RDWR)), "hello");
    });
    same(name + ", read only", [&](situation& s) {
      return gave(w, s.keep(::open("/dev/null", O_RDONLY)), "hello");
    });
    same(name + ", listener",
         [&](situation& s) { return gave(w, listener(s), "x"); });
    same(name + ", not connected", [&](situation& s) {
      return gave(w, s.keep(::socket(AF_INET, SOCK_STREAM, 0)), "x");
    });
    same(name + ", to whom", [&](situation& s) {
      return gave(w, s.keep(::socket(AF_INET, SOCK_DGRAM, 0)), "x");
    });
  }
}

TEST_CASE("numbers of pieces that there cannot be") {
  static char bytes[3];
  for (int n : {-1, 0, 3, 1024, 1025}) {
    const auto some = [n] {
      std::vector<iovec> v(2000, piece(bytes, 0));
      if (n > 0) v[static_cast<size_t>(n) - 1].iov_len = 3;
      return v;
    };
    for (kind k : {stream, datagram, pipes, fifo}) {
      const std::string name =
          ", " + std::to_string(n) + " pieces, " + kind_names[k];
      same("readv" + name, [&](situation& s) {
        const line l = make(s, k);
        put(l.out, "abcdef");
        outcome o(::readv(l.in, some().data(), n));
        return o.with(bytes).add(rest(l.in));
      });
      same("writev" + name, [&](situation& s) {
        const line l = make(s, k);
        outcome o(::writev(l.out, some().data(), n));
        return o.add(rest(l.in));
      });
      if (n < 0 || !is_socket(k)) continue;
      const auto letter = [n](std::vector<iovec>& v) {
        msghdr m{};
        m.msg_iov = v.data();
        m.msg_iovlen = static_cast<size_t>(n);
        return m;
      };
      same("recvmsg" + name, [&](situation& s) {
        const line l = make(s, k);
        put(l.out, "abcdef");
        std::vector<iovec> v = some();
        msghdr m = letter(v);
        outcome o(::recvmsg(l.in, &m, 0));
        return o.with(bytes).add(m.msg_flags).add(rest(l.in));
      });
      same("sendmsg" + name, [&](situation& s) {
        const line l = make(s, k);
        std::vector<iovec> v = some();
        const msghdr m = letter(v);
        outcome o(::sendmsg(l.out, &m, 0));
        return o.add(rest(l.in));
      });
    }
  }
}

// --- flags and messages ------------------------------------------------------

TEST_CASE("MSG_DONTWAIT, MSG_PEEK, MSG_ERRQUEUE, MSG_OOB") {
  each(readers, "", [](const reader& r, kind k, const std::string& name) {
    if (!r.of_sockets) return;
    for (int flag : {0, +MSG_TRUNC})
      waits(name + "MSG_PEEK " + std::to_string(flag), [&](situation& s) {
        const line l = make(s, k);
        const auto helps = s.later([&] { put(l.out, "hello"); });
        char b[8] = {};
        outcome o(r.call(l.in, b, 3, MSG_PEEK | flag));
        return o.add(b).add(rest(l.in));
      });
    // These look into other queues, at once; but not all know of them.
    (k < tcp ? waits : same)(name + "MSG_ERRQUEUE", [&](situation& s) {
      const line l = make(s, k);
      const auto helps = s.later([&] { put(l.out, "hello"); });
      return got(r, l.in, 8, MSG_ERRQUEUE);
    });
    (k == udp ? waits : same)(name + "MSG_OOB", [&](situation& s) {
      const line l = make(s, k);
      const auto helps = s.later([&] { put(l.out, "hello"); });
      return got(r, l.in, 8, MSG_OOB);
    });
    same(name + "MSG_DONTWAIT",
         [&](situation& s) { return got(r, make(s, k).in, 8, MSG_DONTWAIT); });
    same(name + "MSG_TRUNC", [&](situation& s) {
      const line l = make(s, k);
      put(l.out, "hello");
      char b[64] = {};
      outcome o(r.call(l.in, b, 3, is_message(k) ? MSG_TRUNC : 0));
      return o.add(b).add(rest(l.in));
    });
  });
  each(writers, "", [](const writer& w, kind k, const std::string& name) {
    if (!w.of_sockets || k == udp) return;
    same(name + "MSG_DONTWAIT", [&](situation& s) {
      const line l = make(s, k);
      fill(l.out);
      return gave(w, l.out, "hello", MSG_DONTWAIT);
    });
    same(name + "MSG_OOB",
         [&](situation& s) { return gave(w, make(s, k).out, "x", MSG_OOB); });
  });
}

TEST_CASE("MSG_WAITALL waits for all, or for the end") {
  each(readers, "MSG_WAITALL",
       [](const reader& r, kind k, const std::string& name) {
         if (!r.of_sockets) return;
         const auto in_two = [k](situation& s) {
           const line l = make(s, k);
           if (!is_message(k)) put(l.out, "hel");
           const auto helps = s.later([l] {
             put(l.out, "lo");
             ::usleep(2000);
             put(l.out, ", world");
           });
           return l;
         };
         for (int flag : {0, +MSG_PEEK})
           waits(name + ' ' + std::to_string(flag), [&](situation& s) {
             const line l = in_two(s);
             outcome o = got(r, l.in, 8, MSG_WAITALL | flag);
             s.finish();
             return o.add(rest(l.in));
           });
         same(name + ", not blocking", [&](situation& s) {
           const line l = make(s, k);
           put(l.out, "hel");
           set_flag(l.in, true);
           return got(r, l.in, 8, MSG_WAITALL);
         });
         same(name + ", MSG_DONTWAIT", [&](situation& s) {
           const line l = make(s, k);
           put(l.out, "hel");
           return got(r, l.in, 8, MSG_WAITALL | MSG_DONTWAIT);
         });
         if (k != stream && k != tcp) return;
         waits(name + ", no room for what comes along", [&](situation& s) {
           const line l = make(s, k);
           const int on = 1;
           must(::setsockopt(l.in, SOL_SOCKET,
                             k == tcp ? SO_TIMESTAMP : SO_PASSCRED, &on,
                             sizeof on));
           put(l.out, "hel");
           const auto helps = s.later([&] { put(l.out, "lo, world"); });
           outcome o = got(r, l.in, 8, MSG_WAITALL);
           s.finish();
           return o.add(rest(l.in));
         });
         waits(name + ", the end", [&](situation& s) {
           const line l = make(s, k);
           put(l.out, "hel");
           const auto helps = s.later([&] { s.drop(l.out); });
           outcome o = got(r, l.in, 8, MSG_WAITALL);
           return o.add(got(r, l.in, 8, MSG_WAITALL));
         });
         for (int flag : {0, +MSG_PEEK}) {
           const std::string limit = ", SO_RCVTIMEO " + std::to_string(flag);
           const auto wait_in_vain = [&](situation& s) {
             const line l = make(s, k);
             put(l.out, "hel");
             set_time(l.in, SO_RCVTIMEO, 20);
             const auto call = [&] {
               return got(r, l.in, 8, MSG_WAITALL | flag);
             };
             return k == stream && flag != 0 ? call() : s.takes(10ms, call);
           };
           if (k == stream && flag != 0)
             same(name + limit, wait_in_vain);
           else
             waits(name + limit, wait_in_vain);
         }
       });
}

TEST_CASE("recvfrom, recvmsg and accept tell from whom") {
  for (socklen_t room : {socklen_t{0}, socklen_t{4}, socklen_t{100}})
    for (kind k : {udp, datagram, tcp}) {
      const std::string name =
          std::string(kind_names[k]) + ", " + std::to_string(room);
      const auto from = [k](outcome& o, const sockaddr_storage& a,
                            const line& l) -> outcome& {
        sockaddr_in in{};
        std::memcpy(&in, &a, sizeof in);
        o.add(a.ss_family);
        return o.add(k == udp && in.sin_port == address_of(l.out).sin_port);
      };
      for (int flags : {0, +MSG_WAITALL})
        waits("recvfrom, " + std::to_string(flags) + name, [&](situation& s) {
          const line l = make(s, k);
          sockaddr_storage a{};
          socklen_t n = room;
          char b[5];
          const auto helps = s.later([&] { put(l.out, "hello"); });
          outcome o(::recvfrom(l.in, b, sizeof b, flags, any(a), &n));
          return from(o.add(n), a, l);
        });
      waits("recvmsg, " + name, [&](situation& s) {
        const line l = make(s, k);
        sockaddr_storage a{};
        char b[8];
        message m(b, 3);
        m.msg_name = &a;
        m.msg_namelen = room;
        m.msg_controllen = 0;
        const auto helps = s.later([&] { put(l.out, "hello"); });
        outcome o(::recvmsg(l.in, &m, 0));
        return from(o.add(m.msg_namelen).add(m.msg_flags), a, l);
      });
    }
}

// The descriptors that come with a message, kept.
static outcome receive(situation& s, int from, size_t room, int flags = 0,
                       size_t n = 8) {
  std::string b(n, '\0');
  alignas(cmsghdr) char control[CMSG_SPACE(3 * sizeof(int))];
  message m(b.data(), n);
  m.msg_control = control;
  m.msg_controllen = room;
  outcome o(::recvmsg(from, &m, flags));
  if (n == 8) o.with(b.data());
  o.add(m.msg_flags).add(static_cast<long>(m.msg_controllen));
  for (cmsghdr* c = CMSG_FIRSTHDR(&m); c != nullptr; c = CMSG_NXTHDR(&m, c))
    for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      o.add(::fcntl(fd, F_GETFD)).add(::fcntl(s.keep(fd), F_GETFL));
    }
  return o;
}

static outcome pass_on(int over, int fd, const std::string& text,
                       int flags = 0) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  message m(text.data(), text.size());
  m.msg_control = control;
  m.msg_controllen = sizeof control;
  cmsghdr* c = CMSG_FIRSTHDR(&m);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(sizeof fd);
  std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
  return outcome(::sendmsg(over, &m, flags));
}

TEST_CASE("descriptors in messages come once, however often one must write") {
  const size_t room = CMSG_SPACE(3 * sizeof(int));
  for (kind k : {stream, seqpacket, datagram}) {
    for (size_t r : {room, size_t{0}, CMSG_LEN(0)})
      waits(kind_names[k] + std::to_string(r), [&](situation& s) {
        const line l = make(s, k);
        const auto helps = s.later([&] { pass_on(l.out, 0, "hello"); });
        return receive(s, l.in, r, MSG_CMSG_CLOEXEC);
      });
    same(kind_names[k], [&](situation& s) {
      const line l = make(s, k);
      return pass_on(l.out, -1, "hello");
    });
  }
  for (size_t r : {room, size_t{0}})
    waits("MSG_WAITALL " + std::to_string(r), [&](situation& s) {
      const line l = make(s, stream);
      put(l.out, "he");
      const auto helps = s.later([&] {
        pass_on(l.out, 0, "ll");
        put(l.out, "o, world");
      });
      outcome o = receive(s, l.in, r, MSG_WAITALL);
      s.finish();
      return o.add(receive(s, l.in, r, MSG_WAITALL));
    });
  waits("much", [&](situation& s) {
    const line l = make(s, stream);
    outcome received(0);
    const auto helps = s.later([&] {
      for (outcome o(1); o.result > 0; received.result += o.result) {
        o = receive(s, l.in, room, 0, 100000);
        if (o.bytes.size() > 10) received.add(o.bytes);
      }
    });
    outcome o = pass_on(l.out, 0, std::string(1 << 20, 'x'));
    ::shutdown(l.out, SHUT_WR);
    s.finish();
    return o.add(received);
  });
}

TEST_CASE("several messages at once") {
  struct three {
    char b[3][8] = {};
    iovec parts[3];
    mmsghdr m[3] = {};
    three() {
      for (size_t i = 0; i < 3; ++i) {
        parts[i] = piece(b[i], 4);
        m[i].msg_hdr.msg_iov = &parts[i];
        m[i].msg_hdr.msg_iovlen = 1;
      }
    }
  };
  const auto receive_three = [](int fd, unsigned n, int flags, timespec* t) {
    three all;
    outcome o(::recvmmsg(fd, all.m, n, flags, t));
    for (long i = 0; i < o.result; ++i)
      o.add(all.b[i]).add(all.m[i].msg_len).add(all.m[i].msg_hdr.msg_flags);
    return o;
  };
  for (kind k : {datagram, udp, seqpacket, stream}) {
    const std::string name = std::string(", ") + kind_names[k];
    const bool stay = k == stream;  // one message may bring them all
    waits("recvmmsg waits for three" + name, [&](situation& s) {
      const line l = make(s, k);
      put(l.out, stay ? "abcd" : "ab");
      const auto helps = s.later([&] {
        put(l.out, stay ? "efgh" : "efghij");
        ::usleep(2000);
        put(l.out, "ijkl");
      });
      return receive_three(l.in, 3, 0, nullptr);
    });
    waits("recvmmsg, MSG_WAITFORONE" + name, [&](situation& s) {
      const line l = make(s, k);
      const auto helps = s.later([&] { put(l.out, "abcd"); });
      return receive_three(l.in, 3, MSG_WAITFORONE, nullptr);
    });
    const auto with_two = [&](situation& s) {
      const line l = make(s, k);
      put(l.out, "abcd");
      put(l.out, "efgh");
      return l.in;
    };
    same("recvmmsg, MSG_DONTWAIT" + name, [&](situation& s) {
      return receive_three(with_two(s), 3, MSG_DONTWAIT, nullptr);
    });
    same("recvmmsg, O_NONBLOCK" + name, [&](situation& s) {
      const int fd = with_two(s);
      set_flag(fd, true);
      outcome o = receive_three(fd, 3, 0, nullptr);
      return o.add(receive_three(fd, 3, 0, nullptr));
    });
    same("recvmmsg of none" + name, [&](situation& s) {
      return receive_three(with_two(s), 0, 0, nullptr);
    });
    same("recvmmsg, no time" + name, [&](situation& s) {
      timespec none{0, 0};
      return receive_three(with_two(s), 3, 0, &none).add(none.tv_nsec);
    });
    same("recvmmsg, impossible time" + name, [&](situation& s) {
      timespec wrong{0, 2000000000};
      return receive_three(with_two(s), 3, 0, &wrong);
    });
    waits("recvmmsg, SO_RCVTIMEO" + name, [&](situation& s) {
      const int fd = with_two(s);
      set_time(fd, SO_RCVTIMEO, 30);
      return s.takes(10ms, [&] { return receive_three(fd, 3, 0, nullptr); });
    });
    if (k == udp) continue;
    waits("sendmmsg" + name, [&](situation& s) {
      const line l = make(s, k);
      const size_t n = fill(l.out);
      const auto helps = s.later([&] { drain(l.in, n); });
      three all;
      outcome o(::sendmmsg(l.out, all.m, 3, 0));
      s.finish();
      drain(l.in, 12);
      for (const mmsghdr& m : all.m) o.add(m.msg_len);
      return o.add(::sendmmsg(l.out, all.m, 0, 0));
    });
    same("sendmmsg, O_NONBLOCK" + name, [&](situation& s) {
      const line l = make(s, k);
      fill(l.out);
      set_flag(l.out, true);
      three all;
      return outcome(::sendmmsg(l.out, all.m, 3, 0));
    });
  }
}

// --- who blocks and who does not ---------------------------------------------

TEST_CASE("whether a descriptor blocks is asked, whoever has said it") {
  using maker = std::function<int(situation&, line)>;
  const auto set_fionbio = [](int fd, int on) { ::ioctl(fd, FIONBIO, &on); };
  const std::vector<std::pair<std::string, maker>> quick = {
      {"F_SETFL",
       [](situation&, line l) { return set_flag(l.in, true), l.in; }},
      {"F_SETFL through a dup",
       [](situation& s, line l) {
         return set_flag(s.keep(::dup(l.in)), true), l.in;
       }},
      {"F_DUPFD of it",
       [](situation& s, line l) {
         set_flag(l.in, true);
         return s.keep(::fcntl(l.in, F_DUPFD_CLOEXEC, 0));
       }},
      {"FIONBIO",
       [=](situation&, line l) { return set_fionbio(l.in, 1), l.in; }},
      {"over a socket",
       [](situation& s, line l) {
         const line by = make(s, stream);
         set_flag(l.in, true);
         pass_on(by.out, l.in, "x");
         const int next = ::dup(0);
         ::close(next);
         receive(s, by.in, 64);
         return next;
       }},
      {"by a child",
       [](situation&, line l) {
         const pid_t child = ::fork();
         if (child == 0) {
           set_flag(l.in, true);
           ::_exit(0);
         }
         ::syscall(SYS_wait4, child, nullptr, 0, nullptr);
         return l.in;
       }},
  };
  const std::vector<std::pair<std::string, maker>> slow = {
      {"FIONBIO of a dup",
       [=](situation& s, line l) {
         set_flag(l.in, true);
         set_fionbio(s.keep(::dup(l.in)), 0);
         return l.in;
       }},
      {"F_SETFL there and back",
       [](situation&, line l) {
         set_flag(l.in, true);
         set_flag(l.in, false);
         return l.in;
       }},
      {"other flags",
       [](situation&, line l) {
         set_flag(l.in, true, O_APPEND);
         return l.in;
       }},
  };
  for (kind k : all_kinds) {
    const std::string name = std::string(", ") + kind_names[k];
    for (auto& how : quick)
      same(how.first + name, [&](situation& s) {
        const int fd = how.second(s, make(s, k));
        return got(readers[0], fd).add(::fcntl(fd, F_GETFL));
      });
    for (auto& how : slow)
      waits(how.first + name, [&](situation& s) {
        const line l = make(s, k);
        const int fd = how.second(s, l);
        const auto helps = s.later([&] { put(l.out, "hello"); });
        return got(readers[0], fd).add(::fcntl(fd, F_GETFL));
      });
  }
  same("SOCK_NONBLOCK", [&](situation& s) {
    int p[2];
    must(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, p));
    s.keep(p[0]), s.keep(p[1]);
    return got(readers[0], p[0]);
  });
  waits("the same pipe opened again", [&](situation& s) {
    const line l = make(s, pipes);
    const std::string path = "/proc/self/fd/" + std::to_string(l.in);
    const int again = s.keep(::open(path.c_str(), O_RDONLY | O_NONBLOCK));
    outcome o = got(readers[0], again);
    const auto helps = s.later([&] { put(l.out, "hello"); });
    return o.add(got(readers[0], l.in));
  });
}

TEST_CASE("what was said to a number ends with its file") {
  // Makes `fd` wait, so that whatever is kept for its number is there.
  const auto use = [](situation& s, line l) {
    const auto helps = s.later([=] { put(l.out, "used"); });
    outcome o = got(readers[0], l.in);
    s.finish();
    return o;
  };
  const auto nothing_closes = [](int) {};
  using closer = std::function<void(int)>;
  const std::vector<std::pair<std::string, closer>> closers = {
      {"dup2", nothing_closes},
      {"close", [](int fd) { ::close(fd); }},
      {"close unseen", [](int fd) { ::syscall(SYS_close, fd); }},
      {"close_range", [](int fd) {
         const auto n = static_cast<unsigned>(fd);
         ::close_range(n, n, 0);
       }}};
  for (kind a : {stream, pipes, tty})
    for (kind b : {tcp, fifo})
      for (auto& how : closers) {
        const std::string name =
            how.first + ", " + kind_names[a] + " then " + kind_names[b];
        waits(name, [&](situation& s) {
          const line first = make(s, a), second = make(s, b);
          outcome o = use(s, first);
          how.second(first.in);
          o.add(::dup2(second.in, first.in) == first.in);
          o.add(use(s, {first.in, second.out}));
          set_flag(second.in, true);
          o.add(got(readers[0], first.in));
          return o.add(
              use(s, {(set_flag(second.in, false), first.in), second.out}));
        });
        waits(name + ", opened anew", [&](situation& s) {
          const line first = make(s, a);
          outcome o = use(s, first);
          if (how.first == "dup2") return o;
          how.second(first.in);
          const line second = make(s, b);
          return o.add(use(s, second));
        });
      }
}

TEST_CASE("close, dup2, dup3 and close_range themselves") {
  same("close", [](situation& s) {
    const int fd = make(s, stream).in;
    outcome o(s.drop(fd));
    return o.add(outcome(::close(fd))).add(outcome(::close(-1)));
  });
  same("dup2", [](situation& s) {
    const int a = file(s, "a"), b = file(s, "b");
    outcome o(::dup2(a, a) - a);
    o.add(outcome(::dup2(a, b) - b)).add(rest(b));
    o.add(outcome(::dup2(-1, b))).add(outcome(::dup2(a, -1)));
    o.add(outcome(::dup2(a, 1 << 30))).add(outcome(::dup2(1 << 30, b)));
    s.drop(b);
    o.add(outcome(::dup2(b, b))).add(outcome(::dup2(b, a)));
    return o.add(::fcntl(a, F_GETFD));
  });
  same("dup3", [](situation& s) {
    const int a = file(s, "a"), b = file(s, "b");
    outcome o(::dup3(a, b, O_CLOEXEC) - b);
    o.add(::fcntl(b, F_GETFD)).add(outcome(::dup3(a, b, 0) - b));
    o.add(::fcntl(b, F_GETFD)).add(outcome(::dup3(a, a, 0)));
    return o.add(outcome(::dup3(a, b, O_APPEND)))
        .add(outcome(::dup3(-1, b, 0)));
  });
  same("dup2 to a free number", [](situation& s) {
    const int a = file(s, "a"), b = file(s, "b");
    s.drop(b);
    outcome o(::dup2(a, b) - b);
    return o.add(rest(s.keep(b)));
  });
  same("close_range", [](situation& s) {
    const int a = file(s, "a"), b = s.keep(::fcntl(a, F_DUPFD, 700));
    const auto n = static_cast<unsigned>(b);
    outcome o(::close_range(n + 1, n, 0));
    o.add(outcome(::close_range(n, n, 1 << 20)));
    o.add(::close_range(n, n + 9, CLOSE_RANGE_CLOEXEC))
        .add(::fcntl(b, F_GETFD));
    o.add(::close_range(n, n + 9, 0)).add(outcome(::fcntl(b, F_GETFD)));
    return o.add(outcome(s.drop(b)));
  });
}

// --- connecting --------------------------------------------------------------

static sockaddr_un unix_name() {
  static std::atomic<int> n{0};
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  const std::string name = "bao_conformance_" + std::to_string(::getpid()) +
                           "_" + std::to_string(++n);
  name.copy(a.sun_path + 1, sizeof a.sun_path - 1);
  return a;
}

static outcome connected(int fd, const sockaddr_in& to) {
  const int before = ::fcntl(fd, F_GETFL);
  outcome o(connect_to(fd, to));
  return o.add(::fcntl(fd, F_GETFL) == before);
}

static int error_of(int fd) {
  int e = -1;
  socklen_t n = sizeof e;
  ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &n);
  return e;
}

TEST_CASE("connect") {
  for (int flags : {0, +SOCK_NONBLOCK}) {
    const std::string name = "connect" + std::to_string(flags);
    const auto made = [flags](situation& s, int type = SOCK_STREAM) {
      return s.keep(::socket(AF_INET, type | flags, 0));
    };
    same(name + " and again", [&](situation& s) {
      const sockaddr_in to = address_of(listener(s));
      const int fd = made(s);
      outcome o = connected(fd, to);
      pollfd p{fd, POLLOUT, 0};
      ::poll(&p, 1, 1000);
      return o.add(p.revents)
          .add(error_of(fd))
          .add(connected(fd, to))
          .add(connected(fd, to));
    });
    same(name + " refused", [&](situation& s) {
      const int gone = bound(s, SOCK_STREAM);
      const int fd = made(s);
      outcome o = connected(fd, address_of(gone));
      pollfd p{fd, POLLOUT, 0};
      if (flags != 0) ::poll(&p, 1, 1000);
      o.add(p.revents).add(error_of(fd)).add(error_of(fd));
      return o.add(connected(fd, address_of(gone)));
    });
    same(name + " udp", [&](situation& s) {
      const int fd = made(s, SOCK_DGRAM), to = bound(s, SOCK_DGRAM);
      outcome o = connected(fd, address_of(to));
      sockaddr_in none = loopback();
      none.sin_family = AF_UNSPEC;
      return o.add(connected(fd, address_of(to)))
          .add(connected(fd, none))
          .add(gave(writers[0], fd, "x"));
    });
    same(name + " a listener", [&](situation& s) {
      const int door = listener(s, flags);
      return connected(door, address_of(door));
    });
    same(name + " elsewhere", [&](situation& s) {
      sockaddr_in to = loopback();
      to.sin_family = 99;
      const int fd = made(s);
      outcome o = connected(fd, to);
      return o.add(outcome(::connect(fd, any(to), 3)));
    });
    same(name + " unix, to nobody", [&](situation& s) {
      const sockaddr_un nobody = unix_name();
      const int fd = s.keep(::socket(AF_UNIX, SOCK_STREAM | flags, 0));
      outcome o(::connect(fd, any(nobody), sizeof nobody));
      sockaddr_un path{};
      path.sun_family = AF_UNIX;
      std::strcpy(path.sun_path, "/nonexistent");
      return o.add(outcome(::connect(fd, any(path), sizeof path)));
    });
    // With room for nobody who waits.
    const auto busy = [](situation& s, sockaddr_un& a) {
      a = unix_name();
      const int door = s.keep(::socket(AF_UNIX, SOCK_STREAM, 0));
      must(::bind(door, any(a), sizeof a));
      must(::listen(door, 0));
      const int first = s.keep(::socket(AF_UNIX, SOCK_STREAM, 0));
      must(::connect(first, any(a), sizeof a));
      return door;
    };
    (flags == 0 ? waits : same)(name + " unix, in line", [&](situation& s) {
      sockaddr_un a;
      const int door = busy(s, a);
      const int fd = s.keep(::socket(AF_UNIX, SOCK_STREAM | flags, 0));
      const auto helps =
          s.later([&] { s.keep(::accept(door, nullptr, nullptr)); });
      outcome o(::connect(fd, any(a), sizeof a));
      s.finish();
      return o.add(::fcntl(fd, F_GETFL)).add(gave(writers[0], fd, "x"));
    });
    if (flags != 0) continue;
    waits(name + " unix, in line, SO_SNDTIMEO", [&](situation& s) {
      sockaddr_un a;
      busy(s, a);
      const int fd = s.keep(::socket(AF_UNIX, SOCK_STREAM, 0));
      set_time(fd, SO_SNDTIMEO, 30);
      return s.takes(10ms,
                     [&] { return outcome(::connect(fd, any(a), sizeof a)); });
    });
    waits(name + " unix, in line, closed", [&](situation& s) {
      sockaddr_un a;
      const int door = busy(s, a);
      const int fd = s.keep(::socket(AF_UNIX, SOCK_STREAM, 0));
      const auto helps = s.later([&] { s.drop(door); });
      return outcome(::connect(fd, any(a), sizeof a));
    });
    waits(name + " in line, SO_SNDTIMEO", [&](situation& s) {
      const int door = bound(s, SOCK_STREAM);
      must(::listen(door, 0));
      for (int i = 0; i < 3; ++i)
        connect_to(s.keep(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)),
                   address_of(door));
      const int fd = made(s);
      set_time(fd, SO_SNDTIMEO, 30);
      outcome o =
          s.takes(10ms, [&] { return connected(fd, address_of(door)); });
      return o.add(error_of(fd)).add(connected(fd, address_of(door)));
    });
  }
  same("connect what is no socket", [](situation& s) {
    outcome o = connected(-1, loopback(1));
    return o.add(connected(make(s, pipes).in, loopback(1)));
  });
}

struct accepter {
  const char* name;
  int flags;
  int (*call)(int fd, sockaddr* from, socklen_t* n, int flags);
};
static const accepter accepters[] = {
    {"accept", 0,
     [](int fd, sockaddr* from, socklen_t* n, int) {
       return ::accept(fd, from, n);
     }},
    {"accept4", 0, ::accept4},
    {"accept4, not blocking", SOCK_NONBLOCK | SOCK_CLOEXEC, ::accept4},
};

// Accepts, and tells whom.
static outcome accepted(situation& s, const accepter& a, int door, int port = 0,
                        socklen_t room = 100) {
  sockaddr_storage from{};
  socklen_t n = room;
  const int before = ::fcntl(door, F_GETFL);
  const int fd =
      a.call(door, port ? any(from) : nullptr, port ? &n : nullptr, a.flags);
  outcome o(fd == -1 ? -1 : 0);
  o.add(::fcntl(door, F_GETFL) == before).add(n).add(from.ss_family);
  if (fd == -1) return o;
  s.keep(fd);
  sockaddr_in in{};
  std::memcpy(&in, &from, sizeof in);
  o.add(ntohs(in.sin_port) == port).add(::fcntl(fd, F_GETFD));
  return o.add(::fcntl(fd, F_GETFL)).add(rest(fd));
}

TEST_CASE("accept") {
  for (const accepter& a : accepters) {
    const std::string name = a.name;
    for (socklen_t room : {socklen_t{0}, socklen_t{4}, socklen_t{100}})
      for (int flags : {0, +SOCK_NONBLOCK}) {
        const std::string more =
            ", " + std::to_string(room) + ", " + std::to_string(flags);
        const auto guest = [](situation& s) {
          const int fd = bound(s, SOCK_STREAM);
          return std::pair<int, int>(fd, ntohs(address_of(fd).sin_port));
        };
        same(name + ", somebody there" + more, [&](situation& s) {
          const int door = listener(s, flags);
          const auto who = guest(s);
          must(connect_to(who.first, address_of(door)));
          put(who.first, "hello");
          return accepted(s, a, door, who.second, room);
        });
        (flags == 0 ? waits : same)(
            name + ", nobody" + more, [&](situation& s) {
              const int door = listener(s, flags);
              const auto who = guest(s);
              const auto helps = s.later([&] {
                must(connect_to(who.first, address_of(door)));
                put(who.first, "hello");
              });
              return accepted(s, a, door, who.second, room);
            });
      }
    waits(name + ", unix", [&](situation& s) {
      const sockaddr_un at = unix_name();
      const int door = s.keep(::socket(AF_UNIX, SOCK_STREAM, 0));
      const int fd = s.keep(::socket(AF_UNIX, SOCK_STREAM, 0));
      must(::bind(door, any(at), sizeof at));
      must(::listen(door, 1));
      const auto helps = s.later([&] {
        must(::connect(fd, any(at), sizeof at));
        put(fd, "hello");
      });
      return accepted(s, a, door, 1);
    });
    waits(name + ", SO_RCVTIMEO", [&](situation& s) {
      const int door = listener(s);
      set_time(door, SO_RCVTIMEO, 30);
      return s.takes(10ms, [&] { return accepted(s, a, door); });
    });
    waits(name + ", shut down", [&](situation& s) {
      const int door = listener(s);
      const auto helps = s.later([&] { ::shutdown(door, SHUT_RDWR); });
      return accepted(s, a, door);
    });
    same(name + ", no listener", [&](situation& s) {
      outcome o = accepted(s, a, make(s, stream).in);
      o.add(accepted(s, a, make(s, tcp).in)).add(accepted(s, a, -1));
      o.add(accepted(s, a, bound(s, SOCK_STREAM)));
      return o.add(accepted(s, a, make(s, udp).in))
          .add(accepted(s, a, make(s, pipes).in));
    });
  }
  same("accept4, no such flag", [](situation& s) {
    return outcome(::accept4(listener(s), nullptr, nullptr, 1));
  });
}

// --- waiting for several -----------------------------------------------------

struct poller {
  const char* name;
  int (*call)(pollfd*, nfds_t, int ms);
};

static const timespec* until(int ms, timespec& t) {
  t = {ms / 1000, ms % 1000 * 1000000};
  return ms < 0 ? nullptr : &t;
}

static const poller pollers[] = {
    {"poll", ::poll},
    {"ppoll",
     [](pollfd* p, nfds_t n, int ms) {
       timespec t;
       return ::ppoll(p, n, until(ms, t), nullptr);
     }},
#ifdef __GLIBC__
    {"__poll_chk",
     [](pollfd* p, nfds_t n, int ms) {
       return ::__poll_chk(p, n, ms, n * sizeof *p);
     }},
    {"__ppoll_chk",
     [](pollfd* p, nfds_t n, int ms) {
       timespec t;
       return ::__ppoll_chk(p, n, until(ms, t), nullptr, n * sizeof *p);
     }},
#endif
};

static outcome polled(const poller& p, std::vector<pollfd> of, int ms) {
  outcome o(p.call(of.data(), of.size(), ms));
  for (const pollfd& f : of) o.add(f.revents);
  return o;
}

TEST_CASE("poll") {
  const short both = POLLIN | POLLOUT | POLLPRI | POLLRDHUP;
  for (const poller& p : pollers) {
    const std::string name = p.name;
    for (kind k : all_kinds) {
      if (!tries(p, k)) continue;
      const std::string of = name + ", " + kind_names[k];
      for (int ms : {0, 10, -1})
        same(of + " ready, " + std::to_string(ms), [&](situation& s) {
          const line l = make(s, k);
          put(l.out, "x");
          if (is_terminal(k)) ::usleep(2000);
          return polled(p, {{l.in, both, 9}, {l.out, both, 9}}, ms);
        });
      for (int ms : {1000, -1})
        waits(of + " later, " + std::to_string(ms), [&](situation& s) {
          const line l = make(s, k);
          const auto helps = s.later([&] { put(l.out, "x"); });
          return polled(p, {{l.in, POLLIN, 9}, {l.out, 0, 9}}, ms);
        });
      same(of + " not ready", [&](situation& s) {
        return polled(p, {{make(s, k).in, POLLIN, 9}}, 0);
      });
      waits(of + " never", [&](situation& s) {
        const line l = make(s, k);
        return s.takes(10ms, [&] {
          return polled(p, {{l.in, POLLIN, 9}}, 10);
        });
      });
      if (k == udp) continue;
      waits(of + " room", [&](situation& s) {
        const line l = make(s, k);
        const size_t n = fill(l.out);
        const auto helps = s.later([&] { drain(l.in, n); });
        return polled(p, {{l.out, POLLOUT, 9}}, -1);
      });
      if (k == datagram) continue;
      for (int events : {+POLLIN, +POLLRDHUP, 0})
        waits(of + " closed, " + std::to_string(events), [&](situation& s) {
          const line l = make(s, k);
          const auto helps = s.later([&] { s.drop(l.out); });
          const bool told = k != tcp || events != 0;
          const auto asked = static_cast<short>(events);
          outcome o = polled(p, {{l.in, asked, 9}}, told ? -1 : 50);
          // A terminal hangs up in two steps: whoever is woken between them
          // sees the first alone.
          return is_terminal(k) ? outcome(o.result, o.error) : o;
        });
    }
    same(name + ", reader gone", [&](situation& s) {
      const line l = make(s, pipes);
      s.drop(l.in);
      return polled(p, {{l.out, 0, 9}, {l.out, POLLOUT, 9}}, -1);
    });
    same(name + ", files and the like", [&](situation& s) {
      const int null = s.keep(::open("/dev/null", O_RDWR));
      const int e = s.keep(::eventfd(0, 0)), ep = s.keep(::epoll_create1(0));
      return polled(p,
                    {{file(s), both, 9},
                     {null, both, 9},
                     {e, both, 9},
                     {ep, both, 9},
                     {listener(s), both, 9},
                     {s.keep(::socket(AF_INET, SOCK_STREAM, 0)), both, 9}},
                    -1);
    });
    waits(name + ", a listener", [&](situation& s) {
      const int door = listener(s);
      const int fd = s.keep(::socket(AF_INET, SOCK_STREAM, 0));
      const auto helps = s.later([&] { connect_to(fd, address_of(door)); });
      return polled(p, {{door, POLLIN, 9}}, -1);
    });
    waits(name + ", urgent", [&](situation& s) {
      const line l = make(s, tcp);
      const auto helps = s.later([&] { ::send(l.out, "x", 1, MSG_OOB); });
      return polled(p, {{l.in, POLLPRI, 9}}, -1);
    });
    waits(name + ", one of many, some twice", [&](situation& s) {
      const line a = make(s, stream), b = make(s, pipes);
      const auto helps = s.later([&] { put(b.out, "x"); });
      return polled(p,
                    {{a.in, POLLIN, 9},
                     {b.in, POLLIN, 9},
                     {-1, POLLIN, 9},
                     {b.in, POLLIN, 9},
                     {-5, POLLIN, 9},
                     {b.in, 0, 9},
                     {a.in, POLLPRI, 9}},
                    -1);
    });
    same(name + ", not open", [&](situation& s) {
      const line l = make(s, stream);
      return polled(p, {{9999, POLLIN, 9}, {l.in, POLLIN, 9}, {9998, 0, 9}},
                    -1);
    });
    waits(name + ", none", [&](situation& s) {
      return s.takes(10ms, [&] { return polled(p, {}, 10); });
    });
    waits(name + ", none but absent ones", [&](situation& s) {
      return s.takes(10ms, [&] { return polled(p, {{-1, 1, 9}}, 10); });
    });
    same(name + ", too many", [&](situation&) {
      pollfd one{0, 0, 9};
      if (name[0] == '_') return outcome(0);
      return outcome(p.call(&one, 1 << 24, 0));
    });
  }
  for (long ns : {-1L, 1000000000L})
    same("ppoll, wrong time", [ns](situation& s) {
      pollfd p{make(s, stream).in, POLLOUT, 9};
      const timespec t{0, ns};
      return outcome(::ppoll(&p, 1, &t, nullptr)).add(p.revents);
    });
  waits("ppoll with a mask", [](situation& s) {
    const line l = make(s, stream);
    pollfd p{l.in, POLLIN, 9};
    const timespec t{5, 0};
    sigset_t mask, after;
    ::sigemptyset(&mask);
    ::sigaddset(&mask, SIGUSR1);
    const auto helps = s.later([&] { put(l.out, "x"); });
    outcome o(::ppoll(&p, 1, &t, &mask));
    ::pthread_sigmask(SIG_SETMASK, nullptr, &after);
    return o.add(p.revents).add(t.tv_sec).add(::sigismember(&after, SIGUSR1));
  });
}

static void handle(int) {}

TEST_CASE("a mask lets in what is pending, which ends the wait if handled") {
  for (auto how : {SIG_IGN, SIG_DFL, handle})
    waits(how == handle ? "handled" : "not handled", [how](situation& s) {
      sigset_t mask, before, none;
      ::sigemptyset(&none);
      ::sigemptyset(&mask);
      ::sigaddset(&mask, SIGWINCH);
      ::pthread_sigmask(SIG_BLOCK, &mask, &before);
      const auto usual = ::signal(SIGWINCH, how);
      const auto wait = [&] {
        const timespec t{0, 10000000};
        return outcome(::ppoll(nullptr, 0, &t, &none));
      };
      ::pthread_kill(::pthread_self(), SIGWINCH);
      outcome o = how == handle ? wait() : s.takes(10ms, wait);
      if (how == handle) o.add(s.takes(10ms, wait));
      ::signal(SIGWINCH, usual);
      ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
      return o;
    });
}

// A set of descriptors of any size.
class bitmap {
 public:
  explicit bitmap(const std::vector<int>& fds) : words_(64) {
    for (int fd : fds) word(fd) |= 1UL << (fd % bits);
  }
  fd_set* get() { return reinterpret_cast<fd_set*>(words_.data()); }
  bool has(int fd) { return word(fd) >> (fd % bits) & 1; }
  long many() const {
    long n = 0;
    for (unsigned long w : words_) n += __builtin_popcountl(w);
    return n;
  }

 private:
  static constexpr int bits = 64;
  unsigned long& word(int fd) { return words_[static_cast<size_t>(fd / bits)]; }
  std::vector<unsigned long> words_;
};

struct selecter {
  const char* name;
  int (*call)(int n, fd_set*, fd_set*, fd_set*, int us);
};
static const selecter selecters[] = {
    {"select",
     [](int n, fd_set* r, fd_set* w, fd_set* e, int us) {
       timeval t{us / 1000000, us % 1000000};
       return ::select(n, r, w, e, us < 0 ? nullptr : &t);
     }},
    {"pselect",
     [](int n, fd_set* r, fd_set* w, fd_set* e, int us) {
       const timespec t{us / 1000000, us % 1000000 * 1000};
       return ::pselect(n, r, w, e, us < 0 ? nullptr : &t, nullptr);
     }},
};

using set = std::vector<int>;
static outcome selected(const selecter& c, const set& r, const set& w,
                        const set& e, int us, int n = 0, bool given = false) {
  bitmap br(r), bw(w), be(e);
  for (const set& fds : {r, w, e})
    for (int fd : fds)
      if (!given) n = std::max(n, fd + 1);
  outcome o(c.call(n, r.empty() ? nullptr : br.get(),
                   w.empty() ? nullptr : bw.get(),
                   e.empty() ? nullptr : be.get(), us));
  for (int fd : r) o.add(br.has(fd));
  for (int fd : w) o.add(bw.has(fd));
  for (int fd : e) o.add(be.has(fd));
  return o.add(br.many()).add(bw.many()).add(be.many());
}

TEST_CASE("select") {
  for (const selecter& c : selecters) {
    const std::string name = c.name;
    for (kind k : all_kinds) {
      if (!tries(c, k)) continue;
      const std::string of = name + ", " + kind_names[k];
      for (int us : {0, 10000, -1})
        same(of + " ready, " + std::to_string(us), [&](situation& s) {
          const line l = make(s, k), other = make(s, k);
          put(l.out, "x");
          if (is_terminal(k)) ::usleep(2000);
          return selected(c, {l.in, other.in}, {l.out, other.out}, {l.in}, us);
        });
      waits(of + " later", [&](situation& s) {
        const line l = make(s, k), other = make(s, k);
        const auto helps = s.later([&] { put(l.out, "x"); });
        return selected(c, {l.in, other.in}, {}, {l.in, l.out}, -1);
      });
      waits(of + " never", [&](situation& s) {
        const line l = make(s, k);
        return s.takes(10ms, [&] {
          return selected(c, {l.in}, {}, {l.in, l.out}, 10000);
        });
      });
      if (k == udp || k == datagram) continue;
      waits(of + " room", [&](situation& s) {
        const line l = make(s, k);
        const size_t n = fill(l.out);
        const auto helps = s.later([&] { drain(l.in, n); });
        return selected(c, {}, {l.out}, {}, -1);
      });
      waits(of + " closed", [&](situation& s) {
        const line l = make(s, k);
        const auto helps = s.later([&] { s.drop(l.out); });
        return selected(c, {l.in}, {}, {l.in}, -1);
      });
    }
    waits(name + ", urgent", [&](situation& s) {
      const line l = make(s, tcp);
      const auto helps = s.later([&] { ::send(l.out, "x", 1, MSG_OOB); });
      return selected(c, {l.in}, {}, {l.in}, -1);
    });
    same(name + ", reader gone", [&](situation& s) {
      const line l = make(s, pipes);
      s.drop(l.in);
      return selected(c, {}, {l.out}, {l.out}, -1);
    });
    same(name + ", files and the like", [&](situation& s) {
      const int f = file(s), null = s.keep(::open("/dev/null", O_RDWR));
      return selected(c, {f, null}, {f, null}, {f, null}, -1);
    });
    waits(name + ", none", [&](situation& s) {
      return s.takes(10ms, [&] { return selected(c, {}, {}, {}, 10000); });
    });
    waits(name + ", none of those that are set", [&](situation& s) {
      const int f = file(s);
      return s.takes(10ms,
                     [&] { return selected(c, {f}, {f}, {}, 10000, f, true); });
    });
    same(name + ", n below 0", [&](situation& s) {
      return selected(c, {file(s)}, {}, {}, 10000, -1, true);
    });
    same(name + ", not open", [&](situation& s) {
      const line l = make(s, stream);
      return selected(c, {l.in, 900}, {l.out}, {}, -1);
    });
    for (int fd : {1023, 1024, 2500})
      waits(name + ", number " + std::to_string(fd), [&](situation& s) {
        const line l = make(s, stream);
        const int high = s.keep(::dup2(l.in, fd));
        const auto helps = s.later([&] { put(l.out, "x"); });
        return selected(c, {high, l.out}, {}, {}, -1);
      });
  }
  for (long us : {-1L, 1000000L, 1999999L, INT64_MAX, 1L << 32})
    for (long sec : {0L, -1L})
      same("select, time of " + std::to_string(us), [=](situation& s) {
        bitmap w({make(s, stream).out});
        timeval t{sec, us};
        return outcome(::select(100, nullptr, w.get(), nullptr, &t))
            .add(w.many());
      });
  for (long ns : {-1L, 1000000000L})
    same("pselect, time of " + std::to_string(ns), [=](situation& s) {
      bitmap w({make(s, stream).out});
      const timespec t{0, ns};
      return outcome(::pselect(100, nullptr, w.get(), nullptr, &t, nullptr))
          .add(w.many());
    });
  for (const selecter& c : selecters)
    waits(std::string(c.name) + ", n above what there is", [&](situation& s) {
      const line l = make(s, stream);
      // Of a set that ends where nothing may be touched.
      const size_t n = 1 << 16;
      char* const all =
          static_cast<char*>(::mmap(nullptr, 2 * n, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      ::mprotect(all + n, n, PROT_NONE);
      auto* const r = reinterpret_cast<fd_set*>(all);
      FD_SET(l.in, r);
      const auto helps = s.later([&] { put(l.out, "x"); });
      outcome o(c.call(1 << 20, r, nullptr, nullptr, -1));
      o.add(FD_ISSET(l.in, r));
      ::munmap(all, 2 * n);
      return o;
    });
  waits("select tells what time is left", [](situation& s) {
    const line l = make(s, stream);
    bitmap r({l.in});
    timeval t{3, 0};
    const auto helps = s.later([&] { put(l.out, "x"); });
    outcome o(::select(100, r.get(), nullptr, nullptr, &t));
    o.add(t.tv_sec).add(t.tv_usec > 0 && t.tv_usec < 999000);
    t = {0, 10000};
    r = bitmap({l.out});
    o.add(outcome(::select(100, r.get(), nullptr, nullptr, &t)));
    return o.add(t.tv_sec).add(t.tv_usec);
  });
  waits("pselect with a mask does not", [](situation& s) {
    const line l = make(s, stream);
    bitmap r({l.in});
    const timespec t{3, 0};
    sigset_t mask, after;
    ::sigemptyset(&mask);
    ::sigaddset(&mask, SIGUSR1);
    const auto helps = s.later([&] { put(l.out, "x"); });
    outcome o(::pselect(100, r.get(), nullptr, nullptr, &t, &mask));
    ::pthread_sigmask(SIG_SETMASK, nullptr, &after);
    return o.add(t.tv_sec).add(t.tv_nsec).add(::sigismember(&after, SIGUSR1));
  });
}

struct epoller {
  const char* name;
  int (*call)(int ep, epoll_event*, int n, int ms);
};
static const epoller epollers[] = {
    {"epoll_wait", ::epoll_wait},
    {"epoll_pwait",
     [](int ep, epoll_event* e, int n, int ms) {
       sigset_t none;
       ::sigemptyset(&none);
       return ::epoll_pwait(ep, e, n, ms, &none);
     }},
};

static int watch(situation& s, int fd, std::uint32_t events, int ep = -1) {
  if (ep == -1) ep = s.keep(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event e{};
  e.events = events;
  e.data.u64 = events;
  must(::epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
  return ep;
}

static outcome happened(const epoller& e, int ep, int ms, int room = 5) {
  epoll_event all[5] = {};
  outcome o(e.call(ep, all, room, ms));
  for (const epoll_event& one : all)
    o.add(one.events).add(static_cast<long>(one.data.u64));
  return o;
}

TEST_CASE("epoll_wait") {
  for (const epoller& e : epollers) {
    const std::string name = e.name;
    for (kind k : all_kinds) {
      if (!tries(e, k)) continue;
      const std::string of = name + ", " + kind_names[k];
      for (std::uint32_t how : {EPOLLIN, EPOLLET, EPOLLONESHOT})
        waits(of + " later, " + std::to_string(how), [&](situation& s) {
          const line l = make(s, k);
          const int ep = watch(s, l.in, EPOLLIN | how);
          const auto helps = s.later([&] { put(l.out, "x"); });
          outcome o = happened(e, ep, -1);
          o.add(happened(e, ep, 0)).add(::fcntl(ep, F_GETFL));
          return o;
        });
      waits(of + " never", [&](situation& s) {
        const int ep = watch(s, make(s, k).in, EPOLLIN);
        return s.takes(10ms, [&] { return happened(e, ep, 10); });
      });
      if (!is_message(k) && !is_terminal(k))
        waits(of + " closed", [&](situation& s) {
          const line l = make(s, k);
          const int ep = watch(s, l.in, EPOLLIN | EPOLLRDHUP);
          const auto helps = s.later([&] { s.drop(l.out); });
          return happened(e, ep, 2000);
        });
    }
    same(name + ", some at a time", [&](situation& s) {
      const line l = make(s, stream);
      const int ep = watch(s, l.in, EPOLLOUT);
      watch(s, l.out, EPOLLOUT | EPOLLIN, ep);
      outcome o = happened(e, ep, -1, 1);
      return o.add(happened(e, ep, 30, 1)).add(happened(e, ep, 0));
    });
    for (int room : {0, -1, INT32_MIN, INT32_MAX})
      same(name + ", room for " + std::to_string(room), [&](situation& s) {
        return happened(e, watch(s, make(s, stream).in, EPOLLIN), 0, room);
      });
    same(name + ", no epoll", [&](situation& s) {
      outcome o = happened(e, -1, -1);
      return o.add(happened(e, make(s, stream).in, 10))
          .add(happened(e, file(s), 10));
    });
    waits(name + ", nothing in it", [&](situation& s) {
      const int ep = s.keep(::epoll_create1(0));
      return s.takes(10ms, [&] { return happened(e, ep, 10); });
    });
    waits(name + ", put in while it waits", [&](situation& s) {
      const int ep = s.keep(::epoll_create1(0)), out = make(s, stream).out;
      const auto helps = s.later([&] { watch(s, out, EPOLLOUT, ep); });
      return happened(e, ep, -1);
    });
    waits(name + ", of another", [&](situation& s) {
      const line l = make(s, tcp);
      const int inner = watch(s, l.in, EPOLLIN);
      const int outer = watch(s, inner, EPOLLIN);
      const auto helps = s.later([&] { put(l.out, "x"); });
      outcome o = happened(e, outer, -1);
      return o.add(happened(e, inner, -1));
    });
    waits(name + ", as deep as there may be", [&](situation& s) {
      const line l = make(s, pipes);
      std::vector<int> all{l.in};
      for (int i = 0; i < 5; ++i) all.push_back(watch(s, all.back(), EPOLLIN));
      const auto helps = s.later([&] { put(l.out, "x"); });
      return happened(e, all.back(), -1);
    });
    waits(name + ", polled", [&](situation& s) {
      const line l = make(s, pipes);
      const int ep = watch(s, l.in, EPOLLIN);
      const auto helps = s.later([&] { put(l.out, "x"); });
      outcome o = polled(pollers[0], {{ep, POLLIN, 9}}, -1);
      return o.add(happened(e, ep, 0));
    });
  }
}

// --- sleeping ----------------------------------------------------------------

static timespec in_ms(clockid_t clock, long ms) {
  timespec t;
  ::clock_gettime(clock, &t);
  t.tv_nsec += ms * 1000000;
  t.tv_sec += t.tv_nsec / 1000000000;
  t.tv_nsec %= 1000000000;
  return t;
}

TEST_CASE("sleeping") {
  waits("sleep", [](situation& s) {
    return s.takes(1s, [] { return outcome(::sleep(1)); });
  });
  same("sleep 0", [](situation&) { return outcome(::sleep(0)); });
  waits("usleep", [](situation& s) {
    return s.takes(20ms, [] { return outcome(::usleep(20000)); });
  });
  same("usleep 0", [](situation&) { return outcome(::usleep(0)); });
  waits("sleep_for", [](situation& s) {
    return s.takes(
        20ms, [] { return std::this_thread::sleep_for(20ms), outcome(0); });
  });
  for (bool told : {true, false})
    for (long ns : {20000000L, 0L, 1L, 1000000000L, -1L}) {
      const std::string name =
          " of " + std::to_string(ns) + (told ? ", told" : "");
      const auto ms = std::chrono::milliseconds(ns == 20000000 ? 20 : 0);
      const auto test = ns == 20000000 ? waits : same;
      test("nanosleep" + name, [=](situation& s) {
        const timespec t{0, ns};
        timespec left{7, 7};
        return s.takes(ms, [&] {
          return outcome(::nanosleep(&t, told ? &left : nullptr))
              .add(left.tv_sec)
              .add(left.tv_nsec);
        });
      });
      for (clockid_t c :
           {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI})
        test("clock " + std::to_string(c) + name, [=](situation& s) {
          const timespec t{0, ns};
          timespec left{7, 7};
          return s.takes(ms, [&] {
            return outcome(::clock_nanosleep(c, 0, &t, told ? &left : nullptr))
                .add(left.tv_sec)
                .add(left.tv_nsec);
          });
        });
    }
  for (clockid_t c :
       {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI}) {
    const std::string name = "until, by clock " + std::to_string(c);
    waits(name, [=](situation&) {
      const timespec t = in_ms(c, 20);
      timespec left{7, 7};
      outcome o(::clock_nanosleep(c, TIMER_ABSTIME, &t, &left));
      const timespec now = in_ms(c, 0);
      const bool late = now.tv_sec != t.tv_sec ? now.tv_sec > t.tv_sec
                                               : now.tv_nsec >= t.tv_nsec;
      return o.add(late).add(left.tv_sec);
    });
    same(name + ", past", [=](situation&) {
      const timespec t{1, 0}, wrong{1, 1000000000}, negative{-1, 0};
      outcome o(::clock_nanosleep(c, TIMER_ABSTIME, &t, nullptr));
      return o.add(::clock_nanosleep(c, TIMER_ABSTIME, &wrong, nullptr))
          .add(::clock_nanosleep(c, TIMER_ABSTIME, &negative, nullptr))
          .add(::clock_nanosleep(c, 0, &negative, nullptr));
    });
  }
  for (clockid_t c : {CLOCK_THREAD_CPUTIME_ID, CLOCK_MONOTONIC_RAW,
                      CLOCK_REALTIME_COARSE, clockid_t{77}})
    same("no clock to sleep by " + std::to_string(c), [=](situation&) {
      const timespec t{0, 1000};
      return outcome(::clock_nanosleep(c, 0, &t, nullptr))
          .add(::clock_nanosleep(c, TIMER_ABSTIME, &t, nullptr));
    });
}

// --- processes ---------------------------------------------------------------

// One that waits for signals.
static pid_t child(int (*f)() = ::pause, bool group = false) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (group) ::setpgid(0, 0);
    ::_exit(f());
  }
  if (group) ::setpgid(pid, pid);
  return pid;
}

struct child_waiter {
  const char* name;
  pid_t (*call)(pid_t, int* status, int options);
};
static const child_waiter child_waiters[] = {
    {"waitpid", ::waitpid},
    {"wait4",
     [](pid_t pid, int* status, int options) {
       rusage used{};
       used.ru_nvcsw = -1;
       const pid_t p = ::wait4(pid, status, options, &used);
       if (p > 0 && used.ru_nvcsw < 0) *status = -2;
       return p;
     }},
    {"wait3, whoever is asked for",
     [](pid_t, int* status, int options) {
       return ::wait3(status, options, nullptr);
     }},
};

// What became of the child: it itself stands as 1.
static outcome became(const child_waiter& w, pid_t pid, pid_t of,
                      int options = 0) {
  int status = -1;
  const pid_t p = w.call(of, &status, options);
  return outcome(p == pid ? 1 : p).add(status);
}

TEST_CASE("waitpid, wait4 and wait3") {
  for (const child_waiter& w : child_waiters) {
    const std::string name = w.name;
    const auto of = [](int whom, pid_t pid) {
      return whom == 0 ? pid : whom == 1 ? -1 : whom == 2 ? -pid : 0;
    };
    for (int whom : {0, 1, 2, 3}) {
      const std::string more = ", whom " + std::to_string(whom);
      waits(name + more, [&](situation& s) {
        const pid_t pid = child(::pause, whom == 2);
        const auto helps = s.later([&] { ::kill(pid, SIGTERM); });
        outcome o = became(w, pid, of(whom, pid));
        return o.add(became(w, pid, of(whom, pid)));
      });
      same(name + more + ", WNOHANG", [&](situation&) {
        const pid_t pid = child(::pause, whom == 2);
        outcome o = became(w, pid, of(whom, pid), WNOHANG);
        ::kill(pid, SIGKILL);
        return o.add(became(w, pid, of(whom, pid)));
      });
      waits(name + more + ", stopped", [&](situation& s) {
        const pid_t pid = child(::pause, whom == 2);
        const pid_t p = of(whom, pid);
        const auto helps = s.later([&] { ::kill(pid, SIGSTOP); });
        outcome o = became(w, pid, p, WUNTRACED);
        const auto helps_again = s.later([&] { ::kill(pid, SIGCONT); });
        o.add(became(w, pid, p, WCONTINUED));
        ::kill(pid, SIGKILL);
        return o.add(became(w, pid, p, WUNTRACED | WCONTINUED));
      });
    }
    same(name + ", gone already", [&](situation&) {
      const pid_t pid = child([] { return 3; });
      ::usleep(5000);
      outcome o = became(w, pid, pid);
      return o.add(became(w, pid, pid)).add(became(w, pid, pid, WNOHANG));
    });
    same(name + ", no child of ours", [&](situation&) {
      outcome o = became(w, 1, 1);
      o.add(became(w, 1, INT32_MIN)).add(became(w, 1, ::getpid()));
      return o.add(became(w, 1, -1)).add(became(w, 1, 0, 1 << 20));
    });
    waits(name + ", SIGCHLD ignored", [&](situation& s) {
      ::signal(SIGCHLD, SIG_IGN);
      const pid_t pid = child();
      const auto helps = s.later([&] { ::kill(pid, SIGTERM); });
      outcome o = became(w, pid, pid);
      ::signal(SIGCHLD, SIG_DFL);
      return o;
    });
    waits(name + ", no status asked", [&](situation& s) {
      const pid_t pid = child();
      const auto helps = s.later([&] { ::kill(pid, SIGTERM); });
      return outcome((w.name[4] == '4' ? ::wait4(pid, nullptr, 0, nullptr)
                                       : ::waitpid(pid, nullptr, 0)) == pid);
    });
  }
}

TEST_CASE("system") {
  for (const char* command :
       {"exit 3", "exit 127", "kill -9 $$", "", "/nonexistent 2>/dev/null",
        "test -t 9 || exit 1"})
    same(command, [=](situation&) { return outcome(std::system(command)); });
  same("no command", [](situation&) { return outcome(std::system(nullptr)); });
  same("what is ignored and what is blocked", [](situation&) {
    const auto usual = ::signal(SIGPIPE, SIG_IGN);
    sigset_t mask, before;
    ::sigemptyset(&mask);
    ::sigaddset(&mask, SIGUSR1);
    ::pthread_sigmask(SIG_BLOCK, &mask, &before);
    outcome o(std::system("kill -PIPE $$; kill -USR1 $$; exit 3"));
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    ::signal(SIGPIPE, usual);
    return o;
  });
  waits("a command that takes time", [](situation& s) {
    return s.takes(30ms, [] { return outcome(std::system("sleep 0.03")); });
  });
  waits("a command that waits for us", [](situation& s) {
    const std::string name = fresh_name();
    must(::mkfifo(name.c_str(), 0600));
    const int fd = s.keep(::open(name.c_str(), O_RDWR | O_CLOEXEC));
    const auto helps = s.later([&] { put(fd, "hello\n"); });
    outcome o(std::system(("read x < " + name + "; exit ${#x}").c_str()));
    ::unlink(name.c_str());
    return o;
  });
}

// --- locks -------------------------------------------------------------------

TEST_CASE("flock") {
  const auto two = [](situation& s) {
    const std::string name = fresh_name();
    const int a = file(s, "", name);
    return std::pair<int, int>(a, file(s, "", name));
  };
  for (int mine : {LOCK_SH, LOCK_EX})
    for (int theirs : {LOCK_SH, LOCK_EX}) {
      const std::string name =
          std::to_string(mine) + " against " + std::to_string(theirs);
      same(name + ", LOCK_NB", [=](situation& s) {
        const auto f = two(s);
        must(::flock(f.second, theirs));
        outcome o(::flock(f.first, mine | LOCK_NB));
        return o.add(outcome(::flock(f.first, LOCK_UN)));
      });
      const bool clash = mine == LOCK_EX || theirs == LOCK_EX;
      (clash ? waits : same)(name, [=](situation& s) {
        const auto f = two(s);
        must(::flock(f.second, theirs));
        const auto helps = s.later([&] { ::flock(f.second, LOCK_UN); });
        outcome o(::flock(f.first, mine));
        s.finish();
        return o.add(outcome(::flock(f.second, LOCK_EX | LOCK_NB)));
      });
    }
  waits("until it is closed", [=](situation& s) {
    const auto f = two(s);
    must(::flock(f.second, LOCK_EX));
    const auto helps = s.later([&] { s.drop(f.second); });
    return outcome(::flock(f.first, LOCK_SH));
  });
  waits("made stronger", [=](situation& s) {
    const auto f = two(s);
    must(::flock(f.first, LOCK_SH) | ::flock(f.second, LOCK_SH));
    const auto helps = s.later([&] { ::flock(f.second, LOCK_UN); });
    return outcome(::flock(f.first, LOCK_EX));
  });
  same("what cannot be", [=](situation& s) {
    const auto f = two(s);
    outcome o(::flock(-1, LOCK_EX));
    return o.add(outcome(::flock(f.first, 77)))
        .add(outcome(::flock(f.first, LOCK_NB)));
  });
}

static outcome locked(int fd, int command, short type, long at = 0,
                      short whence = SEEK_SET) {
  struct flock f {};
  f.l_type = type;
  f.l_whence = whence;
  f.l_start = at;
  f.l_len = 1;
  return outcome(::fcntl(fd, command, &f)).add(f.l_type);
}

TEST_CASE("fcntl that locks") {
  for (int wait : {0, 1}) {
    const int posix = wait ? F_SETLKW : F_SETLK;
    const int ofd = wait ? F_OFD_SETLKW : F_OFD_SETLK;
    for (short type : {short{F_RDLCK}, short{F_WRLCK}})
      (wait ? waits : same)(
          "another process's, " + std::to_string(type + 10 * wait),
          [=](situation& s) {
            static int fd, ready;
            const line told = make(s, pipes);
            fd = file(s);
            ready = told.out;
            const pid_t pid = child([] {
              locked(fd, F_SETLK, F_WRLCK);
              put(ready, "x");
              return ::pause();
            });
            drain(told.in, 1);
            outcome o = locked(fd, F_GETLK, F_WRLCK);
            const auto helps = s.later([&] { ::kill(pid, SIGKILL); });
            o.add(locked(fd, posix, type));
            s.finish();
            ::waitpid(pid, nullptr, 0);
            return o.add(locked(fd, posix, F_UNLCK));
          });
    for (short type : {short{F_RDLCK}, short{F_WRLCK}})
      (wait ? waits : same)(
          "of another description, " + std::to_string(type + 10 * wait),
          [=](situation& s) {
            const std::string name = fresh_name();
            const int a = file(s, "", name), b = file(s, "", name);
            outcome o = locked(b, F_OFD_SETLK, F_WRLCK);
            o.add(locked(a, F_OFD_GETLK, F_RDLCK));
            const auto helps =
                s.later([&] { locked(b, F_OFD_SETLK, F_UNLCK); });
            o.add(locked(a, ofd, type)).add(locked(a, ofd, F_WRLCK, 7));
            s.finish();
            return o.add(locked(b, F_OFD_SETLK, F_WRLCK));
          });
    for (int command : {posix, ofd})
      same("what cannot be, " + std::to_string(command), [=](situation& s) {
        const int f = file(s), null = s.keep(::open("/dev/null", O_RDONLY));
        outcome o = locked(-1, command, F_WRLCK);
        o.add(locked(f, command, 77)).add(locked(f, command, F_WRLCK, -5));
        o.add(locked(f, command, F_WRLCK, 0, 9));
        o.add(locked(null, command, F_WRLCK));
        return o.add(locked(f, command, F_WRLCK))
            .add(locked(f, command, F_RDLCK));
      });
  }
}

TEST_CASE("fcntl that does not") {
  same("fcntl", [](situation& s) {
    const line l = make(s, pipes);
    outcome o(::fcntl(l.in, F_GETFD));
    o.add(::fcntl(l.in, F_SETFD, 0)).add(::fcntl(l.in, F_GETFD));
    const int copy = ::fcntl(l.in, F_DUPFD, 800);
    o.add(copy).add(::fcntl(s.keep(copy), F_GETFD));
    o.add(::fcntl(s.keep(::fcntl(l.in, F_DUPFD_CLOEXEC, 801)), F_GETFD));
    o.add(::fcntl(l.out, F_SETPIPE_SZ, 65536))
        .add(::fcntl(l.out, F_GETPIPE_SZ));
    o.add(::fcntl(l.in, F_SETOWN, -::getpgrp()));
    o.add(::fcntl(l.in, F_GETOWN) == -::getpgrp());
    f_owner_ex owner{F_OWNER_TID, 1};
    o.add(::fcntl(l.in, F_GETOWN_EX, &owner)).add(owner.type);
    o.add(outcome(::fcntl(l.in, 4711))).add(outcome(::fcntl(-1, F_GETFL)));
    o.add(outcome(::fcntl(l.in, F_DUPFD, -1)));
    o.add(outcome(::fcntl(l.in, F_GET_SEALS)));
    return o.add(::fcntl(l.in, F_SETSIG, 0)).add(::fcntl(l.in, F_GETSIG));
  });
}

// --- names -------------------------------------------------------------------

static outcome looked_up(const char* host, const char* service, int flags = 0,
                         int family = AF_UNSPEC, int type = SOCK_STREAM) {
  addrinfo hints{};
  hints.ai_flags = flags;
  hints.ai_family = family;
  hints.ai_socktype = type;
  addrinfo* all = nullptr;
  outcome o(::getaddrinfo(host, service, &hints, &all), 0);
  if (o.result != 0) return o;
  for (addrinfo* a = all; a != nullptr; a = a->ai_next) {
    char name[99], port[99];
    ::getnameinfo(a->ai_addr, a->ai_addrlen, name, sizeof name, port,
                  sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
    o.add(a->ai_family).add(a->ai_socktype).add(a->ai_protocol);
    o.add(a->ai_flags).add(name).add(port);
    if (a->ai_canonname != nullptr) o.add(a->ai_canonname);
  }
  ::freeaddrinfo(all);
  return o;
}

TEST_CASE("getaddrinfo") {
  const char* const none = nullptr;
  for (const char* host :
       {none, "127.0.0.1", "127.1", "::1", "localhost", "1.2.3.4.5", ""})
    for (const char* service : {none, "80", "http", "no such service"})
      for (int flags : {0, +AI_NUMERICHOST, AI_NUMERICSERV | AI_NUMERICHOST,
                        AI_PASSIVE | AI_NUMERICHOST, 1 << 14})
        for (int family : {AF_UNSPEC, AF_INET, AF_INET6, 99}) {
          if (flags == 0 && host != nullptr) {  // may ask a server
            const std::string h = host;
            if (h != "127.0.0.1" && (h != "localhost" || family == AF_INET6))
              continue;
          }
          const std::string name = std::string(host ? host : "none") + ' ' +
                                   (service ? service : "none") + ' ' +
                                   std::to_string(flags) + ' ' +
                                   std::to_string(family);
          same(name, [=](situation&) {
            return looked_up(host, service, flags, family);
          });
        }
  for (const char* host : {"localhost", "127.0.0.1"})
    same(std::string(host) + ", AI_CANONNAME", [=](situation&) {
      return looked_up(host, none, AI_CANONNAME, AF_INET);
    });
  for (int type : {0, +SOCK_DGRAM, +SOCK_RAW, 77})
    same("type " + std::to_string(type), [=](situation&) {
      return looked_up("127.0.0.1", "80", 0, AF_UNSPEC, type)
          .add(looked_up("localhost", "domain", 0, AF_INET, type));
    });
  same("no hints", [](situation&) {
    addrinfo* all = nullptr;
    outcome o(::getaddrinfo("127.0.0.1", "1", nullptr, &all));
    for (addrinfo* a = all; a != nullptr; a = a->ai_next) o.add(a->ai_socktype);
    ::freeaddrinfo(all);
    return o;
  });
}

TEST_CASE("getnameinfo") {
  for (int flags : {NI_NUMERICHOST | NI_NUMERICSERV, 0, +NI_NAMEREQD,
                    NI_NUMERICHOST | NI_DGRAM, 1 << 20})
    for (socklen_t room : {0U, 4U, 100U})
      for (socklen_t length : {2U, 16U, 100U})
        for (int family : {AF_INET, AF_UNIX, 99})
          same(std::to_string(flags) + ' ' + std::to_string(room) + ' ' +
                   std::to_string(length) + ' ' + std::to_string(family),
               [=](situation&) {
                 sockaddr_storage a{};
                 const sockaddr_in in = loopback(80);
                 std::memcpy(&a, &in, sizeof in);
                 a.ss_family = static_cast<sa_family_t>(family);
                 if (family == AF_UNIX) return outcome(0);
                 char host[100] = {}, service[100] = {};
                 outcome o(::getnameinfo(any(a), length, host, room, service,
                                         room, flags),
                           0);
                 return o.result == 0 ? o.add(host).add(service) : o;
               });
}

static outcome told(const hostent* h) {
  if (h == nullptr) return outcome(-2).add(h_errno);
  outcome o(0);
  o.add(h->h_name).add(h->h_addrtype).add(h->h_length);
  for (char** p = h->h_aliases; *p != nullptr; ++p) o.add(*p);
  for (char** p = h->h_addr_list; *p != nullptr; ++p)
    o.add(std::string(*p, static_cast<size_t>(h->h_length)));
  return o;
}

TEST_CASE("gethostbyname and its family") {
  for (const char* name : {"localhost", "127.0.0.1", "256.256.256.256"}) {
    same(name, [=](situation&) {
      return told(::gethostbyname(name))
          .add(told(::gethostbyname2(name, AF_INET)));
    });
    for (size_t room : {size_t{5}, size_t{40}, size_t{2000}})
      same(std::string(name) + ", room for " + std::to_string(room),
           [=](situation&) {
             std::vector<char> b(room);
             hostent h{}, *found = &h;
             int e = 77;
             outcome o(::gethostbyname_r(name, &h, b.data(), room, &found, &e));
             o.add(found == &h).add(found == nullptr ? e : 0);
             found = &h;
             const int r = ::gethostbyname2_r(name, AF_INET, &h, b.data(), room,
                                              &found, &e);
             o.add(r).add(found == &h).add(e);
             if (found != nullptr && room == 2000) o.add(told(found));
             const sockaddr_in at = loopback();
             found = &h;
             o.add(::gethostbyaddr_r(&at.sin_addr, 4, AF_INET, &h, b.data(),
                                     room, &found, &e));
             return o.add(found == &h).add(found == nullptr ? e : 0);
           });
  }
  same("::1",
       [](situation&) { return told(::gethostbyname2("::1", AF_INET6)); });
  same("gethostbyaddr", [](situation&) {
    const sockaddr_in a = loopback();
    return told(::gethostbyaddr(&a.sin_addr, 4, AF_INET))
        .add(told(::gethostbyaddr(&a.sin_addr, 3, AF_INET)));
  });
}

// --- from descriptor to descriptor -------------------------------------------

TEST_CASE("pread, pwrite and their family") {
  const auto all = [](int fd, off_t at) {
    char b[8] = {};
    outcome o(::pread(fd, b, 3, at));
    o.add(b);
    o.add(outcome(::pread64(fd, b, 2, at))).add(b);
    o.add(outcome(::preadv(fd, message(b, 5).parts, 2, at))).add(b);
    o.add(outcome(::preadv2(fd, message(b, 2).parts, 2, at, RWF_NOWAIT) >= 0));
    o.add(outcome(::pwrite(fd, "uv", 2, at)));
    o.add(outcome(::pwrite64(fd, "xyz", 3, at + 1)));
    o.add(outcome(::pwritev(fd, message("pq", 2).parts, 2, at + 2)));
    o.add(outcome(::pwritev2(fd, message("!", 1).parts, 2, at + 3, 0)));
    o.add(outcome(::preadv2(fd, message(b, 2).parts, 2, at, 1 << 20)));
#ifdef __GLIBC__
    o.add(outcome(::__pread_chk(fd, b, 6, at, 8))).add(b);
#endif
    o.add(::lseek(fd, 0, SEEK_CUR));
    return o;
  };
  for (off_t at : {off_t{0}, off_t{3}, off_t{99}, off_t{-1}, off_t{-5}}) {
    const std::string name = "at " + std::to_string(at);
    same(name + ", file",
         [=](situation& s) { return all(file(s, "0123456789"), at); });
    same(name + ", nothing", [=](situation&) { return all(-1, at); });
    if (at == -1) continue;
    for (kind k : {stream, pipes, fifo, tty})
      same(name + ", " + kind_names[k],
           [=](situation& s) { return all(make(s, k).in, at); });
  }
  for (kind k : {stream, pipes, fifo})
    same(std::string("RWF_NOWAIT, ") + kind_names[k], [=](situation& s) {
      const line l = make(s, k);
      char b[8];
      outcome o(::preadv2(l.in, message(b, 8).parts, 2, -1, RWF_NOWAIT));
      put(l.out, "hello");
      o.add(outcome(::preadv2(l.in, message(b, 8).parts, 2, -1, RWF_NOWAIT)));
      fill(l.out);
      return o.add(
          outcome(::pwritev2(l.out, message(b, 8).parts, 2, -1, RWF_NOWAIT)));
    });
}

TEST_CASE("sendfile") {
  const std::string much = pattern(1 << 22);
  for (kind k : {stream, tcp, pipes, fifo, datagram, tty}) {
    const std::string name = kind_names[k];
    for (off_t at : {off_t{-1}, off_t{0}, off_t{4}, off_t{99}})
      same(name + ", from " + std::to_string(at), [=](situation& s) {
        const line l = make(s, k);
        const int f = file(s, "0123456789");
        off_t from = at;
        off_t* const where = at < 0 ? nullptr : &from;
        outcome o(::sendfile(l.out, f, where, 3));
        o.add(outcome(::sendfile(l.out, f, where, 0)));
        return o.add(from).add(::lseek(f, 0, SEEK_CUR)).add(rest(l.in));
      });
    if (is_message(k) || is_terminal(k)) continue;
    (is_socket(k) ? waits : same)(name + ", much", [&](situation& s) {
      const line l = make(s, k);
      const int f = file(s, much);
      std::string all;
      const auto helps = s.later([&] { all = drain(l.in, much.size()); });
      outcome o(::sendfile(l.out, f, nullptr, 1 << 23));
      o.add(::lseek(f, 0, SEEK_CUR));
      s.drop(l.out);
      s.finish();
      return o.add(static_cast<long>(all.size())).add(all == much);
    });
    waits(name + ", full", [=](situation& s) {
      const line l = make(s, k);
      const int f = file(s, "0123456789");
      const size_t n = fill(l.out);
      off_t from = 2;
      const auto helps = s.later([&] { drain(l.in, n); });
      outcome o(::sendfile(l.out, f, &from, 5));
      s.finish();
      return o.add(from).add(rest(l.in));
    });
    same(name + ", full, O_NONBLOCK", [=](situation& s) {
      const line l = make(s, k);
      const int f = file(s, "0123456789");
      fill(l.out);
      set_flag(l.out, true);
      off_t from = 2;
      return outcome(::sendfile(l.out, f, &from, 5)).add(from);
    });
    same(name + ", closed", [=](situation& s) {
      const line l = make(s, k);
      s.drop(l.in);
      if (k == tcp) put(l.out, "x"), ::usleep(2000);
      const int before = broken_pipes;
      outcome o(::sendfile(l.out, file(s, "0123456789"), nullptr, 5));
      return o.add(broken_pipes - before);
    });
  }
  same("from what is no file", [](situation& s) {
    const int f = file(s, "01234"), g = file(s);
    outcome o(::sendfile(make(s, stream).out, make(s, pipes).in, nullptr, 0));
    const line l = make(s, tcp);
    o.add(outcome(::sendfile(g, l.in, nullptr, 0)));
    o.add(outcome(::sendfile(-1, f, nullptr, 5)));
    o.add(outcome(::sendfile(l.out, -1, nullptr, 5)));
    off_t wrong = -5;
    o.add(outcome(::sendfile(l.out, f, &wrong, 5)));
    return o.add(outcome(::sendfile(g, f, nullptr, 5)))
        .add(::lseek(g, 0, SEEK_CUR));
  });
}

TEST_CASE("splice") {
  const auto move = [](int from, int to, size_t n = 20, unsigned flags = 0) {
    return outcome(::splice(from, nullptr, to, nullptr, n, flags));
  };
  for (kind k : {stream, tcp, pipes, fifo}) {
    const std::string name = kind_names[k];
    waits(name + ", into a pipe", [=](situation& s) {
      const line l = make(s, k), p = make(s, pipes);
      const auto helps = s.later([&] { put(l.out, "hello"); });
      outcome o = move(l.in, p.out);
      return o.add(rest(p.in)).add(::fcntl(l.in, F_GETFL));
    });
    waits(name + ", closed meanwhile", [=](situation& s) {
      const line l = make(s, k), p = make(s, pipes);
      const auto helps = s.later([&] { s.drop(l.out); });
      return move(l.in, p.out);
    });
    waits(name + ", into a full pipe", [=](situation& s) {
      const line l = make(s, k), p = make(s, pipes);
      put(l.out, "hello");
      const size_t n = fill(p.out);
      const auto helps = s.later([&] { drain(p.in, n); });
      outcome o = move(l.in, p.out);
      s.finish();
      return o.add(rest(p.in));
    });
    waits(name + ", full, from a pipe", [=](situation& s) {
      const line l = make(s, k), p = make(s, pipes);
      put(p.out, "hello");
      const size_t n = fill(l.out);
      const auto helps = s.later([&] { drain(l.in, n); });
      outcome o = move(p.in, l.out);
      s.finish();
      return o.add(rest(l.in));
    });
    waits(name + ", from a pipe", [=](situation& s) {
      const line l = make(s, k), p = make(s, pipes);
      const auto helps = s.later([&] { put(p.out, "hello"); });
      outcome o = move(p.in, l.out);
      return o.add(rest(l.in));
    });
    for (bool flag : {true, false}) {
      const unsigned how = flag ? SPLICE_F_NONBLOCK : 0;
      same(name + ", empty" + (flag ? "" : ", O_NONBLOCK"), [=](situation& s) {
        const line l = make(s, k), p = make(s, pipes);
        set_flag(l.in, true);
        set_flag(p.in, !flag);
        outcome o = move(l.in, p.out, 20, how);
        return o.add(move(p.in, l.out, 20, how));
      });
      same(name + ", full" + (flag ? "" : ", O_NONBLOCK"), [=](situation& s) {
        const line l = make(s, k), p = make(s, pipes);
        put(p.out, "hello");
        fill(l.out);
        set_flag(l.out, true);
        return move(p.in, l.out, 20, how).add(rest(p.in));
      });
    }
    same(name + ", no bytes", [=](situation& s) {
      const line l = make(s, k), p = make(s, pipes);
      return move(l.in, p.out, 0);
    });
  }
  same("files", [=](situation& s) {
    const line p = make(s, pipes);
    const int f = file(s, "0123456789");
    off64_t at = 3;
    outcome o(::splice(f, &at, p.out, nullptr, 4, SPLICE_F_MOVE));
    o.add(at).add(::lseek(f, 0, SEEK_CUR));
    o.add(outcome(::splice(p.in, nullptr, f, &at, 4, 0))).add(at);
    s.drop(p.out);
    return o.add(rest(f)).add(move(p.in, f));
  });
  same("what cannot be", [=](situation& s) {
    const line l = make(s, stream), p = make(s, pipes);
    off64_t at = 0;
    outcome o = move(l.in, l.out);
    o.add(outcome(::splice(p.in, &at, l.out, nullptr, 5, 0)));
    o.add(outcome(::splice(l.in, &at, p.out, nullptr, 5, 0)));
    o.add(move(-1, p.out)).add(move(p.in, -1)).add(move(p.in, p.out));
    o.add(move(p.out, l.out)).add(move(l.in, p.in));
    return o.add(move(p.in, l.out, 5, 1 << 20));
  });
}

// --- the program -------------------------------------------------------------

int main(int argc, char** argv) {
  ::signal(SIGALRM, [](int) {
    static const char text[] = "conformance: hangs in: ";
    for (const char* p : {text + 0, const_cast<const char*>(now_running)})
      if (::syscall(SYS_write, 2, p, std::strlen(p)) < 0) break;
    ::_exit(1);
  });
  ::alarm(110);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  ::signal(SIGPIPE, [](int) { ++broken_pipes; });
  char directory[] = "/tmp/bao_conformance_XXXXXX";
  must(::mkdtemp(directory) == nullptr ? -1 : 0);
  scratch = directory;
  auto beside = bao::spawn([] {
    for (;; ++turns) bao::sleep(1ms);
  });
  bao::offload([] {});  // makes what it keeps, such as descriptors
  doctest::Context context(argc, argv);
  const int failed = context.run();
  if (context.shouldExit() == false)
    std::printf("%d comparisons\n", comparisons);
  beside.kill();
  if (std::system(("rm -r " + scratch).c_str()) != 0) return 1;
  return failed;
}
