// under_libuv.cpp - tasks and libuv's callbacks share one thread
//
// libuv has the loop. It watches our poller's descriptors and our next timer
// like any of its own, and calls run_ready() when one of them has news. The
// callbacks of its timers and of its sockets go on as ever.
//
// V48: prepare and run_ready under a loop of somebody else's.
#include <uv.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bao.hpp"

using namespace std::chrono_literals;

namespace {

// What it takes to have bao run inside a uv_loop_t.
class inside {
 public:
  explicit inside(uv_loop_t* loop) : loop_(loop) {
    uv_prepare_init(loop, &prepare_);
    uv_timer_init(loop, &timer_);
    prepare_.data = timer_.data = this;
    uv_prepare_start(&prepare_, [](uv_prepare_t* p) {
      static_cast<inside*>(p->data)->arm();
    });
  }
  ~inside() {
    uv_close(reinterpret_cast<uv_handle_t*>(&prepare_), nullptr);
    uv_close(reinterpret_cast<uv_handle_t*>(&timer_), nullptr);
    for (auto& [fd, poll] : polls_)
      uv_close(reinterpret_cast<uv_handle_t*>(poll.get()), nullptr);
    uv_run(loop_, UV_RUN_NOWAIT);
  }

 private:
  // Before each sleep of the loop: tells it what we wait for.
  void arm() {
    std::vector<pollfd> fds;
    const bao::deadline until = bao::this_scheduler().prepare(fds);
    for (auto& [fd, poll] : polls_) uv_poll_stop(poll.get());
    for (const pollfd& p : fds) watch(p);
    uv_timer_stop(&timer_);
    if (until.is_never()) return;
    const auto left = until.at() - bao::now().time_since_epoch().count();
    const auto ms = until.passed() ? 0 : (left + 999999) / 1000000;
    uv_timer_start(
        &timer_, [](uv_timer_t*) { bao::this_scheduler().run_ready(); },
        static_cast<std::uint64_t>(ms), 0);
  }
  void watch(const pollfd& p) {
    auto& poll = polls_[p.fd];
    if (poll == nullptr) {
      poll = std::make_unique<uv_poll_t>();
      uv_poll_init(loop_, poll.get(), p.fd);
    }
    const int events = ((p.events & POLLIN) != 0 ? UV_READABLE : 0) |
                       ((p.events & POLLOUT) != 0 ? UV_WRITABLE : 0);
    uv_poll_start(poll.get(), events, [](uv_poll_t*, int, int) {
      bao::this_scheduler().run_ready();
    });
  }

  uv_loop_t* loop_;
  uv_prepare_t prepare_;
  uv_timer_t timer_;
  std::map<int, std::unique_ptr<uv_poll_t>> polls_;
};

void expect(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "under_libuv: %s\n", what);
  std::exit(1);
}

}  // namespace

int main() {
  uv_loop_t* const loop = uv_default_loop();
  int ticks = 0;  // of libuv's own timer, next to our tasks
  std::string answers;
  {
    inside uv(loop);
    uv_timer_t ticker;
    uv_timer_init(loop, &ticker);
    ticker.data = &ticks;
    uv_timer_start(
        &ticker, [](uv_timer_t* t) { ++*static_cast<int*>(t->data); }, 1, 1);

    auto [left, right] = bao::socket_pair();
    auto server = bao::spawn([&, &theirs = right] {
      while (auto line = theirs.read_line()) theirs.write_all(*line + "!\n");
    });
    auto client = bao::spawn([&, &ours = left] {
      for (int i = 0; i < 3; ++i) {
        ours.write_all("hi\n");
        answers += *ours.read_line(10s);
        bao::sleep(5ms);
      }
      ours.shutdown_write();
    });
    for (int i = 0; i < 10000 && !server.done(); ++i) uv_run(loop, UV_RUN_ONCE);
    expect(client.done() && client.ok(), "the client has not ended");
    expect(server.done(), "the server has not ended");
    uv_close(reinterpret_cast<uv_handle_t*>(&ticker), nullptr);
  }
  expect(answers == "hi!hi!hi!", "wrong answers");
  expect(ticks >= 3, "libuv's timer had no turn");
  std::puts("tasks and libuv share the thread");
}
