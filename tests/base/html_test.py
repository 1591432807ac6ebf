from engine.base import html


def test_table_escapes_its_cells():
    text = html.table([("a<b", "1"), ()], header=("name", "value & more"), title="<t>")
    assert text == (
        '<table><caption>&lt;t&gt;</caption><thead><tr><th scope="col" style="text-align: left">name</th>'
        '<th style="text-align: left">value &amp; more</th></tr></thead><tbody><tr><th scope="row" '
        'style="text-align: left">a&lt;b</th><td style="text-align: left">1</td></tr></tbody></table>'
    )


def test_paragraph_keeps_its_lines():
    assert html.paragraph("a\n  b<") == '<p style="white-space: pre-wrap">a\n  b&lt;</p>'
