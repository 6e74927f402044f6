"""What the documents show is what happens: their commands are run, their output compared.

The five commands of a walk share one process, which loads their libraries once; all else runs in a
shell. It is a process of its own: threads and settings of training must not outlive the walk here.

Above a fence, a comment can say more: `exits N`, the exit code of its last command; `not run: needs
…`, for other people's tools only; `file: PATH`, a file the reader writes. In shown output, numbers
stand for any number, "…" for anything, /home/you/recsys-moe for the folder of the walk.
"""

import ast
import builtins
import contextlib
import io
import json
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import export.score
import export.to_onnx
import pipelines.build
import recsys_moe.evaluate
import recsys_moe.train
from recsys_moe.errors import RequestError
from recsys_moe.paths import CONF_DIR
from tests.docs.fences import DOCUMENTS, ROOT, Block, all_blocks, blocks

COMMANDS = {
    "recsys-moe-features": pipelines.build.main,
    "recsys-moe-train": recsys_moe.train.main,
    "recsys-moe-evaluate": recsys_moe.evaluate.main,
    "recsys-moe-export": export.to_onnx.main,
    "recsys-moe-score": export.score.main,
}
OWN_DATA = [ROOT / "docs/your-data.md", ROOT / "docs/features.md"]
WALKS = {"bundled data": [d for d in DOCUMENTS if d not in OWN_DATA], "own data": OWN_DATA}
OTHER_TOOLS = {"npm", "node", "docker", "git", "pip", "make setup"}
SHOWN_FOLDER = "/home/you/recsys-moe"
NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?"

# For each line of the table of mistakes in docs/your-data.md: what it puts in the place of what.
LABEL = 'label: {column: "clicked?", positive: ["yes"], negative: ["no"]}'
NUMERIC = "{kind: numeric, name: price_log, column: "
MISTAKES = {
    "`user: user_id`": ("user: user.id", "user: user_id"),
    "`path: ../../logs/impression.csv`": ("/impressions.csv", "/impression.csv"),
    '`label: "clicked?"`': (LABEL, 'label: "clicked?"'),
    "`positive: yes`": ('positive: ["yes"]', "positive: yes"),
    "`space: clik`": ("space: click", "space: clik"),
    "`kind: numerical`": ("kind: numeric", "kind: numerical"),
    "`column: part`, as a feature": ("column: Gerät", "column: part"),
    "`column: Gerät`, as numeric": (NUMERIC + "Preis €", NUMERIC + "Gerät"),
}


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Move into a folder that looks like a checkout after setup, as a reader does."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"  # a link would lose the environment's packages
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the packages, as setup installs them
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the commands set it; it ends with the test
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> tuple[int, str]:
    """Run a command line and return its exit code and all it printed."""
    name, *arguments = shlex.split(command)
    if name in COMMANDS:
        printed, code = io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, *arguments])
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                try:
                    COMMANDS[name]()
                except SystemExit as stop:
                    code = int(stop.code or 0)
        return code, printed.getvalue()
    done = subprocess.run(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    return done.returncode, done.stdout


def run_python(code: str, place: str) -> None:
    exec(compile(code, place, "exec"), {})


@pytest.mark.parametrize("name", WALKS)
def test_a_reader_who_types_everything_sees_what_is_shown(name: str, walk: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as reader:
        for block in (block for document in WALKS[name] for block in blocks(document)):
            if block.mark.startswith("file: "):
                path = walk / block.mark.removeprefix("file: ")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
            elif block.kind == "console" and not block.mark.startswith("not run: "):
                _type(block, walk, reader)
            elif block.kind == "python" and not _unknown_names(block.text):
                reader.submit(run_python, block.text, block.place).result()


def _type(block: Block, walk: Path, reader: ProcessPoolExecutor) -> None:
    commands = [pair for pair in block.commands() if not pair[0].startswith("make ")]
    for number, (command, shown) in enumerate(commands, 1):
        last = number == len(commands)
        wanted = int(block.mark.removeprefix("exits ")) if block.mark and last else 0
        code, output = reader.submit(run, command).result()
        assert code == wanted, f"{block.place}: {command}\nexit code {code}\n{output}"
        at = 0
        for line in shown:
            found = re.compile(f"^{_pattern(line, walk)}$", re.M).search(output, at)
            assert found, f"{block.place}: {command}\nshows {line!r}, but prints\n{output}"
            at = found.end()


def _pattern(line: str, walk: Path) -> str:
    """Return a regular expression for a shown line, with the walk's folder in it."""
    return re.escape(str(walk)).join(
        "".join(_piece(piece) for piece in re.split(rf"({NUMBER}|…|\s+)", part))
        for part in line.split(SHOWN_FOLDER)
    )


def _piece(text: str) -> str:
    if text == "…":
        return ".*"
    if re.fullmatch(NUMBER, text):
        return NUMBER
    return r"\s+" if text.isspace() else re.escape(text)


def _unknown_names(code: str) -> set[str]:
    """Return the names that a piece of Python reads and neither makes nor imports."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    made = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    made |= {(alias.asname or alias.name) for node in imports for alias in node.names}
    return {node.id for node in names} - made - set(dir(builtins))


def test_only_the_tools_of_others_are_left_out() -> None:
    for block in all_blocks("console"):
        if block.mark.startswith("not run: "):
            commands = [command for command, _ in block.commands()]
            tools = [re.sub(r"^\S*/bin/", "", command) for command in commands]
            assert any(tool.startswith(tuple(OTHER_TOOLS)) for tool in tools), block.place
        else:
            assert re.fullmatch(r"(exits \d)?", block.mark), f"{block.place}: {block.mark}"
            assert list(block.commands()), f"{block.place}: no line begins with '$ '"


def test_there_is_no_shell_outside_console_blocks() -> None:
    assert [block.place for block in all_blocks("sh", "bash", "shell")] == []


@pytest.mark.parametrize(
    ("place", "command"),
    [
        (block.place, command)
        for block in all_blocks("console")
        for command, _ in block.commands()
        if command.startswith("make")
    ],
)
def test_make_has_the_target_and_its_commands_have_the_settings(place: str, command: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    words = ["make", "--dry-run", "--no-print-directory", *shlex.split(command)[1:]]
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, f"{place}: {command}\n{done.stderr}"
    for line in re.findall(r"\S*recsys-moe-(\w+) (.*)", done.stdout):
        stage, arguments = line[0], shlex.split(line[1].partition(">")[0])
        overrides = [word for word in arguments if "=" in word]
        if "--config-dir" in arguments:  # the reader's folder: its dataset is not ours to check
            overrides = [word for word in overrides if not word.startswith("dataset=")]
            overrides += ["dataset=census_income"] * (stage == "features")
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
            compose(config_name=stage, overrides=overrides)


@pytest.mark.parametrize("cell", MISTAKES)
def test_a_mistake_in_the_dataset_file_is_answered_as_shown(cell: str, walk: Path) -> None:
    document = ROOT / "docs/your-data.md"
    rows = re.findall(r"^\| (`[^|]*) \| `([^|]*)` \|$", document.read_text("utf-8"), re.M)
    shown = {wrote: says for wrote, says in rows if wrote in MISTAKES or "wanted" in says}
    assert shown.keys() == MISTAKES.keys()
    good = next(block.text for block in blocks(document) if block.mark.startswith("file: "))
    old, new = MISTAKES[cell]
    assert old in good
    assert new in good.replace(old, new, 1)
    path = walk / "my_conf" / "dataset" / "shop.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(good.replace(old, new, 1), encoding="utf-8")
    run("python examples/shop.py logs")

    with pytest.raises(RequestError) as caught:
        pipelines.build.build(
            OmegaConf.to_container(OmegaConf.load(path)),
            folder=path.parent,
            output=walk / "out",
            max_quarantine_share=0.01,
            overwrite=False,
        )

    assert re.search(_pattern(shown[cell], walk), str(caught.value))


@pytest.mark.parametrize("block", all_blocks("yaml", "json"), ids=lambda block: block.place)
def test_yaml_and_json_can_be_read(block: Block) -> None:
    assert yaml.safe_load(block.text) if block.kind == "yaml" else json.loads(block.text)
