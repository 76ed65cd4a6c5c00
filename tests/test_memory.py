"""The C library is told once to give large pieces of memory back."""

from __future__ import annotations

import platform

import pytest

from engine.memory import settle_allocator


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_glibc_takes_the_setting() -> None:
    assert settle_allocator() is True


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    assert settle_allocator() is False
