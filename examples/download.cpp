// download.cpp - fetches files over http and https, ten at a time
//
//     ./download https://example.org/a.tar.gz http://127.0.0.1:8080/b.iso
//     b.iso  12.4 MB in 0.3 s
//     a.tar.gz  1.8 MB in 0.9 s
//
// Written with libcurl's easy interface as for a single file: each transfer is
// a call that blocks. Patched, it blocks nobody but its task; the disk is left
// to helper threads, which bao::stream sees to.
//
// A file gets its name, and replaces an older one, when it is whole. Until then
// it is called NAME.part-PID, and it goes when the transfer fails, be it for a
// full disk, or by Ctrl-C. The exit status is 0 when all files have come.
//
// Beside what the others need, it is compiled with -lcurl.
#include "bao.hpp"

#include <curl/curl.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

using namespace std::chrono_literals;

BAO_PATCH_ALL();

struct failure : std::runtime_error {
  using runtime_error::runtime_error;
};

// --- files -------------------------------------------------------------------

// A file that has its name only after keep().
class part_file {
 public:
  explicit part_file(const std::string& name)
      : name_(name), part_(name + ".part-" + std::to_string(::getpid())) {
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
    const int fd = ::open(part_.c_str(), flags, 0666);
    if (fd == -1) fail("open " + part_, errno);
    file_ = bao::stream(fd);
  }
  part_file(const part_file&) = delete;
  ~part_file() {
    if (!kept_) ::unlink(part_.c_str());
  }

  void write(const char* data, std::size_t n) try {
    file_.write_all(data, n);
  } catch (const std::system_error& e) {
    fail("write " + part_, e.code().value());
  }

  // What a disk has to say against a file, it may say as late as here.
  void keep() {
    const int error = bao::offload(
        [fd = file_.fd()] { return ::fsync(fd) == -1 ? errno : 0; });
    if (error != 0) fail("fsync " + part_, error);
    if (::close(file_.release()) == -1) fail("close " + part_, errno);
    if (::rename(part_.c_str(), name_.c_str()) == -1)
      fail("rename " + part_ + " to " + name_, errno);
    kept_ = true;
  }

 private:
  [[noreturn]] static void fail(const std::string& call, int error) {
    throw failure(call + ": " + std::strerror(error));
  }

  std::string name_, part_;
  bao::stream file_;
  bool kept_ = false;
};

// --- transfers ---------------------------------------------------------------

struct transfer {
  std::string url, name;
  CURL* curl = nullptr;
  part_file* file = nullptr;
  curl_off_t bytes = 0, size = -1;  // -1: nobody knows
  std::exception_ptr error = nullptr;
  bao::clock::time_point start = bao::now();

  double seconds() const {
    return std::chrono::duration<double>(bao::now() - start).count();
  }
};

// What follows the last / of the path.
std::string name_of(const std::string& url) {
  const std::unique_ptr<CURLU, void (*)(CURLU*)> parsed(curl_url(),
                                                        curl_url_cleanup);
  if (parsed == nullptr) throw std::bad_alloc();
  char* path = nullptr;
  CURLUcode error = curl_url_set(parsed.get(), CURLUPART_URL, url.c_str(), 0);
  if (error == CURLUE_OK)
    error = curl_url_get(parsed.get(), CURLUPART_PATH, &path, 0);
  if (error != CURLUE_OK) throw failure(curl_url_strerror(error));
  const std::unique_ptr<char, void (*)(void*)> owned(path, curl_free);
  const std::string name = std::strrchr(path, '/') + 1;
  if (name.empty() || name == "." || name == "..")
    throw failure("it does not end with the name of a file");
  return name;
}

// Called by libcurl, which exceptions must not cross: not even those by which
// tasks are killed. It gives up when we do not take what it has.
std::size_t on_data(char* data, std::size_t, std::size_t n, void* p) noexcept {
  transfer& t = *static_cast<transfer*>(p);
  try {
    t.file->write(data, n);
  } catch (...) {
    t.error = std::current_exception();
    return n + 1;
  }
  t.bytes += static_cast<curl_off_t>(n);
  curl_easy_getinfo(t.curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &t.size);
  return n;
}

void fetch(transfer& t) {
  const std::unique_ptr<CURL, void (*)(CURL*)> curl(curl_easy_init(),
                                                    curl_easy_cleanup);
  if (curl == nullptr) throw failure("curl_easy_init failed");
  part_file file(t.name);
  t.curl = curl.get();
  t.file = &file;

  char reason[CURL_ERROR_SIZE] = "";
  CURLcode result = CURLE_OK;
  const auto set = [&](CURLoption option, auto value) {
    if (result == CURLE_OK) result = curl_easy_setopt(t.curl, option, value);
  };
  set(CURLOPT_ERRORBUFFER, reason);
  set(CURLOPT_URL, t.url.c_str());
  set(CURLOPT_PROTOCOLS_STR, "http,https");
  set(CURLOPT_FOLLOWLOCATION, 1L);
  set(CURLOPT_MAXREDIRS, 10L);
  set(CURLOPT_FAILONERROR, 1L);  // what comes with "404" is not the file
  set(CURLOPT_CONNECTTIMEOUT, 30L);
  set(CURLOPT_LOW_SPEED_LIMIT, 1L);  // bytes a second ...
  set(CURLOPT_LOW_SPEED_TIME, 60L);  // ... for so long: nothing will come
  set(CURLOPT_NOSIGNAL, 1L);
  set(CURLOPT_QUICK_EXIT, 1L);  // wait for no name server when we give up
  set(CURLOPT_USERAGENT, "bao-download");
  set(CURLOPT_WRITEFUNCTION, on_data);
  set(CURLOPT_WRITEDATA, &t);
  if (const char* trusted = std::getenv("CURL_CA_BUNDLE"))
    set(CURLOPT_CAINFO, trusted);  // as curl itself does
  if (result == CURLE_OK) result = curl_easy_perform(t.curl);

  bao::yield();  // a kill that has ended the transfer is thrown here
  if (t.error != nullptr) std::rethrow_exception(t.error);
  if (result != CURLE_OK) {
    std::string text = *reason != '\0' ? reason : curl_easy_strerror(result);
    long error = 0;  // what the system said, of which libcurl does not tell
    curl_easy_getinfo(t.curl, CURLINFO_OS_ERRNO, &error);
    if (result == CURLE_COULDNT_CONNECT && error != 0)
      text += std::string(": ") + std::strerror(static_cast<int>(error));
    throw failure(text);
  }
  file.keep();
}

// --- what is to be seen ------------------------------------------------------

// Lines of what has happened; on a terminal, below them, one for each transfer
// that goes on, drawn again and again.
class screen {
 public:
  void say(std::FILE* to, const std::string& text) {
    erase();
    std::fprintf(to, "%s\n", text.c_str());
    std::fflush(to);
    draw();
  }
  void redraw() { erase(), draw(); }

  // As long as it lives, the transfer has a line.
  class line {
   public:
    line(screen& on, const transfer& t) : on_(on), t_(t) {
      on_.shown_.insert(&t_);
    }
    line(const line&) = delete;
    ~line() { on_.shown_.erase(&t_); }

   private:
    screen& on_;
    const transfer& t_;
  };

  static std::string megabytes(curl_off_t bytes) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1f MB",
                  static_cast<double>(bytes) / 1e6);
    return text;
  }

 private:
  void erase() {
    if (drawn_ != 0) std::printf("\x1b[%zuA\x1b[J", drawn_);
    drawn_ = 0;
  }
  void draw() {
    if (!terminal_) return;
    for (const transfer* t : shown_) {
      const std::string of = t->size > 0 ? " of " + megabytes(t->size) : "";
      std::printf("%.40s  %s%s\n", t->name.c_str(), megabytes(t->bytes).c_str(),
                  of.c_str());
    }
    drawn_ = shown_.size();
    std::fflush(stdout);
  }

  std::set<const transfer*> shown_;
  std::size_t drawn_ = 0;  // lines
  bool terminal_ = ::isatty(STDOUT_FILENO) == 1;
};

// --- all of them -------------------------------------------------------------

class downloads {
 public:
  // How many have come.
  std::size_t done() const { return done_; }

  void run(const std::vector<std::string>& urls) {
    bao::group drawing;
    drawing.spawn([this] {
      for (;; bao::sleep(200ms)) screen_.redraw();
    });
    bao::pool ten(10);
    for (const std::string& url : urls) ten.spawn([&] { download(url); });
    ten.join();
  }

 private:
  void download(const std::string& url) try {
    transfer t{url, name_of(url)};
    if (!names_.insert(t.name).second)
      throw failure("another file is called " + t.name + " as well");
    {
      const screen::line shown(screen_, t);
      fetch(t);
    }
    ++done_;
    char time[32];
    std::snprintf(time, sizeof time, " in %.1f s", t.seconds());
    screen_.say(stdout, t.name + "  " + screen::megabytes(t.bytes) + time);
  } catch (const std::exception& e) {
    screen_.say(stderr, "download: " + url + ": " + e.what());
  }

  screen screen_;
  std::set<std::string> names_;
  std::size_t done_ = 0;
};

int main(int argc, char** argv) {
  const std::vector<std::string> urls(argv + 1, argv + argc);
  if (urls.empty() || urls.front().rfind("-", 0) == 0) {
    std::fprintf(stderr, "usage: download URL...\n");
    return 2;
  }
  std::signal(SIGPIPE, SIG_IGN);  // a server that goes is an error, no end
  if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
    std::fprintf(stderr, "download: curl_global_init failed\n");
    return 1;
  }

  downloads all;
  int signal = 0;
  auto work = bao::spawn([&] { all.run(urls); });
  bao::spawn([&] {
    signal = bao::wait_signal({SIGINT, SIGTERM});
    work.kill();
  });
  work.join();
  if (signal == 0) return all.done() == urls.size() ? 0 : 1;
  std::fprintf(stderr, "download: stopped, %zu of %zu files have come\n",
               all.done(), urls.size());
  return 128 + signal;
}
