// crawler.cpp - fetches pages together, each in a task of its own
//
//     ./crawler http://127.0.0.1:8080/ http://example.org/
//        1256 bytes  0.21 s  http://example.org/
//     ...
//
// Below are the few lines of HTTP/1.1 that this takes. They read as if there
// were nothing else to do, and still all pages together take no longer than the
// slowest one. Whatever a server answers may be wrong: then its page fails, and
// the others do not care.
#include "bao.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

using namespace std::chrono_literals;

constexpr auto time_limit = 10s;  // for a page, with all its redirections
constexpr int redirect_limit = 5;
constexpr std::size_t page_limit = 16 * 1024 * 1024;  // bytes
constexpr std::size_t line_limit = 8 * 1024;
constexpr std::size_t header_limit = 100;  // lines

struct failure : std::runtime_error {
  using runtime_error::runtime_error;
};

std::string lower(std::string text) {
  for (char& c : text)
    if ('A' <= c && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

std::string trimmed(const std::string& text) {
  const std::size_t first = text.find_first_not_of(" \t");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t") + 1 - first);
}

// The number that `text` is, in base 10 or 16, from 0 to page_limit.
std::size_t size_from(const std::string& text, int base) {
  const char* const digits = "0123456789abcdefABCDEF";
  const std::string allowed(digits, base == 10 ? 10 : 22);
  if (text.empty() || text.find_first_not_of(allowed) != std::string::npos)
    throw failure("a bad size");
  const unsigned long long n = std::strtoull(text.c_str(), nullptr, base);
  if (n > page_limit) throw failure("the page is too large");
  return static_cast<std::size_t>(n);
}

// --- addresses of pages ------------------------------------------------------

struct url {
  std::string host;  // as in "example.org:8080", with the port if there is one
  std::string path;  // "/" at least, with ?query, without #fragment

  std::string host_and_port() const {
    const bool ipv6 = host.front() == '[';  // [::1] is full of colons
    const std::size_t from = ipv6 ? std::min(host.find(']'), host.size()) : 0;
    return host.find(':', from) != host.npos ? host : host + ":80";
  }
};

url parse_url(const std::string& text) {
  for (const char c : text)
    if (c <= ' ' || c > '~') throw failure("a URL with odd characters");
  if (lower(text.substr(0, 7)) != "http://")
    throw failure("\"" + text + "\" does not begin with http://");
  const std::string rest = text.substr(7, text.find('#') - 7);
  const std::size_t end = std::min(rest.find_first_of("/?"), rest.size());
  url u{rest.substr(0, end), rest.substr(end)};
  if (u.host.empty() || u.host.front() == ':')
    throw failure("\"" + text + "\" names no host");
  if (u.path.empty() || u.path.front() != '/') u.path.insert(0, "/");
  return u;
}

// "/a/./b/../c" is "/a/c".
std::string without_dots(const std::string& path) {
  const std::size_t query = std::min(path.find('?'), path.size());
  std::vector<std::string> steps;
  std::string last;
  for (std::size_t from = 1; from <= query;) {
    const std::size_t to = std::min(path.find('/', from), query);
    last = path.substr(from, to - from);
    if (last == ".." && !steps.empty()) steps.pop_back();
    if (last != "." && last != "..") steps.push_back(last);
    from = to + 1;
  }
  std::string result;
  for (const std::string& step : steps) result += '/' + step;
  if (steps.empty() || last == "." || last == "..") result += '/';
  return result + path.substr(query);
}

// Where a page at `from` sends us by "Location: `to`".
url redirected(const url& from, const std::string& to) {
  if (to.find("://") < to.find_first_of("/?#")) return parse_url(to);
  if (to.compare(0, 2, "//") == 0) return parse_url("http:" + to);
  const std::string page = from.path.substr(0, from.path.find('?'));
  std::string path = to;
  if (to.empty() || to.front() == '?' || to.front() == '#')
    path = page + to;
  else if (to.front() != '/')
    path = page.substr(0, page.rfind('/') + 1) + to;
  url u = parse_url("http://" + from.host + path);
  u.path = without_dots(u.path);
  return u;
}

// --- HTTP --------------------------------------------------------------------

struct response {
  int status = 0;
  std::string location;  // "" for none
  std::string length;    // of the body; "" for none
  std::string encoding;  // in which it is transferred; "" for none
};

std::string next_line(bao::tcp_stream& peer) {
  try {
    if (auto line = peer.read_line(line_limit)) return *line;
  } catch (const bao::line_too_long&) {
    throw failure("a line of the header is too long");
  }
  throw failure("the connection ended in the middle of the answer");
}

response read_head(bao::tcp_stream& peer) {
  response r;
  const std::string first = next_line(peer);  // "HTTP/1.1 200 OK"
  if (first.compare(0, 7, "HTTP/1.") != 0 || first.size() < 12 ||
      first.find_first_not_of("0123456789", 9) < 12)
    throw failure("the answer is not HTTP/1.1");
  r.status = std::stoi(first.substr(9, 3));

  for (std::size_t lines = 0;; ++lines) {
    const std::string line = next_line(peer);
    if (line.empty()) return r;
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) throw failure("a header without a colon");
    if (lines == header_limit) throw failure("too many headers");
    const std::string name = lower(line.substr(0, colon));
    const std::string value = trimmed(line.substr(colon + 1));
    if (name == "location") r.location = value;
    if (name == "transfer-encoding") r.encoding = lower(value);
    if (name == "content-length") {
      if (!r.length.empty() && r.length != value)
        throw failure("two different lengths");
      r.length = value;
    }
  }
}

// Pieces, each after a line with its size; one of size 0 is the end.
std::string read_chunks(bao::tcp_stream& peer) {
  std::string body;
  for (;;) {
    const std::string line = next_line(peer);
    const std::size_t size =
        size_from(trimmed(line.substr(0, line.find(';'))), 16);
    if (size == 0) return body;
    if (size > page_limit - body.size()) throw failure("the page is too large");
    body += peer.read_exactly(size);
    if (!next_line(peer).empty()) throw failure("a chunk of the wrong size");
  }
}

std::string read_body(bao::tcp_stream& peer, const response& r) {
  if (r.status == 204) return "";
  if (r.encoding == "chunked") return read_chunks(peer);
  if (!r.encoding.empty()) throw failure("an unknown encoding");
  if (!r.length.empty()) return peer.read_exactly(size_from(r.length, 10));
  return peer.read_all(page_limit);
}

// The page itself, wherever it has moved to.
std::string fetch(url where) {
  for (int moved = 0; moved <= redirect_limit; ++moved) {
    bao::tcp_stream peer = bao::connect(where.host_and_port());
    peer.write_all("GET " + where.path + " HTTP/1.1\r\nHost: " + where.host +
                   "\r\nUser-Agent: bao-crawler\r\nConnection: close\r\n\r\n");

    response head = read_head(peer);
    while (100 <= head.status && head.status < 200) head = read_head(peer);
    if (200 <= head.status && head.status < 300) return read_body(peer, head);
    if (head.status < 300 || head.status >= 400 || head.location.empty())
      throw failure("status " + std::to_string(head.status));
    where = redirected(where, head.location);
  }
  throw failure("redirected too often");
}

// --- the crawl ---------------------------------------------------------------

double seconds_since(bao::clock::time_point start) {
  return std::chrono::duration<double>(bao::now() - start).count();
}

struct result {
  bool ok;
  double seconds;
};

result crawl(const std::string& text) {
  const auto start = bao::now();
  std::string problem;
  try {
    bao::timeout limit(time_limit);
    const std::string page = fetch(parse_url(text));
    std::printf("%9zu bytes  %.2f s  %s\n", page.size(), seconds_since(start),
                text.c_str());
    std::fflush(stdout);
    return {true, seconds_since(start)};
  } catch (const bao::timed_out&) {
    problem = "no page within the time limit";
  } catch (const std::exception& e) {
    problem = e.what();
  }
  std::fprintf(stderr, "crawler: %s: %s\n", text.c_str(), problem.c_str());
  return {false, seconds_since(start)};
}

int main(int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') {
    std::fprintf(stderr, "usage: crawler http://HOST[:PORT]/PATH...\n");
    return 2;
  }
  const auto start = bao::now();
  std::vector<bao::task<result>> tasks;
  for (int i = 1; i < argc; ++i)
    tasks.push_back(bao::spawn(crawl, std::string(argv[i])));

  int failed = 0;
  double one_by_one = 0;
  for (auto& t : tasks) {
    const result& r = t.get();
    one_by_one += r.seconds;
    if (!r.ok) ++failed;
  }
  std::printf("%zu pages in %.2f s; one by one it would have been %.2f s\n",
              tasks.size(), seconds_since(start), one_by_one);
  return failed == 0 ? 0 : 1;
}
