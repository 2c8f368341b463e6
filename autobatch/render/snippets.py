"""The answer in the form in which it is used: flags, a configuration file, a Trainer's arguments.

A new target is a line in `FORMATS`: what it is for, the settings under the names that they have there, and how they are
written.
"""

from __future__ import annotations

import json
import keyword
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ..core.plan import Config, Precision
from ..core.words import did_you_mean
from ..errors import SettingError

Value = str | int | float | bool

# The fields of a configuration that are printed, and those that are printed only if the user names them.
FIELDS = ("batch_size", "accumulation_steps", "lr", "precision")
ON_REQUEST = ("effective_batch_size", "ranks")

# The words of `Trainer(precision=)` in Lightning 2 (lightning/fabric/plugins/precision). There is none for TF32, which
# is float32 with a setting of torch.
_LIGHTNING: Mapping[Precision, str] = {"fp32": "32-true", "tf32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}

# Words that YAML 1.1 does not read as strings (https://yaml.org/type/bool.html and null.html).
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value under its name in a target; `field` is the field that it belongs to.

    A setting `on_request` is only printed if the user names it.
    """

    field: str
    name: str
    value: Value
    on_request: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A target.

    Attributes:
        about: what it is, in a few words.
        settings: the settings of a configuration.
        write: makes their lines.
        name: checks a name, and describes the allowed ones; None if all names are fixed by a library.
        renamed: fields whose names the user may choose.
    """

    about: str
    settings: Callable[[Config], Iterable[Setting]]
    write: Callable[[Iterable[Setting], Config], Iterator[str]]
    name: tuple[Callable[[str], object], str] | None = None
    renamed: tuple[str, ...] = (*FIELDS, *ON_REQUEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """What to type or paste, line by line, and the same as data."""

    lines: tuple[str, ...]
    values: Mapping[str, Value]


def snippet(config: Config, form: str, names: Mapping[str, str] | None = None) -> Snippet:
    """A configuration as text for `form`, a key of `FORMATS`.

    Args:
        config: the configuration.
        form: the target.
        names: the user's own names, by field. An empty one leaves the field out.

    Raises:
        SettingError: there is no such target or field, or a name is not allowed there.
    """
    if form not in FORMATS:
        raise SettingError(f"a format is one of {', '.join(FORMATS)}; got {form!r}{did_you_mean(form, FORMATS)}")
    target, names = FORMATS[form], names or {}
    for field, name in names.items():
        _check_name(form, field, name)
    settings = [
        replace(setting, name=_renamed(setting.name, names.get(setting.field, setting.name)))
        for setting in target.settings(config)
        if names.get(setting.field, "its own") and (not setting.on_request or setting.field in names)
    ]
    values = {setting.name: setting.value for setting in settings}
    if len(values) < len(settings):
        raise SettingError(f"each field needs a name of its own; got {', '.join(s.name for s in settings)}")
    if not values:
        raise SettingError("every field was left out: there is nothing to print")
    return Snippet(lines=tuple(target.write(settings, config)), values=values)


def parse_names(text: str) -> dict[str, str]:
    """The names in `batch_size=bs,lr=learning_rate`, by field; `precision=` gives an empty one.

    Raises:
        SettingError: it has another form.
    """
    names: dict[str, str] = {}
    for pair in filter(None, (pair.strip() for pair in text.split(","))):
        field, equals, name = pair.partition("=")
        if not equals:
            raise SettingError(f"names are written batch_size=bs,lr=learning_rate; found {pair!r}")
        field, name = field.strip().replace("-", "_"), name.strip()
        if names.setdefault(field, name) != name:
            raise SettingError(f"{field} is given two names: {names[field]!r} and {name!r}")
    return names


def exact_lr_text(lr: float) -> str:
    """The shortest text of a rate that is read as the same number: `0.03`, `1.25e-5`, `1.0`."""
    mantissa, e, exponent = repr(float(lr)).partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def _check_name(form: str, field: str, name: str) -> None:
    known, target = (*FIELDS, *ON_REQUEST), FORMATS[form]
    if field not in known:
        raise SettingError(f"a field is one of {', '.join(known)}; got {field!r}{did_you_mean(field, known)}")
    if field not in target.renamed or target.name is None:
        raise SettingError(f"{form} has its own name for {field}: leave it out of the names")
    can_be, what = target.name
    if name and not can_be(name):
        raise SettingError(f"{name!r} cannot be the name of {field} in {form}: {what}")


def _renamed(own: str, name: str) -> str:
    """`learning_rate` for `model.lr` is `model.learning_rate`; a name with dots replaces the whole name."""
    return name if "." in name else own.rpartition(".")[0] + "." + name if "." in own else name


# -- settings


def _as_they_are(config: Config) -> Iterator[Setting]:
    for field in (*FIELDS, *ON_REQUEST):
        value = config.lr if field == "lr" else getattr(config.plan, field)
        yield Setting(field=field, name=field, value=value, on_request=field in ON_REQUEST)


def _in_capitals(config: Config) -> Iterator[Setting]:
    yield from (replace(setting, name=setting.name.upper()) for setting in _as_they_are(config))


def _with_dashes(config: Config) -> Iterator[Setting]:
    yield from (replace(setting, name=setting.name.replace("_", "-")) for setting in _as_they_are(config))


def _of_lightning(config: Config) -> Iterator[Setting]:
    """`Trainer(accumulate_grad_batches=, precision=, devices=, strategy=)`, and the user's own attributes."""
    plan = config.plan
    yield Setting(field="accumulation_steps", name="accumulate_grad_batches", value=plan.accumulation_steps)
    yield Setting(field="precision", name="precision", value=_LIGHTNING[plan.precision])
    if plan.ranks > 1:
        yield Setting(field="ranks", name="devices", value=plan.ranks)
        yield Setting(field="ranks", name="strategy", value="ddp")
    yield Setting(field="batch_size", name="datamodule.batch_size", value=plan.batch_size)
    yield Setting(field="lr", name="model.lr", value=config.lr)


def _of_transformers(config: Config) -> Iterator[Setting]:
    """Fields of `TrainingArguments` (transformers/training_args.py). A False there undoes an earlier True."""
    plan = config.plan
    yield Setting(field="batch_size", name="per_device_train_batch_size", value=plan.batch_size)
    yield Setting(field="accumulation_steps", name="gradient_accumulation_steps", value=plan.accumulation_steps)
    yield Setting(field="lr", name="learning_rate", value=config.lr)
    yield Setting(field="precision", name="bf16", value=plan.precision == "bf16")
    yield Setting(field="precision", name="fp16", value=plan.precision == "fp16")
    if plan.precision == "tf32":  # a device without it refuses the argument, True or False
        yield Setting(field="precision", name="tf32", value=True)


# -- lines


def _text(value: Value) -> str:
    return exact_lr_text(value) if isinstance(value, float) else str(value)


def _code(value: Value) -> str:
    """A value as Python writes it."""
    return json.dumps(value) if isinstance(value, str) else _text(value)


def _flags(settings: Iterable[Setting], config: Config) -> Iterator[str]:
    words: list[str] = []
    for setting in settings:
        dashes = "" if setting.name.startswith("-") else "-" if len(setting.name) == 1 else "--"
        words += [dashes + setting.name, _text(setting.value)]
    yield shlex.join(words)


def _env(settings: Iterable[Setting], config: Config) -> Iterator[str]:
    for setting in settings:
        yield f"export {setting.name}={_text(setting.value)}"


def _python(settings: Iterable[Setting], config: Config) -> Iterator[str]:
    for setting in settings:
        yield f"{setting.name} = {_code(setting.value)}"


def _yaml(settings: Iterable[Setting], config: Config) -> Iterator[str]:
    """A tree, by the dots in the names."""
    tree: dict[str, object] = {}
    for setting in settings:
        *above, last = setting.name.split(".")
        place: object = tree
        for key in above:
            place = place.setdefault(key, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last in place:
            raise SettingError(
                f"{setting.name!r} cannot be a name beside one that it begins with, or that begins with it"
            )
        place[last] = setting.value
    yield from _yaml_lines(tree, "")


def _yaml_lines(tree: Mapping[str, object], indent: str) -> Iterator[str]:
    for key, value in tree.items():
        shown = f'"{key}"' if key.lower() in _YAML_WORDS else key
        if isinstance(value, dict):
            yield f"{indent}{shown}:"
            yield from _yaml_lines(value, indent + "  ")
        else:
            yield f"{indent}{shown}: {_yaml_float(value) if isinstance(value, float) else value}"


def _yaml_float(value: float) -> str:
    """YAML 1.1, and so PyYAML, reads `1e-5` as a string: a float needs a dot, and its exponent a sign."""
    mantissa, e, exponent = exact_lr_text(value).partition("e")
    mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
    return f"{mantissa}e{int(exponent):+d}" if e else mantissa


def _lightning(settings: Iterable[Setting], config: Config) -> Iterator[str]:
    settings = tuple(settings)
    if config.plan.precision == "tf32":
        yield 'torch.set_float32_matmul_precision("high")'
    yield "trainer = Trainer("
    yield from (f"    {one.name}={_code(one.value)}," for one in settings if "." not in one.name)
    yield ")"
    about = {"batch_size": "  # or the batch size of your own DataLoaders"}
    yield from (f"{one.name} = {_code(one.value)}{about.get(one.field, '')}" for one in settings if "." in one.name)


def _transformers(settings: Iterable[Setting], config: Config) -> Iterator[str]:
    if config.plan.ranks > 1:
        yield f"# started with: torchrun --nproc_per_node {config.plan.ranks}"
    yield "args = TrainingArguments("
    yield from (f"    {setting.name}={_code(setting.value)}," for setting in settings)
    yield ")"


def _is_python(name: str) -> bool:
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split("."))


_PYTHON = _is_python, "names of Python, perhaps with dots between"
_FLAG = re.compile(r"-{0,2}[A-Za-z_][\w.:-]*", re.ASCII).fullmatch, "a flag is a word, with or without its dashes"
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII).fullmatch, "a variable has letters, digits and underscores"
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*", re.ASCII).fullmatch, "words, with dots for what is nested"

FORMATS: Mapping[str, Format] = {
    "flags": Format(about="flags of a script", settings=_with_dashes, write=_flags, name=_FLAG),
    "yaml": Format(about="a configuration file", settings=_as_they_are, write=_yaml, name=_KEY),
    "env": Format(about="variables of a shell", settings=_in_capitals, write=_env, name=_VARIABLE),
    "python": Format(about="assignments", settings=_as_they_are, write=_python, name=_PYTHON),
    "lightning": Format(
        about="arguments of Lightning's Trainer",
        settings=_of_lightning,
        write=_lightning,
        name=_PYTHON,
        renamed=("batch_size", "lr"),
    ),
    "hf": Format(about="TrainingArguments of transformers", settings=_of_transformers, write=_transformers, renamed=()),
}
