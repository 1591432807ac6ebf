"""A server that answers like Hugging Face for one repository: its revision, the list of its files, and the files."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

import pytest

NAME = "timm/tiny.a1_in1k"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET and HEAD. `files` are those of the repository, `asked` the paths of the files that were sent."""

    files: Mapping[str, bytes] = {}
    asked: list[str]

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        start, resolved = f"/api/models/{NAME}", f"/{NAME}/resolve/{COMMIT}/"
        names = [{"rfilename": name} for name in self.files]
        if path in (start, f"{start}/revision/main", f"{start}/revision/{COMMIT}"):
            self._json({"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": names})
        elif path == f"{start}/tree/{COMMIT}":
            self._json([{"type": "file", "path": n, "size": len(x), "oid": etag(x)} for n, x in self.files.items()])
        elif (name := path.removeprefix(resolved)) in self.files and path.startswith(resolved):
            if self.command == "GET":
                self.asked.append(name)
            self._answer(200, self.files[name], {"ETag": f'"{etag(self.files[name])}"', "X-Repo-Commit": COMMIT})
        else:
            code = "RevisionNotFound" if path.startswith(start) else "RepoNotFound"
            self._answer(404, b"", {"X-Error-Code": code, "X-Error-Message": code})

    do_HEAD = do_GET  # noqa: N815, the name is that of http.server

    def log_message(self, format, *args):
        """Prints nothing."""

    def _json(self, content):
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, code, body, headers):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def etag(content: bytes) -> str:
    """Returns the identity of a file's content."""
    return hashlib.sha1(content).hexdigest()


@contextlib.contextmanager
def hub_server(files: Mapping[str, bytes], cache: str) -> Iterator[list[str]]:
    """Serves files as the repository NAME to this process, with an empty cache; yields the list of files sent."""
    handler = type("Handler", (Handler,), {"files": files, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        import huggingface_hub.constants as constants  # which reads the environment when it is imported

        address = f"http://127.0.0.1:{server.server_port}"
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", cache)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            patch.delenv(name, raising=False)
        try:
            yield handler.asked
        finally:
            server.shutdown()
