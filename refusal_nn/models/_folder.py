"""What a model's files say, looked at before a library that believes them reads them.

A folder is somebody else's: a size in its config decides how much memory is asked for, a name in it
which files are read, and pickled weights run code when they are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from refusal_nn._files import kind_at, parse_json, quoted, read_text
from refusal_nn._memory import gigabytes, total_memory
from refusal_nn.errors import ModelError
from refusal_nn.models._rendering import MAX_TEMPLATE

MAX_CONFIG = 16 << 20
"""Most bytes of a config file."""
MAX_FILE = 256 << 20
"""Most bytes of any file that is not weights: the largest vocabularies have tens of megabytes."""
_SIZES = {
    "num_hidden_layers": 10_000,
    "n_layer": 10_000,
    "n_layers": 10_000,
    "num_layers": 10_000,
    "encoder_layers": 10_000,
    "decoder_layers": 10_000,
    "num_decoder_layers": 10_000,
    "num_labels": 1 << 20,
    "hidden_size": 1 << 24,
    "n_embd": 1 << 24,
    "d_model": 1 << 24,
    "intermediate_size": 1 << 26,
    "n_inner": 1 << 26,
    "ffn_dim": 1 << 26,
    "num_attention_heads": 1 << 20,
    "n_head": 1 << 20,
    "num_key_value_heads": 1 << 20,
    "head_dim": 1 << 24,
    "num_experts": 1 << 16,
    "num_local_experts": 1 << 16,
    "n_routed_experts": 1 << 16,
    "vocab_size": 1 << 28,
    "max_position_embeddings": 1 << 40,
    "n_positions": 1 << 40,
}
"""Sizes that a config names, and far more than any model has of each."""
_NEEDED = {
    *("num_hidden_layers", "n_layer", "hidden_size", "n_embd", "vocab_size", "intermediate_size"),
    *(
        "num_attention_heads",
        "n_head",
        "num_key_value_heads",
        "max_position_embeddings",
        "n_positions",
    ),
}
"""Those of which a language model has some; zero of another, or in a part, says that there is none."""
_SLACK = 100_000_000
"""Numbers that a model may have beside those in its files: tables of positions, masks."""
_READ = (".json", ".txt", ".jinja", ".model", ".tiktoken", ".py")
_UNREAD = {
    "special_tokens_map_file",
    "added_tokens_file",
    "tokenizer_config_file",
    "chat_template_file",
}
"""Keys of a tokenizer's config that older libraries wrote, a path of theirs, and that none opens."""
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_CONVERT = "convert them to safetensors (save_pretrained does)"


@dataclass(frozen=True)
class Weights:
    """What the headers of the weights say: how many tensors there are, and numbers in them."""

    tensors: int
    numbers: int


def check_folder(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Look at a model folder's files, weights aside.

    Raises
    ------
    ModelError
        If one is no plain file or too large, a config is not what it must be or declares sizes that
        no model has, the folder holds an adapter, or it needs code of its own that is not trusted.
    """
    name = quoted(folder.name)
    for file in _entries(folder):
        if kind_at(file) == "other":
            raise ModelError(
                f"model {name} cannot be loaded: {quoted(file.name)} in it is a pipe or a device, not a "
                "plain file; give a folder written by save_pretrained."
            )
        most = MAX_TEMPLATE if file.suffix == ".jinja" else MAX_FILE
        if file.suffix in _READ and _size(file) > most:
            raise ModelError(
                f"model {name} cannot be loaded: {quoted(file.name)} in it is larger than any model's; "
                "download the folder again."
            )
    if kind_at(folder / "adapter_config.json"):
        raise ModelError(
            f"model {name} is an adapter (adapter_config.json), whose base model lies elsewhere; merge it "
            "into its base model, save that, and give its folder."
        )
    config = _read(folder, "config.json")
    check_config(config, name)
    tokenizer = (
        _read(folder, "tokenizer_config.json") if _is(folder, "tokenizer_config.json") else {}
    )
    _check_tokenizer(tokenizer, folder, name)
    if _is(folder, "generation_config.json"):
        _check_ends(_read(folder, "generation_config.json").get("eos_token_id"), name)
    for found, what in ((config, "config.json"), (tokenizer, "tokenizer_config.json")):
        if "auto_map" in found and not (trust_remote_code or _known(found)):
            raise ModelError(
                f"model {name} needs code of its own ({what} names it in auto_map); read that code, and "
                "pass --trust-remote-code if you trust it."
            )


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Refuse a config with sizes that no model has, or that names code to be fetched.

    Raises
    ------
    ModelError
    """
    for part in _parts(config):
        for size, most in _SIZES.items():
            value = part.get(size)
            if value is None or isinstance(value, list | Mapping):  # some families have one a layer
                continue
            least = int(part is config and size in _NEEDED)
            if not _is_whole(value) or not least <= value <= most:
                raise ModelError(
                    f"model {name} cannot be loaded: its config.json says {size} is "
                    f"{quoted(str(value)) if isinstance(value, str) else quoted(str(value))[1:-1]}, but "
                    f"that is a whole number from {least} to {most:,}; give the model's own config.json."
                )
        for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
            if "/" in str(part.get(key, "")):
                raise ModelError(
                    f"model {name} cannot be loaded: its config.json asks for code of the hub ({key}); "
                    f"remove {key} from it."
                )
    kind = config.get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise ModelError(
            f"model {name} cannot be loaded: model_type in its config.json is no text; give the model's "
            "own config.json."
        )


def check_weights(folder: Path) -> Weights:
    """Look at the headers of a model folder's weights.

    Raises
    ------
    ModelError
        If there are none as safetensors, a shard is missing or lies elsewhere, or a header is damaged.
    """
    from safetensors import SafetensorError, safe_open

    name = quoted(folder.name)
    tensors = numbers = 0
    for file in _weight_files(folder, name):
        try:
            with safe_open(folder / file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - no mapping
                    tensors += 1
                    numbers += prod(opened.get_slice(key).get_shape())
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split()).replace(f"{folder}/", "")[:200].rstrip(".")
            raise ModelError(
                f"model {name} cannot be loaded: {quoted(file)} is damaged ({reason}); download it again."
            ) from error
    layers = max(
        (p[key] for p in _parts(_read(folder, "config.json")) for key in _SIZES
         if "layer" in key and isinstance(p.get(key), int)), default=0,
    )  # fmt: skip
    if layers > tensors:
        raise ModelError(
            f"model {name} cannot be loaded: its config.json declares {layers:,} layers, but its weights "
            f"are {tensors:,} tensors; give the model's own config.json."
        )
    return Weights(tensors, numbers)


def check_size(
    name: str, module: torch.nn.Module, weights: Weights | None, device: str | None
) -> None:
    """Refuse a model that is larger than its files, or than all the memory there is.

    Parameters
    ----------
    name : str
        As it stands in messages.
    module : torch.nn.Module
        On the meta device, in the dtype to load.
    weights : Weights, optional
        What its files hold, where they are at hand.
    device : str, optional
        Where it is to be; None: not one device, so memory is not compared.

    Raises
    ------
    ModelError
    """
    tensors = [*module.parameters(), *module.buffers()]
    numbers = sum(t.numel() for t in tensors)
    packed = getattr(module.config, "quantization_config", None) is not None
    if weights is not None and not packed and numbers > 4 * weights.numbers + _SLACK:
        raise ModelError(
            f"model {name} cannot be loaded: its config.json describes {numbers:,} weights, but its files "
            f"hold {weights.numbers:,}; give the model's own config.json."
        )
    needed = sum(t.numel() * t.element_size() for t in tensors)
    there = None if device is None or packed else total_memory(device)
    if there is not None and needed > there:
        raise ModelError(
            f"model {name} needs {gigabytes(needed)} for its weights alone, and {device} has "
            f"{gigabytes(there)} in all; use a smaller --dtype or model, --device auto, or --backend ndif."
        )


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
        templates = folder / "additional_chat_templates"
        if kind_at(templates) == "folder":
            yield from templates.iterdir()
    except OSError as error:
        raise ModelError(
            f"folder {quoted(folder.name)} cannot be read: {error.strerror}."
        ) from error


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _is(folder: Path, file: str) -> bool:
    return bool(kind_at(folder / file))


def _read(folder: Path, file: str) -> dict[str, Any]:
    what = f"model {quoted(folder.name)} cannot be loaded: its {file}"
    try:
        text = read_text(folder / file, what="it", limit=MAX_CONFIG, error=ModelError)
    except ModelError as error:  # without the path
        reason = str(error).removeprefix(f"it {quoted(folder / file)} ")
        raise ModelError(f"{what} {reason}") from error
    found = parse_json(text, what=what, error=ModelError)
    if not isinstance(found, dict):
        raise ModelError(f"{what} is a JSON {type(found).__name__}, not an object; give its own.")
    return found


def _is_whole(value: Any) -> bool:
    """Whether it is a whole number, which some configs write as ``1200.0``."""
    return not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    )


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A config and those of its parts."""
    return [config, *(v for v in config.values() if isinstance(v, Mapping))]


def _known(found: Mapping[str, Any]) -> bool:
    """Whether the library has code of its own for what a config names, and so runs none of the folder's."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    if "tokenizer_class" in found:
        return tokenizer_class_from_name(str(found["tokenizer_class"])) is not None
    return str(found.get("model_type")) in CONFIG_MAPPING


def _check_tokenizer(config: Mapping[str, Any], folder: Path, name: str) -> None:
    for key, value in config.items():
        opened = key.endswith(("_file", "_spm")) and key not in _UNREAD
        if not opened or not isinstance(value, str):
            continue
        elsewhere = Path(value).name != value
        if kind_at(value) == "other" or (elsewhere and (kind_at(value) or kind_at(folder / value))):
            raise ModelError(
                f"model {name} cannot be loaded: its tokenizer_config.json names a file outside the folder "
                f"({key}); remove {key} from it."
            )


def _check_ends(ends: Any, name: str) -> None:
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if wrong := [
        e for e in listed if isinstance(e, bool) or not isinstance(e, int) or abs(e) >= 1 << 31
    ]:
        raise ModelError(
            f"model {name} cannot be loaded: its generation_config.json says eos_token_id is "
            f"{quoted(str(wrong[0]))}, but that is a whole number or a list of them; correct it."
        )


def _weight_files(folder: Path, name: str) -> list[str]:
    """Names of the files with the weights, in the order in which the library looks for them."""
    if _is(folder, "model.safetensors"):
        return ["model.safetensors"]
    if _is(folder, "model.safetensors.index.json"):
        index = _read(folder, "model.safetensors.index.json").get("weight_map")
        if (
            not isinstance(index, dict)
            or not index
            or not all(isinstance(v, str) for v in index.values())
        ):
            raise ModelError(
                f"model {name} cannot be loaded: model.safetensors.index.json maps no tensor to a file; "
                "download it again."
            )
        files = sorted(set(index.values()))
        for file in files:
            if Path(file).name != file or file in (".", "..") or not file.endswith(".safetensors"):
                raise ModelError(
                    f"model {name} cannot be loaded: model.safetensors.index.json names {quoted(file)}, "
                    "which is no safetensors file in the folder; give the model's own index."
                )
            if kind_at(folder / file) != "file":
                raise ModelError(
                    f"model {name} cannot be loaded: {quoted(file)} is missing, which "
                    "model.safetensors.index.json names; download the whole folder."
                )
        return files
    pickled = sorted(file.name for kind in _PICKLED for file in folder.glob(kind))
    if pickled:
        raise ModelError(
            f"model {name} holds pickled weights only ({quoted(pickled[0])}), which can run code when they "
            f"are loaded; {_CONVERT}."
        )
    raise ModelError(
        f"model {name} cannot be loaded: the folder holds no weights (model.safetensors); give a complete "
        "folder, model and tokenizer written by save_pretrained."
    )
