"""Hooks of mkdocs for the docs site: the reference, its links to source files, and the address of the repository.

A page of `docs/reference/` lists names with a sentence each, so that it also reads well as a plain file. The site shows
that list with links, and the full description of each name below it.
"""

import functools
import re
from pathlib import Path
from typing import Any

from griffe import Alias, GriffeLoader, Object
from mkdocs.structure.files import File, Files

TOP = Path(__file__).resolve().parents[2]
REPOSITORY = "https://git.example.com/convoy"
"""Stands for the address of the repository in the pages; `repo_url` in mkdocs.yml replaces it on the site."""

SOURCE = "source"  # folder of the site for source files
SOURCE_PAGE = """---
search:
  exclude: true
hide: [toc]
---

# {path}

[This file in the repository]({address})

````python linenums="1"
{code}````
"""

ITEM = re.compile(r"^- `(engine[\w.]*)`: ((?:.|\n(?=  ))*)$", re.MULTILINE)
"""A name in the list of a page of the reference, with its sentence, which may continue on indented lines."""

FILE = re.compile(r"^<!-- file=(\S+)[^\n]*-->\n```\w+$", re.MULTILINE)
"""The mark and the fence of a file that a page lets its reader write."""

FIELDS_ONLY = {"engine.config.Config"}
"""Classes that no caller makes: their fields are shown, their signature is not."""

LINKS = {
    "jax.Array": "https://docs.jax.dev/en/latest/_autosummary/jax.Array.html",
    "jax.sharding.Mesh": "https://docs.jax.dev/en/latest/jax.sharding.html#jax.sharding.Mesh",
    "jax.typing.ArrayLike": "https://docs.jax.dev/en/latest/_autosummary/jax.typing.ArrayLike.html",
    "flax.nnx.Module": "https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/module.html#flax.nnx.Module",
    "flax.nnx.Rngs": "https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/rnglib.html#flax.nnx.Rngs",
    "numpy.ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html",
    "numpy.typing.ArrayLike": "https://numpy.org/doc/stable/reference/typing.html#numpy.typing.ArrayLike",
    "optax.GradientTransformation": "https://optax.readthedocs.io/en/latest/api/transformations.html#optax.GradientTransformation",
    "pathlib.Path": "https://docs.python.org/3/library/pathlib.html#pathlib.Path",
    "typing.Any": "https://docs.python.org/3/library/typing.html#typing.Any",
    "typing.Self": "https://docs.python.org/3/library/typing.html#typing.Self",
    "typing.Literal": "https://docs.python.org/3/library/typing.html#typing.Literal",
    **{
        f"collections.abc.{name}": f"https://docs.python.org/3/library/collections.abc.html#collections.abc.{name}"
        for name in ("Callable", "Iterable", "Iterator", "Mapping", "Sequence")
    },
}
"""Types of other packages in signatures. Their inventories are not read, so that a build needs no network."""


def items(text: str) -> list[tuple[str, str]]:
    """Returns the names that a page of the reference lists, each with its sentence."""
    return [(name, " ".join(sentence.split())) for name, sentence in ITEM.findall(text)]


def reference(text: str) -> str:
    """Returns a page of the reference with links in its lists, and the description of each name below its list."""
    parts = []
    for part in re.split(r"(?m)^(?=## )", text):
        found = items(part)
        linked = ITEM.sub(lambda item: f"- [`{item[1].rpartition('.')[2]}`][{item[1]}]: {item[2]}", part)
        parts.append(linked.rstrip() + "\n\n" + "\n".join(_directive(name) for name, _ in found))
    return "\n".join(parts)


def _directive(name: str) -> str:
    options = "\n    options:\n      show_signature: false" if name in FIELDS_ONLY else ""
    return f"::: {name}{options}\n"


@functools.cache
def _engine() -> GriffeLoader:
    """Returns a loader that has read the code of the engine, without importing it."""
    loader = GriffeLoader(search_paths=[TOP])
    loader.load("engine")
    loader.resolve_aliases(external=False)
    return loader


def source_file(name: str) -> str:
    """Returns the path of the file that defines a documented name, from the top of the repository."""
    found: Object | Alias = _engine().modules_collection[name]
    return str(Path(str(found.filepath)).relative_to(TOP))


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each source file that defines a documented name."""
    pages = [file for file in files.documentation_pages() if file.src_uri.startswith("reference/")]
    names = [name for page in pages for name, _ in items(page.content_string)]
    for path in sorted({source_file(name) for name in names}):
        code = (TOP / path).read_text(encoding="utf-8")
        text = SOURCE_PAGE.format(path=path, address=f"{config.repo_url}/blob/main/{path}", code=code)
        files.append(File.generated(config, f"{SOURCE}/{path.removesuffix('.py')}.md", content=text))
    return files


def on_env(env: Any, config: Any, **_: Any) -> None:
    """Registers the links of other packages, once no page can hide a name of the engine behind them."""
    for name, address in LINKS.items():
        config.plugins["autorefs"].register_url(name, address)


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Writes the pages of the reference, the names of files above their text, and the address of the repository."""
    if page.file.src_uri.startswith("reference/"):
        markdown = reference(markdown)
    markdown = FILE.sub(r'\g<0> title="\1"', markdown)
    return markdown.replace(REPOSITORY, config.repo_url)


def on_page_content(html: str, **_: Any) -> str:
    """Makes an empty corner of a table no header, which screen readers would announce without a name."""
    return re.sub(r"<th([^>]*)></th>", r"<td\1></td>", html)
