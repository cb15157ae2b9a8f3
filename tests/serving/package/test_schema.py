"""A package's JSON file against a schema that is given: broken, foreign and unreadable ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mednext_edge.errors import ExportError, UsageError
from mednext_edge.serving.package import openrecon, ovms, triton  # noqa: F401  # each puts itself into the table
from mednext_edge.serving.package.formats import MARK, package
from mednext_edge.serving.package.schema import check_schema

TEXT = {"type": "object", "required": ["en"], "properties": {"en": {"type": "string"}}}
# The rules of an OpenRecon label that a choice of our own could break, in the draft and form of the vendor's file.
RULES: dict[str, Any] = {
    "$id": "https://vendor.invalid/label",
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "additionalProperties": False,
    "required": ["general", "reconstruction", "parameters"],
    "properties": {
        "general": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name", "version", "vendor", "information", "id", "regulatory_information"],
            "properties": {
                "name": TEXT,
                "information": TEXT,
                "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+"},
                "vendor": {"type": "string"},
                "id": {"type": "string"},
                "regulatory_information": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        },
        "reconstruction": {
            "type": "object",
            "required": ["transfer_protocol", "port", "emitter", "injector", "can_use_gpu", "min_required_memory"],
            "properties": {"port": {"type": "integer"}, "emitter": {"enum": ["raw", "image"]}},
        },
        "parameters": {
            "type": "array",
            "maxItems": 14,
            "uniqueItems": True,
            "items": {"oneOf": [{"$ref": "#/properties/parameters/$defs/choice"}]},
            "$defs": {
                "id": {"type": "string", "pattern": "^[A-Za-z0-9]+$"},
                "choice": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["type", "id", "label", "default", "values"],
                    "properties": {
                        "type": {"const": "choice"},
                        "id": {"$ref": "#/properties/parameters/$defs/id"},
                        "label": TEXT,
                        "information": TEXT,
                        "default": {"type": "string"},
                        "values": {"type": "array", "minItems": 1},
                    },
                },
            },
        },
    },
}


def written(folder: Path, rules: Any) -> Path:
    file = folder / "schema.json"
    file.write_text(rules if isinstance(rules, str) else json.dumps(rules))
    return file


def test_the_label_is_checked_and_the_package_says_so(bundle: Path, tmp_path: Path) -> None:
    file = written(tmp_path, RULES)
    out = package(bundle, "openrecon", tmp_path / "out", schema=file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert json.loads((out / MARK).read_text())["schema"] == digest == check_schema(out / "OpenReconLabel.json", file)


def test_what_breaks_the_schema_is_not_written(bundle: Path, tmp_path: Path) -> None:
    rules = json.loads(json.dumps(RULES))
    rules["properties"]["reconstruction"]["properties"]["port"] = {"const": 9003}
    rules["required"].append("licence")
    out = tmp_path / "out"
    with pytest.raises(ExportError, match=r"in 2 places: \$: 'licence' is a required .*\$\.reconstruction\.port: 9003"):
        package(bundle, "openrecon", out, schema=written(tmp_path, rules))
    assert [path.name for path in tmp_path.iterdir()] == ["schema.json"]


def test_a_model_server_configuration(bundle: Path, tmp_path: Path) -> None:
    rules = {"type": "object", "required": ["model_config_list"]}
    package(bundle, "ovms", tmp_path / "out", schema=written(tmp_path, rules))


def test_a_format_without_a_schema(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Triton has no JSON file that a schema describes; openrecon, ovms have one"):
        package(bundle, "triton", tmp_path / "out", schema=written(tmp_path, RULES))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("{", "cannot be read as JSON"),
        ([], "holds no object"),
        ({"type": "no such type"}, "is no valid JSON schema"),
        ({"$ref": "https://vendor.invalid/other.json"}, r"refers to `https://vendor.invalid/other.json`, which is not"),
    ],
)
def test_files_that_are_no_schema(tmp_path: Path, rules: Any, words: str) -> None:
    (document := tmp_path / "label.json").write_text("{}")
    with pytest.raises(UsageError, match=words):
        check_schema(document, written(tmp_path, rules))
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        check_schema(document, tmp_path / "nowhere.json")
