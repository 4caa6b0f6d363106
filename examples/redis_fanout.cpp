// redis_fanout.cpp - one publisher, many subscribers, through a redis server
//
//     ./redis_fanout 127.0.0.1:6379 --subscribers 50 --messages 1000
//     50 subscribers
//     1000 messages published
//     50000 received, in their order, in 0.51 s
//
// hiredis as in its manual, and nothing but its calls that block: each
// subscriber has a connection, and stands in redisGetReply() most of the time.
// Patched, all of them do so on one thread.
//
// Beside what the others need, it is compiled with -lhiredis.
#include "bao.hpp"

#include <hiredis/hiredis.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

BAO_PATCH_ALL();

const char* const usage =
    "usage: redis_fanout [HOST:PORT] [--subscribers N] [--messages N]\n"
    "  HOST:PORT  of a redis server, 127.0.0.1:6379 unless given\n"
    "  N          1 to 1000 subscribers, 50 unless given;\n"
    "             1 to 1000000 messages, 1000 unless given\n";

struct failure : std::runtime_error {
  using runtime_error::runtime_error;
};

// --- hiredis -----------------------------------------------------------------

using reply = std::unique_ptr<redisReply, void (*)(void*)>;

class connection {
 public:
  explicit connection(const std::string& where)
      : where_(where), redis_(nullptr, redisFree) {
    const auto [host, service] = bao::split_host_port(where);
    const auto port = bao::parse_port(service);
    if (!port) throw std::invalid_argument("no port in \"" + where + "\"");
    redis_.reset(redisConnectWithTimeout(host.c_str(), *port, {5, 0}));
    if (redis_ == nullptr) throw std::bad_alloc();
    if (redis_->err != 0) fail("connect");
  }

  template <class... Args>
  reply command(const char* format, Args... args) {
    return checked(redisCommand(redis_.get(), format, args...),
                   std::string(format, std::strcspn(format, " ")));
  }
  // What the server sends without being asked.
  reply next() {
    void* got = nullptr;
    redisGetReply(redis_.get(), &got);
    return checked(got, "redisGetReply");
  }

 private:
  reply checked(void* got, const std::string& call) const {
    reply r(static_cast<redisReply*>(got), freeReplyObject);
    if (r == nullptr) fail(call);
    if (r->type == REDIS_REPLY_ERROR)
      throw failure(where_ + ": " + call + ": " + r->str);
    return r;
  }
  [[noreturn]] void fail(const std::string& call) const {
    throw failure(where_ + ": " + call + ": " + redis_->errstr);
  }

  std::string where_;
  std::unique_ptr<redisContext, void (*)(redisContext*)> redis_;
};

// --- the fan-out -------------------------------------------------------------

struct fanout {
  std::string where;
  long subscribers = 50, messages = 1000;
  std::string topic = "bao-fanout-" + std::to_string(::getpid());
  long received = 0;
  bao::wait_group not_yet_subscribed{};

  // The messages are the numbers from 1 on.
  void subscribe() {
    connection redis(where);
    redis.command("SUBSCRIBE %s", topic.c_str());
    not_yet_subscribed.done();
    for (long expected = 1; expected <= messages; ++expected) {
      const reply r = redis.next();  // "message", the topic, the text
      if (r->type != REDIS_REPLY_ARRAY || r->elements != 3 ||
          std::to_string(expected) != r->element[2]->str)
        throw failure("message " + std::to_string(expected) + " was lost");
      ++received;
    }
  }

  void publish() {
    connection redis(where);
    not_yet_subscribed.wait();
    std::printf("%ld subscribers\n", subscribers);
    for (long n = 1; n <= messages; ++n) {
      const reply r = redis.command("PUBLISH %s %s", topic.c_str(),
                                    std::to_string(n).c_str());
      if (r->integer != subscribers)
        throw failure("message " + std::to_string(n) + " went to " +
                      std::to_string(r->integer) + " subscribers only");
    }
    std::printf("%ld messages published\n", messages);
  }

  void run() {
    const auto start = bao::now();
    not_yet_subscribed.add(subscribers);
    bao::group tasks;  // the first error ends them all
    for (long i = 0; i < subscribers; ++i) tasks.spawn([this] { subscribe(); });
    tasks.spawn([this] { publish(); });
    tasks.join();
    const std::chrono::duration<double> time = bao::now() - start;
    std::printf("%ld received, in their order, in %.2f s\n", received,
                time.count());
  }
};

long number(const std::string& option, const char* text, long most) {
  char* end = nullptr;
  const long n = text == nullptr ? 0 : std::strtol(text, &end, 10);
  if (end == text || *end != '\0' || n < 1 || n > most)
    throw std::invalid_argument(option + " needs 1 to " + std::to_string(most));
  return n;
}

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a server that goes is an error, no end
  try {
    fanout all{"127.0.0.1:6379"};
    for (int i = 1; i < argc; ++i) {
      const std::string word = argv[i];
      if (word == "--subscribers")
        all.subscribers = number(word, argv[++i], 1000);
      else if (word == "--messages")
        all.messages = number(word, argv[++i], 1000000);
      else
        all.where = word;
    }
    all.run();
  } catch (const std::invalid_argument& e) {
    std::fprintf(stderr, "redis_fanout: %s\n%s", e.what(), usage);
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "redis_fanout: %s\n", e.what());
    return 1;
  }
}
