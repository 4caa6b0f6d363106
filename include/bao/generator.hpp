// bao/generator.hpp - yield, send, throw, close
//
// A generator is a function that hands out its results one at a time. Between
// two of them it stands still in the middle of its body, on a stack of its own:
//
//     bao::generator<int> squares([](auto& yield) {
//       for (int i = 1; i <= 3; ++i) yield(i * i);
//     });
//     for (int n : squares) std::printf("%d ", n);      // 1 4 9
//
//     consumer    begin()         1   ++            4   ++
//                    |            ^    |            ^    |
//     body           '-> yield(1) '    '-> yield(4) '    '-> yield(9) ...
//
// The body may yield from within a function that it calls, from a recursion, or
// from another generator: that is what the stack of its own is for. The price
// is one page of memory at least, and 3 to 7 ns a value.
//
// The rules are Python's, for next, send, throw and close as for `yield from`;
// where Python says GeneratorExit, bao says killed, and the end is an empty
// optional instead of StopIteration.
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

#include "bao/coroutine.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

template <class Yield, class Send = void, class Return = void>
class generator;
template <class Yield, class Send>
class generator_core;

// T, for a parameter: it is not deduced, and the argument is converted to it.
template <class T>
using exactly_t = std::enable_if_t<true, T>;

// The type by which to return what another function has returned: an lvalue
// reference stays one, all else becomes a value.
template <class T>
using handed_on =
    std::conditional_t<std::is_lvalue_reference_v<T>, T, std::decay_t<T>>;

template <class T>
struct is_generator : std::false_type {};
template <class Y, class S, class R>
struct is_generator<generator<Y, S, R>> : std::true_type {};

// What a body calls to hand out a value: its parameter, by reference.
template <class Yield, class Send>
class yielder {
 public:
  yielder(const yielder&) = delete;

  // Suspends the body until the consumer, who gets `value`, asks for the next
  // one. Returns what it sends, Send{} when it just asks. Throws bao::killed
  // when the generator is closed, what is thrown in, and wrong_flow when called
  // from elsewhere than the generator's own body. In a destructor that runs
  // because of an exception it returns at once, and the generator ends with
  // close_ignored.
  //
  // An rvalue is handed over itself, an lvalue is copied; a generator<T&>
  // lends.
  template <class Y = Yield, class = std::enable_if_t<!std::is_void_v<Y>>>
  [[gnu::always_inline]] Send operator()(exactly_t<Y>&& value) {
    core().suspend(std::addressof(value));
    return received();
  }
  template <class Y = Yield, class = std::enable_if_t<!std::is_void_v<Y> &&
                                                      !std::is_reference_v<Y>>>
  [[gnu::always_inline]] Send operator()(const exactly_t<Y>& value) {
    Y copy(value);
    core().suspend(std::addressof(copy));
    return received();
  }
  template <class Y = Yield, class = std::enable_if_t<std::is_void_v<Y>>>
  [[gnu::always_inline]] Send operator()() {
    nothing none;
    core().suspend(&none);
    return received();
  }

  // Suspends until `other` has ended: yields all that it yields, and returns
  // what it returns. Meanwhile our consumer deals with it directly: sends,
  // throws and closes reach it. Throws what ends it, already_running,
  // wrong_thread, wrong_flow.
  template <class R>
  R from(generator<Yield, Send, R>& other);
  template <class R>
  R from(generator<Yield, Send, R>&& other) {
    generator<Yield, Send, R> mine(std::move(other));
    return from(mine);
  }
  // Suspends likewise: yields the elements of any other range.
  template <class Range,
            class = std::enable_if_t<!is_generator<std::decay_t<Range>>::value>>
  void from(Range&& range) {
    for (auto&& x : range) (*this)(std::forward<decltype(x)>(x));
  }

 protected:
  yielder() = default;
  ~yielder() = default;

 private:
  [[gnu::always_inline]] Send received() {
    if constexpr (!std::is_void_v<Send>) {
      Send* sent = std::exchange(core().consumed->sent, nullptr);
      if (sent != nullptr) return std::move(*sent);
      if constexpr (std::is_default_constructible_v<Send>)
        return Send{};
      else
        throw std::logic_error("yield: nothing was sent: use send()");
    }
  }

  // What this is a part of.
  generator_core<Yield, Send>& core() {
    return static_cast<generator_core<Yield, Send>&>(*this);
  }
};

// Returns `read`, which nearly always is `usual`, and that is not null.
// Processors guess where a branch goes, and wait for what a load brings: after
// the comparison they go on at once with the pointer that they have, which
// saves up to 2 ns a value. The empty assembly keeps the compiler from undoing
// it.
template <class T>
[[gnu::always_inline]] inline T* usually(T* usual, T* read) {
  if (__builtin_expect(read != usual, 0)) return read;
  __asm__ volatile("" : "+r"(usual));
  if (usual == nullptr) __builtin_unreachable();  // which made it forget that
  return usual;
}

// What a generator and its body have in common.
template <class Yield, class Send>
class generator_core : public fiber, public yielder<Yield, Send> {
 public:
  // What yield() leaves a pointer to: the object itself in the body's frame.
  using slot = std::conditional_t<std::is_void_v<Yield>, nothing,
                                  std::remove_reference_t<Yield>>;
  using sent_value = std::conditional_t<std::is_void_v<Send>, nothing, Send>;

  const char* kind() const noexcept override { return "generator"; }

  sent_value* sent = nullptr;       // null: by next()
  generator_core* consumed = this;  // whom the consumer holds: see yield_from()
  std::exception_ptr error;         // that ended it
  bool closing = false;             // from the outside
  bool yielded_late = false;        // in a destructor, where it cannot wait

  generator_core() {
    lends = true;
    references = 1;
  }

  // The consumer's side: runs the body to its next yield. Returns where the
  // value lies; null when there is no further one. Throws the error that ended
  // it.
  [[gnu::always_inline]] slot* advance(const char* call) {
    fiber* to = usually<fiber>(this, leaf);
    if (to == nullptr || home != current_thread) {
      if (!begin(call)) return nullptr;
      to = this;
    }
    link = current_flow;
    leaf = nullptr;
    auto* value = static_cast<slot*>(switch_fiber(*link, *to).message);
    if (value == nullptr) rethrow_error();
    return value;
  }

  // The body's side: offers a value and waits until the consumer wants more.
  [[gnu::always_inline]] void suspend(slot* value) {
    if (current_flow != this) refuse_yield();
    if (current_exceptions->any()) return suspend_while_handling(value);
    generator_core* const to = usually(this, consumed);
    to->leaf = this;
    const arrival a = switch_plainly(*this, *usually(current_root, to->link),
                                     as_message(value));
    static_cast<fiber&>(a.self).meet_pending();
  }

  // Runs `inner` to its end as if its body were part of ours: its values go to
  // our consumer, and what that one sends or throws goes to it, at the same
  // price whatever the depth. Throws what ended it.
  void yield_from(generator_core& inner);

  // Throws wrong_thread or already_running unless it stands at a yield.
  void expect_suspended(const char* call) const {
    if (home != nullptr && home != &this_thread_state())
      throw_wrong_thread(call, *this);
    if (leaf == nullptr) refuse_running(call);
  }

  slot* throw_in(std::exception_ptr e);
  void close();
  void unwind() noexcept override;

  bool finished() const { return life == flow_state::finished; }

 protected:
  virtual void call_body() = 0;
  virtual void drop_body() noexcept = 0;

 private:
  // Before the first value, and where there is none any more.
  [[gnu::cold, gnu::noinline]] bool begin(const char* call);

  // The body has ended: throws the error it ended with, once. Not cold, or the
  // compiler would think so of every loop that ends here.
  [[gnu::noinline]] void rethrow_error() {
    if (error != nullptr) std::rethrow_exception(std::exchange(error, nullptr));
  }

  static void* as_message(slot* value) {
    return const_cast<void*>(static_cast<const void*>(value));
  }

  // suspend() inside a catch block; while unwinding it is too late for that.
  [[gnu::cold, gnu::noinline]] void suspend_while_handling(slot* value) {
    if (current_exceptions->uncaught != 0) {
      yielded_late = true;
      return;
    }
    consumed->leaf = this;
    switch_while_handling(*this, *consumed->link, as_message(value));
    meet_pending();
  }

  [[noreturn, gnu::cold, gnu::noinline]] void refuse_yield() {
    throw wrong_flow("yield: called by another flow than the generator's body");
  }
  [[noreturn, gnu::cold, gnu::noinline]] static void refuse_running(
      const char* call) {
    throw already_running(std::string(call) + ": the generator is running");
  }

  fiber* run() noexcept override;
};

template <class Y, class S>
bool generator_core<Y, S>::begin(const char* call) {
  thread_state& t = this_thread_state();
  if (finished()) return false;
  if (home != nullptr && home != &t) throw_wrong_thread(call, *this);
  if (life == flow_state::running) refuse_running(call);
  start(t);
  return true;
}

template <class Y, class S>
fiber* generator_core<Y, S>::run() noexcept {
  try {
    call_body();
  } catch (const killed& k) {
    if (!k.is_for(this)) error = std::current_exception();
  } catch (...) {
    error = what_ended("generator");
  }
  cleaning = true;
  drop_body();
  if (yielded_late && error == nullptr)
    error = std::make_exception_ptr(close_ignored(
        "yield: called in a destructor while the generator was unwound"));
  life = flow_state::finished;
  return link;
}

template <class Y, class S>
void generator_core<Y, S>::yield_from(generator_core& inner) {
  if (current_flow != this) refuse_yield();
  if (inner.finished()) return;
  if (inner.home != nullptr && inner.home != home)
    throw_wrong_thread("yield.from", inner);
  fiber* to = inner.leaf;
  if (to == nullptr) {
    if (inner.life == flow_state::running) refuse_running("yield.from");
    inner.start(*home);
    to = &inner;
  }
  // Inner generators that it is in the middle of serve our consumer as well.
  for (fiber* f = to;; f = f->link) {
    static_cast<generator_core*>(f)->consumed = consumed;
    if (f == &inner) break;
  }
  inner.leaf = nullptr;
  inner.link = this;
  switch_fiber(*this, *to);
  inner.consumed = &inner;
  inner.rethrow_error();
  if (consumed->closing) throw killed(consumed);  // it was meant for us as well
}

template <class Y, class S>
auto generator_core<Y, S>::throw_in(std::exception_ptr e) -> slot* {
  if (leaf != nullptr) {
    expect_suspended("throw_in");
    leaf->pending = std::move(e);
    return advance("throw_in");
  }
  if (life == flow_state::running) refuse_running("throw_in");
  if (!finished()) {
    life = flow_state::finished;
    drop_body();
  }
  std::rethrow_exception(e);
}

template <class Y, class S>
void generator_core<Y, S>::close() {
  if (finished()) return;
  if (state() == flow_state::running) refuse_running("close");
  if (leaf == nullptr) {
    life = flow_state::finished;
    return drop_body();
  }
  expect_suspended("close");
  struct closes {
    bool& now;
    ~closes() { now = false; }
  } until_it_stops{closing};
  closing = true;
  leaf->pending = std::make_exception_ptr(killed(this));
  if (advance("close") != nullptr)
    throw close_ignored("close: the body yields instead of ending");
}

template <class Y, class S>
void generator_core<Y, S>::unwind() noexcept {
  orphan = false;
  if (state() == flow_state::running && !home->ended)  // else: exit() within it
    die("a generator was destroyed while its body was running");
  for (int tries = 0; state() != flow_state::running && !finished(); ++tries) {
    if (tries == 16) die("a generator that is destroyed does not end");
    try {
      close();
    } catch (...) {
      tell_unhandled("a generator", std::current_exception());
    }
  }
}

template <class Y, class S, class R>
class generator_frame : public generator_core<Y, S> {
 public:
  std::optional<std::conditional_t<std::is_void_v<R>, nothing, R>> result;
};

template <class Y, class S, class R, class F, class... Args>
class generator_call final
    : public frame_with_body<generator_frame<Y, S, R>, F, Args...> {
 public:
  using frame_with_body<generator_frame<Y, S, R>, F, Args...>::frame_with_body;

 private:
  void call_body() override {
    yielder<Y, S>& yield = *this;
    if constexpr (std::is_void_v<R>)
      this->body(yield);
    else
      this->result.emplace(this->body(yield));
  }
};

// A body with a stack of its own that yields values of type Yield, takes values
// of type Send for them, and may return a Return at its end. Move-only; moving
// one, or destroying the callable it was made from, does not disturb its body.
//
// The body is called as f(yield, args...). Nothing runs, and no stack is taken,
// before the first use. Destroying one closes it; what then escapes goes to
// on_unhandled().
//
// next(), send(), throw_in(), close(), the iterator and the destructor run the
// body, and suspend the task only where the body does; nothing else suspends.
// All but the destructor throw what ends the body, once; already_running when
// it runs or waits right now; wrong_thread; and stack_exhausted before the
// first value.
template <class Yield, class Send, class Return>
class generator {
  using core = generator_core<Yield, Send>;
  using frame = generator_frame<Yield, Send, Return>;
  using slot = typename core::slot;
  static constexpr bool can_ask =
      std::is_void_v<Send> || std::is_default_constructible_v<Send>;

 public:
  // What next() and send() return: a std::optional<Yield>, which is empty at
  // the end; a pointer for a generator<T&>, a bool for a generator<void>.
  using step =
      std::conditional_t<std::is_void_v<Yield>, bool,
                         std::conditional_t<std::is_reference_v<Yield>, slot*,
                                            std::optional<Yield>>>;
  using yield_type = Yield;

  // An empty one has ended.
  generator() = default;

  template <class F, class... Args,
            class = std::enable_if_t<!is_generator<std::decay_t<F>>::value>>
  generator(F&& f, Args&&... args)
      : core_(new generator_call<Yield, Send, Return, std::decay_t<F>,
                                 std::decay_t<Args>...>(
            std::forward<F>(f), std::forward<Args>(args)...)) {}

  generator(generator&& other) noexcept
      : core_(std::exchange(other.core_, nullptr)) {}
  generator& operator=(generator&& other) noexcept {
    generator taken(std::move(other));
    std::swap(core_, taken.core_);
    return *this;
  }
  ~generator() {
    if (core_ == nullptr) return;
    core_->orphan = true;
    core_->release();
  }

  // Runs the body to its next yield and returns that value; empty at the end,
  // then and ever after.
  [[gnu::always_inline]] step next() {
    static_assert(can_ask, "next() sends a default value: use send()");
    return taken(core_ != nullptr ? core_->advance("next") : nullptr);
  }

  // Makes `value` the result of the yield where the body stands, then like
  // next(). Throws not_started when it has not come to a yield yet.
  template <class S = Send>
  step send(exactly_t<S> value) {
    if (state() == flow_state::created)
      throw not_started("send: the generator has not come to a yield yet");
    if (core_ == nullptr || core_->finished()) return taken(nullptr);
    core_->expect_suspended("send");
    core_->sent = &value;
    return taken(core_->advance("send"));
  }

  // Throws `error` out of the yield where the body stands, then like next().
  // One that has not started ends without running; that, and one that has
  // ended, throws `error` here.
  step throw_in(std::exception_ptr error) {
    if (error == nullptr) throw std::invalid_argument("throw_in: no exception");
    if (core_ == nullptr) std::rethrow_exception(error);
    return taken(core_->throw_in(std::move(error)));
  }
  template <class E,
            class = std::enable_if_t<!std::is_same_v<E, std::exception_ptr>>>
  step throw_in(E error) {
    return throw_in(std::make_exception_ptr(std::move(error)));
  }

  // Throws bao::killed out of the yield where the body stands, which destroys
  // the objects on its stack. Throws close_ignored when it yields once more
  // instead: then it is suspended still. Nothing happens to one that has ended.
  void close() {
    if (core_ != nullptr) core_->close();
  }

  // What the body returned. Throws std::logic_error when it has not returned.
  template <class R = Return>
  std::enable_if_t<!std::is_void_v<R>, R&> result() {
    if (core_ == nullptr || !frame_of().result)
      throw std::logic_error("result: the generator has not returned");
    return *frame_of().result;
  }

  flow_state state() const {
    return core_ == nullptr ? flow_state::finished : core_->state();
  }

  // An input iterator: ++ asks for the next value, *it is the value that lies
  // in the body. All share the generator's place; end() is where it has ended.
  class iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = std::remove_cv_t<slot>;
    using difference_type = std::ptrdiff_t;
    using pointer = slot*;
    using reference = slot&;

    iterator() = default;
    reference operator*() const { return *value_; }
    pointer operator->() const { return value_; }
    [[gnu::always_inline]] iterator& operator++() {
      static_assert(can_ask, "++ sends a default value: use send()");
      value_ = core_->advance("next");
      return *this;
    }
    // Keeps the value for `*it++`.
    auto operator++(int) {
      struct kept {
        std::conditional_t<std::is_reference_v<Yield>, slot&, value_type> value;
        slot& operator*() { return value; }
      } before{static_cast<Yield&&>(**this)};
      ++*this;
      return before;
    }
    friend bool operator==(const iterator& a, const iterator& b) {
      return a.value_ == b.value_;
    }
    friend bool operator!=(const iterator& a, const iterator& b) {
      return a.value_ != b.value_;
    }

   private:
    friend generator;
    iterator(core* c, slot* value) : core_(c), value_(value) {}
    core* core_ = nullptr;
    slot* value_ = nullptr;  // null at the end
  };

  // Runs the body to its next yield.
  [[gnu::always_inline]] iterator begin() {
    static_assert(!std::is_void_v<Yield>, "there is nothing to iterate over");
    return iterator(core_,
                    core_ != nullptr ? core_->advance("begin") : nullptr);
  }
  iterator end() { return iterator(); }

 private:
  friend class yielder<Yield, Send>;

  frame& frame_of() { return static_cast<frame&>(*core_); }

  [[gnu::always_inline]] step taken(slot* value) {
    if constexpr (std::is_void_v<Yield>) {
      return value != nullptr;
    } else if constexpr (std::is_reference_v<Yield>) {
      return value;
    } else {
      if (value == nullptr) return std::nullopt;
      return step(std::move(*value));
    }
  }

  core* core_ = nullptr;
};

template <class Yield, class Send>
template <class R>
R yielder<Yield, Send>::from(generator<Yield, Send, R>& other) {
  if (other.core_ != nullptr) core().yield_from(*other.core_);
  if constexpr (!std::is_void_v<R>) return std::move(other.result());
}

}  // namespace BAO_ABI
}  // namespace bao
