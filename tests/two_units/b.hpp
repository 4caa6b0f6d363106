// b.hpp - what unit b offers to unit a
#pragma once

#include "bao.hpp"

bao::generator<int> count_in_b(int n);  // 0, 1, ... n - 1
bao::task<int> spawn_in_b(int x);       // twice x, some time later
