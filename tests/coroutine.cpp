// coroutine.cpp - tests of symmetric switching, and of the tree of parents
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "bao.hpp"

// --- switching ---------------------------------------------------------------

TEST_CASE("S1: a coroutine runs nothing and takes no stack before a switch") {
  bool ran = false;
  bao::coroutine<> c([&] { ran = true; });
  CHECK(!ran);
  CHECK(c.state() == bao::flow_state::created);
  CHECK(static_cast<const bao::fiber*>(c.id())->memory == nullptr);
  c.switch_to();
  CHECK(ran);
}

TEST_CASE("S1: its parent is the coroutine that creates it, or the one given") {
  bao::coroutine<> inner, adopted, other([] {});
  bao::coroutine<> outer([&] {
    inner = bao::coroutine<>([] {});
    adopted = bao::coroutine<>([] {}, other);
  });
  outer.switch_to();
  CHECK(outer.parent().id() == bao::main_coroutine().id());
  CHECK(inner.parent().id() == outer.id());
  CHECK(adopted.parent().id() == other.id());
}

TEST_CASE("S2: what is sent is what the other one's own switch returns") {
  std::vector<std::string> heard;
  bao::coroutine<std::string> c([&](std::string first) {
    heard.push_back(first);
    heard.push_back(bao::main_coroutine<std::string>().switch_to("one"));
    heard.push_back(bao::main_coroutine<std::string>().switch_to("two"));
    return std::string("end");
  });
  CHECK(c.switch_to("a") == "one");
  CHECK(c.switch_to("b") == "two");
  CHECK(c.switch_to("c") == "end");
  CHECK(heard == std::vector<std::string>{"a", "b", "c"});
}

TEST_CASE("S2: a switch returns what anybody sends back, not only its target") {
  bao::coroutine<int> b;
  bao::coroutine<int> a([&](int n) { b.switch_to(n + 1); });
  b = bao::coroutine<int>(
      [&](int n) { bao::main_coroutine<int>().switch_to(n * 10); });
  CHECK(a.switch_to(1) == 20);  // it is b who answers
}

TEST_CASE("S2: without a value, a default one is sent") {
  bao::coroutine<int> c([](int first) {
    return first + bao::main_coroutine<int>().switch_to() + 7;
  });
  CHECK(c.switch_to() == 0);
  CHECK(c.switch_to() == 7);
}

TEST_CASE("S2: a body may take its first value or not, and return one or not") {
  const auto both = [](int n) { return n + 1; };
  const auto takes = [](int) {};
  const auto gives = [] { return 5; };
  const auto neither = [] {};
  CHECK(bao::coroutine<int>(both).switch_to(1) == 2);
  CHECK(bao::coroutine<int>(takes).switch_to(1) == 0);
  CHECK(bao::coroutine<int>(gives).switch_to(1) == 5);
  CHECK(bao::coroutine<int>(neither).switch_to(1) == 0);
}

TEST_CASE("S2: values are moved, never copied") {
  bao::coroutine<std::unique_ptr<int>> c([](std::unique_ptr<int> first) {
    ++*first;
    auto& main = bao::main_coroutine<std::unique_ptr<int>>;
    return main().switch_to(std::move(first));
  });
  std::unique_ptr<int> back = c.switch_to(std::make_unique<int>(1));
  CHECK(*back == 2);
  CHECK(*c.switch_to(std::move(back)) == 2);
  CHECK(c.dead());
}

TEST_CASE("S3: several values go as a tuple") {
  using pair = std::tuple<int, std::string>;
  bao::coroutine<pair> c([](pair in) {
    auto [n, text] = in;
    return pair(n + 1, text + "!");
  });
  CHECK(c.switch_to({1, "hey"}) == pair(2, "hey!"));
}

TEST_CASE("S4: a switch to oneself returns its value at once") {
  CHECK(bao::this_coroutine<int>().switch_to(3) == 3);
  int returned = 0;
  bao::coroutine<> c(
      [&] { returned = bao::this_coroutine<int>().switch_to(4); });
  c.switch_to();
  CHECK(returned == 4);
}

TEST_CASE("S5: an empty or a moved-from coroutine is dead") {
  bao::coroutine<> empty;
  bao::coroutine<> from([] {});
  bao::coroutine<> to = std::move(from);
  CHECK_THROWS_AS(empty.switch_to(), bao::dead_coroutine);
  CHECK_THROWS_AS(from.switch_to(), bao::dead_coroutine);
  CHECK_THROWS_AS(empty.kill(), bao::dead_coroutine);
  CHECK_THROWS_AS(empty.throw_in(1), bao::dead_coroutine);
  CHECK(empty.dead());
  CHECK(from.dead());
  CHECK(!to.dead());
  CHECK(empty.id() == nullptr);
  CHECK(empty.parent().dead());
}

TEST_CASE("S6: a switch to a coroutine that has ended is refused") {
  bao::coroutine<int> c([](int n) { return n; });
  c.switch_to(1);
  CHECK_THROWS_AS(c.switch_to(2), bao::dead_coroutine);
  CHECK_THROWS_AS(c.switch_to(2), std::logic_error);
}

TEST_CASE("S7: a coroutine of another thread is refused, naming both threads") {
  bao::coroutine<> ours([] { bao::main_coroutine().switch_to(); });
  ours.switch_to();
  std::string text;
  bool all_refused = true;
  const unsigned our_number = bao::this_thread_state().number;
  unsigned their_number = 0;
  std::thread([&] {
    their_number = bao::this_thread_state().number;
    const auto refused = [&](auto call) {
      try {
        call();
        all_refused = false;
      } catch (const bao::wrong_thread& e) {
        text = e.what();
      }
    };
    bao::coroutine<> theirs([] {});
    refused([&] { ours.kill(); });
    refused([&] { ours.throw_in(1); });
    refused([&] { ours.set_parent(theirs); });
    refused([&] { theirs.set_parent(ours); });
    refused([&] { ours.switch_to(); });
  }).join();
  CHECK(all_refused);
  CHECK(text == "switch_to: this coroutine belongs to thread " +
                    std::to_string(our_number) + "; we are thread " +
                    std::to_string(their_number));
  CHECK(ours.state() == bao::flow_state::suspended);
  ours.switch_to();
  CHECK(ours.dead());
}

TEST_CASE("S7: the text differs when the other thread has ended") {
  bao::coroutine<> theirs;
  std::thread([&] { theirs = bao::coroutine<>([] {}); }).join();
  std::string text;
  try {
    theirs.switch_to();
  } catch (const bao::wrong_thread& e) {
    text = e.what();
  }
  CHECK(text.find("which has ended") != std::string::npos);
}

TEST_CASE("a switch that would deliver the wrong type is refused") {
  bao::coroutine<int> counts([](int n) { return n; });
  bao::coroutine<> unlucky(
      [&] { bao::main_coroutine<std::string>().switch_to("not a number"); });
  // The main flow waits for nothing, then for an int, never for a string.
  CHECK_THROWS_AS(unlucky.switch_to(), bao::wrong_type);
  CHECK(unlucky.dead());
  CHECK(counts.switch_to(1) == 1);
}

TEST_CASE("S8: a parent who waits for another type than is returned, is told") {
  bao::coroutine<int> child([] { return 1; });
  bao::coroutine<std::string> helper([&] { child.switch_to(); });
  CHECK_THROWS_AS(helper.switch_to("go"), bao::wrong_type);
  CHECK(child.dead());
}

// --- the end -----------------------------------------------------------------

TEST_CASE("S8: what a body returns goes to its parent's pending switch") {
  std::string got;
  bao::coroutine<int> child, helper;
  bao::coroutine<int> parent([&] {
    child = bao::coroutine<int>([] { return 42; });
    helper =
        bao::coroutine<int>([&] { child.switch_to(); }, bao::main_coroutine());
    // It is the helper that we switch to, but our child who ends.
    got = std::to_string(helper.switch_to());
    return 1;
  });
  CHECK(parent.switch_to() == 1);
  CHECK(got == "42");
  CHECK(child.dead());
  CHECK(!helper.dead());
}

TEST_CASE("S8: a parent that has not started is started with the value") {
  bao::coroutine<int> parent([](int n) { return n * 2; });
  bao::coroutine<int> child([](int n) { return n + 1; }, parent);
  CHECK(child.switch_to(4) == 10);
  CHECK(parent.dead());
}

TEST_CASE("S8: a parent that has not started dies of a value of another type") {
  bool ran = false;
  bao::coroutine<std::string> parent([&](std::string) { ran = true; });
  bao::coroutine<int> child([](int n) { return n; }, parent);
  CHECK_THROWS_AS(child.switch_to(4), bao::wrong_type);
  CHECK(!ran);
  CHECK(parent.dead());
}

TEST_CASE(
    "S8: when the parent has ended, its nearest living ancestor gets it") {
  bao::coroutine<int> child;
  bao::coroutine<int> parent([&](int n) {
    child = bao::coroutine<int>(
        [](int m) { return bao::main_coroutine<int>().switch_to(m + 1) + 1; });
    return child.switch_to(n);
  });
  CHECK(parent.switch_to(1) == 2);
  parent.kill();
  CHECK(parent.dead());
  CHECK(child.switch_to(5) == 6);
}

TEST_CASE("S9: an exception comes out of the parent's pending switch") {
  std::string caught;
  bao::coroutine<int> child;
  bao::coroutine<int> parent([&](int) {
    child = bao::coroutine<int>(
        [](int) -> int { throw std::runtime_error("child"); });
    try {
      child.switch_to(1);
    } catch (const std::runtime_error& e) {
      caught = e.what();
    }
    return 3;
  });
  CHECK(parent.switch_to(0) == 3);
  CHECK(caught == "child");
  CHECK(child.dead());
}

TEST_CASE(
    "S9: it comes out of the parent's, whoever has switched to the child") {
  std::string caught;
  bao::coroutine<> child, helper;
  bao::coroutine<> parent([&] {
    child = bao::coroutine<>([] { throw std::runtime_error("child"); });
    helper = bao::coroutine<>(
        [&] {
          child.switch_to();
          caught += "helper ";
        },
        bao::main_coroutine());
    try {
      helper.switch_to();
    } catch (const std::runtime_error& e) {
      caught += e.what();
    }
  });
  parent.switch_to();
  CHECK(caught == "child");
  CHECK(parent.dead());
  CHECK(!helper.dead());
}

TEST_CASE("S9: it is the very exception that was thrown") {
  const std::exception* thrown = nullptr;
  const std::exception* caught = nullptr;
  bao::coroutine<> c([&] {
    try {
      throw std::runtime_error("one");
    } catch (const std::exception& e) {
      thrown = &e;
      throw;
    }
  });
  try {
    c.switch_to();
  } catch (const std::exception& e) {
    caught = &e;
  }
  CHECK(caught != nullptr);
  CHECK(caught == thrown);
}

// --- throwing in, and killing ------------------------------------------------

TEST_CASE("S10: one that kills itself gives a default value to its parent") {
  bao::coroutine<int> c([](int) {
    bao::this_coroutine<int>().kill();
    return 9;
  });
  CHECK(c.switch_to(1) == 0);
  CHECK(c.dead());
}

TEST_CASE("S10: whoever has killed goes on, without a value") {
  int got = -1;
  bao::coroutine<int> c;
  bao::coroutine<int> killer;
  c = bao::coroutine<int>([&](int) {
    killer.switch_to();
    return 9;
  });
  // The kill ends c, whose parent we are: yet it is the killer who goes on.
  killer = bao::coroutine<int>([&] {
    c.kill();
    got = c.dead() ? 0 : 1;
    return 5;
  });
  CHECK(c.switch_to(1) == 5);
  CHECK(got == 0);
}

TEST_CASE("S10: bao::killed that leaves a body is no error") {
  bao::coroutine<int> c([](int) {
    bao::main_coroutine<int>().switch_to(1);
    return 9;
  });
  c.switch_to();
  const auto kill = std::make_exception_ptr(bao::killed(c.id()));
  CHECK(c.throw_in(kill) == 0);
  CHECK(c.dead());
}

TEST_CASE("S10: without a default value, the parent is told of the kill") {
  struct no_default {
    explicit no_default(int) {}
  };
  bao::coroutine<no_default> c([](no_default first) {
    return bao::main_coroutine<no_default>().switch_to(first);
  });
  c.switch_to(no_default(1));
  const auto kill = std::make_exception_ptr(bao::killed(c.id()));
  CHECK_THROWS_AS(c.throw_in(kill), bao::dead_coroutine);
  CHECK(c.dead());
}

TEST_CASE("S10: kill() needs no default value") {
  struct no_default {
    explicit no_default(int) {}
  };
  bao::coroutine<no_default> c([](no_default first) {
    return bao::main_coroutine<no_default>().switch_to(first);
  });
  c.switch_to(no_default(1));
  CHECK_NOTHROW(c.kill());
  CHECK(c.dead());
}

TEST_CASE("S10: bao::killed is not a std::exception") {
  bool swallowed = false;
  bool passed = false;
  bao::coroutine<> c([&] {
    try {
      bao::main_coroutine().switch_to();
    } catch (const std::exception&) {
      swallowed = true;
    } catch (const bao::killed&) {
      passed = true;
      throw;
    }
  });
  c.switch_to();
  c.kill();
  CHECK(!swallowed);
  CHECK(passed);
}

TEST_CASE("S11: an exception thrown in comes out of the suspended switch") {
  bao::coroutine<std::string> c([](std::string) {
    auto main = bao::main_coroutine<std::string>();
    try {
      main.switch_to("waiting");
    } catch (int n) {
      return main.switch_to("caught " + std::to_string(n));
    }
    return std::string("missed it");
  });
  c.switch_to();
  CHECK(c.throw_in(7) == "caught 7");
  CHECK_THROWS_AS(c.throw_in(std::make_exception_ptr(8L)), long);
}

TEST_CASE("S11: what the body does not catch comes back to its parent") {
  bao::coroutine<> c([] { bao::main_coroutine().switch_to(); });
  c.switch_to();
  CHECK_THROWS_WITH_AS(c.throw_in(std::runtime_error("in and out")),
                       "in and out", std::runtime_error);
  CHECK(c.dead());
}

TEST_CASE("S11: one may throw at oneself") {
  CHECK_THROWS_AS(bao::this_coroutine().throw_in(5), int);
  bao::coroutine<> c([] { bao::this_coroutine().kill(); });
  CHECK_NOTHROW(c.switch_to());
  CHECK(c.dead());
}

TEST_CASE("S11: kill unwinds the stack, inner objects first") {
  struct says {
    std::string& order;
    const char* name;
    ~says() { order += name; }
  };
  std::string order;
  bao::coroutine<> c([&] {
    says outer{order, "outer"};
    [&] {
      says inner{order, "inner "};
      bao::main_coroutine().switch_to();
    }();
  });
  c.switch_to();
  CHECK(order.empty());
  c.kill();
  CHECK(order == "inner outer");
  CHECK(c.dead());
}

TEST_CASE("S11: a body that catches its kill may live on") {
  bao::coroutine<int> c([](int) {
    for (int n = 1;; ++n) try {
        bao::main_coroutine<int>().switch_to(n);
      } catch (const bao::killed&) {
        if (n == 3) throw;
      }
  });
  c.switch_to();
  c.kill();
  CHECK(!c.dead());
  CHECK(c.switch_to() == 3);
  c.kill();
  CHECK(c.dead());
}

TEST_CASE("S11: kill throws what the body throws instead") {
  bao::coroutine<> c([] {
    try {
      bao::main_coroutine().switch_to();
    } catch (const bao::killed&) {
      throw std::runtime_error("cannot end");
    }
  });
  c.switch_to();
  CHECK_THROWS_AS(c.kill(), std::runtime_error);
  CHECK(c.dead());
}

TEST_CASE("S11: an ancestor may be killed") {
  bao::coroutine<int> parent, child;
  bool parent_died_first = false;
  parent = bao::coroutine<int>([&](int) {
    child = bao::coroutine<int>([&](int) {
      parent.kill();
      parent_died_first = parent.dead();
      return 8;
    });
    return child.switch_to();
  });
  CHECK(parent.switch_to() == 8);  // parent is dead: it goes to us
  CHECK(parent_died_first);
  CHECK(child.dead());
}

TEST_CASE(
    "S12: one that has not started dies of an exception without running") {
  auto captured = std::make_shared<int>(1);
  bool ran = false;
  bao::coroutine<> c([&ran, captured] { ran = true; });
  CHECK(captured.use_count() == 2);
  CHECK_THROWS_AS(c.throw_in(std::runtime_error("no")), std::runtime_error);
  CHECK(!ran);
  CHECK(c.dead());
  CHECK(captured.use_count() == 1);
}

TEST_CASE("S12: a parent that has not started dies with it") {
  bool ran = false;
  bao::coroutine<> parent([&] { ran = true; });
  bao::coroutine<> child([&] { ran = true; }, parent);
  CHECK_THROWS_AS(child.throw_in(1), int);
  CHECK(child.dead());
  CHECK(parent.dead());
  CHECK(!ran);
}

TEST_CASE("S12: a body that throws takes a parent that has not started along") {
  bool ran = false;
  bao::coroutine<> parent([&] { ran = true; });
  bao::coroutine<> child([] { throw 1; }, parent);
  CHECK_THROWS_AS(child.switch_to(), int);
  CHECK(parent.dead());
  CHECK(!ran);
}

TEST_CASE("S12: one that has not started never runs once killed") {
  auto captured = std::make_shared<int>(1);
  bao::coroutine<> c([captured] {});
  c.kill();
  CHECK(c.dead());
  CHECK(captured.use_count() == 1);
  CHECK_THROWS_AS(c.switch_to(), bao::dead_coroutine);
}

TEST_CASE("S13: an exception for a dead one goes to its living ancestor") {
  bao::coroutine<> c([] {});
  c.switch_to();
  CHECK_THROWS_AS(c.throw_in(1), int);
  std::string caught;
  bao::coroutine<> child, thrower;
  bao::coroutine<> parent([&] {
    child = bao::coroutine<>([] {});
    child.switch_to();
    thrower =
        bao::coroutine<>([&] { child.throw_in(2); }, bao::main_coroutine());
    try {
      thrower.switch_to();
    } catch (int n) {
      caught = std::to_string(n);
    }
  });
  parent.switch_to();
  CHECK(caught == "2");
}

TEST_CASE("S13: to kill a dead one does nothing") {
  bao::coroutine<> c([] {});
  c.switch_to();
  CHECK_NOTHROW(c.kill());
  CHECK_NOTHROW(c.kill());
}

TEST_CASE("X7: the main flow cannot be killed") {
  CHECK_THROWS_AS(bao::main_coroutine().kill(), std::logic_error);
  bao::coroutine<> c(
      [] { CHECK_THROWS_AS(bao::main_coroutine().kill(), std::logic_error); });
  c.switch_to();
}

// --- the tree ----------------------------------------------------------------

TEST_CASE("S14: what happens at the end follows the parent of that time") {
  bao::coroutine<int> stepfather([](int n) { return n + 100; });
  bao::coroutine<int> c([](int) {
    bao::main_coroutine<int>().switch_to(0);
    return 5;
  });
  c.switch_to();
  c.set_parent(stepfather);
  CHECK(c.parent().id() == stepfather.id());
  CHECK(c.switch_to() == 105);
}

TEST_CASE("S14: nobody can be his own ancestor") {
  bao::coroutine<> a([] {});
  bao::coroutine<> b([] {}, a);
  bao::coroutine<> c([] {}, b);
  CHECK_THROWS_AS(a.set_parent(c), bao::parent_cycle);
  CHECK_THROWS_AS(a.set_parent(a), bao::parent_cycle);
  CHECK(a.parent().id() == bao::main_coroutine().id());
  CHECK_NOTHROW(c.set_parent(a));
}

TEST_CASE("S14: the main flow has no parent and gets none") {
  bao::coroutine<> c([] {});
  CHECK(bao::main_coroutine().parent().id() == nullptr);
  CHECK_THROWS_AS(bao::main_coroutine().set_parent(c), std::logic_error);
  CHECK_THROWS_AS(c.set_parent(bao::coroutine<>()), bao::dead_coroutine);
}

TEST_CASE("S14: a parent lives as long as its children") {
  auto captured = std::make_shared<int>(1);
  bao::coroutine<int> child([] { return 1; });
  {
    bao::coroutine<int> parent([captured](int) { return 2; });
    child.set_parent(parent);
  }
  // Its owner is gone, so it will not run any more, and is skipped.
  CHECK(captured.use_count() == 1);
  CHECK(child.parent().dead());
  CHECK(child.switch_to() == 1);
}

TEST_CASE("S15: who kills a coroutine is its parent for that time") {
  bao::coroutine<> victim([] {
    try {
      bao::main_coroutine().switch_to();
    } catch (const bao::killed&) {
      throw std::runtime_error("last words");
    }
  });
  victim.switch_to();
  std::string heard;
  bao::coroutine<> killer([&] {
    try {
      victim.kill();
    } catch (const std::runtime_error& e) {
      heard = e.what();
    }
  });
  killer.switch_to();
  CHECK(heard == "last words");
  CHECK(victim.parent().id() == bao::main_coroutine().id());
}

TEST_CASE("S15: who destroys a coroutine is its parent for that time, too") {
  std::string order;
  struct says {
    std::string& order;
    ~says() { order += "unwound "; }
  };
  bao::coroutine<> victim([&] {
    says local{order};
    bao::main_coroutine().switch_to();
  });
  victim.switch_to();
  bao::coroutine<> owner([&] {
    victim = bao::coroutine<>();
    order += "and we go on";
  });
  owner.switch_to();
  CHECK(order == "unwound and we go on");
}

TEST_CASE("S15: a tree may grow while its root is being killed by a leaf") {
  const pid_t child = ::fork();  // so that a hang is seen as one
  if (child == 0) {
    ::alarm(10);
    struct plants {
      ~plants() {
        bao::coroutine<> sapling([] {}, bao::this_coroutine());
        sapling.switch_to();
      }
    };
    bao::coroutine<> root, leaf;
    root = bao::coroutine<>([&] {
      plants last;
      leaf = bao::coroutine<>([&] { root.kill(); });
      leaf.switch_to();
    });
    root.switch_to();
    ::_exit(root.dead() && leaf.dead() ? 0 : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("S15: one that is being killed may be given another parent") {
  bao::coroutine<> victim, heir([] {});
  bao::coroutine<> killer([&] { victim.kill(); });
  victim = bao::coroutine<>([&] {
    try {
      bao::main_coroutine().switch_to();
    } catch (const bao::killed&) {
      bao::this_coroutine().set_parent(heir);
      throw;
    }
  });
  victim.switch_to();
  killer.switch_to();
  CHECK(victim.dead());
  CHECK(killer.dead());
}

// --- questions ---------------------------------------------------------------

TEST_CASE("S16: the body and what it holds are gone when it has ended") {
  auto captured = std::make_shared<int>(1);
  bao::coroutine<> c([captured] {});
  CHECK(captured.use_count() == 2);
  c.switch_to();
  CHECK(captured.use_count() == 1);
}

TEST_CASE("X21: nothing dangles when the callable that was given dies") {
  bao::coroutine<std::string> c;
  {
    std::string text = "long enough to live on the heap, and to be missed";
    auto body = [text](std::string) { return text; };
    c = bao::coroutine<std::string>(body);
  }
  CHECK(c.switch_to("") == "long enough to live on the heap, and to be missed");
}

TEST_CASE("S17: a coroutine is created, then runs or is suspended, then dead") {
  using bao::flow_state;
  flow_state inside{};
  bool active_inside = false;
  bao::coroutine<> c([&] {
    inside = bao::this_coroutine().state();
    active_inside = static_cast<bool>(bao::this_coroutine());
    bao::main_coroutine().switch_to();
  });
  CHECK(c.state() == flow_state::created);
  CHECK(!c);
  CHECK(!c.dead());
  c.switch_to();
  CHECK(inside == flow_state::running);
  CHECK(active_inside);
  CHECK(c.state() == flow_state::suspended);
  CHECK(c);
  CHECK(!c.dead());
  c.switch_to();
  CHECK(c.state() == flow_state::finished);
  CHECK(!c);
  CHECK(c.dead());
}

TEST_CASE("S20: outside of all coroutines one is in the main flow") {
  const void* current = nullptr;
  const void* main = nullptr;
  bao::coroutine<> c([&] {
    current = bao::this_coroutine().id();
    main = bao::main_coroutine().id();
  });
  c.switch_to();
  CHECK(current == c.id());
  CHECK(main == bao::main_coroutine().id());
  CHECK(bao::this_coroutine().id() == bao::main_coroutine().id());
  CHECK(bao::main_coroutine());
}

TEST_CASE("S20: in a generator one is in the coroutine that has resumed it") {
  const void* current = nullptr;
  bao::generator<int> g([&](auto& yield) {
    for (int n = 0;; ++n) {
      current = bao::this_coroutine().id();
      yield(n);
    }
  });
  g.next();
  CHECK(current == bao::main_coroutine().id());
  bao::coroutine<> c([&] { g.next(); });
  c.switch_to();
  CHECK(current == c.id());
}

TEST_CASE("a reference may be kept longer than its coroutine") {
  bao::coroutine_ref<> ref;
  {
    bao::coroutine<> c([&] {
      ref = bao::this_coroutine();
      bao::main_coroutine().switch_to();
    });
    c.switch_to();
    CHECK(!ref.dead());
  }
  CHECK(ref.dead());
  CHECK_THROWS_AS(ref.switch_to(), bao::dead_coroutine);
}

TEST_CASE("S21: misuse is a std::logic_error, a kill is not an exception") {
  CHECK(std::is_base_of_v<std::logic_error, bao::dead_coroutine>);
  CHECK(std::is_base_of_v<std::logic_error, bao::wrong_thread>);
  CHECK(std::is_base_of_v<std::logic_error, bao::wrong_type>);
  CHECK(std::is_base_of_v<std::logic_error, bao::parent_cycle>);
  CHECK(!std::is_base_of_v<std::exception, bao::killed>);
}

TEST_CASE("S22: a trace is told of each switch between coroutines") {
  static std::vector<std::tuple<std::string, const void*, const void*>> told;
  told.clear();
  bao::coroutine<> c([] {
    try {
      bao::main_coroutine().switch_to();
    } catch (int) {
    }
    bao::main_coroutine().switch_to();
  });
  const auto before = bao::set_switch_trace(
      [](const char* event, const void* from, const void* to) {
        told.emplace_back(event, from, to);
      });
  c.switch_to();
  c.throw_in(1);
  CHECK((bao::set_switch_trace(before) != nullptr));
  c.switch_to();  // not told any more
  const void* main = bao::main_coroutine().id();
  REQUIRE(told.size() == 4);
  CHECK(told[0] == std::make_tuple("switch", main, c.id()));
  CHECK(told[1] == std::make_tuple("switch", c.id(), main));
  CHECK(told[2] == std::make_tuple("throw", main, c.id()));
  CHECK(told[3] == std::make_tuple("switch", c.id(), main));
}

TEST_CASE("S22: the end of a body is a switch as well, and so is its error") {
  static std::vector<std::tuple<std::string, const void*, const void*>> told;
  told.clear();
  bao::coroutine<> returns([] {});
  bao::coroutine<> throws([] { throw 1; });
  const auto before = bao::set_switch_trace(
      [](const char* event, const void* from, const void* to) {
        told.emplace_back(event, from, to);
      });
  returns.switch_to();
  CHECK_THROWS_AS(throws.switch_to(), int);
  bao::set_switch_trace(before);
  const void* main = bao::main_coroutine().id();
  REQUIRE(told.size() == 4);
  CHECK(told[1] == std::make_tuple("switch", returns.id(), main));
  CHECK(told[3] == std::make_tuple("throw", throws.id(), main));
}

TEST_CASE(
    "S27: a coroutine is moved, not copied, without disturbing its body") {
  CHECK(!std::is_copy_constructible_v<bao::coroutine<>>);
  CHECK(!std::is_copy_assignable_v<bao::coroutine<>>);
  bao::coroutine<int> a(
      [](int n) { return n + bao::main_coroutine<int>().switch_to(n); });
  a.switch_to(1);
  bao::coroutine<int> b = std::move(a);
  CHECK(b.switch_to(2) == 3);
}

// --- destruction -------------------------------------------------------------

TEST_CASE("S23: destroying a suspended coroutine unwinds its stack at once") {
  struct says {
    std::string& order;
    const char* name;
    ~says() { order += name; }
  };
  std::string order;
  {
    bao::coroutine<> c([&] {
      says outer{order, "outer "};
      says inner{order, "inner "};
      bao::main_coroutine().switch_to();
      order += "never ";
    });
    c.switch_to();
  }
  CHECK(order == "inner outer ");
}

TEST_CASE("S23: assigning to a suspended coroutine unwinds it") {
  bool unwound = false;
  struct tells {
    bool& destroyed;
    ~tells() { destroyed = true; }
  };
  bao::coroutine<> c([&] {
    tells local{unwound};
    bao::main_coroutine().switch_to();
  });
  c.switch_to();
  c = bao::coroutine<>([] {});
  CHECK(unwound);
  CHECK(c.state() == bao::flow_state::created);
}

TEST_CASE("S24: one that holds its own owner stays until a kill ends it") {
  struct owner {
    bao::coroutine<> flow;
  };
  auto one = std::make_shared<owner>();
  std::weak_ptr<owner> seen = one;
  one->flow = bao::coroutine<>([one] { bao::main_coroutine().switch_to(); });
  one->flow.switch_to();
  one.reset();
  one = seen.lock();
  REQUIRE(static_cast<bool>(one));  // nobody else collects such a ring
  CHECK(one->flow.state() == bao::flow_state::suspended);
  one->flow.kill();
  one.reset();
  CHECK(seen.expired());
}

TEST_CASE("S23, X14: what escapes from a destroyed one goes to on_unhandled") {
  static std::string told;
  told.clear();
  const auto before =
      bao::on_unhandled([](const char* whose, const std::exception_ptr& error) {
        told += whose + (": " + bao::describe(error));
      });
  {
    bao::coroutine<> c([] {
      try {
        bao::main_coroutine().switch_to();
      } catch (const bao::killed&) {
        throw std::runtime_error("escaped");
      }
    });
    c.switch_to();
  }
  bao::on_unhandled(before);
  CHECK(told.find("a coroutine: ") == 0);
  CHECK(told.find("escaped") != std::string::npos);
}

TEST_CASE("X14: a kill as such is nothing that on_unhandled hears of") {
  static int told;
  told = 0;
  struct no_default {
    explicit no_default(int) {}
  };
  const auto before =
      bao::on_unhandled([](const char*, const std::exception_ptr&) { ++told; });
  {
    bao::coroutine<int> a(
        [](int n) { return bao::main_coroutine<int>().switch_to(n); });
    bao::coroutine<no_default> b([](no_default n) {
      return bao::main_coroutine<no_default>().switch_to(n);
    });
    a.switch_to(1);
    b.switch_to(no_default(1));
  }
  bao::on_unhandled(before);
  CHECK(told == 0);
}

TEST_CASE("X14: a coroutine can be destroyed while an exception passes by") {
  bool unwound = false;
  struct tells {
    bool& destroyed;
    ~tells() { destroyed = true; }
  };
  try {
    bao::coroutine<> c([&] {
      tells local{unwound};
      bao::main_coroutine().switch_to();
    });
    c.switch_to();
    throw std::runtime_error("passing by");
  } catch (const std::runtime_error& e) {
    CHECK(e.what() == std::string("passing by"));
  }
  CHECK(unwound);
}

TEST_CASE("X14: a destroyed coroutine that swallows its kill meets it again") {
  int met = 0;
  {
    bao::coroutine<> stubborn([&] {
      for (;;) try {
          bao::main_coroutine().switch_to();
        } catch (const bao::killed&) {
          if (++met == 3) throw;
        }
    });
    stubborn.switch_to();
  }
  CHECK(met == 3);
}

TEST_CASE("X14: a destructor may switch while its coroutine is unwound") {
  int got = 0;
  bao::coroutine_ref<int> asker;
  bao::coroutine<int> answers([&](int n) {
    for (;;) n = asker.switch_to(n + 1);
  });
  struct asks {
    int& got;
    bao::coroutine<int>& whom;
    ~asks() { got = whom.switch_to(1); }
  };
  {
    bao::coroutine<int> dying([&] {
      asks last{got, answers};
      asker = bao::this_coroutine<int>();
      bao::main_coroutine<int>().switch_to();
    });
    dying.switch_to();
    CHECK(got == 0);
  }
  CHECK(got == 2);
}

TEST_CASE("X14: a coroutine that holds others is unwound with them") {
  std::string order;
  struct says {
    std::string& order;
    char name;
    ~says() { order += name; }
  };
  {
    bao::coroutine<> outer([&] {
      says local{order, 'a'};
      bao::coroutine<> inner([&] {
        says mine{order, 'b'};
        bao::generator<int> numbers([&](auto& yield) {
          says innermost{order, 'c'};
          yield(1);
        });
        numbers.next();
        bao::main_coroutine().switch_to();
      });
      inner.switch_to();
    });
    outer.switch_to();
  }
  CHECK(order == "cba");
}

// What is below this line happens at the end of a process.
static bao::coroutine<> coroutine_at_namespace_scope;

TEST_CASE("X14: a coroutine at namespace scope is unwound at exit") {
  int fds[2];
  REQUIRE(::pipe(fds) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(fds[0]);
    struct writes {
      int fd;
      ~writes() {
        if (::write(fd, "unwound", 7) != 7) ::_exit(1);
      }
    };
    coroutine_at_namespace_scope = bao::coroutine<>([to = fds[1]] {
      writes last{to};
      bao::main_coroutine().switch_to();
    });
    coroutine_at_namespace_scope.switch_to();
    std::exit(0);
  }
  ::close(fds[1]);
  char text[16] = {};
  CHECK(::read(fds[0], text, sizeof text - 1) == 7);
  CHECK(std::string(text) == "unwound");
  ::close(fds[0]);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("thousands of coroutines pass a value along") {
  std::vector<bao::coroutine<long>> line;
  constexpr std::size_t length = 5000;
  line.reserve(length);
  for (std::size_t i = 0; i < length; ++i)
    line.emplace_back([&line, i](long n) {
      for (;;)
        n = i + 1 < length ? line[i + 1].switch_to(n + 1)
                           : bao::main_coroutine<long>().switch_to(n + 1);
    });
  CHECK(line[0].switch_to(0) == length);
  CHECK(line[0].switch_to(1) == length + 1);
}

TEST_CASE(
    "S13: a kill of one that has ended, or not begun, comes back as a value") {
  bao::coroutine<int> ended([](int n) { return n; });
  ended.switch_to(1);
  bao::coroutine<int> fresh([](int n) { return n; });
  for (auto* each : {&ended, &fresh}) {
    const auto kill = std::make_exception_ptr(bao::killed(each->id()));
    CHECK(each->throw_in(kill) == 0);
    CHECK(each->dead());
  }
}

TEST_CASE("S11: no exception is not thrown in, but refused") {
  bao::coroutine<std::string> c([](std::string s) {
    return bao::main_coroutine<std::string>().switch_to(s);
  });
  c.switch_to("a");
  CHECK_THROWS_AS(c.throw_in(std::exception_ptr()), std::invalid_argument);
  CHECK(c.switch_to("b") == "b");
}
