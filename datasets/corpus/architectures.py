"""The architectures of the corpus, read from ``architectures.yaml``: which networks, in which sizes, which held out.

Networks are made from the configurations of timm, torchvision and transformers, or by the few lines in ``layers.py``,
with random weights. Weights do not matter to a kernel; shapes do. So nothing is downloaded but the packages.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import torch

Source = Callable[[Path], Path]
"""Gives the model file of a network, made in a folder or found in a package."""

MOST_LAYERS = 6
"""Of a transformer's stack: its layers are the same workloads again."""
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "n_layers")
VOCABULARY = 8192
"""Rows of every table of tokens: of more, the lookup is the same kernel."""
VARIANTS = ((4, 1.0), (1, 0.72), (8, 1.0), (1, 1.43), (1, 0.57), (4, 0.72))
"""Batch, and side of the image over the usual one, in turns: a network of timm comes as usual, and in one of these."""
FIXED_SIDE_VARIANTS = ((4, 1.0), (8, 1.0))
SIDE_STEP = 32
"""Sides are multiples of it: what networks reduce an image by."""
MOST_PIXELS = 8 * 256 * 256
"""Over the batch. Networks of more are slow to measure, and rare."""
SEED = 0
TABLE = Path(__file__).with_name("architectures.yaml")


@dataclass(frozen=True)
class Architecture:
    """A network of the corpus in one size.

    Parameters
    ----------
    name : str
        The model, and its size where that is not the usual one: ``resnet18-batch4``.
    family : str
        What it is one of, for splits and tables.
    source : callable
    held_out : bool
        Figures are of it: no workload of it is in the corpus.
    """

    name: str
    family: str
    source: Source
    held_out: bool = False


def architectures() -> list[Architecture]:
    """All networks of the table."""
    table = yaml.safe_load(TABLE.read_text())
    held_out = table.pop("held_out")
    return [*_read(table, held_out=False), *_read(held_out, held_out=True)]


def _read(table: dict[str, Any], held_out: bool) -> Iterator[Architecture]:
    def exported(name: str, family: str, make: Callable[..., Any], *arguments: Any) -> Architecture:
        return Architecture(name, family, partial(_export, partial(make, *arguments)), held_out)

    for family, names in table.get("timm", {}).items():
        variants = FIXED_SIDE_VARIANTS if family in table.get("timm_fixed_side", ()) else VARIANTS
        for at, name in enumerate(names):
            yield exported(name, family, _timm, name, 1, 1.0)
            if not held_out:
                batch, scale = variants[at % len(variants)]
                size = f"batch{batch}" + f"-side{scale:g}" * (scale != 1.0)
                yield exported(f"{name}-{size}", family, _timm, name, batch, scale)
    for family, sides in table.get("torchvision", {}).items():
        for name, side in sides.items():
            yield exported(f"torchvision-{name}", family, _torchvision, name, side)
    for name, entry in table.get("transformers", {}).items():
        for shape in entry.get("tokens") or entry["inputs"]:
            arguments = (entry["classes"], entry.get("settings", {}), shape, "tokens" in entry)
            yield exported(_named(name, shape), entry["family"], _transformer, *arguments)
    for name, entry in table.get("layers", {}).items():
        for shape in entry["inputs"]:
            yield exported(_named(name, shape), entry["family"], _own, entry["class"], entry["settings"], shape)
    for name in table.get("onnx", ()):
        yield Architecture(f"onnx-{name}", "Light ONNX", partial(_light, name), held_out)


def _named(name: str, shape: Sequence[int]) -> str:
    return f"{name}-{'x'.join(map(str, shape))}"


def _export(make: Callable[[], tuple[torch.nn.Module, torch.Tensor]], folder: Path) -> Path:
    import torch

    torch.manual_seed(SEED)
    model, example = make()
    file = folder / "model.pt2"
    with torch.no_grad():
        torch.export.save(torch.export.export(model.eval(), (example,)), file)
    return file


def _light(name: str, folder: Path) -> Path:
    """A model that the onnx package has."""
    package = importlib.util.find_spec("onnx")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("onnx")
    return Path(package.origin).parent / f"backend/test/data/light/light_{name}.onnx"


def _timm(name: str, batch: int, scale: float) -> tuple[torch.nn.Module, torch.Tensor]:
    import timm
    import torch
    from timm.utils.model import reparameterize_model

    # As it is deployed: branches that training alone needs are merged.
    model = reparameterize_model(timm.create_model(name, pretrained=False, exportable=True).eval())
    channels, side, _ = model.pretrained_cfg["input_size"]
    if scale != 1.0:
        side = max(SIDE_STEP, round(side * scale / SIDE_STEP) * SIDE_STEP)
    return model, torch.randn(max(1, min(batch, MOST_PIXELS // side**2)), channels, side, side)


def _torchvision(name: str, side: int) -> tuple[torch.nn.Module, torch.Tensor]:
    import layers
    import torch
    import torchvision

    build = torchvision.models.get_model_builder(name)
    options = {"weights": None, "weights_backbone": None, "init_weights": False}
    known = inspect.signature(build).parameters
    model = build(**{key: value for key, value in options.items() if key in known or key == "weights"})
    if hasattr(model, "backbone"):
        model = layers.DetectionHeads(model) if hasattr(model, "transform") else layers.FirstOutput(model)
    return model, torch.randn(1, 3, side, side)


def _transformer(
    classes: tuple[str, str], settings: dict[str, Any], shape: Sequence[int], tokens: bool
) -> tuple[torch.nn.Module, torch.Tensor]:
    import layers
    import torch
    import transformers

    config_name, model_name = classes
    config_class = getattr(transformers, config_name)
    # Products and a softmax, as compilers get them, and no cache, which is no part of a static network.
    config = config_class(**({"vocab_size": VOCABULARY} if tokens else {}), **settings, attn_implementation="eager")
    for name in LAYERS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(getattr(config, name), MOST_LAYERS))
    config.use_cache = False
    package = config_class.__module__.replace(".configuration_", ".modeling_")
    model = getattr(importlib.import_module(package), model_name)(config)
    example = torch.randint(0, VOCABULARY, tuple(shape)) if tokens else torch.randn(*shape)
    return layers.FirstOutput(model), example


def _own(kind: str, settings: dict[str, Any], shape: Sequence[int]) -> tuple[torch.nn.Module, torch.Tensor]:
    import layers
    import torch

    return getattr(layers, kind)(shape[1], **settings), torch.randn(*shape)
