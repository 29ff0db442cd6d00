"""No two files import each other, and importing the package loads nothing. (`lint-imports` holds the rooms' order.)"""

from __future__ import annotations

import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import grimp


def test_no_two_files_import_each_other() -> None:
    graph = grimp.build_graph("trio_ray", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        raise AssertionError(f"these files import each other: {' -> '.join(error.args[1])}") from None


def test_importing_the_package_loads_no_library() -> None:
    """`import trio_ray` takes less than 0.2 s."""
    libraries = {"torch", "ray", "boto3", "transformers", "pyarrow", "pydantic", "numpy"}
    program = f"import sys, trio_ray; assert not {libraries} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_reading_a_cache_waits_neither_for_transformers_nor_for_ray() -> None:
    """They take longer to import than all else that a reader needs."""
    program = "import sys, trio_ray.cache.pruned_cache; assert not {'transformers', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
