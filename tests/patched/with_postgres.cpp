// with_postgres.cpp - libpq, unmodified, in tasks
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <libpq-fe.h>

#include <memory>
#include <string>

#include "../checks.hpp"
#include "bao.hpp"
#include "servers.hpp"

BAO_PATCH_ALL();

namespace {

// It refuses to run as root.
const char start[] = R"(
as=
if [ $(id -u) = 0 ]; then
  chown postgres .
  as='setpriv --reuid=postgres --regid=postgres --clear-groups'
fi
export LC_ALL=C HOME=$PWD
$as initdb -D data -A trust -U test -E UTF8 --no-sync
exec $as postgres -D data -p $port -h 127.0.0.1 -k '' -N 80 -F
)";

std::string place() {
  static server_process one(start, "QUIT");
  const std::string it = "host=127.0.0.1 port=" + std::to_string(one.port()) +
                         " user=test dbname=postgres sslmode=disable";
  one.ready([&] { return PQping(it.c_str()) == PQPING_OK; });
  return it;
}

// --- what knows nothing of bao

using connection = std::unique_ptr<PGconn, decltype(&PQfinish)>;

connection log_in() { return {PQconnectdb(place().c_str()), PQfinish}; }

// The last value of the answer.
std::string ask(const connection& with, const std::string& what) {
  const std::unique_ptr<PGresult, decltype(&PQclear)> answer(
      PQexec(with.get(), what.c_str()), PQclear);
  if (PQresultStatus(answer.get()) != PGRES_TUPLES_OK)
    return std::string("error: ") + PQerrorMessage(with.get());
  return PQgetvalue(answer.get(), PQntuples(answer.get()) - 1,
                    PQnfields(answer.get()) - 1);
}

std::string ask(const std::string& what) { return ask(log_in(), what); }

// Sleeps for 0.2 s, and for longer while others hold the lock 7.
std::string sleep_there(int i) {
  const connection with = log_in();
  ask(with, "SELECT pg_advisory_lock_shared(7)");
  return ask(with, "SELECT pg_sleep(0.2), 'slept ' || " + std::to_string(i));
}

std::string sleep_for_a_minute() { return ask("SELECT pg_sleep(60)"); }

// ---

// How many queries of this kind the server knows.
int running(const std::string& kind, const std::string& of = "Timeout") {
  return std::stoi(
      ask("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND "
          "wait_event_type = '" +
          of + "' AND query LIKE '" + kind + "'"));
}

}  // namespace

TEST_CASE("fifty tasks wait for their queries at the same time") {
  if (!here({"postgres", "initdb"})) return;
  int most = 0;
  connection holder = log_in();
  ask(holder, "SELECT pg_advisory_lock(7)");
  const answers all = at_once(50, sleep_there, [&] {
    until([] { return running("%lock_shared(7)", "Lock") == 50; });
    holder.reset();
    until([&] {
      most = std::max(most, running("%pg_sleep(0.2)%"));
      return most > 1;
    });
  });
  MESSAGE("asleep at the same time: at least ", most);
  for (int i = 0; i < 50; ++i)
    CHECK(all[static_cast<std::size_t>(i)] == "slept " + std::to_string(i));
  CHECK(one_by_one(3, sleep_there) == first(3, all));
}

TEST_CASE("a kill or a limit ends PQexec by an error") {
  if (!here({"postgres", "initdb"})) return;
  const auto inside = [] { return running("%pg_sleep(60)%") == 1; };
  const auto killed = killed_within(sleep_for_a_minute, inside);
  CHECK(says(killed, "error: "));
  CHECK(says(killed, "Operation canceled\n"));
  const auto limited = limited_within(sleep_for_a_minute);
  CHECK(says(limited, "error: "));
  CHECK(says(limited, "Connection timed out\n"));
}
