"""The peak memory of a piece of work."""

import os

from compmem_research.bench import peak


def test_pages_have_the_size_that_the_system_tells(tmp_path, monkeypatch):
    status = tmp_path / "statm"
    status.write_text("100 7 3 1 0 50 0")
    monkeypatch.setattr(peak, "_STATUS", status)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 65_536}.__getitem__)
    assert peak._resident() == 7 * 65_536
