"""A package's description against the JSON schema that its vendor publishes, given as a file.

Schemas of vendors are theirs: none is part of this project, and none is fetched.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mednext_edge.errors import ExportError, UsageError
from mednext_edge.optional import require

_SHOWN = 5


def check_schema(document: Path, schema: Path) -> str:
    """Check a JSON file.

    Args:
        document: what is checked.
        schema: JSON schema of any draft; a reference to another file or address is not followed.

    Returns:
        SHA-256 of the schema file, hex.

    Raises:
        UsageError: the schema is missing, no JSON schema, or refers to something outside itself.
        ExportError: the document breaks it; the message says where and how.
        TargetUnavailableError: jsonschema is not installed.
    """
    validators = require("jsonschema.validators", "schema")
    registry = require("referencing", "schema").Registry()
    try:
        content = schema.read_bytes()
        rules = json.loads(content)
    except (OSError, ValueError) as error:
        raise UsageError(f"{schema} cannot be read as JSON: {error}; expected the vendor's JSON schema") from error
    if not isinstance(rules, dict):
        raise UsageError(f"{schema} holds no object; expected the vendor's JSON schema")
    kind = validators.validator_for(rules, default=validators.Draft202012Validator)
    try:
        kind.check_schema(rules)
        found = sorted(kind(rules, registry=registry).iter_errors(json.loads(document.read_bytes())), key=_place)
    except require("jsonschema.exceptions", "schema").SchemaError as error:
        raise UsageError(f"{schema} is no valid JSON schema: {error.message} at {_place(error)}") from error
    except require("referencing.exceptions", "schema").Unresolvable as error:
        raise UsageError(f"{schema} refers to `{error.ref}`, which is not in it; give a schema in one file") from error
    if found:
        words = "; ".join(f"{_place(error)}: {error.message}" for error in found[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ExportError(
            f"{document.name} breaks {schema.name} in {len(found)} places: {words}{more}. Is it the schema of the "
            "version that this package writes?"
        )
    return hashlib.sha256(content).hexdigest()


def _place(error: Any) -> str:
    return str(error.json_path)
