"""How a model is loaded: from an embedded name, a folder or the hub."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack, cast

import torch

from refusal_nn._files import is_hub_id, kind_at, quoted
from refusal_nn.errors import ModelError, RefusalNNError, RequestError
from refusal_nn.models._architecture import build_architecture
from refusal_nn.models._backend import Backend, Elsewhere, Loading, Reading, backend_class
from refusal_nn.models._catalogue import EMBEDDED, embedded_path
from refusal_nn.models._commit import commit_of
from refusal_nn.models._folder import check_config, check_folder, check_size, check_weights
from refusal_nn.models._hashes import weights_hash
from refusal_nn.models._model import Model

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")
}

# False, not None: transformers would ask at the terminal whether to trust
_READING: Reading = {"revision": None, "trust_remote_code": False, "attn_implementation": None}


class Options(Reading, Elsewhere, total=False):
    """The keywords of :func:`load_model` that say how files are read and how a server is asked."""


def load_model(
    name: str,
    *,
    backend: str = "local",
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    chat_template: str | None = None,
    **options: Unpack[Options],
) -> Model:
    """Load a chat model by embedded name, local folder or hub id.

    Parameters
    ----------
    name : str
        An embedded model (``tiny-refuser``), a folder written by ``save_pretrained``, or a hub id.
    backend : {"local", "ndif", "dry-run"}
        Where jobs run. ``ndif``: on an NDIF server; no weights are loaded here. ``dry-run`` runs the
        serialised job in a process where this package cannot be imported, as a server would.
    host : str, optional
        Address of the NDIF server; default ``NDIF_HOST``, else the one nnsight is configured for.
        The access key is ``NDIF_API_KEY`` or the one nnsight keeps.
    device : str, optional
        ``cpu``, ``cuda``, ``cuda:1``, or ``auto`` to spread over all GPUs (needs the ``accelerate``
        extra). Default: ``cuda`` where there is one. Not for ``ndif``.
    dtype : str or torch.dtype, optional
        ``float32``, ``float64``, ``bfloat16`` or ``float16``; default the checkpoint's own, or what
        the server runs.
    chat_template : str, optional
        A Jinja file, or ``raw``; default the tokenizer's own template.
    limits : Limits, optional
        How work is cut into jobs for ``ndif``, and how long one is waited for.
    plain_http : bool
        For ``ndif``: give the access key to a server that is asked over http, although it is not on
        this machine.
    detach : bool
        For ``ndif``: runs submit a stage's jobs and raise :class:`~refusal_nn.errors.Detached`; the
        same request made again collects them.
    revision : str, optional
        Branch, tag or commit of a hub model.
    trust_remote_code : bool
        Run code from the model's repository. Never by default.
    attn_implementation : str, optional
        ``sdpa`` or ``eager``; default the model's own.

    Raises
    ------
    RequestError
        If options contradict each other, or the server's address is wrong.
    ModelError
        If the model cannot be found, read or mapped, or its weights are not complete or not finite.
        (That its residual stream adds up on the map is measured by the first trace.)
    UnavailableError
        If no NDIF server answers.
    """
    if unknown := options.keys() - Options.__optional_keys__:
        raise TypeError(f"load_model() got an unexpected keyword argument {min(unknown)!r}")
    reading = {k: v for k, v in options.items() if k in _READING}
    elsewhere = {k: v for k, v in options.items() if k not in _READING and v not in (None, False)}
    chosen = backend_class(backend)
    source = _source(name)
    if name not in EMBEDDED and kind_at(source) == "folder":
        trusted = bool(reading.get("trust_remote_code"))
        check_folder(Path(source), trust_remote_code=trusted)
    return chosen.load(
        Loading(
            name,
            source,
            dtype=_dtype(dtype),
            reading=cast(Reading, {**_READING, **reading}),
            chat_template=chat_template,
            device=device,
            elsewhere=cast(Elsewhere, elsewhere),
        )
    )


def load_here(asked: Loading, backend: Backend) -> Model:
    """A model with its weights, for a backend that runs it on this machine.

    Raises
    ------
    RequestError
        If it was asked for what only servers have, or for a device that is not there.
    ModelError
        As :func:`load_model`.
    """
    if asked.elsewhere:
        raise RequestError(
            f"host, deadline and detach are for backend ndif, not for {backend.name}; leave them out "
            "or pass --backend ndif."
        )
    name, source = asked.name, asked.source
    nn_model, tokenizer, report = _read(asked, **_placement(asked.device))
    with not_loaded(source):
        model = wrap_model(
            nn_model,
            tokenizer,
            name=folder_name(name) if name not in EMBEDDED and Path(source).is_dir() else name,
            source=source,
            backend=backend,
            revision=asked.reading["revision"],
            chat_template=asked.chat_template,
        )
        _check_complete(model, report)
        model.weights_hash = weights_hash(source, model.revision)
    return model


def wrap_model(
    nn_model: Any,
    tokenizer: Any,
    *,
    name: str,
    source: str = "",
    backend: str | Backend = "local",
    revision: str | None = None,
    chat_template: str | None = None,
) -> Model:
    """A :class:`Model` from an nnsight model made by hand; maps it and checks its weights.

    ``backend`` is ``local``, ``dry-run`` or a backend made by hand.

    Raises
    ------
    ModelError
        As :func:`load_model`.
    """
    module = nn_model._module
    parameter = next(module.parameters())
    model = Model(
        name=name,
        source=source,
        nnsight=nn_model,
        tokenizer=tokenizer,
        arch=build_architecture(module),
        dtype=parameter.dtype,
        device=parameter.device,
        backend=backend_class(backend)() if isinstance(backend, str) else backend,
        revision=commit_of(source, revision) or revision,
        chat_template=chat_template,
    )
    module.requires_grad_(False)
    module.eval()
    if model.dtype == torch.float64 and module._can_set_experts_implementation():
        module.set_experts_implementation("eager")  # the grouped matrix product has no float64
    _check_finite(model)
    return model


def _source(name: str) -> str:
    path = embedded_path(name)
    if path is not None:
        return str(path)
    try:
        folder = Path(name).expanduser()
    except RuntimeError:  # the home of a user who is not there
        folder = Path(name)
    if kind_at(folder) == "folder":
        if not kind_at(folder / "config.json"):
            raise ModelError(
                f"folder {quoted(name)} holds no config.json; give a folder written by save_pretrained."
            )
        return str(folder)
    if kind_at(folder):
        raise ModelError(
            f"model {quoted(name)} is a file, not a folder; give the folder written by save_pretrained."
        )
    if (
        folder.is_absolute()
        or name.startswith((".", "~"))
        or (name.count("/") > 1 and ":" not in name)
    ):
        raise ModelError(f"no model folder at {quoted(name)}; check the path.")
    if not is_hub_id(name):
        raise ModelError(
            f"unknown model {quoted(name)}: embedded models are {', '.join(EMBEDDED)}; otherwise give a "
            "folder or a hub id such as org/name."
        )
    return name


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise RequestError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def _placement(device: str | None) -> dict[str, Any]:
    if device == "auto":
        try:
            import accelerate  # noqa: F401
        except ImportError as error:
            raise RequestError(
                "--device auto spreads a model over GPUs with accelerate, which is not installed; "
                "pip install 'refusal-nn[accelerate]', or name one device."
            ) from error
        return {"device_map": "auto"}
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parsed = torch.device(chosen)
    except RuntimeError as error:
        raise RequestError(f"unknown device {chosen!r}; use cpu, cuda, cuda:1 or auto.") from error
    if parsed.type == "meta":
        raise RequestError("device 'meta' holds no weights to run; use cpu, cuda, cuda:1 or auto.")
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise RequestError(
            f"device {chosen!r} asked for, but PyTorch sees no GPU; use --device cpu."
        )
    return {"device": chosen}


def _read(asked: Loading, device: str | None = None, **placement: Any) -> Any:
    """The wrapped model, its tokenizer, and what ``transformers`` says of the checkpoint's keys."""
    from nnsight.modeling.transformers import TransformersModel
    from transformers import AutoModelForCausalLM

    reading = {k: v for k, v in asked.reading.items() if v is not None}
    with not_loaded(asked.source), quiet():
        if asked.name not in EMBEDDED:
            _check_fits(asked, reading, device)
        tokenizer = read_tokenizer(asked)
        # not by nnsight, which would drop the report
        module, report = AutoModelForCausalLM.from_pretrained(
            asked.source,
            output_loading_info=True,
            dtype=asked.dtype or "auto",
            use_safetensors=True,  # pickled weights can run code
            **reading,
            **placement,
        )
        nn_model = TransformersModel(
            module,
            task="text-generation",
            tokenizer=tokenizer,
            **({} if device is None else {"device": device}),
        )
    return nn_model, tokenizer, report


def _check_fits(asked: Loading, reading: Mapping[str, Any], device: str | None) -> None:
    """Refuse a model that its files do not hold, or that no memory here does, before any is asked for."""
    from transformers import AutoModelForCausalLM

    weights = check_weights(Path(asked.source)) if kind_at(asked.source) == "folder" else None
    config = read_config(asked)
    if reading["trust_remote_code"]:
        return  # its code may do what it likes, on the meta device or elsewhere
    dtype = asked.dtype or getattr(config, "dtype", None)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(
            config, **({"dtype": dtype} if isinstance(dtype, torch.dtype) else {})
        )
    check_size(_named(asked.source), module, weights, device)


def read_config(asked: Loading) -> Any:
    """The config of a folder or hub id, looked at as it is written and as the library takes it.

    Raises
    ------
    ModelError
        As :func:`check_config`.
    """
    from transformers import AutoConfig, PretrainedConfig

    reading = {k: asked.reading[k] for k in ("revision", "trust_remote_code")}
    written, _ = PretrainedConfig.get_config_dict(asked.source, revision=reading["revision"])
    check_config(written, _named(asked.source))
    config = AutoConfig.from_pretrained(asked.source, **reading)
    check_config(config.to_dict(), _named(asked.source))
    return config


def _named(source: str) -> str:
    return quoted(folder_name(source) if kind_at(source) == "folder" else source)


def folder_name(folder: str) -> str:
    """What a model folder is called: its own name, also where it is given as ``.`` or ``~/x/..``."""
    path = Path(folder).expanduser()
    # a link keeps its own name, which says more than that of a snapshot of the hub
    return path.name if path.name not in ("", "..") else path.resolve().name


def read_tokenizer(asked: Loading) -> Any:
    """The tokenizer of a folder or hub id."""
    from transformers import AutoTokenizer

    reading = {k: v for k, v in asked.reading.items() if k != "attn_implementation"}
    with _panics_in_silence():
        tokenizer = AutoTokenizer.from_pretrained(asked.source, **reading)
        # some settings are believed until they are used; here it is told whose they are
        tokenizer.decode(tokenizer("a", add_special_tokens=False)["input_ids"])
    return tokenizer


@contextmanager
def _panics_in_silence() -> Iterator[None]:
    """Keep back what the tokenizers' library writes to stderr by itself where it gives up."""
    with tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        before = os.dup(2)
        os.dup2(kept.fileno(), 2)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = _is_panic(error)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            kept.seek(0)
            if not panicked and (written := kept.read()):
                os.write(2, written)


def _is_panic(error: BaseException) -> bool:
    """Whether it is what a library in Rust raises where it gives up: no :class:`Exception`."""
    return not isinstance(error, Exception) and type(error).__name__ == "PanicException"


@contextmanager
def not_loaded(source: str) -> Iterator[None]:
    """Turn what goes wrong while a model is read into one sentence with its fix."""
    try:
        yield
    except (RefusalNNError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # whatever damaged files make of several libraries
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        reason = _reason(error, source).rstrip(".")
        fix = (
            "give a complete folder, model and tokenizer written by save_pretrained"
            if kind_at(source) == "folder"
            else "check the name, the revision and the network"
        )
        if "trust_remote_code=True" in str(error):
            reason = "it needs code of its own"
            fix = "read that code, and pass --trust-remote-code if you trust it"
        name = folder_name(source) if kind_at(source) == "folder" else source
        raise ModelError(f"model {quoted(name)} cannot be loaded: {reason}; {fix}.") from error


def _reason(error: BaseException, source: str) -> str:
    """What went wrong, in one line without a path of this machine."""
    text = str(error)
    if isinstance(error, RecursionError):
        return "a file in it is nested too deeply"
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    if "ignore_mismatched_sizes" in text:
        return "the sizes of its weights are not those that its config.json describes"
    if not text or _is_panic(error) or isinstance(error, KeyError | TypeError | AttributeError):
        text = f"a file in it is not what it must be ({type(error).__name__}: {text})"
    if "with any of the following classes" in text:
        # transformers tries several classes and quotes the traceback of each
        said = [line for line in text.splitlines() if re.match(r"\w*Error: ", line)]
        text = said[0].partition(": ")[2] if said else text
    if "is not a local folder and is not a valid model identifier" in text:
        return "the hub has no such model, or none that you may see"
    if "is not a valid git identifier" in text:
        return "the hub has the model, but not at this revision"
    if kind_at(source) == "folder":
        text = text.replace(f"{source.rstrip('/')}/", "").replace(source, "the folder")
    return " ".join(text.split())[:300]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers tells of files while it reads them: bars, and a table of weights.

    What is wrong with the weights we say ourselves.
    """
    from transformers.utils import logging

    told = logging.get_verbosity()
    logging.disable_progress_bar()
    if told == logging.WARNING:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.enable_progress_bar()
        logging.set_verbosity(told)


def _check_complete(model: Model, report: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that leaves parameters random, or whose blocks the model has no place for."""
    missing = sorted(report["missing_keys"])
    blocks = f"{model.arch.layers}."
    surplus = sorted(key for key in report["unexpected_keys"] if key.startswith(blocks))
    for keys, what in (
        (missing, "are missing from its files, so they would be random"),
        (surplus, "are in its files but not in the model that its config.json describes"),
    ):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ModelError(
                f"the weights of model {model.name!r} are not complete: {', '.join(keys[:3])}{more} "
                f"{what}; give the whole checkpoint with its own config.json."
            )


def _check_finite(model: Model) -> None:
    for name, parameter in model.module.named_parameters():
        # one pass, no mask as large as the weights; NaN and infinity both survive a sum
        if not torch.isfinite(parameter.sum(dtype=torch.float32)):
            raise ModelError(
                f"the weights of model {model.name!r} are not finite (NaN or infinity in {name}); "
                "download or convert them again."
            )
