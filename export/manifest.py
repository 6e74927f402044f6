"""The manifest: what an artifact holds, promises and was made from, and the check of it.

An artifact is a closed set of regular files. `manifest.json` lists each by size and SHA-256 and is
written last, so that a folder without it is no artifact; its own digest is the artifact's identity.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from recsys_moe.errors import ArtifactError, RequestError
from recsys_moe.files import read_json, sha256_file, write_text
from recsys_moe.spec import Column

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
CODES, NUMBERS = "codes", "numbers"
"""The boundary between `preprocess.onnx` and `core.onnx`: int32 codes and float32 numbers."""
MODEL_FILE, PREPROCESS_FILE, CORE_FILE = "model.onnx", "preprocess.onnx", "core.onnx"
WEIGHTS_FILE, SPEC_FILE = "weights.bin", "feature_spec.json"
_ADDED: dict[str, Any] = {"dispatch": "dense", "accounts": ()}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of the artifact: its size in bytes and the hexadecimal SHA-256 of its content."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The largest difference between graph and checkpoint that was seen.

    Of probabilities as they are; of amounts in standard deviations of the train labels, or in
    parts of the value where that is larger.
    """

    tolerance: float
    largest_gap: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `manifest.json` says: equal manifests, equal artifacts.

    Attributes:
        name: Data set and model, `census_income-ple`.
        files: Relative POSIX path of every file but the manifest.
        inputs: Raw columns of `model.onnx` and `preprocess.onnx`. A scalar `x` is the input `x`
            [batch], a vector `x` the input `x` float32 [batch, dim]; a list `x` is two inputs,
            `x_ids` [batch, L] and `x_len` int64 [batch].
        outputs: The probabilities, `p_*`, and amounts, `y_*`, float32 [batch].
        logits: Further outputs that are computed only when asked for, `logit_*`, float32 [batch].
        boundary: Names of the outputs of `preprocess.onnx` and inputs of `core.onnx`: int32
            [batch, slots] and float32 [batch, k].
        opset: Version of the default ONNX operator set.
        ir_version: Version of the ONNX file format.
        keys: Columns that identify a row of the data, copied to predictions.
        user: The column that GAUC groups by, if there is one.
        parity: Gap between `model.onnx` and the checkpoint.
        metrics: The run's `evaluation.json`, or None if it was not evaluated.
        data: `dataset`, `train_rows` and `train_window` (microseconds UTC) of the feature spec;
            `keep_rates`, the share of a task's negatives that training saw, where not all: the
            graph's logits and probabilities are corrected for it.
        model: The builder's `name` and its sizes.
        parameters: How many weights the outputs need.
        code_version: Version of this package that exported.
        spec_digest: The digest of the feature spec.
        run_digest: SHA-256 of the run's `best.ckpt`.
        dispatch: How the graph computes experts: `dense`, all on every row, or `where`, each on
            the rows that chose it.
        accounts: What each output costs, then all together: `outputs`, `parameters`,
            `active_parameters`, `embedding_parameters`, `network_parameters`,
            `active_embedding_parameters`, `active_network_parameters`, `flops_per_row`,
            `dense_flops_per_row`, `uncounted` (parts whose arithmetic is no product of tensors).
    """

    name: str
    files: Mapping[str, FileRecord]
    inputs: tuple[Column, ...]
    outputs: tuple[str, ...]
    logits: tuple[str, ...] = ()
    boundary: tuple[str, str] = (CODES, NUMBERS)
    opset: int
    ir_version: int
    keys: tuple[str, ...]
    user: str | None
    parity: Parity
    metrics: Mapping[str, Any] | None
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    parameters: int
    code_version: str
    spec_digest: str
    run_digest: str
    dispatch: str = "dense"
    accounts: tuple[Mapping[str, Any], ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of `manifest.json`: the artifact's identity."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artifact's manifest without looking at its other files.

        Raises:
            ArtifactError: There is none, it is of another schema version, or not as we write it.
        """
        path = folder / MANIFEST
        if not path.is_file():
            found = "no such folder" if not folder.exists() else f"no {MANIFEST} in it"
            raise ArtifactError(str(folder), wanted="the folder of a complete artifact", got=found)
        try:
            value = read_json(path)
        except RequestError as error:
            raise ArtifactError(str(path), wanted=error.wanted, got=error.got) from None
        version = value.pop("schema_version", None) if isinstance(value, dict) else None
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                str(path), wanted=f"schema_version {SCHEMA_VERSION}", got=repr(version)
            )
        manifest = cls._from_dict(value, path)
        if manifest._text().encode() != path.read_bytes():
            raise ArtifactError(
                str(path), wanted="the manifest as it was exported", got="an edited one"
            )
        return manifest

    def save(self, folder: Path) -> None:
        """Write `manifest.json`, whole: the same bytes for the same manifest."""
        write_text(folder / MANIFEST, self._text())

    @classmethod
    def verify(cls, folder: Path) -> Self:
        """Read the manifest and check every file against it, before anything loads them.

        Raises:
            ArtifactError: The manifest is missing or unknown; a file is missing, extra, not a
                regular file of one name, or of another size or content.
        """
        manifest = cls.load(folder)
        found = _files_below(folder)
        for path in sorted(found - manifest.files.keys() - {MANIFEST}):
            raise ArtifactError(f"{folder}/{path}", wanted="no such file", got="an unlisted file")
        for path in sorted(manifest.files.keys() - found):
            raise ArtifactError(f"{folder}/{path}", wanted="the file", got="none")
        for path in sorted(found):
            _check_regular(folder / path)
        for path, record in manifest.files.items():
            _check_content(folder / path, record)
        return manifest

    def _text(self) -> str:
        value = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        for name, default in _ADDED.items():  # absent from what older versions wrote
            if value[name] == default:
                del value[name]
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def _from_dict(cls, value: dict[str, Any], path: Path) -> Self:
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(value.keys() - known.keys())
        absent = [
            key for key, field in known.items() if key not in value and field.default is MISSING
        ]
        if unknown or absent:
            got = f"an unknown entry {unknown[0]!r}" if unknown else f"no entry {absent[0]!r}"
            raise ArtifactError(str(path), wanted="the entries of its schema version", got=got)
        try:
            files = {str(name): FileRecord(**record) for name, record in value["files"].items()}
            inputs = tuple(Column(**column) for column in value["inputs"])
            parity = Parity(**value["parity"])
            listed = {"outputs", "logits", "keys", "boundary", *(value.keys() & {"accounts"})}
            names = {key: tuple(value[key]) for key in listed}
        except (TypeError, AttributeError, KeyError) as error:
            raise ArtifactError(
                str(path), wanted="the entries of its schema version", got=str(error)
            ) from None
        return cls(**{**value, **names, "files": files, "inputs": inputs, "parity": parity})


def list_files(folder: Path) -> dict[str, FileRecord]:
    """Return size and digest of every file below a folder but the manifest, ordered by path."""
    paths = sorted(_files_below(folder) - {MANIFEST})
    return {
        path: FileRecord(bytes=(folder / path).stat().st_size, sha256=sha256_file(folder / path))
        for path in paths
    }


def _files_below(folder: Path) -> set[str]:
    """Return the relative POSIX paths of all that is not a folder; links are not followed."""
    return {
        Path(root, name).relative_to(folder).as_posix()
        for root, folders, names in os.walk(folder)
        for name in (*names, *(name for name in folders if Path(root, name).is_symlink()))
    }


def _check_regular(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if path.is_symlink() else "something else"
        raise ArtifactError(str(path), wanted="a regular file", got=kind)
    if status.st_nlink != 1:
        raise ArtifactError(
            str(path), wanted="a file of one name", got=f"{status.st_nlink} hard links to it"
        )


def _check_content(path: Path, record: FileRecord) -> None:
    size = path.stat().st_size
    if size != record.bytes:
        raise ArtifactError(str(path), wanted=f"{record.bytes} bytes", got=f"{size}")
    content = sha256_file(path)
    if content != record.sha256:
        raise ArtifactError(
            str(path), wanted=f"sha256 {record.sha256[:16]}…", got=f"{content[:16]}…"
        )
