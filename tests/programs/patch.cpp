// patch.cpp - a patch by itself: in a library, or once too often
#include "bao.hpp"

BAO_PATCH_ALL();

// For a program that loads it when it is too late.
extern "C" __attribute__((visibility("default"))) int calls_that_are_live() {
  bao::spawn([] {}).join();
  int live = 0;
  for (const auto& call : bao::patch_status(nullptr)) live += call.live;
  return live;
}
