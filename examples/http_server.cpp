// http_server.cpp - serves files over HTTP/1.1
//
//     ./http_server 8080 --root site --threads 2
//     listening on 127.0.0.1:8080
//
// Each connection is a task that reads a request, answers it, and goes on with
// the next one: that is all there is to keep-alive and pipelining. A file is
// asked for its time and size at each request, and read when it has changed;
// small ones are kept. Whoever sends too much is told so; whoever is slow is
// shown the door. Without --root there is a greeting at /, and nothing else.
#include "bao.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

using namespace std::chrono_literals;

const char* const usage =
    "usage: http_server [PORT] [--threads N] [--root DIR]\n"
    "  PORT  0 to 65535, 8080 unless given; 0 picks one that is free\n"
    "  N     1 to 64, 1 unless given\n"
    "  DIR   where the files are\n";

constexpr std::size_t head_limit = 16 * 1024;    // of a request, in bytes
constexpr std::size_t body_limit = 1024 * 1024;  // of a request
constexpr std::size_t kept_limit = 64 * 1024;    // of a file that is kept
constexpr std::size_t kept_together = 16 * 1024 * 1024;
constexpr auto patience = 30s;  // for a request, and for a client that reads

const std::string greeting = "bao: plain code, a thousand sockets\n";

// --- requests ----------------------------------------------------------------

struct request {
  std::string_view method, target;
  bool keep_alive = true;
  std::size_t body = 0;  // bytes that follow the head
};

// An answer that is a refusal.
struct refusal {
  int status;
  const char* reason;
};

bool same(std::string_view a, std::string_view b) {  // whatever the case
  const auto lower = [](char c) {
    return 'A' <= c && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  return a.size() == b.size() &&
         std::equal(a.begin(), a.end(), b.begin(),
                    [&](char x, char y) { return lower(x) == lower(y); });
}

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") + 1 - first);
}

// Takes the text up to `end` off the front.
std::string_view cut(std::string_view& text, std::string_view end) {
  const std::size_t at = std::min(text.find(end), text.size());
  const std::string_view front = text.substr(0, at);
  text.remove_prefix(std::min(at + end.size(), text.size()));
  return front;
}

std::size_t body_size(std::string_view text) {
  if (text.empty() || text.size() > 12 ||
      text.find_first_not_of("0123456789") != std::string_view::npos)
    throw refusal{400, "Bad Request"};
  const auto size = std::strtoull(std::string(text).c_str(), nullptr, 10);
  if (size > body_limit) throw refusal{413, "Content Too Large"};
  return static_cast<std::size_t>(size);
}

request parse(std::string_view head) {
  request r;
  std::string_view line = cut(head, "\r\n");
  r.method = cut(line, " ");
  r.target = cut(line, " ");
  if (r.method.empty() || r.target.empty() || r.target[0] != '/')
    throw refusal{400, "Bad Request"};
  if (line != "HTTP/1.1" && line != "HTTP/1.0")
    throw refusal{505, "HTTP Version Not Supported"};
  r.keep_alive = line == "HTTP/1.1";
  bool sized = false;
  while (!head.empty()) {
    std::string_view value = cut(head, "\r\n");
    const std::size_t colon = value.find(':');
    if (colon == std::string_view::npos || colon == 0)
      throw refusal{400, "Bad Request"};
    const std::string_view name = cut(value, ":");
    value = trimmed(value);
    if (same(name, "connection")) {
      if (same(value, "close")) r.keep_alive = false;
      if (same(value, "keep-alive")) r.keep_alive = true;
    } else if (same(name, "content-length")) {
      if (sized) throw refusal{400, "Bad Request"};
      sized = true;
      r.body = body_size(value);
    } else if (same(name, "transfer-encoding")) {
      throw refusal{501, "Not Implemented"};  // bodies are of no use here
    }
  }
  return r;
}

// --- answers -----------------------------------------------------------------

// The time, as a header wants it; made once a second.
const std::string& date() {
  static thread_local std::time_t last = 0;
  static thread_local std::string text;
  const std::time_t now = std::time(nullptr);
  if (now != last) {
    char buffer[64];
    std::tm utc{};
    gmtime_r(&now, &utc);
    std::strftime(buffer, sizeof buffer, "%a, %d %b %Y %H:%M:%S GMT", &utc);
    text = buffer;
    last = now;
  }
  return text;
}

std::string head_of(int status, const char* reason, const char* type,
                    std::size_t size, bool keep_alive) {
  std::string head = "HTTP/1.1 " + std::to_string(status) + ' ' + reason;
  head += "\r\nServer: bao\r\nDate: ";
  head += date();
  head += "\r\nContent-Type: ";
  head += type;
  head += "\r\nContent-Length: " + std::to_string(size);
  head += "\r\nAccept-Ranges: none";
  if (status == 405) head += "\r\nAllow: GET, HEAD";
  if (!keep_alive) head += "\r\nConnection: close";
  return head += "\r\n\r\n";
}

const char* type_of(std::string_view path) {
  static constexpr struct {
    std::string_view end;
    const char* type;
  } types[] = {
      {".html", "text/html; charset=utf-8"},
      {".css", "text/css"},
      {".js", "text/javascript"},
      {".json", "application/json"},
      {".svg", "image/svg+xml"},
      {".png", "image/png"},
      {".jpg", "image/jpeg"},
      {".txt", "text/plain; charset=utf-8"},
  };
  for (const auto& t : types)
    if (path.size() > t.end.size() &&
        path.substr(path.size() - t.end.size()) == t.end)
      return t.type;
  return "application/octet-stream";
}

int digit(char c) {
  if ('0' <= c && c <= '9') return c - '0';
  if ('a' <= c && c <= 'f') return c - 'a' + 10;
  if ('A' <= c && c <= 'F') return c - 'A' + 10;
  throw refusal{400, "Bad Request"};
}

// The path of a target below the root: no way leads out of there.
std::string path_of(std::string_view target) {
  target = target.substr(0, target.find_first_of("?#"));
  std::string path;
  for (std::size_t i = 0; i < target.size(); ++i) {
    char c = target[i];
    if (c == '%') {
      if (i + 2 >= target.size()) throw refusal{400, "Bad Request"};
      c = static_cast<char>(digit(target[i + 1]) * 16 + digit(target[i + 2]));
      i += 2;
    }
    if (c == '\0') throw refusal{400, "Bad Request"};
    path += c;
  }
  if ((path + '/').find("/../") != std::string::npos)
    throw refusal{403, "Forbidden"};
  if (path.back() == '/') path += "index.html";
  return path;
}

bao::stream open_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd == -1) throw refusal{errno == EACCES ? 403 : 404, "Not Available"};
  return bao::stream(fd);
}

// Files that have been read, until they change.
class file_cache {
 public:
  // The contents of a small file; empty for a large one, of which `size` tells.
  const std::string* get(const std::string& path, std::size_t& size) {
    struct stat now {};
    if (::stat(path.c_str(), &now) == -1 || !S_ISREG(now.st_mode))
      throw refusal{404, "Not Found"};
    size = static_cast<std::size_t>(now.st_size);
    if (size > kept_limit) return nullptr;
    kept& file = files_[path];
    if (file.seen.st_mtim.tv_sec == now.st_mtim.tv_sec &&
        file.seen.st_mtim.tv_nsec == now.st_mtim.tv_nsec &&
        file.seen.st_ino == now.st_ino && file.seen.st_size == now.st_size &&
        file.seen.st_nlink != 0)
      return &file.contents;
    return read(path, now);
  }

 private:
  struct kept {
    struct stat seen {};
    std::string contents;
  };

  // Reading waits for a helper thread, while others may change the table.
  const std::string* read(const std::string& path, const struct stat& now) {
    std::string contents =
        open_file(path).read_exactly(static_cast<std::size_t>(now.st_size));
    if (together_ + contents.size() > kept_together)
      files_.clear(), together_ = 0;
    together_ += contents.size();
    kept& file = files_[path];
    together_ -= file.contents.size();
    file = {now, std::move(contents)};
    return &file.contents;
  }

 private:
  std::unordered_map<std::string, kept> files_;
  std::size_t together_ = 0;
};

// --- the server --------------------------------------------------------------

class web_server {
 public:
  explicit web_server(std::string root) : root_(std::move(root)) {}

  void serve(bao::tcp_stream& peer) const try {
    for (bool again = true; again;) {
      std::optional<std::string> head;
      request r;
      try {
        head = peer.read_until("\r\n\r\n", head_limit, patience);
        if (!head) return;
        r = parse(*head);
        if (r.body != 0) peer.read_exactly(r.body, patience);
        answer(peer, r);
        again = r.keep_alive;
      } catch (const refusal& no) {
        // What follows the head of a bad request is anybody's guess.
        again = head.has_value() && r.keep_alive && !r.method.empty() &&
                no.status < 500 && no.status != 400 && no.status != 413;
        refuse(peer, no, again, r.method == "HEAD");
      } catch (const bao::line_too_long&) {
        refuse(peer, {431, "Request Header Fields Too Large"}, false, false);
        return;
      }
    }
  } catch (const std::system_error&) {
    // A client that breaks off, or sleeps, is no concern of the others.
  } catch (const bao::end_of_stream&) {
  }

 private:
  void refuse(bao::tcp_stream& peer, const refusal& no, bool keep_alive,
              bool head_only) const {
    const std::string text = std::to_string(no.status) + ' ' + no.reason + '\n';
    std::string all =
        head_of(no.status, no.reason, "text/plain", text.size(), keep_alive);
    if (!head_only) all += text;
    peer.write_all(all, patience);
    if (keep_alive) return;
    // It may still be sending: were we to close at once, that would reset the
    // connection, and it might never see the answer.
    peer.shutdown_write();
    const bao::deadline until = 1s;
    char rest[4096];
    while (peer.read_some(rest, sizeof rest, until) != 0) {
    }
  }

  void answer(bao::tcp_stream& peer, const request& r) const {
    const bool head_only = r.method == "HEAD";
    if (!head_only && r.method != "GET")
      throw refusal{405, "Method Not Allowed"};
    if (r.target == "/" && root_.empty())
      return send(peer, r, greeting, "text/plain");
    if (root_.empty()) throw refusal{404, "Not Found"};
    static thread_local file_cache files;
    const std::string path = root_ + path_of(r.target);
    std::size_t size = 0;
    if (const std::string* contents = files.get(path, size))
      return send(peer, r, *contents, type_of(path));

    bao::stream file = open_file(path);
    peer.write_all(head_of(200, "OK", type_of(path), size, r.keep_alive),
                   patience);
    while (!head_only && size > 0) {
      const std::string piece =
          file.read_some(std::min(size, 256 * kept_limit));
      if (piece.empty())  // it has shrunk: the length cannot be kept any more
        throw bao::end_of_stream("the file was cut while it was sent");
      peer.write_all(piece, patience);
      size -= piece.size();
    }
  }

  static void send(bao::tcp_stream& peer, const request& r,
                   const std::string& contents, const char* type) {
    std::string all = head_of(200, "OK", type, contents.size(), r.keep_alive);
    if (r.method != "HEAD") all += contents;
    peer.write_all(all, patience);
  }

  std::string root_;
};

// A connection takes a descriptor, and the usual limit of 1024 is no more than
// a habit: the system lets us raise it.
void allow_many_descriptors() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char** argv) {
  std::string port = "8080", root;
  int threads = 1;
  try {
    for (int i = 1; i < argc; ++i) {
      const std::string word = argv[i];
      if (word == "--threads" && i + 1 < argc) {
        threads = std::atoi(argv[++i]);
        if (threads < 1 || threads > 64)
          throw std::invalid_argument("--threads needs 1 to 64");
      } else if (word == "--root" && i + 1 < argc) {
        root = argv[++i];
      } else {
        port = word;
      }
    }
    allow_many_descriptors();
    const web_server files(root);
    bao::tcp_server server(
        "127.0.0.1:" + port, [&](bao::tcp_stream& peer) { files.serve(peer); },
        bao::server_options().threads(threads).backlog(4096));
    bao::spawn([&] {
      bao::wait_signal({SIGINT, SIGTERM});
      server.stop(5s);
    });
    bao::yield();  // from here on, signals are heard
    std::printf("listening on %s\n",
                server.local_address().to_string().c_str());
    std::fflush(stdout);
    server.serve();
  } catch (const std::invalid_argument& e) {
    std::fprintf(stderr, "http_server: %s\n%s", e.what(), usage);
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "http_server: %s\n", e.what());
    return 1;
  }
}
