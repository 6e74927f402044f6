"""The frame around the five commands: one line and a clear exit code for every wrong request."""

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from recsys_moe.errors import RecsysMoeError, RequestError, did_you_mean
from recsys_moe.paths import CONF_DIR

_SHOW_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"


def run_command(job: Callable[[], Any], program: str) -> None:
    """Run a `@hydra.main` function; configuration errors end in one line and status 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints its own text and ends with 1
    try:
        job()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        _exit(program, _first_line(error), 2)


def report_errors(program: str) -> Callable[[Callable[[DictConfig], Any]], Callable[..., Any]]:
    """Decorate the function below `@hydra.main`, so that its own errors end in one line too."""

    def decorate(job: Callable[[DictConfig], Any]) -> Callable[..., Any]:
        @functools.wraps(job)
        def guarded(cfg: DictConfig) -> Any:
            try:
                missing = sorted(OmegaConf.missing_keys(cfg))
                if missing:
                    line = f"{missing[0]}: wanted {missing[0]}=…, got nothing. It is mandatory."
                    _exit(program, line, 2)
                return job(cfg)
            except RecsysMoeError as error:
                _exit(program, " ".join(str(error).split("\n")), error.exit_code)
            except (MissingMandatoryValue, HydraException, OmegaConfBaseException) as error:
                _exit(program, _first_line(error), 2)

        return guarded

    return decorate


@contextmanager
def building(what: str) -> Iterator[None]:
    """Turn what a constructor says of configured values into a wrong request about `what`."""
    try:
        yield
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(what, wanted="values it can be built from", got=reason) from error


def output_folder(cfg: DictConfig) -> Path:
    """Return `cfg.output` as an absolute path; under `--multirun` each job has its own folder."""
    if cfg.output is None:
        raise RequestError("output", wanted="output=…, a folder", got="nothing")
    output = Path(str(cfg.output)).absolute()
    hydra = HydraConfig.get()
    return output / str(hydra.job.num) if hydra.mode == RunMode.MULTIRUN else output


def _exit(program: str, line: str, code: int) -> NoReturn:
    if _SHOW_TRACEBACK:
        traceback.print_exc()
    sys.stdout.flush()
    print(f"{program}: {line}", file=sys.stderr)
    sys.exit(code)


def _first_line(error: Exception) -> str:
    """Turn Hydra's and OmegaConf's messages into one line with the nearest right word."""
    cause = error.__cause__
    if isinstance(cause, RecsysMoeError):
        return str(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = (lines[0] if lines else type(error).__name__).rstrip(".") + "."
    unknown_choice = re.search(r"Could not find '([^']+)/([^'/]+)'", line)
    if unknown_choice:
        group, word = unknown_choice.groups()
        choices, listed = _listed_choices(lines)
        return f"{group}={word}: wanted a known {group}, got {word!r}." + (
            did_you_mean(word, choices) + listed
        )
    no_choice = re.search(r"You must specify '([^']+)'", line)
    if no_choice:
        group = no_choice.group(1)
        return f"{group}: wanted {group}=…, got nothing." + _listed_choices(lines)[1]
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        where = f"{mark.name}, line {mark.line + 1}"
        return f"{where}: wanted YAML, got what cannot be read: {error.problem}."
    unknown_key = re.search(r"Could not override '([^']+)'", line)
    if unknown_key:
        key = unknown_key.group(1)
        keys = _known_keys()
        return f"{key}: wanted a known setting, got {key!r}." + did_you_mean(key, keys)
    return line + (
        _quoting_hint()
        if "token recognition error" in line or "mismatched" in line or "extraneous input" in line
        else ""
    )


def _listed_choices(lines: list[str]) -> tuple[list[str], str]:
    """Return the choices in Hydra's message, those of --config-dir too, and a sentence of them."""
    start = next((i for i, line in enumerate(lines) if line.startswith("Available options")), None)
    if start is None:
        return [], ""
    end = next(
        (i for i, line in enumerate(lines) if line.startswith("Config search path")), len(lines)
    )
    choices = sorted(lines[start + 1 : end])
    return choices, f" Choices: {', '.join(choices)}." if choices else ""


def _quoting_hint() -> str:
    return " A value that holds '=' must be quoted: 'input=\"s3://bucket/day=2026-10-01\"'."


def _known_keys() -> list[str]:
    """Every dotted key of every config under conf/, to offer the nearest to a mistyped one."""
    keys: set[str] = set()
    for path in CONF_DIR.rglob("*.yaml"):
        group = path.relative_to(CONF_DIR).parent.as_posix()
        prefix = "" if group == "." else group.replace("/", ".") + "."
        keys |= _dotted(OmegaConf.load(path), prefix)
    return sorted(keys)


def _dotted(node: Any, prefix: str) -> set[str]:
    if not OmegaConf.is_dict(node):
        return set()
    keys: set[str] = set()
    for key in node:
        keys |= {f"{prefix}{key}"} | (
            set()
            if OmegaConf.is_missing(node, key)
            else _dotted(node._get_node(key), f"{prefix}{key}.")
        )
    return keys
