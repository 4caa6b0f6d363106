// pipeline.cpp - tests of generators joined by |
#include <doctest/doctest.h>

#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bao.hpp"

using ints = std::vector<int>;

TEST_CASE("from yields the elements of a range, to collects them") {
  const ints some{1, 2, 3};
  CHECK((bao::from(some) | bao::to<std::vector>()) == some);
  CHECK((bao::from(ints{4, 5}) | bao::to<std::vector>()) == ints{4, 5});
  CHECK((bao::from(ints()) | bao::to<std::vector>()).empty());
  CHECK((bao::from(some) | bao::to<std::set<int>>()) == std::set<int>{1, 2, 3});
  CHECK((bao::from(std::string("abc")) | bao::to<std::string>()) == "abc");
  CHECK((bao::from(std::map<int, int>{{1, 2}}) | bao::to<std::map<int, int>>())
            .at(1) == 2);
}

TEST_CASE("from lends what has a name, and gives away what has none") {
  std::vector<std::string> named{"a", "b"};
  for (std::string& text : bao::from(named)) text += "!";
  CHECK(named == std::vector<std::string>{"a!", "b!"});
  std::vector<std::unique_ptr<int>> pointers;
  pointers.push_back(std::make_unique<int>(1));
  pointers.push_back(std::make_unique<int>(2));
  auto given = bao::from(std::move(pointers));
  std::unique_ptr<int> first = given.next().value();
  CHECK(*first == 1);
  CHECK(**given.begin() == 2);
}

TEST_CASE("from takes a temporary whose elements are constant") {
  CHECK((bao::from(std::set<int>{2, 1}) | bao::to<std::vector>()) ==
        ints{1, 2});
  CHECK((bao::from(std::initializer_list<int>{3, 4}) |
         bao::to<std::vector>()) == ints{3, 4});
}

TEST_CASE("map yields what the function makes of each value") {
  CHECK((bao::from(ints{1, 2, 3}) |
         bao::map([](int n) { return std::to_string(n * n); }) |
         bao::to<std::vector>()) == std::vector<std::string>{"1", "4", "9"});
}

TEST_CASE("map hands on the reference that a function returns") {
  std::vector<std::pair<int, std::string>> pairs{{1, "a"}, {2, "b"}};
  for (std::string& text :
       bao::from(pairs) | bao::map([](auto& p) -> auto& { return p.second; }))
    text += "!";
  CHECK(pairs[0].second == "a!");
  CHECK(pairs[1].second == "b!");
}

TEST_CASE("a function may change its own state from value to value") {
  CHECK((bao::from(ints{1, 2, 3}) |
         bao::map([sum = 0](int n) mutable { return sum += n; }) |
         bao::to<std::vector>()) == ints{1, 3, 6});
}

TEST_CASE("filter yields the values for which the predicate holds") {
  CHECK((bao::from(ints{1, 2, 3, 4}) |
         bao::filter([](int n) { return n % 2 == 0; }) |
         bao::to<std::vector>()) == ints{2, 4});
}

TEST_CASE("take yields the first few, drop the others") {
  const ints some{1, 2, 3, 4};
  CHECK((bao::from(some) | bao::take(2) | bao::to<std::vector>()) ==
        ints{1, 2});
  CHECK((bao::from(some) | bao::take(9) | bao::to<std::vector>()) == some);
  CHECK((bao::from(some) | bao::take(0) | bao::to<std::vector>()).empty());
  CHECK((bao::from(some) | bao::drop(3) | bao::to<std::vector>()) == ints{4});
  CHECK((bao::from(some) | bao::drop(0) | bao::to<std::vector>()) == some);
  CHECK((bao::from(some) | bao::drop(9) | bao::to<std::vector>()).empty());
}

TEST_CASE(
    "chunk collects vectors of a size, the last of which may be shorter") {
  using chunks = std::vector<ints>;
  const ints some{1, 2, 3, 4, 5};
  CHECK((bao::from(some) | bao::chunk(2) | bao::to<std::vector>()) ==
        chunks{{1, 2}, {3, 4}, {5}});
  CHECK((bao::from(some) | bao::chunk(5) | bao::to<std::vector>()) ==
        chunks{{1, 2, 3, 4, 5}});
  CHECK((bao::from(ints()) | bao::chunk(2) | bao::to<std::vector>()).empty());
  CHECK_THROWS_AS(bao::chunk(0), std::invalid_argument);
}

TEST_CASE("flatten yields the elements of the elements") {
  CHECK((bao::from(std::vector<ints>{{1, 2}, {}, {3}}) | bao::flatten() |
         bao::to<std::vector>()) == ints{1, 2, 3});
  // Generators are ranges as well.
  CHECK((bao::from(ints{1, 2, 3}) | bao::map([](int n) {
           return bao::generator<int>([n](auto& yield) {
             for (int i = 0; i < n; ++i) yield(n);
           });
         }) |
         bao::flatten() | bao::to<std::vector>()) == ints{1, 2, 2, 3, 3, 3});
}

TEST_CASE("flatten lends the elements of what is lent") {
  std::vector<ints> nested{{1, 2}, {3}};
  for (int& n : bao::from(nested) | bao::flatten()) n *= 10;
  CHECK(nested == std::vector<ints>{{10, 20}, {30}});
}

TEST_CASE("chunk and flatten undo each other") {
  const ints some{1, 2, 3, 4, 5, 6, 7};
  CHECK((bao::from(some) | bao::chunk(3) | bao::flatten() |
         bao::to<std::vector>()) == some);
}

TEST_CASE("zip yields pairs until either side ends") {
  using pairs = std::vector<std::pair<int, char>>;
  const auto zipped = [](ints a, std::string b) {
    return bao::from(std::move(a)) | bao::zip(bao::from(std::move(b))) |
           bao::to<std::vector>();
  };
  CHECK(zipped({1, 2}, "ab") == pairs{{1, 'a'}, {2, 'b'}});
  CHECK(zipped({1, 2, 3}, "ab") == pairs{{1, 'a'}, {2, 'b'}});
  CHECK(zipped({1, 2}, "abc") == pairs{{1, 'a'}, {2, 'b'}});
  CHECK(zipped({}, "abc").empty());
  CHECK(zipped({1, 2}, "").empty());
}

TEST_CASE("zip lends what is lent") {
  ints a{1, 2}, b{10, 20};
  for (auto& [x, y] : bao::from(a) | bao::zip(bao::from(b))) std::swap(x, y);
  CHECK(a == ints{10, 20});
  CHECK(b == ints{1, 2});
}

TEST_CASE("zip asks the right side only when the left one has a value") {
  bao::generator<int> right([](auto& yield) {
    for (int n = 1;; ++n) yield(n);
  });
  const auto pairs =
      bao::from(ints{7, 8}) | bao::zip(right) | bao::to<std::vector>();
  CHECK(pairs.size() == 2);
  CHECK(right.next() == 3);
}

TEST_CASE("zip asks the left side no more once the right one has ended") {
  bao::generator<int> left([](auto& yield) {
    for (int n = 1;; ++n) yield(n);
  });
  auto zipped = left | bao::zip(bao::from(ints{7, 8}));
  CHECK(zipped.next());
  CHECK(zipped.next());
  CHECK(!zipped.next());
  // As in Python, the value that found no partner is lost, and only that one.
  CHECK(left.next() == 4);
}

TEST_CASE("zip has asked nobody when it yields, but for the pair itself") {
  int asked_left = 0, asked_right = 0;
  const auto counted = [](auto& yield, int& asked) {
    for (;;) yield(++asked);
  };
  auto zipped = bao::generator<int>(counted, std::ref(asked_left)) |
                bao::zip(bao::generator<int>(counted, std::ref(asked_right)));
  CHECK(asked_left + asked_right == 0);
  zipped.next();
  zipped.next();
  CHECK(asked_left == 2);
  CHECK(asked_right == 2);
}

TEST_CASE("chain yields all of the left side, then all of the other") {
  CHECK((bao::from(ints{1, 2}) | bao::chain(bao::from(ints{3})) |
         bao::chain(bao::from(ints())) | bao::chain(bao::from(ints{4, 5})) |
         bao::to<std::vector>()) == ints{1, 2, 3, 4, 5});
}

TEST_CASE("stage makes a stage of a loop of one's own") {
  const auto twice = bao::stage<std::string>([](auto& in, auto& yield) {
    for (int n : in) {
      yield(std::to_string(n));
      yield(std::to_string(n) + "!");
    }
  });
  CHECK((bao::from(ints{1, 2}) | twice | bao::to<std::vector>()) ==
        std::vector<std::string>{"1", "1!", "2", "2!"});
  // A stage may be used again.
  CHECK((bao::from(ints{3}) | twice | bao::to<std::vector>()) ==
        std::vector<std::string>{"3", "3!"});
}

TEST_CASE("stages that hold something can be used again as well") {
  const std::string suffix = "a suffix that is long enough for the heap";
  const auto add = bao::map([suffix](std::string s) { return s + suffix; });
  for (int i = 0; i < 2; ++i)
    CHECK((bao::from(std::vector<std::string>{"x"}) | add |
           bao::to<std::vector>()) == std::vector<std::string>{"x" + suffix});
}

// --- nothing too much --------------------------------------------------------

TEST_CASE("nothing runs before somebody asks for a value") {
  int asked = 0;
  auto all = bao::generator<int>([&](auto& yield) {
               for (;;) yield(++asked);
             }) |
             bao::map([](int n) { return n; }) |
             bao::filter([](int) { return true; }) | bao::drop(1) |
             bao::chunk(2) | bao::flatten() | bao::take(2);
  CHECK(asked == 0);
  CHECK(*all.begin() == 2);
  CHECK(asked == 3);  // one dropped, two in the chunk
}

TEST_CASE("values go through one by one") {
  std::string order;
  auto all = bao::from(ints{1, 2}) | bao::map([&](int n) {
               order += 'a';
               return n;
             }) |
             bao::map([&](int n) {
               order += 'b';
               return n;
             });
  for (int n : all) order += std::to_string(n);
  CHECK(order == "ab1ab2");
}

TEST_CASE("take asks for no more than it takes") {
  int asked = 0;
  bao::generator<int> endless([&](auto& yield) {
    for (;;) yield(++asked);
  });
  CHECK((endless | bao::take(3) | bao::to<std::vector>()) == ints{1, 2, 3});
  CHECK(asked == 3);
  CHECK((endless | bao::take(0) | bao::to<std::vector>()).empty());
  CHECK(asked == 3);
}

// --- who owns what -----------------------------------------------------------

TEST_CASE(
    "a generator that has a name is borrowed and goes on where it is left") {
  bao::generator<int> count([](auto& yield) {
    for (int n = 1;; ++n) yield(n);
  });
  CHECK((count | bao::take(2) | bao::to<std::vector>()) == ints{1, 2});
  CHECK(count.next() == 3);
  CHECK((count | bao::map([](int n) { return n * 10; }) | bao::take(1) |
         bao::to<std::vector>()) == ints{40});
  CHECK((count | bao::filter([](int n) { return n % 2 == 0; }) | bao::take(1) |
         bao::to<std::vector>()) == ints{6});
  CHECK((count | bao::drop(1) | bao::take(1) | bao::to<std::vector>()) ==
        ints{8});
  CHECK((count | bao::chunk(2) | bao::take(1) | bao::to<std::vector>()) ==
        std::vector<ints>{{9, 10}});
  CHECK((count | bao::zip(bao::from(ints{1, 2})) | bao::take(1) |
         bao::to<std::vector>())
            .size() == 1);
  CHECK(count.next() == 12);
}

TEST_CASE("chain leaves a generator that it has borrowed as it finds it") {
  const auto endless = [](auto& yield) {
    for (int n = 1;; ++n) yield(n);
  };
  bao::generator<int> left(endless), right(endless);
  CHECK((left | bao::chain(right) | bao::take(2) | bao::to<std::vector>()) ==
        ints{1, 2});
  CHECK(left.next() == 3);
  CHECK((bao::from(ints{7}) | bao::chain(right) | bao::take(2) |
         bao::to<std::vector>()) == ints{7, 1});
  CHECK(right.next() == 2);
}

TEST_CASE("a stage may be left while what it has borrowed is used elsewhere") {
  bao::generator<int> count([](auto& yield) {
    for (int n = 1;; ++n) yield(n);
  });
  auto tens = count | bao::map([](int n) { return n * 10; });
  CHECK(tens.next() == 10);
  CHECK(count.next() == 2);
  CHECK(tens.next() == 30);
}

TEST_CASE("a temporary generator is owned and unwound with the result") {
  bool unwound = false;
  struct tells {
    bool& told;
    ~tells() { told = true; }
  };
  {
    auto all = bao::generator<int>([&](auto& yield) {
                 tells local{unwound};
                 for (int n = 1;; ++n) yield(n);
               }) |
               bao::map([](int n) { return n + 1; }) | bao::take(5);
    CHECK(all.next() == 2);
    CHECK(!unwound);
  }
  CHECK(unwound);
}

TEST_CASE("values that can only be moved pass through every stage") {
  const auto pointers = [] {
    return bao::generator<std::unique_ptr<int>>([](auto& yield) {
      for (int n = 1; n <= 5; ++n) yield(std::make_unique<int>(n));
    });
  };
  auto left = pointers() | bao::filter([](auto& p) { return *p != 2; }) |
              bao::drop(1) | bao::take(3) | bao::chunk(2) | bao::flatten() |
              bao::map([](std::unique_ptr<int>& p) { return std::move(p); }) |
              bao::chain(pointers() | bao::take(1)) | bao::zip(pointers()) |
              bao::to<std::vector>();
  REQUIRE(left.size() == 4);
  CHECK(*left[0].first == 3);
  CHECK(*left[1].first == 4);
  CHECK(*left[2].first == 5);
  CHECK(*left[3].first == 1);
  CHECK(*left[3].second == 4);
}

TEST_CASE("a generator of references lends through every stage") {
  ints some{1, 2, 3, 4, 5};
  auto lent = bao::from(some) | bao::filter([](int n) { return n != 2; }) |
              bao::map([](int& n) -> int& { return n; }) | bao::drop(1) |
              bao::take(2);
  for (int& n : lent) n = 0;
  CHECK(some == ints{1, 2, 0, 0, 5});
  ints others{6};
  for (int& n : bao::from(some) | bao::chain(bao::from(others))) n += 1;
  CHECK(some == ints{2, 3, 1, 1, 6});
  CHECK(others == ints{7});
  // What is collected is a copy.
  CHECK((bao::from(some) | bao::to<std::vector>()) == some);
}

TEST_CASE("what is only lent is never moved away") {
  std::vector<std::string> texts{"long enough to be stored upon the heap"};
  const auto same = texts;
  CHECK((bao::from(texts) | bao::to<std::vector>()) == same);
  CHECK((bao::from(texts) | bao::chunk(2) | bao::to<std::vector>()).at(0) ==
        same);
  CHECK((bao::from(texts) | bao::map([](std::string s) { return s; }) |
         bao::to<std::vector>()) == same);
  std::vector<std::vector<std::string>> nested{texts};
  CHECK((bao::from(nested) | bao::flatten() | bao::to<std::vector>()) == same);
  CHECK(texts == same);
  CHECK(nested.at(0) == same);
}

// --- errors ------------------------------------------------------------------

TEST_CASE("an error of any stage comes out at the end of the pipeline") {
  auto all = bao::from(ints{1, 2}) | bao::map([](int n) {
               if (n == 2) throw std::runtime_error("two");
               return n;
             }) |
             bao::filter([](int) { return true; });
  CHECK(all.next() == 1);
  CHECK_THROWS_WITH_AS(all.next(), "two", std::runtime_error);
  CHECK(!all.next());
}

TEST_CASE("thousands of stages may stand in a row") {
  bao::generator<int> g = bao::from(ints{0});
  for (int i = 0; i < 2000; ++i)
    g = std::move(g) | bao::map([](int n) { return n + 1; });
  CHECK(g.next() == 2000);
  CHECK(!g.next());
}
