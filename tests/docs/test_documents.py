"""Documents lead somewhere and leave nothing out: links resolve, every setting is explained."""

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from recsys_moe.paths import CONF_DIR

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
EXPLAINED_IN = {
    "features": "features.md",
    "runner": "scaling-out.md",
    "train": "training.md",
    "model": "training.md",
    "router": "experts.md",
    "experts": "experts.md",
    "balance": "experts.md",
    "surgery": "surgery.md",
    "loss": "training.md",
    "optimizer": "training.md",
    "trainer": "training.md",
    "evaluate": "training.md",
    "export": "artifact.md",
    "score": "scoring.md",
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in {_anchor(heading) for heading in headings}, link


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for document in (ROOT / "docs").rglob("*.md"):
        name = document.relative_to(ROOT / "docs").as_posix()
        assert name == "index.md" or f"]({name})" in index, name


@pytest.mark.parametrize("group", EXPLAINED_IN)
def test_every_setting_is_explained(group: str) -> None:
    text = (ROOT / "docs" / EXPLAINED_IN[group]).read_text(encoding="utf-8")
    words = set(re.findall(r"[\w.]+", " ".join(re.findall(r"`+[^`]+`+", text))))
    words |= {part for word in words for part in word.split(".")}
    single = CONF_DIR / f"{group}.yaml"
    files = [single] if single.exists() else sorted((CONF_DIR / group).glob("*.yaml"))
    assert files
    for path in files:
        missing = {key for key in _keys(OmegaConf.to_container(OmegaConf.load(path))) - words}
        assert not missing, f"{path.name}: {sorted(missing)} not in {EXPLAINED_IN[group]}"
        assert path == single or path.stem in words, path.stem


def test_every_dataset_is_named() -> None:
    text = " ".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    for path in (CONF_DIR / "dataset").glob("*.yaml"):
        assert f"dataset={path.stem}" in text or f"DATASET={path.stem}" in text, path.stem


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _keys(node: Any) -> set[str]:
    """Return the settings of a configuration file: what a user can override by name."""
    if not isinstance(node, dict):
        return set()
    own = {str(key) for key in node if not str(key).startswith("_")} - {"hydra", "defaults"}
    return own | {key for name in own for key in _keys(node[name])}
