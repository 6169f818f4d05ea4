"""What is here of a model that lives on a server: its tokenizer and its shape."""

from __future__ import annotations

import contextlib
from typing import Any

import httpx

from refusal_nn.backends.ndif._deployments import TASK
from refusal_nn.errors import ModelError, UnavailableError
from refusal_nn.models import EMBEDDED, Loading, quiet
from refusal_nn.models._commit import commit_of
from refusal_nn.models._load import not_loaded, read_config, read_tokenizer


def shape_of(asked: Loading) -> tuple[Any, Any, str | None]:
    """The nnsight model on the meta device, the tokenizer, and the commit both are from."""
    from nnsight.modeling.transformers import TransformersModel
    from transformers import GenerationConfig

    source, revision = asked.source, asked.reading["revision"]
    options: dict[str, Any] = {
        k: asked.reading[k] for k in ("attn_implementation", "trust_remote_code")
    }
    options["dtype"] = asked.dtype
    with not_loaded(source), quiet():
        if asked.name not in EMBEDDED:
            read_config(asked)
        tokenizer = read_tokenizer(asked)
        nn_model = TransformersModel(
            source,
            task=TASK,
            tokenizer=tokenizer,
            revision=revision,
            **{k: v for k, v in options.items() if v is not None},
        )
        # not every model has this file, and a model built from its configuration alone does not read
        # it; it may name further tokens that end a completion
        with contextlib.suppress(OSError):
            nn_model._module.generation_config = GenerationConfig.from_pretrained(
                source, revision=revision
            )
    return nn_model, tokenizer, commit_of(source, revision)


def hub_name(source: str) -> str:
    """The hub's own spelling of a repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return str(HfApi().model_info(source).id)
    except OfflineModeIsEnabled as error:
        raise ModelError(
            f"the hub cannot be asked about {source!r} in offline mode; unset HF_HUB_OFFLINE."
        ) from error
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ModelError(
            f"model {source!r} is not found on the hub: {reason}; check the name and the network."
        ) from error
    except (httpx.HTTPError, OSError) as error:
        raise UnavailableError(
            f"the hub cannot be asked about {source!r} ({type(error).__name__}); check the network and "
            "HF_ENDPOINT."
        ) from error
