// error.cpp - what can go wrong, and how it is told
#include <doctest/doctest.h>

#include "bao.hpp"

#include <string>
#include <type_traits>

TEST_CASE("X3: an honest handler of std::exception swallows no interruption") {
  CHECK(!std::is_base_of_v<std::exception, bao::killed>);
  CHECK(!std::is_base_of_v<std::exception, bao::timed_out>);
}

TEST_CASE("X6: task_killed is an ordinary error, which kills nobody else") {
  CHECK(std::is_base_of_v<std::runtime_error, bao::task_killed>);
  CHECK(!std::is_base_of_v<bao::killed, bao::task_killed>);
}

TEST_CASE("misuse is a logic_error, the world's surprises a runtime_error") {
  CHECK(std::is_base_of_v<std::logic_error, bao::wrong_thread>);
  CHECK(std::is_base_of_v<std::logic_error, bao::wrong_task>);
  CHECK(std::is_base_of_v<std::logic_error, bao::already_running>);
  CHECK(std::is_base_of_v<std::runtime_error, bao::deadlock>);
  CHECK(std::is_base_of_v<std::runtime_error, bao::stack_exhausted>);
}

TEST_CASE("an interruption knows whom it is meant for") {
  int flow = 0, other = 0;
  CHECK(bao::killed(&flow).is_for(&flow));
  CHECK(!bao::killed(&flow).is_for(&other));
}

TEST_CASE("a failed call throws its error number and names the call") {
  errno = ENOENT;
  try {
    bao::check(-1, "open");
    FAIL("it has returned");
  } catch (const std::system_error& e) {
    CHECK((e.code() == std::errc::no_such_file_or_directory));
    CHECK(std::string(e.what()).find("open") == 0);
  }
  CHECK(bao::check(7, "open") == 7);
}

TEST_CASE("X9: an exception is described by its type and its text") {
  const auto text = bao::describe(
      std::make_exception_ptr(std::out_of_range("number 12 is too high")));
  CHECK(text.find("out_of_range") != std::string::npos);
  CHECK(text.find("number 12 is too high") != std::string::npos);
}

TEST_CASE("X9: what is no std::exception is described by its type") {
  struct odd {};
  CHECK(bao::describe(std::make_exception_ptr(5)) == "int");
  const auto text = bao::describe(std::make_exception_ptr(odd()));
  CHECK(text.find("odd") != std::string::npos);
  CHECK(bao::describe(std::make_exception_ptr(bao::killed(nullptr))) ==
        "bao::killed");
}

TEST_CASE("V39: on_unhandled returns who it was; null is the default again") {
  const bao::unhandled_handler mine = [](const char*,
                                         const std::exception_ptr&) {};
  const bao::unhandled_handler before = bao::on_unhandled(mine);
  CHECK((bao::on_unhandled(nullptr) == mine));
  const bao::unhandled_handler standard = bao::on_unhandled(before);
  CHECK((standard != nullptr));
  CHECK((standard != mine));
}
