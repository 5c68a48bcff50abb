"""A download mirror on this machine, with the faults of real ones."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves `files`; can ignore ranges, cut answers short, and lie. `asked` lists (path, range header)."""

    def __init__(self):
        self.files = {"/file": CONTENT}
        self.ranges = True
        self.length = True
        self.cuts = []  # bytes after which the next answers break off
        self.content_range = None
        self.asked = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.asked.append((handler.path, wanted))
        body = self.files.get(handler.path)
        if body is None:
            handler.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        if start and start >= len(body):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", self.content_range or f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.length:
            handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        handler.wfile.write(body[start : start + self.cuts.pop(0)] if self.cuts else body[start:])
