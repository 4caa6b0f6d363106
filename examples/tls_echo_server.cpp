// tls_echo_server.cpp - sends back whatever it is sent, encrypted on the way
//
//     openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost
//         -out cert.pem -keyout key.pem                    (in one line)
//     ./tls_echo_server 8443 cert.pem key.pem
//     listening on 127.0.0.1:8443
//
//     openssl s_client -connect 127.0.0.1:8443
//
// Each connection is a task that calls SSL_accept(), SSL_read() and SSL_write()
// as if they blocked. OpenSSL reads and writes its sockets by read() and
// write(); patched, these let the others run. Who is silent for a minute is
// shown the door: when the limit of a task passes, the call in which it waits
// fails.
//
// Beside what the others need, it is compiled with -lssl -lcrypto.
#include "bao.hpp"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/resource.h>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

using namespace std::chrono_literals;

BAO_PATCH_ALL();

constexpr auto patience = 60s;

struct failure : std::runtime_error {
  using runtime_error::runtime_error;
};

// --- OpenSSL -----------------------------------------------------------------

// What OpenSSL has to say of this thread's last failure. Its list of errors
// belongs to the thread, so take it before you wait.
std::string last_error() {
  const unsigned long error = ERR_peek_error();
  ERR_clear_error();
  if (error == 0) return "the connection ended";
  if (ERR_GET_LIB(error) == ERR_LIB_SYS)
    return std::strerror(ERR_GET_REASON(error));
  const char* const reason = ERR_reason_error_string(error);
  return reason != nullptr ? reason : "error " + std::to_string(error);
}

using ssl_context = std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)>;
using ssl_stream = std::unique_ptr<SSL, void (*)(SSL*)>;

ssl_context make_context(const char* certificate, const char* key) {
  ssl_context c(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (c == nullptr) throw failure("SSL_CTX_new: " + last_error());
  SSL_CTX_set_min_proto_version(c.get(), TLS1_2_VERSION);
  if (SSL_CTX_use_certificate_chain_file(c.get(), certificate) != 1)
    throw failure(std::string("certificate ") + certificate + ": " +
                  last_error());
  if (SSL_CTX_use_PrivateKey_file(c.get(), key, SSL_FILETYPE_PEM) != 1)
    throw failure(std::string("key ") + key + ": " + last_error());
  return c;
}

// --- the server --------------------------------------------------------------

// bao's sockets do not block: who works with one has to wait himself. OpenSSL
// is to find one that blocks, as from accept().
void let_block(int fd) {
  const int flags = bao::check(::fcntl(fd, F_GETFL), "fcntl");
  bao::check(::fcntl(fd, F_SETFL, flags & ~O_NONBLOCK), "fcntl");
}

// One connection, until it ends by itself or is too long silent.
void serve(SSL_CTX* context, bao::tcp_stream& peer) try {
  const std::string client = peer.peer_address().to_string();
  const ssl_stream ssl(SSL_new(context), SSL_free);
  if (ssl == nullptr) throw std::bad_alloc();
  let_block(peer.fd());
  if (SSL_set_fd(ssl.get(), peer.fd()) != 1)
    throw failure("SSL_set_fd: " + last_error());

  bao::timeout silence(patience);
  ERR_clear_error();
  if (SSL_accept(ssl.get()) != 1) {
    std::fprintf(stderr, "tls_echo_server: %s: SSL_accept: %s\n",
                 client.c_str(),
                 silence.expired() ? "too slow" : last_error().c_str());
    return;
  }
  char buffer[16 * 1024];
  for (;;) {
    silence.start(patience);
    const int n = SSL_read(ssl.get(), buffer, sizeof buffer);
    if (n <= 0) {
      if (SSL_get_error(ssl.get(), n) == SSL_ERROR_ZERO_RETURN)
        SSL_shutdown(ssl.get());  // the other end is through: so are we
      break;
    }
    silence.start(patience);
    if (SSL_write(ssl.get(), buffer, n) != n) break;
  }
  ERR_clear_error();
} catch (const std::system_error&) {
  // A client that breaks off at once is no concern of the others.
}

// A connection takes a descriptor, and the usual limit of 1024 is no more than
// a habit: the system lets us raise it.
void allow_many_descriptors() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a client that goes is an error, no end
  try {
    if (argc < 3 || argc > 4)
      throw std::invalid_argument("a certificate and its key are needed");
    const std::string port = argc == 4 ? argv[1] : "8443";
    const auto where = bao::address::parse("127.0.0.1:" + port);
    const ssl_context context = make_context(argv[argc - 2], argv[argc - 1]);
    allow_many_descriptors();
    bao::tcp_server server(
        where, [&](bao::tcp_stream& peer) { serve(context.get(), peer); });
    bao::spawn([&] {
      bao::wait_signal({SIGINT, SIGTERM});
      server.stop(1s);
    });
    bao::yield();  // from here on, signals are heard
    std::printf("listening on %s\n",
                server.local_address().to_string().c_str());
    std::fflush(stdout);
    server.serve();
  } catch (const std::invalid_argument& e) {
    std::fprintf(stderr,
                 "tls_echo_server: %s\n"
                 "usage: tls_echo_server [PORT] CERTIFICATE KEY\n",
                 e.what());
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "tls_echo_server: %s\n", e.what());
    return 1;
  }
}
