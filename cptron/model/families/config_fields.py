"""Fields of a Hugging Face config that families share, read and written.

Place in the flow: building blocks of the `read_config` and `write_config` of `families.*`. Invariant: a field that is
missing, of the wrong kind, or says something that the engine does not compute is an error that names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cptron.errors import ConversionError
from cptron.model.architecture import MOST, Architecture

NO_DROPOUT = {"attention_dropout": 0.0}
NO_BIAS = {"attention_bias": False}


@contextmanager
def reading(family: str) -> Iterator[None]:
    """Turns what goes wrong while the fields of a config are read into `ConversionError`."""
    try:
        yield
    except KeyError as error:
        raise ConversionError(
            f"config.json lacks {error.args[0]!r}, which a {family} model needs; check the file"
        ) from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConversionError(
            f"config.json has a value of the wrong kind ({error}); check the file"
        ) from None


def require(config: Mapping[str, Any], family: str, values: Mapping[str, Any]) -> None:
    """Refuse a field that differs from what the engine computes; absent means the default, which is this."""
    for key, wanted in values.items():
        if config.get(key, wanted) != wanted:
            raise ConversionError(
                f"config.json has {key}={config[key]!r}; the {family} family supports only {wanted!r}"
            )


def sizes(config: Mapping[str, Any], *, tied: bool = False) -> dict[str, Any]:
    """Fields of `Architecture` that every family's config has; `tied`: what it means to say nothing of that."""
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    layers = int(config["num_hidden_layers"])
    if not 1 <= layers <= MOST["num_layers"]:  # before anything is made for each of them
        raise ValueError(f"num_hidden_layers is {layers}, must be from 1 to {MOST['num_layers']}")
    return {
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": int(config["intermediate_size"]),
        "num_attention_heads": heads,
        "num_kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_dim": int(config.get("head_dim") or hidden // heads),
        "vocab_size": int(config["vocab_size"]),
        "max_position_embeddings": int(config["max_position_embeddings"]),
        "norm_eps": float(config["rms_norm_eps"]),
        "tied_embeddings": bool(config.get("tie_word_embeddings", tied)),
    }


def write_sizes(arch: Architecture, model_type: str, architecture: str) -> dict[str, Any]:
    """What `sizes` reads, and the names of the model's classes. Special tokens are the tokenizer's to name: null here,
    since the defaults of the classes are those of one vocabulary, and the row of a padding token would not learn."""
    return {
        "model_type": model_type,
        "architectures": [architecture],
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        "attention_dropout": 0.0,
        "head_dim": arch.head_dim,
        "hidden_size": arch.hidden_size,
        "intermediate_size": arch.ffn_hidden_size,
        "max_position_embeddings": arch.max_position_embeddings,
        "num_attention_heads": arch.num_attention_heads,
        "num_hidden_layers": arch.num_layers,
        "num_key_value_heads": arch.num_kv_heads,
        "rms_norm_eps": arch.norm_eps,
        "tie_word_embeddings": arch.tied_embeddings,
        "vocab_size": arch.vocab_size,
    }


def window(value: Any, layers: Sequence[int]) -> dict[str, Any]:
    """The sliding window of `layers`, as fields of `Architecture`; none where no layer has one."""
    if not layers:
        return {}
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConversionError(
            f"config.json has sliding_window={value!r}, which must be a whole number above 0; correct it"
        )
    return {"sliding_window": value, "windowed_layers": tuple(layers)}


def window_everywhere(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sliding window of models that have it in all layers or, where it is null, in none. Kinds of layers that
    the config lists must agree: the model itself does not look at them."""
    value = config["sliding_window"]
    layers = range(int(config["num_hidden_layers"]))
    kind = "full_attention" if value is None else "sliding_attention"
    listed = config.get("layer_types")
    if listed is not None and set(listed) != {kind}:
        raise ConversionError(
            f"config.json has layer_types with {sorted(set(map(str, listed)))}, but sliding_window={value!r} means "
            f"{kind} in every layer of this family; remove layer_types"
        )
    return window(value, () if value is None else layers)


def windowed_layers(config: Mapping[str, Any], default: Sequence[int]) -> list[int]:
    """Numbers of the layers that `layer_types` says have a sliding window; `default` where it says nothing."""
    kinds = config.get("layer_types")
    if kinds is None:
        return list(default)
    if len(kinds) != int(config["num_hidden_layers"]):
        raise ConversionError(
            f"config.json has layer_types of {len(kinds)} layers, but num_hidden_layers="
            f"{config['num_hidden_layers']}; correct one of them"
        )
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise ConversionError(
                f"config.json has {kind!r} among layer_types; the engine computes full_attention and "
                "sliding_attention only"
            )
    return [number for number, kind in enumerate(kinds) if kind == "sliding_attention"]


def write_layer_types(arch: Architecture) -> list[str]:
    """What `windowed_layers` reads."""
    windows = map(arch.window_of, range(arch.num_layers))
    return ["full_attention" if found is None else "sliding_attention" for found in windows]
