"""Checksums that are left to restore."""

from __future__ import annotations

import pytest

from tests.kv.prefixes import codec_of, contained, random_prefix
from trio_ray.kv.container import CHECKSUM_DIFFERS, CheckedContainer, check_containers, checksum
from trio_ray.kv.header import ContainerError
from trio_ray.kv.prefix import Prefix
from trio_ray.kv.restore import start_restore


@pytest.mark.parametrize("name", ["raw", "int4"])
def test_a_sample_with_another_checksum_is_refused_and_the_others_are_restored(name: str) -> None:
    codec = codec_of(name)
    containers = [contained(random_prefix(rows=(9, 6, 5)), codec) for _ in range(3)]
    outcomes = check_containers([(None, data) for data in containers], codec)
    sound = [outcome for outcome in outcomes if isinstance(outcome, CheckedContainer)]
    sums = [checksum(containers[0]), checksum(containers[0][:-1]), None]
    first, second, third = start_restore(sound, codec, checksums=sums).finish()
    assert isinstance(first, Prefix)
    assert isinstance(second, ContainerError)
    assert str(second) == CHECKSUM_DIFFERS
    assert isinstance(third, Prefix)
