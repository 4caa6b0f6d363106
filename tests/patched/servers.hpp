// servers.hpp - real servers, and jobs for them that know nothing of bao
#pragma once

#include <glob.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "../io_tools.hpp"
#include "bao.hpp"

using namespace std::chrono_literals;

// No test is late by this unless something hangs.
constexpr auto patience = 60s;

// Asks time and again, while the other tasks run.
template <class Condition>
void until(Condition condition) {
  bao::timeout limit(patience);
  while (!condition()) bao::sleep(5ms);
}

// --- jobs --------------------------------------------------------------------

using answers = std::vector<std::string>;

// What job(0) to job(n - 1) answer, each called by a task of its own, all of
// this thread. Meanwhile we call conduct().
template <class Job, class Conduct>
answers at_once(int n, Job job, Conduct conduct) {
  answers all(static_cast<std::size_t>(n));
  bao::group tasks;
  for (int i = 0; i < n; ++i)
    tasks.spawn([&, i] { all[static_cast<std::size_t>(i)] = job(i); });
  conduct();
  tasks.join();
  return all;
}

// The same from n jobs that a plain thread calls, one after the other.
template <class Job>
answers one_by_one(int n, Job job) {
  answers all;
  std::thread([&] {
    for (int i = 0; i < n; ++i) all.push_back(job(i));
  }).join();
  return all;
}

inline answers first(std::size_t n, answers all) {
  all.resize(n);
  return all;
}

// Whether so many are open, in a while: others may be about to close theirs.
inline bool come_back_to(int descriptors) {
  const bao::deadline limit = 10s;
  while (open_descriptors() != descriptors) {
    if (limit.passed()) return false;
    bao::sleep(1ms);
  }
  return true;
}

// What a call answers in a task that is killed when it is `inside`: it returns,
// all that it had is given back, and the next wait of bao's throws.
template <class Call, class Inside>
std::string killed_within(Call call, Inside inside) {
  const int before = open_descriptors();
  std::string answer = "it has not returned";
  auto t = bao::spawn([&] {
    answer = call();
    bao::yield();
    answer += ", and the task went on";
  });
  until(inside);
  if (!t.kill(patience)) answer += ", and the task has not ended";
  if (!t.killed()) answer += ", and the task was not killed";
  if (!come_back_to(before)) answer += ", and descriptors are left";
  return answer;
}

// The same where a limit passes.
template <class Call>
std::string limited_within(Call call) {
  const int before = open_descriptors();
  std::string answer;
  {
    bao::timeout limit(400ms);
    answer = call();
    try {
      bao::yield();
      answer += ", and the task went on";
    } catch (const bao::timed_out&) {
    }
  }
  bao::yield();
  if (!come_back_to(before)) answer += ", and descriptors are left";
  return answer;
}

// --- servers -----------------------------------------------------------------

// Where servers are, even if those who test do not look there.
inline const std::vector<std::string>& search_path() {
  static const std::vector<std::string> all = [] {
    const char* const ours = ::getenv("PATH");
    std::vector<std::string> found;
    std::stringstream parts(ours == nullptr ? "/usr/bin:/bin" : ours);
    for (std::string part; std::getline(parts, part, ':');)
      found.push_back(part);
    found.insert(found.end(), {"/usr/sbin", "/sbin", "/usr/lib/rabbitmq/bin"});
    glob_t versions;
    if (::glob("/usr/lib/postgresql/*/bin", 0, nullptr, &versions) == 0)
      found.insert(found.end(), versions.gl_pathv,
                   versions.gl_pathv + versions.gl_pathc);
    ::globfree(&versions);
    return found;
  }();
  return all;
}

// Says so, once, where one of these programs is missing; false then.
inline bool here(std::initializer_list<const char*> programs) {
  static std::vector<std::string> told;
  bool all = true;
  for (const std::string program : programs) {
    bool found = false;
    for (const std::string& folder : search_path())
      found |= ::access((folder + '/' + program).c_str(), X_OK) == 0;
    all &= found;
    if (found || std::find(told.begin(), told.end(), program) != told.end())
      continue;
    std::printf("left out: %s is not here\n", program.c_str());
    told.push_back(program);
  }
  return all;
}

// Three of 127.0.0.1 that nobody has.
inline std::vector<std::string> free_ports() {
  std::vector<std::string> found;
  std::vector<bao::tcp_listener> doors;
  for (int i = 0; i < 3; ++i) {
    const std::string at =
        doors.emplace_back("127.0.0.1:0").local_address().to_string();
    found.push_back(at.substr(at.rfind(':') + 1));
  }
  return found;
}

// A server that runs for as long as this lives: a script of sh's, in a new
// folder, given $port, $port2 and $port3. It ends by `signal`, and what it has
// started with it, and the folder is removed, also when we are killed: sh waits
// until nobody can write to its input any more.
class server_process {
 public:
  explicit server_process(const std::string& script,
                          const std::string& signal = "KILL") {
    std::string path;
    for (const std::string& part : search_path()) path += part + ':';
    static const char* const keeper = R"(
cd "$1" || exit
setsid sh -ec "$3" >log 2>&1 </dev/null &
server=$!
read nothing
tries=0
while kill -s "$2" "$server" && [ $tries -lt 400 ]; do
  sleep 0.05
  tries=$((tries + 1))
done
kill -s KILL -- "-$server"
cd /
rm -rf "$1"
)";
    keeper_ = bao::process(
        {"setsid", "sh", "-c", keeper, "keeper", folder_, signal, script},
        bao::process_options()
            .env("PATH", path)
            .env("port", ports_[0])
            .env("port2", ports_[1])
            .env("port3", ports_[2])
            .stdout_to("/dev/null")
            .stderr_to("/dev/null"));
  }
  server_process(const server_process&) = delete;
  ~server_process() {
    keeper_.in().close();
    while (::waitpid(keeper_.pid(), nullptr, 0) == -1 && errno == EINTR) {
    }
  }

  int port() const { return std::stoi(ports_[0]); }
  const std::string& folder() const { return folder_; }

  // Waits until it answers: until then, ask() is false.
  template <class Ask>
  server_process& ready(Ask ask) {
    const bao::deadline until = 30s;
    while (!answers_ && !(answers_ = ask())) {
      if (until.passed()) {
        std::ifstream log(folder_ + "/log");
        throw std::runtime_error(
            "a server does not answer:\n" +
            std::string(std::istreambuf_iterator<char>(log), {}));
      }
      bao::sleep(20ms);
    }
    return *this;
  }
  server_process& ready() {
    return ready([this] {
      try {
        bao::connect("127.0.0.1:" + ports_[0], 5s);
        return true;
      } catch (const std::system_error&) {
        return false;
      }
    });
  }

 private:
  static std::string make_folder() {
    char name[] = "/tmp/bao_patched_XXXXXX";
    if (::mkdtemp(name) == nullptr) bao::throw_errno("mkdtemp");
    return name;
  }

  const std::string folder_ = make_folder();
  const std::vector<std::string> ports_ = free_ports();
  bao::process keeper_;
  bool answers_ = false;
};
