from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timedelta
from importlib.metadata import version

import pytest

from mednext_edge import environment as module
from mednext_edge.environment import Environment, environment


def test_figures_are_plausible() -> None:
    found = environment()
    assert datetime.fromisoformat(found.date).utcoffset() == timedelta(0)
    assert 1 <= found.usable_cores <= found.logical_cores
    assert found.memory_gb > 0.1
    assert found.cpu
    assert found.python == platform.python_version()
    assert found.packages["torch"] == version("torch")
    assert Environment.model_validate_json(found.model_dump_json()) == found


def test_tells_nothing_of_who_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "ward-7")
    monkeypatch.setattr(platform, "release", lambda: "5.15.0-9-customer-site")
    found = environment()
    assert found.platform == f"{platform.system()} 5.15.0 {platform.machine()}"
    text = found.model_dump_json()
    assert "ward-7" not in text and "customer" not in text and sys.prefix not in text


def test_packages_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))
    assert environment().packages.keys() == {"torch"}


def test_imports_nothing_that_it_names() -> None:
    script = (
        "import sys, mednext_edge.environment as e; e.environment(); "
        "print(*({'openvino', 'nncf', 'onnx', 'onnxruntime', 'torch', 'monai'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not done.stdout.split()
