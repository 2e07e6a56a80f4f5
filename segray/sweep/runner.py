"""A sweep from its config to its winner: Ray Tune runs the trials, Optuna chooses them."""

from __future__ import annotations

import contextlib
import statistics
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from segray.config import (
    Interrupted,
    RequestError,
    SegrayError,
    SweepConfig,
    WorkError,
    trial_config,
    trial_count,
)
from segray.data import class_colours, data_version, open_dataset
from segray.models import save_model
from segray.sweep import space
from segray.sweep.budget import longest, shared
from segray.sweep.cluster import RayLost, dead_process, ray_cluster
from segray.sweep.faults import put_down, understand
from segray.sweep.final import run_final, run_list
from segray.sweep.placement import Plan, plan, this_machine
from segray.sweep.preflight import check_inputs, place
from segray.sweep.progress import Screen, count
from segray.sweep.records import RunFolder
from segray.sweep.search import FixedList, Search, make_spec
from segray.sweep.store import remote_of, run_path
from segray.sweep.trial import at_home, run_trial, trial_device
from segray.sweep.trial_files import (
    TrialResult,
    TrialSpec,
    failed_outcome,
    ranked,
    row,
    test_miou,
    write_outcome,
    write_text,
)
from segray.train import Metrics, Stop, build_trial_model, checkpoint


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found."""

    folder: Path
    trials: tuple[TrialResult, ...]  # best first
    final: tuple[TrialResult, ...]

    @property
    def best(self) -> TrialResult:
        """The winner of the search."""
        return self.trials[0]

    @property
    def winner(self) -> TrialResult:
        """What the final stage trained, which top_k may have chosen; without one, `best`."""
        if not self.final:
            return self.best
        trained = self.final[0].assignment
        return next((t for t in self.trials if t.assignment == trained), self.best)

    @property
    def table(self) -> list[dict[str, Any]]:
        """The leaderboard: trial, state, best_value, epochs, parameters, ..., the best first."""
        return [row(trial) for trial in self.trials]


def run_sweeps(
    configs: Sequence[SweepConfig],
    *,
    resume: bool = False,
    extend: int = 0,
    replace: bool = False,
    command: Sequence[str] = (),
    done: Callable[[SweepResult], None] = lambda result: None,
) -> list[SweepResult]:
    """Run sweeps one after the other; one that fails does not keep the next from its turn.

    They share one budget evenly. `extend` is as for `run_sweep`. `replace` is for smoke tests: each
    takes the place of the one before it. `done` is called as each has come to its end. Raises what
    `run_sweep` raised where there is one sweep, else WorkError once all have had their turn.
    """
    taken: dict[Path, int] = {}
    for config in configs:
        path = run_path(config)
        taken[path] = taken.get(path, 0) + 1
    if twice := [str(path) for path, times in taken.items() if times > 1]:
        raise RequestError(f"{twice[0]} is the run folder of two of these files: change a name")
    if len(configs) > 1:
        configs = shared(configs)
    for config in configs:
        if resume or extend:
            _begun(config, extend)
            continue
        if replace:
            RunFolder.remove_smoke_test(config)
        RunFolder.check_free(config)
    results, errors = [], []
    for config in configs:
        screen = _screen(config)
        try:
            result = run_sweep(config, screen, resume=resume, extend=extend, command=command)
            results.append(result)
            done(result)
        except (Interrupted, RayLost):
            raise
        except Exception as error:
            if len(configs) == 1:
                raise
            told = str(error) if isinstance(error, SegrayError) else _put_away(error, config)
            screen.say(f"{config.name} ended with an error: {told}")
            errors.append(error)
    if errors:
        raise WorkError(f"{len(errors)} of {len(configs)} sweeps ended with an error, see above")
    return results


def run_sweep(
    config: SweepConfig,
    screen: Screen | None = None,
    *,
    resume: bool = False,
    extend: int = 0,
    command: Sequence[str] = (),
) -> SweepResult:
    """Run a sweep to its end and return what it found.

    `resume` takes up the run that this config began: what had ended keeps its results, the rest
    goes on from its checkpoints. `extend` does so too, and adds that many trials. `command` is
    noted in a new run's sweep.yaml. Raises RequestError for a request that cannot be met, WorkError
    where no trial could be scored, or where the sweep had to stop with trials left.
    """
    screen = screen or _screen(config)
    begun = _begun(config, extend) if resume or extend else None
    with contextlib.ExitStack() as stack:
        if begun is not None:
            stack.enter_context(_hold(begun, screen))
            run_cap = begun.extended_by(extend) if extend else begun.config().run_cap
            config = config.model_copy(update={"run_cap": run_cap})
            if (before := _ended_before(begun, config)) is not None:
                screen.say("this sweep has come to its end, and nothing is left to do of it")
                _summarise(config, before, (before.final or before.trials)[0], screen)
                return before
        active = check_inputs(config, screen, new=begun is None)
        if begun is not None:
            begun.check_data(data_version(config.data))
        screen.say("starting Ray, and trying the largest trial's step on a worker")
        cluster = stack.enter_context(ray_cluster())
        search, final = place(config, cluster, screen)
        _prepare(active, search, screen)
        folder = begun or RunFolder.create(config, command=command)
        stack.enter_context(_interruptible(folder))
        if begun is None:
            stack.enter_context(_hold(folder, screen))
        else:
            begun.adopt(config)
        if extend:
            screen.say(f"extended to {count(trial_count(config), 'trial')}")
        screen.say(
            f"{count(trial_count(config), 'trial')} of up to "
            f"{count(longest(config), 'epoch')} by {config.method}, "
            f"{search.concurrent} at a time: {search}"
        )
        if config.final is not None:
            again = config.final.top_k
            whom = "the winner" if again == 1 else f"the best {again}"
            screen.say(f"then {whom} again with {count(len(config.final.seeds), 'seed')}")
        trials = _search(active, folder, search, screen)
        _require_score(trials, folder)
        finals = run_final(active, folder, final, trials, screen) if final else []
        scored = [result for result in finals if (result.folder / "metrics.json").is_file()]
        kept = (scored or trials)[0]
        _export(config, folder, kept)
        if scored or not finals:
            folder.mark_done()
    result = SweepResult(folder.path, tuple(trials), tuple(finals))
    _summarise(config, result, kept, screen)
    if finals and not scored:
        raise WorkError(f"the final stage failed: {finals[0].outcome.reason}")
    return result


def _ended_before(folder: RunFolder, config: SweepConfig) -> SweepResult | None:
    """What a sweep found that came to its end as `config` asks for; None: something is left."""
    if not folder.done or not folder.has(config):
        return None
    seeds = config.final.seeds if config.final else []
    finals = folder.final_results(seeds)
    if any(
        seed not in finals or not (finals[seed].folder / "metrics.json").is_file() for seed in seeds
    ):
        return None  # one that failed is tried again
    for part in (folder.path / "best", *(final.folder for final in finals.values())):
        folder.collect(part, weights=True)  # for the report
    goal = config.metric.goal
    trials = ranked(folder.results(), goal)
    return SweepResult(folder.path, tuple(trials), tuple(ranked(finals.values(), goal)))


def run_training(
    config: SweepConfig,
    screen: Screen | None = None,
    *,
    resume: bool = False,
    command: Sequence[str] = (),
) -> SweepResult:
    """One training with the file's own values, without search; leaves what a trial leaves.

    `resume` and `command` are as for `run_sweep`.
    """
    screen = screen or _screen(config)
    begun = RunFolder.resume(config, "train") if resume else None
    with contextlib.ExitStack() as stack:
        if begun is not None:
            stack.enter_context(_hold(begun, screen))
        active = check_inputs(config, screen, new=begun is None)
        if begun is not None:
            begun.check_data(data_version(config.data))
        on_workers = config.resources.workers > 1
        machine = stack.enter_context(ray_cluster()) if on_workers else this_machine()
        alone = config.resources.model_copy(update={"max_concurrent": 1})
        stage = plan(alone, machine, 1)
        if on_workers:
            _prepare(active, stage, screen)
        else:
            _open_dataset(config, screen)
        folder = begun or RunFolder.create(config, "train", command)
        stack.enter_context(_interruptible(folder))
        if begun is None:
            stack.enter_context(_hold(folder, screen))
        spec = make_spec(active, folder, stage, "000", folder.trial("000"), {}, config.seed)
        queue = FixedList([spec])
        if on_workers:
            run_list(queue, active, folder, stage, screen)
        elif queue.missing:
            _run_here(spec, queue, folder, screen)
        folder.write_leaderboard(queue.results, config.metric.goal)
        _require_score(queue.results, folder)
        _export(config, folder, queue.results[0])
    result = SweepResult(folder.path, tuple(queue.results), ())
    _summarise(config, result, result.best, screen)
    return result


def _begun(config: SweepConfig, extend: int) -> RunFolder | None:
    """The run to take up, or None where it had not begun, which `extend` does not allow."""
    begun = RunFolder.resume(config)
    if extend and begun is None:
        raise RequestError(
            f"--extend: there is no sweep in {run_path(config)} to add trials "
            f"to; run it first, or give it run_cap={trial_count(config) + extend}"
        )
    if extend and begun is not None:
        begun.extended_by(extend)
    return begun


def _hold(folder: RunFolder, screen: Screen) -> contextlib.AbstractContextManager[None]:
    return folder.hold(lambda: screen.say("waiting for the last processes of the earlier run"))


def _put_away(error: Exception, config: SweepConfig) -> str:
    """A line on an error that nobody foresaw; its traceback goes to the run folder, if it is there.

    Without one it goes to stderr.
    """
    said = f"{type(error).__name__}: {error}"
    file = run_path(config) / "error.txt"
    story = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        if file.parent.is_dir():
            write_text(file, story)
            return f"{said}; the traceback is in {file}"
    sys.stderr.write(story)
    return said


@contextlib.contextmanager
def _interruptible(folder: RunFolder) -> Iterator[None]:
    """Ctrl-C, or the end of Ray, ends with a message that says where everything is."""
    try:
        yield
    except KeyboardInterrupt:
        if dead := dead_process():
            raise RayLost(dead) from None
        raise Interrupted(
            f"interrupted; everything so far is in {folder.place}. The same command with --resume "
            "goes on"
        ) from None


def _run_here(spec: TrialSpec, queue: FixedList, folder: RunFolder, screen: Screen) -> None:
    """A trial of one worker in this process, without Ray: easy to debug and to profile."""

    def tell(metrics: Metrics) -> Stop | None:
        screen.epoch(spec.id, metrics["epoch"], metrics["value"], metrics["best"])
        return None

    with screen.trials(1):
        screen.start(spec.id, {})
        try:
            with at_home(spec, tell) as tell_all:
                outcome = run_trial(spec, trial_device(spec), tell_all)
        except SegrayError:
            raise
        except Exception as error:
            account = "".join(traceback.format_exception(error))
            fault = understand(account, spec.config)
            if fault.kind != "disk_full":  # which says nothing of the training
                put_down(spec.folder, fault.reason, account)
                write_outcome(spec.folder, failed_outcome(spec.folder, fault.reason))
                folder.save_training(spec.folder, "error.txt", "outcome.json")
            raise WorkError(
                f"{fault.reason}\nThe whole story is in {spec.folder / 'log.txt'}. Once the cause "
                "is gone, the same command with --resume goes on"
            ) from error
        result = TrialResult(spec.id, spec.folder, {}, outcome)
        screen.end(result)
        queue.end(result)


def _screen(config: SweepConfig) -> Screen:
    return Screen(config.metric.name, config.metric.goal, config.train.epochs)


def _prepare(config: SweepConfig, stage: Plan, screen: Screen) -> None:
    """Get this machine ready, if it trains, and the cluster's other nodes."""
    from segray.sweep.nodes import prepare_nodes, trains_here

    gpus = stage.gpus_per_worker > 0
    if trains_here(gpus=gpus):
        _open_dataset(config, screen)
    prepare_nodes(config, screen, gpus=gpus)


def _open_dataset(config: SweepConfig, screen: Screen) -> None:
    """Build the cache before trials ask for it side by side."""
    with screen.bars() as progress:
        open_dataset(config.data, progress)


def _search(
    config: SweepConfig, folder: RunFolder, stage: Plan, screen: Screen
) -> list[TrialResult]:
    """Run the sweep's trials; their results, best first."""
    from segray.sweep.engine import run_trials

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = Search(config, folder, stage)
    if search.asked:
        screen.say(
            f"taken up again: {count(len(search.results), 'trial')} had ended, "
            f"{len(search.unfinished)} had begun and go on from their last epoch"
        )
    begun = [*folder.path.glob("final/*/config.yaml"), *folder.path.glob("candidates/*/*")]
    decided = bool(begun) and not folder.extended
    if decided and search.missing:
        screen.say("the final stage had begun, so the search stays as it was")
    elif search.closed:
        search.end_unfinished()
    elif search.missing:
        with screen.trials(trial_count(config), search.results, search.ledger.used):
            run_trials(
                search,
                stage,
                screen,
                folder=folder,
                failure=config.failure,
                goal=config.metric.goal,
                pruner=space.pruner(config),
                deadline=search.ledger.deadline,
            )
        if search.closed:
            search.end_unfinished()
    results = ranked(search.results, config.metric.goal)
    if search.too_many_failed:
        screen.leaderboard(results, "Trials")
        reasons = sorted({r.outcome.reason for r in results if r.outcome.state == "failed"})
        raise WorkError(
            f"{search.failed} trials failed, more than budget.max_failed_trials="
            f"{config.budget.max_failed_trials}: {'; '.join(reasons)}\n"
            f"Each one's story is in {folder.place}/trials/<id>/error.txt. Once the cause is gone, "
            f"a larger budget.max_failed_trials with --resume goes on"
        )
    why = search.refusal or search.ledger.exhausted
    if search.missing and why and not decided:
        screen.say(f"no further trial after {len(results)} of {search.total}: {why}")
    return results


def _export(config: SweepConfig, folder: RunFolder, best: TrialResult) -> None:
    """best/: the weights of the best training, as predict and transformers load them.

    A sweep that was taken up again with nothing left to do may have been cleaned: best/ stays.
    """
    weights = best.folder / "checkpoint" / "best.safetensors"
    folder.collect(best.folder, weights=True)
    if not weights.is_file() and folder.exported:
        return
    fixed = trial_config(config, best.assignment, seed=0, workers=1, gpus_per_worker=0, threads=1)
    model = build_trial_model(fixed)
    checkpoint.load(weights, model)
    save_model(
        model,
        folder.path / "best",
        class_names=config.data.class_names,
        image_size=config.data.size,
        class_colours=class_colours(config.data),
    )
    folder.save()


def _summarise(config: SweepConfig, result: SweepResult, kept: TrialResult, screen: Screen) -> None:
    """The leaderboard, the winner, and where everything is; `kept` is what best/ holds."""
    best, outcome = result.winner, result.winner.outcome
    screen.leaderboard(result.trials, "Trials, best first" if len(result.trials) > 1 else "Trial")
    if result.final:
        screen.leaderboard(result.final, "Final")
    screen.line(
        f"\nBest: trial {best.id}, {config.metric.name} {outcome.best_value:.4f} "
        f"at epoch {outcome.best_epoch} of {outcome.epochs}"
    )
    for name, value in best.assignment.items():
        screen.line(f"  {name}: {value}")
    scored = [
        test_miou(path)
        for final in result.final
        if (path := final.folder / "metrics.json").is_file()
    ]
    if len(scored) == 1:
        screen.line(f"Test: mIoU {scored[0]:.4f}, of {kept.id}")
    elif scored:
        spread = f"{statistics.mean(scored):.4f} +- {statistics.stdev(scored):.4f}"
        screen.line(f"Test: mIoU {spread} (mean and standard deviation of {len(scored)} seeds)")
    failed = [trial.id for trial in result.trials if trial.outcome.state == "failed"]
    if failed:
        told = f"{count(len(failed), 'trial')} ({', '.join(failed)})"
        screen.line(f"Failed: {told}: see trials/<id>/error.txt")
    folder = result.folder
    remote = remote_of(folder)
    screen.line(f"\nEverything is in {remote.url if remote else folder}")
    if remote:
        screen.line(f"  with a copy on this machine: {folder}")
    screen.line("  leaderboard.csv   a row a trial")
    screen.line("  trials/<id>/      config.yaml, metrics.jsonl, log.txt of each")
    if scored:
        screen.line("  final/seed_<k>/   test metrics, predictions, one confusion matrix an image")
    screen.line(f"  best/             the weights of {kept.id}")
    tracked = {path.name for path in folder.glob("wandb/*")}
    if remote:
        tracked = {name.split("/")[0] for name in (remote / "wandb").files()}
    if tracked:
        see = "" if remote else f"; see them with: wandb leet {folder}/wandb"
        screen.line(f"  wandb/            W&B runs{see}")
    if any(name.startswith("offline-run-") for name in tracked):
        screen.line(
            f"                    upload them with: segray sync {remote.url if remote else folder}"
        )


def _require_score(ranked_trials: Sequence[TrialResult], folder: RunFolder) -> None:
    """Raises WorkError where not even the best trial has a score and its weights."""
    if ranked_trials:
        best = ranked_trials[0].outcome
        if best.best_value is not None and best.state != "failed":
            return
    reasons = sorted({trial.outcome.reason for trial in ranked_trials})
    raise WorkError(
        f"no trial has a result: {'; '.join(reasons) or 'none was started'}\n"
        f"Each one's story is in {folder.place}/trials/<id>/error.txt and log.txt"
    )
