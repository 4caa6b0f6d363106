// list.cpp - members that leave by themselves
#include <doctest/doctest.h>

#include "bao.hpp"

#include <memory>
#include <string>

namespace {

struct letter : bao::list_node<letter> {
  explicit letter(char c) : is(c) {}
  char is;
};

std::string text_of(bao::list<letter>& letters) {
  std::string text;
  for (letter* l = letters.first(); l != nullptr; l = letters.after(*l))
    text += l->is;
  return text;
}

}  // namespace

TEST_CASE("members stand in the order in which they came") {
  bao::list<letter> line;
  CHECK(line.empty());
  CHECK(line.first() == nullptr);
  letter a('a'), b('b'), c('c');
  line.push_back(a);
  line.push_back(b);
  line.push_back(c);
  CHECK(text_of(line) == "abc");
  CHECK(&line.front() == &a);
  CHECK(line.after(c) == nullptr);
}

TEST_CASE("a member leaves from wherever it stands, and may come again") {
  bao::list<letter> line;
  letter a('a'), b('b'), c('c');
  line.push_back(a);
  line.push_back(b);
  line.push_back(c);
  b.leave();
  CHECK(!b.in_list());
  CHECK(text_of(line) == "ac");
  b.leave();  // of no list: nothing happens
  a.leave();
  c.leave();
  CHECK(line.empty());
  line.push_back(b);
  CHECK(text_of(line) == "b");
}

TEST_CASE("a member that goes out of scope has left") {
  bao::list<letter> line;
  letter a('a'), c('c');
  line.push_back(a);
  {
    letter b('b');
    line.push_back(b);
    line.push_back(c);
    CHECK(text_of(line) == "abc");
  }
  CHECK(text_of(line) == "ac");
}

TEST_CASE("whoever enters another list leaves the former one") {
  bao::list<letter> here, there;
  letter a('a'), b('b');
  here.push_back(a);
  here.push_back(b);
  there.push_back(a);
  CHECK(text_of(here) == "b");
  CHECK(text_of(there) == "a");
  here.push_back(b);  // to the end of its own: it stays, once
  CHECK(text_of(here) == "b");
}

TEST_CASE("a list that goes lets its members go") {
  letter a('a'), b('b');
  {
    bao::list<letter> line;
    line.push_back(a);
    line.push_back(b);
  }
  CHECK(!a.in_list());
  CHECK(!b.in_list());
  bao::list<letter> next;
  next.push_back(b);
  CHECK(text_of(next) == "b");
}
