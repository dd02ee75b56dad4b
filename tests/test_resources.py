"""What the machine is said to have."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from regiongrid.resources import processor

CPUINFO = "processor\t: 0\nvendor_id\t: Maker\nmodel name\t: Maker M1: 2 GHz \nprocessor\t: 1\nmodel name\t: Other\n"


@pytest.mark.parametrize(
    ("cpuinfo", "said"),
    [(CPUINFO, "Maker M1: 2 GHz"), ("processor\t: 0\nBogoMIPS\t: 243.75\n", "arm64"), (None, "arm64")],
    ids=["the first of two", "a file without names", "no file"],
)
def test_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpuinfo: str | None, said: str) -> None:
    file, opened = tmp_path / "cpuinfo", Path.open
    if cpuinfo is not None:
        file.write_text(cpuinfo)

    def instead(path: Path, *how: Any, **options: Any) -> Any:
        assert path == Path("/proc/cpuinfo")
        return opened(file, *how, **options)

    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(Path, "open", instead)
    assert processor() == said
