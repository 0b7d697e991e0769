"""The base of the estimators that learn: from parameters to a trained learner."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from prefixembed._embed.encoding import check_readable, resolve_batch_tokens
from prefixembed._embed.texts import Words
from prefixembed._embed.transformer import TextTransformer
from prefixembed._embed.truncation import report_truncated
from prefixembed._fit.examples import Examples, LabelledRows, prepare
from prefixembed._fit.learning import Learner, count_batches, count_steps, train
from prefixembed._fit.optimization import MAX_RATE, Outcome, Recipe
from prefixembed._model.modes import own_modes
from prefixembed._utils.parameters import Count
from prefixembed.backbone import Backbone
from prefixembed.reading import Reading

# max_steps="auto": so many passes over the training texts, within these numbers of steps. What has
# been learned depends more on the number of steps than on that of passes: some hundred texts need
# more passes, and a hundred thousand need fewer.
AUTO_PASSES = 3
AUTO_MIN_STEPS = 200
AUTO_MAX_STEPS = 3000
# The history has at most so many entries.
MAX_EVALUATIONS = 20


class LearningTransformer(TextTransformer):
    """Base of the estimators that are trained on labelled texts."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **TextTransformer._parameter_constraints,
        "pooled_layers": [Count(1)],
        "learning_rate": [Interval(Real, 0, MAX_RATE, closed="right")],
        "weight_decay": [Interval(Real, 0, MAX_RATE, closed="both")],
        "batch_size": [Count(1)],
        "max_steps": [Count(1), StrOptions({"auto"})],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Count(1)],
        "checkpoint_dir": [str, os.PathLike, None],
        "random_state": ["random_state"],
    }

    def _make_rng(self) -> np.random.Generator:
        random = check_random_state(self.random_state)
        return np.random.default_rng(random.randint(np.iinfo(np.int32).max, size=4))

    @own_modes(gradients=False)
    def _prepare(
        self, rows: Mapping[str, LabelledRows], backbone: Backbone, rng: np.random.Generator
    ) -> tuple[dict[str, Examples], Reading]:
        """Return tokenized and split rows by task, and how they were read."""
        reading = replace(backbone.reading, **self._reading_params())
        if self.output == "words":  # refuse now what transform would refuse
            check_readable(reading, [Words()])
        fraction = self.validation_fraction if self.early_stopping else None
        data = {k: prepare(some, backbone, reading, fraction, rng) for k, some in rows.items()}
        # Training cuts texts; windows are for transform.
        reading = replace(reading, windows=False)
        truncated = np.concatenate([examples.tokens.truncated for examples in data.values()])
        n_truncated = int(truncated.sum())
        report_truncated(n_truncated, len(truncated), reading.max_length, self.on_truncate)
        return data, reading

    def _recipe(
        self, tasks: Mapping[str, Examples], learning_rate: float, temperature: float = 1.0
    ) -> Recipe:
        data, batch_size = list(tasks.values()), int(self.batch_size)
        max_steps = self.max_steps
        if max_steps == "auto":
            n_steps = AUTO_PASSES * int(count_steps(data, temperature, batch_size).sum())
            max_steps = min(max(n_steps, AUTO_MIN_STEPS), AUTO_MAX_STEPS)
        # Validation reads at most as many batches as training does.
        n_batches = sum(count_batches(len(some.valid), batch_size) for some in data)
        return Recipe(
            max_steps=max_steps,
            eval_steps=max(count_batches(int(max_steps), MAX_EVALUATIONS), n_batches),
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=self.weight_decay,
            patience=self.n_iter_no_change if self.early_stopping else None,
        )

    def _train(
        self,
        tasks: Mapping[str, Examples],
        learner: Learner,
        recipe: Recipe,
        backbone: Backbone,
        rng: np.random.Generator,
        temperature: float = 1.0,
    ) -> Outcome:
        return train(
            tasks,
            learner,
            recipe,
            temperature=temperature,
            batch_tokens=resolve_batch_tokens(self.batch_tokens, backbone.device),
            rng=rng,
            progress=bool(self.verbose),
            checkpoint_dir=self.checkpoint_dir,
        )
