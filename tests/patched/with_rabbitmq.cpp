// with_rabbitmq.cpp - rabbitmq-c, unmodified, in tasks
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <doctest/doctest.h>

#include <memory>
#include <string>

#include "../checks.hpp"
#include "bao.hpp"
#include "servers.hpp"

BAO_PATCH_ALL();

namespace {

// All that it wants to have, in its folder; and an epmd of its own.
const char start[] = R"(
export HOME=$PWD ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=$port2
export RABBITMQ_NODENAME=bao$port@localhost RABBITMQ_DIST_PORT=$port3
export RABBITMQ_MNESIA_BASE=$PWD/mnesia RABBITMQ_LOG_BASE=$PWD RABBITMQ_LOGS=-
export RABBITMQ_CONFIG_FILE=$PWD/rabbitmq.conf RABBITMQ_CONF_ENV_FILE=/dev/null
export RABBITMQ_ENABLED_PLUGINS_FILE=$PWD/plugins RABBITMQ_PID_FILE=$PWD/pid
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-start_epmd false \
  -kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none"
echo "listeners.tcp.1 = 127.0.0.1:$port" >rabbitmq.conf
epmd -port $port2 -address 127.0.0.1 &
exec /usr/lib/rabbitmq/bin/rabbitmq-server
)";

server_process& rabbitmq() {
  static server_process one(start);
  return one.ready();
}

// --- what knows nothing of bao

using connection = std::unique_ptr<amqp_connection_state_t_,
                                   decltype(&amqp_destroy_connection)>;

// Empty when it went well.
std::string error_of(const amqp_rpc_reply_t& reply) {
  switch (reply.reply_type) {
    case AMQP_RESPONSE_NORMAL:
      return "";
    case AMQP_RESPONSE_LIBRARY_EXCEPTION:
      return std::string("error: ") + amqp_error_string2(reply.library_error);
    default:
      return "error of the server";
  }
}

std::string name(int i) { return "queue " + std::to_string(i); }

amqp_bytes_t bytes(const std::string& text) {
  return amqp_bytes_t{text.size(), const_cast<char*>(text.data())};
}

connection log_in() {
  connection with(amqp_new_connection(), amqp_destroy_connection);
  amqp_socket_t* const socket = amqp_tcp_socket_new(with.get());
  amqp_socket_open(socket, "127.0.0.1", rabbitmq().port());
  amqp_login(with.get(), "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, "guest",
             "guest");
  amqp_channel_open(with.get(), 1);
  return with;
}

// Makes a queue, unless there is one. How many consume from it.
int declare(const connection& with, int i) {
  const auto* const ok = amqp_queue_declare(with.get(), 1, bytes(name(i)), 0, 0,
                                            0, 0, amqp_empty_table);
  return ok == nullptr ? -1 : static_cast<int>(ok->consumer_count);
}

void publish(const connection& with, int i) {
  amqp_basic_publish(with.get(), 1, amqp_empty_bytes, bytes(name(i)), 0, 0,
                     nullptr, bytes("for " + name(i)));
}

// The next message.
std::string consume(int i) {
  const connection with = log_in();
  amqp_basic_consume(with.get(), 1, bytes(name(i)), amqp_empty_bytes, 0, 1, 0,
                     amqp_empty_table);
  std::string answer = error_of(amqp_get_rpc_reply(with.get()));
  if (!answer.empty()) return answer;
  amqp_envelope_t message;
  answer = error_of(amqp_consume_message(with.get(), &message, nullptr, 0));
  if (!answer.empty()) return answer;
  answer.assign(static_cast<const char*>(message.message.body.bytes),
                message.message.body.len);
  amqp_destroy_envelope(&message);
  return answer;
}

}  // namespace

TEST_CASE("twenty tasks consume at the same time") {
  if (!here({"rabbitmq-server", "epmd"})) return;
  const connection ours = log_in();
  const auto all_have = [&](int consumers) {
    for (int i = 0; i < 20; ++i)
      if (declare(ours, i) != consumers) return false;
    return true;
  };
  CHECK(all_have(0));
  const answers all = at_once(20, consume, [&] {
    until([&] { return all_have(1); });
    for (int i = 0; i < 20; ++i) publish(ours, i);
  });
  for (int i = 0; i < 20; ++i)
    CHECK(all[static_cast<std::size_t>(i)] == "for " + name(i));
  until([&] { return all_have(0); });
  for (int i = 0; i < 3; ++i) publish(ours, i);
  CHECK(one_by_one(3, consume) == first(3, all));
}

TEST_CASE("a kill or a limit ends amqp_consume_message by an error") {
  if (!here({"rabbitmq-server", "epmd"})) return;
  const connection ours = log_in();
  const auto empty = [&] { return declare(ours, 100) == 0; };
  const auto wait = [] { return consume(100); };
  until(empty);
  CHECK(killed_within(wait, [&] { return declare(ours, 100) == 1; }) ==
        "error: a socket error occurred");
  until(empty);
  CHECK(limited_within(wait) == "error: a socket error occurred");
}
