"""The titles and quoted messages of the FAQ are texts that the source contains and prints."""

import ast
import dataclasses

import pytest

from tests.docs import pages

FAQ = pages.ROOT / "docs" / "faq.md"


@dataclasses.dataclass(frozen=True)
class Entry:
    title: str
    commands: list[str]
    text: str


def entries() -> list[Entry]:
    found = []
    for part in FAQ.read_text().split("\n### ")[1:]:
        blocks = {block.language: block.text for block in pages.blocks(part)}
        title = part.partition("\n")[0].strip("`")
        found.append(Entry(title, blocks.get("bash", "").splitlines(), blocks.get("text", "").strip()))
    return found


def source_texts() -> str:
    """Returns all text constants of the engine and the models, with `{}` for each value in an f-string."""
    texts = []
    for file in (path for folder in ("engine", "models") for path in sorted((pages.ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_titles_occur_in_the_source():
    source = source_texts()
    assert [entry.title for entry in entries() if entry.title not in source] == []


@pytest.mark.parametrize("entry", [entry for entry in entries() if entry.commands], ids=lambda entry: entry.title)
def test_last_command_of_each_entry_fails_with_the_quoted_text(entry, tmp_path):
    *before, last = entry.commands
    for command in before:
        assert pages.run(command, tmp_path).returncode == 0, command
    done = pages.run(last, tmp_path)
    assert done.returncode != 0
    assert entry.title in entry.text
    assert entry.text in done.stderr
