// main.cpp - where the test program begins
//
// doctest's own handler of SIGSEGV stays away: the tests of stack overflow want
// to see bao's.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#define DOCTEST_CONFIG_NO_POSIX_SIGNALS
#include <doctest/doctest.h>
