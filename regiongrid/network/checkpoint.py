"""Checkpoint files to torch modules, safely.

What may run when a file is opened:

* ``.safetensors`` and files read with ``torch.load(weights_only=True)``: nothing from the file.
* A pickled module, or any other pickled object: whatever the file says. Only with ``trust_pickle=True``.
* ``torch.export`` archives (``.pt2``): whatever the file says. ``torch.export.load`` unpickles the example inputs
  without restriction when the restricted attempt fails (tests/test_checkpoint.py has an archive that uses this),
  unpickles tensor subclasses and opaque constants, evaluates symbolic shape expressions, resolves operator names to
  Python attributes and compiles input guards. Only with ``trust_pickle=True``.
* A model factory: the caller's own code, by design.

There is no automatic fallback from the safe way to the unsafe one.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import itertools
import logging
import os
import pickletools
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from regiongrid.errors import InputError, UnsafeCheckpointError
from regiongrid.files import existing_file

log = logging.getLogger("regiongrid")

Format = Literal["state_dict", "safetensors", "pickled module", "torch.export"]
Factory = str | Callable[..., nn.Module]

#: Keys under which training checkpoints keep weights, in the order they are looked for: plain weights before averages.
WEIGHTS_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "ema_model",
    "ema",
    "params_ema",
    "shadow",
)
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|rng|callback|loop|hyper|config|args|extra_state", re.IGNORECASE)
_HOW_TO_NAME_A_MODEL = (
    "name the architecture: --model pkg.mod:factory (or path/to/file.py:factory), with --model-arg key=value if needed"
)
_HOW_TO_RESAVE = "re-save only the weights where the file was made, torch.save(model.state_dict(), 'weights.pt')"
_LEGACY_MAGIC = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # the number that opens a torch.save file without zip
_SHOWN = 4


@dataclass(frozen=True)
class Loaded:
    """A network read from a file, and how it was read.

    Parameters
    ----------
    module : torch.nn.Module
        On the CPU, in eval mode (a ``torch.export`` module has the mode it was exported in), all entries finite.
    source : Path
        The file.
    format : {"state_dict", "safetensors", "pickled module", "torch.export"}
        What the file was.
    notes : tuple of str
        Choices made on the way that a report should repeat, one sentence each.
    """

    module: nn.Module
    source: Path
    format: Format
    notes: tuple[str, ...]


def load_module(
    path: str | os.PathLike[str],
    *,
    model: Factory | None = None,
    model_args: Mapping[str, Any] | None = None,
    weights_key: str | None = None,
    trust_pickle: bool = False,
) -> nn.Module:
    """Load a network; the module of :func:`load_checkpoint`, which see."""
    return load_checkpoint(
        path, model=model, model_args=model_args, weights_key=weights_key, trust_pickle=trust_pickle
    ).module


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: Factory | None = None,
    model_args: Mapping[str, Any] | None = None,
    weights_key: str | None = None,
    trust_pickle: bool = False,
) -> Loaded:
    """Load a network from a checkpoint file.

    Parameters
    ----------
    path : path
        A state_dict saved by ``torch.save`` (bare, or inside a training checkpoint), ``.safetensors``, a pickled
        module, or a ``torch.export`` archive. The content decides, not the ending.
    model : str or callable, optional
        What makes the module: ``"pkg.mod:factory"``, ``"path/to/file.py:factory"``, or the factory itself. Modules are
        also looked for in the working folder. Without it an MLP is read off the weight shapes (:func:`infer_mlp`).
    model_args : mapping, optional
        Keyword arguments of the factory. Text is read as a Python literal where it is one, else left as text.
    weights_key : str, optional
        Which entry of a training checkpoint holds the weights. By default the first of :data:`WEIGHTS_KEYS` that does,
        or the only entry that does.
    trust_pickle : bool
        Permit pickled modules and ``torch.export`` archives, which run code from the file.

    Returns
    -------
    Loaded
        The weights as stored: where the file is wider than the module (float64 into float32), the module is widened.

    Raises
    ------
    InputError
        The file cannot be read or used: the message says why and what to do.
    UnsafeCheckpointError
        The file holds pickled code and ``trust_pickle`` is off.

    Notes
    -----
    Prefixes that wrappers add to the names (``module.``, ``_orig_mod.``, or any first component that all names share,
    such as ``model.``) are stripped only if the names do not fit the module as they are.
    """
    file = existing_file(path, "checkpoint")
    if model is None and model_args:
        raise InputError(f"model arguments {sorted(model_args)} need a model: {_HOW_TO_NAME_A_MODEL}")
    if _kind(file) == "torch.export":
        if model is not None or weights_key is not None:
            raise InputError(f"checkpoint {file} is a torch.export archive, which is its own model; leave out --model")
        loaded = _load_exported(file, trust_pickle)
    else:
        loaded = _load_weights(file, model, model_args or {}, weights_key, trust_pickle)
    try:
        check_finite(loaded.module)
    except InputError as error:
        raise InputError(f"checkpoint {file}: {error}") from error
    for note in loaded.notes:
        log.info("%s: %s", file, note)
    return loaded


def check_finite(module: nn.Module) -> None:
    """Raise unless every parameter and buffer of ``module`` holds data and no NaN or infinity.

    Raises
    ------
    InputError
        Names the first tensor that does not, and how many of its entries are bad.
    """
    for what, tensors in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, tensor in tensors:
            _check_has_data(what, name, tensor)
            bad = _count_not_finite(tensor.detach())
            if bad:
                raise InputError(
                    f"{what} {name} of shape {list(tensor.shape)} has {bad} NaN or infinite entries of "
                    f"{tensor.numel()}; the network has diverged or the file is damaged"
                )


def _check_has_data(what: str, name: str, tensor: Tensor) -> None:
    if tensor.is_meta or is_lazy(tensor):
        raise InputError(f"{what} {name} has no data (meta device or lazy); make the model with real tensors")


def _count_not_finite(tensor: Tensor) -> int:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.dtype.itemsize == 1:  # no isfinite for the 8-bit types
        tensor = tensor.float()
    return int((~torch.isfinite(tensor)).sum())


def read_torch_file(path: str | os.PathLike[str], *, trust_pickle: bool = False) -> Any:
    """Read a ``torch.save`` file (zip or the older format) onto the CPU, with ``weights_only=True``.

    Only if that is refused because of pickled code, and ``trust_pickle`` is on, it is read without restriction.

    Raises
    ------
    InputError
        The file is missing, cut short, damaged, or not such a file.
    UnsafeCheckpointError
        The file needs code that ``weights_only`` does not allow; the message lists it.
    """
    file = existing_file(path, "checkpoint")
    kind = _kind(file)
    if kind not in ("torch zip", "torch legacy"):
        raise InputError(f"{file} is not a file saved by torch.save but a {kind} file")
    try:
        return _torch_load(file, weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        blocked = _blocked_globals(file, error)
        if not blocked:
            raise InputError(f"checkpoint {file} cannot be read: {_plain_reason(error)}") from error
        if not trust_pickle:
            raise _unsafe(file, blocked) from error
    log.warning("%s: running the pickled code in this file, as permitted: %s", file, ", ".join(blocked))
    try:
        return _torch_load(file, weights_only=False)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"checkpoint {file} needs code that cannot be imported here ({error}); run where it can be, or "
            f"{_HOW_TO_RESAVE}"
        ) from error
    except Exception as error:
        raise InputError(f"checkpoint {file} cannot be read: {_plain_reason(error)}") from error


def _torch_load(file: Path, *, weights_only: bool) -> Any:
    with warnings.catch_warnings():
        # Said of every file written with a newer pickle protocol; what matters is whether it loads.
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        return torch.load(file, map_location="cpu", weights_only=weights_only)


def _unsafe(file: Path, blocked: Iterable[str]) -> UnsafeCheckpointError:
    names = sorted(blocked)
    hint = ""
    if all(name.startswith("numpy.") for name in names):
        hint = "the file holds NumPy arrays: convert them with torch.from_numpy before torch.save, or "
    return UnsafeCheckpointError(
        f"checkpoint {file} holds pickled code, which is not run by default: {_shorten(names, 12)}. To go on, {hint}"
        f"{_HOW_TO_RESAVE}; or, if you trust where the file comes from, run that code with --trust-pickle "
        f"(trust_pickle=True)"
    )


def _plain_reason(error: Exception) -> str:
    """One line of why torch could not read a file, without its advice to load unsafely."""
    text = str(error)
    reason = type(error).__name__ if text.startswith("Weights only load failed") else text.partition("\n")[0]
    return f"it is cut short or damaged ({reason.strip() or type(error).__name__})"


def _kind(file: Path) -> str:
    """What kind of file this is, by its content."""
    with file.open("rb") as handle:
        head = handle.read(512)
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(file)
    header_length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header_length < (1 << 32):
        return "safetensors"
    if file.suffix == ".safetensors":
        raise InputError(f"checkpoint {file} is not a readable .safetensors file: its header is cut short or damaged")
    if _LEGACY_MAGIC in head[:32]:
        return "torch legacy"
    if head.startswith(b"\x80"):
        raise InputError(f"checkpoint {file} is a plain Python pickle, not made by torch.save; {_HOW_TO_RESAVE}")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"checkpoint {file} is a Git LFS pointer, not the weights themselves; run `git lfs pull`")
    raise InputError(
        f"checkpoint {file} is not a PyTorch, safetensors or torch.export file (it starts with {head[:8]!r})"
    )


def _kind_of_zip(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            # Everything lies in one top folder, except in the first torch.export format.
            members = {name.partition("/")[2] or name for name in archive.namelist()}
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"checkpoint {file} is cut short or damaged: {error}") from error
    if "constants.pkl" in members:
        raise InputError(
            f"checkpoint {file} is a TorchScript archive, which torch.export cannot trace; save its weights, "
            f"torch.save(torch.jit.load('{file.name}').state_dict(), 'weights.pt'), and {_HOW_TO_NAME_A_MODEL}"
        )
    if "archive_format" in members or "serialized_exported_program.json" in members:
        return "torch.export"
    if "data.pkl" in members:
        return "torch zip"
    raise InputError(
        f"checkpoint {file} is a zip archive but not a checkpoint (no data.pkl; it holds {_shorten(sorted(members))})"
    )


def _blocked_globals(file: Path, error: Exception) -> list[str]:
    """Names of the code that ``weights_only`` refused, or nothing if the file failed for another reason."""
    text = str(error)
    refused = re.search(r"not an allowed global|Unsupported (global|class)|is blocked|unrecognized function", text)
    newer = re.search(r"Unsupported operand \d+", text)
    if not refused and not newer:
        return []
    try:
        names = _globals_of(file)
    except Exception:  # no pickle to its end: what was refused may be half a name, or noise
        return []
    if names:
        return names
    return ["pickle instructions that weights_only does not know (a newer pickle_protocol)" if newer else "code"]


def _globals_of(file: Path) -> list[str]:
    """Globals that the pickles of a torch.save file name, read off the opcodes without running them."""
    if zipfile.is_zipfile(file):
        with contextlib.suppress(Exception):  # knows what is allowed, but no newer pickle protocol
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(file)))
        with zipfile.ZipFile(file) as archive:
            member = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
            names = _globals_in(io.BytesIO(archive.read(member)))
    else:
        with file.open("rb") as handle:
            # The old format is a row of pickles: magic number, protocol, system, and the object.
            names = set().union(*(_globals_in(handle) for _ in range(4)))
    harmless = re.compile(r"torch\.\w+Storage|torch\._utils\._rebuild_\w+|collections\.OrderedDict")
    return sorted(name for name in names if not harmless.fullmatch(name))


def _globals_in(pickled: BinaryIO) -> set[str]:
    names: set[str] = set()
    texts: list[str] = []
    memo: list[str] = []
    for opcode, argument, _position in pickletools.genops(pickled):
        if opcode.name == "GLOBAL":
            names.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(texts[-2:]))
        elif opcode.name == "MEMOIZE":  # counts all objects; only texts matter here
            memo.append(texts[-1] if texts else "")
        elif opcode.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int) and argument < len(memo):
            texts.append(memo[argument])
        elif isinstance(argument, str):
            texts.append(argument)
    return names


def _load_exported(file: Path, trust_pickle: bool) -> Loaded:
    if not trust_pickle:
        raise UnsafeCheckpointError(
            f"checkpoint {file} is a torch.export archive, and torch.export.load can run code from such a file (it "
            f"unpickles and evaluates parts of it). To go on, {_HOW_TO_RESAVE}, and name the model with --model; or, "
            f"if you trust where the file comes from, --trust-pickle (trust_pickle=True)"
        )
    exporter = logging.getLogger("torch.export")
    was_disabled, exporter.disabled = exporter.disabled, True  # it logs a traceback before it raises
    try:
        with file.open("rb") as handle:
            module = torch.export.load(handle).module()
    except Exception as error:  # a damaged file can raise anything
        raise InputError(
            f"checkpoint {file} cannot be read by torch.export.load of torch {torch.__version__}: it is damaged, or "
            f"of another version's format; export it again with this version"
        ) from error
    finally:
        exporter.disabled = was_disabled
    notes = ("a torch.export graph: it computes what it computed when exported (eval or train mode, input shapes)",)
    return Loaded(module.cpu(), file, "torch.export", notes)


def _load_weights(
    file: Path,
    model: Factory | None,
    model_args: Mapping[str, Any],
    weights_key: str | None,
    trust_pickle: bool,
) -> Loaded:
    safetensors = _kind(file) == "safetensors"
    contents = _read_safetensors(file) if safetensors else read_torch_file(file, trust_pickle=trust_pickle)
    weights, notes = unwrap(contents, weights_key, str(file))
    kind: Format = "safetensors" if safetensors else "state_dict"
    if isinstance(weights, nn.Module):
        kind = "pickled module"
        if model is None:
            return Loaded(_without_wrapper(weights).cpu().eval(), file, kind, tuple(notes))
        weights = weights.state_dict()
    if model is None:
        # A safetensors file is sorted by type and name, so its order tells nothing.
        module: nn.Module
        module, note = infer_mlp(weights, str(file), file_order=not safetensors)
        notes.append(note)
    else:
        module, filling = _made_and_filled(model, model_args, weights, file)
        notes += filling
    return Loaded(module.eval(), file, kind, tuple(notes))


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(str(file), device="cpu"))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"checkpoint {file} is not a readable .safetensors file: {error}") from error


def _without_wrapper(module: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel or torch.compile."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


def unwrap(
    contents: Any, weights_key: str | None = None, source: str = "checkpoint"
) -> tuple[Mapping[str, Any] | nn.Module, list[str]]:
    """Find the weights in what a checkpoint file holds.

    Parameters
    ----------
    contents : object
        What was loaded: a state_dict, a training checkpoint around one, or a module.
    weights_key : str, optional
        The entry to take. By default the first of :data:`WEIGHTS_KEYS` that holds weights, or else the only entry that
        does; entries inside entries are found the same way.

    Returns
    -------
    (mapping or module, list of str)
        The state_dict (or module), and notes that say which key was taken.

    Raises
    ------
    InputError
        There are no weights, the key is not there, or several entries could be meant.
    """
    notes: list[str] = []
    if weights_key is not None:
        contents = _chosen_entry(contents, weights_key, source)
        notes.append(f"weights taken from key {weights_key!r}, as asked")
    for _ in range(4):
        key = _key_of_weights(contents, source)
        if key is None:
            break
        others = [other for other, value in contents.items() if other != key and _holds_weights(value)]
        passed = f" (not {_shorten(others)}; choose with --weights-key)" if others else ""
        notes.append(f"weights taken from key {key!r}{passed}")
        contents = contents[key]
    if isinstance(contents, nn.Module) or _is_state_dict(contents):
        return contents, notes
    raise InputError(f"{source} holds no weights: {_describe_contents(contents)}; {_HOW_TO_RESAVE}")


def _chosen_entry(contents: Any, key: str, source: str) -> Any:
    if isinstance(contents, Mapping) and key in contents and _holds_weights(contents[key]):
        return contents[key]
    usable = [str(k) for k, value in contents.items() if _holds_weights(value)] if isinstance(contents, Mapping) else []
    found = f"weights are under {_shorten(usable)}" if usable else "it has no such keys; leave out --weights-key"
    raise InputError(f"{source} has no weights under the key {key!r}; {found}")


def _key_of_weights(contents: Any, source: str) -> str | None:
    """The key to go down, or None if ``contents`` has none."""
    if not isinstance(contents, Mapping):
        return None
    for key in WEIGHTS_KEYS:
        if key in contents and _holds_weights(contents[key]):
            return key
    candidates = [key for key, value in contents.items() if _holds_weights(value) and not _NOT_WEIGHTS.search(str(key))]
    if any(isinstance(value, Tensor) and value.ndim > 1 for value in contents.values()):
        return None  # a state_dict; a training checkpoint may hold tensors too, but only numbers such as a loss
    if len(candidates) > 1:
        raise InputError(
            f"{source} holds several sets of weights, under {_shorten(map(repr, candidates))}; "
            f"choose one with --weights-key (weights_key=...)"
        )
    return candidates[0] if candidates else None


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and any(isinstance(entry, Tensor) for entry in value.values())
    )


def _holds_weights(value: Any, depth: int = 3) -> bool:
    if isinstance(value, nn.Module) or _is_state_dict(value):
        return True
    return (
        depth > 0
        and isinstance(value, Mapping)
        and any(key in value and _holds_weights(value[key], depth - 1) for key in WEIGHTS_KEYS)
    )


def _describe_contents(contents: Any) -> str:
    if isinstance(contents, Tensor):
        return f"one tensor of shape {list(contents.shape)}"
    if isinstance(contents, Mapping):
        entries = [f"{key!r}: {type(value).__name__}" for key, value in contents.items()]
        return f"a {type(contents).__name__} with {_shorten(entries)}" if entries else "an empty mapping"
    return f"a {type(contents).__module__}.{type(contents).__qualname__}"


def infer_mlp(
    weights: Mapping[str, Any], source: str = "checkpoint", *, file_order: bool = True
) -> tuple[nn.Sequential, str]:
    """Read a multilayer perceptron off the shapes of its weights.

    Every name must be ``*.weight`` of shape [out, in] or its optional ``*.bias`` of shape [out]. The layers are taken
    in file order if each takes as many inputs as the one before gives outputs, else in natural order of their names
    (``fc2`` before ``fc10``) if that chains, and ReLU is put between them.

    Parameters
    ----------
    weights : mapping of str to tensor
        A state_dict.
    file_order : bool
        Whether the order of ``weights`` means something.

    Returns
    -------
    (torch.nn.Sequential, str)
        The module, sharing the tensors of ``weights``, and a note that describes it.

    Raises
    ------
    InputError
        Anything else is in ``weights``, or the layers do not chain; asks for the architecture.
    """
    weights = _without_averaging_count(weights)
    layers = {name.removesuffix("weight").rstrip("."): w for name, w in weights.items() if _is_matrix(name, w)}
    strangers = [
        _describe_entry(name, value)
        for name, value in weights.items()
        if not _is_matrix(name, value) and not _is_bias_of(layers, name, value)
    ]
    if strangers or not layers:
        found = f"besides matrices it holds {_shorten(strangers)}" if layers else f"it holds {_shorten(strangers)}"
        raise InputError(f"no plain MLP can be read off {source}: {found}; {_HOW_TO_NAME_A_MODEL}")
    natural = sorted(layers, key=_natural)
    orders = [list(layers), natural] if file_order else [natural]
    order = next((names for names in orders if _broken_link(layers, names) is None), None)
    if order is None:
        raise InputError(
            f"no plain MLP can be read off {source}: {_broken_link(layers, orders[0])}; {_HOW_TO_NAME_A_MODEL}"
        )
    biases = [weights.get(f"{name}.bias" if name else "bias") for name in order]
    module = _sequential([layers[name] for name in order], biases)
    widths = [layers[order[0]].shape[1], *(layers[name].shape[0] for name in order)]
    names = _shorten(name or "weight" for name in order)
    note = (
        f"MLP {'-'.join(map(str, widths))} read off the weight shapes ({names}); "
        f"ReLU between the layers is assumed, a state_dict does not name activations"
    )
    return module, note


def _is_matrix(name: str, value: Any) -> bool:
    last = name.rpartition(".")[2]
    return last == "weight" and _is_real(value) and value.ndim == 2 and value.numel() > 0


def _is_bias_of(layers: Mapping[str, Tensor], name: str, value: Any) -> bool:
    layer, _, last = name.rpartition(".")
    return last == "bias" and layer in layers and _is_real(value) and value.shape == layers[layer].shape[:1]


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _broken_link(layers: Mapping[str, Tensor], order: list[str]) -> str | None:
    """Say where consecutive layers do not fit, or None if all do."""
    for first, second in itertools.pairwise(order):
        gives, takes = layers[first].shape[0], layers[second].shape[1]
        if gives != takes:
            return (
                f"{first}.weight {list(layers[first].shape)} gives {gives} values, "
                f"but {second}.weight {list(layers[second].shape)} takes {takes}"
            )
    return None


def _sequential(matrices: list[Tensor], biases: list[Tensor | None]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for matrix, bias in zip(matrices, biases, strict=True):
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None, device="meta")
        layer.weight = nn.Parameter(matrix.detach())
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach())
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def _made_and_filled(
    model: Factory, model_args: Mapping[str, Any], weights: Mapping[str, Any], file: Path
) -> tuple[nn.Module, list[str]]:
    module = make_model(model, model_args)
    name = model if isinstance(model, str) else getattr(model, "__qualname__", repr(model))
    variant, removed = _best_variant(weights, module.state_dict().keys())
    _widen(module, variant)
    try:
        module.load_state_dict(dict(variant), strict=True)
    except RuntimeError as error:
        misfit = _misfit(module.state_dict(), variant) or str(error).partition("\n")[2].strip() or str(error)
        raise InputError(
            f"checkpoint {file} does not fit the model made by {name}: {misfit}; check --model-arg"
        ) from error
    return module, [f"prefix {removed!r} stripped from the weight names"] if removed else []


def make_model(model: Factory, model_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Call a model factory.

    Parameters
    ----------
    model : str or callable
        ``"pkg.mod:factory"``, ``"path/to/file.py:factory"``, or the factory itself.
    model_args : mapping, optional
        Keyword arguments; text is read as a Python literal (``"[128, 128]"``, ``"0.1"``, ``"None"``) or left as text.

    Returns
    -------
    torch.nn.Module
        On the CPU.

    Raises
    ------
    InputError
        The factory cannot be imported, fails, or makes something else.
    """
    if isinstance(model, nn.Module):
        raise InputError("model must be a factory (a class or a function that makes the module), got a module itself")
    arguments = {key: _literal(value) for key, value in (model_args or {}).items()}
    with _importable_from(Path.cwd()):
        factory = _import_factory(model) if isinstance(model, str) else model
        name = model if isinstance(model, str) else getattr(model, "__qualname__", repr(model))
        try:
            module = factory(**arguments)
        except (Exception, SystemExit) as error:  # it is the user's code
            shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            raise InputError(f"model factory {name}({shown}) failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"model factory {name} must return a torch.nn.Module, it returned a {type(module).__name__}")
    if any(tensor.is_meta for tensor in itertools.chain(module.parameters(), module.buffers())):
        raise InputError(f"model factory {name} must make real tensors, it made some on the meta device")
    return module.cpu()


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _import_factory(model: str) -> Callable[..., Any]:
    place, _, name = model.rpartition(":")
    if not place or not name:
        raise InputError(f"model must be pkg.mod:factory or path/to/file.py:factory, got {model!r}")
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # it is the user's code
        raise InputError(f"model {model}: importing {place} failed: {type(error).__name__}: {error}") from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"model {model}: {place} ({getattr(module, '__file__', None)}) has no {name!r}")
        found = getattr(found, part)
    if not callable(found) or isinstance(found, nn.Module):
        raise InputError(f"model {model}: {name} must be a class or a function, it is a {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _import_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    name = f"_regiongrid_model_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    folder, before = file.resolve().parent, set(sys.modules)
    with _importable_from(folder):
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        finally:
            # Another file's folder may have a module of the same name, and would get this one.
            for other in set(sys.modules) - before:
                if _is_beside(sys.modules[other], other.partition(".")[0], folder):
                    del sys.modules[other]
    return module


def _is_beside(module: ModuleType, root: str, folder: Path) -> bool:
    """Whether a module is one of ``root.py`` or of the package ``root`` in a folder."""
    file = getattr(module, "__file__", None)
    return file is not None and (
        Path(file).resolve() == folder / f"{root}.py" or Path(file).resolve().is_relative_to(folder / root)
    )


@contextlib.contextmanager
def _importable_from(folder: Path) -> Iterator[None]:
    """Let modules in ``folder`` be imported, behind all installed ones, so that none of those is shadowed."""
    entry = str(folder)
    if entry in sys.path:
        yield
        return
    sys.path.append(entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


def _best_variant(weights: Mapping[str, Any], wanted: Iterable[str]) -> tuple[Mapping[str, Any], str]:
    """The spelling of the names that fits best, and the prefix it left out; unchanged names win over equal others."""
    names = set(wanted)
    return min(_variants(weights), key=lambda variant: len(names.symmetric_difference(variant[0])))


def _variants(weights: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The state_dict as it is, then without wrappers' marks, then with shared first components removed one by one."""
    yield weights, ""
    current = _without_averaging_count(weights)
    compiled = {name.replace("_orig_mod.", ""): value for name, value in current.items()}
    removed = ""
    if compiled.keys() != current.keys() and len(compiled) == len(current):
        current, removed = compiled, "_orig_mod."
    yield current, removed
    while head := _shared_head(current):
        current = {name.removeprefix(head): value for name, value in current.items()}
        removed += head
        yield current, removed


def _without_averaging_count(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drop the counter that torch.optim.swa_utils.AveragedModel stores beside ``module.*``."""
    rest = {name: value for name, value in weights.items() if name != "n_averaged"}
    return rest if rest and all(name.startswith("module.") for name in rest) else weights


def _shared_head(weights: Mapping[str, Any]) -> str:
    head, dot, _ = next(iter(weights), "").partition(".")
    return head + dot if dot and all(name.startswith(head + dot) for name in weights) else ""


def _widen(module: nn.Module, weights: Mapping[str, Any]) -> None:
    """Widen the module's tensors where the file is more precise, so that copying loses nothing."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        stored = weights.get(name)
        lazy = is_lazy(tensor)
        if not isinstance(stored, Tensor) or not isinstance(tensor, Tensor) or lazy:
            continue
        if tensor.is_floating_point() and stored.is_floating_point() and tensor.dtype != stored.dtype:
            tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, stored.dtype))


def _misfit(expected: Mapping[str, Any], weights: Mapping[str, Any]) -> str:
    """Name the missing keys, the unexpected ones and the wrong shapes, the first few of each."""
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    shapes = [
        f"{name} is {list(weights[name].shape)} in the file, {list(tensor.shape)} in the model"
        for name, tensor in expected.items()
        if isinstance(weights.get(name), Tensor)
        and isinstance(tensor, Tensor)
        and not is_lazy(tensor)
        and weights[name].shape != tensor.shape
    ]
    parts = (("missing keys", missing), ("unexpected keys", unexpected), ("wrong shapes", shapes))
    return "; ".join(f"{what}: {_shorten(names)}" for what, names in parts if names)


def _describe_entry(name: str, value: Any) -> str:
    if isinstance(value, Tensor):
        kind = "" if _is_real(value) else f" of {value.dtype}"
        return f"{name} {list(value.shape)}{kind}"
    return f"{name} ({type(value).__name__})"


def _shorten(names: Iterable[Any], shown: int = _SHOWN) -> str:
    """The first few names, and how many more there are."""
    every = [str(name) for name in names]
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more
