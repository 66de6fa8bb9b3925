"""Memory is given back by those who can, and nobody is kept alive for it."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
from holdfast.resources.heap import trim_heap
from holdfast.resources.release import Registry, owners_of, release


class Cache:
    def __init__(self, num_bytes: int | None = 5) -> None:
        self.num_bytes, self.num_asked = num_bytes, 0

    def release_memory(self) -> int | None:
        self.num_asked += 1
        return self.num_bytes


class Broken:
    def release_memory(self) -> int:
        raise RuntimeError("not now")


def test_each_is_asked_and_its_bytes_are_told_by_name():
    found = release([Cache(5), Cache(7), Cache(None)])
    assert found["Cache"] == 12
    assert found["process"] >= 0


def test_one_that_fails_does_not_keep_others_from_giving():
    found = release([Broken(), Cache(3)])
    assert found["Cache"] == 3
    assert found["Broken (RuntimeError('not now'))"] == 0


def test_what_is_registered_dies_as_it_would():
    registry, cache = Registry(), Cache()
    registry.register(cache)
    registry.register(cache)
    assert registry.things == [cache]
    del cache
    gc.collect()
    assert registry.things == []


def test_what_cannot_give_back_is_refused_by_name():
    with pytest.raises(TypeError, match=r"list cannot be registered: it has no method release_memory"):
        Registry().register([])
    with pytest.raises(TypeError, match="type"):
        Registry().register(Cache)


def test_all_a_trainer_has_is_asked_once_and_a_monitor_stands_for_what_it_knows():
    module, data, callback, thing = Cache(), Cache(), Cache(), Cache()
    monitor = SimpleNamespace(registered=[thing, data], release_memory=lambda: 0)
    trainer = SimpleNamespace(
        lightning_module=module, datamodule=data, callbacks=[callback, monitor, object()]
    )
    assert owners_of(trainer) == [module, data, callback, thing]


def test_trimming_the_heap_is_harmless_where_it_does_nothing(monkeypatch):
    trim_heap()
    loaded = []
    monkeypatch.setattr("ctypes.CDLL", loaded.append)
    monkeypatch.setattr("sys.platform", "darwin")
    trim_heap()
    assert loaded == []
