// expect.hpp - what these programs have in common
//
// Each says in sentences what must be true, prints those that are not, and
// returns how many there were.
#pragma once

#include <cstdio>
#include <regex>
#include <string>

#include "../child.hpp"

inline int untrue = 0;

inline void expect(bool holds, const std::string& sentence) {
  if (holds) return;
  ++untrue;
  std::printf("not true: %s\n", sentence.c_str());
}

// Calls f() in a child, and expects what that must come to, where a place reads
// (here). No std::string: exit() on another stack than this would let
// LeakSanitizer think that nobody holds it.
template <class F>
void expect_ending(int code, const char* text, const char* sentence, F f) {
  ending how = in_a_child(f);
  const std::regex place("\\([^ ]*\\.cpp:[0-9]+\\)");
  how.text = std::regex_replace(how.text, place, "(here)");
  const bool right = how.code == code && how.text == text;
  expect(right, sentence);
  if (!right)
    std::printf("  exit status %d, signal %d, and on stderr:\n%s", how.code,
                how.signal, how.text.c_str());
}
