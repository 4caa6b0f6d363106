// 11_select.cpp - whatever comes first
//
// A cook waits for orders and for the oven at once, and wipes the counter when
// neither has come for a while. Of what select() waits for, exactly one is
// taken; the rest loses nothing.
#include "bao.hpp"

#include <chrono>
#include <cstdio>
#include <optional>
#include <string>

using namespace std::chrono_literals;

int main() {
  bao::virtual_time clock;  // so that the times below are exact
  bao::channel<std::string> orders;
  bao::event oven_is_hot;
  const auto opening = bao::now();

  bao::spawn([&] {
    orders.send("two buns");
    bao::sleep(30min);
    orders.send("a pie");
    orders.close();
  });
  bao::spawn([&] {
    bao::sleep(5min);
    oven_is_hot.set();
  });

  const auto say = [&](const std::string& what) {
    const auto now =
        std::chrono::duration_cast<std::chrono::minutes>(bao::now() - opening);
    std::printf("%2d min: %s\n", static_cast<int>(now.count()), what.c_str());
  };
  for (bool open = true; open;)
    bao::select(bao::on(orders,
                        [&](std::optional<std::string> order) {
                          say(order.value_or("closed"));
                          open = order.has_value();
                        }),
                bao::on(oven_is_hot,
                        [&] {
                          say("in they go");
                          oven_is_hot.clear();
                        }),
                bao::after(20min, [&] { say("nothing: wipe the counter"); }));
}
// Prints:
//    0 min: two buns
//    5 min: in they go
//   25 min: nothing: wipe the counter
//   30 min: a pie
//   30 min: closed
