"""Runs the Python code of README.md and docs/ as tests: the blocks of a page one after another, in an empty folder."""

import os
import tempfile
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


def _enter(namespace: dict[str, Any]) -> None:
    folder = tempfile.TemporaryDirectory()
    namespace.update(_folder=folder, _before=os.getcwd())
    os.chdir(folder.name)


def _leave(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_before"])
    namespace["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["docs/*.md", "README.md"], setup=_enter, teardown=_leave
).pytest()
