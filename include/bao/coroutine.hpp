// bao/coroutine.hpp - symmetric switching, values both ways
//
// A coroutine runs until it switches to somebody else, to whomever it likes.
// The value that it sends along is what the other one's own switch_to()
// returns:
//
//     bao::coroutine<std::string> play;
//     bao::coroutine<std::string> eat([&](std::string who) {
//       std::string answer = play.switch_to(who + ", eat!");
//       ...                                         |
//     });                                           v
//     play = bao::coroutine<std::string>([&](std::string what) { ...
//
// Coroutines form a tree: each has a parent, who created it unless set
// otherwise. The tree says where things go when a body ends: the value it
// returns, or the exception it throws, comes out of the pending switch_to() of
// its parent. The thread's own flow is the root. All of this is greenlet's
// model (https://greenlet.readthedocs.io).
//
// A switch with a value takes 3 ns; a body that has begun takes a page of
// memory at least.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "bao/fiber.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

struct nothing {};  // what a coroutine<void> sends

// Its address stands for the type T, in this program.
template <class T>
inline char type_tag = 0;

// The flow that runs inside f: a generator lends itself to whoever resumed it.
inline fiber* flow_of(fiber* f) {
  while (f->lends) f = f->link;
  return f;
}

using switch_trace = void (*)(const char* event, const void* from,
                              const void* to);
inline switch_trace trace_switch = nullptr;

// Never suspends. From now on trace("switch" or "throw", from, to) is called
// before each switch between coroutines, with the values of their id(). It must
// neither throw nor switch. Null turns it off. Returns who it was until now.
inline switch_trace set_switch_trace(switch_trace trace) {
  return std::exchange(trace_switch, trace);
}

// Throws bao::killed where a flow is suspended, and returns when it has ended
// or has switched back. What is to be thrown here after that is left in
// `pending`.
inline void strike(fiber& victim) {
  fiber* const mine = current_flow;
  fiber* const me = flow_of(mine);
  fiber* const next = std::exchange(victim.leaf, nullptr);
  fiber* const before = std::exchange(victim.killer, me);
  next->pending = std::make_exception_ptr(killed(&victim));
  me->expects = nullptr;  // no value: only that it has ended
  me->leaf = mine;
  if (trace_switch != nullptr) trace_switch("throw", me, &victim);
  switch_fiber(*mine, *next);
  victim.killer = before;
}

template <class T>
class coroutine;

// A coroutine that belongs to somebody else, or the main flow of a task. It may
// be kept longer than the coroutine lives, and is dead then. Only switch_to(),
// throw_in() and kill() suspend. They and set_parent() throw dead_coroutine for
// an empty handle, wrong_thread, and wrong_task for another task's coroutine.
// To copy one on another thread is wrong_thread as well.
template <class T = void>
class coroutine_ref {
 public:
  using value = std::conditional_t<std::is_void_v<T>, nothing, T>;

  coroutine_ref() = default;
  coroutine_ref(const coroutine_ref& other) : coroutine_ref(other.flow_) {}
  coroutine_ref& operator=(coroutine_ref other) noexcept {
    std::swap(flow_, other.flow_);
    return *this;
  }
  ~coroutine_ref() {
    if (flow_ != nullptr) flow_->release();
  }

  // Suspends this flow and continues the other one, where `v` arrives. Returns
  // what the next one to switch to us sends, who need not be the one that we
  // have switched to; throws what comes our way instead: the error of a child
  // that has ended, or what was thrown in. A switch to oneself returns `v`.
  //
  // Throws dead_coroutine when the other one has ended, wrong_type when it
  // waits for another type, stack_exhausted: then nothing has happened.
  [[gnu::always_inline]] T switch_to(value v = value{}) {
    fiber* to = flow_;
    if (to == nullptr || to->leaf == nullptr || to->root != current_root ||
        to->expects != &type_tag<value>)
      to = look_closer(v);  // at its first switch, or at a mistake
    if (to != nullptr)
      v = suspend(std::exchange(to->leaf, nullptr), "switch", &v);
    if constexpr (!std::is_void_v<T>) return v;
  }

  // Suspends like switch_to(), and throws `error` out of the other one's
  // switch_to(). One that has not started ends without running; its error, and
  // that for one that has ended, goes to the nearest living ancestor.
  T throw_in(std::exception_ptr error) {
    expect_usable("throw_in");
    if (error == nullptr) throw std::invalid_argument("throw_in: no exception");
    fiber* to = flow_;
    if (to->leaf == nullptr && to != flow_of(current_flow)) {
      if (is_own_kill(error)) return kill(), no_value();
      if (to->life == flow_state::created) to->unwind();
      to = heir_of(to);
    }
    if (to == flow_of(current_flow)) std::rethrow_exception(error);
    to->leaf->pending = std::move(error);
    value v = suspend(std::exchange(to->leaf, nullptr), "throw", nullptr);
    if constexpr (!std::is_void_v<T>) return v;
  }
  template <class E,
            class = std::enable_if_t<!std::is_same_v<E, std::exception_ptr>>>
  T throw_in(E error) {
    return throw_in(std::make_exception_ptr(std::move(error)));
  }

  // Suspends until the other flow, in which it throws bao::killed, has ended or
  // has switched back to us; whoever kills is its parent for that time. One
  // that has not started never runs; on one that has ended nothing happens; on
  // ourselves it throws here and now. Throws what the body throws instead, and
  // std::logic_error for a main flow.
  void kill() {
    expect_usable("kill");
    if (flow_ == flow_->root)
      throw std::logic_error("kill: the main flow cannot be killed");
    if (flow_ == flow_of(current_flow)) throw killed(flow_);
    if (flow_->leaf == nullptr) return flow_->unwind();
    const coroutine_ref victim(*this);  // our handle may go meanwhile
    strike(*victim.flow_);
    current_flow->meet_pending();
  }

  // Whom its value and its errors go to; empty for a main flow. That it waits
  // for a T is a guess, which a switch checks.
  coroutine_ref parent() const {
    if (flow_ == nullptr || flow_ == flow_->root) return {};
    return coroutine_ref(flow_->link);
  }

  // Gives it another parent. Throws parent_cycle when it would become its own
  // ancestor, std::logic_error for a main flow.
  template <class U>
  void set_parent(const coroutine_ref<U>& other) {
    expect_usable("set_parent");
    other.expect_usable("set_parent");
    if (flow_ == flow_->root)
      throw std::logic_error("set_parent: a main flow has no parent");
    for (fiber* f = other.flow_; f != nullptr; f = f->link)
      if (f == flow_)
        throw parent_cycle("set_parent: a coroutine would be its own ancestor");
    other.flow_->retain();
    std::exchange(flow_->link, other.flow_)->release();
  }

  // The main flow of a thread ends with the thread.
  flow_state state() const {
    if (flow_ == nullptr) return flow_state::finished;
    const bool gone = flow_ == &flow_->home->main && flow_->home->ended;
    return gone ? flow_state::finished : flow_->state();
  }
  bool dead() const { return state() == flow_state::finished; }
  explicit operator bool() const {  // started, and not ended
    return !dead() && state() != flow_state::created;
  }
  const void* id() const { return flow_; }

 protected:
  template <class>
  friend class coroutine_ref;
  template <class U>
  friend coroutine_ref<U> this_coroutine();
  template <class U>
  friend coroutine_ref<U> main_coroutine();

  explicit coroutine_ref(fiber* flow) : flow_(flow) {
    if (flow_ == nullptr) return;
    if (flow_->home != current_thread) throw_wrong_thread("coroutine", *flow_);
    flow_->retain();
  }

  thread_state& expect_usable(const char* call) const {
    thread_state& t = this_thread_state();
    if (flow_ == nullptr)
      throw dead_coroutine(std::string(call) + ": there is no coroutine here");
    if (flow_->home != &t) throw_wrong_thread(call, *flow_);
    if (flow_->root != current_root && flow_->life != flow_state::finished)
      throw wrong_task(std::string(call) +
                       ": the coroutine belongs to another task");
    return t;
  }

  // Whether the error is a kill of this very flow, which ends with it.
  bool is_own_kill(const std::exception_ptr& error) const {
    try {
      std::rethrow_exception(error);
    } catch (const killed& k) {
      return k.is_for(flow_);
    } catch (...) {
      return false;
    }
  }

  // What one that was killed gives.
  static T no_value() {
    if constexpr (std::is_void_v<T> || std::is_default_constructible_v<T>)
      return T();
    else
      throw dead_coroutine(
          "throw_in: the coroutine was killed, and its type has no default");
  }

  // The flow to switch to, ready for it; null when that is the one that asks.
  [[gnu::noinline]] fiber* look_closer(value& v) const {
    thread_state& t = expect_usable("switch_to");
    if (flow_ == flow_of(current_flow)) return nullptr;
    if (flow_->life == flow_state::finished)
      throw dead_coroutine("switch_to: the coroutine has ended");
    if (flow_->expects != &type_tag<value> && flow_->expects != nullptr)
      throw wrong_type(
          "switch_to: the coroutine waits for a value of another type");
    if (flow_->life == flow_state::created) {
      static_cast<std::optional<value>*>(flow_->inbox)->emplace(std::move(v));
      flow_->start(t);
      flow_->leaf = flow_;
    }
    return flow_;
  }

  // The nearest ancestor that can still take an error. One that has not started
  // dies of it.
  static fiber* heir_of(const fiber* flow) {
    fiber* heir = flow->link;
    for (; heir->life != flow_state::running; heir = heir->link)
      if (heir->life == flow_state::created) heir->unwind();
    return heir;
  }

  // Leaves the running flow until somebody switches to it. Returns what they
  // send, which still lies with them unless they have ended.
  [[gnu::always_inline]] static value suspend(fiber* next, const char* event,
                                              value* sent) {
    fiber* const leaf = current_flow;
    fiber* const me = flow_of(leaf);
    std::optional<value> reply;
    me->expects = &type_tag<value>;
    me->inbox = &reply;
    me->leaf = leaf;
    if (trace_switch != nullptr) trace_switch(event, me, flow_of(next));
    const arrival a = switch_fiber(*leaf, *next, sent);
    static_cast<fiber&>(a.self).meet_pending();
    if (a.message == nullptr) return std::move(*reply);
    return std::move(*static_cast<value*>(a.message));
  }

  fiber* flow_ = nullptr;
};

// What all coroutines have. Whoever makes one is its first parent.
class coroutine_core : public fiber {
 public:
  const char* kind() const noexcept override { return "coroutine"; }

  // Kills it where it is suspended; whoever asks is its parent for that time.
  // One that has not started never runs.
  void unwind() noexcept override;

 protected:
  coroutine_core() {
    link = flow_of(this_flow());
    link->retain();
    references = 1;
    root = current_root;
    home = &this_thread_state();  // the parent's, for good
    home->add();
  }
  ~coroutine_core() override { link->release(); }

  // Hands the result or the error to the killer, or else to the nearest
  // ancestor that has not ended. Returns who goes on.
  template <class T>
  fiber* bequeath(std::optional<T>& result, std::exception_ptr error) noexcept;

  virtual void drop_body() noexcept = 0;
};

inline void coroutine_core::unwind() noexcept {
  orphan = false;
  if (life == flow_state::created) {
    life = flow_state::finished;
    drop_body();
  }
  for (int tries = 0; leaf != nullptr; ++tries) {
    if (tries == 16) die("a coroutine that is destroyed does not end");
    strike(*this);
    fiber* const mine = current_flow;
    if (mine->pending != nullptr)
      tell_unhandled("a coroutine", std::exchange(mine->pending, nullptr));
  }
  if (life == flow_state::running && !home->ended)  // else: by exit()
    die("a coroutine was destroyed by itself, or by a flow that it waits for");
}

template <class T>
fiber* coroutine_core::bequeath(std::optional<T>& result,
                                std::exception_ptr error) noexcept {
  life = flow_state::finished;
  for (fiber* heir = killer != nullptr ? killer : link;; heir = heir->link) {
    if (heir->life == flow_state::finished) continue;
    if (error == nullptr && heir->expects != nullptr) {
      try {
        if (heir->expects != &type_tag<T>)
          throw wrong_type(
              "a coroutine ended with a value of another type "
              "than its parent waits for");
        if constexpr (std::is_default_constructible_v<T>)
          if (!result) result.emplace();
        if (!result)
          throw dead_coroutine(
              "a coroutine was killed, and its type has no default to return");
        *static_cast<std::optional<T>*>(heir->inbox) = std::move(result);
        if (heir->life == flow_state::created) {
          heir->start(*home);
          heir->leaf = heir;
        }
      } catch (...) {
        error = std::current_exception();
      }
    }
    if (heir->life == flow_state::created) {
      heir->unwind();  // it dies of the error without having run
      continue;
    }
    fiber* const next = std::exchange(heir->leaf, nullptr);
    if (trace_switch != nullptr)
      trace_switch(error != nullptr ? "throw" : "switch", this, heir);
    if (error != nullptr) next->pending = std::move(error);
    return next;
  }
}

template <class T, class F>
class coroutine_frame final : public frame_with_body<coroutine_core, F> {
  using base = frame_with_body<coroutine_core, F>;

 public:
  using value = typename coroutine_ref<T>::value;

  template <class G>
  explicit coroutine_frame(G&& f) : base(std::forward<G>(f)) {
    this->expects = &type_tag<value>;
    this->inbox = &first_;
  }

 private:
  fiber* run() noexcept override {
    std::optional<value> result;
    std::exception_ptr error;
    try {
      result = call();
    } catch (const killed& k) {
      if (!k.is_for(this)) error = std::current_exception();
    } catch (...) {
      error = what_ended("coroutine");
    }
    this->cleaning = true;
    drop_body();
    return this->template bequeath<value>(result, std::move(error));
  }

  value call() {
    F& f = this->body.kept;
    const auto call_it = [&]() -> decltype(auto) {
      if constexpr (std::is_invocable_v<F&, T>) {
        return f(std::move(*first_));
      } else {
        static_assert(std::is_invocable_v<F&>,
                      "the body is T(T), void(T), T() or void()");
        return f();
      }
    };
    if constexpr (std::is_convertible_v<decltype(call_it()), value>) {
      return call_it();
    } else {
      call_it();
      return value{};
    }
  }

  void drop_body() noexcept override {
    base::drop_body();
    first_.reset();
  }

  std::optional<value> first_;
};

// A body, T(T), void(T), T() or void(), with a stack of its own, that runs when
// somebody switches to it. Move-only; an empty one is dead.
//
// Nothing runs, and no stack is taken, before the first switch. Destroying a
// suspended one throws bao::killed in it and suspends until it has ended, so
// that the objects on its stack are destroyed, inner ones first; what else its
// body then throws goes to on_unhandled(). On another thread all that is left
// to the coroutine's own.
template <class T = void>
class coroutine : public coroutine_ref<T> {
 public:
  coroutine() = default;

  // A child of the flow that makes it, or of `parent`: throws what set_parent()
  // does.
  template <class F, class = std::enable_if_t<
                         !std::is_base_of_v<coroutine_ref<T>, std::decay_t<F>>>>
  explicit coroutine(F&& body) {
    this->flow_ =
        new coroutine_frame<T, std::decay_t<F>>(std::forward<F>(body));
  }

  template <class F, class U>
  coroutine(F&& body, const coroutine_ref<U>& parent)
      : coroutine(std::forward<F>(body)) {
    this->set_parent(parent);
  }

  coroutine(coroutine&& other) noexcept { std::swap(this->flow_, other.flow_); }
  coroutine& operator=(coroutine&& other) noexcept {
    coroutine taken(std::move(other));
    std::swap(this->flow_, taken.flow_);
    return *this;
  }
  ~coroutine() {
    fiber* flow = std::exchange(this->flow_, nullptr);
    if (flow == nullptr) return;
    flow->orphan = true;
    flow->release();
  }
};

// Never suspends. The coroutine that we are in, or the main flow.
template <class T = void>
coroutine_ref<T> this_coroutine() {
  return coroutine_ref<T>(flow_of(this_flow()));
}

// Never suspends. The first flow of the task that we are in.
template <class T = void>
coroutine_ref<T> main_coroutine() {
  this_thread_state();
  return coroutine_ref<T>(current_root);
}

}  // namespace BAO_ABI
}  // namespace bao
