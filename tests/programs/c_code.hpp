// c_code.hpp - a library that has never heard of exceptions, nor of bao
#pragma once

extern "C" {

// Calls each(context, i) for i = 0 ... n - 1, each one a frame deeper. Stops at
// the first that returns something else than 0, and returns that.
int call_each(int n, int (*each)(void* context, int i), void* context);
}
