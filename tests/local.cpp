// local.cpp - one value a task
#include <doctest/doctest.h>

#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "bao.hpp"
#include "seeds.hpp"

using namespace std::literals;

namespace {

bao::task_local<std::string> user("nobody");
std::string what_ended;

struct noted {
  std::string name;
  noted() = default;
  explicit noted(std::string n) : name(std::move(n)) {}
  noted(noted&& other) noexcept : name(std::exchange(other.name, "")) {}
  noted& operator=(noted&& other) noexcept {
    name.swap(other.name);
    return *this;
  }
  ~noted() { what_ended += name; }
};

}  // namespace

TEST_CASE("V55: each task has a value of its own, that begins like the first") {
  in_many_orders([] {
    user = "main";
    std::vector<bao::task<std::string>> tasks;
    for (const char* name : {"a", "b", "c"})
      tasks.push_back(bao::spawn([name] {
        CHECK(user.get() == "nobody");
        user = name;
        bao::sleep(1ms);
        user->append("!");
        return *user;
      }));
    CHECK(tasks[0].get() == "a!");
    CHECK(tasks[1].get() == "b!");
    CHECK(tasks[2].get() == "c!");
    const std::string& mine = user;
    CHECK(mine == "main");
    user = "nobody";
  });
}

TEST_CASE("S19: coroutines and generators have the value of their task") {
  user = "main";
  bao::generator<std::string> ask([](auto& yield) {
    for (;;) yield(*user);
  });
  CHECK(ask.next() == "main");
  auto other = bao::spawn([&] {
    user = "other";
    return *ask.next();
  });
  CHECK(other.get() == "other");
  CHECK(ask.next() == "main");
  user = "nobody";
}

TEST_CASE("V55: a value goes when its task ends, the latest first") {
  bao::task_local<noted> first, second;
  what_ended.clear();
  auto t = bao::spawn([&] {
    first = noted("1");
    second = noted("2");
    const noted in_body("body ");
  });
  CHECK(what_ended.empty());
  t.join();
  CHECK(what_ended == "body 21");
  what_ended.clear();
  auto doomed = bao::spawn([&] {
    first = noted("3");
    bao::sleep(1h);
  });
  bao::yield();
  doomed.kill();
  CHECK(what_ended == "3");
}

TEST_CASE("V55: a value may outlive its variable, and wait when it goes") {
  struct slow {
    int* out = nullptr;
    slow() = default;
    slow(slow&& other) noexcept : out(std::exchange(other.out, nullptr)) {}
    slow& operator=(slow&& other) noexcept {
      std::swap(out, other.out);
      return *this;
    }
    ~slow() {
      if (out == nullptr) return;
      bao::yield();
      *out += 1;
    }
  };
  int gone = 0;
  auto variable = std::make_unique<bao::task_local<slow>>();
  auto t = bao::spawn([&] {
    slow mine;
    mine.out = &gone;
    *variable = std::move(mine);
    bao::yield();
    bao::task_local<int> later(7);
    CHECK(later.get() == 7);
  });
  bao::yield();
  variable.reset();
  CHECK(gone == 0);
  t.get();
  CHECK(gone == 1);
}

TEST_CASE("V55: threads have their own as well, of the same variable") {
  user = "main";
  std::string there;
  std::thread([&] {
    user = *user + "?";
    there = *user;
  }).join();
  CHECK(there == "nobody?");
  CHECK(*user == "main");
  user = "nobody";
}

TEST_CASE("V55: a value may be made of others, and asked for at the end") {
  struct made_of_another {
    made_of_another() = default;
    made_of_another(const made_of_another&) { user->append("+"); }
  };
  bao::task_local<made_of_another> second;
  auto t = bao::spawn([&] {
    user = "x";
    second.get();
    return user.get();
  });
  t.on_done([](auto) { user->append("!"); });
  CHECK(t.get() == "x+");
  auto fresh = bao::spawn([&] {
    second.get();
    return user.get();
  });
  CHECK(fresh.get() == "nobody+");
}
