// unaware.cpp - see unaware.hpp
#include "unaware.hpp"

#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <thread>

int unaware_read(int fd) {
  static char room[100];
  return ::read(fd, room, sizeof room) == 1 ? 0 : 1;
}

// What a compiler makes a call of __recv_chk(), __read_chk() and __poll_chk()
// of, where it is told to.
int unaware_read_into_known_room(int fd) {
  char room[4];
  volatile std::size_t n = 1;
  pollfd one[1] = {{fd, POLLIN, 0}};
  volatile nfds_t fds = 1;
  if (::poll(one, fds, 60000) != 1) return 1;
  if (::recv(fd, room, n, 0) != 1) return 2;
  return ::read(fd, room, n) == 1 ? 0 : 3;
}

int unaware_poll(int fd) {
  pollfd one{fd, POLLIN, 0};
  if (::poll(&one, 1, 60000) != 1) return 1;
  char byte;
  return ::recv(fd, &byte, 1, 0) == 1 ? 0 : 2;
}

int unaware_sleep() {
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  return ::usleep(1000);
}

int unaware_sleep_alone() {
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  static int inside = 0;
  ::pthread_mutex_lock(&lock);
  const int before = inside++;
  ::usleep(2000);
  --inside;
  ::pthread_mutex_unlock(&lock);
  return before;
}
