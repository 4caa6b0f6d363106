// with_memcached.cpp - libmemcached, unmodified, in tasks
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <libmemcached/memcached.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "../checks.hpp"
#include "bao.hpp"
#include "servers.hpp"

BAO_PATCH_ALL();

namespace {

server_process& memcached() {
  static server_process one(
      "[ $(id -u) != 0 ] || as='-u root'\n"
      "exec memcached -l 127.0.0.1 -p $port -U 0 -t 1 $as");
  return one.ready();
}

// --- what knows nothing of bao

using connection = std::unique_ptr<memcached_st, decltype(&memcached_free)>;

connection log_in() {
  connection with(memcached_create(nullptr), memcached_free);
  memcached_server_add(with.get(), "127.0.0.1",
                       static_cast<in_port_t>(memcached().port()));
  return with;
}

std::string get(const connection& with, const std::string& key) {
  std::size_t length = 0;
  std::uint32_t flags = 0;
  memcached_return_t how = MEMCACHED_SUCCESS;
  const std::unique_ptr<char, decltype(&std::free)> value(
      memcached_get(with.get(), key.data(), key.size(), &length, &flags, &how),
      std::free);
  if (how != MEMCACHED_SUCCESS) return memcached_strerror(with.get(), how);
  return std::string(value.get(), length);
}

void set(const connection& with, const std::string& key,
         const std::string& value) {
  memcached_set(with.get(), key.data(), key.size(), value.data(), value.size(),
                0, 0);
}

// Leaves a large value, and takes it when somebody has set "go".
std::string leave_and_take(int i) {
  const std::string key = "key:" + std::to_string(i);
  const connection with = log_in();
  set(with, key, std::string(500'000, 'x') + key);
  while (get(with, "go") != "yes") ::usleep(5000);
  return get(with, key);
}

// ---

int connections() {
  const connection with = log_in();
  memcached_stat_st* const told = memcached_stat(with.get(), nullptr, nullptr);
  const auto n = static_cast<int>(told->curr_connections);
  memcached_stat_free(with.get(), told);
  return n;
}

}  // namespace

TEST_CASE("fifty tasks are clients at the same time") {
  if (!here({"memcached"})) return;
  const int before = connections();
  const answers all = at_once(50, leave_and_take, [&] {
    until([&] { return connections() >= before + 50; });
    set(log_in(), "go", "yes");
  });
  for (int i = 0; i < 50; ++i)
    CHECK((all[static_cast<std::size_t>(i)] ==
           std::string(500'000, 'x') + "key:" + std::to_string(i)));
  CHECK((one_by_one(3, leave_and_take) == first(3, all)));
}
