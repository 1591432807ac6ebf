"""Records commands in a terminal and draws what it shows: the part that the scripts of pictures share.

A picture is an SVG that loads nothing from a network. A film is an SVG with CSS animation; viewers that prefer reduced
motion get its last scene. Times are those of the recorded run, and waits can be shortened.
"""

import codecs
import dataclasses
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from rich.console import Console
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME as THEME
from rich.text import Text

TOP = Path(__file__).resolve().parents[2]
CHARACTER, LINE = 8.4, 18  # width of a character and height of a line in pixels, at FONT_SIZE
FONT_SIZE, BORDER, TITLE = 14, 14, 34
_CONSOLE = Console(width=1000)
_TOKEN = re.compile(r"\r\n|\n|\r|\x1b\[2K|\x1b\[\?25[lh]|[^\r\n\x1b]+|\x1b\[[0-9;]*m")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What a command printed at once, and when: seconds since its start."""

    at: float
    text: str


def record(
    command: Sequence[str], folder: Path, columns: int, kill_when: Callable[[str], bool] | None = None
) -> list[Chunk]:
    """Runs a command in a terminal of its own and returns what the terminal received.

    `kill_when` gets all output so far; when it returns True, the command and its children get SIGKILL.

    Raises:
        subprocess.CalledProcessError: the command failed, or ended before `kill_when` returned True.
    """
    path = os.pathsep.join(filter(None, (str(TOP), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "TERM": "xterm-256color", "COLUMNS": str(columns)}
    words = [sys.executable, "-m", "engine.cli.main", *command[1:]] if command[0] == "convoy" else list(command)
    ours, theirs = pty.openpty()
    decoder = codecs.getincrementaldecoder("utf-8")()
    chunks, received, killed, start = [], "", False, time.monotonic()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    with subprocess.Popen(words, cwd=folder, env=environment, start_new_session=True, **streams) as process:
        os.close(theirs)
        while data := _read(ours):
            chunks.append(Chunk(time.monotonic() - start, decoder.decode(data)))
            received += chunks[-1].text
            if kill_when and not killed and kill_when(received):
                os.killpg(process.pid, signal.SIGKILL)
                killed = True
    os.close(ours)
    if killed != bool(kill_when) or (process.returncode and not killed):
        raise subprocess.CalledProcessError(process.returncode, command, output=received)
    return chunks


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux: the command has closed its side
        return b""


@dataclasses.dataclass
class _Line:
    """A line of the terminal, from one moment of the film on; a redrawn line has an end."""

    row: int
    ansi: str
    start: float
    end: float | None = None


class Film:
    """A terminal that shows commands and their output, and scrolls.

    Args:
        columns: characters of a line; longer lines are wrapped.
        rows: lines that are visible at once.
    """

    def __init__(self, columns: int, rows: int):
        self.columns, self.rows = columns, rows
        self.now = 0.0
        self._lines: list[_Line] = []
        self._fresh = True  # the next text starts a new line

    def wait(self, seconds: float) -> None:
        """Shows the terminal for a while."""
        self.now += seconds

    def line(self, ansi: str) -> None:
        """Shows a line of text, which may have ANSI colours."""
        self._write(f"{ansi}\n")

    def play(self, chunks: Sequence[Chunk]) -> None:
        """Shows the output of a command at the speed at which it came."""
        start, rest = self.now, ""
        for chunk in chunks:
            self.now = start + chunk.at
            rest = self._write(rest + chunk.text)

    def _write(self, text: str) -> str:
        """Applies text to the terminal, and returns an escape sequence that is not complete yet."""
        cut = re.search(r"\x1b(\[[?0-9;]*)?$|\r$", text)
        rest, text = (text[cut.start() :], text[: cut.start()]) if cut else ("", text)
        for token in _TOKEN.findall(text):
            if token in ("\n", "\r\n"):
                self._extend("")
                self._fresh = True
            elif token == "\x1b[2K":
                self._redraw()
            elif token != "\r" and not token.startswith("\x1b[?"):
                self._extend(token)
        return rest

    def _extend(self, token: str) -> None:
        if self._fresh:
            self._lines.append(_Line(self._lines[-1].row + 1 if self._lines else 0, "", self.now))
            self._fresh = False
        line = self._lines[-1]
        line.ansi += token
        if "\x1b" not in line.ansi and len(line.ansi) > self.columns:
            line.ansi, rest = line.ansi[: self.columns], line.ansi[self.columns :]
            self._fresh = True
            self._extend(rest)

    def _redraw(self) -> None:
        if not self._fresh:
            line = self._lines[-1]
            line.end = self.now
            self._lines.append(_Line(line.row, "", self.now))

    def still(self, title: str) -> str:
        """Returns the last state of the terminal, with all its lines, as an SVG without motion."""
        lines = [line for line in self._lines if line.end is None]
        return _window(title, self.columns, lines[-1].row + 1, [], [_text(line) for line in lines])

    def svg(self, title: str) -> str:
        """Returns the film as an SVG. It repeats; those who prefer reduced motion see its end."""
        rules, body = [], []
        tops = [(0.0, 0)]  # the first visible row, from a moment on
        for index, line in enumerate(self._lines):
            if (top := line.row + 1 - self.rows) > tops[-1][1]:
                tops.append((line.start, top))
            shown = "" if line.end else ' class="last"'
            rules.append(f"#f{index} {{ animation-name: f{index} }}")
            moments = [(0.0, 0), (line.start, 1)] + ([(line.end, 0)] if line.end else [])
            rules.append(self._keyframes(f"f{index}", "opacity: {}", moments))
            body.append(f'<g id="f{index}"{shown}>{_text(line)}</g>')
        scroll = "transform: translateY({}px)"
        rules += [
            f"g {{ animation: {self.now:.1f}s step-end infinite; opacity: 0 }}",
            "#window, #scroll { opacity: 1 }",
            "#scroll { animation-name: scroll; " + scroll.format(-LINE * tops[-1][1]) + " }",
            self._keyframes("scroll", scroll, [(at, -LINE * top) for at, top in tops]),
            "@media (prefers-reduced-motion: reduce) { g { animation: none !important } .last { opacity: 1 } }",
        ]
        return _window(title, self.columns, self.rows, rules, body)

    def _keyframes(self, name: str, rule: str, moments: list[tuple[float, int]]) -> str:
        """Returns keyframes; the last value stays until the film begins again."""
        moments = [*moments, (self.now, moments[-1][1])]
        steps = (f"{100 * at / self.now:.2f}% {{ {rule.format(value)} }}" for at, value in moments)
        return f"@keyframes {name} {{ {' '.join(steps)} }}"


def _text(line: _Line) -> str:
    """Returns a line as an SVG text, with the colours of the terminal."""
    spans, column = [], 0
    for segment in Text.from_ansi(line.ansi).render(_CONSOLE):
        style, words = segment.style or Style(), segment.text.rstrip("\n")
        fill = style.color.get_truecolor(THEME).hex if style.color else THEME.foreground_color.hex
        weight = ' font-weight="bold"' if style.bold else ""
        if words.strip():
            place = f'x="{BORDER + column * CHARACTER:.1f}" textLength="{len(words) * CHARACTER:.1f}"'
            spans.append(f'<tspan {place} fill="{fill}"{weight}>{escape(words).replace(" ", "\xa0")}</tspan>')
        column += len(words)
    return f'<text y="{TITLE + (line.row + 1) * LINE}">{"".join(spans)}</text>'


def _window(title: str, columns: int, rows: int, rules: list[str], body: list[str]) -> str:
    """Returns a picture of a window with a dark background of its own."""
    width, height = round(2 * BORDER + columns * CHARACTER), TITLE + rows * LINE + BORDER
    font = f"text {{ font: {FONT_SIZE}px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }}"
    colours = enumerate(("#ff5f57", "#febc2e", "#28c840"))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        "<style>",
        font,
        *rules,
        "</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{THEME.background_color.hex}"/>',
        *(f'<circle cx="{20 + 20 * index}" cy="17" r="6" fill="{fill}"/>' for index, fill in colours),
        f'<clipPath id="text"><rect y="{TITLE + 4}" width="{width}" height="{rows * LINE + 4}"/></clipPath>',
        '<g id="window" clip-path="url(#text)"><g id="scroll">',
        *body,
        "</g></g>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
