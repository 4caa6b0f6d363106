// bao/group.hpp - tasks that belong together
//
//     {
//       bao::group both;                     // nothing outlives these braces
//       both.spawn(download, "a");
//       both.spawn(download, "b");
//       both.join();                         // throws the first error
//     }
//
//     bao::pool ten(10);                       // at most ten at a time
//     for (auto& page : ten.imap(urls, fetch)) index(page);
//
// A task that nobody waits for is easily forgotten. Those of a group end with
// it: when it goes, those that are left are killed and waited for. So declare
// it after all variables that its members use: it goes before they do.
//
// A pool limits how many tasks it has at a time, and its map functions call a
// function for each element of a range, in tasks. They ask for the next element
// when a slot is free, so the range may be endless, and may wait itself.
//
// A member costs a small note on the heap beside its task. A group that has
// members when the process forks is of no use in the child, but can be
// destroyed there.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "bao/channel.hpp"
#include "bao/pipeline.hpp"
#include "bao/sync.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// What groups and pools have in common: their members, until they end.
class task_set {
 public:
  task_set() = default;
  task_set(const task_set&) = delete;

  // Spawns f(args...) as a member, as bao::spawn() does; with more than one
  // argument, reports do not tell the place. A pool's suspends until a slot is
  // free, a group's never.
  template <class... Args>
  auto spawn(task_options options, Args&&... args) {
    take_slot();
    try {
      auto t = bao::spawn(std::move(options), std::forward<Args>(args)...);
      enter(t.checked("spawn"));
      return t;
    } catch (...) {
      give_slot_back();
      throw;
    }
  }
  template <class F, class = not_options<F>>
  auto spawn(F&& f, place at = place::here()) {
    return spawn(task_options(at), std::forward<F>(f));
  }
  template <class F, class A, class = not_options<F>>
  auto spawn(F&& f, A&& a, place at = place::here()) {
    return spawn(task_options(at), std::forward<F>(f), std::forward<A>(a));
  }
  template <class F, class A, class B, class... More, class = not_options<F>>
  auto spawn(F&& f, A&& a, B&& b, More&&... more) {
    return spawn(task_options(place::nowhere()), std::forward<F>(f),
                 std::forward<A>(a), std::forward<B>(b),
                 std::forward<More>(more)...);
  }

  // Kills all members, and suspends until they have ended, those included that
  // they spawn meanwhile (true), or until `until` (false). Throws what
  // interrupts us: bao::killed in a member that calls this.
  bool kill(deadline until = never) {
    for (;;) {
      std::vector<task<>> left;
      for (member* m = members_.first(); m != nullptr; m = members_.after(*m))
        if (m->who.stage != task_state::done) left.emplace_back(&m->who);
      if (left.empty()) return true;
      if (!kill_all(left, until)) return false;
    }
  }
  bool empty() const { return members_.empty(); }
  // How many have not ended.
  std::size_t size() const { return size_; }
  bool contains(const task<>& t) {
    task_block& one = t.checked("contains");
    for (member* m = members_.first(); m != nullptr; m = members_.after(*m))
      if (&m->who == &one) return one.stage != task_state::done;
    return false;
  }

 protected:
  virtual ~task_set() = default;

  // A task that has just been spawned is a member from now on.
  void enter(task_block& t) try {
    auto* const m = new member(*this, t);
    members_.push_back(*m);
    t.watchers.push_back(*m);
    ++size_;
  } catch (...) {
    this_scheduler().kill(t);  // it has not begun, and never will
    throw;
  }
  virtual void take_slot() {}
  virtual void give_slot_back() noexcept {}
  virtual void has_ended(task_block&) {}

  // Suspends until all have ended, or enough() holds, which is asked at each
  // wake-up (true), or until `until` (false).
  template <class Enough>
  bool wait(deadline until, Enough enough) {
    if (contains(self()))
      throw deadlock("join: a member of the group would wait for itself");
    return all_ended_.wait(until, {"joining a group"},
                           [&] { return enough() || empty(); });
  }
  wait_queue all_ended_;

  // For destructors: kills those that are left, and nothing interrupts that.
  void end() noexcept {
    if (empty()) return;
    if (contains(self())) die("a group goes while a member of it runs");
    shield in_peace;
    kill();
  }

 private:
  // Stands in our list, and among those that the task tells of its end.
  struct member final : completion, list_node<member> {
    using list_node<member>::leave;
    task_set& of;
    task_block& who;

    member(task_set& set, task_block& t) : of(set), who(t) {
      ended = [](completion& c, task_block& one) {
        auto* const m = static_cast<member*>(&c);
        task_set& left = m->of;
        delete m;
        --left.size_;
        left.give_slot_back();
        left.has_ended(one);
        if (left.empty()) left.all_ended_.wake_all();
      };
    }
  };

  list<member> members_;  // that have not ended
  std::size_t size_ = 0;
};

// Only join(), kill() and the destructor suspend.
class group : public task_set {
 public:
  group() = default;
  // Kills those that are left, and waits until they have ended. An error that
  // nobody has joined for goes to on_unhandled().
  ~group() { end(); }

  // Suspends until all members have ended (true) or `until` passes (false). An
  // error of a member ends the wait: the others are killed, waited for even
  // beyond `until`, and the first error is thrown. Throws what interrupts us.
  bool join(deadline until = never) {
    ++joining_;
    // Several may join, and be told: it is forgotten when the last one leaves.
    const at_end leaves([this] {
      if (--joining_ == 0 && std::exchange(told_, false)) failed_ = {};
    });
    const bool in_time = wait(until, [this] { return bool(failed_); });
    const task<> failed = failed_;
    if (!failed) return in_time;
    kill();
    told_ = true;
    std::rethrow_exception(failed.error());
  }

 private:
  void has_ended(task_block& t) override {
    if (t.error == nullptr) return;
    if (failed_) {
      t.asked = true;  // it is not told of
    } else {
      failed_ = task<>(&t);
      all_ended_.wake_all();
    }
  }

  // The first with an error, until all who join have been told; else it is told
  // of when we let go of it.
  task<> failed_;
  bool told_ = false;  // join() has thrown it
  int joining_ = 0;
};

// The results of a pool's imap functions, one after the other: next(), a loop
// and the destructor suspend. An error of one element is thrown in its place,
// and the next call goes on behind it. To drop what is left kills its tasks,
// and waits until they have ended. The pool must outlive it.
template <class R>
class mapped {
 public:
  explicit mapped(generator<task<R>> tasks) : tasks_(std::move(tasks)) {}

  // Empty, or false where there is no value to return, at the end.
  auto next() {
    std::optional<task<R>> t = tasks_.next();
    if constexpr (std::is_void_v<R>) {
      if (t) t->get();
      return t.has_value();
    } else {
      return t ? std::optional<R>(std::move(*t).get()) : std::nullopt;
    }
  }

  using iterator = input_iterator<mapped, R>;
  iterator begin() { return iterator(*this); }
  iterator end() { return {}; }

 private:
  generator<task<R>> tasks_;
};

// An error stays with its task: nobody else is killed, and where nobody asks
// the task it goes to on_unhandled(). Only spawn(), join(), kill(), map() and
// the destructor suspend.
class pool : public task_set {
 public:
  // Throws std::invalid_argument for a size of 0, or a negative one.
  explicit pool(std::size_t size)
      : most_(size), slots_(static_cast<std::ptrdiff_t>(size)) {
    if (size == 0) throw std::invalid_argument("pool: a size of 0");
  }
  // Kills those that are left, and waits until they have ended.
  ~pool() { end(); }

  // Suspends until all have ended (true), be it by errors, or `until` passes
  // (false). Throws what interrupts us.
  bool join(deadline until = never) {
    return wait(until, [] { return false; });
  }

  // How many could be spawned without waiting.
  std::size_t free_count() const {
    return static_cast<std::size_t>(slots_.available());
  }

  // f(x) for each x of a range, in its order. Throws the first error of that
  // order, and kills the rest.
  template <class Range, class F>
  auto map(Range&& range, F f) {
    auto results = imap(std::forward<Range>(range), std::move(f));
    if constexpr (std::is_same_v<decltype(results.next()), bool>) {
      while (results.next()) {
      }
    } else {
      std::vector<typename decltype(results)::iterator::value_type> all;
      while (auto r = results.next()) all.push_back(std::move(*r));
      return all;
    }
  }

  // The same, one by one as they are asked for: as many tasks as the pool has
  // slots are ahead. A range that is an lvalue is borrowed.
  template <class Range, class F>
  auto imap(Range&& range, F f) & {
    return mapping<true>(std::forward<Range>(range), std::move(f));
  }
  // The same, in the order in which they are done.
  template <class Range, class F>
  auto imap_unordered(Range&& range, F f) & {
    return mapping<false>(std::forward<Range>(range), std::move(f));
  }
  // Both, for the stages of pipelines below.
  template <bool InOrder, class Range, class F>
  auto mapping(Range&& range, F f);

 private:
  void take_slot() override { slots_.acquire(); }
  void give_slot_back() noexcept override { slots_.release(); }

  // While a member waits for other members it needs no slot: else a pool full
  // of those would stand still.
  class lent_slot {
   public:
    explicit lent_slot(pool& p) : pool_(p) { lend(); }
    lent_slot(const lent_slot&) = delete;
    ~lent_slot() { take_back(); }

    void lend() {
      if (lent_ || !pool_.contains(self())) return;
      pool_.slots_.release();
      lent_ = true;
    }
    void take_back() {
      if (!std::exchange(lent_, false)) return;
      shield in_peace;
      pool_.slots_.acquire();
    }

   private:
    pool& pool_;
    bool lent_ = false;
  };

  // The tasks of a mapping that were spawned and not yet handed on.
  template <class R>
  struct ahead {
    explicit ahead(pool& p) : slot(p) {}
    lent_slot slot;              // while we wait for them
    std::deque<task<R>> all;     // in order
    std::vector<task<R>> ended;  // as they did, where that counts
    wait_queue news;

    ~ahead() {
      shield in_peace;
      if (std::any_of(all.begin(), all.end(),
                      [](auto& t) { return !t.done(); }))
        slot.lend();
      kill_all(all);
    }
    void add(task<R> t, bool in_order) try {
      all.push_back(t);
      if (in_order) return;
      // The callback must not fail for want of memory.
      if (ended.capacity() < all.size()) ended.reserve(2 * all.size());
      t.on_done([this](const task<R>& done) {
        ended.push_back(done);
        news.wake_one();
      });
    } catch (...) {
      this_scheduler().kill(t.checked("map"));  // it has not begun
      throw;
    }
    task<R> next(bool in_order) {
      task<R> t;
      if (in_order) {
        t = all.front();
        t.join();
      } else {
        news.wait(never, {"waiting for a mapped task"},
                  [this] { return !ended.empty(); });
        t = std::move(ended.front());
        ended.erase(ended.begin());
      }
      all.erase(std::find(all.begin(), all.end(), t));
      return t;
    }
  };

  std::size_t most_;
  semaphore slots_;
};

template <bool InOrder, class Range, class F>
auto pool::mapping(Range&& range, F f) {
  if constexpr (!is_generator<std::decay_t<Range>>::value) {
    return mapping<InOrder>(from(std::forward<Range>(range)), std::move(f));
  } else {
    using kept = handed_on<Range&&>;
    using in = yielded<Range>;
    using R = spawned_result<F&, in>;
    return mapped<R>(generator<task<R>>(
        [this](yielder<task<R>, void>& yield, std::tuple<kept> source, F g) {
          ahead<R> tasks(*this);
          const auto hand_on = [&] {
            task<R> t = tasks.next(InOrder);
            tasks.slot.take_back();
            yield(std::move(t));
            tasks.slot.lend();
          };
          for (auto& x : std::get<0>(source)) {
            while (tasks.all.size() >= most_) hand_on();
            tasks.add(spawn(task_options(place::nowhere()), std::ref(g),
                            static_cast<in&&>(x)),
                      InOrder);
          }
          while (!tasks.all.empty()) hand_on();
        },
        std::tuple<kept>(std::forward<Range>(range)), std::move(f)));
  }
}

// --- pipeline stages that wait -----------------------------------------------

template <bool InOrder, class F>
auto parallel_stage(std::size_t n, F f) {
  return pipeline_stage{[n, f = std::move(f)](auto&& source) mutable {
    using in = yielded<decltype(source)>;
    using out = handed_on<std::invoke_result_t<F&, std::decay_t<in>>>;
    return std::forward<decltype(source)>(source) |
           stage<out>([n, f = std::move(f)](auto& values, auto& yield) mutable {
             pool tasks(n);
             for (auto& r : tasks.mapping<InOrder>(values, std::ref(f)))
               yield(std::move(r));
           });
  }};
}

// f(x) for every x, in n tasks; in their order, or as they are done. It is the
// generator that suspends; an error ends it, and kills the tasks.
template <class F>
auto par(std::size_t n, F f) {
  return parallel_stage<true>(n, std::move(f));
}
template <class F>
auto par_unordered(std::size_t n, F f) {
  return parallel_stage<false>(n, std::move(f));
}

// The values of several generators, as they come: each runs in a task of its
// own. The first error ends all.
template <class First, class... More>
auto merge(First&& first, More&&... more) {
  using out = std::decay_t<yielded<First>>;
  using all = std::tuple<handed_on<First&&>, handed_on<More&&>...>;
  return generator<out>(
      [](yielder<out, void>& yield, all sources) {
        channel<out> values;
        std::size_t left = sizeof...(More) + 1;
        group pumps;
        const auto pump = [&](auto& source) {
          pumps.spawn([&] {
            try {
              for (auto&& x : source)
                values.send(out(std::forward<decltype(x)>(x)));
            } catch (const killed&) {
              throw;  // nobody reads any more
            } catch (...) {
              values.close();
              throw;
            }
            if (--left == 0) values.close();
          });
        };
        std::apply([&](auto&... each) { (pump(each), ...); }, sources);
        for (auto& x : values) yield(std::move(x));
        pumps.join();
      },
      all(std::forward<First>(first), std::forward<More>(more)...));
}

}  // namespace BAO_ABI
}  // namespace bao
