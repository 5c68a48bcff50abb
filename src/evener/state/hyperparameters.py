"""Whose hyperparameters count when a run continues: those of its checkpoint, matched by the names of parameters.

That is PyTorch's rule (`load_state_dict`), less its weakness: groups are not matched by their order. Each difference to
what the recipe says now is told; `--hyperparameters recipe` has it the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from evener.errors import CheckpointError
from evener.state.optimizers import Several
from evener.state.values import check_kinds, pack, plain, unpack

CHOICES = ("checkpoint", "recipe")

#: Of a scheduler's state: how far it is, not how it was made.
PROGRESS = frozenset({
    "last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial", "best", "num_bad_epochs",
    "cooldown_counter", "T_cur", "T_i", "base_lrs",
})  # fmt: skip
#: Of a scheduler's state: one entry a parameter group.
PER_GROUP = frozenset({"base_lrs", "_last_lr", "max_lrs", "base_momentums", "max_momentums", "min_lrs"})

Group = dict[str, Any]


def kept(optimizer: Optimizer, names: Sequence[Sequence[str]]) -> list[Group]:
    """The groups of an optimizer, packed, each with the names of its parameters."""
    return [
        {**plain({key: value for key, value in group.items() if key != "params"}), "params": list(of_group)}
        for group, of_group in zip(optimizer.param_groups, names, strict=True)
    ]


class Groups:
    """An optimizer's groups beside those of a checkpoint.

    Args:
        optimizer: over the pieces of this shard.
        names: the parameters of each group, on whatever shard.
        mine: name -> its pieces here.
        saved: what `kept` gave; of evener 0.1.0 without names, and then taken in order.

    Raises:
        CheckpointError: they cannot be matched.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        names: list[list[str]],
        mine: Mapping[str, Sequence[nn.Parameter]],
        saved: Sequence[Mapping[str, Any]],
    ) -> None:
        self.optimizer, self.names, self._mine = optimizer, names, mine
        if saved and "params" not in saved[0]:
            if len(saved) != len(names):
                raise CheckpointError(
                    f"the checkpoint has {len(saved)} parameter groups, the recipe's optimizer has {len(names)} now.",
                    why="evener 0.1.0, which wrote it, did not write down which parameters they hold.",
                    fix="give the optimizer as many groups as before, or say --hyperparameters recipe.",
                )
            saved = [{**group, "params": of_group} for group, of_group in zip(saved, names, strict=True)]
        self.saved = [dict(group) for group in saved]
        self._asked = [
            (list(of_group), plain(group)) for of_group, group in zip(names, optimizer.param_groups, strict=True)
        ]
        self._regrouped = False
        #: Of each group now, the one of the checkpoint that holds the same parameters; -1 where there is none.
        self.match = self._matched()

    def _matched(self) -> list[int]:
        theirs = [frozenset(group["params"]) for group in self.saved]
        return [theirs.index(frozenset(mine)) if frozenset(mine) in theirs else -1 for mine in self.names]

    def regroup(self) -> list[str]:
        """Put parameters into groups as the checkpoint has them, unless the recipe's are the same, in whatever order.

        Returns a sentence if they were others.
        """
        if not self.others():
            return []
        if isinstance(self.optimizer, Several):
            raise CheckpointError(
                "the checkpoint has other parameter groups than the recipe's optimizers have now.",
                why="several optimizers share out the parameters, and a group belongs to one of them.",
                fix="give each the groups that it had, or say --hyperparameters recipe.",
            )
        home = {name: index for index, of_group in enumerate(self.names) for name in of_group}
        groups, names = [], []
        for saved in self.saved:
            held = [name for name in saved["params"] if name in home]
            if held:
                groups.append({**self.optimizer.param_groups[home[held[0]]], "params": self._pieces(held)})
                names.append(held)
        known = {name for held in names for name in held}
        for index, of_group in enumerate(self.names):
            if rest := [name for name in of_group if name not in known]:
                groups.append({**self.optimizer.param_groups[index], "params": self._pieces(rest)})
                names.append(rest)
        before = len(self.names)
        self._regrouped = True
        self.optimizer.param_groups[:] = groups
        self.names[:] = names
        self.match = self._matched()
        return [f"the parameters stay in {len(groups)} groups as in the checkpoint, not in {before} as asked now"]

    def others(self) -> bool:
        """Whether the checkpoint's groups are other ones."""
        return bool(self.saved) and (-1 in self.match or len(self.match) != len(self.saved))

    def _pieces(self, names: Sequence[str]) -> list[nn.Parameter]:
        return [piece for name in names for piece in self._mine.get(name, ())]

    def differences(self, *, scheduled: bool, cycling: bool) -> list[tuple[str, Any, Any]]:
        """(what, in the checkpoint, asked now) for each setting that some parameter has otherwise.

        Args:
            scheduled: a scheduler changes "lr", and remembers the first one.
            cycling: it changes momentum too, and makes the first "lr" itself.
        """
        found = []
        passing = {"params"} | ({"lr"} if scheduled else set()) | ({"momentum", "betas"} if cycling else set())
        asked = self._asked
        if not self._regrouped:  # with what a scheduler has made of it
            asked = [(names, plain(g)) for names, g in zip(self.names, self.optimizer.param_groups, strict=True)]
        several = len(self.saved) > 1 or len(asked) > 1
        for saved in self.saved:
            theirs = set(saved["params"])
            for names, settings in asked:
                shared = next((name for name in names if name in theirs), None)
                if shared is None:
                    continue
                now = settings if cycling else {"initial_lr": settings["lr"], **settings}
                for key in saved:
                    if key not in passing and key in now and not _alike(saved[key], now[key]):
                        name = "lr" if key == "initial_lr" else key
                        where = f" of {shared!r}" if several else ""
                        found.append((f"{name}{where}", unpack(saved[key]), unpack(now[key])))
        return found

    def load(self) -> None:
        """Let the checkpoint's settings count."""
        for index, group in enumerate(self.optimizer.param_groups):
            if self.match[index] >= 0:
                saved = self.saved[self.match[index]]
                settings = {key: unpack(value) for key, value in saved.items() if key != "params"}
                check_kinds(settings, group)
                group.update(settings)

    def reordered(self, schedule: Mapping[str, Any]) -> dict[str, Any]:
        """A scheduler's state, with its entries for each group in the order of the groups now."""
        if self.match == list(range(len(self.saved))) or -1 in self.match:
            return dict(schedule)
        return {
            key: [value[index] for index in self.match]
            if key in PER_GROUP and isinstance(value, list) and len(value) == len(self.saved)
            else [self.reordered(entry) if isinstance(entry, dict) else entry for entry in value]
            if key == "_schedulers"
            else value
            for key, value in schedule.items()
        }


def beside_the_recipes(
    optimizer: Optimizer, names: list[list[str]], saved: Sequence[Mapping[str, Any]], *, scheduled: bool
) -> tuple[list[str], list[tuple[str, Any, Any]]]:
    """Where the recipe's groups count: a sentence if the checkpoint's are others, and the settings that differ."""
    sentence = f"the parameters are in {len(names)} groups as asked now, not in {len(saved)} as in the checkpoint"
    if saved and "params" not in saved[0] and len(saved) != len(names):
        return [sentence], []  # of evener 0.1.0: nobody knows which parameters they held
    groups = Groups(optimizer, names, {}, saved)
    return [sentence] * groups.others(), groups.differences(scheduled=scheduled, cycling=False)


@contextmanager
def damage_told(step: int) -> Iterator[None]:
    """What a checkpoint keeps of optimizer and schedule may be anything: an error of it is told as the checkpoint's."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint of step {step} cannot be continued: what it keeps of optimizer or schedule does not fit "
            f"({type(error).__name__}: {str(error)[:200]}).",
            why="the recipe's optimizer or schedule is another one now; or it is damaged, of another version of "
            "PyTorch, or evener did not write it.",
            fix="say --hyperparameters recipe, begin a new logdir with --init-from, or use an older checkpoint.",
        ) from error


def schedule_differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(what, in the checkpoint, asked now) for how two schedulers were made, from their packed states."""
    found: list[tuple[str, Any, Any]] = []
    for key in saved:
        theirs, mine = saved[key], now.get(key)
        if key in PROGRESS or key not in now:
            continue
        if key == "_schedulers" and isinstance(mine, list) and len(mine) == len(theirs):
            for one, other in zip(theirs, mine, strict=True):
                found += schedule_differences(one, other)
        elif not _alike(theirs, mine):
            found.append((f"{key.strip('_')} of the schedule", unpack(theirs), unpack(mine)))
    return found


def told(differences: Sequence[tuple[str, Any, Any]], counts: str) -> list[str]:
    """A sentence for each difference.

    >>> told([("lr", 0.1, 0.5)], "checkpoint")
    ['lr stays 0.1 as in the checkpoint, not 0.5 as asked now']
    """
    if counts == "recipe":
        texts = [f"{what} is {now} as asked now, not {then} as in the checkpoint" for what, then, now in differences]
    else:
        texts = [f"{what} stays {then} as in the checkpoint, not {now} as asked now" for what, then, now in differences]
    return list(dict.fromkeys(texts))


def _alike(saved: Any, now: Any) -> bool:
    """Whether two packed values are equal; evener 0.1.0 wrote tuples as lists."""
    return bool(saved == now) or pack(_listed(unpack(saved))) == pack(_listed(unpack(now)))


def _listed(value: Any) -> Any:
    return [_listed(entry) for entry in value] if isinstance(value, list | tuple) else value
