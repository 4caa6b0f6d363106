// with_curl.cpp - libcurl, unmodified, in tasks
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <curl/curl.h>
#include <doctest/doctest.h>

#include <cstddef>
#include <memory>
#include <string>

#include "../checks.hpp"
#include "bao.hpp"
#include "servers.hpp"

BAO_PATCH_ALL();

namespace {

// Python's web server, slow, and nginx in front of it with a certificate.

server_process& slow_server() {
  static server_process one("exec python3 " SLOW_SERVER " $port");
  return one.ready();
}

server_process& nginx() {
  static server_process one("slow=" + std::to_string(slow_server().port()) +
                            R"(
openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem \
  -days 2 -subj /CN=localhost \
  -addext subjectAltName=DNS:localhost,IP:127.0.0.1
cat >nginx.conf <<END
daemon off; master_process off; pid $PWD/pid; error_log stderr;
events { worker_connections 512; }
http {
  access_log off;
  client_body_temp_path $PWD/body; proxy_temp_path $PWD/proxy;
  fastcgi_temp_path $PWD/fastcgi; uwsgi_temp_path $PWD/uwsgi;
  scgi_temp_path $PWD/scgi;
  server {
    listen 127.0.0.1:$port ssl;
    ssl_certificate $PWD/cert.pem; ssl_certificate_key $PWD/key.pem;
    location / { proxy_pass http://127.0.0.1:$slow; }
  }
}
END
exec nginx -p $PWD -e stderr -c $PWD/nginx.conf
)");
  return one.ready();
}

// --- what knows nothing of bao

std::size_t append(const char* bytes, std::size_t, std::size_t n, void* to) {
  static_cast<std::string*>(to)->append(bytes, n);
  return n;
}

std::string get(const std::string& url, const std::string& authority = "") {
  const std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> request(
      curl_easy_init(), curl_easy_cleanup);
  std::string page;
  curl_easy_setopt(request.get(), CURLOPT_URL, url.c_str());
  curl_easy_setopt(request.get(), CURLOPT_WRITEFUNCTION, append);
  curl_easy_setopt(request.get(), CURLOPT_WRITEDATA, &page);
  // It would set SIGPIPE for the whole process, request by request.
  curl_easy_setopt(request.get(), CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(request.get(), CURLOPT_PROXY, "");
  if (!authority.empty())
    curl_easy_setopt(request.get(), CURLOPT_CAINFO, authority.c_str());
  const CURLcode code = curl_easy_perform(request.get());
  return code == CURLE_OK ? page : "error " + std::to_string(code);
}

// ---

std::string slow(const std::string& host, const std::string& path) {
  return get("http://" + host + ':' + std::to_string(slow_server().port()) +
             path);
}

std::string ask(const std::string& path) { return slow("127.0.0.1", path); }

auto by_https(const std::string& host) {
  return [begin = "https://" + host + ':' +
                  std::to_string(nginx().port())](const std::string& path) {
    return get(begin + path, nginx().folder() + "/cert.pem");
  };
}

template <class Get>
void check_fifty(Get get_page, const std::string& page) {
  ask("/most");
  const answers all = at_once(
      50, [&](int) { return get_page("/slow?with=50"); }, [] {});
  CHECK(ask("/most") == "50");
  CHECK(all == answers(50, page));
  CHECK(one_by_one(3, [&](int) { return get_page("/slow?with=1"); }) ==
        first(3, all));
  CHECK(ask("/most") == "1");
}

}  // namespace

TEST_CASE("fifty tasks get a slow page at the same time") {
  if (!here({"python3"})) return;
  for (const std::string host : {"127.0.0.1", "localhost"}) {
    CAPTURE(host);
    check_fifty([&](const std::string& path) { return slow(host, path); },
                "page of " + host);
  }
}

TEST_CASE("and by https") {
  if (!here({"python3", "nginx", "openssl"})) return;
  for (const std::string host : {"127.0.0.1", "localhost"}) {
    CAPTURE(host);
    check_fifty(by_https(host), "page of 127.0.0.1");  // as nginx asks
  }
}

TEST_CASE("a kill or a limit ends curl_easy_perform by an error") {
  if (!here({"python3"})) return;
  const auto check = [](auto get_page) {
    const std::string before = ask("/now");
    const auto never = [&] { return get_page("/never"); };
    const auto inside = [&] { return ask("/now") != before; };
    // CURLE_BAD_FUNCTION_ARGUMENT, of its poll().
    CHECK(killed_within(never, inside) == "error 43");
    CHECK(limited_within(never) == "error 43");
  };
  for (const std::string host : {"127.0.0.1", "localhost"})
    check([&](const std::string& path) { return slow(host, path); });
  if (here({"nginx", "openssl"})) check(by_https("localhost"));
}
