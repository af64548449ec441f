"""scripts/slice_volumes.py: a data set that the package reads, with the slices of each labeled volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from slice_volumes import slice_volumes

from ssl_seg.data.catalog import open_catalog
from ssl_seg.data.store import CaseStore
from ssl_seg.data.volumes import write_mask


def test_each_slice_is_that_of_its_volume(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volumes = {name: rng.integers(0, 255, (depth, 16, 20), np.uint8) for name, depth in (("a", 9), ("b", 4), ("c", 9))}
    for name, volume in volumes.items():
        (tmp_path / "volumes" / "images").mkdir(parents=True, exist_ok=True)
        write_mask(tmp_path / "volumes" / "images" / f"{name}.tif", volume)
        if name != "c":  # has no mask
            write_mask(tmp_path / "volumes" / "masks" / f"{name}.tif", np.uint8(255) * (volume > 127))
    assert slice_volumes(str(tmp_path / "volumes"), tmp_path / "slices", range(2, 9, 3)) == 4
    catalog = open_catalog(str(tmp_path / "slices"))
    store = CaseStore(catalog, channels=1, max_bytes=0)
    assert [(case.id, case.group) for case in catalog.labeled] == [(f"a_0{z}", "a") for z in (2, 5, 8)] + [
        ("b_02", "b")
    ]
    for case in catalog.labeled:
        whole, expected = store.load_whole(case.id), volumes[case.id[0]][int(case.id[2:])]
        np.testing.assert_array_equal(whole.image[0], expected)
        np.testing.assert_array_equal(whole.target, expected > 127)
