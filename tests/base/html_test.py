from engine.base import html


def test_table_escapes_its_cells():
    text = html.table([("a<b", "1"), ()], header=("name", "value & more"), title="<t>")
    style = 'style="text-align: left; white-space: pre-wrap"'
    assert text == (
        f'<table><caption>&lt;t&gt;</caption><thead><tr><th scope="col" {style}>name</th>'
        f'<th {style}>value &amp; more</th></tr></thead><tbody><tr><th scope="row" '
        f"{style}>a&lt;b</th><td {style}>1</td></tr></tbody></table>"
    )


def test_paragraph_keeps_its_lines():
    assert html.paragraph("a\n  b<") == '<p style="white-space: pre-wrap">a\n  b&lt;</p>'
