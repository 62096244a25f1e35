"""`import lepta` is quick, and its names are what type checkers and editors see."""

import ast
import subprocess
import sys
from pathlib import Path

import lepta


def test_names_for_type_checkers_are_those_that_are_loaded():
    tree = ast.parse(Path(lepta.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    assert {node.names[0].name: node.module for node in block.body} == lepta._HOME
    assert all(node.names[0].asname == node.names[0].name for node in block.body)  # what makes it a re-export
    assert set(lepta._HOME) <= set(dir(lepta))


def test_no_module_has_the_name_of_a_function():
    modules = {file.stem for file in Path(lepta.__file__).parent.iterdir()}
    assert modules.isdisjoint(lepta._HOME), "importing the module would replace the function"


def test_a_function_stays_one():
    from lepta import adapt as first
    from lepta import adapt as second

    assert callable(first) and first is second


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, lepta; assert not {'torch', 'numpy', 'pydantic', 'rich', 'typer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
