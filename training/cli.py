"""The command `pathline train`, its options made from the fields of `TrainOptions`."""

from __future__ import annotations

import inspect
import json
import sys
from typing import Annotated, Any, NoReturn

import typer

from .options import TrainOptions, check_types, merge_options, option_fields, option_type, read_config

CONTEXT_SETTINGS: dict[str, Any] = {"token_normalize_func": lambda token: token.replace("-", "_")}
"""Settings for the command that let `--train-batch-size` stand for `--train_batch_size`."""

INTERRUPTED = 130


def _stop(message: str, code: int) -> NoReturn:
    print(f"error: {message}" if code == 2 else message, file=sys.stderr, flush=True)
    raise typer.Exit(code)


def train(config: str | None = None, recipe: str | None = None, **values: Any) -> None:
    """Train a network on images; the result is a diffusers pipeline folder.

    Every option left out comes from --config, else from the preset of the data set. Without any option the
    1,797 digits of scikit-learn are learned by flow matching, in about two minutes on two CPU cores.
    """
    from .outcome import NonFiniteLossError, TrainingInterruptedError
    from .recipes import train_recipe
    from .training_run import train_model

    try:
        chosen = read_config(config) if config is not None else {}
        chosen = merge_options(chosen, _from_command_line(values))
        train_model(chosen) if recipe is None else train_recipe(recipe, chosen)
    except ValueError as error:
        _stop(str(error), 2)
    except ConnectionError as error:
        _stop(str(error), 1)
    except OSError as error:
        _stop(f"a file could not be read or written ({error}); checkpoints already there are whole", 1)
    except NonFiniteLossError as error:
        _stop(str(error), 1)
    except TrainingInterruptedError as error:
        _stop(str(error), INTERRUPTED)
    except KeyboardInterrupt:
        _stop("interrupted; what was last saved stays, go on with --resume_from_checkpoint latest", INTERRUPTED)


def _from_command_line(values: dict[str, Any]) -> dict[str, Any]:
    """Options that were given, JSON texts read."""
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        if option_type(name)[0] is dict and isinstance(value, str):
            try:
                given[name] = json.loads(value)
            except ValueError as error:
                raise ValueError(f"{name} must be JSON such as '{{\"key\": 1}}', got {value!r}: {error}") from error
    return check_types(given, "command line")


def _shown_default(name: str) -> str | bool:
    default = getattr(TrainOptions(), name)
    if default is None or default == {}:
        return False
    return str(default)


def _signature() -> inspect.Signature:
    """Parameters of the command: one per option, None where it was not given."""
    text = "JSON or TOML file of options; those given beside it win."
    kinds: dict[str, Any] = {"config": Annotated[str | None, typer.Option("--config", help=text, show_default=False)]}
    text = "Complete settings by name, such as flow-matching; options given win. A wrong name lists all."
    kinds["recipe"] = Annotated[str | None, typer.Option("--recipe", help=text, show_default=False)]
    for name, item in option_fields().items():
        kind = option_type(name)[0]
        flags = f"--{name}/--no_{name}" if kind is bool else f"--{name}"
        annotation = typer.Option(
            flags,
            help=item.metadata["help"],
            rich_help_panel=item.metadata["group"],
            show_default=_shown_default(name),
            metavar="JSON" if kind is dict else None,
        )
        kinds[name] = Annotated[(str if kind is dict else kind) | None, annotation]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [inspect.Parameter(name, keyword, default=None, annotation=kind) for name, kind in kinds.items()]
    )


# typer reads the signature; a list of fifty parameters written out would say everything twice.
train.__signature__ = _signature()  # type: ignore[attr-defined]
train.__annotations__ = {name: p.annotation for name, p in train.__signature__.parameters.items()}  # type: ignore[attr-defined]


def add_to(app: typer.Typer) -> typer.Typer:
    """Mount the command as `train` on a typer application, dashes in option names accepted."""
    app.command("train", context_settings=CONTEXT_SETTINGS)(train)
    return app


def main() -> None:
    """Run the command by itself, as `python -m pathline.training` does."""
    add_to(typer.Typer(add_completion=False, pretty_exceptions_enable=False))()
