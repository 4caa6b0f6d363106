// with_redis.cpp - hiredis, unmodified, in tasks
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <hiredis/hiredis.h>
#include <sys/time.h>

#include <memory>
#include <string>

#include "../checks.hpp"
#include "bao.hpp"
#include "servers.hpp"

BAO_PATCH_ALL();

namespace {

server_process& redis() {
  static server_process one(
      "exec redis-server --port $port --bind 127.0.0.1 --save '' "
      "--appendonly no");
  return one.ready();
}

// --- what knows nothing of bao

using connection = std::unique_ptr<redisContext, decltype(&redisFree)>;

connection log_in() {
  return connection(redisConnect("127.0.0.1", redis().port()), redisFree);
}

// What the server answers; of a list, the last.
std::string ask(const connection& with, const std::string& what) {
  const std::unique_ptr<void, decltype(&freeReplyObject)> answer(
      redisCommand(with.get(), what.c_str()), freeReplyObject);
  if (answer == nullptr) return std::string("error: ") + with->errstr;
  const auto* reply = static_cast<const redisReply*>(answer.get());
  if (reply->type == REDIS_REPLY_ARRAY)
    reply = reply->element[reply->elements - 1];
  if (reply->type == REDIS_REPLY_INTEGER) return std::to_string(reply->integer);
  return std::string(reply->str, reply->len);
}

std::string ask(const std::string& what) { return ask(log_in(), what); }

std::string pop(int i) { return ask("BLPOP list:" + std::to_string(i) + " 0"); }

void push(int i) {
  const std::string n = std::to_string(i);
  ask("RPUSH list:" + n + " value:" + n);
}

// Gives up after a fifth of a second, by SO_RCVTIMEO.
std::string give_up(int) {
  const connection with = log_in();
  redisSetTimeout(with.get(), timeval{0, 200'000});
  return ask(with, "BLPOP nothing 0");
}

// ---

bool blocked(int n) {
  return says(ask("INFO clients"),
              "blocked_clients:" + std::to_string(n) + "\r\n");
}

}  // namespace

TEST_CASE("fifty tasks wait in BLPOP at the same time") {
  if (!here({"redis-server"})) return;
  const answers all = at_once(50, pop, [] {
    until([] { return blocked(50); });
    for (int i = 0; i < 50; ++i) push(i);
  });
  for (int i = 0; i < 50; ++i)
    CHECK(all[static_cast<std::size_t>(i)] == "value:" + std::to_string(i));
  for (int i = 0; i < 3; ++i) push(i);
  CHECK(one_by_one(3, pop) == first(3, all));
}

TEST_CASE("SO_RCVTIMEO is heeded, as in a plain thread") {
  if (!here({"redis-server"})) return;
  const answers all =
      at_once(20, give_up, [] { until([] { return blocked(20); }); });
  CHECK(all == answers(20, "error: Resource temporarily unavailable"));
  CHECK(one_by_one(3, give_up) == first(3, all));
}

TEST_CASE("a kill or a limit ends redisCommand by an error") {
  if (!here({"redis-server"})) return;
  until([] { return blocked(0); });
  CHECK(killed_within([] { return pop(-1); }, [] { return blocked(1); }) ==
        "error: Operation canceled");
  until([] { return blocked(0); });
  CHECK(limited_within([] { return pop(-1); }) ==
        "error: Connection timed out");
  until([] { return blocked(0); });
}
