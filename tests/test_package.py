from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ssl_seg

ROOT = Path(__file__).parents[1]


def test_public_names_are_there() -> None:
    for name in ssl_seg.__all__:
        value = getattr(ssl_seg, name)
        assert callable(value), name
        assert value.__doc__, name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ssl_seg.no_such_name


def test_public_names_do_not_depend_on_the_order_of_imports() -> None:
    code = (
        "import ssl_seg.cli.train, ssl_seg.run.training, ssl_seg.results.evaluation\n"
        "import ssl_seg.results.prediction, ssl_seg\n"
        "assert all(callable(getattr(ssl_seg, name)) for name in ssl_seg.__all__)\n"
        "import sys; assert 'monai' not in sys.modules  # it takes longer to load than torch"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_wheel_carries_the_configurations_and_works_outside_the_checkout(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    configs = {
        f"ssl_seg/configs/{p.relative_to(ROOT / 'configs').as_posix()}" for p in (ROOT / "configs").rglob("*.yaml")
    }
    assert configs
    assert configs <= set(names)
    assert "ssl_seg/py.typed" in names
    assert not any(name.startswith(("tests", "scripts", "data_splits")) for name in names)
    done = subprocess.run(
        [sys.executable, "-c", "import ssl_seg, sys; print(ssl_seg.__file__)\n"
         "from ssl_seg.cli.main import main; sys.argv = ['ssl-seg', 'config', 'check', 'emps']; main()"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(tmp_path / "installed") in done.stdout
    assert f"{tmp_path / 'installed' / 'ssl_seg' / 'configs' / 'emps.yaml'}: ok" in done.stdout
