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
        _help_or(job)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        _exit(program, _first_line(error), 2)
    except ValueError as error:
        if "Config group override" not in str(error):  # what Hydra says of model=null
            raise
        _exit(program, _first_line(error), 2)


def _help_or(job: Callable[[], Any]) -> None:
    """Run a job; help asked for without a mandatory group shows the group's first choice."""
    try:
        job()
    except HydraException as error:
        lines = [line.strip() for line in str(error).splitlines()]
        group = re.search(r"You must specify '([^']+)'", str(error))
        choices = _listed_choices(lines)[0]
        if not group or not choices or not {"--help", "-h"} & set(sys.argv):
            raise
        sys.argv.append(f"{group.group(1)}={choices[0]}")
        job()


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
                _check_settings(cfg, program)
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


def _check_settings(cfg: DictConfig, program: str) -> None:
    """Refuse settings that the command's file under conf/ has not, or has with another type.

    `overwrite=flase` would otherwise be a word, and so true. What a group holds is the business of
    what is built from it.

    Raises:
        RequestError: The first such setting.
    """
    own: Any = OmegaConf.to_container(
        OmegaConf.load(CONF_DIR / f"{program.removeprefix('recsys-moe-')}.yaml")
    )
    groups = [group for entry in own.pop("defaults") if isinstance(entry, dict) for group in entry]
    own.pop("hydra", None)
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    for key in settings.keys() - own.keys() - set(groups):
        raise RequestError(
            str(key), wanted="a known setting", got=repr(key), choices=[*own, *groups]
        )
    for group in groups:
        if "/" not in group and not isinstance(settings.get(group), dict):
            raise RequestError(group, wanted=f"{group}=…", got=repr(settings.get(group)))
    for key, usual in own.items():
        if key not in settings:
            raise RequestError(key, wanted=f"{key}=…", got="nothing")
        _check_type(key, settings[key], usual)


def _check_type(key: str, value: Any, usual: Any) -> None:
    """Refuse a value of another type than the usual one of its setting."""
    wanted = ""
    if isinstance(usual, dict):
        if isinstance(value, dict) and value.keys() == usual.keys():
            for below in usual:
                _check_type(f"{key}.{below}", value[below], usual[below])
        else:
            wanted = f"{', '.join(f'{key}.{below}' for below in usual)} and nothing else"
    elif isinstance(usual, bool):
        wanted = "" if isinstance(value, bool) else "true or false"
    elif isinstance(usual, int | float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        wanted = "" if is_number else "a number"
    elif usual is None:
        is_value = isinstance(value, str | int | float) and not isinstance(value, bool)
        wanted = "" if value is None or (is_value and value != "") else "a value or null"
    elif isinstance(usual, list):
        wanted = "" if value is None or isinstance(value, list | str) else "a list"
    elif usual == "???":
        is_path = isinstance(value, str | int | float) and value != ""
        wanted = "" if is_path else f"{key}=…"
    else:
        wanted = "" if isinstance(value, str | int | float) else "a word"
    if wanted:
        raise RequestError(key, wanted=wanted, got="nothing" if value == "" else repr(value))


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
