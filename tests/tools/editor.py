"""What an editor shows: hover texts and problems of a file, from pyright's language server.

The server finds the packages as in an editor: by the `python` that is first on PATH.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Editor:
    """A language server for the Python file `file`, with the packages of the environment `environment`."""

    def __init__(self, file: Path, environment: Path):
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        variables["PATH"] = os.pathsep.join([str(environment / "bin"), variables["PATH"]])
        # The server itself needs the packages of this process; the interpreter that it asks for packages runs alone.
        start = f"import sys; sys.path[:] = {sys.path!r}; from pyright.langserver import main; main('--stdio')"
        self._process = subprocess.Popen(
            [sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables, cwd=file.parent
        )
        self._uri = file.as_uri()
        self._problems: list[str] | None = None
        self._answers: dict[int, Any] = {}
        self._count = 0
        folder = file.parent.as_uri()
        self._ask("initialize", processId=None, rootUri=folder, capabilities={}, workspaceFolders=None)
        self._send("initialized")
        opened = {"uri": self._uri, "languageId": "python", "version": 1, "text": file.read_text()}
        self._send("textDocument/didOpen", textDocument=opened)

    def hover(self, line: int, character: int) -> str:
        """Returns what is shown for the name at a place: its signature and docstring; "" for an unknown name."""
        at = {"line": line, "character": character}
        shown = self._ask("textDocument/hover", textDocument={"uri": self._uri}, position=at)
        return shown["contents"]["value"] if shown else ""

    def problems(self) -> list[str]:
        """Returns the errors and warnings of the file."""
        while self._problems is None:
            self._read()
        return self._problems

    def close(self) -> None:
        """Ends the server."""
        self._ask("shutdown")
        self._send("exit")
        self._process.communicate(timeout=60)

    def _ask(self, method: str, **parameters: object) -> Any:
        self._count += 1
        self._write({"id": self._count, "method": method, "params": parameters or None})
        while self._count not in self._answers:
            self._read()
        return self._answers.pop(self._count)

    def _send(self, method: str, **parameters: object) -> None:
        self._write({"method": method, "params": parameters})

    def _write(self, message: dict[str, object]) -> None:
        assert self._process.stdin is not None
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self._process.stdin.flush()

    def _read(self) -> None:
        """Reads one message of the server: an answer, or news."""
        assert self._process.stdout is not None
        size = 0
        while line := self._process.stdout.readline().strip():
            name, _, value = line.partition(b":")
            size = int(value) if name.lower() == b"content-length" else size
        assert size, f"the language server has ended with {self._process.wait()}"
        message = json.loads(self._process.stdout.read(size))
        if message.get("method") == "textDocument/publishDiagnostics":
            found = message["params"]["diagnostics"]
            self._problems = [f"{each['range']['start']['line'] + 1}: {each['message']}" for each in found]
        elif "method" not in message:
            self._answers[message["id"]] = message["result"]


@contextlib.contextmanager
def opened(file: Path, environment: Path) -> Iterator[Editor]:
    """Yields an editor of `file`, which is closed at the end."""
    editor = Editor(file, environment)
    try:
        yield editor
    finally:
        editor.close()
