// chat_server.cpp - rooms in which people talk, a line at a time
//
//     ./chat_server 8080
//     listening on 127.0.0.1:8080
//
//     nc 127.0.0.1 8080
//
// Each guest has two tasks: one that reads what he types, one that writes what
// he is to see, which comes through a channel. Who does not read fast enough
// fills his channel, and is shown the door: nobody waits for him.
#include "bao.hpp"

#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>

using namespace std::chrono_literals;

constexpr std::size_t line_limit = 1024;
constexpr std::size_t unread_limit = 100;  // lines
constexpr std::size_t name_limit = 20;

const char* const help =
    "/join ROOM   go to another room\n"
    "/who         who is here\n"
    "/quit        leave";

struct guest {
  explicit guest(bao::tcp_stream& p) : peer(p) {}

  bao::tcp_stream& peer;
  std::string name;
  std::string room;
  bao::channel<std::string> to_see{unread_limit};

  // Never waits. Who has too much to read already is shown the door.
  void show(const std::string& text) {
    if (to_see.closed() || to_see.try_send(text + "\n")) return;
    to_see.close(bao::discard);
    peer.close();  // wakes both his tasks
  }
};

class chat {
 public:
  // One guest, until he leaves.
  void serve(bao::tcp_stream& peer) try {
    guest me(peer);
    peer.write_all("your name?\n", 10s);
    const auto name = peer.read_line(line_limit, 60s);
    if (!name || !is_name(*name) || names_.count(*name) != 0) {
      peer.write_all("that name cannot be used, or is in use\n", 10s);
      return;
    }
    me.name = *name;

    bao::group tasks;
    tasks.spawn([&] {
      try {
        for (const std::string& line : me.to_see) peer.write_all(line, 10s);
      } catch (const std::system_error&) {
        // He is gone, or was shown the door.
      }
      peer.close();  // ends the reading below
    });
    const presence here(*this, me);
    me.show(help);
    go_to(me, "lobby");
    try {
      while (auto line = peer.read_line(line_limit, 1h))
        if (!act(me, *line)) break;
    } catch (const bao::line_too_long&) {
      me.show("that line is too long, good bye");
    } catch (const std::system_error&) {
      // He is gone, asleep, or was shown the door.
    }
    me.to_see.close();
    tasks.join(1s);  // what he has not seen yet
  } catch (const std::system_error&) {
    // He never said who he is.
  } catch (const bao::line_too_long&) {
  }

 private:
  // As long as it lives, the guest can be seen by others.
  struct presence {
    chat& where;
    guest& who;
    presence(chat& c, guest& g) : where(c), who(g) {
      where.names_.insert(who.name);
    }
    presence(const presence&) = delete;
    ~presence() {
      where.leave_room(who);
      where.names_.erase(who.name);
    }
  };

  static bool is_name(const std::string& text) {
    if (text.empty() || text.size() > name_limit || text[0] == '/')
      return false;
    for (char c : text)
      if (c <= ' ' || c > '~') return false;
    return true;
  }

  bool act(guest& me, const std::string& line) {
    if (line == "/quit") return false;
    if (line == "/who") {
      for (const guest* g : rooms_[me.room]) me.show(g->name);
    } else if (line.rfind("/join ", 0) == 0 && is_name(line.substr(6))) {
      go_to(me, line.substr(6));
    } else if (!line.empty() && line[0] == '/') {
      me.show(help);
    } else if (!line.empty()) {
      tell_room(me, me.name + ": " + line);
    }
    return true;
  }

  void tell_room(const guest& me, const std::string& text) {
    for (guest* g : rooms_[me.room]) g->show(text);
  }
  void go_to(guest& me, const std::string& room) {
    leave_room(me);
    me.room = room;
    rooms_[room].insert(&me);
    tell_room(me, "* " + me.name + " comes into " + room);
  }
  void leave_room(guest& me) {
    const auto room = rooms_.find(me.room);
    if (room == rooms_.end() || room->second.erase(&me) == 0) return;
    if (room->second.empty())
      rooms_.erase(room);
    else
      tell_room(me, "* " + me.name + " leaves");
  }

  std::set<std::string> names_;
  std::map<std::string, std::set<guest*>> rooms_;
};

int main(int argc, char** argv) {
  try {
    if (argc > 2) throw std::invalid_argument("too many arguments");
    chat rooms;
    bao::tcp_server server(
        std::string("127.0.0.1:") + (argc > 1 ? argv[1] : "8080"),
        [&](bao::tcp_stream& peer) { rooms.serve(peer); },
        bao::server_options().max_clients(1000));
    bao::spawn([&] {
      bao::wait_signal({SIGINT, SIGTERM});
      server.stop(0s);
    });
    bao::yield();  // from here on, signals are heard
    std::printf("listening on %s\n",
                server.local_address().to_string().c_str());
    std::fflush(stdout);
    server.serve();
  } catch (const std::invalid_argument& e) {
    std::fprintf(stderr, "chat_server: %s\nusage: chat_server [PORT]\n",
                 e.what());
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "chat_server: %s\n", e.what());
    return 1;
  }
}
