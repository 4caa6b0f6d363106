// bao/channel.hpp - values from task to task
//
//     bao::channel<int> numbers;                    // Go's word, and its rules
//     bao::spawn([&] {
//       for (int n = 1; n <= 3; ++n) numbers.send(n);
//       numbers.close();
//     });
//     for (int n : numbers) std::printf("%d\n", n);
//
// Between those who send and those who receive lies a buffer. What does not fit
// waits with its sender, who holds it out; without a buffer every value goes
// from hand to hand:
//
//     senders in line          buffer           receivers in line
//     [ 7: "d" ]-[ 4: "c" ] -> | "b" "a" | ->   (none: there is something)
//     (none: there is room) -> |         | ->   [ 2: room ]-[ 9: room ]
//
// Each line is served in the order of arrival. Whoever is late or killed leaves
// it, and nothing is lost: what was not sent stays with the sender, what was
// received is with a receiver that runs. A message takes some tens of ns. A
// channel must outlive the tasks that use it: a group declared behind it sees
// to that.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bao/wait_queue.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// In what order a buffer gives out what it holds: as it came; the latest first;
// the greatest first.
struct fifo {
  template <class T>
  class buffer {
   public:
    std::size_t size() const { return items_.size(); }
    void push(T&& value) { items_.push_back(std::move(value)); }
    T pop() {
      T value = std::move(items_.front());
      items_.pop_front();
      return value;
    }

   private:
    std::deque<T> items_;
  };
};

struct lifo {
  template <class T>
  class buffer {
   public:
    std::size_t size() const { return items_.size(); }
    void push(T&& value) { items_.push_back(std::move(value)); }
    T pop() {
      T value = std::move(items_.back());
      items_.pop_back();
      return value;
    }

   protected:
    std::vector<T> items_;
  };
};

// The greatest comes to the end, where lifo takes it.
template <class Less>
struct priority {
  template <class T>
  class buffer : public lifo::buffer<T> {
   public:
    void push(T&& value) {
      lifo::buffer<T>::push(std::move(value));
      std::push_heap(this->items_.begin(), this->items_.end(), Less());
    }
    T pop() {
      std::pop_heap(this->items_.begin(), this->items_.end(), Less());
      return lifo::buffer<T>::pop();
    }
  };
};

// Walks over what from.next() returns, until that is empty.
template <class Source, class T>
class input_iterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = T;
  using difference_type = std::ptrdiff_t;
  using pointer = T*;
  using reference = T&;

  input_iterator() = default;
  explicit input_iterator(Source& from) : from_(&from) { ++*this; }
  T& operator*() { return *value_; }
  T* operator->() { return &*value_; }
  input_iterator& operator++() {
    value_.reset();
    if (auto next = from_->next()) value_.emplace(std::move(*next));
    return *this;
  }
  void operator++(int) { ++*this; }
  bool operator==(const input_iterator& other) const {
    return value_.has_value() == other.value_.has_value();
  }
  bool operator!=(const input_iterator& other) const {
    return !(*this == other);
  }

 private:
  Source* from_ = nullptr;
  std::optional<T> value_;
};

// A capacity that is never reached.
inline constexpr std::size_t unbounded = PTRDIFF_MAX;

struct discard_t {};
inline constexpr discard_t discard{};

// Any number of tasks of one thread may send and receive. T may be move-only.
// Only send(), receive() and a loop over the channel suspend: while they have
// to wait, and now and then when they need not, to let others run. They throw
// what interrupts us, and wrong_thread on another thread.
template <class T, class Order = fifo>
class channel {
 public:
  using value_type = T;

  // How many values the buffer holds; with 0, whoever sends waits until its
  // value has been received. Throws std::invalid_argument when it is negative.
  explicit channel(std::size_t capacity = 0) : capacity_(capacity) {
    if (capacity > unbounded)
      throw std::invalid_argument(
          "channel: the capacity is " +
          std::to_string(static_cast<std::ptrdiff_t>(capacity)));
  }

  // True when the value has been received or buffered; false, and the value is
  // left alone, when `until` passes before that. Throws channel_closed.
  bool send(T&& value, deadline until = never) {
    scheduler& s = senders_.enter("send");
    if (s.time_to_yield() && !until.passed()) s.yield();
    if (put(value, "send")) return true;
    waiter me(s.running(), &value);
    const bool sent = senders_.wait_as(me, until, {"sending to a channel"},
                                       [&] { return put(value, "send"); });
    if (me.offer == nullptr) throw_closed("send");
    return sent;
  }
  bool send(const T& value, deadline until = never) {
    T copy(value);
    return send(std::move(copy), until);
  }
  // The same, without waiting.
  bool try_send(T&& value) {
    senders_.enter("try_send");
    return put(value, "try_send");
  }
  bool try_send(const T& value) {
    T copy(value);
    return try_send(std::move(copy));
  }

  // The next value; empty when the channel is closed and nothing is left, or
  // when `until` passes: closed() tells.
  std::optional<T> receive(deadline until = never) {
    scheduler& s = receivers_.enter("receive");
    if (s.time_to_yield() && !until.passed()) s.yield();
    std::optional<T> value;
    const auto ready = [&] { return take(value) || closed_; };
    if (ready()) return value;
    waiter me(s.running(), &value);
    const bool told =
        receivers_.wait_as(me, until, {"receiving from a channel"}, ready);
    // Late, and closed meanwhile: nobody shall take that for the end while
    // something is left.
    if (!told && me.in_list() && closed_) take(value);
    return value;
  }
  std::optional<T> try_receive() {
    receivers_.enter("try_receive");
    std::optional<T> value;
    take(value);
    return value;
  }

  // Nothing more can be sent: who waits to is told, by channel_closed. What is
  // buffered can still be received, unless it is discarded.
  void close() {
    senders_.enter("close");
    closed_ = true;
    while (waiter* const w = senders_.first()) {
      w->offer = nullptr;
      wait_queue::wake(*w);
    }
    // With nothing. Where something is left, whoever stands in line is late or
    // interrupted, and looks for itself.
    if (buffer_.size() == 0) receivers_.wake_all();
  }
  void close(discard_t) {
    close();
    const auto dropped = std::exchange(buffer_, {});
  }
  bool closed() const { return closed_; }

  // How many values are buffered.
  std::size_t size() const { return buffer_.size(); }

  // For range-for and algorithms: until it is closed and nothing is left. ++
  // suspends like receive().
  using iterator = input_iterator<channel, T>;
  iterator begin() { return iterator(*this); }
  iterator end() { return {}; }
  std::optional<T> next() { return receive(); }

 private:
  template <class, class, class>
  friend class receive_case;
  template <class, class, class>
  friend class send_case;

  [[noreturn, gnu::cold]] static void throw_closed(const char* call) {
    throw channel_closed(std::string(call) + ": the channel is closed");
  }

  // Into the hands of a receiver, or into the buffer.
  bool put(T& value, const char* call) {
    if (closed_) throw_closed(call);
    if (waiter* const w = receivers_.first()) {
      static_cast<std::optional<T>*>(w->offer)->emplace(std::move(value));
      wait_queue::wake(*w);
      return true;
    }
    if (buffer_.size() >= capacity_) return false;
    buffer_.push(std::move(value));
    return true;
  }

  // Out of the hands of a sender, or out of the buffer, where the value of a
  // sender takes its place.
  bool take(std::optional<T>& into) {
    waiter* const w = senders_.first();
    if (w != nullptr && capacity_ == 0)
      into.emplace(std::move(*static_cast<T*>(w->offer)));
    else if (w != nullptr)
      buffer_.push(std::move(*static_cast<T*>(w->offer)));
    if (w != nullptr) wait_queue::wake(*w);
    if (!into && buffer_.size() != 0) into.emplace(buffer_.pop());
    return into.has_value();
  }

  std::size_t capacity_;
  bool closed_ = false;
  typename Order::template buffer<T> buffer_;
  wait_queue senders_;
  wait_queue receivers_;
};

}  // namespace BAO_ABI
}  // namespace bao
