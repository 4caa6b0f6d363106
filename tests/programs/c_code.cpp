// c_code.cpp - compiled with -fno-exceptions: C, but for its name
//
// -funwind-tables is what C libraries that take callbacks are compiled with
// (qsort() and bsearch() are), so that a C++ exception may pass.
#include "c_code.hpp"

#ifdef __cpp_exceptions
#error "this file is to be compiled with -fno-exceptions"
#endif

static int call_from(int i, int n, int (*each)(void*, int), void* context) {
  if (i == n) return 0;
  const int result = each(context, i);
  return result != 0 ? result : call_from(i + 1, n, each, context);
}

int call_each(int n, int (*each)(void*, int), void* context) {
  return call_from(0, n, each, context);
}
