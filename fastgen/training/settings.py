"""What decides the course of a training, apart from the model and the data."""

import dataclasses

from fastgen.random import as_int

OPTIMIZERS = ("adamw", "sgd")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments of `train` that bear its result; two runs with other settings are two runs."""

    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    ema: float | None
    clip_norm: float | None
    validation: float
    patience: int | None
    seed: int

    def __post_init__(self) -> None:
        """Raise ValueError for a value that makes no sense."""
        _wanted("optimizer", self.optimizer, f"one of {', '.join(OPTIMIZERS)}", self.optimizer in OPTIMIZERS)
        _wanted("lr", self.lr, "a finite number above 0", _between(0, self.lr))
        decays = self.weight_decay == 0 or _between(0, self.weight_decay)
        _wanted("weight_decay", self.weight_decay, "a finite number of at least 0", decays)
        _wanted(
            "ema", self.ema, "None or a number between 0 and 1", self.ema is None or _between(0, self.ema, 1)
        )
        clips = self.clip_norm is None or _between(0, self.clip_norm)
        _wanted("clip_norm", self.clip_norm, "None or a finite number above 0", clips)
        splits = self.validation == 0 or _between(0, self.validation, 1)
        _wanted("validation", self.validation, "a share in [0, 1)", splits)
        if self.patience is not None:
            _wanted(
                "validation",
                self.validation,
                "a share above 0, because patience is set",
                self.validation != 0,
            )


def check_length(steps: int | None, epochs: int | None) -> None:
    """Raise TypeError or ValueError unless exactly one of the two says how long to train."""
    if (steps is None) == (epochs is None):
        raise ValueError(f"steps is {steps} and epochs is {epochs}, wanted exactly one of them")
    name, value = ("steps", steps) if epochs is None else ("epochs", epochs)
    as_int(name, value, 1)


def _wanted(name: str, value: object, wanted: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}, wanted {wanted}")


def _between(low: float, value: object, high: float = float("inf")) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high
