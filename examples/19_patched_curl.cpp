// 19_patched_curl.cpp - ten transfers of libcurl's, on one thread
//
// get() is what libcurl's manual tells one to write: curl_easy_perform() blocks
// until the page is there. In a patched program it is only the task that waits,
// so that ten pages may be on their way at once, and no line of get() is there
// for that.
//
// The server shows that they are: it answers nobody until all ten have asked.
#include "bao.hpp"

#include <curl/curl.h>

#include <cstddef>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

BAO_PATCH_ALL();

// --- somebody else's code ----------------------------------------------------

std::size_t append(char* data, std::size_t size, std::size_t n, void* page) {
  static_cast<std::string*>(page)->append(data, size * n);
  return size * n;
}

std::string get(const std::string& url) {
  const std::unique_ptr<CURL, void (*)(CURL*)> curl(curl_easy_init(),
                                                    curl_easy_cleanup);
  if (curl == nullptr) throw std::runtime_error("curl_easy_init failed");
  std::string page;
  curl_easy_setopt(curl.get(), CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, append);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &page);
  curl_easy_setopt(curl.get(), CURLOPT_NOPROXY, "*");
  curl_easy_setopt(curl.get(), CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_TIMEOUT, 10L);  // seconds
  const CURLcode result = curl_easy_perform(curl.get());
  if (result != CURLE_OK)
    throw std::runtime_error(url + ": " + curl_easy_strerror(result));
  return page;
}

// --- ours --------------------------------------------------------------------

int main() {
  if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) return 1;

  int asked = 0;
  bao::event all_have_asked;
  bao::tcp_listener door("127.0.0.1:0");
  auto server = bao::spawn([&] {
    for (bao::tcp_stream& client : door)
      bao::spawn([&, peer = std::move(client)]() mutable {
        peer.read_until("\r\n\r\n");
        if (++asked == 10) all_have_asked.set();
        all_have_asked.wait();
        peer.write_all("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\na bun");
      });
  });

  const std::string url = "http://" + door.local_address().to_string() + "/bun";
  bao::pool ten(10);
  for (const std::string& page :
       ten.map(std::vector<std::string>(10, url), get))
    std::printf("%s, when %d had asked\n", page.c_str(), asked);
  server.kill();
}
// Prints:
//   a bun, when 10 had asked
//   a bun, when 10 had asked
//   a bun, when 10 had asked
//   a bun, when 10 had asked
//   a bun, when 10 had asked
//   a bun, when 10 had asked
//   a bun, when 10 had asked
//   a bun, when 10 had asked
//   a bun, when 10 had asked
//   a bun, when 10 had asked
