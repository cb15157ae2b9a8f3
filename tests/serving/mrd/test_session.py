"""MRD sessions: the ismrmrd package as client, well-behaved and not."""

from __future__ import annotations

import itertools
import random
import resource
import struct
import time
from typing import Any

import numpy as np
import pytest
from ismrmrd import Acquisition, Image, Meta, Waveform
from ismrmrd.image import ImageHeader
from ismrmrd.serialization import ConfigText
from numpy.typing import NDArray

from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError, IntegrityError
from mednext_edge.serving.metrics import Metrics
from mednext_edge.serving.mrd.service import METRICS
from mednext_edge.serving.mrd.session import MrdServer
from mednext_edge.serving.mrd.wire import MrdLimits, Wire

from .streams import Memory, header, images, read, session, stream

NAMES = {"background": 0, "bright": 1}
FUZZ = 10_000


def bright(volume: Volume) -> NDArray[np.generic]:
    """An engine that labels what is brighter than 100."""
    return (volume.array[0] > 100).astype(np.uint8)


def server(answer: str = "labels", segment: Any = bright, **limits: Any) -> MrdServer:
    events: list[dict[str, Any]] = []

    def emit(event: str, level: str = "info", **fields: Any) -> None:
        events.append({"event": event, "level": level, **fields})

    made = MrdServer(segment, NAMES, answer, MrdLimits(**limits), Metrics(METRICS), emit)
    object.__setattr__(made, "events", events)
    return made


def answer(data: bytes, **options: Any) -> tuple[str, list[Any]]:
    connection = Memory(data, options.pop("piece", 2**30))
    outcome = server(**options).serve(connection)
    return outcome, read(bytes(connection.sent))


@pytest.fixture
def voxels() -> NDArray[np.uint16]:
    return np.random.default_rng(0).integers(0, 200, (4, 6, 5)).astype(np.uint16)


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "f4", "f8", "c8", "c16"])
@pytest.mark.parametrize("slabs", [False, True])
def test_labels_come_back_in_place(voxels: NDArray[np.uint16], dtype: str, slabs: bool) -> None:
    sent = images(voxels.astype(dtype), slabs=slabs)
    outcome, back = answer(stream(header(), *sent), piece=7)
    assert outcome == "done"
    assert len(back) == len(sent) == (1 if slabs else 4)
    for ours, theirs in zip(back, sent, strict=True):
        np.testing.assert_array_equal(ours.data, np.abs(theirs.data) > 100)
        assert ours.data.dtype == np.uint16
        for name in ("position", "read_dir", "phase_dir", "slice_dir", "field_of_view", "slice"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert (ours.image_series_index, ours.image_type) == (2, 1)
        meta = Meta.deserialize(ours.attribute_string)
        assert meta["DataRole"] == "Segmentation"
        assert (meta["Keep_image_geometry"], meta["IceMiniHead"]) == ("1", "abc")
        assert meta["ImageProcessingHistory"] == ["FIRE", "MEDNEXT_EDGE"]
        assert meta["SegmentLabels"] == ["0 background", "1 bright"]
        assert "not for diagnosis" in meta["ImageComments"]


def test_geometry_that_the_engine_sees(voxels: NDArray[np.uint16]) -> None:
    seen: list[Volume] = []

    def engine(volume: Volume) -> NDArray[np.generic]:
        seen.append(volume)
        return bright(volume)

    shuffled = images(voxels)
    shuffled = [shuffled[i] for i in (2, 0, 3, 1)]
    assert answer(stream(header(), *shuffled), segment=engine)[0] == "done"
    assert answer(stream(header(), *images(voxels, slabs=True, position=(3, -4, 13))), segment=engine)[0] == "done"
    for volume in seen:
        np.testing.assert_array_equal(volume.array[0], voxels)
        np.testing.assert_allclose(volume.spacing, (2, 1, 1.5), rtol=1e-6)
        # The middle of the volume is where the client says, in LPS there and RAS here.
        middle = volume.affine @ [(5 - 1) / 2, (6 - 1) / 2, (4 - 1) / 2, 1]
        np.testing.assert_allclose(middle[:3], [-3, 4, 13], atol=1e-5)


def test_overlay(voxels: NDArray[np.uint16]) -> None:
    asked = '{"parameters": {"config": "x", "output": "overlay"}}'
    for data, options in ((session(voxels), {"answer": "overlay"}), (session(voxels, asked), {})):
        outcome, back = answer(data, **options)
        assert outcome == "done"
        meta = Meta.deserialize(back[0].attribute_string)
        assert meta["DataRole"] == "Image"
        pixels = np.stack([image.data[0, 0] for image in back])
        assert (pixels == 4095).any() and ((pixels == 4095) <= (voxels > 100)).all()


@pytest.mark.parametrize("words", ["", "no JSON", "[]", '{"parameters": 3}', '{"parameters": {"output": "os.system"}}'])
def test_parameters_that_mean_nothing_change_nothing(voxels: NDArray[np.uint16], words: str) -> None:
    outcome, back = answer(session(voxels, words))
    assert outcome == "done"
    assert Meta.deserialize(back[0].attribute_string)["DataRole"] == "Segmentation"


def test_volumes_are_kept_apart(voxels: NDArray[np.uint16]) -> None:
    both = [*images(voxels), *images(voxels // 2, contrast=1), *images(voxels, image_type=2)]
    random.Random(0).shuffle(both)
    outcome, back = answer(stream(header(), *both))
    assert outcome == "done"
    assert sorted(image.image_series_index for image in back) == [2] * 4 + [3] * 4


@pytest.mark.parametrize("data", [b"", stream(), stream(header()), stream(ConfigText("<x/>")), stream("hello")])
def test_empty_and_header_less_sessions(data: bytes) -> None:
    assert answer(data) == ("empty", [])


def test_raw_data_is_read_and_dropped(voxels: NDArray[np.uint16]) -> None:
    acquisition = Acquisition.from_array(np.ones((2, 16), np.complex64), np.ones((16, 2), np.float32))
    waveform = Waveform.from_array(np.ones((2, 30), np.uint32))
    outcome, back = answer(stream(header(), acquisition, waveform, *images(voxels)))
    assert outcome == "done"
    assert back[0].startswith("WRN 2 raw data messages")
    assert len(back) == 5


def engine_fails(volume: Volume) -> NDArray[np.generic]:
    raise DataError("the engine does not like it")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found[:1] + found[2:], "1 missing"),
        (lambda found: [*found, found[0]], "share"),
        (lambda found: images(np.ones((2, 3, 4), np.float32) * np.nan), "NaN"),
        (lambda found: images(np.ones((2, 3, 4), np.uint16), read_dir=(0, 0, 0)), "unit vectors"),
        (lambda found: images(np.ones((2, 3, 4), np.uint16), field_of_view=(0, 0, 0)), "over 0"),
        (lambda found: [Image.from_array(np.ones((3, 1, 4, 4), np.uint16))], "3 channels"),
    ],
)
def test_what_is_no_volume_is_said_to_the_scanner(voxels: NDArray[np.uint16], change: Any, words: str) -> None:
    outcome, back = answer(stream(header(), *change(images(voxels))))
    assert outcome == "refused"
    (text,) = back
    assert text.startswith("ERR ") and words in text


def test_errors_of_the_engine(voxels: NDArray[np.uint16]) -> None:
    assert "does not like it" in answer(session(voxels), segment=engine_fails)[1][0]

    def tampered(volume: Volume) -> NDArray[np.generic]:
        raise IntegrityError("changed")

    with pytest.raises(IntegrityError):
        answer(session(voxels), segment=tampered)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (struct.pack("<H", 9), "id"),
        (struct.pack("<H", 3) + b"\xff", "truncated"),
        (struct.pack("<HI", 3, 2**32 - 1), "size"),
        (struct.pack("<HI", 5, 4) + b"\xff\xfe\xfd\xfc", "text"),
        (struct.pack("<H", 1022) + bytes(198) + struct.pack("<Q", 2**63), "size"),
        (struct.pack("<H", 1022) + bytes(198) + struct.pack("<Q", 0), "image"),
        (struct.pack("<H", 1) + b"x" * 100, "truncated"),
    ],
)
def test_streams_that_are_none(data: bytes, kind: str) -> None:
    outcome, back = answer(data)
    assert outcome == kind
    assert len(back) == 1 and back[0].startswith("ERR")


def test_limits(voxels: NDArray[np.uint16]) -> None:
    data = session(voxels)
    assert answer(data, planes=3)[0] == "size"
    assert answer(data, image_bytes=239)[0] == "size"
    assert answer(data, image_bytes=240)[0] == "done"
    assert answer(data, text_bytes=10)[0] == "size"
    big = bytearray(stream(Acquisition.from_array(np.ones((2, 16), np.complex64))))
    assert answer(bytes(big), raw_bytes=100)[0] == "size"
    assert answer(data, session_s=1e-9)[0] == "timeout"


def test_entities_in_attributes_are_not_expanded(voxels: NDArray[np.uint16]) -> None:
    entity = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]>'
    bomb = f"{entity}<ismrmrdMeta><meta><name>&a;</name><value>1</value></meta></ismrmrdMeta>"
    client = Memory(b"")
    for image in images(voxels):
        Wire(client, MrdLimits()).send_image(ImageHeader.from_buffer_copy(image.getHead()), bomb, image.data)
    outcome, back = answer(bytes(client.sent))
    assert outcome == "done"
    assert len(back) == 4
    assert "aaaa" not in back[0].attribute_string


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A stream that is damaged in one of the ways that networks, bugs and strangers have."""
    data = bytearray(rng.choice(seeds))
    kind = rng.randrange(6)
    if kind == 0:
        del data[rng.randrange(len(data)) :]
    elif kind == 1:
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:  # in the first message's head, where the lengths are
        at = rng.randrange(min(len(data), 1300))
        data[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 2**16, 2**31, 2**32 - 1)))
    elif kind == 3:
        at, end = sorted(rng.randrange(len(data)) for _ in range(2))
        del data[at:end]
    elif kind == 4:
        at = rng.randrange(len(data))
        data[at:at] = rng.choice(seeds)[: rng.randrange(1, 300)]
    else:
        data = bytearray(rng.randbytes(rng.randrange(1, 500)))
    return bytes(data)


def test_malformed_streams_neither_crash_nor_hang_nor_grow(voxels: NDArray[np.uint16]) -> None:
    small = voxels[:2, :3, :3]
    seeds = [
        session(small),
        stream(header(), *images(small.astype(np.complex64), slabs=True)),
        stream(*images(small)),
        stream(Acquisition.from_array(np.ones((1, 8), np.complex64)), '{"parameters": {"output": "overlay"}}'),
    ]
    rng = random.Random(2)
    serving = server(text_bytes=2**16, image_bytes=2**22)
    outcomes: dict[str, int] = {}
    slowest, grown = 0.0, 0
    for number in range(FUZZ):
        start = time.monotonic()
        outcome = serving.serve(Memory(mutated(rng, seeds)))
        slowest = max(slowest, time.monotonic() - start)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if number == FUZZ // 10:
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            serving.events.clear()  # type: ignore[attr-defined]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown
    assert sum(outcomes.values()) == FUZZ
    assert {"done", "empty", "refused", "truncated", "id", "size", "image", "text"} <= set(outcomes)
    assert grown < 64 * 1024, f"{grown} KiB more after {FUZZ} streams"
    assert slowest < 30, "a stream without an end"


def test_every_truncation_ends_in_an_answer(voxels: NDArray[np.uint16]) -> None:
    whole = session(voxels[:2, :2, :2])
    ends = {server().serve(Memory(whole[:size])) for size in itertools.chain(range(60), range(60, len(whole), 7))}
    assert ends <= {"empty", "truncated", "done", "refused"}
    assert {"empty", "truncated"} <= ends
