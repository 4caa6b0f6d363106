# slow_server.py - called with a port of 127.0.0.1: answers slowly, and counts
#
#   /slow?with=N  a page that takes 0.3 s, and longer until N have been asked
#                 for, all in progress (10 s at most)
#   /never        a page that takes a minute
#   /now          how many are in progress
#   /most         how many have been at the most since this was asked last
import http.server
import socketserver
import sys
import threading
import time

change = threading.Condition()
now = most = 0


class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global now, most
        path, _, wanted = self.path.partition("?with=")
        if path == "/now":
            text = str(now)
        elif path == "/most":
            text, most = str(most), now
        else:
            with change:
                now += 1
                most = max(most, now)
                change.notify_all()
                if path == "/slow":
                    change.wait_for(lambda: most >= int(wanted), 10)
            time.sleep(0.3 if path == "/slow" else 60)
            with change:
                now -= 1
            text = "page of " + self.headers["Host"].split(":")[0]
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server(("127.0.0.1", int(sys.argv[1])), Pages).serve_forever()
