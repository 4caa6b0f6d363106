// rabbitmq_workers.cpp - a queue of jobs, for more workers than one machine has
//
//     ./rabbitmq_workers 10.0.0.5:5672 work 20          on as many as you like
//     ./rabbitmq_workers 10.0.0.5:5672 publish 1000     anywhere
//     1000 jobs confirmed, 0 of them sent again
//
//     publisher -> | job 7 | job 6 | job 5 | ->  worker: job 4
//               <- confirmed                 ->  worker: job 3
//                                            <-  done: job 2
//
// The broker keeps a job on its disk from when it confirms it until a worker
// says that it is done; one whose worker goes before that is given to another.
// What was not confirmed is sent again, and what was not acknowledged comes
// again: so no job is lost, and one whose acknowledgement was lost with its
// connection is done twice. All that grows has a limit: jobs in the queue, on
// their way to the broker, and with a worker.
//
// rabbitmq-c has calls that block, and a connection for each worker: patched,
// twenty of them share a thread. When the broker is gone they try again, after
// pauses that grow, twenty times. Who we are, RABBITMQ_USER
// and RABBITMQ_PASSWORD say; guest unless given, whom brokers admit on their
// own machine only.
//
// Beside what the others need, it is compiled with -lrabbitmq.
#include "bao.hpp"

#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace std::chrono_literals;

BAO_PATCH_ALL();

const char* const usage =
    "usage: rabbitmq_workers [HOST:PORT] publish N   sends N jobs\n"
    "       rabbitmq_workers [HOST:PORT] work N      has N workers do jobs\n"
    "  HOST:PORT  of the broker, 127.0.0.1:5672 unless given\n"
    "  N          1 to 10000000 jobs, 1 to 1000 workers\n";

constexpr const char* queue_name = "bao.jobs";
constexpr int queue_limit = 100000;             // jobs that the broker keeps
constexpr std::size_t unconfirmed_limit = 200;  // on their way there
constexpr std::uint16_t prefetch = 10;          // with one worker
constexpr int most_attempts = 20;               // to connect, in a row

// The broker, or the way to it, does not work: to try again may help.
struct failure : std::runtime_error {
  using runtime_error::runtime_error;
};
// The broker does not want us: it will not.
struct refusal : std::runtime_error {
  using runtime_error::runtime_error;
};

// --- rabbitmq-c --------------------------------------------------------------

std::string text(amqp_bytes_t bytes) {
  return std::string(static_cast<const char*>(bytes.bytes), bytes.len);
}
// As long as the text lives.
amqp_bytes_t bytes(const std::string& text) {
  amqp_bytes_t b = amqp_empty_bytes;
  b.bytes = const_cast<char*>(text.data());
  b.len = text.size();
  return b;
}
std::string environment(const char* name, const char* otherwise) {
  const char* const value = std::getenv(name);
  return value != nullptr ? value : otherwise;
}

// The broker closes the connection, or our channel: "404: NOT_FOUND - ...".
[[noreturn]] void fail(const std::string& call, int code, amqp_bytes_t reason) {
  const std::string what =
      call + ": " + std::to_string(code) + ": " + text(reason);
  if (code == AMQP_ACCESS_REFUSED || code == AMQP_PRECONDITION_FAILED)
    throw refusal(what);
  throw failure(what);
}
[[noreturn]] void fail(const std::string& call, const amqp_method_t& m) {
  if (m.id == AMQP_CONNECTION_CLOSE_METHOD) {
    const auto& c = *static_cast<amqp_connection_close_t*>(m.decoded);
    fail(call, c.reply_code, c.reply_text);
  }
  if (m.id == AMQP_CHANNEL_CLOSE_METHOD) {
    const auto& c = *static_cast<amqp_channel_close_t*>(m.decoded);
    fail(call, c.reply_code, c.reply_text);
  }
  throw failure(call + ": the broker sent " + amqp_method_name(m.id));
}
void check(int status, const std::string& call) {
  if (status != AMQP_STATUS_OK)
    throw failure(call + ": " + amqp_error_string2(status));
}
void check(const amqp_rpc_reply_t& r, const std::string& call) {
  if (r.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION) fail(call, r.reply);
  if (r.reply_type != AMQP_RESPONSE_NORMAL) check(r.library_error, call);
}

// A connection with one channel, on which the queue is there.
class broker {
 public:
  explicit broker(const std::string& where)
      : connection_(amqp_new_connection(), amqp_destroy_connection) {
    if (connection_ == nullptr) throw std::bad_alloc();
    amqp_socket_t* const socket = amqp_tcp_socket_new(get());
    if (socket == nullptr) throw std::bad_alloc();
    const auto [host, service] = bao::split_host_port(where);
    const auto port = bao::parse_port(service);
    if (!port) throw std::invalid_argument("no port in \"" + where + "\"");
    timeval limit{5, 0};
    check(amqp_socket_open_noblock(socket, host.c_str(), *port, &limit),
          "connect");
    amqp_set_rpc_timeout(get(), &(limit = {30, 0}));
    log_in();
    amqp_channel_open(get(), channel);
    check(amqp_get_rpc_reply(get()), "open a channel");
    declare_queue();
  }
  broker(const broker&) = delete;
  // Says good bye, so that what was sent last has arrived.
  ~broker() {
    bao::shield in_peace;
    bao::timeout limit(1s);
    amqp_connection_close(get(), AMQP_REPLY_SUCCESS);
  }

  static constexpr amqp_channel_t channel = 1;
  amqp_connection_state_t get() const { return connection_.get(); }

 private:
  void log_in() {
    // We want to be told when the queue goes that we consume from.
    amqp_table_entry_t wish[1], capabilities[1];
    wish[0].key = amqp_cstring_bytes("consumer_cancel_notify");
    wish[0].value.kind = AMQP_FIELD_KIND_BOOLEAN;
    wish[0].value.value.boolean = 1;
    capabilities[0].key = amqp_cstring_bytes("capabilities");
    capabilities[0].value.kind = AMQP_FIELD_KIND_TABLE;
    capabilities[0].value.value.table = {1, wish};
    const amqp_table_t properties{1, capabilities};
    constexpr int frame = 128 * 1024, heartbeat = 30;  // seconds
    const std::string user = environment("RABBITMQ_USER", "guest");
    const std::string password = environment("RABBITMQ_PASSWORD", "guest");
    check(amqp_login_with_properties(get(), "/", 1, frame, heartbeat,
                                     &properties, AMQP_SASL_METHOD_PLAIN,
                                     user.c_str(), password.c_str()),
          "log in as " + user);
  }

  // Durable, and with a limit beyond which jobs are not confirmed.
  void declare_queue() {
    amqp_table_entry_t entries[2];
    entries[0].key = amqp_cstring_bytes("x-max-length");
    entries[0].value.kind = AMQP_FIELD_KIND_I32;
    entries[0].value.value.i32 = queue_limit;
    entries[1].key = amqp_cstring_bytes("x-overflow");
    entries[1].value.kind = AMQP_FIELD_KIND_UTF8;
    entries[1].value.value.bytes = amqp_cstring_bytes("reject-publish");
    amqp_table_t limits{2, entries};
    amqp_queue_declare(get(), channel, amqp_cstring_bytes(queue_name), 0, 1, 0,
                       0, limits);
    check(amqp_get_rpc_reply(get()), std::string("declare ") + queue_name);
  }

  std::unique_ptr<amqp_connection_state_t_, int (*)(amqp_connection_state_t)>
      connection_;
};

// Calls use(connection, failures) until it returns. When the connection fails
// there is a new one, after a pause; use() resets `failures` when all is well.
template <class Use>
void stay_connected(const std::string& where, Use use) {
  for (int failures = 0;;) {
    try {
      broker b(where);
      use(b, failures);
      return;
    } catch (const failure& e) {
      bao::yield();  // a kill that has ended the wait is thrown here
      if (++failures == most_attempts) throw;
      const auto pause =
          std::min(100ms * (1 << std::min(failures - 1, 6)), 5000ms);
      std::fprintf(stderr, "rabbitmq_workers: %s: %s; again in %.1f s\n",
                   where.c_str(), e.what(),
                   std::chrono::duration<double>(pause).count());
      bao::sleep(pause);
    }
  }
}

// --- the publisher -----------------------------------------------------------

class publisher {
 public:
  publisher(std::string where, long jobs)
      : where_(std::move(where)), jobs_(jobs) {}

  void run() {
    stay_connected(where_, [this](broker& b, int& failures) {
      // What the last connection has left without an answer goes first.
      for (const auto& sent : unconfirmed_) again_.push_back(sent.second);
      unconfirmed_.clear();
      tag_ = 0;
      amqp_confirm_select(b.get(), broker::channel);
      check(amqp_get_rpc_reply(b.get()), "ask for confirms");
      while (confirmed_ < jobs_) {
        while (unconfirmed_.size() < unconfirmed_limit &&
               (!again_.empty() || last_ < jobs_))
          send(b);
        hear(b);
        failures = 0;
      }
    });
    std::printf("%ld jobs confirmed, %ld of them sent again\n", confirmed_,
                resent_);
  }

 private:
  void send(broker& b) {
    long job = last_ + 1;
    if (again_.empty())
      ++last_;
    else
      job = again_.back(), again_.pop_back(), ++resent_;
    unconfirmed_[++tag_] = job;  // the broker counts as well

    const std::string name = run_ + '/' + std::to_string(job);
    amqp_basic_properties_t p{};
    p._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG;
    p.delivery_mode = AMQP_DELIVERY_PERSISTENT;
    p.message_id = bytes(name);
    const std::string body = "job " + name;
    check(amqp_basic_publish(b.get(), broker::channel, amqp_empty_bytes,
                             amqp_cstring_bytes(queue_name), 1, 0, &p,
                             bytes(body)),
          "publish");
  }

  // Waits for news of what was sent.
  void hear(broker& b) {
    amqp_maybe_release_buffers(b.get());
    amqp_frame_t frame;
    check(amqp_simple_wait_frame(b.get(), &frame), "wait for a confirm");
    if (frame.frame_type != AMQP_FRAME_METHOD) return;
    const amqp_method_t& m = frame.payload.method;
    if (m.id == AMQP_BASIC_ACK_METHOD) {
      const auto& ack = *static_cast<amqp_basic_ack_t*>(m.decoded);
      for (; take(ack.delivery_tag, ack.multiple); ++confirmed_) {
      }
    } else if (m.id == AMQP_BASIC_NACK_METHOD) {  // the queue is full
      const auto& nack = *static_cast<amqp_basic_nack_t*>(m.decoded);
      while (const long job = take(nack.delivery_tag, nack.multiple))
        again_.push_back(job);
      bao::sleep(10ms);
    } else {
      fail("wait for a confirm", m);
    }
  }

  // One of those that an answer is about; 0 when there is none left.
  long take(std::uint64_t tag, bool and_all_before) {
    const auto it =
        and_all_before ? unconfirmed_.begin() : unconfirmed_.find(tag);
    if (it == unconfirmed_.end() || it->first > tag) return 0;
    const long job = it->second;
    unconfirmed_.erase(it);
    return job;
  }

  std::string where_;
  std::string run_ =
      std::to_string(std::time(nullptr)) + '-' + std::to_string(::getpid());
  long jobs_, last_ = 0, confirmed_ = 0, resent_ = 0;
  std::uint64_t tag_ = 0;
  std::map<std::uint64_t, long> unconfirmed_;  // by the broker's number
  std::vector<long> again_;
};

// --- the workers -------------------------------------------------------------

// This is where your work goes.
void do_job(const std::string& name, bool again, int worker) {
  std::this_thread::sleep_for(10ms);  // what you call may block
  std::printf("worker %d: %s%s\n", worker, name.c_str(), again ? " again" : "");
  std::fflush(stdout);
}

struct envelope : amqp_envelope_t {
  envelope() : amqp_envelope_t() {}
  envelope(const envelope&) = delete;
  ~envelope() { amqp_destroy_envelope(this); }
};

void work(const std::string& where, int worker, long& done) {
  stay_connected(where, [&](broker& b, int& failures) {
    amqp_basic_qos(b.get(), broker::channel, 0, prefetch, 0);
    check(amqp_get_rpc_reply(b.get()), "limit the jobs at a time");
    amqp_basic_consume(b.get(), broker::channel, amqp_cstring_bytes(queue_name),
                       amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    check(amqp_get_rpc_reply(b.get()), "consume");
    failures = 0;
    for (;;) {
      amqp_maybe_release_buffers(b.get());
      envelope job;
      const auto r = amqp_consume_message(b.get(), &job, nullptr, 0);
      if (r.library_error == AMQP_STATUS_UNEXPECTED_STATE) {  // no job, but ...
        amqp_frame_t frame;
        check(amqp_simple_wait_frame(b.get(), &frame), "wait for a job");
        if (frame.frame_type == AMQP_FRAME_METHOD)
          fail("wait for a job", frame.payload.method);
        continue;
      }
      check(r, "wait for a job");

      bao::shield in_peace;  // who is to end finishes what he has begun
      do_job(text(job.message.body), job.redelivered, worker);
      check(amqp_basic_ack(b.get(), broker::channel, job.delivery_tag, 0),
            "acknowledge");
      ++done;
    }
  });
}

void work_until_told(const std::string& where, int workers) {
  long done = 0;
  auto all = bao::spawn([&] {
    bao::group tasks;  // the first error ends them all
    for (int i = 1; i <= workers; ++i)
      tasks.spawn([&, i] { work(where, i, done); });
    tasks.join();
  });
  bao::spawn([=] {
    bao::wait_signal({SIGINT, SIGTERM});
    all.kill();
  });
  all.join();
  std::printf("%ld jobs done\n", done);
  if (!all.killed()) all.get();
}

long number(const std::string& text, long most) {
  char* end = nullptr;
  const long n = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || n < 1 || n > most)
    throw std::invalid_argument("\"" + text + "\" is not 1 to " +
                                std::to_string(most));
  return n;
}

int main(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() == 2) words.insert(words.begin(), "127.0.0.1:5672");
  try {
    if (words.size() == 3 && words[1] == "publish")
      publisher(words[0], number(words[2], 10000000)).run();
    else if (words.size() == 3 && words[1] == "work")
      work_until_told(words[0], static_cast<int>(number(words[2], 1000)));
    else
      throw std::invalid_argument("publish or work, and how many?");
  } catch (const std::invalid_argument& e) {
    std::fprintf(stderr, "rabbitmq_workers: %s\n%s", e.what(), usage);
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "rabbitmq_workers: %s: %s\n", words[0].c_str(),
                 e.what());
    return 1;
  }
}
