"""Classifier two-sample tests (C2ST): how well can a classifier tell generated windows of motion from true ones?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

import numpy as np
from jaxtyping import Float, Int

from af.clock import seconds_to_frames
from af.metrics.arrays import Array, Clip, safe_divide
from af.metrics.base import FACES, ClipMetric, ClipTable, Sums, fit_length
from af.metrics.diversity import clip_variance, that_vary
from af.metrics.records import EvaluationClip
from af.metrics.ridge import fold_of_groups

WINDOW: Final = seconds_to_frames(1)
FOLDS: Final = 5
TREES: Final = 80
LEAF: Final = 10  # windows in a leaf of a tree, at least
LAGS: Final = tuple(range(0, seconds_to_frames(1) + 1, 5))


def describe(clip: Clip, starts: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N F"]:
    """Windows of a clip as inputs of the classifier, for each column: every fifth value, mean, standard deviation, median
    speed and mean size of the second difference.
    """
    windows = _windows(clip, starts)
    speed = np.median(np.abs(np.diff(windows, axis=1)), axis=1)
    bend = np.abs(np.diff(windows, n=2, axis=1)).mean(1)
    shown = windows[:, WINDOW % 5 + 2 :: 5].reshape(len(windows), -1)
    return np.concatenate([shown, windows.mean(1), windows.std(1), speed, bend], axis=1)


def describe_centre(clip: Clip, starts: Int[np.ndarray, " N"], around: int = 3) -> Float[np.ndarray, "N F"]:
    """Windows as sizes of the first and second differences within `around` frames of their middle."""
    middle = _windows(clip, starts)[:, WINDOW // 2 - around : WINDOW // 2 + around]
    steps = [np.abs(np.diff(middle, n=n, axis=1)).reshape(len(middle), -1) for n in (1, 2)]
    return np.concatenate(steps, axis=1)


def describe_pair(
    user: Float[np.ndarray, "T D"], avatar: Float[np.ndarray, "T D"], starts: Int[np.ndarray, " N"]
) -> Float[np.ndarray, "N F"]:
    """Both people's windows by `describe`, and for each parameter the mean product of the avatar's deviation from its
    clip's mean with the user's 0, 0.2 … 1 s before (trees cannot find products by themselves).
    """
    x, y = user - user.mean(0), _windows(avatar - avatar.mean(0), starts)
    earlier = [_windows(np.concatenate([np.repeat(x[:1], lag, axis=0), x]), starts) for lag in LAGS]
    return np.concatenate(
        [describe(avatar, starts), describe(user, starts), *((y * e).mean(1) for e in earlier)], axis=1
    )


def _windows(clip: Clip, starts: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N W D"]:
    return clip[starts[:, None] + np.arange(WINDOW)]


def held_out_scores(
    first: Sequence[Float[np.ndarray, "N F"]],
    second: Sequence[Float[np.ndarray, "M F"]],
    groups: Sequence[str],
    seed: int = 0,
) -> tuple[list[Array], list[Array]]:
    """Scores (higher: rather of `first`) of each clip's windows on either side, in ranks within the fold.

    The classifier (gradient-boosted trees of scikit-learn) never sees the groups that it scores.
    """
    from scipy.stats import rankdata

    fold = fold_of_groups(groups, FOLDS)
    scores: tuple[list[Array], list[Array]] = ([np.zeros(0)] * len(fold), [np.zeros(0)] * len(fold))
    for held in range(int(fold.max()) + 1):
        seen = [i for i, f in enumerate(fold) if f != held]
        x, y = np.concatenate([first[i] for i in seen]), np.concatenate([second[i] for i in seen])
        judged = [
            (side, i, c[i]) for side, c in enumerate((first, second)) for i in np.flatnonzero(fold == held).tolist()
        ]
        if not len(x) or not len(y) or not sum(len(windows) for *_, windows in judged):
            continue
        found = np.zeros(sum(len(windows) for *_, windows in judged))
        if len(x) + len(y) >= 2 * LEAF:  # with fewer no tree can split, and all score alike
            from sklearn.ensemble import HistGradientBoostingClassifier

            judge = HistGradientBoostingClassifier(
                max_iter=TREES, max_leaf_nodes=8, min_samples_leaf=LEAF, early_stopping=False, random_state=seed
            )
            judge.fit(np.concatenate([x, y]), np.repeat([1, 0], [len(x), len(y)]))
            found = judge.decision_function(np.concatenate([windows for *_, windows in judged]))
        ranks = rankdata(found) / len(found)
        for (side, i, _), part in zip(
            judged, np.split(ranks, np.cumsum([len(w) for *_, w in judged])[:-1]), strict=True
        ):
            scores[side][i] = part
    return scores


def score_sums(first: Sequence[Array], second: Sequence[Array]) -> Sums:
    """Per clip, the counts of each score that occurs, of `first` then of `second`: sums for `auc_from_sums`."""
    grid = np.unique(np.concatenate([*first, *second]))
    counts = [
        [np.bincount(np.searchsorted(grid, clip), minlength=len(grid)) for clip in side] for side in (first, second)
    ]
    return np.concatenate(counts, axis=1).astype(np.float64)


def auc_from_sums(sums: Float[np.ndarray, "... S"]) -> Array:
    """Area under the ROC curve: the probability that a window of the first side has the higher score; ties count half."""
    first, second = np.split(np.asarray(sums, np.float64), 2, axis=-1)
    below = np.cumsum(second, axis=-1) - second / 2
    return safe_divide((first * below).sum(-1), first.sum(-1) * second.sum(-1))


class TwoSample(ClipMetric):
    """`c2st/motion`, `c2st/pair`, `c2st/block`: AUC of a classifier on windows of one second; 0.5 cannot be told apart.

    `motion`: the avatar's face parameters, generated against true; also for each parameter that varies alone. `pair`: the same
    beside the user's, with how both move together at lags up to a second; the null is the true avatar beside another conversation's user.
    `block`: generated windows centred on a block's border against generated ones centred inside a block, so only traces
    of the borders tell; the true value is that of true windows at the same places. Folds are disjoint in identity.
    Source: Lopez-Paz and Oquab, Revisiting classifier two-sample tests, ICLR 2017.
    """

    needs: ClassVar = {"c2st": f"{FACES} of two identities or more"}
    headline = ("c2st/motion", "c2st/pair")

    def __init__(
        self, block: int | None = None, first_border: int | None = None, alone: bool = True, **draws: int
    ) -> None:
        super().__init__(**draws)
        self.block, self.first_border, self.alone = block, first_border, alone
        #: Of classifiers that see only true motion; reused by the next `compute` on the same users and true avatars.
        self._of_truth: dict[str, Sums] = {}
        self._truth = ""

    def measure(self, clip: EvaluationClip) -> dict[str, Any]:
        """The series: the classifier needs all clips."""
        return {side: clip.side(side) for side in ("user", "true", "generated")}

    def tabulate(self, table: ClipTable) -> None:
        """All rows, if there are two identities."""
        if len(set(table.identities)) < 2:
            return
        user, true, own = (table[side] for side in ("user", "true", "generated"))
        if (truth := table.contents("user", "true")) != self._truth:
            self._of_truth, self._truth = {}, truth
        starts = [np.arange(0, len(clip) - WINDOW + 1, WINDOW) for clip in true]
        text = "AUC, windows of 1 s, gradient-boosted trees, folds disjoint in identity"

        def described(clips: Sequence[Clip]) -> list[Array]:
            return [describe(clip, at) for clip, at in zip(clips, starts, strict=True)]

        def row(tag: str, first: list[Array], second: list[Array], more: str = "", null: Sums | None = None) -> None:
            sums = self._sums(first, second, table)
            table.add(tag, sums, auc_from_sums, protocol=text + more, per_clip=False, true=0.5, null=null)

        def beside(users: Sequence[Clip], avatars: Sequence[Clip]) -> list[Array]:
            return [describe_pair(u, c, at) for u, c, at in zip(users, avatars, starts, strict=True)]

        row("c2st/motion", described(own), described(true))
        both = beside(user, true)
        null = self._once("strangers", lambda: self._sums(beside(self._strangers(user, table), true), both, table))
        row("c2st/pair", beside(user, own), both, "; null: the true avatar beside another user", null)
        if self.block is not None:
            self._borders(table, self.block, own, true)
        varies = that_vary(np.stack([clip_variance(clip) for clip in true]), table.face.expression)
        for d in np.flatnonzero(varies) if self.alone else ():
            first, second = (described([clip[:, [d]] for clip in side]) for side in (own, true))
            row(f"c2st/motion/{table.face.names[d]}", first, second)

    def _strangers(self, user: Sequence[Clip], table: ClipTable) -> list[Clip]:
        """The user of another conversation of the same fold: in another fold the classifier would have met these windows
        with the opposite label.
        """
        fold = fold_of_groups(table.identities, FOLDS)
        found = []
        for i, clip in enumerate(user):
            near = np.flatnonzero(fold == fold[i])
            j = near[(int(np.flatnonzero(near == i)[0]) + 1) % len(near)]
            other = fit_length(user[j], len(clip))
            found.append(other if j != i else np.roll(other, len(clip) // 2, axis=0))
        return found

    def _once(self, name: str, fit: Callable[[], Sums]) -> Sums:
        if name not in self._of_truth:
            self._of_truth[name] = fit()
        return self._of_truth[name]

    def _borders(self, table: ClipTable, block: int, own: Sequence[Clip], true: Sequence[Clip]) -> None:
        start = block if self.first_border is None else self.first_border

        def against_inside(clips: Sequence[Clip]) -> Sums:
            at: list[Array] = []
            off: list[Array] = []
            for clip in clips:
                borders = np.arange(start, len(clip), block)
                for kept, centres in ((at, borders), (off, borders + block // 2)):
                    first = centres - WINDOW // 2
                    kept.append(describe_centre(clip, first[(first >= 0) & (first <= len(clip) - WINDOW)]))
            return self._sums(at, off, table)

        text = f"AUC, windows of 1 s on borders of blocks of {block} against those inside, folds disjoint in identity"
        truth = self._once("borders", lambda: against_inside(true))
        table.add("c2st/block", against_inside(own), auc_from_sums, true=truth, protocol=text, per_clip=False)

    def _sums(self, first: Sequence[Array], second: Sequence[Array], table: ClipTable) -> Sums:
        return score_sums(*held_out_scores(first, second, table.identities, seed=self.seed))
