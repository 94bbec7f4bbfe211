"""Signatures read from source, component nodes checked and built."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cogvideox.config import components
from cogvideox.config.aliases import ALIASES
from cogvideox.config.components import COMPONENTS, SLOTS
from cogvideox.config.report import Origin, Report
from cogvideox.config.signatures import read_signature
from cogvideox.config.targets import check_component, instantiate
from cogvideox.config.tree import build
from cogvideox.errors import ConfigError
from config.conftest import Load

SOURCE = """
from __future__ import annotations
import dataclasses
from collections.abc import Sequence
from cogvideox.config.targets import ComponentNode, instantiate
from cogvideox.config.schema import DataConfig as Renamed

class Leaf:
    def __init__(self, size: int, name: str = "leaf") -> None:
        self.size, self.name = size, name

class Heir(Leaf):
    pass

class Bare:
    pass

@dataclasses.dataclass
class Record:
    width: int
    height: int = 2

class Tree:
    def __init__(self, leaf: object, shape: Sequence[int] = (1,), *, dtype: str) -> None:
        self.leaf, self.shape, self.dtype = leaf, shape, dtype

class Forest:
    def __init__(self, trees: dict[str, ComponentNode] | None = None) -> None:
        self.nodes = trees
        self.trees = {name: instantiate(node, dtype="fp32") for name, node in (trees or {}).items()}

class Grove:
    def __init__(self, trees: list[ComponentNode]) -> None:
        self.trees = trees

class Open:
    def __init__(self, **anything) -> None:
        self.anything = anything

def make(size: int = 3) -> Leaf:
    return Leaf(size)
"""


NAMES = ("Leaf", "Heir", "Bare", "Record", "Tree", "Forest", "Grove", "Open", "make", "Renamed")


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_components.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    toys = tuple(f"toy_components.{name}" for name in NAMES)
    monkeypatch.setattr(components, "COMPONENTS", COMPONENTS + toys)  # as if they were listed
    sys.modules.pop("toy_components", None)
    read_signature.cache_clear()


def node(name: str, **params: object) -> dict[str, object]:
    return {"target": f"toy_components.{name}", "params": params}


def test_builds_inside_out() -> None:
    tree = instantiate(node("Tree", leaf=node("Leaf", size=3.0), shape=[2, 3]), dtype="bf16")
    assert (tree.leaf.size, tree.leaf.name, tree.shape, tree.dtype) == (3, "leaf", [2, 3], "bf16")
    assert type(tree.leaf.size) is int


def test_hands_over_nodes_where_the_annotation_says_so() -> None:
    inner = node("Tree", leaf={"target": "toy_components.Bare"})
    forest = instantiate(node("Forest", trees={"oak": inner, "gone": None}))
    assert forest.nodes == {"oak": node("Tree", leaf=node("Bare"))}
    assert forest.trees["oak"].dtype == "fp32"
    grove = instantiate(node("Grove", trees=[node("Bare")]))
    assert grove.trees == [node("Bare")]


def test_inherited_constructors_dataclasses_functions_and_open_ones() -> None:
    assert instantiate(node("Heir", size=1)).size == 1
    assert instantiate(node("Record", width=1)).height == 2
    assert instantiate(node("make", size=5)).size == 5
    assert instantiate(node("Renamed", fps=3)).fps == 3.0
    assert instantiate(node("Open", x=1, y=[2])).anything == {"x": 1, "y": [2]}


@pytest.mark.parametrize(
    ("component", "match"),
    [
        ({"params": {}}, "a component needs `target`"),
        ({"target": 3}, "a component needs `target`"),
        ({"target": "Leaf"}, "unknown target 'Leaf'"),
        ({"target": "toy_components.Leef"}, r"unknown target .*; did you mean 'toy_components\.Leaf'\?"),
        ({"target": "no_such.Thing"}, "unknown target 'no_such.Thing'"),
        ({"target": "toy_components.Leaf", "params": 3}, "must be a mapping of the parameters"),
        ({"target": "toy_components.Leaf", "param": {}}, "unknown key of a component 'param'; did you mean 'params'"),
        (node("Leaf"), r"missing parameter 'size' \(int\) of toy_components\.Leaf"),
        (node("Leaf", size="x"), r"component\.params\.size: must be int, not 'x'|params\.size: must be int"),
        (node("Leaf", size=1, nam="x"), r"unknown parameter of toy_components\.Leaf: 'nam'; did you mean 'name'\?"),
        (node("Leaf", size=node("Bare")), "must be int, not a component"),
        (node("Bare", x=1), "unknown parameter of .*Bare: 'x'; nothing is allowed here"),
        (node("Tree", leaf=node("Bare"), dtype="x"), "'dtype' is given by the program and is not a YAML key"),
        (node("Tree", leaf=3), r"must be a component \(target and params\), not 3"),
        (node("Tree", leaf={"size": 3}), r"must be a component: target \(a class\) and params"),
        (node("Tree", leaf=node("Leaf", size=1, nam=2)), "'nam'; did you mean 'name'"),
        (node("Forest", trees=3), r"trees takes components \(target and params\)"),
        (node("Forest", trees=[node("Bare")]), r"trees takes components \(target and params\)"),
        (node("Forest", trees={"oak": {"params": {}}}), "a component needs `target`"),
    ],
)
def test_mistakes(component: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        instantiate(component)


def test_a_component_that_is_no_mapping() -> None:
    report = Report()
    assert check_component(build(3, Origin("f.yaml", 4, "model.x")), report) is None
    assert report.errors == ["f.yaml:4: model.x: must be a component: target (a class) and params"]


@pytest.mark.parametrize(
    "target",
    [
        "subprocess.Popen",
        "os.system",
        "builtins.exec",
        "torch.nn.Identity",  # published, for a part that has no counterpart here
        "cogvideox.errors.run_cli",
        "cogvideox.data.pool.ProcessPool",  # a class of this program that is no component
        "cogvideox.vae.autoencoder.instantiate",  # what a module imports
        "cogvideox.vae.autoencoder.VideoAutoencoder.__init__",
        "toy_components.sys",
        "../evil.Thing",
        "",
    ],
)
def test_what_is_not_listed_is_no_component(target: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown target .*a configuration names classes of this program only"):
        instantiate({"target": target, "params": {}})


@pytest.mark.parametrize("key", ["network_config", "sampler_config", "loss_fn_config"])
@pytest.mark.parametrize("target", ["subprocess.Popen", "cogvideox.text.encoders.T5Encoder"])
def test_a_key_holds_classes_of_its_own_kind(train: Load, key: str, target: str) -> None:
    node = f"{{target: {target}, params: {{args: [touch, x]}}}}"
    with pytest.raises(
        ConfigError, match=rf"model\.{key}\.target: unknown target '{target}'; (did you mean|known here)"
    ):
        train(f"model.{key}={node}")


def test_a_target_of_this_package_is_suggested() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'cogvideox\.diffusion\.samplers\.DDIMSampler'\?"):
        instantiate({"target": "cogvideox.diffusion.sampler.DDIMSampler"})


def test_components_have_closed_signatures() -> None:
    for target in COMPONENTS:
        assert not read_signature(target).open, f"{target} takes **kwargs: a misspelt YAML key would be accepted"


def test_every_published_name_becomes_a_component() -> None:
    assert {alias.target for alias in ALIASES.values() if alias.target is not None} <= set(COMPONENTS)
    assert len(COMPONENTS) == len(set(COMPONENTS)) and all(SLOTS.values())


def test_a_new_target_drops_the_parameters_of_the_old_one_with_a_notice(sample: Load) -> None:
    target = "cogvideox.diffusion.guidance.ConstantGuidance"
    config = sample(f"model.sampler_config.params.guidance.target={target}")
    assert config.model.sampler_config["params"]["guidance"] == {"target": target, "params": {"scale": 6.0}}
    assert sum("is not used by" in line for line in config.notices) == 3
