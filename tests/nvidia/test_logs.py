"""TensorRT's messages in Python's log."""

from __future__ import annotations

import logging

import pytest

from mednext_edge.nvidia.logs import collected, logger
from tests.nvidia.fake_tensorrt import ILogger, fake_module


def test_one_logger_for_a_module() -> None:
    module = fake_module()
    assert logger(module) is logger(module)
    assert isinstance(logger(module), ILogger)
    assert logger(fake_module()) is not logger(module)


def test_errors_are_collected_and_warnings_are_said(caplog: pytest.LogCaptureFixture) -> None:
    module = fake_module()
    log = logger(module)
    with caplog.at_level(logging.WARNING, logger="mednext_edge.nvidia"), collected(module) as lines:
        for severity in ILogger.Severity:
            log.log(severity, severity.name)
    log.log(ILogger.ERROR, "afterwards")
    assert lines == ["INTERNAL_ERROR", "ERROR"]
    assert caplog.messages == ["WARNING"]


def test_collections_may_be_nested() -> None:
    module = fake_module()
    with collected(module) as outer:
        with collected(module) as inner:
            logger(module).log(ILogger.ERROR, "first")
        logger(module).log(ILogger.ERROR, "second")
    assert (outer, inner) == (["first", "second"], ["first"])


def test_everything_is_there_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="mednext_edge.nvidia"):
        logger(fake_module()).log(ILogger.VERBOSE, "detail")
    assert caplog.messages == ["detail"]


def test_the_same_warning_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """It comes for each layer of a network, and again for each architecture."""
    log = logger(fake_module())
    with caplog.at_level(logging.WARNING, logger="mednext_edge.nvidia"):
        for message in ("scales become float32", "another", "scales become float32"):
            log.log(ILogger.WARNING, message)
    assert caplog.messages == ["scales become float32", "another"]
