"""The scripts of "Read a checkpoint without Convoy" use public names of other libraries only."""

import ast
import sys

import pytest

from tests.docs import pages

PAGE = pages.ROOT / "docs" / "read-a-checkpoint.md"
OF_THE_RUN = {"deep.py", "lora.py"}  # the model and the config, which need the engine
LIBRARIES = {"jax", "numpy", "orbax", "safetensors", "tensorstore", "xxhash"}
SCRIPTS = {str(block.value("file")): block.text for block in pages.files(PAGE)}


@pytest.mark.parametrize("name", sorted(SCRIPTS.keys() - OF_THE_RUN))
def test_scripts_import_neither_the_engine_nor_private_names(name):
    imported, names = set[str](), set[str]()
    for node in ast.walk(ast.parse(SCRIPTS[name])):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
    own = {file.removesuffix(".py") for file in SCRIPTS.keys() - OF_THE_RUN}
    assert {module.partition(".")[0] for module in imported} <= LIBRARIES | own | set(sys.stdlib_module_names)
    assert [private for private in {*names, *".".join(imported).split(".")} if private.startswith("_")] == []


def test_scripts_compare_arrays_with_the_export():
    compared = [name for name, text in SCRIPTS.items() if "np.array_equal" in text]
    assert compared == ["with_orbax.py", "two_devices.py", "with_tensorstore.py", "frozen.py"]


def test_every_script_is_run():
    commands = " ".join(pages.commands(PAGE))
    assert [name for name in SCRIPTS.keys() - OF_THE_RUN if f"python {name}" not in commands] == []
