// bao/pipeline.hpp - generators joined by |
//
//     for (auto& line : bao::from(lines) | bao::filter(is_error)
//                                        | bao::map(shorten) | bao::take(10))
//
// Every stage is a generator of its own that asks the one on its left, so
// values go through one by one: nothing is collected in between, and what
// nobody asks for is never made. Each stage below is therefore a loop that
// anybody would write, and a loop of your own joins in by stage().
//
// A generator on the left that is a temporary is owned by the result; one that
// has a name is borrowed, and goes on from where it was left.
//
// Each stage costs a stack, a page of memory at least, and 3 to 7 ns a value.
// To build a pipeline never suspends and runs nothing; to() and loops over it
// suspend where its bodies do.
//
// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <iterator>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "bao/generator.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {

// A stage knows how to connect itself to the generator on its left.
template <class Connect>
struct pipeline_stage {
  Connect connect;
};
template <class Connect>
pipeline_stage(Connect) -> pipeline_stage<Connect>;

template <class Source, class Connect,
          class = std::enable_if_t<is_generator<std::decay_t<Source>>::value>>
auto operator|(Source&& source, pipeline_stage<Connect> s) {
  return s.connect(std::forward<Source>(source));
}

// What a generator yields: T, or T& when it only lends.
template <class Generator>
using yielded = typename std::decay_t<Generator>::yield_type;

// The loop that you write: run(in, yield), which reads `in`, a generator, and
// yields values of type Out.
template <class Out, class F>
auto stage(F run) {
  return pipeline_stage{[run = std::move(run)](auto&& source) mutable {
    using kept = handed_on<decltype(source)>;  // a reference, or our own
    return generator<Out>(
        [](yielder<Out, void>& yield, std::tuple<kept> in, F f) {
          f(std::get<0>(in), yield);
        },
        std::tuple<kept>(std::forward<decltype(source)>(source)),
        std::move(run));
  }};
}

// f(x) for every x.
template <class F>
auto map(F f) {
  return pipeline_stage{[f = std::move(f)](auto&& source) mutable {
    using in = yielded<decltype(source)>;
    using out = handed_on<std::invoke_result_t<F&, in>>;
    return std::forward<decltype(source)>(source) |
           stage<out>([f = std::move(f)](auto& values, auto& yield) mutable {
             for (auto& x : values) yield(f(static_cast<in&&>(x)));
           });
  }};
}

// A stage() whose values have the type of those that it reads: run(in, hand_on)
// calls hand_on(x) to yield one.
template <class F>
auto passing(F run) {
  return pipeline_stage{[run = std::move(run)](auto&& source) mutable {
    using in = yielded<decltype(source)>;
    return std::forward<decltype(source)>(source) |
           stage<in>([run = std::move(run)](auto& values, auto& yield) mutable {
             run(values, [&](auto& x) { yield(static_cast<in&&>(x)); });
           });
  }};
}

// Those for which p(x) holds.
template <class P>
auto filter(P p) {
  return passing([p = std::move(p)](auto& values, auto hand_on) mutable {
    for (auto& x : values)
      if (p(x)) hand_on(x);
  });
}

// The first n; does not ask for one more.
inline auto take(std::size_t n) {
  return passing([n](auto& values, auto hand_on) mutable {
    if (n == 0) return;
    for (auto& x : values) {
      hand_on(x);
      if (--n == 0) return;
    }
  });
}

// All but the first n.
inline auto drop(std::size_t n) {
  return passing([n](auto& values, auto hand_on) mutable {
    for (auto& x : values)
      if (n > 0)
        --n;
      else
        hand_on(x);
  });
}

// Vectors of n, the last one shorter where they do not come out even. Throws
// std::invalid_argument when n is 0.
inline auto chunk(std::size_t n) {
  if (n == 0) throw std::invalid_argument("chunk: of nothing");
  return pipeline_stage{[n](auto&& source) {
    using in = yielded<decltype(source)>;
    using out = std::vector<std::decay_t<in>>;
    return std::forward<decltype(source)>(source) |
           stage<out>([n](auto& values, auto& yield) {
             out collected;
             for (auto& x : values) {
               collected.push_back(static_cast<in&&>(x));
               if (collected.size() == n) yield(std::exchange(collected, {}));
             }
             if (!collected.empty()) yield(std::move(collected));
           });
  }};
}

// The elements of every element, which is a range.
inline auto flatten() {
  return pipeline_stage{[](auto&& source) {
    using range = std::remove_reference_t<yielded<decltype(source)>>;
    using out = handed_on<decltype(*std::begin(std::declval<range&>()))>;
    return std::forward<decltype(source)>(source) |
           stage<out>([](auto& values, auto& yield) {
             for (auto& inner : values)
               for (auto&& x : inner) yield(static_cast<out&&>(x));
           });
  }};
}

// Pairs of one from each side, until either side ends.
template <class Generator>
auto zip(Generator&& other) {
  return pipeline_stage{
      [right = std::tuple<handed_on<Generator&&>>(
           std::forward<Generator>(other))](auto&& source) mutable {
        using a = yielded<decltype(source)>;
        using b = yielded<Generator>;
        return std::forward<decltype(source)>(source) |
               stage<std::pair<a, b>>([right = std::move(right)](
                                          auto& values, auto& yield) mutable {
                 for (auto& x : values) {
                   auto y = std::get<0>(right).begin();  // its next one
                   if (y == std::get<0>(right).end()) return;
                   yield({static_cast<a&&>(x), static_cast<b&&>(*y)});
                 }
               });
      }};
}

// All of the left side, then all of `other`.
template <class Generator>
auto chain(Generator&& other) {
  return passing([right = std::tuple<handed_on<Generator&&>>(
                      std::forward<Generator>(other))](auto& values,
                                                       auto hand_on) mutable {
    for (auto& x : values) hand_on(x);
    for (auto& x : std::get<0>(right)) hand_on(x);
  });
}

// The right end: everything in a container, as to<std::vector>() or as
// to<std::set<int>>().
template <class Container>
auto to() {
  return pipeline_stage{[](auto&& source) {
    using in = yielded<decltype(source)>;
    Container all;
    for (auto& x : source) all.insert(all.end(), static_cast<in&&>(x));
    return all;
  }};
}
template <template <class...> class Container>
auto to() {
  return pipeline_stage{[](auto&& source) {
    using value = std::decay_t<yielded<decltype(source)>>;
    return to<Container<value>>().connect(source);
  }};
}

// The left end: the elements of any range. One that has a name lends them, one
// after the other; those of a temporary are given away.
template <class Range>
auto from(Range&& range) {
  using kept = handed_on<Range&&>;
  using reference = decltype(*std::begin(std::declval<kept&>()));
  using value = typename std::iterator_traits<decltype(std::begin(
      std::declval<kept&>()))>::value_type;  // of vector<bool>, no proxy
  using out = std::conditional_t<std::is_reference_v<kept>,
                                 handed_on<reference>, value>;
  return generator<out>(
      [](yielder<out, void>& yield, std::tuple<kept> in) {
        for (auto&& x : std::get<0>(in))
          if constexpr (std::is_reference_v<kept>)
            yield(static_cast<out&&>(x));
          else
            yield(std::move(x));
      },
      std::tuple<kept>(std::forward<Range>(range)));
}

}  // namespace BAO_ABI
}  // namespace bao
