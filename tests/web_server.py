"""A web server on this machine with the faults of servers elsewhere."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """`files` by name, and what goes wrong with the next requests.

    `cut_after` ends that many responses after so many bytes; `statuses` are answered first.
    """

    files: dict[str, bytes]
    url: str = ""
    knows_ranges: bool = True
    has_versions: bool = True
    tells_size: bool = True
    range_text: str = "bytes {start}-{end}/{size}"
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    pause_s: float = 0.0
    stalls: int = 0
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    after_request: list = field(default_factory=list)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.partition("?")[0].removeprefix("/")
        span = handler.headers.get("Range")
        self.requests.append((name, span))
        if self.statuses:
            handler.send_error(self.statuses.pop(0))
            return
        if name not in self.files:
            handler.send_error(404)
            return
        self._send(handler, self.files[name], span)
        if self.after_request:
            self.after_request.pop(0)()

    def _send(self, handler: BaseHTTPRequestHandler, content: bytes, span: str | None) -> None:
        version = f'"{hash(content)}"'
        start = int(span.removeprefix("bytes=").partition("-")[0]) if span else 0
        expected = handler.headers.get("If-Range", version)
        if not self.knows_ranges or expected != version:
            start, span = 0, None
        handler.send_response(206 if span else 200)
        if span:
            end, size = len(content) - 1, len(content)
            place = self.range_text.format(start=start, end=end, size=size)
            handler.send_header("Content-Range", place)
        if self.tells_size:
            handler.send_header("Content-Length", str(len(content) - start))
        if self.has_versions:
            handler.send_header("ETag", version)
        handler.end_headers()
        stop = start + self.cuts.pop(0) if self.cuts else len(content)
        if self.stalls:
            self.stalls -= 1
            time.sleep(5)
        for position in range(start, min(stop, len(content)), 2**16):
            handler.wfile.write(content[position : min(position + 2**16, stop)])
            time.sleep(self.pause_s)


@contextmanager
def serving(files: dict[str, bytes], **faults: object) -> Iterator[Server]:
    """Serve `files` while the block runs."""
    server = Server(files, **faults)  # type: ignore[arg-type]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.close_connection = True
            with suppress(BrokenPipeError, ConnectionResetError):  # the reader has enough
                server.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listener.server_port}"
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
