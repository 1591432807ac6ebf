"""Notebooks as pages of the site."""

import types

from tools.build import notebook_pages

NOTEBOOK = {
    "cells": [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "Text."]},
        {
            "cell_type": "code",
            "source": ["print('```')\n", "figure"],
            "metadata": {"alt": "A curve."},
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["a\n", "b\n"]},
                {"output_type": "display_data", "data": {"image/png": ["aGk=\n"]}},
                {"output_type": "display_data", "data": {"text/html": ["<p>one\n", " \n", "two</p>"]}},
                {"output_type": "display_data", "data": {"text/plain": ["(1, 2)"]}},
            ],
        },
    ]
}
PAGE = """# Title

Text.

[Download this notebook](first.ipynb)

````python
print('```')
figure
````

```text
a
b
```

<img alt="A curve." src="data:image/png;base64,aGk=">

<div class="notebook-output"><p>one
two</p></div>

```text
(1, 2)
```
"""


def test_page_has_the_cells_and_their_outputs():
    assert notebook_pages.page(NOTEBOOK, "first.ipynb") == PAGE


def test_links_of_other_pages_lead_to_the_page_of_a_notebook():
    def shown(name):
        page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=name))
        return notebook_pages.on_page_markdown("[a](notebooks/first-run.ipynb), [b](x.md)", page=page)

    assert shown("python.md") == "[a](notebooks/first-run.md), [b](x.md)"
    assert shown("notebooks/first-run.md") == "[a](notebooks/first-run.ipynb), [b](x.md)"
