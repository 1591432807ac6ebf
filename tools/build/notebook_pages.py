"""Shows the notebooks of the docs as pages of the site: a hook of MkDocs, named in mkdocs.yml.

`notebooks/first-run.ipynb` becomes the page `notebooks/first-run.md`, with its stored outputs; nothing is executed.
Links to a notebook lead to its page, which has a link to the file.
"""

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

_LINK = re.compile(r"(\]\([\w./-]+)\.ipynb\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds a page for each notebook."""
    from mkdocs.structure.files import File

    for file in [each for each in files if each.src_uri.endswith(".ipynb")]:
        path = PurePosixPath(file.src_uri)
        text = page(json.loads(Path(file.abs_src_path).read_text(encoding="utf-8")), path.name)
        files.append(File.generated(config, str(path.with_suffix(".md")), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lets links to notebooks lead to their pages."""
    return markdown if page.file.src_uri.startswith("notebooks/") else _LINK.sub(r"\1.md)", markdown)


def page(notebook: dict[str, Any], name: str) -> str:
    """Returns a notebook as Markdown with HTML; `name` is that of its file."""
    first, *others = [_cell(cell) for cell in notebook["cells"]]
    return "\n\n".join([first, f"[Download this notebook]({name})", *others]) + "\n"


def _cell(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    return "\n\n".join([_fenced(source, "python"), *(_output(each, cell["metadata"]) for each in cell["outputs"])])


def _output(output: dict[str, Any], metadata: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return _fenced("".join(output["text"]), "text")
    data = {kind: "".join(text) for kind, text in output["data"].items()}
    if "image/png" in data:
        return f'<img alt="{metadata.get("alt", "")}" src="data:image/png;base64,{data["image/png"].strip()}">'
    if "text/html" in data:
        html = re.sub(r"\n\s*\n", "\n", data["text/html"])  # an empty line would end the HTML
        return f'<div class="notebook-output">{html}</div>'
    return _fenced(data["text/plain"], "text")


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, *(len(found) + 1 for found in re.findall("`+", text)), 0)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
