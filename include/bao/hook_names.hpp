// bao/hook_names.hpp - libc's look-ups of names
//
// A helper thread asks (look_up.hpp), and the answer is put where libc would
// have put it; numbers need no asking. Whoever is interrupted leaves, and gets
// EAI_SYSTEM or NETDB_INTERNAL with ECANCELED or ETIMEDOUT. What hook.hpp says
// of its functions holds for these too.
//
// SPDX-License-Identifier: MIT
#pragma once

#include "bao/hook.hpp"

#if defined(__GLIBC__)
#include <arpa/inet.h>
#include <netdb.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bao/local.hpp"
#include "bao/look_up.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {
namespace hook {

// Suspends until find(answer) has been called on a helper thread, for us or for
// others who ask the same: what use(answer) returns, or failed(error). Throws
// what for_c() catches.
template <class Answer, class Find, class Use, class Failed>
int ask(std::string key, Find find, Use use, Failed failed) {
  const int errno_before = errno;
  if (!may_begin(*here())) return failed(errno);
  const auto asked = question::ask(std::move(key), [find = std::move(find)] {
    auto answer = std::make_shared<Answer>();
    find(*answer);
    answer->error = errno;
    return answer;
  });
  if (const int error = asked->wait_in_c()) return failed(error);
  errno = errno_before;
  return use(asked->template get<Answer>());
}

// For the two that say by a number of their own why they fail.
inline int resolver_failed(int error) {
  errno = error;
  return error == ENOMEM ? EAI_MEMORY : EAI_SYSTEM;
}

inline bool is_numeric(const char* host) {
  in6_addr any;
  return host == nullptr || ::inet_pton(AF_INET, host, &any) == 1 ||
         ::inet_pton(AF_INET6, host, &any) == 1;
}

// Each caller frees a list of its own, by freeaddrinfo(): for which an address
// is part of the same piece of memory, and a name is a piece by itself.
inline addrinfo* copy_of(const addrinfo* list) {
  addrinfo* first = nullptr;
  addrinfo** link = &first;
  for (; list != nullptr; list = list->ai_next) {
    auto* const made =
        static_cast<addrinfo*>(std::malloc(sizeof *list + list->ai_addrlen));
    char* const name =
        list->ai_canonname != nullptr ? ::strdup(list->ai_canonname) : nullptr;
    if (made == nullptr || (list->ai_canonname != nullptr && name == nullptr)) {
      std::free(made);
      if (first != nullptr) ::freeaddrinfo(first);
      return nullptr;
    }
    *made = *list;
    made->ai_addr = reinterpret_cast<sockaddr*>(made + 1);
    std::memcpy(made->ai_addr, list->ai_addr, list->ai_addrlen);
    made->ai_canonname = name;
    made->ai_next = nullptr;
    *link = made;
    link = &made->ai_next;
  }
  return first;
}

inline int getaddrinfo(const char* host, const char* service,
                       const addrinfo* hints, addrinfo** found) {
  if (here() == nullptr || is_numeric(host) ||
      (hints != nullptr && (hints->ai_flags & AI_NUMERICHOST) != 0))
    return original::getaddrinfo(host, service, hints, found);
  struct answer {
    int result = 0, error = 0;
    addrinfo* list = nullptr;
    ~answer() {
      if (list != nullptr) ::freeaddrinfo(list);
    }
  };
  const auto ask_libc = [&] {
    std::string key = std::string("getaddrinfo ") + host;
    std::optional<std::string> own_service;
    if (service != nullptr) key += '\0' + own_service.emplace(service);
    // Of the hints these four count; without any, glibc takes these flags.
    addrinfo how{};
    how.ai_flags = AI_V4MAPPED | AI_ADDRCONFIG;
    for (auto field : {&addrinfo::ai_flags, &addrinfo::ai_family,
                       &addrinfo::ai_socktype, &addrinfo::ai_protocol}) {
      if (hints != nullptr) how.*field = hints->*field;
      key += '\0' + std::to_string(how.*field);
    }
    return hook::ask<answer>(
        key,
        [how, own_host = std::string(host), own_service](answer& a) {
          a.result = original::getaddrinfo(
              own_host.c_str(), own_service ? own_service->c_str() : nullptr,
              &how, &a.list);
        },
        [&](const answer& a) {
          if (a.result == EAI_SYSTEM) errno = a.error;
          if (a.result != 0) return a.result;
          *found = copy_of(a.list);
          return *found != nullptr ? 0 : EAI_MEMORY;
        },
        resolver_failed);
  };
  return for_c(ask_libc, resolver_failed);
}

inline int getnameinfo(const sockaddr* address, socklen_t size, char* host,
                       socklen_t host_size, char* service,
                       socklen_t service_size, int flags) {
  if (here() == nullptr || (flags & NI_NUMERICHOST) != 0 || host == nullptr ||
      host_size == 0 || address == nullptr)
    return original::getnameinfo(address, size, host, host_size, service,
                                 service_size, flags);
  struct answer {
    int result = 0, error = 0;
    char host[NI_MAXHOST] = "", service[NI_MAXSERV] = "";
  };
  const auto ask_libc = [&] {
    const std::string of(reinterpret_cast<const char*>(address), size);
    return hook::ask<answer>(
        "getnameinfo " + std::to_string(flags) + ' ' + of,
        [of, flags](answer& a) {
          a.result = original::getnameinfo(
              reinterpret_cast<const sockaddr*>(of.data()),
              static_cast<socklen_t>(of.size()), a.host, sizeof a.host,
              a.service, sizeof a.service, flags);
        },
        [&](const answer& a) -> int {
          if (a.result == EAI_SYSTEM) errno = a.error;
          if (a.result != 0) return a.result;
          const auto give = [](char* to, socklen_t room, const char* text) {
            if (to == nullptr || room == 0) return true;
            if (std::strlen(text) >= room) return false;
            std::strcpy(to, text);
            return true;
          };
          return give(host, host_size, a.host) &&
                         give(service, service_size, a.service)
                     ? 0
                     : EAI_OVERFLOW;
        },
        resolver_failed);
  };
  return for_c(ask_libc, resolver_failed);
}

// The older family. All that a hostent points to lies in one buffer; so it can
// be copied, pointers and all, from the helper's to the caller's.
struct host_answer {
  void copy_to(hostent& host, char* p) const {
    std::copy(buffer.begin(), buffer.end(), p);
    const auto moved = [&](char* at) { return p + (at - buffer.data()); };
    const auto moved_list = [&](char** list) {
      auto** const made =
          reinterpret_cast<char**>(moved(reinterpret_cast<char*>(list)));
      for (char** name = made; *name != nullptr; ++name) *name = moved(*name);
      return made;
    };
    host = found;
    host.h_name = moved(found.h_name);
    host.h_aliases = moved_list(found.h_aliases);
    host.h_addr_list = moved_list(found.h_addr_list);
  }

  std::vector<char> buffer;
  hostent found{};
  bool any = false;
  int result = 0, host_error = 0, error = 0;
};

// libc is asked by find(of, family, host, p, n, found, error).
template <class Find>
int find_host(const char* name, std::string_view about, int family,
              hostent* host, char* p, std::size_t n, hostent** found,
              int* host_error, Find find) {
  *found = nullptr;
  const auto failed = [&](int error) {
    *host_error = NETDB_INTERNAL;
    return errno = error;
  };
  const auto ask_libc = [&] {
    const std::string of(about);
    return hook::ask<host_answer>(
        name + (' ' + std::to_string(family)) + ' ' + std::to_string(n) + ' ' +
            of,
        [of, family, n, find](host_answer& a) {
          a.buffer.resize(n);
          hostent* one = nullptr;
          a.result = find(of, family, &a.found, a.buffer.data(), n, &one,
                          &a.host_error);
          a.any = one != nullptr;
        },
        [&](const host_answer& a) {
          *host_error = a.host_error;
          if (a.any) a.copy_to(*(*found = host), p);
          if (!a.any) errno = a.error;
          return a.result;
        },
        failed);
  };
  return for_c(ask_libc, failed);
}

inline int gethostbyname2_r(const char* name, int family, hostent* host,
                            char* p, std::size_t n, hostent** found,
                            int* error) {
  if (here() == nullptr || is_numeric(name))
    return original::gethostbyname2_r(name, family, host, p, n, found, error);
  return find_host("gethostbyname2", name, family, host, p, n, found, error,
                   [](const std::string& of, auto... rest) {
                     return original::gethostbyname2_r(of.c_str(), rest...);
                   });
}

inline int gethostbyname_r(const char* name, hostent* host, char* p,
                           std::size_t n, hostent** found, int* error) {
  return hook::gethostbyname2_r(name, AF_INET, host, p, n, found, error);
}

inline int gethostbyaddr_r(const void* address, socklen_t size, int family,
                           hostent* host, char* p, std::size_t n,
                           hostent** found, int* error) {
  if (here() == nullptr || address == nullptr)
    return original::gethostbyaddr_r(address, size, family, host, p, n, found,
                                     error);
  return find_host("gethostbyaddr", {static_cast<const char*>(address), size},
                   family, host, p, n, found, error,
                   [](const std::string& of, auto... rest) {
                     const auto n_of = static_cast<socklen_t>(of.size());
                     return original::gethostbyaddr_r(of.data(), n_of, rest...);
                   });
}

// Those without _r give out memory of their own: here each task's.
struct host_of_task {
  hostent host{};
  std::vector<char> buffer;
};
inline task_local<host_of_task> found_host;

template <class Find>
hostent* find_host_of_task(Find find) {
  try {
    host_of_task& mine = *found_host;
    if (mine.buffer.empty()) mine.buffer.resize(1024);
    for (;;) {
      hostent* found = nullptr;
      const int result = find(&mine.host, mine.buffer.data(),
                              mine.buffer.size(), &found, &h_errno);
      if (result != ERANGE) return found;
      mine.buffer.resize(mine.buffer.size() * 2);
    }
  } catch (const std::bad_alloc&) {
    h_errno = NETDB_INTERNAL;
    errno = ENOMEM;
    return nullptr;
  }
}

inline hostent* gethostbyname2(const char* name, int family) {
  if (here() == nullptr) return original::gethostbyname2(name, family);
  return find_host_of_task([&](auto... rest) {
    return hook::gethostbyname2_r(name, family, rest...);
  });
}
inline hostent* gethostbyname(const char* name) {
  if (here() == nullptr) return original::gethostbyname(name);
  return hook::gethostbyname2(name, AF_INET);
}
inline hostent* gethostbyaddr(const void* address, socklen_t size, int family) {
  if (here() == nullptr) return original::gethostbyaddr(address, size, family);
  return find_host_of_task([&](auto... rest) {
    return hook::gethostbyaddr_r(address, size, family, rest...);
  });
}

}  // namespace hook
}  // namespace BAO_ABI
}  // namespace bao
#endif
