// with_openssl.cpp - OpenSSL, unmodified and in blocking style, in tasks
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../checks.hpp"
#include "bao.hpp"
#include "servers.hpp"

BAO_PATCH_ALL();

namespace {

// --- what knows nothing of bao

using context = std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)>;

// With a certificate of its own.
context make_server() {
  context made(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(
      EVP_PKEY_Q_keygen(nullptr, nullptr, "EC", "P-256"), EVP_PKEY_free);
  const std::unique_ptr<X509, decltype(&X509_free)> paper(X509_new(),
                                                          X509_free);
  X509_gmtime_adj(X509_getm_notBefore(paper.get()), 0);
  X509_gmtime_adj(X509_getm_notAfter(paper.get()), 86400);
  X509_set_pubkey(paper.get(), key.get());
  const std::string name = "localhost";
  X509_NAME* const who = X509_get_subject_name(paper.get());
  X509_NAME_add_entry_by_txt(
      who, "CN", MBSTRING_ASC,
      reinterpret_cast<const unsigned char*>(name.data()), -1, -1, 0);
  X509_set_issuer_name(paper.get(), who);
  X509_sign(paper.get(), key.get(), EVP_sha256());
  SSL_CTX_use_certificate(made.get(), paper.get());
  SSL_CTX_use_PrivateKey(made.get(), key.get());
  return made;
}

// That trusts nobody but this server.
context make_client(const context& of) {
  context made(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
  SSL_CTX_set_verify(made.get(), SSL_VERIFY_PEER, nullptr);
  X509_STORE_add_cert(SSL_CTX_get_cert_store(made.get()),
                      SSL_CTX_get0_certificate(of.get()));
  return made;
}

// A connection, with a small buffer so that who writes has to wait.
class connection {
 public:
  connection(const context& of, int fd)
      : fd_(fd), tls_(SSL_new(of.get()), SSL_free) {
    const int small = 8192;
    ::setsockopt(fd_, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    SSL_set_fd(tls_.get(), fd_);
  }
  connection(const connection&) = delete;
  ~connection() {
    SSL_shutdown(tls_.get());
    ::close(fd_);
  }

  bool accept() { return SSL_accept(tls_.get()) == 1; }
  bool connect() { return SSL_connect(tls_.get()) == 1; }
  bool write(const std::string& text) {
    return SSL_write(tls_.get(), text.data(), static_cast<int>(text.size())) ==
           static_cast<int>(text.size());
  }
  // n bytes; or less, and why.
  std::string read(std::size_t n) {
    std::string text;
    char bytes[4096];
    while (text.size() < n) {
      errno = 0;
      const int got = SSL_read(tls_.get(), bytes, sizeof bytes);
      if (got <= 0) {
        const int why = errno;
        const int how = SSL_get_error(tls_.get(), got);
        return text + "error " + std::to_string(how) + ": " +
               std::strerror(why);
      }
      text.append(bytes, static_cast<std::size_t>(got));
    }
    return text;
  }

 private:
  const int fd_;
  const std::unique_ptr<SSL, decltype(&SSL_free)> tls_;
};

sockaddr* any(sockaddr_in& of) { return reinterpret_cast<sockaddr*>(&of); }

// A listening socket, and where.
struct door {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};

  door() {
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ::bind(fd, any(at), sizeof at);
    ::listen(fd, 400);
    socklen_t length = sizeof at;
    ::getsockname(fd, any(at), &length);
  }
  door(const door&) = delete;
  ~door() { ::close(fd); }

  int accept() { return ::accept(fd, nullptr, nullptr); }
  int connect() {
    const int made = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ::connect(made, any(at), sizeof at);
    return made;
  }
};

constexpr std::size_t size = 100'000;

// Gives back what it is sent, once all have met.
void echo(connection& client, const std::function<void()>& meet) {
  if (!client.accept()) return;
  meet();
  client.write(client.read(size));
}

std::string ask(connection& server, int i, const std::function<void()>& meet) {
  if (!server.connect()) return "no handshake";
  meet();
  std::string text = std::to_string(i);
  text.insert(0, size - text.size(), 'x');
  return server.write(text) ? server.read(size) : "not written";
}

// ---

// Who says goodbye to one who has gone is to get an error, not a signal.
const auto pipe_signal = ::signal(SIGPIPE, SIG_IGN);
const context server = make_server();
const context client = make_client(server);

}  // namespace

TEST_CASE("a server has two hundred clients at the same time") {
  constexpr int n = 200;
  crowd met;
  bao::event all_here;
  const auto meet = [&] {
    met.enter();
    if (met.now() == 2 * n) all_here.set();
    all_here.wait(patience);
  };
  door at;
  bao::group sessions;
  sessions.spawn([&] {
    for (int i = 0; i < n; ++i)
      sessions.spawn([&, fd = at.accept()] {
        connection with(server, fd);
        echo(with, meet);
      });
  });
  const auto job = [&](int i) {
    connection with(client, at.connect());
    return ask(with, i, meet);
  };
  const answers all = at_once(n, job, [] {});
  sessions.join();
  CHECK(met.most() == 2 * n);
  for (int i = 0; i < n; ++i) {
    const std::string& text = all[static_cast<std::size_t>(i)];
    CHECK(text.size() == size);
    CHECK(text.substr(text.rfind('x') + 1) == std::to_string(i));
  }

  // Two plain threads, one client after the other.
  std::thread serving([&] {
    for (int i = 0; i < 3; ++i) {
      connection with(server, at.accept());
      echo(with, [] {});
    }
  });
  const auto alone = one_by_one(3, [&](int i) {
    connection with(client, at.connect());
    return ask(with, i, [] {});
  });
  serving.join();
  CHECK((alone == first(3, all)));
}

TEST_CASE("a kill or a limit ends SSL_read by an error") {
  door at;
  bool inside = false;
  const auto call = [&] {
    connection with(client, at.connect());
    if (!with.connect()) return std::string("no handshake");
    inside = true;
    return with.read(1);
  };
  const auto serve = [&] {
    connection with(server, at.accept());
    if (with.accept()) with.read(1);
  };
  const int before = open_descriptors();
  for (const bool kill : {true, false}) {
    auto serving = bao::spawn(serve);
    bao::yield();
    inside = false;
    // 5 is SSL_ERROR_SYSCALL.
    if (kill)
      CHECK(killed_within(call, [&] { return inside; }) ==
            "error 5: Operation canceled");
    else
      CHECK(limited_within(call) == "error 5: Connection timed out");
    CHECK(serving.join(patience));
  }
  CHECK(open_descriptors() == before);
}
