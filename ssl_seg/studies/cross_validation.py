"""Cross-validation: one training a fold, one after the other. Each fold is what ``train --folds N --fold K`` does."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from lightning_fabric import Fabric

from ssl_seg.config.layers import Layer, nest
from ssl_seg.data.catalog import Catalog
from ssl_seg.data.open import describe_cases, open_data_once
from ssl_seg.data.splits.files import save_folds
from ssl_seg.errors import ConfigError, SslSegError, counted
from ssl_seg.files import next_free
from ssl_seg.results.folds import FOLDS, CrossValidation, Fold
from ssl_seg.results.study import save_study
from ssl_seg.run.console import Console, Silent
from ssl_seg.run.directory import SPLIT_FILE, name_data
from ssl_seg.run.preflight import check_with_data
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import Resolved, resolve
from ssl_seg.run.transfer import check_options
from ssl_seg.studies.sequential import (
    IN_SILENCE,
    OWN_SPLIT,
    AfterEach,
    StudySteps,
    anchor_layer,
    check_resumable,
    create_whole,
    make_training,
    run_study,
)
from ssl_seg.studies.training import Outcome, Training


def cross_validate(
    request: TrainRequest, console: Console | None = None, after: AfterEach = IN_SILENCE
) -> CrossValidation:
    """Train the folds one after the other, and score each labeled case by the network that has not seen it.

    ``request`` is that of each fold, for the directory of all; ``split.folds`` says how many there are. Its ``minutes``
    are those of the first fold: the steps that fit into them hold for all. With ``resume``, a cross-validation goes on
    with its own settings, and with other minutes where the first fold was too short for them.

    A fold that the monitor stops is recorded as collapsed and counts with the scores of its best.pt; the others are
    trained all the same.

    Returns:
        The cross-validation, whose ``ending`` says how far it went; cross_validation.json in its directory says the
        same.

    Raises:
        SslSegError: for anything the user can fix.
    """
    console = console or Silent()
    steps = StudySteps(
        create=lambda fabric: _create(request, fabric, console),
        reopen=lambda study: replace(study, ending=None, minutes=check_resumable(FOLDS, study, request)),
        plan=_plan_fold,
        judge=lambda validation, fold, outcome: _judge(validation, fold, outcome, console),
    )
    return run_study(FOLDS, steps, request, console, after)


def _create(request: TrainRequest, fabric: Fabric, console: Console) -> CrossValidation:
    """Check all that can be known before the first training, then create the directory with the splits."""
    layers = tuple(anchor_layer(layer) for layer in request.layers)
    count = TrainRequest(layers).settings.get("split.folds")
    if count is None:
        raise ConfigError("split.folds: a cross-validation needs the number of its folds; give --folds 5")
    if request.out is not None:
        FOLDS.check_free(Path(request.out))
    plans = _plan_folds(replace(request, layers=layers), int(count), fabric, console)
    splits, config = [plan.split for plan in plans], plans[0].config
    folds = tuple(Fold(n, len(plan.split.val), len(plan.labeled)) for n, plan in enumerate(plans))
    name = f"{name_data(config.data.root)}_{config.method.name}_{config.split.labels:g}_folds{count}_seed{config.seed}"
    path = Path(request.out or next_free(Path("runs") / name))
    validation = CrossValidation(path, layers, folds, request.epochs, request.minutes)

    def fill(folder: Path) -> None:
        save_folds(splits, folder / SPLIT_FILE)
        save_study(FOLDS, replace(validation, path=folder))

    create_whole(path, fill)
    counts = ", ".join(str(fold.cases) for fold in folds)
    console.note(
        f"cross-validation: {path}, {len(folds)} folds with {counts} validation cases, "
        f"{counted(len(splits[0].test), 'test case')} (sealed) in none of them"
    )
    return validation


def _plan_folds(request: TrainRequest, count: int, fabric: Fabric, console: Console) -> list[Resolved]:
    """Return the plan of each fold, all of them checked: a bad last fold is found before the first is trained."""
    plans, cases = [], dict[str, Catalog]()
    for number in range(count):
        fold = Layer(f"--fold {number}", nest("split.fold", number), is_option=True)
        plan = resolve(
            replace(request, layers=(*request.layers, fold)),
            console.track("reading cases"),
            gpu=fabric.device.type != "cpu",
            read=partial(open_data_once, cases),
        )
        cases[describe_cases(plan.config.data.model_dump(mode="json"))] = plan.catalog
        check_options(plan.config, plan.sources, has_parent=False)
        try:
            check_with_data(plan, lambda _: None)
        except SslSegError as error:
            raise type(error)(f"fold {number}: {error}") from error
        plans.append(plan)
    return plans


def _plan_fold(validation: CrossValidation, fold: Fold) -> Training:
    """Return how a fold is begun: on its own split."""
    file = (validation.path / f"split_{fold.name}.yaml").resolve()
    title = f"{fold.name} of {len(validation.trainings)}: {fold.labeled} labeled, {fold.cases} validation"
    return make_training(validation, title, Layer(fold.name, nest("split.file", str(file))), dropped=OWN_SPLIT)


def _judge(validation: CrossValidation, fold: Fold, outcome: Outcome, console: Console) -> CrossValidation:
    """Take over the final scores of a finished fold."""
    used = outcome.final.used
    fold = replace(
        fold,
        status="collapsed" if outcome.stopped else "refused" if outcome.broken_gates else "done",
        net=used.net,
        codes=outcome.codes,
        scores=outcome.final.of(used.source),
    )
    if not outcome.stopped:
        console.note(f"{fold.name}: F1 {fold.summarize(fold.net)['f1_macro']:.3f} ({fold.net})")
    return validation.with_training(fold)
