"""The glossary is short and sorted, and defines only terms that the docs or the engine use."""

import re

from tests.docs import pages

GLOSSARY = pages.ROOT / "docs" / "glossary.md"
MOST_TERMS = 60

TERMS = re.findall(r"^- \*\*(.+?)\*\*: ", GLOSSARY.read_text(), re.MULTILINE)


def test_glossary_has_at_most_60_terms():
    assert 0 < len(TERMS) <= MOST_TERMS


def test_glossary_is_in_alphabetical_order():
    assert sorted(TERMS, key=str.casefold) == TERMS


def test_each_entry_defines_a_different_term():
    entries = re.findall(r"^- ", GLOSSARY.read_text(), re.MULTILINE)
    assert len({term.casefold() for term in TERMS}) == len(entries)


def test_each_term_is_used_in_another_page_or_in_the_engine():
    files = [page for page in pages.PAGES if page != GLOSSARY] + sorted((pages.ROOT / "engine").rglob("*.py"))
    text = "\n".join(file.read_text() for file in files).casefold().replace("_", " ")
    assert [term for term in TERMS if not re.search(rf"\b{re.escape(term.casefold())}(s|es)?\b", text)] == []
