// postgres_pool.cpp - fifty queries over ten connections to PostgreSQL
//
//     ./postgres_pool "host=127.0.0.1 user=me dbname=test"
//     10 connections in 0.03 s
//     50 queries of 0.1 s in 0.51 s, one by one they would have taken 5 s
//
// libpq as in its manual, and nothing but its calls that block. A pool of
// connections is a channel with room for them: to take one is to receive, and
// who finds none waits until somebody puts one back. Without an argument, libpq
// looks at PGHOST, PGUSER and its other variables.
//
// Beside what the others need, it is compiled with -I/usr/include/postgresql
// and -lpq.
#include "bao.hpp"

#include <libpq-fe.h>

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

BAO_PATCH_ALL();

constexpr std::size_t connections = 10;
constexpr int queries = 50;

struct failure : std::runtime_error {
  using runtime_error::runtime_error;
};

// --- libpq -------------------------------------------------------------------

using connection = std::unique_ptr<PGconn, void (*)(PGconn*)>;
using result = std::unique_ptr<PGresult, void (*)(PGresult*)>;

[[noreturn]] void fail(const char* call, std::string reason) {
  while (!reason.empty() && reason.back() == '\n') reason.pop_back();
  throw failure(std::string(call) + ": " + reason);
}

connection connect(const std::string& where) {
  connection c(PQconnectdb(where.c_str()), PQfinish);
  if (c == nullptr) throw std::bad_alloc();
  if (PQstatus(c.get()) != CONNECTION_OK)
    fail("PQconnectdb", PQerrorMessage(c.get()));
  return c;
}

// A query with one parameter, whose answer has one value.
std::string ask(PGconn* c, const char* sql, const std::string& parameter) {
  const char* const values[] = {parameter.c_str()};
  const result r(PQexecParams(c, sql, 1, nullptr, values, nullptr, nullptr, 0),
                 PQclear);
  if (PQresultStatus(r.get()) != PGRES_TUPLES_OK)
    fail("PQexecParams", PQerrorMessage(c));
  return PQgetvalue(r.get(), 0, 0);
}

// --- the pool ----------------------------------------------------------------

using connection_pool = bao::channel<connection>;

// One of the connections, for as long as it lives.
class borrowed {
 public:
  explicit borrowed(connection_pool& from)
      : from_(from), connection_(std::move(*from.receive())) {
    // Whoever had it before may have been told to end in the middle of a query.
    if (PQtransactionStatus(get()) != PQTRANS_IDLE) PQreset(get());
  }
  borrowed(const borrowed&) = delete;
  ~borrowed() { from_.try_send(std::move(connection_)); }  // there is room

  PGconn* get() const { return connection_.get(); }

 private:
  connection_pool& from_;
  connection connection_;
};

double seconds_since(bao::clock::time_point start) {
  return std::chrono::duration<double>(bao::now() - start).count();
}

void run(const std::string& where) {
  connection_pool idle(connections);
  auto start = bao::now();
  {
    bao::group tasks;
    for (std::size_t i = 0; i < connections; ++i)
      tasks.spawn([&] { idle.send(connect(where)); });
    tasks.join();
  }
  std::printf("%zu connections in %.2f s\n", connections, seconds_since(start));

  start = bao::now();
  bao::group tasks;
  for (int i = 0; i < queries; ++i)
    tasks.spawn([&, text = std::to_string(i)] {
      const borrowed c(idle);
      const char* const slow = "select $1 from pg_sleep(0.1)";
      if (ask(c.get(), slow, text) != text)
        throw failure("query " + text + " got the answer of another one");
    });
  tasks.join();
  std::printf(
      "%d queries of 0.1 s in %.2f s, one by one they would have taken "
      "%.0f s\n",
      queries, seconds_since(start), queries * 0.1);
}

int main(int argc, char** argv) {
  if (argc > 2) {
    std::fprintf(stderr, "usage: postgres_pool [CONNINFO]\n");
    return 2;
  }
  try {
    run(argc > 1 ? argv[1] : "");
  } catch (const std::exception& e) {
    std::fprintf(stderr, "postgres_pool: %s\n", e.what());
    return 1;
  }
}
