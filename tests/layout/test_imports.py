"""Who may import whom. The table is the one in docs/architecture.md."""

from __future__ import annotations

import re

from layout.source_tree import LIBRARY, ROOT, SOURCE, read_modules

LEAVES = {"config", "parallel", "data", "text", "diffusion", "weights"}
BASE = {
    *("errors", "log", "geometry", "buckets", "released", "commands", "stopping"),
    *("text_files", "user_files", "__init__"),
}
ALLOWED = {
    "errors": {"stopping"},
    "stopping": set(),
    "log": set(),
    "geometry": set(),
    "buckets": {"geometry"},
    "released": {"geometry"},
    "commands": set(),
    "text_files": set(),
    "user_files": {"errors", "text_files"},
    "__init__": set(),
    **dict.fromkeys(LEAVES, BASE),
    "text": BASE | {"weights"},
    "vae": BASE | {"config", "weights", "parallel"},
    "transformer": BASE | {"config", "weights", "parallel"},
    "model": BASE | LEAVES | {"vae", "transformer"},
    "sampling": BASE | LEAVES | {"vae", "transformer", "model"},
    "conversion": BASE | LEAVES | {"vae", "transformer", "model"},
    "caching": BASE | LEAVES | {"vae", "model"},
    "doctor": BASE | {"config", "data", "text", "weights", "diffusion", "caching"},
    "training": BASE | LEAVES | {"vae", "transformer", "model", "sampling", "caching"},
}
# A package that costs seconds or memory to import, and the only places that may import it.
ONLY_IN = {
    "sat": {"transformer", "parallel", "training/optimizers.py"},
    "deepspeed": {"training/engine.py", "parallel/zero.py"},
    "decord": {"data/other_readers.py"},
    "torchcodec": {"data/other_readers.py"},
    "transformers": {"text", "conversion/diffusers_export/verify.py"},
    "omegaconf": {"config"},
    "pyarrow": {"data"},
    "huggingface_hub": {"data/sources/hub.py", "text", "conversion"},
    # What a conversion is verified with: one can train, sample and convert without it.
    "diffusers": {
        "conversion/compare.py",
        "conversion/verification.py",
        "conversion/diffusers_export/verify.py",
        "conversion/diffusers_import/verify.py",
    },
    "peft": set(),
}
# Rooms whose import must stay cheap: data workers, config checks and pure maths.
WITHOUT_TORCH = {"config", "errors", "log", "geometry", "released", "commands", "stopping", "text_files", "user_files"}

MODULES = read_modules(LIBRARY)


def test_rooms_import_only_what_stands_below_them() -> None:
    wrong = []
    for module in MODULES:
        for name in module.imports():
            room = name.split(".")[1] if name.startswith("cogvideox.") else module.room
            if room != module.room and room not in ALLOWED[module.room]:
                wrong.append(f"{module.name} imports {name}; {module.room} may import {sorted(ALLOWED[module.room])}")
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_in_their_place_only() -> None:
    wrong = []
    for module in MODULES:
        inside = str(module.path.relative_to(LIBRARY))
        for name in module.imports():
            package = name.split(".")[0]
            places = ONLY_IN.get(package, {inside})
            if not {inside, module.room} & places:
                wrong.append(f"{module.name} imports {package}")
            if package == "torch" and module.room in WITHOUT_TORCH:
                wrong.append(f"{module.name} imports torch, which makes every config check slow")
    assert not wrong, "\n".join(wrong)


def test_filling_a_cache_imports_neither_sat_nor_the_transformer() -> None:
    """SAT takes seconds, and what is encoded once needs no transformer."""
    files = {".".join(module.path.relative_to(SOURCE).with_suffix("").parts): module for module in MODULES}
    reached, wanted = set[str](), ["cogvideox.training.fill_cache"]
    while wanted:
        name = wanted.pop()
        if name not in reached:
            reached.add(name)
            for found in files[name].imports(at_start=True):
                wanted += [each for each in (found, found.rpartition(".")[0]) if each in files]
                assert found.split(".")[0] not in {"sat", "deepspeed"}, f"{name} imports {found}"
    assert "cogvideox.caching.build" in reached and not [each for each in reached if ".transformer." in each]


def test_one_rule_says_what_a_line_is() -> None:
    """str.splitlines also cuts at U+2028, form feeds and others; of an exception's text the first line is the same."""
    found = [module.name for module in MODULES if re.search(r"splitlines\((?!\)\[0\])", module.path.read_text())]
    assert not found, f"text_files.split_lines says what a line is, not str.splitlines: {found}"


def test_every_room_is_known() -> None:
    assert {module.room for module in MODULES} == set(ALLOWED)


def test_scripts_do_not_import_each_other() -> None:
    scripts = [module for module in read_modules(SOURCE) if module.path.parent == SOURCE]
    assert scripts
    for script in scripts:
        assert not {other.path.stem for other in scripts} & {name.split(".")[0] for name in script.imports()}


def test_source_root_is_no_package() -> None:
    assert not (SOURCE / "__init__.py").exists(), "sat/__init__.py would hide the installed SwissArmyTransformer"
    import sat

    assert sat.__file__ is not None and not sat.__file__.startswith(str(ROOT / "sat"))
