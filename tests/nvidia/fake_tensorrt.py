"""The builder half of TensorRT's Python API without a GPU: it parses real ONNX and writes a plan that can be read.

A plan is `FAKEPLAN`, one line of JSON that says what it was built for, and the ONNX graph with its weights.

Names, arguments and answers are those of the real bindings: test_fake_tensorrt.py compares them with the installed
ones. What 10 and 11 differ in, the fakes of 10 and 11 differ in.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx

MAGIC = b"FAKEPLAN"
CACHE = b"FAKECACHE"
RTX_CAPABILITIES = {"NONE": 0, "CURRENT": 1, "SM75": 75, "SM80": 80, "SM86": 86, "SM89": 89, "SM120": 120, "SM121": 121}


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        start: words that are logged when no builder can be made.
        parse: the parser's errors as (node, operator, words).
        build: words that are logged when the build fails.
        tried: words that are logged as errors by a build that succeeds.
        cache_lost: no timing cache can be made from bytes, not even an empty one.
    """

    start: str = ""
    parse: list[tuple[str, str, str]] = field(default_factory=list)
    build: str = ""
    tried: str = ""
    cache_lost: bool = False


def read_plan(file: Path) -> SimpleNamespace:
    """What a plan says it was built for, and `onnx`, its graph."""
    content = file.read_bytes()
    assert content.startswith(MAGIC)
    head, _, graph = content[len(MAGIC) :].partition(b"\n")
    return SimpleNamespace(**json.loads(head), onnx=onnx.load_from_string(graph))


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class _Trampoline:
    """Bindings refuse a subclass that does not call its base's `__init__`."""

    def __init__(self) -> None:
        self._bound = True

    @classmethod
    def _check(cls, thing: object) -> None:
        if not isinstance(thing, cls) or not getattr(thing, "_bound", False):
            raise TypeError(f"__init__(): incompatible constructor arguments, found {thing!r}")


class ILogger(_Trampoline):
    Severity = Severity
    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO
    VERBOSE = Severity.VERBOSE

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor(_Trampoline):
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class LayerInformationFormat(enum.Enum):
    ONELINE = 0
    JSON = 1


class BuilderFlag(enum.Enum):
    """Without the FP16 and INT8 of TensorRT 10, which a strongly typed network must not be built with."""

    TF32 = 7
    VERSION_COMPATIBLE = 15


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self._value = value

    @property
    def name(self) -> str:
        return str(self._value.name)

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = self._value.type.tensor_type.shape.dim
        return tuple(size.dim_value if size.HasField("dim_value") else -1 for size in sizes)


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self._model: onnx.ModelProto | None = None

    @property
    def num_inputs(self) -> int:
        return 0 if self._model is None else len(self._model.graph.input)

    def get_input(self, index: int) -> ITensor:
        assert self._model is not None, "the network is empty"
        return ITensor(self._model.graph.input[index])


class ParserError:
    def __init__(self, node: str, operator: str, words: str) -> None:
        self._node, self._operator, self._words = node, operator, words

    def desc(self) -> str:
        return self._words

    def node_name(self) -> str:
        return self._node

    def node_operator(self) -> str:
        return self._operator


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        self._shapes[input] = (tuple(min), tuple(opt), tuple(max))

    def _ordered(self) -> bool:
        return all(
            a <= b <= c for low, usual, high in self._shapes.values() for a, b, c in zip(low, usual, high, strict=True)
        )


class ITimingCache:
    def __init__(self, owner: str, builds: int) -> None:
        self._owner, self._builds = owner, builds

    def serialize(self) -> IHostMemory:
        return IHostMemory(CACHE + json.dumps([self._owner, self._builds]).encode())


def fake_module(version: str = "10.3.0", *, rtx: bool = False, arch: str = "8.6", **faults: Any) -> ModuleType:
    """A module that builds.

    Args:
        version: of the module; 10 knows weakly typed networks, and levels of compatibility as they came.
        rtx: TensorRT for RTX, which builds for the compute capability that is asked for.
        arch: the GPU of the fake machine, which TensorRT builds for.
        faults: of `Faults`.
    """
    module: Any = ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    module.__version__ = version
    wrong = Faults(**faults)
    numbers = tuple(int(part) for part in version.split("."))
    owner = f"{version} on {arch}"
    levels = {"NONE": 0, "AMPERE_PLUS": 1}
    if rtx or numbers >= (10, 9):
        levels["SAME_COMPUTE_CAPABILITY"] = 2
    HardwareCompatibilityLevel: Any = enum.Enum("HardwareCompatibilityLevel", levels)  # type: ignore[misc]
    # The flag moved to the front once explicit batches needed no word any more.
    strongly_typed_bit = 0 if rtx or numbers[0] > 10 else 1
    NetworkDefinitionCreationFlag: Any = enum.IntEnum(
        "NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": strongly_typed_bit}
    )
    ComputeCapability: Any = enum.IntEnum("ComputeCapability", RTX_CAPABILITIES)  # type: ignore[misc]

    class IBuilderConfig:
        __slots__ = (
            "_cache",
            "_capability",
            "_flags",
            "_pools",
            "_profiles",
            "builder_optimization_level",
            "hardware_compatibility_level",
            "num_compute_capabilities",
            "profiling_verbosity",
            "progress_monitor",
        )

        def __init__(self) -> None:
            self._flags = {BuilderFlag.TF32}
            self._pools: dict[MemoryPoolType, int] = {}
            self._profiles: list[IOptimizationProfile] = []
            self._cache: ITimingCache | None = None
            self._capability: Any = None
            self.builder_optimization_level = 3
            self.hardware_compatibility_level = HardwareCompatibilityLevel["NONE"]
            self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
            self.progress_monitor: IProgressMonitor | None = None
            if rtx:
                self.num_compute_capabilities = 0

        def set_flag(self, flag: BuilderFlag) -> None:
            self._flags.add(flag)

        def clear_flag(self, flag: BuilderFlag) -> None:
            self._flags.discard(flag)

        def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
            self._pools[pool] = pool_size

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            if not profile._ordered():
                return -1
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
            if not serialized_timing_cache:
                return ITimingCache(owner, 0)
            if wrong.cache_lost:
                return None
            if not serialized_timing_cache.startswith(CACHE):
                say(ILogger.WARNING, "Failed to deserialize timing cache. Returning an empty timing cache.")
                return ITimingCache(owner, 0)
            return ITimingCache(*json.loads(serialized_timing_cache[len(CACHE) :]))

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            if cache._owner != owner and not ignore_mismatch:
                return False
            self._cache = cache
            return True

        if rtx:

            def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
                if not 0 <= index < self.num_compute_capabilities:
                    return False
                self._capability = ComputeCapability(compute_capability)
                return True

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
            ILogger._check(logger)
            assert isinstance(network, INetworkDefinition)
            self._network = network
            self._errors: list[ParserError] = []

        def parse_from_file(self, model: str) -> bool:
            assert self._network._model is None, "a model was parsed before"
            path = Path(model)
            if not path.is_file():
                self._errors.append(
                    ParserError("", "", f"Input file cannot be found, or is not a regular file: {path}")
                )
                return False
            parsed = onnx.load(path)
            self._errors = [ParserError(*error) for error in wrong.parse]
            for node in parsed.graph.node:
                if not onnx.defs.has(node.op_type, node.domain):
                    self._errors.append(ParserError(node.name, node.op_type, 'creator && "Plugin not found"'))
            if self._errors:
                return False
            self._network._model = parsed
            return True

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> ParserError:
            return self._errors[index]

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            ILogger._check(logger)
            module._logger = logger
            if wrong.start:
                say(ILogger.ERROR, wrong.start)
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            return INetworkDefinition(flags)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
            strongly_typed = rtx or numbers[0] > 10 or network.flags & 1 << strongly_typed_bit
            assert strongly_typed, "the precisions of the graph would be a suggestion"
            assert network._model is not None, "there is nothing to build"
            assert config.profiling_verbosity is ProfilingVerbosity.DETAILED
            module._builds.append(config)
            if wrong.build:
                return fail(wrong.build)
            if wrong.tried:
                say(ILogger.ERROR, wrong.tried)
            shape = network.get_input(0).shape
            if -1 in shape and not config._profiles:
                return fail("Network has dynamic or shape inputs, but no optimization profile")
            if not _run_phase(config.progress_monitor):
                return fail("Error Code 7: BuildCanceled (Build canceled by user)")
            if config._cache is not None:
                config._cache._builds += 1
            low, usual, high = next(iter(config._profiles[0]._shapes.values())) if config._profiles else (shape,) * 3
            capability = str(int(config._capability)) if rtx else ""
            stated = {
                "version": version,
                "arch": f"{capability[:-1]}.{capability[-1]}" if rtx else arch,
                "min": low,
                "opt": usual,
                "max": high,
                "hardware_compatibility": LEVEL_NAMES[config.hardware_compatibility_level.name],
                "version_compatible": BuilderFlag.VERSION_COMPATIBLE in config._flags,
            }
            return IHostMemory(MAGIC + json.dumps(stated).encode() + b"\n" + network._model.SerializeToString())

    def say(severity: Severity, words: str) -> None:
        module._logger.log(severity, words)

    def fail(words: str) -> IHostMemory | None:
        say(ILogger.ERROR, words)
        return None

    module._builds = []
    parts: list[Any] = [
        *(Builder, BuilderFlag, HardwareCompatibilityLevel, IBuilderConfig, IHostMemory, ILogger),
        *(INetworkDefinition, IOptimizationProfile, IProgressMonitor, ITensor, ITimingCache, LayerInformationFormat),
        *(MemoryPoolType, NetworkDefinitionCreationFlag, OnnxParser, ParserError, ProfilingVerbosity),
    ]
    for part in [*parts, ComputeCapability] if rtx else parts:
        setattr(module, part.__name__, part)
    return module  # type: ignore[no-any-return]


LEVEL_NAMES = {"NONE": "none", "AMPERE_PLUS": "ampere+", "SAME_COMPUTE_CAPABILITY": "same-cc"}


def _run_phase(monitor: IProgressMonitor | None, steps: int = 3) -> bool:
    """Report a build of one phase; whether it may go on to its end."""
    if monitor is None:
        return True
    IProgressMonitor._check(monitor)
    monitor.phase_start("Building engine", None, steps)
    going = all(monitor.step_complete("Building engine", step) for step in range(steps))
    monitor.phase_finish("Building engine")
    return going
