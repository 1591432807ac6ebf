"""Draws the badges of the README from pyproject.toml, so that they need no network: python docs/images/badges.py"""

import tomllib
from pathlib import Path
from xml.sax.saxutils import escape

IMAGES = Path(__file__).parent
TOP = IMAGES.parents[1]
CHARACTER, PADDING, HEIGHT = 6.6, 8, 20  # pixels; the width of a character is a mean of common fonts at 11 px


def badges() -> dict[str, str]:
    """Returns the name of each file -> its SVG."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    versions = [entry.rpartition(" ")[2] for entry in project["classifiers"] if entry.startswith("Programming")]
    return {
        "badge-version.svg": badge("version", project["version"], "#0969da"),
        "badge-python.svg": badge("python", " | ".join(versions), "#1a7f37"),
        "badge-docs.svg": badge("docs", "read", "#8250df"),
    }


def badge(label: str, value: str, colour: str) -> str:
    """Returns a label on grey beside a value on a colour."""
    left, right = (round(len(text) * CHARACTER + 2 * PADDING) for text in (label, value))
    texts = "".join(
        f'<text x="{x}" y="14" textLength="{len(text) * CHARACTER:.0f}">{escape(text)}</text>'
        for x, text in ((left / 2, label), (left + right / 2, value))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="{HEIGHT}" role="img">'
        f"<title>{label}: {escape(value)}</title>"
        f'<clipPath id="round"><rect width="{left + right}" height="{HEIGHT}" rx="3"/></clipPath>'
        f'<g clip-path="url(#round)"><rect width="{left}" height="{HEIGHT}" fill="#57606a"/>'
        f'<rect x="{left}" width="{right}" height="{HEIGHT}" fill="{colour}"/></g>'
        '<g fill="#fff" font-family="Verdana, DejaVu Sans, sans-serif" font-size="11" text-anchor="middle">'
        f"{texts}</g></svg>\n"
    )


if __name__ == "__main__":
    for name, picture in badges().items():
        (IMAGES / name).write_text(picture)
