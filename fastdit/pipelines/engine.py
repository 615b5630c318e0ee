"""The engine: attaches methods to the transformers of a pipeline, runs them by the clock, and reports.

Three ledgers: one holds the pipeline's extended class, one the hooks that watch (they stay while the methods are set
aside by `dense()`), one what the methods change. The scheduler is only touched while a run is open, by the clock and by
the methods that act on steps.
"""

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fastdit.core.clock import StepClock
from fastdit.core.ledger import PatchLedger
from fastdit.core.memory import cuda_devices, peak_memory, start_measuring, wait_for
from fastdit.core.report import MethodReport, RunReport
from fastdit.methods.base import Method
from fastdit.methods.runtime import Forward, Host, StepRuntime, Weights, carry_out, idle_reasons
from fastdit.models.base import family_of
from fastdit.pipelines.checks import attention_backends, check_backend, check_sharding, checked, note_cache
from fastdit.pipelines.counter import MacCounter, bind
from fastdit.pipelines.forwards import facts_of, settle
from fastdit.pipelines.hosts import Attached, models_of, transformers_of
from fastdit.pipelines.idle import Outlook, explain_idle, refuse_nothing


class Engine:
    """Methods on a pipeline or a bare transformer; `report` is the last run's (or, without runs, everything so far)."""

    def __init__(self, target: Any, methods: Sequence[Method], weights: Weights | None = None) -> None:
        self.target, self.weights = target, weights
        self.clock = StepClock()
        self.report = RunReport()
        self.identity, self.watching, self.changes = PatchLedger(), PatchLedger(), PatchLedger()
        self.attached: list[Attached] = []
        self.methods: list[Method] = []
        self.on_steps: list[tuple[Method, StepRuntime]] = []
        self.running = self.set_aside = False
        self.counting = 0.0  # seconds of a run that went into counting MACs
        self.attach(methods)

    def attach(self, methods: Sequence[Method]) -> None:
        """Attach methods to all transformers, or leave everything as it was and raise."""
        transformers = transformers_of(self.target)
        families = {name: family_of(module) for name, module in transformers.items()}
        self.methods = checked(methods, list(families.values()))
        try:
            for method in self.methods:
                if method.stage == "step":
                    method.bind_steps(self.target).check()
            for name, module in transformers.items():
                module = getattr(module, "_orig_mod", module)
                if "_fastdit_engine" in vars(module):
                    raise ValueError(
                        f"this {name} is accelerated already, alone or in a pipeline: restore it there first"
                    )
                self.watching.set_attribute(module, "_fastdit_engine", self)
                host = Host(name, module, families[name])
                if not families[name].attentions(module):
                    raise ValueError(f"{name}: no self-attention found where family {families[name].name} lists them")
                item = Attached(host, MacCounter(host, self.on_transformers), [])
                self.attached.append(item)
                # should the whole be compiled, now or later, the hook stays outside the graph
                hook = torch.compiler.disable(functools.partial(self._before_forward, item))
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                self.watching.add_hook(handle, f"{name}'s forward hook")
                after = torch.compiler.disable(functools.partial(self._after_forward, item))
                self.watching.add_hook(module.register_forward_hook(after), f"{name}'s hook after a forward")
                for method in self.on_transformers:
                    method.bring_weights(host, self.watching)
            self._install()
            self._hold_weights()
            self.report = self._new_report()
        except BaseException:
            self.detach()
            raise

    def _hold_weights(self) -> None:
        """Let the load method, if there is one, hold the weights; without one they are all in memory."""
        wanted = next((method for method in self.methods if method.stage == "load"), None)
        if wanted is None:
            self.give_back()
        elif self.weights is None:
            self.weights = wanted.adopt(models_of(self.target))
        else:
            self.weights = self.weights.refit(wanted)

    def give_back(self) -> None:
        """Have all weights in memory."""
        if self.weights is not None:
            self.weights.give_back()
            self.weights = None

    @property
    def on_transformers(self) -> list[Method]:
        """The methods that are bound to each transformer, in the order of its runtimes."""
        return [method for method in self.methods if method.stage not in ("load", "step")]

    def _install(self) -> None:
        self.on_steps = [(method, method.bind_steps(self.target)) for method in self.methods if method.stage == "step"]
        for item in self.attached:
            item.host.wrappers.clear()
            item.runtimes = bind(self.on_transformers, item.host, self.changes)
            self._check_backend(item)
        self.report = self._new_report()

    def _uninstall(self) -> None:
        self._start_runtimes()  # what offloading hooks or the like keep of ours passes through from now on
        self.changes.undo()
        self.on_steps = []

    def detach(self) -> None:
        """Undo everything; where the transformer's own weights cannot be put back, the methods stay and this raises."""
        self._uninstall()
        try:
            self.watching.undo()
        except BaseException:
            self._install()
            raise
        self.attached.clear()

    def set_methods(self, methods: Sequence[Method]) -> None:
        """Exchange the methods; if the new ones are refused, the old ones come back."""
        if self.running:
            raise RuntimeError("set_methods(...) cannot be called while the pipeline runs: wait for its end")
        if self.set_aside:
            raise RuntimeError("set_methods(...) and restore() cannot be called inside dense(): leave it first")
        previous = self.methods
        self.detach()
        try:
            self.attach(methods)
        except BaseException:
            self.attach(previous)
            raise

    @contextlib.contextmanager
    def dense(self) -> Iterator[None]:
        """Within, the model runs unaccelerated; runs are still timed and counted."""
        if self.running:
            raise RuntimeError("dense() cannot be entered while the pipeline runs: wait for its end")
        if self.set_aside:  # dense() inside dense()
            yield
            return
        for reason in filter(None, (method.dense_reason() for method in self.methods)):
            raise RuntimeError(reason)
        self._uninstall()
        for item in self.attached:
            item.runtimes = []
        self.set_aside = True
        try:
            yield
        finally:
            self.set_aside = False
            report = self.report
            self._install()
            self.report = report

    @contextlib.contextmanager
    def run(self) -> Iterator[RunReport]:
        """One call of the pipeline: the clock is on its scheduler, the report is new, state is dropped at the end."""
        if self.running:
            raise RuntimeError("this pipeline is already running; use one pipeline per thread")
        clock_ledger = PatchLedger()
        if self.weights is not None:
            self.weights.start()
        self.report = self._new_report()
        self._check_still_there()
        self._start_runtimes()
        self.counting = 0.0
        devices = cuda_devices(self._devices())
        with contextlib.ExitStack() as after:  # every duty is done, last first, whatever becomes of the others
            after.callback(self._start_runtimes)
            after.callback(self.clock.reset)
            for _, stepping in self.on_steps:
                after.callback(stepping.close, self.report)
            after.callback(self._complete_report, devices, time.perf_counter())
            after.callback(clock_ledger.undo)
            if self.weights is not None:
                after.callback(self.weights.stop)
            after.callback(setattr, self, "running", False)
            self.running = True
            start_measuring(devices)
            self.clock.install(self.target.scheduler, clock_ledger, self._loop_begins)
            for _, stepping in self.on_steps:
                stepping.open(self.clock, clock_ledger)
            yield self.report

    def _complete_report(self, devices: list[torch.device], began: float) -> None:
        wait_for(devices)
        self.report.steps, self.report.steps_asked = self.clock.step_index, self.clock.num_steps
        self.report.seconds = time.perf_counter() - began - self.counting
        self.report.peak_memory = peak_memory(devices)
        self._explain_idle()

    def _loop_begins(self) -> None:
        for _, stepping in self.on_steps:
            stepping.start()

    def renew_report(self) -> None:
        """Begin a new report; for who calls a bare transformer without end."""
        self.report = self._new_report()

    def _new_report(self) -> RunReport:
        report = RunReport()
        for method in self.methods:
            if method.stage == "load" and self.weights is not None:
                report.methods[method.name] = self.weights.report
        for method, stepping in self.on_steps:
            stepping.report = report.methods[method.name] = MethodReport()
        for item in self.attached:
            for method, runtime in zip(self.on_transformers, item.runtimes, strict=False):
                runtime.report = type(runtime.report)(layers=runtime.report.layers, backend=runtime.report.backend)
                label = method.name if item.host.label == "transformer" else f"{method.name} ({item.host.label})"
                report.methods[label] = runtime.report
        return report

    def _start_runtimes(self) -> None:
        for item in self.attached:
            for runtime in item.runtimes:
                runtime.start()

    def _check_still_there(self) -> None:
        self.watching.verify()
        self.changes.verify()
        for _, stepping in self.on_steps:
            stepping.check()
        present = {id(getattr(module, "_orig_mod", module)) for module in transformers_of(self.target).values()}
        for item in self.attached:
            if id(item.host.module) not in present:
                raise RuntimeError(
                    f"pipe.{item.host.label} was replaced after fastdit was attached: call set_methods(...) again"
                )
            if item.runtimes:
                check_sharding(item.host, self.methods)
                self._check_backend(item)
                note_cache(item.host, self.report)

    def _check_backend(self, item: Attached) -> None:
        backends = attention_backends(item.host)
        check_backend(backends, self.methods)
        for runtime in item.runtimes:
            runtime.report.backend = backends

    def _before_forward(self, item: Attached, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Plan one forward: what every method does, and what it costs. Outside compiled code by design."""
        family, clock, report = item.host.family, self.clock, self.report
        if clock.open and clock.step_index == 0:
            clock.expect(getattr(self.target, "_num_timesteps", None))
        in_run = clock.noise is not None
        if in_run:
            clock.next_pass()
        forward = facts_of(family, module, family.arguments(args, kwargs), clock, self.on_transformers)
        if in_run and report.evaluations == 0:
            self._refuse_nothing(forward)
        plans = [runtime.plan(forward) for runtime in item.runtimes]
        for text in (text for runtime in item.runtimes for text in runtime.report.cautions):
            if text not in report.warnings:  # two transformers have the same
                report.warnings.append(text)
        carry_out(item.runtimes, plans, forward, item.host)
        began = time.perf_counter()
        dense, executed = item.counter.count_or_tell(args, kwargs, plans or [None], forward, report)
        self.counting += time.perf_counter() - began
        row = report.book(forward.step_index, forward.noise, dense, executed)
        for method, runtime, plan in zip(self.on_transformers, item.runtimes, plans, strict=False):
            row.density[method.name] = runtime.book(plan, forward)

    def _after_forward(self, item: Attached, *_: Any) -> None:
        settle(self.on_transformers, item.runtimes, self.report)

    def _devices(self) -> list[torch.device]:
        """Where the transformers are, or will be once offloading brings them there."""
        found = [parameter.device for item in self.attached for parameter in item.host.module.parameters()]
        execution = getattr(self.target, "_execution_device", None)
        return found if execution is None else [*found, execution]

    def _refuse_nothing(self, forward: Forward) -> None:
        """Before the first forward: an error if no method would act in this run; a note for those that would not."""
        levels = self.clock.levels
        found: list[Outlook] = [(method, stepping.report, stepping.acts(levels)) for method, stepping in self.on_steps]
        if self.weights is not None:
            found += [(method, self.weights.report, None) for method in self.methods if method.stage == "load"]
        for item in self.attached:
            reasons = idle_reasons(item.runtimes, forward.layout, levels)
            reports = [runtime.report for runtime in item.runtimes]
            found += zip(self.on_transformers, reports, reasons, strict=False)
        self.report.warnings += refuse_nothing(found)

    def _explain_idle(self) -> None:
        for item in self.attached:
            explain_idle(zip(self.on_transformers, [runtime.report for runtime in item.runtimes], strict=False))
