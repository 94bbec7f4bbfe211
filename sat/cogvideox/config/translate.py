"""Published YAML to ours: applies the table of `aliases.py` to the merged tree, before anything is checked.

Nodes keep the place where they were written, so that every later message still points into the user's file.
"""

from __future__ import annotations

from typing import Any

from cogvideox.config.aliases import (
    ALIASES,
    BY_OUR_TARGET,
    EMBEDDER,
    MODEL_NO_EFFECT,
    OPTIMIZER_ALIASES,
    PUBLISHED_ROTARY,
    TRANSFORMER_ARGS,
    Alias,
)
from cogvideox.config.report import Report
from cogvideox.config.tree import Node

_DATASET = "data_video.SFTDataset"
_SCHEDULE_DEFAULTS = {"shift_scale": 3.0, "num_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
# How the VAE's encoder and decoder are given the same settings twice.
_CODERS = ("encoder_config", "decoder_config")
# Parameters of the positions that published files may hold on the network.
_INTERPOLATION = ("height_interpolation", "width_interpolation", "time_interpolation")


def translate(root: Node, report: Report) -> bool:
    """Rewrite the tree in place; says whether it used any published target."""
    translation = _Translation(report)
    translation.data(root)
    translation.optimizer(root)
    model = root.child("model")
    if model is not None and isinstance(model.value, dict):
        translation.model(model)
    if translation.no_effect:
        report.notice(f"accepted without effect: {', '.join(sorted(translation.no_effect))}")
    return translation.published


class _Translation:
    """One walk over one tree."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.published = False
        self.no_effect: set[str] = set()
        self.schedules: list[Node] = []

    def data(self, root: Node) -> None:
        """`{target: data_video.SFTDataset, params: ...}` to a flat section; keys beside it win."""
        data = root.child("data")
        if data is None or not isinstance(data.value, dict) or not {"target", "params"} & set(data.value):
            return
        target = data.value.pop("target", None)
        if target is not None and target.value != _DATASET:
            text = f"no dataset {target.value!r}: write the keys of `data` directly (video_size, fps, ...)"
            self.report.error(target.origin, f"{text}, or {_DATASET}")
        self.published = True
        for key, child in _mapping(data.value.pop("params", None)).items():
            data.value.setdefault(key, child)

    def optimizer(self, root: Node) -> None:
        """The name stays here: the DeepSpeed section says what it becomes."""
        optimizer = _mapping(root.child("deepspeed")).get("optimizer")
        kind = _mapping(optimizer).get("type")
        self.published |= kind is not None and str(kind.value) in OPTIMIZER_ALIASES

    def model(self, model: Node) -> None:
        self._network(self.component(model.child("network_config")))
        self._conditioner(self.component(model.child("conditioner_config")))
        self._vae(self.component(model.child("first_stage_config")))
        for key in ("loss_fn_config", "sampler_config"):
            params = self.component(model.child(key))
            self._discretization(params)
            self.component(params.get("guidance"))
            draw = params.pop("sigma_sampler_config", None)
            for name, child in self._part(draw).items():
                params.setdefault(name, child)
        self._part(model.value.pop("denoiser_config", None))
        self._schedule(model)
        self.no_effect |= {key for key in MODEL_NO_EFFECT if model.value.pop(key, None) is not None}
        latent_input = model.child("latent_input")
        if self.published and latent_input is not None and latent_input.value is True:
            latent_input.value = False
            place = f"{latent_input.origin.place()}: model.latent_input"
            self.report.notice(f"{place}: true is for stored latents; these data are videos, which are encoded: false")

    def component(self, node: Node | None) -> dict[str, Node]:
        """Translate one component in place; returns its parameters, which may be changed further."""
        target = None if node is None else node.child("target")
        if node is None or target is None or not isinstance(target.value, str):
            return {}
        published = ALIASES.get(target.value)
        alias = published or BY_OUR_TARGET.get(target.value)
        params = _mapping(node.child("params"))
        if alias is not None:
            params = self._params(params, alias)
        if published is not None:
            self.published = True
            target.value = published.target or target.value
            for name, value in published.defaults.items():
                params.setdefault(name, Node(value, target.origin))
        given = node.child("params")
        if given is None or given.value is None:
            node.value["params"] = Node(params, node.origin)
        elif isinstance(given.value, dict):
            given.value = params
        return params

    def _part(self, node: Node | None) -> dict[str, Node]:
        """Parameters of a component that is folded into its parent."""
        params = self.component(node)
        self._discretization(params)
        return params

    def _params(self, params: dict[str, Node], alias: Alias) -> dict[str, Node]:
        kept: dict[str, Node] = {}
        for name, child in params.items():
            if name in alias.no_effect:
                self.no_effect.add(name)
            elif name in alias.fixed:
                if child.plain() != alias.fixed[name]:
                    self.report.error(child.origin, f"only {_yaml(alias.fixed[name])} is computed by this program")
            elif name in alias.parts:
                target = child.child("target")
                if target is None or target.value != alias.parts[name]:
                    self.report.error(child.origin, f"only {alias.parts[name]} is computed by this program")
            else:
                kept[alias.rename.get(name, name)] = child
        return kept

    def _discretization(self, params: dict[str, Node]) -> None:
        node = params.pop("discretization_config", None)
        if node is not None:
            self.schedules.append(node)

    def _network(self, params: dict[str, Node]) -> None:
        for name, child in self._params(_mapping(params.pop("transformer_args", None)), TRANSFORMER_ARGS).items():
            params.setdefault(name, child)
        modules = _mapping(params.get("modules"))
        if "pos_embed_config" in modules:
            self._positions(modules["pos_embed_config"], params)
        for slot, module in modules.items():
            if slot != "pos_embed_config":
                self.component(module)

    def _positions(self, node: Node, network: dict[str, Node]) -> None:
        """Published files say some of the positions' parameters on the network, and some of its own on them."""
        target = node.child("target")
        ignored = target is not None and target.value == PUBLISHED_ROTARY
        params = self.component(node)
        for name in _INTERPOLATION:
            if name in network:
                self._agree(params, name, network.pop(name))
            without = params.pop(name, None) if ignored else None
            if without is not None and without.plain() != 1:
                text = "the published rotary positions never applied it: no effect; ours (RotaryPositionMixin) would"
                self.report.warn(without.origin, text)
        if "text_length" in params:
            self._agree(network, "text_length", params.pop("text_length"))
        if "hidden_size_head" in params:
            self._check_head(params.pop("hidden_size_head"), network)

    def _check_head(self, given: Node, network: dict[str, Node]) -> None:
        sizes = [network[name].value for name in ("hidden_size", "num_attention_heads") if name in network]
        if len(sizes) == 2 and all(type(size) is int and size > 0 for size in sizes):
            width = sizes[0] / sizes[1]
            if given.plain() != width:
                text = f"{_yaml(given.plain())} differs from hidden_size / num_attention_heads, {width:g}"
                self.report.error(given.origin, text)

    def _conditioner(self, params: dict[str, Node]) -> None:
        models = params.pop("emb_models", None)
        if models is not None:
            if not isinstance(models.value, list) or len(models.value) != 1:
                self.report.error(models.origin, "must be a list of one text encoder (FrozenT5Embedder)")
                return
            entry = models.value[0]
            encoder = {key: child for key, child in _mapping(entry).items() if key in ("target", "params")}
            params["encoder"] = Node(encoder, entry.origin)
            beside = {key: child for key, child in _mapping(entry).items() if key not in encoder}
            params.update(self._params(beside, EMBEDDER))
            for name, value in EMBEDDER.defaults.items():
                params.setdefault(name, Node(value, entry.origin))
        self.component(params.get("encoder"))

    def _vae(self, params: dict[str, Node]) -> None:
        for coder in _CODERS:
            for name, child in self._part(params.pop(coder, None)).items():
                self._agree(params, name, child)

    def _schedule(self, model: Node) -> None:
        """Training, denoiser and sampler each have their copy of one noise schedule."""
        ours = model.child("schedule_config")
        copies = [*([] if ours is None or ours.value is None else [ours]), *self.schedules]
        for copy in copies:
            self.component(copy)
        for copy in copies[1:]:
            if _schedule_values(copy) != _schedule_values(copies[0]):
                first = f"{copies[0].origin.place()}: {copies[0].origin.path}"
                self.report.error(copy.origin, f"differs from {first}: training and sampling share one noise schedule")
        if copies:
            model.value["schedule_config"] = copies[0]

    def _agree(self, params: dict[str, Node], name: str, child: Node) -> None:
        """Fold a parameter that may have been given before."""
        first = params.setdefault(name, child)
        if first.plain() != child.plain():
            text = f"{_yaml(child.plain())} differs from {_yaml(first.plain())} at {first.origin.place()}"
            self.report.error(child.origin, f"{text} ({first.origin.path})")


def _mapping(node: Node | None) -> dict[str, Node]:
    return node.value if node is not None and isinstance(node.value, dict) else {}


def _schedule_values(node: Node) -> tuple[str, dict[str, Any]]:
    params = {name: child.plain() for name, child in _mapping(node.child("params")).items()}
    target = node.child("target")
    return "" if target is None else str(target.value), {**_SCHEDULE_DEFAULTS, **params}


def _yaml(value: Any) -> str:
    """A value as YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
