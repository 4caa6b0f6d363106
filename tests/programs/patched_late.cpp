// patched_late.cpp - a patch that comes when libc's names are bound has no
// effect, and the first task says so
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

int main(int, char** arguments) {
  void* const patch = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (patch == nullptr) return 1;
  void* const found = dlsym(patch, "calls_that_are_live");
  int (*calls)() = nullptr;
  std::memcpy(&calls, &found, sizeof calls);
  std::fprintf(stderr, "%d calls are live\n", calls());
}
