"""Which rows may stand in one comparison: those that are alike in everything that it is not about.

A comparison of frameworks is about implementation, mode, layout and software. All else that was read back must be alike, row by
row, or it tells the frameworks' speed from that of a setting (``results.comparison``). Two exceptions:

- An implementation whose ``impl.toml`` says ``folds = false`` (a model zoo's) is there to be compared in its own form: a comparison
  with it is about ``folded``.
- ``deterministic`` counts on a GPU only. XLA has no other algorithms on a CPU and says true there without having been asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from reports import labels
from results import comparison
from results.record import Record
from results.schema import canonical

SETTINGS = ("precision", "tf32", "threads", "folded", "deterministic", "autotuning")
"""Read back by the implementation; ``autotuning`` counts where both rows tell it."""
LIFTABLE = (*SETTINGS, "inputs_sha256", "weights_sha256")
"""What ``--allow-unlike`` may name. Other machines and protocols are never compared row by row."""
FIELDS = (*LIFTABLE, "protocol_version", "machine_id")

Facts = Mapping[str, object]


class AllowUnlikeError(ValueError):
    """A field that may not differ, or is none; the message lists those that may."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a row says of its comparison: ``unlike`` why it is in none, ``despite`` what differs although it is in one."""

    unlike: str | None = None
    despite: str | None = None


def require_liftable(fields: Iterable[str]) -> None:
    """Refuse names that ``--allow-unlike`` cannot take.

    Raises:
        AllowUnlikeError: a name that is not in ``LIFTABLE``.
    """
    for name in fields:
        if name not in LIFTABLE:
            raise AllowUnlikeError(f"--allow-unlike {name}: what may be allowed to differ is {', '.join(LIFTABLE)}")


def facts(records: Iterable[Record]) -> Facts:
    """The fields of a row as all its timed processes tell them; one that they do not agree on is left out, so it is unlike everything."""
    told = [_told(record) for record in records if record.samples is not None]
    return {
        name: value
        for name, value in (told[0] if told else {}).items()
        if all(name in each and canonical(each[name]) == canonical(value) for each in told)
    }


def _told(record: Record) -> dict[str, object]:
    found: dict[str, object] = {name: record.settings[name] for name in SETTINGS if name in record.settings}
    if record.cell.device == "cpu":
        found["deterministic"] = None
    found |= {"inputs_sha256": record.inputs.sha256} if record.inputs else {}
    found |= {"weights_sha256": record.model.weights_sha256} if record.model else {}
    return found | {"protocol_version": record.protocol_version, "machine_id": record.machine_id}


def examine(rows: Mapping[str, Facts], baseline: str, lifted: Collection[str] = ()) -> dict[str, Finding]:
    """What is to be said of each row, by "implementation/mode"; those without ``unlike`` may be compared, each with each.

    Rows are held against the baseline; where it is not among them, against the row that most others are like.
    """
    names = sorted(rows)
    if not names:
        return {}

    def refused(one: str, other: str) -> tuple[str, ...]:
        about = {*lifted, *(["folded"] if _is_about_folding(one, other) else [])}
        return tuple(name for name in _differing(rows[one], rows[other]) if name not in about)

    first = baseline if baseline in rows else max(names, key=lambda one: sum(not refused(one, other) for other in names))
    found = {first: Finding()}
    kept = [first]
    for name in names:
        if name == first:
            continue
        against = next((other for other in kept if refused(name, other)), None)
        if against is not None:
            differences = [_difference(field, rows[name], rows[against]) for field in refused(name, against)]
            found[name] = Finding(unlike=f"not compared with {_label(against)}: {', '.join(differences)}")
            continue
        kept.append(name)
        differences = [
            f"{_difference(field, rows[name], rows[first])}, {'as allowed' if field in lifted else 'which the comparison is about'}"
            for field in _differing(rows[name], rows[first])
        ]
        found[name] = Finding(despite=f"compared with {_label(first)} although {'; '.join(differences)}" if differences else None)
    return found


def _differing(one: Facts, other: Facts) -> tuple[str, ...]:
    told = [name for name in FIELDS if name != "autotuning" or (name in one and name in other)]
    return comparison.unlike(one, other, keys=told)


def _is_about_folding(*names: str) -> bool:
    return not all(labels.folds(name.split("/", 1)[0]) for name in names)


def _difference(field: str, one: Facts, other: Facts) -> str:
    """ "folded differs (false, true)": the row's, then the other's."""
    return f"{field} differs ({_value(field, one)}, {_value(field, other)})"


def _value(field: str, row: Facts) -> str:
    if field not in row:
        return "unknown"
    value = row[field]
    text = value if isinstance(value, str) else canonical(value).decode()
    return labels.short(text) if field.endswith("_sha256") else text


def _label(name: str) -> str:
    return labels.implementation(*name.split("/", 1))
