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

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "bao/local.hpp"
#include "bao/look_up.hpp"

namespace bao {
inline namespace [[gnu::visibility("default")]] BAO_ABI {
namespace hook {

// Suspends until a question, made by new, is answered, for us or for others who
// ask the same: returns the one that is. Throws what for_c() catches.
inline std::shared_ptr<question> ask(question* made) {
  const int errno_before = errno;
  if (!may_begin(*here())) {
    delete made;
    throw_errno("resolver");
  }
  auto asked = question::ask(made);
  if (const int error = asked->wait_in_c()) throw_errno("resolver", error);
  errno = errno_before;
  return asked;
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
  addrinfo usual{};  // what glibc takes without hints
  usual.ai_flags = AI_V4MAPPED | AI_ADDRCONFIG;
  const auto ask_libc = [&] {
    const auto asked =
        ask(new addresses_of(host, service != nullptr ? service : "",
                             hints != nullptr ? *hints : usual));
    const auto& a = static_cast<const addresses_of&>(*asked);
    if (a.result == EAI_SYSTEM) errno = a.error;
    if (a.result != 0) return a.result;
    *found = copy_of(a.list);
    return *found != nullptr ? 0 : EAI_MEMORY;
  };
  return for_c(ask_libc, resolver_failed);
}

struct name_of final : question {
  name_of(const std::string& its_address, int how)
      : question("getnameinfo " + std::to_string(how) + ' ' + its_address),
        address(its_address),
        flags(how) {}

  const std::string address;
  const int flags;
  int result = 0, error = 0;
  char host[NI_MAXHOST] = "", service[NI_MAXSERV] = "";

 private:
  void look_up() override {
    result =
        original::getnameinfo(reinterpret_cast<const sockaddr*>(address.data()),
                              static_cast<socklen_t>(address.size()), host,
                              sizeof host, service, sizeof service, flags);
    error = errno;
  }
};

// Whether there is room for the text, or nobody wants it.
inline bool give(char* to, socklen_t room, const char* text) {
  if (to == nullptr || room == 0) return true;
  if (std::strlen(text) >= room) return false;
  std::strcpy(to, text);
  return true;
}

inline int getnameinfo(const sockaddr* address, socklen_t size, char* host,
                       socklen_t host_size, char* service,
                       socklen_t service_size, int flags) {
  if (here() == nullptr || (flags & NI_NUMERICHOST) != 0 || host == nullptr ||
      host_size == 0 || address == nullptr)
    return original::getnameinfo(address, size, host, host_size, service,
                                 service_size, flags);
  const auto ask_libc = [&]() -> int {
    const auto asked = ask(new name_of(
        std::string(reinterpret_cast<const char*>(address), size), flags));
    const auto& a = static_cast<const name_of&>(*asked);
    if (a.result == EAI_SYSTEM) errno = a.error;
    if (a.result != 0) return a.result;
    const bool room =
        give(host, host_size, a.host) && give(service, service_size, a.service);
    return room ? 0 : EAI_OVERFLOW;
  };
  return for_c(ask_libc, resolver_failed);
}

// The older family. All that a hostent points to lies in one buffer; so it can
// be copied, pointers and all, from the helper's to the caller's.
struct host_of final : question {
  // Of a name, or of an address, in a buffer of n bytes.
  host_of(bool by_name, const std::string& name_or_address, int its_family,
          std::size_t n)
      : question((by_name ? "gethostbyname " : "gethostbyaddr ") +
                 std::to_string(its_family) + ' ' + std::to_string(n) + ' ' +
                 name_or_address),
        is_name(by_name),
        about(name_or_address),
        family(its_family),
        buffer(n) {}

  void copy_to(hostent& host, char* p) const {
    std::memcpy(p, buffer.data(), buffer.size());
    const auto moved = [&](char* at) { return p + (at - buffer.data()); };
    const auto moved_list = [&](char** list) {
      auto** const made =
          reinterpret_cast<char**>(moved(reinterpret_cast<char*>(list)));
      for (char** name = made; *name != nullptr; ++name) *name = moved(*name);
      return made;
    };
    host = *found;
    host.h_name = moved(found->h_name);
    host.h_aliases = moved_list(found->h_aliases);
    host.h_addr_list = moved_list(found->h_addr_list);
  }

  const bool is_name;
  const std::string about;
  const int family;
  std::vector<char> buffer;
  hostent room{}, *found = nullptr;
  int result = 0, host_error = 0, error = 0;

 private:
  void look_up() override {
    char* const p = buffer.data();
    const std::size_t n = buffer.size();
    result = is_name ? original::gethostbyname2_r(about.c_str(), family, &room,
                                                  p, n, &found, &host_error)
                     : original::gethostbyaddr_r(
                           about.data(), static_cast<socklen_t>(about.size()),
                           family, &room, p, n, &found, &host_error);
    error = errno;
  }
};

inline int find_host(bool by_name, std::string_view about, int family,
                     hostent* host, char* p, std::size_t n, hostent** found,
                     int* host_error) {
  *found = nullptr;
  const auto failed = [&](int error) {
    *host_error = NETDB_INTERNAL;
    return errno = error;
  };
  const auto ask_libc = [&] {
    const auto asked = ask(new host_of(by_name, std::string(about), family, n));
    const auto& a = static_cast<const host_of&>(*asked);
    *host_error = a.host_error;
    if (a.found != nullptr)
      a.copy_to(*host, p), *found = host;
    else
      errno = a.error;
    return a.result;
  };
  return for_c(ask_libc, failed);
}

inline int gethostbyname2_r(const char* name, int family, hostent* host,
                            char* p, std::size_t n, hostent** found,
                            int* error) {
  if (here() == nullptr || is_numeric(name))
    return original::gethostbyname2_r(name, family, host, p, n, found, error);
  return find_host(true, name, family, host, p, n, found, error);
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
  return find_host(false, {static_cast<const char*>(address), size}, family,
                   host, p, n, found, error);
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
