// bao/spawn.hpp - spawn, join, get, kill
//
//     auto eater = bao::spawn(eat, "harry");  // a task: runs when we wait
//     eater.join();                           // until it has ended
//     int eaten = eater.get();                // what it returned, or its error
//
// A task handle is cheap, can be copied, and does not own: the task runs on
// when the last one goes. When main() returns, the tasks that are left are
// killed. To spawn and join one takes about 60 ns on a warm stack.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <exception>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bao/generator.hpp"
#include "bao/wait_queue.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// The task that runs a callable on a stack of its own.
class spawned_task : public task_block {
 public:
  // Destroys the callable and its arguments, which were not used.
  void unwind() noexcept override {
    orphan = false;
    if (life != flow_state::created) return;
    life = flow_state::finished;
    drop_body();
  }

 protected:
  [[gnu::noinline]] ~spawned_task() override {}
  virtual void call_body() = 0;
  virtual void drop_body() noexcept = 0;

 private:
  fiber* run() noexcept override {
    scheduler& s = *home->tasks;
    stage = task_state::running;
    try {
      call_body();
    } catch (const killed& k) {
      ended_by_kill = k.is_for(flow);
      if (!ended_by_kill) error = std::current_exception();
    } catch (...) {
      error = what_ended("task");
    }
    cleaning = true;
    drop_body();
    drop_locals();
    return s.finish(*this);
  }

  void dispose() noexcept override {
    if (error != nullptr && !std::exchange(asked, true)) {
      char whose[400];  // a string might find no memory
      title_and_place(*this, whose);
      ++references;  // who is told may ask for self()
      tell_unhandled(whose, error);
      return give_up(1);
    }
    drop_locals();  // those of whoever was told of its end
    delete this;
  }
};

template <class R>
class task_frame : public spawned_task {
 public:
  using kept = std::conditional_t<
      std::is_void_v<R>, nothing,
      std::conditional_t<std::is_reference_v<R>,
                         std::add_pointer_t<std::remove_reference_t<R>>, R>>;
  std::optional<kept> result;
};

template <class R, class F, class... Args>
class task_call final : public frame_with_body<task_frame<R>, F, Args...> {
 public:
  using frame_with_body<task_frame<R>, F, Args...>::frame_with_body;

 private:
  void call_body() override {
    if constexpr (std::is_void_v<R>)
      this->body(), this->result.emplace();
    else if constexpr (std::is_reference_v<R>)
      this->result = std::addressof(this->body());
    else
      this->result.emplace(this->body());
  }
  // Destroys the result too if nobody can ask for it: its destructor may have
  // to wait as well.
  void drop_body() noexcept override {
    frame_with_body<task_frame<R>, F, Args...>::drop_body();
    if constexpr (!std::is_trivially_destructible_v<
                      typename task_frame<R>::kept>)
      if (this->references == 1 && this->watchers.empty()) this->result.reset();
  }
};

// Where a task was spawned: filled in by the compiler at the call.
struct place {
  const char* file;
  int line;

  static constexpr place here(const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
    return {file, line};
  }
  static constexpr place nowhere() { return {"", 0}; }
};

// What a task is given besides its callable:
//     bao::spawn(bao::task_options().name("crawler").stack_size(64 * 1024), f);
// None of its members suspends.
class task_options {
 public:
  explicit task_options(place at = place::here()) : at_(at) {}

  // For reports; "" unless set.
  task_options& name(std::string name) {
    name_ = std::move(name);
    return *this;
  }
  // In bytes, rounded up to a power of two, 16 KiB to 1 GiB.
  task_options& stack_size(std::size_t bytes) {
    stack_size_ = bytes;
    return *this;
  }

  void apply_to(task_block& t) {
    if (!name_.empty()) t.name = std::move(name_);
    t.stack_size = stack_size_;
    t.file = at_.file;
    t.line = at_.line;
  }

 private:
  place at_;
  std::string name_;
  std::size_t stack_size_ = default_stack_size;
};

// Wakes a task when another one has ended.
struct joiner : completion {
  task_block* waits = nullptr;
  joiner() {
    ended = [](completion& c, task_block& t) {
      t.home->tasks->wake(*static_cast<joiner&>(c).waits);
    };
  }
};

// A handle of a task that returns R. A task<R> converts to a task<>. Of its
// members only join(), get() and kill() suspend. All throw wrong_thread on
// another thread than the task's own; only to destroy a handle is safe
// anywhere. Those of an empty handle throw std::logic_error.
template <class R = void>
class task {
 public:
  task() = default;
  task(const task& other) : task(other.block_) {}
  task(task&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  template <class S,
            class = std::enable_if_t<std::is_void_v<R> && !std::is_void_v<S>>>
  task(const task<S>& other) : task(other.block_) {}
  task& operator=(task other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~task() {
    if (block_ != nullptr) block_->release();
  }

  // Suspends until the task has ended (true) or `until` passes (false). Throws
  // what interrupts us, and deadlock when it is ourselves; never its error.
  bool join(deadline until = never) const {
    task_block& b = checked("join");
    scheduler& s = this_scheduler();
    if (b.stage == task_state::done) return true;
    task_block& me = s.running();
    if (&b == &me)
      throw deadlock("join: " + describe(b, s.turn_began()) +
                     " and would wait for itself");
    const task keep(&b);  // our handle may go meanwhile
    joiner j;
    j.waits = &me;
    b.watchers.push_back(j);
    const holding its_end{nullptr, static_cast<long>(b.id)};
    while (b.stage != task_state::done)
      if (!s.park(until, {"joining task", its_end.task, &its_end}))
        return b.stage == task_state::done;
    return true;
  }

  // Suspends like join(). Returns what the task returned, which stays in it;
  // throws the error it ended with, each time, and task_killed when it was
  // killed. From a temporary handle the result is moved out.
  decltype(auto) get() const& { return value(); }
  R get() && {
    if constexpr (std::is_void_v<R> || std::is_reference_v<R>)
      return value();
    else
      return std::move(value());
  }

  bool done() const { return state() == task_state::done; }
  // It has returned, without error or kill.
  bool ok() const { return done() && error() == nullptr && !killed(); }
  bool killed() const { return checked("killed").ended_by_kill; }
  // What ended it; null if nothing did.
  std::exception_ptr error() const {
    checked("error").asked = true;
    return block_->error;
  }
  task_state state() const { return checked("state").stage; }
  unsigned long id() const { return checked("id").id; }
  const std::string& name() const { return checked("name").name; }
  void set_name(std::string name) const {
    checked("set_name").name = std::move(name);
  }

  // Throws bao::killed in the task, at the place where it waits, and suspends
  // until it has ended (true) or `until` passes (false); 0s does not wait. One
  // that has not started never runs, one that kills itself is killed here and
  // now. Throws what interrupts us, and std::logic_error for the main task.
  bool kill(deadline until = never) const {
    const task keep(&checked("kill"));  // our handle may go meanwhile
    task_block& b = *keep.block_;
    scheduler& s = this_scheduler();
    s.kill(b);
    if (&b != &s.running()) return keep.join(until);
    s.yield();
    return false;  // inside a shield
  }

  // Throws `error` in the task, once: where it waits, or at its next wait,
  // unless another one takes its place before that. One that has not started
  // ends with it.
  void throw_in(std::exception_ptr error) const {
    task_block& b = checked("throw_in");
    this_scheduler().throw_in(b, std::move(error));
  }
  template <class E,
            class = std::enable_if_t<!std::is_same_v<E, std::exception_ptr>>>
  void throw_in(E error) const {
    throw_in(std::make_exception_ptr(std::move(error)));
  }

  // Has f(task) called when the task has ended, at once if it has. f must not
  // suspend: to wait while the task itself runs its end is a std::logic_error.
  // What it throws goes to on_unhandled(). Throws std::logic_error for the main
  // task.
  template <class F>
  void on_done(F f) const {
    task_block& b = checked("on_done");
    if (b.flow != &b)
      throw std::logic_error("on_done: the main task ends with its thread");
    struct callback final : completion {
      explicit callback(F g) : call(std::move(g)) {}
      F call;
    };
    auto made = std::make_unique<callback>(std::move(f));
    made->ended = [](completion& c, task_block& ended) {
      std::unique_ptr<callback> mine(static_cast<callback*>(&c));
      try {
        mine->call(task(&ended));
      } catch (...) {
        tell_unhandled("on_done", what_ended("callback of on_done"));
      }
    };
    b.asked = true;
    if (b.stage == task_state::done) {
      completion& c = *made.release();
      return c.ended(c, b);
    }
    b.watchers.push_back(*made.release());
  }

  explicit operator bool() const { return block_ != nullptr; }
  friend bool operator==(const task& a, const task& b) {
    return a.block_ == b.block_;
  }
  friend bool operator!=(const task& a, const task& b) { return !(a == b); }

  // For the chapters that follow.
  explicit task(task_block* block) : block_(block) {
    if (block_ == nullptr) return;
    if (block_->home != current_thread) throw_wrong_thread("task", *block_);
    ++block_->references;
  }
  task_block& checked(const char* call) const {
    if (block_ == nullptr)
      throw std::logic_error(std::string(call) + ": there is no task here");
    if (block_->home != current_thread) throw_wrong_thread(call, *block_);
    return *block_;
  }

 private:
  template <class>
  friend class task;

  std::add_lvalue_reference_t<R> value() const {
    const task keep(&checked("get"));
    keep.join();
    task_block& b = *keep.block_;
    b.asked = true;
    if (b.error != nullptr) std::rethrow_exception(b.error);
    if (b.ended_by_kill)
      throw task_killed("get: " + describe(b, 0) + ", and was killed");
    if constexpr (std::is_reference_v<R>)
      return **static_cast<task_frame<R>&>(b).result;
    else if constexpr (!std::is_void_v<R>)
      return *static_cast<task_frame<R>&>(b).result;
  }

  task_block* block_ = nullptr;
};

template <class F, class... Args>
using spawned_result = handed_on<
    typename call_result<std::decay_t<F>, std::decay_t<Args>...>::type>;
template <class F>  // the callable, as options have an overload of their own
using not_options =
    std::enable_if_t<!std::is_same_v<std::decay_t<F>, task_options>>;

template <class F, class... Args>
auto spawn_at(task_options&& options, deadline start, F&& f, Args&&... args) {
  using R = spawned_result<F, Args...>;
  scheduler& s = this_scheduler();
  task_block* const made =
      new task_call<R, std::decay_t<F>, std::decay_t<Args>...>(
          std::forward<F>(f), std::forward<Args>(args)...);
  options.apply_to(*made);
  s.add(*made, start);
  return task<R>(made);
}

// Never suspends. Runs f(args...) as a task, later: when this one waits. All
// are moved or copied into the task, and destroyed when it ends. A task for
// which there is no stack ends with stack_exhausted, and they go soon after.
//
// The overloads are one function: up to two arguments, the compiler fills in
// where the call stands, for reports. With more they leave the place out,
// unless task_options are given; spawn_later() always does.
template <class F, class... Args>
auto spawn(task_options options, F&& f, Args&&... args) {
  return spawn_at(std::move(options), at_once, std::forward<F>(f),
                  std::forward<Args>(args)...);
}
template <class F, class = not_options<F>>
auto spawn(F&& f, place at = place::here()) {
  return spawn(task_options(at), std::forward<F>(f));
}
template <class F, class A, class = not_options<F>>
auto spawn(F&& f, A&& a, place at = place::here()) {
  return spawn(task_options(at), std::forward<F>(f), std::forward<A>(a));
}
template <class F, class A, class B, class = not_options<F>>
auto spawn(F&& f, A&& a, B&& b, place at = place::here()) {
  return spawn(task_options(at), std::forward<F>(f), std::forward<A>(a),
               std::forward<B>(b));
}
template <class F, class A, class B, class C, class... More,
          class = not_options<F>>
auto spawn(F&& f, A&& a, B&& b, C&& c, More&&... more) {
  return spawn(task_options(place::nowhere()), std::forward<F>(f),
               std::forward<A>(a), std::forward<B>(b), std::forward<C>(c),
               std::forward<More>(more)...);
}

// The same, not before `start`: a duration from now, or a time.
template <class F, class... Args>
auto spawn_later(deadline start, F&& f, Args&&... args) {
  return spawn_at(task_options(place::nowhere()), start, std::forward<F>(f),
                  std::forward<Args>(args)...);
}

// Never suspends. The task that runs.
inline task<> self() { return task<>(&this_scheduler().running()); }

// Suspends until all other ready tasks have run; returns at once when there are
// none. Throws what interrupts us.
[[gnu::always_inline]] inline void yield() { this_scheduler().yield(); }

// Suspends until `until`: a duration from now, or a time. Never early; when it
// has passed, just yields. Throws what interrupts us.
inline void sleep(deadline until) {
  scheduler& s = this_scheduler();
  const unsigned long turn = s.turn();
  while (s.park(until, {"sleeping"})) {
  }
  if (s.turn() == turn) s.yield();  // it had passed before
}

// --- several tasks at once ---------------------------------------------------

// Each of these suspends, `until` at the latest where it takes one, and throws
// as join() does. A task may be named twice.

// Until all have ended (true) or it is late (false).
template <class Range, class = decltype(std::begin(std::declval<Range&>()))>
bool join_all(const Range& tasks, deadline until = never) {
  for (const auto& t : tasks)
    if (!t.join(until)) return false;
  return true;
}
template <class... R>
void join_all(const task<R>&... tasks) {
  (tasks.join(), ...);
}

// Until no other task is left, those included that are spawned meanwhile, but
// for those that only serve others, as for on_signal() and report_on().
inline void join_all() {
  scheduler& s = this_scheduler();
  for (task_block* t = s.tasks().first(); t != nullptr;) {
    if (t == &s.running() || t->background) {
      t = s.tasks().after(*t);
    } else {
      task<>(t).join();
      t = s.tasks().first();
    }
  }
}

// The tasks of a range, in the order in which they end, each as it does: it is
// the generator that suspends. The range may go away meanwhile.
template <class Range>
auto as_completed(const Range& tasks) {
  using handle = std::decay_t<decltype(*std::begin(tasks))>;
  return generator<handle>(
      [](yielder<handle, void>& yield, std::vector<handle> all) {
        struct {
          std::vector<std::size_t> ended;
          wait_queue news;
        } board;
        struct watcher : completion {
          std::size_t index;
          decltype(board)* notes;
        };
        std::vector<watcher> watchers(all.size());
        board.ended.reserve(all.size());  // to be told is no time to fail
        for (std::size_t i = 0; i < all.size(); ++i) {
          task_block& b = all[i].checked("as_completed");
          watchers[i].index = i;
          watchers[i].notes = &board;
          watchers[i].ended = [](completion& c, task_block&) {
            auto& w = static_cast<watcher&>(c);
            w.notes->ended.push_back(w.index);
            w.notes->news.wake_one();
          };
          if (b.stage == task_state::done)
            board.ended.push_back(i);
          else
            b.watchers.push_back(watchers[i]);
        }
        for (std::size_t next = 0; next < all.size(); ++next) {
          board.news.wait(never, {"joining any of several tasks"},
                          [&] { return next != board.ended.size(); });
          yield(std::move(all[board.ended[next]]));
        }
      },
      std::vector<handle>(std::begin(tasks), std::end(tasks)));
}

// Until the first of them ends: its index. Empty when late, or for no tasks.
template <class Range>
std::optional<std::size_t> join_any(const Range& tasks,
                                    deadline until = never) {
  using handle = std::decay_t<decltype(*std::begin(tasks))>;
  scheduler& s = this_scheduler();
  std::vector<handle> all(std::begin(tasks), std::end(tasks));
  std::vector<joiner> watchers(all.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    watchers[i].waits = &s.running();
    task_block& b = all[i].checked("join_any");
    if (b.stage == task_state::done) return i;
    b.watchers.push_back(watchers[i]);
  }
  if (all.empty()) return std::nullopt;
  while (s.park(until, {"joining any of several tasks"}))
    for (std::size_t i = 0; i < all.size(); ++i)
      if (all[i].done()) return i;
  return std::nullopt;
}

// Kills all, and waits until all have ended (true) or it is late (false).
template <class Range>
bool kill_all(const Range& tasks, deadline until = never) {
  scheduler& s = this_scheduler();
  for (const auto& t : tasks) s.kill(t.checked("kill_all"));
  s.meet_interruption();  // we may be one of them
  return join_all(tasks, until);
}

}  // namespace BAO_ABI
}  // namespace bao
