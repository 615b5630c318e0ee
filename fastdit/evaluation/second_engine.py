"""torch-fidelity as a second engine: its own loading, loops and arithmetic, to check ours against."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdit.evaluation.distribution import Measured, bias_warnings
from fastdit.evaluation.extras import require
from fastdit.evaluation.features.base import Extractor
from fastdit.evaluation.features.extract import first
from fastdit.evaluation.intervals import Interval
from fastdit.evaluation.samples import Samples

OWN = "fastdit"  # the name under which torch-fidelity knows the extractor that we hand it
_given: list[Extractor] = []


class _Pictures(torch.utils.data.Dataset):
    """What torch-fidelity wants of an input: number -> preprocessed tensor (3, h, w), of a video's middle frame."""

    def __init__(self, samples: Samples, names: list[str], extractor: Extractor) -> None:
        self.samples, self.names, self.preprocess = samples, names, extractor.preprocess

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> torch.Tensor:
        video = self.samples.read(self.names[number])
        return torch.from_numpy(np.asarray(self.preprocess(video[len(video) // 2])))


def measure(
    samples: Samples,
    reference: Samples,
    extractor: Extractor,
    *,
    batch_size: int = 32,
    device: str = "cpu",
    num: int | None = None,
    kid_subset_size: int | None = None,
) -> Measured:
    """Frechet and kernel distance, precision and recall by torch_fidelity.calculate_metrics, end to end.

    Unreadable pictures are errors there, and an extractor that resizes inside the network needs pictures of one size.
    """
    sets = [first(samples, num), first(reference, None)]
    package = require("torch_fidelity", "--engine torch-fidelity")
    size = min(kid_subset_size or 1000, *(len(names) for names in sets))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # it always starts four workers
        found = package.calculate_metrics(
            input1=_Pictures(samples, sets[0], extractor),
            input2=_Pictures(reference, sets[1], extractor),
            **_network(package, extractor),
            fid=True,
            kid=True,
            prc=True,
            kid_subset_size=size,
            cuda=device.startswith("cuda"),
            batch_size=batch_size,
            cache=False,
            verbose=False,
        )
    keys = {
        "fd": package.KEY_METRIC_FID,
        "kid_subsets": package.KEY_METRIC_KID_MEAN,
        "precision": package.KEY_METRIC_PRECISION,
        "recall": package.KEY_METRIC_RECALL,
    }
    kid = extractor.label("KID")
    return Measured(
        {key: Interval(float(found[theirs]), None, None, len(sets[0])) for key, theirs in keys.items()},
        {"fd": extractor.label("FD"), "kid": kid, "kid_subsets": f"{kid}, 100 subsets of {size}"},
        len(sets[0]),
        len(sets[1]),
        bias_warnings(extractor, len(sets[0]), len(sets[1])),
    )


def _network(package: Any, extractor: Extractor) -> dict[str, Any]:
    """Arguments that choose the network: torch-fidelity's own Inception by its file, else ours, registered with it."""
    path: Path | None = getattr(extractor, "path", None)
    if path is not None:
        return {"feature_extractor": "inception-v3-compat", "feature_extractor_weights_path": str(path)}
    _given[:] = [extractor]
    if OWN not in package.registry.FEATURE_EXTRACTORS_REGISTRY:
        package.register_feature_extractor(OWN, _adapter(package))
    return {"feature_extractor": OWN}


def _adapter(package: Any) -> type:
    class Adapter(package.FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)
            self.extractor = _given[0]

        def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor]:
            self.extractor.to(str(batch.device))
            return (self.extractor(batch).float(),)

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    return Adapter
