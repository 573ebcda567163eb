"""The documentation of the Python standard library as documents, from `inspect`.

There is one document for each module, class, method and function, with its full name, signature and docstring.
"""

import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Final

from compmem.schema import Document

MODULES: Final = tuple(
    """abc argparse ast asyncio atexit base64 bdb binascii bisect bz2 calendar cmath cmd code codeop collections
    collections.abc colorsys compileall concurrent.futures configparser contextlib contextvars copy copyreg cProfile
    csv dataclasses datetime dbm difflib dis email email.encoders email.header email.mime.text email.parser
    email.utils enum errno filecmp fileinput fnmatch fractions ftplib functools gc getopt getpass gettext glob
    graphlib gzip hashlib heapq hmac html html.parser http http.client http.cookiejar http.cookies http.server
    importlib importlib.machinery importlib.metadata importlib.util inspect io ipaddress itertools json json.decoder
    json.encoder keyword linecache locale logging logging.config logging.handlers lzma mailbox marshal math mimetypes
    modulefinder multiprocessing multiprocessing.connection multiprocessing.managers multiprocessing.pool
    multiprocessing.shared_memory netrc numbers operator os.path pathlib pdb pickle pickletools pkgutil plistlib
    posixpath pprint profile pstats py_compile pyclbr pydoc queue quopri random re reprlib rlcompleter runpy sched
    secrets select selectors shelve shlex shutil signal site smtplib socket socketserver sqlite3 ssl stat statistics
    string struct subprocess symtable sys sysconfig tabnanny tarfile tempfile textwrap threading time timeit tokenize
    trace traceback tracemalloc types unittest unittest.mock urllib.error urllib.parse urllib.request
    urllib.robotparser uuid warnings wave weakref webbrowser wsgiref.headers wsgiref.simple_server wsgiref.util
    wsgiref.validate xml.dom xml.dom.pulldom xml.etree.ElementTree xml.sax xml.sax.saxutils xmlrpc.client
    xmlrpc.server zipapp zipfile zipimport zlib zoneinfo""".split()
)
"""Modules that can be imported without visible effects; those that this Python lacks are left out."""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def documents() -> Iterator[Document]:
    """The documents, in the order of the modules."""
    for name in MODULES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue
            found = list(_of_module(name, module))
        yield from found


def _of_module(name: str, module: ModuleType) -> Iterator[Document]:
    """The module's own document, then those of its members."""
    if doc := _doc(module):
        yield _document(name, f"The {name} module", "module", doc)
    for member, thing in _public(module):
        full = f"{name}.{member}"
        if isinstance(thing, type):
            yield from _of_class(full, thing)
        elif doc := _doc(thing):
            yield _document(full, full, "function", f"{_signature(full, thing)}\n{doc}")


def _of_class(name: str, cls: type) -> Iterator[Document]:
    bases = ", ".join(_qualified(base) for base in cls.__bases__ if base is not object)
    line = f"class {name.rpartition('.')[2]}({bases})" if bases else f"class {name.rpartition('.')[2]}"
    yield _document(name, name, "class", f"{line}\n{_signature(name, cls)}\n{_doc(cls)}")
    for member in sorted(vars(cls)):
        thing = getattr(cls, member, None)
        shown = not member.startswith("_") and (inspect.isroutine(thing) or isinstance(thing, property))
        if shown and (doc := _doc(thing)):
            yield _document(f"{name}.{member}", f"{name}.{member}", "method", f"{_signature(member, thing)}\n{doc}")


def _document(id: str, title: str, kind: str, text: str) -> Document:
    return Document(id=id, title=title, text=text.strip() + "\n", metadata={"kind": kind})


def _public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The module's own public members, sorted by name, without imported ones."""
    offered = getattr(module, "__all__", None)
    for name in sorted(offered if offered is not None else vars(module)):
        thing = getattr(module, name, None)
        home = getattr(thing, "__module__", None)
        if offered is None and (name.startswith("_") or home not in (module.__name__, f"_{module.__name__}")):
            continue
        if inspect.isclass(thing) or inspect.isroutine(thing):
            yield name, thing


def _qualified(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _signature(name: str, thing: object) -> str:
    try:
        shown = str(inspect.signature(thing))  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return ""
    if "<weakref" in shown:  # a default value of this process, not of the library
        return ""
    return name.rpartition(".")[2] + _ADDRESS.sub("", shown)


def _doc(thing: object) -> str:
    own = getattr(thing, "__doc__", None)
    return _ADDRESS.sub("", inspect.cleandoc(own)) if isinstance(own, str) else ""
