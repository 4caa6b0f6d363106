// bao/server.hpp - a task for each connection
//
//     bao::tcp_server server("127.0.0.1:8080", [](bao::tcp_stream& peer) {
//       while (auto line = peer.read_line()) peer.write_all(*line + "\n");
//     });
//     auto end = bao::on_signal(SIGTERM, [&] { server.stop(5s); });
//     server.serve();
//
// To accept and spawn takes two lines and needs no class. This one adds what a
// program in service needs. It limits how many clients are served at a time:
// the others wait in the system's queue. It ends gracefully: the clients that
// are there may finish in a time of grace, but their handlers are not told, and
// one that waits for a silent client takes all of it. And a server may run on
// several threads, each with a scheduler and a listener of its own, among which
// the system divides the connections:
//
//              port 8080
//     thread 1   thread 2   thread 3        no task ever leaves its thread,
//     |     |    |     |    |     |         nothing is shared but the handler
//    task  task task  task task  task
//
// Beside accept and spawn, a connection costs a note on the heap.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <pthread.h>
#include <unistd.h>

#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

#include "bao/group.hpp"
#include "bao/socket.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// None of its members suspends. They throw std::invalid_argument for what makes
// no sense.
class server_options {
 public:
  // How many connections are served at a time, on all threads together.
  server_options& max_clients(std::size_t n) {
    if (n == 0 || n > unbounded)
      throw std::invalid_argument("max_clients: " + std::to_string(n));
    most_ = n;
    return *this;
  }
  // How many threads serve, that of serve() included. The handler must be fit
  // for several threads.
  server_options& threads(int n) {
    if (n < 1 || n > 1000)
      throw std::invalid_argument("threads: " + std::to_string(n));
    threads_ = n;
    return *this;
  }
  // How many connections the system may queue up, for each thread.
  server_options& backlog(int n) {
    if (n < 1) throw std::invalid_argument("backlog: " + std::to_string(n));
    backlog_ = n;
    return *this;
  }
  // Other processes may listen at the same address, if they say this as well.
  server_options& shared() {
    shared_ = true;
    return *this;
  }

 private:
  template <class>
  friend class server;
  std::size_t most_ = unbounded;
  int threads_ = 1;
  int backlog_ = 1024;
  bool shared_ = false;
};

// Only serve(), stop() and the destructor suspend. It belongs to the thread
// that made it: there it serves, and is stopped.
template <class Stream>
class server {
 public:
  // Listens from now on, at an address as for a listener, and throws what that
  // throws. handler(peer) takes the stream by value or by reference; when it
  // returns, the connection is closed. Its error ends that connection alone,
  // and goes to on_unhandled().
  template <class Handler>
  server(std::string_view at, Handler handler, server_options options = {})
      : server(address::parse(at), std::move(handler), options) {}
  template <class Handler>
  server(const address& at, Handler handler, server_options options = {})
      : options_(checked(options, at)),
        handler_([own = std::make_shared<Handler>(std::move(handler))](
                     Stream& peer) {
          if constexpr (std::is_invocable_v<Handler&, Stream>)
            (*own)(std::move(peer));
          else
            (*own)(peer);
        }),
        here_(*this, at, 0) {}
  server(const server&) = delete;
  // Stops without grace.
  ~server() {
    if (tasks_have_ended) return;
    shield in_peace;
    stop(clock::duration{0});
  }

  // Both throw std::system_error when it has stopped.
  int port() const { return here_.door.port(); }
  address local_address() const { return here_.door.local_address(); }
  // How many are served on this thread.
  std::size_t clients() const { return here_.size(); }

  // Suspends until it has been stopped. Throws what interrupts us, and
  // std::system_error when it cannot go on; then it has stopped as well. Throws
  // std::logic_error when it serves already.
  void serve() {
    if (stopped_) return;
    if (std::exchange(serves_, true))
      throw std::logic_error("serve: this server serves already");
    try {
      start_threads();
      here_.serve();
      threads_left_.wait();
    } catch (...) {
      shield in_peace;
      stop(clock::duration{0});
      throw;
    }
    for (other_thread& t : threads_)
      if (t.error != nullptr) std::rethrow_exception(t.error);
  }

  // Suspends until all clients have been served, those included who have
  // connected and wait to be accepted. At `grace` it kills those that are left;
  // true if there were none. Then the address can be used again. Throws
  // deadlock when a client's task calls, and what interrupts us: then another
  // stop() has to end it.
  bool stop(deadline grace = std::chrono::seconds(1)) {
    here_.expect_here("stop");
    if (here_.contains(self()))
      throw deadlock(
          "stop: a handler would wait for itself: spawn a task that stops");
    stopped_ = true;
    starting_.wait();
    for (other_thread& t : threads_)
      t.way.post([&t, grace] {
        if (t.mine != nullptr) t.all_served = t.mine->stop(grace);
      });
    bool all = here_.stop(grace);
    threads_left_.wait();
    for (other_thread& t : threads_) {
      all = all && t.all_served;
      if (std::exchange(t.runs, false)) ::pthread_join(t.id, nullptr);
    }
    return all;
  }

 private:
  static server_options checked(server_options o, const address& at) {
    const auto n = static_cast<std::size_t>(o.threads_);
    if (o.most_ < n || (n > 1 && at.family() == AF_UNIX))
      throw std::invalid_argument(
          "server: " + std::to_string(n) + " threads cannot divide " +
          std::to_string(o.most_) + " clients of " + at.to_string());
    return o;
  }

  // What it has on one thread.
  class part final : public task_set {
   public:
    part(server& s, const address& at, std::size_t index)
        : door(at, s.options_.backlog_,
               s.options_.shared_ || s.options_.threads_ > 1),
          server_(s),
          slots_(share(s.options_, index)) {
      expect_here("server");
    }
    ~part() {
      this->end();
      if (stops_.count() == 0) return;
      shield in_peace;
      stops_.wait();
    }

    void expect_here(const char* call) { stopped_.waiters().enter(call); }

    void serve() {
      acceptor_ =
          bao::spawn(task_options(place::nowhere()).name("accepting"), [this] {
            for (;;) accept_one(never, never);
          });
      acceptor_.join();
      if (!acceptor_.killed()) acceptor_.get();
      stopped_.wait();
      stops_.wait();
    }

    bool stop(deadline grace) {
      stops_.add();
      const at_end stopped([this] { stops_.done(); });
      if (acceptor_) acceptor_.kill();
      try {
        // No more than can have come before: others keep coming.
        for (int left = server_.options_.backlog_; left > 0; --left)
          if (!accept_one(grace, clock::duration{0})) break;
      } catch (const std::system_error&) {
        // Nobody else can come in. What the acceptor has met, serve() throws.
        if (!acceptor_ || acceptor_.killed())
          tell_unhandled("stop", std::current_exception());
      }
      close_door();
      const bool all = this->wait(grace, [] { return false; });
      if (!all) has_killed_ = true, this->kill();
      stopped_.set();
      return !has_killed_;
    }

    listener<Stream> door;

   private:
    // False when late: for a slot, or for a connection.
    bool accept_one(deadline slot_until, deadline until) {
      if (!slots_.acquire(slot_until)) return false;
      bool ours = true;  // the slot
      const at_end give_back([&] {
        if (ours) slots_.release();
      });
      if (door.fd() == -1) return false;
      std::optional<Stream> peer;
      try {
        peer.emplace(door.accept(until));
      } catch (const std::system_error& e) {
        if (e.code() == std::errc::timed_out || door.fd() == -1) return false;
        throw;
      }
      const auto t = bao::spawn(
          task_options(place::nowhere()).name("client"),
          [this](Stream s) { server_.handler_(s); }, std::move(*peer));
      this->enter(t.checked("serve"));
      ours = false;  // give_slot_back() does
      return true;
    }
    void give_slot_back() noexcept override { slots_.release(); }
    void close_door() {
      if (door.fd() == -1) return;
      const std::string name = door.local_address().to_string();
      door.close();
      // Else nobody could listen there again.
      if constexpr (std::is_same_v<Stream, unix_stream>)
        if (name.size() > 5 && name[5] != '@') ::unlink(name.c_str() + 5);
    }

    // How many of all clients the thread of that number may serve.
    static std::ptrdiff_t share(const server_options& o, std::size_t index) {
      const auto n = static_cast<std::size_t>(o.threads_);
      return static_cast<std::ptrdiff_t>(o.most_ / n + (index < o.most_ % n));
    }

    server& server_;
    semaphore slots_;
    task<> acceptor_;
    event stopped_;
    wait_group stops_;  // that are under way
    bool has_killed_ = false;
  };

  // One of the other threads.
  struct other_thread {
    other_thread(server& s, address where, std::size_t number)
        : of(s), at(where), index(number) {}

    server& of;
    address at;
    std::size_t index;
    pthread_t id{};
    bool runs = false;
    // From here on set by the thread, before it tells.
    part* mine = nullptr;
    remote way;
    std::exception_ptr error;
    bool all_served = true;
  };

  void start_threads() {
    if (options_.threads_ == 1) return;
    home_ = remote(this_scheduler());
    const address at = local_address();
    for (int i = 1; i < options_.threads_; ++i) {
      other_thread& t =
          threads_.emplace_back(*this, at, static_cast<std::size_t>(i));
      threads_left_.add();
      starting_.add();
      const int failed = ::pthread_create(&t.id, nullptr, run_thread, &t);
      t.runs = failed == 0;
      if (failed == 0) continue;
      threads_left_.done();
      starting_.done();
      throw_errno("pthread_create", failed);
    }
    starting_.wait();
    for (other_thread& t : threads_)
      if (t.error != nullptr) std::rethrow_exception(t.error);
  }

  static void* run_thread(void* one) {
    auto& t = *static_cast<other_thread*>(one);
    remote home = t.of.home_;
    bool started = false;
    const auto has_started = [&] {
      started = true;
      home.post([&s = t.of] { s.starting_.done(); });
    };
    try {
      part mine(t.of, t.at, t.index);
      t.mine = &mine;  // for what is posted here
      const at_end gone([&] { t.mine = nullptr; });
      t.way = remote(this_scheduler());
      has_started();
      mine.serve();
    } catch (...) {
      t.error = std::current_exception();
    }
    if (!started) has_started();
    home.post([&s = t.of] { s.threads_left_.done(); });
    return nullptr;
  }

  server_options options_;
  const std::function<void(Stream&)> handler_;
  part here_;
  bool serves_ = false;
  bool stopped_ = false;
  remote home_;
  std::deque<other_thread> threads_;
  wait_group starting_;
  wait_group threads_left_;
};

using tcp_server = server<tcp_stream>;
using unix_server = server<unix_stream>;

}  // namespace BAO_ABI
}  // namespace bao
