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

  for (bool open = true; open;) {
    const auto now =
        std::chrono::duration_cast<std::chrono::minutes>(bao::now() - opening);
    std::printf("%3d min: ", static_cast<int>(now.count()));
    bao::select(
        bao::on(orders,
                [&](std::optional<std::string> order) {
                  std::printf("%s\n", order ? order->c_str() : "closed");
                  open = order.has_value();
                }),
        bao::on(oven_is_hot,
                [&] {
                  std::printf("in they go\n");
                  oven_is_hot.clear();
                }),
        bao::after(20min, [] { std::printf("nothing: wipe the counter\n"); }));
  }
}
// Prints:
//     0 min: two buns
//     0 min: in they go
//     5 min: nothing: wipe the counter
//    25 min: a pie
//    30 min: closed
