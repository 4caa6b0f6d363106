// bao/poller.hpp - epoll, poll or select: which descriptors are ready
//
// Three ways to ask the kernel the same question, each an ordinary class in a
// file of its own. Only this ladder, and the one in config.hpp that names the
// choice, know that there are three; what they promise is in readiness.hpp.
//
//                a wait costs         to watch one costs            limit
//     epoll      what is ready        a system call; owned: once    memory
//     poll       what is watched      nothing                       memory
//     select     the largest number   nothing                       FD_SETSIZE
//
// SPDX-License-Identifier: MIT
#pragma once

#include "bao/poller/readiness.hpp"

#if defined(BAO_USE_SELECT)
#include "bao/poller/select.hpp"
#define BAO_POLLER select_poller
#elif defined(BAO_USE_POLL) || !defined(__linux__)
#include "bao/poller/poll.hpp"
#define BAO_POLLER poll_poller
#else
#include "bao/poller/epoll.hpp"
#define BAO_POLLER epoll_poller
#endif

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {
using poller = BAO_POLLER;
}
}  // namespace bao
#undef BAO_POLLER
